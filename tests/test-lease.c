/* SPDX-License-Identifier: MIT */
/* What a peer holds: lending, harvesting, detaching; with the peer played in this process. */
#include <criterion/criterion.h>
#include <errno.h>

#include "peer.h"

TestSuite(lease, .init = peer_test_begin, .fini = peer_test_end, .timeout = 60);

/* ---- Lending ---- */

Test(lease, what_is_lent_comes_back_when_the_peer_releases_it)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 0, &p);
		static const size_t sizes[] = { 1, 1000, 5000, 60000, 100000, 3 << 20 };
		for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
			struct wharf_buf buf = claim(pool, sizes[i]);
			memset(buf.data, (int)i + 1, buf.size);
			uint64_t chunks = wh_place_chunks(buf.opaque[1]);
			struct wh_run run = send_buf(&p, &buf);
			cr_assert_eq(run.n_chunks, chunks);
			cr_assert_eq(run.size, sizes[i]);
			cr_assert_eq(run.offset, 0);
			cr_assert_eq(run.flags, 0);
			cr_assert_eq(run.first % wh_run_align(run.n_chunks), 0);
			uint64_t bytes = chunks << p.views[run.slot]->chunk_shift;
			cr_assert_eq(wh_lease_lent_bytes(p.lease), bytes);
			cr_assert_eq(info_of(pool).bytes_lent, bytes);
			cr_assert_eq(*(const unsigned char *)wh_view_at(p.views[run.slot], run.first,
				(uint32_t)sizes[i] - 1), i + 1);
			release(&p, &run);
			cr_assert_eq((uint64_t)wh_lease_harvest(p.lease), bytes);
			cr_assert_eq(wh_lease_harvest(p.lease), 0);
			cr_assert_eq(wh_lease_lent_bytes(p.lease), 0);
		}
		struct wharf_pool_info info = info_of(pool);
		cr_assert_eq(info.bytes_free, info.bytes);
		peer_leave(&p);
		wharf_pool_unref(pool);
	}
}

Test(lease, partial_release_is_per_chunk)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 0, &p);
		struct wharf_buf buf = claim(pool, 3072);
		struct wh_run run = send_buf(&p, &buf);
		cr_assert_eq(run.n_chunks, 3);
		uint64_t bit = UINT64_C(1) << (run.first % 64);
		wh_view_release(p.views[run.slot], run.first / 64, bit | bit << 2);
		cr_assert_eq(wh_lease_harvest(p.lease), 2048);
		cr_assert_eq(wh_lease_lent_bytes(p.lease), 1024);
		wh_view_release(p.views[run.slot], run.first / 64, bit << 1);
		cr_assert_eq(wh_lease_harvest(p.lease), 1024);
		cr_assert_not(wh_lease_poisoned(p.lease));
		peer_leave(&p);
		wharf_pool_unref(pool);
	}
}

Test(lease, claims_harvest_by_themselves)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 1 * MIB, &p);
		struct wh_run runs[16];
		for (int round = 0; round < 2000; round++) {
			if (round >= 16)
				release(&p, &runs[round % 16]);
			struct wharf_buf buf = claim(pool, 16384);
			runs[round % 16] = send_buf(&p, &buf);
			wh_lease_turn(p.lease, (uint32_t)round);
		}
		cr_assert_leq(info_of(pool).bytes, 1 * MIB);
		cr_assert_eq(wh_lease_lent_bytes(p.lease), 16 * 16384);
		peer_leave(&p);
		wharf_pool_unref(pool);
	}
}

Test(lease, releasing_what_was_not_lent_poisons_and_frees_nothing)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 0, &p);
		struct wharf_buf buf = claim(pool, 256), held = claim(pool, 256);
		struct wh_run run = send_buf(&p, &buf);
		static struct wharf_buf others[2000];
		uint64_t mine = wh_place_bits(held.opaque[1]);
		cr_assert_eq(wh_place_slot(held.opaque[1]), run.slot);
		wh_view_release(p.views[run.slot], wh_place_first(held.opaque[1]) / 64, mine);
		cr_assert_eq(wh_lease_harvest(p.lease), -EPROTO);
		cr_assert(wh_lease_poisoned(p.lease));
		cr_assert_geq(p.kicks, 1);
		/* Still claimed: nobody else gets it. */
		for (int i = 0; i < 2000; i++) {
			others[i] = claim(pool, 256);
			cr_assert_neq(others[i].data, held.data);
		}
		release(&p, &run);
		cr_assert_eq(wh_lease_harvest(p.lease), -EPROTO, "for good");
		peer_leave(&p);
		wharf_buf_abandon(&held);
		for (int i = 0; i < 2000; i++)
			wharf_buf_abandon(&others[i]);
		wharf_pool_unref(pool);
	}
}

