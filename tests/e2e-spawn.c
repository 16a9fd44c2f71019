/* SPDX-License-Identifier: MIT */
/* A port through exec: the child is a program of its own, found through WHARF_CHILD. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "pair.h"

static struct pair p;

static void spawn(char *mode, int64_t open_timeout_ns, int *ret_pidfd)
{
	char *argv[] = { getenv("WHARF_CHILD"), mode, NULL };

	cr_assert_not_null(argv[0]);
	p = (struct pair){ 0 };
	p.a.pair = &p;
	cr_assert_eq(wharf_loop_new(NULL, &p.loop), 0);
	harness_engine_of(true);
	cr_assert_eq(wharf_spawn(p.loop, WHARF_OPT(spawn, .argv = argv,
		.port = WHARF_OPT(port, .ops = &end_ops, .user = &p.a, .open_timeout_ns = open_timeout_ns)), &p.a.port, ret_pidfd), 0);
	harness_engine_of(false);
}

static int reap(int pidfd)
{
	siginfo_t info = { 0 };

	cr_assert_eq(waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED), 0);
	close(pidfd);
	return info.si_code == CLD_EXITED ? info.si_status : 256 + info.si_status;
}

Test(spawn, messages_and_descriptors_cross_an_exec)
{
	static const size_t sizes[] = { 1, 100, 5000, 1 << 20 };
	struct wharf_buf b;
	char text[15] = "";
	int pidfd, pipes[2];

	spawn(NULL, 0, &pidfd);
	settle_until(p.loop, &p.a.n_open, 1);
	cr_assert_str_eq(p.a.peer.name, "spawned");
	cr_assert_neq(p.a.peer.pid, getpid());
	for (uint32_t i = 0; i < 4; i++) {
		cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), sizes[i], &b), 0);
		memset(b.data, 'a' + (int)i, sizes[i]);
		cr_assert_eq(wharf_send_buf(p.a.port, i, &b), 0);
	}
	cr_assert_eq(pipe(pipes), 0);
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .fds = &pipes[1], .n_fds = 1, .flags = WHARF_FDS_MOVE }), 0);
	while (p.a.n_messages < 4)
		cr_assert_geq(wharf_loop_step(p.loop, 5000000000), 0);
	for (uint32_t i = 0; i < 4; i++) {
		cr_assert_eq(p.a.seen[i].type, i + 1);
		cr_assert_eq(p.a.seen[i].size, 2 * sizes[i]);
		cr_assert_eq(p.a.seen[i].bytes[0], 'a' + i);
	}
	cr_assert_eq(read(pipes[0], text, 14), 14);
	cr_assert_str_eq(text, "from the child");
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_LOCAL);
	cr_assert_eq(reap(pidfd), 0);
	close(pipes[0]);
	pair_free(&p);
}

Test(spawn, a_child_that_exits_is_a_peer_gone)
{
	int pidfd;

	spawn(NULL, 0, &pidfd);
	cr_assert_eq(wharf_send_bytes(p.a.port, 99, "exit", 4), 0);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER_GONE);
	cr_assert_eq(reap(pidfd), 7);
	pair_free(&p);
}

Test(spawn, a_child_that_exits_is_gone_whoever_inherited_its_end)
{
	int pidfd;

	spawn((char[]){ "heir" }, 0, &pidfd);
	settle_until(p.loop, &p.a.n_open, 1);
	cr_assert_eq(wharf_send_bytes(p.a.port, 99, "exit", 4), 0);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER_GONE);
	cr_assert_eq(reap(pidfd), 7);
	pair_free(&p);
}

Test(spawn, a_child_that_handed_its_end_over_may_go)
{
	int pidfd;

	spawn((char[]){ "hand over" }, 0, &pidfd);
	settle_until(p.loop, &p.a.n_open, 1);
	cr_assert_eq(reap(pidfd), 0);
	settle(p.loop);
	cr_assert_eq(wharf_send_bytes(p.a.port, 4, "still there", 11), 0);
	while (!p.a.n_messages)
		cr_assert_geq(wharf_loop_step(p.loop, 5000000000), 0);
	cr_assert_eq(p.a.n_closed, 0);
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_LOCAL);
	pair_free(&p);
}

Test(spawn, nobody_has_to_take_the_pidfd)
{
	struct harness_snapshot before;
	const char *leak;

	spawn(NULL, 0, NULL);
	pair_free(&p);
	harness_snapshot_take(&before);
	spawn(NULL, 0, NULL);
	settle_until(p.loop, &p.a.n_open, 1);
	cr_assert_eq(wharf_send_bytes(p.a.port, 99, "exit", 4), 0);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER_GONE);
	pair_free(&p);
	leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

Test(spawn, a_program_that_never_says_hello_times_out)
{
	int pidfd;

	spawn((char[]){ "silent" }, 50000000, &pidfd);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_TIMEOUT);
	cr_assert_eq(syscall(424 /* pidfd_send_signal */, pidfd, SIGKILL, NULL, 0), 0);
	cr_assert_eq(reap(pidfd), 256 + SIGKILL);
	pair_free(&p);
}

