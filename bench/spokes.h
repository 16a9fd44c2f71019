/* SPDX-License-Identifier: MIT */
/*
 * Spokes: many ports of one process, on one loop, all to a hub. Those that have something to send and room for it take
 * turns, a burst each.
 */
#ifndef BENCH_SPOKES_H
#define BENCH_SPOKES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <wharf.h>

#include "side.h"

struct spoke {
	struct spokes *all;
	wharf_port *port;     /* NULL: not yet connected, or closed */
	struct spoke *next;   /* in the queue */
	struct wharf_buf buf; /* written, and not accepted yet */
	uint64_t sent;
	bool queued;
};

struct spokes {
	const struct plan *plan;
	struct outcome *outcome;
	wharf_loop *loop;
	struct spoke *spokes;
	size_t n, n_open, n_closed;
	uint64_t burst;       /* messages of one spoke in its turn */
	struct spoke *first, **end; /* the queue */
	uint64_t until;       /* each spoke sends so many messages, */
	size_t n_done;        /* which so many have done */
	char *bytes;          /* a message that travels inline; else NULL */
	uint64_t n_since, bytes_since; /* the loop was last looked after */
};

/*
 * All return 0 or a negative errno, told to the outcome. Failed or not, spokes_close is called. plan->pool_bytes is of
 * each port, and bounds what of a message that travels inline waits, too.
 */
int spokes_open(struct spokes *spokes, const struct plan *plan, struct outcome *outcome, size_t n, uint64_t burst);
void spokes_close(struct spokes *spokes);

/* Returns when every port is open. */
int spokes_connect(struct spokes *spokes, const char *address);

/* Sends until each spoke has sent `until` messages in all, or *stop is set, which may be NULL. */
int spokes_send(struct spokes *spokes, uint64_t until, const _Atomic uint32_t *stop);

/* A turn of the loop. */
int spokes_step(struct spokes *spokes, int64_t timeout_ns);

/* Ends all ports in good order. */
int spokes_finish(struct spokes *spokes);

uint64_t spokes_sent(const struct spokes *spokes);

#endif
