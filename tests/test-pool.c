/* SPDX-License-Identifier: MIT */
/* Pools, leases and buffers, with the peer played in this process. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "harness.h"
#include "pool_internal.h"
#include "view.h"
#include "wharf.h"

#define KIB ((size_t)1024)
#define MIB (1024 * KIB)
#define SECOND INT64_C(1000000000)

/* ---- A port and its peer, without a socket ---- */

struct peer {
	wharf_pool *pool;
	struct wh_lease *lease;
	struct wh_view *views[WH_SLOTS_MAX];
	_Atomic int kicks;
	int announces;
	const void *loop;
};

static const char a_loop;

static void on_kick(void *owner)
{
	((struct peer *)owner)->kicks++;
}

static void peer_join(struct peer *p, wharf_pool *pool, const void *loop)
{
	*p = (struct peer){ .pool = pool, .loop = loop };
	cr_assert_eq(wh_pool_attach(pool, loop, on_kick, p, &p->lease), 0);
}

static void peer_unmap(struct peer *p)
{
	for (unsigned i = 0; i < WH_SLOTS_MAX; i++) {
		wh_view_unref(p->views[i]);
		p->views[i] = NULL;
	}
}

static void peer_leave(struct peer *p, enum wh_detach how)
{
	wh_lease_detach(p->lease, how);
	p->lease = NULL;
	peer_unmap(p);
}

/* What a port does for a slot that its peer does not know. */
static void announce(struct peer *p, uint16_t slot)
{
	struct wh_announcement a;
	const char *why = "";
	if (!wh_lease_must_announce(p->lease, slot))
		return;
	cr_assert_eq(wh_lease_announcement(p->lease, slot, &a), 0);
	cr_assert_eq(wh_view_open(a.segment_fd, a.release_fd, a.slot, a.chunk_shift, a.n_chunks, a.huge, &p->views[slot], &why), 0,
		"%s", why);
	wh_lease_announced(p->lease, slot, false);
	cr_assert_not(wh_lease_must_announce(p->lease, slot));
	wh_lease_announced(p->lease, slot, true);
	p->announces++;
}

static struct wh_run send_buf(struct peer *p, struct wharf_buf *buf)
{
	struct wh_run run;
	cr_assert_eq(wh_lease_lend(p->lease, buf, 0, buf->size, 1, &run), 0);
	announce(p, run.slot);
	wh_lease_publish(p->lease);
	*buf = (struct wharf_buf)WHARF_BUF_EMPTY;
	return run;
}

static uint64_t bits_of(const struct wh_run *run) { return wh_run_bits(run->n_chunks) << (run->first % 64); }

static bool release(struct peer *p, const struct wh_run *run)
{
	return wh_view_release(p->views[run->slot], run->first / 64, bits_of(run));
}

static struct wharf_buf claim(wharf_pool *pool, size_t size)
{
	struct wharf_buf buf;
	int error = wharf_buf_claim(pool, size, &buf);
	cr_assert_eq(error, 0, "claim of %zu: %d", size, error);
	cr_assert_eq(buf.size, size);
	cr_assert_eq((uintptr_t)buf.data % 64, 0);
	return buf;
}

static int try_claim(wharf_pool *pool, size_t size)
{
	struct wharf_buf buf = WHARF_BUF_EMPTY;
	int error = wharf_buf_claim(pool, size, &buf);
	if (!error)
		wharf_buf_abandon(&buf);
	else
		cr_assert_null(buf.data, "untouched on failure");
	return error;
}

static wharf_pool *new_pool(size_t bytes_max, bool shared)
{
	wharf_pool *pool;
	cr_assert_eq(wharf_pool_new(WHARF_OPT(pool, .bytes_max = bytes_max, .shared = shared, .name = "test"), &pool), 0);
	return pool;
}

static struct wharf_pool_info info_of(wharf_pool *pool)
{
	struct wharf_pool_info info = { .size = sizeof(info) };
	cr_assert_eq(wharf_pool_info(pool, &info), 0);
	return info;
}

