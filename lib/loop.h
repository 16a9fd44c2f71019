/* SPDX-License-Identifier: MIT */
/* The loop: one engine, the ports and listeners on it, and the order in which a turn happens. */
#ifndef WH_LOOP_H
#define WH_LOOP_H

#include <pthread.h>

#include "engine.h"
#include "guard.h"
#include "ledger.h"
#include "list.h"
#include "post.h"
#include "timer.h"
#include "trace.h"
#include "wharf.h"

struct wh_outframe;

/* Anything on a loop that the engine reports on: the first member of ports and listeners. */
struct wh_source {
	struct wh_link link;
	struct wharf_loop *loop;
	struct wh_list all;                                     /* on loop->sources */
	void (*event)(struct wh_source *source, struct wh_event *event); /* owns a FRAME: calls wh_engine_frame_done */
	void (*loop_freed)(struct wh_source *source);
};

/* Work that another thread hands to the loop; embedded, pushed at most once until it has run. */
struct wh_kick {
	_Atomic uint32_t reasons;                               /* bits of the user's */
	struct wh_kick *next;
	/* loop's thread; drops the reference that wh_loop_kick's caller took */
	void (*run)(struct wh_kick *kick, uint32_t reasons);
};

struct wh_deadline {
	struct wh_timer timer;
	void (*expired)(struct wh_deadline *deadline);
};

static inline bool wh_deadline_armed(const struct wh_deadline *deadline) { return deadline->timer.position; }

struct wharf_loop {
	struct wh_engine *engine;
	_Atomic uint32_t refs;
	_Atomic bool stopped;
	_Atomic bool freed;
	_Atomic bool owned;         /* `thread` is set: the loop was stepped or flushed */
	bool in_step;
	bool embedded;              /* wharf_loop_fd was asked for */
	bool roused;                /* the fd was made readable for what happened outside a step */
	int broken;                 /* negative errno, sticky */
	pthread_t thread;
	uint32_t turn;              /* low half of n_turns */
	uint64_t n_turns;
	uint64_t turn_ns;
	uint32_t frame_bytes_max;
	uint64_t spin_ns;

	struct wh_list sources;     /* everything attached */
	uint32_t n_users;           /* ports not yet closed, and listeners: what keeps wharf_loop_run running */
	struct wh_list dirty;       /* ports with something to send */
	/* Ports whose frame the kernel had no room for: tried again in turns that something else caused. */
	struct wh_list waiting;
	struct wh_list ready;       /* ports with received frames that wait for a turn */
	struct wh_list chores;      /* ports with callbacks that no event brings */
	struct wh_list ending;      /* ports whose on_close is due */
	struct wh_timers timers;

	struct wh_stats_loop *stats;
	bool seen;                  /* by whoever looks from outside: else nothing is published */
	struct wh_list touched;     /* ports to publish */
	uint32_t n_listed[4];       /* those that are dirty, waiting, ready, ending: as published */
	struct wh_trace trace;
	struct wh_lease_observer observer; /* of what its ports claim */

	pthread_mutex_t kick_lock;  /* kicks, posts and the life of the engine against other threads */
	struct wh_kick *_Atomic kicked;
	struct wh_posts posts;
	_Atomic bool rung;          /* by wharf_loop_wake, and not yet seen by a spinning wait */
	_Atomic uint32_t wakers;    /* threads and signal handlers inside wharf_loop_wake */

	struct wh_outframe *spare_frames;
	uint32_t n_spare_frames;
	struct wh_list spare_calls; /* flows that ended, of the size of a call: kept, as spare frames are */
	uint32_t n_spare_calls;

	struct wh_fork_hook fork_hook;
	void *(*alloc)(size_t bytes, void *user);
	void (*free)(void *memory, void *user);
	void (*diagnostic)(const char *text, void *user);
	uint64_t (*clock_ns)(void *user);
	void *user;
};

/* For whoever looks from outside: whose callbacks run now, as a position; 0: no port's. */
static inline void wh_loop_enter(struct wharf_loop *loop, uint32_t position)
{
	atomic_store_explicit(&loop->stats->in_port, position, memory_order_relaxed);
}

/* As wh_trace, of what comes with each message. The first where somebody is known to look. */
static inline void wh_trace_watched(
	struct wharf_loop *loop, const struct wharf_port *port, enum wh_often often, uint64_t a, uint64_t b)
{
	if (loop->trace.left[often]-- > 0)
		wh_trace_note_often(loop, port, often, a, b);
}
static inline void wh_trace_often(
	struct wharf_loop *loop, const struct wharf_port *port, enum wh_often often, uint64_t a, uint64_t b)
{
	if (wh_is_watched())
		wh_trace_watched(loop, port, often, a, b);
}

static inline void *wh_loop_alloc(struct wharf_loop *loop, size_t bytes) { return loop->alloc(bytes, loop->user); }
static inline void wh_loop_dealloc(struct wharf_loop *loop, void *memory) { loop->free(memory, loop->user); }

/*
 * 0; -ECHILD; -EINVAL: NULL; -EPIPE: freed; -EPERM: another thread's. First line of every public function of the loop's
 * thread.
 */
int wh_loop_check(const struct wharf_loop *loop);

void wh_loop_add(struct wharf_loop *loop, struct wh_source *source, int fd);
void wh_loop_remove(struct wh_source *source); /* after DETACHED */

/* Something was queued: outside a step the loop's fd becomes readable, once until the next step. */
void wh_loop_rouse(struct wharf_loop *loop);

/*
 * Any thread: has kick->run called on the loop's thread with all reasons collected until then. True: it was not
 * pending, and the reference that the caller holds for it now belongs to the kick. False: pending already, or the loop
 * is gone.
 */
bool wh_loop_kick(struct wharf_loop *loop, struct wh_kick *kick, uint32_t reasons);
bool wh_loop_run_kicks(struct wharf_loop *loop); /* loop's thread. True: there were any */

void wh_loop_set_deadline(struct wharf_loop *loop, struct wh_deadline *deadline, uint64_t in_ns);
void wh_loop_clear_deadline(struct wharf_loop *loop, struct wh_deadline *deadline);

uint64_t wh_loop_clock(const struct wharf_loop *loop);

/* printf to options.diagnostic, if there is one. */
void wh_loop_say(const struct wharf_loop *loop, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
