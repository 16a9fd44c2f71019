/* SPDX-License-Identifier: MIT */
/*
 * Claiming runs: next fit in a window.
 *
 * The cursor goes round the words of a class, and each word that it reaches is harvested first: a chunk that the
 * other CPU has just read is the worst one to write next, so the oldest comes first. But a pool that once grew large
 * must not be walked whole for ever: the cursor stays in a window, the first words of the class. A word is added only
 * after a lap found no room. When a lap finds more than half of it free the window shrinks, and segments outside it
 * are retired after some laps.
 */
#include <errno.h>
#include <string.h>

#include "clock.h"
#include "pool_internal.h"

enum {
	/* Windows of all classes of a pool together do not shrink below: what the prototype had in flight, with its
	 * frames of 1 MiB of bulk data, a few times over. Guessed, never tuned. */
	WINDOW_BYTES = 4 << 20,
	IDLE_LAPS = 16, /* guessed, never tuned */
};

/* A lap may take 50 us, and a segment that is made again costs 3 us a page: idle is what is idle for a while. */
uint64_t wh_pool_idle_ns = 2000000000;

static uint64_t now_ns(void) { return wh_clock_ns(CLOCK_MONOTONIC_COARSE); }

static bool has_slot(const struct wh_class *class, unsigned slot)
{
	return atomic_load_explicit(&class->slots[slot / 64], memory_order_acquire) >> (slot % 64) & 1;
}

static unsigned next_slot(const struct wh_class *class, unsigned slot)
{
	for (unsigned i = slot / 64; i < WH_MAP_WORDS; i++) { /* slot may be WH_SLOTS_MAX */
		uint64_t map = atomic_load_explicit(&class->slots[i], memory_order_acquire);
		if (i == slot / 64)
			map &= ~UINT64_C(0) << (slot % 64);
		if (map)
			return i * 64 + (unsigned)__builtin_ctzll(map);
	}
	return WH_SLOTS_MAX;
}

/* The word after `at`, inside the window or not. */
static uint32_t next_word(const struct wharf_pool *pool, const struct wh_class *class, uint32_t at)
{
	unsigned slot = at == WH_NOWHERE ? WH_SLOTS_MAX : at >> 8;
	if (slot < WH_SLOTS_MAX && has_slot(class, slot) &&
	    (at & 255) + 1 < atomic_load_explicit(&pool->slots[slot]->n_words, memory_order_relaxed))
		return at + 1;
	slot = next_slot(class, at == WH_NOWHERE ? 0 : slot + 1);
	return slot < WH_SLOTS_MAX ? slot << 8 : WH_NOWHERE;
}

uint32_t wh_class_next(const struct wharf_pool *pool, const struct wh_class *class, uint32_t at, bool *ret_wrapped)
{
	uint32_t end = atomic_load_explicit(&class->window, memory_order_relaxed);
	if (at != WH_NOWHERE) {
		at = next_word(pool, class, at);
		if (at < end)
			return at;
	}
	*ret_wrapped = true;
	at = next_word(pool, class, WH_NOWHERE);
	return at < end ? at : WH_NOWHERE;
}

bool wh_pool_run_of(const struct wharf_pool *pool, size_t size, unsigned *ret_class, unsigned *ret_n)
{
	if (size > WH_SIZE_MAX || size > pool->bytes_max)
		return false;
	unsigned class = wh_class_of(size), n = wh_chunks_of(size, class);
	/* In a pool hardly larger than the request: bytes_max was rounded up so that a finer class fits. */
	while ((uint64_t)n << wh_class_shift(class) > pool->bytes_max && class > 0 &&
	    wh_chunks_of(size, class - 1) <= WH_RUN_CHUNKS_MAX)
		n = wh_chunks_of(size, --class);
	*ret_class = class;
	*ret_n = n;
	return (uint64_t)n << wh_class_shift(class) <= pool->bytes_max;
}

static _Atomic uint64_t *free_word(const struct wharf_pool *pool, uint32_t at)
{
	return &pool->slots[at >> 8]->control->free[at & 255];
}

