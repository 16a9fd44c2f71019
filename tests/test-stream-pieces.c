/* SPDX-License-Identifier: MIT */
/* Messages in pieces: how they are cut, how each piece travels, and that all of it comes back. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "apart.h"
#include "harness.h"
#include "port.h"
#include "raw.h"

#define MIB ((size_t)1 << 20)

static struct pair p;
static struct raw_read read_;
static unsigned char *pattern_bytes;
static size_t n_checked;

static unsigned char pattern(size_t at) { return (unsigned char)(at * 7 + (at >> 8) + (at >> 16)); }

static void set_up(void)
{
	pattern_bytes = malloc(8 * MIB);
	for (size_t i = 0; i < 8 * MIB; i++)
		pattern_bytes[i] = pattern(i);
}

static void tear_down(void) { free(pattern_bytes); }

TestSuite(stream_pieces, .init = set_up, .fini = tear_down);

static void check_pattern(struct end *end, const struct wharf_msg *msg)
{
	(void)end;
	if (msg->position_bytes == 0)
		n_checked = 0;
	for (size_t i = 0; i < msg->n_slices; n_checked += msg->slices[i++].size) {
		cr_assert_leq(n_checked + msg->slices[i].size, 8 * MIB);
		cr_assert_eq(memcmp(msg->slices[i].data, pattern_bytes + n_checked, msg->slices[i].size), 0);
	}
}

static struct wharf_part bytes_part(size_t at, size_t size)
{
	return (struct wharf_part){ .bytes = pattern_bytes + at, .size = size };
}

static struct wharf_part claimed_part(struct wharf_buf *buf, size_t at, size_t size)
{
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), size, buf), 0);
	memcpy(buf->data, pattern_bytes + at, size);
	return (struct wharf_part){ .buf = buf };
}

static struct wharf_pool_info pool_info(void)
{
	struct wharf_pool_info info = { .size = sizeof(info) };

	cr_assert_eq(wharf_pool_info(wharf_port_pool(p.a.port), &info), 0);
	return info;
}

/* ---- Frames ---- */

/* Reads what the port sends, frame by frame, as a peer that takes no shared memory. Returns payload bytes. */
static size_t read_frames(int fd, uint32_t frame_bytes_max, size_t at, uint64_t *frames, unsigned *n_last)
{
	size_t begin = at;

	while (raw_receive(fd, &read_)) {
		const struct wh_record *r = wh_frame_first(read_.bytes);
		bool data = false;
		cr_assert_leq(read_.size, frame_bytes_max, "a frame of %zu for a peer of %u", read_.size,
			frame_bytes_max);
		for (; r != wh_frame_end(read_.bytes); r = wh_record_next(r)) {
			const struct wh_message_in in = wh_message_read(r);
			if (r->kind != WH_RECORD_MESSAGE)
				continue;
			data = true;
			if (!(r->flags & WH_RECORD_FIRST))
				cr_assert_eq(in.position, at);
			for (unsigned i = 0; i < r->n_items; at += in.runs[i++].size) {
				cr_assert_eq(in.runs[i].n_chunks, 0);
				cr_assert_eq(memcmp((const char *)r + in.runs[i].first, pattern_bytes + at,
					in.runs[i].size), 0);
			}
			*n_last += !!(r->flags & WH_RECORD_LAST);
		}
		*frames += data;
	}
	return at - begin;
}

static void send_through_frames(uint32_t frame_bytes_max, bool small_socket)
{
	struct wh_hello hello = raw_hello();
	int fd = pair_open_half(&p, NULL), size = 2304;
	uint64_t frames = 0;

	hello.frame_bytes_max = frame_bytes_max;
	hello.mapped_bytes_max = 0;
	cr_assert(raw_say_hello(fd, &hello));
	settle(p.loop);
	cr_assert_eq(p.a.n_open, 1);
	if (small_socket)
		cr_assert_eq(setsockopt(p.a.port->source.link.fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)), 0);
	const size_t capacity = wharf_port_peer(p.a.port)->bytes_max;
	const size_t sizes[] = { capacity - 1, capacity, capacity + 1, 3 * capacity - 1, 3 * capacity,
		3 * capacity + 1, 1 << 20 };
	for (unsigned i = 0; i < 7; i++)
		for (unsigned parts = 1; parts < 4; parts++) {
			struct wharf_part part[3];
			size_t got = 0;
			unsigned n_last = 0;
			for (unsigned k = 0; k < parts; k++)
				part[k] = bytes_part(k * (sizes[i] / parts), k == parts - 1
					? sizes[i] - k * (sizes[i] / parts) : sizes[i] / parts);
			cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .parts = part, .n_parts = parts }), 0);
			for (unsigned n = 0; n < 5000 && got < sizes[i]; n++) {
				cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
				got += read_frames(fd, frame_bytes_max, got, &frames, &n_last);
				cr_assert(raw_report(fd, frames));
			}
			cr_assert_eq(got, sizes[i], "%zu of %zu: %s", got, sizes[i], p.a.reason_text);
			cr_assert_eq(n_last, 1);
		}
	cr_assert_eq(p.a.n_closed, 0);
	pair_free(&p);
	close(fd);
}

