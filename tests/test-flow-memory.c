/* SPDX-License-Identifier: MIT */
/*
 * Flows where memory fails, the process's too: each allocation in turn. A flow that gets none ends alone where it can,
 * with its port where it cannot; nothing is lost, and no call is told to be answered that was not.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "calls.h"
#include "flow.h"
#include "harness.h"

TestSuite(flow_memory, .timeout = 120);

/* ---- Memory that fails: the linker puts these in the place of the library's calls ---- */

static long n_live, n_requests, fail_at;
static size_t refused_min, refused_max; /* bytes; 0: none */
static unsigned n_refused;

static bool refused(size_t bytes)
{
	bool refuse = ++n_requests == fail_at || (refused_max && bytes >= refused_min && bytes <= refused_max);

	n_refused += refuse;
	if (refuse)
		refused_max = 0;
	return refuse;
}

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
void __real_free(void *memory);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
void __wrap_free(void *memory);

static void *counted(void *memory)
{
	n_live += memory != NULL;
	return memory;
}

void *__wrap_malloc(size_t bytes) { return refused(bytes) ? NULL : counted(__real_malloc(bytes)); }

void *__wrap_calloc(size_t n, size_t bytes) { return refused(n * bytes) ? NULL : counted(__real_calloc(n, bytes)); }

void *__wrap_realloc(void *memory, size_t bytes)
{
	void *new = refused(bytes) ? NULL : __real_realloc(memory, bytes);

	n_live += new && !memory;
	return new;
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
	return refused(bytes) ? NULL : counted(__real_aligned_alloc(alignment, bytes));
}

void __wrap_free(void *memory)
{
	n_live -= memory != NULL;
	__real_free(memory);
}

/* ---- A whole life, in which errors are answers and not failures of the test ---- */

enum { LARGE = 90000, N_CALLS = 4, DELEGATED = 3, UNWANTED = 99, N_STREAMS = 2, ROUNDS = 14 };

static struct pair p;
static struct end c; /* opened from what a delegated request brings */
static struct side callers[N_CALLS], answerers[N_CALLS];
static bool accepted[N_CALLS];
static unsigned n_taken, n_streams_done, n_streams_begun;
static char bytes[LARGE];
static const size_t reply_bytes[N_CALLS] = { 5 + LARGE, 5 + LARGE, 0, 5 + LARGE };

static void check(int error)
{
	cr_assert(!error || error == -ENOMEM || error == -EPIPE || error == -EAGAIN || error == -ESTALE ||
		error == -EALREADY || error == -EBADF, "%d", error);
}

static void open_c(int fd)
{
	int error;

	if (fd < 0)
		return;
	error = wharf_open(p.loop, fd, WHARF_OPT(port, .ops = &end_ops, .user = &c), &c.port);
	check(error);
	if (error) {
		close(fd);
		return;
	}
	answerers[DELEGATED].port = c.port;
	error = wharf_call_adopt(c.port, WHARF_OPT(answer, .on_message = side_on_message, .on_end = side_on_end,
		.user = &answerers[DELEGATED]), &answerers[DELEGATED].id);
	check(error);
	if (error)
		check(wharf_port_abort(c.port, 0));
	else
		answerers[DELEGATED].flags = WHARF_MSG_LAST;
}

static void at_b(struct end *end, const struct wharf_msg *msg)
{
	if (msg->flags & WHARF_MSG_DELEGATED) {
		open_c(wharf_msg_take_fd(msg, 0));
	} else if (msg->call && msg->type != UNWANTED) {
		struct side *side = &answerers[n_taken++];
		cr_assert_eq(side_take(side, end->port, msg), 0);
		side->flags = msg->flags;
		check(wharf_call_pause(end->port, side->id));
	} else if (msg->stream) {
		n_streams_done += (msg->flags & WHARF_MSG_LAST) != 0;
		if (!(msg->flags & WHARF_MSG_LAST) && end->n_messages % 2)
			check(wharf_stream_pause(end->port, msg->stream));
	}
	wharf_msg_release(wharf_msg_take(msg));
}

static void call(unsigned i, const struct wharf_out *out)
{
	int error;

	callers[i].port = p.a.port;
	error = wharf_call(p.a.port, out, WHARF_OPT(call, .on_reply = side_on_message, .on_end = side_on_end,
		.user = &callers[i], .timeout_ns = INT64_C(60000000000), .delegate = i == DELEGATED), &callers[i].id);
	check(error);
	accepted[i] = !error;
}

