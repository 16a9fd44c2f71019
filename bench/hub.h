/* SPDX-License-Identifier: MIT */
/* The hub: one loop that many ports send to. It counts and checks what each of them brings. */
#ifndef BENCH_HUB_H
#define BENCH_HUB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <wharf.h>

#include "side.h"

struct hub_port {
	struct hub *hub;
	wharf_port *port;     /* NULL: not yet open, or closed */
	size_t size;          /* of its messages */
	uint64_t count, sum;
	uint64_t last;        /* count at which done_ns is noted */
	uint64_t done_ns;
	bool bad;
	uint64_t bad_at, bad_seq; /* the first message that was not the expected one */
	bool echo;            /* answers each message with one of the same number */
};

struct hub {
	const struct plan *plan;
	struct outcome *outcome;
	wharf_loop *loop;
	wharf_listener *listener;
	struct hub_port *ports;
	size_t n_ports;       /* that there is room for */
	unsigned reads;       /* how often each payload is read; 1 */
	size_t n_used, n_open, n_closed;
	uint64_t total;       /* messages, answered ones not included */
	uint64_t mark;        /* total at which on_mark is called */
	void (*on_mark)(struct hub *hub);
	void *user;
};

/* All return 0 or a negative errno, told to the outcome. Failed or not, hub_close is called. */
int hub_open(struct hub *hub, const struct plan *plan, struct outcome *outcome, size_t n_ports);
void hub_close(struct hub *hub);

/* Takes whoever connects, while there is room. */
int hub_listen(struct hub *hub, const char *address);

/* Opens one end of a pair as a port that answers. fd is the hub's from now on. */
int hub_echo(struct hub *hub, int fd, size_t size);

int hub_step(struct hub *hub);

/* Each of its ports sends `messages` messages, and no more. */
int hub_check(struct hub *hub, uint64_t messages);
int hub_check_port(struct hub *hub, const struct hub_port *port, uint64_t messages);

#endif
