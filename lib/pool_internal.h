/* SPDX-License-Identifier: MIT */
/*
 * What the files of the pool share: slot.c (segments), claim.c, room.c (waiting), lease.c, harvest.c, pool.c and buf.c.
 *
 * Who may touch what
 *   Words (free, counted, counts, lent, holders, release maps) are atomics. Claims change free words from any thread.
 *   Lent words are set by the lease's loop, and cleared by whoever harvests: the lease's loop at any time, other
 *   threads under the pool's lock. Everything about slots, leases and windows changes under the lock; a lease's fields
 *   change only on its loop's thread besides, which therefore reads them without it. That goes for its table of slots,
 *   too: other threads look into it under the lock only, and not beyond its end.
 *
 * Nothing before it is needed
 *   Most ports are idle, and every port has a pool: so the tables of a pool are made by the first claim, those of a
 *   lease by the first lend, the private words by the first claim of the loop that uses them.
 *
 * A claim pins its slot
 *   A slot is emptied by taking each of its words from "all free" to 0, which fails while a chunk is out. A stalled
 *   claimer finds 0 then, or a later incarnation's bits: so the slot's class is looked at after the claim. Slots'
 *   control words live as long as the pool.
 *
 * Who may hold chunks of a word
 *   Bit i of holders[w] names lease i below 64. The others are in groups of 64, in `wide`: WH_GROUPS words for each
 *   w, of which word g is for group g, and word 0 is a summary: bit g says that word g may have bits. A pool that never
 *   had that many leases has no `wide`. A bit too many costs a look; a bit too few would lose chunks.
 *   Whoever lends sets the lent bits, then looks at its holder bit, then at the summary's, and sets what is not set.
 *   Only the harvester clears, and the lock keeps it alone: a holder bit, after which it looks at the lent bits; a
 *   summary bit, after which it looks at the group's word; and sets it again if there is something. All of it is
 *   sequentially consistent. A lender that found a bit set did so before it was cleared, with what is below that bit
 *   there already: so the harvester's second look sees it. A lender that found it cleared sets it. And what the
 *   harvester itself sets again at one level it sets before it looks there on behalf of the level above.
 *
 * Private words
 *   If a pool is not shared, its port's loop takes whole words of the small classes with one exchange (pool->local) and
 *   carves them with plain stores. It must give them back when others want them: whoever sets `attention` looks at
 *   local.bits next, the loop sets local.bits and looks at `attention` next, all of it sequentially consistent. So
 *   either the loop sees the flag, or the other sees the bits and kicks the loop.
 *
 * The end
 *   Handles and leases are counted, claimed buffers are not. With the last handle ORPHAN is set; the pool goes when
 *   every chunk is free, which whoever frees a chunk looks at next. By then another thread may have ended the pool: so
 *   the memory of struct wharf_pool is never given back, only used for other pools.
 */
#ifndef WH_POOL_INTERNAL_H
#define WH_POOL_INTERNAL_H

#include <pthread.h>

#include "bitmap.h"
#include "control.h"
#include "guard.h"
#include "pool.h"
#include "segment.h"
#include "trace.h"

enum {
	WH_CLASSES = 9,
	WH_CLASS_LOCAL = WH_CONTROL_LOCALS, /* classes below have private words: chunks up to 16 KiB */
	WH_LEASES_MAX = WHARF_POOL_PORTS_MAX,
	WH_PENDING_MAX = 128,
	WH_MAP_WORDS = WH_SLOTS_MAX / 64,
	WH_GROUPS = WH_LEASES_MAX / 64,
};
#define WH_SIZE_MAX ((size_t)64 << WH_CHUNK_SHIFT_MAX)

enum wh_attention {
	WH_WAITERS = 1, /* threads sleep in wharf_buf_claim_wait */
	WH_FAILED = 2,  /* a claim failed, and a port is owed an on_writable */
	WH_ORPHAN = 4,  /* nobody holds the pool but claimed buffers */
	WH_DEAD = 8,    /* a dead slot waits for its last claimed chunk */
};

/* A word of a class: slot << 8 | word. Ordered as the cursor goes. */
#define WH_NOWHERE UINT32_MAX

