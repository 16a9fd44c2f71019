/* SPDX-License-Identifier: MIT */
/*
 * What the library asks of the kernel, for whoever wants to forbid the rest: a ring restricts itself by it, and
 * wharf-inspect doctor --policy prints it.
 */
#ifndef WH_NEEDS_H
#define WH_NEEDS_H

#include <stdint.h>

enum {
	WH_NEED_RUN = 1 << 0,   /* in any turn: messages between open ports, from memory that is there */
	WH_NEED_GROW = 1 << 1,  /* pools that grow or shrink, the peer's memory, descriptors in messages, ends */
	WH_NEED_SETUP = 1 << 2, /* loops, ports, listeners, child processes */
	WH_NEED_URING = 1 << 3, /* with io_uring only */
	WH_NEED_EPOLL = 1 << 4, /* with epoll only */
};

struct wh_need {
	const char *name;       /* NULL behind the last */
	uint32_t number;
	uint32_t flags;         /* WH_NEED_* */
};

extern const struct wh_need wh_needs_calls[];     /* system calls of this machine */
extern const struct wh_need wh_needs_opcodes[];   /* IORING_OP_* */
extern const struct wh_need wh_needs_registers[]; /* IORING_REGISTER_* */

#endif
