/* SPDX-License-Identifier: MIT */
/* The wire format does not drift: one frame of every kind, written by hand from the specification in wire.c. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "wire.h"

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define U16(x) (x) & 0xff, (x) >> 8 & 0xff
#define U32(x) U16((x) & 0xffff), U16((x) >> 16 & 0xffff)
#define U64(x) U32((x) & 0xffffffff), U32((x) >> 32)
#else
#define U16(x) (x) >> 8 & 0xff, (x) & 0xff
#define U32(x) U16((x) >> 16 & 0xffff), U16((x) & 0xffff)
#define U64(x) U32((x) >> 32), U32((x) & 0xffffffff)
#endif
#define ZEROS_8 0, 0, 0, 0, 0, 0, 0, 0

/* Header of a frame, and of a record: the numbers as they stand in the specification, not the names of wire.h. */
#define FRAME(n_records, n_fds, size) FLAGGED_FRAME(0, n_records, n_fds, size)
#define FLAGGED_FRAME(flags, n_records, n_fds, size) \
	U32(0x31464857u), 1, flags, U16(n_records), U16(n_fds), U16(0), U32(size), \
	U64(0x1122334455667788u), U64(0x99aabbccddeeffu)
#define RECORD(kind, flags, n_items, size) kind, flags, U16(n_items), U32(size)

static struct wh_encoder encoder;

static void setup(void)
{
	wh_encode_begin(&encoder, aligned_alloc(64, WH_FRAME_BYTES_MIN), WH_FRAME_BYTES_MIN);
	memset(encoder.base, 0xa5, encoder.capacity); /* what is not written shows */
}

static void teardown(void)
{
	free(encoder.base);
}

/* The frame is `golden` to the byte, and a receiver takes it that has slot 3 mapped. */
static void is_golden(const unsigned char *golden, size_t size, bool said_hello)
{
	static struct wh_geometry slots[WH_WIRE_SLOTS_MAX] = { [3] = { .n_chunks = 128, .chunk_shift = 12 } };
	const struct wh_decode_limits limits = {
		.slots = slots,
		.frame_bytes_max = WH_FRAME_BYTES_MIN,
		.fds_max = 2,
		.message_bytes_max = 65536,
		.said_hello = said_hello,
	};
	const uint32_t n_fds = encoder.n_fds;
	const char *why = "";

	cr_assert_eq(wh_encode_end(&encoder, 0x1122334455667788, 0x99aabbccddeeff), size);
	for (size_t i = 0; i < size; i++)
		cr_assert_eq(encoder.base[i], golden[i], "byte %zu is %#x, not %#x", i, encoder.base[i], golden[i]);
	cr_assert_eq(wh_frame_check(encoder.base, size, n_fds, false, &limits, &why), 0, "%s", why);
}
#define IS_GOLDEN(said_hello, ...) \
	is_golden((const unsigned char[]){ __VA_ARGS__ }, sizeof (const unsigned char[]){ __VA_ARGS__ }, said_hello)

static void put_control(enum wh_record_kind kind, void *record, uint16_t n_fds)
{
	cr_assert(wh_encode_control(&encoder, kind, record, n_fds));
}

static const struct wh_run run = { .slot = 3, .n_chunks = 3, .first = 68, .offset = 0x10, .size = 0x2345 };

TestSuite(wire_golden, .init = setup, .fini = teardown);

Test(wire_golden, frame_without_records)
{
	IS_GOLDEN(true, FRAME(0, 0, 32));
}

Test(wire_golden, frame_that_asks_to_be_told)
{
	encoder.flags = WH_FRAME_TELL;
	IS_GOLDEN(true, FLAGGED_FRAME(1, 0, 0, 32));
}

Test(wire_golden, hello)
{
	struct wh_hello hello = {
		.version_min = 1,
		.version_max = 0x102,
		.features = 0x01020304,
		.features_required = 0x05060708,
		.frame_bytes_max = 0x8000,
		.fds_max = 0x11,
		.segments_max = 0x100,
		.mapped_bytes_max = 0x123456789abcdef0,
		.message_bytes_max = 0x0fedcba987654321,
		.streams_max = 0x21222324,
		.calls_max = 0x31323334,
		.stream_credit_bytes = 0x4142434445464748,
		.window_frames = 0x51525354,
		.name = "golden",
	};
	put_control(WH_RECORD_HELLO, &hello, 0);
	IS_GOLDEN(false, FRAME(1, 0, 176), RECORD(1, 0, 0, 144),
		U16(1), U16(0x102), U32(0x01020304u), U32(0x05060708u), U32(0x8000u), U32(0x11u), U32(0x100u),
		U64(0x123456789abcdef0u), U64(0x0fedcba987654321u), U32(0x21222324u), U32(0x31323334u),
		U64(0x4142434445464748u), U32(0x51525354u), U32(0), ZEROS_8,
		'g', 'o', 'l', 'd', 'e', 'n', 0, 0, ZEROS_8, ZEROS_8, ZEROS_8, ZEROS_8, ZEROS_8, ZEROS_8, ZEROS_8);
}

