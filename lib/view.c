/* SPDX-License-Identifier: MIT */
/* Checking and mapping what a peer announced: see view.h. */
#include "view.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "compat.h"

enum { CHUNK_SHIFT_MIN = 8, CHUNK_SHIFT_MAX = 24 };

/*
 * A memfd of exactly `bytes` that can change its size no more: a smaller one would kill the reader with SIGBUS. Fully
 * allocated: the pages of a sparse one would be charged to whoever touches them first.
 */
static const char *check_fd(int fd, uint64_t bytes, int seals_any, bool huge_allowed)
{
	struct stat st;
	struct statfs fs;
	int seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0)
		return "an announced descriptor is no memfd";
	if ((seals & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) != (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return "an announced memfd is not sealed";
	if (seals_any && !(seals & seals_any))
		return "an announced segment is not sealed against writing";
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return "an announced descriptor is no regular file";
	if (st.st_size < 0 || (uint64_t)st.st_size != bytes)
		return "an announced memfd has the wrong size";
	if (st.st_blocks < 0 || (uint64_t)st.st_blocks < bytes / 512)
		return "an announced memfd is not fully allocated";
	if (fstatfs(fd, &fs) < 0 || ((unsigned long)fs.f_type == (unsigned long)HUGETLBFS_MAGIC && !huge_allowed))
		return "an announced memfd is of huge pages";
	return NULL;
}

/* Out of memory here, or something about the file that no check foresaw. */
static int map_error(const char **ret_why)
{
	if (errno == ENOMEM || errno == EAGAIN || errno == ENFILE)
		return -ENOMEM;
	*ret_why = "an announced memfd cannot be mapped";
	return -EPROTO;
}

static int map_fd(int fd, size_t bytes, int protection, void **ret_base, const char **ret_why)
{
	void *base = mmap(NULL, bytes, protection, MAP_SHARED, fd, 0);
	if (base == MAP_FAILED)
		return map_error(ret_why);
	if (madvise(base, bytes, MADV_DONTFORK) < 0) {
		int error = map_error(ret_why);
		munmap(base, bytes);
		return error;
	}
	*ret_base = base;
	return 0;
}

int wh_view_open(int segment_fd, int release_fd, uint16_t slot, uint8_t chunk_shift, uint32_t n_chunks,
	bool huge_allowed, struct wh_view **ret_view, const char **ret_why)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), n_words = ((uint64_t)n_chunks + 63) / 64;
	uint64_t bytes, map_bytes;
	void *base, *map;
	int error;

	if (chunk_shift < CHUNK_SHIFT_MIN || chunk_shift > CHUNK_SHIFT_MAX || n_chunks == 0) {
		*ret_why = "an announced segment has an impossible geometry";
		return -EPROTO;
	}
	bytes = (uint64_t)n_chunks << chunk_shift;
	map_bytes = (sizeof(struct wh_release_map) + n_words * sizeof(uint64_t) + page - 1) & ~(page - 1);
	if (bytes > SIZE_MAX / 2 || map_bytes > SIZE_MAX / 2) {
		*ret_why = "an announced segment is larger than the address space";
		return -EPROTO;
	}
	const char *why = check_fd(segment_fd, bytes, F_SEAL_FUTURE_WRITE | F_SEAL_WRITE, huge_allowed);
	if (!why)
		why = check_fd(release_fd, map_bytes, 0, false);
	if (why) {
		*ret_why = why;
		return -EPROTO;
	}

	struct wh_view *view = calloc(1, sizeof(*view));
	if (!view)
		return -ENOMEM;
	error = map_fd(segment_fd, (size_t)bytes, PROT_READ, &base, ret_why);
	if (error)
		goto fail;
	madvise(base, (size_t)bytes, MADV_DONTDUMP);
	error = map_fd(release_fd, (size_t)map_bytes, PROT_READ | PROT_WRITE, &map, ret_why);
	if (error) {
		munmap(base, (size_t)bytes);
		goto fail;
	}
	view->base = base;
	view->map = map;
	view->bytes = (size_t)bytes;
	view->map_bytes = (size_t)map_bytes;
	view->n_chunks = n_chunks;
	view->chunk_shift = chunk_shift;
	view->slot = slot;
	atomic_init(&view->refs, 1);
	*ret_view = view;
	return 0;
fail:
	free(view);
	return error;
}

#if WH_ASSERTS >= 2
void wh_view_hold(struct wh_view *view, uint32_t word, uint64_t bits)
{
	if (!view->held)
		view->held = calloc(((size_t)view->n_chunks + 63) / 64, sizeof(*view->held));
	if (view->held && atomic_fetch_or(&view->held[word], bits) & bits)
		view->untracked = true;
}
#endif

bool wh_view_retire(struct wh_view *view)
{
	return atomic_fetch_or_explicit(&view->refs, WH_VIEW_RETIRED, memory_order_acq_rel) == 1;
}

bool wh_view_unref(struct wh_view *view)
{
	uint32_t left;

	if (!view)
		return false;
	/* From here on it may be gone: the mark is in the count, so that this one look tells both. */
	left = atomic_fetch_sub_explicit(&view->refs, 1, memory_order_acq_rel) - 1;
	if (left & ~(uint32_t)WH_VIEW_RETIRED)
		return left == (WH_VIEW_RETIRED | 1);
	munmap((void *)(uintptr_t)view->base, view->bytes);
	munmap(view->map, view->map_bytes);
#if WH_ASSERTS >= 2
	free((void *)view->held);
#endif
	free(view);
	return false;
}
