/* SPDX-License-Identifier: MIT */
/*
 * Statistics: what loops and ports tell whoever looks from outside, in control memory (control.h says where that is,
 * and what a position is). The structures below are the layout: native byte order, no padding, every field aligned.
 *
 * Counters are stored as they grow, by the loop's thread alone; each is right by itself at any time, also when that
 * thread hangs. Fields marked (s) belong together: they are written at the end of a turn, between two stores to
 * `sequence`, which is odd meanwhile. A reader copies the block, and takes the copy if `sequence` was even and is the
 * same before and after; a writer that died in between leaves it odd, and what it left is shown as that. The lists of
 * loops and ports change under the sequence of the header.
 *
 * Times are CLOCK_MONOTONIC in nanoseconds, unless WH_STATS_OWN_CLOCK: then the program's own clock.
 */
#ifndef WH_STATS_H
#define WH_STATS_H

#include "base.h"

enum {
	WH_STATS_BUCKETS = 40,      /* of a histogram: bucket i counts times below 2^i ns, and not below half of that */
	WH_STATS_TEXT_BYTES = 104,
	WH_STATS_NAME_BYTES = 64,
};

enum wh_stats_engine { WH_STATS_URING = 1, WH_STATS_EPOLL = 2 };

enum wh_stats_phase {
	WH_PHASE_OUTSIDE = 0,       /* with the host, or nobody has stepped it yet */
	WH_PHASE_WAITS = 1,         /* in the kernel, or about to enter it */
	WH_PHASE_WORKS = 2,         /* dispatching: in the library, or in a callback */
};

/*
 * Requests that the kernel holds, by kind: what `armed` counts. It got those that a turn asks for after that turn. With
 * epoll: what links are at rest for, until it tells of an event.
 */
enum wh_stats_request {
	WH_ARMED_RECEIVE,
	WH_ARMED_SEND,
	WH_ARMED_WRITABLE,          /* a socket was full */
	WH_ARMED_WATCH,
	WH_ARMED_ACCEPT,
	WH_ARMED_CANCEL,
	WH_ARMED_KINDS = 8,
};

enum {
	WH_STATS_EMBEDDED = 1 << 0, /* a host watches wharf_loop_fd */
	WH_STATS_TRACING = 1 << 1,
	WH_STATS_OWN_CLOCK = 1 << 2,
	WH_STATS_NO_TRACE = 1 << 3, /* tracing was asked for, and there was no memory for it */
};

struct wh_stats_loop {
	_Atomic uint32_t next, previous;  /* positions, 0: none */
	uint64_t id;                      /* never reused in this process */
	_Atomic uint32_t sequence;
	_Atomic uint32_t first_port;
	_Atomic uint32_t n_ports;
	uint32_t tid;                     /* of the thread that steps it; 0: none has yet */
	uint32_t engine;                  /* enum wh_stats_engine */
	uint32_t rung;                    /* step of its ladder of kernel features; 0 is the best */
	int32_t ring_fd;                  /* the ring or the epoll set; -1: none */
	int32_t wake_fd;
	int32_t event_fd;                 /* what a host watches; -1: none */
	int32_t broken;                   /* a positive errno, or 0 */
	uint32_t flags;                   /* WH_STATS_* */
	_Atomic uint32_t phase;           /* enum wh_stats_phase */
	_Atomic uint64_t phase_since_ns;  /* of the turn's one look at the clock: to WORKS, or to WAITS */
	_Atomic uint32_t in_port;         /* position of the port whose event is dispatched now, or 0 */
	uint32_t rx_buffers;
	uint32_t rx_buffers_lent;         /* (s) with frames that wait or are handled */
	uint32_t rx_starved;              /* (s) links that want to receive and have no buffer */
	uint32_t armed[WH_ARMED_KINDS];   /* (s) */
	uint32_t n_dirty, n_waiting, n_ready, n_ending; /* (s) ports to flush, with a stuck frame, with held frames, to end */
	uint32_t sq_entries, cq_entries;
	_Atomic uint32_t trace;           /* position of struct wh_stats_trace, or 0 */
	uint32_t trace_bytes;
	uint64_t next_deadline_ns;        /* (s) absolute; 0: none */
	uint64_t started_ns;

