/* SPDX-License-Identifier: MIT */
/* Turns: see loop.h. What a port does in its part of a turn is in port.c, send.c and receive.c. */
#include "loop.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "options.h"
#include "port.h"

enum {
	LOOP_FLAGS = WHARF_LOOP_UNSEEN | WHARF_LOOP_TRACE,
	RX_BUFFERS = 64, /* 2 MiB of frames in the kernel's hands; more did not help the throughput of one port */
	WAITING_PER_TURN = 16, /* that are tried though the kernel has not said that there is room */
	EVENTS_PER_TURN =
		1024, /* what sends inside callbacks complete is harvested into the same queue: a turn must end */
};

static void *plain_alloc(size_t bytes, void *user)
{
	(void)user;
	return malloc(bytes);
}

static void plain_free(void *memory, void *user)
{
	(void)user;
	free(memory);
}

uint64_t wh_loop_clock(const struct wharf_loop *loop)
{
	return loop->clock_ns ? loop->clock_ns(loop->user) : wh_clock_ns(CLOCK_MONOTONIC);
}

void wh_loop_say(const struct wharf_loop *loop, const char *format, ...)
{
	char text[256];
	va_list arguments;

	if (!loop->diagnostic)
		return;
	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	loop->diagnostic(text, loop->user);
}

int wh_loop_check(const struct wharf_loop *loop)
{
	if (wh_forked())
		return -ECHILD;
	if (!loop)
		return -EINVAL;
	if (loop->freed)
		return -EPIPE;
	if (atomic_load_explicit(&loop->owned, memory_order_acquire) && wh_unlikely(!pthread_equal(loop->thread, pthread_self())))
		return -EPERM;
	return 0;
}

/* A child's copies of sockets and rings would hide this process's death from its peers. */
static void close_in_child(struct wh_fork_hook *hook)
{
	struct wharf_loop *loop = wh_container_of(hook, struct wharf_loop, fork_hook);

	for (struct wh_list *i = loop->sources.next; i != &loop->sources; i = i->next)
		wh_link_forked(&wh_container_of(i, struct wh_source, all)->link);
	if (loop->engine)
		wh_engine_forked(loop->engine);
}

/* What the caller gave, with defaults filled in; or what is wrong with it. */
static int read_options(const struct wharf_loop_options *given, struct wharf_loop_options *o)
{
	int error = WH_OPTIONS_READ(given, o);

	if (error)
		return error;
	if (o->flags & ~(uint32_t)LOOP_FLAGS || o->flags == LOOP_FLAGS || o->engine > WHARF_ENGINE_EPOLL ||
		!o->alloc != !o->free)
		return -EINVAL;
	if (!o->rx_buffers)
		o->rx_buffers = RX_BUFFERS;
	if (!o->frame_bytes_max)
		o->frame_bytes_max = 32768;
	if (o->rx_buffers < 2 || o->rx_buffers > 32768 || (o->rx_buffers & (o->rx_buffers - 1)))
		return -EINVAL;
	if (o->frame_bytes_max < WH_FRAME_BYTES_MIN || o->frame_bytes_max > WH_FRAME_BYTES_MAX)
		return -EINVAL;
	o->frame_bytes_max &= ~63u;
	if (!o->alloc) {
		o->alloc = plain_alloc;
		o->free = plain_free;
	}
	return 0;
}

static int open_engine(struct wharf_loop *loop, const struct wharf_loop_options *o)
{
	struct wh_engine_config config = {
		.engine = o->engine,
		.rx_buffers = o->rx_buffers,
		.frame_bytes_max = o->frame_bytes_max,
	};
	const char *word;
	int error = wh_engine_choose(&config, &word);

	if (error) {
		wh_loop_say(loop, WH_ENGINE_VARIABLE "=%.32s names no engine: auto, uring, uring:1, uring:2 or epoll", word);
		return error;
	}
	return wh_engine_open(&config, &loop->engine);
}

