/* SPDX-License-Identifier: MIT */
/* What end-to-end tests share: leak snapshots, supervised children, a seeded PRNG, unique names. */
#ifndef HARNESS_H
#define HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* ---- Leaks ---------------------------------------------------------------------------------------------------- */

/*
 * What this process holds of the kernel: open descriptors, and mappings of memfds, io_urings and anything named after
 * wharf. Mappings are compared by file and by bytes, because the kernel splits and merges the lines of /proc/self/maps.
 */
struct harness_snapshot {
	struct harness_held *held;
	size_t n_held;
};

void harness_snapshot_take(struct harness_snapshot *ret_snapshot);
void harness_snapshot_free(struct harness_snapshot *snapshot);

/*
 * Compares the process with `before`, and frees it. Returns NULL when nothing has changed; else a text with one line
 * for each descriptor or mapping that appeared or vanished (a descriptor closed twice shows as another one's loss). Valid until the next call.
 *
 *     struct harness_snapshot before;
 *     harness_snapshot_take(&before);
 *     ...
 *     const char *leak = harness_snapshot_diff(&before);
 *     cr_assert(!leak, "%s", leak);
 */
const char *harness_snapshot_diff(struct harness_snapshot *before);

size_t harness_count_fds(void);
/* Mappings whose name contains `name`: "/memfd:" for all memfds. */
size_t harness_count_maps(const char *name);

/* Lets this process open `more` descriptors, and no further ones; or as many as it ever may. */
void harness_limit_fds(unsigned more);
void harness_unlimit_fds(void);
bool harness_raise_fds(unsigned n); /* may it have so many? Raises its own limit as far as that goes */

/* ---- Children ------------------------------------------------------------------------------------------------- */

struct harness_child {
	pid_t pid;  /* 0: none, or reaped already */
	int pidfd;
};

/*
 * Runs run(arg) in a forked child, which ends with what run returns. Criterion's assertions do not work there: use
 * HARNESS_REQUIRE. The child dies with the thread that started it.
 */
void harness_child_start(struct harness_child *ret_child, int (*run)(void *arg), void *arg);

/* Kills the child if it has not ended by then, and reaps it: its exit code, 256 + the signal that ended it, or -ETIMEDOUT. */
int harness_child_wait(struct harness_child *child, int timeout_ms);

/* Sends a signal; the child is still to be reaped. */
void harness_child_signal(const struct harness_child *child, int signal);

/* Kills and reaps; does nothing with a child that was reaped. */
void harness_child_end(struct harness_child *child);

/* Start and wait in one. */
int harness_run(int (*run)(void *arg), void *arg, int timeout_ms);

/* In a child: says what failed and ends it with HARNESS_FAILED. */
enum { HARNESS_FAILED = 99 };
#define HARNESS_REQUIRE(x) ((x) ? (void)0 : harness_failed(#x, __FILE__, __LINE__))
_Noreturn void harness_failed(const char *expression, const char *file, int line);

/* ---- Engines ---------------------------------------------------------------------------------------------------- */

/*
 * Whose loops are made from here on: this process's own, on what WHARF_ENGINE names, or a peer's, on what
 * WHARF_TEST_PEER_ENGINE does, if that is set. Children of the harness are peers.
 */
void harness_engine_of(bool peer);

/* ---- Random numbers ------------------------------------------------------------------------------------------- */

/* splitmix64: the same seed gives the same numbers everywhere. */
struct harness_random {
	uint64_t state;
};

/* WHARF_TEST_SEED of the environment, else always the same; told on stderr once per process, so that a log shows it. */
uint64_t harness_seed(void);
uint64_t harness_random_next(struct harness_random *random);
/* Uniform in [0, n), n > 0. */
uint64_t harness_random_below(struct harness_random *random, uint64_t n);

/* ---- Names ---------------------------------------------------------------------------------------------------- */

enum { HARNESS_PATH_MAX = 96 }; /* leaves room for a file name in sun_path */

/* A new empty directory under TMPDIR or /tmp. */
void harness_dir_make(char ret_path[HARNESS_PATH_MAX]);
/* Removes it with everything in it. */
void harness_dir_remove(const char *path);

/* "@wharf-test-PID-N": an abstract address that no other test uses. */
void harness_abstract_name(char ret_name[HARNESS_PATH_MAX]);

#endif
