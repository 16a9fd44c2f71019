/* SPDX-License-Identifier: MIT */
/* Calls: a request, its replies, and the one end of each. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "apart.h"
#include "harness.h"

static struct pair p;

/* What one side of a call was told. */
struct side {
	wharf_call_id id;
	unsigned n_messages, n_writable, n_ended;
	size_t n_bytes;
	uint32_t flags;
	struct wharf_end end;
};

static void on_message(wharf_port *port, wharf_call_id id, const struct wharf_msg *msg, void *user)
{
	struct side *side = user;

	(void)port;
	cr_assert_eq(id, side->id);
	cr_assert_eq(side->n_ended, 0, "a message behind the end");
	side->n_messages++;
	side->n_bytes += msg->size;
	side->flags = msg->flags;
}

static void on_writable(wharf_port *port, wharf_call_id id, void *user)
{
	(void)port, (void)id;
	((struct side *)user)->n_writable++;
}

static void on_end(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user)
{
	struct side *side = user;

	(void)port;
	cr_assert_eq(id, side->id);
	side->n_ended++;
	side->end = *end;
}

static struct side caller, answerer;

static void take_it(struct end *end, const struct wharf_msg *msg)
{
	cr_assert_neq(msg->call, 0);
	cr_assert_eq(wharf_call_take(end->port, msg,
			     WHARF_OPT(answer, .on_message = on_message, .on_writable = on_writable, .on_end = on_end,
				     .user = &answerer),
			     &answerer.id),
		0);
}

static int call(struct end *end, const struct wharf_out *out, int64_t timeout_ns)
{
	return wharf_call(end->port, out,
		WHARF_OPT(call, .on_reply = on_message, .on_writable = on_writable, .on_end = on_end, .user = &caller,
			.timeout_ns = timeout_ns),
		&caller.id);
}

static struct wharf_out text(const char *bytes, uint32_t flags)
{
	static struct wharf_part part;

	part = (struct wharf_part){ .bytes = bytes, .size = strlen(bytes) };
	return (struct wharf_out){ .type = 1, .flags = flags, .parts = &part, .n_parts = 1 };
}

static void begin(void)
{
	memset(&caller, 0, sizeof(caller));
	memset(&answerer, 0, sizeof(answerer));
	pair_open(&p, NULL, NULL);
	p.b.on_message = take_it;
}

Test(call, is_answered_in_several_messages)
{
	struct wharf_out out;

	begin();
	out = text("question", WHARF_LAST);
	cr_assert_eq(call(&p.a, &out, 0), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
	out = text("well", 0);
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, &out, 0), 0);
	settle(p.loop);
	cr_assert_eq(caller.n_messages, 1);
	cr_assert_eq(caller.n_ended, 0);
	out = text("answer", WHARF_LAST);
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, &out, 42), 0);
	settle(p.loop);
	cr_assert_eq(caller.n_messages, 2);
	cr_assert_eq(caller.n_ended, 1);
	cr_assert_eq(caller.end.reason, WHARF_END_LAST);
	cr_assert_eq(caller.end.status, 42);
	cr_assert_eq(caller.end.progress, WHARF_REPLIED);
	cr_assert_eq(answerer.n_ended, 1);
	cr_assert_eq(answerer.end.reason, WHARF_END_LAST);
	cr_assert_eq(wharf_call_cancel(p.a.port, caller.id), -ESTALE);
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, &out, 0), -ESTALE);
	pair_free(&p);
	cr_assert_eq(caller.n_ended, 1);
}

Test(call, that_nobody_takes_ends_without_a_reply)
{
	struct wharf_out out = text("question", WHARF_LAST);

	begin();
	p.b.on_message = NULL;
	cr_assert_eq(call(&p.a, &out, 0), 0);
	settle(p.loop);
	cr_assert_eq(caller.n_ended, 1);
	cr_assert_eq(caller.end.reason, WHARF_END_NO_REPLY);
	pair_free(&p);
}

Test(call, ends_with_its_port)
{
	struct wharf_out out = text("question", WHARF_LAST);

	begin();
	cr_assert_eq(call(&p.a, &out, 0), 0);
	settle(p.loop);
	cr_assert_eq(wharf_port_abort(p.b.port, 7), 0);
	settle(p.loop);
	cr_assert_eq(caller.n_ended, 1);
	cr_assert_eq(caller.end.reason, WHARF_END_CLOSED);
	cr_assert_eq(caller.end.progress, WHARF_MAYBE_SEEN);
	cr_assert_eq(caller.end.app_code, 7);
	cr_assert_eq(answerer.n_ended, 1);
	pair_free(&p);
}

