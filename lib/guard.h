/* SPDX-License-Identifier: MIT */
/* What a process must know of itself: whether it is a forked child, and which loop its thread is running. */
#ifndef WH_GUARD_H
#define WH_GUARD_H

#include "base.h"

/*
 * First byte one of these in the process that made the page; the kernel zeroes it in a forked child (MADV_WIPEONFORK).
 * Until there is that page it is another one, of a process that is not forked. Where each nanosecond counts, one look
 * tells whether anything is unusual.
 */
enum { WH_GUARD_USUAL = 1, WH_GUARD_WATCHED = 3 };
extern const volatile unsigned char *wh_guard_page;

static inline bool wh_forked(void)
{
	/* Another thread may be making it: with this, what it wrote is seen. */
	const volatile unsigned char *page = __atomic_load_n(&wh_guard_page, __ATOMIC_ACQUIRE);
	return wh_unlikely(!__atomic_load_n(page, __ATOMIC_RELAXED));
}

/* Neither a forked child nor watched (trace.h), as far as loops have seen in their turns. */
static inline bool wh_usual(void)
{
	const volatile unsigned char *page = __atomic_load_n(&wh_guard_page, __ATOMIC_ACQUIRE);
	return wh_likely(__atomic_load_n(page, __ATOMIC_RELAXED) == WH_GUARD_USUAL);
}

void wh_guard_watch(bool watched); /* by loops; not in a forked child */

/* The loop that this thread is running, from its first step on until it steps another; NULL for other threads. */
extern _Thread_local const void *wh_current_loop __attribute__((tls_model("initial-exec")));

/*
 * Something whose descriptors a forked child must not keep. child runs in the child of every fork() (not of vfork or
 * raw clone), async-signal-safe.
 */
struct wh_fork_hook {
	void (*child)(struct wh_fork_hook *hook);
	struct wh_fork_hook *next;
	struct wh_fork_hook **link;
};

/*
 * Makes the page and the atfork handlers, once. 0; -ENOMEM; -ECHILD. First call of every entry point that creates
 * something.
 */
int wh_guard_init(void);
/* Between the two no other thread forks: for descriptors that come and go outside of a hook's knowledge. */
void wh_guard_lock(void);
void wh_guard_unlock(void);
void wh_guard_add(struct wh_fork_hook *hook);
void wh_guard_remove(struct wh_fork_hook *hook); /* once; any thread */

/*
 * For a child that starts over: forgets the parent's hooks and makes a new page. 0; -EALREADY: not a forked child;
 * -ENOMEM.
 */
int wh_guard_restart(void);

#endif
