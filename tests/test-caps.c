/* SPDX-License-Identifier: MIT */
/* What a port may lend, and what one drops that drops the newest. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "apart.h"
#include "harness.h"
#include "port.h"

static struct apart p;

static int send_claim(size_t size)
{
	struct wharf_buf buf;
	int result;

	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), size, &buf), 0);
	result = wharf_send_buf(p.a.port, 1, &buf);
	cr_assert_eq(!buf.data, result >= 0);
	wharf_buf_abandon(&buf);
	return result;
}

/* ---- tx_lent_bytes_max ---- */

Test(caps, what_is_lent_is_bounded)
{
	apart_open(&p, NULL, WHARF_OPT(port, .tx_lent_bytes_max = 10 * 4096), NULL);
	wharf_port_pause(p.b.port);
	for (unsigned i = 0; i < 10; i++)
		cr_assert_eq(send_claim(4096), 0);
	cr_assert_eq(send_claim(1), -EAGAIN);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "bytes", 5), 0, "what is not lent is not bounded");
	apart_settle(&p);
	cr_assert_eq(stats_of(p.a.port).tx_lent_bytes, 10 * 4096);
	cr_assert_eq(p.a.n_writable, 0);
	wharf_port_resume(p.b.port);
	apart_settle(&p);
	cr_assert_eq(p.a.n_writable, 1);
	cr_assert_eq(p.b.n_messages, 11);
	/* Nothing is watched any more. */
	apart_settle(&p);
	cr_assert_eq(send_claim(4096), 0);
	apart_settle(&p);
	cr_assert_eq(stats_of(p.a.port).wakes_received, 1);
	apart_free(&p);
}

Test(caps, a_port_that_has_lent_nothing_sends_one_of_any_size)
{
	apart_open(&p, NULL, WHARF_OPT(port, .tx_lent_bytes_max = 1), NULL);
	wharf_port_pause(p.b.port);
	cr_assert_eq(send_claim(1 << 20), 0);
	cr_assert_eq(send_claim(1), -EAGAIN);
	wharf_port_resume(p.b.port);
	apart_settle(&p);
	cr_assert_eq(p.a.n_writable, 1);
	cr_assert_eq(send_claim(2 << 20), 0);
	apart_settle(&p);
	cr_assert_eq(p.b.n_messages, 2);
	apart_free(&p);
}

Test(caps, what_is_to_be_lent_counts_before_the_hello)
{
	apart_half(&p, NULL, WHARF_OPT(port, .tx_lent_bytes_max = 8192));
	cr_assert_eq(send_claim(4096), 0);
	cr_assert_eq(send_claim(4096), 0);
	cr_assert_eq(send_claim(4096), -EAGAIN);
	cr_assert_eq(apart_peer_loop(NULL, &p.loop_b), 0);
	apart_end(p.loop_b, p.fds[1], &p.b, NULL);
	apart_settle(&p);
	cr_assert_eq(p.b.n_messages, 2);
	cr_assert_eq(p.a.n_writable, 1);
	apart_free(&p);
}

Test(caps, a_taken_message_stays_lent_and_its_release_is_told)
{
	apart_open(&p, NULL, WHARF_OPT(port, .tx_lent_bytes_max = 4096), NULL);
	p.b.on_message = take_first;
	cr_assert_eq(send_claim(4096), 0);
	apart_settle(&p);
	cr_assert_eq(send_claim(100), -EAGAIN);
	apart_settle(&p);
	cr_assert_eq(p.a.n_writable, 0);
	taken_first = wharf_msg_release(taken_first);
	apart_settle(&p);
	cr_assert_eq(p.a.n_writable, 1);
	cr_assert_eq(send_claim(100), 0);
	apart_free(&p);
}

Test(caps, what_came_back_unseen_counts_when_room_is_wanted)
{
	apart_open(&p, NULL, WHARF_OPT(port, .tx_lent_bytes_max = 8192), NULL);
	for (unsigned i = 0; i < 100; i++) {
		cr_assert_eq(send_claim(8192), 0);
		apart_settle(&p);
	}
	cr_assert_eq(stats_of(p.a.port).tx_again, 0);
	apart_free(&p);
}

