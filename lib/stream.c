/* SPDX-License-Identifier: MIT */
/* Streams, as the application has them: messages that are pushed in parts. */
#include <errno.h>

#include "outbox.h"
#include "receive.h"

/* Ours, that is not at its end. */
static struct wh_flow *stream_out(const wharf_port *port, uint64_t stream)
{
	struct wh_flow *flow;

	if ((stream ^ WH_STREAM_OURS) > UINT32_MAX)
		return NULL;
	flow = wh_flow_find(port, WH_FLOW_STREAM_OUT, (uint32_t)stream);
	return flow && !flow->out.ended ? flow : NULL;
}

static struct wh_flow *stream_in(const wharf_port *port, uint64_t stream)
{
	return (stream ^ WH_STREAM_THEIRS) > UINT32_MAX ? NULL
							: wh_flow_find(port, WH_FLOW_STREAM_IN, (uint32_t)stream);
}

int wharf_stream_begin(wharf_port *port, uint32_t type, uint64_t total_bytes, uint64_t *ret_stream)
{
	struct wh_flow *flow;
	int error = wh_port_check(port);

	if (error)
		return error;
	if (!ret_stream)
		return -EINVAL;
	if (port->state == WH_PORT_DRAINING || port->tx_dead)
		return -EPIPE;
	if (total_bytes != WHARF_BYTES_UNKNOWN && total_bytes > port->tx_message_bytes_max)
		return -EMSGSIZE;
	error = wh_flow_new(port, WH_FLOW_STREAM_OUT, sizeof(*flow), 0, &flow);
	if (error)
		return error;
	flow->out.type = type;
	flow->out.total_bytes = total_bytes;
	*ret_stream = WH_STREAM_OURS | flow->id;
	return 0;
}

static int check_part(const struct wharf_port *port, const struct wh_outflow *o, const struct wharf_out *out)
{
	uint64_t bytes = 0, left = o->total_bytes - o->position_bytes;

	/* Begun before the peer has said what it takes. */
	if (o->total_bytes != WHARF_BYTES_UNKNOWN && o->total_bytes > port->tx_message_bytes_max)
		return -EMSGSIZE;
	for (size_t i = 0; i < out->n_parts; i++) {
		const struct wharf_part *part = &out->parts[i];
		uint64_t size = part->size;
		if (part->buf && !size)
			size = part->buf->size - wh_min(part->offset, part->buf->size);
		if (size > UINT64_MAX - 1 - o->position_bytes - bytes)
			return -EMSGSIZE;
		bytes += size;
	}
	if (out->n_fds && o->begun)
		return -EINVAL;
	if (o->total_bytes == WHARF_BYTES_UNKNOWN)
		return o->position_bytes + bytes > port->tx_message_bytes_max ? -EMSGSIZE : 0;
	if (bytes > left)
		return -EMSGSIZE;
	return out->flags & WHARF_LAST && bytes != left ? -EINVAL : 0;
}

/* `must`: it is refused for nothing that passes. */
static int send_part(wharf_port *port, uint64_t stream, const struct wharf_out *out, bool must)
{
	struct wh_outmsg m = { .must = must };
	struct wharf_out typed;
	struct wh_flow *flow;
	int error = wh_port_check(port);

	if (error)
		return error;
	if (!out || out->flags & ~(uint32_t)(WHARF_FDS_MOVE | WHARF_LAST) || out->key ||
		out->n_parts > WH_WIRE_ITEMS_MAX || (out->n_parts && !out->parts))
		return -EINVAL;
	flow = stream_out(port, stream);
	if (!flow)
		return port->state == WH_PORT_DRAINING ? -EPIPE : -ESTALE;
	error = check_part(port, &flow->out, out);
	if (error)
		return error;
	typed = *out;
	typed.type = flow->out.type;
	m.flow = flow;
	m.first = !flow->out.begun;
	m.last = m.end = out->flags & WHARF_LAST;
	m.total_bytes = flow->out.total_bytes;
	m.position_bytes = flow->out.position_bytes;
	return wh_port_send(port, &m, &typed);
}

int wharf_stream_send(wharf_port *port, uint64_t stream, const struct wharf_out *out)
{
	return send_part(port, stream, out, false);
}

int wharf_stream_send_buf(wharf_port *port, uint64_t stream, struct wharf_buf *buf, uint32_t flags)
{
	struct wharf_part part = { .buf = buf };
	struct wharf_out out = { .flags = flags, .parts = &part, .n_parts = 1 };

	return send_part(port, stream, buf ? &out : NULL, false);
}

int wharf_stream_end(wharf_port *port, uint64_t stream)
{
	return send_part(port, stream, &(struct wharf_out){ .flags = WHARF_LAST }, true);
}

int wharf_stream_abort(wharf_port *port, uint64_t stream, uint32_t app_code)
{
	struct wh_flow *flow;
	int error = wh_port_check(port);

	if (error)
		return error;
	/* Ours may be at its end, and still queued. */
	flow = (stream ^ WH_STREAM_OURS) <= UINT32_MAX ? wh_flow_find(port, WH_FLOW_STREAM_OUT, (uint32_t)stream)
						       : stream_in(port, stream);
	if (!flow)
		return -ESTALE;
	wh_flow_leave(flow, flow->kind == WH_FLOW_STREAM_OUT ? WH_ABORT_SENDER : WH_ABORT_READER, app_code);
	return 0;
}

/* 0, with the flow; or why not. */
static int incoming(wharf_port *port, uint64_t stream, struct wh_flow **ret_flow)
{
	int error = wh_port_check(port);

	if (error)
		return error;
	if ((stream ^ WH_STREAM_OURS) <= UINT32_MAX)
		return -EINVAL;
	*ret_flow = stream_in(port, stream);
	return *ret_flow ? 0 : -ESTALE;
}

int wharf_stream_pause(wharf_port *port, uint64_t stream)
{
	struct wh_flow *flow;
	int error = incoming(port, stream, &flow);

	if (!error)
		wh_flow_pause(flow);
	return error;
}

int wharf_stream_resume(wharf_port *port, uint64_t stream)
{
	struct wh_flow *flow;
	int error = incoming(port, stream, &flow);

	if (!error)
		wh_flow_resume(flow);
	return error;
}
