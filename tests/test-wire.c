/* SPDX-License-Identifier: MIT */
/* What is encoded comes out as it went in, what does not fit leaves the frame alone, no mutant leads out of bounds. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>

#include "harness.h"
#include "wire.h"

enum { WHOLE = WH_RECORD_FIRST | WH_RECORD_LAST, PIECES_MAX = 16, PIECE_BYTES_MAX = 200 };

static struct harness_random numbers;
static struct wh_geometry slots[WH_WIRE_SLOTS_MAX];
static struct wh_decode_limits limits;
static struct wh_encoder encoder;

static void begin(uint32_t capacity)
{
	free(encoder.base);
	wh_encode_begin(&encoder, aligned_alloc(64, WH_FRAME_BYTES_MAX), capacity);
	memset(encoder.base, 0xa5, WH_FRAME_BYTES_MAX);
}

static void setup(void)
{
	numbers.state = harness_seed();
	for (uint32_t i = 0; i < WH_WIRE_SLOTS_MAX; i++)
		slots[i] = (struct wh_geometry){ .n_chunks = 64 + i % 50, .chunk_shift = (uint8_t)(8 + i % 17) };
	limits = (struct wh_decode_limits){
		.slots = slots,
		.frame_bytes_max = WH_FRAME_BYTES_MAX,
		.fds_max = WH_WIRE_FDS_MAX,
		.message_bytes_max = UINT64_MAX,
		.said_hello = true,
	};
	begin(WH_FRAME_BYTES_MAX);
}

static void teardown(void)
{
	free(encoder.base);
}

static uint32_t below(uint32_t n)
{
	return (uint32_t)harness_random_below(&numbers, n);
}

static bool one_in(uint32_t n)
{
	return below(n) == 0;
}

static void is_valid(void)
{
	const char *why = "";
	cr_assert_eq(wh_frame_check(encoder.base, encoder.size, encoder.n_fds, false, &limits, &why), 0, "%s", why);
}

TestSuite(wire, .init = setup, .fini = teardown);

/* ---- Random messages ---- */

struct sample {
	struct wh_message_out out;
	struct wh_piece pieces[PIECES_MAX];
	struct wh_run runs[PIECES_MAX];
	unsigned char bytes[PIECES_MAX][PIECE_BYTES_MAX];
};

static void make_piece(struct sample *s, uint32_t i, bool with_runs)
{
	if (!with_runs || one_in(2)) {
		for (uint32_t b = 0; b < PIECE_BYTES_MAX; b++)
			s->bytes[i][b] = (unsigned char)below(256);
		s->pieces[i] = (struct wh_piece){ .bytes = s->bytes[i], .size = below(PIECE_BYTES_MAX),
			.aligned = one_in(3) };
		return;
	}
	/* A slot for each piece, so that no chunk is in two runs. */
	const uint16_t slot = (uint16_t)(below(WH_WIRE_SLOTS_MAX / PIECES_MAX) * PIECES_MAX + i);
	const struct wh_geometry *g = &slots[slot];
	const uint8_t n = (uint8_t)(1 + below(4));
	const uint64_t room = (uint64_t)n << g->chunk_shift;
	const uint32_t offset = below((uint32_t)room);
	s->runs[i] = (struct wh_run){ .slot = slot, .n_chunks = n, .first = below(g->n_chunks / 4) * 4,
		.offset = offset, .size = 1 + below((uint32_t)room - offset) };
	s->pieces[i] = (struct wh_piece){ .run = &s->runs[i] };
}