Test(lease, a_double_release_is_a_violation_and_frees_once)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 0, &p);
		struct wharf_buf buf = claim(pool, 256);
		struct wh_run run = send_buf(&p, &buf);
		release(&p, &run);
		cr_assert_eq(wh_lease_harvest(p.lease), 256);
		release(&p, &run);
		cr_assert_eq(wh_lease_harvest(p.lease), -EPROTO);
		peer_leave(&p);
		wharf_pool_unref(pool);
	}
}

Test(lease, a_release_before_the_frame_left_is_a_violation)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 0, &p);
		struct wharf_buf buf = claim(pool, 256);
		struct wh_run run = send_buf(&p, &buf), early;
		release(&p, &run);
		cr_assert_eq(wh_lease_harvest(p.lease), 256);
		buf = claim(pool, 256);
		cr_assert_eq(wh_lease_lend(p.lease, &buf, 0, 256, 0, &early), 0);
		release(&p, &early);
		cr_assert_eq(wh_lease_harvest(p.lease), -EPROTO);
		/* The buffer is ours still. */
		wh_lease_take_back(p.lease, &early);
		cr_assert_eq(wh_lease_lent_bytes(p.lease), 0);
		wharf_buf_abandon(&buf);
		struct wharf_pool_info info = info_of(pool);
		cr_assert_eq(info.bytes_free, info.bytes);
		peer_leave(&p);
		wharf_pool_unref(pool);
	}
}

Test(lease, ranges_and_foreign_buffers_are_refused)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 0, &p), *other = new_pool(0, false);
		struct wharf_buf buf = claim(pool, 1000), foreign = claim(other, 1000), empty = WHARF_BUF_EMPTY;
		struct wh_run run;
		/* Before and after the fast path knows the word. */
		for (int k = 0; k < 2; k++) {
			cr_assert_eq(wh_lease_lend(p.lease, &empty, 0, 1, 0, &run), -EINVAL);
			cr_assert_eq(wh_lease_lend(p.lease, &foreign, 0, 1000, 0, &run), -EXDEV);
			cr_assert_eq(wh_lease_lend(p.lease, &buf, 0, 0, 0, &run), -EINVAL);
			cr_assert_eq(wh_lease_lend(p.lease, &buf, 0, 1001, 0, &run), -EINVAL);
			cr_assert_eq(wh_lease_lend(p.lease, &buf, 1, 1000, 0, &run), -EINVAL);
			cr_assert_eq(wh_lease_lend(p.lease, &buf, 1000, 1, 0, &run), -EINVAL);
			cr_assert_eq(wh_lease_lend(p.lease, &buf, SIZE_MAX, 2, 0, &run), -EINVAL);
			cr_assert_eq(wh_lease_lend(p.lease, &buf, 999, 1, 0, &run), 0);
			cr_assert_eq(run.offset, 999);
			cr_assert_eq(run.size, 1);
			cr_assert_eq(run.n_chunks, 1, "four chunks of 256 are one of 1024");
			wh_lease_take_back(p.lease, &run);
		}
		wharf_buf_abandon(&buf);
		wharf_buf_abandon(&foreign);
		peer_leave(&p);
		wharf_pool_unref(pool);
		wharf_pool_unref(other);
	}
}

Test(lease, taking_back_and_dropping_undo_a_lend_wherever_it_stands)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 0, &p);
		/* Many words, so that some runs are in the current one, some set aside, some published. */
		enum { N = 600 };
		struct wharf_buf bufs[N];
		struct wh_run runs[N];
		for (int i = 0; i < N; i++) {
			bufs[i] = claim(pool, i % 3 ? 1000 : 100);
			cr_assert_eq(wh_lease_lend(p.lease, &bufs[i], 0, bufs[i].size, 0, &runs[i]), 0);
			if (i == N / 3)
				wh_lease_publish(p.lease);
		}
		for (int i = N; i-- > 0;) {
			if (i % 2) {
				wh_lease_take_back(p.lease, &runs[i]);
				wharf_buf_abandon(&bufs[i]);
			} else {
				wh_lease_drop(p.lease, &runs[i]);
			}
		}
		cr_assert_not(wh_lease_poisoned(p.lease));
		cr_assert_eq(wh_lease_lent_bytes(p.lease), 0);
		struct wharf_pool_info info = info_of(pool);
		cr_assert_eq(info.bytes_free, info.bytes);
		cr_assert_eq(info.bytes_lent, 0);
		peer_leave(&p);
		wharf_pool_unref(pool);
	}
}

