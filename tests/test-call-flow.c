/* SPDX-License-Identifier: MIT */
/* What calls carry, and how many: bodies larger than their pool, descriptors, a slow reader beside a fast one. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "calls.h"
#include "harness.h"

TestSuite(call_flow, .timeout = 120);

#define MIB ((size_t)1 << 20)

static struct pair p;

/* ---- Bodies ---- */

static unsigned char pattern(size_t at) { return (unsigned char)((at >> 12) * 37 + (at >> 20)); }

/* One direction: pushed on one side, checked on the other. */
struct body {
	size_t bytes, pushed, checked;
	struct wharf_buf buf;
	bool last;
};
static struct body request, answer;
static struct side caller, answerer;

static void check(struct body *body, const struct wharf_msg *msg)
{
	for (size_t i = 0; i < msg->n_slices; i++)
		for (size_t k = 0; k < msg->slices[i].size; k++, body->checked++)
			if (((const unsigned char *)msg->slices[i].data)[k] != pattern(body->checked))
				cr_assert_fail("byte %zu", body->checked);
	body->last |= (msg->flags & WHARF_MSG_LAST) != 0;
}

/* What does not fit now goes on in on_writable, of the call or of the port. */
static void push(struct side *side, struct body *body)
{
	while (body->pushed < body->bytes) {
		size_t size = body->bytes - body->pushed < MIB ? body->bytes - body->pushed : MIB;
		uint32_t flags = body->pushed + size == body->bytes ? WHARF_LAST : 0;
		int error;
		/* The last reply would end the call before the request has come. */
		if (side == &answerer && flags && !request.last)
			return;
		if (!body->buf.data) {
			error = wharf_buf_claim(wharf_port_pool(side->port), size, &body->buf);
			if (error == -EAGAIN)
				return;
			cr_assert_eq(error, 0);
			for (size_t i = 0; i < size; i++)
				((unsigned char *)body->buf.data)[i] = pattern(body->pushed + i);
		}
		error = side == &caller ? wharf_call_send_buf(side->port, side->id, &body->buf, flags)
					: wharf_reply_buf(side->port, side->id, &body->buf, 5, flags);
		if (error == -EAGAIN)
			return;
		cr_assert_eq(error, 0, "%d", error);
		body->pushed += size;
	}
}

static void push_request(struct side *side) { push(side, &request); }
static void push_answer(struct side *side) { push(side, &answer); }
static void push_request_of(struct end *end)
{
	(void)end;
	push(&caller, &request);
}
static void push_answer_of(struct end *end)
{
	(void)end;
	push(&answerer, &answer);
}

static void on_request(struct side *side, const struct wharf_msg *msg)
{
	check(&request, msg);
	push(side, &answer);
}

static void on_reply(struct side *side, const struct wharf_msg *msg)
{
	(void)side;
	check(&answer, msg);
}

static void take_it(struct end *end, const struct wharf_msg *msg)
{
	cr_assert_eq(side_take(&answerer, end->port, msg), 0);
	check(&request, msg);
	push(&answerer, &answer);
}

static void bodies(size_t bytes, const struct wharf_port_options *o)
{
	memset(&caller, 0, sizeof(caller));
	memset(&answerer, 0, sizeof(answerer));
	request = answer = (struct body){ .bytes = bytes };
	pair_open(&p, o, o);
	caller.on_writable = push_request;
	caller.on_message = on_reply;
	answerer.on_writable = push_answer;
	answerer.on_message = on_request;
	p.a.on_writable = push_request_of;
	p.b.on_writable = push_answer_of;
	p.b.on_message = take_it;
	cr_assert_eq(side_call(&caller, p.a.port, &(struct wharf_out){ .type = 1 }, 0), 0);
	push(&caller, &request);
	settle(p.loop);
	cr_assert_eq(request.checked, bytes);
	cr_assert_eq(answer.checked, bytes);
	cr_assert(request.last && answer.last);
	cr_assert_eq(caller.end.reason, WHARF_END_LAST);
	cr_assert_eq(caller.end.status, 5);
	cr_assert_eq(answerer.end.reason, WHARF_END_LAST);
	pair_free(&p);
}

Test(call_flow, bodies_of_64_MiB_each_way_through_a_small_pool)
{
	bodies(64 * MIB, WHARF_OPT(port, .pool_bytes_max = 4 * MIB));
}

