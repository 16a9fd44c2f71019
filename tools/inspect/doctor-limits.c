/* SPDX-License-Identifier: MIT */
/* The doctor asks: how much may wait in a socket, how many descriptors are there, and may others be looked at? */
#include "doctor.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
	WANTED_SNDBUF = 1 << 20, /* what each port asks for; the kernel counts twice as much */
	PORTS_EXPECTED = 1000,
};

static void look_at_sockets(struct doctor_findings *all)
{
	int fds[2], want = WANTED_SNDBUF, granted = 0;
	socklen_t size = sizeof(granted);
	struct doctor_finding *f;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0) {
		f = doctor_find(all, "socket", "refused");
		doctor_costs(f, DOCTOR_BROKEN, "%s: no SOCK_SEQPACKET socket of AF_UNIX", strerrorname_np(errno));
		if (errno == EMFILE)
			doctor_mend(f, "ulimit -n 4096");
		return;
	}
	setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &want, sizeof(want));
	getsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &granted, &size);
	close(fds[0]);
	close(fds[1]);
	f = doctor_find(all, "socket", "send buffers of %d KiB", granted >> 10);
	if (granted < 2 * WANTED_SNDBUF) {
		doctor_costs(f, DOCTOR_COSTS, "fewer or smaller frames on their way: more system calls and wake-ups per message");
		doctor_mend(f, "sysctl -w net.core.wmem_max=%d", WANTED_SNDBUF);
	}
}

static void look_at_backlog(struct doctor_findings *all)
{
	struct doctor_finding *f;
	char text[32];

	if (!doctor_read_line("/proc/sys/net/core/somaxconn", text, sizeof(text)))
		return;
	f = doctor_find(all, "backlog", "%s connections may wait for a listener", text);
	if (atoi(text) < 128) {
		doctor_costs(f, DOCTOR_COSTS, "less than a listener's default of 128: crowds get -EBUSY");
		doctor_mend(f, "sysctl -w net.core.somaxconn=4096");
	}
}

static void look_at_descriptors(struct doctor_findings *all)
{
	struct doctor_finding *f;
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	f = doctor_find(all, "descriptors", "%llu, at most %llu", (unsigned long long)limit.rlim_cur,
		(unsigned long long)limit.rlim_max);
	if (limit.rlim_cur < 2 * PORTS_EXPECTED) {
		doctor_costs(f, limit.rlim_cur < 64 ? DOCTOR_COSTS : DOCTOR_OFF,
			"a port takes one, each segment two, and it also limits those in flight: some %llu ports",
			(unsigned long long)limit.rlim_cur * 3 / 4);
		doctor_mend(f, "ulimit -n %llu", (unsigned long long)(limit.rlim_max == RLIM_INFINITY ? 65536 : limit.rlim_max));
	}
}

static void look_at_proc(struct doctor_findings *all)
{
	struct doctor_finding *f = doctor_find(all, "inspection", "processes of %s can be looked at",
		geteuid() ? "this user" : "all users");

	if (access("/proc/1", F_OK) < 0) {
		doctor_costs(f, DOCTOR_OFF, "/proc hides the others: wharf-inspect list is silent about them");
		doctor_mend(f, "mount -o remount,hidepid=0 /proc");
	}
}

void doctor_look_at_limits(struct doctor_findings *all)
{
	look_at_sockets(all);
	look_at_backlog(all);
	look_at_descriptors(all);
	look_at_proc(all);
}
