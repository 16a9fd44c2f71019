/* SPDX-License-Identifier: MIT */
/*
 * Waiting for room. Whoever waits sets a flag in `attention`, marks every release map and looks once more; whoever
 * makes chunks free looks at the flag after that, and every receiver at its mark. All of it is sequentially
 * consistent, so one of the two sees the other.
 *
 * Failed claims are kept as the shortest run of each class that failed. A port is told when one of them would
 * succeed: a longer run of that class may still fail then, and is entered again when its claim does.
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "pool_internal.h"

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
	return true;
}

bool wh_pool_want(struct wharf_pool *pool, uint32_t attention)
{
	bool changed = attention & ~atomic_fetch_or_explicit(&pool->attention, attention, memory_order_seq_cst);

	atomic_store_explicit(&pool->fast_loop, &wh_nobody, memory_order_seq_cst);
	for (uint64_t rest = pool->lease_map; rest; rest &= rest - 1)
		changed |= mark(pool->leases[__builtin_ctzll(rest)]);
	if (!wh_pool_local(pool) && pool->local_lease && !wh_pool_local_idle(pool))
		wh_pool_kick(pool, pool->local_lease);
	return changed;
}

void wh_pool_unwant(struct wharf_pool *pool)
{
	uint32_t over = 0;
	uint16_t owed = 0;

	for (uint64_t rest = pool->lease_map; rest; rest &= rest - 1)
		owed |= pool->leases[__builtin_ctzll(rest)]->owed;
	for (unsigned c = 0; pool->classes && c < WH_CLASSES; c++)
		if (!(owed >> c & 1))
			pool->classes[c].failed = 0;
	if (!owed)
		over |= WH_FAILED;
	if (!pool->n_waiters)
		over |= WH_WAITERS;
	uint32_t left = atomic_fetch_and_explicit(&pool->attention, ~over, memory_order_seq_cst) & ~over;
	if (left & (WH_FAILED | WH_WAITERS))
		return;
	if (pool->local_lease)
		atomic_store_explicit(&pool->fast_loop, atomic_load_explicit(&pool->local_loop, memory_order_relaxed),
			memory_order_relaxed);
	/* A mark that is left costs its peer a frame for nothing. */
	for (uint64_t rest = pool->lease_map; rest; rest &= rest - 1) {
		struct wh_full_lease *lease = pool->leases[__builtin_ctzll(rest)];
		for (unsigned i = 0; lease->wanted && i < lease->n_slots; i++)
			if (lease->slots[i].map)
				atomic_store_explicit(&lease->slots[i].map->wanted, 0, memory_order_relaxed);
		lease->wanted = false;
	}
}

void wh_pool_owe(struct wharf_pool *pool, unsigned class, unsigned n)
{
	struct wh_class *c = &pool->classes[class];

	if (!c->failed || n < c->failed)
		c->failed = (uint8_t)n;
	for (uint64_t rest = pool->lease_map; rest; rest &= rest - 1)
		pool->leases[__builtin_ctzll(rest)]->owed |= (uint16_t)(1u << class);
}

/* Forgets the failed claims that would succeed now. */
static bool would_succeed(struct wharf_pool *pool, struct wh_full_lease *lease)
{
	bool any = false;

	for (unsigned c = 0; lease->owed >> c; c++) {
		unsigned n = pool->classes[c].failed;
		if (!(lease->owed >> c & 1) || !(wh_pool_has_run(pool, c, n) || wh_pool_make_room(pool, c, n, false)))
			continue;
		lease->owed &= (uint16_t)~(1u << c);
		any = true;
	}
	return any;
}

bool wh_pool_room(struct wharf_pool *pool, struct wh_lease *hot)
{
	struct wh_full_lease *lease = wh_full(hot);
	uint32_t attention;
	bool room;

	wh_pool_lock(pool);
	atomic_store_explicit(&lease->kicked, false, memory_order_relaxed);
	/* A peer may have taken its mark. */
	lease->wanted = false;
	if (wh_pool_local(pool) && wh_pool_wanted(pool))
		wh_pool_give_back(pool);
	wh_pool_harvest(pool);
	wh_pool_bury(pool);
	room = would_succeed(pool, lease);
	wh_pool_unwant(pool);
	attention = atomic_load_explicit(&pool->attention, memory_order_relaxed) & (WH_WAITERS | WH_FAILED);
	if (attention && wh_pool_want(pool, attention)) {
		wh_pool_harvest(pool);
		room |= would_succeed(pool, lease);
		wh_pool_unwant(pool);
	}
	wh_pool_unlock(pool);
	return room;
}

/* ---- Threads that sleep ---- */

static bool deadline_of(int64_t timeout_ns, struct timespec *ret_deadline)
{
	if (timeout_ns < 0)
		return false;
	clock_gettime(CLOCK_MONOTONIC, ret_deadline);
	ret_deadline->tv_sec += timeout_ns / 1000000000;
	ret_deadline->tv_nsec += timeout_ns % 1000000000;
	if (ret_deadline->tv_nsec >= 1000000000) {
		ret_deadline->tv_nsec -= 1000000000;
		ret_deadline->tv_sec++;
	}
	return true;
}

int wh_pool_claim_wait(struct wharf_pool *pool, unsigned class, unsigned n, int64_t timeout_ns, uint64_t *ret_place)
{
	struct timespec deadline;
	bool has_deadline, late = false;
	int error = wh_pool_claim(pool, class, n, true, ret_place);

	if (error != -EAGAIN)
		return error;
	if (timeout_ns == 0)
		return -ETIMEDOUT;
	has_deadline = deadline_of(timeout_ns, &deadline);
	wh_pool_lock(pool);
	pool->n_waiters++;
	for (;;) {
		wh_pool_want(pool, WH_WAITERS);
		error = wh_pool_claim_locked(pool, class, n, false, ret_place);
		if (error != -EAGAIN)
			break;
		error = late ? -ETIMEDOUT : pool->had_lease && !pool->lease_map ? -EPIPE : 0;
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