/* Every test: nothing may stay, whatever it did. The process's control memory is made before. */
static struct harness_snapshot before;
static void begin(void)
{
	wharf_pool *pool = new_pool(0, false);
	wharf_pool_unref(pool);
	harness_snapshot_take(&before);
}
static void end(void)
{
	wh_current_loop = NULL;
	const char *leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

TestSuite(pool, .init = begin, .fini = end, .timeout = 60);
TestSuite(lease, .init = begin, .fini = end, .timeout = 60);
TestSuite(buf, .init = begin, .fini = end, .timeout = 60);
TestSuite(room, .init = begin, .fini = end, .timeout = 60);

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

/* ---- Claiming ---- */

Test(buf, claims_are_exact_aligned_writable_and_apart)
{
	static const size_t sizes[] = { 1, 64, 256, 257, 1000, 1024, 1025, 4096, 5000, 16384, 16385, 100000, 1 << 20, (1 << 20) + 1, 5 << 20 };
	enum { N = sizeof(sizes) / sizeof(*sizes) };
	wharf_pool *pool = new_pool(0, false);
	struct wharf_buf bufs[N][3];
	for (int k = 0; k < 3; k++)
		for (size_t i = 0; i < N; i++) {
			bufs[i][k] = claim(pool, sizes[i]);
			memset(bufs[i][k].data, (int)(1 + i * 3 + (size_t)k), sizes[i]);
		}
	for (int k = 0; k < 3; k++)
		for (size_t i = 0; i < N; i++) {
			const unsigned char *at = bufs[i][k].data;
			for (size_t b = 0; b < sizes[i]; b += 61)
				cr_assert_eq(at[b], 1 + i * 3 + (size_t)k);
			cr_assert_eq(at[sizes[i] - 1], 1 + i * 3 + (size_t)k);
			wharf_buf_abandon(&bufs[i][k]);
			cr_assert_null(bufs[i][k].data);
			wharf_buf_abandon(&bufs[i][k]);
		}
	struct wharf_pool_info info = info_of(pool);
	cr_assert_eq(info.bytes_free, info.bytes);
	wharf_buf_abandon(NULL);
	wharf_pool_unref(pool);
}

Test(buf, wrong_arguments_are_refused)
{
	wharf_pool *pool = new_pool(0, false);
	struct wharf_buf empty = WHARF_BUF_EMPTY, buf;
	cr_assert_eq(wharf_buf_claim(pool, 0, &buf), -EINVAL);
	cr_assert_eq(wharf_buf_claim(NULL, 1, &buf), -EINVAL);
	cr_assert_eq(wharf_buf_claim(pool, 1, NULL), -EINVAL);
	cr_assert_eq(wharf_buf_claim_wait(pool, 0, 0, &buf), -EINVAL);
	cr_assert_eq(wharf_buf_trim(&empty, 1), -EINVAL);
	cr_assert_eq(wharf_buf_trim(NULL, 1), -EINVAL);
	cr_assert_eq(wharf_buf_ref(&empty, &buf), -EINVAL);
	buf = claim(pool, 100);
	cr_assert_eq(wharf_buf_trim(&buf, 0), -EINVAL);
	cr_assert_eq(wharf_buf_trim(&buf, 101), -EINVAL);
	cr_assert_eq(buf.size, 100);
	wharf_buf_abandon(&buf);
	wharf_pool_unref(pool);
}

/* Every size that bytes_max allows can be claimed from an empty pool, also after every other size was; one more byte never. */
Test(buf, any_size_up_to_bytes_max_fits_and_beyond_it_is_EMSGSIZE)
{
	static const size_t maxima[] = { 1, 4096, 5000, 20480, 65536, 100000, 1 << 20, 1000000, 3 << 20, (16 << 20) + 1, 48 << 20 };
	struct harness_random random = { harness_seed() };
	for (size_t i = 0; i < sizeof(maxima) / sizeof(*maxima); i++) {
		wharf_pool *pool = new_pool(maxima[i], false);
		size_t max = info_of(pool).bytes_max;
		cr_assert_geq(max, maxima[i]);
		cr_assert_leq(max, maxima[i] + maxima[i] / 16 + 4096);
		cr_assert_eq(try_claim(pool, max), 0, "all of %zu", max);
		cr_assert_eq(try_claim(pool, max + 1), -EMSGSIZE);
		for (int round = 0; round < 200; round++) {
			size_t size = 1 + harness_random_below(&random, harness_random_below(&random, 2) ? max : 1 + max / 100);
			cr_assert_eq(try_claim(pool, size), 0, "%zu of %zu", size, max);
			cr_assert_leq(info_of(pool).bytes, max);
		}
		wharf_pool_unref(pool);
	}
}

Test(buf, more_than_1_GiB_can_never_be_claimed)
{
	wharf_pool *pool = new_pool((size_t)4 << 30, false);
	cr_assert_eq(try_claim(pool, ((size_t)1 << 30) + 1), -EMSGSIZE);
	cr_assert_eq(try_claim(pool, SIZE_MAX), -EMSGSIZE);
	wharf_pool_unref(pool);
}

Test(buf, a_full_pool_is_EAGAIN_until_something_comes_back)
{
	static const size_t sizes[] = { 64, 1000, 4096, 16384, 60000, 262144 };
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		wharf_pool *pool = new_pool(1 * MIB, false);
		struct wharf_buf *bufs = calloc(4096, sizeof(*bufs));
		size_t n = 0;
		int error;
		while (!(error = wharf_buf_claim(pool, sizes[i], &bufs[n])))
			n++;
		cr_assert_eq(error, -EAGAIN);
		/* Nearly all of it, whatever the size: chunks, not segments, are what is wasted. */
		cr_assert_geq(n * ((sizes[i] + 255) / 256 * 256), 3 * MIB / 4, "size %zu", sizes[i]);
		cr_assert_eq(try_claim(pool, sizes[i]), -EAGAIN);
		wharf_buf_abandon(&bufs[n / 2]);
		cr_assert_eq(try_claim(pool, sizes[i]), 0);
		while (n-- > 0)
			wharf_buf_abandon(&bufs[n]);
		free(bufs);
		wharf_pool_unref(pool);
	}
}

Test(buf, trimming_gives_back_whole_chunks_of_the_tail_at_once)
{
	wharf_pool *pool = new_pool(0, false);
	struct wharf_buf buf = claim(pool, 1024);
	void *data = buf.data;
	uint64_t free_before = info_of(pool).bytes_free;
	memset(buf.data, 1, 1024);
	cr_assert_eq(wharf_buf_trim(&buf, 1000), 0);
	cr_assert_eq(info_of(pool).bytes_free, free_before, "no whole chunk");
	cr_assert_eq(wharf_buf_trim(&buf, 257), 0);
	cr_assert_eq(buf.size, 257);
	cr_assert_eq(buf.data, data);
	cr_assert_eq(info_of(pool).bytes_free, free_before + 512);
	cr_assert_eq(wharf_buf_trim(&buf, 256), 0);
	cr_assert_eq(info_of(pool).bytes_free, free_before + 768);
	wharf_buf_abandon(&buf);
	cr_assert_eq(info_of(pool).bytes_free, free_before + 1024);
	wharf_pool_unref(pool);
}

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
	HARNESS_REQUIRE(wharf_pool_info((wharf_pool *)(uintptr_t)buf->opaque[0], &(struct wharf_pool_info){ .size = 64 }) == -ECHILD);
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
	peer_leave(&p, WH_DETACH_RETURNED);
	wharf_pool_unref(pool);
}

