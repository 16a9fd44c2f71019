/* SPDX-License-Identifier: MIT */
/* The progress bar on a terminal: bytes, rate, and the time left when the size is known. */
#ifndef CAT_PROGRESS_H
#define CAT_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	CAT_PROGRESS_INTERVAL_MS = 100,
	CAT_PROGRESS_LINE = 640, /* a bar of the widest kind, colours included */
};

struct cat_progress {
	bool on;
	bool colour;
	bool painted;
	uint64_t total; /* UINT64_MAX: unknown */
	uint64_t started_ns;
	uint64_t sampled_ns;
	uint64_t sampled_bytes;
	double rate; /* bytes per second, smoothed */
};

/* On if standard error is a terminal that can go back to the start of its line. data_fd is not to be painted into. */
void cat_progress_init(struct cat_progress *p, bool wanted, int data_fd);
void cat_progress_begin(struct cat_progress *p, uint64_t now_ns);

/* Paints if it is time to. Cheap when off. */
void cat_progress_update(struct cat_progress *p, uint64_t bytes);

/* Wipes the line, so that text can be printed; the next update paints it again. */
void cat_progress_clear(struct cat_progress *p);

/* Paints the last state and leaves it standing. */
void cat_progress_end(struct cat_progress *p, uint64_t bytes);

/* The line for a terminal of so many columns, at most columns - 1 wide: a full line would wrap. */
void cat_progress_line(const struct cat_progress *p, uint64_t bytes, uint64_t now_ns, unsigned int columns,
	char line[CAT_PROGRESS_LINE]);

/* "412.3 MiB" */
const char *cat_size_text(double bytes, char text[16]);

#endif
