/* SPDX-License-Identifier: MIT */
/* The engine and listening sockets: crowds, errors, and connections that nobody takes. */
#include "test-engine.h"

#include <sys/resource.h>
#include <sys/un.h>

TestSuite(engine, .timeout = 60);

enum { BACKLOG = 128 };

struct door {
	struct wh_link link;
	struct wh_accepts accepts;
	struct sockaddr_un address;
	socklen_t length;
};

static void open_door(struct wh_engine *engine, struct door *door)
{
	char name[HARNESS_PATH_MAX];
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	*door = (struct door){ .address.sun_family = AF_UNIX };
	harness_abstract_name(name);
	door->length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name));
	memcpy(door->address.sun_path + 1, name + 1, strlen(name) - 1);
	cr_assert_eq(bind(fd, (struct sockaddr *)&door->address, door->length), 0);
	cr_assert_eq(listen(fd, BACKLOG), 0);
	wh_engine_attach(engine, &door->link, fd);
	wh_engine_accept(engine, &door->link, &door->accepts);
}

static int knock(struct door *door)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	cr_assert_eq(connect(fd, (struct sockaddr *)&door->address, door->length), 0);
	return fd;
}

/* Each says its number, before anybody accepts it. */
static void knock_all(struct door *door, int *ret_clients, int n)
{
	for (int i = 0; i < n; i++) {
		ret_clients[i] = knock(door);
		cr_assert_eq(send(ret_clients[i], &i, sizeof(i), 0), sizeof(i));
	}
}

static void close_all(const int *fds, int n)
{
	for (int i = 0; i < n; i++)
		close(fds[i]);
}

static void take_connection(struct wh_engine *engine, struct door *door, int number)
{
	struct wh_event event;
	int said = -1;

	await(engine, WH_EVENT_ACCEPTED, &event);
	cr_assert_eq(event.link, &door->link);
	cr_assert(fcntl(event.result, F_GETFD) & FD_CLOEXEC);
	cr_assert_eq(recv(event.result, &said, sizeof(said), MSG_DONTWAIT), sizeof(said));
	cr_assert_eq(said, number, "connection %d instead of %d", said, number);
	close(event.result);
}

static void assert_no_leak(struct harness_snapshot *before)
{
	const char *leak = harness_snapshot_diff(before);

	cr_assert(!leak, "%s", leak);
}

ENGINE_TEST(accepts_until_detached)
{
	enum { N = 5 };
	struct harness_snapshot before;
	struct wh_engine *engine;
	struct door door;
	int clients[N];

	harness_snapshot_take(&before);
	engine = open_plain(rung);
	open_door(engine, &door);
	wh_engine_accept(engine, &door.link, &door.accepts);
	cr_assert_eq(wh_engine_turn(engine, 0), 0);
	knock_all(&door, clients, N);
	for (int i = 0; i < N - 2; i++)
		take_connection(engine, &door, i);
	detach(engine, &door.link);
	close_all(clients, N);
	wh_engine_close(engine);
	assert_no_leak(&before);
}

ENGINE_TEST(crowd_is_accepted_many_at_once_and_waits_in_the_backlog)
{
	enum { N = 100 };
	struct wh_engine *engine = open_plain(rung);
	struct door door;
	uint64_t n_enters;
	size_t n_fds;
	int clients[N];

	open_door(engine, &door);
	knock_all(&door, clients, N);
	n_fds = harness_count_fds();
	cr_assert_gt(wh_engine_turn(engine, 0), 0);
	for (int i = 0; i < 10; i++)
		cr_assert_gt(wh_engine_turn(engine, 0), 0);
	cr_assert_eq(harness_count_fds(), n_fds + WH_ACCEPTS_MAX);
	n_enters = engine->n_enters;
	for (int i = 0; i < N; i++)
		take_connection(engine, &door, i);
	cr_assert_leq(engine->n_enters - n_enters, 2 * N / WH_ACCEPTS_MAX);
	cr_assert_eq(harness_count_fds(), n_fds);
	detach(engine, &door.link);
	close_all(clients, N);
	wh_engine_close(engine);
}

