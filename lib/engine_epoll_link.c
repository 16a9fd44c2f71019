/* SPDX-License-Identifier: MIT */
/* The epoll engine: what is done with a link, and what the kernel says of it; and a host that sleeps. */
#include "engine_epoll.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

/* Asks for room only while somebody waits for it: a peer that reads would wake us with each frame. */
static uint32_t interest(const struct wh_link *link, bool watch)
{
	if (watch)
		return EPOLLIN | EPOLLONESHOT;
	return EPOLLIN | EPOLLRDHUP | EPOLLET | (link->armed & WH_BIT(REQUEST_WRITABLE) ? EPOLLOUT : 0u);
}

/* 0 or a negative errno. */
static int control(struct wh_epoll *epoll, struct wh_link *link, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = link };
	int operation = link->state & REGISTERED ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, error;

	epoll->engine.n_calls++;
	if (wh_likely(epoll_ctl(epoll->fd, operation, link->fd, &event) == 0)) {
		link->state |= REGISTERED;
		return 0;
	}
	error = -errno;
	if (error == -EBADF && fcntl(epoll->fd, F_GETFD) < 0)
		epoll->engine.broken = error;
	return error;
}

static void make_ready(struct wh_link *link)
{
	struct wh_epoll *epoll = wh_epoll_of(link->engine);

	wh_assert(!wh_list_linked(&link->wait));
	wh_list_append(&epoll->ready, &link->wait);
	epoll->n_ready++;
}

static void make_unready(struct wh_link *link)
{
	struct wh_epoll *epoll = wh_epoll_of(link->engine);

	if (!wh_list_linked(&link->wait))
		return;
	wh_list_remove(&link->wait);
	epoll->n_ready--;
	epoll->engine.n_starving = (uint32_t)wh_min(epoll->engine.n_starving, epoll->n_ready);
}

/* Nothing would ever be heard of the peer, so that is an end. */
static void deaf(struct wh_link *link, int error)
{
	if (!link->engine->broken)
		wh_link_receive_failed(link, error);
}

