/* SPDX-License-Identifier: MIT */
/* Pools: a picture of each segment, what is free in which class, and what is lent to whom since when. */
#include <stdio.h>
#include <stdlib.h>

#include "memory.h"
#include "table.h"
#include "unit.h"
#include "views.h"

enum { ROWS_MAX = 8, CELLS_MIN = 16 };

static const enum style styles[CHUNK_STATES] = { STYLE_FREE, STYLE_CLAIMED, STYLE_LENT, STYLE_SEVERAL };

/* Told apart without colours, too. */
static const char *cell_text(const struct page *page, enum chunk_state state)
{
	static const char *const ascii[CHUNK_STATES] = { ".", "o", "#", "&" };
	static const char *const blocks[CHUNK_STATES] = { "\u00b7", "\u2592", "\u2588", "\u2593" };

	return page->utf8 ? blocks[state] : ascii[state];
}

/* What matters most of the chunks that share a cell: one lent chunk is to be seen. */
static enum chunk_state cell_state(const struct chunks_slot *slot, uint32_t first, uint32_t n)
{
	enum chunk_state state = CHUNK_FREE;

	for (uint32_t c = first; c < first + n && c < slot->slot->n_chunks; c++)
		if (slot->states[c] > state)
			state = (enum chunk_state)slot->states[c];
	return state;
}

static void put_picture(const struct chunks_slot *slot, struct page *page)
{
	uint32_t room = page->width > CELLS_MIN + 4 ? page->width - 4 : CELLS_MIN, columns = CELLS_MIN, per = 1;

	/* Powers of two: places are where one expects them. */
	while (columns * 2 <= room)
		columns *= 2;
	while ((slot->slot->n_chunks + per - 1) / per > columns * ROWS_MAX)
		per *= 2;
	for (uint32_t first = 0; first < slot->slot->n_chunks; first += columns * per) {
		page_blank(page, 4);
		for (uint32_t c = first; c < first + columns * per && c < slot->slot->n_chunks; c += per) {
			enum chunk_state state = cell_state(slot, c, per);
			page_put(page, styles[state], "%s", cell_text(page, state));
		}
		page_end_line(page);
	}
	if (per > 1) {
		page->indent = 4;
		page_item(page, STYLE_DIM, "each sign: %u chunks", per);
		page_end_line(page);
	}
}

static void put_slot(const struct chunks_slot *slot, struct page *page, bool picture)
{
	const struct snap_slot *s = slot->slot;

	page->indent = 2;
	page_item(page, STYLE_PLAIN, "segment %u", s->index);
	if (s->state != WH_SLOT_LIVE)
		page_item(page, STYLE_WARN, "%s", chunks_slot_state_name(s->state));
	page_item(page, STYLE_PLAIN, "%u x %s", s->n_chunks, unit_size(UINT64_C(1) << s->shift, UNIT));
	for (int i = 0; i < CHUNK_STATES; i++)
		if (slot->n[i] || i == CHUNK_FREE)
			page_item(page, styles[i], "%s %s %u", cell_text(page, (enum chunk_state)i),
				chunks_state_name((enum chunk_state)i), slot->n[i]);
	page_end_line(page);
	if (picture && s->n_chunks)
		put_picture(slot, page);
}

static void put_classes(const struct chunks *chunks, struct page *page)
{
	static const struct table_column columns[] = {
		{ "CHUNK", false, 0 },
		{ "SEGMENTS", false, 4 },
		{ "SIZE", false, 5 },
		{ "FREE", false, 0 },
		{ "CLAIMED", false, 2 },
		{ "LENT", false, 0 },
		{ "SEVERAL", false, 3 },
		{ "LARGEST FREE", false, 0 },
		{ "FRAGMENTED", false, 1 },
	};
	struct table table;

	table_init(&table, columns, wh_array_len(columns));
	for (unsigned c = 0; c < CHUNKS_CLASSES; c++) {
		const struct chunks_class *class = &chunks->classes[c];
		uint64_t all = 0;

		if (!class->n_slots)
			continue;
		for (int i = 0; i < CHUNK_STATES; i++)
			all += class->n[i];
		table_cell(&table, STYLE_PLAIN, "%s", unit_size(UINT64_C(1) << class->shift, UNIT));
		table_cell(&table, STYLE_PLAIN, "%u", class->n_slots);
		table_cell(&table, STYLE_PLAIN, "%s", unit_size(all << class->shift, UNIT));
		for (int i = 0; i < CHUNK_STATES; i++)
			table_cell(&table, STYLE_PLAIN, "%s", unit_size(class->n[i] << class->shift, UNIT));
		table_cell(&table, STYLE_PLAIN, "%s", unit_size((uint64_t) class->largest << class->shift, UNIT));
		table_cell(&table, STYLE_PLAIN, "%.0f%%",
			100 * chunks_fragmentation(class->n[CHUNK_FREE], class->largest));
	}
	table_put(&table, page, 2);
}

