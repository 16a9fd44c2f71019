/* SPDX-License-Identifier: MIT */
/* The ledger: blocks, and what is entered into them at the end of a turn. See ledger.h. */
#include "ledger.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "control.h"
#include "port.h"

_Static_assert(sizeof(struct wharf_port_stats) == sizeof(size_t) + sizeof(struct wh_stats_counts) &&
		offsetof(struct wharf_port_stats, tx_messages) == sizeof(size_t) &&
		offsetof(struct wharf_port_stats, tx_again) - sizeof(size_t) ==
			offsetof(struct wh_stats_counts, tx_again) &&
		offsetof(struct wharf_port_stats, tx_replaced) - sizeof(size_t) ==
			offsetof(struct wh_stats_counts, tx_replaced),
	"the same fields in the same order");

/* Ports that wait for something, as bits of wh_tally.listed: what the loop counts. */
enum { DIRTY, WAITING, READY, ENDING };
_Static_assert(wh_array_len(((struct wharf_loop *)0)->n_listed) == ENDING + 1, "one count each");

static inline void put32(uint32_t *field, uint32_t value) { __atomic_store_n(field, value, __ATOMIC_RELAXED); }
static inline void put64(uint64_t *field, uint64_t value) { __atomic_store_n(field, value, __ATOMIC_RELAXED); }

/* Both are multiples of 8 bytes long, and aligned so. */
static void put_text(char *field, const char *text, size_t size)
{
	char padded[WH_STATS_TEXT_BYTES] = { 0 };

	memcpy(padded, text, strnlen(text, size - 1));
	for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
		uint64_t word;
		memcpy(&word, padded + i, sizeof(word));
		put64((uint64_t *)(void *)(field + i), word);
	}
}

static void begin(_Atomic uint32_t *sequence)
{
	atomic_store_explicit(sequence, atomic_load_explicit(sequence, memory_order_relaxed) + 1, memory_order_relaxed);
	/* No field's store comes before that one. */
	atomic_thread_fence(memory_order_release);
}

static void end(_Atomic uint32_t *sequence)
{
	atomic_store_explicit(sequence, atomic_load_explicit(sequence, memory_order_relaxed) + 1, memory_order_release);
}

static unsigned bucket_of(uint64_t ns)
{
	unsigned bits = ns ? 64 - (unsigned)__builtin_clzll(ns) : 0;

	return (unsigned)wh_min(bits, WH_STATS_BUCKETS - 1);
}

static void raise_to(uint64_t *field, uint64_t value)
{
	if (value > *field)
		put64(field, value);
}

/* ---- Blocks ---- */

/* Unseen in the heap, where it must be: nothing that works without needs to know. */
static void *open_block(struct wharf_loop *loop, size_t bytes, bool seen)
{
	void *block;

	if (seen && !wh_control_alloc(bytes, &block))
		return block;
	block = wh_loop_alloc(loop, bytes);
	if (block)
		memset(block, 0, bytes);
	return block;
}

static void free_block(struct wharf_loop *loop, void *block, size_t bytes)
{
	if (!block)
		return;
	if (wh_control_owns(block))
		wh_control_free(block, bytes);
	else
		wh_loop_dealloc(loop, block);
}

/* By any thread. */
static void on_lease_news(void *owner, enum wh_lease_news news, uint64_t bytes)
{
	struct wharf_port *port = owner;
	struct wharf_loop *loop = port->source.loop;

	if (wh_current_loop != loop)
		return;
	switch (news) {
	case WH_LEASE_CLAIMED:
		wh_trace_note_often(loop, port, WH_OFTEN_CLAIM, bytes, 0);
		break;
	case WH_LEASE_REFUSED:
		port->tally.claim_refused = true;
		wh_ledger_block(port);
		break;
	case WH_LEASE_RETURNED:
		wh_trace_often(loop, port, WH_OFTEN_RETURN, bytes, 0);
		break;
	}
}

