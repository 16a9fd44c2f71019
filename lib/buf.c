/* SPDX-License-Identifier: MIT */
/* Claimed buffers: the public functions. A buffer is a value; nothing is kept of it but the bits it took. */
#include <errno.h>

#include "pool_internal.h"
#include "wharf.h"

enum {
	PREFETCH_RUNS = 8,
	PREFETCH_SIZE_MAX = 256, /* 1 KiB went slower with it: a long write runs ahead by itself */
};
enum { LOCAL_SIZE_MAX = 3 << (WH_CHUNK_SHIFT_MIN + 2 * (WH_CLASS_LOCAL - 1)) };

static inline void fill(struct wharf_buf *buf, struct wharf_pool *pool, void *data, size_t size, uint64_t place)
{
	buf->data = data;
	buf->size = size;
	buf->opaque[0] = (uint64_t)(uintptr_t)pool;
	buf->opaque[1] = place;
}

static void *address(const struct wharf_pool *pool, uint64_t place)
{
	const struct wh_slot *s = pool->slots[wh_place_slot(place)];
	return s->base + ((size_t)wh_place_first(place) << wh_class_shift(s->class));
}

/*
 * The chunk that a claim like this one will get a few claims later, if it is free: the peer's processor has its
 * lines, and fetching one takes longer than making a message.
 */
static inline void prefetch(uint64_t data, uint64_t bits, unsigned chunk, unsigned shift, size_t size)
{
	if (size > PREFETCH_SIZE_MAX || chunk >= WH_WORD_CHUNKS || !(bits >> chunk & 1))
		return;
	const char *at = (const char *)(uintptr_t)data + ((size_t)chunk << shift);
	for (size_t i = 0; i < size; i += 64)
		wh_prefetch_write(at + i);
}

static int claim(struct wharf_pool *pool, size_t size, bool quietly, struct wharf_buf *ret_buf)
{
	unsigned class, n;
	uint64_t place;
	int error;

	if (!wh_pool_run_of(pool, size, &class, &n))
		return -EMSGSIZE;
	error = wh_pool_claim(pool, class, n, quietly, &place);
	if (error)
		return error;
	fill(ret_buf, pool, address(pool, place), size, place);
	return 0;
}

int wh_buf_claim_quietly(struct wharf_pool *pool, size_t size, struct wharf_buf *ret_buf)
{
	return claim(pool, size, true, ret_buf);
}

static __attribute__((noinline)) int claim_slowly(struct wharf_pool *pool, size_t size, struct wharf_buf *ret_buf)
{
	int error = pool && ret_buf && size ? claim(pool, size, false, ret_buf) : -EINVAL;

	if (error == -EAGAIN && wh_pool_local(pool))
		wh_lease_tell(pool->local_lease, WH_LEASE_REFUSED, size);
	return error;
}

static inline __attribute__((always_inline)) int claim_fast(
	struct wharf_pool *pool, size_t size, struct wharf_buf *ret_buf)
{
	if (wh_unlikely(!pool || !ret_buf || size - 1 >= LOCAL_SIZE_MAX || !wh_pool_fast(pool)))
		return claim_slowly(pool, size, ret_buf);
	/* From the private word of the class. */
	unsigned class = wh_class_of(size), shift = wh_class_shift(class), first;
	size_t more = (size - 1) >> shift; /* chunks but one */
	struct wh_local *local = &pool->local[class];
	uint64_t bits = atomic_load_explicit(&local->bits, memory_order_relaxed), left;
	if (wh_likely(more == 0)) {
		if (wh_unlikely(!bits))
			return claim_slowly(pool, size, ret_buf);
		first = (unsigned)__builtin_ctzll(bits);
		left = bits & (bits - 1);
	} else {
		uint64_t starts = wh_run_starts_few(bits, (unsigned)more + 1);
		if (wh_unlikely(!starts))
			return claim_slowly(pool, size, ret_buf);
		first = (unsigned)__builtin_ctzll(starts);
		left = bits & ~(((UINT64_C(2) << more) - 1) << first);
	}
	atomic_store_explicit(&local->bits, left, memory_order_relaxed);
	prefetch(local->data, left, first + PREFETCH_RUNS * ((unsigned)more + 1), shift, size);
	fill(ret_buf, pool, (char *)(uintptr_t)local->data + ((size_t)first << shift), size,
		atomic_load_explicit(&local->where, memory_order_relaxed) + wh_place(0, first, (uint32_t)more + 1));
	return 0;
}

static __attribute__((noinline)) int claim_unusually(struct wharf_pool *pool, size_t size, struct wharf_buf *ret_buf)
{
	const struct wh_full_lease *lease;
	int error = wh_forked() ? -ECHILD : claim_fast(pool, size, ret_buf);

	if (error || !wh_pool_local(pool))
		return error;
	lease = pool->local_lease;
	if (lease->observer && (*lease->observer->claims_left)-- > 0)
		wh_lease_tell(lease, WH_LEASE_CLAIMED, size);
	return 0;
}

int wharf_buf_claim(wharf_pool *pool, size_t size, struct wharf_buf *ret_buf)
{
	return wh_usual() ? claim_fast(pool, size, ret_buf) : claim_unusually(pool, size, ret_buf);
}

