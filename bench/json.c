/* SPDX-License-Identifier: MIT */
/*
 * The JSON report, schema "wharf-bench/1". A change that a reader could trip over makes it /2; new members do not.
 * Times are in the unit that a member's name ends with; "messages" are round trips when the command is latency or
 * fairness, those of each port when it is fanin, and calls when it is call.
 *
 *   schema         "wharf-bench/1"
 *   wharf          version of the library
 *   kernel         release
 *   command        "throughput", "latency", "fanin", "fairness" or "call"
 *   touch          "full" or "first"
 *   spin           whether both sides polled
 *   cpus           [sender's, receiver's]
 *   seconds        length asked for, of a repetition
 *   repeat         repetitions asked for, of each size and transport or the like
 *   wharf_options  {inline_max, pool_bytes, frame_bytes, rx_buffers (0: the library's default),
 *                  wait: "spin" or "block"}
 *   burst          fanin, fairness: messages to one port before the next has its turn
 *   flood          fairness: {ports, size, reads}
 *   placement      {near_below_ns, source: "found", "given" or "assumed", rtt_min_ns, rtt_max_ns
 *                  (null: nothing could be probed), and counts of repetitions: near, far, repeated, left_out}
 *   results        one for each size and transport, number of ports, scenario, or transport and calls in flight:
 *     size, transport (fanin: if one was asked for); fanin: ports; fairness: scenario: "quiet", "elsewhere" (the
 *                  flood has a receiver of its own) or "flood"; call: inflight, reply_size
 *     detail       what the transport ran on: its engine, its buffer
 *     messages     of each repetition
 *     repetitions  [{place: "near", "far" or "moved", rtt_before_ns, rtt_after_ns, seconds, messages_per_second,
 *                  cpu_sender_ns, cpu_receiver_ns, but for fairness system_calls_sender, system_calls_receiver, and
 *                  for round trips and calls p50_ns, p99_ns, p999_ns, max_ns; and what the command has besides, see
 *                  below}]
 *     summaries    one for each of near and far that has repetitions:
 *                  [{place, n, messages_per_second: {min, median, max}, gb_per_second, cpu_sender_ns, cpu_receiver_ns,
 *                  system_calls_sender, system_calls_receiver as above, and for round trips and calls p50_ns: {min,
 *                  median, max}, p99_ns, p999_ns, max_ns; ratio: to the first of them (call: with as many in flight;
 *                  fanin of several transports: of as many ports), of the median messages_per_second or, for round
 *                  trips, p50_ns; null: not measured in this placement; fairness: p50_to_quiet, p99_to_quiet,
 *                  p50_to_elsewhere, p99_to_elsewhere; and what the command has besides}]
 *   requirements   [{text, measured, met, place and ratio (null: not measured)}]
 *
 * fanin has besides: senders; open_seconds and close_seconds, until all ports were; slowest_to_median, when the last
 * port had all of its messages, in times of when the median port had; count_min_to_mean and count_max_to_mean, the
 * fewest and the most messages that one port had when half of all had arrived, in times of the mean; and for each port
 * of the receiver, idle and after the last message (active), {idle,active}_heap_bytes, _control_bytes (the library's,
 * outside the heap), _rss_bytes (shared segments included; no socket memory), _fds, _mappings.
 * fairness has besides: flood_gb_per_second, what all flooding ports carried. Its cpu_receiver_ns is 0: not measured.
 * call has besides: reply_gb_per_second (gb_per_second is of requests); in_flight_mean, of calls. Its sender calls, its
 * receiver answers.
 *
 * CPU times and system calls are per message; system calls are those that send, receive and wait. Summaries are medians
 * of their repetitions, but for max_ns, the greatest.
 */
#include <errno.h>
#include <json-c/json.h>
#include <math.h>
#include <sys/utsname.h>

#include "fairness.h"
#include "report.h"
#include "wharf.h"

/* Without memory a member is null. */
static void add(struct json_object *to, const char *name, struct json_object *value)
{
	json_object_object_add(to, name, value);
}

static void add_text(struct json_object *to, const char *name, const char *text)
{
	add(to, name, json_object_new_string(text));
}

static void add_count(struct json_object *to, const char *name, uint64_t count)
{
	add(to, name, json_object_new_uint64(count));
}

/* Nine digits: more than any clock here has. */
static void add_number(struct json_object *to, const char *name, double number)
{
	char digits[32];

	if (!isfinite(number)) {
		add(to, name, NULL);
		return;
	}
	snprintf(digits, sizeof digits, "%.9g", number);
	add(to, name, json_object_new_double_s(number, digits));
}

static void add_bool(struct json_object *to, const char *name, bool value)
{
	add(to, name, json_object_new_boolean(value));
}

