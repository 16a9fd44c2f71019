/* SPDX-License-Identifier: MIT */
/* Parsing: see address.h. */
#include "address.h"

#include <errno.h>
#include <string.h>

int wh_address_parse(const char *text, struct wh_address *ret_address)
{
	struct wh_address a = { .sockaddr.sun_family = AF_UNIX };
	size_t length;

	if (!text || !*text)
		return -EINVAL;
	length = strlen(text);
	a.abstract = text[0] == '@';
	if (a.abstract && length == 1)
		return -EINVAL;
	/* A path keeps its NUL; an abstract name has one in front, and ends where the size says. */
	if (length + !a.abstract > sizeof(a.sockaddr.sun_path))
		return -ENAMETOOLONG;
	memcpy(a.sockaddr.sun_path, text, length);
	if (a.abstract)
		a.sockaddr.sun_path[0] = '\0';
	a.size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + !a.abstract);
	*ret_address = a;
	return 0;
}
