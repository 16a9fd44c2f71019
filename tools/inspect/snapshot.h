/* SPDX-License-Identifier: MIT */
/*
 * A copy of what a process has in its control memory (lib/control.h, lib/stats.h), taken from outside while it goes on
 * or hangs. Everything in there may be garbage: positions are checked, lists are bounded, and no more is copied than
 * there can be. What changes under the reader is read again a few times; what stays torn is marked. Times that a loop has
 * of a clock of the program's own are 0.
 */
#ifndef INSPECT_SNAPSHOT_H
#define INSPECT_SNAPSHOT_H

#include <stdbool.h>
#include <stdint.h>

#include "control.h"
#include "source.h"
#include "stats.h"

enum {
	SNAPSHOT_STATS = 1,  /* loops and ports */
	SNAPSHOT_POOLS = 2,  /* pools with their segments' words, and leases */
	SNAPSHOT_CHUNKS = 4, /* what is known of each run: with SNAPSHOT_POOLS */
	SNAPSHOT_ALL = 7,
	SNAPSHOT_PROBLEMS_MAX = 16,
	SNAPSHOT_WHY_BYTES = 160,
};

struct snap_loop {
	uint32_t position;
	bool torn;
	struct wh_stats_loop s;
};

struct snap_port {
	uint32_t position;
	uint32_t loop; /* index in the snapshot */
	bool torn;
	struct wh_stats_port s;
};

struct snap_slot {
	uint32_t index;              /* in its pool */
	uint32_t state, n_chunks;
	unsigned shift;
	uint64_t times_made;
	uint64_t free[WH_SLOT_WORDS]; /* those in words that a loop's thread has taken included */
	uint64_t counted[WH_SLOT_WORDS];
	uint64_t *info;              /* n_chunks; NULL: not read, or nothing is lent */
	uint16_t *counts;            /* n_chunks; NULL: not read, or nothing is held by several */
};

struct snap_lent {
	uint32_t slot;
	uint64_t words[WH_SLOT_WORDS];
};

struct snap_lease {
	uint32_t position;
	uint64_t id;
	uint32_t peer, index;
	struct snap_lent *lent;
	size_t n_lent;
};

struct snap_pool {
	uint32_t position;
	uint64_t id, bytes_max, bytes;
	bool shared;
	char name[32];
	struct snap_slot *slots; /* those with memory, by index */
	size_t n_slots;
	struct snap_lease *leases;
	size_t n_leases;
};

struct snapshot {
	uint32_t version, pid;
	uint64_t start_time, size, used;
	uint64_t taken_ns; /* CLOCK_MONOTONIC; 0: of a core */
	bool torn;         /* the lists changed all the time, or half way: things may be missing */
	struct snap_loop *loops;
	size_t n_loops;
	struct snap_port *ports;
	size_t n_ports;
	struct snap_pool *pools;
	size_t n_pools;
	char *problems[SNAPSHOT_PROBLEMS_MAX];
	size_t n_problems;
};

/*
 * wants: SNAPSHOT_*. 0, and snapshot_fini is owed. Negative, with the reason in `why`: -ENODATA: no control memory;
 * -EPROTONOSUPPORT: of another version; -EIO: it cannot be read.
 */
int snapshot_take(const struct source *source, unsigned wants, struct snapshot *ret_snapshot,
	char why[SNAPSHOT_WHY_BYTES]);
void snapshot_fini(struct snapshot *snapshot);

/* What is behind a pid in the header: of the process itself, or of its parent. Same errors. */
int snapshot_owner(const struct source *source, uint32_t *ret_pid, uint64_t *ret_start_time,
	char why[SNAPSHOT_WHY_BYTES]);

/* NULL: there is none. */
const struct snap_port *snapshot_port_of_lease(const struct snapshot *snapshot, const struct snap_lease *lease);
const struct snap_pool *snapshot_pool_at(const struct snapshot *snapshot, uint32_t position);
const struct snap_port *snapshot_port_at(const struct snapshot *snapshot, uint32_t position);

#endif
