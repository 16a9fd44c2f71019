/* SPDX-License-Identifier: MIT */
/* wharf-cat when files, addresses or the other side fail: what it says, when it ends, what it leaves behind. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "cat-process.h"
#include "harness.h"

TestSuite(cat_ends, .init = cat_dir_make, .fini = cat_dir_remove, .timeout = 120);

/* ---- Files and sockets that do not work ----------------------------------------------------------------------- */

Test(cat_ends, a_full_disk_is_told_on_both_sides)
{
	struct cat sender, receiver;

	cat_data_make(cat_path("original"), 3 * MIB);
	cat_start(&receiver, -1, cat_file_open("/dev/full", O_WRONLY), "-l", cat_dock, NULL);
	cat_start(&sender, -1, -1, "-w20", cat_dock, cat_path("original"), NULL);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 1);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 1);
	cr_expect_str_eq(receiver.said,
		"wharf-cat: cannot write standard output: No space left on device: 0 bytes written\n");
	cat_expect_said(&sender, "wharf-cat: receiver gave up: No space left on device: ");
	cat_expect_one_line(&sender);
	cat_expect_nothing_left();
}

Test(cat_ends, an_output_that_nobody_reads_any_more_is_an_error_not_a_signal)
{
	struct cat sender, receiver;
	int out[2];

	cat_data_make(cat_path("original"), 3 * MIB);
	cat_pipe_make(out);
	close(out[0]);
	cat_start(&receiver, -1, out[1], "-l", cat_dock, NULL);
	cat_start(&sender, -1, -1, "-w20", cat_dock, cat_path("original"), NULL);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 1);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 1);
	cr_expect_str_eq(receiver.said, "wharf-cat: cannot write standard output: Broken pipe: 0 bytes written\n");
	cat_expect_said(&sender, "wharf-cat: receiver gave up: Broken pipe: ");
	cat_expect_nothing_left();
}

Test(cat_ends, an_input_that_does_not_exist_leaves_the_listener_alone)
{
	struct cat sender, receiver;

	cat_start(&receiver, -1, -1, "-l", cat_dock, NULL);
	cat_path_await(cat_dock);
	cat_start(&sender, -1, -1, cat_dock, cat_path("missing"), NULL);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 1);
	cat_expect_said(&sender, "missing: No such file or directory\n");
	cat_expect_one_line(&sender);

	cat_start(&sender, -1, -1, "-w20", cat_dock, NULL);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 0, "%s", sender.said);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 0, "%s", receiver.said);
	cat_expect_nothing_left();
}

Test(cat_ends, an_input_that_cannot_be_read_is_told_on_both_sides)
{
	struct cat sender, receiver;

	cat_start(&receiver, -1, -1, "-l", cat_dock, NULL);
	cat_start(&sender, -1, -1, "-w20", cat_dock, cat_dir, NULL);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 1);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 1);
	cat_expect_said(&sender, ": Is a directory: 0 bytes sent\n");
	cr_expect_str_eq(receiver.said, "wharf-cat: sender gave up: Is a directory: 0 bytes arrived\n");

	cat_start(&receiver, -1, -1, "-l", cat_dock, NULL);
	cat_start(&sender, cat_file_open(cat_path("write-only"), O_WRONLY | O_CREAT), -1, "-w20", cat_dock, NULL);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 1);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 1);
	cr_expect_str_eq(sender.said, "wharf-cat: cannot read standard input: Bad file descriptor: 0 bytes sent\n");
	cat_expect_nothing_left();
}

Test(cat_ends, a_file_at_the_address_stays_what_it_is)
{
	char *file = cat_path("precious");
	struct cat receiver;
	struct stat st;

	cat_text_write(file, "precious");
	cat_start(&receiver, -1, -1, "-l", file, NULL);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 1);
	cat_expect_said(&receiver, "precious: exists already, and is not a socket\n");
	cat_expect_one_line(&receiver);
	cr_expect(stat(file, &st) == 0 && st.st_size == 8);
}

static void bind_at(int fd, const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
	cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
}

Test(cat_ends, a_socket_that_its_owner_left_behind_is_replaced)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	struct cat sender;

	bind_at(fd, cat_dock);
	close(fd);
	cat_start(&sender, -1, -1, cat_dock, NULL);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 1);
	cat_expect_said(&sender, "nobody listens there");
	cat_transfer(cat_dock, 100, false);
	cat_expect_nothing_left();
}