/* ---- Lending ---- */

/* A private pool on its loop's thread, on another, and a shared one: the same rules. */
struct setting {
	bool shared;
	bool local;
};
static const struct setting settings[] = { { false, true }, { false, false }, { true, false } };
#define FOR_SETTINGS(s) for (const struct setting *s = settings; s < settings + 3; s++)

static wharf_pool *new_setting(const struct setting *s, size_t bytes_max, struct peer *p)
{
	wharf_pool *pool = new_pool(bytes_max, s->shared);
	peer_join(p, pool, s->local ? &a_loop : NULL);
	wh_current_loop = s->local ? &a_loop : NULL;
	return pool;
}

Test(lease, what_is_lent_comes_back_when_the_peer_releases_it)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 0, &p);
		static const size_t sizes[] = { 1, 1000, 5000, 60000, 100000, 3 << 20 };
		for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
			struct wharf_buf buf = claim(pool, sizes[i]);
			memset(buf.data, (int)i + 1, buf.size);
			uint64_t chunks = wh_place_chunks(buf.opaque[1]);
			struct wh_run run = send_buf(&p, &buf);
			cr_assert_eq(run.n_chunks, chunks);
			cr_assert_eq(run.size, sizes[i]);
			cr_assert_eq(run.offset, 0);
			cr_assert_eq(run.flags, 0);
			cr_assert_eq(run.first % wh_run_align(run.n_chunks), 0);
			uint64_t bytes = chunks << p.views[run.slot]->chunk_shift;
			cr_assert_eq(wh_lease_lent_bytes(p.lease), bytes);
			cr_assert_eq(info_of(pool).bytes_lent, bytes);
			cr_assert_eq(*(const unsigned char *)wh_view_at(p.views[run.slot], run.first, (uint32_t)sizes[i] - 1), i + 1);
			release(&p, &run);
			cr_assert_eq(wh_lease_harvest(p.lease), bytes);
			cr_assert_eq(wh_lease_harvest(p.lease), 0);
			cr_assert_eq(wh_lease_lent_bytes(p.lease), 0);
		}
		struct wharf_pool_info info = info_of(pool);
		cr_assert_eq(info.bytes_free, info.bytes);
		peer_leave(&p, WH_DETACH_RETURNED);
		wharf_pool_unref(pool);
	}
}

Test(lease, partial_release_is_per_chunk)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 0, &p);
		struct wharf_buf buf = claim(pool, 1024);
		struct wh_run run = send_buf(&p, &buf);
		cr_assert_eq(run.n_chunks, 4);
		uint64_t bit = UINT64_C(1) << (run.first % 64);
		wh_view_release(p.views[run.slot], run.first / 64, bit << 1 | bit << 3);
		cr_assert_eq(wh_lease_harvest(p.lease), 512);
		cr_assert_eq(wh_lease_lent_bytes(p.lease), 512);
		wh_view_release(p.views[run.slot], run.first / 64, bit | bit << 2);
		cr_assert_eq(wh_lease_harvest(p.lease), 512);
		cr_assert_not(wh_lease_poisoned(p.lease));
		peer_leave(&p, WH_DETACH_RETURNED);
		wharf_pool_unref(pool);
	}
}

Test(lease, claims_harvest_by_themselves)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 1 * MIB, &p);
		struct wh_run runs[16];
		for (int round = 0; round < 2000; round++) {
			if (round >= 16)
				release(&p, &runs[round % 16]);
			struct wharf_buf buf = claim(pool, 16384);
			runs[round % 16] = send_buf(&p, &buf);
			wh_lease_turn(p.lease, (uint32_t)round);
		}
		cr_assert_leq(info_of(pool).bytes, 1 * MIB);
		cr_assert_eq(wh_lease_lent_bytes(p.lease), 16 * 16384);
		peer_leave(&p, WH_DETACH_RETURNED);
		wharf_pool_unref(pool);
	}
}

Test(lease, releasing_what_was_not_lent_poisons_and_frees_nothing)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 0, &p);
		struct wharf_buf buf = claim(pool, 256), held = claim(pool, 256);
		struct wh_run run = send_buf(&p, &buf);
		static struct wharf_buf others[2000];
		uint64_t mine = wh_place_bits(held.opaque[1]);
		cr_assert_eq(wh_place_slot(held.opaque[1]), run.slot);
		wh_view_release(p.views[run.slot], wh_place_first(held.opaque[1]) / 64, mine);
		cr_assert_eq(wh_lease_harvest(p.lease), -EPROTO);
		cr_assert(wh_lease_poisoned(p.lease));
		cr_assert_geq(p.kicks, 1);
		/* Still claimed: nobody else gets it. */
		for (int i = 0; i < 2000; i++) {
			others[i] = claim(pool, 256);
			cr_assert_neq(others[i].data, held.data);
		}
		release(&p, &run);
		cr_assert_eq(wh_lease_harvest(p.lease), -EPROTO, "for good");
		peer_leave(&p, WH_DETACH_FAILED);
		wharf_buf_abandon(&held);
		for (int i = 0; i < 2000; i++)
			wharf_buf_abandon(&others[i]);
		wharf_pool_unref(pool);
	}
}

