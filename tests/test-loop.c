/* SPDX-License-Identifier: MIT */
/* Loops: options, deadlines, waking, and living inside other loops. */
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>
#include <uv.h>

#include "apart.h"
#include "harness.h"
#include "pair.h"

static struct pair p;

static bool readable(int fd, int timeout_ms)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	return poll(&pfd, 1, timeout_ms) == 1;
}

Test(loop, bad_options_are_refused)
{
	struct wharf_loop_options o;
	wharf_loop *loop = NULL;

	WHARF_INIT(&o);
	o.rx_buffers = 3;
	cr_assert_eq(wharf_loop_new(&o, &loop), -EINVAL);
	o.rx_buffers = 0;
	o.frame_bytes_max = 100;
	cr_assert_eq(wharf_loop_new(&o, &loop), -EINVAL);
	o.frame_bytes_max = 1 << 20;
	cr_assert_eq(wharf_loop_new(&o, &loop), -EINVAL);
	o.frame_bytes_max = 0;
	o.engine = 7;
	cr_assert_eq(wharf_loop_new(&o, &loop), -EINVAL);
	o.engine = 0;
	o.flags = 1u << 31;
	cr_assert_eq(wharf_loop_new(&o, &loop), -EINVAL);
	o.flags = 0;
	o.size = 0;
	cr_assert_eq(wharf_loop_new(&o, &loop), -EINVAL);
	cr_assert_eq(wharf_loop_new(NULL, NULL), -EINVAL);
	cr_assert_null(loop);
	cr_assert_eq(wharf_loop_step(NULL, 0), -EINVAL);
}

Test(loop, making_and_freeing_leaves_nothing)
{
	struct harness_snapshot before;
	wharf_loop *loop;
	const char *leak;

	cr_assert_eq(wharf_loop_new(NULL, &loop), 0);
	wharf_loop_free(loop);
	harness_snapshot_take(&before);
	for (int i = 0; i < 10; i++) {
		cr_assert_eq(wharf_loop_new(NULL, &loop), 0);
		cr_assert_geq(wharf_loop_fd(loop), 0);
		cr_assert_eq(wharf_loop_step(loop, 0), 0);
		cr_assert_null(wharf_loop_free(loop));
	}
	leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

static struct wharf_loop_info info_of(const wharf_loop *loop)
{
	struct wharf_loop_info info;

	WHARF_INIT(&info);
	cr_assert_eq(wharf_loop_info(loop, &info), 0);
	return info;
}

Test(loop, info_counts_turns_sleeps_wakes_and_system_calls)
{
	static const uint32_t flags[] = { 0, WHARF_LOOP_UNSEEN };

	for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
		struct wharf_loop_info before, after;
		struct apart t;

		apart_open(&t, WHARF_OPT(loop, .flags = flags[i]), NULL, NULL);
		before = info_of(t.loop_a);
		cr_assert_eq(wharf_loop_step(t.loop_a, 0), 0);
		after = info_of(t.loop_a);
		cr_assert_eq(after.turns, before.turns + 1);
		cr_assert_eq(after.sleeps, before.sleeps);

		cr_assert_eq(wharf_send_bytes(t.a.port, 1, "", 1), 0);
		apart_settle(&t);
		cr_assert_eq(t.b.n_messages, 1);
		before = info_of(t.loop_a);
		cr_assert_gt(before.system_calls, after.system_calls);

		cr_assert_eq(wharf_loop_step(t.loop_a, 1000000), 0);
		after = info_of(t.loop_a);
		cr_assert_gt(after.sleeps, before.sleeps);
		cr_assert_geq(after.system_calls - before.system_calls, after.sleeps - before.sleeps);
		cr_assert_eq(after.wakes, before.wakes);

		cr_assert_eq(wharf_loop_wake(t.loop_a), 0);
		cr_assert_eq(wharf_loop_step(t.loop_a, -1), 0);
		cr_assert_eq(info_of(t.loop_a).wakes, before.wakes + 1);
		apart_free(&t);
	}
}

