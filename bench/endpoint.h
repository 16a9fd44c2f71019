/* SPDX-License-Identifier: MIT */
/* An endpoint: a side's loop and its one port, from the opening to the end in good order. */
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
};

/* Callbacks of a port whose user is a side, and the side's link begins with the endpoint. */
void endpoint_on_open(wharf_port *port, const struct wharf_peer *peer, void *user);
void endpoint_on_close(wharf_port *port, const struct wharf_reason *reason, void *user);

/*
 * Opens the side's, whose link begins with an endpoint that is all zero, and waits for the peer. fd is the endpoint's
 * from now on. All return 0 or a negative errno, told to the side. Failed or not, endpoint_close is called.
 */
int endpoint_open(struct side *side, int fd, const struct wharf_port_ops *ops, uint32_t calls_max);
void endpoint_close(struct side *side);

/* A turn of the loop; also fails when something has failed before. */
int endpoint_step(struct side *side, int64_t timeout_ns);

/* How long a side without work waits in a turn. */
static inline int64_t endpoint_patience(const struct side *side)
{
	return side->plan->spin ? 0 : -1;
}

/* Ends in good order: all that was sent has left when this returns. */
int endpoint_finish(struct side *side);

#endif
