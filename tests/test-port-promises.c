/* SPDX-License-Identifier: MIT */
/* Sentences of wharf.h about ports that are easily broken: what stays, what is bounded, what is delivered. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "apart.h"
#include "harness.h"
#include "raw.h"

#define KIB ((size_t)1024)
#define MIB (1024 * KIB)

static struct pair p;
static struct apart q;

/* ---- Taken messages ---- */

static size_t claim_all(wharf_pool *pool, size_t size, struct wharf_buf bufs[], size_t n_max)
{
	size_t n = 0;

	for (; n < n_max && wharf_buf_claim(pool, size, &bufs[n]) == 0; n++)
		memset(bufs[n].data, 2, size);
	cr_assert_lt(n, n_max);
	return n;
}

/* a lends 100 KB of a shared pool to b, which takes them and then ends. All else of the pool is written anew. */
static void expect_taken_bytes_to_stay(void (*end_receiver)(void))
{
	struct wharf_buf bufs[32];
	wharf_pool *pool = shared_pool(MIB);
	struct wharf_pool_info info;
	const unsigned char *bytes;
	size_t n;

	apart_open(&q, NULL, WHARF_OPT(port, .pool = pool), NULL);
	q.b.on_message = take_first;
	send_claimed(q.a.port, pool, 100000, 1);
	apart_settle(&q);
	bytes = taken_first->slices[0].data;
	end_receiver();
	apart_settle(&q);
	cr_assert_eq(q.a.n_closed, 1);
	cr_assert_eq(q.b.n_closed, 1);

	n = claim_all(pool, 100000, bufs, 32);
	cr_assert_gt(n, 0);
	for (size_t i = 0; i < taken_first->size; i++)
		cr_assert_eq(bytes[i], 1, "byte %zu was written under its reader", i);
	wharf_msg_release(taken_first);
	apart_settle(&q);
	cr_assert_eq(claim_all(pool, 100000, bufs + n, 32 - n), 1, "and it comes back with its release");
	WHARF_INIT(&info);
	cr_assert_eq(wharf_pool_info(pool, &info), 0);
	cr_assert_eq(info.bytes_lent, 0);
	while (n + 1)
		wharf_buf_abandon(&bufs[n--]);
	apart_free(&q);
	wharf_pool_unref(pool);
}

static void abort_receiver(void)
{
	cr_assert_eq(wharf_port_abort(q.b.port, 1), 0);
}

static void free_receiver(void)
{
	q.loop_b = wharf_loop_free(q.loop_b);
}

static void close_receiver(void)
{
	cr_assert_eq(wharf_port_close(q.b.port, -1), 0);
}

Test(port_promises, a_taken_message_does_not_change_when_its_port_aborts)
{
	expect_taken_bytes_to_stay(abort_receiver);
}

Test(port_promises, a_taken_message_does_not_change_when_its_loop_is_freed)
{
	expect_taken_bytes_to_stay(free_receiver);
}

Test(port_promises, a_taken_message_does_not_change_when_its_port_closes)
{
	expect_taken_bytes_to_stay(close_receiver);
}

static void take_twice(struct end *end, const struct wharf_msg *msg)
{
	cr_assert_not(msg->flags & WHARF_MSG_TAKEN, "it is borrowed");
	taken_first = wharf_msg_take(msg);
	cr_assert_not_null(taken_first);
	cr_assert(taken_first->flags & WHARF_MSG_TAKEN);
	cr_assert_eq(taken_first == msg, end->user != NULL, "a private copy is not copied once more");
	cr_assert_null(wharf_msg_take(msg), "once");
}

static void expect_taken_once(uint32_t untrusted)
{
	pair_open(&p, NULL, WHARF_OPT(port, .untrusted = untrusted));
	p.b.on_message = take_twice;
	p.b.user = untrusted ? &p : NULL;
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "take", 4), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
	for (int i = 0; i < 3; i++)
		cr_assert_eq(wharf_msg_take(taken_first), taken_first, "of a taken one: another reference");
	for (int i = 0; i < 3; i++)
		wharf_msg_release(taken_first);
	cr_assert_eq(memcmp(taken_first->slices[0].data, "take", 4), 0);
	pair_free(&p);
	wharf_msg_release(taken_first);
}

Test(port_promises, a_message_is_taken_once)
{
	expect_taken_once(0);
}

Test(port_promises, a_private_copy_is_taken_once_and_as_it_is)
{
	expect_taken_once(1);
}

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

