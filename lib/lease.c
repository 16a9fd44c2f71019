/* SPDX-License-Identifier: MIT */
/* What one port holds of a pool: lent bits, release maps, what its peer was told. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pool_internal.h"
#include "wharf.h"

enum {
	CLOSE_FDS_TURNS = 16,  /* guessed, never tuned */
	UPKEEP_TURNS = 1024,   /* guessed, never tuned */
	SLOTS_FIRST = 16,      /* of a lease's table: one unit of control memory */
	LEASES_FIRST = 8,      /* of a pool's table, once there are two */
	LENT_BYTES = WH_SLOT_WORDS * sizeof(uint64_t),
};

_Atomic uint32_t wh_pool_now;

/* ---- Life ---- */

static int make(struct wharf_pool *pool, struct wh_full_lease **ret_lease)
{
	struct wh_full_lease *lease = calloc(1, sizeof(*lease));
	void *control;
	int error;

	if (!lease)
		return -ENOMEM;
	error = wh_control_alloc(sizeof(*lease->control), &control);
	if (error) {
		free(lease);
		return error;
	}
	lease->control = control;
	lease->pool = pool;
	lease->hot.pool = (uint64_t)(uintptr_t)pool;
	lease->hot.word = WH_PLACE_NONE;
	*ret_lease = lease;
	return 0;
}

static int grow_leases(struct wharf_pool *pool)
{
	uint32_t size = pool->leases_size < LEASES_FIRST ? LEASES_FIRST : pool->leases_size * 2;
	struct wh_full_lease **leases = calloc(size, sizeof(struct wh_full_lease *)), **had = pool->leases;

	if (!leases)
		return -ENOMEM;
	memcpy(leases, had, pool->leases_size * sizeof(*leases));
	pool->leases = leases;
	pool->leases_size = size;
	if (had != &pool->first_lease)
		free(had);
	return 0;
}

static int widen(struct wharf_pool *pool)
{
	for (unsigned i = 0; i < pool->n_slots; i++)
		if (pool->slots[i]->n_words && wh_slot_widen(pool->slots[i], pool->slots[i]->n_words))
			return -ENOMEM;
	pool->wide = true;
	return 0;
}

/* Under the lock. Finds the lowest free index: leases beyond the first 64 cost more. */
static int join(struct wharf_pool *pool, struct wh_full_lease *lease)
{
	uint32_t index = 0;

	if (!pool->shared && pool->n_leases)
		return -EXDEV;
	while (index < pool->leases_size && pool->leases[index])
		index++;
	if (index == WH_LEASES_MAX)
		return -EUSERS;
	if ((index == pool->leases_size && grow_leases(pool)) || (index >= 64 && !pool->wide && widen(pool)))
		return -ENOMEM;
	lease->index = index;
	lease->control->index = index;
	for (unsigned c = 0; pool->classes && c < WH_CLASSES; c++)
		lease->told[c] = pool->classes[c].asked;
	pool->leases[index] = lease;
	pool->n_leases++;
	pool->had_lease = true;
	return 0;
}

static void leave(struct wharf_pool *pool, struct wh_full_lease *lease)
{
	for (unsigned c = 0; pool->classes && c < WH_CLASSES; c++)
		pool->classes[c].n_owed -= lease->told[c] != pool->classes[c].asked;
	pool->n_marked -= lease->wanted;
	pool->leases[lease->index] = NULL;
	pool->n_leases--;
	wh_pool_forget_kick(pool, lease);
}

int wh_pool_attach(struct wharf_pool *pool, const void *loop_id, void (*kick)(void *owner), void *owner,
	struct wh_lease **ret_lease)
{
	struct wh_full_lease *lease;
	int error;

	if (wh_forked())
		return -ECHILD;
	error = make(pool, &lease);
	if (error)
		return error;
	lease->kick = kick;
	lease->owner = owner;
	wh_pool_lock(pool);
	error = join(pool, lease);
	if (error) {
		wh_pool_unlock(pool);
		wh_control_free(lease->control, sizeof(*lease->control));
		free(lease);
		return error;
	}
	wh_control_add_lease(pool->control, lease->control);
	if (!pool->shared && loop_id) {
		pool->local_lease = lease;
		for (unsigned c = 0; pool->classes && c < WH_CLASS_LOCAL; c++)
			pool->classes[c].at = WH_NOWHERE;
		atomic_store_explicit(&pool->local_loop, loop_id, memory_order_relaxed);
		wh_pool_unwant(pool);
	}
	wh_pool_unlock(pool);
	wharf_pool_ref(pool);
	*ret_lease = &lease->hot;
	return 0;
}

