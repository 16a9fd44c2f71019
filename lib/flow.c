/* SPDX-License-Identifier: MIT */
/* Flows of a port: made, found by their ids, ended; and their credit. */
#include <errno.h>
#include <string.h>

#include "outbox.h"

enum {
	TABLE_SLOTS_MIN = 8,
	EARLY_FLOWS = 64, /* of each kind, before the peer has said how many it takes */
	EARLY_CREDIT_BYTES = 65536,
	SPARE_CALLS_MAX = 256, /* 96 KiB: about as many as a frame of small replies ends */
};

static uint32_t index_bits(enum wh_flow_kind kind)
{
	return kind == WH_FLOW_STREAM_OUT || kind == WH_FLOW_STREAM_IN ? WH_STREAM_INDEX_BITS : WH_CALL_INDEX_BITS;
}

static uint32_t index_of(enum wh_flow_kind kind, uint64_t id) { return (uint32_t)id & ((1u << index_bits(kind)) - 1); }

/* ---- Life ---- */

void wh_flow_init(struct wh_flow *flow, struct wharf_port *port, enum wh_flow_kind kind, uint64_t id)
{
	flow->port = port;
	atomic_init(&flow->refs, 1);
	flow->kind = (uint8_t)kind;
	flow->id = id;
	flow->out.end = &flow->out.first;
	flow->out.credit_bytes = kind == WH_FLOW_PLAIN ? INT64_MAX : (int64_t)port->tx_credit_bytes;
	wh_list_init(&flow->farewells);
	wh_list_init(&flow->out.active);
	wh_list_init(&flow->out.blocked);
	wh_list_init(&flow->in.aside);
	wh_list_init(&flow->in.resumed);
	wh_list_init(&flow->in.credit_due);
}

void wh_flow_unref(struct wh_flow *flow)
{
	if (atomic_fetch_sub_explicit(&flow->refs, 1, memory_order_acq_rel) == 1)
		wh_loop_dealloc(flow->port->source.loop, flow);
}

void wh_call_retire(struct wh_flow *flow)
{
	struct wharf_loop *loop = flow->port->source.loop;

	if (atomic_fetch_sub_explicit(&flow->refs, 1, memory_order_acq_rel) != 1)
		return;
	if (loop->n_spare_calls == SPARE_CALLS_MAX) {
		wh_loop_dealloc(loop, flow);
		return;
	}
	wh_list_prepend(&loop->spare_calls, &flow->farewells);
	loop->n_spare_calls++;
}

void wh_calls_free_spare(struct wharf_loop *loop)
{
	struct wh_list *node;

	while ((node = wh_list_take_first(&loop->spare_calls)))
		wh_loop_dealloc(loop, wh_container_of(node, struct wh_flow, farewells));
	loop->n_spare_calls = 0;
}

static struct wh_flow *allocate(struct wharf_loop *loop, enum wh_flow_kind kind, size_t bytes)
{
	bool call = kind == WH_FLOW_CALL || kind == WH_FLOW_ANSWER;
	struct wh_list *node = call ? wh_list_take_first(&loop->spare_calls) : NULL;
	struct wh_flow *flow;

	if (!node)
		return wh_loop_alloc(loop, bytes);
	loop->n_spare_calls--;
	flow = wh_container_of(node, struct wh_flow, farewells);
	wh_assert(flow->bytes == bytes);
	return flow;
}

/* False: no memory. */
static bool table_grow(struct wharf_port *port, struct wh_flow_table *table, uint32_t n_slots)
{
	struct wh_flow **flows;
	uint32_t n = table->n_slots ? table->n_slots : TABLE_SLOTS_MIN;

	while (n < n_slots)
		n *= 2;
	if (n == table->n_slots)
		return true;
	flows = wh_loop_alloc(port->source.loop, n * sizeof(struct wh_flow *));
	if (!flows)
		return false;
	memset(flows, 0, n * sizeof(struct wh_flow *));
	if (table->n_slots)
		memcpy(flows, table->flows, table->n_slots * sizeof(struct wh_flow *));
	wh_loop_dealloc(port->source.loop, table->flows);
	table->flows = flows;
	table->n_slots = n;
	return true;
}

