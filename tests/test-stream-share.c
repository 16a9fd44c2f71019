/* SPDX-License-Identifier: MIT */
/* What flows of one port share: the way out, by payload bytes; turns; and parts that their owner keeps, by reference. */
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "apart.h"
#include "harness.h"
#include "pair.h"
#include "port.h"

#define KIB ((size_t)1024)
#define MIB (1024 * KIB)

static struct pair p;

/* ---- Turns ---- */

enum { FLOWS = 3 };
static uint64_t streams[FLOWS];        /* of the last one: plain messages */
static size_t sizes[FLOWS];            /* of what each sends */
static uint64_t received[FLOWS], ahead_max;
static bool filling;

static int push(unsigned i)
{
	struct wharf_buf b;
	int error = wharf_buf_claim(wharf_port_pool(p.a.port), sizes[i], &b);

	if (error)
		return error;
	error = streams[i] ? wharf_stream_send_buf(p.a.port, streams[i], &b, 0) : wharf_send_buf(p.a.port, FLOWS - 1, &b);
	if (error)
		wharf_buf_abandon(&b);
	return error;
}

static void fill(struct end *end)
{
	(void)end;
	for (unsigned i = 0; filling && i < FLOWS; i++)
		while (!push(i))
			;
}

static void count(struct end *end, const struct wharf_msg *msg)
{
	uint64_t least = UINT64_MAX;

	(void)end;
	received[msg->type] += msg->size;
	for (unsigned i = 0; i < FLOWS; i++)
		least = received[i] < least ? received[i] : least;
	if (filling && received[msg->type] - least > ahead_max)
		ahead_max = received[msg->type] - least;
}

/* All of them always have something to send: how far does one get ahead of another? */
static void share(size_t first, size_t second, size_t plain, uint64_t bound)
{
	sizes[0] = first;
	sizes[1] = second;
	sizes[2] = plain;
	memset(received, 0, sizeof(received));
	ahead_max = 0;
	/* Before the hello nothing leaves: all have a queue when the race begins. */
	pair_start(&p, WHARF_OPT(port, .pool_bytes_max = 256 * MIB, .tx_queued_bytes_max = 16 * MIB),
		WHARF_OPT(port, .flags = WHARF_PORT_PIECES, .rx_stream_bytes_max = 64 * MIB));
	cr_assert_eq(wharf_stream_begin(p.a.port, 0, WHARF_BYTES_UNKNOWN, &streams[0]), 0);
	cr_assert_eq(wharf_stream_begin(p.a.port, 1, WHARF_BYTES_UNKNOWN, &streams[1]), 0);
	streams[2] = 0;
	p.b.on_message = count;
	p.a.on_writable = fill;
	filling = true;
	while (received[0] + received[1] + received[2] < 200 * MIB) {
		fill(NULL);
		cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
		cr_assert_eq(p.a.n_closed + p.b.n_closed, 0, "%s; %s", p.a.reason_text, p.b.reason_text);
	}
	filling = false;
	cr_assert_leq(ahead_max, bound, "%lu ahead with %zu, %zu and %zu: %lu, %lu, %lu", (unsigned long)ahead_max,
		first, second, plain, (unsigned long)received[0], (unsigned long)received[1],
		(unsigned long)received[2]);
	pair_free(&p);
}

Test(stream_share, flows_take_turns_by_payload_bytes)
{
	/* Two streams and the plain messages: a difference that does not grow. */
	share(16 * KIB, 16 * KIB, 16 * KIB, 256 * KIB);
}
Test(stream_share, large_messages_get_no_more_than_small_ones)
{
	share(1 * MIB, 8 * KIB, 64 * KIB, 3 * MIB);
}
Test(stream_share, messages_larger_than_the_queue_get_no_more)
{
	share(6 * MIB, 64 * KIB, 64 * KIB, 12 * MIB);
}

/* ---- The way in, after a pause ---- */

enum { RESUMED = 2 };
static struct apart q;
static uint64_t resumed[RESUMED];
static unsigned n_pieces[RESUMED];
static bool pausing;

static void pause_stream(struct end *end, const struct wharf_msg *msg)
{
	n_pieces[msg->type]++;
	if (pausing) {
		resumed[msg->type] = msg->stream;
		cr_assert_eq(wharf_stream_pause(end->port, msg->stream), 0);
	}
}

