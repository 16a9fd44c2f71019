/* SPDX-License-Identifier: MIT */
/*
 * The queue of a port: messages encode into the open frame; full frames wait in order until window and socket take
 * them. Messages that cannot be encoded at once (before the peer's hello, in pieces, behind others) wait in their flow;
 * flows take turns by payload bytes for the frames that the window lets go.
 */
#include "outbox.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "latest.h"

/* What one flow may encode before the next has its turn. */
#define QUANTUM_BYTES (64 << 10)

bool wh_outbox_open(struct wharf_port *port)
{
	if (port->open)
		return true;
	port->open = wh_outframe_new(port->source.loop);
	if (!port->open)
		return false;
	port->open->encoder.capacity = port->tx_frame_bytes - WH_CONTROL_ROOM;
	port->open->ordinal = ++port->ordinal;
	wh_lease_look_at_clock(port->lease);
	return true;
}

/* ---- Full frames ---- */

static uint64_t frame_cost(const struct wh_outframe *frame) { return frame->n_bytes + frame->encoder.size; }

/*
 * An empty queue takes a frame of any size: the cap bounds what waits behind it. And any that only announces: the message
 * that needs it has found room before.
 */
bool wh_outbox_takes_frame(const struct wharf_port *port)
{
	const struct wh_outframe *open = port->open;

	return !port->frames || !open || (open->announces >= 0 && open->encoder.n_records == 1) ||
		port->frames_cost + frame_cost(open) <= port->tx_queued_bytes_max;
}

static void queue_open(struct wharf_port *port)
{
	*port->frames_end = port->open;
	port->frames_end = &port->open->next;
	port->frames_cost += frame_cost(port->open);
	port->frames_messages += wh_outframe_messages(port->open);
	port->frames_bytes += port->open->n_bytes;
	port->open = NULL;
}

static struct wh_outframe *take_frame(struct wharf_port *port)
{
	struct wh_outframe *frame = port->frames;

	port->frames = frame->next;
	if (!port->frames)
		port->frames_end = &port->frames;
	port->frames_cost -= frame_cost(frame);
	port->frames_messages -= wh_outframe_messages(frame);
	port->frames_bytes -= frame->n_bytes;
	frame->next = NULL;
	return frame;
}

/* Gives the kernel as many full frames as it and the window take. */
static void send_frames(struct wharf_port *port)
{
	struct wh_engine *engine = port->source.loop->engine;

	while (port->frames && wh_window_open(port)) {
		if (!wh_port_reap(port)) {
			wh_engine_submit(engine);
			if (!wh_port_reap(port))
				return;
		}
		if (port->stuck || port->tx_dead)
			return;
		wh_port_hand(port, take_frame(port));
		wh_engine_submit(engine);
		wh_port_reap(port);
	}
}

bool wh_outbox_turn_over(struct wharf_port *port)
{
	if (!wh_outbox_takes_frame(port)) {
		send_frames(port);
		if (!wh_outbox_takes_frame(port))
			return false;
	}
	queue_open(port);
	send_frames(port);
	return true;
}

/* ---- Encoding messages ---- */

enum wh_encoded wh_outbox_announce(struct wharf_port *port, uint16_t slot, int *ret_error)
{
	struct wh_announcement a;
	uint64_t bytes;
	int error;

	if (!wh_encoder_takes(&port->open->encoder, sizeof(struct wh_announce)))
		return WH_FRAME_FULL;
	bytes = wh_lease_slot_bytes(port->lease, slot);
	if (port->tx_mapped_bytes + bytes > port->tx_mapped_bytes_max)
		error = -EMSGSIZE;
	else if (wh_lease_slot_huge(port->lease, slot) && !(port->peer.features & WH_FEATURE_HUGE))
		error = -EOPNOTSUPP;
	else
		error = wh_lease_announcement(port->lease, slot, &a);
	if (error) {
		*ret_error = error;
		return WH_ENCODE_FAILED;
	}
	port->tx_mapped_bytes += bytes;
	wh_trace(port->source.loop, port, WH_TRACE_ANNOUNCE, slot, bytes);
	wh_outframe_announce(port->open, &a);
	port->open->data = true;
	wh_lease_announced(port->lease, slot, false);
	return WH_ENCODED;
}

/* ---- Flows ---- */

static uint64_t cap(const struct wh_flow *flow)
{
	/* One that its peer does not read must not use up what the others may queue. */
	return flow->kind == WH_FLOW_PLAIN ? flow->port->tx_queued_bytes_max
					   : wh_max(flow->port->tx_queued_bytes_max / 4, 1);
}

/*
 * What it counts of the cap that all streams and calls have together: no more than is its own, or one large message of
 * one that does not go on would use that up.
 */