static void make_message(struct sample *s, bool with_fds, bool with_runs)
{
	static const uint8_t flags[] = { WHOLE, WHOLE | WH_RECORD_END, WH_RECORD_FIRST, 0, WH_RECORD_LAST,
		WH_RECORD_LAST | WH_RECORD_END };
	s->out = (struct wh_message_out){
		.kind = (uint8_t)(WH_RECORD_MESSAGE + below(3)),
		.flags = flags[below(sizeof flags)],
		.n_pieces = (uint16_t)below(one_in(4) ? PIECES_MAX + 1 : 3),
		.type = (uint32_t)harness_random_next(&numbers),
		.pieces = s->pieces,
	};
	const bool end = s->out.flags & WH_RECORD_END, last = s->out.flags & WH_RECORD_LAST;
	if (s->out.kind == WH_RECORD_MESSAGE ? end || (!last && one_in(2)) : end && s->out.kind == WH_RECORD_REPLY)
		s->out.stream = 1 + below(UINT32_MAX);
	if ((s->out.flags & WHOLE) != WHOLE)
		s->out.position = UINT64_MAX / 2 + harness_random_next(&numbers) / 4;
	if (s->out.kind != WH_RECORD_MESSAGE)
		s->out.call = 1 + harness_random_next(&numbers) / 2;
	if (with_fds && s->out.flags & WH_RECORD_FIRST)
		s->out.n_fds = (uint16_t)(1 + below(WH_WIRE_FDS_MAX));
	if (s->out.n_fds && s->out.kind == WH_RECORD_CALL && one_in(2))
		s->out.flags |= WH_RECORD_DELEGATED;
	for (uint32_t i = 0; i < s->out.n_pieces; i++)
		make_piece(s, i, with_runs);
}

static void is_message(const struct wh_record *r, const struct sample *s)
{
	const struct wh_message_out *out = &s->out;
	const struct wh_message_in in = wh_message_read(r);
	cr_assert_eq(r->kind, out->kind);
	cr_assert_eq(r->flags, out->flags | (out->n_fds ? WH_RECORD_FDS : 0));
	cr_assert_eq(in.record->type, out->type);
	cr_assert_eq(in.record->stream, out->stream);
	cr_assert_eq(in.position, out->position);
	cr_assert_eq(in.call, out->call);
	cr_assert_eq(in.n_fds, out->n_fds);
	cr_assert_eq(r->n_items, out->n_pieces);
	cr_assert_eq((const char *)(in.runs + r->n_items) - (const char *)r, wh_message_head(out));
	for (uint32_t i = 0; i < r->n_items; i++) {
		const struct wh_run *item = &in.runs[i];
		const struct wh_piece *piece = &s->pieces[i];
		if (piece->run) {
			cr_assert_arr_eq(item, piece->run, sizeof *item);
			continue;
		}
		const char *bytes = (const char *)r + item->first;
		cr_assert_eq(item->n_chunks, 0);
		cr_assert_eq(item->size, piece->size);
		cr_assert_eq(item->flags, piece->aligned ? WH_RUN_ALIGNED : 0);
		cr_assert_eq((uintptr_t)bytes % (piece->aligned ? 64 : 8), 0);
		cr_assert(!memcmp(bytes, piece->bytes, piece->size));
	}
}

Test(wire, random_messages_come_back)
{
	enum { ROUNDS = 300, MESSAGES_MAX = 200 };
	struct sample *sent = calloc(MESSAGES_MAX, sizeof *sent);
	for (int round = 0; round < ROUNDS; round++) {
		begin((WH_FRAME_BYTES_MIN + below(WH_FRAME_BYTES_MAX - WH_FRAME_BYTES_MIN)) & ~7u);
		uint32_t n = 0;
		while (n < MESSAGES_MAX) {
			make_message(&sent[n], one_in(50), true);
			if (!wh_encode_message(&encoder, &sent[n].out))
				break;
			n++;
		}
		cr_assert_geq(n, 1);
		cr_assert_eq(wh_encode_end(&encoder, 1, 2), encoder.size);
		is_valid();
		const struct wh_record *r = wh_frame_first(encoder.base);
		for (uint32_t i = 0; i < n; i++, r = wh_record_next(r))
			is_message(r, &sent[i]);
		cr_assert_eq((const unsigned char *)r, encoder.base + encoder.size);
	}
	free(sent);
}

