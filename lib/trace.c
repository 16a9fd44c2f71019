/* SPDX-License-Identifier: MIT */
/* The trace of a loop: when it is on, and its ring. See trace.h. */
#include "trace.h"

#include <string.h>

#include "clock.h"
#include "control.h"
#include "port.h"

enum {
	ENTRIES = 8190, /* and what is in front of them: 256 KiB, a block without waste; guessed, never tuned */
	OFTEN_PER_TURN = 16,
};
#define RING_BYTES (sizeof(struct wh_stats_trace) + ENTRIES * sizeof(struct wh_stats_entry))
_Static_assert(RING_BYTES == 256 << 10, "control memory is given out in powers of two");
#define WISH_NS_MAX UINT64_C(60000000000)

static const enum wh_stats_event kind_of[WH_OFTEN_KINDS] = {
	[WH_OFTEN_CLAIM] = WH_TRACE_CLAIM,
	[WH_OFTEN_SEND] = WH_TRACE_SEND,
	[WH_OFTEN_RECEIVE] = WH_TRACE_RECEIVE,
	[WH_OFTEN_RELEASE] = WH_TRACE_RELEASE,
	[WH_OFTEN_RETURN] = WH_TRACE_RETURN,
};

/* ---- When it is on ---- */

void wh_trace_open(struct wharf_loop *loop, bool always)
{
	loop->trace.wish = wh_control_wish();
	loop->trace.always = always;
}

static void set_flags(struct wharf_loop *loop, uint32_t clear, uint32_t set)
{
	__atomic_store_n(&loop->stats->flags, (loop->stats->flags & ~clear) | set, __ATOMIC_RELAXED);
}

static void renew(struct wh_trace *t)
{
	for (unsigned i = 0; i < WH_OFTEN_KINDS; i++)
		t->left[i] = t->every || t->probed ? INT64_MAX : t->on ? OFTEN_PER_TURN : 0;
}

static void stop(struct wharf_loop *loop)
{
	struct wh_trace *t = &loop->trace;

	if (!t->on)
		return;
	t->on = false;
	renew(t);
	__atomic_fetch_sub(&wh_watched.loops, 1, __ATOMIC_RELAXED);
	wh_guard_watch(wh_is_watched());
	set_flags(loop, WH_STATS_TRACING, 0);
}

static bool have_ring(struct wharf_loop *loop)
{
	struct wh_trace *t = &loop->trace;
	void *ring;

	if (t->ring)
		return true;
	if (!wh_control_owns(loop->stats) || wh_control_alloc(RING_BYTES, &ring)) {
		set_flags(loop, 0, WH_STATS_NO_TRACE);
		return false;
	}
	t->ring = ring;
	t->ring->n_entries = ENTRIES;
	__atomic_store_n(&loop->stats->trace_bytes, (uint32_t)RING_BYTES, __ATOMIC_RELAXED);
	atomic_store_explicit(&loop->stats->trace, wh_control_position(ring), memory_order_release);
	set_flags(loop, WH_STATS_NO_TRACE, 0);
	return true;
}

static void start(struct wharf_loop *loop)
{
	struct wh_trace *t = &loop->trace;

	if (t->on || !have_ring(loop))
		return;
	t->on = true;
	renew(t);
	__atomic_fetch_add(&wh_watched.loops, 1, __ATOMIC_RELAXED);
	wh_guard_watch(true);
	set_flags(loop, 0, WH_STATS_TRACING);
}

void wh_trace_close(struct wharf_loop *loop)
{
	struct wh_stats_trace *ring = loop->trace.ring;

	stop(loop);
	loop->trace.ring = NULL;
	atomic_store_explicit(&loop->stats->trace, 0, memory_order_relaxed);
	wh_control_free(ring, RING_BYTES);
}

void wh_trace_restart(void) { __atomic_store_n(&wh_watched.loops, 0, __ATOMIC_RELAXED); }

/* Whoever may write the wish may write anything: what it says is an end in the near future, or nothing. */
static bool wanted(struct wharf_loop *loop, uint64_t until_ns)
{
	struct wh_trace *t = &loop->trace;
	uint64_t now_ns = loop->turn_ns;

	if (!until_ns || until_ns == t->over_ns)
		return false;
	/* The only look at another clock than the turn's: while a trace lasts. */
	if (loop->clock_ns)
		now_ns = wh_clock_ns(CLOCK_MONOTONIC);
	if (until_ns > now_ns)
		return until_ns - now_ns <= WISH_NS_MAX;
	t->over_ns = until_ns;
	return false;
}

