/* SPDX-License-Identifier: MIT */
/* A process to look at: two ports on one loop, a message now and then, of which one in ten is kept. */
#include <stdlib.h>
#include <string.h>

#include "wharf.h"

static unsigned n_seen;

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	(void)port, (void)user;
	if (n_seen++ % 10 == 0 && !wharf_msg_take(msg))
		abort();
}

static void on_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	(void)port, (void)reason, (void)user;
	exit(1);
}

static const struct wharf_port_ops ops = {
	.size = sizeof ops,
	.on_message = on_message,
	.on_close = on_close,
};

int main(void)
{
	wharf_loop *loop;
	wharf_port *ports[2];
	int fds[2];

	if (wharf_loop_new(NULL, &loop) < 0 || wharf_pair(fds) < 0)
		return 1;
	for (int i = 0; i < 2; i++)
		if (wharf_open(loop, fds[i], WHARF_OPT(port, .ops = &ops), &ports[i]) < 0)
			return 1;
	for (unsigned i = 0; wharf_loop_step(loop, 20000000) >= 0; i++) {
		struct wharf_buf buf;

		if (i >= 1000 || wharf_buf_claim(wharf_port_pool(ports[0]), 1000 * (1 + i % 5), &buf) < 0)
			continue;
		memset(buf.data, 1, buf.size);
		if (wharf_send_buf(ports[0], 1, &buf) < 0)
			wharf_buf_abandon(&buf);
	}
	return 1;
}
