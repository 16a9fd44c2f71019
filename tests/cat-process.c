/* SPDX-License-Identifier: MIT */
/* wharf-cat as a child process, and data to send through it. */
#include "cat-process.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

char cat_dir[HARNESS_PATH_MAX];
char cat_dock[HARNESS_PATH_MAX + 8];

char *cat_path(const char *name)
{
	static char paths[8][HARNESS_PATH_MAX + 32];
	static unsigned int n;
	char *path = paths[n++ % 8];

	snprintf(path, sizeof paths[0], "%s/%s", cat_dir, name);
	return path;
}

void cat_dir_make(void)
{
	harness_dir_make(cat_dir);
	snprintf(cat_dock, sizeof cat_dock, "%s/dock", cat_dir);
}

static size_t count_entries(const char *path, const char *word)
{
	DIR *d = opendir(path);
	size_t n = 0;

	cr_assert(d, "%s: %s", path, strerror(errno));
	for (struct dirent *entry; (entry = readdir(d)); )
		n += strstr(entry->d_name, word) != NULL;
	closedir(d);
	return n;
}

void cat_expect_nothing_left(void)
{
	cr_expect_eq(access(cat_dock, F_OK), -1, "the socket file was left behind");
	cr_expect_eq(count_entries("/dev/shm", "wharf"), 0, "something was left in /dev/shm");
}

void cat_dir_remove(void)
{
	harness_dir_remove(cat_dir);
}

static int exec_cat(void *arg)
{
	struct cat *cat = arg;

	harness_engine_of(cat->peer);
	for (int fd = 0; fd < 3; fd++)
		HARNESS_REQUIRE(dup2(cat->fds[fd], fd) == fd);
	execv(cat->argv[0], (char *const *)cat->argv);
	perror(cat->argv[0]);
	return 127;
}

int cat_file_open(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0600);

	cr_assert_geq(fd, 0, "%s: %s", path, strerror(errno));
	return fd;
}

/* errors: its standard error; closed here, as the others. */
static void run(struct cat *cat, int in, int out, int errors, va_list args)
{
	static unsigned int started;
	size_t n_args = 1;

	cat->peer = started++ % 2;
	cat->argv[0] = getenv("WHARF_CAT");
	cr_assert(cat->argv[0], "WHARF_CAT does not name the program");
	do
		cr_assert_lt(n_args, CAT_ARGS_MAX + 1);
	while ((cat->argv[n_args++] = va_arg(args, const char *)));

	cat->fds[0] = in >= 0 ? in : cat_file_open("/dev/null", O_RDONLY);
	cat->fds[1] = out >= 0 ? out : cat_file_open("/dev/null", O_WRONLY);
	cat->fds[2] = errors;
	harness_child_start(&cat->child, exec_cat, cat);
	for (int fd = 0; fd < 3; fd++)
		close(cat->fds[fd]);
}

void cat_start(struct cat *cat, int in, int out, ...)
{
	static unsigned int n;
	va_list args;

	*cat = (struct cat){ 0 };
	snprintf(cat->errors, sizeof cat->errors, "%s/errors-%u", cat_dir, n++);
	va_start(args, out);
	run(cat, in, out, cat_file_open(cat->errors, O_WRONLY | O_CREAT | O_TRUNC), args);
	va_end(args);
}

void cat_start_on_terminal(struct cat *cat, int in, int out, int terminal, ...)
{
	va_list args;

	*cat = (struct cat){ .errors = "/dev/null" };
	va_start(args, terminal);
	run(cat, in, out, terminal, args);
	va_end(args);
}

int cat_done(struct cat *cat, int timeout_ms)
{
	int status = harness_child_wait(&cat->child, timeout_ms);
	int fd = cat_file_open(cat->errors, O_RDONLY);
	ssize_t n = read(fd, cat->said, sizeof cat->said - 1);

	close(fd);
	cat->said[n > 0 ? n : 0] = '\0';
	return status;
}

static size_t count_lines(const char *text)
{
	size_t n = 0;

	while ((text = strchr(text, '\n')))
		n++, text++;
	return n;
}

bool cat_said_one_line(const struct cat *cat)
{
	return count_lines(cat->said) == 1 && !strncmp(cat->said, "wharf-cat: ", 11);
}

void cat_path_await(const char *path)
{
	for (int i = 0; i < MS_ENOUGH / 5 && access(path, F_OK) < 0; i++)
		nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
	cr_assert_eq(access(path, F_OK), 0, "%s does not appear", path);
}

/* ---- Data ----------------------------------------------------------------------------------------------------- */

