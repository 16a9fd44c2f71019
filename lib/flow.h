/* SPDX-License-Identifier: MIT */
/*
 * Flows: what keeps its own order on a port. The plain messages are one flow, each stream is one, and each call is one
 * on either side: request one way, replies the other. A flow but the plain one has credit: what its receiver has not
 * given back is bounded, so that a slow reader of one never stalls the others.
 */
#ifndef WH_FLOW_H
#define WH_FLOW_H

#include "list.h"
#include "loop.h"
#include "wharf.h"
#include "wire.h"

struct wh_outmsg;
struct wh_rx;

enum {
	/* Charged for each record besides its payload, and for each of its items: while they wait they are memory, too, but
	 * never five times what they are charged. */
	WH_FLOW_RECORD_BYTES = 64,
	WH_FLOW_ITEM_BYTES = 16,
	WH_STREAM_INDEX_BITS = 12,       /* of a stream's number on the wire; the rest is its generation */
	WH_STREAMS_MAX = 1 << WH_STREAM_INDEX_BITS,
	WH_CALL_INDEX_BITS = 16,
	WH_CALLS_MAX = 1 << WH_CALL_INDEX_BITS,
	WH_CALL_DELEGATED = 1 << WH_CALL_INDEX_BITS, /* the number of the call on an answer port: the first that there is */
};

/* Handles as the application has them: a stream's number with one of these, a call's with the second if the peer began it. */
#define WH_STREAM_OURS (UINT64_C(1) << 32)
#define WH_STREAM_THEIRS (UINT64_C(2) << 32)
#define WH_CALL_THEIRS (UINT64_C(1) << 63)

enum wh_flow_kind {
	WH_FLOW_PLAIN,
	WH_FLOW_STREAM_OUT,
	WH_FLOW_STREAM_IN,
	WH_FLOW_CALL,                    /* request out, replies in */
	WH_FLOW_ANSWER,                  /* request in, replies out */
	WH_FLOW_KINDS,
};

/* What a message asks of the caps. */
struct wh_demand {
	uint64_t cost;                   /* against tx_queued_bytes_max, if it has to wait */
	uint64_t lent_bytes;             /* against tx_lent_bytes_max; 0 on ports without */
	uint64_t key;
	uint32_t type;
	uint16_t n_fds;
	bool is_value;                   /* of a keep-latest port: takes the place of an older one with this type and key */
};

struct wh_outflow {
	struct wh_list active;           /* on port->active while it has something that its credit lets go */
	struct wh_list blocked;          /* on port->blocked_flows: a send answered -EAGAIN */
	struct wh_outmsg *first, **end;
	uint64_t cost;                   /* of what waits, against the cap */
	struct wh_demand refused;        /* while blocked: the smallest */
	int64_t credit_bytes;            /* a record may take it below 0. Of values: how many more the peer may have */
	int64_t deficit_bytes;           /* may go this far in its turn; below 0: has gone too far */
	uint32_t contest;                /* port->contest when that was so */
	uint64_t position_bytes;         /* of a stream: accepted so far */
	uint64_t total_bytes;            /* of a stream; UINT64_MAX: not known */
	uint64_t first_ordinal, ordinal; /* of the frames with its first and its last record; 0: none yet */
	uint32_t type;                   /* of a stream */
	bool begun, ended;               /* its first message, its last one was accepted */
	bool dry;                        /* blocked, and not listed as that: until it has credit, nothing else helps */
};

/* One message that arrives in pieces. */
struct wh_assembly {
	uint64_t total_bytes;            /* UINT64_MAX: not known */
	uint64_t position_bytes;         /* arrived so far */
	uint64_t capacity_bytes;
	unsigned char *memory;           /* NULL: delivered piece by piece */
	uint64_t sent_ns;
	uint32_t type;
	uint32_t n_fds;
	bool fds_lost;
	int fds[];
};

struct wh_inflow {
	struct wh_assembly *assembly;    /* NULL: between messages */
	struct wh_list aside;            /* records that wait because it is paused, or behind such ones */
	struct wh_list resumed;          /* on port->resumed: to be delivered */
	struct wh_list credit_due;       /* on port->credits_due */
	uint64_t unreturned_bytes;       /* arrived, and the application has it still */
	uint64_t give_back_bytes;        /* to be told with the next CREDIT */
	_Atomic uint64_t returned_bytes; /* by releases of taken messages, any thread */
	_Atomic bool starved;            /* the peer has used up its credit: whatever comes back is told at once */
	bool paused;
	bool ended;                      /* its last message has been delivered */
	bool lost;                       /* one could not be delivered, and the port ends */
};

struct wh_flow {
	struct wharf_port *port;
	_Atomic uint32_t refs;           /* the table's, the farewell's, one for each taken message and each dispatch */
	uint8_t kind;
	bool listed;                     /* its id is valid */
	bool placed;                     /* in its table: its number is in use, if only by the peer */
	bool farewell;                   /* on port->farewells */
	bool delegated;                  /* a call that another port answers: here is only the request */
	bool known;                      /* to its peer, though nothing of it was sent to it */
	uint32_t farewell_code;          /* enum wh_abort_code or enum wh_cancel_code */
	uint32_t farewell_app_code;
	uint64_t id;                     /* on the wire */
	struct wh_list farewells;        /* of one that is kept, on loop->spare_calls */
	struct wh_outflow out;
	struct wh_inflow in;
	size_t bytes;                    /* of the whole structure */
};