Test(call_flow, bodies_over_the_socket)
{
	bodies(8 * MIB + 5, WHARF_OPT(port, .pool_bytes_max = 4 * MIB, .flags = WHARF_PORT_INLINE));
}

Test(call_flow, bodies_between_ends_that_do_not_trust_each_other)
{
	bodies(8 * MIB + 5, WHARF_OPT(port, .pool_bytes_max = 4 * MIB, .untrusted = 1));
}

Test(call_flow, bodies_with_hardly_any_credit) { bodies(8 * MIB + 5, WHARF_OPT(port, .rx_stream_bytes_max = 1)); }

Test(call_flow, bodies_in_pieces)
{
	bodies(8 * MIB + 5, WHARF_OPT(port, .flags = WHARF_PORT_PIECES | WHARF_PORT_INLINE));
}

/* ---- Pieces ---- */

static unsigned n_last;

static void count_last(struct side *side, const struct wharf_msg *msg)
{
	(void)side;
	n_last += (msg->flags & WHARF_MSG_LAST) != 0;
}

Test(call_flow, the_last_piece_of_a_message_is_not_the_last_of_its_call)
{
	static char bytes[1 << 20];

	memset(&caller, 0, sizeof(caller));
	memset(&answerer, 0, sizeof(answerer));
	n_last = 0;
	pair_open(&p, WHARF_OPT(port, .flags = WHARF_PORT_PIECES), NULL);
	request = answer = (struct body){ 0 };
	caller.on_message = count_last;
	p.b.on_message = take_it;
	cr_assert_eq(side_call(&caller, p.a.port, &(struct wharf_out){ .flags = WHARF_LAST }, 0), 0);
	settle(p.loop);
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, side_bytes(bytes, sizeof(bytes), 0), 0), 0);
	settle(p.loop);
	cr_assert_gt(caller.n_messages, 1);
	cr_assert_eq(n_last, 0);
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, side_bytes(bytes, sizeof(bytes), WHARF_LAST), 0), 0);
	settle(p.loop);
	cr_assert_eq(n_last, 1);
	pair_free(&p);
}

/* ---- Many ---- */

enum { MANY = 1025 };
static struct side callers[MANY], answerers[MANY];
static unsigned n_taken;

static void take_many(struct end *end, const struct wharf_msg *msg)
{
	cr_assert_eq(side_take(&answerers[n_taken++], end->port, msg), 0);
}

static void many(unsigned n)
{
	memset(callers, 0, sizeof(callers));
	memset(answerers, 0, sizeof(answerers));
	n_taken = 0;
	pair_open(&p, NULL, NULL);
	p.b.on_message = take_many;
	for (unsigned i = 0; i < n; i++)
		cr_assert_eq(side_call(&callers[i], p.a.port, side_bytes(&i, sizeof(i), WHARF_LAST), 0),
			i < 1024 ? 0 : -EAGAIN, "%u", i);
	settle(p.loop);
	cr_assert_eq(n_taken, n < 1024 ? n : 1024);
	/* The last ones first. */
	for (unsigned i = n_taken; i--;)
		cr_assert_eq(wharf_reply(p.b.port, answerers[i].id, side_bytes(&i, sizeof(i), WHARF_LAST), i), 0);
	settle(p.loop);
	for (unsigned i = 0; i < n_taken; i++) {
		cr_assert_eq(callers[i].end.reason, WHARF_END_LAST);
		cr_assert_eq(callers[i].end.status, i);
		cr_assert_eq(answerers[i].end.reason, WHARF_END_LAST);
	}
	cr_assert_eq(p.a.n_writable, n > 1024);
	if (n > 1024) {
		cr_assert_eq(side_call(&callers[1024], p.a.port, side_text("x", WHARF_LAST), 0), 0);
		settle(p.loop);
		cr_assert_eq(n_taken, 1025);
	}
	pair_free(&p);
}

Test(call_flow, one_in_flight) { many(1); }
Test(call_flow, sixteen_in_flight) { many(16); }
Test(call_flow, two_hundred_in_flight) { many(256); }
Test(call_flow, as_many_as_the_peer_takes) { many(1024); }
Test(call_flow, one_more_than_the_peer_takes) { many(1025); }

/* ---- A slow reader ---- */