Test(wire_golden, message_in_one_run)
{
	cr_assert(wh_encode_run(&encoder, 0xcafef00d, &run));
	IS_GOLDEN(true, FRAME(1, 0, 64), RECORD(2, 1 | 2, 1, 32), U32(0xcafef00du), U32(0),
		U16(3), 3, 0, U32(68), U32(0x10), U32(0x2345));
}

Test(wire_golden, message_of_a_run_and_inline_bytes_with_descriptors)
{
	const struct wh_piece pieces[] = {
		{ .bytes = "abcdefghi", .size = 9 }, { .run = &run }, { .bytes = "xyz", .size = 3 },
	};
	cr_assert(wh_encode_message(&encoder, &(struct wh_message_out){ .kind = WH_RECORD_MESSAGE,
		.flags = WH_RECORD_FIRST | WH_RECORD_LAST | WH_RECORD_END, .n_pieces = 3, .n_fds = 2, .type = 7,
		.stream = 9, .pieces = pieces }));
	IS_GOLDEN(true, FRAME(1, 2, 128), RECORD(2, 1 | 2 | 4 | 8, 3, 96), U32(7), U32(9), U32(2), U32(0),
		U16(0), 0, 0, U32(72), U32(0), U32(9),
		U16(3), 3, 0, U32(68), U32(0x10), U32(0x2345),
		U16(0), 0, 0, U32(88), U32(0), U32(3),
		'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 0, 0, 0, 0, 0, 0, 0, 'x', 'y', 'z', 0, 0, 0, 0, 0);
}

Test(wire_golden, message_of_aligned_bytes)
{
	const struct wh_piece piece = { .bytes = "A", .size = 1, .aligned = true };
	const struct wh_message_out out = { .kind = WH_RECORD_MESSAGE, .flags = WH_RECORD_FIRST | WH_RECORD_LAST,
		.n_pieces = 1, .pieces = &piece };
	put_control(WH_RECORD_WAKE, &(struct wh_record){ 0 }, 0);
	cr_assert(wh_encode_message(&encoder, &out));
	IS_GOLDEN(true, FRAME(2, 0, 136), RECORD(10, 0, 0, 8),
		RECORD(2, 1 | 2, 1, 96), U32(0), U32(0), U16(0), 0, 1, U32(88), U32(0), U32(1),
		ZEROS_8, ZEROS_8, ZEROS_8, ZEROS_8, ZEROS_8, ZEROS_8, ZEROS_8, 'A', 0, 0, 0, 0, 0, 0, 0);
}

Test(wire_golden, fragments)
{
	const struct wh_piece piece = { .run = &run };
	struct wh_message_out out = { .kind = WH_RECORD_MESSAGE, .flags = WH_RECORD_FIRST, .n_pieces = 1, .type = 1,
		.stream = 2, .position = 0x123456789a, .pieces = &piece };
	cr_assert(wh_encode_message(&encoder, &out));
	out.flags = WH_RECORD_LAST | WH_RECORD_END;
	out.position = 0x1234565555;
	out.n_pieces = 0;
	cr_assert(wh_encode_message(&encoder, &out));
	IS_GOLDEN(true, FRAME(2, 0, 96), RECORD(2, 1, 1, 40), U32(1), U32(2), U64(0x123456789au),
		U16(3), 3, 0, U32(68), U32(0x10), U32(0x2345),
		RECORD(2, 2 | 8, 0, 24), U32(1), U32(2), U64(0x1234565555u));
}

Test(wire_golden, call)
{
	cr_assert(wh_encode_message(&encoder, &(struct wh_message_out){ .kind = WH_RECORD_CALL,
		.flags = WH_RECORD_FIRST, .type = 5, .position = UINT64_MAX, .call = 0x0102030405060708 }));
	IS_GOLDEN(true, FRAME(1, 0, 64), RECORD(3, 1, 0, 32), U32(5), U32(0), U64(0xffffffffffffffffu),
		U64(0x0102030405060708u));
}

/* The receiver's limit is two. */
Test(wire_golden, call_that_is_delegated_with_two_more_descriptors)
{
	cr_assert(wh_encode_message(&encoder, &(struct wh_message_out){ .kind = WH_RECORD_CALL,
		.flags = WH_RECORD_FIRST | WH_RECORD_LAST | WH_RECORD_END | WH_RECORD_DELEGATED, .n_fds = 3,
		.type = 5, .call = 0x0102030405060708 }));
	IS_GOLDEN(true, FRAME(1, 3, 64), RECORD(3, 1 | 2 | 4 | 8 | 16, 0, 32), U32(5), U32(0),
		U64(0x0102030405060708u), U32(3), U32(0));
}

Test(wire_golden, reply)
{
	cr_assert(wh_encode_message(&encoder, &(struct wh_message_out){ .kind = WH_RECORD_REPLY,
		.flags = WH_RECORD_FIRST | WH_RECORD_LAST | WH_RECORD_END, .type = 6, .stream = 0xcafef00d,
		.call = 0x0102030405060708 }));
	IS_GOLDEN(true, FRAME(1, 0, 56), RECORD(4, 1 | 2 | 8, 0, 24), U32(6), U32(0xcafef00du),
		U64(0x0102030405060708u));
}

Test(wire_golden, cancel)
{
	put_control(WH_RECORD_CANCEL, &(struct wh_cancel){ .call = 0x0102030405060708, .code = WH_CANCEL_ABORTED,
		.app_code = 0xcafef00d }, 0);
	IS_GOLDEN(true, FRAME(1, 0, 56), RECORD(5, 0, 0, 24), U64(0x0102030405060708u), U32(4), U32(0xcafef00du));
}

Test(wire_golden, credit)
{
	put_control(WH_RECORD_CREDIT, &(struct wh_credit){ .id = 0x0102030405060708, .bytes = 0x100000002,
		.kind = WH_RECORD_REPLY }, 0);
	IS_GOLDEN(true, FRAME(1, 0, 64), RECORD(6, 0, 0, 32), U64(0x0102030405060708u), U64(0x100000002u),
		U32(4), U32(0));
}

Test(wire_golden, announce)
{
	put_control(WH_RECORD_ANNOUNCE, &(struct wh_announce){
		.slot = 0xfe, .chunk_shift = 14, .flags = WH_ANNOUNCE_HUGE, .n_chunks = 0x10000 }, 2);
	IS_GOLDEN(true, FRAME(1, 2, 48), RECORD(7, 0, 0, 16), U16(0xfe), 14, 1, U32(0x10000));
}

Test(wire_golden, announce_request)
{
	put_control(WH_RECORD_ANNOUNCE_REQUEST, &(struct wh_slot_record){ .slot = 0xfe }, 0);
	IS_GOLDEN(true, FRAME(1, 0, 48), RECORD(8, 0, 0, 16), U16(0xfe), U16(0), U32(0));
}

Test(wire_golden, retire)
{
	put_control(WH_RECORD_RETIRE, &(struct wh_slot_record){ .slot = 3 }, 0);
	put_control(WH_RECORD_RETIRE, &(struct wh_slot_record){ .slot = 0xfe, .acknowledged = 1 }, 0);
	IS_GOLDEN(true, FRAME(2, 0, 64), RECORD(9, 0, 0, 16), U16(3), U16(0), U32(0),
		RECORD(9, 0, 0, 16), U16(0xfe), U16(1), U32(0));
}

Test(wire_golden, wake)
{
	put_control(WH_RECORD_WAKE, &(struct wh_record){ 0 }, 0);
	IS_GOLDEN(true, FRAME(1, 0, 40), RECORD(10, 0, 0, 8));
}

Test(wire_golden, port)
{
	put_control(WH_RECORD_PORT, &(struct wh_port_record){ .type = 0xcafef00d, .stream = 8 }, 1);
	IS_GOLDEN(true, FRAME(1, 1, 48), RECORD(11, 0, 0, 16), U32(0xcafef00du), U32(8));
}

Test(wire_golden, abort)
{
	put_control(WH_RECORD_ABORT, &(struct wh_abort){ .stream = 8, .app_code = 0xcafef00d,
		.code = WH_ABORT_ROOM }, 0);
	IS_GOLDEN(true, FRAME(1, 0, 56), RECORD(12, 0, 0, 24), U32(8), U32(0xcafef00du), U32(4), U32(0));
}

Test(wire_golden, bye)
{
	struct wh_bye bye = { .code = WH_BYE_ABORT, .app_code = 0xcafef00d, .last_call = 0x0102030405060708,
		.text = "so long" };
	put_control(WH_RECORD_BYE, &bye, 0);
	IS_GOLDEN(true, FRAME(1, 0, 176), RECORD(13, 0, 0, 144), U32(2), U32(0xcafef00du), U64(0x0102030405060708u),
		's', 'o', ' ', 'l', 'o', 'n', 'g', 0, ZEROS_8, ZEROS_8, ZEROS_8, ZEROS_8, ZEROS_8, ZEROS_8, ZEROS_8,
		ZEROS_8, ZEROS_8, ZEROS_8, ZEROS_8, ZEROS_8, ZEROS_8, ZEROS_8);
}
