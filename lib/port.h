/* SPDX-License-Identifier: MIT */
/*
 * A port: one end of a channel to one peer. This header is shared by the files that make it up: port.c (life), hello.c
 * (limits), send.c (what leaves), receive.c (what arrives), message.c (what the application holds).
 *
 * Life: OPENING -> OPEN -> DRAINING -> ENDING -> CLOSED, ENDING from anywhere. In ENDING the reason is fixed and
 * on_close is due; a CLOSED port may linger with its socket until its taken messages are released: a peer reads EOF as
 * "holds nothing".
 */
#ifndef WH_PORT_H
#define WH_PORT_H

#include "flow.h"
#include "ledger.h"
#include "loop.h"
#include "pool.h"
#include "post_message.h"
#include "view.h"
#include "wire.h"

enum {
	WH_WINDOW_MIN = 8,               /* unread data frames that any peer may have on its way */
	WH_WINDOW_MAX = 64,
	/* Payload on its way to a peer: more of it only pushes what the peer is about to read out of the caches. 8 to 16 MiB
	 * were a quarter faster than 4 and than 64 at 1 MiB a message. */
	WH_WINDOW_BYTES = 8 << 20,
	WH_REPORT_BYTES = 2 << 20,       /* read since the last report: then it is time for the next */
	WH_CONTROL_ROOM = 512,           /* kept free in a data frame for control records */
	/* Payload of one port in a turn, if it is not alone: its whole window is 8 ms of a handler that reads 1 GB/s. */
	WH_TURN_BYTES = 1 << 20,
	/* payload that waits before a send submits by itself: the receiver must not idle meanwhile */
	WH_FLUSH_BYTES = 1 << 20,
	WH_ACCUMULATORS = 8,             /* release words collected at once; a power of two */
	WH_PORT_TIMERS = 3,
	/* A socket that can no longer be written, and whose end does not come, belongs to a peer that plays tricks. */
	WH_GRACE_NS = 1000000000,
};

enum wh_port_state { WH_PORT_OPENING, WH_PORT_OPEN, WH_PORT_DRAINING, WH_PORT_ENDING, WH_PORT_CLOSED };

enum wh_port_kick {
	WH_KICK_ROOM = 1u << 0,          /* the pool may have room: wh_pool_room */
	WH_KICK_WAKE = 1u << 1,          /* a release in another thread saw `wanted`: the peer is owed a wake */
	WH_KICK_RETURNED = 1u << 2,      /* the last taken message was released */
	WH_KICK_CREDIT = 1u << 3,        /* releases have given credit back */
	WH_KICK_POSTS = 1u << 4,         /* a thread has given up waiting in front of a post that was refused */
	WH_KICK_UNREAD = 1u << 5,        /* no message lies any more in a segment that the peer takes back */
};

/* A frame on its way out; from the loop's spare ones, so that an idle port has none. */
struct wh_outframe {
	struct wh_outframe *next;
	uint32_t n_messages;             /* once handed to the engine */
	uint32_t n_pieces;               /* records that do not end their message */
	uint64_t n_bytes;                /* payload */
	uint64_t ordinal;                /* of those that sends encode into, from 1 */
	bool handed;
	bool data;                       /* carries more than control records: counts against the window */
	bool close_fds;                  /* ours, to be closed once sent */
	bool bye;
	int32_t announces;               /* slot, or -1 */
	struct wh_encoder encoder;
	int fds[WH_ENGINE_FDS_MAX];
	struct wh_tx tx;
	_Alignas(16) unsigned char bytes[];
};

/* A received frame that waits, because the port is paused or has had its turn. */
struct wh_held {
	struct wh_list link;
	uint32_t offset;                 /* of the next record to deliver */
	uint32_t n_fds;
	bool fds_lost;
	bool data;                       /* counts in the peer's window */
	int fds[WH_ENGINE_FDS_MAX];
	_Alignas(64) unsigned char frame[];
};

struct wh_accumulator {
	uint32_t slot, word;
	uint64_t bits;
};

/* What the peer has announced. Apart from the port: most ports never map anything. */
struct wh_mapped {
	struct wh_geometry geometry[WH_SLOTS_MAX];
	struct wh_view *views[WH_SLOTS_MAX];
	struct wh_accumulator released[WH_ACCUMULATORS];
};

