/* SPDX-License-Identifier: MIT */
/* What both ends of wharf-cat do: wait without missing anything, fail once and clearly, write, say goodbye. */
#include "cat.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_MS 1000000
#define CLOSE_TIMEOUT_NS (5000 * (int64_t)NS_PER_MS)
#define CONNECT_RETRY_NS (20 * NS_PER_MS)

static volatile sig_atomic_t signal_caught;
static wharf_loop *volatile signal_loop;

static void on_signal(int number)
{
	int saved = errno;

	signal_caught = number;
	if (signal_loop)
		wharf_loop_wake(signal_loop);
	errno = saved;
}

void cat_signals_install(void)
{
	/* Without SA_RESTART, so that a blocked read or write ends too; a second signal ends the program the hard way. */
	struct sigaction end = { .sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND };
	struct sigaction ignore = { .sa_handler = SIG_IGN };
	static const int numbers[] = { SIGINT, SIGTERM, SIGHUP };

	sigaction(SIGPIPE, &ignore, NULL);
	for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
		struct sigaction old;

		/* nohup, and shells for background jobs, ignore some on purpose. */
		if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
			sigaction(numbers[i], &end, NULL);
	}
}

void cat_signals_wake(wharf_loop *loop)
{
	signal_loop = loop;
}

int cat_signal_caught(void)
{
	return signal_caught;
}

uint64_t cat_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static const char *peer_role(const struct cat *c)
{
	return c->options->listen ? "sender" : "receiver";
}

void cat_fail(struct cat *c, uint32_t abort_code, const char *format, ...)
{
	va_list list;

	if (*c->error)
		return;
	va_start(list, format);
	vsnprintf(c->error, sizeof c->error, format, list);
	va_end(list);
	if (c->port)
		wharf_port_abort(c->port, abort_code);
}

void cat_say(struct cat *c, const char *format, ...)
{
	va_list list;

	cat_progress_clear(&c->progress);
	fputs("wharf-cat: ", stderr);
	va_start(list, format);
	vfprintf(stderr, format, list);
	va_end(list);
	fputc('\n', stderr);
}

void cat_step(struct cat *c, int64_t timeout_ns)
{
	const int64_t paint_ns = CAT_PROGRESS_INTERVAL_MS * (int64_t)NS_PER_MS;
	int r;

	if (c->progress.on && c->started_ns && (timeout_ns < 0 || timeout_ns > paint_ns))
		timeout_ns = paint_ns;
	r = wharf_loop_step(c->loop, timeout_ns);
	if (r < 0 && r != -EINTR) {
		cat_fail(c, (uint32_t)-r, "the event loop failed: %s", strerror(-r));
		c->closed = true;
	}
	cat_progress_update(&c->progress, c->bytes);
}

bool cat_stopped(struct cat *c)
{
	if (signal_caught)
		cat_fail(c, CAT_ABORT_INTERRUPTED, "interrupted");
	return c->closed || *c->error;
}

bool cat_await_input(struct cat *c, bool only_look)
{
	struct pollfd fds[] = {
		{ .fd = c->fd, .events = POLLIN },
		{ .fd = wharf_loop_fd(c->loop), .events = POLLIN },
	};
	bool painting = c->progress.on && c->started_ns;
	int timeout_ms = only_look ? 0 : painting ? CAT_PROGRESS_INTERVAL_MS : -1;

	do {
		int n = poll(fds, 2, timeout_ms);

		if (n < 0 && errno != EINTR) {
			cat_fail(c, (uint32_t)errno, "cannot wait for input: %s", strerror(errno));
			return false;
		}
		if (n > 0 && fds[1].revents)
			cat_step(c, 0);
		else
			cat_progress_update(&c->progress, c->bytes);
		if (cat_stopped(c))
			return false;
		/* Hang-up, errors and closed descriptors included: reading tells which. */
		if (n > 0 && fds[0].revents)
			return true;
	} while (!only_look);
	return false;
}

void cat_begin(struct cat *c)
{
	c->started_ns = cat_now_ns();
	cat_progress_begin(&c->progress, c->started_ns);
}

void cat_advance(struct cat *c, uint64_t bytes)
{
	c->bytes += bytes;
	cat_progress_update(&c->progress, c->bytes);
}

bool cat_user_accepted(const struct cat *c, uid_t uid)
{
	return c->options->any_user || uid == geteuid() || uid == 0;
}