bool wh_pool_has_run(const struct wharf_pool *pool, unsigned class, unsigned n)
{
	const struct wh_class *c = &pool->classes[class];
	for (uint32_t at = next_word(pool, c, WH_NOWHERE); at != WH_NOWHERE; at = next_word(pool, c, at))
		if (wh_run_starts(atomic_load_explicit(free_word(pool, at), memory_order_seq_cst), n))
			return true;
	return false;
}

/* ---- The window ---- */

/* Adds the next word to the window: WH_NOWHERE if the class has no more. Under the lock. */
static uint32_t extend_window(struct wharf_pool *pool, struct wh_class *class)
{
	uint32_t end = atomic_load_explicit(&class->window, memory_order_relaxed);
	uint32_t at = next_word(pool, class, end ? end - 1 : WH_NOWHERE);
	if (at != WH_NOWHERE)
		atomic_store_explicit(&class->window, at + 1, memory_order_relaxed);
	return at;
}

static unsigned window_words(const struct wharf_pool *pool, const struct wh_class *class)
{
	uint32_t end = atomic_load_explicit(&class->window, memory_order_relaxed);
	unsigned n = 0;
	for (uint32_t at = next_word(pool, class, WH_NOWHERE); at < end; at = next_word(pool, class, at))
		n++;
	return n;
}

static uint64_t window_bytes(const struct wharf_pool *pool)
{
	uint64_t bytes = 0;
	for (unsigned c = 0; c < WH_CLASSES; c++) {
		const struct wh_class *class = &pool->classes[c];
		uint32_t end = atomic_load_explicit(&class->window, memory_order_relaxed);
		for (uint32_t at = next_word(pool, class, WH_NOWHERE); at < end; at = next_word(pool, class, at)) {
			uint64_t all = wh_slot_word(pool->slots[at >> 8], at & 255);
			bytes += (uint64_t)wh_bits_count(all) << wh_class_shift(c);
		}
	}
	return bytes;
}

static void shrink_window(struct wharf_pool *pool, struct wh_class *class)
{
	unsigned words = window_words(pool, class);
	if (words < 2 || window_bytes(pool) <= WINDOW_BYTES)
		return;
	uint32_t at = next_word(pool, class, WH_NOWHERE);
	for (words -= words / 8 + 1; words > 1; words--)
		at = next_word(pool, class, at);
	atomic_store_explicit(&class->window, at + 1, memory_order_relaxed);
}

static void retire_idle(struct wharf_pool *pool, struct wh_class *class)
{
	uint32_t end = atomic_load_explicit(&class->window, memory_order_relaxed);
	for (unsigned i = next_slot(class, 0); i < WH_SLOTS_MAX; i = next_slot(class, i + 1)) {
		struct wh_slot *s = pool->slots[i];
		if (i << 8 < end || s->keep) {
			s->idle_laps = 0;
			continue;
		}
		if (s->idle_laps == 0)
			s->idle_since_ns = now_ns();
		if (s->idle_laps < IDLE_LAPS)
			s->idle_laps++;
		if (s->idle_laps == IDLE_LAPS && now_ns() - s->idle_since_ns >= wh_pool_idle_ns) {
			s->idle_laps = 0;
			wh_slot_harvest(pool, i);
			if (wh_slot_all_free(s))
				wh_slot_retire(pool, i);
		}
	}
}

/* A lap is over: under the lock. */
static void end_lap(struct wharf_pool *pool, struct wh_class *class, bool mostly_free)
{
	if (mostly_free)
		shrink_window(pool, class);
	retire_idle(pool, class);
}

void wh_pool_upkeep(struct wharf_pool *pool)
{
	if (pool->bytes <= WINDOW_BYTES)
		return;
	for (unsigned c = 0; c < WH_CLASSES; c++) {
		struct wh_class *class = &pool->classes[c];
		uint32_t laps = atomic_load_explicit(&class->laps, memory_order_relaxed);
		if (laps == class->laps_seen)
			end_lap(pool, class, true);
		class->laps_seen = laps;
	}
}

