/* SPDX-License-Identifier: MIT */
/* How calls end: once, for one reason, behind what was said before; and what the caller may believe then. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "calls.h"
#include "harness.h"
#include "port.h"

TestSuite(call_ends, .timeout = 60);

#define SEC INT64_C(1000000000)

static struct pair p;
static struct side caller, answerer;

static void take_it(struct end *end, const struct wharf_msg *msg)
{
	if (msg->call)
		cr_assert_eq(side_take(&answerer, end->port, msg), 0);
}

static void begin(const struct wharf_port_options *a, const struct wharf_port_options *b)
{
	memset(&caller, 0, sizeof(caller));
	memset(&answerer, 0, sizeof(answerer));
	pair_open(&p, a, b);
	p.b.on_message = take_it;
}

static void call_taken(void)
{
	cr_assert_eq(side_call(&caller, p.a.port, side_text("question", WHARF_LAST), 0), 0);
	settle(p.loop);
	cr_assert_neq(answerer.id, 0);
}

/* ---- What the caller may believe ---- */

Test(call_ends, a_request_in_a_frame_may_be_seen_though_it_was_cancelled_before)
{
	begin(NULL, NULL);
	cr_assert_eq(side_call(&caller, p.a.port, side_text("question", WHARF_LAST), 0), 0);
	cr_assert_eq(wharf_call_cancel(p.a.port, caller.id), 0);
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_CANCEL);
	cr_assert_eq(p.b.n_messages, 1, "what is in a frame leaves");
	cr_assert_eq(caller.end.progress, WHARF_MAYBE_SEEN);
	cr_assert_eq(answerer.end.reason, WHARF_END_CANCEL);
	pair_free(&p);
}

Test(call_ends, a_request_that_waited_for_the_hello_is_not_seen)
{
	memset(&caller, 0, sizeof(caller));
	pair_start(&p, NULL, NULL);
	cr_assert_eq(side_call(&caller, p.a.port, side_text("question", WHARF_LAST), 0), 0);
	cr_assert_eq(wharf_call_cancel(p.a.port, caller.id), 0);
	cr_assert_eq(wharf_call_cancel(p.a.port, caller.id), -ESTALE);
	cr_assert_eq(caller.n_ended, 0);
	settle(p.loop);
	cr_assert_eq(caller.n_ended, 1);
	cr_assert_eq(caller.end.progress, WHARF_NOT_SEEN);
	cr_assert_eq(p.b.n_messages, 0);
	pair_free(&p);
}

Test(call_ends, a_request_that_never_left_a_dead_port_is_not_seen)
{
	begin(NULL, NULL);
	cr_assert_eq(side_call(&caller, p.a.port, side_text("question", WHARF_LAST), 0), 0);
	cr_assert_eq(wharf_port_abort(p.a.port, 5), 0);
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_CLOSED);
	cr_assert_eq(caller.end.progress, WHARF_NOT_SEEN);
	cr_assert_eq(caller.end.app_code, 5);
	cr_assert_eq(p.b.n_messages, 0);
	pair_free(&p);
}

Test(call_ends, a_request_behind_the_last_call_of_an_abort_is_not_seen)
{
	begin(NULL, NULL);
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	cr_assert_eq(side_call(&caller, p.a.port, side_text("question", WHARF_LAST), 0), 0);
	settle(p.loop);
	cr_assert_eq(wharf_port_abort(p.b.port, 9), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 0);
	cr_assert_eq(caller.end.reason, WHARF_END_CLOSED);
	cr_assert_eq(caller.end.app_code, 9);
	cr_assert_eq(caller.end.progress, WHARF_NOT_SEEN);
	pair_free(&p);
}

