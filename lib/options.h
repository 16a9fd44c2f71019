/* SPDX-License-Identifier: MIT */
/* Option structures that grow at their end: what an older or newer program passes, as this library's structure. */
#ifndef WH_OPTIONS_H
#define WH_OPTIONS_H

#include <errno.h>
#include <string.h>

#include "base.h"

/* No structure comes near: a larger size is garbage, and reading that far would crash. */
enum { WH_OPTIONS_BYTES_MAX = 4096 };

/* 0; -EINVAL: no size; -E2BIG: fields that this library does not know are set. options NULL (all defaults) passes. */
static inline int wh_options_check(const void *options, size_t given_size, size_t known_size)
{
	if (!options)
		return 0;
	if (given_size < sizeof(size_t))
		return -EINVAL;
	if (given_size > WH_OPTIONS_BYTES_MAX)
		return -E2BIG;
	for (size_t i = known_size; i < given_size; i++)
		if (((const unsigned char *)options)[i])
			return -E2BIG;
	return 0;
}

/* After a check: fills a local structure of known_size; fields that the caller does not know are zero. */
static inline void wh_options_copy(void *to, const void *options, size_t given_size, size_t known_size)
{
	memset(to, 0, known_size);
	if (options)
		memcpy(to, options, wh_min(given_size, known_size));
}

/* Both; options NULL: all defaults. */
static inline int wh_options_read(const void *options, size_t given_size, void *to, size_t known_size)
{
	int error = wh_options_check(options, given_size, known_size);

	if (!error)
		wh_options_copy(to, options, given_size, known_size);
	return error;
}
#define WH_OPTIONS_READ(given, to) wh_options_read((given), (given) ? (given)->size : 0, (to), sizeof(*(to)))

#endif