/* b takes a message of 1000 bytes, and aborts. Says whether its socket outlived it. */
static bool lingers_for(uint32_t untrusted, bool claimed)
{
	static const char bytes[1000];
	wharf_port *kept;
	bool lingers;

	apart_open(&q, NULL, NULL, WHARF_OPT(port, .untrusted = untrusted));
	q.b.on_message = take_first;
	taken_first = NULL;
	kept = wharf_port_ref(q.b.port);
	if (claimed)
		send_claimed(q.a.port, wharf_port_pool(q.a.port), sizeof(bytes), 1);
	else
		cr_assert_eq(wharf_send_bytes(q.a.port, 1, bytes, sizeof(bytes)), 0);
	apart_settle(&q);
	cr_assert_eq(wharf_port_abort(q.b.port, 1), 0);
	settle(q.loop_b);
	cr_assert_eq(q.b.n_closed, 1);
	cr_assert_null(wharf_port_pool(kept), "not even of a port that lingers");
	lingers = is_open(q.fds[1]);
	wharf_msg_release(taken_first);
	settle(q.loop_b);
	cr_assert_not(is_open(q.fds[1]));
	wharf_port_unref(kept);
	apart_free(&q);
	return lingers;
}

Test(port_promises, only_messages_in_shared_memory_outlive_their_port_with_its_socket)
{
	cr_assert(lingers_for(0, true));
	cr_assert_not(lingers_for(0, false), "inline bytes were copied");
	cr_assert_not(lingers_for(1, true), "private copies hold nothing of the peer's");
}

/* ---- Bounds ---- */

Test(port_promises, what_the_peer_maps_bounds_a_private_pool)
{
	struct wharf_buf buf;

	pair_open(&p, NULL, WHARF_OPT(port, .rx_mapped_bytes_max = MIB));
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 2 * MIB, &buf), -EMSGSIZE);
	for (unsigned i = 0; i < 100; i++) {
		send_claimed(p.a.port, wharf_port_pool(p.a.port), i % 2 ? 60000 : 600, 1);
		settle(p.loop);
	}
	cr_assert_eq(p.b.n_messages, 100, "%s", p.b.reason_text);
	cr_assert_leq(stats_of(p.b.port).rx_mapped_bytes, MIB);
	pair_free(&p);
}

Test(port_promises, what_is_reserved_for_an_open_port_is_lent_without_new_files)
{
	static const size_t sizes[] = { 100, 5000, MIB };
	struct harness_snapshot before;
	const char *leak;

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		int peer = pair_open_half(&p, NULL);
		cr_assert(raw_say_hello(peer, NULL));
		settle(p.loop);
		cr_assert_eq(p.a.n_open, 1);
		cr_assert_eq(wharf_pool_reserve(wharf_port_pool(p.a.port), sizes[i], 5 * sizes[i], WHARF_PREFAULT), 0);
		harness_snapshot_take(&before);
		for (unsigned k = 0; k < 5; k++)
			send_claimed(p.a.port, wharf_port_pool(p.a.port), sizes[i], 1);
		settle(p.loop);
		leak = harness_snapshot_diff(&before);
		cr_assert(!leak, "of %zu: %s", sizes[i], leak);
		cr_assert_eq(stats_of(p.a.port).tx_messages, 5);
		close(peer);
		pair_free(&p);
	}
}

Test(port_promises, a_segment_that_the_peer_does_not_map_is_refused_to_the_sender)
{
	wharf_pool *pool = shared_pool(64 * MIB);
	struct wharf_buf buf;

	pair_open(&p, WHARF_OPT(port, .pool = pool), WHARF_OPT(port, .rx_mapped_bytes_max = MIB));
	cr_assert_eq(wharf_buf_claim(pool, 2 * MIB, &buf), 0);
	cr_assert_eq(wharf_send_buf(p.a.port, 1, &buf), -EMSGSIZE);
	cr_assert_not_null(buf.data, "it stays the caller's");
	cr_assert_eq(wharf_send_bytes(p.a.port, 2, "small", 5), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1, "%s", p.b.reason_text);
	cr_assert_eq(p.a.n_closed + p.b.n_closed, 0);
	wharf_buf_abandon(&buf);
	pair_free(&p);
	wharf_pool_unref(pool);
}

