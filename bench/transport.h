/* SPDX-License-Identifier: MIT */
/* Transports: what is compared. */
#ifndef BENCH_TRANSPORT_H
#define BENCH_TRANSPORT_H

#include <stddef.h>

#include "side.h"

/* As a transport: in each of the two processes open, one of the two roles, close. */
struct transport_calls {
	/* calls: this is the side that calls. */
	int (*open)(struct side *side, int fd, bool calls);
	void (*close)(struct side *side);

	/*
	 * Has as many requests on their way as the plan wants until all are answered; passes each reply to side_take_as, and
	 * notes the time from when its request, written, was given to the transport to after the reply was read.
	 */
	int (*call)(struct side *side);
	/* Passes each request to side_take_as, and replies to it with one of the same number. */
	int (*answer)(struct side *side);
};

/*
 * All return 0 or a negative errno. Those with a side have told the reason by side_fail.
 * pair is called in the parent; then, in each of the two processes: open, one of the four roles, close.
 */
struct transport {
	const char *name;

	int (*pair)(const struct plan *plan, int ret_fds[2]);

	/* Gets ready, peer included; nothing is timed here. fd is the side's from now on, also after a failure. */
	int (*open)(struct side *side, int fd);
	void (*close)(struct side *side);

	/* Throughput: writes and sends all messages; calls side_start before number `warm`, side_stop at the end. */
	int (*send)(struct side *side);
	/* Throughput: passes each message to side_take. */
	int (*receive)(struct side *side);

	/* Latency: sends a message, takes the answer, notes the time from before the write to after the read. */
	int (*ping)(struct side *side);
	/* Latency: takes each message, and answers with one of the same number. */
	int (*pong)(struct side *side);

	const struct transport_calls *calls;
};

extern const struct transport_calls transport_wharf_calls;
extern const struct transport_calls transport_seqpacket_calls;
extern const struct transport_calls transport_stream_calls;

extern const struct transport transport_wharf;
extern const struct transport transport_seqpacket;
extern const struct transport transport_stream;

/* All of them, ended by NULL. */
extern const struct transport *const transports[];

/* NULL: none of that name, of name_length bytes. */
const struct transport *transport_find(const char *name, size_t name_length);

#endif