	uint64_t turns;
	uint64_t sleeps;                  /* times that there was nothing to do, and it waited in the kernel */
	uint64_t busy_ns;                 /* from wake-up to the next wait, by the turn's clock */
	uint64_t longest_turn_ns;
	uint64_t system_calls;            /* of the engine */
	uint64_t completions;             /* or events, with epoll */
	uint64_t events;                  /* handed to ports and listeners */
	uint64_t overflows;               /* of the completion queue */
	uint64_t no_buffers;              /* a receive found none */
	uint64_t wakes;                   /* of the loop, by other threads or signal handlers */
	uint64_t kicks, posts;            /* work and messages that other threads have handed over */
	uint64_t accepted, refused, accept_errors;
	uint64_t ports_opened, ports_closed, violations;
	uint64_t tx_messages, tx_bytes, tx_frames; /* sums over its ports, those that are gone too */
	uint64_t rx_messages, rx_bytes, rx_frames;
	uint64_t reserved[3];

	uint64_t lag[WH_STATS_BUCKETS];   /* of frames: from the sender's turn to the one that handled it */
	uint64_t turn[WH_STATS_BUCKETS];  /* how long turns have worked */
};

enum {
	WH_STATS_PAUSED = 1 << 0,
	WH_STATS_INLINE = 1 << 1,        /* no shared memory this way */
	WH_STATS_UNTRUSTED = 1 << 2,
	WH_STATS_STARVED = 1 << 3,       /* the next message lies in a segment whose descriptors were lost */
	WH_STATS_CONNECTING = 1 << 4,    /* waits for its listener */
	WH_STATS_BLOCKED = 1 << 5,       /* has refused a message, and not yet said on_writable */
	WH_STATS_INTERNAL = 1 << 6,      /* carries the answer of a delegated call */
	WH_STATS_STUCK = 1 << 7,         /* the socket was full: a frame waits */
	WH_STATS_KEEP_LATEST = 1 << 8,
	WH_STATS_DROP_NEWEST = 1 << 9,
	WH_STATS_PEER_SAID_BYE = 1 << 10,
	WH_STATS_EOF = 1 << 11,
};

/* In the order of struct wharf_port_stats: the same meanings. */
struct wh_stats_counts {
	uint64_t tx_messages, tx_bytes, tx_frames, tx_fds;
	uint64_t rx_messages, rx_bytes, rx_frames, rx_fds;
	uint64_t tx_queued_bytes;         /* (s) */
	uint64_t tx_lent_bytes;           /* (s) */
	uint64_t tx_unread_frames;        /* (s) */
	uint64_t tx_again;
	uint64_t tx_socket_full;
	uint64_t wakes_sent, wakes_received;
	uint64_t rx_mapped_bytes;
	uint64_t rx_stream_violations;
	uint64_t rx_stray_records;
	uint64_t tx_dropped, tx_dropped_bytes;
	uint64_t tx_replaced;
};

struct wh_stats_port {
	_Atomic uint32_t next, previous;  /* positions, 0: none */
	uint64_t id;                      /* never reused in this process */
	_Atomic uint32_t sequence;
	uint32_t state;                   /* (s) opening, open, draining, ending, closed */
	uint32_t loop;                    /* position */
	uint32_t pool, lease;             /* positions, 0: none */
	int32_t fd;                       /* (s) its socket; -1: closed */
	uint32_t flags;                   /* (s) WH_STATS_* */
	uint32_t peer_pid, peer_uid, peer_gid; /* (s) 0xffffffff: not known yet */
	uint32_t window;                  /* (s) data frames that may be unread at a time */
	uint32_t held_frames;             /* (s) received, and not yet delivered */
	uint32_t streams_out, streams_in, calls_out, calls_in; /* (s) going on */
	uint64_t tx_queued_messages;      /* (s) */
	uint64_t opened_ns;
	uint64_t last_tx_ns, last_rx_ns;  /* (s) turns in which a frame left, or came */
	/* (s) the peer has not said since that it has read anything, though there is something; 0: it has read all. It says
	 * so a few frames late: what is new here need not be unread */
	uint64_t unread_since_ns;
	uint64_t blocked_since_ns;        /* (s) 0: not WH_STATS_BLOCKED */
	/* (s) in all, and at once, but for the time that is going on. Of claims only those from the port's own pool, by its
	 * loop's thread */
	uint64_t blocked_ns, longest_blocked_ns;
	uint64_t lag_ns, longest_lag_ns;  /* (s) of the last frame received, and of all: see wh_stats_loop.lag */
	struct wh_stats_counts counts;
	uint32_t close_code;              /* (s) WHARF_CLOSE_*, 0: it lives */
	int32_t close_errno;              /* (s) positive, or 0 */
	uint32_t app_code;                /* (s) */
	uint32_t zero;
	char peer_name[WH_STATS_NAME_BYTES]; /* (s) */
	char text[WH_STATS_TEXT_BYTES];   /* (s) why it ends, or what went wrong last; empty: nothing has */
};

