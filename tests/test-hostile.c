/* SPDX-License-Identifier: MIT */
/*
 * Peers made by hand that break every rule they can: the port ends with the right reason, the process and the other
 * ports of its loop live, and nothing is left behind.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "harness.h"
#include "pair.h"
#include "raw.h"

TestSuite(hostile, .timeout = 60);

static struct pair p;
static struct end other; /* a port of the same loop, whose peer behaves */
static int peer, other_peer;
static struct harness_snapshot before;

/* The loop's time: deadlines come when a test says so. */
static uint64_t ahead_ns;

static uint64_t test_clock(void *user)
{
	struct timespec t;

	(void)user;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec + ahead_ns;
}

static void pass(uint64_t seconds)
{
	ahead_ns += seconds * 1000000000;
	settle(p.loop);
}

static void open_with(struct end *end, int *ret_peer, const struct wharf_port_options *options)
{
	struct wharf_port_options o;
	int fds[2];

	WHARF_INIT(&o);
	if (options)
		o = *options;
	*end = (struct end){ .pair = &p };
	o.ops = &end_ops;
	o.user = end;
	cr_assert_eq(wharf_pair(fds), 0);
	cr_assert_eq(wharf_open(p.loop, fds[0], &o, &end->port), 0);
	*ret_peer = fds[1];
}

static void make_loop(const struct wharf_port_options *options)
{
	p = (struct pair){ 0 };
	cr_assert_eq(wharf_loop_new(WHARF_OPT(loop, .clock_ns = test_clock), &p.loop), 0);
	open_with(&other, &other_peer, NULL);
	raw_say_hello(other_peer, NULL);
	open_with(&p.a, &peer, options);
	settle(p.loop);
}

/* Ports a and other; nobody has said hello to a yet. */
static void begin(const struct wharf_port_options *options)
{
	struct wharf_buf b;

	/* The process's own pages are made once. */
	make_loop(options);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 100, &b), 0);
	wharf_buf_abandon(&b);
	pair_free(&p);
	close(peer);
	close(other_peer);
	harness_snapshot_take(&before);
	make_loop(options);
}

static void begin_open(const struct wharf_port_options *options)
{
	begin(options);
	raw_say_hello(peer, NULL);
	settle(p.loop);
	cr_assert_eq(p.a.n_open, 1);
}

static void finish(void)
{
	size_t n_messages = other.n_messages;
	const char *leak;

	cr_assert_eq(other.n_closed, 0, "%s", other.reason_text);
	cr_assert(raw_bytes(other_peer, "fine", 4));
	cr_assert_eq(wharf_send_bytes(other.port, 1, "fine", 4), 0);
	settle(p.loop);
	cr_assert_eq(other.n_messages, n_messages + 1, "another port of the loop still works");
	if (peer >= 0)
		close(peer);
	close(other_peer);
	pair_free(&p);
	cr_assert_eq(p.a.n_closed, 1);
	leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

static void expect_end(uint32_t code)
{
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1, "it lives on");
	cr_assert_eq(p.a.reason.code, code, "%s: %s", wharf_close_name(p.a.reason.code), p.a.reason_text);
}

static void expect_violation(void)
{
	expect_end(WHARF_CLOSE_VIOLATION);
	cr_assert_eq(raw_bye_code(peer), WH_BYE_REFUSED, "it is told");
	finish();
}

static void expect_life(void)
{
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 0, "%s: %s", wharf_close_name(p.a.reason.code), p.a.reason_text);
	finish();
}

/* ---- Hello ---- */

Test(hostile, a_second_hello)
{
	begin_open(NULL);
	raw_say_hello(peer, NULL);
	expect_violation();
}

Test(hostile, a_message_before_the_hello)
{
	begin(NULL);
	cr_assert(raw_bytes(peer, "x", 1));
	expect_violation();
}

Test(hostile, a_hello_whose_name_is_garbage)
{
	static const char *const names[] = { "tab\there", "\x80\xff", "\x1b[2J" };

	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		struct wh_hello hello = raw_hello();
		begin(NULL);
		memset(hello.name, 0, sizeof(hello.name));
		strcpy(hello.name, names[i]);
		raw_say_hello(peer, &hello);
		expect_violation();
	}
	struct wh_hello endless = raw_hello();
	begin(NULL);
	memset(endless.name, 'x', sizeof(endless.name));
	raw_say_hello(peer, &endless);
	expect_violation();
}

