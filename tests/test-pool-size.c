/* SPDX-License-Identifier: MIT */
/* What ports and pools cost that do nothing: bytes are counted, not estimated. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "heap.h"
#include "pair.h"
#include "peer.h"

static void begin(void)
{
	count_heap();
	peer_test_begin();
}

TestSuite(pool_size, .init = begin, .fini = peer_test_end, .timeout = 60);

/* Control memory handed out so far, of the process that has this pool. */
static size_t control_bytes(const wharf_pool *pool)
{
	const char *first = (const char *)pool->control - (size_t)wh_control_position(pool->control) * WH_CONTROL_UNIT;
	return ((const struct wh_control_header *)(const void *)first)->used;
}

Test(pool_size, an_idle_private_pool_and_its_lease_are_small)
{
	enum { N = 256 };
	static struct peer peers[N];
	static const char loops[N];
	wharf_pool *some = new_pool(0, false);
	size_t heap = heap_bytes(), control = control_bytes(some);
	for (int i = 0; i < N; i++)
		peer_join(&peers[i], new_pool(0, false), &loops[i]);
	heap = (heap_bytes() - heap) / N;
	control = (control_bytes(some) - control) / N;
	cr_expect_leq(heap, 768, "%zu bytes of heap", heap);
	cr_expect_leq(control, 256, "%zu bytes of control memory", control);
	for (int i = 0; i < N; i++) {
		wharf_pool *pool = peers[i].pool;
		peer_leave(&peers[i]);
		wharf_pool_unref(pool);
	}
	wharf_pool_unref(some);
}

Test(pool_size, tables_that_were_made_for_use_go_with_their_pool)
{
	/* The memory of pools themselves is kept for the next ones, and malloc has caches: what matters is each round. */
	enum { ROUNDS = 12 };
	size_t heap = 0, control = 0;
	for (int round = 0; round < ROUNDS; round++) {
		FOR_SETTINGS(s) {
			struct peer p;
			wharf_pool *pool = new_setting(s, 0, &p);
			struct wharf_buf bufs[80];
			struct wh_run runs[80];
			/* More segments than the first table of a lease takes. */
			for (int i = 0; i < 80; i++) {
				bufs[i] = claim(pool, 250000);
				runs[i] = send_buf(&p, &bufs[i]);
			}
			for (int i = 0; i < 80; i++)
				release(&p, &runs[i]);
			cr_assert_gt(info_of(pool).segments, 16);
			cr_assert_eq(wh_lease_lent_bytes(p.lease), 0);
			peer_leave(&p);
			if (round == 1)
				control = control_bytes(pool);
			if (round > 1)
				cr_assert_eq(control_bytes(pool), control);
			wharf_pool_unref(pool);
		}
		if (round == 1)
			heap = heap_bytes();
	}
	cr_assert_leq(heap_bytes(), heap + 4096);
}

static void on_open(wharf_port *port, const struct wharf_peer *peer, void *user)
{
	(void)port, (void)peer;
	++*(unsigned *)user;
}

static const struct wharf_port_ops ops = { .size = sizeof(ops), .on_open = on_open };

static wharf_port *open_pairs(wharf_loop *loop, unsigned n, unsigned *n_open)
{
	wharf_port *port = NULL;
	for (unsigned i = 0; i < n; i++) {
		int fds[2];
		cr_assert_eq(wharf_pair(fds), 0);
		for (int k = 0; k < 2; k++)
			cr_assert_eq(wharf_open(loop, fds[k], WHARF_OPT(port, .ops = &ops, .user = n_open), &port), 0);
	}
	unsigned expected = *n_open + 2 * n;
	settle_until(loop, n_open, expected);
	settle(loop);
	return port;
}

Test(pool_size, a_thousand_idle_ports_have_their_sockets_and_4_KiB_each)
{
	enum { N = 1000 };
	unsigned n_open = 0;
	wharf_loop *loop;
	if (!harness_raise_fds(2 * N))
		cr_skip_test("a thousand ports take 2000 descriptors");
	cr_assert_eq(wharf_loop_new(NULL, &loop), 0);
	/* So many that the loop has all the frames that it keeps. */
	const wharf_pool *some = wharf_port_pool(open_pairs(loop, 100, &n_open));
	size_t fds = harness_count_fds(), heap = heap_bytes(), control = control_bytes(some);
	open_pairs(loop, N / 2, &n_open);
	cr_expect_eq(harness_count_fds() - fds, N);
	heap = (heap_bytes() - heap) / N;
	control = (control_bytes(some) - control) / N;
	cr_expect_leq(heap + control, 4096, "%zu bytes of heap, %zu of control memory", heap, control);
	wharf_loop_free(loop);
}
