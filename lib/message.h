/* SPDX-License-Identifier: MIT */
/* A received message as the library sees it: borrowed while its handler runs, or taken. */
#ifndef WH_MESSAGE_H
#define WH_MESSAGE_H

#include "port.h"

struct wh_message {
	struct wharf_msg pub;            /* first */
	struct wharf_port *port;
	const struct wh_run *runs;       /* one per slice */
	int *fds;
	void *joined;                    /* wharf_msg_contiguous's copy; with one slice: what it lies in */
	struct wh_message *heir;         /* borrowed: who has that now, held until the handler returns; or NULL */
	struct wh_flow *flow;            /* whose credit it holds, or NULL */
	uint64_t charge_bytes;
	bool is_taken;                   /* borrowed: by the application */
	bool is_private;                 /* a copy made for delivery */
	bool holds;                      /* taken: some of it lies in the peer's memory */
	_Atomic uint32_t refs;           /* taken */
	struct wh_view **views;          /* taken: one per slice, NULL for inline bytes */
};

/*
 * Makes a message that lives by itself: runs of shared memory are copied if `private`, else kept mapped. NULL: no
 * memory.
 */
struct wh_message *wh_message_take(struct wh_message *borrowed, bool private);
void wh_message_unref(struct wh_message *taken);

#endif
