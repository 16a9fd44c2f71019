/* SPDX-License-Identifier: MIT */
/* How ports end: closing, aborting, peers that die or misbehave. on_close comes once, whatever happens. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"
#include "pair.h"
#include "wire.h"

static struct pair p;

Test(port_end, closing_sends_what_is_queued_first)
{
	pair_open(&p, NULL, NULL);
	for (uint32_t i = 0; i < 5000; i++)
		cr_assert_eq(wharf_send_bytes(p.a.port, i, &i, sizeof(i)), 0);
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	cr_assert_eq(wharf_port_close(p.a.port, -1), -EALREADY);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), -EPIPE);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 5000);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_LOCAL);
	cr_assert_eq(p.a.reason.unsent_messages, 0);
	cr_assert_eq(p.b.n_closed, 1);
	cr_assert_eq(p.b.reason.code, WHARF_CLOSE_PEER);
	cr_assert_eq(p.b.peer_at_end.pid, getpid());
	pair_free(&p);
}

Test(port_end, both_may_close_at_once)
{
	pair_open(&p, NULL, NULL);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "a", 1), 0);
	cr_assert_eq(wharf_send_bytes(p.b.port, 2, "b", 1), 0);
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	cr_assert_eq(wharf_port_close(p.b.port, -1), 0);
	settle(p.loop);
	cr_assert_eq(p.a.n_messages, 1);
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_LOCAL);
	cr_assert_eq(p.b.reason.code, WHARF_CLOSE_LOCAL);
	pair_free(&p);
}

Test(port_end, closing_before_the_hello_still_delivers)
{
	pair_start(&p, NULL, NULL);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "early", 5), 0);
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_LOCAL);
	cr_assert_eq(p.b.reason.code, WHARF_CLOSE_PEER);
	pair_free(&p);
}

Test(port_end, draining_ends_with_its_timeout)
{
	int peer = pair_open_half(&p, NULL);

	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "never", 5), 0);
	cr_assert_eq(wharf_port_close(p.a.port, 20000000), 0);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_TIMEOUT);
	cr_assert_eq(p.a.reason.unsent_messages, 1);
	cr_assert_eq(p.a.reason.unsent_bytes, 5);
	close(peer);
	pair_free(&p);
}

Test(port_end, no_hello_in_time_ends_the_opening)
{
	struct wharf_port_options o;
	int peer;

	WHARF_INIT(&o);
	o.open_timeout_ns = 20000000;
	peer = pair_open_half(&p, &o);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_TIMEOUT);
	cr_assert_eq(p.a.reason.error, ETIMEDOUT);
	cr_assert_eq(p.a.peer_at_end.version, 0);
	close(peer);
	pair_free(&p);
}

Test(port_end, abort_drops_what_is_queued_and_tells_the_code)
{
	pair_open(&p, NULL, NULL);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "dropped", 7), 0);
	cr_assert_eq(wharf_port_abort(p.a.port, 42), 0);
	cr_assert_eq(p.a.n_closed, 0, "callbacks fire only inside a step");
	cr_assert_eq(wharf_port_abort(p.a.port, 43), -EPIPE);
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_ABORTED);
	cr_assert_eq(p.a.reason.app_code, 42);
	cr_assert_eq(p.a.reason.unsent_messages, 1);
	cr_assert_eq(p.b.n_messages, 0);
	cr_assert_eq(p.b.n_closed, 1);
	cr_assert_eq(p.b.reason.code, WHARF_CLOSE_PEER_ABORTED);
	cr_assert_eq(p.b.reason.app_code, 42);
	pair_free(&p);
}

static void close_in_handler(struct end *end, const struct wharf_msg *msg)
{
	(void)msg;
	cr_assert_eq(wharf_port_close(end->port, -1), 0);
	cr_assert_eq(wharf_loop_step(end->pair->loop, 0), -EDEADLK);
	cr_assert_eq(wharf_loop_run(end->pair->loop), -EDEADLK);
	cr_assert_eq(wharf_loop_free(end->pair->loop), end->pair->loop, "a loop is not freed in its own callback");
}

Test(port_end, a_handler_may_close_its_own_port)
{
	pair_open(&p, NULL, NULL);
	p.b.on_message = close_in_handler;
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), 0);
	settle(p.loop);
	cr_assert_eq(p.b.reason.code, WHARF_CLOSE_LOCAL);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER);
	pair_free(&p);
}

static void abort_in_handler(struct end *end, const struct wharf_msg *msg)
{
	(void)msg;
	cr_assert_eq(wharf_port_abort(end->port, 1), 0);
}

Test(port_end, an_abort_in_a_handler_stops_delivery_there)
{
	pair_open(&p, NULL, NULL);
	p.b.on_message = abort_in_handler;
	for (int i = 0; i < 10; i++)
		cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_eq(p.b.n_closed, 1);
	pair_free(&p);
}

Test(port_end, while_paused_the_end_waits_for_the_messages)
{
	pair_open(&p, NULL, NULL);
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "last words", 10), 0);
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_closed, 0);
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_eq(p.b.n_closed, 1);
	cr_assert_eq(p.b.reason.code, WHARF_CLOSE_PEER);
	pair_free(&p);
}

Test(port_end, a_freed_loop_ends_its_ports)
{
	struct wharf_port_stats stats;
	wharf_port *kept;

	pair_open(&p, NULL, NULL);
	kept = wharf_port_ref(p.a.port);
	pair_free(&p);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.b.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_LOOP_FREED);
	WHARF_INIT(&stats);
	cr_assert_eq(wharf_port_stats(kept, &stats), -EPIPE);
	cr_assert_eq(wharf_send_bytes(kept, 1, "x", 1), -EPIPE);
	cr_assert_eq(wharf_port_close(kept, 0), -EPIPE);
	cr_assert_null(wharf_port_pool(kept));
	wharf_port_unref(kept);
}

Test(port_end, nothing_is_left_behind)
{
	struct harness_snapshot before;
	struct wharf_buf b;
	const char *leak;

	/* The process's own pages are made once. */
	pair_open(&p, NULL, NULL);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 100, &b), 0);
	wharf_buf_abandon(&b);
	pair_free(&p);
	harness_snapshot_take(&before);
	for (int i = 0; i < 20; i++) {
		pair_open(&p, NULL, NULL);
		for (size_t size = 64; size <= 1 << 20; size *= 4) {
			cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), size, &b), 0);
			cr_assert_eq(wharf_send_buf(p.a.port, 1, &b), 0);
		}
		if (i % 2)
			settle(p.loop);
		if (i % 4 == 3) {
			cr_assert_eq(wharf_port_close(p.b.port, -1), 0);
			settle(p.loop);
		}
		pair_free(&p);
	}
	leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

