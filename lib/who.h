/* SPDX-License-Identifier: MIT */
/* Who is at the other end, by the kernel's word, and whether that is one of us. */
#ifndef WH_WHO_H
#define WH_WHO_H

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base.h"

/*
 * Of a connection: who listened, or who connected. Of a pair: who made it, whoever holds the ends now. 0 or a negative
 * errno.
 */
static inline int wh_peer_credentials(int fd, struct ucred *ret_credentials)
{
	socklen_t size = sizeof(*ret_credentials);

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, ret_credentials, &size) < 0 ? -errno : 0;
}

static inline bool wh_same_user(uid_t uid) { return uid == 0 || uid == geteuid(); }

#endif
