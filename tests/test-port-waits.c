/* SPDX-License-Identifier: MIT */
/* Ports that cannot go on: who waits for a full or dead socket, or for memory, for how long, and who ends the wait. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#include "apart.h"
#include "pool_internal.h"
#include "raw.h"

static struct apart q;

/* ---- A socket that is full ---- */

Test(port_waits, a_full_socket_is_waited_for_and_not_asked_again_and_again)
{
	static const char bytes[1000];
	struct timespec start, now;
	unsigned turns = 0;
	size_t sent = 0;
	uint64_t full;

	apart_open(&q, WHARF_OPT(loop, .rx_buffers = 2), NULL, NULL);
	cr_assert_eq(setsockopt(q.fds[0], SOL_SOCKET, SO_SNDBUF, &(int){ 4608 }, sizeof(int)), 0);
	do {
		cr_assert_eq(wharf_send_bytes(q.a.port, 1, bytes, sizeof(bytes)), 0);
		cr_assert_geq(wharf_loop_step(q.loop_a, 0), 0);
		cr_assert_lt(++sent, 40, "the socket never fills");
	} while (!stats_of(q.a.port).tx_socket_full);
	full = stats_of(q.a.port).tx_socket_full;
	/* Nothing happens meanwhile: a turn for each wait, where a loop that spins makes thousands. */
	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		cr_assert_geq(wharf_loop_step(q.loop_a, 20000000), 0);
		clock_gettime(CLOCK_MONOTONIC, &now);
		turns++;
	} while ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 < 200);
	cr_assert_lt(turns, 200);
	cr_assert_lt(stats_of(q.a.port).tx_socket_full - full, 200);
	apart_settle(&q);
	cr_assert_eq(q.b.n_messages, sent);
	apart_free(&q);
}

/* ---- A socket that is dead ---- */

/* A clock that moves when the test says so. */
static uint64_t test_ns = 1000000000;

static uint64_t test_clock(void *user)
{
	(void)user;
	return test_ns;
}

static const struct wharf_loop_options on_test_time = { .size = sizeof(on_test_time), .clock_ns = test_clock };

static void let_pass(uint64_t seconds)
{
	test_ns += seconds * 1000000000u;
	apart_settle(&q);
}

Test(port_waits, a_paused_port_whose_peer_dies_delivers_what_arrived)
{
	apart_half(&q, &on_test_time, NULL);
	cr_assert(raw_say_hello(q.fds[1], NULL));
	apart_settle(&q);
	cr_assert_eq(q.a.n_open, 1);
	cr_assert_eq(wharf_port_pause(q.a.port), 0);
	for (int i = 0; i < 3; i++)
		cr_assert(raw_bytes(q.fds[1], "arrived", 7));
	apart_settle(&q);
	close(q.fds[1]);
	apart_settle(&q);
	/* To a socket that is dead: its grace must not take the messages along. */
	cr_assert_eq(wharf_send_bytes(q.a.port, 1, "too late", 8), 0);
	apart_settle(&q);
	let_pass(10);
	cr_assert_eq(q.a.n_closed, 0, "%s", q.a.reason_text);
	cr_assert_eq(wharf_port_resume(q.a.port), 0);
	apart_settle(&q);
	cr_assert_eq(q.a.n_messages, 3);
	cr_assert_eq(q.a.n_closed, 1);
	cr_assert_eq(q.a.reason.code, WHARF_CLOSE_PEER_GONE);
	cr_assert_eq(q.a.reason.unsent_messages, 1);
	apart_free(&q);
}

Test(port_waits, closing_for_ever_does_not_take_the_grace_from_a_deaf_peer)
{
	apart_half(&q, &on_test_time, NULL);
	cr_assert_eq(shutdown(q.fds[1], SHUT_RD), 0);
	apart_settle(&q);
	cr_assert_eq(wharf_port_close(q.a.port, -1), 0);
	apart_settle(&q);
	cr_assert_eq(q.a.n_closed, 0);
	let_pass(10);
	cr_assert_eq(q.a.n_closed, 1);
	cr_assert_eq(q.a.reason.code, WHARF_CLOSE_PEER_GONE);
	close(q.fds[1]);
	apart_free(&q);
}

