/* SPDX-License-Identifier: MIT */
/* What wharf-inspect reads of a process that means it ill: no more, and no longer, than of one that could be. */
#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "core.h"
#include "harness.h"
#include "snapshot.h"
#include "trace.h"

TestSuite(snapshot, .timeout = 60);

/* Far larger than any control memory, and nothing in it but what a test has put at its beginning. */
enum { MEMORY_BYTES = 64 << 20, FIRST = 1024 };
#define SAID_BYTES (UINT64_C(1) << 38)

static struct {
	unsigned char *memory;
	uint64_t n_reads, n_bytes;
} target;

static int read_target(const struct source *source, uint64_t offset, void *to, size_t size)
{
	(void)source;
	target.n_reads++;
	target.n_bytes += size;
	memset(to, 0, size);
	if (offset < MEMORY_BYTES)
		memcpy(to, target.memory + offset, size < MEMORY_BYTES - offset ? size : MEMORY_BYTES - offset);
	return 0;
}

static const struct source source = { .read = read_target, .size = SAID_BYTES, .fd = -1 };

static void *at(uint32_t position) { return target.memory + (size_t)position * WH_CONTROL_UNIT; }

static struct wh_control_header *make_target(void)
{
	struct wh_control_header *header;

	target.n_reads = target.n_bytes = 0;
	target.memory = calloc(1, MEMORY_BYTES);
	cr_assert(target.memory);
	header = (void *)target.memory;
	header->magic = WH_CONTROL_MAGIC;
	header->version = WH_CONTROL_VERSION;
	header->size = SAID_BYTES;
	header->used = SAID_BYTES;
	return header;
}

Test(snapshot, no_more_is_copied_than_a_process_can_have)
{
	enum { POOLS = 20000, SLOTS = 100, SLOT = 200 };
	struct wh_control_header *header = make_target();
	struct wh_control_slot *slot = at(SLOT);
	uint64_t n_slots = 0;
	struct snapshot snapshot;
	char why[SNAPSHOT_WHY_BYTES];

	slot->state = WH_SLOT_LIVE;
	slot->n_chunks = 4096;
	slot->chunk_shift = 24;
	for (uint32_t i = 0; i < WH_CONTROL_SLOTS; i++)
		((uint32_t *)at(SLOTS))[i] = SLOT;
	header->first_pool = FIRST;
	header->n_pools = POOLS;
	for (uint32_t i = 0; i < POOLS; i++) {
		struct wh_control_pool *pool = at(FIRST + 2 * i);

		pool->id = i + 1;
		pool->next = i + 1 < POOLS ? FIRST + 2 * (i + 1) : 0;
		pool->previous = i ? FIRST + 2 * (i - 1) : 0;
		pool->slots = SLOTS;
	}
	cr_assert_eq(snapshot_take(&source, SNAPSHOT_POOLS, &snapshot, why), 0);
	for (size_t i = 0; i < snapshot.n_pools; i++)
		n_slots += snapshot.pools[i].n_slots;
	cr_expect_leq(n_slots, WH_CONTROL_BYTES_MAX / sizeof(struct wh_control_slot));
	cr_expect_leq(target.n_bytes, 3 * (uint64_t)WH_CONTROL_BYTES_MAX);
	cr_expect(snapshot.n_problems > 0);
	snapshot_fini(&snapshot);
	free(target.memory);
}

Test(snapshot, many_torn_ports_are_not_waited_for_one_by_one)
{
	enum { PORTS = 10000, STEP = (sizeof(struct wh_stats_port) + 63) / 64 };
	struct wh_control_header *header = make_target();
	struct wh_stats_loop *loop = at(FIRST);
	uint32_t first = FIRST + 64;
	struct snapshot snapshot;
	char why[SNAPSHOT_WHY_BYTES];

	loop->id = 1;
	loop->first_port = first;
	loop->n_ports = PORTS;
	header->first_loop = FIRST;
	header->n_loops = 1;
	for (uint32_t i = 0; i < PORTS; i++) {
		struct wh_stats_port *port = at(first + STEP * i);

		port->id = i + 2;
		port->sequence = 1;
		port->next = i + 1 < PORTS ? first + STEP * (i + 1) : 0;
		port->previous = i ? first + STEP * (i - 1) : 0;
	}
	cr_assert_eq(snapshot_take(&source, SNAPSHOT_STATS, &snapshot, why), 0);
	cr_expect_eq(snapshot.n_ports, PORTS);
	for (size_t i = 0; i < snapshot.n_ports; i++)
		cr_expect(snapshot.ports[i].torn);
	/* The list once, each port once, and a few again. */
	cr_expect_leq(target.n_reads, 5 * PORTS);
	snapshot_fini(&snapshot);
	free(target.memory);
}

