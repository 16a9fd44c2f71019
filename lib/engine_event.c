/* SPDX-License-Identifier: MIT */
/* The engines' queue of events: what comes in, by whichever engine, and what comes out. */
#include "engine_core.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "compat.h"

/* Datagrams that one system call reads. */
enum { READ_MAX = 16 };

static const uint32_t end_news = WH_BIT(WH_EVENT_EOF) | WH_BIT(WH_EVENT_ERROR);
static const uint32_t late_news = WH_BIT(WH_EVENT_EOF) | WH_BIT(WH_EVENT_ERROR) | WH_BIT(WH_EVENT_DETACHED);

/* ---- Out --------------------------------------------------------------------------------------------------------- */

static void read_control(struct wh_rx *rx, struct wh_event *event)
{
	unsigned char *control = (unsigned char *)(rx + 1);
	size_t length = wh_min(rx->control_bytes, WH_CONTROL_BYTES), offset = 0;

	while (offset + sizeof(struct cmsghdr) <= length) {
		struct cmsghdr *cmsg = (struct cmsghdr *)(void *)(control + offset);
		size_t bytes = cmsg->cmsg_len - CMSG_LEN(0);

		if (cmsg->cmsg_len < CMSG_LEN(0) || cmsg->cmsg_len > length - offset)
			break;
		offset += CMSG_ALIGN(cmsg->cmsg_len);
		if (cmsg->cmsg_level != SOL_SOCKET)
			continue;
		switch (cmsg->cmsg_type) {
		case SCM_RIGHTS: /* the kernel makes one of all that were sent */
			event->fds = (int *)(void *)CMSG_DATA(cmsg);
			event->n_fds = (uint16_t)(bytes / sizeof(int));
			break;
		case SCM_CREDENTIALS:
			if (bytes >= sizeof(event->credentials)) {
				memcpy(&event->credentials, CMSG_DATA(cmsg), sizeof(event->credentials));
				event->has_credentials = true;
			}
			break;
		case SCM_PIDFD: /* whoever had this socket before may have asked for it */
			if (bytes >= sizeof(int)) {
				int fd;

				memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
				if (fd >= 0)
					close(fd);
			}
			break;
		}
	}
}

static void read_frame(struct wh_engine *engine, uint32_t index, struct wh_event *event)
{
	struct wh_rx *rx = wh_engine_buffer(engine, index);

	event->kind = WH_EVENT_FRAME;
	event->result = 0;
	event->link = engine->slots[index].link;
	event->bytes = (unsigned char *)rx + RX_HEADER;
	event->size = engine->slots[index].size;
	event->n_fds = 0;
	event->fds_lost = rx->flags & MSG_CTRUNC;
	event->truncated = rx->flags & MSG_TRUNC;
	event->has_credentials = false;
	event->fds = NULL;
	event->buffer = index;
	if (rx->control_bytes)
		read_control(rx, event);
}

void wh_engine_frame_done(struct wh_engine *engine, struct wh_event *frame)
{
	wh_assert(engine->rx_lent);
	for (uint32_t i = 0; i < frame->n_fds; i++)
		if (frame->fds[i] >= 0)
			close(frame->fds[i]);
	engine->rx_lent--;
	engine->ops->give(engine, frame->buffer);
}

static void discard_frame(struct wh_engine *engine, uint32_t index)
{
	struct wh_event event;

	read_frame(engine, index, &event);
	wh_engine_frame_done(engine, &event);
}

static int take_accepted(struct wh_accepts *accepts)
{
	int fd = accepts->fds[accepts->first];

	accepts->first = (accepts->first + 1) % WH_ACCEPTS_MAX;
	accepts->n--;
	return fd;
}

void wh_link_drop_accepted(struct wh_link *link)
{
	if (!(link->news & WH_BIT(WH_EVENT_ACCEPTED)))
		return;
	while (link->accepts->n)
		close(take_accepted(link->accepts));
	link->news &= ~WH_BIT(WH_EVENT_ACCEPTED);
	link->engine->n_events--;
	if (!(link->news & ~late_news))
		wh_list_remove(&link->early.queue);
}

