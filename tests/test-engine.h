/* SPDX-License-Identifier: MIT */
/*
 * What the engines' tests share: an engine of either kind, at each step of the ladder of io_uring; socket pairs, waiting
 * for one kind of event.
 */
#ifndef TEST_ENGINE_H
#define TEST_ENGINE_H

#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "engine_epoll.h"
#include "engine_uring.h"
#include "harness.h"
#include "wharf.h"

enum {
	PATIENCE_S = 20, /* until a test gives up on an event that does not come */
	RUNG_EPOLL = 3,  /* behind those of io_uring */
};

/* One Criterion test per rung and engine, so that a failure names it. */
#define ENGINE_TEST(name) \
	static void name(uint32_t rung); \
	Test(engine, name##_rung_0) { name(0); } \
	Test(engine, name##_rung_1) { name(1); } \
	Test(engine, name##_rung_2) { name(2); } \
	Test(engine, name##_epoll) { name(RUNG_EPOLL); } \
	static void name(uint32_t rung)

static inline struct wh_engine_config config_of(uint32_t rung, uint32_t rx_buffers, uint32_t frame_bytes_max)
{
	return (struct wh_engine_config){
		.engine = rung == RUNG_EPOLL ? WHARF_ENGINE_EPOLL : WHARF_ENGINE_URING,
		.rx_buffers = rx_buffers,
		.frame_bytes_max = frame_bytes_max,
		.rung = rung == RUNG_EPOLL ? 0 : rung,
	};
}

static inline struct wh_engine *open_engine(const struct wh_engine_config *config)
{
	struct wh_engine *engine;
	int r = wh_engine_open(config, &engine);

	if (config->engine == WHARF_ENGINE_URING && (r == -EPERM || r == -ENOSYS || r == -EACCES))
		cr_skip_test("io_uring is not to be had here: errno %d", -r);
	cr_assert_eq(r, 0, "wh_engine_open: errno %d", -r);
	return engine;
}

static inline struct wh_engine *open_small(uint32_t rung, uint32_t rx_buffers)
{
	struct wh_engine_config config = config_of(rung, rx_buffers, 256);

	return open_engine(&config);
}

static inline struct wh_engine *open_plain(uint32_t rung)
{
	struct wh_engine_config config = config_of(rung, 16, 4096);

	return open_engine(&config);
}

/* The fewest buffers and bytes; for children, whose parents have looked whether the engine is to be had. */
static inline int open_bare(uint32_t rung, struct wh_engine **ret_engine)
{
	struct wh_engine_config config = config_of(rung, 4, 64);

	return wh_engine_open(&config, ret_engine);
}

static inline bool is_epoll(const struct wh_engine *engine) { return !strncmp(wh_engine_name(engine), "epoll", 5); }

/*
 * Turns that may not trouble the kernel: n of them. One with epoll must look, because nothing else would tell it; but
 * once.
 */
static inline uint64_t looks(const struct wh_engine *engine, uint64_t n) { return is_epoll(engine) ? n : 0; }

/* As if somebody had closed what is not his. */
static inline int break_engine(struct wh_engine *engine)
{
	struct wh_uring *uring = wh_uring_of(engine);
	int *fd = is_epoll(engine) ? &wh_epoll_of(engine)->fd : &uring->enter_fd, was = *fd;

	*fd = -1;
	if (!is_epoll(engine))
		uring->enter_flags &= ~IORING_ENTER_REGISTERED_RING;
	return was;
}

/* For what is closed with it. */
static inline void repair_engine(struct wh_engine *engine, int fd)
{
	if (is_epoll(engine))
		wh_epoll_of(engine)->fd = fd;
	else
		wh_uring_of(engine)->enter_fd = fd;
}

static inline void open_pair(int ret_fds[2])
{
	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ret_fds), 0);
}

/* A link that receives, and the raw socket at its other end. */
static inline int open_link(struct wh_engine *engine, struct wh_link *link)
{
	int fds[2];

	open_pair(fds);
	wh_engine_attach(engine, link, fds[0]);
	wh_engine_receive(engine, link);
	return fds[1];
}

/* The next event; false when none comes. */
static inline bool next_event(struct wh_engine *engine, struct wh_event *ret_event)
{
	for (int i = 0; i < PATIENCE_S; i++) {
		if (wh_engine_next(engine, ret_event))
			return true;
		for (int n = 0; n < 1000; n++) {
			int r = wh_engine_turn(engine, 1000000000);

			cr_assert_geq(r, 0, "the engine broke: errno %d", -r);
			if (r)
				break;
		}
	}
	return false;
}

/* The next event that is not of a kind in `others`. */
static inline void await(struct wh_engine *engine, enum wh_event_kind kind, struct wh_event *ret_event)
{
	do
		cr_assert(next_event(engine, ret_event), "no event %d", kind);
	while (ret_event->kind == WH_EVENT_SENT && kind != WH_EVENT_SENT);
	cr_assert_eq(ret_event->kind, kind, "event %d instead of %d", ret_event->kind, kind);
}

static inline void detach(struct wh_engine *engine, struct wh_link *link)
{
	struct wh_event event;

	wh_engine_detach(engine, link);
	await(engine, WH_EVENT_DETACHED, &event);
	cr_assert_eq(event.link, link);
}

/* A datagram that says its number, padded to `size`. */
static inline int put_number(int fd, uint32_t number, size_t size)
{
	char bytes[8192];

	cr_assert(size >= sizeof(number) && size <= sizeof(bytes));
	memset(bytes, (int)number, size);
	memcpy(bytes, &number, sizeof(number));
	return send(fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)size ? 0 : -errno;
}

static inline uint32_t number_of(const struct wh_event *frame)
{
	uint32_t number;

	cr_assert_geq(frame->size, sizeof(number));
	memcpy(&number, frame->bytes, sizeof(number));
	return number;
}

/* Takes one frame, which must have this number. */
static inline void take_number(struct wh_engine *engine, uint32_t number)
{
	struct wh_event event;

	await(engine, WH_EVENT_FRAME, &event);
	cr_assert_eq(number_of(&event), number, "frame %u instead of %u", number_of(&event), number);
	wh_engine_frame_done(engine, &event);
}

/* A link with what it takes to send numbers over it. */
struct side {
	struct wh_link link;
	struct wh_tx tx;
	uint32_t number;   /* of the frame being sent */
	uint32_t n_sent;
	uint32_t n_received;
};

static inline void send_number(struct wh_engine *engine, struct side *side)
{
	side->number = side->n_sent++;
	side->tx.bytes = &side->number;
	side->tx.size = sizeof(side->number);
	wh_engine_send(engine, &side->link, &side->tx);
}

static inline int send_fds(int socket, const void *bytes, size_t size, const int *fds, size_t n_fds)
{
	_Alignas(struct cmsghdr) unsigned char control[CMSG_SPACE(sizeof(int) * WH_ENGINE_FDS_MAX)] = { 0 };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)bytes, .iov_len = size };
	struct msghdr header = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
	memcpy(CMSG_DATA(cmsg), fds, sizeof(int) * n_fds);
	return sendmsg(socket, &header, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

struct waker {
	struct wh_engine *engine;
	uint32_t delay_ns;
	atomic_bool called;
};

static inline void *wake_from_thread(void *arg)
{
	struct waker *waker = arg;

	nanosleep(&(struct timespec){ .tv_nsec = waker->delay_ns }, NULL);
	atomic_store_explicit(&waker->called, true, memory_order_relaxed);
	cr_assert_eq(wh_engine_wake(waker->engine), 0);
	return NULL;
}

/* Waits in the kernel until another thread wakes it, or for ever. */
static inline void turn_until_woken(struct wh_engine *engine, uint32_t delay_ns)
{
	struct waker waker = { .engine = engine, .delay_ns = delay_ns };
	pthread_t thread;

	cr_assert_eq(pthread_create(&thread, NULL, wake_from_thread, &waker), 0);
	do
		cr_assert_eq(wh_engine_turn(engine, -1), 0);
	while (!atomic_load_explicit(&waker.called, memory_order_relaxed));
	cr_assert_eq(pthread_join(thread, NULL), 0);
}

#endif
