/* SPDX-License-Identifier: MIT */
/* What an application may do with a message that it received. */
#include "message.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct wh_message *message_of(const struct wharf_msg *msg) { return (struct wh_message *)(uintptr_t)msg; }

/* Put together here from pieces: its memory goes with it. */
static bool assembled(const struct wh_message *m) { return m->joined && m->pub.n_slices == 1; }

/* Slices begin at multiples of 64 in a copy: what was aligned stays so. */
static size_t copied_bytes(const struct wh_message *m, bool private)
{
	size_t bytes = 0;

	if (assembled(m))
		return 0;
	for (size_t i = 0; i < m->pub.n_slices; i++)
		if (private || !m->runs[i].n_chunks)
			bytes += wh_align_up(m->pub.slices[i].size, 64);
	return bytes;
}

struct wh_message *wh_message_take(struct wh_message *borrowed, bool private)
{
	const struct wharf_msg *pub = &borrowed->pub;
	size_t n = pub->n_slices, at = wh_align_up(sizeof(struct wh_message), 64);
	size_t runs_at, slices_at, views_at, fds_at, bytes_at;
	struct wharf_slice *slices;
	struct wh_message *m;
	struct wh_run *runs;
	char *memory, *to;

	runs_at = at;
	slices_at = at += n * sizeof(struct wh_run);
	views_at = at += n * sizeof(struct wharf_slice);
	fds_at = at += n * sizeof(struct wh_view *);
	bytes_at = at = wh_align_up(at + pub->n_fds * sizeof(int), 64);
	memory = aligned_alloc(64, at + copied_bytes(borrowed, private));
	if (!memory)
		return NULL;
	m = (struct wh_message *)memory;
	runs = (struct wh_run *)(memory + runs_at);
	slices = (struct wharf_slice *)(memory + slices_at);
	to = memory + bytes_at;
	*m = (struct wh_message){
		.pub = *pub,
		.port = borrowed->port,
		.runs = runs,
		.fds = (int *)(memory + fds_at),
		.views = (struct wh_view **)(memory + views_at),
		.refs = 1,
	};
	m->is_private = private;
	if (!private)
		m->pub.flags |= WHARF_MSG_TAKEN;
	m->pub.slices = slices;
	m->pub.fds = m->fds;
	for (size_t i = 0; i < n; i++) {
		runs[i] = borrowed->runs[i];
		slices[i] = pub->slices[i];
		m->views[i] = NULL;
		if (!private && runs[i].n_chunks) {
			m->views[i] = wh_view_ref(m->port->views[runs[i].slot]);
			m->holds = true;
			continue;
		}
		if (assembled(borrowed)) {
			m->joined = borrowed->joined;
			borrowed->joined = NULL;
			if (!private) {
				/* The borrowed one stays readable, even if this is released before. */
				m->refs++;
				borrowed->heir = m;
			}
			break;
		}
		if (slices[i].size)
			memcpy(to, slices[i].data, slices[i].size);
		slices[i].data = to;
		to += wh_align_up(slices[i].size, 64);
	}
	for (size_t i = 0; i < pub->n_fds; i++) {
		m->fds[i] = borrowed->fds[i];
		borrowed->fds[i] = -1;
	}
	if (m->holds)
		atomic_fetch_add_explicit(&m->port->taken, 1, memory_order_relaxed);
	if (borrowed->charge_bytes) {
		m->flow = wh_flow_ref(borrowed->flow);
		m->charge_bytes = borrowed->charge_bytes;
		borrowed->charge_bytes = 0;
	}
	wharf_port_ref(m->port);
	return m;
}

struct wharf_msg *wharf_msg_take(const struct wharf_msg *msg)
{
	struct wh_message *m = message_of(msg), *taken;