struct wh_slot {
	struct wh_control_slot *control;
	char *base;
	_Atomic uint64_t *info;
	_Atomic uint16_t *_Atomic counts;  /* made by the first wharf_buf_ref */
	_Atomic uint8_t n_words;           /* 0: no memory */
	uint8_t class;
	uint8_t idle_laps;                 /* outside the window since, up to a few */
	uint64_t idle_since_ns;
	bool keep;                         /* asked for by wharf_pool_reserve: stays when idle */
	uint32_t n_leases;                 /* that have used, pinned or announced it */
	uint32_t n_pinned;
	_Atomic uint64_t *wide;            /* holders among the leases from 64 on; goes with the memory */
	uint32_t n_chunks;
	struct wh_segment segment;
};

struct wh_class {
	_Atomic uint64_t slots[WH_MAP_WORDS]; /* live slots of this class */
	_Atomic uint32_t cursor;           /* of claims by compare-and-swap: the word they are at */
	_Atomic uint32_t window;           /* end, exclusive */
	uint64_t bytes;                    /* in segments */
	uint8_t failed;                    /* smallest run that could not be claimed; 0: none */
	uint32_t n_owed;                   /* leases that are to be told when it can */
	uint32_t asked;                    /* goes up when all of them are to be told: see wh_lease_owed */
	/* The private word's loop. */
	uint32_t at;                       /* the word it has, or had */
	bool again;                        /* look at that word once more before the next */
	uint32_t lap_free, lap_chunks;     /* seen in this lap */
	_Atomic uint32_t laps;
	uint32_t laps_seen;                /* by upkeep */
};

struct wh_pending {
	uint16_t slot;
	uint16_t word;
	uint64_t bits;
};

enum wh_lease_slot_flag {
	WH_SLOT_USED = 1,        /* was lent from; hot.word is of one of those */
	WH_SLOT_PINNED = 2,      /* its fds are in a frame */
	WH_SLOT_KNOWN = 4,       /* as in hot.known */
	WH_SLOT_RETIRE_SENT = 8,
	WH_SLOT_KEPT = WH_SLOT_USED | WH_SLOT_PINNED | WH_SLOT_KNOWN, /* its memory stays while a lease has one of them */
};

struct wh_lease_slot {
	_Atomic uint64_t *lent;            /* control memory; as long as the lease */
	struct wh_release_map *map;
	int release_fd;                    /* -1: none */
	uint8_t flags;
	_Atomic bool proven;               /* the peer has returned chunks of it: it has mapped it */
};

struct wh_full_lease {
	struct wh_lease hot;
	struct wharf_pool *pool;
	struct wh_control_lease *control;
	uint32_t index;
	uint32_t n_held;                   /* pending entries older than wh_lease_hold */
	void (*kick)(void *owner);
	void *owner;
	const struct wh_lease_observer *observer;
	_Atomic bool kicked;               /* and neither wh_pool_room nor wh_lease_next_retire was called since */
	_Atomic bool poisoned;
	bool wanted;                       /* every release map is marked; counted in pool->n_marked */
	bool watched;                      /* wh_lease_watch: the marks stay when nobody waits any more */
	bool held;                         /* wh_lease_hold */
	_Atomic bool queued;               /* in pool->kicks */
	uint16_t open_fds;                 /* slots with a release fd */
	struct wh_full_lease *next_kick;
	uint32_t told[WH_CLASSES];         /* the port was told of the claims that failed up to this one's class->asked */
	uint32_t closed_turn, upkeep_turn; /* when these were last seen to */
	_Atomic uint64_t lent_bytes;       /* ever; written by the loop */
	_Atomic uint64_t returned_here;    /* ever; by the loop without the lock: one writer at a time, as */
	_Atomic uint64_t returned_bytes;   /* the rest, under the lock */
	struct wh_pending *pending;        /* WH_PENDING_MAX; this and slots from the first lend on */
	struct wh_lease_slot *slots;
	uint32_t n_slots;                  /* of that table: a power of two; slots beyond it were never used */
	uint32_t kicks;                    /* threads inside kick */
	_Atomic uint32_t *lent_positions;  /* of its lent words, for an inspector */
};