static void begin_all(void)
{
	struct wharf_out *out = side_bytes(bytes, 10, WHARF_LAST);
	uint64_t streams[N_STREAMS];
	int error;

	call(0, out);
	if (accepted[0])
		check(wharf_call_pause(p.a.port, callers[0].id));
	call(1, side_bytes(bytes, LARGE, 0));
	if (accepted[1])
		check(wharf_call_send(p.a.port, callers[1].id, side_bytes(bytes, 100, WHARF_LAST)));
	out = side_bytes(bytes, 10, WHARF_LAST);
	out->type = UNWANTED;
	call(2, out);
	call(DELEGATED, side_bytes(bytes, 10, WHARF_LAST));
	for (unsigned i = 0; i < N_STREAMS; i++) {
		error = wharf_stream_begin(p.a.port, 1, WHARF_BYTES_UNKNOWN, &streams[i]);
		check(error);
		if (error)
			continue;
		n_streams_begun++;
		out = side_bytes(bytes, i ? 3000 : LARGE, 0);
		out->fds = (int[]){ STDERR_FILENO };
		out->n_fds = 1;
		check(wharf_stream_send(p.a.port, streams[i], out));
		check(wharf_stream_send(p.a.port, streams[i], side_bytes(bytes, 3000, 0)));
		check(wharf_stream_end(p.a.port, streams[i]));
	}
	check(wharf_send(p.a.port, side_bytes(bytes, LARGE, 0)));
}

/* What is paused goes on, and what has its request is answered. */
static void go_on(void)
{
	for (unsigned k = 0; p.b.port && k < p.b.n_messages && k < END_MESSAGES_MAX; k++)
		if (p.b.seen[k].stream)
			check(wharf_stream_resume(p.b.port, p.b.seen[k].stream));
	if (accepted[0] && p.a.port)
		check(wharf_call_resume(p.a.port, callers[0].id));
	for (unsigned i = 0; i < N_CALLS; i++) {
		struct side *side = &answerers[i];
		if (!side->id || side->n_ended || !(i == DELEGATED ? c.port : p.b.port))
			continue;
		check(wharf_call_resume(side->port, side->id));
		if (!(side->flags & WHARF_MSG_LAST) || side->user)
			continue;
		side->user = side; /* answered */
		check(wharf_reply(side->port, side->id, side_bytes(bytes, 5, 0), 0));
		check(wharf_reply(side->port, side->id, side_bytes(bytes, LARGE, WHARF_LAST), 7));
	}
}

static bool is_no_memory(const struct end *end)
{
	return end->reason.code == WHARF_CLOSE_ERROR && end->reason.error == ENOMEM;
}

static void check_close(const struct end *end, const struct end *other)
{
	uint32_t code = end->reason.code;

	cr_assert(code == WHARF_CLOSE_LOCAL || code == WHARF_CLOSE_PEER || code == WHARF_CLOSE_TIMEOUT ||
		code == WHARF_CLOSE_LOOP_FREED || is_no_memory(end) ||
		(code == WHARF_CLOSE_PEER_GONE && (end == &c || is_no_memory(other))) ||
		(code == WHARF_CLOSE_ABORTED && end == &c), "%s", end->reason_text);
}

static void check_end(const struct side *side)
{
	const struct wharf_end *e = &side->end;

	cr_assert_eq(side->n_ended, 1);
	if (e->reason == WHARF_END_ERROR)
		cr_assert(e->error == ENOMEM || e->error == ENOBUFS, "%d", e->error);
	else
		cr_assert(e->reason == WHARF_END_LAST || e->reason == WHARF_END_CLOSED || e->reason == WHARF_END_CANCEL ||
			e->reason == WHARF_END_REFUSED || e->reason == WHARF_END_NO_REPLY ||
			e->reason == WHARF_END_PEER_GONE, "%s", wharf_end_name(e->reason));
}

