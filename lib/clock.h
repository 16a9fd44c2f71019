/* SPDX-License-Identifier: MIT */
/* A clock of the kernel's, in nanoseconds. */
#ifndef WH_CLOCK_H
#define WH_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t wh_clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

#endif
