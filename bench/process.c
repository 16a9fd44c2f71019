/* SPDX-License-Identifier: MIT */
/* Processes: pinning and forking. */
#include "process.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>

int process_cpus(int ret_cpus[2])
{
	cpu_set_t set;
	int cpus[2], n = 0;

	if (sched_getaffinity(0, sizeof set, &set) < 0)
		return -errno;
	for (int cpu = 0; cpu < CPU_SETSIZE && n < 2; cpu++)
		if (CPU_ISSET((size_t)cpu, &set))
			cpus[n++] = cpu;
	if (n < 2)
		return -ENODEV;
	ret_cpus[0] = cpus[0];
	ret_cpus[1] = cpus[1];
	return 0;
}

int process_pin(int cpu)
{
	cpu_set_t set;

	if (cpu < 0 || cpu >= CPU_SETSIZE)
		return -EINVAL;
	CPU_ZERO(&set);
	CPU_SET((size_t)cpu, &set);
	return sched_setaffinity(0, sizeof set, &set) < 0 ? -errno : 0;
}

pid_t process_fork(int cpu)
{
	pid_t parent = getpid(), child;

	/* What waits in stdio would be written by both. */
	fflush(NULL);
	child = fork();
	if (child < 0)
		return -errno;
	if (child > 0)
		return child;
	/* The parent may have died before the request took effect: then nobody will send the signal. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent)
		_exit(1);
	if (process_pin(cpu) < 0)
		_exit(1);
	return 0;
}