struct wharf_pool {
	const void *_Atomic fast_loop;     /* local_loop, or &wh_nobody while somebody wants what is in private words */
	struct wh_local *local;            /* control->local; wh_no_local until the loop first claims */
	const void *_Atomic local_loop;    /* whose thread has the private words; NULL: none has */
	_Atomic uint32_t attention;
	bool shared;
	_Atomic bool grown;                /* classes and slots are there; without the lock, look here first */
	struct wh_control_pool *control;
	struct wh_full_lease *local_lease;
	_Atomic uint64_t bytes_max;
	struct wh_class *classes;          /* WH_CLASSES */
	struct wh_slot **slots;            /* WH_SLOTS_MAX; each made once, then there until the pool goes */
	_Atomic uint32_t *slot_positions;  /* the same for an inspector */
	uint32_t n_slots;                  /* made so far */

	pthread_mutex_t lock;
	pthread_cond_t kick_done;
	_Atomic uint32_t refs;
	_Atomic uint32_t sequence;         /* futex: changes when waiters ought to look */
	struct wh_full_lease *_Atomic kicks; /* when the lock is dropped; pushed by anybody, popped under it */
	_Atomic uint32_t n_retiring;
	uint32_t n_waiters;
	uint32_t flags;                    /* WHARF_PREFAULT, WHARF_HUGE */
	bool freed;                        /* under this lock chunks became free, or room */
	bool had_lease;
	uint64_t bytes;                    /* in segments */
	struct wh_full_lease **leases;     /* by index, with gaps; a private pool's only one is leases[0] */
	struct wh_full_lease *first_lease; /* what that points to while there is one */
	uint32_t leases_size;
	uint32_t n_leases;
	uint32_t n_marked;                 /* leases with `wanted` */
	bool marked;                       /* for waiters, not only for those who watch */
	bool wide;                         /* slots with memory have `wide` */
	uint32_t upkeeps;                  /* asked for since the last */
	struct wh_fork_hook fork_hook;
	char name[32];
	struct wharf_pool *next_spare;
};

static inline struct wh_full_lease *wh_full(struct wh_lease *lease) { return (struct wh_full_lease *)lease; }
static inline const struct wh_full_lease *wh_full_const(const struct wh_lease *lease)
{
	return (const struct wh_full_lease *)lease;
}

/* The lease at *at or the next one after, with *at moved behind it; NULL: no more. Under the lock. */
static inline struct wh_full_lease *wh_pool_next_lease(const struct wharf_pool *pool, uint32_t *at)
{
	while (*at < pool->leases_size) {
		struct wh_full_lease *lease = pool->leases[(*at)++];
		if (lease)
			return lease;
	}
	return NULL;
}

static inline void wh_holder_set(_Atomic uint64_t *word, unsigned bit)
{
	if (!(atomic_load_explicit(word, memory_order_seq_cst) >> bit & 1))
		atomic_fetch_or_explicit(word, UINT64_C(1) << bit, memory_order_seq_cst);
}

/* After the lent bits: whoever clears a lease's bit looks at them once more. */
static inline void wh_holders_add(struct wh_slot *s, unsigned word, uint32_t index)
{
	if (wh_likely(index < 64)) {
		wh_holder_set(&s->control->holders[word], index);
		return;
	}
	_Atomic uint64_t *wide = s->wide + (size_t)word * WH_GROUPS;
	wh_holder_set(&wide[index / 64], index % 64);
	wh_holder_set(&wide[0], index / 64);
}

/* What a lease has of a slot; NULL: it never used it. */
static inline struct wh_lease_slot *wh_lease_slot(const struct wh_full_lease *lease, unsigned slot)
{
	return slot < lease->n_slots ? &lease->slots[slot] : NULL;
}
static inline bool wh_lease_slot_has(const struct wh_full_lease *lease, unsigned slot, unsigned flags)
{
	return slot < lease->n_slots && lease->slots[slot].flags & flags;
}
static inline bool wh_lease_has_map(const struct wh_full_lease *lease, unsigned slot)
{
	return slot < lease->n_slots && lease->slots[slot].map;
}

