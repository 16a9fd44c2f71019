/* SPDX-License-Identifier: MIT */
/* Every rule of the specification in wire.c: a frame that is valid, broken in one thing, is refused for just that. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>

#include "wire.h"

enum { WHOLE = WH_RECORD_FIRST | WH_RECORD_LAST, FIXED = sizeof(struct wh_message_record) };

/* The frame under test is built by hand, byte for byte, with no help of the encoder. */
static struct wh_frame *frame;
static struct wh_geometry slots[WH_WIRE_SLOTS_MAX];
static struct wh_decode_limits limits;
static uint32_t came_fds;
static bool lost_fds;

static void setup(void)
{
	frame = aligned_alloc(64, WH_FRAME_BYTES_MAX);
	memset(frame, 0, WH_FRAME_BYTES_MAX);
	*frame = (struct wh_frame){ .magic = WH_WIRE_MAGIC, .version = WH_WIRE_VERSION, .size = sizeof *frame };
	slots[5] = (struct wh_geometry){ .n_chunks = 100, .chunk_shift = 12 };
	slots[255] = (struct wh_geometry){ .n_chunks = 64, .chunk_shift = 24 };
	limits = (struct wh_decode_limits){
		.slots = slots,
		.frame_bytes_max = 8192,
		.fds_max = 3,
		.message_bytes_max = 100000,
		.said_hello = true,
	};
}

static void teardown(void)
{
	free(frame);
}

/* A record behind those that are there, zero but for its head. */
static void *add(enum wh_record_kind kind, uint8_t flags, uint16_t n_items, size_t size)
{
	struct wh_record *r = (struct wh_record *)((char *)frame + frame->size);
	*r = (struct wh_record){ .kind = (uint8_t)kind, .flags = flags, .n_items = n_items, .size = (uint32_t)size };
	frame->size += (uint32_t)size;
	frame->n_records++;
	return r;
}

static void *add_control(enum wh_record_kind kind, size_t size)
{
	return add(kind, 0, 0, size);
}

/* The items of a record whose fixed part has that many bytes. */
static struct wh_run *items(void *record, size_t fixed)
{
	return (struct wh_run *)((char *)record + fixed);
}

static uint64_t *word(void *record, size_t offset)
{
	return (uint64_t *)(void *)((char *)record + offset);
}

/* Checks a copy that ends where the frame does, so that a sanitizer sees who reads on. */
static int check(size_t size, const char **ret_why)
{
	void *copy = malloc(size ? size : 1);
	memcpy(copy, frame, size);
	int r = wh_frame_check(copy, size, came_fds, lost_fds, &limits, ret_why);
	free(copy);
	return r;
}

static const char untouched[] = "nothing";

static void expect_valid(int line)
{
	const char *why = untouched;
	int r = check(frame->size, &why);
	cr_assert_eq(r, 0, "line %d: %d, %s", line, r, why);
	cr_assert_eq(why, untouched, "line %d", line);
}

static void expect_datagram(int line, size_t size, int error, const char *expected)
{
	const char *why = untouched;
	int r = check(size, &why);
	cr_assert_eq(r, error, "line %d: %d, %s", line, r, why);
	cr_assert_str_eq(why, expected, "line %d: %s", line, why);
}

#define VALID() expect_valid(__LINE__)
#define INVALID(why) expect_datagram(__LINE__, frame->size, -EPROTO, why)

/* The frame is valid, is not with this value here, and is again without. */
#define BREAKS(field, value, why) do { \
	VALID(); \
	const __typeof__(field) kept_ = (field); \
	(field) = (value); \
	INVALID(why); \
	(field) = kept_; \
	VALID(); \
} while (0)

/* The same, but with this value it is valid, too. */
#define ALLOWS(field, value) do { \
	VALID(); \
	const __typeof__(field) kept_ = (field); \
	(field) = (value); \
	VALID(); \
	(field) = kept_; \
} while (0)

TestSuite(wire_rules, .init = setup, .fini = teardown);

/* ---- Frames ---- */

Test(wire_rules, frame_header)
{
	VALID(); /* no records at all */
	add_control(WH_RECORD_WAKE, sizeof(struct wh_record));
	BREAKS(frame->magic, __builtin_bswap32(WH_WIRE_MAGIC), "frame: wrong magic");
	ALLOWS(frame->flags, WH_FRAME_TELL);
	BREAKS(frame->flags, 2, "frame: unknown flags");
	BREAKS(frame->flags, 0x80 | WH_FRAME_TELL, "frame: unknown flags");
	BREAKS(frame->zero, 1, "frame: padding not zero");
	ALLOWS(frame->turn_ns, UINT64_MAX);
	ALLOWS(frame->consumed, UINT64_MAX);
	frame->version = WH_WIRE_VERSION + 1;
	expect_datagram(__LINE__, frame->size, -EPROTONOSUPPORT, "frame: another version");
	frame->magic = 0;
	INVALID("frame: wrong magic");
}