static void add_spread(struct json_object *to, const char *name, const struct spread *spread)
{
	struct json_object *object = json_object_new_object();

	add_number(object, "min", spread->min);
	add_number(object, "median", spread->median);
	add_number(object, "max", spread->max);
	add(to, name, object);
}

static void add_extras(struct json_object *to, const struct results *results, const double *extras)
{
	const char *const *names = results_extras(results);

	for (size_t i = 0; names[i]; i++)
		add_number(to, names[i], extras[i]);
}

static void add_system_calls(struct json_object *to, const struct results *results, const double each[2])
{
	if (results->options->mode == MODE_FAIRNESS)
		return;
	add_number(to, "system_calls_sender", each[0]);
	add_number(to, "system_calls_receiver", each[1]);
}

static struct json_object *repetition_object(const struct results *results, const struct sample *sample)
{
	struct json_object *object = json_object_new_object();
	enum place place = placement_of(&results->placement, sample->rtt_before_ns, sample->rtt_after_ns);

	add_text(object, "place", placement_name(place));
	add_number(object, "rtt_before_ns", sample->rtt_before_ns);
	add_number(object, "rtt_after_ns", sample->rtt_after_ns);
	add_number(object, "seconds", sample->seconds);
	add_number(object, "messages_per_second", sample->per_second);
	add_number(object, "cpu_sender_ns", sample->cpu_ns[0]);
	add_number(object, "cpu_receiver_ns", sample->cpu_ns[1]);
	add_system_calls(object, results, sample->system_calls);
	if (results_timed(results)) {
		add_count(object, "p50_ns", sample->latency.p50_ns);
		add_count(object, "p99_ns", sample->latency.p99_ns);
		add_count(object, "p999_ns", sample->latency.p999_ns);
		add_count(object, "max_ns", sample->latency.max_ns);
	}
	add_extras(object, results, sample->extras);
	return object;
}

static void add_against(struct json_object *to, const struct results *results, size_t size, size_t column,
	enum place place)
{
	struct against quiet = results_against(results, size, column, SCENARIO_QUIET, place);
	struct against elsewhere = results_against(results, size, column, SCENARIO_ELSEWHERE, place);

	add_number(to, "p50_to_quiet", quiet.p50);
	add_number(to, "p99_to_quiet", quiet.p99);
	add_number(to, "p50_to_elsewhere", elsewhere.p50);
	add_number(to, "p99_to_elsewhere", elsewhere.p99);
}

static struct json_object *summary_object(const struct results *results, size_t size, size_t column, enum place place,
	const struct row *row)
{
	struct json_object *object = json_object_new_object();

	add_text(object, "place", placement_name(place));
	add_count(object, "n", row->n);
	add_spread(object, "messages_per_second", &row->per_second);
	add_number(object, "gb_per_second", row->gb_per_second);
	add_number(object, "cpu_sender_ns", row->cpu_ns[0]);
	add_number(object, "cpu_receiver_ns", row->cpu_ns[1]);
	add_system_calls(object, results, row->system_calls);
	if (results_timed(results)) {
		add_spread(object, "p50_ns", &row->p50);
		add_number(object, "p99_ns", row->p99);
		add_number(object, "p999_ns", row->p999);
		add_number(object, "max_ns", row->max);
	}
	add_number(object, "ratio", row->ratio);
	if (results->options->mode == MODE_FAIRNESS)
		add_against(object, results, size, column, place);
	add_extras(object, results, row->extras);
	return object;
}

static void add_column(struct json_object *to, enum mode mode, const struct column *column)
{
	switch (mode) {
	case MODE_FANIN:
		if (*column->transport_name)
			add_text(to, "transport", column->transport_name);
		add_count(to, "ports", column->ports);
		break;
	case MODE_FAIRNESS:
		add_text(to, "scenario", column->name);
		break;
	case MODE_CALL:
		add_text(to, "transport", column->transport_name);
		add_count(to, "inflight", column->inflight);
		break;
	default:
		add_text(to, "transport", column->name);
	}
}

static struct json_object *result_object(const struct results *results, size_t size, size_t column)
{
	const struct options *options = results->options;
	const struct cell *cell = results_cell(results, size, column);
	struct json_object *object = json_object_new_object();
	struct json_object *repetitions = json_object_new_array(), *summaries = json_object_new_array();