/* ---- Peers that die ---- */

Test(port_end, a_closed_socket_without_a_word_is_a_peer_gone)
{
	int peer = pair_open_half(&p, NULL);

	close(peer);
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER_GONE);
	cr_assert_eq(p.a.peer_at_end.version, 0);
	pair_free(&p);
}

struct child_end {
	int fd;
	unsigned messages;
};

static void child_closed(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	(void)port;
	(void)reason;
	(void)user;
	_exit(3);
}

/* Opens its end, sends, and waits. */
static int child_main(void *arg)
{
	struct child_end *c = arg;
	static const struct wharf_port_ops ops = { .size = sizeof(ops), .on_close = child_closed };
	wharf_loop *loop;
	wharf_port *port;

	HARNESS_REQUIRE(wharf_fork_child() == 0);
	HARNESS_REQUIRE(wharf_loop_new(NULL, &loop) == 0);
	HARNESS_REQUIRE(wharf_open(loop, c->fd, WHARF_OPT(port, .ops = &ops), &port) == 0);
	for (unsigned i = 0; i < c->messages; i++) {
		struct wharf_buf b;
		HARNESS_REQUIRE(wharf_buf_claim(wharf_port_pool(port), 1000, &b) == 0);
		memset(b.data, (int)i, b.size);
		HARNESS_REQUIRE(wharf_send_buf(port, i, &b) == 0);
	}
	wharf_loop_run(loop);
	return 0;
}

static void fork_peer(struct harness_child *child, struct child_end *c)
{
	int fds[2];

	cr_assert_eq(wharf_pair(fds), 0);
	c->fd = fds[1];
	harness_child_start(child, child_main, c);
	close(fds[1]);
	p = (struct pair){ 0 };
	cr_assert_eq(wharf_loop_new(NULL, &p.loop), 0);
	p.a.pair = &p;
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &p.a), &p.a.port), 0);
}

static struct wharf_msg *kept_msg;

static void keep(struct end *end, const struct wharf_msg *msg)
{
	(void)end;
	if (!kept_msg)
		kept_msg = wharf_msg_take(msg);
}

static void kill_once(struct end *end, const struct wharf_msg *msg)
{
	keep(end, msg);
	if (end->n_messages == 100)
		harness_child_signal(end->user, SIGKILL);
}

