/* SPDX-License-Identifier: MIT */
/*
 * Waiting for room. Whoever waits sets a flag in `attention`, marks every release map and looks once more; whoever
 * makes chunks free looks at the flag after that, and every receiver at its mark. All of it is sequentially
 * consistent, so one of the two sees the other.
 *
 * A lease that is watched keeps its marks when nobody waits: its loop looks for runs, not for room.
 *
 * Failed claims are kept as the shortest run of each class that failed. A port is told when one of them would
 * succeed: a longer run of that class may still fail then, and is entered again when its claim does.
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pool_internal.h"
#include "sleep.h"

enum { LOOK_FIRST = 8 }; /* guessed, never tuned */

static bool mark(struct wh_full_lease *lease)
{
	if (lease->wanted)
		return false;
	for (unsigned i = 0; i < lease->n_slots; i++) {
		struct wh_release_map *map = lease->slots[i].map;
		if (map && !atomic_load_explicit(&map->wanted, memory_order_relaxed))
			atomic_store_explicit(&map->wanted, 1, memory_order_seq_cst);
	}
	lease->wanted = true;
	lease->pool->n_marked++;
	return true;
}

/* A peer may have taken its mark. */
static void doubt_mark(struct wh_full_lease *lease)
{
	lease->pool->n_marked -= lease->wanted;
	lease->wanted = false;
}

/* A mark that is left costs its peer a frame for nothing. */
static void unmark(struct wh_full_lease *lease)
{
	for (unsigned i = 0; lease->wanted && i < lease->n_slots; i++)
		if (lease->slots[i].map)
			atomic_store_explicit(&lease->slots[i].map->wanted, 0, memory_order_relaxed);
	doubt_mark(lease);
}

void wh_lease_mark_again(struct wh_full_lease *lease)
{
	doubt_mark(lease);
	mark(lease);
}

void wh_lease_watch(struct wh_lease *hot, bool on)
{
	struct wh_full_lease *lease = wh_full(hot);

	wh_pool_lock(lease->pool);
	lease->watched = on;
	if (on)
		wh_lease_mark_again(lease);
	else if (!wh_pool_wanted(lease->pool))
		unmark(lease);
	wh_pool_unlock(lease->pool);
}

bool wh_pool_want(struct wharf_pool *pool, uint32_t attention)
{
	bool changed = attention & ~atomic_fetch_or_explicit(&pool->attention, attention, memory_order_seq_cst);
	struct wh_full_lease *lease;

	atomic_store_explicit(&pool->fast_loop, &wh_nobody, memory_order_seq_cst);
	pool->marked = true;
	for (uint32_t at = 0; pool->n_marked < pool->n_leases && (lease = wh_pool_next_lease(pool, &at));)
		changed |= mark(lease);
	if (!wh_pool_local(pool) && pool->local_lease && !wh_pool_local_idle(pool))
		wh_pool_kick(pool, pool->local_lease);
	return changed;
}

void wh_pool_unwant(struct wharf_pool *pool)
{
	struct wh_full_lease *lease;
	uint32_t over = WH_FAILED;

	for (unsigned c = 0; pool->classes && c < WH_CLASSES; c++) {
		if (pool->classes[c].n_owed)
			over = 0;
		else
			pool->classes[c].failed = 0;
	}
	if (!pool->n_waiters)
		over |= WH_WAITERS;
	uint32_t left = atomic_fetch_and_explicit(&pool->attention, ~over, memory_order_seq_cst) & ~over;
	if (left & (WH_FAILED | WH_WAITERS))
		return;
	if (pool->local_lease)
		atomic_store_explicit(&pool->fast_loop, atomic_load_explicit(&pool->local_loop, memory_order_relaxed),
			memory_order_relaxed);
	for (uint32_t at = 0; pool->marked && (lease = wh_pool_next_lease(pool, &at));)
		if (!lease->watched)
			unmark(lease);
	pool->marked = false;
}

uint32_t wh_lease_owed(const struct wh_full_lease *lease)
{
	const struct wh_class *classes = lease->pool->classes;
	uint32_t owed = 0;

	for (unsigned c = 0; classes && c < WH_CLASSES; c++)
		owed |= (uint32_t)(lease->told[c] != classes[c].asked) << c;
	return owed;
}

