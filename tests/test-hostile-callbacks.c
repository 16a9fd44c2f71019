/* SPDX-License-Identifier: MIT */
/* Applications that do in their callbacks what nobody expects, and loops without memory: no crash, hang or leak. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "calls.h"
#include "harness.h"
#include "pair.h"
#include "raw.h"

TestSuite(hostile_callbacks, .timeout = 30);

static struct pair p;

/* A loop that counts what it allocates, and refuses the fail_at-th request if that is not 0. */
static long n_allocated, n_requests, fail_at;

static void *counted_alloc(size_t bytes, void *user)
{
	void *memory;

	(void)user;
	if (++n_requests == fail_at)
		return NULL;
	memory = malloc(bytes);
	n_allocated += !!memory;
	return memory;
}

static void counted_free(void *memory, void *user)
{
	(void)user;
	n_allocated -= !!memory;
	free(memory);
}

static int counted_loop(wharf_loop **ret_loop)
{
	return wharf_loop_new(WHARF_OPT(loop, .alloc = counted_alloc, .free = counted_free), ret_loop);
}

static int open_end(struct end *end, int fd)
{
	*end = (struct end){ .pair = &p };
	return wharf_open(p.loop, fd, WHARF_OPT(port, .ops = &end_ops, .user = end, .rx_fds_max = 8), &end->port);
}

static void counted_pair(void)
{
	int fds[2];

	p = (struct pair){ 0 };
	n_allocated = n_requests = fail_at = 0;
	cr_assert_eq(counted_loop(&p.loop), 0);
	cr_assert_eq(wharf_pair(fds), 0);
	cr_assert_eq(open_end(&p.a, fds[0]), 0);
	cr_assert_eq(open_end(&p.b, fds[1]), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_open, 1);
}

static void counted_free_pair(void)
{
	p.loop = wharf_loop_free(p.loop);
	cr_assert_eq(n_allocated, 0, "%ld blocks of the loop's memory are lost", n_allocated);
}

/* ---- Ends inside callbacks ---- */

static void abort_the_other(struct end *end, const struct wharf_msg *msg)
{
	struct end *other = end == &p.a ? &p.b : &p.a;

	(void)msg;
	if (other->port)
		wharf_port_abort(other->port, 2);
	if (end->port)
		wharf_port_close(end->port, -1);
}

Test(hostile_callbacks, both_ends_of_one_loop_end_each_other)
{
	counted_pair();
	p.a.on_message = p.b.on_message = abort_the_other;
	for (int i = 0; i < 3; i++) {
		cr_assert_eq(wharf_send_bytes(p.a.port, 1, "a", 1), 0);
		cr_assert_eq(wharf_send_bytes(p.b.port, 1, "b", 1), 0);
	}
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.b.n_closed, 1);
	counted_free_pair();
}

static struct side blocked[2], reading[2];
static unsigned n_told, n_reading;

static void take_call(struct end *end, const struct wharf_msg *msg)
{
	cr_assert_eq(side_take(&reading[n_reading++], end->port, msg), 0);
}

static void abort_at_once(struct side *side)
{
	if (!n_told++)
		cr_assert_eq(wharf_port_abort(side->port, 3), 0);
}

Test(hostile_callbacks, a_call_that_aborts_when_it_may_go_on_is_the_last_that_is_told)
{
	static const char bytes[1000];

	memset(blocked, 0, sizeof(blocked));
	memset(reading, 0, sizeof(reading));
	n_told = n_reading = 0;
	pair_open(&p, NULL, WHARF_OPT(port, .rx_stream_bytes_max = 5000));
	p.b.on_message = take_call;
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	for (unsigned i = 0; i < 2; i++) {
		blocked[i].on_writable = abort_at_once;
		cr_assert_eq(side_call(&blocked[i], p.a.port, side_text("x", 0), 0), 0);
		settle(p.loop);
		while (!wharf_call_send(p.a.port, blocked[i].id, side_bytes(bytes, sizeof(bytes), 0)))
			settle(p.loop);
	}
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(n_told, 1, "%u", n_told);
	cr_assert_eq(p.a.n_closed, 1);
	for (unsigned i = 0; i < 2; i++)
		cr_assert(blocked[i].n_ended == 1 && reading[i].n_ended == 1);
	pair_free(&p);
}

