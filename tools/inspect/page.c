/* SPDX-License-Identifier: MIT */
/* A page of styled lines: see page.h. */
#include "page.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"

enum { TEXT_MAX = 1024, WIDTH_MIN = 20 };

void page_init(struct page *page, unsigned width, bool utf8)
{
	*page = (struct page){ .width = width < WIDTH_MIN ? WIDTH_MIN : width, .utf8 = utf8 };
}

void page_fini(struct page *page) { free(page->text); }

void page_clear(struct page *page)
{
	page->size = 0;
	page->at = page->indent = 0;
}

static void add(struct page *page, const char *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		page->text = memory_grow(page->text, page->size, 1);
		page->text[page->size++] = bytes[i];
	}
}

unsigned page_columns(const char *text)
{
	unsigned n = 0;

	for (; *text; text++)
		n += ((unsigned char)*text & 0xc0) != 0x80;
	return n;
}

static void put(struct page *page, enum style style, const char *text)
{
	const char begin = (char)(PAGE_STYLE + style), end = PAGE_STYLE;

	if (style)
		add(page, &begin, 1);
	add(page, text, strlen(text));
	if (style)
		add(page, &end, 1);
	page->at += page_columns(text);
}

#define FORMAT(text, format) \
	do { \
		va_list arguments; \
		va_start(arguments, format); \
		vsnprintf(text, sizeof text, format, arguments); \
		va_end(arguments); \
	} while (0)

void page_put(struct page *page, enum style style, const char *format, ...)
{
	char text[TEXT_MAX];

	FORMAT(text, format);
	put(page, style, text);
}

void page_end_line(struct page *page)
{
	while (page->at && page->size && page->text[page->size - 1] == ' ') {
		page->size--;
		page->at--;
	}
	add(page, "\n", 1);
	page->at = 0;
}

void page_blank(struct page *page, unsigned n)
{
	while (n--)
		put(page, STYLE_PLAIN, " ");
}

/* A word that is longer than a line is broken. */
static void put_words(struct page *page, enum style style, unsigned indent, char *text)
{
	unsigned room = page->width > indent ? page->width - indent : 1;
	char *rest = text, *word;

	while ((word = strsep(&rest, " "))) {
		bool first = page->at <= indent;

		if (!first && page->at + 1 + page_columns(word) > page->width) {
			page_end_line(page);
			page_blank(page, indent);
			first = true;
		}
		if (!first)
			put(page, STYLE_PLAIN, " ");
		for (; strlen(word) > room; word += room) {
			char part[TEXT_MAX];

			snprintf(part, sizeof part, "%.*s", (int)room, word);
			put(page, style, part);
			page_end_line(page);
			page_blank(page, indent);
		}
		put(page, style, word);
	}
}

void page_item(struct page *page, enum style style, const char *format, ...)
{
	char text[TEXT_MAX];
	unsigned columns;

	FORMAT(text, format);
	columns = page_columns(text);
	if (!columns)
		return;
	if (!page->at) {
		page_blank(page, page->indent);
	} else if (page->at > page->indent && page->at + 2 + columns > page->width) {
		page_end_line(page);
		page_blank(page, page->indent + 2);
	} else {
		page_blank(page, 2);
	}
	if (page->at + columns > page->width)
		put_words(page, style, page->indent + 2, text);
	else
		put(page, style, text);
}

void page_words(struct page *page, enum style style, unsigned indent, const char *format, ...)
{
	char text[TEXT_MAX];

	FORMAT(text, format);
	if (page->at < indent)
		page_blank(page, indent - page->at);
	put_words(page, style, indent, text);
	page_end_line(page);
}

static const char *const sequences[STYLES] = {
	[STYLE_PLAIN] = "\033[0m",
	[STYLE_DIM] = "\033[2m",
	[STYLE_BOLD] = "\033[1m",
	[STYLE_GOOD] = "\033[32m",
	[STYLE_WARN] = "\033[33m",
	[STYLE_BAD] = "\033[1;31m",
	[STYLE_HEAD] = "\033[4m",
	[STYLE_FREE] = "\033[2m",
	[STYLE_CLAIMED] = "\033[36m",
	[STYLE_LENT] = "\033[33m",
	[STYLE_SEVERAL] = "\033[35m",
	[STYLE_MARK] = "\033[7m",
};

void page_print(const struct page *page, FILE *file, bool colour)
{
	for (size_t i = 0; i < page->size; i++) {
		unsigned char c = (unsigned char)page->text[i];

		if (c >= PAGE_STYLE && c < PAGE_STYLE + STYLES) {
			if (colour)
				fputs(sequences[c - PAGE_STYLE], file);
		} else {
			putc(c, file);
		}
	}
}
