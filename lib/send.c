/* SPDX-License-Identifier: MIT */
/* What an application sends: checked, lent, and put into the port's queue whole or not at all. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "outbox.h"

enum { RUN_RECORD = sizeof(struct wh_message_record) + sizeof(struct wh_run) };

uint32_t wh_port_bytes_max(const struct wharf_port *port)
{
	/* As one part, with descriptors, rounded. */
	return wh_port_message_room(port) - (uint32_t)(sizeof(struct wh_message_record) + 8 + sizeof(struct wh_run) + 8);
}

static bool fds_fit(const struct wharf_port *port, uint32_t n_fds)
{
	return port->tx_fds_unread + port->tx_fds_queued + n_fds <= port->tx_fds_max;
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
	if (!wh_list_empty(&port->active) || port->frames || port->open || !wh_list_empty(&port->blocked_flows))
		wh_port_dirty(port);
}

/* Would what the flow was refused succeed now? */
static bool unblocked(const struct wharf_port *port, const struct wh_flow *flow)
{
	return fds_fit(port, flow->out.blocked_fds) && wh_outflow_takes(flow, flow->out.blocked_cost) &&
		wh_outbox_takes_frame(port);
}

/* The flows that may go on; those of calls are told at once. True: the port is to be told. */
static bool unblock_flows(struct wharf_port *port)
{
	struct wh_list blocked, *node;
	bool tell = false;

	wh_list_init(&blocked);
	wh_list_splice(&blocked, &port->blocked_flows);
	while ((node = wh_list_take_first(&blocked))) {
		struct wh_flow *flow = wh_container_of(node, struct wh_flow, out.blocked);
		if (!unblocked(port, flow))
			wh_list_append(&port->blocked_flows, node);
		else if (flow->kind == WH_FLOW_CALL || flow->kind == WH_FLOW_ANSWER)
			wh_call_writable(flow);
		else
			tell = true;
	}
	return tell;
}