static void do_all_at_close(struct end *end)
{
	struct wharf_port_stats stats;

	WHARF_INIT(&stats);
	cr_assert_eq(wharf_send_bytes(end->port, 1, "x", 1), -EPIPE);
	cr_assert_eq(wharf_port_pause(end->port), -EPIPE);
	cr_assert_eq(wharf_port_resume(end->port), -EPIPE);
	cr_assert_eq(wharf_port_abort(end->port, 1), -EPIPE);
	cr_assert_eq(wharf_port_close(end->port, 1), -EPIPE);
	cr_assert_eq(wharf_port_stats(end->port, &stats), -EPIPE);
	abort_the_other(end, NULL);
}

Test(hostile_callbacks, everything_from_on_close)
{
	for (int how = 0; how < 3; how++) {
		counted_pair();
		p.a.on_close = p.b.on_close = do_all_at_close;
		for (int i = 0; i < 10; i++)
			cr_assert_eq(wharf_send_bytes(p.a.port, 1, "a", 1), 0);
		if (how == 0)
			cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
		else if (how == 1)
			cr_assert_eq(wharf_port_abort(p.a.port, 3), 0);
		settle(p.loop);
		counted_free_pair();
		cr_assert_eq(p.a.n_closed, 1);
		cr_assert_eq(p.b.n_closed, 1);
	}
}

static void send_until_refused(struct end *end)
{
	static unsigned char bytes[20000];
	int error;

	while (!(error = wharf_send_bytes(end->port, 1, bytes, sizeof(bytes))))
		;
	cr_assert_eq(error, -EAGAIN);
	if (end->n_writable > 20)
		cr_assert_eq(wharf_port_close(end->port, -1), 0);
}

Test(hostile_callbacks, sending_and_closing_from_on_writable)
{
	counted_pair();
	p.a.on_writable = send_until_refused;
	send_until_refused(&p.a);
	settle(p.loop);
	cr_assert_gt(p.a.n_writable, 20);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_LOCAL);
	cr_assert_eq(p.a.reason.unsent_messages, 0);
	cr_assert_eq(p.b.n_closed, 1);
	counted_free_pair();
}

static void fill_and_abort(struct end *end, const struct wharf_msg *msg)
{
	(void)msg;
	send_until_refused(end);
	cr_assert_eq(wharf_port_abort(end->port, 4), 0);
}

Test(hostile_callbacks, aborting_with_a_full_queue_and_a_frame_on_its_way)
{
	for (int i = 0; i < 4; i++) {
		counted_pair();
		p.a.on_message = fill_and_abort;
		if (i & 1)
			cr_assert_eq(wharf_port_pause(p.b.port), 0);
		if (i & 2)
			send_until_refused(&p.a);
		cr_assert_eq(wharf_send_bytes(p.b.port, 1, "go", 2), 0);
		settle(p.loop);
		if (p.b.port)
			cr_assert_eq(wharf_port_resume(p.b.port), 0);
		settle(p.loop);
		cr_assert_eq(p.a.n_closed, 1);
		cr_assert_eq(p.b.n_closed, 1);
		counted_free_pair();
	}
}

static void refill(struct end *end, const struct wharf_msg *msg)
{
	static unsigned char bytes[20000];

	(void)msg;
	for (int i = 0; i < 3; i++)
		(void)!wharf_send_bytes(end->port, 1, bytes, sizeof(bytes));
}

/* A send that ends while the deadline's bye is sent is heard of when the port is gone. */
Test(hostile_callbacks, giving_up_in_the_middle_of_a_full_queue)
{
	for (int n = 0; n < 40; n++) {
		counted_pair();
		p.a.on_message = p.b.on_message = refill;
		send_until_refused(&p.a);
		send_until_refused(&p.b);
		for (int i = 0; i < n; i++)
			cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
		cr_assert_eq(wharf_port_close(p.a.port, 0), 0);
		settle(p.loop);
		cr_assert_eq(p.a.n_closed, 1);
		cr_assert_eq(p.b.n_closed, 1);
		counted_free_pair();
	}
}

static void send_and_abort(wharf_port *port, const struct wharf_peer *peer, void *user)
{
	struct end *end = user;

	(void)peer;
	end->n_open++;
	cr_assert_eq(wharf_send_bytes(port, 1, "from on_open", 12), 0);
	cr_assert_eq(wharf_port_pause(port), 0);
	cr_assert_eq(wharf_port_resume(port), 0);
	if (end == &p.a)
		cr_assert_eq(wharf_port_close(port, -1), 0);
	else
		cr_assert_eq(wharf_port_abort(port, 9), 0);
}

