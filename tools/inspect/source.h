/* SPDX-License-Identifier: MIT */
/* Where a page of control memory is read from: a process's memfd, a core dump, or plain memory. */
#ifndef INSPECT_SOURCE_H
#define INSPECT_SOURCE_H

#include <stddef.h>
#include <stdint.h>

struct core;

/*
 * Never mapped: its owner may be hostile, and cut it short under a reader. What cannot be read is -EIO, what lies
 * outside of it -ERANGE.
 */
struct source {
	int (*read)(const struct source *source, uint64_t offset, void *to, size_t size);
	uint64_t size;
	int fd;                   /* of a memfd; the caller's */
	const unsigned char *memory;
	const struct core *core;
	uint64_t address;         /* in the dumped process */
};

int source_of_memfd(int fd, struct source *ret_source); /* 0; -errno */
void source_of_memory(const void *memory, size_t size, struct source *ret_source);
void source_of_core(const struct core *core, uint64_t address, uint64_t size, struct source *ret_source);

int source_read(const struct source *source, uint64_t offset, void *to, size_t size);

#endif
