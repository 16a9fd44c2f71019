/* SPDX-License-Identifier: MIT */
/* wharf-cat when all is well: what arrives, and what it shows. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cat-process.h"
#include "harness.h"

TestSuite(cat, .init = cat_dir_make, .fini = cat_dir_remove, .timeout = 120);

/* ---- What arrives --------------------------------------------------------------------------------------------- */

static const size_t small_sizes[] = { 0, 1, 4095, MIB, MIB + 1, 5 * MIB - 3 };

Test(cat, files_arrive_intact)
{
	for (size_t i = 0; i < sizeof small_sizes / sizeof small_sizes[0]; i++)
		cat_transfer(cat_dock, small_sizes[i], false);
}

Test(cat, pipes_arrive_intact)
{
	for (size_t i = 0; i < sizeof small_sizes / sizeof small_sizes[0]; i++)
		cat_transfer(cat_dock, small_sizes[i], true);
}

Test(cat, abstract_names_work_as_paths_do)
{
	char name[HARNESS_PATH_MAX];

	harness_abstract_name(name);
	cat_transfer(name, 0, false);
	cat_transfer(name, 3 * MIB + 7, true);
}

Test(cat, more_than_the_pool_arrives_intact)
{
	cat_transfer(cat_dock, 64 * MIB + 12345, false);
	cat_transfer(cat_dock, 64 * MIB + 54321, true);
}

Test(cat, more_than_32_bits_count_arrives)
{
	const uint64_t size = 4ull * 1024 * MIB + 5;
	const char *wanted = getenv("WHARF_TEST_LARGE");
	int to_sender[2], from_receiver[2];
	struct cat sender, receiver;
	static char block[MIB];
	struct cat_mover feeder;
	uint64_t n_read = 0;

	if (!wanted || strcmp(wanted, "1") != 0)
		cr_skip_test("4 GiB take a while: WHARF_TEST_LARGE=1 runs it");

	cat_pipe_make(to_sender);
	cat_pipe_make(from_receiver);
	cat_start(&receiver, -1, from_receiver[1], "-lc", cat_dock, NULL);
	cat_start(&sender, to_sender[0], -1, "-c", "--wait=20", cat_dock, NULL);
	cat_mover_start(&feeder, cat_file_open("/dev/zero", O_RDONLY), to_sender[1], size);
	for (ssize_t n; (n = read(from_receiver[0], block, sizeof block)) > 0; )
		n_read += (uint64_t)n;
	close(from_receiver[0]);
	cr_expect_eq(n_read, size);
	cr_expect_eq(harness_child_wait(&feeder.child, MS_ENOUGH), 0);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 0, "%s", sender.said);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 0, "%s", receiver.said);
	cr_expect_str_eq(sender.said, receiver.said);
}

Test(cat, what_is_typed_arrives_before_the_end)
{
	int to_sender[2], from_receiver[2];
	struct cat sender, receiver;
	char word[8] = "";

	cat_pipe_make(to_sender);
	cat_pipe_make(from_receiver);
	cat_start(&receiver, -1, from_receiver[1], "-l", cat_dock, NULL);
	cat_start(&sender, to_sender[0], -1, "--wait=20", cat_dock, NULL);
	for (int i = 0; i < 3; i++) {
		cr_assert_eq(write(to_sender[1], "ahoy", 4), 4);
		cr_assert_eq(read(from_receiver[0], word, sizeof word), 4);
		cr_expect_str_eq(word, "ahoy");
	}
	close(to_sender[1]);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 0, "%s", sender.said);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 0, "%s", receiver.said);
	cr_expect_eq(read(from_receiver[0], word, sizeof word), 0);
	close(from_receiver[0]);
}

Test(cat, files_can_be_named)
{
	char *original = cat_path("original"), *copy = cat_path("copy");
	struct cat sender, receiver;

	cat_data_make(original, 2 * MIB + 1);
	cat_start(&receiver, -1, -1, "-l", cat_dock, copy, NULL);
	cat_start(&sender, -1, -1, "-w20", cat_dock, original, NULL);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 0, "%s", sender.said);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 0, "%s", receiver.said);
	cr_expect(cat_files_same(original, copy));
}

Test(cat, the_plain_socket_carries_the_same)
{
	char *original = cat_path("original"), *copy = cat_path("copy");
	struct cat sender, receiver;

	cat_data_make(original, 3 * MIB + 1);
	cat_start(&receiver, -1, -1, "--plain", "-l", cat_dock, copy, NULL);
	cat_start(&sender, -1, -1, "--plain", "-w20", cat_dock, original, NULL);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 0, "%s", sender.said);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 0, "%s", receiver.said);
	cr_expect(cat_files_same(original, copy));
}

