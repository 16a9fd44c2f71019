/* SPDX-License-Identifier: MIT */
/* The sending end: reads the input straight into memory that the receiver can see, and hands it over. */
#include "cat.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct sender {
	struct cat *cat;
	struct wharf_buf buf;
	size_t filled;
	bool eof;
};

static void on_open(wharf_port *port, const struct wharf_peer *peer, void *user)
{
	struct cat *c = user;
	struct cat_start start = {
		.version = CAT_VERSION,
		.checksum = cat_digest_on(&c->digest),
		.bytes = c->progress.total,
	};
	int r;

	cat_on_open(port, peer, c);
	if (*c->error)
		return;
	r = wharf_send_bytes(port, CAT_START, &start, sizeof start);
	if (r < 0)
		cat_fail(c, (uint32_t)-r, "cannot send: %s", strerror(-r));
}

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct cat *c = user;

	(void)port;
	if (msg->type == CAT_DONE)
		c->done = true;
	else
		cat_fail(c, CAT_ABORT_PROTOCOL, "the receiver answered what wharf-cat does not understand");
}

static const struct wharf_port_ops ops = {
	.size = sizeof ops,
	.on_open = on_open,
	.on_message = on_message,
	.on_writable = cat_on_writable,
	.on_close = cat_on_close,
};

/* What is left of a regular file; other inputs end when they end. */
static uint64_t input_size(int fd)
{
	struct stat st;
	off_t at;

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size == 0)
		return CAT_BYTES_UNKNOWN;
	at = lseek(fd, 0, SEEK_CUR);
	return at >= 0 && at <= st.st_size ? (uint64_t)(st.st_size - at) : CAT_BYTES_UNKNOWN;
}

/* Returns with an open port, or with a failure recorded. */
static void connect_to(struct cat *c)
{
	const struct wharf_port_options *options =
		WHARF_OPT(port, .ops = &ops, .user = c, .name = "wharf-cat", .pool_bytes_max = CAT_POOL_BYTES);
	uint64_t wait_ns = c->options->wait_ns > 0 ? (uint64_t)c->options->wait_ns : 0;
	uint64_t deadline_ns = cat_now_ns() + wait_ns;
	int error;

	do {
		int r = wharf_connect(c->loop, c->options->address, options, &c->port);

		error = -r;
		if (r == 0) {
			while (!c->started_ns && !cat_stopped(c))
				cat_step(c, -1);
			error = c->connect_error;
			c->connect_error = 0;
		}
		if (!error)
			return;
		c->closed = false;
	} while (cat_connect_again(c, error, deadline_ns));
	if (!cat_stopped(c))
		cat_connect_failed(c, error);
}

static bool await_writable(struct cat *c)
{
	while (!c->writable && !cat_stopped(c))
		cat_step(c, -1);
	c->writable = false;
	return !cat_stopped(c);
}

/* Each of these waits as long as it has to, and returns false once the transfer has stopped. */

static bool claim(struct sender *s)
{
	struct cat *c = s->cat;

	while (!cat_stopped(c)) {
		int r = wharf_buf_claim(wharf_port_pool(c->port), CAT_BLOCK_BYTES, &s->buf);

		if (r == 0)
			return true;
		if (r != -EAGAIN)
			cat_fail(c, (uint32_t)-r, "cannot get memory to send from: %s", strerror(-r));
		else
			await_writable(c);
	}
	return false;
}

/* Fills the buffer, but keeps nothing back: when the input pauses, what has been read goes on its way. */
static bool fill(struct sender *s)
{
	struct cat *c = s->cat;

	while (!s->eof && s->filled < s->buf.size) {
		ssize_t n;

		if (!cat_await_input(c, s->filled > 0))
			break;
		n = read(c->fd, (char *)s->buf.data + s->filled, s->buf.size - s->filled);
		if (n > 0)
			s->filled += (size_t)n;
		else if (n == 0)
			s->eof = true;
		else if (errno != EINTR && errno != EAGAIN)
			cat_fail(c, (uint32_t)errno, "cannot read %s: %s", cat_file_name(c), strerror(errno));
	}
	return !cat_stopped(c);
}

static bool hand_over(struct sender *s)
{
	struct cat *c = s->cat;
	size_t size = s->filled;
	int r;

	r = cat_digest_update(&c->digest, s->buf.data, size);
	if (r == 0 && size < s->buf.size)
		r = wharf_buf_trim(&s->buf, size);
	while (r == 0 && !cat_stopped(c)) {
		r = wharf_send_buf(c->port, CAT_DATA, &s->buf);
		if (r == 0) {
			s->filled = 0;
			cat_advance(c, size);
			return true;
		}
		if (r == -EAGAIN && await_writable(c))
			r = 0;
	}
	/* A port that is closing already tells why by on_close. */
	if (r < 0 && r != -EAGAIN && r != -EPIPE)
		cat_fail(c, (uint32_t)-r, "cannot send: %s", strerror(-r));
	while (!cat_stopped(c))
		cat_step(c, -1);
	return false;
}

static void send_end(struct cat *c)
{
	struct cat_end end = { .bytes = c->bytes };
	int r = 0;

	if (cat_digest_on(&c->digest)) {
		r = cat_digest_finish(&c->digest, end.digest);
		c->checksum_announced = true;
	}
	while (r == 0 && !cat_stopped(c)) {
		r = wharf_send_bytes(c->port, CAT_END, &end, sizeof end);
		if (r == 0)
			break;
		if (r == -EAGAIN && await_writable(c))
			r = 0;
	}
	if (r < 0 && r != -EAGAIN && r != -EPIPE)
		cat_fail(c, (uint32_t)-r, "cannot send: %s", strerror(-r));
	while (!c->done && !cat_stopped(c))
		cat_step(c, -1);
	if (c->done && c->checksum_announced) {
		char text[CAT_DIGEST_TEXT];

		cat_say(c, "sha256 %s", cat_digest_text(end.digest, text));
	}
}

int cat_send(struct cat *c)
{
	struct sender s = { .cat = c, .buf = WHARF_BUF_EMPTY };

	if (cat_open(c)) {
		c->progress.total = input_size(c->fd);
		connect_to(c);
	}
	while (!s.eof && !cat_stopped(c) && claim(&s) && fill(&s))
		if (s.filled > 0 && !hand_over(&s))
			break;
	wharf_buf_abandon(&s.buf);
	if (s.eof && !cat_stopped(c))
		send_end(c);
	return cat_finish(c);
}
