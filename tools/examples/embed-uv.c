/* SPDX-License-Identifier: MIT */
/*
 * wharf as a guest in a libuv program: names of files come down a pipe, libuv's threads read the files straight into
 * buffers that another process will read in place, and that process sums them up. Everything is sent from libuv's own
 * handlers.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
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
	WATCHDOG_MS = 20000, /* longer than anything takes */
};

struct sum {
	uint64_t bytes;
	uint64_t fnv;
};
#define SUM_NONE { 0, UINT64_C(0xcbf29ce484222325) }

static void sum_add(struct sum *sum, const void *bytes, size_t size)
{
	for (size_t i = 0; i < size; i++)
		sum->fnv = (sum->fnv ^ ((const unsigned char *)bytes)[i]) * UINT64_C(0x100000001b3);
	sum->bytes += size;
}

/* ---- The process that sums up ---- */

static void service_on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct sum *sum = user;
	if (msg->type == PIECE) {
		for (size_t i = 0; i < msg->n_slices; i++)
			sum_add(sum, msg->slices[i].data, msg->slices[i].size);
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
	uv_poll_t poll;     /* wharf's descriptor */
	uv_pipe_t names;    /* of files, each with its newline */
	uv_timer_t watchdog;
	uv_signal_t interrupt;
	uv_fs_t fs;
	wharf_loop *loop;
	wharf_port *port; /* NULL once closed */
	int pidfd;

	char line[PATH_MAX]; /* what has come down the pipe, up to sizeof line - 1 */
	size_t line_bytes;
	bool names_ended;

	char name[PATH_MAX];  /* of the open file */
	int file;             /* -1: none */
	bool reading;         /* libuv's threads are writing into buf */
	bool complete;        /* the file was read to its end, END is not sent yet */
	bool summing;         /* END is sent, SUM is not there yet */
	size_t filled;        /* bytes of buf, not sent yet */
	struct wharf_buf buf;
	struct sum sum;       /* of the open file, so far */
	unsigned n_files;
	bool stopping;
	int error;            /* the first; negative */
};

static void reader_go_on(struct reader *r);
static void on_names_room(uv_handle_t *names, size_t suggested, uv_buf_t *ret_buf);
static void on_names(uv_stream_t *names, ssize_t n, const uv_buf_t *buf);

/* Ends everything in good order; the handles go when on_close has been called. */
static void reader_stop(struct reader *r, int error)
{
	if (!r->error)
		r->error = error;
	r->stopping = true;
	if (r->port)
		wharf_port_close(r->port, 5 * SEC);
}

static void on_read(uv_fs_t *fs)
{
	struct reader *r = fs->data;
	ssize_t n = fs->result;
	uv_fs_req_cleanup(fs);
	r->reading = false;
	uv_timer_again(&r->watchdog);
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
	sum_add(&r->sum, r->buf.data, r->filled);
	reader_go_on(r);
}

/* Takes the first line of what has come down the pipe. false: there is none yet; after the last one all is done. */
static bool next_name(struct reader *r)
{
	char *end = memchr(r->line, '\n', r->line_bytes);
	if (!end) {
		if (r->names_ended)
			reader_stop(r, r->line_bytes ? -EBADMSG : 0);
		return false;
	}
	*end++ = 0;
	memcpy(r->name, r->line, (size_t)(end - r->line));
	r->line_bytes -= (size_t)(end - r->line);
	memmove(r->line, end, r->line_bytes);
	if (!r->names_ended)
		uv_read_start((uv_stream_t *)&r->names, on_names_room, on_names); /* it may have stopped: no room */
	return true;
}

