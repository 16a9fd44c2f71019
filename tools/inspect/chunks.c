/* SPDX-License-Identifier: MIT */
/* What became of each chunk of a pool: see chunks.h. */
#include "chunks.h"

#include <stdlib.h>

#include "bitmap.h"
#include "memory.h"

/* Run info: see control.h. */
enum {
	INFO_TIME_SHIFT = 20, /* of ns */
	INFO_CHUNKS_AT = 32,
	INFO_STREAM_AT = 38,
	NOTED_SHIFT = 16, /* of the smallest chunks whose claims a private pool notes */
};
/* Stamped by a turn's clock, and compared with one read earlier or later: not in the future by more than this. */
#define INFO_AHEAD_MAX 256u

const char *chunks_state_name(enum chunk_state state)
{
	static const char *const names[CHUNK_STATES] = { "free", "claimed", "lent", "several" };

	return names[state];
}

const char *chunks_slot_state_name(uint32_t state)
{
	static const char *const names[] = { "empty", "live", "retiring", "dead" };

	return state < wh_array_len(names) ? names[state] : "garbage";
}

uint64_t chunks_now(const struct snapshot *snapshot)
{
	uint64_t now = snapshot->taken_ns;

	if (now)
		return now;
	for (size_t i = 0; i < snapshot->n_loops; i++)
		if (snapshot->loops[i].s.phase_since_ns > now)
			now = snapshot->loops[i].s.phase_since_ns;
	return now;
}

double chunks_fragmentation(uint64_t n_free, unsigned largest)
{
	unsigned could = n_free < WH_WORD_CHUNKS ? (unsigned)n_free : WH_WORD_CHUNKS;

	return could ? 1 - (double)largest / could : 0;
}

/* ---- States ---- */

static unsigned largest_run(uint64_t free, unsigned at_least)
{
	unsigned n = at_least;

	while (n < WH_WORD_CHUNKS && wh_run_starts(free, n + 1))
		n++;
	return n;
}

static void sort_out(const struct chunks *chunks, struct chunks_slot *slot)
{
	const struct snap_slot *s = slot->slot;
	uint64_t lent[WH_SLOT_WORDS] = { 0 };

	for (size_t i = 0; i < chunks->pool->n_leases; i++)
		for (size_t k = 0; k < chunks->pool->leases[i].n_lent; k++)
			for (unsigned w = 0; w < WH_SLOT_WORDS && chunks->pool->leases[i].lent[k].slot == s->index; w++)
				lent[w] |= chunks->pool->leases[i].lent[k].words[w];
	for (uint32_t c = 0; c < s->n_chunks; c++) {
		unsigned w = c / 64;
		uint64_t bit = UINT64_C(1) << c % 64;
		enum chunk_state state = CHUNK_CLAIMED;

		/* Free goes first: whoever frees a chunk has taken its lent bit away before, or is about to be seen. */
		if (s->free[w] & bit)
			state = CHUNK_FREE;
		else if (s->counted[w] & bit)
			state = CHUNK_SEVERAL;
		else if (lent[w] & bit)
			state = CHUNK_LENT;
		slot->states[c] = (uint8_t)state;
		slot->n[state]++;
	}
	/* Only live ones are claimed from. */
	for (unsigned w = 0; w < WH_SLOT_WORDS && s->state == WH_SLOT_LIVE; w++)
		if (s->free[w])
			slot->largest = largest_run(s->free[w], slot->largest);
}

static void add_up(struct chunks *chunks, const struct chunks_slot *slot)
{
	unsigned shift = slot->slot->shift;
	struct chunks_class *class = &chunks->classes[(shift - CHUNKS_SHIFT_MIN) / 2];

	class->shift = shift;
	class->n_slots++;
	if (slot->largest > class->largest)
		class->largest = slot->largest;
	for (int i = 0; i < CHUNK_STATES; i++) {
		class->n[i] += slot->n[i];
		chunks->bytes[i] += (uint64_t)slot->n[i] << shift;
	}
}

/* ---- Runs ---- */

static void add_run(struct chunks *chunks, const struct chunks_run *run)
{
	struct chunks_run **runs = run->lease ? &chunks->runs : &chunks->claims;
	size_t *n = run->lease ? &chunks->n_runs : &chunks->n_claims;

	*runs = memory_grow(*runs, *n, sizeof *run);
	(*runs)[(*n)++] = *run;
}