Test(stream_pieces, fragments_fit_the_frames_of_the_peer_with_their_headers)
{
	static const uint32_t limits[] = { 4096, 5000, 32768, 65536 };

	for (unsigned i = 0; i < 4; i++)
		send_through_frames(limits[i], false);
	/* In a socket that holds one of them at a time. */
	send_through_frames(4096, true);
}

/* ---- Where the limit falls ---- */

static uint64_t stream_of(uint64_t total)
{
	uint64_t stream = 0;

	cr_assert_eq(wharf_stream_begin(p.a.port, 3, total, &stream), 0);
	return stream;
}

static void check_pieces(struct end *end, size_t total)
{
	size_t at = 0;
	unsigned n_last = 0;

	cr_assert_leq(end->n_messages, END_MESSAGES_MAX);
	for (size_t i = 0; i < end->n_messages; i++) {
		const struct seen *s = &end->seen[i];
		cr_assert_eq(s->position, s->flags & WHARF_MSG_FRAGMENT ? at : 0);
		at += s->size;
		n_last += !!(s->flags & WHARF_MSG_LAST) || !(s->flags & WHARF_MSG_FRAGMENT);
		cr_assert_eq(n_last, i == end->n_messages - 1, "the last of %zu at %zu", end->n_messages, i);
	}
	cr_assert_eq(at, total);
}

Test(stream_pieces, a_fragment_that_fills_the_limit_exactly_is_followed_by_the_rest)
{
	pair_open(&p, WHARF_OPT(port, .flags = WHARF_PORT_INLINE), WHARF_OPT(port, .flags = WHARF_PORT_PIECES));
	p.b.on_message = check_pattern;
	const size_t limit = wharf_port_peer(p.a.port)->bytes_max;
	for (size_t n = 1; n < 5; n++)
		for (size_t size = n * limit - 100; size <= n * limit + 100; size += size > n * limit - 10 && size < n * limit + 10 ? 1 : 7) {
			struct wharf_part part = bytes_part(0, size);
			p.b.n_messages = 0;
			cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .parts = &part, .n_parts = 1 }), 0);
			settle(p.loop);
			cr_assert_eq(n_checked, size);
			check_pieces(&p.b, size);
		}
	pair_free(&p);
}

Test(stream_pieces, the_last_fragment_ends_it_wherever_the_limit_falls)
{
	for (unsigned pieces = 0; pieces < 2; pieces++) {
		pair_open(&p, NULL, WHARF_OPT(port, .flags = pieces ? WHARF_PORT_PIECES : 0));
		p.b.on_message = check_pattern;
		const size_t limit = wharf_port_peer(p.a.port)->bytes_max;
		for (unsigned known = 0; known < 2; known++)
			for (size_t n = 0; n < 4; n++)
				for (size_t size = n * limit - (n ? 2 : 0); size <= n * limit + 2; size++) {
					uint64_t stream = stream_of(known ? size : WHARF_BYTES_UNKNOWN);
					struct wharf_part part = bytes_part(0, size);
					p.b.n_messages = 0;
					n_checked = 0;
					if (size)
						cr_assert_eq(wharf_stream_send(p.a.port, stream,
							&(struct wharf_out){ .parts = &part, .n_parts = 1 }), 0);
					if (n % 2)
						settle(p.loop);
					cr_assert_eq(wharf_stream_end(p.a.port, stream), 0);
					settle(p.loop);
					cr_assert_eq(n_checked, size);
					if (pieces)
						check_pieces(&p.b, size);
					else
						cr_assert_eq(p.b.n_messages, 1);
				}
		cr_assert_eq(p.a.port->flows[WH_FLOW_STREAM_OUT].n, 0);
		pair_free(&p);
	}
}

