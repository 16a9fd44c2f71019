/* SPDX-License-Identifier: MIT */
/* wharf-inspect where something is in its way: garbage, other versions, ends, mistakes. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "inspect-process.h"
#include "wharf.h"

TestSuite(inspect_trouble, .timeout = 120);

/* ---- Control memory made by hand ------------------------------------------------------------------------------- */

/* The first 64 bytes of it, as lib/control.h says; what a stranger's process could have there. */
struct header {
	uint64_t magic;
	uint32_t version, pid;
	uint64_t start_time, size, sequence;
	uint32_t first_pool, n_pools;
	uint64_t used;
	uint32_t first_loop, n_loops;
};

#define MAGIC UINT64_C(0x4c54434652414857)
enum { VERSION = 3, SIZE = 1 << 20 };

static uint64_t own_start_time(void)
{
	char text[1024], *at;
	FILE *file = fopen("/proc/self/stat", "re");
	size_t n = file ? fread(text, 1, sizeof text - 1, file) : 0;

	if (file)
		fclose(file);
	text[n] = '\0';
	at = strrchr(text, ')');
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	return at ? strtoull(at, NULL, 10) : 0;
}

/* What is wrong with it. */
enum forgery { OTHER_VERSION, NEWER_VERSION, OTHER_PROCESS, NO_MAGIC, TOO_SHORT, CIRCLE, NOISE, ODD, SHRINKS, FORGERIES };

static int play_forger(struct scene *scene)
{
	int fd = memfd_create("wharf-control", MFD_CLOEXEC);
	struct harness_random random = { harness_seed() + (uint64_t)scene->number };
	struct header header = {
		.magic = MAGIC, .version = VERSION, .pid = (uint32_t)getpid(), .start_time = own_start_time(), .size = SIZE,
		.used = SIZE,
	};
	uint32_t circle[16] = { 0 };

	HARNESS_REQUIRE(fd >= 0 && ftruncate(fd, SIZE) == 0);
	switch ((enum forgery)scene->number) {
	case OTHER_VERSION:
		header.version = 2;
		break;
	case NEWER_VERSION:
		header.version = 77;
		break;
	case OTHER_PROCESS:
		header.pid = 1;
		break;
	case NO_MAGIC:
		header.magic++;
		break;
	case TOO_SHORT:
		HARNESS_REQUIRE(ftruncate(fd, 5000) == 0);
		header.first_loop = header.first_pool = 64;
		break;
	case CIRCLE:
		/* Each is the other's next and previous: a list without a beginning. */
		for (uint32_t i = 0; i < 2; i++) {
			circle[0] = circle[1] = 64 + 64 * (1 - i);
			circle[8] = circle[0];
			HARNESS_REQUIRE(pwrite(fd, circle, sizeof circle, 64 * (64 + 64 * (off_t)i)) > 0);
		}
		header.first_loop = header.first_pool = 64;
		break;
	case NOISE:
		for (off_t at = 4096; at < SIZE; at += 8) {
			/* Small numbers are positions, often enough. */
			uint64_t word = harness_random_below(&random, 3) ? harness_random_below(&random, SIZE / 64) :
				harness_random_next(&random);
			HARNESS_REQUIRE(pwrite(fd, &word, 8, at) == 8);
		}
		header.first_loop = 64 + (uint32_t)harness_random_below(&random, 1000);
		header.first_pool = 64 + (uint32_t)harness_random_below(&random, 1000);
		break;
	case ODD:
		header.sequence = 1;
		break;
	case SHRINKS:
	case FORGERIES:
		header.first_loop = 64;
		break;
	}
	HARNESS_REQUIRE(pwrite(fd, &header, sizeof header, 0) == sizeof header);
	scene_ready(scene);
	while (scene->number == SHRINKS)
		HARNESS_REQUIRE(ftruncate(fd, 64) == 0 && ftruncate(fd, SIZE) == 0);
	return pause();
}

static void look(enum forgery forgery, const char *view, struct said *ret_said)
{
	struct scene scene;

	scene_start(&scene, play_forger, -1, (int)forgery);
	inspect_pid(ret_said, scene.child.pid, view, "--interval=0");
	scene_end(&scene);
}

