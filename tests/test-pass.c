/* SPDX-License-Identifier: MIT */
/* Ends that travel in messages: in order, with what is queued in them, and only if nobody has opened them. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"
#include "pair.h"
#include "raw.h"

enum { HERE = 70, ENOUGH = 100 };

static struct pair p;
static int ends[2];
static struct end direct; /* the port on an end that came */
static struct wharf_msg *kept;

static void open_it(struct end *end, const struct wharf_msg *msg)
{
	int fd;

	if (!(msg->flags & WHARF_MSG_PORT))
		return;
	cr_assert_eq(msg->n_fds, 1);
	cr_assert_eq(msg->size, 0);
	cr_assert_eq(msg->stream, 0);
	fd = wharf_msg_take_fd(msg, 0);
	cr_assert(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	direct = (struct end){ .pair = end->pair };
	cr_assert_eq(wharf_open(end->pair->loop, fd, WHARF_OPT(port, .ops = &end_ops, .user = &direct), &direct.port), 0);
}

static void keep_it(struct end *end, const struct wharf_msg *msg)
{
	(void)end;
	kept = wharf_msg_take(msg);
	cr_assert_not_null(kept);
}

static void start(const struct wharf_port_options *a_options)
{
	pair_open(&p, a_options, WHARF_OPT(port, .rx_fds_max = 1));
	cr_assert_eq(wharf_pair(ends), 0);
}

static bool is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }

/* Nobody holds the other end of this one any more. */
static bool is_alone(int fd)
{
	struct pollfd ready = { .fd = fd };

	return poll(&ready, 1, 0) == 1 && ready.revents & POLLHUP;
}

Test(pass, an_end_comes_in_order_and_with_what_is_queued_in_it)
{
	struct raw_read read;

	start(NULL);
	p.b.on_message = open_it;
	cr_assert(raw_say_hello(ends[1], NULL));
	cr_assert(raw_bytes(ends[1], "one", 3));
	cr_assert(raw_bytes(ends[1], "two", 3));
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "before", 6), 0);
	cr_assert_eq(wharf_port_pass(p.a.port, 2, ends[0]), 0);
	cr_assert_eq(wharf_send_bytes(p.a.port, 3, "after", 5), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 3);
	for (uint32_t i = 0; i < 3; i++)
		cr_assert_eq(p.b.seen[i].type, i + 1);
	cr_assert_eq(p.b.seen[1].flags, WHARF_MSG_PORT);
	cr_assert_eq(direct.n_open, 1);
	cr_assert_eq(direct.n_messages, 2);
	cr_assert_eq(memcmp(direct.seen[1].bytes, "two", 3), 0);
	cr_assert_eq(wharf_send_bytes(direct.port, 9, "back", 4), 0);
	settle(p.loop);
	cr_assert(raw_receive(ends[1], &read));
	cr_assert(raw_receive(ends[1], &read));
	cr_assert_eq(wh_frame_first(read.bytes)->kind, WH_RECORD_MESSAGE);
	close(ends[1]);
	settle_until(p.loop, &direct.n_closed, 1);
	cr_assert_eq(direct.reason.code, WHARF_CLOSE_PEER_GONE);
	cr_assert_eq(p.a.n_closed + p.b.n_closed, 0);
	pair_free(&p);
}

Test(pass, waits_for_the_hello_like_every_message)
{
	pair_start(&p, NULL, WHARF_OPT(port, .rx_fds_max = 1));
	cr_assert_eq(wharf_pair(ends), 0);
	p.b.on_message = open_it;
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "before", 6), 0);
	cr_assert_eq(wharf_port_pass(p.a.port, 2, ends[0]), 0);
	cr_assert_eq(wharf_send_bytes(p.a.port, 3, "after", 5), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 3);
	cr_assert_eq(p.b.seen[1].flags, WHARF_MSG_PORT);
	cr_assert_eq(p.b.seen[2].type, 3);
	cr_assert_not(is_alone(ends[1]));
	close(ends[1]);
	pair_free(&p);
}

