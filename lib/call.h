/* SPDX-License-Identifier: MIT */
/* A call, on either side: a flow with callbacks and an end. */
#ifndef WH_CALL_H
#define WH_CALL_H

#include "outbox.h"

struct wh_call {
	struct wh_flow flow;             /* first */
	void (*on_message)(wharf_port *port, wharf_call_id id, const struct wharf_msg *msg, void *user);
	void (*on_writable)(wharf_port *port, wharf_call_id id, void *user);
	void (*on_end)(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user);
	void *user;
	struct wh_list ended;            /* on port->ended_calls: on_end is due */
	/* Delegated: on the port that carried the request, the one on the answer port, and the other way round. */
	struct wh_call *other;
	struct wh_list delegated;        /* the first of these: on port->delegated until its end is fixed */
	struct wharf_end end;
	struct wh_deadline deadline;     /* of ours */
	bool timed;                      /* the deadline is reserved */
	bool replied;                    /* ours: a reply arrived; theirs: one was sent */
	bool unaccepted;                 /* ours: the peer says so */
	bool offered, taken;             /* theirs: to the application, by it */
	bool behind;                     /* the end waits for what has arrived before it */
	uint64_t behind_frame;           /* when port->n_delivered is there, all but what was put aside */
	uint32_t status;
};

static inline struct wh_call *wh_call_of(struct wh_flow *flow) { return (struct wh_call *)flow; }

static inline wharf_call_id wh_call_handle(const struct wh_flow *flow)
{
	return flow->kind == WH_FLOW_ANSWER ? WH_CALL_THEIRS | flow->id : flow->id;
}

/* Numbers go round, after years. */
static inline bool wh_call_is_newer(uint64_t id, uint64_t than)
{
	return (int64_t)((id - than) << 1) > 0;
}

/*
 * Fixes the end: the id is stale, on_end follows in this turn. farewell: what its peer is told, enum wh_cancel_code; 0:
 * nothing.
 */
void wh_call_finish(struct wh_call *call, struct wharf_end end, uint32_t farewell);
/* WHARF_NOT_SEEN, ... of one that has not been answered in full */
uint32_t wh_call_progress(const struct wh_call *call);

void wh_call_set_deadline(struct wh_call *call, int64_t timeout_ns); /* which is reserved, or was not given */

/* answer.c: the application has it. */
void wh_answer_take(struct wh_call *call, const struct wharf_answer_options *options, wharf_call_id *ret_id);

/* One message of a call, in either direction. status: with WHARF_LAST, of answers. As wharf_send. */
int wh_call_send(struct wh_call *call, const struct wharf_out *out, uint32_t status);

#endif