Test(caps, streams_and_calls_keep_to_it)
{
	struct wharf_buf buf;
	wharf_call_id id;
	uint64_t stream;

	apart_open(&p, NULL, WHARF_OPT(port, .tx_lent_bytes_max = 4096), NULL);
	wharf_port_pause(p.b.port);
	cr_assert_eq(send_claim(4096), 0);
	cr_assert_eq(wharf_stream_begin(p.a.port, 1, 8192, &stream), 0);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 4096, &buf), 0);
	cr_assert_eq(wharf_stream_send_buf(p.a.port, stream, &buf, 0), -EAGAIN);
	cr_assert_eq(wharf_call(p.a.port, &(struct wharf_out){ .parts = &(struct wharf_part){ .buf = &buf },
		.n_parts = 1, .flags = WHARF_LAST }, NULL, &id), -EAGAIN);
	/* Long bytes are put into chunks only as far as that is allowed: they go by copy. */
	cr_assert_eq(wharf_stream_send(p.a.port, stream, &(struct wharf_out){ .n_parts = 1,
		.parts = &(struct wharf_part){ .bytes = (char[4096]){ 0 }, .size = 4096 } }), 0);
	apart_settle(&p);
	cr_assert_eq(stats_of(p.a.port).tx_lent_bytes, 4096);
	cr_assert_eq(p.a.n_writable, 0);
	wharf_port_resume(p.b.port);
	apart_settle(&p);
	cr_assert_eq(p.a.n_writable, 1);
	cr_assert_eq(wharf_stream_send_buf(p.a.port, stream, &buf, WHARF_LAST), 0);
	apart_settle(&p);
	cr_assert_eq(p.b.n_messages, 2);
	apart_free(&p);
}

/* ---- Dropping the newest ---- */

static unsigned n_done;

static void done(const void *bytes, size_t size, void *user)
{
	(void)bytes;
	(void)size;
	(void)user;
	n_done++;
}

Test(caps, a_full_port_that_drops_takes_and_counts_what_it_drops)
{
	static char bytes[1000], large[200000];
	struct wharf_port_stats stats;
	struct harness_snapshot before;
	struct wharf_pool_info info;
	uint64_t n_sent = 0, free_bytes;
	int result, ends[2];
	const char *leak;

	WHARF_INIT(&info);
	apart_open(&p, NULL, WHARF_OPT(port, .policy = WHARF_POLICY_DROP_NEWEST, .tx_queued_bytes_max = 100000),
		WHARF_OPT(port, .rx_fds_max = 2));
	wharf_port_pause(p.b.port);
	do
		result = wharf_send_bytes(p.a.port, 1, bytes, sizeof(bytes));
	while (result == 0 && ++n_sent);
	cr_assert_eq(result, WHARF_SENT_DROPPED);
	/* What travels by reference waits by itself; behind it all is dropped. */
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .n_parts = 1,
		.parts = &(struct wharf_part){ .bytes = large, .size = sizeof(large), .done = done } }), 0);
	cr_assert_eq(send_claim(3000), WHARF_SENT_DROPPED);
	wharf_pool_info(wharf_port_pool(p.a.port), &info);
	free_bytes = info.bytes_free;
	harness_snapshot_take(&before);
	for (unsigned i = 0; i < 10; i++) {
		cr_assert_eq(send_claim(3000), WHARF_SENT_DROPPED);
		cr_assert_eq(pipe(ends), 0);
		cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .fds = ends, .n_fds = 2,
			.flags = WHARF_FDS_MOVE }), WHARF_SENT_DROPPED);
		cr_assert_eq(pipe(ends), 0);
		cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .fds = ends, .n_fds = 2 }),
			WHARF_SENT_DROPPED);
		close(ends[0]);
		close(ends[1]);
		cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .n_parts = 1,
			.parts = &(struct wharf_part){ .bytes = bytes, .size = 10, .done = done } }),
			WHARF_SENT_DROPPED);
	}
	cr_assert_eq(n_done, 0, "never inside a send");
	leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
	wharf_pool_info(wharf_port_pool(p.a.port), &info);
	cr_assert_eq(info.bytes_free, free_bytes);
	stats = stats_of(p.a.port);
	cr_assert_eq(stats.tx_dropped, 42);
	cr_assert_eq(stats.tx_dropped_bytes, 1000 + 11 * 3000 + 10 * 10);
	cr_assert_eq(stats.tx_again, 0);
	apart_settle(&p);
	cr_assert_eq(n_done, 10);
	wharf_port_resume(p.b.port);
	apart_settle(&p);
	cr_assert_eq(p.b.n_messages, n_sent + 1);
	cr_assert_eq(n_done, 11);
	cr_assert_eq(p.a.n_writable, 0, "nothing was refused");
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, bytes, sizeof(bytes)), 0);
	apart_free(&p);
}