Test(inspect_trouble, other_versions_are_told_as_such)
{
	struct said said;

	look(OTHER_VERSION, "show", &said);
	cr_expect_eq(said.status, 1);
	expect_one_line(&said);
	expect_error(&said, "older than this tool: layout 2");
	said_free(&said);
	look(NEWER_VERSION, "show", &said);
	expect_one_line(&said);
	expect_error(&said, "newer than this tool: layout 77");
	said_free(&said);
}

Test(inspect_trouble, a_process_with_another_version_hides_no_other)
{
	struct scene other, ours;
	struct said said;
	bool listed = false;

	scene_start(&other, play_forger, -1, OTHER_VERSION);
	scene_start(&ours, play_leaker, -1, 1);
	inspect(&said, "list", "--json", "--interval=0", NULL);
	cr_expect_eq(said.status, 1);
	expect_error(&said, "older than this tool: layout 2");
	expect_error(&said, inspect_number(other.child.pid));
	for (size_t i = 0; i < said_length(&said, "/processes"); i++)
		listed |= said_count(&said, "/processes/%zu/pid", i) == (uint64_t)ours.child.pid;
	cr_expect(listed, "%s", said.out);
	said_free(&said);
	/* And where both are asked for. */
	inspect(&said, "rings", "--interval=0", inspect_number(other.child.pid), inspect_number(ours.child.pid), NULL);
	cr_expect_eq(said.status, 1);
	expect_one_line(&said);
	expect_out(&said, inspect_number(ours.child.pid));
	said_free(&said);
	scene_end(&ours);
	scene_end(&other);
}

Test(inspect_trouble, the_page_of_another_process_is_not_taken_for_its_own)
{
	struct said said;

	look(OTHER_PROCESS, "show", &said);
	cr_expect_eq(said.status, 1);
	expect_one_line(&said);
	expect_error(&said, "process 1");
	said_free(&said);
	look(NO_MAGIC, "show", &said);
	cr_expect_eq(said.status, 1);
	expect_one_line(&said);
	said_free(&said);
}

Test(inspect_trouble, garbage_is_named_and_shown_as_far_as_it_goes)
{
	static const enum forgery forgeries[] = { TOO_SHORT, CIRCLE, NOISE };
	static const char *const views[] = { "show", "ports", "rings", "chunks", "list", "prometheus" };
	struct said said;

	for (size_t f = 0; f < 3; f++) {
		for (size_t v = 0; v < 6; v++) {
			look(forgeries[f], views[v], &said);
			/* The harness has seen that it did not crash. */
			if (v == 0)
				expect_out(&said, "garbage: ");
			said_free(&said);
		}
	}
}

Test(inspect_trouble, what_was_left_half_way_is_shown_as_torn)
{
	struct said said;

	look(ODD, "show", &said);
	cr_expect_eq(said.status, 0);
	expect_out(&said, "torn");
	said_free(&said);
}

Test(inspect_trouble, memory_that_is_cut_short_under_it_kills_nobody)
{
	struct said said;

	for (int i = 0; i < 10; i++) {
		look(SHRINKS, "show", &said);
		said_free(&said);
	}
}

/* ---- Ends and mistakes ------------------------------------------------------------------------------------------ */

static int do_nothing(struct scene *scene)
{
	scene_ready(scene);
	return pause();
}

Test(inspect_trouble, who_is_not_there_or_has_no_wharf)
{
	struct scene scene;
	struct said said;

	scene_start(&scene, do_nothing, -1, 0);
	inspect_pid(&said, scene.child.pid, "show");
	cr_expect_eq(said.status, 1);
	expect_one_line(&said);
	expect_error(&said, "does not use wharf");
	said_free(&said);
	harness_child_signal(&scene.child, SIGKILL);
	waitid(P_PID, (id_t)scene.child.pid, &(siginfo_t){ 0 }, WEXITED | WNOWAIT);
	inspect_pid(&said, scene.child.pid, "show");
	expect_one_line(&said);
	expect_error(&said, "it has exited");
	said_free(&said);
	scene_end(&scene);
	inspect_pid(&said, scene.child.pid ? scene.child.pid : 999999999, "show");
	cr_expect_eq(said.status, 1);
	expect_one_line(&said);
	said_free(&said);
}