Test(wire_rules, frame_size)
{
	add_control(WH_RECORD_WAKE, sizeof(struct wh_record));
	VALID();
	for (size_t size = 0; size < sizeof *frame; size++)
		expect_datagram(__LINE__, size, -EPROTO, "frame: shorter than its header");
	for (size_t size = sizeof *frame; size < 64; size++)
		if (size != frame->size)
			expect_datagram(__LINE__, size, -EPROTO, "frame: size not the datagram's");
	ALLOWS(limits.frame_bytes_max, frame->size);
	BREAKS(limits.frame_bytes_max, frame->size - 1, "frame: larger than we take");
}

Test(wire_rules, frame_records)
{
	add_control(WH_RECORD_WAKE, 8);
	add_control(WH_RECORD_WAKE, 8);
	BREAKS(frame->n_records, 1, "frame: bytes behind its last record");
	BREAKS(frame->n_records, 0, "frame: bytes behind its last record");
	BREAKS(frame->n_records, 3, "frame: fewer records than it says");
	BREAKS(frame->n_records, UINT16_MAX, "frame: fewer records than it says");
}

Test(wire_rules, frame_with_less_than_a_record_behind)
{
	add_control(WH_RECORD_WAKE, 8);
	frame->size += 4;
	INVALID("frame: bytes behind its last record");
	frame->n_records = 2;
	INVALID("frame: fewer records than it says");
}

Test(wire_rules, frame_descriptors)
{
	add_control(WH_RECORD_PORT, sizeof(struct wh_port_record));
	frame->n_fds = 1;
	came_fds = 1;
	BREAKS(came_fds, 0, "frame: number of descriptors not what came");
	BREAKS(came_fds, 2, "frame: number of descriptors not what came");
	lost_fds = true;
	ALLOWS(came_fds, 0);
	BREAKS(came_fds, 2, "frame: number of descriptors not what came");
	BREAKS(frame->n_fds, 2, "frame: number of descriptors not its last record's");
	came_fds = 0;
	BREAKS(frame->n_fds, 0, "frame: number of descriptors not its last record's");
}

Test(wire_rules, port_where_no_descriptors_are_taken)
{
	add_control(WH_RECORD_PORT, sizeof(struct wh_port_record));
	frame->n_fds = 1;
	came_fds = 1;
	BREAKS(limits.fds_max, 0, "port: we take no descriptors");
	ALLOWS(limits.fds_max, 1);
}

Test(wire_rules, frame_of_a_record_behind_one_with_descriptors)
{
	add_control(WH_RECORD_PORT, sizeof(struct wh_port_record));
	frame->n_fds = 1;
	came_fds = 1;
	VALID();
	struct wh_run *run = items(add(WH_RECORD_MESSAGE, WHOLE, 1, FIXED + 16), FIXED);
	*run = (struct wh_run){ .slot = 5, .n_chunks = 1, .size = 1 };
	INVALID("frame: a record behind one with descriptors");
}

Test(wire_rules, frame_whose_record_has_no_descriptors)
{
	add_control(WH_RECORD_WAKE, 8);
	VALID();
	frame->n_fds = 1;
	came_fds = 1;
	INVALID("frame: number of descriptors not its last record's");
}

static struct wh_hello *add_hello(void)
{
	struct wh_hello *hello = add_control(WH_RECORD_HELLO, sizeof *hello);
	hello->version_min = 1;
	hello->version_max = 1;
	hello->frame_bytes_max = WH_FRAME_BYTES_MIN;
	return hello;
}

static struct wh_bye *add_bye(void)
{
	struct wh_bye *bye = add_control(WH_RECORD_BYE, sizeof *bye);
	bye->code = WH_BYE_CLOSE;
	return bye;
}

Test(wire_rules, before_hello_nothing_else)
{
	limits.said_hello = false;
	INVALID("frame: no hello yet");
	frame->size += 7; /* too short for a kind to be there */
	frame->n_records = 1;
	INVALID("frame: no hello yet");
	frame->size -= 7;
	frame->n_records = 0;
	struct wh_record *r = add_control(WH_RECORD_WAKE, 8);
	for (uint8_t kind = 0; kind < WH_RECORD_KINDS + 2; kind++) {
		r->kind = kind;
		INVALID(kind == WH_RECORD_HELLO || kind == WH_RECORD_BYE ?
			"record: size not of its kind" : "frame: no hello yet");
	}
}

Test(wire_rules, before_hello_alone_in_its_frame)
{
	limits.said_hello = false;
	add_hello();
	VALID();
	add_control(WH_RECORD_WAKE, 8);
	INVALID("frame: no hello yet");
}

Test(wire_rules, before_hello_bye)
{
	add_bye();
	ALLOWS(limits.said_hello, false);
}

/* ---- Records ---- */

Test(wire_rules, record_head)
{
	struct wh_record *r = add_control(WH_RECORD_WAKE, 8);
	add_control(WH_RECORD_WAKE, 8);
	BREAKS(r->kind, 0, "record: unknown kind");
	BREAKS(r->kind, WH_RECORD_KINDS, "record: unknown kind");
	BREAKS(r->kind, UINT8_MAX, "record: unknown kind");
	BREAKS(r->size, 0, "record: size not of its kind");
	BREAKS(r->size, 12, "record: size not a multiple of 8");
	BREAKS(r->size, 16, "record: size not of its kind");
	BREAKS(r->size, 24, "record: larger than the rest of its frame");
	BREAKS(r->size, UINT32_MAX - 7, "record: larger than the rest of its frame");
	BREAKS(r->flags, 1, "record: unknown flags");
	BREAKS(r->n_items, 1, "record: items in a control record");
}

