/* SPDX-License-Identifier: MIT */
/* The trace: each event is in it, what is frequent in part, for as long as somebody wants it and no longer. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "apart.h"
#include "control.h"
#include "harness.h"
#include "port.h"
#include "raw.h"

TestSuite(trace, .timeout = 60);

static const struct wharf_loop_options traced = { .size = sizeof(traced), .flags = WHARF_LOOP_TRACE };

/* ---- What a reader does ---- */

static const struct wh_stats_trace *ring_of(const wharf_loop *loop)
{
	const char *block = (const char *)loop->stats;
	const char *first = block - (size_t)wh_control_position(block) * WH_CONTROL_UNIT;

	cr_assert_neq(loop->stats->trace, 0);
	return (const void *)(first + (size_t)loop->stats->trace * WH_CONTROL_UNIT);
}

static uint64_t written(const wharf_loop *loop) { return loop->stats->trace ? ring_of(loop)->head : 0; }

static const struct wh_stats_entry *entry(const struct wh_stats_trace *ring, uint64_t i)
{
	return &ring->entries[i % ring->n_entries];
}

static unsigned count(const wharf_loop *loop, uint64_t from, enum wh_stats_event kind)
{
	const struct wh_stats_trace *ring = ring_of(loop);
	unsigned n = 0;

	for (uint64_t i = from; i < ring->head; i++)
		n += entry(ring, i)->kind == kind;
	return n;
}

/* The only one of its kind. */
static const struct wh_stats_entry *only(const wharf_loop *loop, uint64_t from, enum wh_stats_event kind)
{
	const struct wh_stats_trace *ring = ring_of(loop);
	const struct wh_stats_entry *found = NULL;

	for (uint64_t i = from; i < ring->head; i++)
		if (entry(ring, i)->kind == kind) {
			cr_assert_null(found, "a second event of kind %d", kind);
			found = entry(ring, i);
		}
	cr_assert_not_null(found, "no event of kind %d", kind);
	return found;
}

static struct wh_trace_wish *map_wish(void)
{
	char path[64], target[64];
	struct wh_trace_wish *wish = MAP_FAILED;
	DIR *fds = opendir("/proc/self/fd");
	struct dirent *fd;

	while (wish == MAP_FAILED && (fd = readdir(fds))) {
		snprintf(path, sizeof(path), "/proc/self/fd/%.20s", fd->d_name);
		ssize_t n = readlink(path, target, sizeof(target) - 1);
		if (n < 0)
			continue;
		target[n] = '\0';
		if (strncmp(target, "/memfd:wharf-trace", strlen("/memfd:wharf-trace")))
			continue;
		int copy = open(path, O_RDWR | O_CLOEXEC);
		cr_assert_geq(copy, 0);
		cr_assert_eq(ftruncate(copy, 1 << 20), -1, "it is sealed");
		wish = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, copy, 0);
		close(copy);
	}
	closedir(fds);
	cr_assert_neq(wish, MAP_FAILED);
	cr_assert_eq(wish->magic, WH_TRACE_MAGIC);
	cr_assert_eq(wish->version, WH_CONTROL_VERSION);
	return wish;
}

static uint64_t monotonic_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* ---- Points ---- */

