/* SPDX-License-Identifier: MIT */
/*
 * Frames on their way out: where they come from, the control records that are added to them, and how they go to the
 * engine and come back. One at a time is with the engine: that is the ordering rule, and what is queued meanwhile
 * shares the next frame.
 */
#include "outbox.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
	BACKOFF_MIN_NS = 1000000, /* for what no event announces: descriptors in flight, kernel memory */
	BACKOFF_MAX_NS = 100000000,
	SPARE_FRAMES_MAX = 16,
};

/* ---- Frames ---- */

static struct wh_outframe *allocate(struct wharf_loop *loop)
{
	return wh_loop_alloc(loop, sizeof(struct wh_outframe) + loop->frame_bytes_max);
}

static void keep_spare(struct wharf_loop *loop, struct wh_outframe *frame)
{
	frame->next = loop->spare_frames;
	loop->spare_frames = frame;
	loop->n_spare_frames++;
}

int wh_outframes_init(struct wharf_loop *loop)
{
	struct wh_outframe *frame = allocate(loop);

	if (!frame)
		return -ENOMEM;
	keep_spare(loop, frame);
	return 0;
}

/* The last n_kept spare ones stay. */
static struct wh_outframe *new_frame(struct wharf_loop *loop, uint32_t n_kept)
{
	struct wh_outframe *frame;

	if (loop->n_spare_frames > n_kept) {
		frame = loop->spare_frames;
		loop->spare_frames = frame->next;
		loop->n_spare_frames--;
	} else {
		frame = allocate(loop);
		if (!frame)
			return NULL;
	}
	frame->next = NULL;
	frame->n_messages = frame->n_pieces = 0;
	frame->ordinal = 0;
	frame->n_bytes = 0;
	frame->handed = frame->data = frame->close_fds = frame->bye = false;
	frame->announces = -1;
	frame->tx.n_fds = 0;
	frame->tx.credentials = false;
	wh_encode_begin(&frame->encoder, frame->bytes, loop->frame_bytes_max);
	return frame;
}

struct wh_outframe *wh_outframe_new(struct wharf_loop *loop) { return new_frame(loop, 1); }

struct wh_outframe *wh_outframe_for_control(struct wharf_loop *loop) { return new_frame(loop, 0); }

void wh_outframe_free(struct wharf_loop *loop, struct wh_outframe *frame)
{
	if (!frame)
		return;
	if (frame->close_fds)
		wh_fds_close(frame->fds, frame->tx.n_fds);
	if (loop->n_spare_frames >= SPARE_FRAMES_MAX) {
		wh_loop_dealloc(loop, frame);
		return;
	}
	keep_spare(loop, frame);
}

void wh_outframes_free(struct wharf_loop *loop)
{
	for (struct wh_outframe *frame = loop->spare_frames, *next; frame; frame = next) {
		next = frame->next;
		wh_loop_dealloc(loop, frame);
	}
	loop->spare_frames = NULL;
	loop->n_spare_frames = 0;
}

void wh_port_back_off(struct wharf_port *port, struct wh_deadline *deadline, uint32_t *ns)
{
	*ns = *ns ? (uint32_t)wh_min(*ns * 2, BACKOFF_MAX_NS) : BACKOFF_MIN_NS;
	wh_loop_set_deadline(port->source.loop, deadline, *ns);
}

void wh_port_retry_later(struct wharf_port *port) { wh_port_back_off(port, &port->retry, &port->backoff_ns); }

/* ---- Control records ---- */

/* The bye is the last record of the last frame with messages; what was asked of this end is answered before. */
bool wh_port_bye_due(const struct wharf_port *port)
{
	/* Messages that wait for a lost segment need a peer that stays. */
	return port->state == WH_PORT_DRAINING && port->said_hello && !port->bye_encoded && !port->queued_messages &&
		!atomic_load_explicit(&port->posting.n_messages, memory_order_relaxed) &&
		!port->plain.out.first && !port->flows[WH_FLOW_ANSWER].n && !port->frames &&
		!wh_open_has_records(port) && !(port->n_lost && port->n_held);
}

