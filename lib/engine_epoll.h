/* SPDX-License-Identifier: MIT */
/* The insides of the epoll engine. */
#ifndef WH_ENGINE_EPOLL_H
#define WH_ENGINE_EPOLL_H

#include "engine_core.h"

/*
 * wh_link.state. The kernel reports edges: what wh_link.armed says has come to rest, until the next event; what it does
 * not is tried.
 */
enum {
	REGISTERED = OWN_STATES << 0,
};

struct wh_epoll {
	struct wh_engine engine;
	int fd;                    /* what a host watches, too */
	int timer_fd;              /* its deadlines; -1: there is no host */
	bool rings;                /* wake_fd was rung for the host, and that was not seen yet */
	bool without_ns;           /* the kernel has no epoll_pwait2 */
	bool found;                /* the last look at what there is found something */
	bool skipped;              /* the last turn did not ask the kernel */
	struct wh_list ready;      /* links that may have frames, and want them */
	uint32_t n_ready;
};

static inline struct wh_epoll *wh_epoll_of(const struct wh_engine *engine)
{
	return wh_container_of(engine, struct wh_epoll, engine);
}

static inline void wh_epoll_arm(struct wh_link *link, uint32_t request)
{
	link->engine->n_armed[request - 1] += !(link->armed & WH_BIT(request));
	link->armed |= WH_BIT(request);
}

static inline void wh_epoll_disarm(struct wh_link *link, uint32_t request)
{
	link->engine->n_armed[request - 1] -= !!(link->armed & WH_BIT(request));
	link->armed &= ~WH_BIT(request);
}

/* Puts a descriptor of the engine's own under the kernel's eyes. 0 or a negative errno. */
int wh_epoll_add_own(struct wh_epoll *epoll, int *fd);
/* Does what was requested. How many frames it has sent. */
uint32_t wh_epoll_flush(struct wh_epoll *epoll);
/* Notes an event of the kernel's. */
void wh_epoll_note(struct wh_link *link, uint32_t events);
/* Something was requested or is at hand: there is no reason to wait. */
bool wh_epoll_pending(const struct wh_epoll *epoll);

/* Behind wh_engine_ops. */
void wh_epoll_pause(struct wh_engine *engine, struct wh_link *link);
void wh_epoll_detach(struct wh_engine *engine, struct wh_link *link);
int wh_epoll_fd(struct wh_engine *engine);
int wh_epoll_sleep(struct wh_engine *engine, int64_t deadline_ns, bool now);
void wh_epoll_rouse(struct wh_engine *engine);

#endif
