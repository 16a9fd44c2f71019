/* SPDX-License-Identifier: MIT */
/*
 * Control memory: one memfd per process, "wharf-control", in which all pools keep their bitmaps and tables. Only this
 * process can write it; an inspector maps it read-only through /proc/PID/fd, without the process's help.
 *
 * Layout, native byte order. A position is a byte offset divided by 64; 0 is none. Every position below is of zeroed
 * memory that was reserved when it was handed out.
 *
 *   header (offset 0)              pool (struct wh_control_pool)        slot (struct wh_control_slot)
 *     0  u64 magic "WHARFCTL"        0    u32 next pool                   0     u32 state (enum wh_slot_state)
 *     8  u32 layout version          4    u32 flags: 1 shared             4     u32 n_chunks
 *    12  u32 pid                     8    u64 id, never reused            8     u8 chunk_shift, 7 zero
 *    16  u64 start time of the pid   16   u64 bytes_max                   16    u64 times it was made
 *        (/proc/PID/stat, field 22)  24   u64 bytes reserved in segments  24    u32 run info: n_chunks of u64
 *    24  u64 bytes of the memfd      32   u32 previous, u32 n_slots       28    u32 counts: n_chunks of u16, or 0
 *    32  u64 sequence: odd while     40   char name[32]                   32    zero to 64
 *        a table is changed          72   u32 first lease                 64    u64 free[64]
 *    40  u32 first pool              76   u32 slots: 256 of u32, or 0     576   u64 counted[64]
 *    44  u32 n_pools                 80   u32 local: 4 of 64 bytes, or 0  1088  u64 holders[64]
 *    48  u64 bytes handed out so far 84   zero to 128                     1600
 *    56  u32 first loop, u32 n_loops: stats.h
 *    64  zero to 4096
 *
 *   lease (struct wh_control_lease): 0 u64 id, never reused; 8 u32 peer's pid or 0; 12 u32 index in the pool; 16 u32
 *   next lease, u32 previous; 24 u32 lent: n_lent of u32, for each slot 64 words or 0; 28 u32 n_lent; 32 zero to 64.
 *
 * A chunk c of a slot is bit c % 64 of word c / 64. Free: its bit is set in free[], or in local.bits of the word that
 * local.where names (a loop's thread has taken that word). Lent: its bit is set in a lease's words; the peer may have
 * released it already, which only the release map tells. Claimed otherwise. counted: several hold it, counts says how
 * many. holders: which of the leases 0 to 63 may have a bit in that word. Run info, at a run's first chunk: when it was last
 * lent (bits 0 to 31: CLOCK_MONOTONIC in units of 2^20 ns, modulo 2^32), its chunks less one (32 to 37), and the low bits
 * of the stream that it was lent for (38 to 63; 0: a plain message). What is claimed has it of when it was claimed, and
 * stream 0; but claims of up to 48 KiB from a private pool by its loop's thread leave what was there, which is older.
 * A process that forked and goes on has a memfd of its own: compare pid and start time with the process looked at.
 */
#ifndef WH_CONTROL_H
#define WH_CONTROL_H

#include "base.h"
#include "stats.h"

#define WH_CONTROL_MAGIC UINT64_C(0x4c54434652414857) /* "WHARFCTL" */

enum {
	WH_CONTROL_VERSION = 3,
	WH_CONTROL_UNIT = 64,
	WH_CONTROL_HEADER_BYTES = 4096,
	WH_CONTROL_BYTES_MAX = 256 << 20, /* address space, not memory: some 20000 pools in use */
	WH_CONTROL_SLOTS = 256,
	WH_CONTROL_LOCALS = 4,
	WH_SLOT_WORDS = 64,  /* a segment has at most 4096 chunks */
};

struct wh_control_header {
	_Atomic uint64_t magic;
	uint32_t version;
	uint32_t pid;
	uint64_t start_time;
	uint64_t size;
	_Atomic uint64_t sequence;
	_Atomic uint32_t first_pool;
	_Atomic uint32_t n_pools;
	_Atomic uint64_t used;
	_Atomic uint32_t first_loop;
	_Atomic uint32_t n_loops;
};
_Static_assert(sizeof(struct wh_control_header) == 64, "layout");