Test(call_ends, closing_in_good_order_answers_what_was_accepted_and_refuses_the_rest)
{
	struct side late = { 0 };

	begin(NULL, NULL);
	call_taken();
	cr_assert_eq(wharf_port_close(p.b.port, -1), 0);
	/* Before A hears of it. */
	cr_assert_eq(side_call(&late, p.a.port, side_text("late", WHARF_LAST), 0), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1, "it is not offered");
	cr_assert_eq(p.a.n_closed, 0);
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, side_text("answer", WHARF_LAST), 3), 0);
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_LAST);
	cr_assert_eq(caller.end.status, 3);
	cr_assert_eq(answerer.end.reason, WHARF_END_LAST);
	cr_assert_eq(late.n_ended, 1);
	cr_assert_eq(late.end.reason, WHARF_END_CLOSED);
	cr_assert_eq(late.end.progress, WHARF_NOT_SEEN);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER);
	cr_assert_eq(p.b.reason.code, WHARF_CLOSE_LOCAL);
	pair_free(&p);
}

Test(call_ends, closing_waits_for_the_answer_to_its_own_call)
{
	begin(NULL, NULL);
	call_taken();
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	settle(p.loop);
	cr_assert_eq(caller.n_ended, 0);
	cr_assert_eq(side_call(&caller, p.a.port, side_text("x", 0), 0), -EPIPE);
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, side_text("answer", WHARF_LAST), 0), 0);
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_LAST);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_LOCAL);
	pair_free(&p);
}

Test(call_ends, closing_gives_up_a_request_that_nobody_can_complete)
{
	begin(NULL, NULL);
	cr_assert_eq(side_call(&caller, p.a.port, side_text("question", 0), 0), 0);
	settle(p.loop);
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_CLOSED);
	cr_assert_eq(caller.end.progress, WHARF_MAYBE_SEEN);
	cr_assert_eq(answerer.end.reason, WHARF_END_CANCEL);
	cr_assert_eq(p.a.n_closed, 1);
	pair_free(&p);
}

Test(call_ends, a_peer_that_dies_is_gone)
{
	int peer;

	memset(&caller, 0, sizeof(caller));
	peer = pair_open_half(&p, NULL);
	cr_assert_eq(side_call(&caller, p.a.port, side_text("question", WHARF_LAST), 0), 0);
	settle(p.loop);
	close(peer);
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_PEER_GONE);
	cr_assert_eq(caller.end.progress, WHARF_NOT_SEEN, "it never said hello");
	pair_free(&p);
}

/* ---- Behind what was said before ---- */

static void pause_it(struct side *side, const struct wharf_msg *msg)
{
	(void)msg;
	side->on_message = NULL;
	cr_assert_eq(wharf_call_pause(side->port, side->id), 0);
}

/* The caller pauses at the first reply; then another one arrives. */
static void paused_before_a_reply(uint32_t flags, uint32_t status)
{
	begin(NULL, NULL);
	caller.on_message = pause_it;
	call_taken();
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, side_text("one", 0), 0), 0);
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, side_text("two", flags), status), 0);
	settle(p.loop);
	cr_assert_eq(caller.n_messages, 1);
}

static void refused_behind_a_reply(void)
{
	paused_before_a_reply(0, 0);
	cr_assert_eq(wharf_call_refuse(p.b.port, answerer.id, 77), 0);
	settle(p.loop);
	cr_assert_eq(answerer.end.reason, WHARF_END_REFUSED);
	cr_assert_eq(caller.n_messages, 1);
	cr_assert_eq(caller.n_ended, 0);
}

Test(call_ends, a_refusal_comes_behind_the_replies)
{
	refused_behind_a_reply();
	cr_assert_eq(wharf_call_resume(p.a.port, caller.id), 0);
	settle(p.loop);
	cr_assert_eq(caller.n_messages, 2);
	cr_assert_eq(caller.end.reason, WHARF_END_REFUSED);
	cr_assert_eq(caller.end.app_code, 77);
	cr_assert_eq(caller.end.progress, WHARF_REPLIED);
	pair_free(&p);
}

Test(call_ends, a_cancel_lets_go_of_what_a_refusal_waits_for)
{
	refused_behind_a_reply();
	cr_assert_eq(wharf_call_cancel(p.a.port, caller.id), 0);
	cr_assert_eq(wharf_call_cancel(p.a.port, caller.id), -ESTALE);
	settle(p.loop);
	cr_assert_eq(caller.n_messages, 1);
	cr_assert_eq(caller.end.reason, WHARF_END_CANCEL);
	pair_free(&p);
}

