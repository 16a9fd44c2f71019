/* SPDX-License-Identifier: MIT */
/* The io_uring engine: from completions to events. */
#include "engine_uring.h"

#include <errno.h>
#include <unistd.h>

/* Per link and poll, where there is no multishot recvmsg. */
enum { SINGLE_SHOT_FRAMES = 16 };

static void frame_arrived(struct wh_engine *engine, struct wh_link *link, uint32_t index, uint32_t size)
{
	struct rx_slot *slot = &engine->slots[index];

	slot->link = link;
	slot->size = size;
	if (wh_unlikely(link->state & DETACHING)) {
		wh_uring_discard_frame(engine, index);
		return;
	}
	link->state |= FED;
	slot->node.source = FROM_SLOT;
	wh_uring_queue_node(engine, &slot->node);
	engine->n_events++;
}

static void end(struct wh_link *link, enum wh_event_kind kind, int result)
{
	if (link->state & (ENDED | DETACHING))
		return;
	link->state |= ENDED;
	link->end_result = result;
	wh_uring_queue_news(link, kind, &link->end);
}

/* An empty datagram looks like the end of the stream, save for what came along with it. */
static void empty_arrived(struct wh_engine *engine, struct wh_link *link, uint32_t index)
{
	bool bare = !wh_uring_buffer(engine, index)->controllen;

	wh_uring_discard_frame(engine, index);
	if (bare)
		end(link, WH_EVENT_EOF, link->state & RESET ? -ECONNRESET : 0);
	else
		end(link, WH_EVENT_ERROR, -EPROTO);
}

static void starve(struct wh_engine *engine, struct wh_link *link)
{
	bool fed = link->state & FED;

	engine->n_starved++;
	engine->tried_in_vain |= !fed;
	if ((link->state & (RECEIVING | DETACHING)) == RECEIVING && !wh_list_linked(&link->wait))
		wh_list_append(fed ? &engine->starved : &engine->unfed, &link->wait);
}

static void receive_failed(struct wh_engine *engine, struct wh_link *link, int error)
{
	switch (error) {
	case -ECANCELED:  /* paused, or goes on at once */
	case -EINTR:
	case -EAGAIN:
		break;
	case -ENOBUFS:
		starve(engine, link);
		break;
	case -ECONNRESET: /* the peer has gone with our frames unread: its own, and the end, are behind this */
		if (!(link->state & RESET)) {
			link->state |= RESET;
			break;
		}
		/* fall through */
	default:
		end(link, WH_EVENT_ERROR, error);
	}
}

static void receive_done(struct wh_engine *engine, struct wh_link *link, const struct io_uring_cqe *cqe)
{
	uint32_t index = cqe->flags >> IORING_CQE_BUFFER_SHIFT;

	if (cqe->flags & IORING_CQE_F_BUFFER) {
		engine->rx_lent++;
		if (wh_likely(cqe->res > RX_HEADER)) {
			frame_arrived(engine, link, index, (uint32_t)(cqe->res - RX_HEADER));
		} else if (cqe->res == RX_HEADER) {
			empty_arrived(engine, link, index);
		} else {
			engine->rx_lent--;
			wh_uring_buffer_give(engine, index);
		}
	}
	if (cqe->res < 0)
		receive_failed(engine, link, cqe->res);
	if (!(cqe->flags & IORING_CQE_F_MORE))
		wh_uring_want_receive(link);
}