Test(trace, a_message_passes_every_point_on_its_way)
{
	struct apart p;

	apart_open(&p, &traced, NULL, NULL);
	cr_assert(p.loop_a->stats->flags & WH_STATS_TRACING);
	const struct wh_stats_entry *opened = only(p.loop_a, 0, WH_TRACE_OPEN);
	cr_assert_eq(opened->a, (uint64_t)getpid());
	cr_assert_eq(opened->port, (uint32_t)p.a.port->stats->id);
	wharf_pool *pool = wharf_port_pool(p.a.port);
	cr_assert_geq(wharf_loop_step(p.loop_a, 0), 0);
	uint64_t a = written(p.loop_a), b = written(p.loop_b);
	send_claimed(p.a.port, pool, 600, 1);
	apart_settle(&p);
	cr_assert_eq(only(p.loop_a, a, WH_TRACE_CLAIM)->a, 600);
	cr_assert_eq(only(p.loop_a, a, WH_TRACE_SEND)->a, 600);
	cr_assert_eq(only(p.loop_a, a, WH_TRACE_SEND)->b, 1);
	cr_assert_gt(only(p.loop_a, a, WH_TRACE_ANNOUNCE)->b, 600);
	cr_assert_eq(count(p.loop_a, a, WH_TRACE_FRAME_OUT), 2); /* the announcement's own */
	cr_assert_eq(count(p.loop_b, b, WH_TRACE_FRAME_IN), 2);
	const struct wh_stats_entry *received = only(p.loop_b, b, WH_TRACE_RECEIVE);
	cr_assert_eq(received->a, 600);
	cr_assert_eq(received->b, 1);
	cr_assert_eq(received->port, (uint32_t)p.b.port->stats->id);
	const struct wh_stats_entry *released = only(p.loop_b, b, WH_TRACE_RELEASE);
	cr_assert_eq(__builtin_popcountll(released->a), 3);
	cr_assert_geq(count(p.loop_b, b, WH_TRACE_TURN), 1);
	apart_free(&p);
}

Test(trace, memory_that_comes_back_and_who_waits_for_it)
{
	struct wharf_port_options o = { .size = sizeof(o), .pool_bytes_max = 1 << 20 };
	struct wharf_buf none;
	struct apart p;

	apart_open(&p, &traced, &o, NULL);
	wharf_pool *pool = wharf_port_pool(p.a.port);
	cr_assert_geq(wharf_loop_step(p.loop_a, 0), 0);
	send_claimed(p.a.port, pool, 1 << 20, 1);
	cr_assert_eq(wharf_buf_claim(pool, 1 << 20, &none), -EAGAIN);
	apart_settle(&p);
	cr_assert_eq(p.a.n_writable, 1);
	only(p.loop_b, 0, WH_TRACE_WAKE_OUT);
	only(p.loop_a, 0, WH_TRACE_WAKE_IN);
	cr_assert_eq(only(p.loop_a, 0, WH_TRACE_RETURN)->a, 1 << 20);
	apart_free(&p);
}

Test(trace, streams_refusals_and_ends)
{
	struct wharf_port_options o = { .size = sizeof(o), .tx_queued_bytes_max = 65536 };
	static char bytes[4096];
	uint64_t stream;
	struct apart p;

	apart_open(&p, &traced, &o, NULL);
	cr_assert_eq(wharf_stream_begin(p.a.port, 5, WHARF_BYTES_UNKNOWN, &stream), 0);
	cr_assert_eq(wharf_stream_abort(p.a.port, stream, 3), 0);
	const struct wh_stats_entry *begun = only(p.loop_a, 0, WH_TRACE_STREAM);
	cr_assert_eq(begun->b, 0);
	cr_assert_eq(only(p.loop_a, 0, WH_TRACE_STREAM_END)->a, begun->a);
	cr_assert_eq(only(p.loop_a, 0, WH_TRACE_STREAM_END)->b, WHARF_ABORT_SENDER);
	while (!wharf_send_bytes(p.a.port, 1, bytes, sizeof(bytes))) {
	}
	cr_assert_eq(only(p.loop_a, 0, WH_TRACE_AGAIN)->a, sizeof(bytes));
	cr_assert_eq(only(p.loop_a, 0, WH_TRACE_AGAIN)->b, EAGAIN);
	cr_assert_eq(wharf_port_abort(p.a.port, 9), 0);
	cr_assert_eq(only(p.loop_a, 0, WH_TRACE_CLOSE)->a, WHARF_CLOSE_ABORTED);
	apart_settle(&p);
	cr_assert_eq(only(p.loop_b, 0, WH_TRACE_CLOSE)->a, WHARF_CLOSE_PEER_ABORTED);
	apart_free(&p);
}

static void refuse(struct end *end, const struct wharf_msg *msg)
{
	wharf_call_id id;

	cr_assert_eq(wharf_call_take(end->port, msg, NULL, &id), 0);
	cr_assert_eq(wharf_call_refuse(end->port, id, 1), 0);
}

