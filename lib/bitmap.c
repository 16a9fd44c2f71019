/* SPDX-License-Identifier: MIT */
/* Runs longer than the usual four chunks. */
#include "bitmap.h"

uint64_t wh_run_starts_long(uint64_t free, unsigned n)
{
	/* aligned[k]: multiples of 1 << k. */
	static const uint64_t aligned[] = {
		UINT64_C(0xffffffffffffffff), UINT64_C(0x5555555555555555), UINT64_C(0x1111111111111111),
		UINT64_C(0x0101010101010101), UINT64_C(0x0001000100010001), UINT64_C(0x0000000100000001), 1,
	};
	if (n == 0 || n > WH_WORD_CHUNKS)
		return 0;
	uint64_t starts = free;
	for (unsigned have = 1; have < n;) {
		unsigned more = have <= n - have ? have : n - have;
		starts &= starts >> more;
		have += more;
	}
	return starts & aligned[__builtin_ctz(wh_run_align(n))];
}