/* A generation and a free index; the search goes round, so that an index rests before it is used again. */
static uint64_t new_id(struct wh_flow_table *table, enum wh_flow_kind kind, uint32_t n_indices)
{
	uint32_t bits = index_bits(kind);
	uint64_t generations = kind == WH_FLOW_CALL ? UINT64_C(1) << (63 - bits) : UINT64_C(1) << (32 - bits);

	table->next %= n_indices;
	while (table->flows[table->next])
		table->next = (table->next + 1) % n_indices;
	if (++table->sequence == generations)
		table->sequence = 1;
	uint32_t index = table->next;
	table->next = (index + 1) % n_indices;
	return table->sequence << bits | index;
}

int wh_flow_new(struct wharf_port *port, enum wh_flow_kind kind, size_t bytes, uint64_t id, struct wh_flow **ret_flow)
{
	struct wh_flow_table *table = &port->flows[kind];
	bool ours = !id;
	uint32_t max = port->flows_max[kind];
	struct wh_flow *flow;

	if (!ours && index_of(kind, id) < table->n_slots && table->flows[index_of(kind, id)])
		return -EEXIST;
	if (table->n >= max || (!ours && index_of(kind, id) >= max)) {
		if (ours) {
			port->blocked_starts |= 1u << kind;
			wh_ledger_block(port);
		}
		return -EAGAIN;
	}
	/* An index that the peer chooses is below its maximum; ours stay there, too. */
	if (!table_grow(port, table, ours ? (uint32_t)wh_min((table->n + 1) * 2, max) : index_of(kind, id) + 1))
		return -ENOMEM;
	flow = allocate(port->source.loop, kind, bytes);
	if (!flow)
		return -ENOMEM;
	memset(flow, 0, bytes);
	if (ours) {
		/* The lowest, as long as nobody knows how many the peer takes. */
		if (!port->said_hello)
			table->next = 0;
		id = new_id(table, kind, (uint32_t)wh_min(table->n_slots, max));
	}
	wh_flow_init(flow, port, kind, id);
	flow->bytes = bytes;
	flow->listed = flow->placed = true;
	table->flows[index_of(kind, id)] = flow;
	table->n++;
	wh_trace(port->source.loop, port, wh_flow_is_call(flow) ? WH_TRACE_CALL : WH_TRACE_STREAM, id,
		wh_flow_is_theirs(flow));
	*ret_flow = flow;
	return 0;
}

static struct wh_flow *find_placed(const struct wharf_port *port, enum wh_flow_kind kind, uint64_t id)
{
	const struct wh_flow_table *table = &port->flows[kind];
	uint32_t index = index_of(kind, id);
	struct wh_flow *flow = index < table->n_slots ? table->flows[index] : NULL;

	return flow && flow->id == id ? flow : NULL;
}

struct wh_flow *wh_flow_find(const struct wharf_port *port, enum wh_flow_kind kind, uint64_t id)
{
	struct wh_flow *flow = find_placed(port, kind, id);

	return flow && flow->listed ? flow : NULL;
}

struct wh_flow *wh_flow_resting(const struct wharf_port *port, enum wh_flow_kind kind, uint64_t id)
{
	struct wh_flow *flow = find_placed(port, kind, id);

	return flow && !flow->listed ? flow : NULL;
}

void wh_flow_rest(struct wh_flow *flow)
{
	flow->listed = false;
	if (!wh_flow_is_call(flow))
		wh_trace(flow->port->source.loop, flow->port, WH_TRACE_STREAM_END, flow->id,
			flow->farewell_code == WH_ABORT_DONE ? 0 : flow->farewell_code);
	wh_outflow_drop(flow);
	wh_flow_drop_input(flow);
	if (wh_list_linked(&flow->in.credit_due))
		wh_list_remove(&flow->in.credit_due);
}

