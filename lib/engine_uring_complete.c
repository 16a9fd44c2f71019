/* SPDX-License-Identifier: MIT */
/* The io_uring engine: from completions to events. */
#include "engine_uring.h"

#include <errno.h>

/* Per link and poll, where there is no multishot recvmsg. */
enum { SINGLE_SHOT_FRAMES = 16 };

static void starve(struct wh_link *link)
{
	struct wh_uring *uring = wh_uring_of(link->engine);
	bool fed = link->state & FED;

	link->engine->n_starved++;
	uring->tried_in_vain |= !fed;
	if ((link->state & (RECEIVING | DETACHING)) == RECEIVING && !wh_list_linked(&link->wait)) {
		wh_list_append(fed ? &uring->starved : &uring->unfed, &link->wait);
		link->state |= STARVING;
		link->engine->n_starving++;
	}
}

static void receive_failed(struct wh_link *link, int error)
{
	if (error == -ENOBUFS)
		starve(link);
	else
		wh_link_receive_failed(link, error);
}

static void receive_done(struct wh_link *link, const struct io_uring_cqe *cqe)
{
	uint32_t index = cqe->flags >> IORING_CQE_BUFFER_SHIFT;

	if (cqe->flags & IORING_CQE_F_BUFFER) {
		if (wh_likely(cqe->res > RX_HEADER))
			link->state |= FED;
		if (wh_likely(cqe->res >= RX_HEADER))
			wh_link_frame(link, index, (uint32_t)(cqe->res - RX_HEADER));
		else
			wh_uring_give(link->engine, index);
	}
	if (cqe->res < 0)
		receive_failed(link, cqe->res);
	if (!(cqe->flags & IORING_CQE_F_MORE))
		wh_link_want_receive(link);
}

/* 5.19 has no multishot recvmsg: it only says when there is something. */
static void receive_polled(struct wh_link *link, int result)
{
	if (result < 0)
		receive_failed(link, result);
	else if (wh_link_receives(link))
		wh_list_append(&wh_uring_of(link->engine)->polled, &link->wait);
	wh_link_want_receive(link);
}

void wh_uring_read_polled(struct wh_uring *uring)
{
	struct wh_list *first;

	while ((first = wh_list_take_first(&uring->polled))) {
		struct wh_link *link = wh_container_of(first, struct wh_link, wait);
		uint32_t n_lent = uring->engine.rx_lent;
		enum wh_receive received = wh_link_read(link, SINGLE_SHOT_FRAMES);

		if (uring->engine.rx_lent > n_lent)
			link->state |= FED;
		if (received == WH_RECEIVED_STARVED)
			starve(link);
		wh_link_want_receive(link);
	}
}

static void accept_done(struct wh_link *link, int result)
{
	if (--link->accepts->armed)
		link->armed |= WH_BIT(REQUEST_ACCEPT);
	wh_link_connection(link, result);
}

static void own_done(struct wh_uring *uring, const struct io_uring_cqe *cqe)
{
	switch (cqe->user_data) {
	case OWN_WAKE: /* just the bell: engine->woken tells */
		if (!(cqe->flags & IORING_CQE_F_MORE))
			uring->wake_armed = false;
		if (cqe->res < 0) /* somebody closed our descriptor, or the thread of this ring has ended */
			uring->engine.broken = cqe->res;
		break;
	case OWN_DEADLINE:
		uring->engine.deadline_ns = INT64_MAX;
		break;
	}
}

static void complete(struct wh_uring *uring, const struct io_uring_cqe *cqe)
{
	struct wh_link *link = (struct wh_link *)(uintptr_t)(cqe->user_data & ~(uint64_t)REQUEST_MASK);
	uint32_t request = cqe->user_data & REQUEST_MASK;
	int result = cqe->res;

	if (!link) {
		own_done(uring, cqe);
		return;
	}
	if (!(cqe->flags & IORING_CQE_F_MORE)) {
		link->armed &= ~WH_BIT(request);
		link->engine->n_armed[request - 1]--;
	}
	switch (request) {
	case REQUEST_RECEIVE:
		if (uring->multishot)
			receive_done(link, cqe);
		else
			receive_polled(link, result);
		break;
	case REQUEST_SEND:
		wh_link_sent(link, wh_tx_result(link->tx, result));
		break;
	case REQUEST_WRITABLE:
		if (!(link->state & DETACHING))
			wh_link_news(link, WH_EVENT_WRITABLE, &link->early);
		break;
	case REQUEST_WATCH:
		link->watch_result = result;
		if (!(link->state & DETACHING))
			wh_link_news(link, WH_EVENT_READABLE, &link->early);
		break;
	case REQUEST_ACCEPT:
		accept_done(link, result);
		break;
	case REQUEST_CANCEL:
		link->cancels--;
		/* It was just running, and may have gone to sleep again since. Of several, result were found. */
		if ((result < 0 || (!result && link->armed & WH_BIT(REQUEST_ACCEPT))) && wh_uring_cancels_due(link))
			wh_link_want(link, wh_uring_cancels_due(link));
		break;
	}
	if (wh_unlikely(link->state & DETACHING) && !link->armed && !link->cancels
		&& !(link->wanted & WH_BIT(REQUEST_SEND)))
		wh_link_finish_detach(link);
}

void wh_uring_harvest(struct wh_uring *uring)
{
	struct io_uring_cq *cq = &uring->ring.cq;
	unsigned head = *cq->khead, tail;

	if (wh_unlikely(IO_URING_READ_ONCE(*uring->ring.sq.kflags) & IORING_SQ_CQ_OVERFLOW))
		uring->engine.n_overflows++;
	while (head != (tail = io_uring_smp_load_acquire(cq->ktail))) {
		uring->engine.n_completions += tail - head;
		while (head != tail)
			complete(uring, &cq->cqes[head++ & cq->ring_mask]);
		io_uring_smp_store_release(cq->khead, head);
	}
}
