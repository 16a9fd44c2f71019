/* SPDX-License-Identifier: MIT */
/*
 * A broker that hands out descriptors: files that its clients may have but need not be able to open, and direct
 * channels between two of them, of which it keeps nothing. The clients, alice and bob, talk over such a channel, and
 * each sees the other die: first bob, who is started anew, then alice. What they write into a log that the broker lent
 * them tells in the end whether all went well.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "wharf.h"

#define SEC INT64_C(1000000000)

enum {
	OPEN = 1,    /* a call: a name; the reply has one descriptor. Refused with an errno */
	MEET = 2,    /* a call: a client's name; both get a CHANNEL. Refused with an errno */
	CHANNEL = 3, /* made by wharf_port_pass */
	PING = 4,    /* on the channel: uint64_t, which the other sends back plus 1 */
	DIE = 5,     /* on the channel: do so */
	NAME_MAX_BYTES = 32,
};

static const char expected_log[] = "alice: hello\nalice: bob is gone\nbob: alice is gone\n";

/* ---- A client ---- */

struct client {
	const char *name;
	bool is_alice;
	unsigned step, round;
	uint64_t n_pings, pings_max;
	wharf_loop *loop;
	wharf_port *broker, *direct;
	int fd;  /* the last that came, -1: none */
	int log;
	bool alone; /* the other is gone */
};

/* What alice asks of the broker, one after the other, and how it is to end; bob asks for the log only. */
static const struct {
	uint32_t type;
	const char *name;
	uint32_t end, app_code;
} steps[] = {
	{ OPEN, "program", WHARF_END_LAST, 0 },
	{ OPEN, "accounts", WHARF_END_REFUSED, EACCES },
	{ OPEN, "nothing", WHARF_END_REFUSED, ENOENT },
	{ OPEN, "log", WHARF_END_LAST, 0 },
	{ MEET, "bob", WHARF_END_LAST, 0 },
};
enum { STEP_LOG = 3, STEP_MEET = 4 };

static void client_fail(struct client *c, const char *what)
{
	fprintf(stderr, "%s: %s\n", c->name, what);
	_exit(EXIT_FAILURE);
}

static void client_log(struct client *c, const char *what)
{
	if (dprintf(c->log, "%s: %s\n", c->name, what) < 0)
		client_fail(c, "the log cannot be written");
}

static void on_descriptor(wharf_port *port, wharf_call_id id, const struct wharf_msg *msg, void *user)
{
	(void)port, (void)id;
	struct client *c = user;
	c->fd = wharf_msg_take_fd(msg, 0); /* ours from here on */
}

static void on_answer(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user);

static void ask(struct client *c)
{
	const char *name = steps[c->step].name;
	wharf_call_id id;
	int e = wharf_call(c->broker,
		&(struct wharf_out){ .type = steps[c->step].type, .flags = WHARF_LAST,
			.parts = &(struct wharf_part){ .bytes = name, .size = strlen(name) }, .n_parts = 1 },
		WHARF_OPT(call, .on_reply = on_descriptor, .on_end = on_answer, .user = c), &id);
	if (e < 0)
		client_fail(c, strerror(-e));
}

static void client_done(struct client *c)
{
	if (!c->alone || c->log < 0)
		return;
	client_log(c, c->is_alice ? "bob is gone" : "alice is gone");
	if (c->is_alice)
		ask(c); /* for the next one, at STEP_MEET still */
	else
		wharf_port_close(c->broker, 5 * SEC);
}

static void on_answer(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user)
{
	(void)port, (void)id;
	struct client *c = user;
	if (c->step == STEP_MEET && end->reason == WHARF_END_REFUSED && end->app_code == EPIPE) {
		ask(c); /* just then the broker was seeing that bob is dead: it has another one now */
		return;
	}
	if (end->reason != steps[c->step].end || end->app_code != steps[c->step].app_code)
		client_fail(c, steps[c->step].name);
	if (c->step == STEP_MEET)
		return;
	if (c->step == STEP_LOG) {
		c->log = c->fd;
		if (c->is_alice)
			client_log(c, "hello");
	} else if (end->reason == WHARF_END_LAST) {
		char magic[4] = "";
		if (read(c->fd, magic, 4) != 4 || memcmp(magic, "\177ELF", 4) || write(c->fd, magic, 4) >= 0)
			client_fail(c, "the program is no program, or ours to write");
		close(c->fd);
	}
	c->fd = -1;
	c->step++;
	if (c->is_alice)
		ask(c);
	else
		client_done(c);
}

