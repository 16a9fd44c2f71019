/* SPDX-License-Identifier: MIT */
/*
 * Hostile frames: whatever wh_frame_check lets pass must obey what a receiver relies on, verified here in other words
 * than wire.c uses. With libFuzzer, or (WH_FUZZ_STANDALONE) with frames of its own: valid ones, the same mutated, and
 * random ones.
 * usage, standalone: fuzz-wire [seed [rounds]]
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { FDS_MAX = 10, MESSAGE_BYTES_MAX = 1 << 20 };

/* How a frame arrives: the first bytes of an input. */
struct arrival {
	uint8_t said_hello, fds_lost, n_fds;
	uint8_t repair; /* 1: give it the right magic, version, size and n_fds first, which are hard to guess */
};

static struct wh_geometry slots[WH_WIRE_SLOTS_MAX];
static const char *broken_rule;

#define REQUIRE(x) ((x) ? (void)0 : broken(#x, __LINE__))

static void broken(const char *rule, int line)
{
	if (!broken_rule)
		fprintf(stderr, "fuzz-wire.c:%d: broken: %s\n", line, rule);
	broken_rule = rule;
#ifndef WH_FUZZ_STANDALONE
	abort(); /* libFuzzer keeps the input */
#endif
}

static void make_slots(void)
{
	for (uint32_t i = 0; i < WH_WIRE_SLOTS_MAX; i += 3)
		slots[i] = (struct wh_geometry){
			.n_chunks = 1 + i * 7 % 200,
			.chunk_shift = (uint8_t)(8 + i % 17),
			.asked = i % 9 == 0,
		};
}

/* ---- What a receiver relies on ---- */

static volatile unsigned char sink;

static void touch(const void *bytes, size_t size)
{
	for (const unsigned char *b = bytes; size--; b++)
		sink = (unsigned char)(sink ^ *b);
}

static void verify_run(const struct wh_run *run)
{
	REQUIRE(run->slot < WH_WIRE_SLOTS_MAX && run->n_chunks <= 64 && !run->flags && run->size);
	const struct wh_geometry *g = &slots[run->slot];
	const uint64_t begin = ((uint64_t)run->first << g->chunk_shift) + run->offset;
	REQUIRE(begin + run->size <= (uint64_t)(run->first + run->n_chunks) << g->chunk_shift);
	REQUIRE(begin + run->size <= (uint64_t)g->n_chunks << g->chunk_shift);
	REQUIRE(run->first / 64 == (run->first + run->n_chunks - 1) / 64);
}

static void verify_message(const struct wh_record *r, const struct wh_frame *f)
{
	const unsigned char *begin = (const unsigned char *)r;
	const struct wh_message_in in = wh_message_read(r);
	REQUIRE(r->n_items <= WH_WIRE_ITEMS_MAX);
	REQUIRE((const unsigned char *)(in.runs + r->n_items) <= begin + r->size);
	REQUIRE(r->kind == WH_RECORD_MESSAGE || in.call);
	const bool end = r->flags & WH_RECORD_END, delegated = r->flags & WH_RECORD_DELEGATED;
	REQUIRE(!end || r->flags & WH_RECORD_LAST);
	REQUIRE(r->kind != WH_RECORD_MESSAGE || end == (in.record->stream && r->flags & WH_RECORD_LAST));
	REQUIRE(r->kind == WH_RECORD_MESSAGE || !in.record->stream || (r->kind == WH_RECORD_REPLY && end));
	REQUIRE(!delegated || (r->kind == WH_RECORD_CALL && r->flags & WH_RECORD_FIRST && in.n_fds));
	REQUIRE(in.n_fds <= FDS_MAX + (delegated ? 1u : 0u) && in.n_fds == (r->flags & WH_RECORD_FDS ? f->n_fds : 0));
	uint64_t bytes = 0;
	uint64_t inline_end = (uint64_t)((const unsigned char *)(in.runs + r->n_items) - begin);
	for (uint32_t i = 0; i < r->n_items; i++) {
		const struct wh_run *item = &in.runs[i];
		bytes += item->size;
		if (!item->n_chunks) {
			const unsigned char *at = begin + item->first;
			REQUIRE(item->first >= inline_end && (uint64_t)item->first + item->size <= r->size);
			REQUIRE((at - (const unsigned char *)f) % (item->flags & WH_RUN_ALIGNED ? 64 : 8) == 0);
			touch(at, item->size);
			inline_end = (uint64_t)item->first + item->size;
			continue;
		}
		verify_run(item);
		for (uint32_t j = 0; j < i; j++)
			for (uint32_t c = 0; c < in.runs[j].n_chunks && in.runs[j].slot == item->slot; c++)
				REQUIRE(in.runs[j].first + c - item->first >= item->n_chunks); /* outside: unsigned */
	}
	if (r->flags & WH_RECORD_FIRST && r->flags & WH_RECORD_LAST)
		REQUIRE(bytes <= MESSAGE_BYTES_MAX);
	else
		REQUIRE(r->flags & WH_RECORD_FIRST ? in.position >= bytes : in.position + bytes >= bytes);
}