Test(lease, a_double_release_is_a_violation_and_frees_once)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 0, &p);
		struct wharf_buf buf = claim(pool, 256);
		struct wh_run run = send_buf(&p, &buf);
		release(&p, &run);
		cr_assert_eq(wh_lease_harvest(p.lease), 256);
		release(&p, &run);
		cr_assert_eq(wh_lease_harvest(p.lease), -EPROTO);
		peer_leave(&p, WH_DETACH_FAILED);
		wharf_pool_unref(pool);
	}
}

Test(lease, a_release_before_the_frame_left_is_a_violation)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 0, &p);
		struct wharf_buf buf = claim(pool, 256);
		struct wh_run run = send_buf(&p, &buf), early;
		release(&p, &run);
		cr_assert_eq(wh_lease_harvest(p.lease), 256);
		buf = claim(pool, 256);
		cr_assert_eq(wh_lease_lend(p.lease, &buf, 0, 256, 0, &early), 0);
		release(&p, &early);
		cr_assert_eq(wh_lease_harvest(p.lease), -EPROTO);
		/* The buffer is ours still. */
		wh_lease_take_back(p.lease, &early);
		cr_assert_eq(wh_lease_lent_bytes(p.lease), 0);
		wharf_buf_abandon(&buf);
		struct wharf_pool_info info = info_of(pool);
		cr_assert_eq(info.bytes_free, info.bytes);
		peer_leave(&p, WH_DETACH_FAILED);
		wharf_pool_unref(pool);
	}
}

Test(lease, ranges_and_foreign_buffers_are_refused)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 0, &p), *other = new_pool(0, false);
		struct wharf_buf buf = claim(pool, 1000), foreign = claim(other, 1000), empty = WHARF_BUF_EMPTY;
		struct wh_run run;
		/* Before and after the fast path knows the word. */
		for (int k = 0; k < 2; k++) {
			cr_assert_eq(wh_lease_lend(p.lease, &empty, 0, 1, 0, &run), -EINVAL);
			cr_assert_eq(wh_lease_lend(p.lease, &foreign, 0, 1000, 0, &run), -EXDEV);
			cr_assert_eq(wh_lease_lend(p.lease, &buf, 0, 0, 0, &run), -EINVAL);
			cr_assert_eq(wh_lease_lend(p.lease, &buf, 0, 1001, 0, &run), -EINVAL);
			cr_assert_eq(wh_lease_lend(p.lease, &buf, 1, 1000, 0, &run), -EINVAL);
			cr_assert_eq(wh_lease_lend(p.lease, &buf, 1000, 1, 0, &run), -EINVAL);
			cr_assert_eq(wh_lease_lend(p.lease, &buf, SIZE_MAX, 2, 0, &run), -EINVAL);
			cr_assert_eq(wh_lease_lend(p.lease, &buf, 999, 1, 0, &run), 0);
			cr_assert_eq(run.offset, 999);
			cr_assert_eq(run.size, 1);
			cr_assert_eq(run.n_chunks, 4);
			wh_lease_take_back(p.lease, &run);
		}
		wharf_buf_abandon(&buf);
		wharf_buf_abandon(&foreign);
		peer_leave(&p, WH_DETACH_RETURNED);
		wharf_pool_unref(pool);
		wharf_pool_unref(other);
	}
}

Test(lease, taking_back_and_dropping_undo_a_lend_wherever_it_stands)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 0, &p);
		/* Many words, so that some runs are in the current one, some set aside, some published. */
		enum { N = 600 };
		struct wharf_buf bufs[N];
		struct wh_run runs[N];
		for (int i = 0; i < N; i++) {
			bufs[i] = claim(pool, i % 3 ? 1000 : 100);
			cr_assert_eq(wh_lease_lend(p.lease, &bufs[i], 0, bufs[i].size, 0, &runs[i]), 0);
			if (i == N / 3)
				wh_lease_publish(p.lease);
		}
		for (int i = N; i-- > 0;) {
			if (i % 2) {
				wh_lease_take_back(p.lease, &runs[i]);
				wharf_buf_abandon(&bufs[i]);
			} else {
				wh_lease_drop(p.lease, &runs[i]);
			}
		}
		cr_assert_not(wh_lease_poisoned(p.lease));
		cr_assert_eq(wh_lease_lent_bytes(p.lease), 0);
		struct wharf_pool_info info = info_of(pool);
		cr_assert_eq(info.bytes_free, info.bytes);
		cr_assert_eq(info.bytes_lent, 0);
		peer_leave(&p, WH_DETACH_RETURNED);
		wharf_pool_unref(pool);
	}
}

Test(lease, what_is_held_is_not_published_with_a_frame_that_leaves_meanwhile)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 0, &p);
		struct wharf_buf first = claim(pool, 256), held[64];
		struct wh_run run, runs[64];
		cr_assert_eq(wh_lease_lend(p.lease, &first, 0, 256, 0, &run), 0);
		wh_lease_hold(p.lease);
		for (int i = 0; i < 64; i++) {
			/* 64 KiB each: words of their own, more or less. */
			held[i] = claim(pool, i % 2 ? 256 : 65536);
			cr_assert_eq(wh_lease_lend(p.lease, &held[i], 0, held[i].size, 0, &runs[i]), 0);
		}
		wh_lease_publish(p.lease);
		cr_assert_eq(info_of(pool).bytes_lent, 256, "only what was lent before");
		for (int i = 64; i-- > 32;)
			wh_lease_take_back(p.lease, &runs[i]);
		wh_lease_unhold(p.lease);
		wh_lease_publish(p.lease);
		cr_assert_eq(info_of(pool).bytes_lent, 256 + 16 * 256 + 16 * 65536);
		for (int i = 0; i < 32; i++)
			wh_lease_drop(p.lease, &runs[i]);
		for (int i = 32; i < 64; i++)
			wharf_buf_abandon(&held[i]);
		wh_lease_drop(p.lease, &run);
		cr_assert_eq(wh_lease_lent_bytes(p.lease), 0);
		peer_leave(&p, WH_DETACH_RETURNED);
		wharf_pool_unref(pool);
	}
}

