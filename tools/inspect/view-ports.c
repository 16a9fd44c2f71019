/* SPDX-License-Identifier: MIT */
/* Ports: what waits on which side, since when, and how fast the rest goes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "names.h"
#include "rates.h"
#include "table.h"
#include "unit.h"
#include "views.h"
#include "wharf.h"

/* Shorter than this, nobody waits for anything. */
#define NOTABLE_NS UINT64_C(1000000000)

enum { STATE_OPEN = 1, STATE_ENDING = 3 };

enum style view_port_note(const struct subject *subject, const struct snap_port *port, char note[VIEW_NOTE_BYTES])
{
	const struct wh_stats_port *p = &port->s;
	uint64_t unread = subject_unread_for(subject, port);
	uint64_t blocked = subject_since(subject, p->blocked_since_ns);

	*note = '\0';
	if (p->close_code)
		snprintf(note, VIEW_NOTE_BYTES, "%s: %s", wharf_close_name(p->close_code), p->text);
	if (p->close_code)
		return p->close_code == WHARF_CLOSE_LOCAL || p->close_code == WHARF_CLOSE_PEER ? STYLE_DIM : STYLE_BAD;
	if (p->flags & WH_STATS_STUCK && unread > NOTABLE_NS)
		snprintf(note, VIEW_NOTE_BYTES, "socket full, peer has not read for %s", unit_time(unread, UNIT));
	else if (unread > NOTABLE_NS)
		snprintf(note, VIEW_NOTE_BYTES, "peer has not read for %s", unit_time(unread, UNIT));
	else if (p->flags & WH_STATS_BLOCKED && blocked > NOTABLE_NS)
		snprintf(note, VIEW_NOTE_BYTES, "no room for %s", unit_time(blocked, UNIT));
	if (*note)
		return STYLE_BAD;
	if (p->flags & WH_STATS_STARVED)
		snprintf(note, VIEW_NOTE_BYTES, "waits for a segment's descriptors");
	else if (p->flags & WH_STATS_STUCK)
		snprintf(note, VIEW_NOTE_BYTES, "socket full");
	else if (p->flags & WH_STATS_BLOCKED)
		snprintf(note, VIEW_NOTE_BYTES, "no room");
	else if (p->flags & WH_STATS_CONNECTING)
		snprintf(note, VIEW_NOTE_BYTES, "waits for its listener");
	else if (p->flags & WH_STATS_PAUSED)
		snprintf(note, VIEW_NOTE_BYTES, "paused");
	else if (*p->text)
		snprintf(note, VIEW_NOTE_BYTES, "%s", p->text);
	if (*note)
		return STYLE_WARN;
	if (p->state != STATE_OPEN)
		snprintf(note, VIEW_NOTE_BYTES, "%s", names_port_state(p->state));
	return STYLE_PLAIN;
}

/* ---- The table ---- */

struct ranked {
	const struct snap_port *port;
	int rank;
	uint64_t waits; /* bytes */
};

static int worst_first(const void *a, const void *b)
{
	const struct ranked *x = a, *y = b;

	if (x->rank != y->rank)
		return y->rank - x->rank;
	if (x->waits != y->waits)
		return x->waits > y->waits ? -1 : 1;
	return (x->port->s.id > y->port->s.id) - (x->port->s.id < y->port->s.id);
}

static int by_id(const void *a, const void *b)
{
	const struct ranked *x = a, *y = b;

	return (x->port->s.id > y->port->s.id) - (x->port->s.id < y->port->s.id);
}

static struct ranked *rank(const struct subject *subject, bool worst)
{
	const struct snapshot *s = &subject->now;
	struct ranked *ranked = memory_new(s->n_ports, sizeof *ranked);

	for (size_t i = 0; i < s->n_ports; i++) {
		char note[VIEW_NOTE_BYTES];
		enum style style = view_port_note(subject, &s->ports[i], note);
		const struct wh_stats_counts *c = &s->ports[i].s.counts;

		ranked[i] = (struct ranked){ &s->ports[i], style == STYLE_BAD ? 2 : style == STYLE_WARN,
			c->tx_queued_bytes + c->tx_lent_bytes };
	}
	if (s->n_ports)
		qsort(ranked, s->n_ports, sizeof *ranked, worst ? worst_first : by_id);
	return ranked;
}

