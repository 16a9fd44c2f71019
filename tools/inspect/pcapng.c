/* SPDX-License-Identifier: MIT */
/*
 * Events as a pcapng file: one section, one interface of LINKTYPE_USER0 (147) with times in ns of the wall's clock, and
 * one enhanced packet block for each event, with its text as a comment. A packet is, in the section's byte order:
 *
 *   0  u32 version of this form: 1   16  u64 loop's id
 *   4  u32 kind, as in lib/stats.h   24  u64 CLOCK_MONOTONIC in ns
 *   8  u32 process                   32  u64 a
 *   12 u32 zero                      40  u64 b
 *                                    48  u64 port's id, 0: the loop's own
 */
#include "pcapng.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "memory.h"
#include "names.h"

enum {
	BLOCK_SECTION = 0x0a0d0d0a,
	BLOCK_INTERFACE = 1,
	BLOCK_PACKET = 6,
	BYTE_ORDER_MAGIC = 0x1a2b3c4d,
	LINKTYPE_USER0 = 147,
	OPTION_END = 0,
	OPTION_COMMENT = 1,
	OPTION_NAME = 2,
	OPTION_APPLICATION = 4,
	OPTION_RESOLUTION = 9,
	BLOCK_BYTES_MAX = 1024,
};

struct packet {
	uint32_t version, kind, pid, zero;
	uint64_t loop, time_ns, a, b, port;
};
_Static_assert(sizeof(struct packet) == 56, "layout");

struct pcapng {
	FILE *file;
	uint32_t pid;
	unsigned char block[BLOCK_BYTES_MAX];
	size_t size;
};

static void add(struct pcapng *p, const void *bytes, size_t n)
{
	wh_assert(p->size + n + 8 <= sizeof p->block);
	memcpy(p->block + p->size, bytes, n);
	p->size += n;
}

static void add32(struct pcapng *p, uint32_t value) { add(p, &value, sizeof value); }
static void add16(struct pcapng *p, uint16_t value) { add(p, &value, sizeof value); }

static void pad(struct pcapng *p)
{
	while (p->size % 4)
		add(p, "", 1);
}

static void begin(struct pcapng *p, uint32_t type)
{
	p->size = 0;
	add32(p, type);
	add32(p, 0);
}

static void add_option(struct pcapng *p, uint16_t code, const void *value, size_t n)
{
	add16(p, code);
	add16(p, (uint16_t)n);
	add(p, value, n);
	pad(p);
}

static void end(struct pcapng *p)
{
	uint32_t size;

	add16(p, OPTION_END);
	add16(p, 0);
	size = (uint32_t)p->size + 4;
	memcpy(p->block + 4, &size, sizeof size);
	add32(p, size);
	fwrite(p->block, p->size, 1, p->file);
}

struct pcapng *pcapng_open(const char *path, const struct process *process, char why[PROCESS_WHY_BYTES])
{
	FILE *file = strcmp(path, "-") ? fopen(path, "we") : stdout;
	const uint64_t length_unknown = UINT64_MAX;
	const unsigned char ns = 9;
	struct pcapng *p;

	if (!file) {
		snprintf(why, PROCESS_WHY_BYTES, "%s", strerror(errno));
		return NULL;
	}
	p = memory_new(1, sizeof *p);
	p->file = file;
	p->pid = (uint32_t)process->pid;
	begin(p, BLOCK_SECTION);
	add32(p, BYTE_ORDER_MAGIC);
	add16(p, 1); /* version 1.0 of the format */
	add16(p, 0);
	add(p, &length_unknown, sizeof length_unknown);
	add_option(p, OPTION_APPLICATION, "wharf-inspect", 13);
	end(p);
	begin(p, BLOCK_INTERFACE);
	add16(p, LINKTYPE_USER0);
	add16(p, 0);
	add32(p, 0); /* no limit of length */
	add_option(p, OPTION_NAME, process->name, strlen(process->name));
	add_option(p, OPTION_RESOLUTION, &ns, 1);
	end(p);
	return p;
}

void pcapng_add(struct pcapng *p, const struct trace_event *event, int64_t wall_ns)
{
	const struct wh_stats_entry *e = &event->entry;
	const struct packet packet = { 1, e->kind, p->pid, 0, event->loop, e->time_ns, e->a, e->b, event->port };
	uint64_t time = e->time_ns + (uint64_t)wall_ns;
	char text[TRACE_TEXT_BYTES], comment[TRACE_TEXT_BYTES + 64];
	const char *kind = names_event(e->kind);
	int n;

	trace_describe(e, text);
	n = snprintf(comment, sizeof comment, event->port ? "port %llu %s %s" : "loop %llu %s %s",
		(unsigned long long)(event->port ? event->port : event->loop), kind ? kind : "?", text);
	begin(p, BLOCK_PACKET);
	add32(p, 0);
	add32(p, (uint32_t)(time >> 32));
	add32(p, (uint32_t)time);
	add32(p, sizeof packet);
	add32(p, sizeof packet);
	add(p, &packet, sizeof packet);
	add_option(p, OPTION_COMMENT, comment, n > 0 ? (size_t)n : 0);
	end(p);
}

int pcapng_close(struct pcapng *p)
{
	bool bad = fflush(p->file) || ferror(p->file);

	if (p->file != stdout)
		bad |= fclose(p->file) != 0;
	free(p);
	return bad ? -EIO : 0;
}
