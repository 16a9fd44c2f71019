/* SPDX-License-Identifier: MIT */
/*
 * What arrives for a flow: whole messages, and pieces that are put together or passed on. What breaks the rules of one stream ends that stream; what breaks those of the port, the port.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "call.h"
#include "receive.h"

enum { UNKNOWN_FIRST_BYTES = 64 << 10 }; /* room for a message of unknown length, doubled as it grows */

static uint64_t bytes_of(const struct wh_record *r, const struct wh_message_in *in)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < r->n_items; i++)
		bytes += in->runs[i].size;
	return bytes;
}

void wh_port_release_runs(struct wharf_port *port, const struct wh_record *r)
{
	const struct wh_message_in message = wh_message_read(r), *in = &message;

	for (unsigned i = 0; i < r->n_items; i++)
		if (in->runs[i].n_chunks && port->views[in->runs[i].slot]) {
			wh_view_hold(port->views[in->runs[i].slot], in->runs[i].first / 64, wh_run_mask(&in->runs[i]));
			wh_port_release_run(port, &in->runs[i]);
		}
}

static void abort_in(struct wh_flow *flow, uint32_t code)
{
	struct wharf_port *port = flow->port;
	uint64_t id = WH_STREAM_THEIRS | flow->id;
	bool told = flow->in.assembly && port->pieces;

	wh_flow_leave(flow, code, 0);
	/* Of pieces that it has had, the application expects the rest. */
	if (told && port->ops.on_stream_abort)
		port->ops.on_stream_abort(port, id, code, 0, port->user);
}

static void violation(struct wh_flow *flow, const char *why)
{
	if (flow->kind == WH_FLOW_STREAM_IN) {
		wh_port_count(flow->port, rx_stream_violations, 1);
		abort_in(flow, WH_ABORT_VIOLATION);
	} else {
		wh_port_violation(flow->port, why);
	}
}

/* Nothing of it can be kept: the record is given back, and its flow ends, or the port if that is its own. */
static void no_room(struct wh_flow *flow, const struct wh_record *r)
{
	wh_port_release_runs(flow->port, r);
	if (flow->kind == WH_FLOW_STREAM_IN)
		abort_in(flow, WH_ABORT_ROOM);
	else if (flow->kind != WH_FLOW_PLAIN)
		wh_call_no_room(flow);
	else
		wh_port_end(flow->port, WHARF_CLOSE_ERROR, ENOMEM, "no memory for a message in pieces");
}

/* ---- Delivery ---- */

static void dispatch(struct wh_flow *flow, const struct wharf_msg *msg)
{
	struct wharf_port *port = flow->port;

	if (flow->kind == WH_FLOW_CALL)
		wh_call_on_reply(flow, msg);
	else if (flow->kind == WH_FLOW_ANSWER)
		wh_answer_on_request(flow, msg);
	else if (port->ops.on_message)
		port->ops.on_message(port, msg, port->user);
}

void wh_flow_deliver(struct wh_flow *flow, struct wh_message *m)
{
	struct wharf_port *port = flow->port;
	struct wh_message *copy = m;

	if (port->untrusted) {
		/* A copy that the peer cannot change under the reader. */
		copy = wh_message_take(m, true);
		if (!copy) {
			free(m->joined);
			m->joined = NULL;
			flow->in.lost = true;
			wh_port_end(
				port, WHARF_CLOSE_ERROR, ENOMEM, "no memory for a message of %zu bytes", m->pub.size);
			return;
		}
	}
	wh_port_sum(port, rx_messages, 1);
	wh_trace_often(port->source.loop, port, WH_OFTEN_RECEIVE, m->pub.size, m->pub.type);
	dispatch(flow, &copy->pub);
	if (copy != m) {
		copy->is_taken = false; /* was about the borrowed one */
		wh_message_unref(copy);
	} else {
		free(m->joined);
		m->joined = NULL;
		if (m->heir)
			wh_message_unref(m->heir);
	}
	if (m->charge_bytes)
		wh_flow_give_back(flow, m->charge_bytes);
}

