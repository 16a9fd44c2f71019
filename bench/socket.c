/* SPDX-License-Identifier: MIT */
/* Plain sockets: sending, receiving, ping and pong. */
#include "socket.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int socket_pair(const struct plan *plan, int type, int ret_fds[2])
{
	int fds[2], bytes = (int)plan->sndbuf;

	if (socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds) < 0)
		return -errno;
	for (int i = 0; i < 2; i++) {
		if (setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes) < 0) {
			int error = -errno;

			close(fds[0]);
			close(fds[1]);
			return error;
		}
	}
	ret_fds[0] = fds[0];
	ret_fds[1] = fds[1];
	return 0;
}

/* Touched before it is used: a fresh page costs more than most messages. */
static char *buffer_new(size_t bytes)
{
	char *buffer = aligned_alloc(64, (bytes + 63) / 64 * 64);

	return buffer ? memset(buffer, 0xff, bytes) : NULL;
}

int socket_open(struct side *side, int fd, size_t piece_max, size_t in_bytes)
{
	size_t size = side->plan->size;
	struct socket_link *link = malloc(sizeof *link);
	int sndbuf = 0;

	if (!link) {
		close(fd);
		return side_fail(side, -ENOMEM, "no memory");
	}
	*link = (struct socket_link){ .fd = fd };
	link->in_bytes = in_bytes < size ? size : in_bytes / size * size;
	link->out = buffer_new(size);
	link->in = buffer_new(link->in_bytes);
	side->link = link;
	if (!link->out || !link->in) {
		socket_close(side);
		return side_fail(side, -ENOMEM, "no memory");
	}
	/* As the kernel counts it: what was asked for, within its limit, and the same again for overhead. */
	if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &sndbuf, &(socklen_t){ sizeof sndbuf }) < 0) {
		socket_close(side);
		return side_fail(side, -errno, "SO_SNDBUF: %s", strerror(errno));
	}
	link->piece_max = (size_t)sndbuf / 2 < piece_max ? (size_t)sndbuf / 2 : piece_max;
	snprintf(side->outcome->detail, OUTCOME_DETAIL_MAX, "SO_SNDBUF %d", sndbuf);
	return 0;
}

void socket_close(struct side *side)
{
	struct socket_link *link = side->link;

	close(link->fd);
	free(link->out);
	free(link->in);
	free(link);
	side->link = NULL;
}

static int send_one(struct side *side, const char *from)
{
	struct socket_link *link = side->link;
	int flags = MSG_NOSIGNAL | (side->plan->spin ? MSG_DONTWAIT : 0);

	for (size_t rest = side->plan->size; rest;) {
		ssize_t n;

		side->n_system_calls++;
		n = send(link->fd, from, rest < link->piece_max ? rest : link->piece_max, flags);

		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
			return side_fail(side, -errno, "the peer is gone");
		if (n < 0)
			return side_fail(side, -errno, "send: %s", strerror(errno));
		from += n;
		rest -= (size_t)n;
	}
	return 0;
}

ssize_t socket_receive_some(struct side *side, void *to, size_t size)
{
	const struct socket_link *link = side->link;
	int flags = side->plan->spin ? MSG_DONTWAIT : 0;
	ssize_t n;

	do {
		side->n_system_calls++;
		n = recv(link->fd, to, size, flags);
	} while (n < 0 && (errno == EINTR || errno == EAGAIN));
	if (n > 0)
		return n;
	if (n == 0 || errno == ECONNRESET)
		return side_fail(side, -ECONNRESET, "the peer is gone after %" PRIu64 " of %" PRIu64 " messages",
			side->count, side->plan->messages);
	return side_fail(side, -errno, "recv: %s", strerror(errno));
}

int socket_receive_one(struct side *side, void *to)
{
	for (size_t got = 0; got < side->plan->size;) {
		ssize_t n = socket_receive_some(side, (char *)to + got, side->plan->size - got);

		if (n < 0)
			return (int)n;
		got += (size_t)n;
	}
	return 0;
}

static int send_number(struct side *side, uint64_t seq)
{
	const struct socket_link *link = side->link;

	touch_write(side->plan->touch, link->out, side->plan->size, seq);
	return send_one(side, link->out);
}

int socket_send(struct side *side)
{
	const struct plan *plan = side->plan;
	int r;

	for (uint64_t seq = 0; seq < plan->messages; seq++) {
		if (seq == plan->warm)
			side_start(side);
		r = send_number(side, seq);
		if (r < 0)
			return r;
	}
	side_stop(side);
	return 0;
}

int socket_ping(struct side *side)
{
	const struct socket_link *link = side->link;
	int r;

	for (uint64_t seq = 0; seq < side->plan->messages; seq++) {
		uint64_t start_ns = clock_ns();

		r = send_number(side, seq);
		if (r == 0)
			r = socket_receive_one(side, link->in);
		if (r < 0)
			return r;
		side_take(side, link->in);
		side_note_latency(side, seq, clock_ns() - start_ns);
	}
	return 0;
}

int socket_pong(struct side *side)
{
	const struct socket_link *link = side->link;
	int r;

	for (uint64_t seq = 0; seq < side->plan->messages; seq++) {
		r = socket_receive_one(side, link->in);
		if (r < 0)
			return r;
		side_take(side, link->in);
		r = send_number(side, seq);
		if (r < 0)
			return r;
	}
	return 0;
}