struct wharf_port {
	struct wh_source source;         /* first: the loop and the engine know it */
	struct wharf_port_ops ops;
	void *user;
	_Atomic uint32_t refs;
	enum wh_port_state state;

	/* What a send looks at, together. */
	bool tx_plain;                   /* OPEN, and nothing waits for a place in a frame: sends encode at once */
	uint32_t tx_frame_bytes;         /* frames that the peer takes, and of which the socket holds a window */
	struct wh_outframe *open;        /* the frame that sends encode into, or NULL */
	uint64_t tx_fast_bytes_end;      /* smaller ones need no look at more than this; 0: all do */
	struct wh_lease *lease;
	struct wh_list dirty;

	uint64_t tx_message_bytes_max;   /* the peer's; UINT64_MAX until its hello */
	uint32_t policy;
	uint32_t ask_ns;
	struct wh_latest *latest;        /* its values, if that is keep-latest */
	uint64_t tx_lent_bytes_max;      /* 0: none */
	uint64_t tx_lent_queued_bytes;   /* of messages that wait: to be lent */
	struct wh_demand refused_fds, refused_lent; /* of those that block `plain`: fewest descriptors, least to lend */

	/* Frames out. */
	struct wh_outframe *sending;     /* with the engine */
	struct wh_outframe *stuck;       /* the kernel had no room; goes first */
	struct wh_outframe *frames, **frames_end; /* full, in order */
	uint64_t frames_cost;            /* of those, against tx_queued_bytes_max */
	uint64_t frames_bytes;           /* payload in those */
	uint32_t frames_messages;
	uint32_t n_farewells;            /* flows of the peer's on farewells */
	uint64_t ordinal, handed_ordinal, sent_ordinal; /* of the last frame opened, given to the engine, to the kernel */
	uint64_t tx_queued_bytes_max;
	uint64_t flush_bytes;            /* payload that makes a frame full */
	uint64_t tx_mapped_bytes, tx_mapped_bytes_max; /* announced; the peer's cap */
	uint32_t tx_fds_max, tx_fds_unread, tx_fds_queued;
	uint32_t tx_fds_framed;          /* of the queued ones: in frames already */
	bool tx_dead;                    /* the socket takes nothing any more */
	bool backing_off;                /* the stuck frame waits for a timer, not for room in the socket */
	bool lent_refused;               /* a send was refused for what is lent */
	bool watched;                    /* wh_lease_watch */
	bool hello_sent, bye_encoded, bye_sent;
	bool wake_due, report_due;
	bool slots_due;                  /* a bit in one of the maps of slots that control records are made of */
	bool again_due;                  /* a bit in announce_again */
	uint8_t n_again;                 /* announcements made again since the peer was seen to have read all */
	uint64_t retire_asks[WH_SLOTS_MAX / 64]; /* own slots that the peer should unmap */
	uint64_t announce_again[WH_SLOTS_MAX / 64]; /* own slots whose announcement the peer has lost */
	struct wh_list waiting;          /* on loop->waiting while a frame is stuck */
	uint32_t window;
	uint32_t backoff_ns;
	uint64_t frames_sent, frames_read_by_peer; /* data frames */
	uint64_t bytes_unread;           /* payload of those between the two */
	uint32_t window_bytes[WH_WINDOW_MAX]; /* of the last frames, by number modulo; at most UINT32_MAX each */
	uint8_t window_fds[WH_WINDOW_MAX]; /* descriptors of the last frames, by number modulo */
	struct wh_deadline retry;        /* of a stuck frame; of a dead socket, where there is none: its grace */

