/* SPDX-License-Identifier: MIT */
/* The processes, and the head of the views of one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "names.h"
#include "rates.h"
#include "table.h"
#include "unit.h"
#include "views.h"

struct entry {
	struct process process; /* its numbers and texts only */
	size_t n_loops, n_ports;
	char engine[24];
	struct rates_loop rates;
	uint64_t queued, lent, memory;
	enum style style;
	char note[VIEW_NOTE_BYTES + 32];
};

struct view_list {
	struct entry *entries;
	size_t n;
};

struct view_list *view_list_new(void) { return memory_new(1, sizeof(struct view_list)); }
size_t view_list_length(const struct view_list *list) { return list->n; }

static enum style worse(enum style a, enum style b)
{
	static const uint8_t rank[STYLES] = { [STYLE_DIM] = 1, [STYLE_WARN] = 2, [STYLE_BAD] = 3 };

	return rank[a] >= rank[b] ? a : b;
}

/* The first of the worst, of its state, loops and ports. */
static void note(const struct subject *subject, struct entry *entry)
{
	const struct snapshot *s = &subject->now;
	char text[VIEW_NOTE_BYTES];

	if (subject->process.state == 'T' || subject->process.state == 't') {
		entry->style = STYLE_BAD;
		snprintf(entry->note, sizeof entry->note, "stopped");
	}
	for (size_t i = 0; i < s->n_loops; i++) {
		enum style style = view_loop_note(subject, &s->loops[i], text);
		if (worse(entry->style, style) == entry->style)
			continue;
		entry->style = style;
		snprintf(entry->note, sizeof entry->note, "loop %llu %s", (unsigned long long)s->loops[i].s.id, text);
	}
	for (size_t i = 0; i < s->n_ports; i++) {
		enum style style = view_port_note(subject, &s->ports[i], text);
		if (worse(entry->style, style) == entry->style)
			continue;
		entry->style = style;
		snprintf(entry->note, sizeof entry->note, "port %llu %s", (unsigned long long)s->ports[i].s.id, text);
	}
}

static uint64_t lent_bytes(const struct snap_pool *pool)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < pool->n_leases; i++)
		for (size_t k = 0; k < pool->leases[i].n_lent; k++)
			for (size_t j = 0; j < pool->n_slots; j++)
				for (unsigned w = 0;
					w < WH_SLOT_WORDS && pool->slots[j].index == pool->leases[i].lent[k].slot; w++)
					sum += (uint64_t)__builtin_popcountll(pool->leases[i].lent[k].words[w])
						<< pool->slots[j].shift;
	return sum;
}

void view_list_add(struct view_list *list, const struct subject *subject)
{
	const struct snapshot *s = &subject->now;
	struct entry entry = { .process = subject->process, .n_loops = s->n_loops, .n_ports = s->n_ports };

	for (size_t i = 0; i < s->n_loops; i++) {
		const char *engine = names_engine(s->loops[i].s.engine);
		if (!i)
			snprintf(entry.engine, sizeof entry.engine, "%s", engine);
		else if (strcmp(entry.engine, engine) != 0)
			snprintf(entry.engine, sizeof entry.engine, "both");
	}
	rates_of_process(subject, &entry.rates);
	for (size_t i = 0; i < s->n_ports; i++)
		entry.queued += s->ports[i].s.counts.tx_queued_bytes;
	for (size_t i = 0; i < s->n_pools; i++) {
		entry.lent += lent_bytes(&s->pools[i]);
		entry.memory += s->pools[i].bytes;
	}
	note(subject, &entry);
	list->entries = memory_grow(list->entries, list->n, sizeof entry);
	list->entries[list->n++] = entry;
}

static double bytes_moved(const struct entry *entry)
{
	const struct rates_traffic *t = &entry->rates.traffic;

	return (t->tx_bytes > 0 ? t->tx_bytes : 0) + (t->rx_bytes > 0 ? t->rx_bytes : 0);
}

const char *view_order_name(enum view_order order)
{
	static const char *const names[VIEW_ORDERS] = { "traffic", "queued", "lent", "busy", "pid" };

	return names[order];
}

static double order_key(const struct entry *entry, enum view_order order)
{
	switch (order) {
	case VIEW_BY_QUEUED:
		return (double)entry->queued;
	case VIEW_BY_LENT:
		return (double)entry->lent;
	case VIEW_BY_BUSY:
		return entry->rates.busy;
	case VIEW_BY_PID:
	case VIEW_ORDERS:
		return -entry->process.pid;
	case VIEW_BY_TRAFFIC:
		break;
	}
	return bytes_moved(entry);
}

static int most_first(const void *a, const void *b, void *order)
{
	const struct entry *x = a, *y = b;
	double key_x = order_key(x, *(enum view_order *)order), key_y = order_key(y, *(enum view_order *)order);

	if (key_x > key_y || key_x < key_y)
		return key_x > key_y ? -1 : 1;
	return x->process.pid - y->process.pid;
}

void view_list_sort(struct view_list *list, enum view_order order)
{
	if (list->n)
		qsort_r(list->entries, list->n, sizeof *list->entries, most_first, &order);
}

pid_t view_list_pid(const struct view_list *list, size_t index) { return list->entries[index].process.pid; }

