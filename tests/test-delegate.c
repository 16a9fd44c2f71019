/* SPDX-License-Identifier: MIT */
/* Delegated calls: answered through the end that travels in the request, by whoever has it. */
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "calls.h"
#include "harness.h"
#include "port.h"
#include "raw.h"

TestSuite(delegate, .timeout = 60);
#define SEC INT64_C(1000000000)
static struct pair p;
static struct end c; /* who answers */
static struct side caller, answerer;
static wharf_loop *c_loop;
static bool adopts;
static int kept_fd;
static int adopt(struct side *side, wharf_port *port)
{
	side->port = port;
	return wharf_call_adopt(port,
		WHARF_OPT(answer, .on_message = side_on_message, .on_writable = side_on_writable, .on_end = side_on_end,
			.user = side),
		&side->id);
}

static void open_c(int fd)
{
	cr_assert_geq(fd, 0);
	cr_assert_eq(wharf_open(c_loop, fd, WHARF_OPT(port, .ops = &end_ops, .user = &c, .rx_fds_max = 4), &c.port), 0);
	if (adopts)
		cr_assert_eq(adopt(&answerer, c.port), 0);
}

/* B, to whom the request comes, has the call answered by a port of its own. */
static void delegate_on(struct end *end, const struct wharf_msg *msg)
{
	(void)end;
	cr_assert(msg->flags & WHARF_MSG_DELEGATED);
	cr_assert_eq(msg->call, 0);
	open_c(wharf_msg_take_fd(msg, 0));
}

static void keep(struct end *end, const struct wharf_msg *msg)
{
	(void)end;
	if (msg->n_fds)
		kept_fd = wharf_msg_take_fd(msg, 0);
}

static void prepare(void)
{
	memset(&caller, 0, sizeof(caller));
	memset(&answerer, 0, sizeof(answerer));
	memset(&c, 0, sizeof(c));
	adopts = true;
	kept_fd = -1;
}

static void begin(const struct wharf_port_options *a, const struct wharf_port_options *b)
{
	prepare();
	pair_open(&p, a, b);
	c_loop = p.loop;
	p.b.on_message = delegate_on;
}

static int call(const struct wharf_out *out, int64_t timeout_ns)
{
	caller.port = p.a.port;
	return wharf_call(p.a.port, out,
		WHARF_OPT(call, .on_reply = side_on_message, .on_writable = side_on_writable, .on_end = side_on_end,
			.user = &caller, .timeout_ns = timeout_ns, .delegate = 1),
		&caller.id);
}

static void called(uint32_t flags)
{
	cr_assert_eq(call(side_text("question", flags), 0), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
}

static void answer(void)
{
	cr_assert_eq(wharf_reply(c.port, answerer.id, side_text("well", 0), 0), 0);
	cr_assert_eq(wharf_reply(c.port, answerer.id, side_text("answer", WHARF_LAST), 42), 0);
	settle(p.loop);
}

static void expect_answer(void)
{
	cr_assert_eq(caller.n_messages, 2);
	cr_assert_eq(caller.n_ended, 1);
	cr_assert_eq(caller.end.reason, WHARF_END_LAST);
	cr_assert_eq(caller.end.status, 42);
	cr_assert_eq(caller.end.progress, WHARF_REPLIED);
	cr_assert_eq(answerer.end.reason, WHARF_END_LAST);
	cr_assert_eq(c.n_closed, 1);
	cr_assert_eq(c.reason.code, WHARF_CLOSE_PEER);
}

Test(delegate, whoever_opens_the_end_answers)
{
	struct harness_snapshot before;

	begin(NULL, NULL);
	pair_free(&p);
	harness_snapshot_take(&before);
	begin(NULL, NULL);
	called(WHARF_LAST);
	cr_assert_eq(c.n_open, 1);
	answer();
	expect_answer();
	cr_assert_eq(wharf_call_cancel(p.a.port, caller.id), -ESTALE);
	cr_assert_eq(p.a.n_messages, 0);
	cr_assert_eq(p.loop->n_users, 2, "of the answer port nothing is left");
	cr_assert_eq(p.loop->timers.reserved, 2 * WH_PORT_TIMERS);
	pair_free(&p);
	const char *leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

Test(delegate, the_rest_of_the_request_goes_to_who_answers)
{
	struct wharf_buf b;

	begin(NULL, NULL);
	called(0);
	cr_assert_eq(wharf_call_send(p.a.port, caller.id, side_text("more", 0)), 0);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 100000, &b), 0);
	memset(b.data, 5, b.size);
	cr_assert_eq(wharf_call_send_buf(p.a.port, caller.id, &b, WHARF_LAST), 0);
	cr_assert_null(b.data);
	cr_assert_eq(wharf_call_send(p.a.port, caller.id, side_text("more", 0)), -EALREADY);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_eq(answerer.n_messages, 2);
	cr_assert_eq(answerer.n_bytes, 100004);
	cr_assert(answerer.flags & WHARF_MSG_LAST);
	answer();
	expect_answer();
	pair_free(&p);
}

