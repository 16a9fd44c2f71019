/* SPDX-License-Identifier: MIT */
/* A peer made by hand that answers, cancels and calls as it likes. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "calls.h"
#include "harness.h"
#include "heap.h"
#include "port.h"
#include "raw.h"

TestSuite(hostile_call, .timeout = 60);

enum { ID = 1 << WH_CALL_INDEX_BITS }; /* of the first call */

static struct pair p;
static struct side caller, answerer;
static int peer;
static struct raw_frame frame;

static void take_it(struct end *end, const struct wharf_msg *msg)
{
	if (msg->call)
		cr_assert_eq(side_take(&answerer, end->port, msg), 0);
}

static void begin(const struct wharf_port_options *options)
{
	struct wh_hello hello = raw_hello();

	memset(&caller, 0, sizeof(caller));
	memset(&answerer, 0, sizeof(answerer));
	raw_consumed = 0;
	peer = pair_open_half(&p, options);
	p.a.on_message = take_it;
	hello.calls_max = hello.streams_max = 100;
	hello.stream_credit_bytes = 1 << 20;
	cr_assert(raw_say_hello(peer, &hello));
	settle(p.loop);
}

static void end(void)
{
	close(peer);
	settle(p.loop);
	pair_free(&p);
}

static void put(uint8_t kind, uint8_t flags, uint64_t call, uint32_t status, const char *text)
{
	struct wh_piece piece = { .bytes = text, .size = (uint32_t)strlen(text) };
	struct wh_message_out message = { .kind = kind,
		.flags = flags,
		.n_pieces = 1,
		.type = 1,
		.stream = status,
		.call = call,
		.pieces = &piece,
		.position = flags & WH_RECORD_FIRST ? 100 : 1 };

	cr_assert(wh_encode_message(&frame.encoder, &message));
}

static void put_cancel(uint64_t call, uint32_t code)
{
	struct wh_cancel cancel = { .call = call, .code = code, .app_code = 5 };

	cr_assert(wh_encode_control(&frame.encoder, WH_RECORD_CANCEL, &cancel, 0));
}

static void send_frame(void)
{
	cr_assert(raw_end(peer, &frame, raw_consumed));
	settle(p.loop);
}

static void say(uint8_t kind, uint8_t flags, uint64_t call, uint32_t status, const char *text)
{
	raw_begin(&frame);
	put(kind, flags, call, status, text);
	send_frame();
}

static void say_cancel(uint64_t call, uint32_t code)
{
	raw_begin(&frame);
	put_cancel(call, code);
	send_frame();
}

static void call(void)
{
	cr_assert_eq(side_call(&caller, p.a.port, side_text("question", WHARF_LAST), 0), 0);
	settle(p.loop);
	cr_assert_eq(caller.id, ID);
}

static uint64_t n_stray(void)
{
	struct wharf_port_stats stats = { .size = sizeof(stats) };

	cr_assert_eq(wharf_port_stats(p.a.port, &stats), 0);
	return stats.rx_stray_records;
}

enum { WHOLE = WH_RECORD_FIRST | WH_RECORD_LAST, END = WHOLE | WH_RECORD_END };

Test(hostile_call, replies_to_no_call_are_dropped_and_counted)
{
	begin(NULL);
	call();
	say(WH_RECORD_REPLY, END, ID + 1, 7, "another index");
	say(WH_RECORD_REPLY, END, 2 * ID, 7, "another generation");
	say(WH_RECORD_REPLY, END, UINT64_MAX, 7, "none at all");
	say(WH_RECORD_REPLY, WH_RECORD_FIRST, 2 * ID, 0, "a piece");
	cr_assert_eq(n_stray(), 4);
	cr_assert_eq(caller.n_messages, 0);
	say(WH_RECORD_REPLY, END, ID, 7, "the call's own");
	cr_assert_eq(caller.end.status, 7);
	say(WH_RECORD_REPLY, END, ID, 8, "and once more");
	cr_assert_eq(n_stray(), 5);
	cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
	end();
}

