/* SPDX-License-Identifier: MIT */
/* Pools as a whole: options, growing and shrinking, their life, what an inspector sees. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "peer.h"

TestSuite(pool, .init = peer_test_begin, .fini = peer_test_end, .timeout = 60);

/* ---- Options ---- */

Test(pool, options_are_checked_as_the_header_says)
{
	struct { struct wharf_pool_options o; uint64_t tail; } longer = { .o = { .size = sizeof(longer) } };
	struct wharf_pool_options o = { .size = sizeof(o) };
	wharf_pool *pool = NULL;
	cr_assert_eq(wharf_pool_new(NULL, &pool), 0);
	cr_assert_eq(info_of(pool).bytes_max, 64 * MIB);
	cr_assert_null(wharf_pool_unref(pool));
	cr_assert_eq(wharf_pool_new(&o, NULL), -EINVAL);
	o.size = 0;
	pool = (void *)1;
	cr_assert_eq(wharf_pool_new(&o, &pool), -EINVAL);
	cr_assert_eq(pool, (void *)1);
	o = (struct wharf_pool_options){ .size = sizeof(o), .flags = 1u << 7 };
	cr_assert_eq(wharf_pool_new(&o, &pool), -EINVAL);
	longer.tail = 1;
	cr_assert_eq(wharf_pool_new(&longer.o, &pool), -E2BIG);
	longer.tail = 0;
	cr_assert_eq(wharf_pool_new(&longer.o, &pool), 0);
	wharf_pool_unref(pool);
	/* A program built against an older header: the fields behind are defaults. */
	o = (struct wharf_pool_options){ .size = offsetof(struct wharf_pool_options, bytes_max), .bytes_max = 4096 };
	cr_assert_eq(wharf_pool_new(&o, &pool), 0);
	cr_assert_eq(info_of(pool).bytes_max, 64 * MIB);
	wharf_pool_unref(pool);
	cr_assert_null(wharf_pool_unref(NULL));
	cr_assert_eq(wharf_pool_info(NULL, &(struct wharf_pool_info){ .size = 8 }), -EINVAL);
}

Test(pool, info_of_a_shorter_structure_fills_only_that)
{
	wharf_pool *pool = new_pool(1 * MIB, false);
	struct { struct wharf_pool_info info; } short_info;
	memset(&short_info, 0xee, sizeof(short_info));
	short_info.info.size = offsetof(struct wharf_pool_info, bytes_free);
	cr_assert_eq(wharf_pool_info(pool, &short_info.info), 0);
	cr_assert_eq(short_info.info.bytes_max, 1 * MIB);
	cr_assert_eq(short_info.info.bytes_free, UINT64_C(0xeeeeeeeeeeeeeeee));
	short_info.info.size = 0;
	cr_assert_eq(wharf_pool_info(pool, &short_info.info), -EINVAL);
	wharf_pool_unref(pool);
}

/* ---- Growing ---- */

Test(pool, one_size_does_not_hoard_what_another_needs)
{
	wharf_pool *pool = new_pool(1 * MIB, false);
	struct wharf_buf bufs[1024], one;
	for (int k = 0; k < 3; k++) {
		for (int i = 0; i < 1024; i++)
			bufs[i] = claim(pool, 1024);
		cr_assert_eq(try_claim(pool, 1 * MIB), -EAGAIN);
		for (int i = 0; i < 1024; i++)
			wharf_buf_abandon(&bufs[i]);
		one = claim(pool, 1 * MIB);
		memset(one.data, 1, one.size);
		cr_assert_eq(try_claim(pool, 1), -EAGAIN);
		wharf_buf_abandon(&one);
	}
	wharf_pool_unref(pool);
}

Test(pool, grows_geometrically_from_little)
{
	wharf_pool *pool = new_pool(0, false);
	struct wharf_buf *bufs = calloc(32768, sizeof(*bufs));
	bufs[0] = claim(pool, 200);
	cr_assert_leq(info_of(pool).bytes, 64 * KIB);
	for (int i = 1; i < 32768; i++)
		bufs[i] = claim(pool, 200);
	struct wharf_pool_info info = info_of(pool);
	cr_assert_eq(info.bytes, 8 * MIB + 0 * info.segments);
	cr_assert_leq(info.segments, 12);
	for (int i = 0; i < 32768; i++)
		wharf_buf_abandon(&bufs[i]);
	free(bufs);
	wharf_pool_unref(pool);
}