Test(delegate, a_large_request_with_descriptors_and_a_peer_that_takes_none_of_its_own)
{
	static char bytes[1 << 20];
	struct wharf_out out = *side_bytes(bytes, sizeof(bytes), WHARF_LAST);
	int fd = STDERR_FILENO;

	begin(NULL, NULL);
	out.fds = &fd;
	out.n_fds = 1;
	cr_assert_eq(call(&out, 0), -EMSGSIZE, "it takes the end, and no other");
	out.n_fds = 0;
	cr_assert_eq(call(&out, 0), 0);
	settle(p.loop);
	cr_assert_eq(p.b.seen[0].size, sizeof(bytes));
	cr_assert(p.b.seen[0].flags & WHARF_MSG_DELEGATED);
	cr_assert(p.b.seen[0].flags & WHARF_MSG_LAST);
	answer();
	expect_answer();
	pair_free(&p);
	begin(NULL, WHARF_OPT(port, .rx_fds_max = 1));
	out.n_fds = 1;
	cr_assert_eq(call(&out, 0), 0);
	settle(p.loop);
	cr_assert_eq(p.b.seen[0].n_fds, 2);
	answer();
	expect_answer();
	pair_free(&p);
}

Test(delegate, in_pieces)
{
	static char bytes[1 << 20];

	begin(NULL, WHARF_OPT(port, .flags = WHARF_PORT_PIECES));
	/* The end comes with the first of them. */
	p.b.on_message = keep;
	cr_assert_eq(call(side_bytes(bytes, sizeof(bytes), WHARF_LAST), 0), 0);
	settle(p.loop);
	cr_assert_gt(p.b.n_messages, 1);
	cr_assert_eq(p.b.n_bytes, sizeof(bytes));
	open_c(kept_fd);
	settle(p.loop);
	answer();
	expect_answer();
	pair_free(&p);
}

/* ---- Nobody answers ---- */

Test(delegate, nobody_opens_the_end)
{
	begin(NULL, NULL);
	p.b.on_message = NULL;
	called(WHARF_LAST);
	cr_assert_eq(caller.end.reason, WHARF_END_NO_REPLY);
	cr_assert_eq(caller.end.progress, WHARF_MAYBE_SEEN);
	cr_assert_eq(p.loop->n_users, 2);
	pair_free(&p);
}

Test(delegate, nobody_adopts)
{
	begin(NULL, NULL);
	adopts = false;
	called(WHARF_LAST);
	cr_assert_eq(caller.n_ended, 0);
	cr_assert_eq(wharf_port_close(c.port, -1), 0);
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_NO_REPLY);
	cr_assert_eq(caller.end.progress, WHARF_MAYBE_SEEN);
	cr_assert_eq(c.n_closed, 1);
	pair_free(&p);
}

Test(delegate, who_answers_gives_up)
{
	begin(NULL, NULL);
	called(WHARF_LAST);
	cr_assert_eq(wharf_call_refuse(c.port, answerer.id, 3), 0);
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_REFUSED);
	cr_assert_eq(caller.end.app_code, 3);
	cr_assert_eq(c.reason.code, WHARF_CLOSE_PEER);
	pair_free(&p);
	begin(NULL, NULL);
	called(WHARF_LAST);
	cr_assert_eq(wharf_port_abort(c.port, 4), 0);
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_CLOSED);
	cr_assert_eq(caller.end.app_code, 4);
	pair_free(&p);
}

static uint64_t now_ns;
static uint64_t test_clock(void *user)
{
	(void)user;
	return now_ns;
}