/* ---- By compare-and-swap: any thread, any class ---- */

/*
 * lease: the caller's own, if it is the only one of the pool and this is its loop's thread; its releases are taken on
 * the way.
 */
static bool try_word(struct wharf_pool *pool, struct wh_full_lease *lease, unsigned class, unsigned n, uint32_t at,
	uint64_t *ret_place)
{
	unsigned slot = at >> 8, word = at & 255;
	struct wh_slot *s = pool->slots[slot];
	_Atomic uint64_t *free = free_word(pool, at);
	int first = wh_word_claim(free, n);

	if (first < 0 && lease && wh_lease_has_map(lease, slot)) {
		uint64_t bits = wh_lease_harvest_word(lease, slot, word, &lease->returned_here);
		if (bits) {
			wh_lease_tell_returned(lease, slot, bits);
			wh_word_free(free, bits);
			first = wh_word_claim(free, n);
		}
	}
	if (first < 0)
		return false;
	/* The chunks pin the slot: only now is it certain what it is. */
	if (wh_unlikely(wh_slot_state(s) != WH_SLOT_LIVE || s->class != class)) {
		wh_word_free(free, wh_run_bits(n) << first);
		wh_pool_freed(pool);
		return false;
	}
	*ret_place = wh_place((uint16_t)slot, word * WH_WORD_CHUNKS + (unsigned)first, n);
	atomic_store_explicit(&s->info[wh_place_first(*ret_place)],
		wh_run_info(*ret_place, 0, atomic_load_explicit(&wh_pool_now, memory_order_relaxed)), memory_order_relaxed);
	return true;
}

/* One lap from the word where the last claim was. */
static bool walk(struct wharf_pool *pool, struct wh_full_lease *lease, unsigned class, unsigned n, uint64_t *ret_place)
{
	struct wh_class *c = &pool->classes[class];
	uint32_t start = atomic_load_explicit(&c->cursor, memory_order_relaxed), at = start;
	bool valid = start < atomic_load_explicit(&c->window, memory_order_relaxed) && has_slot(c, start >> 8);
	bool wrapped = !valid, ignored;

	if (!valid)
		at = wh_class_next(pool, c, WH_NOWHERE, &ignored);
	while (at != WH_NOWHERE) {
		bool begins_again = false;
		if (try_word(pool, lease, class, n, at, ret_place)) {
			if (at != start)
				atomic_store_explicit(&c->cursor, at, memory_order_relaxed);
			return true;
		}
		at = wh_class_next(pool, c, at, &begins_again);
		if (begins_again && wrapped)
			break;
		wrapped |= begins_again;
		if (wrapped && valid && at >= start)
			break;
	}
	return false;
}

/* ---- Private words: the loop's thread, small classes ---- */

static void give_back_word(struct wharf_pool *pool, unsigned class)
{
	struct wh_local *local = &pool->local[class];
	uint64_t bits = atomic_load_explicit(&local->bits, memory_order_relaxed), place;

	if (!bits)
		return;
	place = atomic_load_explicit(&local->where, memory_order_relaxed);
	/* In this order, so that whoever sees no bits here sees them there. */
	wh_word_free(&pool->slots[wh_place_slot(place)]->control->free[wh_place_first(place) / WH_WORD_CHUNKS], bits);
	atomic_store_explicit(&local->bits, 0, memory_order_release);
}

void wh_pool_give_back(struct wharf_pool *pool)
{
	for (unsigned c = 0; pool->local != wh_no_local && c < WH_CLASS_LOCAL; c++) {
		if (atomic_load_explicit(&pool->local[c].bits, memory_order_relaxed))
			pool->freed = true;
		give_back_word(pool, c);
		atomic_store_explicit(&pool->local[c].where, WH_PLACE_NONE, memory_order_relaxed);
	}
}

bool wh_pool_local_idle(const struct wharf_pool *pool)
{
	uint64_t bits = 0;
	for (unsigned c = 0; c < WH_CLASS_LOCAL; c++)
		bits |= atomic_load_explicit(&pool->local[c].bits, memory_order_seq_cst);
	return !bits;
}

