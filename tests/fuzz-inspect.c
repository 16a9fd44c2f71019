/* SPDX-License-Identifier: MIT */
/*
 * What wharf-inspect reads of strangers: control memory, lines of fdinfo, core dumps. Whatever lies there, a look ends, within
 * bounds, and what it shows obeys what views rely on. With libFuzzer, or (WH_FUZZ_STANDALONE) with memory of its own: a
 * good one, the same mutated, and noise.
 * usage, standalone: fuzz-inspect [seed [rounds]]
 */
#include <elf.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunks.h"
#include "core.h"
#include "fdinfo.h"
#include "json.h"
#include "page.h"
#include "snapshot.h"
#include "subject.h"
#include "views.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum kind { KIND_MEMORY, KIND_FDINFO, KIND_CORE, KINDS };
/*
 * The first byte of an input says its kind, the second whether its header is to be repaired first, which is hard to
 * guess; the rest of the first eight keep what follows aligned.
 */
enum { HEAD = 8 };

static const char *broken_rule;

#define REQUIRE(x) ((x) ? (void)0 : broken(#x, __LINE__))

static void broken(const char *rule, int line)
{
	if (!broken_rule)
		fprintf(stderr, "fuzz-inspect.c:%d: broken: %s\n", line, rule);
	broken_rule = rule;
#ifndef WH_FUZZ_STANDALONE
	abort(); /* libFuzzer keeps the input */
#endif
}

/* ---- What views rely on ---- */

static void verify_text(const char *text, size_t size)
{
	REQUIRE(memchr(text, 0, size));
	for (; *text; text++)
		REQUIRE(*text >= ' ' && *text <= '~');
}

static void verify_pool(const struct snapshot *s, const struct snap_pool *pool)
{
	struct chunks chunks;
	uint64_t all = 0, sorted = 0;

	verify_text(pool->name, sizeof pool->name);
	chunks_make(s, pool, &chunks);
	for (size_t i = 0; i < pool->n_slots; i++) {
		const struct snap_slot *slot = &pool->slots[i];

		REQUIRE(slot->n_chunks <= 4096 && slot->shift >= 8 && slot->shift <= 24 && slot->state <= WH_SLOT_DEAD);
		REQUIRE(slot->index < WH_CONTROL_SLOTS && (!i || slot->index > pool->slots[i - 1].index));
		all += slot->n_chunks;
		for (int k = 0; k < CHUNK_STATES; k++)
			sorted += chunks.slots[i].n[k];
	}
	REQUIRE(all == sorted);
	for (size_t i = 0; i < chunks.n_runs; i++) {
		const struct chunks_run *run = &chunks.runs[i];

		REQUIRE(run->n >= 1 && run->n <= 64 && run->first / 64 == (run->first + run->n - 1) / 64);
		REQUIRE(i == 0 || !run->dated || run->age_ns <= run[-1].age_ns);
	}
	chunks_fini(&chunks);
}

static void verify_snapshot(const struct snapshot *s)
{
	for (size_t i = 0; i < s->n_ports; i++) {
		REQUIRE(s->ports[i].loop < s->n_loops);
		verify_text(s->ports[i].s.peer_name, sizeof s->ports[i].s.peer_name);
		verify_text(s->ports[i].s.text, sizeof s->ports[i].s.text);
	}
	for (size_t i = 0; i < s->n_pools; i++)
		verify_pool(s, &s->pools[i]);
	for (size_t i = 0; i < s->n_problems; i++)
		verify_text(s->problems[i], SNAPSHOT_WHY_BYTES);
}

/* ---- Each kind ---- */