Test(hostile_callbacks, sending_and_ending_from_on_open)
{
	struct wharf_port_ops ops = end_ops;
	int fds[2];

	ops.on_open = send_and_abort;
	p = (struct pair){ 0 };
	n_allocated = n_requests = fail_at = 0;
	cr_assert_eq(counted_loop(&p.loop), 0);
	cr_assert_eq(wharf_pair(fds), 0);
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &ops, .user = &p.a), &p.a.port), 0);
	cr_assert_eq(wharf_open(p.loop, fds[1], WHARF_OPT(port, .ops = &ops, .user = &p.b), &p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.a.n_open, 1);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.b.n_closed, 1);
	counted_free_pair();
}

/* ---- Lingering ---- */

static struct wharf_msg *kept, *kept_too;

static void keep(struct end *end, const struct wharf_msg *msg)
{
	struct wharf_msg **to = end == &p.a ? &kept : &kept_too;

	if (!*to)
		*to = wharf_msg_take(msg);
}

Test(hostile_callbacks, a_port_that_lingered_leaves_no_frame_behind)
{
	struct harness_snapshot before;
	struct wharf_buf b;
	const char *leak;

	counted_pair();
	counted_free_pair();
	harness_snapshot_take(&before);
	counted_pair();
	kept = kept_too = NULL;
	/* Both hold something: each waits for the other. */
	p.a.on_message = p.b.on_message = keep;
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 1000, &b), 0);
	cr_assert_eq(wharf_send_buf(p.a.port, 1, &b), 0);
	cr_assert_eq(wharf_send_bytes(p.b.port, 1, "too", 3), 0);
	settle(p.loop);
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.b.n_closed, 1);
	wharf_msg_release(kept);
	settle(p.loop);
	wharf_msg_release(kept_too);
	settle(p.loop);
	counted_free_pair();
	leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

Test(hostile_callbacks, a_handle_kept_past_on_close_has_no_pool)
{
	wharf_port *b;

	counted_pair();
	kept = kept_too = NULL;
	p.a.on_message = p.b.on_message = keep;
	b = wharf_port_ref(p.b.port);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "kept", 4), 0);
	cr_assert_eq(wharf_send_bytes(p.b.port, 1, "kept", 4), 0);
	settle(p.loop);
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_closed, 1);
	cr_assert_null(wharf_port_pool(b), "lingering or not");
	wharf_msg_release(kept);
	wharf_msg_release(kept_too);
	wharf_port_unref(b);
	counted_free_pair();
}

/* ---- Freeing the loop ---- */

static int reconnected = 1;

static void reconnect(struct end *end)
{
	static struct end again;
	int fds[2];

	(void)end;
	cr_assert_eq(wharf_pair(fds), 0);
	/* With its peer's socket open nothing else would end it. */
	reconnected = open_end(&again, fds[0]);
	cr_assert_lt(reconnected, 0);
	close(fds[0]);
	close(fds[1]);
}