Test(caps, streams_calls_and_ends_are_not_dropped)
{
	int result, ends[2], again[2] = { -1, -1 };
	wharf_call_id id;

	apart_open(&p, NULL, WHARF_OPT(port, .policy = WHARF_POLICY_DROP_NEWEST, .tx_fds_max = 1),
		WHARF_OPT(port, .rx_fds_max = 1));
	wharf_port_pause(p.b.port);
	cr_assert_eq(wharf_pair(ends), 0);
	cr_assert_eq(wharf_port_pass(p.a.port, 1, ends[0]), 0);
	cr_assert_eq(wharf_pair(again), 0);
	result = wharf_send(p.a.port, &(struct wharf_out){ .fds = &again[0], .n_fds = 1 });
	cr_assert_eq(result, WHARF_SENT_DROPPED);
	cr_assert_eq(wharf_port_pass(p.a.port, 1, again[0]), -EAGAIN);
	cr_assert_eq(wharf_call(p.a.port, &(struct wharf_out){ .fds = &again[0], .n_fds = 1,
		.flags = WHARF_LAST }, NULL, &id), -EAGAIN);
	cr_assert_eq(stats_of(p.a.port).tx_dropped, 1);
	wharf_port_resume(p.b.port);
	apart_settle(&p);
	cr_assert_eq(p.a.n_writable, 1);
	cr_assert_eq(wharf_port_pass(p.a.port, 1, again[0]), 0);
	close(ends[1]);
	close(again[1]);
	apart_free(&p);
}

Test(caps, a_key_names_values_only)
{
	apart_open(&p, NULL, WHARF_OPT(port, .policy = WHARF_POLICY_DROP_NEWEST), NULL);
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .key = 1 }), -EINVAL);
	cr_assert_eq(wharf_send(p.b.port, &(struct wharf_out){ .key = 1 }), -EINVAL);
	apart_free(&p);
}

/* ---- What streams and calls queue together ---- */

enum { CALLS = 200 };

#define MIB ((size_t)1 << 20)

static char *large;
static unsigned n_taken, n_refused, n_ended;

static int answer(wharf_port *port, wharf_call_id id)
{
	struct wharf_part part = { .bytes = large, .size = 900000 };

	return wharf_reply(port, id, &(struct wharf_out){ .flags = WHARF_LAST, .parts = &part, .n_parts = 1 }, 0);
}

static void answer_later(wharf_port *port, wharf_call_id id, void *user)
{
	(void)user;
	cr_assert_eq(answer(port, id), 0, "told, and it does not succeed");
	n_refused--;
	n_taken++;
}

static void take_and_answer(struct end *end, const struct wharf_msg *msg)
{
	wharf_call_id id;
	int error;

	if (!msg->call)
		return;
	cr_assert_eq(wharf_call_take(end->port, msg, WHARF_OPT(answer, .on_writable = answer_later), &id), 0);
	error = answer(end->port, id);
	cr_assert(error == 0 || error == -EAGAIN, "%d", error);
	n_taken += !error;
	n_refused += error != 0;
}

static void count_end(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user)
{
	(void)port, (void)id, (void)user;
	cr_assert_eq(end->reason, WHARF_END_LAST);
	n_ended++;
}

