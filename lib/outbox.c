/* SPDX-License-Identifier: MIT */
/*
 * The queue of a port: messages encode into the open frame; full frames wait in order until window and socket take
 * them. Before the peer's hello, whose limits frames must keep, messages wait as they are: the backlog.
 */
#include "outbox.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* Makes sure of an open frame. False: no memory. */
static bool open_frame(struct wharf_port *port)
{
	if (port->open)
		return true;
	port->open = wh_outframe_new(port->source.loop);
	if (!port->open)
		return false;
	port->open->encoder.capacity = port->tx_frame_bytes - WH_CONTROL_ROOM;
	return true;
}

/* ---- Full frames ---- */

static uint64_t frame_cost(const struct wh_outframe *frame) { return frame->n_bytes + frame->encoder.size; }

/* An empty queue takes a frame of any size: the cap bounds what waits behind it. */
bool wh_outbox_takes_frame(const struct wharf_port *port)
{
	return !port->frames || !port->open || port->frames_cost + frame_cost(port->open) <= port->tx_queued_bytes_max;
}

static void queue_open(struct wharf_port *port)
{
	*port->frames_end = port->open;
	port->frames_end = &port->open->next;
	port->frames_cost += frame_cost(port->open);
	port->open = NULL;
}

static struct wh_outframe *take_frame(struct wharf_port *port)
{
	struct wh_outframe *frame = port->frames;

	port->frames = frame->next;
	if (!port->frames)
		port->frames_end = &port->frames;
	port->frames_cost -= frame_cost(frame);
	frame->next = NULL;
	return frame;
}

/* Gives the kernel as many full frames as it and the window take. */
static void send_frames(struct wharf_port *port)
{
	struct wh_engine *engine = port->source.loop->engine;

	while (port->frames && wh_window_open(port)) {
		if (!wh_port_reap(port)) {
			wh_engine_submit(engine);
			if (!wh_port_reap(port))
				return;
		}
		if (port->stuck || port->tx_dead)
			return;
		wh_port_hand(port, take_frame(port));
		wh_engine_submit(engine);
		wh_port_reap(port);
	}
}

bool wh_outbox_turn_over(struct wharf_port *port)
{
	if (!wh_outbox_takes_frame(port)) {
		send_frames(port);
		if (!wh_outbox_takes_frame(port))
			return false;
	}
	queue_open(port);
	send_frames(port);
	return true;
}

/* ---- Encoding messages ---- */

/* The announcement goes into a frame of its own end: its descriptors close the frame. */
static enum wh_encoded announce(struct wharf_port *port, uint16_t slot, int *ret_error)
{
	struct wh_announcement a;
	struct wh_announce record;
	uint64_t bytes;
	int error;

	if (!wh_encoder_takes(&port->open->encoder, sizeof(record)))
		return FRAME_FULL;
	bytes = wh_lease_slot_bytes(port->lease, slot);
	if (port->tx_mapped_bytes + bytes > port->tx_mapped_bytes_max)
		error = -EMSGSIZE;
	else if (wh_lease_slot_huge(port->lease, slot) && !(port->peer.features & WH_FEATURE_HUGE))
		error = -EOPNOTSUPP;
	else
		error = wh_lease_announcement(port->lease, slot, &a);
	if (error) {
		*ret_error = error;
		return FAILED;
	}
	port->tx_mapped_bytes += bytes;
	record = (struct wh_announce){ .slot = slot,
		.chunk_shift = a.chunk_shift,
		.n_chunks = a.n_chunks,
		.flags = a.huge ? WH_ANNOUNCE_HUGE : 0 };
	wh_encode_control(&port->open->encoder, WH_RECORD_ANNOUNCE, &record, 2);
	port->open->fds[0] = a.segment_fd;
	port->open->fds[1] = a.release_fd;
	port->open->announces = slot;
	port->open->data = true;
	wh_lease_announced(port->lease, slot, false);
	return ENCODED;
}