Test(trace, calls_on_both_sides)
{
	const struct wharf_out request = { .flags = WHARF_LAST };
	wharf_call_id id;
	struct apart p;

	apart_open(&p, &traced, NULL, NULL);
	p.b.on_message = refuse;
	cr_assert_eq(wharf_call(p.a.port, &request, NULL, &id), 0);
	apart_settle(&p);
	cr_assert_eq(only(p.loop_a, 0, WH_TRACE_CALL)->b, 0);
	cr_assert_eq(only(p.loop_b, 0, WH_TRACE_CALL)->b, 1);
	cr_assert_eq(only(p.loop_a, 0, WH_TRACE_CALL)->a, only(p.loop_b, 0, WH_TRACE_CALL)->a);
	cr_assert_eq(only(p.loop_a, 0, WH_TRACE_CALL_END)->b, WHARF_END_REFUSED);
	cr_assert_eq(only(p.loop_b, 0, WH_TRACE_CALL_END)->b, WHARF_END_REFUSED);
	apart_free(&p);
}

Test(trace, a_violation_is_in_it)
{
	struct apart p;

	apart_half(&p, &traced, NULL);
	cr_assert(raw_say_hello(p.fds[1], NULL));
	apart_settle(&p);
	cr_assert(raw_send(p.fds[1], "no frame", 8, NULL, 0, false));
	apart_settle(&p);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_VIOLATION);
	only(p.loop_a, 0, WH_TRACE_VIOLATION);
	cr_assert_eq(only(p.loop_a, 0, WH_TRACE_CLOSE)->a, WHARF_CLOSE_VIOLATION);
	cr_assert_eq(p.loop_a->stats->violations, 1);
	close(p.fds[1]);
	apart_free(&p);
}

Test(trace, a_full_socket_and_a_sleep)
{
	static char bytes[16384];
	int size = 24576;
	unsigned n = 0;
	struct apart p;

	need_frames_to_wait_for_turns();
	apart_open(&p, &traced, NULL, NULL);
	/* So small that a frame or two fill it. */
	cr_assert_eq(setsockopt(p.fds[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)), 0);
	for (; n < 100 && !stats_of(p.a.port).tx_socket_full; n++) {
		cr_assert_eq(wharf_send_bytes(p.a.port, 1, bytes, sizeof(bytes)), 0);
		cr_assert_geq(wharf_loop_step(p.loop_a, 0), 0);
	}
	cr_assert_geq(count(p.loop_a, 0, WH_TRACE_FULL), 1);
	cr_assert(p.a.port->stats->flags & WH_STATS_STUCK);
	cr_assert_eq(p.loop_a->stats->n_waiting, 1);
	apart_settle(&p);
	cr_assert_eq(p.b.n_messages, n);
	cr_assert_eq(p.loop_a->stats->n_waiting, 0);
	uint64_t a = written(p.loop_a);
	cr_assert_eq(wharf_loop_step(p.loop_a, 1000), 0);
	cr_assert_leq(only(p.loop_a, a, WH_TRACE_SLEEP)->a, 1000);
	apart_free(&p);
}

/* ---- How much ---- */

static uint64_t sent_of_kind(const wharf_loop *loop, uint64_t from, enum wh_stats_event kind)
{
	const struct wh_stats_trace *ring = ring_of(loop);
	uint64_t n = 0;

	for (uint64_t i = from; i < ring->head; i++) {
		const struct wh_stats_entry *e = entry(ring, i);
		n += e->kind == kind ? 1 : e->kind == WH_TRACE_SKIPPED && e->b == kind ? e->a : 0;
	}
	return n;
}

