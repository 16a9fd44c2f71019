/* SPDX-License-Identifier: MIT */
/* What an application sends: checked, lent, and put into the port's queue whole or not at all. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "outbox.h"

enum { RUN_RECORD = sizeof(struct wh_message_record) + sizeof(struct wh_run) };

/* What the records of one message may take, control room and frame header kept. */
static uint32_t message_room(const struct wharf_port *port)
{
	return port->tx_frame_bytes - WH_CONTROL_ROOM - (uint32_t)sizeof(struct wh_frame);
}

uint32_t wh_port_bytes_max(const struct wharf_port *port)
{
	/* As one part, with descriptors, rounded. */
	return message_room(port) - (uint32_t)(sizeof(struct wh_message_record) + 8 + sizeof(struct wh_run) + 8);
}

static bool fds_fit(const struct wharf_port *port, uint32_t n_fds)
{
	return port->tx_fds_unread + port->tx_fds_queued + n_fds <= port->tx_fds_max;
}

/* Of messages that wait for the hello: an empty backlog takes one of any size. */
static bool backlog_takes(const struct wharf_port *port, uint64_t cost)
{
	return !port->backlog || port->backlog_cost + cost <= port->tx_queued_bytes_max;
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
	if (port->backlog || port->frames || port->open || port->blocked)
		wh_port_dirty(port);
}

void wh_port_room(struct wharf_port *port)
{
	/* In every state: private words are given back here, and the lease may be kicked again. */
	bool tell = wh_pool_room(wh_lease_pool(port->lease), port->lease);

	if (port->state > WH_PORT_OPEN)
		return;
	if (port->blocked && fds_fit(port, port->blocked_fds) && backlog_takes(port, port->blocked_cost) &&
		wh_outbox_takes_frame(port)) {
		port->blocked = false;
		tell = true;
	}
	if (tell && port->ops.on_writable)
		port->ops.on_writable(port, port->user);
}

/* ---- Sending: the public functions ---- */

struct outgoing {
	struct wh_message_out message;
	struct wh_piece pieces[WH_WIRE_ITEMS_MAX];
	struct wh_run runs[WH_WIRE_ITEMS_MAX];
	int fds[WH_ENGINE_FDS_MAX];
	uint32_t n_lent;
	uint64_t n_bytes;
};

static int check_parts(const struct wharf_out *out)
{
	if (out->flags & ~(uint32_t)WHARF_FDS_MOVE || out->n_parts > WH_WIRE_ITEMS_MAX ||
		(out->n_parts && !out->parts) || (out->n_fds && !out->fds) || out->reserved[0] || out->reserved[1] ||
		out->reserved[2])
		return -EINVAL;
	if (out->key)
		return -EOPNOTSUPP;
	for (size_t i = 0; i < out->n_parts; i++) {
		const struct wharf_part *part = &out->parts[i];
		if (part->done)
			return -EOPNOTSUPP;
		if (part->reserved[0] || part->reserved[1] || (part->buf && part->bytes) ||
			(!part->buf && !part->bytes && part->size) || (!part->buf && part->offset))
			return -EINVAL;
		for (size_t j = 0; part->buf && j < i; j++)
			if (out->parts[j].buf == part->buf)
				return -EINVAL;
	}
	return 0;
}

static void take_back(struct wharf_port *port, struct outgoing *o)
{
	while (o->n_lent)
		wh_lease_take_back(port->lease, &o->runs[--o->n_lent]);
}

static int lend_parts(struct wharf_port *port, const struct wharf_out *out, struct outgoing *o)
{
	for (size_t i = 0; i < out->n_parts; i++) {
		const struct wharf_part *part = &out->parts[i];
		struct wh_piece *piece = &o->pieces[i];
		if (part->buf) {
			struct wh_run *run = &o->runs[o->n_lent];
			size_t size = part->size ? part->size : part->buf->size - wh_min(part->offset, part->buf->size);
			int error = wh_lease_lend(port->lease, part->buf, part->offset, size, 0, run);
			if (error)
				return error;
			o->n_lent++;
			*piece = (struct wh_piece){ .run = run };
			o->n_bytes += size;
			continue;
		}
		if (part->size > WH_FRAME_BYTES_MAX)
			return -EMSGSIZE;
		*piece = (struct wh_piece){ .bytes = part->bytes, .size = (uint32_t)part->size };
		o->n_bytes += part->size;
	}
	return 0;
}

