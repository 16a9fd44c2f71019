/* SPDX-License-Identifier: MIT */
/* A page of styled lines, as wide as the terminal: printed at once, or shown in pieces by top. */
#ifndef INSPECT_PAGE_H
#define INSPECT_PAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

enum style {
	STYLE_PLAIN,
	STYLE_DIM,
	STYLE_BOLD,
	STYLE_GOOD,
	STYLE_WARN,
	STYLE_BAD,
	STYLE_HEAD,  /* of a table */
	STYLE_FREE,  /* chunks */
	STYLE_CLAIMED,
	STYLE_LENT,
	STYLE_SEVERAL,
	STYLE_MARK,  /* a row that is chosen */
	STYLES,
};

enum { PAGE_STYLE = 14 }; /* a byte from here on begins a style: no text has these */

struct page {
	char *text;      /* lines */
	size_t size;
	unsigned width;  /* columns, 40 or more */
	bool utf8;       /* block characters may be used */
	unsigned at;     /* columns used in the last line */
	unsigned indent; /* of the lines that a flow begins */
};

void page_init(struct page *page, unsigned width, bool utf8);
void page_fini(struct page *page);
void page_clear(struct page *page);

/* Adds to the last line, whatever its length. The text holds printable characters only, each one column wide. */
void page_put(struct page *page, enum style style, const char *format, ...) __attribute__((format(printf, 3, 4)));
void page_end_line(struct page *page);
void page_blank(struct page *page, unsigned n); /* spaces */

/* Adds an item to a line of several: two spaces before it, or a new line, deeper by two, when it does not fit. */
void page_item(struct page *page, enum style style, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* A text of several words in lines, each behind the same indent. */
void page_words(struct page *page, enum style style, unsigned indent, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

unsigned page_columns(const char *text); /* of a text in UTF-8 */
void page_print(const struct page *page, FILE *file, bool colour);

#endif
