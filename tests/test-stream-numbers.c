/* SPDX-License-Identifier: MIT */
/* Numbers of streams and calls: given out, in use on both sides, free again. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "apart.h"
#include "harness.h"
#include "pair.h"
#include "port.h"

static struct pair p;
static struct apart q;

static uint64_t begin(wharf_port *port, uint64_t total)
{
	uint64_t stream = 0;

	cr_assert_eq(wharf_stream_begin(port, 3, total, &stream), 0);
	return stream;
}

static int send_bytes(wharf_port *port, uint64_t stream, const void *bytes, size_t size, uint32_t flags)
{
	return wharf_stream_send(port, stream, &(struct wharf_out){ .flags = flags,
		.parts = &(struct wharf_part){ .bytes = bytes, .size = size }, .n_parts = 1 });
}

static void check_alive(void)
{
	size_t before = p.b.n_messages;

	cr_assert_not_null(p.a.port, "%s", p.a.reason_text);
	cr_assert_not_null(p.b.port, "%s", p.b.reason_text);
	cr_assert_eq(wharf_send_bytes(p.a.port, 77, "alive", 5), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, before + 1);
}

Test(stream_numbers, one_given_up_is_free_only_behind_its_farewell)
{
	uint64_t stream;

	pair_open(&p, NULL, WHARF_OPT(port, .rx_streams_max = 1));
	for (unsigned i = 0; i < 3; i++) {
		stream = begin(p.a.port, 10);
		cr_assert_eq(send_bytes(p.a.port, stream, "gone", 4, 0), 0);
		settle(p.loop);
		cr_assert_eq(send_bytes(p.a.port, stream, "more", 4, 0), 0);
		cr_assert_eq(wharf_stream_abort(p.a.port, stream, 5), 0);
		/* Its number is still with the peer; the first record of another must not come before the word. */
		cr_assert_eq(wharf_stream_begin(p.a.port, 3, 4, &stream), -EAGAIN);
		p.a.n_writable = 0;
		settle(p.loop);
		cr_assert_eq(p.a.n_writable, 1);
		cr_assert_eq(p.b.n_aborted, i + 1);
		stream = begin(p.a.port, 4);
		cr_assert_eq(send_bytes(p.a.port, stream, "here", 4, WHARF_LAST), 0);
		settle(p.loop);
		cr_assert_eq(p.b.n_messages, i + 1);
	}
	pair_free(&p);
}

static void pause_it(struct end *end, const struct wharf_msg *msg)
{
	if (msg->stream && !msg->position_bytes)
		cr_assert_eq(wharf_stream_pause(end->port, msg->stream), 0);
}

/* Sent to its end, and held by its reader: not free, however long that takes. */
Test(stream_numbers, one_that_its_reader_holds_stays_in_use)
{
	enum { STREAMS = 12 };
	uint64_t streams[STREAMS], again;

	pair_open(&p, NULL, WHARF_OPT(port, .flags = WHARF_PORT_PIECES, .rx_streams_max = STREAMS));
	p.b.on_message = pause_it;
	for (unsigned i = 0; i < STREAMS; i++) {
		streams[i] = begin(p.a.port, WHARF_BYTES_UNKNOWN);
		cr_assert_eq(send_bytes(p.a.port, streams[i], "one", 3, 0), 0);
		cr_assert_eq(send_bytes(p.a.port, streams[i], "two", 3, WHARF_LAST), 0);
		cr_assert_eq(wharf_stream_end(p.a.port, streams[i]), -ESTALE);
		settle(p.loop);
	}
	cr_assert_eq(p.b.n_messages, STREAMS);
	cr_assert_eq(wharf_stream_begin(p.a.port, 3, 4, &again), -EAGAIN);
	cr_assert_eq(wharf_stream_resume(p.b.port, p.b.seen[5].stream), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, STREAMS + 1);
	cr_assert_eq(p.a.n_writable, 1);
	again = begin(p.a.port, 4);
	cr_assert_eq(send_bytes(p.a.port, again, "here", 4, WHARF_LAST), 0);
	settle(p.loop);
	check_alive();
	for (unsigned i = 0; i < STREAMS; i++)
		if (i != 5)
			cr_assert_eq(wharf_stream_resume(p.b.port, p.b.seen[i].stream), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 2 * STREAMS + 2);
	for (unsigned i = 0; i < STREAMS; i++)
		streams[i] = begin(p.a.port, 4);
	pair_free(&p);
}

