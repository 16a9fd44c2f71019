/* SPDX-License-Identifier: MIT */
/* A parent with prefork workers: bodies from 1 B to 64 MiB come back inverted, while workers are killed at random. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "wharf.h"

#define MS INT64_C(1000000)
#define SEC (1000 * MS)

enum {
	INVERT = 1,           /* the one kind of request */
	WORKERS = 3,
	CALLS_MAX = 4,        /* at a time, per worker */
	REQUESTS = 200,
	KILLS = 20,
	BODY_SHIFT_MAX = 26,  /* 64 MiB */
	PIECE = 1 << 20,      /* bodies travel in buffers of this size */
	APP_LATE = 1,
	APP_NO_MEMORY = 2,
};

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

static int64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * SEC + t.tv_nsec;
}

/* ---- The worker ---- */

struct answer {
	wharf_port *port;       /* NULL: unused */
	wharf_call_id id;
	struct wharf_msg *in;   /* what is being answered; the call is paused meanwhile */
	size_t done;            /* bytes of it */
	struct wharf_buf out;   /* filled and not sent yet */
};

static int answer_fill(struct answer *a, size_t n)
{
	int e = wharf_buf_claim(wharf_port_pool(a->port), n, &a->out);
	if (e < 0)
		return e;
	unsigned char *to = a->out.data;
	wharf_msg_copy(a->in, a->done, to, n);
	for (size_t i = 0; i < n; i++)
		to[i] = (unsigned char)~to[i];
	return 0;
}

/* Answers what came in, as far as there is room. What stays unanswered waits for on_writable, or for on_end. */
static void answer_more(struct answer *a)
{
	while (a->in && a->done < a->in->size) {
		size_t n = min_size(PIECE, a->in->size - a->done);
		if (!a->out.data && answer_fill(a, n) < 0)
			return;
		if (wharf_reply_buf(a->port, a->id, &a->out, 0, 0) < 0)
			return;
		a->done += n;
	}
	if (!a->in)
		return;
	if (a->in->flags & WHARF_MSG_LAST) {
		if (wharf_reply(a->port, a->id, &(struct wharf_out){ .type = INVERT, .flags = WHARF_LAST }, 0) < 0)
			return;
	} else {
		wharf_call_resume(a->port, a->id);
	}
	a->in = wharf_msg_release(a->in);
	a->done = 0;
}

static void answer_on_message(wharf_port *port, wharf_call_id id, const struct wharf_msg *msg, void *user)
{
	struct answer *a = user;
	a->in = wharf_msg_take(msg);
	if (!a->in || wharf_call_pause(port, id) < 0) {
		wharf_port_abort(port, APP_NO_MEMORY);
		return;
	}
	answer_more(a);
}

static void answer_on_writable(wharf_port *port, wharf_call_id id, void *user)
{
	(void)port;
	(void)id;
	answer_more(user);
}

static void answer_on_end(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user)
{
	(void)port;
	(void)id;
	(void)end;
	struct answer *a = user;
	wharf_buf_abandon(&a->out);
	wharf_msg_release(a->in);
	*a = (struct answer){ .port = NULL };
}

static void worker_on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct answer *a = user;
	for (size_t i = 0; i < CALLS_MAX && a->port; i++)
		a++;
	if (a == (struct answer *)user + CALLS_MAX || msg->type != INVERT)
		return; /* more than we agreed to: the parent hears "no reply" */
	int e = wharf_call_take(port, msg, WHARF_OPT(answer, .on_message = answer_on_message,
		.on_writable = answer_on_writable, .on_end = answer_on_end, .user = a), &a->id);
	if (e < 0)
		return;
	a->port = port;
	answer_on_message(port, a->id, msg, a);
}

/* The pool has room again, for whichever answer was waiting. */
static void worker_on_writable(wharf_port *port, void *user)
{
	(void)port;
	struct answer *answers = user;
	for (size_t i = 0; i < CALLS_MAX; i++)
		if (answers[i].port)
			answer_more(&answers[i]);
}

static const struct wharf_port_ops worker_ops = {
	.size = sizeof worker_ops,
	.on_message = worker_on_message,
	.on_writable = worker_on_writable,
};

