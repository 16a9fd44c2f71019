/* SPDX-License-Identifier: MIT */
/* Pools as a whole: their life, their lock, their options. See pool_internal.h for how the parts fit. */
#include "pool.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "options.h"
#include "pool_internal.h"

enum { KICKS_AT_ONCE = 64 };
#define DEFAULT_BYTES_MAX (UINT64_C(64) << 20)
#define BYTES_MAX_MAX (UINT64_C(1) << 46)

const char wh_nobody;
const struct wh_local wh_no_local[WH_CLASS_LOCAL] = {
	[0 ... WH_CLASS_LOCAL - 1] = { .where = WH_PLACE_NONE },
};

/* Memory of pools that are gone: see pool_internal.h. */
static struct {
	pthread_mutex_t lock;
	struct wharf_pool *first;
} spare = { .lock = PTHREAD_MUTEX_INITIALIZER };

void wh_pool_restart(void)
{
	spare.first = NULL;
	spare.lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
}

/* ---- The lock, and what follows from what happened under it ---- */

void wh_pool_lock(struct wharf_pool *pool) { pthread_mutex_lock(&pool->lock); }

static void push_kick(struct wharf_pool *pool, struct wh_full_lease *lease)
{
	struct wh_full_lease *first = atomic_load_explicit(&pool->kicks, memory_order_relaxed);

	do
		lease->next_kick = first;
	while (!atomic_compare_exchange_weak_explicit(&pool->kicks, &first, lease, memory_order_release,
		memory_order_relaxed));
}

void wh_pool_kick(struct wharf_pool *pool, struct wh_full_lease *lease)
{
	if (!atomic_exchange_explicit(&lease->kicked, true, memory_order_seq_cst) &&
	    !atomic_exchange_explicit(&lease->queued, true, memory_order_acq_rel))
		push_kick(pool, lease);
}

/* The lock keeps whoever pops alone, so what is first stays what it is until it is popped. */
static struct wh_full_lease *pop_kick(struct wharf_pool *pool)
{
	struct wh_full_lease *first = atomic_load_explicit(&pool->kicks, memory_order_acquire);

	while (first && !atomic_compare_exchange_weak_explicit(&pool->kicks, &first, first->next_kick,
		memory_order_acquire, memory_order_acquire))
		;
	if (first)
		atomic_store_explicit(&first->queued, false, memory_order_release);
	return first;
}

void wh_pool_forget_kick(struct wharf_pool *pool, struct wh_full_lease *lease)
{
	struct wh_full_lease *rest, *next;

	if (!atomic_load_explicit(&lease->queued, memory_order_relaxed))
		return;
	rest = atomic_exchange_explicit(&pool->kicks, NULL, memory_order_acquire);
	for (; rest; rest = next) {
		next = rest->next_kick;
		if (rest != lease)
			push_kick(pool, rest);
	}
}

void wh_pool_run_kicks(struct wharf_pool *pool)
{
	struct wh_full_lease *leases[KICKS_AT_ONCE];
	unsigned n;

	if (wh_likely(!atomic_load_explicit(&pool->kicks, memory_order_relaxed)))
		return;
	pthread_mutex_lock(&pool->lock);
	for (;;) {
		for (n = 0; n < KICKS_AT_ONCE && (leases[n] = pop_kick(pool)); n++)
			leases[n]->kicks++;
		if (!n)
			break;
		pthread_mutex_unlock(&pool->lock);
		for (unsigned i = 0; i < n; i++)
			leases[i]->kick(leases[i]->owner);
		pthread_mutex_lock(&pool->lock);
		for (unsigned i = 0; i < n; i++)
			leases[i]->kicks--;
		pthread_cond_broadcast(&pool->kick_done);
	}
	pthread_mutex_unlock(&pool->lock);
}

