/* SPDX-License-Identifier: MIT */
/* Touching payloads: the sum, and what it has to be. */
#include "touch.h"

typedef uint64_t vector __attribute__((vector_size(32)));

/* Four vectors in flight: a plain loop would measure its own additions instead of the data path. */
static inline __attribute__((always_inline)) uint64_t sum_words(const char *payload, size_t size)
{
	vector sum[4] = { { 0 } }, all, v;
	uint64_t total, word;
	size_t i = 0;

	for (; i + sizeof sum <= size; i += sizeof sum) {
		for (size_t k = 0; k < 4; k++) {
			memcpy(&v, payload + i + k * sizeof v, sizeof v);
			sum[k] += v;
		}
	}
	all = sum[0] + sum[1] + sum[2] + sum[3];
	total = all[0] + all[1] + all[2] + all[3];
	for (; i < size; i += sizeof word) {
		memcpy(&word, payload + i, sizeof word);
		total += word;
	}
	return total;
}

#ifdef __x86_64__
__attribute__((target("avx2"))) static uint64_t sum_avx2(const char *payload, size_t size)
{
	return sum_words(payload, size);
}
#endif

static uint64_t sum_any(const char *payload, size_t size)
{
	return sum_words(payload, size);
}

uint64_t touch_sum(const void *payload, size_t size)
{
#ifdef __x86_64__
	if (__builtin_cpu_supports("avx2"))
		return sum_avx2(payload, size);
#endif
	return sum_any(payload, size);
}

/* 0 + 1 + ... + (n - 1), modulo 2^64: the even factor is halved before it can overflow. */
static uint64_t sum_below(uint64_t n)
{
	if (!n)
		return 0;
	return n % 2 ? (n - 1) / 2 * n : n / 2 * (n - 1);
}

uint64_t touch_expected(enum touch touch, size_t size, uint64_t n)
{
	uint64_t low_bytes = n / 256 * sum_below(256) + sum_below(n % 256), words = size / sizeof(uint64_t);

	if (touch == TOUCH_FIRST)
		return sum_below(n);
	return sum_below(n) + (words - 1) * 0x0101010101010101u * low_bytes;
}