Test(port_end, a_killed_peer_ends_the_port_after_its_messages)
{
	struct child_end c = { .messages = 100 };
	struct harness_child child;
	int pid;

	/* A process that has used the library before it forks is the harder case. */
	pair_open(&p, NULL, NULL);
	pair_free(&p);
	fork_peer(&child, &c);
	pid = child.pid;
	p.a.user = &child;
	p.a.on_message = kill_once;
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.n_messages, 100);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER_GONE);
	cr_assert_eq(p.a.peer_at_end.pid, pid);
	cr_assert_eq(harness_child_wait(&child, 2000), 256 + SIGKILL);
	pair_free(&p);
	cr_assert_eq(((const unsigned char *)kept_msg->slices[0].data)[999], 0, "memory of the dead stays readable");
	wharf_msg_release(kept_msg);
}

/* Forks a grandchild that does nothing, then is killed. */
static int forking_child(void *arg)
{
	struct child_end *c = arg;
	static const struct wharf_port_ops ops = { .size = sizeof(ops) };
	wharf_loop *loop;
	wharf_port *port;
	pid_t grandchild;

	HARNESS_REQUIRE(wharf_loop_new(NULL, &loop) == 0);
	HARNESS_REQUIRE(wharf_open(loop, c->fd, WHARF_OPT(port, .ops = &ops), &port) == 0);
	while (!wharf_port_peer(port))
		HARNESS_REQUIRE(wharf_loop_step(loop, -1) >= 0);
	grandchild = fork();
	if (grandchild == 0) {
		struct wharf_buf b;
		HARNESS_REQUIRE(wharf_send_bytes(port, 1, "x", 1) == -ECHILD);
		HARNESS_REQUIRE(wharf_loop_step(loop, 0) == -ECHILD);
		HARNESS_REQUIRE(wharf_port_close(port, 0) == -ECHILD);
		(void)b;
		sleep(60);
		_exit(0);
	}
	HARNESS_REQUIRE(wharf_send_bytes(port, (uint32_t)grandchild, NULL, 0) == 0);
	HARNESS_REQUIRE(wharf_loop_flush(loop) == 0);
	pause();
	return 0;
}

Test(port_end, a_forked_child_that_lives_on_does_not_hide_its_parents_death)
{
	struct child_end c = { 0 };
	struct harness_child child;
	int fds[2];

	cr_assert_eq(wharf_pair(fds), 0);
	c.fd = fds[1];
	harness_child_start(&child, forking_child, &c);
	close(fds[1]);
	p = (struct pair){ 0 };
	cr_assert_eq(wharf_loop_new(NULL, &p.loop), 0);
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &p.a), &p.a.port), 0);
	while (!p.a.n_messages)
		cr_assert_geq(wharf_loop_step(p.loop, 1000000000), 0);
	harness_child_signal(&child, SIGKILL);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER_GONE);
	cr_assert_eq(kill((pid_t)p.a.seen[0].type, 0), 0, "the grandchild is still there");
	kill((pid_t)p.a.seen[0].type, SIGKILL);
	harness_child_end(&child);
	pair_free(&p);
}

/* ---- Peers that misbehave ---- */

static void say_hello(int fd, uint16_t version_min, uint16_t version_max, uint32_t required)
{
	_Alignas(64) unsigned char memory[4096];
	struct wh_encoder e;
	struct wh_hello hello = { .version_min = version_min, .version_max = version_max, .features_required = required,
		.frame_bytes_max = 32768, .segments_max = 256, .mapped_bytes_max = 1 << 30, .message_bytes_max = 1 << 30,
		.window_frames = 16, .name = "by hand" };
	struct ucred me = { getpid(), getuid(), getgid() };
	union { char bytes[CMSG_SPACE(sizeof(me))]; struct cmsghdr align; } control = { 0 };
	struct iovec iov = { .iov_base = memory };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&m);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_CREDENTIALS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(me));
	memcpy(CMSG_DATA(cmsg), &me, sizeof(me));
	wh_encode_begin(&e, memory, sizeof(memory));
	cr_assert(wh_encode_control(&e, WH_RECORD_HELLO, &hello, 0));
	iov.iov_len = wh_encode_end(&e, 0, 0);
	cr_assert_eq(sendmsg(fd, &m, 0), (ssize_t)iov.iov_len);
}

/* The bye that a bare peer finds behind the hello. */
static uint32_t bye_code(int fd)
{
	_Alignas(64) unsigned char memory[32768];

	for (ssize_t n; (n = recv(fd, memory, sizeof(memory), MSG_DONTWAIT)) > 0; ) {
		const struct wh_frame *frame = (const struct wh_frame *)memory;
		const struct wh_record *r = wh_frame_first(memory);
		for (unsigned i = 0; i < frame->n_records; i++, r = wh_record_next(r))
			if (r->kind == WH_RECORD_BYE)
				return ((const struct wh_bye *)r)->code;
	}
	return 0;
}

