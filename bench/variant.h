/* SPDX-License-Identifier: MIT */
/* Variants: ways to run wharf that are compared like transports, as wharf/NAME. */
#ifndef BENCH_VARIANT_H
#define BENCH_VARIANT_H

#include <stddef.h>
#include <stdint.h>

struct variant {
	const char *name;
	uint32_t engine;     /* WHARF_ENGINE_*, of both sides */
	uint32_t loop_flags; /* WHARF_LOOP_* */
};

/* NULL: none of that name, of name_length bytes. */
const struct variant *variant_find(const char *name, size_t name_length);

/* 0; a negative errno: loops like that are not to be had here. */
int variant_try(const struct variant *variant);

#endif
