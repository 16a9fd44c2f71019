/* SPDX-License-Identifier: MIT */
/* What segments take for granted of memfds, seals and madvise. */
#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "compat.h"
#include "harness.h"

TestSuite(kernel_memfd, .timeout = 60);

enum {
	SIZE = 1 << 16,
	SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL,
};

static int open_memfd(void)
{
	int fd = memfd_create("wharf-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	cr_assert_geq(fd, 0);
	cr_assert_eq(ftruncate(fd, SIZE), 0);
	return fd;
}

static char *map(int fd, int protection)
{
	return mmap(NULL, SIZE, protection, MAP_SHARED, fd, 0);
}

Test(kernel_memfd, owner_who_mapped_before_sealing_goes_on_writing)
{
	int fd = open_memfd();
	char *mine = map(fd, PROT_READ | PROT_WRITE), *theirs;

	cr_assert_eq(fcntl(fd, F_ADD_SEALS, SEALS), 0);
	mine[5] = 'a';
	theirs = map(fd, PROT_READ);
	cr_assert_neq(theirs, MAP_FAILED);
	cr_assert_eq(theirs[5], 'a');
	mine[5] = 'b';
	cr_assert_eq(theirs[5], 'b');
}

Test(kernel_memfd, nobody_else_can_write_or_resize_a_sealed_one)
{
	int fd = open_memfd();
	char *mine = map(fd, PROT_READ | PROT_WRITE), *theirs;

	*mine = 'a';
	cr_assert_eq(fcntl(fd, F_ADD_SEALS, SEALS), 0);
	theirs = map(fd, PROT_READ);
	cr_assert_eq(map(fd, PROT_READ | PROT_WRITE), MAP_FAILED);
	cr_assert_eq(errno, EPERM);
	cr_assert_eq(mprotect(theirs, SIZE, PROT_READ | PROT_WRITE), -1);
	cr_assert_eq(errno, EACCES);
	cr_assert_eq(pwrite(fd, "x", 1, 0), -1);
	cr_assert_eq(errno, EPERM);
	cr_assert_eq(ftruncate(fd, SIZE / 2), -1);
	cr_assert_eq(errno, EPERM);
	cr_assert_eq(ftruncate(fd, SIZE * 2), -1);
	cr_assert_eq(errno, EPERM);
	cr_assert_eq(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE), -1);
	cr_assert_eq(errno, EPERM);
	cr_assert_neq(madvise(theirs, SIZE, MADV_REMOVE), 0);
	cr_assert_eq(*theirs, 'a');
}

Test(kernel_memfd, seals_can_be_read_and_are_final)
{
	int fd = open_memfd();

	cr_assert_neq(map(fd, PROT_READ | PROT_WRITE), MAP_FAILED);
	cr_assert_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	cr_assert_eq(errno, EBUSY); /* why FUTURE_WRITE it must be */
	cr_assert_eq(fcntl(fd, F_ADD_SEALS, SEALS), 0);
	cr_assert_eq(fcntl(fd, F_GET_SEALS) & SEALS, SEALS);
	cr_assert_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	cr_assert_eq(errno, EPERM);
}

Test(kernel_memfd, seals_are_asked_of_a_regular_file_in_vain)
{
	char path[HARNESS_PATH_MAX], file[HARNESS_PATH_MAX + 8];
	int fd;

	harness_dir_make(path);
	snprintf(file, sizeof(file), "%s/file", path);
	fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	cr_assert_geq(fd, 0);
	int seals = fcntl(fd, F_GET_SEALS);
	cr_assert(seals < 0 || seals == F_SEAL_SEAL, "seals %x", (unsigned)seals); /* tmpfs answers, others refuse */
	close(fd);
	harness_dir_remove(path);
}

Test(kernel_memfd, blocks_tell_a_sparse_file_from_an_allocated_one)
{
	int fd = open_memfd();
	struct stat st;

	cr_assert_eq(fstat(fd, &st), 0);
	cr_assert(S_ISREG(st.st_mode));
	cr_assert_eq(st.st_size, SIZE);
	cr_assert_eq(st.st_blocks, 0);
	cr_assert_eq(fallocate(fd, 0, 0, SIZE), 0);
	cr_assert_eq(fstat(fd, &st), 0);
	cr_assert_geq(st.st_blocks * 512, SIZE);
}

Test(kernel_memfd, new_one_that_cannot_be_executed_takes_the_same_seals)
{
	int fd = memfd_create("wharf-test", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
	struct stat st;

	if (fd < 0) {
		cr_assert_eq(errno, EINVAL); /* before 6.3: asked again without */
		cr_skip_test("this kernel has no MFD_NOEXEC_SEAL");
	}
	cr_assert_eq(fstat(fd, &st), 0);
	cr_assert_eq(st.st_mode & 0111, 0);
	cr_assert_eq(ftruncate(fd, SIZE), 0);
	cr_assert_eq(fcntl(fd, F_ADD_SEALS, SEALS), 0);
	cr_assert_eq(fcntl(fd, F_GET_SEALS) & (SEALS | F_SEAL_EXEC), SEALS | F_SEAL_EXEC);
}

Test(kernel_memfd, name_shows_in_proc)
{
	char path[64], target[64] = "";
	int fd = open_memfd();

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	cr_assert_gt(readlink(path, target, sizeof(target) - 1), 0);
	cr_assert_str_eq(target, "/memfd:wharf-test (deleted)");
}

/* ---- Children ---------------------------------------------------------------------------------------------------- */

static int write_byte(void *arg)
{
	*(char *)arg = 'c';
	return 0;
}

static int look_at(void *arg)
{
	unsigned char resident[SIZE / 4096];

	return mincore(arg, SIZE, resident) < 0 ? errno : 0;
}

Test(kernel_memfd, seal_does_not_bind_a_mapping_that_a_child_inherits)
{
	int fd = open_memfd();
	char *mine = map(fd, PROT_READ | PROT_WRITE);

	cr_assert_eq(fcntl(fd, F_ADD_SEALS, SEALS), 0);
	cr_assert_eq(harness_run(write_byte, mine, 20000), 0);
	cr_assert_eq(*mine, 'c'); /* hence the next test */
}

Test(kernel_memfd, mapping_that_is_not_for_children_is_not_there)
{
	int fd = open_memfd();
	char *mine = map(fd, PROT_READ | PROT_WRITE);

	cr_assert_eq(madvise(mine, SIZE, MADV_DONTFORK), 0);
	cr_assert_eq(harness_run(look_at, mine, 20000), ENOMEM);
	cr_assert_eq(*mine, 0);
}

static int is_zero(void *arg)
{
	return *(char *)arg == 0;
}

Test(kernel_memfd, wiped_page_is_zero_in_a_child_only)
{
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	cr_assert_eq(madvise(page, 4096, MADV_WIPEONFORK), 0);
	*page = 1;
	cr_assert_eq(harness_run(is_zero, page, 20000), 1);
	cr_assert_eq(*page, 1);
}