void wh_lease_forget_slot(struct wh_full_lease *lease, unsigned slot)
{
	struct wh_lease_slot *ls = wh_lease_slot(lease, slot);

	if (!ls || !ls->map)
		return;
	wh_release_map_close(ls->map, WH_SLOT_WORDS);
	ls->map = NULL;
	atomic_store_explicit(&ls->proven, false, memory_order_relaxed);
	if (ls->release_fd >= 0) {
		close(ls->release_fd);
		ls->release_fd = -1;
		lease->open_fds--;
	}
}

/* Everything of one slot back to the pool; a private pool's slot that the peer may read is not used again. */
static void settle_slot(struct wh_full_lease *lease, unsigned slot)
{
	struct wharf_pool *pool = lease->pool;
	struct wh_lease_slot *ls = &lease->slots[slot];
	struct wh_slot *s = pool->slots[slot];

	if (!ls->flags && !ls->lent)
		return;
	if (!pool->shared && ls->flags & (WH_SLOT_KNOWN | WH_SLOT_PINNED) && wh_slot_state(s) == WH_SLOT_LIVE)
		wh_slot_kill(pool, slot);
	for (unsigned w = 0; ls->lent && w < WH_SLOT_WORDS; w++) {
		uint64_t bits = atomic_exchange_explicit(&ls->lent[w], 0, memory_order_acq_rel);
		if (bits)
			wh_slot_put(s, w, bits);
		if (pool->shared && w < s->n_words)
			wh_holders_remove(s, w, lease->index);
	}
	wh_lease_forget_slot(lease, slot);
	wh_lease_slot_clear(lease, slot, WH_SLOT_KEPT);
}

static void free_tables(struct wh_full_lease *lease)
{
	for (unsigned i = 0; i < lease->n_slots; i++)
		wh_control_free((void *)lease->slots[i].lent, LENT_BYTES);
	wh_control_free((void *)lease->lent_positions, lease->n_slots * sizeof(*lease->lent_positions));
	free(lease->slots);
	free(lease->pending);
}

void wh_lease_detach(struct wh_lease *hot)
{
	struct wh_full_lease *lease = wh_full(hot);
	struct wharf_pool *pool;

	if (!hot)
		return;
	pool = lease->pool;
	lease->held = false;
	wh_lease_publish(hot);
	wh_pool_lock(pool);
	if (pool->local_lease == lease) {
		/* Whichever thread this is: the loop is not running now. */
		wh_pool_give_back(pool);
		atomic_store_explicit(&pool->fast_loop, &wh_nobody, memory_order_relaxed);
		atomic_store_explicit(&pool->local_loop, NULL, memory_order_relaxed);
		pool->local_lease = NULL;
	}
	for (unsigned i = 0; i < lease->n_slots; i++)
		settle_slot(lease, i);
	leave(pool, lease);
	wh_control_remove_lease(pool->control, lease->control);
	for (unsigned i = 0; i < pool->n_slots; i++)
		wh_slot_finish(pool, i);
	wh_pool_bury(pool);
	wh_pool_unwant(pool);
	while (lease->kicks)
		pthread_cond_wait(&pool->kick_done, &pool->lock);
	pool->freed = true;
	wh_pool_unlock(pool);
	free_tables(lease);
	wh_control_free(lease->control, sizeof(*lease->control));
	free(lease);
	wharf_pool_unref(pool);
}

void wh_lease_observe(struct wh_lease *lease, const struct wh_lease_observer *observer)
{
	wh_full(lease)->observer = observer;
}

bool wh_lease_shared(const struct wh_lease *lease) { return wh_full_const(lease)->pool->shared; }

uint64_t wh_lease_id(const struct wh_lease *lease) { return wh_full_const(lease)->control->id; }

void wh_lease_positions(const struct wh_lease *lease, uint32_t *ret_pool, uint32_t *ret_lease)
{
	*ret_pool = wh_control_position(wh_full_const(lease)->pool->control);
	*ret_lease = wh_control_position(wh_full_const(lease)->control);
}