Test(pool, a_segment_of_any_length_gives_out_its_chunks_and_no_more)
{
	static struct wharf_buf bufs[400];

	/* Of 256 bytes, so that the last word of a segment is not a whole one. */
	for (size_t pages = 1; pages <= 20; pages += 3) {
		size_t n_chunks = pages * 4096 / 256, n = 0;
		wharf_pool *pool = new_pool(pages * 4096, false);
		while (n <= n_chunks && !wharf_buf_claim(pool, 256, &bufs[n])) {
			memset(bufs[n].data, (int)n, 256);
			n++;
		}
		cr_assert_eq(n, n_chunks, "%zu of %zu chunks", n, n_chunks);
		for (size_t i = 0; i < n; i++) {
			cr_assert_eq(*(unsigned char *)bufs[i].data, i % 256, "buffer %zu is another one's, too", i);
			wharf_buf_abandon(&bufs[i]);
		}
		cr_assert_eq(info_of(pool).bytes_free, pages * 4096);
		wharf_pool_unref(pool);
	}
}

Test(pool, reserving_means_claiming_without_growing)
{
	wharf_pool *pool = new_pool(8 * MIB, false);
	struct wharf_buf bufs[1000];
	cr_assert_eq(wharf_pool_reserve(pool, 3000, 3000 * 1000, WHARF_PREFAULT), 0);
	struct wharf_pool_info reserved = info_of(pool);
	for (int i = 0; i < 1000; i++)
		bufs[i] = claim(pool, 3000);
	cr_assert_eq(info_of(pool).bytes, reserved.bytes);
	cr_assert_eq(info_of(pool).segments, reserved.segments);
	for (int i = 0; i < 1000; i++)
		wharf_buf_abandon(&bufs[i]);
	cr_assert_eq(wharf_pool_reserve(pool, 3000, 3000 * 1000, 0), 0, "is there already");
	cr_assert_eq(info_of(pool).bytes, reserved.bytes);
	cr_assert_eq(wharf_pool_reserve(pool, 1 * MIB, 9 * MIB, 0), -EMSGSIZE);
	cr_assert_eq(wharf_pool_reserve(pool, 9 * MIB, 9 * MIB, 0), -EMSGSIZE);
	cr_assert_eq(wharf_pool_reserve(pool, 0, 1, 0), -EINVAL);
	cr_assert_eq(wharf_pool_reserve(pool, 1, 1, WHARF_HUGE), -EINVAL);
	wharf_pool_unref(pool);
}

Test(pool, without_descriptors_a_claim_that_must_grow_is_EMFILE)
{
	struct rlimit limit, none;
	wharf_pool *pool = new_pool(0, false);
	getrlimit(RLIMIT_NOFILE, &limit);
	none = (struct rlimit){ 0, limit.rlim_max };
	setrlimit(RLIMIT_NOFILE, &none);
	int error = try_claim(pool, 100);
	setrlimit(RLIMIT_NOFILE, &limit);
	cr_assert_eq(error, -EMFILE);
	cr_assert_eq(try_claim(pool, 100), 0);
	wharf_pool_unref(pool);
}

#if WH_ASSERTS >= 2
Test(pool, a_segment_that_cannot_be_made_is_ENOMEM_and_costs_nothing)
{
	wharf_pool *pool = new_pool(0, false);
	for (int step = 1; step < 6; step++) {
		wh_segment_fail_in = step;
		cr_assert_eq(try_claim(pool, 60000), -ENOMEM, "step %d", step);
		wh_segment_fail_in = 0;
		cr_assert_eq(info_of(pool).bytes, 0);
	}
	cr_assert_eq(try_claim(pool, 60000), 0);
	wharf_pool_unref(pool);
}
#endif

/* ---- Life ---- */

Test(pool, lives_until_its_last_buffer_is_abandoned)
{
	wharf_pool *pool = new_pool(0, false);
	struct wharf_buf a = claim(pool, 100), b = claim(pool, 1 * MIB), c;
	cr_assert_eq(wharf_buf_ref(&a, &c), 0);
	wharf_pool_ref(pool);
	wharf_pool_unref(pool);
	wharf_pool_unref(pool);
	memset(a.data, 1, a.size);
	memset(b.data, 1, b.size);
	cr_assert_eq(wharf_buf_trim(&b, 1000), 0);
	wharf_buf_abandon(&a);
	memset(b.data, 1, b.size);
	wharf_buf_abandon(&b);
	cr_assert_geq(harness_count_maps("/memfd:wharf-test"), 1);
	wharf_buf_abandon(&c);
	cr_assert_eq(harness_count_maps("/memfd:wharf-test"), 0);
}

