/* SPDX-License-Identifier: MIT */
/*
 * Delegated calls: whoever gets the end of a fresh pair that travels in the request answers through that.
 *
 * The caller has two calls for one. The first is on the port that the request leaves through, where it does nothing but
 * carry that message and hold the id that the application knows. The second lives on the answer port, which nobody
 * sees, with an id that both ends know beforehand: what is said of the call, either way, is said there, and its end is the
 * call's.
 */
#include "delegate.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "options.h"

/* How long an answer port waits for its peer's word when the call has ended. */
#define GRACE_NS INT64_C(1000000000)

static const struct wharf_port_ops nobody = { .size = sizeof(nobody) };

/* ---- The call that the application has ---- */

static void on_reply(wharf_port *port, wharf_call_id id, const struct wharf_msg *msg, void *user)
{
	struct wh_call *call = user;

	(void)port, (void)id;
	((struct wharf_msg *)(uintptr_t)msg)->call = call->flow.id;
	if (call->on_message)
		call->on_message(call->flow.port, call->flow.id, msg, call->user);
}

static void on_writable(wharf_port *port, wharf_call_id id, void *user)
{
	struct wh_call *call = user;

	(void)port, (void)id;
	if (call->on_writable)
		call->on_writable(call->flow.port, call->flow.id, call->user);
}

/* Nobody has adopted it: the end was closed unopened, or closed in good order without a word of the call. */
static bool nobody_adopted(const struct wharf_port *answers, const struct wharf_end *end)
{
	if (end->reason == WHARF_END_PEER_GONE)
		return !answers->said_hello;
	return end->reason == WHARF_END_CLOSED && answers->said_last_call &&
		wh_call_is_newer(WH_CALL_DELEGATED, answers->last_call);
}

static void on_end(wharf_port *answers, wharf_call_id id, const struct wharf_end *end, void *user)
{
	struct wh_call *call = user;
	struct wharf_port *port = call->flow.port;
	struct wharf_end told = *end;

	(void)id;
	if (nobody_adopted(answers, end))
		told.reason = WHARF_END_NO_REPLY;
	if (answers->said_hello)
		wharf_port_close(answers, GRACE_NS);
	else
		wharf_port_abort(answers, end->app_code);
	if (call->on_end)
		call->on_end(port, call->flow.id, &told, call->user);
	wh_flow_unref(&call->flow);
	wharf_port_unref(port);
}

void wh_delegate_ended(struct wh_call *answered)
{
	struct wh_call *call = answered->other;

	if (!wh_list_linked(&call->delegated))
		return;
	wh_list_remove(&call->delegated);
	if (!call->flow.listed)
		return;
	/* What has left needs no farewell, unless this end gives up: it may wait there unread. */
	if (call->flow.out.first || answered->end.reason == WHARF_END_CANCEL ||
		answered->end.reason == WHARF_END_DEADLINE)
		wh_flow_leave(&call->flow, WH_CANCEL_CALLER, 0);
	else
		wh_flow_unlist(&call->flow);
}

bool wh_delegate_outlives_port(const struct wh_call *call)
{
	const struct wharf_port *port = call->flow.port;

	return call->flow.delegated && !call->flow.out.first &&
		call->flow.out.ordinal <= (port->sending ? port->handed_ordinal : port->sent_ordinal);
}

struct wh_call *wh_delegate_find(const struct wharf_port *port, uint64_t id)
{
	if (wh_loop_check(port->source.loop))
		return NULL;
	for (const struct wh_list *node = port->delegated.next; node != &port->delegated; node = node->next) {
		struct wh_call *call = wh_container_of(node, struct wh_call, delegated);
		if (call->flow.id == id)
			return call;
	}
	return NULL;
}

/* ---- Calling ---- */

/* The answer port takes what the port takes, and nothing but answers. */
static int open_answers(struct wharf_port *port, int fd, struct wharf_port **ret_answers)
{
	struct wharf_port_options o = {
		.size = sizeof(o),
		.ops = &nobody,
		.flags = (port->maps_huge ? WHARF_PORT_MAPS_HUGE : 0) | (port->pieces ? WHARF_PORT_PIECES : 0) |
			(port->mapped_bytes_max ? 0 : WHARF_PORT_INLINE) | (port->same_user ? WHARF_PORT_SAME_USER : 0),
		.open_timeout_ns = -1,
		.name = port->hello.name,
		.tx_queued_bytes_max = port->tx_queued_bytes_max,
		.rx_mapped_bytes_max = port->mapped_bytes_max,
		.rx_bytes_max = port->limits.message_bytes_max,
		.rx_assembly_bytes_max = port->assembly_bytes_max,
		.rx_stream_bytes_max = port->rx_credit_bytes,
		.rx_fds_max = port->limits.fds_max,
		.rx_msgs_per_turn = port->msgs_per_turn,
		.untrusted = port->untrusted,
	};
	struct wharf_port *answers;
	int error = wh_port_open(port->source.loop, fd, &o, -1, &answers);

	if (error)
		return error;
	answers->answers = answers->tx_inline = true;
	answers->flows_max[WH_FLOW_STREAM_IN] = answers->hello.streams_max = 0;
	answers->flows_max[WH_FLOW_ANSWER] = answers->hello.calls_max = 0;
	*ret_answers = answers;
	return 0;
}