static void put_run(const struct subject *subject, const struct chunks_run *run, struct table *table)
{
	char peer[VIEW_PEER_BYTES];

	table_cell(table, STYLE_BOLD, "%s", run->dated ? unit_time(run->age_ns, UNIT) : "?");
	table_cell(table, STYLE_PLAIN, "%s", unit_size(run->bytes, UNIT));
	table_cell(table, STYLE_PLAIN, "%u", run->slot);
	if (run->n > 1)
		table_cell(table, STYLE_PLAIN, "%u-%u", run->first, run->first + run->n - 1);
	else
		table_cell(table, STYLE_PLAIN, "%u", run->first);
	if (!run->lease)
		return;
	if (run->stream)
		table_cell(table, STYLE_PLAIN, "%u", run->stream);
	else
		table_cell(table, STYLE_PLAIN, "-");
	table_cell(table, STYLE_PLAIN, "%u", run->holders);
	if (run->port)
		table_cell(table, STYLE_PLAIN, "%llu", (unsigned long long)run->port->s.id);
	else
		table_cell(table, STYLE_PLAIN, "-");
	table_cell(table, STYLE_PLAIN, "%s",
		view_peer(subject, run->lease->peer, run->port ? run->port->s.peer_name : NULL, peer));
}

static size_t put_runs(const struct subject *subject, const struct chunks_run *runs, size_t n_runs, struct page *page,
	size_t at_most, uint64_t older_than_ns)
{
	static const struct table_column lent[] = {
		{ "LENT FOR", false, 0 },
		{ "SIZE", false, 0 },
		{ "SEGMENT", false, 3 },
		{ "CHUNKS", true, 2 },
		{ "STREAM", false, 4 },
		{ "HELD BY", false, 5 },
		{ "PORT", false, 1 },
		{ "TO", true, 0 },
	};
	static const struct table_column claimed[] = {
		{ "CLAIMED FOR", false, 0 },
		{ "SIZE", false, 0 },
		{ "SEGMENT", false, 0 },
		{ "CHUNKS", true, 0 },
	};
	struct table table;
	size_t n = 0;

	if (!n_runs)
		return 0;
	if (runs->lease)
		table_init(&table, lent, wh_array_len(lent));
	else
		table_init(&table, claimed, wh_array_len(claimed));
	for (size_t i = 0; i < n_runs; i++) {
		if (older_than_ns && (!runs[i].dated || runs[i].age_ns < older_than_ns))
			continue;
		if (++n <= at_most || !at_most)
			put_run(subject, &runs[i], &table);
	}
	if (n)
		table_put(&table, page, 2);
	if (n > at_most && at_most) {
		page->indent = 2;
		page_item(page, STYLE_DIM, "and %zu that are younger: --json has all", n - at_most);
		page_end_line(page);
	}
	return n;
}

static void put_pool_head(const struct snap_pool *pool, const struct chunks *chunks, struct page *page)
{
	page->indent = 0;
	page_item(page, STYLE_BOLD, "pool %llu%s%s", (unsigned long long)pool->id, *pool->name ? " " : "", pool->name);
	page_item(page, STYLE_PLAIN, "%s", pool->shared ? "shared" : "private");
	page_item(page, STYLE_PLAIN, "%s of at most %s in %zu segment%s", unit_size(pool->bytes, UNIT),
		unit_size(pool->bytes_max, UNIT), pool->n_slots, pool->n_slots == 1 ? "" : "s");
	page_item(page, STYLE_PLAIN, "%zu lease%s", pool->n_leases, pool->n_leases == 1 ? "" : "s");
	for (int i = CHUNK_CLAIMED; i < CHUNK_STATES; i++)
		if (chunks->bytes[i])
			page_item(page, styles[i], "%s %s", chunks_state_name((enum chunk_state)i),
				unit_size(chunks->bytes[i], UNIT));
	page_item(page, STYLE_PLAIN, "free %s", unit_size(chunks->bytes[CHUNK_FREE], UNIT));
	page_end_line(page);
}

