/* SPDX-License-Identifier: MIT */
/* Columns: what a command compares at each size, and what of it the options name. */
#ifndef BENCH_COLUMNS_H
#define BENCH_COLUMNS_H

#include <stdbool.h>
#include <stddef.h>

#include "options.h"

enum { COLUMNS_ERROR_MAX = 128 };

/* As given; NULL: by default. */
struct column_words {
	const char *transports, *ports, *inflight;
};

/* Fills options->columns for its mode. 0; -EINVAL: ret_error is one line about it. */
int columns_make(struct options *options, const struct column_words *words, char ret_error[COLUMNS_ERROR_MAX]);

/* The one of that name, of name_length bytes. False: there is none. */
bool columns_find(const struct options *options, const char *name, size_t name_length, size_t *ret_index);

#endif