static inline unsigned wh_class_shift(unsigned class) { return WH_CHUNK_SHIFT_MIN + 2 * class; }

/*
 * The smallest class in which 1 to 3 chunks hold size bytes (1 to WH_SIZE_MAX). Four would be one of the next class: the
 * same memory, but a run that needs no alignment, and a word that lasts four times as long.
 */
static inline unsigned wh_class_of(size_t size)
{
	unsigned class = ((unsigned)(63 - __builtin_clzll((uint64_t)(size - 1) | 512)) - 8) / 2;
	class += (size - 1) >> wh_class_shift(class) == 3;
	return class < WH_CLASSES ? class : WH_CLASSES - 1;
}
static inline unsigned wh_chunks_of(size_t size, unsigned class)
{
	return (unsigned)((size - 1) >> wh_class_shift(class)) + 1;
}

/* All chunks of a word of a slot. */
static inline uint64_t wh_slot_word(const struct wh_slot *s, unsigned word)
{
	unsigned n = s->n_chunks - word * WH_WORD_CHUNKS;
	return wh_run_bits(n < WH_WORD_CHUNKS ? n : WH_WORD_CHUNKS);
}

static inline uint32_t wh_slot_state(const struct wh_slot *s)
{
	return atomic_load_explicit(&s->control->state, memory_order_acquire);
}

/* ---- pool.c ---- */

void wh_pool_lock(struct wharf_pool *pool);
/* Also wakes waiters and kicks the ports that are owed room, if chunks became free under the lock. */
void wh_pool_unlock(struct wharf_pool *pool);
/* Takes effect when the lock is dropped, or with wh_pool_run_kicks. */
void wh_pool_kick(struct wharf_pool *pool, struct wh_full_lease *lease);
void wh_pool_run_kicks(struct wharf_pool *pool);
/* Under the lock, when nobody finds the lease any more. */
void wh_pool_forget_kick(struct wharf_pool *pool, struct wh_full_lease *lease);
void wh_pool_freed_slowly(struct wharf_pool *pool);
int wh_pool_make_tables(struct wharf_pool *pool); /* under the lock: classes and slots. 0; -ENOMEM; -EMFILE */

/*
 * After chunks were made free without the lock: waiters, owed ports, a dead slot or the end of the pool. The pool may
 * be gone already when this is called (see above).
 */
static inline void wh_pool_freed(struct wharf_pool *pool)
{
	if (wh_unlikely(atomic_load_explicit(&pool->attention, memory_order_seq_cst)))
		wh_pool_freed_slowly(pool);
}

/* Somebody waits for room: what the loop keeps to itself is theirs, too. */
static inline bool wh_pool_wanted(const struct wharf_pool *pool)
{
	return atomic_load_explicit(&pool->attention, memory_order_seq_cst) & (WH_WAITERS | WH_FAILED);
}

/* Is this the thread that has the private words, while they may be used? */
static inline bool wh_pool_local(const struct wharf_pool *pool)
{
	const void *loop = wh_current_loop;
	return loop && loop == atomic_load_explicit(&pool->local_loop, memory_order_relaxed);
}

extern const char wh_nobody; /* is no loop */
extern const struct wh_local wh_no_local[WH_CLASS_LOCAL]; /* nothing is in them, and nothing is ever put there */

/* The same, and nobody wants what is in them. */
static inline bool wh_pool_fast(const struct wharf_pool *pool)
{
	return wh_current_loop == atomic_load_explicit(&pool->fast_loop, memory_order_relaxed);
}

/* ---- slot.c ---- */

/* Lets go of chunks of one word: those that nobody else holds, which are now the caller's to make free. */
uint64_t wh_slot_let_go_counted(struct wh_slot *s, unsigned word, uint64_t bits, uint64_t counted);
static inline uint64_t wh_slot_let_go(struct wh_slot *s, unsigned word, uint64_t bits)
{
	uint64_t counted = atomic_load_explicit(&s->control->counted[word], memory_order_acquire) & bits;
	return wh_likely(!counted) ? bits : wh_slot_let_go_counted(s, word, bits, counted);
}
/* Lets go and makes free. Without the lock: wh_pool_freed must follow. */
static inline void wh_slot_put(struct wh_slot *s, unsigned word, uint64_t bits)
{
	bits = wh_slot_let_go(s, word, bits);
	if (bits)
		wh_word_free(&s->control->free[word], bits);
}