Test(hostile, a_hello_with_the_least_limits)
{
	struct wh_hello hello = raw_hello();
	struct wharf_buf b;

	begin(NULL);
	hello.frame_bytes_max = WH_FRAME_BYTES_MIN;
	hello.fds_max = hello.window_frames = hello.segments_max = 0;
	hello.mapped_bytes_max = hello.message_bytes_max = 0;
	raw_say_hello(peer, &hello);
	settle(p.loop);
	cr_assert_eq(p.a.n_open, 1);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), -EMSGSIZE);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 100, &b), 0);
	cr_assert_eq(wharf_send_buf(p.a.port, 1, &b), -EMSGSIZE);
	wharf_buf_abandon(&b);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, NULL, 0), 0);
	for (int i = 0; i < 100; i++)
		cr_assert(raw_bytes(peer, "x", 1));
	settle(p.loop);
	cr_assert_eq(p.a.n_messages, 100);
	expect_life();
}

Test(hostile, a_hello_that_maps_less_than_what_waits_for_it)
{
	struct wh_hello hello = raw_hello();
	struct wharf_buf b;

	begin(NULL);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 100, &b), 0);
	cr_assert_eq(wharf_send_buf(p.a.port, 1, &b), 0);
	hello.mapped_bytes_max = 4096;
	raw_say_hello(peer, &hello);
	pass(2);
	cr_assert_eq(p.a.n_closed, 0, "what it does not map it gets by copy");
	finish();
}

Test(hostile, a_bye_before_the_hello)
{
	begin(NULL);
	cr_assert(raw_bye(peer, WH_BYE_CLOSE));
	expect_end(WHARF_CLOSE_PEER);
	finish();
	/* And when this end closes already. */
	begin(NULL);
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	cr_assert(raw_bye(peer, WH_BYE_CLOSE));
	expect_end(WHARF_CLOSE_LOCAL);
	finish();
}

Test(hostile, a_reader_that_went_before_its_hello_came)
{
	begin(NULL);
	/* What was sent stays unread; what is sent from now on is refused. */
	cr_assert_eq(shutdown(peer, SHUT_RD), 0);
	raw_say_hello(peer, NULL);
	settle(p.loop);
	if (p.a.port)
		(void)!wharf_send_bytes(p.a.port, 1, "x", 1);
	settle(p.loop);
	pass(2);
	expect_end(WHARF_CLOSE_PEER_GONE);
	finish();
}

Test(hostile, a_reader_that_never_came)
{
	p = (struct pair){ 0 };
	begin(NULL);
	close(peer);
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1);
	/* This one's own hello is refused. */
	struct end late = { .pair = &p };
	int fds[2];
	cr_assert_eq(wharf_pair(fds), 0);
	cr_assert_eq(shutdown(fds[1], SHUT_RD), 0);
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &late), &late.port), 0);
	settle(p.loop);
	raw_say_hello(fds[1], NULL);
	settle(p.loop);
	if (late.port) {
		struct wharf_buf b;
		cr_assert_eq(wharf_buf_claim(wharf_port_pool(late.port), 100, &b), 0);
		cr_assert_eq(wharf_send_buf(late.port, 1, &b), -EPIPE, "nothing will ever leave");
		wharf_buf_abandon(&b);
		cr_assert_eq(wharf_port_close(late.port, -1), 0);
	}
	settle(p.loop);
	pass(2);
	cr_assert_eq(late.n_closed, 1, "a peer that cannot be told anything does not hold a port for ever");
	cr_assert_eq(late.reason.code, WHARF_CLOSE_PEER_GONE);
	close(fds[1]);
	peer = -1;
	finish();
}

/* ---- Frames ---- */

Test(hostile, records_of_features_that_nobody_agreed_on)
{
	struct raw_frame frame;

	for (unsigned kind = 0; kind < 2; kind++) {
		struct wh_slot_record request = { .slot = 1 };
		struct wh_port_record port = { .type = 1 };
		static const enum wh_record_kind control[] = { WH_RECORD_ANNOUNCE_REQUEST, WH_RECORD_PORT };
		void *const records[] = { &request, &port };
		int fd = STDERR_FILENO;
		begin_open(NULL);
		raw_begin(&frame);
		cr_assert(wh_encode_control(&frame.encoder, control[kind], records[kind], kind == 1));
		cr_assert(raw_send(peer, frame.bytes, wh_encode_end(&frame.encoder, 0, 0), &fd, kind == 1, false));
		expect_violation();
	}
}

Test(hostile, pieces_of_no_message_are_not_delivered)
{
	static const struct { uint8_t flags; uint32_t stream; uint64_t position; } odd[] = {
		{ WH_RECORD_FIRST, 0, UINT64_MAX - 1 },
		{ WH_RECORD_LAST, 0, 1000 },
		{ 0, 0, 1000 },
		{ 0, 0, 0 },
	};

	for (size_t i = 0; i < sizeof(odd) / sizeof(*odd); i++) {
		struct wh_piece piece = { .bytes = "part", .size = 4 };
		struct wh_message_out m = { .kind = WH_RECORD_MESSAGE, .flags = odd[i].flags, .stream = odd[i].stream,
			.position = odd[i].position, .n_pieces = 1, .pieces = &piece };
		struct raw_frame frame;
		begin_open(NULL);
		raw_begin(&frame);
		cr_assert(wh_encode_message(&frame.encoder, &m));
		cr_assert(raw_end(peer, &frame, 0));
		settle(p.loop);
		cr_assert_eq(p.a.n_messages, 0, "case %zu", i);
		expect_violation();
	}
}