static void live(const struct wharf_port_options *a, const struct wharf_port_options *b)
{
	long at = fail_at;

	memset(callers, 0, sizeof(callers));
	memset(answerers, 0, sizeof(answerers));
	memset(accepted, 0, sizeof(accepted));
	c = (struct end){ 0 };
	n_taken = n_streams_done = n_streams_begun = 0;
	fail_at = 0;
	pair_open(&p, a, b);
	p.b.on_message = at_b;
	n_requests = 0;
	fail_at = at;
	begin_all();
	for (unsigned i = 0; i < ROUNDS; i++) {
		if (p.b.port && i < 2)
			check(i ? wharf_port_resume(p.b.port) : wharf_port_pause(p.b.port));
		else if (i > 2)
			go_on();
		for (unsigned k = 0; k < 4; k++)
			cr_assert_geq(wharf_loop_step(p.loop, i % 4 ? 0 : 1000000), 0);
	}
	if (p.a.port)
		check(wharf_port_close(p.a.port, 20000000));
	for (unsigned i = 0; i < 6; i++)
		cr_assert_geq(wharf_loop_step(p.loop, i < 3 ? 0 : 1000000), 0);
	p.loop = wharf_loop_free(p.loop);
	fail_at = 0;
	check_close(&p.a, &p.b);
	check_close(&p.b, &p.a);
	if (c.n_closed)
		check_close(&c, &p.a);
	for (unsigned i = 0; i < N_CALLS; i++) {
		if (accepted[i])
			check_end(&callers[i]);
		if (answerers[i].id)
			check_end(&answerers[i]);
		if (callers[i].end.reason == WHARF_END_LAST)
			cr_assert_eq(callers[i].n_bytes, reply_bytes[i], "not answered in full: %zu", callers[i].n_bytes);
	}
}

static void fail_each(const struct wharf_port_options *a, const struct wharf_port_options *b)
{
	struct harness_snapshot before;
	const char *leak;
	long n, n_before;

	fail_at = 0;
	live(a, b);
	n = n_requests;
	cr_assert_gt(n, 30);
	cr_assert_eq(callers[0].end.reason, WHARF_END_LAST, "%s", wharf_end_name(callers[0].end.reason));
	cr_assert_eq(callers[1].end.reason, WHARF_END_LAST, "%s", wharf_end_name(callers[1].end.reason));
	cr_assert_eq(callers[2].end.reason, WHARF_END_NO_REPLY);
	cr_assert_eq(callers[DELEGATED].end.reason, WHARF_END_LAST, "%s",
		wharf_end_name(callers[DELEGATED].end.reason));
	cr_assert_eq(n_streams_done, N_STREAMS);
	for (long i = 1; i <= n; i++) {
		harness_snapshot_take(&before);
		n_before = n_live;
		n_refused = 0;
		fail_at = i;
		live(a, b);
		cr_assert_eq(n_live, n_before, "failing the %ldth of %ld: %ld blocks are lost", i, n, n_live - n_before);
		leak = harness_snapshot_diff(&before);
		cr_assert(!leak, "failing the %ldth of %ld: %s", i, n, leak);
	}
}

/* Without shared memory what is large goes in pieces. */
#define WHOLE WHARF_OPT(port, .flags = WHARF_PORT_INLINE, .rx_fds_max = 1)
#define IN_PIECES WHARF_OPT(port, .flags = WHARF_PORT_INLINE | WHARF_PORT_PIECES, .rx_fds_max = 1)
#define SHARED WHARF_OPT(port, .rx_fds_max = 1)
#define UNTRUSTED WHARF_OPT(port, .untrusted = 1, .rx_fds_max = 1)

Test(flow_memory, each_allocation_may_fail_in_whole_messages) { fail_each(WHOLE, WHOLE); }
Test(flow_memory, each_allocation_may_fail_in_pieces) { fail_each(IN_PIECES, IN_PIECES); }
Test(flow_memory, each_allocation_may_fail_in_shared_memory) { fail_each(SHARED, SHARED); }
Test(flow_memory, each_allocation_may_fail_in_private_copies) { fail_each(UNTRUSTED, UNTRUSTED); }

/* ---- What ends alone ---- */

static struct side others[2]; /* caller and answerer of a call that has its memory */

/* The next request of so many bytes, and no other. */
static void refuse_once(size_t min, size_t max)
{
	refused_min = min;
	refused_max = max;
	n_refused = 0;
}

static bool refused_once(void)
{
	refused_max = 0;
	return n_refused == 1;
}

