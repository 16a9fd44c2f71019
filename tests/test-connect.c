/* SPDX-License-Identifier: MIT */
/* Connecting: waiting for a listener without blocking the loop, and who is let in at either end. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "harness.h"
#include "pair.h"
#include "raw.h"

static struct pair p;
static wharf_listener *listener;
static char name[HARNESS_PATH_MAX];
static unsigned n_allocs, n_accepted;
static int accept_result;
static uint32_t accept_flags;

static void *count_allocs(size_t bytes, void *user)
{
	(void)user;
	n_allocs++;
	return malloc(bytes);
}

static void plain_free(void *memory, void *user)
{
	(void)user;
	free(memory);
}

static void on_accept(wharf_listener *l, const struct wharf_peer *who, void *user)
{
	(void)who;
	n_accepted++;
	accept_result = wharf_accept(l, WHARF_OPT(port, .ops = &end_ops, .user = user, .flags = accept_flags), &p.b.port);
}

static const struct wharf_listener_ops listener_ops = { .size = sizeof(listener_ops), .on_accept = on_accept };

static void start(void)
{
	p = (struct pair){ 0 };
	p.a.pair = p.b.pair = &p;
	cr_assert_eq(wharf_loop_new(WHARF_OPT(loop, .alloc = count_allocs, .free = plain_free), &p.loop), 0);
	harness_abstract_name(name);
}

static int try_connect(const char *address, int64_t timeout_ns, uint32_t flags)
{
	return wharf_connect(p.loop, address, WHARF_OPT(port, .ops = &end_ops, .user = &p.a,
		.connect_timeout_ns = timeout_ns, .flags = flags), &p.a.port);
}

static void listen_now(const char *address)
{
	cr_assert_eq(wharf_listen(p.loop, address, WHARF_OPT(listener, .ops = &listener_ops, .user = &p.b), &listener), 0);
}

static int raw_socket(int (*attach)(int, const struct sockaddr *, socklen_t), const char *address, int type)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	size_t length = strlen(address);
	int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	memcpy(a.sun_path, address, length);
	if (*address == '@')
		*a.sun_path = '\0';
	RAW_REQUIRE(fd >= 0);
	if (attach(fd, (const struct sockaddr *)&a,
		    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + (*address != '@'))) == 0)
		return fd;
	close(fd);
	return -1;
}

static int raw_listen(const char *address, int type)
{
	int fd = raw_socket(bind, address, type);

	RAW_REQUIRE(fd >= 0 && listen(fd, 0) == 0);
	return fd;
}

/* Steps so often that every pause but the longest ends. */
static void wait_a_little(void)
{
	for (int i = 0; i < 6; i++)
		cr_assert_geq(wharf_loop_step(p.loop, 20000000), 0);
}

Test(connect, waits_for_room_in_the_backlog)
{
	int fds[8], n = 0, bare;

	start();
	bare = raw_listen(name, SOCK_SEQPACKET);
	while (n < 8 && (fds[n] = raw_socket(connect, name, SOCK_SEQPACKET)) >= 0)
		n++;
	cr_assert(n && n < 8);
	cr_assert_eq(try_connect(name, 0, 0), -EBUSY);
	cr_assert_eq(try_connect(name, -1, 0), 0);
	cr_assert_eq(wharf_send_bytes(p.a.port, 5, "early", 5), 0);
	wait_a_little();
	cr_assert_eq(p.a.n_closed, 0);
	/* Those before it are let go, and it comes. */
	for (int i = 0, fd; i <= n; i++) {
		struct raw_read read = { 0 };
		do
			wait_a_little();
		while ((fd = accept(bare, NULL, NULL)) < 0);
		if (i == n) {
			cr_assert(raw_say_hello(fd, NULL));
			settle_until(p.loop, &p.a.n_open, 1);
			settle(p.loop);
			cr_assert(raw_receive(fd, &read));
			cr_assert_eq(wh_frame_first(read.bytes)->kind, WH_RECORD_HELLO);
			cr_assert(raw_receive(fd, &read));
			cr_assert_eq(wh_frame_first(read.bytes)->kind, WH_RECORD_MESSAGE);
		}
		close(fd);
	}
	while (n)
		close(fds[--n]);
	close(bare);
	pair_free(&p);
}