Test(port_waits, every_send_to_a_deaf_peer_is_a_broken_pipe)
{
	static const char bytes[1000];
	struct wharf_buf buf;

	apart_half(&q, NULL, NULL);
	apart_settle(&q);
	/* Several frames that wait for the hello: the socket dies while they are sent. */
	for (int i = 0; i < 200; i++)
		cr_assert_eq(wharf_send_bytes(q.a.port, 1, bytes, sizeof(bytes)), 0);
	cr_assert(raw_say_hello(q.fds[1], NULL));
	cr_assert_eq(shutdown(q.fds[1], SHUT_RD), 0);
	apart_settle(&q);
	cr_assert_eq(q.a.n_open, 1);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(q.a.port), 100, &buf), 0);
	cr_assert_eq(wharf_send(q.a.port, &(struct wharf_out){ .type = 1 }), -EPIPE);
	cr_assert_eq(wharf_send_bytes(q.a.port, 1, "x", 1), -EPIPE);
	cr_assert_eq(wharf_send_buf(q.a.port, 1, &buf), -EPIPE);
	wharf_buf_abandon(&buf);
	close(q.fds[1]);
	apart_free(&q);
}

/* ---- A pool that is used up ---- */

struct waiter {
	wharf_pool *pool;
	size_t size;
	pthread_t thread;
	_Atomic bool done;
	int result;
};

static struct waiter waiter;

static void *wait_for_room(void *unused)
{
	struct wharf_buf buf;

	(void)unused;
	/* Far longer than the test waits: nothing but a word of its loop ends it in time. */
	waiter.result = wharf_buf_claim_wait(waiter.pool, waiter.size, INT64_C(30000000000), &buf);
	waiter.done = true;
	return NULL;
}

static void start_waiter(wharf_pool *pool, size_t size)
{
	waiter.pool = wharf_pool_ref(pool);
	waiter.size = size;
	cr_assert_eq(pthread_create(&waiter.thread, NULL, wait_for_room, NULL), 0);
}

static void expect_waiter_served(void)
{
	apart_settle_until(&q, &waiter.done);
	pthread_join(waiter.thread, NULL);
	cr_assert_eq(waiter.result, 0);
	wharf_pool_unref(waiter.pool);
}

Test(port_waits, a_release_in_the_turn_of_the_end_still_wakes_the_owner)
{
	wharf_pool *pool = shared_pool(128 << 10);

	apart_open(&q, NULL, NULL, WHARF_OPT(port, .pool = pool));
	q.a.on_message = take_first;
	send_claimed(q.b.port, pool, 60000, 1);
	apart_settle(&q);
	/* The second message is a's last, and what a took of the first makes it linger. */
	cr_assert_eq(wharf_port_close(q.a.port, -1), 0);
	settle(q.loop_a);
	send_claimed(q.b.port, pool, 60000, 2);
	cr_assert_eq(wharf_loop_flush(q.loop_b), 0);
	settle(q.loop_b);
	cr_assert_eq(q.a.n_messages, 1);
	start_waiter(pool, 60000);
	for (int i = 0; !wh_pool_wanted(pool); i++) {
		cr_assert_geq(wharf_loop_step(q.loop_b, 1000000), 0);
		cr_assert_lt(i, 5000, "nobody waits");
	}
	expect_waiter_served();
	cr_assert_eq(q.a.n_messages, 2);
	cr_assert_eq(q.a.n_closed, 1);
	wharf_msg_release(taken_first);
	apart_settle(&q);
	apart_free(&q);
	wharf_pool_unref(pool);
}

/* In a thread of its own: what is there but the private words of the loop's. */
static void *claim_all(void *pool)
{
	struct wharf_buf buf;

	while (wharf_buf_claim(pool, 200, &buf) == 0)
		;
	return NULL;
}

static void expect_private_words_back(bool draining)
{
	struct wharf_pool_info info;
	struct wharf_buf bufs[2];
	pthread_t thread;
	wharf_pool *pool;

	apart_open(&q, NULL, WHARF_OPT(port, .pool_bytes_max = 64 << 10), NULL);
	pool = wharf_port_pool(q.a.port);
	/* On a's turn, so that the rest of their word is its loop's own. */
	settle(q.loop_a);
	for (int i = 0; i < 2; i++)
		cr_assert_eq(wharf_buf_claim(pool, 200, &bufs[i]), 0);
	if (draining) {
		cr_assert_eq(wharf_port_pause(q.b.port), 0);
		cr_assert_eq(wharf_send_bytes(q.a.port, 1, "held", 4), 0);
		cr_assert_eq(wharf_port_close(q.a.port, -1), 0);
		apart_settle(&q);
		cr_assert_eq(q.a.n_closed, 0);
	}
	cr_assert_eq(pthread_create(&thread, NULL, claim_all, pool), 0);
	pthread_join(thread, NULL);
	WHARF_INIT(&info);
	cr_assert_eq(wharf_pool_info(pool, &info), 0);
	cr_assert_gt(info.bytes_free, 0, "nothing was the loop's own");
	start_waiter(pool, 200);
	expect_waiter_served();
	apart_free(&q);
}

