/* SPDX-License-Identifier: MIT */
/* Calls of wharf: payloads in claimed buffers (or as bytes, up to --inline-max), read in place. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "endpoint.h"
#include "transport.h"

/* A call on its way. */
struct call {
	uint64_t seq, start_ns;
	bool replied;
	struct call *next_free;
};

/* A request without an answer, for want of room. */
struct request {
	wharf_call_id id;
	uint64_t seq;
};

struct link {
	struct endpoint endpoint; /* first */
	bool stuck; /* there was no room; on_writable follows */

	/* The calling side */
	struct call *calls, *first_free;
	uint64_t begun, ended;

	/* The answering side: a ring */
	struct request *requests;
	size_t first, n_requests;
	uint64_t answered;
};

static struct wharf_part part_of(struct endpoint *endpoint)
{
	if (endpoint->bytes)
		return (struct wharf_part){ .bytes = endpoint->bytes, .size = endpoint->size };
	return (struct wharf_part){ .buf = &endpoint->buf };
}

/* One slice, of the size that arrives here. */
static bool fits(struct side *side, const struct wharf_msg *msg)
{
	if (__builtin_expect(msg->n_slices == 1 && msg->size == side->in_bytes && msg->flags & WHARF_MSG_LAST, 1))
		return true;
	side_fail(side, -EBADMSG, "a message arrived with %zu bytes in %zu slices, flags %#x", msg->size, msg->n_slices,
		msg->flags);
	return false;
}

static void on_writable(wharf_port *port, void *user)
{
	struct side *side = user;
	struct link *link = side->link;

	(void)port;
	link->stuck = false;
}

/* ---- Calling ---- */

static void on_reply(wharf_port *port, wharf_call_id id, const struct wharf_msg *msg, void *user)
{
	struct side *side = wharf_port_user(port);
	struct call *call = user;

	(void)id;
	if (!fits(side, msg))
		return;
	side_take_as(side, msg->slices[0].data, call->seq);
	call->replied = true;
}

static void on_end(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user)
{
	struct side *side = wharf_port_user(port);
	struct link *link = side->link;
	struct call *call = user;

	(void)id;
	if (end->reason != WHARF_END_LAST || end->status != (uint32_t)call->seq || !call->replied)
		side_fail(side, -EBADMSG, "call %" PRIu64 " ended: %s, status %u, %s", call->seq,
			wharf_end_name(end->reason), end->status, call->replied ? "answered" : "not answered");
	side_note_latency(side, call->seq, clock_ns() - call->start_ns);
	call->next_free = link->first_free;
	link->first_free = call;
	link->ended++;
}

/* 0; -EAGAIN: no room; else told to the side. */
static int begin(struct side *side)
{
	struct link *link = side->link;
	struct call *call = link->first_free;
	struct wharf_part part;
	wharf_call_id id;
	int r;

	r = endpoint_prepare(side, link->begun);
	if (r < 0)
		return r;
	part = part_of(&link->endpoint);
	call->seq = link->begun;
	call->replied = false;
	call->start_ns = clock_ns();
	r = wharf_call(link->endpoint.port,
		&(struct wharf_out){ .type = (uint32_t)call->seq, .flags = WHARF_LAST, .parts = &part, .n_parts = 1 },
		WHARF_OPT(call, .on_reply = on_reply, .on_end = on_end, .user = call), &id);
	r = endpoint_settle(side, "wharf_call", r);
	if (r < 0)
		return r;
	link->first_free = call->next_free;
	link->begun++;
	return 0;
}

static int call(struct side *side)
{
	struct link *link = side->link;
	const uint64_t messages = side->plan->messages;

	while (link->ended < messages && link->endpoint.port) {
		int r = 0;

		while (r == 0 && !link->stuck && link->first_free && link->begun < messages)
			r = begin(side);
		link->stuck |= r == -EAGAIN;
		if (r == 0 || r == -EAGAIN)
			r = endpoint_step(side, endpoint_patience(side));
		if (r < 0)
			return r;
	}
	return endpoint_finish(side);
}

/* ---- Answering ---- */