static void take_fds(struct wh_rx *rx, uint32_t n_fds, int *fds, bool *ret_lost)
{
	for (uint32_t i = 0; i < n_fds; i++) {
		fds[i] = i < rx->n_fds ? rx->fds[i] : -1;
		if (fds[i] < 0)
			*ret_lost = true;
		else
			rx->fds[i] = -1;
	}
}

/* A message was delivered, or could not be: it may have been the flow's last. */
static void finish(struct wh_flow *flow, const struct wh_record *r)
{
	if (!flow->listed || flow->in.lost)
		return;
	if (flow->delegated) {
		wh_flow_unlist(flow); /* whatever follows, follows elsewhere */
		return;
	}
	if (!(r->flags & WH_RECORD_END))
		return;
	flow->in.ended = true;
	if (flow->kind == WH_FLOW_STREAM_IN)
		wh_flow_leave(flow, WH_ABORT_DONE, 0);
	else if (flow->kind == WH_FLOW_CALL)
		wh_call_on_last(flow, ((const struct wh_message_record *)r)->stream);
}

static uint64_t handle_of(const struct wh_flow *flow)
{
	switch (flow->kind) {
	case WH_FLOW_STREAM_IN:
		return WH_STREAM_THEIRS | flow->id;
	case WH_FLOW_ANSWER:
		return WH_CALL_THEIRS | flow->id;
	default:
		return flow->id;
	}
}

static struct wharf_msg head_of(const struct wh_flow *flow, const struct wh_record *r)
{
	bool call = wh_flow_is_call(flow);

	return (struct wharf_msg){ .type = ((const struct wh_message_record *)r)->type,
		.flags = (r->flags & WH_RECORD_END ? WHARF_MSG_LAST : 0) |
			(flow->delegated ? WHARF_MSG_DELEGATED : 0),
		.stream = call || flow->kind == WH_FLOW_PLAIN ? 0 : handle_of(flow),
		.call = call && !flow->delegated ? handle_of(flow) : 0 };
}

/* One record's bytes where they lie: a whole message, or a piece of one. */
static void deliver_in_place(struct wh_flow *flow, const struct wh_record *r, const struct wh_message_in *in,
	struct wh_rx *rx, uint64_t charge)
{
	struct wharf_port *port = flow->port;
	struct wharf_slice slices[WH_WIRE_ITEMS_MAX];
	int fds[WH_ENGINE_FDS_MAX];
	const struct wh_assembly *a = flow->in.assembly;
	bool lost = false;
	struct wh_message m = {
		.pub = head_of(flow, r),
		.port = port,
		.flow = flow->kind == WH_FLOW_PLAIN ? NULL : flow,
		.charge_bytes = charge,
		.runs = in->runs,
		.fds = fds,
	};

	m.pub.slices = slices;
	m.pub.n_slices = r->n_items;
	m.pub.fds = fds;
	m.pub.n_fds = in->n_fds;
	m.pub.sent_ns = rx->sent_ns;
	for (unsigned i = 0; i < r->n_items; i++) {
		const struct wh_run *run = &in->runs[i];
		slices[i].size = run->size;
		m.pub.size += run->size;
		if (run->n_chunks) {
			slices[i].data = wh_view_at(port->views[run->slot], run->first, run->offset);
			wh_view_hold(port->views[run->slot], run->first / 64, wh_run_mask(run));
		} else {
			slices[i].data = (const char *)r + run->first;
		}
	}
	take_fds(rx, in->n_fds, fds, &lost);
	if (lost)
		m.pub.flags |= WHARF_MSG_FDS_LOST;
	m.pub.total_bytes = m.pub.size;
	if (a) {
		m.pub.type = a->type;
		m.pub.flags |= WHARF_MSG_FRAGMENT;
		/* Of a call only its end is the last: its messages have a length. */
		if (r->flags & WH_RECORD_LAST && !wh_flow_is_call(flow))
			m.pub.flags |= WHARF_MSG_LAST;
		m.pub.total_bytes = a->total_bytes;
		m.pub.position_bytes = a->position_bytes - m.pub.size;
	}
	wh_port_sum(port, rx_bytes, m.pub.size);
	port->bytes_unreported += m.pub.size;
	port->bytes_this_turn += m.pub.size;
	wh_port_count(port, rx_fds, in->n_fds);
	wh_flow_deliver(flow, &m);
	wh_fds_close(fds, in->n_fds);
	for (unsigned i = 0; i < r->n_items && !m.is_taken; i++)
		if (in->runs[i].n_chunks)
			wh_port_release_run(port, &in->runs[i]);
}

