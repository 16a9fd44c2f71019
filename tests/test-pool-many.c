/* SPDX-License-Identifier: MIT */
/* Pools shared by many ports: beyond the first 64 leases, and costs that must not grow with all of them. */
#include <criterion/criterion.h>
#include <errno.h>
#include <sys/resource.h>

#include "peer.h"

TestSuite(pool_many, .init = peer_test_begin, .fini = peer_test_end, .timeout = 60);

enum { MANY = 1000 };

static struct peer peers[WHARF_POOL_PORTS_MAX];

static wharf_pool *join_all(size_t bytes_max, int n)
{
	struct rlimit limit;
	wharf_pool *pool = new_pool(bytes_max, true);
	/* A release map has a descriptor until its peer has proved that it mapped it. */
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	for (int i = 0; i < n; i++)
		peer_join(&peers[i], pool, NULL);
	return pool;
}

static void leave_all(wharf_pool *pool, int n)
{
	for (int i = 0; i < n; i++)
		peer_leave(&peers[i]);
	wharf_pool_unref(pool);
}

static struct wh_run send_ref(struct peer *p, const struct wharf_buf *buf)
{
	struct wharf_buf more;
	cr_assert_eq(wharf_buf_ref(buf, &more), 0);
	return send_buf(p, &more);
}

/* Which leases the pool's next harvest looks at for this word. */
static int count_holders(const wharf_pool *pool, const struct wh_run *run)
{
	const struct wh_slot *s = pool->slots[run->slot];
	unsigned word = run->first / 64;
	int n = (int)wh_bits_count(s->control->holders[word]);
	for (unsigned group = 1; s->wide && group < WH_GROUPS; group++)
		if (s->wide[word * WH_GROUPS] >> group & 1)
			n += (int)wh_bits_count(s->wide[word * WH_GROUPS + group]);
	return n;
}

Test(pool_many, a_chunk_lent_to_a_thousand_is_free_when_the_last_one_releases_it)
{
	struct harness_random random = { harness_seed() };
	wharf_pool *pool = join_all(0, MANY);
	struct wharf_buf buf = claim(pool, 4096);
	struct wh_run runs[MANY];
	int order[MANY];
	for (int i = 0; i < MANY; i++) {
		runs[i] = send_ref(&peers[i], &buf);
		order[i] = i;
	}
	wharf_buf_abandon(&buf);
	for (int i = MANY; i-- > 1;) {
		int k = (int)harness_random_below(&random, (uint64_t)i + 1), other = order[i];
		order[i] = order[k];
		order[k] = other;
	}
	cr_assert_eq(count_holders(pool, &runs[0]), MANY);
	for (int i = 0; i < MANY; i++) {
		cr_assert_eq(wh_lease_lent_bytes(peers[order[i]].lease), 4096);
		release(&peers[order[i]], &runs[order[i]]);
		if (i % 100 == 50) {
			/* The pool's own harvest: nobody names the leases to it. */
			cr_assert_eq(info_of(pool).bytes_lent, 4096);
			cr_assert_eq(count_holders(pool, &runs[0]), MANY - 1 - i);
		}
	}
	struct wharf_pool_info info = info_of(pool);
	cr_assert_eq(info.bytes_lent, 0);
	cr_assert_eq(info.bytes_free, info.bytes);
	cr_assert_eq(count_holders(pool, &runs[0]), 0);
	for (int i = 0; i < MANY; i++) {
		cr_assert_not(wh_lease_poisoned(peers[i].lease));
		cr_assert_eq(wh_lease_lent_bytes(peers[i].lease), 0);
	}
	leave_all(pool, MANY);
}

Test(pool_many, a_harvest_looks_only_at_leases_that_hold_something_there)
{
	wharf_pool *pool = join_all(0, 200);
	struct wharf_buf buf = claim(pool, 256), other = claim(pool, 256);
	struct wh_run runs[200];
	cr_assert_eq(wh_place_slot(buf.opaque[1]), wh_place_slot(other.opaque[1]));
	for (int i = 0; i < 200; i++) {
		runs[i] = send_ref(&peers[i], &buf);
		release(&peers[i], &runs[i]);
	}
	wharf_buf_abandon(&buf);
	info_of(pool);
	cr_assert_eq(count_holders(pool, &runs[0]), 0);
	/* Who releases what it does not hold is found out where it is looked for. */
	runs[150] = send_ref(&peers[150], &other);
	uint64_t all = ~UINT64_C(0);
	wh_view_release(peers[151].views[runs[150].slot], runs[150].first / 64, all);
	info_of(pool);
	cr_assert_not(wh_lease_poisoned(peers[151].lease), "was looked at");
	wh_view_release(peers[150].views[runs[150].slot], runs[150].first / 64, all);
	info_of(pool);
	cr_assert(wh_lease_poisoned(peers[150].lease));
	wharf_buf_abandon(&other);
	leave_all(pool, 200);
}

