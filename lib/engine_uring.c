/* SPDX-License-Identifier: MIT */
/* The io_uring engine: requests, how they come to the ring, and turns. */
#include "engine_uring.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

/* The kernel runs 20 pieces of deferred work per enter: more per turn would delay dispatch. Guessed, never tuned. */
enum { TASK_WORK_ROUNDS = 4 };

/* msghdr of every multishot recvmsg: only its lengths matter. */
static const struct msghdr receive_header = { .msg_controllen = WH_CONTROL_BYTES };

/* ---- Requests ---------------------------------------------------------------------------------------------------- */

/*
 * They only note what is wanted: nothing can fail, the thread does not matter yet, and what is taken back at once costs
 * nothing.
 */

void wh_engine_attach(struct wh_engine *engine, struct wh_link *link, int fd)
{
	*link = (struct wh_link){
		.fd = fd,
		.engine = engine,
		.early.source = FROM_EARLY,
		.end.source = FROM_END,
	};
	wh_list_init(&link->todo);
	wh_list_init(&link->wait);
	wh_list_init(&link->early.queue);
	wh_list_init(&link->end.queue);
	engine->n_links++;
}

void wh_engine_receive(struct wh_engine *engine, struct wh_link *link)
{
	(void)engine;
	if (link->state & DETACHING)
		return;
	link->state |= RECEIVING;
	link->wanted &= ~CANCEL_BIT(REQUEST_RECEIVE);
	wh_uring_want_receive(link);
}

void wh_engine_pause(struct wh_engine *engine, struct wh_link *link)
{
	(void)engine;
	if (!(link->state & RECEIVING))
		return;
	link->state &= ~(uint32_t)RECEIVING;
	link->wanted &= ~WH_BIT(REQUEST_RECEIVE);
	wh_list_remove(&link->wait);
	if (link->armed & WH_BIT(REQUEST_RECEIVE))
		wh_uring_want(link, CANCEL_BIT(REQUEST_RECEIVE));
}

void wh_engine_send(struct wh_engine *engine, struct wh_link *link, struct wh_tx *tx)
{
	(void)engine;
	wh_assert(!link->tx && !(link->state & DETACHING));
	link->tx = tx;
	wh_uring_want(link, WH_BIT(REQUEST_SEND));
}

static void want_once(struct wh_link *link, uint32_t request, enum wh_event_kind kind)
{
	if (!((link->armed & WH_BIT(request)) | (link->news & WH_BIT(kind))) && !(link->state & DETACHING))
		wh_uring_want(link, WH_BIT(request));
}

void wh_engine_want_writable(struct wh_engine *engine, struct wh_link *link)
{
	(void)engine;
	want_once(link, REQUEST_WRITABLE, WH_EVENT_WRITABLE);
}

void wh_engine_watch(struct wh_engine *engine, struct wh_link *link)
{
	(void)engine;
	want_once(link, REQUEST_WATCH, WH_EVENT_READABLE);
}

/*
 * Several requests, not a multishot: that one would take all of the backlog at once, hundreds of descriptors, however
 * few of them there is room for.
 */
void wh_engine_accept(struct wh_engine *engine, struct wh_link *link, struct wh_accepts *accepts)
{
	(void)engine;
	if (link->state & DETACHING)
		return;
	if (!(link->state & LISTENING)) {
		*accepts = (struct wh_accepts){ 0 };
		link->accepts = accepts;
	}
	link->state |= LISTENING | ACCEPTING;
	wh_uring_want_accept(link);
}

void wh_uring_finish_detach(struct wh_link *link)
{
	wh_list_remove(&link->todo);
	wh_list_remove(&link->wait);
	if (link->fd >= 0)
		close(link->fd);
	link->fd = -1;
	wh_uring_queue_news(link, WH_EVENT_DETACHED, &link->end);
}

/* Without a ring that works there will be no completions to wait for. */
static void force_detach(struct wh_link *link, int error)
{
	link->engine->orphans |= link->armed || link->cancels;
	link->wanted = link->armed = link->cancels = 0;
	if (link->tx)
		wh_uring_sent(link, error);
	wh_uring_finish_detach(link);
}

