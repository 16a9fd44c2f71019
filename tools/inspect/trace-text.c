/* SPDX-License-Identifier: MIT */
/* Events as text, as JSON lines, or in a file for wireshark; and the command that reads them. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "json.h"
#include "look.h"
#include "names.h"
#include "pcapng.h"
#include "trace.h"
#include "unit.h"
#include "wharf.h"

#define POLL_NS UINT64_C(50000000)

/* What an event's a and b are; a name with a bar names the high and the low half. */
static const struct meaning {
	const char *a, *b;
} meanings[WH_TRACE_KINDS] = {
	[WH_TRACE_CLAIM] = { "bytes", NULL },
	[WH_TRACE_SEND] = { "bytes", "type" },
	[WH_TRACE_AGAIN] = { "bytes", "errno" },
	[WH_TRACE_FRAME_OUT] = { "frame", "messages|bytes" },
	[WH_TRACE_FULL] = { "frame", NULL },
	[WH_TRACE_FRAME_IN] = { "lag_ns", "records|bytes" },
	[WH_TRACE_RECEIVE] = { "bytes", "type" },
	[WH_TRACE_RELEASE] = { "chunks", "segment|word" },
	[WH_TRACE_RETURN] = { "bytes", NULL },
	[WH_TRACE_WAKE_OUT] = { NULL, NULL },
	[WH_TRACE_WAKE_IN] = { NULL, NULL },
	[WH_TRACE_ANNOUNCE] = { "segment", "bytes" },
	[WH_TRACE_RETIRE] = { "segment", NULL },
	[WH_TRACE_STREAM] = { "id", "of_peer" },
	[WH_TRACE_STREAM_END] = { "id", "why" },
	[WH_TRACE_CALL] = { "id", "of_peer" },
	[WH_TRACE_CALL_END] = { "id", "end" },
	[WH_TRACE_OPEN] = { "peer_pid", NULL },
	[WH_TRACE_VIOLATION] = { NULL, NULL },
	[WH_TRACE_CLOSE] = { "close", "errno" },
	[WH_TRACE_TURN] = { "events", "worked_ns" },
	[WH_TRACE_SLEEP] = { "at_most_ns", NULL },
};

void trace_describe(const struct wh_stats_entry *e, char text[TRACE_TEXT_BYTES])
{
	unsigned long long a = e->a, b = e->b;
	unsigned high = (unsigned)(e->b >> 32), low = (unsigned)e->b;
	const char *name;

	*text = '\0';
	switch (e->kind) {
	case WH_TRACE_CLAIM:
	case WH_TRACE_RETURN:
		snprintf(text, TRACE_TEXT_BYTES, "%llu bytes", a);
		break;
	case WH_TRACE_SEND:
	case WH_TRACE_RECEIVE:
		snprintf(text, TRACE_TEXT_BYTES, "%llu bytes, type %llu", a, b);
		break;
	case WH_TRACE_AGAIN:
		snprintf(text, TRACE_TEXT_BYTES, "%llu bytes, %s", a, names_errno((int)low));
		break;
	case WH_TRACE_FRAME_OUT:
		snprintf(text, TRACE_TEXT_BYTES, "frame %llu, %u messages, %u bytes", a, high, low);
		break;
	case WH_TRACE_FULL:
		snprintf(text, TRACE_TEXT_BYTES, "frame %llu waits: the socket is full", a);
		break;
	case WH_TRACE_FRAME_IN:
		snprintf(text, TRACE_TEXT_BYTES, "%u records, %u bytes, %s after it was sent", high, low,
			unit_time(e->a, UNIT));
		break;
	case WH_TRACE_RELEASE:
		snprintf(text, TRACE_TEXT_BYTES, "%d chunks of segment %u, word %u", __builtin_popcountll(e->a), high,
			low);
		break;
	case WH_TRACE_ANNOUNCE:
		snprintf(text, TRACE_TEXT_BYTES, "segment %llu, %sB", a, unit_size(e->b, UNIT));
		break;
	case WH_TRACE_RETIRE:
		snprintf(text, TRACE_TEXT_BYTES, "segment %llu", a);
		break;
	case WH_TRACE_STREAM:
	case WH_TRACE_CALL:
		snprintf(text, TRACE_TEXT_BYTES, "%llx begins, %s", a, b ? "the peer's" : "ours");
		break;
	case WH_TRACE_STREAM_END:
		snprintf(text, TRACE_TEXT_BYTES, b ? "%llx was given up: %llu" : "%llx is whole", a, b);
		break;
	case WH_TRACE_CALL_END:
		snprintf(text, TRACE_TEXT_BYTES, "%llx: %s", a, wharf_end_name(low));
		break;
	case WH_TRACE_OPEN:
		snprintf(text, TRACE_TEXT_BYTES, "the peer is process %llu", a);
		break;
	case WH_TRACE_CLOSE:
		snprintf(text, TRACE_TEXT_BYTES, b ? "%s, %s" : "%s", wharf_close_name((uint32_t)a),
			names_errno((int)low));
		break;
	case WH_TRACE_TURN:
		snprintf(text, TRACE_TEXT_BYTES, "%llu events; the one before took %s", a, unit_time(e->b, UNIT));
		break;
	case WH_TRACE_SLEEP:
		if (e->a == UINT64_MAX)
			snprintf(text, TRACE_TEXT_BYTES, "until something comes");
		else
			snprintf(text, TRACE_TEXT_BYTES, "at most %s", unit_time(e->a, UNIT));
		break;
	case WH_TRACE_SKIPPED:
		name = names_event(low);
		snprintf(text, TRACE_TEXT_BYTES, "%llu more of %s in this turn", a, name ? name : "?");
		break;
	default:
		break;
	}
}

