/* SPDX-License-Identifier: MIT */
/* Commands that look once, or twice for the rates, and print what they saw. */
#ifndef INSPECT_LOOK_H
#define INSPECT_LOOK_H

#include "options.h"
#include "subject.h"

/* Exit statuses. */
int look_list(const struct options *options);
int look_show(const struct options *options);
int look_rings(const struct options *options);
int look_ports(const struct options *options);
int look_chunks(const struct options *options);

/* What several commands look at: the processes that were named, or all, or a core dump. */
struct look {
	struct subject *subjects;
	bool all;
	size_t n;
	size_t n_hidden;   /* of all: processes that this user may not look at */
	size_t n_failed;   /* was said so on standard error, unless in `failures` */
	struct sockdiag diag;
	bool diag_taken;
};

enum look_flag {
	LOOK_RINGS = 1,
	LOOK_SOCKETS = 2,
	LOOK_SUSPECTS = 8, /* sockets of which the process does not know whether their peer reads */
	LOOK_QUIET = 4, /* does not tell of processes of other versions */
};

/* Opens them; look_close is owed in any case. False: told why, and there is nothing. */
bool look_open(struct look *look, const struct options *options, unsigned flags);
/* Another look at each; those that are gone are dropped, and told. */
void look_again(struct look *look, unsigned wants, unsigned flags);
/* Of all processes those that were not there yet. */
void look_for_more(struct look *look, unsigned flags);
void look_close(struct look *look);
void look_pause(uint64_t ns);

#endif
