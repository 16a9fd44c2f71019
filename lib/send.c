/* SPDX-License-Identifier: MIT */
/* What an application sends: checked, lent, and put into the port's queue whole or not at all. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "latest.h"
#include "outbox.h"

enum { RUN_RECORD = sizeof(struct wh_message_record) + sizeof(struct wh_run) };

uint32_t wh_port_bytes_max(const struct wharf_port *port)
{
	/* As one part, with descriptors, rounded. */
	return wh_port_message_room(port) - (uint32_t)(sizeof(struct wh_message_record) + 8 + sizeof(struct wh_run) + 8);
}

void wh_port_limit_messages(struct wharf_port *port, uint64_t bytes_max)
{
	port->tx_message_bytes_max = bytes_max;
	/* What has a key to look for, or a cap to keep, goes the long way. */
	if (port->latest || port->tx_lent_bytes_max)
		port->tx_fast_bytes_end = 0;
	else
		port->tx_fast_bytes_end = bytes_max == UINT64_MAX ? bytes_max : bytes_max + 1;
}

void wh_port_read_by_peer(struct wharf_port *port, uint64_t frames)
{
	if (wh_likely(frames == port->frames_read_by_peer))
		return;
	if (frames < port->frames_read_by_peer || frames > port->frames_sent) {
		wh_port_violation(port, "it reports frames as read that it cannot have read");
		return;
	}
	for (; port->frames_read_by_peer < frames; port->frames_read_by_peer++) {
		port->tx_fds_unread -= port->window_fds[port->frames_read_by_peer % WH_WINDOW_MAX];
		port->bytes_unread -= port->window_bytes[port->frames_read_by_peer % WH_WINDOW_MAX];
	}
	port->tally.news |= WH_NEWS_READ;
	if (port->latest)
		wh_latest_look(port);
	if (!wh_list_empty(&port->active) || port->frames || port->open || !wh_list_empty(&port->blocked_flows))
		wh_port_dirty(port);
}

int wh_fds_take(const struct wharf_out *out, int *fds)
{
	/* One number twice would be closed twice. */
	for (size_t i = 1; out->flags & WHARF_FDS_MOVE && i < out->n_fds; i++)
		for (size_t j = 0; j < i; j++)
			if (out->fds[i] == out->fds[j])
				return -EINVAL;
	for (size_t i = 0; i < out->n_fds; i++) {
		fds[i] = out->flags & WHARF_FDS_MOVE ? out->fds[i] : fcntl(out->fds[i], F_DUPFD_CLOEXEC, 0);
		if (fds[i] < 0 || (out->flags & WHARF_FDS_MOVE && fcntl(fds[i], F_GETFD) < 0)) {
			int error = out->flags & WHARF_FDS_MOVE ? -EBADF : -errno;
			if (!(out->flags & WHARF_FDS_MOVE))
				wh_fds_close(fds, i);
			return error;
		}
	}
	return 0;
}

enum { MUST_WAIT = 1 };

/* Into the open frame. 0; MUST_WAIT; negative. */
static int encode_now(struct wharf_port *port, struct wh_outmsg *m)
{
	int error = 0;

	/* Full of payload, and the queue has no room for it. */
	if (port->open && port->open->n_bytes >= port->flush_bytes && !wh_outbox_turn_over(port))
		return -EAGAIN;
	for (;;) {
		switch (wh_outmsg_encode(port, m, false, &error)) {
		case WH_ENCODED:
			wh_outflow_charge(m->flow, m->charge_bytes);
			return 0;
		case WH_FRAME_FULL:
			if (!wh_outbox_turn_over(port))
				return -EAGAIN;
			if (port->state >= WH_PORT_ENDING || port->tx_dead)
				return -EPIPE;
			continue;
		case WH_ENCODE_FAILED:
			return error;
		default:
			return MUST_WAIT;
		}
	}
}

