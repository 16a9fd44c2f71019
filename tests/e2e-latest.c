/* SPDX-License-Identifier: MIT */
/* Keep-latest to processes, one of which is stopped: the other hears all, this one the newest when it goes on. */
#include <criterion/criterion.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "pair.h"

enum { LAST = 500, VALUE_BYTES = 6000 };

/* ---- In a child: answers each value with its number ---- */

static uint64_t had;

static void on_value(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	uint64_t number;

	(void)user;
	HARNESS_REQUIRE(msg->size == VALUE_BYTES);
	wharf_msg_copy(msg, 0, &number, sizeof(number));
	HARNESS_REQUIRE(number > had);
	had = number;
	HARNESS_REQUIRE(wharf_send_bytes(port, 1, &number, sizeof(number)) == 0);
}

static const struct wharf_port_ops child_ops = { .size = sizeof(child_ops), .on_message = on_value };

static int subscribe(void *fd)
{
	wharf_loop *loop;

	HARNESS_REQUIRE(wharf_fork_child() == 0);
	HARNESS_REQUIRE(wharf_loop_new(NULL, &loop) == 0);
	HARNESS_REQUIRE(wharf_open(loop, *(int *)fd, WHARF_OPT(port, .ops = &child_ops), NULL) == 0);
	HARNESS_REQUIRE(wharf_loop_run(loop) == 0);
	wharf_loop_free(loop);
	return had == LAST ? 0 : 1;
}

/* ---- The publisher ---- */

struct subscriber {
	struct harness_child child;
	struct end end;
	uint64_t seen, n_seen;
	unsigned is_last;
};

static wharf_loop *loop;
static wharf_pool *pool;
static struct subscriber subscribers[2];

static void on_answer(struct end *end, const struct wharf_msg *msg)
{
	struct subscriber *s = end->user;

	cr_assert_eq(wharf_msg_copy(msg, 0, &s->seen, sizeof(s->seen)), sizeof(s->seen));
	s->n_seen++;
	s->is_last = s->seen == LAST;
}

/* Both ends are made before the fork: the child has no copy of what the library opens here. */
static void start(struct subscriber *s, int fds[2])
{
	harness_child_start(&s->child, subscribe, &fds[1]);
	close(fds[1]);
	s->end.user = s;
	s->end.on_message = on_answer;
	cr_assert_eq(wharf_open(loop, fds[0], WHARF_OPT(port, .ops = &end_ops, .user = &s->end, .pool = pool,
		.policy = WHARF_POLICY_KEEP_LATEST), &s->end.port), 0);
}

static void publish(uint64_t number)
{
	struct wharf_buf whole, one;

	cr_assert_eq(wharf_buf_claim(pool, VALUE_BYTES, &whole), 0);
	memcpy(whole.data, &number, sizeof(number));
	for (unsigned i = 0; i < 2; i++) {
		cr_assert_eq(wharf_buf_ref(&whole, &one), 0);
		cr_assert_geq(wharf_send(subscribers[i].end.port, &(struct wharf_out){ .key = 1,
			.parts = &(struct wharf_part){ .buf = &one }, .n_parts = 1 }), 0);
	}
	wharf_buf_abandon(&whole);
}

Test(latest_e2e, a_stopped_process_gets_the_newest_when_it_goes_on, .timeout = 60)
{
	struct subscriber *stopped = &subscribers[0], *other = &subscribers[1];
	struct wharf_port_stats stats;
	siginfo_t how = { 0 };
	int fds[2][2];

	cr_assert_eq(wharf_pair(fds[0]), 0);
	cr_assert_eq(wharf_pair(fds[1]), 0);
	cr_assert_eq(wharf_loop_new(NULL, &loop), 0);
	cr_assert_eq(wharf_pool_new(WHARF_OPT(pool, .shared = 1, .bytes_max = 1 << 20), &pool), 0);
	start(stopped, fds[0]);
	start(other, fds[1]);
	settle_until(loop, &stopped->end.n_open, 1);
	settle_until(loop, &other->end.n_open, 1);
	harness_child_signal(&stopped->child, SIGSTOP);
	cr_assert_eq(waitid(P_PIDFD, (id_t)stopped->child.pidfd, &how, WSTOPPED), 0);
	for (uint64_t i = 1; i <= LAST; i++) {
		publish(i);
		while (other->seen < i)
			cr_assert_geq(wharf_loop_step(loop, -1), 0);
	}
	cr_assert_eq(other->n_seen, LAST, "each value, to who keeps up");
	cr_assert_eq(stopped->n_seen, 0);
	cr_assert_eq(stopped->end.n_closed, 0);
	WHARF_INIT(&stats);
	cr_assert_eq(wharf_port_stats(stopped->end.port, &stats), 0);
	cr_assert_eq(stats.tx_replaced, LAST - 2);
	harness_child_signal(&stopped->child, SIGCONT);
	settle_until(loop, &stopped->is_last, 1);
	cr_assert_eq(stopped->n_seen, 2, "what it had been sent, and the newest");
	for (unsigned i = 0; i < 2; i++) {
		wharf_port_close(subscribers[i].end.port, -1);
		settle_until(loop, &subscribers[i].end.n_closed, 1);
		cr_assert_eq(subscribers[i].end.reason.code, WHARF_CLOSE_LOCAL);
		cr_assert_eq(harness_child_wait(&subscribers[i].child, 5000), 0);
	}
	wharf_loop_free(loop);
	wharf_pool_unref(pool);
}
