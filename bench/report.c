/* SPDX-License-Identifier: MIT */
/* The table. */
#include "report.h"

#include <math.h>

static void print_title(const struct results *results, FILE *file)
{
	const struct options *options = results->options;

	fprintf(file, "%s, touch %s, %s; %u repetition%s of about %g s; sender on CPU %d, receiver on CPU %d\n\n",
		options_mode_name(options->mode), options->plan.touch == TOUCH_FULL ? "full" : "first",
		options->plan.spin ? "spinning" : "sleeping", options->repeat, options->repeat == 1 ? "" : "s",
		options->seconds, options->cpus[0], options->cpus[1]);
}

static void print_ratio(double ratio, FILE *file)
{
	if (isnan(ratio))
		fprintf(file, "  %8s", "-");
	else
		fprintf(file, "  %8.*f", ratio < 0.1 ? 4 : 2, ratio);
}

static void print_rates(const struct row *row, FILE *file)
{
	const double rates[] = { row->per_second.median, row->per_second.min, row->per_second.max };

	for (size_t i = 0; i < sizeof rates / sizeof *rates; i++)
		fprintf(file, "  %8.*f", rates[i] < 1e6 ? 6 : 4, rates[i] / 1e6);
	fprintf(file, "  %7.2f", row->gb_per_second);
}

static void print_head(const struct results *results, FILE *file)
{
	fprintf(file, "%6s  %-9s  %-5s  %3s", "size", "transport", "place", "n");
	if (results->options->mode == MODE_LATENCY)
		fprintf(file, "  %8s  %8s  %8s  %8s  %8s  %8s", "p50 us", "min", "max", "p99 us", "p99.9 us", "max us");
	else
		fprintf(file, "  %8s  %8s  %8s  %7s", "M msg/s", "min", "max", "GB/s");
	fprintf(file, "  %19s  %8s  %8s\n",
		results->options->mode == MODE_LATENCY ? "CPU ns/round trip" : "CPU ns/msg", "ratio", "rtt ns");
}

static void print_row(const struct results *results, size_t size, size_t column, enum place place,
	const struct row *row, FILE *file)
{
	const struct options *options = results->options;
	char text[SIZE_TEXT_MAX];

	fprintf(file, "%6s  %-9s  %-5s  %3zu", size_print(options->sizes.sizes[size], text),
		options->columns[column].name, placement_name(place), row->n);
	if (options->mode == MODE_LATENCY)
		fprintf(file, "  %8.2f  %8.2f  %8.2f  %8.2f  %8.2f  %8.2f", row->p50.median / 1e3, row->p50.min / 1e3,
			row->p50.max / 1e3, row->p99 / 1e3, row->p999 / 1e3, row->max / 1e3);
	else
		print_rates(row, file);
	fprintf(file, "  %8.0f + %8.0f", row->cpu_ns[0], row->cpu_ns[1]);
	print_ratio(row->ratio, file);
	fprintf(file, "  %.0f..%.0f\n", row->rtt_min_ns, row->rtt_max_ns);
}

static void print_requirements(const struct results *results, FILE *file)
{
	const struct options *options = results->options;

	for (size_t i = 0; i < options->n_requirements; i++) {
		const struct requirement *requirement = &options->requirements[i];
		struct verdict verdict = results_judge(results, requirement);

		if (verdict.measured)
			fprintf(file, "require %s: %s, %.3f in %s placement\n", requirement->text,
				verdict.met ? "met" : "NOT MET", verdict.ratio, placement_name(verdict.place));
		else
			fprintf(file, "require %s: NOT MEASURED in like placements\n", requirement->text);
	}
	if (options->n_requirements)
		fputc('\n', file);
}

static void print_placement(const struct results *results, FILE *file)
{
	const struct placement *placement = &results->placement;
	unsigned counts[PLACES + 1];

	results_count(results, counts);
	fprintf(file, "placement: rtt %.0f..%.0f ns, near below %.0f (%s): %u near, %u far; %u repeated, %u left out\n",
		placement->rtts_ns[0], placement->rtts_ns[placement->n - 1], placement->threshold_ns,
		placement->found ? "found" : placement->fixed_ns > 0 ? "given" : "assumed", counts[PLACE_NEAR],
		counts[PLACE_FAR], results->repeated, results->missing + counts[PLACE_MOVED]);
}

void report_table(const struct results *results, FILE *file)
{
	const struct options *options = results->options;

	print_title(results, file);
	print_head(results, file);
	for (size_t size = 0; size < options->sizes.n; size++) {
		for (int place = 0; place < PLACES; place++) {
			for (size_t column = 0; column < options->n_columns; column++) {
				struct row row;

				if (results_row(results, size, column, (enum place)place, &row))
					print_row(results, size, column, (enum place)place, &row, file);
			}
		}
	}
	fputc('\n', file);
	print_requirements(results, file);
	print_placement(results, file);
}
