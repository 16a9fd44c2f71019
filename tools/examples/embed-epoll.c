/* SPDX-License-Identifier: MIT */
/*
 * wharf as a guest in a program that has an epoll loop already, with a timer, a pipe and signals of its own. A service,
 * another process, is asked from the timer's handler, and again from the pipe's. Never is more than one thing under
 * way, so nothing but wharf's own descriptor can bring the loop back to what a handler has sent.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "wharf.h"

#define MS INT64_C(1000000)
#define SEC (1000 * MS)

enum {
	TICK = 1,   /* uint64_t: its number; the service writes it to its log, a pipe */
	LINE = 2,   /* a line of that log, sent back */
	CHECK = 3,  /* uint64_t: the number in that line; the answer */
	NOTHING = 4, /* a call that the service never answers */
	APP_NONSENSE = 1,
	WATCHDOG_MS = 20000, /* longer than anything takes: who waits for it waits for ever */
};

static const int64_t tick_ns = MS, call_ns = 20 * MS;

/* ---- The service: a process without a loop of its own lets wharf run it ---- */

static void service_on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	uint64_t number;
	char line[32] = "";
	wharf_call_id id;
	(void)user;
	if (msg->call) {
		/* Taken, so it is for us to answer. We never do. */
		if (wharf_call_take(port, msg, WHARF_OPT(answer, .user = NULL), &id) < 0)
			wharf_port_abort(port, APP_NONSENSE);
	} else if (msg->type == TICK && wharf_msg_copy(msg, 0, &number, sizeof number) == sizeof number) {
		printf("tick %" PRIu64 "\n", number);
		fflush(stdout);
	} else if (msg->type == LINE && wharf_msg_copy(msg, 0, line, sizeof line - 1) == msg->size &&
		sscanf(line, "tick %" SCNu64, &number) == 1) {
		if (wharf_send_bytes(port, CHECK, &number, sizeof number) < 0)
			wharf_port_abort(port, APP_NONSENSE);
	} else {
		wharf_port_abort(port, APP_NONSENSE);
	}
}

static const struct wharf_port_ops service_ops = { .size = sizeof service_ops, .on_message = service_on_message };

/* Forked before the library is used, so there is nothing of it to leave behind. */
static int serve(int fd)
{
	wharf_loop *loop = NULL;
	int e = wharf_loop_new(NULL, &loop);
	if (e >= 0)
		e = wharf_open(loop, fd, WHARF_OPT(port, .ops = &service_ops), NULL);
	if (e >= 0)
		e = wharf_loop_run(loop);
	wharf_loop_free(loop);
	return e < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* ---- The host ---- */

struct host {
	int epoll_fd, timer_fd, signal_fd, log_fd;
	wharf_loop *loop;
	wharf_port *port; /* NULL: closed */
	uint64_t rounds, number;
	bool late, good;
	int error; /* the first; negative */
};

/* What epoll hands back. */
struct source {
	int fd;
	void (*ready)(struct host *h);
};

static void host_stop(struct host *h, int error)
{
	if (!h->error)
		h->error = error;
	if (h->port)
		wharf_port_close(h->port, 5 * SEC); /* on_close does the rest; -EALREADY: asked twice */
}

static int timer_arm(struct host *h)
{
	struct itimerspec timer = { .it_value = { .tv_nsec = tick_ns } };
	return timerfd_settime(h->timer_fd, 0, &timer, NULL) < 0 ? -errno : 0;
}

/* The last thing that happens: a deadline of wharf's has woken a host that was asleep. */
static void on_late(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user)
{
	(void)port, (void)id;
	struct host *h = user;
	h->late = end->reason == WHARF_END_DEADLINE;
	host_stop(h, h->late ? 0 : -EBADMSG);
}

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct host *h = user;
	uint64_t number = 0;
	wharf_call_id id;
	int e;
	wharf_msg_copy(msg, 0, &number, sizeof number);
	if (msg->type != CHECK || number != h->number) {
		host_stop(h, -EBADMSG);
		return;
	}
	if (h->number < h->rounds)
		e = timer_arm(h);
	else
		e = wharf_call(port, &(struct wharf_out){ .type = NOTHING, .flags = WHARF_LAST },
			WHARF_OPT(call, .on_end = on_late, .user = h, .timeout_ns = call_ns), &id);
	if (e < 0)
		host_stop(h, e);
}

static void on_close(wharf_port *port, const struct wharf_reason *why, void *user)
{
	(void)port;
	struct host *h = user;
	h->port = NULL;
	h->good = why->code == WHARF_CLOSE_LOCAL && !why->unsent_messages;
	if (!h->good)
		fprintf(stderr, "service: %s: %s\n", wharf_close_name(why->code), why->text);
}

static const struct wharf_port_ops ops = { .size = sizeof ops, .on_message = on_message, .on_close = on_close };

/*
 * A handler of the host's sends outside a step. No flush is needed: the send makes wharf's descriptor readable, and it
 * leaves with the step that follows, together with what other handlers have sent meanwhile.
 */
