/* SPDX-License-Identifier: MIT */
/* The runner: calibrates each size and column once, then goes round all of them, probing before and after each. */
#include "runner.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "fairness.h"
#include "fanin.h"
#include "probe.h"

enum {
	FIRST_MESSAGES = 32,
	MESSAGES_MAX = 1 << 30,
	ROUND_TRIPS_MAX = 1 << 22, /* their times are kept */
	INFLIGHT_TIMES = 4,        /* calls, of those in flight: the last ones find fewer and fewer beside them */
	WARM_PART = 10,            /* one in so many comes on top, to warm up */
	AGAIN_NS = 50000000,       /* how soon to look where the CPUs are now */

	/* One that takes longer than this, and so many times its length, hangs: far may be 25 times slower. */
	TIMEOUT_MS = 60000,
	TIMEOUT_FACTOR = 50,
};

/* A calibrating run must last this part of a repetition to be believed. */
#define CALIBRATION_PART 0.1

struct runner {
	struct results *results;
	const struct options *options;
	uint64_t patience_ns; /* what is left of it */
};

static int probe(const struct options *options, struct placement *placement, double *ret_rtt_ns)
{
	int r = probe_rtt(options->cpus[1], ret_rtt_ns);

	return r == 0 ? placement_add(placement, *ret_rtt_ns) : r;
}

static int complain(int error)
{
	fprintf(stderr, "wharf-bench: probe: %s\n",
		error == -ETIME ? "the two CPUs hardly ever run at the same time" : strerror(-error));
	return error;
}

static int run(const struct repetition *repetition, struct sample *ret_sample, char *ret_detail)
{
	switch (repetition->options->mode) {
	case MODE_FANIN:
		return fanin_run(repetition, ret_sample, ret_detail);
	case MODE_FAIRNESS:
		return fairness_run(repetition, ret_sample, ret_detail);
	default:
		return repetition_run(repetition, ret_sample, ret_detail);
	}
}

/* A size's and a column's part of the plan. */
static void fill_plan(const struct options *options, size_t size, size_t column, struct plan *plan)
{
	plan->size = options->sizes.sizes[size];
	plan->inflight = options->columns[column].inflight;
	plan->reply_size = options_reply_size(options, size);
	if (options->columns[column].variant) {
		plan->engine = options->columns[column].variant->engine;
		plan->loop_flags = options->columns[column].variant->loop_flags;
	}
}

static struct repetition repetition_of(const struct options *options, size_t size, size_t column, uint64_t messages)
{
	struct repetition repetition = {
		.options = options,
		.column = &options->columns[column],
		.cpus = options->cpus,
		.timeout_ms = TIMEOUT_MS + (int)(options->seconds * 1000 * TIMEOUT_FACTOR),
		.plan = options->plan,
	};

	fill_plan(options, size, column, &repetition.plan);
	repetition.plan.warm = messages / WARM_PART + 1;
	/* The first calls find nobody before them. */
	if (repetition.plan.warm < repetition.plan.inflight)
		repetition.plan.warm = repetition.plan.inflight;
	repetition.plan.messages = repetition.plan.warm + messages;
	return repetition;
}

static double messages_min(const struct options *options, size_t size, size_t column)
{
	struct plan plan = options->plan;

	fill_plan(options, size, column, &plan);
	if (options->mode == MODE_CALL)
		return (double)(INFLIGHT_TIMES * plan.inflight);
	return options->mode == MODE_FANIN ? (double)fanin_messages_min(&plan, options->columns[column].ports) : 1;
}

/* Finds out how many messages take about the time of a repetition. */
static int calibrate(struct runner *runner, size_t size, size_t column)
{
	const struct options *options = runner->options;
	struct cell *cell = results_cell(runner->results, size, column);
	double max = results_timed(runner->results) ? ROUND_TRIPS_MAX : MESSAGES_MAX;
	double min = messages_min(options, size, column);
	double messages = min > FIRST_MESSAGES ? min : FIRST_MESSAGES;

	for (bool last = false; !last;) {
		struct repetition repetition = repetition_of(options, size, column, (uint64_t)messages);
		struct sample sample;
		double factor;
		int r;

		r = run(&repetition, &sample, cell->detail);
		if (r < 0)
			return r;
		last = sample.seconds >= options->seconds * CALIBRATION_PART || messages >= max;
		/* The first runs are slow; a hundredfold step from one of them would be a guess. */
		factor = options->seconds / sample.seconds;
		if (!last && factor > 16)
			factor = 16;
		messages *= factor;
		if (messages < min)
			messages = min;
		if (messages > max)
			messages = max;
	}
	cell->messages = (uint64_t)messages;
	return 0;
}

