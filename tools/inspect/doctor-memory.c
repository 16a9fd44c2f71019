/* SPDX-License-Identifier: MIT */
/* The doctor asks: can memory be shared and sealed here, in which pages, and how much of it? */
#include "doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "compat.h"

enum { SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE };

static void look_at_memfd(struct doctor_findings *all)
{
	int plain, noexec, seals = 0;
	struct doctor_finding *f;
	char policy[16] = "0";

	noexec = memfd_create("wharf-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
	plain = noexec >= 0 ? noexec : memfd_create("wharf-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (plain < 0) {
		f = doctor_find(all, "memfd", "refused");
		doctor_costs(f, DOCTOR_BROKEN, "%s: no memory can be shared with a peer", strerrorname_np(errno));
		if (doctor_read_line("/proc/sys/vm/memfd_noexec", policy, sizeof(policy)) && policy[0] == '2')
			doctor_mend(f, "sysctl -w vm.memfd_noexec=1");
		else if (errno == EMFILE)
			doctor_mend(f, "ulimit -n 4096");
		return;
	}
	if (ftruncate(plain, 4096) == 0 && fcntl(plain, F_ADD_SEALS, SEALS) == 0)
		seals = fcntl(plain, F_GET_SEALS);
	f = doctor_find(all, "memfd", "sealed against %s%s",
		seals & F_SEAL_SHRINK ? "shrinking, growing, later writers" : "nothing", noexec >= 0 ? ", execution" : "");
	if ((seals & SEALS) != SEALS) {
		doctor_costs(f, DOCTOR_BROKEN, "seals are refused (F_SEAL_FUTURE_WRITE is of Linux 5.1): no peer would map it");
		doctor_mend(f, "apt-get install linux-image-amd64 # 6.1 or newer");
	}
	close(plain);
}

static void look_at_huge_pages(struct doctor_findings *all)
{
	long long n = doctor_read_key("/proc/meminfo", "HugePages_Total");
	long long n_free = doctor_read_key("/proc/meminfo", "HugePages_Free");
	long long kib = doctor_read_key("/proc/meminfo", "Hugepagesize");
	struct doctor_finding *f;

	if (n < 0) {
		doctor_find(all, "huge_pages", "this kernel has none");
		return;
	}
	f = doctor_find(all, "huge_pages", "%lld of %lld free, %lld KiB each", n_free, n, kib);
	if (n_free < 1) {
		doctor_costs(f, DOCTOR_OFF, "pools with WHARF_HUGE get small pages, as without");
		doctor_mend(f, "sysctl -w vm.nr_hugepages=%lld", n + 64);
	}
}

static void look_at_room(struct doctor_findings *all)
{
	enum { SMALL = 128 << 20 };
	char limit[64], path[640];
	struct doctor_finding *f;
	unsigned long long bytes;

	if (!doctor_read_cgroup("memory.max", limit, sizeof(limit)) || !strcmp(limit, "max")) {
		doctor_find(all, "memory", "%lld MiB available, no limit of a control group",
			doctor_read_key("/proc/meminfo", "MemAvailable") / 1024);
		return;
	}
	bytes = strtoull(limit, NULL, 10);
	f = doctor_find(all, "memory", "the control group may have %llu MiB, shared memory included", bytes >> 20);
	if (bytes < SMALL) {
		doctor_cgroup_path("memory.max", path, sizeof(path));
		doctor_costs(f, DOCTOR_COSTS, "two pools of the default size (64 MiB) are more than that: -ENOMEM, or worse");
		doctor_mend(f, "echo 512M >%s", path);
	}
}

void doctor_look_at_memory(struct doctor_findings *all)
{
	look_at_memfd(all);
	look_at_huge_pages(all);
	look_at_room(all);
}