static void on_answer_writable(wharf_port *port, wharf_call_id id, void *user)
{
	(void)id;
	(void)user;
	on_writable(port, wharf_port_user(port));
}

/* 0; -EAGAIN: no room; else told to the side. */
static int reply(struct side *side, const struct request *request)
{
	struct link *link = side->link;
	struct wharf_part part;
	int r;

	r = endpoint_prepare(side, request->seq);
	if (r < 0)
		return r;
	part = part_of(&link->endpoint);
	r = wharf_reply(link->endpoint.port, request->id,
		&(struct wharf_out){ .flags = WHARF_LAST, .parts = &part, .n_parts = 1 }, (uint32_t)request->seq);
	r = endpoint_settle(side, "wharf_reply", r);
	if (r == 0)
		link->answered++;
	return r;
}

static void put_off(struct side *side, const struct request *request)
{
	struct link *link = side->link;
	size_t max = side->plan->inflight;

	if (link->n_requests == max) {
		side_fail(side, -EBADMSG, "more than %zu requests at once", max);
		return;
	}
	link->requests[(link->first + link->n_requests++) % max] = *request;
}

static void on_request(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct side *side = user;
	struct link *link = side->link;
	struct request request;
	int r;

	if (!fits(side, msg))
		return;
	request.seq = touch_seq(msg->slices[0].data);
	side_take_as(side, msg->slices[0].data, (request.seq & ~(uint64_t)UINT32_MAX) | msg->type);
	r = wharf_call_take(port, msg, WHARF_OPT(answer, .on_writable = on_answer_writable), &request.id);
	if (r < 0) {
		side_fail(side, r, "wharf_call_take: %s", strerror(-r));
		return;
	}
	r = link->n_requests ? -EAGAIN : reply(side, &request);
	if (r != -EAGAIN)
		return;
	link->stuck |= !link->n_requests;
	put_off(side, &request);
}

/* Those that were put off, as far as there is room. 0; negative: told to the side. */
static int catch_up(struct side *side)
{
	struct link *link = side->link;

	while (link->n_requests && !link->stuck) {
		int r = reply(side, &link->requests[link->first]);

		if (r == -EAGAIN) {
			link->stuck = true;
			break;
		}
		if (r < 0)
			return r;
		link->first = (link->first + 1) % side->plan->inflight;
		link->n_requests--;
	}
	return 0;
}

static int answer(struct side *side)
{
	struct link *link = side->link;

	while (link->answered < side->plan->messages && link->endpoint.port) {
		int r = endpoint_step(side, endpoint_patience(side));

		if (r == 0)
			r = catch_up(side);
		if (r < 0)
			return r;
	}
	return endpoint_finish(side);
}

/* ---- Both ---- */

static const struct wharf_port_ops port_ops = {
	.size = sizeof port_ops,
	.on_open = endpoint_on_open,
	.on_message = on_request,
	.on_writable = on_writable,
	.on_close = endpoint_on_close,
};

static void close_link(struct side *side)
{
	struct link *link = side->link;

	endpoint_close(side);
	free(link->calls);
	free(link->requests);
	free(link);
	side->link = NULL;
}

static int open_link(struct side *side, int fd, bool calls)
{
	const struct plan *plan = side->plan;
	struct link *link = calloc(1, sizeof *link);
	int r;

	if (!link) {
		close(fd);
		return side_fail(side, -ENOMEM, "no memory");
	}
	side->link = link;
	link->calls = calloc(plan->inflight, sizeof *link->calls);
	link->requests = calloc(plan->inflight, sizeof *link->requests);
	if (!link->calls || !link->requests) {
		close(fd);
		close_link(side);
		return side_fail(side, -ENOMEM, "no memory");
	}
	for (size_t i = plan->inflight; i-- > 0;) {
		link->calls[i].next_free = link->first_free;
		link->first_free = &link->calls[i];
	}
	r = endpoint_open(side, fd, &port_ops, calls ? plan->size : plan->reply_size, (uint32_t)plan->inflight);
	if (r < 0)
		close_link(side);
	return r;
}

const struct transport_calls transport_wharf_calls = {
	.open = open_link,
	.close = close_link,
	.call = call,
	.answer = answer,
};