/* What happens to a link besides frames, in no order with them: the lowest kind first. */
static void take_early(struct wh_link *link, struct wh_event *event)
{
	uint32_t news = link->news & ~late_news;

	event->link = link;
	event->kind = (enum wh_event_kind)__builtin_ctz(news);
	event->result = 0;
	link->news &= ~WH_BIT(event->kind);
	if (news == WH_BIT(event->kind))
		wh_list_remove(&link->early.queue);
	switch (event->kind) {
	case WH_EVENT_SENT:
		event->result = link->sent_result;
		break;
	case WH_EVENT_ACCEPTED:
		event->result = take_accepted(link->accepts);
		if (link->accepts->n)
			wh_link_news(link, WH_EVENT_ACCEPTED, &link->early);
		wh_link_want_accept(link);
		break;
	case WH_EVENT_ACCEPT_ERROR:
		event->result = link->accepts->error;
		break;
	case WH_EVENT_READABLE:
		event->result = link->watch_result;
		break;
	default:
		break;
	}
}

static void take_end(struct wh_engine *engine, struct wh_link *link, struct wh_event *event)
{
	uint32_t news = link->news & end_news;

	event->link = link;
	wh_list_remove(&link->end.queue);
	if (news) {
		event->kind = (enum wh_event_kind)__builtin_ctz(news);
		event->result = link->end_result;
		link->news &= ~news;
		if (link->news & WH_BIT(WH_EVENT_DETACHED))
			wh_engine_queue_node(engine, &link->end);
	} else {
		event->kind = WH_EVENT_DETACHED;
		event->result = 0;
		link->news = 0;
		link->engine = NULL;
		engine->n_links--;
	}
}

bool wh_engine_next(struct wh_engine *engine, struct wh_event *ret_event)
{
	struct wh_list *first = engine->events.next;
	struct wh_event_node *node = wh_container_of(first, struct wh_event_node, queue);

	if (first == &engine->events)
		return false;
	engine->n_events--;
	switch (node->source) {
	case FROM_SLOT:
		wh_list_remove(first);
		read_frame(engine, (uint32_t)(wh_container_of(node, struct wh_rx_slot, node) - engine->slots), ret_event);
		break;
	case FROM_EARLY:
		take_early(wh_container_of(node, struct wh_link, early), ret_event);
		break;
	case FROM_END:
		take_end(engine, wh_container_of(node, struct wh_link, end), ret_event);
		break;
	}
	return true;
}

/* ---- In ---------------------------------------------------------------------------------------------------------- */

static void end(struct wh_link *link, enum wh_event_kind kind, int result)
{
	if (link->state & (ENDED | DETACHING))
		return;
	link->state |= ENDED;
	link->end_result = result;
	wh_link_news(link, kind, &link->end);
}

/* An empty datagram looks like the end of the stream, save for what came along with it. */
static void empty_arrived(struct wh_link *link, uint32_t buffer)
{
	bool bare = !wh_engine_buffer(link->engine, buffer)->control_bytes;

	discard_frame(link->engine, buffer);
	if (bare)
		end(link, WH_EVENT_EOF, link->state & RESET ? -ECONNRESET : 0);
	else
		end(link, WH_EVENT_ERROR, -EPROTO);
}

void wh_link_frame(struct wh_link *link, uint32_t buffer, uint32_t size)
{
	struct wh_engine *engine = link->engine;
	struct wh_rx_slot *slot = &engine->slots[buffer];

	engine->rx_lent++;
	slot->link = link;
	slot->size = size;
	if (wh_unlikely(!size)) {
		empty_arrived(link, buffer);
	} else if (wh_unlikely(link->state & (DETACHING | ENDED))) {
		discard_frame(engine, buffer);
	} else {
		slot->node.source = FROM_SLOT;
		wh_engine_queue_node(engine, &slot->node);
		engine->n_events++;
	}
}

