/* SPDX-License-Identifier: MIT */
/* The loop of a process: its beginning, its turns, the ends of its ports. */
#include "loop.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

int loop_open(const struct plan *plan, struct outcome *outcome, wharf_loop **ret_loop)
{
	/* The parent may have made pairs, so this is a child of a process that has used the library. */
	int r = wharf_fork_child();

	if (r < 0)
		return outcome_fail(outcome, r, "wharf_fork_child: %s", strerror(-r));
	r = wharf_loop_new(WHARF_OPT(loop,
		.engine = plan->engine,
		.flags = plan->loop_flags,
		.frame_bytes_max = (uint32_t)plan->frame_bytes,
		.rx_buffers = (uint32_t)plan->rx_buffers), ret_loop);
	return r < 0 ? outcome_fail(outcome, r, "wharf_loop_new: %s", strerror(-r)) : 0;
}

int loop_step(wharf_loop *loop, struct outcome *outcome, int64_t timeout_ns)
{
	int r = wharf_loop_step(loop, timeout_ns);

	if (r < 0)
		return outcome_fail(outcome, r, "wharf_loop_step: %s", strerror(-r));
	return outcome->error[0] ? -EIO : 0;
}

uint64_t loop_system_calls(const wharf_loop *loop)
{
	struct wharf_loop_info info = { .size = sizeof info };

	return wharf_loop_info(loop, &info) == 0 ? info.system_calls : 0;
}

void loop_check_close(const struct wharf_reason *reason, struct outcome *outcome, size_t index, size_t n)
{
	if (reason->code != WHARF_CLOSE_LOCAL && reason->code != WHARF_CLOSE_PEER)
		outcome_fail(outcome, -EPIPE, "port %zu of %zu closed: %s: %s", index, n,
			wharf_close_name(reason->code), reason->text);
	else if (reason->unsent_messages)
		outcome_fail(outcome, -EPIPE, "port %zu of %zu closed with %" PRIu64 " messages unsent", index, n,
			reason->unsent_messages);
}
