/* SPDX-License-Identifier: MIT */
/* The plain path: ports without shared memory, on either side, have the same interface. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "apart.h"
#include "harness.h"
#include "pair.h"

static struct pair p;

static unsigned char pattern(size_t at) { return (unsigned char)(at * 7 + (at >> 8) + (at >> 16)); }

static size_t n_checked;
static unsigned n_fds;

static void check(struct end *end, const struct wharf_msg *msg)
{
	(void)end;
	if (!msg->position_bytes)
		n_checked = 0;
	for (size_t i = 0; i < msg->n_slices; i++) {
		cr_assert_eq((uintptr_t)msg->slices[i].data % (msg->type == 64 ? 64 : 8), 0, "%zu of %zu at %p", i,
			msg->n_slices, msg->slices[i].data);
		for (size_t k = 0; k < msg->slices[i].size; k++, n_checked++)
			if (((const unsigned char *)msg->slices[i].data)[k] != pattern(n_checked))
				cr_assert_fail("byte %zu", n_checked);
	}
	n_fds += (unsigned)msg->n_fds;
}

static struct wharf_buf claimed(size_t at, size_t size)
{
	struct wharf_buf b;

	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), size, &b), 0);
	for (size_t i = 0; i < size; i++)
		((unsigned char *)b.data)[i] = pattern(at + i);
	return b;
}

/* Neither end maps anything, and whatever was claimed is free again. */
static void check_nothing_shared(void)
{
	struct wharf_pool_info info = { .size = sizeof(info) };

	cr_assert_eq(stats_of(p.b.port).rx_mapped_bytes, 0);
	cr_assert_eq(wharf_pool_info(wharf_port_pool(p.a.port), &info), 0);
	cr_assert_eq(info.bytes_lent, 0);
	cr_assert_eq(info.bytes_free, info.bytes);
}

/* Inline here, there, or on both sides; delivered as it lies, as a private copy, or in pieces. */
static void each_way(void (*test)(void))
{
	for (unsigned way = 1; way < 4; way++)
		for (unsigned how = 0; how < 3; how++) {
			pair_open(&p, WHARF_OPT(port, .flags = way & 1 ? WHARF_PORT_INLINE : 0, .pool_bytes_max = 4 << 20),
				WHARF_OPT(port, .flags = (way & 2 ? WHARF_PORT_INLINE : 0u) |
					(how == 2 ? WHARF_PORT_PIECES : 0u), .untrusted = how == 1, .rx_fds_max = 8));
			p.b.on_message = check;
			n_fds = 0;
			test();
			cr_assert_eq(p.a.n_closed + p.b.n_closed, 0);
			check_nothing_shared();
			pair_free(&p);
		}
}

static void claimed_buffers(void)
{
	static const size_t sizes[] = { 1, 63, 64, 65, 4096, 30000, 31000, 31800, 32000, 32200, 32768, 65536, 100001,
		1 << 20, (3 << 20) + 5 };

	for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
		for (unsigned n = 0; n < 3; n++) {
			struct wharf_buf b = claimed(0, sizes[i]);
			cr_assert_eq(wharf_send_buf(p.a.port, 64, &b), 0);
			cr_assert_null(b.data);
			settle(p.loop);
			cr_assert_eq(n_checked, sizes[i]);
		}
	/* Several in one frame. */
	for (unsigned i = 0; i < 50; i++) {
		struct wharf_buf b = claimed(0, 1 + i * 13);
		cr_assert_eq(wharf_send_buf(p.a.port, 64, &b), 0);
		cr_assert_eq(wharf_send_bytes(p.a.port, 1, NULL, 0), 0);
	}
	settle(p.loop);
	check_nothing_shared();
}

static void parts_and_descriptors(void)
{
	for (unsigned n = 1; n <= 64; n += 7) {
		struct wharf_part parts[64] = { 0 };
		struct wharf_buf bufs[64];
		size_t at = 0;
		for (unsigned i = 0; i < n; i++) {
			size_t size = 1 + (i * 331 + n * 17) % 1500;
			bufs[i] = claimed(at, size);
			parts[i].buf = &bufs[i];
			at += size;
		}
		cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .type = 64, .parts = parts, .n_parts = n,
			.fds = (int[]){ 0, 1, 2 }, .n_fds = 3 }), 0);
		settle(p.loop);
		cr_assert_eq(n_checked, at, "%zu of %zu in %u parts", n_checked, at, n);
	}
	cr_assert_eq(n_fds, 10 * 3);
}

static void streams(void)
{
	uint64_t stream;
	size_t at = 0;

	cr_assert_eq(wharf_stream_begin(p.a.port, 64, WHARF_BYTES_UNKNOWN, &stream), 0);
	for (unsigned i = 0; i < 100; i++) {
		size_t size = 64 * (1 + i * 97 % 1000);
		struct wharf_buf b = claimed(at, size);
		int error = wharf_stream_send_buf(p.a.port, stream, &b, 0);
		if (error) {
			cr_assert_eq(error, -EAGAIN);
			wharf_buf_abandon(&b);
		} else {
			at += size;
		}
		if (i % 3 == 0)
			settle(p.loop);
	}
	cr_assert_eq(wharf_stream_end(p.a.port, stream), 0);
	settle(p.loop);
	cr_assert_eq(n_checked, at);
}

static void larger_than_the_queue(void)
{
	size_t n_sent = 0;

	/* Paused: as much as the queue takes, then -EAGAIN, and on_writable. */
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	for (;; n_sent++) {
		struct wharf_buf b;
		int error = wharf_buf_claim(wharf_port_pool(p.a.port), 100000, &b);
		if (error)
			break;
		memset(b.data, 0, b.size);
		error = wharf_send_buf(p.a.port, 1, &b);
		if (error) {
			cr_assert_eq(error, -EAGAIN);
			wharf_buf_abandon(&b);
			break;
		}
		cr_assert_lt(n_sent, 1000);
	}
	p.b.on_message = NULL;
	settle(p.loop);
	p.b.n_bytes = 0;
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_bytes, n_sent * 100000);
	cr_assert_eq(p.a.n_writable, 1);
}

Test(inline, claimed_buffers_arrive_aligned_and_come_back) { each_way(claimed_buffers); }
Test(inline, parts_and_descriptors_arrive_as_they_were_given) { each_way(parts_and_descriptors); }
Test(inline, streams_pass) { each_way(streams); }
Test(inline, a_full_queue_says_so) { each_way(larger_than_the_queue); }

/* A pool that several ports share, of which one has no shared memory. */
Test(inline, a_shared_pool_lends_to_those_that_map_it_only)
{
	wharf_pool *pool = shared_pool(8 << 20);
	struct pair other;

	pair_open(&other, WHARF_OPT(port, .pool = pool), NULL);
	pair_open(&p, WHARF_OPT(port, .pool = pool), WHARF_OPT(port, .flags = WHARF_PORT_INLINE));
	p.b.on_message = check;
	for (unsigned i = 0; i < 20; i++) {
		struct wharf_buf b = claimed(0, 5000), c = claimed(0, 5000);
		cr_assert_eq(wharf_send_buf(p.a.port, 64, &b), 0);
		cr_assert_eq(wharf_send_buf(other.a.port, 64, &c), 0);
		if (i % 2)
			settle(p.loop);
		if (i % 3)
			settle(other.loop);
	}
	settle(other.loop);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 20);
	cr_assert_eq(other.b.n_messages, 20);
	check_nothing_shared();
	pair_free(&p);
	pair_free(&other);
	wharf_pool_unref(pool);
}
