/* SPDX-License-Identifier: MIT */
/* Calls that this end makes, and what calls of both sides have in common: how they end. */
#include "call.h"

#include <errno.h>

#include "delegate.h"
#include "options.h"
#include "receive.h"

/* ---- Ends ---- */

uint32_t wh_call_progress(const struct wh_call *call)
{
	const struct wh_flow *flow = &call->flow;
	const struct wharf_port *port = flow->port;
	uint64_t left;

	if (call->replied)
		return WHARF_REPLIED;
	if (call->other && !flow->delegated)
		return wh_call_progress(call->other);
	if (flow->kind == WH_FLOW_ANSWER)
		return WHARF_MAYBE_SEEN;
	if (!flow->out.first_ordinal || call->unaccepted ||
		(port->said_last_call && wh_call_is_newer(flow->id, port->last_call)))
		return WHARF_NOT_SEEN;
	/* Frames of a live port leave, whatever becomes of what is in them; and one that the engine has may have left. */
	if (port->state < WH_PORT_ENDING)
		return WHARF_MAYBE_SEEN;
	left = port->sending ? port->handed_ordinal : port->sent_ordinal;
	return flow->out.first_ordinal > left ? WHARF_NOT_SEEN : WHARF_MAYBE_SEEN;
}

static void out_of_time(struct wh_call *call)
{
	struct wharf_loop *loop = call->flow.port->source.loop;

	if (!call->timed)
		return;
	wh_loop_clear_deadline(loop, &call->deadline);
	wh_timers_unreserve(&loop->timers, 1);
	call->timed = false;
}

void wh_call_finish(struct wh_call *call, struct wharf_end end, uint32_t farewell)
{
	struct wharf_port *port;

	if (call->flow.delegated && call->other) {
		/* What ends it here is told where it is answered. */
		call = call->other;
		farewell = WH_CANCEL_CALLER;
	}
	port = call->flow.port;
	end.progress = wh_call_progress(call);
	/* Whose end was told needs to hear of none. */
	if (call->behind)
		farewell = 0;
	call->end = end;
	call->behind = false;
	if (!wh_list_linked(&call->ended)) {
		wh_flow_ref(&call->flow);
		wh_list_append(&port->ended_calls, &call->ended);
	}
	wh_trace(port->source.loop, port, WH_TRACE_CALL_END, call->flow.id, end.reason);
	out_of_time(call);
	if (farewell)
		wh_flow_leave(&call->flow, farewell, end.app_code);
	else
		wh_flow_unlist(&call->flow);
	if (call->other)
		wh_delegate_ended(call);
	wh_port_chore(port);
}

static bool must_wait(const struct wh_call *call)
{
	return call->behind &&
		((int64_t)(call->flow.port->n_delivered - call->behind_frame) < 0 ||
			!wh_list_empty(&call->flow.in.aside));
}

/* The end that the peer tells of comes behind the replies before it, which may be held, or put aside. */
static void finish_behind(struct wh_call *call, struct wharf_end end)
{
	struct wharf_port *port = call->flow.port;

	if (call->behind)
		return;
	call->behind = true;
	call->behind_frame = port->n_delivered + port->n_held;
	if (!must_wait(call)) {
		wh_call_finish(call, end, 0);
		return;
	}
	call->end = end;
	wh_flow_ref(&call->flow);
	wh_list_append(&port->ended_calls, &call->ended);
}

/* What it waited for is delivered. */
static void settle(struct wh_call *call)
{
	call->end.progress = wh_call_progress(call);
	call->behind = false;
	out_of_time(call);
	wh_flow_unlist(&call->flow);
	if (call->other)
		wh_delegate_ended(call);
}

void wh_calls_run_ends(struct wharf_port *port)
{
	struct wh_list ended, *node;

	wh_list_init(&ended);
	wh_list_splice(&ended, &port->ended_calls);
	while ((node = wh_list_take_first(&ended))) {
		struct wh_call *call = wh_container_of(node, struct wh_call, ended);
		if (must_wait(call)) {
			wh_list_append(&port->ended_calls, node);
			continue;
		}
		if (call->behind)
			settle(call);
		if (call->on_end)
			call->on_end(port, wh_call_handle(&call->flow), &call->end, call->user);
		wh_call_retire(&call->flow);
	}
}

static struct wharf_end end_of_port(const struct wharf_port *port)
{
	struct wharf_end end = { .app_code = port->reason.app_code, .error = port->reason.error };

	switch (port->reason.code) {
	case WHARF_CLOSE_PEER_GONE:
	case WHARF_CLOSE_VIOLATION:
		end.reason = WHARF_END_PEER_GONE;
		break;
	case WHARF_CLOSE_ERROR:
		end.reason = WHARF_END_ERROR;
		break;
	default:
		end.reason = WHARF_END_CLOSED;
	}
	return end;
}

