/* SPDX-License-Identifier: MIT */
/* Transports: the list. */
#include "transport.h"

#include <string.h>

const struct transport *const transports[] = {
	&transport_wharf,
	&transport_seqpacket,
	&transport_stream,
	NULL,
};

const struct transport *transport_find(const char *name, size_t name_length)
{
	for (const struct transport *const *t = transports; *t; t++)
		if (strlen((*t)->name) == name_length && !memcmp((*t)->name, name, name_length))
			return *t;
	return NULL;
}
