/* SPDX-License-Identifier: MIT */
/* Loops under a host: an honest descriptor, who may wake, stop and free them, and what freeing gives back. */
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "apart.h"
#include "guard.h"
#include "harness.h"

static struct pair p;
static struct apart q;

static bool readable(int fd, int timeout_ms)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	return poll(&pfd, 1, timeout_ms) == 1;
}

/* ---- The descriptor after a run ---- */

static void stop_the_loop(struct end *end, const struct wharf_msg *msg)
{
	(void)msg;
	wharf_loop_stop(wharf_port_loop(end->port));
}

/* Runs loop a until a message of b stops it, as a host that embeds the loop afterwards. */
static int run_once(void)
{
	int fd;

	apart_open(&q, NULL, NULL, NULL);
	fd = wharf_loop_fd(q.loop_a);
	cr_assert_geq(fd, 0);
	apart_settle(&q);
	q.a.on_message = stop_the_loop;
	cr_assert_eq(wharf_send_bytes(q.b.port, 1, "stop", 4), 0);
	cr_assert_eq(wharf_loop_flush(q.loop_b), 0);
	cr_assert_eq(wharf_loop_run(q.loop_a), 0);
	cr_assert_eq(q.a.n_messages, 1);
	return fd;
}

Test(loop_host, after_a_stopped_run_its_fd_hears_a_wake)
{
	int fd = run_once();

	cr_assert_eq(wharf_loop_wake(q.loop_a), 0);
	cr_assert(readable(fd, 1000));
	apart_free(&q);
}

Test(loop_host, after_a_stopped_run_its_fd_hears_the_peer)
{
	int fd = run_once();

	cr_assert_eq(wharf_port_abort(q.b.port, 7), 0);
	cr_assert_geq(wharf_loop_step(q.loop_b, 0), 0);
	cr_assert(readable(fd, 1000));
	apart_settle(&q);
	cr_assert_eq(q.a.reason.code, WHARF_CLOSE_PEER_ABORTED);
	apart_free(&q);
}

Test(loop_host, after_its_last_port_has_ended_a_run_its_fd_hears_a_wake)
{
	int fd;

	pair_open(&p, NULL, NULL);
	fd = wharf_loop_fd(p.loop);
	settle(p.loop);
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	cr_assert_eq(wharf_loop_run(p.loop), 0);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.b.n_closed, 1);
	cr_assert_eq(wharf_loop_wake(p.loop), 0);
	cr_assert(readable(fd, 1000));
	pair_free(&p);
}

/* ---- Calls outside a step ---- */

Test(loop_host, resuming_a_port_whose_peer_has_ended_makes_its_fd_readable)
{
	int fd, peer = pair_open_half(&p, NULL);

	fd = wharf_loop_fd(p.loop);
	settle(p.loop);
	cr_assert_eq(wharf_port_pause(p.a.port), 0);
	close(peer);
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 0, "the end waits while the port is paused");
	cr_assert_not(readable(fd, 0));
	cr_assert_eq(wharf_port_resume(p.a.port), 0);
	cr_assert(readable(fd, 1000));
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1);
	pair_free(&p);
}

Test(loop_host, a_flush_sends_what_would_wait_for_the_next_step)
{
	int fd;

	apart_open(&q, NULL, NULL, NULL);
	fd = wharf_loop_fd(q.loop_a);
	apart_settle(&q);
	for (unsigned i = 1; i <= 3; i++) {
		cr_assert_eq(wharf_send_bytes(q.a.port, i, "x", 1), 0);
		cr_assert(readable(fd, 0), "a send that was not flushed, round %u", i);
		cr_assert_eq(wharf_loop_flush(q.loop_a), 0);
		settle(q.loop_b);
		cr_assert_eq(q.b.n_messages, i, "it left without a step of its loop");
		apart_settle(&q);
		cr_assert_not(readable(fd, 0), "round %u", i);
	}
	apart_free(&q);
}

static void *step_elsewhere(void *loop) { return (void *)(intptr_t)wharf_loop_step(loop, 0); }

