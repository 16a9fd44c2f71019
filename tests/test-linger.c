/* SPDX-License-Identifier: MIT */
/* Closed ports that keep their socket for a message that was taken: what else was there does not wait for it. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "apart.h"
#include "harness.h"
#include "port.h"

#define MIB ((size_t)1 << 20)

static struct apart p;
static struct harness_snapshot before;
static wharf_pool *pool;
static int pipe_fds[2];

static uint64_t lent(void)
{
	struct wharf_pool_info info = { .size = sizeof(info) };

	cr_assert_eq(wharf_pool_info(pool, &info), 0);
	return info.bytes_lent;
}

/* How many of this size there are, after all that is on its way. */
static unsigned claimable(size_t size)
{
	static struct wharf_buf bufs[64];
	unsigned n = 0;
	bool waited = false;

	while (n < 64) {
		if (!wharf_buf_claim(pool, size, &bufs[n])) {
			n++;
			waited = false;
		} else if (!waited) {
			apart_settle(&p);
			waited = true;
		} else {
			break;
		}
	}
	for (unsigned i = 0; i < n; i++)
		wharf_buf_abandon(&bufs[i]);
	return n;
}

static bool pipe_ended(void)
{
	char byte;

	return read(pipe_fds[0], &byte, 1) == 0;
}

/* b has taken a small message; it is what b lingers for. */
static void begin(const struct wharf_port_options *b_options)
{
	/* What the process keeps from its first pool on is there. */
	wharf_pool_unref(shared_pool(MIB));
	wharf_loop_free(wharf_loop_new(NULL, &p.loop_a) ? NULL : p.loop_a);
	harness_snapshot_take(&before);
	pool = shared_pool(8 * MIB);
	cr_assert_eq(pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK), 0);
	apart_open(&p, NULL, WHARF_OPT(port, .pool = pool), b_options);
	taken_first = NULL;
	p.b.on_message = take_first;
	send_claimed(p.a.port, pool, 100, 1);
	apart_settle(&p);
	cr_assert_not_null(taken_first);
}

static void finish(void)
{
	const char *leak;

	cr_assert_gt(lent(), 0, "it is not lingering");
	wharf_msg_release(taken_first);
	apart_settle(&p);
	cr_assert_eq(lent(), 0);
	apart_free(&p);
	wharf_pool_unref(pool);
	close(pipe_fds[0]);
	leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

static struct wharf_out with_pipe(const struct wharf_part *part)
{
	return (struct wharf_out){
		.flags = WHARF_FDS_MOVE, .fds = &pipe_fds[1], .n_fds = 1, .parts = part, .n_parts = part ? 1 : 0
	};
}

static void abort_b(void)
{
	cr_assert_not(pipe_ended());
	cr_assert_eq(wharf_port_abort(p.b.port, 0), 0);
	settle(p.loop_b);
	cr_assert_eq(p.b.n_closed, 1);
	cr_assert(pipe_ended(), "the descriptor lives on");
	apart_settle(&p);
}

Test(linger, what_a_paused_port_held_is_given_back)
{
	struct wharf_out out = with_pipe(NULL);

	begin(WHARF_OPT(port, .rx_fds_max = 1));
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	cr_assert_eq(wharf_send(p.a.port, &out), 0);
	for (int i = 0; i < 7; i++)
		send_claimed(p.a.port, pool, MIB, i);
	apart_settle(&p);
	cr_assert_eq(p.b.n_messages, 1);
	abort_b();
	cr_assert_eq(claimable(MIB), 7);
	finish();
}

static void pause_call(struct end *end, const struct wharf_msg *msg)
{
	wharf_call_id id;

	cr_assert_eq(wharf_call_take(end->port, msg, NULL, &id), 0);
	cr_assert_eq(wharf_call_pause(end->port, id), 0);
}

Test(linger, what_a_paused_call_held_is_given_back)
{
	struct wharf_out out = with_pipe(NULL);
	struct wharf_buf buf;
	wharf_call_id id;

	begin(WHARF_OPT(port, .rx_fds_max = 1));
	p.b.on_message = pause_call;
	cr_assert_eq(wharf_call(p.a.port, &(struct wharf_out){ 0 }, NULL, &id), 0);
	cr_assert_eq(wharf_call_send(p.a.port, id, &out), 0);
	cr_assert_eq(wharf_buf_claim(pool, MIB, &buf), 0);
	cr_assert_eq(wharf_call_send_buf(p.a.port, id, &buf, WHARF_LAST), 0);
	apart_settle(&p);
	cr_assert_eq(p.b.n_messages, 2);
	abort_b();
	cr_assert_eq(claimable(MIB), 7);
	finish();
}

Test(linger, what_arrives_too_late_is_given_back)
{
	begin(NULL);
	for (int i = 0; i < 7; i++)
		send_claimed(p.a.port, pool, MIB, i);
	apart_settle(&p);
	cr_assert_eq(p.b.n_messages, 8);
	close(pipe_fds[1]);
	cr_assert_eq(wharf_port_abort(p.b.port, 0), 0);
	/* Sent before a reads of the end; some of it reaches b before on_close. */
	for (int i = 0; i < 6; i++) {
		send_claimed(p.a.port, pool, MIB, i);
		cr_assert_eq(wharf_loop_flush(p.loop_a), 0);
		if (i % 2)
			cr_assert_geq(wharf_loop_step(p.loop_b, 0), 0);
	}
	cr_assert_eq(p.b.n_closed, 1);
	cr_assert_eq(p.a.n_closed, 0);
	apart_settle(&p);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.b.n_messages, 8);
	cr_assert_eq(claimable(MIB), 7);
	finish();
}

/* Of two that closed in good order each lingers: one for what it holds, the other for what it has lent. */
Test(linger, segments_that_are_wanted_back_come_back)
{
	begin(NULL);
	for (int i = 0; i < 7; i++)
		send_claimed(p.a.port, pool, MIB, i);
	apart_settle(&p);
	cr_assert_eq(p.b.n_messages, 8);
	close(pipe_fds[1]);
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	apart_settle(&p);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.b.n_closed, 1);
	cr_assert_geq(claimable(60000), 60, "the memory of large buffers becomes that of small ones");
	cr_assert_geq(claimable(MIB), 6, "and back");
	finish();
}

static int has_no_socket(void *arg)
{
	HARNESS_REQUIRE(fcntl(*(int *)arg, F_GETFD) < 0);
	return 0;
}

Test(linger, a_forked_child_does_not_keep_the_socket_of_a_loop_that_is_gone)
{
	struct harness_child child;
	wharf_port *port;
	int fd;

	begin(NULL);
	close(pipe_fds[1]);
	port = wharf_port_ref(p.b.port);
	p.loop_b = wharf_loop_free(p.loop_b);
	fd = port->holding_fd;
	cr_assert_geq(fcntl(fd, F_GETFD), 0);
	harness_child_start(&child, has_no_socket, &fd);
	cr_assert_eq(harness_child_wait(&child, 5000), 0);
	wharf_port_unref(port);
	apart_settle(&p);
	finish();
}
