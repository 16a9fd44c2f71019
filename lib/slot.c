/* SPDX-License-Identifier: MIT */
/* The segments of a pool: made, retired, made again. All but wh_slot_let_go_counted runs under the pool's lock. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "pool_internal.h"
#include "wharf.h"

enum {
	SMALL_FIRST = 64 << 10, /* first segment of a class of small chunks; guessed, never tuned */
	SMALL_MAX = 1 << 20,    /* reserving 1 MiB stalls a loop for about a millisecond, 32 MiB for 24 */
	RUNS_MAX = 4,           /* larger chunks: a segment for so many runs */
};

/* ---- Holders ---- */

uint64_t wh_slot_let_go_counted(struct wh_slot *s, unsigned word, uint64_t bits, uint64_t counted)
{
	_Atomic uint16_t *counts = atomic_load_explicit(&s->counts, memory_order_acquire);
	uint64_t last = 0;

	for (uint64_t rest = counted; rest; rest &= rest - 1) {
		unsigned bit = (unsigned)__builtin_ctzll(rest);
		uint16_t before = atomic_fetch_sub_explicit(&counts[word * WH_WORD_CHUNKS + bit], 1,
			memory_order_acq_rel);
		wh_assert(before > 0);
		if (before == 1)
			last |= UINT64_C(1) << bit;
	}
	if (last)
		atomic_fetch_and_explicit(&s->control->counted[word], ~last, memory_order_relaxed);
	return (bits & ~counted) | last;
}

int wh_slot_count(struct wh_slot *s)
{
	void *counts;
	int error;

	if (atomic_load_explicit(&s->counts, memory_order_relaxed))
		return 0;
	error = wh_control_alloc(s->n_chunks * sizeof(uint16_t), &counts);
	if (error)
		return -ENOMEM;
	atomic_store_explicit(&s->control->counts, wh_control_position(counts), memory_order_release);
	atomic_store_explicit(&s->counts, counts, memory_order_release);
	return 0;
}

/* ---- Making ---- */

/* A slot without memory, or WH_SLOTS_MAX. */
static unsigned find_empty(const struct wharf_pool *pool)
{
	for (unsigned i = 0; i < pool->n_slots; i++)
		if (wh_slot_state(pool->slots[i]) == WH_SLOT_EMPTY)
			return i;
	return pool->n_slots;
}

static int make_slot(struct wharf_pool *pool, unsigned index)
{
	struct wh_slot *s;
	void *control;
	int error;

	if (index < pool->n_slots)
		return 0;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	error = wh_control_alloc(sizeof(*s->control), &control);
	if (error) {
		free(s);
		return error;
	}
	s->control = control;
	s->segment.fd = -1;
	pool->slots[index] = s;
	pool->n_slots = index + 1;
	wh_control_change_begin();
	atomic_store_explicit(&pool->slot_positions[index], wh_control_position(control), memory_order_release);
	pool->control->n_slots = index + 1;
	wh_control_change_end();
	return 0;
}

static void account(struct wharf_pool *pool, uint64_t bytes)
{
	pool->bytes = bytes;
	atomic_store_explicit(&pool->control->bytes, bytes, memory_order_relaxed);
}

static int make_memory(struct wharf_pool *pool, unsigned index, unsigned class, size_t bytes, uint32_t flags)
{
	struct wh_slot *s = pool->slots[index];
	uint32_t n_chunks = (uint32_t)(bytes >> wh_class_shift(class)), n_words = (n_chunks + 63) / 64;
	void *info;
	int error;

	error = wh_control_alloc(n_words * WH_WORD_CHUNKS * sizeof(uint64_t), &info);
	if (error)
		return error;
	error = pool->wide ? wh_slot_widen(s, n_words) : 0;
	if (!error)
		error = wh_segment_open(pool->name, index, bytes, flags, &s->segment);
	if (error) {
		wh_slot_narrow(s);
		wh_control_free(info, n_words * WH_WORD_CHUNKS * sizeof(uint64_t));
		return error;
	}
	s->base = s->segment.base;
	s->info = info;
	s->class = (uint8_t)class;
	s->n_chunks = n_chunks;
	s->idle_laps = 0;
	s->keep = false;
	wh_control_change_begin();
	atomic_store_explicit(&s->control->n_chunks, n_chunks, memory_order_relaxed);
	atomic_store_explicit(&s->control->chunk_shift, (uint8_t)wh_class_shift(class), memory_order_relaxed);
	atomic_store_explicit(&s->control->info, wh_control_position(info), memory_order_relaxed);
	s->control->times_made++;
	atomic_store_explicit(&s->control->state, WH_SLOT_LIVE, memory_order_release);
	wh_control_change_end();
	atomic_store_explicit(&s->n_words, (uint8_t)n_words, memory_order_relaxed);
	/* From here on claims may succeed, those of stalled threads that knew an earlier incarnation too. */
	for (unsigned w = 0; w < n_words; w++)
		wh_word_free(&s->control->free[w], wh_slot_word(s, w));
	atomic_fetch_or_explicit(&pool->classes[class].slots[index / 64], UINT64_C(1) << (index % 64),
		memory_order_release);
	pool->classes[class].bytes += bytes;
	account(pool, pool->bytes + bytes);
	pool->freed = true;
	return 0;
}

