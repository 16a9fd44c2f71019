/* SPDX-License-Identifier: MIT */
/*
 * Fairness: a round trip of small messages with a receiver, while large messages flood.
 *
 * On two CPUs the flood takes time from the small port in two ways: its processes compete for the CPUs, and its
 * messages for the receiver's loop. So it is measured three times: without a flood; with the same flood between the
 * same CPUs, but received by another process; and with a flood into the same loop. The first two differ by what the
 * kernel's scheduler makes of it, the last two by what the loop does.
 */
#ifndef BENCH_FAIRNESS_H
#define BENCH_FAIRNESS_H

#include "repetition.h"

enum scenario {
	SCENARIO_QUIET,
	SCENARIO_ELSEWHERE,
	SCENARIO_FLOOD,
	SCENARIOS,
};

extern const char *const fairness_scenarios[SCENARIOS];

/* What a sample has besides. */
enum fairness_extra {
	FAIRNESS_FLOOD,       /* what all flooding ports carried together, in 10^9 bytes per second */
	FAIRNESS_EXTRAS,
};

extern const char *const fairness_extras[];

/* As repetition_run. plan.size and plan.messages are of the small port. */
int fairness_run(const struct repetition *repetition, struct sample *ret_sample, char ret_detail[OUTCOME_DETAIL_MAX]);

#endif
