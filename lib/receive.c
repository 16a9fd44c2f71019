/* SPDX-License-Identifier: MIT */
/*
 * What arrives at a port.
 *
 * A frame is validated whole, then its records are handled in order, straight from the engine's buffer. If the
 * application pauses the port, or the port has had its share of a turn, the rest of the frame and the frames behind it
 * are held; their control records are not, so that receiving never waits for sending.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "call.h"
#include "receive.h"

/* When it arrives. Control records follow the data of their frame, if it has any. */
static bool is_data(const struct wharf_port *port, const struct wh_frame *frame)
{
	const struct wh_record *r = wh_frame_first(frame);

	switch (frame->n_records ? r->kind : 0) {
	case WH_RECORD_MESSAGE:
	case WH_RECORD_CALL:
	case WH_RECORD_REPLY:
	case WH_RECORD_PORT:
		return true;
	case WH_RECORD_ANNOUNCE:
		return !port->limits.slots[((const struct wh_announce *)r)->slot].n_chunks;
	default:
		return false;
	}
}

static bool stopped(const struct wharf_port *port) { return wh_port_stopped(port); }

/* ---- Control records ---- */

static void on_bye(struct wharf_port *port, const struct wh_bye *bye)
{
	switch (bye->code) {
	case WH_BYE_CLOSE:
		port->peer_bye = true;
		wh_calls_on_bye(port, bye->last_call);
		if (port->state <= WH_PORT_OPEN)
			wh_port_drain(port);
		if (!port->said_hello)
			port->bye_sent = true; /* it has not asked for anything, and will not */
		wh_port_dirty(port);
		wh_port_progress(port);
		break;
	case WH_BYE_ABORT:
		/* What was resumed in this turn had arrived before. */
		wh_port_deliver_resumed(port, true);
		if (port->state >= WH_PORT_ENDING)
			break;
		wh_port_end(port, WHARF_CLOSE_PEER_ABORTED, 0, "%s", bye->text);
		wh_calls_on_bye(port, bye->last_call);
		port->reason.app_code = bye->app_code;
		break;
	case WH_BYE_REFUSED:
		wh_port_end(port, WHARF_CLOSE_PEER_REFUSED, EPROTO, "the peer refuses to go on: %s", bye->text);
		break;
	default:
		wh_port_end(port, WHARF_CLOSE_MISMATCH, EPROTONOSUPPORT, "%s", bye->text);
	}
}

/* What must not wait behind messages that wait. */
static void handle_control(struct wharf_port *port, const struct wh_record *r, struct wh_rx *rx)
{
	switch (r->kind) {
	case WH_RECORD_ANNOUNCE:
		wh_port_on_announce(port, (const struct wh_announce *)r, rx->fds, rx->n_fds);
		rx->n_fds = 0; /* of no more use: not to be held */
		break;
	case WH_RECORD_ANNOUNCE_REQUEST:
		wh_port_on_announce_request(port, (const struct wh_slot_record *)r);
		break;
	case WH_RECORD_RETIRE:
		wh_port_on_retire(port, (const struct wh_slot_record *)r);
		break;
	case WH_RECORD_WAKE:
		/* Once per turn, however many a hostile peer sends: harvesting looks at all that is lent. */
		wh_port_count(port, wakes_received, 1);
		wh_trace(port->source.loop, port, WH_TRACE_WAKE_IN, 0, 0);
		port->harvest_due = true;
		break;
	case WH_RECORD_CREDIT:
		wh_flow_on_credit(port, (const struct wh_credit *)r);
		break;
	case WH_RECORD_ABORT:
		wh_flow_on_abort(port, (const struct wh_abort *)r);
		break;
	case WH_RECORD_CANCEL:
		wh_call_on_cancel(port, (const struct wh_cancel *)r);
		break;
	default:
		wh_port_violation(port, "a record of a feature that was not agreed on");
	}
}

