/* SPDX-License-Identifier: MIT */
/* A metrics publisher: keep-latest to many subscribers, some of them stopped; each gets the last value. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "wharf.h"

#define MS INT64_C(1000000)
#define SEC (1000 * MS)

enum {
	METRICS = 1,
	SUBSCRIBERS_MAX = 1000,
	STOPPED_EACH = 10,   /* every tenth stops reading as soon as it is connected */
	PERIOD_MS = 10,
	VALUES = 1000,
};

struct metrics {
	uint64_t round;
	uint64_t last;       /* 1: no other values follow */
	double values[VALUES];
};

static unsigned n_subscribers = 200, n_rounds = 60;

static int64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * SEC + t.tv_nsec;
}

static void raise_fd_limit(void)
{
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= 4 * SUBSCRIBERS_MAX)
		return;
	limit.rlim_cur = limit.rlim_max < 4 * SUBSCRIBERS_MAX ? limit.rlim_max : 4 * SUBSCRIBERS_MAX;
	setrlimit(RLIMIT_NOFILE, &limit);
}

/* ---- The publisher ---- */

struct publisher;

struct subscription {
	struct publisher *publisher;
	wharf_port *port;
	struct subscription *next, **link;
};

struct publisher {
	wharf_loop *loop;
	wharf_listener *listener;
	wharf_pool *pool;           /* one for all: a value is written once, whoever reads it */
	struct subscription *subscriptions;
	unsigned n_accepted, n_subscribed;
	uint64_t round, sent, replaced, refused, skipped;
};

static volatile sig_atomic_t interrupted;
static wharf_loop *interrupted_loop;

static void on_interrupt(int number)
{
	(void)number;
	interrupted = 1;
	if (interrupted_loop)
		wharf_loop_wake(interrupted_loop);
}

static void publisher_on_close(wharf_port *port, const struct wharf_reason *why, void *user)
{
	(void)port;
	(void)why;
	struct subscription *s = user;
	s->publisher->n_subscribed--;
	*s->link = s->next;
	if (s->next)
		s->next->link = s->link;
	free(s);
}

static const struct wharf_port_ops publisher_ops = {
	.size = sizeof publisher_ops,
	.on_close = publisher_on_close,
};

static void on_accept(wharf_listener *listener, const struct wharf_peer *who, void *user)
{
	struct publisher *p = user;
	struct subscription *s = who->uid == getuid() ? calloc(1, sizeof *s) : NULL;
	if (!s)
		return; /* closed on return */
	int e = wharf_accept(listener, WHARF_OPT(port, .ops = &publisher_ops, .user = s, .pool = p->pool,
		.policy = WHARF_POLICY_KEEP_LATEST, .unreleased_max = 1), &s->port);
	if (e < 0) {
		fprintf(stderr, "subscriber %d: %s\n", (int)who->pid, strerror(-e));
		free(s);
		return;
	}
	s->publisher = p;
	s->next = p->subscriptions;
	s->link = &p->subscriptions;
	if (s->next)
		s->next->link = &s->next;
	p->subscriptions = s;
	p->n_accepted++;
	p->n_subscribed++;
}

static void send_to_all(struct publisher *p, const struct metrics *metrics)
{
	struct wharf_buf whole;
	if (wharf_buf_claim(p->pool, sizeof *metrics, &whole) < 0) {
		p->skipped++; /* too many stopped at different values: the next round tries again */
		return;
	}
	memcpy(whole.data, metrics, sizeof *metrics);
	for (struct subscription *s = p->subscriptions; s; s = s->next) {
		struct wharf_buf one;
		if (wharf_buf_ref(&whole, &one) < 0)
			break;
		int e = wharf_send(s->port, &(struct wharf_out){ .type = METRICS, .key = 1,
			.parts = &(struct wharf_part){ .buf = &one }, .n_parts = 1 });
		if (e < 0) {
			wharf_buf_abandon(&one); /* closing: on_close follows */
			p->refused++;
			continue;
		}
		p->sent++;
		p->replaced += e == WHARF_SENT_REPLACED; /* an older value, which was not sent yet */
	}
	wharf_buf_abandon(&whole);
}

