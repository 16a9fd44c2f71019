/* SPDX-License-Identifier: MIT */
/* wharf: messages in claimed buffers (or as bytes, up to --inline-max), read in place. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <wharf.h>

#include "transport.h"

enum {
	TYPE = 1,
	CLOSE_TIMEOUT_S = 10,
	/* A sender looks after its loop this often at least: as a service would that works off its own queue. */
	BURST_MESSAGES = 1024,
	BURST_BYTES = 1 << 20,
};

struct link {
	wharf_loop *loop;
	wharf_port *port; /* NULL once closed */
	wharf_pool *pool; /* the port's */
	char *bytes;      /* a message that travels inline */
	struct wharf_buf buf; /* written, and not accepted yet */
	bool written;     /* bytes or buf holds the message that is due */
	bool opened, writable, answers;
	uint64_t sent;
};

/* 0; -EAGAIN: no room; else told to the side. */
static int try_send(struct side *side)
{
	const struct plan *plan = side->plan;
	struct link *link = side->link;
	int r;

	if (link->bytes) {
		if (!link->written)
			touch_write(plan->touch, link->bytes, plan->size, link->sent);
		link->written = true;
		r = wharf_send_bytes(link->port, TYPE, link->bytes, plan->size);
	} else {
		if (!link->written) {
			r = wharf_buf_claim(link->pool, plan->size, &link->buf);
			if (r < 0)
				return r == -EAGAIN ? r : side_fail(side, r, "wharf_buf_claim: %s", strerror(-r));
			touch_write(plan->touch, link->buf.data, plan->size, link->sent);
			link->written = true;
		}
		r = wharf_send_buf(link->port, TYPE, &link->buf);
	}
	if (r == -EAGAIN)
		return r;
	if (r < 0)
		return side_fail(side, r, "send: %s", strerror(-r));
	link->written = false;
	link->sent++;
	return 0;
}

static void on_open(wharf_port *port, const struct wharf_peer *peer, void *user)
{
	struct side *side = user;
	struct link *link = side->link;

	(void)port;
	(void)peer;
	link->opened = true;
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

static void on_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	struct side *side = user;
	struct link *link = side->link;

	(void)port;
	link->port = NULL;
	if (reason->code != WHARF_CLOSE_LOCAL && reason->code != WHARF_CLOSE_PEER)
		side_fail(side, -EPIPE, "port closed: %s: %s", wharf_close_name(reason->code), reason->text);
	else if (reason->unsent_messages)
		side_fail(side, -EPIPE, "port closed with %llu messages unsent",
			(unsigned long long)reason->unsent_messages);
}

static const struct wharf_port_ops port_ops = {
	.size = sizeof port_ops,
	.on_open = on_open,
	.on_message = on_message,
	.on_writable = on_writable,
	.on_close = on_close,
};

/* A turn of the loop. 0; negative: something has failed, and was told to the side. */
static int step(struct side *side, int64_t timeout_ns)
{
	struct link *link = side->link;
	int r = wharf_loop_step(link->loop, timeout_ns);

	if (r < 0)
		return side_fail(side, r, "wharf_loop_step: %s", strerror(-r));
	return side->outcome->error[0] ? -EIO : 0;
}

static int64_t patience(const struct side *side)
{
	return side->plan->spin ? 0 : -1;
}

static int wait_for_room(struct side *side)
{
	struct link *link = side->link;
	int r;

	if (!side->plan->block)
		return step(side, 0);
	link->writable = false;
	do
		r = step(side, -1);
	while (r == 0 && !link->writable && link->port);
	return r;
}

/* Sends the message that is due. */
static int send_next(struct side *side)
{
	struct link *link = side->link;

	while (link->port) {
		int r = try_send(side);

		if (r != -EAGAIN)
			return r;
		r = wait_for_room(side);
		if (r < 0)
			return r;
	}
	return side_fail(side, -EPIPE, "the peer closed early");
}

