/* SPDX-License-Identifier: MIT */
/* The tables of what the library asks of the kernel are whole: everything else is forbidden, and it works. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>

#include "loop.h"
#include "filter.h"
#include "needs.h"
#include "test-engine.h"

enum { RULES_MAX = 256, ROUNDS = 50, MIB = 1 << 20, FORBIDDEN = 98 };

TestSuite(needs, .timeout = 60);

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(SANITIZED)
/* What the sanitizer's own runtime asks for, now and then. */
static const int besides[] = { SYS_exit_group, SYS_exit, SYS_rt_sigreturn, SYS_rt_sigprocmask, SYS_sigaltstack,
	SYS_getpid, SYS_gettid, SYS_mremap, SYS_prctl, SYS_openat, SYS_readlink, SYS_getrandom,
	SYS_rt_sigaction };
#else
static const int besides[] = { SYS_exit_group, SYS_exit, SYS_rt_sigreturn };
#endif

static void on_forbidden(int number, siginfo_t *info, void *context)
{
	char text[64];
	int n = snprintf(text, sizeof(text), "system call %d is in no table\n", info->si_syscall);

	(void)number, (void)context;
	if (write(STDERR_FILENO, text, (size_t)n) >= 0)
		_exit(FORBIDDEN);
}

static struct sock_filter *allow(struct sock_filter *rule, uint32_t number)
{
	*rule++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1);
	*rule++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	return rule;
}

/* Nothing but the calls of these occasions, with this engine. */
static void lock_in(uint32_t occasions, uint32_t engine)
{
	uint32_t other = engine == WHARF_ENGINE_EPOLL ? WH_NEED_URING : WH_NEED_EPOLL;
	struct sock_filter rules[RULES_MAX], *end = rules;
	struct sigaction action = { .sa_sigaction = on_forbidden, .sa_flags = SA_SIGINFO };

	HARNESS_REQUIRE(sigaction(SIGSYS, &action, NULL) == 0);
	*end++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (const struct wh_need *need = wh_needs_calls; need->name; need++)
		if (need->flags & occasions && !(need->flags & other))
			end = allow(end, need->number);
	for (size_t i = 0; i < sizeof(besides) / sizeof(besides[0]); i++)
		end = allow(end, (uint32_t)besides[i]);
	*end++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
	HARNESS_REQUIRE(filter_install(rules, (size_t)(end - rules)) == 0);
}

struct sides {
	wharf_loop *loop;
	wharf_port *a, *b;
	unsigned n_open, n_messages, n_fds, n_closed;
	uint32_t code;
};

static void on_open(wharf_port *port, const struct wharf_peer *peer, void *user)
{
	(void)port, (void)peer;
	((struct sides *)user)->n_open++;
}

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct sides *s = user;

	(void)port;
	s->n_messages++;
	s->n_fds += (unsigned)msg->n_fds;
}

static void on_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	struct sides *s = user;

	(void)port;
	s->n_closed++;
	s->code = reason->code; /* of the last */
}

static const struct wharf_port_ops ops = {
	.size = sizeof(ops),
	.on_open = on_open,
	.on_message = on_message,
	.on_close = on_close,
};

static void until(struct sides *s, const unsigned *count, unsigned least)
{
	for (int i = 0; i < 1000 && *count < least; i++)
		HARNESS_REQUIRE(wharf_loop_step(s->loop, 1000000) >= 0);
	HARNESS_REQUIRE(*count >= least);
}

static void open_sides(struct sides *s)
{
	int fds[2];

	HARNESS_REQUIRE(wharf_pair(fds) == 0);
	HARNESS_REQUIRE(
		wharf_open(s->loop, fds[0], WHARF_OPT(port, .ops = &ops, .user = s, .rx_fds_max = 1), &s->a) == 0);
	HARNESS_REQUIRE(
		wharf_open(s->loop, fds[1], WHARF_OPT(port, .ops = &ops, .user = s, .rx_fds_max = 1), &s->b) == 0);
	until(s, &s->n_open, 2);
}

static void send_bytes(struct sides *s, size_t size)
{
	static const char bytes[4096];
	struct wharf_out out = { .parts = &(struct wharf_part){ .bytes = bytes, .size = size }, .n_parts = 1 };

	HARNESS_REQUIRE(wharf_send(s->a, &out) == 0);
	until(s, &s->n_messages, s->n_messages + 1);
}

