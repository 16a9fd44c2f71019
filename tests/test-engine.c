/* SPDX-License-Identifier: MIT */
/* The engine as the loop sees it: frames, descriptors, ends; at every step of the feature ladder. */
#include "test-engine.h"

#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "compat.h"

TestSuite(engine, .timeout = 60);

/* ---- Frames ------------------------------------------------------------------------------------------------------ */

ENGINE_TEST(frames_go_both_ways_in_order)
{
	enum { N = 1000 };
	struct wh_engine *engine = open_plain(rung);
	static struct side sides[2];
	struct wh_event event;
	int fds[2];

	open_pair(fds);
	for (int i = 0; i < 2; i++) {
		wh_engine_attach(engine, &sides[i].link, fds[i]);
		wh_engine_receive(engine, &sides[i].link);
		send_number(engine, &sides[i]);
	}
	while (sides[0].n_received < N || sides[1].n_received < N) {
		cr_assert(next_event(engine, &event));
		struct side *side = wh_container_of(event.link, struct side, link);

		switch (event.kind) {
		case WH_EVENT_SENT:
			cr_assert_null(side->link.tx);
			cr_assert_eq(side->link.sent_result, 0);
			if (side->n_sent < N)
				send_number(engine, side);
			break;
		case WH_EVENT_FRAME:
			cr_assert_eq((uintptr_t)event.bytes % 64, 0);
			cr_assert_eq(event.n_fds, 0);
			cr_assert(!event.fds_lost && !event.truncated && !event.has_credentials);
			cr_assert_eq(number_of(&event), side->n_received);
			side->n_received++;
			wh_engine_frame_done(engine, &event);
			break;
		default:
			cr_assert_fail("event %d", event.kind);
		}
	}
	detach(engine, &sides[1].link);
	await(engine, WH_EVENT_EOF, &event);
	detach(engine, &sides[0].link);
	wh_engine_close(engine);
}

ENGINE_TEST(frame_of_the_largest_size_arrives_whole_and_a_larger_one_is_marked)
{
	struct wh_engine *engine = open_plain(rung);
	struct wh_link link;
	struct wh_event event;
	int peer = open_link(engine, &link);

	cr_assert_eq(put_number(peer, 1, 4096), 0);
	cr_assert_eq(put_number(peer, 2, 4097), 0);
	await(engine, WH_EVENT_FRAME, &event);
	cr_assert_eq(event.size, 4096);
	cr_assert(!event.truncated);
	cr_assert_eq(((const unsigned char *)event.bytes)[4095], 1);
	wh_engine_frame_done(engine, &event);
	await(engine, WH_EVENT_FRAME, &event);
	cr_assert_eq(event.size, 4096);
	cr_assert(event.truncated);
	wh_engine_frame_done(engine, &event);
	close(peer);
	await(engine, WH_EVENT_EOF, &event);
	detach(engine, &link);
	wh_engine_close(engine);
}

ENGINE_TEST(more_sends_than_the_submission_queue_has_room_for)
{
	enum { N = 300 };
	struct wh_engine *engine = open_plain(rung);
	static struct side sides[N];
	int peers[N];

	for (uint32_t i = 0; i < N; i++) {
		peers[i] = open_link(engine, &sides[i].link);
		sides[i].n_sent = i;
		send_number(engine, &sides[i]);
	}
	cr_assert_geq(wh_engine_turn(engine, 0), N);
	for (uint32_t i = 0; i < N; i++) {
		uint32_t number;

		cr_assert_null(sides[i].link.tx);
		cr_assert_eq(sides[i].link.sent_result, 0);
		cr_assert_eq(recv(peers[i], &number, sizeof(number), MSG_DONTWAIT), sizeof(number));
		cr_assert_eq(number, i);
		detach(engine, &sides[i].link);
		close(peers[i]);
	}
	wh_engine_close(engine);
}