Test(wire, run_by_the_short_way_is_the_same)
{
	const struct wh_run run = { .slot = 3, .n_chunks = 2, .first = 4, .offset = 5, .size = 6 };
	const struct wh_piece piece = { .run = &run };
	cr_assert(wh_encode_run(&encoder, 77, &run));
	cr_assert(wh_encode_message(&encoder, &(struct wh_message_out){
		.kind = WH_RECORD_MESSAGE, .flags = WHOLE, .n_pieces = 1, .type = 77, .pieces = &piece }));
	const struct wh_record *first = wh_frame_first(encoder.base);
	cr_assert_eq(first->size, 32);
	cr_assert_eq(encoder.size, sizeof(struct wh_frame) + 64);
	cr_assert_arr_eq(first, wh_record_next(first), 32);
}

Test(wire, control_records_come_back)
{
	static const struct {
		enum wh_record_kind kind;
		uint32_t size;
		uint16_t n_fds;
	} kinds[] = {
		{ WH_RECORD_HELLO, sizeof(struct wh_hello), 0 },
		{ WH_RECORD_CANCEL, sizeof(struct wh_cancel), 0 },
		{ WH_RECORD_CREDIT, sizeof(struct wh_credit), 0 },
		{ WH_RECORD_ANNOUNCE, sizeof(struct wh_announce), 2 },
		{ WH_RECORD_ANNOUNCE_REQUEST, sizeof(struct wh_slot_record), 0 },
		{ WH_RECORD_RETIRE, sizeof(struct wh_slot_record), 0 },
		{ WH_RECORD_WAKE, sizeof(struct wh_record), 0 },
		{ WH_RECORD_PORT, sizeof(struct wh_port_record), 1 },
		{ WH_RECORD_ABORT, sizeof(struct wh_abort), 0 },
		{ WH_RECORD_BYE, sizeof(struct wh_bye), 0 },
	};
	for (size_t i = 0; i < wh_array_len(kinds); i++) {
		_Alignas(8) unsigned char record[256], kept[256];
		for (size_t b = 0; b < sizeof record; b++)
			kept[b] = record[b] = (unsigned char)below(256);
		begin(WH_FRAME_BYTES_MIN);
		cr_assert(wh_encode_control(&encoder, kinds[i].kind, record, kinds[i].n_fds));
		const struct wh_record *r = wh_frame_first(encoder.base);
		cr_assert_eq(r->kind, kinds[i].kind);
		cr_assert_eq(r->flags, 0);
		cr_assert_eq(r->n_items, 0);
		cr_assert_eq(r->size, kinds[i].size);
		cr_assert_eq(encoder.n_fds, kinds[i].n_fds);
		cr_assert_eq(encoder.n_records, 1);
		cr_assert_eq(encoder.size, sizeof(struct wh_frame) + r->size);
		cr_assert(!memcmp(r + 1, kept + sizeof *r, r->size - sizeof *r));
		for (size_t b = kinds[i].size; b < sizeof record; b++)
			cr_assert_eq(record[b], kept[b]);
	}
}

Test(wire, frame_header_tells_what_is_in_it)
{
	cr_assert(wh_encoder_empty(&encoder));
	cr_assert(wh_encode_control(&encoder, WH_RECORD_WAKE, &(struct wh_record){ 0 }, 0));
	cr_assert(!wh_encoder_empty(&encoder));
	cr_assert(wh_encode_control(&encoder, WH_RECORD_PORT, &(struct wh_port_record){ 0 }, 1));
	cr_assert_eq(encoder.flags, 0);
	encoder.flags = WH_FRAME_TELL;
	cr_assert_eq(wh_encode_end(&encoder, 111, 222), 32 + 8 + 16);
	const struct wh_frame *f = (const struct wh_frame *)(void *)encoder.base;
	cr_assert_eq(f->flags, WH_FRAME_TELL);
	cr_assert_eq(f->n_records, 2);
	cr_assert_eq(f->n_fds, 1);
	cr_assert_eq(f->size, 32 + 8 + 16);
	cr_assert_eq(f->turn_ns, 111);
	cr_assert_eq(f->consumed, 222);
	is_valid();
}

/* ---- What does not fit ---- */

/* Encoding fails, and neither the encoder nor a byte of its memory has changed. */
#define REFUSED(call) do { \
	const struct wh_encoder kept_ = encoder; \
	unsigned char *bytes_ = malloc(WH_FRAME_BYTES_MAX); \
	memcpy(bytes_, encoder.base, WH_FRAME_BYTES_MAX); \
	cr_assert(!(call)); \
	cr_assert(!memcmp(&encoder, &kept_, sizeof kept_)); \
	cr_assert(!memcmp(encoder.base, bytes_, WH_FRAME_BYTES_MAX)); \
	free(bytes_); \
} while (0)

