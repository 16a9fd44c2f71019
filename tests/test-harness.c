/* SPDX-License-Identifier: MIT */
/* The helpers of the other tests: a leak check that finds nothing would pass everything. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "harness.h"

Test(harness, nothing_done_is_no_leak)
{
	struct harness_snapshot before;
	harness_snapshot_take(&before);
	const char *leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

Test(harness, leaked_descriptor_is_named)
{
	struct harness_snapshot before;
	harness_snapshot_take(&before);
	size_t n = harness_count_fds();
	int fd = memfd_create("some-name", MFD_CLOEXEC);
	cr_assert_geq(fd, 0);
	cr_assert_eq(harness_count_fds(), n + 1);
	const char *leak = harness_snapshot_diff(&before);
	cr_assert(leak && strstr(leak, "leaked descriptor") && strstr(leak, "some-name"), "%s", leak);
	close(fd);
}

Test(harness, descriptor_closed_by_mistake_is_named)
{
	int fds[2];
	cr_assert_eq(pipe2(fds, O_CLOEXEC), 0);
	struct harness_snapshot before;
	harness_snapshot_take(&before);
	close(fds[0]);
	const char *leak = harness_snapshot_diff(&before);
	cr_assert(leak && strstr(leak, "lost descriptor") && strstr(leak, "pipe:"), "%s", leak);
	close(fds[1]);
}

Test(harness, mapping_that_stays_is_named)
{
	int fd = memfd_create("stays", MFD_CLOEXEC);
	cr_assert_eq(ftruncate(fd, 1 << 20), 0);
	struct harness_snapshot before;
	size_t n = harness_count_maps("/memfd:stays");
	harness_snapshot_take(&before);
	void *map = mmap(NULL, 1 << 20, PROT_READ, MAP_SHARED, fd, 0);
	cr_assert_neq(map, MAP_FAILED);
	cr_assert_eq(harness_count_maps("/memfd:stays"), n + 1);
	const char *leak = harness_snapshot_diff(&before);
	cr_assert(leak && strstr(leak, "leaked mapping of 1048576 bytes") && strstr(leak, "stays"), "%s", leak);
	munmap(map, 1 << 20);
	close(fd);
}

Test(harness, mapping_split_in_two_is_no_leak)
{
	int fd = memfd_create("split", MFD_CLOEXEC);
	cr_assert_eq(ftruncate(fd, 1 << 16), 0);
	char *map = mmap(NULL, 1 << 16, PROT_READ, MAP_SHARED, fd, 0);
	cr_assert_neq((void *)map, MAP_FAILED);
	struct harness_snapshot before;
	harness_snapshot_take(&before);
	cr_assert_eq(madvise(map, 1 << 15, MADV_DONTFORK), 0);
	cr_assert_eq(harness_count_maps("/memfd:split"), 2);
	const char *leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
	munmap(map, 1 << 16);
	close(fd);
}

static int answer(void *arg)
{
	return *(int *)arg;
}

static int fail_a_requirement(void *arg)
{
	(void)arg;
	HARNESS_REQUIRE(1 + 1 == 2);
	HARNESS_REQUIRE(1 + 1 == 3);
	return 0;
}

static int wait_for_ever(void *arg)
{
	(void)arg;
	while (pause() < 0)
		;
	return 0;
}

Test(harness, child_ends_with_what_it_returns)
{
	int code = 7;
	cr_assert_eq(harness_run(answer, &code, 10000), 7);
	cr_assert_eq(harness_run(fail_a_requirement, NULL, 10000), HARNESS_FAILED);
}

Test(harness, child_that_was_killed_shows_the_signal)
{
	struct harness_snapshot before;
	harness_snapshot_take(&before);
	struct harness_child child;
	harness_child_start(&child, wait_for_ever, NULL);
	harness_child_signal(&child, SIGTERM);
	cr_assert_eq(harness_child_wait(&child, 10000), 256 + SIGTERM);
	const char *leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

Test(harness, child_that_hangs_is_killed)
{
	struct harness_child child;
	harness_child_start(&child, wait_for_ever, NULL);
	pid_t pid = child.pid;
	cr_assert_eq(harness_child_wait(&child, 50), -ETIMEDOUT);
	cr_assert(kill(pid, 0) < 0 && errno == ESRCH);
	harness_child_end(&child); /* nothing left to do */
}

Test(harness, random_numbers_are_those_of_splitmix64)
{
	struct harness_random r = { 1234567 };
	cr_assert_eq(harness_random_next(&r), 6457827717110365317ull);
	cr_assert_eq(harness_random_next(&r), 3203168211198807973ull);
	cr_assert_eq(harness_random_next(&r), 9817491932198370423ull);
	for (int i = 0; i < 1000; i++)
		cr_assert_lt(harness_random_below(&r, 10), 10);
}

Test(harness, seed_comes_from_the_environment)
{
	setenv("WHARF_TEST_SEED", "0x1234", 1);
	cr_assert_eq(harness_seed(), 0x1234);
	unsetenv("WHARF_TEST_SEED");
	cr_assert_eq(harness_seed(), harness_seed());
}

Test(harness, directory_goes_with_its_contents)
{
	char path[HARNESS_PATH_MAX], file[HARNESS_PATH_MAX + 8];
	struct stat st;
	harness_dir_make(path);
	snprintf(file, sizeof file, "%s/file", path);
	int fd = open(file, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	cr_assert_geq(fd, 0);
	close(fd);
	harness_dir_remove(path);
	cr_assert(stat(path, &st) < 0 && errno == ENOENT);
}

Test(harness, abstract_names_differ)
{
	char a[HARNESS_PATH_MAX], b[HARNESS_PATH_MAX];
	harness_abstract_name(a);
	harness_abstract_name(b);
	cr_assert_eq(a[0], '@');
	cr_assert_str_neq(a, b);
}
