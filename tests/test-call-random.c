/* SPDX-License-Identifier: MIT */
/* Calls of both sides under random operations, in and outside of callbacks, with an oracle that keeps count. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"
#include "pair.h"

TestSuite(call_random, .timeout = 120);

enum { CALLS_MAX = 600, ROUNDS = 80, OPERATIONS = 500 };
#define MS INT64_C(1000000)

struct request {
	wharf_port *port;
	wharf_call_id id;
	unsigned side, n_replies, n_ended;
	bool complete, cancelled, timed, delegated, seen;
	struct wharf_end end;
	struct answer *answer;
};

/* One that was taken, or adopted. */
struct answer {
	wharf_port *port;
	wharf_call_id id;
	struct request *request;
	unsigned n_messages, n_replies, n_ended;
	bool complete, refused, last;
	uint32_t status;
	struct wharf_end end;
};

static struct harness_random random_numbers;
static wharf_loop *loop;
static uint64_t now_ns;
static bool in_call; /* a function of the library is running: no callback may */
static unsigned depth, n_requests, n_answers, n_closed, n_adopters, n_adopters_closed;
static struct request requests[CALLS_MAX];
static struct answer answers[CALLS_MAX];
static wharf_port *ports[2]; /* NULL once closed */
static struct wharf_msg *taken[8];
static bool over;

static uint64_t below(uint64_t n) { return harness_random_below(&random_numbers, n); }

static uint64_t test_clock(void *user)
{
	(void)user;
	return now_ns;
}

static void operate(void);

static void enter(void)
{
	cr_assert(!in_call, "a callback inside a function");
	depth++;
}

static void leave(void)
{
	if (!over && depth < 3 && below(4) == 0)
		operate();
	depth--;
}

#define CALLED(expression) (in_call = true, error = (expression), in_call = false, error)

/* ---- Messages: the number of the request, a count, and any amount behind ---- */

struct body {
	uint32_t serial, count;
};

static unsigned char filler[400000];

static struct wharf_out *out_of(uint32_t serial, uint32_t count, uint32_t flags, wharf_port *port)
{
	static struct wharf_part parts[2];
	static struct wharf_out out;
	static struct body body;
	static struct wharf_buf buf;
	static const size_t sizes[] = { 0, 1, 3000, 40000, 400000 };
	size_t size = sizes[below(depth ? 3 : 5)];

	body = (struct body){ serial, count };
	memset(parts, 0, sizeof(parts));
	parts[0].bytes = &body;
	parts[0].size = sizeof(body);
	parts[1].bytes = filler;
	parts[1].size = size;
	wharf_buf_abandon(&buf); /* of the last one that was refused */
	if (size && below(2) && wharf_port_pool(port) && wharf_buf_claim(wharf_port_pool(port), size, &buf) == 0) {
		memset(buf.data, 0, buf.size);
		parts[1] = (struct wharf_part){ .buf = &buf };
	}
	out = (struct wharf_out){ .type = 1, .flags = flags, .parts = parts, .n_parts = 2 };
	return &out;
}

static void done_with(struct wharf_out *out)
{
	if (out->parts[1].buf)
		wharf_buf_abandon(out->parts[1].buf);
}

static struct body body_of(const struct wharf_msg *msg)
{
	struct body body = { 0 };

	cr_assert_eq(wharf_msg_copy(msg, 0, &body, sizeof(body)), sizeof(body));
	return body;
}

static void maybe_take(const struct wharf_msg *msg)
{
	struct wharf_msg **slot = &taken[below(8)];

	if (over || below(4))
		return;
	wharf_msg_release(*slot);
	*slot = wharf_msg_take(msg);
}

/* ---- The caller ---- */

static void on_reply(wharf_port *port, wharf_call_id id, const struct wharf_msg *msg, void *user)
{
	struct request *r = user;
	struct body body = body_of(msg);

	enter();
	cr_assert(port == r->port && id == r->id && msg->call == id);
	cr_assert_eq(r->n_ended, 0);
	cr_assert(!r->cancelled);
	cr_assert_eq(body.serial, r - requests);
	cr_assert_eq(body.count, r->n_replies, "replies in order");
	r->n_replies++;
	maybe_take(msg);
	leave();
}

static void on_writable(wharf_port *port, wharf_call_id id, void *user)
{
	struct request *r = user;

	enter();
	cr_assert(port == r->port && id == r->id && !r->n_ended && !r->cancelled);
	leave();
}