static size_t page(void)
{
	static _Atomic size_t size;
	size_t known = atomic_load_explicit(&size, memory_order_relaxed);
	if (!known)
		atomic_store_explicit(&size, known = (size_t)sysconf(_SC_PAGESIZE), memory_order_relaxed);
	return known;
}

static size_t unit_of(unsigned class) { return wh_max((size_t)1 << wh_class_shift(class), page()); }

/* Smallest segment in which a run of n fits. */
static uint64_t smallest(unsigned class, unsigned n)
{
	return wh_align_up((size_t)n << wh_class_shift(class), unit_of(class));
}

static uint64_t room(const struct wharf_pool *pool)
{
	return pool->bytes < pool->bytes_max ? pool->bytes_max - pool->bytes : 0;
}

int wh_pool_grow(struct wharf_pool *pool, unsigned class, unsigned n, size_t bytes_wanted, uint32_t flags,
	unsigned *ret_slot)
{
	uint64_t unit = unit_of(class), least = smallest(class, n), left = room(pool), bytes, most;
	uint64_t run = (uint64_t)wh_run_align(n) << wh_class_shift(class);
	unsigned index = find_empty(pool);
	int error;

	if (left < least || index == WH_SLOTS_MAX)
		return -EAGAIN;
	/* As much again as the class has, so that many small requests do not make many segments. */
	most = (uint64_t)WH_SLOT_WORDS * WH_WORD_CHUNKS << wh_class_shift(class);
	most = most < SMALL_MAX ? most : run * RUNS_MAX > SMALL_MAX ? run * RUNS_MAX : SMALL_MAX;
	bytes = wh_max(pool->classes[class].bytes, wh_max(SMALL_FIRST, bytes_wanted));
	bytes = bytes < most ? bytes : most;
	bytes = bytes > run ? bytes : run;
	bytes = (bytes < left ? bytes : left) / unit * unit;
	bytes = bytes > least ? bytes : least;
	error = make_slot(pool, index);
	if (!error)
		error = make_memory(pool, index, class, bytes, flags);
	if (error == -ENOMEM && bytes > least && index < pool->n_slots)
		error = make_memory(pool, index, class, least, flags);
	if (!error)
		*ret_slot = index;
	return error;
}

/* ---- Retiring ---- */

bool wh_slot_all_free(const struct wh_slot *s)
{
	for (unsigned w = 0; w < s->n_words; w++)
		if (atomic_load_explicit(&s->control->free[w], memory_order_seq_cst) != wh_slot_word(s, w))
			return false;
	return true;
}

/* Makes sure that nothing can be claimed from it any more, or changes nothing. */
static bool take_all(struct wh_slot *s)
{
	for (unsigned w = 0; w < s->n_words; w++)
		if (!wh_word_take_all(&s->control->free[w], wh_slot_word(s, w))) {
			while (w-- > 0)
				wh_word_free(&s->control->free[w], wh_slot_word(s, w));
			return false;
		}
	return true;
}

static void set_state(struct wh_slot *s, enum wh_slot_state state)
{
	wh_control_change_begin();
	atomic_store_explicit(&s->control->state, state, memory_order_seq_cst);
	wh_control_change_end();
}

static void leave_class(struct wharf_pool *pool, unsigned slot)
{
	struct wh_class *class = &pool->classes[pool->slots[slot]->class];
	atomic_fetch_and_explicit(&class->slots[slot / 64], ~(UINT64_C(1) << (slot % 64)), memory_order_acq_rel);
	class->bytes -= pool->slots[slot]->segment.bytes;
}

static void drop_memory(struct wharf_pool *pool, struct wh_slot *s)
{
	uint16_t *counts = (uint16_t *)atomic_load_explicit(&s->counts, memory_order_relaxed);

	account(pool, pool->bytes - s->segment.bytes);
	set_state(s, WH_SLOT_EMPTY);
	wh_control_change_begin();
	s->control->info = s->control->counts = 0;
	wh_control_change_end();
	wh_control_free((void *)s->info, s->n_words * WH_WORD_CHUNKS * sizeof(uint64_t));
	wh_control_free(counts, s->n_chunks * sizeof(uint16_t));
	wh_slot_narrow(s);
	wh_segment_close(&s->segment);
	atomic_store_explicit(&s->n_words, 0, memory_order_relaxed);
	atomic_store_explicit(&s->counts, NULL, memory_order_relaxed);
	s->info = NULL;
	s->base = NULL;
}

