/* SPDX-License-Identifier: MIT */
/* The doctor's findings, and the small files that they are read from. */
#include "doctor.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct doctor_finding *doctor_find(struct doctor_findings *all, const char *key, const char *format, ...)
{
	struct doctor_finding *f = &all->findings[all->n++];
	va_list arguments;

	assert(all->n <= DOCTOR_FINDINGS_MAX);
	*f = (struct doctor_finding){ .key = key };
	va_start(arguments, format);
	vsnprintf(f->value, sizeof(f->value), format, arguments);
	va_end(arguments);
	return f;
}

void doctor_costs(struct doctor_finding *f, enum doctor_level level, const char *format, ...)
{
	va_list arguments;

	if (f->level >= level)
		return;
	f->level = level;
	va_start(arguments, format);
	vsnprintf(f->cost, sizeof(f->cost), format, arguments);
	va_end(arguments);
	f->mend[0] = 0;
}

void doctor_mend(struct doctor_finding *f, const char *format, ...)
{
	va_list arguments;

	if (f->mend[0])
		return;
	va_start(arguments, format);
	vsnprintf(f->mend, sizeof(f->mend), format, arguments);
	va_end(arguments);
}

bool doctor_read_line(const char *path, char *ret_line, size_t size)
{
	FILE *file = fopen(path, "re");
	bool got;

	if (!file)
		return false;
	got = fgets(ret_line, (int)size, file);
	fclose(file);
	if (got)
		ret_line[strcspn(ret_line, "\n")] = 0;
	return got;
}

long long doctor_read_key(const char *path, const char *key)
{
	FILE *file = fopen(path, "re");
	size_t length = strlen(key);
	long long value = -1;
	char line[256];

	while (file && value < 0 && fgets(line, sizeof(line), file))
		if (!strncmp(line, key, length) && (line[length] == ':' || line[length] == ' ' || line[length] == '\t'))
			value = strtoll(line + length + 1, NULL, 10);
	if (file)
		fclose(file);
	return value;
}

void doctor_cgroup_path(const char *file, char *ret_path, size_t size)
{
	char line[512] = "";
	FILE *groups = fopen("/proc/self/cgroup", "re");

	ret_path[0] = 0;
	while (groups && fgets(line, sizeof(line), groups))
		if (!strncmp(line, "0::", 3)) {
			line[strcspn(line, "\n")] = 0;
			snprintf(ret_path, size, "/sys/fs/cgroup%s/%s", strcmp(line + 3, "/") ? line + 3 : "", file);
		}
	if (groups)
		fclose(groups);
}

bool doctor_read_cgroup(const char *file, char *ret_line, size_t size)
{
	char path[640];

	doctor_cgroup_path(file, path, sizeof(path));
	return path[0] && doctor_read_line(path, ret_line, size);
}
