/* SPDX-License-Identifier: MIT */
/* Child processes: a program started with a port to it, its end taken up there, and a forked child that starts over. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control.h"
#include "options.h"
#include "port.h"
#include "watch.h"

#define SPAWNED_OPEN_TIMEOUT_NS 10000000000

static const char variable[] = "WHARF_FD";

extern char **environ;

/* envp with WHARF_FD set; the strings are envp's but for that one. NULL: no memory. */
static char **environment_with(char *const *envp, char *setting)
{
	size_t n = 0, kept = 0;
	char **all;

	while (envp[n])
		n++;
	all = malloc((n + 2) * sizeof(*all));
	if (!all)
		return NULL;
	for (size_t i = 0; i < n; i++)
		if (strncmp(envp[i], variable, sizeof(variable) - 1) || envp[i][sizeof(variable) - 1] != '=')
			all[kept++] = envp[i];
	all[kept++] = setting;
	all[kept] = NULL;
	return all;
}

/* Starts it; the child's copy of `fd` survives the exec, under the same number. 0 or a negative errno. */
static int start(const struct wharf_spawn_options *o, int fd, pid_t *ret_pid)
{
	char setting[32];
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t none;
	char **environment;
	int error;

	snprintf(setting, sizeof(setting), "%s=%d", variable, fd);
	environment = environment_with(o->envp ? o->envp : environ, setting);
	if (!environment)
		return -ENOMEM;
	error = posix_spawn_file_actions_init(&actions);
	if (!error) {
		/* On itself: glibc then clears close-on-exec in the child alone. */
		error = posix_spawn_file_actions_adddup2(&actions, fd, fd);
		if (!error)
			error = posix_spawnattr_init(&attributes);
		if (!error) {
			/* A service that takes its signals by signalfd must not have children that nothing can end. */
			sigemptyset(&none);
			posix_spawnattr_setsigmask(&attributes, &none);
			posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
			error = posix_spawnp(
				ret_pid, o->path ? o->path : o->argv[0], &actions, &attributes, o->argv, environment);
			posix_spawnattr_destroy(&attributes);
		}
		posix_spawn_file_actions_destroy(&actions);
	}
	free(environment);
	return -error;
}

/* 0 or a negative errno. */
static int watch_child(struct wharf_port *port, pid_t pid, int *ret_pidfd)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0), watched, error;

	if (pidfd < 0)
		return -errno;
	watched = fcntl(pidfd, F_DUPFD_CLOEXEC, 0);
	/* It may hand its end to somebody else, and go. */
	error = watched < 0 ? -errno : wh_watch_start(port, watched, pid);
	if (error) {
		if (watched >= 0)
			close(watched);
		close(pidfd);
		return error;
	}
	*ret_pidfd = pidfd;
	return 0;
}

int wharf_spawn(wharf_loop *loop, const struct wharf_spawn_options *options, wharf_port **ret_port, int *ret_pidfd)
{
	struct wharf_spawn_options o;
	int fds[2], pidfd = -1, error;
	pid_t pid;

	error = wh_loop_check(loop);
	if (!error)
		error = options ? WH_OPTIONS_READ(options, &o) : -EINVAL;
	if (error)
		return error;
	if (!o.argv || !o.argv[0] || !o.port || o.flags || o.reserved)
		return -EINVAL;
	error = wharf_pair(fds);
	if (error)
		return error;
	/* The port first: what can be wrong with it is then known before anything runs. */
	wharf_port *port;
	error = wh_port_open(loop, fds[0], o.port, SPAWNED_OPEN_TIMEOUT_NS, &port);
	if (error) {
		close(fds[0]);
		close(fds[1]);
		return error;
	}
	error = start(&o, fds[1], &pid);
	close(fds[1]);
	if (!error) {
		error = watch_child(port, pid, &pidfd);
		if (error == -ESRCH && !ret_pidfd) {
			error = 0; /* dead, and reaped by a host that ignores SIGCHLD: its end is closed */
		} else if (error && error != -ESRCH) {
			/* A child that nobody could end must not be left behind. */
			kill(pid, SIGKILL);
			waitpid(pid, NULL, 0);
		}
	}
	if (error) {
		wh_port_forget(port);
		return error;
	}
	if (ret_pidfd)
		*ret_pidfd = pidfd;
	else if (pidfd >= 0)
		close(pidfd);
	if (ret_port)
		*ret_port = port;
	return 0;
}

int wharf_port_inherit(wharf_loop *loop, const struct wharf_port_options *options, wharf_port **ret_port)
{
	static atomic_bool done;
	const char *value;
	char *end;
	long fd;
	int error;

	error = wh_loop_check(loop);
	if (error)
		return error;
	if (atomic_exchange(&done, true))
		return -EALREADY;
	error = -ENOENT;
	value = getenv(variable);
	if (value) {
		errno = 0;
		fd = strtol(value, &end, 10);
		if (!errno && !*end && end != value && fd >= 0 && fd <= INT_MAX && fcntl((int)fd, F_GETFD) >= 0)
			error = wh_port_open(loop, (int)fd, options, -1, ret_port);
	}
	if (error) {
		atomic_store(&done, false);
		return error == -EPROTOTYPE || error == -ENOTCONN ? -ENOENT : error;
	}
	/* Children of this process were not given anything. */
	unsetenv(variable);
	return 0;
}

int wharf_fork_child(void)
{
	int error = wh_guard_restart();

	if (error == -EALREADY)
		return 0;
	if (!error) {
		wh_control_restart();
	wh_trace_restart();
		wh_pool_restart();
	}
	return error;
}