/* Whatever is next: send what was read, say that the file is complete, open another, read on. 0; negative errno. */
static int reader_step(struct reader *r)
{
	int e = 0;
	if (r->filled) {
		e = wharf_buf_trim(&r->buf, r->filled); /* again after -EAGAIN: to the size that it has */
		if (e >= 0)
			e = wharf_send_buf(r->port, PIECE, &r->buf);
		if (e < 0)
			return e;
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
		if (!next_name(r))
			return 0; /* on_names comes back here */
		r->sum = (struct sum)SUM_NONE;
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
	if (r->reading || r->stopping || !r->port)
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
	r->n_files++;
	printf("%016" PRIx64 " %12" PRIu64 "  %s\n", sum.fnv, sum.bytes, r->name);
	if (memcmp(&sum, &r->sum, sizeof sum))
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

static void on_names_room(uv_handle_t *names, size_t suggested, uv_buf_t *ret_buf)
{
	(void)suggested;
	struct reader *r = names->data;
	*ret_buf = uv_buf_init(r->line + r->line_bytes, (unsigned)(sizeof r->line - 1 - r->line_bytes));
}

static void on_names(uv_stream_t *names, ssize_t n, const uv_buf_t *buf)
{
	(void)buf;
	struct reader *r = names->data;
	if (n < 0)
		uv_read_stop(names);
	if (n >= 0)
		r->line_bytes += (size_t)n;
	else if (n != UV_ENOBUFS)
		r->names_ended = true;
	else if (!memchr(r->line, '\n', r->line_bytes))
		reader_stop(r, -ENAMETOOLONG);
	reader_go_on(r);
}

static void on_interrupt(uv_signal_t *signal, int number)
{
	(void)number;
	reader_stop(signal->data, -EINTR);
}

static void on_watchdog(uv_timer_t *watchdog)
{
	struct reader *r = watchdog->data;
	reader_stop(r, -ETIME);
	if (r->port)
		wharf_port_abort(r->port, 0);
}

/* Starts the service and joins wharf's loop to libuv's. */
static int reader_start(struct reader *r, int names_fd)
{
	char self[] = "/proc/self/exe", serve_word[] = "--serve";
	char *argv[] = { self, serve_word, NULL };
	r->poll.data = r->interrupt.data = r->watchdog.data = r->names.data = r->fs.data = r;
	int e = uv_pipe_init(&r->uv, &r->names, 0);
	if (e >= 0)
		e = uv_pipe_open(&r->names, names_fd);
	if (e >= 0)
		e = uv_signal_init(&r->uv, &r->interrupt);
	if (e >= 0)
		e = uv_signal_start_oneshot(&r->interrupt, on_interrupt, SIGINT);
	if (e >= 0)
		e = uv_timer_init(&r->uv, &r->watchdog);
	if (e >= 0)
		e = uv_timer_start(&r->watchdog, on_watchdog, WATCHDOG_MS, WATCHDOG_MS);
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
		e = uv_read_start((uv_stream_t *)&r->names, on_names_room, on_names);
	return e;
}

/* What a shell would do: a pipe with the names in it. */
static int names_make(int argc, char **argv)
{
	int fds[2];
	if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0)
		return -errno;
	for (int i = 1; i < argc; i++)
		if (dprintf(fds[1], "%s\n", argv[i]) < 0)
			fprintf(stderr, "embed-uv: no room for %s\n", argv[i]);
	close(fds[1]);
	return fds[0];
}

int main(int argc, char **argv)
{
	char self[] = "/proc/self/exe", passwd[] = "/etc/passwd", nothing[] = "/dev/null";
	char *some[] = { argv[0], self, passwd, nothing, self };
	if (argc == 2 && !strcmp(argv[1], "--serve"))
		return serve();
	if (argc == 2 && !strcmp(argv[1], "-h")) {
		printf("usage: embed-uv [file...]    or    ls -d * | embed-uv -\n");
		return EXIT_SUCCESS;
	}

	struct reader r = { .file = -1, .pidfd = -1 };
	siginfo_t child = { 0 };
	bool from_stdin = argc == 2 && !strcmp(argv[1], "-");
	int names_fd = from_stdin ? STDIN_FILENO : argc > 1 ? names_make(argc, argv) : names_make(5, some);
	int e = names_fd < 0 ? names_fd : uv_loop_init(&r.uv);
	if (e < 0) {
		fprintf(stderr, "embed-uv: %s\n", uv_strerror(e));
		return EXIT_FAILURE;
	}
	e = wharf_loop_new(NULL, &r.loop);
	if (e >= 0)
		e = reader_start(&r, names_fd);
	if (e >= 0)
		uv_run(&r.uv, UV_RUN_DEFAULT);  /* until on_close has closed the handles */
	uv_walk(&r.uv, close_handle, NULL); /* if they are still there, something failed */
	r.loop = wharf_loop_free(r.loop);
	uv_run(&r.uv, UV_RUN_DEFAULT); /* lets a read that is under way end: its buffer outlives the loop */
	uv_loop_close(&r.uv);
	if (r.file >= 0)
		close(r.file);
	if (r.pidfd >= 0) {
		if (e < 0 || r.error)
			pidfd_send_signal(r.pidfd, SIGTERM, NULL, 0); /* closed is not dead */
		waitid(P_PIDFD, (id_t)r.pidfd, &child, WEXITED);
		close(r.pidfd);
	}
	e = e < 0 ? e : r.error;
	printf("%u files\n", r.n_files);
	if (e < 0)
		fprintf(stderr, "embed-uv: %s%s%s\n", r.name, *r.name ? ": " : "", uv_strerror(e));
	return e < 0 || child.si_status || (argc == 1 && r.n_files != 4) ? EXIT_FAILURE : EXIT_SUCCESS;
}
