/* SPDX-License-Identifier: MIT */
/*
 * Values: the plain messages of a keep-latest port. Those that wait do so unencoded, in the queue of the plain flow, where
 * a newer one of the same type and key takes an older one's place; the credit of that flow is how many more the peer
 * may have. It has a value from the first record in a frame until it has read the last one and returned all chunks.
 */
#ifndef WH_LATEST_H
#define WH_LATEST_H

#include "port.h"

struct wh_message_out;
struct wh_outmsg;

/* What the peer has of a value: a frame to read, and perhaps a run to release. */
struct wh_latest_hold {
	uint64_t value;                  /* its number */
	uint64_t ordinal;                /* of the frame */
	struct wh_run run;               /* n_chunks 0: none, or it was released */
};

struct wh_latest {
	uint32_t unreleased_max;
	bool watches;                    /* something waits for a release */
	uint64_t value;                  /* number of the one to be encoded, perhaps in part */
	struct wh_latest_hold *held;     /* in the order of values; room is made before a record is encoded */
	uint32_t n_held, held_size;
	uint32_t n_waiting;
	uint32_t table_bits;
	struct wh_outmsg **table;        /* of those that wait, by type and key; NULL while they are few */
};

/* 0; -ENOMEM. The port's state is that of a new one. */
int wh_latest_new(struct wharf_port *port, uint32_t unreleased_max);
void wh_latest_free(struct wharf_port *port);

/* The one that waits and may be replaced; NULL: none. */
struct wh_outmsg *wh_latest_find(const struct wharf_port *port, uint32_t type, uint64_t key);
/* Into the place of that one, or behind the others. */
void wh_latest_put(struct wharf_port *port, struct wh_outmsg *m);
/* The queue has taken it; has put it into the place of another; goes on without it. */
void wh_latest_queued(struct wharf_port *port, struct wh_outmsg *m);
void wh_latest_replaced(struct wharf_port *port, struct wh_outmsg *older, struct wh_outmsg *m);
void wh_latest_taken(struct wharf_port *port, struct wh_outmsg *m);

bool wh_latest_reserve(struct wharf_port *port, uint32_t n_pieces); /* for one record. False: no memory */
void wh_latest_encoded(struct wharf_port *port, const struct wh_message_out *record); /* is in the open frame */
/* The port lends these chunks anew, for whatever: who had them before has released them. */
void wh_latest_lent(struct wharf_port *port, const struct wh_run *run);
/* The peer may be done with a value, or the port has begun to drain: what may go now is told to the flow. */
void wh_latest_look(struct wharf_port *port);

#endif