Test(wire_rules, hello)
{
	limits.said_hello = false;
	struct wh_hello *hello = add_hello();
	BREAKS(limits.said_hello, true, "hello: a second one");
	BREAKS(hello->version_min, 2, "hello: version_min above version_max");
	ALLOWS(hello->version_max, 9);
	ALLOWS(hello->frame_bytes_max, WH_FRAME_BYTES_MAX);
	BREAKS(hello->frame_bytes_max, WH_FRAME_BYTES_MIN - 1, "hello: frame_bytes_max out of range");
	BREAKS(hello->frame_bytes_max, WH_FRAME_BYTES_MAX + 1, "hello: frame_bytes_max out of range");
	BREAKS(hello->zero, 1, "hello: reserved not zero");
	BREAKS(hello->reserved, 1ull << 63, "hello: reserved not zero");
}

/* A text field that is empty now. */
static void text_rules(char *text, size_t bytes, const char *why)
{
	ALLOWS(text[0], ' ');
	ALLOWS(text[0], '~');
	BREAKS(text[0], '\x1f', why);
	BREAKS(text[0], '\x7f', why);
	BREAKS(text[0], (char)0xe4, why);
	BREAKS(text[1], 'x', why);
	BREAKS(text[bytes - 1], 'x', why);
	memset(text, 'x', bytes - 1);
	VALID();
	BREAKS(text[bytes - 1], 'x', why);
}

Test(wire_rules, hello_name)
{
	limits.said_hello = false;
	struct wh_hello *hello = add_hello();
	text_rules(hello->name, sizeof hello->name, "hello: name not printable, or no zeros behind");
}

Test(wire_rules, bye)
{
	struct wh_bye *bye = add_bye();
	ALLOWS(bye->code, WH_BYE_MISMATCH);
	BREAKS(bye->code, 0, "bye: unknown code");
	BREAKS(bye->code, WH_BYE_MISMATCH + 1, "bye: unknown code");
	text_rules(bye->text, sizeof bye->text, "bye: text not printable, or no zeros behind");
}

Test(wire_rules, cancel)
{
	struct wh_cancel *cancel = add_control(WH_RECORD_CANCEL, sizeof *cancel);
	cancel->call = 1;
	cancel->code = WH_CANCEL_CALLER;
	ALLOWS(cancel->call, UINT64_MAX);
	BREAKS(cancel->call, 0, "cancel: no call id");
	ALLOWS(cancel->code, WH_CANCEL_CLOSING);
	BREAKS(cancel->code, 0, "cancel: unknown code");
	BREAKS(cancel->code, WH_CANCEL_CLOSING + 1, "cancel: unknown code");
	ALLOWS(cancel->app_code, UINT32_MAX);
	BREAKS(cancel->record.size, 16, "record: size not of its kind");
}

Test(wire_rules, credit)
{
	struct wh_credit *credit = add_control(WH_RECORD_CREDIT, sizeof *credit);
	*credit = (struct wh_credit){ .record = credit->record, .id = 1, .bytes = 1, .kind = WH_RECORD_CALL };
	ALLOWS(credit->id, UINT64_MAX);
	BREAKS(credit->id, 0, "credit: id out of range");
	ALLOWS(credit->bytes, UINT64_MAX);
	BREAKS(credit->bytes, 0, "credit: no bytes");
	ALLOWS(credit->kind, WH_RECORD_MESSAGE);
	ALLOWS(credit->kind, WH_RECORD_REPLY);
	BREAKS(credit->kind, WH_RECORD_HELLO, "credit: unknown kind");
	BREAKS(credit->kind, WH_RECORD_CANCEL, "credit: unknown kind");
	BREAKS(credit->zero, 1, "credit: padding not zero");
	BREAKS(credit->record.size, 24, "record: size not of its kind");
	credit->kind = WH_RECORD_MESSAGE;
	ALLOWS(credit->id, UINT32_MAX);
	BREAKS(credit->id, UINT32_MAX + 1ull, "credit: id out of range");
	BREAKS(credit->id, 0, "credit: id out of range");
}

Test(wire_rules, abort)
{
	struct wh_abort *abort = add_control(WH_RECORD_ABORT, sizeof *abort);
	abort->stream = 1;
	abort->code = WH_ABORT_SENDER;
	ALLOWS(abort->stream, UINT32_MAX);
	BREAKS(abort->stream, 0, "abort: of no stream");
	ALLOWS(abort->app_code, UINT32_MAX);
	ALLOWS(abort->code, WH_ABORT_DONE);
	BREAKS(abort->code, 0, "abort: unknown code");
	BREAKS(abort->code, WH_ABORT_DONE + 1, "abort: unknown code");
	BREAKS(abort->zero, 1, "abort: padding not zero");
	BREAKS(abort->record.size, 16, "record: size not of its kind");
}

