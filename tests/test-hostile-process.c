/* SPDX-License-Identifier: MIT */
/* Peers in other processes that die or stop at the worst moment, descriptor tables that are full, and crowds. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "harness.h"
#include "pair.h"
#include "raw.h"

TestSuite(hostile_process, .timeout = 60);

static struct pair p;

static void warm_up(void)
{
	struct wharf_buf b;

	pair_open(&p, NULL, NULL);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 100, &b), 0);
	cr_assert_eq(wharf_send_buf(p.a.port, 1, &b), 0);
	settle(p.loop);
	pair_free(&p);
}

/* ---- Children that are killed ---- */

enum stage { SILENT, OPENED, PAUSED, SENDING, HOLDING, CLOSING, N_STAGES };

struct child_end {
	int fd, ready; /* a byte is written to ready when the stage is reached */
	enum stage stage;
};

static struct wharf_msg *child_holds[64];
static unsigned n_child_holds;
static enum stage child_stage;

static void child_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	(void)port;
	(void)user;
	if (child_stage == HOLDING && n_child_holds < 64)
		child_holds[n_child_holds++] = wharf_msg_take(msg);
}

static void child_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	(void)port;
	(void)user;
	_exit(reason->code == WHARF_CLOSE_PEER || reason->code == WHARF_CLOSE_LOCAL ? 0 : 1);
}

static int child_main(void *arg)
{
	static const struct wharf_port_ops ops = {
		.size = sizeof(ops),
		.on_message = child_message,
		.on_close = child_close,
	};
	const struct child_end *c = arg;
	struct wharf_buf b;
	wharf_loop *loop;
	wharf_port *port;

	child_stage = c->stage;
	HARNESS_REQUIRE(wharf_fork_child() == 0);
	if (c->stage == SILENT) {
		HARNESS_REQUIRE(write(c->ready, "r", 1) == 1);
		pause();
	}
	HARNESS_REQUIRE(wharf_loop_new(NULL, &loop) == 0);
	HARNESS_REQUIRE(wharf_open(loop, c->fd, WHARF_OPT(port, .ops = &ops), &port) == 0);
	while (!wharf_port_peer(port))
		HARNESS_REQUIRE(wharf_loop_step(loop, 10000000) >= 0);
	if (c->stage == PAUSED)
		HARNESS_REQUIRE(wharf_port_pause(port) == 0);
	if (c->stage == CLOSING)
		HARNESS_REQUIRE(wharf_port_close(port, -1) == 0);
	for (unsigned i = 0;; i++) {
		if (i == 20)
			HARNESS_REQUIRE(write(c->ready, "r", 1) == 1);
		if (c->stage == SENDING && !wharf_buf_claim(wharf_port_pool(port), 5000, &b) &&
			wharf_send_buf(port, 1, &b))
			wharf_buf_abandon(&b);
		HARNESS_REQUIRE(wharf_loop_step(loop, c->stage == SENDING ? 0 : 1000000) >= 0);
	}
}

static void start_child(struct harness_child *child, struct child_end *c, int ret_ready[2])
{
	int fds[2];

	cr_assert_eq(wharf_pair(fds), 0);
	cr_assert_eq(pipe(ret_ready), 0);
	c->fd = fds[1];
	c->ready = ret_ready[1];
	harness_child_start(child, child_main, c);
	close(fds[1]);
	close(ret_ready[1]);
	p = (struct pair){ 0 };
	cr_assert_eq(wharf_loop_new(NULL, &p.loop), 0);
	p.a.pair = &p;
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &p.a), &p.a.port), 0);
}

static bool is_ready(int fd)
{
	char byte;
	int flags = fcntl(fd, F_GETFL);

	cr_assert_eq(fcntl(fd, F_SETFL, flags | O_NONBLOCK), 0);
	return read(fd, &byte, 1) == 1;
}

static void send_some(unsigned n)
{
	struct wharf_buf b;

	for (unsigned i = 0; i < n && p.a.port; i++)
		if (!wharf_buf_claim(wharf_port_pool(p.a.port), 3000, &b) && wharf_send_buf(p.a.port, 1, &b))
			wharf_buf_abandon(&b);
}

