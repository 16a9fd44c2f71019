/* SPDX-License-Identifier: MIT */
/* A process as /proc shows it: see process.h. */
#include "process.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "memory.h"
#include "snapshot.h"
#include "source.h"
#include "unit.h"

enum { PATH_BYTES = 64, LINK_BYTES = 256, NS_PER_SECOND = 1000000000 };

ssize_t process_read(pid_t pid, const char *file, char *to, size_t size)
{
	char path[PATH_BYTES];
	size_t done = 0;
	ssize_t n = 1;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	while (done + 1 < size && (n = read(fd, to + done, size - 1 - done)) > 0)
		done += (size_t)n;
	n = n < 0 ? -errno : 0;
	close(fd);
	to[done] = '\0';
	return n ? n : (ssize_t)done;
}

/* ---- Who it is ---- */

static int read_stat(pid_t pid, struct process *process)
{
	char text[1024], *at, *name;
	ssize_t n = process_read(pid, "stat", text, sizeof text);

	if (n < 0)
		return (int)n;
	/* The name is in parentheses, and may have some itself. */
	name = strchr(text, '(');
	at = strrchr(text, ')');
	if (!name || !at || at < name)
		return -ESRCH;
	*at = '\0';
	snprintf(process->name, sizeof process->name, "%s", name + 1);
	unit_clean(process->name, sizeof process->name);
	process->state = at[1] ? at[2] : '?';
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	process->start_time = at ? strtoull(at, NULL, 10) : 0;
	return 0;
}

static void read_status(struct process *process)
{
	char text[8192], *line;

	if (process_read(process->pid, "status", text, sizeof text) < 0)
		return;
	line = strstr(text, "\nUid:\t");
	if (line)
		process->uid = (uid_t)strtoul(line + 6, NULL, 10);
	line = strstr(text, "\nTgid:\t");
	if (line)
		process->pid = (pid_t)strtol(line + 7, NULL, 10);
	/* The last number of the line is the innermost namespace's, which is what the process knows itself by. */
	line = strstr(text, "\nNSpid:");
	process->pid_there = process->pid;
	for (char *at = line ? line + 7 : NULL; at && *at == '\t';)
		process->pid_there = (pid_t)strtol(at, &at, 10);
}

static void read_command(struct process *process)
{
	ssize_t n = process_read(process->pid, "cmdline", process->command, sizeof process->command);

	for (ssize_t i = 0; i + 1 < n; i++)
		if (!process->command[i])
			process->command[i] = ' ';
	unit_clean(process->command, sizeof process->command);
}

