/* SPDX-License-Identifier: MIT */
/* An endpoint: its life. */
#include "endpoint.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { CLOSE_TIMEOUT_S = 10 };

void endpoint_on_open(wharf_port *port, const struct wharf_peer *peer, void *user)
{
	struct side *side = user;
	struct endpoint *endpoint = side->link;

	(void)port;
	(void)peer;
	endpoint->opened = true;
}

void endpoint_on_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	struct side *side = user;
	struct endpoint *endpoint = side->link;

	(void)port;
	endpoint->port = NULL;
	if (reason->code != WHARF_CLOSE_LOCAL && reason->code != WHARF_CLOSE_PEER)
		side_fail(side, -EPIPE, "port closed: %s: %s", wharf_close_name(reason->code), reason->text);
	else if (reason->unsent_messages)
		side_fail(side, -EPIPE, "port closed with %llu messages unsent",
			(unsigned long long)reason->unsent_messages);
}

int endpoint_step(struct side *side, int64_t timeout_ns)
{
	struct endpoint *endpoint = side->link;
	int r = wharf_loop_step(endpoint->loop, timeout_ns);

	if (r < 0)
		return side_fail(side, r, "wharf_loop_step: %s", strerror(-r));
	return side->outcome->error[0] ? -EIO : 0;
}

int endpoint_open(struct side *side, int fd, const struct wharf_port_ops *ops, uint32_t calls_max)
{
	const struct plan *plan = side->plan;
	struct endpoint *endpoint = side->link;
	int r;

	/* The parent made the pair, so this is a child of a process that has used the library. */
	r = wharf_fork_child();
	if (r < 0 && r != -EALREADY) {
		close(fd);
		return side_fail(side, r, "wharf_fork_child: %s", strerror(-r));
	}
	r = wharf_loop_new(WHARF_OPT(loop,
		.frame_bytes_max = (uint32_t)plan->frame_bytes,
		.rx_buffers = (uint32_t)plan->rx_buffers), &endpoint->loop);
	if (r < 0) {
		close(fd);
		return side_fail(side, r, "wharf_loop_new: %s", strerror(-r));
	}
	r = wharf_open(endpoint->loop, fd, WHARF_OPT(port,
		.ops = ops,
		.user = side,
		.name = "wharf-bench",
		.pool_bytes_max = plan->pool_bytes,
		.rx_calls_max = calls_max),
		&endpoint->port);
	if (r < 0) {
		close(fd);
		return side_fail(side, r, "wharf_open: %s", strerror(-r));
	}
	endpoint->pool = wharf_port_pool(endpoint->port);
	while (!endpoint->opened && endpoint->port) {
		r = endpoint_step(side, -1);
		if (r < 0)
			return r;
	}
	if (!endpoint->opened)
		return side_fail(side, -EPIPE, "the peer closed early");
	snprintf(side->outcome->detail, OUTCOME_DETAIL_MAX, "%s", wharf_loop_engine(endpoint->loop));
	return 0;
}

void endpoint_close(struct side *side)
{
	struct endpoint *endpoint = side->link;

	endpoint->loop = wharf_loop_free(endpoint->loop);
}

int endpoint_finish(struct side *side)
{
	struct endpoint *endpoint = side->link;
	int r;

	if (endpoint->port) {
		r = wharf_port_close(endpoint->port, CLOSE_TIMEOUT_S * INT64_C(1000000000));
		if (r < 0 && r != -EALREADY)
			return side_fail(side, r, "wharf_port_close: %s", strerror(-r));
	}
	for (r = 0; r == 0 && endpoint->port;)
		r = endpoint_step(side, -1);
	return r;
}