/* 0, and the second call is there, on a port of its own; *ret_fd is the end to send. */
static int prepare(struct wharf_port *port, struct wh_call **ret_answered, int *ret_fd)
{
	struct wharf_port *answers;
	struct wh_flow *flow;
	int fds[2], error = wharf_pair(fds);

	if (error)
		return error;
	error = open_answers(port, fds[0], &answers);
	if (error) {
		close(fds[0]);
		close(fds[1]);
		return error;
	}
	error = wh_flow_new(answers, WH_FLOW_CALL, sizeof(struct wh_call), 0, &flow);
	if (error) {
		wh_port_forget(answers);
		close(fds[1]);
		return error;
	}
	wh_assert(flow->id == WH_CALL_DELEGATED);
	flow->known = true;
	wh_list_init(&wh_call_of(flow)->ended);
	*ret_answered = wh_call_of(flow);
	*ret_fd = fds[1];
	return 0;
}

/* The request, with the end in front of its descriptors. */
static int send_request(struct wh_call *call, const struct wharf_out *request, int fd)
{
	struct wharf_out out;
	int fds[WH_ENGINE_FDS_MAX], error;

	if (!request || (request->n_fds && !request->fds))
		return -EINVAL;
	if (request->n_fds >= WH_ENGINE_FDS_MAX)
		return -EMSGSIZE;
	out = *request;
	fds[0] = fd;
	if (request->n_fds)
		memcpy(fds + 1, request->fds, request->n_fds * sizeof(int));
	out.fds = fds;
	out.n_fds++;
	error = wh_call_send(call, &out, 0);
	if (error || !(request->flags & WHARF_FDS_MOVE))
		close(fd);
	return error;
}

int wh_call_delegate(struct wh_call *call, const struct wharf_out *request, const struct wharf_call_options *o)
{
	struct wharf_port *port = call->flow.port;
	struct wh_call *answered;
	int fd, error = prepare(port, &answered, &fd);

	if (error)
		return error;
	call->flow.delegated = true;
	error = send_request(call, request, fd);
	if (error) {
		wh_port_forget(answered->flow.port);
		return error;
	}
	call->flow.out.ended = true;
	answered->flow.out.ended = request->flags & WHARF_LAST;
	answered->on_message = on_reply;
	answered->on_writable = on_writable;
	answered->on_end = on_end;
	answered->user = call;
	answered->other = call;
	call->other = answered;
	wh_list_append(&port->delegated, &call->delegated);
	wh_flow_ref(&call->flow);
	wharf_port_ref(port);
	if (o->timeout_ns > 0)
		wh_call_set_deadline(answered, o->timeout_ns);
	return 0;
}

/* ---- Answering ---- */

int wharf_call_adopt(wharf_port *port, const struct wharf_answer_options *options, wharf_call_id *ret_id)
{
	struct wharf_answer_options o;
	struct wh_flow *flow;
	int error = wh_port_check(port);

	if (!error)
		error = WH_OPTIONS_READ(options, &o);
	if (error)
		return error;
	if (!ret_id)
		return -EINVAL;
	if (port->adopted)
		return -EALREADY;
	if (port->state > WH_PORT_OPEN || port->stats->counts.rx_messages || port->flows[WH_FLOW_ANSWER].sequence)
		return -ENOENT;
	error = wh_flow_new(port, WH_FLOW_ANSWER, sizeof(struct wh_call), WH_CALL_DELEGATED, &flow);
	if (error)
		return error;
	port->adopted = true;
	port->flows[WH_FLOW_ANSWER].sequence = flow->id;
	wh_list_init(&wh_call_of(flow)->ended);
	wh_call_of(flow)->offered = true;
	wh_answer_take(wh_call_of(flow), &o, ret_id);
	return 0;
}
