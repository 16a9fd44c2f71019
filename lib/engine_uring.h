/* SPDX-License-Identifier: MIT */
/* The insides of the io_uring engine: the ring with its receive buffers, and what its files share. */
#ifndef WH_ENGINE_URING_H
#define WH_ENGINE_URING_H

#include <assert.h>
#include <liburing.h>
#include <pthread.h>

#include "engine.h"

/*
 * A receive buffer, as multishot recvmsg fills it: struct io_uring_recvmsg_out, WH_CONTROL_BYTES of control messages,
 * payload. It begins RX_SHIFT bytes into its slot, so that the payload is 64-aligned.
 */
enum {
	RX_HEADER = sizeof(struct io_uring_recvmsg_out) + WH_CONTROL_BYTES,
	RX_SHIFT = 63 - (RX_HEADER + 63) % 64,
	RX_GROUP = 0,
};
static_assert((RX_SHIFT + RX_HEADER) % 64 == 0, "payloads are 64-aligned");
static_assert(RX_SHIFT % _Alignof(struct cmsghdr) == 0, "control messages are aligned");

/*
 * user_data of a request: its link with the request's number in the low bits, which is safe because a link outlives its
 * last completion. Requests of the engine itself have no link.
 */
enum {
	REQUEST_RECEIVE = 1,
	REQUEST_SEND,
	REQUEST_WRITABLE,
	REQUEST_WATCH,
	REQUEST_ACCEPT,
	REQUEST_CANCEL,
	REQUEST_MASK = 7,

	OWN_WAKE = 1,
	OWN_DEADLINE,
	OWN_IGNORED,
};

/* wh_link.state */
enum {
	RECEIVING = 1 << 0,
	ACCEPTING = 1 << 1,
	RESET = 1 << 2,        /* -ECONNRESET was seen: end of file is near */
	ENDED = 1 << 3,        /* EOF or ERROR was queued */
	DETACHING = 1 << 4,
	LISTENING = 1 << 5,    /* link->accepts is there */
	FED = 1 << 6,          /* has got a frame since it last asked for some */
};

/* Bits of wh_link.wanted and .armed. A cancellation is wanted per request, in the upper half. */
#define WH_BIT(n) (1u << (n))
#define CANCEL_SHIFT 16
#define CANCEL_BIT(request) (WH_BIT(request) << CANCEL_SHIFT)

/* wh_event_node.source */
enum {
	FROM_SLOT,
	FROM_EARLY,
	FROM_END,
};

/* A received frame on its way to the loop; slots[i] belongs to buffer i. */
struct rx_slot {
	struct wh_event_node node;
	struct wh_link *link;
	uint32_t size;             /* of the payload */
};

struct wh_engine {
	struct io_uring ring;
	unsigned enter_flags;
	int enter_fd;
	uint32_t rung;
	int broken;                /* negative errno, sticky */
	bool enabled;              /* the first turn was taken */
	bool multishot;            /* recvmsg takes buffers by itself; else they are taken from spare, after a poll */
	pthread_t owner;           /* who took the first turn */
	uint64_t n_enters;
	uint64_t n_starved;        /* times that a link found no buffer */
	uint32_t n_links;
	uint32_t n_events;         /* queued */
	struct wh_list events;
	struct wh_list todo;       /* links with requests to submit */
	struct wh_list unfed;      /* links that want to receive, but there was no buffer: before the others that starve */
	struct wh_list starved;    /* the same, but they have got some frames before */
	uint32_t ration;           /* how many of them try again at once */
	bool tried_in_vain;        /* some of those got nothing */
	struct wh_list detaching;  /* links that wait for their last completion */
	bool orphans;              /* the kernel may still write to the buffers */

	unsigned char *rx;
	size_t rx_stride;
	uint32_t rx_bytes;         /* of one buffer, header included */
	uint32_t rx_n;
	uint32_t rx_lent;          /* frames that are queued or in the loop's hands */
	struct io_uring_buf_ring *rx_ring;
	size_t rx_ring_bytes;
	struct wh_list rx_spare;

	int event_fd;              /* what the host loop watches; -1: it does not */
	bool event_fd_used;        /* it may be readable, or become so */
	int64_t deadline_ns;       /* when the armed timeout fires; INT64_MAX: none is armed */
	struct __kernel_timespec deadline;

