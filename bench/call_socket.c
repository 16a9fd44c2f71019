/* SPDX-License-Identifier: MIT */
/*
 * Calls over plain sockets: each request and each reply behind a small header, in one send if it is not too large, with
 * as many requests on their way as it takes. Answers come in the order of the requests.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "transport.h"

struct header {
	uint64_t id;
	uint32_t size;
	uint32_t status;
};

enum {
	ALIGN = 64, /* of the payload behind a header */
	PIECE_MAX = 1 << 20, /* as transport_seqpacket.c has it */
	IN_BYTES = 256 << 10, /* as transport_stream.c */
};

struct link {
	int fd;
	size_t piece_max;      /* of a payload: most in one send */
	char *out, *in;        /* headers begin HEADER bytes before an aligned address */
	size_t out_bytes, out_left; /* of the message that leaves */
	size_t in_message, in_bytes; /* one message; room for so many whole ones */
	size_t in_fill, in_taken;
	uint64_t *starts_ns;   /* by id, modulo requests in flight */
	uint64_t begun, ended;
};

/* ---- One message ---- */

/* Writes what leaves next. */
static void prepare(struct side *side, uint64_t id, uint32_t status)
{
	struct link *link = side->link;
	size_t size = link->out_bytes - sizeof(struct header);
	struct header header = { .id = id, .size = (uint32_t)size, .status = status };

	memcpy(link->out, &header, sizeof header);
	touch_write(side->plan->touch, link->out + sizeof header, size, id);
	link->out_left = link->out_bytes;
}

/* The next piece of it. Positive: gone; 0: no room, with MSG_DONTWAIT; negative: told to the side. */
static int send_piece(struct side *side, int flags)
{
	struct link *link = side->link;
	size_t piece = link->piece_max + sizeof(struct header);
	ssize_t n;

	if (piece > link->out_left)
		piece = link->out_left;
	do {
		side->n_system_calls++;
		n = send(link->fd, link->out + (link->out_bytes - link->out_left), piece, MSG_NOSIGNAL | flags);
	} while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
		return side_fail(side, -errno, "the peer is gone");
	if (n < 0)
		return side_fail(side, -errno, "send: %s", strerror(errno));
	link->out_left -= (size_t)n;
	return 1;
}

/* Whatever has come. Positive: something; 0: nothing, with MSG_DONTWAIT; negative: told to the side. */
static int receive_some(struct side *side, int flags)
{
	struct link *link = side->link;
	ssize_t n;

	do {
		side->n_system_calls++;
		n = recv(link->fd, link->in + link->in_fill, link->in_bytes - link->in_fill, flags);
	} while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n == 0 || (n < 0 && errno == ECONNRESET))
		return side_fail(side, -ECONNRESET, "the peer is gone after %" PRIu64 " of %" PRIu64 " messages",
			side->count, side->plan->messages);
	if (n < 0)
		return side_fail(side, -errno, "recv: %s", strerror(errno));
	link->in_fill += (size_t)n;
	return 1;
}

/* The next whole message of what has come. False: there is none. */
static bool take(struct side *side, struct header *ret_header)
{
	struct link *link = side->link;
	const char *message = link->in + link->in_taken;

	if (link->in_fill - link->in_taken < link->in_message) {
		/* The buffer holds whole messages, so its end is one's end, and nothing is ever moved. */
		if (link->in_taken == link->in_fill)
			link->in_taken = link->in_fill = 0;
		return false;
	}
	memcpy(ret_header, message, sizeof *ret_header);
	link->in_taken += link->in_message;
	side_take_as(side, message + sizeof *ret_header, ret_header->id);
	return true;
}

static int dont_wait(const struct side *side)
{
	return side->plan->spin ? MSG_DONTWAIT : 0;
}

/* ---- Calling ---- */

/* Sends requests as long as there is room for them. */
static int send_requests(struct side *side)
{
	const struct plan *plan = side->plan;
	struct link *link = side->link;

	for (;;) {
		int r;

		if (!link->out_left) {
			if (link->begun == plan->messages || link->begun - link->ended == plan->inflight)
				return 0;
			prepare(side, link->begun, 0);
			link->starts_ns[link->begun++ % plan->inflight] = clock_ns();
		}
		/* A caller that waited for room, and an answerer that did, would wait for ever. */
		r = send_piece(side, MSG_DONTWAIT);
		if (r <= 0)
			return r;
	}
}

