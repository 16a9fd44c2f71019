/* SPDX-License-Identifier: MIT */
/* Results: rows and ratios out of repetitions. */
#include "result.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "fairness.h"
#include "fanin.h"
#include "repetition.h"

static_assert((int)FANIN_EXTRAS <= (int)RESULT_EXTRAS_MAX, "a sample holds them");
static_assert((int)CALL_EXTRAS <= (int)RESULT_EXTRAS_MAX, "a sample holds them");
static_assert((int)FAIRNESS_EXTRAS <= (int)RESULT_EXTRAS_MAX, "a sample holds them");

int results_init(struct results *results, const struct options *options)
{
	*results = (struct results){ .options = options };
	results->cells = calloc(options->sizes.n * options->n_columns, sizeof *results->cells);
	if (!results->cells)
		return -ENOMEM;
	placement_init(&results->placement, options->near_max_ns);
	return 0;
}

void results_fini(struct results *results)
{
	placement_fini(&results->placement);
	free(results->cells);
	results->cells = NULL;
}

struct cell *results_cell(const struct results *results, size_t size, size_t column)
{
	return &results->cells[size * results->options->n_columns + column];
}

static enum place place_of(const struct results *results, const struct sample *sample)
{
	return placement_of(&results->placement, sample->rtt_before_ns, sample->rtt_after_ns);
}

/* The row without its ratio. */
static bool summarise(const struct results *results, size_t size, size_t column, enum place place,
	struct row *ret_row)
{
	enum { PER_SECOND, CPU_SENDER, CPU_RECEIVER, CALLS_SENDER, CALLS_RECEIVER, P50, P99, P999, MAX, RTT_BEFORE,
		RTT_AFTER, EXTRAS };
	enum { FIGURES = EXTRAS + RESULT_EXTRAS_MAX };
	const struct cell *cell = results_cell(results, size, column);
	double values[FIGURES][OPTIONS_REPEAT_MAX];
	struct spread spreads[FIGURES];
	size_t n = 0;

	for (size_t i = 0; i < cell->n; i++) {
		const struct sample *sample = &cell->samples[i];

		if (place_of(results, sample) != place)
			continue;
		values[PER_SECOND][n] = sample->per_second;
		values[CPU_SENDER][n] = sample->cpu_ns[0];
		values[CPU_RECEIVER][n] = sample->cpu_ns[1];
		values[CALLS_SENDER][n] = sample->system_calls[0];
		values[CALLS_RECEIVER][n] = sample->system_calls[1];
		values[P50][n] = sample->latency.p50_ns;
		values[P99][n] = sample->latency.p99_ns;
		values[P999][n] = sample->latency.p999_ns;
		values[MAX][n] = sample->latency.max_ns;
		values[RTT_BEFORE][n] = sample->rtt_before_ns;
		values[RTT_AFTER][n] = sample->rtt_after_ns;
		for (int k = 0; k < RESULT_EXTRAS_MAX; k++)
			values[EXTRAS + k][n] = sample->extras[k];
		n++;
	}
	if (!n)
		return false;
	for (int i = 0; i < FIGURES; i++)
		spreads[i] = stats_spread(values[i], n);
	*ret_row = (struct row){
		.n = n,
		.per_second = spreads[PER_SECOND],
		.gb_per_second = spreads[PER_SECOND].median * (double)results->options->sizes.sizes[size] / 1e9,
		.cpu_ns = { spreads[CPU_SENDER].median, spreads[CPU_RECEIVER].median },
		.system_calls = { spreads[CALLS_SENDER].median, spreads[CALLS_RECEIVER].median },
		.rtt_min_ns = fmin(spreads[RTT_BEFORE].min, spreads[RTT_AFTER].min),
		.rtt_max_ns = fmax(spreads[RTT_BEFORE].max, spreads[RTT_AFTER].max),
		.p50 = spreads[P50],
		.p99 = spreads[P99].median,
		.p999 = spreads[P999].median,
		.max = spreads[MAX].max,
		.ratio = NAN,
	};
	for (int i = 0; i < RESULT_EXTRAS_MAX; i++)
		ret_row->extras[i] = spreads[EXTRAS + i].median;
	return true;
}

const char *const *results_extras(const struct results *results)
{
	static const char *const none[] = { NULL };

	switch (results->options->mode) {
	case MODE_FANIN:
		return fanin_extras;
	case MODE_FAIRNESS:
		return fairness_extras;
	case MODE_CALL:
		return call_extras;
	default:
		return none;
	}
}

bool results_of_round_trips(const struct results *results)
{
	return results->options->mode == MODE_LATENCY || results->options->mode == MODE_FAIRNESS;
}

bool results_timed(const struct results *results)
{
	return results_of_round_trips(results) || results->options->mode == MODE_CALL;
}

double results_figure(const struct results *results, const struct row *row)
{
	return results_of_round_trips(results) ? row->p50.median : row->per_second.median;
}

bool results_row(const struct results *results, size_t size, size_t column, enum place place, struct row *ret_row)
{
	struct row row, base;

	if (!summarise(results, size, column, place, &row))
		return false;
	if (summarise(results, size, results->options->columns[column].base, place, &base))
		row.ratio = results_figure(results, &row) / results_figure(results, &base);
	*ret_row = row;
	return true;
}

struct against results_against(const struct results *results, size_t size, size_t column, size_t other,
	enum place place)
{
	struct row a, b;

	if (!summarise(results, size, column, place, &a) || !summarise(results, size, other, place, &b))
		return (struct against){ NAN, NAN };
	return (struct against){ a.p50.median / b.p50.median, a.p99 / b.p99 };
}

struct verdict results_judge(const struct results *results, const struct requirement *requirement)
{
	struct verdict verdict = { .measured = false, .ratio = NAN };

	for (int place = 0; place < PLACES && !verdict.measured; place++) {
		struct row a, b;

		if (!summarise(results, requirement->size, requirement->a, (enum place)place, &a) ||
		    !summarise(results, requirement->size, requirement->b, (enum place)place, &b))
			continue;
		verdict.measured = true;
		verdict.place = (enum place)place;
		verdict.ratio = results_figure(results, &a) / results_figure(results, &b);
		verdict.met = requirement->at_most ? verdict.ratio <= requirement->bound
						   : verdict.ratio >= requirement->bound;
	}
	return verdict;
}

void results_count(const struct results *results, unsigned ret_counts[PLACES + 1])
{
	const struct options *options = results->options;

	for (int place = 0; place <= PLACES; place++)
		ret_counts[place] = 0;
	for (size_t i = 0; i < options->sizes.n * options->n_columns; i++)
		for (size_t k = 0; k < results->cells[i].n; k++)
			ret_counts[place_of(results, &results->cells[i].samples[k])]++;
}
