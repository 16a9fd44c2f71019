/* SPDX-License-Identifier: MIT */
/*
 * A parent with prefork workers that share its requests: bodies from 1 B to 64 MiB come back inverted. Workers are
 * killed at random with calls in flight; the parent forks others, gives them what was not answered, and has every
 * answer right in the end.
 */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <unistd.h>

#include "wharf.h"

#define SEC INT64_C(1000000000)

enum {
	INVERT = 1, /* the one kind of request */
	WORKERS_MAX = 64,
	CALLS_MAX = 4,       /* at a time, per worker */
	BODY_SHIFT_MAX = 26, /* 64 MiB */
	PIECE = 1 << 20,     /* bodies travel in buffers of this size */
	APP_LATE = 1,
	APP_NO_MEMORY = 2,
};

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

/* ---- The worker ---- */

struct answer {
	wharf_port *port;     /* NULL: unused */
	wharf_call_id id;
	struct wharf_msg *in; /* what is being answered; the call is paused meanwhile, so there is no next */
	size_t done;          /* bytes of it */
	struct wharf_buf out; /* filled and not sent yet */
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
	(void)port, (void)id;
	answer_more(user);
}

static void answer_on_end(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user)
{
	(void)port, (void)id, (void)end;
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

struct request {
	struct worker *worker; /* NULL while it waits */
	wharf_call_id id;
	uint64_t seed;
	size_t size, sent, received;
	bool wrong;
	struct wharf_buf piece; /* filled and not sent yet */
	struct request *next;   /* waiting */
};

struct worker {
	struct parent *parent;
	wharf_port *port; /* NULL: none */
	pid_t pid;
	bool killed;
	struct request *calls[CALLS_MAX];
};

struct parent {
	wharf_loop *loop;
	struct worker workers[WORKERS_MAX];
	unsigned n_workers, n_requests, n_kills;
	struct request *requests, *waiting;
	uint64_t bytes_total, bytes_moved; /* there and back */
	unsigned done, failed, killed, lost, repeated, maybe_seen;
	bool stopping;
	int error; /* the first that nothing can mend */
};

/* What bodies are cut from, and what answers must be. No two pieces of a body are the same. */
enum { PERIOD = 1000003 };
static unsigned char sent_bytes[PERIOD + PIECE], answer_bytes[PERIOD + PIECE];

static void bytes_make(void)
{
	for (size_t i = 0; i < sizeof sent_bytes; i++) {
		sent_bytes[i] = (unsigned char)(i % PERIOD * UINT64_C(0x9e3779b97f4a7c15) >> 56);
		answer_bytes[i] = (unsigned char)~sent_bytes[i];
	}
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
			memcpy(r->piece.data, sent_bytes + (r->seed + r->sent) % PERIOD, n);
		}
		if (wharf_call_send_buf(port, r->id, &r->piece, r->sent + n == r->size ? WHARF_LAST : 0) < 0)
			return;
		r->sent += n;
		r->worker->parent->bytes_moved += n;
	}
}

static void on_reply(wharf_port *port, wharf_call_id id, const struct wharf_msg *msg, void *user)
{
	(void)port, (void)id;
	struct request *r = user;
	const unsigned char *expected = answer_bytes + (r->seed + r->received) % PERIOD;
	if (msg->size) /* one claim, one slice */
		r->wrong |= msg->size > PIECE || memcmp(msg->slices[0].data, expected, msg->size) != 0;
	r->received += msg->size;
	r->worker->parent->bytes_moved += msg->size;
}

static void on_writable(wharf_port *port, wharf_call_id id, void *user)
{
	(void)port, (void)id;
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
		fprintf(stderr, "%zu bytes: %s: %s\n", r->size, wharf_end_name(end->reason), strerror(end->error));
		p->done++;
		p->failed++;
		return;
	}
	/*
	 * WHARF_NOT_SEEN is always safe to repeat. What a worker may have seen, or has begun to answer, is so here,
	 * because inverting twice harms nobody; a parent whose requests transfer money would stop and look.
	 */
	p->repeated++;
	p->maybe_seen += end->progress != WHARF_NOT_SEEN;
	r->next = p->waiting;
	p->waiting = r;
}

