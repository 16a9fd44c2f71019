/* SPDX-License-Identifier: MIT */
/* What snapshot.c and snapshot-pools.c share: reading within bounds. */
#ifndef INSPECT_SNAPSHOT_READER_H
#define INSPECT_SNAPSHOT_READER_H

#include "snapshot.h"

enum { READER_PLACES_MAX = 1 << 20 }; /* in all lists together */

struct reader {
	const struct source *source;
	struct snapshot *snapshot;
	uint64_t end;        /* no byte is read from here on */
	uint64_t budget;     /* what may yet be copied: structures do not overlap, so they are no more than all bytes */
	unsigned pauses;     /* that may yet be made for blocks that are being changed, or were left so */
	size_t places_left;
	bool whole;          /* each list was gone through to its end */
};

struct place {
	uint32_t position;
	uint64_t id;
};

enum { READER_LINK_BYTES = 40 };
/* Where an element of a list, in its first 40 bytes, says these. */
struct link_layout {
	size_t next, previous, id;
};

void reader_complain(struct reader *reader, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool reader_bytes(struct reader *reader, uint32_t position, uint64_t offset, void *to, size_t size);
/* False: not to its end. What was found is there all the same; free it. */
bool reader_list(struct reader *reader, const char *what, uint32_t first, const struct link_layout *layout,
	struct place **ret_places, size_t *ret_n);

/* ---- snapshot-pools.c ---- */

void reader_pools(struct reader *reader, uint32_t first); /* the lists only */
void reader_fill_pools(struct reader *reader, unsigned wants);
void snapshot_pool_fini(struct snap_pool *pool);

#endif
