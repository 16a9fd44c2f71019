/* SPDX-License-Identifier: MIT */
/* The engine inside another loop: its descriptor wakes poll, epoll and libuv for everything, and for nothing else. */
#include "test-engine.h"

#include <poll.h>
#include <sys/epoll.h>
#include <uv.h>

TestSuite(engine, .timeout = 60);

enum watcher { BY_POLL, BY_EPOLL, BY_EPOLL_BEFORE, BY_LIBUV, N_WATCHERS };
static const char *const watcher_names[] = { "poll", "epoll", "epoll, added at the start", "libuv" };

struct host {
	struct wh_engine *engine;
	struct wh_link link;
	struct wh_tx tx;
	int peer;
	int fd;
	int epoll;       /* has watched since the start */
	uint32_t n_frames;
	uint32_t n_sent;
};

static bool watch_by_poll(int fd, int timeout_ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	int n;

	do
		n = poll(&p, 1, timeout_ms);
	while (n < 0 && errno == EINTR);
	return n == 1;
}

static bool watch_by_epoll(int epoll, int timeout_ms)
{
	struct epoll_event event;
	int n;

	do
		n = epoll_wait(epoll, &event, 1, timeout_ms);
	while (n < 0 && errno == EINTR);
	return n == 1;
}

static int open_epoll(int fd)
{
	struct epoll_event event = { .events = EPOLLIN };
	int epoll = epoll_create1(EPOLL_CLOEXEC);

	cr_assert_eq(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
	return epoll;
}

static void readable(uv_poll_t *poll, int status, int events)
{
	cr_assert_eq(status, 0);
	*(bool *)poll->data = events & UV_READABLE;
	uv_stop(poll->loop);
}

static void too_late(uv_timer_t *timer)
{
	uv_stop(timer->loop);
}

static bool watch_by_libuv(int fd, int timeout_ms)
{
	bool seen = false;
	uv_loop_t loop;
	uv_poll_t poll = { .data = &seen };
	uv_timer_t timer;

	uv_loop_init(&loop);
	uv_poll_init(&loop, &poll, fd);
	uv_poll_start(&poll, UV_READABLE, readable);
	uv_timer_init(&loop, &timer);
	uv_timer_start(&timer, too_late, (uint64_t)timeout_ms, 0);
	uv_run(&loop, UV_RUN_DEFAULT);
	uv_close((uv_handle_t *)&poll, NULL);
	uv_close((uv_handle_t *)&timer, NULL);
	uv_run(&loop, UV_RUN_DEFAULT);
	cr_assert_eq(uv_loop_close(&loop), 0);
	return seen;
}

static bool is_readable(struct host *host, enum watcher watcher, int timeout_ms)
{
	bool seen = false;
	int epoll;

	switch (watcher) {
	case BY_POLL:
		return watch_by_poll(host->fd, timeout_ms);
	case BY_EPOLL:
		epoll = open_epoll(host->fd);
		seen = watch_by_epoll(epoll, timeout_ms);
		close(epoll);
		break;
	case BY_EPOLL_BEFORE:
		return watch_by_epoll(host->epoll, timeout_ms);
	case BY_LIBUV:
		return watch_by_libuv(host->fd, timeout_ms);
	case N_WATCHERS:
		break;
	}
	return seen;
}

/* What a loop does when its host calls, with an application that asks for a turn after deadline_ns. */
static void step(struct host *host, int64_t deadline_ns)
{
	struct wh_event event;

	wh_engine_rouse(host->engine);
	cr_assert_geq(wh_engine_turn(host->engine, 0), 0);
	while (wh_engine_next(host->engine, &event)) {
		if (event.kind == WH_EVENT_FRAME) {
			host->n_frames++;
			wh_engine_frame_done(host->engine, &event);
		} else {
			cr_assert_eq(event.kind, WH_EVENT_SENT);
			host->n_sent++;
		}
	}
	cr_assert_eq(wh_engine_sleep(host->engine, deadline_ns, false), 0);
}

static void host_open(struct host *host, uint32_t rung)
{
	*host = (struct host){ .engine = open_plain(rung) };
	host->peer = open_link(host->engine, &host->link);
	host->fd = wh_engine_fd(host->engine);
	cr_assert_geq(host->fd, 0);
	cr_assert_eq(wh_engine_fd(host->engine), host->fd);
	host->epoll = open_epoll(host->fd);
}

static void host_close(struct host *host)
{
	struct wh_event event;

	wh_engine_rouse(host->engine);
	wh_engine_detach(host->engine, &host->link);
	do
		cr_assert(next_event(host->engine, &event));
	while (event.kind != WH_EVENT_DETACHED);
	close(host->peer);
	close(host->epoll);
	wh_engine_close(host->engine);
}

/* Until nothing is left to do: a level-triggered descriptor must then be quiet. */
static void settle(struct host *host)
{
	for (int i = 0; i < 100 && watch_by_poll(host->fd, 0); i++)
		step(host, -1);
	for (int i = 0; i < 100; i++) {
		cr_assert(!watch_by_poll(host->fd, 0), "spurious");
		cr_assert(!watch_by_epoll(host->epoll, 0), "spurious");
	}
}

static void expect(struct host *host, enum watcher watcher)
{
	cr_assert(is_readable(host, watcher, PATIENCE_S * 1000), "%s was not woken", watcher_names[watcher]);
	cr_assert(is_readable(host, watcher, 0), "%s: not level-triggered", watcher_names[watcher]);
}

ENGINE_TEST(host_is_asked_for_the_first_turn)
{
	struct host host;

	host_open(&host, rung);
	expect(&host, BY_POLL);
	/* Requests outside a step, before there was one. */
	cr_assert_eq(wh_engine_sleep(host.engine, -1, true), 0);
	expect(&host, BY_EPOLL_BEFORE);
	step(&host, -1);
	settle(&host);
	host_close(&host);
}

ENGINE_TEST(host_is_woken_by_a_frame_that_comes_while_it_sleeps)
{
	struct host host;

	host_open(&host, rung);
	step(&host, -1);
	for (enum watcher watcher = 0; watcher < N_WATCHERS; watcher++) {
		settle(&host);
		cr_assert_eq(put_number(host.peer, watcher, 10), 0);
		expect(&host, watcher);
		step(&host, -1);
		cr_assert_eq(host.n_frames, watcher + 1);
	}
	settle(&host);
	host_close(&host);
}

static void *put_from_thread(void *arg)
{
	struct host *host = arg;

	cr_assert_eq(put_number(host->peer, 0, 10), 0);
	return NULL;
}

ENGINE_TEST(host_is_woken_by_a_frame_from_another_thread)
{
	enum { ROUNDS = 200 };
	struct host host;
	pthread_t thread;

	host_open(&host, rung);
	step(&host, -1);
	/* It comes before, during or after the host falls asleep. */
	for (uint32_t i = 0; i < ROUNDS; i++) {
		cr_assert_eq(pthread_create(&thread, NULL, put_from_thread, &host), 0);
		while (host.n_frames <= i) {
			cr_assert(is_readable(&host, i % N_WATCHERS, PATIENCE_S * 1000), "lost by %s",
				watcher_names[i % N_WATCHERS]);
			step(&host, -1);
		}
		cr_assert_eq(pthread_join(thread, NULL), 0);
	}
	settle(&host);
	cr_assert_eq(host.n_frames, ROUNDS);
	host_close(&host);
}

ENGINE_TEST(host_is_woken_by_what_came_before_it_slept)
{
	struct host host;

	host_open(&host, rung);
	step(&host, -1);
	for (enum watcher watcher = 0; watcher < N_WATCHERS; watcher++) {
		settle(&host);
		wh_engine_rouse(host.engine);
		cr_assert_eq(wh_engine_turn(host.engine, 0), 0);
		cr_assert_eq(put_number(host.peer, watcher, 10), 0);
		/* An epoll is readable whenever it has something; an eventfd costs something each time it is told. */
		cr_assert(is_epoll(host.engine) || !is_readable(&host, BY_POLL, 0), "roused, yet events touch it");
		cr_assert_eq(wh_engine_sleep(host.engine, -1, false), 0);
		expect(&host, watcher);
		step(&host, -1);
		cr_assert_eq(host.n_frames, watcher + 1);
	}
	/* Events that the loop leaves in the queue count, too. */
	settle(&host);
	cr_assert_eq(put_number(host.peer, 1, 10), 0);
	expect(&host, BY_EPOLL_BEFORE);
	wh_engine_rouse(host.engine);
	cr_assert_eq(wh_engine_turn(host.engine, 0), 1);
	cr_assert_eq(wh_engine_sleep(host.engine, -1, false), 0);
	expect(&host, BY_EPOLL_BEFORE);
	host_close(&host);
}

ENGINE_TEST(host_is_woken_by_requests_that_end)
{
	struct host host;
	const uint32_t number = 3;

	host_open(&host, rung);
	step(&host, -1);
	settle(&host);
	host.tx = (struct wh_tx){ .bytes = &number, .size = sizeof(number) };
	wh_engine_send(host.engine, &host.link, &host.tx);
	cr_assert_eq(wh_engine_sleep(host.engine, -1, false), 0);
	cr_assert_null(host.link.tx);
	expect(&host, BY_EPOLL_BEFORE);
	step(&host, -1);
	cr_assert_eq(host.n_sent, 1);
	settle(&host);
	host_close(&host);
}

static void *wake(void *arg)
{
	cr_assert_eq(wh_engine_wake(arg), 0);
	return NULL;
}

ENGINE_TEST(host_is_woken_by_wake)
{
	struct host host;
	pthread_t thread;

	host_open(&host, rung);
	step(&host, -1);
	settle(&host);
	for (int i = 0; i < 100; i++) {
		enum watcher watcher = (enum watcher)(i % N_WATCHERS);

		cr_assert_eq(pthread_create(&thread, NULL, wake, host.engine), 0);
		cr_assert(is_readable(&host, watcher, PATIENCE_S * 1000), "%s was not woken", watcher_names[watcher]);
		cr_assert_eq(pthread_join(thread, NULL), 0);
		settle(&host);
	}
	host_close(&host);
}

ENGINE_TEST(wake_that_has_not_rung_yet_keeps_the_host_awake)
{
	struct host host;

	host_open(&host, rung);
	step(&host, -1);
	settle(&host);
	/* A thread stands between its two steps. */
	wh_engine_rouse(host.engine);
	cr_assert_eq(wh_engine_turn(host.engine, 0), 0);
	atomic_store(&host.engine->woken, true);
	cr_assert_eq(wh_engine_sleep(host.engine, -1, false), 0);
	expect(&host, BY_EPOLL_BEFORE);
	step(&host, -1);
	settle(&host);
	host_close(&host);
}

ENGINE_TEST(embedded_engine_can_wait_by_itself)
{
	struct host host;

	host_open(&host, rung);
	step(&host, -1);
	for (int i = 0; i < 20; i++) {
		wh_engine_rouse(host.engine);
		turn_until_woken(host.engine, 1000000);
		cr_assert_eq(wh_engine_sleep(host.engine, -1, false), 0);
	}
	settle(&host);
	host_close(&host);
}

ENGINE_TEST(host_is_woken_by_now_and_by_deadlines)
{
	struct host host;

	host_open(&host, rung);
	step(&host, -1);
	for (enum watcher watcher = 0; watcher < N_WATCHERS; watcher++) {
		settle(&host);
		cr_assert_eq(wh_engine_sleep(host.engine, -1, true), 0);
		expect(&host, watcher);
		step(&host, 2000000);
		expect(&host, watcher);
		step(&host, 0);
		expect(&host, watcher);
	}
	step(&host, INT64_MAX);
	settle(&host);
	host_close(&host);
}

ENGINE_TEST(deadline_that_comes_nearer_is_kept)
{
	enum { ROUNDS = 300 };
	struct host host;

	host_open(&host, rung);
	step(&host, -1);
	settle(&host);
	for (int i = 0; i < ROUNDS; i++) {
		cr_assert_eq(wh_engine_sleep(host.engine, 3600 * INT64_C(1000000000), false), 0);
		cr_assert_eq(wh_engine_sleep(host.engine, 50000, false), 0);
		expect(&host, i % 2 ? BY_POLL : BY_EPOLL_BEFORE);
		step(&host, -1);
	}
	settle(&host);
	/* And the distant ones did not pile up in the kernel. */
	cr_assert_eq(host.engine->deadline_ns, INT64_MAX);
	cr_assert_eq(wh_engine_sleep(host.engine, 50000, false), 0);
	cr_assert_eq(wh_engine_sleep(host.engine, 3600 * INT64_C(1000000000), false), 0);
	expect(&host, BY_POLL);
	host_close(&host);
}

ENGINE_TEST(broken_engine_does_not_let_its_host_sleep)
{
	struct host host;
	struct wh_event event;
	int broken;

	host_open(&host, rung);
	step(&host, -1);
	settle(&host);
	broken = break_engine(host.engine);
	cr_assert_eq(put_number(host.peer, 1, 10), 0);
	wh_engine_want_writable(host.engine, &host.link);
	cr_assert_eq(wh_engine_sleep(host.engine, -1, false), -EBADF);
	expect(&host, BY_EPOLL_BEFORE);
	cr_assert_eq(wh_engine_turn(host.engine, -1), -EBADF);
	wh_engine_detach(host.engine, &host.link);
	while (wh_engine_next(host.engine, &event) && event.kind != WH_EVENT_DETACHED)
		;
	cr_assert_eq(event.kind, WH_EVENT_DETACHED);
	close(host.peer);
	close(host.epoll);
	repair_engine(host.engine, broken);
	wh_engine_close(host.engine);
}