Test(cat_ends, a_second_listener_is_refused_and_harms_nothing)
{
	char *copy = cat_path("copy");
	struct cat first, second, sender;

	cat_data_make(cat_path("original"), 1000);
	cat_start(&first, -1, -1, "-l", cat_dock, copy, NULL);
	cat_path_await(copy);
	cat_text_write(copy, "still here");
	cat_start(&second, -1, -1, "-l", cat_dock, copy, NULL);
	cr_expect_eq(cat_done(&second, MS_ENOUGH), 1);
	cat_expect_said(&second, "dock: somebody listens there already\n");
	cat_expect_one_line(&second);
	cr_expect(!cat_files_same(copy, "/dev/null"), "the second one emptied the first one's output");

	cat_start(&sender, -1, -1, cat_dock, cat_path("original"), NULL);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 0, "%s", sender.said);
	cr_expect_eq(cat_done(&first, MS_ENOUGH), 0, "%s", first.said);
	cr_expect(cat_files_same(cat_path("original"), copy));
	cat_expect_nothing_left();
}

Test(cat_ends, without_a_listener_it_says_so)
{
	struct cat cat;
	char name[HARNESS_PATH_MAX];

	cat_start(&cat, -1, -1, cat_dock, NULL);
	cr_expect_eq(cat_done(&cat, MS_ENOUGH), 1);
	cat_expect_said(&cat, "nobody listens there");
	cat_expect_said(&cat, "--wait");
	cat_expect_one_line(&cat);

	harness_abstract_name(name);
	cat_start(&cat, -1, -1, "--wait=0.1", name, NULL);
	cr_expect_eq(cat_done(&cat, MS_ENOUGH), 1);
	cat_expect_said(&cat, "nobody listens there\n");

	cat_start(&cat, -1, -1, "-l", "--wait=0.1", cat_dock, NULL);
	cr_expect_eq(cat_done(&cat, MS_ENOUGH), 1);
	cat_expect_said(&cat, "dock: no sender came\n");

	cat_start(&cat, -1, -1, "-l", cat_path("no/such/place"), NULL);
	cr_expect_eq(cat_done(&cat, MS_ENOUGH), 1);
	cat_expect_said(&cat, "No such file or directory\n");
	cat_expect_one_line(&cat);
	cat_expect_nothing_left();
}

Test(cat_ends, misuse_is_told_apart_from_failure)
{
	static const char *const misuses[][3] = {
		{ "--no-such-option", "address" }, { NULL }, { "one", "two", "three" }, { "--wait=soon", "address" }, { "" },
	};

	for (size_t i = 0; i < sizeof misuses / sizeof misuses[0]; i++) {
		struct cat cat;

		cat_start(&cat, -1, -1, misuses[i][0], misuses[i][1], misuses[i][2], NULL);
		cr_expect_eq(cat_done(&cat, MS_ENOUGH), 2, "misuse %zu: %s", i, cat.said);
	}
}

/* ---- Ends that nobody planned --------------------------------------------------------------------------------- */

/* Both running, the first bytes through, and the sender waiting for more input. */
static void start_waiting_pair(struct cat *sender, struct cat *receiver, int *ret_input)
{
	int to_sender[2], from_receiver[2];
	char word[4];

	cat_pipe_make(to_sender);
	cat_pipe_make(from_receiver);
	cat_start(receiver, -1, from_receiver[1], "-l", cat_dock, NULL);
	cat_start(sender, to_sender[0], -1, "--wait=20", cat_dock, NULL);
	cr_assert_eq(write(to_sender[1], "abc", 3), 3);
	cr_assert_eq(read(from_receiver[0], word, sizeof word), 3);
	close(from_receiver[0]);
	*ret_input = to_sender[1];
}

Test(cat_ends, a_killed_sender_ends_the_receiver)
{
	struct cat sender, receiver;
	int input;

	start_waiting_pair(&sender, &receiver, &input);
	harness_child_end(&sender.child);
	cr_expect_eq(cat_done(&receiver, MS_AT_ONCE), 1);
	cr_expect_str_eq(receiver.said, "wharf-cat: sender ended before the end: 3 bytes arrived\n");
	close(input);
	cat_expect_nothing_left();
}

Test(cat_ends, a_killed_receiver_ends_a_sender_that_waits_for_input)
{
	struct cat sender, receiver;
	int input;

	start_waiting_pair(&sender, &receiver, &input);
	harness_child_end(&receiver.child);
	cr_expect_eq(cat_done(&sender, MS_AT_ONCE), 1);
	cr_expect_str_eq(sender.said, "wharf-cat: receiver ended before the end: 3 bytes sent\n");
	close(input);
	cat_expect_nothing_left();
}

