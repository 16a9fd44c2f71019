/* SPDX-License-Identifier: MIT */
/*
 * Pools: segments that one process lends from, claimed by any of its threads, lent to peers through leases.
 *
 * A chunk is, at any time, exactly one of: free (its bit is set in a word of the allocation bitmap, or in the loop
 * thread's private copy of a word), claimed (in a wharf_buf), or lent (its bit is set in a lease's lent word). Several
 * holders of one chunk are counted per chunk; the last one to let go frees it.
 */
#ifndef WH_POOL_H
#define WH_POOL_H

#include "base.h"
#include "wharf.h"
#include "wire.h"

enum {
	WH_SLOTS_MAX = WH_WIRE_SLOTS_MAX, /* segments of one pool */
	WH_RUN_CHUNKS_MAX = 64,
	WH_CHUNK_SHIFT_MIN = 8,    /* 256 B */
	WH_CHUNK_SHIFT_MAX = 24,   /* 16 MiB */
};

/*
 * wharf_buf.opaque: the pool, and where its run is. A place without its length names a word: slots and words are
 * compared at once.
 */
enum { WH_PLACE_CHUNKS_SHIFT = 16, WH_PLACE_FIRST_SHIFT = 32 };
#define WH_PLACE_WORD UINT64_C(0xffffffc00000ffff)
#define WH_PLACE_NONE UINT64_C(0xffff) /* no pool has this slot */

static inline uint64_t wh_place(uint16_t slot, uint32_t first, uint32_t n_chunks)
{
	return (uint64_t)first << WH_PLACE_FIRST_SHIFT | (uint64_t)n_chunks << WH_PLACE_CHUNKS_SHIFT | slot;
}
static inline uint16_t wh_place_slot(uint64_t place) { return (uint16_t)place; }
static inline uint32_t wh_place_chunks(uint64_t place) { return (uint32_t)(place >> WH_PLACE_CHUNKS_SHIFT) & 0x7f; }
static inline uint32_t wh_place_first(uint64_t place) { return (uint32_t)(place >> WH_PLACE_FIRST_SHIFT); }
static inline uint64_t wh_place_bits(uint64_t place)
{
	return (~UINT64_C(0) >> ((64 - wh_place_chunks(place)) & 63)) << (wh_place_first(place) & 63);
}

/*
 * CLOCK_MONOTONIC in units of 2^20 ns, as of the last turn of any loop of this process, or since a pool was made: for run
 * info.
 */
extern _Atomic uint32_t wh_pool_now;
static inline void wh_pool_set_now(uint64_t ns)
{
	uint32_t stamp = (uint32_t)(ns >> 20);

	if (atomic_load_explicit(&wh_pool_now, memory_order_relaxed) != stamp)
		atomic_store_explicit(&wh_pool_now, stamp, memory_order_relaxed);
}

/* What sending touches for every message; the rest of a lease is in pool_internal.h. The loop's thread only. */
struct wh_lease {
	uint64_t pool;             /* its address, as in wharf_buf.opaque */
	uint64_t word;             /* the place of the word last lent from, without length, or WH_PLACE_NONE */
	uint64_t bits;             /* lent chunks of it, not yet published */
	_Atomic uint64_t *info;    /* run info of it */
	_Atomic uint64_t *counted; /* chunks of it that several hold */
	uint64_t now;              /* wh_pool_now when the open frame was begun */
	uint32_t turn;
	uint32_t n_pending;        /* further words with bits to publish */
	uint64_t known[WH_SLOTS_MAX / 64]; /* slots that the peer was told of */
};


/* What the peer must know to map a segment. fds stay the lease's: valid until wh_lease_announced or detach. */
struct wh_announcement {
	uint16_t slot;
	uint8_t chunk_shift;
	uint8_t huge;
	uint32_t n_chunks;
	int segment_fd;
	int release_fd;
};

