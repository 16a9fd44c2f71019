/* SPDX-License-Identifier: MIT */
/* A repetition: fresh processes, so many messages. This is the one of two sides and a transport. */
#ifndef BENCH_REPETITION_H
#define BENCH_REPETITION_H

#include "options.h"
#include "result.h"

struct repetition {
	const struct options *options;
	const struct column *column;
	const int *cpus;
	int timeout_ms; /* longer than this, and it hangs */
	struct plan plan;
};

/* What a sample of calls has besides. */
enum call_extra {
	CALL_REPLY_GB,   /* what the replies carried, in 10^9 bytes per second */
	CALL_IN_FLIGHT,  /* mean number of calls on their way */
	CALL_EXTRAS,
};

extern const char *const call_extras[];

/*
 * Fills *ret_sample but for the placement, and ret_detail unless it is NULL. 0; -EIO: a side failed, or nothing was
 * heard of it for too long; another negative errno. Told in one line on stderr.
 */
int repetition_run(const struct repetition *repetition, struct sample *ret_sample, char ret_detail[OUTCOME_DETAIL_MAX]);

#endif