static void lap_over(struct wharf_pool *pool, struct wh_class *c)
{
	bool mostly_free = c->lap_free * 2 > c->lap_chunks;

	c->lap_free = c->lap_chunks = 0;
	atomic_store_explicit(&c->laps, atomic_load_explicit(&c->laps, memory_order_relaxed) + 1, memory_order_relaxed);
	if (wh_likely(atomic_load_explicit(&pool->control->bytes, memory_order_relaxed) <= WINDOW_BYTES))
		return;
	wh_pool_lock(pool);
	end_lap(pool, c, mostly_free);
	wh_pool_unlock(pool);
}

bool wh_pool_make_local(struct wharf_pool *pool)
{
	void *local;

	if (wh_likely(pool->local != wh_no_local))
		return true;
	if (wh_control_alloc(sizeof(wh_no_local), &local))
		return false;
	memcpy(local, wh_no_local, sizeof(wh_no_local));
	wh_pool_lock(pool);
	pool->local = local;
	atomic_store_explicit(&pool->control->local, wh_control_position(local), memory_order_release);
	wh_pool_unlock(pool);
	return true;
}

/* Goes on to the next word with room for n, and takes it whole. False: a lap found none. */
static bool refill(struct wharf_pool *pool, unsigned class, unsigned n)
{
	struct wh_full_lease *lease = pool->local_lease;

	if (!atomic_load_explicit(&pool->grown, memory_order_acquire))
		return false;
	struct wh_class *c = &pool->classes[class];
	struct wh_local *local = &pool->local[class];
	uint32_t start = c->at, at = start;
	unsigned laps = 0;
	bool again = c->again;

	give_back_word(pool, class);
	atomic_store_explicit(&local->where, WH_PLACE_NONE, memory_order_relaxed);
	c->again = false;
	for (;;) {
		bool wrapped = false;
		if (!again || at == WH_NOWHERE || !has_slot(c, at >> 8))
			at = wh_class_next(pool, c, at, &wrapped);
		again = false;
		if (at == WH_NOWHERE)
			return false;
		if (wrapped) {
			if (laps++)
				return false;
			lap_over(pool, c);
			/* The window may have shrunk, the word's segment may be gone. */
			if (!has_slot(c, at >> 8))
				continue;
		}
		unsigned slot = at >> 8, word = at & 255;
		struct wh_slot *s = pool->slots[slot];
		_Atomic uint64_t *free = free_word(pool, at);
		uint64_t bits = 0;
		if (wh_lease_has_map(lease, slot))
			bits = wh_lease_harvest_word(lease, slot, word, &lease->returned_here);
		wh_lease_tell_returned(lease, slot, bits);
		c->lap_chunks += WH_WORD_CHUNKS;
		if (wh_run_starts(bits | atomic_load_explicit(free, memory_order_relaxed), n))
			bits |= wh_word_take(free);
		if (wh_run_starts(bits, n)) {
			wh_assert_full(wh_slot_state(s) == WH_SLOT_LIVE && s->class == class);
			c->at = at;
			c->lap_free += wh_bits_count(bits);
			size_t from = (size_t)word * WH_WORD_CHUNKS;
			local->data = (uint64_t)(uintptr_t)(s->base + (from << wh_class_shift(class)));
			atomic_store_explicit(&local->where, wh_place((uint16_t)slot, (uint32_t)from, 0),
				memory_order_relaxed);
			/* Before the look at `attention` that follows in wh_pool_claim. */
			atomic_store_explicit(&local->bits, bits, memory_order_seq_cst);
			return true;
		}
		if (bits)
			wh_word_free(free, bits);
		if (laps && at >= start)
			return false;
	}
}

