/* SPDX-License-Identifier: MIT */
/* A call that passes through one process and is answered by another, while either may be killed. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "calls.h"
#include "harness.h"

TestSuite(delegate_process, .timeout = 60);

enum { ANSWER = 1, HANG = 2 };

static int a_b[2], b_c[2];

/* ---- The process that answers ---- */

static wharf_loop *loop;

static void answer(wharf_port *port, const struct wharf_peer *peer, void *user)
{
	wharf_call_id *id = user;

	(void)peer;
	HARNESS_REQUIRE(wharf_reply(port, *id, side_text("well", 0), 0) == 0);
	HARNESS_REQUIRE(wharf_reply(port, *id, side_text("answer", WHARF_LAST), (uint32_t)getpid()) == 0);
}

static const struct wharf_port_ops answering_ops = { .size = sizeof(answering_ops), .on_open = answer };
static const struct wharf_port_ops hanging_ops = { .size = sizeof(hanging_ops) };

static void on_passed(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	static wharf_call_id id;
	wharf_port *answers;
	int fd = wharf_msg_take_fd(msg, 0);

	(void)port, (void)user;
	HARNESS_REQUIRE(msg->flags & WHARF_MSG_PORT);
	HARNESS_REQUIRE(
		wharf_open(loop, fd,
			WHARF_OPT(port, .ops = msg->type == ANSWER ? &answering_ops : &hanging_ops, .user = &id),
			&answers) == 0);
	HARNESS_REQUIRE(wharf_call_adopt(answers, WHARF_OPT(answer, .user = NULL), &id) == 0);
}

static const struct wharf_port_ops c_ops = { .size = sizeof(c_ops), .on_message = on_passed };

static int run_c(void *arg)
{
	(void)arg;
	close(a_b[0]), close(a_b[1]), close(b_c[0]);
	HARNESS_REQUIRE(wharf_loop_new(NULL, &loop) == 0);
	HARNESS_REQUIRE(wharf_open(loop, b_c[1], WHARF_OPT(port, .ops = &c_ops, .rx_fds_max = 1), NULL) == 0);
	HARNESS_REQUIRE(wharf_loop_run(loop) == 0);
	wharf_loop_free(loop);
	return 0;
}

/* ---- The process on the way ---- */

static wharf_port *to_c;

static void pass_on(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	(void)port, (void)user;
	HARNESS_REQUIRE(msg->flags & WHARF_MSG_DELEGATED);
	HARNESS_REQUIRE(wharf_port_pass(to_c, msg->type, wharf_msg_take_fd(msg, 0)) == 0);
}

static const struct wharf_port_ops b_ops = { .size = sizeof(b_ops), .on_message = pass_on };
static const struct wharf_port_ops to_c_ops = { .size = sizeof(to_c_ops) };

static int run_b(void *arg)
{
	(void)arg;
	close(a_b[0]), close(b_c[1]);
	HARNESS_REQUIRE(wharf_loop_new(NULL, &loop) == 0);
	HARNESS_REQUIRE(wharf_open(loop, a_b[1], WHARF_OPT(port, .ops = &b_ops), NULL) == 0);
	HARNESS_REQUIRE(wharf_open(loop, b_c[0], WHARF_OPT(port, .ops = &to_c_ops), &to_c) == 0);
	wharf_loop_run(loop);
	wharf_loop_free(loop);
	return 0;
}

/* ---- The caller ---- */

static struct harness_child b, c;
static struct end a;
static struct side caller;

static void begin(void)
{
	memset(&a, 0, sizeof(a));
	memset(&caller, 0, sizeof(caller));
	cr_assert_eq(wharf_pair(a_b), 0);
	cr_assert_eq(wharf_pair(b_c), 0);
	harness_child_start(&b, run_b, NULL);
	harness_child_start(&c, run_c, NULL);
	close(a_b[1]);
	close(b_c[0]);
	close(b_c[1]);
	cr_assert_eq(wharf_loop_new(NULL, &loop), 0);
	cr_assert_eq(wharf_open(loop, a_b[0], WHARF_OPT(port, .ops = &end_ops, .user = &a), &a.port), 0);
}

static void call(uint32_t type, int64_t timeout_ns)
{
	caller.port = a.port;
	cr_assert_eq(wharf_call(a.port, &(struct wharf_out){ .type = type, .flags = WHARF_LAST },
			     WHARF_OPT(call, .on_reply = side_on_message, .on_end = side_on_end, .user = &caller,
				     .delegate = 1, .timeout_ns = timeout_ns),
			     &caller.id),
		0);
}

static void end(void)
{
	cr_assert_null(wharf_loop_free(loop));
	harness_child_end(&b);
	harness_child_end(&c);
}

/* Kills it, unless it has ended with the others, and waits until that is done. */
static void kill_it(struct harness_child *child)
{
	harness_child_signal(child, SIGKILL);
	cr_assert_geq(harness_child_wait(child, 5000), 0);
}

Test(delegate_process, the_third_answers)
{
	begin();
	call(ANSWER, 0);
	settle_until(loop, &caller.n_ended, 1);
	cr_assert_eq(caller.n_messages, 2);
	cr_assert_eq(caller.end.reason, WHARF_END_LAST);
	cr_assert_eq(caller.end.status, (uint32_t)c.pid);
	end();
}

Test(delegate_process, the_third_dies)
{
	begin();
	call(HANG, 0);
	cr_assert_eq(wharf_port_close(a.port, -1), 0);
	/* B has passed it on when it says goodbye, or has died of C's death: the end is gone with both. */
	settle_until(loop, &a.n_closed, 1);
	kill_it(&c);
	settle_until(loop, &caller.n_ended, 1);
	cr_assert(caller.end.reason == WHARF_END_PEER_GONE || caller.end.reason == WHARF_END_NO_REPLY);
	cr_assert_eq(caller.end.progress, WHARF_MAYBE_SEEN);
	end();
}

Test(delegate_process, the_one_between_dies_and_the_third_answers)
{
	begin();
	/* It is on its way to C when B says so by closing. */
	call(ANSWER, 0);
	cr_assert_eq(wharf_port_close(a.port, -1), 0);
	settle_until(loop, &a.n_closed, 1);
	kill_it(&b);
	settle_until(loop, &caller.n_ended, 1);
	cr_assert(caller.end.reason == WHARF_END_LAST || caller.end.reason == WHARF_END_NO_REPLY);
	end();
}

Test(delegate_process, nobody_is_in_time)
{
	begin();
	call(HANG, 50000000);
	settle_until(loop, &caller.n_ended, 1);
	cr_assert_eq(caller.end.reason, WHARF_END_DEADLINE);
	end();
}

Test(delegate_process, both_die)
{
	begin();
	call(HANG, 0);
	settle(loop);
	kill_it(&b);
	kill_it(&c);
	settle_until(loop, &caller.n_ended, 1);
	cr_assert(caller.end.reason == WHARF_END_PEER_GONE || caller.end.reason == WHARF_END_NO_REPLY);
	settle_until(loop, &a.n_closed, 1);
	end();
}