static int child_has_nothing(void *arg)
{
	struct wharf_buf *buf = arg, other;
	wharf_pool *pool;
	HARNESS_REQUIRE(wharf_buf_claim((wharf_pool *)(uintptr_t)buf->opaque[0], 1, &other) == -ECHILD);
	HARNESS_REQUIRE(wharf_buf_trim(buf, 1) == -ECHILD);
	HARNESS_REQUIRE(wharf_buf_ref(buf, &other) == -ECHILD);
	HARNESS_REQUIRE(wharf_pool_new(NULL, &pool) == -ECHILD);
	HARNESS_REQUIRE(wharf_pool_info((wharf_pool *)(uintptr_t)buf->opaque[0],
		&(struct wharf_pool_info){ .size = 64 }) == -ECHILD);
	wharf_buf_abandon(buf);
	wharf_pool_unref((wharf_pool *)(uintptr_t)buf->opaque[0]);
	HARNESS_REQUIRE(harness_count_maps("/memfd:wharf") == 0);
	for (int fd = 3; fd < 256; fd++) {
		char path[64], target[256];
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		ssize_t n = readlink(path, target, sizeof(target) - 1);
		if (n > 0) {
			target[n] = 0;
			HARNESS_REQUIRE(!strstr(target, "memfd:wharf"));
		}
	}
	return 0;
}

static int child_starts_over(void *arg)
{
	wharf_pool *pool;
	struct wharf_buf buf;
	(void)arg;
	HARNESS_REQUIRE(wh_guard_restart() == 0);
	wh_control_restart();
	wh_pool_restart();
	HARNESS_REQUIRE(wharf_pool_new(NULL, &pool) == 0);
	HARNESS_REQUIRE(wharf_buf_claim(pool, 1000, &buf) == 0);
	memset(buf.data, 1, 1000);
	wharf_buf_abandon(&buf);
	wharf_pool_unref(pool);
	return 0;
}

Test(pool, a_forked_child_has_neither_memory_nor_descriptors_until_it_starts_over)
{
	wharf_pool *pool = new_pool(0, false);
	struct peer p;
	peer_join(&p, pool, NULL);
	struct wharf_buf buf = claim(pool, 100);
	struct wh_run run = send_buf(&p, &buf);
	buf = claim(pool, 100);
	cr_assert_eq(harness_run(child_has_nothing, &buf, 20000), 0);
	cr_assert_eq(harness_run(child_starts_over, NULL, 20000), 0);
	release(&p, &run);
	wharf_buf_abandon(&buf);
	peer_leave(&p);
	wharf_pool_unref(pool);
}

/* ---- Retiring ---- */

Test(pool, memory_that_a_peer_has_mapped_is_retired_when_another_size_needs_it)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 1 * MIB, &p);
		for (int round = 0; round < 3; round++) {
			struct wh_run runs[64];
			for (int i = 0; i < 64; i++) {
				struct wharf_buf buf = claim(pool, 16384);
				runs[i] = send_buf(&p, &buf);
			}
			cr_assert_eq(try_claim(pool, 1 * MIB), -EAGAIN);
			cr_assert_not(wh_pool_room(pool, p.lease));
			cr_assert_eq(retire_all(&p), 0, "all of it is out");
			for (int i = 0; i < 63; i++)
				release(&p, &runs[i]);
			cr_assert_not(wh_pool_room(pool, p.lease), "one chunk is out");
			int kicks = p.kicks;
			release(&p, &runs[63]);
			cr_assert_not(wh_pool_room(pool, p.lease), "the peer has it mapped");
			cr_assert_gt(p.kicks, kicks, "the port is told to ask for retiring");
			cr_assert_geq(retire_all(&p), 1);
			cr_assert(wh_pool_room(pool, p.lease));
			struct wharf_buf one = claim(pool, 1 * MIB);
			struct wh_run run = send_buf(&p, &one);
			cr_assert_eq(try_claim(pool, 16384), -EAGAIN);
			release(&p, &run);
			/* The other way: its own segment is in the way now. */
			cr_assert_not(wh_pool_room(pool, p.lease));
			cr_assert_eq(retire_all(&p), 1);
			cr_assert(wh_pool_room(pool, p.lease));
			cr_assert_leq(info_of(pool).bytes, 1 * MIB);
		}
		cr_assert_not(wh_lease_poisoned(p.lease));
		peer_leave(&p);
		wharf_pool_unref(pool);
	}
}