void wh_slot_finish(struct wharf_pool *pool, unsigned slot)
{
	struct wh_slot *s = pool->slots[slot];
	struct wh_full_lease *lease;

	if (wh_slot_state(s) != WH_SLOT_RETIRING || s->n_leases)
		return;
	for (uint32_t at = 0; (lease = wh_pool_next_lease(pool, &at));)
		wh_lease_forget_slot(lease, slot);
	drop_memory(pool, s);
	atomic_fetch_sub_explicit(&pool->n_retiring, 1, memory_order_relaxed);
	pool->freed = true;
}

static void begin_retiring(struct wharf_pool *pool, unsigned slot)
{
	struct wh_full_lease *lease;

	set_state(pool->slots[slot], WH_SLOT_RETIRING);
	atomic_fetch_add_explicit(&pool->n_retiring, 1, memory_order_seq_cst);
	for (uint32_t at = 0; (lease = wh_pool_next_lease(pool, &at));)
		if (wh_lease_slot_has(lease, slot, WH_SLOT_KNOWN | WH_SLOT_USED))
			wh_pool_kick(pool, lease);
	wh_slot_finish(pool, slot);
}

bool wh_slot_retire(struct wharf_pool *pool, unsigned slot)
{
	if (pool->slots[slot]->n_pinned || !take_all(pool->slots[slot]))
		return false;
	leave_class(pool, slot);
	begin_retiring(pool, slot);
	return true;
}

void wh_slot_kill(struct wharf_pool *pool, unsigned slot)
{
	/* Before its lent chunks become free: whoever claims one of them sees the state and gives it back. */
	set_state(pool->slots[slot], WH_SLOT_DEAD);
	leave_class(pool, slot);
	atomic_fetch_or_explicit(&pool->attention, WH_DEAD, memory_order_seq_cst);
}

void wh_pool_bury(struct wharf_pool *pool)
{
	bool left = false;

	if (!(atomic_load_explicit(&pool->attention, memory_order_relaxed) & WH_DEAD))
		return;
	for (unsigned i = 0; i < pool->n_slots; i++) {
		if (wh_slot_state(pool->slots[i]) != WH_SLOT_DEAD)
			continue;
		if (take_all(pool->slots[i]))
			begin_retiring(pool, i);
		else
			left = true;
	}
	if (!left)
		atomic_fetch_and_explicit(&pool->attention, ~(uint32_t)WH_DEAD, memory_order_seq_cst);
}

void wh_slot_free(struct wharf_pool *pool, unsigned slot)
{
	struct wh_slot *s = pool->slots[slot];

	if (s->n_words)
		drop_memory(pool, s);
	wh_control_free(s->control, sizeof(*s->control));
	free(s);
}

/* ---- Making room ---- */

static bool idle(const struct wh_slot *s) { return wh_slot_state(s) == WH_SLOT_LIVE && wh_slot_all_free(s); }

struct room {
	uint64_t bytes;
	bool slot;
};

static struct room room_now(const struct wharf_pool *pool)
{
	return (struct room){ .bytes = room(pool), .slot = find_empty(pool) < WH_SLOTS_MAX };
}

static void add_room(struct room *r, uint64_t bytes)
{
	r->bytes += bytes;
	r->slot = true;
}

static bool enough(const struct room *r, uint64_t bytes) { return r->bytes >= bytes && r->slot; }

bool wh_pool_make_room(struct wharf_pool *pool, unsigned class, unsigned n, bool for_more)
{
	uint64_t least = smallest(class, n);
	struct room now = room_now(pool), coming = now, possible = now;

	if (enough(&now, least))
		return true;
	for (unsigned i = 0; i < pool->n_slots; i++) {
		struct wh_slot *s = pool->slots[i];
		if (wh_slot_state(s) == WH_SLOT_RETIRING) {
			add_room(&coming, s->segment.bytes);
			add_room(&possible, s->segment.bytes);
		} else if (idle(s) && !(for_more && s->class == class)) {
			add_room(&possible, s->segment.bytes);
		}
	}
	/* What has just come back may be what is asked for. */
	if (!for_more && wh_pool_has_run(pool, class, n))
		return true;
	/* Not even with all of them: wait for chunks, not for segments. */
	if (!enough(&possible, least))
		return false;
	/* First those that no peer has mapped: their memory comes at once. */
	for (int mapped = 0; mapped < 2; mapped++)
		for (unsigned i = 0; i < pool->n_slots && !enough(&coming, least); i++) {
			struct wh_slot *s = pool->slots[i];
			if (wh_slot_state(s) != WH_SLOT_LIVE || (s->n_leases > 0) != mapped ||
			    (for_more && s->class == class))
				continue;
			uint64_t bytes = s->segment.bytes;
			if (wh_slot_all_free(s) && wh_slot_retire(pool, i))
				add_room(&coming, bytes);
		}
	now = room_now(pool);
	return enough(&now, least);
}