static void nap(struct runner *runner)
{
	nanosleep(&(struct timespec){ .tv_nsec = AGAIN_NS }, NULL);
	runner->results->repeated++;
}

/* Takes what has passed since then off the patience. False: it is over. */
static bool be_patient(struct runner *runner, uint64_t since_ns)
{
	uint64_t passed_ns = clock_ns() - since_ns;

	runner->patience_ns = runner->patience_ns > passed_ns ? runner->patience_ns - passed_ns : 0;
	return runner->patience_ns > 0;
}

static bool counts(const struct runner *runner, double before_ns, double after_ns)
{
	enum place place = placement_of(&runner->results->placement, before_ns, after_ns);

	return place != PLACE_MOVED && (!runner->options->place_wanted || place == runner->options->place);
}

static void tell(const struct runner *runner, size_t size, size_t column, const struct sample *sample)
{
	char text[SIZE_TEXT_MAX];

	fprintf(stderr, "%6s  %-16s  rtt %4.0f..%-4.0f ns  %10.4f M/s  cpu %.0f + %.0f ns%s\n",
		size_print(runner->options->sizes.sizes[size], text), runner->options->columns[column].name,
		sample->rtt_before_ns, sample->rtt_after_ns, sample->per_second / 1e6, sample->cpu_ns[0],
		sample->cpu_ns[1],
		counts(runner, sample->rtt_before_ns, sample->rtt_after_ns) ? "" : "  does not count");
}

/* One repetition between two probes. Positive: it counts. 0: not, or a machine too busy to probe was in the way. */
static int try_once(struct runner *runner, const struct repetition *repetition, size_t size, size_t column,
	struct sample *ret_sample)
{
	struct placement *placement = &runner->results->placement;
	double before_ns, after_ns;
	int r;

	r = probe(runner->options, placement, &before_ns);
	if (r < 0)
		return r == -ETIME ? 0 : complain(r);
	if (!counts(runner, before_ns, before_ns))
		return 0;
	r = run(repetition, ret_sample, NULL);
	if (r < 0)
		return r;
	r = probe(runner->options, placement, &after_ns);
	if (r < 0)
		return r == -ETIME ? 0 : complain(r);
	ret_sample->rtt_before_ns = before_ns;
	ret_sample->rtt_after_ns = after_ns;
	if (runner->options->verbose)
		tell(runner, size, column, ret_sample);
	return counts(runner, before_ns, after_ns);
}

/* One repetition that counts; when patience is over, none, or one that only the last threshold may make count. */
static int measure(struct runner *runner, size_t size, size_t column)
{
	struct cell *cell = results_cell(runner->results, size, column);
	struct repetition repetition = repetition_of(runner->options, size, column, cell->messages);

	for (;;) {
		struct sample sample;
		uint64_t start_ns = clock_ns();
		int r = try_once(runner, &repetition, size, column, &sample);

		if (r > 0)
			cell->samples[cell->n++] = sample;
		if (r != 0)
			return r < 0 ? r : 0;
		if (!be_patient(runner, start_ns)) {
			runner->results->missing++;
			return 0;
		}
		nap(runner);
	}
}

int runner_run(struct results *results)
{
	const struct options *options = results->options;
	struct runner runner = {
		.results = results,
		.options = options,
		.patience_ns = (uint64_t)(options->patience_s * 1e9),
	};
	int r = options->mode == MODE_FANIN ? fanin_prepare(options) : 0;

	if (r < 0)
		return r;
	for (size_t size = 0; size < options->sizes.n; size++) {
		for (size_t column = 0; column < options->n_columns; column++) {
			r = calibrate(&runner, size, column);
			if (r < 0)
				return r;
		}
	}
	for (unsigned i = 0; i < options->repeat; i++) {
		for (size_t size = 0; size < options->sizes.n; size++) {
			for (size_t k = 0; k < options->n_columns; k++) {
				/* Each has its turn at being first. */
				r = measure(&runner, size, (k + i) % options->n_columns);
				if (r < 0)
					return r;
			}
		}
	}
	return 0;
}

int runner_probe(const struct options *options)
{
	struct placement placement;
	int r = 0;

	placement_init(&placement, options->near_max_ns);
	for (unsigned i = 0; r == 0 && i < options->repeat; i++) {
		double rtt_ns;

		r = probe(options, &placement, &rtt_ns);
		if (r < 0)
			complain(r);
		else
			printf("%.0f ns, %s\n", rtt_ns, placement_name(placement_of(&placement, rtt_ns, rtt_ns)));
	}
	placement_fini(&placement);
	return r;
}
