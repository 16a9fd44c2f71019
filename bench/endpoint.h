/* SPDX-License-Identifier: MIT */
/* An endpoint: a side's loop, its one port from the opening to the end in good order, and what that sends next. */
#ifndef BENCH_ENDPOINT_H
#define BENCH_ENDPOINT_H

#include <stdbool.h>
#include <wharf.h>

#include "side.h"

struct endpoint {
	wharf_loop *loop;
	wharf_port *port; /* NULL once closed */
	wharf_pool *pool; /* the port's */
	bool opened;

	size_t size;          /* of what this side sends */
	char *bytes;          /* a payload that travels inline; else NULL */
	struct wharf_buf buf; /* claimed, and not accepted yet */
	bool written;         /* bytes or buf holds the payload that is due */
};

/* Callbacks of a port whose user is a side, and the side's link begins with the endpoint. */
void endpoint_on_open(wharf_port *port, const struct wharf_peer *peer, void *user);
void endpoint_on_close(wharf_port *port, const struct wharf_reason *reason, void *user);

/*
 * Opens the side's, whose link begins with an endpoint that is all zero, and waits for the peer. fd is the endpoint's
 * from now on. All return 0 or a negative errno, told to the side. Failed or not, endpoint_close is called.
 */
int endpoint_open(struct side *side, int fd, const struct wharf_port_ops *ops, size_t size, uint32_t calls_max);
void endpoint_close(struct side *side);

/* A turn of the loop; also fails when something has failed before. */
int endpoint_step(struct side *side, int64_t timeout_ns);

/* How long a side without work waits in a turn. */
static inline int64_t endpoint_patience(const struct side *side)
{
	return side->plan->spin ? 0 : -1;
}

/* Claims and writes the payload that is due, unless it was. 0; -EAGAIN: no room; else told to the side. */
int endpoint_prepare(struct side *side, uint64_t seq);

/* What came of sending it. As endpoint_prepare. */
int endpoint_settle(struct side *side, const char *what, int r);

/* Ends in good order: all that was sent has left when this returns. */
int endpoint_finish(struct side *side);

#endif