static void comes_later(const char *address)
{
	cr_assert_eq(try_connect(address, 10000000000, WHARF_PORT_AWAIT_LISTENER), 0);
	for (uint32_t i = 0; i < 3; i++)
		cr_assert_eq(wharf_send_bytes(p.a.port, i, "early", 5), 0);
	wait_a_little();
	cr_assert_eq(p.a.n_open + p.a.n_closed, 0);
	listen_now(address);
	settle_until(p.loop, &p.b.n_open, 1);
	settle(p.loop);
	cr_assert_eq(p.a.n_open, 1);
	cr_assert_eq(p.b.n_messages, 3);
	for (uint32_t i = 0; i < 3; i++)
		cr_assert_eq(p.b.seen[i].type, i);
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_LOCAL);
	pair_free(&p);
}

Test(connect, waits_for_a_listener_that_comes_later)
{
	start();
	comes_later(name);
}

Test(connect, waits_for_a_path_that_comes_later)
{
	char directory[HARNESS_PATH_MAX], path[HARNESS_PATH_MAX + 8];

	harness_dir_make(directory);
	snprintf(path, sizeof(path), "%s/s", directory);
	start();
	comes_later(path);
	harness_dir_remove(directory);
}

Test(connect, waits_for_nobody_unless_it_is_asked_to)
{
	start();
	cr_assert_eq(try_connect(name, -1, 0), -ECONNREFUSED);
	cr_assert_eq(try_connect("/nonexistent/socket", -1, 0), -ENOENT);
	cr_assert_eq(try_connect("/nonexistent/socket", 0, WHARF_PORT_AWAIT_LISTENER), -EINVAL);
	cr_assert_eq(wharf_loop_run(p.loop), 0, "no port is left");
	pair_free(&p);
}

Test(connect, a_deadline_says_what_it_waited_for)
{
	int fds[8], n = 0, bare;

	start();
	cr_assert_eq(try_connect(name, 20000000, WHARF_PORT_AWAIT_LISTENER), 0);
	cr_assert_eq(wharf_send_bytes(p.a.port, 5, "early", 5), 0);
	cr_assert_eq(wharf_loop_run(p.loop), 0);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_TIMEOUT);
	cr_assert_eq(p.a.reason.error, ECONNREFUSED);
	cr_assert_eq(p.a.reason.unsent_messages, 1);
	cr_assert_not_null(strstr(p.a.reason_text, name), "%s", p.a.reason_text);
	cr_assert_eq(try_connect("/nonexistent/socket", 20000000, WHARF_PORT_AWAIT_LISTENER), 0);
	cr_assert_eq(wharf_loop_run(p.loop), 0);
	cr_assert_eq(p.a.reason.error, ENOENT);
	cr_assert_not_null(strstr(p.a.reason_text, "/nonexistent/socket"), "%s", p.a.reason_text);
	bare = raw_listen(name, SOCK_SEQPACKET);
	while (n < 8 && (fds[n] = raw_socket(connect, name, SOCK_SEQPACKET)) >= 0)
		n++;
	cr_assert_eq(try_connect(name, 20000000, 0), 0);
	cr_assert_eq(wharf_loop_run(p.loop), 0);
	cr_assert_eq(p.a.n_closed, 3);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_TIMEOUT);
	cr_assert_eq(p.a.reason.error, EBUSY);
	while (n)
		close(fds[--n]);
	close(bare);
	pair_free(&p);
}