Test(port_waits, private_words_of_an_idle_port_are_given_to_a_thread_that_waits)
{
	expect_private_words_back(false);
}

Test(port_waits, private_words_of_a_draining_port_are_given_to_a_thread_that_waits)
{
	expect_private_words_back(true);
}

/* ---- A peer that fails ---- */

/* An empty datagram with a descriptor: after it nothing more is received, not even the end. */
static void break_socket(void)
{
	cr_assert(raw_send(q.fds[1], "", 0, (int[]){ STDERR_FILENO }, 1, false));
}

Test(port_waits, a_port_that_can_receive_no_more_is_closed_both_ways)
{
	wharf_port *port;

	apart_half(&q, NULL, NULL);
	cr_assert(raw_say_hello(q.fds[1], NULL));
	apart_settle(&q);
	port = wharf_port_ref(q.a.port);
	break_socket();
	apart_settle(&q);
	cr_assert_eq(q.a.n_closed, 1);
	cr_assert_eq(q.a.reason.code, WHARF_CLOSE_ERROR);
	cr_assert_eq(q.a.reason.error, EPROTO);
	cr_assert_eq(wharf_send_bytes(port, 1, "x", 1), -EPIPE);
	while (raw_receive(q.fds[1], &(struct raw_read){ 0 }))
		;
	cr_assert_eq(recv(q.fds[1], &(char){ 0 }, 1, MSG_DONTWAIT), 0, "the peer sees the end");
	wharf_port_unref(port);
	close(q.fds[1]);
	apart_free(&q);
}

Test(port_waits, what_a_peer_holds_that_breaks_the_protocol_comes_back)
{
	static struct raw_holder holder;
	wharf_pool *pool = shared_pool(128 << 10);
	struct wharf_pool_info info;

	apart_half(&q, NULL, WHARF_OPT(port, .pool = pool));
	cr_assert(raw_say_hello(q.fds[1], NULL));
	apart_settle(&q);
	for (int i = 0; i < 10; i++)
		send_claimed(q.a.port, pool, 5000, 1);
	apart_settle(&q);
	raw_hold(q.fds[1], &holder);
	cr_assert_eq(holder.n_runs, 10);
	cr_assert(raw_send(q.fds[1], "no frame", 8, NULL, 0, false));
	apart_settle(&q);
	cr_assert_eq(q.a.reason.code, WHARF_CLOSE_VIOLATION);
	WHARF_INIT(&info);
	cr_assert_eq(wharf_pool_info(pool, &info), 0);
	cr_assert_eq(info.bytes_lent, 0);
	cr_assert_eq(info.bytes_free, info.bytes);
	raw_holder_fini(&holder);
	close(q.fds[1]);
	apart_free(&q);
	wharf_pool_unref(pool);
}

Test(port_waits, a_closed_port_gives_up_on_a_peer_that_fails)
{
	static struct raw_holder holder;
	wharf_pool *pool = shared_pool(128 << 10);
	struct wharf_pool_info info;
	char byte;

	apart_half(&q, NULL, WHARF_OPT(port, .pool = pool));
	cr_assert(raw_say_hello(q.fds[1], NULL));
	apart_settle(&q);
	send_claimed(q.a.port, pool, 60000, 1);
	apart_settle(&q);
	raw_hold(q.fds[1], &holder);
	cr_assert_eq(holder.n_runs, 1);
	cr_assert_eq(wharf_port_close(q.a.port, -1), 0);
	apart_settle(&q);
	cr_assert(raw_bye(q.fds[1], WH_BYE_CLOSE));
	apart_settle(&q);
	cr_assert_eq(q.a.n_closed, 1);
	WHARF_INIT(&info);
	cr_assert_eq(wharf_pool_info(pool, &info), 0);
	cr_assert_gt(info.bytes_lent, 0, "it waits for what is lent");
	break_socket();
	apart_settle(&q);
	cr_assert_eq(wharf_pool_info(pool, &info), 0);
	cr_assert_eq(info.bytes_lent, 0);
	raw_hold(q.fds[1], &holder);
	cr_assert_eq(recv(q.fds[1], &byte, 1, MSG_DONTWAIT), 0, "and its socket is closed");
	raw_holder_fini(&holder);
	close(q.fds[1]);
	apart_free(&q);
	wharf_pool_unref(pool);
}