static uint64_t share(const struct wh_flow *flow)
{
	return flow->kind == WH_FLOW_PLAIN ? 0 : wh_min(flow->out.cost, cap(flow));
}

static void add_cost(struct wh_flow *flow, int64_t cost)
{
	struct wharf_port *port = flow->port;
	uint64_t before = share(flow), after;

	flow->out.cost += (uint64_t)cost;
	after = share(flow);
	port->flows_cost += after - before;
	if (wh_list_linked(&flow->out.active))
		port->active_cost += after - before;
	if (after < before && wh_port_waits_for_room(port))
		wh_port_chore(port);
}

static void activate(struct wh_flow *flow)
{
	wh_list_append(&flow->port->active, &flow->out.active);
	flow->port->active_cost += share(flow);
}

static void deactivate(struct wh_flow *flow)
{
	struct wharf_port *port = flow->port;

	wh_list_remove(&flow->out.active);
	port->active_cost -= share(flow);
	if (wh_port_waits_for_room(port))
		wh_port_chore(port);
}

void wh_outflow_charge(struct wh_flow *flow, uint64_t charge_bytes)
{
	if (flow->kind != WH_FLOW_PLAIN)
		flow->out.credit_bytes -= (int64_t)charge_bytes;
}

void wh_outflow_look(struct wh_flow *flow)
{
	struct wharf_port *port = flow->port;

	if (flow->out.first && flow->out.credit_bytes > 0 && !wh_list_linked(&flow->out.active)) {
		activate(flow);
		/* Who has gone too far waits for the others even if it sends one message at a time. */
		if (flow->out.contest != port->contest)
			flow->out.deficit_bytes = 0;
		flow->out.contest = port->contest;
		port->tx_plain = false;
		wh_port_dirty(port);
	}
	if (flow->out.dry && flow->out.credit_bytes > 0) {
		wh_outflow_dry(flow, false);
		wh_list_append(&port->blocked_flows, &flow->out.blocked);
	}
	if (wh_list_linked(&flow->out.blocked))
		wh_port_chore(port);
}

/* What was posted counts against a cap of its own, until it is in frames. */
static uint64_t cost_here(const struct wh_outmsg *m) { return m->posted ? 0 : m->cost; }

bool wh_outflow_takes(const struct wh_flow *flow, uint64_t cost, const struct wh_outmsg *older)
{
	uint64_t others = flow->out.cost - (older ? cost_here(older) : 0);

	return (flow->kind == WH_FLOW_PLAIN || flow->out.credit_bytes > 0) && (!others || others + cost <= cap(flow));
}

static void count_in(struct wh_flow *flow, const struct wh_outmsg *m)
{
	struct wharf_port *port = flow->port;

	add_cost(flow, (int64_t)cost_here(m));
	port->tx_lent_queued_bytes += m->lent_bytes;
	port->queued_messages += m->last;
	port->queued_bytes += m->left_bytes;
}

static void count_out(struct wh_flow *flow, const struct wh_outmsg *m)
{
	struct wharf_port *port = flow->port;

	add_cost(flow, -(int64_t)cost_here(m));
	port->tx_lent_queued_bytes -= m->lent_bytes;
	port->queued_messages -= m->last;
	port->queued_bytes -= m->left_bytes;
}

/* At `at`, in front of `next`. */
static void link_message(struct wh_flow *flow, struct wh_outmsg **at, struct wh_outmsg *m, struct wh_outmsg *next)
{
	m->link = at;
	m->next = next;
	*at = m;
	if (next)
		next->link = &m->next;
	else
		flow->out.end = &m->next;
	count_in(flow, m);
}

void wh_outflow_append(struct wh_flow *flow, struct wh_outmsg *m)
{
	link_message(flow, flow->out.end, m, NULL);
	if (m->is_value)
		wh_latest_queued(flow->port, m);
	else if (flow == &flow->port->plain && flow->port->latest)
		wh_latest_look(flow->port); /* an end that is passed waits for the same credit */
	wh_outflow_look(flow);
}

void wh_outflow_replace(struct wh_flow *flow, struct wh_outmsg *older, struct wh_outmsg *m)
{
	count_out(flow, older);
	link_message(flow, older->link, m, older->next);
	wh_latest_replaced(flow->port, older, m);
	if (older->posted)
		wh_port_dirty(flow->port); /* settles its cost: threads may wait for the room */
	wh_outmsg_drop(flow->port, older);
}

int wh_outflow_queue(struct wh_flow *flow, const struct wh_outmsg *message)
{
	struct wh_outmsg *m = wh_outmsg_keep(flow->port, message);

	if (!m)
		return -ENOMEM;
	wh_outflow_append(flow, m);
	return 0;
}