	/* Flows. */
	struct wh_flow plain;
	struct wh_flow_table flows[WH_FLOW_KINDS];
	uint32_t flows_max[WH_FLOW_KINDS];
	uint32_t contest;                /* of flows for frames: another one each time that none is left */
	uint64_t tx_credit_bytes, rx_credit_bytes; /* what a flow begins with, there and here */
	struct wh_list active;           /* flows with messages for the next frames, in turns */
	uint64_t flows_cost, active_cost; /* of streams and calls, against tx_queued_bytes_max; of those on active */
	uint64_t refused_call_cost;      /* of calls that could not begin because of that: the smallest; 0: none */
	struct wh_list blocked_flows;    /* a send to which answered -EAGAIN */
	uint32_t n_dry;                  /* flows that are */
	struct wh_list credits_due, farewells; /* flows whose peer is to be told */
	struct wh_list resumed;          /* flows with records to deliver */
	uint64_t queued_messages, queued_bytes; /* of all flows, not yet in frames */
	uint64_t assembly_bytes, assembly_bytes_max;
	uint32_t assembly_fds;           /* that wait in those of streams and calls */
	uint32_t n_aside, n_aside_fds;   /* records that wait in paused flows, and their descriptors */
	uint32_t blocked_starts;         /* kinds of flows of which one could not begin for want of a number, as bits */
	bool tx_inline;                  /* no shared memory this way: the peer maps none, or it is not wanted */
	bool pieces, peer_pieces;        /* messages are delivered in pieces, here and there */
	bool answers;                    /* internal: carries the answer of a delegated call, and nothing else */
	bool adopted;                    /* wharf_call_adopt has been called */
	bool said_last_call;
	struct wh_outmsg *done, **done_end; /* whose `done` is due */
	struct wh_call *offered;         /* a request that the application may take now */
	struct wh_list ended_calls;      /* whose on_end is due, now or behind what waits */
	struct wh_list delegated;        /* calls that other ports answer, and that may outlive this one */
	uint64_t last_call;              /* the last one that the peer has accepted, as its bye says */
	struct wh_list chores;           /* on loop->chores: callbacks are due that no event brings */

	struct wh_posting posting;       /* from other threads */

	/* Frames in. */
	struct wh_mapped *mapped;        /* NULL until the first announcement */
	struct wh_view **views;          /* mapped->views */
	struct wh_decode_limits limits;
	uint64_t frames_read, frames_reported;
	uint64_t bytes_unreported;       /* payload read since the last report */
	uint32_t report_every;
	uint32_t n_held_fds;
	uint64_t mapped_bytes_max;
	uint32_t msgs_per_turn, msgs_this_turn, msgs_turn;
	uint32_t n_held;
	uint64_t bytes_this_turn;        /* payload */
	struct wh_list held;
	uint64_t n_delivered;            /* of those that were held: the number of the one whose turn it is */
	struct wh_list ready;
	uint16_t n_lost;                 /* slots of the peer that are announced, and whose descriptors were lost */
	bool starved;                    /* the next message lies in one of those */
	bool paused, untrusted, maps_huge;
	bool harvest_due;                /* the peer says that it has released */
	bool said_hello, peer_bye, eof;
	int eof_result;
	uint64_t retire_acks[WH_SLOTS_MAX / 64]; /* slots of the peer that are unmapped, to be told */
	uint64_t announce_asks[WH_SLOTS_MAX / 64]; /* slots of the peer that are lost, to be asked for again */
	struct wh_deadline ask;          /* when for the next time, ask_ns later */

	/* The beginning. */
	struct wh_connect *connecting;   /* NULL: the socket is connected */
	int64_t open_timeout_ns;

	/* The end. */
	struct wh_watch *watch;          /* NULL: only the socket tells */
	struct wh_list ending;
	struct wharf_reason reason;
	bool closed_here, shut;
	bool same_user;                  /* takes no peer of another user */
	bool told;                       /* on_close has run */
	struct wh_deadline deadline;     /* of opening, or of draining */
	struct wh_kick kick;
	_Atomic uint32_t taken;          /* messages taken that lie in the peer's memory, and not released */
	_Atomic int holding_fd;          /* the socket, kept for those when the port let go of it; -1: none */

	struct wharf_peer peer;
	struct wh_stats_port *stats;
	struct wh_tally tally;
	union {
		struct wh_hello hello;   /* what this end says */
		char reason_text[sizeof(struct wh_hello)]; /* from ENDING on: room for a path and why */
		struct wh_fork_hook holding; /* behind on_close: of holding_fd */
	};
};

/* open.c */
/* A port on a socket that need not be connected yet: nothing happens on it before wh_port_start. It owns fd. */
int wh_port_new(struct wharf_loop *loop, int fd, const struct wharf_port_options *options,
	int64_t default_open_timeout_ns, wharf_port **ret_port);