/* Every view of it, and its JSON. */
static void show(const struct subject *subject, unsigned width)
{
	struct page page;
	unsigned column = 0;

	page_init(&page, width, width % 2);
	view_head(subject, &page);
	view_loops_table(subject, &page);
	view_ports_table(subject, &page, 20);
	view_ports(subject, &page, 0);
	view_rings(subject, &page);
	view_pools_table(subject, &page);
	view_chunks(subject, &page, true, 100, 0);
	for (size_t i = 0; i < page.size; i++) {
		unsigned char c = (unsigned char)page.text[i];

		column = c == '\n' ? 0 : column + ((c & 0xc0) != 0x80 && (c < PAGE_STYLE || c >= PAGE_STYLE + STYLES));
		REQUIRE(column <= page.width);
		REQUIRE(c == '\n' || c >= ' ' || (c >= PAGE_STYLE && c < PAGE_STYLE + STYLES));
	}
	page_fini(&page);
	json_object_put(json_subject(subject, JSON_LOOPS | JSON_PORTS | JSON_POOLS | JSON_CHUNKS, 0));
}

static void look(const struct source *source)
{
	struct subject subject = { .dumped = true, .source = *source, .process = { .control = -1 } };
	char why[SNAPSHOT_WHY_BYTES];

	if (snapshot_take(source, SNAPSHOT_ALL, &subject.now, why)) {
		verify_text(why, sizeof why);
		return;
	}
	verify_snapshot(&subject.now);
	/* Garbage may be lists of thousands, which take their time to be laid out. */
	if (subject.now.n_ports + subject.now.n_pools < 200)
		show(&subject, 40 + (unsigned)(subject.now.used % 100));
	snapshot_fini(&subject.now);
}

static void repair(void *memory, size_t size)
{
	struct wh_control_header *header = memory;

	if (size < sizeof *header)
		return;
	header->magic = WH_CONTROL_MAGIC;
	header->version = WH_CONTROL_VERSION;
	header->size = size;
	header->used = size;
	header->sequence = 0;
}

static void look_at_fdinfo(const uint8_t *data, size_t size)
{
	struct fdinfo info;
	char *text = malloc(size ? size : 1);
	uint64_t sum = 0;

	/* A copy that ends where the text does, so that a sanitizer sees who reads on. */
	if (size)
		memcpy(text, data, size);
	fdinfo_parse(text, size, &info);
	for (unsigned i = 0; i < FDINFO_OPS; i++)
		sum += info.armed[i];
	REQUIRE(sum == info.n_armed && info.n_armed <= size && info.overflows <= size);
	free(text);
}

