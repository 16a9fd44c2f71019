/* SPDX-License-Identifier: MIT */
/* The ring of the io_uring engine: set-up by a ladder of kernel features, receive buffers, entering, and the end. */
#include "engine_uring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "compat.h"

enum {
	SQ_ENTRIES = 128,      /* guessed, never tuned: a full queue is submitted early, nothing worse */
	SQ_ENTRIES_MIN = 16,
	CQ_ENTRIES_MIN = 64,
	CQ_SLACK = 256,        /* completions that take no buffer: sends, polls, accepts, ends of multishots */
};

static const struct rung {
	const char *name;
	unsigned flags;
	bool multishot;
} rungs[] = {
	{ "io_uring", IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, true }, /* 6.1 */
	{ "io_uring (no deferred work)", IORING_SETUP_SINGLE_ISSUER, true },           /* 6.0 */
	{ "io_uring (single shot)", 0, false },                                        /* 5.19 */
};

static uint32_t round_up_power(uint32_t n)
{
	uint32_t power = 1;

	while (power < n)
		power *= 2;
	return power;
}

/* The queue's indices never change: entry i is slot i. Newer liburings do without that array where the kernel can. */
static void fill_sq_array(struct io_uring *ring)
{
	if (ring->flags & IORING_SETUP_NO_SQARRAY)
		return;
	for (unsigned i = 0; i < ring->sq.ring_entries; i++)
		ring->sq.array[i] = i;
}

static int open_ring(struct wh_engine *engine, const struct wh_engine_config *config)
{
	uint32_t cq = config->cq_entries ? config->cq_entries : round_up_power(2 * (config->rx_buffers + CQ_SLACK));
	uint32_t sq = (uint32_t)wh_min(SQ_ENTRIES, round_up_power(cq));
	uint32_t rung = config->rung;
	int r;

	while (rung < wh_array_len(rungs)) {
		struct io_uring_params params = {
			/* DEFER_TASKRUN implies COOP_TASKRUN, but not for every kernel that checks TASKRUN_FLAG. */
			.flags = rungs[rung].flags | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG
				| IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE
				| IORING_SETUP_R_DISABLED,
			.cq_entries = cq,
		};

		r = io_uring_queue_init_params(sq, &engine->ring, &params);
		switch (r) {
		case 0:
			r = io_uring_ring_dontfork(&engine->ring);
			if (r < 0) {
				io_uring_queue_exit(&engine->ring);
				return r;
			}
			engine->rung = rung;
			engine->multishot = rungs[rung].multishot;
			engine->enter_fd = engine->ring.ring_fd;
			if (engine->ring.features & IORING_FEAT_NO_IOWAIT)
				engine->enter_flags = IORING_ENTER_NO_IOWAIT;
			fill_sq_array(&engine->ring);
			return 0;
		case -ENOMEM:
			/* Some kernels charge RLIMIT_MEMLOCK, per user. Overflow is survived: a small ring will do. */
			if (sq <= SQ_ENTRIES_MIN || cq <= CQ_ENTRIES_MIN)
				return r;
			sq /= 2;
			cq /= 2;
			break;
		case -EINVAL: /* flags that this kernel does not know */
			rung++;
			break;
		default:
			return r;
		}
	}
	return -EOPNOTSUPP;
}

static int map_private(size_t bytes, void **ret_memory)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return -ENOMEM;
	/* What the kernel writes to must not become a child's copy on write. */
	if (madvise(memory, bytes, MADV_DONTFORK) < 0) {
		int error = -errno;

		munmap(memory, bytes);
		return error;
	}
	*ret_memory = memory;
	return 0;
}

