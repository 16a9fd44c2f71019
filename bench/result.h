/* SPDX-License-Identifier: MIT */
/* Results: what was measured, and what it comes to. */
#ifndef BENCH_RESULT_H
#define BENCH_RESULT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "options.h"
#include "placement.h"
#include "stats.h"

enum { RESULT_EXTRAS_MAX = 24 };

/* One repetition. */
struct sample {
	double rtt_before_ns, rtt_after_ns;
	double seconds;
	double per_second;           /* messages, round trips, or calls */
	double cpu_ns[2];            /* per message (or round trip, or call): sender's and receiver's */
	double system_calls[2];      /* likewise; not of fairness */
	struct latency latency;      /* of round trips and calls */
	double extras[RESULT_EXTRAS_MAX]; /* what the command has besides: results_extras */
};

/* All repetitions of one size and column. */
struct cell {
	uint64_t messages;           /* of each repetition, the warming ones not included */
	char detail[OUTCOME_DETAIL_MAX];
	struct sample samples[OPTIONS_REPEAT_MAX];
	size_t n;
};

struct results {
	const struct options *options;
	struct placement placement;
	struct cell *cells;          /* size by size */
	unsigned repeated;           /* because the CPUs moved, or were not where they had to be */
	unsigned missing;            /* patience was over */
};

/* 0; -ENOMEM. */
int results_init(struct results *results, const struct options *options);
void results_fini(struct results *results);

struct cell *results_cell(const struct results *results, size_t size, size_t column);

/* The repetitions of one size and column in one placement. */
struct row {
	size_t n;
	struct spread per_second;
	double gb_per_second;        /* 10^9 bytes, at the median */
	double cpu_ns[2];            /* medians */
	double system_calls[2];
	double rtt_min_ns, rtt_max_ns;
	/* Of round trips and calls, in ns: medians of the repetitions' p50 and so on, and the greatest maximum. */
	struct spread p50;
	double p99, p999, max;
	double extras[RESULT_EXTRAS_MAX]; /* medians */
	double ratio;                /* to its base's row of the same size and placement; NAN: that has none */
};

/* False: there are none. */
bool results_row(const struct results *results, size_t size, size_t column, enum place place, struct row *ret_row);

/* How many times as long round trips take in a column as in another one. NAN: not measured in this placement. */
struct against {
	double p50, p99;
};

struct against results_against(const struct results *results, size_t size, size_t column, size_t other,
	enum place place);

/* The row's figure that ratios are made of: messages per second, or the p50. */
double results_figure(const struct results *results, const struct row *row);

/* Names of a sample's extras, ended by NULL. */
const char *const *results_extras(const struct results *results);

/* Figures are round trips, not one way. */
bool results_of_round_trips(const struct results *results);

/* Each of them is timed: round trips and calls. */
bool results_timed(const struct results *results);

struct verdict {
	bool measured, met;
	enum place place;
	double ratio;
};

struct verdict results_judge(const struct results *results, const struct requirement *requirement);

/* How many repetitions count as near, far, and (found only with all probes known) moved. */
void results_count(const struct results *results, unsigned ret_counts[PLACES + 1]);

#endif