Test(trace, what_is_frequent_is_counted)
{
	enum { N = 500 };
	struct apart p;

	apart_open(&p, &traced, NULL, NULL);
	wharf_pool *pool = wharf_port_pool(p.a.port);
	cr_assert_geq(wharf_loop_step(p.loop_a, 0), 0);
	uint64_t a = written(p.loop_a), b = written(p.loop_b);
	for (int i = 0; i < N; i++)
		send_claimed(p.a.port, pool, 64, i);
	apart_settle(&p);
	cr_assert_eq(p.b.n_messages, N);
	cr_assert_eq(count(p.loop_a, a, WH_TRACE_SEND), 16);
	cr_assert_eq(count(p.loop_a, a, WH_TRACE_CLAIM), 16);
	cr_assert_eq(sent_of_kind(p.loop_a, a, WH_TRACE_SEND), N);
	cr_assert_eq(sent_of_kind(p.loop_a, a, WH_TRACE_CLAIM), N);
	cr_assert_eq(sent_of_kind(p.loop_b, b, WH_TRACE_RECEIVE), N);
	cr_assert_geq(count(p.loop_b, b, WH_TRACE_RECEIVE), 16);
	apart_free(&p);
}

Test(trace, what_comes_back_is_frequent_too)
{
	enum { N = 4000, BYTES = 256 };
	struct wharf_port_options o = { .size = sizeof(o), .pool_bytes_max = N * BYTES };
	struct apart p;

	apart_open(&p, &traced, &o, NULL);
	wharf_pool *pool = wharf_port_pool(p.a.port);
	for (int i = 0; i < N / 2; i++)
		send_claimed(p.a.port, pool, BYTES, i);
	apart_settle(&p);
	cr_assert_geq(wharf_loop_step(p.loop_a, 0), 0);
	/* So much before the next turn that all of it has to come back. */
	uint64_t a = written(p.loop_a);
	for (int i = 0; i < N - 100; i++)
		send_claimed(p.a.port, pool, BYTES, i);
	cr_assert_eq(count(p.loop_a, a, WH_TRACE_RETURN), 16);
	apart_settle(&p);
	cr_assert_gt(sent_of_kind(p.loop_a, a, WH_TRACE_RETURN), 16);
	apart_free(&p);
}

Test(trace, the_ring_goes_round)
{
	struct apart p;

	apart_open(&p, &traced, NULL, NULL);
	const struct wh_stats_trace *ring = ring_of(p.loop_a);
	while (ring->head < 2 * ring->n_entries) {
		cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), 0);
		apart_settle(&p);
	}
	for (uint64_t i = ring->head - ring->n_entries; i < ring->head; i++) {
		cr_assert_lt(entry(ring, i)->kind, WH_TRACE_KINDS);
		cr_assert_neq(entry(ring, i)->kind, 0);
	}
	apart_free(&p);
}

/* ---- How long ---- */

static void say(struct apart *p)
{
	cr_assert_eq(wharf_send_bytes(p->a.port, 1, "x", 1), 0);
	apart_settle(p);
}

Test(trace, it_lasts_as_long_as_it_is_wished_for)
{
	struct apart p;

	apart_open(&p, NULL, NULL, NULL);
	struct wh_trace_wish *wish = map_wish();
	say(&p);
	cr_assert_eq(p.loop_a->stats->trace, 0);
	cr_assert_eq(wh_watched.loops, 0);
	wish->until_ns = monotonic_ns() + 30000000000;
	say(&p);
	cr_assert_eq(wh_watched.loops, 2);
	cr_assert_geq(written(p.loop_b), 1);
	uint64_t a = written(p.loop_a);
	say(&p);
	only(p.loop_a, a, WH_TRACE_SEND);
	/* Only some. */
	wish->kinds = 1u << WH_TRACE_FRAME_OUT;
	say(&p);
	a = written(p.loop_a);
	say(&p);
	cr_assert_eq(written(p.loop_a) - a, count(p.loop_a, a, WH_TRACE_FRAME_OUT));
	/* Over: it ends by itself, and what was written stays to be read. */
	wish->kinds = 0;
	wish->until_ns = monotonic_ns() - 1;
	say(&p);
	a = written(p.loop_a);
	cr_assert_gt(a, 0);
	cr_assert_eq(wh_watched.any, 0);
	cr_assert(!(p.loop_a->stats->flags & WH_STATS_TRACING));
	say(&p);
	cr_assert_eq(written(p.loop_a), a);
	/* And again. */
	wish->flags = WH_TRACE_EVERY;
	wish->until_ns = monotonic_ns() + 30000000000;
	say(&p);
	a = written(p.loop_a);
	for (int i = 0; i < 100; i++)
		cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), 0);
	apart_settle(&p);
	cr_assert_eq(count(p.loop_a, a, WH_TRACE_SEND), 100);
	cr_assert_eq(count(p.loop_a, a, WH_TRACE_SKIPPED), 0);
	apart_free(&p);
	cr_assert_eq(wh_watched.any, 0);
	wish->until_ns = 0;
	munmap(wish, 4096);
}