Test(hostile, a_datagram_larger_than_any_frame)
{
	static unsigned char bytes[100000];

	begin_open(NULL);
	cr_assert(raw_send(peer, bytes, sizeof(bytes), NULL, 0, false));
	expect_violation();
}

Test(hostile, frames_before_the_bad_one_are_delivered)
{
	static unsigned char bytes[100000];
	struct wharf_port_options o;

	WHARF_INIT(&o);
	o.rx_msgs_per_turn = 1;
	for (size_t size = 100; size <= sizeof(bytes); size *= 1000) {
		begin_open(&o);
		for (int i = 0; i < 10; i++)
			cr_assert(raw_bytes(peer, "good", 4));
		cr_assert(raw_send(peer, bytes, size, NULL, 0, false));
		settle(p.loop);
		cr_assert_eq(p.a.n_messages, 10, "%zu messages", p.a.n_messages);
		expect_violation();
	}
}

Test(hostile, an_empty_datagram_reads_as_the_end)
{
	begin_open(NULL);
	cr_assert(raw_send(peer, "", 0, NULL, 0, false));
	expect_end(WHARF_CLOSE_PEER_GONE);
	finish();
}

Test(hostile, reports_that_lie)
{
	begin_open(NULL);
	cr_assert(raw_report(peer, 1));
	expect_violation();
	begin_open(NULL);
	cr_assert(raw_report(peer, UINT64_MAX));
	expect_violation();
	begin_open(NULL);
	for (int i = 0; i < 3; i++) {
		cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), 0);
		settle(p.loop);
	}
	cr_assert(raw_report(peer, 2));
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 0);
	cr_assert(raw_report(peer, 1));
	expect_violation();
}

Test(hostile, a_flood_while_paused_is_bounded)
{
	struct wharf_port_options o;
	int fd = STDERR_FILENO;

	WHARF_INIT(&o);
	o.rx_fds_max = 253;
	begin_open(&o);
	cr_assert_eq(wharf_port_pause(p.a.port), 0);
	for (int i = 0; i < 1000 && raw_fds(peer, &fd, 1); i++)
		settle(p.loop);
	expect_violation();
}

Test(hostile, byes_without_end_are_bounded)
{
	begin_open(NULL);
	cr_assert_eq(wharf_port_pause(p.a.port), 0);
	for (int i = 0; i < 1000 && raw_bye(peer, WH_BYE_CLOSE); i++)
		settle(p.loop);
	expect_violation();
}

Test(hostile, wakes_and_reports_without_end_are_only_work)
{
	begin_open(NULL);
	for (int i = 0; i < 5000; i++) {
		if (i == 2500)
			cr_assert_eq(wharf_port_pause(p.a.port), 0);
		cr_assert(i % 2 ? raw_wake(peer) : raw_report(peer, 0));
		if (i % 16 == 0)
			settle(p.loop);
	}
	expect_life();
}

Test(hostile, messages_after_the_bye_change_nothing)
{
	struct raw_frame frame;

	begin_open(NULL);
	raw_begin(&frame);
	raw_put_bytes(&frame, 1, "before", 6);
	raw_put_bye(&frame, WH_BYE_CLOSE);
	raw_put_bytes(&frame, 1, "behind", 6);
	raw_put_bye(&frame, WH_BYE_ABORT);
	cr_assert(raw_end(peer, &frame, 0));
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_geq(p.a.n_messages, 1);
	finish();
}

/* ---- Sockets ---- */

Test(hostile, unread_data_at_the_end_does_not_hide_what_came_before)
{
	begin_open(NULL);
	for (int i = 0; i < 10; i++) {
		cr_assert_eq(wharf_send_bytes(p.a.port, 1, "unread", 6), 0);
		cr_assert(raw_bytes(peer, "sent", 4));
	}
	cr_assert_eq(wharf_loop_flush(p.loop), 0);
	close(peer);
	peer = -1;
	expect_end(WHARF_CLOSE_PEER_GONE);
	cr_assert_eq(p.a.n_messages, 10);
	finish();
}

Test(hostile, a_peer_that_stops_reading_for_good)
{
	begin_open(NULL);
	cr_assert(raw_bytes(peer, "sent", 4));
	cr_assert_eq(shutdown(peer, SHUT_RD), 0);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), 0);
	settle(p.loop);
	cr_assert_eq(p.a.n_messages, 1);
	/* Waiting for ever is for peers that may still read. */
	if (p.a.port)
		cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	settle(p.loop);
	pass(2);
	expect_end(WHARF_CLOSE_PEER_GONE);
	cr_assert_eq(p.a.reason.unsent_messages, 1);
	finish();
}