/* Sent to its end here does not mean read there. */
Test(stream_numbers, the_sender_hears_that_its_reader_gave_up_what_was_sent_to_its_end)
{
	uint64_t stream;

	pair_open(&p, NULL, WHARF_OPT(port, .flags = WHARF_PORT_PIECES, .rx_streams_max = 1));
	p.b.on_message = pause_it;
	stream = begin(p.a.port, WHARF_BYTES_UNKNOWN);
	cr_assert_eq(send_bytes(p.a.port, stream, "one", 3, 0), 0);
	cr_assert_eq(send_bytes(p.a.port, stream, "two", 3, WHARF_LAST), 0);
	settle(p.loop);
	cr_assert_eq(wharf_stream_abort(p.b.port, p.b.seen[0].stream, 9), 0);
	settle(p.loop);
	cr_assert_eq(p.a.n_aborted, 1);
	cr_assert_eq(p.a.aborted.stream, stream);
	cr_assert_eq(p.a.aborted.why, WHARF_ABORT_READER);
	cr_assert_eq(p.a.aborted.app_code, 9);
	(void)begin(p.a.port, 4);
	pair_free(&p);
}

/* Before the hello nobody knows how many the peer takes. */
Test(stream_numbers, those_begun_early_are_below_what_the_peer_takes)
{
	uint64_t stream = 0;

	pair_start(&p, NULL, WHARF_OPT(port, .rx_streams_max = 2));
	for (unsigned i = 0; i < 6; i++)
		cr_assert_eq(wharf_stream_abort(p.a.port, begin(p.a.port, 1), 0), 0);
	for (unsigned i = 0; i < 2; i++) {
		stream = begin(p.a.port, 1);
		cr_assert_eq(send_bytes(p.a.port, stream, "x", 1, WHARF_LAST), 0);
	}
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 2);
	for (unsigned i = 0; i < 20; i++) {
		cr_assert_eq(send_bytes(p.a.port, begin(p.a.port, 1), "x", 1, WHARF_LAST), 0);
		settle(p.loop);
	}
	check_alive();
	pair_free(&p);
}

Test(stream_numbers, more_begun_early_than_the_peer_takes_fail_the_port)
{
	pair_start(&p, NULL, WHARF_OPT(port, .rx_streams_max = 2));
	for (unsigned i = 0; i < 3; i++)
		(void)begin(p.a.port, 1);
	settle(p.loop);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_ERROR);
	cr_assert_eq(p.a.reason.error, EMSGSIZE);
	pair_free(&p);
}

Test(stream_numbers, a_total_given_early_that_the_peer_does_not_take_is_refused)
{
	uint64_t stream;

	pair_start(&p, NULL, WHARF_OPT(port, .rx_bytes_max = 1000));
	stream = begin(p.a.port, 1001);
	settle(p.loop);
	cr_assert_eq(send_bytes(p.a.port, stream, "x", 1, 0), -EMSGSIZE);
	check_alive();
	pair_free(&p);
}

Test(stream_numbers, numbers_wrap_without_0_and_without_one_in_use)
{
	uint64_t kept, stream, last = 0;
	bool wrapped = false;

	pair_open(&p, NULL, NULL);
	p.a.port->flows[WH_FLOW_STREAM_OUT].sequence = (UINT64_C(1) << (32 - WH_STREAM_INDEX_BITS)) - 20;
	kept = begin(p.a.port, 4);
	cr_assert_eq(send_bytes(p.a.port, kept, "ke", 2, 0), 0);
	for (unsigned i = 0; i < 40; i++) {
		stream = begin(p.a.port, 1);
		cr_assert_neq(stream & UINT32_MAX, 0);
		cr_assert_neq(stream, kept);
		cr_assert_neq(stream & (WH_STREAMS_MAX - 1), kept & (WH_STREAMS_MAX - 1));
		wrapped |= stream < last;
		last = stream;
		cr_assert_eq(send_bytes(p.a.port, stream, "x", 1, WHARF_LAST), 0);
		settle(p.loop);
		cr_assert_eq(p.b.n_messages, i + 1);
	}
	cr_assert(wrapped);
	cr_assert_eq(send_bytes(p.a.port, kept, "pt", 2, WHARF_LAST), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 41);
	cr_assert_eq(memcmp(p.b.seen[40].bytes, "kept", 4), 0);
	pair_free(&p);
}

