/* SPDX-License-Identifier: MIT */
/* Ports: opening, payloads, order, ownership. Their flow is in test-port-flow.c, how they end in test-port-end.c. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "harness.h"
#include "pair.h"

static struct pair p;

static const struct wharf_port_options *options(struct wharf_port_options *o)
{
	WHARF_INIT(o);
	return o;
}

/* ---- Opening ---- */

Test(port, both_ends_learn_who_the_other_is)
{
	struct wharf_port_options a;

	options(&a);
	a.name = "left";
	a.rx_fds_max = 7;
	pair_open(&p, &a, NULL);
	cr_assert_eq(p.a.peer.pid, getpid());
	cr_assert_eq(p.b.peer.uid, getuid());
	cr_assert_eq(p.b.peer.gid, getgid());
	cr_assert_str_eq(p.b.peer.name, "left");
	cr_assert_eq(p.b.peer.fds_max, 7);
	cr_assert_eq(wharf_port_peer(p.b.port)->pid, getpid());
	pair_free(&p);
}

Test(port, sends_before_the_hello_arrive_in_order_after_it)
{
	char text[32];

	pair_start(&p, NULL, NULL);
	for (int i = 0; i < 10; i++) {
		snprintf(text, sizeof(text), "early %d", i);
		cr_assert_eq(wharf_send_bytes(p.a.port, (uint32_t)i, text, strlen(text) + 1), 0);
	}
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 10);
	for (uint32_t i = 0; i < 10; i++) {
		snprintf(text, sizeof(text), "early %u", i);
		cr_assert_eq(p.b.seen[i].type, i);
		cr_assert_str_eq((char *)p.b.seen[i].bytes, text);
	}
	pair_free(&p);
}

Test(port, nothing_but_the_hello_leaves_before_the_peers)
{
	unsigned char frame[4096];
	int peer = pair_open_half(&p, NULL);

	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), 0);
	settle(p.loop);
	cr_assert_gt(recv(peer, frame, sizeof(frame), MSG_DONTWAIT), 0);
	cr_assert_lt(recv(peer, frame, sizeof(frame), MSG_DONTWAIT), 0);
	cr_assert_eq(errno, EAGAIN);
	pair_free(&p);
	close(peer);
}

Test(port, bad_options_are_refused_and_the_fd_stays_the_callers)
{
	struct wharf_port_options o;
	struct { struct wharf_port_options o; uint64_t newer; } grown;
	struct harness_snapshot before;
	int fds[2], pipes[2];
	wharf_loop *loop;
	wharf_port *port = (wharf_port *)-1;

	cr_assert_eq(wharf_loop_new(NULL, &loop), 0);
	cr_assert_eq(wharf_pair(fds), 0);
	cr_assert_eq(pipe(pipes), 0);
	harness_snapshot_take(&before);
	cr_assert_eq(wharf_open(loop, fds[0], NULL, &port), -EINVAL, "ops are required");
	options(&o);
	cr_assert_eq(wharf_open(loop, fds[0], &o, &port), -EINVAL);
	o.ops = &end_ops;
	o.flags = 1u << 31;
	cr_assert_eq(wharf_open(loop, fds[0], &o, &port), -EINVAL);
	o.flags = 0;
	o.rx_fds_max = 254;
	cr_assert_eq(wharf_open(loop, fds[0], &o, &port), -EINVAL);
	o.rx_fds_max = 0;
	o.unreleased_max = 1;
	cr_assert_eq(wharf_open(loop, fds[0], &o, &port), -EINVAL, "only values are counted");
	o.unreleased_max = 0;
	o.policy = WHARF_POLICY_KEEP_LATEST + 1;
	cr_assert_eq(wharf_open(loop, fds[0], &o, &port), -EINVAL);
	o.policy = 0;
	o.size = 0;
	cr_assert_eq(wharf_open(loop, fds[0], &o, &port), -EINVAL);
	WHARF_INIT(&o);
	o.ops = &end_ops;
	memset(&grown, 0, sizeof(grown));
	grown.o = o;
	grown.o.size = sizeof(grown);
	grown.newer = 1;
	cr_assert_eq(wharf_open(loop, fds[0], &grown.o, &port), -E2BIG);
	cr_assert_eq(wharf_open(loop, pipes[0], &o, &port), -EPROTOTYPE);
	cr_assert_eq(wharf_open(loop, 9999, &o, &port), -EBADF);
	cr_assert_eq(port, (wharf_port *)-1);
	const char *leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
	grown.newer = 0;
	grown.o.user = &p.a;
	cr_assert_eq(wharf_open(loop, fds[0], &grown.o, &p.a.port), 0, "a larger size with zeros behind is an older library's business too");
	wharf_loop_free(loop);
}

