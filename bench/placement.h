/* SPDX-License-Identifier: MIT */
/*
 * Placement: whether the two CPUs were near each other or far apart.
 *
 * The CPUs of a virtual machine are moved between cores that share a cache and cores that do not, for seconds at a
 * time, and figures change up to 25-fold. So each repetition is probed before and after, and only like placements are
 * compared.
 */
#ifndef BENCH_PLACEMENT_H
#define BENCH_PLACEMENT_H

#include <stdbool.h>
#include <stddef.h>

enum place {
	PLACE_NEAR,
	PLACE_FAR,
	PLACE_MOVED, /* one before the repetition, the other after it: compared with nothing */
};

enum { PLACES = 2 }; /* those that are compared */

struct placement {
	double *rtts_ns; /* every probe so far, ascending */
	size_t n, capacity;
	double fixed_ns; /* threshold given by the user; 0: found from the data */
	double threshold_ns; /* round trips below are near */
	bool found;      /* the data fall into two groups; else the threshold is a constant, or the user's */
};

void placement_init(struct placement *placement, double fixed_ns);
void placement_fini(struct placement *placement);

/* Moves the threshold, too. 0; -ENOMEM. */
int placement_add(struct placement *placement, double rtt_ns);

enum place placement_of(const struct placement *placement, double before_ns, double after_ns);

/* The shortest and the longest round trip; NAN: there was none. */
void placement_range(const struct placement *placement, double *ret_min_ns, double *ret_max_ns);

const char *placement_name(enum place place);

#endif
