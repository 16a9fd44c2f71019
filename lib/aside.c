/* SPDX-License-Identifier: MIT */
/* Records that wait because their flow is paused, or behind such ones. */
#include <stdlib.h>
#include <string.h>

#include "receive.h"

/* A record that waits, in memory with the frame's alignment. */
struct aside {
	struct wh_list link;
	struct wh_record *record;
	struct wh_rx rx;
	int fds[];
};

bool wh_flow_put_aside(struct wh_flow *flow, const struct wh_record *r, struct wh_rx *rx)
{
	struct wharf_port *port = flow->port;
	/* Its peer may go on: what is put aside counts as read. Others than these are lost, and marked so. */
	uint32_t n_fds = wh_message_read(r).n_fds && port->n_aside_fds + rx->n_fds <= WH_WIRE_FDS_MAX ? rx->n_fds : 0;
	/* Bytes in the frame may have to stay at multiples of 64. */
	size_t at = wh_align_up(sizeof(struct aside) + n_fds * sizeof(int), 64);
	size_t offset = at + ((uintptr_t)r & 63);
	struct aside *aside = aligned_alloc(64, wh_align_up(offset + r->size, 64));

	if (!aside)
		return false;
	aside->record = (struct wh_record *)((char *)aside + offset);
	memcpy(aside->record, r, r->size);
	aside->rx = *rx;
	aside->rx.fds = aside->fds;
	aside->rx.n_fds = n_fds;
	for (uint32_t i = 0; i < n_fds; i++) {
		aside->fds[i] = rx->fds[i];
		rx->fds[i] = -1;
	}
	wh_list_append(&flow->in.aside, &aside->link);
	port->n_aside++;
	port->n_aside_fds += n_fds;
	return true;
}

/* The first that waits, now the caller's to free. */
static struct aside *take_aside(struct wh_flow *flow)
{
	struct wh_list *node = wh_list_take_first(&flow->in.aside);
	struct aside *aside;

	if (!node)
		return NULL;
	aside = wh_container_of(node, struct aside, link);
	flow->port->n_aside--;
	flow->port->n_aside_fds -= aside->rx.n_fds;
	return aside;
}

static bool aside_uses(const struct wh_flow *flow, uint16_t slot)
{
	for (const struct wh_list *node = flow->in.aside.next; node != &flow->in.aside; node = node->next)
		if (wh_record_uses(wh_container_of(node, struct aside, link)->record, slot))
			return true;
	return false;
}

bool wh_flows_use_slot(const struct wharf_port *port, uint16_t slot)
{
	const struct wh_flow *flow;

	for (unsigned kind = 0; port->n_aside && kind < WH_FLOW_KINDS; kind++)
		for (uint32_t at = 0; (flow = wh_flow_next(&port->flows[kind], &at));)
			if (aside_uses(flow, slot))
				return true;
	return false;
}

void wh_port_deliver_resumed(struct wharf_port *port, bool all)
{
	const bool alone = port->source.loop->n_users <= 1;
	const uint64_t bytes_before = port->stats->counts.rx_bytes;

	/* A share apart from that of frames, which come first in each turn and may use theirs up in each. */
	for (uint32_t n = 0; !wh_port_stopped(port) && !wh_list_empty(&port->resumed); n++) {
		struct wh_flow *flow;
		struct aside *aside;

		if (!all && (n >= port->msgs_per_turn ||
			    (port->stats->counts.rx_bytes - bytes_before >= WH_TURN_BYTES && !alone))) {
			wh_port_chore(port);
			break;
		}
		flow = wh_flow_ref(wh_container_of(wh_list_take_first(&port->resumed), struct wh_flow, in.resumed));
		aside = flow->in.paused ? NULL : take_aside(flow);
		if (aside) {
			wh_flow_take(flow, aside->record, &aside->rx);
			wh_fds_close(aside->rx.fds, aside->rx.n_fds);
			free(aside);
		}
		/* In turns: what arrives for one meanwhile waits behind what waits here, and must not keep it in front. */
		if (!flow->in.paused && !wh_list_empty(&flow->in.aside) && !wh_list_linked(&flow->in.resumed))
			wh_list_append(&port->resumed, &flow->in.resumed);
		wh_flow_unref(flow);
	}
	wh_port_flush_all_released(port);
}

void wh_flow_pause(struct wh_flow *flow) { flow->in.paused = true; }

void wh_flow_resume(struct wh_flow *flow)
{
	flow->in.paused = false;
	if (!wh_list_empty(&flow->in.aside) && !wh_list_linked(&flow->in.resumed)) {
		wh_list_append(&flow->port->resumed, &flow->in.resumed);
		wh_port_chore(flow->port);
	}
}

void wh_flow_drop_input(struct wh_flow *flow)
{
	struct wharf_port *port = flow->port;
	struct aside *aside;

	while ((aside = take_aside(flow))) {
		if (port->views)
			wh_port_release_runs(port, aside->record);
		wh_fds_close(aside->rx.fds, aside->rx.n_fds);
		free(aside);
	}
	if (wh_list_linked(&flow->in.resumed))
		wh_list_remove(&flow->in.resumed);
	wh_flow_drop_pieces(flow);
	if (port->views && !port->shut)
		wh_port_flush_all_released(port);
	/* The end of the port may have waited for it. */
	if (port->state < WH_PORT_ENDING)
		wh_port_chore(port);
}