static const struct wh_run a_run = { .slot = 1, .n_chunks = 1, .size = 1 };

Test(wire, full_frame_takes_nothing_and_stays_as_it_was)
{
	static const char bytes[256];
	const struct wh_piece big = { .bytes = bytes, .size = sizeof bytes };
	const struct wh_piece aligned = { .bytes = "x", .size = 1, .aligned = true };
	struct wh_message_out out = { .kind = WH_RECORD_MESSAGE, .flags = WHOLE, .n_pieces = 1, .pieces = &big };
	struct wh_bye bye = { .code = WH_BYE_CLOSE };
	begin(sizeof(struct wh_frame) + 32 + 32 + 80);
	cr_assert(wh_encode_run(&encoder, 1, &a_run));
	REFUSED(wh_encode_message(&encoder, &out));
	REFUSED(wh_encode_control(&encoder, WH_RECORD_BYE, &bye, 0));
	out.pieces = &aligned;
	REFUSED((encoder.capacity = 135, wh_encode_message(&encoder, &out)) || (encoder.capacity = 176, false));
	cr_assert(wh_encode_message(&encoder, &out)); /* from 64 to 136, with its byte at 128 */
	cr_assert_eq(encoder.size, 136);
	cr_assert(wh_encode_run(&encoder, 1, &a_run));
	REFUSED(wh_encode_run(&encoder, 1, &a_run));
	out.n_pieces = 0;
	REFUSED(wh_encode_message(&encoder, &out));
	cr_assert(wh_encode_control(&encoder, WH_RECORD_WAKE, &(struct wh_record){ 0 }, 0));
	REFUSED(wh_encode_control(&encoder, WH_RECORD_WAKE, &(struct wh_record){ 0 }, 0));
	cr_assert_eq(encoder.size, encoder.capacity);
	wh_encode_end(&encoder, 0, 0);
	is_valid();
}

Test(wire, random_refusals_leave_the_frame_valid)
{
	struct sample *s = malloc(sizeof *s);
	for (int round = 0; round < 100; round++) {
		begin(512 + below(2048));
		for (int i = 0; i < 40; i++) {
			make_message(s, false, true);
			const struct wh_encoder kept = encoder;
			if (wh_encode_message(&encoder, &s->out))
				continue;
			cr_assert(!memcmp(&encoder, &kept, sizeof kept));
			for (uint32_t b = encoder.size; b < WH_FRAME_BYTES_MAX; b++)
				cr_assert_eq(encoder.base[b], 0xa5, "byte %u", b);
		}
		wh_encode_end(&encoder, 0, 0);
		is_valid();
	}
	free(s);
}

Test(wire, frame_ended_by_descriptors_takes_no_more)
{
	const struct wh_message_out with_fds = { .kind = WH_RECORD_MESSAGE, .flags = WHOLE, .n_fds = 1 },
		plain = { .kind = WH_RECORD_MESSAGE, .flags = WHOLE };
	struct wh_announce announce = { .slot = 9, .chunk_shift = 12, .n_chunks = 1 };
	struct wh_port_record port = { .type = 1 };

	slots[9].n_chunks = 0;
	for (int how = 0; how < 3; how++) {
		begin(WH_FRAME_BYTES_MIN);
		cr_assert(wh_encode_run(&encoder, 1, &a_run));
		cr_assert(!wh_encoder_ended(&encoder));
		cr_assert(how == 0 ? wh_encode_message(&encoder, &with_fds) :
			how == 1 ? wh_encode_control(&encoder, WH_RECORD_ANNOUNCE, &announce, 2) :
			wh_encode_control(&encoder, WH_RECORD_PORT, &port, 1));
		cr_assert(wh_encoder_ended(&encoder));
		REFUSED(wh_encode_run(&encoder, 1, &a_run));
		REFUSED(wh_encode_message(&encoder, &plain));
		REFUSED(wh_encode_message(&encoder, &with_fds));
		REFUSED(wh_encode_control(&encoder, WH_RECORD_WAKE, &(struct wh_record){ 0 }, 0));
		REFUSED(wh_encode_control(&encoder, WH_RECORD_PORT, &port, 1));
		wh_encode_end(&encoder, 0, 0);
		is_valid();
	}
}