static void *use_from_another_thread(void *unused)
{
	struct wharf_port_stats stats;
	wharf_port *port = p.a.port;

	(void)unused;
	WHARF_INIT(&stats);
	cr_assert_eq(wharf_send_bytes(port, 1, "x", 1), -EPERM);
	cr_assert_eq(wharf_send(port, &(struct wharf_out){ .type = 1 }), -EPERM);
	cr_assert_eq(wharf_port_pause(port), -EPERM);
	cr_assert_eq(wharf_port_resume(port), -EPERM);
	cr_assert_eq(wharf_port_stats(port, &stats), -EPERM);
	cr_assert_eq(wharf_port_abort(port, 1), -EPERM);
	cr_assert_eq(wharf_port_close(port, 0), -EPERM);
	return NULL;
}

Test(port, belongs_to_the_thread_of_its_loop)
{
	pthread_t thread;

	pair_open(&p, NULL, NULL);
	cr_assert_eq(pthread_create(&thread, NULL, use_from_another_thread, NULL), 0);
	pthread_join(thread, NULL);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 0);
	cr_assert_eq(p.a.n_closed, 0);
	pair_free(&p);
}

static int pair_without_descriptors(void *arg)
{
	struct rlimit few = { 3, 3 };
	int fds[2] = { -1, -2 };

	(void)arg;
	HARNESS_REQUIRE(setrlimit(RLIMIT_NOFILE, &few) == 0);
	HARNESS_REQUIRE(wharf_pair(fds) == -EMFILE);
	return fds[0] == -1 && fds[1] == -2 ? 0 : 1;
}

Test(port, a_pair_that_cannot_be_made_names_no_descriptors)
{
	cr_assert_eq(harness_run(pair_without_descriptors, NULL, 2000), 0);
}

Test(port, a_socket_of_another_type_is_refused)
{
	struct wharf_port_options o;
	int fds[2];
	wharf_loop *loop;

	options(&o);
	o.ops = &end_ops;
	cr_assert_eq(wharf_loop_new(NULL, &loop), 0);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	cr_assert_eq(wharf_open(loop, fds[0], &o, NULL), -EPROTOTYPE);
	wharf_loop_free(loop);
}

/* ---- Payloads ---- */

static void fill(void *to, size_t size, unsigned seed)
{
	for (size_t i = 0; i < size; i++)
		((unsigned char *)to)[i] = (unsigned char)(seed + i * 7 + (i >> 8));
}

static unsigned expected_seed;

static void expect_filled(struct end *end, const struct wharf_msg *msg)
{
	const unsigned char *bytes = wharf_msg_contiguous(msg);

	(void)end;
	for (size_t i = 0; i < msg->size; i++)
		cr_assert_eq(bytes[i], (unsigned char)(expected_seed + i * 7 + (i >> 8)), "byte %zu of %zu", i, msg->size);
}

Test(port, bytes_of_any_size_arrive_whole)
{
	static const size_t sizes[] = { 0, 1, 7, 8, 9, 63, 64, 65, 1000, 4096, 30000, 32768, 40000, 1 << 20, 5000001 };
	static unsigned char bytes[5000001];

	pair_open(&p, NULL, NULL);
	p.b.on_message = expect_filled;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		expected_seed = (unsigned)i;
		fill(bytes, sizes[i], expected_seed);
		cr_assert_eq(wharf_send_bytes(p.a.port, (uint32_t)i, bytes, sizes[i]), 0);
		settle(p.loop);
		cr_assert_eq(p.b.n_messages, i + 1);
		cr_assert_eq(p.b.seen[i].size, sizes[i]);
		cr_assert_eq(p.b.seen[i].type, i);
	}
	pair_free(&p);
}

Test(port, claimed_buffers_of_every_class_arrive_in_place_and_aligned)
{
	static const size_t sizes[] = { 1, 64, 256, 257, 1024, 1025, 4096, 5000, 16384, 65536, 100000, 1 << 20, (1 << 20) + 1, 5 << 20, 17 << 20 };

	pair_open(&p, NULL, NULL);
	p.b.on_message = expect_filled;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		struct wharf_buf b;
		int error = wharf_buf_claim(wharf_port_pool(p.a.port), sizes[i], &b);
		cr_assert_eq(error, 0, "claim of %zu: %d", sizes[i], error);
		cr_assert_eq(b.size, sizes[i]);
		cr_assert_eq((uintptr_t)b.data % 64, 0);
		expected_seed = (unsigned)i;
		fill(b.data, b.size, expected_seed);
		const void *mine = b.data;
		cr_assert_eq(wharf_send_buf(p.a.port, 5, &b), 0);
		cr_assert_null(b.data, "an accepted buffer is emptied");
		cr_assert_eq(wharf_send_buf(p.a.port, 5, &b), -EINVAL, "and cannot be sent again");
		settle(p.loop);
		cr_assert_eq(p.b.n_messages, i + 1);
		cr_assert_eq(p.b.seen[i].size, sizes[i]);
		cr_assert_eq(p.b.seen[i].n_slices, 1);
		cr_assert_eq((uintptr_t)p.b.seen[i].at % 64, 0);
		cr_assert_neq(p.b.seen[i].at, mine, "read through the receiver's own mapping");
	}
	pair_free(&p);
}