/* ---- Pieces ---- */

void wh_flow_drop_pieces(struct wh_flow *flow)
{
	struct wh_assembly *a = flow->in.assembly;

	if (!a)
		return;
	flow->in.assembly = NULL;
	if (flow->kind != WH_FLOW_PLAIN) {
		flow->port->assembly_bytes -= a->capacity_bytes;
		flow->port->assembly_fds -= a->n_fds;
	}
	wh_fds_close(a->fds, a->n_fds);
	free(a->memory);
	free(a);
}

/* Room for so many bytes. False: no more than the cap, or no memory. */
static bool assembly_reserve(struct wh_flow *flow, uint64_t bytes)
{
	struct wharf_port *port = flow->port;
	struct wh_assembly *a = flow->in.assembly;
	uint64_t capacity = a->capacity_bytes ? a->capacity_bytes : UNKNOWN_FIRST_BYTES;
	unsigned char *memory;

	if (bytes <= a->capacity_bytes)
		return true;
	if (bytes > SIZE_MAX / 4) /* a length that somebody made up */
		return false;
	while (capacity < bytes)
		capacity *= 2;
	capacity = a->total_bytes != UINT64_MAX ? a->total_bytes : wh_min(capacity, port->limits.message_bytes_max);
	/* The plain flow has one message at most, of at most rx_bytes_max: it always has room. */
	if (flow->kind != WH_FLOW_PLAIN) {
		if (port->assembly_bytes - a->capacity_bytes + capacity > port->assembly_bytes_max)
			return false;
		port->assembly_bytes += capacity - a->capacity_bytes;
	}
	memory = aligned_alloc(64, wh_align_up(capacity, 64));
	if (!memory) {
		if (flow->kind != WH_FLOW_PLAIN)
			port->assembly_bytes -= capacity - a->capacity_bytes;
		return false;
	}
	if (a->position_bytes)
		memcpy(memory, a->memory, a->position_bytes);
	free(a->memory);
	a->memory = memory;
	a->capacity_bytes = capacity;
	return true;
}

/* What is wrong with it; NULL: nothing, though there may have been no memory. */
static const char *begin_assembly(
	struct wh_flow *flow, const struct wh_record *r, const struct wh_message_in *in, struct wh_rx *rx)
{
	struct wharf_port *port = flow->port;
	struct wh_assembly *a;

	if (flow->in.assembly)
		return "pieces: a message begins within another";
	if (!port->pieces && in->position != UINT64_MAX && in->position > port->limits.message_bytes_max)
		return "pieces: a message larger than we take";
	a = malloc(sizeof(*a) + in->n_fds * sizeof(int));
	if (!a)
		return NULL;
	*a = (struct wh_assembly){
		.total_bytes = in->position, .type = ((const struct wh_message_record *)r)->type, .sent_ns = rx->sent_ns
	};
	if (!port->pieces) {
		a->n_fds = in->n_fds;
		take_fds(rx, in->n_fds, a->fds, &a->fds_lost);
		if (flow->kind != WH_FLOW_PLAIN)
			port->assembly_fds += a->n_fds;
	}
	flow->in.assembly = a;
	return NULL;
}

