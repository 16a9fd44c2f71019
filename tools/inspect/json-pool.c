/* SPDX-License-Identifier: MIT */
/* Pools as JSON. */
#include <stdlib.h>

#include "chunks.h"
#include "json.h"
#include "memory.h"

static void add_states(struct json_object *to, const uint64_t states[CHUNK_STATES])
{
	for (int i = 0; i < CHUNK_STATES; i++) {
		static const char *const names[CHUNK_STATES] = { "free_bytes", "claimed_bytes", "lent_bytes",
			"several_bytes" };
		json_add_count(to, names[i], states[i]);
	}
}

static void add_segment(struct json_object *array, const struct chunks_slot *slot, bool chunks)
{
	static const char signs[CHUNK_STATES] = { '.', 'o', '#', '&' };
	struct json_object *o = json_add_element(array);
	const struct snap_slot *s = slot->slot;
	uint64_t bytes[CHUNK_STATES];
	char *map;

	json_add_count(o, "segment", s->index);
	json_add_text(o, "state", chunks_slot_state_name(s->state));
	json_add_count(o, "chunk_bytes", UINT64_C(1) << s->shift);
	json_add_count(o, "chunks", s->n_chunks);
	json_add_count(o, "times_made", s->times_made);
	for (int i = 0; i < CHUNK_STATES; i++)
		bytes[i] = (uint64_t)slot->n[i] << s->shift;
	add_states(o, bytes);
	json_add_count(o, "largest_free_bytes", (uint64_t)slot->largest << s->shift);
	if (!chunks)
		return;
	map = memory_new(s->n_chunks + 1, 1);
	for (uint32_t c = 0; c < s->n_chunks; c++)
		map[c] = signs[slot->states[c]];
	json_add_text(o, "map", map);
	free(map);
}

static void add_class(struct json_object *array, const struct chunks_class *class)
{
	struct json_object *o = json_add_element(array);
	uint64_t bytes[CHUNK_STATES];

	json_add_count(o, "chunk_bytes", UINT64_C(1) << class->shift);
	json_add_count(o, "segments", class->n_slots);
	for (int i = 0; i < CHUNK_STATES; i++)
		bytes[i] = class->n[i] << class->shift;
	add_states(o, bytes);
	json_add_count(o, "largest_free_bytes", (uint64_t) class->largest << class->shift);
	json_add_number(o, "fragmentation", chunks_fragmentation(class->n[CHUNK_FREE], class->largest));
}

static void add_run(struct json_object *array, const struct chunks_run *run)
{
	struct json_object *o = json_add_element(array);
	const char *age = run->lease ? "lent_for_ns" : "claimed_for_ns";

	json_add_count(o, "segment", run->slot);
	json_add_count(o, "first", run->first);
	json_add_count(o, "chunks", run->n);
	json_add_count(o, "bytes", run->bytes);
	if (run->dated)
		json_add_count(o, age, run->age_ns);
	else
		json_add_text(o, age, NULL);
	if (!run->lease)
		return;
	json_add_count(o, "lease", run->lease->id);
	json_add_count(o, "peer_pid", run->lease->peer);
	if (run->port)
		json_add_count(o, "port", run->port->s.id);
	else
		json_add_text(o, "port", NULL);
	json_add_count(o, "stream", run->stream);
	json_add_count(o, "holders", run->holders);
}

static void add_runs(
	struct json_object *to, const char *name, const struct chunks_run *runs, size_t n, uint64_t older_than_ns)
{
	struct json_object *array = json_add_array(to, name);

	for (size_t i = 0; i < n; i++)
		if (!older_than_ns || (runs[i].dated && runs[i].age_ns >= older_than_ns))
			add_run(array, &runs[i]);
}

static void add_lease(struct json_object *array, const struct snapshot *snapshot, const struct chunks *chunks,
	const struct snap_lease *lease)
{
	struct json_object *o = json_add_element(array);
	const struct snap_port *port = snapshot_port_of_lease(snapshot, lease);
	uint64_t bytes = 0, runs = 0;

	for (size_t i = 0; i < chunks->n_runs; i++) {
		if (chunks->runs[i].lease == lease) {
			bytes += chunks->runs[i].bytes;
			runs++;
		}
	}
	json_add_count(o, "id", lease->id);
	json_add_count(o, "peer_pid", lease->peer);
	if (port)
		json_add_count(o, "port", port->s.id);
	else
		json_add_text(o, "port", NULL);
	json_add_count(o, "lent_bytes", bytes);
	json_add_count(o, "runs", runs);
}

struct json_object *json_pools(const struct subject *subject, bool want_chunks, uint64_t older_than_ns)
{
	struct json_object *pools = json_object_new_array();

	for (size_t i = 0; i < subject->now.n_pools; i++) {
		const struct snap_pool *pool = &subject->now.pools[i];
		struct json_object *o = json_add_element(pools), *array;
		struct chunks chunks;

		chunks_make(&subject->now, pool, &chunks);
		json_add_count(o, "id", pool->id);
		json_add_text(o, "name", pool->name);
		json_add_bool(o, "shared", pool->shared);
		json_add_count(o, "bytes", pool->bytes);
		json_add_count(o, "bytes_max", pool->bytes_max);
		add_states(o, chunks.bytes);
		array = json_add_array(o, "leases");
		for (size_t k = 0; k < pool->n_leases; k++)
			add_lease(array, &subject->now, &chunks, &pool->leases[k]);
		array = json_add_array(o, "segments");
		for (size_t k = 0; k < pool->n_slots; k++)
			add_segment(array, &chunks.slots[k], want_chunks);
		array = json_add_array(o, "classes");
		for (unsigned c = 0; c < CHUNKS_CLASSES; c++)
			if (chunks.classes[c].n_slots)
				add_class(array, &chunks.classes[c]);
		add_runs(o, "runs", chunks.runs, chunks.n_runs, older_than_ns);
		add_runs(o, "claims", chunks.claims, chunks.n_claims, older_than_ns);
		chunks_fini(&chunks);
	}
	return pools;
}
