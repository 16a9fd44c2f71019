/* SPDX-License-Identifier: MIT */
/* Plain sockets: what the two socket transports have in common. Blocking calls, one send for each message. */
#ifndef BENCH_SOCKET_H
#define BENCH_SOCKET_H

#include <sys/types.h>

#include "side.h"

/* A connected pair with the plan's SO_SNDBUF. type: SOCK_SEQPACKET or SOCK_STREAM. */
int socket_pair(const struct plan *plan, int type, int ret_fds[2]);

/*
 * A side's link. Both sides know the size of a message, so there is no length in front of it. A real program has one:
 * this favours the baseline a little.
 */
struct socket_link {
	int fd;
	size_t piece_max; /* most in one send */
	char *out;        /* one message */
	char *in;         /* in_bytes, a multiple of the message's size */
	size_t in_bytes;
};

/* piece_max: most in one send, if the socket's buffer is large enough. in_bytes: rounded to at least one message. */
int socket_open(struct side *side, int fd, size_t piece_max, size_t in_bytes);
void socket_close(struct side *side);

/* Whatever has come, up to size bytes: how many, or a negative errno; the end is -ECONNRESET. */
ssize_t socket_receive_some(struct side *side, void *to, size_t size);

/* Roles that do not depend on the type. */
int socket_send(struct side *side);
int socket_ping(struct side *side);
int socket_pong(struct side *side);

/* One message, whole. 0; negative errno. */
int socket_receive_one(struct side *side, void *to);

#endif
