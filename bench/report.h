/* SPDX-License-Identifier: MIT */
/* Reports of results: for people, and for programs. */
#ifndef BENCH_REPORT_H
#define BENCH_REPORT_H

#include <stdio.h>

#include "result.h"

/* An aligned table; the last line tells of placement. */
void report_table(const struct results *results, FILE *file);

/* Its form is described in json.c. 0; -ENOMEM; -EIO: not written. */
int report_json(const struct results *results, FILE *file);

#endif
