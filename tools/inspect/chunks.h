/* SPDX-License-Identifier: MIT */
/* What became of each chunk of a pool, which runs are lent to whom, or claimed, since when: worked out of a snapshot. */
#ifndef INSPECT_CHUNKS_H
#define INSPECT_CHUNKS_H

#include "snapshot.h"

enum chunk_state { CHUNK_FREE, CHUNK_CLAIMED, CHUNK_LENT, CHUNK_SEVERAL, CHUNK_STATES };

enum { CHUNKS_CLASSES = 9, CHUNKS_SHIFT_MIN = 8 };

struct chunks_run {
	const struct snap_pool *pool;
	const struct snap_lease *lease; /* NULL: claimed, and not lent */
	const struct snap_port *port; /* NULL: not known */
	uint32_t slot, first, n;
	uint32_t stream;              /* low bits; 0: a plain message */
	uint32_t holders;             /* of its first chunk; 1: only this one */
	bool dated;
	uint64_t age_ns, bytes;
};

struct chunks_slot {
	const struct snap_slot *slot;
	uint8_t *states;              /* enum chunk_state of each chunk */
	uint32_t n[CHUNK_STATES];
	unsigned largest;             /* run that could be claimed, in chunks */
};

struct chunks_class {
	unsigned shift;
	uint32_t n_slots;
	uint64_t n[CHUNK_STATES];
	unsigned largest;
};

struct chunks {
	const struct snap_pool *pool;
	struct chunks_slot *slots;    /* as the pool's */
	struct chunks_class classes[CHUNKS_CLASSES];
	uint64_t bytes[CHUNK_STATES];
	struct chunks_run *runs;      /* lent; the oldest first */
	size_t n_runs;
	struct chunks_run *claims;    /* likewise; but of small claims from a private pool nobody notes when they were made */
	size_t n_claims;
};

void chunks_make(const struct snapshot *snapshot, const struct snap_pool *pool, struct chunks *ret_chunks);
void chunks_fini(struct chunks *chunks);

/*
 * 0 to 1: how much smaller the largest free run is than it could be, were all that is free together (a run is at most
 * 64 chunks). 0 when nothing is free.
 */
double chunks_fragmentation(uint64_t n_free, unsigned largest);

const char *chunks_state_name(enum chunk_state state);
const char *chunks_slot_state_name(uint32_t state);

/* The clock of a snapshot; of a core: the latest time that is in it. */
uint64_t chunks_now(const struct snapshot *snapshot);

#endif