static bool flow_fits(const struct wh_flow *flow, const struct wh_hello *theirs)
{
	bool whole = !(theirs->features & WH_FEATURE_PIECES);

	for (const struct wh_outmsg *m = flow->out.first; m; m = m->next)
		if ((whole && m->total_bytes != UINT64_MAX && m->total_bytes > theirs->message_bytes_max) ||
			(whole && m->position_bytes + m->left_bytes > theirs->message_bytes_max) ||
			m->n_fds > (uint64_t)theirs->fds_max + m->delegated)
			return false;
	return true;
}

bool wh_port_queue_fits(const struct wharf_port *port, const struct wh_hello *theirs)
{
	for (const struct wh_list *node = port->active.next; node != &port->active; node = node->next)
		if (!flow_fits(wh_container_of(node, struct wh_flow, out.active), theirs))
			return false;
	return wh_port_flows_fit(port, theirs);
}

/* Takes the first message out of the flow. */
static struct wh_outmsg *take_message(struct wh_flow *flow)
{
	struct wh_outmsg *m = flow->out.first;

	flow->out.first = m->next;
	if (m->next)
		m->next->link = &flow->out.first;
	else
		flow->out.end = &flow->out.first;
	count_out(flow, m);
	if (m->is_value)
		wh_latest_taken(flow->port, m);
	return m;
}

void wh_outflow_drop(struct wh_flow *flow)
{
	while (flow->out.first)
		wh_outmsg_drop(flow->port, take_message(flow));
	if (wh_list_linked(&flow->out.active))
		deactivate(flow);
	if (wh_list_linked(&flow->out.blocked))
		wh_list_remove(&flow->out.blocked);
	wh_outflow_dry(flow, false);
}

void wh_outflow_look_for_end(struct wh_flow *flow)
{
	if (!flow->out.ended || flow->out.first || !flow->listed)
		return;
	if (flow->kind == WH_FLOW_STREAM_OUT)
		wh_flow_rest(flow); /* until its reader is done with it */
	else if (flow->kind == WH_FLOW_ANSWER)
		wh_answer_sent(flow);
}

/* One record of the flow's first message. False: not now. */
static bool encode_record(struct wh_flow *flow)
{
	struct wharf_port *port = flow->port;
	struct wh_outmsg *m = flow->out.first;
	uint64_t before = m->left_bytes;
	int error = 0;
	enum wh_encoded result = wh_outmsg_encode(port, m, true, &error);

	switch (result) {
	case WH_ENCODED:
	case WH_ENCODED_PIECE:
		port->queued_bytes -= before - m->left_bytes;
		flow->out.deficit_bytes -= (int64_t)m->charge_bytes;
		wh_outflow_charge(flow, m->charge_bytes);
		if (result == WH_ENCODED)
			wh_outmsg_finish(port, take_message(flow));
		if (!flow->out.first || flow->out.credit_bytes <= 0) {
			deactivate(flow);
			if (flow->out.deficit_bytes > 0)
				flow->out.deficit_bytes = 0;
		}
		if (wh_list_linked(&flow->out.blocked))
			wh_port_chore(port);
		wh_outflow_look_for_end(flow);
		return port->open->n_bytes < port->flush_bytes || wh_outbox_turn_over(port);
	case WH_FRAME_FULL:
		wh_assert(!wh_encoder_empty(&port->open->encoder));
		return wh_outbox_turn_over(port);
	default:
		wh_port_retry_later(port);
		return false;
	}
}

/* Flows in turns, for the frames that may leave now: what waits longer can still be overtaken. */
static void encode_waiting(struct wharf_port *port)
{
	while (!wh_list_empty(&port->active)) {
		struct wh_flow *flow = wh_container_of(port->active.next, struct wh_flow, out.active);
		const struct wh_outmsg *m = flow->out.first;
		if (!wh_window_open(port) || port->frames || port->stuck || port->tx_dead ||
			port->state >= WH_PORT_ENDING)
			return;
		if (m->first && m->n_fds && !wh_port_frames_take_fds(port, m->n_fds))
			return;
		if (flow->out.deficit_bytes <= 0) {
			flow->out.deficit_bytes += QUANTUM_BYTES;
			wh_list_remove(&flow->out.active);
			wh_list_append(&port->active, &flow->out.active);
			continue;
		}
		if (!encode_record(flow))
			return;
	}
	port->contest++;
	port->tx_plain = port->state == WH_PORT_OPEN && !port->tx_dead;
}

/* The next frame with messages; NULL: there is none, or the peer has too many to read. */
static struct wh_outframe *next_frame(struct wharf_port *port)
{
	if (!wh_window_open(port))
		return NULL;
	if (port->frames)
		return take_frame(port);
	return wh_open_has_records(port) ? port->open : NULL;
}

