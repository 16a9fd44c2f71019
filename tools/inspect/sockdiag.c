/* SPDX-License-Identifier: MIT */
/* Unix sockets by NETLINK_SOCK_DIAG: see sockdiag.h. */
#include "sockdiag.h"

#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory.h"

enum { REPLY_BYTES = 64 << 10 };

static int ask(int netlink)
{
	struct {
		struct nlmsghdr header;
		struct unix_diag_req request;
	} message = {
		.header = {
			.nlmsg_len = sizeof message,
			.nlmsg_type = SOCK_DIAG_BY_FAMILY,
			.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
		},
		.request = {
			.sdiag_family = AF_UNIX,
			.udiag_states = UINT32_MAX,
			.udiag_show = UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN,
		},
	};

	return send(netlink, &message, sizeof message, 0) < 0 ? -errno : 0;
}

/* Netlink's own macros mix signs. Both step over aligned lengths, and end where one is too short or too long. */
static void note(struct sockdiag *diag, const char *message, size_t size)
{
	struct unix_diag_msg head;
	struct sockdiag_socket socket = { 0 };
	struct rtattr a;

	if (size < sizeof head)
		return;
	memcpy(&head, message, sizeof head);
	if (head.udiag_type != SOCK_SEQPACKET)
		return;
	socket.inode = head.udiag_ino;
	socket.listens = head.udiag_state == TCP_LISTEN;
	for (size_t at = sizeof head; at + sizeof a <= size; at += NLMSG_ALIGN((size_t)a.rta_len)) {
		const char *data = message + at + sizeof a;

		memcpy(&a, message + at, sizeof a);
		if (a.rta_len < sizeof a || a.rta_len > size - at)
			break;
		if (a.rta_type == UNIX_DIAG_PEER && a.rta_len >= sizeof a + 4) {
			memcpy(&socket.peer, data, 4);
		} else if (a.rta_type == UNIX_DIAG_RQLEN && a.rta_len >= sizeof a + sizeof(struct unix_diag_rqlen)) {
			struct unix_diag_rqlen queues;
			memcpy(&queues, data, sizeof queues);
			socket.unread = queues.udiag_rqueue;
			socket.unsent = queues.udiag_wqueue;
		}
	}
	diag->sockets = memory_grow(diag->sockets, diag->n, sizeof socket);
	diag->sockets[diag->n++] = socket;
}

/* 1: more will come; 0: that was all; -errno. */
static int take_reply(struct sockdiag *diag, const char *reply, size_t size)
{
	struct nlmsghdr header;

	for (size_t at = 0; at + sizeof header <= size; at += NLMSG_ALIGN((size_t)header.nlmsg_len)) {
		const char *message = reply + at + sizeof header;
		int error = 0;

		memcpy(&header, reply + at, sizeof header);
		if (header.nlmsg_len < sizeof header || header.nlmsg_len > size - at)
			return -EIO;
		if (header.nlmsg_type == NLMSG_DONE)
			return 0;
		if (header.nlmsg_type == NLMSG_ERROR) {
			if (header.nlmsg_len >= sizeof header + sizeof error)
				memcpy(&error, message, sizeof error);
			return error < 0 ? error : -EIO;
		}
		if (header.nlmsg_type == SOCK_DIAG_BY_FAMILY)
			note(diag, message, header.nlmsg_len - sizeof header);
	}
	return 1;
}

static int compare(const void *a, const void *b)
{
	uint32_t x = ((const struct sockdiag_socket *)a)->inode, y = ((const struct sockdiag_socket *)b)->inode;

	return (x > y) - (x < y);
}

void sockdiag_take(struct sockdiag *ret_diag)
{
	const struct timeval patience = { .tv_sec = 2 };
	int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG), more;
	struct stat status;

	*ret_diag = (struct sockdiag){ 0 };
	if (stat("/proc/self/ns/net", &status) == 0)
		ret_diag->net = status.st_ino;
	if (netlink < 0) {
		ret_diag->error = -errno;
		return;
	}
	setsockopt(netlink, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	more = ask(netlink);
	if (!more) {
		char *reply = memory_new(REPLY_BYTES, 1);
		do {
			ssize_t n = recv(netlink, reply, REPLY_BYTES, 0);
			if (n < 0 && errno == EINTR)
				more = 1;
			else
				more = n < 0 ? -errno : take_reply(ret_diag, reply, (size_t)n);
		} while (more > 0);
		free(reply);
	}
	close(netlink);
	ret_diag->error = more;
	if (ret_diag->n)
		qsort(ret_diag->sockets, ret_diag->n, sizeof *ret_diag->sockets, compare);
}

void sockdiag_fini(struct sockdiag *diag) { free(diag->sockets); }

const struct sockdiag_socket *sockdiag_find(const struct sockdiag *diag, uint64_t inode)
{
	const struct sockdiag_socket key = { .inode = (uint32_t)inode };

	if (!diag->n || inode > UINT32_MAX)
		return NULL;
	return bsearch(&key, diag->sockets, diag->n, sizeof key, compare);
}