int wharf_loop_new(const struct wharf_loop_options *options, wharf_loop **ret_loop)
{
	struct wharf_loop_options o;
	struct wharf_loop *loop;
	int error;

	if (!ret_loop)
		return -EINVAL;
	error = wh_guard_init();
	if (error)
		return error;
	error = read_options(options, &o);
	if (error)
		return error;
	loop = o.alloc(sizeof(*loop), o.user);
	if (!loop)
		return -ENOMEM;
	*loop = (struct wharf_loop){
		.refs = 1,
		.frame_bytes_max = o.frame_bytes_max,
		.spin_ns = o.spin_ns,
		.fork_hook.child = close_in_child,
		.alloc = o.alloc,
		.free = o.free,
		.diagnostic = o.diagnostic,
		.clock_ns = o.clock_ns,
		.user = o.user,
	};
	wh_list_init(&loop->sources);
	wh_list_init(&loop->dirty);
	wh_list_init(&loop->waiting);
	wh_list_init(&loop->ready);
	wh_list_init(&loop->chores);
	wh_list_init(&loop->ending);
	wh_list_init(&loop->spare_calls);
	pthread_mutex_init(&loop->kick_lock, NULL);
	error = wh_outframes_init(loop);
	if (!error)
		error = wh_ledger_open_loop(loop, o.flags);
	if (!error)
		error = open_engine(loop, &o);
	if (error) {
		wh_ledger_free_loop(loop);
		wh_outframes_free(loop);
		pthread_mutex_destroy(&loop->kick_lock);
		o.free(loop, o.user);
		return error;
	}
	loop->turn_ns = wh_loop_clock(loop);
	wh_ledger_enter_loop(loop);
	wh_guard_add(&loop->fork_hook);
	*ret_loop = loop;
	return 0;
}

wharf_loop *wharf_loop_ref(wharf_loop *loop)
{
	if (loop && !wh_forked())
		atomic_fetch_add_explicit(&loop->refs, 1, memory_order_relaxed);
	return loop;
}

wharf_loop *wharf_loop_unref(wharf_loop *loop)
{
	if (!loop || wh_forked() || atomic_fetch_sub_explicit(&loop->refs, 1, memory_order_acq_rel) != 1)
		return NULL;
	wh_assert(loop->freed);
	wh_timers_fini(&loop->timers);
	pthread_mutex_destroy(&loop->kick_lock);
	wh_ledger_free_loop(loop);
	loop->free(loop, loop->user);
	return NULL;
}

void wh_loop_add(struct wharf_loop *loop, struct wh_source *source, int fd)
{
	source->loop = wharf_loop_ref(loop);
	/* In this order: another thread may fork, and the child closes what is listed. */
	wh_engine_attach(loop->engine, &source->link, fd);
	wh_list_append(&loop->sources, &source->all);
}

void wh_loop_remove(struct wh_source *source) { wh_list_remove(&source->all); }

void wh_loop_rouse(struct wharf_loop *loop)
{
	if (loop->in_step || !loop->embedded || loop->roused)
		return;
	loop->roused = true;
	wh_engine_sleep(loop->engine, -1, true);
}

void wh_loop_set_deadline(struct wharf_loop *loop, struct wh_deadline *deadline, uint64_t in_ns)
{
	uint64_t now_ns = wh_loop_clock(loop);

	wh_timer_set(&loop->timers, &deadline->timer, in_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + in_ns);
	wh_loop_rouse(loop);
}

void wh_loop_clear_deadline(struct wharf_loop *loop, struct wh_deadline *deadline)
{
	wh_timer_clear(&loop->timers, &deadline->timer);
}

static void run_deadlines(struct wharf_loop *loop)
{
	struct wh_timer *first;

	while ((first = wh_timers_first(&loop->timers)) && first->due_ns <= loop->turn_ns) {
		struct wh_deadline *deadline = wh_container_of(first, struct wh_deadline, timer);
		wh_timer_clear(&loop->timers, first);
		deadline->expired(deadline);
	}
}