/* 0; -EAGAIN: the worker has no room. -EPIPE: it is gone, and on_close will say so. */
static int request_start(struct request *r, struct worker *w, struct request **slot)
{
	r->sent = r->received = 0;
	r->wrong = false;
	int e = wharf_call(w->port, &(struct wharf_out){ .type = INVERT },
		WHARF_OPT(call, .on_reply = on_reply, .on_writable = on_writable, .on_end = on_end, .user = r,
			.timeout_ns = 60 * SEC),
		&r->id);
	if (e < 0)
		return e;
	r->worker = w;
	*slot = r;
	request_more(r);
	return 0;
}

static void dispatch(struct parent *p)
{
	for (size_t i = 0; i < p->n_workers; i++) {
		struct worker *w = &p->workers[i];
		for (size_t k = 0; k < CALLS_MAX && p->waiting && w->port; k++) {
			struct request *r = p->waiting, *next = r->next;
			if (w->calls[k])
				continue;
			if (request_start(r, w, &w->calls[k]) < 0)
				break;
			p->waiting = next;
		}
	}
}

/* The pool has room again, for whichever request was waiting. */
static void parent_on_writable(wharf_port *port, void *user)
{
	(void)port;
	struct worker *w = user;
	for (size_t i = 0; i < CALLS_MAX; i++)
		if (w->calls[i])
			request_more(w->calls[i]);
}

static int worker_start(struct worker *w);

