/* SPDX-License-Identifier: MIT */
/* One wharf connection inside an epoll service that has a timer and signals of its own: it samples the load. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "wharf.h"

#define MS INT64_C(1000000)

enum {
	SAMPLE = 1, /* struct sample */
	MEAN = 2,   /* struct mean, one for each sample */
	TICK_MS = 10,
	TICKS_MAX = 3000,
	ANSWERS = 50,
	APP_NONSENSE = 1,
};

struct sample {
	uint64_t number;
	double load;
};

struct mean {
	uint64_t n_samples;
	double load;
};

/* ---- The service for averages: a process without a loop of its own lets wharf run it ---- */

struct service {
	wharf_listener *listener;
	struct mean mean;
};

static void service_on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct service *service = user;
	struct sample sample;
	if (msg->type != SAMPLE || msg->size != sizeof sample) {
		wharf_port_abort(port, APP_NONSENSE);
		return;
	}
	wharf_msg_copy(msg, 0, &sample, sizeof sample);
	struct mean *mean = &service->mean;
	mean->n_samples++;
	mean->load += (sample.load - mean->load) / (double)mean->n_samples;
	int e = wharf_send_bytes(port, MEAN, mean, sizeof *mean);
	if (e < 0 && e != -EAGAIN && e != -EPIPE) /* a client that does not read misses a mean */
		wharf_port_abort(port, 0);
}

static void service_on_close(wharf_port *port, const struct wharf_reason *why, void *user)
{
	(void)port;
	(void)why;
	struct service *service = user;
	service->listener = wharf_listener_close(service->listener); /* it serves one client: the run ends */
}

static const struct wharf_port_ops service_ops = {
	.size = sizeof service_ops,
	.on_message = service_on_message,
	.on_close = service_on_close,
};

static void service_on_accept(wharf_listener *listener, const struct wharf_peer *who, void *user)
{
	if (who->uid != getuid())
		return; /* closed on return: anybody may connect to an abstract name */
	int e = wharf_accept(listener, WHARF_OPT(port, .ops = &service_ops, .user = user), NULL);
	if (e < 0)
		fprintf(stderr, "service: %s\n", strerror(-e));
}

static const struct wharf_listener_ops listener_ops = {
	.size = sizeof listener_ops,
	.on_accept = service_on_accept,
};

static int serve(const char *address)
{
	struct service service = { 0 };
	wharf_loop *loop = NULL;
	int e = wharf_loop_new(NULL, &loop);
	if (e >= 0)
		e = wharf_listen(loop, address, WHARF_OPT(listener, .ops = &listener_ops, .user = &service),
			&service.listener);
	if (e >= 0)
		e = wharf_loop_run(loop);
	wharf_listener_close(service.listener);
	wharf_loop_free(loop);
	return e < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* ---- The epoll service ---- */

struct sampler {
	const char *address;
	int epoll_fd, timer_fd, signal_fd;
	wharf_loop *loop;
	wharf_port *port;   /* NULL: not connected, the next tick tries again */
	unsigned ticks;
	uint64_t sent, skipped, answered;
	bool stopping, stopped;
};

/* What epoll hands back. */
struct source {
	int fd;
	int (*ready)(struct sampler *s); /* 0, or a negative errno that ends the service */
};

static void sampler_stop(struct sampler *s)
{
	s->stopping = true;
	if (!s->port)
		s->stopped = true;
	else
		wharf_port_close(s->port, 500 * MS); /* on_close does the rest; -EALREADY: asked twice */
}

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct sampler *s = user;
	struct mean mean;
	if (msg->type != MEAN || msg->size != sizeof mean) {
		wharf_port_abort(port, APP_NONSENSE);
		return;
	}
	wharf_msg_copy(msg, 0, &mean, sizeof mean);
	if (++s->answered < ANSWERS)
		return;
	printf("mean load %.2f over %" PRIu64 " samples\n", mean.load, mean.n_samples);
	sampler_stop(s);
}

static void on_close(wharf_port *port, const struct wharf_reason *why, void *user)
{
	(void)port;
	struct sampler *s = user;
	s->port = NULL;
	s->stopped = s->stopping;
	if (!s->stopping)
		fprintf(stderr, "lost the service: %s: %s\n", wharf_close_name(why->code), why->text);
}

static const struct wharf_port_ops ops = {
	.size = sizeof ops,
	.on_message = on_message,
	.on_close = on_close,
};