int wh_port_open(struct wharf_loop *loop, int fd, const struct wharf_port_options *options,
	int64_t default_open_timeout_ns, wharf_port **ret_port);

/* port.c */
void wh_port_callbacks(struct wharf_port *port); /* sets them */
void wh_port_on_pool_kick(void *owner);
int wh_port_check(const struct wharf_port *port); /* 0; -ECHILD; -EINVAL; -EPERM; -EPIPE: closed or ending */
/* Fixes the reason; on_close follows in this turn. Does nothing if it is fixed already. error is a positive errno. */
void wh_port_end(struct wharf_port *port, uint32_t code, int error, const char *format, ...)
	__attribute__((format(printf, 4, 5)));
/* Undoes an open before the application has seen the port: no callback fires, and its pool is free for another. */
void wh_port_forget(struct wharf_port *port);
void wh_port_progress(struct wharf_port *port); /* looks whether draining has come to its end */
void wh_port_finish(struct wharf_port *port);   /* runs on_close */
void wh_port_dirty(struct wharf_port *port);
/* Before callbacks of its application. */
static inline void wh_port_enter(const struct wharf_port *port)
{
	wh_loop_enter(port->source.loop, port->tally.position);
}
/* Something happened to it: it is published at the end of the turn. */
static inline void wh_port_touch(struct wharf_port *port)
{
	if (!wh_list_linked(&port->tally.touched))
		wh_ledger_touch_slowly(port);
}
void wh_port_kick(struct wharf_port *port, uint32_t reasons); /* any thread */
void wh_port_let_go(struct wharf_port *port);   /* the last taken message is released: any thread */
void wh_port_linger(struct wharf_port *port);   /* lets the socket go if nothing holds it */
void wh_port_eof(struct wharf_port *port);      /* the peer's end, once everything before it is delivered */
/* The peer broke the protocol: ends the port, and tells the peer why. */
void wh_port_violation(struct wharf_port *port, const char *why);

/* hello.c */
void wh_port_hello_init(struct wharf_port *port, const struct wharf_port_options *options);
void wh_port_start(struct wharf_port *port); /* the socket is connected: talks, and listens */
bool wh_port_say_hello(struct wharf_port *port); /* false: no memory */
void wh_port_take_hello(struct wharf_port *port, const struct wh_hello *hello, const struct wh_event *event);

bool wh_port_peer_takes(const struct wharf_port *port, uint64_t bytes, uint32_t n_fds); /* once it has said hello */
void wh_port_exceeded(struct wharf_port *port); /* it does not take what was accepted before: ends the port */

void wh_port_drain(struct wharf_port *port);    /* nothing new is sent: what is queued, and answers */

/* flow.c */
void wh_port_flows_init(struct wharf_port *port, const struct wharf_port_options *options);
void wh_port_flows_on_hello(struct wharf_port *port, const struct wh_hello *theirs);
bool wh_port_flows_fit(const struct wharf_port *port, const struct wh_hello *theirs); /* those begun before it */
void wh_flows_give_up(struct wharf_port *port); /* streams and requests that nobody can end any more */
void wh_flows_fini(struct wharf_port *port);
void wh_port_collect_returned(struct wharf_port *port);

/* outbox.c */
void wh_outflow_look(struct wh_flow *flow);     /* its credit or its queue has changed */
void wh_outflow_drop(struct wh_flow *flow);

/* call.c */
void wh_call_writable(struct wh_flow *flow);
void wh_calls_end_all(struct wharf_port *port); /* the port ends: on_end of each */
void wh_calls_on_bye(struct wharf_port *port, uint64_t last_call); /* those behind it were not seen */
void wh_calls_run_ends(struct wharf_port *port); /* on_end of those that have ended */
void wh_call_give_up(struct wh_flow *flow);
void wh_answer_sent(struct wh_flow *flow);      /* the last reply is in a frame */