void wh_engine_detach(struct wh_engine *engine, struct wh_link *link)
{
	if (link->state & DETACHING)
		return;
	link->state |= DETACHING;
	link->state &= ~(uint32_t)(RECEIVING | ACCEPTING);
	link->wanted &= WH_BIT(REQUEST_SEND);
	wh_list_remove(&link->wait);
	if (link->state & LISTENING)
		wh_uring_drop_accepted(link);
	if (!engine->enabled || engine->broken) {
		force_detach(link, engine->broken ? engine->broken : -ECANCELED);
		return;
	}
	link->wanted |= wh_uring_cancels_due(link);
	if (!link->wanted && !link->armed && !link->cancels) {
		wh_uring_finish_detach(link);
		return;
	}
	wh_list_append(&engine->detaching, &link->wait);
	wh_uring_want(link, link->wanted);
}

/* ---- From requests to the ring ----------------------------------------------------------------------------------- */

static void put_control(struct wh_tx *tx, int type, const void *data, size_t bytes)
{
	struct cmsghdr *cmsg = (struct cmsghdr *)(void *)(tx->control + tx->header.msg_controllen);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = type;
	cmsg->cmsg_len = CMSG_LEN(bytes);
	memcpy(CMSG_DATA(cmsg), data, bytes);
	tx->header.msg_controllen += CMSG_SPACE(bytes);
}

static const struct msghdr *build_header(struct wh_tx *tx)
{
	wh_assert(tx->size && tx->n_fds <= WH_ENGINE_FDS_MAX); /* an empty datagram would read as the end */
	tx->iov = (struct iovec){ .iov_base = (void *)(uintptr_t)tx->bytes, .iov_len = tx->size };
	tx->header = (struct msghdr){ .msg_iov = &tx->iov, .msg_iovlen = 1 };
	if (tx->credentials) {
		struct ucred self = { .pid = getpid(), .uid = geteuid(), .gid = getegid() };

		put_control(tx, SCM_CREDENTIALS, &self, sizeof(self));
	}
	if (tx->n_fds)
		put_control(tx, SCM_RIGHTS, tx->fds, tx->n_fds * sizeof(int));
	if (tx->header.msg_controllen)
		tx->header.msg_control = tx->control;
	return &tx->header;
}

static uint64_t user_data(const struct wh_link *link, uint32_t request)
{
	return (uintptr_t)link | request;
}