Test(pass, to_a_peer_that_takes_no_descriptors)
{
	pair_open(&p, NULL, NULL);
	cr_assert_eq(wharf_pair(ends), 0);
	cr_assert_eq(wharf_port_pass(p.a.port, 2, ends[0]), -EMSGSIZE);
	cr_assert(is_open(ends[0]));
	pair_free(&p);
	pair_start(&p, NULL, NULL);
	cr_assert_eq(wharf_port_pass(p.a.port, 2, ends[0]), 0, "nobody knows yet");
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_ERROR);
	cr_assert_eq(p.a.reason.error, EMSGSIZE);
	cr_assert_eq(p.b.n_messages, 0);
	cr_assert(is_alone(ends[1]));
	close(ends[1]);
	pair_free(&p);
}

Test(pass, an_end_that_nobody_takes_is_closed)
{
	start(NULL);
	cr_assert_eq(wharf_port_pass(p.a.port, 2, ends[0]), 0);
	cr_assert_not(is_alone(ends[1]));
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert(is_alone(ends[1]));
	close(ends[1]);
	pair_free(&p);
}

Test(pass, an_end_in_a_taken_message_lives_as_long_as_that)
{
	start(NULL);
	p.b.on_message = keep_it;
	cr_assert_eq(wharf_port_pass(p.a.port, 2, ends[0]), 0);
	settle(p.loop);
	pair_free(&p);
	cr_assert_eq(kept->flags, WHARF_MSG_PORT | WHARF_MSG_TAKEN);
	cr_assert_not(is_alone(ends[1]));
	kept = wharf_msg_release(kept);
	cr_assert(is_alone(ends[1]));
	close(ends[1]);
}

Test(pass, a_paused_or_untrusting_port_keeps_it)
{
	for (uint32_t untrusted = 0; untrusted < 2; untrusted++) {
		pair_open(&p, NULL, WHARF_OPT(port, .rx_fds_max = 1, .untrusted = untrusted));
		cr_assert_eq(wharf_pair(ends), 0);
		p.b.on_message = open_it;
		cr_assert_eq(wharf_port_pause(p.b.port), 0);
		cr_assert_eq(wharf_send_bytes(p.a.port, 1, "before", 6), 0);
		cr_assert_eq(wharf_port_pass(p.a.port, 2, ends[0]), 0);
		settle(p.loop);
		cr_assert_eq(p.b.n_messages, 0);
		cr_assert_not(is_alone(ends[1]));
		cr_assert_eq(wharf_port_resume(p.b.port), 0);
		settle(p.loop);
		cr_assert_eq(p.b.n_messages, 2);
		cr_assert_eq(p.b.seen[1].flags, WHARF_MSG_PORT);
		cr_assert(raw_say_hello(ends[1], NULL));
		settle(p.loop);
		cr_assert_eq(direct.n_open, 1);
		close(ends[1]);
		pair_free(&p);
	}
}