void wh_port_flush(struct wharf_port *port)
{
	struct wharf_loop *loop = port->source.loop;
	struct wh_outframe *frame;
	bool was_stuck = port->stuck;

	wh_port_touch(port);
	wh_posting_settle(port);
	if (port->shut || port->state == WH_PORT_ENDING || !wh_port_reap(port))
		return;
	if (port->bye_sent)
		wh_port_progress(port);
	if (port->tx_dead || port->shut || port->state == WH_PORT_ENDING)
		return;
	if (port->stuck) {
		/* Refused just now, or waiting for better times: the same again would come back at once. */
		if (!was_stuck || port->backing_off)
			return;
		port->sending = port->stuck;
		port->stuck = NULL;
		wh_list_remove(&port->waiting);
		wh_engine_send(loop->engine, &port->source.link, &port->sending->tx);
		return;
	}
	if (!port->hello_sent) {
		if (!wh_port_say_hello(port))
			wh_port_retry_later(port);
		return;
	}
	if (!port->said_hello)
		return;
	if (port->again_due) {
		frame = wh_port_announce_again(port);
		if (port->state == WH_PORT_ENDING)
			return;
		if (frame) {
			wh_port_hand(port, frame);
			return;
		}
	}
	if (!wh_list_empty(&port->active)) {
		encode_waiting(port);
		wh_posting_settle(port);
		if (port->state == WH_PORT_ENDING || !wh_port_reap(port) || port->stuck || port->tx_dead)
			return;
	}
	frame = next_frame(port);
	if (!frame && wh_controls_due(port)) {
		frame = wh_outframe_for_control(loop);
		if (!frame)
			wh_port_retry_later(port);
	}
	if (frame)
		wh_port_hand(port, frame);
}

/* ---- What is queued, and what was refused ---- */

static void count(const struct wh_outframe *frame, uint64_t *messages, uint64_t *bytes)
{
	if (!frame)
		return;
	*messages += wh_outframe_messages(frame);
	*bytes += frame->n_bytes;
}

void wh_port_queued(const struct wharf_port *port, uint64_t *ret_messages, uint64_t *ret_bytes)
{
	*ret_messages = port->queued_messages +
		atomic_load_explicit(&port->posting.n_messages, memory_order_relaxed);
	*ret_bytes = port->queued_bytes + atomic_load_explicit(&port->posting.n_bytes, memory_order_relaxed);
	*ret_messages += port->frames_messages;
	*ret_bytes += port->frames_bytes;
	count(port->open, ret_messages, ret_bytes);
	count(port->sending, ret_messages, ret_bytes);
	count(port->stuck, ret_messages, ret_bytes);
}

void wh_fds_close(const int *fds, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

void wh_port_drop_output(struct wharf_port *port)
{
	struct wharf_loop *loop = port->source.loop;
	struct wh_flow *flow;

	wh_outflow_drop(&port->plain);
	for (unsigned kind = 0; kind < WH_FLOW_KINDS; kind++)
		for (uint32_t at = 0; (flow = wh_flow_next(&port->flows[kind], &at));)
			wh_outflow_drop(flow);
	/* Runs of encoded messages stay lent: the lease settles them when it is detached. */
	while (port->frames)
		wh_outframe_free(loop, take_frame(port));
	wh_outframe_free(loop, port->open);
	port->open = NULL;
	wh_outframe_free(loop, port->stuck);
	port->stuck = NULL;
	if (wh_list_linked(&port->waiting))
		wh_list_remove(&port->waiting);
	if (wh_list_linked(&port->dirty))
		wh_list_remove(&port->dirty);
}

/* ---- Callbacks that no event brings ---- */

void wh_port_chore(struct wharf_port *port)
{
	wh_port_touch(port);
	if (wh_list_linked(&port->chores))
		return;
	wh_list_append(&port->source.loop->chores, &port->chores);
	wh_loop_rouse(port->source.loop);
}

/* What events have brought, once a turn: to look at all that waits costs as much as there is. */
static void look_for_room(struct wharf_port *port)
{
	bool released = port->harvest_due;

	port->harvest_due = false;
	if (released && wh_lease_harvest(port->lease) < 0)
		wh_port_violation(port, "it released memory that it did not hold");
	else if (released || wh_port_waits_for_room(port))
		wh_port_room(port);
}

void wh_port_do_chores(struct wharf_port *port)
{
	wharf_port_ref(port);
	wh_port_enter(port);
	if (!port->shut && port->state < WH_PORT_ENDING) {
		wh_port_deliver_resumed(port, false);
		if (port->state < WH_PORT_ENDING)
			look_for_room(port);
	}
	wh_calls_run_ends(port);
	wh_port_run_done(port);
	if (!port->shut && port->state < WH_PORT_ENDING)
		wh_port_look_for_end(port);
	wharf_port_unref(port);
}