void wh_pool_owe(struct wharf_pool *pool, unsigned class, unsigned n)
{
	struct wh_class *c = &pool->classes[class];

	if (!c->failed || n < c->failed)
		c->failed = (uint8_t)n;
	if (c->n_owed == pool->n_leases)
		return;
	c->asked++;
	c->n_owed = pool->n_leases;
}

static bool would_succeed(struct wharf_pool *pool, unsigned class)
{
	unsigned n = pool->classes[class].failed;

	return wh_pool_has_run(pool, class, n) || wh_pool_make_room(pool, class, n, false);
}

/* Forgets the failed claims that would succeed now. */
static bool settle_owed(struct wharf_pool *pool, struct wh_full_lease *lease)
{
	bool any = false;

	for (uint32_t owed = wh_lease_owed(lease); owed; owed &= owed - 1) {
		unsigned c = (unsigned)__builtin_ctz(owed);
		if (!would_succeed(pool, c))
			continue;
		lease->told[c] = pool->classes[c].asked;
		pool->classes[c].n_owed--;
		any = true;
	}
	return any;
}

void wh_pool_tell(struct wharf_pool *pool)
{
	struct wh_full_lease *lease;
	uint32_t classes = ~UINT32_C(0);

	/* Few loops look for themselves, once a turn. To wake many for nothing would cost more than to look here. */
	if (pool->n_leases > LOOK_FIRST) {
		classes = 0;
		for (unsigned c = 0; c < WH_CLASSES; c++)
			classes |= (uint32_t)(pool->classes[c].n_owed && would_succeed(pool, c)) << c;
	}
	for (uint32_t at = 0; classes && (lease = wh_pool_next_lease(pool, &at));)
		if (wh_lease_owed(lease) & classes)
			wh_pool_kick(pool, lease);
}

bool wh_pool_room(struct wharf_pool *pool, struct wh_lease *hot)
{
	struct wh_full_lease *lease = wh_full(hot);
	uint32_t attention;
	bool room = false;

	wh_pool_lock(pool);
	atomic_store_explicit(&lease->kicked, false, memory_order_relaxed);
	attention = atomic_load_explicit(&pool->attention, memory_order_relaxed);
	if (!attention && !lease->watched)
		goto out;
	/* Marks, then looks: at this lease's releases only, for each of the others is woken for its own. */
	doubt_mark(lease);
	if (attention & (WH_WAITERS | WH_FAILED) || lease->watched)
		mark(lease);
	if (wh_pool_local(pool) && wh_pool_wanted(pool))
		wh_pool_give_back(pool);
	wh_lease_harvest_all(lease);
	wh_pool_bury(pool);
	room = settle_owed(pool, lease);
	wh_pool_unwant(pool);
	attention = atomic_load_explicit(&pool->attention, memory_order_relaxed) & (WH_WAITERS | WH_FAILED);
	if (attention && wh_pool_want(pool, attention)) {
		wh_pool_harvest(pool);
		room |= settle_owed(pool, lease);
		wh_pool_unwant(pool);
	}
out:
	wh_pool_unlock(pool);
	return room;
}

/* ---- Threads that sleep ---- */

int wh_pool_claim_wait(struct wharf_pool *pool, unsigned class, unsigned n, int64_t timeout_ns, uint64_t *ret_place)
{
	struct timespec deadline;
	bool has_deadline, late = false;
	int error = wh_pool_claim(pool, class, n, true, ret_place);

	if (error != -EAGAIN)
		return error;
	if (timeout_ns == 0)
		return -ETIMEDOUT;
	has_deadline = wh_sleep_until(timeout_ns, &deadline);
	wh_pool_lock(pool);
	pool->n_waiters++;
	for (;;) {
		wh_pool_want(pool, WH_WAITERS);
		error = wh_pool_claim_locked(pool, class, n, false, ret_place);
		if (error != -EAGAIN)
			break;
		error = late ? -ETIMEDOUT : pool->had_lease && !pool->n_leases ? -EPIPE : 0;
		if (error)
			break;
		uint32_t seen = atomic_load_explicit(&pool->sequence, memory_order_relaxed);
		wh_pool_unlock(pool);
		late = syscall(SYS_futex, &pool->sequence, FUTEX_WAIT_BITSET_PRIVATE, seen,
			has_deadline ? &deadline : NULL, NULL, FUTEX_BITSET_MATCH_ANY) < 0 && errno == ETIMEDOUT;
		wh_pool_lock(pool);
	}
	pool->n_waiters--;
	wh_pool_unwant(pool);
	wh_pool_unlock(pool);
	return error;
}