Test(stream_pieces, a_message_of_unknown_length_may_be_as_long_as_the_limit)
{
	static const size_t limits[] = { 100, 65535, 65536, 65537, 100000, MIB + 1 };

	for (unsigned i = 0; i < 6; i++) {
		uint64_t stream;
		struct wharf_part part = bytes_part(0, limits[i]);
		pair_open(&p, NULL, WHARF_OPT(port, .rx_bytes_max = limits[i], .rx_assembly_bytes_max = limits[i]));
		p.b.on_message = check_pattern;
		stream = stream_of(WHARF_BYTES_UNKNOWN);
		cr_assert_eq(wharf_stream_send(p.a.port, stream, &(struct wharf_out){ .parts = &part, .n_parts = 1 }), 0);
		cr_assert_eq(wharf_stream_end(p.a.port, stream), 0);
		settle(p.loop);
		cr_assert_eq(p.b.n_messages, 1, "of %zu", limits[i]);
		cr_assert_eq(p.b.n_bytes, limits[i]);
		pair_free(&p);
	}
}

/* It has no limit: neither of what goes in fragments, nor of what one record carries. */
Test(stream_pieces, who_takes_pieces_takes_messages_of_any_size)
{
	for (uint32_t untrusted = 0; untrusted < 2; untrusted++)
		for (unsigned claimed = 0; claimed < 2; claimed++) {
			struct wharf_buf b;
			struct wharf_part part;
			pair_open(&p, NULL, WHARF_OPT(port, .flags = WHARF_PORT_PIECES, .rx_bytes_max = 1000, .untrusted = untrusted));
			p.b.on_message = check_pattern;
			cr_assert_eq(wharf_port_peer(p.a.port)->message_bytes_max, UINT64_MAX);
			for (size_t size = 900; size < 2 * MIB; size *= 2) {
				part = claimed ? claimed_part(&b, 0, size) : bytes_part(0, size);
				cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .parts = &part, .n_parts = 1 }), 0);
				settle(p.loop);
				cr_assert_eq(p.b.n_closed, 0, "%zu bytes: %s", size, p.b.reason_text);
				cr_assert_eq(n_checked, size);
			}
			pair_free(&p);
		}
}

/* What its hello says besides does not matter. */
Test(stream_pieces, a_limit_that_a_peer_names_who_takes_pieces_is_none)
{
	struct wh_hello hello = raw_hello();
	int fd = pair_open_half(&p, NULL);

	hello.features = WH_FEATURE_PIECES;
	hello.message_bytes_max = 1000;
	cr_assert(raw_say_hello(fd, &hello));
	settle(p.loop);
	cr_assert_eq(wharf_port_peer(p.a.port)->message_bytes_max, UINT64_MAX);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, pattern_bytes, 100000), 0);
	pair_free(&p);
	close(fd);
}

/* ---- How they travel ---- */

Test(stream_pieces, each_fragment_says_for_itself_how_its_bytes_travel)
{
	for (unsigned pieces = 0; pieces < 2; pieces++) {
		size_t at = 0;
		uint64_t stream;
		pair_open(&p, NULL, WHARF_OPT(port, .flags = pieces ? WHARF_PORT_PIECES : 0));
		p.b.on_message = check_pattern;
		stream = stream_of(WHARF_BYTES_UNKNOWN);
		/* Chunks, bytes and both, short ones behind long ones. */
		for (unsigned i = 0; i < 40; i++) {
			size_t size = i % 3 == 0 ? 5000 : i % 3 == 1 ? 5 : 700;
			struct wharf_buf b;
			struct wharf_part parts[2] = { bytes_part(at, size) };
			unsigned n = 1;
			if (i % 2)
				parts[0] = claimed_part(&b, at, size);
			at += size;
			if (i % 5 == 0) {
				parts[n++] = bytes_part(at, 9);
				at += 9;
			}
			cr_assert_eq(wharf_stream_send(p.a.port, stream, &(struct wharf_out){
				.flags = i == 39 ? WHARF_LAST : 0, .parts = parts, .n_parts = n }), 0);
			if (i % 4 == 0)
				settle(p.loop);
		}
		settle(p.loop);
		cr_assert_eq(n_checked, at);
		cr_assert_eq(pool_info().bytes_lent, 0);
		pair_free(&p);
	}
}