static int take_replies(struct side *side)
{
	const struct plan *plan = side->plan;
	struct link *link = side->link;
	struct header header;

	while (take(side, &header)) {
		uint64_t start_ns = link->starts_ns[header.id % plan->inflight];

		if (header.id != link->ended || header.size != plan->reply_size || header.status != (uint32_t)header.id)
			return side_fail(side, -EBADMSG, "reply %" PRIu64 ", size %u, status %u where %" PRIu64 " was due",
				header.id, header.size, header.status, link->ended);
		side_note_latency(side, header.id, clock_ns() - start_ns);
		link->ended++;
	}
	return 0;
}

static int call(struct side *side)
{
	struct link *link = side->link;

	while (link->ended < side->plan->messages) {
		int flags = dont_wait(side), r;

		r = send_requests(side);
		if (r == 0 && link->out_left) {
			struct pollfd both = { .fd = link->fd, .events = POLLIN | POLLOUT };

			side->n_system_calls += !side->plan->spin;
			if (!side->plan->spin && poll(&both, 1, -1) < 0 && errno != EINTR)
				return side_fail(side, -errno, "poll: %s", strerror(errno));
			flags = MSG_DONTWAIT;
		}
		if (r == 0)
			r = receive_some(side, flags);
		if (r > 0)
			r = take_replies(side);
		if (r < 0)
			return r;
	}
	return 0;
}

/* ---- Answering ---- */

static int answer(struct side *side)
{
	struct link *link = side->link;
	uint64_t answered = 0;

	while (answered < side->plan->messages) {
		struct header header;
		int r = receive_some(side, dont_wait(side));

		while (r >= 0 && take(side, &header)) {
			prepare(side, header.id, (uint32_t)header.id);
			while (r >= 0 && link->out_left)
				r = send_piece(side, dont_wait(side));
			answered++;
		}
		if (r < 0)
			return r;
	}
	return 0;
}

/* ---- Both ---- */

/* Touched before it is used: a fresh page costs more than most messages. */
static char *buffer_new(size_t bytes)
{
	size_t whole = (ALIGN + bytes + ALIGN - 1) / ALIGN * ALIGN;
	char *buffer = aligned_alloc(ALIGN, whole);

	return buffer ? (char *)memset(buffer, 0xff, whole) + ALIGN - sizeof(struct header) : NULL;
}

static void buffer_free(char *buffer)
{
	if (buffer)
		free(buffer + sizeof(struct header) - ALIGN);
}

static void close_link(struct side *side)
{
	struct link *link = side->link;

	close(link->fd);
	buffer_free(link->out);
	buffer_free(link->in);
	free(link->starts_ns);
	free(link);
	side->link = NULL;
}

static int open_link(struct side *side, int fd, bool calls, size_t piece_max, size_t in_bytes)
{
	const struct plan *plan = side->plan;
	struct link *link = calloc(1, sizeof *link);
	int sndbuf = 0;

	if (!link) {
		close(fd);
		return side_fail(side, -ENOMEM, "no memory");
	}
	link->fd = fd;
	side->link = link;
	link->out_bytes = sizeof(struct header) + (calls ? plan->size : plan->reply_size);
	link->in_message = sizeof(struct header) + side->in_bytes;
	link->in_bytes = in_bytes < link->in_message ? link->in_message : in_bytes / link->in_message * link->in_message;
	link->out = buffer_new(link->out_bytes);
	link->in = buffer_new(link->in_bytes);
	link->starts_ns = calloc(plan->inflight, sizeof *link->starts_ns);
	if (!link->out || !link->in || !link->starts_ns) {
		close_link(side);
		return side_fail(side, -ENOMEM, "no memory");
	}
	/* As the kernel counts it: what was asked for, within its limit, and the same again for overhead. */
	if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &sndbuf, &(socklen_t){ sizeof sndbuf }) < 0) {
		side_fail(side, -errno, "SO_SNDBUF: %s", strerror(errno));
		close_link(side);
		return -EIO;
	}
	link->piece_max = (size_t)sndbuf / 2 < piece_max ? (size_t)sndbuf / 2 : piece_max;
	snprintf(side->outcome->detail, OUTCOME_DETAIL_MAX, "SO_SNDBUF %d", sndbuf);
	return 0;
}

static int open_seqpacket(struct side *side, int fd, bool calls)
{
	return open_link(side, fd, calls, PIECE_MAX, 0);
}

static int open_stream(struct side *side, int fd, bool calls)
{
	return open_link(side, fd, calls, SIZE_MAX / 2, IN_BYTES);
}

const struct transport_calls transport_seqpacket_calls = {
	.open = open_seqpacket,
	.close = close_link,
	.call = call,
	.answer = answer,
};

const struct transport_calls transport_stream_calls = {
	.open = open_stream,
	.close = close_link,
	.call = call,
	.answer = answer,
};
