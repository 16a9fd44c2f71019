/* SPDX-License-Identifier: MIT */
/* What the engines share: receive buffers, the states of a link, the queue of events. */
#ifndef WH_ENGINE_CORE_H
#define WH_ENGINE_CORE_H

#include <assert.h>
#include <errno.h>

#include "engine.h"

/*
 * How a receive buffer begins, laid out as multishot recvmsg fills it. Behind this are WH_CONTROL_BYTES of control
 * messages, and the payload. It stands RX_SHIFT bytes into its place, so that the payload is 64-aligned.
 */
struct wh_rx {
	uint32_t name_bytes, control_bytes, payload_bytes, flags;
};

enum {
	RX_HEADER = sizeof(struct wh_rx) + WH_CONTROL_BYTES,
	RX_SHIFT = 63 - (RX_HEADER + 63) % 64,
};
static_assert((RX_SHIFT + RX_HEADER) % 64 == 0, "payloads are 64-aligned");
static_assert(RX_SHIFT % _Alignof(struct cmsghdr) == 0, "control messages are aligned");

/* What may be asked of a link; bits of wh_link.wanted and .armed. */
enum {
	REQUEST_RECEIVE = 1,
	REQUEST_SEND,
	REQUEST_WRITABLE,
	REQUEST_WATCH,
	REQUEST_ACCEPT,
};
#define WH_BIT(n) (1u << (n))
static_assert(REQUEST_RECEIVE - 1 == (int)WH_ARMED_RECEIVE && REQUEST_SEND - 1 == (int)WH_ARMED_SEND &&
		REQUEST_WRITABLE - 1 == (int)WH_ARMED_WRITABLE && REQUEST_WATCH - 1 == (int)WH_ARMED_WATCH &&
		REQUEST_ACCEPT - 1 == (int)WH_ARMED_ACCEPT,
	"counted in this order");
/* A cancellation is wanted per request, in the upper half; of engines whose requests the kernel holds. */
#define CANCEL_SHIFT 16
#define CANCEL_BIT(request) (WH_BIT(request) << CANCEL_SHIFT)

/* wh_link.state */
enum {
	RECEIVING = 1 << 0,
	ACCEPTING = 1 << 1,
	RESET = 1 << 2,        /* -ECONNRESET was seen: end of file is near */
	ENDED = 1 << 3,        /* EOF or ERROR was queued */
	DETACHING = 1 << 4,
	LISTENING = 1 << 5,    /* link->accepts is there */
	OWN_STATES = 1 << 8,   /* this bit and those above are for one engine */
};

/* wh_event_node.source */
enum {
	FROM_SLOT,
	FROM_EARLY,
	FROM_END,
};

/* A received frame on its way to the loop; slots[i] belongs to buffer i. */
struct wh_rx_slot {
	struct wh_event_node node;
	struct wh_link *link;
	uint32_t size;             /* of the payload */
};

enum wh_receive {
	WH_RECEIVED_ALL,           /* there is no more for now, or never */
	WH_RECEIVED_SHARE,         /* there may be more */
	WH_RECEIVED_STARVED,       /* there is no buffer for more */
};

static inline struct wh_rx *wh_engine_buffer(const struct wh_engine *engine, uint32_t index)
{
	return (struct wh_rx *)(void *)(engine->rx + index * engine->rx_stride + RX_SHIFT);
}

/* The last one is in the caches still: it is the next. */
static inline void wh_engine_spare(struct wh_engine *engine, uint32_t index)
{
	wh_list_prepend(&engine->rx_spare, &engine->slots[index].node.queue);
}

/* Events live in what they report on: nothing to allocate, nothing to overflow. */
static inline void wh_engine_queue_node(struct wh_engine *engine, struct wh_event_node *node)
{
	if (!wh_list_linked(&node->queue))
		wh_list_append(&engine->events, &node->queue);
}

