/* SPDX-License-Identifier: MIT */
/* What /proc/PID/fdinfo/N says of rings, epoll sets and sockets: by key; what is not known is skipped. */
#ifndef INSPECT_FDINFO_H
#define INSPECT_FDINFO_H

#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FDINFO_OPS = 64 };

struct fdinfo {
	bool ring;            /* the lines of an io_uring were there */
	uint32_t sq_mask, sq_head, sq_tail, sq_cached_head;
	uint32_t cq_mask, cq_head, cq_tail, cq_cached_tail;
	uint64_t armed[FDINFO_OPS]; /* requests in the poll list, by opcode; the last: and above */
	uint64_t n_armed;
	uint64_t overflows;   /* completions that found the queue full, and wait in the kernel */
	uint64_t user_files, user_buffers;
	uint64_t targets;     /* of an epoll set */
	bool socket;
	uint64_t scm_fds;     /* descriptors in messages that wait to be received */
};

void fdinfo_parse(const char *text, size_t size, struct fdinfo *ret_info);

static inline uint32_t fdinfo_unsubmitted(const struct fdinfo *info) { return info->sq_tail - info->sq_head; }
static inline uint32_t fdinfo_unreaped(const struct fdinfo *info) { return info->cq_tail - info->cq_head; }

/* "recvmsg"; NULL: one that wharf does not use. */
const char *fdinfo_op_name(unsigned op);
enum { FDINFO_OP_SENDMSG = 9 };

/* 0; -errno: gone, or may not be read. */
int fdinfo_read(int pid, int fd, struct fdinfo *ret_info);

#endif