Test(hostile_callbacks, opening_a_port_while_the_loop_is_freed_is_refused)
{
	struct harness_snapshot before;
	const char *leak;

	counted_pair();
	counted_free_pair();
	harness_snapshot_take(&before);
	counted_pair();
	p.a.on_close = p.b.on_close = reconnect;
	counted_free_pair();
	cr_assert_eq(reconnected, -EPIPE);
	leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

static void *run_and_leave(void *arg)
{
	(void)arg;
	counted_pair();
	(void)!wharf_send_bytes(p.a.port, 1, "never", 5);
	return NULL;
}

Test(hostile_callbacks, a_loop_is_freed_after_its_thread_has_ended)
{
	struct harness_snapshot before;
	const char *leak;
	pthread_t thread;

	counted_pair();
	counted_free_pair();
	harness_snapshot_take(&before);
	cr_assert_eq(pthread_create(&thread, NULL, run_and_leave, NULL), 0);
	cr_assert_eq(pthread_join(thread, NULL), 0);
	counted_free_pair();
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.b.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_LOOP_FREED);
	leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

/* ---- No memory ---- */

static void take_and_answer(struct end *end, const struct wharf_msg *msg)
{
	struct wharf_msg *m = wharf_msg_take(msg);

	(void)!wharf_send_bytes(end->port, 1, "answer", 6);
	wharf_msg_release(m);
}

/* A whole life, in which errors are answers and not failures of the test. */
static void live(void)
{
	struct wharf_buf b;
	int fds[2];

	p = (struct pair){ 0 };
	if (counted_loop(&p.loop))
		return;
	cr_assert_eq(wharf_pair(fds), 0);
	int a = open_end(&p.a, fds[0]), z = open_end(&p.b, fds[1]);
	cr_assert(a == 0 || a == -ENOMEM, "%d", a);
	cr_assert(z == 0 || z == -ENOMEM, "%d", z);
	if (a)
		close(fds[0]);
	if (z)
		close(fds[1]);
	p.b.on_message = take_and_answer;
	for (int i = 0; i < 20; i++) {
		if (p.a.port) {
			int error = wharf_buf_claim(wharf_port_pool(p.a.port), 5000, &b);
			if (!error && (error = wharf_send_buf(p.a.port, 1, &b)))
				wharf_buf_abandon(&b);
			cr_assert(error == 0 || error == -ENOMEM || error == -EPIPE, "%d", error);
			error = wharf_send(p.a.port, &(struct wharf_out){ .fds = (int[]){ 0 }, .n_fds = 1 });
			cr_assert(error == 0 || error == -ENOMEM || error == -EPIPE || error == -EAGAIN, "%d", error);
		}
		cr_assert_geq(wharf_loop_step(p.loop, i % 4 ? 0 : 2000000), 0);
	}
	if (p.a.port)
		(void)!wharf_port_close(p.a.port, 50000000);
	for (int i = 0; i < 10; i++)
		cr_assert_geq(wharf_loop_step(p.loop, i < 5 ? 0 : 2000000), 0);
	p.loop = wharf_loop_free(p.loop);
	cr_assert_eq(p.a.n_closed, a == 0);
	cr_assert_eq(p.b.n_closed, z == 0);
	cr_assert(p.a.reason.code != WHARF_CLOSE_VIOLATION && p.b.reason.code != WHARF_CLOSE_VIOLATION, "%s; %s",
		p.a.reason_text, p.b.reason_text);
}

static bool refuses;

static void *refusing_alloc(size_t bytes, void *user)
{
	return refuses ? NULL : counted_alloc(bytes, user);
}

static uint64_t stopped_clock(void *user)
{
	(void)user;
	return 1; /* nothing is tried again after a pause */
}

/* Every frame is full and waits for the window, and there is no memory for another. */
Test(hostile_callbacks, control_records_need_no_memory)
{
	static char large[30000];
	static struct raw_read read;
	struct raw_frame frame;
	int fds[2];

	p = (struct pair){ 0 };
	n_allocated = n_requests = fail_at = 0;
	refuses = false;
	cr_assert_eq(wharf_loop_new(WHARF_OPT(loop, .alloc = refusing_alloc, .free = counted_free,
		.clock_ns = stopped_clock), &p.loop), 0);
	cr_assert_eq(wharf_pair(fds), 0);
	cr_assert_eq(open_end(&p.a, fds[0]), 0);
	raw_say_hello(fds[1], NULL);
	settle(p.loop);
	while (!wharf_send_bytes(p.a.port, 1, large, sizeof(large)))
		settle(p.loop);
	while (raw_receive(fds[1], &read))
		;
	refuses = true;
	for (unsigned i = 0; i < 3; i++) {
		raw_begin(&frame);
		raw_put_bytes(&frame, 1, "tell", 4);
		frame.encoder.flags = WH_FRAME_TELL;
		cr_assert(raw_end(fds[1], &frame, 0));
		settle(p.loop);
		cr_assert_eq(p.a.n_messages, i + 1);
		cr_assert(raw_receive(fds[1], &read), "the report waits for memory");
		cr_assert_eq(((const struct wh_frame *)(const void *)read.bytes)->consumed, i + 1);
		settle(p.loop);
	}
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, large, sizeof(large)), -EAGAIN);
	refuses = false;
	close(fds[1]);
	counted_free_pair();
}

Test(hostile_callbacks, each_allocation_of_the_loop_may_fail)
{
	struct harness_snapshot before;
	const char *leak;
	long n;

	n_allocated = n_requests = fail_at = 0;
	live();
	cr_assert_eq(n_allocated, 0);
	n = n_requests;
	cr_assert_gt(n, 5);
	for (long i = 1; i <= n; i++) {
		harness_snapshot_take(&before);
		n_requests = 0;
		fail_at = i;
		live();
		cr_assert_eq(n_allocated, 0, "failing the %ldth of %ld: %ld blocks are lost", i, n, n_allocated);
		leak = harness_snapshot_diff(&before);
		cr_assert(!leak, "failing the %ldth of %ld: %s", i, n, leak);
	}
}