int wh_ledger_open_loop(struct wharf_loop *loop, uint32_t flags)
{
	wh_list_init(&loop->touched);
	loop->seen = !(flags & WHARF_LOOP_UNSEEN);
	loop->stats = open_block(loop, sizeof(*loop->stats), loop->seen);
	if (!loop->stats)
		return -ENOMEM;
	loop->observer = (struct wh_lease_observer){ on_lease_news, &loop->trace.left[WH_OFTEN_CLAIM] };
	wh_trace_open(loop, flags & WHARF_LOOP_TRACE);
	return 0;
}

void wh_ledger_enter_loop(struct wharf_loop *loop)
{
	struct wh_stats_loop *s = loop->stats;

	s->flags = loop->clock_ns ? WH_STATS_OWN_CLOCK : 0;
	s->started_ns = loop->turn_ns;
	wh_engine_describe(loop->engine, s);
	wh_control_add_loop(s);
}

void wh_ledger_close_loop(struct wharf_loop *loop)
{
	wh_trace_close(loop);
	wh_control_remove_loop(loop->stats);
}

void wh_ledger_free_loop(struct wharf_loop *loop) { free_block(loop, loop->stats, sizeof(*loop->stats)); }

int wh_ledger_open_port(struct wharf_port *port)
{
	struct wharf_loop *loop = port->source.loop;

	wh_list_init(&port->tally.touched);
	port->stats = open_block(loop, sizeof(*port->stats), loop->seen);
	return port->stats ? 0 : -ENOMEM;
}

void wh_ledger_enter_port(struct wharf_port *port)
{
	struct wharf_loop *loop = port->source.loop;
	struct wh_stats_port *s = port->stats;

	port->tally.position = wh_control_position(s);
	s->opened_ns = loop->turn_ns;
	wh_lease_observe(port->lease, &loop->observer);
	wh_lease_positions(port->lease, &s->pool, &s->lease);
	wh_ledger_publish_port(port);
	wh_control_add_port(loop->stats, s);
	wh_loop_count(loop, ports_opened, 1);
}

static void list(struct wharf_port *port, uint8_t listed)
{
	uint32_t *n = port->source.loop->n_listed;

	for (unsigned changed = listed ^ port->tally.listed; changed; changed &= changed - 1) {
		unsigned i = (unsigned)__builtin_ctz(changed);
		n[i] += listed >> i & 1 ? 1u : UINT32_MAX;
	}
	port->tally.listed = listed;
}

void wh_ledger_leave_pool(struct wharf_port *port)
{
	put32(&port->stats->lease, 0);
	put32(&port->stats->pool, 0);
}

void wh_ledger_close_port(struct wharf_port *port)
{
	struct wharf_loop *loop = port->source.loop;

	if (wh_list_linked(&port->tally.touched))
		wh_list_remove(&port->tally.touched);
	list(port, 0);
	wh_control_remove_port(loop->stats, port->stats);
	wh_loop_count(loop, ports_closed, 1);
}

void wh_ledger_free_port(struct wharf_port *port) { free_block(port->source.loop, port->stats, sizeof(*port->stats)); }

/* ---- Ports ---- */

void wh_ledger_touch_slowly(struct wharf_port *port)
{
	if (!port->shut)
		wh_list_append(&port->source.loop->touched, &port->tally.touched);
}

static uint32_t flags_of(const struct wharf_port *port)
{
	return (port->paused ? WH_STATS_PAUSED : 0u) | (port->tx_inline ? WH_STATS_INLINE : 0u) |
		(port->untrusted ? WH_STATS_UNTRUSTED : 0u) | (port->starved ? WH_STATS_STARVED : 0u) |
		(port->connecting ? WH_STATS_CONNECTING : 0u) |
		(port->stats->blocked_since_ns ? WH_STATS_BLOCKED : 0u) | (port->answers ? WH_STATS_INTERNAL : 0u) |
		(port->stuck ? WH_STATS_STUCK : 0u) |
		(port->policy == WHARF_POLICY_KEEP_LATEST ? WH_STATS_KEEP_LATEST : 0u) |
		(port->policy == WHARF_POLICY_DROP_NEWEST ? WH_STATS_DROP_NEWEST : 0u) |
		(port->peer_bye ? WH_STATS_PEER_SAID_BYE : 0u) | (port->eof ? WH_STATS_EOF : 0u);
}