static uint64_t carve(struct wh_local *local, unsigned n)
{
	uint64_t bits = atomic_load_explicit(&local->bits, memory_order_relaxed);
	unsigned first = (unsigned)__builtin_ctzll(wh_run_starts(bits, n));

	atomic_store_explicit(&local->bits, bits & ~(wh_run_bits(n) << first), memory_order_relaxed);
	return atomic_load_explicit(&local->where, memory_order_relaxed) + wh_place(0, first, n);
}

/* ---- All together ---- */

int wh_pool_claim_locked(struct wharf_pool *pool, unsigned class, unsigned n, bool looked, uint64_t *ret_place)
{
	struct wh_full_lease *lease = wh_pool_local(pool) ? pool->local_lease : NULL;
	struct wh_class *c;
	unsigned slot;
	uint32_t at;
	int error = wh_pool_make_tables(pool);

	if (error)
		return error;
	c = &pool->classes[class];
	if (lease) {
		looked &= wh_pool_local_idle(pool);
		wh_pool_give_back(pool);
	} else {
		wh_pool_harvest(pool);
		looked = false;
	}
	for (;;) {
		if (!looked && walk(pool, lease, class, n, ret_place))
			goto found;
		while ((at = extend_window(pool, c)) != WH_NOWHERE)
			if (try_word(pool, lease, class, n, at, ret_place)) {
				atomic_store_explicit(&c->cursor, at, memory_order_relaxed);
				/* More at once when the window is large, or every word would cost a lap of it. */
				for (unsigned more = window_words(pool, c) / 8; more > 0; more--)
					extend_window(pool, c);
				goto found;
			}
		error = wh_pool_grow(pool, class, n, 0, pool->flags, &slot);
		/* Before segments go: on the way, only the class was harvested. */
		if (error == -EAGAIN && lease)
			wh_pool_harvest(pool);
		if (error && (error != -EAGAIN || !wh_pool_make_room(pool, class, n, false)))
			return error;
		/* A slot used again may lie inside the window. */
		looked = !error && slot << 8 >= atomic_load_explicit(&c->window, memory_order_relaxed);
	}
found:
	if (lease && class < WH_CLASS_LOCAL) {
		c->at = (uint32_t)wh_place_slot(*ret_place) << 8 | wh_place_first(*ret_place) / WH_WORD_CHUNKS;
		c->again = true;
	}
	return 0;
}

int wh_pool_claim(struct wharf_pool *pool, unsigned class, unsigned n, bool quietly, uint64_t *ret_place)
{
	bool local = wh_pool_local(pool);
	struct wh_full_lease *lease = local ? pool->local_lease : NULL;
	int error;

	if (class < WH_CLASS_LOCAL && wh_pool_fast(pool) && wh_pool_make_local(pool)) {
		struct wh_local *word = &pool->local[class];
		if (wh_run_starts(atomic_load_explicit(&word->bits, memory_order_relaxed), n) ||
		    refill(pool, class, n)) {
			*ret_place = carve(word, n);
			/* See pool_internal.h: either we see that others want the rest, or they see that we have it. */
			if (wh_unlikely(wh_pool_wanted(pool))) {
				wh_pool_lock(pool);
				wh_pool_give_back(pool);
				pool->freed = true;
				wh_pool_unlock(pool);
			}
			wh_pool_run_kicks(pool);
			return 0;
		}
	} else if (atomic_load_explicit(&pool->grown, memory_order_acquire) &&
		walk(pool, lease, class, n, ret_place)) {
		if (lease) {
			wh_pool_freed(pool);
			wh_pool_run_kicks(pool);
		}
		return 0;
	}

	wh_pool_lock(pool);
	/* Harvested on the way, and seen by nobody who wants it. */
	if (local && wh_pool_wanted(pool))
		pool->freed = true;
	error = wh_pool_claim_locked(pool, class, n, local, ret_place);
	if (error == -EAGAIN && !quietly && pool->n_leases) {
		if (wh_pool_want(pool, WH_FAILED))
			error = wh_pool_claim_locked(pool, class, n, false, ret_place);
		if (error == -EAGAIN)
			wh_pool_owe(pool, class, n);
		wh_pool_unwant(pool);
	}
	wh_pool_unlock(pool);
	return error;
}
