/* SPDX-License-Identifier: MIT */
/*
 * Runs a program where io_uring is refused, as most containers do (EPERM), or missing (ENOSYS).
 * usage: without-uring EPERM|ENOSYS PROGRAM [ARGUMENT...]
 */
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "filter.h"

int main(int argc, char **argv)
{
	int error = argc < 3 ? 0 : !strcmp(argv[1], "EPERM") ? EPERM : !strcmp(argv[1], "ENOSYS") ? ENOSYS : 0;

	if (!error) {
		fputs("usage: without-uring EPERM|ENOSYS PROGRAM [ARGUMENT...]\n", stderr);
		return 2;
	}
	error = filter_refuse(SYS_io_uring_setup, (uint32_t)error);
	if (error < 0) {
		printf("no filter of system calls: %s\n", strerror(-error));
		return 77;
	}
	execvp(argv[2], argv + 2);
	perror(argv[2]);
	return 127;
}