Test(pass, what_was_under_way_goes_with_its_ports)
{
	struct harness_snapshot before;
	const char *leak;

	start(NULL); /* what a process has once */
	close(ends[0]);
	close(ends[1]);
	pair_free(&p);
	harness_snapshot_take(&before);
	for (int how = 0; how < 4; how++) {
		if (how == 0) {
			pair_start(&p, NULL, NULL);
			cr_assert_eq(wharf_pair(ends), 0);
		} else {
			start(NULL);
		}
		if (how == 2)
			cr_assert_eq(wharf_port_pause(p.b.port), 0);
		cr_assert_eq(wharf_port_pass(p.a.port, 2, ends[0]), 0);
		if (how == 2)
			settle(p.loop);
		else if (how == 3)
			cr_assert_eq(wharf_port_abort(p.a.port, 1), 0);
		pair_free(&p);
		cr_assert(is_alone(ends[1]), "case %d", how);
		close(ends[1]);
	}
	leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

Test(pass, waits_for_descriptors_that_are_under_way)
{
	int others[2];

	start(WHARF_OPT(port, .tx_fds_max = 1));
	cr_assert_eq(wharf_pair(others), 0);
	cr_assert_eq(wharf_port_pass(p.a.port, 1, ends[0]), 0);
	cr_assert_eq(wharf_port_pass(p.a.port, 2, others[0]), -EAGAIN);
	cr_assert(is_open(others[0]));
	settle(p.loop);
	cr_assert_eq(p.a.n_writable, 1);
	cr_assert_eq(wharf_port_pass(p.a.port, 2, others[0]), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 2);
	close(ends[1]);
	close(others[1]);
	pair_free(&p);
}

/* ---- What cannot be passed ---- */

static int open_inherited(void *arg)
{
	static struct end unused;
	wharf_loop *loop;

	(void)arg;
	HARNESS_REQUIRE(wharf_fork_child() == 0 && wharf_loop_new(NULL, &loop) == 0);
	HARNESS_REQUIRE(wharf_open(loop, ends[0], WHARF_OPT(port, .ops = &end_ops, .user = &unused), NULL) == 0);
	return 0;
}

Test(pass, an_end_that_was_opened_is_busy_wherever_that_was)
{
	static struct end third;
	int copy;

	start(NULL);
	copy = dup(ends[0]);
	third.pair = &p;
	cr_assert_eq(wharf_open(p.loop, ends[0], WHARF_OPT(port, .ops = &end_ops, .user = &third), &third.port), 0);
	cr_assert_eq(wharf_port_pass(p.a.port, 1, ends[0]), -EBUSY, "a port's own");
	cr_assert_eq(wharf_port_pass(p.a.port, 1, copy), -EBUSY);
	cr_assert_eq(wharf_open(p.loop, copy, WHARF_OPT(port, .ops = &end_ops, .user = &third), NULL), -EBUSY);
	cr_assert_eq(wharf_port_abort(third.port, 0), 0);
	settle(p.loop);
	cr_assert_eq(wharf_port_pass(p.a.port, 1, copy), -EBUSY, "still, when its port has gone");
	close(copy);
	cr_assert_eq(wharf_port_pass(p.a.port, 1, ends[1]), 0, "the other one was not");
	cr_assert_eq(wharf_pair(ends), 0);
	cr_assert_eq(harness_run(open_inherited, NULL, 10000), 0);
	cr_assert_eq(wharf_port_pass(p.a.port, 1, ends[0]), -EBUSY, "in another process");
	close(ends[0]);
	close(ends[1]);
	pair_free(&p);
}

Test(pass, what_is_no_end_stays_with_the_caller)
{
	int pipes[2], stream[2], fresh = socket(AF_UNIX, SOCK_SEQPACKET, 0);

	start(NULL);
	cr_assert(!pipe(pipes) && !socketpair(AF_UNIX, SOCK_STREAM, 0, stream));
	cr_assert_eq(wharf_port_pass(p.a.port, 1, -1), -EBADF);
	cr_assert_eq(wharf_port_pass(p.a.port, 1, 12345), -EBADF);
	cr_assert_eq(wharf_port_pass(p.a.port, 1, pipes[0]), -EPROTOTYPE);
	cr_assert_eq(wharf_port_pass(p.a.port, 1, stream[0]), -EPROTOTYPE);
	cr_assert_eq(wharf_port_pass(p.a.port, 1, fresh), -ENOTCONN);
	cr_assert_eq(wharf_port_pass(NULL, 1, ends[0]), -EINVAL);
	cr_assert(is_open(pipes[0]) && is_open(stream[0]) && is_open(fresh));
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	cr_assert_eq(wharf_port_pass(p.a.port, 1, ends[0]), -EPIPE);
	cr_assert(is_open(ends[0]));
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 0);
	pair_free(&p);
}