void wh_pool_unlock(struct wharf_pool *pool)
{
	bool wake;

	if (pool->freed && atomic_load_explicit(&pool->attention, memory_order_relaxed) & WH_FAILED)
		wh_pool_tell(pool);
	wake = pool->freed && pool->n_waiters;
	if (wake)
		atomic_fetch_add_explicit(&pool->sequence, 1, memory_order_relaxed);
	pool->freed = false;
	pthread_mutex_unlock(&pool->lock);
	/* All of them: they wait for different lengths. */
	if (wake)
		syscall(SYS_futex, &pool->sequence, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
	wh_pool_run_kicks(pool);
}

/* ---- Life ---- */

/* In a forked child: the memory is not mapped there, and the descriptors would keep it from going. */
static void in_child(struct wh_fork_hook *hook)
{
	struct wharf_pool *pool = wh_container_of(hook, struct wharf_pool, fork_hook);
	struct wh_full_lease *lease;

	for (unsigned i = 0; i < pool->n_slots; i++)
		if (pool->slots[i]->segment.fd >= 0)
			close(pool->slots[i]->segment.fd);
	for (uint32_t at = 0; (lease = wh_pool_next_lease(pool, &at));)
		for (unsigned i = 0; i < lease->n_slots; i++)
			if (lease->slots[i].release_fd >= 0)
				close(lease->slots[i].release_fd);
}

static struct wharf_pool *take_memory(void)
{
	struct wharf_pool *pool;

	pthread_mutex_lock(&spare.lock);
	pool = spare.first;
	if (pool)
		spare.first = pool->next_spare;
	pthread_mutex_unlock(&spare.lock);
	if (pool)
		return pool;
	pool = calloc(1, sizeof(*pool));
	if (!pool)
		return NULL;
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->kick_done, NULL);
	return pool;
}

static void give_memory(struct wharf_pool *pool)
{
	pthread_mutex_lock(&spare.lock);
	pool->next_spare = spare.first;
	spare.first = pool;
	pthread_mutex_unlock(&spare.lock);
}

int wh_pool_make_tables(struct wharf_pool *pool)
{
	void *positions;
	int error;

	if (pool->classes)
		return 0;
	error = wh_control_alloc(WH_SLOTS_MAX * sizeof(*pool->slot_positions), &positions);
	if (error)
		return error;
	pool->classes = calloc(1, WH_CLASSES * sizeof(*pool->classes) + WH_SLOTS_MAX * sizeof(*pool->slots));
	if (!pool->classes) {
		wh_control_free(positions, WH_SLOTS_MAX * sizeof(*pool->slot_positions));
		return -ENOMEM;
	}
	pool->slots = (struct wh_slot **)(void *)(pool->classes + WH_CLASSES);
	pool->slot_positions = positions;
	for (unsigned c = 0; c < WH_CLASSES; c++)
		pool->classes[c].at = WH_NOWHERE;
	wh_control_change_begin();
	atomic_store_explicit(&pool->control->slots, wh_control_position(positions), memory_order_release);
	wh_control_change_end();
	atomic_store_explicit(&pool->grown, true, memory_order_release);
	return 0;
}

static void free_tables(struct wharf_pool *pool)
{
	for (unsigned i = 0; i < pool->n_slots; i++)
		wh_slot_free(pool, i);
	pool->n_slots = 0;
	wh_control_free((void *)pool->slot_positions, WH_SLOTS_MAX * sizeof(*pool->slot_positions));
	free(pool->classes);
	pool->classes = NULL;
	pool->slots = NULL;
	pool->slot_positions = NULL;
	atomic_store_explicit(&pool->grown, false, memory_order_relaxed);
	if (pool->leases != &pool->first_lease)
		free(pool->leases);
	if (pool->control->local)
		wh_control_free(pool->local, WH_CLASS_LOCAL * sizeof(*pool->local));
}

/* With the lock, if nothing is out: frees everything and drops the lock. */
static bool end_pool(struct wharf_pool *pool)
{
	wh_pool_bury(pool);
	for (unsigned i = 0; i < pool->n_slots; i++) {
		if (!pool->slots[i]->n_words)
			continue;
		if (wh_slot_state(pool->slots[i]) != WH_SLOT_LIVE || !wh_slot_all_free(pool->slots[i]))
			return false;
	}
	wh_guard_remove(&pool->fork_hook);
	wh_control_remove_pool(pool->control);
	free_tables(pool);
	wh_control_free(pool->control, sizeof(*pool->control));
	pool->control = NULL;
	atomic_store_explicit(&pool->attention, 0, memory_order_relaxed);
	pthread_mutex_unlock(&pool->lock);
	give_memory(pool);
	return true;
}

void wh_pool_freed_slowly(struct wharf_pool *pool)
{
	wh_pool_lock(pool);
	/* Not the flag that was seen: the pool may have ended, and its memory be another pool's. */
	uint32_t attention = atomic_load_explicit(&pool->attention, memory_order_relaxed);
	if (attention & WH_ORPHAN && end_pool(pool))
		return;
	wh_pool_bury(pool);
	pool->freed = attention != 0;
	wh_pool_unlock(pool);
}

