/* SPDX-License-Identifier: MIT */
/* A program that e2e-spawn starts: takes its end up, and answers every message with its bytes doubled. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "wharf.h"

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct wharf_buf b;

	(void)user;
	if (msg->type == 99)
		_exit(7);
	if (msg->n_fds && write(msg->fds[0], "from the child", 14) != 14)
		_exit(4);
	if (!msg->size || wharf_buf_claim(wharf_port_pool(port), 2 * msg->size, &b))
		return;
	wharf_msg_copy(msg, 0, b.data, msg->size);
	wharf_msg_copy(msg, 0, (char *)b.data + msg->size, msg->size);
	if (wharf_send_buf(port, msg->type + 1, &b))
		_exit(5);
}

static void on_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	(void)port;
	*(int *)user = reason->code == WHARF_CLOSE_PEER ? 0 : 3;
}

/* A child of our own that keeps the socket open until the other end of it is closed. */
static void leave_heir(void)
{
	struct pollfd end = { .fd = dup(atoi(getenv("WHARF_FD"))) };

	if (fork())
		return;
	while (poll(&end, 1, -1) < 0 || !(end.revents & POLLHUP))
		;
	_exit(0);
}

int main(int argc, char **argv)
{
	static const struct wharf_port_ops ops = { .size = sizeof(ops), .on_message = on_message, .on_close = on_close };
	int result = 6;
	wharf_loop *loop;

	if (argc > 1 && !strcmp(argv[1], "silent")) {
		pause();
		return 0;
	}
	if (argc > 1 && !strcmp(argv[1], "heir"))
		leave_heir();
	/* The end goes to a child of our own, unopened. */
	if (argc > 1 && !strcmp(argv[1], "hand over") && fork())
		return 0;
	if (wharf_loop_new(NULL, &loop))
		return 1;
	if (wharf_port_inherit(loop, WHARF_OPT(port, .ops = &ops, .user = &result, .name = "spawned", .rx_fds_max = 1), NULL))
		return 2;
	if (getenv("WHARF_FD") || wharf_port_inherit(loop, WHARF_OPT(port, .ops = &ops), NULL) != -EALREADY)
		return 8;
	if (wharf_loop_run(loop))
		return 9;
	wharf_loop_free(loop);
	return result;
}
