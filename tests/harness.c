/* SPDX-License-Identifier: MIT */
/* Helpers of end-to-end tests. Whatever fails in here ends the test at once: there is nothing to recover. */
#include "harness.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static _Noreturn void broken(const char *what)
{
	fprintf(stderr, "harness: %s: %s\n", what, strerror(errno));
	abort();
}

/* ---- Leaks ---------------------------------------------------------------------------------------------------- */

enum { HELD_NAME_MAX = 120 };

struct harness_held {
	int fd;         /* -1: a mapping */
	uint64_t bytes; /* of a mapping, all its lines together */
	char name[HELD_NAME_MAX];
};

static struct harness_held *held_add(struct harness_snapshot *s, int fd, const char *name)
{
	struct harness_held *grown = reallocarray(s->held, s->n_held + 1, sizeof *grown);
	if (!grown)
		broken("no memory for a snapshot");
	s->held = grown;
	struct harness_held *h = &grown[s->n_held++];
	*h = (struct harness_held){ .fd = fd };
	snprintf(h->name, sizeof h->name, "%s", name);
	return h;
}

static const struct harness_held *held_find(const struct harness_snapshot *s, int fd, const char *name)
{
	for (size_t i = 0; i < s->n_held; i++)
		if (s->held[i].fd == fd && !strcmp(s->held[i].name, name))
			return &s->held[i];
	return NULL;
}

static void take_fds(struct harness_snapshot *s)
{
	DIR *dir = opendir("/proc/self/fd");
	if (!dir)
		broken("/proc/self/fd");

	for (struct dirent *entry; (entry = readdir(dir));) {
		char path[300], target[HELD_NAME_MAX];
		int fd = atoi(entry->d_name);
		if (entry->d_name[0] == '.' || fd == dirfd(dir))
			continue;
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		ssize_t n = readlink(path, target, sizeof target - 1);
		if (n < 0)
			continue; /* closed by another thread meanwhile */
		target[n] = '\0';
		held_add(s, fd, target);
	}
	closedir(dir);
}

/* Splits a line of /proc/self/maps. False: a mapping without a name. */
static bool map_line(char *line, uint64_t *ret_bytes, const char **ret_inode, const char **ret_name)
{
	uint64_t first, end;
	int inode = 0, name = 0;
	line[strcspn(line, "\n")] = '\0';
	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %*s %*s %*s %n%*s %n", &first, &end, &inode, &name) < 2 || !name || !line[name])
		return false;
	*ret_bytes = end - first;
	*ret_inode = line + inode;
	*ret_name = line + name;
	return true;
}

static void take_maps(struct harness_snapshot *s)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	if (!maps)
		broken("/proc/self/maps");

	for (char line[4400]; fgets(line, sizeof line, maps);) {
		uint64_t bytes;
		const char *inode, *name;
		if (!map_line(line, &bytes, &inode, &name))
			continue;
		/* Not the program's own files, which the loader may map in pieces at any time. */
		if (strncmp(name, "/memfd:", 7) && !strstr(name, "io_uring") && strncmp(name, "[anon:wharf", 11))
			continue;
		char key[HELD_NAME_MAX];
		snprintf(key, sizeof key, "%.80s inode %.20s", name, inode);
		struct harness_held *h = (struct harness_held *)held_find(s, -1, key);
		if (!h)
			h = held_add(s, -1, key);
		h->bytes += bytes;
	}
	fclose(maps);
}

void harness_snapshot_take(struct harness_snapshot *ret_snapshot)
{
	*ret_snapshot = (struct harness_snapshot){ 0 };
	take_maps(ret_snapshot);
	take_fds(ret_snapshot);
}

void harness_snapshot_free(struct harness_snapshot *snapshot)
{
	free(snapshot->held);
	*snapshot = (struct harness_snapshot){ 0 };
}

static void tell(char *text, size_t size, const char *what, const struct harness_held *h, uint64_t bytes)
{
	size_t used = strlen(text);
	if (h->fd >= 0)
		snprintf(text + used, size - used, "%s descriptor %d: %s\n", what, h->fd, h->name);
	else
		snprintf(text + used, size - used, "%s mapping of %" PRIu64 " bytes: %s\n", what, bytes, h->name);
}

const char *harness_snapshot_diff(struct harness_snapshot *before)
{
	static _Thread_local char text[4096];
	struct harness_snapshot after;
	harness_snapshot_take(&after);
	text[0] = '\0';

	for (size_t i = 0; i < after.n_held; i++) {
		const struct harness_held *now = &after.held[i], *then = held_find(before, now->fd, now->name);
		uint64_t bytes = then ? then->bytes : 0;
		if (!then || now->bytes > bytes)
			tell(text, sizeof text, "leaked", now, now->bytes - bytes);
	}
	for (size_t i = 0; i < before->n_held; i++) {
		const struct harness_held *then = &before->held[i], *now = held_find(&after, then->fd, then->name);
		uint64_t bytes = now ? now->bytes : 0;
		if (!now || then->bytes > bytes)
			tell(text, sizeof text, "lost", then, then->bytes - bytes);
	}

	harness_snapshot_free(before);
	harness_snapshot_free(&after);
	return text[0] ? text : NULL;
}

size_t harness_count_fds(void)
{
	struct harness_snapshot s = { 0 };
	take_fds(&s);
	size_t n = s.n_held;
	harness_snapshot_free(&s);
	return n;
}