static void on_timer(struct host *h)
{
	uint64_t n_expired;
	if (read(h->timer_fd, &n_expired, sizeof n_expired) < 0 || !h->port)
		return;
	h->number++;
	int e = wharf_send_bytes(h->port, TICK, &h->number, sizeof h->number);
	if (e < 0)
		host_stop(h, e);
}

static void on_log(struct host *h)
{
	char line[32];
	ssize_t n = read(h->log_fd, line, sizeof line);
	if (n <= 0) {
		epoll_ctl(h->epoll_fd, EPOLL_CTL_DEL, h->log_fd, NULL); /* the service has ended: its port tells how */
		return;
	}
	if (!h->port)
		return;
	int e = wharf_send_bytes(h->port, LINE, line, (size_t)n);
	/* A host that will not come round soon, because its next handler takes long, sends at once with a flush. */
	if (e >= 0 && h->number % 2)
		e = wharf_loop_flush(h->loop);
	if (e < 0)
		host_stop(h, e);
}

static void on_signal(struct host *h)
{
	struct signalfd_siginfo info;
	if (read(h->signal_fd, &info, sizeof info) > 0)
		host_stop(h, -EINTR);
}

static void on_loop(struct host *h)
{
	int e = wharf_loop_step(h->loop, 0); /* positive: more to do, and the descriptor is still readable */
	if (e < 0) {
		h->error = e;
		h->port = NULL; /* the engine is broken: on_close comes out of wharf_loop_free */
	}
}

static int host_run(struct host *h, int port_fd)
{
	sigset_t signals;
	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	h->signal_fd = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
	h->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	h->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (h->signal_fd < 0 || h->timer_fd < 0 || h->epoll_fd < 0)
		return -errno;

	int e = wharf_loop_new(NULL, &h->loop);
	if (e >= 0)
		e = wharf_open(h->loop, port_fd, WHARF_OPT(port, .ops = &ops, .user = h), &h->port);
	if (e < 0)
		return e;
	int loop_fd = wharf_loop_fd(h->loop);
	if (loop_fd < 0)
		return loop_fd;
	struct source sources[] = { { h->timer_fd, on_timer }, { h->log_fd, on_log }, { h->signal_fd, on_signal },
		{ loop_fd, on_loop } };
	for (size_t i = 0; i < sizeof sources / sizeof *sources; i++) {
		struct epoll_event event = { .events = EPOLLIN, .data.ptr = &sources[i] };
		if (epoll_ctl(h->epoll_fd, EPOLL_CTL_ADD, sources[i].fd, &event) < 0)
			return -errno;
	}
	e = timer_arm(h);
	while (h->port && e >= 0) {
		struct epoll_event events[8];
		int n = epoll_wait(h->epoll_fd, events, 8, WATCHDOG_MS);
		if (n == 0)
			e = -ETIME;
		else if (n < 0 && errno != EINTR)
			e = -errno;
		for (int i = 0; i < n; i++)
			((const struct source *)events[i].data.ptr)->ready(h);
	}
	return e < 0 ? e : h->error;
}

int main(int argc, char **argv)
{
	struct host h = { .rounds = 100, .epoll_fd = -1, .timer_fd = -1, .signal_fd = -1 };
	int ends[2], log[2], status = 0;
	if (argc > 2 || (argc == 2 && !(h.rounds = strtoull(argv[1], NULL, 0)))) {
		printf("usage: embed-epoll [rounds]\n");
		return argc == 2 && !strcmp(argv[1], "-h") ? EXIT_SUCCESS : EXIT_FAILURE;
	}
	if (wharf_pair(ends) < 0 || pipe(log) < 0) {
		perror("embed-epoll");
		return EXIT_FAILURE;
	}
	pid_t service = fork();
	if (service == 0) {
		close(ends[0]);
		close(log[0]);
		dup2(log[1], STDOUT_FILENO);
		close(log[1]);
		_exit(serve(ends[1]));
	}
	close(ends[1]);
	close(log[1]);
	h.log_fd = log[0];
	int e = service > 0 ? host_run(&h, ends[0]) : -errno;
	wharf_loop_free(h.loop); /* whatever is still open ends here, and the service with it */
	close(h.log_fd);
	if (h.epoll_fd >= 0)
		close(h.epoll_fd);
	if (h.timer_fd >= 0)
		close(h.timer_fd);
	if (h.signal_fd >= 0)
		close(h.signal_fd);
	if (service > 0)
		waitpid(service, &status, 0);
	printf("%" PRIu64 " of %" PRIu64 " rounds; a deadline %s; closed %s\n", h.number, h.rounds,
		h.late ? "passed in time" : "did not pass", h.good ? "in good order" : "otherwise");
	if (e < 0)
		fprintf(stderr, "embed-epoll: %s\n", strerror(-e));
	bool good = e >= 0 && h.good && h.late && h.number == h.rounds && status == 0;
	return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
