/* SPDX-License-Identifier: MIT */
/* The heap: see timer.h. */
#include "timer.h"

#include <errno.h>
#include <stdlib.h>

int wh_timers_reserve(struct wh_timers *timers, uint32_t n)
{
	uint32_t need = timers->reserved + n;

	if (need + 1 > timers->capacity) {
		uint32_t capacity = timers->capacity ? timers->capacity * 2 : 64;
		while (capacity < need + 1)
			capacity *= 2;
		struct wh_timer **heap = realloc(timers->heap, capacity * sizeof(*heap));
		if (!heap)
			return -ENOMEM;
		timers->heap = heap;
		timers->capacity = capacity;
	}
	timers->reserved = need;
	return 0;
}

void wh_timers_unreserve(struct wh_timers *timers, uint32_t n)
{
	wh_assert(timers->reserved >= n);
	timers->reserved -= n;
}

void wh_timers_fini(struct wh_timers *timers)
{
	wh_assert(timers->n == 0);
	free(timers->heap);
	*timers = (struct wh_timers){ 0 };
}

static void put(struct wh_timers *timers, uint32_t position, struct wh_timer *timer)
{
	timers->heap[position] = timer;
	timer->position = position;
}

static void sift_up(struct wh_timers *timers, uint32_t i, struct wh_timer *timer)
{
	while (i > 1 && timers->heap[i / 2]->due_ns > timer->due_ns) {
		put(timers, i, timers->heap[i / 2]);
		i /= 2;
	}
	put(timers, i, timer);
}

static void sift_down(struct wh_timers *timers, uint32_t i, struct wh_timer *timer)
{
	for (uint32_t child; (child = 2 * i) <= timers->n; i = child) {
		if (child < timers->n && timers->heap[child + 1]->due_ns < timers->heap[child]->due_ns)
			child++;
		if (timers->heap[child]->due_ns >= timer->due_ns)
			break;
		put(timers, i, timers->heap[child]);
	}
	put(timers, i, timer);
}

void wh_timer_set(struct wh_timers *timers, struct wh_timer *timer, uint64_t due_ns)
{
	wh_timer_clear(timers, timer);
	wh_assert(timers->n < timers->reserved);
	timer->due_ns = due_ns;
	sift_up(timers, ++timers->n, timer);
}

void wh_timer_clear(struct wh_timers *timers, struct wh_timer *timer)
{
	uint32_t i = timer->position;

	if (!i)
		return;
	timer->position = 0;
	struct wh_timer *last = timers->heap[timers->n--];
	if (last == timer)
		return;
	if (i > 1 && timers->heap[i / 2]->due_ns > last->due_ns)
		sift_up(timers, i, last);
	else
		sift_down(timers, i, last);
}