static void free_large(void)
{
	free(large);
	apart_free(&p);
}

static void make_large(void)
{
	large = calloc(1, 2 * MIB);
	n_taken = n_refused = n_ended = 0;
}

Test(caps, what_all_answers_queue_is_bounded, .init = make_large, .fini = free_large)
{
	wharf_call_id id;

	apart_open(&p, NULL, NULL, NULL);
	p.a.on_message = take_and_answer;
	for (unsigned i = 0; i < CALLS; i++)
		cr_assert_eq(wharf_call(p.b.port, &(struct wharf_out){ .flags = WHARF_LAST },
			WHARF_OPT(call, .on_end = count_end), &id), 0);
	settle(p.loop_b);
	settle(p.loop_a);
	cr_assert_eq(n_taken + n_refused, CALLS);
	cr_assert_leq(stats_of(p.a.port).tx_queued_bytes, 12 * MIB, "%u answers wait", n_taken);
	cr_assert_geq(n_taken, 4);
	/* Each of the others is told when there is room for it. */
	apart_settle(&p);
	cr_assert_eq(n_refused, 0);
	cr_assert_eq(n_ended, CALLS);
	cr_assert_eq(p.a.port->flows_cost + p.a.port->active_cost, 0);
}

/* Calls until it is refused. */
static void call_again(struct end *end)
{
	struct wharf_part part = { .bytes = large, .size = 900000 };
	struct wharf_out out = { .flags = WHARF_LAST, .parts = &part, .n_parts = 1 };
	unsigned n_before = n_taken;
	wharf_call_id id;
	int error = 0;

	while (!error && n_taken < CALLS) {
		error = wharf_call(end->port, &out, WHARF_OPT(call, .on_end = NULL), &id);
		n_taken += !error;
	}
	cr_assert(n_taken == CALLS || error == -EAGAIN, "%d", error);
	cr_assert_gt(n_taken, n_before, "told, and it does not succeed");
}

Test(caps, what_all_requests_queue_is_bounded, .init = make_large, .fini = free_large)
{
	apart_open(&p, NULL, NULL, WHARF_OPT(port, .rx_calls_max = 2 * CALLS));
	p.a.on_writable = call_again;
	call_again(&p.a);
	cr_assert_leq(n_taken, 8);
	settle(p.loop_a);
	cr_assert_leq(stats_of(p.a.port).tx_queued_bytes, 12 * MIB);
	apart_settle(&p);
	cr_assert_eq(n_taken, CALLS);
	cr_assert_eq(p.b.n_messages, CALLS);
}

enum { SLOW = 20, CREDIT = 100000 };

static uint64_t slow[SLOW + 1];

static int send_part(uint64_t stream, size_t size)
{
	return wharf_stream_send(p.a.port, stream, &(struct wharf_out){
		.parts = &(struct wharf_part){ .bytes = large, .size = size }, .n_parts = 1 });
}

static void pause_slow(struct end *end, const struct wharf_msg *msg)
{
	if (msg->stream && msg->type == 1 && !msg->position_bytes)
		cr_assert_eq(wharf_stream_pause(end->port, msg->stream), 0);
}