/* Of a loop that was never stepped: the hello leaves, and what was queued behind it follows on the peer's. */
static void flush_first(bool embedded)
{
	pthread_t thread;
	void *error;

	apart_half(&q, NULL, NULL);
	cr_assert_eq(apart_peer_loop(NULL, &q.loop_b), 0);
	apart_end(q.loop_b, q.fds[1], &q.b, NULL);
	cr_assert(!embedded || wharf_loop_fd(q.loop_a) >= 0);
	cr_assert_eq(wharf_send_bytes(q.a.port, 1, "x", 1), 0);
	cr_assert_eq(wharf_loop_wake(q.loop_a), 0);
	cr_assert_eq(wharf_loop_flush(q.loop_a), 0);
	settle(q.loop_b);
	cr_assert_eq(q.b.n_open, 1, "the hello left");
	cr_assert_eq(q.a.n_open, 0, "without callbacks");
	cr_assert_eq(pthread_create(&thread, NULL, step_elsewhere, q.loop_a), 0);
	cr_assert_eq(pthread_join(thread, &error), 0);
	cr_assert_eq((intptr_t)error, -EPERM, "the loop is this thread's");
	apart_settle(&q);
	cr_assert_eq(q.b.n_messages, 1);
	apart_free(&q);
}

Test(loop_host, a_flush_before_the_first_step_sends)
{
	flush_first(false);
	flush_first(true);
}

Test(loop_host, a_flush_before_the_first_step_leaves_a_wake_to_it)
{
	cr_assert_eq(wharf_loop_new(NULL, &q.loop_a), 0);
	cr_assert_eq(wharf_loop_wake(q.loop_a), 0);
	cr_assert_eq(wharf_loop_flush(q.loop_a), 0);
	cr_assert_eq(wharf_loop_step(q.loop_a, -1), 0, "or it never returns");
	wharf_loop_free(q.loop_a);
}

Test(loop_host, after_a_flush_its_fd_hears_the_answer)
{
	int fd;

	apart_open(&q, NULL, NULL, NULL);
	fd = wharf_loop_fd(q.loop_a);
	apart_settle(&q);
	cr_assert_eq(wharf_send_bytes(q.a.port, 1, "?", 1), 0);
	cr_assert_eq(wharf_loop_flush(q.loop_a), 0);
	settle(q.loop_b);
	cr_assert_eq(wharf_send_bytes(q.b.port, 2, "!", 1), 0);
	cr_assert_eq(wharf_loop_flush(q.loop_b), 0);
	cr_assert(readable(fd, 1000));
	settle(q.loop_a);
	cr_assert_eq(q.a.n_messages, 1);
	apart_free(&q);
}

/* ---- Waking out of the spin ---- */

enum { SPIN_CALLS = 100 }; /* only a loop that spins asks for the time that often */

static wharf_loop *spinning;
static void (*amid_the_spin)(void);
static unsigned n_asked;

