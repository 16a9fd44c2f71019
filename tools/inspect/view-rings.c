/* SPDX-License-Identifier: MIT */
/* Loops: what they do now, and what is between them and the kernel. */
#include <stdio.h>

#include "names.h"
#include "rates.h"
#include "table.h"
#include "unit.h"
#include "views.h"

/* A turn of this length is a callback that hangs, or nearly. */
#define HANGS_NS UINT64_C(1000000000)

enum style view_loop_note(const struct subject *subject, const struct snap_loop *loop, char note[VIEW_NOTE_BYTES])
{
	const struct wh_stats_loop *l = &loop->s;
	const struct snap_port *port = snapshot_port_at(&subject->now, l->in_port);
	uint64_t works = subject_since(subject, l->phase_since_ns);

	*note = '\0';
	if (l->broken) {
		snprintf(note, VIEW_NOTE_BYTES, "broken: %s", names_errno(l->broken));
		return STYLE_BAD;
	}
	if (l->phase == WH_PHASE_WORKS && works > HANGS_NS) {
		if (port)
			snprintf(note, VIEW_NOTE_BYTES, "in one turn for %s, at port %llu", unit_time(works, UNIT),
				(unsigned long long)port->s.id);
		else
			snprintf(note, VIEW_NOTE_BYTES, "in one turn for %s", unit_time(works, UNIT));
		return STYLE_BAD;
	}
	if (l->rx_starved)
		snprintf(note, VIEW_NOTE_BYTES, "%u ports wait for receive buffers", l->rx_starved);
	else if (l->phase == WH_PHASE_OUTSIDE && l->turns && works > HANGS_NS)
		snprintf(note, VIEW_NOTE_BYTES, "not stepped for %s", unit_time(works, UNIT));
	else if (l->flags & WH_STATS_NO_TRACE)
		snprintf(note, VIEW_NOTE_BYTES, "no memory for a trace");
	return *note ? STYLE_WARN : STYLE_PLAIN;
}

void view_loops_table(const struct subject *subject, struct page *page)
{
	static const struct table_column columns[] = {
		{ "LOOP", false, 0 },
		{ "THREAD", false, 5 },
		{ "ENGINE", true, 3 },
		{ "PHASE", true, 0 },
		{ "FOR", false, 1 },
		{ "PORTS", false, 2 },
		{ "BUSY", false, 2 },
		{ "TURNS/s", false, 4 },
		{ "CALLS/s", false, 6 },
		{ "OUT/s", false, 4 },
		{ "IN/s", false, 4 },
		{ "LONGEST", false, 7 },
		{ "NOTE", true, 0 },
	};
	const struct snapshot *s = &subject->now;
	struct table table;

	if (!s->n_loops)
		return;
	table_init(&table, columns, wh_array_len(columns));
	for (size_t i = 0; i < s->n_loops; i++) {
		const struct wh_stats_loop *l = &s->loops[i].s;
		char engine[NAMES_ENGINE_BYTES], note[VIEW_NOTE_BYTES];
		enum style style = view_loop_note(subject, &s->loops[i], note);
		struct rates_loop r;

		rates_of_loop(subject, &s->loops[i], &r);
		table_cell(&table, STYLE_BOLD, "%llu%s", (unsigned long long)l->id, s->loops[i].torn ? "*" : "");
		table_cell(&table, STYLE_PLAIN, "%u", l->tid);
		table_cell(&table, STYLE_PLAIN, "%s", names_engine_level(l->engine, l->rung, engine));
		table_cell(&table, STYLE_PLAIN, "%s", names_phase(l->phase));
		table_cell(&table, STYLE_PLAIN, "%s", unit_time_or_dash(subject_since(subject, l->phase_since_ns), UNIT));
		table_cell(&table, STYLE_PLAIN, "%u", l->n_ports);
		if (r.busy >= 0)
			table_cell(&table, STYLE_PLAIN, "%.0f%%", 100 * (r.busy > 1 ? 1 : r.busy));
		else
			table_cell(&table, STYLE_PLAIN, "-");
		table_cell(&table, STYLE_PLAIN, "%s", unit_count(r.turns, UNIT));
		table_cell(&table, STYLE_PLAIN, "%s", unit_count(r.system_calls, UNIT));
		table_cell(&table, STYLE_PLAIN, "%s", unit_count(r.traffic.tx_messages, UNIT));
		table_cell(&table, STYLE_PLAIN, "%s", unit_count(r.traffic.rx_messages, UNIT));
		table_cell(&table, STYLE_PLAIN, "%s", unit_time(l->longest_turn_ns, UNIT));
		table_cell(&table, style, "%s", note);
	}
	table_put(&table, page, 0);
}

/* ---- One loop ---- */

