/* SPDX-License-Identifier: MIT */
/*
 * Memory: what this process has of it, and of descriptors and mappings. What the kernel keeps for sockets is not
 * counted: no process can see it.
 */
#ifndef BENCH_MEMORY_H
#define BENCH_MEMORY_H

struct memory {
	double heap_bytes;    /* allocated with malloc */
	double control_bytes; /* handed out of the library's control memory, which is no heap */
	double rss_bytes;     /* resident, shared segments included */
	double fds;
	double mappings;
};

void memory_now(struct memory *ret_memory);

/* What came in between, for each of n. */
struct memory memory_each(const struct memory *before, const struct memory *after, double n);

#endif