void wh_flow_vacate(struct wh_flow *flow)
{
	struct wharf_port *port = flow->port;
	struct wh_flow_table *table = &port->flows[flow->kind];

	if (!flow->placed)
		return;
	flow->placed = false;
	table->flows[index_of(flow->kind, flow->id)] = NULL;
	table->n--;
	if (port->blocked_starts)
		wh_port_chore(port);
	wh_flow_unref(flow);
}

void wh_flow_unlist(struct wh_flow *flow)
{
	if (!flow->listed)
		return;
	wh_flow_rest(flow);
	wh_flow_vacate(flow);
}

void wh_flow_leave(struct wh_flow *flow, uint32_t code, uint32_t app_code)
{
	bool theirs = wh_flow_is_theirs(flow);
	struct wharf_port *port = flow->port;
	bool too_many = false;

	wh_assert(flow->listed && !flow->farewell);
	flow->farewell_code = code;
	/* What the peer has never heard of needs no farewell. */
	if (theirs || flow->out.ordinal || flow->known) {
		flow->farewell = true;
		flow->farewell_app_code = app_code;
		wh_list_append(&port->farewells, &wh_flow_ref(flow)->farewells);
		wh_port_dirty(port);
		/* More than can be under way, and than a whole window can begin: only who does not read gets there. */
		too_many = theirs && ++port->n_farewells > port->flows_max[WH_FLOW_STREAM_IN] +
			port->flows_max[WH_FLOW_ANSWER] + WH_WINDOW_MAX * (port->limits.frame_bytes_max / 16);
	}
	if (theirs || !flow->farewell)
		wh_flow_unlist(flow);
	else
		wh_flow_rest(flow);
	if (too_many)
		wh_port_violation(port, "it begins ever more, and does not read how that ended");
}

bool wh_flow_expect(struct wharf_port *port, enum wh_flow_kind kind, uint64_t id)
{
	struct wharf_loop *loop = port->source.loop;
	struct wh_flow_table *table = &port->flows[kind];
	uint32_t index = index_of(kind, id), n = table->n_dead ? table->n_dead : TABLE_SLOTS_MIN;
	uint64_t *dead;

	/* One above the maximum is a violation when its turn comes. */
	if (index < table->n_dead || index >= port->flows_max[kind])
		return true;
	while (n <= index)
		n *= 2;
	dead = wh_loop_alloc(loop, n * sizeof(*dead));
	if (!dead)
		return false;
	memset(dead, 0, n * sizeof(*dead));
	if (table->n_dead)
		memcpy(dead, table->dead, table->n_dead * sizeof(*dead));
	wh_loop_dealloc(loop, table->dead);
	table->dead = dead;
	table->n_dead = n;
	return true;
}

void wh_flow_drop_held(struct wharf_port *port, enum wh_flow_kind kind, uint64_t id)
{
	struct wh_flow_table *table = &port->flows[kind];

	/* Where there was no room to be made, nothing is held. */
	if (index_of(kind, id) < table->n_dead)
		table->dead[index_of(kind, id)] = port->n_delivered + port->n_held;
}

bool wh_flow_is_dead(const struct wharf_port *port, enum wh_flow_kind kind, uint64_t id)
{
	const struct wh_flow_table *table = &port->flows[kind];
	uint32_t index = index_of(kind, id);

	return index < table->n_dead && port->n_delivered < table->dead[index];
}

void wh_flows_fini(struct wharf_port *port)
{
	struct wh_list *node;

	while ((node = wh_list_take_first(&port->farewells)))
		wh_flow_unref(wh_container_of(node, struct wh_flow, farewells));
	wh_flow_drop_input(&port->plain);
	for (unsigned kind = 0; kind < WH_FLOW_KINDS; kind++) {
		struct wh_flow_table *table = &port->flows[kind];
		struct wh_flow *flow;
		for (uint32_t at = 0; (flow = wh_flow_next(table, &at));) {
			if (flow->listed)
				wh_flow_rest(flow);
			wh_flow_vacate(flow);
		}
		wh_loop_dealloc(port->source.loop, table->flows);
		wh_loop_dealloc(port->source.loop, table->dead);
		*table = (struct wh_flow_table){ .sequence = table->sequence };
	}
}