void cat_on_open(wharf_port *port, const struct wharf_peer *peer, void *user)
{
	struct cat *c = user;

	(void)port;
	if (c->options->verbose)
		cat_say(c, "%s: pid %d, uid %u, gid %u, %s", peer_role(c), (int)peer->pid, peer->uid, peer->gid, peer->name);
	if (!cat_user_accepted(c, peer->uid)) {
		cat_fail(c, CAT_ABORT_USER, "the %s belongs to user %u (--any-user to accept that)", peer_role(c), peer->uid);
		return;
	}
	cat_begin(c);
}

void cat_on_writable(wharf_port *port, void *user)
{
	struct cat *c = user;

	(void)port;
	c->writable = true;
}

static const char *abort_text(uint32_t code)
{
	switch (code) {
	case CAT_ABORT_INTERRUPTED:
		return "interrupted";
	case CAT_ABORT_USER:
		return "it accepts only programs of its own user (see --any-user)";
	case CAT_ABORT_PROTOCOL:
		return "it did not understand us";
	case CAT_ABORT_LENGTH:
		return "the length differs";
	case CAT_ABORT_DIGEST:
		return "the checksum differs";
	}
	/* Its errno values are ours: both ends run on one kernel. */
	return code > 0 && code < 4096 ? strerror((int)code) : "for a reason of its own";
}

void cat_on_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	struct cat *c = user;

	if (port != c->port)
		return;
	c->port = NULL;
	c->closed = true;
	if (c->done || *c->error)
		return;
	switch (reason->code) {
	case WHARF_CLOSE_PEER:
	case WHARF_CLOSE_PEER_GONE:
		if (c->started_ns)
			cat_fail(c, 0, "%s ended before the end", peer_role(c));
		else
			cat_fail(c, 0, "%s closed the connection before it began", peer_role(c));
		break;
	case WHARF_CLOSE_PEER_ABORTED:
		cat_fail(c, 0, "%s gave up: %s", peer_role(c), abort_text(reason->app_code));
		break;
	case WHARF_CLOSE_ERROR:
		if (!c->started_ns && reason->error > 0) {
			c->connect_error = reason->error;
			break;
		}
		/* fall through */
	default:
		cat_fail(c, 0, "connection lost: %s%s%s", reason->text, reason->error ? ": " : "",
			reason->error ? strerror(reason->error) : "");
	}
}

bool cat_connect_again(struct cat *c, int error, uint64_t deadline_ns)
{
	struct timespec pause = { .tv_nsec = CONNECT_RETRY_NS };

	/* Not there yet, there but not listening yet, and listening but swamped. */
	if (error != ENOENT && error != ECONNREFUSED && error != EAGAIN)
		return false;
	if (cat_now_ns() >= deadline_ns || cat_stopped(c))
		return false;
	nanosleep(&pause, NULL);
	return true;
}

void cat_connect_failed(struct cat *c, int error)
{
	const char *address = c->options->address;

	if (error == ENOENT || error == ECONNREFUSED)
		cat_fail(c, 0, "%s: nobody listens there%s", address, c->options->wait_ns < 0 ?
			" (start wharf-cat --listen first, or use --wait)" : "");
	else if (error == EPROTOTYPE)
		cat_fail(c, 0, "%s: who listens there does not speak wharf", address);
	else
		cat_fail(c, 0, "cannot connect to %s: %s", address, strerror(error));
}

static void report(struct cat *c)
{
	const char *verb = c->write_failed ? "written" : c->options->listen ? "arrived" : "sent";

	if (c->started_ns)
		fprintf(stderr, "wharf-cat: %s: %llu bytes %s\n", c->error, (unsigned long long)c->bytes, verb);
	else
		fprintf(stderr, "wharf-cat: %s\n", c->error);
}

int cat_finish(struct cat *c)
{
	uint64_t deadline_ns = cat_now_ns() + (uint64_t)CLOSE_TIMEOUT_NS;

	if (c->port && !*c->error)
		wharf_port_close(c->port, CLOSE_TIMEOUT_NS);
	for (uint64_t now_ns; c->port && !c->closed && (now_ns = cat_now_ns()) < deadline_ns; )
		cat_step(c, (int64_t)(deadline_ns - now_ns));
	if (!*c->error && !c->done)
		cat_fail(c, 0, "%s ended before the end", peer_role(c));
	if (*c->error) {
		cat_progress_clear(&c->progress);
		report(c);
		return 1;
	}
	cat_progress_end(&c->progress, c->bytes);
	if (c->options->verbose) {
		double seconds = (double)(cat_now_ns() - c->started_ns) / 1e9;

		cat_say(c, "%s %llu bytes in %.3f s, %.2f GB/s", c->options->listen ? "received" : "sent",
			(unsigned long long)c->bytes, seconds, (double)c->bytes / seconds / 1e9);
	}
	return 0;
}