	int wake_fd;               /* polled by the ring: ends a turn that waits */
	bool wake_armed;
	_Alignas(64) atomic_bool woken; /* until a turn returns, others need not ring again */
	atomic_bool asleep;        /* the host waits, not the ring: event_fd is the bell */

	struct rx_slot slots[];
};

static inline struct io_uring_recvmsg_out *wh_uring_buffer(const struct wh_engine *engine, uint32_t index)
{
	return (struct io_uring_recvmsg_out *)(void *)(engine->rx + index * engine->rx_stride + RX_SHIFT);
}

/* Lends a buffer to the kernel, again. */
static inline void wh_uring_buffer_give(struct wh_engine *engine, uint32_t index)
{
	if (engine->multishot) {
		io_uring_buf_ring_add(engine->rx_ring, wh_uring_buffer(engine, index), engine->rx_bytes,
			(unsigned short)index, (int)engine->rx_n - 1, 0);
		io_uring_buf_ring_advance(engine->rx_ring, 1);
	} else {
		wh_list_append(&engine->rx_spare, &engine->slots[index].node.queue);
	}
}

/* Task work or overflown completions wait in the kernel: only entering it brings them out. */
static inline bool wh_uring_kernel_waits(const struct wh_engine *engine)
{
	return IO_URING_READ_ONCE(*engine->ring.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

/* There are buffers, and links that have not been told: nothing of the kernel's will bring that to mind. */
static inline bool wh_uring_hungry(const struct wh_engine *engine)
{
	return engine->rx_lent < engine->rx_n && !(wh_list_empty(&engine->unfed) && wh_list_empty(&engine->starved));
}

/* Events live in what they report on: nothing to allocate, nothing to overflow. */
static inline void wh_uring_queue_node(struct wh_engine *engine, struct wh_event_node *node)
{
	if (!wh_list_linked(&node->queue))
		wh_list_append(&engine->events, &node->queue);
}

static inline void wh_uring_queue_news(struct wh_link *link, enum wh_event_kind kind, struct wh_event_node *node)
{
	if (!(link->news & WH_BIT(kind))) {
		link->news |= WH_BIT(kind);
		link->engine->n_events++;
	}
	wh_uring_queue_node(link->engine, node);
}

static inline void wh_uring_want(struct wh_link *link, uint32_t bits)
{
	link->wanted |= bits;
	if (!wh_list_linked(&link->todo))
		wh_list_append(&link->engine->todo, &link->todo);
}

static inline void wh_uring_want_receive(struct wh_link *link)
{
	if ((link->state & (RECEIVING | ENDED | DETACHING)) != RECEIVING)
		return;
	if (!(link->armed & WH_BIT(REQUEST_RECEIVE)) && !wh_list_linked(&link->wait))
		wh_uring_want(link, WH_BIT(REQUEST_RECEIVE));
}

/* A request takes one connection. Each has its place from the start, so that what it brings is never one too many. */
static inline void wh_uring_want_accept(struct wh_link *link)
{
	if (link->state & ACCEPTING && link->accepts->armed + link->accepts->n < WH_ACCEPTS_MAX)
		wh_uring_want(link, WH_BIT(REQUEST_ACCEPT));
}

static inline void wh_uring_sent(struct wh_link *link, int result)
{
	link->tx = NULL;
	link->sent_result = result;
	wh_uring_queue_news(link, WH_EVENT_SENT, &link->early);
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
int wh_uring_enter(struct wh_engine *engine, int64_t timeout_ns, bool get_events);
/* NULL: the queue is full, and the kernel does not take it now. */
struct io_uring_sqe *wh_uring_sqe(struct wh_engine *engine);
/* Binds the ring to this thread. 0 or negative: broken. */
int wh_uring_enable(struct wh_engine *engine);
/* Takes all completions there are. */
void wh_uring_harvest(struct wh_engine *engine);
/* Gives back a buffer, and closes what came in it. */
void wh_uring_discard_frame(struct wh_engine *engine, uint32_t index);
/* Closes the connections whose events were not taken. */
void wh_uring_drop_accepted(struct wh_link *link);
/* Closes a link that has nothing outstanding any more. */
void wh_uring_finish_detach(struct wh_link *link);

#endif
