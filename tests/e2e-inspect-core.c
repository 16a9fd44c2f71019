/* SPDX-License-Identifier: MIT */
/* wharf-inspect, looking into core dumps: made by hand, of a live process's control memory. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/procfs.h>
#include <unistd.h>

#include "inspect-process.h"
#include "wharf.h"

static char dir[HARNESS_PATH_MAX], file[HARNESS_PATH_MAX + 32];

static void make_dir(void)
{
	harness_dir_make(dir);
	snprintf(file, sizeof file, "%s/core", dir);
}

static void remove_dir(void) { harness_dir_remove(dir); }

TestSuite(inspect_core, .init = make_dir, .fini = remove_dir, .timeout = 120);

enum { PAGE = 4096, MEMORY_MAX = 1 << 20 };
#define ADDRESS UINT64_C(0x7f1234560000)

static size_t read_control(pid_t pid, unsigned char memory[MEMORY_MAX])
{
	char path[300], link[64];
	ssize_t n = 0;
	DIR *fds;

	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	fds = opendir(path);
	cr_assert_not_null(fds);
	for (struct dirent *entry; !n && (entry = readdir(fds));) {
		ssize_t length;
		int fd;

		snprintf(path, sizeof path, "/proc/%d/fd/%s", pid, entry->d_name);
		length = readlink(path, link, sizeof link - 1);
		link[length > 0 ? length : 0] = '\0';
		if (strncmp(link, "/memfd:wharf-control", 20) != 0)
			continue;
		fd = open(path, O_RDONLY | O_CLOEXEC);
		cr_assert_geq(fd, 0);
		n = pread(fd, memory, MEMORY_MAX, 0);
		close(fd);
	}
	closedir(fds);
	cr_assert_gt(n, PAGE, "%d has no control memory", pid);
	return (size_t)n;
}

/* As the kernel writes one: a note that says who it was, and what was mapped, here in two pieces in the wrong order. */
static void write_core(pid_t pid, const unsigned char *memory, size_t size)
{
	struct {
		Elf64_Ehdr ehdr;
		Elf64_Phdr phdrs[3];
		Elf64_Nhdr note;
		char name[8];
		unsigned char who[sizeof(prpsinfo_t)]; /* aligned less than it is */
	} head = {
		.ehdr = {
			.e_ident = { ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT },
			.e_type = ET_CORE,
			.e_machine = EM_X86_64,
			.e_version = EV_CURRENT,
			.e_phoff = sizeof head.ehdr,
			.e_ehsize = sizeof head.ehdr,
			.e_phentsize = sizeof head.phdrs[0],
			.e_phnum = 3,
		},
		.note = { 5, sizeof head.who, NT_PRPSINFO },
		.name = "CORE",
	};
	const prpsinfo_t who = { .pr_pid = pid, .pr_fname = "the-service", .pr_psargs = "the-service --of mine" };
	FILE *f = fopen(file, "we");

	memcpy(head.who, &who, sizeof who);
	head.phdrs[0] = (Elf64_Phdr){
		.p_type = PT_NOTE,
		.p_offset = offsetof(__typeof__(head), note),
		.p_filesz = sizeof head - offsetof(__typeof__(head), note),
	};
	head.phdrs[1] = (Elf64_Phdr){
		.p_type = PT_LOAD, .p_offset = 2 * PAGE, .p_vaddr = ADDRESS + PAGE, .p_filesz = size - PAGE, .p_memsz = size,
	};
	head.phdrs[2] = (Elf64_Phdr){
		.p_type = PT_LOAD, .p_offset = PAGE, .p_vaddr = ADDRESS, .p_filesz = PAGE, .p_memsz = PAGE,
	};
	cr_assert(f && fwrite(&head, sizeof head, 1, f) == 1 && !fseek(f, PAGE, SEEK_SET));
	cr_assert(fwrite(memory, size, 1, f) == 1 && !fclose(f));
}

static unsigned char memory[MEMORY_MAX];

/* A receiver that keeps five messages, and its sender's core. */
static pid_t dump(struct scene *receiver, struct scene *sender)
{
	int fds[2];

	cr_assert_eq(wharf_pair(fds), 0);
	scene_start(receiver, play_keeper, fds[0], 0);
	scene_start(sender, play_lender, fds[1], 5);
	write_core(sender->child.pid, memory, read_control(sender->child.pid, memory));
	return sender->child.pid;
}

Test(inspect_core, a_core_shows_what_the_process_did)
{
	static const char *const views[] = { "show", "ports", "rings", "chunks" };
	struct scene receiver, sender;
	char option[sizeof file + 8];
	pid_t pid = dump(&receiver, &sender), peer = receiver.child.pid;
	struct said said;

	scene_end(&sender);
	scene_end(&receiver);
	snprintf(option, sizeof option, "--core=%s", file);
	inspect(&said, "show", "--json", option, NULL);
	cr_expect_eq(said.status, 0, "%s", said.errors);
	cr_expect_eq(said_count(&said, "/processes/0/pid"), (uint64_t)pid);
	cr_expect_str_eq(said_text(&said, "/processes/0/name"), "the-service");
	cr_expect(json_object_get_boolean(said_at(&said, "/processes/0/core")));
	cr_expect_eq(said_length(&said, "/processes/0/problems"), 0, "%s", said.out);
	cr_expect_eq(said_count(&said, "/processes/0/ports/0/tx_messages"), 5);
	cr_expect_eq(said_count(&said, "/processes/0/ports/0/peer/pid"), (uint64_t)peer);
	cr_expect_eq(said_length(&said, "/processes/0/pools/0/runs"), 5);
	cr_expect_null(said_at(&said, "/processes/0/loops/0/kernel"));
	said_free(&said);
	for (size_t i = 0; i < 4; i++) {
		inspect(&said, views[i], option, "--width=40", NULL);
		cr_expect_eq(said.status, 0, "%s: %s", views[i], said.errors);
		expect_out(&said, "from a core dump");
		cr_expect_leq(said_widest(&said), 40);
		said_free(&said);
	}
}

Test(inspect_core, a_core_that_was_cut_off_shows_what_there_is)
{
	struct scene receiver, sender;
	char option[sizeof file + 8];
	struct said said;

	dump(&receiver, &sender);
	scene_end(&sender);
	scene_end(&receiver);
	snprintf(option, sizeof option, "--core=%s", file);
	for (off_t size = 3 * PAGE; size >= 0; size -= 500) {
		cr_assert_eq(truncate(file, size), 0);
		inspect(&said, "show", option, NULL);
		if (said.status)
			expect_one_line(&said);
		else
			expect_out(&said, "garbage: cannot read");
		said_free(&said);
	}
}

Test(inspect_core, what_is_no_core_is_told_as_such)
{
	struct said said;

	inspect(&said, "show", "--core=/nowhere/core", NULL);
	cr_expect_eq(said.status, 1);
	expect_one_line(&said);
	said_free(&said);
	inspect(&said, "show", "--core=/proc/self/exe", NULL);
	expect_error(&said, "no core dump");
	said_free(&said);
	inspect(&said, "show", "--core=/dev/zero", NULL);
	expect_error(&said, "no regular file");
	said_free(&said);
}