static bool is_message(uint8_t kind)
{
	return kind == WH_RECORD_MESSAGE || kind == WH_RECORD_CALL || kind == WH_RECORD_REPLY;
}

static bool is_ordered(uint8_t kind)
{
	return is_message(kind) || kind == WH_RECORD_PORT || kind == WH_RECORD_BYE;
}

static void handle_controls_from(
	struct wharf_port *port, const struct wh_record *r, const struct wh_record *end, struct wh_rx *rx)
{
	for (; r != end && port->state < WH_PORT_ENDING; r = wh_record_next(r))
		if (!is_ordered(r->kind))
			handle_control(port, r, rx);
}

/* ---- Messages ---- */

/* Handles records from `r` on until the end of the frame or until the port is stopped; returns where it stopped. */
static const struct wh_record *deliver(struct wharf_port *port, const struct wh_record *r,
	const struct wh_record *end, bool controls_done, struct wh_rx *rx)
{
	struct wharf_slice slice;
	struct wh_message m = {
		.pub = { .slices = &slice, .n_slices = 1, .sent_ns = rx->sent_ns },
		.port = port,
	};
	uint64_t n_messages = 0, n_bytes = 0;
	const bool lost = port->n_lost; /* more are lost only with the last record */
	const bool watched = wh_is_watched();

	for (; r != end && !stopped(port); r = wh_record_next(r)) {
		const struct wh_run *run;

		if (wh_unlikely(lost) && wh_port_lacks_segment(port, r)) {
			port->starved = true;
			break;
		}

		if (wh_unlikely(r->kind != WH_RECORD_MESSAGE)) {
			if (is_message(r->kind))
				wh_flow_arrive(port, r, rx);
			else if (r->kind == WH_RECORD_BYE)
				on_bye(port, (const struct wh_bye *)r);
			else if (r->kind == WH_RECORD_PORT)
				wh_port_deliver_end(port, (const struct wh_port_record *)r, rx);
			else if (!controls_done)
				handle_control(port, r, rx);
			continue;
		}
		run = (const struct wh_run *)((const char *)r + sizeof(struct wh_message_record));
		if (wh_unlikely(r->flags != (WH_RECORD_FIRST | WH_RECORD_LAST) || r->n_items != 1 || port->untrusted ||
			    port->plain.in.assembly)) {
			wh_flow_arrive(port, r, rx);
			continue;
		}
		/* Most messages: whole, in one piece. What does not change between them stays out of the loop. */
		if (wh_likely(run->n_chunks)) {
			slice.data = wh_view_at(port->views[run->slot], run->first, run->offset);
			wh_view_hold(port->views[run->slot], run->first / 64, wh_run_mask(run));
		} else {
			slice.data = (const char *)r + run->first;
		}
		slice.size = run->size;
		m.pub.type = ((const struct wh_message_record *)r)->type;
		m.pub.size = m.pub.total_bytes = run->size;
		m.runs = run;
		n_messages++;
		n_bytes += run->size;
		if (wh_unlikely(watched))
			wh_trace_watched(port->source.loop, port, WH_OFTEN_RECEIVE, run->size, m.pub.type);
		if (port->ops.on_message)
			port->ops.on_message(port, &m.pub, port->user);
		if (wh_unlikely(m.is_taken))
			m.is_taken = false;
		else if (wh_likely(run->n_chunks))
			wh_port_release_run(port, run);
	}
	wh_port_sum(port, rx_messages, n_messages);
	wh_port_sum(port, rx_bytes, n_bytes);
	port->bytes_unreported += n_bytes;
	port->bytes_this_turn += n_bytes;
	return r;
}

/* ---- Frames ---- */