static void publish(struct publisher *p)
{
	static struct metrics metrics;
	metrics.round = ++p->round;
	metrics.last = p->round >= n_rounds && p->n_accepted == n_subscribers;
	for (size_t i = 0; i < VALUES; i++)
		metrics.values[i] = (double)(metrics.round * i);
	send_to_all(p, &metrics);
}

static const struct wharf_listener_ops listener_ops = {
	.size = sizeof listener_ops,
	.on_accept = on_accept,
};

static int publisher_run(struct publisher *p, const char *address)
{
	int e = wharf_loop_new(NULL, &p->loop);
	/* Each subscriber may hold one value while one more is on its way to it; most hold the same ones. */
	if (e >= 0)
		e = wharf_pool_new(WHARF_OPT(pool, .shared = 1, .bytes_max = 8 << 20, .name = "metrics"), &p->pool);
	if (e >= 0)
		e = wharf_listen(p->loop, address, WHARF_OPT(listener, .ops = &listener_ops, .user = p), &p->listener);
	if (e < 0)
		return e;
	interrupted_loop = p->loop;
	int64_t next = now_ns();
	while (!interrupted && (p->n_accepted < n_subscribers || p->n_subscribed)) {
		if (now_ns() >= next) {
			publish(p);
			next = now_ns() + PERIOD_MS * MS; /* rounds that were missed are not made up for */
		}
		int64_t left = next - now_ns();
		e = wharf_loop_step(p->loop, left > 0 ? left : 0);
		if (e < 0)
			return e;
	}
	return 0;
}

static void publisher_end(struct publisher *p)
{
	interrupted_loop = NULL;
	wharf_listener_close(p->listener);
	wharf_loop_free(p->loop); /* closes whoever is left */
	wharf_pool_unref(p->pool);
}

/* ---- All subscribers in one process ---- */

struct subscribers;

struct subscriber {
	struct subscribers *all;
	bool stopped, finished;
	uint64_t round;
	wharf_port *port;
};

struct subscribers {
	struct subscriber each[SUBSCRIBERS_MAX];
	unsigned n_open, n_finished, n_wrong;
	uint64_t values;
};

static void subscriber_on_open(wharf_port *port, const struct wharf_peer *peer, void *user)
{
	(void)peer;
	struct subscriber *s = user;
	if (s->stopped)
		wharf_port_pause(port);
}

static void subscriber_on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct subscriber *s = user;
	const struct metrics *m = wharf_msg_contiguous(msg);
	if (!m || msg->type != METRICS || msg->size != sizeof *m || m->round <= s->round) {
		s->all->n_wrong++;
		wharf_port_abort(port, 0);
		return;
	}
	s->round = m->round;
	s->all->values++;
	if (m->last && !s->finished) {
		s->finished = true;
		s->all->n_finished++;
		wharf_port_close(port, SEC);
	}
}

static void subscriber_on_close(wharf_port *port, const struct wharf_reason *why, void *user)
{
	(void)port;
	struct subscriber *s = user;
	s->port = NULL;
	s->all->n_open--;
	if (!s->finished)
		fprintf(stderr, "subscription: %s: %s\n", wharf_close_name(why->code), why->text);
}

static const struct wharf_port_ops subscriber_ops = {
	.size = sizeof subscriber_ops,
	.on_open = subscriber_on_open,
	.on_message = subscriber_on_message,
	.on_close = subscriber_on_close,
};

static int subscriber_connect(struct subscriber *s, wharf_loop *loop, const char *address)
{
	return wharf_connect(loop, address, WHARF_OPT(port, .ops = &subscriber_ops, .user = s), &s->port);
}