/*
 * Joins a port to a pool. kick(owner) is called from any thread, without locks held, when the port's loop ought to
 * call wh_pool_room, wh_lease_poisoned and wh_lease_next_retire: it must be cheap, idempotent and must not call back.
 * It is not called any more once wh_lease_detach has returned. loop_id: what wh_current_loop is on the thread of the
 * loop that runs the port: that thread may use the pool's private words if the pool is not shared.
 * 0; -ECHILD; -EXDEV: private and joined now; -ENOMEM; -EMFILE; -EUSERS: WHARF_POOL_PORTS_MAX leases.
 */
int wh_pool_attach(struct wharf_pool *pool, const void *loop_id, void (*kick)(void *owner), void *owner,
	struct wh_lease **ret_lease);

/*
 * Ends the lease. A shared pool has its lent chunks back at once (its peers may read all of it anyway); a private pool
 * drops the segments that the peer knew and never writes to them again, for the peer may go on reading, and a next
 * peer's messages must not be readable by this one. Waits for a kick that another thread is in. Loop's thread. Takes NULL.
 */
void wh_lease_detach(struct wh_lease *lease);

uint64_t wh_lease_lent_bytes(const struct wh_lease *lease); /* in whole chunks; lent minus harvested */
uint64_t wh_lease_cost(const struct wh_lease *lease, const struct wharf_buf *buf); /* of a claim, when it is lent */

static inline struct wharf_pool *wh_lease_pool(const struct wh_lease *lease)
{
	return (struct wharf_pool *)(uintptr_t)lease->pool;
}
bool wh_lease_shared(const struct wh_lease *lease);
/* The peer maps no more than this: a private pool stays within it, if it has not grown beyond already. */
void wh_lease_limit(struct wh_lease *lease, uint64_t bytes);
void wh_lease_forbid_huge(struct wh_lease *lease); /* in segments to come, if the pool is private */
bool wh_lease_slot_huge(const struct wh_lease *lease, uint16_t slot);
/* Of its segment; 0 if the lease has none, whoever names it. */
uint64_t wh_lease_slot_bytes(const struct wh_lease *lease, uint16_t slot);
void wh_lease_set_peer(struct wh_lease *lease, uint32_t pid); /* for the inspector */
uint64_t wh_lease_id(const struct wh_lease *lease);           /* its name in control memory */
void wh_lease_positions(const struct wh_lease *lease, uint32_t *ret_pool, uint32_t *ret_lease); /* there */

/* True: the peer has released what was not lent to it; wh_lease_harvest says -EPROTO. After kick. */
bool wh_lease_poisoned(const struct wh_lease *lease);

int wh_lease_lend_slowly(struct wh_lease *lease, const struct wharf_buf *buf, size_t offset, size_t size,
	uint32_t stream, struct wh_run *ret_run);
void wh_lease_publish_slowly(struct wh_lease *lease);

/* See control.h. */
static inline uint64_t wh_run_info(uint64_t place, uint32_t stream, uint64_t now)
{
	/* Above its chunks a place has no bits in its low half. */
	uint64_t n_less_one = ((uint32_t)place >> WH_PLACE_CHUNKS_SHIFT) - 1;

	return (uint64_t)stream << 38 | n_less_one << 32 | now;
}

static inline void wh_lease_fill_run(struct wh_lease *lease, uint64_t place, size_t offset, size_t size,
	uint32_t stream, struct wh_run *ret_run)
{
	atomic_store_explicit(&lease->info[wh_place_first(place) & 63], wh_run_info(place, stream, lease->now),
		memory_order_relaxed);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	/* A place is the first half of a run as a number: one store instead of four. */
	memcpy(ret_run, &place, sizeof(place));
#else
	ret_run->slot = wh_place_slot(place);
	ret_run->n_chunks = (uint8_t)wh_place_chunks(place);
	ret_run->flags = 0;
	ret_run->first = wh_place_first(place);
#endif
	ret_run->offset = (uint32_t)offset;
	ret_run->size = (uint32_t)size;
}

