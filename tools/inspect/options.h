/* SPDX-License-Identifier: MIT */
/* The command line. */
#ifndef INSPECT_OPTIONS_H
#define INSPECT_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { EXIT_FINE = 0, EXIT_PROBLEM = 1, EXIT_USAGE = 2, EXIT_BROKEN = 3 };

struct options;

enum command_flag {
	COMMAND_NEEDS_PID = 1, /* exactly one, if not --core */
	COMMAND_CORE = 2,      /* --core makes sense */
	COMMAND_JSON = 4,
	COMMAND_HIDDEN = 8,    /* not listed */
};

struct command {
	const char *name;
	int (*run)(const struct options *options); /* returns an exit status */
	unsigned flags;
};
extern const struct command commands[]; /* ends with no name; main.c */

struct options {
	const struct command *command;
	pid_t *pids;
	size_t n_pids;
	const char *core;
	bool json, ascii;
	bool policy;          /* of doctor */
	bool colour;
	unsigned width;
	uint64_t interval_ns; /* between two looks; 0: no rates */
	bool interval_given;
	uint64_t older_than_ns;
	uint64_t port;        /* an id; 0: all */
	uint32_t kinds;       /* of trace: bits; 0: all */
	bool every;
	const char *pcapng;
	uint64_t for_ns;      /* 0: until interrupted */
};

/* 0; else the exit status, EXIT_FINE + 1 that of --help excluded: that exits here. */
int options_parse(int argc, char **argv, struct options *ret_options);

/* One line on standard error. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
