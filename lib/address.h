/* SPDX-License-Identifier: MIT */
/* Socket addresses as users write them: a path, or '@' and a name in the abstract namespace. */
#ifndef WH_ADDRESS_H
#define WH_ADDRESS_H

#include <sys/socket.h>
#include <sys/un.h>

#include "base.h"

struct wh_address {
	struct sockaddr_un sockaddr;
	socklen_t size;
	bool abstract;
};

/* 0; -EINVAL: empty; -ENAMETOOLONG. */
int wh_address_parse(const char *text, struct wh_address *ret_address);

#endif