static void on_end(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user)
{
	struct request *r = user;

	enter();
	cr_assert(port == r->port && id == r->id);
	cr_assert_eq(r->n_ended, 0);
	cr_assert(ports[r->side] || r->delegated, "behind on_close");
	r->n_ended++;
	r->end = *end;
	cr_assert_eq(r->cancelled, end->reason == WHARF_END_CANCEL);
	cr_assert(r->timed || end->reason != WHARF_END_DEADLINE);
	cr_assert_eq(r->n_replies > 0, end->progress == WHARF_REPLIED);
	if (end->reason == WHARF_END_LAST) {
		cr_assert_not_null(r->answer);
		cr_assert(r->answer->last);
		cr_assert_eq(end->status, r->answer->status);
		cr_assert_eq(r->n_replies, r->answer->n_replies);
	}
	if (end->reason == WHARF_END_REFUSED)
		cr_assert(r->answer->refused);
	cr_assert_lt(wharf_call_pause(port, id), 0, "a stale id");
	leave();
}

/* ---- Who answers ---- */

static void answer_on_message(wharf_port *port, wharf_call_id id, const struct wharf_msg *msg, void *user)
{
	struct answer *a = user;
	struct body body = body_of(msg);

	enter();
	cr_assert(port == a->port && id == a->id && !a->n_ended && !a->complete);
	cr_assert_eq(&requests[body.serial], a->request);
	cr_assert_eq(body.count, ++a->n_messages);
	a->complete = msg->flags & WHARF_MSG_LAST;
	maybe_take(msg);
	leave();
}

static void answer_on_writable(wharf_port *port, wharf_call_id id, void *user)
{
	struct answer *a = user;

	enter();
	cr_assert(port == a->port && id == a->id && !a->n_ended);
	leave();
}

static void answer_on_end(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user)
{
	struct answer *a = user;

	enter();
	cr_assert(port == a->port && id == a->id && !a->n_ended);
	a->n_ended++;
	a->end = *end;
	cr_assert(a->last || end->reason != WHARF_END_LAST);
	cr_assert_eq(a->refused, end->reason == WHARF_END_REFUSED);
	leave();
}

static const struct wharf_answer_options answering = { .size = sizeof(answering) };

static struct wharf_answer_options options_of(struct answer *a)
{
	struct wharf_answer_options o = answering;

	o.on_message = answer_on_message;
	o.on_writable = answer_on_writable;
	o.on_end = answer_on_end;
	o.user = a;
	return o;
}

static void adopter_closed(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	struct answer *a = user;

	(void)reason;
	enter();
	cr_assert_eq(port, a->port);
	cr_assert(a->n_ended == 1 || !a->id);
	n_adopters_closed++;
	a->port = NULL;
	leave();
}

static const struct wharf_port_ops adopter_ops = { .size = sizeof(adopter_ops), .on_close = adopter_closed };

static void adopt(struct request *r, const struct wharf_msg *msg)
{
	struct answer *a = &answers[n_answers];
	struct wharf_answer_options o = options_of(a);
	int fd, error;

	if (over || n_answers == CALLS_MAX || below(4) == 0)
		return;
	fd = wharf_msg_take_fd(msg, 0);
	cr_assert_geq(fd, 0);
	*a = (struct answer){ .request = r, .complete = msg->flags & WHARF_MSG_LAST };
	n_answers++;
	cr_assert_eq(CALLED(wharf_open(loop, fd, WHARF_OPT(port, .ops = &adopter_ops, .user = a), &a->port)), 0);
	n_adopters++;
	if (below(5) == 0) {
		cr_assert_eq(CALLED(wharf_port_close(a->port, -1)), 0);
		return;
	}
	cr_assert_eq(CALLED(wharf_call_adopt(a->port, &o, &a->id)), 0);
	r->answer = a;
}

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct body body = body_of(msg);
	struct request *r = &requests[body.serial];
	struct answer *a = &answers[n_answers];
	struct wharf_answer_options o = options_of(a);
	int error;

	(void)user;
	enter();
	cr_assert(!r->seen);
	r->seen = true;
	cr_assert_eq(r->delegated, (msg->flags & WHARF_MSG_DELEGATED) != 0);
	if (r->delegated) {
		cr_assert_eq(msg->call, 0);
		adopt(r, msg);
	} else if (!over && n_answers < CALLS_MAX && below(8)) {
		*a = (struct answer){ .port = port, .request = r, .complete = msg->flags & WHARF_MSG_LAST };
		cr_assert_eq(CALLED(wharf_call_take(port, msg, &o, &a->id)), 0);
		cr_assert_eq(a->id, msg->call);
		n_answers++;
		r->answer = a;
	}
	maybe_take(msg);
	leave();
}

static void on_port_writable(wharf_port *port, void *user)
{
	(void)port, (void)user;
	enter();
	leave();
}