Test(spawn, a_program_that_is_not_there_is_an_error_and_leaves_nothing)
{
	char *argv[] = { (char[]){ "/nonexistent/program" }, NULL };
	struct harness_snapshot before;
	wharf_loop *loop;
	const char *leak;
	int pidfd = -2;

	p = (struct pair){ 0 };
	cr_assert_eq(wharf_loop_new(NULL, &loop), 0);
	cr_assert_eq(wharf_spawn(loop, WHARF_OPT(spawn, .argv = argv, .port = WHARF_OPT(port, .ops = &end_ops, .user = &p.a)), NULL, &pidfd),
		-ENOENT);
	settle(loop);
	wharf_loop_free(loop);
	harness_snapshot_take(&before);
	cr_assert_eq(wharf_loop_new(NULL, &loop), 0);
	cr_assert_eq(wharf_spawn(loop, WHARF_OPT(spawn, .argv = argv, .port = WHARF_OPT(port, .ops = &end_ops, .user = &p.a)), NULL, &pidfd),
		-ENOENT);
	cr_assert_eq(pidfd, -2);
	settle(loop);
	cr_assert_eq(p.a.n_closed, 0, "no callback for what never was");
	wharf_loop_free(loop);
	leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

Test(spawn, what_failed_leaves_the_pool_free_for_the_next)
{
	char *nothing[] = { (char[]){ "/nonexistent/program" }, NULL }, *argv[] = { getenv("WHARF_CHILD"), NULL };
	struct wharf_spawn_options o;
	wharf_pool *pool;

	p = (struct pair){ 0 };
	p.a.pair = &p;
	cr_assert_eq(wharf_loop_new(NULL, &p.loop), 0);
	cr_assert_eq(wharf_pool_new(NULL, &pool), 0);
	WHARF_INIT(&o);
	o.port = WHARF_OPT(port, .ops = &end_ops, .user = &p.a, .pool = pool);
	o.argv = nothing;
	cr_assert_eq(wharf_spawn(p.loop, &o, &p.a.port, NULL), -ENOENT);
	o.argv = argv;
	cr_assert_eq(wharf_spawn(p.loop, &o, &p.a.port, NULL), 0);
	settle_until(p.loop, &p.a.n_open, 1);
	cr_assert_eq(p.a.n_closed, 0);
	pair_free(&p);
	wharf_pool_unref(pool);
}

Test(spawn, inherit_without_a_parent_says_so)
{
	wharf_loop *loop;

	unsetenv("WHARF_FD");
	cr_assert_eq(wharf_loop_new(NULL, &loop), 0);
	cr_assert_eq(wharf_port_inherit(loop, WHARF_OPT(port, .ops = &end_ops), NULL), -ENOENT);
	setenv("WHARF_FD", "1000", 1);
	cr_assert_eq(wharf_port_inherit(loop, WHARF_OPT(port, .ops = &end_ops), NULL), -ENOENT);
	setenv("WHARF_FD", "nonsense", 1);
	cr_assert_eq(wharf_port_inherit(loop, WHARF_OPT(port, .ops = &end_ops), NULL), -ENOENT);
	setenv("WHARF_FD", "0", 1);
	cr_assert_eq(wharf_port_inherit(loop, WHARF_OPT(port, .ops = &end_ops), NULL), -ENOENT);
	wharf_loop_free(loop);
}
