/* SPDX-License-Identifier: MIT */
/* The epoll engine: opening, turns, and the end. Its links are in engine_epoll_link.c. */
#include "engine_epoll.h"

#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum {
	EVENTS_MAX = 256,  /* of the kernel's, in one turn. Guessed, never tuned */
	FRAMES_MAX = 32,   /* of one link, in one turn: what a multishot receive takes */
};

/* ---- Waiting ----------------------------------------------------------------------------------------------------- */

static int wait_ms(const struct wh_epoll *epoll, struct epoll_event *events, int64_t timeout_ns)
{
	int64_t ms = timeout_ns / 1000000 + (timeout_ns % 1000000 > 0);

	return epoll_wait(epoll->fd, events, EVENTS_MAX, timeout_ns < 0 ? -1 : (int)wh_min((size_t)ms, INT32_MAX));
}

static int wait_events(struct wh_epoll *epoll, struct epoll_event *events, int64_t timeout_ns)
{
	struct timespec timeout = { .tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000 };
	int n;

	epoll->engine.n_enters++;
	epoll->engine.n_calls++;
	epoll->engine.n_sleeps += timeout_ns != 0;
	if (timeout_ns <= 0 || epoll->without_ns)
		return wait_ms(epoll, events, timeout_ns);
	n = epoll_pwait2(epoll->fd, events, EVENTS_MAX, &timeout, NULL);
	if (n >= 0 || (errno != ENOSYS && errno != EPERM))
		return n;
	/* 5.11; and filters of system calls that are older answer EPERM. Milliseconds, rounded up. */
	epoll->without_ns = true;
	return wait_ms(epoll, events, timeout_ns);
}

static void look(struct wh_epoll *epoll, int64_t timeout_ns)
{
	struct wh_engine *engine = &epoll->engine;
	struct epoll_event events[EVENTS_MAX];
	int n = wait_events(epoll, events, timeout_ns);

	engine->n_completions += n > 0 ? (uint64_t)n : 0;
	if (n < 0 && errno != EINTR)
		engine->broken = -errno; /* somebody closed our descriptor */
	epoll->found = false;
	for (int i = 0; i < n; i++) {
		if (events[i].data.ptr == &engine->wake_fd) {
			epoll->rings = false; /* just the bell: engine->woken tells */
		} else if (events[i].data.ptr == &epoll->timer_fd) {
			engine->deadline_ns = INT64_MAX;
		} else {
			wh_epoll_note(events[i].data.ptr, events[i].events);
			epoll->found = true;
		}
	}
}

/* ---- Turns ------------------------------------------------------------------------------------------------------- */

/* Those that have got some, and may have more, are behind the others next time. */
static void receive_ready(struct wh_epoll *epoll)
{
	struct wh_engine *engine = &epoll->engine;
	struct wh_list fed, *first;

	wh_list_init(&fed);
	while (engine->rx_lent < engine->rx_n && (first = wh_list_take_first(&epoll->ready))) {
		struct wh_link *link = wh_container_of(first, struct wh_link, wait);

		enum wh_receive received = wh_link_read(link, FRAMES_MAX);

		engine->n_starved += received == WH_RECEIVED_STARVED;
		if (received == WH_RECEIVED_ALL) {
			wh_epoll_arm(link, REQUEST_RECEIVE);
			epoll->n_ready--;
		} else {
			wh_list_append(&fed, first);
		}
	}
	wh_list_splice(&epoll->ready, &fed);
	engine->n_starving = engine->rx_lent < engine->rx_n ? 0 : epoll->n_ready;
}

static bool can_receive(const struct wh_epoll *epoll)
{
	return !wh_list_empty(&epoll->ready) && epoll->engine.rx_lent < epoll->engine.rx_n;
}

bool wh_epoll_pending(const struct wh_epoll *epoll)
{
	return epoll->engine.n_events || !wh_list_empty(&epoll->engine.todo) || can_receive(epoll);
}

static void start(struct wh_engine *engine) { engine->enabled = true; }

