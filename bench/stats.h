/* SPDX-License-Identifier: MIT */
/* Statistics over a handful of repetitions, and exact percentiles over all samples of one. */
#ifndef BENCH_STATS_H
#define BENCH_STATS_H

#include <stddef.h>
#include <stdint.h>

struct spread {
	double min, median, max;
};

/* Sorts values in place; n > 0. The median of an even number is the mean of the two in the middle. */
struct spread stats_spread(double *values, size_t n);

struct latency {
	uint32_t p50_ns, p99_ns, p999_ns, max_ns;
};

/* Sorts samples in place; n > 0. */
struct latency stats_latency(uint32_t *samples_ns, size_t n);

/* Nearest rank: the smallest sample that at least `permille` of all do not exceed. n > 0, permille up to 1000. */
uint32_t stats_percentile(const uint32_t *sorted, size_t n, unsigned permille);

#endif