enum wh_encoded wh_outbox_encode(
	struct wharf_port *port, const struct wh_message_out *message, const int *fds, uint64_t n_bytes, int *ret_error)
{
	if (!open_frame(port)) {
		*ret_error = -ENOMEM;
		return FAILED;
	}
	for (unsigned i = 0; i < message->n_pieces; i++) {
		const struct wh_run *run = message->pieces[i].run;
		enum wh_encoded announced;
		if (!run || !wh_lease_must_announce(port->lease, run->slot))
			continue;
		announced = announce(port, run->slot, ret_error);
		if (announced != ENCODED)
			return announced;
	}
	if (!wh_encode_message(&port->open->encoder, message))
		return FRAME_FULL;
	if (message->n_fds) {
		memcpy(port->open->fds, fds, message->n_fds * sizeof(*fds));
		port->open->close_fds = true;
		port->open->tx.n_fds = message->n_fds;
	}
	port->open->data = true;
	port->open->n_bytes += n_bytes;
	return ENCODED;
}

/* ---- The backlog ---- */

static struct wh_outmsg *outmsg_new(
	struct wharf_port *port, const struct wh_message_out *message, const int *fds, uint64_t n_bytes)
{
	size_t pieces_at = sizeof(struct wh_outmsg), runs_at, fds_at, bytes_at, size;
	struct wh_outmsg *m;
	struct wh_piece *pieces;
	struct wh_run *runs;
	char *bytes;

	runs_at = pieces_at + message->n_pieces * sizeof(struct wh_piece);
	fds_at = runs_at + message->n_pieces * sizeof(struct wh_run);
	size = bytes_at = fds_at + message->n_fds * sizeof(int);
	for (unsigned i = 0; i < message->n_pieces; i++)
		size += message->pieces[i].run ? 0 : message->pieces[i].size;
	m = wh_loop_alloc(port->source.loop, size);
	if (!m)
		return NULL;
	pieces = (struct wh_piece *)((char *)m + pieces_at);
	runs = (struct wh_run *)((char *)m + runs_at);
	bytes = (char *)m + bytes_at;
	*m = (struct wh_outmsg){ .message = *message,
		.n_bytes = n_bytes,
		.cost = n_bytes + sizeof(*m),
		.fds = (int *)((char *)m + fds_at) };
	m->message.pieces = pieces;
	if (message->n_fds)
		memcpy(m->fds, fds, message->n_fds * sizeof(int));
	for (unsigned i = 0; i < message->n_pieces; i++) {
		pieces[i] = message->pieces[i];
		if (pieces[i].run) {
			runs[i] = *pieces[i].run;
			pieces[i].run = &runs[i];
		} else if (pieces[i].size) {
			memcpy(bytes, pieces[i].bytes, pieces[i].size);
			pieces[i].bytes = bytes;
			bytes += pieces[i].size;
		}
	}
	return m;
}

int wh_outbox_queue(struct wharf_port *port, const struct wh_message_out *message, const int *fds, uint64_t n_bytes)
{
	struct wh_outmsg *m = outmsg_new(port, message, fds, n_bytes);

	if (!m)
		return -ENOMEM;
	port->tx_plain = false;
	*port->backlog_end = m;
	port->backlog_end = &m->next;
	port->backlog_messages++;
	port->backlog_bytes += m->n_bytes;
	port->backlog_cost += m->cost;
	wh_port_dirty(port);
	return 0;
}

static void outmsg_unlink(struct wharf_port *port)
{
	struct wh_outmsg *m = port->backlog;

	port->backlog = m->next;
	if (!port->backlog)
		port->backlog_end = &port->backlog;
	port->backlog_messages--;
	port->backlog_bytes -= m->n_bytes;
	port->backlog_cost -= m->cost;
	wh_loop_dealloc(port->source.loop, m);
}