static uint8_t listed_as(const struct wharf_port *port)
{
	return (uint8_t)(wh_list_linked(&port->dirty) << DIRTY | wh_list_linked(&port->waiting) << WAITING |
		wh_list_linked(&port->ready) << READY | wh_list_linked(&port->ending) << ENDING);
}

/* Since when the peer has read nothing of what there is. */
static uint64_t unread_since(const struct wharf_port *port, uint64_t now_ns)
{
	if (port->frames_sent == port->frames_read_by_peer)
		return 0;
	if (port->tally.news & WH_NEWS_READ || !port->stats->unread_since_ns)
		return now_ns;
	return port->stats->unread_since_ns;
}

static void publish_end(struct wharf_port *port)
{
	struct wh_stats_port *s = port->stats;

	put32(&s->close_code, port->reason.code);
	put32((uint32_t *)&s->close_errno, (uint32_t)port->reason.error);
	put32(&s->app_code, port->reason.app_code);
	if (port->tally.news & WH_NEWS_ENDS)
		put_text(s->text, port->reason_text, sizeof(s->text));
}

void wh_ledger_publish_port(struct wharf_port *port)
{
	struct wh_stats_port *s = port->stats;
	uint64_t messages, bytes, now_ns = port->source.loop->turn_ns;
	bool known = port->said_hello || port->peer.pid;

	if (s->blocked_since_ns)
		wh_ledger_unblock(port, false);
	wh_port_queued(port, &messages, &bytes);
	begin(&s->sequence);
	put32(&s->state, port->state);
	put32((uint32_t *)&s->fd, (uint32_t)port->source.link.fd);
	put32(&s->flags, flags_of(port));
	put32(&s->peer_pid, known ? (uint32_t)port->peer.pid : UINT32_MAX);
	put32(&s->peer_uid, known ? port->peer.uid : UINT32_MAX);
	put32(&s->peer_gid, known ? port->peer.gid : UINT32_MAX);
	if (known && !s->peer_name[0])
		put_text(s->peer_name, port->peer.name, sizeof(s->peer_name));
	put32(&s->window, port->window);
	put32(&s->held_frames, port->n_held);
	put32(&s->streams_out, port->flows[WH_FLOW_STREAM_OUT].n);
	put32(&s->streams_in, port->flows[WH_FLOW_STREAM_IN].n);
	put32(&s->calls_out, port->flows[WH_FLOW_CALL].n);
	put32(&s->calls_in, port->flows[WH_FLOW_ANSWER].n);
	put64(&s->tx_queued_messages, messages);
	put64(&s->counts.tx_queued_bytes, bytes);
	put64(&s->counts.tx_lent_bytes, port->lease ? wh_lease_lent_bytes(port->lease) : 0);
	put64(&s->counts.tx_unread_frames, port->frames_sent - port->frames_read_by_peer);
	if (port->tally.news & WH_NEWS_SENT)
		put64(&s->last_tx_ns, now_ns);
	if (port->tally.news & WH_NEWS_RECEIVED)
		put64(&s->last_rx_ns, now_ns);
	put64(&s->unread_since_ns, unread_since(port, now_ns));
	if (port->state >= WH_PORT_ENDING)
		publish_end(port);
	end(&s->sequence);
	port->tally.news = 0;
	list(port, listed_as(port));
}

/* The peer's word: of another clock, it says nothing. */
uint64_t wh_lag(const struct wharf_port *port, uint64_t sent_ns)
{
	const struct wharf_loop *loop = port->source.loop;

	return sent_ns < loop->turn_ns ? loop->turn_ns - sent_ns : 0;
}

