/* SPDX-License-Identifier: MIT */
/* The io_uring engine: requests, how they come to the ring, and turns. */
#include "engine_uring.h"

#include <errno.h>
#include <poll.h>

/* The kernel runs 20 pieces of deferred work per enter: more per turn would delay dispatch. Guessed, never tuned. */
enum { TASK_WORK_ROUNDS = 4 };

/* msghdr of every multishot recvmsg: only its lengths matter. */
static const struct msghdr receive_header = { .msg_controllen = WH_CONTROL_BYTES };

/* ---- Requests that the kernel must be asked to give up ------------------------------------------------------------ */

void wh_uring_pause(struct wh_engine *engine, struct wh_link *link)
{
	(void)engine;
	if (!(link->state & RECEIVING))
		return;
	link->state &= ~(uint32_t)RECEIVING;
	link->wanted &= ~WH_BIT(REQUEST_RECEIVE);
	wh_uring_unstarve(link);
	if (link->armed & WH_BIT(REQUEST_RECEIVE))
		wh_link_want(link, CANCEL_BIT(REQUEST_RECEIVE));
}

/* Without a ring that works there will be no completions to wait for. */
static void force_detach(struct wh_link *link, int error)
{
	wh_uring_of(link->engine)->orphans |= link->armed || link->cancels;
	link->wanted = link->armed = link->cancels = 0;
	if (link->tx)
		wh_link_sent(link, error);
	wh_link_finish_detach(link);
}

void wh_uring_detach(struct wh_engine *engine, struct wh_link *link)
{
	if (link->state & DETACHING)
		return;
	link->state |= DETACHING;
	link->state &= ~(uint32_t)(RECEIVING | ACCEPTING);
	link->wanted &= WH_BIT(REQUEST_SEND);
	wh_uring_unstarve(link);
	if (link->state & LISTENING)
		wh_link_drop_accepted(link);
	if (!engine->enabled || engine->broken) {
		force_detach(link, engine->broken ? engine->broken : -ECANCELED);
		return;
	}
	link->wanted |= wh_uring_cancels_due(link);
	if (!link->wanted && !link->armed && !link->cancels) {
		wh_link_finish_detach(link);
		return;
	}
	wh_list_append(&wh_uring_of(engine)->detaching, &link->wait);
	wh_link_want(link, link->wanted);
}

/* ---- From requests to the ring ----------------------------------------------------------------------------------- */

static uint64_t user_data(const struct wh_link *link, uint32_t request)
{
	return (uintptr_t)link | request;
}

static void prepare(const struct wh_uring *uring, struct wh_link *link, uint32_t request, struct io_uring_sqe *sqe)
{
	switch (request) {
	case REQUEST_RECEIVE:
		link->state &= ~(uint32_t)FED;
		if (uring->multishot) {
			io_uring_prep_recvmsg_multishot(sqe, link->fd, (struct msghdr *)(uintptr_t)&receive_header,
				MSG_CMSG_CLOEXEC);
			sqe->flags |= IOSQE_BUFFER_SELECT;
			sqe->buf_group = RX_GROUP;
		} else {
			io_uring_prep_poll_add(sqe, link->fd, POLLIN);
		}
		break;
	case REQUEST_SEND:
		/* With DONTWAIT it ends while it is submitted, so it cannot be overtaken and needs no cancel. */
		io_uring_prep_sendmsg(sqe, link->fd, wh_tx_header(link->tx), MSG_DONTWAIT | MSG_NOSIGNAL);
		break;
	case REQUEST_WRITABLE:
		io_uring_prep_poll_add(sqe, link->fd, POLLOUT);
		break;
	case REQUEST_WATCH:
		io_uring_prep_poll_add(sqe, link->fd, POLLIN);
		break;
	case REQUEST_ACCEPT:
		/* Several, not a multishot: that one would take all of the backlog at once, hundreds of descriptors. */
		io_uring_prep_accept(sqe, link->fd, NULL, NULL, SOCK_CLOEXEC);
		link->accepts->armed++;
		wh_link_want_accept(link);
		break;
	}
	link->armed |= WH_BIT(request);
	link->engine->n_armed[request - 1]++;
	io_uring_sqe_set_data64(sqe, user_data(link, request));
}

static bool issue(struct wh_uring *uring, struct wh_link *link)
{
	while (link->wanted) {
		struct io_uring_sqe *sqe = wh_uring_sqe(uring);
		uint32_t request = (uint32_t)__builtin_ctz(link->wanted);

		if (!sqe)
			return false;
		link->wanted &= ~WH_BIT(request);
		if (request < CANCEL_SHIFT) {
			prepare(uring, link, request, sqe);
		} else {
			request -= CANCEL_SHIFT;
			io_uring_prep_cancel64(sqe, user_data(link, request),
				request == REQUEST_ACCEPT ? IORING_ASYNC_CANCEL_ALL : 0);
			io_uring_sqe_set_data64(sqe, user_data(link, REQUEST_CANCEL));
			link->cancels++;
			link->engine->n_armed[WH_ARMED_CANCEL]++;
		}
	}
	return true;
}