Test(stream_pieces, a_claimed_tail_of_one_byte_is_lent_and_comes_back_once)
{
	for (unsigned pieces = 0; pieces < 2; pieces++) {
		pair_open(&p, NULL, WHARF_OPT(port, .flags = pieces ? WHARF_PORT_PIECES : 0));
		p.b.on_message = check_pattern;
		const size_t limit = wharf_port_peer(p.a.port)->bytes_max;
		for (size_t size = limit - 60; size < limit + 20; size++) {
			struct wharf_buf b;
			struct wharf_part parts[2] = { bytes_part(0, size), claimed_part(&b, size, 1) };
			p.b.n_messages = 0;
			cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .parts = parts, .n_parts = 2 }), 0);
			settle(p.loop);
			cr_assert_eq(n_checked, size + 1);
			cr_assert_eq(pool_info().bytes_lent, 0, "%zu", size);
			cr_assert_eq(pool_info().bytes_free, pool_info().bytes, "%zu", size);
		}
		pair_free(&p);
	}
}

/* ---- All of it comes back ---- */

static struct wharf_msg *kept;

static void keep_every_third(struct end *end, const struct wharf_msg *msg)
{
	check_pattern(end, msg);
	if (end->n_messages % 3 == 0)
		kept = wharf_msg_take(msg);
}

Test(stream_pieces, reassembly_gives_back_all_it_used)
{
	struct harness_snapshot before;
	const char *leak;
	size_t n_blocks = 0;

	for (unsigned pieces = 0; pieces < 2; pieces++) {
		int fds[2];
		p = (struct pair){ 0 };
		cr_assert_eq(wharf_loop_new(WHARF_OPT(loop, .alloc = counting_alloc, .free = counting_free), &p.loop), 0);
		cr_assert_eq(wharf_pair(fds), 0);
		cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &p.a), &p.a.port), 0);
		cr_assert_eq(wharf_open(p.loop, fds[1], WHARF_OPT(port, .ops = &end_ops, .user = &p.b,
			.flags = pieces ? WHARF_PORT_PIECES : 0), &p.b.port), 0);
		p.b.on_message = keep_every_third;
		settle(p.loop);
		for (unsigned i = 0; i < 1000; i++) {
			uint64_t stream = stream_of(12000);
			struct wharf_buf one, three;
			struct wharf_part parts[3] = { claimed_part(&one, 0, 5000), bytes_part(5000, 2000),
				claimed_part(&three, 7000, 5000) };
			for (unsigned k = 0; k < 3; k++)
				cr_assert_eq(wharf_stream_send(p.a.port, stream, &(struct wharf_out){
					.flags = k == 2 ? WHARF_LAST : 0, .parts = &parts[k], .n_parts = 1 }), 0);
			settle(p.loop);
			kept = wharf_msg_release(kept);
			settle(p.loop);
			cr_assert_eq(n_checked, 12000);
			cr_assert_eq(pool_info().bytes_lent, 0, "%u", i);
			cr_assert_eq(pool_info().bytes_free, pool_info().bytes, "%u", i);
			cr_assert_eq(p.b.port->assembly_bytes, 0);
			if (i == 10) {
				n_blocks = n_counted;
				harness_snapshot_take(&before);
			}
			if (i > 10)
				cr_assert_eq(n_counted, n_blocks, "%u: %zu, %zu", i, n_counted, n_blocks);
		}
		leak = harness_snapshot_diff(&before);
		cr_assert(!leak, "%s", leak);
		pair_free(&p);
		cr_assert_eq(n_counted, 0);
	}
}

static size_t n_read;

/* What is taken and released at once is readable all the same until the handler returns. */
static void take_release_and_read(struct end *end, const struct wharf_msg *msg)
{
	wharf_msg_release(wharf_msg_take(msg));
	check_pattern(end, msg);
	n_read += msg->size;
}

Test(stream_pieces, a_borrowed_message_outlives_the_taken_one_within_its_handler)
{
	for (uint32_t untrusted = 0; untrusted < 2; untrusted++) {
		struct wharf_part part = bytes_part(0, MIB);
		pair_open(&p, NULL, WHARF_OPT(port, .untrusted = untrusted));
		p.b.on_message = take_release_and_read;
		n_read = 0;
		cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .parts = &part, .n_parts = 1 }), 0);
		settle(p.loop);
		cr_assert_eq(n_read, MIB);
		pair_free(&p);
	}
}
