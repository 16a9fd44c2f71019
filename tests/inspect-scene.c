/* SPDX-License-Identifier: MIT */
/* Processes in known states, for wharf-inspect to look at. */
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "inspect-process.h"
#include "wharf.h"

#define SECOND INT64_C(1000000000)

static int run_scene(void *arg)
{
	struct scene *scene = arg;

	close(scene->ready[0]);
	return scene->play(scene);
}

void scene_begin(struct scene *scene, int (*play)(struct scene *scene), int fd, int number)
{
	*scene = (struct scene){ .play = play, .fd = fd, .number = number };
	cr_assert_eq(pipe(scene->ready), 0);
	harness_child_start(&scene->child, run_scene, scene);
	close(scene->ready[1]);
	if (fd >= 0)
		close(fd);
}

void scene_await(struct scene *scene)
{
	char byte;

	cr_assert_eq(read(scene->ready[0], &byte, 1), 1, "the process ended before it was ready");
	close(scene->ready[0]);
}

void scene_start(struct scene *scene, int (*play)(struct scene *scene), int fd, int number)
{
	scene_begin(scene, play, fd, number);
	scene_await(scene);
}

void scene_ready(struct scene *scene)
{
	if (scene->ready[1] < 0)
		return;
	HARNESS_REQUIRE(write(scene->ready[1], "", 1) == 1);
	close(scene->ready[1]);
	scene->ready[1] = -1;
}

void scene_end(struct scene *scene)
{
	if (scene->child.pid)
		harness_child_end(&scene->child);
}

void scene_stop(const struct scene *scene)
{
	siginfo_t info = { 0 };

	harness_child_signal(&scene->child, SIGSTOP);
	cr_assert_eq(waitid(P_PID, (id_t)scene->child.pid, &info, WSTOPPED | WNOWAIT), 0);
}

/* ---- Parts ---------------------------------------------------------------------------------------------------- */

struct actor {
	struct scene *scene;
	wharf_loop *loop;
	wharf_port *port;
	bool open, hangs;
	int n_closed, n_kept;
};

static void on_open(wharf_port *port, const struct wharf_peer *peer, void *user)
{
	(void)port, (void)peer;
	((struct actor *)user)->open = true;
}

static void on_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	struct actor *actor = user;

	(void)reason;
	if (port == actor->port)
		actor->port = NULL;
	actor->n_closed++;
}

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct actor *actor = user;

	(void)port;
	if (actor->hangs) {
		scene_ready(actor->scene);
		for (;;)
			pause();
	}
	if (actor->scene->play == play_keeper)
		HARNESS_REQUIRE(wharf_msg_take(msg));
	actor->n_kept++;
}

static const struct wharf_port_ops ops = {
	.size = sizeof ops,
	.on_open = on_open,
	.on_message = on_message,
	.on_close = on_close,
};

static void begin(struct actor *actor, struct scene *scene, const struct wharf_port_options *options)
{
	struct wharf_port_options o;

	*actor = (struct actor){ .scene = scene };
	HARNESS_REQUIRE(wharf_loop_new(NULL, &actor->loop) == 0);
	if (scene->fd < 0)
		return;
	WHARF_INIT(&o);
	if (options)
		o = *options;
	o.ops = &ops;
	o.user = actor;
	HARNESS_REQUIRE(wharf_open(actor->loop, scene->fd, &o, &actor->port) == 0);
}

/* Until its peer is there: said by the hello that has come. */
static void await_peer(struct actor *actor)
{
	while (!actor->open)
		HARNESS_REQUIRE(wharf_loop_step(actor->loop, SECOND) >= 0);
}

static int stay(struct actor *actor)
{
	/* What is published at the end of a turn is. */
	for (int i = 0; i < 3; i++)
		wharf_loop_step(actor->loop, 0);
	scene_ready(actor->scene);
	for (;;)
		HARNESS_REQUIRE(wharf_loop_step(actor->loop, -1) >= 0);
}

/* A receiver is ready before its sender has begun. */
static int receive(struct scene *scene, bool hangs)
{
	struct actor actor;

	begin(&actor, scene, NULL);
	actor.hangs = hangs;
	if (!hangs)
		scene_ready(scene);
	for (;;)
		HARNESS_REQUIRE(wharf_loop_step(actor.loop, -1) >= 0);
}

int play_keeper(struct scene *scene) { return receive(scene, false); }
int play_reader(struct scene *scene) { return receive(scene, false); }
int play_hanger(struct scene *scene) { return receive(scene, true); }

static void send_one(struct actor *actor, size_t size)
{
	struct wharf_buf buf;

	HARNESS_REQUIRE(wharf_buf_claim(wharf_port_pool(actor->port), size, &buf) == 0);
	memset(buf.data, 1, buf.size);
	HARNESS_REQUIRE(wharf_send_buf(actor->port, 7, &buf) == 0);
}

