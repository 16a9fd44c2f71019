/* SPDX-License-Identifier: MIT */
/* One wharf connection inside a libuv program: files are read straight into buffers, and another process sums them. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>
#include <uv.h>

#include "wharf.h"

#define MS INT64_C(1000000)
#define SEC (1000 * MS)

enum {
	PIECE = 1, /* bytes of the file */
	END = 2,   /* the file is complete, no bytes */
	SUM = 3,   /* struct sum: the answer to END */
	PIECE_BYTES = 256 << 10,
	APP_NONSENSE = 1,
	APP_NO_ROOM = 2,
};

struct sum {
	uint64_t bytes;
	uint64_t fnv;
};
#define SUM_NONE { 0, UINT64_C(0xcbf29ce484222325) }

/* ---- The process that sums up ---- */

static void service_on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct sum *sum = user;
	if (msg->type == PIECE) {
		for (size_t i = 0; i < msg->n_slices; i++) {
			const unsigned char *from = msg->slices[i].data;
			for (size_t k = 0; k < msg->slices[i].size; k++)
				sum->fnv = (sum->fnv ^ from[k]) * UINT64_C(0x100000001b3);
			sum->bytes += msg->slices[i].size;
		}
	} else if (msg->type == END) {
		if (wharf_send_bytes(port, SUM, sum, sizeof *sum) < 0)
			wharf_port_abort(port, APP_NO_ROOM);
		*sum = (struct sum)SUM_NONE;
	} else {
		wharf_port_abort(port, APP_NONSENSE);
	}
}

static const struct wharf_port_ops service_ops = {
	.size = sizeof service_ops,
	.on_message = service_on_message,
};

static int serve(void)
{
	struct sum sum = SUM_NONE;
	wharf_loop *loop = NULL;
	int e = wharf_loop_new(NULL, &loop);
	if (e >= 0)
		e = wharf_port_inherit(loop, WHARF_OPT(port, .ops = &service_ops, .user = &sum), NULL);
	if (e >= 0)
		e = wharf_loop_run(loop);
	wharf_loop_free(loop);
	return e < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* ---- The libuv program ---- */

struct reader {
	uv_loop_t uv;
	uv_poll_t poll;
	uv_signal_t interrupt;
	uv_fs_t fs;
	wharf_loop *loop;
	wharf_port *port;     /* NULL once closed */
	int pidfd;

	char **names;         /* the files to come, NULL at their end */
	const char *name;     /* of the open one */
	int file;             /* -1: none */
	bool reading;         /* libuv's threads are writing into buf */
	bool complete;        /* the file was read to its end, END is not sent yet */
	bool summing;         /* END is sent, SUM is not there yet */
	size_t filled;        /* bytes of buf, not sent yet */
	struct wharf_buf buf;
	uint64_t bytes;       /* of the open file, so far */
	int error;            /* the first; negative */
};

static void reader_go_on(struct reader *r);

/* Ends everything in good order; the handles go when on_close has been called. */
static void reader_stop(struct reader *r, int error)
{
	if (!r->error)
		r->error = error;
	r->names = NULL;
	if (r->port)
		wharf_port_close(r->port, 2 * SEC);
}

static void on_read(uv_fs_t *fs)
{
	struct reader *r = fs->data;
	ssize_t n = fs->result;
	uv_fs_req_cleanup(fs);
	r->reading = false;
	if (!r->port || n <= 0)
		wharf_buf_abandon(&r->buf); /* valid until here, whatever has become of the port */
	if (!r->port)
		return;
	if (n < 0) {
		reader_stop(r, (int)n);
		return;
	}
	r->filled = (size_t)n;
	r->complete = n == 0;
	reader_go_on(r);
}

/* Whatever is next: send what was read, say that the file is complete, open another, read on. 0; negative errno. */
static int reader_step(struct reader *r)
{
	int e = 0;
	if (r->filled) {
		e = wharf_buf_trim(&r->buf, r->filled);
		if (e >= 0)
			e = wharf_send_buf(r->port, PIECE, &r->buf);
		if (e < 0)
			return e;
		r->bytes += r->filled;
		r->filled = 0;
	}
	if (r->complete) {
		e = wharf_send_bytes(r->port, END, NULL, 0);
		if (e < 0)
			return e;
		r->complete = false;
		r->summing = true;
		close(r->file);
		r->file = -1;
	}
	if (r->summing)
		return 0;
	if (r->file < 0) {
		if (!*r->names) {
			reader_stop(r, 0);
			return 0;
		}
		r->name = *r->names++;
		r->bytes = 0;
		r->file = open(r->name, O_RDONLY | O_CLOEXEC);
		if (r->file < 0)
			return -errno;
	}
	if (!r->buf.data) {
		e = wharf_buf_claim(wharf_port_pool(r->port), PIECE_BYTES, &r->buf);
		if (e < 0)
			return e;
	}
	uv_buf_t into = uv_buf_init(r->buf.data, (unsigned)r->buf.size);
	e = uv_fs_read(&r->uv, &r->fs, r->file, &into, 1, -1, on_read);
	r->reading = e >= 0;
	return e;
}

static void reader_go_on(struct reader *r)
{
	if (r->reading || !r->names || !r->port)
		return;
	int e = reader_step(r);
	if (e < 0 && e != -EAGAIN && e != -EPIPE) /* -EAGAIN: on_writable comes back here. -EPIPE: on_close tells */
		reader_stop(r, e);
}

static void on_writable(wharf_port *port, void *user)
{
	(void)port;
	reader_go_on(user);
}

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct reader *r = user;
	struct sum sum;
	if (msg->type != SUM || msg->size != sizeof sum || !r->summing) {
		wharf_port_abort(port, APP_NONSENSE);
		return;
	}
	wharf_msg_copy(msg, 0, &sum, sizeof sum);
	r->summing = false;
	printf("%016" PRIx64 " %12" PRIu64 "  %s\n", sum.fnv, sum.bytes, r->name);
	if (sum.bytes != r->bytes)
		reader_stop(r, -EBADMSG);
	else
		reader_go_on(r);
}

