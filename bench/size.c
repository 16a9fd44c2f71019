/* SPDX-License-Identifier: MIT */
/* Sizes: parsing and printing. */
#include "size.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int parse_prefix(const char *text, size_t *ret_size, const char **ret_end)
{
	static const char units[] = "kmg";
	const char *unit;
	unsigned shift = 0;
	unsigned long long number;
	char *end;

	/* strtoull would take blanks and a sign. */
	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	number = strtoull(text, &end, 10);
	if (errno)
		return -ERANGE;
	unit = *end ? strchr(units, *end | 0x20) : NULL;
	if (unit) {
		shift = 10 * ((unsigned)(unit - units) + 1);
		end++;
	}
	if (number > SIZE_MAX >> shift)
		return -ERANGE;
	*ret_size = (size_t)number << shift;
	*ret_end = end;
	return 0;
}

int size_parse(const char *text, size_t *ret_size)
{
	const char *end;
	size_t size;
	int r = parse_prefix(text, &size, &end);

	if (r < 0)
		return r;
	if (*end)
		return -EINVAL;
	*ret_size = size;
	return 0;
}

int size_list_parse(const char *text, struct size_list *ret_list)
{
	struct size_list list = { .n = 0 };

	for (;; text++) {
		size_t size;
		int r = parse_prefix(text, &size, &text);

		if (r < 0)
			return r;
		if (size < 8 || size > SIZE_MESSAGE_MAX)
			return -ERANGE;
		if (size % 8)
			return -EINVAL;
		for (size_t i = 0; i < list.n; i++)
			if (list.sizes[i] == size)
				return -EINVAL;
		if (list.n == SIZE_LIST_MAX)
			return -E2BIG;
		list.sizes[list.n++] = size;
		if (!*text)
			break;
		if (*text != ',')
			return -EINVAL;
	}
	*ret_list = list;
	return 0;
}

char *size_print(size_t size, char text[SIZE_TEXT_MAX])
{
	static const char units[] = "kmg";
	int unit = -1;

	while (size && size % 1024 == 0 && unit < 2) {
		size /= 1024;
		unit++;
	}
	if (unit < 0)
		snprintf(text, SIZE_TEXT_MAX, "%zu", size);
	else
		snprintf(text, SIZE_TEXT_MAX, "%zu%c", size, units[unit]);
	return text;
}