void wh_lease_set_peer(struct wh_lease *lease, uint32_t pid)
{
	atomic_store_explicit(&wh_full(lease)->control->peer, pid, memory_order_relaxed);
}

/* ---- Lending ---- */

static uint64_t bytes_of(const struct wh_full_lease *lease, unsigned slot, uint64_t bits)
{
	return bits ? (uint64_t)wh_bits_count(bits) << wh_class_shift(lease->pool->slots[slot]->class) : 0;
}

uint64_t wh_lease_cost(const struct wh_lease *lease, const struct wharf_buf *buf)
{
	uint64_t place = buf->opaque[1];

	return bytes_of(wh_full_const(lease), wh_place_slot(place), wh_place_bits(place));
}

uint64_t wh_lease_lent_bytes(const struct wh_lease *hot)
{
	const struct wh_full_lease *lease = wh_full_const(hot);
	return atomic_load_explicit(&lease->lent_bytes, memory_order_relaxed) -
		atomic_load_explicit(&lease->returned_here, memory_order_relaxed) -
		atomic_load_explicit(&lease->returned_bytes, memory_order_relaxed) +
		bytes_of(lease, wh_place_slot(hot->word), hot->bits);
}

/* The peer's loop cannot know of these chunks before the frame leaves; from here on its releases of them count. */
static void publish(struct wh_full_lease *lease, unsigned n)
{
	struct wharf_pool *pool = lease->pool;

	for (unsigned i = 0; i < n; i++) {
		struct wh_pending *p = &lease->pending[i];
		if (!p->bits)
			continue;
		uint64_t old = atomic_fetch_or_explicit(&lease->slots[p->slot].lent[p->word], p->bits,
			memory_order_seq_cst);
		wh_assert_full(!(old & p->bits));
		(void)old;
		if (pool->shared)
			wh_holders_add(pool->slots[p->slot], p->word, lease->index);
	}
	lease->hot.n_pending -= n;
	lease->n_held -= n < lease->n_held ? n : lease->n_held;
	for (unsigned i = 0; i < lease->hot.n_pending; i++)
		lease->pending[i] = lease->pending[i + n];
}

/* Moves the lent chunks of the current word to the words to publish. */
static void set_aside(struct wh_full_lease *lease)
{
	struct wh_lease *hot = &lease->hot;

	if (!hot->bits)
		return;
	if (hot->n_pending == WH_PENDING_MAX)
		publish(lease, lease->held ? lease->n_held : WH_PENDING_MAX / 2);
	wh_assert(hot->n_pending < WH_PENDING_MAX);
	lease->pending[hot->n_pending++] = (struct wh_pending){
		.slot = wh_place_slot(hot->word),
		.word = (uint16_t)(wh_place_first(hot->word) / WH_WORD_CHUNKS),
		.bits = hot->bits,
	};
	wh_lease_add(&lease->lent_bytes, bytes_of(lease, wh_place_slot(hot->word), hot->bits));
	hot->bits = 0;
}

void wh_lease_publish_slowly(struct wh_lease *hot)
{
	struct wh_full_lease *lease = wh_full(hot);

	if (!lease->held)
		set_aside(lease);
	publish(lease, lease->held ? lease->n_held : hot->n_pending);
}

void wh_lease_hold(struct wh_lease *hot)
{
	struct wh_full_lease *lease = wh_full(hot);

	set_aside(lease);
	lease->n_held = hot->n_pending;
	lease->held = true;
}

void wh_lease_unhold(struct wh_lease *hot) { wh_full(hot)->held = false; }

/* Makes the table of slots long enough for one more. Under the lock: others look into it. */
static int grow_table(struct wh_full_lease *lease, unsigned slot)
{
	uint32_t had = lease->n_slots, n = had ? had : SLOTS_FIRST;
	struct wh_lease_slot *slots, *had_slots;
	void *positions;

	while (n <= slot)
		n *= 2;
	slots = calloc(n, sizeof(*slots));
	if (!slots)
		return -ENOMEM;
	if (wh_control_alloc(n * sizeof(*lease->lent_positions), &positions)) {
		free(slots);
		return -ENOMEM;
	}
	if (had) {
		memcpy(slots, lease->slots, had * sizeof(*slots));
		memcpy(positions, (void *)lease->lent_positions, had * sizeof(*lease->lent_positions));
	}
	for (uint32_t i = had; i < n; i++)
		slots[i].release_fd = -1;
	wh_control_change_begin();
	atomic_store_explicit(&lease->control->lent, wh_control_position(positions), memory_order_release);
	atomic_store_explicit(&lease->control->n_lent, n, memory_order_release);
	wh_control_change_end();
	wh_control_free((void *)lease->lent_positions, had * sizeof(*lease->lent_positions));
	lease->lent_positions = positions;
	/* At any moment a fork's child finds a table that is whole. */
	had_slots = lease->slots;
	lease->slots = slots;
	lease->n_slots = n;
	free(had_slots);
	return 0;
}

