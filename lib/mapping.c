/* SPDX-License-Identifier: MIT */
/* The peer's memory as a port maps it: segments come and go, chunks are given back. */
#include <errno.h>
#include <string.h>

#include "port.h"

/* ---- Chunks going back ---- */

void wh_port_flush_released(struct wharf_port *port, struct wh_accumulator *a)
{
	struct wh_view *view;

	if (!a->bits)
		return;
	view = port->views[a->slot];
	if (wh_view_release(view, a->word, a->bits)) {
		port->wake_due = true;
		if (!port->shut)
			wh_port_dirty(port);
	}
	a->bits = 0;
}

void wh_port_flush_all_released(struct wharf_port *port)
{
	for (unsigned i = 0; i < WH_ACCUMULATORS; i++)
		wh_port_flush_released(port, &port->released[i]);
}

/* ---- Segments ---- */

void wh_port_on_announce(struct wharf_port *port, const struct wh_announce *a, const int *fds, uint32_t n_fds)
{
	uint64_t bytes = (uint64_t)a->n_chunks << a->chunk_shift;
	const char *why = NULL;
	struct wh_view *view;
	int error;

	if (n_fds < 2) {
		wh_port_end(
			port, WHARF_CLOSE_ERROR, EMFILE, "no room in the descriptor table for a segment of the peer");
		return;
	}
	if (!port->mapped) {
		port->mapped = wh_loop_alloc(port->source.loop, sizeof(*port->mapped));
		if (!port->mapped) {
			wh_port_end(port, WHARF_CLOSE_ERROR, ENOMEM, "no memory for a segment of the peer");
			return;
		}
		memset(port->mapped, 0, sizeof(*port->mapped));
		port->limits.slots = port->mapped->geometry;
		port->views = port->mapped->views;
	}
	if (port->stats.rx_mapped_bytes + bytes > port->mapped_bytes_max) {
		wh_port_violation(port, "it announces more memory than it was told");
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
	port->mapped->geometry[a->slot] =
		(struct wh_geometry){ .n_chunks = a->n_chunks, .chunk_shift = a->chunk_shift };
	port->stats.rx_mapped_bytes += bytes;
}

static void unmap(struct wharf_port *port, uint16_t slot)
{
	struct wh_geometry *g = &port->mapped->geometry[slot];

	port->stats.rx_mapped_bytes -= (uint64_t)g->n_chunks << g->chunk_shift;
	*g = (struct wh_geometry){ 0 };
	wh_view_unref(port->views[slot]);
	port->views[slot] = NULL;
}

void wh_port_unmap(struct wharf_port *port)
{
	if (!port->mapped)
		return;
	for (unsigned slot = 0; slot < WH_SLOTS_MAX; slot++)
		if (port->views[slot])
			unmap(port, (uint16_t)slot);
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
		for (; r != wh_frame_end(frame); r = wh_record_next(r)) {
			const struct wh_run *runs = r->n_items ? wh_message_read(r).runs : NULL;
			for (unsigned k = 0; k < r->n_items; k++)
				if (runs[k].n_chunks && runs[k].slot == slot)
					return true;
		}
	}
	return false;
}

void wh_port_on_retire(struct wharf_port *port, const struct wh_slot_record *r)
{
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
	wh_port_flush_all_released(port);
	unmap(port, r->slot);
	port->retire_acks[r->slot / 64] |= 1ull << (r->slot % 64);
	port->retires_due = true;
	wh_port_dirty(port);
}
