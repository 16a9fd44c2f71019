/* SPDX-License-Identifier: MIT */
/* The receiver's side of one announced segment: a read-only mapping, and the map in which it returns chunks. */
#ifndef WH_VIEW_H
#define WH_VIEW_H

#include "base.h"

/*
 * The first cache line of a release map, before its words. `wanted` is set by an owner that waits for room and
 * taken (exchanged to 0) by the receiver that then owes it one release-wake.
 */
struct wh_release_map {
	uint32_t magic;
	uint32_t n_words;
	_Atomic uint32_t wanted;
	uint32_t reserved[13];
	_Atomic uint64_t words[];
};

enum { WH_VIEW_RETIRED = 1 << 30 }; /* the owner wants it back: whoever leaves only the port's reference tells the port */

struct wh_view {
	const char *base;           /* read-only mapping of n_chunks << chunk_shift bytes */
	struct wh_release_map *map;
	size_t bytes;
	size_t map_bytes;
	uint32_t n_chunks;
	uint8_t chunk_shift;
	uint16_t slot;
	_Atomic uint32_t refs;      /* the port's, and one per taken message that reads it; and WH_VIEW_RETIRED */
#if WH_ASSERTS >= 2
	/* chunks delivered and not yet released, once wh_view_hold was called: catches honest double releases */
	_Atomic uint64_t *held;
	bool untracked;             /* the peer lends a chunk twice: its releases tell nothing */
#endif
};

/*
 * Checks and maps what an announcement brought: memfds of the exact size, sealed against SHRINK, GROW and further seals
 * (the segment also FUTURE_WRITE or WRITE), fully allocated (st_blocks), regular, hugetlb only if allowed. Never trusts
 * a byte of them. Takes no fd: the caller closes both, always. *ret_why is a static text naming what is wrong.
 * 0; -EPROTO: the peer's fault; -ENOMEM, -EMFILE: ours.
 */
int wh_view_open(int segment_fd, int release_fd, uint16_t slot, uint8_t chunk_shift, uint32_t n_chunks,
	bool huge_allowed, struct wh_view **ret_view, const char **ret_why);

static inline struct wh_view *wh_view_ref(struct wh_view *v)
{
	atomic_fetch_add_explicit(&v->refs, 1, memory_order_relaxed);
	return v;
}
/* Takes NULL; unmaps with the last one. True: it was retired, and what is left is the port's reference. */
bool wh_view_unref(struct wh_view *view);

/* The port's thread. True: nobody else reads it. */
bool wh_view_retire(struct wh_view *view);
static inline bool wh_view_unread(const struct wh_view *v) /* a retired one */
{
	return atomic_load_explicit(&v->refs, memory_order_acquire) == (WH_VIEW_RETIRED | 1);
}

static inline const char *wh_view_at(const struct wh_view *v, uint32_t first, uint32_t offset)
{
	return v->base + ((size_t)first << v->chunk_shift) + offset;
}

/*
 * Chunks of one word are delivered: their release is expected once. For asserts=full; nothing otherwise. The port's
 * loop.
 */
#if WH_ASSERTS >= 2
void wh_view_hold(struct wh_view *view, uint32_t word, uint64_t bits);
#else
static inline void wh_view_hold(struct wh_view *view, uint32_t word, uint64_t bits)
{
	(void)view, (void)word, (void)bits;
}
#endif

/*
 * Returns chunks of one word. True: the owner waits for room and the caller now owes it a release-wake.
 * Sequentially consistent with the owner's store to `wanted` and its second look at the words: one of the two sees the
 * other.
 */
static inline bool wh_view_release(struct wh_view *v, uint32_t word, uint64_t bits)
{
#if WH_ASSERTS >= 2
	wh_assert(!v->held || (atomic_fetch_and(&v->held[word], ~bits) & bits) == bits || v->untracked);
#endif
	atomic_fetch_or_explicit(&v->map->words[word], bits, memory_order_seq_cst);
	return atomic_load_explicit(&v->map->wanted, memory_order_seq_cst) &&
		atomic_exchange_explicit(&v->map->wanted, 0, memory_order_seq_cst);
}

#endif
