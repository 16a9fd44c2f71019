/* SPDX-License-Identifier: MIT */
/* Messages from other threads: whole, in order, bounded, and waited for. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "apart.h"
#include "posters.h"

TestSuite(post_message, .timeout = 60);

static struct apart q;
static struct pair p;

/* ---- What arrives ---- */

Test(post_message, arrives_as_it_was_with_all_its_parts)
{
	struct wharf_buf buf;
	int ends[2];

	apart_open(&q, NULL, NULL, WHARF_OPT(port, .rx_fds_max = 2));
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(q.a.port), 5, &buf), 0);
	memcpy(buf.data, "claim", 5);
	cr_assert_eq(pipe2(ends, O_CLOEXEC), 0);
	struct wharf_part parts[] = { { .bytes = "bytes", .size = 5 }, { .buf = &buf } };
	struct wharf_out out = { .type = 7, .parts = parts, .n_parts = 2, .fds = ends, .n_fds = 2 };
	cr_assert_eq(post_elsewhere(q.a.port, &out, 0), 0);
	cr_assert_null(buf.data, "it is the port's");
	cr_assert_eq(q.b.n_messages, 0);
	apart_settle(&q);
	cr_assert_eq(q.b.n_messages, 1);
	cr_assert_eq(q.b.seen[0].type, 7);
	cr_assert_eq(q.b.seen[0].n_fds, 2);
	cr_assert_eq(q.b.seen[0].n_slices, 2);
	cr_assert_eq(memcmp(q.b.seen[0].bytes, "bytesclaim", 10), 0);
	/* Moved: nobody but the port has them. */
	out.flags = WHARF_FDS_MOVE;
	out.n_parts = 0;
	cr_assert_eq(post_elsewhere(q.a.port, &out, 0), 0);
	apart_settle(&q);
	cr_assert_eq(q.b.n_messages, 2);
	cr_assert_lt(fcntl(ends[0], F_GETFD), 0);
	cr_assert_lt(fcntl(ends[1], F_GETFD), 0);
	apart_free(&q);
}

Test(post_message, arrives_in_order_however_large)
{
	static const char large[3 << 20];

	apart_open(&q, NULL, NULL, NULL);
	for (uint32_t i = 0; i < 20; i++) {
		struct wharf_part part = { .bytes = large, .size = i % 7 == 3 ? sizeof(large) : 10 };
		struct wharf_out out = { .type = i, .parts = &part, .n_parts = 1 };
		while (wharf_post(q.a.port, &out, 0) == -EAGAIN)
			apart_settle(&q);
	}
	apart_settle(&q);
	seen_in_order(&q.b, 20);
	cr_assert_eq(q.b.seen[3].size, sizeof(large));
	apart_free(&q);
}

static void send_1(struct wharf_task *task, int status)
{
	cr_assert_eq(status, 0);
	cr_assert_eq(wharf_send_bytes(task->user, 1, "task", 4), 0);
}

static void post_task_post(wharf_port *port, wharf_loop *loop, struct wharf_task *task)
{
	*task = (struct wharf_task){ .run = send_1, .user = port };
	cr_assert_eq(wharf_post(port, MESSAGE(0, 10), 0), 0);
	cr_assert_eq(wharf_loop_post(loop, task), 0);
	cr_assert_eq(wharf_post(port, MESSAGE(2, 10), 0), 0);
}

Test(post_message, keeps_its_place_among_tasks)
{
	struct wharf_task task;

	pair_open(&p, NULL, NULL);
	post_task_post(p.a.port, p.loop, &task);
	settle(p.loop);
	seen_in_order(&p.b, 3);
	pair_free(&p);
	/* Before the hellos, too, when everything waits. */
	pair_start(&p, NULL, NULL);
	post_task_post(p.a.port, p.loop, &task);
	settle(p.loop);
	seen_in_order(&p.b, 3);
	pair_free(&p);
}

static void look_at_the_way(struct wharf_task *task, int status)
{
	wharf_port *port = task->user;

	cr_assert_eq(status, 0);
	cr_assert(port->tx_plain, "nothing waits");
	task->user = NULL;
}

Test(post_message, leaves_the_way_of_sends_free)
{
	struct wharf_task task = { .run = look_at_the_way };

	apart_open(&q, NULL, NULL, NULL);
	task.user = q.a.port;
	for (int i = 0; i < 3; i++)
		cr_assert_eq(wharf_post(q.a.port, MESSAGE(1, 100), 0), 0);
	cr_assert_eq(wharf_loop_post(q.loop_a, &task), 0);
	apart_settle(&q);
	cr_assert_null(task.user);
	cr_assert_eq(q.b.n_messages, 3);
	apart_free(&q);
}

