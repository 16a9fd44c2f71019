/* SPDX-License-Identifier: MIT */
/* The hub: its ports. */
#include "hub.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "loop.h"

enum {
	TYPE = 1,
	BACKLOG = 4096,
};

static void answer(struct hub_port *port)
{
	struct hub *hub = port->hub;
	struct wharf_buf buf = WHARF_BUF_EMPTY;
	int r;

	/* One at a time is on its way: there is room. */
	r = wharf_buf_claim(wharf_port_pool(port->port), port->size, &buf);
	if (r == 0) {
		touch_write(hub->plan->touch, buf.data, port->size, port->count);
		r = wharf_send_buf(port->port, TYPE, &buf);
	}
	if (r < 0) {
		wharf_buf_abandon(&buf);
		outcome_fail(hub->outcome, r, "an answer: %s", strerror(-r));
	}
}

static void note_bad(struct hub_port *port, uint64_t seq)
{
	if (port->bad)
		return;
	port->bad = true;
	port->bad_at = port->count;
	port->bad_seq = seq;
}

static void on_message(wharf_port *handle, const struct wharf_msg *msg, void *user)
{
	struct hub_port *port = user;
	struct hub *hub = port->hub;
	uint64_t seq;

	(void)handle;
	if (__builtin_expect(msg->n_slices != 1 || msg->size != port->size, 0)) {
		outcome_fail(hub->outcome, -EBADMSG, "a message arrived with %zu bytes in %zu slices", msg->size,
			msg->n_slices);
		return;
	}
	seq = touch_seq(msg->slices[0].data);
	if (__builtin_expect(seq != port->count, 0))
		note_bad(port, seq);
	for (unsigned i = 0; i < hub->reads; i++)
		port->sum += touch_read(hub->plan->touch, msg->slices[0].data, port->size);
	if (port->echo) {
		answer(port);
		port->count++;
		return;
	}
	if (__builtin_expect(++port->count == port->last, 0))
		port->done_ns = clock_ns();
	if (__builtin_expect(++hub->total == hub->mark, 0))
		hub->on_mark(hub);
}

static void on_open(wharf_port *handle, const struct wharf_peer *peer, void *user)
{
	struct hub_port *port = user;

	(void)peer;
	port->port = handle;
	port->hub->n_open++;
}

static void on_close(wharf_port *handle, const struct wharf_reason *reason, void *user)
{
	struct hub_port *port = user;
	struct hub *hub = port->hub;

	(void)handle;
	port->port = NULL;
	hub->n_closed++;
	loop_check_close(reason, hub->outcome, (size_t)(port - hub->ports), hub->n_ports);
}

static const struct wharf_port_ops port_ops = {
	.size = sizeof port_ops,
	.on_open = on_open,
	.on_message = on_message,
	.on_close = on_close,
};

static struct hub_port *next_port(struct hub *hub)
{
	struct hub_port *port = &hub->ports[hub->n_used];

	*port = (struct hub_port){ .hub = hub, .size = hub->plan->size, .last = UINT64_MAX };
	return port;
}

static void on_accept(wharf_listener *listener, const struct wharf_peer *who, void *user)
{
	struct hub *hub = user;
	int r;

	(void)who;
	if (hub->n_used == hub->n_ports)
		return;
	r = wharf_accept(listener,
		WHARF_OPT(port, .ops = &port_ops, .user = next_port(hub), .name = "hub", .open_timeout_ns = -1), NULL);
	if (r < 0)
		outcome_fail(hub->outcome, r, "wharf_accept, after %zu ports: %s", hub->n_used, strerror(-r));
	else
		hub->n_used++;
}

static void on_accept_error(wharf_listener *listener, int error, void *user)
{
	struct hub *hub = user;

	(void)listener;
	outcome_fail(hub->outcome, -error, "accepting, after %zu ports: %s", hub->n_used, strerror(error));
}

static const struct wharf_listener_ops listener_ops = {
	.size = sizeof listener_ops,
	.on_accept = on_accept,
	.on_error = on_accept_error,
};

int hub_open(struct hub *hub, const struct plan *plan, struct outcome *outcome, size_t n_ports)
{
	int r;

	*hub = (struct hub){ .plan = plan, .outcome = outcome, .n_ports = n_ports, .reads = 1, .mark = UINT64_MAX };
	hub->ports = calloc(n_ports, sizeof *hub->ports);
	if (!hub->ports)
		return outcome_fail(outcome, -ENOMEM, "no memory");
	r = loop_open(plan, outcome, &hub->loop);
	if (r < 0)
		return r;
	snprintf(outcome->detail, OUTCOME_DETAIL_MAX, "%s", wharf_loop_engine(hub->loop));
	return 0;
}

void hub_close(struct hub *hub)
{
	hub->loop = wharf_loop_free(hub->loop);
	free(hub->ports);
}

int hub_listen(struct hub *hub, const char *address)
{
	int r = wharf_listen(hub->loop, address,
		WHARF_OPT(listener, .ops = &listener_ops, .user = hub, .backlog = BACKLOG), &hub->listener);

	return r < 0 ? outcome_fail(hub->outcome, r, "wharf_listen: %s", strerror(-r)) : 0;
}

int hub_echo(struct hub *hub, int fd, size_t size)
{
	struct hub_port *port = next_port(hub);
	int r;

	port->echo = true;
	port->size = size;
	r = wharf_open(hub->loop, fd, WHARF_OPT(port, .ops = &port_ops, .user = port, .name = "hub"), NULL);
	if (r < 0) {
		close(fd);
		return outcome_fail(hub->outcome, r, "wharf_open: %s", strerror(-r));
	}
	hub->n_used++;
	return 0;
}

int hub_step(struct hub *hub)
{
	return loop_step(hub->loop, hub->outcome, hub->plan->spin ? 0 : -1);
}

int hub_check_port(struct hub *hub, const struct hub_port *port, uint64_t messages)
{
	uint64_t expected = touch_expected(hub->plan->touch, port->size, messages) * hub->reads;
	size_t i = (size_t)(port - hub->ports);

	if (port->count != messages)
		return outcome_fail(hub->outcome, -EBADMSG, "port %zu: %" PRIu64 " messages arrived of %" PRIu64, i,
			port->count, messages);
	if (port->bad)
		return outcome_fail(hub->outcome, -EBADMSG,
			"port %zu: message %" PRIu64 " arrived where %" PRIu64 " was due", i, port->bad_seq,
			port->bad_at);
	if (port->sum != expected)
		return outcome_fail(hub->outcome, -EBADMSG,
			"port %zu: contents differ: their sum is %#" PRIx64 " and not %#" PRIx64, i, port->sum,
			expected);
	return 0;
}

int hub_check(struct hub *hub, uint64_t messages)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < hub->n_used; i++)
		r = hub_check_port(hub, &hub->ports[i], messages);
	return r;
}