Test(lease, a_private_pool_has_one_at_a_time)
{
	struct peer p, q;
	wharf_pool *pool = new_pool(0, false);
	struct wh_lease *second;
	peer_join(&p, pool, NULL);
	cr_assert_eq(wh_pool_attach(pool, NULL, on_kick, &q, &second), -EXDEV);
	struct wharf_buf buf = claim(pool, 100), kept = claim(pool, 100);
	send_buf(&p, &buf);
	peer_leave(&p, WH_DETACH_RETURNED);
	/* The next peer does not get what the last one can read. */
	peer_join(&q, pool, NULL);
	struct wh_run run;
	memset(kept.data, 1, 100);
	cr_assert_eq(wh_lease_lend(q.lease, &kept, 0, 100, 0, &run), -EXDEV);
	wharf_buf_abandon(&kept);
	cr_assert_eq(info_of(pool).bytes, 0);
	buf = claim(pool, 100);
	run = send_buf(&q, &buf);
	cr_assert_eq(q.announces, 1);
	release(&q, &run);
	cr_assert_eq(wh_lease_harvest(q.lease), 256);
	peer_leave(&q, WH_DETACH_RETURNED);
	wharf_pool_unref(pool);
}

Test(lease, a_shared_pool_has_64)
{
	wharf_pool *pool = new_pool(0, true);
	static struct peer peers[64];
	struct wh_lease *lease;
	for (int i = 0; i < 64; i++)
		peer_join(&peers[i], pool, NULL);
	cr_assert_eq(wh_pool_attach(pool, NULL, on_kick, &peers[0], &lease), -EUSERS);
	peer_leave(&peers[40], WH_DETACH_RETURNED);
	peer_join(&peers[40], pool, NULL);
	for (int i = 0; i < 64; i++)
		peer_leave(&peers[i], WH_DETACH_RETURNED);
	wharf_pool_unref(pool);
}

/* ---- Several holders ---- */

Test(buf, a_referenced_buffer_is_free_when_its_last_holder_lets_go)
{
	struct peer p[3];
	wharf_pool *pool = new_pool(0, true);
	for (int i = 0; i < 3; i++)
		peer_join(&p[i], pool, NULL);
	for (int round = 0; round < 6; round++) {
		struct wharf_buf buf = claim(pool, 700), refs[3];
		struct wh_run runs[3];
		memset(buf.data, round, buf.size);
		for (int i = 0; i < 3; i++) {
			cr_assert_eq(wharf_buf_ref(&buf, &refs[i]), 0);
			runs[i] = send_buf(&p[i], &refs[i]);
		}
		cr_assert_eq(wharf_buf_trim(&buf, 1), -EINVAL, "others read the tail");
		cr_assert_eq(info_of(pool).bytes_lent, 768, "one run, three peers");
		/* Every order of letting go. */
		static const int orders[6][3] = { { 0, 1, 2 }, { 0, 2, 1 }, { 1, 0, 2 }, { 1, 2, 0 }, { 2, 0, 1 }, { 2, 1, 0 } };
		wharf_buf_abandon(&buf);
		for (int k = 0; k < 3; k++) {
			int i = orders[round][k];
			struct wharf_pool_info info = info_of(pool);
			cr_assert_lt(info.bytes_free, info.bytes);
			cr_assert_eq(*(const unsigned char *)wh_view_at(p[i].views[runs[i].slot], runs[i].first, 699), round);
			release(&p[i], &runs[i]);
			cr_assert_eq(wh_lease_harvest(p[i].lease), k == 2 ? 768 : 0, "order %d, %d-th", round, k);
		}
		struct wharf_pool_info info = info_of(pool);
		cr_assert_eq(info.bytes_free, info.bytes);
	}
	for (int i = 0; i < 3; i++)
		peer_leave(&p[i], WH_DETACH_RETURNED);
	wharf_pool_unref(pool);
}

Test(buf, the_same_run_twice_to_one_peer_is_EBUSY_while_it_is_out)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 0, &p);
		for (int publish = 0; publish < 2; publish++) {
			struct wharf_buf buf = claim(pool, 256), ref, other = claim(pool, 16384);
			struct wh_run run, second;
			cr_assert_eq(wharf_buf_ref(&buf, &ref), 0);
			cr_assert_eq(wh_lease_lend(p.lease, &buf, 0, 256, 0, &run), 0);
			announce(&p, run.slot);
			if (publish)
				wh_lease_publish(p.lease);
			cr_assert_eq(wh_lease_lend(p.lease, &ref, 0, 256, 0, &second), -EBUSY);
			cr_assert_eq(wh_lease_lend(p.lease, &other, 0, 16384, 0, &second), 0);
			cr_assert_eq(wh_lease_lend(p.lease, &ref, 0, 256, 0, &run), -EBUSY, "also from another word");
			wh_lease_publish(p.lease);
			wh_lease_drop(p.lease, &second);
			release(&p, &run);
			cr_assert_eq(wh_lease_harvest(p.lease), 0, "ref holds it");
			cr_assert_eq(wh_lease_lend(p.lease, &ref, 0, 256, 0, &run), 0);
			wh_lease_publish(p.lease);
			release(&p, &run);
			cr_assert_eq(wh_lease_harvest(p.lease), 256);
		}
		peer_leave(&p, WH_DETACH_RETURNED);
		wharf_pool_unref(pool);
	}
}

