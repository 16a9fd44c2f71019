/* SPDX-License-Identifier: MIT */
/* A copy of a process's control memory: see snapshot.h. Pools are in snapshot-pools.c. */
#include "snapshot.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "memory.h"
#include "snapshot-reader.h"
#include "unit.h"

enum {
	TRIES = 8,
	PAUSES_MAX = 64, /* for all blocks together: a process may have thousands that stay torn */
	PAUSE_NS = 200000, /* a change of a list takes less than this, unless its thread is stopped in it */
};

void reader_complain(struct reader *reader, const char *format, ...)
{
	char text[SNAPSHOT_WHY_BYTES];
	va_list arguments;
	struct snapshot *snapshot = reader->snapshot;

	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	for (size_t i = 0; i < snapshot->n_problems; i++)
		if (!strcmp(snapshot->problems[i], text))
			return;
	if (snapshot->n_problems < SNAPSHOT_PROBLEMS_MAX)
		snapshot->problems[snapshot->n_problems++] = memory_format("%s", text);
}

bool reader_bytes(struct reader *reader, uint32_t position, uint64_t offset, void *to, size_t size)
{
	uint64_t at = (uint64_t)position * WH_CONTROL_UNIT + offset;

	if (!position || at > reader->end || size > reader->end - at) {
		reader_complain(reader, "position %u is outside of the %llu bytes that are used", position,
			(unsigned long long)reader->end);
		return false;
	}
	if (size > reader->budget) {
		reader_complain(reader, "structures overlap: more to read than there is");
		return false;
	}
	reader->budget -= size;
	if (source_read(reader->source, at, to, size) == 0)
		return true;
	reader_complain(reader, "cannot read %zu bytes at position %u", size, position);
	return false;
}

static void pause_a_little(void)
{
	const struct timespec time = { .tv_nsec = PAUSE_NS };

	nanosleep(&time, NULL);
}

/* A block with a sequence of its own, which lies in the same place in loops and ports. False: unreadable, or gone. */
static bool read_block(struct reader *reader, uint32_t position, uint64_t id, void *to, size_t size, bool *ret_torn)
{
	enum { ID = 8, SEQUENCE = 16 };
	_Static_assert(offsetof(struct wh_stats_loop, id) == ID && offsetof(struct wh_stats_port, id) == ID, "layout");
	_Static_assert(offsetof(struct wh_stats_loop, sequence) == SEQUENCE, "layout");
	_Static_assert(offsetof(struct wh_stats_port, sequence) == SEQUENCE, "layout");

	for (int i = 0; i < TRIES; i++) {
		uint32_t before, after;
		uint64_t id_now;

		if (i) {
			if (!reader->pauses)
				return true;
			reader->pauses--;
			pause_a_little();
		}
		reader->budget += i ? size + 8 : 8; /* again is not more */
		if (!reader_bytes(reader, position, SEQUENCE, &before, 4) ||
			!reader_bytes(reader, position, 0, to, size) ||
			!reader_bytes(reader, position, SEQUENCE, &after, 4))
			return false;
		memcpy(&id_now, (char *)to + ID, sizeof id_now);
		if (id_now != id)
			return false;
		*ret_torn = before != after || before & 1;
		if (!*ret_torn)
			return true;
	}
	return true;
}

/* ---- Lists ---- */

bool reader_list(struct reader *reader, const char *what, uint32_t first, const struct link_layout *layout,
	struct place **ret_places, size_t *ret_n)
{
	struct place *places = NULL;
	uint32_t previous = 0;
	size_t n = 0;
	bool whole = true;

	for (uint32_t at = first; at;) {
		unsigned char block[READER_LINK_BYTES];
		uint32_t next, back;

		if (n == reader->places_left || !reader_bytes(reader, at, 0, block, sizeof block)) {
			reader_complain(reader, "the list of %s leads astray after %zu", what, n);
			whole = false;
			break;
		}
		memcpy(&next, block + layout->next, 4);
		memcpy(&back, block + layout->previous, 4);
		/* Whoever leads forth and back right cannot lead in a circle. */
		if (back != previous) {
			reader_complain(reader, "the list of %s leads astray after %zu", what, n);
			whole = false;
			break;
		}
		places = memory_grow(places, n, sizeof *places);
		places[n].position = at;
		memcpy(&places[n++].id, block + layout->id, 8);
		previous = at;
		at = next;
	}
	reader->places_left -= n;
	*ret_places = places;
	*ret_n = n;
	return whole;
}

