/* SPDX-License-Identifier: MIT */
/* The stream of events of a process: see trace.h. */
#include "trace.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "memory.h"

/* So long it goes on when the reader dies. */
#define WISH_NS UINT64_C(2000000000)

enum { ENTRIES_MAX = 1 << 20 }; /* of a ring, and read in a poll */

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- Asking ---- */

static bool wish_get(int fd, struct wh_trace_wish *ret_wish)
{
	return pread(fd, ret_wish, sizeof *ret_wish, 0) == (ssize_t)sizeof *ret_wish;
}

static void wish_put(int fd, size_t offset, const void *value, size_t size)
{
	/* A page that is there and sealed: it takes the bytes, or the process is gone, which the next look tells. */
	if (pwrite(fd, value, size, (off_t)offset) < 0)
		return;
}

/* Two readers get what either wants: each filters by itself. */
static void ask(struct trace *trace)
{
	struct wh_trace_wish wish;
	uint64_t now = now_ns(), until = now + WISH_NS;
	/* What is left out of a kind belongs to it. */
	uint32_t kinds = trace->kinds ? trace->kinds | 1u << WH_TRACE_SKIPPED : 0;
	uint32_t flags = trace->every ? WH_TRACE_EVERY : 0;

	if (!wish_get(trace->wish, &wish))
		return;
	if (wish.until_ns > now) {
		kinds = kinds && wish.kinds ? kinds | wish.kinds : 0;
		flags |= wish.flags;
	}
	if (kinds != wish.kinds)
		wish_put(trace->wish, offsetof(struct wh_trace_wish, kinds), &kinds, sizeof kinds);
	if (flags != wish.flags)
		wish_put(trace->wish, offsetof(struct wh_trace_wish, flags), &flags, sizeof flags);
	trace->until_ns = until;
	wish_put(trace->wish, offsetof(struct wh_trace_wish, until_ns), &until, sizeof until);
}

static int open_wish(const struct process *process, int *ret_fd, char why[PROCESS_WHY_BYTES])
{
	struct wh_trace_wish wish;
	int fd;

	if (process->trace < 0) {
		snprintf(why, PROCESS_WHY_BYTES, "it cannot be asked for events: it has no loop, or an older wharf");
		return -ENODATA;
	}
	fd = process_open_memfd(process->pid, process->trace, O_RDWR);
	if (fd < 0) {
		snprintf(why, PROCESS_WHY_BYTES, "it may not be asked for events: %s", strerror(-fd));
		return fd;
	}
	if (!wish_get(fd, &wish) || wish.magic != WH_TRACE_MAGIC || wish.version != WH_CONTROL_VERSION) {
		snprintf(why, PROCESS_WHY_BYTES, "it asks for events in another way than this tool: another version");
		close(fd);
		return -EPROTONOSUPPORT;
	}
	*ret_fd = fd;
	return 0;
}

int trace_begin(
	struct subject *subject, uint32_t kinds, bool every, struct trace *ret_trace, char why[PROCESS_WHY_BYTES])
{
	struct trace trace = { .subject = subject, .kinds = kinds, .every = every };
	int error = open_wish(&subject->process, &trace.wish, why);

	if (error)
		return error;
	/* What is in the rings already is another reader's. */
	error = trace_poll(&trace, why);
	if (error) {
		trace_end(&trace);
		return error;
	}
	trace.n_events = 0;
	trace.n_lost = 0;
	*ret_trace = trace;
	return 0;
}

void trace_end(struct trace *trace)
{
	struct wh_trace_wish wish;
	const uint64_t none = 0;

	if (wish_get(trace->wish, &wish) && wish.until_ns == trace->until_ns)
		wish_put(trace->wish, offsetof(struct wh_trace_wish, until_ns), &none, sizeof none);
	close(trace->wish);
	free(trace->rings);
	free(trace->events);
}

/* ---- Reading ---- */

static struct trace_ring *ring_of(struct trace *trace, const struct snap_loop *loop, bool *ret_new)
{
	struct trace_ring *ring = NULL;

	for (size_t i = 0; i < trace->n_rings && !ring; i++)
		if (trace->rings[i].loop == loop->s.id)
			ring = &trace->rings[i];
	*ret_new = !ring;
	if (!ring) {
		trace->rings = memory_grow(trace->rings, trace->n_rings, sizeof *ring);
		ring = &trace->rings[trace->n_rings++];
		*ring = (struct trace_ring){ .loop = loop->s.id };
	}
	return ring;
}

static uint64_t port_id(const struct snapshot *snapshot, uint32_t low)
{
	for (size_t i = 0; low && i < snapshot->n_ports; i++)
		if ((uint32_t)snapshot->ports[i].s.id == low)
			return snapshot->ports[i].s.id;
	return low;
}