static const size_t of_assemblies[2][2] = { { sizeof(struct wh_assembly), sizeof(struct wh_assembly) },
	{ 90048, 90048 } };
static const size_t of_asides[2] = { 1000, 1500 };

static void take_in_turn(struct end *end, const struct wharf_msg *msg)
{
	if (!msg->call)
		return;
	cr_assert_eq(side_take(answerers[0].id ? &others[1] : &answerers[0], end->port, msg), 0);
}

static void open_taking(const struct wharf_port_options *a, const struct wharf_port_options *b)
{
	memset(callers, 0, sizeof(callers));
	memset(answerers, 0, sizeof(answerers));
	memset(others, 0, sizeof(others));
	pair_open(&p, a, b);
	p.b.on_message = take_in_turn;
}

/* The ports are there, and a stream, a call and a message do what they should. */
static void check_others(void)
{
	size_t n_before = p.b.n_messages;
	uint64_t stream;

	cr_assert_eq(p.a.n_closed + p.b.n_closed, 0, "%s; %s", p.a.reason_text, p.b.reason_text);
	cr_assert_eq(wharf_stream_begin(p.a.port, 2, LARGE, &stream), 0);
	cr_assert_eq(wharf_stream_send(p.a.port, stream, side_bytes(bytes, LARGE, WHARF_LAST)), 0);
	cr_assert_eq(wharf_send(p.a.port, side_bytes(bytes, LARGE, 0)), 0);
	answerers[0].id = 1; /* of no more interest */
	cr_assert_eq(side_call(&others[0], p.a.port, side_bytes(bytes, LARGE, WHARF_LAST), 0), 0);
	settle(p.loop);
	cr_assert_geq(p.b.n_messages, n_before + 3);
	cr_assert_eq(wharf_reply(p.b.port, others[1].id, side_bytes(bytes, LARGE, WHARF_LAST), 0), 0);
	settle(p.loop);
	cr_assert_eq(others[0].end.reason, WHARF_END_LAST);
	cr_assert_eq(others[0].n_bytes, LARGE);
	pair_free(&p);
}

Test(flow_memory, a_stream_without_memory_for_its_pieces_ends_alone)
{
	for (unsigned i = 0; i < 2; i++) {
		uint64_t stream;

		open_taking(WHOLE, WHOLE);
		cr_assert_eq(wharf_stream_begin(p.a.port, 1, LARGE, &stream), 0);
		cr_assert_eq(wharf_stream_send(p.a.port, stream, side_bytes(bytes, LARGE, WHARF_LAST)), 0);
		refuse_once(of_assemblies[i][0], of_assemblies[i][1]);
		settle(p.loop);
		cr_assert(refused_once());
		cr_assert_eq(p.a.n_aborted, 1);
		cr_assert_eq(p.a.aborted.stream, stream);
		cr_assert_eq(p.a.aborted.why, WHARF_ABORT_ROOM);
		cr_assert_eq(p.b.n_aborted, 0, "it has had nothing of it");
		cr_assert_eq(p.b.n_messages, 0);
		check_others();
	}
}

static void pause_it(struct end *end, const struct wharf_msg *msg)
{
	if (msg->stream)
		cr_assert_eq(wharf_stream_pause(end->port, msg->stream), 0);
}

Test(flow_memory, a_paused_stream_without_memory_to_wait_ends_alone)
{
	uint64_t stream;

	open_taking(WHOLE, IN_PIECES);
	p.b.on_message = pause_it;
	cr_assert_eq(wharf_stream_begin(p.a.port, 1, WHARF_BYTES_UNKNOWN, &stream), 0);
	for (unsigned i = 0; i < 4; i++) {
		cr_assert_eq(wharf_stream_send(p.a.port, stream, side_bytes(bytes, 1000, 0)), 0);
		if (i == 2)
			refuse_once(of_asides[0], of_asides[1]);
		settle(p.loop);
		if (i == 2)
			cr_assert(refused_once());
		if (p.a.n_aborted)
			break;
	}
	cr_assert_eq(p.a.aborted.why, WHARF_ABORT_ROOM);
	cr_assert_eq(p.b.n_aborted, 1, "it expects the rest");
	cr_assert_eq(p.b.aborted.why, WHARF_ABORT_ROOM);
	cr_assert_eq(wharf_stream_resume(p.b.port, p.b.seen[0].stream), -ESTALE);
	cr_assert_eq(p.b.n_messages, 1);
	p.b.on_message = take_in_turn;
	check_others();
}

