/* SPDX-License-Identifier: MIT */
/* Values that wait, and values that the peer has: see latest.h. */
#include "latest.h"

#include <errno.h>
#include <string.h>

#include "outbox.h"

enum {
	HELD_FIRST = 4,
	LINEAR_MAX = 32,       /* a walk over so many costs less than the message; guessed, never tuned */
	TABLE_BITS_FIRST = 7,
};

int wh_latest_new(struct wharf_port *port, uint32_t unreleased_max)
{
	struct wh_latest *latest = wh_loop_alloc(port->source.loop, sizeof(*latest));

	if (!latest)
		return -ENOMEM;
	*latest = (struct wh_latest){ .unreleased_max = unreleased_max };
	port->latest = latest;
	port->plain.out.credit_bytes = unreleased_max;
	return 0;
}

void wh_latest_free(struct wharf_port *port)
{
	struct wharf_loop *loop = port->source.loop;

	if (!port->latest)
		return;
	wh_loop_dealloc(loop, port->latest->held);
	wh_loop_dealloc(loop, port->latest->table);
	wh_loop_dealloc(loop, port->latest);
	port->latest = NULL;
}

/* ---- Those that wait ---- */

static struct wh_outmsg **bucket(const struct wh_latest *latest, uint32_t type, uint64_t key)
{
	uint64_t hash = (key ^ type * UINT64_C(0x9e3779b97f4a7c15)) * UINT64_C(0xd6e8feb86659fd93);

	return &latest->table[hash >> (64 - latest->table_bits)];
}

static void enter(const struct wh_latest *latest, struct wh_outmsg *m)
{
	struct wh_outmsg **first = bucket(latest, m->type, m->key);

	m->chain = *first;
	*first = m;
}

static void leave(const struct wh_latest *latest, const struct wh_outmsg *m)
{
	struct wh_outmsg **at = bucket(latest, m->type, m->key);

	while (*at != m)
		at = &(*at)->chain;
	*at = m->chain;
}

/* Without memory for a larger one it stays as it is: only slower. */
static void grow_table(struct wharf_port *port)
{
	struct wh_latest *latest = port->latest;
	uint32_t bits = latest->table ? latest->table_bits + 1 : TABLE_BITS_FIRST;
	size_t bytes = sizeof(struct wh_outmsg *) << bits;
	struct wh_outmsg **table = wh_loop_alloc(port->source.loop, bytes);

	if (!table)
		return;
	memset(table, 0, bytes);
	wh_loop_dealloc(port->source.loop, latest->table);
	latest->table = table;
	latest->table_bits = bits;
	for (struct wh_outmsg *m = port->plain.out.first; m; m = m->next)
		if (m->is_value)
			enter(latest, m);
}

struct wh_outmsg *wh_latest_find(const struct wharf_port *port, uint32_t type, uint64_t key)
{
	const struct wh_latest *latest = port->latest;
	struct wh_outmsg *m = latest->table ? *bucket(latest, type, key) : port->plain.out.first;

	/* One of which a record has left already is completed; the newer one waits behind it. */
	while (m && !(m->is_value && m->first && m->type == type && m->key == key))
		m = latest->table ? m->chain : m->next;
	return m;
}

void wh_latest_put(struct wharf_port *port, struct wh_outmsg *m)
{
	struct wh_outmsg *older = wh_latest_find(port, m->type, m->key);

	if (older)
		wh_outflow_replace(&port->plain, older, m);
	else
		wh_outflow_append(&port->plain, m);
}

void wh_latest_queued(struct wharf_port *port, struct wh_outmsg *m)
{
	struct wh_latest *latest = port->latest;

	latest->n_waiting++;
	if (latest->table)
		enter(latest, m);
	if (latest->n_waiting > (latest->table ? 1u << latest->table_bits : LINEAR_MAX))
		grow_table(port);
	wh_latest_look(port);
}

void wh_latest_replaced(struct wharf_port *port, struct wh_outmsg *older, struct wh_outmsg *m)
{
	wh_port_count(port, tx_replaced, 1);
	if (port->latest->table) {
		leave(port->latest, older);
		enter(port->latest, m);
	}
}