Test(lease, what_is_held_is_not_published_with_a_frame_that_leaves_meanwhile)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 0, &p);
		struct wharf_buf first = claim(pool, 256), held[64];
		struct wh_run run, runs[64];
		cr_assert_eq(wh_lease_lend(p.lease, &first, 0, 256, 0, &run), 0);
		wh_lease_hold(p.lease);
		for (int i = 0; i < 64; i++) {
			/* 64 KiB each: words of their own, more or less. */
			held[i] = claim(pool, i % 2 ? 256 : 65536);
			cr_assert_eq(wh_lease_lend(p.lease, &held[i], 0, held[i].size, 0, &runs[i]), 0);
		}
		wh_lease_publish(p.lease);
		cr_assert_eq(info_of(pool).bytes_lent, 256, "only what was lent before");
		for (int i = 64; i-- > 32;)
			wh_lease_take_back(p.lease, &runs[i]);
		wh_lease_unhold(p.lease);
		wh_lease_publish(p.lease);
		cr_assert_eq(info_of(pool).bytes_lent, 256 + 16 * 256 + 16 * 65536);
		for (int i = 0; i < 32; i++)
			wh_lease_drop(p.lease, &runs[i]);
		for (int i = 32; i < 64; i++)
			wharf_buf_abandon(&held[i]);
		wh_lease_drop(p.lease, &run);
		cr_assert_eq(wh_lease_lent_bytes(p.lease), 0);
		peer_leave(&p);
		wharf_pool_unref(pool);
	}
}

Test(lease, a_private_pool_has_one_at_a_time)
{
	struct peer p, q;
	wharf_pool *pool = new_pool(0, false);
	struct wh_lease *second;
	peer_join(&p, pool, NULL);
	cr_assert_eq(wh_pool_attach(pool, NULL, on_kick, &q, &second), -EXDEV);
	struct wharf_buf buf = claim(pool, 100), kept = claim(pool, 100);
	send_buf(&p, &buf);
	peer_leave(&p);
	/* The next peer does not get what the last one can read. */
	peer_join(&q, pool, NULL);
	struct wh_run run;
	memset(kept.data, 1, 100);
	cr_assert_eq(wh_lease_lend(q.lease, &kept, 0, 100, 0, &run), -EXDEV);
	wharf_buf_abandon(&kept);
	cr_assert_eq(info_of(pool).bytes, 0);
	buf = claim(pool, 100);
	run = send_buf(&q, &buf);
	cr_assert_eq(q.announces, 1);
	release(&q, &run);
	cr_assert_eq(wh_lease_harvest(q.lease), 256);
	peer_leave(&q);
	wharf_pool_unref(pool);
}

Test(lease, a_shared_pool_has_1024)
{
	wharf_pool *pool = new_pool(0, true);
	static struct peer peers[WHARF_POOL_PORTS_MAX];
	struct wh_lease *lease;
	for (int i = 0; i < WHARF_POOL_PORTS_MAX; i++)
		peer_join(&peers[i], pool, NULL);
	cr_assert_eq(wh_pool_attach(pool, NULL, on_kick, &peers[0], &lease), -EUSERS);
	peer_leave(&peers[400]);
	peer_join(&peers[400], pool, NULL);
	cr_assert_eq(wh_pool_attach(pool, NULL, on_kick, &peers[0], &lease), -EUSERS);
	for (int i = 0; i < WHARF_POOL_PORTS_MAX; i++)
		peer_leave(&peers[i]);
	wharf_pool_unref(pool);
}

/* ---- Detaching ---- */

Test(lease, a_failed_peer_of_a_private_pool_keeps_reading_what_it_was_lent)
{
	struct peer p;
	wharf_pool *pool = new_pool(1 * MIB, false);
	peer_join(&p, pool, NULL);
	struct wharf_buf buf = claim(pool, 1000), kept = claim(pool, 1000);
	memset(buf.data, 0x55, 1000);
	struct wh_run run = send_buf(&p, &buf);
	const char *seen = wh_view_at(p.views[run.slot], run.first, 0);
	wh_lease_detach(p.lease);
	/* All of the pool is written again, but not that. */
	struct wharf_buf bufs[64];
	size_t n = 0;
	while (n < 64 && !wharf_buf_claim(pool, 15000, &bufs[n]))
		memset(bufs[n++].data, 0xaa, 15000);
	cr_assert_geq(n, 50);
	memset(kept.data, 0xbb, 1000);
	for (int i = 0; i < 1000; i++)
		cr_assert_eq(seen[i], 0x55);
	while (n-- > 0)
		wharf_buf_abandon(&bufs[n]);
	wharf_buf_abandon(&kept);
	peer_unmap(&p);
	wharf_pool_unref(pool);
}

