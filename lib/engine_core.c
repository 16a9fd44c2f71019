/* SPDX-License-Identifier: MIT */
/* What the engines share: their memory, requests, and wakes. */
#include "engine_core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"

/* ---- Memory and descriptors -------------------------------------------------------------------------------------- */

int wh_engine_map(size_t bytes, void **ret_memory)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return -ENOMEM;
	if (madvise(memory, bytes, MADV_DONTFORK) < 0) {
		int error = -errno;

		munmap(memory, bytes);
		return error;
	}
	*ret_memory = memory;
	return 0;
}

void wh_engine_close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

int wh_engine_new(size_t bytes, const struct wh_engine_config *config, const struct wh_engine_ops *ops,
	struct wh_engine **ret_engine)
{
	size_t slots_at = wh_align_up(bytes, _Alignof(struct wh_rx_slot));
	struct wh_engine *engine;
	void *rx = NULL;
	int error;

	wh_assert(config->rx_buffers && !(config->rx_buffers & (config->rx_buffers - 1)));
	wh_assert(config->rx_buffers <= 1 << 15);
	bytes = wh_align_up(slots_at + config->rx_buffers * sizeof(struct wh_rx_slot), 64);
	engine = aligned_alloc(64, bytes);
	if (!engine)
		return -ENOMEM;
	memset(engine, 0, bytes);
	engine->ops = ops;
	engine->deadline_ns = INT64_MAX;
	wh_list_init(&engine->events);
	wh_list_init(&engine->todo);
	wh_list_init(&engine->rx_spare);
	engine->slots = (struct wh_rx_slot *)(void *)((char *)engine + slots_at);
	for (uint32_t i = 0; i < config->rx_buffers; i++)
		wh_list_init(&engine->slots[i].node.queue);
	engine->rx_n = config->rx_buffers;
	engine->rx_bytes = RX_HEADER + config->frame_bytes_max;
	engine->rx_stride = wh_align_up(RX_SHIFT + (size_t)engine->rx_bytes, 64);
	error = wh_engine_map(engine->rx_n * engine->rx_stride, &rx);
	if (error)
		goto free_engine;
	engine->rx = rx;
	engine->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (engine->wake_fd < 0) {
		error = -errno;
		goto unmap;
	}
	atomic_store(&engine->bell, engine->wake_fd);
	*ret_engine = engine;
	return 0;

unmap:
	munmap(rx, engine->rx_n * engine->rx_stride);
free_engine:
	free(engine);
	return error;
}

void wh_engine_free(struct wh_engine *engine, bool keep_buffers)
{
	wh_engine_close_fd(&engine->wake_fd);
	if (!keep_buffers)
		munmap(engine->rx, engine->rx_n * engine->rx_stride);
	free(engine);
}

/* ---- Requests ---------------------------------------------------------------------------------------------------- */

/*
 * They only note what is wanted: nothing can fail, the thread does not matter yet, and what is taken back at once costs
 * nothing.
 */

void wh_engine_attach(struct wh_engine *engine, struct wh_link *link, int fd)
{
	*link = (struct wh_link){
		.fd = fd,
		.engine = engine,
		.early.source = FROM_EARLY,
		.end.source = FROM_END,
	};
	wh_list_init(&link->todo);
	wh_list_init(&link->wait);
	wh_list_init(&link->early.queue);
	wh_list_init(&link->end.queue);
	engine->n_links++;
}

void wh_engine_receive(struct wh_engine *engine, struct wh_link *link)
{
	(void)engine;
	if (link->state & DETACHING)
		return;
	link->state |= RECEIVING;
	link->wanted &= ~CANCEL_BIT(REQUEST_RECEIVE);
	wh_link_want_receive(link);
}

void wh_engine_send(struct wh_engine *engine, struct wh_link *link, struct wh_tx *tx)
{
	(void)engine;
	wh_assert(!link->tx && !(link->state & DETACHING));
	link->tx = tx;
	wh_link_want(link, WH_BIT(REQUEST_SEND));
}

static void want_once(struct wh_link *link, uint32_t request, enum wh_event_kind kind)
{
	if (!((link->armed & WH_BIT(request)) | (link->news & WH_BIT(kind))) && !(link->state & DETACHING))
		wh_link_want(link, WH_BIT(request));
}

void wh_engine_want_writable(struct wh_engine *engine, struct wh_link *link)
{
	(void)engine;
	want_once(link, REQUEST_WRITABLE, WH_EVENT_WRITABLE);
}

void wh_engine_watch(struct wh_engine *engine, struct wh_link *link)
{
	(void)engine;
	want_once(link, REQUEST_WATCH, WH_EVENT_READABLE);
}

void wh_engine_accept(struct wh_engine *engine, struct wh_link *link, struct wh_accepts *accepts)
{
	(void)engine;
	if (link->state & DETACHING)
		return;
	if (!(link->state & LISTENING)) {
		*accepts = (struct wh_accepts){ 0 };
		link->accepts = accepts;
	}
	link->state |= LISTENING | ACCEPTING;
	wh_link_want_accept(link);
}

void wh_link_finish_detach(struct wh_link *link)
{
	wh_list_remove(&link->todo);
	wh_list_remove(&link->wait);
	if (link->fd >= 0)
		close(link->fd);
	link->fd = -1;
	wh_link_news(link, WH_EVENT_DETACHED, &link->end);
}

/* ---- Sending ----------------------------------------------------------------------------------------------------- */

static void put_control(struct wh_tx *tx, int type, const void *data, size_t bytes)
{
	struct cmsghdr *cmsg = (struct cmsghdr *)(void *)(tx->control + tx->header.msg_controllen);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = type;
	cmsg->cmsg_len = CMSG_LEN(bytes);
	memcpy(CMSG_DATA(cmsg), data, bytes);
	tx->header.msg_controllen += CMSG_SPACE(bytes);
}

const struct msghdr *wh_tx_header(struct wh_tx *tx)
{
	wh_assert(tx->size && tx->n_fds <= WH_ENGINE_FDS_MAX); /* an empty datagram would read as the end */
	tx->iov = (struct iovec){ .iov_base = (void *)(uintptr_t)tx->bytes, .iov_len = tx->size };
	tx->header = (struct msghdr){ .msg_iov = &tx->iov, .msg_iovlen = 1 };
	if (tx->credentials) {
		struct ucred self = { .pid = getpid(), .uid = geteuid(), .gid = getegid() };

		put_control(tx, SCM_CREDENTIALS, &self, sizeof(self));
	}
	if (tx->n_fds)
		put_control(tx, SCM_RIGHTS, tx->fds, tx->n_fds * sizeof(int));
	if (tx->header.msg_controllen)
		tx->header.msg_control = tx->control;
	return &tx->header;
}

/* ---- Wakes, time, children --------------------------------------------------------------------------------------- */

/* No cancellation point: a thread that ended between setting woken and the write would deafen the loop. */
int wh_ring_bell(int fd)
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
	if (atomic_exchange(&engine->woken, true))
		return 0;
	return wh_ring_bell(atomic_load(&engine->bell));
}

int64_t wh_engine_clock(void) { return (int64_t)wh_clock_ns(CLOCK_MONOTONIC); }

int64_t wh_engine_until(int64_t deadline_ns)
{
	int64_t start_ns = wh_engine_clock();

	return deadline_ns < INT64_MAX - start_ns ? start_ns + deadline_ns : INT64_MAX - 1;
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