Test(connect, what_waiting_cannot_mend_ends_it)
{
	char directory[HARNESS_PATH_MAX], path[HARNESS_PATH_MAX + 8];
	int bare;

	harness_dir_make(directory);
	snprintf(path, sizeof(path), "%s/s", directory);
	start();
	cr_assert_eq(try_connect(path, -1, WHARF_PORT_AWAIT_LISTENER), 0);
	bare = raw_listen(path, SOCK_STREAM);
	cr_assert_eq(wharf_loop_run(p.loop), 0);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_ERROR);
	cr_assert_eq(p.a.reason.error, EPROTOTYPE);
	cr_assert_eq(try_connect(path, -1, WHARF_PORT_AWAIT_LISTENER), -EPROTOTYPE);
	close(bare);
	pair_free(&p);
	harness_dir_remove(directory);
}

Test(connect, waiting_does_not_allocate)
{
	unsigned before;

	start();
	cr_assert_eq(try_connect(name, -1, WHARF_PORT_AWAIT_LISTENER), 0);
	before = n_allocs;
	wait_a_little();
	cr_assert_eq(n_allocs, before);
	pair_free(&p);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_LOOP_FREED);
}

Test(connect, ends_like_any_port_while_it_waits_and_leaves_nothing)
{
	struct harness_snapshot before;
	const char *leak;

	pair_open(&p, NULL, NULL); /* what a process has once */
	pair_free(&p);
	harness_snapshot_take(&before);
	start();
	cr_assert_eq(try_connect(name, -1, WHARF_PORT_AWAIT_LISTENER), 0);
	cr_assert_eq(wharf_port_pause(p.a.port), 0);
	cr_assert_eq(wharf_port_resume(p.a.port), 0);
	cr_assert_eq(wharf_port_abort(p.a.port, 3), 0);
	cr_assert_eq(wharf_loop_run(p.loop), 0);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_ABORTED);
	cr_assert_eq(try_connect(name, -1, WHARF_PORT_AWAIT_LISTENER), 0);
	cr_assert_eq(wharf_send_bytes(p.a.port, 5, "early", 5), 0);
	cr_assert_eq(wharf_port_close(p.a.port, 20000000), 0);
	cr_assert_eq(wharf_loop_run(p.loop), 0);
	cr_assert_eq(p.a.n_closed, 2);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_TIMEOUT);
	cr_assert_eq(p.a.reason.unsent_messages, 1);
	cr_assert_eq(try_connect(name, -1, WHARF_PORT_AWAIT_LISTENER), 0);
	pair_free(&p);
	cr_assert_eq(p.a.n_closed, 3);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_LOOP_FREED);
	leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

/* ---- Who ---- */

enum { STRANGER = 65533 };

static int become_stranger(void)
{
	return setresuid(STRANGER, STRANGER, STRANGER);
}

/* Listens as another user, and is told nothing by who looks before he talks. */
struct squat {
	int ready[2];
	int after[2]; /* an end of file: the name may be taken now */
};

static int squat(void *arg)
{
	struct squat *s = arg;
	char byte;
	int bare, fd;

	close(s->after[1]);
	HARNESS_REQUIRE(become_stranger() == 0);
	HARNESS_REQUIRE(read(s->after[0], &byte, 1) == 0);
	bare = raw_listen(name, SOCK_SEQPACKET);
	HARNESS_REQUIRE(write(s->ready[1], "", 1) == 1);
	while ((fd = accept(bare, NULL, NULL)) < 0)
		HARNESS_REQUIRE(errno == EAGAIN && usleep(1000) == 0);
	return read(fd, &byte, 1) == 0 ? 0 : 1;
}

static void start_squatter(struct harness_child *child, struct squat *s)
{
	cr_assert(!pipe(s->ready) && !pipe(s->after));
	harness_child_start(child, squat, s);
	close(s->after[0]);
}

Test(connect, says_nothing_to_a_squatter)
{
	struct harness_child child;
	struct squat s;
	char byte;

	if (geteuid())
		cr_skip_test("only root can be others");
	start();
	start_squatter(&child, &s);
	close(s.after[1]);
	cr_assert_eq(read(s.ready[0], &byte, 1), 1);
	cr_assert_eq(try_connect(name, 0, WHARF_PORT_SAME_USER), -EACCES);
	cr_assert_eq(harness_child_wait(&child, 10000), 0);
	pair_free(&p);
}