	add_count(object, "size", options->sizes.sizes[size]);
	if (options->mode == MODE_CALL)
		add_count(object, "reply_size", options_reply_size(options, size));
	add_column(object, options->mode, &options->columns[column]);
	add_text(object, "detail", cell->detail);
	add_count(object, "messages", cell->messages);
	for (size_t i = 0; i < cell->n; i++)
		json_object_array_add(repetitions, repetition_object(results, &cell->samples[i]));
	for (int place = 0; place < PLACES; place++) {
		struct row row;

		if (results_row(results, size, column, (enum place)place, &row))
			json_object_array_add(summaries,
				summary_object(results, size, column, (enum place)place, &row));
	}
	add(object, "repetitions", repetitions);
	add(object, "summaries", summaries);
	return object;
}

static struct json_object *requirement_object(const struct results *results, const struct requirement *requirement)
{
	struct verdict verdict = results_judge(results, requirement);
	struct json_object *object = json_object_new_object();

	add_text(object, "text", requirement->text);
	add_bool(object, "measured", verdict.measured);
	add_bool(object, "met", verdict.met);
	add(object, "place", verdict.measured ? json_object_new_string(placement_name(verdict.place)) : NULL);
	add_number(object, "ratio", verdict.ratio);
	return object;
}

static struct json_object *placement_object(const struct results *results)
{
	const struct placement *placement = &results->placement;
	struct json_object *object = json_object_new_object();
	unsigned counts[PLACES + 1];
	double min_ns, max_ns;

	results_count(results, counts);
	placement_range(placement, &min_ns, &max_ns);
	add_number(object, "near_below_ns", placement->threshold_ns);
	add_text(object, "source", placement->found ? "found" : placement->fixed_ns > 0 ? "given" : "assumed");
	add_number(object, "rtt_min_ns", min_ns);
	add_number(object, "rtt_max_ns", max_ns);
	add_count(object, "near", counts[PLACE_NEAR]);
	add_count(object, "far", counts[PLACE_FAR]);
	add_count(object, "repeated", results->repeated);
	add_count(object, "left_out", results->missing + counts[PLACE_MOVED]);
	return object;
}

static struct json_object *wharf_options_object(const struct plan *plan)
{
	struct json_object *object = json_object_new_object();

	add_count(object, "inline_max", plan->inline_max);
	add_count(object, "pool_bytes", plan->pool_bytes);
	add_count(object, "frame_bytes", plan->frame_bytes);
	add_count(object, "rx_buffers", plan->rx_buffers);
	add_text(object, "wait", plan->block ? "block" : "spin");
	return object;
}

static struct json_object *flood_object(const struct options *options)
{
	struct json_object *object = json_object_new_object();

	add_count(object, "ports", options->floods);
	add_count(object, "size", options->flood_bytes);
	add_count(object, "reads", options->flood_reads);
	return object;
}

static struct json_object *report_object(const struct results *results)
{
	const struct options *options = results->options;
	struct json_object *object = json_object_new_object();
	struct json_object *cells = json_object_new_array(), *requirements = json_object_new_array();
	struct json_object *cpus = json_object_new_array();
	struct utsname system;

	add_text(object, "schema", "wharf-bench/1");
	add_text(object, "wharf", wharf_version());
	add_text(object, "kernel", uname(&system) == 0 ? system.release : "");
	add_text(object, "command", options_mode_name(options->mode));
	add_text(object, "touch", options->plan.touch == TOUCH_FULL ? "full" : "first");
	add_bool(object, "spin", options->plan.spin);
	for (int i = 0; i < 2; i++)
		json_object_array_add(cpus, json_object_new_int(options->cpus[i]));
	add(object, "cpus", cpus);
	add_number(object, "seconds", options->seconds);
	add_count(object, "repeat", options->repeat);
	add(object, "wharf_options", wharf_options_object(&options->plan));
	if (options->mode == MODE_FANIN || options->mode == MODE_FAIRNESS)
		add_count(object, "burst", options->burst);
	if (options->mode == MODE_FAIRNESS)
		add(object, "flood", flood_object(options));
	add(object, "placement", placement_object(results));
	for (size_t size = 0; size < options->sizes.n; size++)
		for (size_t column = 0; column < options->n_columns; column++)
			json_object_array_add(cells, result_object(results, size, column));
	add(object, "results", cells);
	for (size_t i = 0; i < options->n_requirements; i++)
		json_object_array_add(requirements, requirement_object(results, &options->requirements[i]));
	add(object, "requirements", requirements);
	return object;
}

int report_json(const struct results *results, FILE *file)
{
	struct json_object *object = report_object(results);
	const char *text = json_object_to_json_string_ext(object, JSON_C_TO_STRING_PRETTY);
	int r = text ? 0 : -ENOMEM;

	if (text && (fputs(text, file) < 0 || fputc('\n', file) < 0 || fflush(file) != 0))
		r = -EIO;
	json_object_put(object);
	return r;
}