static void on_direct_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct client *c = user;
	uint64_t number = 0;
	if (msg->type == DIE)
		raise(SIGKILL);
	wharf_msg_copy(msg, 0, &number, sizeof number);
	if (number != c->n_pings + 1)
		client_fail(c, "a ping is missing");
	c->n_pings = number + 1;
	if (c->is_alice && number >= c->pings_max) {
		if (++c->round == 2)
			raise(SIGKILL);
		if (wharf_send_bytes(port, DIE, NULL, 0) < 0)
			client_fail(c, "bob cannot be told");
		return;
	}
	if (wharf_send_bytes(port, PING, &c->n_pings, sizeof c->n_pings) < 0)
		client_fail(c, "no answer possible");
}

/* The death of the other process: nobody else has the other end, the broker neither. */
static void on_direct_close(wharf_port *port, const struct wharf_reason *why, void *user)
{
	(void)port;
	struct client *c = user;
	c->direct = NULL;
	if (why->code != WHARF_CLOSE_PEER_GONE)
		client_fail(c, why->text);
	if (c->is_alice && c->n_pings < c->pings_max) {
		ask(c); /* its end went to the old bob: the broker had not seen yet that he was dead */
		return;
	}
	c->alone = true;
	client_done(c);
}

static const struct wharf_port_ops direct_ops = {
	.size = sizeof direct_ops,
	.on_message = on_direct_message,
	.on_close = on_direct_close,
};

static void on_channel(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	(void)port;
	struct client *c = user;
	if (msg->type != CHANNEL || !(msg->flags & WHARF_MSG_PORT) || c->direct)
		client_fail(c, "not what was agreed on");
	int fd = wharf_msg_take_fd(msg, 0);
	int e = fd < 0 ? fd : wharf_open(c->loop, fd, WHARF_OPT(port, .ops = &direct_ops, .user = c), &c->direct);
	c->n_pings = c->is_alice ? 1 : 0;
	if (e >= 0 && c->is_alice)
		e = wharf_send_bytes(c->direct, PING, &c->n_pings, sizeof c->n_pings);
	if (e < 0)
		client_fail(c, strerror(-e));
}

static const struct wharf_port_ops client_ops = { .size = sizeof client_ops, .on_message = on_channel };

static int client_main(const char *name, uint64_t n_pings)
{
	struct client c = { .name = name, .pings_max = 2 * n_pings, .fd = -1, .log = -1 };
	c.is_alice = !strcmp(name, "alice");
	int e = wharf_loop_new(NULL, &c.loop);
	if (e >= 0)
		e = wharf_port_inherit(c.loop, WHARF_OPT(port, .ops = &client_ops, .user = &c, .rx_fds_max = 1),
			&c.broker);
	if (e < 0)
		client_fail(&c, strerror(-e));
	c.step = c.is_alice ? 0 : STEP_LOG;
	ask(&c);
	e = wharf_loop_run(c.loop);
	wharf_loop_free(c.loop);
	return e < 0 || !c.alone ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* ---- The broker ---- */

struct served {
	struct broker *broker;
	char name[8];
	wharf_port *port;
	int pidfd;
	unsigned n_started, n_killed, n_good;
};

struct broker {
	wharf_loop *loop;
	int log;
	char pings[24];
	struct served alice, bob;
};

/* Who may have what. Asking for what one may not have does not even open it. */
static const struct {
	char name[16], path[16];
	int flags;
	bool allowed;
} files[] = {
	{ "program", "/proc/self/exe", O_RDONLY, true },
	{ "accounts", "/etc/shadow", O_RDONLY, false },
};

/* A descriptor, to be closed by the caller; negative errno. */
static int broker_open(const struct broker *b, const char *name)
{
	if (!strcmp(name, "log"))
		return fcntl(b->log, F_DUPFD_CLOEXEC, 0);
	for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
		if (strcmp(name, files[i].name))
			continue;
		if (!files[i].allowed)
			return -EACCES;
		int fd = open(files[i].path, files[i].flags | O_CLOEXEC);
		return fd < 0 ? -errno : fd;
	}
	return -ENOENT;
}

/* An end to each. If only the first can be passed, its new owner sees that nobody has the other one. */
static int broker_introduce(struct served *one, struct served *other)
{
	int ends[2];
	if (one == other || !one->port || !other->port)
		return -ENOENT;
	int e = wharf_pair(ends);
	if (e < 0)
		return e;
	e = wharf_port_pass(one->port, CHANNEL, ends[0]);
	if (e < 0)
		close(ends[0]);
	else
		e = wharf_port_pass(other->port, CHANNEL, ends[1]);
	if (e < 0)
		close(ends[1]);
	return e;
}

