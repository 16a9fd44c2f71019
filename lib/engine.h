/* SPDX-License-Identifier: MIT */
/*
 * The seam between the loop and the kernel. An engine speaks in events, with the kernel's quirks smoothed away; the
 * loop and the ports know neither io_uring nor epoll. One engine per loop, used by one thread, wh_engine_wake excepted.
 * What both engines share is in engine_core.c and engine_event.c, the rest behind wh_engine_ops.
 *
 * Nothing is delivered inside a request: everything comes out of wh_engine_next; the frames and the end of a link in
 * the order in which they happened.
 */
#ifndef WH_ENGINE_H
#define WH_ENGINE_H

#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "list.h"
#include "stats.h"

struct wh_engine;
struct wh_rx_slot;

enum {
	WH_ENGINE_FDS_MAX = 253, /* SCM_MAX_FD */
	WH_ACCEPTS_MAX = 16,
	WH_CONTROL_BYTES = CMSG_SPACE(sizeof(int) * WH_ENGINE_FDS_MAX) + CMSG_SPACE(sizeof(struct ucred)),
};

enum wh_event_kind {
	WH_EVENT_FRAME = 1,    /* one datagram, valid until wh_engine_frame_done */
	/* a nudge: link->tx is NULL again and link->sent_result says how it ended. May be stale */
	WH_EVENT_SENT,
	/* the peer has shut down or died. After every frame it had sent; result 0 or -ECONNRESET */
	WH_EVENT_EOF,
	WH_EVENT_ERROR,        /* receiving has failed for good: result (-EPROTO: an empty datagram). No more frames */
	WH_EVENT_WRITABLE,     /* once per wh_engine_want_writable */
	WH_EVENT_DETACHED,     /* last event of a link: its fd is closed, its memory may go */
	WH_EVENT_ACCEPTED,     /* result is a new connected fd (close-on-exec), now the user's */
	/* result, a negative errno: nothing more is accepted until wh_engine_accept, save what was asked for already */
	WH_EVENT_ACCEPT_ERROR,
	WH_EVENT_READABLE,     /* once per wh_engine_watch: result is poll(2)'s revents, or a negative errno */
};

/* One datagram to send. All of it must stay as it is until link->tx is NULL again. */
struct wh_tx {
	const void *bytes;
	uint32_t size;
	uint32_t n_fds;
	const int *fds;        /* not closed by the engine */
	bool credentials;      /* attach SCM_CREDENTIALS of this process */
	/* The engine's. */
	struct msghdr header;
	struct iovec iov;
	_Alignas(struct cmsghdr) unsigned char control[WH_CONTROL_BYTES];
};

/*
 * What accepting needs; of who listens, and at hand until DETACHED. As many as there is room for here are accepted ahead
 * of their events: the rest of a crowd waits in the kernel's backlog, not as descriptors of this process.
 */
struct wh_accepts {
	/* The engine's. */
	uint32_t armed;        /* requests whose completion has not come yet; with n at most WH_ACCEPTS_MAX */
	uint32_t first, n;     /* descriptors whose event was not taken yet */
	int error;
	int fds[WH_ACCEPTS_MAX];
};

/* The engine's: a place in the queue of events. */
struct wh_event_node {
	struct wh_list queue;
	uint32_t source;
};

/* A socket, a listener or a watched fd; embedded in its user. Its memory must stay until DETACHED. */
struct wh_link {
	int fd;
	int sent_result;       /* of the last send that ended: 0 or a negative errno */
	struct wh_tx *tx;      /* in flight; cleared as soon as its completion is harvested, inside any engine call */
	struct wh_engine *engine;
	/* The engine's. */
	uint32_t state;
	uint32_t wanted;       /* requests that the kernel has not been told of */
	uint32_t armed;        /* requests whose last completion has not come yet */
	uint32_t cancels;      /* the same for cancellations */
	uint32_t news;         /* kinds of events that are queued, FRAME excepted */
	int end_result;
	union {
		int watch_result;
		struct wh_accepts *accepts;
	};
	struct wh_list todo;   /* while something is wanted */
	struct wh_list wait;   /* for a buffer, for its turn to receive, or for the end of a detach */
	struct wh_event_node early; /* SENT, WRITABLE, ACCEPTED, ACCEPT_ERROR, READABLE */
	struct wh_event_node end;   /* EOF or ERROR, then DETACHED: behind the frames */
};

