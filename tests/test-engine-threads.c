/* SPDX-License-Identifier: MIT */
/* The engine between threads and processes: whose ring it is, wakes, forked children. */
#include "test-engine.h"

#include <signal.h>

TestSuite(engine, .timeout = 60);

/* ---- Threads ----------------------------------------------------------------------------------------------------- */

static void *run_first_turn(void *arg)
{
	struct wh_engine *engine = arg;

	take_number(engine, 1);
	return NULL;
}

ENGINE_TEST(ring_belongs_to_the_thread_that_turns_first)
{
	struct wh_engine *engine = open_plain(rung);
	struct wh_link link;
	struct wh_event event;
	pthread_t thread;
	int r, peer = open_link(engine, &link);

	/* Here only requests, there everything else. */
	cr_assert_eq(put_number(peer, 1, 10), 0);
	cr_assert_eq(wh_engine_submit(engine), 0);
	cr_assert_eq(pthread_create(&thread, NULL, run_first_turn, engine), 0);
	cr_assert_eq(pthread_join(thread, NULL), 0);
	if (rung < 2) {
		/* Another thread's turn breaks it, for good; but its links still come away. */
		cr_assert_eq(wh_engine_turn(engine, 0), 0);
		wh_engine_want_writable(engine, &link);
		r = wh_engine_turn(engine, 0);
		cr_assert_lt(r, 0);
		cr_assert_eq(wh_engine_turn(engine, -1), r);
		cr_assert_eq(wh_engine_submit(engine), r);
	}
	wh_engine_detach(engine, &link);
	if (rung >= 2)
		cr_assert_geq(wh_engine_turn(engine, -1), 0);
	while (wh_engine_next(engine, &event) && event.kind != WH_EVENT_DETACHED)
		;
	cr_assert_eq(event.kind, WH_EVENT_DETACHED);
	close(peer);
	wh_engine_close(engine);
}

ENGINE_TEST(wake_from_another_thread_ends_a_turn)
{
	struct wh_engine *engine = open_plain(rung);

	/* It comes before or during the turn. */
	for (uint32_t i = 0; i < 200; i++)
		turn_until_woken(engine, i * 1000);
	wh_engine_close(engine);
}

ENGINE_TEST(wake_before_the_first_turn_and_during_a_dispatch_counts)
{
	struct wh_engine *engine = open_plain(rung);
	struct side side = { .n_sent = 0 };
	uint64_t n_calls;
	int fds[2];

	open_pair(fds);
	wh_engine_attach(engine, &side.link, fds[0]);
	for (int i = 0; i < 10; i++)
		cr_assert_eq(wh_engine_wake(engine), 0);
	cr_assert_eq(wh_engine_turn(engine, -1), 0);
	/* Harvested by a submit: the next turn must not sleep. */
	cr_assert_eq(wh_engine_wake(engine), 0);
	send_number(engine, &side);
	cr_assert_eq(wh_engine_submit(engine), 0);
	struct wh_event event;
	cr_assert(wh_engine_next(engine, &event));
	cr_assert_eq(wh_engine_turn(engine, -1), 0);
	/* Those ten and this one have been used up: nothing to enter the kernel for. */
	cr_assert_eq(wh_engine_turn(engine, 0), 0);
	n_calls = engine->n_calls;
	cr_assert_eq(wh_engine_turn(engine, 0), 0);
	cr_assert_leq(engine->n_calls, n_calls + looks(engine, 1));
	detach(engine, &side.link);
	close(fds[1]);
	wh_engine_close(engine);
}

static struct wh_engine *signalled;

static void wake_from_handler(int signal)
{
	(void)signal;
	wh_engine_wake(signalled);
}

ENGINE_TEST(wake_from_a_signal_handler_ends_a_turn)
{
	struct sigaction action = { .sa_handler = wake_from_handler, .sa_flags = SA_RESTART };

	signalled = open_plain(rung);
	cr_assert_eq(sigaction(SIGUSR1, &action, NULL), 0);
	for (int i = 0; i < 100; i++) {
		cr_assert_eq(raise(SIGUSR1), 0);
		cr_assert_eq(wh_engine_turn(signalled, -1), 0);
	}
	wh_engine_close(signalled);
}

ENGINE_TEST(turn_waits_no_longer_than_told)
{
	struct wh_engine *engine = open_plain(rung);
	uint64_t n_calls;

	cr_assert_eq(wh_engine_turn(engine, 1), 0);
	cr_assert_eq(wh_engine_turn(engine, 1000000), 0);
	/* And with nothing to do or to wait for, it does not trouble the kernel. */
	n_calls = engine->n_calls;
	for (int i = 0; i < 10; i++)
		cr_assert_eq(wh_engine_turn(engine, 0), 0);
	cr_assert_eq(wh_engine_submit(engine), 0);
	cr_assert_leq(engine->n_calls, n_calls + looks(engine, 10));
	wh_engine_close(engine);
}

/* ---- Forked children --------------------------------------------------------------------------------------------- */

struct family {
	struct wh_engine *engine;
	struct wh_link link;
	uint32_t rung;
	int peer;
	int tell;     /* its grandchild's pid */
};

/* A process with an armed receive, and a child of it that lives on. */
static int be_a_parent(void *arg)
{
	struct family *family = arg;
	struct wh_event event;
	int fds[2];
	pid_t pid;

	close(family->peer);
	HARNESS_REQUIRE(open_bare(family->rung, &family->engine) == 0);
	HARNESS_REQUIRE(pipe(fds) == 0);
	HARNESS_REQUIRE(wh_engine_fd(family->engine) >= 0);
	wh_engine_attach(family->engine, &family->link, family->link.fd);
	wh_engine_receive(family->engine, &family->link);
	HARNESS_REQUIRE(wh_engine_turn(family->engine, 0) == 0);
	pid = fork();
	HARNESS_REQUIRE(pid >= 0);
	if (!pid) {
		wh_link_forked(&family->link);
		wh_engine_forked(family->engine);
		HARNESS_REQUIRE(write(fds[1], "x", 1) == 1);
		for (;;)
			pause();
	}
	HARNESS_REQUIRE(read(fds[0], &event, 1) == 1);
	HARNESS_REQUIRE(write(family->tell, &pid, sizeof(pid)) == sizeof(pid));
	for (;;)
		pause();
}

ENGINE_TEST(forked_child_does_not_hide_its_parents_death)
{
	struct family family = { .rung = rung };
	struct harness_child child;
	struct timeval patience = { .tv_sec = PATIENCE_S };
	int fds[2], told[2];
	pid_t grandchild;
	ssize_t n;
	char byte;
	int error;

	wh_engine_close(open_plain(rung));
	open_pair(fds);
	cr_assert_eq(pipe(told), 0);
	family.link.fd = fds[0];
	family.peer = fds[1];
	family.tell = told[1];
	harness_child_start(&child, be_a_parent, &family);
	close(fds[0]);
	cr_assert_eq(read(told[0], &grandchild, sizeof(grandchild)), sizeof(grandchild));
	harness_child_signal(&child, SIGKILL);
	cr_assert_eq(setsockopt(fds[1], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)), 0);
	do
		n = recv(fds[1], &byte, 1, 0);
	while (n < 0 && errno == EINTR); /* the end of another ring interrupts, too */
	error = errno;
	cr_assert_eq(kill(grandchild, SIGKILL), 0, "the grandchild should outlive this");
	cr_assert_eq(n, 0, "the end is hidden: %zd, errno %d", n, error);
	cr_assert_eq(harness_child_wait(&child, 10000), 256 + SIGKILL);
	close(fds[1]);
}
