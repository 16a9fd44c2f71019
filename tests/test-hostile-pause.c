/* SPDX-License-Identifier: MIT */
/* Pausing, resuming and aborting at the worst moment: messages wait, are delivered once, and nothing waits for ever. */
#include <criterion/criterion.h>
#include <poll.h>
#include <unistd.h>

#include "apart.h"
#include "harness.h"
#include "pair.h"
#include "port.h"
#include "raw.h"

TestSuite(hostile_pause, .timeout = 30);

static struct pair p;

/* ---- Held frames ---- */

static void abort_now(struct end *end, const struct wharf_msg *msg)
{
	(void)msg;
	cr_assert_eq(wharf_port_abort(end->port, 1), 0);
}

Test(hostile_pause, abort_while_held_frames_are_delivered)
{
	pair_open(&p, NULL, NULL);
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	for (int i = 0; i < 5; i++) {
		cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), 0);
		cr_assert_eq(wharf_send_bytes(p.a.port, 1, "y", 1), 0);
		settle(p.loop);
	}
	p.b.on_message = abort_now;
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_eq(p.b.n_closed, 1);
	cr_assert_eq(p.a.n_closed, 1);
	pair_free(&p);
}

Test(hostile_pause, abort_while_held_chunks_are_delivered)
{
	struct wharf_buf b;

	pair_open(&p, NULL, NULL);
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	for (int i = 0; i < 5; i++) {
		cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 1000, &b), 0);
		cr_assert_eq(wharf_send_buf(p.a.port, 1, &b), 0);
	}
	settle(p.loop);
	p.b.on_message = abort_now;
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_eq(p.b.n_closed, 1);
	pair_free(&p);
}

static void pause_and_resume(struct end *end, const struct wharf_msg *msg)
{
	(void)msg;
	cr_assert_eq(wharf_port_pause(end->port), 0);
	if (end->n_messages % 3)
		cr_assert_eq(wharf_port_resume(end->port), 0);
}

Test(hostile_pause, pausing_and_resuming_at_every_message_loses_none)
{
	pair_open(&p, NULL, NULL);
	p.b.on_message = pause_and_resume;
	for (uint32_t i = 0; i < 200; i++) {
		cr_assert_eq(wharf_send_bytes(p.a.port, i, &i, sizeof(i)), 0);
		if (i % 7 == 0)
			settle(p.loop);
	}
	for (int i = 0; i < 400 && p.b.n_messages < 200; i++) {
		settle(p.loop);
		cr_assert_eq(wharf_port_resume(p.b.port), 0);
	}
	cr_assert_eq(p.b.n_messages, 200);
	for (uint32_t i = 0; i < END_MESSAGES_MAX; i++)
		cr_assert_eq(p.b.seen[i].type, i);
	pair_free(&p);
}

static void pause_now(struct end *end, const struct wharf_msg *msg)
{
	(void)msg;
	end->on_message = NULL;
	cr_assert_eq(wharf_port_pause(end->port), 0);
}

static void resume_now(struct end *end) { cr_assert_eq(wharf_port_resume(end->port), 0); }

Test(hostile_pause, resume_in_on_writable_of_the_frame_that_paused)
{
	static struct raw_holder holder;
	struct wharf_port_options o;
	struct raw_frame frame;
	struct wharf_buf b;
	int peer;

	WHARF_INIT(&o);
	o.pool_bytes_max = 1 << 20;
	peer = pair_open_half(&p, &o);
	raw_say_hello(peer, NULL);
	settle(p.loop);
	while (!wharf_buf_claim(wharf_port_pool(p.a.port), 1 << 16, &b))
		cr_assert_eq(wharf_send_buf(p.a.port, 1, &b), 0);
	settle(p.loop);
	raw_hold(peer, &holder);
	cr_assert(raw_release_all(&holder), "somebody waits for room");
	/* One message, the pause, another one, and the wake: its on_writable resumes. */
	raw_begin(&frame);
	raw_put_bytes(&frame, 1, "one", 3);
	raw_put_bytes(&frame, 2, "two", 3);
	raw_put_wake(&frame);
	p.a.on_message = pause_now;
	p.a.on_writable = resume_now;
	cr_assert(raw_end(peer, &frame, 0));
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
	cr_assert_geq(p.a.n_writable, 1);
	cr_assert_eq(p.a.n_messages, 2, "the second message waits for nothing");
	raw_holder_fini(&holder);
	close(peer);
	pair_free(&p);
}

Test(hostile_pause, a_paused_port_hears_any_number_of_reports)
{
	pair_open(&p, NULL, NULL);
	cr_assert_eq(wharf_port_pause(p.a.port), 0);
	for (uint32_t i = 0; i < 2000; i++) {
		cr_assert_eq(wharf_send_bytes(p.a.port, i, &i, sizeof(i)), 0);
		cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
	}
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
	cr_assert_eq(p.b.n_closed, 0, "%s", p.b.reason_text);
	cr_assert_eq(p.b.n_messages, 2000);
	pair_free(&p);
}