void wh_latest_taken(struct wharf_port *port, struct wh_outmsg *m)
{
	struct wh_latest *latest = port->latest;

	if (latest->table)
		leave(latest, m);
	if (--latest->n_waiting == 0) {
		wh_loop_dealloc(port->source.loop, latest->table);
		latest->table = NULL;
	}
}

/* ---- Those that the peer has ---- */

bool wh_latest_reserve(struct wharf_port *port, uint32_t n_pieces)
{
	struct wh_latest *latest = port->latest;
	uint32_t size = latest->held_size ? latest->held_size : HELD_FIRST;
	struct wh_latest_hold *held;

	if (wh_likely(latest->held_size - latest->n_held > n_pieces))
		return true;
	while (size - latest->n_held <= n_pieces)
		size *= 2;
	held = wh_loop_alloc(port->source.loop, size * sizeof(*held));
	if (!held)
		return false;
	if (latest->n_held)
		memcpy(held, latest->held, latest->n_held * sizeof(*held));
	wh_loop_dealloc(port->source.loop, latest->held);
	latest->held = held;
	latest->held_size = size;
	return true;
}

void wh_latest_encoded(struct wharf_port *port, const struct wh_message_out *record)
{
	struct wh_latest *latest = port->latest;
	uint32_t before = latest->n_held;
	struct wh_latest_hold hold = { .value = latest->value, .ordinal = port->open->ordinal };

	for (unsigned i = 0; i < record->n_pieces; i++)
		if (record->pieces[i].run) {
			hold.run = *record->pieces[i].run;
			latest->held[latest->n_held++] = hold;
		}
	if (record->flags & WH_RECORD_LAST) {
		if (latest->n_held == before) {
			hold.run.n_chunks = 0;
			latest->held[latest->n_held++] = hold;
		}
		latest->value++;
		port->plain.out.credit_bytes--;
		/* What comes next may wait for this one. */
		port->open->encoder.flags |= WH_FRAME_TELL;
	}
	wh_assert(latest->n_held <= latest->held_size);
}

void wh_latest_lent(struct wharf_port *port, const struct wh_run *run)
{
	struct wh_latest *latest = port->latest;

	for (uint32_t i = 0; i < latest->n_held; i++) {
		struct wh_run *had = &latest->held[i].run;
		if (had->slot == run->slot && had->first < run->first + run->n_chunks &&
			run->first < had->first + had->n_chunks)
			had->n_chunks = 0;
	}
}

/* Forgets what the peer is done with. True: of what it has read it holds something. */
static bool settle(struct wharf_port *port)
{
	struct wh_latest *latest = port->latest;
	uint64_t last = latest->value; /* one that is not encoded to its end does not count yet */
	uint32_t n = 0, n_values = 0;
	bool holds = false;

	for (uint32_t i = 0; i < latest->n_held; i++) {
		struct wh_latest_hold *hold = &latest->held[i];
		bool read = port->frames_read_by_peer >= hold->ordinal;
		if (read && !(hold->run.n_chunks && wh_lease_holds(port->lease, &hold->run)))
			continue;
		holds |= read;
		n_values += hold->value != last && hold->value != latest->value;
		last = hold->value;
		latest->held[n++] = *hold;
	}
	latest->n_held = n;
	/* Nothing newer comes while the port drains: there is nothing to wait for. */
	port->plain.out.credit_bytes =
		port->state >= WH_PORT_DRAINING ? INT64_MAX : (int64_t)latest->unreleased_max - n_values;
	return holds;
}

void wh_latest_look(struct wharf_port *port)
{
	struct wh_latest *latest = port->latest;
	int64_t before = port->plain.out.credit_bytes;
	bool watched, holds;

	do {
		holds = settle(port);
		watched = port->watched;
		latest->watches = holds && port->plain.out.first && port->plain.out.credit_bytes <= 0;
		wh_port_watch_lease(port);
	} while (port->watched && !watched); /* what came back before the mark brings no wake */
	if (port->plain.out.credit_bytes > before)
		wh_outflow_look(&port->plain);
}