Test(call_flow, a_paused_caller_stalls_no_other)
{
	static char bytes[10000];
	unsigned n_slow = 0;

	memset(callers, 0, sizeof(callers));
	memset(answerers, 0, sizeof(answerers));
	n_taken = 0;
	pair_open(&p, WHARF_OPT(port, .rx_stream_bytes_max = 100000), NULL);
	p.b.on_message = take_many;
	for (unsigned i = 0; i < 2; i++)
		cr_assert_eq(side_call(&callers[i], p.a.port, side_text("x", WHARF_LAST), 0), 0);
	settle(p.loop);
	cr_assert_eq(wharf_call_pause(p.a.port, callers[0].id), 0);
	for (unsigned i = 0; i < 1000; i++) {
		cr_assert_eq(wharf_reply(p.b.port, answerers[1].id, side_bytes(bytes, sizeof(bytes), 0), 0), 0);
		n_slow += wharf_reply(p.b.port, answerers[0].id, side_bytes(bytes, sizeof(bytes), 0), 0) == 0;
		settle(p.loop);
	}
	cr_assert_eq(callers[0].n_messages, 0);
	cr_assert_eq(callers[1].n_messages, 1000);
	cr_assert_lt(n_slow, 1000);
	cr_assert_eq(answerers[0].n_writable, 0);
	cr_assert_eq(wharf_call_resume(p.a.port, callers[0].id), 0);
	settle(p.loop);
	cr_assert_eq(callers[0].n_messages, n_slow);
	cr_assert_eq(answerers[0].n_writable, 1);
	cr_assert_eq(answerers[1].n_writable, 0);
	pair_free(&p);
}

Test(call_flow, a_paused_answerer_stalls_no_other)
{
	static char bytes[10000];
	unsigned n_slow = 0;

	memset(callers, 0, sizeof(callers));
	memset(answerers, 0, sizeof(answerers));
	n_taken = 0;
	pair_open(&p, NULL, WHARF_OPT(port, .rx_stream_bytes_max = 100000));
	p.b.on_message = take_many;
	for (unsigned i = 0; i < 2; i++)
		cr_assert_eq(side_call(&callers[i], p.a.port, side_text("x", 0), 0), 0);
	settle(p.loop);
	cr_assert_eq(wharf_call_pause(p.b.port, answerers[0].id), 0);
	for (unsigned i = 0; i < 1000; i++) {
		cr_assert_eq(wharf_call_send(p.a.port, callers[1].id, side_bytes(bytes, sizeof(bytes), 0)), 0);
		n_slow += wharf_call_send(p.a.port, callers[0].id, side_bytes(bytes, sizeof(bytes), 0)) == 0;
		settle(p.loop);
	}
	cr_assert_eq(answerers[0].n_messages, 0);
	cr_assert_eq(answerers[1].n_messages, 1000);
	cr_assert_lt(n_slow, 1000);
	cr_assert_eq(wharf_call_resume(p.b.port, answerers[0].id), 0);
	settle(p.loop);
	cr_assert_eq(answerers[0].n_messages, n_slow);
	cr_assert_eq(callers[0].n_writable, 1);
	pair_free(&p);
}

/* ---- Descriptors ---- */

static dev_t dev;
static ino_t ino;
static unsigned n_same;

static void compare_fds(const struct wharf_msg *msg)
{
	struct stat st;

	for (size_t i = 0; i < msg->n_fds; i++) {
		cr_assert_eq(fstat(msg->fds[i], &st), 0);
		n_same += st.st_dev == dev && st.st_ino == ino;
	}
}

static void compare_in_side(struct side *side, const struct wharf_msg *msg)
{
	(void)side;
	compare_fds(msg);
}

static void take_with_fds(struct end *end, const struct wharf_msg *msg)
{
	cr_assert_eq(side_take(&answerer, end->port, msg), 0);
	compare_fds(msg);
}

