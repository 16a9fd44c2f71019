/* SPDX-License-Identifier: MIT */
/* What other threads hand to a loop: the queue of posts (see post.h), tasks, kicks (see loop.h), and wakes. */
#include "post.h"

#include <assert.h>
#include <errno.h>

#include "loop.h"

int wh_loop_post(struct wharf_loop *loop, struct wh_post *post)
{
	struct wh_posts *posts = &loop->posts;
	int error = 0;

	post->next = NULL;
	pthread_mutex_lock(&loop->kick_lock);
	if (atomic_load(&loop->freed)) {
		error = -EPIPE;
	} else if (posts->first) {
		/* Whoever posted that has woken the loop, which does not sleep before it has run it. */
		posts->last->next = post;
		posts->last = post;
	} else {
		posts->first = posts->last = post;
		atomic_store_explicit(&posts->waiting, true, memory_order_relaxed);
		if (wh_current_loop != loop || !loop->in_step)
			wh_engine_wake(loop->engine);
	}
	pthread_mutex_unlock(&loop->kick_lock);
	return error;
}

bool wh_loop_run_posts(struct wharf_loop *loop, int status)
{
	struct wh_posts *posts = &loop->posts;
	struct wh_post *post, *next;

	if (wh_likely(!atomic_load_explicit(&posts->waiting, memory_order_relaxed)))
		return false;
	pthread_mutex_lock(&loop->kick_lock);
	post = posts->first;
	posts->first = posts->last = NULL;
	atomic_store_explicit(&posts->waiting, false, memory_order_relaxed);
	pthread_mutex_unlock(&loop->kick_lock);
	for (; post; post = next) {
		next = post->next;
		wh_loop_count(loop, posts, 1);
		wh_loop_enter(loop, 0);
		post->run(post, status);
	}
	return true;
}

/* ---- Tasks ---- */

/* wharf_task.opaque: a post, and whether it is pending. */
enum { PENDING = 2 };
static_assert(sizeof(struct wh_post) <= PENDING * sizeof(uint64_t), "a post fits into a task");

static void run_task(struct wh_post *post, int status)
{
	struct wharf_task *task = (struct wharf_task *)((char *)post - offsetof(struct wharf_task, opaque));

	/* From here on another thread may post it again: with what this one has read of it. */
	__atomic_store_n(&task->opaque[PENDING], 0, __ATOMIC_RELEASE);
	task->run(task, status);
}

int wharf_loop_post(wharf_loop *loop, struct wharf_task *task)
{
	struct wh_post *post;
	int error;

	if (wh_forked())
		return -ECHILD;
	if (!loop || !task || !task->run)
		return -EINVAL;
	if (__atomic_exchange_n(&task->opaque[PENDING], 1, __ATOMIC_ACQUIRE))
		return -EALREADY;
	post = (struct wh_post *)task->opaque;
	post->run = run_task;
	error = wh_loop_post(loop, post);
	if (error)
		__atomic_store_n(&task->opaque[PENDING], 0, __ATOMIC_RELEASE);
	return error;
}

/* ---- Kicks ---- */

bool wh_loop_kick(struct wharf_loop *loop, struct wh_kick *kick, uint32_t reasons)
{
	bool pushed = false;

	if (atomic_fetch_or_explicit(&kick->reasons, reasons, memory_order_acq_rel))
		return false;
	pthread_mutex_lock(&loop->kick_lock);
	if (loop->engine) {
		kick->next = loop->kicked;
		loop->kicked = kick;
		pushed = true;
		if (wh_current_loop != loop || !loop->in_step)
			wh_engine_wake(loop->engine);
	}
	pthread_mutex_unlock(&loop->kick_lock);
	return pushed;
}

bool wh_loop_run_kicks(struct wharf_loop *loop)
{
	struct wh_kick *kick, *next;

	if (wh_likely(!atomic_load_explicit(&loop->kicked, memory_order_relaxed)))
		return false;
	pthread_mutex_lock(&loop->kick_lock);
	kick = loop->kicked;
	loop->kicked = NULL;
	pthread_mutex_unlock(&loop->kick_lock);
	for (; kick; kick = next) {
		next = kick->next;
		wh_loop_count(loop, kicks, 1);
		kick->run(kick, atomic_exchange_explicit(&kick->reasons, 0, memory_order_acq_rel));
	}
	return true;
}

/* ---- Wakes ---- */

int wharf_loop_wake(wharf_loop *loop)
{
	int error;

	if (wh_forked())
		return -ECHILD;
	if (!loop)
		return -EINVAL;
	/* No lock: a signal handler may have interrupted whoever holds it. */
	atomic_fetch_add(&loop->wakers, 1);
	atomic_store_explicit(&loop->rung, true, memory_order_release);
	error = atomic_load(&loop->freed) ? -EPIPE : wh_engine_wake(loop->engine);
	atomic_fetch_sub(&loop->wakers, 1);
	return error;
}

void wharf_loop_stop(wharf_loop *loop)
{
	if (!loop || wh_forked())
		return;
	atomic_store_explicit(&loop->stopped, true, memory_order_release);
	wharf_loop_wake(loop);
}
