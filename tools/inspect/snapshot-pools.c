/* SPDX-License-Identifier: MIT */
/* Pools in a copy of control memory: segments, leases, and what is lent: see snapshot.h. */
#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "snapshot-reader.h"
#include "unit.h"

enum { SHIFT_MIN = 8, SHIFT_MAX = 24, CHUNKS_MAX = WH_SLOT_WORDS * 64 };

static const struct link_layout pool_links = { .next = 0, .previous = 32, .id = 8 };
static const struct link_layout lease_links = { .next = 16, .previous = 20, .id = 0 };
_Static_assert(offsetof(struct wh_control_pool, id) == 8, "layout");
_Static_assert(offsetof(struct wh_control_lease, next) == 16, "layout");
_Static_assert(offsetof(struct wh_control_lease, previous) == 20, "layout");

void snapshot_pool_fini(struct snap_pool *pool)
{
	for (size_t i = 0; i < pool->n_slots; i++) {
		free(pool->slots[i].info);
		free(pool->slots[i].counts);
	}
	for (size_t i = 0; i < pool->n_leases; i++)
		free(pool->leases[i].lent);
	free(pool->slots);
	free(pool->leases);
}

static void read_leases(struct reader *reader, struct snap_pool *pool, uint32_t first)
{
	struct place *places;

	reader->whole &= reader_list(reader, "leases", first, &lease_links, &places, &pool->n_leases);
	pool->leases = memory_new(pool->n_leases, sizeof *pool->leases);
	for (size_t i = 0; i < pool->n_leases; i++) {
		pool->leases[i].position = places[i].position;
		pool->leases[i].id = places[i].id;
	}
	free(places);
}

void reader_pools(struct reader *reader, uint32_t first)
{
	struct snapshot *snapshot = reader->snapshot;
	struct place *places;
	size_t n;

	reader->whole &= reader_list(reader, "pools", first, &pool_links, &places, &n);
	snapshot->pools = memory_new(n, sizeof *snapshot->pools);
	snapshot->n_pools = n;
	for (size_t i = 0; i < n; i++) {
		struct snap_pool *pool = &snapshot->pools[i];
		struct wh_control_pool control;

		pool->position = places[i].position;
		pool->id = places[i].id;
		if (!reader_bytes(reader, pool->position, 0, &control, sizeof control))
			continue;
		pool->bytes_max = control.bytes_max;
		pool->bytes = control.bytes;
		pool->shared = control.flags & 1;
		memcpy(pool->name, control.name, sizeof pool->name);
		unit_clean(pool->name, sizeof pool->name);
		read_leases(reader, pool, control.first_lease);
	}
	free(places);
}

/* ---- Segments ---- */

/* Bits beyond the end are nobody's. */
static void mask(uint64_t words[WH_SLOT_WORDS], uint32_t n_chunks)
{
	for (uint32_t w = 0; w < WH_SLOT_WORDS; w++) {
		uint32_t first = w * 64;

		if (first >= n_chunks)
			words[w] = 0;
		else if (n_chunks - first < 64)
			words[w] &= (UINT64_C(1) << (n_chunks - first)) - 1;
	}
}

static void read_slot(struct reader *reader, struct snap_pool *pool, uint32_t index, uint32_t position, unsigned wants)
{
	struct wh_control_slot control;
	struct snap_slot slot = { .index = index };
	bool counted = false;

	if (!reader_bytes(reader, position, 0, &control, sizeof control))
		return;
	slot.state = control.state;
	slot.n_chunks = control.n_chunks;
	slot.shift = control.chunk_shift;
	slot.times_made = control.times_made;
	if (slot.state == WH_SLOT_EMPTY)
		return;
	if (slot.state > WH_SLOT_DEAD || slot.n_chunks > CHUNKS_MAX || slot.shift < SHIFT_MIN ||
		slot.shift > SHIFT_MAX) {
		reader_complain(reader, "segment %u of pool %llu is garbage: state %u, %u chunks of 2^%u bytes", index,
			(unsigned long long)pool->id, slot.state, slot.n_chunks, slot.shift);
		return;
	}
	for (unsigned w = 0; w < WH_SLOT_WORDS; w++) {
		slot.free[w] = control.free[w];
		slot.counted[w] = control.counted[w];
	}
	mask(slot.free, slot.n_chunks);
	mask(slot.counted, slot.n_chunks);
	for (unsigned w = 0; w < WH_SLOT_WORDS; w++)
		counted |= slot.counted[w] != 0;
	if (wants & SNAPSHOT_CHUNKS && control.info) {
		slot.info = memory_new(slot.n_chunks, sizeof *slot.info);
		if (!reader_bytes(reader, control.info, 0, slot.info, slot.n_chunks * sizeof *slot.info)) {
			free(slot.info);
			slot.info = NULL;
		}
	}
	if (wants & SNAPSHOT_CHUNKS && counted && control.counts) {
		slot.counts = memory_new(slot.n_chunks, sizeof *slot.counts);
		if (!reader_bytes(reader, control.counts, 0, slot.counts, slot.n_chunks * sizeof *slot.counts)) {
			free(slot.counts);
			slot.counts = NULL;
		}
	}
	pool->slots = memory_grow(pool->slots, pool->n_slots, sizeof slot);
	pool->slots[pool->n_slots++] = slot;
}

