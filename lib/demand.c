/* SPDX-License-Identifier: MIT */
/*
 * What messages ask of the caps, and who is told when there is room for what was refused.
 *
 * What is remembered of a refusal is always one message that was refused: of several the smallest by each measure, so
 * that on_writable is true for one of them at least.
 */
#include "latest.h"
#include "outbox.h"

static bool fds_fit(const struct wharf_port *port, const struct wh_demand *d, const struct wh_outmsg *older)
{
	return port->tx_fds_unread + port->tx_fds_queued - (older ? older->n_fds : 0u) + d->n_fds <= port->tx_fds_max;
}

/* A port that has lent nothing may lend one message of any size. */
static bool may_lend(const struct wharf_port *port, uint64_t bytes, const struct wh_outmsg *older)
{
	uint64_t lent;

	if (!port->tx_lent_bytes_max || !bytes)
		return true;
	lent = wh_lease_lent_bytes(port->lease) + port->tx_lent_queued_bytes - (older ? older->lent_bytes : 0);
	return !lent || (lent <= port->tx_lent_bytes_max && bytes <= port->tx_lent_bytes_max - lent);
}

bool wh_port_may_lend(const struct wharf_port *port, uint64_t bytes) { return may_lend(port, bytes, NULL); }

uint64_t wh_outmsg_lends(const struct wharf_port *port, const struct wh_outmsg *m)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; port->tx_lent_bytes_max && !port->tx_inline && i < m->n_parts; i++)
		if (m->parts[i].buf.data)
			bytes += wh_lease_cost(port->lease, &m->parts[i].buf);
	return bytes;
}

static const struct wh_outmsg *older_of(const struct wharf_port *port, const struct wh_demand *d)
{
	return d->is_value ? wh_latest_find(port, d->type, d->key) : NULL;
}

/*
 * Streams and calls have a cap together, or a peer that reads nothing would make each of them queue what is its own.
 * Those that wait for credit may use it up: their readers must not stall the others', so what has all the credit that
 * it needs only waits for what can go on.
 */
static bool flows_take(const struct wharf_port *port, uint64_t cost, int64_t credit_bytes)
{
	if (wh_likely(port->flows_cost < port->tx_queued_bytes_max))
		return true;
	/* An eighth for what records cost besides their payload. */
	return port->active_cost < port->tx_queued_bytes_max && cost <= (uint64_t)credit_bytes &&
		cost / 8 <= (uint64_t)credit_bytes - cost;
}

static bool has_room(const struct wh_flow *flow, uint64_t cost)
{
	return flow->kind == WH_FLOW_PLAIN || (flow->out.credit_bytes > 0 &&
		flows_take(flow->port, flow->out.cost + cost, flow->out.credit_bytes));
}

static bool fits(const struct wh_flow *flow, const struct wh_demand *d)
{
	const struct wh_outmsg *older = older_of(flow->port, d);

	return has_room(flow, d->cost) && fds_fit(flow->port, d, older) && may_lend(flow->port, d->lent_bytes, older);
}

bool wh_demand_fits(const struct wh_flow *flow, const struct wh_demand *d)
{
	if (wh_likely(fits(flow, d)))
		return true;
	if (may_lend(flow->port, d->lent_bytes, older_of(flow->port, d)))
		return false;
	wh_lease_harvest(flow->port->lease);
	return fits(flow, d);
}

/* ---- What was refused ---- */

void wh_port_watch_lease(struct wharf_port *port)
{
	bool on = port->lent_refused || (port->latest && port->latest->watches);

	if (on == port->watched)
		return;
	port->watched = on;
	wh_lease_watch(port->lease, on);
}

static bool is_dry(const struct wh_flow *flow)
{
	return flow->kind != WH_FLOW_PLAIN && flow->out.credit_bytes <= 0;
}

void wh_outflow_block(struct wh_flow *flow, const struct wh_demand *d)
{
	struct wharf_port *port = flow->port;
	bool first = !wh_list_linked(&flow->out.blocked) && !flow->out.dry;

	if (first && is_dry(flow))
		wh_outflow_dry(flow, true);
	else if (first)
		wh_list_append(&port->blocked_flows, &flow->out.blocked);
	if (first || d->cost < flow->out.refused.cost)
		flow->out.refused = *d;
	if (flow->kind == WH_FLOW_PLAIN && (first || d->n_fds < port->refused_fds.n_fds))
		port->refused_fds = *d;
	if (flow->kind == WH_FLOW_PLAIN && (first || d->lent_bytes < port->refused_lent.lent_bytes))
		port->refused_lent = *d;
	if (!may_lend(port, d->lent_bytes, older_of(port, d)) && !port->lent_refused) {
		port->lent_refused = true;
		wh_port_watch_lease(port);
		/* What came back before the mark brings no wake. */
		wh_port_chore(port);
	}
}

