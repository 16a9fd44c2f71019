/* SPDX-License-Identifier: MIT */
/* The progress bar: a line that is painted over itself, and gives up its parts one by one on a narrow terminal. */
#include "cat-progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_SECOND 1000000000u

enum {
	BAR_MIN = 10,
	BAR_MAX = 200,
	COLUMNS_DEFAULT = 80,
};

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS_PER_SECOND + (uint64_t)t.tv_nsec;
}

const char *cat_size_text(double bytes, char text[16])
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	size_t unit = 0;

	while (bytes >= 999.95 && unit + 1 < sizeof units / sizeof units[0]) {
		bytes /= 1024;
		unit++;
	}
	snprintf(text, 16, "%.*f %s", unit ? 1 : 0, bytes, units[unit]);
	return text;
}

static void time_text(double seconds, char text[24])
{
	unsigned long s = seconds < 359999 ? (unsigned long)(seconds + 0.5) : 359999;

	if (s >= 3600)
		snprintf(text, 24, "%lu:%02lu:%02lu", s / 3600, s / 60 % 60, s % 60);
	else
		snprintf(text, 24, "%lu:%02lu", s / 60, s % 60);
}

void cat_progress_init(struct cat_progress *p, bool wanted, int data_fd)
{
	const char *term = getenv("TERM");
	const char *no_color = getenv("NO_COLOR");

	memset(p, 0, sizeof *p);
	p->total = UINT64_MAX;
	p->on = wanted && isatty(STDERR_FILENO) && !isatty(data_fd) && term && *term && strcmp(term, "dumb") != 0;
	p->colour = p->on && !(no_color && *no_color);
}

void cat_progress_begin(struct cat_progress *p, uint64_t now_ns)
{
	p->started_ns = p->sampled_ns = now_ns;
}

static unsigned int terminal_columns(void)
{
	struct winsize w;

	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0)
		return w.ws_col;
	return COLUMNS_DEFAULT;
}

static void paint_bar(const struct cat_progress *p, double share, unsigned int width, char *at, size_t size)
{
	unsigned int full = (unsigned int)(share * width);
	char done[BAR_MAX + 1], left[BAR_MAX + 1];

	memset(done, '=', full);
	if (full > 0 && full < width)
		done[full - 1] = '>';
	done[full] = '\0';
	memset(left, ' ', width - full);
	left[width - full] = '\0';
	snprintf(at, size, "  [%s%s%s%s]", p->colour ? "\033[32m" : "", done, p->colour ? "\033[0m" : "", left);
}

void cat_progress_line(const struct cat_progress *p, uint64_t bytes, uint64_t now_ns, unsigned int columns,
	char line[CAT_PROGRESS_LINE])
{
	unsigned int room = columns > 1 ? columns - 1 : 0;
	double elapsed = (double)(now_ns - p->started_ns) / NS_PER_SECOND;
	bool known = p->total != UINT64_MAX && p->total > 0 && bytes <= p->total;
	char size[16], rate[16], time[24] = "", part[64];
	char bar[2 * BAR_MAX + 32] = "", percent[16] = "", tail[40] = "";
	bool cut;

	snprintf(part, sizeof part, "%10s  %10s/s", cat_size_text((double)bytes, size), cat_size_text(p->rate, rate));
	if (known) {
		double share = (double)bytes / (double)p->total;
		unsigned int used;

		snprintf(percent, sizeof percent, "  %3u%%", (unsigned int)(share * 100));
		if (bytes == p->total) {
			time_text(elapsed, time);
			snprintf(tail, sizeof tail, "  in  %6s", time);
		} else if (p->rate > 0) {
			time_text((double)(p->total - bytes) / p->rate, time);
			snprintf(tail, sizeof tail, "  ETA %6s", time);
		} else {
			snprintf(tail, sizeof tail, "  ETA   -:--");
		}
		used = (unsigned int)(strlen(part) + strlen(percent) + strlen(tail)) + 4;
		if (room >= used + BAR_MIN)
			paint_bar(p, share, room - used < BAR_MAX ? room - used : BAR_MAX, bar, sizeof bar);
	} else {
		time_text(elapsed, time);
		snprintf(tail, sizeof tail, "  %s", time);
	}

	/* The least wanted part goes first. Without a bar no invisible byte is in the line, so that cutting it is safe. */
	if (!*bar && strlen(part) + strlen(percent) + strlen(tail) > room)
		*tail = '\0';
	cut = !*bar && strlen(part) + strlen(percent) + strlen(tail) > room;
	snprintf(line, CAT_PROGRESS_LINE, "%s%s%s%s", cut ? size : part, bar, percent, tail);
	if (cut && strlen(line) > room)
		line[room] = '\0';
}

/* A background job must not paint over what the shell shows. */
static bool in_foreground(void)
{
	pid_t group = tcgetpgrp(STDERR_FILENO);

	return group < 0 || group == getpgrp();
}

static void paint(struct cat_progress *p, uint64_t bytes, uint64_t now_ns)
{
	char line[CAT_PROGRESS_LINE];

	if (!in_foreground())
		return;
	cat_progress_line(p, bytes, now_ns, terminal_columns(), line);
	fprintf(stderr, "\r%s\033[K", line);
	fflush(stderr);
	p->painted = true;
}

static void sample(struct cat_progress *p, uint64_t bytes, uint64_t now_ns)
{
	double seconds = (double)(now_ns - p->sampled_ns) / NS_PER_SECOND;
	double rate = (double)(bytes - p->sampled_bytes) / seconds;
	/* About the last two seconds count; the first sample counts whole. */
	double weight = p->sampled_ns == p->started_ns ? 1 : seconds < 1 ? 1 - 1 / (1 + seconds) : 0.5;

	p->rate += (rate - p->rate) * weight;
	p->sampled_ns = now_ns;
	p->sampled_bytes = bytes;
}

void cat_progress_update(struct cat_progress *p, uint64_t bytes)
{
	uint64_t now_ns;

	if (!p->on || !p->started_ns)
		return;
	now_ns = now();
	if (now_ns - p->sampled_ns < CAT_PROGRESS_INTERVAL_MS * 1000000ull)
		return;
	sample(p, bytes, now_ns);
	paint(p, bytes, now_ns);
}

void cat_progress_clear(struct cat_progress *p)
{
	if (!p->painted)
		return;
	fputs("\r\033[K", stderr);
	p->painted = false;
}

void cat_progress_end(struct cat_progress *p, uint64_t bytes)
{
	uint64_t now_ns = now();

	if (!p->on || !p->started_ns || now_ns <= p->started_ns)
		return;
	p->rate = (double)bytes * NS_PER_SECOND / (double)(now_ns - p->started_ns);
	paint(p, bytes, now_ns);
	if (p->painted)
		fputc('\n', stderr);
	p->on = p->painted = false;
}