Test(hostile_process, a_peer_killed_in_any_state_is_gone)
{
	warm_up();
	for (unsigned i = 0; i < 3 * N_STAGES; i++) {
		struct child_end c = { .stage = (enum stage)(i % N_STAGES) };
		bool pending = i / N_STAGES == 1, closing = i / N_STAGES == 2;
		struct harness_snapshot before;
		struct harness_child child;
		const char *leak;
		int ready[2];

		harness_snapshot_take(&before);
		start_child(&child, &c, ready);
		while (!is_ready(ready[0]) && !p.a.n_closed) {
			send_some(1);
			cr_assert_geq(wharf_loop_step(p.loop, 1000000), 0);
		}
		if (pending)
			send_some(2000);
		if (closing && p.a.port)
			(void)!wharf_port_close(p.a.port, -1);
		harness_child_signal(&child, SIGKILL);
		settle_until(p.loop, &p.a.n_closed, 1);
		harness_child_end(&child);
		if (c.stage != CLOSING && !closing)
			cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER_GONE, "stage %u: %s", c.stage, p.a.reason_text);
		pair_free(&p);
		cr_assert_eq(p.a.n_closed, 1);
		close(ready[0]);
		leak = harness_snapshot_diff(&before);
		cr_assert(!leak, "stage %u: %s", c.stage, leak);
	}
}

Test(hostile_process, a_stopped_peer_is_never_called_dead)
{
	struct child_end c = { .stage = HOLDING };
	struct harness_child child;
	struct wharf_buf b;
	unsigned n_sent = 0;
	int ready[2], status, error;

	start_child(&child, &c, ready);
	while (!is_ready(ready[0]))
		cr_assert_geq(wharf_loop_step(p.loop, 1000000), 0);
	harness_child_signal(&child, SIGSTOP);
	cr_assert_eq(waitpid(child.pid, &status, WUNTRACED), child.pid);
	cr_assert(WIFSTOPPED(status));
	while (!(error = wharf_buf_claim(wharf_port_pool(p.a.port), 100000, &b))) {
		error = wharf_send_buf(p.a.port, 1, &b);
		if (error)
			wharf_buf_abandon(&b);
		n_sent += !error;
		if (error)
			break;
		cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
	}
	cr_assert_eq(error, -EAGAIN);
	for (int i = 0; i < 20; i++)
		cr_assert_geq(wharf_loop_step(p.loop, 10000000), 0);
	cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
	harness_child_signal(&child, SIGCONT);
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_LOCAL);
	cr_assert_eq(p.a.reason.unsent_messages, 0, "of %u", n_sent);
	harness_child_end(&child);
	close(ready[0]);
	pair_free(&p);
}

/* ---- Mappings that outlive the socket ---- */

Test(hostile_process, memory_that_a_gone_peer_still_maps_is_not_written_again)
{
	static struct raw_holder holder;
	struct raw_read read = { 0 };
	const unsigned char *seen;
	struct wharf_buf b;
	wharf_pool *pool;
	int peer;

	cr_assert_eq(wharf_pool_new(NULL, &pool), 0);
	p = (struct pair){ 0 };
	int fds[2];
	cr_assert_eq(wharf_loop_new(NULL, &p.loop), 0);
	cr_assert_eq(wharf_pair(fds), 0);
	peer = fds[1];
	p.a.pair = &p;
	cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &p.a, .pool = pool),
			     &p.a.port), 0);
	raw_say_hello(peer, NULL);
	settle(p.loop);
	cr_assert_eq(wharf_buf_claim(pool, 1000, &b), 0);
	memset(b.data, 's', b.size);
	cr_assert_eq(wharf_send_buf(p.a.port, 1, &b), 0);
	settle(p.loop);
	while (raw_receive(peer, &read) && read.n_fds != 2)
		;
	cr_assert_eq(read.n_fds, 2);
	seen = mmap(NULL, 4096, PROT_READ, MAP_SHARED, read.fds[0], 0);
	cr_assert_neq(seen, MAP_FAILED);
	close(peer);
	settle(p.loop);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER_GONE);
	/* The next peer of the same pool gets other memory. */
	for (int i = 0; i < 2000; i++) {
		cr_assert_eq(wharf_buf_claim(pool, 1000, &b), 0);
		memset(b.data, 'N', b.size);
		if (i % 2)
			wharf_buf_abandon(&b);
		else
			cr_assert_eq(wharf_buf_trim(&b, 1), 0);
	}
	for (int i = 0; i < 4096; i++)
		cr_assert_neq(seen[i], 'N', "byte %d was written for somebody else", i);
	cr_assert_eq(munmap((void *)(uintptr_t)seen, 4096), 0);
	close(read.fds[0]);
	close(read.fds[1]);
	raw_holder_fini(&holder);
	pair_free(&p);
	wharf_pool_unref(pool);
}