/*
 * What the loop's thread does and meets: not what others claim, post or release, nor claims from shared pools. Newest
 * last: entry i % n_entries of the i-th. head is stored after the entry; the oldest that a reader can trust, when it has
 * copied some, is number head - n_entries + 1 of the head it reads afterwards.
 */
enum wh_stats_event {
	WH_TRACE_CLAIM = 1,   /* a: bytes */
	WH_TRACE_SEND,        /* a: bytes, b: type */
	WH_TRACE_AGAIN,       /* a send was refused. a: bytes, b: errno */
	WH_TRACE_FRAME_OUT,   /* a: number of the frame, 0: nothing but control records; b: messages << 32 | bytes of the frame */
	WH_TRACE_FULL,        /* the socket has no room. a: number of the frame */
	WH_TRACE_FRAME_IN,    /* a: lag in ns, b: records << 32 | bytes of the frame */
	WH_TRACE_RECEIVE,     /* a message goes to the application. a: bytes, b: type */
	WH_TRACE_RELEASE,     /* the peer's memory is given back. a: chunks as bits of a word, b: slot << 32 | word */
	WH_TRACE_RETURN,      /* our memory came back. a: bytes */
	WH_TRACE_WAKE_OUT,    /* the peer waits for room: told */
	WH_TRACE_WAKE_IN,
	WH_TRACE_ANNOUNCE,    /* to the peer. a: slot, b: bytes of the segment */
	WH_TRACE_RETIRE,      /* the peer is asked to unmap it. a: slot */
	WH_TRACE_STREAM,      /* begins. a: id, b: 1: the peer's */
	WH_TRACE_STREAM_END,  /* a: id, b: 0 or why it was given up */
	WH_TRACE_CALL,        /* begins. a: id, b: 1: the peer's */
	WH_TRACE_CALL_END,    /* a: id, b: WHARF_END_* */
	WH_TRACE_OPEN,        /* the peer has said hello. a: its pid */
	WH_TRACE_VIOLATION,
	WH_TRACE_CLOSE,       /* a: WHARF_CLOSE_*, b: errno */
	WH_TRACE_TURN,        /* a: events, b: how long the turn before has worked, in ns */
	WH_TRACE_SLEEP,       /* a: for how long at most in ns, UINT64_MAX: for ever */
	WH_TRACE_SKIPPED,     /* a: so many more of kind b in this turn: what is frequent is written a few times a turn */
	WH_TRACE_KINDS,
};

struct wh_stats_entry {
	uint64_t time_ns;     /* of the turn for what happens to messages; of the event for others */
	uint32_t kind;        /* enum wh_stats_event */
	uint32_t port;        /* low half of the port's id; 0: the loop's own */
	uint64_t a, b;
};

struct wh_stats_trace {
	_Atomic uint64_t head;            /* events ever written */
	uint32_t n_entries;
	uint32_t zero[13];
	struct wh_stats_entry entries[];
};

/*
 * What asks for a trace from outside: a memfd of one page, "wharf-trace", that whoever may open it through /proc/PID/fd
 * may write. Each loop looks at it once a turn, and believes no more of it than that somebody wants events: a trace ends
 * by itself at until_ns, so that a reader that dies leaves nothing switched on.
 */
#define WH_TRACE_MAGIC UINT64_C(0x4352544652414857) /* "WHARFTRC" */

enum {
	WH_TRACE_EVERY = 1 << 0,          /* no event is skipped, whatever that costs */
};

struct wh_trace_wish {
	uint64_t magic;
	uint32_t version;                 /* of control memory */
	uint32_t zero;
	_Atomic uint64_t until_ns;        /* CLOCK_MONOTONIC; at most 60 s ahead, or it is not listened to */
	_Atomic uint32_t kinds;           /* bits 1 << enum wh_stats_event; 0: all */
	_Atomic uint32_t flags;           /* WH_TRACE_EVERY */
};

_Static_assert(sizeof(struct wh_stats_loop) == 1024, "layout");
_Static_assert(offsetof(struct wh_stats_loop, turns) == 168 && offsetof(struct wh_stats_loop, lag) == 384, "layout");
_Static_assert(sizeof(struct wh_stats_counts) == 168, "layout");
_Static_assert(sizeof(struct wh_stats_port) == 512 && offsetof(struct wh_stats_port, counts) == 160, "layout");
_Static_assert(sizeof(struct wh_stats_entry) == 32, "layout");
_Static_assert(sizeof(struct wh_stats_trace) == 64, "layout");
_Static_assert(sizeof(struct wh_trace_wish) == 32, "layout");

#endif