Test(snapshot, times_of_a_clock_of_its_own_are_not_compared_with_ours)
{
	enum { STEP = sizeof(struct wh_stats_loop) / WH_CONTROL_UNIT, PORT = 100 };
	struct wh_control_header *header = make_target();
	struct subject subject = { .dumped = true };
	char why[SNAPSHOT_WHY_BYTES];

	header->first_loop = FIRST;
	header->n_loops = 2;
	for (uint32_t i = 0; i < 2; i++) {
		struct wh_stats_loop *loop = at(FIRST + STEP * i);
		struct wh_stats_port *port = at(FIRST + PORT * (i + 1));

		loop->id = i + 1;
		loop->next = i ? 0 : FIRST + STEP;
		loop->previous = i ? FIRST : 0;
		loop->flags = i ? 0 : WH_STATS_OWN_CLOCK;
		loop->started_ns = loop->next_deadline_ns = 1;
		loop->phase_since_ns = 1;
		loop->n_ports = 1;
		loop->first_port = FIRST + PORT * (i + 1);
		port->id = i + 3;
		port->opened_ns = port->last_tx_ns = port->last_rx_ns = port->unread_since_ns = port->blocked_since_ns = 1;
		port->counts.tx_queued_bytes = 1;
	}
	cr_assert_eq(snapshot_take(&source, SNAPSHOT_STATS, &subject.now, why), 0);
	cr_assert_eq(subject.now.n_ports, 2);
	for (size_t i = 0; i < 2; i++) {
		const struct wh_stats_loop *loop = &subject.now.loops[i].s;
		const struct wh_stats_port *port = &subject.now.ports[i].s;

		cr_expect_eq(subject_since(&subject, loop->started_ns) > 0, i > 0);
		cr_expect_eq(subject_since(&subject, loop->phase_since_ns) > 0, i > 0);
		cr_expect_eq(loop->next_deadline_ns > 0, i > 0);
		cr_expect_eq(subject_since(&subject, port->opened_ns) > 0, i > 0);
		cr_expect_eq(subject_since(&subject, port->last_tx_ns) > 0, i > 0);
		cr_expect_eq(subject_since(&subject, port->last_rx_ns) > 0, i > 0);
		cr_expect_eq(subject_since(&subject, port->blocked_since_ns) > 0, i > 0);
		cr_expect_eq(subject_unread_for(&subject, &subject.now.ports[i]) > 0, i > 0);
	}
	snapshot_fini(&subject.now);
	free(target.memory);
}

/* ---- Events ----------------------------------------------------------------------------------------------------- */

static int make_wish(int fd)
{
	struct wh_trace_wish wish = { .magic = WH_TRACE_MAGIC, .version = WH_CONTROL_VERSION };

	cr_assert_geq(fd, 0);
	cr_assert_eq(pwrite(fd, &wish, sizeof wish, 0), sizeof wish);
	return fd;
}