/* ---- Full descriptor tables ---- */

Test(hostile_process, descriptors_that_do_not_fit_are_lost_and_said_so)
{
	int fds[20], peer;
	struct wharf_port_options o;

	WHARF_INIT(&o);
	o.rx_fds_max = 253;
	peer = pair_open_half(&p, &o);
	raw_say_hello(peer, NULL);
	settle(p.loop);
	for (int i = 0; i < 20; i++)
		fds[i] = STDERR_FILENO;
	for (int room = 0; room < 21; room += 5) {
		size_t n_before = harness_count_fds();
		unsigned n = (unsigned)p.a.n_messages;
		harness_limit_fds((unsigned)room);
		cr_assert(raw_fds(peer, fds, 20));
		settle(p.loop);
		harness_unlimit_fds();
		cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
		cr_assert_eq(p.a.n_messages, n + 1);
		cr_assert_eq(p.a.seen[n].n_fds, 20);
		cr_assert_eq(p.a.seen[n].flags, room < 20 ? WHARF_MSG_FDS_LOST : 0, "room for %d", room);
		cr_assert_eq(harness_count_fds(), n_before);
	}
	close(peer);
	pair_free(&p);
}

/* Of a message with descriptors between two without. */
Test(hostile_process, descriptors_lost_while_paused_are_said_of_their_message)
{
	int fds[] = { STDERR_FILENO, STDERR_FILENO, STDERR_FILENO };

	for (unsigned room = 0; room <= 3; room++) {
		int peer = pair_open_half(&p, WHARF_OPT(port, .rx_fds_max = 8));
		size_t n_before = harness_count_fds();
		raw_say_hello(peer, NULL);
		settle(p.loop);
		cr_assert_eq(wharf_port_pause(p.a.port), 0);
		cr_assert(raw_bytes(peer, "before", 6));
		harness_limit_fds(room);
		cr_assert(raw_fds(peer, fds, 3));
		settle(p.loop);
		harness_unlimit_fds();
		cr_assert(raw_bytes(peer, "behind", 6));
		settle(p.loop);
		cr_assert_eq(harness_count_fds(), n_before + room);
		cr_assert_eq(wharf_port_resume(p.a.port), 0);
		settle(p.loop);
		cr_assert_eq(p.a.n_messages, 3, "%s", p.a.reason_text);
		cr_assert_eq(p.a.seen[0].flags, 0);
		cr_assert_eq(p.a.seen[1].flags, room < 3 ? WHARF_MSG_FDS_LOST : 0, "room for %u", room);
		cr_assert_eq(p.a.seen[1].n_fds, 3);
		cr_assert_eq(p.a.seen[2].flags, 0);
		cr_assert_eq(harness_count_fds(), n_before);
		close(peer);
		pair_free(&p);
	}
}

Test(hostile_process, a_full_table_refuses_what_needs_a_descriptor)
{
	struct harness_snapshot before;
	wharf_loop *loop = NULL;
	struct wharf_buf b;
	const struct wharf_out out = { .parts = &(struct wharf_part){ .buf = &b }, .n_parts = 1,
		.fds = (int[]){ STDERR_FILENO }, .n_fds = 1 };
	const char *leak;

	warm_up();
	harness_snapshot_take(&before);
	pair_open(&p, NULL, WHARF_OPT(port, .rx_fds_max = 1));
	harness_limit_fds(0);
	cr_assert_eq(wharf_loop_new(NULL, &loop), -EMFILE);
	cr_assert_eq(wharf_pair((int[2]){ 0 }), -EMFILE);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 100, &b), -EMFILE);
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .fds = (int[]){ 2, 2 }, .n_fds = 2 }), -EMSGSIZE);
	harness_unlimit_fds();
	/* A segment, and no room for its release map. */
	harness_limit_fds(1);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 100, &b), 0);
	cr_assert_eq(wharf_send_buf(p.a.port, 1, &b), -EMFILE);
	cr_assert_not_null(b.data, "it stays the caller's");
	harness_unlimit_fds();
	cr_assert_eq(wharf_send_buf(p.a.port, 1, &b), 0);
	/* A payload, and no room for a copy of its descriptor. */
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 100, &b), 0);
	harness_limit_fds(0);
	cr_assert_eq(wharf_send(p.a.port, &out), -EMFILE);
	cr_assert_not_null(b.data);
	harness_unlimit_fds();
	cr_assert_eq(wharf_send(p.a.port, &out), 0);
	cr_assert_null(b.data);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 2);
	cr_assert_eq(p.b.seen[1].flags, 0);
	pair_free(&p);
	leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