wharf_pool *wharf_pool_ref(wharf_pool *pool)
{
	if (pool && !wh_forked())
		atomic_fetch_add_explicit(&pool->refs, 1, memory_order_relaxed);
	return pool;
}

wharf_pool *wharf_pool_unref(wharf_pool *pool)
{
	if (!pool || wh_forked() || atomic_fetch_sub_explicit(&pool->refs, 1, memory_order_acq_rel) != 1)
		return NULL;
	wh_pool_lock(pool);
	/* First the flag, then the look at the words: a chunk freed in between is looked for by whoever frees it. */
	atomic_fetch_or_explicit(&pool->attention, WH_ORPHAN, memory_order_seq_cst);
	if (!end_pool(pool))
		wh_pool_unlock(pool);
	return NULL;
}

/* So that every size up to bytes_max fits: a run of the class that wastes least. */
static uint64_t round_bytes_max(uint64_t bytes)
{
	uint64_t unit = (uint64_t)sysconf(_SC_PAGESIZE), largest;
	unsigned class = 0;

	bytes = bytes < BYTES_MAX_MAX ? bytes : BYTES_MAX_MAX;
	largest = bytes < WH_SIZE_MAX ? bytes : WH_SIZE_MAX;
	while (wh_chunks_of((size_t)largest, class) > WH_RUN_CHUNKS_MAX)
		class++;
	if (unit < (uint64_t)1 << wh_class_shift(class))
		unit = (uint64_t)1 << wh_class_shift(class);
	return (bytes + unit - 1) / unit * unit;
}

static void set_name(struct wharf_pool *pool, const char *name)
{
	size_t i = 0;

	memset(pool->name, 0, sizeof(pool->name));
	for (name = name && *name ? name : "pool"; name[i] && i < sizeof(pool->name) - 1; i++)
		pool->name[i] = name[i] > ' ' && name[i] < 127 && name[i] != '/' ? name[i] : '_';
	memcpy(pool->control->name, pool->name, sizeof(pool->name));
}

/* Claims are dated by it, also before the first turn of any loop, or without one. */
static void look_at_clock(void) { wh_pool_set_now(wh_clock_ns(CLOCK_MONOTONIC)); }

int wharf_pool_new(const struct wharf_pool_options *options, wharf_pool **ret_pool)
{
	struct wharf_pool_options o;
	struct wharf_pool *pool;
	void *control;
	int error;

	if (!ret_pool)
		return -EINVAL;
	error = wh_guard_init();
	if (!error)
		error = wh_options_check(options, options ? options->size : 0, sizeof(o));
	if (error)
		return error;
	wh_options_copy(&o, options, options ? options->size : 0, sizeof(o));
	if (o.flags & ~(uint32_t)(WHARF_PREFAULT | WHARF_HUGE) || o.shared > 1)
		return -EINVAL;
	error = wh_control_alloc(sizeof(*pool->control), &control);
	if (error)
		return error;
	pool = take_memory();
	if (!pool) {
		wh_control_free(control, sizeof(*pool->control));
		return -ENOMEM;
	}

	/* With the lock: a thread that freed the last chunk of the pool that was here before may still look. */
	pthread_mutex_lock(&pool->lock);
	pool->control = control;
	pool->local = (struct wh_local *)(uintptr_t)wh_no_local;
	atomic_store_explicit(&pool->fast_loop, &wh_nobody, memory_order_relaxed);
	pool->shared = o.shared;
	pool->flags = o.flags;
	pool->bytes_max = round_bytes_max(o.bytes_max ? o.bytes_max : DEFAULT_BYTES_MAX);
	pool->bytes = 0;
	pool->freed = pool->had_lease = pool->wide = false;
	pool->first_lease = NULL;
	pool->leases = &pool->first_lease;
	pool->leases_size = 1;
	atomic_store_explicit(&pool->refs, 1, memory_order_relaxed);
	pool->control->flags = o.shared;
	pool->control->bytes_max = pool->bytes_max;
	set_name(pool, o.name);
	pthread_mutex_unlock(&pool->lock);
	look_at_clock();
	wh_control_add_pool(pool->control);
	pool->fork_hook.child = in_child;
	wh_guard_add(&pool->fork_hook);
	*ret_pool = pool;
	return 0;
}

