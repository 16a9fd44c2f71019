/* SPDX-License-Identifier: MIT */
/* Memory: from malloc, and from /proc/self. */
#include "memory.h"

#include <dirent.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The header of control memory, as far as it tells an inspector how much was handed out. */
struct control_header {
	char magic[8];
	uint32_t version;
	char other[36];
	uint64_t used;
};

/* 0: it is no control memory, or of another layout. */
static double control_bytes(int fd)
{
	struct control_header header;

	if (pread(fd, &header, sizeof header, 0) != sizeof header || memcmp(header.magic, "WHARFCTL", 8) ||
	    header.version != 3)
		return 0;
	return (double)header.used;
}

static void look_at_fds(struct memory *memory)
{
	static const char control[] = "/memfd:wharf-control";
	DIR *directory = opendir("/proc/self/fd");
	const struct dirent *entry;

	if (!directory)
		return;
	while ((entry = readdir(directory))) {
		char target[sizeof control];
		ssize_t length = readlinkat(dirfd(directory), entry->d_name, target, sizeof target);

		if (length < 0)
			continue; /* . and .. */
		memory->fds++;
		if (length >= (ssize_t)sizeof control - 1 && !memcmp(target, control, sizeof control - 1))
			memory->control_bytes += control_bytes(atoi(entry->d_name));
	}
	closedir(directory);
	memory->fds--; /* the directory's own */
}

static void look_at_mappings(struct memory *memory)
{
	FILE *file = fopen("/proc/self/smaps_rollup", "re");
	char line[256];
	int c;

	while (file && fgets(line, sizeof line, file))
		if (sscanf(line, "Rss: %lf kB", &memory->rss_bytes) == 1)
			memory->rss_bytes *= 1024;
	if (file)
		fclose(file);
	file = fopen("/proc/self/maps", "re");
	while (file && (c = getc_unlocked(file)) != EOF)
		memory->mappings += c == '\n';
	if (file)
		fclose(file);
}

void memory_now(struct memory *ret_memory)
{
	struct mallinfo2 heap = mallinfo2();
	struct memory memory = { .heap_bytes = (double)(heap.uordblks + heap.hblkhd) };

	look_at_fds(&memory);
	look_at_mappings(&memory);
	*ret_memory = memory;
}

struct memory memory_each(const struct memory *before, const struct memory *after, double n)
{
	return (struct memory){
		.heap_bytes = (after->heap_bytes - before->heap_bytes) / n,
		.control_bytes = (after->control_bytes - before->control_bytes) / n,
		.rss_bytes = (after->rss_bytes - before->rss_bytes) / n,
		.fds = (after->fds - before->fds) / n,
		.mappings = (after->mappings - before->mappings) / n,
	};
}
