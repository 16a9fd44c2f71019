/* SPDX-License-Identifier: MIT */
/* A core dump: who it was, and the memory that it had where control memory lies. Nothing in the file is believed. */
#ifndef INSPECT_CORE_H
#define INSPECT_CORE_H

#include <stddef.h>
#include <stdint.h>

enum { CORE_WHY_BYTES = 160 };

struct core_load {
	uint64_t address, offset, size; /* size: that is in the file */
};

struct core {
	int fd;                      /* -1: in memory */
	const unsigned char *memory;
	uint64_t size;
	struct core_load *loads;
	size_t n_loads;
	uint32_t pid;                /* 0: the dump does not say */
	uint32_t uid;
	char name[17];
	char command[81];
};

/* 0, and core_close is owed; -EIO: cannot be read, -ENODATA: no core dump of a 64-bit program; told in `why`. */
int core_open(const char *path, struct core *ret_core, char why[CORE_WHY_BYTES]);
int core_open_memory(void *memory, size_t size, struct core *ret_core, char why[CORE_WHY_BYTES]);
void core_close(struct core *core);

int core_read(const struct core *core, uint64_t address, void *to, size_t size); /* 0; -EIO: not in the file */

/* Where control memory was mapped: by its magic at the beginning of a page. 0; -ENODATA: nowhere. */
int core_find_control(const struct core *core, uint64_t *ret_address);

#endif
