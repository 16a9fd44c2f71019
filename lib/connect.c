/* SPDX-License-Identifier: MIT */
/*
 * Connecting. A port whose listener has no room, or is not there yet, is a port on a socket that is not connected: what
 * it sends waits as before a hello, and each of its flushes that the back-off lets through tries again.
 */
#include "connect.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "address.h"
#include "options.h"
#include "who.h"

struct wh_connect {
	struct wharf_port *port;
	struct wh_address address;
	struct wh_deadline deadline;
	bool await_listener;
	int error; /* of the last attempt, positive */
};

/* 0 or a negative errno. The socket does not block: a full backlog is an answer, not a reason to stop the loop. */
static int attempt(int fd, const struct wh_address *a)
{
	if (connect(fd, (const struct sockaddr *)&a->sockaddr, a->size) == 0)
		return 0;
	return errno == EAGAIN ? -EBUSY : -errno;
}

/* 0; -EACCES: somebody else listens there; a negative errno. */
static int check_listener(int fd)
{
	struct ucred who;
	int error = wh_peer_credentials(fd, &who);

	return error ? error : wh_same_user(who.uid) ? 0 : -EACCES;
}

static bool may_pass(int error, bool await_listener)
{
	return error == -EBUSY || (await_listener && (error == -ECONNREFUSED || error == -ENOENT));
}

/* ---- Waiting for the listener ---- */

/* Abstract names with their '@'. */
static const char *readable(const struct wh_address *a, char to[static sizeof(a->sockaddr.sun_path) + 1])
{
	size_t length = a->size - offsetof(struct sockaddr_un, sun_path);

	memcpy(to, a->sockaddr.sun_path, length);
	to[length] = '\0';
	if (a->abstract)
		to[0] = '@';
	return to;
}

static void give_up(struct wharf_port *port, uint32_t code, int error, const char *why)
{
	char name[sizeof(port->connecting->address.sockaddr.sun_path) + 1];

	wh_port_end(port, code, error, "%s: %s", readable(&port->connecting->address, name), why);
}

static void on_deadline(struct wh_deadline *deadline)
{
	struct wh_connect *c = wh_container_of(deadline, struct wh_connect, deadline);

	give_up(c->port, WHARF_CLOSE_TIMEOUT, c->error,
		c->error == EBUSY ? "the listener accepted too slowly" : "nobody listened in time");
}

void wh_connect_stop(struct wharf_port *port)
{
	struct wh_connect *c = port->connecting;
	struct wharf_loop *loop = port->source.loop;

	if (!c)
		return;
	port->connecting = NULL;
	wh_loop_clear_deadline(loop, &c->deadline);
	wh_timers_unreserve(&loop->timers, 1);
	wh_loop_dealloc(loop, c);
}

bool wh_connect_again(struct wharf_port *port)
{
	struct wh_connect *c = port->connecting;
	int fd = port->source.link.fd, error;

	if (wh_deadline_armed(&port->retry))
		return true;
	error = attempt(fd, &c->address);
	if (may_pass(error, c->await_listener)) {
		c->error = -error;
		return false;
	}
	if (error) {
		give_up(port, WHARF_CLOSE_ERROR, -error, "connecting failed");
	} else if (port->same_user && (error = check_listener(fd)) < 0) {
		give_up(port, WHARF_CLOSE_REFUSED, -error, "another user listens there");
	} else {
		wh_connect_stop(port);
		wh_port_start(port);
	}
	return true;
}

/* The port takes the socket, and connects it later. */
static int connect_later(int fd, const struct wh_address *a, int error, const struct wharf_port_options *options,
	wharf_loop *loop, wharf_port **ret_port)
{
	int64_t timeout_ns = options->connect_timeout_ns;
	struct wharf_port *port;
	struct wh_connect *c;
	int reason = -error;

	error = wh_timers_reserve(&loop->timers, 1);
	if (error)
		return error;
	c = wh_loop_alloc(loop, sizeof(*c));
	error = c ? wh_port_new(loop, fd, options, -1, &port) : -ENOMEM;
	if (error) {
		wh_loop_dealloc(loop, c);
		wh_timers_unreserve(&loop->timers, 1);
		return error;
	}
	*c = (struct wh_connect){
		.port = port,
		.address = *a,
		.deadline.expired = on_deadline,
		.await_listener = options->flags & WHARF_PORT_AWAIT_LISTENER,
		.error = reason,
	};
	port->connecting = c;
	if (timeout_ns > 0)
		wh_loop_set_deadline(loop, &c->deadline, (uint64_t)timeout_ns);
	wh_port_dirty(port);
	if (ret_port)
		*ret_port = port;
	return 0;
}

/* ---- Public ---- */

int wharf_connect(
	wharf_loop *loop, const char *address, const struct wharf_port_options *options, wharf_port **ret_port)
{
	struct wharf_port_options o;
	struct wh_address a;
	int fd, error;

	error = wh_loop_check(loop);
	if (!error)
		error = wh_address_parse(address, &a);
	if (!error)
		error = WH_OPTIONS_READ(options, &o);
	if (error)
		return error;
	if (o.flags & WHARF_PORT_AWAIT_LISTENER && !o.connect_timeout_ns)
		return -EINVAL;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	error = attempt(fd, &a);
	if (o.connect_timeout_ns && may_pass(error, o.flags & WHARF_PORT_AWAIT_LISTENER))
		error = connect_later(fd, &a, error, &o, loop, ret_port);
	else if (!error && !(o.flags & WHARF_PORT_SAME_USER && (error = check_listener(fd)) < 0))
		error = wh_port_open(loop, fd, &o, -1, ret_port);
	if (error)
		close(fd);
	return error;
}