void wh_calls_end_all(struct wharf_port *port)
{
	static const enum wh_flow_kind kinds[] = { WH_FLOW_CALL, WH_FLOW_ANSWER };
	struct wh_flow *flow;

	for (unsigned k = 0; k < wh_array_len(kinds); k++)
		for (uint32_t at = 0; (flow = wh_flow_next(&port->flows[kinds[k]], &at));) {
			/* One whose end was told keeps that. */
			if (flow->listed && !wh_delegate_outlives_port(wh_call_of(flow)))
				wh_call_finish(wh_call_of(flow),
					wh_call_of(flow)->behind ? wh_call_of(flow)->end : end_of_port(port), 0);
		}
}

void wh_calls_on_bye(struct wharf_port *port, uint64_t last_call)
{
	struct wh_flow *flow;

	port->said_last_call = true;
	port->last_call = last_call;
	/* Those that ended with the port learn the same. */
	if (port->state >= WH_PORT_ENDING)
		return;
	for (uint32_t at = 0; (flow = wh_flow_next(&port->flows[WH_FLOW_CALL], &at));)
		if (flow->listed && wh_call_is_newer(flow->id, last_call))
			wh_call_finish(wh_call_of(flow), (struct wharf_end){ .reason = WHARF_END_CLOSED }, 0);
}

void wh_call_give_up(struct wh_flow *flow)
{
	/* One whose end was told keeps that. */
	if (!wh_call_of(flow)->behind)
		wh_call_finish(wh_call_of(flow), (struct wharf_end){ .reason = WHARF_END_CLOSED }, WH_CANCEL_CALLER);
}

/* ---- What arrives ---- */

void wh_call_on_reply(struct wh_flow *flow, const struct wharf_msg *msg)
{
	struct wh_call *call = wh_call_of(flow);

	call->replied = true;
	if (call->on_message)
		call->on_message(flow->port, flow->id, msg, call->user);
}

void wh_call_on_last(struct wh_flow *flow, uint32_t status)
{
	wh_call_finish(wh_call_of(flow), (struct wharf_end){ .reason = WHARF_END_LAST, .status = status },
		flow->out.ended ? 0 : WH_CANCEL_CALLER);
}

void wh_call_on_cancel(struct wharf_port *port, const struct wh_cancel *cancel)
{
	struct wharf_end end = { .app_code = cancel->app_code };
	struct wh_flow *flow;

	if (cancel->code == WH_CANCEL_CALLER) {
		flow = wh_flow_find(port, WH_FLOW_ANSWER, cancel->call);
		end.reason = WHARF_END_CANCEL;
		if (flow)
			wh_call_finish(wh_call_of(flow), end, 0);
		else if (wh_call_is_newer(cancel->call, port->flows[WH_FLOW_ANSWER].sequence))
			wh_flow_drop_held(port, WH_FLOW_ANSWER, cancel->call);
		return;
	}
	flow = wh_flow_find(port, WH_FLOW_CALL, cancel->call);
	if (flow && cancel->code == WH_CANCEL_CLOSING) {
		wh_call_of(flow)->unaccepted = true;
		wh_call_finish(wh_call_of(flow), (struct wharf_end){ .reason = WHARF_END_CLOSED }, 0);
		return;
	}
	if (!flow || flow->delegated)
		return;
	end.reason = cancel->code == WH_CANCEL_NO_REPLY ? WHARF_END_NO_REPLY : WHARF_END_REFUSED;
	finish_behind(wh_call_of(flow), end);
}

void wh_call_writable(struct wh_flow *flow)
{
	struct wh_call *call = wh_call_of(flow);

	if (call->on_writable)
		call->on_writable(flow->port, wh_call_handle(flow), call->user);
}

void wh_call_no_room(struct wh_flow *flow)
{
	wh_call_finish(wh_call_of(flow), (struct wharf_end){ .reason = WHARF_END_ERROR, .error = ENOBUFS },
		flow->kind == WH_FLOW_CALL ? WH_CANCEL_CALLER : WH_CANCEL_REFUSED);
}

/* ---- Calling ---- */

static void on_deadline(struct wh_deadline *deadline)
{
	struct wh_call *call = wh_container_of(deadline, struct wh_call, deadline);

	wh_call_finish(call, (struct wharf_end){ .reason = WHARF_END_DEADLINE, .error = ETIMEDOUT }, WH_CANCEL_CALLER);
}

void wh_call_set_deadline(struct wh_call *call, int64_t timeout_ns)
{
	call->timed = true;
	call->deadline.expired = on_deadline;
	wh_loop_set_deadline(call->flow.port->source.loop, &call->deadline, (uint64_t)timeout_ns);
}

int wh_call_send(struct wh_call *call, const struct wharf_out *out, uint32_t status)
{
	struct wh_outmsg m = { .flow = &call->flow,
		.first = true,
		.last = true,
		.status = status,
		.delegated = call->flow.delegated };

	if (!out || out->flags & ~(uint32_t)(WHARF_FDS_MOVE | WHARF_LAST) || out->key)
		return -EINVAL;
	if (call->flow.out.ended)
		return -EALREADY;
	m.end = out->flags & WHARF_LAST;
	return wh_port_send(call->flow.port, &m, out);
}

