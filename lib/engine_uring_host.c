/* SPDX-License-Identifier: MIT */
/* The io_uring engine inside somebody else's loop: one level-triggered descriptor, and wakes from other threads. */
#include "engine_uring.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* The ring's own descriptor would not do: with deferred task work it does not wake epoll. */
int wh_uring_fd(struct wh_engine *engine)
{
	struct wh_uring *uring = wh_uring_of(engine);
	int fd, r;

	if (uring->event_fd >= 0)
		return uring->event_fd;
	fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0)
		return -errno;
	r = io_uring_register_eventfd(&uring->ring, fd);
	if (r >= 0)
		r = io_uring_cq_eventfd_toggle(&uring->ring, false);
	if (r < 0) {
		close(fd);
		return r;
	}
	uring->event_fd = fd;
	/* Nothing reaches a ring that is not enabled, wakes included: the host is asked for the first turn. */
	if (!engine->enabled) {
		uring->event_fd_used = true;
		wh_ring_bell(fd);
	}
	return fd;
}

/*
 * One timeout at most is armed. It is only ever moved to an earlier time; a late one may fire for nothing, which costs
 * one idle turn. The request is submitted with what follows.
 */
static void arm_deadline(struct wh_uring *uring, int64_t deadline_ns)
{
	int64_t armed_ns = uring->engine.deadline_ns;
	struct io_uring_sqe *sqe;

	if (deadline_ns >= armed_ns)
		return;
	sqe = wh_uring_sqe(uring);
	if (!sqe)
		return;
	uring->deadline.tv_sec = deadline_ns / 1000000000;
	uring->deadline.tv_nsec = deadline_ns % 1000000000;
	if (armed_ns == INT64_MAX) {
		io_uring_prep_timeout(sqe, &uring->deadline, 0, IORING_TIMEOUT_ABS);
		io_uring_sqe_set_data64(sqe, OWN_DEADLINE);
	} else {
		/* If it has fired meanwhile, this fails, and the firing is what the host is woken by. */
		io_uring_prep_timeout_update(sqe, &uring->deadline, OWN_DEADLINE, IORING_TIMEOUT_ABS);
		sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
		io_uring_sqe_set_data64(sqe, OWN_IGNORED);
	}
	uring->engine.deadline_ns = deadline_ns;
}

int wh_uring_sleep(struct wh_engine *engine, int64_t deadline_ns, bool now)
{
	struct wh_uring *uring = wh_uring_of(engine);
	int r;

	if (uring->event_fd < 0)
		return wh_uring_submit(engine);
	/* The kernel would take what it completes while submitting for something new. */
	io_uring_cq_eventfd_toggle(&uring->ring, false);
	if (deadline_ns >= 0 && engine->enabled && !engine->broken) {
		deadline_ns = wh_engine_until(deadline_ns);
		arm_deadline(uring, deadline_ns);
	}
	r = wh_uring_submit(engine);
	now |= !engine->enabled || r < 0 || engine->n_events || !wh_list_empty(&engine->todo) || wh_uring_hungry(uring) ||
		!wh_list_empty(&uring->polled);
	/* The timeout may have been harvested just now, or found no room. */
	now |= deadline_ns >= 0 && engine->deadline_ns > deadline_ns;
	uring->event_fd_used = true;
	/*
	 * Either a wake sees that the host waits, or this sees woken; and either it sees that the host does not, or the
	 * turn after wh_uring_rouse sees woken. The host must be told directly: a ring with deferred task work does not
	 * pass on to its eventfd what another eventfd tells it, save for the first time.
	 */
	atomic_store(&engine->bell, uring->event_fd);
	now |= atomic_load(&engine->woken);
	if (!now) {
		io_uring_cq_eventfd_toggle(&uring->ring, true);
		/* The kernel looks at the flag after it posts: it sees this store, or this sees what it posted. */
		atomic_thread_fence(memory_order_seq_cst);
		now = io_uring_cq_ready(&uring->ring) || wh_uring_kernel_waits(uring);
	}
	if (now)
		wh_ring_bell(uring->event_fd);
	return r;
}

void wh_uring_rouse(struct wh_engine *engine)
{
	struct wh_uring *uring = wh_uring_of(engine);
	uint64_t count;

	if (uring->event_fd < 0 || !uring->event_fd_used)
		return;
	atomic_store(&engine->bell, engine->wake_fd);
	io_uring_cq_eventfd_toggle(&uring->ring, false);
	/* Always, not only when something is seen to have come: the kernel signals after it posts. */
	if (read(uring->event_fd, &count, sizeof(count)) < 0)
		count = 0; /* nothing had come */
	uring->event_fd_used = false;
}