/* Flows of one kind, by the index in their id. */
struct wh_flow_table {
	struct wh_flow **flows;
	uint32_t n_slots, n;             /* n: placed */
	uint32_t next;                   /* where the search for a free one begins */
	uint32_t n_dead;
	uint64_t *dead;                  /* theirs, by index: held frames with lower numbers begin none there */
	uint64_t sequence;               /* ours: generations given out; theirs: the last call accepted */
};

static inline struct wh_flow *wh_flow_ref(struct wh_flow *flow)
{
	atomic_fetch_add_explicit(&flow->refs, 1, memory_order_relaxed);
	return flow;
}
void wh_flow_unref(struct wh_flow *flow);
void wh_call_retire(struct wh_flow *flow);        /* the same of a call, on the loop's thread: which keeps some of them */
void wh_calls_free_spare(struct wharf_loop *loop);

/* An embedded one, of the kind PLAIN, with one reference that is never dropped. */
void wh_flow_init(struct wh_flow *flow, struct wharf_port *port, enum wh_flow_kind kind, uint64_t id);

static inline bool wh_flow_is_call(const struct wh_flow *flow)
{
	return flow->kind == WH_FLOW_CALL || flow->kind == WH_FLOW_ANSWER;
}

/* Begun by the peer. */
static inline bool wh_flow_is_theirs(const struct wh_flow *flow)
{
	return flow->kind == WH_FLOW_STREAM_IN || flow->kind == WH_FLOW_ANSWER;
}

/* The next flow from *at on, which begins at 0; NULL: there is none. The one returned may end meanwhile. */
static inline struct wh_flow *wh_flow_next(const struct wh_flow_table *table, uint32_t *at)
{
	while (*at < table->n_slots) {
		struct wh_flow *flow = table->flows[(*at)++];
		if (flow)
			return flow;
	}
	return NULL;
}

/*
 * Makes one in a structure of so many bytes, zeroed behind the flow, and enters it: one of ours (id 0) gets its id, a
 * peer's has it. The table holds the reference. 0; -ENOMEM; -EAGAIN: the table has as many as it may.
 */
int wh_flow_new(struct wharf_port *port, enum wh_flow_kind kind, size_t bytes, uint64_t id, struct wh_flow **ret_flow);
struct wh_flow *wh_flow_find(const struct wharf_port *port, enum wh_flow_kind kind, uint64_t id); /* NULL: stale */
struct wh_flow *wh_flow_resting(const struct wharf_port *port, enum wh_flow_kind kind, uint64_t id);
/* Its id ends, its number is free, what waits in it is dropped, both ways. The caller has a reference of its own. */
void wh_flow_unlist(struct wh_flow *flow);
/*
 * Its id ends, but the peer has not heard so: its number rests until wh_flow_vacate. For one of ours, whose next user's
 * first record must not reach a peer that still has the last one.
 */
void wh_flow_rest(struct wh_flow *flow);
void wh_flow_vacate(struct wh_flow *flow);
/* Ends like wh_flow_unlist, and its peer hears why: ours rests until that has left. Never allocates. */
void wh_flow_leave(struct wh_flow *flow, uint32_t code, uint32_t app_code);

/*
 * What the peer gives up before its beginning is delivered, which a paused port holds: that is dropped when its turn
 * comes, and not looked for. wh_flow_expect makes room for the note when the frame is held; false: no memory.
 */
bool wh_flow_expect(struct wharf_port *port, enum wh_flow_kind kind, uint64_t id);
void wh_flow_drop_held(struct wharf_port *port, enum wh_flow_kind kind, uint64_t id); /* in all that is held now */
bool wh_flow_is_dead(const struct wharf_port *port, enum wh_flow_kind kind, uint64_t id); /* in what is delivered now */

/* ---- Credit ---- */

/* What a record takes of its flow's credit: the same on both sides, a rule of the wire's. */
static inline uint64_t wh_flow_charge(unsigned n_items, uint64_t payload_bytes)
{
	return WH_FLOW_RECORD_BYTES + n_items * (uint64_t)WH_FLOW_ITEM_BYTES + payload_bytes;
}
void wh_flow_charge_in(struct wh_flow *flow, uint64_t charge_bytes); /* so much has arrived */
/* The application is done with so much of what arrived. */
void wh_flow_give_back(struct wh_flow *flow, uint64_t charge_bytes);
void wh_flow_returned(struct wh_flow *flow, uint64_t charge_bytes); /* the same, from any thread */
void wh_flow_on_credit(struct wharf_port *port, const struct wh_credit *credit);

/* ---- inflow.c: what arrives ---- */

/*
 * One MESSAGE, CALL or REPLY record, which wh_frame_check has passed. Delivers it, keeps it, or gives its chunks back;
 * descriptors that find an owner are -1 in rx afterwards.
 */
void wh_flow_arrive(struct wharf_port *port, const struct wh_record *record, struct wh_rx *rx);
void wh_flow_on_abort(struct wharf_port *port, const struct wh_abort *abort);
void wh_flow_pause(struct wh_flow *flow);
void wh_flow_resume(struct wh_flow *flow);
void wh_flow_drop_input(struct wh_flow *flow);
void wh_port_deliver_resumed(struct wharf_port *port, bool all); /* all: whatever the share of the turn */
bool wh_flows_use_slot(const struct wharf_port *port, uint16_t slot); /* does a record that waits lie in it? */

#endif
