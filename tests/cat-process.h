/* SPDX-License-Identifier: MIT */
/* What the tests of wharf-cat share: the program as a child process, and data to send through it. */
#ifndef CAT_PROCESS_H
#define CAT_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "harness.h"

enum {
	MS_ENOUGH = 30000, /* for what ends when all is well */
	MS_AT_ONCE = 2000, /* for what the end of the other side ends */
	KIB = 1 << 10,
	MIB = 1 << 20,
};

/* Before and after each test: a directory, and an address in it. */
extern char cat_dir[HARNESS_PATH_MAX];
extern char cat_dock[HARNESS_PATH_MAX + 8];
void cat_dir_make(void);
void cat_dir_remove(void);

/* No socket at that address, and nothing in /dev/shm: when all programs have ended. */
void cat_expect_nothing_left(void);

/* A file in it; valid until the eighth call after this one. */
char *cat_path(const char *name);
void cat_path_await(const char *path);

/* ---- The program ---------------------------------------------------------------------------------------------- */

enum { CAT_ARGS_MAX = 12 };

struct cat {
	struct harness_child child;
	const char *argv[CAT_ARGS_MAX + 2];
	int fds[3];
	bool peer;                          /* every second one: its engine may be another */
	char errors[HARNESS_PATH_MAX + 32]; /* the file with its standard error */
	char said[4096];                    /* and what was in it, after cat_done */
};

/* Starts the program that WHARF_CAT of the environment names; ends with NULL. in, out: closed here; -1: /dev/null. */
void cat_start(struct cat *cat, int in, int out, ...) __attribute__((sentinel));

/* The same, with standard error on a terminal, which is closed here. */
void cat_start_on_terminal(struct cat *cat, int in, int out, int terminal, ...) __attribute__((sentinel));

/* Its exit status, as harness_child_wait. */
int cat_done(struct cat *cat, int timeout_ms);

#define cat_expect_said(cat, text) cr_expect(strstr((cat)->said, (text)), "'%s' is not in: %s", (text), (cat)->said)
#define cat_expect_one_line(cat) cr_expect(cat_said_one_line(cat), "said: %s", (cat)->said)
bool cat_said_one_line(const struct cat *cat);

/* ---- Data ----------------------------------------------------------------------------------------------------- */

/* Close-on-exec, and made with mode 0600; these fail the test when they fail. */
int cat_file_open(const char *path, int flags);
void cat_pipe_make(int ret_fds[2]);
void cat_text_write(const char *path, const char *text);

/* A file of random bytes, the same for the same seed and size. */
void cat_data_make(const char *path, size_t size);
bool cat_files_same(const char *a, const char *b);

/* A process that moves bytes from here to there in pieces of random sizes, as many as there are, or up to a limit. */
struct cat_mover {
	struct harness_child child;
	int from, to;
	uint64_t limit;
};

/* Closes both here. */
void cat_mover_start(struct cat_mover *mover, int from, int to, uint64_t limit);

/* A whole transfer that must go well, from the file "original" to the file "copy", by two pipes on the way or not. */
void cat_transfer(const char *address, size_t size, bool pipes);

#endif