Test(pool, memory_of_a_burst_goes_when_the_burst_is_over)
{
	wh_pool_idle_ns = 0; /* turns go by faster than time */
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 64 * MIB, &p);
		enum { N = 32 * 64 };
		static struct wh_run runs[N];
		for (int i = 0; i < N; i++) {
			struct wharf_buf buf = claim(pool, 16384);
			runs[i] = send_buf(&p, &buf);
		}
		cr_assert_geq(info_of(pool).bytes, 32 * MIB);
		for (int i = 0; i < N; i++)
			release(&p, &runs[i]);
		uint64_t least = UINT64_MAX;
		for (uint32_t turn = 1; turn < 400 * 1024 && least > 6 * MIB; turn++) {
			if (turn % 4 == 0) {
				struct wharf_buf buf = claim(pool, 16384);
				struct wh_run run = send_buf(&p, &buf);
				release(&p, &run);
			}
			wh_lease_turn(p.lease, turn);
			retire_all(&p);
			if (turn % 256 == 0)
				least = info_of(pool).bytes;
		}
		cr_assert_leq(least, 6 * MIB, "%lu KiB are left", (unsigned long)(least / KIB));
		peer_leave(&p);
		wharf_pool_unref(pool);
	}
}

/* ---- Seen from outside ---- */

static int control_fd(void)
{
	for (int fd = 3; fd < 1024; fd++) {
		char path[64], target[256];
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		ssize_t n = readlink(path, target, sizeof(target) - 1);
		if (n > 0) {
			target[n] = 0;
			if (strstr(target, "memfd:wharf-control"))
				return fd;
		}
	}
	return -1;
}