static int turn(struct wh_engine *engine, int64_t timeout_ns)
{
	struct wh_epoll *epoll = wh_epoll_of(engine);
	uint32_t n_before = engine->n_events, n_sent;

	if (wh_unlikely(wh_engine_start(engine)))
		return engine->broken;
	n_sent = wh_epoll_flush(epoll);
	/*
	 * Whoever would wait, and has nothing but what was sent just now, is told of that first: the next turn waits,
	 * and this one need not ask what there is.
	 */
	epoll->skipped = timeout_ns != 0 && !epoll->skipped && n_sent && !n_before && engine->n_events == n_sent &&
		!can_receive(epoll);
	if (!epoll->skipped) {
		if (wh_epoll_pending(epoll) || atomic_load(&engine->woken))
			timeout_ns = 0;
		look(epoll, timeout_ns);
		wh_epoll_flush(epoll);
		receive_ready(epoll);
	}
	wh_engine_unring(engine);
	return wh_unlikely(engine->broken) ? engine->broken : (int)engine->n_events;
}

static int submit(struct wh_engine *engine)
{
	/* As with a ring, which belongs to the thread that starts it: until then everything waits. */
	if (engine->enabled && !engine->broken)
		wh_epoll_flush(wh_epoll_of(engine));
	return engine->broken;
}

/* What has come since the last look only another one would show; where that found something there may be more. */
static bool busy(const struct wh_engine *engine)
{
	const struct wh_epoll *epoll = wh_epoll_of(engine);

	return engine->n_events || can_receive(epoll) || epoll->found;
}

/* ---- Life -------------------------------------------------------------------------------------------------------- */

static void close_all(struct wh_engine *engine)
{
	struct wh_epoll *epoll = wh_epoll_of(engine);

	wh_assert(!engine->n_links);
	wh_engine_close_fd(&epoll->fd);
	wh_engine_close_fd(&epoll->timer_fd);
	wh_engine_free(engine, false);
}

static void forked(struct wh_engine *engine)
{
	struct wh_epoll *epoll = wh_epoll_of(engine);

	wh_engine_close_fd(&epoll->fd);
	wh_engine_close_fd(&epoll->timer_fd);
	wh_engine_close_fd(&engine->wake_fd);
}

static void describe(const struct wh_engine *engine, struct wh_stats_loop *stats)
{
	const struct wh_epoll *epoll = wh_epoll_of(engine);

	stats->engine = WH_STATS_EPOLL;
	stats->ring_fd = epoll->fd;
	stats->event_fd = epoll->timer_fd >= 0 ? epoll->fd : -1;
}

static const struct wh_engine_ops ops = {
	.close = close_all,
	.start = start,
	.turn = turn,
	.submit = submit,
	.busy = busy,
	.give = wh_engine_spare,
	.pause = wh_epoll_pause,
	.detach = wh_epoll_detach,
	.fd = wh_epoll_fd,
	.sleep = wh_epoll_sleep,
	.rouse = wh_epoll_rouse,
	.forked = forked,
	.describe = describe,
};

int wh_epoll_add_own(struct wh_epoll *epoll, int *fd)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.ptr = fd };

	return epoll_ctl(epoll->fd, EPOLL_CTL_ADD, *fd, &event) < 0 ? -errno : 0;
}

int wh_epoll_open(const struct wh_engine_config *config, struct wh_engine **ret_engine)
{
	struct wh_engine *engine;
	struct wh_epoll *epoll;
	int error;

	error = wh_engine_new(sizeof(*epoll), config, &ops, &engine);
	if (error)
		return error;
	epoll = wh_epoll_of(engine);
	wh_list_init(&epoll->ready);
	for (uint32_t i = engine->rx_n; i; i--)
		wh_engine_spare(engine, i - 1);
	epoll->timer_fd = -1;
	epoll->fd = epoll_create1(EPOLL_CLOEXEC);
	error = epoll->fd < 0 ? -errno : wh_epoll_add_own(epoll, &engine->wake_fd);
	if (error) {
		close_all(engine);
		return error;
	}
	snprintf(engine->name, sizeof(engine->name), "epoll (io_uring: not asked for)");
	*ret_engine = engine;
	return 0;
}