void wh_port_room(struct wharf_port *port)
{
	/* In every state: private words are given back here, and the lease may be kicked again. */
	bool tell = wh_pool_room(wh_lease_pool(port->lease), port->lease);

	if (port->state >= WH_PORT_ENDING)
		return;
	tell |= port->posting.writable;
	port->posting.writable = false;
	tell |= unblock_flows(port);
	for (unsigned kind = 0; port->blocked_starts >> kind; kind++)
		if (port->blocked_starts >> kind & 1 && port->flows[kind].n < port->flows_max[kind]) {
			port->blocked_starts &= ~(1u << kind);
			tell = true;
		}
	if (tell && port->ops.on_writable && port->state <= WH_PORT_OPEN)
		port->ops.on_writable(port, port->user);
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

void wh_outflow_block(struct wh_flow *flow, uint64_t cost, uint32_t n_fds)
{
	bool first = !wh_list_linked(&flow->out.blocked);

	/* Of several refused the smallest is remembered: it must not wait for the room of a larger one. */
	flow->out.blocked_cost = first ? cost : wh_min(flow->out.blocked_cost, cost);
	flow->out.blocked_fds = first ? n_fds : (uint32_t)wh_min(flow->out.blocked_fds, n_fds);
	if (first)
		wh_list_append(&flow->port->blocked_flows, &flow->out.blocked);
}

static int again(struct wh_flow *flow, uint64_t cost, uint32_t n_fds)
{
	wh_outflow_block(flow, cost, n_fds);
	flow->port->stats.tx_again++;
	return -EAGAIN;
}

enum { MUST_WAIT = 1 };

/* Into the open frame. 0; MUST_WAIT; negative. */
static int encode_now(struct wharf_port *port, struct wh_outmsg *m)
{
	uint64_t bytes = m->left_bytes;
	int error = 0;

	/* Full of payload, and the queue has no room for it. */
	if (port->open && port->open->n_bytes >= port->flush_bytes && !wh_outbox_turn_over(port))
		return -EAGAIN;
	for (;;) {
		switch (wh_outmsg_encode(port, m, false, &error)) {
		case WH_ENCODED:
			wh_outflow_charge(m->flow, bytes);
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

/* At once if nothing waits, else in its flow. */
static int place(struct wharf_port *port, struct wh_outmsg *m)
{
	int error = try_now(port, m);

	if (error == -EAGAIN && !m->must)
		return again(m->flow, m->cost, m->n_fds);
	if (error != MUST_WAIT && error != -EAGAIN)
		return error;
	if (!m->must && !wh_outflow_takes(m->flow, m->cost))
		return again(m->flow, m->cost, m->n_fds);
	return wh_outflow_queue(m->flow, m);
}

int wh_port_send(struct wharf_port *port, struct wh_outmsg *m, const struct wharf_out *out)
{
	struct wh_outmsg_room room;
	uint64_t bytes;
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
	if (!m->must && (m->flow->out.credit_bytes <= 0 || !fds_fit(port, m->n_fds)))
		return again(m->flow, m->cost, m->n_fds);
	error = wh_fds_take(out, room.fds);
	if (error)
		return error;
	m->close_fds = true;
	bytes = m->left_bytes;
	error = place(port, m);
	if (error) {
		if (!(out->flags & WHARF_FDS_MOVE))
			wh_fds_close(room.fds, out->n_fds);
		return error;
	}
	port->tx_fds_queued += m->n_fds;
	m->flow->out.begun = true;
	m->flow->out.ended = m->end;
	m->flow->out.position_bytes += bytes;
	wh_out_empty(out);
	if (m->flow->kind == WH_FLOW_STREAM_OUT)
		wh_outflow_look_for_end(m->flow);
	if (port->open && port->open->n_bytes >= port->flush_bytes)
		wh_outbox_turn_over(port);
	return 0;
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
	if (out->key)
		return -EOPNOTSUPP;
	if (port->state == WH_PORT_DRAINING)
		return -EPIPE;
	m.flow = &port->plain;
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
	return wh_likely(open && port->tx_plain && !wh_forked() && size <= port->tx_message_bytes_max &&
		open->n_bytes < port->flush_bytes);
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
	return encoded(port, port->open, run.size);
}

int wharf_send_buf(wharf_port *port, uint32_t type, struct wharf_buf *buf)
{
	struct wh_outframe *open;
	struct wh_run *run;
	size_t size;

	if (wh_unlikely(!port || !buf))
		return -EINVAL;
	open = port->open;
	size = buf->size;
	if (!takes_plain(port, open, size) || wh_unlikely(!wh_encoder_takes(&open->encoder, RUN_RECORD)))
		return send_buf_slowly(port, type, buf);
	if (wh_unlikely(!wh_lease_at_word(port->lease, buf)))
		return send_buf_from_next_word(port, type, buf);
	run = wh_encode_run_place(&open->encoder, type);
	wh_lease_lend_here(port->lease, buf, run);
	buf->data = NULL;
	buf->size = 0;
	return encoded(port, open, size);
}

static __attribute__((noinline)) int send_bytes_slowly(
	struct wharf_port *port, uint32_t type, const void *bytes, size_t size)
{
	return wharf_send(port,
		&(struct wharf_out){
			.type = type, .parts = &(struct wharf_part){ .bytes = bytes, .size = size }, .n_parts = 1 });
}

int wharf_send_bytes(wharf_port *port, uint32_t type, const void *bytes, size_t size)
{
	struct wh_outframe *open;

	if (wh_unlikely(!port))
		return -EINVAL;
	open = port->open;
	if (!takes_plain(port, open, size) || wh_unlikely(size > wh_port_message_room(port) || (size && !bytes)))
		return send_bytes_slowly(port, type, bytes, size);
	if (wh_unlikely(!wh_encode_bytes(&open->encoder, type, bytes, (uint32_t)size)))
		return send_bytes_slowly(port, type, bytes, size);
	return encoded(port, open, size);
}
