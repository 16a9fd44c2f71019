/* SPDX-License-Identifier: MIT */
/*
 * A side: one of the two processes of a repetition. It counts and checks what arrives, and keeps the times.
 *
 * A repetition's first messages warm it up: they are checked like the others, and not timed.
 */
#ifndef BENCH_SIDE_H
#define BENCH_SIDE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "clock.h"
#include "outcome.h"
#include "touch.h"

/* What one repetition does; both sides have the same. */
struct plan {
	size_t size;
	size_t reply_size; /* calls; size is of a request */
	size_t inflight;   /* calls: requests on their way at most */
	enum touch touch;
	uint64_t warm;     /* messages (or round trips, or calls) before the clocks start; at least 1 */
	uint64_t messages; /* of all, those included */
	bool spin;         /* poll instead of sleeping */
	bool block;        /* wharf: a sender without room sleeps until on_writable */
	size_t inline_max; /* wharf: up to this size as bytes, not in a buffer */
	size_t pool_bytes; /* wharf; 0: the library's default */
	size_t frame_bytes; /* wharf; 0: the library's default */
	size_t rx_buffers; /* wharf; 0: the library's default */
	uint32_t engine, loop_flags; /* wharf: of loops */
	size_t sndbuf;     /* sockets: SO_SNDBUF */
};

struct side {
	const struct plan *plan;
	struct outcome *outcome;
	uint32_t *latencies_ns; /* one for each timed round trip or call */
	size_t in_bytes;        /* of each message that arrives here; the plan's size */
	void *link;             /* the transport's */
	/* System calls made until now: what the transport answers, or where it has no answer, counts here. */
	uint64_t (*system_calls)(const struct side *side);
	uint64_t n_system_calls;
	uint64_t count, sum;    /* of messages taken */
	uint64_t mark;          /* count at which the clocks start, then stop */
	uint64_t bad_at, bad_seq; /* the first message that was not the expected one */
	bool bad;
};

void side_init(struct side *side, const struct plan *plan, struct outcome *outcome, uint32_t *latencies_ns);

/* Keeps a line for the runner: as outcome_fail. */
#define side_fail(side, ...) outcome_fail((side)->outcome, __VA_ARGS__)

static inline uint64_t side_system_calls(const struct side *side)
{
	return side->system_calls ? side->system_calls(side) : side->n_system_calls;
}

static inline void side_start(struct side *side) { outcome_start(side->outcome, side_system_calls(side)); }
static inline void side_stop(struct side *side) { outcome_stop(side->outcome, side_system_calls(side)); }

/* side_take's clocks. */
void side_reach_mark(struct side *side);
void side_note_bad(struct side *side, uint64_t due, uint64_t seq);

/* Reads the message `due`, which arrived. The clocks start after the last warming one and stop after the last. */
static inline void side_take_as(struct side *side, const void *payload, uint64_t due)
{
	uint64_t seq = touch_seq(payload);

	if (__builtin_expect(seq != due, 0))
		side_note_bad(side, due, seq);
	side->sum += touch_read(side->plan->touch, payload, side->in_bytes);
	if (__builtin_expect(++side->count == side->mark, 0))
		side_reach_mark(side);
}

/* The same where messages arrive in order. */
static inline void side_take(struct side *side, const void *payload)
{
	side_take_as(side, payload, side->count);
}

/* All arrived, where they were due, with the right contents. 0; -EBADMSG. */
int side_check(struct side *side);

/* The time of a round trip or call, when it is one of those that count. */
static inline void side_note_latency(struct side *side, uint64_t seq, uint64_t latency_ns)
{
	uint64_t warm = side->plan->warm;

	if (seq >= warm)
		side->latencies_ns[seq - warm] = latency_ns < UINT32_MAX ? (uint32_t)latency_ns : UINT32_MAX;
}

#endif
