/* SPDX-License-Identifier: MIT */
/* Two processes that are busy with each other, for wharf-inspect to follow: every kind of event, again and again. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "inspect-process.h"
#include "wharf.h"

enum { BURST = TRAFFIC_BURST, BYTES = TRAFFIC_BYTES, TURNS = 20, NARROW = 24576 };

struct talker {
	wharf_loop *loop, *slow_loop; /* the slow one is stepped once a round */
	wharf_port *port, *narrow, *spoilt;
	bool open, calls;
};

/* ---- Who talks ------------------------------------------------------------------------------------------------ */

static void on_open(wharf_port *port, const struct wharf_peer *peer, void *user)
{
	struct talker *t = user;

	(void)peer;
	t->open |= port == t->port;
}

static void on_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	struct talker *t = user;

	(void)reason;
	HARNESS_REQUIRE(port == t->spoilt);
	t->spoilt = NULL;
}

static const struct wharf_port_ops talker_ops = { .size = sizeof talker_ops, .on_open = on_open, .on_close = on_close };

static void step(wharf_loop *loop, int64_t ns) { HARNESS_REQUIRE(wharf_loop_step(loop, ns) >= 0); }

static void on_end(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user)
{
	(void)port, (void)id, (void)end;
	((struct talker *)user)->calls = false;
}

/* Its peer has the slow loop, and its socket is full after a frame or two. */
static void open_narrow(struct talker *t)
{
	int fds[2], size = NARROW;

	HARNESS_REQUIRE(wharf_pair(fds) == 0);
	HARNESS_REQUIRE(wharf_open(t->loop, fds[0],
				WHARF_OPT(port, .ops = &talker_ops, .user = t, .tx_queued_bytes_max = 1 << 16),
				&t->narrow) == 0);
	HARNESS_REQUIRE(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
	HARNESS_REQUIRE(wharf_open(t->slow_loop, fds[1], WHARF_OPT(port, .ops = &talker_ops, .user = t), NULL) == 0);
}

static void burst(struct talker *t)
{
	struct wharf_buf buf;

	for (int i = 0; i < BURST; i++) {
		if (wharf_buf_claim(wharf_port_pool(t->port), BYTES, &buf))
			return;
		if (wharf_send_buf(t->port, 7, &buf))
			wharf_buf_abandon(&buf);
	}
}

static void fill(struct talker *t)
{
	static const char bytes[16000];
	int error = wharf_send_bytes(t->narrow, 8, bytes, sizeof bytes);

	HARNESS_REQUIRE(error == 0 || error == -EAGAIN);
}

static void speak(struct talker *t)
{
	const struct wharf_part part = { .bytes = "a stream", .size = 8 };
	uint64_t stream;

	if (wharf_stream_begin(t->port, 11, WHARF_BYTES_UNKNOWN, &stream) == 0) {
		HARNESS_REQUIRE(wharf_stream_send(t->port, stream, &(struct wharf_out){ .parts = &part, .n_parts = 1 }) == 0);
		HARNESS_REQUIRE(wharf_stream_end(t->port, stream) == 0);
	}
	if (!t->calls)
		t->calls = wharf_call(t->port, &(struct wharf_out){ .type = 9, .flags = WHARF_LAST },
				   WHARF_OPT(call, .on_end = on_end, .user = t), &(wharf_call_id){ 0 }) == 0;
}

/* Somebody who breaks the protocol, and is gone. */
static void meet_a_stranger(struct talker *t)
{
	int fds[2];

	HARNESS_REQUIRE(wharf_pair(fds) == 0);
	HARNESS_REQUIRE(wharf_open(t->loop, fds[0], WHARF_OPT(port, .ops = &talker_ops, .user = t), &t->spoilt) == 0);
	HARNESS_REQUIRE(write(fds[1], "this is no frame", 16) == 16);
	while (t->spoilt)
		step(t->loop, 1000000);
	close(fds[1]);
}

int play_talker(struct scene *scene)
{
	struct talker t = { 0 };

	HARNESS_REQUIRE(wharf_loop_new(NULL, &t.loop) == 0 && wharf_loop_new(NULL, &t.slow_loop) == 0);
	HARNESS_REQUIRE(wharf_open(t.loop, scene->fd, WHARF_OPT(port, .ops = &talker_ops, .user = &t), &t.port) == 0);
	while (!t.open)
		step(t.loop, 1000000);
	open_narrow(&t);
	for (;;) {
		for (int i = 0; i < TURNS; i++) {
			burst(&t);
			fill(&t);
			/* It sleeps a little: two processors may have more to do. */
			step(t.loop, 0);
			step(t.loop, 4000000);
		}
		speak(&t);
		meet_a_stranger(&t);
		for (int i = 0; i < TURNS; i++)
			step(t.slow_loop, 0);
		scene_ready(scene);
	}
}

/* ---- Who listens ---------------------------------------------------------------------------------------------- */

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	const struct wharf_part part = { .bytes = "yes", .size = 3 };
	const struct wharf_out yes = { .type = 10, .flags = WHARF_LAST, .parts = &part, .n_parts = 1 };
	wharf_call_id id;

	(void)user;
	if (!msg->call)
		return;
	HARNESS_REQUIRE(wharf_call_take(port, msg, NULL, &id) == 0);
	HARNESS_REQUIRE(wharf_reply(port, id, &yes, 0) == 0);
}

int play_answerer(struct scene *scene)
{
	static const struct wharf_port_ops ops = { .size = sizeof ops, .on_message = on_message };
	wharf_loop *loop;

	HARNESS_REQUIRE(wharf_loop_new(NULL, &loop) == 0);
	HARNESS_REQUIRE(wharf_open(loop, scene->fd, WHARF_OPT(port, .ops = &ops), NULL) == 0);
	scene_ready(scene);
	for (;;)
		step(loop, -1);
}
