/* SPDX-License-Identifier: MIT */
/* Claiming, trimming and sharing buffers. */
#include <criterion/criterion.h>
#include <errno.h>

#include "peer.h"

TestSuite(buf, .init = peer_test_begin, .fini = peer_test_end, .timeout = 60);

/* ---- Claiming ---- */

Test(buf, claims_are_exact_aligned_writable_and_apart)
{
	static const size_t sizes[] = { 1, 64, 256, 257, 1000, 1024, 1025, 4096, 5000, 16384, 16385, 100000, 1 << 20,
		(1 << 20) + 1, 5 << 20 };
	enum { N = sizeof(sizes) / sizeof(*sizes) };
	wharf_pool *pool = new_pool(0, false);
	struct wharf_buf bufs[N][3];
	for (int k = 0; k < 3; k++)
		for (size_t i = 0; i < N; i++) {
			bufs[i][k] = claim(pool, sizes[i]);
			memset(bufs[i][k].data, (int)(1 + i * 3 + (size_t)k), sizes[i]);
		}
	for (int k = 0; k < 3; k++)
		for (size_t i = 0; i < N; i++) {
			const unsigned char *at = bufs[i][k].data;
			for (size_t b = 0; b < sizes[i]; b += 61)
				cr_assert_eq(at[b], 1 + i * 3 + (size_t)k);
			cr_assert_eq(at[sizes[i] - 1], 1 + i * 3 + (size_t)k);
			wharf_buf_abandon(&bufs[i][k]);
			cr_assert_null(bufs[i][k].data);
			wharf_buf_abandon(&bufs[i][k]);
		}
	struct wharf_pool_info info = info_of(pool);
	cr_assert_eq(info.bytes_free, info.bytes);
	wharf_buf_abandon(NULL);
	wharf_pool_unref(pool);
}

Test(buf, wrong_arguments_are_refused)
{
	wharf_pool *pool = new_pool(0, false);
	struct wharf_buf empty = WHARF_BUF_EMPTY, buf;
	cr_assert_eq(wharf_buf_claim(pool, 0, &buf), -EINVAL);
	cr_assert_eq(wharf_buf_claim(NULL, 1, &buf), -EINVAL);
	cr_assert_eq(wharf_buf_claim(pool, 1, NULL), -EINVAL);
	cr_assert_eq(wharf_buf_claim_wait(pool, 0, 0, &buf), -EINVAL);
	cr_assert_eq(wharf_buf_trim(&empty, 1), -EINVAL);
	cr_assert_eq(wharf_buf_trim(NULL, 1), -EINVAL);
	cr_assert_eq(wharf_buf_ref(&empty, &buf), -EINVAL);
	buf = claim(pool, 100);
	cr_assert_eq(wharf_buf_trim(&buf, 0), -EINVAL);
	cr_assert_eq(wharf_buf_trim(&buf, 101), -EINVAL);
	cr_assert_eq(buf.size, 100);
	wharf_buf_abandon(&buf);
	wharf_pool_unref(pool);
}

/* From an empty pool, also after every other size was claimed; one more byte never. */
Test(buf, any_size_up_to_bytes_max_fits_and_beyond_it_is_EMSGSIZE)
{
	static const size_t maxima[] = { 1, 4096, 5000, 20480, 65536, 100000, 1 << 20, 1000000, 3 << 20,
		(16 << 20) + 1, 48 << 20 };
	struct harness_random random = { harness_seed() };
	for (size_t i = 0; i < sizeof(maxima) / sizeof(*maxima); i++) {
		wharf_pool *pool = new_pool(maxima[i], false);
		size_t max = info_of(pool).bytes_max;
		cr_assert_geq(max, maxima[i]);
		cr_assert_leq(max, maxima[i] + maxima[i] / 16 + 4096);
		cr_assert_eq(try_claim(pool, max), 0, "all of %zu", max);
		cr_assert_eq(try_claim(pool, max + 1), -EMSGSIZE);
		for (int round = 0; round < 200; round++) {
			size_t size = 1 + harness_random_below(&random, harness_random_below(&random, 2) ? max
				: 1 + max / 100);
			cr_assert_eq(try_claim(pool, size), 0, "%zu of %zu", size, max);
			cr_assert_leq(info_of(pool).bytes, max);
		}
		wharf_pool_unref(pool);
	}
}

Test(buf, more_than_1_GiB_can_never_be_claimed)
{
	wharf_pool *pool = new_pool((size_t)4 << 30, false);
	cr_assert_eq(try_claim(pool, ((size_t)1 << 30) + 1), -EMSGSIZE);
	cr_assert_eq(try_claim(pool, SIZE_MAX), -EMSGSIZE);
	wharf_pool_unref(pool);
}

Test(buf, a_full_pool_is_EAGAIN_until_something_comes_back)
{
	static const size_t sizes[] = { 64, 1000, 4096, 16384, 60000, 262144 };
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		wharf_pool *pool = new_pool(1 * MIB, false);
		struct wharf_buf *bufs = calloc(4096, sizeof(*bufs));
		size_t n = 0;
		int error;
		while (!(error = wharf_buf_claim(pool, sizes[i], &bufs[n])))
			n++;
		cr_assert_eq(error, -EAGAIN);
		/* Nearly all of it, whatever the size: chunks, not segments, are what is wasted. */
		cr_assert_geq(n * ((sizes[i] + 255) / 256 * 256), 3 * MIB / 4, "size %zu", sizes[i]);
		cr_assert_eq(try_claim(pool, sizes[i]), -EAGAIN);
		wharf_buf_abandon(&bufs[n / 2]);
		cr_assert_eq(try_claim(pool, sizes[i]), 0);
		while (n-- > 0)
			wharf_buf_abandon(&bufs[n]);
		free(bufs);
		wharf_pool_unref(pool);
	}
}