int wh_lease_make_lent(struct wh_full_lease *lease, unsigned slot)
{
	void *lent;

	if (!lease->pending)
		lease->pending = calloc(WH_PENDING_MAX, sizeof(*lease->pending));
	if (!lease->pending || (slot >= lease->n_slots && grow_table(lease, slot)))
		return -ENOMEM;
	if (lease->slots[slot].lent)
		return 0;
	if (wh_control_alloc(LENT_BYTES, &lent))
		return -ENOMEM;
	lease->slots[slot].lent = lent;
	atomic_store_explicit(&lease->lent_positions[slot], wh_control_position(lent), memory_order_release);
	return 0;
}

/* First run of a slot: from here on the slot is retired only with this thread's help. */
static int use_slot(struct wh_full_lease *lease, unsigned slot)
{
	struct wharf_pool *pool = lease->pool;
	int error;

	wh_pool_lock(pool);
	error = wh_lease_make_lent(lease, slot);
	if (!error)
		wh_lease_slot_set(lease, slot, WH_SLOT_USED);
	wh_pool_unlock(pool);
	return error;
}

static bool is_pending(const struct wh_full_lease *lease, unsigned slot, unsigned word, uint64_t bits)
{
	for (unsigned i = 0; i < lease->hot.n_pending; i++)
		if (lease->pending[i].slot == slot && lease->pending[i].word == word && lease->pending[i].bits & bits)
			return true;
	return false;
}

static bool lent_already(const struct wh_full_lease *lease, unsigned slot, unsigned word, uint64_t bits)
{
	return is_pending(lease, slot, word, bits) ||
		atomic_load_explicit(&lease->slots[slot].lent[word], memory_order_relaxed) & bits;
}

int wh_lease_lend_slowly(struct wh_lease *hot, const struct wharf_buf *buf, size_t offset, size_t size, uint32_t stream,
	struct wh_run *ret_run)
{
	struct wh_full_lease *lease = wh_full(hot);
	uint64_t place = buf->opaque[1], bits;
	unsigned slot = wh_place_slot(place), word = wh_place_first(place) / WH_WORD_CHUNKS;
	struct wh_slot *s;
	bool same_word = (place & WH_PLACE_WORD) == hot->word;

	if (!buf->data || offset > buf->size || size == 0 || size > buf->size - offset)
		return -EINVAL;
	if (buf->opaque[0] != hot->pool)
		return -EXDEV;
	s = lease->pool->slots[slot];
	if (wh_slot_state(s) != WH_SLOT_LIVE)
		return -EXDEV;
	bits = wh_place_bits(place);
	wh_assert_full(!(atomic_load_explicit(&s->control->free[word], memory_order_relaxed) & bits));
	set_aside(lease);
	if (!wh_lease_slot_has(lease, slot, WH_SLOT_USED)) {
		int error = use_slot(lease, slot);
		if (error)
			return error;
	}
	hot->word = place & WH_PLACE_WORD;
	hot->info = s->info + (size_t)word * WH_WORD_CHUNKS;
	hot->counted = &s->control->counted[word];
	if ((same_word || atomic_load_explicit(hot->counted, memory_order_acquire) & bits) &&
	    lent_already(lease, slot, word, bits))
		return -EBUSY;
	hot->bits = bits;
	wh_lease_fill_run(hot, place, offset, size, stream, ret_run);
	return 0;
}