static void put_kernel(const struct subject_ring *ring, const struct wh_stats_loop *l, struct page *page)
{
	const struct fdinfo *info = &ring->info;
	char op[16];

	if (!ring->known) {
		page_item(page, STYLE_DIM, "kernel");
		page_item(page, STYLE_WARN, "not known: %s", ring->why);
		page_end_line(page);
		return;
	}
	if (!info->ring) {
		page_item(page, STYLE_DIM, "kernel");
		page_item(page, STYLE_PLAIN, "epoll set %d: %llu descriptors", l->ring_fd,
			(unsigned long long)info->targets);
		page_end_line(page);
		return;
	}
	page_item(page, STYLE_DIM, "submissions");
	page_item(page, STYLE_PLAIN, "ring of %u", info->sq_mask + 1);
	page_item(page, STYLE_PLAIN, "head %u", info->sq_head);
	page_item(page, STYLE_PLAIN, "tail %u", info->sq_tail);
	page_item(
		page, fdinfo_unsubmitted(info) ? STYLE_WARN : STYLE_PLAIN, "unsubmitted %u", fdinfo_unsubmitted(info));
	page_end_line(page);
	page_item(page, STYLE_DIM, "completions");
	page_item(page, STYLE_PLAIN, "ring of %u", info->cq_mask + 1);
	page_item(page, STYLE_PLAIN, "head %u", info->cq_head);
	page_item(page, STYLE_PLAIN, "tail %u", info->cq_tail);
	page_item(page, fdinfo_unreaped(info) ? STYLE_WARN : STYLE_PLAIN, "unreaped %u", fdinfo_unreaped(info));
	page_item(page, info->overflows ? STYLE_BAD : STYLE_PLAIN, "overflowed %llu",
		(unsigned long long)info->overflows);
	page_end_line(page);
	page_item(page, STYLE_DIM, "kernel holds");
	for (unsigned i = 0; i < FDINFO_OPS; i++) {
		if (!info->armed[i])
			continue;
		snprintf(op, sizeof op, "opcode %u", i);
		page_item(page, STYLE_PLAIN, "%llu %s", (unsigned long long)info->armed[i],
			fdinfo_op_name(i) ? fdinfo_op_name(i) : op);
	}
	if (!info->n_armed)
		page_item(page, STYLE_PLAIN, "nothing");
	if (info->armed[FDINFO_OP_SENDMSG])
		page_item(page, STYLE_BAD, "a send is parked: its peer's socket is full");
	page_end_line(page);
}

static void put_loop_state(const struct subject *subject, const struct snap_loop *loop, struct page *page)
{
	const struct wh_stats_loop *l = &loop->s;
	char note[VIEW_NOTE_BYTES];
	enum style style = view_loop_note(subject, loop, note);

	page_item(page, STYLE_DIM, "now");
	page_item(page, STYLE_PLAIN, "%s for %s", names_phase(l->phase),
		unit_time_or_dash(subject_since(subject, l->phase_since_ns), UNIT));
	page_item(page, style, "%s", note);
	if (l->next_deadline_ns > subject_now_ns(subject))
		page_item(page, STYLE_PLAIN, "next deadline in %s",
			unit_time(l->next_deadline_ns - subject_now_ns(subject), UNIT));
	else if (l->next_deadline_ns)
		page_item(page, STYLE_WARN, "next deadline %s ago",
			unit_time(subject_since(subject, l->next_deadline_ns), UNIT));
	page_item(page, STYLE_PLAIN, "ports: %u, to flush %u, stuck %u, held %u, ending %u", l->n_ports, l->n_dirty,
		l->n_waiting, l->n_ready, l->n_ending);
	page_end_line(page);
	page_item(page, STYLE_DIM, "armed");
	for (unsigned i = 0; i < WH_ARMED_KINDS; i++)
		if (l->armed[i] && names_request(i))
			page_item(page, STYLE_PLAIN, "%u %s", l->armed[i], names_request(i));
	page_item(page, STYLE_PLAIN, "by the loop's own count");
	page_end_line(page);
	page_item(page, STYLE_DIM, "receive buffers");
	page_item(page, STYLE_PLAIN, "%u of %u left",
		l->rx_buffers > l->rx_buffers_lent ? l->rx_buffers - l->rx_buffers_lent : 0, l->rx_buffers);
	page_item(page, l->rx_starved ? STYLE_BAD : STYLE_PLAIN, "%u ports wait for one", l->rx_starved);
	page_item(page, STYLE_PLAIN, "none left %llu times", (unsigned long long)l->no_buffers);
	page_end_line(page);
}

static void put_per(struct page *page, const char *what, double of, double per)
{
	if (of >= 0 && per > 0)
		page_item(page, STYLE_PLAIN, "%.1f %s", of / per, what);
	else
		page_item(page, STYLE_PLAIN, "- %s", what);
}