Test(flow_memory, a_request_without_memory_for_its_pieces_ends_alone)
{
	for (unsigned i = 0; i < 2; i++) {
		open_taking(WHOLE, WHOLE);
		cr_assert_eq(side_call(&callers[0], p.a.port, side_bytes(bytes, LARGE, WHARF_LAST), 0), 0);
		refuse_once(of_assemblies[i][0], of_assemblies[i][1]);
		settle(p.loop);
		cr_assert(refused_once());
		cr_assert_eq(callers[0].end.reason, WHARF_END_REFUSED);
		cr_assert_eq(p.b.n_messages, 0);
		check_others();
	}
}

Test(flow_memory, a_reply_without_memory_ends_its_call_alone)
{
	for (unsigned i = 0; i < 3; i++) {
		const size_t *sizes = i < 2 ? of_assemblies[i] : of_asides;
		bool paused = i == 2;

		open_taking(WHOLE, WHOLE);
		cr_assert_eq(side_call(&callers[0], p.a.port, side_bytes(bytes, 10, WHARF_LAST), 0), 0);
		settle(p.loop);
		if (paused)
			cr_assert_eq(wharf_call_pause(p.a.port, callers[0].id), 0);
		cr_assert_eq(wharf_reply(p.b.port, answerers[0].id, side_bytes(bytes, 10, 0), 0), 0);
		settle(p.loop);
		cr_assert_eq(wharf_reply(p.b.port, answerers[0].id, side_bytes(bytes, paused ? 1000 : LARGE, 0), 0), 0);
		refuse_once(sizes[0], sizes[1]);
		settle(p.loop);
		cr_assert(refused_once());
		cr_assert_eq(callers[0].end.reason, WHARF_END_ERROR);
		cr_assert_eq(callers[0].end.error, ENOBUFS);
		cr_assert_eq(callers[0].n_messages, paused ? 0 : 1);
		cr_assert_eq(answerers[0].end.reason, WHARF_END_CANCEL);
		check_others();
	}
}

/* ---- What ends with its port ---- */

Test(flow_memory, a_frame_that_cannot_be_held_ends_the_port)
{
	/* The frame itself, and the room to note that what begins in it is given up. */
	static const size_t sizes[2][2] = { { 1000, 4000 }, { 8 * sizeof(uint64_t), 8 * sizeof(uint64_t) } };

	for (unsigned i = 0; i < 2; i++) {
		open_taking(WHOLE, WHOLE);
		cr_assert_eq(wharf_port_pause(p.b.port), 0);
		cr_assert_eq(side_call(&callers[0], p.a.port, side_bytes(bytes, 10, WHARF_LAST), 0), 0);
		refuse_once(sizes[i][0], sizes[i][1]);
		settle(p.loop);
		cr_assert(refused_once());
		cr_assert_eq(p.b.n_closed, 1);
		cr_assert(is_no_memory(&p.b), "%s", p.b.reason_text);
		cr_assert_eq(callers[0].end.reason, WHARF_END_PEER_GONE);
		cr_assert_eq(callers[0].end.progress, WHARF_MAYBE_SEEN);
		pair_free(&p);
	}
}

Test(flow_memory, a_call_whose_last_reply_could_not_be_copied_is_not_answered)
{
	open_taking(UNTRUSTED, SHARED);
	cr_assert_eq(side_call(&callers[0], p.a.port, side_bytes(bytes, 10, WHARF_LAST), 0), 0);
	settle(p.loop);
	cr_assert_eq(wharf_reply(p.b.port, answerers[0].id, side_bytes(bytes, 1000, WHARF_LAST), 0), 0);
	refuse_once(of_asides[0], of_asides[1]);
	settle(p.loop);
	cr_assert(refused_once());
	cr_assert_eq(callers[0].n_messages, 0);
	cr_assert_eq(callers[0].end.reason, WHARF_END_ERROR);
	cr_assert_eq(callers[0].end.error, ENOMEM);
	cr_assert(is_no_memory(&p.a), "%s", p.a.reason_text);
	pair_free(&p);
}