/* ---- Hostile ---- */

static bool raw_port(int fd, uint32_t stream, int passed)
{
	struct wh_port_record record = { .type = HERE, .stream = stream };
	struct raw_frame frame;

	raw_begin(&frame);
	RAW_REQUIRE(wh_encode_control(&frame.encoder, WH_RECORD_PORT, &record, 1));
	return raw_send(fd, frame.bytes, wh_encode_end(&frame.encoder, 0, 0), &passed, 1, false);
}

static int begin_raw(uint32_t rx_fds_max)
{
	int peer = pair_open_half(&p, WHARF_OPT(port, .rx_fds_max = rx_fds_max));

	cr_assert(raw_say_hello(peer, NULL));
	settle(p.loop);
	cr_assert_eq(p.a.n_open, 1);
	return peer;
}

Test(pass, an_end_that_was_not_asked_for_breaks_the_protocol)
{
	for (uint32_t stream = 0; stream < 2; stream++) {
		int peer = begin_raw(stream);

		cr_assert_eq(wharf_pair(ends), 0);
		cr_assert(raw_port(peer, stream, ends[0]));
		close(ends[0]);
		settle(p.loop);
		cr_assert_eq(p.a.n_messages, 0);
		cr_assert_eq(p.a.reason.code, WHARF_CLOSE_VIOLATION);
		cr_assert(is_alone(ends[1]));
		close(ends[1]);
		close(peer);
		pair_free(&p);
	}
}

static int open_error;

static void try_to_open(struct end *end, const struct wharf_msg *msg)
{
	int fd = wharf_msg_take_fd(msg, 0);

	open_error = fd < 0 ? fd : wharf_open(end->pair->loop, fd, WHARF_OPT(port, .ops = &end_ops, .user = &direct), NULL);
	if (fd >= 0)
		close(fd);
}

Test(pass, what_poses_as_an_end_is_found_out_when_it_is_opened)
{
	int peer = begin_raw(1), pipes[2];

	p.a.on_message = try_to_open;
	cr_assert_eq(pipe(pipes), 0);
	cr_assert(raw_port(peer, 0, pipes[0]));
	settle(p.loop);
	cr_assert_eq(open_error, -EPROTOTYPE);
	/* The port's own peer, passed through itself. */
	cr_assert(raw_port(peer, 0, peer));
	p.a.on_message = NULL;
	settle(p.loop);
	cr_assert_eq(p.a.n_messages, 2);
	cr_assert_eq(p.a.n_closed, 0);
	close(pipes[0]);
	close(pipes[1]);
	close(peer);
	settle_until(p.loop, &p.a.n_closed, 1);
	pair_free(&p);
}

Test(pass, one_for_which_there_was_no_descriptor_is_told_as_lost)
{
	struct rlimit old, none;
	int peer, lowest;

	need_frames_to_wait_for_turns();
	peer = begin_raw(1);
	lowest = dup(peer);
	p.a.on_message = try_to_open;
	cr_assert(raw_port(peer, 0, peer));
	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &old), 0);
	close(lowest);
	none = (struct rlimit){ .rlim_cur = (rlim_t)lowest, .rlim_max = old.rlim_max };
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
	settle(p.loop);
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &old), 0);
	cr_assert_eq(p.a.n_messages, 1);
	cr_assert_eq(p.a.seen[0].flags, WHARF_MSG_PORT | WHARF_MSG_FDS_LOST);
	cr_assert_eq(open_error, -EBADF);
	cr_assert_eq(p.a.n_closed, 0);
	close(peer);
	pair_free(&p);
}

/* ---- Two workers and their parent ---- */

struct worker {
	int fd;
	bool speaks;
	wharf_loop *loop;
	wharf_port *parent, *other;
	unsigned n_messages;
	uint32_t other_closed;
};