static struct snap_slot *find_slot(struct snap_pool *pool, uint64_t index)
{
	for (size_t i = 0; i < pool->n_slots; i++)
		if (pool->slots[i].index == index)
			return &pool->slots[i];
	return NULL;
}

/* What a loop's thread has taken a whole word of, and not given out, is as free as the rest. */
static void add_local(struct reader *reader, struct snap_pool *pool, uint32_t position)
{
	struct wh_local local[WH_CONTROL_LOCALS];

	if (!position || !reader_bytes(reader, position, 0, local, sizeof local))
		return;
	for (unsigned c = 0; c < WH_CONTROL_LOCALS; c++) {
		uint64_t bits = local[c].bits, where = local[c].where, word = (where >> 32) / 64;
		struct snap_slot *slot = find_slot(pool, where & 0xffff);

		if (!bits || !slot || word >= WH_SLOT_WORDS)
			continue;
		slot->free[word] |= bits;
		mask(slot->free, slot->n_chunks);
	}
}

/* ---- Leases ---- */

static void read_lease(struct reader *reader, const struct snap_pool *pool, struct snap_lease *lease)
{
	struct wh_control_lease control;
	uint32_t positions[WH_CONTROL_SLOTS], n;

	if (!reader_bytes(reader, lease->position, 0, &control, sizeof control) || control.id != lease->id)
		return;
	lease->peer = control.peer;
	lease->index = control.index;
	n = control.n_lent;
	if (!control.lent || !n)
		return;
	if (n > WH_CONTROL_SLOTS) {
		reader_complain(reader, "lease %llu is garbage: %u segments", (unsigned long long)lease->id, n);
		return;
	}
	if (!reader_bytes(reader, control.lent, 0, positions, n * sizeof *positions))
		return;
	for (uint32_t i = 0; i < n; i++) {
		struct snap_lent lent = { .slot = i };
		uint64_t any = 0;

		if (!positions[i] || !reader_bytes(reader, positions[i], 0, lent.words, sizeof lent.words))
			continue;
		for (unsigned w = 0; w < WH_SLOT_WORDS; w++)
			any |= lent.words[w];
		if (!any || !find_slot((struct snap_pool *)(uintptr_t)pool, i))
			continue;
		lease->lent = memory_grow(lease->lent, lease->n_lent, sizeof lent);
		lease->lent[lease->n_lent++] = lent;
	}
}

void reader_fill_pools(struct reader *reader, unsigned wants)
{
	struct snapshot *snapshot = reader->snapshot;
	size_t n = 0;

	for (size_t i = 0; i < snapshot->n_pools; i++) {
		struct snap_pool *pool = &snapshot->pools[i];
		struct wh_control_pool control;
		uint32_t slots[WH_CONTROL_SLOTS];

		if (!reader_bytes(reader, pool->position, 0, &control, sizeof control) || control.id != pool->id) {
			snapshot_pool_fini(pool);
			continue;
		}
		pool->bytes = control.bytes;
		if (control.slots && reader_bytes(reader, control.slots, 0, slots, sizeof slots))
			for (uint32_t k = 0; k < WH_CONTROL_SLOTS; k++)
				if (slots[k])
					read_slot(reader, pool, k, slots[k], wants);
		add_local(reader, pool, control.local);
		for (size_t k = 0; k < pool->n_leases; k++)
			read_lease(reader, pool, &pool->leases[k]);
		snapshot->pools[n++] = *pool;
	}
	snapshot->n_pools = n;
}
