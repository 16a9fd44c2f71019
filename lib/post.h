/* SPDX-License-Identifier: MIT */
/* What any thread hands to a loop: one queue, so that posts of all kinds keep one order. Never allocates. */
#ifndef WH_POST_H
#define WH_POST_H

#include "base.h"

struct wharf_loop;

/* Embedded in what is posted; the loop's while it is queued, its owner's again from when run is called. */
struct wh_post {
	struct wh_post *next;
	/* Loop's thread, no lock held. status 0, or -EPIPE: the loop is being freed */
	void (*run)(struct wh_post *post, int status);
} __attribute__((may_alias)); /* lies in wharf_task.opaque */

/* Under the loop's kick_lock, all but `waiting` of another thread than the loop's. */
struct wh_posts {
	struct wh_post *first, *last;
	_Atomic bool waiting; /* there are some */
};

/*
 * Queues it behind all that was posted before, and wakes the loop. Any thread, but no signal handler. 0; -EPIPE: the
 * loop was freed.
 */
int wh_loop_post(struct wharf_loop *loop, struct wh_post *post);

/* Loop's thread. Runs what was posted before: what is posted meanwhile waits for the next time. True: there was some. */
bool wh_loop_run_posts(struct wharf_loop *loop, int status);

#endif
