/* SPDX-License-Identifier: MIT */
/*
 * The outgoing side of a port, as its files share it: send.c (what the application sends), outbox.c (the queue),
 * outframe.c (frames).
 */
#ifndef WH_OUTBOX_H
#define WH_OUTBOX_H

#include "outmsg.h"

static inline bool wh_window_open(const struct wharf_port *port)
{
	return port->frames_sent - port->frames_read_by_peer < port->window && port->bytes_unread < WH_WINDOW_BYTES;
}

static inline bool wh_open_has_records(const struct wharf_port *port)
{
	return port->open && !wh_encoder_empty(&port->open->encoder);
}

/* Until control records are added, all but an announcement and pieces are messages. */
static inline uint32_t wh_outframe_messages(const struct wh_outframe *frame)
{
	if (frame->handed)
		return frame->n_messages;
	return frame->data ? frame->encoder.n_records - frame->n_pieces - (uint32_t)(frame->announces >= 0) : 0;
}

/*
 * More descriptors than these would be more than a paused peer holds. What is sent by the loop's thread is refused
 * before; what is posted waits.
 */
static inline bool wh_port_frames_take_fds(const struct wharf_port *port, uint32_t n_fds)
{
	return port->tx_fds_unread + port->tx_fds_framed + n_fds <= port->tx_fds_max;
}

/* What the records of one message may take, control room and frame header kept. */
static inline uint32_t wh_port_message_room(const struct wharf_port *port)
{
	return port->tx_frame_bytes - WH_CONTROL_ROOM - (uint32_t)sizeof(struct wh_frame);
}

/* outframe.c */
bool wh_controls_due(const struct wharf_port *port);
void wh_port_retry_later(struct wharf_port *port); /* a flush after a growing pause */
void wh_outframe_announce(struct wh_outframe *frame, const struct wh_announcement *a); /* its last record, and fits */

/* mapping.c */
/* A frame with what the peer has lost, ahead of all others; NULL: there is none, or none now. */
struct wh_outframe *wh_port_announce_again(struct wharf_port *port);

/* outbox.c */
bool wh_outbox_open(struct wharf_port *port); /* makes sure of an open frame. False: no memory */
/* The announcement goes into the open frame, and ends it: its descriptors close the frame. */
enum wh_encoded wh_outbox_announce(struct wharf_port *port, uint16_t slot, int *ret_error);
/* The open frame goes to the kernel, or behind those that wait for it. False: the queue is full, it stays. */
bool wh_outbox_turn_over(struct wharf_port *port);
bool wh_outbox_takes_frame(const struct wharf_port *port); /* would it? */
/* May the flow queue a message of this cost, in the place of `older` or (NULL) behind? An empty one takes any. */
bool wh_outflow_takes(const struct wh_flow *flow, uint64_t cost, const struct wh_outmsg *older);
void wh_outflow_append(struct wh_flow *flow, struct wh_outmsg *m);
/* Puts a value into the place of one that waits, and drops that. */
void wh_outflow_replace(struct wh_flow *flow, struct wh_outmsg *older, struct wh_outmsg *m);
/* Queues a copy. 0; -ENOMEM: m is as it was. */
int wh_outflow_queue(struct wh_flow *flow, const struct wh_outmsg *m);
/* Of what was accepted before the peer's limits were known: does it keep them? */
bool wh_port_queue_fits(const struct wharf_port *port, const struct wh_hello *theirs);
void wh_outflow_look_for_end(struct wh_flow *flow); /* its last message may be in a frame: it may go with that */
void wh_outflow_charge(struct wh_flow *flow, uint64_t charge_bytes); /* of a record that is in a frame */

/* demand.c */
static inline void wh_outflow_dry(struct wh_flow *flow, bool dry)
{
	flow->port->n_dry += (uint32_t)dry - (uint32_t)flow->out.dry;
	flow->out.dry = dry;
}
/* Does it keep within credit, descriptors and what may be lent, after what was released is taken back? */
bool wh_demand_fits(const struct wh_flow *flow, const struct wh_demand *d);
void wh_outflow_block(struct wh_flow *flow, const struct wh_demand *d); /* its writer is told when that fits */
bool wh_port_may_lend(const struct wharf_port *port, uint64_t bytes);
uint64_t wh_outmsg_lends(const struct wharf_port *port, const struct wh_outmsg *m); /* 0 on ports without that cap */

#endif