static int open_buffers(struct wh_engine *engine, const struct wh_engine_config *config)
{
	struct io_uring_buf_reg reg = { .ring_entries = config->rx_buffers, .bgid = RX_GROUP };
	void *memory = NULL;
	int r;

	engine->rx_n = config->rx_buffers;
	engine->rx_bytes = RX_HEADER + config->frame_bytes_max;
	engine->rx_stride = wh_align_up(RX_SHIFT + (size_t)engine->rx_bytes, 64);
	r = map_private(engine->rx_n * engine->rx_stride, &memory);
	if (r < 0)
		return r;
	engine->rx = memory;
	if (engine->multishot) {
		engine->rx_ring_bytes = engine->rx_n * sizeof(struct io_uring_buf);
		r = map_private(engine->rx_ring_bytes, &memory);
		if (r < 0)
			return r;
		engine->rx_ring = memory;
		io_uring_buf_ring_init(engine->rx_ring);
		reg.ring_addr = (uintptr_t)memory;
		r = io_uring_register_buf_ring(&engine->ring, &reg, 0);
		if (r < 0)
			return r;
	}
	for (uint32_t i = 0; i < engine->rx_n; i++)
		wh_uring_buffer_give(engine, i);
	return 0;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void close_all(struct wh_engine *engine)
{
	io_uring_queue_exit(&engine->ring);
	close_fd(&engine->wake_fd);
	close_fd(&engine->event_fd);
	/* Requests that nobody reaped may run until the kernel has taken the ring down, some time after this. */
	if (!engine->orphans) {
		if (engine->rx)
			munmap(engine->rx, engine->rx_n * engine->rx_stride);
		if (engine->rx_ring)
			munmap(engine->rx_ring, engine->rx_ring_bytes);
	}
	free(engine);
}

int wh_engine_open(const struct wh_engine_config *config, struct wh_engine **ret_engine)
{
	size_t bytes = sizeof(struct wh_engine) + config->rx_buffers * sizeof(struct rx_slot);
	struct wh_engine *engine;
	int r;

	wh_assert(config->rx_buffers && !(config->rx_buffers & (config->rx_buffers - 1)));
	wh_assert(config->rx_buffers <= 1 << 15);
	engine = aligned_alloc(64, wh_align_up(bytes, 64));
	if (!engine)
		return -ENOMEM;
	memset(engine, 0, bytes);
	engine->event_fd = engine->wake_fd = -1;
	engine->deadline_ns = INT64_MAX;
	wh_list_init(&engine->events);
	wh_list_init(&engine->todo);
	wh_list_init(&engine->unfed);
	wh_list_init(&engine->starved);
	wh_list_init(&engine->detaching);
	wh_list_init(&engine->rx_spare);
	for (uint32_t i = 0; i < config->rx_buffers; i++)
		wh_list_init(&engine->slots[i].node.queue);
	r = open_ring(engine, config);
	if (r < 0) {
		free(engine);
		return r;
	}
	r = open_buffers(engine, config);
	if (r >= 0) {
		engine->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		r = engine->wake_fd < 0 ? -errno : 0;
	}
	if (r < 0) {
		close_all(engine);
		return r;
	}
	*ret_engine = engine;
	return 0;
}

const char *wh_engine_name(const struct wh_engine *engine)
{
	return rungs[engine->rung].name;
}

/* Saves a reference count per enter in threaded programs. The slot is this thread's: liburing's bookkeeping is not. */
static void register_ring_fd(struct wh_engine *engine)
{
	struct io_uring_rsrc_update update = { .offset = UINT32_MAX, .data = (unsigned)engine->ring.ring_fd };

	if (io_uring_register((unsigned)engine->ring.ring_fd, IORING_REGISTER_RING_FDS, &update, 1) != 1)
		return;
	engine->enter_fd = (int)update.offset;
	engine->enter_flags |= IORING_ENTER_REGISTERED_RING;
}

static void unregister_ring_fd(struct wh_engine *engine)
{
	struct io_uring_rsrc_update update = { .offset = (uint32_t)engine->enter_fd };

	if (engine->enter_flags & IORING_ENTER_REGISTERED_RING && pthread_equal(engine->owner, pthread_self()))
		io_uring_register((unsigned)engine->ring.ring_fd, IORING_UNREGISTER_RING_FDS, &update, 1);
}

int wh_uring_enable(struct wh_engine *engine)
{
	/* Debian's liburing 2.3 declares io_uring_enable_rings, but does not export it. */
	int r = io_uring_register((unsigned)engine->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);

	if (r < 0)
		return engine->broken = r;
	engine->owner = pthread_self();
	engine->enabled = true;
	register_ring_fd(engine);
	return 0;
}

int wh_uring_enter(struct wh_engine *engine, int64_t timeout_ns, bool get_events)
{
	struct io_uring_sq *sq = &engine->ring.sq;
	struct __kernel_timespec timeout;
	struct io_uring_getevents_arg arg = { .ts = 0 };
	unsigned flags = engine->enter_flags, submit;
	size_t arg_bytes = 0;
	int r;

	sq->sqe_head = sq->sqe_tail;
	io_uring_smp_store_release(sq->ktail, sq->sqe_tail);
	submit = sq->sqe_tail - IO_URING_READ_ONCE(*sq->khead);
	if (timeout_ns != 0 || get_events)
		flags |= IORING_ENTER_GETEVENTS;
	if (timeout_ns > 0) {
		timeout.tv_sec = timeout_ns / 1000000000;
		timeout.tv_nsec = timeout_ns % 1000000000;
		arg.ts = (uintptr_t)&timeout;
		arg_bytes = sizeof(arg);
		flags |= IORING_ENTER_EXT_ARG;
	}
	engine->n_enters++;
	r = io_uring_enter2((unsigned)engine->enter_fd, submit, timeout_ns != 0, flags, arg_bytes ? (void *)&arg : NULL,
		arg_bytes);
	if (wh_likely(r >= 0))
		return 0;
	switch (r) {
	case -ETIME:  /* nothing came */
	case -EINTR:  /* a signal, or task work of another ring */
	case -EAGAIN: /* no memory for a request at the moment: what was not taken stays in the queue */
	case -EBUSY:  /* completions must be harvested first */
		return 0;
	default:      /* -EEXIST: another thread's ring; -EBADR: a completion was lost; -EBADF: our fd was closed */
		engine->broken = r;
		return r;
	}
}

struct io_uring_sqe *wh_uring_sqe(struct wh_engine *engine)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&engine->ring);

	if (wh_unlikely(!sqe) && wh_uring_enter(engine, 0, false) == 0)
		sqe = io_uring_get_sqe(&engine->ring);
	return sqe;
}

void wh_engine_close(struct wh_engine *engine)
{
	if (!engine)
		return;
	wh_assert(!engine->n_links);
	/* No link, no request but the wake's poll and a timeout: they hold no memory of ours and need not be reaped. */
	unregister_ring_fd(engine);
	close_all(engine);
}

void wh_engine_forked(struct wh_engine *engine)
{
	/* The mappings are not here (DONTFORK): only these descriptors could keep the parent's requests alive. */
	close_fd(&engine->ring.ring_fd);
	close_fd(&engine->wake_fd);
	close_fd(&engine->event_fd);
}