/* ---- Reserving and looking ---- */

/* Free runs of a class, and a promise to keep its segments. */
static uint64_t count_runs(struct wharf_pool *pool, unsigned class, unsigned n, uint32_t flags)
{
	uint64_t runs = 0;

	for (unsigned i = 0; i < pool->n_slots; i++) {
		struct wh_slot *s = pool->slots[i];
		if (wh_slot_state(s) != WH_SLOT_LIVE || s->class != class)
			continue;
		s->keep = true;
		if (flags & WHARF_PREFAULT && !s->segment.prefaulted)
			wh_segment_prefault(&s->segment);
		for (unsigned w = 0; w < s->n_words; w++)
			runs += wh_run_count(atomic_load_explicit(&s->control->free[w], memory_order_relaxed), n);
	}
	return runs;
}

int wharf_pool_reserve(wharf_pool *pool, size_t buf_bytes, size_t total_bytes, uint32_t flags)
{
	unsigned class, n, slot;
	uint64_t wanted, have;
	bool local;
	int error = 0;

	if (wh_forked())
		return -ECHILD;
	if (!pool || !buf_bytes || flags & ~(uint32_t)WHARF_PREFAULT)
		return -EINVAL;
	if (!wh_pool_run_of(pool, buf_bytes, &class, &n))
		return -EMSGSIZE;
	wanted = total_bytes / buf_bytes + !!(total_bytes % buf_bytes);
	if (wanted > (pool->bytes_max >> wh_class_shift(class)) / n)
		return -EMSGSIZE;
	wh_pool_lock(pool);
	local = wh_pool_local(pool);
	if (local)
		wh_pool_give_back(pool);
	wh_pool_harvest(pool);
	error = wh_pool_make_tables(pool);
	while (!error && (have = count_runs(pool, class, n, flags)) < wanted) {
		uint64_t bytes = (wanted - have) * wh_run_align(n) << wh_class_shift(class);
		error = wh_pool_grow(pool, class, n, (size_t)bytes, pool->flags | flags, &slot);
		if (error == -EAGAIN && wh_pool_make_room(pool, class, n, true))
			error = 0;
	}
	if (error == -EAGAIN)
		error = -EMSGSIZE;
	/* A lease's tables are its thread's. Those of a shared pool may be a thousand. */
	if (!error && local)
		error = wh_lease_prepare(pool->local_lease, class);
	wh_pool_unlock(pool);
	if (!error && local && class < WH_CLASS_LOCAL && !wh_pool_make_local(pool))
		error = -ENOMEM;
	return error;
}

int wharf_pool_info(wharf_pool *pool, struct wharf_pool_info *ret_info)
{
	struct wharf_pool_info info = { .size = 0 };

	if (wh_forked())
		return -ECHILD;
	if (!pool || !ret_info || ret_info->size < sizeof(info.size))
		return -EINVAL;
	wh_pool_lock(pool);
	wh_pool_harvest(pool);
	info.bytes = pool->bytes;
	info.bytes_max = pool->bytes_max;
	for (unsigned i = 0; i < pool->n_slots; i++) {
		const struct wh_slot *s = pool->slots[i];
		if (!s->n_words)
			continue;
		info.segments++;
		info.bytes_huge += s->segment.huge ? s->segment.bytes : 0;
		info.bytes_prefaulted += s->segment.prefaulted;
		for (unsigned w = 0; w < s->n_words; w++) {
			if (wh_slot_state(s) == WH_SLOT_LIVE)
				info.bytes_free += (uint64_t)wh_bits_count(atomic_load_explicit(&s->control->free[w],
					memory_order_relaxed)) << wh_class_shift(s->class);
			info.bytes_lent += (uint64_t)wh_bits_count(wh_slot_lent(pool, i, w)) << wh_class_shift(s->class);
		}
	}
	for (unsigned c = 0; c < WH_CLASS_LOCAL; c++)
		info.bytes_free += (uint64_t)wh_bits_count(atomic_load_explicit(&pool->local[c].bits,
			memory_order_relaxed))
			<< wh_class_shift(c);
	wh_pool_unlock(pool);
	info.size = wh_min(ret_info->size, sizeof(info));
	memcpy(ret_info, &info, info.size);
	return 0;
}