ENGINE_TEST(crowds_come_again_and_again)
{
	enum { ROUNDS = 10, N = 2 * WH_ACCEPTS_MAX + 3 };
	struct wh_engine *engine = open_plain(rung);
	struct door door;
	int clients[N];

	open_door(engine, &door);
	for (int i = 0; i < ROUNDS; i++) {
		/* Some requests sleep by now, others are new. */
		cr_assert_eq(wh_engine_turn(engine, 0), 0);
		knock_all(&door, clients, i + 1);
		for (int n = 0; n <= i; n++)
			take_connection(engine, &door, n);
		close_all(clients, i + 1);
		knock_all(&door, clients, N);
		for (int n = 0; n < N; n++)
			take_connection(engine, &door, n);
		close_all(clients, N);
	}
	detach(engine, &door.link);
	wh_engine_close(engine);
}

ENGINE_TEST(events_of_others_come_between_those_of_a_crowd)
{
	enum { N = 100 };
	struct wh_engine *engine = open_plain(rung);
	struct wh_link link;
	struct wh_event event;
	struct door door;
	int clients[N], peer = open_link(engine, &link), n = 0;

	open_door(engine, &door);
	knock_all(&door, clients, N);
	cr_assert_gt(wh_engine_turn(engine, 0), 0);
	cr_assert_eq(put_number(peer, 7, 10), 0);
	while (next_event(engine, &event) && event.kind != WH_EVENT_FRAME) {
		cr_assert_eq(event.kind, WH_EVENT_ACCEPTED);
		close(event.result);
		n++;
	}
	cr_assert_eq(number_of(&event), 7);
	cr_assert_leq(n, 2 * WH_ACCEPTS_MAX);
	wh_engine_frame_done(engine, &event);
	detach(engine, &door.link);
	detach(engine, &link);
	close(peer);
	close_all(clients, N);
	wh_engine_close(engine);
}

ENGINE_TEST(detach_closes_connections_that_nobody_took)
{
	enum { N = 40 };
	struct harness_snapshot before;
	struct wh_engine *engine;
	struct wh_event event;
	struct door door;
	int clients[N];
	char byte;

	harness_snapshot_take(&before);
	engine = open_plain(rung);
	open_door(engine, &door);
	knock_all(&door, clients, N);
	for (int i = 0; i < 3; i++)
		take_connection(engine, &door, i);
	cr_assert_gt(wh_engine_turn(engine, 0), 0);
	/* What those three made room for is asked of the kernel together with the end. */
	wh_engine_detach(engine, &door.link);
	cr_assert(next_event(engine, &event));
	cr_assert_eq(event.kind, WH_EVENT_DETACHED);
	cr_assert(!wh_engine_next(engine, &event));
	memset(&door.accepts, 0xee, sizeof(door.accepts));
	cr_assert_eq(wh_engine_turn(engine, 0), 0);
	for (int i = 0; i < N; i++)
		cr_assert_leq(recv(clients[i], &byte, 1, 0), 0);
	close_all(clients, N);
	wh_engine_close(engine);
	assert_no_leak(&before);
}

ENGINE_TEST(connection_that_comes_while_detaching_is_closed)
{
	struct harness_snapshot before;
	struct wh_engine *engine;
	struct door door;
	int client;
	char byte;

	harness_snapshot_take(&before);
	engine = open_plain(rung);
	open_door(engine, &door);
	cr_assert_eq(wh_engine_turn(engine, 0), 0);
	client = knock(&door);
	detach(engine, &door.link);
	cr_assert_leq(recv(client, &byte, 1, 0), 0);
	close(client);
	wh_engine_close(engine);
	assert_no_leak(&before);
}

ENGINE_TEST(connections_that_nobody_took_are_closed_when_the_engine_breaks)
{
	enum { N = 3 };
	struct wh_engine *engine = open_plain(rung);
	struct wh_event event;
	struct door door;
	int clients[N], broken;
	size_t n_fds;

	open_door(engine, &door);
	n_fds = harness_count_fds();
	knock_all(&door, clients, N);
	cr_assert_gt(wh_engine_turn(engine, 0), 0);
	cr_assert_eq(harness_count_fds(), n_fds + 2 * N);
	broken = break_engine(engine);
	wh_engine_detach(engine, &door.link);
	cr_assert_eq(wh_engine_turn(engine, 0), -EBADF);
	cr_assert(wh_engine_next(engine, &event));
	cr_assert_eq(event.kind, WH_EVENT_DETACHED);
	cr_assert_eq(harness_count_fds(), n_fds + N - 1);
	repair_engine(engine, broken);
	wh_engine_close(engine);
	close_all(clients, N);
}