/* In ns from `now_ns` on; negative: none. */
static int64_t next_deadline(const struct wharf_loop *loop, uint64_t now_ns)
{
	const struct wh_timer *first = wh_timers_first(&loop->timers);

	if (!first)
		return -1;
	if (first->due_ns <= now_ns)
		return 0;
	return first->due_ns - now_ns > INT64_MAX ? INT64_MAX : (int64_t)(first->due_ns - now_ns);
}

static void flush_dirty(struct wharf_loop *loop)
{
	struct wh_list dirty, *node;

	if (wh_list_empty(&loop->dirty))
		return;
	/* A port that cannot send all it has marks itself again: it must not be met twice here. */
	wh_list_init(&dirty);
	wh_list_splice(&dirty, &loop->dirty);
	while ((node = wh_list_take_first(&dirty)))
		wh_port_flush(wh_container_of(node, struct wharf_port, dirty));
}

/*
 * POLLOUT comes only when three quarters of the socket have drained: a turn that happens anyway tries before. A few in
 * turns, so that what a turn costs does not grow with the ports that wait.
 */
static void flush_waiting(struct wharf_loop *loop)
{
	struct wh_list *node;

	for (int n = WAITING_PER_TURN; n && (node = wh_list_take_first(&loop->waiting)); n--)
		wh_port_flush(wh_container_of(node, struct wharf_port, waiting));
}

static void run_ready(struct wharf_loop *loop)
{
	struct wh_list ready, *node;

	wh_list_init(&ready);
	wh_list_splice(&ready, &loop->ready);
	while ((node = wh_list_take_first(&ready)))
		wh_port_deliver_held(wh_container_of(node, struct wharf_port, ready));
}

static void run_chores(struct wharf_loop *loop)
{
	struct wh_list chores, *node;

	wh_list_init(&chores);
	wh_list_splice(&chores, &loop->chores);
	while ((node = wh_list_take_first(&chores)))
		wh_port_do_chores(wh_container_of(node, struct wharf_port, chores));
}

static void run_endings(struct wharf_loop *loop)
{
	struct wh_list ending, *node;

	/* An on_close that opens and aborts must not keep the turn from ending. */
	wh_list_init(&ending);
	wh_list_splice(&ending, &loop->ending);
	while ((node = wh_list_take_first(&ending)))
		wh_port_finish(wh_container_of(node, struct wharf_port, ending));
}

static bool posts_wait(const struct wharf_loop *loop)
{
	return atomic_load_explicit(&loop->posts.waiting, memory_order_relaxed);
}

static bool work_waits(const struct wharf_loop *loop)
{
	return !wh_list_empty(&loop->ready) || !wh_list_empty(&loop->chores) || !wh_list_empty(&loop->ending) ||
		posts_wait(loop) ||
		atomic_load_explicit(&loop->kicked, memory_order_relaxed);
}

/* What a deaf engine can still do for its ports: end them. */
static int broken(struct wharf_loop *loop, int error)
{
	if (!loop->broken) {
		loop->broken = error;
		wh_ledger_break(loop, error);
		wh_loop_say(loop, "the engine %s is broken: errno %d", wh_engine_name(loop->engine), -error);
	}
	return loop->broken;
}

/* Looks for work until `until_ns`. Positive: there is some, or somebody wakes the loop. Negative: broken. */
static int spin(struct wharf_loop *loop, uint64_t until_ns)
{
	int n;

	do {
		n = wh_engine_turn(loop->engine, 0);
		if (n || work_waits(loop))
			return n < 0 ? n : 1;
		/* The engine has taken the wake by now. */
		if (atomic_exchange_explicit(&loop->rung, false, memory_order_acquire))
			return 1;
		wh_relax();
	} while (wh_loop_clock(loop) < until_ns);
	return 0;
}