static void put_row(const struct subject *subject, const struct snap_port *port, struct table *table)
{
	const struct wh_stats_port *p = &port->s;
	struct rates_traffic rates;
	char peer[VIEW_PEER_BYTES], note[VIEW_NOTE_BYTES];
	enum style style = view_port_note(subject, port, note);
	uint64_t blocked = subject_since(subject, p->blocked_since_ns);

	rates_of_port(subject, port, &rates);
	table_cell(table, STYLE_BOLD, "%llu%s", (unsigned long long)p->id, port->torn ? "*" : "");
	table_cell(table, STYLE_PLAIN, "%s", view_peer(subject, p->peer_pid, p->peer_name, peer));
	table_cell(table, STYLE_PLAIN, "%s", names_port_state(p->state));
	table_cell(table, STYLE_PLAIN, "%s", unit_size(p->counts.tx_queued_bytes, UNIT));
	table_cell(table, STYLE_PLAIN, "%s", unit_size(p->counts.tx_lent_bytes, UNIT));
	table_cell(table, STYLE_PLAIN, "%llu", (unsigned long long)p->counts.tx_unread_frames);
	table_cell(table, STYLE_PLAIN, "%s", unit_time_or_dash(p->lag_ns, UNIT));
	table_cell(table, STYLE_PLAIN, "%s", unit_count(rates.tx_messages, UNIT));
	table_cell(table, STYLE_PLAIN, "%s", unit_rate(rates.tx_bytes, UNIT));
	table_cell(table, STYLE_PLAIN, "%s", unit_count(rates.rx_messages, UNIT));
	table_cell(table, STYLE_PLAIN, "%s", unit_rate(rates.rx_bytes, UNIT));
	table_cell(table, STYLE_PLAIN, "%s", unit_time_or_dash(p->blocked_ns + blocked, UNIT));
	table_cell(table, STYLE_PLAIN, "%llu", (unsigned long long)p->counts.tx_dropped);
	table_cell(table, style, "%s", note);
}

void view_ports_table(const struct subject *subject, struct page *page, int at_most)
{
	static const struct table_column columns[] = {
		{ "PORT", false, 0 },
		{ "PEER", true, 1 },
		{ "STATE", true, 9 },
		{ "QUEUED", false, 2 },
		{ "LENT", false, 2 },
		{ "UNREAD", false, 6 },
		{ "LAG", false, 5 },
		{ "OUT/s", false, 4 },
		{ "OUT B/s", false, 7 },
		{ "IN/s", false, 4 },
		{ "IN B/s", false, 7 },
		{ "BLOCKED", false, 8 },
		{ "DROPS", false, 10 },
		{ "NOTE", true, 0 },
	};
	size_t n = subject->now.n_ports, shown = at_most >= 0 && (size_t)at_most < n ? (size_t)at_most : n;
	struct ranked *ranked;
	struct table table;

	if (!n)
		return;
	ranked = rank(subject, shown < n);
	table_init(&table, columns, wh_array_len(columns));
	for (size_t i = 0; i < shown; i++)
		put_row(subject, ranked[i].port, &table);
	free(ranked);
	table_put(&table, page, 0);
	page->indent = 0;
	if (shown < n) {
		page_item(page, STYLE_DIM, "and %zu more ports: the worst are shown", n - shown);
		page_end_line(page);
	}
}

/* ---- One port ---- */

static void put_flags(const struct wh_stats_port *p, struct page *page)
{
	for (unsigned bit = 0; bit < 32; bit++)
		if (p->flags >> bit & 1 && names_port_flag(bit))
			page_item(page, STYLE_WARN, "%s", names_port_flag(bit));
}

