/* SPDX-License-Identifier: MIT */
/* Sealed memory: what the owner makes is what the receiver accepts, and nothing else is. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "compat.h"
#include "control.h"
#include "guard.h"
#include "harness.h"
#include "segment.h"
#include "view.h"
#include "wharf.h"

enum {
	SHIFT = 12,
	CHUNKS = 16,
	BYTES = CHUNKS << SHIFT,
	SEALED = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL,
	PAYLOAD_SEALS = SEALED | F_SEAL_FUTURE_WRITE,
};

/* ---- The owner's side ---- */

Test(segment, its_mapping_stays_writable_and_nobody_can_make_another_or_change_the_size)
{
	struct wh_segment s;
	struct stat st;
	cr_assert_eq(wh_segment_open("test", 3, BYTES, 0, &s), 0);
	memset(s.base, 7, BYTES);
	cr_assert_eq(fcntl(s.fd, F_GET_SEALS) & PAYLOAD_SEALS, PAYLOAD_SEALS);
	cr_assert_eq(fcntl(s.fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	cr_assert_eq(fstat(s.fd, &st), 0);
	cr_assert_eq(st.st_size, BYTES);
	cr_assert_geq(st.st_blocks * 512, BYTES, "reserved when made");
	cr_assert_eq(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, s.fd, 0), MAP_FAILED);
	cr_assert_eq(ftruncate(s.fd, 4096), -1);
	cr_assert_eq(ftruncate(s.fd, 2 * BYTES), -1);
	cr_assert_eq(pwrite(s.fd, "x", 1, 0), -1);
	void *reader = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, s.fd, 0);
	cr_assert_neq(reader, MAP_FAILED);
	cr_assert_eq(mprotect(reader, BYTES, PROT_READ | PROT_WRITE), -1);
	munmap(reader, BYTES);
	wh_segment_close(&s);
	wh_segment_close(&s);
}

Test(segment, its_name_tells_pool_and_slot)
{
	struct wh_segment s;
	cr_assert_eq(wh_segment_open("orders", 17, BYTES, 0, &s), 0);
	cr_assert_eq(harness_count_maps("/memfd:wharf-orders-17"), 1);
	wh_segment_close(&s);
	cr_assert_eq(harness_count_maps("/memfd:wharf-orders-17"), 0);
}

Test(segment, prefaulting_and_huge_pages_are_wishes_whose_outcome_is_told)
{
	struct wh_segment s;
	cr_assert_eq(wh_segment_open("test", 0, 2 << 20, WHARF_PREFAULT | WHARF_HUGE, &s), 0);
	cr_assert(s.prefaulted == 0 || s.prefaulted == 2 << 20);
	cr_assert_eq(s.bytes, 2 << 20);
	memset(s.base, 1, s.bytes);
	wh_segment_close(&s);
}

static int unmapped_in_child(void *base)
{
	return msync(base, 4096, MS_ASYNC) < 0 && errno == ENOMEM ? 0 : 1;
}

Test(segment, a_forked_child_does_not_have_it)
{
	struct wh_segment s;
	cr_assert_eq(wh_segment_open("test", 0, BYTES, 0, &s), 0);
	cr_assert_eq(unmapped_in_child(s.base), 1);
	cr_assert_eq(harness_run(unmapped_in_child, s.base, 20000), 0);
	wh_segment_close(&s);
}

Test(segment, without_descriptors_it_fails_with_EMFILE_and_leaves_nothing)
{
	struct harness_snapshot before;
	struct rlimit limit, none = { 0, 0 };
	struct wh_segment s;
	struct wh_release_map *map;
	int fd, error_segment, error_map;
	harness_snapshot_take(&before);
	getrlimit(RLIMIT_NOFILE, &limit);
	none.rlim_max = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &none);
	error_segment = wh_segment_open("test", 0, BYTES, 0, &s);
	error_map = wh_release_map_open("test", 0, 4, &map, &fd);
	setrlimit(RLIMIT_NOFILE, &limit);
	cr_assert_eq(error_segment, -EMFILE);
	cr_assert_eq(error_map, -EMFILE);
	const char *leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