/* Waits as long as the caller, the next deadline and work in hand allow. 0 or a negative errno. */
static int wait_for_events(struct wharf_loop *loop, int64_t timeout_ns)
{
	uint64_t now_ns, spin_ns;
	int64_t deadline_ns;
	int n;

	if (timeout_ns == 0 || work_waits(loop))
		return wh_engine_turn(loop->engine, 0);
	now_ns = wh_loop_clock(loop);
	deadline_ns = next_deadline(loop, now_ns);
	if (deadline_ns >= 0 && (timeout_ns < 0 || deadline_ns < timeout_ns))
		timeout_ns = deadline_ns;
	wh_ledger_wait(loop, now_ns, timeout_ns);
	if (loop->spin_ns) {
		spin_ns = timeout_ns < 0 ? loop->spin_ns : wh_min(loop->spin_ns, (size_t)timeout_ns);
		n = spin(loop, now_ns + spin_ns);
		if (n)
			return n;
		if (timeout_ns > 0)
			timeout_ns -= (int64_t)spin_ns;
	}
	n = wh_engine_turn(loop->engine, timeout_ns);
	atomic_store_explicit(&loop->rung, false, memory_order_relaxed);
	return n;
}

static int turn(struct wharf_loop *loop, int64_t timeout_ns)
{
	struct wh_event event;
	int n, budget = EVENTS_PER_TURN;
	bool happened;

	loop->turn = (uint32_t)++loop->n_turns;
	flush_dirty(loop);
	n = wait_for_events(loop, timeout_ns);
	if (n < 0)
		return broken(loop, n);
	wh_ledger_work(loop, wh_loop_clock(loop));
	happened = wh_loop_run_kicks(loop);
	happened |= wh_loop_run_posts(loop, 0);
	while (budget-- > 0 && wh_engine_next(loop->engine, &event)) {
		struct wh_source *source = wh_container_of(event.link, struct wh_source, link);
		/* A send that came back is no reason to try those that were refused: trying makes the next one. */
		happened |= event.kind != WH_EVENT_SENT;
		wh_loop_count(loop, events, 1);
		source->event(source, &event);
	}
	if (!wh_list_empty(&loop->ready)) {
		/* What is held takes long: the answers to what came before it do not wait for that. */
		flush_dirty(loop);
		wh_engine_submit(loop->engine);
	}
	run_ready(loop);
	run_deadlines(loop);
	run_chores(loop);
	run_endings(loop);
	if (happened)
		flush_waiting(loop);
	flush_dirty(loop);
	if (happened || !wh_list_empty(&loop->touched))
		wh_ledger_publish(loop);
	return budget < 0 || work_waits(loop) || !wh_list_empty(&loop->dirty);
}

/* The first step or flush makes it this thread's. */
static void enter(struct wharf_loop *loop)
{
	if (!atomic_load_explicit(&loop->owned, memory_order_relaxed)) {
		loop->thread = pthread_self();
		wh_ledger_own(loop);
		atomic_store_explicit(&loop->owned, true, memory_order_release);
	}
	wh_current_loop = loop;
	loop->in_step = true;
	/* The fd was readable for what is done now. */
	if (loop->embedded) {
		wh_engine_rouse(loop->engine);
		loop->roused = false;
	}
}

static int step(struct wharf_loop *loop, int64_t timeout_ns)
{
	const struct wharf_loop *outer = wh_current_loop;
	int more;

	if (loop->broken)
		return loop->broken;
	enter(loop);
	more = turn(loop, timeout_ns);
	loop->in_step = false;
	/* It was stepped by a callback of that one. */
	if (outer && outer->in_step)
		wh_current_loop = outer;
	return more;
}

/* Before control goes back to the host: nothing stays unsent, and the fd tells of what comes. */
static int leave(struct wharf_loop *loop, bool more)
{
	uint64_t now_ns = wh_loop_clock(loop);
	int error;

	wh_ledger_leave(loop, now_ns);
	if (loop->embedded)
		error = wh_engine_sleep(loop->engine, next_deadline(loop, now_ns), more);
	else
		error = wh_engine_submit(loop->engine);
	return error < 0 ? broken(loop, error) : 0;
}

int wharf_loop_step(wharf_loop *loop, int64_t timeout_ns)
{
	int more, error = wh_loop_check(loop);

	if (error)
		return error;
	if (loop->in_step)
		return -EDEADLK;
	more = step(loop, timeout_ns);
	if (more < 0)
		return more;
	error = leave(loop, more > 0);
	return error ? error : more || wh_engine_busy(loop->engine);
}

