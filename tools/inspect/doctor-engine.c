/* SPDX-License-Identifier: MIT */
/* The doctor asks: which engine would a loop get here, and if not the best one, who stands in the way? */
#include "doctor.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "wharf.h"

static int try_engine(uint32_t engine, char *ret_name, size_t size)
{
	wharf_loop *loop;
	int error = wharf_loop_new(WHARF_OPT(loop, .engine = engine), &loop);

	if (error)
		return error;
	snprintf(ret_name, size, "%s", wharf_loop_engine(loop));
	wharf_loop_free(loop);
	return 0;
}

static bool filtered(void) { return doctor_read_key("/proc/self/status", "Seccomp") > 0; }

static void blame_filter(struct doctor_finding *f, const char *error)
{
	doctor_costs(
		f, DOCTOR_COSTS, "%s: a seccomp filter, as container runtimes bring one, refuses it: epoll instead", error);
	doctor_mend(f, "docker run --security-opt seccomp=unconfined # or its profile with `doctor --policy --json' in it");
}

static void blame_eperm(struct doctor_finding *f, const char *error)
{
	char disabled[32] = "0";

	doctor_read_line("/proc/sys/kernel/io_uring_disabled", disabled, sizeof(disabled));
	if (!strcmp(disabled, "2")) {
		doctor_costs(f, DOCTOR_COSTS, "%s: io_uring is switched off on this machine: epoll instead", error);
		doctor_mend(f, "sysctl -w kernel.io_uring_disabled=0");
	} else if (!strcmp(disabled, "1")) {
		doctor_costs(f, DOCTOR_COSTS, "%s: io_uring is kept for one group here: epoll instead", error);
		doctor_mend(f, "sysctl -w kernel.io_uring_group=%u", (unsigned)getegid());
	} else if (filtered()) {
		blame_filter(f, error);
	} else {
		doctor_costs(f, DOCTOR_COSTS, "%s: a security module refuses io_uring: epoll instead", error);
		doctor_mend(f, "ausearch -m avc -ts recent");
	}
}

static void look_at_uring(struct doctor_findings *all)
{
	struct doctor_finding *f;
	char name[256] = "";
	int error = try_engine(WHARF_ENGINE_URING, name, sizeof(name));
	const char *word = error ? strerrorname_np(-error) : "";

	f = doctor_find(all, "io_uring", "%s%s", error ? "refused" : "to be had: ", name);
	switch (-error) {
	case 0:
		break;
	case EPERM:
	case EACCES:
		blame_eperm(f, word);
		break;
	case ENOSYS:
		if (filtered()) {
			blame_filter(f, word);
			break;
		}
		doctor_costs(f, DOCTOR_COSTS, "%s: this kernel has no io_uring: epoll instead", word);
		doctor_mend(f, "apt-get install linux-image-amd64 # 6.1 or newer");
		break;
	case ENOMEM:
		doctor_costs(f, DOCTOR_COSTS, "%s: the memory lock limit leaves no room for a ring: epoll instead", word);
		doctor_mend(f, "prlimit --memlock=unlimited --pid %d", (int)getppid());
		break;
	default:
		doctor_costs(f, DOCTOR_COSTS, "%s: %s: epoll instead", word, strerrordesc_np(-error));
		break;
	}
}

static void look_at_choice(struct doctor_findings *all)
{
	struct doctor_finding *f;
	char name[256] = "";
	const char *wish = getenv("WHARF_ENGINE");
	int error = try_engine(WHARF_ENGINE_AUTO, name, sizeof(name));

	f = doctor_find(all, "engine", "%s", error ? "none" : name);
	if (error == -EINVAL && wish) {
		doctor_costs(f, DOCTOR_BROKEN, "WHARF_ENGINE=%s names no engine: no loop can be made", wish);
		doctor_mend(f, "unset WHARF_ENGINE");
	} else if (error) {
		doctor_costs(f, DOCTOR_BROKEN, "no loop can be made: %s", strerrordesc_np(-error));
		if (error == -EMFILE)
			doctor_mend(f, "ulimit -n 4096");
	} else if (wish && *wish && strcmp(wish, "auto")) {
		doctor_costs(f, DOCTOR_COSTS, "WHARF_ENGINE=%s decides, not what is best here", wish);
		doctor_mend(f, "unset WHARF_ENGINE");
	}
}

static void look_at_kernel(struct doctor_findings *all)
{
	unsigned major = 0, minor = 0;
	struct doctor_finding *f;
	struct utsname name;

	if (uname(&name) < 0 || sscanf(name.release, "%u.%u", &major, &minor) != 2)
		snprintf(name.release, sizeof(name.release), "unknown");
	f = doctor_find(all, "kernel", "Linux %s", name.release);
	if (major > 6 || (major == 6 && minor >= 1))
		return;
	if (major < 5 || (major == 5 && minor < 1))
		doctor_costs(f, DOCTOR_BROKEN, "older than 5.1: memory cannot be sealed against a peer");
	else if (major == 5 && minor < 19)
		doctor_costs(f, DOCTOR_COSTS, "older than 5.19: io_uring lacks what wharf needs of it, epoll instead");
	else
		doctor_costs(f, DOCTOR_COSTS, "older than 6.1: io_uring goes down its ladder, more system calls a message");
	doctor_mend(f, "apt-get install linux-image-amd64 # 6.1 or newer");
}

static void look_at_memlock(struct doctor_findings *all)
{
	enum { A_RING = 64 << 10 };
	struct doctor_finding *f;
	struct rlimit limit;
	char text[32];

	if (getrlimit(RLIMIT_MEMLOCK, &limit) < 0)
		return;
	snprintf(text, sizeof(text), "%llu bytes", (unsigned long long)limit.rlim_cur);
	f = doctor_find(all, "memlock", "%s", limit.rlim_cur == RLIM_INFINITY ? "unlimited" : text);
	/* Where it is charged, it is per user, and for all rings of that user. */
	if (limit.rlim_cur < 4 * A_RING && geteuid()) {
		doctor_costs(f, DOCTOR_COSTS, "kernels to 5.11 and from 6.14 charge a user's rings to it: few loops get one");
		doctor_mend(f, "ulimit -l 8192");
	}
}

void doctor_look_at_engine(struct doctor_findings *all)
{
	look_at_kernel(all);
	look_at_choice(all);
	look_at_uring(all);
	look_at_memlock(all);
}