Test(hostile_call, descriptors_and_chunks_of_strays_come_back)
{
	struct raw_segment segment;
	int fds[3] = { STDERR_FILENO, STDERR_FILENO, STDERR_FILENO };
	struct wh_run run = { .slot = 1, .n_chunks = 4, .first = 8, .size = 1000 };
	struct wh_message_out message = { .kind = WH_RECORD_REPLY,
		.flags = END,
		.n_pieces = 1,
		.n_fds = 3,
		.call = 5,
		.pieces = &(struct wh_piece){ .run = &run } };
	size_t n_fds;

	begin(WHARF_OPT(port, .rx_fds_max = 3));
	raw_segment_open(&segment, 12, 64);
	cr_assert(raw_announce_segment(peer, 1, &segment));
	settle(p.loop);
	n_fds = harness_count_fds();
	raw_begin(&frame);
	cr_assert(wh_encode_message(&frame.encoder, &message));
	cr_assert(raw_send(peer, frame.bytes, wh_encode_end(&frame.encoder, 0, 0), fds, 3, false));
	settle(p.loop);
	cr_assert_eq(n_stray(), 1);
	cr_assert_eq(harness_count_fds(), n_fds);
	cr_assert_eq(atomic_load(&segment.map->words[0]), UINT64_C(0xf) << 8);
	raw_segment_close(&segment);
	end();
}

Test(hostile_call, a_segment_retired_under_a_reply_that_waits)
{
	struct raw_segment segment;
	struct wh_run run = { .slot = 1, .n_chunks = 4, .first = 8, .size = 1000 };
	struct wh_message_out message = { .kind = WH_RECORD_REPLY,
		.flags = WHOLE,
		.n_pieces = 1,
		.call = ID,
		.pieces = &(struct wh_piece){ .run = &run } };

	begin(NULL);
	call();
	raw_segment_open(&segment, 12, 64);
	cr_assert(raw_announce_segment(peer, 1, &segment));
	cr_assert_eq(wharf_call_pause(p.a.port, caller.id), 0);
	raw_begin(&frame);
	cr_assert(wh_encode_message(&frame.encoder, &message));
	send_frame();
	cr_assert(raw_retire(peer, 1, false));
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_VIOLATION);
	cr_assert_eq(caller.end.reason, WHARF_END_PEER_GONE);
	raw_segment_close(&segment);
	end();
}

Test(hostile_call, cancels_of_everything)
{
	begin(NULL);
	call();
	say_cancel(ID, WH_CANCEL_CALLER); /* ours is no call of its */
	say_cancel(UINT64_MAX, WH_CANCEL_CALLER);
	say_cancel(7 * ID, WH_CANCEL_NO_REPLY);
	cr_assert_eq(caller.n_ended, 0);
	say_cancel(ID, WH_CANCEL_ABORTED);
	cr_assert_eq(caller.end.reason, WHARF_END_REFUSED);
	cr_assert_eq(caller.end.app_code, 5);
	say_cancel(ID, WH_CANCEL_NO_REPLY);
	cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
	end();
}

Test(hostile_call, a_request_cancelled_in_the_middle_of_a_piece)
{
	begin(NULL);
	say(WH_RECORD_CALL, WH_RECORD_FIRST, ID, 0, "f");
	cr_assert_eq(p.a.n_messages, 0);
	say_cancel(ID, WH_CANCEL_CALLER);
	say(WH_RECORD_CALL, WH_RECORD_LAST, ID, 0, "the rest");
	cr_assert_eq(p.a.n_messages, 0);
	cr_assert_eq(n_stray(), 1);
	say(WH_RECORD_CALL, WH_RECORD_FIRST, 2 * ID, 0, "f");
	end();
	cr_assert_eq(p.a.n_messages, 0);
}

static void violates(const char *text)
{
	cr_assert_eq(p.a.n_closed, 1, "%s", text);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_VIOLATION, "%s: %s", text, p.a.reason_text);
	cr_assert(strstr(p.a.reason_text, text), "%s", p.a.reason_text);
	end();
}

