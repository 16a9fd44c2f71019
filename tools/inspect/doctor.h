/* SPDX-License-Identifier: MIT */
/* What the doctor's files share: a list of findings about this machine, one of each question that was asked. */
#ifndef INSPECT_DOCTOR_H
#define INSPECT_DOCTOR_H

#include <stdbool.h>
#include <stddef.h>

enum doctor_level {
	DOCTOR_OK,
	DOCTOR_OFF,    /* a choice that nobody has to make */
	DOCTOR_COSTS,  /* it runs, and pays for this */
	DOCTOR_BROKEN, /* it does not run */
};

enum { DOCTOR_FINDINGS_MAX = 24 };

struct doctor_finding {
	const char *key;      /* for JSON: never changes its meaning */
	enum doctor_level level;
	char value[256];      /* what was found */
	char cost[256];       /* what that costs; empty with DOCTOR_OK */
	char mend[256];       /* the one command that mends it; empty: there is none, or nothing to mend */
};

struct options;

/* Commands: each returns an exit status. */
int doctor_run(const struct options *options);
int doctor_policy(const struct options *options);

struct doctor_findings {
	size_t n;
	struct doctor_finding findings[DOCTOR_FINDINGS_MAX];
};

/* A new one, DOCTOR_OK, with its value. */
struct doctor_finding *doctor_find(struct doctor_findings *all, const char *key, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* Says what it costs, and how to mend it. Both as printf; of several costs the first is kept. */
void doctor_costs(struct doctor_finding *f, enum doctor_level level, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
void doctor_mend(struct doctor_finding *f, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Each asks its questions. */
void doctor_look_at_engine(struct doctor_findings *all);
void doctor_look_at_memory(struct doctor_findings *all);
void doctor_look_at_limits(struct doctor_findings *all);
void doctor_look_at_cpus(struct doctor_findings *all);

/* The first line of a small file, without its newline. False: it cannot be read. */
bool doctor_read_line(const char *path, char *ret_line, size_t size);
/* The number behind `key` in a file of `key value` lines; -1: none. */
long long doctor_read_key(const char *path, const char *key);
/* A file of this process's cgroup (version 2), its first line. */
bool doctor_read_cgroup(const char *file, char *ret_line, size_t size);
void doctor_cgroup_path(const char *file, char *ret_path, size_t size);

#endif
