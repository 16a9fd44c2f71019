/* SPDX-License-Identifier: MIT */
/* A side: its clocks, and the check of what it took. */
#include "side.h"

#include <errno.h>
#include <inttypes.h>

void side_init(struct side *side, const struct plan *plan, struct outcome *outcome, uint32_t *latencies_ns)
{
	*side = (struct side){
		.plan = plan,
		.outcome = outcome,
		.latencies_ns = latencies_ns,
		.in_bytes = plan->size,
		.mark = plan->warm,
	};
}

void side_reach_mark(struct side *side)
{
	if (side->count == side->plan->messages) {
		side_stop(side);
	} else {
		side->mark = side->plan->messages;
		side_start(side);
	}
}

void side_note_bad(struct side *side, uint64_t due, uint64_t seq)
{
	if (side->bad)
		return;
	side->bad = true;
	side->bad_at = due;
	side->bad_seq = seq;
}

int side_check(struct side *side)
{
	const struct plan *plan = side->plan;
	uint64_t expected = touch_expected(plan->touch, side->in_bytes, plan->messages);

	if (side->count != plan->messages)
		return side_fail(side, -EBADMSG, "%" PRIu64 " messages arrived of %" PRIu64, side->count,
			plan->messages);
	if (side->bad)
		return side_fail(side, -EBADMSG, "message %" PRIu64 " arrived where %" PRIu64 " was due", side->bad_seq,
			side->bad_at);
	if (side->sum != expected)
		return side_fail(side, -EBADMSG, "contents differ: their sum is %#" PRIx64 " and not %#" PRIx64,
			side->sum, expected);
	return 0;
}