Test(port_end, another_version_is_a_mismatch_that_both_sides_hear)
{
	int peer = pair_open_half(&p, NULL);

	say_hello(peer, 2, 9, 0);
	settle(p.loop);
	cr_assert_eq(p.a.n_open, 0);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_MISMATCH);
	cr_assert_eq(p.a.reason.error, EPROTONOSUPPORT);
	cr_assert_eq(bye_code(peer), WH_BYE_MISMATCH);
	close(peer);
	pair_free(&p);
}

Test(port_end, a_required_feature_that_we_lack_is_a_mismatch)
{
	int peer = pair_open_half(&p, NULL);

	say_hello(peer, 1, 1, 1u << 31);
	settle(p.loop);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_MISMATCH);
	cr_assert_eq(bye_code(peer), WH_BYE_MISMATCH);
	close(peer);
	pair_free(&p);
}

Test(port_end, garbage_is_a_violation_of_that_port_only)
{
	struct end other = { 0 };
	int fds[2], peer = pair_open_half(&p, NULL);

	cr_assert_eq(wharf_pair(fds), 0);
	other.pair = &p;
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &other), &other.port), 0);
	say_hello(peer, 1, 1, 0);
	say_hello(fds[1], 1, 1, 0);
	settle(p.loop);
	cr_assert_eq(p.a.n_open, 1);
	cr_assert_eq(other.n_open, 1);
	cr_assert_eq(send(peer, "this is no frame at all, whatever its length may be.", 52, 0), 52);
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_VIOLATION);
	cr_assert_eq(p.a.peer_at_end.pid, getpid());
	cr_assert_eq(bye_code(peer), WH_BYE_REFUSED);
	cr_assert_eq(other.n_closed, 0);
	cr_assert_eq(wharf_send_bytes(other.port, 1, "fine", 4), 0);
	settle(p.loop);
	cr_assert_eq(other.n_closed, 0);
	close(peer);
	close(fds[1]);
	pair_free(&p);
}

Test(port_end, a_hello_without_credentials_is_refused)
{
	_Alignas(64) unsigned char memory[4096];
	struct wh_encoder e;
	struct wh_hello hello = { .version_min = 1, .version_max = 1, .frame_bytes_max = 4096 };
	int peer, fds[2];

	/* Sent before the receiver asked the kernel for credentials, it carries none. */
	cr_assert_eq(wharf_pair(fds), 0);
	peer = fds[1];
	wh_encode_begin(&e, memory, sizeof(memory));
	cr_assert(wh_encode_control(&e, WH_RECORD_HELLO, &hello, 0));
	cr_assert_gt(send(peer, memory, wh_encode_end(&e, 0, 0), 0), 0);
	p = (struct pair){ 0 };
	p.a.pair = &p;
	cr_assert_eq(wharf_loop_new(NULL, &p.loop), 0);
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &p.a), &p.a.port), 0);
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_VIOLATION);
	close(peer);
	pair_free(&p);
}

Test(port_end, a_peer_that_reports_what_it_cannot_have_read_is_refused)
{
	_Alignas(64) unsigned char memory[4096];
	struct wh_encoder e;
	int peer = pair_open_half(&p, NULL);

	say_hello(peer, 1, 1, 0);
	settle(p.loop);
	wh_encode_begin(&e, memory, sizeof(memory));
	cr_assert_gt(send(peer, memory, wh_encode_end(&e, 0, 77), 0), 0);
	settle(p.loop);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_VIOLATION);
	close(peer);
	pair_free(&p);
}

Test(port_end, unexpected_descriptors_are_closed)
{
	_Alignas(64) unsigned char memory[4096];
	struct wh_encoder e;
	union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control = { 0 };
	struct iovec iov = { .iov_base = memory };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&m);
	int fd = STDERR_FILENO, peer = pair_open_half(&p, NULL);
	size_t before;

	say_hello(peer, 1, 1, 0);
	settle(p.loop);
	before = harness_count_fds();
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
	wh_encode_begin(&e, memory, sizeof(memory));
	iov.iov_len = wh_encode_end(&e, 0, 0);
	cr_assert_eq(sendmsg(peer, &m, 0), (ssize_t)iov.iov_len);
	settle(p.loop);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_VIOLATION);
	cr_assert_eq(harness_count_fds(), before - 1, "the port's socket went, nothing came");
	close(peer);
	pair_free(&p);
}