/* ---- Forms ---- */

struct writer {
	const struct options *options;
	struct pcapng *pcapng;
	int64_t wall_ns; /* from the monotonic clock to the one on the wall */
	uint64_t last_ns;
	uint64_t n_written;
};

static int64_t wall_offset(void)
{
	struct timespec wall, monotonic;

	clock_gettime(CLOCK_REALTIME, &wall);
	clock_gettime(CLOCK_MONOTONIC, &monotonic);
	return ((int64_t)wall.tv_sec - monotonic.tv_sec) * 1000000000 + wall.tv_nsec - monotonic.tv_nsec;
}

static void write_text(struct writer *w, const struct trace_event *event)
{
	const struct wh_stats_entry *e = &event->entry;
	int64_t wall = (int64_t)e->time_ns + w->wall_ns;
	time_t seconds = (time_t)(wall / 1000000000);
	const char *kind = names_event(e->kind);
	char text[TRACE_TEXT_BYTES], clock[16] = "?", whose[32];
	struct tm day;

	if (localtime_r(&seconds, &day))
		strftime(clock, sizeof clock, "%H:%M:%S", &day);
	trace_describe(e, text);
	snprintf(whose, sizeof whose, event->port ? "port %llu" : "loop %llu",
		(unsigned long long)(event->port ? event->port : event->loop));
	printf("%s.%06u %8s  %-10s %-10s %s\n", clock, (unsigned)(wall % 1000000000 / 1000),
		w->last_ns && e->time_ns >= w->last_ns ? unit_time(e->time_ns - w->last_ns, UNIT) : "", whose,
		kind ? kind : "?", text);
	w->last_ns = e->time_ns;
}

static void add_meaning(struct json_object *o, const char *name, uint64_t value)
{
	char high[24];
	int bar = name ? (int)strcspn(name, "|") : 0;

	if (!name)
		return;
	if (!name[bar]) {
		json_add_count(o, name, value);
		return;
	}
	snprintf(high, sizeof high, "%.*s", bar, name);
	json_add_count(o, high, value >> 32);
	json_add_count(o, name + bar + 1, (uint32_t)value);
}