/* Into the open frame if nothing waits, or it is as it was. 0; MUST_WAIT; negative. */
static int try_now(struct wharf_port *port, struct wh_outmsg *m)
{
	int error;

	/* An end that is not refused for want of credit must wait for it all the same, behind what waits already. */
	if (!port->tx_plain || m->by_reference || m->flow->out.first || m->flow->out.credit_bytes <= 0)
		return MUST_WAIT;
	/*
	 * A frame may leave before this message is encoded, or it may be refused: its chunks are not yet the peer's to
	 * release.
	 */
	wh_lease_hold(port->lease);
	error = encode_now(port, m);
	if (error)
		wh_outmsg_take_back(port, m);
	wh_lease_unhold(port->lease);
	return error;
}

/* At once if nothing waits, else in its flow. 0; WHARF_SENT_REPLACED; negative. */
static int place(struct wharf_port *port, struct wh_outmsg *m)
{
	struct wh_outmsg *older, *kept;
	int error = try_now(port, m);

	/* A value waits where the next can replace it. */
	if (error == -EAGAIN && !m->must && !m->is_value)
		return error;
	if (error != MUST_WAIT && error != -EAGAIN)
		return error;
	older = m->is_value ? wh_latest_find(port, m->type, m->key) : NULL;
	if (!m->must && !wh_outflow_takes(m->flow, m->cost, older))
		return -EAGAIN;
	if (!older)
		return wh_outflow_queue(m->flow, m);
	kept = wh_outmsg_keep(port, m);
	if (!kept)
		return -ENOMEM;
	wh_outflow_replace(m->flow, older, kept);
	return WHARF_SENT_REPLACED;
}

/* On a port with that policy, of its plain messages. */
static bool is_droppable(const struct wh_outmsg *m)
{
	return m->flow->port->policy == WHARF_POLICY_DROP_NEWEST && m->flow->kind == WH_FLOW_PLAIN && !m->is_end;
}

/* As if it had been sent. WHARF_SENT_DROPPED; -ENOMEM. */
static int drop(struct wharf_port *port, struct wh_outmsg *m)
{
	struct wh_outmsg *kept = m->by_reference ? wh_outmsg_keep(port, m) : NULL;

	if (m->by_reference && !kept)
		return -ENOMEM;
	wh_port_count(port, tx_dropped, 1);
	wh_port_count(port, tx_dropped_bytes, m->left_bytes);
	if (m->close_fds)
		port->tx_fds_queued += m->n_fds;
	if (kept)
		wh_outmsg_drop(port, kept);
	else
		wh_outmsg_empty(port, m);
	return WHARF_SENT_DROPPED;
}

static int refuse(const struct wh_outmsg *m, const struct wh_demand *d)
{
	wh_outflow_block(m->flow, d);
	wh_port_count(m->flow->port, tx_again, 1);
	wh_ledger_block(m->flow->port);
	wh_trace(m->flow->port->source.loop, m->flow->port, WH_TRACE_AGAIN, m->left_bytes, EAGAIN);
	return -EAGAIN;
}

