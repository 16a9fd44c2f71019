/* SPDX-License-Identifier: MIT */
/* What ports take for granted of AF_UNIX SOCK_SEQPACKET. */
#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

TestSuite(kernel_unix, .timeout = 60);

enum { FDS_MAX = 253 };

static void open_pair(int fds[2])
{
	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds), 0);
}

static int send_fds(int socket, const int *fds, size_t n_fds)
{
	_Alignas(struct cmsghdr) unsigned char control[CMSG_SPACE(sizeof(int) * (FDS_MAX + 1))] = { 0 };
	struct iovec iov = { .iov_base = (char[]){ "x" }, .iov_len = 1 };
	struct msghdr header = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);

	cmsg->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	memcpy(CMSG_DATA(cmsg), fds, sizeof(int) * n_fds);
	return sendmsg(socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT) == 1 ? 0 : -errno;
}

static int no_room(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLOUT };

	return poll(&p, 1, 0) == 0;
}

Test(kernel_unix, datagrams_keep_their_borders)
{
	int fds[2];
	char bytes[16];

	open_pair(fds);
	cr_assert_eq(send(fds[1], "one", 3, 0), 3);
	cr_assert_eq(send(fds[1], "two", 3, 0), 3);
	cr_assert_eq(recv(fds[0], bytes, sizeof(bytes), 0), 3);
	cr_assert_eq(recv(fds[0], bytes, 1, MSG_TRUNC), 3); /* its true size, the rest is gone */
	cr_assert_eq(recv(fds[0], bytes, sizeof(bytes), MSG_DONTWAIT), -1);
	cr_assert_eq(errno, EAGAIN);
}

Test(kernel_unix, largest_datagram_is_the_send_buffer_less_32)
{
	int fds[2], size;
	socklen_t length = sizeof(size);
	char *bytes;

	open_pair(fds);
	cr_assert_eq(getsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &size, &length), 0);
	bytes = calloc(1, (size_t)size);
	cr_assert(bytes);
	cr_assert_eq(send(fds[0], bytes, (size_t)size - 32, MSG_DONTWAIT), size - 32);
	cr_assert_eq(send(fds[0], bytes, (size_t)size - 31, MSG_DONTWAIT), -1);
	cr_assert_eq(errno, EMSGSIZE);
	free(bytes);
}

Test(kernel_unix, queue_of_a_pair_is_limited_by_bytes_not_by_count)
{
	int fds[2], n = 0;

	open_pair(fds);
	while (send(fds[0], "x", 1, MSG_DONTWAIT) == 1)
		n++;
	cr_assert_eq(errno, EAGAIN);
	cr_assert_gt(n, 100, "only %d datagrams fit", n); /* net.unix.max_dgram_qlen is 10 by default */
}

Test(kernel_unix, room_is_announced_only_when_three_quarters_are_read)
{
	int fds[2], n = 0, n_read = 0;
	char byte;

	open_pair(fds);
	while (send(fds[0], "x", 1, MSG_DONTWAIT) == 1)
		n++;
	while (no_room(fds[0])) {
		cr_assert_eq(recv(fds[1], &byte, 1, MSG_DONTWAIT), 1);
		n_read++;
		/* Yet a send may succeed before: trying is what finds out. */
		if (n_read == 1) {
			cr_assert_eq(send(fds[0], "x", 1, MSG_DONTWAIT), 1);
			n++;
		}
	}
	cr_assert_geq(n_read, n / 2, "announced after %d of %d", n_read, n);
}

Test(kernel_unix, end_comes_after_the_data)
{
	int fds[2];
	char byte;

	open_pair(fds);
	cr_assert_eq(send(fds[1], "x", 1, 0), 1);
	close(fds[1]);
	cr_assert_eq(recv(fds[0], &byte, 1, 0), 1);
	cr_assert_eq(recv(fds[0], &byte, 1, 0), 0);
	cr_assert_eq(send(fds[0], "x", 1, MSG_NOSIGNAL), -1);
	cr_assert_eq(errno, EPIPE);
}

Test(kernel_unix, peer_that_leaves_data_unread_resets_once_before_the_data)
{
	int fds[2];
	char byte;

	open_pair(fds);
	cr_assert_eq(send(fds[1], "x", 1, 0), 1);
	cr_assert_eq(send(fds[0], "unread", 6, 0), 6);
	close(fds[1]);
	cr_assert_eq(recv(fds[0], &byte, 1, 0), -1);
	cr_assert_eq(errno, ECONNRESET);
	cr_assert_eq(recv(fds[0], &byte, 1, 0), 1);
	cr_assert_eq(recv(fds[0], &byte, 1, 0), 0);
}