size_t view_chunks(
	const struct subject *subject, struct page *page, bool pictures, size_t n_runs, uint64_t older_than_ns)
{
	size_t n = 0, unused = 0;

	for (size_t i = 0; i < subject->now.n_pools; i++) {
		const struct snap_pool *pool = &subject->now.pools[i];
		struct chunks chunks;

		/* Most ports send nothing that is claimed: their pools are empty. */
		if (!pool->n_slots) {
			unused++;
			continue;
		}
		chunks_make(&subject->now, pool, &chunks);
		put_pool_head(pool, &chunks, page);
		for (size_t k = 0; k < pool->n_slots && pictures; k++)
			put_slot(&chunks.slots[k], page, pictures);
		if (!older_than_ns)
			put_classes(&chunks, page);
		n += put_runs(subject, chunks.runs, chunks.n_runs, page, n_runs, older_than_ns);
		n += put_runs(subject, chunks.claims, chunks.n_claims, page, n_runs, older_than_ns);
		chunks_fini(&chunks);
	}
	page->indent = 0;
	if (unused) {
		page_item(page, STYLE_DIM, "%zu pool%s without memory", unused, unused == 1 ? "" : "s");
		page_end_line(page);
	}
	return n;
}

void view_pools_table(const struct subject *subject, struct page *page)
{
	static const struct table_column columns[] = {
		{ "POOL", false, 0 },
		{ "NAME", true, 4 },
		{ "KIND", true, 6 },
		{ "SEGMENTS", false, 5 },
		{ "MEMORY", false, 0 },
		{ "MOST", false, 3 },
		{ "FREE", false, 1 },
		{ "CLAIMED", false, 2 },
		{ "LENT", false, 0 },
		{ "RUNS", false, 2 },
		{ "OLDEST", false, 0 },
	};
	struct table table;
	size_t unused = 0;

	table_init(&table, columns, wh_array_len(columns));
	for (size_t i = 0; i < subject->now.n_pools; i++) {
		const struct snap_pool *pool = &subject->now.pools[i];
		struct chunks c;

		if (!pool->n_slots) {
			unused++;
			continue;
		}
		chunks_make(&subject->now, pool, &c);
		table_cell(&table, STYLE_PLAIN, "%llu", (unsigned long long)pool->id);
		table_cell(&table, STYLE_PLAIN, "%s", pool->name);
		table_cell(&table, STYLE_PLAIN, "%s", pool->shared ? "shared" : "private");
		table_cell(&table, STYLE_PLAIN, "%zu", pool->n_slots);
		table_cell(&table, STYLE_PLAIN, "%s", unit_size(pool->bytes, UNIT));
		table_cell(&table, STYLE_PLAIN, "%s", unit_size(pool->bytes_max, UNIT));
		table_cell(&table, STYLE_PLAIN, "%s", unit_size(c.bytes[CHUNK_FREE], UNIT));
		table_cell(&table, STYLE_PLAIN, "%s", unit_size(c.bytes[CHUNK_CLAIMED], UNIT));
		table_cell(&table, STYLE_PLAIN, "%s", unit_size(c.bytes[CHUNK_LENT] + c.bytes[CHUNK_SEVERAL], UNIT));
		table_cell(&table, STYLE_PLAIN, "%zu", c.n_runs);
		table_cell(&table, STYLE_PLAIN, "%s",
			c.n_runs && c.runs[0].dated ? unit_time(c.runs[0].age_ns, UNIT) : "-");
		chunks_fini(&c);
	}
	if (unused < subject->now.n_pools)
		table_put(&table, page, 0);
	if (unused) {
		page_item(page, STYLE_DIM, "%zu pool%s without memory", unused, unused == 1 ? "" : "s");
		page_end_line(page);
	}
}