void view_list_free(struct view_list *list)
{
	free(list->entries);
	free(list);
}

void view_list_put(const struct view_list *list, struct page *page, pid_t marked)
{
	static const struct table_column columns[] = {
		{ "PID", false, 0 },
		{ "NAME", true, 0 },
		{ "USER", true, 11 },
		{ "UP", false, 10 },
		{ "LOOPS", false, 8 },
		{ "ENGINE", true, 9 },
		{ "PORTS", false, 1 },
		{ "OUT/s", false, 3 },
		{ "OUT B/s", false, 5 },
		{ "IN/s", false, 3 },
		{ "IN B/s", false, 5 },
		{ "QUEUED", false, 4 },
		{ "LENT", false, 2 },
		{ "MEMORY", false, 7 },
		{ "NOTE", true, 0 },
	};
	struct table table;

	table_init(&table, columns, wh_array_len(columns));
	for (size_t i = 0; i < list->n; i++) {
		const struct entry *e = &list->entries[i];
		const struct rates_traffic *t = &e->rates.traffic;
		char user[PROCESS_NAME_BYTES];

		process_user(e->process.uid, user);
		table_cell(&table, e->process.pid == marked ? STYLE_MARK : STYLE_PLAIN, "%d", e->process.pid);
		table_cell(&table, e->process.pid == marked ? STYLE_MARK : STYLE_BOLD, "%s", e->process.name);
		table_cell(&table, STYLE_PLAIN, "%s", user);
		table_cell(&table, STYLE_PLAIN, "%s", unit_time(e->process.up_ns, UNIT));
		table_cell(&table, STYLE_PLAIN, "%zu", e->n_loops);
		table_cell(&table, STYLE_PLAIN, "%s", e->engine);
		table_cell(&table, STYLE_PLAIN, "%zu", e->n_ports);
		table_cell(&table, STYLE_PLAIN, "%s", unit_count(t->tx_messages, UNIT));
		table_cell(&table, STYLE_PLAIN, "%s", unit_rate(t->tx_bytes, UNIT));
		table_cell(&table, STYLE_PLAIN, "%s", unit_count(t->rx_messages, UNIT));
		table_cell(&table, STYLE_PLAIN, "%s", unit_rate(t->rx_bytes, UNIT));
		table_cell(&table, STYLE_PLAIN, "%s", unit_size(e->queued, UNIT));
		table_cell(&table, STYLE_PLAIN, "%s", unit_size(e->lent, UNIT));
		table_cell(&table, STYLE_PLAIN, "%s", unit_size(e->memory, UNIT));
		table_cell(&table, e->style, "%s", e->note);
	}
	table_put(&table, page, 0);
}

/* ---- The head of other views ---- */

static const char *state_name(char state)
{
	switch (state) {
	case 'R':
		return "runs";
	case 'S':
		return "sleeps";
	case 'D':
		return "sleeps in the kernel";
	case 'T':
		return "stopped";
	case 't':
		return "stopped by a debugger";
	case 'Z':
		return "has exited";
	case '-':
		return "from a core dump";
	default:
		return "";
	}
}

void view_head(const struct subject *subject, struct page *page)
{
	const struct process *p = &subject->process;
	const struct snapshot *s = &subject->now;
	bool stopped = p->state == 'T' || p->state == 't';
	char user[PROCESS_NAME_BYTES];

	process_user(p->uid, user);
	page_put(page, STYLE_BOLD, "%s", p->name);
	page_item(page, STYLE_PLAIN, "pid %d", p->pid);
	page_item(page, STYLE_PLAIN, "user %s", user);
	if (!subject->dumped)
		page_item(page, STYLE_PLAIN, "up %s", unit_time(p->up_ns, UNIT));
	page_item(page, stopped ? STYLE_BAD : STYLE_PLAIN, "%s", state_name(p->state));
	page_item(page, STYLE_PLAIN, "%zu loop%s", s->n_loops, s->n_loops == 1 ? "" : "s");
	page_item(page, STYLE_PLAIN, "%zu port%s", s->n_ports, s->n_ports == 1 ? "" : "s");
	page_item(page, STYLE_PLAIN, "%zu pool%s", s->n_pools, s->n_pools == 1 ? "" : "s");
	page_end_line(page);
	if (*p->command)
		page_words(page, STYLE_DIM, 0, "%s", p->command);
	if (s->torn)
		page_words(page, STYLE_BAD, 0,
			"torn: its lists changed at every look, or a change was left half way; things may be missing");
	for (size_t i = 0; i < s->n_problems; i++)
		page_words(page, STYLE_BAD, 0, "garbage: %s", s->problems[i]);
}

const char *view_peer(const struct subject *subject, uint32_t pid, const char *name, char text[VIEW_PEER_BYTES])
{
	char found[PROCESS_NAME_BYTES];

	if (!pid || pid == UINT32_MAX) {
		snprintf(text, VIEW_PEER_BYTES, "%s", name && *name ? name : "?");
		return text;
	}
	if (name && *name) {
		snprintf(text, VIEW_PEER_BYTES, "%s:%u", name, pid);
		return text;
	}
	strcpy(found, "?");
	if (!subject->dumped)
		process_name((pid_t)pid, found);
	snprintf(text, VIEW_PEER_BYTES, "%s:%u", found, pid);
	return text;
}