Test(port_promises, the_cap_of_the_queue_bounds_the_open_frame_too)
{
	enum { ENOUGH = 1000 };
	static struct wharf_buf bufs[ENOUGH];
	unsigned n_small = 0, n_large = 0;
	wharf_pool *pool;
	int error = 0;

	pair_open(&p, WHARF_OPT(port, .tx_queued_bytes_max = 64 * KIB, .pool_bytes_max = 32 * MIB), NULL);
	/* Announced segments close a frame: here nothing but the cap shall. */
	pool = wharf_port_pool(p.a.port);
	for (unsigned i = 0; i < ENOUGH; i++)
		cr_assert_eq(wharf_buf_claim(pool, 16 * KIB, &bufs[i]), 0);
	for (unsigned i = 0; i < ENOUGH; i++) {
		cr_assert_eq(wharf_send_buf(p.a.port, 1, &bufs[i]), 0);
		settle(p.loop);
	}
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	/* Frame by frame, until the window is closed. */
	do {
		cr_assert_lt(n_small, 200);
		cr_assert_eq(wharf_send_bytes(p.a.port, n_small++, "x", 1), 0);
		settle(p.loop);
	} while (stats_of(p.a.port).tx_queued_bytes == 0);
	while (!error && n_large < ENOUGH) {
		cr_assert_eq(wharf_buf_claim(pool, 16 * KIB, &bufs[0]), 0);
		error = wharf_send_buf(p.a.port, 1, &bufs[0]);
		n_large += !error;
	}
	cr_assert_eq(error, -EAGAIN, "%u messages were queued", n_large);
	wharf_buf_abandon(&bufs[0]);
	/* The first frame is not counted, and the last message of each may reach beyond. */
	cr_assert_leq(stats_of(p.a.port).tx_queued_bytes, 2 * (64 + 16) * KIB);
	cr_assert_eq(p.a.n_writable, 0);
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.a.n_writable, 1);
	cr_assert_eq(p.b.n_messages, ENOUGH + n_small + n_large);
	pair_free(&p);
}

static void pause_at_second(struct end *end, const struct wharf_msg *msg)
{
	(void)msg;
	if (end->n_messages == 2)
		cr_assert_eq(wharf_port_pause(end->port), 0);
}

static int send_input(wharf_port *port, size_t n)
{
	static const int fds[4];

	return wharf_send(port, &(struct wharf_out){ .fds = fds, .n_fds = n });
}

Test(port_promises, of_several_refused_sends_the_smallest_is_waited_for)
{
	pair_open(&p, WHARF_OPT(port, .tx_fds_max = 4), WHARF_OPT(port, .rx_fds_max = 4));
	p.b.on_message = pause_at_second;
	for (int i = 0; i < 4; i++)
		cr_assert_eq(send_input(p.a.port, 1), 0);
	cr_assert_eq(send_input(p.a.port, 1), -EAGAIN);
	cr_assert_eq(send_input(p.a.port, 4), -EAGAIN);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 2);
	cr_assert_eq(p.a.n_writable, 1, "there is room for the first again");
	cr_assert_eq(send_input(p.a.port, 1), 0);
	pair_free(&p);
}

Test(port_promises, unsent_messages_are_those_that_did_not_leave)
{
	pair_open(&p, NULL, NULL);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "left", 4), 0);
	cr_assert_eq(wharf_loop_flush(p.loop), 0);
	cr_assert_eq(wharf_send_bytes(p.a.port, 2, "stayed", 6), 0);
	cr_assert_eq(wharf_port_abort(p.a.port, 0), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_eq(p.a.reason.unsent_messages, 1);
	cr_assert_eq(p.a.reason.unsent_bytes, 6);
	pair_free(&p);
}

static const uint32_t frame_sizes[] = { 4096, 5000, 32768, 65536 };

Test(port_promises, the_size_of_frames_is_rounded_down)
{
	static struct raw_read read;

	for (size_t i = 0; i < sizeof(frame_sizes) / sizeof(*frame_sizes); i++) {
		const struct wh_hello *hello;

		apart_half(&q, WHARF_OPT(loop, .frame_bytes_max = frame_sizes[i]), NULL);
		apart_settle(&q);
		cr_assert(raw_receive(q.fds[1], &read));
		hello = (const struct wh_hello *)wh_frame_first(read.bytes);
		cr_assert_eq(hello->frame_bytes_max, frame_sizes[i] / 64 * 64);
		close(q.fds[1]);
		apart_free(&q);
	}
}

Test(port_promises, a_message_of_bytes_max_is_sent_and_arrives)
{
	static const char bytes[65536];

	for (size_t i = 0; i < sizeof(frame_sizes) / sizeof(*frame_sizes); i++) {
		size_t most;
		struct wharf_part part = { .bytes = bytes };
		struct wharf_out with_fd = { .parts = &part, .n_parts = 1, .fds = &q.fds[0], .n_fds = 1 };

		apart_open(&q, WHARF_OPT(loop, .frame_bytes_max = frame_sizes[i]), NULL,
			WHARF_OPT(port, .rx_fds_max = 1));
		most = q.a.peer.bytes_max;
		cr_assert_geq(most, 3 * KIB, "%zu of frames of %u", most, frame_sizes[i]);
		cr_assert_eq(wharf_send_bytes(q.a.port, 1, bytes, most), 0);
		part.size = most;
		cr_assert_eq(wharf_send(q.a.port, &with_fd), 0);
		cr_assert_eq(wharf_send_bytes(q.a.port, 1, bytes, frame_sizes[i]), 0);
		apart_settle(&q);
		cr_assert_eq(q.b.n_messages, 3);
		cr_assert_eq(q.b.n_bytes, 2 * most + frame_sizes[i]);
		apart_free(&q);
	}
}

