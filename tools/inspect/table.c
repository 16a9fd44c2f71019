/* SPDX-License-Identifier: MIT */
/* A table that fits the page: see table.h. */
#include "table.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"

void table_init(struct table *table, const struct table_column *columns, unsigned n_columns)
{
	*table = (struct table){ .columns = columns, .n_columns = n_columns };
}

void table_cell(struct table *table, enum style style, const char *format, ...)
{
	char text[256];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	table->cells = memory_grow(table->cells, table->n_cells, sizeof *table->cells);
	table->cells[table->n_cells++] = (struct table_cell){ memory_format("%s", text), style };
}

static unsigned total(const unsigned *widths, const bool *gone, unsigned n)
{
	unsigned sum = 0;

	for (unsigned c = 0; c < n; c++)
		sum += gone[c] ? 0 : widths[c] + (sum ? 2 : 0);
	return sum;
}

/* Cuts a text off after so many columns, in whole characters. */
static void cut(char *text, unsigned columns)
{
	for (; *text; text++)
		if (((unsigned char)*text & 0xc0) != 0x80 && !columns--)
			break;
	*text = '\0';
}

static void put_cell(struct page *page, char *text, enum style style, unsigned width, bool left, bool last)
{
	unsigned columns = page_columns(text);

	if (columns > width) {
		cut(text, width);
		columns = width;
	}
	if (!left)
		page_blank(page, width - columns);
	page_put(page, style, "%s", text);
	if (left && !last)
		page_blank(page, width - columns);
}

static void put_row(struct table *table, struct page *page, unsigned indent, const unsigned *widths, const bool *gone,
	unsigned last, size_t row)
{
	page_blank(page, indent);
	for (unsigned c = 0; c < table->n_columns; c++) {
		char head[64];
		const struct table_column *column = &table->columns[c];

		if (gone[c])
			continue;
		if (page->at > indent)
			page_blank(page, 2);
		snprintf(head, sizeof head, "%s", column->head);
		if (row) {
			struct table_cell *cell = &table->cells[(row - 1) * table->n_columns + c];
			put_cell(page, cell->text, cell->style, widths[c], column->left, c == last);
		} else {
			put_cell(page, head, STYLE_HEAD, widths[c], column->left, c == last);
		}
	}
	page_end_line(page);
}

void table_put(struct table *table, struct page *page, unsigned indent)
{
	unsigned widths[TABLE_COLUMNS_MAX], n = table->n_columns, room = page->width - indent, last = 0;
	bool gone[TABLE_COLUMNS_MAX] = { false };

	for (unsigned c = 0; c < n; c++)
		widths[c] = page_columns(table->columns[c].head);
	for (size_t i = 0; i < table->n_cells; i++) {
		unsigned columns = page_columns(table->cells[i].text);
		if (columns > widths[i % n])
			widths[i % n] = columns;
	}
	while (total(widths, gone, n) > room) {
		unsigned worst = 0;

		for (unsigned c = 1; c < n; c++)
			if (!gone[c] && (gone[worst] || table->columns[c].give_up >= table->columns[worst].give_up))
				worst = c;
		if (gone[worst] || !table->columns[worst].give_up)
			break;
		gone[worst] = true;
	}
	for (unsigned c = 0; c < n; c++)
		if (!gone[c])
			last = c;
	for (unsigned over = total(widths, gone, n); over > room && widths[last] > 1; over--)
		widths[last]--;
	for (size_t row = 0; row <= table->n_cells / n; row++)
		put_row(table, page, indent, widths, gone, last, row);
	for (size_t i = 0; i < table->n_cells; i++)
		free(table->cells[i].text);
	free(table->cells);
}