/* ---- Sizes and alignment ---- */

/* Moves the end of an empty frame on by n times 8. */
static void advance(uint32_t n)
{
	begin(WH_FRAME_BYTES_MAX);
	while (n--)
		cr_assert(wh_encode_control(&encoder, WH_RECORD_WAKE, &(struct wh_record){ 0 }, 0));
}

Test(wire, aligned_bytes_lie_at_multiples_of_64)
{
	const struct wh_piece pieces[] = { { .bytes = "abc", .size = 3, .aligned = true }, { .run = &a_run },
		{ .bytes = "defg", .size = 4 }, { .bytes = NULL, .size = 0, .aligned = true },
		{ .bytes = "hij", .size = 3, .aligned = true } };
	for (uint32_t n = 0; n < 8; n++) {
		advance(n);
		const uint32_t at = encoder.size;
		cr_assert(wh_encode_message(&encoder, &(struct wh_message_out){
			.kind = WH_RECORD_MESSAGE, .flags = WHOLE, .n_pieces = 5, .pieces = pieces }));
		wh_encode_end(&encoder, 0, 0);
		is_valid();
		const struct wh_record *r = (const struct wh_record *)(void *)(encoder.base + at);
		const struct wh_run *items = wh_message_read(r).runs;
		cr_assert_eq((at + items[0].first) % 64, 0);
		cr_assert_eq(items[2].first, items[0].first + 8);
		cr_assert_eq(items[3].first, items[0].first + 64);
		cr_assert_eq(items[4].first, items[0].first + 64);
		cr_assert(!memcmp(encoder.base + at + items[0].first, "abc", 3));
		cr_assert(!memcmp(encoder.base + at + items[4].first, "hij", 3));
	}
}

/* wh_message_size is what encode uses in the worst place, and in every place if nothing is aligned. */
Test(wire, size_is_the_worst_of_all_places)
{
	struct sample *s = malloc(sizeof *s);
	for (int round = 0; round < 2000; round++) {
		make_message(s, one_in(4), true);
		const uint64_t size = wh_message_size(&s->out);
		bool aligned = false;
		for (uint32_t i = 0; i < s->out.n_pieces; i++)
			aligned |= !s->pieces[i].run && s->pieces[i].aligned;
		uint64_t most = 0;
		for (uint32_t n = 0; n < 8; n++) {
			advance(n);
			const uint32_t before = encoder.size;
			cr_assert(wh_encode_message(&encoder, &s->out));
			const uint64_t used = encoder.size - before;
			cr_assert_leq(used, size);
			cr_assert(aligned ? used + 56 >= size : used == size);
			most = used > most ? used : most;
		}
		cr_assert_eq(most, size);
	}
	free(s);
}

Test(wire, message_no_larger_than_its_size_fits_an_empty_frame)
{
	struct sample *s = malloc(sizeof *s);
	for (int round = 0; round < 2000; round++) {
		make_message(s, one_in(4), true);
		begin((uint32_t)(sizeof(struct wh_frame) + wh_message_size(&s->out)));
		cr_assert(wh_encode_message(&encoder, &s->out));
	}
	free(s);
}

Test(wire, size_does_not_wrap)
{
	struct wh_piece pieces[64];
	for (int i = 0; i < 64; i++)
		pieces[i] = (struct wh_piece){ .bytes = "", .size = UINT32_MAX, .aligned = i % 2 };
	const struct wh_message_out out = { .kind = WH_RECORD_MESSAGE, .flags = WHOLE, .n_pieces = 64,
		.pieces = pieces };
	cr_assert_gt(wh_message_size(&out), 64 * (uint64_t)UINT32_MAX);
	REFUSED(wh_encode_message(&encoder, &out));
}

/* ---- Text ---- */

