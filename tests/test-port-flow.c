/* SPDX-License-Identifier: MIT */
/* Ports: backpressure, pausing, shares of a turn, and private copies for untrusted peers. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>

#include "apart.h"
#include "harness.h"

static struct pair p;
static struct apart q;

static const struct wharf_port_options *options(struct wharf_port_options *o)
{
	WHARF_INIT(o);
	return o;
}

/* ---- Backpressure ---- */

Test(port_flow, an_exhausted_pool_tells_when_a_claim_would_succeed)
{
	struct wharf_port_options o;
	struct wharf_buf b;
	wharf_pool *pool;
	unsigned sent = 0;
	int error;

	options(&o);
	o.pool_bytes_max = 1 << 20;
	pair_open(&p, &o, NULL);
	pool = wharf_port_pool(p.a.port);
	cr_assert_eq(wharf_buf_claim(pool, 2 << 20, &b), -EMSGSIZE, "more than the pool can ever hold");
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	while (!(error = wharf_buf_claim(pool, 65536, &b))) {
		cr_assert_eq(wharf_send_buf(p.a.port, 1, &b), 0);
		cr_assert_lt(++sent, 100);
	}
	cr_assert_eq(error, -EAGAIN);
	cr_assert_geq(sent, 8, "only %u of 64 KiB in a pool of 1 MiB", sent);
	settle(p.loop);
	cr_assert_eq(p.a.n_writable, 0, "nothing was released yet");
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, sent);
	cr_assert_eq(p.a.n_writable, 1);
	cr_assert_eq(wharf_buf_claim(pool, 65536, &b), 0, "and it does succeed");
	wharf_buf_abandon(&b);
	pair_free(&p);
}

Test(port_flow, a_full_queue_answers_again_and_tells_when_it_has_room)
{
	struct wharf_port_options o;
	static unsigned char bytes[8000];
	unsigned sent = 0;
	int error;

	options(&o);
	o.tx_queued_bytes_max = 100000;
	pair_open(&p, &o, NULL);
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	while (!(error = wharf_send_bytes(p.a.port, sent, bytes, sizeof(bytes)))) {
		cr_assert_lt(++sent, 10000);
		wharf_loop_step(p.loop, 0);
	}
	cr_assert_eq(error, -EAGAIN);
	settle(p.loop);
	cr_assert_eq(p.a.n_writable, 0);
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.a.n_writable, 1);
	cr_assert_eq(wharf_send_bytes(p.a.port, sent, bytes, sizeof(bytes)), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, sent + 1);
	pair_free(&p);
}

static unsigned produced;

/* From one callback, without returning to the loop. */
static void produce_eight_mebibytes(struct end *end, const struct wharf_msg *msg)
{
	(void)msg;
	for (produced = 0; produced < 128; produced++) {
		struct wharf_buf b;
		if (wharf_buf_claim(wharf_port_pool(end->port), 65536, &b))
			break;
		cr_assert_eq(wharf_send_buf(end->port, 1, &b), 0);
	}
}

Test(port_flow, a_burst_from_one_callback_leaves_while_it_is_made)
{
	struct wharf_port_stats stats;

	pair_open(&p, NULL, NULL);
	p.a.on_message = produce_eight_mebibytes;
	cr_assert_eq(wharf_send_bytes(p.b.port, 1, "go", 2), 0);
	while (!p.a.n_messages)
		cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
	cr_assert_eq(produced, 128);
	WHARF_INIT(&stats);
	cr_assert_eq(wharf_port_stats(p.a.port, &stats), 0);
	cr_assert_geq(stats.tx_messages, 96, "only %lu of 128 had left", (unsigned long)stats.tx_messages);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 128);
	pair_free(&p);
}

/* ---- Pausing ---- */

static void pause_at_third(struct end *end, const struct wharf_msg *msg)
{
	(void)msg;
	if (end->n_messages == 3)
		cr_assert_eq(wharf_port_pause(end->port), 0);
}

Test(port_flow, pausing_in_a_handler_stops_in_the_middle_of_a_frame)
{
	pair_open(&p, NULL, NULL);
	p.b.on_message = pause_at_third;
	for (uint32_t i = 0; i < 10; i++)
		cr_assert_eq(wharf_send_bytes(p.a.port, i, &i, sizeof(i)), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 3);
	for (uint32_t i = 10; i < 20; i++)
		cr_assert_eq(wharf_send_bytes(p.a.port, i, &i, sizeof(i)), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 3);
	p.b.on_message = NULL;
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 20);
	for (uint32_t i = 0; i < 20; i++)
		cr_assert_eq(p.b.seen[i].type, i);
	pair_free(&p);
}