/* All its calls have ended. */
static void parent_on_close(wharf_port *port, const struct wharf_reason *why, void *user)
{
	(void)port;
	struct worker *w = user;
	w->port = NULL;
	if (why->code == WHARF_CLOSE_PEER_GONE && w->killed)
		w->parent->lost++;
	else if (why->code != WHARF_CLOSE_LOCAL)
		fprintf(stderr, "worker %d: %s: %s\n", (int)w->pid, wharf_close_name(why->code), why->text);
	if (why->code != WHARF_CLOSE_LOCAL)
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

/* The child has nothing of the parent's loop and of its ports to other workers: the library sees to that. */
static int worker_start(struct worker *w)
{
	int ends[2];
	int e = wharf_pair(ends);
	if (e < 0)
		return e;
	w->killed = false;
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

/* Kills somebody who has calls in flight. */
static void kill_one(struct parent *p)
{
	size_t first = (size_t)rand();
	for (size_t i = 0; i < p->n_workers; i++) {
		struct worker *w = &p->workers[(first + i) % p->n_workers];
		bool busy = false;
		for (size_t k = 0; k < CALLS_MAX; k++)
			busy |= w->calls[k] != NULL;
		if (busy && !w->killed && w->port) {
			w->killed = kill(w->pid, SIGKILL) == 0;
			p->killed += w->killed;
			return;
		}
	}
}

static int serve(struct parent *p)
{
	/* By bytes, not by time: the kills fall between the first request and the last, and often into a large body. */
	uint64_t apart = 2 * p->bytes_total / (p->n_kills + 1), next_kill = (uint64_t)rand() % (apart + 1);
	while (p->done < p->n_requests && !p->error) {
		dispatch(p);
		int e = wharf_loop_step(p->loop, -1);
		if (e < 0)
			return e;
		if (p->killed < p->n_kills && p->bytes_moved >= next_kill) {
			kill_one(p);
			next_kill = p->killed * apart + (uint64_t)rand() % (apart + 1);
		}
	}
	return p->error;
}

/* As many small bodies as large ones; the first two have the ends of the range. */
static int requests_make(struct parent *p)
{
	p->requests = calloc(p->n_requests, sizeof *p->requests);
	if (!p->requests)
		return -ENOMEM;
	for (size_t i = p->n_requests; i-- > 0;) {
		struct request *r = &p->requests[i];
		r->seed = (uint64_t)rand();
		r->size = (size_t)1 << (i > 1 ? rand() % (BODY_SHIFT_MAX + 1) : i ? BODY_SHIFT_MAX : 0);
		r->size -= i > 1 ? (size_t)rand() % (r->size / 2 + 1) : 0;
		r->next = p->waiting;
		p->waiting = r;
		p->bytes_total += r->size;
	}
	return 0;
}

static int parent_run(struct parent *p)
{
	int e = requests_make(p);
	if (e >= 0)
		e = wharf_loop_new(NULL, &p->loop);
	for (size_t i = 0; i < p->n_workers && e >= 0; i++) {
		p->workers[i].parent = p;
		e = worker_start(&p->workers[i]);
	}
	if (e >= 0)
		e = serve(p);
	p->stopping = true;
	for (size_t i = 0; i < p->n_workers; i++)
		if (p->workers[i].port)
			wharf_port_close(p->workers[i].port, 10 * SEC);
	if (e >= 0)
		e = wharf_loop_run(p->loop);
	wharf_loop_free(p->loop);
	free(p->requests);
	return e;
}

/* ---- What must not be left behind ---- */

/* Descriptors, and mappings of shared memory. */
static void count(unsigned *ret_fds, unsigned *ret_mappings)
{
	char line[512];
	DIR *dir = opendir("/proc/self/fd");
	FILE *maps = fopen("/proc/self/maps", "re");
	for (*ret_fds = 0; dir && readdir(dir);)
		++*ret_fds;
	for (*ret_mappings = 0; maps && fgets(line, sizeof line, maps);)
		*ret_mappings += strstr(line, "/memfd:") || strstr(line, "/dev/shm/");
	closedir(dir);
	fclose(maps);
}

int main(int argc, char **argv)
{
	static struct parent parent = { .n_workers = 3, .n_requests = 16, .n_kills = 4 };
	struct parent *p = &parent;
	unsigned seed = 0;
	getrandom(&seed, sizeof seed, 0);
	unsigned *const settings[] = { &p->n_requests, &p->n_kills, &p->n_workers, &seed };
	for (int i = 1; i < argc && i <= 4; i++)
		*settings[i - 1] = (unsigned)strtoul(argv[i], NULL, 0);
	if (argc > 5 || !p->n_requests || !p->n_workers || p->n_workers > WORKERS_MAX) {
		printf("usage: prefork [requests [kills [workers [seed]]]]\n");
		return argc == 2 && !strcmp(argv[1], "-h") ? EXIT_SUCCESS : EXIT_FAILURE;
	}
	srand(seed);
	bytes_make();
	/* The library keeps one descriptor and one mapping for the process, from its first pool on. */
	wharf_pool *first;
	if (wharf_pool_new(NULL, &first) < 0)
		return EXIT_FAILURE;
	wharf_pool_unref(first);

	unsigned fds_before, mappings_before, fds, mappings;
	count(&fds_before, &mappings_before);
	int e = parent_run(p);
	count(&fds, &mappings);
	bool child_left = waitpid(-1, NULL, WNOHANG) >= 0;

	printf("seed %u: %u of %u done, %u failed; %u workers killed, %u requests repeated, %u perhaps seen twice\n",
		seed, p->done, p->n_requests, p->failed, p->killed, p->repeated, p->maybe_seen);
	printf("left behind: %u descriptors, %u mappings, %s\n", fds - fds_before,
		mappings - mappings_before, child_left ? "a child" : "no child");
	if (e < 0)
		fprintf(stderr, "prefork: %s\n", strerror(-e));
	bool answered = e >= 0 && p->done == p->n_requests && !p->failed;
	bool survived = p->lost == p->killed && !p->killed == !p->n_kills;
	bool clean = fds == fds_before && mappings == mappings_before && !child_left;
	return answered && survived && clean ? EXIT_SUCCESS : EXIT_FAILURE;
}