static pthread_t loops_thread;

static void *alloc_here(size_t bytes, void *user)
{
	cr_assert(pthread_equal(pthread_self(), loops_thread));
	return counting_alloc(bytes, user);
}

Test(post_message, takes_none_of_the_loops_memory)
{
	loops_thread = pthread_self();
	apart_open(&q, WHARF_OPT(loop, .alloc = alloc_here, .free = counting_free), NULL, NULL);
	for (uint32_t i = 0; i < 10; i++)
		cr_assert_eq(post_elsewhere(q.a.port, MESSAGE(i, 1000), 0), 0);
	apart_settle(&q);
	seen_in_order(&q.b, 10);
	apart_free(&q);
	cr_assert_eq(n_counted, 0);
}

Test(post_message, what_travels_inline_and_what_is_shared_arrives_too)
{
	wharf_pool *pool = shared_pool(1 << 20);
	struct wharf_buf buf, again;

	apart_open(&q, NULL, WHARF_OPT(port, .pool = pool), NULL);
	cr_assert_eq(wharf_buf_claim(pool, 1000, &buf), 0);
	memset(buf.data, 5, 1000);
	cr_assert_eq(wharf_buf_ref(&buf, &again), 0);
	cr_assert_eq(wharf_post_buf(q.a.port, 0, &buf, 0), 0);
	/* The same bytes for the same peer cannot be lent twice: they are copied. */
	cr_assert_eq(wharf_post_buf(q.a.port, 1, &again, 0), 0);
	apart_settle(&q);
	seen_in_order(&q.b, 2);
	cr_assert_eq(q.b.seen[1].size, 1000);
	cr_assert_eq(q.b.seen[1].bytes[99], 5);
	apart_free(&q);
	apart_open(&q, NULL, WHARF_OPT(port, .pool = pool, .flags = WHARF_PORT_INLINE), NULL);
	cr_assert_eq(wharf_buf_claim(pool, 100000, &buf), 0);
	cr_assert_eq(wharf_post_buf(q.a.port, 0, &buf, 0), 0);
	apart_settle(&q);
	seen_in_order(&q.b, 1);
	cr_assert_eq(q.b.seen[0].size, 100000);
	apart_free(&q);
	wharf_pool_unref(pool);
}

/* ---- The cap ---- */

Test(post_message, is_refused_past_the_cap_and_welcome_again_after)
{
	uint32_t n;

	apart_half(&q, NULL, WHARF_OPT(port, .tx_queued_bytes_max = 50000));
	n = fill(q.a.port, 5000);
	cr_assert(n >= 8 && n <= 10, "%u", n);
	apart_settle(&q);
	cr_assert_eq(wharf_post(q.a.port, MESSAGE(n, 5000), 0), -EAGAIN, "there is no hello yet");
	cr_assert_eq(q.a.n_writable, 0);
	cr_assert_eq(stats_of(q.a.port).tx_queued_bytes, n * 5000);
	/* What the loop's thread sends has a cap of its own, and is the first to wait there. */
	cr_assert_eq(wharf_send_bytes(q.a.port, n, filler, 60000), 0);
	cr_assert_eq(wharf_send_bytes(q.a.port, n + 1, filler, 60000), -EAGAIN);
	cr_assert_eq(apart_peer_loop(NULL, &q.loop_b), 0);
	apart_end(q.loop_b, q.fds[1], &q.b, NULL);
	apart_settle(&q);
	seen_in_order(&q.b, n + 1);
	cr_assert_eq(q.a.n_writable, 1);
	cr_assert_eq(fill(q.a.port, 5000), n, "all of it is free again");
	apart_settle(&q);
	cr_assert_eq(q.a.n_writable, 2);
	apart_free(&q);
}

Test(post_message, finds_room_whatever_its_size_where_nothing_waits)
{
	apart_open(&q, NULL, WHARF_OPT(port, .tx_queued_bytes_max = 10000), NULL);
	for (uint32_t i = 0; i < 3; i++) {
		cr_assert_eq(wharf_post(q.a.port, MESSAGE(i, sizeof(filler)), 0), 0);
		cr_assert_eq(wharf_post(q.a.port, MESSAGE(i, 0), 0), -EAGAIN);
		apart_settle(&q);
	}
	seen_in_order(&q.b, 3);
	apart_free(&q);
}

