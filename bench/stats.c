/* SPDX-License-Identifier: MIT */
/* Statistics: exact, by sorting. */
#include "stats.h"

#include <stdlib.h>

static int compare_double(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static int compare_u32(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

struct spread stats_spread(double *values, size_t n)
{
	struct spread spread;

	qsort(values, n, sizeof *values, compare_double);
	spread.min = values[0];
	spread.median = n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
	spread.max = values[n - 1];
	return spread;
}

uint32_t stats_percentile(const uint32_t *sorted, size_t n, unsigned permille)
{
	/* Whole numbers: 99.9 is no binary fraction, and a rank that is one off is another sample. */
	size_t rank = (n * permille + 999) / 1000;

	return sorted[rank ? rank - 1 : 0];
}

struct latency stats_latency(uint32_t *samples_ns, size_t n)
{
	qsort(samples_ns, n, sizeof *samples_ns, compare_u32);
	return (struct latency){
		.p50_ns = stats_percentile(samples_ns, n, 500),
		.p99_ns = stats_percentile(samples_ns, n, 990),
		.p999_ns = stats_percentile(samples_ns, n, 999),
		.max_ns = samples_ns[n - 1],
	};
}