/*
 * The longest waiting try again. Each may take one buffer, or some thirty: how many are let in follows from whether the
 * last ones all found some. With no buffer free nobody tries, and few only together with many, so there is no storm.
 */
static void feed_starved(struct wh_uring *uring)
{
	struct wh_engine *engine = &uring->engine;
	uint32_t free = engine->rx_n - engine->rx_lent;

	if (!free || (engine->n_events && free < engine->rx_n / 2))
		return;
	if (uring->tried_in_vain)
		uring->ration /= 2;
	else
		uring->ration = (uint32_t)wh_min(2 * uring->ration, engine->rx_n);
	uring->ration += !uring->ration;
	uring->tried_in_vain = false;
	for (size_t n = wh_min(uring->ration, free); n; n--) {
		struct wh_list *from = wh_list_empty(&uring->unfed) ? &uring->starved : &uring->unfed;
		struct wh_link *link = wh_container_of(from->next, struct wh_link, wait);

		if (wh_list_empty(from))
			break;
		wh_uring_unstarve(link);
		wh_link_want_receive(link);
	}
}

static void arm_wake(struct wh_uring *uring)
{
	struct io_uring_sqe *sqe = wh_uring_sqe(uring);

	if (!sqe)
		return;
	/* Fires once for each write, without the counter being read. */
	io_uring_prep_poll_multishot(sqe, uring->engine.wake_fd, POLLIN);
	io_uring_sqe_set_data64(sqe, OWN_WAKE);
	uring->wake_armed = true;
}

static void flush(struct wh_uring *uring)
{
	struct wh_list *todo = &uring->engine.todo;

	if (wh_unlikely(!uring->wake_armed))
		arm_wake(uring);
	if (wh_unlikely(wh_uring_hungry(uring)))
		feed_starved(uring);
	while (!wh_list_empty(todo)) {
		struct wh_link *link = wh_container_of(todo->next, struct wh_link, todo);

		if (!issue(uring, link))
			return;
		wh_list_remove(&link->todo);
	}
}

/* ---- Turns ------------------------------------------------------------------------------------------------------- */

/* The owners of detaching links wait for an event that no completion will bring any more. */
static int give_up(struct wh_uring *uring)
{
	while (!wh_list_empty(&uring->detaching))
		force_detach(wh_container_of(uring->detaching.next, struct wh_link, wait), uring->engine.broken);
	return uring->engine.broken;
}

static bool more_to_come(const struct wh_uring *uring)
{
	return wh_uring_kernel_waits(uring) || (!uring->engine.n_events && wh_uring_hungry(uring));
}

int wh_uring_turn(struct wh_engine *engine, int64_t timeout_ns)
{
	struct wh_uring *uring = wh_uring_of(engine);

	if (wh_unlikely(wh_engine_start(engine)))
		return give_up(uring);
	wh_uring_harvest(uring); /* what came along with submissions decides whether there is a reason to wait */
	wh_uring_read_polled(uring);
	flush(uring);
	if (wh_uring_busy(engine) || atomic_load(&engine->woken) || !wh_list_empty(&engine->todo))
		timeout_ns = 0;
	if (timeout_ns != 0 || io_uring_sq_ready(&uring->ring) || wh_uring_kernel_waits(uring))
		wh_uring_enter(uring, timeout_ns, true);
	wh_uring_harvest(uring);
	wh_uring_read_polled(uring);
	for (int n = TASK_WORK_ROUNDS; n && !engine->broken && more_to_come(uring); n--) {
		flush(uring);
		wh_uring_enter(uring, 0, true);
		wh_uring_harvest(uring);
		wh_uring_read_polled(uring);
	}
	wh_engine_unring(engine);
	return wh_unlikely(engine->broken) ? give_up(uring) : (int)engine->n_events;
}

int wh_uring_submit(struct wh_engine *engine)
{
	struct wh_uring *uring = wh_uring_of(engine);

	/* The ring belongs to the thread that starts it: until then everything waits. */
	if (!engine->enabled && !engine->broken)
		return 0;
	if (!engine->broken) {
		flush(uring);
		if (io_uring_sq_ready(&uring->ring))
			wh_uring_enter(uring, 0, wh_uring_kernel_waits(uring));
		wh_uring_harvest(uring);
	}
	return wh_unlikely(engine->broken) ? give_up(uring) : 0;
}

bool wh_uring_busy(const struct wh_engine *engine)
{
	const struct wh_uring *uring = wh_uring_of(engine);

	return engine->n_events || io_uring_cq_ready(&uring->ring) || wh_uring_kernel_waits(uring)
		|| wh_uring_hungry(uring) || !wh_list_empty(&uring->polled);
}
