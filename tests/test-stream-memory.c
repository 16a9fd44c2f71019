/* SPDX-License-Identifier: MIT */
/* Streams and messages in pieces where memory fails: each allocation of the loop in turn. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"
#include "pair.h"

static struct pair p;
static char bytes[90000];
static long n_allocated, n_requests, fail_at;
static unsigned n_accepted, n_done;

static void *failing_alloc(size_t size, void *user)
{
	void *memory;

	(void)user;
	if (++n_requests == fail_at)
		return NULL;
	memory = malloc(size);
	n_allocated += memory != NULL;
	return memory;
}

static void failing_free(void *memory, void *user)
{
	(void)user;
	n_allocated -= memory != NULL;
	free(memory);
}

static void done(const void *at, size_t size, void *user)
{
	(void)at, (void)size, (void)user;
	n_done++;
}

static void check(int error)
{
	cr_assert(!error || error == -ENOMEM || error == -EPIPE || error == -EAGAIN || error == -ESTALE, "%d", error);
}

static void use(wharf_port *port, unsigned i)
{
	struct wharf_part part = { .bytes = bytes, .size = sizeof(bytes) };
	struct wharf_part by_reference = { .bytes = bytes, .size = sizeof(bytes), .done = done };
	struct wharf_buf b;
	uint64_t stream;
	int error;

	check(wharf_send(port, &(struct wharf_out){ .parts = &part, .n_parts = 1, .fds = (int[]){ 0 }, .n_fds = 1 }));
	error = wharf_send(port, &(struct wharf_out){ .parts = &by_reference, .n_parts = 1 });
	check(error);
	n_accepted += !error;
	error = wharf_stream_begin(port, 5, WHARF_BYTES_UNKNOWN, &stream);
	check(error);
	if (error)
		return;
	error = wharf_buf_claim(wharf_port_pool(port), 5000, &b);
	if (!error && (error = wharf_stream_send_buf(port, stream, &b, 0)))
		wharf_buf_abandon(&b);
	check(error);
	part.size = 3000;
	check(wharf_stream_send(port, stream, &(struct wharf_out){ .parts = &part, .n_parts = 1 }));
	if (i % 3 == 0)
		check(wharf_stream_abort(port, stream, 0));
	else if (i % 3 == 1)
		check(wharf_stream_end(port, stream));
}

static void hold_and_let_go(struct end *end, const struct wharf_msg *msg)
{
	if (!msg->stream)
		return;
	if (end->n_messages % 2)
		check(wharf_stream_pause(end->port, msg->stream));
	wharf_msg_release(wharf_msg_take(msg));
}

/* A whole life, in which errors are answers and not failures of the test. */
static void live(uint32_t flags)
{
	int fds[2], errors[2];

	p = (struct pair){ 0 };
	n_accepted = n_done = 0;
	if (wharf_loop_new(WHARF_OPT(loop, .alloc = failing_alloc, .free = failing_free), &p.loop))
		return;
	cr_assert_eq(wharf_pair(fds), 0);
	for (unsigned i = 0; i < 2; i++) {
		struct end *end = i ? &p.b : &p.a;
		errors[i] = wharf_open(p.loop, fds[i], WHARF_OPT(port, .ops = &end_ops, .user = end, .rx_fds_max = 1,
			.flags = flags), &end->port);
		check(errors[i]);
		if (errors[i])
			close(fds[i]);
	}
	p.b.on_message = hold_and_let_go;
	for (unsigned i = 0; i < 12; i++) {
		if (p.a.port)
			use(p.a.port, i);
		for (unsigned k = 0; p.b.port && k < p.b.n_messages && k < END_MESSAGES_MAX; k++)
			if (p.b.seen[k].stream)
				check(wharf_stream_resume(p.b.port, p.b.seen[k].stream));
		cr_assert_geq(wharf_loop_step(p.loop, i % 4 ? 0 : 2000000), 0);
	}
	if (p.a.port)
		(void)!wharf_port_close(p.a.port, 50000000);
	for (int i = 0; i < 10; i++)
		cr_assert_geq(wharf_loop_step(p.loop, i < 5 ? 0 : 2000000), 0);
	p.loop = wharf_loop_free(p.loop);
	cr_assert_eq(p.a.n_closed, errors[0] == 0);
	cr_assert_eq(p.b.n_closed, errors[1] == 0);
	cr_assert_eq(n_done, n_accepted);
	cr_assert(p.a.reason.code != WHARF_CLOSE_VIOLATION && p.b.reason.code != WHARF_CLOSE_VIOLATION, "%s; %s",
		p.a.reason_text, p.b.reason_text);
}

static void fail_each(uint32_t flags)
{
	struct harness_snapshot before;
	const char *leak;
	long n;

	n_allocated = n_requests = fail_at = 0;
	live(flags);
	cr_assert_eq(n_allocated, 0);
	n = n_requests;
	cr_assert_gt(n, 20);
	for (long i = 1; i <= n; i++) {
		harness_snapshot_take(&before);
		n_requests = 0;
		fail_at = i;
		live(flags);
		cr_assert_eq(n_allocated, 0, "failing the %ldth of %ld: %ld blocks are lost", i, n, n_allocated);
		leak = harness_snapshot_diff(&before);
		cr_assert(!leak, "failing the %ldth of %ld: %s", i, n, leak);
	}
}

Test(stream_memory, each_allocation_may_fail_in_whole_messages) { fail_each(0); }
Test(stream_memory, each_allocation_may_fail_in_pieces) { fail_each(WHARF_PORT_PIECES); }
Test(stream_memory, each_allocation_may_fail_inline) { fail_each(WHARF_PORT_PIECES | WHARF_PORT_INLINE); }