/* The whole message, out of its pieces: one slice. */
static void deliver_assembled(struct wh_flow *flow, const struct wh_record *r)
{
	struct wh_assembly *a = flow->in.assembly;
	struct wharf_slice slice = { .data = a->memory, .size = a->position_bytes };
	static const struct wh_run run; /* inline */
	struct wh_message m = {
		.pub = head_of(flow, r),
		.port = flow->port,
		.runs = &run,
		.fds = a->fds,
		.joined = a->memory,
	};

	m.pub.type = a->type;
	if (a->fds_lost)
		m.pub.flags |= WHARF_MSG_FDS_LOST;
	m.pub.size = m.pub.total_bytes = a->position_bytes;
	m.pub.slices = &slice;
	m.pub.n_slices = a->position_bytes ? 1 : 0;
	m.pub.fds = a->fds;
	m.pub.n_fds = a->n_fds;
	m.pub.sent_ns = a->sent_ns;
	/* A handler may end the flow: what is delivered is no longer its. */
	flow->in.assembly = NULL;
	if (flow->kind != WH_FLOW_PLAIN) {
		flow->port->assembly_bytes -= a->capacity_bytes;
		flow->port->assembly_fds -= a->n_fds;
	}
	wh_port_count(flow->port, rx_fds, a->n_fds);
	wh_flow_deliver(flow, &m);
	wh_fds_close(a->fds, a->n_fds);
	free(a);
}

static const char *take_piece(struct wh_flow *flow, const struct wh_record *r, const struct wh_message_in *in,
	struct wh_rx *rx, uint64_t bytes)
{
	struct wharf_port *port = flow->port;
	const char *why = r->flags & WH_RECORD_FIRST ? begin_assembly(flow, r, in, rx) : NULL;
	struct wh_assembly *a = flow->in.assembly;

	if (why)
		return why;
	if (!a && r->flags & WH_RECORD_FIRST) {
		no_room(flow, r);
		return NULL;
	}
	if (!a)
		return "pieces: one of no message";
	if (!(r->flags & WH_RECORD_FIRST) && in->position != a->position_bytes)
		return "pieces: not where the last one ended";
	if (a->total_bytes != UINT64_MAX && bytes > a->total_bytes - a->position_bytes)
		return "pieces: more than the whole";
	if (r->flags & WH_RECORD_LAST && a->total_bytes != UINT64_MAX && a->position_bytes + bytes != a->total_bytes)
		return "pieces: less than the whole";
	if (port->pieces) {
		a->position_bytes += bytes;
		deliver_in_place(flow, r, in, rx, flow->kind == WH_FLOW_PLAIN ? 0 : wh_flow_charge(r->n_items, bytes));
		if (r->flags & WH_RECORD_LAST)
			wh_flow_drop_pieces(flow);
		return NULL;
	}
	if (a->position_bytes + bytes > port->limits.message_bytes_max)
		return "pieces: a message larger than we take";
	/* Descriptors wait here beyond the frame that brought them: they have a cap as bytes have. */
	if ((r->flags & WH_RECORD_FIRST && a->n_fds && flow->kind != WH_FLOW_PLAIN &&
		    port->assembly_fds > WH_WIRE_FDS_MAX) ||
		!assembly_reserve(flow, a->total_bytes == UINT64_MAX ? a->position_bytes + bytes : a->total_bytes)) {
		no_room(flow, r);
		return NULL;
	}
	for (unsigned i = 0; i < r->n_items; i++) {
		const struct wh_run *run = &in->runs[i];
		const void *from = run->n_chunks ? wh_view_at(port->views[run->slot], run->first, run->offset)
						 : (const char *)r + run->first;
		if (run->size)
			memcpy(a->memory + a->position_bytes, from, run->size);
		a->position_bytes += run->size;
	}
	wh_port_release_runs(port, r);
	wh_port_sum(port, rx_bytes, bytes);
	port->bytes_unreported += bytes;
	port->bytes_this_turn += bytes;
	if (flow->kind != WH_FLOW_PLAIN)
		wh_flow_give_back(flow, wh_flow_charge(r->n_items, bytes));
	if (r->flags & WH_RECORD_LAST)
		deliver_assembled(flow, r);
	return NULL;
}