int wharf_buf_claim_wait(wharf_pool *pool, size_t size, int64_t timeout_ns, struct wharf_buf *ret_buf)
{
	if (wh_forked())
		return -ECHILD;
	if (!pool || !ret_buf)
		return -EINVAL;
	if (size == 0)
		return -EINVAL;
	if (wh_current_loop)
		return -EDEADLK;
	unsigned class, n;
	uint64_t place;
	if (!wh_pool_run_of(pool, size, &class, &n))
		return -EMSGSIZE;
	int error = wh_pool_claim_wait(pool, class, n, timeout_ns, &place);
	if (error)
		return error;
	fill(ret_buf, pool, address(pool, place), size, place);
	return 0;
}

static void give_back(struct wharf_pool *pool, unsigned slot, unsigned word, uint64_t bits)
{
	struct wh_slot *s = pool->slots[slot];

	if (s->class < WH_CLASS_LOCAL && wh_pool_fast(pool)) {
		/* Into the private word, but not into an empty one: others may have seen that nothing is there. */
		struct wh_local *local = &pool->local[s->class];
		uint64_t have = atomic_load_explicit(&local->bits, memory_order_relaxed);
		uint64_t where = atomic_load_explicit(&local->where, memory_order_relaxed);
		if (have && where == wh_place((uint16_t)slot, word * WH_WORD_CHUNKS, 0)) {
			atomic_store_explicit(&local->bits, have | wh_slot_let_go(s, word, bits), memory_order_relaxed);
			return;
		}
	}
	wh_slot_put(s, word, bits);
	wh_pool_freed(pool);
}

void wharf_buf_abandon(struct wharf_buf *buf)
{
	if (!buf || !buf->data || wh_forked())
		return;
	uint64_t place = buf->opaque[1];
	struct wharf_pool *pool = (struct wharf_pool *)(uintptr_t)buf->opaque[0];
	*buf = (struct wharf_buf)WHARF_BUF_EMPTY;
	give_back(pool, wh_place_slot(place), wh_place_first(place) / WH_WORD_CHUNKS, wh_place_bits(place));
}

int wharf_buf_trim(struct wharf_buf *buf, size_t size)
{
	if (wh_forked())
		return -ECHILD;
	if (!buf || !buf->data || size == 0 || size > buf->size)
		return -EINVAL;
	struct wharf_pool *pool = (struct wharf_pool *)(uintptr_t)buf->opaque[0];
	uint64_t place = buf->opaque[1];
	unsigned slot = wh_place_slot(place), first = wh_place_first(place), n = wh_place_chunks(place);
	unsigned word = first / WH_WORD_CHUNKS;
	const struct wh_slot *s = pool->slots[slot];
	unsigned keep = wh_chunks_of(size, s->class);
	/* Another holder may be reading the tail. */
	if (atomic_load_explicit(&s->control->counted[word], memory_order_acquire) & wh_place_bits(place))
		return -EINVAL;
	buf->size = size;
	if (keep == n)
		return 0;
	buf->opaque[1] = wh_place((uint16_t)slot, first, keep);
	give_back(pool, slot, word, wh_place_bits(wh_place((uint16_t)slot, first + keep, n - keep)));
	return 0;
}

/* One more holder of each chunk, or none. The buffer's own hold keeps them where they are. */
static int count_holders(struct wh_slot *s, unsigned word, uint64_t bits)
{
	_Atomic uint16_t *counts = atomic_load_explicit(&s->counts, memory_order_acquire);
	uint64_t counted = atomic_load_explicit(&s->control->counted[word], memory_order_acquire), done = 0;

	counts += (size_t)word * WH_WORD_CHUNKS;
	for (uint64_t rest = bits & counted; rest; rest &= rest - 1) {
		unsigned bit = (unsigned)__builtin_ctzll(rest);
		uint16_t count = atomic_load_explicit(&counts[bit], memory_order_relaxed);
		while (count < UINT16_MAX &&
		    !atomic_compare_exchange_weak_explicit(&counts[bit], &count, (uint16_t)(count + 1),
			memory_order_relaxed, memory_order_relaxed))
			;
		if (count == UINT16_MAX) {
			for (; done; done &= done - 1)
				atomic_fetch_sub_explicit(&counts[__builtin_ctzll(done)], 1, memory_order_relaxed);
			return -EOVERFLOW;
		}
		done |= UINT64_C(1) << bit;
	}
	/* Not counted: this buffer is the only holder, so nobody else looks at the count. */
	for (uint64_t rest = bits & ~counted; rest; rest &= rest - 1)
		atomic_store_explicit(&counts[__builtin_ctzll(rest)], 2, memory_order_relaxed);
	if (bits & ~counted)
		atomic_fetch_or_explicit(&s->control->counted[word], bits & ~counted, memory_order_release);
	return 0;
}

int wharf_buf_ref(const struct wharf_buf *buf, struct wharf_buf *ret_buf)
{
	int error;

	if (wh_forked())
		return -ECHILD;
	if (!buf || !buf->data || !ret_buf)
		return -EINVAL;
	struct wharf_pool *pool = (struct wharf_pool *)(uintptr_t)buf->opaque[0];
	uint64_t place = buf->opaque[1];
	struct wh_slot *s = pool->slots[wh_place_slot(place)];
	if (wh_unlikely(!atomic_load_explicit(&s->counts, memory_order_acquire))) {
		wh_pool_lock(pool);
		error = wh_slot_count(s);
		wh_pool_unlock(pool);
		if (error)
			return error;
	}
	error = count_holders(s, wh_place_first(place) / WH_WORD_CHUNKS, wh_place_bits(place));
	if (error)
		return error;
	*ret_buf = *buf;
	return 0;
}
