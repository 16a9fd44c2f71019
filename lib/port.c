/* SPDX-License-Identifier: MIT */
/* The life of a port: opening, closing, ending, lingering. */
#include "port.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "connect.h"
#include "latest.h"
#include "watch.h"

int wh_port_check(const struct wharf_port *port)
{
	if (wh_forked())
		return -ECHILD;
	if (!port)
		return -EINVAL;
	if (wh_unlikely(port->state >= WH_PORT_ENDING))
		return -EPIPE;
	return wh_loop_check(port->source.loop);
}

void wh_port_dirty(struct wharf_port *port)
{
	wh_port_touch(port);
	if (wh_list_linked(&port->dirty))
		return;
	wh_list_append(&port->source.loop->dirty, &port->dirty);
	wh_loop_rouse(port->source.loop);
}

/* ---- Ends ---- */

wharf_port *wharf_port_ref(wharf_port *port)
{
	if (port && !wh_forked())
		atomic_fetch_add_explicit(&port->refs, 1, memory_order_relaxed);
	return port;
}

wharf_port *wharf_port_unref(wharf_port *port)
{
	struct wharf_loop *loop;

	if (!port || wh_forked() || atomic_fetch_sub_explicit(&port->refs, 1, memory_order_acq_rel) != 1)
		return NULL;
	loop = port->source.loop;
	wh_posting_fini(port);
	wh_ledger_free_port(port);
	wh_loop_dealloc(loop, port);
	wharf_loop_unref(loop);
	return NULL;
}

void wh_port_end(struct wharf_port *port, uint32_t code, int error, const char *format, ...)
{
	va_list arguments;

	if (port->state >= WH_PORT_ENDING)
		return;
	port->state = WH_PORT_ENDING;
	port->tx_plain = false;
	wh_posting_shut(port);
	va_start(arguments, format);
	vsnprintf(port->reason_text, sizeof(port->reason_text), format, arguments);
	va_end(arguments);
	port->reason.code = code;
	port->reason.error = error;
	port->tally.news |= WH_NEWS_ENDS;
	wh_trace(port->source.loop, port, WH_TRACE_CLOSE, code, (uint64_t)error);
	/* What the kernel has taken by now is not unsent. */
	wh_engine_submit(port->source.loop->engine);
	wh_port_reap(port);
	wh_port_queued(port, &port->reason.unsent_messages, &port->reason.unsent_bytes);
	wh_loop_clear_deadline(port->source.loop, &port->deadline);
	wh_loop_clear_deadline(port->source.loop, &port->retry);
	wh_loop_clear_deadline(port->source.loop, &port->ask);
	wh_connect_stop(port);
	wh_list_append(&port->source.loop->ending, &port->ending);
	/* At once: on_close may hang. */
	wh_ledger_publish_port(port);
	wh_loop_rouse(port->source.loop);
}

/* The peer may still read what was lent to it: neither failed nor proved gone. */
static bool may_read(const struct wharf_port *port)
{
	return !port->eof && port->reason.code != WHARF_CLOSE_VIOLATION && port->reason.code != WHARF_CLOSE_MISMATCH &&
		port->reason.code != WHARF_CLOSE_ERROR;
}

/* A child's copy would hide from the peer that the messages are released. */
static void close_in_child(struct wh_fork_hook *hook)
{
	int fd = atomic_load(&wh_container_of(hook, struct wharf_port, holding)->holding_fd);

	if (fd >= 0)
		close(fd);
}

void wh_port_let_go(struct wharf_port *port)
{
	int fd;

	if (wh_likely(atomic_load(&port->holding_fd) < 0))
		return;
	wh_guard_lock();
	fd = atomic_exchange(&port->holding_fd, -1);
	if (fd >= 0)
		close(fd);
	wh_guard_unlock();
	if (fd >= 0)
		wh_guard_remove(&port->holding);
}

static void hold_socket(struct wharf_port *port)
{
	int fd;

	port->holding.child = close_in_child;
	wh_guard_add(&port->holding);
	wh_guard_lock();
	fd = fcntl(port->source.link.fd, F_DUPFD_CLOEXEC, 0);
	atomic_store(&port->holding_fd, fd);
	wh_guard_unlock();
	if (fd < 0)
		wh_guard_remove(&port->holding);
	else if (!atomic_load(&port->taken))
		wh_port_let_go(port);
}