Test(port_flow, a_paused_port_still_sends_and_hears_that_it_may)
{
	struct wharf_port_options o;
	struct wharf_buf b;
	unsigned sent = 0;

	options(&o);
	o.pool_bytes_max = 1 << 20;
	pair_open(&p, &o, NULL);
	cr_assert_eq(wharf_port_pause(p.a.port), 0);
	cr_assert_eq(wharf_send_bytes(p.b.port, 1, "held", 4), 0);
	settle(p.loop);
	while (!wharf_buf_claim(wharf_port_pool(p.a.port), 65536, &b)) {
		cr_assert_eq(wharf_send_buf(p.a.port, 1, &b), 0);
		sent++;
	}
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, sent);
	cr_assert_eq(p.a.n_messages, 0);
	cr_assert_eq(p.a.n_writable, 1, "the wake is not held with the messages");
	cr_assert_eq(wharf_port_resume(p.a.port), 0);
	settle(p.loop);
	cr_assert_eq(p.a.n_messages, 1);
	pair_free(&p);
}

Test(port_flow, a_share_of_a_turn_bounds_what_is_delivered_in_it)
{
	struct wharf_port_options o;
	static unsigned char bytes[10000];
	size_t least = SIZE_MAX;

	options(&o);
	o.rx_msgs_per_turn = 1;
	pair_open(&p, NULL, &o);
	for (uint32_t i = 0; i < 30; i++)
		cr_assert_eq(wharf_send_bytes(p.a.port, i, bytes, sizeof(bytes)), 0);
	for (int i = 0; i < 200 && p.b.n_messages < 30; i++) {
		size_t before = p.b.n_messages;
		cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
		cr_assert_leq(p.b.n_messages - before, 3, "one frame at most");
		least = p.b.n_messages;
	}
	cr_assert_eq(least, 30);
	pair_free(&p);
}

enum { FLOOD = 6, FLOOD_BYTES = 1 << 20 };

/* From a to b, until they lie in b's socket. */
static void send_flood(void)
{
	struct wharf_buf b;

	for (uint32_t i = 0; i < FLOOD; i++) {
		cr_assert_eq(wharf_buf_claim(wharf_port_pool(q.a.port), FLOOD_BYTES, &b), 0);
		cr_assert_eq(wharf_send_buf(q.a.port, i, &b), 0);
		cr_assert_geq(wharf_loop_step(q.loop_a, 0), 0);
	}
}

Test(port_flow, a_flood_leaves_each_turn_to_other_ports_after_a_megabyte)
{
	struct end from = { 0 }, to = { 0 };
	int fds[2];

	apart_open(&q, NULL, NULL, NULL);
	cr_assert_eq(wharf_pair(fds), 0);
	apart_end(q.loop_a, fds[0], &from, NULL);
	apart_end(q.loop_b, fds[1], &to, NULL);
	apart_settle(&q);
	send_flood();
	cr_assert_eq(wharf_send_bytes(from.port, 1, "small", 5), 0);
	cr_assert_geq(wharf_loop_step(q.loop_a, 0), 0);
	cr_assert_geq(wharf_loop_step(q.loop_b, 0), 0);
	cr_assert_eq(q.b.n_messages, 1);
	cr_assert_eq(to.n_messages, 1, "it waits for one message of the flood, not for all");
	for (size_t before = 1; q.b.n_messages < FLOOD; before++) {
		int more = wharf_loop_step(q.loop_b, 0);
		cr_assert_eq(q.b.n_messages, before + 1);
		cr_assert(more > 0 || before + 1 == FLOOD, "the rest waits in this process: the loop must not sleep");
	}
	for (uint32_t i = 0; i < FLOOD; i++)
		cr_assert_eq(q.b.seen[i].type, i);
	apart_free(&q);
}

Test(port_flow, a_port_that_is_alone_on_its_loop_has_the_whole_turn)
{
	apart_open(&q, NULL, NULL, NULL);
	send_flood();
	cr_assert_geq(wharf_loop_step(q.loop_b, 0), 0);
	cr_assert_eq(q.b.n_messages, FLOOD);
	apart_free(&q);
}

/* ---- Untrusted peers ---- */

static const void *delivered_at;
static struct wharf_msg *taken;

static void look_twice(struct end *end, const struct wharf_msg *msg)
{
	unsigned char *shared = end->user;

	delivered_at = msg->slices[0].data;
	cr_assert_eq(((const unsigned char *)delivered_at)[0], 'o');
	/* What a hostile peer would do between two looks. */
	shared[0] = 'X';
	cr_assert_eq(((const unsigned char *)wharf_msg_contiguous(msg))[0], 'o');
	taken = wharf_msg_take(msg);
	cr_assert_not_null(taken);
}

Test(port_flow, untrusted_delivery_is_a_copy_that_the_peer_cannot_change)
{
	struct wharf_port_options o;
	struct wharf_buf b;

	options(&o);
	o.untrusted = 1;
	pair_open(&p, NULL, &o);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 100, &b), 0);
	memset(b.data, 'o', 100);
	p.b.user = b.data;
	p.b.on_message = look_twice;
	cr_assert_eq(wharf_send_buf(p.a.port, 1, &b), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_eq((uintptr_t)delivered_at % 64, 0);
	pair_free(&p);
	cr_assert_eq(((const unsigned char *)taken->slices[0].data)[0], 'o');
	wharf_msg_release(taken);
}