Test(port, one_message_may_be_a_list_of_bytes_and_buffers)
{
	struct wharf_buf one, two;
	struct wharf_part parts[4] = { 0 };
	const unsigned char expected[] = "head-BODY-tail-part";

	pair_open(&p, NULL, NULL);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 64, &one), 0);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 5000, &two), 0);
	memcpy(one.data, "xxBODYxx", 8);
	memcpy((char *)two.data + 4096, "part", 4);
	parts[0] = (struct wharf_part){ .bytes = "head-", .size = 5 };
	parts[1] = (struct wharf_part){ .buf = &one, .offset = 2, .size = 4 };
	parts[2] = (struct wharf_part){ .bytes = "-tail-", .size = 6 };
	parts[3] = (struct wharf_part){ .buf = &two, .offset = 4096, .size = 4 };
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .type = 9, .parts = parts, .n_parts = 4 }), 0);
	cr_assert_null(one.data);
	cr_assert_null(two.data);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_eq(p.b.seen[0].n_slices, 4);
	cr_assert_eq(p.b.seen[0].size, 19);
	cr_assert_arr_eq(p.b.seen[0].bytes, expected, 19);
	pair_free(&p);
}

Test(port, a_buffer_that_makes_a_frame_leave_is_lent_before_it_does)
{
	struct wharf_pool_info info;
	struct wharf_buf b;

	pair_open(&p, NULL, NULL);
	for (int i = 0; i < 3; i++) {
		cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 1 << 20, &b), 0);
		cr_assert_eq(wharf_send_buf(p.a.port, 1, &b), 0);
		settle(p.loop);
		/* Takes back what the receiver has released: it must have been lent. */
		WHARF_INIT(&info);
		cr_assert_eq(wharf_pool_info(wharf_port_pool(p.a.port), &info), 0);
		cr_assert_eq(info.bytes_lent, 0);
		settle(p.loop);
		cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
	}
	cr_assert_eq(p.b.n_messages, 3);
	pair_free(&p);
}

Test(port, a_refused_send_leaves_everything_with_the_caller)
{
	struct wharf_buf b, other;
	struct wharf_part parts[2];
	wharf_pool *foreign;
	int fds[2];

	pair_open(&p, NULL, NULL);
	cr_assert_eq(pipe(fds), 0);
	cr_assert_eq(wharf_pool_new(NULL, &foreign), 0);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 100, &b), 0);
	cr_assert_eq(wharf_buf_claim(foreign, 100, &other), 0);
	struct wharf_buf kept = b;

	parts[0] = (struct wharf_part){ .buf = &b };
	parts[1] = (struct wharf_part){ .buf = &b };
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .parts = parts, .n_parts = 2 }), -EINVAL, "one buffer twice");
	parts[1] = (struct wharf_part){ .buf = &other };
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .parts = parts, .n_parts = 2 }), -EXDEV);
	parts[0].offset = 101;
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .parts = parts, .n_parts = 1 }), -EINVAL, "a range outside");
	parts[0].offset = 50;
	parts[0].size = 51;
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .parts = parts, .n_parts = 1 }), -EINVAL, "a range outside");
	parts[0] = (struct wharf_part){ .buf = &b };
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .parts = parts, .n_parts = 1, .fds = fds, .n_fds = 1, .flags = WHARF_FDS_MOVE }),
		-EMSGSIZE, "the peer takes no descriptors");
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .parts = parts, .n_parts = 1, .flags = 0x80 }), -EINVAL);
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .parts = parts, .n_parts = 1, .reserved = { 1 } }), -EINVAL);
	cr_assert_neq(fcntl(fds[0], F_GETFD), -1, "still open");
	cr_assert_arr_eq(&kept, &b, sizeof(b));
	cr_assert_eq(wharf_send_buf(p.a.port, 1, &b), 0, "and the buffer can still be sent");
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
	wharf_buf_abandon(&other);
	wharf_pool_unref(foreign);
	pair_free(&p);
}

