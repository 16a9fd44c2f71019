/* SPDX-License-Identifier: MIT */
/* Until when a thread sleeps that is not a loop's. */
#ifndef WH_SLEEP_H
#define WH_SLEEP_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/* By CLOCK_MONOTONIC. False: for ever. */
static inline bool wh_sleep_until(int64_t timeout_ns, struct timespec *ret_deadline)
{
	if (timeout_ns < 0)
		return false;
	clock_gettime(CLOCK_MONOTONIC, ret_deadline);
	ret_deadline->tv_sec += timeout_ns / 1000000000;
	ret_deadline->tv_nsec += timeout_ns % 1000000000;
	if (ret_deadline->tv_nsec >= 1000000000) {
		ret_deadline->tv_nsec -= 1000000000;
		ret_deadline->tv_sec++;
	}
	return true;
}

#endif
