/* SPDX-License-Identifier: MIT */
/* The file at this end: what the sender reads, and what the receiver writes. */
#include "cat.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
	IOVECS = 64,
	PIPE_BYTES = 1 << 20,
};

const char *cat_file_name(const struct cat *c)
{
	if (c->options->file)
		return c->options->file;
	return c->options->listen ? "standard output" : "standard input";
}

bool cat_open(struct cat *c)
{
	const struct cat_options *o = c->options;
	struct stat st;

	c->fd = o->listen ? STDOUT_FILENO : STDIN_FILENO;
	if (o->file) {
		int flags = o->listen ? O_WRONLY | O_CREAT | O_TRUNC : O_RDONLY;

		c->fd = open(o->file, flags | O_CLOEXEC, 0666);
		if (c->fd < 0) {
			cat_fail(c, 0, "cannot open %s: %s", o->file, strerror(errno));
			return false;
		}
	}
	/* The fewer times a pipe runs full or dry the faster; that it stays as it is does no harm. */
	if (fstat(c->fd, &st) == 0 && S_ISFIFO(st.st_mode))
		fcntl(c->fd, F_SETPIPE_SZ, PIPE_BYTES);
	return true;
}

bool cat_close_written(struct cat *c)
{
	int r = close(c->fd);

	c->fd = -1;
	/* Some file systems, NFS among them, tell of a failed write only here. */
	if (r < 0 && errno != EINTR) {
		c->write_failed = true;
		cat_fail(c, (uint32_t)errno, "cannot write %s: %s", cat_file_name(c), strerror(errno));
	}
	return !*c->error;
}

static size_t fill_iovecs(struct iovec *iovecs, const struct wharf_slice *slices, size_t n_slices)
{
	size_t n = n_slices < IOVECS ? n_slices : IOVECS;

	for (size_t i = 0; i < n; i++)
		iovecs[i] = (struct iovec){ .iov_base = (void *)slices[i].data, .iov_len = slices[i].size };
	return n;
}

/* Takes what was written off the front; returns how many are left. */
static size_t advance_iovecs(struct iovec **iovecs, size_t n, size_t written)
{
	while (n > 0 && written >= (*iovecs)->iov_len) {
		written -= (*iovecs)->iov_len;
		(*iovecs)++;
		n--;
	}
	if (n > 0) {
		(*iovecs)->iov_base = (char *)(*iovecs)->iov_base + written;
		(*iovecs)->iov_len -= written;
	}
	return n;
}

bool cat_write(struct cat *c, const struct wharf_slice *slices, size_t n_slices)
{
	for (size_t done = 0; done < n_slices; done += IOVECS) {
		struct iovec all[IOVECS], *iovecs = all;
		size_t n = fill_iovecs(all, slices + done, n_slices - done);

		n = advance_iovecs(&iovecs, n, 0);
		while (n > 0) {
			ssize_t written = writev(c->fd, iovecs, (int)n);

			if (written >= 0) {
				cat_advance(c, (uint64_t)written);
				n = advance_iovecs(&iovecs, n, (size_t)written);
			} else if (errno == EAGAIN) {
				/* Somebody made our output non-blocking, which is shared with whoever gave it to us. */
				poll(&(struct pollfd){ .fd = c->fd, .events = POLLOUT }, 1, -1);
			} else if (errno != EINTR) {
				c->write_failed = true;
				cat_fail(c, (uint32_t)errno, "cannot write %s: %s", cat_file_name(c), strerror(errno));
				return false;
			}
			if (cat_signal_caught() && cat_stopped(c))
				return false;
		}
	}
	return true;
}