/* Has the record delivered, or kept as a piece. */
void wh_flow_take(struct wh_flow *flow, const struct wh_record *r, struct wh_rx *rx)
{
	const uint8_t whole = WH_RECORD_FIRST | WH_RECORD_LAST;
	const struct wh_message_in in = wh_message_read(r);
	uint64_t bytes = bytes_of(r, &in);
	const char *why = NULL;

	if (flow->in.ended)
		why = "a message behind the last";
	else if ((r->flags & whole) != whole)
		why = take_piece(flow, r, &in, rx, bytes);
	else if (flow->in.assembly)
		why = "pieces: a message within another";
	else
		deliver_in_place(flow, r, &in, rx, flow->kind == WH_FLOW_PLAIN ? 0 : wh_flow_charge(r->n_items, bytes));
	if (why) {
		wh_port_release_runs(flow->port, r);
		violation(flow, why);
		return;
	}
	if (r->flags & WH_RECORD_LAST)
		finish(flow, r);
}

/* ---- Whose it is ---- */

static struct wh_flow *begin(struct wharf_port *port, enum wh_flow_kind kind, size_t bytes, uint64_t id,
	const char *in_use, const char *too_many)
{
	struct wh_flow *flow = NULL;
	int error = wh_flow_new(port, kind, bytes, id, &flow);

	if (error == -EEXIST)
		wh_port_violation(port, in_use);
	else if (error == -EAGAIN)
		wh_port_violation(port, too_many);
	else if (error)
		wh_port_end(port, WHARF_CLOSE_ERROR, ENOMEM, "no memory for what the peer begins");
	return flow;
}

static struct wh_flow *stream_of(struct wharf_port *port, const struct wh_record *r, uint32_t id)
{
	struct wh_flow *flow = wh_flow_find(port, WH_FLOW_STREAM_IN, id);

	if (!(r->flags & WH_RECORD_FIRST) || wh_flow_is_dead(port, WH_FLOW_STREAM_IN, id))
		return flow;
	if (flow) {
		violation(flow, NULL);
		return NULL;
	}
	return begin(port, WH_FLOW_STREAM_IN, sizeof(*flow), id, "a stream with the number of another",
		"more streams than it was told");
}

static struct wh_flow *begin_answer(struct wharf_port *port, uint64_t id)
{
	struct wh_flow *flow = begin(port, WH_FLOW_ANSWER, sizeof(struct wh_call), id, "a call with the number of another",
		"more calls than it was told");

	if (flow)
		wh_list_init(&wh_call_of(flow)->ended);
	return flow;
}

static void refuse(struct wharf_port *port, const struct wh_record *r, uint64_t id)
{
	bool begins = r->flags & WH_RECORD_FIRST && !wh_flow_is_dead(port, WH_FLOW_ANSWER, id);
	struct wh_flow *flow = begins && !port->bye_encoded ? begin_answer(port, id) : NULL;

	if (flow)
		wh_flow_leave(flow, WH_CANCEL_CLOSING, 0);
}

static struct wh_flow *answer_of(struct wharf_port *port, const struct wh_record *r, uint64_t id)
{
	struct wh_flow_table *table = &port->flows[WH_FLOW_ANSWER];
	struct wh_flow *flow = wh_flow_find(port, WH_FLOW_ANSWER, id);