Test(snapshot, no_more_events_are_read_than_there_is_room_for)
{
	enum { LOOPS = 4, ENTRIES = 1 << 20, RING = 4096, STEP = sizeof(struct wh_stats_loop) / WH_CONTROL_UNIT };
	struct wh_control_header *header = make_target();
	struct wh_stats_trace *ring = at(RING);
	struct subject subject = { .dumped = true, .source = source };
	struct trace trace;
	char why[PROCESS_WHY_BYTES];

	subject.process.pid = getpid();
	subject.process.control = -1;
	subject.process.trace = make_wish(memfd_create("wharf-trace", MFD_CLOEXEC));
	ring->n_entries = ENTRIES;
	header->first_loop = FIRST;
	header->n_loops = LOOPS;
	for (uint32_t i = 0; i < LOOPS; i++) {
		struct wh_stats_loop *loop = at(FIRST + STEP * i);

		loop->id = i + 1;
		loop->next = i + 1 < LOOPS ? FIRST + STEP * (i + 1) : 0;
		loop->previous = i ? FIRST + STEP * (i - 1) : 0;
		loop->trace = RING;
	}
	cr_assert_eq(trace_begin(&subject, 0, false, &trace, why), 0, "%s", why);
	/* One that was being written when it was copied does not count. */
	ring->head = ENTRIES;
	cr_assert_eq(trace_poll(&trace, why), 0);
	cr_expect_leq(trace.n_events, ENTRIES);
	cr_expect_eq(trace.n_events + trace.n_lost, (uint64_t)LOOPS * ENTRIES);
	trace_end(&trace);
	snapshot_fini(&subject.now);
	snapshot_fini(&subject.before);
	close(subject.process.trace);
	free(target.memory);
}

Test(snapshot, only_a_memfd_is_written_to)
{
	struct subject subject = { .dumped = true, .source = source };
	char directory[HARNESS_PATH_MAX], path[HARNESS_PATH_MAX + 8], why[PROCESS_WHY_BYTES];
	struct statfs where;
	struct trace trace;

	make_target();
	harness_dir_make(directory);
	snprintf(path, sizeof path, "%s/wish", directory);
	subject.process.pid = getpid();
	subject.process.trace = make_wish(open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
	cr_assert_eq(fstatfs(subject.process.trace, &where), 0);
	unlink(path);
	harness_dir_remove(directory);
	if (where.f_type == TMPFS_MAGIC)
		cr_skip_test("temporary files are like memfds here");
	cr_expect_eq(trace_begin(&subject, 0, false, &trace, why), -ENOENT);
	close(subject.process.trace);
	free(target.memory);
}

/* ---- Core dumps ------------------------------------------------------------------------------------------------- */

/* A core dump of nothing but headers: each says where in the file its part is, and how long. */
static unsigned char *make_core(const uint64_t (*parts)[2], uint16_t n, size_t size)
{
	unsigned char *file = calloc(1, size);
	Elf64_Ehdr head = { .e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT }, .e_type = ET_CORE,
		.e_machine = EM_X86_64, .e_version = EV_CURRENT, .e_phoff = sizeof head, .e_ehsize = sizeof head,
		.e_phentsize = sizeof(Elf64_Phdr), .e_phnum = n };

	cr_assert(file);
	memcpy(file, &head, sizeof head);
	for (uint16_t i = 0; i < n; i++) {
		Elf64_Phdr part = { .p_type = PT_LOAD, .p_vaddr = 0x10000 * (uint64_t)(i + 1), .p_offset = parts[i][0],
			.p_filesz = parts[i][1] };

		memcpy(file + sizeof head + i * sizeof part, &part, sizeof part);
	}
	return file;
}

Test(snapshot, a_core_dump_is_no_larger_than_its_file)
{
	enum { SIZE = 8192 };
	static const uint64_t parts[][2] = {
		{ 4096, UINT64_C(1) << 61 }, { SIZE, 4096 }, { UINT64_MAX - 10, 5 }, { 0, 4096 }, { 0, SIZE }
	};
	unsigned char *file = make_core(parts, 5, SIZE);
	uint64_t all = 0, address;
	struct core core;
	char why[CORE_WHY_BYTES];

	cr_assert_eq(core_open_memory(file, SIZE, &core, why), 0);
	for (size_t i = 0; i < core.n_loads; i++) {
		cr_assert_lt(core.loads[i].offset, SIZE);
		cr_assert_leq(core.loads[i].size, SIZE - core.loads[i].offset);
		all += core.loads[i].size;
	}
	cr_assert_eq(core.n_loads, 2);
	cr_assert_leq(all, SIZE);
	cr_expect_neq(core_find_control(&core, &address), 0);
	core_close(&core);
	free(file);
}
