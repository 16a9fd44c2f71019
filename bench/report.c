/* SPDX-License-Identifier: MIT */
/* The table. */
#include "report.h"

#include <math.h>
#include <string.h>

#include "fairness.h"
#include "fanin.h"
#include "repetition.h"

static void print_title(const struct results *results, FILE *file)
{
	const struct options *options = results->options;

	fprintf(file, "%s, touch %s, %s; %zu repetition%s of about %g s; sender on CPU %d, receiver on CPU %d\n\n",
		options_mode_name(options->mode), options->plan.touch == TOUCH_FULL ? "full" : "first",
		options->plan.spin ? "spinning" : "sleeping", options->repeat, options->repeat == 1 ? "" : "s",
		options->seconds, options->cpus[0], options->cpus[1]);
}

static int name_width(const struct results *results)
{
	const struct options *options = results->options;
	size_t width = 9;

	for (size_t i = 0; i < options->n_columns; i++)
		if (strlen(options->columns[i].name) > width)
			width = strlen(options->columns[i].name);
	return (int)width;
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

static void print_latencies(const struct row *row, FILE *file)
{
	const double ns[] = { row->p50.median, row->p50.min, row->p50.max, row->p99, row->p999, row->max };

	for (size_t i = 0; i < sizeof ns / sizeof *ns; i++)
		fprintf(file, "  %8.2f", ns[i] / 1e3);
}

/* What the columns are. */
static const char *column_title(const struct results *results)
{
	switch (results->options->mode) {
	case MODE_FANIN:
		return "ports";
	case MODE_FAIRNESS:
		return "scenario";
	default:
		return "transport";
	}
}

static void print_call(const struct row *row, FILE *file)
{
	const double us[] = { row->p50.median / 1e3, row->p99 / 1e3, row->p999 / 1e3 };

	print_rates(row, file);
	fprintf(file, "  %7.2f  %9.1f", row->extras[CALL_REPLY_GB], row->extras[CALL_IN_FLIGHT]);
	for (size_t i = 0; i < sizeof us / sizeof *us; i++)
		fprintf(file, "  %8.*f", us[i] < 1e4 ? 2 : 0, us[i]);
}

static void print_head(const struct results *results, FILE *file)
{
	fprintf(file, "%6s  ", "size");
	if (results->options->mode == MODE_CALL)
		fprintf(file, "%6s  ", "reply");
	fprintf(file, "%-*s  %-5s  %3s", name_width(results), column_title(results), "place", "n");
	if (results_of_round_trips(results))
		fprintf(file, "  %8s  %8s  %8s  %8s  %8s  %8s", "p50 us", "min", "max", "p99 us", "p99.9 us", "max us");
	else
		fprintf(file, "  %8s  %8s  %8s  %7s",
			results->options->mode == MODE_CALL ? "M call/s" : "M msg/s", "min", "max", "GB/s");
	switch (results->options->mode) {
	case MODE_FAIRNESS:
		fprintf(file, "  %10s  %19s  %19s", "flood GB/s", "p50, p99: to quiet", "to elsewhere");
		break;
	case MODE_CALL:
		fprintf(file, "  %7s  %9s  %8s  %8s  %8s  %19s  %15s  %8s", "back", "in flight", "p50 us", "p99 us",
			"p99.9 us", "CPU ns/call", "syscalls/call", "ratio");
		break;
	case MODE_FANIN:
		fprintf(file, "  %19s  %15s  %8s  %7s  %13s", "CPU ns/msg", "syscalls/msg", "ratio", "slowest",
			"fewest, most");
		break;
	default:
		fprintf(file, "  %19s  %15s  %8s", results_of_round_trips(results) ? "CPU ns/round trip" : "CPU ns/msg",
			results_of_round_trips(results) ? "syscalls/rtrip" : "syscalls/msg", "ratio");
	}
	fprintf(file, "  %8s\n", "rtt ns");
}

static void print_against(const struct results *results, size_t size, size_t column, size_t other, enum place place,
	FILE *file)
{
	struct against against = results_against(results, size, column, other, place);

	if (isnan(against.p50))
		fprintf(file, "  %19s", "-");
	else
		fprintf(file, "  %8.2f, %9.2f", against.p50, against.p99);
}

static void print_row(const struct results *results, size_t size, size_t column, enum place place,
	const struct row *row, FILE *file)
{
	const struct options *options = results->options;
	char text[SIZE_TEXT_MAX];

	fprintf(file, "%6s  ", size_print(options->sizes.sizes[size], text));
	if (options->mode == MODE_CALL)
		fprintf(file, "%6s  ", size_print(options_reply_size(options, size), text));
	fprintf(file, "%-*s  %-5s  %3zu", name_width(results), options->columns[column].name, placement_name(place),
		row->n);
	if (options->mode == MODE_CALL)
		print_call(row, file);
	else if (results_of_round_trips(results))
		print_latencies(row, file);
	else
		print_rates(row, file);
	if (options->mode == MODE_FAIRNESS) {
		fprintf(file, "  %10.2f", row->extras[FAIRNESS_FLOOD]);
		print_against(results, size, column, SCENARIO_QUIET, place, file);
		print_against(results, size, column, SCENARIO_ELSEWHERE, place, file);
	} else {
		fprintf(file, "  %8.0f + %8.0f  %6.4f + %6.4f", row->cpu_ns[0], row->cpu_ns[1], row->system_calls[0],
			row->system_calls[1]);
		print_ratio(row->ratio, file);
	}
	if (options->mode == MODE_FANIN)
		fprintf(file, "  %7.2f  %5.2f, %6.2f", row->extras[FANIN_SLOWEST], row->extras[FANIN_COUNT_MIN],
			row->extras[FANIN_COUNT_MAX]);
	fprintf(file, "  %.0f..%.0f\n", row->rtt_min_ns, row->rtt_max_ns);
}

typedef void print_fn(const struct results *results, size_t size, size_t column, enum place place,
	const struct row *row, FILE *file);

static void print_rows(const struct results *results, print_fn *print, FILE *file)
{
	for (size_t size = 0; size < results->options->sizes.n; size++) {
		for (int place = 0; place < PLACES; place++) {
			for (size_t column = 0; column < results->options->n_columns; column++) {
				struct row row;

				if (results_row(results, size, column, (enum place)place, &row))
					print(results, size, column, (enum place)place, &row, file);
			}
		}
	}
	fputc('\n', file);
}

/* ---- Fan-in: what a port costs its receiver ---- */

static void print_cost(const double *extras, FILE *file)
{
	fprintf(file, "  %10.1f  %7.1f  %7.1f  %4.2f  %5.2f", extras[FANIN_IDLE_HEAP - FANIN_IDLE] / 1024,
		extras[FANIN_IDLE_CONTROL - FANIN_IDLE] / 1024, extras[FANIN_IDLE_RSS - FANIN_IDLE] / 1024,
		extras[FANIN_IDLE_FDS - FANIN_IDLE], extras[FANIN_IDLE_MAPPINGS - FANIN_IDLE]);
}

static void print_costs_row(const struct results *results, size_t size, size_t column, enum place place,
	const struct row *row, FILE *file)
{
	const struct options *options = results->options;
	char text[SIZE_TEXT_MAX];

	fprintf(file, "%6s  %-*s  %-5s  %3zu  %7.0f  %8.3f  %8.3f", size_print(options->sizes.sizes[size], text),
		name_width(results), options->columns[column].name, placement_name(place), row->n,
		row->extras[FANIN_SENDERS], row->extras[FANIN_OPEN_SECONDS], row->extras[FANIN_CLOSE_SECONDS]);
	print_cost(&row->extras[FANIN_IDLE], file);
	print_cost(&row->extras[FANIN_ACTIVE], file);
	fputc('\n', file);
}

static void print_costs(const struct results *results, FILE *file)
{
	fputs("Per port, in the receiver (KiB; the kernel's socket memory is not counted):\n", file);
	fprintf(file, "%6s  %-*s  %-5s  %3s  %7s  %8s  %8s", "size", name_width(results), "ports", "place", "n",
		"senders", "open s", "close s");
	for (int active = 0; active < 2; active++)
		fprintf(file, "  %10s  %7s  %7s  %4s  %5s", active ? "heap, used" : "heap, idle", "control", "RSS",
			"fds", "maps");
	fputc('\n', file);
	print_rows(results, print_costs_row, file);
}

/* ---- Both ---- */

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
	double min_ns, max_ns;

	results_count(results, counts);
	placement_range(placement, &min_ns, &max_ns);
	fprintf(file, "placement: rtt %.0f..%.0f ns, near below %.0f (%s): %u near, %u far; %u repeated, %u left out\n",
		min_ns, max_ns, placement->threshold_ns,
		placement->found ? "found" : placement->fixed_ns > 0 ? "given" : "assumed", counts[PLACE_NEAR],
		counts[PLACE_FAR], results->repeated, results->missing + counts[PLACE_MOVED]);
}

void report_table(const struct results *results, FILE *file)
{
	print_title(results, file);
	print_head(results, file);
	print_rows(results, print_row, file);
	if (results->options->mode == MODE_FANIN)
		print_costs(results, file);
	print_requirements(results, file);
	print_placement(results, file);
}
