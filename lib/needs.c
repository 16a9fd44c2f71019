/* SPDX-License-Identifier: MIT */
/* What the library asks of the kernel: three tables, kept true by tests that forbid the rest. */
#include "needs.h"

#include <linux/io_uring.h>
#include <stddef.h>
#include <sys/syscall.h>

#define CALL(name, flags) { #name, SYS_##name, flags }
#define OPCODE(name, flags) { #name, IORING_OP_##name, flags }
#define REGISTER(name, flags) { #name, IORING_##name, flags }

enum {
	RUN = WH_NEED_RUN,
	GROW = WH_NEED_GROW,
	SETUP = WH_NEED_SETUP,
	URING = WH_NEED_URING,
	EPOLL = WH_NEED_EPOLL,
};

const struct wh_need wh_needs_calls[] = {
	CALL(io_uring_enter, RUN | URING),
	CALL(io_uring_register, RUN | URING), /* a loop that is freed; a ring that runs allows little else */
	CALL(epoll_pwait2, RUN | EPOLL),
#ifdef SYS_epoll_wait
	CALL(epoll_wait, RUN | EPOLL),
#else
	CALL(epoll_pwait, RUN | EPOLL),
#endif
	CALL(epoll_ctl, RUN | EPOLL),
	CALL(timerfd_settime, RUN | EPOLL),
	CALL(sendmsg, RUN | EPOLL),
	CALL(recvmsg, RUN | EPOLL),
	CALL(recvmmsg, RUN | EPOLL),
	CALL(sendto, RUN),        /* what a port that fails says at its end */
	CALL(shutdown, RUN),
	CALL(close, RUN),
	CALL(read, RUN),          /* from an eventfd */
	CALL(write, RUN),         /* to an eventfd: wakes */
	CALL(futex, RUN),
	CALL(sched_yield, RUN),   /* to threads that wake a loop while it is freed */
	CALL(clock_gettime, RUN), /* where it is a system call */
	CALL(brk, RUN),           /* the C library's memory */
	CALL(mmap, RUN),
	CALL(munmap, RUN),
	CALL(madvise, RUN),
	CALL(mprotect, RUN),
	CALL(memfd_create, GROW),
	CALL(ftruncate, GROW),
	CALL(fallocate, GROW),
	CALL(fcntl, GROW),        /* seals; descriptors are duplicated */
#ifdef SYS_fstat
	CALL(fstat, GROW),
#endif
	CALL(newfstatat, GROW),
	CALL(fstatfs, GROW),
	CALL(getsockopt, GROW),   /* whether an end may be passed */
	CALL(getpeername, GROW),
	CALL(ioctl, GROW),        /* SIOCOUTQ */
	CALL(io_uring_setup, SETUP | URING),
	CALL(epoll_create1, SETUP | EPOLL),
	CALL(timerfd_create, SETUP | EPOLL),
	CALL(accept4, SETUP | EPOLL),
	CALL(eventfd2, SETUP),
	CALL(socketpair, SETUP),
	CALL(socket, SETUP),
	CALL(bind, SETUP),
	CALL(listen, SETUP),
	CALL(connect, SETUP),
	CALL(setsockopt, SETUP),
	CALL(openat, SETUP),      /* /proc/self/stat */
	CALL(getpid, SETUP),
	CALL(gettid, SETUP),
	CALL(geteuid, SETUP),
	CALL(getegid, SETUP),
	CALL(flock, SETUP),
	CALL(pidfd_open, SETUP),
#ifdef SYS_unlink
	CALL(unlink, SETUP),      /* socket files */
	CALL(chmod, SETUP),
#else
	CALL(unlinkat, SETUP),
	CALL(fchmodat, SETUP),
#endif
	CALL(fchmod, SETUP),
	{ NULL, 0, 0 },
};

const struct wh_need wh_needs_opcodes[] = {
	OPCODE(RECVMSG, RUN),
	OPCODE(SENDMSG, RUN),
	OPCODE(POLL_ADD, RUN),
	OPCODE(ACCEPT, SETUP),
	OPCODE(ASYNC_CANCEL, RUN),
	OPCODE(TIMEOUT, RUN),
	OPCODE(TIMEOUT_REMOVE, RUN), /* with which a timeout is moved */
	{ NULL, 0, 0 },
};

const struct wh_need wh_needs_registers[] = {
	REGISTER(REGISTER_PBUF_RING, SETUP),
	REGISTER(REGISTER_RESTRICTIONS, SETUP),
	REGISTER(REGISTER_ENABLE_RINGS, SETUP),
	REGISTER(REGISTER_RING_FDS, RUN),
	REGISTER(UNREGISTER_RING_FDS, RUN),
	REGISTER(REGISTER_EVENTFD, RUN),
	{ NULL, 0, 0 },
};
