/* SPDX-License-Identifier: MIT */
/* Placement: parting probes into near and far. */
#include "placement.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Seen: 40 to 130 ns near, 450 to 510 ns far. The default lies in their (geometric) middle. */
#define NEAR_SEEN_NS 130.0
#define THRESHOLD_NS 250.0

/* A gap this wide parts two placements: far is 3.5 times near or more, and near alone has groups at 42 and 110. */
#define GAP 3.0

/* Beyond this multiple of the shortest round trip a probe was disturbed: the gap before it means nothing. */
#define DISTURBED 24.0

void placement_init(struct placement *placement, double fixed_ns)
{
	*placement = (struct placement){
		.fixed_ns = fixed_ns,
		.threshold_ns = fixed_ns > 0 ? fixed_ns : THRESHOLD_NS,
	};
}

void placement_fini(struct placement *placement)
{
	free(placement->rtts_ns);
	*placement = (struct placement){ .n = 0 };
}

/* The (geometric) middle of the widest gap; 0: there is none that parts near from far. */
static double find_gap(const double *rtts, size_t n)
{
	double widest = GAP, middle = 0;

	for (size_t i = 1; i < n && rtts[i] <= rtts[0] * DISTURBED; i++) {
		double between = sqrt(rtts[i - 1] * rtts[i]);

		if (rtts[i] >= rtts[i - 1] * widest && between > NEAR_SEEN_NS) {
			widest = rtts[i] / rtts[i - 1];
			middle = between;
		}
	}
	return middle;
}

int placement_add(struct placement *placement, double rtt_ns)
{
	size_t at = placement->n;

	if (placement->n == placement->capacity) {
		size_t capacity = placement->capacity ? placement->capacity * 2 : 64;
		double *rtts_ns = reallocarray(placement->rtts_ns, capacity, sizeof *rtts_ns);

		if (!rtts_ns)
			return -ENOMEM;
		placement->rtts_ns = rtts_ns;
		placement->capacity = capacity;
	}
	while (at > 0 && placement->rtts_ns[at - 1] > rtt_ns)
		at--;
	memmove(placement->rtts_ns + at + 1, placement->rtts_ns + at, (placement->n - at) * sizeof *placement->rtts_ns);
	placement->rtts_ns[at] = rtt_ns;
	placement->n++;
	if (placement->fixed_ns <= 0) {
		double threshold_ns = find_gap(placement->rtts_ns, placement->n);

		placement->found = threshold_ns > 0;
		placement->threshold_ns = placement->found ? threshold_ns : THRESHOLD_NS;
	}
	return 0;
}

enum place placement_of(const struct placement *placement, double before_ns, double after_ns)
{
	enum place before = before_ns < placement->threshold_ns ? PLACE_NEAR : PLACE_FAR;
	enum place after = after_ns < placement->threshold_ns ? PLACE_NEAR : PLACE_FAR;

	return before == after ? before : PLACE_MOVED;
}

void placement_range(const struct placement *placement, double *ret_min_ns, double *ret_max_ns)
{
	*ret_min_ns = placement->n ? placement->rtts_ns[0] : (double)NAN;
	*ret_max_ns = placement->n ? placement->rtts_ns[placement->n - 1] : (double)NAN;
}

const char *placement_name(enum place place)
{
	switch (place) {
	case PLACE_NEAR:
		return "near";
	case PLACE_FAR:
		return "far";
	case PLACE_MOVED:
		return "moved";
	}
	return "unknown";
}