static void put_peer(const struct subject *subject, const struct wh_stats_port *p, struct page *page)
{
	char peer[VIEW_PEER_BYTES], user[PROCESS_NAME_BYTES];

	page_item(page, STYLE_DIM, "peer");
	page_item(page, STYLE_PLAIN, "%s", view_peer(subject, p->peer_pid, p->peer_name, peer));
	if (p->peer_uid != UINT32_MAX) {
		process_user(p->peer_uid, user);
		page_item(page, STYLE_PLAIN, "user %s (%u)", user, p->peer_uid);
		page_item(page, STYLE_PLAIN, "group %u", p->peer_gid);
	} else {
		page_item(page, STYLE_PLAIN, "its user is not known yet");
	}
	page_item(page, STYLE_PLAIN, "open for %s", unit_time_or_dash(subject_since(subject, p->opened_ns), UNIT));
	page_end_line(page);
}

static void put_out(
	const struct subject *subject, const struct snap_port *port, const struct rates_traffic *r, struct page *page)
{
	const struct wh_stats_port *p = &port->s;
	const struct wh_stats_counts *c = &p->counts;
	uint64_t unread = subject_unread_for(subject, port);

	page_item(page, STYLE_DIM, "out");
	page_item(page, STYLE_PLAIN, "%s/s, %sB/s", unit_count(r->tx_messages, UNIT), unit_rate(r->tx_bytes, UNIT));
	page_item(page, STYLE_PLAIN, "in all %s messages, %sB, %s frames", unit_count((double)c->tx_messages, UNIT),
		unit_size(c->tx_bytes, UNIT), unit_count((double)c->tx_frames, UNIT));
	page_item(page, STYLE_PLAIN, "queued %s in %llu messages", unit_size(c->tx_queued_bytes, UNIT),
		(unsigned long long)p->tx_queued_messages);
	page_item(page, STYLE_PLAIN, "lent %s", unit_size(c->tx_lent_bytes, UNIT));
	page_item(page, STYLE_PLAIN, "not reported as read %llu of %u frames", (unsigned long long)c->tx_unread_frames,
		p->window);
	if (unread)
		page_item(page, unread > NOTABLE_NS ? STYLE_BAD : STYLE_PLAIN, "peer has not read for %s",
			unit_time(unread, UNIT));
	page_item(page, STYLE_PLAIN, "last frame %s ago", unit_time_or_dash(subject_since(subject, p->last_tx_ns), UNIT));
	page_end_line(page);
}

static void put_in(
	const struct subject *subject, const struct wh_stats_port *p, const struct rates_traffic *r, struct page *page)
{
	const struct wh_stats_counts *c = &p->counts;

	page_item(page, STYLE_DIM, "in");
	page_item(page, STYLE_PLAIN, "%s/s, %sB/s", unit_count(r->rx_messages, UNIT), unit_rate(r->rx_bytes, UNIT));
	page_item(page, STYLE_PLAIN, "in all %s messages, %sB, %s frames", unit_count((double)c->rx_messages, UNIT),
		unit_size(c->rx_bytes, UNIT), unit_count((double)c->rx_frames, UNIT));
	page_item(page, STYLE_PLAIN, "lag %s, longest %s", unit_time(p->lag_ns, UNIT),
		unit_time(p->longest_lag_ns, UNIT));
	if (p->held_frames)
		page_item(page, STYLE_WARN, "%u frames held", p->held_frames);
	page_item(page, STYLE_PLAIN, "maps %s of the peer", unit_size(c->rx_mapped_bytes, UNIT));
	page_item(page, STYLE_PLAIN, "last frame %s ago", unit_time_or_dash(subject_since(subject, p->last_rx_ns), UNIT));
	page_end_line(page);
}

