/* SPDX-License-Identifier: MIT */
/* A table that gives up columns, the least wanted first, until it fits the page. */
#ifndef INSPECT_TABLE_H
#define INSPECT_TABLE_H

#include <stdint.h>

#include "page.h"

enum { TABLE_COLUMNS_MAX = 24 };

struct table_column {
	const char *head;
	bool left;       /* aligned so; else to the right */
	uint8_t give_up; /* 0: never; of the others the highest goes first */
};

struct table_cell {
	char *text;
	enum style style;
};

struct table {
	const struct table_column *columns;
	unsigned n_columns;
	struct table_cell *cells; /* row by row */
	size_t n_cells;
};

void table_init(struct table *table, const struct table_column *columns, unsigned n_columns);

/* The next cell of the row, or the first one of the next row. */
void table_cell(struct table *table, enum style style, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Adds it to the page, and frees it. The last column that is left is cut off where the page ends. */
void table_put(struct table *table, struct page *page, unsigned indent);

#endif