Test(wire_rules, announce)
{
	struct wh_announce *a = add_control(WH_RECORD_ANNOUNCE, sizeof *a);
	*a = (struct wh_announce){ .record = a->record, .slot = 254, .chunk_shift = 12, .n_chunks = 64 };
	frame->n_fds = 2;
	came_fds = 2;
	BREAKS(a->slot, WH_WIRE_SLOTS_MAX, "announce: slot out of range");
	BREAKS(a->slot, 5, "announce: slot taken");
	ALLOWS(a->flags, WH_ANNOUNCE_HUGE);
	BREAKS(a->flags, 2, "announce: unknown flags");
	BREAKS(a->chunk_shift, 7, "announce: chunk size out of range");
	BREAKS(a->chunk_shift, 25, "announce: chunk size out of range");
	BREAKS(a->chunk_shift, UINT8_MAX, "announce: chunk size out of range");
	BREAKS(a->n_chunks, 0, "announce: number of chunks out of range");
	ALLOWS(a->n_chunks, (1u << 30) >> 12);
	BREAKS(a->n_chunks, ((1u << 30) >> 12) + 1, "announce: number of chunks out of range");
	ALLOWS(a->chunk_shift, 8);
	a->chunk_shift = 24;
	VALID();
	BREAKS(a->n_chunks, 65, "announce: number of chunks out of range");
}

Test(wire_rules, announce_that_was_asked_for_again)
{
	struct wh_announce *a = add_control(WH_RECORD_ANNOUNCE, sizeof *a);
	*a = (struct wh_announce){ .record = a->record, .slot = 5, .chunk_shift = 12, .n_chunks = 100 };
	frame->n_fds = 2;
	came_fds = 2;
	INVALID("announce: slot taken");
	slots[5].asked = true;
	BREAKS(a->n_chunks, 99, "announce: not what was announced before");
	BREAKS(a->chunk_shift, 13, "announce: not what was announced before");
}

Test(wire_rules, announce_of_a_slot_that_the_frame_retires)
{
	struct wh_slot_record *retire = add_control(WH_RECORD_RETIRE, sizeof *retire);
	retire->slot = 255;
	struct wh_announce *a = add_control(WH_RECORD_ANNOUNCE, sizeof *a);
	*a = (struct wh_announce){ .record = a->record, .slot = 5, .chunk_shift = 12, .n_chunks = 100 };
	slots[5].asked = true;
	frame->n_fds = 2;
	came_fds = 2;
	BREAKS(retire->slot, 5, "announce: slot retired in this frame");
}

Test(wire_rules, announce_request)
{
	struct wh_slot_record *s = add_control(WH_RECORD_ANNOUNCE_REQUEST, sizeof *s);
	s->slot = 7;
	BREAKS(s->slot, WH_WIRE_SLOTS_MAX, "slot: out of range");
	BREAKS(s->acknowledged, 1, "slot: acknowledged out of range");
	BREAKS(s->zero, 1, "slot: padding not zero");
}

Test(wire_rules, retire)
{
	struct wh_slot_record *s = add_control(WH_RECORD_RETIRE, sizeof *s);
	s->slot = 5;
	BREAKS(s->slot, WH_WIRE_SLOTS_MAX, "slot: out of range");
	BREAKS(s->slot, 7, "retire: slot not announced");
	BREAKS(s->acknowledged, 2, "slot: acknowledged out of range");
	BREAKS(s->zero, 1, "slot: padding not zero");
	s->acknowledged = 1;
	ALLOWS(s->slot, 7);
}

Test(wire_rules, retired_slots_are_in_no_run_of_the_frame)
{
	struct wh_run *before = items(add(WH_RECORD_MESSAGE, WHOLE, 1, FIXED + 16), FIXED);
	struct wh_slot_record *s[2];
	for (int i = 0; i < 2; i++)
		s[i] = add_control(WH_RECORD_RETIRE, sizeof *s[i]);
	void *call = add(WH_RECORD_CALL, WH_RECORD_FIRST, 2, FIXED + 16 + 32);
	*word(call, FIXED) = 100;
	*word(call, FIXED + 8) = 1;
	struct wh_run *behind = items(call, FIXED + 16);
	slots[6] = slots[7] = slots[5];
	s[0]->slot = 255;
	s[1]->slot = 6;
	*before = behind[1] = (struct wh_run){ .slot = 5, .n_chunks = 1, .size = 1 };
	behind[0] = (struct wh_run){ .slot = 7, .n_chunks = 1, .size = 1 };
	for (uint16_t slot = 6; slot < 256; slot = (uint16_t)(slot + 249)) {
		BREAKS(before->slot, slot, "retire: a run of the slot in the same frame");
		BREAKS(behind[0].slot, slot, "retire: a run of the slot in the same frame");
		BREAKS(behind[1].slot, slot, "retire: a run of the slot in the same frame");
	}
	BREAKS(s[1]->slot, 255, "retire: a slot twice");
	s[0]->acknowledged = s[1]->acknowledged = 1; /* the reader's word, of slots of ours */
	s[1]->slot = 255;
	ALLOWS(before->slot, 255);
}