size_t harness_count_maps(const char *name)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	if (!maps)
		broken("/proc/self/maps");
	size_t n = 0;
	for (char line[4400]; fgets(line, sizeof line, maps);) {
		uint64_t bytes;
		const char *inode, *found;
		n += map_line(line, &bytes, &inode, &found) && strstr(found, name);
	}
	fclose(maps);
	return n;
}

static void limit_fds(rlim_t most)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		broken("RLIMIT_NOFILE");
	limit.rlim_cur = most < limit.rlim_max ? most : limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit))
		broken("RLIMIT_NOFILE");
}

bool harness_raise_fds(unsigned n)
{
	struct rlimit limit;

	limit_fds(RLIM_INFINITY);
	return !getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur >= n;
}

void harness_limit_fds(unsigned more)
{
	int lowest_free;

	harness_unlimit_fds();
	lowest_free = dup(STDERR_FILENO);
	if (lowest_free < 0)
		broken("dup");
	close(lowest_free);
	limit_fds((rlim_t)lowest_free + more);
}

void harness_unlimit_fds(void) { limit_fds(RLIM_INFINITY); }

/* ---- Children ------------------------------------------------------------------------------------------------- */

void harness_engine_of(bool peer)
{
	static bool kept;
	static char own[32];
	const char *others = getenv("WHARF_TEST_PEER_ENGINE");

	if (!others)
		return;
	if (!kept)
		snprintf(own, sizeof own, "%s", getenv("WHARF_ENGINE") ? getenv("WHARF_ENGINE") : "auto");
	kept = true;
	setenv("WHARF_ENGINE", peer ? others : own, 1);
}

void harness_child_start(struct harness_child *ret_child, int (*run)(void *arg), void *arg)
{
	fflush(NULL); /* or the child prints what we had buffered once more */
	pid_t parent = getpid(), pid = fork();
	if (pid < 0)
		broken("fork");
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(HARNESS_FAILED);
		harness_engine_of(true);
		int code = run(arg);
		fflush(NULL);
		_exit(code);
	}

	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		broken("pidfd_open");
	*ret_child = (struct harness_child){ .pid = pid, .pidfd = pidfd };
}

static int reap(struct harness_child *child)
{
	int status;
	while (waitpid(child->pid, &status, 0) < 0)
		if (errno != EINTR)
			broken("waitpid");
	close(child->pidfd);
	*child = (struct harness_child){ .pidfd = -1 };
	return WIFSIGNALED(status) ? 256 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int harness_child_wait(struct harness_child *child, int timeout_ms)
{
	struct pollfd ended = { .fd = child->pidfd, .events = POLLIN };
	int64_t until = now_ms() + timeout_ms;
	int n;
	do {
		int64_t left = until - now_ms();
		n = poll(&ended, 1, left > 0 ? (int)left : 0);
	} while (n < 0 && errno == EINTR);
	if (n > 0)
		return reap(child);

	fprintf(stderr, "harness: child %d is not done after %d ms: killed\n", child->pid, timeout_ms);
	harness_child_end(child);
	return -ETIMEDOUT;
}

void harness_child_signal(const struct harness_child *child, int signal)
{
	if (child->pid > 0 && kill(child->pid, signal) < 0)
		broken("kill");
}

void harness_child_end(struct harness_child *child)
{
	if (child->pid <= 0)
		return;
	harness_child_signal(child, SIGKILL);
	reap(child);
}

int harness_run(int (*run)(void *arg), void *arg, int timeout_ms)
{
	struct harness_child child;
	harness_child_start(&child, run, arg);
	return harness_child_wait(&child, timeout_ms);
}

_Noreturn void harness_failed(const char *expression, const char *file, int line)
{
	fprintf(stderr, "%s:%d: child %d: failed: %s\n", file, line, getpid(), expression);
	fflush(NULL);
	_exit(HARNESS_FAILED);
}

/* ---- Random numbers ------------------------------------------------------------------------------------------- */

uint64_t harness_seed(void)
{
	static atomic_bool told;
	const char *text = getenv("WHARF_TEST_SEED");
	uint64_t seed = text && *text ? strtoull(text, NULL, 0) : 0x77686172665f30ull;
	if (!atomic_exchange(&told, true))
		fprintf(stderr, "seed: WHARF_TEST_SEED=0x%" PRIx64 "\n", seed);
	return seed;
}

uint64_t harness_random_next(struct harness_random *random)
{
	uint64_t z = random->state += 0x9e3779b97f4a7c15ull;
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

uint64_t harness_random_below(struct harness_random *random, uint64_t n)
{
	/* The high half of a 128-bit product: biased by less than n / 2^64. */
	return (uint64_t)(((unsigned __int128)harness_random_next(random) * n) >> 64);
}

/* ---- Names ---------------------------------------------------------------------------------------------------- */

void harness_dir_make(char ret_path[HARNESS_PATH_MAX])
{
	const char *base = getenv("TMPDIR");
	if (!base || strlen(base) > HARNESS_PATH_MAX / 2)
		base = "/tmp";
	snprintf(ret_path, HARNESS_PATH_MAX, "%s/wharf-test-XXXXXX", base);
	if (!mkdtemp(ret_path))
		broken(ret_path);
}

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *walk)
{
	(void)st, (void)kind, (void)walk;
	return remove(path);
}

void harness_dir_remove(const char *path)
{
	if (nftw(path, remove_entry, 8, FTW_DEPTH | FTW_PHYS | FTW_MOUNT))
		broken(path);
}

void harness_abstract_name(char ret_name[HARNESS_PATH_MAX])
{
	static atomic_uint n;
	snprintf(ret_name, HARNESS_PATH_MAX, "@wharf-test-%d-%u", getpid(), atomic_fetch_add(&n, 1));
}
