/* SPDX-License-Identifier: MIT */
/* Ends that were never opened: only those can be opened, or passed on. */
#ifndef WH_PASS_H
#define WH_PASS_H

#include "port.h"

/* 0; -EBADF; -EPROTOTYPE: no AF_UNIX SOCK_SEQPACKET socket; -ENOTCONN; -EBUSY: it was opened, here or elsewhere. */
int wh_end_check(int fd);
void wh_end_mark(int fd); /* it is opened */

#endif
