/* SPDX-License-Identifier: MIT */
/* Options: the command line. */
#ifndef BENCH_OPTIONS_H
#define BENCH_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

#include "placement.h"
#include "size.h"
#include "touch.h"
#include "transport.h"
#include "variant.h"

enum {
	OPTIONS_COLUMNS_MAX = 24,
	OPTIONS_REQUIREMENTS_MAX = 32,
	OPTIONS_REPEAT_MAX = 1000,
	OPTIONS_COLUMN_NAME_MAX = 40,
	OPTIONS_TRANSPORT_NAME_MAX = 16,
};

enum mode {
	MODE_THROUGHPUT,
	MODE_LATENCY,
	MODE_FANIN,
	MODE_FAIRNESS,
	MODE_CALL,
	MODE_PROBE,
};

/* What is compared at each size. */
struct column {
	char name[OPTIONS_COLUMN_NAME_MAX];
	size_t base;                       /* the column that ratios are to */
	char transport_name[OPTIONS_TRANSPORT_NAME_MAX]; /* as it was asked for; empty: fan-in without a choice */
	const struct transport *transport; /* MODE_THROUGHPUT, MODE_LATENCY, MODE_CALL, MODE_FANIN */
	const struct variant *variant;     /* of it; NULL: as the library has it */
	size_t inflight;                   /* MODE_CALL */
	size_t ports;                      /* MODE_FANIN */
	unsigned scenario;                 /* MODE_FAIRNESS: enum scenario */
};

/* --require A/B>=X@SIZE. */
struct requirement {
	const char *text;
	size_t a, b;    /* indices into columns */
	bool at_most;   /* <= instead of >= */
	double bound;
	size_t size;    /* index into sizes */
};

struct options {
	enum mode mode;
	struct size_list sizes;
	struct column columns[OPTIONS_COLUMNS_MAX];
	size_t n_columns;
	struct requirement requirements[OPTIONS_REQUIREMENTS_MAX];
	size_t n_requirements;
	size_t repeat;
	double seconds;      /* of one repetition */
	struct plan plan;    /* all but size and counts; reply_size 0: as size */
	size_t senders;      /* MODE_FANIN; 0: as few as can be */
	size_t burst;        /* of messages to one of many ports before the next has its turn */
	size_t floods;       /* MODE_FAIRNESS: ports */
	size_t flood_bytes;
	size_t flood_reads;  /* by its receiver, of each payload */
	int cpus[2];
	double near_max_ns;  /* 0: found from the data */
	bool place_wanted;   /* only place counts */
	enum place place;
	double patience_s;   /* for placements that do not count */
	bool verbose;
	bool json;           /* instead of the table */
	const char *json_path; /* as well as the table */
};

/* Prints one line and returns an exit status when that is not 0; ends the process after --help. */
int options_parse(int argc, char **argv, struct options *ret_options);

const char *options_mode_name(enum mode mode);

/* Of calls whose requests have sizes.sizes[size]. */
static inline size_t options_reply_size(const struct options *options, size_t size)
{
	return options->plan.reply_size ? options->plan.reply_size : options->sizes.sizes[size];
}

#endif
