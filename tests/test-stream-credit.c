/* SPDX-License-Identifier: MIT */
/* Credit: what a reader holds of a stream stalls that stream and nothing else, and comes back however it is released. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "apart.h"
#include "harness.h"
#include "pair.h"
#include "port.h"

enum { KEPT_MAX = 2000, RECORD = WH_FLOW_RECORD_BYTES + WH_FLOW_ITEM_BYTES };

static struct pair p;
static struct wharf_msg *kept[KEPT_MAX];
static unsigned n_kept;
static char bytes[100000];

static uint64_t begin(void)
{
	uint64_t stream = 0;

	cr_assert_eq(wharf_stream_begin(p.a.port, 3, WHARF_BYTES_UNKNOWN, &stream), 0);
	return stream;
}

static int push(uint64_t stream, size_t size, uint32_t flags)
{
	return wharf_stream_send(p.a.port, stream, &(struct wharf_out){ .flags = flags,
		.parts = &(struct wharf_part){ .bytes = bytes, .size = size }, .n_parts = 1 });
}

/* Pieces of streams are kept, plain messages are not. */
static void keep(struct end *end, const struct wharf_msg *msg)
{
	(void)end;
	if (!msg->stream || n_kept == KEPT_MAX)
		return;
	kept[n_kept] = wharf_msg_take(msg);
	cr_assert_not_null(kept[n_kept++]);
}

static void release(unsigned n)
{
	while (n--)
		wharf_msg_release(kept[--n_kept]);
}

/* A reader in pieces that keeps all, and takes so much of each stream. */
static void open_keeping(uint64_t credit)
{
	n_kept = 0;
	pair_open(&p, NULL, WHARF_OPT(port, .flags = WHARF_PORT_PIECES, .rx_stream_bytes_max = credit));
	p.b.on_message = keep;
}

static void check_no_violation(void)
{
	cr_assert_not_null(p.a.port, "%s", p.a.reason_text);
	cr_assert_not_null(p.b.port, "%s", p.b.reason_text);
	cr_assert_eq(stats_of(p.b.port).rx_stream_violations, 0);
	cr_assert_eq(p.a.n_aborted, 0);
}

Test(stream_credit, a_reader_that_holds_all_of_one_stalls_only_that)
{
	uint64_t slow, fast;
	unsigned n = 0;
	int error;

	open_keeping(10000);
	slow = begin();
	fast = begin();
	while (!(error = push(slow, 1000, 0))) {
		cr_assert_lt(++n, 2000, "no credit bounds it");
		settle(p.loop);
	}
	cr_assert_eq(error, -EAGAIN);
	cr_assert_geq(n, 10000 / (1000 + RECORD));
	cr_assert_leq(n_kept, 10000 / (1000 + RECORD) + 1);
	p.b.on_message = NULL;
	for (unsigned i = 0; i < 500; i++) {
		cr_assert_eq(push(fast, 5000, 0), 0, "%u", i);
		cr_assert_eq(wharf_send_bytes(p.a.port, 1, bytes, 100), 0);
		settle(p.loop);
	}
	cr_assert_eq(p.b.n_messages, n_kept + 1000);
	check_no_violation();
	release(n_kept);
	pair_free(&p);
}

static void *release_all(void *arg)
{
	(void)arg;
	release(n_kept);
	return NULL;
}

Test(stream_credit, a_release_in_another_thread_gives_it_back_and_wakes_the_sender)
{
	uint64_t stream;
	pthread_t thread;

	open_keeping(10000);
	stream = begin();
	for (unsigned round = 0; round < 20; round++) {
		while (!push(stream, 1000, 0))
			settle(p.loop);
		p.a.n_writable = 0;
		settle(p.loop);
		cr_assert_eq(p.a.n_writable, 0);
		cr_assert_eq(pthread_create(&thread, NULL, release_all, NULL), 0);
		cr_assert_eq(pthread_join(thread, NULL), 0);
		settle_until(p.loop, &p.a.n_writable, 1);
		cr_assert_eq(push(stream, 1000, 0), 0);
		settle(p.loop);
	}
	check_no_violation();
	release(n_kept);
	pair_free(&p);
}