/* ---- Limits ---- */

void wh_port_flows_init(struct wharf_port *port, const struct wharf_port_options *o)
{
	/* Until the peer's hello says what it takes. */
	port->tx_credit_bytes = EARLY_CREDIT_BYTES;
	port->flows_max[WH_FLOW_STREAM_OUT] = port->flows_max[WH_FLOW_CALL] = EARLY_FLOWS;
	port->flows_max[WH_FLOW_STREAM_IN] = o->rx_streams_max;
	port->flows_max[WH_FLOW_ANSWER] = o->rx_calls_max;
	port->rx_credit_bytes = o->rx_stream_bytes_max;
	port->assembly_bytes_max = o->rx_assembly_bytes_max;
	port->tx_inline = o->flags & WHARF_PORT_INLINE;
	port->pieces = o->flags & WHARF_PORT_PIECES;
	wh_flow_init(&port->plain, port, WH_FLOW_PLAIN, 0);
	wh_list_init(&port->active);
	wh_list_init(&port->blocked_flows);
	wh_list_init(&port->credits_due);
	wh_list_init(&port->farewells);
	wh_list_init(&port->resumed);
	wh_list_init(&port->ended_calls);
	wh_list_init(&port->delegated);
	wh_list_init(&port->chores);
	port->done_end = &port->done;
}

bool wh_port_flows_fit(const struct wharf_port *port, const struct wh_hello *theirs)
{
	for (uint32_t i = 0; i < port->flows[WH_FLOW_STREAM_OUT].n_slots; i++)
		if (port->flows[WH_FLOW_STREAM_OUT].flows[i] && i >= theirs->streams_max)
			return false;
	for (uint32_t i = 0; i < port->flows[WH_FLOW_CALL].n_slots; i++)
		if (port->flows[WH_FLOW_CALL].flows[i] && i >= theirs->calls_max)
			return false;
	return true;
}

/* Nothing was encoded before: what the flows had on trust becomes what they have. */
static void take_credit(struct wh_flow_table *table, int64_t more_bytes)
{
	struct wh_flow *flow;

	for (uint32_t at = 0; (flow = wh_flow_next(table, &at));) {
		flow->out.credit_bytes += more_bytes;
		wh_outflow_look(flow);
	}
}

void wh_port_flows_on_hello(struct wharf_port *port, const struct wh_hello *theirs)
{
	uint64_t credit_bytes = wh_min(theirs->stream_credit_bytes, INT64_MAX / 2);
	int64_t more_bytes = (int64_t)credit_bytes - (int64_t)port->tx_credit_bytes;

	port->tx_credit_bytes = credit_bytes;
	port->flows_max[WH_FLOW_STREAM_OUT] = (uint32_t)wh_min(theirs->streams_max, WH_STREAMS_MAX);
	port->flows_max[WH_FLOW_CALL] = (uint32_t)wh_min(theirs->calls_max, WH_CALLS_MAX);
	take_credit(&port->flows[WH_FLOW_STREAM_OUT], more_bytes);
	take_credit(&port->flows[WH_FLOW_CALL], more_bytes);
	take_credit(&port->flows[WH_FLOW_ANSWER], more_bytes); /* one that was adopted */
}

void wh_flows_give_up(struct wharf_port *port)
{
	static const enum wh_flow_kind kinds[] = { WH_FLOW_STREAM_OUT, WH_FLOW_CALL };
	struct wh_flow *flow;

	for (unsigned k = 0; k < wh_array_len(kinds); k++)
		for (uint32_t at = 0; (flow = wh_flow_next(&port->flows[kinds[k]], &at));) {
			if (!flow->listed || flow->out.ended)
				continue;
			if (flow->kind == WH_FLOW_CALL)
				wh_call_give_up(flow);
			else
				wh_flow_leave(flow, WH_ABORT_SENDER, 0);
		}
}