/*
 * Lends the range [offset, offset + size) of a claimed buffer (size > 0) to the lease's peer: the claim's hold
 * becomes the lease's, for all chunks of the buffer. The buffer is not touched: the caller empties it when the whole
 * message is accepted, or calls wh_lease_take_back. stream is kept beside {turn, port} for the inspector. Loop's
 * thread; hot.
 * 0; -EINVAL: empty, or a range outside; -EXDEV: another pool, or a segment of an earlier lease of this one; -EBUSY:
 * lent to this peer already; -ENOMEM: no memory for the lease's bits of a segment.
 */
static inline int wh_lease_lend(struct wh_lease *lease, const struct wharf_buf *buf, size_t offset, size_t size,
	uint32_t stream, struct wh_run *ret_run)
{
	uint64_t place = buf->opaque[1], bits = wh_place_bits(place);

	if (wh_unlikely((place & WH_PLACE_WORD) != lease->word || buf->opaque[0] != lease->pool || offset > buf->size ||
	    size - 1 >= buf->size - offset ||
	    (atomic_load_explicit(lease->counted, memory_order_relaxed) | lease->bits) & bits))
		return wh_lease_lend_slowly(lease, buf, offset, size, stream, ret_run);
	lease->bits |= bits;
	wh_lease_fill_run(lease, place, offset, size, stream, ret_run);
	return 0;
}

/* True when the peer does not know the slot yet: announce it before any run of it. Hot. */
static inline bool wh_lease_must_announce(const struct wh_lease *lease, uint16_t slot)
{
	return !(lease->known[slot / 64] >> (slot % 64) & 1);
}

/* Can the whole buffer be lent without leaving the word last lent from? Then wh_lease_lend_here does it. */
static inline bool wh_lease_at_word(const struct wh_lease *lease, const struct wharf_buf *buf)
{
	uint64_t place = buf->opaque[1];

	return (place & WH_PLACE_WORD) == lease->word && buf->opaque[0] == lease->pool && buf->size &&
		!((atomic_load_explicit(lease->counted, memory_order_relaxed) | lease->bits) & wh_place_bits(place)) &&
		!wh_lease_must_announce(lease, wh_place_slot(place));
}

static inline void wh_lease_lend_here(struct wh_lease *lease, const struct wharf_buf *buf, struct wh_run *ret_run)
{
	lease->bits |= wh_place_bits(buf->opaque[1]);
	wh_lease_fill_run(lease, buf->opaque[1], 0, buf->size, 0, ret_run);
}

/*
 * What is lent between these two is published only after the second, even when a frame leaves meanwhile: a message that
 * may still be taken back while the frame before it is sent. At most 64 runs.
 */
void wh_lease_hold(struct wh_lease *lease);
void wh_lease_unhold(struct wh_lease *lease);

/*
 * Undoes a lend whose run was not encoded into a frame that left. If it was published, a hostile peer may have
 * returned it too early: then the lease is poisoned, and the buffer is not safe to use in a shared pool.
 * wh_lease_hold prevents that.
 */
void wh_lease_take_back(struct wh_lease *lease, const struct wh_run *run);

/* The run will not reach the peer (dropped queue, failed encode) and nobody holds its buffer any more: frees it. */
void wh_lease_drop(struct wh_lease *lease, const struct wh_run *run);

/* Must be called after the last lend and before the frame that carries its run is handed to the kernel. */
static inline void wh_lease_publish(struct wh_lease *lease)
{
	if (lease->bits || lease->n_pending)
		wh_lease_publish_slowly(lease);
}

/*
 * Makes the release map when needed. 0; -ENOMEM; -EMFILE; -EPROTO: the peer has mapped it before, asking again is its
 * fault.
 */