static uint64_t now_ns;
static uint64_t test_clock(void *user)
{
	(void)user;
	return now_ns;
}

/* A pair whose loop has the test's clock. */
static void begin_with_clock(void)
{
	int fds[2];

	memset(&caller, 0, sizeof(caller));
	memset(&answerer, 0, sizeof(answerer));
	now_ns = SEC;
	p = (struct pair){ 0 };
	cr_assert_eq(wharf_loop_new(WHARF_OPT(loop, .clock_ns = test_clock), &p.loop), 0);
	cr_assert_eq(wharf_pair(fds), 0);
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &p.a), &p.a.port), 0);
	cr_assert_eq(wharf_open(p.loop, fds[1], WHARF_OPT(port, .ops = &end_ops, .user = &p.b), &p.b.port), 0);
	p.b.on_message = take_it;
	settle(p.loop);
}

Test(call_ends, a_deadline_in_the_middle_of_the_replies)
{
	begin_with_clock();
	cr_assert_eq(side_call(&caller, p.a.port, side_text("question", WHARF_LAST), 5 * SEC), 0);
	settle(p.loop);
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, side_text("one", 0), 0), 0);
	settle(p.loop);
	now_ns += 5 * SEC - 1;
	settle(p.loop);
	cr_assert_eq(caller.n_ended, 0);
	now_ns++;
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_DEADLINE);
	cr_assert_eq(caller.end.progress, WHARF_REPLIED);
	cr_assert_eq(caller.end.error, ETIMEDOUT);
	cr_assert_eq(answerer.end.reason, WHARF_END_CANCEL);
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, side_text("two", 0), 0), -ESTALE);
	cr_assert_eq(p.loop->timers.reserved, 2 * WH_PORT_TIMERS);
	pair_free(&p);
}

Test(call_ends, a_deadline_lets_go_of_what_a_refusal_waits_for)
{
	begin_with_clock();
	caller.on_message = pause_it;
	cr_assert_eq(side_call(&caller, p.a.port, side_text("question", WHARF_LAST), 5 * SEC), 0);
	settle(p.loop);
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, side_text("one", 0), 0), 0);
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, side_text("two", 0), 0), 0);
	cr_assert_eq(wharf_call_refuse(p.b.port, answerer.id, 1), 0);
	settle(p.loop);
	cr_assert_eq(caller.n_ended, 0);
	now_ns += 5 * SEC;
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_DEADLINE);
	pair_free(&p);
}

static size_t delivered_at_end;

static void note_delivered(struct side *side)
{
	(void)side;
	delivered_at_end = p.a.n_messages;
}

Test(call_ends, a_refusal_waits_for_the_replies_before_it_and_for_nothing_else)
{
	begin(WHARF_OPT(port, .rx_msgs_per_turn = 1), NULL);
	caller.on_end = note_delivered;
	call_taken();
	cr_assert_eq(wharf_port_pause(p.a.port), 0);
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, side_text("one", 0), 0), 0);
	settle(p.loop);
	cr_assert_eq(wharf_call_refuse(p.b.port, answerer.id, 1), 0);
	settle(p.loop);
	for (int i = 0; i < 5; i++) {
		cr_assert_eq(wharf_send_bytes(p.b.port, 1, "x", 1), 0);
		settle(p.loop);
	}
	cr_assert_eq(caller.n_ended, 0);
	cr_assert_eq(wharf_port_resume(p.a.port), 0);
	settle(p.loop);
	cr_assert_eq(caller.n_messages, 1);
	cr_assert_eq(caller.n_ended, 1);
	cr_assert_eq(p.a.n_messages, 5);
	cr_assert_lt(delivered_at_end, 5);
	pair_free(&p);
}