	if (flow && r->flags & WH_RECORD_DELEGATED) {
		wh_port_violation(port, "a call delegated behind its beginning");
		return NULL;
	}
	if (flow || !wh_call_is_newer(id, table->sequence))
		return flow;
	/* The bye will name the last call accepted. Before it the caller hears that it need not send the rest. */
	if (port->closed_here || port->bye_encoded) {
		refuse(port, r, id);
		return NULL;
	}
	table->sequence = id;
	if (wh_flow_is_dead(port, WH_FLOW_ANSWER, id))
		return NULL;
	if (!(r->flags & WH_RECORD_FIRST) || id >= WH_CALL_THEIRS) {
		wh_port_violation(port, "a call that does not begin at its beginning");
		return NULL;
	}
	flow = begin_answer(port, id);
	if (flow)
		flow->delegated = r->flags & WH_RECORD_DELEGATED;
	return flow;
}

static struct wh_flow *flow_of(struct wharf_port *port, const struct wh_record *r, const struct wh_message_in *in)
{
	struct wh_flow *flow;

	switch (r->kind) {
	case WH_RECORD_CALL:
		return answer_of(port, r, in->call);
	case WH_RECORD_REPLY:
		flow = wh_flow_find(port, WH_FLOW_CALL, in->call);
		return flow && !flow->delegated ? flow : NULL;
	default:
		return in->record->stream ? stream_of(port, r, in->record->stream) : &port->plain;
	}
}

void wh_flow_arrive(struct wharf_port *port, const struct wh_record *r, struct wh_rx *rx)
{
	const struct wh_message_in in = wh_message_read(r);
	struct wh_flow *flow = flow_of(port, r, &in);
	struct wh_inflow *inflow;

	if (!flow) {
		/* It has ended here while this was on its way, or it is not there for another reason that was told. */
		wh_port_count(port, rx_stray_records, port->state < WH_PORT_ENDING);
		wh_port_release_runs(port, r);
		return;
	}
	inflow = &flow->in;
	wh_flow_ref(flow);
	if (flow->kind != WH_FLOW_PLAIN) {
		/* One record may exceed it: nobody can send less than a message. */
		if (inflow->unreturned_bytes + inflow->give_back_bytes >= port->rx_credit_bytes) {
			wh_port_release_runs(port, r);
			violation(flow, "more than the credit it had");
			wh_flow_unref(flow);
			return;
		}
		wh_flow_charge_in(flow, wh_flow_charge(r->n_items, bytes_of(r, &in)));
	}
	if (!inflow->paused && wh_list_empty(&inflow->aside))
		wh_flow_take(flow, r, rx);
	else if (!wh_flow_put_aside(flow, r, rx))
		no_room(flow, r);
	wh_flow_unref(flow);
}

void wh_flow_on_abort(struct wharf_port *port, const struct wh_abort *abort)
{
	bool theirs = abort->code == WH_ABORT_SENDER;
	struct wh_flow *flow = wh_flow_find(port, theirs ? WH_FLOW_STREAM_IN : WH_FLOW_STREAM_OUT, abort->stream);
	uint64_t id = (theirs ? WH_STREAM_THEIRS : WH_STREAM_OURS) | abort->stream;

	if (theirs && !flow)
		wh_flow_drop_held(port, WH_FLOW_STREAM_IN, abort->stream);
	if (!theirs && abort->code == WH_ABORT_DONE && flow) {
		wh_port_violation(port, "it is done with a stream that has not ended");
		return;
	}
	if (!theirs && !flow) {
		flow = wh_flow_resting(port, WH_FLOW_STREAM_OUT, abort->stream);
		/* One that was given up here has said so, or will. */
		if (!flow || !flow->out.ended || flow->farewell)
			return;
		wh_flow_vacate(flow);
		if (abort->code == WH_ABORT_DONE)
			return;
	} else if (!flow) {
		return;
	} else {
		flow->farewell_code = abort->code;
		wh_flow_unlist(flow);
	}
	if (port->ops.on_stream_abort)
		port->ops.on_stream_abort(port, id, abort->code, abort->app_code, port->user);
}
