/* SPDX-License-Identifier: MIT */
/* What the programs for ThreadSanitizer share: a seed, what threads hand each other, and the sum at the end. */
#ifndef STRESS_H
#define STRESS_H

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "wharf.h"

static uint64_t seed;
static atomic_bool done; /* every thread ends */

/* WHARF_TEST_SEED of the environment, or what is given. */
static inline void seed_begin(const char *given, uint64_t otherwise)
{
	given = given ? given : getenv("WHARF_TEST_SEED");
	seed = given ? strtoull(given, NULL, 0) : otherwise;
	printf("seed: 0x%" PRIx64 "\n", seed);
}

/* splitmix64 */
static inline uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}
static inline bool chance(uint64_t *state, unsigned in) { return next_random(state) % in == 0; }

/* ---- Ends to be opened by a thread ---- */

enum { MAILBOX = 64 };
struct mailbox {
	int fds[MAILBOX];
	unsigned n;
};
static pthread_mutex_t stress_lock = PTHREAD_MUTEX_INITIALIZER;

/* False: it is full, and the end is the caller's still. */
static inline bool mail(struct mailbox *box, int fd)
{
	bool fits;

	pthread_mutex_lock(&stress_lock);
	fits = box->n < MAILBOX;
	if (fits)
		box->fds[box->n++] = fd;
	pthread_mutex_unlock(&stress_lock);
	return fits;
}

/* -1: it is empty. */
static inline int collect(struct mailbox *box)
{
	int fd;

	pthread_mutex_lock(&stress_lock);
	fd = box->n ? box->fds[--box->n] : -1;
	pthread_mutex_unlock(&stress_lock);
	return fd;
}

/* ---- Taken messages, to be released by whoever finds them ---- */

enum { TAKEN = 256 };
static struct wharf_msg *taken[TAKEN];
static atomic_ullong n_taken, n_released;

static inline struct wharf_msg *exchange_taken(unsigned at, struct wharf_msg *m)
{
	struct wharf_msg *old;

	pthread_mutex_lock(&stress_lock);
	old = taken[at];
	taken[at] = m;
	pthread_mutex_unlock(&stress_lock);
	atomic_fetch_add(&n_taken, !!m);
	atomic_fetch_add(&n_released, !!old);
	return old;
}

static inline void take_for_others(const struct wharf_msg *msg, uint64_t *random)
{
	struct wharf_msg *m = wharf_msg_take(msg);

	if (m)
		wharf_msg_release(exchange_taken((unsigned)(next_random(random) % TAKEN), m));
}

/* The caller's to release. NULL: there is none at that place. */
static inline struct wharf_msg *find_taken(uint64_t *random)
{
	return exchange_taken((unsigned)(next_random(random) % TAKEN), NULL);
}

static inline void release_taken(void)
{
	for (unsigned i = 0; i < TAKEN; i++)
		wharf_msg_release(exchange_taken(i, NULL));
}

/* ---- The end ---- */

struct outcome {
	const char *what;
	bool holds;
};

/* Returns what main returns. */
static inline int report(const struct outcome *outcomes, size_t n)
{
	unsigned n_failed = 0;

	for (size_t i = 0; i < n; i++)
		if (!outcomes[i].holds) {
			printf("not so: %s\n", outcomes[i].what);
			n_failed++;
		}
	printf("%zu passed, %u failed, 0 skipped\n", n - n_failed, n_failed);
	return n_failed ? 1 : 0;
}

#endif