static void send_frame(struct wh_link *link)
{
	ssize_t n;

	link->engine->n_calls++;
	do
		n = sendmsg(link->fd, wh_tx_header(link->tx), MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	wh_link_sent(link, wh_tx_result(link->tx, n < 0 ? -errno : n));
}

static void want_frames(struct wh_epoll *epoll, struct wh_link *link)
{
	int error = link->state & REGISTERED ? 0 : control(epoll, link, interest(link, false));

	if (error)
		deaf(link, error);
	else
		make_ready(link);
}

/* The kernel looks at once, and says so if there is room already. */
static void want_room(struct wh_epoll *epoll, struct wh_link *link)
{
	int error;

	wh_epoll_arm(link, REQUEST_WRITABLE);
	error = control(epoll, link, interest(link, false));
	if (!error)
		return;
	wh_epoll_disarm(link, REQUEST_WRITABLE);
	deaf(link, error);
}

static void want_readable(struct wh_epoll *epoll, struct wh_link *link)
{
	int error;

	wh_epoll_arm(link, REQUEST_WATCH);
	error = control(epoll, link, interest(link, true));
	if (!error)
		return;
	wh_epoll_disarm(link, REQUEST_WATCH);
	link->watch_result = error;
	wh_link_news(link, WH_EVENT_READABLE, &link->early);
}

static int prepare_listener(struct wh_epoll *epoll, struct wh_link *link)
{
	int flags;

	if (link->state & REGISTERED)
		return 0;
	/* There is no accept that does not wait for a connection which somebody else has taken. */
	flags = fcntl(link->fd, F_GETFL);
	if (flags < 0 || fcntl(link->fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return -errno;
	return control(epoll, link, interest(link, false));
}

static void want_connections(struct wh_epoll *epoll, struct wh_link *link)
{
	const struct wh_accepts *accepts = link->accepts;
	int result = prepare_listener(epoll, link);

	if (result < 0)
		wh_link_connection(link, result);
	while (link->state & ACCEPTING && accepts->n < WH_ACCEPTS_MAX && !(link->armed & WH_BIT(REQUEST_ACCEPT))) {
		link->engine->n_calls++;
		result = accept4(link->fd, NULL, NULL, SOCK_CLOEXEC);
		if (result < 0)
			result = -errno;
		if (result == -EAGAIN)
			wh_epoll_arm(link, REQUEST_ACCEPT);
		else if (result != -EINTR)
			wh_link_connection(link, result);
	}
}

uint32_t wh_epoll_flush(struct wh_epoll *epoll)
{
	struct wh_list *first;
	uint32_t n_sent = 0;

	while ((first = wh_list_take_first(&epoll->engine.todo))) {
		struct wh_link *link = wh_container_of(first, struct wh_link, todo);
		uint32_t wanted = link->wanted;

		link->wanted = 0;
		if (wanted & WH_BIT(REQUEST_SEND)) {
			send_frame(link);
			n_sent++;
		}
		if (wanted & WH_BIT(REQUEST_RECEIVE))
			want_frames(epoll, link);
		if (wanted & WH_BIT(REQUEST_WRITABLE))
			want_room(epoll, link);
		if (wanted & WH_BIT(REQUEST_WATCH))
			want_readable(epoll, link);
		if (wanted & WH_BIT(REQUEST_ACCEPT))
			want_connections(epoll, link);
	}
	return n_sent;
}

void wh_epoll_note(struct wh_link *link, uint32_t events)
{
	uint32_t armed = link->armed;

	if (armed & WH_BIT(REQUEST_WATCH)) {
		wh_epoll_disarm(link, REQUEST_WATCH);
		link->watch_result = (int)events;
		wh_link_news(link, WH_EVENT_READABLE, &link->early);
		return;
	}
	if (armed & WH_BIT(REQUEST_WRITABLE) && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
		wh_epoll_disarm(link, REQUEST_WRITABLE);
		control(wh_epoll_of(link->engine), link, interest(link, false));
		wh_link_news(link, WH_EVENT_WRITABLE, &link->early);
	}
	if (!(events & ~(uint32_t)EPOLLOUT))
		return;
	wh_epoll_disarm(link, REQUEST_RECEIVE);
	wh_epoll_disarm(link, REQUEST_ACCEPT);
	wh_link_want_accept(link);
	if (wh_link_receives(link) && !wh_list_linked(&link->wait))
		make_ready(link);
}

void wh_epoll_pause(struct wh_engine *engine, struct wh_link *link)
{
	(void)engine;
	link->state &= ~(uint32_t)RECEIVING;
	link->wanted &= ~WH_BIT(REQUEST_RECEIVE);
	make_unready(link);
}

void wh_epoll_detach(struct wh_engine *engine, struct wh_link *link)
{
	struct wh_epoll *epoll = wh_epoll_of(engine);

	if (link->state & DETACHING)
		return;
	link->state |= DETACHING;
	link->state &= ~(uint32_t)(RECEIVING | ACCEPTING);
	link->wanted = 0;
	if (link->state & LISTENING)
		wh_link_drop_accepted(link);
	if (link->tx && engine->enabled && !engine->broken)
		send_frame(link);
	else if (link->tx)
		wh_link_sent(link, engine->broken ? engine->broken : -ECANCELED);
	make_unready(link);
	for (uint32_t request = REQUEST_RECEIVE; request <= REQUEST_ACCEPT; request++)
		wh_epoll_disarm(link, request);
	/* Whoever else has this socket would keep it registered, and us hearing of it. */
	if (link->state & REGISTERED) {
		engine->n_calls++;
		epoll_ctl(epoll->fd, EPOLL_CTL_DEL, link->fd, NULL);
	}
	wh_link_finish_detach(link);
}

/* ---- A host ------------------------------------------------------------------------------------------------------ */

/*
 * Its own descriptor: an epoll is readable as long as there are events that nobody took, deadlines and wakes among
 * them. So there is nothing to be done when the host sleeps or is roused, but what the kernel cannot know.
 */
int wh_epoll_fd(struct wh_engine *engine)
{
	struct wh_epoll *epoll = wh_epoll_of(engine);
	int fd, error;

	if (epoll->timer_fd >= 0)
		return epoll->fd;
	fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (fd < 0)
		return -errno;
	epoll->timer_fd = fd;
	error = wh_epoll_add_own(epoll, &epoll->timer_fd);
	if (error) {
		wh_engine_close_fd(&epoll->timer_fd);
		return error;
	}
	if (!engine->enabled) {
		epoll->rings = true;
		wh_ring_bell(engine->wake_fd);
	}
	return epoll->fd;
}

/* Only ever moved to an earlier time; a late one may fire for nothing, which costs one idle turn. */
static int arm_deadline(struct wh_epoll *epoll, int64_t deadline_ns)
{
	struct itimerspec time = {
		.it_value = { .tv_sec = deadline_ns / 1000000000, .tv_nsec = deadline_ns % 1000000000 },
	};

	if (deadline_ns >= epoll->engine.deadline_ns)
		return 0;
	epoll->engine.n_calls++;
	if (timerfd_settime(epoll->timer_fd, TFD_TIMER_ABSTIME, &time, NULL) < 0)
		return -errno;
	epoll->engine.deadline_ns = deadline_ns;
	return 0;
}

int wh_epoll_sleep(struct wh_engine *engine, int64_t deadline_ns, bool now)
{
	struct wh_epoll *epoll = wh_epoll_of(engine);
	int error = wh_engine_submit(engine);

	if (epoll->timer_fd < 0)
		return error;
	if (deadline_ns >= 0 && !error && arm_deadline(epoll, wh_engine_until(deadline_ns)) < 0)
		now = true;
	now |= !engine->enabled || error || wh_epoll_pending(epoll) || atomic_load(&engine->woken);
	if (now && !epoll->rings) {
		epoll->rings = true;
		engine->n_calls++;
		wh_ring_bell(engine->wake_fd);
	}
	return error;
}

void wh_epoll_rouse(struct wh_engine *engine) { (void)engine; }