static void read_age(struct process *process)
{
	struct timespec now;
	long hz = sysconf(_SC_CLK_TCK);
	uint64_t now_ns, start_ns = process->start_time * (NS_PER_SECOND / (uint64_t)(hz > 0 ? hz : 100));

	clock_gettime(CLOCK_BOOTTIME, &now);
	now_ns = (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
	process->up_ns = now_ns > start_ns ? now_ns - start_ns : 0;
}

void process_name(pid_t pid, char name[PROCESS_NAME_BYTES])
{
	struct process process;

	if (pid <= 0 || read_stat(pid, &process) < 0)
		strcpy(process.name, "?");
	memcpy(name, process.name, PROCESS_NAME_BYTES);
}

void process_user(uid_t uid, char name[PROCESS_NAME_BYTES])
{
	const struct passwd *user = getpwuid(uid);

	if (user)
		snprintf(name, PROCESS_NAME_BYTES, "%s", user->pw_name);
	else
		snprintf(name, PROCESS_NAME_BYTES, "%u", uid);
	unit_clean(name, PROCESS_NAME_BYTES);
}

/* ---- What it has open ---- */

static void note_fd(struct process *process, int fd, const char *link)
{
	struct process_fd entry = { .fd = fd };

	if (!strncmp(link, "socket:[", 8)) {
		entry.kind = FD_SOCKET;
		entry.inode = strtoull(link + 8, NULL, 10);
	} else if (!strcmp(link, "anon_inode:[io_uring]")) {
		entry.kind = FD_RING;
	} else if (!strcmp(link, "anon_inode:[eventpoll]")) {
		entry.kind = FD_EPOLL;
	} else if (!strcmp(link, "/memfd:wharf-control (deleted)")) {
		entry.kind = FD_CONTROL;
	} else if (!strcmp(link, "/memfd:wharf-trace (deleted)")) {
		entry.kind = FD_TRACE;
	} else {
		return;
	}
	process->fds = memory_grow(process->fds, process->n_fds, sizeof entry);
	process->fds[process->n_fds++] = entry;
}

static int read_fds(struct process *process)
{
	char path[PATH_BYTES], link[LINK_BYTES];
	DIR *directory;
	int error = 0;

	snprintf(path, sizeof path, "/proc/%d/fd", process->pid);
	directory = opendir(path);
	if (!directory)
		return -errno;
	for (;;) {
		struct dirent *entry;
		ssize_t n;

		errno = 0;
		entry = readdir(directory);
		if (!entry) {
			error = -errno;
			break;
		}
		if (*entry->d_name == '.')
			continue;
		n = readlinkat(dirfd(directory), entry->d_name, link, sizeof link - 1);
		if (n < 0 && errno == EACCES) {
			error = -EACCES;
			break;
		}
		if (n < 0)
			continue;
		link[n] = '\0';
		note_fd(process, atoi(entry->d_name), link);
	}
	closedir(directory);
	return error;
}

const struct process_fd *process_fd(const struct process *process, int fd)
{
	for (size_t i = 0; i < process->n_fds; i++)
		if (process->fds[i].fd == fd)
			return &process->fds[i];
	return NULL;
}

/* Meanwhile the number may stand for anything, a device that takes its time to be opened or read included. */
int process_open_memfd(pid_t pid, int number, int access)
{
	char path[PATH_BYTES];
	struct stat status;
	struct statfs where;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, number);
	if (stat(path, &status) < 0)
		return -errno;
	if (!S_ISREG(status.st_mode))
		return -ENOENT;
	fd = open(path, access | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) || fstatfs(fd, &where) < 0 ||
		where.f_type != TMPFS_MAGIC) {
		close(fd);
		return -ENOENT;
	}
	return fd;
}

/* Several are possible: a program that calls something else so, or a child that still has its parent's. */
static int find_control(struct process *process, char why[PROCESS_WHY_BYTES])
{
	int error = -ENODATA;

	snprintf(why, PROCESS_WHY_BYTES, "it does not use wharf, or has no pool and no loop");
	for (size_t i = 0; i < process->n_fds; i++) {
		struct source source;
		uint32_t pid;
		uint64_t start_time;
		int fd, bad;

		if (process->fds[i].kind != FD_CONTROL)
			continue;
		fd = process_open_memfd(process->pid, process->fds[i].fd, O_RDONLY);
		if (fd < 0) {
			error = fd == -ENOENT || fd == -ESRCH ? -ESRCH : fd;
			snprintf(why, PROCESS_WHY_BYTES, "its control memory cannot be opened: %s", strerror(-fd));
			continue;
		}
		bad = source_of_memfd(fd, &source);
		if (!bad)
			bad = snapshot_owner(&source, &pid, &start_time, why);
		if (!bad && (pid != (uint32_t)process->pid_there || start_time != process->start_time)) {
			bad = -ESTALE;
			snprintf(why, PROCESS_WHY_BYTES,
				"what it has open is the control memory of process %u: it was forked, and has none",
				pid);
		}
		if (!bad) {
			process->control = fd;
			return 0;
		}
		error = bad;
		close(fd);
	}
	return error;
}