static void send_claimed(struct sides *s, size_t size)
{
	struct wharf_buf buf;

	HARNESS_REQUIRE(wharf_buf_claim(wharf_port_pool(s->a), size, &buf) == 0);
	memset(buf.data, 1, size);
	HARNESS_REQUIRE(wharf_send_buf(s->a, 1, &buf) == 0);
	until(s, &s->n_messages, s->n_messages + 1);
}

static void send_descriptor(struct sides *s)
{
	int fd = 0;

	HARNESS_REQUIRE(wharf_send(s->a, &(struct wharf_out){ .fds = &fd, .n_fds = 1 }) == 0);
	until(s, &s->n_fds, s->n_fds + 1);
}

static void make_loop(struct sides *s, uint32_t engine)
{
	HARNESS_REQUIRE(wharf_loop_new(WHARF_OPT(loop, .engine = engine), &s->loop) == 0);
	HARNESS_REQUIRE(wharf_loop_fd(s->loop) >= 0);
}

static int only_run(void *engine)
{
	struct sides s = { 0 };

	make_loop(&s, *(uint32_t *)engine);
	open_sides(&s);
	HARNESS_REQUIRE(wharf_pool_reserve(wharf_port_pool(s.a), 4096, 64 * 4096, WHARF_PREFAULT) == 0);
	send_claimed(&s, 4096); /* the peer maps it */
	lock_in(WH_NEED_RUN, *(uint32_t *)engine);
	for (int i = 0; i < ROUNDS; i++) {
		send_bytes(&s, 1 + (size_t)i * 80);
		send_claimed(&s, 4096);
	}
	HARNESS_REQUIRE(wharf_loop_wake(s.loop) == 0);
	HARNESS_REQUIRE(wharf_loop_step(s.loop, -1) >= 0);
	HARNESS_REQUIRE(wharf_port_close(s.a, 1000000000) == 0);
	until(&s, &s.n_closed, 2);
	return 0;
}

static struct wharf_loop *woken; /* by another thread, for as long as its loop has not yielded to it */

int sched_yield(void)
{
	if (woken)
		atomic_fetch_sub(&woken->wakers, 1);
	woken = NULL;
	return (int)syscall(SYS_sched_yield);
}

static int fail_and_free(void *engine)
{
	struct sides s = { 0 };

	make_loop(&s, *(uint32_t *)engine);
	open_sides(&s);
	lock_in(WH_NEED_RUN, *(uint32_t *)engine);
	HARNESS_REQUIRE(wharf_port_abort(s.a, 1) == 0);
	until(&s, &s.n_closed, 2);
	HARNESS_REQUIRE(s.code == WHARF_CLOSE_PEER_ABORTED);
	woken = s.loop;
	atomic_fetch_add(&woken->wakers, 1);
	HARNESS_REQUIRE(!wharf_loop_free(s.loop));
	HARNESS_REQUIRE(!woken);
	return 0;
}

static int run_and_grow(void *engine)
{
	struct sides s = { 0 };
	int ends[2];

	make_loop(&s, *(uint32_t *)engine);
	open_sides(&s);
	HARNESS_REQUIRE(wharf_pair(ends) == 0);
	lock_in(WH_NEED_RUN | WH_NEED_GROW, *(uint32_t *)engine);
	for (size_t size = 64; size <= 4 * MIB; size *= 4) {
		send_claimed(&s, size);
		send_descriptor(&s);
	}
	HARNESS_REQUIRE(wharf_port_pass(s.a, 1, ends[0]) == 0);
	until(&s, &s.n_fds, s.n_fds + 1);
	HARNESS_REQUIRE(wharf_port_close(s.a, 1000000000) == 0);
	until(&s, &s.n_closed, 2);
	return 0;
}

struct visit {
	struct sides sides;
	char name[HARNESS_PATH_MAX], path[HARNESS_PATH_MAX + 8];
};

static void on_accept(wharf_listener *listener, const struct wharf_peer *who, void *user)
{
	struct sides *s = user;

	(void)who;
	HARNESS_REQUIRE(wharf_accept(listener, WHARF_OPT(port, .ops = &ops, .user = s), &s->b) == 0);
}

