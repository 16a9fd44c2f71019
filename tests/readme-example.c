/* SPDX-License-Identifier: MIT */
/* A parent starts itself again as a child and hands it a megabyte; the child adds it up where it lies. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include <wharf.h>

enum { NUMBERS = 1, SECOND = 1000000000 };

static int fail(const char *what, int error)
{
	fprintf(stderr, "%s: %s\n", what, strerror(-error));
	return 1;
}

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	(void)port, (void)user;
	uint64_t sum = 0;
	for (size_t i = 0; i < msg->n_slices; i++)
		for (size_t k = 0; k < msg->slices[i].size; k++)
			sum += ((const unsigned char *)msg->slices[i].data)[k];
	printf("child: message of type %u, %zu bytes, sum %llu\n", msg->type, msg->size, (unsigned long long)sum);
}

static void on_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	(void)port;
	uint32_t *ret_code = user;
	*ret_code = reason->code;
	printf("closed: %s (%s)\n", wharf_close_name(reason->code), reason->text);
}

static const struct wharf_port_ops ops = {
	.size = sizeof ops,
	.on_message = on_message,
	.on_close = on_close,
};

static int child(wharf_loop *loop)
{
	uint32_t closed = 0;
	int error = wharf_port_inherit(loop, WHARF_OPT(port, .ops = &ops, .user = &closed), NULL);
	if (error < 0)
		return fail("wharf_port_inherit", error);
	wharf_loop_run(loop); /* until no port is left */
	return closed != WHARF_CLOSE_PEER;
}

static int parent(wharf_loop *loop)
{
	char program[] = "/proc/self/exe", role[] = "child", *argv[] = { program, role, NULL };
	uint32_t closed = 0;
	wharf_port *port;
	int pidfd;
	int error = wharf_spawn(loop,
		WHARF_OPT(spawn, .argv = argv, .port = WHARF_OPT(port, .ops = &ops, .user = &closed)), &port, &pidfd);
	if (error < 0)
		return fail("wharf_spawn", error);

	struct wharf_buf buf; /* memory that the child will read in place */
	error = wharf_buf_claim(wharf_port_pool(port), 1 << 20, &buf);
	if (error < 0)
		return fail("wharf_buf_claim", error);
	memset(buf.data, 1, buf.size);

	error = wharf_send_buf(port, NUMBERS, &buf);
	if (error < 0) {
		wharf_buf_abandon(&buf); /* after a failure it is ours still */
		return fail("wharf_send_buf", error);
	}
	wharf_port_close(port, 5LL * SECOND); /* in good order: after the message, and after the child's goodbye */
	wharf_loop_run(loop);

	siginfo_t how = { 0 };
	waitid(P_PIDFD, (id_t)pidfd, &how, WEXITED);
	return closed != WHARF_CLOSE_LOCAL || how.si_status != 0;
}

int main(int argc, char **argv)
{
	(void)argv;
	wharf_loop *loop;
	int error = wharf_loop_new(NULL, &loop);
	if (error < 0)
		return fail("wharf_loop_new", error);
	int code = argc > 1 ? child(loop) : parent(loop);
	wharf_loop_free(loop);
	return code;
}
