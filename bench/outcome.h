/* SPDX-License-Identifier: MIT */
/* An outcome: what a process of a repetition leaves in shared memory for the runner. */
#ifndef BENCH_OUTCOME_H
#define BENCH_OUTCOME_H

#include <stdbool.h>
#include <stdint.h>

enum {
	OUTCOME_ERROR_MAX = 200,
	OUTCOME_DETAIL_MAX = 64,
};

struct outcome {
	bool done;
	uint64_t start_ns, end_ns; /* CLOCK_MONOTONIC */
	uint64_t cpu_start_ns, cpu_end_ns;
	uint64_t calls_start, calls_end; /* of the system */
	uint64_t error_ns;
	char error[OUTCOME_ERROR_MAX]; /* one line, when it is not done */
	char detail[OUTCOME_DETAIL_MAX]; /* what the transport runs on */
};

/* Keeps the line for the runner unless there is one already. Returns error, a negative errno. */
__attribute__((format(printf, 3, 4))) int outcome_fail(struct outcome *outcome, int error, const char *format, ...);

/* The clocks; system_calls: made until now. */
void outcome_start(struct outcome *outcome, uint64_t system_calls);
void outcome_stop(struct outcome *outcome, uint64_t system_calls);

#endif
