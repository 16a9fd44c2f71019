/* SPDX-License-Identifier: MIT */
/* The doctor asks: on which CPUs do two peers run, and how far are those from each other? */
#include "doctor.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of the last level of cache that the kernel tells of. False: it tells nothing. */
static bool shared_cache(int cpu, char *ret_cpus, size_t size)
{
	char path[96];

	for (int level = 4; level >= 0; level--) {
		snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/cache/index%d/shared_cpu_list", cpu, level);
		if (doctor_read_line(path, ret_cpus, size))
			return true;
	}
	return false;
}

static void look_at_topology(struct doctor_findings *all)
{
	enum { GROUPS = 256 };
	static char groups[GROUPS][128];
	int n_cpus = 0, n_groups = 0, in_first = 0, first_cpu = -1;
	struct doctor_finding *f;
	char shared[128];
	cpu_set_t set;

	CPU_ZERO(&set);
	if (sched_getaffinity(0, sizeof(set), &set) < 0)
		return;
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		int g = 0;

		if (!CPU_ISSET((size_t)cpu, &set))
			continue;
		n_cpus++;
		if (first_cpu < 0)
			first_cpu = cpu;
		if (!shared_cache(cpu, shared, sizeof(shared)))
			continue;
		while (g < n_groups && strcmp(groups[g], shared) != 0)
			g++;
		if (g == n_groups && n_groups < GROUPS)
			memcpy(groups[n_groups++], shared, sizeof(shared));
		in_first += g == 0;
	}
	f = doctor_find(all, "cpus", "%d to run on, %d with a last-level cache in common", n_cpus,
		n_groups > 1 ? in_first : n_cpus);
	if (n_cpus == 1) {
		doctor_costs(f, DOCTOR_COSTS, "two peers take turns on CPU %d: each message waits for a switch", first_cpu);
		doctor_mend(f, "taskset -pc 0-63 $$");
	} else if (n_groups > 1 && in_first > 1) {
		doctor_costs(f, DOCTOR_COSTS, "what peers write and read crosses between %d caches, at several times the price",
			n_groups);
		doctor_mend(f, "taskset -pc %s $$", groups[0]);
	} else if (n_groups > 1) {
		doctor_costs(f, DOCTOR_COSTS, "no two CPUs share a last-level cache: each line crosses between packages");
	}
}

static void look_at_quota(struct doctor_findings *all)
{
	unsigned long long quota_us, period_us;
	char line[64], path[640];
	struct doctor_finding *f;

	if (!doctor_read_cgroup("cpu.max", line, sizeof(line)) || sscanf(line, "%llu %llu", &quota_us, &period_us) != 2) {
		doctor_find(all, "cpu_quota", "none");
		return;
	}
	f = doctor_find(all, "cpu_quota", "%llu of each %llu us", quota_us, period_us);
	if (period_us && quota_us < 2 * period_us) {
		doctor_cgroup_path("cpu.max", path, sizeof(path));
		doctor_costs(f, DOCTOR_COSTS, "less than two CPUs: peers stop for the rest of a period when it is used up");
		doctor_mend(f, "echo max >%s", path);
	}
}

void doctor_look_at_cpus(struct doctor_findings *all)
{
	look_at_topology(all);
	look_at_quota(all);
}