static inline void wh_link_news(struct wh_link *link, enum wh_event_kind kind, struct wh_event_node *node)
{
	if (!(link->news & WH_BIT(kind))) {
		link->news |= WH_BIT(kind);
		link->engine->n_events++;
	}
	wh_engine_queue_node(link->engine, node);
}

static inline void wh_link_want(struct wh_link *link, uint32_t bits)
{
	link->wanted |= bits;
	if (!wh_list_linked(&link->todo))
		wh_list_append(&link->engine->todo, &link->todo);
}

/* The end of a turn. Whoever found woken set had stored before what the loop will look at after this. */
static inline void wh_engine_unring(struct wh_engine *engine)
{
	if (wh_likely(!atomic_load_explicit(&engine->woken, memory_order_relaxed)))
		return;
	atomic_exchange(&engine->woken, false);
	engine->n_wakes++;
}

static inline bool wh_link_receives(const struct wh_link *link)
{
	return (link->state & (RECEIVING | ENDED | DETACHING)) == RECEIVING;
}

static inline void wh_link_want_receive(struct wh_link *link)
{
	if (wh_link_receives(link) && !(link->armed & WH_BIT(REQUEST_RECEIVE)) && !wh_list_linked(&link->wait))
		wh_link_want(link, WH_BIT(REQUEST_RECEIVE));
}

/* Each connection that is asked for has its place from the start: what comes is never one too many. */
static inline void wh_link_want_accept(struct wh_link *link)
{
	if (link->state & ACCEPTING && link->accepts->armed + link->accepts->n < WH_ACCEPTS_MAX)
		wh_link_want(link, WH_BIT(REQUEST_ACCEPT));
}

static inline void wh_link_sent(struct wh_link *link, int result)
{
	link->tx = NULL;
	link->sent_result = result;
	wh_link_news(link, WH_EVENT_SENT, &link->early);
}

/*
 * Makes an engine of `bytes`, of which struct wh_engine is the first member: zeroed, with buffers, which it has yet to
 * give, and a wake_fd. 0; -ENOMEM, -EMFILE, -ENFILE.
 */
int wh_engine_new(size_t bytes, const struct wh_engine_config *config, const struct wh_engine_ops *ops,
	struct wh_engine **ret_engine);
void wh_engine_free(struct wh_engine *engine, bool keep_buffers);
/* Memory of this process alone: what the kernel writes to must not become a child's copy on write. */
int wh_engine_map(size_t bytes, void **ret_memory);
void wh_engine_close_fd(int *fd);
/* Rings an eventfd. Async-signal-safe. */
int wh_ring_bell(int fd);
int64_t wh_engine_clock(void);
/* The end of a sleep of deadline_ns, which is not negative, that begins now. */
int64_t wh_engine_until(int64_t deadline_ns);

const struct msghdr *wh_tx_header(struct wh_tx *tx);
/* What a call of sendmsg or its completion says: a datagram goes whole or not at all. */
static inline int wh_tx_result(const struct wh_tx *tx, ssize_t result)
{
	return result < 0 ? (int)result : (size_t)result == tx->size ? 0 : -EIO;
}

/* What arrives. */
void wh_link_frame(struct wh_link *link, uint32_t buffer, uint32_t size); /* 0: the end, or no datagram that may be */
void wh_link_receive_failed(struct wh_link *link, int error);
void wh_link_connection(struct wh_link *link, int result);
/* Reads up to n datagrams into spare buffers. */
enum wh_receive wh_link_read(struct wh_link *link, uint32_t n);

/* Closes the connections whose events were not taken. */
void wh_link_drop_accepted(struct wh_link *link);
/* Closes a link that has nothing outstanding any more. */
void wh_link_finish_detach(struct wh_link *link);

/* The engines. ret_refused: after an error, io_uring is not to be had here. */
int wh_uring_open(const struct wh_engine_config *config, struct wh_engine **ret_engine, bool *ret_refused);
int wh_epoll_open(const struct wh_engine_config *config, struct wh_engine **ret_engine);

#endif