#if WH_ASSERTS >= 2
Test(segment, each_step_that_fails_leaves_nothing)
{
	struct harness_snapshot before;
	struct wh_segment s;
	struct wh_release_map *map;
	int fd, steps = 0;
	harness_snapshot_take(&before);
	for (int step = 1;; step++) {
		wh_segment_fail_in = step;
		int error = wh_segment_open("test", 0, BYTES, 0, &s);
		bool reached = wh_segment_fail_in == 0;
		wh_segment_fail_in = 0;
		if (!reached) {
			cr_assert_eq(error, 0);
			wh_segment_close(&s);
			break;
		}
		cr_assert_eq(error, -ENOMEM, "step %d", step);
		steps++;
	}
	cr_assert_geq(steps, 6);
	for (int step = 1;; step++) {
		wh_segment_fail_in = step;
		int error = wh_release_map_open("test", 0, 4, &map, &fd);
		bool reached = wh_segment_fail_in == 0;
		wh_segment_fail_in = 0;
		if (!reached) {
			cr_assert_eq(error, 0);
			wh_release_map_close(map, 4);
			close(fd);
			break;
		}
		cr_assert_eq(error, -ENOMEM, "step %d", step);
	}
	const char *leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}
#endif

/* ---- The receiver's side ---- */

struct pair {
	struct wh_segment segment;
	struct wh_release_map *map;
	int map_fd;
};

static void pair_open(struct pair *p)
{
	cr_assert_eq(wh_segment_open("test", 1, BYTES, 0, &p->segment), 0);
	cr_assert_eq(wh_release_map_open("test", 1, 1, &p->map, &p->map_fd), 0);
}

static void pair_close(struct pair *p)
{
	wh_segment_close(&p->segment);
	wh_release_map_close(p->map, 1);
	close(p->map_fd);
}