static void frame_read(struct wharf_port *port, const struct wh_frame *frame, const struct wh_rx *rx)
{
	if (!rx->data)
		return;
	port->frames_read++;
	/* Descriptors in flight are few, and count for the whole user: their sender waits for the word sooner. */
	if (port->frames_read - port->frames_reported >= port->report_every ||
		port->bytes_unreported >= WH_REPORT_BYTES || frame->n_fds || frame->flags & WH_FRAME_TELL) {
		port->report_due = true;
		wh_port_dirty(port);
	}
}

static bool share_is_used(const struct wharf_port *port)
{
	const struct wharf_loop *loop = port->source.loop;

	if (port->msgs_turn != loop->turn)
		return false;
	return port->msgs_this_turn >= port->msgs_per_turn ||
		(port->bytes_this_turn >= WH_TURN_BYTES && loop->n_users > 1);
}

static void count_share(struct wharf_port *port, const struct wh_frame *frame)
{
	if (port->msgs_turn != port->source.loop->turn) {
		port->msgs_turn = port->source.loop->turn;
		port->msgs_this_turn = 0;
		port->bytes_this_turn = 0;
	}
	port->msgs_this_turn += frame->n_records;
}

static void schedule(struct wharf_port *port)
{
	if (!wh_list_linked(&port->ready)) {
		wh_list_append(&port->source.loop->ready, &port->ready);
		wh_loop_rouse(port->source.loop);
	}
}

void wh_port_schedule_held(struct wharf_port *port)
{
	if (!stopped(port) && !port->starved && !wh_list_empty(&port->held))
		schedule(port);
}

/* Reports and wakes are done when their control records are: an honest peer sends them without limit. */
static bool must_wait(const struct wh_record *from, const struct wh_frame *frame, const struct wh_rx *rx)
{
	if (rx->data)
		return true;
	for (; from != wh_frame_end(frame); from = wh_record_next(from))
		if (is_ordered(from->kind))
			return true;
	return false;
}

/* Room to note that what begins in it is given up: that must not need memory. False: there is none now. */
static bool expect_beginnings(struct wharf_port *port, const struct wh_record *r, const struct wh_record *end)
{
	bool room = true;

	for (; r != end && room; r = wh_record_next(r)) {
		if (!(r->flags & WH_RECORD_FIRST))
			continue;
		if (r->kind == WH_RECORD_CALL)
			room = wh_flow_expect(port, WH_FLOW_ANSWER, wh_message_read(r).call);
		else if (r->kind == WH_RECORD_MESSAGE && ((const struct wh_message_record *)r)->stream)
			room = wh_flow_expect(
				port, WH_FLOW_STREAM_IN, ((const struct wh_message_record *)r)->stream);
	}
	return room;
}

static void hold(
	struct wharf_port *port, const struct wh_record *from, const struct wh_frame *frame, struct wh_rx *rx)
{
	struct wh_held *held;
	struct wh_rx told;

	if (!must_wait(from, frame, rx)) {
		handle_controls_from(port, from, wh_frame_end(frame), rx);
		wh_ledger_frame(port, frame->turn_ns);
		return;
	}
	if (port->n_held > WH_WINDOW_MAX) {
		wh_port_violation(port, "it sends more frames than its window");
		return;
	}
	held = expect_beginnings(port, from, wh_frame_end(frame))
		? aligned_alloc(64, wh_align_up(sizeof(*held) + frame->size, 64))
		: NULL;
	if (!held) {
		wh_port_end(port, WHARF_CLOSE_ERROR, ENOMEM, "no memory to hold a frame while paused");
		return;
	}
	held->offset = (uint32_t)((const char *)from - (const char *)frame);
	held->n_fds = rx->n_fds;
	held->fds_lost = rx->fds_lost;
	held->data = rx->data;
	memcpy(held->frame, frame, frame->size);
	for (uint32_t i = 0; i < rx->n_fds; i++) {
		held->fds[i] = rx->fds[i];
		rx->fds[i] = -1;
	}
	wh_list_append(&port->held, &held->link);
	port->n_held++;
	/* An end that the frame tells is of messages before it, which are held by now. */
	told = (struct wh_rx){ .sent_ns = rx->sent_ns, .fds = held->fds, .n_fds = held->n_fds };
	handle_controls_from(
		port, (const struct wh_record *)(held->frame + held->offset), wh_frame_end(held->frame), &told);
	/* Those of an announcement are of no more use. */
	if (!told.n_fds) {
		wh_fds_close(held->fds, held->n_fds);
		held->n_fds = 0;
	}
	port->n_held_fds += held->n_fds;
	if (port->n_held_fds > WH_WIRE_FDS_MAX)
		wh_port_violation(port, "it sends more descriptors than may be unread");
	wh_port_schedule_held(port);
}