static void look_at_core(const uint8_t *data, size_t size)
{
	char why[CORE_WHY_BYTES];
	uint64_t address = 0;
	void *file = malloc(size ? size : 1);
	struct source source;
	struct core core;

	if (size)
		memcpy(file, data, size);
	if (!core_open_memory(file, size, &core, why)) {
		verify_text(core.name, sizeof core.name);
		verify_text(core.command, sizeof core.command);
		if (!core_find_control(&core, &address)) {
			source_of_core(&core, address, UINT64_MAX - address, &source);
			look(&source);
		}
		core_close(&core);
	}
	free(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct source source;
	void *memory;

	if (size < HEAD)
		return 0;
	switch ((enum kind)(data[0] % KINDS)) {
	case KIND_MEMORY:
		memory = malloc(size);
		memcpy(memory, data + HEAD, size - HEAD);
		if (data[1] & 1)
			repair(memory, size - HEAD);
		source_of_memory(memory, size - HEAD, &source);
		look(&source);
		free(memory);
		break;
	case KIND_FDINFO:
		look_at_fdinfo(data + HEAD, size - HEAD);
		break;
	case KIND_CORE:
	case KINDS:
		look_at_core(data + HEAD, size - HEAD);
		break;
	}
	return 0;
}

#ifdef WH_FUZZ_STANDALONE

/* ---- Memory of our own ---- */

enum { MEMORY_BYTES = 64 << 10, CORE_BYTES = MEMORY_BYTES + 4096 };

static uint64_t state;

static uint64_t random_next(void) /* splitmix64 */
{
	uint64_t z = state += 0x9e3779b97f4a7c15;
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static uint32_t below(uint32_t n) { return (uint32_t)(random_next() % n); }

struct layout {
	unsigned char *memory;
	uint32_t next; /* position */
};

static void *put(struct layout *l, size_t bytes, uint32_t *ret_position)
{
	void *at = l->memory + (size_t)l->next * WH_CONTROL_UNIT;

	*ret_position = l->next;
	l->next += (uint32_t)((bytes + WH_CONTROL_UNIT - 1) / WH_CONTROL_UNIT);
	return at;
}

/* A loop with two ports, and a pool of which one run is lent. */
static void make_memory(unsigned char memory[MEMORY_BYTES])
{
	struct layout l = { memory, WH_CONTROL_HEADER_BYTES / WH_CONTROL_UNIT };
	struct wh_control_header *header = (void *)memory;
	struct wh_control_pool *pool;
	struct wh_control_lease *lease;
	struct wh_control_slot *slot;
	struct wh_stats_loop *loop;
	struct wh_stats_port *ports[2];
	uint32_t pool_at, lease_at, slot_at, slots_at, lent_at, words_at, info_at, loop_at, ports_at[2];
	uint32_t *slots, *lent;
	uint64_t *words, *info;

	memset(memory, 0, MEMORY_BYTES);
	pool = put(&l, sizeof *pool, &pool_at);
	lease = put(&l, sizeof *lease, &lease_at);
	slot = put(&l, sizeof *slot, &slot_at);
	slots = put(&l, WH_CONTROL_SLOTS * sizeof *slots, &slots_at);
	lent = put(&l, 4 * sizeof *lent, &lent_at);
	words = put(&l, WH_SLOT_WORDS * sizeof *words, &words_at);
	info = put(&l, 100 * sizeof *info, &info_at);
	loop = put(&l, sizeof *loop, &loop_at);
	for (int i = 0; i < 2; i++)
		ports[i] = put(&l, sizeof *ports[i], &ports_at[i]);

	*loop = (struct wh_stats_loop){ .id = 1, .first_port = ports_at[0], .n_ports = 2, .engine = 1, .turns = 7 };
	for (uint32_t i = 0; i < 2; i++) {
		*ports[i] = (struct wh_stats_port){ .id = 2 + i, .loop = loop_at, .state = 1, .peer_name = "peer" };
		ports[i]->next = i ? 0 : ports_at[1];
		ports[i]->previous = i ? ports_at[0] : 0;
	}
	ports[0]->pool = pool_at;
	ports[0]->lease = lease_at;
	words[0] = 0x7;
	info[0] = 5 | UINT64_C(2) << 32;
	lent[0] = words_at;
	slots[0] = slot_at;
	slot->state = WH_SLOT_LIVE;
	slot->n_chunks = 100;
	slot->chunk_shift = 10;
	slot->info = info_at;
	slot->free[0] = ~UINT64_C(0xf);
	slot->free[1] = UINT64_C(0xfffffffff);
	lease->id = 4;
	lease->lent = lent_at;
	lease->n_lent = 4;
	pool->id = 5;
	pool->bytes = 100 << 10;
	pool->first_lease = lease_at;
	pool->slots = slots_at;
	pool->n_slots = 1;
	memcpy(pool->name, "pool", 5);
	header->magic = WH_CONTROL_MAGIC;
	header->version = WH_CONTROL_VERSION;
	header->size = MEMORY_BYTES;
	header->used = (uint64_t)l.next * WH_CONTROL_UNIT;
	header->first_pool = pool_at;
	header->first_loop = loop_at;
}

static void make_core(unsigned char core[CORE_BYTES])
{
	Elf64_Ehdr ehdr = {
		.e_ident = { ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT },
		.e_type = ET_CORE,
		.e_machine = EM_X86_64,
		.e_version = EV_CURRENT,
		.e_phoff = sizeof ehdr,
		.e_ehsize = sizeof ehdr,
		.e_phentsize = sizeof(Elf64_Phdr),
		.e_phnum = 1,
	};
	Elf64_Phdr phdr = {
		.p_type = PT_LOAD,
		.p_offset = 4096,
		.p_vaddr = 0x7f0000000000,
		.p_filesz = MEMORY_BYTES,
		.p_memsz = MEMORY_BYTES,
	};

	memset(core, 0, 4096);
	memcpy(core, &ehdr, sizeof ehdr);
	memcpy(core + sizeof ehdr, &phdr, sizeof phdr);
	make_memory(core + 4096);
}

static const char fdinfo[] =
	"pos:\t0\nflags:\t02000002\nSqMask:\t0x7f\nSqHead:\t11\nSqTail:\t12\nCachedSqHead:\t11\nCqMask:\t0x3ff\nCqHead:\t19\n"
	"CqTail:\t21\nCachedCqTail:\t21\nSQEs:\t0\nCQEs:\t2\n   19: user_data:1, res:0, flag:0\nUserFiles:\t0\nPollList:\n"
	"  op=6, task_works=0\n  op=10, task_works=0\n  op=9, task_works=0\nCqOverflowList:\n  user_data=1, res=0, flags=0\n";

/* Positions, sizes and signs that are likely to be believed. */
static void mutate(unsigned char *bytes, size_t size)
{
	for (uint32_t n = 1 + below(6); n--;) {
		size_t at = below((uint32_t)size);
		uint32_t word;

		switch (below(4)) {
		case 0:
			bytes[at] = (unsigned char)random_next();
			break;
		case 1:
			bytes[at] ^= (unsigned char)(1u << below(8));
			break;
		default:
			word = below(3) ? below(1200) : (uint32_t)random_next();
			if (at % 4 + 4 <= size - at)
				memcpy(bytes + at - at % 4, &word, sizeof word);
			break;
		}
	}
}

int main(int argc, char **argv)
{
	static _Alignas(8) unsigned char input[HEAD + CORE_BYTES];
	const char *wanted = getenv("WHARF_TEST_SEED");
	const uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : wanted ? strtoull(wanted, NULL, 0) : 1;
	const unsigned long rounds = argc > 2 ? strtoul(argv[2], NULL, 0) : 1500;
	unsigned long passed = 0;
	struct snapshot good;
	struct source source;
	char why[SNAPSHOT_WHY_BYTES];

	printf("seed %" PRIu64 "\n", seed);
	state = seed;
	make_memory(input + HEAD);
	source_of_memory(input + HEAD, MEMORY_BYTES, &source);
	/* What is mutated was good before: else the mutations are for nothing. */
	REQUIRE(!snapshot_take(&source, SNAPSHOT_ALL, &good, why) && !good.torn && !good.n_problems);
	REQUIRE(good.n_loops == 1 && good.n_ports == 2 && good.n_pools == 1 && good.pools[0].n_slots == 1);
	REQUIRE(good.n_pools == 1 && good.pools[0].n_leases == 1 && good.pools[0].leases[0].n_lent == 1);
	snapshot_fini(&good);
	for (unsigned long i = 0; i < rounds && !broken_rule; i++, passed++) {
		size_t size;

		input[0] = (unsigned char)below(KINDS);
		if (input[0] == KIND_MEMORY) {
			make_memory(input + HEAD);
			size = MEMORY_BYTES;
		} else if (input[0] == KIND_CORE) {
			make_core(input + HEAD);
			size = CORE_BYTES;
		} else {
			memcpy(input + HEAD, fdinfo, sizeof fdinfo);
			size = sizeof fdinfo - 1;
		}
		/* Near the beginning lies what leads to the rest. */
		if (i % 10)
			mutate(input + HEAD + (input[0] == KIND_CORE && below(2) ? 4096 : 0), size < 12000 ? size : 12000);
		if (i % 10 == 9)
			size = below((uint32_t)size);
		LLVMFuzzerTestOneInput(input, HEAD + size);
	}
	printf("%lu passed, %d failed, 0 skipped\n", passed, broken_rule ? 1 : 0);
	return broken_rule ? 1 : 0;
}

#endif