Test(hostile_call, that_begins_in_the_middle)
{
	begin(NULL);
	say(WH_RECORD_CALL, WH_RECORD_LAST, ID, 0, "x");
	violates("begin at its beginning");
}

Test(hostile_call, a_message_behind_the_last)
{
	begin(NULL);
	say(WH_RECORD_CALL, END, ID, 0, "x");
	cr_assert_eq(answerer.id, WH_CALL_THEIRS | ID);
	say(WH_RECORD_CALL, WHOLE, ID, 0, "x");
	violates("behind the last");
	cr_assert_eq(answerer.end.reason, WHARF_END_PEER_GONE);
}

Test(hostile_call, a_message_behind_the_last_that_waits)
{
	begin(NULL);
	say(WH_RECORD_CALL, WHOLE, ID, 0, "x");
	cr_assert_eq(wharf_call_pause(p.a.port, answerer.id), 0);
	say(WH_RECORD_CALL, END, ID, 0, "x");
	say(WH_RECORD_CALL, WHOLE, ID, 0, "x");
	cr_assert_eq(wharf_call_resume(p.a.port, answerer.id), 0);
	settle(p.loop);
	cr_assert(answerer.flags & WHARF_MSG_LAST, "it was the last that the answering side was given");
	violates("behind the last");
}

Test(hostile_call, more_calls_than_it_was_told)
{
	begin(WHARF_OPT(port, .rx_calls_max = 3));
	p.a.on_message = NULL;
	raw_begin(&frame);
	for (uint64_t i = 0; i < 4; i++)
		put(WH_RECORD_CALL, WH_RECORD_FIRST, (i + 1) * ID + i % 3, 0, "x");
	send_frame();
	violates("the number of another");
}

Test(hostile_call, an_index_beyond_what_it_was_told)
{
	begin(WHARF_OPT(port, .rx_calls_max = 3));
	say(WH_RECORD_CALL, WHOLE, ID + 3, 0, "x");
	violates("more calls than it was told");
}

Test(hostile_call, more_than_its_credit)
{
	begin(WHARF_OPT(port, .rx_stream_bytes_max = 1000));
	call();
	cr_assert_eq(wharf_call_pause(p.a.port, caller.id), 0);
	for (uint64_t used = 0; used < 1000; used += wh_flow_charge(1, 0))
		say(WH_RECORD_REPLY, WHOLE, ID, 0, "");
	cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
	say(WH_RECORD_REPLY, WHOLE, ID, 0, "");
	violates("more than the credit");
}

Test(hostile_call, a_reply_to_a_request_that_has_not_left)
{
	struct wh_hello hello = raw_hello();

	memset(&caller, 0, sizeof(caller));
	peer = pair_open_half(&p, NULL);
	cr_assert_eq(side_call(&caller, p.a.port, side_text("question", 0), 0), 0);
	hello.calls_max = 1;
	hello.stream_credit_bytes = 1;
	cr_assert(raw_say_hello(peer, &hello));
	raw_begin(&frame);
	put(WH_RECORD_REPLY, END, ID, 3, "foreseen");
	send_frame();
	cr_assert_eq(caller.end.reason, WHARF_END_LAST);
	cr_assert_eq(caller.end.status, 3);
	end();
}

Test(hostile_call, more_calls_before_the_hello_than_the_peer_takes)
{
	struct side sides[3] = { 0 };
	struct wh_hello hello = raw_hello();

	peer = pair_open_half(&p, NULL);
	for (int i = 0; i < 3; i++)
		cr_assert_eq(side_call(&sides[i], p.a.port, side_text("question", 0), 0), 0);
	hello.calls_max = 2;
	hello.stream_credit_bytes = 1000;
	cr_assert(raw_say_hello(peer, &hello));
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.error, EMSGSIZE);
	for (int i = 0; i < 3; i++) {
		cr_assert_eq(sides[i].end.reason, WHARF_END_ERROR);
		cr_assert_eq(sides[i].end.progress, WHARF_NOT_SEEN);
	}
	end();
}