static void free_held(struct wharf_port *port, struct wh_held *held)
{
	wh_fds_close(held->fds, held->n_fds);
	wh_list_remove(&held->link);
	port->n_held--;
	port->n_delivered++;
	port->n_held_fds -= held->n_fds;
	free(held);
}

/* all: whatever the share of the turn. */
static void deliver_held(struct wharf_port *port, bool all)
{
	while (!stopped(port) && !wh_list_empty(&port->held) && (all || !share_is_used(port))) {
		struct wh_held *held = wh_container_of(port->held.next, struct wh_held, link);
		const struct wh_frame *frame = (const struct wh_frame *)held->frame;
		struct wh_rx rx = { .sent_ns = frame->turn_ns,
			.fds = held->fds,
			.n_fds = held->n_fds,
			.fds_lost = held->fds_lost,
			.data = held->data };
		const struct wh_record *r = (const struct wh_record *)(held->frame + held->offset);

		count_share(port, frame);
		r = deliver(port, r, wh_frame_end(frame), true, &rx);
		held->offset = (uint32_t)((const char *)r - (const char *)frame);
		if (r != wh_frame_end(frame))
			break;
		frame_read(port, frame, &rx);
		wh_ledger_frame(port, frame->turn_ns);
		free_held(port, held);
		wh_port_flush_all_released(port);
	}
	wh_port_flush_all_released(port);
	wh_port_schedule_held(port);
	/* Ends of calls wait for the replies before them, what was put aside for its port. */
	if (!wh_list_empty(&port->ended_calls) || !wh_list_empty(&port->resumed))
		wh_port_chore(port);
	wh_port_look_for_end(port);
}

void wh_port_look_for_end(struct wharf_port *port)
{
	if (wh_port_delivers(port))
		return;
	if (wh_port_bye_due(port))
		wh_port_dirty(port);
	wh_port_progress(port);
	if (port->eof)
		wh_port_eof(port);
}

void wh_port_deliver_held(struct wharf_port *port)
{
	wh_port_enter(port);
	wh_port_touch(port);
	deliver_held(port, false);
}

/* Messages that nobody gets: from `r` on. */
static void release_from(struct wharf_port *port, const struct wh_record *r, const struct wh_record *end)
{
	for (; r != end; r = wh_record_next(r))
		if (is_message(r->kind))
			wh_port_release_runs(port, r);
}

void wh_port_drop_input(struct wharf_port *port)
{
	while (!wh_list_empty(&port->held)) {
		struct wh_held *held = wh_container_of(port->held.next, struct wh_held, link);
		release_from(port, (const struct wh_record *)(held->frame + held->offset), wh_frame_end(held->frame));
		free_held(port, held);
	}
	if (wh_list_linked(&port->ready))
		wh_list_remove(&port->ready);
}

/*
 * A port that has ended, and lingers, listens for what keeps it: chunks that come back, and segments that were lost. And for what
 * it keeps: segments that their owner wants back, and chunks of messages that came too late.
 */