/* Duplicates, or checks, before anything is accepted. */
static int take_fds(const struct wharf_out *out, struct outgoing *o)
{
	/* One number twice would be closed twice. */
	for (size_t i = 1; out->flags & WHARF_FDS_MOVE && i < out->n_fds; i++)
		for (size_t j = 0; j < i; j++)
			if (out->fds[i] == out->fds[j])
				return -EINVAL;
	for (size_t i = 0; i < out->n_fds; i++) {
		o->fds[i] = out->flags & WHARF_FDS_MOVE ? out->fds[i] : fcntl(out->fds[i], F_DUPFD_CLOEXEC, 0);
		if (o->fds[i] < 0 || (out->flags & WHARF_FDS_MOVE && fcntl(o->fds[i], F_GETFD) < 0)) {
			int error = out->flags & WHARF_FDS_MOVE ? -EBADF : -errno;
			if (!(out->flags & WHARF_FDS_MOVE))
				wh_fds_close(o->fds, i);
			return error;
		}
	}
	return 0;
}

static int again(struct wharf_port *port, uint64_t cost, uint32_t n_fds)
{
	/* Of several refused the smallest is remembered: it must not wait for the room of a larger one. */
	port->blocked_cost = port->blocked ? wh_min(port->blocked_cost, cost) : cost;
	port->blocked_fds = port->blocked ? (uint32_t)wh_min(port->blocked_fds, n_fds) : n_fds;
	port->blocked = true;
	port->stats.tx_again++;
	return -EAGAIN;
}

/* Into the open frame, or, before the hello, on the backlog. What it returns is the send's result. */
static int place(struct wharf_port *port, struct outgoing *o)
{
	const uint64_t cost = o->n_bytes + sizeof(struct wh_outmsg);
	int error = 0;

	if (!port->tx_plain) {
		if (!backlog_takes(port, cost))
			return again(port, cost, o->message.n_fds);
		return wh_outbox_queue(port, &o->message, o->fds, o->n_bytes);
	}
	/* Full of payload, and the queue had no room for it. */
	if (port->open && port->open->n_bytes >= port->flush_bytes && !wh_outbox_turn_over(port))
		return again(port, 0, o->message.n_fds);
	for (;;) {
		switch (wh_outbox_encode(port, &o->message, o->fds, o->n_bytes, &error)) {
		case ENCODED:
			wh_port_dirty(port);
			return 0;
		case FAILED:
			return error;
		case FRAME_FULL:
			if (wh_encoder_empty(&port->open->encoder))
				return -EMSGSIZE;
			if (!wh_outbox_turn_over(port))
				return again(port, 0, o->message.n_fds);
			if (port->state >= WH_PORT_ENDING || port->tx_dead)
				return -EPIPE;
		}
	}
}

int wharf_send(wharf_port *port, const struct wharf_out *out)
{
	struct outgoing o;
	int error = wh_port_check(port);

	if (error)
		return error;
	if (!out)
		return -EINVAL;
	error = check_parts(out);
	if (error)
		return error;
	if (port->state == WH_PORT_DRAINING || port->tx_dead)
		return -EPIPE;
	if (out->n_fds > WH_ENGINE_FDS_MAX || (port->said_hello && out->n_fds > port->peer.fds_max) ||
		out->n_fds > port->tx_fds_max)
		return -EMSGSIZE;
	o.n_lent = 0;
	o.n_bytes = 0;
	o.message = (struct wh_message_out){
		.kind = WH_RECORD_MESSAGE,
		.flags = WH_RECORD_FIRST | WH_RECORD_LAST,
		.n_pieces = (uint16_t)out->n_parts,
		.n_fds = (uint16_t)out->n_fds,
		.type = out->type,
		.pieces = o.pieces,
	};
	/*
	 * A frame may leave before this message is encoded, or it may be refused: its chunks are not yet the peer's to
	 * release.
	 */
	wh_lease_hold(port->lease);
	error = lend_parts(port, out, &o);
	if (!error && (o.n_bytes > port->tx_message_bytes_max || wh_message_size(&o.message) > message_room(port)))
		error = -EMSGSIZE;
	if (!error && !fds_fit(port, o.message.n_fds))
		error = again(port, 0, o.message.n_fds);
	if (!error)
		error = take_fds(out, &o);
	if (error) {
		take_back(port, &o);
		wh_lease_unhold(port->lease);
		return error;
	}
	error = place(port, &o);
	if (error)
		take_back(port, &o);
	wh_lease_unhold(port->lease);
	if (error) {
		if (!(out->flags & WHARF_FDS_MOVE))
			wh_fds_close(o.fds, out->n_fds);
		return error;
	}
	port->tx_fds_queued += o.message.n_fds;
	for (size_t i = 0; i < out->n_parts; i++)
		if (out->parts[i].buf)
			*out->parts[i].buf = (struct wharf_buf)WHARF_BUF_EMPTY;
	if (port->open && port->open->n_bytes >= port->flush_bytes)
		wh_outbox_turn_over(port);
	return 0;
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
	if (!takes_plain(port, open, size) || wh_unlikely(size > message_room(port) || (size && !bytes)))
		return send_bytes_slowly(port, type, bytes, size);
	if (wh_unlikely(!wh_encode_bytes(&open->encoder, type, bytes, (uint32_t)size)))
		return send_bytes_slowly(port, type, bytes, size);
	return encoded(port, open, size);
}