static void find_trace(struct process *process)
{
	process->trace = -1;
	for (size_t i = 0; i < process->n_fds; i++)
		if (process->fds[i].kind == FD_TRACE)
			process->trace = process->fds[i].fd;
}

static uint64_t network_of(pid_t pid)
{
	char path[PATH_BYTES];
	struct stat status;

	snprintf(path, sizeof path, "/proc/%d/ns/net", pid);
	return stat(path, &status) == 0 ? status.st_ino : 0;
}

static void explain(const struct process *process, int error, char why[PROCESS_WHY_BYTES])
{
	char user[PROCESS_NAME_BYTES];

	if (error == -EACCES || error == -EPERM) {
		process_user(process->uid, user);
		snprintf(why, PROCESS_WHY_BYTES,
			"it may not be looked at: it belongs to %s, or has set itself not dumpable; ask as that user "
			"or root",
			user);
	} else {
		snprintf(why, PROCESS_WHY_BYTES, "it exited while it was looked at");
	}
}

int process_open(pid_t pid, struct process *ret_process, char why[PROCESS_WHY_BYTES])
{
	struct process process = { .pid = pid, .pid_there = pid, .control = -1, .trace = -1 };
	int error = read_stat(pid, &process);

	if (error) {
		snprintf(why, PROCESS_WHY_BYTES, "there is no such process");
		return -ESRCH;
	}
	if (process.state == 'Z' || process.state == 'X') {
		snprintf(why, PROCESS_WHY_BYTES, "it has exited");
		return -ESRCH;
	}
	read_status(&process);
	if (process.pid != pid) {
		/* It was a thread's number: the process began earlier, and has other names and numbers. */
		if (read_stat(process.pid, &process)) {
			snprintf(why, PROCESS_WHY_BYTES, "it exited while it was looked at");
			return -ESRCH;
		}
		read_status(&process);
	}
	error = read_fds(&process);
	if (error) {
		explain(&process, error, why);
		free(process.fds);
		return error == -EACCES || error == -EPERM ? -EACCES : -ESRCH;
	}
	error = find_control(&process, why);
	if (error && !process_still_there(&process)) {
		snprintf(why, PROCESS_WHY_BYTES, "it exited while it was looked at");
		error = -ESRCH;
	}
	if (error) {
		free(process.fds);
		return error;
	}
	find_trace(&process);
	read_command(&process);
	read_age(&process);
	process.net = network_of(process.pid);
	*ret_process = process;
	return 0;
}

void process_close(struct process *process)
{
	if (process->control >= 0)
		close(process->control);
	free(process->fds);
}

bool process_still_there(const struct process *process)
{
	struct process now;

	return read_stat(process->pid, &now) == 0 && now.start_time == process->start_time && now.state != 'Z' &&
		now.state != 'X';
}

bool process_refresh(struct process *process, bool with_fds)
{
	struct process now;

	if (read_stat(process->pid, &now) || now.start_time != process->start_time || now.state == 'Z' ||
		now.state == 'X')
		return false;
	process->state = now.state;
	read_age(process);
	if (with_fds) {
		free(process->fds);
		process->fds = NULL;
		process->n_fds = 0;
		read_fds(process);
		find_trace(process);
	}
	return true;
}

static int compare_pids(const void *a, const void *b)
{
	pid_t x = *(const pid_t *)a, y = *(const pid_t *)b;

	return (x > y) - (x < y);
}

pid_t *process_all(size_t *ret_n)
{
	DIR *directory = opendir("/proc");
	pid_t *pids = NULL;
	size_t n = 0;

	for (struct dirent *entry; directory && (entry = readdir(directory));) {
		if (*entry->d_name < '1' || *entry->d_name > '9')
			continue;
		pids = memory_grow(pids, n, sizeof *pids);
		pids[n++] = atoi(entry->d_name);
	}
	if (directory)
		closedir(directory);
	if (n)
		qsort(pids, n, sizeof *pids, compare_pids);
	*ret_n = n;
	return pids;
}