/* Less than what is usually worth a record, but all that there is to come. */
Test(stream_credit, a_little_given_back_by_a_reader_that_keeps_the_rest_goes_on)
{
	uint64_t stream;

	open_keeping(10000);
	stream = begin();
	while (!push(stream, 1000, 0))
		settle(p.loop);
	for (unsigned i = 0; i < 50; i++) {
		p.a.n_writable = 0;
		release(1);
		settle(p.loop);
		cr_assert_eq(p.a.n_writable, 1, "%u", i);
		cr_assert_eq(push(stream, 1000, 0), 0);
		settle(p.loop);
		cr_assert_eq(push(stream, 1000, 0), -EAGAIN);
	}
	check_no_violation();
	release(n_kept);
	pair_free(&p);
}

Test(stream_credit, the_least_that_there_can_be_still_lets_one_record_pass_at_a_time)
{
	uint64_t stream;

	open_keeping(1);
	stream = begin();
	for (unsigned i = 0; i < 20; i++) {
		cr_assert_eq(push(stream, 1000, 0), 0);
		settle(p.loop);
		cr_assert_eq(n_kept, 1);
		cr_assert_eq(push(stream, 1000, 0), -EAGAIN);
		p.a.n_writable = 0;
		release(1);
		settle(p.loop);
		cr_assert_eq(p.a.n_writable, 1);
	}
	cr_assert_eq(wharf_stream_end(p.a.port, stream), 0);
	settle(p.loop);
	check_no_violation();
	cr_assert_eq(p.a.port->flows[WH_FLOW_STREAM_OUT].n, 0);
	release(n_kept);
	pair_free(&p);
}

Test(stream_credit, an_end_waits_for_credit_like_what_it_ends)
{
	uint64_t stream;

	open_keeping(1000);
	stream = begin();
	cr_assert_eq(push(stream, 1000 - RECORD, 0), 0);
	settle(p.loop);
	cr_assert_eq(n_kept, 1);
	cr_assert_eq(wharf_stream_end(p.a.port, stream), 0);
	settle(p.loop);
	check_no_violation();
	cr_assert_eq(p.b.n_messages, 1);
	release(1);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 2);
	cr_assert(p.b.seen[1].flags & WHARF_MSG_LAST);
	check_no_violation();
	release(n_kept);
	pair_free(&p);
}

Test(stream_credit, each_part_of_a_record_costs_as_much_as_it_weighs)
{
	for (unsigned spare = 0; spare < 2; spare++) {
		struct wharf_part parts[3] = { { .bytes = bytes, .size = 400 }, { .bytes = bytes },
			{ .bytes = bytes, .size = 600 - WH_FLOW_RECORD_BYTES - 3 * WH_FLOW_ITEM_BYTES - spare } };
		uint64_t stream;

		open_keeping(1000);
		stream = begin();
		cr_assert_eq(wharf_stream_send(p.a.port, stream, &(struct wharf_out){ .parts = parts, .n_parts = 3 }), 0);
		settle(p.loop);
		cr_assert_eq(push(stream, 1, 0), spare ? 0 : -EAGAIN);
		settle(p.loop);
		check_no_violation();
		release(n_kept);
		pair_free(&p);
	}
}

Test(stream_credit, an_end_never_overtakes_what_waits_for_credit)
{
	uint64_t stream;

	n_kept = 0;
	pair_start(&p, NULL, WHARF_OPT(port, .flags = WHARF_PORT_PIECES, .rx_stream_bytes_max = 1000));
	p.b.on_message = keep;
	stream = begin();
	/* Before the hello they have credit on trust. */
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(push(stream, 1000, 0), 0);
	settle(p.loop);
	cr_assert_eq(n_kept, 1);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, bytes, 10), 0);
	cr_assert_eq(wharf_stream_end(p.a.port, stream), 0);
	settle(p.loop);
	check_no_violation();
	for (unsigned i = 0; i < 3; i++) {
		cr_assert_eq(n_kept, 1);
		release(1);
		settle(p.loop);
	}
	check_no_violation();
	cr_assert_eq(p.b.seen[p.b.n_messages - 1].position, 3000);
	cr_assert(p.b.seen[p.b.n_messages - 1].flags & WHARF_MSG_LAST);
	release(n_kept);
	pair_free(&p);
}