static int count_what_is_closed(void *arg)
{
	size_t n_fds = harness_count_fds();

	wh_link_forked(arg);
	return (int)(n_fds - harness_count_fds());
}

ENGINE_TEST(child_closes_its_copies_of_connections_that_nobody_took)
{
	enum { N = 4 };
	struct wh_engine *engine = open_plain(rung);
	struct door door;
	int clients[N];

	open_door(engine, &door);
	knock_all(&door, clients, N);
	cr_assert_gt(wh_engine_turn(engine, 0), 0);
	cr_assert_eq(harness_run(count_what_is_closed, &door.link, 20000), 1 + N);
	detach(engine, &door.link);
	close_all(clients, N);
	wh_engine_close(engine);
}

ENGINE_TEST(accept_error_stops_accepting)
{
	struct wh_engine *engine = open_plain(rung);
	struct wh_accepts accepts;
	struct wh_link link;
	struct wh_event event;
	int fds[2];

	open_pair(fds);
	wh_engine_attach(engine, &link, fds[0]);
	wh_engine_accept(engine, &link, &accepts); /* does not listen */
	await(engine, WH_EVENT_ACCEPT_ERROR, &event);
	cr_assert_eq(event.result, -EINVAL);
	for (int i = 0; i < 5; i++)
		cr_assert_eq(wh_engine_turn(engine, 0), 0);
	wh_engine_accept(engine, &link, &accepts);
	await(engine, WH_EVENT_ACCEPT_ERROR, &event);
	detach(engine, &link);
	close(fds[1]);
	wh_engine_close(engine);
}

/* In a child, because the limit would stay. */
static int accept_without_room(void *arg)
{
	enum { N = 12, ROOM = 4 };
	struct wh_event event;
	struct wh_engine *engine;
	struct rlimit limit, old;
	struct door door;
	int clients[N], late, probe, n = 0;

	HARNESS_REQUIRE(open_bare(*(uint32_t *)arg, &engine) == 0);
	open_door(engine, &door);
	knock_all(&door, clients, N);
	HARNESS_REQUIRE((late = socket(AF_UNIX, SOCK_SEQPACKET, 0)) >= 0);
	HARNESS_REQUIRE((probe = dup(0)) >= 0);
	close(probe);
	HARNESS_REQUIRE(getrlimit(RLIMIT_NOFILE, &old) == 0);
	limit = old;
	limit.rlim_cur = (rlim_t)probe + ROOM;
	HARNESS_REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	HARNESS_REQUIRE(wh_engine_turn(engine, -1) > 0);
	while (wh_engine_next(engine, &event) && event.kind == WH_EVENT_ACCEPTED && n < ROOM)
		n++;
	HARNESS_REQUIRE(n == ROOM);
	HARNESS_REQUIRE(event.kind == WH_EVENT_ACCEPT_ERROR && event.result == -EMFILE);
	/* Said once, whoever comes. */
	HARNESS_REQUIRE(connect(late, (struct sockaddr *)&door.address, door.length) == 0);
	for (int i = 0; i < 5; i++)
		HARNESS_REQUIRE(wh_engine_turn(engine, 0) == 0);
	/* It is said again to whoever asks again. */
	wh_engine_accept(engine, &door.link, &door.accepts);
	HARNESS_REQUIRE(wh_engine_turn(engine, -1) == 1 && wh_engine_next(engine, &event));
	HARNESS_REQUIRE(event.kind == WH_EVENT_ACCEPT_ERROR && event.result == -EMFILE);
	HARNESS_REQUIRE(setrlimit(RLIMIT_NOFILE, &old) == 0);
	wh_engine_accept(engine, &door.link, &door.accepts);
	while (n < N + 1) {
		HARNESS_REQUIRE(next_event(engine, &event) && event.kind == WH_EVENT_ACCEPTED);
		n++;
	}
	return 0;
}

ENGINE_TEST(without_descriptors_the_error_comes_once_and_behind_what_was_accepted)
{
	wh_engine_close(open_plain(rung)); /* skips here, not in the child */
	cr_assert_eq(harness_run(accept_without_room, &rung, 20000), 0);
}
