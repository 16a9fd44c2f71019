/* SPDX-License-Identifier: MIT */
/* Probes for bpftrace, perf and SystemTap: provider wharf, arguments loop id, port id, a, b as stats.h says. */
#define _SDT_HAS_SEMAPHORES 1
#include <sys/sdt.h>

#include "trace.h"

/* With bytes of its own in the file: tracers find it by its place there. */
_Alignas(64) union wh_watched wh_watched __attribute__((section(".probes"))) = { .any = 0 };

/* One semaphore for all: whoever listens to any probe makes the points call wh_probe. */
#define SEMAPHORE(kind, name) \
	extern uint16_t wharf_##name##_semaphore __attribute__((alias("wh_watched"), visibility("hidden")));
#define PROBE(kind, name) \
	case kind: \
		STAP_PROBE4(wharf, name, loop, port, a, b); \
		break;

#define PROBES(_) \
	_(WH_TRACE_CLAIM, claim) \
	_(WH_TRACE_SEND, send) \
	_(WH_TRACE_AGAIN, again) \
	_(WH_TRACE_FRAME_OUT, frame_out) \
	_(WH_TRACE_FULL, full) \
	_(WH_TRACE_FRAME_IN, frame_in) \
	_(WH_TRACE_RECEIVE, receive) \
	_(WH_TRACE_RELEASE, release) \
	_(WH_TRACE_RETURN, return) \
	_(WH_TRACE_WAKE_OUT, wake_out) \
	_(WH_TRACE_WAKE_IN, wake_in) \
	_(WH_TRACE_ANNOUNCE, announce) \
	_(WH_TRACE_RETIRE, retire) \
	_(WH_TRACE_STREAM, stream) \
	_(WH_TRACE_STREAM_END, stream_end) \
	_(WH_TRACE_CALL, call) \
	_(WH_TRACE_CALL_END, call_end) \
	_(WH_TRACE_OPEN, open) \
	_(WH_TRACE_VIOLATION, violation) \
	_(WH_TRACE_CLOSE, close) \
	_(WH_TRACE_TURN, turn) \
	_(WH_TRACE_SLEEP, sleep)

PROBES(SEMAPHORE)

void wh_probe(enum wh_stats_event kind, uint64_t loop, uint64_t port, uint64_t a, uint64_t b)
{
	switch (kind) {
		PROBES(PROBE)
	default: /* WH_TRACE_SKIPPED: of probes nothing is skipped */
		break;
	}
}