/* Both running, and the sender out of memory to send from, because nobody reads what the receiver writes. */
static void start_stuck_pair(struct cat *sender, struct cat *receiver, int *ret_output)
{
	int from_receiver[2];
	char first;

	cat_data_make(cat_path("original"), 64 * MIB);
	cat_pipe_make(from_receiver);
	cat_start(receiver, -1, from_receiver[1], "-l", cat_dock, NULL);
	cat_start(sender, -1, -1, "--wait=20", cat_dock, cat_path("original"), NULL);
	cr_assert_eq(read(from_receiver[0], &first, 1), 1);
	*ret_output = from_receiver[0];
}

Test(cat_ends, a_killed_receiver_ends_a_sender_that_waits_for_room)
{
	struct cat sender, receiver;
	int output;

	start_stuck_pair(&sender, &receiver, &output);
	harness_child_end(&receiver.child);
	cr_expect_eq(cat_done(&sender, MS_AT_ONCE), 1);
	cat_expect_said(&sender, "wharf-cat: receiver ended before the end: ");
	cat_expect_one_line(&sender);
	close(output);
	cat_expect_nothing_left();
}

Test(cat_ends, an_interrupted_end_tells_the_other_and_cleans_up)
{
	struct cat sender, receiver;
	int input;

	cat_start(&receiver, -1, -1, "-l", cat_dock, NULL);
	cat_path_await(cat_dock);
	harness_child_signal(&receiver.child, SIGTERM);
	cr_expect_eq(cat_done(&receiver, MS_AT_ONCE), 256 + SIGTERM);
	cr_expect_eq(access(cat_dock, F_OK), -1);

	start_waiting_pair(&sender, &receiver, &input);
	harness_child_signal(&sender.child, SIGINT);
	cr_expect_eq(cat_done(&sender, MS_AT_ONCE), 256 + SIGINT);
	cr_expect_eq(cat_done(&receiver, MS_AT_ONCE), 1);
	cr_expect_str_eq(receiver.said, "wharf-cat: sender gave up: interrupted: 3 bytes arrived\n");
	close(input);

	start_waiting_pair(&sender, &receiver, &input);
	harness_child_signal(&receiver.child, SIGINT);
	cr_expect_eq(cat_done(&receiver, MS_AT_ONCE), 256 + SIGINT);
	cr_expect_eq(cat_done(&sender, MS_AT_ONCE), 1);
	cr_expect_str_eq(sender.said, "wharf-cat: receiver gave up: interrupted: 3 bytes sent\n");
	close(input);
	cat_expect_nothing_left();
}

static unsigned long cpu_ticks(pid_t pid)
{
	char path[32], text[1024];
	unsigned long user = 0, system = 0;
	ssize_t n;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	fd = cat_file_open(path, O_RDONLY);
	n = read(fd, text, sizeof text - 1);
	close(fd);
	cr_assert_gt(n, 0);
	text[n] = '\0';
	cr_assert_eq(sscanf(strrchr(text, ')'), ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system), 2);
	return user + system;
}

Test(cat_ends, a_stopped_receiver_makes_the_sender_wait_asleep)
{
	struct timespec second = { .tv_sec = 1 };
	struct cat sender, receiver;
	unsigned long ticks;
	struct cat_mover drain;
	char first;
	int output, out;

	start_stuck_pair(&sender, &receiver, &output);
	harness_child_signal(&receiver.child, SIGSTOP);
	ticks = cpu_ticks(sender.child.pid);
	nanosleep(&second, NULL);
	ticks = cpu_ticks(sender.child.pid) - ticks;
	/* It may still fill what it has claimed when this second begins; it must not spin through it. */
	cr_expect_lt(ticks, (unsigned long)sysconf(_SC_CLK_TCK) / 2, "the sender used %lu ticks of CPU waiting", ticks);
	harness_child_signal(&receiver.child, SIGCONT);

	/* The first byte has been read already. */
	out = cat_file_open(cat_path("copy"), O_WRONLY | O_CREAT | O_TRUNC);
	int original = cat_file_open(cat_path("original"), O_RDONLY);
	cr_assert(read(original, &first, 1) == 1 && write(out, &first, 1) == 1);
	close(original);
	cat_mover_start(&drain, output, out, UINT64_MAX);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 0, "%s", sender.said);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 0, "%s", receiver.said);
	cr_expect_eq(harness_child_wait(&drain.child, MS_ENOUGH), 0);
	cr_expect(cat_files_same(cat_path("original"), cat_path("copy")));
	cat_expect_nothing_left();
}