Test(pool, an_inspector_sees_who_holds_what_and_can_write_nothing)
{
	struct peer p;
	wharf_pool *pool = new_pool(0, true);
	peer_join(&p, pool, NULL);
	wh_lease_set_peer(p.lease, 4711);
	struct wharf_buf lent = claim(pool, 700), held = claim(pool, 256);
	wh_pool_now = 42;
	wh_lease_look_at_clock(p.lease);
	struct wh_run run = send_buf(&p, &lent);

	int fd = control_fd();
	cr_assert_geq(fd, 0);
	cr_assert_eq(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
	cr_assert_eq(pwrite(fd, "x", 1, 0), -1);
	const struct wh_control_header *h = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	cr_assert_neq((void *)h, MAP_FAILED);
	cr_assert_eq(h->magic, WH_CONTROL_MAGIC);
	cr_assert(!memcmp((const void *)&h->magic, "WHARFCTL", 8));
	cr_assert_eq(h->pid, (uint32_t)getpid());
	cr_assert_gt(h->start_time, 0);
	cr_assert_eq(h->sequence % 2, 0);
	cr_assert_eq(h->n_pools, 1);
	size_t size = h->size;
	const char *base = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	cr_assert_neq((const void *)base, MAP_FAILED);

	/* By the documented offsets only. */
#define AT(type, position, offset) (*(const type *)(const void *)(base + (size_t)(position) * 64 + (offset)))
	uint32_t pool_at = AT(uint32_t, 0, 40);
	cr_assert_str_eq(&AT(char, pool_at, 40), "test");
	cr_assert_eq(AT(uint32_t, pool_at, 4) & 1, 1);
	cr_assert_eq(AT(uint64_t, pool_at, 16), info_of(pool).bytes_max);
	cr_assert_eq(AT(uint64_t, pool_at, 24), info_of(pool).bytes);
	uint32_t lease_at = AT(uint32_t, pool_at, 72), slot_at = AT(uint32_t, AT(uint32_t, pool_at, 76), 4 * run.slot);
	cr_assert_eq(AT(uint32_t, lease_at, 8), 4711);
	cr_assert_eq(AT(uint64_t, lease_at, 0), wh_lease_id(p.lease));
	cr_assert_gt(AT(uint32_t, lease_at, 28), run.slot);
	uint32_t lent_at = AT(uint32_t, AT(uint32_t, lease_at, 24), 4 * run.slot);
	uint64_t word = run.first / 64, bits = bits_of(&run), mine = wh_place_bits(held.opaque[1]);
	cr_assert_eq(AT(uint64_t, lent_at, 8 * word), bits);
	cr_assert_eq(AT(uint32_t, slot_at, 0), WH_SLOT_LIVE);
	cr_assert_eq(AT(uint8_t, slot_at, 8), 8);
	cr_assert_eq(AT(uint64_t, slot_at, 64 + 8 * word) & (bits | mine), 0, "neither is free");
	cr_assert_eq(AT(uint64_t, slot_at, 1088 + 8 * word) & 1, 1, "lease 0 holds some");
	uint32_t info_at = AT(uint32_t, slot_at, 24);
	cr_assert_eq(AT(uint64_t, info_at, 8 * run.first),
		UINT64_C(1) << 38 | (uint64_t)(run.n_chunks - 1) << 32 | 42, "stream, length and time");
	munmap((void *)(uintptr_t)base, size);
	munmap((void *)(uintptr_t)h, 4096);

	wharf_buf_abandon(&held);
	peer_leave(&p);
	wharf_pool_unref(pool);
}

/* ---- Everything at once, against an oracle ---- */

enum { MODEL_BUFS = 300, MODEL_STEPS = 60000 };

struct model_buf {
	enum { EMPTY, CLAIMED, LENT } state;
	struct wharf_buf buf;
	struct wh_run run;
	size_t size;
	unsigned char mark;
};

/* Is what is in memory what its holder wrote? Two claims of one chunk would show. */
static void check_mark(struct peer *p, const struct model_buf *m)
{
	const unsigned char *at = m->state == LENT ? (const void *)wh_view_at(p->views[m->run.slot], m->run.first, 0)
		: m->buf.data;
	cr_assert_eq(at[0], m->mark);
	cr_assert_eq(at[m->size / 2], m->mark);
	cr_assert_eq(at[m->size - 1], m->mark);
}

Test(pool, random_use_keeps_every_buffer_apart_and_loses_nothing)
{
	FOR_SETTINGS(s) {
		struct harness_random random = { harness_seed() };
		static struct model_buf bufs[MODEL_BUFS];
		struct peer p;
		wharf_pool *pool = new_setting(s, 3 * MIB, &p);
		for (int step = 0; step < MODEL_STEPS; step++) {
			struct model_buf *m = &bufs[harness_random_below(&random, MODEL_BUFS)];
			uint64_t dice = harness_random_below(&random, 100);
			if (m->state == EMPTY) {
				static const size_t most[] = { 256, 1024, 4096, 16384, 65536, 300000, 1 << 20 };
				m->size = 1 + harness_random_below(&random, most[harness_random_below(&random, 7)]);
				int error = wharf_buf_claim(pool, m->size, &m->buf);
				cr_assert(error == 0 || error == -EAGAIN, "%d", error);
				if (error)
					continue;
				m->state = CLAIMED;
				m->mark = (unsigned char)step;
				memset(m->buf.data, m->mark, m->size);
			} else if (m->state == CLAIMED) {
				check_mark(&p, m);
				if (dice < 20) {
					m->size = 1 + harness_random_below(&random, m->size);
					cr_assert_eq(wharf_buf_trim(&m->buf, m->size), 0);
				} else if (dice < 40) {
					wharf_buf_abandon(&m->buf);
					m->state = EMPTY;
				} else {
					m->run = send_buf(&p, &m->buf);
					m->state = LENT;
				}
			} else {
				check_mark(&p, m);
				release(&p, &m->run);
				m->state = EMPTY;
			}
			if (dice == 99) {
				wh_pool_room(pool, p.lease);
				retire_all(&p);
				wh_lease_turn(p.lease, (uint32_t)step);
				cr_assert_not(wh_lease_poisoned(p.lease));
				cr_assert_leq(info_of(pool).bytes, 3 * MIB);
			}
		}
		for (int i = 0; i < MODEL_BUFS; i++) {
			if (bufs[i].state == CLAIMED)
				wharf_buf_abandon(&bufs[i].buf);
			else if (bufs[i].state == LENT)
				release(&p, &bufs[i].run);
			bufs[i].state = EMPTY;
		}
		cr_assert_geq(wh_lease_harvest(p.lease), 0);
		cr_assert_eq(wh_lease_lent_bytes(p.lease), 0);
		struct wharf_pool_info info = info_of(pool);
		cr_assert_eq(info.bytes_lent, 0);
		peer_leave(&p);
		wharf_pool_unref(pool);
		cr_assert_eq(harness_count_maps("/memfd:wharf-test"), 0);
	}
}