static const struct link_layout stats_links = { .next = 0, .previous = 4, .id = 8 };

static void read_loops(struct reader *reader, uint32_t first)
{
	struct snapshot *snapshot = reader->snapshot;
	struct place *loops, *ports;
	size_t n_loops, n_ports;

	reader->whole &= reader_list(reader, "loops", first, &stats_links, &loops, &n_loops);
	for (size_t i = 0; i < n_loops; i++) {
		struct snap_loop loop = { .position = loops[i].position };
		uint32_t first_port;

		if (!read_block(reader, loops[i].position, loops[i].id, &loop.s, sizeof loop.s, &loop.torn))
			continue;
		first_port = loop.s.first_port;
		snapshot->loops = memory_grow(snapshot->loops, snapshot->n_loops, sizeof loop);
		snapshot->loops[snapshot->n_loops++] = loop;
		reader->whole &= reader_list(reader, "ports", first_port, &stats_links, &ports, &n_ports);
		for (size_t k = 0; k < n_ports; k++) {
			snapshot->ports = memory_grow(snapshot->ports, snapshot->n_ports, sizeof *snapshot->ports);
			snapshot->ports[snapshot->n_ports++] = (struct snap_port){
				.position = ports[k].position,
				.loop = (uint32_t)snapshot->n_loops - 1,
				.s.id = ports[k].id,
			};
		}
		free(ports);
	}
	free(loops);
}

/* After the lists, which are to be gone through quickly: a port that ends meanwhile is left out. */
static void read_ports(struct reader *reader)
{
	struct snapshot *snapshot = reader->snapshot;
	size_t n = 0;

	for (size_t i = 0; i < snapshot->n_ports; i++) {
		struct snap_port port = snapshot->ports[i];

		if (!read_block(reader, port.position, port.s.id, &port.s, sizeof port.s, &port.torn))
			continue;
		unit_clean(port.s.peer_name, sizeof port.s.peer_name);
		unit_clean(port.s.text, sizeof port.s.text);
		snapshot->ports[n++] = port;
	}
	snapshot->n_ports = n;
}

/* Times of another clock than ours cannot be compared with now: unknown, like those that have not been. */
static void drop_foreign_times(struct snapshot *snapshot)
{
	for (size_t i = 0; i < snapshot->n_loops; i++) {
		struct wh_stats_loop *l = &snapshot->loops[i].s;

		if (l->flags & WH_STATS_OWN_CLOCK)
			l->phase_since_ns = l->next_deadline_ns = l->started_ns = 0;
	}
	for (size_t i = 0; i < snapshot->n_ports; i++) {
		struct wh_stats_port *p = &snapshot->ports[i].s;

		if (snapshot->loops[snapshot->ports[i].loop].s.flags & WH_STATS_OWN_CLOCK)
			p->opened_ns = p->last_tx_ns = p->last_rx_ns = p->unread_since_ns = p->blocked_since_ns = 0;
	}
}

/* ---- The whole ---- */

static void forget(struct snapshot *snapshot)
{
	for (size_t i = 0; i < snapshot->n_pools; i++)
		snapshot_pool_fini(&snapshot->pools[i]);
	for (size_t i = 0; i < snapshot->n_problems; i++)
		free(snapshot->problems[i]);
	free(snapshot->pools);
	free(snapshot->ports);
	free(snapshot->loops);
	snapshot->pools = NULL;
	snapshot->ports = NULL;
	snapshot->loops = NULL;
	snapshot->n_pools = snapshot->n_ports = snapshot->n_loops = snapshot->n_problems = 0;
}

void snapshot_fini(struct snapshot *snapshot) { forget(snapshot); }

