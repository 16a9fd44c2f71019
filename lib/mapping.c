/* SPDX-License-Identifier: MIT */
/* The peer's memory as a port maps it: segments come, are asked for again, and go; chunks are given back. */
#include <errno.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>

#include "outbox.h"

enum { AGAIN_MAX = 16 }; /* guessed, never tuned */

/* ---- Chunks going back ---- */

void wh_port_flush_released(struct wharf_port *port, struct wh_accumulator *a)
{
	struct wh_view *view;

	if (!a->bits)
		return;
	view = port->views[a->slot];
	wh_trace_often(port->source.loop, port, WH_OFTEN_RELEASE, a->bits, (uint64_t)a->slot << 32 | a->word);
	if (wh_view_release(view, a->word, a->bits)) {
		port->wake_due = true;
		if (!port->shut)
			wh_port_dirty(port);
	}
	a->bits = 0;
}

static void flush_all(struct wharf_port *port, struct wh_mapped *mapped)
{
	for (unsigned i = 0; i < WH_ACCUMULATORS; i++)
		wh_port_flush_released(port, &mapped->released[i]);
}

void wh_port_flush_all_released(struct wharf_port *port)
{
	if (port->mapped)
		flush_all(port, port->mapped);
}

/* ---- Segments ---- */

/* Room to note what the peer announces. False: no memory, the port ends. */
static bool make_table(struct wharf_port *port)
{
	if (port->mapped)
		return true;
	port->mapped = wh_loop_alloc(port->source.loop, sizeof(*port->mapped));
	if (!port->mapped) {
		wh_port_end(port, WHARF_CLOSE_ERROR, ENOMEM, "no memory for a segment of the peer");
		return false;
	}
	memset(port->mapped, 0, sizeof(*port->mapped));
	port->limits.slots = port->mapped->geometry;
	port->views = port->mapped->views;
	return true;
}

/* No room in the descriptor table. It is asked for again after a while: messages that lie in it wait in order. */
static void lose(struct wharf_port *port, uint16_t slot)
{
	struct wh_geometry *g = &port->mapped->geometry[slot];

	if (!g->asked) {
		g->asked = true;
		port->n_lost++;
	}
	port->announce_asks[slot / 64] |= 1ull << (slot % 64);
	if (!port->ask.timer.position)
		wh_port_back_off(port, &port->ask, &port->ask_ns);
}

static void find(struct wharf_port *port, uint16_t slot)
{
	port->mapped->geometry[slot].asked = false;
	port->n_lost--;
	port->ask_ns = 0;
	port->starved = false;
	wh_port_schedule_held(port);
}

void wh_port_ask_again(struct wh_deadline *deadline)
{
	struct wharf_port *port = wh_container_of(deadline, struct wharf_port, ask);

	port->slots_due |= port->n_lost;
	wh_port_dirty(port);
}

bool wh_port_lacks_segment(const struct wharf_port *port, const struct wh_record *r)
{
	const struct wh_run *runs = r->n_items ? wh_message_read(r).runs : NULL;

	for (unsigned i = 0; i < r->n_items; i++)
		if (runs[i].n_chunks && !port->views[runs[i].slot])
			return true;
	return false;
}

void wh_port_on_announce(struct wharf_port *port, const struct wh_announce *a, const int *fds, uint32_t n_fds)
{
	uint64_t bytes = (uint64_t)a->n_chunks << a->chunk_shift;
	const char *why = NULL;
	struct wh_geometry *g;
	struct wh_view *view;
	int error;

	if (!make_table(port))
		return;
	g = &port->mapped->geometry[a->slot];
	if (!g->n_chunks) {
		if (port->views[a->slot]) {
			wh_port_violation(port, "it announces a segment in a slot that it has not got back");
			return;
		}
		if (port->stats->counts.rx_mapped_bytes + bytes > port->mapped_bytes_max) {
			wh_port_violation(port, "it announces more memory than it was told");
			return;
		}
		*g = (struct wh_geometry){ .n_chunks = a->n_chunks, .chunk_shift = a->chunk_shift };
		wh_port_count(port, rx_mapped_bytes, bytes);
	}
	if (n_fds < 2) {
		lose(port, a->slot);
		return;
	}
	error = wh_view_open(
		fds[0], fds[1], a->slot, a->chunk_shift, a->n_chunks, port->maps_huge, &view, &why);
	if (error == -EPROTO) {
		wh_port_violation(port, why);
		return;
	}
	if (error) {
		wh_port_end(port, WHARF_CLOSE_ERROR, -error, "a segment of the peer could not be mapped");
		return;
	}
	port->views[a->slot] = view;
	if (g->asked)
		find(port, a->slot);
}

static void unmap(struct wharf_port *port, uint16_t slot, uint64_t bytes)
{
	wh_port_count(port, rx_mapped_bytes, 0 - bytes);
	wh_view_unref(port->views[slot]);
	port->views[slot] = NULL;
}

void wh_port_unmap(struct wharf_port *port)
{
	if (!port->mapped)
		return;
	for (unsigned slot = 0; slot < WH_SLOTS_MAX; slot++)
		if (port->views[slot])
			unmap(port, (uint16_t)slot, port->views[slot]->bytes);
	wh_loop_dealloc(port->source.loop, port->mapped);
	port->mapped = NULL;
	port->views = NULL;
}