Test(pool_many, leases_that_leave_and_come_back_take_nothing_over)
{
	struct harness_random random = { harness_seed() };
	wharf_pool *pool = join_all(4 * MIB, 130);
	static struct wh_run runs[130][8];
	int n_runs[130] = { 0 };
	for (int step = 0; step < 20000; step++) {
		int i = (int)harness_random_below(&random, 130);
		uint64_t dice = harness_random_below(&random, 100);
		if (dice == 0) {
			peer_leave(&peers[i]);
			peer_join(&peers[i], pool, NULL);
			n_runs[i] = 0;
		} else if (dice < 50 && n_runs[i] < 8) {
			struct wharf_buf buf = claim(pool, 1 + harness_random_below(&random, 2000));
			int k = (i + 64) % 130;
			if (dice < 10 && n_runs[k] < 8)
				runs[k][n_runs[k]++] = send_ref(&peers[k], &buf);
			runs[i][n_runs[i]++] = send_buf(&peers[i], &buf);
		} else if (n_runs[i] > 0) {
			release(&peers[i], &runs[i][--n_runs[i]]);
		}
	}
	for (int i = 0; i < 130; i++) {
		while (n_runs[i] > 0)
			release(&peers[i], &runs[i][--n_runs[i]]);
		info_of(pool);
		cr_assert_not(wh_lease_poisoned(peers[i].lease));
	}
	struct wharf_pool_info info = info_of(pool);
	cr_assert_eq(info.bytes_lent, 0);
	cr_assert_eq(info.bytes_free, info.bytes);
	leave_all(pool, 130);
}

Test(pool_many, many_ports_are_woken_when_a_claim_would_succeed_and_not_before)
{
	wharf_pool *pool = join_all(64 * KIB, 100);
	struct wharf_buf bufs[16];
	int n = 0;
	for (int i = 0; i < 16; i++)
		bufs[i] = claim(pool, 4096);
	cr_assert_eq(try_claim(pool, 3 * 4096), -EAGAIN);
	for (int i = 0; i < 16; i++)
		if (wh_place_first(bufs[i].opaque[1]) % 4 == 0 && n++ < 3)
			wharf_buf_abandon(&bufs[i]);
	for (int i = 0; i < 100; i++)
		cr_assert_eq(peers[i].kicks, 0, "single chunks are no run of three");
	for (int i = 0; i < 16; i++)
		if (bufs[i].data && wh_place_first(bufs[i].opaque[1]) < 4)
			wharf_buf_abandon(&bufs[i]);
	for (int i = 0; i < 100; i++)
		cr_assert_eq(peers[i].kicks, 1);
	/* Half of them hear of it; a claim that fails then is told to all once more. */
	for (int i = 0; i < 50; i++)
		cr_assert(wh_pool_room(pool, peers[i].lease));
	struct wharf_buf all = claim(pool, 3 * 4096);
	for (int i = 0; i < 100; i++)
		cr_assert_not(wh_pool_room(pool, peers[i].lease));
	cr_assert_eq(try_claim(pool, 3 * 4096), -EAGAIN);
	wharf_buf_abandon(&all);
	for (int i = 0; i < 100; i++) {
		cr_assert_eq(peers[i].kicks, 2);
		cr_assert(wh_pool_room(pool, peers[i].lease));
		cr_assert_not(wh_pool_room(pool, peers[i].lease), "once");
	}
	cr_assert_eq(atomic_load(&pool->attention), 0, "nobody waits any more");
	for (int i = 0; i < 16; i++)
		wharf_buf_abandon(&bufs[i]);
	leave_all(pool, 100);
}

Test(pool_many, a_segment_that_many_have_mapped_goes_when_the_last_has_unmapped_it)
{
	wharf_pool *pool = join_all(64 * KIB, 100);
	struct wharf_buf buf = claim(pool, 60000);
	for (int i = 0; i < 100; i++) {
		struct wh_run run = send_ref(&peers[i], &buf);
		release(&peers[i], &run);
	}
	wharf_buf_abandon(&buf);
	cr_assert_eq(try_claim(pool, 100), -EAGAIN, "mapped by all of them");
	for (int i = 0; i < 100; i++) {
		cr_assert_eq(info_of(pool).segments, 1);
		cr_assert_eq(peers[i].kicks, 1);
		cr_assert_not(wh_pool_room(pool, peers[i].lease));
		cr_assert_eq(retire_all(&peers[i]), 1);
	}
	cr_assert_eq(info_of(pool).segments, 0);
	cr_assert_eq(try_claim(pool, 100), 0);
	leave_all(pool, 100);
}