static int subscribe_all(struct subscribers *all, const char *address, wharf_loop *loop)
{
	for (size_t i = 0; i < n_subscribers; i++) {
		struct subscriber *s = &all->each[i];
		*s = (struct subscriber){ .all = all, .stopped = i % STOPPED_EACH == 0 };
		int e;
		while ((e = subscriber_connect(s, loop, address)) < 0) {
			if (e != -ECONNREFUSED && e != -EBUSY)
				return e;
			e = wharf_loop_step(loop, 10 * MS); /* not there yet, or busy with those before us */
			if (e < 0)
				return e;
		}
		all->n_open++;
	}
	return 0;
}

static int subscribers_run(struct subscribers *all, const char *address, wharf_loop *loop)
{
	int e = subscribe_all(all, address, loop);
	unsigned n_stopped = (n_subscribers + STOPPED_EACH - 1) / STOPPED_EACH;
	while (e >= 0 && all->n_open > n_stopped)
		e = wharf_loop_step(loop, -1);
	for (size_t i = 0; i < n_subscribers && e >= 0; i++) /* all others have the last value: now these want it, too */
		if (all->each[i].port)
			wharf_port_resume(all->each[i].port);
	while (e >= 0 && all->n_open)
		e = wharf_loop_step(loop, -1);
	return e;
}

static int subscribers_main(const char *address)
{
	static struct subscribers all;
	wharf_loop *loop = NULL;
	raise_fd_limit();
	int e = wharf_loop_new(NULL, &loop);
	if (e >= 0)
		e = subscribers_run(&all, address, loop);
	wharf_loop_free(loop);
	printf("subscribers: %" PRIu64 " values, %u of %u got the last one, %u wrong\n", all.values, all.n_finished,
		n_subscribers, all.n_wrong);
	fflush(stdout);
	if (e < 0)
		fprintf(stderr, "subscribers: %s\n", strerror(-e));
	return e < 0 || all.n_wrong || all.n_finished != n_subscribers ? EXIT_FAILURE : EXIT_SUCCESS;
}

static int usage(const char *program, FILE *to)
{
	fprintf(to, "usage: %s [SUBSCRIBERS [ROUNDS]]  (1 to %d subscribers, default %u; default %u rounds)\n", program,
		SUBSCRIBERS_MAX, n_subscribers, n_rounds);
	return to == stdout ? EXIT_SUCCESS : 2;
}

int main(int argc, char **argv)
{
	char address[64];
	if (argc > 1 && !strcmp(argv[1], "-h"))
		return usage(argv[0], stdout);
	if (argc > 3 || (argc > 1 && (atoi(argv[1]) < 1 || atoi(argv[1]) > SUBSCRIBERS_MAX)) ||
	    (argc > 2 && atoi(argv[2]) < 1))
		return usage(argv[0], stderr);
	if (argc > 1)
		n_subscribers = (unsigned)atoi(argv[1]);
	if (argc > 2)
		n_rounds = (unsigned)atoi(argv[2]);

	snprintf(address, sizeof address, "@wharf-metrics-%d", (int)getpid());
	sigaction(SIGINT, &(struct sigaction){ .sa_handler = on_interrupt }, NULL);
	sigaction(SIGCHLD, &(struct sigaction){ .sa_handler = on_interrupt }, NULL);
	pid_t child = fork(); /* before the library is used: the child needs no wharf_fork_child */
	if (child < 0) {
		perror("fork");
		return EXIT_FAILURE;
	}
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		sigaction(SIGINT, &(struct sigaction){ .sa_handler = SIG_DFL }, NULL);
		_exit(subscribers_main(address));
	}
	static struct publisher publisher;
	int status = 0;
	raise_fd_limit();
	int e = publisher_run(&publisher, address);
	publisher_end(&publisher);
	if (e < 0)
		kill(child, SIGTERM);
	waitpid(child, &status, 0);

	printf("%" PRIu64 " rounds: %" PRIu64 " sent, %" PRIu64 " of them replaced an older value, %" PRIu64
		" refused, %" PRIu64 " skipped\n",
		publisher.round, publisher.sent, publisher.replaced, publisher.refused,
		publisher.skipped);
	if (e < 0)
		fprintf(stderr, "publisher: %s\n", strerror(-e));
	return e < 0 || status ? EXIT_FAILURE : EXIT_SUCCESS;
}