Test(delegate, a_deadline_with_the_end_unopened)
{
	char byte;
	int fds[2];

	prepare();
	now_ns = SEC;
	p = (struct pair){ 0 };
	cr_assert_eq(wharf_loop_new(WHARF_OPT(loop, .clock_ns = test_clock), &p.loop), 0);
	cr_assert_eq(wharf_pair(fds), 0);
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &p.a), &p.a.port), 0);
	cr_assert_eq(wharf_open(p.loop, fds[1], WHARF_OPT(port, .ops = &end_ops, .user = &p.b), &p.b.port), 0);
	p.b.on_message = keep;
	cr_assert_eq(call(side_text("question", WHARF_LAST), 3 * SEC), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
	now_ns += 3 * SEC;
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_DEADLINE);
	cr_assert_eq(p.loop->n_users, 2);
	while (recv(kept_fd, &byte, 1, MSG_DONTWAIT) > 0)
		;
	cr_assert_eq(recv(kept_fd, &byte, 1, MSG_DONTWAIT), 0, "the end of the file");
	close(kept_fd);
	pair_free(&p);
}

/* ---- The caller ends it ---- */

Test(delegate, cancelled_when_it_was_adopted)
{
	begin(NULL, NULL);
	called(WHARF_LAST);
	cr_assert_eq(wharf_call_cancel(p.a.port, caller.id), 0);
	cr_assert_eq(wharf_call_cancel(p.a.port, caller.id), -ESTALE);
	cr_assert_eq(caller.n_ended, 0);
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_CANCEL);
	cr_assert_eq(caller.end.progress, WHARF_MAYBE_SEEN);
	cr_assert_eq(answerer.end.reason, WHARF_END_CANCEL);
	cr_assert_eq(c.reason.code, WHARF_CLOSE_PEER);
	pair_free(&p);
}

Test(delegate, cancelled_before_it_left)
{
	prepare();
	pair_start(&p, NULL, NULL);
	cr_assert_eq(call(side_text("question", WHARF_LAST), 0), 0);
	cr_assert_eq(wharf_call_cancel(p.a.port, caller.id), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 0);
	cr_assert_eq(caller.end.reason, WHARF_END_CANCEL);
	cr_assert_eq(caller.end.progress, WHARF_NOT_SEEN);
	cr_assert_eq(p.loop->n_users, 2);
	pair_free(&p);
}

Test(delegate, cancelled_while_it_waits_at_a_paused_port)
{
	begin(NULL, NULL);
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	cr_assert_eq(call(side_text("question", WHARF_LAST), 0), 0);
	settle(p.loop);
	cr_assert_eq(wharf_call_cancel(p.a.port, caller.id), 0);
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_CANCEL);
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 0);
	pair_free(&p);
}

Test(delegate, paused_and_resumed)
{
	begin(NULL, NULL);
	called(WHARF_LAST);
	cr_assert_eq(wharf_call_pause(p.a.port, caller.id), 0);
	answer();
	cr_assert_eq(caller.n_messages, 0);
	cr_assert_eq(caller.n_ended, 0);
	cr_assert_eq(wharf_call_resume(p.a.port, caller.id), 0);
	settle(p.loop);
	expect_answer();
	pair_free(&p);
}

/* ---- Ports that end ---- */

Test(delegate, the_port_that_carried_the_request_may_go)
{
	begin(NULL, NULL);
	called(WHARF_LAST);
	cr_assert_eq(wharf_port_abort(p.a.port, 1), 0);
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.b.n_closed, 1);
	cr_assert_eq(caller.n_ended, 0);
	cr_assert_eq(wharf_call_pause(caller.port, caller.id), 0);
	cr_assert_eq(wharf_call_resume(caller.port, caller.id), 0);
	cr_assert_eq(wharf_call_pause(caller.port, caller.id + 1), -EPIPE);
	answer();
	expect_answer();
	pair_free(&p);
}

Test(delegate, cancelled_behind_the_end_of_its_port)
{
	begin(NULL, NULL);
	called(0);
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(caller.n_ended, 0);
	cr_assert_eq(wharf_call_send(caller.port, caller.id, side_text("more", WHARF_LAST)), 0);
	settle(p.loop);
	cr_assert_eq(answerer.n_messages, 1);
	cr_assert_eq(wharf_call_cancel(caller.port, caller.id), 0);
	cr_assert_eq(wharf_call_cancel(caller.port, caller.id), -EPIPE);
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_CANCEL);
	pair_free(&p);
}