static int broker_answer(struct served *from, wharf_call_id id, uint32_t type, const char *name)
{
	struct broker *b = from->broker;
	if (type == OPEN) {
		int fd = broker_open(b, name);
		if (fd < 0)
			return fd;
		struct wharf_out out = { .type = OPEN, .flags = WHARF_LAST | WHARF_FDS_MOVE, .fds = &fd, .n_fds = 1 };
		int e = wharf_reply(from->port, id, &out, 0);
		if (e < 0)
			close(fd);
		return e;
	}
	if (type != MEET)
		return -EPROTO;
	int e = broker_introduce(strcmp(name, "bob") ? &b->alice : &b->bob, from);
	return e < 0 ? e : wharf_reply(from->port, id, &(struct wharf_out){ .type = MEET, .flags = WHARF_LAST }, 0);
}

static void on_request(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	char name[NAME_MAX_BYTES] = "";
	wharf_call_id id;
	if (wharf_call_take(port, msg, WHARF_OPT(answer, .user = NULL), &id) < 0)
		return; /* no call: nothing that we would answer */
	wharf_msg_copy(msg, 0, name, sizeof name - 1);
	int e = broker_answer(user, id, msg->type, name);
	if (e < 0)
		wharf_call_refuse(port, id, (uint32_t)-e);
}

static int served_start(struct served *s);

static void on_close(wharf_port *port, const struct wharf_reason *why, void *user)
{
	(void)port;
	struct served *s = user;
	siginfo_t how = { 0 };
	s->port = NULL;
	waitid(P_PIDFD, (id_t)s->pidfd, &how, WEXITED);
	close(s->pidfd);
	s->n_killed += why->code == WHARF_CLOSE_PEER_GONE && how.si_code == CLD_KILLED && how.si_status == SIGKILL;
	s->n_good += why->code == WHARF_CLOSE_PEER && how.si_code == CLD_EXITED && how.si_status == 0;
	printf("%s: %s\n", s->name, wharf_close_name(why->code));
	if (s == &s->broker->bob && s->n_killed == 1 && s->n_started == 1 && served_start(s) < 0)
		fprintf(stderr, "%s cannot be started again\n", s->name);
}

static const struct wharf_port_ops broker_ops = {
	.size = sizeof broker_ops,
	.on_message = on_request,
	.on_close = on_close,
};

static int served_start(struct served *s)
{
	char self[] = "/proc/self/exe", word[] = "--client";
	char *argv[] = { self, word, s->name, s->broker->pings, NULL };
	s->n_started++;
	return wharf_spawn(s->broker->loop,
		WHARF_OPT(spawn, .argv = argv, .port = WHARF_OPT(port, .ops = &broker_ops, .user = s)),
		&s->port, &s->pidfd);
}

static unsigned count_fds(void)
{
	unsigned n = 0;
	DIR *dir = opendir("/proc/self/fd");
	while (dir && readdir(dir))
		n++;
	closedir(dir);
	return n;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "--client"))
		return client_main(argv[2], strtoull(argv[3], NULL, 0));
	struct broker b = { .alice = { &b, "alice" }, .bob = { &b, "bob" } };
	uint64_t n_pings = argc > 1 ? strtoull(argv[1], NULL, 0) : 200;
	if (argc > 2 || !n_pings) {
		printf("usage: fd-broker [pings]\n");
		return argc == 2 && !strcmp(argv[1], "-h") ? EXIT_SUCCESS : EXIT_FAILURE;
	}
	snprintf(b.pings, sizeof b.pings, "%" PRIu64, n_pings);

	wharf_pool *first; /* the library keeps one descriptor for the process, from its first pool on */
	if (wharf_pool_new(NULL, &first) < 0)
		return EXIT_FAILURE;
	wharf_pool_unref(first);
	unsigned n_fds = count_fds();

	b.log = memfd_create("log", MFD_CLOEXEC);
	fcntl(b.log, F_SETFL, O_APPEND); /* of the open file: also for those who get a duplicate */
	int e = wharf_loop_new(NULL, &b.loop);
	if (e >= 0)
		e = served_start(&b.alice);
	if (e >= 0)
		e = served_start(&b.bob);
	if (e >= 0)
		e = wharf_loop_run(b.loop); /* until both are gone */
	wharf_loop_free(b.loop);

	char log[sizeof expected_log + 1] = "";
	bool right = pread(b.log, log, sizeof log, 0) == sizeof expected_log - 1 && !strcmp(log, expected_log);
	close(b.log);
	unsigned fds_left = count_fds() - n_fds;
	printf("%s%u descriptors left behind\n", log, fds_left);
	if (e < 0)
		fprintf(stderr, "fd-broker: %s\n", strerror(-e));
	bool good = e >= 0 && right && !fds_left && b.alice.n_killed == 1 && b.bob.n_killed == 1 && b.bob.n_good == 1;
	return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
