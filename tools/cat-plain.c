/* SPDX-License-Identifier: MIT */
/*
 * --plain: the same transfer over an ordinary AF_UNIX stream socket, by read and write of blocks of the same size. For
 * comparison only: the end of the data is the end of the connection, so that a lost tail goes unnoticed.
 */
#include "cat.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static bool make_address(struct cat *c, struct sockaddr_un *address, socklen_t *size)
{
	const char *name = c->options->address;
	size_t length = strlen(name);

	*address = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (length >= sizeof address->sun_path) {
		cat_fail(c, 0, "%s: %s", name, strerror(ENAMETOOLONG));
		return false;
	}
	memcpy(address->sun_path, name, length);
	if (name[0] == '@')
		address->sun_path[0] = '\0';
	*size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + (name[0] != '@'));
	return true;
}

/* What one write may leave in the socket: a whole block, as far as the system allows. */
static int make_socket(struct cat *c)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int bytes = CAT_BLOCK_BYTES;

	if (fd < 0)
		cat_fail(c, 0, "cannot make a socket: %s", strerror(errno));
	else
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
	return fd;
}

static int connect_to(struct cat *c)
{
	uint64_t wait_ns = c->options->wait_ns > 0 ? (uint64_t)c->options->wait_ns : 0;
	uint64_t deadline_ns = cat_now_ns() + wait_ns;
	struct sockaddr_un address;
	socklen_t size;
	int error;

	if (!make_address(c, &address, &size))
		return -1;
	do {
		int fd = make_socket(c);

		if (fd < 0)
			return -1;
		if (connect(fd, (struct sockaddr *)&address, size) == 0)
			return fd;
		error = errno;
		close(fd);
	} while (cat_connect_again(c, error, deadline_ns));
	if (!cat_stopped(c))
		cat_connect_failed(c, error);
	return -1;
}

static int accept_within(struct cat *c, int listener)
{
	int64_t wait_ns = c->options->wait_ns;
	int n, fd;

	n = poll(&(struct pollfd){ .fd = listener, .events = POLLIN }, 1, wait_ns < 0 ? -1 : (int)(wait_ns / 1000000));
	if (n == 0)
		cat_fail(c, 0, "%s: no sender came", c->options->address);
	if (n == 0 || cat_stopped(c))
		return -1;
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0)
		cat_fail(c, 0, "cannot accept a sender: %s", strerror(errno));
	return fd;
}

static int accept_one(struct cat *c)
{
	struct sockaddr_un address;
	socklen_t size;
	int listener, fd;

	if (!make_address(c, &address, &size))
		return -1;
	listener = make_socket(c);
	if (listener < 0)
		return -1;
	if (bind(listener, (struct sockaddr *)&address, size) < 0 || listen(listener, 1) < 0) {
		cat_fail(c, 0, "cannot listen on %s: %s", c->options->address, strerror(errno));
		close(listener);
		return -1;
	}
	fd = accept_within(c, listener);
	close(listener);
	if (c->options->address[0] != '@')
		unlink(c->options->address);
	return fd;
}

static bool write_all(struct cat *c, int fd, const char *data, size_t size, const char *what)
{
	for (size_t done = 0; done < size; ) {
		ssize_t n = write(fd, data + done, size - done);

		if (n > 0) {
			done += (size_t)n;
			cat_advance(c, (uint64_t)n);
		} else if (n < 0 && errno != EINTR) {
			c->write_failed = c->options->listen;
			cat_fail(c, 0, "cannot write %s: %s", what, strerror(errno));
		}
		if (cat_stopped(c))
			return false;
	}
	return true;
}

static void copy(struct cat *c, int from, const char *from_name, int to, const char *to_name)
{
	char *block = malloc(CAT_BLOCK_BYTES);

	if (!block) {
		cat_fail(c, 0, "%s", strerror(ENOMEM));
		return;
	}
	for (;;) {
		ssize_t n = read(from, block, CAT_BLOCK_BYTES);

		if (n < 0 && errno != EINTR)
			cat_fail(c, 0, "cannot read %s: %s", from_name, strerror(errno));
		if (n == 0 || cat_stopped(c) || (n > 0 && !write_all(c, to, block, (size_t)n, to_name)))
			break;
	}
	free(block);
}

int cat_plain_send(struct cat *c)
{
	int fd = cat_open(c) ? connect_to(c) : -1;

	if (fd >= 0) {
		cat_begin(c);
		copy(c, c->fd, cat_file_name(c), fd, "the socket");
		c->done = true;
		close(fd);
	}
	return cat_finish(c);
}

int cat_plain_receive(struct cat *c)
{
	int fd = cat_open(c) ? accept_one(c) : -1;

	if (fd >= 0) {
		cat_begin(c);
		copy(c, fd, "the socket", c->fd, cat_file_name(c));
		c->done = cat_close_written(c);
		close(fd);
	}
	return cat_finish(c);
}