Test(delegate, a_request_that_never_left_ends_with_its_port)
{
	begin(NULL, NULL);
	cr_assert_eq(call(side_text("question", WHARF_LAST), 0), 0);
	cr_assert_eq(wharf_port_abort(p.a.port, 1), 0);
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_CLOSED);
	cr_assert_eq(caller.end.progress, WHARF_NOT_SEEN);
	cr_assert_eq(p.b.n_messages, 0);
	cr_assert_eq(p.loop->n_users, 0);
	pair_free(&p);
}

Test(delegate, a_peer_that_closes_refuses_it)
{
	begin(NULL, NULL);
	cr_assert_eq(wharf_port_close(p.b.port, -1), 0);
	cr_assert_eq(call(side_text("question", WHARF_LAST), 0), 0);
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_CLOSED);
	cr_assert_eq(caller.end.progress, WHARF_NOT_SEEN);
	cr_assert_eq(p.b.n_messages, 0);
	pair_free(&p);
}

Test(delegate, a_loop_runs_until_the_call_has_ended)
{
	prepare();
	adopts = false;
	p = (struct pair){ 0 };
	pair_open(&p, NULL, NULL);
	c_loop = p.loop;
	p.b.on_message = keep;
	called(WHARF_LAST);
	cr_assert_eq(wharf_port_abort(p.a.port, 1), 0);
	cr_assert_eq(wharf_call_pause(caller.port, caller.id), 0);
	settle(p.loop);
	cr_assert_eq(p.loop->n_users, 1);
	close(kept_fd);
	cr_assert_eq(wharf_loop_run(p.loop), 0);
	cr_assert_eq(caller.end.reason, WHARF_END_NO_REPLY);
	pair_free(&p);
}

Test(delegate, a_loop_that_is_freed_ends_it)
{
	begin(NULL, NULL);
	called(WHARF_LAST);
	pair_free(&p);
	cr_assert_eq(caller.n_ended, 1);
	cr_assert_eq(caller.end.reason, WHARF_END_CLOSED);
	cr_assert_eq(answerer.n_ended, 1);
	begin(NULL, NULL);
	p.b.on_message = keep;
	called(WHARF_LAST);
	cr_assert_eq(wharf_port_close(p.a.port, 0), 0);
	settle(p.loop);
	pair_free(&p);
	cr_assert_eq(caller.n_ended, 1);
	close(kept_fd);
}

/* ---- Adopting ---- */

Test(delegate, adopted_once_and_before_anything_else)
{
	struct side again = { 0 }, early = { 0 };

	begin(NULL, NULL);
	called(WHARF_LAST);
	cr_assert_eq(adopt(&again, c.port), -EALREADY);
	answer();
	cr_assert_eq(adopt(&early, p.a.port), 0, "there is nobody to tell it from any other end");
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), 0);
	p.b.on_message = NULL;
	settle(p.loop);
	cr_assert_eq(adopt(&again, p.b.port), -ENOENT);
	pair_free(&p);
	cr_assert_eq(early.n_ended, 1);
	cr_assert_eq(again.n_ended, 0);
}

static void pass_on(struct end *end, const struct wharf_msg *msg)
{
	int fd = wharf_msg_take_fd(msg, 0);

	cr_assert_eq(wharf_port_pass(end->user, 6, fd), 0);
}

static void open_passed(struct end *end, const struct wharf_msg *msg)
{
	(void)end;
	cr_assert(msg->flags & WHARF_MSG_PORT);
	open_c(wharf_msg_take_fd(msg, 0));
}

Test(delegate, passed_on_to_another)
{
	static struct pair q;

	begin(NULL, NULL);
	pair_open(&q, NULL, WHARF_OPT(port, .rx_fds_max = 1));
	c_loop = q.loop;
	p.b.on_message = pass_on;
	p.b.user = q.a.port;
	q.b.on_message = open_passed;
	called(WHARF_LAST);
	settle(q.loop);
	cr_assert_eq(q.b.n_messages, 1);
	/* Who was on the way need not stay. */
	cr_assert_eq(wharf_port_abort(q.a.port, 0), 0);
	cr_assert_eq(wharf_port_abort(p.b.port, 0), 0);
	for (int i = 0; i < 4; i++) {
		settle(p.loop);
		settle(q.loop);
	}
	cr_assert_eq(caller.n_ended, 0);
	answer();
	for (int i = 0; i < 4; i++) {
		settle(p.loop);
		settle(q.loop);
	}
	expect_answer();
	pair_free(&p);
	pair_free(&q);
}