void wh_ledger_frame(struct wharf_port *port, uint64_t sent_ns)
{
	const struct wharf_loop *loop = port->source.loop;
	struct wh_stats_port *s = port->stats;
	uint64_t lag_ns = wh_lag(port, sent_ns);

	if (!loop->seen)
		return;
	wh_loop_count(loop, lag[bucket_of(lag_ns)], 1);
	begin(&s->sequence);
	put64(&s->lag_ns, lag_ns);
	raise_to(&s->longest_lag_ns, lag_ns);
	end(&s->sequence);
}

/* Between turns it is later than the last one. Rare: once until on_writable. */
static uint64_t now_of(const struct wharf_loop *loop) { return loop->in_step ? loop->turn_ns : wh_loop_clock(loop); }

void wh_ledger_block(struct wharf_port *port)
{
	struct wh_stats_port *s = port->stats;

	if (wh_likely(s->blocked_since_ns || !port->source.loop->seen))
		return;
	begin(&s->sequence);
	put64(&s->blocked_since_ns, wh_max(now_of(port->source.loop), 1));
	put32(&s->flags, s->flags | WH_STATS_BLOCKED);
	end(&s->sequence);
}

static bool waits_for_room(const struct wharf_port *port)
{
	return port->state < WH_PORT_ENDING &&
		(wh_port_waits_for_room(port) || port->n_dry || port->tally.claim_refused);
}

void wh_ledger_unblock(struct wharf_port *port, bool told)
{
	struct wh_stats_port *s = port->stats;
	bool waits = waits_for_room(port);
	uint64_t now_ns, ns;

	if (wh_likely(!s->blocked_since_ns) || (waits && !told))
		return;
	now_ns = now_of(port->source.loop);
	ns = now_ns > s->blocked_since_ns ? now_ns - s->blocked_since_ns : 0;
	begin(&s->sequence);
	wh_count(&s->blocked_ns, ns);
	raise_to(&s->longest_blocked_ns, ns);
	put64(&s->blocked_since_ns, waits ? now_ns : 0);
	put32(&s->flags, waits ? s->flags : s->flags & ~(uint32_t)WH_STATS_BLOCKED);
	end(&s->sequence);
}

/* ---- Turns ---- */

void wh_ledger_own(struct wharf_loop *loop) { put32(&loop->stats->tid, (uint32_t)gettid()); }

void wh_ledger_embed(struct wharf_loop *loop)
{
	put32(&loop->stats->flags, loop->stats->flags | WH_STATS_EMBEDDED);
	wh_engine_describe(loop->engine, loop->stats);
}

void wh_ledger_break(struct wharf_loop *loop, int error) { put32((uint32_t *)&loop->stats->broken, (uint32_t)-error); }

static void enter_phase(struct wharf_loop *loop, enum wh_stats_phase phase, uint64_t now_ns)
{
	/* Both are right for themselves; a reader that meets one of the two finds a phase that began just now. */
	atomic_store_explicit(&loop->stats->phase_since_ns, now_ns, memory_order_relaxed);
	atomic_store_explicit(&loop->stats->phase, phase, memory_order_relaxed);
}

/* The turn that began at turn_ns is over. */
static void end_work(struct wharf_loop *loop, uint64_t now_ns)
{
	uint64_t ns = now_ns > loop->turn_ns ? now_ns - loop->turn_ns : 0;

	if (atomic_load_explicit(&loop->stats->phase, memory_order_relaxed) != WH_PHASE_WORKS)
		return;
	loop->trace.worked_ns = ns;
	wh_loop_count(loop, busy_ns, ns);
	wh_loop_count(loop, turn[bucket_of(ns)], 1);
	raise_to(&loop->stats->longest_turn_ns, ns);
}

static void count_engine(struct wharf_loop *loop)
{
	const struct wh_engine *engine = loop->engine;
	struct wh_stats_loop *s = loop->stats;

	put64(&s->system_calls, engine->n_calls);
	put64(&s->completions, engine->n_completions);
	put64(&s->overflows, engine->n_overflows);
	put64(&s->no_buffers, engine->n_starved);
	put64(&s->sleeps, engine->n_sleeps);
	put64(&s->wakes, engine->n_wakes);
}