Test(port, a_hundred_thousand_messages_of_all_kinds_keep_their_order)
{
	struct harness_random random = { harness_seed() };
	uint32_t sent = 0;

	pair_open(&p, NULL, NULL);
	while (sent < 100000) {
		uint64_t kind = harness_random_below(&random, 10);
		size_t size = kind < 8 ? 1 + harness_random_below(&random, 300) : 1 + harness_random_below(&random, 20000);
		if (kind & 1) {
			struct wharf_buf b;
			int error = wharf_buf_claim(wharf_port_pool(p.a.port), size, &b);
			if (error == -EAGAIN) {
				settle(p.loop);
				continue;
			}
			cr_assert_eq(error, 0);
			error = wharf_send_buf(p.a.port, sent, &b);
			if (error == -EAGAIN) {
				wharf_buf_abandon(&b);
				settle(p.loop);
				continue;
			}
			cr_assert_eq(error, 0);
		} else {
			static unsigned char bytes[20001];
			int error = wharf_send_bytes(p.a.port, sent, bytes, size);
			if (error == -EAGAIN) {
				settle(p.loop);
				continue;
			}
			cr_assert_eq(error, 0);
		}
		sent++;
	}
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 100000, "%zu of 100000; a: %s, b: %s", p.b.n_messages, p.a.reason_text, p.b.reason_text);
	for (uint32_t i = 0; i < END_MESSAGES_MAX; i++)
		cr_assert_eq(p.b.seen[i].type, i);
	pair_free(&p);
}

/* ---- Descriptors ---- */

static ino_t inode(int fd)
{
	struct stat st;

	cr_assert_eq(fstat(fd, &st), 0);
	return st.st_ino;
}

static ino_t inodes[253];
static int kept_fd;

static void check_fds(struct end *end, const struct wharf_msg *msg)
{
	(void)end;
	for (size_t i = 0; i < msg->n_fds; i++) {
		cr_assert_geq(msg->fds[i], 0);
		cr_assert_eq(inode(msg->fds[i]), inodes[i]);
		cr_assert(fcntl(msg->fds[i], F_GETFD) & FD_CLOEXEC);
	}
	if (msg->n_fds) {
		kept_fd = wharf_msg_take_fd(msg, 0);
		cr_assert_geq(kept_fd, 0);
		cr_assert_eq(wharf_msg_take_fd(msg, 0), -EBADF);
		cr_assert_eq(wharf_msg_take_fd(msg, msg->n_fds), -ERANGE);
	}
}

static void send_pipes(size_t n, uint32_t flags)
{
	int fds[253], pipes[2];

	for (size_t i = 0; i < n; i++) {
		cr_assert_eq(pipe(pipes), 0);
		close(pipes[1]);
		fds[i] = pipes[0];
		inodes[i] = inode(fds[i]);
	}
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .fds = fds, .n_fds = n, .flags = flags }), 0);
	if (!(flags & WHARF_FDS_MOVE))
		for (size_t i = 0; i < n; i++)
			cr_assert_eq(close(fds[i]), 0);
}

Test(port, descriptors_arrive_in_order_and_leave_nothing_behind)
{
	static const size_t counts[] = { 1, 2, 253 };
	struct wharf_port_options o;

	options(&o);
	o.rx_fds_max = 253;
	pair_open(&p, NULL, &o);
	p.b.on_message = check_fds;
	for (size_t i = 0; i < 3; i++)
		for (uint32_t flags = 0; flags <= WHARF_FDS_MOVE; flags += WHARF_FDS_MOVE) {
			size_t before = harness_count_fds();
			send_pipes(counts[i], flags);
			settle(p.loop);
			cr_assert_eq(close(kept_fd), 0);
			cr_assert_eq(harness_count_fds(), before, "%zu descriptors, flags %u: %zu open, %zu before", counts[i], flags,
				harness_count_fds(), before);
		}
	cr_assert_eq(p.b.n_messages, 6);
	pair_free(&p);
}

Test(port, descriptors_beyond_the_cap_wait_for_the_reader)
{
	struct wharf_port_options a, b;
	int fds[2], error = 0;
	unsigned sent = 0;

	options(&a);
	a.tx_fds_max = 10;
	options(&b);
	b.rx_fds_max = 2;
	pair_open(&p, &a, &b);
	cr_assert_eq(pipe(fds), 0);
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	while (sent < 100 && !(error = wharf_send(p.a.port, &(struct wharf_out){ .fds = fds, .n_fds = 2 })))
		sent++, settle(p.loop);
	cr_assert_eq(error, -EAGAIN);
	cr_assert_eq(sent, 5);
	settle(p.loop);
	cr_assert_eq(p.a.n_writable, 0);
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 5);
	/* The reader reports what it has read a few frames at a time. */
	for (int i = 0; i < 100 && !p.a.n_writable; i++) {
		cr_assert_eq(wharf_send_bytes(p.b.port, 1, "x", 1), 0);
		settle(p.loop);
	}
	cr_assert_eq(p.a.n_writable, 1);
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .fds = fds, .n_fds = 2 }), 0);
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .fds = fds, .n_fds = 3 }), -EMSGSIZE);
	pair_free(&p);
}