Test(kernel_unix, shutdown_is_the_end_for_the_peer_at_once)
{
	int fds[2];
	char byte;

	open_pair(fds);
	cr_assert_eq(shutdown(fds[1], SHUT_RDWR), 0);
	cr_assert_eq(recv(fds[0], &byte, 1, MSG_DONTWAIT), 0);
}

/* ---- Descriptors ------------------------------------------------------------------------------------------------- */

Test(kernel_unix, two_hundred_fifty_three_descriptors_and_not_one_more)
{
	int fds[2], passed[FDS_MAX + 1];

	open_pair(fds);
	for (int i = 0; i <= FDS_MAX; i++)
		passed[i] = STDERR_FILENO;
	cr_assert_eq(send_fds(fds[0], passed, FDS_MAX), 0);
	cr_assert_eq(send_fds(fds[0], passed, FDS_MAX + 1), -EINVAL);
}

Test(kernel_unix, several_rights_messages_arrive_as_one)
{
	_Alignas(struct cmsghdr) unsigned char control[2 * CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { .iov_base = (char[]){ "x" }, .iov_len = 1 };
	struct msghdr header = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg;
	int fds[2], passed = STDERR_FILENO;

	open_pair(fds);
	for (cmsg = CMSG_FIRSTHDR(&header); cmsg; cmsg = CMSG_NXTHDR(&header, cmsg)) {
		cmsg->cmsg_len = CMSG_LEN(sizeof(int));
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		memcpy(CMSG_DATA(cmsg), &passed, sizeof(passed));
	}
	cr_assert_eq(sendmsg(fds[0], &header, 0), 1);
	header.msg_controllen = sizeof(control);
	cr_assert_eq(recvmsg(fds[1], &header, 0), 1);
	cmsg = CMSG_FIRSTHDR(&header);
	cr_assert_eq(cmsg->cmsg_len, CMSG_LEN(2 * sizeof(int)));
	cr_assert_null(CMSG_NXTHDR(&header, cmsg));
}

Test(kernel_unix, descriptors_without_room_are_dropped_and_the_others_installed)
{
	_Alignas(struct cmsghdr) unsigned char control[CMSG_LEN(sizeof(int) * 2)];
	struct iovec iov = { .iov_base = (char[]){ "x" }, .iov_len = 1 };
	struct msghdr header = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	size_t n_fds;
	int fds[2];

	open_pair(fds);
	cr_assert_eq(send_fds(fds[0], (int[4]){ 0 }, 4), 0);
	n_fds = harness_count_fds();
	cr_assert_eq(recvmsg(fds[1], &header, 0), 1);
	cr_assert(header.msg_flags & MSG_CTRUNC);
	cr_assert_eq(CMSG_FIRSTHDR(&header)->cmsg_len, CMSG_LEN(sizeof(int) * 2));
	cr_assert_eq(harness_count_fds(), n_fds + 2);
}

Test(kernel_unix, descriptors_that_nobody_received_go_with_the_socket)
{
	int fds[2], ends[2];
	char byte;

	open_pair(fds);
	open_pair(ends);
	cr_assert_eq(send_fds(fds[0], &ends[1], 1), 0);
	close(ends[1]);
	cr_assert_eq(recv(ends[0], &byte, 1, MSG_DONTWAIT), -1);
	close(fds[1]);
	cr_assert_eq(recv(ends[0], &byte, 1, MSG_DONTWAIT), 0);
}

Test(kernel_unix, socket_passed_on_keeps_what_is_queued_in_it)
{
	_Alignas(struct cmsghdr) unsigned char control[CMSG_SPACE(sizeof(int))];
	char bytes[8];
	struct iovec iov = { .iov_base = bytes, .iov_len = 1 };
	struct msghdr header = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	int fds[2], ends[2], received;

	open_pair(fds);
	open_pair(ends);
	cr_assert_eq(send(ends[0], "queued", 6, 0), 6);
	cr_assert_eq(send_fds(fds[0], &ends[1], 1), 0);
	close(ends[1]);
	cr_assert_eq(recvmsg(fds[1], &header, 0), 1);
	memcpy(&received, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof(received));
	cr_assert_eq(recv(received, bytes, sizeof(bytes), 0), 6);
}

static int fill_with_descriptors(void *arg)
{
	struct rlimit limit = { .rlim_cur = 64, .rlim_max = 64 };
	int fds[2], r;

	(void)arg;
	HARNESS_REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	HARNESS_REQUIRE(setuid(61234) == 0); /* nobody's: nothing of others in flight, and no capabilities */
	HARNESS_REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds) == 0);
	do
		r = send_fds(fds[0], (int[20]){ 0 }, 20);
	while (!r);
	HARNESS_REQUIRE(r == -ETOOMANYREFS);
	/* The socket has room all the same: polling would spin. */
	HARNESS_REQUIRE(!no_room(fds[0]));
	return 0;
}