void wh_ledger_wait(struct wharf_loop *loop, uint64_t now_ns, int64_t timeout_ns)
{
	if (!loop->seen)
		return;
	end_work(loop, now_ns);
	enter_phase(loop, WH_PHASE_WAITS, now_ns);
	wh_trace(loop, NULL, WH_TRACE_SLEEP, timeout_ns < 0 ? UINT64_MAX : (uint64_t)timeout_ns, 0);
}

/* Of CLOCK_MONOTONIC, whatever clock the loop has: one store in a millisecond, of whichever loop comes first. */
static void set_pool_now(const struct wharf_loop *loop, uint64_t now_ns)
{
	wh_pool_set_now(wh_unlikely(loop->clock_ns) ? wh_clock_ns(CLOCK_MONOTONIC_COARSE) : now_ns);
}

void wh_ledger_work(struct wharf_loop *loop, uint64_t now_ns)
{
	set_pool_now(loop, now_ns);
	if (!loop->seen) {
		loop->turn_ns = now_ns;
		return;
	}
	if (atomic_load_explicit(&loop->stats->phase, memory_order_relaxed) != WH_PHASE_WAITS)
		end_work(loop, now_ns);
	loop->turn_ns = now_ns;
	wh_loop_enter(loop, 0);
	wh_loop_count(loop, turns, 1);
	enter_phase(loop, WH_PHASE_WORKS, now_ns);
	count_engine(loop);
	wh_trace_look(loop);
	if (loop->engine->n_events)
		wh_trace(loop, NULL, WH_TRACE_TURN, loop->engine->n_events, loop->trace.worked_ns);
}

static uint64_t first_deadline(const struct wharf_loop *loop)
{
	const struct wh_timer *first = wh_timers_first(&loop->timers);

	return first ? first->due_ns : 0;
}

void wh_ledger_publish(struct wharf_loop *loop)
{
	const struct wh_engine *engine = loop->engine;
	struct wh_stats_loop *s = loop->stats;
	struct wh_list *node;

	if (!loop->seen)
		return;
	while ((node = wh_list_take_first(&loop->touched)))
		wh_ledger_publish_port(wh_container_of(node, struct wharf_port, tally.touched));
	count_engine(loop);
	begin(&s->sequence);
	put32(&s->rx_buffers_lent, engine->rx_lent);
	put32(&s->rx_starved, engine->n_starving);
	for (unsigned i = 0; i < WH_ARMED_KINDS; i++)
		put32(&s->armed[i], engine->n_armed[i]);
	put32(&s->n_dirty, loop->n_listed[DIRTY]);
	put32(&s->n_waiting, loop->n_listed[WAITING]);
	put32(&s->n_ready, loop->n_listed[READY]);
	put32(&s->n_ending, loop->n_listed[ENDING]);
	put64(&s->next_deadline_ns, first_deadline(loop));
	end(&s->sequence);
	if (loop->trace.on)
		wh_trace_tell_skipped(loop);
}

void wh_ledger_leave(struct wharf_loop *loop, uint64_t now_ns)
{
	if (!loop->seen)
		return;
	end_work(loop, now_ns);
	enter_phase(loop, WH_PHASE_OUTSIDE, now_ns);
}

int wharf_loop_info(const wharf_loop *loop, struct wharf_loop_info *ret_info)
{
	struct wharf_loop_info info;
	int error = wh_loop_check(loop);

	if (error)
		return error;
	if (!ret_info || ret_info->size < sizeof(info.size))
		return -EINVAL;
	/* The engine's own: a loop that nobody sees has no others. */
	info = (struct wharf_loop_info){
		.size = wh_min(ret_info->size, sizeof(info)),
		.turns = loop->n_turns,
		.system_calls = loop->engine->n_calls,
		.sleeps = loop->engine->n_sleeps,
		.wakes = loop->engine->n_wakes,
	};
	memcpy(ret_info, &info, info.size);
	return 0;
}