Test(hostile_pause, a_paused_port_holds_no_more_descriptors_than_may_be_unread)
{
	int fds[250], peer = pair_open_half(&p, WHARF_OPT(port, .rx_fds_max = 253));

	for (int i = 0; i < 250; i++)
		fds[i] = STDERR_FILENO;
	raw_say_hello(peer, NULL);
	settle(p.loop);
	cr_assert_eq(wharf_port_pause(p.a.port), 0);
	cr_assert(raw_fds(peer, fds, 250));
	cr_assert(raw_fds(peer, fds, 3));
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
	/* What is delivered makes room, read or not. */
	cr_assert_eq(wharf_port_resume(p.a.port), 0);
	settle(p.loop);
	cr_assert_eq(p.a.n_messages, 2);
	cr_assert_eq(wharf_port_pause(p.a.port), 0);
	cr_assert(raw_fds(peer, fds, 250));
	cr_assert(raw_fds(peer, fds, 4));
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_VIOLATION);
	close(peer);
	pair_free(&p);
}

Test(hostile_pause, a_port_that_may_have_more_descriptors_unread_sends_no_more)
{
	struct wharf_out out = { .fds = (int[]){ STDERR_FILENO }, .n_fds = 1 };
	unsigned n = 0;

	pair_open(&p, WHARF_OPT(port, .tx_fds_max = 1000), WHARF_OPT(port, .rx_fds_max = 253));
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	/* The window holds fewer: most of them wait here. */
	while (wharf_send(p.a.port, &out) == 0) {
		settle(p.loop);
		cr_assert_leq(++n, 253);
	}
	cr_assert_eq(n, 253);
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 253, "%s", p.b.reason_text);
	cr_assert_eq(p.a.n_writable, 1);
	pair_free(&p);
}

Test(hostile_pause, announcements_do_not_count_among_them)
{
	int fds[50];
	struct wharf_out out = { .fds = fds, .n_fds = 50 };

	for (int i = 0; i < 50; i++)
		fds[i] = STDERR_FILENO;
	pair_open(&p, NULL, WHARF_OPT(port, .rx_fds_max = 253));
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	for (int i = 0; i < 6; i++) {
		out.n_fds = i < 5 ? 50 : 3;
		cr_assert_eq(wharf_send(p.a.port, &out), 0);
		settle(p.loop);
	}
	struct wharf_buf b;
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 1000, &b), 0);
	cr_assert_eq(wharf_send_buf(p.a.port, 1, &b), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_closed, 0, "%s", p.b.reason_text);
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 7);
	pair_free(&p);
}

/* ---- What is given up while its beginning is held ---- */

enum { WHOLE = WH_RECORD_FIRST | WH_RECORD_LAST | WH_RECORD_END, N_ABORTS = 20000 };

static struct raw_frame frame;
static int by_hand;

static void open_by_hand(const struct wharf_port_options *options)
{
	by_hand = pair_open_half(&p, options);
	raw_consumed = 0;
	cr_assert(raw_say_hello(by_hand, NULL));
	settle(p.loop);
}

static void put(uint8_t kind, uint8_t flags, uint64_t id, uint32_t type, uint16_t n_fds)
{
	struct wh_message_out message = { .kind = kind,
		.flags = flags,
		.n_fds = n_fds,
		.type = type,
		.stream = kind == WH_RECORD_MESSAGE ? (uint32_t)id : 0,
		.call = kind == WH_RECORD_MESSAGE ? 0 : id,
		.position = flags & WH_RECORD_FIRST ? UINT64_MAX : 0 };

	cr_assert(wh_encode_message(&frame.encoder, &message));
}

/* The sender's word, of a stream or of a call. */
static void put_end(uint8_t kind, uint64_t id)
{
	struct wh_abort abort = { .stream = (uint32_t)id, .code = WH_ABORT_SENDER };
	struct wh_cancel cancel = { .call = id, .code = WH_CANCEL_CALLER };

	if (kind == WH_RECORD_MESSAGE)
		cr_assert(wh_encode_control(&frame.encoder, WH_RECORD_ABORT, &abort, 0));
	else
		cr_assert(wh_encode_control(&frame.encoder, WH_RECORD_CANCEL, &cancel, 0));
}

static void send_frame(const int *fds, size_t n_fds)
{
	cr_assert(raw_send(by_hand, frame.bytes, wh_encode_end(&frame.encoder, 0, raw_consumed), fds, n_fds, false));
	settle(p.loop);
}

