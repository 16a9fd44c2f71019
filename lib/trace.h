/* SPDX-License-Identifier: MIT */
/*
 * Points that events pass (enum wh_stats_event): into the loop's trace while somebody wants one, and to whoever listens
 * to the probes of the same names. A point that nobody looks at costs one load of a line that never changes, and one
 * branch. All of it on the loop's thread.
 */
#ifndef WH_TRACE_H
#define WH_TRACE_H

#include "base.h"
#include "stats.h"

struct wharf_loop;
struct wharf_port;

/* Who looks. A tracer counts itself into `probes`, from the kernel: the semaphore of all probes. */
union wh_watched {
	struct {
		uint16_t probes;
		uint16_t loops;          /* of this process that trace */
	};
	uint32_t any;
	char line[64];
};
extern union wh_watched wh_watched __attribute__((visibility("hidden")));

static inline bool wh_is_watched(void) { return wh_unlikely(__atomic_load_n(&wh_watched.any, __ATOMIC_RELAXED)); }

static inline bool wh_is_probed(void) { return __atomic_load_n(&wh_watched.probes, __ATOMIC_RELAXED); }

/* Kinds that come with each message, or with a few: a few of each are noted in a turn, the others are counted. */
enum wh_often {
	WH_OFTEN_CLAIM,
	WH_OFTEN_SEND,
	WH_OFTEN_RECEIVE,
	WH_OFTEN_RELEASE,
	WH_OFTEN_RETURN,
	WH_OFTEN_KINDS,
};

/* Of a loop. */
struct wh_trace {
	const struct wh_trace_wish *wish;
	struct wh_stats_trace *ring;     /* from when it was first wanted */
	uint32_t kinds;
	bool on, every;
	bool probed;                     /* somebody listens to probes: all events are for them */
	bool always;                     /* WHARF_LOOP_TRACE */
	uint64_t over_ns;                /* until_ns of the last wish that has ended */
	int64_t left[WH_OFTEN_KINDS];    /* to be noted in this turn; below 0: so many were not */
	uint64_t worked_ns;              /* the turn before */
};

void wh_trace_open(struct wharf_loop *loop, bool always);
void wh_trace_close(struct wharf_loop *loop);
void wh_trace_restart(void);                      /* in a forked child: the parent's loops are not here */
void wh_trace_look(struct wharf_loop *loop);      /* a turn begins: is a trace wanted? */
void wh_trace_tell_skipped(struct wharf_loop *loop); /* it ends */

/* port: NULL: the loop's own. */
void wh_trace_note(
	struct wharf_loop *loop, const struct wharf_port *port, enum wh_stats_event kind, uint64_t a, uint64_t b);
void wh_trace_note_often(
	struct wharf_loop *loop, const struct wharf_port *port, enum wh_often often, uint64_t a, uint64_t b);

static inline void wh_trace(
	struct wharf_loop *loop, const struct wharf_port *port, enum wh_stats_event kind, uint64_t a, uint64_t b)
{
	if (wh_is_watched())
		wh_trace_note(loop, port, kind, a, b);
}

/* usdt.c, or nothing. */
void wh_probe(enum wh_stats_event kind, uint64_t loop, uint64_t port, uint64_t a, uint64_t b);

#endif
