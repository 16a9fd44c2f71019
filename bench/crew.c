/* SPDX-License-Identifier: MIT */
/* A crew: starting its members, waiting for all of them, and telling why one failed. */
#include "crew.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "process.h"

enum { ALONE_MS = 500 }; /* what is left to the others when one has failed */

void crew_report(const struct crew *crew, const char *who, const char *text)
{
	fprintf(stderr, "wharf-bench: %s: %s: %s\n", crew->what, who, text);
}

pid_t crew_fork(struct crew *crew, const char *name, int cpu, struct outcome *outcome)
{
	struct crew_member *member = &crew->members[crew->n];
	pid_t pid;

	if (crew->n == CREW_MAX)
		return -E2BIG;
	pid = process_fork(cpu);
	if (pid <= 0)
		return pid;
	*member = (struct crew_member){ .name = name, .outcome = outcome, .pid = pid };
	crew->n++;
	member->pidfd = pidfd_open(pid, 0);
	return member->pidfd < 0 ? -errno : pid;
}

void crew_leave(struct outcome *outcome, int error)
{
	outcome->done = error == 0 && !outcome->error[0];
	_exit(outcome->done ? 0 : 1);
}

static bool failed(const struct crew_member *member)
{
	return member->status != 0 || !member->outcome->done;
}

static void reap(struct crew_member *member)
{
	while (waitpid(member->pid, &member->status, 0) < 0 && errno == EINTR)
		;
	member->pid = 0;
}

/* When several failed, one did first, or was killed (not by us): the others because of it. */
static void tell_cause(const struct crew *crew)
{
	const struct crew_member *cause = &crew->members[0];
	uint64_t first_ns = UINT64_MAX;
	char text[64] = "ended without a word";

	for (size_t i = 0; i < crew->n; i++) {
		const struct crew_member *member = &crew->members[i];
		uint64_t failed_ns = member->outcome->error[0] ? member->outcome->error_ns : 0;

		if (failed(member) && !member->killed && failed_ns < first_ns) {
			first_ns = failed_ns;
			cause = member;
		}
	}
	if (WIFSIGNALED(cause->status))
		snprintf(text, sizeof text, "killed by signal %d (%s)", WTERMSIG(cause->status),
			strsignal(WTERMSIG(cause->status)));
	crew_report(crew, cause->name, cause->outcome->error[0] ? cause->outcome->error : text);
}

static void kill_rest(struct crew *crew)
{
	for (size_t i = 0; i < crew->n; i++) {
		if (crew->members[i].pid) {
			crew->members[i].killed = true;
			kill(crew->members[i].pid, SIGKILL);
		}
	}
}

int crew_wait(struct crew *crew, int timeout_ms)
{
	size_t left = crew->n;
	bool alone = false;

	while (left) {
		struct pollfd polls[CREW_MAX];
		int n;

		for (size_t i = 0; i < crew->n; i++)
			polls[i] = (struct pollfd){ .fd = crew->members[i].pid ? crew->members[i].pidfd : -1,
				.events = POLLIN };
		n = poll(polls, crew->n, alone ? ALONE_MS : timeout_ms);
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n == 0 && !alone) {
			crew_report(crew, "all of them", "they take too long");
			return -EIO;
		}
		if (n == 0)
			kill_rest(crew);
		for (size_t i = 0; n > 0 && i < crew->n; i++) {
			if (polls[i].revents) {
				reap(&crew->members[i]);
				left--;
				alone |= failed(&crew->members[i]);
			}
		}
	}
	for (size_t i = 0; i < crew->n; i++) {
		if (failed(&crew->members[i])) {
			tell_cause(crew);
			return -EIO;
		}
	}
	return 0;
}

void crew_fini(struct crew *crew)
{
	kill_rest(crew);
	for (size_t i = 0; i < crew->n; i++) {
		if (crew->members[i].pid)
			reap(&crew->members[i]);
		if (crew->members[i].pidfd >= 0)
			close(crew->members[i].pidfd);
	}
	crew->n = 0;
}