static void on_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	unsigned side = (unsigned)(uintptr_t)user;

	(void)reason;
	enter();
	cr_assert_eq(port, ports[side]);
	for (unsigned i = 0; i < n_requests; i++)
		cr_assert(requests[i].side != side || requests[i].n_ended || requests[i].delegated || !requests[i].id,
			"request %u has no end", i);
	for (unsigned i = 0; i < n_answers; i++)
		cr_assert(answers[i].port != port || answers[i].n_ended);
	ports[side] = NULL;
	n_closed++;
	leave();
}

static const struct wharf_port_ops ops = {
	.size = sizeof(ops),
	.on_message = on_message,
	.on_writable = on_port_writable,
	.on_close = on_close,
};

/* ---- Operations ---- */

static void make_call(void)
{
	unsigned side = (unsigned)below(2);
	struct request *r = &requests[n_requests];
	struct wharf_call_options o = { .size = sizeof(o),
		.on_reply = on_reply,
		.on_writable = on_writable,
		.on_end = on_end,
		.user = r,
		.timeout_ns = below(3) ? 0 : (int64_t)below(40) * MS + 1,
		.delegate = below(4) == 0 };
	struct wharf_out *out;
	int error;

	if (n_requests == CALLS_MAX || !ports[side])
		return;
	*r = (struct request){ .port = ports[side], .side = side, .timed = o.timeout_ns, .delegated = o.delegate };
	out = out_of(n_requests, 0, below(2) ? WHARF_LAST : 0, ports[side]);
	if (CALLED(wharf_call(ports[side], out, &o, &r->id)) == 0) {
		r->complete = out->flags & WHARF_LAST;
		n_requests++;
		if (r->delegated)
			wharf_port_ref(r->port); /* to be asked of behind its end */
	} else {
		cr_assert(error == -EAGAIN || error == -EPIPE, "%d", error);
	}
	done_with(out);
}

static unsigned sent[CALLS_MAX]; /* messages of a request behind its first */

static void with_a_request(void)
{
	struct request *r = n_requests ? &requests[below(n_requests)] : NULL;
	struct wharf_out *out;
	bool usable;
	int error;

	if (!r || (!ports[r->side] && !r->delegated))
		return;
	usable = !r->n_ended && !r->cancelled;
	switch (below(5)) {
	case 0:
		if (CALLED(wharf_call_cancel(r->port, r->id)) == 0) {
			cr_assert(usable);
			r->cancelled = true;
		}
		break;
	case 1:
		(void)CALLED(wharf_call_pause(r->port, r->id));
		cr_assert(error || usable);
		break;
	case 2:
		(void)CALLED(wharf_call_resume(r->port, r->id));
		cr_assert(error || usable);
		break;
	default:
		out = out_of((uint32_t)(r - requests), sent[r - requests] + 1, below(3) ? 0 : WHARF_LAST, r->port);
		if (CALLED(wharf_call_send(r->port, r->id, out)) == 0) {
			cr_assert(usable && !r->complete);
			sent[r - requests]++;
			r->complete = out->flags & WHARF_LAST;
		} else {
			cr_assert(error == -EAGAIN || error == -ESTALE || error == -EPIPE ||
					(error == -EALREADY && r->complete),
				"%d", error);
		}
		done_with(out);
	}
}

/* Its port may be asked. */
static bool is_there(const struct answer *a)
{
	return a->port && a->id && (a->request->delegated || a->port == ports[0] || a->port == ports[1]);
}

static void with_an_answer(void)
{
	struct answer *a = n_answers ? &answers[below(n_answers)] : NULL;
	struct wharf_out *out;
	uint32_t status = 0;
	int error;

	if (!a || !is_there(a))
		return;
	switch (below(8)) {
	case 0:
		if (CALLED(wharf_call_refuse(a->port, a->id, 1)) == 0) {
			cr_assert(!a->n_ended && !a->refused);
			a->refused = true;
		}
		break;
	case 1:
		(void)CALLED(wharf_call_pause(a->port, a->id));
		break;
	case 2:
	case 3:
		(void)CALLED(wharf_call_resume(a->port, a->id));
		break;
	default:
		out = out_of((uint32_t)(a->request - requests), a->n_replies, below(3) ? 0 : WHARF_LAST, a->port);
		if (out->flags & WHARF_LAST)
			status = (uint32_t)below(1000);
		if (CALLED(wharf_reply(a->port, a->id, out, status)) == 0) {
			cr_assert(!a->n_ended && !a->refused && !a->last);
			a->n_replies++;
			a->last = out->flags & WHARF_LAST;
			a->status = status;
		} else {
			cr_assert(error == -EAGAIN || error == -ESTALE || error == -EPIPE || error == -EALREADY, "%d",
				error);
		}
		done_with(out);
	}
}