Test(buf, more_than_65535_holders_are_EOVERFLOW)
{
	wharf_pool *pool = new_pool(0, true);
	struct wharf_buf buf = claim(pool, 1024), ref, untouched = WHARF_BUF_EMPTY;
	for (int i = 0; i < 65534; i++)
		cr_assert_eq(wharf_buf_ref(&buf, &ref), 0);
	cr_assert_eq(wharf_buf_ref(&buf, &untouched), -EOVERFLOW);
	cr_assert_null(untouched.data);
	for (int i = 0; i < 65534; i++) {
		struct wharf_buf one = buf;
		wharf_buf_abandon(&one);
	}
	cr_assert_lt(info_of(pool).bytes_free, info_of(pool).bytes);
	wharf_buf_abandon(&buf);
	cr_assert_eq(info_of(pool).bytes_free, info_of(pool).bytes);
	wharf_pool_unref(pool);
}

/* ---- Detaching ---- */

Test(lease, a_failed_peer_of_a_private_pool_keeps_reading_what_it_was_lent)
{
	struct peer p;
	wharf_pool *pool = new_pool(1 * MIB, false);
	peer_join(&p, pool, NULL);
	struct wharf_buf buf = claim(pool, 1000), kept = claim(pool, 1000);
	memset(buf.data, 0x55, 1000);
	struct wh_run run = send_buf(&p, &buf);
	const char *seen = wh_view_at(p.views[run.slot], run.first, 0);
	wh_lease_detach(p.lease, WH_DETACH_FAILED);
	/* All of the pool is written again, but not that. */
	struct wharf_buf bufs[64];
	size_t n = 0;
	while (n < 64 && !wharf_buf_claim(pool, 15000, &bufs[n]))
		memset(bufs[n++].data, 0xaa, 15000);
	cr_assert_geq(n, 50);
	memset(kept.data, 0xbb, 1000);
	for (int i = 0; i < 1000; i++)
		cr_assert_eq(seen[i], 0x55);
	while (n-- > 0)
		wharf_buf_abandon(&bufs[n]);
	wharf_buf_abandon(&kept);
	peer_unmap(&p);
	wharf_pool_unref(pool);
}

Test(lease, a_shared_pool_takes_everything_back_from_a_peer_that_leaves)
{
	for (int how = WH_DETACH_RETURNED; how <= WH_DETACH_FAILED; how++) {
		struct peer p, q;
		wharf_pool *pool = new_pool(0, true);
		peer_join(&p, pool, NULL);
		peer_join(&q, pool, NULL);
		struct wharf_buf bufs[2], more;
		struct wh_run unpublished, both;
		bufs[0] = claim(pool, 100);
		send_buf(&p, &bufs[0]);
		bufs[1] = claim(pool, 100);
		cr_assert_eq(wharf_buf_ref(&bufs[1], &more), 0);
		send_buf(&p, &bufs[1]);
		both = send_buf(&q, &more);
		more = claim(pool, 5000);
		cr_assert_eq(wh_lease_lend(p.lease, &more, 0, 5000, 0, &unpublished), 0);
		peer_leave(&p, (enum wh_detach)how);
		struct wharf_pool_info info = info_of(pool);
		cr_assert_eq(info.bytes_lent, 256);
		cr_assert_eq(info.bytes_free, info.bytes - 256);
		release(&q, &both);
		cr_assert_eq(wh_lease_harvest(q.lease), 256);
		peer_leave(&q, (enum wh_detach)how);
		wharf_pool_unref(pool);
	}
}

/* ---- Retiring ---- */

/* What a port does after a kick. */
static int retire_all(struct peer *p)
{
	uint16_t slot;
	int n = 0;
	while (wh_lease_next_retire(p->lease, &slot)) {
		wh_view_unref(p->views[slot]);
		p->views[slot] = NULL;
		cr_assert_eq(wh_lease_retired(p->lease, slot), 0);
		n++;
	}
	return n;
}

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
		peer_leave(&p, WH_DETACH_RETURNED);
		wharf_pool_unref(pool);
	}
}

Test(lease, a_retirement_that_was_not_asked_for_is_the_peers_fault)
{
	struct peer p;
	wharf_pool *pool = new_pool(0, false);
	peer_join(&p, pool, NULL);
	struct wharf_buf buf = claim(pool, 100);
	struct wh_run run = send_buf(&p, &buf);
	uint16_t slot;
	cr_assert_not(wh_lease_next_retire(p.lease, &slot));
	cr_assert_eq(wh_lease_retired(p.lease, run.slot), -EPROTO);
	cr_assert_eq(wh_lease_retired(p.lease, 77), -EPROTO);
	cr_assert_eq(wh_lease_retired(p.lease, UINT16_MAX), -EPROTO);
	release(&p, &run);
	cr_assert_eq(wh_lease_harvest(p.lease), 256);
	peer_leave(&p, WH_DETACH_RETURNED);
	wharf_pool_unref(pool);
}

Test(pool, memory_of_a_burst_goes_when_the_burst_is_over)
{
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
		peer_leave(&p, WH_DETACH_RETURNED);
		wharf_pool_unref(pool);
	}
}