/* Time as it is, asked for often enough to be sure that the loop spins: like a signal that arrives then. */
static uint64_t ask_the_time(void *user)
{
	struct timespec t;

	(void)user;
	if (amid_the_spin && ++n_asked == SPIN_CALLS)
		amid_the_spin();
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void wake_it(void)
{
	wharf_loop_wake(spinning);
}

static void stop_it(void)
{
	wharf_loop_stop(spinning);
}

/* Long enough for that many looks, and far from the time-out of the test. */
static const struct wharf_loop_options spins = {
	.size = sizeof(spins),
	.spin_ns = 300000000,
	.clock_ns = ask_the_time,
};

Test(loop_host, a_wake_that_comes_while_it_spins_ends_the_step, .timeout = 5)
{
	cr_assert_eq(wharf_loop_new(&spins, &spinning), 0);
	amid_the_spin = wake_it;
	cr_assert_eq(wharf_loop_step(spinning, -1), 0);
	cr_assert_geq(n_asked, SPIN_CALLS);
	wharf_loop_free(spinning);
}

Test(loop_host, a_stop_that_comes_while_it_spins_ends_the_run, .timeout = 5)
{
	apart_half(&q, &spins, NULL);
	settle(q.loop_a);
	spinning = q.loop_a;
	amid_the_spin = stop_it;
	cr_assert_eq(wharf_loop_run(q.loop_a), 0);
	cr_assert_geq(n_asked, SPIN_CALLS);
	cr_assert_eq(q.a.n_closed, 0);
	close(q.fds[1]);
	apart_free(&q);
}

/* ---- Freeing ---- */

static void *open_a_pair(void *unused)
{
	(void)unused;
	pair_open(&p, NULL, NULL);
	return NULL;
}

Test(loop_host, another_thread_frees_it_once_its_own_has_ended, .timeout = 5)
{
	struct harness_snapshot before;
	const char *leak;
	pthread_t thread;

	/* The process's own pages are made once. */
	pair_open(&p, NULL, NULL);
	pair_free(&p);
	harness_snapshot_take(&before);
	cr_assert_eq(pthread_create(&thread, NULL, open_a_pair, NULL), 0);
	pthread_join(thread, NULL);
	pair_free(&p);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.b.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_LOOP_FREED);
	leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

static int reopened[2] = { -1, -1 };

static void reconnect(struct end *end)
{
	wharf_loop *loop = wharf_port_loop(end->port);
	wharf_port *port = NULL;

	cr_assert_eq(wharf_pair(reopened), 0);
	cr_assert_eq(wharf_open(loop, reopened[0], WHARF_OPT(port, .ops = &end_ops), &port), -EPIPE);
	cr_assert_null(port);
}

Test(loop_host, an_on_close_that_reconnects_while_it_is_freed_is_refused, .timeout = 5)
{
	int peer = pair_open_half(&p, NULL);

	p.a.on_close = reconnect;
	pair_free(&p);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(close(reopened[0]), 0, "it stays the caller's");
	close(reopened[1]);
	close(peer);
}

/* ---- What it allocates ---- */

static const struct wharf_loop_options counts = {
	.size = sizeof(counts),
	.alloc = counting_alloc,
	.free = counting_free,
};

Test(loop_host, a_frame_that_left_before_the_first_step_is_given_back)
{
	apart_half(&q, &counts, NULL);
	cr_assert_eq(wharf_loop_flush(q.loop_a), 0);
	apart_free(&q);
	cr_assert_eq(n_counted, 0, "%zu pieces are left", n_counted);
	close(q.fds[1]);
}

Test(loop_host, a_frame_that_the_socket_has_no_room_for_is_given_back)
{
	static const char bytes[1000];
	struct wharf_loop_options few = counts;
	struct wharf_port_stats stats;

	few.rx_buffers = 2;
	apart_open(&q, &few, NULL, NULL);
	cr_assert_eq(setsockopt(q.fds[0], SOL_SOCKET, SO_SNDBUF, &(int){ 4608 }, sizeof(int)), 0);
	WHARF_INIT(&stats);
	for (int i = 0; !stats.tx_socket_full; i++) {
		cr_assert_lt(i, 40, "the socket never fills");
		cr_assert_eq(wharf_send_bytes(q.a.port, 1, bytes, sizeof(bytes)), 0);
		settle(q.loop_a);
		cr_assert_eq(wharf_port_stats(q.a.port, &stats), 0);
	}
	apart_free(&q);
	cr_assert_eq(q.a.reason.unsent_messages, 1);
	cr_assert_eq(n_counted, 0, "%zu pieces are left", n_counted);
}

static struct wharf_msg *taken;

static void take(struct end *end, const struct wharf_msg *msg)
{
	(void)end;
	taken = wharf_msg_take(msg);
	cr_assert_not_null(taken);
}

Test(loop_host, what_a_closed_port_says_when_its_messages_are_released_is_given_back)
{
	struct wharf_port_options o;
	struct wharf_buf buf;
	wharf_pool *pool;

	WHARF_INIT(&o);
	cr_assert_eq(wharf_pool_new(WHARF_OPT(pool, .shared = 1), &pool), 0);
	o.pool = pool;
	apart_open(&q, &counts, NULL, &o);
	q.a.on_message = take;
	cr_assert_eq(wharf_buf_claim(pool, 1000, &buf), 0);
	cr_assert_eq(wharf_send_buf(q.b.port, 1, &buf), 0);
	apart_settle(&q);
	cr_assert_eq(wharf_port_close(q.a.port, -1), 0);
	apart_settle(&q);
	cr_assert_eq(q.a.n_closed, 1);
	wharf_msg_release(taken);
	apart_settle(&q);
	apart_free(&q);
	cr_assert_eq(n_counted, 0, "%zu pieces are left", n_counted);
	wharf_pool_unref(pool);
}

/* ---- Several of one thread ---- */

static void step_and_free_another(struct end *end, const struct wharf_msg *msg)
{
	wharf_loop *loop = wharf_port_loop(end->port), *other = end->user;

	(void)msg;
	cr_assert_eq(wh_current_loop, loop);
	cr_assert_geq(wharf_loop_step(other, 0), 0);
	cr_assert_eq(wh_current_loop, loop, "it is still this one's turn");
	wharf_loop_free(other);
	cr_assert_eq(wh_current_loop, loop);
}

Test(loop_host, a_callback_may_step_and_free_another_loop)
{
	apart_open(&q, NULL, NULL, NULL);
	q.a.on_message = step_and_free_another;
	cr_assert_eq(wharf_loop_new(NULL, (wharf_loop **)&q.a.user), 0);
	cr_assert_eq(wharf_send_bytes(q.b.port, 1, "free", 4), 0);
	cr_assert_eq(wharf_loop_flush(q.loop_b), 0);
	settle(q.loop_a);
	cr_assert_eq(q.a.n_messages, 1);
	cr_assert_eq(wh_current_loop, q.loop_a);
	apart_free(&q);
	cr_assert_null(wh_current_loop);
}