ENGINE_TEST(failed_send_says_why)
{
	struct wh_engine *engine = open_plain(rung);
	struct side side = { .n_sent = 0 };
	struct wh_event event;
	int fds[2];

	open_pair(fds);
	wh_engine_attach(engine, &side.link, fds[0]);
	close(fds[1]);
	send_number(engine, &side);
	await(engine, WH_EVENT_SENT, &event);
	cr_assert_null(side.link.tx);
	cr_assert_eq(side.link.sent_result, -EPIPE);
	detach(engine, &side.link);
	wh_engine_close(engine);
}

ENGINE_TEST(submit_alone_sends_and_clears_tx)
{
	struct wh_engine *engine = open_plain(rung);
	struct side side = { .n_sent = 7 };
	int fds[2];
	uint32_t number;

	open_pair(fds);
	wh_engine_attach(engine, &side.link, fds[0]);
	cr_assert_eq(wh_engine_turn(engine, 0), 0);
	send_number(engine, &side);
	cr_assert_eq(side.link.tx, &side.tx);
	cr_assert_eq(wh_engine_submit(engine), 0);
	cr_assert_null(side.link.tx);
	cr_assert_eq(recv(fds[1], &number, sizeof(number), MSG_DONTWAIT), sizeof(number));
	cr_assert_eq(number, 7);
	detach(engine, &side.link);
	close(fds[1]);
	wh_engine_close(engine);
}

/* ---- Descriptors and credentials --------------------------------------------------------------------------------- */

ENGINE_TEST(most_descriptors_in_one_frame)
{
	struct harness_snapshot before;
	struct wh_engine *engine;
	static struct side sides[2];
	struct wh_event event;
	struct stat sent, received;
	int fds[2], passed[WH_ENGINE_FDS_MAX], taken[2];
	const int yes = 1;

	harness_snapshot_take(&before);
	engine = open_plain(rung);
	open_pair(fds);
	cr_assert_eq(setsockopt(fds[1], SOL_SOCKET, SO_PASSCRED, &yes, sizeof(yes)), 0);
	for (int i = 0; i < 2; i++)
		wh_engine_attach(engine, &sides[i].link, fds[i]);
	for (int i = 0; i < WH_ENGINE_FDS_MAX; i++)
		cr_assert_geq(passed[i] = eventfd((unsigned)i, 0), 0);
	wh_engine_receive(engine, &sides[1].link);
	sides[0].tx.credentials = true;
	sides[0].tx.fds = passed;
	sides[0].tx.n_fds = WH_ENGINE_FDS_MAX;
	send_number(engine, &sides[0]);
	await(engine, WH_EVENT_FRAME, &event);
	cr_assert_null(sides[0].link.tx);
	cr_assert_eq(event.n_fds, WH_ENGINE_FDS_MAX);
	cr_assert(!event.fds_lost);
	cr_assert(event.has_credentials);
	cr_assert_eq(event.credentials.pid, getpid());
	cr_assert_eq(event.credentials.uid, geteuid());
	cr_assert_eq(event.credentials.gid, getegid());
	for (uint64_t i = 0, count; i < WH_ENGINE_FDS_MAX; i++) {
		if (i) {
			cr_assert_eq(read(event.fds[i], &count, sizeof(count)), sizeof(count));
			cr_assert_eq(count, i);
		}
		cr_assert(fcntl(event.fds[i], F_GETFD) & FD_CLOEXEC);
	}
	taken[0] = event.fds[0];
	taken[1] = event.fds[WH_ENGINE_FDS_MAX - 1];
	event.fds[0] = event.fds[WH_ENGINE_FDS_MAX - 1] = -1;
	wh_engine_frame_done(engine, &event);
	cr_assert_eq(fstat(passed[0], &sent), 0);
	cr_assert_eq(fstat(taken[0], &received), 0);
	cr_assert_eq(sent.st_ino, received.st_ino);
	for (int i = 0; i < 2; i++) {
		close(taken[i]);
		detach(engine, &sides[i].link);
	}
	for (int i = 0; i < WH_ENGINE_FDS_MAX; i++)
		close(passed[i]);
	wh_engine_close(engine);

	const char *leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

/* In a child, because the limit would stay. */
static int lose_descriptors(void *arg)
{
	struct wh_engine *engine;
	struct wh_link link;
	struct wh_event event;
	struct rlimit limit;
	int fds[2], n = 0, probe;

	HARNESS_REQUIRE(open_bare(*(uint32_t *)arg, &engine) == 0);
	HARNESS_REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds) == 0);
	wh_engine_attach(engine, &link, fds[0]);
	wh_engine_receive(engine, &link);
	HARNESS_REQUIRE(wh_engine_turn(engine, 0) == 0);
	HARNESS_REQUIRE((probe = dup(0)) >= 0);
	close(probe);
	HARNESS_REQUIRE(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	limit.rlim_cur = (rlim_t)probe + 3;
	HARNESS_REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	HARNESS_REQUIRE(send_fds(fds[1], "x", 1, (int[8]){ 0 }, 8) == 0);
	while (!(n = wh_engine_turn(engine, -1)))
		;
	HARNESS_REQUIRE(n == 1 && wh_engine_next(engine, &event) && event.kind == WH_EVENT_FRAME);
	HARNESS_REQUIRE(event.fds_lost);
	HARNESS_REQUIRE(event.n_fds > 0 && event.n_fds <= 3); /* probe, and what happens to be free above it */
	wh_engine_frame_done(engine, &event);
	HARNESS_REQUIRE((n = dup(0)) == probe); /* those that did arrive are closed */
	return 0;
}