void wh_port_block_call(struct wharf_port *port, const struct wh_flow *flow)
{
	struct wh_demand d = flow->out.refused;

	/* It never was: what kept it back is the port's, and nothing of its own. */
	if (has_room(flow, d.cost)) {
		d.cost = 0;
		wh_outflow_block(&port->plain, &d);
	} else if (!port->refused_call_cost || d.cost < port->refused_call_cost) {
		port->refused_call_cost = wh_max(d.cost, 1);
	}
}

static bool would_succeed(const struct wh_flow *flow, const struct wh_demand *d)
{
	const struct wharf_port *port = flow->port;

	if (!fits(flow, d))
		return false;
	/* At once, if nothing is in front of it. */
	if (port->tx_plain && flow->out.credit_bytes > 0 && !flow->out.first && !d->is_value)
		return wh_outbox_takes_frame(port);
	return wh_outflow_takes(flow, d->cost, older_of(port, d));
}

static bool unblocked(const struct wh_flow *flow)
{
	const struct wharf_port *port = flow->port;

	return would_succeed(flow, &flow->out.refused) ||
		(flow->kind == WH_FLOW_PLAIN &&
			(would_succeed(flow, &port->refused_fds) || would_succeed(flow, &port->refused_lent)));
}

static bool waits_for_release(const struct wh_flow *flow)
{
	const struct wharf_port *port = flow->port;
	const struct wh_demand *d = flow->kind == WH_FLOW_PLAIN ? &port->refused_lent : &flow->out.refused;

	return !may_lend(port, d->lent_bytes, older_of(port, d));
}

/* The flows that may go on; those of calls are told at once, unless one ends the port. True: the port is to be told. */
static bool unblock_flows(struct wharf_port *port)
{
	struct wh_list blocked, *node;
	bool tell = false;

	if (wh_list_linked(&port->plain.out.blocked) && unblocked(&port->plain)) {
		wh_list_remove(&port->plain.out.blocked);
		tell = true;
	}
	wh_list_init(&blocked);
	wh_list_splice(&blocked, &port->blocked_flows);
	/* While those that can go on have all there is, none of the others can. */
	while (port->state < WH_PORT_ENDING && port->active_cost < port->tx_queued_bytes_max &&
		(node = wh_list_take_first(&blocked))) {
		struct wh_flow *flow = wh_container_of(node, struct wh_flow, out.blocked);
		if (is_dry(flow))
			wh_outflow_dry(flow, true);
		else if (flow == &port->plain || !unblocked(flow))
			wh_list_append(&port->blocked_flows, node);
		else if (wh_flow_is_call(flow))
			wh_call_writable(flow);
		else
			tell = true;
	}
	/* In turns: those that were not looked at come first the next time. */
	wh_list_splice(&blocked, &port->blocked_flows);
	wh_list_splice(&port->blocked_flows, &blocked);
	return tell;
}

/* After those that were told. */
static void look_who_waits_for_release(struct wharf_port *port)
{
	bool any = false;

	for (const struct wh_list *node = port->blocked_flows.next; node != &port->blocked_flows; node = node->next)
		any |= waits_for_release(wh_container_of(node, struct wh_flow, out.blocked));
	/* What came back before the mark brings no wake. */
	if (any && !port->lent_refused)
		wh_port_chore(port);
	port->lent_refused = any;
	wh_port_watch_lease(port);
}

/* Streams and calls that could not begin for want of a number. */
static bool unblock_starts(struct wharf_port *port)
{
	uint32_t before = port->blocked_starts;

	for (uint32_t rest = before; rest; rest &= rest - 1) {
		unsigned kind = (unsigned)__builtin_ctz(rest);
		if (port->flows[kind].n < port->flows_max[kind])
			port->blocked_starts &= ~(1u << kind);
	}
	return port->blocked_starts != before;
}

static bool unblock_calls(struct wharf_port *port)
{
	if (!port->refused_call_cost ||
		!flows_take(port, port->refused_call_cost, (int64_t)wh_min(port->tx_credit_bytes, INT64_MAX)))
		return false;
	port->refused_call_cost = 0;
	return true;
}

void wh_port_room(struct wharf_port *port)
{
	/* In every state: private words are given back here, and the lease may be kicked again. */
	bool tell = wh_pool_room(wh_lease_pool(port->lease), port->lease);

	if (port->state >= WH_PORT_ENDING)
		return;
	port->tally.claim_refused &= !tell;
	if (port->latest)
		wh_latest_look(port);
	tell |= port->posting.writable;
	port->posting.writable = false;
	tell |= unblock_flows(port);
	if (port->tx_lent_bytes_max && port->state < WH_PORT_ENDING)
		look_who_waits_for_release(port);
	tell |= unblock_starts(port);
	tell |= unblock_calls(port);
	wh_ledger_unblock(port, tell);
	if (tell && port->ops.on_writable && port->state <= WH_PORT_OPEN)
		port->ops.on_writable(port, port->user);
}