Test(call_ends, a_reply_and_its_refusal_in_one_frame_reach_a_paused_port_in_order)
{
	begin(NULL, NULL);
	call_taken();
	cr_assert_eq(wharf_port_pause(p.a.port), 0);
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, side_text("one", 0), 0), 0);
	cr_assert_eq(wharf_call_refuse(p.b.port, answerer.id, 1), 0);
	settle(p.loop);
	cr_assert_eq(caller.n_ended, 0);
	cr_assert_eq(wharf_port_resume(p.a.port), 0);
	settle(p.loop);
	cr_assert_eq(caller.n_messages, 1);
	cr_assert_eq(caller.end.reason, WHARF_END_REFUSED);
	pair_free(&p);
}

Test(call_ends, a_request_and_its_cancel_in_one_frame_are_dropped_by_a_paused_port)
{
	begin(NULL, NULL);
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	cr_assert_eq(side_call(&caller, p.a.port, side_text("question", 0), 0), 0);
	cr_assert_eq(wharf_call_cancel(p.a.port, caller.id), 0);
	settle(p.loop);
	cr_assert_eq(caller.n_ended, 1);
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 0);
	pair_free(&p);
}

Test(call_ends, a_cancel_that_crosses_the_answer)
{
	begin(NULL, NULL);
	call_taken();
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, side_text("answer", WHARF_LAST), 0), 0);
	cr_assert_eq(wharf_call_cancel(p.a.port, caller.id), 0);
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_CANCEL);
	cr_assert_eq(caller.n_messages, 0);
	cr_assert_eq(answerer.end.reason, WHARF_END_LAST);
	struct wharf_port_stats stats = { .size = sizeof(stats) };
	cr_assert_eq(wharf_port_stats(p.a.port, &stats), 0);
	cr_assert_eq(stats.rx_stray_records, 1);
	pair_free(&p);
}

/* ---- A peer that dies while the caller is paused ---- */

static void paused_when_the_peer_ends(void)
{
	paused_before_a_reply(WHARF_LAST, 8);
	cr_assert_eq(wharf_port_close(p.b.port, -1), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_closed, 1);
	cr_assert_eq(p.a.n_closed, 0);
	cr_assert_eq(caller.n_ended, 0);
}

Test(call_ends, replies_put_aside_keep_the_port)
{
	paused_when_the_peer_ends();
	cr_assert_eq(wharf_call_resume(p.a.port, caller.id), 0);
	settle(p.loop);
	cr_assert_eq(caller.n_messages, 2);
	cr_assert_eq(caller.end.reason, WHARF_END_LAST);
	cr_assert_eq(caller.end.status, 8);
	cr_assert_eq(p.a.n_closed, 1);
	pair_free(&p);
}

Test(call_ends, a_cancel_lets_go_of_the_port)
{
	paused_when_the_peer_ends();
	cr_assert_eq(wharf_call_cancel(p.a.port, caller.id), 0);
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_CANCEL);
	cr_assert_eq(p.a.n_closed, 1);
	pair_free(&p);
}

Test(call_ends, the_loop_that_is_freed_ends_calls_before_ports)
{
	begin(NULL, NULL);
	caller.on_message = pause_it;
	call_taken();
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, side_text("one", 0), 0), 0);
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, side_text("two", 0), 0), 0);
	settle(p.loop);
	pair_free(&p);
	cr_assert_eq(caller.n_ended, 1);
	cr_assert_eq(caller.end.reason, WHARF_END_CLOSED);
	cr_assert_eq(answerer.n_ended, 1);
}

/* ---- Answers of every kind ---- */

Test(call_ends, refused_is_told_with_its_code)
{
	begin(NULL, NULL);
	call_taken();
	cr_assert_eq(wharf_call_refuse(p.b.port, answerer.id, 12), 0);
	cr_assert_eq(wharf_call_refuse(p.b.port, answerer.id, 12), -ESTALE);
	cr_assert_eq(answerer.n_ended, 0, "not inside the call");
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_REFUSED);
	cr_assert_eq(caller.end.app_code, 12);
	cr_assert_eq(caller.end.progress, WHARF_MAYBE_SEEN);
	cr_assert_eq(answerer.end.reason, WHARF_END_REFUSED);
	cr_assert_eq(answerer.end.app_code, 12);
	pair_free(&p);
}