/* A run's length is said at its first chunk; what does not fit the bits is taken for one chunk of unknown age. */
static uint64_t take_run(struct chunks *chunks, const struct snap_slot *s, unsigned w, uint64_t bits,
	const struct chunks_run *like, uint64_t now)
{
	unsigned b = (unsigned)__builtin_ctzll(bits), n = 1;
	struct chunks_run run = *like;
	uint64_t info, mask;

	run.first = w * 64 + b;
	info = s->info ? s->info[run.first] : 0;
	if (info) {
		uint32_t units = (uint32_t)(now >> INFO_TIME_SHIFT) - (uint32_t)info;

		n = (unsigned)(info >> INFO_CHUNKS_AT & 63) + 1;
		run.stream = (uint32_t)(info >> INFO_STREAM_AT);
		run.age_ns = units > UINT32_MAX - INFO_AHEAD_MAX ? 0 : (uint64_t)units << INFO_TIME_SHIFT;
		/* Before the first turn of any loop nobody has looked at the clock. */
		run.dated = (uint32_t)info != 0;
		if (!run.dated)
			run.age_ns = 0;
	}
	mask = n > 64 - b ? 0 : wh_run_bits(n) << b;
	if (!mask || (bits & mask) != mask) {
		n = 1;
		mask = UINT64_C(1) << b;
		run.dated = false;
		run.age_ns = 0;
		run.stream = 0;
	}
	run.n = n;
	run.bytes = (uint64_t)n << s->shift;
	run.holders = s->counts && s->counted[w] >> b & 1 ? s->counts[run.first] : 1;
	add_run(chunks, &run);
	return mask;
}

static void find_lent(struct chunks *chunks, const struct snap_slot *s, const struct snap_lent *lent,
	const struct chunks_run *like, uint64_t now)
{
	for (unsigned w = 0; w < WH_SLOT_WORDS && w * 64 < s->n_chunks; w++) {
		uint64_t bits = lent->words[w];

		if (s->n_chunks - w * 64 < 64)
			bits &= wh_run_bits(s->n_chunks - w * 64);
		while (bits)
			bits &= ~take_run(chunks, s, w, bits, like, now);
	}
}

static void find_claimed(struct chunks *chunks, const struct chunks_slot *slot, uint64_t now)
{
	const struct snap_slot *s = slot->slot;
	const struct chunks_run like = { .pool = chunks->pool, .slot = s->index };

	if (!chunks->pool->shared && s->shift < NOTED_SHIFT)
		return;
	for (unsigned w = 0; w < WH_SLOT_WORDS && w * 64 < s->n_chunks; w++) {
		uint64_t bits = 0;

		for (unsigned b = 0; b < 64 && w * 64 + b < s->n_chunks; b++)
			bits |= (uint64_t)(slot->states[w * 64 + b] == CHUNK_CLAIMED) << b;
		while (bits)
			bits &= ~take_run(chunks, s, w, bits, &like, now);
	}
}

static int older_first(const void *a, const void *b)
{
	const struct chunks_run *x = a, *y = b;

	if (x->dated != y->dated)
		return x->dated ? -1 : 1;
	if (x->age_ns != y->age_ns)
		return x->age_ns > y->age_ns ? -1 : 1;
	if (x->slot != y->slot)
		return x->slot < y->slot ? -1 : 1;
	return (x->first > y->first) - (x->first < y->first);
}

void chunks_make(const struct snapshot *snapshot, const struct snap_pool *pool, struct chunks *ret_chunks)
{
	uint64_t now = chunks_now(snapshot);

	*ret_chunks = (struct chunks){ .pool = pool, .slots = memory_new(pool->n_slots, sizeof(struct chunks_slot)) };
	for (size_t i = 0; i < pool->n_slots; i++) {
		struct chunks_slot *slot = &ret_chunks->slots[i];

		slot->slot = &pool->slots[i];
		slot->states = memory_new(pool->slots[i].n_chunks, 1);
		sort_out(ret_chunks, slot);
		add_up(ret_chunks, slot);
		find_claimed(ret_chunks, slot, now);
	}
	for (size_t i = 0; i < pool->n_leases; i++) {
		const struct snap_lease *lease = &pool->leases[i];

		for (size_t k = 0; k < lease->n_lent; k++) {
			const struct chunks_run like = {
				.pool = pool,
				.lease = lease,
				.port = snapshot_port_of_lease(snapshot, lease),
				.slot = lease->lent[k].slot,
			};
			for (size_t j = 0; j < pool->n_slots; j++)
				if (pool->slots[j].index == like.slot)
					find_lent(ret_chunks, &pool->slots[j], &lease->lent[k], &like, now);
		}
	}
	if (ret_chunks->n_runs)
		qsort(ret_chunks->runs, ret_chunks->n_runs, sizeof *ret_chunks->runs, older_first);
	if (ret_chunks->n_claims)
		qsort(ret_chunks->claims, ret_chunks->n_claims, sizeof *ret_chunks->claims, older_first);
}

void chunks_fini(struct chunks *chunks)
{
	for (size_t i = 0; i < chunks->pool->n_slots; i++)
		free(chunks->slots[i].states);
	free(chunks->slots);
	free(chunks->runs);
	free(chunks->claims);
}