static void detach(struct wharf_port *port)
{
	if (port->shut)
		return;
	port->shut = true;
	wh_port_drop_input(port);
	wh_port_flush_all_released(port);
	wh_port_unmap(port);
	wh_ledger_leave_pool(port);
	wh_lease_detach(port->lease);
	port->lease = NULL;
	/* The loop goes, taken messages stay: to their owner an end of file would mean that nobody reads them. */
	if (atomic_load(&port->taken))
		hold_socket(port);
	else
		shutdown(port->source.link.fd, SHUT_RDWR);
	wh_watch_stop(port);
	wh_engine_detach(port->source.loop->engine, &port->source.link);
	wh_loop_rouse(port->source.loop);
}

void wh_port_forget(struct wharf_port *port)
{
	port->ops = (struct wharf_port_ops){ 0 };
	wh_port_end(port, WHARF_CLOSE_ABORTED, 0, "not opened");
	detach(port);
}

void wh_port_linger(struct wharf_port *port)
{
	if (port->state != WH_PORT_CLOSED || port->shut)
		return;
	/* A peer reads the end of file as "holds nothing". */
	if (!port->eof && atomic_load(&port->taken))
		return;
	/* A private pool's segments die with its lease; a shared pool's chunks stay lent while the peer may read them. */
	if (may_read(port) && wh_lease_shared(port->lease) && wh_lease_harvest(port->lease) >= 0 &&
		wh_lease_lent_bytes(port->lease))
		return;
	detach(port);
}

void wh_port_finish(struct wharf_port *port)
{
	struct wharf_loop *loop = port->source.loop;

	wh_assert(port->state == WH_PORT_ENDING);
	wh_port_enter(port);
	/* Arrived before the end: delivered before it, unless the port failed or was aborted. */
	port->state = WH_PORT_CLOSED;
	wh_calls_end_all(port);
	wh_port_drop_output(port);
	wh_latest_free(port);
	wh_flows_fini(port);
	wh_port_do_chores(port);
	if (wh_list_linked(&port->chores))
		wh_list_remove(&port->chores);
	wh_port_drop_input(port);
	wh_port_flush_all_released(port);
	port->reason.text = port->reason_text;
	port->reason.peer = &port->peer;
	loop->n_users--;
	if (port->ops.on_close)
		port->ops.on_close(port, &port->reason, port->user);
	port->told = true;
	/* What the application took and still holds keeps the socket: the peer is told when that ends. */
	wh_port_linger(port);
	if (!port->shut)
		wh_port_dirty(port); /* a wake may be owed still */
	wharf_port_unref(port); /* the application's handle */
}

void wh_port_progress(struct wharf_port *port)
{
	if (port->state != WH_PORT_DRAINING || port->paused || !wh_list_empty(&port->held) || port->n_aside)
		return;
	if (port->peer_bye && (port->bye_sent || port->eof))
		wh_port_end(port, port->closed_here ? WHARF_CLOSE_LOCAL : WHARF_CLOSE_PEER, 0, "%s",
			port->closed_here ? "closed" : "the peer closed");
}

void wh_port_violation(struct wharf_port *port, const char *why)
{
	if (port->state < WH_PORT_ENDING) {
		wh_loop_count(port->source.loop, violations, 1);
		wh_trace(port->source.loop, port, WH_TRACE_VIOLATION, 0, 0);
	}
	wh_port_fail(port, WHARF_CLOSE_VIOLATION, EPROTO, WH_BYE_REFUSED, why, "peer %d broke the protocol: %s",
		(int)port->peer.pid, why);
}

void wh_port_eof(struct wharf_port *port)
{
	if (port->shut)
		return;
	wh_port_reap(port);
	if (port->state == WH_PORT_CLOSED) {
		wh_port_linger(port);
		return;
	}
	if (wh_port_delivers(port))
		return; /* looked at again when all is delivered */
	wh_port_progress(port);
	if (port->starved)
		wh_port_end(port, WHARF_CLOSE_ERROR, EMFILE,
			"no room in the descriptor table for a segment of the peer, which has ended");
	else if (port->said_hello)
		wh_port_end(port, WHARF_CLOSE_PEER_GONE, -port->eof_result, "peer %d (%s) ended without a word",
			(int)port->peer.pid, port->peer.name);
	else
		wh_port_end(port, WHARF_CLOSE_PEER_GONE, 0, "the peer ended before it said hello");
}