Test(stream_numbers, two_peers_with_the_same_stream_number_do_not_meet)
{
	uint64_t first, second;

	/* Both ways of one port, and two ports of one loop: the same number each time. */
	pair_open(&p, NULL, WHARF_OPT(port, .flags = WHARF_PORT_PIECES));
	apart_open(&q, NULL, NULL, NULL);
	first = begin(p.a.port, 8);
	cr_assert_eq(begin(q.a.port, 8), first);
	second = begin(p.b.port, 8);
	cr_assert_eq(second, first);
	cr_assert_eq(send_bytes(p.a.port, first, "ab", 2, 0), 0);
	cr_assert_eq(send_bytes(p.b.port, first, "AB", 2, 0), 0);
	cr_assert_eq(send_bytes(q.a.port, first, "12", 2, 0), 0);
	settle(p.loop);
	apart_settle(&q);
	/* What arrives has another id than what leaves. */
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_neq(p.b.seen[0].stream, first);
	cr_assert_eq(wharf_stream_abort(p.b.port, p.b.seen[0].stream, 0), 0);
	settle(p.loop);
	cr_assert_eq(p.a.aborted.stream, first);
	cr_assert_eq(send_bytes(p.a.port, first, "cd", 2, 0), -ESTALE);
	cr_assert_eq(send_bytes(p.b.port, first, "CDEFGH", 6, WHARF_LAST), 0);
	cr_assert_eq(send_bytes(q.a.port, first, "345678", 6, WHARF_LAST), 0);
	settle(p.loop);
	apart_settle(&q);
	cr_assert_eq(p.a.n_messages, 1);
	cr_assert_eq(memcmp(p.a.seen[0].bytes, "ABCDEFGH", 8), 0);
	cr_assert_eq(q.b.n_messages, 1);
	cr_assert_eq(memcmp(q.b.seen[0].bytes, "12345678", 8), 0);
	pair_free(&p);
	apart_free(&q);
}

/* ---- Calls have numbers of the same kind ---- */

static unsigned n_ends;

static void on_end(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user)
{
	(void)port, (void)id, (void)end, (void)user;
	n_ends++;
}

static void take_it(struct end *end, const struct wharf_msg *msg)
{
	wharf_call_id id;

	cr_assert_eq(wharf_call_take(end->port, msg, NULL, &id), 0);
}

Test(stream_numbers, a_call_given_up_keeps_its_number_until_the_peer_hears_it)
{
	wharf_call_id id;

	pair_open(&p, NULL, WHARF_OPT(port, .rx_calls_max = 1));
	p.b.on_message = take_it;
	for (unsigned i = 0; i < 4; i++) {
		cr_assert_eq(wharf_call(p.a.port, &(struct wharf_out){ .flags = WHARF_LAST },
			WHARF_OPT(call, .on_end = on_end), &id), 0, "%u", i);
		settle(p.loop);
		cr_assert_eq(wharf_call_cancel(p.a.port, id), 0);
		cr_assert_eq(wharf_call(p.a.port, &(struct wharf_out){ .flags = WHARF_LAST }, NULL, &id), -EAGAIN);
		settle(p.loop);
		cr_assert_eq(n_ends, i + 1);
		cr_assert_not_null(p.b.port, "%s", p.b.reason_text);
	}
	pair_free(&p);
}

/* ---- What a paused port holds ---- */

Test(stream_numbers, what_was_begun_goes_with_its_abort)
{
	struct harness_snapshot before;
	const char *leak;

	for (unsigned paused = 0; paused < 2; paused++)
		for (unsigned pieces = 0; pieces < 2; pieces++) {
			uint64_t stream;
			pair_open(&p, NULL, WHARF_OPT(port, .flags = pieces ? WHARF_PORT_PIECES : 0));
			harness_snapshot_take(&before);
			if (paused)
				cr_assert_eq(wharf_port_pause(p.b.port), 0);
			/* Beginning and end in one frame. */
			stream = begin(p.a.port, 100);
			cr_assert_eq(send_bytes(p.a.port, stream, "some", 4, 0), 0);
			cr_assert_eq(wharf_stream_abort(p.a.port, stream, 4), 0);
			settle(p.loop);
			/* And in two. */
			stream = begin(p.a.port, 100);
			cr_assert_eq(send_bytes(p.a.port, stream, "some", 4, 0), 0);
			settle(p.loop);
			cr_assert_eq(wharf_stream_abort(p.a.port, stream, 4), 0);
			settle(p.loop);
			if (paused)
				cr_assert_eq(wharf_port_resume(p.b.port), 0);
			settle(p.loop);
			cr_assert_eq(p.b.port->flows[WH_FLOW_STREAM_IN].n, 0, "a stream that nobody ends");
			cr_assert_eq(p.b.port->assembly_bytes, 0);
			cr_assert_eq(p.a.port->flows[WH_FLOW_STREAM_OUT].n, 0);
			cr_assert_eq(p.b.n_messages, pieces && !paused ? 2 : 0);
			cr_assert_eq(p.b.n_aborted, paused ? 0 : 2);
			p.b.n_messages = 0;
			check_alive();
			leak = harness_snapshot_diff(&before);
			cr_assert(!leak, "%s", leak);
			pair_free(&p);
		}
}