static void say(uint8_t kind, uint8_t flags, uint64_t id, uint32_t type)
{
	raw_begin(&frame);
	put(kind, flags, id, type, 0);
	send_frame(NULL, 0);
}

static void say_end(uint8_t kind, uint64_t id)
{
	raw_begin(&frame);
	put_end(kind, id);
	send_frame(NULL, 0);
}

/* The third number of so many, in its first life or in a later one. */
static uint64_t id_of(uint8_t kind, unsigned life)
{
	return (uint64_t)(life + 1) << (kind == WH_RECORD_MESSAGE ? WH_STREAM_INDEX_BITS : WH_CALL_INDEX_BITS) | 2;
}

static void check_delivered(const uint32_t *types, unsigned n)
{
	cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
	cr_assert_eq(p.a.n_messages, n);
	for (unsigned i = 0; i < n; i++)
		cr_assert_eq(p.a.seen[i].type, types[i]);
}

static void close_by_hand(void)
{
	close(by_hand);
	pair_free(&p);
}

static const uint8_t kinds[] = { WH_RECORD_MESSAGE, WH_RECORD_CALL };

Test(hostile_pause, ends_of_what_never_began_are_heard_without_number)
{
	for (unsigned k = 0; k < 2; k++) {
		open_by_hand(NULL);
		cr_assert_eq(wharf_port_pause(p.a.port), 0);
		say(WH_RECORD_MESSAGE, WHOLE & ~WH_RECORD_END, 0, 1);
		for (unsigned i = 0; i < N_ABORTS;) {
			raw_begin(&frame);
			for (unsigned n = 0; n < 1000; n++, i++)
				put_end(kinds[k], id_of(kinds[k], i % 2) + i);
			send_frame(NULL, 0);
		}
		cr_assert_eq(wharf_port_resume(p.a.port), 0);
		settle(p.loop);
		check_delivered((uint32_t[]){ 1 }, 1);
		close_by_hand();
	}
}

Test(hostile_pause, a_number_that_begins_again_behind_its_end_is_delivered)
{
	for (unsigned k = 0; k < 2; k++) {
		open_by_hand(NULL);
		cr_assert_eq(wharf_port_pause(p.a.port), 0);
		for (unsigned life = 0; life < 4; life++) {
			say(kinds[k], WHOLE, id_of(kinds[k], life), 10 + life);
			if (life != 3)
				say_end(kinds[k], id_of(kinds[k], life));
		}
		cr_assert_eq(p.a.n_messages, 0);
		cr_assert_eq(wharf_port_resume(p.a.port), 0);
		settle(p.loop);
		check_delivered((uint32_t[]){ 13 }, 1);
		/* In the next pause what was noted in this one is forgotten. */
		cr_assert_eq(wharf_port_pause(p.a.port), 0);
		say(kinds[k], WHOLE, id_of(kinds[k], 4), 14);
		cr_assert_eq(wharf_port_resume(p.a.port), 0);
		settle(p.loop);
		check_delivered((uint32_t[]){ 13, 14 }, 2);
		close_by_hand();
	}
}

Test(hostile_pause, what_is_given_up_is_dropped_with_all_its_messages)
{
	open_by_hand(NULL);
	cr_assert_eq(wharf_port_pause(p.a.port), 0);
	say(WH_RECORD_CALL, WHOLE & ~WH_RECORD_END, id_of(WH_RECORD_CALL, 0), 1);
	say(WH_RECORD_CALL, WHOLE & ~WH_RECORD_END, id_of(WH_RECORD_CALL, 0), 2);
	say(WH_RECORD_MESSAGE, WH_RECORD_FIRST, id_of(WH_RECORD_MESSAGE, 0), 3);
	say(WH_RECORD_MESSAGE, WH_RECORD_LAST | WH_RECORD_END, id_of(WH_RECORD_MESSAGE, 0), 3);
	say_end(WH_RECORD_CALL, id_of(WH_RECORD_CALL, 0));
	say_end(WH_RECORD_MESSAGE, id_of(WH_RECORD_MESSAGE, 0));
	say(WH_RECORD_MESSAGE, WHOLE & ~WH_RECORD_END, 0, 4);
	cr_assert_eq(wharf_port_resume(p.a.port), 0);
	settle(p.loop);
	check_delivered((uint32_t[]){ 4 }, 1);
	cr_assert_eq(stats_of(p.a.port).rx_stray_records, 4);
	close_by_hand();
}