static void put_loop_rates(const struct subject *subject, const struct snap_loop *loop, struct page *page)
{
	const struct wh_stats_loop *l = &loop->s;
	struct rates_loop r;
	double messages;

	rates_of_loop(subject, loop, &r);
	messages = r.traffic.tx_messages >= 0 ? r.traffic.tx_messages + r.traffic.rx_messages : -1;
	page_item(page, STYLE_DIM, "each second");
	page_item(page, STYLE_PLAIN, "%s enters", unit_count(r.system_calls, UNIT));
	page_item(page, STYLE_PLAIN, "%s turns", unit_count(r.turns, UNIT));
	page_item(page, STYLE_PLAIN, "%s sleeps", unit_count(r.sleeps, UNIT));
	page_item(page, STYLE_PLAIN, "%s completions", unit_count(r.completions, UNIT));
	page_item(page, STYLE_PLAIN, "%s messages", unit_count(messages, UNIT));
	if (r.busy >= 0)
		page_item(page, STYLE_PLAIN, "busy %.0f%%", 100 * (r.busy > 1 ? 1 : r.busy));
	page_end_line(page);
	page_item(page, STYLE_DIM, "per enter");
	put_per(page, "completions", r.completions, r.system_calls);
	put_per(page, "messages", messages, r.system_calls);
	page_item(page, STYLE_DIM, "in all");
	put_per(page, "completions", (double)l->completions, (double)l->system_calls);
	put_per(page, "messages", (double)l->tx_messages + (double)l->rx_messages, (double)l->system_calls);
	page_end_line(page);
	page_item(page, STYLE_DIM, "in all");
	page_item(page, STYLE_PLAIN, "%s enters", unit_count((double)l->system_calls, UNIT));
	page_item(page, STYLE_PLAIN, "%s turns", unit_count((double)l->turns, UNIT));
	page_item(page, STYLE_PLAIN, "longest %s", unit_time(l->longest_turn_ns, UNIT));
	page_item(page, STYLE_PLAIN, "%llu overflows", (unsigned long long)l->overflows);
	page_item(page, STYLE_PLAIN, "%llu wakes", (unsigned long long)l->wakes);
	page_item(page, STYLE_PLAIN, "%llu posts", (unsigned long long)l->posts);
	page_item(page, STYLE_PLAIN, "%llu accepted, %llu refused, %llu errors", (unsigned long long)l->accepted,
		(unsigned long long)l->refused, (unsigned long long)l->accept_errors);
	page_item(page, STYLE_PLAIN, "ports %llu opened, %llu closed", (unsigned long long)l->ports_opened,
		(unsigned long long)l->ports_closed);
	page_item(page, l->violations ? STYLE_WARN : STYLE_PLAIN, "%llu violations", (unsigned long long)l->violations);
	page_end_line(page);
}

/* The upper end of the bucket in which that share of all lies; 0: nothing was counted. */
static uint64_t percentile(const uint64_t buckets[WH_STATS_BUCKETS], double share)
{
	double all = 0, sum = 0;

	for (unsigned i = 0; i < WH_STATS_BUCKETS; i++)
		all += (double)buckets[i];
	for (unsigned i = 0; i < WH_STATS_BUCKETS && all > 0; i++) {
		sum += (double)buckets[i];
		if (sum >= share * all)
			return UINT64_C(1) << i;
	}
	return 0;
}

static void put_histogram(struct page *page, const char *what, const uint64_t buckets[WH_STATS_BUCKETS])
{
	if (!percentile(buckets, 1))
		return;
	page_item(page, STYLE_DIM, "%s", what);
	page_item(page, STYLE_PLAIN, "half below %s", unit_time(percentile(buckets, .5), UNIT));
	page_item(page, STYLE_PLAIN, "99%% below %s", unit_time(percentile(buckets, .99), UNIT));
	page_item(page, STYLE_PLAIN, "all below %s", unit_time(percentile(buckets, 1), UNIT));
	page_end_line(page);
}

void view_rings(const struct subject *subject, struct page *page)
{
	const struct snapshot *s = &subject->now;

	for (size_t i = 0; i < s->n_loops; i++) {
		const struct wh_stats_loop *l = &s->loops[i].s;
		char engine[NAMES_ENGINE_BYTES];

		page->indent = 0;
		page_item(page, STYLE_BOLD, "loop %llu", (unsigned long long)l->id);
		page_item(page, STYLE_PLAIN, "%s", names_engine_level(l->engine, l->rung, engine));
		page_item(page, STYLE_PLAIN, "descriptor %d", l->ring_fd);
		if (l->tid)
			page_item(page, STYLE_PLAIN, "thread %u", l->tid);
		else
			page_item(page, STYLE_WARN, "nobody has stepped it");
		page_item(page, STYLE_PLAIN, "up %s", unit_time_or_dash(subject_since(subject, l->started_ns), UNIT));
		for (unsigned bit = 0; bit < 32; bit++)
			if (l->flags >> bit & 1 && names_loop_flag(bit))
				page_item(page, STYLE_PLAIN, "%s", names_loop_flag(bit));
		if (s->loops[i].torn)
			page_item(page, STYLE_BAD, "torn: written while it was read, or by a thread that died");
		page_end_line(page);
		page->indent = 2;
		put_loop_state(subject, &s->loops[i], page);
		if (subject->rings)
			put_kernel(&subject->rings[i], l, page);
		put_loop_rates(subject, &s->loops[i], page);
		put_histogram(page, "lag of frames", l->lag);
		put_histogram(page, "length of turns", l->turn);
		page->indent = 0;
	}
}