static void prepare(struct wh_engine *engine, struct wh_link *link, uint32_t request, struct io_uring_sqe *sqe)
{
	switch (request) {
	case REQUEST_RECEIVE:
		link->state &= ~(uint32_t)FED;
		if (engine->multishot) {
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
		io_uring_prep_sendmsg(sqe, link->fd, build_header(link->tx), MSG_DONTWAIT | MSG_NOSIGNAL);
		break;
	case REQUEST_WRITABLE:
		io_uring_prep_poll_add(sqe, link->fd, POLLOUT);
		break;
	case REQUEST_WATCH:
		io_uring_prep_poll_add(sqe, link->fd, POLLIN);
		break;
	case REQUEST_ACCEPT:
		io_uring_prep_accept(sqe, link->fd, NULL, NULL, SOCK_CLOEXEC);
		link->accepts->armed++;
		wh_uring_want_accept(link);
		break;
	}
	link->armed |= WH_BIT(request);
	io_uring_sqe_set_data64(sqe, user_data(link, request));
}

static bool issue(struct wh_engine *engine, struct wh_link *link)
{
	while (link->wanted) {
		struct io_uring_sqe *sqe = wh_uring_sqe(engine);
		uint32_t request = (uint32_t)__builtin_ctz(link->wanted);

		if (!sqe)
			return false;
		link->wanted &= ~WH_BIT(request);
		if (request < CANCEL_SHIFT) {
			prepare(engine, link, request, sqe);
		} else {
			request -= CANCEL_SHIFT;
			io_uring_prep_cancel64(sqe, user_data(link, request),
				request == REQUEST_ACCEPT ? IORING_ASYNC_CANCEL_ALL : 0);
			io_uring_sqe_set_data64(sqe, user_data(link, REQUEST_CANCEL));
			link->cancels++;
		}
	}
	return true;
}

/*
 * The longest waiting try again. Each may take one buffer, or some thirty: how many are let in follows from whether the
 * last ones all found some. With no buffer free nobody tries, and few only together with many, so there is no storm.
 */
static void feed_starved(struct wh_engine *engine)
{
	uint32_t free = engine->rx_n - engine->rx_lent;

	if (!free || (engine->n_events && free < engine->rx_n / 2))
		return;
	if (engine->tried_in_vain)
		engine->ration /= 2;
	else
		engine->ration = (uint32_t)wh_min(2 * engine->ration, engine->rx_n);
	engine->ration += !engine->ration;
	engine->tried_in_vain = false;
	for (size_t n = wh_min(engine->ration, free); n; n--) {
		struct wh_list *first = wh_list_take_first(&engine->unfed);

		if (!first)
			first = wh_list_take_first(&engine->starved);
		if (!first)
			break;
		wh_uring_want_receive(wh_container_of(first, struct wh_link, wait));
	}
}

static void arm_wake(struct wh_engine *engine)
{
	struct io_uring_sqe *sqe = wh_uring_sqe(engine);

	if (!sqe)
		return;
	/* Fires once for each write, without the counter being read. */
	io_uring_prep_poll_multishot(sqe, engine->wake_fd, POLLIN);
	io_uring_sqe_set_data64(sqe, OWN_WAKE);
	engine->wake_armed = true;
}

static void flush(struct wh_engine *engine)
{
	if (wh_unlikely(!engine->wake_armed))
		arm_wake(engine);
	if (wh_unlikely(wh_uring_hungry(engine)))
		feed_starved(engine);
	while (!wh_list_empty(&engine->todo)) {
		struct wh_link *link = wh_container_of(engine->todo.next, struct wh_link, todo);

		if (!issue(engine, link))
			return;
		wh_list_remove(&link->todo);
	}
}

/* ---- Turns ------------------------------------------------------------------------------------------------------- */

/* The owners of detaching links wait for an event that no completion will bring any more. */
static int give_up(struct wh_engine *engine)
{
	while (!wh_list_empty(&engine->detaching))
		force_detach(wh_container_of(engine->detaching.next, struct wh_link, wait), engine->broken);
	return engine->broken;
}

static bool more_to_come(const struct wh_engine *engine)
{
	return wh_uring_kernel_waits(engine) || (!engine->n_events && wh_uring_hungry(engine));
}

int wh_engine_turn(struct wh_engine *engine, int64_t timeout_ns)
{
	if (!engine->enabled && !engine->broken)
		wh_uring_enable(engine);
	if (wh_unlikely(engine->broken))
		return give_up(engine);
	wh_uring_harvest(engine); /* what came along with submissions decides whether there is a reason to wait */
	flush(engine);
	if (wh_engine_busy(engine) || atomic_load(&engine->woken) || !wh_list_empty(&engine->todo))
		timeout_ns = 0;
	if (timeout_ns != 0 || io_uring_sq_ready(&engine->ring) || wh_uring_kernel_waits(engine))
		wh_uring_enter(engine, timeout_ns, true);
	wh_uring_harvest(engine);
	for (int n = TASK_WORK_ROUNDS; n && !engine->broken && more_to_come(engine); n--) {
		flush(engine);
		wh_uring_enter(engine, 0, true);
		wh_uring_harvest(engine);
	}
	/* Whoever found it set had stored before what the loop will look at after this. */
	if (wh_unlikely(atomic_load_explicit(&engine->woken, memory_order_relaxed)))
		atomic_exchange(&engine->woken, false);
	return wh_unlikely(engine->broken) ? give_up(engine) : (int)engine->n_events;
}

int wh_engine_submit(struct wh_engine *engine)
{
	/* The ring belongs to the thread that takes the first turn: until then everything waits. */
	if (!engine->enabled && !engine->broken)
		return 0;
	if (!engine->broken) {
		flush(engine);
		if (io_uring_sq_ready(&engine->ring))
			wh_uring_enter(engine, 0, wh_uring_kernel_waits(engine));
		wh_uring_harvest(engine);
	}
	return wh_unlikely(engine->broken) ? give_up(engine) : 0;
}

bool wh_engine_busy(const struct wh_engine *engine)
{
	return engine->n_events || io_uring_cq_ready(&engine->ring) || wh_uring_kernel_waits(engine)
		|| wh_uring_hungry(engine);
}
