/* SPDX-License-Identifier: MIT */
/* Names for the numbers in control memory: see names.h. */
#include "names.h"

#include <stdio.h>
#include <string.h>

#include "stats.h"

#define NAME(table, i) ((i) < wh_array_len(table) && (table)[i] ? (table)[i] : "?")

const char *names_port_state(uint32_t state)
{
	static const char *const names[] = { "opening", "open", "draining", "ending", "closed" };

	return NAME(names, state);
}

const char *names_phase(uint32_t phase)
{
	static const char *const names[] = { "outside", "waits", "works" };

	return NAME(names, phase);
}

const char *names_engine(uint32_t engine)
{
	static const char *const names[] = { NULL, "io_uring", "epoll" };

	return NAME(names, engine);
}

const char *names_engine_level(uint32_t engine, uint32_t rung, char text[NAMES_ENGINE_BYTES])
{
	static const char *const rungs[] = { "defer", "single issuer", "cooperative" };

	if (engine != WH_STATS_URING)
		snprintf(text, NAMES_ENGINE_BYTES, "%s", names_engine(engine));
	else if (rung < wh_array_len(rungs))
		snprintf(text, NAMES_ENGINE_BYTES, "io_uring (%s)", rungs[rung]);
	else
		snprintf(text, NAMES_ENGINE_BYTES, "io_uring (%u)", rung);
	return text;
}

const char *names_request(unsigned kind)
{
	static const char *const names[WH_ARMED_KINDS] = {
		[WH_ARMED_RECEIVE] = "receive",
		[WH_ARMED_SEND] = "send",
		[WH_ARMED_WRITABLE] = "writable",
		[WH_ARMED_WATCH] = "watch",
		[WH_ARMED_ACCEPT] = "accept",
		[WH_ARMED_CANCEL] = "cancel",
	};

	return kind < WH_ARMED_KINDS ? names[kind] : NULL;
}

static const char *const events[WH_TRACE_KINDS] = {
	[WH_TRACE_CLAIM] = "claim",
	[WH_TRACE_SEND] = "send",
	[WH_TRACE_AGAIN] = "again",
	[WH_TRACE_FRAME_OUT] = "frame-out",
	[WH_TRACE_FULL] = "full",
	[WH_TRACE_FRAME_IN] = "frame-in",
	[WH_TRACE_RECEIVE] = "receive",
	[WH_TRACE_RELEASE] = "release",
	[WH_TRACE_RETURN] = "return",
	[WH_TRACE_WAKE_OUT] = "wake-out",
	[WH_TRACE_WAKE_IN] = "wake-in",
	[WH_TRACE_ANNOUNCE] = "announce",
	[WH_TRACE_RETIRE] = "retire",
	[WH_TRACE_STREAM] = "stream",
	[WH_TRACE_STREAM_END] = "stream-end",
	[WH_TRACE_CALL] = "call",
	[WH_TRACE_CALL_END] = "call-end",
	[WH_TRACE_OPEN] = "open",
	[WH_TRACE_VIOLATION] = "violation",
	[WH_TRACE_CLOSE] = "close",
	[WH_TRACE_TURN] = "turn",
	[WH_TRACE_SLEEP] = "sleep",
	[WH_TRACE_SKIPPED] = "skipped",
};

const char *names_event(uint32_t kind) { return kind < WH_TRACE_KINDS ? events[kind] : NULL; }

bool names_event_find(const char *name, size_t length, uint32_t *ret_kind)
{
	for (uint32_t kind = 1; kind < WH_TRACE_KINDS; kind++) {
		if (events[kind] && strlen(events[kind]) == length && !memcmp(events[kind], name, length)) {
			*ret_kind = kind;
			return true;
		}
	}
	return false;
}

const char *names_port_flag(unsigned bit)
{
	static const char *const names[] = { "paused", "inline", "untrusted", "starved", "connecting", "blocked",
		"internal", "stuck", "keep_latest", "drop_newest", "peer_said_bye", "eof" };

	return bit < wh_array_len(names) ? names[bit] : NULL;
}

const char *names_loop_flag(unsigned bit)
{
	static const char *const names[] = { "embedded", "tracing", "own_clock", "no_trace" };

	return bit < wh_array_len(names) ? names[bit] : NULL;
}

const char *names_errno(int error)
{
	const char *name = error > 0 ? strerrorname_np(error) : "0";

	return name ? name : "?";
}