Test(lease, descriptors_are_closed_once_the_peer_has_proved_that_it_mapped)
{
	struct peer p;
	wharf_pool *pool = new_pool(0, false);
	peer_join(&p, pool, NULL);
	size_t fds = harness_count_fds();
	struct wharf_buf buf = claim(pool, 100);
	struct wh_run run = send_buf(&p, &buf);
	for (uint32_t turn = 1; turn < 64; turn++)
		wh_lease_turn(p.lease, turn);
	cr_assert_eq(harness_count_fds(), fds + 2, "it may have been lost");
	struct wh_announcement again;
	cr_assert_eq(wh_lease_announcement(p.lease, run.slot, &again), 0);
	wh_lease_announced(p.lease, run.slot, true);
	release(&p, &run);
	cr_assert_eq(wh_lease_harvest(p.lease), 256);
	for (uint32_t turn = 1; turn < 64; turn++)
		wh_lease_turn(p.lease, turn);
	cr_assert_eq(harness_count_fds(), fds);
	cr_assert_eq(wh_lease_announcement(p.lease, run.slot, &again), -EPROTO);
	peer_leave(&p, WH_DETACH_RETURNED);
	wharf_pool_unref(pool);
}

/* ---- Room ---- */

Test(room, a_failed_claim_marks_every_map_and_the_port_is_told_once_when_it_would_succeed)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 256 * KIB, &p);
		struct wh_run runs[16];
		for (int i = 0; i < 16; i++) {
			struct wharf_buf buf = claim(pool, 16384);
			runs[i] = send_buf(&p, &buf);
		}
		cr_assert_not(wh_pool_room(pool, p.lease), "nothing failed yet");
		cr_assert_not(p.views[runs[0].slot]->map->wanted);
		cr_assert_eq(try_claim(pool, 65536), -EAGAIN);
		for (int i = 0; i < 16; i++)
			cr_assert(p.views[runs[i].slot]->map->wanted);
		cr_assert(release(&p, &runs[0]), "the peer owes a wake");
		cr_assert_not(wh_pool_room(pool, p.lease), "one chunk is not four");
		cr_assert(p.views[runs[0].slot]->map->wanted, "marked again");
		for (int i = 1; i < 16; i++)
			release(&p, &runs[i]);
		cr_assert_not(wh_pool_room(pool, p.lease), "all of it is free, but mapped in chunks of 4 KiB");
		cr_assert_geq(retire_all(&p), 1);
		cr_assert(wh_pool_room(pool, p.lease));
		cr_assert_not(wh_pool_room(pool, p.lease), "once");
		cr_assert_eq(try_claim(pool, 65536), 0);
		peer_leave(&p, WH_DETACH_RETURNED);
		wharf_pool_unref(pool);
	}
}

Test(room, every_port_of_a_shared_pool_is_told)
{
	struct peer p[3];
	wharf_pool *pool = new_pool(64 * KIB, true);
	struct wharf_buf bufs[16];
	for (int i = 0; i < 3; i++)
		peer_join(&p[i], pool, NULL);
	for (int i = 0; i < 16; i++)
		bufs[i] = claim(pool, 4096);
	cr_assert_eq(try_claim(pool, 4096), -EAGAIN);
	for (int i = 0; i < 3; i++)
		cr_assert_not(wh_pool_room(pool, p[i].lease));
	wharf_buf_abandon(&bufs[5]);
	for (int i = 0; i < 3; i++)
		cr_assert_eq(p[i].kicks, 1, "abandoning tells those that wait");
	for (int i = 0; i < 3; i++) {
		cr_assert(wh_pool_room(pool, p[i].lease));
		cr_assert_not(wh_pool_room(pool, p[i].lease));
	}
	wharf_buf_abandon(&bufs[6]);
	for (int i = 0; i < 3; i++)
		cr_assert_eq(p[i].kicks, 1, "nobody waits");
	for (int i = 0; i < 16; i++)
		wharf_buf_abandon(&bufs[i]);
	for (int i = 0; i < 3; i++)
		peer_leave(&p[i], WH_DETACH_RETURNED);
	wharf_pool_unref(pool);
}

Test(room, what_the_loop_holds_in_private_words_is_given_to_a_claim_of_another_thread)
{
	struct peer p;
	wharf_pool *pool = new_pool(16 * KIB, false);
	peer_join(&p, pool, &a_loop);
	wh_current_loop = &a_loop;
	/* The first makes the segment, the second takes the only word. */
	struct wharf_buf bufs[2] = { claim(pool, 100), claim(pool, 100) }, big;
	cr_assert_not(wh_pool_local_idle(pool));
	wh_current_loop = NULL;
	cr_assert_eq(wharf_buf_claim(pool, 100, &big), -EAGAIN);
	cr_assert_eq(p.kicks, 1);
	wh_current_loop = &a_loop;
	cr_assert(wh_pool_room(pool, p.lease));
	cr_assert(wh_pool_local_idle(pool));
	wh_current_loop = NULL;
	cr_assert_eq(wharf_buf_claim(pool, 100, &big), 0);
	wharf_buf_abandon(&big);
	wh_current_loop = &a_loop;
	wharf_buf_abandon(&bufs[0]);
	wharf_buf_abandon(&bufs[1]);
	peer_leave(&p, WH_DETACH_RETURNED);
	wharf_pool_unref(pool);
}

struct waiter {
	wharf_pool *pool;
	size_t size;
	int64_t timeout_ns;
	int result;
	_Atomic bool done;
	struct wharf_buf buf;
	pthread_t thread;
};

static void *wait_for_room(void *arg)
{
	struct waiter *w = arg;
	w->result = wharf_buf_claim_wait(w->pool, w->size, w->timeout_ns, &w->buf);
	w->done = true;
	return NULL;
}

static void start_waiter(struct waiter *w, wharf_pool *pool, size_t size, int64_t timeout_ns)
{
	*w = (struct waiter){ .pool = pool, .size = size, .timeout_ns = timeout_ns };
	cr_assert_eq(pthread_create(&w->thread, NULL, wait_for_room, w), 0);
	/* It cannot be seen to sleep, only to have asked. */
	while (!(atomic_load(&pool->attention) & WH_WAITERS) && !w->done)
		sched_yield();
}