Test(buf, trimming_gives_back_whole_chunks_of_the_tail_at_once)
{
	wharf_pool *pool = new_pool(0, false);
	struct wharf_buf buf = claim(pool, 768);
	void *data = buf.data;
	uint64_t free_before = info_of(pool).bytes_free;
	memset(buf.data, 1, 768);
	cr_assert_eq(wharf_buf_trim(&buf, 700), 0);
	cr_assert_eq(info_of(pool).bytes_free, free_before, "no whole chunk");
	cr_assert_eq(wharf_buf_trim(&buf, 257), 0);
	cr_assert_eq(buf.size, 257);
	cr_assert_eq(buf.data, data);
	cr_assert_eq(info_of(pool).bytes_free, free_before + 256);
	cr_assert_eq(wharf_buf_trim(&buf, 256), 0);
	cr_assert_eq(info_of(pool).bytes_free, free_before + 512);
	wharf_buf_abandon(&buf);
	cr_assert_eq(info_of(pool).bytes_free, free_before + 768);
	wharf_pool_unref(pool);
}

/* ---- Several holders ---- */

Test(buf, a_referenced_buffer_is_free_when_its_last_holder_lets_go)
{
	struct peer p[3];
	wharf_pool *pool = new_pool(0, true);
	for (int i = 0; i < 3; i++)
		peer_join(&p[i], pool, NULL);
	for (int round = 0; round < 6; round++) {
		struct wharf_buf buf = claim(pool, 700), refs[3];
		struct wh_run runs[3];
		memset(buf.data, round, buf.size);
		for (int i = 0; i < 3; i++) {
			cr_assert_eq(wharf_buf_ref(&buf, &refs[i]), 0);
			runs[i] = send_buf(&p[i], &refs[i]);
		}
		cr_assert_eq(wharf_buf_trim(&buf, 1), -EINVAL, "others read the tail");
		cr_assert_eq(info_of(pool).bytes_lent, 768, "one run, three peers");
		/* Every order of letting go. */
		static const int orders[6][3] = { { 0, 1, 2 }, { 0, 2, 1 }, { 1, 0, 2 }, { 1, 2, 0 }, { 2, 0, 1 },
			{ 2, 1, 0 } };
		wharf_buf_abandon(&buf);
		for (int k = 0; k < 3; k++) {
			int i = orders[round][k];
			struct wharf_pool_info info = info_of(pool);
			cr_assert_lt(info.bytes_free, info.bytes);
			cr_assert_eq(*(const unsigned char *)wh_view_at(p[i].views[runs[i].slot], runs[i].first, 699),
				round);
			release(&p[i], &runs[i]);
			cr_assert_eq(wh_lease_harvest(p[i].lease), k == 2 ? 768 : 0, "order %d, %d-th", round, k);
		}
		struct wharf_pool_info info = info_of(pool);
		cr_assert_eq(info.bytes_free, info.bytes);
	}
	for (int i = 0; i < 3; i++)
		peer_leave(&p[i]);
	wharf_pool_unref(pool);
}

Test(buf, the_same_run_twice_to_one_peer_is_EBUSY_while_it_is_out)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 0, &p);
		for (int publish = 0; publish < 2; publish++) {
			struct wharf_buf buf = claim(pool, 256), ref, other = claim(pool, 16384);
			struct wh_run run, second;
			cr_assert_eq(wharf_buf_ref(&buf, &ref), 0);
			cr_assert_eq(wh_lease_lend(p.lease, &buf, 0, 256, 0, &run), 0);
			announce(&p, run.slot);
			if (publish)
				wh_lease_publish(p.lease);
			cr_assert_eq(wh_lease_lend(p.lease, &ref, 0, 256, 0, &second), -EBUSY);
			cr_assert_eq(wh_lease_lend(p.lease, &other, 0, 16384, 0, &second), 0);
			cr_assert_eq(wh_lease_lend(p.lease, &ref, 0, 256, 0, &run), -EBUSY, "also from another word");
			wh_lease_publish(p.lease);
			wh_lease_drop(p.lease, &second);
			release(&p, &run);
			cr_assert_eq(wh_lease_harvest(p.lease), 0, "ref holds it");
			cr_assert_eq(wh_lease_lend(p.lease, &ref, 0, 256, 0, &run), 0);
			wh_lease_publish(p.lease);
			release(&p, &run);
			cr_assert_eq(wh_lease_harvest(p.lease), 256);
		}
		peer_leave(&p);
		wharf_pool_unref(pool);
	}
}

Test(buf, more_than_65535_holders_are_EOVERFLOW)
{
	wharf_pool *pool = new_pool(0, true);
	struct wharf_buf buf = claim(pool, 1024), ref, untouched = WHARF_BUF_EMPTY;
	for (int i = 0; i < 65534; i++)
		cr_assert_eq(wharf_buf_ref(&buf, &ref), 0);
	cr_assert_eq(wharf_buf_ref(&buf, &untouched), -EOVERFLOW);
	cr_assert_null(untouched.data);
	for (int i = 0; i < 65534; i++) {
		struct wharf_buf one = buf;
		wharf_buf_abandon(&one);
	}
	cr_assert_lt(info_of(pool).bytes_free, info_of(pool).bytes);
	wharf_buf_abandon(&buf);
	cr_assert_eq(info_of(pool).bytes_free, info_of(pool).bytes);
	wharf_pool_unref(pool);
}