/* ---- Messages ---- */

Test(wire_rules, message_head)
{
	struct wh_message_record *m = add(WH_RECORD_MESSAGE, WHOLE, 1, FIXED + 16);
	*items(m, FIXED) = (struct wh_run){ .slot = 5, .n_chunks = 1, .size = 1 };
	add_control(WH_RECORD_WAKE, 8);
	BREAKS(m->record.flags, WHOLE | 0x20, "message: unknown flags");
	BREAKS(m->record.flags, WHOLE | 0x80, "message: unknown flags");
	BREAKS(m->record.n_items, 65, "message: more than 64 items");
	BREAKS(m->record.n_items, 2, "message: shorter than its fields");
	BREAKS(m->record.n_items, 0, "message: longer than its items");
	BREAKS(m->record.size, FIXED + 8, "message: shorter than its fields");
	BREAKS(m->record.size, 0, "message: shorter than its fields");
	BREAKS(m->record.size, FIXED + 24, "message: longer than its items");
	BREAKS(m->record.size, FIXED + 20, "record: size not a multiple of 8");
	BREAKS(m->record.size, FIXED + 32, "record: larger than the rest of its frame");
	ALLOWS(m->type, UINT32_MAX);
}

Test(wire_rules, message_of_nothing)
{
	struct wh_message_record *m = add(WH_RECORD_MESSAGE, WHOLE, 0, FIXED);
	ALLOWS(limits.message_bytes_max, 0);
	BREAKS(m->record.n_items, 1, "message: shorter than its fields");
}

/* What is behind it is another's. */
Test(wire_rules, message_without_a_stream)
{
	add(WH_RECORD_MESSAGE, WHOLE, 0, sizeof(struct wh_record));
	INVALID("message: shorter than its fields");
	add_control(WH_RECORD_WAKE, 8);
	INVALID("message: shorter than its fields");
}

Test(wire_rules, end_with_last_only)
{
	for (uint8_t kind = WH_RECORD_MESSAGE; kind <= WH_RECORD_REPLY; kind++) {
		const bool message = kind == WH_RECORD_MESSAGE;
		struct wh_message_record *m = add(kind, WH_RECORD_FIRST, 0, FIXED + (message ? 8 : 16));
		if (!message)
			*word(m, FIXED + 8) = 1;
		BREAKS(m->record.flags, WH_RECORD_FIRST | WH_RECORD_END, "message: END before its last fragment");
		BREAKS(m->record.flags, WH_RECORD_END, "message: END before its last fragment");
		ALLOWS(m->record.flags, 0); /* one in the middle */
		ALLOWS(m->record.flags, WH_RECORD_LAST);
		m->stream = message;
		ALLOWS(m->record.flags, WH_RECORD_LAST | WH_RECORD_END);
		m->stream = 0;
	}
}

Test(wire_rules, message_of_a_stream_ends_it)
{
	struct wh_message_record *m = add(WH_RECORD_MESSAGE, WH_RECORD_FIRST, 0, FIXED + 8);
	ALLOWS(m->stream, UINT32_MAX);
	m->record.flags = 0;
	ALLOWS(m->stream, UINT32_MAX);
	m->record.flags = WH_RECORD_LAST;
	BREAKS(m->stream, 1, "message: last fragment of a stream without END");
	BREAKS(m->record.flags, WH_RECORD_LAST | WH_RECORD_END, "message: END of no stream");
	m->record.flags = WH_RECORD_LAST | WH_RECORD_END;
	m->stream = UINT32_MAX;
	BREAKS(m->stream, 0, "message: END of no stream");
	BREAKS(m->record.flags, WH_RECORD_LAST, "message: last fragment of a stream without END");
}

/* Those that nearly every message looks like, too. */
Test(wire_rules, whole_message_of_a_stream_ends_it)
{
	struct wh_message_record *m = add(WH_RECORD_MESSAGE, WHOLE, 1, FIXED + 16);
	struct wh_run *item = items(m, FIXED);
	for (uint8_t n_chunks = 0; n_chunks < 2; n_chunks++) {
		*item = n_chunks ? (struct wh_run){ .slot = 5, .n_chunks = 1, .size = 1 } :
			(struct wh_run){ .first = FIXED + 16 };
		BREAKS(m->stream, 1, "message: last fragment of a stream without END");
		BREAKS(m->stream, 1u << 31, "message: last fragment of a stream without END");
		BREAKS(m->record.flags, WHOLE | WH_RECORD_END, "message: END of no stream");
		m->record.flags = WHOLE | WH_RECORD_END;
		m->stream = UINT32_MAX;
		BREAKS(m->record.flags, WHOLE, "message: last fragment of a stream without END");
		m->record.flags = WHOLE;
		m->stream = 0;
	}
}

