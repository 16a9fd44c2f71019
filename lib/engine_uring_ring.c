/* SPDX-License-Identifier: MIT */
/* The ring of the io_uring engine: set-up by a ladder of kernel features, receive buffers, entering, and the end. */
#include "engine_uring.h"

#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>

#include "compat.h"
#include "needs.h"

enum {
	SQ_ENTRIES = 128,      /* guessed, never tuned: a full queue is submitted early, nothing worse */
	SQ_ENTRIES_MIN = 16,
	CQ_ENTRIES_MIN = 64,
	CQ_SLACK = 256,        /* completions that take no buffer: sends, polls, accepts, ends of multishots */
};

/*
 * Multishot recvmsg came with SINGLE_ISSUER: whoever takes the flag has it, and no receive need be tried. Buffer rings
 * are older, and asked for at once.
 */
static const struct rung {
	const char *name;
	unsigned flags;
	bool multishot;
} rungs[] = {
	{ "io_uring", IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, true }, /* 6.1 */
	{ "io_uring (no deferred work)", IORING_SETUP_SINGLE_ISSUER, true },           /* 6.0 */
	{ "io_uring (single shot)", 0, false },                                        /* 5.19 */
};

/* io_uring is not to be had here; anything else is a shortage, of which the program must hear. */
static bool refused(int error)
{
	return error == -EPERM || error == -EACCES || error == -ENOSYS || error == -EOPNOTSUPP;
}

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

enum { SINGLE_SHOT = wh_array_len(rungs) - 1 };