static int on_tick(struct sampler *s)
{
	uint64_t n_expired;
	if (read(s->timer_fd, &n_expired, sizeof n_expired) < 0 && errno != EAGAIN)
		return -errno;
	if (s->stopping)
		return 0;
	if (++s->ticks > TICKS_MAX)
		return -ETIMEDOUT;
	if (!s->port) {
		int e = wharf_connect(s->loop, s->address, WHARF_OPT(port, .ops = &ops, .user = s), &s->port);
		if (e == -ECONNREFUSED || e == -ENOENT || e == -EBUSY)
			return 0; /* not there yet, or too busy: the next tick tries again */
		if (e < 0)
			return e;
	}
	struct sample sample = { .number = s->sent };
	if (getloadavg(&sample.load, 1) != 1)
		return 0;
	/* Outside a step: it makes the loop's descriptor readable, and leaves with the step that follows. */
	int e = wharf_send_bytes(s->port, SAMPLE, &sample, sizeof sample);
	if (e >= 0)
		s->sent++;
	else if (e == -EAGAIN || e == -EPIPE)
		s->skipped++; /* the next sample is a better one */
	else
		return e;
	return 0;
}

static int on_signal(struct sampler *s)
{
	struct signalfd_siginfo info;
	if (read(s->signal_fd, &info, sizeof info) < 0)
		return errno == EAGAIN ? 0 : -errno;
	sampler_stop(s);
	return 0;
}

static int on_loop(struct sampler *s)
{
	int e = wharf_loop_step(s->loop, 0);
	return e < 0 ? e : 0; /* more to do: the descriptor is still readable */
}

static int sampler_run(struct sampler *s)
{
	sigset_t signals;
	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	s->signal_fd = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
	s->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (s->signal_fd < 0 || s->timer_fd < 0 || s->epoll_fd < 0)
		return -errno;
	struct timespec period = { .tv_nsec = TICK_MS * MS };
	struct itimerspec timer = { .it_interval = period, .it_value = period };
	if (timerfd_settime(s->timer_fd, 0, &timer, NULL) < 0)
		return -errno;

	int e = wharf_loop_new(NULL, &s->loop);
	if (e < 0)
		return e;
	int loop_fd = wharf_loop_fd(s->loop);
	if (loop_fd < 0)
		return loop_fd;
	struct source sources[] = { { s->timer_fd, on_tick }, { s->signal_fd, on_signal }, { loop_fd, on_loop } };
	for (size_t i = 0; i < sizeof sources / sizeof *sources; i++) {
		struct epoll_event event = { .events = EPOLLIN, .data.ptr = &sources[i] };
		if (epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, sources[i].fd, &event) < 0)
			return -errno;
	}
	while (!s->stopped) {
		struct epoll_event events[8];
		int n = epoll_wait(s->epoll_fd, events, 8, -1); /* wharf's deadlines wake its descriptor, too */
		if (n < 0 && errno != EINTR)
			return -errno;
		for (int i = 0; i < n; i++) {
			const struct source *source = events[i].data.ptr;
			e = source->ready(s);
			if (e < 0)
				return e;
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	/* With the address of a service: that one. Without: one of our own, forked before anything else exists. */
	char address[64];
	pid_t service = -1;
	snprintf(address, sizeof address, "@wharf-sampler-%d", (int)getpid());
	if (argc < 2) {
		service = fork();
		if (service == 0) {
			prctl(PR_SET_PDEATHSIG, SIGTERM);
			_exit(serve(address));
		}
		if (service < 0) {
			perror("fork");
			return EXIT_FAILURE;
		}
	}
	struct sampler s = { .address = argc < 2 ? address : argv[1], .epoll_fd = -1, .timer_fd = -1, .signal_fd = -1 };
	int e = sampler_run(&s);
	wharf_loop_free(s.loop);
	if (s.epoll_fd >= 0)
		close(s.epoll_fd);
	if (s.timer_fd >= 0)
		close(s.timer_fd);
	if (s.signal_fd >= 0)
		close(s.signal_fd);
	if (service > 0) {
		kill(service, SIGTERM);
		waitpid(service, NULL, 0);
	}
	printf("%" PRIu64 " samples sent, %" PRIu64 " skipped, %" PRIu64 " answers\n", s.sent, s.skipped, s.answered);
	if (e < 0)
		fprintf(stderr, "embed-epoll: %s\n", strerror(-e));
	return e < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