void cat_data_make(const char *path, size_t size)
{
	struct harness_random random = { harness_seed() + size };
	size_t n_words = size / sizeof(uint64_t) + 1;
	uint64_t *words = malloc(n_words * sizeof *words);
	int fd = cat_file_open(path, O_WRONLY | O_CREAT | O_TRUNC);

	cr_assert(words);
	for (size_t i = 0; i < n_words; i++)
		words[i] = harness_random_next(&random);
	for (size_t at = 0; at < size; ) {
		ssize_t n = write(fd, (const char *)words + at, size - at);

		cr_assert_gt(n, 0, "%s: %s", path, strerror(errno));
		at += (size_t)n;
	}
	close(fd);
	free(words);
}

bool cat_files_same(const char *a, const char *b)
{
	int fd_a = cat_file_open(a, O_RDONLY), fd_b = cat_file_open(b, O_RDONLY);
	struct stat st_a, st_b;
	bool same = !fstat(fd_a, &st_a) && !fstat(fd_b, &st_b) && st_a.st_size == st_b.st_size;

	if (same && st_a.st_size > 0) {
		size_t size = (size_t)st_a.st_size;
		void *data_a = mmap(NULL, size, PROT_READ, MAP_SHARED, fd_a, 0);
		void *data_b = mmap(NULL, size, PROT_READ, MAP_SHARED, fd_b, 0);

		same = data_a != MAP_FAILED && data_b != MAP_FAILED && !memcmp(data_a, data_b, size);
		munmap(data_a, size);
		munmap(data_b, size);
	}
	close(fd_a);
	close(fd_b);
	return same;
}

static int move(void *arg)
{
	struct cat_mover *m = arg;
	struct harness_random random = { harness_seed() };
	size_t piece_max = 100 * KIB;
	char *piece = malloc(piece_max);

	/* Only these two: whoever keeps a pipe's other end open keeps it from ending. */
	HARNESS_REQUIRE(piece && dup2(m->from, 0) == 0 && dup2(m->to, 1) == 1 && close_range(3, ~0u, 0) == 0);
	while (m->limit > 0) {
		uint64_t wanted = harness_random_below(&random, piece_max) + 1;
		ssize_t n = read(0, piece, wanted < m->limit ? wanted : m->limit);

		if (n == 0)
			break;
		HARNESS_REQUIRE(n > 0);
		m->limit -= (uint64_t)n;
		for (ssize_t at = 0; at < n; ) {
			ssize_t written = write(1, piece + at, (size_t)(n - at));

			HARNESS_REQUIRE(written > 0);
			at += written;
		}
	}
	return 0;
}

void cat_mover_start(struct cat_mover *m, int from, int to, uint64_t limit)
{
	*m = (struct cat_mover){ .from = from, .to = to, .limit = limit };
	harness_child_start(&m->child, move, m);
	close(from);
	close(to);
}

void cat_pipe_make(int fds[2])
{
	cr_assert_eq(pipe2(fds, O_CLOEXEC), 0);
}

void cat_text_write(const char *path, const char *text)
{
	int fd = cat_file_open(path, O_WRONLY | O_CREAT | O_TRUNC);

	cr_assert_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	close(fd);
}

void cat_transfer(const char *address, size_t size, bool pipes)
{
	char *original = cat_path("original"), *copy = cat_path("copy");
	struct cat_mover feeder, drain;
	struct cat sender, receiver;
	int in, out;

	cat_data_make(original, size);
	in = cat_file_open(original, O_RDONLY);
	out = cat_file_open(copy, O_WRONLY | O_CREAT | O_TRUNC);
	if (pipes) {
		int to_sender[2], from_receiver[2];

		cat_pipe_make(to_sender);
		cat_pipe_make(from_receiver);
		cat_mover_start(&feeder, in, to_sender[1], UINT64_MAX);
		cat_mover_start(&drain, from_receiver[0], out, UINT64_MAX);
		in = to_sender[0];
		out = from_receiver[1];
	}
	cat_start(&receiver, -1, out, "--listen", address, NULL);
	cat_start(&sender, in, -1, "--wait=20", address, NULL);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 0, "sender: %s", sender.said);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 0, "receiver: %s", receiver.said);
	cr_expect_str_empty(sender.said);
	cr_expect_str_empty(receiver.said);
	if (pipes) {
		cr_expect_eq(harness_child_wait(&feeder.child, MS_ENOUGH), 0);
		cr_expect_eq(harness_child_wait(&drain.child, MS_ENOUGH), 0);
	}
	cat_expect_nothing_left();
	cr_expect(cat_files_same(original, copy), "%zu bytes through %s by %s differ", size, address,
		pipes ? "pipes" : "files");
}