Test(wire, text_is_printable_and_ends)
{
	char text[8];
	wh_wire_text(text, sizeof text, "name");
	cr_assert_arr_eq(text, "name\0\0\0", 8);
	wh_wire_text(text, sizeof text, "");
	cr_assert_arr_eq(text, "\0\0\0\0\0\0\0", 8);
	wh_wire_text(text, sizeof text, "sevenup");
	cr_assert_arr_eq(text, "sevenup", 8);
	wh_wire_text(text, sizeof text, "much too long for it");
	cr_assert_arr_eq(text, "much to", 8);
	wh_wire_text(text, sizeof text, "a\n\x7f\x1f ~");
	cr_assert_arr_eq(text, "a??? ~\0", 8);
	wh_wire_text(text, sizeof text, "\xc3\xa4\xff");
	cr_assert_arr_eq(text, "???\0\0\0\0", 8);
}

Test(wire, text_of_any_bytes_makes_a_valid_bye)
{
	for (int round = 0; round < 500; round++) {
		char from[2 * WH_WIRE_TEXT_BYTES];
		const uint32_t n = below(sizeof from);
		for (uint32_t i = 0; i < n; i++)
			from[i] = (char)(1 + below(255));
		from[n] = 0;
		struct wh_bye bye = { .code = WH_BYE_REFUSED };
		memset(bye.text, 0xa5, sizeof bye.text);
		wh_wire_text(bye.text, sizeof bye.text, from);
		begin(WH_FRAME_BYTES_MIN);
		cr_assert(wh_encode_control(&encoder, WH_RECORD_BYE, &bye, 0));
		wh_encode_end(&encoder, 0, 0);
		is_valid();
	}
}

/* ---- Hostile frames; fuzz-wire does the same for longer ---- */

/* Reads everything that a receiver would read. */
static uint64_t read_all(const unsigned char *frame, uint32_t size)
{
	uint64_t sum = 0;
	const struct wh_record *r = wh_frame_first(frame);
	while ((const unsigned char *)r < frame + size) {
		if (r->kind >= WH_RECORD_MESSAGE && r->kind <= WH_RECORD_REPLY) {
			const struct wh_message_in in = wh_message_read(r);
			for (const struct wh_run *item = in.runs; item < in.runs + r->n_items; item++) {
				if (item->n_chunks)
					cr_assert_leq(item->first + item->n_chunks, slots[item->slot].n_chunks);
				else
					for (uint32_t b = 0; b < item->size; b++)
						sum += ((const unsigned char *)r)[item->first + b];
			}
		}
		r = wh_record_next(r);
	}
	cr_assert_eq((const unsigned char *)r, frame + size);
	return sum;
}

Test(wire, mutated_frames_pass_only_if_they_can_be_read)
{
	uint32_t passed = 0, refused = 0;
	uint64_t sum = 0;
	struct sample *s = malloc(sizeof *s);
	for (int round = 0; round < 20000; round++) {
		begin(WH_FRAME_BYTES_MIN);
		for (uint32_t n = below(5); n--;) {
			make_message(s, one_in(8), true);
			wh_encode_message(&encoder, &s->out);
		}
		const uint32_t size = wh_encode_end(&encoder, 0, 0);
		unsigned char *copy = malloc(size); /* of the exact size: reading on is seen by a sanitizer */
		memcpy(copy, encoder.base, size);
		for (uint32_t n = 1 + below(3); n--;)
			copy[below(size)] = (unsigned char)(one_in(2) ? below(256) : (uint32_t)copy[below(size)]);
		const char *why = NULL;
		const int r = wh_frame_check(copy, size, encoder.n_fds, one_in(4), &limits, &why);
		if (r) {
			cr_assert(r == -EPROTO || r == -EPROTONOSUPPORT);
			cr_assert_not_null(why);
			refused++;
		} else {
			cr_assert_null(why);
			sum += read_all(copy, size);
			passed++;
		}
		free(copy);
	}
	free(s);
	cr_assert_gt(refused, 1000);
	cr_assert_gt(passed, 1000, "the sum of all bytes is %lu", (unsigned long)sum);
}