void wh_trace_look(struct wharf_loop *loop)
{
	struct wh_trace *t = &loop->trace;
	const struct wh_trace_wish *wish = t->wish;
	uint64_t until_ns = atomic_load_explicit(&wish->until_ns, memory_order_relaxed);
	bool asked, every;

	if (wh_unlikely(t->probed != wh_is_probed())) {
		t->probed = !t->probed;
		renew(t);
	}
	wh_guard_watch(wh_is_watched());
	if (wh_likely((!until_ns || until_ns == t->over_ns) && !t->always && !t->on))
		return;
	asked = wanted(loop, until_ns);
	if (!asked && !t->always) {
		stop(loop);
		return;
	}
	every = asked && atomic_load_explicit(&wish->flags, memory_order_relaxed) & WH_TRACE_EVERY;
	t->kinds = asked && !t->always ? atomic_load_explicit(&wish->kinds, memory_order_relaxed) : 0;
	if (!t->kinds)
		t->kinds = UINT32_MAX;
	start(loop);
	if (t->on && every != t->every) {
		t->every = every;
		renew(t);
	}
}

/* ---- What is written ---- */

static void put(struct wh_stats_trace *ring, struct wh_stats_entry entry)
{
	uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed), words[4];
	uint64_t *to = (uint64_t *)(void *)&ring->entries[head % ENTRIES];

	_Static_assert(sizeof(entry) == sizeof(words), "written word by word");
	memcpy(words, &entry, sizeof(words));
	/*
	 * Whoever sees a word of it sees the head that is one entry behind: that is what it needs to know that the entry
	 * which was here is gone.
	 */
	atomic_thread_fence(memory_order_release);
	for (unsigned i = 0; i < 4; i++)
		__atomic_store_n(&to[i], words[i], __ATOMIC_RELAXED);
	atomic_store_explicit(&ring->head, head + 1, memory_order_release);
}

static void write_entry(struct wharf_loop *loop, uint64_t port_id, enum wh_stats_event kind, uint64_t a, uint64_t b)
{
	static const uint32_t by_clock = 1u << WH_TRACE_VIOLATION | 1u << WH_TRACE_CLOSE | 1u << WH_TRACE_OPEN |
		1u << WH_TRACE_SLEEP | 1u << WH_TRACE_ANNOUNCE | 1u << WH_TRACE_RETIRE;

	if (!(loop->trace.kinds >> kind & 1))
		return;
	put(loop->trace.ring,
		(struct wh_stats_entry){
			.time_ns = by_clock >> kind & 1 ? wh_loop_clock(loop) : loop->turn_ns,
			.kind = kind,
			.port = (uint32_t)port_id,
			.a = a,
			.b = b,
		});
}

void wh_trace_note(
	struct wharf_loop *loop, const struct wharf_port *port, enum wh_stats_event kind, uint64_t a, uint64_t b)
{
	uint64_t port_id = port ? port->stats->id : 0;

	if (loop->trace.on)
		write_entry(loop, port_id, kind, a, b);
	if (wh_is_probed())
		wh_probe(kind, loop->stats->id, port_id, a, b);
}

void wh_trace_note_often(
	struct wharf_loop *loop, const struct wharf_port *port, enum wh_often often, uint64_t a, uint64_t b)
{
	uint64_t port_id = port ? port->stats->id : 0;

	if (loop->trace.on)
		write_entry(loop, port_id, kind_of[often], a, b);
	if (wh_is_probed())
		wh_probe(kind_of[often], loop->stats->id, port_id, a, b);
}

void wh_trace_tell_skipped(struct wharf_loop *loop)
{
	struct wh_trace *t = &loop->trace;

	for (unsigned i = 0; i < WH_OFTEN_KINDS; i++)
		if (t->left[i] < 0 && t->kinds >> kind_of[i] & 1)
			write_entry(loop, 0, WH_TRACE_SKIPPED, (uint64_t)-t->left[i], kind_of[i]);
	renew(t);
}