struct wh_event {
	enum wh_event_kind kind;
	int result;
	struct wh_link *link;
	/* FRAME */
	const void *bytes;     /* 64-aligned */
	uint32_t size;
	uint16_t n_fds;
	bool fds_lost;         /* MSG_CTRUNC: some descriptors were dropped here */
	bool truncated;        /* MSG_TRUNC: the datagram was larger than a buffer */
	bool has_credentials;
	struct ucred credentials;
	int *fds;              /* set an entry to -1 to take it; frame_done closes the others */
	uint32_t buffer;       /* the engine's */
};

struct wh_engine_config {
	uint32_t engine;           /* WHARF_ENGINE_* */
	uint32_t rx_buffers;       /* power of two */
	uint32_t frame_bytes_max;
	uint32_t rung;             /* of io_uring: start at this step of the feature ladder, 0 is the best */
	uint32_t cq_entries;       /* for tests: 0 sizes it so that it does not overflow */
};

/* What each engine does in its own way. */
struct wh_engine_ops {
	void (*close)(struct wh_engine *engine);
	void (*start)(struct wh_engine *engine);
	int (*turn)(struct wh_engine *engine, int64_t timeout_ns);
	int (*submit)(struct wh_engine *engine);
	bool (*busy)(const struct wh_engine *engine);
	void (*give)(struct wh_engine *engine, uint32_t buffer); /* a receive buffer may be filled again */
	void (*pause)(struct wh_engine *engine, struct wh_link *link);
	void (*detach)(struct wh_engine *engine, struct wh_link *link);
	int (*fd)(struct wh_engine *engine);
	int (*sleep)(struct wh_engine *engine, int64_t deadline_ns, bool now);
	void (*rouse)(struct wh_engine *engine);
	void (*forked)(struct wh_engine *engine);
	void (*describe)(const struct wh_engine *engine, struct wh_stats_loop *stats);
};

/* The head of each engine; its fields are the engines' own. */
struct wh_engine {
	const struct wh_engine_ops *ops;
	int broken;                /* negative errno, sticky */
	bool enabled;              /* it was started */
	uint32_t n_links;
	uint32_t n_events;         /* queued */
	struct wh_list events;
	struct wh_list todo;       /* links with requests that the kernel has not been told of */
	uint64_t n_enters;         /* times that it asked the kernel what there is */
	uint64_t n_sleeps;         /* of those, times that it waited */
	uint64_t n_calls;          /* system calls, those included */
	uint64_t n_completions;    /* what the kernel has said */
	uint64_t n_overflows;      /* times that it had more to say than there was room for */
	uint64_t n_starved;        /* times that a link found no buffer */
	uint64_t n_wakes;          /* turns that somebody had rung for */
	uint32_t n_armed[WH_ARMED_KINDS]; /* requests that the kernel holds */
	uint32_t n_starving;       /* links that wait for a buffer */

	unsigned char *rx;         /* receive buffers */
	size_t rx_stride;
	uint32_t rx_bytes;         /* of one, header included */
	uint32_t rx_n;
	uint32_t rx_lent;          /* frames that are queued or in the loop's hands */
	struct wh_list rx_spare;   /* those that only this process may fill */
	struct wh_rx_slot *slots;

	int64_t deadline_ns;       /* when the host is woken next, at the latest; INT64_MAX: not by time */
	int wake_fd;               /* ends a turn that waits */
	char name[100];
	_Alignas(64) atomic_bool woken; /* until a turn returns, others need not ring again */
	atomic_int bell;           /* what a wake writes to */
};

/*
 * The user of a program may choose where the program does not: with WHARF_ENGINE_AUTO this reads the environment into
 * config->engine and rung. -EINVAL: it names no engine; ret_word is what it says.
 */
#define WH_ENGINE_VARIABLE "WHARF_ENGINE"
int wh_engine_choose(struct wh_engine_config *config, const char **ret_word);

/*
 * 0; -EPERM, -EACCES, -ENOSYS, -EOPNOTSUPP: this engine is not to be had here; -ENOMEM, -EMFILE, -ENFILE. With
 * WHARF_ENGINE_AUTO the next one is tried only where the first one is not to be had.
 */
int wh_engine_open(const struct wh_engine_config *config, struct wh_engine **ret_engine);
/* The engine, its feature level, and why not the other. */
static inline const char *wh_engine_name(const struct wh_engine *engine) { return engine->name; }

/* Fills in what it is, once, and again after wh_engine_fd. Its counters the loop reads where they are. */
static inline void wh_engine_describe(const struct wh_engine *engine, struct wh_stats_loop *stats)
{
	stats->wake_fd = engine->wake_fd;
	stats->rx_buffers = engine->rx_n;
	stats->ring_fd = stats->event_fd = -1;
	engine->ops->describe(engine, stats);
}