static void port_detached(struct wharf_port *port)
{
	struct wharf_loop *loop = port->source.loop;

	/* What it wanted to say while it lingered. */
	wh_port_drop_output(port);
	wh_outframe_free(loop, port->sending);
	wh_loop_clear_deadline(loop, &port->retry);
	wh_ledger_close_port(port);
	wh_loop_remove(&port->source);
	wh_timers_unreserve(&loop->timers, WH_PORT_TIMERS);
	wharf_port_unref(port); /* the loop's */
}

static void on_event(struct wh_source *source, struct wh_event *event)
{
	struct wharf_port *port = wh_container_of(source, struct wharf_port, source);

	wh_port_enter(port);
	wh_port_touch(port);
	switch (event->kind) {
	case WH_EVENT_FRAME:
		wh_port_receive(port, event);
		break;
	case WH_EVENT_SENT:
	case WH_EVENT_WRITABLE:
		wh_port_flush(port);
		if (!wh_list_empty(&port->blocked_flows))
			wh_port_chore(port);
		break;
	case WH_EVENT_EOF:
		port->eof = true;
		port->eof_result = event->result;
		wh_port_eof(port);
		break;
	case WH_EVENT_ERROR:
		port->eof = true;
		wh_port_end(port, WHARF_CLOSE_ERROR, -event->result, "receiving failed");
		wh_port_linger(port);
		break;
	case WH_EVENT_DETACHED:
		port_detached(port);
		break;
	default:
		wh_assert(!"an event that ports do not ask for");
	}
}

static void on_loop_freed(struct wh_source *source)
{
	struct wharf_port *port = wh_container_of(source, struct wharf_port, source);

	wharf_port_ref(port);
	wh_port_fail(
		port, WHARF_CLOSE_LOOP_FREED, 0, WH_BYE_ABORT, "the peer's loop was freed", "the loop was freed");
	if (port->state == WH_PORT_ENDING) {
		wh_list_remove(&port->ending);
		wh_port_finish(port);
	}
	detach(port);
	wharf_port_unref(port);
}

/* ---- Deadlines and kicks ---- */

static void on_deadline(struct wh_deadline *deadline)
{
	struct wharf_port *port = wh_container_of(deadline, struct wharf_port, deadline);

	if (port->state == WH_PORT_OPENING)
		wh_port_end(port, WHARF_CLOSE_TIMEOUT, ETIMEDOUT, "no hello from the peer in time");
	else
		wh_port_fail(port, WHARF_CLOSE_TIMEOUT, ETIMEDOUT, WH_BYE_ABORT, "the peer gave up waiting for the end",
			"the peer did not finish in time");
}

/* The socket can no longer be written. Its end comes when what the peer had sent is delivered. */
static void out_of_grace(struct wharf_port *port)
{
	if (port->eof)
		return;
	if (wh_port_delivers(port))
		wh_loop_set_deadline(port->source.loop, &port->retry, WH_GRACE_NS);
	else
		wh_port_end(port, WHARF_CLOSE_PEER_GONE, EPIPE, "the peer stopped reading");
}

static void on_retry(struct wh_deadline *deadline)
{
	struct wharf_port *port = wh_container_of(deadline, struct wharf_port, retry);

	port->backing_off = false;
	if (port->tx_dead && port->state < WH_PORT_ENDING)
		out_of_grace(port);
	else
		wh_port_flush(port);
}

void wh_port_kick(struct wharf_port *port, uint32_t reasons)
{
	wharf_port_ref(port);
	if (!wh_loop_kick(port->source.loop, &port->kick, reasons))
		wharf_port_unref(port);
}

/* A pool does not hold its ports: the lease is detached before the port goes, so this pointer lives. */
void wh_port_on_pool_kick(void *owner) { wh_port_kick(owner, WH_KICK_ROOM); }