Test(port_promises, announced_descriptors_are_closed_after_a_while)
{
	wharf_pool *pool;
	size_t before;

	pair_open(&p, NULL, NULL);
	pool = wharf_port_pool(p.a.port);
	before = harness_count_fds();
	for (size_t size = 64; size <= 4 * MIB; size *= 4) {
		send_claimed(p.a.port, pool, size, 1);
		settle(p.loop);
	}
	cr_assert_gt(harness_count_fds(), before);
	for (int i = 0; i < 100; i++) {
		send_claimed(p.a.port, pool, 64, 1);
		settle(p.loop);
	}
	cr_assert_eq(harness_count_fds(), before);
	pair_free(&p);
}

/* ---- What arrived is delivered ---- */

Test(port_promises, a_peer_that_asks_is_told_what_was_read)
{
	static struct raw_frame frame;
	static struct raw_read read;

	apart_half(&q, NULL, NULL);
	cr_assert(raw_say_hello(q.fds[1], NULL));
	apart_settle(&q);
	cr_assert(raw_receive(q.fds[1], &read)); /* the hello */
	cr_assert(raw_bytes(q.fds[1], "plain", 5));
	apart_settle(&q);
	cr_assert(!raw_receive(q.fds[1], &read));
	raw_begin(&frame);
	raw_put_bytes(&frame, 1, "tell", 4);
	frame.encoder.flags = WH_FRAME_TELL;
	cr_assert(raw_end(q.fds[1], &frame, 0));
	apart_settle(&q);
	cr_assert(raw_receive(q.fds[1], &read));
	cr_assert_eq(((const struct wh_frame *)(const void *)read.bytes)->consumed, 2);
	cr_assert_eq(q.a.n_messages, 2);
	close(q.fds[1]);
	apart_free(&q);
}

static void expect_delivery_before(const void *bad, size_t size)
{
	apart_half(&q, NULL, WHARF_OPT(port, .rx_msgs_per_turn = 1));
	cr_assert(raw_say_hello(q.fds[1], NULL));
	apart_settle(&q);
	for (int i = 0; i < 5; i++)
		cr_assert(raw_bytes(q.fds[1], "good", 4));
	cr_assert(raw_send(q.fds[1], bad, size, NULL, 0, false));
	apart_settle(&q);
	cr_assert_eq(q.a.n_messages, 5);
	cr_assert_eq(q.a.n_closed, 1);
	cr_assert_eq(q.a.reason.code, WHARF_CLOSE_VIOLATION);
	close(q.fds[1]);
	apart_free(&q);
}

Test(port_promises, frames_in_front_of_garbage_are_delivered)
{
	static const char garbage[50] = "this is not a frame at all";

	expect_delivery_before(garbage, sizeof(garbage));
}

Test(port_promises, frames_in_front_of_one_too_large_are_delivered)
{
	static const char large[40000];

	expect_delivery_before(large, sizeof(large));
}

static void abort_at_second(struct end *end, const struct wharf_msg *msg)
{
	(void)msg;
	if (end->n_messages == 2)
		cr_assert_eq(wharf_port_abort(end->port, 1), 0);
}

Test(port_promises, an_abort_in_the_handler_of_a_held_message_stops_delivery_there)
{
	pair_open(&p, NULL, NULL);
	p.b.on_message = abort_at_second;
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	for (int i = 0; i < 10; i++)
		cr_assert_eq(wharf_send_bytes(p.a.port, 1, "held", 4), 0);
	settle(p.loop);
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 2);
	cr_assert_eq(p.b.n_closed, 1);
	cr_assert_eq(p.b.reason.code, WHARF_CLOSE_ABORTED);
	pair_free(&p);
}

