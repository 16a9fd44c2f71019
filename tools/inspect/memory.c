/* SPDX-License-Identifier: MIT */
/* Arrays that grow: see memory.h. */
#include "memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *found(void *memory)
{
	if (!memory) {
		fputs("wharf-inspect: out of memory\n", stderr);
		exit(1);
	}
	return memory;
}

void *memory_new(size_t n, size_t item_bytes) { return found(calloc(n ? n : 1, item_bytes)); }

void *memory_grow(void *array, size_t n, size_t item_bytes)
{
	size_t room;

	/* Full at each power of two, from 8 on. */
	if (n & (n - 1) || (n && n < 8))
		return array;
	room = n ? 2 * n : 8;
	array = found(reallocarray(array, room, item_bytes));
	memset((char *)array + n * item_bytes, 0, (room - n) * item_bytes);
	return array;
}

char *memory_format(const char *format, ...)
{
	va_list arguments;
	char *text = NULL;

	va_start(arguments, format);
	if (vasprintf(&text, format, arguments) < 0)
		text = NULL;
	va_end(arguments);
	return found(text);
}
