/* SPDX-License-Identifier: MIT */
/* A core dump: see core.h. */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <gelf.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/procfs.h>
#include <sys/stat.h>
#include <unistd.h>

#include "control.h"
#include "memory.h"
#include "unit.h"

enum { PAGE = 4096, NOTES_BYTES_MAX = 64 << 20 };

static int read_file(const struct core *core, uint64_t offset, void *to, size_t size)
{
	if (offset > core->size || size > core->size - offset)
		return -EIO;
	if (core->fd < 0) {
		memcpy(to, core->memory + offset, size);
		return 0;
	}
	for (size_t done = 0; done < size;) {
		ssize_t n = pread(core->fd, (char *)to + done, size - done, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -EIO;
		done += (size_t)n;
	}
	return 0;
}

int core_read(const struct core *core, uint64_t address, void *to, size_t size)
{
	size_t done = 0;

	/* A mapping may be in several pieces, in any order. */
	while (done < size) {
		const struct core_load *load = NULL;
		uint64_t within = 0, part;

		for (size_t i = 0; i < core->n_loads && !load; i++) {
			within = address + done - core->loads[i].address;
			if (address + done >= core->loads[i].address && within < core->loads[i].size)
				load = &core->loads[i];
		}
		if (!load)
			return -EIO;
		part = load->size - within < size - done ? load->size - within : size - done;
		if (read_file(core, load->offset + within, (char *)to + done, part))
			return -EIO;
		done += part;
	}
	return 0;
}

/* ---- What it says of itself ---- */

static void read_notes(struct core *core, Elf *elf, const GElf_Phdr *header)
{
	Elf_Data *data;
	GElf_Nhdr note;
	size_t at = 0, name_at, desc_at, next;

	if (header->p_filesz > NOTES_BYTES_MAX || header->p_filesz > core->size ||
		header->p_offset > core->size - header->p_filesz)
		return;
	data = elf_getdata_rawchunk(elf, (int64_t)header->p_offset, header->p_filesz, ELF_T_NHDR);
	if (!data)
		return;
	while ((next = gelf_getnote(data, at, &note, &name_at, &desc_at)) > at) {
		prpsinfo_t info;

		if (note.n_type == NT_PRPSINFO && note.n_descsz == sizeof info && note.n_namesz == 5 &&
			desc_at + sizeof info <= data->d_size && !memcmp((char *)data->d_buf + name_at, "CORE", 5)) {
			memcpy(&info, (char *)data->d_buf + desc_at, sizeof info);
			core->pid = (uint32_t)info.pr_pid;
			core->uid = info.pr_uid;
			memcpy(core->name, info.pr_fname, 16);
			memcpy(core->command, info.pr_psargs, 80);
			unit_clean(core->name, sizeof core->name);
			unit_clean(core->command, sizeof core->command);
			return;
		}
		at = next;
	}
}

static int read_headers(struct core *core, Elf *elf, char why[CORE_WHY_BYTES])
{
	GElf_Ehdr ehdr;
	uint64_t left = core->size; /* nothing in it is there twice */
	size_t n;

	if (elf_kind(elf) != ELF_K_ELF || gelf_getclass(elf) != ELFCLASS64 || !gelf_getehdr(elf, &ehdr) ||
		ehdr.e_type != ET_CORE || elf_getphdrnum(elf, &n) < 0) {
		snprintf(why, CORE_WHY_BYTES, "no core dump of a 64-bit program");
		return -ENODATA;
	}
	for (size_t i = 0; i < n && i <= INT32_MAX; i++) {
		GElf_Phdr header;

		if (!gelf_getphdr(elf, (int)i, &header))
			break;
		if (header.p_type == PT_NOTE && !core->pid)
			read_notes(core, elf, &header);
		if (header.p_type != PT_LOAD || header.p_offset >= core->size)
			continue;
		/* One that was cut off is useful as far as it goes. */
		if (header.p_filesz > core->size - header.p_offset)
			header.p_filesz = core->size - header.p_offset;
		if (!header.p_filesz || header.p_filesz > left || header.p_vaddr > UINT64_MAX - header.p_filesz)
			continue;
		left -= header.p_filesz;
		core->loads = memory_grow(core->loads, core->n_loads, sizeof *core->loads);
		core->loads[core->n_loads++] = (struct core_load){ header.p_vaddr, header.p_offset, header.p_filesz };
	}
	return 0;
}

static int open_elf(struct core *core, Elf *elf, char why[CORE_WHY_BYTES])
{
	int error;

	if (!elf) {
		snprintf(why, CORE_WHY_BYTES, "no ELF file");
		return -ENODATA;
	}
	error = read_headers(core, elf, why);
	elf_end(elf);
	if (error) {
		free(core->loads);
		core->loads = NULL;
	}
	return error;
}

int core_open(const char *path, struct core *ret_core, char why[CORE_WHY_BYTES])
{
	struct core core = { .fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY) };
	struct stat status;
	int error;

	if (core.fd < 0 || fstat(core.fd, &status) < 0 || !S_ISREG(status.st_mode)) {
		snprintf(why, CORE_WHY_BYTES, "%s", core.fd < 0 ? strerror(errno) : "no regular file");
		if (core.fd >= 0)
			close(core.fd);
		return -EIO;
	}
	core.size = (uint64_t)status.st_size;
	elf_version(EV_CURRENT);
	error = open_elf(&core, elf_begin(core.fd, ELF_C_READ, NULL), why);
	if (error)
		close(core.fd);
	else
		*ret_core = core;
	return error;
}

int core_open_memory(void *memory, size_t size, struct core *ret_core, char why[CORE_WHY_BYTES])
{
	struct core core = { .fd = -1, .memory = memory, .size = size };
	int error;

	elf_version(EV_CURRENT);
	error = open_elf(&core, elf_memory(memory, size), why);
	if (!error)
		*ret_core = core;
	return error;
}

void core_close(struct core *core)
{
	if (core->fd >= 0)
		close(core->fd);
	free(core->loads);
}

/* ---- Control memory in it ---- */

/* Its parent's is not mapped in a forked child; but a copy of the first page could lie anywhere. */
static bool is_control(const struct core *core, uint64_t address)
{
	struct wh_control_header header;

	return core_read(core, address, &header, sizeof header) == 0 && header.magic == WH_CONTROL_MAGIC &&
		header.used >= WH_CONTROL_HEADER_BYTES && header.used <= header.size &&
		(!core->pid || header.pid == core->pid || !header.pid);
}

int core_find_control(const struct core *core, uint64_t *ret_address)
{
	uint64_t step;

	/* Nearly always it is a mapping of its own; neighbours of the same kind could be one with it. */
	for (int everywhere = 0; everywhere < 2; everywhere++) {
		for (size_t i = 0; i < core->n_loads; i++) {
			const struct core_load *load = &core->loads[i];

			step = everywhere ? PAGE : load->size;
			for (uint64_t at = 0; at < load->size; at += step) {
				uint64_t magic;

				if (read_file(core, load->offset + at, &magic, sizeof magic) == 0 &&
					magic == WH_CONTROL_MAGIC && is_control(core, load->address + at)) {
					*ret_address = load->address + at;
					return 0;
				}
			}
		}
	}
	return -ENODATA;
}
