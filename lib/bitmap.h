/* SPDX-License-Identifier: MIT */
/*
 * One 64-bit word of an allocation bitmap: 1 is free. A run of n chunks lies inside one word and starts at a
 * multiple of the next power of two >= n, so that single chunks held here and there do not block every longer run.
 */
#ifndef WH_BITMAP_H
#define WH_BITMAP_H

#include "base.h"

enum { WH_WORD_CHUNKS = 64 };

/* The lowest n bits, n 1 to 64. */
static inline uint64_t wh_run_bits(unsigned n) { return ~UINT64_C(0) >> (64 - n); }

/* The next power of two >= n, n 1 to 64: where runs of n may start. */
static inline unsigned wh_run_align(unsigned n) { return n <= 1 ? 1 : 1u << (32 - __builtin_clz(n - 1)); }

static inline unsigned wh_bits_count(uint64_t bits) { return (unsigned)__builtin_popcountll(bits); }

/* The bits at which a run of n free chunks may start, n 1 to 4. */
static inline uint64_t wh_run_starts_few(uint64_t free, unsigned n)
{
	uint64_t pairs = free & free >> 1;
	if (n == 1)
		return free;
	if (n == 2)
		return pairs & UINT64_C(0x5555555555555555);
	return pairs & (n == 3 ? free : pairs) >> 2 & UINT64_C(0x1111111111111111);
}

/* The same for longer ones. */
uint64_t wh_run_starts_long(uint64_t free, unsigned n);

static inline uint64_t wh_run_starts(uint64_t free, unsigned n)
{
	return n <= 4 ? wh_run_starts_few(free, n) : wh_run_starts_long(free, n);
}

/* How many runs of n fit side by side into the free chunks of a word. */
static inline unsigned wh_run_count(uint64_t free, unsigned n) { return wh_bits_count(wh_run_starts(free, n)); }

/*
 * Claims the lowest run of n of a word. Lock-free, any thread; acquire: what its last holder wrote happened before.
 * The first look is sequentially consistent with wh_word_free: a waiter that finds nothing is seen by whoever frees
 * next. The first bit, or -1: no room.
 */
static inline int wh_word_claim(_Atomic uint64_t *word, unsigned n)
{
	uint64_t free = atomic_load_explicit(word, memory_order_seq_cst), starts;
	while ((starts = wh_run_starts(free, n))) {
		int first = __builtin_ctzll(starts);
		if (atomic_compare_exchange_weak_explicit(word, &free, free & ~(wh_run_bits(n) << first),
				memory_order_acquire, memory_order_relaxed))
			return first;
	}
	return -1;
}

/* Claims every free chunk of a word. */
static inline uint64_t wh_word_take(_Atomic uint64_t *word)
{
	if (!atomic_load_explicit(word, memory_order_relaxed))
		return 0;
	return atomic_exchange_explicit(word, 0, memory_order_acquire);
}

/* Claims a word of which every chunk is free, or nothing. */
static inline bool wh_word_take_all(_Atomic uint64_t *word, uint64_t all)
{
	return atomic_compare_exchange_strong_explicit(word, &all, 0, memory_order_acq_rel, memory_order_relaxed);
}

/* Sequentially consistent: whoever frees looks for waiters next, whoever waits looks at the words next. */
static inline void wh_word_free(_Atomic uint64_t *word, uint64_t bits)
{
	uint64_t old = atomic_fetch_or_explicit(word, bits, memory_order_seq_cst);
	wh_assert_full(!(old & bits));
	(void)old;
}

#endif
