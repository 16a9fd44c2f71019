/* SPDX-License-Identifier: MIT */
/* The owner's side of shared memory: sealed memfds for payload, and the maps in which peers return chunks. */
#ifndef WH_SEGMENT_H
#define WH_SEGMENT_H

#include "base.h"
#include "view.h"

struct wh_segment {
	char *base;       /* mapped read-write here, and by nobody else ever */
	size_t bytes;
	int fd;           /* -1: closed, no more peers will need it */
	bool huge;
	size_t prefaulted; /* bytes */
};

/*
 * Makes a memfd "wharf-NAME-SLOT" of `bytes` (a multiple of the page), reserves all of it, maps it and seals it.
 * flags: WHARF_PREFAULT, WHARF_HUGE: wishes; the result says what came of them. 0; -ENOMEM; -EMFILE; -ENFILE.
 */
int wh_segment_open(const char *name, unsigned slot, size_t bytes, uint32_t flags, struct wh_segment *ret_segment);
void wh_segment_close(struct wh_segment *segment); /* a zeroed or closed one is let be */
void wh_segment_prefault(struct wh_segment *segment);
void wh_segment_close_fd(struct wh_segment *segment);

/* Bytes of the memfd of a release map: whole pages. */
size_t wh_release_map_bytes(uint32_t n_words);
/* As above; both sides write it. */
int wh_release_map_open(const char *name, unsigned slot, uint32_t n_words, struct wh_release_map **ret_map,
	int *ret_fd);
void wh_release_map_close(struct wh_release_map *map, uint32_t n_words); /* takes NULL; the fd is the caller's */

#if WH_ASSERTS >= 2
/*
 * For tests: the n-th step from now on that can fail fails. 0: none. How many steps were passed is counted down in
 * it.
 */
extern int wh_segment_fail_in;
#endif

#endif