static void verify_text(const char *text, size_t size)
{
	REQUIRE(memchr(text, 0, size));
	for (; *text; text++)
		REQUIRE(*text >= ' ' && *text <= '~');
}

static uint32_t verify_record(const struct wh_record *r, const struct wh_frame *f)
{
	switch (r->kind) {
	case WH_RECORD_MESSAGE:
	case WH_RECORD_CALL:
	case WH_RECORD_REPLY:
		verify_message(r, f);
		return wh_message_read(r).n_fds;
	case WH_RECORD_HELLO:
		REQUIRE(r->size == sizeof(struct wh_hello) && f->n_records == 1);
		verify_text(((const struct wh_hello *)r)->name, WH_WIRE_NAME_BYTES);
		return 0;
	case WH_RECORD_BYE:
		REQUIRE(r->size == sizeof(struct wh_bye));
		verify_text(((const struct wh_bye *)r)->text, WH_WIRE_TEXT_BYTES);
		return 0;
	case WH_RECORD_ANNOUNCE: {
		const struct wh_announce *a = (const struct wh_announce *)r;
		REQUIRE(a->slot < WH_WIRE_SLOTS_MAX && (!slots[a->slot].n_chunks || slots[a->slot].asked));
		REQUIRE(a->chunk_shift >= 8 && a->chunk_shift <= 24 && a->n_chunks);
		REQUIRE((uint64_t)a->n_chunks << a->chunk_shift <= 1u << 30);
		return 2;
	}
	case WH_RECORD_ANNOUNCE_REQUEST:
	case WH_RECORD_RETIRE: {
		const struct wh_slot_record *s = (const struct wh_slot_record *)r;
		REQUIRE(s->slot < WH_WIRE_SLOTS_MAX && s->acknowledged <= 1);
		REQUIRE(r->kind != WH_RECORD_RETIRE || s->acknowledged || slots[s->slot].n_chunks);
		return 0;
	}
	case WH_RECORD_CANCEL: {
		const struct wh_cancel *c = (const struct wh_cancel *)r;
		REQUIRE(r->size == sizeof *c && c->call && c->code - 1 < 5);
		return 0;
	}
	case WH_RECORD_CREDIT: {
		const struct wh_credit *c = (const struct wh_credit *)r;
		REQUIRE(r->size == sizeof *c && c->id && c->bytes && c->kind - 2 < 3);
		REQUIRE(c->kind != 2 || (uint32_t)c->id == c->id);
		return 0;
	}
	case WH_RECORD_ABORT: {
		const struct wh_abort *a = (const struct wh_abort *)r;
		REQUIRE(r->size == sizeof *a && a->stream && a->code - 1 < 5 && !a->zero);
		return 0;
	}
	case WH_RECORD_PORT:
		return 1;
	default:
		REQUIRE(r->kind && r->kind < WH_RECORD_KINDS);
		return 0;
	}
}

/* No slot that the frame retires is read by one of its messages. */
static void verify_retired(const struct wh_frame *f)
{
	const unsigned char *end = (const unsigned char *)f + f->size;
	unsigned char retired[WH_WIRE_SLOTS_MAX] = { 0 };
	for (const struct wh_record *r = wh_frame_first(f); (const unsigned char *)r < end; r = wh_record_next(r))
		if (r->kind == WH_RECORD_RETIRE && !((const struct wh_slot_record *)r)->acknowledged)
			REQUIRE(!retired[((const struct wh_slot_record *)r)->slot]++);
	for (const struct wh_record *r = wh_frame_first(f); (const unsigned char *)r < end; r = wh_record_next(r))
		if (r->kind >= WH_RECORD_MESSAGE && r->kind <= WH_RECORD_REPLY)
			for (uint32_t i = 0; i < r->n_items; i++)
				REQUIRE(!wh_message_read(r).runs[i].n_chunks ||
					!retired[wh_message_read(r).runs[i].slot]);
}

