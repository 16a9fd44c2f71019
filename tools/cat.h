/* SPDX-License-Identifier: MIT */
/* What the files of wharf-cat share: its options, the messages between its two ends, and how a transfer ends. */
#ifndef CAT_H
#define CAT_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "cat-digest.h"
#include "cat-progress.h"
#include "wharf.h"

enum {
	CAT_VERSION = 1,
	CAT_BLOCK_BYTES = 1 << 20,
	CAT_POOL_BYTES = 8 << 20, /* 4 to 64 MiB were equally fast; this much is still in the cache when it is read */
};

/*
 * The sender says START, DATA as often as it takes, END; the receiver answers DONE when everything is written. Whoever
 * fails aborts its port: the code is an errno, or one of CAT_ABORT_*.
 */
enum {
	CAT_START = 1,
	CAT_DATA = 2,
	CAT_END = 3,
	CAT_DONE = 4,
};

enum {
	CAT_ABORT_INTERRUPTED = 0x10000,
	CAT_ABORT_USER = 0x10001,
	CAT_ABORT_PROTOCOL = 0x10002,
	CAT_ABORT_LENGTH = 0x10003,
	CAT_ABORT_DIGEST = 0x10004,
};

#define CAT_BYTES_UNKNOWN UINT64_MAX

struct cat_start {
	uint32_t version;
	uint32_t checksum; /* 1: END carries a digest */
	uint64_t bytes;    /* what is going to come, or CAT_BYTES_UNKNOWN; for the progress bar only */
};
static_assert(sizeof(struct cat_start) == 16, "the same for 32 and 64 bits");

struct cat_end {
	uint64_t bytes;
	uint8_t digest[CAT_DIGEST_BYTES]; /* zero without a checksum */
};
static_assert(sizeof(struct cat_end) == 40, "the same for 32 and 64 bits");

struct cat_options {
	const char *address;
	const char *file; /* NULL: standard input or output */
	int64_t wait_ns;  /* for the other side; negative: not given */
	bool listen;
	bool checksum;
	bool any_user;
	bool plain;
	bool quiet;
	bool verbose;
};

struct cat {
	const struct cat_options *options;
	int fd; /* read by a sender, written by a receiver */
	wharf_loop *loop;
	wharf_listener *listener; /* NULL for a sender, and once the sender is there */
	wharf_port *port; /* the other side; NULL before there is one, and after on_close */
	struct cat_progress progress;
	struct cat_digest digest;
	uint64_t bytes;      /* read and accepted by the port, or written */
	uint64_t started_ns; /* when the two sides knew each other, 0 before */
	int connect_error;   /* of a port that closed before it opened; positive */
	bool writable;       /* on_writable fired; cleared by whoever waits for it */
	bool closed;
	bool start_seen;
	bool checksum_announced;
	bool done; /* the receiver has everything */
	bool write_failed;
	char error[512]; /* the first thing that went wrong; empty: nothing */
};

/* Each does a whole transfer, and returns the exit status. All but the plain ones need the loop. */
int cat_send(struct cat *c);
int cat_receive(struct cat *c);
int cat_plain_send(struct cat *c);
int cat_plain_receive(struct cat *c);

/* cat-run.c */

/* Records why the transfer failed, the first time, and aborts the port with this code. */
void cat_fail(struct cat *c, uint32_t abort_code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* One line on standard error that is not an error, above the progress bar. */
void cat_say(struct cat *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Runs the loop once, no longer than until the progress bar wants to be painted. */
void cat_step(struct cat *c, int64_t timeout_ns);

/* Nothing more can be transferred: closed, failed, or interrupted (which this call turns into a failure). */
bool cat_stopped(struct cat *c);

/* Waits for something to read, running the loop meanwhile; or only looks. False: there is nothing, or stopped. */
bool cat_await_input(struct cat *c, bool only_look);

/* Lets the port end, tells how it went, and returns what cat_send and cat_receive return. */
int cat_finish(struct cat *c);

/* Whether another attempt to connect is due: sleeps a little, until the deadline has passed. */
bool cat_connect_again(struct cat *c, int error, uint64_t deadline_ns);
void cat_connect_failed(struct cat *c, int error);

/* The transfer begins, or moved on. */
void cat_begin(struct cat *c);
void cat_advance(struct cat *c, uint64_t bytes);

/* Signals that end the program wake this loop. */
void cat_signals_install(void);
void cat_signals_wake(wharf_loop *loop);
int cat_signal_caught(void);

uint64_t cat_now_ns(void);

/* Whether another side of this user is welcome. */
bool cat_user_accepted(const struct cat *c, uid_t uid);

/* Callbacks that both sides use; user is the struct cat. */
void cat_on_open(wharf_port *port, const struct wharf_peer *peer, void *user);
void cat_on_writable(wharf_port *port, void *user);
void cat_on_close(wharf_port *port, const struct wharf_reason *reason, void *user);

/* cat-file.c */

/* Sets c->fd; the output is created or emptied. False after cat_fail. */
bool cat_open(struct cat *c);

/* Writes it all, whatever the kernel takes at once. False after cat_fail. */
bool cat_write(struct cat *c, const struct wharf_slice *slices, size_t n_slices);

/* Ends the output. False after cat_fail. */
bool cat_close_written(struct cat *c);

/* "standard output" or the file's name. */
const char *cat_file_name(const struct cat *c);

#endif