/* ---- Credit ---- */

static uint64_t report_at(const struct wharf_port *port) { return wh_max(port->rx_credit_bytes / 4, 1); }

void wh_flow_charge_in(struct wh_flow *flow, uint64_t charge_bytes)
{
	flow->in.unreturned_bytes += charge_bytes;
	if (flow->in.unreturned_bytes + flow->in.give_back_bytes < flow->port->rx_credit_bytes)
		return;
	/* Before the look: a release in another thread sees this, or is seen. */
	atomic_store_explicit(&flow->in.starved, true, memory_order_seq_cst);
	wh_flow_give_back(flow, atomic_exchange_explicit(&flow->in.returned_bytes, 0, memory_order_seq_cst));
}

void wh_flow_give_back(struct wh_flow *flow, uint64_t charge_bytes)
{
	struct wharf_port *port = flow->port;

	if (flow->kind == WH_FLOW_PLAIN || !flow->listed)
		return;
	wh_assert(flow->in.unreturned_bytes >= charge_bytes);
	flow->in.unreturned_bytes -= charge_bytes;
	flow->in.give_back_bytes += charge_bytes;
	if (!flow->in.give_back_bytes || flow->in.ended || wh_list_linked(&flow->in.credit_due))
		return;
	if (flow->in.give_back_bytes < report_at(port) &&
		!atomic_load_explicit(&flow->in.starved, memory_order_relaxed))
		return;
	wh_list_append(&port->credits_due, &flow->in.credit_due);
	wh_port_dirty(port);
}

void wh_flow_returned(struct wh_flow *flow, uint64_t charge_bytes)
{
	struct wharf_port *port = flow->port;
	uint64_t before = atomic_fetch_add_explicit(&flow->in.returned_bytes, charge_bytes, memory_order_seq_cst);

	/* The loop is told once enough has come together, or the peer waits for it. */
	if ((before < report_at(port) && before + charge_bytes >= report_at(port)) ||
		atomic_load_explicit(&flow->in.starved, memory_order_seq_cst))
		wh_port_kick(port, WH_KICK_CREDIT);
}

void wh_port_collect_returned(struct wharf_port *port)
{
	static const enum wh_flow_kind kinds[] = { WH_FLOW_STREAM_IN, WH_FLOW_CALL, WH_FLOW_ANSWER };
	struct wh_flow *flow;

	for (unsigned k = 0; k < wh_array_len(kinds); k++)
		for (uint32_t at = 0; (flow = wh_flow_next(&port->flows[kinds[k]], &at));)
			if (atomic_load_explicit(&flow->in.returned_bytes, memory_order_relaxed))
				wh_flow_give_back(flow, atomic_exchange_explicit(&flow->in.returned_bytes, 0,
								memory_order_relaxed));
}

void wh_flow_on_credit(struct wharf_port *port, const struct wh_credit *credit)
{
	static const uint8_t kind_of[WH_RECORD_KINDS] = {
		[WH_RECORD_MESSAGE] = WH_FLOW_STREAM_OUT,
		[WH_RECORD_CALL] = WH_FLOW_CALL,
		[WH_RECORD_REPLY] = WH_FLOW_ANSWER,
	};
	struct wh_flow *flow = wh_flow_find(port, kind_of[credit->kind], credit->id);

	/* It may have ended here meanwhile. */
	if (!flow)
		return;
	if (credit->bytes > INT64_MAX / 2 ||
		flow->out.credit_bytes + (int64_t)credit->bytes > (int64_t)port->tx_credit_bytes) {
		wh_port_violation(port, "more credit than it had to give");
		return;
	}
	flow->out.credit_bytes += (int64_t)credit->bytes;
	wh_outflow_look(flow);
}