Test(caps, streams_that_wait_for_their_readers_stall_no_other, .init = make_large, .fini = free_large)
{
	uint64_t n_bytes;
	unsigned n_full = 0;

	apart_open(&p, NULL, WHARF_OPT(port, .tx_queued_bytes_max = MIB),
		WHARF_OPT(port, .flags = WHARF_PORT_PIECES, .rx_stream_bytes_max = CREDIT));
	p.b.on_message = pause_slow;
	for (unsigned i = 0; i <= SLOW; i++)
		cr_assert_eq(wharf_stream_begin(p.a.port, i < SLOW, WHARF_BYTES_UNKNOWN, &slow[i]), 0);
	for (unsigned i = 0; i < SLOW; i++) {
		int error = send_part(slow[i], 2 * MIB);
		cr_assert(error == 0 || error == -EAGAIN, "%d", error);
		n_full += !error;
		apart_settle(&p);
	}
	cr_assert_eq(n_full, 4, "each uses a quarter up, whatever it has queued");
	cr_assert_eq(send_part(slow[SLOW], 2 * MIB), -EAGAIN);
	n_bytes = p.b.n_bytes;
	for (unsigned i = 0; i < 100; i++) {
		cr_assert_eq(send_part(slow[SLOW], i % 2 ? 80000 : 100), 0);
		apart_settle(&p);
	}
	cr_assert_eq(p.b.n_bytes - n_bytes, 50 * 80100);
	/* Those that were refused hear when the first ones go on. */
	p.a.n_writable = 0;
	p.b.on_message = NULL;
	for (unsigned i = 0; i < p.b.n_messages && i < END_MESSAGES_MAX; i++)
		if (p.b.seen[i].type == 1)
			(void)!wharf_stream_resume(p.b.port, p.b.seen[i].stream);
	apart_settle(&p);
	cr_assert_geq(p.a.n_writable, 1);
	cr_assert_eq(send_part(slow[SLOW], 2 * MIB), 0);
	apart_settle(&p);
	cr_assert_eq(p.a.port->flows_cost + p.a.port->active_cost, 0);
}

/* ---- When it is looked at who may go on ---- */

static size_t n_messages_when_told;

static void note_messages(struct end *end) { n_messages_when_told = end->n_messages; }

Test(caps, who_may_go_on_is_looked_at_once_a_turn)
{
	int fd = STDERR_FILENO;
	struct wharf_out out = { .fds = &fd, .n_fds = 1 };

	apart_open(&p, NULL, WHARF_OPT(port, .tx_fds_max = 1), WHARF_OPT(port, .rx_fds_max = 1));
	p.a.on_writable = note_messages;
	cr_assert_eq(wharf_send(p.a.port, &out), 0);
	cr_assert_eq(wharf_send(p.a.port, &out), -EAGAIN);
	settle(p.loop_a);
	settle(p.loop_b);
	/* The first of these frames says that the descriptor was read. */
	for (unsigned i = 0; i < 5; i++) {
		cr_assert_eq(wharf_send_bytes(p.b.port, 1, "x", 1), 0);
		cr_assert_eq(wharf_loop_flush(p.loop_b), 0);
		cr_assert_geq(wharf_loop_step(p.loop_b, 0), 0);
	}
	apart_settle(&p);
	cr_assert_eq(p.a.n_writable, 1);
	cr_assert_eq(n_messages_when_told, 5);
	apart_free(&p);
}

Test(caps, who_has_no_credit_is_not_looked_at_before_there_is_some)
{
	apart_open(&p, NULL, NULL, WHARF_OPT(port, .rx_stream_bytes_max = 1, .flags = WHARF_PORT_PIECES));
	p.b.on_message = pause_slow;
	large = calloc(1, 1000);
	for (unsigned i = 0; i < SLOW; i++) {
		cr_assert_eq(wharf_stream_begin(p.a.port, 1, WHARF_BYTES_UNKNOWN, &slow[i]), 0);
		cr_assert_eq(send_part(slow[i], 1000), 0);
		apart_settle(&p);
		/* The credit of the first part came back with its handler. */
		cr_assert_eq(send_part(slow[i], 1000), 0);
		cr_assert_eq(send_part(slow[i], 1000), -EAGAIN);
	}
	apart_settle(&p);
	cr_assert_eq(p.b.n_messages, SLOW);
	cr_assert_eq(p.a.n_writable, 0);
	cr_assert(wh_list_empty(&p.a.port->blocked_flows));
	cr_assert_eq(p.a.port->n_dry, SLOW);
	for (unsigned i = 0; i < SLOW; i++)
		cr_assert_eq(wharf_stream_resume(p.b.port, p.b.seen[i].stream), 0);
	apart_settle(&p);
	cr_assert_geq(p.a.n_writable, 1);
	cr_assert_eq(p.a.port->n_dry, 0);
	cr_assert_eq(send_part(slow[0], 1000), 0);
	free(large);
	apart_free(&p);
}
