/* SPDX-License-Identifier: MIT */
/* Words of chunks: against the definition, chunk by chunk. */
#include <criterion/criterion.h>

#include "bitmap.h"
#include "harness.h"

static unsigned align_naive(unsigned n)
{
	unsigned align = 1;
	while (align < n)
		align *= 2;
	return align;
}

static uint64_t starts_naive(uint64_t free, unsigned n)
{
	uint64_t starts = 0;
	for (unsigned first = 0; first + n <= 64; first += align_naive(n)) {
		bool all = true;
		for (unsigned i = first; i < first + n; i++)
			all = all && free >> i & 1;
		if (all)
			starts |= UINT64_C(1) << first;
	}
	return starts;
}

/* Words with long and short free stretches. */
static uint64_t random_word(struct harness_random *random)
{
	uint64_t word = harness_random_next(random);
	for (uint64_t i = harness_random_below(random, 4); i > 0; i--)
		word |= harness_random_next(random);
	return harness_random_below(random, 8) ? word : ~UINT64_C(0);
}

Test(bitmap, a_run_of_n_has_n_bits_and_starts_at_multiples_of_the_next_power_of_two)
{
	for (unsigned n = 1; n <= 64; n++) {
		cr_assert_eq(wh_bits_count(wh_run_bits(n)), n);
		cr_assert_eq(wh_run_bits(n) & 1, 1);
		cr_assert_eq(wh_run_align(n), align_naive(n));
	}
}

Test(bitmap, run_starts_are_those_of_the_definition)
{
	struct harness_random random = { harness_seed() };
	for (int round = 0; round < 20000; round++) {
		uint64_t word = random_word(&random);
		for (unsigned n = 1; n <= 64; n++) {
			cr_assert_eq(wh_run_starts(word, n), starts_naive(word, n), "word %016lx n %u",
				(unsigned long)word, n);
			cr_assert_eq(wh_run_starts_long(word, n), starts_naive(word, n), "word %016lx n %u",
				(unsigned long)word, n);
		}
		for (unsigned n = 1; n <= 4; n++)
			cr_assert_eq(wh_run_starts_few(word, n), starts_naive(word, n));
	}
}

Test(bitmap, no_word_has_a_run_of_0_or_of_more_than_64)
{
	cr_assert_eq(wh_run_starts_long(~UINT64_C(0), 0), 0);
	cr_assert_eq(wh_run_starts_long(~UINT64_C(0), 65), 0);
}

Test(bitmap, claiming_takes_exactly_one_run_and_fails_without_a_trace)
{
	struct harness_random random = { harness_seed() };
	for (int round = 0; round < 100000; round++) {
		uint64_t before = random_word(&random), starts;
		unsigned n = 1 + (unsigned)harness_random_below(&random, 64);
		_Atomic uint64_t word = before;
		int first = wh_word_claim(&word, n);
		starts = starts_naive(before, n);
		if (!starts) {
			cr_assert_eq(first, -1);
			cr_assert_eq(word, before);
			continue;
		}
		cr_assert_eq(first, __builtin_ctzll(starts));
		cr_assert_eq(before & ~word, wh_run_bits(n) << first);
		cr_assert_eq(word & ~before, 0);
		wh_word_free(&word, wh_run_bits(n) << first);
		cr_assert_eq(word, before);
	}
}

Test(bitmap, taking_a_word_empties_it_and_taking_all_needs_all)
{
	_Atomic uint64_t word = UINT64_C(0xf0f0);
	cr_assert_not(wh_word_take_all(&word, UINT64_C(0xffff)));
	cr_assert_eq(word, UINT64_C(0xf0f0));
	cr_assert(wh_word_take_all(&word, UINT64_C(0xf0f0)));
	cr_assert_eq(word, 0);
	word = 5;
	cr_assert_eq(wh_word_take(&word), 5);
	cr_assert_eq(wh_word_take(&word), 0);
}

Test(bitmap, single_chunks_here_and_there_do_not_block_every_longer_run)
{
	/* 16 single chunks claimed as wharf claims them leave 12 runs of 4; claimed at random they could leave none. */
	_Atomic uint64_t word = ~UINT64_C(0);
	for (int i = 0; i < 16; i++)
		cr_assert_geq(wh_word_claim(&word, 1), 0);
	cr_assert_eq(wh_run_count(word, 4), 12);
	/* Runs of 3 in between do not move them off their places. */
	cr_assert_eq(wh_word_claim(&word, 3), 16);
	cr_assert_eq(wh_word_claim(&word, 3), 20);
	cr_assert_eq(wh_word_claim(&word, 1), 19);
	cr_assert_eq(wh_run_count(word, 4), 10);
}