/* The port stops behind the first message of a frame: what is behind that is held, and what is in front was not. */
Test(hostile_pause, an_end_reaches_the_rest_of_a_frame_that_is_delivered_in_part)
{
	for (unsigned k = 0; k < 2; k++) {
		open_by_hand(NULL);
		for (unsigned life = 0; life < 4; life += 2) {
			/* The first is stopped as it arrives, the second one as it is delivered from a copy. */
			if (life)
				cr_assert_eq(wharf_port_pause(p.a.port), 0);
			else
				p.a.on_message = pause_now;
			raw_begin(&frame);
			put(WH_RECORD_MESSAGE, WHOLE & ~WH_RECORD_END, 0, 1, 0);
			put(kinds[k], WHOLE, id_of(kinds[k], life), 2, 0);
			send_frame(NULL, 0);
			if (life) {
				p.a.on_message = pause_now;
				cr_assert_eq(wharf_port_resume(p.a.port), 0);
				settle(p.loop);
			}
			say_end(kinds[k], id_of(kinds[k], life));
			raw_begin(&frame);
			put(kinds[k], WHOLE, id_of(kinds[k], life + 1), 3, 0);
			send_frame(NULL, 0);
			cr_assert_eq(wharf_port_resume(p.a.port), 0);
			settle(p.loop);
		}
		check_delivered((uint32_t[]){ 1, 3, 1, 3 }, 4);
		close_by_hand();
	}
}

/* No pause, but one message a turn: what is behind it is held until the next. */
Test(hostile_pause, an_end_reaches_what_waits_for_the_next_turn)
{
	for (unsigned k = 0; k < 2; k++) {
		open_by_hand(WHARF_OPT(port, .rx_msgs_per_turn = 1));
		for (unsigned life = 0; life < 3; life++) {
			raw_begin(&frame);
			put(life ? kinds[k] : WH_RECORD_MESSAGE, life ? WHOLE : WHOLE & ~WH_RECORD_END,
				life ? id_of(kinds[k], life) : 0, life, 0);
			cr_assert(raw_end(by_hand, &frame, 0));
			raw_begin(&frame);
			if (life == 1)
				put_end(kinds[k], id_of(kinds[k], life));
			cr_assert(raw_end(by_hand, &frame, 0));
		}
		settle(p.loop);
		check_delivered((uint32_t[]){ 0, 2 }, 2);
		close_by_hand();
	}
}

Test(hostile_pause, descriptors_of_what_is_given_up_are_closed)
{
	int fds[3] = { STDERR_FILENO, STDERR_FILENO, STDERR_FILENO };
	size_t n_fds;

	for (unsigned k = 0; k < 2; k++) {
		open_by_hand(WHARF_OPT(port, .rx_fds_max = 3));
		n_fds = harness_count_fds();
		cr_assert_eq(wharf_port_pause(p.a.port), 0);
		raw_begin(&frame);
		put(kinds[k], WHOLE, id_of(kinds[k], 0), 1, 3);
		send_frame(fds, 3);
		cr_assert_eq(harness_count_fds(), n_fds + 3);
		say_end(kinds[k], id_of(kinds[k], 0));
		cr_assert_eq(wharf_port_resume(p.a.port), 0);
		settle(p.loop);
		check_delivered(NULL, 0);
		cr_assert_eq(harness_count_fds(), n_fds);
		close_by_hand();
	}
}

/* ---- Pausing at the end ---- */

static struct wharf_msg *kept;

static void keep(struct end *end, const struct wharf_msg *msg)
{
	(void)end;
	if (!kept)
		kept = wharf_msg_take(msg);
}

Test(hostile_pause, a_pause_between_both_byes_does_not_lose_the_end)
{
	pair_open(&p, NULL, NULL);
	kept = NULL;
	/* It keeps its socket as long as it holds this: no EOF helps. */
	p.a.on_message = keep;
	cr_assert_eq(wharf_send_bytes(p.b.port, 1, "held", 4), 0);
	settle(p.loop);
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	while (!wharf_send_bytes(p.b.port, 2, NULL, 0))
		cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_closed, 0, "while paused on_close waits");
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_closed, 1);
	cr_assert_eq(p.b.reason.code, WHARF_CLOSE_PEER);
	wharf_msg_release(kept);
	settle(p.loop);
	pair_free(&p);
}

static bool readable(int fd)
{
	struct pollfd pollfd = { .fd = fd, .events = POLLIN };

	return poll(&pollfd, 1, 0) == 1;
}

Test(hostile_pause, resuming_outside_a_step_rouses_the_host)
{
	int peer = pair_open_half(&p, NULL), fd;

	fd = wharf_loop_fd(p.loop);
	cr_assert_geq(fd, 0);
	raw_say_hello(peer, NULL);
	settle(p.loop);
	cr_assert_eq(wharf_port_pause(p.a.port), 0);
	close(peer);
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 0);
	cr_assert(!readable(fd));
	cr_assert_eq(wharf_port_resume(p.a.port), 0);
	cr_assert(readable(fd), "on_close is due");
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1);
	pair_free(&p);
}