static void receive_lingering(struct wharf_port *port, const struct wh_event *event)
{
	const struct wh_record *r, *end;
	const char *why;

	if (event->truncated ||
		wh_frame_check(event->bytes, event->size, event->n_fds, event->fds_lost, &port->limits, &why))
		return;
	end = wh_frame_end(event->bytes);
	for (r = wh_frame_first(event->bytes); r != end; r = wh_record_next(r))
		if (r->kind == WH_RECORD_ANNOUNCE_REQUEST)
			wh_port_on_announce_request(port, (const struct wh_slot_record *)r);
		else if (r->kind == WH_RECORD_RETIRE)
			wh_port_on_retire(port, (const struct wh_slot_record *)r);
	release_from(port, wh_frame_first(event->bytes), end);
	wh_port_flush_all_released(port);
	wh_port_linger(port);
}

static void receive(struct wharf_port *port, struct wh_event *event)
{
	const struct wh_frame *frame = event->bytes;
	struct wh_rx rx = { .fds = event->fds, .n_fds = event->n_fds, .fds_lost = event->fds_lost };
	const struct wh_record *r;
	const char *why = "a frame larger than it was told";
	int error = -EPROTO;

	if (!event->truncated)
		error = wh_frame_check(event->bytes, event->size, event->n_fds, event->fds_lost, &port->limits, &why);
	/* Frames in front of one that ends the port have arrived in good order. */
	if (error) {
		wh_port_deliver_resumed(port, true);
		deliver_held(port, true);
	}
	if (error == -EPROTONOSUPPORT) {
		wh_port_fail(port, WHARF_CLOSE_MISMATCH, EPROTONOSUPPORT, WH_BYE_MISMATCH,
			"another version of the protocol", "the peer speaks another version of the protocol");
		return;
	}
	if (error) {
		wh_port_violation(port, why);
		return;
	}
	rx.data = is_data(port, frame);
	wh_port_sum(port, rx_frames, 1);
	port->tally.news |= WH_NEWS_RECEIVED;
	wh_trace(port->source.loop, port, WH_TRACE_FRAME_IN, wh_lag(port, frame->turn_ns),
		(uint64_t)frame->n_records << 32 | frame->size);
	wh_port_reap(port);
	wh_port_read_by_peer(port, frame->consumed);
	if (port->state >= WH_PORT_ENDING)
		return;
	rx.sent_ns = frame->turn_ns;
	r = wh_frame_first(frame);
	if (!port->said_hello && r->kind == WH_RECORD_HELLO) {
		wh_port_take_hello(port, (const struct wh_hello *)r, event);
		return;
	}
	if (stopped(port) || !wh_list_empty(&port->held) || share_is_used(port)) {
		hold(port, r, frame, &rx);
		return;
	}
	count_share(port, frame);
	r = deliver(port, r, wh_frame_end(frame), false, &rx);
	wh_port_flush_all_released(port);
	if (r != wh_frame_end(frame)) {
		hold(port, r, frame, &rx);
		return;
	}
	frame_read(port, frame, &rx);
	wh_ledger_frame(port, frame->turn_ns);
}

void wh_port_receive(struct wharf_port *port, struct wh_event *event)
{
	/* The peer may have the answers: the application hears that they ended before it hears what follows on them. */
	if (!wh_list_empty(&port->ended_calls))
		wh_calls_run_ends(port);
	if (port->state < WH_PORT_ENDING)
		receive(port, event);
	else if (!port->shut)
		receive_lingering(port, event);
	wh_engine_frame_done(port->source.loop->engine, event);
	if (port->state < WH_PORT_ENDING && (port->harvest_due || !wh_list_empty(&port->blocked_flows)))
		wh_port_chore(port);
}

int wharf_port_pause(wharf_port *port)
{
	int error = wh_port_check(port);

	if (error)
		return error;
	port->paused = true;
	wh_ledger_publish_port(port);
	return 0;
}

int wharf_port_resume(wharf_port *port)
{
	int error = wh_port_check(port);

	if (error)
		return error;
	port->paused = false;
	/* Messages may have waited, or the end. */
	schedule(port);
	return 0;
}
