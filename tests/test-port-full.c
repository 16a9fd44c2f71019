/* SPDX-License-Identifier: MIT */
/* Ports whose frames the kernel does not take yet: no room in the socket, or too many descriptors on their way. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "apart.h"
#include "harness.h"
#include "raw.h"

static struct apart q;

/* ---- A socket that is full ---- */

/* Fills a socket with datagrams that are no frames, and throws them away again. */
static unsigned fill_socket(int fd)
{
	static const char bytes[1000];
	unsigned n = 0;

	while (send(fd, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
		n++;
	cr_assert_eq(errno, EAGAIN);
	return n;
}

static void empty_socket(int fd, unsigned n)
{
	char bytes[1000];

	while (n-- > 0)
		cr_assert_eq(recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT), sizeof(bytes));
}

Test(port_full, the_first_frame_of_a_port_may_find_the_socket_full)
{
	struct raw_read read;
	unsigned n;

	apart_half(&q, NULL, NULL);
	n = fill_socket(q.fds[0]);
	apart_settle(&q);
	cr_assert_eq(stats_of(q.a.port).tx_frames, 0);
	empty_socket(q.fds[1], n);
	apart_settle(&q);
	cr_assert(raw_receive(q.fds[1], &read));
	cr_assert_eq(wh_frame_first(read.bytes)->kind, WH_RECORD_HELLO);
	cr_assert_not(raw_receive(q.fds[1], &read), "once");
	close(q.fds[1]);
	apart_free(&q);
}

static uint64_t count_refusals(const struct end *ends, int n)
{
	uint64_t refusals = 0;

	for (int i = 0; i < n; i++)
		refusals += stats_of(ends[i].port).tx_socket_full;
	return refusals;
}

Test(port_full, what_a_turn_costs_does_not_grow_with_the_ports_that_wait)
{
	enum { N = 60, TURNS = 20, TRIES = 20 };
	static struct end ends[N];
	static int peers[N];
	static unsigned n_fillers_of[N];
	struct raw_read read;
	uint64_t before;

	apart_half(&q, NULL, NULL);
	cr_assert(raw_say_hello(q.fds[1], NULL));
	for (int i = 0; i < N; i++) {
		int fds[2];

		cr_assert_eq(wharf_pair(fds), 0);
		apart_end(q.loop_a, fds[0], &ends[i], NULL);
		n_fillers_of[i] = fill_socket(fds[0]);
		peers[i] = fds[1];
	}
	apart_settle(&q);
	before = count_refusals(ends, N);
	cr_assert_geq(before, N);
	for (int i = 0; i < TURNS; i++) {
		cr_assert(raw_wake(q.fds[1]));
		cr_assert_geq(wharf_loop_step(q.loop_a, -1), 0);
	}
	cr_assert_leq(count_refusals(ends, N) - before, TURNS * TRIES);
	/* Each leaves when there is room, whoever is tried in between. */
	for (int i = 0; i < N; i++)
		empty_socket(peers[i], n_fillers_of[i]);
	apart_settle(&q);
	for (int i = 0; i < N; i++) {
		cr_assert(raw_receive(peers[i], &read));
		cr_assert_eq(wh_frame_first(read.bytes)->kind, WH_RECORD_HELLO);
		close(peers[i]);
	}
	close(q.fds[1]);
	apart_free(&q);
}

/* A port whose socket is full, and a message of a buffer and a descriptor that it cannot send. */
static wharf_pool *stuck_pool;
static struct raw_holder stuck_holder;
static unsigned n_fillers;
static int stuck_pipe[2];

static void begin_stuck(bool announced)
{
	struct wharf_part parts[2] = { { .bytes = "some", .size = 4 } };
	struct wharf_buf buf;

	stuck_pool = shared_pool(128 << 10);
	apart_half(&q, NULL, WHARF_OPT(port, .pool = stuck_pool));
	cr_assert(raw_say_hello(q.fds[1], NULL));
	apart_settle(&q);
	cr_assert_eq(q.a.n_open, 1);
	if (announced)
		send_claimed(q.a.port, stuck_pool, 60000, 1);
	apart_settle(&q);
	stuck_holder = (struct raw_holder){ 0 };
	raw_hold(q.fds[1], &stuck_holder);
	n_fillers = fill_socket(q.fds[0]);
	cr_assert_eq(pipe2(stuck_pipe, O_CLOEXEC | O_NONBLOCK), 0);
	cr_assert_eq(wharf_buf_claim(stuck_pool, 60000, &buf), 0);
	memset(buf.data, 'm', buf.size);
	parts[1].buf = &buf;
	cr_assert_eq(wharf_send(q.a.port,
		&(struct wharf_out){ .type = 1, .flags = WHARF_FDS_MOVE, .parts = parts, .n_parts = 2,
			.fds = &stuck_pipe[1], .n_fds = 1 }), 0);
	apart_settle(&q);
	cr_assert_gt(stats_of(q.a.port).tx_socket_full, 0);
}

static void finish_stuck(void)
{
	raw_holder_fini(&stuck_holder);
	close(stuck_pipe[0]);
	if (q.fds[1] >= 0)
		close(q.fds[1]);
	apart_free(&q);
	wharf_pool_unref(stuck_pool);
}

Test(port_full, what_finds_the_socket_full_arrives_whole_and_behind_its_announcement)
{
	struct raw_read read;
	const struct wh_record *r;

	begin_stuck(false);
	empty_socket(q.fds[1], n_fillers);
	apart_settle(&q);
	cr_assert(raw_receive(q.fds[1], &read));
	cr_assert_eq(wh_frame_first(read.bytes)->kind, WH_RECORD_ANNOUNCE);
	cr_assert_eq(read.n_fds, 2);
	close(read.fds[0]);
	close(read.fds[1]);
	cr_assert(raw_receive(q.fds[1], &read));
	r = wh_frame_first(read.bytes);
	cr_assert_eq(r->kind, WH_RECORD_MESSAGE);
	cr_assert_eq(r->n_items, 2);
	cr_assert_eq(read.n_fds, 1);
	cr_assert_eq(write(read.fds[0], "x", 1), 1, "it is the pipe");
	close(read.fds[0]);
	cr_assert_not(raw_receive(q.fds[1], &read), "nothing comes twice");
	finish_stuck();
}

Test(port_full, what_never_left_a_full_socket_is_given_back_with_the_port)
{
	struct wharf_pool_info info;
	char byte;

	/* What is stuck is the announcement, or the message itself. */
	for (int announced = 0; announced < 2; announced++) {
		begin_stuck(announced);
		cr_assert_eq(wharf_port_abort(q.a.port, 1), 0);
		apart_settle(&q);
		cr_assert_eq(q.a.n_closed, 1);
		cr_assert_eq(q.a.reason.unsent_messages, 1);
		close(q.fds[1]);
		q.fds[1] = -1;
		apart_settle(&q);
		WHARF_INIT(&info);
		cr_assert_eq(wharf_pool_info(stuck_pool, &info), 0);
		cr_assert_eq(info.bytes_lent, 0);
		cr_assert_eq(info.bytes_free, info.bytes, "every chunk, once");
		cr_assert_eq(read(stuck_pipe[0], &byte, 1), 0, "nobody holds the other end of the pipe");
		finish_stuck();
	}
}

/* ---- Descriptors that the kernel holds back ---- */

static void count_end(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	(void)port;
	(void)reason;
	++*(unsigned *)user;
}

static unsigned read_messages(int fd)
{
	struct raw_read read;
	unsigned n = 0;

	while (raw_receive(fd, &read)) {
		n += read.n_fds == 2; /* and the others, which are closed already */
		for (size_t i = 0; i < read.n_fds; i++)
			close(read.fds[i]);
	}
	return n;
}

static int send_too_many_descriptors(void *unused)
{
	enum { N = 9, FDS = 10 }; /* of which 7 make more than 64 */
	static const struct wharf_port_ops ops = { .size = sizeof(ops), .on_close = count_end };
	struct rlimit limit = { .rlim_cur = 64, .rlim_max = 64 };
	struct wharf_port_stats stats;
	unsigned n_closed = 0, n_read = 0;
	wharf_port *port;
	wharf_loop *loop;
	int fds[2];

	(void)unused;
	HARNESS_REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	HARNESS_REQUIRE(setuid(61235) == 0); /* nobody's: nothing of others in flight, and no capabilities */
	HARNESS_REQUIRE(wharf_loop_new(NULL, &loop) == 0);
	HARNESS_REQUIRE(wharf_pair(fds) == 0);
	HARNESS_REQUIRE(wharf_open(loop, fds[0], WHARF_OPT(port, .ops = &ops, .user = &n_closed), &port) == 0);
	HARNESS_REQUIRE(raw_say_hello(fds[1], NULL));
	for (int i = 0; i < 10; i++)
		HARNESS_REQUIRE(wharf_loop_step(loop, 0) >= 0);
	HARNESS_REQUIRE(read_messages(fds[1]) == 0);
	for (int i = 0; i < N; i++) {
		HARNESS_REQUIRE(wharf_send(port, &(struct wharf_out){ .fds = (int[FDS]){ 0 }, .n_fds = FDS }) == 0);
		HARNESS_REQUIRE(wharf_loop_step(loop, 0) >= 0);
	}
	WHARF_INIT(&stats);
	HARNESS_REQUIRE(wharf_port_stats(port, &stats) == 0);
	HARNESS_REQUIRE(stats.tx_messages < N && stats.tx_socket_full == 0);
	/* No event tells that there is room again: the port looks by itself. */
	for (int i = 0; n_read < N; i++) {
		HARNESS_REQUIRE(i < 500);
		n_read += read_messages(fds[1]);
		HARNESS_REQUIRE(wharf_loop_step(loop, 10000000) >= 0);
	}
	HARNESS_REQUIRE(n_closed == 0);
	wharf_loop_free(loop);
	return 0;
}

Test(port_full, too_many_descriptors_in_flight_are_waited_for)
{
	if (getuid())
		cr_skip_test("only root can become another user");
	cr_assert_eq(harness_run(send_too_many_descriptors, NULL, 20000), 0);
}