Test(call, cancelled_ends_on_both_sides)
{
	struct wharf_out out = text("question", WHARF_LAST);

	begin();
	cr_assert_eq(call(&p.a, &out, 0), 0);
	settle(p.loop);
	cr_assert_eq(wharf_call_cancel(p.a.port, caller.id), 0);
	cr_assert_eq(caller.n_ended, 0, "not inside the call");
	settle(p.loop);
	cr_assert_eq(caller.n_ended, 1);
	cr_assert_eq(caller.end.reason, WHARF_END_CANCEL);
	cr_assert_eq(answerer.n_ended, 1);
	cr_assert_eq(answerer.end.reason, WHARF_END_CANCEL);
	pair_free(&p);
}

/* A worker with a place for each call at a time has one for the next as soon as the peer may make it. */
static void expect_the_end_of_the_one_before(struct end *end, const struct wharf_msg *msg)
{
	cr_assert_eq(answerer.n_ended, end->n_messages > 1);
	take_it(end, msg);
}

Test(call, next_comes_behind_the_end_of_the_one_that_it_follows)
{
	struct wharf_out out = text("question", WHARF_LAST);
	struct apart q;

	memset(&caller, 0, sizeof(caller));
	memset(&answerer, 0, sizeof(answerer));
	apart_open(&q, NULL, NULL, NULL);
	q.b.on_message = expect_the_end_of_the_one_before;
	cr_assert_eq(call(&q.a, &out, 0), 0);
	apart_settle(&q);
	cr_assert_eq(wharf_reply(q.b.port, answerer.id, &out, 0), 0);
	cr_assert_eq(wharf_loop_flush(q.loop_b), 0);
	cr_assert_eq(answerer.n_ended, 0, "not inside a flush");
	while (!caller.n_ended)
		cr_assert_geq(wharf_loop_step(q.loop_a, -1), 0);
	cr_assert_eq(call(&q.a, &out, 0), 0);
	cr_assert_eq(wharf_loop_flush(q.loop_a), 0);
	apart_settle(&q);
	cr_assert_eq(q.b.n_messages, 2);
	apart_free(&q);
}

/* ---- Memory ---- */

static size_t n_allocs;

static void *noting_alloc(size_t bytes, void *user)
{
	n_allocs++;
	return counting_alloc(bytes, user);
}

static unsigned n_told;

static void count_end(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user)
{
	(void)port, (void)id, (void)user;
	cr_assert_eq(end->reason, WHARF_END_LAST);
	n_told++;
}

static void reply_at_once(struct end *end, const struct wharf_msg *msg)
{
	struct wharf_out out = text("answer", WHARF_LAST);
	wharf_call_id id;

	cr_assert_eq(wharf_call_take(end->port, msg, WHARF_OPT(answer, .on_end = count_end), &id), 0);
	cr_assert_eq(wharf_reply(end->port, id, &out, 0), 0);
}

/* n calls at once, all of them answered. */
static void have_answered(unsigned n)
{
	struct wharf_out out = text("question", WHARF_LAST);
	wharf_call_id id;

	n_told = 0;
	for (unsigned i = 0; i < n; i++)
		cr_assert_eq(wharf_call(p.a.port, &out, WHARF_OPT(call, .on_end = count_end), &id), 0);
	settle(p.loop);
	cr_assert_eq(n_told, 2 * n);
}

static void start_counted(void)
{
	int fds[2];

	memset(&p, 0, sizeof(p));
	cr_assert_eq(wharf_loop_new(WHARF_OPT(loop, .alloc = noting_alloc, .free = counting_free), &p.loop), 0);
	cr_assert_eq(wharf_pair(fds), 0);
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &p.a), &p.a.port), 0);
	cr_assert_eq(wharf_open(p.loop, fds[1], WHARF_OPT(port, .ops = &end_ops, .user = &p.b), &p.b.port), 0);
	p.b.on_message = reply_at_once;
	settle(p.loop);
}

Test(call, that_ended_leaves_its_memory_to_the_next)
{
	size_t before;

	start_counted();
	/* Until each index has been used: the tables grow. */
	for (unsigned i = 0; i < 10; i++)
		have_answered(10);
	before = n_allocs;
	have_answered(10);
	cr_assert_eq(n_allocs, before);
	wharf_loop_free(p.loop);
	cr_assert_eq(n_counted, 0);
}

Test(call, memory_is_kept_of_some_that_ended_only)
{
	size_t kept;

	start_counted();
	have_answered(400);
	kept = n_counted;
	have_answered(800);
	cr_assert_eq(n_counted, kept);
	wharf_loop_free(p.loop);
	cr_assert_eq(n_counted, 0);
}
