/* SPDX-License-Identifier: MIT */
/* What ports take for granted of how sockets are connected, passed on, and left behind by the dead. */
#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

TestSuite(kernel_ends, .timeout = 60);

static void open_pair(int fds[2])
{
	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds), 0);
}

static socklen_t name_address(struct sockaddr_un *ret_address)
{
	char name[HARNESS_PATH_MAX];

	harness_abstract_name(name);
	*ret_address = (struct sockaddr_un){ .sun_family = AF_UNIX };
	memcpy(ret_address->sun_path + 1, name + 1, strlen(name) - 1);
	return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name));
}

static int result_of(int status)
{
	return status < 0 ? -errno : 0;
}

Test(kernel_ends, a_socket_that_was_refused_connects_when_somebody_listens)
{
	int bare, client = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0), others[8], n = 0;
	struct sockaddr_un address;
	socklen_t size = name_address(&address);
	const struct sockaddr *a = (const struct sockaddr *)&address;

	cr_assert_eq(result_of(connect(client, a, size)), -ECONNREFUSED);
	bare = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	cr_assert_eq(bind(bare, a, size), 0);
	cr_assert_eq(result_of(connect(client, a, size)), -ECONNREFUSED, "bound is not listening");
	cr_assert_eq(listen(bare, 0), 0);
	do
		others[n] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0);
	while (connect(others[n++], a, size) == 0 && n < 8);
	cr_assert_eq(errno, EAGAIN);
	cr_assert_eq(result_of(connect(client, a, size)), -EAGAIN);
	while (n > 1)
		close(accept(bare, NULL, NULL)), close(others[--n]);
	cr_assert_eq(result_of(connect(client, a, size)), 0);
}

Test(kernel_ends, who_connects_knows_who_listened)
{
	int bare = socket(AF_UNIX, SOCK_SEQPACKET, 0), client = socket(AF_UNIX, SOCK_SEQPACKET, 0), status;
	struct sockaddr_un address;
	socklen_t size = name_address(&address), length = sizeof(struct ucred);
	struct ucred who;
	pid_t child;

	cr_assert_eq(bind(bare, (const struct sockaddr *)&address, size), 0);
	child = fork();
	if (!child)
		_exit(listen(bare, 1));
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert_eq(connect(client, (const struct sockaddr *)&address, size), 0);
	cr_assert_eq(getsockopt(client, SOL_SOCKET, SO_PEERCRED, &who, &length), 0);
	cr_assert_eq(who.pid, child, "who listened, not who bound or accepts");
}

static int priority(int fd)
{
	socklen_t size = sizeof(int);
	int value;

	return getsockopt(fd, SOL_SOCKET, SO_PRIORITY, &value, &size) < 0 ? -errno : value;
}

Test(kernel_ends, a_priority_is_of_one_end_and_seen_through_every_descriptor_of_it)
{
	_Alignas(struct cmsghdr) unsigned char control[CMSG_SPACE(sizeof(int))] = { 0 };
	char byte = 'x';
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr header = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);
	int fds[2], carrier[2], bare, client, status, passed;
	struct sockaddr_un address;
	socklen_t size = name_address(&address);
	pid_t child;

	open_pair(fds);
	open_pair(carrier);
	cr_assert_eq(priority(fds[0]), 0);
	*cmsg = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
	memcpy(CMSG_DATA(cmsg), &fds[0], sizeof(int));
	cr_assert_eq(sendmsg(carrier[0], &header, 0), 1);
	child = fork();
	if (!child)
		_exit((geteuid() == 0 && setresuid(65533, 65533, 65533) != 0) ||
			setsockopt(fds[0], SOL_SOCKET, SO_PRIORITY, &(int){ 5 }, sizeof(int)) != 0);
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert_eq(status, 0, "no privilege is needed");
	cr_assert_eq(priority(fds[0]), 5);
	cr_assert_eq(priority(dup(fds[0])), 5);
	cr_assert_eq(priority(fds[1]), 0, "not of the other end");
	cr_assert_eq(recvmsg(carrier[1], &header, 0), 1);
	memcpy(&passed, CMSG_DATA(cmsg), sizeof(int));
	cr_assert_eq(priority(passed), 5, "also of one that was under way");

	bare = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	client = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	cr_assert_eq(setsockopt(bare, SOL_SOCKET, SO_PRIORITY, &(int){ 5 }, sizeof(int)), 0);
	cr_assert_eq(bind(bare, (const struct sockaddr *)&address, size), 0);
	cr_assert_eq(listen(bare, 1), 0);
	cr_assert_eq(connect(client, (const struct sockaddr *)&address, size), 0);
	cr_assert_eq(priority(client), 0);
	cr_assert_eq(priority(accept(bare, NULL, NULL)), 0, "not handed down by a listener");
}

Test(kernel_ends, who_stops_reading_still_reads_what_is_queued_and_then_the_end)
{
	struct pollfd ready;
	int fds[2];
	char byte;

	open_pair(fds);
	ready = (struct pollfd){ .fd = fds[0], .events = POLLIN };
	cr_assert_eq(send(fds[1], "a", 1, 0), 1);
	cr_assert_eq(send(fds[1], "b", 1, 0), 1);
	cr_assert_eq(shutdown(fds[0], SHUT_RD), 0);
	cr_assert_eq(send(fds[1], "c", 1, MSG_NOSIGNAL), -1);
	cr_assert_eq(errno, EPIPE);
	cr_assert_eq(recv(fds[0], &byte, 1, MSG_DONTWAIT), 1);
	cr_assert_eq(byte, 'a');
	cr_assert_eq(recv(fds[0], &byte, 1, MSG_DONTWAIT), 1);
	cr_assert_eq(byte, 'b');
	cr_assert_eq(recv(fds[0], &byte, 1, MSG_DONTWAIT), 0);
	cr_assert_eq(poll(&ready, 1, 0), 1);
	cr_assert_eq(send(fds[0], "d", 1, 0), 1, "the other way is open");
}

Test(kernel_ends, a_pidfd_is_readable_when_its_process_is_dead_reaped_or_not)
{
	struct pollfd dead;
	int status, gate[2];
	char byte;
	pid_t child;

	cr_assert_eq(pipe(gate), 0);
	child = fork();
	if (!child) {
		close(gate[1]);
		_exit((int)read(gate[0], &byte, 1));
	}
	dead = (struct pollfd){ .fd = (int)syscall(SYS_pidfd_open, child, 0), .events = POLLIN };
	cr_assert_geq(dead.fd, 0);
	cr_assert_eq(poll(&dead, 1, 0), 0);
	cr_assert_eq(syscall(SYS_pidfd_send_signal, dead.fd, 0, NULL, 0), 0);
	close(gate[1]);
	cr_assert_eq(poll(&dead, 1, 10000), 1);
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert_eq(poll(&dead, 1, 0), 1);
	cr_assert(dead.revents & POLLIN);
	cr_assert_eq(syscall(SYS_pidfd_send_signal, dead.fd, 0, NULL, 0), -1);
	cr_assert_eq(errno, ESRCH);
	cr_assert_eq(syscall(SYS_pidfd_send_signal, gate[0], 0, NULL, 0), -1);
	cr_assert_eq(errno, EBADF);
}