/* ---- Hostile answers ---- */

static struct raw_frame frame;

static void put(uint8_t kind, uint64_t id, uint32_t status)
{
	struct wh_message_out message = { .kind = kind,
		.flags = WH_RECORD_FIRST | WH_RECORD_LAST | (kind == WH_RECORD_MESSAGE ? 0 : WH_RECORD_END),
		.stream = kind == WH_RECORD_REPLY ? status : 0,
		.call = id };

	cr_assert(wh_encode_message(&frame.encoder, &message));
}

static void begin_by_hand(void)
{
	struct wh_hello hello = raw_hello();

	begin(NULL, NULL);
	p.b.on_message = keep;
	called(WHARF_LAST);
	hello.calls_max = 1;
	hello.stream_credit_bytes = 1000;
	cr_assert(raw_say_hello(kept_fd, &hello));
	settle(p.loop);
	raw_begin(&frame);
}

static void send_frame(void)
{
	cr_assert(raw_end(kept_fd, &frame, 0));
	settle(p.loop);
}

Test(delegate, only_its_own_number_on_its_own_port_answers)
{
	begin_by_hand();
	put(WH_RECORD_MESSAGE, 0, 0);
	put(WH_RECORD_REPLY, WH_CALL_DELEGATED + 1, 7);
	put(WH_RECORD_REPLY, caller.id + WH_CALL_DELEGATED, 7);
	send_frame();
	cr_assert_eq(caller.n_messages, 0);
	cr_assert_eq(caller.n_ended, 0);
	raw_begin(&frame);
	put(WH_RECORD_REPLY, WH_CALL_DELEGATED, 9);
	send_frame();
	cr_assert_eq(caller.end.reason, WHARF_END_LAST);
	cr_assert_eq(caller.end.status, 9);
	close(kept_fd);
	settle(p.loop);
	pair_free(&p);
}

Test(delegate, an_answer_port_takes_no_calls)
{
	begin_by_hand();
	put(WH_RECORD_CALL, 1 << 16, 0);
	send_frame();
	cr_assert_eq(caller.end.reason, WHARF_END_PEER_GONE);
	close(kept_fd);
	settle(p.loop);
	pair_free(&p);
}

Test(delegate, the_peer_that_was_called_cannot_answer_where_it_was_called)
{
	struct wh_hello hello = raw_hello();
	struct wh_cancel cancel = { .call = WH_CALL_DELEGATED, .code = WH_CANCEL_REFUSED };
	static struct raw_read read;
	struct wharf_port_stats stats = { .size = sizeof(stats) };
	int peer;

	prepare();
	peer = pair_open_half(&p, NULL);
	hello.calls_max = 5;
	hello.fds_max = 0;
	hello.stream_credit_bytes = 1000;
	cr_assert(raw_say_hello(peer, &hello));
	settle(p.loop);
	cr_assert_eq(call(side_text("question", WHARF_LAST), 0), 0);
	settle(p.loop);
	do
		cr_assert(raw_receive(peer, &read));
	while (!raw_find(&read, WH_RECORD_CALL));
	cr_assert_eq(read.n_fds, 1);
	raw_begin(&frame);
	put(WH_RECORD_REPLY, WH_CALL_DELEGATED, 7);
	cr_assert(wh_encode_control(&frame.encoder, WH_RECORD_CANCEL, &cancel, 0));
	cr_assert(raw_end(peer, &frame, 0));
	settle(p.loop);
	cr_assert_eq(caller.n_ended, 0);
	cr_assert_eq(wharf_port_stats(p.a.port, &stats), 0);
	cr_assert_eq(stats.rx_stray_records, 1);
	close(read.fds[0]);
	settle(p.loop);
	cr_assert_eq(caller.end.reason, WHARF_END_NO_REPLY);
	close(peer);
	pair_free(&p);
}