/* Does a message that waits to be delivered lie in the slot? */
static bool held_uses(const struct wharf_port *port, uint16_t slot)
{
	for (const struct wh_list *i = port->held.next; i != &port->held; i = i->next) {
		const struct wh_held *held = wh_container_of(i, struct wh_held, link);
		const struct wh_frame *frame = (const struct wh_frame *)held->frame;
		const struct wh_record *r = (const struct wh_record *)(held->frame + held->offset);
		for (; r != wh_frame_end(frame); r = wh_record_next(r))
			if (wh_record_uses(r, slot))
				return true;
	}
	return wh_flows_use_slot(port, slot);
}

/* No message can come to lie in it any more. Returns its size. */
static uint64_t forget(struct wharf_port *port, uint16_t slot)
{
	struct wh_geometry *g = &port->mapped->geometry[slot];
	uint64_t bytes = (uint64_t)g->n_chunks << g->chunk_shift;

	if (g->asked) {
		port->n_lost--;
		port->announce_asks[slot / 64] &= ~(1ull << (slot % 64));
	}
	*g = (struct wh_geometry){ 0 };
	return bytes;
}

static void give_back(struct wharf_port *port, uint16_t slot, uint64_t bytes)
{
	unmap(port, slot, bytes);
	port->retire_acks[slot / 64] |= 1ull << (slot % 64);
	port->slots_due = true;
	wh_port_dirty(port);
}

void wh_port_unmap_unread(struct wharf_port *port)
{
	for (uint16_t slot = 0; port->mapped && slot < WH_SLOTS_MAX; slot++)
		if (port->views[slot] && wh_view_unread(port->views[slot]))
			give_back(port, slot, port->views[slot]->bytes);
}

void wh_port_on_retire(struct wharf_port *port, const struct wh_slot_record *r)
{
	uint64_t bytes;

	if (r->acknowledged) {
		port->tx_mapped_bytes -= wh_lease_slot_bytes(port->lease, r->slot);
		if (wh_lease_retired(port->lease, r->slot))
			wh_port_violation(port, "it unmaps a segment that it was not asked to");
		return;
	}
	/* An owner retires only what has come back; messages that wait here still hold theirs. */
	if (held_uses(port, r->slot)) {
		wh_port_violation(port, "it retires a segment that messages on their way lie in");
		return;
	}
	flush_all(port, port->mapped);
	bytes = forget(port, r->slot);
	/*
	 * Taken messages may lie in it: those of a peer that believes otherwise, or one that a thread is about to let go. It
	 * counts, and its slot is not free, until they are gone: its owner counts it as long, so that no honest one announces
	 * too much.
	 */
	if (!port->views[r->slot] || wh_view_retire(port->views[r->slot]))
		give_back(port, r->slot, bytes);
}

/* ---- Own segments that the peer has lost ---- */

void wh_port_on_announce_request(struct wharf_port *port, const struct wh_slot_record *r)
{
	uint64_t *word = &port->announce_again[r->slot / 64], bit = 1ull << (r->slot % 64);
	int result = *word & bit ? -EPROTO : wh_lease_lost(port->lease, r->slot);

	if (result < 0)
		wh_port_violation(port, "it asks again for a segment that it was not announced, or has mapped");
	if (result <= 0)
		return;
	*word |= bit;
	port->again_due = true;
	wh_port_dirty(port);
}

/*
 * Announcements that no window counts: a peer that asks and does not read would have their descriptors pile up, which
 * count for this user wherever they go.
 */
static bool too_many_unread(struct wharf_port *port)
{
	int unread;

	if (port->n_again < AGAIN_MAX)
		return false;
	if (ioctl(port->source.link.fd, SIOCOUTQ, &unread) < 0 || unread)
		return true;
	port->n_again = 0;
	return false;
}

/* The lowest slot that is due, no longer due; or WH_SLOTS_MAX. */
static unsigned take_again(struct wharf_port *port)
{
	for (unsigned i = 0; i < WH_SLOTS_MAX / 64; i++) {
		uint64_t *word = &port->announce_again[i];
		if (*word) {
			unsigned bit = (unsigned)__builtin_ctzll(*word);
			*word &= *word - 1;
			return i * 64 + bit;
		}
	}
	return WH_SLOTS_MAX;
}

struct wh_outframe *wh_port_announce_again(struct wharf_port *port)
{
	struct wh_outframe *frame = too_many_unread(port) ? NULL : wh_outframe_for_control(port->source.loop);
	struct wh_announcement a;
	unsigned slot;

	if (!frame) {
		wh_port_retry_later(port);
		return NULL;
	}
	slot = take_again(port);
	if (slot < WH_SLOTS_MAX && !wh_lease_announcement(port->lease, (uint16_t)slot, &a)) {
		port->n_again++;
		wh_outframe_announce(frame, &a);
		return frame;
	}
	wh_outframe_free(port->source.loop, frame);
	if (slot == WH_SLOTS_MAX)
		port->again_due = false;
	else
		wh_port_violation(port, "it asks again for a segment that it has mapped");
	return NULL;
}