/* Of each stream one piece is delivered, and n wait behind the pause that its handler made. */
static void put_aside(const struct wharf_port_options *b_options, unsigned n, size_t size)
{
	uint64_t out[RESUMED];
	struct wharf_buf b;

	memset(n_pieces, 0, sizeof(n_pieces));
	pausing = true;
	apart_open(&q, NULL, NULL, b_options);
	q.b.on_message = pause_stream;
	for (unsigned k = 0; k < RESUMED; k++)
		cr_assert_eq(wharf_stream_begin(q.a.port, k, WHARF_BYTES_UNKNOWN, &out[k]), 0);
	for (unsigned i = 0; i <= n; i++)
		for (unsigned k = 0; k < RESUMED; k++) {
			cr_assert_eq(wharf_buf_claim(wharf_port_pool(q.a.port), size, &b), 0);
			cr_assert_eq(wharf_stream_send_buf(q.a.port, out[k], &b, 0), 0);
			apart_settle(&q);
		}
	pausing = false;
	for (unsigned k = 0; k < RESUMED; k++)
		cr_assert_eq(n_pieces[k], 1);
	cr_assert_eq(q.b.port->n_aside, RESUMED * n);
	for (unsigned k = 0; k < RESUMED; k++)
		cr_assert_eq(wharf_stream_resume(q.b.port, resumed[k]), 0);
}

/* So many in each turn, of both alike; the loop has more to do as long as some wait. */
static void delivers_each_turn(unsigned n, unsigned n_per_turn)
{
	unsigned all = RESUMED * (n + 1), done = RESUMED;
	struct pollfd fd = { .fd = wharf_loop_fd(q.loop_b), .events = POLLIN };

	while (done < all) {
		int more = wharf_loop_step(q.loop_b, 0);
		cr_assert_eq(n_pieces[0] + n_pieces[1], done + n_per_turn);
		cr_assert_leq(n_pieces[0], n_pieces[1] + 1);
		cr_assert_leq(n_pieces[1], n_pieces[0] + 1);
		done += n_per_turn;
		cr_assert(more > 0 || done == all);
		cr_assert(poll(&fd, 1, 0) == 1 || done == all);
	}
}

Test(stream_share, what_waited_for_a_resume_has_its_share_of_a_turn)
{
	put_aside(WHARF_OPT(port, .flags = WHARF_PORT_PIECES, .rx_msgs_per_turn = 10), 50, 100);
	delivers_each_turn(50, 10);
	apart_free(&q);
}

Test(stream_share, what_waited_for_a_resume_leaves_each_turn_to_other_ports_after_a_megabyte)
{
	struct end other = { 0 };
	int fds[2];

	put_aside(WHARF_OPT(port, .flags = WHARF_PORT_PIECES, .rx_stream_bytes_max = 64 * MIB), 4, MIB);
	cr_assert_eq(wharf_pair(fds), 0);
	apart_end(q.loop_b, fds[1], &other, NULL);
	delivers_each_turn(4, 1);
	close(fds[0]);
	apart_free(&q);
}

Test(stream_share, what_waited_for_a_resume_arrives_before_the_end)
{
	put_aside(WHARF_OPT(port, .flags = WHARF_PORT_PIECES, .rx_msgs_per_turn = 10), 50, 100);
	cr_assert_eq(wharf_port_abort(q.a.port, 1), 0);
	apart_settle(&q);
	cr_assert_eq(q.b.n_closed, 1);
	cr_assert_eq(n_pieces[0] + n_pieces[1], 102);
	apart_free(&q);
}

/* ---- By reference ---- */

static unsigned n_done;
static bool in_call;
static const void *done_bytes;
static size_t done_size;

static void done(const void *bytes, size_t size, void *user)
{
	cr_assert(!in_call, "inside the call that caused it");
	cr_assert_eq(user, &p);
	done_bytes = bytes;
	done_size = size;
	n_done++;
}

static struct wharf_part reference(const void *bytes, size_t size)
{
	return (struct wharf_part){ .bytes = bytes, .size = size, .done = done, .user = &p };
}

static int send_reference(const void *bytes, size_t size)
{
	struct wharf_part part = reference(bytes, size);
	int error;

	in_call = true;
	error = wharf_send(p.a.port, &(struct wharf_out){ .parts = &part, .n_parts = 1 });
	in_call = false;
	return error;
}