int play_lender(struct scene *scene)
{
	struct actor actor;

	begin(&actor, scene, NULL);
	await_peer(&actor);
	for (int i = 0; i < scene->number; i++) {
		send_one(&actor, 3000);
		/* Each in a frame of its own. */
		HARNESS_REQUIRE(wharf_loop_step(actor.loop, 0) >= 0);
	}
	return stay(&actor);
}

static volatile sig_atomic_t told;

static void on_signal(int signal)
{
	(void)signal;
	told = 1;
}

int play_flooder(struct scene *scene)
{
	const struct sigaction action = { .sa_handler = on_signal };
	struct wharf_buf buf;
	struct actor actor;
	int error = 0;

	sigaction(SIGUSR1, &action, NULL);
	begin(&actor, scene, WHARF_OPT(port, .tx_queued_bytes_max = 1 << 16));
	await_peer(&actor);
	scene_ready(scene);
	while (!told)
		HARNESS_REQUIRE(wharf_loop_step(actor.loop, SECOND / 100) >= 0);
	while (!error) {
		error = wharf_send_bytes(actor.port, 7, (char[8192]){ 1 }, 8192);
		HARNESS_REQUIRE(wharf_loop_step(actor.loop, 0) >= 0);
	}
	HARNESS_REQUIRE(error == -EAGAIN);
	HARNESS_REQUIRE(wharf_buf_claim(wharf_port_pool(actor.port), 100, &buf) == 0);
	return stay(&actor);
}

int play_stuck(struct scene *scene)
{
	static const struct wharf_port_ops silent = { .size = sizeof silent };
	static const char bytes[16000];
	struct wharf_port_stats stats = { .size = sizeof stats };
	wharf_loop *slow;
	struct actor actor;
	int fds[2], size = 24576;

	HARNESS_REQUIRE(wharf_pair(fds) == 0);
	HARNESS_REQUIRE(wharf_loop_new(NULL, &slow) == 0);
	HARNESS_REQUIRE(wharf_open(slow, fds[1], WHARF_OPT(port, .ops = &silent), NULL) == 0);
	scene->fd = fds[0];
	begin(&actor, scene, NULL);
	/* A frame or two fill it. */
	HARNESS_REQUIRE(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
	while (!actor.open) {
		HARNESS_REQUIRE(wharf_loop_step(slow, 0) >= 0);
		HARNESS_REQUIRE(wharf_loop_step(actor.loop, 0) >= 0);
	}
	while (!stats.tx_socket_full) {
		HARNESS_REQUIRE(wharf_send_bytes(actor.port, 7, bytes, sizeof bytes) == 0);
		HARNESS_REQUIRE(wharf_loop_step(actor.loop, 0) >= 0);
		HARNESS_REQUIRE(wharf_port_stats(actor.port, &stats) == 0);
	}
	return stay(&actor);
}

int play_leaker(struct scene *scene)
{
	struct wharf_buf buf;
	struct actor actor;
	wharf_pool *pool;

	begin(&actor, scene, NULL);
	HARNESS_REQUIRE(wharf_pool_new(WHARF_OPT(pool, .shared = 1, .name = "leaky"), &pool) == 0);
	/* Claims are dated by the turns' clock. */
	HARNESS_REQUIRE(wharf_loop_step(actor.loop, 0) >= 0);
	for (int i = 0; i < scene->number; i++)
		HARNESS_REQUIRE(wharf_buf_claim(pool, 1000, &buf) == 0);
	return stay(&actor);
}

int play_crowd(struct scene *scene)
{
	struct actor actor;
	int fds[2];

	harness_raise_fds((unsigned)scene->number * 2 + 100);
	scene->fd = -1;
	begin(&actor, scene, NULL);
	for (int i = 0; i < scene->number; i++) {
		HARNESS_REQUIRE(wharf_pair(fds) == 0);
		for (int k = 0; k < 2; k++)
			HARNESS_REQUIRE(wharf_open(actor.loop, fds[k], WHARF_OPT(port, .ops = &ops, .user = &actor), NULL) == 0);
	}
	while (wharf_loop_step(actor.loop, 0) > 0)
		;
	return stay(&actor);
}

int play_victim(struct scene *scene)
{
	struct actor actor;
	int fds[2];

	HARNESS_REQUIRE(wharf_pair(fds) == 0);
	scene->fd = fds[0];
	begin(&actor, scene, NULL);
	HARNESS_REQUIRE(write(fds[1], "this is no frame", 16) == 16);
	while (!actor.n_closed)
		HARNESS_REQUIRE(wharf_loop_step(actor.loop, SECOND) >= 0);
	return stay(&actor);
}