/* All under the lock. */
bool wh_slot_all_free(const struct wh_slot *s);
bool wh_slot_retire(struct wharf_pool *pool, unsigned slot); /* false: chunks are out */
void wh_slot_kill(struct wharf_pool *pool, unsigned slot);
void wh_slot_finish(struct wharf_pool *pool, unsigned slot); /* retiring: frees the memory if no peer has it mapped */
void wh_slot_free(struct wharf_pool *pool, unsigned slot);
void wh_pool_bury(struct wharf_pool *pool);                  /* dead slots that are all free */
int wh_slot_count(struct wh_slot *s);                        /* makes counts. 0; -ENOMEM */

/* A new segment in which a run of n fits. 0; -EAGAIN: no room under bytes_max, or no slot; -ENOMEM; -EMFILE. */
int wh_pool_grow(struct wharf_pool *pool, unsigned class, unsigned n, size_t bytes_wanted, uint32_t flags,
	unsigned *ret_slot);
/*
 * After everything was harvested and looked through in vain: begins to retire idle segments. True: worth another try,
 * because it could grow now, or because the run has come back meanwhile. for_more: the runs that the class has do not
 * help, and stay.
 */
bool wh_pool_make_room(struct wharf_pool *pool, unsigned class, unsigned n, bool for_more);

/* ---- claim.c ---- */

extern uint64_t wh_pool_idle_ns; /* for tests: how long a segment is kept that nobody claims from */

/* Class and length of the run that holds size bytes. False: bytes_max can never hold it. */
bool wh_pool_run_of(const struct wharf_pool *pool, size_t size, unsigned *ret_class, unsigned *ret_n);
/*
 * The place of a run without looking at local words first. -EAGAIN, registered for on_writable unless quietly;
 * -ENOMEM; -EMFILE.
 */
int wh_pool_claim(struct wharf_pool *pool, unsigned class, unsigned n, bool quietly, uint64_t *ret_place);
/*
 * Under the lock: all that can be done without a failure being final. looked: the caller has just gone round the
 * window in vain, with everything harvested. 0; -EAGAIN; -ENOMEM; -EMFILE.
 */
int wh_pool_claim_locked(struct wharf_pool *pool, unsigned class, unsigned n, bool looked, uint64_t *ret_place);
bool wh_pool_has_run(const struct wharf_pool *pool, unsigned class, unsigned n);
/* The loop's thread: others look at the private words under the lock only. False: no memory. */
bool wh_pool_make_local(struct wharf_pool *pool);
bool wh_pool_local_idle(const struct wharf_pool *pool); /* the loop has no free chunks in private words */
void wh_pool_give_back(struct wharf_pool *pool);        /* loop's thread, under the lock: all private words */
/* Under the lock, now and then: shrinks the windows of classes gone quiet. */
void wh_pool_upkeep(struct wharf_pool *pool);

/* Next word of the class's window after `at` (WH_NOWHERE: the first). *ret_wrapped is set when it begins again. */
uint32_t wh_class_next(const struct wharf_pool *pool, const struct wh_class *class, uint32_t at, bool *ret_wrapped);

/* ---- announce.c ---- */

/* The port's thread, under the lock: all that lending of a class will need, as far as the class has segments. */
int wh_lease_prepare(struct wh_full_lease *lease, unsigned class);
/* Under the lock: descriptors of slots that the peer has mapped. */
void wh_lease_close_fds(struct wh_full_lease *lease);
void wh_lease_slot_set(struct wh_full_lease *lease, unsigned slot, unsigned flags);   /* of a slot that it uses */
void wh_lease_slot_clear(struct wh_full_lease *lease, unsigned slot, unsigned flags);

/* ---- lease.c ---- */

void wh_lease_poison(struct wh_full_lease *lease);
int wh_lease_make_lent(struct wh_full_lease *lease, unsigned slot); /* its thread, under the lock. 0; -ENOMEM */
void wh_lease_forget_slot(struct wh_full_lease *lease, unsigned slot);