static void with_a_port(void)
{
	unsigned side = (unsigned)below(2);
	int error;

	if (!ports[side])
		return;
	switch (below(60)) {
	case 0:
		(void)CALLED(wharf_port_close(ports[side], below(2) ? -1 : (int64_t)below(20) * MS));
		break;
	case 1:
		if (below(3) == 0)
			(void)CALLED(wharf_port_abort(ports[side], 3));
		break;
	default:
		if (below(3) == 0)
			(void)CALLED(wharf_port_pause(ports[side]));
		else
			(void)CALLED(wharf_port_resume(ports[side]));
	}
}

static void operate(void)
{
	switch (below(10)) {
	case 0:
	case 1:
		make_call();
		break;
	case 2:
	case 3:
	case 4:
		with_a_request();
		break;
	case 5:
	case 6:
	case 7:
		with_an_answer();
		break;
	case 8:
		with_a_port();
		break;
	default:
		if (!depth) {
			now_ns += below(10) * (uint64_t)MS;
			for (uint64_t n = below(6); n; n--)
				cr_assert_geq(wharf_loop_step(loop, 0), 0);
		}
	}
}

static struct wharf_port_options any_options(unsigned side)
{
	return (struct wharf_port_options){ .size = sizeof(struct wharf_port_options),
		.ops = &ops,
		.user = (void *)(uintptr_t)side,
		.flags = below(5) ? 0 : WHARF_PORT_INLINE,
		.pool_bytes_max = 8 << 20,
		.rx_calls_max = below(3) ? 0 : (uint32_t)below(8) + 1,
		.rx_stream_bytes_max = below(2) ? 0 : below(100000) + 1,
		.rx_msgs_per_turn = below(3) ? 0 : (uint32_t)below(3) + 1,
		.untrusted = below(4) == 0 };
}

static void finish(bool in_good_order)
{
	int error;

	over = true;
	for (int i = 0; i < 8; i++)
		taken[i] = wharf_msg_release(taken[i]);
	for (unsigned i = 0; i < n_requests; i++)
		if (ports[requests[i].side])
			(void)wharf_call_resume(requests[i].port, requests[i].id);
	for (unsigned i = 0; i < n_answers; i++)
		if (is_there(&answers[i])) {
			(void)wharf_call_resume(answers[i].port, answers[i].id);
			if (CALLED(wharf_call_refuse(answers[i].port, answers[i].id, 2)) == 0)
				answers[i].refused = true;
		}
	for (unsigned i = 0; i < 2 && in_good_order; i++)
		if (ports[i]) {
			(void)wharf_port_resume(ports[i]);
			(void)wharf_port_close(ports[i], -1);
		}
	if (in_good_order) {
		settle(loop);
		cr_assert_eq(n_closed, 2);
	}
	cr_assert_null(wharf_loop_free(loop));
	cr_assert_eq(n_closed, 2);
	cr_assert_eq(n_adopters_closed, n_adopters);
	for (unsigned i = 0; i < n_requests; i++) {
		struct request *r = &requests[i];
		cr_assert_eq(r->n_ended, 1, "request %u", i);
		if (r->end.progress == WHARF_NOT_SEEN)
			cr_assert(!r->seen, "request %u was seen", i);
		if (r->delegated)
			wharf_port_unref(r->port);
	}
	for (unsigned i = 0; i < n_answers; i++)
		cr_assert(answers[i].n_ended == 1 || !answers[i].id);
}

static void round_of(uint64_t seed)
{
	struct wharf_port_options o;
	int fds[2];

	random_numbers.state = seed;
	now_ns = 1000 * MS;
	over = in_call = false;
	n_requests = n_answers = n_closed = n_adopters = n_adopters_closed = 0;
	memset(sent, 0, sizeof(sent));
	cr_assert_eq(wharf_loop_new(WHARF_OPT(loop, .clock_ns = test_clock), &loop), 0);
	cr_assert_eq(wharf_pair(fds), 0);
	for (unsigned side = 0; side < 2; side++) {
		o = any_options(side);
		cr_assert_eq(wharf_open(loop, fds[side], &o, &ports[side]), 0);
	}
	for (int i = 0; i < OPERATIONS && n_closed < 2; i++)
		operate();
	finish(below(2));
}

Test(call_random, every_call_ends_once_and_every_end_is_true)
{
	uint64_t seed = harness_seed();
	struct harness_snapshot before;

	round_of(seed);
	harness_snapshot_take(&before);
	for (unsigned i = 1; i < ROUNDS; i++) {
		cr_log_info("round %u", i);
		round_of(seed + i * UINT64_C(0x9e3779b97f4a7c15));
	}
	const char *leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}