Test(call_flow, descriptors_in_requests_and_replies)
{
	int fds[2];
	struct stat st;
	size_t n_fds;

	memset(&caller, 0, sizeof(caller));
	memset(&answerer, 0, sizeof(answerer));
	n_same = 0;
	pair_open(&p, WHARF_OPT(port, .rx_fds_max = 2), WHARF_OPT(port, .rx_fds_max = 2));
	cr_assert_eq(pipe(fds), 0);
	cr_assert_eq(fstat(fds[0], &st), 0);
	dev = st.st_dev;
	ino = st.st_ino;
	n_fds = harness_count_fds();
	p.b.on_message = take_with_fds;
	answerer.on_message = compare_in_side;
	caller.on_message = compare_in_side;
	struct wharf_out out = { .type = 1, .fds = (int[]){ fds[0], fds[0] }, .n_fds = 2 };
	cr_assert_eq(side_call(&caller, p.a.port, &out, 0), 0);
	settle(p.loop);
	cr_assert_eq(wharf_call_send(p.a.port, caller.id, &out), 0);
	cr_assert_eq(wharf_call_pause(p.a.port, caller.id), 0);
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, &out, 0), 0);
	settle(p.loop);
	cr_assert_eq(n_same, 4);
	cr_assert_eq(wharf_call_resume(p.a.port, caller.id), 0);
	settle(p.loop);
	cr_assert_eq(n_same, 6);
	/* Put aside, and dropped. */
	cr_assert_eq(wharf_call_pause(p.a.port, caller.id), 0);
	cr_assert_eq(wharf_reply(p.b.port, answerer.id, &out, 0), 0);
	settle(p.loop);
	cr_assert_eq(harness_count_fds(), n_fds + 2);
	cr_assert_eq(wharf_call_cancel(p.a.port, caller.id), 0);
	settle(p.loop);
	cr_assert_eq(n_same, 6);
	cr_assert_eq(harness_count_fds(), n_fds);
	pair_free(&p);
	close(fds[0]);
	close(fds[1]);
}

/* ---- A peer that does not say hello yet ---- */

Test(call_flow, requests_wait_for_the_hello)
{
	memset(callers, 0, sizeof(callers));
	memset(answerers, 0, sizeof(answerers));
	n_taken = 0;
	pair_start(&p, NULL, NULL);
	p.b.on_message = take_many;
	for (unsigned i = 0; i < 65; i++)
		cr_assert_eq(side_call(&callers[i], p.a.port, side_text("x", 0), 0), i < 64 ? 0 : -EAGAIN);
	cr_assert_eq(wharf_call_send(p.a.port, callers[3].id, side_text("more", WHARF_LAST)), 0);
	settle(p.loop);
	cr_assert_eq(n_taken, 64);
	cr_assert_eq(answerers[3].n_messages, 1);
	cr_assert_eq(p.a.n_writable, 1);
	pair_free(&p);
}

/* ---- Too much at once ---- */

static struct side crowd[3], served[3];
static unsigned n_served;

static void serve(struct end *end, const struct wharf_msg *msg)
{
	struct side *side = &served[n_served++];

	side->port = end->port;
	cr_assert_eq(wharf_call_take(end->port, msg,
			     WHARF_OPT(answer, .on_message = side_on_message, .on_end = side_on_end, .user = side), &side->id),
		0);
}

Test(call_flow, one_that_finds_no_room_for_its_pieces_ends_alone)
{
	static const char bytes[200000];
	struct wharf_part part = { .bytes = bytes, .size = sizeof(bytes) };
	struct wharf_out out = { .flags = WHARF_LAST, .parts = &part, .n_parts = 1 };
	unsigned refused = 0;

	memset(crowd, 0, sizeof(crowd));
	memset(served, 0, sizeof(served));
	n_served = 0;
	pair_open(&p, WHARF_OPT(port, .flags = WHARF_PORT_INLINE),
		WHARF_OPT(port, .rx_bytes_max = 250000, .rx_assembly_bytes_max = 450000));
	p.b.on_message = serve;
	for (unsigned i = 0; i < 3; i++) {
		crowd[i].port = p.a.port;
		cr_assert_eq(wharf_call(p.a.port, &out,
				     WHARF_OPT(call, .on_end = side_on_end, .on_reply = side_on_message, .user = &crowd[i]),
				     &crowd[i].id),
			0);
	}
	settle(p.loop);
	cr_assert_eq(p.a.n_closed + p.b.n_closed, 0, "%s", p.b.reason_text);
	for (unsigned i = 0; i < 3; i++)
		refused += crowd[i].n_ended && crowd[i].end.reason == WHARF_END_REFUSED;
	cr_assert_eq(refused, 1, "%u: %u %u %u", refused, crowd[0].end.reason, crowd[1].end.reason, crowd[2].end.reason);
	cr_assert_eq(n_served, 2, "the others arrived");
	pair_free(&p);
}
