/* SPDX-License-Identifier: MIT */
/* The loop of a process of a repetition, and what the ends of its ports mean. */
#ifndef BENCH_LOOP_H
#define BENCH_LOOP_H

#include <stddef.h>
#include <stdint.h>
#include <wharf.h>

#include "side.h"

/* A loop as the plan wants it, in a child of a process that may have used the library. 0; negative errno, told. */
int loop_open(const struct plan *plan, struct outcome *outcome, wharf_loop **ret_loop);

/* A turn. 0; negative errno, told: also when something has failed before. */
int loop_step(wharf_loop *loop, struct outcome *outcome, int64_t timeout_ns);

/* That its loop has made until now. */
uint64_t loop_system_calls(const wharf_loop *loop);

/* A port's on_close, of port `index` of n: tells of all but an end in good order with nothing left unsent. */
void loop_check_close(const struct wharf_reason *reason, struct outcome *outcome, size_t index, size_t n);

#endif