/* 5.19 has no multishot recvmsg: it only says when there is something, which is read here. False: no more for now. */
static bool receive_one(struct wh_engine *engine, struct wh_link *link)
{
	struct wh_list *spare = wh_list_take_first(&engine->rx_spare);
	struct io_uring_recvmsg_out *out;
	uint32_t index;
	ssize_t size;

	if (!spare) {
		starve(engine, link);
		return false;
	}
	index = (uint32_t)(wh_container_of(spare, struct rx_slot, node.queue) - engine->slots);
	out = wh_uring_buffer(engine, index);
	struct iovec iov = { .iov_base = (unsigned char *)out + RX_HEADER, .iov_len = engine->rx_bytes - RX_HEADER };
	struct msghdr header = {
		.msg_control = out + 1,
		.msg_controllen = WH_CONTROL_BYTES,
		.msg_iov = &iov,
		.msg_iovlen = 1,
	};

	size = recvmsg(link->fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (size < 0) {
		int error = -errno;

		wh_uring_buffer_give(engine, index);
		receive_failed(engine, link, error);
		return error == -ECONNRESET && !(link->state & ENDED);
	}
	*out = (struct io_uring_recvmsg_out){
		.controllen = (uint32_t)header.msg_controllen,
		.payloadlen = (uint32_t)size,
		.flags = (uint32_t)header.msg_flags,
	};
	engine->rx_lent++;
	if (size)
		frame_arrived(engine, link, index, (uint32_t)size);
	else
		empty_arrived(engine, link, index);
	return size > 0;
}

static void receive_polled(struct wh_engine *engine, struct wh_link *link, int result)
{
	if (result < 0)
		receive_failed(engine, link, result);
	else if ((link->state & (RECEIVING | ENDED | DETACHING)) == RECEIVING)
		for (int n = SINGLE_SHOT_FRAMES; n && receive_one(engine, link); n--)
			;
	wh_uring_want_receive(link);
}

static void accept_done(struct wh_link *link, int result)
{
	struct wh_accepts *accepts = link->accepts;

	if (--accepts->armed)
		link->armed |= WH_BIT(REQUEST_ACCEPT);
	if (link->state & DETACHING) {
		if (result >= 0)
			close(result);
	} else if (result >= 0) {
		accepts->fds[(accepts->first + accepts->n) % WH_ACCEPTS_MAX] = result;
		accepts->n++;
		wh_uring_queue_news(link, WH_EVENT_ACCEPTED, &link->early);
	} else if (link->state & ACCEPTING) {
		/* The others may fail for the same reason: it is said once. */
		link->state &= ~(uint32_t)ACCEPTING;
		link->wanted &= ~WH_BIT(REQUEST_ACCEPT);
		accepts->error = result;
		wh_uring_queue_news(link, WH_EVENT_ACCEPT_ERROR, &link->early);
	}
}

static void own_done(struct wh_engine *engine, const struct io_uring_cqe *cqe)
{
	switch (cqe->user_data) {
	case OWN_WAKE: /* just the bell: engine->woken tells */
		if (!(cqe->flags & IORING_CQE_F_MORE))
			engine->wake_armed = false;
		if (cqe->res < 0) /* somebody closed our descriptor, or the thread of this ring has ended */
			engine->broken = cqe->res;
		break;
	case OWN_DEADLINE:
		engine->deadline_ns = INT64_MAX;
		break;
	}
}

static void complete(struct wh_engine *engine, const struct io_uring_cqe *cqe)
{
	struct wh_link *link = (struct wh_link *)(uintptr_t)(cqe->user_data & ~(uint64_t)REQUEST_MASK);
	uint32_t request = cqe->user_data & REQUEST_MASK;
	int result = cqe->res;

	if (!link) {
		own_done(engine, cqe);
		return;
	}
	if (!(cqe->flags & IORING_CQE_F_MORE))
		link->armed &= ~WH_BIT(request);
	switch (request) {
	case REQUEST_RECEIVE:
		if (engine->multishot)
			receive_done(engine, link, cqe);
		else
			receive_polled(engine, link, result);
		break;
	case REQUEST_SEND:
		/* A datagram goes whole or not at all. */
		wh_uring_sent(link, result < 0 ? result : (uint32_t)result == link->tx->size ? 0 : -EIO);
		break;
	case REQUEST_WRITABLE:
		if (!(link->state & DETACHING))
			wh_uring_queue_news(link, WH_EVENT_WRITABLE, &link->early);
		break;
	case REQUEST_WATCH:
		link->watch_result = result;
		if (!(link->state & DETACHING))
			wh_uring_queue_news(link, WH_EVENT_READABLE, &link->early);
		break;
	case REQUEST_ACCEPT:
		accept_done(link, result);
		break;
	case REQUEST_CANCEL:
		link->cancels--;
		/* It was just running, and may have gone to sleep again since. Of several, result were found. */
		if ((result < 0 || (!result && link->armed & WH_BIT(REQUEST_ACCEPT))) && wh_uring_cancels_due(link))
			wh_uring_want(link, wh_uring_cancels_due(link));
		break;
	}
	if (wh_unlikely(link->state & DETACHING) && !link->armed && !link->cancels
		&& !(link->wanted & WH_BIT(REQUEST_SEND)))
		wh_uring_finish_detach(link);
}

void wh_uring_harvest(struct wh_engine *engine)
{
	struct io_uring_cq *cq = &engine->ring.cq;
	unsigned head = *cq->khead, tail;

	while (head != (tail = io_uring_smp_load_acquire(cq->ktail))) {
		while (head != tail)
			complete(engine, &cq->cqes[head++ & cq->ring_mask]);
		io_uring_smp_store_release(cq->khead, head);
	}
}