Test(hostile, a_peer_that_stops_writing_is_gone)
{
	begin_open(NULL);
	cr_assert(raw_bytes(peer, "sent", 4));
	cr_assert_eq(shutdown(peer, SHUT_WR), 0);
	expect_end(WHARF_CLOSE_PEER_GONE);
	cr_assert_eq(p.a.n_messages, 1);
	finish();
}

Test(hostile, closing_does_not_wait_longer_than_told_for_one_that_never_reads)
{
	static unsigned char bytes[20000];

	begin_open(NULL);
	while (!wharf_send_bytes(p.a.port, 1, bytes, sizeof(bytes)))
		settle(p.loop);
	cr_assert_eq(wharf_port_close(p.a.port, 5000000000), 0);
	pass(4);
	cr_assert_eq(p.a.n_closed, 0);
	pass(2);
	expect_end(WHARF_CLOSE_TIMEOUT);
	cr_assert_gt(p.a.reason.unsent_messages, 0);
	cr_assert_eq(p.a.reason.unsent_bytes, p.a.reason.unsent_messages * sizeof(bytes));
	finish();
}

/* Not even when the socket is dead one way, or ended, and a pause keeps what it had sent. */
Test(hostile, closing_does_not_wait_longer_than_told_for_the_end_of_a_pause)
{
	for (int ended = 0; ended < 2; ended++)
		for (int64_t seconds = 0; seconds < 6; seconds += 3) {
			begin_open(NULL);
			cr_assert_eq(wharf_port_pause(p.a.port), 0);
			cr_assert(raw_bytes(peer, "sent", 4));
			settle(p.loop);
			cr_assert_eq(shutdown(peer, ended ? SHUT_RDWR : SHUT_RD), 0);
			cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), 0);
			settle(p.loop);
			cr_assert_eq(wharf_port_close(p.a.port, seconds * 1000000000), 0);
			if (seconds)
				pass(2);
			cr_assert_eq(p.a.n_closed, 0);
			pass(2);
			expect_end(WHARF_CLOSE_TIMEOUT);
			cr_assert_eq(p.a.n_messages, 0);
			finish();
		}
}

Test(hostile, a_pause_keeps_what_a_peer_had_sent_that_stops_reading)
{
	begin_open(NULL);
	cr_assert_eq(wharf_port_pause(p.a.port), 0);
	cr_assert(raw_bytes(peer, "sent", 4));
	settle(p.loop);
	cr_assert_eq(shutdown(peer, SHUT_RD), 0);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), 0);
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	for (int i = 0; i < 5; i++)
		pass(2);
	cr_assert_eq(p.a.n_closed, 0);
	cr_assert_eq(wharf_port_resume(p.a.port), 0);
	settle(p.loop);
	pass(2);
	expect_end(WHARF_CLOSE_PEER_GONE);
	cr_assert_eq(p.a.n_messages, 1);
	finish();
}

/* ---- Descriptors ---- */

Test(hostile, descriptors_that_were_not_asked_for)
{
	int fds[3] = { STDERR_FILENO, STDERR_FILENO, STDERR_FILENO };
	struct raw_frame frame;

	begin_open(NULL);
	cr_assert(raw_fds(peer, fds, 1));
	expect_violation();
	for (size_t n = 1; n <= 3; n++) {
		/* Along with records that have none. */
		begin_open(NULL);
		raw_begin(&frame);
		raw_put_bytes(&frame, 1, "x", 1);
		cr_assert(raw_send(peer, frame.bytes, wh_encode_end(&frame.encoder, 0, 0), fds, n, false));
		expect_violation();
		begin_open(NULL);
		cr_assert(raw_send(peer, "", 0, fds, n, false));
		settle(p.loop);
		cr_assert_eq(p.a.n_closed, 1);
		finish();
	}
}

Test(hostile, an_announcement_with_the_wrong_number_of_descriptors)
{
	for (size_t n = 0; n <= 3; n++) {
		struct wh_announce a = { .slot = 1, .chunk_shift = 12, .n_chunks = 1 };
		int fds[3] = { STDERR_FILENO, STDERR_FILENO, STDERR_FILENO };
		struct raw_frame frame;
		if (n == 2)
			continue;
		begin_open(NULL);
		raw_begin(&frame);
		cr_assert(wh_encode_control(&frame.encoder, WH_RECORD_ANNOUNCE, &a, 2));
		cr_assert(raw_send(peer, frame.bytes, wh_encode_end(&frame.encoder, 0, 0), fds, n, false));
		expect_violation();
	}
}