Test(wire_rules, message_descriptors)
{
	struct wh_message_record *m = add(WH_RECORD_MESSAGE, WHOLE | WH_RECORD_FDS, 0, FIXED + 8);
	uint32_t *n_fds = (uint32_t *)(void *)word(m, FIXED);
	*n_fds = 3;
	frame->n_fds = 3;
	came_fds = 3;
	BREAKS(n_fds[1], 1, "message: padding not zero");
	BREAKS(*n_fds, 2, "frame: number of descriptors not its last record's");
	BREAKS(limits.fds_max, 2, "message: number of descriptors out of range");
	BREAKS(*n_fds, 0, "message: number of descriptors out of range");
	BREAKS(*n_fds, UINT32_MAX, "message: number of descriptors out of range");
	m->record.flags = WHOLE;
	INVALID("message: longer than its items");
	m->record.flags = WH_RECORD_LAST | WH_RECORD_FDS;
	INVALID("message: descriptors behind its first fragment");
	m->record.flags = WH_RECORD_FIRST | WH_RECORD_FDS;
	INVALID("message: shorter than its fields");
}

/* A call with descriptors, 3 of them the application's. */
Test(wire_rules, call_delegated)
{
	struct wh_message_record *m = add(WH_RECORD_CALL, WHOLE | WH_RECORD_FDS, 0, FIXED + 16);
	uint32_t *n_fds = (uint32_t *)(void *)word(m, FIXED + 8);
	*word(m, FIXED) = 1;
	came_fds = *n_fds = frame->n_fds = 3;
	ALLOWS(m->record.flags, WHOLE | WH_RECORD_FDS | WH_RECORD_DELEGATED);
	came_fds = *n_fds = frame->n_fds = 4;
	INVALID("message: number of descriptors out of range");
	m->record.flags |= WH_RECORD_DELEGATED;
	ALLOWS(m->record.flags, m->record.flags | WH_RECORD_END);
	BREAKS(limits.fds_max, 2, "message: number of descriptors out of range");
	BREAKS(m->record.kind, WH_RECORD_MESSAGE, "message: DELEGATED, but no call");
	BREAKS(m->record.kind, WH_RECORD_REPLY, "message: DELEGATED, but no call");
	BREAKS(m->record.flags, WHOLE | WH_RECORD_DELEGATED, "call: DELEGATED without descriptors");
	BREAKS(m->record.flags, WH_RECORD_LAST | WH_RECORD_FDS | WH_RECORD_DELEGATED,
		"message: descriptors behind its first fragment");
	BREAKS(*n_fds, 0, "message: number of descriptors out of range");
	limits.fds_max = 0; /* not the application's */
	came_fds = *n_fds = frame->n_fds = 1;
	VALID();
	limits.fds_max = WH_WIRE_FDS_MAX;
	came_fds = *n_fds = frame->n_fds = WH_WIRE_FDS_MAX;
	VALID();
	came_fds = *n_fds = frame->n_fds = WH_WIRE_FDS_MAX + 1;
	INVALID("message: number of descriptors out of range");
}

Test(wire_rules, call_of_no_stream)
{
	struct wh_message_record *m = add(WH_RECORD_CALL, WHOLE, 0, FIXED + 8);
	*word(m, FIXED) = 1;
	BREAKS(m->stream, 1, "call: stream not zero");
	ALLOWS(m->record.flags, WHOLE | WH_RECORD_END);
	m->record.flags = WHOLE | WH_RECORD_END;
	BREAKS(m->stream, 1, "call: stream not zero");
}

Test(wire_rules, reply_status_with_end)
{
	struct wh_message_record *m = add(WH_RECORD_REPLY, WHOLE, 0, FIXED + 8);
	*word(m, FIXED) = 1;
	BREAKS(m->stream, 1, "reply: status without END");
	ALLOWS(m->record.flags, WHOLE | WH_RECORD_END);
	m->record.flags = WHOLE | WH_RECORD_END;
	ALLOWS(m->stream, UINT32_MAX);
}

Test(wire_rules, call_ids)
{
	for (uint8_t kind = WH_RECORD_CALL; kind <= WH_RECORD_REPLY; kind++) {
		struct wh_message_record *m = add(kind, WHOLE, 0, FIXED + 8);
		*word(m, FIXED) = 1;
		BREAKS(*word(m, FIXED), 0, "message: no call id");
		BREAKS(m->record.flags, WH_RECORD_FIRST, "message: shorter than its fields");
		m = add(kind, WH_RECORD_FIRST, 0, FIXED + 16);
		*word(m, FIXED + 8) = 1;
		BREAKS(*word(m, FIXED + 8), 0, "message: no call id");
	}
}