static int worker_main(int fd)
{
	struct answer answers[CALLS_MAX] = { 0 };
	wharf_loop *loop = NULL;
	int e = wharf_fork_child();
	if (e >= 0)
		e = wharf_loop_new(NULL, &loop);
	if (e >= 0)
		e = wharf_open(loop, fd, WHARF_OPT(port, .ops = &worker_ops, .user = answers), NULL);
	if (e >= 0)
		e = wharf_loop_run(loop); /* until the parent closes, or is gone */
	wharf_loop_free(loop);
	return e < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* ---- The parent ---- */

struct parent;

struct request {
	struct worker *worker;  /* NULL while it waits */
	wharf_call_id id;
	uint64_t seed;
	size_t size, sent, received;
	bool wrong;
	struct wharf_buf piece; /* filled and not sent yet */
	struct request *next;   /* waiting */
};

struct worker {
	struct parent *parent;
	wharf_port *port;
	pid_t pid;
	struct request *calls[CALLS_MAX];
};

struct parent {
	wharf_loop *loop;
	struct worker workers[WORKERS];
	struct request requests[REQUESTS];
	struct request *waiting;
	unsigned done, failed, repeated, seen_twice, kills;
	bool stopping;
	int error;              /* the first that nothing can mend */
};

static unsigned char pattern(uint64_t seed, size_t at)
{
	return (unsigned char)((seed + at) * UINT64_C(0x9e3779b97f4a7c15) >> 56);
}

/* Sends the body as far as there is room. What stays unsent waits for on_writable, or for on_end, which tells why. */
static void request_more(struct request *r)
{
	wharf_port *port = r->worker->port;
	while (r->sent < r->size) {
		size_t n = min_size(PIECE, r->size - r->sent);
		if (!r->piece.data) {
			int e = wharf_buf_claim(wharf_port_pool(port), n, &r->piece);
			if (e < 0 && e != -EAGAIN)
				wharf_call_cancel(port, r->id); /* no memory: on_end says so */
			if (e < 0)
				return;
			unsigned char *to = r->piece.data;
			for (size_t i = 0; i < n; i++)
				to[i] = pattern(r->seed, r->sent + i);
		}
		if (wharf_call_send_buf(port, r->id, &r->piece, r->sent + n == r->size ? WHARF_LAST : 0) < 0)
			return;
		r->sent += n;
	}
}

static void on_reply(wharf_port *port, wharf_call_id id, const struct wharf_msg *msg, void *user)
{
	(void)port;
	(void)id;
	struct request *r = user;
	for (size_t i = 0; i < msg->n_slices; i++) {
		const unsigned char *from = msg->slices[i].data;
		for (size_t k = 0; k < msg->slices[i].size; k++)
			r->wrong |= from[k] != (unsigned char)~pattern(r->seed, r->received + k);
		r->received += msg->slices[i].size;
	}
}

static void on_writable(wharf_port *port, wharf_call_id id, void *user)
{
	(void)port;
	(void)id;
	request_more(user);
}

static void on_end(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user)
{
	(void)id;
	struct request *r = user;
	struct parent *p = r->worker->parent;
	for (size_t i = 0; i < CALLS_MAX; i++)
		if (r->worker->calls[i] == r)
			r->worker->calls[i] = NULL;
	r->worker = NULL;
	wharf_buf_abandon(&r->piece);

	switch (end->reason) {
	case WHARF_END_LAST:
		p->done++;
		p->failed += r->wrong || r->received != r->size;
		return;
	case WHARF_END_DEADLINE: /* a worker that hangs is of no use to the others either */
		wharf_port_abort(port, APP_LATE);
		break;
	case WHARF_END_PEER_GONE:
	case WHARF_END_CLOSED:
		break;
	default:
		fprintf(stderr, "%zu bytes: end %" PRIu32 ", error %" PRId32 "\n", r->size, end->reason, end->error);
		p->done++;
		p->failed++;
		return;
	}
	/* Inverting twice harms nobody, so a request may be repeated even if a worker saw it. */
	p->repeated++;
	p->seen_twice += end->progress != WHARF_NOT_SEEN;
	r->next = p->waiting;
	p->waiting = r;
}

/* 0; -EAGAIN: the worker has no room. */
static int request_start(struct request *r, struct worker *w, struct request **slot)
{
	r->sent = r->received = 0;
	r->wrong = false;
	int e = wharf_call(w->port, &(struct wharf_out){ .type = INVERT },
		WHARF_OPT(call, .on_reply = on_reply, .on_writable = on_writable, .on_end = on_end, .user = r,
			.timeout_ns = 60 * SEC), &r->id);
	if (e < 0)
		return e;
	r->worker = w;
	*slot = r;
	request_more(r);
	return 0;
}

static void dispatch(struct parent *p)
{
	for (size_t i = 0; i < WORKERS; i++) {
		struct worker *w = &p->workers[i];
		for (size_t k = 0; k < CALLS_MAX && p->waiting && w->port; k++) {
			struct request *r = p->waiting;
			if (w->calls[k])
				continue;
			if (request_start(r, w, &w->calls[k]) < 0)
				break;
			p->waiting = r->next;
		}
	}
}

static void parent_on_writable(wharf_port *port, void *user)
{
	(void)port;
	struct worker *w = user;
	for (size_t i = 0; i < CALLS_MAX; i++)
		if (w->calls[i])
			request_more(w->calls[i]);
}

static int worker_start(struct worker *w);

static void parent_on_close(wharf_port *port, const struct wharf_reason *why, void *user)
{
	(void)port;
	struct worker *w = user;
	w->port = NULL;
	if (why->code != WHARF_CLOSE_LOCAL && why->code != WHARF_CLOSE_PEER_GONE)
		fprintf(stderr, "worker %d: %s: %s\n", (int)w->pid, wharf_close_name(why->code), why->text);
	kill(w->pid, SIGKILL); /* closed is not dead */
	waitpid(w->pid, NULL, 0);
	if (!w->parent->stopping) {
		int e = worker_start(w);
		if (e < 0)
			w->parent->error = e;
	}
}

static const struct wharf_port_ops parent_ops = {
	.size = sizeof parent_ops,
	.on_writable = parent_on_writable,
	.on_close = parent_on_close,
};

static int worker_start(struct worker *w)
{
	int ends[2];
	int e = wharf_pair(ends);
	if (e < 0)
		return e;
	w->pid = fork();
	if (w->pid == 0) {
		close(ends[0]);
		_exit(worker_main(ends[1]));
	}
	e = -errno;
	if (w->pid > 0)
		e = wharf_open(w->parent->loop, ends[0], WHARF_OPT(port, .ops = &parent_ops, .user = w), &w->port);
	close(ends[1]);
	if (e < 0)
		close(ends[0]);
	if (e < 0 && w->pid > 0)
		waitpid(w->pid, NULL, 0); /* its peer is gone, so it ends */
	return e;
}

static int serve(struct parent *p)
{
	int64_t next_kill = now_ns() + 200 * MS;
	while (p->done < REQUESTS && !p->error) {
		dispatch(p);
		int e = wharf_loop_step(p->loop, 20 * MS);
		if (e < 0)
			return e;
		const struct worker *victim = &p->workers[rand() % WORKERS];
		if (p->kills < KILLS && victim->port && now_ns() >= next_kill) {
			kill(victim->pid, SIGKILL);
			p->kills++;
			next_kill = now_ns() + (100 + rand() % 400) * MS;
		}
	}
	return p->error;
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 0) : (unsigned)time(NULL);
	static struct parent parent;
	struct parent *p = &parent;
	srand(seed);
	for (size_t i = 0; i < REQUESTS; i++) { /* as many small bodies as large ones */
		struct request *r = &p->requests[i];
		r->seed = (uint64_t)rand();
		r->size = (size_t)1 << rand() % (BODY_SHIFT_MAX + 1);
		r->size -= (size_t)rand() % (r->size / 2 + 1);
		r->next = p->waiting;
		p->waiting = r;
	}
	int e = wharf_loop_new(NULL, &p->loop);
	for (size_t i = 0; i < WORKERS && e >= 0; i++) {
		p->workers[i].parent = p;
		e = worker_start(&p->workers[i]);
	}
	if (e >= 0)
		e = serve(p);

	p->stopping = true;
	for (size_t i = 0; i < WORKERS; i++)
		if (p->workers[i].port)
			wharf_port_close(p->workers[i].port, 2 * SEC);
	if (e >= 0)
		e = wharf_loop_run(p->loop);
	wharf_loop_free(p->loop);

	printf("seed %u: %u of %d done, %u failed; %u workers killed, %u requests repeated, %u perhaps seen twice\n",
		seed, p->done, REQUESTS, p->failed, p->kills, p->repeated, p->seen_twice);
	if (e < 0)
		fprintf(stderr, "prefork: %s\n", strerror(-e));
	return e < 0 || p->failed || p->done < REQUESTS ? EXIT_FAILURE : EXIT_SUCCESS;
}
