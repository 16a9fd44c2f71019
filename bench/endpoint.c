/* SPDX-License-Identifier: MIT */
/* An endpoint: its life, and what it sends next. */
#include "endpoint.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "loop.h"

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
	loop_check_close(reason, side->outcome, 0, 1);
}

int endpoint_step(struct side *side, int64_t timeout_ns)
{
	struct endpoint *endpoint = side->link;

	return loop_step(endpoint->loop, side->outcome, timeout_ns);
}

int endpoint_prepare(struct side *side, uint64_t seq)
{
	struct endpoint *endpoint = side->link;
	void *payload = endpoint->bytes;

	if (endpoint->written)
		return 0;
	if (!payload) {
		int r = wharf_buf_claim(endpoint->pool, endpoint->size, &endpoint->buf);

		if (r < 0)
			return r == -EAGAIN ? r : side_fail(side, r, "wharf_buf_claim: %s", strerror(-r));
		payload = endpoint->buf.data;
	}
	touch_write(side->plan->touch, payload, endpoint->size, seq);
	endpoint->written = true;
	return 0;
}

int endpoint_settle(struct side *side, const char *what, int r)
{
	struct endpoint *endpoint = side->link;

	if (r < 0)
		return r == -EAGAIN ? r : side_fail(side, r, "%s: %s", what, strerror(-r));
	endpoint->written = false;
	return 0;
}

static uint64_t system_calls(const struct side *side)
{
	const struct endpoint *endpoint = side->link;

	return loop_system_calls(endpoint->loop);
}

int endpoint_open(struct side *side, int fd, const struct wharf_port_ops *ops, size_t size, uint32_t calls_max)
{
	const struct plan *plan = side->plan;
	struct endpoint *endpoint = side->link;
	int r;

	side->system_calls = system_calls;
	endpoint->size = size;
	if (size <= plan->inline_max)
		endpoint->bytes = malloc(size);
	if (size <= plan->inline_max && !endpoint->bytes)
		r = side_fail(side, -ENOMEM, "no memory");
	else
		r = loop_open(plan, side->outcome, &endpoint->loop);
	if (r < 0) {
		close(fd);
		return r;
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

	wharf_buf_abandon(&endpoint->buf);
	endpoint->loop = wharf_loop_free(endpoint->loop);
	free(endpoint->bytes);
	endpoint->bytes = NULL;
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
