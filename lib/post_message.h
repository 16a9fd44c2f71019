/* SPDX-License-Identifier: MIT */
/*
 * Messages that any thread posts to a port: made, and waited for, by that thread; sent by the loop's. They have a cap of
 * their own, so that neither they nor what the loop's thread sends can use up the other's room.
 */
#ifndef WH_POST_MESSAGE_H
#define WH_POST_MESSAGE_H

#include <pthread.h>

#include "base.h"
#include "list.h"

struct wh_outmsg;
struct wharf_port;

/* What a post asks of the cap. */
struct wh_posting_demand {
	uint64_t cost;
	uint32_t n_fds;
};

/* What other threads may look at of a port, besides its loop and its caps. */
struct wh_posting {
	uint64_t pool;                   /* as in wharf_buf.opaque; set once */
	pthread_mutex_t lock;            /* taken before the loop's kick_lock */

	/* Under the lock. */
	bool shut;                       /* nothing more is accepted */
	bool refused;                    /* posts were answered -EAGAIN: on_writable is due once one of them would fit */
	struct wh_posting_demand refused_cost, refused_fds; /* of those: the smallest, the one with fewest descriptors */
	uint64_t cost;                   /* of what was accepted and is in no frame yet: counts against the cap, as n_fds */
	uint32_t n_fds;
	uint32_t fds_max;                /* the peer's limits, once it has said hello */
	uint64_t message_bytes_max;
	struct wh_list waiters;          /* threads, served in their order */

	/* Accepted, and still on the way to the loop: more only under the lock, less only on the loop's thread. */
	_Atomic uint64_t n_messages, n_bytes;

	/* The loop's thread's. */
	uint64_t left_cost;              /* of what is in frames by now, or gone: not yet taken off the cost */
	uint32_t left_fds;
	bool writable;                   /* on_writable is due for what was refused */
};

void wh_posting_init(struct wharf_port *port);
void wh_posting_fini(struct wharf_port *port);

/* The loop's thread, all of these. */
void wh_posting_limit(struct wharf_port *port); /* the peer has said hello */
void wh_posting_shut(struct wharf_port *port);  /* those who wait hear -EPIPE; what was accepted still arrives */
void wh_posting_settle(struct wharf_port *port); /* what has left makes room: for those who wait, and were refused */
void wh_posting_look(struct wharf_port *port);  /* one who waited has given up: perhaps in front of what was refused */

/* One of them is in frames to its end, or dropped; nothing is freed. */
void wh_posting_left(struct wharf_port *port, const struct wh_outmsg *m);
void wh_posting_free(struct wh_outmsg *m);

#endif