int wh_port_send(struct wharf_port *port, struct wh_outmsg *m, const struct wharf_out *out)
{
	struct wh_outmsg_room room;
	struct wh_demand demand;
	uint64_t bytes;
	bool fits;
	/* The rest of a delegated request is copied, whatever it lies in. */
	int error = wh_outmsg_read(port->answers ? 0 : port->lease->pool, out, m, &room);

	if (error)
		return error;
	if (port->tx_dead)
		return -EPIPE;
	if (out->n_fds > WH_ENGINE_FDS_MAX || (port->said_hello && out->n_fds > (uint64_t)port->peer.fds_max + m->delegated) ||
		out->n_fds > port->tx_fds_max)
		return -EMSGSIZE;
	if (m->first && m->last) {
		if (m->left_bytes > port->tx_message_bytes_max)
			return -EMSGSIZE;
		m->total_bytes = m->left_bytes;
		m->position_bytes = 0;
	}
	m->cost = wh_outmsg_cost(m);
	m->lent_bytes = wh_outmsg_lends(port, m);
	demand = (struct wh_demand){
		.cost = m->cost,
		.lent_bytes = m->lent_bytes,
		.key = m->key,
		.type = m->type,
		.n_fds = m->n_fds,
		.is_value = m->is_value,
	};
	/* Its room may be there already: nobody tells while nothing waits. */
	if (m->is_value && m->flow->out.credit_bytes <= 0)
		wh_latest_look(port);
	fits = m->must || wh_demand_fits(m->flow, &demand);
	if (!fits && !is_droppable(m))
		return refuse(m, &demand);
	if (fits || out->flags & WHARF_FDS_MOVE) {
		error = wh_fds_take(out, room.fds);
		if (error)
			return error;
		m->close_fds = true;
	}
	bytes = m->left_bytes;
	error = fits ? place(port, m) : -EAGAIN;
	if (error == -EAGAIN && is_droppable(m))
		error = drop(port, m);
	if (error < 0) {
		if (m->close_fds && !(out->flags & WHARF_FDS_MOVE))
			wh_fds_close(room.fds, out->n_fds);
		return error == -EAGAIN ? refuse(m, &demand) : error;
	}
	wh_out_empty(out);
	if (error == WHARF_SENT_DROPPED)
		return error;
	wh_trace_often(port->source.loop, port, WH_OFTEN_SEND, bytes, m->type);
	port->tx_fds_queued += m->n_fds;
	m->flow->out.begun = true;
	m->flow->out.ended = m->end;
	m->flow->out.position_bytes += bytes;
	if (m->flow->kind == WH_FLOW_STREAM_OUT)
		wh_outflow_look_for_end(m->flow);
	if (port->open && port->open->n_bytes >= port->flush_bytes)
		wh_outbox_turn_over(port);
	return error;
}

bool wh_port_encode_posted(struct wharf_port *port, struct wh_outmsg *m)
{
	return wh_port_frames_take_fds(port, m->n_fds) && !try_now(port, m);
}

int wharf_send(wharf_port *port, const struct wharf_out *out)
{
	struct wh_outmsg m = { .first = true, .last = true };
	int error = wh_port_check(port);

	if (error)
		return error;
	if (!out || out->flags & ~(uint32_t)WHARF_FDS_MOVE)
		return -EINVAL;
	if (out->key && !port->latest)
		return -EINVAL;
	if (port->state == WH_PORT_DRAINING)
		return -EPIPE;
	m.flow = &port->plain;
	m.key = out->key;
	m.is_value = port->latest;
	return wh_port_send(port, &m, out);
}

/*
 * The two sends that are made by the million keep to registers, and leave all that is rare to functions that are not
 * inlined: what a message costs here is its stores, which queue behind those that fetch lines from the peer's processor.
 */
static __attribute__((noinline)) int frame_begun(struct wharf_port *port, struct wh_outframe *open)
{
	open->data = true;
	wh_port_dirty(port);
	return 0;
}

static __attribute__((noinline)) int frame_filled(struct wharf_port *port)
{
	port->open->data = true;
	wh_port_dirty(port);
	wh_outbox_turn_over(port);
	return 0;
}

static inline int encoded(struct wharf_port *port, struct wh_outframe *open, size_t size)
{
	open->n_bytes += size;
	/* A frame without room for one more of the smallest is full. */
	if (wh_unlikely(open->n_bytes >= port->flush_bytes || open->encoder.capacity - open->encoder.size < RUN_RECORD))
		return frame_filled(port);
	return wh_likely(open->data) ? 0 : frame_begun(port, open);
}

static inline bool takes_plain(const struct wharf_port *port, const struct wh_outframe *open, size_t size)
{
	return wh_likely(open && port->tx_plain && size < port->tx_fast_bytes_end && open->n_bytes < port->flush_bytes);
}

