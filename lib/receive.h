/* SPDX-License-Identifier: MIT */
/* What the files of the incoming side share: receive.c (frames), inflow.c (flows), message.c (what the application has). */
#ifndef WH_RECEIVE_H
#define WH_RECEIVE_H

#include "message.h"

/* One frame on its way through the records, from the engine's buffer or from a copy. */
struct wh_rx {
	uint64_t sent_ns;
	int *fds; /* an entry is -1 once it has found its owner */
	uint32_t n_fds;
	bool fds_lost;
	bool data; /* the frame counts in the peer's window */
};

static inline bool wh_port_stopped(const struct wharf_port *port)
{
	return port->paused || port->state >= WH_PORT_ENDING;
}

/* inflow.c */
void wh_flow_deliver(struct wh_flow *flow, struct wh_message *m); /* to the application: m is borrowed */
void wh_flow_take(struct wh_flow *flow, const struct wh_record *r, struct wh_rx *rx); /* delivers it, or keeps a piece */
void wh_flow_drop_pieces(struct wh_flow *flow); /* of a message that will not be whole */
/* Of a record that nobody gets; not what lies in a segment that was lost. */
void wh_port_release_runs(struct wharf_port *port, const struct wh_record *r);

/* aside.c */
bool wh_flow_put_aside(struct wh_flow *flow, const struct wh_record *r, struct wh_rx *rx); /* false: no memory */

/* pass.c: an end that the peer passes on. */
void wh_port_deliver_end(struct wharf_port *port, const struct wh_port_record *r, struct wh_rx *rx);

/* call.c: what arrives for calls; the message is borrowed as in on_message. */
void wh_call_on_reply(struct wh_flow *flow, const struct wharf_msg *msg);
void wh_call_on_last(struct wh_flow *flow, uint32_t status); /* behind the last reply */
void wh_answer_on_request(struct wh_flow *flow, const struct wharf_msg *msg);
void wh_call_on_cancel(struct wharf_port *port, const struct wh_cancel *cancel);
void wh_call_no_room(struct wh_flow *flow); /* for a message in pieces, or one that waits */

#endif