Test(lease, a_shared_pool_takes_everything_back_from_a_peer_that_leaves)
{
	struct peer p, q;
	wharf_pool *pool = new_pool(0, true);
	peer_join(&p, pool, NULL);
	peer_join(&q, pool, NULL);
	struct wharf_buf bufs[2], more;
	struct wh_run unpublished, both;
	bufs[0] = claim(pool, 100);
	send_buf(&p, &bufs[0]);
	bufs[1] = claim(pool, 100);
	cr_assert_eq(wharf_buf_ref(&bufs[1], &more), 0);
	send_buf(&p, &bufs[1]);
	both = send_buf(&q, &more);
	more = claim(pool, 5000);
	cr_assert_eq(wh_lease_lend(p.lease, &more, 0, 5000, 0, &unpublished), 0);
	peer_leave(&p);
	struct wharf_pool_info info = info_of(pool);
	cr_assert_eq(info.bytes_lent, 256);
	cr_assert_eq(info.bytes_free, info.bytes - 256);
	release(&q, &both);
	cr_assert_eq(wh_lease_harvest(q.lease), 256);
	peer_leave(&q);
	wharf_pool_unref(pool);
}

/* ---- Retiring ---- */

Test(lease, a_retirement_that_was_not_asked_for_is_the_peers_fault)
{
	struct peer p;
	wharf_pool *pool = new_pool(0, false);
	peer_join(&p, pool, NULL);
	struct wharf_buf buf = claim(pool, 100);
	struct wh_run run = send_buf(&p, &buf);
	uint16_t slot;
	cr_assert_not(wh_lease_next_retire(p.lease, &slot));
	cr_assert_eq(wh_lease_retired(p.lease, run.slot), -EPROTO);
	cr_assert_eq(wh_lease_retired(p.lease, 77), -EPROTO);
	cr_assert_eq(wh_lease_retired(p.lease, UINT16_MAX), -EPROTO);
	release(&p, &run);
	cr_assert_eq(wh_lease_harvest(p.lease), 256);
	peer_leave(&p);
	wharf_pool_unref(pool);
}

Test(lease, descriptors_are_closed_once_the_peer_has_proved_that_it_mapped)
{
	struct peer p;
	wharf_pool *pool = new_pool(0, false);
	peer_join(&p, pool, NULL);
	size_t fds = harness_count_fds();
	struct wharf_buf buf = claim(pool, 100);
	struct wh_run run = send_buf(&p, &buf);
	for (uint32_t turn = 1; turn < 64; turn++)
		wh_lease_turn(p.lease, turn);
	cr_assert_eq(harness_count_fds(), fds + 2, "it may have been lost");
	struct wh_announcement again;
	cr_assert_eq(wh_lease_announcement(p.lease, run.slot, &again), 0);
	wh_lease_announced(p.lease, run.slot, true);
	release(&p, &run);
	cr_assert_eq(wh_lease_harvest(p.lease), 256);
	for (uint32_t turn = 1; turn < 64; turn++)
		wh_lease_turn(p.lease, turn);
	cr_assert_eq(harness_count_fds(), fds);
	cr_assert_eq(wh_lease_announcement(p.lease, run.slot, &again), -EPROTO);
	peer_leave(&p);
	wharf_pool_unref(pool);
}

Test(lease, a_port_that_only_asks_for_retirements_hears_of_each)
{
	struct peer p;
	wharf_pool *pool = new_pool(64 * KIB, true);
	uint16_t slot;
	peer_join(&p, pool, NULL);
	for (int round = 0; round < 4; round++) {
		/* Each size is in the other's way. */
		struct wharf_buf buf = claim(pool, round % 2 ? 1000 : 60000);
		struct wh_run run = send_buf(&p, &buf);
		release(&p, &run);
		cr_assert_not(wh_lease_next_retire(p.lease, &slot));
		int kicks = p.kicks;
		cr_assert_eq(try_claim(pool, round % 2 ? 60000 : 1000), -EAGAIN);
		cr_assert_gt(p.kicks, kicks);
		cr_assert(wh_lease_next_retire(p.lease, &slot));
		wh_view_unref(p.views[slot]);
		p.views[slot] = NULL;
		cr_assert_eq(wh_lease_retired(p.lease, slot), 0);
		cr_assert_not(wh_lease_next_retire(p.lease, &slot));
	}
	peer_leave(&p);
	wharf_pool_unref(pool);
}