int wharf_loop_run(wharf_loop *loop)
{
	int more = 0, error = wh_loop_check(loop);

	if (error)
		return error;
	if (loop->in_step)
		return -EDEADLK;
	/* Between two of these steps nothing needs to leave: the next one submits when it waits. */
	while (!atomic_exchange_explicit(&loop->stopped, false, memory_order_acquire) && more >= 0 &&
		(loop->n_users || posts_wait(loop)))
		more = step(loop, -1);
	return more < 0 ? more : leave(loop, more > 0);
}

int wharf_loop_flush(wharf_loop *loop)
{
	int error = wh_loop_check(loop);

	if (error)
		return error;
	if (loop->broken)
		return loop->broken;
	if (loop->in_step) {
		flush_dirty(loop);
		error = wh_engine_submit(loop->engine);
		return error < 0 ? broken(loop, error) : 0;
	}
	enter(loop);
	wh_engine_start(loop->engine);
	flush_dirty(loop);
	loop->in_step = false;
	return leave(loop, work_waits(loop));
}

int wharf_loop_fd(wharf_loop *loop)
{
	int fd, error = wh_loop_check(loop);

	if (error)
		return error;
	fd = wh_engine_fd(loop->engine);
	if (fd >= 0 && !loop->embedded) {
		loop->embedded = true;
		wh_ledger_embed(loop);
		/* What was queued before anybody could watch must not wait unseen. */
		if (!loop->in_step)
			wh_loop_rouse(loop);
	}
	return fd;
}

const char *wharf_loop_engine(const wharf_loop *loop)
{
	return loop && !loop->freed && !wh_forked() ? wh_engine_name(loop->engine) : "none";
}

/* Runs the engine until every link is detached: the last references to their memory leave with that. */
static void drain_sources(struct wharf_loop *loop)
{
	struct wh_event event;
	int n = 0;

	/* A broken engine has still to say which links are detached. */
	while (!wh_list_empty(&loop->sources) && n >= 0) {
		n = wh_engine_turn(loop->engine, -1);
		while (wh_engine_next(loop->engine, &event)) {
			struct wh_source *source = wh_container_of(event.link, struct wh_source, link);
			source->event(source, &event);
			n = 0;
		}
	}
}

wharf_loop *wharf_loop_free(wharf_loop *loop)
{
	const void *outer = wh_current_loop;
	struct wh_engine *engine;
	struct wh_list *node, *next;

	if (!loop || wh_forked())
		return NULL;
	if (loop->in_step || loop->freed)
		return loop;
	loop->in_step = true;
	/* From here on, so that an on_close that reconnects is refused. Locked: a post that did not see it is queued by now. */
	pthread_mutex_lock(&loop->kick_lock);
	atomic_store(&loop->freed, true);
	pthread_mutex_unlock(&loop->kick_lock);
	wh_current_loop = loop;
	/* While what they may refer to is still there. No more can follow. */
	wh_loop_run_posts(loop, -EPIPE);
	for (node = loop->sources.next; node != &loop->sources; node = next) {
		next = node->next;
		wh_container_of(node, struct wh_source, all)->loop_freed(wh_container_of(node, struct wh_source, all));
	}
	run_endings(loop);
	wh_loop_run_kicks(loop);
	drain_sources(loop);
	wh_guard_remove(&loop->fork_hook);
	wh_ledger_close_loop(loop);
	while (atomic_load(&loop->wakers))
		sched_yield();
	pthread_mutex_lock(&loop->kick_lock);
	engine = loop->engine;
	loop->engine = NULL;
	pthread_mutex_unlock(&loop->kick_lock);
	wh_loop_run_kicks(loop);
	wh_engine_close(engine);
	wh_outframes_free(loop);
	wh_calls_free_spare(loop);
	loop->in_step = false;
	wh_current_loop = outer == loop ? NULL : outer;
	return wharf_loop_unref(loop);
}
