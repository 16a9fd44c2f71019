/* SPDX-License-Identifier: MIT */
/* Pausing, resuming and aborting at the worst moment: messages wait, are delivered once, and nothing waits for ever. */
#include <criterion/criterion.h>
#include <poll.h>
#include <unistd.h>

#include "harness.h"
#include "pair.h"
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
