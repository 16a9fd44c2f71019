/* SPDX-License-Identifier: MIT */
/* Ends that were never opened: what tells them, and how they travel in messages. */
#include "pass.h"

#include <errno.h>
#include <sys/socket.h>

#include "outmsg.h"
#include "receive.h"

/*
 * SO_PRIORITY means nothing to AF_UNIX and needs no privilege up to 6, but it belongs to the socket: whoever holds a
 * descriptor of it, in whichever process, sees that somebody has opened it. Nobody else sets this one.
 */
enum { OPENED = 5 };

void wh_end_mark(int fd) { setsockopt(fd, SOL_SOCKET, SO_PRIORITY, &(int){ OPENED }, sizeof(int)); }

int wh_end_check(int fd)
{
	struct sockaddr_storage address;
	socklen_t size = sizeof(int);
	int type, domain, mark;

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0)
		return errno == ENOTSOCK ? -EPROTOTYPE : -errno;
	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) < 0)
		return -errno;
	if (type != SOCK_SEQPACKET || domain != AF_UNIX)
		return -EPROTOTYPE;
	size = sizeof(address);
	/* Of a pair whose other end is closed already this still succeeds: what that had to say is queued here. */
	if (getpeername(fd, (struct sockaddr *)&address, &size) < 0)
		return -errno;
	size = sizeof(int);
	if (getsockopt(fd, SOL_SOCKET, SO_PRIORITY, &mark, &size) < 0)
		return -errno;
	return mark == OPENED ? -EBUSY : 0;
}

int wharf_port_pass(wharf_port *port, uint32_t type, int fd)
{
	struct wh_outmsg m = { .first = true, .last = true, .is_end = true };
	int error = wh_port_check(port);

	if (!error)
		error = wh_end_check(fd);
	if (error)
		return error;
	if (port->state == WH_PORT_DRAINING)
		return -EPIPE;
	m.flow = &port->plain;
	return wh_port_send(
		port, &m, &(struct wharf_out){ .type = type, .fds = &fd, .n_fds = 1, .flags = WHARF_FDS_MOVE });
}

/* A message without bytes. Whether the descriptor is an end is looked at by whoever opens it. */
void wh_port_deliver_end(struct wharf_port *port, const struct wh_port_record *r, struct wh_rx *rx)
{
	int fd = rx->n_fds ? rx->fds[0] : -1;
	struct wh_message m = {
		.pub = { .type = r->type,
			.flags = fd < 0 ? WHARF_MSG_PORT | WHARF_MSG_FDS_LOST : WHARF_MSG_PORT,
			.fds = &fd,
			.n_fds = 1,
			.sent_ns = rx->sent_ns },
		.port = port,
		.fds = &fd,
	};

	if (r->stream) {
		wh_port_violation(port, "an end in a stream, which was not agreed on");
		return;
	}
	if (rx->n_fds)
		rx->fds[0] = -1;
	wh_port_count(port, rx_fds, 1);
	wh_flow_deliver(&port->plain, &m);
	wh_fds_close(&fd, 1);
}
