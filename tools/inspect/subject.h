/* SPDX-License-Identifier: MIT */
/* One process, or the core dump of one: all that views show of it. */
#ifndef INSPECT_SUBJECT_H
#define INSPECT_SUBJECT_H

#include "core.h"
#include "fdinfo.h"
#include "process.h"
#include "snapshot.h"
#include "sockdiag.h"

/* What the kernel says of a loop's ring or epoll set. */
struct subject_ring {
	bool known;
	char why[64]; /* if it is not */
	struct fdinfo info;
};

/* And of a port's socket. */
struct subject_socket {
	bool known;
	char why[64];
	uint64_t inode;
	uint32_t unread;      /* bytes that wait to be received here */
	uint32_t unsent;      /* bytes, as charged, that the peer has not received */
	uint32_t peer_unread; /* bytes that wait there */
	bool peer_known;
	bool scm_known;
	uint64_t scm_fds;     /* descriptors in what waits here */
};

struct subject {
	bool dumped;                   /* of a core; there is no process */
	struct process process;
	struct core *core;             /* NULL: not of one */
	struct source source;
	struct snapshot now, before;   /* before: of an earlier look, when has_before */
	bool has_now, has_before;
	struct subject_ring *rings;    /* one for each loop of now; NULL: not asked for */
	struct subject_socket *sockets; /* one for each port of now; NULL: not asked for */
};

/* Both: 0, and subject_close is owed; negative, and why. */
int subject_open(pid_t pid, struct subject *ret_subject, char why[PROCESS_WHY_BYTES]);
int subject_open_core(const char *path, struct subject *ret_subject, char why[PROCESS_WHY_BYTES]);
void subject_close(struct subject *subject);

/* Takes a snapshot; the one that was there becomes `before`. -ESRCH: the process has exited. */
int subject_look(struct subject *subject, unsigned wants, char why[PROCESS_WHY_BYTES]);

/* Asks the kernel, too, about what the last look showed: after the descriptors that are open were looked at. */
void subject_look_at_fds(struct subject *subject);
void subject_look_at_rings(struct subject *subject);
/* suspects: only of ports of which the process itself does not know whether their peer reads. */
void subject_look_at_sockets(struct subject *subject, const struct sockdiag *diag, bool suspects);

/*
 * How long the peer has not read what is there for it; 0: it has. A peer that has read little need not say so: then the
 * kernel's queue tells, if it was looked at.
 */
uint64_t subject_unread_for(const struct subject *subject, const struct snap_port *port);

uint64_t subject_now_ns(const struct subject *subject);
/* How long since a time that the process has noted, 0 if that is later than now or not known. */
uint64_t subject_since(const struct subject *subject, uint64_t then_ns);

#endif
