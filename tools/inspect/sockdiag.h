/* SPDX-License-Identifier: MIT */
/* What the kernel says of the unix sockets of this network namespace: queues and peers, by inode. */
#ifndef INSPECT_SOCKDIAG_H
#define INSPECT_SOCKDIAG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sockdiag_socket {
	uint32_t inode;
	uint32_t peer;     /* inode of the other end; 0: none */
	uint32_t unread;   /* bytes in its receive queue; of a listener: connections that wait */
	uint32_t unsent;   /* bytes, as charged, that its peer has not received; of a listener: its backlog */
	bool listens;
};

struct sockdiag {
	struct sockdiag_socket *sockets; /* by inode */
	size_t n;
	uint64_t net;      /* the namespace they are of */
	int error;         /* negative: there is nothing, and this is why */
};

void sockdiag_take(struct sockdiag *ret_diag);
void sockdiag_fini(struct sockdiag *diag);
/* NULL: not there. */
const struct sockdiag_socket *sockdiag_find(const struct sockdiag *diag, uint64_t inode);

#endif