Test(room, a_waiting_claim_refuses_a_loops_thread_and_ends_when_its_time_is_up)
{
	wharf_pool *pool = new_pool(4 * KIB, false);
	struct wharf_buf all = claim(pool, 4096), buf;
	cr_assert_eq(wharf_buf_claim_wait(pool, 4096, 0, &buf), -ETIMEDOUT);
	cr_assert_eq(wharf_buf_claim_wait(pool, 4096, 1000000, &buf), -ETIMEDOUT);
	cr_assert_eq(wharf_buf_claim_wait(pool, 4097, -1, &buf), -EMSGSIZE);
	cr_assert_eq(atomic_load(&pool->attention), 0);
	wh_current_loop = &a_loop;
	cr_assert_eq(wharf_buf_claim_wait(pool, 4096, -1, &buf), -EDEADLK);
	wh_current_loop = NULL;
	wharf_buf_abandon(&all);
	cr_assert_eq(wharf_buf_claim_wait(pool, 4096, -1, &buf), 0);
	wharf_buf_abandon(&buf);
	wharf_pool_unref(pool);
}

Test(room, a_waiting_claim_gets_what_another_thread_abandons)
{
	wharf_pool *pool = new_pool(4 * KIB, false);
	for (int round = 0; round < 50; round++) {
		struct wharf_buf all = claim(pool, 4096);
		struct waiter w;
		start_waiter(&w, pool, 4096, 30 * SECOND);
		wharf_buf_abandon(&all);
		pthread_join(w.thread, NULL);
		cr_assert_eq(w.result, 0);
		wharf_buf_abandon(&w.buf);
	}
	wharf_pool_unref(pool);
}

Test(room, a_waiting_claim_gets_what_the_peer_releases)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 4 * KIB, &p);
		for (int round = 0; round < 50; round++) {
			struct wharf_buf all = claim(pool, 4096);
			struct wh_run run = send_buf(&p, &all);
			struct waiter w;
			start_waiter(&w, pool, 4096, 30 * SECOND);
			/* Unless the waiter saw the release itself, the peer owes a wake, and the loop acts on it. */
			if (release(&p, &run) || p.kicks)
				wh_pool_room(pool, p.lease);
			p.kicks = 0;
			pthread_join(w.thread, NULL);
			cr_assert_eq(w.result, 0);
			wharf_buf_abandon(&w.buf);
			cr_assert_not(p.views[run.slot]->map->wanted, "nobody wants any more");
		}
		peer_leave(&p, WH_DETACH_RETURNED);
		wharf_pool_unref(pool);
	}
}

Test(room, a_waiting_claim_ends_with_EPIPE_when_the_last_port_is_gone)
{
	struct peer p, q;
	wharf_pool *pool = new_pool(4 * KIB, true);
	peer_join(&p, pool, NULL);
	peer_join(&q, pool, NULL);
	struct wharf_buf all = claim(pool, 4096), buf;
	struct waiter w;
	start_waiter(&w, pool, 4096, -1);
	peer_leave(&p, WH_DETACH_RETURNED);
	cr_assert_not(w.done, "one is left");
	peer_leave(&q, WH_DETACH_RETURNED);
	pthread_join(w.thread, NULL);
	cr_assert_eq(w.result, -EPIPE);
	cr_assert_eq(wharf_buf_claim_wait(pool, 4096, -1, &buf), -EPIPE);
	wharf_buf_abandon(&all);
	cr_assert_eq(wharf_buf_claim_wait(pool, 4096, -1, &buf), 0, "room is room");
	wharf_buf_abandon(&buf);
	wharf_pool_unref(pool);
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
	wh_lease_turn(p.lease, 42);
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
	uint32_t lease_at = AT(uint32_t, pool_at, 128), slot_at = AT(uint32_t, pool_at, 384 + 4 * run.slot);
	cr_assert_eq(AT(uint32_t, lease_at, 8), 4711);
	cr_assert_eq(AT(uint64_t, lease_at, 0), wh_lease_id(p.lease));
	uint32_t lent_at = AT(uint32_t, lease_at, 64 + 4 * run.slot);
	uint64_t word = run.first / 64, bits = bits_of(&run), mine = wh_place_bits(held.opaque[1]);
	cr_assert_eq(AT(uint64_t, lent_at, 8 * word), bits);
	cr_assert_eq(AT(uint32_t, slot_at, 0), WH_SLOT_LIVE);
	cr_assert_eq(AT(uint8_t, slot_at, 8), 8);
	cr_assert_eq(AT(uint64_t, slot_at, 64 + 8 * word) & (bits | mine), 0, "neither is free");
	cr_assert_eq(AT(uint64_t, slot_at, 1088 + 8 * word) & 1, 1, "lease 0 holds some");
	uint32_t info_at = AT(uint32_t, slot_at, 24);
	cr_assert_eq(AT(uint64_t, info_at, 8 * run.first), UINT64_C(1) << 32 | 42, "stream and turn");
	munmap((void *)(uintptr_t)base, size);
	munmap((void *)(uintptr_t)h, 4096);

	wharf_buf_abandon(&held);
	peer_leave(&p, WH_DETACH_RETURNED);
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
	const unsigned char *at = m->state == LENT ? (const void *)wh_view_at(p->views[m->run.slot], m->run.first, 0) : m->buf.data;
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
		peer_leave(&p, WH_DETACH_RETURNED);
		wharf_pool_unref(pool);
		cr_assert_eq(harness_count_maps("/memfd:wharf-test"), 0);
	}
}