/* Any run of slot 5, in any place of a frame. */
static void run_rules(struct wh_run *run)
{
	*run = (struct wh_run){ .slot = 5, .n_chunks = 3, .first = 64, .offset = 4096, .size = 8192 };
	BREAKS(run->slot, WH_WIRE_SLOTS_MAX, "run: slot out of range");
	BREAKS(run->slot, UINT16_MAX, "run: slot out of range");
	BREAKS(run->slot, 6, "run: slot not announced");
	BREAKS(run->n_chunks, 65, "run: more than 64 chunks");
	BREAKS(run->n_chunks, 255, "run: more than 64 chunks");
	BREAKS(run->flags, WH_RUN_ALIGNED, "run: unknown flags");
	BREAKS(run->flags, 0x80, "run: unknown flags");
	ALLOWS(run->first, 96);
	BREAKS(run->first, 98, "run: beyond its segment");
	BREAKS(run->first, 100, "run: beyond its segment");
	BREAKS(run->first, UINT32_MAX, "run: beyond its segment");
	BREAKS(run->first, UINT32_MAX - 3, "run: beyond its segment");
	BREAKS(run->first, 65, "run: not at a multiple of its length");
	BREAKS(run->first, 66, "run: not at a multiple of its length");
	BREAKS(run->size, 0, "run: no bytes");
	BREAKS(run->size, 8193, "run: bytes beyond its chunks");
	BREAKS(run->offset, 4097, "run: bytes beyond its chunks");
	BREAKS(run->offset, UINT32_MAX, "run: bytes beyond its chunks");
	BREAKS(run->size, UINT32_MAX, "run: bytes beyond its chunks");
	BREAKS(run->offset, UINT32_MAX - 8191, "run: bytes beyond its chunks"); /* the sum is 0 in 32 bits */
}

Test(wire_rules, run_of_a_plain_message)
{
	run_rules(items(add(WH_RECORD_MESSAGE, WHOLE, 1, FIXED + 16), FIXED));
	BREAKS(limits.message_bytes_max, 8191, "message: larger than we take");
	ALLOWS(limits.message_bytes_max, 8192);
}

Test(wire_rules, run_among_others)
{
	struct wh_message_record *m = add(WH_RECORD_CALL, WHOLE, 3, FIXED + 8 + 48 + 8);
	*word(m, FIXED) = 1;
	struct wh_run *run = items(m, FIXED + 8);
	run[0] = (struct wh_run){ .slot = 5, .n_chunks = 64, .size = 10 };
	run[2] = (struct wh_run){ .first = FIXED + 8 + 48, .size = 8 };
	run_rules(&run[1]);
	BREAKS(limits.message_bytes_max, 8192 + 17, "message: larger than we take");
	ALLOWS(limits.message_bytes_max, 8192 + 18);
}

Test(wire_rules, run_starts_by_length)
{
	struct wh_run *run = items(add(WH_RECORD_MESSAGE, WHOLE, 1, FIXED + 16), FIXED);
	slots[5].n_chunks = 4096;
	for (uint8_t n = 1; n <= 64; n++) {
		uint32_t start = 1;
		while (start < n)
			start *= 2;
		*run = (struct wh_run){ .slot = 5, .n_chunks = n, .size = 1 };
		for (run->first = 0; run->first < 200; run->first++)
			if (run->first % start)
				INVALID("run: not at a multiple of its length");
			else
				VALID();
	}
}

Test(wire_rules, run_as_large_as_they_get)
{
	struct wh_run *run = items(add(WH_RECORD_MESSAGE, WHOLE, 1, FIXED + 16), FIXED);
	*run = (struct wh_run){ .slot = 255, .n_chunks = 64, .size = 1 << 30 };
	limits.message_bytes_max = 1 << 30;
	BREAKS(run->offset, 1, "run: bytes beyond its chunks");
}

Test(wire_rules, runs_share_no_chunk)
{
	struct wh_run *run = items(add(WH_RECORD_MESSAGE, WHOLE, 3, FIXED + 48), FIXED);
	slots[6] = slots[5];
	run[0] = (struct wh_run){ .slot = 5, .n_chunks = 3, .first = 8, .size = 1 };
	run[1] = (struct wh_run){ .slot = 6, .n_chunks = 4, .first = 8, .size = 1 };
	run[2] = (struct wh_run){ .slot = 5, .n_chunks = 1, .first = 11, .size = 1 };
	ALLOWS(run[2].first, 7);
	for (uint32_t first = 8; first < 11; first++)
		BREAKS(run[2].first, first, "run: a chunk twice in one record");
	BREAKS(run[1].slot, 5, "run: a chunk twice in one record");
	BREAKS(run[2].slot, 6, "run: a chunk twice in one record");
}

Test(wire_rules, runs_of_two_records_may_share_chunks)
{
	for (int i = 0; i < 2; i++)
		*items(add(WH_RECORD_MESSAGE, WHOLE, 1, FIXED + 16), FIXED) =
			(struct wh_run){ .slot = 5, .n_chunks = 1, .size = 1 };
	VALID();
}

Test(wire_rules, runs_as_many_as_they_get)
{
	struct wh_run *run = items(add(WH_RECORD_MESSAGE, WHOLE, 64, FIXED + 64 * 16), FIXED);
	for (uint32_t i = 0; i < 64; i++)
		run[i] = (struct wh_run){ .slot = 5, .n_chunks = 1, .first = i, .size = 1 };
	BREAKS(run[63].first, 0, "run: a chunk twice in one record");
}