/* A farewell stays behind what the flow has encoded: frames that wait may be overtaken by one with control records. */
static bool may_leave(const struct wharf_port *port, const struct wh_outframe *frame, const struct wh_flow *flow)
{
	return flow->out.ordinal <= port->handed_ordinal || (frame && flow->out.ordinal <= frame->ordinal);
}

static bool farewells_due(const struct wharf_port *port)
{
	for (const struct wh_list *node = port->farewells.next; node != &port->farewells; node = node->next)
		if (may_leave(port, NULL, wh_container_of(node, struct wh_flow, farewells)))
			return true;
	return false;
}

bool wh_controls_due(const struct wharf_port *port)
{
	return port->wake_due || port->report_due || port->slots_due || !wh_list_empty(&port->credits_due) ||
		farewells_due(port) || wh_port_bye_due(port);
}

/* False: there was no room for all. */
static bool encode_slots(
	struct wh_encoder *encoder, uint64_t *slots, enum wh_record_kind kind, uint16_t acknowledged)
{
	for (unsigned i = 0; i < WH_SLOTS_MAX / 64; i++)
		for (; slots[i]; slots[i] &= slots[i] - 1) {
			struct wh_slot_record record = { .slot = (uint16_t)(i * 64 +
								 (unsigned)__builtin_ctzll(slots[i])),
				.acknowledged = acknowledged };
			if (!wh_encode_control(encoder, kind, &record, 0))
				return false;
		}
	return true;
}

static const uint8_t record_of[WH_FLOW_KINDS] = {
	[WH_FLOW_STREAM_OUT] = WH_RECORD_ABORT,
	[WH_FLOW_STREAM_IN] = WH_RECORD_ABORT,
	[WH_FLOW_CALL] = WH_RECORD_CANCEL,
	[WH_FLOW_ANSWER] = WH_RECORD_CANCEL,
};

static bool encode_farewell(struct wh_encoder *encoder, const struct wh_flow *flow)
{
	struct wh_abort abort = { .stream = (uint32_t)flow->id,
		.app_code = flow->farewell_app_code,
		.code = flow->farewell_code };
	struct wh_cancel cancel = { .call = flow->id,
		.app_code = flow->farewell_app_code,
		.code = flow->farewell_code };

	if (record_of[flow->kind] == WH_RECORD_ABORT)
		return wh_encode_control(encoder, WH_RECORD_ABORT, &abort, 0);
	return wh_encode_control(encoder, WH_RECORD_CANCEL, &cancel, 0);
}

static void encode_farewells(struct wharf_port *port, const struct wh_outframe *frame, struct wh_encoder *encoder)
{
	struct wh_list *node = port->farewells.next, *next;

	for (; node != &port->farewells; node = next) {
		struct wh_flow *flow = wh_container_of(node, struct wh_flow, farewells);
		next = node->next;
		if (!may_leave(port, frame, flow))
			continue;
		if (!encode_farewell(encoder, flow))
			return;
		wh_list_remove(node);
		port->n_farewells -= wh_flow_is_theirs(flow);
		flow->farewell = false;
		wh_flow_vacate(flow);
		wh_flow_unref(flow);
	}
}

/* The kind of record that credit lets the peer send. */
static const uint8_t credited[WH_FLOW_KINDS] = {
	[WH_FLOW_STREAM_IN] = WH_RECORD_MESSAGE,
	[WH_FLOW_CALL] = WH_RECORD_REPLY,
	[WH_FLOW_ANSWER] = WH_RECORD_CALL,
};

static void encode_credits(struct wharf_port *port, struct wh_encoder *encoder)
{
	while (!wh_list_empty(&port->credits_due)) {
		struct wh_flow *flow = wh_container_of(port->credits_due.next, struct wh_flow, in.credit_due);
		struct wh_credit credit = { .id = flow->id,
			.bytes = flow->in.give_back_bytes,
			.kind = credited[flow->kind] };
		if (!wh_encode_control(encoder, WH_RECORD_CREDIT, &credit, 0))
			return;
		flow->in.give_back_bytes = 0;
		atomic_store_explicit(&flow->in.starved, flow->in.unreturned_bytes >= port->rx_credit_bytes,
			memory_order_relaxed);
		wh_list_remove(&flow->in.credit_due);
	}
}

