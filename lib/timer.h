/* SPDX-License-Identifier: MIT */
/* Deadlines of a loop: a binary heap of timers embedded in their users. Pure: the caller brings the clock. */
#ifndef WH_TIMER_H
#define WH_TIMER_H

#include "base.h"

struct wh_timer {
	uint64_t due_ns;
	uint32_t position; /* in the heap, from 1; 0: not armed */
};

struct wh_timers {
	struct wh_timer **heap; /* heap[0] unused */
	uint32_t n, capacity, reserved;
};

/* Each user reserves its timers when it is made, so that arming never allocates. 0; -ENOMEM. */
int wh_timers_reserve(struct wh_timers *timers, uint32_t n);
void wh_timers_unreserve(struct wh_timers *timers, uint32_t n);
void wh_timers_fini(struct wh_timers *timers);

/* Arms or moves it. */
void wh_timer_set(struct wh_timers *timers, struct wh_timer *timer, uint64_t due_ns);
void wh_timer_clear(struct wh_timers *timers, struct wh_timer *timer); /* armed or not */

/* The earliest; NULL: none. */
static inline struct wh_timer *wh_timers_first(const struct wh_timers *timers)
{
	return timers->n ? timers->heap[1] : NULL;
}

#endif