ENGINE_TEST(descriptors_that_find_no_room_are_reported_lost)
{
	wh_engine_close(open_plain(rung)); /* skips here, not in the child */
	cr_assert_eq(harness_run(lose_descriptors, &rung, 20000), 0);
}

ENGINE_TEST(empty_datagram_is_no_way_to_smuggle_descriptors)
{
	struct wh_engine *engine = open_plain(rung);
	struct wh_link link;
	struct wh_event event;
	int peer = open_link(engine, &link), passed[3] = { peer, peer, peer };
	size_t n_fds = harness_count_fds();

	cr_assert_eq(send_fds(peer, "", 0, passed, 3), 0);
	await(engine, WH_EVENT_ERROR, &event);
	cr_assert_eq(event.result, -EPROTO);
	cr_assert_eq(harness_count_fds(), n_fds);
	detach(engine, &link);
	close(peer);
	wh_engine_close(engine);
}

ENGINE_TEST(process_descriptors_that_nobody_asked_for_are_closed)
{
	struct wh_engine *engine = open_plain(rung);
	struct wh_link link;
	const int yes = 1;
	size_t n_fds;
	int fds[2];

	open_pair(fds);
	if (setsockopt(fds[0], SOL_SOCKET, SO_PASSPIDFD, &yes, sizeof(yes)) < 0)
		cr_skip_test("this kernel has no SO_PASSPIDFD");
	wh_engine_attach(engine, &link, fds[0]);
	wh_engine_receive(engine, &link);
	n_fds = harness_count_fds();
	for (uint32_t i = 0; i < 3; i++) {
		cr_assert_eq(put_number(fds[1], i, 10), 0);
		take_number(engine, i);
	}
	cr_assert_eq(harness_count_fds(), n_fds);
	detach(engine, &link);
	close(fds[1]);
	wh_engine_close(engine);
}

/* ---- The end ----------------------------------------------------------------------------------------------------- */

ENGINE_TEST(end_comes_after_every_frame)
{
	struct wh_engine *engine = open_plain(rung);
	struct wh_link link;
	struct wh_event event;
	int peer = open_link(engine, &link);

	for (uint32_t i = 0; i < 50; i++)
		cr_assert_eq(put_number(peer, i, 100), 0);
	close(peer);
	for (uint32_t i = 0; i < 50; i++)
		take_number(engine, i);
	await(engine, WH_EVENT_EOF, &event);
	cr_assert_eq(event.result, 0);
	/* It is said once, and asking again does not bring it back. */
	wh_engine_receive(engine, &link);
	cr_assert_eq(wh_engine_turn(engine, 0), 0);
	detach(engine, &link);
	wh_engine_close(engine);
}

