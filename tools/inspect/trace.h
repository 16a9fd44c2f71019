/* SPDX-License-Identifier: MIT */
/* The stream of events of a process (lib/stats.h): asked for, and read out of its control memory. */
#ifndef INSPECT_TRACE_H
#define INSPECT_TRACE_H

#include "options.h"
#include "subject.h"

struct trace_event {
	struct wh_stats_entry entry;
	uint64_t loop; /* ids */
	uint64_t port; /* 0: the loop's own; only its low half if the port is not known */
	size_t order;  /* of those with the same time */
};

/* Where one loop's ring was read up to. */
struct trace_ring {
	uint64_t loop;
	uint32_t position;
	uint64_t next;
};

struct trace {
	struct subject *subject;
	int wish;                   /* the memfd in which events are asked for */
	uint32_t kinds;             /* 0: all */
	bool every;
	uint64_t until_ns;          /* what was written last */
	struct trace_ring *rings;
	size_t n_rings;
	struct trace_event *events; /* of the last poll, by time */
	size_t n_events;
	uint64_t n_lost;            /* in the last poll: written over before they were read, or too many to read */
	uint64_t entries_left;      /* that this poll may read, of all rings together */
};

/* 0, and trace_end is owed; negative, and why. */
int trace_begin(struct subject *subject, uint32_t kinds, bool every, struct trace *ret_trace,
	char why[PROCESS_WHY_BYTES]);
/* Asks on, and reads what has come. 0; -ESRCH: the process has exited. */
int trace_poll(struct trace *trace, char why[PROCESS_WHY_BYTES]);
/* Asks no more, unless somebody else does. */
void trace_end(struct trace *trace);

/* ---- trace-text.c ---- */

/* What the numbers of an event mean: "100 bytes, type 7". */
enum { TRACE_TEXT_BYTES = 128 };
void trace_describe(const struct wh_stats_entry *entry, char text[TRACE_TEXT_BYTES]);

/* The command. */
int trace_run(const struct options *options);

#endif
