/* SPDX-License-Identifier: MIT */
/* The io_uring engine: what comes out of its queue of events. */
#include "engine_uring.h"

#include <string.h>
#include <unistd.h>

#include "compat.h"

static const uint32_t end_news = WH_BIT(WH_EVENT_EOF) | WH_BIT(WH_EVENT_ERROR);
static const uint32_t late_news = WH_BIT(WH_EVENT_EOF) | WH_BIT(WH_EVENT_ERROR) | WH_BIT(WH_EVENT_DETACHED);

static void read_control(struct io_uring_recvmsg_out *out, struct wh_event *event)
{
	unsigned char *control = (unsigned char *)(out + 1);
	size_t length = wh_min(out->controllen, WH_CONTROL_BYTES), offset = 0;

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
	struct io_uring_recvmsg_out *out = wh_uring_buffer(engine, index);

	event->kind = WH_EVENT_FRAME;
	event->result = 0;
	event->link = engine->slots[index].link;
	event->bytes = (unsigned char *)out + RX_HEADER;
	event->size = engine->slots[index].size;
	event->n_fds = 0;
	event->fds_lost = out->flags & MSG_CTRUNC;
	event->truncated = out->flags & MSG_TRUNC;
	event->has_credentials = false;
	event->fds = NULL;
	event->buffer = index;
	if (out->controllen)
		read_control(out, event);
}

void wh_engine_frame_done(struct wh_engine *engine, struct wh_event *frame)
{
	wh_assert(engine->rx_lent);
	for (uint32_t i = 0; i < frame->n_fds; i++)
		if (frame->fds[i] >= 0)
			close(frame->fds[i]);
	engine->rx_lent--;
	wh_uring_buffer_give(engine, frame->buffer);
}

void wh_uring_discard_frame(struct wh_engine *engine, uint32_t index)
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

void wh_uring_drop_accepted(struct wh_link *link)
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
			wh_uring_queue_news(link, WH_EVENT_ACCEPTED, &link->early);
		wh_uring_want_accept(link);
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
			wh_uring_queue_node(engine, &link->end);
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
		read_frame(engine, (uint32_t)(wh_container_of(node, struct rx_slot, node) - engine->slots), ret_event);
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
