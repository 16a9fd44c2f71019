/* SPDX-License-Identifier: MIT */
/* The insides of the io_uring engine: the ring with its receive buffers, and what its files share. */
#ifndef WH_ENGINE_URING_H
#define WH_ENGINE_URING_H

#include <liburing.h>
#include <pthread.h>

#include "engine_core.h"

static_assert(sizeof(struct wh_rx) == sizeof(struct io_uring_recvmsg_out) &&
	offsetof(struct wh_rx, control_bytes) == offsetof(struct io_uring_recvmsg_out, controllen) &&
	offsetof(struct wh_rx, flags) == offsetof(struct io_uring_recvmsg_out, flags), "the kernel fills them");

enum { RX_GROUP = 0 };

/*
 * user_data of a request: its link with the request's number in the low bits, which is safe because a link outlives its
 * last completion. Requests of the engine itself have no link.
 */
enum {
	REQUEST_CANCEL = REQUEST_ACCEPT + 1,
	REQUEST_MASK = 7,

	OWN_WAKE = 1,
	OWN_DEADLINE,
	OWN_IGNORED,
};

/* wh_link.state */
enum {
	FED = OWN_STATES << 0,       /* has got a frame since it last asked for some */
	STARVING = OWN_STATES << 1,  /* is in unfed or starved */
};

struct wh_uring {
	struct wh_engine engine;
	struct io_uring ring;
	unsigned enter_flags;
	int enter_fd;
	uint32_t rung;
	bool multishot;            /* recvmsg takes buffers by itself; else they are taken from spare, after a poll */
	pthread_t owner;           /* who started it */
	struct wh_list polled;     /* links that may have frames, where those are not taken by the ring */
	struct wh_list unfed;      /* links that want to receive, but there was no buffer: before the others that starve */
	struct wh_list starved;    /* the same, but they have got some frames before */
	uint32_t ration;           /* how many of them try again at once */
	bool tried_in_vain;        /* some of those got nothing */
	struct wh_list detaching;  /* links that wait for their last completion */
	bool orphans;              /* the kernel may still write to the buffers */
	struct io_uring_buf_ring *rx_ring;
	size_t rx_ring_bytes;
	int event_fd;              /* what the host loop watches; -1: it does not */
	bool event_fd_used;        /* it may be readable, or become so */
	struct __kernel_timespec deadline;
	bool wake_armed;           /* wake_fd is polled by the ring */
};

static inline struct wh_uring *wh_uring_of(const struct wh_engine *engine)
{
	return wh_container_of(engine, struct wh_uring, engine);
}

/* Lends a buffer to the kernel, again. */
static inline void wh_uring_give(struct wh_engine *engine, uint32_t index)
{
	struct wh_uring *uring = wh_uring_of(engine);

	if (uring->multishot) {
		io_uring_buf_ring_add(uring->rx_ring, wh_engine_buffer(engine, index), engine->rx_bytes,
			(unsigned short)index, (int)engine->rx_n - 1, 0);
		io_uring_buf_ring_advance(uring->rx_ring, 1);
	} else {
		wh_engine_spare(engine, index);
	}
}

/* Task work or overflown completions wait in the kernel: only entering it brings them out. */
static inline bool wh_uring_kernel_waits(const struct wh_uring *uring)
{
	return IO_URING_READ_ONCE(*uring->ring.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

/* There are buffers, and links that have not been told: nothing of the kernel's will bring that to mind. */
static inline bool wh_uring_hungry(const struct wh_uring *uring)
{
	return uring->engine.rx_lent < uring->engine.rx_n &&
		!(wh_list_empty(&uring->unfed) && wh_list_empty(&uring->starved));
}

/* Of a link that is not detaching: it wants no frames any more. */
static inline void wh_uring_unstarve(struct wh_link *link)
{
	wh_list_remove(&link->wait);
	if (!(link->state & STARVING))
		return;
	link->state &= ~(uint32_t)STARVING;
	link->engine->n_starving--;
}

/* What a detaching or paused link still has to get rid of. Sends end by themselves. */
static inline uint32_t wh_uring_cancels_due(const struct wh_link *link)
{
	uint32_t due = link->armed & ~WH_BIT(REQUEST_SEND);

	if (!(link->state & DETACHING))
		due &= link->state & RECEIVING ? 0 : WH_BIT(REQUEST_RECEIVE);
	return due << CANCEL_SHIFT;
}

/*
 * Enters the kernel: submits all, waits for one completion up to timeout_ns (negative: for ever, 0: not at all); runs
 * task work if it waits or get_events is set. 0 or negative: broken.
 */
int wh_uring_enter(struct wh_uring *uring, int64_t timeout_ns, bool get_events);
/* NULL: the queue is full, and the kernel does not take it now. */
struct io_uring_sqe *wh_uring_sqe(struct wh_uring *uring);
/* Takes all completions there are. */
void wh_uring_harvest(struct wh_uring *uring);
/* Reads what completions have told of; in turns only. */
void wh_uring_read_polled(struct wh_uring *uring);

/* Behind wh_engine_ops. */
void wh_uring_close(struct wh_engine *engine);
void wh_uring_start(struct wh_engine *engine);
int wh_uring_turn(struct wh_engine *engine, int64_t timeout_ns);
int wh_uring_submit(struct wh_engine *engine);
bool wh_uring_busy(const struct wh_engine *engine);
void wh_uring_pause(struct wh_engine *engine, struct wh_link *link);
void wh_uring_detach(struct wh_engine *engine, struct wh_link *link);
int wh_uring_fd(struct wh_engine *engine);
int wh_uring_sleep(struct wh_engine *engine, int64_t deadline_ns, bool now);
void wh_uring_rouse(struct wh_engine *engine);
void wh_uring_forked(struct wh_engine *engine);

#endif
