/* SPDX-License-Identifier: MIT */
/* A crew: the processes of one repetition. When one of them fails the others are ended, and the cause is told. */
#ifndef BENCH_CREW_H
#define BENCH_CREW_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "outcome.h"

enum { CREW_MAX = 64 };

struct crew_member {
	const char *name;
	struct outcome *outcome; /* in memory that it shares with us */
	pid_t pid;               /* 0: reaped */
	int pidfd;
	int status;
	bool killed;             /* by us */
};

struct crew {
	const char *what; /* comes first in each line on stderr */
	struct crew_member members[CREW_MAX];
	size_t n;
};

/*
 * A pinned child that joins the crew. 0 in the child, which leaves by crew_leave; else its id, or a negative errno. A
 * child whose descriptor could not be made has joined all the same.
 */
pid_t crew_fork(struct crew *crew, const char *name, int cpu, struct outcome *outcome);
_Noreturn void crew_leave(struct outcome *outcome, int error);

/*
 * Waits for all of them. timeout_ms without news: they hang. 0; -EIO: one failed, or they hang; another negative errno.
 * Told in one line on stderr.
 */
int crew_wait(struct crew *crew, int timeout_ms);

/* Ends who is left. */
void crew_fini(struct crew *crew);

void crew_report(const struct crew *crew, const char *who, const char *text);

#endif
