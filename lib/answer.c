/* SPDX-License-Identifier: MIT */
/* Calls that the peer makes, and how they are answered. */
#include <errno.h>

#include "call.h"
#include "options.h"
#include "receive.h"

void wh_answer_on_request(struct wh_flow *flow, const struct wharf_msg *msg)
{
	struct wh_call *call = wh_call_of(flow);
	struct wharf_port *port = flow->port;

	if (flow->delegated) {
		if (port->ops.on_message)
			port->ops.on_message(port, msg, port->user);
		return;
	}
	if (call->taken) {
		if (call->on_message)
			call->on_message(port, wh_call_handle(flow), msg, call->user);
		return;
	}
	if (!call->offered) {
		call->offered = true;
		port->offered = call;
		if (port->ops.on_message)
			port->ops.on_message(port, msg, port->user);
		port->offered = NULL;
	}
	if (call->taken || !flow->listed)
		return;
	wh_trace(port->source.loop, port, WH_TRACE_CALL_END, flow->id, WHARF_END_NO_REPLY);
	wh_flow_leave(flow, WH_CANCEL_NO_REPLY, 0);
}

void wh_answer_sent(struct wh_flow *flow)
{
	struct wh_call *call = wh_call_of(flow);

	wh_call_finish(call,
		(struct wharf_end){ .reason = WHARF_END_LAST, .status = call->status }, 0);
}

void wh_answer_take(struct wh_call *call, const struct wharf_answer_options *o, wharf_call_id *ret_id)
{
	call->taken = true;
	call->on_message = o->on_message;
	call->on_writable = o->on_writable;
	call->on_end = o->on_end;
	call->user = o->user;
	*ret_id = wh_call_handle(&call->flow);
}

int wharf_call_take(wharf_port *port, const struct wharf_msg *msg, const struct wharf_answer_options *options,
	wharf_call_id *ret_id)
{
	struct wharf_answer_options o;
	struct wh_call *call;
	int error = wh_port_check(port);

	if (!error)
		error = WH_OPTIONS_READ(options, &o);
	if (error)
		return error;
	if (!msg || !ret_id)
		return -EINVAL;
	call = port->offered;
	if (!call || msg->call != wh_call_handle(&call->flow) || !call->flow.listed)
		return -ENOENT;
	if (call->taken)
		return -EALREADY;
	wh_answer_take(call, &o, ret_id);
	return 0;
}

static int find(const wharf_port *port, wharf_call_id id, struct wh_call **ret_call)
{
	struct wh_flow *flow;
	int error = wh_port_check(port);

	if (error)
		return error;
	flow = id & WH_CALL_THEIRS ? wh_flow_find(port, WH_FLOW_ANSWER, id & ~WH_CALL_THEIRS) : NULL;
	if (!flow || !wh_call_of(flow)->taken)
		return -ESTALE;
	*ret_call = wh_call_of(flow);
	return 0;
}

int wharf_reply(wharf_port *port, wharf_call_id id, const struct wharf_out *out, uint32_t status)
{
	struct wh_call *call;
	int error = find(port, id, &call);

	if (error)
		return error;
	error = wh_call_send(call, out, status);
	if (error)
		return error;
	call->replied = true;
	if (out->flags & WHARF_LAST)
		call->status = status;
	wh_outflow_look_for_end(&call->flow);
	return 0;
}

int wharf_reply_buf(wharf_port *port, wharf_call_id id, struct wharf_buf *buf, uint32_t status, uint32_t flags)
{
	struct wharf_part part = { .buf = buf };
	struct wharf_out out = { .flags = flags, .parts = &part, .n_parts = 1 };

	return wharf_reply(port, id, buf ? &out : NULL, status);
}

int wharf_call_refuse(wharf_port *port, wharf_call_id id, uint32_t app_code)
{
	struct wh_call *call;
	int error = find(port, id, &call);

	if (!error)
		wh_call_finish(call, (struct wharf_end){ .reason = WHARF_END_REFUSED, .app_code = app_code },
			WH_CANCEL_REFUSED);
	return error;
}