static const struct wharf_listener_ops listener_ops = { .size = sizeof(listener_ops), .on_accept = on_accept };

static void visit(struct sides *s, const char *address)
{
	wharf_listener *listener;
	unsigned n = s->n_open;

	HARNESS_REQUIRE(
		wharf_listen(s->loop, address, WHARF_OPT(listener, .ops = &listener_ops, .user = s), &listener) == 0);
	HARNESS_REQUIRE(wharf_connect(s->loop, address, WHARF_OPT(port, .ops = &ops, .user = s), &s->a) == 0);
	until(s, &s->n_open, n + 2);
	send_claimed(s, 100);
	wharf_listener_close(listener);
}

static int from_the_beginning(void *arg)
{
	struct visit *v = arg;
	uint32_t engine = (uint32_t)(uintptr_t)v->sides.loop;

	lock_in(WH_NEED_RUN | WH_NEED_GROW | WH_NEED_SETUP, engine);
	make_loop(&v->sides, engine);
	open_sides(&v->sides);
	send_claimed(&v->sides, MIB);
	visit(&v->sides, v->name);
	visit(&v->sides, v->path);
	HARNESS_REQUIRE(!wharf_loop_free(v->sides.loop));
	return 0;
}

#define NEEDS_TEST(name) \
	static void name(uint32_t engine); \
	Test(needs, name##_uring) \
	{ \
		wh_engine_close(open_plain(0)); /* skipped where there is none */ \
		name(WHARF_ENGINE_URING); \
	} \
	Test(needs, name##_epoll) { name(WHARF_ENGINE_EPOLL); } \
	static void name(uint32_t engine)

NEEDS_TEST(open_ports_run_on_the_calls_of_a_turn) { cr_assert_eq(harness_run(only_run, &engine, 20000), 0); }

NEEDS_TEST(ports_fail_and_loops_end_on_the_same) { cr_assert_eq(harness_run(fail_and_free, &engine, 20000), 0); }

NEEDS_TEST(pools_grow_on_a_few_more) { cr_assert_eq(harness_run(run_and_grow, &engine, 20000), 0); }

NEEDS_TEST(loops_listeners_and_connections_need_no_other)
{
	char directory[HARNESS_PATH_MAX];
	struct visit v = { .sides.loop = (wharf_loop *)(uintptr_t)engine };

	harness_dir_make(directory);
	harness_abstract_name(v.name);
	snprintf(v.path, sizeof(v.path), "%s/s", directory);
	cr_assert_eq(harness_run(from_the_beginning, &v, 20000), 0);
	harness_dir_remove(directory);
}

static int result_of(struct io_uring *ring, struct io_uring_sqe *sqe)
{
	struct io_uring_cqe *cqe;
	int result;

	io_uring_sqe_set_data64(sqe, 0);
	cr_assert_eq(io_uring_submit_and_wait(ring, 1), 1);
	cr_assert_eq(io_uring_peek_cqe(ring, &cqe), 0);
	result = cqe->res;
	io_uring_cqe_seen(ring, cqe);
	return result;
}

Test(needs, a_ring_does_nothing_that_the_engine_does_not)
{
	struct wh_engine *engine = open_plain(0);
	struct io_uring *ring = &wh_uring_of(engine)->ring;
	struct io_uring_sqe *sqe;

	cr_assert_geq(wh_engine_turn(engine, 0), 0);
	sqe = io_uring_get_sqe(ring);
	io_uring_prep_nop(sqe);
	cr_expect_eq(result_of(ring, sqe), -EACCES);
	sqe = io_uring_get_sqe(ring);
	io_uring_prep_openat(sqe, AT_FDCWD, "/", O_RDONLY, 0);
	cr_expect_eq(result_of(ring, sqe), -EACCES);
	sqe = io_uring_get_sqe(ring);
	io_uring_prep_poll_add(sqe, STDIN_FILENO, 0);
	sqe->flags |= IOSQE_IO_LINK;
	cr_expect_eq(result_of(ring, sqe), -EACCES);
	cr_expect_eq(io_uring_register((unsigned)ring->ring_fd, IORING_REGISTER_FILES, (int[]){ 0 }, 1), -EACCES);
	wh_engine_close(engine);
}