/* ---- Checksums ------------------------------------------------------------------------------------------------ */

/* Answers from FIPS 180-2, and of nothing at all. */
#define SHA256_ABC "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
#define SHA256_NOTHING "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

Test(cat, both_sides_print_the_known_checksum)
{
	static const char *const cases[][2] = { { "abc", SHA256_ABC }, { "", SHA256_NOTHING } };

	for (size_t i = 0; i < 2; i++) {
		struct cat sender, receiver;

		cat_text_write(cat_path("original"), cases[i][0]);
		cat_start(&receiver, -1, -1, "--listen", "--checksum", cat_dock, NULL);
		cat_start(&sender, -1, -1, "--checksum", "-w20", cat_dock, cat_path("original"), NULL);
		cr_expect_eq(cat_done(&sender, MS_ENOUGH), 0, "%s", sender.said);
		cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 0, "%s", receiver.said);
		cat_expect_said(&sender, cases[i][1]);
		cr_expect_str_eq(sender.said, receiver.said);
	}
}

Test(cat, a_checksum_that_the_sender_does_not_announce_is_printed_and_said_to_be_uncompared)
{
	struct cat sender, receiver;

	cat_text_write(cat_path("original"), "abc");
	cat_start(&receiver, -1, -1, "--listen", "--checksum", cat_dock, NULL);
	cat_start(&sender, -1, -1, "-w20", cat_dock, cat_path("original"), NULL);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 0, "%s", sender.said);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 0, "%s", receiver.said);
	cat_expect_said(&receiver, SHA256_ABC);
	cat_expect_said(&receiver, "not compared");
}


/* ---- The progress bar ----------------------------------------------------------------------------------------- */

/* Sends 3 MiB with standard error on a terminal of that many columns, and returns what was painted. */
static const char *paint(unsigned short columns, const char *option)
{
	struct winsize size = { .ws_row = 24, .ws_col = columns };
	static char painted[64 * KIB];
	struct cat sender, receiver;
	int master, terminal;
	size_t n_painted = 0;

	cat_data_make(cat_path("original"), 3 * MIB);
	cr_assert_eq(openpty(&master, &terminal, NULL, NULL, &size), 0);
	cr_assert_eq(fcntl(master, F_SETFD, FD_CLOEXEC) | fcntl(terminal, F_SETFD, FD_CLOEXEC), 0);
	cat_start(&receiver, -1, -1, "-l", cat_dock, NULL);
	cat_start_on_terminal(&sender, -1, -1, terminal, "-w20", option, cat_dock, cat_path("original"), NULL);
	/* A terminal that its last user has closed answers EIO. */
	for (ssize_t n; (n = read(master, painted + n_painted, sizeof painted - 1 - n_painted)) > 0; )
		n_painted += (size_t)n;
	painted[n_painted] = '\0';
	close(master);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 0);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 0, "%s", receiver.said);
	return painted;
}

/* The longest run of characters that a terminal shows in one line. */
static size_t widest_line(const char *painted)
{
	size_t widest = 0, width = 0;

	for (const char *p = painted; *p; p++) {
		if (*p == '\033')
			p += strcspn(p, "Km");
		else if (*p == '\r' || *p == '\n')
			width = 0;
		else if (++width > widest)
			widest = width;
	}
	return widest;
}

Test(cat, the_progress_bar_fits_the_terminal)
{
	static const unsigned short columns[] = { 200, 80, 60, 40, 20, 8, 2 };

	setenv("TERM", "xterm", 1);
	unsetenv("NO_COLOR");
	for (size_t i = 0; i < sizeof columns / sizeof columns[0]; i++) {
		const char *painted = paint(columns[i], "--wait=20");

		cr_expect_leq(widest_line(painted), columns[i] - 1u, "%u columns: %s", columns[i], painted);
		if (columns[i] >= 20)
			cr_expect(strstr(painted, "3.0 MiB") && strstr(painted, "100%"), "%u columns: %s", columns[i], painted);
		if (columns[i] >= 80)
			cr_expect(strstr(painted, "=]") || strstr(painted, "=\033[0m]"), "%u columns: %s", columns[i], painted);
	}
}

Test(cat, the_progress_bar_obeys_no_color_quiet_and_dumb_terminals)
{
	setenv("TERM", "xterm", 1);
	unsetenv("NO_COLOR");
	cr_expect(strstr(paint(80, "--wait=20"), "\033[32m"));
	setenv("NO_COLOR", "1", 1);
	cr_expect(!strstr(paint(80, "--wait=20"), "\033[3"));
	cr_expect_str_empty(paint(80, "--quiet"));
	setenv("TERM", "dumb", 1);
	cr_expect_str_empty(paint(80, "--wait=20"));
}