/* Takes a run's lent bits away. Those that were there still. */
static uint64_t unlend(struct wh_full_lease *lease, const struct wh_run *run)
{
	struct wh_lease *hot = &lease->hot;
	uint64_t place = wh_place(run->slot, run->first, run->n_chunks), bits = wh_place_bits(place);
	unsigned word = run->first / WH_WORD_CHUNKS;

	if ((place & WH_PLACE_WORD) == hot->word && (hot->bits & bits) == bits) {
		hot->bits &= ~bits;
		return bits;
	}
	for (unsigned i = hot->n_pending; i-- > 0;) {
		struct wh_pending *p = &lease->pending[i];
		if (p->slot == run->slot && p->word == word && (p->bits & bits) == bits) {
			p->bits &= ~bits;
			wh_lease_add(&lease->lent_bytes, 0 - bytes_of(lease, run->slot, bits));
			return bits;
		}
	}
	_Atomic uint64_t *lent = lease->slots[run->slot].lent;
	bits &= atomic_fetch_and_explicit(&lent[word], ~bits, memory_order_acq_rel);
	wh_lease_add(&lease->returned_here, bytes_of(lease, run->slot, bits));
	return bits;
}

void wh_lease_take_back(struct wh_lease *hot, const struct wh_run *run)
{
	struct wh_full_lease *lease = wh_full(hot);

	if (unlend(lease, run) != wh_place_bits(wh_place(run->slot, run->first, run->n_chunks))) {
		wh_lease_poison(lease);
		wh_pool_run_kicks(lease->pool);
	}
}

void wh_lease_drop(struct wh_lease *hot, const struct wh_run *run)
{
	struct wh_full_lease *lease = wh_full(hot);
	uint64_t bits = unlend(lease, run);

	if (bits)
		wh_slot_put(lease->pool->slots[run->slot], run->first / WH_WORD_CHUNKS, bits);
	wh_pool_freed(lease->pool);
}

bool wh_lease_holds(struct wh_lease *hot, const struct wh_run *run)
{
	struct wh_full_lease *lease = wh_full(hot);
	struct wh_lease_slot *ls = wh_lease_slot(lease, run->slot);
	uint64_t place = wh_place(run->slot, run->first, run->n_chunks), bits = wh_place_bits(place), back;
	unsigned word = run->first / WH_WORD_CHUNKS;

	if (((place & WH_PLACE_WORD) == hot->word && hot->bits & bits) || is_pending(lease, run->slot, word, bits))
		return true;
	if (!ls || !ls->lent || !(atomic_load_explicit(&ls->lent[word], memory_order_acquire) & bits))
		return false;
	if (!ls->map)
		return true;
	back = wh_lease_harvest_word(lease, run->slot, word, &lease->returned_here);
	if (back) {
		wh_word_free(&lease->pool->slots[run->slot]->control->free[word], back);
		wh_pool_freed(lease->pool);
	}
	wh_pool_run_kicks(lease->pool);
	return atomic_load_explicit(&ls->lent[word], memory_order_acquire) & bits;
}

/* ---- Its turns ---- */

void wh_lease_poison(struct wh_full_lease *lease)
{
	if (!atomic_exchange_explicit(&lease->poisoned, true, memory_order_relaxed))
		wh_pool_kick(lease->pool, lease);
}

bool wh_lease_poisoned(const struct wh_lease *lease)
{
	return atomic_load_explicit(&wh_full_const(lease)->poisoned, memory_order_relaxed);
}

void wh_lease_turn(struct wh_lease *hot, uint32_t turn)
{
	struct wh_full_lease *lease = wh_full(hot);
	struct wharf_pool *pool = lease->pool;
	bool give_back = pool->local_lease == lease && wh_pool_wanted(pool) && !wh_pool_local_idle(pool);
	/* Only turns in which the port sends are seen here. */
	bool close = lease->open_fds && turn - lease->closed_turn >= CLOSE_FDS_TURNS;
	bool upkeep = turn - lease->upkeep_turn >= UPKEEP_TURNS;

	hot->turn = turn;
	if (wh_likely(!give_back && !close && !upkeep))
		return;
	wh_pool_lock(pool);
	if (give_back)
		wh_pool_give_back(pool);
	if (close) {
		lease->closed_turn = turn;
		wh_lease_close_fds(lease);
	}
	if (upkeep) {
		lease->upkeep_turn = turn;
		/* As often as if there were one lease. */
		if (++pool->upkeeps >= pool->n_leases) {
			pool->upkeeps = 0;
			wh_pool_upkeep(pool);
		}
	}
	wh_pool_unlock(pool);
}
