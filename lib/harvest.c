/* SPDX-License-Identifier: MIT */
/* Taking back what peers have released, and who may hold what: see pool_internal.h. */
#include <errno.h>
#include <stdlib.h>

#include "pool_internal.h"

/* ---- Holders ---- */

int wh_slot_widen(struct wh_slot *s, uint32_t n_words)
{
	if (!s->wide)
		s->wide = calloc((size_t)n_words * WH_GROUPS, sizeof(*s->wide));
	return s->wide ? 0 : -ENOMEM;
}

void wh_slot_narrow(struct wh_slot *s)
{
	free((void *)s->wide);
	s->wide = NULL;
}

void wh_holders_remove(struct wh_slot *s, unsigned word, uint32_t index)
{
	_Atomic uint64_t *holders = &s->control->holders[word];

	if (index >= 64)
		holders = &s->wide[(size_t)word * WH_GROUPS + index / 64];
	/* The summary's bit may stay: the next harvest finds nothing below it. */
	atomic_fetch_and_explicit(holders, ~(UINT64_C(1) << (index % 64)), memory_order_seq_cst);
}

/* ---- Harvesting ---- */

static uint64_t harvest_word(struct wh_full_lease *lease, unsigned slot, unsigned word)
{
	struct wharf_pool *pool = lease->pool;
	struct wh_slot *s = pool->slots[slot];
	uint64_t bits = wh_lease_harvest_word(lease, slot, word, &lease->returned_bytes);

	if (bits) {
		wh_word_free(&s->control->free[word], bits);
		pool->freed = true;
		wh_lease_tell_returned(lease, slot, bits);
	}
	return bits;
}

/* Clears a bit under which nothing is: true. Sets it again if something was put there meanwhile. */
static bool clear_holder(_Atomic uint64_t *holders, unsigned bit, const _Atomic uint64_t *below)
{
	if (atomic_load_explicit(below, memory_order_seq_cst))
		return false;
	atomic_fetch_and_explicit(holders, ~(UINT64_C(1) << bit), memory_order_seq_cst);
	if (!atomic_load_explicit(below, memory_order_seq_cst))
		return true;
	atomic_fetch_or_explicit(holders, UINT64_C(1) << bit, memory_order_seq_cst);
	return false;
}

static void harvest_group(struct wharf_pool *pool, unsigned slot, unsigned word, unsigned group,
	_Atomic uint64_t *holders)
{
	for (uint64_t rest = atomic_load_explicit(holders, memory_order_seq_cst); rest; rest &= rest - 1) {
		unsigned bit = (unsigned)__builtin_ctzll(rest), index = group * 64 + bit;
		struct wh_full_lease *lease = index < pool->leases_size ? pool->leases[index] : NULL;
		if (!lease || !wh_lease_has_map(lease, slot))
			continue;
		harvest_word(lease, slot, word);
		clear_holder(holders, bit, &lease->slots[slot].lent[word]);
	}
}

void wh_slot_harvest(struct wharf_pool *pool, unsigned slot)
{
	struct wh_slot *s = pool->slots[slot];

	for (unsigned w = 0; w < s->n_words; w++) {
		if (!pool->shared) {
			if (pool->leases[0] && wh_lease_has_map(pool->leases[0], slot))
				harvest_word(pool->leases[0], slot, w);
			continue;
		}
		harvest_group(pool, slot, w, 0, &s->control->holders[w]);
		if (wh_likely(!s->wide))
			continue;
		_Atomic uint64_t *wide = s->wide + (size_t)w * WH_GROUPS;
		for (uint64_t rest = atomic_load_explicit(wide, memory_order_seq_cst); rest; rest &= rest - 1) {
			unsigned group = (unsigned)__builtin_ctzll(rest);
			harvest_group(pool, slot, w, group, &wide[group]);
			clear_holder(wide, group, &wide[group]);
		}
	}
}

void wh_pool_harvest(struct wharf_pool *pool)
{
	for (unsigned i = 0; i < pool->n_slots; i++)
		wh_slot_harvest(pool, i);
}

uint64_t wh_lease_harvest_all(struct wh_full_lease *lease)
{
	const struct wharf_pool *pool = lease->pool;
	uint64_t bytes = 0;

	for (unsigned i = 0; i < lease->n_slots; i++) {
		if (!lease->slots[i].map)
			continue;
		const struct wh_slot *s = pool->slots[i];
		for (unsigned w = 0; w < s->n_words; w++)
			bytes += (uint64_t)wh_bits_count(harvest_word(lease, i, w)) << wh_class_shift(s->class);
	}
	return bytes;
}

int64_t wh_lease_harvest(struct wh_lease *hot)
{
	struct wh_full_lease *lease = wh_full(hot);
	uint64_t bytes;

	wh_pool_lock(lease->pool);
	if (lease->watched)
		wh_lease_mark_again(lease);
	bytes = wh_lease_harvest_all(lease);
	wh_pool_unlock(lease->pool);
	return wh_lease_poisoned(hot) ? -EPROTO : (int64_t)bytes;
}

/* ---- Looking ---- */

static uint64_t lent_of(const struct wharf_pool *pool, uint32_t index, unsigned slot, unsigned word)
{
	const struct wh_full_lease *lease = index < pool->leases_size ? pool->leases[index] : NULL;
	const struct wh_lease_slot *ls = lease ? wh_lease_slot(lease, slot) : NULL;

	return ls && ls->lent ? atomic_load_explicit(&ls->lent[word], memory_order_relaxed) : 0;
}

static uint64_t lent_of_group(const struct wharf_pool *pool, unsigned group, uint64_t holders, unsigned slot,
	unsigned word)
{
	uint64_t bits = 0;

	for (; holders; holders &= holders - 1)
		bits |= lent_of(pool, group * 64 + (unsigned)__builtin_ctzll(holders), slot, word);
	return bits;
}

uint64_t wh_slot_lent(const struct wharf_pool *pool, unsigned slot, unsigned word)
{
	const struct wh_slot *s = pool->slots[slot];
	uint64_t bits;

	if (!pool->shared)
		return lent_of(pool, 0, slot, word);
	bits = lent_of_group(pool, 0, atomic_load_explicit(&s->control->holders[word], memory_order_seq_cst), slot, word);
	for (unsigned group = 1; s->wide && group < WH_GROUPS; group++)
		bits |= lent_of_group(pool, group, atomic_load_explicit(&s->wide[word * WH_GROUPS + group],
			memory_order_seq_cst), slot, word);
	return bits;
}
