/* SPDX-License-Identifier: MIT */
/* SOCK_STREAM, one send for each message; the receiver reads as much as there is and takes the messages out of it. */
#include <sys/socket.h>

#include "socket.h"
#include "transport.h"

/* What one recv asks for, in whole messages. Tried from 64 KiB to 1 MiB: no difference that repeated itself. */
enum { IN_BYTES = 256 << 10 };

static int pair(const struct plan *plan, int ret_fds[2])
{
	return socket_pair(plan, SOCK_STREAM, ret_fds);
}

static int open_link(struct side *side, int fd)
{
	return socket_open(side, fd, SIZE_MAX, IN_BYTES);
}

static int receive(struct side *side)
{
	const struct socket_link *link = side->link;
	size_t size = side->plan->size, fill = 0, taken = 0;

	while (side->count < side->plan->messages) {
		ssize_t n = socket_receive_some(side, link->in + fill, link->in_bytes - fill);

		if (n < 0)
			return (int)n;
		fill += (size_t)n;
		for (; fill - taken >= size; taken += size)
			side_take(side, link->in + taken);
		/* The buffer holds whole messages, so its end is one's end, and nothing is ever moved. */
		if (taken == fill)
			taken = fill = 0;
	}
	return 0;
}

const struct transport transport_stream = {
	.name = "stream",
	.pair = pair,
	.open = open_link,
	.close = socket_close,
	.send = socket_send,
	.receive = receive,
	.ping = socket_ping,
	.pong = socket_pong,
	.calls = &transport_stream_calls,
};