static int read_header(const struct source *source, struct wh_control_header *ret_header, char why[SNAPSHOT_WHY_BYTES])
{
	struct wh_control_header header;
	int error = source_read(source, 0, &header, sizeof header);

	if (error && error != -ERANGE) {
		snprintf(why, SNAPSHOT_WHY_BYTES, "its control memory cannot be read: %s", strerror(-error));
		return -EIO;
	}
	if (error || header.magic != WH_CONTROL_MAGIC) {
		snprintf(why, SNAPSHOT_WHY_BYTES, "what it calls control memory is none of wharf's");
		return -ENODATA;
	}
	if (header.version != WH_CONTROL_VERSION) {
		snprintf(why, SNAPSHOT_WHY_BYTES, "its wharf is %s than this tool: layout %u, and this reads %u",
			header.version < WH_CONTROL_VERSION ? "older" : "newer", header.version, WH_CONTROL_VERSION);
		return -EPROTONOSUPPORT;
	}
	memcpy(ret_header, &header, sizeof header);
	return 0;
}

int snapshot_owner(
	const struct source *source, uint32_t *ret_pid, uint64_t *ret_start_time, char why[SNAPSHOT_WHY_BYTES])
{
	struct wh_control_header header;
	int error = read_header(source, &header, why);

	if (error)
		return error;
	*ret_pid = header.pid;
	*ret_start_time = header.start_time;
	return 0;
}

/* One go through the lists. True: they did not change meanwhile. */
static bool read_lists(struct reader *reader, const struct wh_control_header *header, unsigned wants)
{
	struct wh_control_header after;
	uint64_t sequence = header->sequence;

	reader->whole = true;
	reader->places_left = READER_PLACES_MAX;
	if (wants & SNAPSHOT_STATS)
		read_loops(reader, header->first_loop);
	if (wants & SNAPSHOT_POOLS)
		reader_pools(reader, header->first_pool);
	if (source_read(reader->source, 0, &after, sizeof after))
		return false;
	return reader->whole && !(sequence & 1) && after.sequence == sequence;
}

int snapshot_take(
	const struct source *source, unsigned wants, struct snapshot *ret_snapshot, char why[SNAPSHOT_WHY_BYTES])
{
	struct snapshot snapshot = { 0 };
	struct reader reader = { .source = source, .snapshot = &snapshot, .pauses = PAUSES_MAX };
	struct wh_control_header header;
	struct timespec now = { 0 };
	bool good = false;

	for (int i = 0; i < TRIES && !good; i++) {
		int error;

		if (i)
			pause_a_little();
		error = read_header(source, &header, why);
		if (error) {
			forget(&snapshot);
			return error;
		}
		forget(&snapshot);
		reader.end = header.used < header.size ? header.used : header.size;
		if (reader.end > source->size)
			reader.end = source->size;
		if (reader.end > WH_CONTROL_BYTES_MAX)
			reader.end = WH_CONTROL_BYTES_MAX;
		reader.budget = reader.end;
		good = read_lists(&reader, &header, wants);
	}
	snapshot.torn = !good;
	snapshot.version = header.version;
	snapshot.pid = header.pid;
	snapshot.start_time = header.start_time;
	snapshot.size = header.size;
	snapshot.used = header.used;
	/* Lists, and what is in them: no byte belongs to two structures. */
	reader.budget = reader.end;
	read_ports(&reader);
	drop_foreign_times(&snapshot);
	reader_fill_pools(&reader, wants);
	if (!source->core) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		snapshot.taken_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	}
	*ret_snapshot = snapshot;
	return 0;
}

/* ---- Looking around in it ---- */

const struct snap_port *snapshot_port_of_lease(const struct snapshot *snapshot, const struct snap_lease *lease)
{
	for (size_t i = 0; i < snapshot->n_ports; i++)
		if (snapshot->ports[i].s.lease == lease->position)
			return &snapshot->ports[i];
	return NULL;
}

const struct snap_pool *snapshot_pool_at(const struct snapshot *snapshot, uint32_t position)
{
	for (size_t i = 0; i < snapshot->n_pools; i++)
		if (snapshot->pools[i].position == position)
			return &snapshot->pools[i];
	return NULL;
}

const struct snap_port *snapshot_port_at(const struct snapshot *snapshot, uint32_t position)
{
	for (size_t i = 0; position && i < snapshot->n_ports; i++)
		if (snapshot->ports[i].position == position)
			return &snapshot->ports[i];
	return NULL;
}
