/* SPDX-License-Identifier: MIT */
/* Two ports on a loop each, stepped in turn by one thread: what one end does alone shows as that. */
#ifndef APART_H
#define APART_H

#include <criterion/criterion.h>
#include <string.h>
#include <time.h>

#include "harness.h"
#include "pair.h"

struct apart {
	wharf_loop *loop_a, *loop_b; /* NULL: there is none, or it was freed */
	struct end a, b;
	int fds[2];                  /* the ports', or the bare socket of a peer made by hand */
};

static inline void apart_end(wharf_loop *loop, int fd, struct end *end, const struct wharf_port_options *options)
{
	struct wharf_port_options o;

	WHARF_INIT(&o);
	if (options)
		o = *options;
	o.ops = &end_ops;
	o.user = end;
	cr_assert_eq(wharf_open(loop, fd, &o, &end->port), 0);
}

/* Like wharf_loop_new, for b: a peer's engine may be another one. */
static inline int apart_peer_loop(const struct wharf_loop_options *options, wharf_loop **ret_loop)
{
	int error;

	harness_engine_of(true);
	error = wharf_loop_new(options, ret_loop);
	harness_engine_of(false);
	return error;
}

/* Opens a alone; fds[1] is the bare socket of its peer. */
static inline void apart_half(struct apart *ret_apart, const struct wharf_loop_options *loop_options,
	const struct wharf_port_options *options)
{
	*ret_apart = (struct apart){ 0 };
	cr_assert_eq(wharf_loop_new(loop_options, &ret_apart->loop_a), 0);
	cr_assert_eq(wharf_pair(ret_apart->fds), 0);
	apart_end(ret_apart->loop_a, ret_apart->fds[0], &ret_apart->a, options);
}

/* Steps each loop in turn until nothing moves any more. */
static inline void apart_settle(struct apart *apart)
{
	int quiet = 0;

	/* What one sends, the other answers in the same round; a round more for what it queues in its answer. */
	for (int i = 0; i < 100000 && quiet < 6; i++) {
		int more_a = apart->loop_a ? wharf_loop_step(apart->loop_a, 0) : 0;
		int more_b = apart->loop_b ? wharf_loop_step(apart->loop_b, 0) : 0;
		cr_assert(more_a >= 0 && more_b >= 0, "step: %d, %d", more_a, more_b);
		quiet = more_a || more_b ? 0 : quiet + 1;
	}
	cr_assert_eq(quiet, 6, "the loops never come to rest");
}

/* Opens both, and steps until both are open. loop_options are those of both loops. */
static inline void apart_open(struct apart *ret_apart, const struct wharf_loop_options *loop_options,
	const struct wharf_port_options *a_options, const struct wharf_port_options *b_options)
{
	apart_half(ret_apart, loop_options, a_options);
	cr_assert_eq(apart_peer_loop(loop_options, &ret_apart->loop_b), 0);
	apart_end(ret_apart->loop_b, ret_apart->fds[1], &ret_apart->b, b_options);
	apart_settle(ret_apart);
	cr_assert_eq(ret_apart->a.n_open, 1);
	cr_assert_eq(ret_apart->b.n_open, 1);
}

/* Steps both until *flag is set by another thread; fails the test after five seconds. */
static inline void apart_settle_until(struct apart *apart, const _Atomic bool *flag)
{
	struct timespec start, now;

	clock_gettime(CLOCK_MONOTONIC, &start);
	while (!*flag) {
		cr_assert_geq(wharf_loop_step(apart->loop_a, 1000000), 0);
		cr_assert_geq(wharf_loop_step(apart->loop_b, 1000000), 0);
		clock_gettime(CLOCK_MONOTONIC, &now);
		cr_assert_lt(now.tv_sec - start.tv_sec, 5, "waited too long");
	}
}

static inline void apart_free(struct apart *apart)
{
	apart->loop_a = wharf_loop_free(apart->loop_a);
	apart->loop_b = wharf_loop_free(apart->loop_b);
	cr_assert_null(apart->loop_a);
	cr_assert_null(apart->loop_b);
}

/* ---- What tests of one end need besides ---- */

static inline struct wharf_port_stats stats_of(wharf_port *port)
{
	struct wharf_port_stats stats;

	WHARF_INIT(&stats);
	cr_assert_eq(wharf_port_stats(port, &stats), 0);
	return stats;
}

static inline wharf_pool *shared_pool(uint64_t bytes_max)
{
	wharf_pool *pool;

	cr_assert_eq(wharf_pool_new(WHARF_OPT(pool, .shared = 1, .bytes_max = bytes_max), &pool), 0);
	return pool;
}

/* Claims, fills and sends. */
static inline void send_claimed(wharf_port *port, wharf_pool *pool, size_t size, int value)
{
	struct wharf_buf buf;

	cr_assert_eq(wharf_buf_claim(pool, size, &buf), 0);
	memset(buf.data, value, buf.size);
	cr_assert_eq(wharf_send_buf(port, 1, &buf), 0);
}

#endif