static void write_json(const struct writer *w, const struct trace_event *event)
{
	struct json_object *o = json_object_new_object();
	const struct wh_stats_entry *e = &event->entry;

	json_add_count(o, "time_ns", e->time_ns);
	json_add_integer(o, "wall_ns", (int64_t)e->time_ns + w->wall_ns);
	json_add_count(o, "loop", event->loop);
	if (event->port)
		json_add_count(o, "port", event->port);
	else
		json_add_text(o, "port", NULL);
	json_add_text(o, "event", names_event(e->kind) ? names_event(e->kind) : "?");
	json_add_count(o, "a", e->a);
	json_add_count(o, "b", e->b);
	if (e->kind == WH_TRACE_SKIPPED) {
		json_add_count(o, "n", e->a);
		json_add_text(o, "of", names_event((uint32_t)e->b));
	} else if (e->kind < WH_TRACE_KINDS) {
		add_meaning(o, meanings[e->kind].a, e->a);
		add_meaning(o, meanings[e->kind].b, e->b);
	}
	json_print(o, true);
}

/* Of a loop's port, and what was left out in that loop. */
static bool is_of_port(const struct trace *trace, const struct trace_event *event, uint64_t port)
{
	const struct snapshot *now = &trace->subject->now;

	if (event->entry.kind != WH_TRACE_SKIPPED)
		return event->port == port;
	for (size_t i = 0; i < now->n_ports; i++)
		if (now->ports[i].s.id == port)
			return now->ports[i].loop < now->n_loops && now->loops[now->ports[i].loop].s.id == event->loop;
	return false;
}

static void write_all(struct writer *w, const struct trace *trace)
{
	if (trace->n_lost)
		complain("%" PRIu64 " events were lost: they came faster than they could be read", trace->n_lost);
	for (size_t i = 0; i < trace->n_events; i++) {
		const struct trace_event *event = &trace->events[i];

		if (w->options->port && !is_of_port(trace, event, w->options->port))
			continue;
		if (w->pcapng)
			pcapng_add(w->pcapng, event, w->wall_ns);
		else if (w->options->json)
			write_json(w, event);
		else
			write_text(w, event);
		w->n_written++;
	}
	if (!w->pcapng)
		fflush(stdout);
}

/* ---- The command ---- */

static volatile sig_atomic_t interrupted;

static void on_signal(int signal)
{
	(void)signal;
	interrupted = 1;
}

static int follow(struct trace *trace, struct writer *w)
{
	char why[PROCESS_WHY_BYTES];
	uint64_t waited = 0;
	int error = 0;

	while (!interrupted && !error && !ferror(stdout)) {
		if (w->options->for_ns && waited >= w->options->for_ns)
			break;
		look_pause(POLL_NS);
		waited += POLL_NS;
		error = trace_poll(trace, why);
		write_all(w, trace);
	}
	if (error && error != -ESRCH)
		complain("%d: %s", trace->subject->process.pid, why);
	else if (error)
		complain("%d: it has exited", trace->subject->process.pid);
	return error && error != -ESRCH ? EXIT_PROBLEM : EXIT_FINE;
}

int trace_run(const struct options *options)
{
	struct sigaction action = { .sa_handler = on_signal };
	struct writer w = { .options = options, .wall_ns = wall_offset() };
	char why[PROCESS_WHY_BYTES];
	struct subject subject;
	struct trace trace;
	int status = EXIT_PROBLEM;

	if (subject_open(options->pids[0], &subject, why)) {
		complain("%d: %s", options->pids[0], why);
		return EXIT_PROBLEM;
	}
	if (trace_begin(&subject, options->kinds, options->every, &trace, why)) {
		complain("%d: %s", options->pids[0], why);
		subject_close(&subject);
		return EXIT_PROBLEM;
	}
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	if (options->pcapng)
		w.pcapng = pcapng_open(options->pcapng, &subject.process, why);
	if (options->pcapng && !w.pcapng)
		complain("%s: %s", options->pcapng, why);
	else
		status = follow(&trace, &w);
	if (w.pcapng && pcapng_close(w.pcapng)) {
		complain("%s: not written", options->pcapng);
		status = EXIT_PROBLEM;
	}
	if (status == EXIT_FINE && !w.n_written) {
		complain("%d: no events: a loop that sleeps begins with its next turn", options->pids[0]);
		status = EXIT_PROBLEM;
	}
	trace_end(&trace);
	subject_close(&subject);
	return status;
}