/* ---- Crowds ---- */

enum { CROWD = 500 };

static struct end crowd[CROWD];
static int crowd_peers[CROWD];

static void crowd_open(uint32_t rx_buffers)
{
	p = (struct pair){ 0 };
	cr_assert_eq(wharf_loop_new(WHARF_OPT(loop, .rx_buffers = rx_buffers, .frame_bytes_max = 4096), &p.loop), 0);
	for (int i = 0; i < CROWD; i++) {
		int fds[2];
		cr_assert_eq(wharf_pair(fds), 0);
		crowd[i] = (struct end){ .pair = &p };
		crowd_peers[i] = fds[1];
		cr_assert_eq(wharf_open(p.loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &crowd[i]),
				     &crowd[i].port), 0);
	}
}

Test(hostile_process, a_crowd_with_two_buffers_hears_everybody)
{
	crowd_open(2);
	for (int i = 0; i < CROWD; i++) {
		raw_say_hello(crowd_peers[i], NULL);
		for (int k = 0; k < 3; k++)
			cr_assert(raw_bytes(crowd_peers[i], "x", 1));
	}
	settle(p.loop);
	for (int i = 0; i < CROWD; i++)
		cr_assert_eq(crowd[i].n_messages, 3, "port %d: %zu; %s", i, crowd[i].n_messages, crowd[i].reason_text);
	/* A thousand ends, all at once. */
	for (int i = 0; i < CROWD; i++) {
		cr_assert(raw_bytes(crowd_peers[i], "last", 4));
		if (i % 2)
			cr_assert(raw_bye(crowd_peers[i], WH_BYE_ABORT));
		close(crowd_peers[i]);
	}
	settle(p.loop);
	for (int i = 0; i < CROWD; i++) {
		cr_assert_eq(crowd[i].n_messages, 4);
		cr_assert_eq(crowd[i].n_closed, 1);
		cr_assert_eq(crowd[i].reason.code, i % 2 ? WHARF_CLOSE_PEER_ABORTED : WHARF_CLOSE_PEER_GONE);
	}
	pair_free(&p);
}

Test(hostile_process, one_that_floods_does_not_starve_the_crowd)
{
	unsigned turns = 0;

	crowd_open(2);
	for (int i = 0; i < CROWD; i++)
		raw_say_hello(crowd_peers[i], NULL);
	settle(p.loop);
	for (int i = 1; i < CROWD; i++)
		cr_assert(raw_bytes(crowd_peers[i], "x", 1));
	for (int left = CROWD - 1; left; turns++) {
		while (raw_bytes(crowd_peers[0], "flood", 5))
			;
		cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
		left = 0;
		for (int i = 1; i < CROWD; i++)
			left += !crowd[i].n_messages;
		cr_assert_lt(turns, 20000, "%d are still unheard", left);
	}
	pair_free(&p);
	for (int i = 0; i < CROWD; i++)
		close(crowd_peers[i]);
}

Test(hostile_process, more_completions_than_the_queue_holds)
{
	/* All that a crowd sends, and its sends and deadlines, before the loop looks once. */
	crowd_open(64);
	for (int i = 0; i < CROWD; i++)
		raw_say_hello(crowd_peers[i], NULL);
	settle(p.loop);
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < CROWD; i++) {
			for (int k = 0; k < 4; k++)
				cr_assert(raw_bytes(crowd_peers[i], "x", 1));
			cr_assert_eq(wharf_send_bytes(crowd[i].port, 1, "y", 1), 0);
		}
		cr_assert_eq(wharf_loop_flush(p.loop), 0);
		settle(p.loop);
	}
	for (int i = 0; i < CROWD; i++) {
		cr_assert_eq(crowd[i].n_messages, 12);
		cr_assert_eq(crowd[i].n_closed, 0);
		close(crowd_peers[i]);
	}
	settle(p.loop);
	for (int i = 0; i < CROWD; i++)
		cr_assert_eq(crowd[i].n_closed, 1);
	pair_free(&p);
}
