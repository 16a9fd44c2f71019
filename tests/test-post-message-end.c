/* SPDX-License-Identifier: MIT */
/* Messages from other threads that do not arrive: nothing of them is left behind, whatever ends, and they are told. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "apart.h"
#include "posters.h"
#include "raw.h"

TestSuite(post_message_end, .timeout = 60);

static struct apart q;

/* ---- Ends ---- */

static void end_by_close(void) { cr_assert_eq(wharf_port_close(q.a.port, -1), 0); }
static void end_by_abort(void) { cr_assert_eq(wharf_port_abort(q.a.port, 3), 0); }
static void end_by_peer(void)
{
	close(q.fds[1]);
	apart_settle(&q);
}
static void end_by_free(void) { q.loop_a = wharf_loop_free(q.loop_a); }

Test(post_message_end, that_waits_hears_of_the_end)
{
	static void (*const ends[])(void) = { end_by_close, end_by_abort, end_by_peer, end_by_free };

	for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++) {
		struct poster posters[3];
		wharf_port *port;
		apart_half(&q, NULL, WHARF_OPT(port, .tx_queued_bytes_max = 20000));
		port = wharf_port_ref(q.a.port);
		fill(port, 5000);
		for (size_t k = 0; k < 3; k++)
			start(&posters[k], port, MESSAGE(9, 5000), k ? -1 : 100000000000);
		until_waiting(port, 3);
		ends[i]();
		for (size_t k = 0; k < 3; k++)
			cr_assert_eq(result(&posters[k]), -EPIPE, "%zu", i);
		cr_assert_eq(wharf_post(port, MESSAGE(9, 1), 0), -EPIPE);
		if (ends[i] != end_by_peer)
			close(q.fds[1]);
		apart_free(&q);
		cr_assert_eq(wharf_post(port, MESSAGE(9, 1), 0), -EPIPE);
		wharf_port_unref(port);
	}
}

Test(post_message_end, a_dead_socket_takes_no_more)
{
	apart_half(&q, NULL, NULL);
	cr_assert(raw_say_hello(q.fds[1], NULL));
	apart_settle(&q);
	/* The end waits for the pause to end, the sender does not. */
	cr_assert_eq(wharf_port_pause(q.a.port), 0);
	cr_assert(raw_bytes(q.fds[1], "arrived", 7));
	apart_settle(&q);
	close(q.fds[1]);
	apart_settle(&q);
	cr_assert_eq(wharf_post(q.a.port, MESSAGE(0, 1), 0), 0);
	apart_settle(&q);
	cr_assert_eq(q.a.n_closed, 0);
	cr_assert_eq(wharf_post(q.a.port, MESSAGE(1, 1), 0), -EPIPE);
	cr_assert_eq(wharf_port_resume(q.a.port), 0);
	apart_settle(&q);
	cr_assert_eq(q.a.reason.unsent_messages, 1);
	apart_free(&q);
}

Test(post_message_end, accepted_before_a_close_is_sent)
{
	apart_open(&q, NULL, NULL, NULL);
	for (uint32_t i = 0; i < 5; i++)
		cr_assert_eq(wharf_post(q.a.port, MESSAGE(i, 1000), 0), 0);
	cr_assert_eq(wharf_port_close(q.a.port, -1), 0);
	cr_assert_eq(wharf_post(q.a.port, MESSAGE(9, 1), 0), -EPIPE);
	/* Nothing of it has reached the port by now: its bye waits for it. */
	cr_assert_eq(wharf_loop_flush(q.loop_a), 0);
	settle(q.loop_b);
	cr_assert(!q.b.port->peer_bye);
	apart_settle(&q);
	seen_in_order(&q.b, 5);
	cr_assert_eq(q.a.n_closed, 1);
	cr_assert_eq(q.a.reason.code, WHARF_CLOSE_LOCAL);
	cr_assert_eq(q.a.reason.unsent_messages, 0);
	cr_assert_eq(q.b.reason.code, WHARF_CLOSE_PEER);
	apart_free(&q);
}

Test(post_message_end, a_closed_port_owes_nothing_to_who_was_refused)
{
	apart_open(&q, NULL, WHARF_OPT(port, .tx_queued_bytes_max = 20000), NULL);
	/* Held, so that the port stays with its socket after its end. */
	q.a.on_message = take_first;
	send_claimed(q.b.port, wharf_port_pool(q.b.port), 1000, 1);
	apart_settle(&q);
	fill(q.a.port, 5000);
	cr_assert_eq(wharf_port_abort(q.a.port, 1), 0);
	cr_assert_geq(wharf_loop_step(q.loop_a, 0), 0);
	cr_assert_eq(q.a.n_closed, 1);
	cr_assert(wh_list_empty(&q.loop_a->chores));
	wharf_msg_release(taken_first);
	apart_settle(&q);
	cr_assert_eq(q.a.n_writable, 0);
	apart_free(&q);
}

