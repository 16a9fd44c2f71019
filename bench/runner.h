/* SPDX-License-Identifier: MIT */
/* The runner: repeats, interleaves, and repeats again what was measured on both sides of a move. */
#ifndef BENCH_RUNNER_H
#define BENCH_RUNNER_H

#include "result.h"

/* Fills results. 0; a negative errno, told in one line on stderr. */
int runner_run(struct results *results);

/* Prints the cache line's round trip, `repeat` times. As runner_run. */
int runner_probe(const struct options *options);

#endif