Test(loop, info_writes_what_its_caller_knows)
{
	struct wharf_loop_info info = { .size = offsetof(struct wharf_loop_info, sleeps), .sleeps = 77 };
	wharf_loop *loop;

	cr_assert_eq(wharf_loop_new(NULL, &loop), 0);
	cr_assert_eq(wharf_loop_step(loop, 0), 0);
	cr_assert_eq(wharf_loop_info(loop, &info), 0);
	cr_assert_eq(info.size, offsetof(struct wharf_loop_info, sleeps));
	cr_assert_eq(info.turns, 1);
	cr_assert_eq(info.sleeps, 77);
	info.size = 0;
	cr_assert_eq(wharf_loop_info(loop, &info), -EINVAL);
	cr_assert_eq(wharf_loop_info(loop, NULL), -EINVAL);
	cr_assert_eq(wharf_loop_info(NULL, &info), -EINVAL);
	wharf_loop_free(loop);
}

static void *step_elsewhere(void *loop)
{
	return (void *)(intptr_t)wharf_loop_step(loop, 0);
}

Test(loop, belongs_to_the_thread_that_first_steps_it)
{
	pthread_t thread;
	wharf_loop *loop;
	void *result;

	cr_assert_eq(wharf_loop_new(NULL, &loop), 0);
	cr_assert_eq(wharf_loop_step(loop, 0), 0);
	cr_assert_eq(pthread_create(&thread, NULL, step_elsewhere, loop), 0);
	pthread_join(thread, &result);
	cr_assert_eq((intptr_t)result, -EPERM);
	wharf_loop_free(loop);
}

Test(loop, run_ends_when_the_last_port_has_closed)
{
	pair_open(&p, NULL, NULL);
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	cr_assert_eq(wharf_loop_run(p.loop), 0);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.b.n_closed, 1);
	pair_free(&p);
}

static void *stop_later(void *loop)
{
	usleep(20000);
	wharf_loop_stop(loop);
	wharf_loop_unref(loop);
	return NULL;
}

Test(loop, stop_ends_a_run_from_another_thread)
{
	pthread_t thread;

	pair_open(&p, NULL, NULL);
	cr_assert_eq(pthread_create(&thread, NULL, stop_later, wharf_loop_ref(p.loop)), 0);
	cr_assert_eq(wharf_loop_run(p.loop), 0);
	cr_assert_eq(p.a.n_closed, 0);
	pthread_join(thread, NULL);
	pair_free(&p);
}

static wharf_loop *signalled;

static void on_signal(int number)
{
	(void)number;
	wharf_loop_wake(signalled);
}

Test(loop, wakes_from_a_signal_handler)
{
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

	cr_assert_eq(wharf_loop_new(NULL, &signalled), 0);
	sigaction(SIGALRM, &action, NULL);
	ualarm(20000, 0);
	cr_assert_eq(wharf_loop_step(signalled, -1), 0);
	wharf_loop_free(signalled);
}

Test(loop, its_fd_is_readable_for_a_send_made_outside_a_step)
{
	int fd;

	pair_open(&p, NULL, NULL);
	fd = wharf_loop_fd(p.loop);
	cr_assert_geq(fd, 0);
	settle(p.loop);
	cr_assert_not(readable(fd, 20), "quiet when there is nothing to do");
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), 0);
	cr_assert(readable(fd, 1000));
	for (int i = 0; i < 10 && readable(fd, 100); i++)
		cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_not(readable(fd, 20));
	pair_free(&p);
}

Test(loop, its_fd_is_readable_when_a_deadline_is_due)
{
	int fd;

	pair_open_half(&p, NULL);
	fd = wharf_loop_fd(p.loop);
	settle(p.loop);
	cr_assert_eq(wharf_port_close(p.a.port, 30000000), 0);
	for (int i = 0; i < 100 && !p.a.n_closed && readable(fd, 2000); i++)
		cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_TIMEOUT);
	pair_free(&p);
}

/* ---- Inside other loops: a peer in another process sends a hundred messages, one at a time ---- */

static void echo(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	(void)user;
	HARNESS_REQUIRE(wharf_send_bytes(port, msg->type + 1, "pong", 4) == 0);
}

static int echo_main(void *arg)
{
	static const struct wharf_port_ops ops = { .size = sizeof(ops), .on_message = echo };
	wharf_loop *loop;

	HARNESS_REQUIRE(wharf_loop_new(NULL, &loop) == 0);
	HARNESS_REQUIRE(wharf_open(loop, *(int *)arg, WHARF_OPT(port, .ops = &ops), NULL) == 0);
	HARNESS_REQUIRE(wharf_loop_run(loop) == 0);
	wharf_loop_free(loop);
	return 0;
}

static void ping(struct end *end, const struct wharf_msg *msg)
{
	if (msg->type < 100)
		cr_assert_eq(wharf_send_bytes(end->port, msg->type, "ping", 4), 0);
	else
		cr_assert_eq(wharf_port_close(end->port, -1), 0);
}