Test(post_message, never_brings_more_descriptors_on_the_way_than_may_be)
{
	int fds[10];
	struct wharf_out out = { .fds = fds, .n_fds = 10 };

	for (size_t i = 0; i < 10; i++)
		fds[i] = STDERR_FILENO;
	apart_open(&q, NULL, WHARF_OPT(port, .tx_fds_max = 20), WHARF_OPT(port, .rx_fds_max = 10));
	cr_assert_eq(wharf_port_pause(q.b.port), 0);
	for (uint32_t i = 0; i < 4; i++) {
		out.type = i;
		cr_assert_eq(wharf_post(q.a.port, &out, 0), 0);
		if (i == 1) {
			cr_assert_eq(wharf_post(q.a.port, &out, 0), -EAGAIN);
			apart_settle(&q);
		}
	}
	apart_settle(&q);
	cr_assert_eq(stats_of(q.a.port).tx_fds, 20, "the others wait");
	cr_assert_eq(wharf_send(q.a.port, &out), -EAGAIN);
	cr_assert_eq(wharf_port_resume(q.b.port), 0);
	apart_settle(&q);
	seen_in_order(&q.b, 4);
	out.type = 4;
	cr_assert_eq(wharf_send(q.a.port, &out), 0);
	apart_settle(&q);
	seen_in_order(&q.b, 5);
	apart_free(&q);
}

/* ---- Waiting ---- */

static void *post_all(void *arg)
{
	struct poster *poster = arg;

	for (uint32_t i = 0; i < 200 && poster->result >= 0; i++)
		poster->result = wharf_post(poster->port, MESSAGE(i, 5000), poster->timeout_ns);
	wharf_loop_stop(wharf_port_loop(poster->port));
	return NULL;
}

Test(post_message, waits_for_room_as_long_as_it_takes)
{
	struct poster poster;

	pair_open(&p, WHARF_OPT(port, .tx_queued_bytes_max = 20000), NULL);
	poster = (struct poster){ .port = p.a.port, .timeout_ns = -1 };
	cr_assert_eq(pthread_create(&poster.thread, NULL, post_all, &poster), 0);
	cr_assert_eq(wharf_loop_run(p.loop), 0);
	cr_assert_eq(result(&poster), 0);
	settle(p.loop);
	seen_in_order(&p.b, 200);
	pair_free(&p);
}

Test(post_message, gives_up_waiting_with_everything_still_the_callers)
{
	struct wharf_buf buf;
	int ends[2];
	char byte;

	apart_half(&q, NULL, WHARF_OPT(port, .tx_queued_bytes_max = 20000));
	fill(q.a.port, 5000);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(q.a.port), 5000, &buf), 0);
	cr_assert_eq(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
	struct wharf_out out = {
		.parts = &(struct wharf_part){ .buf = &buf }, .n_parts = 1, .fds = &ends[1], .n_fds = 1
	};
	cr_assert_eq(post_elsewhere(q.a.port, &out, 1000000), -ETIMEDOUT);
	cr_assert_not_null(buf.data);
	out.flags = WHARF_FDS_MOVE;
	cr_assert_eq(post_elsewhere(q.a.port, &out, 1000000), -ETIMEDOUT);
	cr_assert_eq(read(ends[0], &byte, 1), -1);
	close(ends[1]);
	cr_assert_eq(read(ends[0], &byte, 1), 0, "nobody else has the other end");
	close(ends[0]);
	wharf_buf_abandon(&buf);
	apart_settle(&q);
	/* From here on this is a loop's thread. */
	cr_assert_eq(wharf_post(q.a.port, MESSAGE(0, 1), 1), -EDEADLK);
	cr_assert_eq(wharf_post(q.a.port, MESSAGE(0, 1), -1), -EDEADLK);
	close(q.fds[1]);
	apart_free(&q);
}

Test(post_message, is_not_overtaken_by_what_is_smaller)
{
	struct poster large, small;

	apart_half(&q, NULL, WHARF_OPT(port, .tx_queued_bytes_max = 50000));
	cr_assert_eq(wharf_post(q.a.port, MESSAGE(0, 10000), 0), 0);
	start(&large, q.a.port, MESSAGE(1, 45000), -1);
	until_waiting(q.a.port, 1);
	cr_assert_eq(wharf_post(q.a.port, MESSAGE(2, 10), 0), -EAGAIN, "there is room, but for another");
	start(&small, q.a.port, MESSAGE(2, 10), -1);
	until_waiting(q.a.port, 2);
	cr_assert_eq(apart_peer_loop(NULL, &q.loop_b), 0);
	apart_end(q.loop_b, q.fds[1], &q.b, NULL);
	while (q.b.n_messages < 3)
		apart_settle(&q);
	cr_assert_eq(result(&large), 0);
	cr_assert_eq(result(&small), 0);
	seen_in_order(&q.b, 3);
	cr_assert_eq(q.a.n_writable, 1);
	apart_free(&q);
}