int wh_lease_announcement(struct wh_lease *lease, uint16_t slot, struct wh_announcement *ret_announcement);
/*
 * The frame that carries it was accepted by the kernel (`sent`), or is encoded and will be (`!sent` keeps the fds).
 * The fds of a slot are closed by themselves once the peer's releases prove that it has mapped it.
 */
void wh_lease_announced(struct wh_lease *lease, uint16_t slot, bool sent);
/*
 * The peer says that the descriptors of an announcement were lost. 1: announce the slot again; 0: it is to be unmapped
 * anyway; -EPROTO: it cannot have got an announcement, or has mapped the slot.
 */
int wh_lease_lost(struct wh_lease *lease, uint16_t slot);

/*
 * Takes back everything that this lease's peer has released. Any thread. Returns bytes freed (whole chunks), or
 * -EPROTO: the peer released what was not lent to it.
 */
int64_t wh_lease_harvest(struct wh_lease *lease);

/*
 * Is any chunk of a run that was lent through this lease still with it, after what the peer has released of its word was
 * taken back? Whoever else holds the chunks does not matter, nor who took them back. Ask only until it is false: then
 * they may be lent anew. Loop's thread.
 */
bool wh_lease_holds(struct wh_lease *lease, const struct wh_run *run);

/*
 * While on, the peer owes a release-wake for its next release, whether anybody waits for room or not; and again after
 * each wake, once wh_lease_harvest or wh_pool_room was called for it. After turning it on, and after those two, look
 * with wh_lease_holds: what it says is still held brings a wake. Loop's thread.
 */
void wh_lease_watch(struct wh_lease *lease, bool on);

/*
 * After kick, a release-wake, or a failed claim: if a claim has failed since the last time and the same size would
 * succeed now, forgets that and returns true: the port fires on_writable. Else marks `wanted` on every lease and
 * looks once more, so that no release is missed. Loop's thread.
 */
bool wh_pool_room(struct wharf_pool *pool, struct wh_lease *lease);

/*
 * Retiring: the pool wants a slot's memory back. True: a slot that this lease's peer was told of; each once: the port
 * sends the record. Ask after kick; cheap when there is none. Loop's thread.
 */
bool wh_lease_next_retire(struct wh_lease *lease, uint16_t *ret_slot);
/* The peer has unmapped it: the memory goes when all leases' peers have. 0; -EPROTO: it was not asked to. */
int wh_lease_retired(struct wh_lease *lease, uint16_t slot);

/* wharf_buf_claim for the library's own use: a failure leaves no on_writable owed. size > 0. */
int wh_buf_claim_quietly(struct wharf_pool *pool, size_t size, struct wharf_buf *ret_buf);

/* In a forked child that starts over, after wh_control_restart: forgets the parent's pools. */
void wh_pool_restart(void);

/* What is lent from here on, is lent now. */
static inline void wh_lease_look_at_clock(struct wh_lease *lease)
{
	lease->now = atomic_load_explicit(&wh_pool_now, memory_order_relaxed);
}

/* What a port hears of its pool besides. bytes: of the claim, or that came back. */
enum wh_lease_news { WH_LEASE_CLAIMED, WH_LEASE_REFUSED, WH_LEASE_RETURNED };

/*
 * Is told of claims from a private pool by its loop's thread, and of what comes back; while somebody looks (trace.h), but
 * of refusals always. Each claim takes one of *claims_left, and is told of if there was one. Perhaps under the pool's
 * lock, and of what comes back by any thread: it must not call back.
 */
struct wh_lease_observer {
	void (*tell)(void *owner, enum wh_lease_news news, uint64_t bytes);
	int64_t *claims_left;
};
void wh_lease_observe(struct wh_lease *lease, const struct wh_lease_observer *observer); /* as long as the lease */

/* Once per turn in which the port sends: growth budget, window upkeep. */
void wh_lease_turn(struct wh_lease *lease, uint32_t turn);

#endif
