/* SPDX-License-Identifier: MIT */
/* The probe: how far two CPUs are from each other, as the round trip of one cache line. */
#ifndef BENCH_PROBE_H
#define BENCH_PROBE_H

/*
 * The median round trip between the caller's CPU and the other one.
 * 0; -ETIME: they hardly ever run at the same time; another negative errno.
 */
int probe_rtt(int peer_cpu, double *ret_rtt_ns);

#endif
