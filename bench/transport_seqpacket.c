/* SPDX-License-Identifier: MIT */
/* SOCK_SEQPACKET, one packet for each message: what people use today where messages have to stay whole. */
#include <sys/socket.h>

#include "socket.h"
#include "transport.h"

/*
 * Larger messages go in pieces: the kernel refuses packets above the socket's buffer, and above about 6 MiB in any
 * case. Tried from 32 KiB to 2 MiB: 1 MiB was twice as fast as 128 KiB, 2 MiB no faster.
 */
enum { PIECE_MAX = 1 << 20 };

static int pair(const struct plan *plan, int ret_fds[2])
{
	return socket_pair(plan, SOCK_SEQPACKET, ret_fds);
}

static int open_link(struct side *side, int fd)
{
	return socket_open(side, fd, PIECE_MAX, 0);
}

static int receive(struct side *side)
{
	const struct socket_link *link = side->link;

	while (side->count < side->plan->messages) {
		int r = socket_receive_one(side, link->in);

		if (r < 0)
			return r;
		side_take(side, link->in);
	}
	return 0;
}

const struct transport transport_seqpacket = {
	.name = "seqpacket",
	.pair = pair,
	.open = open_link,
	.close = socket_close,
	.send = socket_send,
	.receive = receive,
	.ping = socket_ping,
	.pong = socket_pong,
	.calls = &transport_seqpacket_calls,
};
