/* SPDX-License-Identifier: MIT */
/* A process as /proc shows it: who it is, what it has open, and where its control memory is. */
#ifndef INSPECT_PROCESS_H
#define INSPECT_PROCESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum { PROCESS_WHY_BYTES = 200, PROCESS_NAME_BYTES = 20, PROCESS_COMMAND_BYTES = 256 };

enum process_fd_kind { FD_OTHER, FD_SOCKET, FD_RING, FD_EPOLL, FD_CONTROL, FD_TRACE };

struct process_fd {
	int fd;
	enum process_fd_kind kind;
	uint64_t inode; /* of a socket */
};

struct process {
	pid_t pid;
	pid_t pid_there;     /* in its own namespace */
	uid_t uid;
	char state;          /* as in /proc/PID/stat: R, S, D, T, ... */
	uint64_t start_time; /* field 22 of that, in ticks */
	uint64_t up_ns;
	char name[PROCESS_NAME_BYTES];
	char command[PROCESS_COMMAND_BYTES];
	uint64_t net;        /* its network namespace; 0: not known */
	int control;         /* its control memory, open for reading here */
	int trace;           /* number of its own descriptor; -1: none */
	struct process_fd *fds;
	size_t n_fds;
};

/*
 * Opens what `pid` has. 0, and process_close is owed; negative, with the reason in `why`: -ESRCH: no such process;
 * -EACCES: this user may not look at it; -ENODATA: it does not use wharf; -ESTALE: what it has is another process's;
 * -EPROTONOSUPPORT: of another version.
 */
int process_open(pid_t pid, struct process *ret_process, char why[PROCESS_WHY_BYTES]);
void process_close(struct process *process);

bool process_still_there(const struct process *process);
/* Its state anew, and what it has open if with_fds. False: it has exited. */
bool process_refresh(struct process *process, bool with_fds);
const struct process_fd *process_fd(const struct process *process, int fd); /* NULL: not open */

/* A descriptor of the process opened here, if it is of a memfd: O_RDONLY, O_RDWR. -ENOENT: it is not; -errno. */
int process_open_memfd(pid_t pid, int number, int access);

/* Numbers of all processes, ascending; free them. */
pid_t *process_all(size_t *ret_n);

/* "name"; "?": it is gone, or may not be looked at. */
void process_name(pid_t pid, char name[PROCESS_NAME_BYTES]);
/* The user's name, or number. */
void process_user(uid_t uid, char name[PROCESS_NAME_BYTES]);

/* A small file of /proc/PID, cut off at size - 1. Its length; -errno. */
ssize_t process_read(pid_t pid, const char *file, char *to, size_t size);

#endif
