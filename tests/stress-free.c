/* SPDX-License-Identifier: MIT */
/*
 * Loops that are freed while another thread posts to them: what was accepted runs, if only to hear that the loop is
 * gone. The loops have nothing else to do, so that many of them end just as a post comes. For ThreadSanitizer; seeded,
 * but threads are not repeatable.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "wharf.h"

enum { LOOPS_MAX = 200000, SPIN_MAX = 400 };

static uint64_t seed;
static wharf_loop *_Atomic shared; /* with a reference for the poster; NULL: it is done with the last one */
static atomic_bool done, gone, there;
static atomic_ullong n_posted, n_run, n_late, n_wrong;

static uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static void spin(uint64_t *random)
{
	for (volatile uint64_t n = next_random(random) % SPIN_MAX; n; n--)
		;
}

static void run(struct wharf_task *task, int status)
{
	(void)task;
	atomic_fetch_add(&n_run, 1);
	atomic_fetch_add(&n_late, status == -EPIPE);
	atomic_fetch_add(&n_wrong, status && status != -EPIPE);
}

static void *post(void *arg)
{
	uint64_t random = seed + 1;

	(void)arg;
	while (!atomic_load(&done)) {
		struct wharf_task task = { .run = run }; /* each loop's own: what one has lost is pending for ever */
		wharf_loop *loop = atomic_load(&shared);
		int error = 0;

		if (!loop) {
			sched_yield();
			continue;
		}
		atomic_store(&there, true);
		spin(&random);
		while (error != -EPIPE) {
			error = wharf_loop_post(loop, &task);
			atomic_fetch_add(&n_posted, !error);
			atomic_fetch_add(&n_wrong, error && error != -EALREADY && error != -EPIPE);
			/* It may wait for nothing but the end of its loop. */
			if (error == -EALREADY && wharf_loop_wake(loop) == -EPIPE)
				error = -EPIPE;
		}
		/* It may be about to run. */
		while (!atomic_load(&gone))
			sched_yield();
		atomic_store(&shared, NULL);
	}
	return NULL;
}

/* The life of one loop. False: it lost a post. */
static bool live(uint64_t *random)
{
	wharf_loop *loop;
	unsigned long long n_lost;

	if (wharf_loop_new(WHARF_OPT(loop, .engine = WHARF_ENGINE_EPOLL, .rx_buffers = 2, .frame_bytes_max = 4096,
				.flags = WHARF_LOOP_UNSEEN), &loop))
		abort();
	atomic_store(&gone, false);
	atomic_store(&there, false);
	atomic_store(&shared, wharf_loop_ref(loop));
	while (!atomic_load(&there))
		sched_yield();
	for (uint64_t n = next_random(random) % 4; n; n--)
		if (wharf_loop_step(loop, 0) < 0)
			abort();
	spin(random);
	wharf_loop_free(loop);
	atomic_store(&gone, true);
	while (atomic_load(&shared))
		sched_yield();
	wharf_loop_unref(loop);
	n_lost = atomic_load(&n_posted) - atomic_load(&n_run);
	if (n_lost)
		printf("%llu posted, %llu run\n", n_posted, n_run);
	return !n_lost;
}

int main(int argc, char **argv)
{
	const char *given = argc > 1 ? argv[1] : getenv("WHARF_TEST_SEED");
	unsigned n_loops = 0, n_failed = 0;
	struct timespec start, now;
	uint64_t random;
	pthread_t poster;
	bool good = true;

	random = seed = given ? strtoull(given, NULL, 0) : 0x66726565;
	printf("seed: 0x%" PRIx64 "\n", seed);
	if (pthread_create(&poster, NULL, post, NULL))
		abort();
	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		good = live(&random);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (good && ++n_loops < LOOPS_MAX && now.tv_sec - start.tv_sec < 3);
	atomic_store(&done, true);
	pthread_join(poster, NULL);
	printf("%u loops, %llu tasks posted, %llu of them ran as their loop went\n", n_loops, n_posted, n_late);
	const struct {
		const char *what;
		bool holds;
	} checks[] = {
		{ "each task ran once for each time it was posted", good && n_run == n_posted },
		{ "and heard 0 or -EPIPE", !n_wrong },
		{ "something happened", n_posted && (n_late || !good) },
	};
	for (size_t i = 0; i < sizeof(checks) / sizeof(*checks); i++)
		if (!checks[i].holds) {
			printf("not so: %s\n", checks[i].what);
			n_failed++;
		}
	printf("%zu passed, %u failed, 0 skipped\n", sizeof(checks) / sizeof(*checks) - n_failed, n_failed);
	return n_failed ? 1 : 0;
}
