/* SPDX-License-Identifier: MIT */
/* What a lease's peer knows of the pool: segments announced to it, and taken back from it; and what it is able to map. */
#include <errno.h>
#include <unistd.h>

#include "pool_internal.h"

void wh_lease_limit(struct wh_lease *lease, uint64_t bytes)
{
	struct wharf_pool *pool = wh_full(lease)->pool;

	wh_pool_lock(pool);
	if (!pool->shared && bytes < pool->bytes_max)
		pool->bytes_max = bytes < pool->bytes ? pool->bytes : bytes;
	wh_pool_unlock(pool);
}

void wh_lease_forbid_huge(struct wh_lease *lease)
{
	struct wharf_pool *pool = wh_full(lease)->pool;

	wh_pool_lock(pool);
	if (!pool->shared)
		pool->flags &= ~(uint32_t)WHARF_HUGE;
	wh_pool_unlock(pool);
}

bool wh_lease_slot_huge(const struct wh_lease *lease, uint16_t slot)
{
	return wh_lease_slot_has(wh_full_const(lease), slot, WH_SLOT_KEPT) &&
		wh_full_const(lease)->pool->slots[slot]->segment.huge;
}

uint64_t wh_lease_slot_bytes(const struct wh_lease *lease, uint16_t slot)
{
	const struct wh_full_lease *full = wh_full_const(lease);
	if (!wh_lease_slot_has(full, slot, WH_SLOT_KEPT))
		return 0;
	const struct wh_slot *s = full->pool->slots[slot];
	return (uint64_t)s->n_chunks << wh_class_shift(s->class);
}

/* Under the lock. */
static int make_map(struct wh_full_lease *lease, unsigned slot)
{
	struct wh_lease_slot *ls = &lease->slots[slot];
	int error;

	if (ls->map)
		return 0;
	error = wh_release_map_open(lease->pool->name, slot, WH_SLOT_WORDS, &ls->map, &ls->release_fd);
	if (error)
		return error;
	lease->open_fds++;
	/* Somebody waits already, and has marked the maps that there were. */
	if (wh_pool_wanted(lease->pool) || lease->watched)
		atomic_store_explicit(&ls->map->wanted, 1, memory_order_relaxed);
	return 0;
}

int wh_lease_prepare(struct wh_full_lease *lease, unsigned class)
{
	struct wharf_pool *pool = lease->pool;
	int error = 0;

	for (unsigned i = 0; i < pool->n_slots && !error; i++) {
		if (wh_slot_state(pool->slots[i]) != WH_SLOT_LIVE || pool->slots[i]->class != class)
			continue;
		error = wh_lease_make_lent(lease, i);
		if (!error)
			error = make_map(lease, i);
	}
	return error;
}

int wh_lease_announcement(struct wh_lease *hot, uint16_t slot, struct wh_announcement *ret_announcement)
{
	struct wh_full_lease *lease = wh_full(hot);
	struct wharf_pool *pool = lease->pool;
	struct wh_lease_slot *ls = wh_lease_slot(lease, slot);
	struct wh_slot *s;
	int error;

	if (!wh_lease_slot_has(lease, slot, WH_SLOT_USED))
		return -EPROTO;
	s = pool->slots[slot];
	wh_pool_lock(pool);
	error = make_map(lease, slot);
	if (!error && (ls->release_fd < 0 || s->segment.fd < 0))
		error = -EPROTO;
	if (!error) {
		wh_lease_slot_set(lease, slot, WH_SLOT_PINNED);
		*ret_announcement = (struct wh_announcement){
			.slot = slot,
			.chunk_shift = (uint8_t)wh_class_shift(s->class),
			.huge = s->segment.huge,
			.n_chunks = s->n_chunks,
			.segment_fd = s->segment.fd,
			.release_fd = ls->release_fd,
		};
	}
	wh_pool_unlock(pool);
	return error;
}

void wh_lease_announced(struct wh_lease *hot, uint16_t slot, bool sent)
{
	struct wh_full_lease *lease = wh_full(hot);

	wh_pool_lock(lease->pool);
	wh_lease_slot_set(lease, slot, WH_SLOT_KNOWN);
	if (sent)
		wh_lease_slot_clear(lease, slot, WH_SLOT_PINNED);
	wh_pool_unlock(lease->pool);
}

void wh_lease_slot_set(struct wh_full_lease *lease, unsigned slot, unsigned flags)
{
	struct wh_lease_slot *ls = &lease->slots[slot];
	struct wh_slot *s = lease->pool->slots[slot];

	s->n_leases += !(ls->flags & WH_SLOT_KEPT) && flags & WH_SLOT_KEPT ? 1 : 0;
	s->n_pinned += flags & ~ls->flags & WH_SLOT_PINNED ? 1 : 0;
	ls->flags |= (uint8_t)flags;
	if (flags & WH_SLOT_KNOWN)
		lease->hot.known[slot / 64] |= UINT64_C(1) << (slot % 64);
}