/* Ends in good order: all that was sent has left when this returns. */
static int finish(struct side *side)
{
	struct link *link = side->link;
	int r;

	if (link->port) {
		r = wharf_port_close(link->port, CLOSE_TIMEOUT_S * INT64_C(1000000000));
		if (r < 0 && r != -EALREADY)
			return side_fail(side, r, "wharf_port_close: %s", strerror(-r));
	}
	for (r = 0; r == 0 && link->port;)
		r = step(side, -1);
	return r;
}

static void close_link(struct side *side)
{
	struct link *link = side->link;

	wharf_buf_abandon(&link->buf);
	wharf_loop_free(link->loop);
	free(link->bytes);
	free(link);
	side->link = NULL;
}

static int open_port(struct side *side, int fd)
{
	const struct plan *plan = side->plan;
	struct link *link = side->link;
	int r;

	/* The parent made the pair, so this is a child of a process that has used the library. */
	r = wharf_fork_child();
	if (r < 0 && r != -EALREADY) {
		close(fd);
		return side_fail(side, r, "wharf_fork_child: %s", strerror(-r));
	}
	r = wharf_loop_new(WHARF_OPT(loop,
		.frame_bytes_max = (uint32_t)plan->frame_bytes,
		.rx_buffers = (uint32_t)plan->rx_buffers), &link->loop);
	if (r < 0) {
		close(fd);
		return side_fail(side, r, "wharf_loop_new: %s", strerror(-r));
	}
	r = wharf_open(link->loop, fd, WHARF_OPT(port,
		.ops = &port_ops,
		.user = side,
		.name = "wharf-bench",
		.pool_bytes_max = plan->pool_bytes),
		&link->port);
	if (r < 0) {
		close(fd);
		return side_fail(side, r, "wharf_open: %s", strerror(-r));
	}
	link->pool = wharf_port_pool(link->port);
	while (!link->opened && link->port) {
		r = step(side, -1);
		if (r < 0)
			return r;
	}
	return link->opened ? 0 : side_fail(side, -EPIPE, "the peer closed early");
}

static int open_link(struct side *side, int fd)
{
	const struct plan *plan = side->plan;
	struct link *link = calloc(1, sizeof *link);
	int r;

	if (!link) {
		close(fd);
		return side_fail(side, -ENOMEM, "no memory");
	}
	side->link = link;
	if (plan->size <= plan->inline_max) {
		link->bytes = malloc(plan->size);
		if (!link->bytes) {
			close(fd);
			close_link(side);
			return side_fail(side, -ENOMEM, "no memory");
		}
	}
	r = open_port(side, fd);
	if (r < 0) {
		close_link(side);
		return r;
	}
	snprintf(side->outcome->detail, OUTCOME_DETAIL_MAX, "%s", wharf_loop_engine(link->loop));
	return 0;
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
	wharf_port *port = link->port;
	wharf_pool *pool = link->pool;
	uint64_t sent = link->sent;
	int r = 0;

	while (port && !link->bytes && !link->written && sent < until) {
		if (wharf_buf_claim(pool, size, &link->buf))
			break;
		touch_write(touch, link->buf.data, size, sent);
		if (wharf_send_buf(port, TYPE, &link->buf)) {
			link->written = true;
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
			r = step(side, 0);
		if (r < 0)
			return r;
	}
	r = finish(side);
	side_stop(side);
	return r;
}

static int receive(struct side *side)
{
	const struct link *link = side->link;

	while (side->count < side->plan->messages && link->port) {
		int r = step(side, patience(side));

		if (r < 0)
			return r;
	}
	return finish(side);
}

static int ping(struct side *side)
{
	const struct link *link = side->link;
	int r;

	for (uint64_t seq = 0; seq < side->plan->messages; seq++) {
		uint64_t start_ns = clock_ns();

		r = send_next(side);
		while (r == 0 && side->count == seq && link->port)
			r = step(side, patience(side));
		if (r < 0)
			return r;
		if (side->count == seq)
			break;
		side_note_latency(side, seq, clock_ns() - start_ns);
	}
	return finish(side);
}

static int pong(struct side *side)
{
	struct link *link = side->link;
	int r;

	link->answers = true;
	while (link->sent < side->plan->messages && link->port) {
		r = link->sent < side->count ? send_next(side) : step(side, patience(side));
		if (r < 0)
			return r;
	}
	return finish(side);
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
};