Test(stream_share, what_goes_by_reference_is_given_back_once)
{
	static char bytes[200000];
	struct wharf_part two[2] = { reference(bytes, 100), reference(bytes + 100, 0) };
	uint64_t stream;

	n_done = 0;
	pair_open(&p, NULL, NULL);
	cr_assert_eq(send_reference(bytes, sizeof(bytes)), 0);
	cr_assert_eq(n_done, 0);
	settle(p.loop);
	cr_assert_eq(n_done, 1);
	cr_assert_eq(done_bytes, bytes);
	cr_assert_eq(done_size, sizeof(bytes));
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .parts = two, .n_parts = 2 }), 0);
	settle(p.loop);
	cr_assert_eq(n_done, 3);
	/* Refused: the caller's, and nobody is told. */
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .parts = two, .n_parts = 2, .n_fds = 1,
		.fds = (int[]){ -1 } }), -EMSGSIZE);
	cr_assert_eq(wharf_stream_begin(p.a.port, 1, 50, &stream), 0);
	cr_assert_eq(wharf_stream_send(p.a.port, stream, &(struct wharf_out){ .parts = two, .n_parts = 1 }), -EMSGSIZE);
	settle(p.loop);
	cr_assert_eq(n_done, 3);
	/* Given up with the stream, here and there. */
	for (unsigned there = 0; there < 2; there++) {
		cr_assert_eq(wharf_stream_begin(p.a.port, 1, WHARF_BYTES_UNKNOWN, &stream), 0);
		cr_assert_eq(wharf_port_pause(p.b.port), 0);
		n_done = 0;
		for (unsigned i = 0; i < 20; i++) {
			struct wharf_part part = reference(bytes, sizeof(bytes));
			in_call = true;
			(void)!wharf_stream_send(p.a.port, stream, &(struct wharf_out){ .parts = &part, .n_parts = 1 });
			in_call = false;
		}
		in_call = true;
		cr_assert_eq(wharf_stream_abort(p.a.port, stream, 0), 0);
		in_call = false;
		settle(p.loop);
		cr_assert_gt(n_done, 0);
		cr_assert_leq(n_done, 20);
		cr_assert_eq(wharf_port_resume(p.b.port), 0);
		settle(p.loop);
	}
	/* And with the port. */
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	n_done = 0;
	unsigned n_sent = 0;
	while (!send_reference(bytes, sizeof(bytes)))
		n_sent++;
	cr_assert_eq(wharf_port_abort(p.a.port, 1), 0);
	settle(p.loop);
	cr_assert_eq(n_done, n_sent);
	pair_free(&p);
	cr_assert_eq(n_done, n_sent);
}

Test(stream_share, what_waits_by_reference_is_given_back_when_the_loop_is_freed)
{
	static char bytes[200000];

	n_done = 0;
	pair_start(&p, NULL, NULL);
	cr_assert_eq(send_reference(bytes, sizeof(bytes)), 0);
	pair_free(&p);
	cr_assert_eq(n_done, 1);
}

/* A GiB lies in memory once; what the sender keeps of it is no more than its pool and its frames. */
static void pass_by_reference(uint32_t flags, size_t size)
{
	unsigned char *bytes = calloc(1, size);

	cr_assert_not_null(bytes);
	n_done = 0;
	n_counted = 0;
	p = (struct pair){ 0 };
	int fds[2];
	cr_assert_eq(wharf_loop_new(NULL, &p.loop), 0);
	cr_assert_eq(wharf_pair(fds), 0);
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &p.a,
		.pool_bytes_max = 1 * MIB), &p.a.port), 0);
	cr_assert_eq(wharf_open(p.loop, fds[1], WHARF_OPT(port, .ops = &end_ops, .user = &p.b, .flags = flags,
		.rx_bytes_max = size), &p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(send_reference(bytes, size), 0);
	while (!n_done || p.b.n_bytes < size) {
		struct wharf_pool_info info = { .size = sizeof(info) };
		cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
		cr_assert_eq(wharf_pool_info(wharf_port_pool(p.a.port), &info), 0);
		cr_assert_leq(info.bytes, 1 * MIB);
		cr_assert_leq(p.a.port->frames_cost, p.a.port->tx_queued_bytes_max + 2 * MIB);
		cr_assert_eq(p.a.n_closed + p.b.n_closed, 0, "%s; %s", p.a.reason_text, p.b.reason_text);
	}
	settle(p.loop);
	cr_assert_eq(n_done, 1);
	cr_assert_eq(p.b.n_bytes, size);
	pair_free(&p);
	free(bytes);
}

Test(stream_share, much_by_reference_passes_through_a_small_pool)
{
	pass_by_reference(WHARF_PORT_PIECES, 101000);
	pass_by_reference(0, 64 * MIB);
}