static void verify_frame(const struct wh_frame *f, size_t size, const struct arrival *how)
{
	const unsigned char *end = (const unsigned char *)f + size;
	const struct wh_record *r = wh_frame_first(f);
	uint32_t n_records = 0, n_fds = 0;
	for (; (const unsigned char *)r < end; n_records++, r = wh_record_next(r)) {
		REQUIRE(!n_fds);
		REQUIRE(r->size >= sizeof *r && r->size % 8 == 0);
		REQUIRE(r->size <= (size_t)(end - (const unsigned char *)r));
		REQUIRE(how->said_hello ? r->kind != WH_RECORD_HELLO :
			r->kind == WH_RECORD_HELLO || r->kind == WH_RECORD_BYE);
		n_fds = verify_record(r, f);
		if (broken_rule)
			return;
	}
	REQUIRE((const unsigned char *)r == end && n_records == f->n_records);
	REQUIRE(f->flags <= 1);
	REQUIRE(n_fds == f->n_fds && (how->fds_lost ? how->n_fds <= n_fds : how->n_fds == n_fds));
	verify_retired(f);
}

/* Is the frame accepted? Checks a copy that ends where the frame does, so that a sanitizer sees who reads on. */
static bool attack(const struct arrival *how, const void *frame, size_t size)
{
	const struct wh_decode_limits limits = {
		.slots = slots,
		.frame_bytes_max = WH_FRAME_BYTES_MAX,
		.fds_max = FDS_MAX,
		.message_bytes_max = MESSAGE_BYTES_MAX,
		.said_hello = how->said_hello,
	};
	const char *why = NULL;
	struct wh_frame *f = malloc(size ? size : 1);
	if (!f)
		abort();
	if (size)
		memcpy(f, frame, size);
	if (how->repair && size >= sizeof *f) {
		f->magic = WH_WIRE_MAGIC;
		f->version = WH_WIRE_VERSION;
		f->size = (uint32_t)size;
		f->n_fds = how->n_fds;
	}
	const int r = wh_frame_check(f, size, how->n_fds, how->fds_lost, &limits, &why);
	if (!r) {
		REQUIRE(!why);
		verify_frame(f, size, how);
	} else {
		REQUIRE(why && strlen(why) < WH_WIRE_TEXT_BYTES); /* it travels in a bye */
		REQUIRE(r == -EPROTO || (r == -EPROTONOSUPPORT && f->version != WH_WIRE_VERSION));
	}
	free(f);
	return !r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct arrival how;
	if (size < sizeof how)
		return 0;
	make_slots();
	memcpy(&how, data, sizeof how);
	how.said_hello &= 1;
	how.fds_lost &= 1;
	how.repair &= 1;
	attack(&how, data + sizeof how, size - sizeof how);
	return 0;
}

#ifdef WH_FUZZ_STANDALONE

/* ---- Frames of our own ---- */

static uint64_t state;