Test(call_ends, a_last_reply_drops_the_rest_of_the_request)
{
	begin(NULL, NULL);
	cr_assert_eq(side_call(&caller, p.a.port, side_text("question", 0), 0), 0);
	settle(p.loop);
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, side_text("enough", WHARF_LAST), 1), 0);
	cr_assert_eq(wharf_call_send(p.a.port, caller.id, side_text("more", 0)), 0);
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_LAST);
	cr_assert_eq(answerer.n_messages, 0);
	cr_assert_eq(wharf_call_send(p.a.port, caller.id, side_text("more", 0)), -ESTALE);
	pair_free(&p);
}

static void take_and_end(struct end *end, const struct wharf_msg *msg)
{
	take_it(end, msg);
	cr_assert_eq(wharf_call_take(end->port, msg, NULL, &(wharf_call_id){ 0 }), -EALREADY);
	cr_assert_eq(wharf_reply(end->port, answerer.id, side_text("at once", 0), 0), 0);
	cr_assert_eq(wharf_port_abort(end->port, 4), 0);
	cr_assert_eq(wharf_call_take(end->port, msg, NULL, &(wharf_call_id){ 0 }), -EPIPE);
}

Test(call_ends, a_handler_may_take_it_and_end_the_port)
{
	begin(NULL, NULL);
	p.b.on_message = take_and_end;
	cr_assert_eq(side_call(&caller, p.a.port, side_text("question", WHARF_LAST), 0), 0);
	settle(p.loop);
	cr_assert_eq(answerer.n_ended, 1);
	cr_assert_eq(answerer.end.reason, WHARF_END_CLOSED);
	cr_assert_eq(caller.end.reason, WHARF_END_CLOSED);
	cr_assert_eq(caller.end.progress, WHARF_MAYBE_SEEN);
	pair_free(&p);
}

static void abort_at_reply(struct side *side, const struct wharf_msg *msg)
{
	(void)msg;
	cr_assert_eq(wharf_port_abort(side->port, 4), 0);
}

static char large[100000];

/* Answered in full is what a call is whose last reply was delivered, whatever its handler does; and no other is. */
Test(call_ends, an_abort_in_the_last_reply_ends_the_port_and_not_the_call)
{
	for (unsigned i = 0; i < 4; i++) {
		bool last = i < 2;
		begin(NULL, NULL);
		caller.on_message = abort_at_reply;
		call_taken();
		cr_assert_eq(wharf_reply(p.b.port, answerer.id, side_bytes(large, i % 2 ? sizeof(large) : 5,
			last ? WHARF_LAST : 0), 3), 0);
		/* One frame has both, if they are small. */
		if (!last)
			cr_assert_eq(wharf_reply(p.b.port, answerer.id, side_bytes(large, 0, WHARF_LAST), 3), 0);
		settle(p.loop);
		cr_assert_eq(caller.n_messages, 1);
		cr_assert_eq(caller.n_ended, 1);
		cr_assert_eq(caller.end.reason, last ? WHARF_END_LAST : WHARF_END_CLOSED);
		cr_assert_eq(caller.end.status, last ? 3 : 0);
		cr_assert_eq(caller.end.progress, WHARF_REPLIED);
		cr_assert_eq(p.a.reason.code, WHARF_CLOSE_ABORTED);
		pair_free(&p);
	}
}

/* ---- Ids ---- */

Test(call_ends, ids_of_others_are_stale)
{
	begin(NULL, NULL);
	call_taken();
	cr_assert_eq(wharf_call_cancel(p.b.port, caller.id), -ESTALE);
	cr_assert_eq(wharf_call_cancel(p.b.port, answerer.id), -EINVAL);
	cr_assert_eq(wharf_reply(p.a.port, caller.id, side_text("x", 0), 0), -ESTALE);
	cr_assert_eq(wharf_reply(p.a.port, answerer.id, side_text("x", 0), 0), -ESTALE);
	cr_assert_eq(wharf_call_send(p.b.port, answerer.id, side_text("x", 0)), -ESTALE);
	cr_assert_eq(wharf_call_pause(p.a.port, caller.id + 65536), -ESTALE);
	cr_assert_eq(wharf_call_refuse(p.a.port, caller.id, 0), -ESTALE);
	pair_free(&p);
}

