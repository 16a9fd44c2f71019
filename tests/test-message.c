/* SPDX-License-Identifier: MIT */
/* Received messages: borrowed, taken, copied, released. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include "harness.h"
#include "pair.h"

static struct pair p;
static struct wharf_msg *taken[16];
static size_t n_taken;

static void take(struct end *end, const struct wharf_msg *msg)
{
	(void)end;
	taken[n_taken] = wharf_msg_take(msg);
	cr_assert_not_null(taken[n_taken]);
	cr_assert(taken[n_taken]->flags & WHARF_MSG_TAKEN);
	cr_assert_null(wharf_msg_take(msg), "once");
	n_taken++;
}

static void send_chunk(const char *text)
{
	struct wharf_buf b;

	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 64, &b), 0);
	strcpy(b.data, text);
	cr_assert_eq(wharf_send_buf(p.a.port, 7, &b), 0);
}

Test(message, a_taken_one_outlives_port_and_loop)
{
	struct harness_snapshot before;
	const char *leak;

	pair_open(&p, NULL, NULL);
	send_chunk("warm");
	settle(p.loop);
	pair_free(&p);
	harness_snapshot_take(&before);
	n_taken = 0;
	pair_open(&p, NULL, NULL);
	p.b.on_message = take;
	send_chunk("in a chunk");
	cr_assert_eq(wharf_send_bytes(p.a.port, 8, "inline", 7), 0);
	settle(p.loop);
	cr_assert_eq(n_taken, 2);
	pair_free(&p);
	cr_assert_str_eq(taken[0]->slices[0].data, "in a chunk");
	cr_assert_eq(taken[0]->type, 7);
	cr_assert_str_eq(taken[1]->slices[0].data, "inline");
	cr_assert_null(wharf_msg_release(taken[0]));
	cr_assert_null(wharf_msg_release(taken[1]));
	leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

Test(message, a_taken_one_holds_its_memory_until_released)
{
	struct wharf_pool_info info;

	n_taken = 0;
	pair_open(&p, NULL, NULL);
	p.b.on_message = take;
	send_chunk("held");
	settle(p.loop);
	WHARF_INIT(&info);
	cr_assert_eq(wharf_pool_info(wharf_port_pool(p.a.port), &info), 0);
	cr_assert_eq(info.bytes_lent, 256);
	wharf_msg_ref(taken[0]);
	wharf_msg_release(taken[0]);
	cr_assert_str_eq(taken[0]->slices[0].data, "held", "a second reference holds it");
	wharf_msg_release(taken[0]);
	cr_assert_eq(wharf_pool_info(wharf_port_pool(p.a.port), &info), 0);
	cr_assert_eq(info.bytes_lent, 0);
	pair_free(&p);
}

static void *release_all(void *arg)
{
	(void)arg;
	for (size_t i = 0; i < n_taken; i++)
		wharf_msg_release(taken[i]);
	return NULL;
}

Test(message, releases_in_another_thread_wake_a_sender_that_waits)
{
	struct wharf_port_options o;
	struct wharf_buf b;
	pthread_t thread;

	n_taken = 0;
	WHARF_INIT(&o);
	o.pool_bytes_max = 1 << 20;
	pair_open(&p, &o, NULL);
	p.b.on_message = take;
	while (n_taken < 16 && !wharf_buf_claim(wharf_port_pool(p.a.port), 65536, &b)) {
		cr_assert_eq(wharf_send_buf(p.a.port, 1, &b), 0);
		settle(p.loop);
	}
	if (n_taken == 16)
		cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 65536, &b), -EAGAIN);
	settle(p.loop);
	cr_assert_eq(p.a.n_writable, 0);
	cr_assert_eq(pthread_create(&thread, NULL, release_all, NULL), 0);
	settle_until(p.loop, &p.a.n_writable, 1);
	pthread_join(thread, NULL);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 65536, &b), 0);
	wharf_buf_abandon(&b);
	pair_free(&p);
}

static void look(struct end *end, const struct wharf_msg *msg)
{
	char piece[5] = "";

	(void)end;
	cr_assert_eq(msg->n_slices, 3);
	cr_assert_eq(wharf_msg_copy(msg, 3, piece, 4), 4);
	cr_assert_str_eq(piece, "defg");
	cr_assert_eq(wharf_msg_copy(msg, 8, piece, 4), 1);
	cr_assert_eq(wharf_msg_copy(msg, 9, piece, 4), 0);
	cr_assert_arr_eq(wharf_msg_contiguous(msg), "abcdefghi", 9);
	cr_assert_eq(wharf_msg_contiguous(msg), wharf_msg_contiguous(msg), "joined once");
	take(end, msg);
}

Test(message, slices_are_joined_and_copied_on_demand)
{
	struct wharf_buf b;
	struct wharf_part parts[3] = { { .bytes = "abc", .size = 3 }, { .buf = &b }, { .bytes = "ghi", .size = 3 } };

	n_taken = 0;
	pair_open(&p, NULL, NULL);
	p.b.on_message = look;
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 3, &b), 0);
	memcpy(b.data, "def", 3);
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .parts = parts, .n_parts = 3 }), 0);
	settle(p.loop);
	cr_assert_eq(n_taken, 1);
	cr_assert_arr_eq(wharf_msg_contiguous(taken[0]), "abcdefghi", 9);
	wharf_msg_release(taken[0]);
	pair_free(&p);
}

Test(message, an_empty_one_is_a_message)
{
	pair_open(&p, NULL, NULL);
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .type = 3 }), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_eq(p.b.seen[0].size, 0);
	cr_assert_eq(p.b.seen[0].n_slices, 0);
	pair_free(&p);
}

static int pipes[2];

static void take_with_fd(struct end *end, const struct wharf_msg *msg)
{
	take(end, msg);
	cr_assert_eq(msg->fds[0], -1, "it went with the taken one");
}

Test(message, a_taken_one_owns_its_descriptors)
{
	struct wharf_port_options o;
	size_t before;
	int fd;

	n_taken = 0;
	WHARF_INIT(&o);
	o.rx_fds_max = 2;
	pair_open(&p, NULL, &o);
	p.b.on_message = take_with_fd;
	cr_assert_eq(pipe(pipes), 0);
	before = harness_count_fds();
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .fds = pipes, .n_fds = 2 }), 0);
	settle(p.loop);
	cr_assert_eq(harness_count_fds(), before + 2);
	fd = wharf_msg_take_fd(taken[0], 1);
	cr_assert_eq(write(fd, "x", 1), 1);
	close(fd);
	wharf_msg_release(taken[0]);
	cr_assert_eq(harness_count_fds(), before);
	pair_free(&p);
}