static uint64_t random_next(void) /* splitmix64 */
{
	uint64_t z = state += 0x9e3779b97f4a7c15;
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static uint32_t below(uint32_t n)
{
	return (uint32_t)(random_next() % n);
}

/* A run of an announced slot, different for each i below 8, and of none that the sender may retire. */
static struct wh_run random_run(uint32_t i)
{
	const uint16_t slot = (uint16_t)(3 * (8 * below(9) + i));
	const struct wh_geometry *g = &slots[slot];
	uint32_t n = 1 + below(g->n_chunks < 64 ? g->n_chunks : 64), start = 1;
	while (start < n)
		start *= 2;
	const uint64_t room = (uint64_t)n << g->chunk_shift;
	const uint32_t offset = below((uint32_t)room), left = (uint32_t)(room - offset);
	return (struct wh_run){
		.slot = slot,
		.n_chunks = (uint8_t)n,
		.first = below((g->n_chunks - n) / start + 1) * start,
		.offset = offset,
		.size = 1 + below(left < MESSAGE_BYTES_MAX / 16 ? left : MESSAGE_BYTES_MAX / 16),
	};
}

static void put_message(struct wh_encoder *e, bool with_fds)
{
	static const unsigned char bytes[512] = { 1, 2, 3 };
	static const uint8_t flags[] = { WH_RECORD_FIRST | WH_RECORD_LAST,
		WH_RECORD_FIRST | WH_RECORD_LAST | WH_RECORD_END, WH_RECORD_FIRST, 0, WH_RECORD_LAST,
		WH_RECORD_LAST | WH_RECORD_END };
	struct wh_run runs[8];
	struct wh_piece pieces[8];
	struct wh_message_out out = {
		.kind = (uint8_t)(WH_RECORD_MESSAGE + (below(2) ? 0 : below(3))),
		.flags = flags[below(2) ? 0 : below(sizeof flags)],
		.n_pieces = (uint16_t)(below(2) ? 1 : below(9)),
		.type = (uint32_t)random_next(),
		.position = MESSAGE_BYTES_MAX + (random_next() >> 1),
		.call = 1 + below(1000),
		.pieces = pieces,
	};
	if (out.kind == WH_RECORD_MESSAGE && !(out.flags & WH_RECORD_LAST))
		out.stream = below(5);
	else if (out.kind != WH_RECORD_CALL && out.flags & WH_RECORD_END)
		out.stream = 1 + below(5);
	if (with_fds && out.flags & WH_RECORD_FIRST) {
		if (out.kind == WH_RECORD_CALL && below(2))
			out.flags |= WH_RECORD_DELEGATED;
		out.n_fds = (uint16_t)(1 + below(FDS_MAX + (out.flags & WH_RECORD_DELEGATED ? 1u : 0u)));
	}
	for (uint32_t i = 0; i < out.n_pieces; i++) {
		runs[i] = random_run(i);
		pieces[i] = below(2) ? (struct wh_piece){ .run = &runs[i] } :
			(struct wh_piece){ .bytes = bytes, .size = below(sizeof bytes), .aligned = below(3) == 0 };
	}
	wh_encode_message(e, &out);
}

static void put_control(struct wh_encoder *e, uint32_t which, uint32_t i)
{
	/* Slots that no run of ours uses: 219 and above; those that are multiples of 3 are announced. */
	const uint16_t slot = (uint16_t)(219 + 3 * (i % 12));
	struct wh_bye bye = { .code = WH_BYE_CLOSE + below(4), .text = "bye" };
	switch (which) {
	case 0:
		wh_encode_control(e, WH_RECORD_CANCEL, &(struct wh_cancel){ .call = 1, .code = 1 + below(4) }, 0);
		break;
	case 1:
		wh_encode_control(e, WH_RECORD_CREDIT,
			&(struct wh_credit){ .id = 1, .bytes = 1 + below(100), .kind = 2 + below(3) }, 0);
		break;
	case 2:
		wh_encode_control(e, WH_RECORD_RETIRE,
			&(struct wh_slot_record){ .slot = slot, .acknowledged = i >= 12 }, 0);
		break;
	case 3:
		wh_encode_control(e, WH_RECORD_ANNOUNCE_REQUEST, &(struct wh_slot_record){ .slot = slot }, 0);
		break;
	case 4:
		wh_encode_control(e, WH_RECORD_WAKE, &(struct wh_record){ 0 }, 0);
		break;
	case 5:
		wh_encode_control(e, WH_RECORD_ABORT,
			&(struct wh_abort){ .stream = 1, .app_code = 2, .code = 1 + below(4) }, 0);
		break;
	case 6:
		wh_encode_control(e, WH_RECORD_BYE, &bye, 0);
		break;
	case 7:
		wh_encode_control(e, WH_RECORD_PORT, &(struct wh_port_record){ .type = 1 }, 1);
		break;
	default:
		wh_encode_control(e, WH_RECORD_ANNOUNCE, &(struct wh_announce){
			.slot = (uint16_t)(slot + 1), .chunk_shift = 12, .n_chunks = 1 + below(1000) }, 2);
	}
}

/* A frame that must pass; how it arrives goes to *ret_how. */
static uint32_t make_frame(void *memory, uint32_t capacity, struct arrival *ret_how)
{
	struct wh_encoder e;
	wh_encode_begin(&e, memory, capacity);
	e.flags = below(4) ? 0 : WH_FRAME_TELL;
	const bool said_hello = below(16) != 0;
	if (!said_hello && below(2)) {
		put_control(&e, 6, 0);
	} else if (!said_hello) {
		struct wh_hello hello = { .version_min = 1, .version_max = 2, .frame_bytes_max = 32768,
			.name = "fuzz" };
		wh_encode_control(&e, WH_RECORD_HELLO, &hello, 0);
	} else {
		const uint32_t n = below(8) ? below(8) : below(200);
		for (uint32_t i = 0; i < n; i++)
			if (below(4))
				put_message(&e, below(32) == 0);
			else
				put_control(&e, below(7), i);
		if (below(8) == 0)
			put_control(&e, 7 + below(2), below(12));
	}
	*ret_how = (struct arrival){ .said_hello = said_hello, .n_fds = (uint8_t)e.n_fds };
	if (below(16) == 0) {
		ret_how->fds_lost = 1;
		ret_how->n_fds = (uint8_t)below(ret_how->n_fds + 1u);
	}
	return wh_encode_end(&e, random_next(), below(1000));
}

static void mutate(unsigned char *bytes, uint32_t *size, uint32_t size_max)
{
	static const uint64_t tempting[] = { 0, 1, 7, 8, 63, 64, 65, 255, 256, 0x7fffffff, 0x80000000, 0xfffffff8,
		0xffffffff, UINT64_MAX };
	const uint32_t at = below(*size), wide = 1u << below(4);
	switch (below(7)) {
	case 0:
		bytes[at] = (unsigned char)(bytes[at] ^ 1u << below(8));
		break;
	case 1:
		bytes[at] = (unsigned char)below(256);
		break;
	case 2: /* a whole field, low end first: fields of little-endian machines mostly */
		memcpy(bytes + at / wide * wide, &tempting[below(wh_array_len(tempting))], wide);
		break;
	case 3: { /* what stands elsewhere */
		const uint32_t from = below(*size) / 8 * 8;
		if (from + 8 <= *size && at / 8 * 8 + 8 <= *size)
			memmove(bytes + at / 8 * 8, bytes + from, 8);
		break;
	}
	case 4:
		*size = below(2) ? at : at / 8 * 8;
		break;
	case 5:
		*size = *size + 8 <= size_max ? *size + 8 : *size;
		break;
	default: /* a length or a count by a little */
		bytes[at / 8 * 8] = (unsigned char)(bytes[at / 8 * 8] + below(17) - 8);
	}
	if (!*size)
		*size = 1;
}

int main(int argc, char **argv)
{
	const char *seed = argc > 1 ? argv[1] : getenv("WHARF_TEST_SEED");
	const uint64_t rounds = argc > 2 ? strtoull(argv[2], NULL, 0) : 20000;
	enum { MUTANTS = 20 };
	uint64_t n_passed = 0, n_failed = 0, n_accepted = 0, n_mutants = 0;
	unsigned char *frame = aligned_alloc(64, WH_FRAME_BYTES_MAX), *mutant = aligned_alloc(64, WH_FRAME_BYTES_MAX);

	if (!frame || !mutant)
		abort();
	memset(frame, 0, WH_FRAME_BYTES_MAX); /* mutants may be longer than what is encoded */
	state = seed ? strtoull(seed, NULL, 0) : 0x7769726531;
	printf("seed: 0x%" PRIx64 "\n", state);
	make_slots();
	for (uint64_t round = 0; round < rounds; round++) {
		struct arrival how;
		const uint32_t size = make_frame(frame, below(4) ? WH_FRAME_BYTES_MIN : WH_FRAME_BYTES_MAX, &how);
		broken_rule = NULL;
		REQUIRE(attack(&how, frame, size)); /* a valid frame is accepted */
		n_passed += !broken_rule;
		n_failed += !!broken_rule;
		for (int i = 0; i < MUTANTS; i++) {
			uint32_t mutant_size = size;
			memcpy(mutant, frame, WH_FRAME_BYTES_MAX);
			how.repair = below(2) != 0;
			if (below(20))
				for (uint32_t n = 1 + below(3); n--;)
					mutate(mutant, &mutant_size, WH_FRAME_BYTES_MAX);
			else
				for (uint32_t b = sizeof(struct wh_frame); b + 8 <= size; b += 8)
					memcpy(mutant + b, &(uint64_t){ random_next() }, 8);
			broken_rule = NULL;
			n_accepted += attack(&how, mutant, mutant_size);
			n_mutants++;
			n_passed += !broken_rule;
			n_failed += !!broken_rule;
		}
	}
	free(frame);
	free(mutant);
	printf("%" PRIu64 " of %" PRIu64 " mutants were accepted\n", n_accepted, n_mutants);
	printf("%" PRIu64 " frames held, %" PRIu64 " did not\n", n_passed, n_failed);
	/* One case: how many frames it takes is a matter of patience. */
	printf("%d passed, %d failed, 0 skipped\n", !n_failed, !!n_failed);
	return n_failed ? 1 : 0;
}

#endif