Test(hostile_call, calls_and_cancels_held_without_number_cost_no_more_than_they_weigh)
{
	begin(NULL);
	cr_assert_eq(wharf_port_pause(p.a.port), 0);
	for (uint64_t k = 0; k < 40; k++) {
		raw_begin(&frame);
		for (uint64_t i = 0; i < 500; i++)
			put(WH_RECORD_CALL, WHOLE, (k * 500 + i + 1) * ID + i, 0, "x");
		send_frame();
	}
	for (uint64_t k = 0; k < 400; k++) {
		raw_begin(&frame);
		for (uint64_t i = 0; i < 1000; i++)
			put_cancel(20000 * ID, WH_CANCEL_CALLER);
		send_frame();
	}
	cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
	end();
}

/* ---- What a paused call may make its reader hold ---- */

enum { CREDIT = 1 << 17, TIMES = 5, SOME = 64 << 10 };

static void take_and_pause(struct end *end, const struct wharf_msg *msg)
{
	cr_assert_eq(side_take(&answerer, end->port, msg), 0);
	cr_assert_eq(wharf_call_pause(end->port, answerer.id), 0);
}

/* Records of one shape until the credit is used up; the last of each frame with so many descriptors. */
static void fill(unsigned n_records, unsigned n_items, unsigned size, bool aligned, unsigned n_fds)
{
	struct wh_piece pieces[WH_WIRE_ITEMS_MAX];
	struct wh_message_out message = { .kind = WH_RECORD_CALL,
		.flags = WHOLE,
		.n_pieces = (uint16_t)n_items,
		.call = ID,
		.pieces = pieces };
	int fds[WH_WIRE_FDS_MAX];
	uint64_t used = wh_flow_charge(1, 1);
	size_t heap;

	begin(WHARF_OPT(port, .rx_stream_bytes_max = CREDIT, .rx_fds_max = WH_WIRE_FDS_MAX));
	p.a.on_message = take_and_pause;
	say(WH_RECORD_CALL, WHOLE, ID, 0, "x");
	for (unsigned i = 0; i < n_fds; i++)
		fds[i] = STDERR_FILENO;
	for (unsigned i = 0; i < n_items; i++)
		pieces[i] = (struct wh_piece){ .bytes = "", .size = size, .aligned = aligned };
	heap = heap_bytes();
	while (used < CREDIT) {
		raw_begin(&frame);
		for (unsigned i = 0; i < n_records && used < CREDIT; i++) {
			message.n_fds = (uint16_t)(i + 1 == n_records ? n_fds : 0);
			cr_assert(wh_encode_message(&frame.encoder, &message));
			used += wh_flow_charge(n_items, n_items * size);
		}
		cr_assert(raw_send(peer, frame.bytes, wh_encode_end(&frame.encoder, 0, raw_consumed), fds, message.n_fds,
			false));
		settle(p.loop);
	}
	cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
	heap = heap_bytes() - heap;
	cr_expect_leq(heap, TIMES * CREDIT + SOME, "%u items of %u bytes, %u descriptors: %zu bytes held for %u of credit",
		n_items, size, n_fds, heap, CREDIT);
	/* The first message was read: its own was given back. */
	for (int i = 0; i < 2 && !p.a.n_closed; i++)
		say(WH_RECORD_CALL, WHOLE, ID, 0, "x");
	cr_expect_eq(p.a.n_closed, 1, "more than its credit");
	end();
}

Test(hostile_call, what_waits_of_a_paused_one_is_not_much_more_than_its_credit, .init = count_heap)
{
	fill(1, 0, 0, false, 0);
	fill(100, 0, 0, false, 0);
	fill(1, 1, 0, false, 0);
	fill(1, 1, 1, true, 0);
	fill(5, WH_WIRE_ITEMS_MAX, 0, false, 0);
	fill(5, WH_WIRE_ITEMS_MAX, 1, false, 0);
	fill(5, WH_WIRE_ITEMS_MAX, 1, true, 0);
	fill(1, 0, 0, false, WH_WIRE_FDS_MAX);
	fill(100, 0, 0, false, WH_WIRE_FDS_MAX);
}