static unsigned n_done;

static void count_done(const void *bytes, size_t size, void *user)
{
	cr_assert_eq(bytes, filler);
	cr_assert_eq(size, 700);
	cr_assert_eq(user, &n_done);
	n_done++;
}

/* One of each kind of part, and a descriptor: *ret_end reads its end of file when the port's is closed. */
static void post_everything(wharf_port *port, wharf_pool *pool, int *ret_end)
{
	struct wharf_buf buf;
	int ends[2];

	cr_assert_eq(wharf_buf_claim(pool, 200, &buf), 0);
	cr_assert_eq(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
	struct wharf_part parts[] = { { .bytes = filler, .size = 100 }, { .buf = &buf },
		{ .bytes = filler, .size = 700, .done = count_done, .user = &n_done } };
	cr_assert_eq(
		wharf_post(port,
			&(struct wharf_out){
				.parts = parts, .n_parts = 3, .fds = &ends[1], .n_fds = 1, .flags = WHARF_FDS_MOVE },
			0),
		0);
	*ret_end = ends[0];
}

static void nothing_is_left(wharf_pool *pool, int end)
{
	struct wharf_pool_info info;
	char byte;

	WHARF_INIT(&info);
	cr_assert_eq(wharf_pool_info(pool, &info), 0);
	cr_assert_eq(info.bytes_free, info.bytes);
	cr_assert_eq(n_done, 1);
	cr_assert_eq(read(end, &byte, 1), 0, "the descriptor is closed");
	close(end);
	n_done = 0;
}

Test(post_message_end, that_an_end_leaves_unsent_is_counted_and_let_go)
{
	wharf_pool *pool = shared_pool(1 << 20);
	int end;

	/* Still on its way to the loop. */
	apart_open(&q, NULL, WHARF_OPT(port, .pool = pool), WHARF_OPT(port, .rx_fds_max = 1));
	post_everything(q.a.port, pool, &end);
	cr_assert_eq(wharf_port_abort(q.a.port, 1), 0);
	cr_assert_eq(n_done, 0, "not inside the call that causes it");
	apart_settle(&q);
	cr_assert_eq(q.a.reason.unsent_messages, 1);
	cr_assert_eq(q.a.reason.unsent_bytes, 1000);
	nothing_is_left(pool, end);
	apart_free(&q);
	/* In its flow. */
	apart_half(&q, NULL, WHARF_OPT(port, .pool = pool));
	post_everything(q.a.port, pool, &end);
	apart_settle(&q);
	cr_assert_eq(wharf_port_abort(q.a.port, 1), 0);
	apart_settle(&q);
	cr_assert_eq(q.a.reason.unsent_messages, 1);
	cr_assert_eq(q.a.reason.unsent_bytes, 1000);
	nothing_is_left(pool, end);
	close(q.fds[1]);
	apart_free(&q);
	/* The loop is freed. */
	apart_half(&q, NULL, WHARF_OPT(port, .pool = pool));
	post_everything(q.a.port, pool, &end);
	q.loop_a = wharf_loop_free(q.loop_a);
	cr_assert_eq(q.a.reason.unsent_messages, 1);
	cr_assert_eq(q.a.reason.unsent_bytes, 1000);
	nothing_is_left(pool, end);
	close(q.fds[1]);
	wharf_pool_unref(pool);
}

static wharf_pool *late_pool;
static int late_end;

static void post_and_abort(struct end *end, const struct wharf_msg *msg)
{
	(void)msg;
	post_everything(end->port, late_pool, &late_end);
	cr_assert_eq(wharf_port_abort(end->port, 1), 0);
}

Test(post_message_end, that_reaches_the_loop_after_on_close_is_let_go)
{
	late_pool = shared_pool(1 << 20);
	apart_open(&q, NULL, WHARF_OPT(port, .pool = late_pool), WHARF_OPT(port, .rx_fds_max = 1));
	q.a.on_message = post_and_abort;
	cr_assert_eq(wharf_send_bytes(q.b.port, 1, "go", 2), 0);
	apart_settle(&q);
	cr_assert_eq(q.a.n_closed, 1);
	cr_assert_eq(q.a.reason.unsent_messages, 1);
	cr_assert_eq(q.a.reason.unsent_bytes, 1000);
	nothing_is_left(late_pool, late_end);
	apart_free(&q);
	wharf_pool_unref(late_pool);
}

Test(post_message_end, parts_by_reference_are_done_once_they_have_left)
{
	apart_open(&q, NULL, NULL, WHARF_OPT(port, .rx_fds_max = 1));
	wharf_pool *pool = wharf_pool_ref(wharf_port_pool(q.a.port));
	int end;
	post_everything(q.a.port, pool, &end);
	cr_assert_eq(n_done, 0);
	apart_settle(&q);
	cr_assert_eq(n_done, 1);
	cr_assert_eq(q.b.n_bytes, 1000);
	close(end);
	apart_free(&q);
	wharf_pool_unref(pool);
}

/* ---- What is refused ---- */

Test(post_message_end, that_the_peer_does_not_take_is_refused)
{
	static const int fds[] = { STDERR_FILENO, STDERR_FILENO };

	apart_open(&q, NULL, NULL, WHARF_OPT(port, .rx_bytes_max = 10000, .rx_fds_max = 1));
	cr_assert_eq(wharf_post(q.a.port, MESSAGE(0, 10001), 0), -EMSGSIZE);
	cr_assert_eq(wharf_post(q.a.port, &(struct wharf_out){ .fds = fds, .n_fds = 2 }, 0), -EMSGSIZE);
	cr_assert_eq(wharf_post(q.a.port, &(struct wharf_out){ .fds = fds, .n_fds = 1 }, 0), 0);
	cr_assert_eq(wharf_post(q.a.port, MESSAGE(0, 10000), 0), 0);
	apart_settle(&q);
	cr_assert_eq(q.b.n_messages, 2);
	apart_free(&q);
}

static wharf_port *not_yet_open;

static void post_too_much(struct end *end, const struct wharf_msg *msg)
{
	(void)end, (void)msg;
	cr_assert_null(wharf_port_peer(not_yet_open));
	cr_assert_eq(wharf_post(not_yet_open, MESSAGE(0, 1001), 0), 0);
}

/* The hello comes while the message is on its way to the loop, or while it waits there. */
Test(post_message_end, that_turns_out_too_large_fails_the_port)
{
	struct wh_hello hello = raw_hello();
	int fds[2];

	hello.message_bytes_max = 1000;
	for (int i = 0; i < 2; i++) {
		struct end other = { 0 };
		apart_half(&q, NULL, NULL);
		cr_assert_eq(wharf_pair(fds), 0);
		apart_end(q.loop_a, fds[0], &other, NULL);
		cr_assert(raw_say_hello(fds[1], NULL));
		apart_settle(&q);
		not_yet_open = q.a.port;
		if (i)
			post_too_much(NULL, NULL);
		else
			other.on_message = post_too_much;
		cr_assert(raw_bytes(fds[1], "go", 2));
		cr_assert(raw_say_hello(q.fds[1], &hello));
		apart_settle(&q);
		cr_assert_eq(q.a.n_closed, 1);
		cr_assert_eq(q.a.reason.code, WHARF_CLOSE_ERROR);
		cr_assert_eq(q.a.reason.error, EMSGSIZE);
		cr_assert_eq(q.a.reason.unsent_messages, 1);
		close(q.fds[1]);
		close(fds[1]);
		apart_free(&q);
	}
}

Test(post_message_end, that_is_wrong_is_refused)
{
	wharf_pool *pool = shared_pool(1 << 20);
	struct wharf_buf empty = WHARF_BUF_EMPTY, foreign;
	int bad = 1 << 20, twice[] = { STDERR_FILENO, STDERR_FILENO };

	apart_open(&q, NULL, NULL, WHARF_OPT(port, .rx_fds_max = 4));
	cr_assert_eq(wharf_post(NULL, MESSAGE(0, 0), 0), -EINVAL);
	cr_assert_eq(wharf_post(q.a.port, NULL, 0), -EINVAL);
	cr_assert_eq(wharf_post(q.a.port, &(struct wharf_out){ .flags = WHARF_LAST }, 0), -EINVAL);
	cr_assert_eq(wharf_post(q.a.port, &(struct wharf_out){ .key = 1 }, 0), -EINVAL);
	cr_assert_eq(wharf_post_buf(q.a.port, 0, &empty, 0), -EINVAL);
	cr_assert_eq(wharf_buf_claim(pool, 10, &foreign), 0);
	cr_assert_eq(wharf_post_buf(q.a.port, 0, &foreign, 0), -EXDEV);
	wharf_buf_abandon(&foreign);
	cr_assert_eq(wharf_post(q.a.port, &(struct wharf_out){ .fds = &bad, .n_fds = 1 }, 0), -EBADF);
	cr_assert_eq(wharf_post(q.a.port, &(struct wharf_out){ .fds = twice, .n_fds = 2, .flags = WHARF_FDS_MOVE }, 0),
		-EINVAL);
	cr_assert_eq(wharf_post(q.a.port, &(struct wharf_out){ .fds = twice, .n_fds = 254 }, 0), -EMSGSIZE);
	apart_settle(&q);
	cr_assert_eq(q.b.n_messages, 0);
	apart_free(&q);
	wharf_pool_unref(pool);
}
