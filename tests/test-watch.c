/* SPDX-License-Identifier: MIT */
/* The death of a process as the end of a port, when others keep its socket open. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "harness.h"
#include "pair.h"
#include "raw.h"

enum { MESSAGES = 50 };

static struct pair p;
static int end; /* the peer's, kept open by this process */

static int speak_and_die(void *arg)
{
	(void)arg;
	HARNESS_REQUIRE(raw_say_hello(end, NULL));
	for (int i = 0; i < MESSAGES; i++)
		HARNESS_REQUIRE(raw_bytes(end, "x", 1));
	return 0;
}

static int wait_to_die(void *arg)
{
	(void)arg;
	pause();
	return 1;
}

static int pidfd_of(const struct harness_child *child)
{
	int fd = (int)syscall(SYS_pidfd_open, child->pid, 0);

	cr_assert_geq(fd, 0);
	return fd;
}

static void watch(const struct harness_child *child)
{
	int fd = pidfd_of(child);

	cr_assert_eq(wharf_port_watch(p.a.port, fd), 0);
	close(fd); /* it was duplicated */
}

static void kill_and_reap(struct harness_child *child)
{
	harness_child_signal(child, SIGKILL);
	cr_assert_eq(harness_child_wait(child, 10000), 256 + SIGKILL);
}

Test(watch, what_the_dead_had_sent_comes_before_the_end)
{
	struct harness_child child;
	pid_t pid;

	end = pair_open_half(&p, NULL);
	harness_child_start(&child, speak_and_die, NULL);
	pid = child.pid;
	watch(&child);
	cr_assert_eq(harness_child_wait(&child, 10000), 0);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.n_open, 1);
	cr_assert_eq(p.a.n_messages, MESSAGES);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER_GONE);
	cr_assert_eq(p.a.peer_at_end.pid, pid);
	cr_assert(!raw_bytes(end, "x", 1), "it is shut");
	close(end);
	pair_free(&p);
}

Test(watch, without_one_the_socket_hides_the_death)
{
	struct harness_child child;

	end = pair_open_half(&p, NULL);
	harness_child_start(&child, speak_and_die, NULL);
	cr_assert_eq(harness_child_wait(&child, 10000), 0);
	settle(p.loop);
	cr_assert_eq(p.a.n_messages, MESSAGES);
	cr_assert_eq(p.a.n_closed, 0);
	/* Who was dead before is a death like any other. */
	harness_child_start(&child, wait_to_die, NULL);
	int fd = pidfd_of(&child);
	kill_and_reap(&child);
	cr_assert_eq(wharf_port_watch(p.a.port, fd), 0);
	close(fd);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER_GONE);
	close(end);
	pair_free(&p);
}

Test(watch, a_paused_port_keeps_what_came_until_it_is_resumed)
{
	struct harness_child child;

	end = pair_open_half(&p, NULL);
	cr_assert_eq(wharf_port_pause(p.a.port), 0);
	harness_child_start(&child, speak_and_die, NULL);
	watch(&child);
	cr_assert_eq(harness_child_wait(&child, 10000), 0);
	settle_until(p.loop, &p.a.n_open, 1);
	settle(p.loop);
	cr_assert_eq(p.a.n_messages, 0);
	cr_assert_eq(p.a.n_closed, 0);
	cr_assert_eq(wharf_port_resume(p.a.port), 0);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.n_messages, MESSAGES);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER_GONE);
	close(end);
	pair_free(&p);
}

Test(watch, a_share_of_one_message_per_turn_loses_nothing)
{
	struct harness_child child;

	end = pair_open_half(&p, WHARF_OPT(port, .rx_msgs_per_turn = 1));
	harness_child_start(&child, speak_and_die, NULL);
	watch(&child);
	cr_assert_eq(harness_child_wait(&child, 10000), 0);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.n_messages, MESSAGES);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER_GONE);
	close(end);
	pair_free(&p);
}

Test(watch, the_last_one_named_counts)
{
	struct harness_child first, second;

	end = pair_open_half(&p, NULL);
	harness_child_start(&first, wait_to_die, NULL);
	harness_child_start(&second, wait_to_die, NULL);
	watch(&first);
	watch(&second);
	kill_and_reap(&first);
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 0);
	kill_and_reap(&second);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER_GONE);
	close(end);
	pair_free(&p);
}

Test(watch, a_port_that_waits_to_connect_can_be_told_that_nobody_will_come)
{
	struct harness_child child;
	char name[HARNESS_PATH_MAX];

	p = (struct pair){ 0 };
	p.a.pair = &p;
	harness_abstract_name(name);
	cr_assert_eq(wharf_loop_new(NULL, &p.loop), 0);
	cr_assert_eq(wharf_connect(p.loop, name, WHARF_OPT(port, .ops = &end_ops, .user = &p.a, .connect_timeout_ns = -1,
		.flags = WHARF_PORT_AWAIT_LISTENER), &p.a.port), 0);
	harness_child_start(&child, wait_to_die, NULL);
	watch(&child);
	kill_and_reap(&child);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER_GONE);
	pair_free(&p);
}

Test(watch, takes_nothing_but_a_pidfd)
{
	int directory = open("/proc/self", O_RDONLY | O_DIRECTORY), null = open("/dev/null", O_RDONLY);

	pair_open(&p, NULL, NULL);
	cr_assert_eq(wharf_port_watch(p.a.port, -1), -EBADF);
	cr_assert_eq(wharf_port_watch(p.a.port, 12345), -EBADF);
	cr_assert_eq(wharf_port_watch(p.a.port, null), -EBADF);
	cr_assert_eq(wharf_port_watch(p.a.port, directory), -EBADF);
	cr_assert_eq(wharf_port_watch(NULL, null), -EINVAL);
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 0);
	close(directory);
	close(null);
	pair_free(&p);
}

Test(watch, goes_with_its_port)
{
	struct harness_child child;
	struct harness_snapshot before;
	const char *leak;

	pair_open(&p, NULL, NULL); /* what a process has once */
	pair_free(&p);
	harness_child_start(&child, wait_to_die, NULL);
	harness_snapshot_take(&before);
	for (int how = 0; how < 3; how++) {
		pair_open(&p, NULL, NULL);
		watch(&child);
		if (how == 0)
			cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
		else if (how == 1)
			watch(&child);
		settle(p.loop);
		cr_assert_eq(p.a.n_closed, how == 0);
		pair_free(&p);
		cr_assert_eq(p.a.n_closed, 1);
	}
	leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
	kill_and_reap(&child);
}
