/* SPDX-License-Identifier: MIT */
/*
 * Touching payloads: what every transport's sender writes and every receiver reads.
 *
 * The first word is the message's sequence number. With TOUCH_FULL each other byte is that number's low byte, and the
 * whole is written and summed; with TOUCH_FIRST nothing behind the first word is. Sizes are multiples of 8.
 */
#ifndef BENCH_TOUCH_H
#define BENCH_TOUCH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum touch {
	TOUCH_FULL,
	TOUCH_FIRST,
};

/* The sum of size / 8 words. */
uint64_t touch_sum(const void *payload, size_t size);

/* What touch_read of messages 0 to n - 1 adds up to. */
uint64_t touch_expected(enum touch touch, size_t size, uint64_t n);

static inline void touch_write(enum touch touch, void *payload, size_t size, uint64_t seq)
{
	if (touch == TOUCH_FULL)
		memset(payload, (int)(uint8_t)seq, size);
	memcpy(payload, &seq, sizeof seq);
}

static inline uint64_t touch_read(enum touch touch, const void *payload, size_t size)
{
	return touch_sum(payload, touch == TOUCH_FULL ? size : sizeof(uint64_t));
}

static inline uint64_t touch_seq(const void *payload)
{
	uint64_t seq;

	memcpy(&seq, payload, sizeof seq);
	return seq;
}

#endif