Test(kernel_unix, descriptors_in_flight_are_limited_per_user)
{
	if (getuid())
		cr_skip_test("only root can become another user");
	cr_assert_eq(harness_run(fill_with_descriptors, NULL, 20000), 0);
}

/* ---- Who it is --------------------------------------------------------------------------------------------------- */

static pid_t sender_of(int fd, pid_t *ret_peer)
{
	_Alignas(struct cmsghdr) unsigned char control[CMSG_SPACE(sizeof(struct ucred))];
	char byte;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr header = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct ucred credentials, peer;
	socklen_t length = sizeof(peer);

	cr_assert_eq(recvmsg(fd, &header, 0), 1);
	cr_assert_eq(CMSG_FIRSTHDR(&header)->cmsg_type, SCM_CREDENTIALS);
	memcpy(&credentials, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof(credentials));
	cr_assert_eq(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length), 0);
	*ret_peer = peer.pid;
	return credentials.pid;
}

Test(kernel_unix, credentials_of_a_message_name_its_sender_those_of_a_pair_its_maker)
{
	const int yes = 1;
	int fds[2], status;
	pid_t child, peer;

	open_pair(fds);
	cr_assert_eq(setsockopt(fds[0], SOL_SOCKET, SO_PASSCRED, &yes, sizeof(yes)), 0);
	child = fork();
	if (!child)
		_exit(send(fds[1], "x", 1, 0) != 1);
	cr_assert_eq(sender_of(fds[0], &peer), child);
	cr_assert_eq(peer, getpid());
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert_eq(status, 0);
}

Test(kernel_unix, listener_knows_who_connected)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char name[HARNESS_PATH_MAX], byte;
	int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0), connection, status;
	struct ucred peer;
	socklen_t length;
	pid_t child;

	harness_abstract_name(name);
	length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name));
	memcpy(address.sun_path + 1, name + 1, strlen(name) - 1);
	cr_assert_eq(bind(fd, (struct sockaddr *)&address, length), 0);
	cr_assert_eq(listen(fd, 4), 0);
	child = fork();
	if (!child) {
		int client = socket(AF_UNIX, SOCK_SEQPACKET, 0);

		_exit(connect(client, (struct sockaddr *)&address, length) != 0 || recv(client, &byte, 1, 0) != 0);
	}
	connection = accept(fd, NULL, NULL);
	cr_assert_geq(connection, 0);
	length = sizeof(peer);
	cr_assert_eq(getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &length), 0);
	cr_assert_eq(peer.pid, child);
	cr_assert_eq(peer.uid, getuid());
	close(connection);
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert_eq(status, 0);
}

Test(kernel_unix, more_credentials_do_not_displace_descriptors)
{
	enum { BYTES = CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(sizeof(int) * FDS_MAX) };
	_Alignas(struct cmsghdr) unsigned char control[BYTES];
	char byte;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr header = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	const int yes = 1;
	int fds[2], passed[FDS_MAX];
	struct cmsghdr *cmsg;

	open_pair(fds);
	for (int i = 0; i < FDS_MAX; i++)
		passed[i] = STDERR_FILENO;
	cr_assert_eq(setsockopt(fds[1], SOL_SOCKET, SO_PASSCRED, &yes, sizeof(yes)), 0);
	cr_assert_eq(send_fds(fds[0], passed, FDS_MAX), 0);
	cr_assert_eq(recvmsg(fds[1], &header, 0), 1);
	cr_assert_eq(header.msg_flags & MSG_CTRUNC, 0);
	cmsg = CMSG_FIRSTHDR(&header);
	cr_assert_eq(cmsg->cmsg_type, SCM_CREDENTIALS);
	cmsg = CMSG_NXTHDR(&header, cmsg);
	cr_assert_eq(cmsg->cmsg_type, SCM_RIGHTS);
	cr_assert_eq(cmsg->cmsg_len, CMSG_LEN(sizeof(int) * FDS_MAX));
}