/* Every link must be detached. Takes NULL. */
static inline void wh_engine_close(struct wh_engine *engine)
{
	if (engine)
		engine->ops->close(engine);
}

/* From here on it is this thread's, and what is requested may be submitted. The first turn does it, too. As a turn. */
static inline int wh_engine_start(struct wh_engine *engine)
{
	if (wh_unlikely(!engine->enabled) && !engine->broken)
		engine->ops->start(engine);
	return engine->broken;
}

/*
 * One exchange with the kernel: submits what was requested, waits up to timeout_ns (negative: for ever; 0: not at all;
 * and not at all while events are queued) and queues what has happened. Enters the kernel only if there is a reason.
 * By the thread that started it only. Returns how many events are queued; 0 also after wh_engine_wake, a signal, or for
 * nothing; a negative errno: broken, for good. A broken engine still has its queued events, and a link that is detached
 * from it has its DETACHED at once.
 */
static inline int wh_engine_turn(struct wh_engine *engine, int64_t timeout_ns)
{
	return engine->ops->turn(engine, timeout_ns);
}

/*
 * Submits without waiting, and clears link->tx of sends that have ended; events stay queued. Safe inside a dispatch. 0
 * or negative: broken.
 */
static inline int wh_engine_submit(struct wh_engine *engine) { return engine->ops->submit(engine); }

/* Something is queued, or done and not harvested; or that is likely. Else a turn now would sleep. */
static inline bool wh_engine_busy(const struct wh_engine *engine) { return engine->ops->busy(engine); }

/* Takes the oldest event. False: none. */
bool wh_engine_next(struct wh_engine *engine, struct wh_event *ret_event);

/*
 * Gives the frame's buffer back and closes the fds that were not taken. Loops may hold back a few, not all: the others
 * starve.
 */
void wh_engine_frame_done(struct wh_engine *engine, struct wh_event *frame);

/* Requests. They cannot fail, and may be made before the first turn; a broken engine shows in the next turn. */
void wh_engine_attach(struct wh_engine *engine, struct wh_link *link, int fd); /* owns fd from here on */
/* starts, or goes on, receiving frames */
void wh_engine_receive(struct wh_engine *engine, struct wh_link *link);
/* what is queued, or comes before the kernel hears of it, still comes out; after that not even the end */
static inline void wh_engine_pause(struct wh_engine *engine, struct wh_link *link) { engine->ops->pause(engine, link); }
/* link->tx must be NULL; -EAGAIN is a result */
void wh_engine_send(struct wh_engine *engine, struct wh_link *link, struct wh_tx *tx);
void wh_engine_want_writable(struct wh_engine *engine, struct wh_link *link);  /* idempotent until it fires */
/* a listening socket: an event for each connection, until an error; what was accepted before that comes first */
void wh_engine_accept(struct wh_engine *engine, struct wh_link *link, struct wh_accepts *accepts);
/* any pollable fd, but no eventfd once wh_engine_fd was asked for: a host that sleeps may not hear of it */
void wh_engine_watch(struct wh_engine *engine, struct wh_link *link);
/* ends everything of it, closes its fd and connections not taken; a send that was requested before still goes */
static inline void wh_engine_detach(struct wh_engine *engine, struct wh_link *link)
{
	engine->ops->detach(engine, link);
}

/* Makes a waiting turn return, and the pollable fd readable. Any thread, and signal handlers. 0 or a negative errno. */
int wh_engine_wake(struct wh_engine *engine);

/*
 * One level-triggered descriptor for a host loop; created by the first call, readable until the first turn. It may
 * become readable for nothing: a deadline that was given up stays. Negative errno. From then on the loop calls
 * wh_engine_sleep at the end of every turn and of every burst of requests outside one, and wh_engine_rouse at the
 * start of a turn: in between the host does not look.
 */
static inline int wh_engine_fd(struct wh_engine *engine) { return engine->ops->fd(engine); }
/* Submits, then lets the fd become readable with the next event, or in deadline_ns (relative; negative: none), or
 * at once if something is waiting already or `now`. 0 or negative: broken. */
static inline int wh_engine_sleep(struct wh_engine *engine, int64_t deadline_ns, bool now)
{
	return engine->ops->sleep(engine, deadline_ns, now);
}
static inline void wh_engine_rouse(struct wh_engine *engine) { engine->ops->rouse(engine); }

/* In a forked child: closes the engine's own descriptors, so that the parent's death is seen. Async-signal-safe. */
static inline void wh_engine_forked(struct wh_engine *engine) { engine->ops->forked(engine); }
void wh_link_forked(struct wh_link *link); /* the same for its socket */

#endif