/* One inline item of 5 bytes whose record has room for exactly that; h is the size of what is before it. */
static void inline_rules(struct wh_run *item, uint32_t h)
{
	char *bytes = (char *)(item + 1);
	*item = (struct wh_run){ .first = h + 16, .size = 5 };
	BREAKS(item->slot, 1, "inline: slot or offset not zero");
	BREAKS(item->offset, 1, "inline: slot or offset not zero");
	BREAKS(item->flags, 2, "inline: unknown flags");
	BREAKS(item->first, h + 17, "inline: bytes out of place");
	BREAKS(item->first, h + 24, "inline: bytes out of place");
	BREAKS(item->first, h + 8, "inline: bytes out of place");
	BREAKS(item->first, 0, "inline: bytes out of place");
	BREAKS(item->first, UINT32_MAX - 7, "inline: bytes out of place");
	ALLOWS(item->size, 8);
	BREAKS(item->size, 9, "inline: bytes beyond the record");
	BREAKS(item->size, UINT32_MAX, "inline: bytes beyond the record");
	BREAKS(item->size, 0, "message: longer than its items");
	for (int i = 0; i < 5; i++)
		ALLOWS(bytes[i], (char)0xff);
	for (int i = 5; i < 8; i++)
		BREAKS(bytes[i], 1, "inline: padding not zero");
}

Test(wire_rules, inline_of_a_plain_message)
{
	inline_rules(items(add(WH_RECORD_MESSAGE, WHOLE, 1, FIXED + 24), FIXED), FIXED);
	ALLOWS(limits.message_bytes_max, 5);
	BREAKS(limits.message_bytes_max, 4, "message: larger than we take");
}

Test(wire_rules, inline_of_a_fragment_in_the_middle_of_a_frame)
{
	add_control(WH_RECORD_WAKE, 8);
	struct wh_message_record *m = add(WH_RECORD_MESSAGE, 0, 1, FIXED + 8 + 24);
	add_control(WH_RECORD_WAKE, 8);
	inline_rules(items(m, FIXED + 8), FIXED + 8);
}

Test(wire_rules, inline_aligned)
{
	for (uint32_t before = 0; before < 8; before++) {
		*frame = (struct wh_frame){ .magic = WH_WIRE_MAGIC, .version = WH_WIRE_VERSION, .size = sizeof *frame };
		for (uint32_t i = 0; i < before; i++)
			add_control(WH_RECORD_WAKE, 8);
		const uint32_t at = (frame->size + FIXED + 16 + 63) / 64 * 64, first = at - frame->size;
		struct wh_message_record *m = add(WH_RECORD_MESSAGE, WHOLE, 1, first + 8);
		char *record = (char *)m;
		memset(&m->type, 0, first + 8 - sizeof m->record);
		struct wh_run *item = items(m, FIXED);
		*item = (struct wh_run){ .flags = WH_RUN_ALIGNED, .first = first, .size = 1 };
		record[first] = 'x';
		BREAKS(item->first, first + 8, "inline: bytes out of place");
		BREAKS(item->first, first - 8, "inline: bytes out of place");
		if (first == FIXED + 16)
			continue;
		BREAKS(item->flags, 0, "inline: bytes out of place");
		BREAKS(record[first - 1], 1, "inline: padding not zero");
		BREAKS(record[FIXED + 16], 1, "inline: padding not zero");
	}
}

Test(wire_rules, inline_one_behind_the_other)
{
	enum { BEGIN = FIXED + 4 * 16 };
	struct wh_message_record *m = add(WH_RECORD_MESSAGE, WHOLE, 4, BEGIN + 24);
	struct wh_run *item = items(m, FIXED);
	item[0] = (struct wh_run){ .first = BEGIN, .size = 3 };
	item[1] = (struct wh_run){ .first = BEGIN + 8, .size = 0 };
	item[2] = (struct wh_run){ .slot = 5, .n_chunks = 1, .size = 1 };
	item[3] = (struct wh_run){ .first = BEGIN + 8, .size = 16 };
	BREAKS(item[1].first, BEGIN + 16, "inline: bytes out of place");
	BREAKS(item[3].first, BEGIN, "inline: bytes out of place");
	BREAKS(item[3].size, 8, "message: longer than its items");
	BREAKS(item[0].size, 9, "inline: bytes out of place");
	BREAKS(((char *)m)[BEGIN + 3], 1, "inline: padding not zero");
	const struct wh_run kept = item[0];
	item[0] = item[3];
	item[3] = kept;
	INVALID("inline: bytes out of place"); /* not ascending */
}

Test(wire_rules, fragment_positions)
{
	struct wh_message_record *m = add(WH_RECORD_MESSAGE, WH_RECORD_FIRST, 1, FIXED + 8 + 16);
	*items(m, FIXED + 8) = (struct wh_run){ .slot = 5, .n_chunks = 1, .size = 100 };
	uint64_t *position = word(m, FIXED);
	*position = 100;
	BREAKS(*position, 99, "message: fragment larger than the whole");
	ALLOWS(*position, UINT64_MAX); /* not known yet */
	ALLOWS(limits.message_bytes_max, 1); /* not for fragments */
	for (int i = 0; i < 2; i++) {
		m->record.flags = i ? WH_RECORD_LAST : 0;
		ALLOWS(*position, 0);
		ALLOWS(*position, UINT64_MAX - 100);
		BREAKS(*position, UINT64_MAX - 99, "message: position wraps");
	}
}