void wh_lease_slot_clear(struct wh_full_lease *lease, unsigned slot, unsigned flags)
{
	struct wh_lease_slot *ls = &lease->slots[slot];
	struct wh_slot *s = lease->pool->slots[slot];
	bool kept = ls->flags & WH_SLOT_KEPT;

	s->n_pinned -= flags & ls->flags & WH_SLOT_PINNED ? 1 : 0;
	ls->flags &= (uint8_t)~flags;
	s->n_leases -= kept && !(ls->flags & WH_SLOT_KEPT) ? 1 : 0;
	if (flags & WH_SLOT_KNOWN)
		lease->hot.known[slot / 64] &= ~(UINT64_C(1) << (slot % 64));
}

/* The peer has returned chunks of the slot, harvested or not: it has mapped it. */
static bool has_proof(const struct wh_full_lease *lease, unsigned slot)
{
	const struct wh_lease_slot *ls = &lease->slots[slot];

	if (atomic_load_explicit(&ls->proven, memory_order_relaxed))
		return true;
	for (unsigned w = 0; w < lease->pool->slots[slot]->n_words; w++)
		if (atomic_load_explicit(&ls->map->words[w], memory_order_relaxed))
			return true;
	return false;
}

int wh_lease_lost(struct wh_lease *hot, uint16_t slot)
{
	struct wh_full_lease *lease = wh_full(hot);
	const struct wh_lease_slot *ls = wh_lease_slot(lease, slot);
	int result = 1;

	wh_pool_lock(lease->pool);
	/* Pinned: it has not left yet, and the descriptors must stay until it has. */
	if (!ls || !(ls->flags & WH_SLOT_KNOWN) || ls->flags & WH_SLOT_PINNED)
		result = -EPROTO;
	else if (ls->flags & WH_SLOT_RETIRE_SENT)
		result = 0;
	else if (ls->release_fd < 0 || has_proof(lease, slot))
		result = -EPROTO;
	wh_pool_unlock(lease->pool);
	return result;
}

/* Descriptors are few: those of slots that the peer has mapped are of no more use. */
void wh_lease_close_fds(struct wh_full_lease *lease)
{
	struct wharf_pool *pool = lease->pool;

	for (unsigned i = 0; i < lease->n_slots && lease->open_fds; i++) {
		struct wh_lease_slot *ls = &lease->slots[i];
		if (ls->release_fd < 0 || ls->flags & WH_SLOT_PINNED || !has_proof(lease, i))
			continue;
		atomic_store_explicit(&ls->proven, true, memory_order_relaxed);
		close(ls->release_fd);
		ls->release_fd = -1;
		lease->open_fds--;
		if (!pool->shared)
			wh_segment_close_fd(&pool->slots[i]->segment);
	}
}

bool wh_lease_next_retire(struct wh_lease *hot, uint16_t *ret_slot)
{
	struct wh_full_lease *lease = wh_full(hot);
	struct wharf_pool *pool = lease->pool;
	bool found = false;

	/* The port has heard: a port that is closing asks for nothing else, and must hear of the next slot, too. */
	atomic_store_explicit(&lease->kicked, false, memory_order_seq_cst);
	if (wh_likely(!atomic_load_explicit(&pool->n_retiring, memory_order_seq_cst)))
		return false;
	wh_pool_lock(pool);
	for (unsigned i = 0; i < lease->n_slots && i < pool->n_slots && !found; i++) {
		if (wh_slot_state(pool->slots[i]) != WH_SLOT_RETIRING)
			continue;
		if (lease->slots[i].flags & WH_SLOT_USED) {
			wh_lease_slot_clear(lease, i, WH_SLOT_USED);
			if (wh_place_slot(hot->word) == i)
				hot->word = WH_PLACE_NONE;
		}
		if (!(lease->slots[i].flags & WH_SLOT_KNOWN)) {
			wh_slot_finish(pool, i);
		} else if (!(lease->slots[i].flags & WH_SLOT_RETIRE_SENT)) {
			wh_lease_slot_set(lease, i, WH_SLOT_RETIRE_SENT);
			*ret_slot = (uint16_t)i;
			found = true;
		}
	}
	wh_pool_unlock(pool);
	return found;
}

int wh_lease_retired(struct wh_lease *hot, uint16_t slot)
{
	struct wh_full_lease *lease = wh_full(hot);

	if (!wh_lease_slot_has(lease, slot, WH_SLOT_RETIRE_SENT))
		return -EPROTO;
	wh_pool_lock(lease->pool);
	wh_lease_slot_clear(lease, slot, WH_SLOT_RETIRE_SENT | WH_SLOT_KNOWN);
	wh_lease_forget_slot(lease, slot);
	wh_slot_finish(lease->pool, slot);
	wh_pool_unlock(lease->pool);
	return 0;
}