/* send.c, outbox.c, outframe.c */
void wh_port_flush(struct wharf_port *port);
void wh_port_hand(struct wharf_port *port, struct wh_outframe *frame); /* to the engine, with control records */
uint32_t wh_port_bytes_max(const struct wharf_port *port);
void wh_port_queued(const struct wharf_port *port, uint64_t *ret_messages, uint64_t *ret_bytes);
void wh_port_chore(struct wharf_port *port);    /* has wh_port_do_chores called in this turn */
void wh_port_do_chores(struct wharf_port *port);
/* settles the frame that the engine has finished with. False: one is still with it */
bool wh_port_reap(struct wharf_port *port);
void wh_port_read_by_peer(struct wharf_port *port, uint64_t frames);
void wh_port_limit_messages(struct wharf_port *port, uint64_t bytes_max); /* the peer takes no larger ones */
void wh_port_drop_output(struct wharf_port *port);
/* wh_port_end, and tells the peer: bye_text, and the reason's app_code. */
void wh_port_fail(struct wharf_port *port, uint32_t code, int error, enum wh_bye_code bye, const char *bye_text,
	const char *format, ...) __attribute__((format(printf, 6, 7)));
int wh_outframes_init(struct wharf_loop *loop); /* 0; -ENOMEM */
struct wh_outframe *wh_outframe_new(struct wharf_loop *loop); /* never the loop's last spare one */
struct wh_outframe *wh_outframe_for_control(struct wharf_loop *loop); /* which needs no memory while that is there */
void wh_outframe_free(struct wharf_loop *loop, struct wh_outframe *frame);
void wh_outframes_free(struct wharf_loop *loop);

/* demand.c */
void wh_port_room(struct wharf_port *port);     /* tells the application if what it was refused would now succeed */
/* Room may help something that was refused. */
static inline bool wh_port_waits_for_room(const struct wharf_port *port)
{
	return !wh_list_empty(&port->blocked_flows) || port->blocked_starts || port->refused_call_cost ||
		port->posting.writable;
}
void wh_port_block_call(struct wharf_port *port, const struct wh_flow *flow); /* its request was refused */
void wh_port_watch_lease(struct wharf_port *port); /* if something here waits for a release */

/* outframe.c */
bool wh_port_bye_due(const struct wharf_port *port);
void wh_port_back_off(struct wharf_port *port, struct wh_deadline *deadline, uint32_t *ns); /* a growing pause */

/* receive.c */
void wh_port_receive(struct wharf_port *port, struct wh_event *event);
void wh_port_schedule_held(struct wharf_port *port); /* if something is held that can be delivered */
void wh_port_deliver_held(struct wharf_port *port);
/* Something is yet to be delivered, or may be when a pause ends; not what only a lost segment could bring. */
static inline bool wh_port_delivers(const struct wharf_port *port)
{
	return port->paused || port->n_aside || (!wh_list_empty(&port->held) && !port->starved);
}
void wh_port_look_for_end(struct wharf_port *port); /* when nothing waits to be delivered any more */
void wh_port_drop_input(struct wharf_port *port);

void wh_fds_close(const int *fds, size_t n); /* but for those that are -1 */

/* mapping.c */
void wh_port_on_announce(struct wharf_port *port, const struct wh_announce *a, const int *fds, uint32_t n_fds);
void wh_port_on_announce_request(struct wharf_port *port, const struct wh_slot_record *r);
void wh_port_on_retire(struct wharf_port *port, const struct wh_slot_record *r);
void wh_port_unmap_unread(struct wharf_port *port); /* of what the peer takes back: what no message lies in any more */
void wh_port_ask_again(struct wh_deadline *deadline); /* expired: port->ask */
/* Does the message lie in a segment whose descriptors were lost? */
bool wh_port_lacks_segment(const struct wharf_port *port, const struct wh_record *r);
void wh_port_unmap(struct wharf_port *port);
void wh_port_flush_all_released(struct wharf_port *port);

/* Gives chunks back through the accumulators. */
void wh_port_flush_released(struct wharf_port *port, struct wh_accumulator *a);
static inline void wh_port_release_run(struct wharf_port *port, const struct wh_run *run)
{
	uint32_t word = run->first / 64;
	struct wh_accumulator *a = &port->mapped->released[word % WH_ACCUMULATORS];

	if (wh_unlikely(a->word != word || a->slot != run->slot)) {
		wh_port_flush_released(port, a);
		a->word = word;
		a->slot = run->slot;
	}
	a->bits |= wh_run_mask(run);
}

#endif