Test(trace, whatever_is_written_into_the_wish_is_harmless)
{
	struct harness_random random = { harness_seed() };
	struct apart p;

	apart_open(&p, NULL, NULL, NULL);
	struct wh_trace_wish *wish = map_wish();
	wish->until_ns = UINT64_MAX;
	say(&p);
	cr_assert_eq(p.loop_a->stats->trace, 0);
	wish->until_ns = monotonic_ns() + 3600000000000;
	say(&p);
	cr_assert_eq(p.loop_a->stats->trace, 0);
	for (int i = 0; i < 300; i++) {
		for (size_t k = 0; k < 4096 / sizeof(uint64_t); k++)
			((uint64_t *)(void *)wish)[k] = harness_random_next(&random);
		if (harness_random_below(&random, 2))
			wish->until_ns = monotonic_ns() + harness_random_below(&random, 10000000);
		say(&p);
	}
	cr_assert_eq(p.b.n_messages, 302);
	apart_free(&p);
	memset(wish, 0, 4096);
	munmap(wish, 4096);
}

static uint64_t fixed_ns = 5;

static uint64_t fixed_clock(void *user)
{
	(void)user;
	return fixed_ns;
}

Test(trace, a_loop_with_a_clock_of_its_own_is_asked_by_the_clock_of_all)
{
	const struct wharf_loop_options own = { .size = sizeof(own), .clock_ns = fixed_clock };
	struct apart p;

	apart_open(&p, &own, NULL, NULL);
	struct wh_trace_wish *wish = map_wish();
	wish->until_ns = monotonic_ns() + 30000000000;
	say(&p);
	cr_assert(p.loop_a->stats->flags & WH_STATS_TRACING);
	wish->until_ns = monotonic_ns() - 1;
	say(&p);
	cr_assert(!(p.loop_a->stats->flags & WH_STATS_TRACING));
	apart_free(&p);
	munmap(wish, 4096);
}

static int forked(void *user)
{
	wharf_loop *loop;

	(void)user;
	HARNESS_REQUIRE(wharf_fork_child() == 0);
	HARNESS_REQUIRE(wh_watched.loops == 0);
	HARNESS_REQUIRE(wharf_loop_new(NULL, &loop) == 0);
	HARNESS_REQUIRE(wharf_loop_step(loop, 0) >= 0);
	HARNESS_REQUIRE(!(loop->stats->flags & WH_STATS_TRACING) && wh_usual());
	wharf_loop_free(loop);
	return 0;
}

Test(trace, a_forked_child_does_not_go_on_with_it)
{
	struct apart p;

	apart_open(&p, &traced, NULL, NULL);
	cr_assert_eq(wh_watched.loops, 2);
	cr_assert_eq(harness_run(forked, NULL, 10000), 0);
	cr_assert_eq(wh_watched.loops, 2);
	apart_free(&p);
}

Test(trace, loops_that_come_and_go_leave_nothing_switched_on)
{
	wharf_loop *loop;

	for (int i = 0; i < 50; i++) {
		cr_assert_eq(wharf_loop_new(&traced, &loop), 0);
		cr_assert_geq(wharf_loop_step(loop, 0), 0);
		cr_assert_eq(wh_watched.loops, 1);
		wharf_loop_free(loop);
		cr_assert_eq(wh_watched.any, 0);
	}
	const struct wharf_loop_options both = { .size = sizeof(both), .flags = WHARF_LOOP_TRACE | WHARF_LOOP_UNSEEN };
	cr_assert_eq(wharf_loop_new(&both, &loop), -EINVAL);
}