ENGINE_TEST(reset_does_not_swallow_frames_and_descriptors)
{
	struct wh_engine *engine = open_plain(rung);
	struct wh_link link;
	struct wh_event event;
	int fds[2], passed = STDERR_FILENO;

	open_pair(fds);
	cr_assert_eq(put_number(fds[1], 0, 100), 0);
	cr_assert_eq(send_fds(fds[1], "\1\0\0\0", 4, &passed, 1), 0);
	cr_assert_eq(put_number(fds[0], 0, 100), 0); /* will never be read: a reset */
	close(fds[1]);
	wh_engine_attach(engine, &link, fds[0]);
	wh_engine_receive(engine, &link);
	take_number(engine, 0);
	await(engine, WH_EVENT_FRAME, &event);
	cr_assert_eq(number_of(&event), 1);
	cr_assert_eq(event.n_fds, 1);
	wh_engine_frame_done(engine, &event);
	await(engine, WH_EVENT_EOF, &event);
	cr_assert_eq(event.result, -ECONNRESET);
	detach(engine, &link);
	wh_engine_close(engine);
}

/* ---- Opening ----------------------------------------------------------------------------------------------------- */

/* At every point where descriptors or memory can run out. */
static int open_while_short(void *arg)
{
	struct wh_engine_config config = config_of(*(uint32_t *)arg, 64, 32768);
	struct rlimit limit = { .rlim_max = 4096 };
	struct wh_engine *engine;
	size_t n_fds = harness_count_fds();
	int r = -EMFILE;

	for (limit.rlim_cur = 3; r == -EMFILE; limit.rlim_cur++) {
		HARNESS_REQUIRE(limit.rlim_cur < 1000 && setrlimit(RLIMIT_NOFILE, &limit) == 0);
		r = wh_engine_open(&config, &engine);
	}
	HARNESS_REQUIRE(r == 0);
	wh_engine_close(engine);
	limit.rlim_cur = limit.rlim_max;
	HARNESS_REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	HARNESS_REQUIRE(harness_count_fds() == n_fds);
	HARNESS_REQUIRE(getuid() || setuid(61235) == 0);
	for (limit.rlim_cur = 1 << 20; limit.rlim_cur; limit.rlim_cur /= 2) {
		limit.rlim_max = limit.rlim_cur;
		HARNESS_REQUIRE(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
		r = wh_engine_open(&config, &engine);
		HARNESS_REQUIRE(r == 0 || r == -ENOMEM);
		HARNESS_REQUIRE(r || wh_engine_turn(engine, 0) == 0);
		wh_engine_close(r ? NULL : engine);
	}
	HARNESS_REQUIRE(harness_count_fds() == n_fds);
	return 0;
}

ENGINE_TEST(shortage_while_opening_is_passed_on_and_leaves_nothing)
{
	wh_engine_close(open_plain(rung));
	cr_assert_eq(harness_run(open_while_short, &rung, 20000), 0);
}

/* ---- Watching ---------------------------------------------------------------------------------------------------- */

ENGINE_TEST(watch_fires_once_for_any_descriptor)
{
	struct wh_engine *engine = open_plain(rung);
	struct wh_link link;
	struct wh_event event;
	int fds[2];

	cr_assert_eq(pipe2(fds, O_CLOEXEC), 0);
	wh_engine_attach(engine, &link, fds[0]);
	wh_engine_watch(engine, &link);
	cr_assert_eq(wh_engine_turn(engine, 0), 0);
	cr_assert_eq(write(fds[1], "x", 1), 1);
	await(engine, WH_EVENT_READABLE, &event);
	cr_assert_eq(event.link, &link);
	cr_assert_eq(write(fds[1], "x", 1), 1);
	for (int i = 0; i < 5; i++)
		cr_assert_eq(wh_engine_turn(engine, 0), 0);
	wh_engine_watch(engine, &link);
	await(engine, WH_EVENT_READABLE, &event);
	wh_engine_watch(engine, &link);
	detach(engine, &link);
	close(fds[1]);
	wh_engine_close(engine);
}