static void other_open(wharf_port *port, const struct wharf_peer *peer, void *user)
{
	struct worker *w = user;

	HARNESS_REQUIRE(peer->pid != getppid());
	for (uint32_t i = 0; w->speaks && i < ENOUGH; i++)
		HARNESS_REQUIRE(wharf_send_bytes(port, i, &i, sizeof(i)) == 0);
}

static void other_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct worker *w = user;

	(void)port;
	HARNESS_REQUIRE(msg->type == w->n_messages++);
	if (w->n_messages == ENOUGH)
		HARNESS_REQUIRE(wharf_send_bytes(w->parent, ENOUGH, NULL, 0) == 0);
}

static void other_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	struct worker *w = user;

	(void)port;
	w->other_closed = reason->code;
	HARNESS_REQUIRE(wharf_port_close(w->parent, -1) == 0);
}

static const struct wharf_port_ops other_ops = {
	.size = sizeof(other_ops), .on_open = other_open, .on_message = other_message, .on_close = other_close
};

static void parent_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct worker *w = user;

	(void)port;
	HARNESS_REQUIRE(msg->flags == WHARF_MSG_PORT && msg->type == HERE);
	HARNESS_REQUIRE(wharf_open(w->loop, wharf_msg_take_fd(msg, 0), WHARF_OPT(port, .ops = &other_ops, .user = w), &w->other) == 0);
}

static const struct wharf_port_ops parent_ops = { .size = sizeof(parent_ops), .on_message = parent_message };

static int work(void *arg)
{
	struct worker *w = arg;

	HARNESS_REQUIRE(wharf_fork_child() == 0 && wharf_loop_new(NULL, &w->loop) == 0);
	HARNESS_REQUIRE(wharf_open(w->loop, w->fd, WHARF_OPT(port, .ops = &parent_ops, .user = w, .rx_fds_max = 1),
		&w->parent) == 0);
	HARNESS_REQUIRE(wharf_loop_run(w->loop) == 0);
	HARNESS_REQUIRE(w->other_closed == WHARF_CLOSE_PEER_GONE);
	return 0;
}

Test(pass, two_workers_get_a_channel_of_their_own_and_see_each_other_die)
{
	struct harness_child speaker, listener;
	struct worker w = { .speaks = true };
	int fds[2];

	p = (struct pair){ 0 };
	p.a.pair = p.b.pair = &p;
	cr_assert_eq(wharf_loop_new(NULL, &p.loop), 0);
	cr_assert_eq(wharf_pair(fds), 0);
	w.fd = fds[1];
	harness_child_start(&speaker, work, &w);
	close(fds[1]);
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &p.a), &p.a.port), 0);
	cr_assert_eq(wharf_pair(fds), 0);
	w = (struct worker){ .fd = fds[1] };
	harness_child_start(&listener, work, &w);
	close(fds[1]);
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &p.b), &p.b.port), 0);
	cr_assert_eq(wharf_pair(ends), 0);
	cr_assert_eq(wharf_port_pass(p.a.port, HERE, ends[0]), 0);
	cr_assert_eq(wharf_port_pass(p.b.port, HERE, ends[1]), 0);
	while (!p.b.n_messages)
		cr_assert_geq(wharf_loop_step(p.loop, 5000000000), 0);
	cr_assert_eq(p.b.seen[0].type, ENOUGH);
	harness_child_signal(&speaker, SIGKILL);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER_GONE);
	settle_until(p.loop, &p.b.n_closed, 1);
	cr_assert_eq(p.b.reason.code, WHARF_CLOSE_PEER, "it says goodbye when it has seen the other die");
	cr_assert_eq(harness_child_wait(&speaker, 10000), 256 + SIGKILL);
	cr_assert_eq(harness_child_wait(&listener, 10000), 0);
	pair_free(&p);
}
