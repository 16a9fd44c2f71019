/* SPDX-License-Identifier: MIT */
/* Variants: the table. */
#include "variant.h"

#include <string.h>

#include "wharf.h"

static const struct variant variants[] = {
	{ .name = "uring", .engine = WHARF_ENGINE_URING },
	{ .name = "epoll", .engine = WHARF_ENGINE_EPOLL },
	{ .name = "blind", .loop_flags = WHARF_LOOP_UNSEEN },
	{ .name = "traced", .loop_flags = WHARF_LOOP_TRACE },
};

const struct variant *variant_find(const char *name, size_t name_length)
{
	for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
		if (strlen(variants[i].name) == name_length && !memcmp(variants[i].name, name, name_length))
			return &variants[i];
	return NULL;
}

int variant_try(const struct variant *variant)
{
	wharf_loop *loop;
	int r = wharf_loop_new(WHARF_OPT(loop, .engine = variant->engine, .flags = variant->loop_flags), &loop);

	if (r == 0)
		wharf_loop_free(loop);
	return r;
}