Test(port_promises, a_paused_port_takes_any_number_of_reports)
{
	uint64_t before;
	size_t sent = 0;

	pair_open(&p, NULL, NULL);
	cr_assert_eq(wharf_port_pause(p.a.port), 0);
	before = stats_of(p.a.port).rx_frames;
	/* A frame each; what b has read of them it says in frames without a message. */
	while (!p.a.n_closed && stats_of(p.a.port).rx_frames - before < 300) {
		cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), 0);
		cr_assert_eq(wharf_loop_flush(p.loop), 0);
		cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
		cr_assert_lt(++sent, 100000);
	}
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
	cr_assert_eq(p.b.n_messages, sent);
	pair_free(&p);
}

/* ---- Calls that are refused ---- */

Test(port_promises, moving_one_descriptor_twice_is_refused)
{
	int twice[2];
	struct wharf_out out = { .fds = twice, .n_fds = 2 };

	pair_open(&p, NULL, WHARF_OPT(port, .rx_fds_max = 8));
	twice[0] = twice[1] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	out.flags = WHARF_FDS_MOVE;
	cr_assert_eq(wharf_send(p.a.port, &out), -EINVAL);
	cr_assert(is_open(twice[0]), "after a failure it is the caller's");
	out.flags = 0;
	cr_assert_eq(wharf_send(p.a.port, &out), 0, "copies are two");
	settle(p.loop);
	cr_assert_eq(p.b.seen[0].n_fds, 2);
	cr_assert_eq(close(twice[0]), 0);
	pair_free(&p);
}

Test(port_promises, callbacks_that_this_library_does_not_know_are_refused)
{
	struct { struct wharf_port_ops ops; void *later; } ops = { end_ops, &p };
	struct { struct wharf_listener_ops ops; void *later; } listener_ops = { { .size = sizeof(listener_ops) }, &p };
	char name[HARNESS_PATH_MAX];
	wharf_listener *listener;
	int fds[2];

	ops.ops.size = sizeof(ops);
	cr_assert_eq(wharf_loop_new(NULL, &p.loop), 0);
	cr_assert_eq(wharf_pair(fds), 0);
	harness_abstract_name(name);
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &ops.ops), NULL), -E2BIG);
	cr_assert_eq(wharf_listen(p.loop, name, WHARF_OPT(listener, .ops = &listener_ops.ops), &listener), -E2BIG);
	ops.later = listener_ops.later = NULL;
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &ops.ops, .user = &p.a), &p.a.port), 0);
	cr_assert_eq(wharf_listen(p.loop, name, WHARF_OPT(listener, .ops = &listener_ops.ops), &listener), 0);
	pair_free(&p);
	close(fds[1]);
}

Test(port_promises, only_connected_sockets_of_the_right_kind_are_opened)
{
	int fds[2], fd;

	cr_assert_eq(wharf_loop_new(NULL, &p.loop), 0);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	cr_assert_eq(wharf_open(p.loop, fd, WHARF_OPT(port, .ops = &end_ops), NULL), -ENOTCONN);
	cr_assert_eq(close(fd), 0, "it stays the caller's");
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops), NULL), -EPROTOTYPE);
	close(fds[0]);
	close(fds[1]);
	/* Of a peer that has closed already there may be words to read. */
	cr_assert_eq(wharf_pair(fds), 0);
	close(fds[1]);
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &p.a), &p.a.port), 0);
	settle(p.loop);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER_GONE);
	pair_free(&p);
}

static void answer_without_buffer(struct end *end, const struct wharf_msg *msg)
{
	wharf_call_id id;

	if (!msg->call)
		return;
	cr_assert_eq(wharf_call_take(end->port, msg, NULL, &id), 0);
	cr_assert_eq(wharf_reply_buf(end->port, id, NULL, 0, WHARF_LAST), -EINVAL);
	cr_assert_eq(wharf_call_refuse(end->port, id, 0), 0);
}

Test(port_promises, no_buffer_is_not_an_empty_message)
{
	uint64_t stream;
	wharf_call_id id;

	pair_open(&p, NULL, WHARF_OPT(port, .flags = WHARF_PORT_PIECES));
	p.b.on_message = answer_without_buffer;
	cr_assert_eq(wharf_send_buf(p.a.port, 1, NULL), -EINVAL);
	cr_assert_eq(wharf_post_buf(p.a.port, 1, NULL, 0), -EINVAL);
	cr_assert_eq(wharf_stream_begin(p.a.port, 1, WHARF_BYTES_UNKNOWN, &stream), 0);
	cr_assert_eq(wharf_stream_send_buf(p.a.port, stream, NULL, 0), -EINVAL);
	cr_assert_eq(wharf_call(p.a.port, &(struct wharf_out){ 0 }, NULL, &id), 0);
	cr_assert_eq(wharf_call_send_buf(p.a.port, id, NULL, WHARF_LAST), -EINVAL);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1, "the request");
	pair_free(&p);
}
