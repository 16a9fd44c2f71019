/* SPDX-License-Identifier: MIT */
/* Arrays that grow. No memory ends the program with one line: there is nothing to undo. */
#ifndef INSPECT_MEMORY_H
#define INSPECT_MEMORY_H

#include <stddef.h>

/* n zeroed items; n may be 0. */
void *memory_new(size_t n, size_t item_bytes);

/* Room for one more behind n items, doubling; what is new is zeroed. The array may be NULL when n is 0. */
void *memory_grow(void *array, size_t n, size_t item_bytes);

/* A text made by printf. */
char *memory_format(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