/* Another reader may have asked for others. */
static bool is_asked_for(const struct trace *trace, const struct wh_stats_entry *entry)
{
	uint64_t kind = entry->kind;

	if (!trace->kinds || (kind < 32 && trace->kinds >> kind & 1))
		return true;
	return kind == WH_TRACE_SKIPPED && entry->b < 32 && trace->kinds >> entry->b & 1;
}

static void add_event(struct trace *trace, uint64_t loop, const struct wh_stats_entry *entry)
{
	if (!is_asked_for(trace, entry))
		return;
	trace->events = memory_grow(trace->events, trace->n_events, sizeof *trace->events);
	trace->events[trace->n_events] = (struct trace_event){
		.entry = *entry,
		.loop = loop,
		.port = port_id(&trace->subject->now, entry->port),
		.order = trace->n_events,
	};
	trace->n_events++;
}

static bool read_head(const struct source *source, uint64_t at, struct wh_stats_trace *ret_trace)
{
	return source_read(source, at, ret_trace, sizeof *ret_trace) == 0 && ret_trace->n_entries &&
		ret_trace->n_entries <= ENTRIES_MAX;
}

/* The ring goes when nobody asks for events, and its memory becomes something else. */
static bool still_its(const struct source *source, const struct snap_loop *loop)
{
	uint32_t position;

	return source_read(source, (uint64_t)loop->position * WH_CONTROL_UNIT + offsetof(struct wh_stats_loop, trace),
		       &position, sizeof position) == 0 &&
		position == loop->s.trace;
}

/* The entries from `first` to `head` of a ring; NULL: they cannot be read. */
static struct wh_stats_entry *read_entries(
	const struct source *source, uint64_t at, uint32_t n_entries, uint64_t first, uint64_t head)
{
	uint64_t n = head - first, start = first % n_entries, part = n < n_entries - start ? n : n_entries - start;
	struct wh_stats_entry *entries = memory_new(n, sizeof *entries);

	at += sizeof(struct wh_stats_trace);
	if (!source_read(source, at + start * sizeof *entries, entries, part * sizeof *entries) &&
		!source_read(source, at, entries + part, (n - part) * sizeof *entries))
		return entries;
	free(entries);
	return NULL;
}

static void read_ring(struct trace *trace, const struct snap_loop *loop)
{
	const struct source *source = &trace->subject->source;
	uint64_t at = (uint64_t)loop->s.trace * WH_CONTROL_UNIT, first, copied, head;
	struct wh_stats_trace before, after;
	struct wh_stats_entry *entries;
	struct trace_ring *ring;
	uint32_t n;
	bool is_new;

	ring = ring_of(trace, loop, &is_new);
	if (!loop->s.trace || !read_head(source, at, &before)) {
		ring->position = 0;
		ring->next = 0;
		return;
	}
	head = before.head;
	if (is_new || ring->position != loop->s.trace)
		ring->next = is_new ? head : 0;
	ring->position = loop->s.trace;
	if (head <= ring->next)
		return;
	n = before.n_entries;
	first = head - ring->next > n ? head - n : ring->next;
	if (head - first > trace->entries_left)
		first = head - trace->entries_left;
	trace->entries_left -= head - first;
	copied = first;
	entries = read_entries(source, at, n, first, head);
	if (!entries || !read_head(source, at, &after) || after.n_entries != n || !still_its(source, loop)) {
		free(entries);
		return;
	}
	if (after.head >= n && after.head - n + 1 > first)
		first = after.head - n + 1;
	if (first > head)
		first = head;
	trace->n_lost += first - ring->next;
	for (uint64_t i = first; i < head; i++)
		add_event(trace, loop->s.id, &entries[i - copied]);
	ring->next = head;
	free(entries);
}

static int by_time(const void *a, const void *b)
{
	const struct trace_event *x = a, *y = b;

	if (x->entry.time_ns != y->entry.time_ns)
		return x->entry.time_ns > y->entry.time_ns ? 1 : -1;
	return (x->order > y->order) - (x->order < y->order);
}

int trace_poll(struct trace *trace, char why[PROCESS_WHY_BYTES])
{
	int error;

	trace->n_events = 0;
	trace->n_lost = 0;
	trace->entries_left = ENTRIES_MAX;
	ask(trace);
	error = subject_look(trace->subject, SNAPSHOT_STATS, why);
	if (error)
		return error;
	for (size_t i = 0; i < trace->subject->now.n_loops; i++)
		read_ring(trace, &trace->subject->now.loops[i]);
	if (trace->n_events)
		qsort(trace->events, trace->n_events, sizeof *trace->events, by_time);
	return 0;
}
