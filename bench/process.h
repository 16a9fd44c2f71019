/* SPDX-License-Identifier: MIT */
/* Processes: pinned children that never outlive their parent. */
#ifndef BENCH_PROCESS_H
#define BENCH_PROCESS_H

#include <sys/types.h>

/* The first two CPUs that this process may use. 0; -ENODEV: it has fewer. */
int process_cpus(int ret_cpus[2]);

/* 0; -EINVAL: no such CPU, or not ours. */
int process_pin(int cpu);

/* fork; the child is pinned and dies with its parent. Negative errno, 0 in the child, its id in the parent. */
pid_t process_fork(int cpu);

#endif
