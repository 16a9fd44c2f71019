/* SPDX-License-Identifier: MIT */
/* The probe: two processes pass a counter to and fro through shared memory. */
#include "probe.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "process.h"
#include "stats.h"

enum {
	ROUNDS = 100,  /* a batch: short enough that being preempted spoils few of them, which the median forgets */
	BATCHES = 200,
	LIMIT_NS = 500000000,
	STOP = -1,
};

/* 128: processors fetch lines in pairs. */
struct table {
	_Alignas(128) _Atomic int ball;
	_Alignas(128) _Atomic int back;
};

static void answer(struct table *table)
{
	for (int last = 0, ball; (ball = atomic_load(&table->ball)) != STOP;) {
		if (ball != last) {
			last = ball;
			atomic_store(&table->back, ball);
		}
	}
}

static bool play(struct table *table, int *ball, int rounds, uint64_t deadline_ns)
{
	while (rounds--) {
		atomic_store(&table->ball, ++*ball);
		for (unsigned spins = 1; atomic_load(&table->back) != *ball; spins++)
			if (spins % 65536 == 0 && clock_ns() > deadline_ns)
				return false;
	}
	return clock_ns() <= deadline_ns;
}

int probe_rtt(int peer_cpu, double *ret_rtt_ns)
{
	uint64_t deadline_ns = clock_ns() + LIMIT_NS;
	double rtts[BATCHES];
	struct table *table;
	size_t n = 0;
	int ball = 0;
	pid_t child;

	table = mmap(NULL, sizeof *table, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (table == MAP_FAILED)
		return -errno;
	child = process_fork(peer_cpu);
	if (child < 0) {
		munmap(table, sizeof *table);
		return child;
	}
	if (!child) {
		answer(table);
		_exit(0);
	}
	if (play(table, &ball, 1, deadline_ns)) {
		while (n < BATCHES) {
			uint64_t start_ns = clock_ns();

			if (!play(table, &ball, ROUNDS, deadline_ns))
				break;
			rtts[n++] = (double)(clock_ns() - start_ns) / ROUNDS;
		}
	}
	atomic_store(&table->ball, STOP);
	while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	munmap(table, sizeof *table);
	if (!n)
		return -ETIME;
	*ret_rtt_ns = stats_spread(rtts, n).median;
	return 0;
}
