/* SPDX-License-Identifier: MIT */
/* Sizes and lists of message sizes as people write them: 64,256,1k,16k,1m. */
#ifndef BENCH_SIZE_H
#define BENCH_SIZE_H

#include <stddef.h>

enum {
	SIZE_MESSAGE_MAX = 64 << 20,
	SIZE_LIST_MAX = 32,
	SIZE_TEXT_MAX = 24,
};

struct size_list {
	size_t sizes[SIZE_LIST_MAX];
	size_t n;
};

/* A number with an optional k, m or g, powers of 1024. 0; -EINVAL: not that; -ERANGE: does not fit. */
int size_parse(const char *text, size_t *ret_size);

/* Message sizes: multiples of 8 from 8 to SIZE_MESSAGE_MAX, none twice. 0; -EINVAL; -ERANGE; -E2BIG: too many. */
int size_list_parse(const char *text, struct size_list *ret_list);

/* "16k" for 16384: the shortest form that size_parse reads back. Returns text. */
char *size_print(size_t size, char text[SIZE_TEXT_MAX]);

#endif