static int open_ring(struct wh_uring *uring, const struct wh_engine_config *config)
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

		r = io_uring_queue_init_params(sq, &uring->ring, &params);
		switch (r) {
		case 0:
			r = io_uring_ring_dontfork(&uring->ring);
			if (r < 0) {
				io_uring_queue_exit(&uring->ring);
				return r;
			}
			uring->rung = rung;
			uring->multishot = rungs[rung].multishot;
			uring->enter_fd = uring->ring.ring_fd;
			if (uring->ring.features & IORING_FEAT_NO_IOWAIT)
				uring->enter_flags = IORING_ENTER_NO_IOWAIT;
			fill_sq_array(&uring->ring);
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

static int open_buffers(struct wh_uring *uring)
{
	struct wh_engine *engine = &uring->engine;
	struct io_uring_buf_reg reg = { .ring_entries = engine->rx_n, .bgid = RX_GROUP };
	void *memory = NULL;
	int r;

	if (uring->multishot) {
		uring->rx_ring_bytes = engine->rx_n * sizeof(struct io_uring_buf);
		r = wh_engine_map(uring->rx_ring_bytes, &memory);
		if (r < 0)
			return r;
		uring->rx_ring = memory;
		io_uring_buf_ring_init(uring->rx_ring);
		reg.ring_addr = (uintptr_t)memory;
		r = io_uring_register_buf_ring(&uring->ring, &reg, 0);
		if (r < 0)
			return r;
	}
	for (uint32_t i = 0; i < engine->rx_n; i++)
		wh_uring_give(engine, i);
	return 0;
}

static void close_all(struct wh_uring *uring)
{
	io_uring_queue_exit(&uring->ring);
	wh_engine_close_fd(&uring->event_fd);
	/* Requests that nobody reaped may run until the kernel has taken the ring down, some time after this. */
	if (!uring->orphans && uring->rx_ring)
		munmap(uring->rx_ring, uring->rx_ring_bytes);
	wh_engine_free(&uring->engine, uring->orphans);
}

static void describe(const struct wh_engine *engine, struct wh_stats_loop *stats)
{
	const struct wh_uring *uring = wh_uring_of(engine);

	stats->engine = WH_STATS_URING;
	stats->rung = uring->rung;
	stats->ring_fd = uring->ring.ring_fd;
	stats->event_fd = uring->event_fd;
	stats->sq_entries = uring->ring.sq.ring_entries;
	stats->cq_entries = uring->ring.cq.ring_entries;
}

static const struct wh_engine_ops ops = {
	.close = wh_uring_close,
	.start = wh_uring_start,
	.turn = wh_uring_turn,
	.submit = wh_uring_submit,
	.busy = wh_uring_busy,
	.give = wh_uring_give,
	.pause = wh_uring_pause,
	.detach = wh_uring_detach,
	.fd = wh_uring_fd,
	.sleep = wh_uring_sleep,
	.rouse = wh_uring_rouse,
	.forked = wh_uring_forked,
	.describe = describe,
};

/*
 * Whoever takes over the process can do no more with the ring than this engine does: it opens no file and connects
 * nowhere. Needs 5.10; a kernel that refuses leaves the ring as it is.
 */
static void restrict_ring(struct wh_uring *uring)
{
	struct io_uring_restriction rules[32];
	unsigned n = 0;

	rules[n++] = (struct io_uring_restriction){
		.opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED,
		.sqe_flags = IOSQE_BUFFER_SELECT | IOSQE_CQE_SKIP_SUCCESS,
	};
	for (const struct wh_need *need = wh_needs_opcodes; need->name; need++)
		rules[n++] = (struct io_uring_restriction){
			.opcode = IORING_RESTRICTION_SQE_OP,
			.sqe_op = (uint8_t)need->number,
		};
	for (const struct wh_need *need = wh_needs_registers; need->name; need++)
		if (need->flags & WH_NEED_RUN)
			rules[n++] = (struct io_uring_restriction){
				.opcode = IORING_RESTRICTION_REGISTER_OP,
				.register_op = (uint8_t)need->number,
			};
	wh_assert(n <= wh_array_len(rules));
	io_uring_register((unsigned)uring->ring.ring_fd, IORING_REGISTER_RESTRICTIONS, rules, n);
}

/* A filter may let rings be made, and not be entered. A ring that is not enabled yet says so. */
static int try_to_enter(const struct wh_uring *uring)
{
	int r = io_uring_enter2((unsigned)uring->ring.ring_fd, 0, 0, 0, NULL, 0);

	return r == -EBADFD || r >= 0 ? 0 : r;
}

int wh_uring_open(const struct wh_engine_config *config, struct wh_engine **ret_engine, bool *ret_refused)
{
	struct wh_engine *engine;
	struct wh_uring *uring;
	int r;

	*ret_refused = false;
	r = wh_engine_new(sizeof(*uring), config, &ops, &engine);
	if (r < 0)
		return r;
	uring = wh_uring_of(engine);
	uring->event_fd = -1;
	wh_list_init(&uring->polled);
	wh_list_init(&uring->unfed);
	wh_list_init(&uring->starved);
	wh_list_init(&uring->detaching);
	r = open_ring(uring, config);
	if (r < 0) {
		/* Of memory: what RLIMIT_MEMLOCK lets this user have is not enough for the smallest ring. */
		*ret_refused = r == -ENOMEM || refused(r);
		wh_engine_free(engine, false);
		return r;
	}
	r = try_to_enter(uring);
	if (r >= 0)
		r = open_buffers(uring);
	if (r == -EINVAL && uring->multishot) {
		struct wh_engine_config single = *config;

		single.rung = SINGLE_SHOT;
		close_all(uring);
		return wh_uring_open(&single, ret_engine, ret_refused);
	}
	if (r < 0) {
		*ret_refused = refused(r);
		close_all(uring);
		return r;
	}
	restrict_ring(uring);
	snprintf(engine->name, sizeof(engine->name), "%s", rungs[uring->rung].name);
	*ret_engine = engine;
	return 0;
}

/* Saves a reference count per enter in threaded programs. The slot is this thread's: liburing's bookkeeping is not. */
static void register_ring_fd(struct wh_uring *uring)
{
	struct io_uring_rsrc_update update = { .offset = UINT32_MAX, .data = (unsigned)uring->ring.ring_fd };

	if (io_uring_register((unsigned)uring->ring.ring_fd, IORING_REGISTER_RING_FDS, &update, 1) != 1)
		return;
	uring->enter_fd = (int)update.offset;
	uring->enter_flags |= IORING_ENTER_REGISTERED_RING;
}

static void unregister_ring_fd(struct wh_uring *uring)
{
	struct io_uring_rsrc_update update = { .offset = (uint32_t)uring->enter_fd };

	if (uring->enter_flags & IORING_ENTER_REGISTERED_RING && pthread_equal(uring->owner, pthread_self()))
		io_uring_register((unsigned)uring->ring.ring_fd, IORING_UNREGISTER_RING_FDS, &update, 1);
}

void wh_uring_start(struct wh_engine *engine)
{
	struct wh_uring *uring = wh_uring_of(engine);

	/* Debian's liburing 2.3 declares io_uring_enable_rings, but does not export it. */
	int r = io_uring_register((unsigned)uring->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);

	if (r < 0) {
		engine->broken = r;
		return;
	}
	uring->owner = pthread_self();
	engine->enabled = true;
	register_ring_fd(uring);
}

int wh_uring_enter(struct wh_uring *uring, int64_t timeout_ns, bool get_events)
{
	struct io_uring_sq *sq = &uring->ring.sq;
	struct __kernel_timespec timeout;
	struct io_uring_getevents_arg arg = { .ts = 0 };
	unsigned flags = uring->enter_flags, submit;
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
	uring->engine.n_enters++;
	uring->engine.n_calls++;
	uring->engine.n_sleeps += timeout_ns != 0;
	r = io_uring_enter2((unsigned)uring->enter_fd, submit, timeout_ns != 0, flags, arg_bytes ? (void *)&arg : NULL,
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
		uring->engine.broken = r;
		return r;
	}
}

struct io_uring_sqe *wh_uring_sqe(struct wh_uring *uring)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);

	if (wh_unlikely(!sqe) && wh_uring_enter(uring, 0, false) == 0)
		sqe = io_uring_get_sqe(&uring->ring);
	return sqe;
}

void wh_uring_close(struct wh_engine *engine)
{
	struct wh_uring *uring = wh_uring_of(engine);

	wh_assert(!engine->n_links);
	/* No link, no request but the wake's poll and a timeout: they hold no memory of ours and need not be reaped. */
	unregister_ring_fd(uring);
	close_all(uring);
}

void wh_uring_forked(struct wh_engine *engine)
{
	struct wh_uring *uring = wh_uring_of(engine);

	/* The mappings are not here (DONTFORK): only these descriptors could keep the parent's requests alive. */
	wh_engine_close_fd(&uring->ring.ring_fd);
	wh_engine_close_fd(&uring->event_fd);
	wh_engine_close_fd(&engine->wake_fd);
}