static void start_pinging(struct harness_child *child)
{
	static int fds[2];

	cr_assert_eq(wharf_pair(fds), 0);
	harness_child_start(child, echo_main, &fds[1]);
	close(fds[1]);
	p = (struct pair){ 0 };
	cr_assert_eq(wharf_loop_new(NULL, &p.loop), 0);
	p.a.pair = &p;
	p.a.on_message = ping;
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &p.a), &p.a.port), 0);
	cr_assert_eq(wharf_send_bytes(p.a.port, 0, "ping", 4), 0);
}

static void expect_pinged(struct harness_child *child)
{
	cr_assert_eq(p.a.n_closed, 1, "stuck after %zu messages", p.a.n_messages);
	cr_assert_eq(p.a.n_messages, 100);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_LOCAL);
	cr_assert_eq(harness_child_wait(child, 2000), 0);
	pair_free(&p);
}

Test(loop, lives_in_epoll)
{
	struct harness_child child;
	struct epoll_event event = { .events = EPOLLIN };
	int ep = epoll_create1(EPOLL_CLOEXEC);

	start_pinging(&child);
	cr_assert_eq(epoll_ctl(ep, EPOLL_CTL_ADD, wharf_loop_fd(p.loop), &event), 0);
	while (!p.a.n_closed) {
		int n = epoll_wait(ep, &event, 1, 2000);
		if (n < 0 && errno == EINTR)
			continue;
		cr_assert_eq(n, 1, "asleep with work to do");
		cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
	}
	close(ep);
	expect_pinged(&child);
}

Test(loop, lives_in_poll)
{
	struct harness_child child;

	start_pinging(&child);
	while (!p.a.n_closed) {
		cr_assert(readable(wharf_loop_fd(p.loop), 2000), "asleep with work to do");
		cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
	}
	expect_pinged(&child);
}

static void on_uv(uv_poll_t *handle, int status, int events)
{
	(void)events;
	cr_assert_eq(status, 0);
	cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
	if (p.a.n_closed)
		uv_stop(handle->loop);
}

static void on_uv_timeout(uv_timer_t *timer)
{
	uv_stop(timer->loop);
}

Test(loop, lives_in_libuv)
{
	struct harness_child child;
	uv_loop_t uv;
	uv_poll_t handle;
	uv_timer_t timer;

	start_pinging(&child);
	cr_assert_eq(uv_loop_init(&uv), 0);
	cr_assert_eq(uv_poll_init(&uv, &handle, wharf_loop_fd(p.loop)), 0);
	cr_assert_eq(uv_poll_start(&handle, UV_READABLE, on_uv), 0);
	uv_timer_init(&uv, &timer);
	uv_timer_start(&timer, on_uv_timeout, 5000, 0);
	uv_run(&uv, UV_RUN_DEFAULT);
	uv_close((uv_handle_t *)&handle, NULL);
	uv_close((uv_handle_t *)&timer, NULL);
	uv_run(&uv, UV_RUN_DEFAULT);
	cr_assert_eq(uv_loop_close(&uv), 0);
	expect_pinged(&child);
}

/* ---- Options that reach further ---- */

Test(loop, gives_back_all_that_it_allocates)
{
	struct wharf_loop_options o;
	int fds[2];

	WHARF_INIT(&o);
	o.alloc = counting_alloc;
	cr_assert_eq(wharf_loop_new(&o, &p.loop), -EINVAL, "alloc without free");
	o.free = counting_free;
	cr_assert_eq(wharf_loop_new(&o, &p.loop), 0);
	cr_assert_eq(wharf_pair(fds), 0);
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &p.a), &p.a.port), 0);
	cr_assert_eq(wharf_open(p.loop, fds[1], WHARF_OPT(port, .ops = &end_ops, .user = &p.b), &p.b.port), 0);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "queued", 6), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_gt(n_counted, 2);
	wharf_loop_free(p.loop);
	cr_assert_eq(n_counted, 0);
}

/* What malloc may do: bytes of somebody else's, at odd multiples of 16. */
static void *dirty_alloc(size_t bytes, void *user)
{
	unsigned char *memory = malloc(bytes + 32);
	size_t pad = (uintptr_t)memory % 32 ? 32 : 16;

	(void)user;
	cr_assert_not_null(memory);
	memset(memory, 0xa5, bytes + 32);
	memory[pad - 1] = (unsigned char)pad;
	return memory + pad;
}