	if (!msg || wh_forked() || m->is_taken)
		return NULL;
	if (m->is_private && !(m->pub.flags & WHARF_MSG_TAKEN)) {
		/* Delivered as a copy: it becomes the caller's as it is. */
		m->is_taken = true;
		m->pub.flags |= WHARF_MSG_TAKEN;
	}
	if (m->pub.flags & WHARF_MSG_TAKEN)
		return wharf_msg_ref(&m->pub);
	taken = wh_message_take(m, false);
	if (!taken)
		return NULL;
	m->is_taken = true;
	return &taken->pub;
}

struct wharf_msg *wharf_msg_ref(struct wharf_msg *msg)
{
	if (msg && !wh_forked()) {
		wh_assert(msg->flags & WHARF_MSG_TAKEN);
		atomic_fetch_add_explicit(&message_of(msg)->refs, 1, memory_order_relaxed);
	}
	return msg;
}

static void free_message(struct wh_message *m)
{
	struct wharf_port *port = m->port;
	bool holds = m->holds;
	uint32_t reasons = 0;

	for (size_t i = 0; i < m->pub.n_slices; i++) {
		const struct wh_run *run = &m->runs[i];
		if (!m->views[i])
			continue;
		if (wh_view_release(m->views[i], run->first / 64, wh_run_mask(run)))
			reasons |= WH_KICK_WAKE;
		if (wh_view_unref(m->views[i]))
			reasons |= WH_KICK_UNREAD;
	}
	wh_fds_close(m->fds, m->pub.n_fds);
	if (m->charge_bytes) {
		wh_flow_returned(m->flow, m->charge_bytes);
		wh_flow_unref(m->flow);
	}
	free(m->joined);
	free(m);
	if (holds && atomic_fetch_sub_explicit(&port->taken, 1, memory_order_seq_cst) == 1) {
		reasons |= WH_KICK_RETURNED;
		wh_port_let_go(port);
	}
	if (reasons)
		wh_port_kick(port, reasons);
	wharf_port_unref(port);
}

void wh_message_unref(struct wh_message *m)
{
	if (atomic_fetch_sub_explicit(&m->refs, 1, memory_order_acq_rel) == 1)
		free_message(m);
}

struct wharf_msg *wharf_msg_release(struct wharf_msg *msg)
{
	if (!msg || wh_forked())
		return NULL;
	wh_assert(msg->flags & WHARF_MSG_TAKEN);
	wh_message_unref(message_of(msg));
	return NULL;
}

int wharf_msg_take_fd(const struct wharf_msg *msg, size_t index)
{
	struct wh_message *m = message_of(msg);
	int fd;

	if (wh_forked())
		return -ECHILD;
	if (!msg)
		return -EINVAL;
	if (index >= msg->n_fds)
		return -ERANGE;
	fd = m->fds[index];
	m->fds[index] = -1;
	return fd < 0 ? -EBADF : fd;
}

size_t wharf_msg_copy(const struct wharf_msg *msg, size_t offset, void *to, size_t size)
{
	size_t done = 0;

	if (!msg || wh_forked())
		return 0;
	for (size_t i = 0; i < msg->n_slices && done < size; i++) {
		const struct wharf_slice *slice = &msg->slices[i];
		size_t n;
		if (offset >= slice->size) {
			offset -= slice->size;
			continue;
		}
		n = wh_min(slice->size - offset, size - done);
		memcpy((char *)to + done, (const char *)slice->data + offset, n);
		done += n;
		offset = 0;
	}
	return done;
}

const void *wharf_msg_contiguous(const struct wharf_msg *msg)
{
	struct wh_message *m = message_of(msg);

	if (!msg || wh_forked())
		return NULL;
	if (msg->n_slices == 0)
		return "";
	if (msg->n_slices == 1)
		return msg->slices[0].data;
	if (!m->joined) {
		m->joined = aligned_alloc(64, wh_align_up(wh_max(msg->size, 1), 64));
		if (m->joined)
			wharf_msg_copy(msg, 0, m->joined, msg->size);
	}
	return m->joined;
}