Test(inspect_trouble, who_exits_between_two_looks)
{
	struct scene scene;
	struct inspector inspector;
	struct said said;

	scene_start(&scene, play_leaker, -1, 3);
	inspect_start(&inspector, "show", "--interval=3s", inspect_number(scene.child.pid), NULL);
	/* Whether it had its first look by then or not: one line. */
	scene_end(&scene);
	inspect_finish(&inspector, &said);
	cr_expect_eq(said.status, 1);
	expect_one_line(&said);
	said_free(&said);
}

static void *stay_around(void *scene)
{
	scene_ready(scene);
	pause();
	return NULL;
}

static int play_late_thread(struct scene *scene)
{
	wharf_loop *loop;
	pthread_t thread;

	HARNESS_REQUIRE(wharf_loop_new(NULL, &loop) == 0);
	/* So that it begins some ticks after its process. */
	nanosleep(&(struct timespec){ .tv_nsec = 50000000 }, NULL);
	HARNESS_REQUIRE(pthread_create(&thread, NULL, stay_around, scene) == 0);
	return pause();
}

Test(inspect_trouble, the_number_of_a_thread_stands_for_its_process)
{
	struct scene scene;
	struct said said;
	struct dirent *entry;
	DIR *tasks;
	char path[64];
	int number = 0;

	scene_start(&scene, play_late_thread, -1, 0);
	snprintf(path, sizeof path, "/proc/%d/task", scene.child.pid);
	tasks = opendir(path);
	cr_assert_not_null(tasks);
	while ((entry = readdir(tasks)))
		if (*entry->d_name != '.' && atoi(entry->d_name) != scene.child.pid)
			number = atoi(entry->d_name);
	closedir(tasks);
	inspect_pid(&said, number, "show", "--json", "--interval=0");
	cr_assert_eq(said.status, 0, "%s", said.errors);
	cr_expect_eq(said_count(&said, "/processes/0/pid"), (uint64_t)scene.child.pid);
	said_free(&said);
	scene_end(&scene);
}

static int play_undumpable(struct scene *scene)
{
	wharf_loop *loop;

	HARNESS_REQUIRE(wharf_loop_new(NULL, &loop) == 0);
	if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
		return 1;
	HARNESS_REQUIRE(prctl(PR_SET_DUMPABLE, 0) == 0);
	scene_ready(scene);
	return pause();
}

static int look_as_nobody(void *arg)
{
	const char *program = getenv("WHARF_INSPECT");

	if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
		return 99;
	execl(program, program, "show", arg, NULL);
	return 98;
}

Test(inspect_trouble, who_may_not_be_looked_at_is_told_with_the_reason)
{
	struct scene scene;

	if (geteuid() != 0)
		cr_skip_test("only root can become somebody else");
	if (access(getenv("WHARF_INSPECT"), X_OK) < 0)
		cr_skip_test("the program is not there for others");
	scene_start(&scene, play_undumpable, -1, 0);
	cr_expect_eq(harness_run(look_as_nobody, (void *)(uintptr_t)inspect_number(scene.child.pid), 30000), 1);
	scene_end(&scene);
}

Test(inspect_trouble, each_mistake_is_one_line)
{
	static const char *const mistakes[][4] = {
		{ NULL },
		{ "nothing" },
		{ "show", "x" },
		{ "show", "0" },
		{ "show", "--interval=1parsec" },
		{ "show", "--interval" },
		{ "show", "--no-such-option" },
		{ "list", "--core=x" },
		{ "show", "--core=x", "1" },
		{ "trace" },
		{ "trace", "1", "2" },
		{ "trace", "--kinds=send,nonsense", "1" },
		{ "top", "--json" },
		{ "show", "--width=39", "1" },
		{ "show", "--color=green", "1" },
	};
	struct said said;

	for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
		inspect(&said, mistakes[i][0], mistakes[i][1], mistakes[i][2], NULL);
		cr_expect_eq(said.status, 2, "%zu: %s", i, said.errors);
		expect_one_line(&said);
		cr_expect_str_empty(said.out);
		said_free(&said);
	}
}

Test(inspect_trouble, help_and_version)
{
	struct said said;

	inspect(&said, "--help", NULL);
	cr_expect_eq(said.status, 0);
	expect_out(&said, "chunks");
	said_free(&said);
	inspect(&said, "--version", NULL);
	cr_expect_eq(said.status, 0);
	expect_out(&said, wharf_version());
	said_free(&said);
}
