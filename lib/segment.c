/* SPDX-License-Identifier: MIT */
/* Sealed memfds: see segment.h. */
#include "segment.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "compat.h"
#include "wharf.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

enum {
	HUGE_PAGE = 2 << 20, /* MFD_HUGETLB's default on x86-64; others refuse in mmap, and are done without */
	SEALS = F_SEAL_SHRINK | F_SEAL_GROW,
};

#define RELEASE_MAGIC 0x50414d52u /* "RMAP" */

#if WH_ASSERTS >= 2
int wh_segment_fail_in;
static bool injected(void) { return wh_segment_fail_in > 0 && --wh_segment_fail_in == 0; }
#else
static bool injected(void) { return false; }
#endif
#define TRY(call) (injected() ? (errno = ENOMEM, -1) : (call))

static int make_fd(const char *name, unsigned slot, unsigned flags)
{
	char text[64];
	int fd;
	snprintf(text, sizeof(text), "wharf-%s-%u", name, slot);
	fd = TRY(memfd_create(text, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL | flags));
	if (fd < 0 && errno == EINVAL)
		fd = TRY(memfd_create(text, MFD_CLOEXEC | MFD_ALLOW_SEALING | flags));
	return fd;
}

/* Now, so that lack of memory is an error here and not a signal at some later touch. */
static int reserve(int fd, size_t bytes)
{
	int result;
	do
		result = TRY(fallocate(fd, 0, 0, (off_t)bytes));
	while (result < 0 && errno == EINTR);
	return result;
}

/* Maps all of it; the seals come after the writable mapping that they must not forbid. */
static int make_mapping(int fd, size_t bytes, int seals, char **ret_base)
{
	if (TRY(ftruncate(fd, (off_t)bytes)) < 0 || reserve(fd, bytes) < 0)
		return -errno;
	if (TRY(0) < 0)
		return -errno;
	char *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (base == MAP_FAILED)
		return -errno;
	/* A forked child could write through the inherited mapping: no seal binds that. */
	if (TRY(madvise(base, bytes, MADV_DONTFORK)) < 0 || TRY(fcntl(fd, F_ADD_SEALS, seals)) < 0 ||
	    TRY(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL)) < 0) {
		int error = -errno;
		munmap(base, bytes);
		return error;
	}
	*ret_base = base;
	return 0;
}

static int make(const char *name, unsigned slot, size_t bytes, unsigned memfd_flags, int seals, char **ret_base,
	int *ret_fd)
{
	int fd = make_fd(name, slot, memfd_flags), error;
	if (fd < 0)
		return -errno;
	error = make_mapping(fd, bytes, seals, ret_base);
	if (error) {
		close(fd);
		/* Full file systems and limits are all lack of memory to the caller. */
		return error == -EMFILE || error == -ENFILE ? error : -ENOMEM;
	}
	*ret_fd = fd;
	return 0;
}

void wh_segment_prefault(struct wh_segment *segment)
{
	if (madvise(segment->base, segment->bytes, MADV_POPULATE_WRITE) == 0)
		segment->prefaulted = segment->bytes;
}

int wh_segment_open(const char *name, unsigned slot, size_t bytes, uint32_t flags, struct wh_segment *ret_segment)
{
	struct wh_segment s = { .bytes = bytes, .fd = -1 };
	int error = -EINVAL;

	if (flags & WHARF_HUGE && bytes % HUGE_PAGE == 0) {
		error = make(name, slot, bytes, MFD_HUGETLB, SEALS | F_SEAL_FUTURE_WRITE, &s.base, &s.fd);
		s.huge = !error;
	}
	if (error)
		error = make(name, slot, bytes, 0, SEALS | F_SEAL_FUTURE_WRITE, &s.base, &s.fd);
	if (error)
		return error;
	madvise(s.base, bytes, MADV_DONTDUMP);
	if (flags & WHARF_PREFAULT)
		wh_segment_prefault(&s);
	*ret_segment = s;
	return 0;
}

void wh_segment_close_fd(struct wh_segment *segment)
{
	if (segment->fd >= 0)
		close(segment->fd);
	segment->fd = -1;
}

void wh_segment_close(struct wh_segment *segment)
{
	if (!segment->base)
		return;
	munmap(segment->base, segment->bytes);
	wh_segment_close_fd(segment);
	*segment = (struct wh_segment){ .fd = -1 };
}

size_t wh_release_map_bytes(uint32_t n_words)
{
	return wh_align_up(sizeof(struct wh_release_map) + (size_t)n_words * sizeof(uint64_t),
		(size_t)sysconf(_SC_PAGESIZE));
}

int wh_release_map_open(const char *name, unsigned slot, uint32_t n_words, struct wh_release_map **ret_map, int *ret_fd)
{
	char *base;
	int error = make(name, slot, wh_release_map_bytes(n_words), 0, SEALS, &base, ret_fd);
	if (error)
		return error;
	struct wh_release_map *map = (struct wh_release_map *)base;
	map->magic = RELEASE_MAGIC;
	map->n_words = n_words;
	*ret_map = map;
	return 0;
}

void wh_release_map_close(struct wh_release_map *map, uint32_t n_words)
{
	if (map)
		munmap(map, wh_release_map_bytes(n_words));
}