Test(connect, says_nothing_to_a_squatter_who_came_while_it_waited)
{
	struct harness_child child;
	struct squat s;

	if (geteuid())
		cr_skip_test("only root can be others");
	start();
	start_squatter(&child, &s);
	cr_assert_eq(try_connect(name, -1, WHARF_PORT_SAME_USER | WHARF_PORT_AWAIT_LISTENER), 0);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "secret", 6), 0);
	wait_a_little();
	close(s.after[1]);
	cr_assert_eq(wharf_loop_run(p.loop), 0);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_REFUSED);
	cr_assert_eq(p.a.reason.error, EACCES);
	cr_assert_eq(p.a.reason.unsent_messages, 1);
	cr_assert_eq(harness_child_wait(&child, 10000), 0);
	pair_free(&p);
}

static int connect_as_stranger(void *arg)
{
	char byte;
	int fd;

	(void)arg;
	HARNESS_REQUIRE(become_stranger() == 0);
	fd = raw_socket(connect, name, SOCK_SEQPACKET);
	HARNESS_REQUIRE(fd >= 0);
	while (read(fd, &byte, 1) < 0)
		HARNESS_REQUIRE(errno == EAGAIN && usleep(1000) == 0);
	return 0;
}

Test(connect, a_port_of_one_user_is_not_accepted_from_another)
{
	struct harness_child child;

	if (geteuid())
		cr_skip_test("only root can be others");
	start();
	listen_now(name);
	accept_flags = WHARF_PORT_SAME_USER;
	harness_child_start(&child, connect_as_stranger, NULL);
	settle_until(p.loop, &n_accepted, 1);
	cr_assert_eq(accept_result, -EACCES);
	cr_assert_eq(harness_child_wait(&child, 10000), 0);
	cr_assert_eq(try_connect(name, 0, WHARF_PORT_SAME_USER), 0);
	settle_until(p.loop, &p.a.n_open, 1);
	pair_free(&p);
}

static int say_hello_as_stranger(void *arg)
{
	int fd = *(int *)arg;
	struct raw_read read;
	uint32_t code;

	HARNESS_REQUIRE(become_stranger() == 0);
	HARNESS_REQUIRE(raw_say_hello(fd, NULL));
	while (!raw_receive(fd, &read))
		HARNESS_REQUIRE(errno == EAGAIN && usleep(1000) == 0);
	HARNESS_REQUIRE(wh_frame_first(read.bytes)->kind == WH_RECORD_HELLO);
	while (!raw_receive(fd, &read))
		HARNESS_REQUIRE(errno == EAGAIN && usleep(1000) == 0);
	HARNESS_REQUIRE(wh_frame_first(read.bytes)->kind == WH_RECORD_BYE);
	code = ((const struct wh_bye *)(const void *)wh_frame_first(read.bytes))->code;
	HARNESS_REQUIRE(!raw_receive(fd, &read));
	return code == WH_BYE_REFUSED ? 0 : 1;
}

Test(connect, the_hello_proves_who_holds_an_end_of_a_pair)
{
	struct harness_child child;
	int fd;

	if (geteuid())
		cr_skip_test("only root can be others");
	p = (struct pair){ 0 };
	fd = pair_open_half(&p, WHARF_OPT(port, .flags = WHARF_PORT_SAME_USER));
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "secret", 6), 0);
	harness_child_start(&child, say_hello_as_stranger, &fd);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_REFUSED);
	cr_assert_eq(p.a.reason.error, EACCES);
	cr_assert_eq(p.a.reason.unsent_messages, 1);
	cr_assert_eq(p.a.n_open, 0);
	cr_assert_eq(p.a.peer_at_end.uid, STRANGER);
	cr_assert_eq(harness_child_wait(&child, 10000), 0);
	close(fd);
	pair_free(&p);
}

Test(connect, the_same_user_talks)
{
	pair_open(&p, WHARF_OPT(port, .flags = WHARF_PORT_SAME_USER), WHARF_OPT(port, .flags = WHARF_PORT_SAME_USER));
	pair_free(&p);
}