static int check_options(
	const struct wharf_port *port, const struct wharf_call_options *given, struct wharf_call_options *o)
{
	int error = wh_port_check(port);

	if (!error)
		error = WH_OPTIONS_READ(given, o);
	if (error)
		return error;
	if (o->flags || o->delegate > 1)
		return -EINVAL;
	return port->state == WH_PORT_DRAINING || port->tx_dead ? -EPIPE : 0;
}

int wharf_call(wharf_port *port, const struct wharf_out *request, const struct wharf_call_options *options,
	wharf_call_id *ret_id)
{
	struct wharf_call_options o;
	struct wh_flow *flow;
	struct wh_call *call;
	int error = check_options(port, options, &o);

	if (error)
		return error;
	if (!ret_id)
		return -EINVAL;
	if (o.timeout_ns > 0 && wh_timers_reserve(&port->source.loop->timers, 1))
		return -ENOMEM;
	error = wh_flow_new(port, WH_FLOW_CALL, sizeof(*call), 0, &flow);
	if (error) {
		if (o.timeout_ns > 0)
			wh_timers_unreserve(&port->source.loop->timers, 1);
		return error;
	}
	call = wh_call_of(flow);
	wh_list_init(&call->ended);
	wh_list_init(&call->delegated);
	error = o.delegate ? wh_call_delegate(call, request, &o) : wh_call_send(call, request, 0);
	if (error) {
		/* It never was: what kept it back is the port's, and nothing of its own. */
		if (error == -EAGAIN)
			wh_port_block_call(port, flow);
		if (o.timeout_ns > 0)
			wh_timers_unreserve(&port->source.loop->timers, 1);
		wh_flow_unlist(flow);
		return error;
	}
	call->on_message = o.on_reply;
	call->on_writable = o.on_writable;
	call->on_end = o.on_end;
	call->user = o.user;
	if (!o.delegate && o.timeout_ns > 0)
		wh_call_set_deadline(call, o.timeout_ns);
	*ret_id = flow->id;
	return 0;
}

/* One of ours: where it is answered. */
static int find(const wharf_port *port, wharf_call_id id, struct wh_call **ret_call)
{
	struct wh_flow *flow;
	struct wh_call *call;
	int error = wh_port_check(port);

	if (error == -EPIPE) {
		call = wh_delegate_find(port, id);
	} else if (error) {
		return error;
	} else {
		flow = wh_flow_find(port, WH_FLOW_CALL, id);
		call = flow ? wh_call_of(flow) : NULL;
		error = -ESTALE;
	}
	if (!call)
		return error;
	*ret_call = call->flow.delegated ? call->other : call;
	return 0;
}

int wharf_call_send(wharf_port *port, wharf_call_id id, const struct wharf_out *out)
{
	struct wh_call *call;
	int error = find(port, id, &call);

	if (!error && call->behind)
		error = -ESTALE;
	return error ? error : wh_call_send(call, out, 0);
}

int wharf_call_send_buf(wharf_port *port, wharf_call_id id, struct wharf_buf *buf, uint32_t flags)
{
	struct wharf_part part = { .buf = buf };
	struct wharf_out out = { .flags = flags, .parts = &part, .n_parts = 1 };

	return wharf_call_send(port, id, buf ? &out : NULL);
}

int wharf_call_cancel(wharf_port *port, wharf_call_id id)
{
	struct wh_call *call;
	int error = id & WH_CALL_THEIRS ? -EINVAL : find(port, id, &call);

	if (!error)
		wh_call_finish(call, (struct wharf_end){ .reason = WHARF_END_CANCEL }, WH_CANCEL_CALLER);
	return error;
}

/* Of either side. */
static int find_any(const wharf_port *port, wharf_call_id id, struct wh_flow **ret_flow)
{
	struct wh_call *call;
	int error;

	if (!(id & WH_CALL_THEIRS)) {
		error = find(port, id, &call);
		if (!error)
			*ret_flow = &call->flow;
		return error;
	}
	error = wh_port_check(port);
	if (error)
		return error;
	*ret_flow = wh_flow_find(port, WH_FLOW_ANSWER, id & ~WH_CALL_THEIRS);
	return *ret_flow && wh_call_of(*ret_flow)->taken ? 0 : -ESTALE;
}

int wharf_call_pause(wharf_port *port, wharf_call_id id)
{
	struct wh_flow *flow;
	int error = find_any(port, id, &flow);

	if (!error)
		wh_flow_pause(flow);
	return error;
}

int wharf_call_resume(wharf_port *port, wharf_call_id id)
{
	struct wh_flow *flow;
	int error = find_any(port, id, &flow);

	if (!error)
		wh_flow_resume(flow);
	return error;
}
