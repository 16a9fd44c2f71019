/* SPDX-License-Identifier: MIT */
/* Streams: messages pushed in parts, each with its own order and credit. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "harness.h"
#include "pair.h"

#define MIB ((size_t)1 << 20)

static struct pair p;

static unsigned char pattern(size_t at) { return (unsigned char)(at * 7 + (at >> 8) + (at >> 16)); }

static size_t n_checked;

static void check_pattern(struct end *end, const struct wharf_msg *msg)
{
	(void)end;
	for (size_t i = 0; i < msg->n_slices; i++)
		for (size_t k = 0; k < msg->slices[i].size; k++, n_checked++)
			cr_assert_eq(((const unsigned char *)msg->slices[i].data)[k], pattern(n_checked), "byte %zu",
				n_checked);
}

/* Sends a part of the pattern in claimed memory. */
static int push(uint64_t stream, size_t at, size_t size, uint32_t flags)
{
	struct wharf_buf b;
	int error = wharf_buf_claim(wharf_port_pool(p.a.port), size, &b);

	if (error)
		return error;
	for (size_t i = 0; i < size; i++)
		((unsigned char *)b.data)[i] = pattern(at + i);
	error = wharf_stream_send_buf(p.a.port, stream, &b, flags);
	if (error)
		wharf_buf_abandon(&b);
	return error;
}

Test(stream, is_put_together)
{
	uint64_t stream;
	struct harness_snapshot before;

	pair_open(&p, NULL, NULL);
	pair_free(&p);
	harness_snapshot_take(&before);
	n_checked = 0;
	pair_open(&p, NULL, NULL);
	p.b.on_message = check_pattern;
	cr_assert_eq(wharf_stream_begin(p.a.port, 9, 3 * MIB, &stream), 0);
	for (size_t at = 0; at < 3 * MIB; at += MIB) {
		cr_assert_eq(p.b.n_messages, 0);
		cr_assert_eq(push(stream, at, MIB, at == 2 * MIB ? WHARF_LAST : 0), 0);
		settle(p.loop);
	}
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_eq(p.b.seen[0].type, 9);
	cr_assert_eq(p.b.seen[0].size, 3 * MIB);
	cr_assert_eq(n_checked, 3 * MIB);
	cr_assert_eq(wharf_stream_end(p.a.port, stream), -ESTALE);
	pair_free(&p);
	const char *leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

/* Of large ones one byte of each 4093 is written and looked at. */
static size_t sample(size_t at) { return (at + 4092) / 4093 * 4093; }

static void check_samples(struct end *end, const struct wharf_msg *msg)
{
	(void)end;
	cr_assert_eq(msg->position_bytes, n_checked);
	for (size_t i = 0; i < msg->n_slices; n_checked += msg->slices[i++].size)
		for (size_t at = sample(n_checked); at < n_checked + msg->slices[i].size; at += 4093)
			cr_assert_eq(((const unsigned char *)msg->slices[i].data)[at - n_checked], pattern(at),
				"byte %zu", at);
}

static size_t pushed, total;
static uint64_t pushing;

static void push_more(struct end *end)
{
	while (pushed < total) {
		size_t size = total - pushed < MIB ? total - pushed : MIB;
		struct wharf_buf b;
		int error = wharf_buf_claim(wharf_port_pool(end->port), size, &b);
		if (error == -EAGAIN)
			return;
		cr_assert_eq(error, 0, "%d", error);
		for (size_t at = sample(pushed); at < pushed + size; at += 4093)
			((unsigned char *)b.data)[at - pushed] = pattern(at);
		error = wharf_stream_send_buf(end->port, pushing, &b, pushed + size == total ? WHARF_LAST : 0);
		if (error) {
			cr_assert_eq(error, -EAGAIN, "%d", error);
			wharf_buf_abandon(&b);
			return;
		}
		pushed += size;
	}
}

static void pass(size_t bytes)
{
	n_checked = pushed = 0;
	total = bytes;
	pair_open(&p, WHARF_OPT(port, .pool_bytes_max = 16 * MIB), WHARF_OPT(port, .flags = WHARF_PORT_PIECES));
	p.b.on_message = check_samples;
	p.a.on_writable = push_more;
	cr_assert_eq(wharf_stream_begin(p.a.port, 9, total, &pushing), 0);
	push_more(&p.a);
	cr_assert_lt(pushed, total);
	settle(p.loop);
	cr_assert_eq(pushed, total);
	cr_assert_eq(n_checked, total);
	cr_assert(p.b.seen[0].flags & WHARF_MSG_FRAGMENT);
	pair_free(&p);
}

Test(stream, passes_through_a_pool_that_is_much_smaller) { pass(256 * MIB + 77); }

Test(stream, of_4_gib_passes_through_a_pool_of_16_mib) { pass(4096 * MIB + 5); }