/* ---- harvest.c ---- */

/* A counter with one writer at a time. */
static inline void wh_lease_add(_Atomic uint64_t *counter, uint64_t bytes)
{
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + bytes,
		memory_order_relaxed);
}
void wh_pool_harvest(struct wharf_pool *pool);          /* under the lock: all leases, everything */
void wh_slot_harvest(struct wharf_pool *pool, unsigned slot); /* under the lock: all leases, one slot */
uint64_t wh_lease_harvest_all(struct wh_full_lease *lease);   /* under the lock; bytes freed */
/* Under the lock: chunks of a word that a peer has, whichever. */
uint64_t wh_slot_lent(const struct wharf_pool *pool, unsigned slot, unsigned word);
int wh_slot_widen(struct wh_slot *s, uint32_t n_words); /* makes `wide`, if there is none. 0; -ENOMEM */
void wh_slot_narrow(struct wh_slot *s);
void wh_holders_remove(struct wh_slot *s, unsigned word, uint32_t index); /* under the lock */

/*
 * Takes back what the peer has released of one word: returns the chunks that nobody holds any more, now the caller's
 * to make free. The one rule: whoever clears a lent bit lets go of the chunk. `returned` is the lease's counter for
 * those under the lock, or for its loop.
 */
static inline uint64_t wh_lease_harvest_word(struct wh_full_lease *lease, unsigned slot, unsigned word,
	_Atomic uint64_t *returned)
{
	struct wh_lease_slot *ls = &lease->slots[slot];
	struct wh_slot *s = lease->pool->slots[slot];
	_Atomic uint64_t *map = &ls->map->words[word];

	/* With the store of `wanted` and the receiver's two steps: one side sees the other. */
	if (!atomic_load_explicit(map, memory_order_seq_cst))
		return 0;
	uint64_t released = atomic_exchange_explicit(map, 0, memory_order_seq_cst);
	uint64_t lent = atomic_fetch_and_explicit(&ls->lent[word], ~released, memory_order_acq_rel);
	if (wh_unlikely(released & ~lent))
		wh_lease_poison(lease);
	released &= lent;
	if (wh_unlikely(!atomic_load_explicit(&ls->proven, memory_order_relaxed)))
		atomic_store_explicit(&ls->proven, true, memory_order_relaxed);
	wh_lease_add(returned, (uint64_t)wh_bits_count(released) << wh_class_shift(s->class));
	return wh_slot_let_go(s, word, released);
}

static inline void wh_lease_tell(const struct wh_full_lease *lease, enum wh_lease_news news, uint64_t bytes)
{
	if (lease->observer)
		lease->observer->tell(lease->owner, news, bytes);
}

/* Of what was made free by a harvest. */
static inline void wh_lease_tell_returned(const struct wh_full_lease *lease, unsigned slot, uint64_t bits)
{
	if (wh_is_watched() && bits)
		wh_lease_tell(lease, WH_LEASE_RETURNED,
			(uint64_t)wh_bits_count(bits) << wh_class_shift(lease->pool->slots[slot]->class));
}

/* ---- room.c ---- */

/*
 * Under the lock: sets flags in `attention`, marks every release map, so that the peers send a release-wake, and
 * fences. True: something was not set before, so look again: a chunk may have come back unseen.
 */
bool wh_pool_want(struct wharf_pool *pool, uint32_t attention);
void wh_pool_unwant(struct wharf_pool *pool);           /* if nobody wants any more */
void wh_pool_owe(struct wharf_pool *pool, unsigned class, unsigned n);
/* A bit for each class of whose failed claims it will be told. */
uint32_t wh_lease_owed(const struct wh_full_lease *lease);
/* After chunks became free: kicks the leases that are owed room, if there may be. */
void wh_pool_tell(struct wharf_pool *pool);
void wh_lease_mark_again(struct wh_full_lease *lease);  /* under the lock: the peer may have taken its mark */
int wh_pool_claim_wait(struct wharf_pool *pool, unsigned class, unsigned n, int64_t timeout_ns, uint64_t *ret_place);

#endif
