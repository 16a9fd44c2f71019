/* SPDX-License-Identifier: MIT */
/* Which engine a loop gets: what the program says, what the environment says, what the kernel refuses. */
#include <criterion/criterion.h>
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "filter.h"
#include "harness.h"
#include "pair.h"

enum { NAME_MAX_BYTES = 100 };

static char said[256];

static void note(const char *text, void *user)
{
	(void)user;
	strncpy(said, text, sizeof(said) - 1);
}

/* 0, and the name of the engine that a loop gets and turns with; or the error. */
static int engine_of(uint32_t engine, const char *variable, char *ret_name)
{
	struct wharf_loop_options o;
	wharf_loop *loop;
	int error;

	if (variable)
		setenv("WHARF_ENGINE", variable, 1);
	else
		unsetenv("WHARF_ENGINE");
	WHARF_INIT(&o);
	o.engine = engine;
	o.diagnostic = note;
	said[0] = ret_name[0] = '\0';
	error = wharf_loop_new(&o, &loop);
	if (error)
		return error;
	strncat(ret_name, wharf_loop_engine(loop), NAME_MAX_BYTES - 1);
	error = wharf_loop_step(loop, 0);
	wharf_loop_free(loop);
	return error;
}

static int find_uring(void *arg)
{
	char name[NAME_MAX_BYTES];

	(void)arg;
	return engine_of(WHARF_ENGINE_URING, NULL, name) != 0;
}

/* Asked in a child, so that children of the test may make loops still. */
static bool has_uring(void) { return harness_run(find_uring, NULL, 20000) == 0; }

static void expect(uint32_t engine, const char *variable, const char *name)
{
	char got[NAME_MAX_BYTES];
	int error = engine_of(engine, variable, got);

	if (error == -EPERM || error == -ENOSYS || error == -EACCES)
		cr_skip_test("io_uring is not to be had here: errno %d", -error);
	cr_assert_eq(error, 0, "%s: errno %d", variable ? variable : "nothing", -error);
	cr_assert_str_eq(got, name);
	cr_assert_str_empty(said);
}

Test(engine_choice, the_environment_decides_where_the_program_does_not)
{
	expect(WHARF_ENGINE_AUTO, "epoll", "epoll (io_uring: not asked for)");
	expect(WHARF_ENGINE_AUTO, "uring", "io_uring");
	expect(WHARF_ENGINE_AUTO, "uring:1", "io_uring (no deferred work)");
	expect(WHARF_ENGINE_AUTO, "uring:2", "io_uring (single shot)");
	expect(WHARF_ENGINE_AUTO, "auto", "io_uring");
	expect(WHARF_ENGINE_AUTO, "", "io_uring");
	expect(WHARF_ENGINE_AUTO, NULL, "io_uring");
}

Test(engine_choice, what_the_program_says_wins)
{
	expect(WHARF_ENGINE_EPOLL, "uring", "epoll (io_uring: not asked for)");
	expect(WHARF_ENGINE_EPOLL, "nonsense", "epoll (io_uring: not asked for)");
	expect(WHARF_ENGINE_URING, "epoll", "io_uring");
}

Test(engine_choice, a_word_that_names_no_engine_is_an_error_that_says_so)
{
	static const char *const words[] = { "kqueue", "uring:3", "uring:", "epoll ", "EPOLL", "1" };
	char name[NAME_MAX_BYTES];

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		cr_assert_eq(engine_of(WHARF_ENGINE_AUTO, words[i], name), -EINVAL, "%s", words[i]);
		cr_assert(strstr(said, words[i]) && strstr(said, "WHARF_ENGINE"), "%s: %s", words[i], said);
	}
}

struct refusal {
	uint32_t call, error;
	const char *name;
};

static int come_up_without(void *arg)
{
	const struct refusal *refusal = arg;
	char name[NAME_MAX_BYTES];

	HARNESS_REQUIRE(filter_refuse(refusal->call, refusal->error) == 0);
	HARNESS_REQUIRE(engine_of(WHARF_ENGINE_AUTO, NULL, name) == 0);
	HARNESS_REQUIRE(!strcmp(name, refusal->name));
	HARNESS_REQUIRE(engine_of(WHARF_ENGINE_URING, NULL, name) == -(int)refusal->error);
	HARNESS_REQUIRE(engine_of(WHARF_ENGINE_AUTO, "uring", name) == -(int)refusal->error);
	HARNESS_REQUIRE(engine_of(WHARF_ENGINE_AUTO, "epoll", name) == 0);
	return 0;
}

