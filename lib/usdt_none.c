/* SPDX-License-Identifier: MIT */
/* Probes, where there is no sys/sdt.h: none. */
#include "trace.h"

_Alignas(64) union wh_watched wh_watched;

void wh_probe(enum wh_stats_event kind, uint64_t loop, uint64_t port, uint64_t a, uint64_t b)
{
	(void)kind, (void)loop, (void)port, (void)a, (void)b;
}
