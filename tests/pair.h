/* SPDX-License-Identifier: MIT */
/* Two ports that talk to each other on one loop, with a record of what each was told. Needs neither threads nor sleeps. */
#ifndef PAIR_H
#define PAIR_H

#include <stdbool.h>

#include "wharf.h"

enum { END_MESSAGES_MAX = 64 };

/* A received message, copied for the test to look at. */
struct seen {
	uint32_t type, flags;
	size_t size, n_slices, n_fds;
	size_t copied;
	unsigned char bytes[256];  /* the beginning of it */
	const void *at;            /* where the first slice lay */
	uint64_t stream, total, position;
};

struct end {
	wharf_port *port;          /* NULL once closed */
	struct pair *pair;
	unsigned n_open, n_writable, n_aborted, n_closed;
	struct { uint64_t stream; uint32_t why, app_code; } aborted; /* the last one */
	size_t n_messages;         /* all; the first END_MESSAGES_MAX are kept */
	uint64_t n_bytes;
	struct seen seen[END_MESSAGES_MAX];
	struct wharf_reason reason;
	char reason_text[256];
	struct wharf_peer peer;    /* as on_open told */
	struct wharf_peer peer_at_end;
	/* Called besides, if set. */
	void (*on_message)(struct end *end, const struct wharf_msg *msg);
	void (*on_writable)(struct end *end);
	void (*on_stream_abort)(struct end *end);
	void (*on_close)(struct end *end);
	void *user;
};

struct pair {
	wharf_loop *loop;
	struct end a, b;
};

extern const struct wharf_port_ops end_ops;

/* Opens both, a with *a_options and b with *b_options (NULL: defaults; ops and user are filled in), and steps until both are open. */
void pair_open(struct pair *ret_pair, const struct wharf_port_options *a_options, const struct wharf_port_options *b_options);
/* The same without stepping. */
void pair_start(struct pair *ret_pair, const struct wharf_port_options *a_options, const struct wharf_port_options *b_options);
/* One port, a, and the bare socket of its peer. */
int pair_open_half(struct pair *ret_pair, const struct wharf_port_options *a_options);
void pair_free(struct pair *pair);

/*
 * Skips a test that decides when frames are received: io_uring without deferred work does that whenever this process
 * enters the kernel, not in turns.
 */
void need_frames_to_wait_for_turns(void);

/* Steps until nothing moves any more. */
void settle(wharf_loop *loop);
/* Steps until *condition is at least `least`; fails the test after five seconds. */
void settle_until(wharf_loop *loop, const unsigned *condition, unsigned least);

/* A loop's alloc and free that count. */
extern size_t n_counted;
void *counting_alloc(size_t bytes, void *user);
void counting_free(void *memory, void *user);

/* An on_message that takes the first message there is. */
extern struct wharf_msg *taken_first;
void take_first(struct end *end, const struct wharf_msg *msg);

#endif
