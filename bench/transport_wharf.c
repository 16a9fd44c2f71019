/* SPDX-License-Identifier: MIT */
/* wharf: messages in claimed buffers (or as bytes, up to --inline-max), read in place. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "endpoint.h"
#include "transport.h"

enum {
	TYPE = 1,
	/* A sender looks after its loop this often at least: as a service would that works off its own queue. */
	BURST_MESSAGES = 1024,
	BURST_BYTES = 1 << 20,
};

struct link {
	struct endpoint endpoint; /* first */
	bool writable, answers;
	uint64_t sent;
};

/* 0; -EAGAIN: no room; else told to the side. */
static int try_send(struct side *side)
{
	struct link *link = side->link;
	struct endpoint *endpoint = &link->endpoint;
	int r = endpoint_prepare(side, link->sent);

	if (r < 0)
		return r;
	if (endpoint->bytes)
		r = wharf_send_bytes(endpoint->port, TYPE, endpoint->bytes, endpoint->size);
	else
		r = wharf_send_buf(endpoint->port, TYPE, &endpoint->buf);
	r = endpoint_settle(side, "send", r);
	if (r == 0)
		link->sent++;
	return r;
}

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct side *side = user;
	struct link *link = side->link;

	(void)port;
	if (__builtin_expect(msg->n_slices != 1 || msg->size != side->plan->size, 0)) {
		side_fail(side, -EBADMSG, "a message arrived with %zu bytes in %zu slices", msg->size, msg->n_slices);
		return;
	}
	side_take(side, msg->slices[0].data);
	/* Without room the answer stays due: pong tries again. */
	if (link->answers)
		(void)try_send(side);
}

static void on_writable(wharf_port *port, void *user)
{
	struct side *side = user;
	struct link *link = side->link;

	(void)port;
	link->writable = true;
}

static const struct wharf_port_ops port_ops = {
	.size = sizeof port_ops,
	.on_open = endpoint_on_open,
	.on_message = on_message,
	.on_writable = on_writable,
	.on_close = endpoint_on_close,
};

static int wait_for_room(struct side *side)
{
	struct link *link = side->link;
	int r;

	if (!side->plan->block)
		return endpoint_step(side, 0);
	link->writable = false;
	do
		r = endpoint_step(side, -1);
	while (r == 0 && !link->writable && link->endpoint.port);
	return r;
}

/* Sends the message that is due. */
static int send_next(struct side *side)
{
	struct link *link = side->link;

	while (link->endpoint.port) {
		int r = try_send(side);

		if (r != -EAGAIN)
			return r;
		r = wait_for_room(side);
		if (r < 0)
			return r;
	}
	return side_fail(side, -EPIPE, "the peer closed early");
}

static void close_link(struct side *side)
{
	endpoint_close(side);
	free(side->link);
	side->link = NULL;
}

static int open_link(struct side *side, int fd)
{
	struct link *link = calloc(1, sizeof *link);
	int r;

	if (!link) {
		close(fd);
		return side_fail(side, -ENOMEM, "no memory");
	}
	side->link = link;
	r = endpoint_open(side, fd, &port_ops, side->plan->size, 0);
	if (r < 0)
		close_link(side);
	return r;
}

static int pair(const struct plan *plan, int ret_fds[2])
{
	(void)plan;
	return wharf_pair(ret_fds);
}

/* Sends messages until `until` are sent. The common case by itself, as a program that sends millions would have it. */
static int send_until(struct side *side, uint64_t until)
{
	const struct plan *plan = side->plan;
	const size_t size = plan->size;
	const enum touch touch = plan->touch;
	struct link *link = side->link;
	struct endpoint *endpoint = &link->endpoint;
	wharf_port *port = endpoint->port;
	wharf_pool *pool = endpoint->pool;
	uint64_t sent = link->sent;
	int r = 0;

	while (port && !endpoint->bytes && !endpoint->written && sent < until) {
		if (wharf_buf_claim(pool, size, &endpoint->buf))
			break;
		touch_write(touch, endpoint->buf.data, size, sent);
		if (wharf_send_buf(port, TYPE, &endpoint->buf)) {
			endpoint->written = true;
			break;
		}
		sent++;
	}
	link->sent = sent;
	while (r == 0 && link->sent < until)
		r = send_next(side);
	return r;
}

static int send_all(struct side *side)
{
	const struct plan *plan = side->plan;
	const struct link *link = side->link;
	uint64_t burst = BURST_BYTES / plan->size;
	int r;

	if (burst > BURST_MESSAGES)
		burst = BURST_MESSAGES;
	if (burst == 0)
		burst = 1;
	while (link->sent < plan->messages) {
		uint64_t until = plan->messages;

		if (link->sent == plan->warm)
			side_start(side);
		if (link->sent < plan->warm)
			until = plan->warm;
		if (until > link->sent + burst)
			until = link->sent + burst;
		r = send_until(side, until);
		if (r == 0)
			r = endpoint_step(side, 0);
		if (r < 0)
			return r;
	}
	r = endpoint_finish(side);
	side_stop(side);
	return r;
}

static int receive(struct side *side)
{
	const struct link *link = side->link;

	while (side->count < side->plan->messages && link->endpoint.port) {
		int r = endpoint_step(side, endpoint_patience(side));

		if (r < 0)
			return r;
	}
	return endpoint_finish(side);
}

static int ping(struct side *side)
{
	const struct link *link = side->link;
	int r;

	for (uint64_t seq = 0; seq < side->plan->messages; seq++) {
		uint64_t start_ns = clock_ns();

		r = send_next(side);
		while (r == 0 && side->count == seq && link->endpoint.port)
			r = endpoint_step(side, endpoint_patience(side));
		if (r < 0)
			return r;
		if (side->count == seq)
			break;
		side_note_latency(side, seq, clock_ns() - start_ns);
	}
	return endpoint_finish(side);
}

static int pong(struct side *side)
{
	struct link *link = side->link;
	int r;

	link->answers = true;
	while (link->sent < side->plan->messages && link->endpoint.port) {
		r = link->sent < side->count ? send_next(side) : endpoint_step(side, endpoint_patience(side));
		if (r < 0)
			return r;
	}
	return endpoint_finish(side);
}

const struct transport transport_wharf = {
	.name = "wharf",
	.pair = pair,
	.open = open_link,
	.close = close_link,
	.send = send_all,
	.receive = receive,
	.ping = ping,
	.pong = pong,
	.calls = &transport_wharf_calls,
};