static void close_handle(uv_handle_t *handle, void *unused)
{
	(void)unused;
	if (!uv_is_closing(handle))
		uv_close(handle, NULL);
}

static void on_close(wharf_port *port, const struct wharf_reason *why, void *user)
{
	(void)port;
	struct reader *r = user;
	r->port = NULL;
	if (!r->reading)
		wharf_buf_abandon(&r->buf);
	if (why->code != WHARF_CLOSE_LOCAL) {
		fprintf(stderr, "service: %s: %s\n", wharf_close_name(why->code), why->text);
		r->error = r->error ? r->error : -EPIPE;
	}
	uv_walk(&r->uv, close_handle, NULL);
}

static const struct wharf_port_ops ops = {
	.size = sizeof ops,
	.on_message = on_message,
	.on_writable = on_writable,
	.on_close = on_close,
};

static void on_poll(uv_poll_t *poll, int status, int events)
{
	(void)events;
	struct reader *r = poll->data;
	int e = status < 0 ? status : wharf_loop_step(r->loop, 0);
	if (e < 0) { /* the engine is broken; on_close comes out of wharf_loop_free */
		r->error = e;
		uv_stop(&r->uv);
	}
}

static void on_interrupt(uv_signal_t *signal, int number)
{
	(void)number;
	reader_stop(signal->data, -EINTR);
}

/* Starts the service and joins wharf's loop to libuv's. */
static int reader_start(struct reader *r)
{
	char self[] = "/proc/self/exe", serve_word[] = "--serve";
	char *argv[] = { self, serve_word, NULL };
	r->poll.data = r->interrupt.data = r->fs.data = r;
	int e = uv_signal_init(&r->uv, &r->interrupt);
	if (e >= 0)
		e = uv_signal_start_oneshot(&r->interrupt, on_interrupt, SIGINT);
	if (e >= 0)
		e = wharf_loop_fd(r->loop);
	if (e >= 0)
		e = uv_poll_init(&r->uv, &r->poll, e);
	if (e >= 0)
		e = uv_poll_start(&r->poll, UV_READABLE, on_poll);
	if (e >= 0)
		e = wharf_spawn(r->loop,
			WHARF_OPT(spawn, .argv = argv, .port = WHARF_OPT(port, .ops = &ops, .user = r)),
			&r->port, &r->pidfd);
	if (e >= 0)
		reader_go_on(r); /* before the service has said hello: what is sent queues */
	return e;
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "--serve"))
		return serve();

	char self[] = "/proc/self/exe";
	char *only_self[] = { self, NULL };
	struct reader r = { .names = argc > 1 ? argv + 1 : only_self, .file = -1, .pidfd = -1 };
	int e = uv_loop_init(&r.uv);
	if (e < 0) {
		fprintf(stderr, "embed-uv: %s\n", uv_strerror(e));
		return EXIT_FAILURE;
	}
	e = wharf_loop_new(NULL, &r.loop);
	if (e >= 0)
		e = reader_start(&r);
	if (e >= 0)
		uv_run(&r.uv, UV_RUN_DEFAULT); /* until on_close has closed the handles */
	uv_walk(&r.uv, close_handle, NULL); /* if they are still there, something failed */
	r.loop = wharf_loop_free(r.loop);
	uv_run(&r.uv, UV_RUN_DEFAULT);      /* lets a read that is under way end: its buffer outlives the loop */
	uv_loop_close(&r.uv);
	if (r.file >= 0)
		close(r.file);
	if (r.pidfd >= 0) {
		pidfd_send_signal(r.pidfd, SIGTERM, NULL, 0); /* closed is not dead */
		waitid(P_PIDFD, (id_t)r.pidfd, NULL, WEXITED);
		close(r.pidfd);
	}
	e = e < 0 ? e : r.error;
	if (e < 0)
		fprintf(stderr, "embed-uv: %s%s%s\n", r.name ? r.name : "", r.name ? ": " : "", uv_strerror(e));
	return e < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