Test(view, reads_what_the_owner_writes_and_returns_chunks)
{
	struct harness_snapshot before;
	struct pair p;
	struct wh_view *v;
	const char *why = NULL;
	harness_snapshot_take(&before);
	pair_open(&p);
	cr_assert_eq(wh_view_open(p.segment.fd, p.map_fd, 9, SHIFT, CHUNKS, false, &v, &why), 0);
	cr_assert_eq(v->slot, 9);
	strcpy(p.segment.base + (3 << SHIFT) + 5, "hello");
	cr_assert_str_eq(wh_view_at(v, 3, 5), "hello");
	cr_assert_not(wh_view_release(v, 0, 1 << 3));
	cr_assert_eq(p.map->words[0], 1 << 3);
	p.map->wanted = 1;
	cr_assert(wh_view_release(v, 0, 1 << 4), "owes a wake");
	cr_assert_not(wh_view_release(v, 0, 1 << 5), "one is enough");
	cr_assert_eq(p.map->words[0], 7 << 3);
	cr_assert_eq(mprotect((void *)(uintptr_t)v->base, v->bytes, PROT_READ | PROT_WRITE), -1);
	/* The memory stays while a taken message reads it. */
	wh_view_ref(v);
	pair_close(&p);
	wh_view_unref(v);
	cr_assert_str_eq(wh_view_at(v, 3, 5), "hello");
	wh_view_unref(v);
	wh_view_unref(NULL);
	const char *leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

static int memfd(size_t bytes, bool allocate, int seals)
{
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	cr_assert_geq(fd, 0);
	cr_assert_eq(ftruncate(fd, (off_t)bytes), 0);
	if (allocate)
		cr_assert_eq(fallocate(fd, 0, 0, (off_t)bytes), 0);
	cr_assert_eq(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

/* Refused, with a reason, leaving nothing and closing nothing. */
static void refused(const char *what, int segment_fd, int map_fd, uint8_t shift, uint32_t n_chunks)
{
	struct harness_snapshot before;
	struct wh_view *v = (void *)1;
	const char *why = NULL;
	harness_snapshot_take(&before);
	cr_assert_eq(wh_view_open(segment_fd, map_fd, 0, shift, n_chunks, false, &v, &why), -EPROTO, "%s", what);
	cr_assert_not_null(why, "%s", what);
	cr_assert_eq(v, (void *)1, "%s: untouched", what);
	const char *leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s: %s", what, leak);
}

Test(view, a_well_made_memfd_of_somebody_else_is_accepted)
{
	struct wh_view *v;
	const char *why = NULL;
	int segment = memfd(BYTES, true, PAYLOAD_SEALS), map = memfd(wh_release_map_bytes(1), true, SEALED);
	cr_assert_eq(wh_view_open(segment, map, 0, SHIFT, CHUNKS, false, &v, &why), 0, "%s", why);
	wh_view_unref(v);
	close(segment);
	/* Sealed against all writing: read only as well. */
	segment = memfd(BYTES, true, SEALED | F_SEAL_WRITE);
	int error = wh_view_open(segment, map, 0, SHIFT, CHUNKS, false, &v, &why);
	cr_assert(error == 0 || error == -EPROTO, "kernels before 6.7 cannot map it");
	if (!error)
		wh_view_unref(v);
	close(segment);
	close(map);
}

Test(view, refuses_segments_that_are_not_what_they_must_be)
{
	static const int missing[] = { F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_FUTURE_WRITE };
	int map = memfd(wh_release_map_bytes(1), true, SEALED), fd;
	for (size_t i = 0; i < sizeof(missing) / sizeof(*missing); i++) {
		fd = memfd(BYTES, true, PAYLOAD_SEALS & ~missing[i]);
		refused("a seal is missing", fd, map, SHIFT, CHUNKS);
		close(fd);
	}
	fd = memfd(BYTES - 4096, true, PAYLOAD_SEALS);
	refused("short", fd, map, SHIFT, CHUNKS);
	close(fd);
	fd = memfd(BYTES - 1, true, PAYLOAD_SEALS);
	refused("short by a byte", fd, map, SHIFT, CHUNKS);
	close(fd);
	fd = memfd(BYTES + 4096, true, PAYLOAD_SEALS);
	refused("long", fd, map, SHIFT, CHUNKS);
	close(fd);
	fd = memfd(BYTES, false, PAYLOAD_SEALS);
	refused("sparse", fd, map, SHIFT, CHUNKS);
	close(fd);
	fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	cr_assert_eq(ftruncate(fd, BYTES), 0);
	cr_assert_eq(fallocate(fd, 0, 0, BYTES - 4096), 0);
	cr_assert_eq(fcntl(fd, F_ADD_SEALS, PAYLOAD_SEALS), 0);
	refused("with a hole at its end", fd, map, SHIFT, CHUNKS);
	close(fd);
	close(map);
}

Test(view, refuses_descriptors_of_another_kind)
{
	char path[] = "/tmp/wharf-test-XXXXXX";
	int map = memfd(wh_release_map_bytes(1), true, SEALED), segment = memfd(BYTES, true, PAYLOAD_SEALS);
	int pipe_fds[2], file = mkstemp(path), directory = open("/", O_RDONLY | O_DIRECTORY);
	cr_assert_eq(pipe(pipe_fds), 0);
	cr_assert_eq(ftruncate(file, BYTES), 0);
	unlink(path);
	refused("a pipe", pipe_fds[0], map, SHIFT, CHUNKS);
	refused("a file", file, map, SHIFT, CHUNKS);
	refused("a directory", directory, map, SHIFT, CHUNKS);
	refused("none", -1, map, SHIFT, CHUNKS);
	refused("a map that is a pipe", segment, pipe_fds[1], SHIFT, CHUNKS);
	refused("a map that is a file", segment, file, SHIFT, CHUNKS);
	refused("a map that is missing", segment, -1, SHIFT, CHUNKS);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	close(file);
	close(directory);
	close(map);
	close(segment);
}

Test(view, refuses_release_maps_that_are_not_what_they_must_be)
{
	static const int missing[] = { F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL };
	char path[64];
	int segment = memfd(BYTES, true, PAYLOAD_SEALS), fd;
	size_t bytes = wh_release_map_bytes(1);
	for (size_t i = 0; i < sizeof(missing) / sizeof(*missing); i++) {
		fd = memfd(bytes, true, SEALED & ~missing[i]);
		refused("a seal is missing", segment, fd, SHIFT, CHUNKS);
		close(fd);
	}
	fd = memfd(bytes, true, SEALED | F_SEAL_FUTURE_WRITE);
	refused("not writable", segment, fd, SHIFT, CHUNKS);
	close(fd);
	fd = memfd(bytes * 2, true, SEALED);
	refused("long", segment, fd, SHIFT, CHUNKS);
	close(fd);
	fd = memfd(bytes, false, SEALED);
	refused("sparse", segment, fd, SHIFT, CHUNKS);
	close(fd);
	fd = memfd(bytes, true, SEALED);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	int read_only = open(path, O_RDONLY | O_CLOEXEC);
	cr_assert_geq(read_only, 0);
	refused("opened read-only", segment, read_only, SHIFT, CHUNKS);
	close(read_only);
	close(fd);
	close(segment);
}

Test(view, refuses_impossible_geometry_without_overflow)
{
	int map = memfd(wh_release_map_bytes(1), true, SEALED), segment = memfd(BYTES, true, PAYLOAD_SEALS);
	refused("no chunks", segment, map, SHIFT, 0);
	refused("tiny chunks", segment, map, 7, CHUNKS << 5);
	refused("huge chunks", segment, map, 25, 1);
	refused("shift beyond the word", segment, map, 64, CHUNKS);
	refused("shift of 255", segment, map, 255, CHUNKS);
	refused("all chunks", segment, map, SHIFT, UINT32_MAX);
	refused("all chunks of the largest", segment, map, 24, UINT32_MAX);
	/* 2^20 chunks of 4 KiB are 2^32 bytes: 0 in 32-bit arithmetic. */
	refused("2^32 bytes", segment, map, SHIFT, 1 << 20);
	refused("2^32 bytes and some", segment, map, SHIFT, (1 << 20) + CHUNKS);
	refused("one chunk less", segment, map, SHIFT, CHUNKS - 1);
	close(map);
	close(segment);
}

/* ---- Control memory ---- */

Test(control, blocks_are_zeroed_aligned_distinct_and_used_again)
{
	struct harness_random random = { harness_seed() };
	struct { unsigned char *at; size_t bytes; unsigned char mark; } blocks[64] = { { 0 } };
	cr_assert_eq(wh_guard_init(), 0);
	for (int round = 0; round < 20000; round++) {
		size_t i = harness_random_below(&random, 64);
		if (blocks[i].at) {
			for (size_t k = 0; k < blocks[i].bytes; k++)
				cr_assert_eq(blocks[i].at[k], blocks[i].mark);
			wh_control_free(blocks[i].at, blocks[i].bytes);
			blocks[i].at = NULL;
			continue;
		}
		void *block;
		blocks[i].bytes = 1 + harness_random_below(&random, harness_random_below(&random, 4) ? 2000 : 40000);
		cr_assert_eq(wh_control_alloc(blocks[i].bytes, &block), 0);
		blocks[i].at = block;
		cr_assert_eq((uintptr_t)block % WH_CONTROL_UNIT, 0);
		for (size_t k = 0; k < blocks[i].bytes; k++)
			cr_assert_eq(blocks[i].at[k], 0);
		blocks[i].mark = (unsigned char)(1 + i);
		memset(block, blocks[i].mark, blocks[i].bytes);
	}
	size_t maps = harness_count_maps("/memfd:wharf-control");
	cr_assert(maps == 1 || maps == 2, "one per process: what core dumps have of it, and what they have not");
}

Test(control, exhaustion_is_ENOMEM_and_heals)
{
	enum { MANY = 256, BYTES_EACH = 8 << 20 };
	void *blocks[MANY];
	int n = 0, error = 0;
	cr_assert_eq(wh_guard_init(), 0);
	/* Reserved pages are real memory: 256 MiB at most. */
	while (n < MANY && !(error = wh_control_alloc(BYTES_EACH, &blocks[n])))
		n++;
	cr_assert_eq(error, -ENOMEM);
	cr_assert_gt(n, 0);
	wh_control_free(blocks[--n], BYTES_EACH);
	cr_assert_eq(wh_control_alloc(BYTES_EACH, &blocks[n]), 0);
}