static __attribute__((noinline)) int send_buf_slowly(struct wharf_port *port, uint32_t type, struct wharf_buf *buf)
{
	return wharf_send(
		port, &(struct wharf_out){ .type = type, .parts = &(struct wharf_part){ .buf = buf }, .n_parts = 1 });
}

/* The first message from another word of the pool: the lease has to change to that. */
static __attribute__((noinline)) int send_buf_from_next_word(
	struct wharf_port *port, uint32_t type, struct wharf_buf *buf)
{
	struct wh_run run;

	if (wh_lease_lend(port->lease, buf, 0, buf->size, 0, &run))
		return send_buf_slowly(port, type, buf);
	if (wh_lease_must_announce(port->lease, run.slot) || !wh_encode_run(&port->open->encoder, type, &run)) {
		wh_lease_take_back(port->lease, &run);
		return send_buf_slowly(port, type, buf);
	}
	*buf = (struct wharf_buf)WHARF_BUF_EMPTY;
	wh_trace_often(port->source.loop, port, WH_OFTEN_SEND, run.size, type);
	return encoded(port, port->open, run.size);
}

static inline __attribute__((always_inline)) int send_buf(
	struct wharf_port *port, uint32_t type, struct wharf_buf *buf, bool watched)
{
	struct wh_outframe *open = port->open;
	struct wh_run *run;
	size_t size = buf->size;

	if (!takes_plain(port, open, size) || wh_unlikely(!wh_encoder_takes(&open->encoder, RUN_RECORD)))
		return send_buf_slowly(port, type, buf);
	if (wh_unlikely(!wh_lease_at_word(port->lease, buf)))
		return send_buf_from_next_word(port, type, buf);
	run = wh_encode_run_place(&open->encoder, type);
	wh_lease_lend_here(port->lease, buf, run);
	buf->data = NULL;
	buf->size = 0;
	if (watched)
		wh_trace_watched(port->source.loop, port, WH_OFTEN_SEND, size, type);
	return encoded(port, open, size);
}

static __attribute__((noinline)) int send_buf_unusually(struct wharf_port *port, uint32_t type, struct wharf_buf *buf)
{
	return wh_forked() ? -ECHILD : send_buf(port, type, buf, true);
}

int wharf_send_buf(wharf_port *port, uint32_t type, struct wharf_buf *buf)
{
	if (wh_unlikely(!port || !buf))
		return -EINVAL;
	return wh_usual() ? send_buf(port, type, buf, false) : send_buf_unusually(port, type, buf);
}

static __attribute__((noinline)) int send_bytes_slowly(
	struct wharf_port *port, uint32_t type, const void *bytes, size_t size)
{
	return wharf_send(port,
		&(struct wharf_out){
			.type = type, .parts = &(struct wharf_part){ .bytes = bytes, .size = size }, .n_parts = 1 });
}

static inline __attribute__((always_inline)) int send_bytes(
	struct wharf_port *port, uint32_t type, const void *bytes, size_t size, bool watched)
{
	struct wh_outframe *open = port->open;

	if (!takes_plain(port, open, size) || wh_unlikely(size > wh_port_message_room(port) || (size && !bytes)))
		return send_bytes_slowly(port, type, bytes, size);
	if (wh_unlikely(!wh_encode_bytes(&open->encoder, type, bytes, (uint32_t)size)))
		return send_bytes_slowly(port, type, bytes, size);
	if (watched)
		wh_trace_watched(port->source.loop, port, WH_OFTEN_SEND, size, type);
	return encoded(port, open, size);
}

static __attribute__((noinline)) int send_bytes_unusually(
	struct wharf_port *port, uint32_t type, const void *bytes, size_t size)
{
	return wh_forked() ? -ECHILD : send_bytes(port, type, bytes, size, true);
}

int wharf_send_bytes(wharf_port *port, uint32_t type, const void *bytes, size_t size)
{
	if (wh_unlikely(!port))
		return -EINVAL;
	return wh_usual() ? send_bytes(port, type, bytes, size, false) : send_bytes_unusually(port, type, bytes, size);
}