Test(post_message, that_gives_up_lets_those_behind_it_go)
{
	struct poster large, small;

	apart_half(&q, NULL, WHARF_OPT(port, .tx_queued_bytes_max = 50000));
	cr_assert_eq(wharf_post(q.a.port, MESSAGE(0, 10000), 0), 0);
	start(&large, q.a.port, MESSAGE(1, 45000), 200000000);
	until_waiting(q.a.port, 1);
	start(&small, q.a.port, MESSAGE(2, 10), -1);
	/* The loop does nothing meanwhile. */
	cr_assert_eq(result(&large), -ETIMEDOUT);
	cr_assert_eq(result(&small), 0);
	close(q.fds[1]);
	apart_free(&q);
}

Test(post_message, refused_behind_one_that_gives_up_hears_of_room)
{
	struct poster large;

	apart_half(&q, NULL, WHARF_OPT(port, .tx_queued_bytes_max = 50000));
	cr_assert_eq(wharf_post(q.a.port, MESSAGE(0, 10000), 0), 0);
	start(&large, q.a.port, MESSAGE(1, 45000), 200000000);
	until_waiting(q.a.port, 1);
	cr_assert_eq(wharf_post(q.a.port, MESSAGE(1, 10), 0), -EAGAIN, "there is room, but for another");
	cr_assert_eq(result(&large), -ETIMEDOUT);
	/* Nothing was sent or read meanwhile, and nothing will be. */
	apart_settle(&q);
	cr_assert_eq(q.a.n_writable, 1);
	cr_assert_eq(wharf_post(q.a.port, MESSAGE(1, 10), 0), 0);
	close(q.fds[1]);
	apart_free(&q);
}

static void pause_again(struct end *end, const struct wharf_msg *msg)
{
	(void)msg;
	cr_assert_eq(wharf_port_pause(end->port), 0);
}

Test(post_message, refused_for_bytes_and_for_descriptors_is_not_one_that_asks_for_neither)
{
	int fds[15];
	struct wharf_part large = { .bytes = filler, .size = 40000 };
	struct wharf_out out = { .fds = fds };

	for (size_t i = 0; i < 15; i++)
		fds[i] = STDERR_FILENO;
	apart_open(&q, NULL, WHARF_OPT(port, .tx_fds_max = 20, .tx_queued_bytes_max = 50000),
		WHARF_OPT(port, .rx_fds_max = 15));
	cr_assert_eq(wharf_port_pause(q.b.port), 0);
	/* Two in frames of their own, and behind them one with one descriptor and one with ten and most of the bytes. */
	for (out.type = 0; out.type < 4; out.type++) {
		out.n_fds = out.type == 2 ? 1 : 10;
		out.parts = &large;
		out.n_parts = out.type == 3;
		cr_assert_eq(wharf_post(q.a.port, &out, 0), 0);
		apart_settle(&q);
	}
	out.n_parts = 0;
	out.n_fds = 15;
	cr_assert_eq(wharf_post(q.a.port, MESSAGE(4, 45000), 0), -EAGAIN);
	cr_assert_eq(wharf_post(q.a.port, &out, 0), -EAGAIN);
	q.b.on_message = pause_again;
	cr_assert_eq(wharf_port_resume(q.b.port), 0);
	apart_settle(&q);
	cr_assert_eq(stats_of(q.a.port).tx_fds, 21, "the one with one has left, in the room of the first");
	cr_assert_eq(q.a.n_writable, 0, "for either there is none yet");
	cr_assert_eq(wharf_post(q.a.port, MESSAGE(4, 45000), 0), -EAGAIN);
	cr_assert_eq(wharf_post(q.a.port, &out, 0), -EAGAIN);
	q.b.on_message = NULL;
	cr_assert_eq(wharf_port_resume(q.b.port), 0);
	apart_settle(&q);
	cr_assert_eq(q.a.n_writable, 1);
	cr_assert_eq(wharf_post(q.a.port, &out, 0), 0);
	apart_settle(&q);
	seen_in_order(&q.b, 5);
	apart_free(&q);
}