static void dirty_free(void *memory, void *user)
{
	(void)user;
	if (memory)
		free((unsigned char *)memory - ((unsigned char *)memory)[-1]);
}

static void claim_and_send(struct end *end, size_t size)
{
	struct wharf_buf b;

	cr_assert_eq(wharf_buf_claim(wharf_port_pool(end->port), size, &b), 0);
	cr_assert_eq(wharf_send_buf(end->port, 1, &b), 0);
}

Test(loop, memory_that_it_is_given_may_hold_anything)
{
	const struct wharf_port_options o = { .size = sizeof(o), .ops = &end_ops, .rx_fds_max = 4, .rx_msgs_per_turn = 3 };
	struct wharf_port_options a = o, b = o;
	int fds[2];

	a.user = &p.a;
	b.user = &p.b;
	p = (struct pair){ 0 };
	cr_assert_eq(wharf_loop_new(WHARF_OPT(loop, .alloc = dirty_alloc, .free = dirty_free), &p.loop), 0);
	cr_assert_eq(wharf_pair(fds), 0);
	cr_assert_eq(wharf_open(p.loop, fds[0], &a, &p.a.port), 0);
	cr_assert_eq(wharf_open(p.loop, fds[1], &b, &p.b.port), 0);
	/* Before the hello, when they wait as they are, and after it. */
	for (int i = 0; i < 2; i++) {
		claim_and_send(&p.a, 5000);
		cr_assert_eq(wharf_send_bytes(p.a.port, 1, "bytes", 5), 0);
		cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .type = 2, .fds = (int[]){ 2 }, .n_fds = 1 }), 0);
		for (int k = 0; k < 20; k++)
			claim_and_send(&p.a, 100);
		claim_and_send(&p.b, 1 << 20);
		settle(p.loop);
	}
	cr_assert_eq(p.a.n_messages, 2, "%s", p.a.reason_text);
	cr_assert_eq(p.b.n_messages, 46, "%s", p.b.reason_text);
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	settle(p.loop);
	cr_assert_eq(p.b.reason.code, WHARF_CLOSE_PEER);
	p.loop = wharf_loop_free(p.loop);
	cr_assert_null(p.loop);
}

/* ---- Shortages ---- */

Test(loop, ends_of_peers_cost_no_buffers)
{
	static const char frame[1000];
	int fds[2], idle;

	p = (struct pair){ 0 };
	cr_assert_eq(wharf_loop_new(WHARF_OPT(loop, .rx_buffers = 2), &p.loop), 0);
	/* As ends, as frames that end a port, and as frames that nobody reads any more. */
	for (int i = 0; i < 12; i++) {
		cr_assert_eq(wharf_pair(fds), 0);
		p.a = (struct end){ .pair = &p };
		cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &p.a), &p.a.port), 0);
		if (i % 3) {
			cr_assert_eq(send(fds[1], frame, sizeof(frame), 0), sizeof(frame));
			cr_assert_eq(send(fds[1], frame, sizeof(frame), 0), sizeof(frame));
		}
		if (i % 3 == 2)
			cr_assert_eq(wharf_port_abort(p.a.port, 1), 0);
		close(fds[1]);
		settle(p.loop);
		cr_assert_eq(p.a.n_closed, 1);
	}
	cr_assert_eq(wharf_pair(fds), 0);
	p.a = p.b = (struct end){ .pair = &p };
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &p.a), &p.a.port), 0);
	cr_assert_eq(wharf_open(p.loop, fds[1], WHARF_OPT(port, .ops = &end_ops, .user = &p.b), &p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.a.n_open, 1);
	cr_assert_eq(p.b.n_open, 1);
	for (idle = 0; idle < 10; idle++) {
		cr_assert_eq(wharf_send_bytes(p.a.port, 1, "on", 2), 0);
		settle(p.loop);
	}
	cr_assert_eq(p.b.n_messages, 10);
	pair_free(&p);
}

static int without_descriptors(void *arg)
{
	struct rlimit few = { 3, 3 };
	wharf_loop *loop;

	(void)arg;
	HARNESS_REQUIRE(setrlimit(RLIMIT_NOFILE, &few) == 0);
	return wharf_loop_new(NULL, &loop) == -EMFILE ? 0 : 1;
}

Test(loop, no_descriptors_left_is_an_error)
{
	cr_assert_eq(harness_run(without_descriptors, NULL, 2000), 0);
}