/* A flow whose credit is used up while more of it waits must not keep the port's other messages waiting. */
Test(stream_credit, of_several_sizes_refused_the_callback_means_the_smallest)
{
	uint64_t stream;
	unsigned n_refused = 0, n_told = 0;

	n_kept = 0;
	pair_open(&p, WHARF_OPT(port, .tx_queued_bytes_max = 40000),
		WHARF_OPT(port, .flags = WHARF_PORT_PIECES, .rx_stream_bytes_max = 1 << 20));
	stream = begin();
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	/* A queue of 10000 for the stream: the next is refused while it has as much. */
	while (!push(stream, 3000, 0))
		settle(p.loop);
	for (unsigned round = 0; round < 200; round++) {
		p.a.n_writable = 0;
		cr_assert_eq(wharf_port_resume(p.b.port), 0);
		for (unsigned i = 0; i < 100 && !p.a.n_writable; i++)
			cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
		cr_assert_eq(p.a.n_writable, 1);
		n_told++;
		cr_assert_eq(push(stream, 3000, 0), 0, "told, and refused");
		cr_assert_eq(wharf_port_pause(p.b.port), 0);
		while (!push(stream, 3000, 0))
			settle(p.loop);
		n_refused++;
	}
	cr_assert_eq(n_told, n_refused);
	pair_free(&p);
}

/* Refused for want of credit while others of it wait: both must be there before it is worth another try. */
Test(stream_credit, credit_alone_is_no_room_in_the_queue)
{
	uint64_t stream;

	n_kept = 0;
	pair_start(&p, WHARF_OPT(port, .tx_queued_bytes_max = 40000),
		WHARF_OPT(port, .flags = WHARF_PORT_PIECES, .rx_stream_bytes_max = 2000));
	p.b.on_message = keep;
	stream = begin();
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(push(stream, 3000, 0), 0);
	settle(p.loop);
	cr_assert_eq(n_kept, 1);
	cr_assert_eq(push(stream, 9000, 0), -EAGAIN);
	for (unsigned i = 0; i < 3; i++) {
		p.a.n_writable = 0;
		release(1);
		settle(p.loop);
		if (p.a.n_writable)
			break;
	}
	cr_assert_eq(p.a.n_writable, 1);
	cr_assert_eq(push(stream, 9000, 0), 0, "told, and refused");
	settle(p.loop);
	check_no_violation();
	release(n_kept);
	pair_free(&p);
}

/* ---- What is sent before the hello ---- */

Test(stream_credit, what_is_sent_before_the_hello_leaves_as_the_peers_credit_allows)
{
	uint64_t streams[3];

	n_kept = 0;
	pair_start(&p, NULL, WHARF_OPT(port, .flags = WHARF_PORT_PIECES, .rx_stream_bytes_max = 3000));
	p.b.on_message = keep;
	for (unsigned i = 0; i < 3; i++) {
		streams[i] = begin();
		for (unsigned k = 0; k < 10; k++)
			cr_assert_eq(push(streams[i], 1000, k == 9 ? WHARF_LAST : 0), 0);
	}
	settle(p.loop);
	cr_assert_eq(n_kept, 3 * 3);
	while (n_kept) {
		release(n_kept);
		settle(p.loop);
		check_no_violation();
	}
	cr_assert_eq(p.b.n_messages, 30);
	cr_assert_eq(p.b.n_bytes, 30000);
	cr_assert_eq(p.a.port->flows[WH_FLOW_STREAM_OUT].n, 0);
	pair_free(&p);
}

/* ---- Whole messages take their credit back as they are put together ---- */

Test(stream_credit, a_message_put_together_is_larger_than_its_credit)
{
	uint64_t stream;
	size_t sent = 0;

	pair_open(&p, NULL, WHARF_OPT(port, .rx_stream_bytes_max = 5000));
	stream = begin();
	while (sent < 1000000) {
		int error = push(stream, 9000, 0);
		if (!error)
			sent += 9000;
		else
			cr_assert_eq(error, -EAGAIN);
		settle(p.loop);
	}
	cr_assert_eq(wharf_stream_end(p.a.port, stream), 0);
	settle(p.loop);
	check_no_violation();
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_eq(p.b.n_bytes, sent);
	pair_free(&p);
}