static void on_pool_room(struct wharf_port *port)
{
	uint16_t slot;

	if (wh_lease_poisoned(port->lease)) {
		wh_port_violation(port, "it released memory that it did not hold");
		return;
	}
	while (wh_lease_next_retire(port->lease, &slot)) {
		wh_trace(port->source.loop, port, WH_TRACE_RETIRE, slot, 0);
		port->retire_asks[slot / 64] |= 1ull << (slot % 64);
		port->announce_again[slot / 64] &= ~(1ull << (slot % 64));
		port->slots_due = true;
		wh_port_dirty(port);
	}
	wh_port_room(port);
}

static void on_kick(struct wh_kick *kick, uint32_t reasons)
{
	struct wharf_port *port = wh_container_of(kick, struct wharf_port, kick);

	if (!port->shut && port->source.loop->engine) {
		wh_port_enter(port);
		if (reasons & WH_KICK_WAKE) {
			port->wake_due = true;
			wh_port_dirty(port);
		}
		if (reasons & WH_KICK_CREDIT)
			wh_port_collect_returned(port);
		if (reasons & WH_KICK_POSTS)
			wh_posting_look(port);
		if (reasons & WH_KICK_ROOM)
			on_pool_room(port);
		if (reasons & WH_KICK_UNREAD)
			wh_port_unmap_unread(port);
		if ((reasons & WH_KICK_RETURNED) && port->state == WH_PORT_CLOSED) {
			/* The peer may wait, lingering, for exactly this. */
			port->wake_due = true;
			wh_port_flush(port);
			wh_port_linger(port);
		}
	}
	wharf_port_unref(port);
}

void wh_port_callbacks(struct wharf_port *port)
{
	port->source.event = on_event;
	port->source.loop_freed = on_loop_freed;
	port->deadline.expired = on_deadline;
	port->retry.expired = on_retry;
	port->ask.expired = wh_port_ask_again;
	port->kick.run = on_kick;
}

/* ---- Closing ---- */

void wh_port_drain(struct wharf_port *port)
{
	port->tx_plain = false;
	wh_posting_shut(port);
	if (port->state > WH_PORT_OPEN)
		return;
	port->state = WH_PORT_DRAINING;
	wh_flows_give_up(port);
	if (port->latest)
		wh_latest_look(port);
}

int wharf_port_close(wharf_port *port, int64_t timeout_ns)
{
	int error = wh_port_check(port);

	if (error)
		return error;
	if (port->closed_here)
		return -EALREADY;
	port->closed_here = true;
	wh_port_drain(port);
	wh_loop_clear_deadline(port->source.loop, &port->deadline);
	if (timeout_ns >= 0)
		wh_loop_set_deadline(port->source.loop, &port->deadline, (uint64_t)timeout_ns);
	wh_port_dirty(port);
	return 0;
}

int wharf_port_abort(wharf_port *port, uint32_t app_code)
{
	int error = wh_port_check(port);

	if (error)
		return error;
	port->reason.app_code = app_code;
	wh_port_fail(port, WHARF_CLOSE_ABORTED, 0, WH_BYE_ABORT, "aborted", "aborted with code %u", app_code);
	return 0;
}

/* ---- Queries ---- */

wharf_pool *wharf_port_pool(wharf_port *port)
{
	return port && !wh_forked() && port->lease && !port->told ? wh_lease_pool(port->lease) : NULL;
}

wharf_loop *wharf_port_loop(wharf_port *port) { return port ? port->source.loop : NULL; }

void *wharf_port_user(wharf_port *port) { return port ? port->user : NULL; }

const struct wharf_peer *wharf_port_peer(wharf_port *port) { return port && port->said_hello ? &port->peer : NULL; }

int wharf_port_stats(wharf_port *port, struct wharf_port_stats *ret_stats)
{
	struct wharf_port_stats stats;
	uint64_t messages;
	size_t size;
	int error = wh_port_check(port);

	if (error)
		return error;
	if (!ret_stats || !ret_stats->size)
		return -EINVAL;
	memcpy(&stats.tx_messages, &port->stats->counts, sizeof(port->stats->counts));
	stats.size = size = wh_min(ret_stats->size, sizeof(stats));
	wh_port_queued(port, &messages, &stats.tx_queued_bytes);
	stats.tx_lent_bytes = wh_lease_lent_bytes(port->lease);
	stats.tx_unread_frames = port->frames_sent - port->frames_read_by_peer;
	memcpy(ret_stats, &stats, size);
	return 0;
}