static void put_trouble(const struct subject *subject, const struct wh_stats_port *p, struct page *page)
{
	const struct wh_stats_counts *c = &p->counts;
	uint64_t blocked = subject_since(subject, p->blocked_since_ns), longest = p->longest_blocked_ns;

	page_item(page, STYLE_DIM, "backpressure");
	if (p->flags & WH_STATS_BLOCKED)
		page_item(page, STYLE_BAD, "for %s now", unit_time(blocked, UNIT));
	page_item(page, STYLE_PLAIN, "%s in all", unit_time(p->blocked_ns + blocked, UNIT));
	page_item(page, STYLE_PLAIN, "longest stall %s", unit_time(longest > blocked ? longest : blocked, UNIT));
	page_item(page, STYLE_PLAIN, "%llu refused", (unsigned long long)c->tx_again);
	page_item(page, STYLE_PLAIN, "socket full %llu times", (unsigned long long)c->tx_socket_full);
	page_item(page, c->tx_dropped ? STYLE_WARN : STYLE_PLAIN, "%llu dropped (%s)",
		(unsigned long long)c->tx_dropped, unit_size(c->tx_dropped_bytes, UNIT));
	if (c->tx_replaced)
		page_item(page, STYLE_PLAIN, "%llu replaced", (unsigned long long)c->tx_replaced);
	if (c->rx_stream_violations)
		page_item(page, STYLE_WARN, "%llu stream violations", (unsigned long long)c->rx_stream_violations);
	if (c->rx_stray_records)
		page_item(page, STYLE_PLAIN, "%llu stray records", (unsigned long long)c->rx_stray_records);
	if (p->streams_out | p->streams_in | p->calls_out | p->calls_in)
		page_item(page, STYLE_PLAIN, "streams %u out, %u in; calls %u out, %u in", p->streams_out,
			p->streams_in, p->calls_out, p->calls_in);
	page_end_line(page);
}

static void put_socket(const struct subject_socket *socket, const struct wh_stats_port *p, struct page *page)
{
	page_item(page, STYLE_DIM, "socket");
	page_item(page, STYLE_PLAIN, "descriptor %d", p->fd);
	if (!socket->known) {
		page_item(page, STYLE_WARN, "queues not known: %s", socket->why);
	} else {
		page_item(
			page, STYLE_PLAIN, "%sB not received by the peer, as charged", unit_size(socket->unsent, UNIT));
		page_item(page, STYLE_PLAIN, "%sB wait here", unit_size(socket->unread, UNIT));
		if (socket->peer_known)
			page_item(page, STYLE_PLAIN, "%sB wait there", unit_size(socket->peer_unread, UNIT));
	}
	if (socket->scm_known)
		page_item(page, STYLE_PLAIN, "%llu descriptors wait here", (unsigned long long)socket->scm_fds);
	page_end_line(page);
}

static void put_port(const struct subject *subject, const struct snap_port *port, struct page *page)
{
	const struct wh_stats_port *p = &port->s;
	struct rates_traffic rates;

	rates_of_port(subject, port, &rates);
	page->indent = 0;
	page_item(page, STYLE_BOLD, "port %llu", (unsigned long long)p->id);
	page_item(page, p->state == STATE_OPEN ? STYLE_GOOD : STYLE_WARN, "%s", names_port_state(p->state));
	page_item(page, STYLE_PLAIN, "loop %llu", (unsigned long long)subject->now.loops[port->loop].s.id);
	if (port->torn)
		page_item(page, STYLE_BAD, "torn: written while it was read, or by a thread that died");
	put_flags(p, page);
	page_end_line(page);
	page->indent = 2;
	put_peer(subject, p, page);
	put_out(subject, port, &rates, page);
	put_in(subject, p, &rates, page);
	put_trouble(subject, p, page);
	if (subject->sockets)
		put_socket(&subject->sockets[port - subject->now.ports], p, page);
	if (p->close_code || *p->text) {
		page_item(page, STYLE_DIM, "%s", p->close_code ? "ends" : "last error");
		if (p->close_code)
			page_item(page, STYLE_BAD, "%s", wharf_close_name(p->close_code));
		if (p->close_errno)
			page_item(page, STYLE_BAD, "%s", names_errno(p->close_errno));
		if (p->close_code == WHARF_CLOSE_PEER_ABORTED || p->app_code)
			page_item(page, STYLE_PLAIN, "code %u", p->app_code);
		page_item(page, STYLE_BAD, "%s", p->text);
		page_end_line(page);
	}
	page->indent = 0;
}

bool view_ports(const struct subject *subject, struct page *page, uint64_t port)
{
	struct ranked *ranked = rank(subject, false);
	bool found = !port;

	for (size_t i = 0; i < subject->now.n_ports; i++) {
		if (port && ranked[i].port->s.id != port)
			continue;
		put_port(subject, ranked[i].port, page);
		found = true;
	}
	free(ranked);
	return found;
}
