/* SPDX-License-Identifier: MIT */
/* Fan-in: many ports on one receiving loop, all of them sent to at once by one process or a few. */
#ifndef BENCH_FANIN_H
#define BENCH_FANIN_H

#include "repetition.h"

/* What a sample has besides; memory is the receiver's. */
enum fanin_extra {
	FANIN_SENDERS,
	FANIN_OPEN_SECONDS,   /* until all ports were open */
	FANIN_CLOSE_SECONDS,  /* until all were closed */
	FANIN_SLOWEST,        /* when the last port had all of its messages, in times of when the median port had */
	FANIN_COUNT_MIN,      /* when half of all messages had arrived: the fewest and the most that one port had, */
	FANIN_COUNT_MAX,      /* in times of the mean */
	FANIN_IDLE,           /* per port that is open, and was not used: five figures, as FANIN_ACTIVE */
	FANIN_IDLE_HEAP = FANIN_IDLE,
	FANIN_IDLE_CONTROL,
	FANIN_IDLE_RSS,
	FANIN_IDLE_FDS,
	FANIN_IDLE_MAPPINGS,
	FANIN_ACTIVE,         /* per port, when the last message has arrived */
	FANIN_ACTIVE_HEAP = FANIN_ACTIVE,
	FANIN_ACTIVE_CONTROL,
	FANIN_ACTIVE_RSS,
	FANIN_ACTIVE_FDS,
	FANIN_ACTIVE_MAPPINGS,
	FANIN_EXTRAS,
};

/* Their names, in that order, ended by NULL. */
extern const char *const fanin_extras[];

/* Raises RLIMIT_NOFILE as far as it goes. 0; -EMFILE: it is too low for some number of ports; told in one line. */
int fanin_prepare(const struct options *options);

/* Of each port, warming ones not included: fewer lie in its pool all at once, and who is first tells nothing. */
uint64_t fanin_messages_min(const struct plan *plan, size_t ports);

/* As repetition_run. plan.messages and plan.warm are of each port. */
int fanin_run(const struct repetition *repetition, struct sample *ret_sample, char ret_detail[OUTCOME_DETAIL_MAX]);

#endif
