/* SPDX-License-Identifier: MIT */
/* The io_uring engine inside somebody else's loop: one level-triggered descriptor, and wakes from other threads. */
#include "engine_uring.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/*
 * Async-signal-safe, and no cancellation point: a thread that ended between setting woken and the write would deafen
 * the loop.
 */
static int post(int fd)
{
	const uint64_t one = 1;
	int saved = errno, r = 0;

	/* EAGAIN: its count is at the brim already. */
	if (syscall(SYS_write, fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		r = -errno;
	errno = saved;
	return r;
}

int wh_engine_wake(struct wh_engine *engine)
{
	/*
	 * Either this sees that the host waits, or wh_engine_sleep sees woken; and either this sees that it does not,
	 * or the turn after wh_engine_rouse sees woken. The host must be told directly: a ring with deferred task work
	 * does not pass on to its eventfd what another eventfd tells it, save for the first time.
	 */
	if (atomic_exchange(&engine->woken, true))
		return 0;
	return post(atomic_load(&engine->asleep) ? engine->event_fd : engine->wake_fd);
}

/* The ring's own descriptor would not do: with deferred task work it does not wake epoll. */
int wh_engine_fd(struct wh_engine *engine)
{
	int fd, r;

	if (engine->event_fd >= 0)
		return engine->event_fd;
	fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0)
		return -errno;
	r = io_uring_register_eventfd(&engine->ring, fd);
	if (r >= 0)
		r = io_uring_cq_eventfd_toggle(&engine->ring, false);
	if (r < 0) {
		close(fd);
		return r;
	}
	engine->event_fd = fd;
	/* Nothing reaches a ring that is not enabled, wakes included: the host is asked for the first turn. */
	if (!engine->enabled) {
		engine->event_fd_used = true;
		post(fd);
	}
	return fd;
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/*
 * One timeout at most is armed. It is only ever moved to an earlier time; a late one may fire for nothing, which costs
 * one idle turn. The request is submitted with what follows.
 */
static void arm_deadline(struct wh_engine *engine, int64_t deadline_ns)
{
	struct io_uring_sqe *sqe;

	if (deadline_ns >= engine->deadline_ns)
		return;
	sqe = wh_uring_sqe(engine);
	if (!sqe)
		return;
	engine->deadline.tv_sec = deadline_ns / 1000000000;
	engine->deadline.tv_nsec = deadline_ns % 1000000000;
	if (engine->deadline_ns == INT64_MAX) {
		io_uring_prep_timeout(sqe, &engine->deadline, 0, IORING_TIMEOUT_ABS);
		io_uring_sqe_set_data64(sqe, OWN_DEADLINE);
	} else {
		/* If it has fired meanwhile, this fails, and the firing is what the host is woken by. */
		io_uring_prep_timeout_update(sqe, &engine->deadline, OWN_DEADLINE, IORING_TIMEOUT_ABS);
		sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
		io_uring_sqe_set_data64(sqe, OWN_IGNORED);
	}
	engine->deadline_ns = deadline_ns;
}

int wh_engine_sleep(struct wh_engine *engine, int64_t deadline_ns, bool now)
{
	int r;

	if (engine->event_fd < 0)
		return wh_engine_submit(engine);
	/* The kernel would take what it completes while submitting for something new. */
	io_uring_cq_eventfd_toggle(&engine->ring, false);
	if (deadline_ns >= 0 && engine->enabled && !engine->broken) {
		int64_t start_ns = now_ns();

		deadline_ns = deadline_ns < INT64_MAX - start_ns ? start_ns + deadline_ns : INT64_MAX - 1;
		arm_deadline(engine, deadline_ns);
	}
	r = wh_engine_submit(engine);
	now |= !engine->enabled || r < 0 || engine->n_events || !wh_list_empty(&engine->todo) || wh_uring_hungry(engine);
	/* The timeout may have been harvested just now, or found no room. */
	now |= deadline_ns >= 0 && engine->deadline_ns > deadline_ns;
	engine->event_fd_used = true;
	atomic_store(&engine->asleep, true);
	now |= atomic_load(&engine->woken);
	if (!now) {
		io_uring_cq_eventfd_toggle(&engine->ring, true);
		/* The kernel looks at the flag after it posts: it sees this store, or this sees what it posted. */
		atomic_thread_fence(memory_order_seq_cst);
		now = io_uring_cq_ready(&engine->ring) || wh_uring_kernel_waits(engine);
	}
	if (now)
		post(engine->event_fd);
	return r;
}

void wh_engine_rouse(struct wh_engine *engine)
{
	uint64_t count;

	if (engine->event_fd < 0 || !engine->event_fd_used)
		return;
	atomic_store(&engine->asleep, false);
	io_uring_cq_eventfd_toggle(&engine->ring, false);
	/* Always, not only when something is seen to have come: the kernel signals after it posts. */
	if (read(engine->event_fd, &count, sizeof(count)) < 0)
		count = 0; /* nothing had come */
	engine->event_fd_used = false;
}

void wh_link_forked(struct wh_link *link)
{
	if (link->state & LISTENING)
		for (uint32_t i = 0; i < link->accepts->n; i++)
			close(link->accepts->fds[(link->accepts->first + i) % WH_ACCEPTS_MAX]);
	if (link->fd >= 0)
		close(link->fd);
	link->fd = -1;
}