/* Moves what fits from the backlog into frames. */
static void refill(struct wharf_port *port)
{
	int error = 0;

	while (port->backlog) {
		struct wh_outmsg *m = port->backlog;
		switch (wh_outbox_encode(port, &m->message, m->fds, m->n_bytes, &error)) {
		case ENCODED:
			outmsg_unlink(port);
			continue;
		case FRAME_FULL:
			if (wh_encoder_empty(&port->open->encoder)) {
				wh_port_end(port, WHARF_CLOSE_ERROR, EMSGSIZE,
					"a message sent before the peer's hello exceeds its frames");
				return;
			}
			if (!wh_outbox_turn_over(port))
				return;
			continue;
		case FAILED:
			if (error == -EMSGSIZE || error == -EOPNOTSUPP) {
				wh_port_end(port, WHARF_CLOSE_ERROR, -error,
					"a message sent before the peer's hello lies in memory that it does not map");
				return;
			}
			wh_loop_say(
				port->source.loop, "a segment could not be announced: errno %d; trying again", -error);
			wh_port_retry_later(port);
			return;
		}
	}
	port->tx_plain = port->state == WH_PORT_OPEN && !port->tx_dead;
}

/* The next frame with messages; NULL: there is none, or the peer has too many to read. */
static struct wh_outframe *next_frame(struct wharf_port *port)
{
	if (!wh_window_open(port))
		return NULL;
	if (port->frames)
		return take_frame(port);
	return wh_open_has_records(port) ? port->open : NULL;
}

void wh_port_flush(struct wharf_port *port)
{
	struct wharf_loop *loop = port->source.loop;
	struct wh_outframe *frame;
	bool was_stuck = port->stuck;

	if (port->shut || port->state == WH_PORT_ENDING || !wh_port_reap(port))
		return;
	if (port->bye_sent)
		wh_port_progress(port);
	if (port->tx_dead || port->shut || port->state == WH_PORT_ENDING)
		return;
	if (port->stuck) {
		/* Refused just now, or waiting for better times: the same again would come back at once. */
		if (!was_stuck || port->backing_off)
			return;
		port->sending = port->stuck;
		port->stuck = NULL;
		wh_list_remove(&port->waiting);
		wh_engine_send(loop->engine, &port->source.link, &port->sending->tx);
		return;
	}
	if (!port->hello_sent) {
		if (!wh_port_say_hello(port))
			wh_port_retry_later(port);
		return;
	}
	if (!port->said_hello)
		return;
	if (port->backlog) {
		refill(port);
		if (port->state == WH_PORT_ENDING || !wh_port_reap(port) || port->stuck || port->tx_dead)
			return;
	}
	frame = next_frame(port);
	if (!frame && wh_controls_due(port)) {
		frame = wh_outframe_new(loop);
		if (!frame)
			wh_port_retry_later(port);
	}
	if (frame)
		wh_port_hand(port, frame);
}

/* ---- What is queued, and what was refused ---- */

static void count(const struct wh_outframe *frame, uint64_t *messages, uint64_t *bytes)
{
	for (; frame; frame = frame->next) {
		*messages += wh_outframe_messages(frame);
		*bytes += frame->n_bytes;
	}
}

void wh_port_queued(const struct wharf_port *port, uint64_t *ret_messages, uint64_t *ret_bytes)
{
	*ret_messages = port->backlog_messages;
	*ret_bytes = port->backlog_bytes;
	count(port->frames, ret_messages, ret_bytes);
	count(port->open, ret_messages, ret_bytes);
	count(port->sending, ret_messages, ret_bytes);
	count(port->stuck, ret_messages, ret_bytes);
}

void wh_fds_close(const int *fds, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

void wh_port_drop_output(struct wharf_port *port)
{
	struct wharf_loop *loop = port->source.loop;

	while (port->backlog) {
		struct wh_outmsg *m = port->backlog;
		for (unsigned i = 0; i < m->message.n_pieces; i++)
			if (m->message.pieces[i].run)
				wh_lease_drop(port->lease, m->message.pieces[i].run);
		wh_fds_close(m->fds, m->message.n_fds);
		outmsg_unlink(port);
	}
	/* Runs of encoded messages stay lent: the lease settles them when it is detached. */
	while (port->frames)
		wh_outframe_free(loop, take_frame(port));
	wh_outframe_free(loop, port->open);
	port->open = NULL;
	wh_outframe_free(loop, port->stuck);
	port->stuck = NULL;
	if (wh_list_linked(&port->waiting))
		wh_list_remove(&port->waiting);
	if (wh_list_linked(&port->dirty))
		wh_list_remove(&port->dirty);
}
