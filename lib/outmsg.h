/* SPDX-License-Identifier: MIT */
/* A message on its way into frames: made on the stack by a send, moved to the heap when it has to wait. */
#ifndef WH_OUTMSG_H
#define WH_OUTMSG_H

#include "port.h"

/* One part of it: memory, claimed or not. */
struct wh_outpart {
	const unsigned char *bytes;      /* what is left of it */
	uint64_t size;                   /* of that */
	struct wharf_buf buf;            /* the claim that it lies in, ours until encoded; or empty */
	struct wh_run run;               /* with chunks: lent, but not encoded yet; the first run.size bytes of what is left */
	void (*done)(const void *bytes, size_t size, void *user);
	void *user;
	const void *begin;               /* for done */
	size_t whole;
	bool stays;                      /* travels as bytes, whatever could be lent */
};

struct wh_outmsg {
	struct wh_outmsg *next, **link;  /* in its flow's queue; what points to it there */
	struct wh_outmsg *chain;         /* in the table of values that wait */
	struct wh_flow *flow;
	uint64_t total_bytes;            /* of the whole message or stream; UINT64_MAX: not known */
	uint64_t position_bytes;         /* in that, of what is left */
	uint64_t left_bytes;
	uint64_t charge_bytes;           /* of the last record that was encoded, against the flow's credit */
	uint64_t cost;                   /* against the cap */
	uint64_t lent_bytes;             /* in whole chunks, against the other cap; 0 on ports without */
	uint64_t key;
	uint32_t type;
	uint32_t status;                 /* of a last reply */
	uint16_t n_parts, at;            /* the first part that is left */
	uint16_t n_fds;
	bool first, last;                /* the message begins with it, and the first record is yet to come; it ends with it */
	bool end;                        /* the stream, or this direction of the call, ends with it */
	bool delegated;
	bool is_end;                     /* an end that is passed on: one descriptor, nothing else */
	bool is_value;                   /* see latest.h */
	bool close_fds;                  /* the descriptors are ours */
	bool must;                       /* is not refused for want of credit or room */
	bool by_reference;               /* has parts with `done` */
	bool posted;                     /* by another thread: a part of post_message.c's, with a cap of its own */
	int *fds;
	struct wh_outpart *parts;
};

/* For stacks. */
struct wh_outmsg_room {
	struct wh_outpart parts[WH_WIRE_ITEMS_MAX];
	int fds[WH_ENGINE_FDS_MAX];
};

/*
 * Fills the message from what the application gave; of `m` it reads flow, first, last, end, delegated and, for streams,
 * total and position. pool: as in wharf_buf.opaque; 0: any, for what is copied. Any thread. 0; -EINVAL; -EXDEV;
 * -EOPNOTSUPP; -EMSGSIZE.
 */
int wh_outmsg_read(uint64_t pool, const struct wharf_out *out, struct wh_outmsg *m, struct wh_outmsg_room *room);
void wh_out_empty(const struct wharf_out *out); /* accepted: its buffers are ours */
/* Duplicates, or checks, before anything is accepted. 0; -EBADF; -EINVAL; -EMFILE. */
int wh_fds_take(const struct wharf_out *out, int *fds);
uint64_t wh_outmsg_cost(const struct wh_outmsg *m);
/* A copy that can wait, into so many bytes; bytes that are not by reference are copied, too. */
size_t wh_outmsg_bytes(const struct wh_outmsg *m);
void wh_outmsg_copy(const struct wh_outmsg *m, struct wh_outmsg *ret_copy);
/* The same in the loop's memory. NULL: there is none, m is as it was. */
struct wh_outmsg *wh_outmsg_keep(struct wharf_port *port, const struct wh_outmsg *m);
/* Everything of it is dropped: claims, descriptors, runs lent. `done` of its parts follows in this turn. */
void wh_outmsg_drop(struct wharf_port *port, struct wh_outmsg *m);
void wh_outmsg_empty(struct wharf_port *port, struct wh_outmsg *m); /* the same, but for `done` and its memory */
/* One that is encoded to its end. */
void wh_outmsg_finish(struct wharf_port *port, struct wh_outmsg *m);
/* Undoes lending: the claims are as before. */
void wh_outmsg_take_back(struct wharf_port *port, struct wh_outmsg *m);
void wh_port_run_done(struct wharf_port *port); /* calls `done` of parts that nobody needs any more */

enum wh_encoded {
	WH_ENCODED,              /* to its end */
	WH_ENCODED_PIECE,        /* a record of it */
	WH_FRAME_FULL,           /* the open frame takes no more; nothing was encoded of it, but perhaps announced */
	WH_NEEDS_PIECES,         /* it does not fit a frame, and may_split was false */
	WH_ENCODE_FAILED,        /* *ret_error */
};
/*
 * Into the open frame, announcing segments before. waits: it has been accepted, so that what cannot be lent travels as
 * bytes, and it may go in pieces.
 */
enum wh_encoded wh_outmsg_encode(struct wharf_port *port, struct wh_outmsg *m, bool waits, int *ret_error);

/*
 * Sends it, at once or later: send.c. m as for wh_outmsg_read, and is_value, key; out's flags have been checked. As
 * wharf_send.
 */
int wh_port_send(struct wharf_port *port, struct wh_outmsg *m, const struct wharf_out *out);
/* What was posted, if nothing waits before it and it can be in a frame at once. False: it is as it was. */
bool wh_port_encode_posted(struct wharf_port *port, struct wh_outmsg *m);

#endif