Test(call_ends, numbers_of_calls_go_round)
{
	const uint64_t last = (UINT64_C(1) << (63 - WH_CALL_INDEX_BITS)) - 3;

	begin(NULL, NULL);
	p.a.port->flows[WH_FLOW_CALL].sequence = last;
	p.b.port->flows[WH_FLOW_ANSWER].sequence = last << WH_CALL_INDEX_BITS;
	for (uint32_t i = 0; i < 8; i++) {
		struct side first;
		memset(&caller, 0, sizeof(caller));
		memset(&answerer, 0, sizeof(answerer));
		call_taken();
		first = caller;
		cr_assert_eq(wharf_reply(p.b.port, answerer.id, side_text("answer", WHARF_LAST), i), 0);
		settle(p.loop);
		cr_assert_eq(caller.end.reason, WHARF_END_LAST, "call %u", i);
		cr_assert_eq(caller.end.status, i);
		cr_assert_eq(wharf_call_pause(p.a.port, first.id), -ESTALE);
	}
	/* One that crosses the end of the other side. */
	cr_assert_eq(wharf_port_close(p.b.port, -1), 0);
	memset(&caller, 0, sizeof(caller));
	cr_assert_eq(side_call(&caller, p.a.port, side_text("late", WHARF_LAST), 0), 0);
	settle(p.loop);
	cr_assert_eq(caller.end.progress, WHARF_NOT_SEEN);
	pair_free(&p);
}

Test(call_ends, the_number_of_one_that_was_cancelled_is_free_at_once)
{
	static struct side sides[20];

	memset(sides, 0, sizeof(sides));
	begin(NULL, WHARF_OPT(port, .rx_calls_max = 1));
	p.b.on_message = NULL;
	for (unsigned i = 0; i < 20; i++) {
		int error;
		while ((error = side_call(&sides[i], p.a.port, side_text("question", 0), 0)) == -EAGAIN)
			cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
		cr_assert_eq(error, 0);
		if (i % 3 == 0)
			cr_assert_eq(wharf_call_cancel(p.a.port, sides[i].id), 0);
		if (i % 2)
			settle(p.loop);
	}
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
	cr_assert_eq(p.b.n_closed, 0, "%s", p.b.reason_text);
	pair_free(&p);
}

Test(call_ends, both_ends_close_with_requests_on_their_way_that_their_credit_does_not_let_go)
{
	static char bytes[1 << 20];
	struct side other = { 0 };

	begin(WHARF_OPT(port, .rx_stream_bytes_max = 1000), WHARF_OPT(port, .rx_stream_bytes_max = 1000));
	cr_assert_eq(side_call(&caller, p.a.port, side_bytes(bytes, sizeof(bytes), WHARF_LAST), 0), 0);
	cr_assert_eq(side_call(&other, p.b.port, side_bytes(bytes, sizeof(bytes), WHARF_LAST), 0), 0);
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	cr_assert_eq(wharf_port_close(p.b.port, -1), 0);
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.b.n_closed, 1);
	cr_assert_eq(caller.end.reason, WHARF_END_CLOSED);
	cr_assert_eq(caller.end.progress, WHARF_NOT_SEEN);
	cr_assert_eq(other.end.progress, WHARF_NOT_SEEN);
	pair_free(&p);
}

Test(call_ends, a_cancel_finds_its_request_before_more_of_an_older_one)
{
	struct side late = { 0 };

	begin(NULL, NULL);
	cr_assert_eq(side_call(&caller, p.a.port, side_text("question", 0), 0), 0);
	settle(p.loop);
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	cr_assert_eq(side_call(&late, p.a.port, side_text("late", 0), 0), 0);
	cr_assert_eq(wharf_call_send(p.a.port, caller.id, side_text("more", 0)), 0);
	settle(p.loop);
	cr_assert_eq(wharf_call_cancel(p.a.port, late.id), 0);
	settle(p.loop);
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_eq(answerer.n_messages, 1);
	pair_free(&p);
}