void wh_link_receive_failed(struct wh_link *link, int error)
{
	switch (error) {
	case -ECANCELED:  /* paused, or goes on at once */
	case -EINTR:
	case -EAGAIN:
		break;
	case -ECONNRESET: /* the peer has gone with our frames unread: its own, and the end, are behind this */
		if (!(link->state & RESET)) {
			link->state |= RESET;
			break;
		}
		/* fall through */
	default:
		end(link, WH_EVENT_ERROR, error);
	}
}

void wh_link_connection(struct wh_link *link, int result)
{
	struct wh_accepts *accepts = link->accepts;

	if (link->state & DETACHING) {
		if (result >= 0)
			close(result);
	} else if (result >= 0) {
		accepts->fds[(accepts->first + accepts->n) % WH_ACCEPTS_MAX] = result;
		accepts->n++;
		wh_link_news(link, WH_EVENT_ACCEPTED, &link->early);
	} else if (link->state & ACCEPTING) {
		/* The others may fail for the same reason: it is said once. */
		link->state &= ~(uint32_t)ACCEPTING;
		link->wanted &= ~WH_BIT(REQUEST_ACCEPT);
		accepts->error = result;
		wh_link_news(link, WH_EVENT_ACCEPT_ERROR, &link->early);
	}
}

/* Into the first n spare buffers: how many it took of them, or a negative errno. */
static int read_into(struct wh_link *link, uint32_t *buffers, uint32_t n)
{
	struct wh_engine *engine = link->engine;
	struct wh_list *spare = engine->rx_spare.next;
	struct mmsghdr headers[READ_MAX];
	struct iovec iovs[READ_MAX];
	int n_read;

	for (uint32_t i = 0; i < n; i++, spare = spare->next) {
		struct wh_rx *rx;

		buffers[i] = (uint32_t)(wh_container_of(spare, struct wh_rx_slot, node.queue) - engine->slots);
		rx = wh_engine_buffer(engine, buffers[i]);
		iovs[i] = (struct iovec){
			.iov_base = (unsigned char *)rx + RX_HEADER,
			.iov_len = engine->rx_bytes - RX_HEADER,
		};
		headers[i].msg_hdr = (struct msghdr){
			.msg_control = rx + 1,
			.msg_controllen = WH_CONTROL_BYTES,
			.msg_iov = &iovs[i],
			.msg_iovlen = 1,
		};
	}
	engine->n_calls++;
	n_read = recvmmsg(link->fd, headers, n, MSG_DONTWAIT | MSG_CMSG_CLOEXEC, NULL);
	if (n_read < 0)
		return -errno;
	for (int i = 0; i < n_read; i++)
		*wh_engine_buffer(engine, buffers[i]) = (struct wh_rx){
			.control_bytes = (uint32_t)headers[i].msg_hdr.msg_controllen,
			.payload_bytes = headers[i].msg_len,
			.flags = (uint32_t)headers[i].msg_hdr.msg_flags,
		};
	return n_read;
}

/*
 * A pair first, and more if that was filled: most bursts are of one, and a call that brings fewer than it has room for
 * says that there are no more.
 */
enum wh_receive wh_link_read(struct wh_link *link, uint32_t n)
{
	struct wh_engine *engine = link->engine;
	uint32_t buffers[READ_MAX], asked = 2;

	while (n && wh_link_receives(link)) {
		uint32_t spare = engine->rx_n - engine->rx_lent;
		int n_read;

		if (!spare)
			return WH_RECEIVED_STARVED;
		asked = (uint32_t)wh_min(wh_min(asked, n), spare);
		n_read = read_into(link, buffers, asked);
		if (n_read < 0) {
			wh_link_receive_failed(link, n_read);
			if (n_read != -ECONNRESET)
				return WH_RECEIVED_ALL;
			continue;
		}
		for (int i = 0; i < n_read; i++) {
			wh_list_remove(&engine->slots[buffers[i]].node.queue);
			wh_link_frame(link, buffers[i], wh_engine_buffer(engine, buffers[i])->payload_bytes);
		}
		if ((uint32_t)n_read < asked)
			return WH_RECEIVED_ALL;
		n -= asked;
		asked = READ_MAX;
	}
	return n ? WH_RECEIVED_ALL : WH_RECEIVED_SHARE;
}