/* A word of one class that a loop's thread has taken whole. Written by that thread only. */
struct wh_local {
	_Alignas(64) _Atomic uint64_t bits;  /* free chunks of it */
	_Atomic uint64_t where;              /* slot in the low 16 bits, first chunk of the word in the high 32 */
	uint64_t data;                       /* address of that chunk in the owner */
};
_Static_assert(sizeof(struct wh_local) == 64, "layout");

struct wh_control_pool {
	_Atomic uint32_t next;
	uint32_t flags;
	uint64_t id;
	uint64_t bytes_max;
	_Atomic uint64_t bytes;
	_Atomic uint32_t previous;
	_Atomic uint32_t n_slots;
	char name[32];
	_Atomic uint32_t first_lease;
	_Atomic uint32_t slots;
	_Atomic uint32_t local;
	uint32_t zero[11];
};
_Static_assert(offsetof(struct wh_control_pool, first_lease) == 72, "layout");
_Static_assert(sizeof(struct wh_control_pool) == 128, "layout");

enum wh_slot_state {
	WH_SLOT_EMPTY,    /* no memory */
	WH_SLOT_LIVE,     /* chunks are claimed from it */
	WH_SLOT_RETIRING, /* every chunk is taken away; waits until peers have unmapped it */
	WH_SLOT_DEAD,     /* nothing is claimed from it any more; goes when what is claimed has come back */
};

struct wh_control_slot {
	_Atomic uint32_t state;
	_Atomic uint32_t n_chunks;
	_Atomic uint8_t chunk_shift;
	uint8_t reserved[7];
	uint64_t times_made;
	_Atomic uint32_t info;
	_Atomic uint32_t counts;
	uint64_t zero[4];
	_Atomic uint64_t free[WH_SLOT_WORDS];
	_Atomic uint64_t counted[WH_SLOT_WORDS];
	_Atomic uint64_t holders[WH_SLOT_WORDS];
};
_Static_assert(offsetof(struct wh_control_slot, free) == 64, "layout");
_Static_assert(sizeof(struct wh_control_slot) == 1600, "layout");

struct wh_control_lease {
	uint64_t id;
	_Atomic uint32_t peer;
	uint32_t index;
	_Atomic uint32_t next;
	_Atomic uint32_t previous;
	_Atomic uint32_t lent;
	_Atomic uint32_t n_lent;
	uint64_t zero[4];
};
_Static_assert(offsetof(struct wh_control_lease, lent) == 24, "layout");
_Static_assert(sizeof(struct wh_control_lease) == 64, "layout");

/*
 * A zeroed block, 64-aligned, whose pages are reserved: touching it cannot fail later. The first one makes the memfd.
 * Any thread. 0; -ENOMEM; -EMFILE.
 */
int wh_control_alloc(size_t bytes, void **ret_block);
void wh_control_free(void *block, size_t bytes); /* takes NULL */

bool wh_control_owns(const void *block); /* false: it is the heap's */
uint32_t wh_control_position(const void *block); /* 0 of one that it does not own, and of NULL */

/* What asks for a trace from outside (stats.h). Never NULL: where there is no such page, nobody ever asks. */
const struct wh_trace_wish *wh_control_wish(void);

/* Tables that an inspector walks change between these two. Not nested; hold no lock of another pool inside. */
void wh_control_change_begin(void);
void wh_control_change_end(void);

/* Enters a new pool's record, with a new id, into the list, and takes it out. */
void wh_control_add_pool(struct wh_control_pool *pool);
void wh_control_remove_pool(struct wh_control_pool *pool);
/* The same for a lease of a pool. */
void wh_control_add_lease(struct wh_control_pool *pool, struct wh_control_lease *lease);
void wh_control_remove_lease(struct wh_control_pool *pool, struct wh_control_lease *lease);
/* Of loops, and of the ports of a loop. What lies in the heap gets its id, and nobody sees it. */
void wh_control_add_loop(struct wh_stats_loop *loop);
void wh_control_remove_loop(struct wh_stats_loop *loop);
void wh_control_add_port(struct wh_stats_loop *loop, struct wh_stats_port *port);
void wh_control_remove_port(struct wh_stats_loop *loop, struct wh_stats_port *port);

/* In a forked child that starts over: forgets the parent's memory, which is not mapped here, and closes its memfd. */
void wh_control_restart(void);

#endif
