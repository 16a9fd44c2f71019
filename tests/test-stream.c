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

static size_t pushed, total;
static uint64_t pushing;

static void push_more(struct end *end)
{
	(void)end;
	while (pushed < total) {
		size_t size = total - pushed < MIB ? total - pushed : MIB;
		int error = push(pushing, pushed, size, pushed + size == total ? WHARF_LAST : 0);
		if (error == -EAGAIN)
			return;
		cr_assert_eq(error, 0, "%d", error);
		pushed += size;
	}
}

Test(stream, passes_through_a_pool_that_is_much_smaller)
{
	n_checked = pushed = 0;
	total = 200 * MIB + 77;
	pair_open(&p, WHARF_OPT(port, .pool_bytes_max = 16 * MIB), WHARF_OPT(port, .flags = WHARF_PORT_PIECES));
	p.b.on_message = check_pattern;
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