Test(engine_choice, where_io_uring_is_refused_there_is_epoll_and_the_name_says_why)
{
	static const struct refusal refusals[] = {
		{ SYS_io_uring_setup, EPERM, "epoll (io_uring: EPERM, Operation not permitted)" },
		{ SYS_io_uring_setup, ENOSYS, "epoll (io_uring: ENOSYS, Function not implemented)" },
		{ SYS_io_uring_setup, EACCES, "epoll (io_uring: EACCES, Permission denied)" },
		{ SYS_io_uring_setup, EOPNOTSUPP, "epoll (io_uring: EOPNOTSUPP, Operation not supported)" },
	};
	static const struct refusal half[] = {
		{ SYS_io_uring_enter, EPERM, "epoll (io_uring: EPERM, Operation not permitted)" },
		{ SYS_io_uring_register, EPERM, "epoll (io_uring: EPERM, Operation not permitted)" },
	};

	for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++)
		cr_assert_eq(harness_run(come_up_without, (void *)(uintptr_t)&refusals[i], 20000), 0);
	/* Filters that let rings be made, and no more than that; to be seen only where nothing else refuses them. */
	if (has_uring())
		for (size_t i = 0; i < sizeof(half) / sizeof(half[0]); i++)
			cr_assert_eq(harness_run(come_up_without, (void *)(uintptr_t)&half[i], 20000), 0);
}

static int come_up_on_an_old_kernel(void *arg)
{
	char name[NAME_MAX_BYTES];

	(void)arg;
	HARNESS_REQUIRE(filter_refuse(SYS_io_uring_setup, EINVAL) == 0);
	HARNESS_REQUIRE(engine_of(WHARF_ENGINE_AUTO, NULL, name) == 0);
	HARNESS_REQUIRE(!strcmp(name, "epoll (io_uring: EOPNOTSUPP, Operation not supported)"));
	return 0;
}

Test(engine_choice, a_kernel_that_takes_no_step_of_the_ladder_is_too_old)
{
	cr_assert_eq(harness_run(come_up_on_an_old_kernel, NULL, 20000), 0);
}

static int talk_without_buffer_rings(void *arg)
{
	struct pair p;

	(void)arg;
	HARNESS_REQUIRE(filter_refuse_argument(SYS_io_uring_register, 1, IORING_REGISTER_PBUF_RING, EINVAL) == 0);
	setenv("WHARF_ENGINE", "uring", 1);
	pair_open(&p, NULL, NULL);
	HARNESS_REQUIRE(!strcmp(wharf_loop_engine(p.loop), "io_uring (single shot)"));
	HARNESS_REQUIRE(wharf_send_bytes(p.a.port, 1, "there", 5) == 0);
	settle(p.loop);
	HARNESS_REQUIRE(p.b.n_messages == 1 && !memcmp(p.b.seen[0].bytes, "there", 5));
	pair_free(&p);
	return 0;
}

Test(engine_choice, a_kernel_without_buffer_rings_has_io_uring_all_the_same)
{
	if (!has_uring())
		cr_skip_test("io_uring is not to be had here");
	cr_assert_eq(harness_run(talk_without_buffer_rings, NULL, 20000), 0);
}

static int come_up_without_locked_memory(void *arg)
{
	struct rlimit limit = { .rlim_cur = 0 };
	char name[NAME_MAX_BYTES];

	(void)arg;
	HARNESS_REQUIRE(getuid() || setuid(61236) == 0);
	HARNESS_REQUIRE(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
	HARNESS_REQUIRE(engine_of(WHARF_ENGINE_AUTO, NULL, name) == 0);
	/* Not all kernels ask for it. */
	return strcmp(name, "epoll (io_uring: ENOMEM, Cannot allocate memory)") ? strcmp(name, "io_uring") ? 1 : 77 : 0;
}

Test(engine_choice, where_no_memory_may_be_locked_there_is_epoll)
{
	int result = harness_run(come_up_without_locked_memory, NULL, 20000);

	if (result == 77)
		cr_skip_test("this kernel does not ask for locked memory");
	if (result == 1)
		cr_skip_test("io_uring is not to be had here");
	cr_assert_eq(result, 0);
}

static int run_out_of_descriptors(void *arg)
{
	char name[NAME_MAX_BYTES];
	int error;

	(void)arg;
	for (unsigned more = 0; more < 20; more++) {
		harness_limit_fds(more);
		error = engine_of(WHARF_ENGINE_AUTO, NULL, name);
		harness_unlimit_fds();
		if (!error)
			return more && !strcmp(name, "io_uring") ? 0 : 1;
		HARNESS_REQUIRE(error == -EMFILE);
	}
	return 2;
}

Test(engine_choice, a_shortage_of_descriptors_is_no_reason_for_another_engine)
{
	if (!has_uring())
		cr_skip_test("io_uring is not to be had here");
	cr_assert_eq(harness_run(run_out_of_descriptors, NULL, 20000), 0);
}