/*
 * What the port owes its peer, into the room that is kept for it. A frame that carries descriptors takes nothing more.
 */
static void encode_controls(struct wharf_port *port, struct wh_outframe *frame)
{
	struct wh_encoder *encoder = &frame->encoder;

	if (!port->said_hello || wh_encoder_ended(encoder))
		return;
	encoder->capacity = port->tx_frame_bytes;
	if (port->wake_due) {
		struct wh_record wake;
		if (wh_encode_control(encoder, WH_RECORD_WAKE, &wake, 0)) {
			port->wake_due = false;
			wh_port_count(port, wakes_sent, 1);
			wh_trace(port->source.loop, port, WH_TRACE_WAKE_OUT, 0, 0);
		}
	}
	if (port->slots_due)
		port->slots_due = !(encode_slots(encoder, port->retire_acks, WH_RECORD_RETIRE, 1) &&
			encode_slots(encoder, port->retire_asks, WH_RECORD_RETIRE, 0) &&
			encode_slots(encoder, port->announce_asks, WH_RECORD_ANNOUNCE_REQUEST, 0));
	encode_farewells(port, frame, encoder);
	encode_credits(port, encoder);
	if (wh_port_bye_due(port)) {
		struct wh_bye bye = { .code = WH_BYE_CLOSE, .last_call = port->flows[WH_FLOW_ANSWER].sequence };
		if (wh_encode_control(encoder, WH_RECORD_BYE, &bye, 0))
			port->bye_encoded = frame->bye = true;
	}
}

void wh_outframe_announce(struct wh_outframe *frame, const struct wh_announcement *a)
{
	struct wh_announce record = {
		.slot = a->slot,
		.chunk_shift = a->chunk_shift,
		.n_chunks = a->n_chunks,
		.flags = a->huge ? WH_ANNOUNCE_HUGE : 0,
	};

	wh_encode_control(&frame->encoder, WH_RECORD_ANNOUNCE, &record, 2);
	frame->fds[0] = a->segment_fd;
	frame->fds[1] = a->release_fd;
	frame->announces = a->slot;
}

/* ---- Handing frames to the engine, and taking them back ---- */

void wh_port_hand(struct wharf_port *port, struct wh_outframe *frame)
{
	wh_assert(!port->sending && !port->stuck);
	if (frame == port->open)
		port->open = NULL;
	frame->n_messages = wh_outframe_messages(frame);
	frame->handed = true;
	encode_controls(port, frame);
	if (frame->ordinal)
		port->handed_ordinal = frame->ordinal;
	if (port->lease->turn != port->source.loop->turn)
		wh_lease_turn(port->lease, port->source.loop->turn);
	wh_lease_publish(port->lease);
	frame->tx.size = wh_encode_end(&frame->encoder, port->source.loop->turn_ns, port->frames_read);
	frame->tx.bytes = frame->bytes;
	frame->tx.n_fds = frame->encoder.n_fds;
	frame->tx.fds = frame->fds;
	port->frames_reported = port->frames_read;
	port->bytes_unreported = 0;
	port->report_due = false;
	port->sending = frame;
	wh_engine_send(port->source.loop->engine, &port->source.link, &frame->tx);
}

static void frame_sent(struct wharf_port *port, struct wh_outframe *frame)
{
	wh_port_sum(port, tx_frames, 1);
	wh_port_sum(port, tx_messages, frame->n_messages);
	wh_port_sum(port, tx_bytes, frame->n_bytes);
	port->tally.news |= WH_NEWS_SENT;
	wh_trace(port->source.loop, port, WH_TRACE_FRAME_OUT, frame->ordinal,
		(uint64_t)frame->n_messages << 32 | frame->tx.size);
	port->backoff_ns = 0;
	if (frame->ordinal)
		port->sent_ordinal = frame->ordinal;
	if (frame->data) {
		uint32_t n = frame->close_fds ? frame->tx.n_fds : 0;
		/* So that what the peer reports as read tells of frames by their ordinal. */
		wh_assert(frame->ordinal == port->frames_sent + 1);
		uint32_t bytes = (uint32_t)wh_min(frame->n_bytes, UINT32_MAX);
		port->window_bytes[port->frames_sent % WH_WINDOW_MAX] = bytes;
		port->bytes_unread += bytes;
		port->window_fds[port->frames_sent++ % WH_WINDOW_MAX] = (uint8_t)n;
		port->tx_fds_queued -= n;
		port->tx_fds_framed -= n;
		port->tx_fds_unread += n;
		wh_port_count(port, tx_fds, n);
	}
	if (frame->announces >= 0)
		wh_lease_announced(port->lease, (uint16_t)frame->announces, true);
	if (frame->bye)
		port->bye_sent = true;
	wh_outframe_free(port->source.loop, frame);
}

/* The peer's socket is gone. What it sent before is still to be read: the end of that is the end of the port. */
static void send_broken(struct wharf_port *port)
{
	port->tx_dead = true;
	port->tx_plain = false;
	wh_posting_shut(port);
	if (port->state < WH_PORT_ENDING)
		wh_loop_set_deadline(port->source.loop, &port->retry, WH_GRACE_NS);
}

bool wh_port_reap(struct wharf_port *port)
{
	struct wh_outframe *frame = port->sending;
	struct wharf_loop *loop = port->source.loop;
	int result = port->source.link.sent_result;

	if (wh_likely(!frame))
		return true;
	if (port->source.link.tx)
		return false;
	port->sending = NULL;
	switch (result) {
	case 0:
		frame_sent(port, frame);
		return true;
	case -EAGAIN:
		wh_port_count(port, tx_socket_full, 1);
		wh_trace(loop, port, WH_TRACE_FULL, frame->ordinal, 0);
		port->stuck = frame;
		if (!wh_list_linked(&port->waiting))
			wh_list_append(&loop->waiting, &port->waiting);
		wh_engine_want_writable(loop->engine, &port->source.link);
		return true;
	case -ETOOMANYREFS: /* too many descriptors of this user are in flight */
	case -ENOBUFS:
	case -ENOMEM:
		/* No event tells when that has changed. */
		port->stuck = frame;
		port->backing_off = true;
		wh_port_retry_later(port);
		return true;
	case -EPIPE:
	case -ECONNRESET:
	case -ENOTCONN:
	case -ECONNREFUSED:
		port->stuck = frame;
		send_broken(port);
		return true;
	default:
		port->stuck = frame;
		port->tx_dead = true;
		wh_port_end(port, WHARF_CLOSE_ERROR, -result, "sending failed");
		return true;
	}
}

static void say_bye(struct wharf_port *port, enum wh_bye_code code, const char *text)
{
	_Alignas(64) unsigned char memory[sizeof(struct wh_frame) + sizeof(struct wh_bye)];
	struct wh_encoder encoder;
	struct wh_bye bye = { .code = code,
		.app_code = port->reason.app_code,
		.last_call = port->flows[WH_FLOW_ANSWER].sequence };

	/* Behind what the engine has, in front of what waits: the queue is dropped with the port. */
	wh_engine_submit(port->source.loop->engine);
	if (!wh_port_reap(port))
		return;
	wh_wire_text(bye.text, sizeof(bye.text), text);
	wh_encode_begin(&encoder, memory, sizeof(memory));
	wh_encode_control(&encoder, WH_RECORD_BYE, &bye, 0);
	/* Best effort: a peer that does not read sees the socket close. */
	(void)!send(port->source.link.fd, memory,
		wh_encode_end(&encoder, port->source.loop->turn_ns, port->frames_read), MSG_DONTWAIT | MSG_NOSIGNAL);
}

void wh_port_fail(struct wharf_port *port, uint32_t code, int error, enum wh_bye_code bye, const char *bye_text,
	const char *format, ...)
{
	char text[sizeof(port->reason_text)];
	va_list arguments;

	if (port->state >= WH_PORT_ENDING)
		return;
	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	/* First the reason: what goes wrong with the bye must not become it. */
	wh_port_end(port, code, error, "%s", text);
	say_bye(port, bye, bye_text);
}
