/* SPDX-License-Identifier: MIT */
/*
 * The wire format: frames, records, and the one function that decides whether a frame is valid.
 *
 * All fields are unsigned integers of fixed width in the machine's own byte order, text excepted; offsets and
 * sizes are in bytes. The layout is the same for 32 and 64 bits. What is called zero is zero, and checked. "The
 * limit" is what the receiver has told its peer; "announced" is what the peer's slots are when the frame arrives.
 *
 * FRAME: one datagram
 *   0  u32  magic      0x31464857; in the other byte order it reads as something else
 *   4  u8   version    1. Magic and version stay where they are in all versions to come. A HELLO leaves in a
 *                      frame of the lowest version that its sender speaks, or nobody could negotiate
 *   5  u8   flags      1 TELL, or zero
 *   6  u16  n_records  may be 0: such a frame tells turn_ns and consumed
 *   8  u16  n_fds      descriptors that travel with the frame
 *  10  u16  zero
 *  12  u32  size       of the whole datagram
 *  16  u64  turn_ns    any
 *  24  u64  consumed   any: data frames that its sender has read. Told at the latest when a quarter of the peer's
 *                      window_frames, or 2 MiB of payload, or a frame with descriptors or TELL was read since
 *  32  records, one behind the other
 *
 * A data frame begins with a MESSAGE, CALL, REPLY or PORT, or with the ANNOUNCE of a slot that is not announced. consumed
 * and window_frames count those and no others: an ANNOUNCE that was asked for again, in a frame of its own, gets through
 * when the window is full. The data frames that their sender has not been told to be read carry at most 253 descriptors
 * together, those of ANNOUNCE not counted.
 *
 * A frame is valid if and only if
 *   - the datagram has at least 32 bytes and at most the limit; magic, version, flags and zero are as above; size
 *     is the datagram's;
 *   - n_fds is the number of descriptors that came, or no less than it when the kernel says that some were lost;
 *   - there are exactly n_records records, each is valid, and the last one ends where the frame ends;
 *   - a record with descriptors is the last one, and n_fds is their number; without such a record it is 0;
 *   - before the peer's hello: the only record is a HELLO or a BYE. After it: none is a HELLO.
 *
 * RECORD: every record begins with
 *   0  u8   kind
 *   1  u8   flags
 *   2  u16  n_items
 *   4  u32  size       of the whole record
 *
 * A record is valid if and only if its kind is one of those below, its size is a multiple of 8 and no more than what
 * is left of the frame, and the rules of its kind hold. In all kinds but MESSAGE, CALL and REPLY flags and n_items
 * are zero, and size is exactly the one given.
 *
 * 1 HELLO, 144
 *   8  u16  version_min          no more than version_max
 *  10  u16  version_max
 *  12  u32  features             any; 1 HUGE: maps segments on huge pages. 2 PIECES: takes messages of any size
 *  16  u32  features_required    any
 *  20  u32  frame_bytes_max      4096 to 65536
 *  24  u32  fds_max              any, as the limits that follow: what the format cannot carry anyway is no limit
 *  28  u32  segments_max
 *  32  u64  mapped_bytes_max
 *  40  u64  message_bytes_max    with PIECES not looked at
 *  48  u32  streams_max
 *  52  u32  calls_max
 *  56  u64  stream_credit_bytes
 *  64  u32  window_frames        any
 *  68  u32  zero
 *  72  u64  reserved             zero
 *  80  text name[64]             0x20 to 0x7e, then at least one NUL, and NULs to the end; may be empty
 *
 * 2 MESSAGE, 3 CALL, 4 REPLY, variable
 *   1  u8   flags      1 FIRST, 2 LAST, 4 FDS, 8 END, 16 DELEGATED; no others. END only with LAST: the last message of
 *                      a stream, or of this direction of a call. DELEGATED only in CALL, and only with FIRST and FDS:
 *                      the first descriptor is the end of a fresh pair, through which the answer comes
 *   2  u16  n_items    up to 64
 *   8  u32  type       any
 *  12  u32  stream     MESSAGE: its stream; 0 is the port's own. A stream is one message in pieces: with LAST there is
 *                      END if and only if this is not zero
 *                      CALL: zero
 *                      REPLY: the status; any with END, else zero
 *  16  u64  position   absent if both FIRST and LAST. With FIRST: bytes of the whole message, UINT64_MAX if nobody
 *                      knows yet, no less than this fragment has. Else: bytes in the fragments before it; position
 *                      + this fragment's bytes does not wrap
 *   .  u64  call       CALL and REPLY only; not zero
 *   .  u32  n_fds      FDS only, and FDS only with FIRST; 1 to the limit, which a delegated one does not count for,
 *                      but 253 at the most. The record has that many descriptors
 *   .  u32  zero       with n_fds
 *   .  n_items items
 *   .  inline bytes, and zero padding
 *
 * The low 16 bits of a call's number are an index, below the limit for calls, that no other call in use has. Numbers of
 * new calls grow: modulo 1 << 63 each is less than 1 << 62 above the one before. A delegated call is answered on the pair
 * whose end travels with it, where its number is 1 << 16: by REPLY and CANCEL as any call, and CALL is what follows of the
 * request. On the port of its request nothing answers it.
 *
 * The bytes of a record are those of its items together. If it is both FIRST and LAST they are no more than the limit
 * for messages; for fragments the port applies it, which knows their sum. Who said PIECES has no such limit: what one
 * record can carry is bounded by what is announced. Where the bytes of an inline item begin is given: at the end of the
 * inline bytes before them (of the items, for the first), rounded up to a multiple of 8, or of 64 from the start of the
 * frame if the item is ALIGNED. The record ends at the end of the last inline bytes (of the items, if there are none),
 * rounded up to 8. All that is skipped in rounding is zero.
 *
 * ITEM, 16            run                                         inline
 *   0  u16  slot      below 256, and announced                    zero
 *   2  u8   n_chunks  1 to 64                                     0
 *   3  u8   flags     zero                                        1 ALIGNED, or zero
 *   4  u32  first     first + n_chunks within the segment; first  from the start of the record to the bytes,
 *                     a multiple of the least power of two that   as above
 *                     is >= n_chunks: hence in one word of 64
 *   8  u32  offset    offset + size within n_chunks chunks        zero
 *  12  u32  size      not zero                                    any that ends within the record
 *
 * No chunk is in two runs of one record: or a few chunks could pose as a message of any length. Across records it is
 * not checked: it would give the receiver two messages over the same read-only bytes, and two releases of one chunk
 * to the sender, who alone comes to harm and could have done the same with two frames.
 *
 * 5 CANCEL, 24
 *   8  u64  call          not zero
 *  16  u32  code          1 CALLER: the caller has given up. 2 NO_REPLY. 3 REFUSED. 4 ABORTED: by the one who answers.
 *                         5 CLOSING: not accepted, as the bye will say
 *  20  u32  app_code      any; read with REFUSED and ABORTED only
 *
 * 6 CREDIT, 32
 *   8  u64  id            not zero; of the stream, below 1 << 32, if kind is MESSAGE, else of the call
 *  16  u64  bytes         not zero
 *  24  u32  kind          2 MESSAGE, 3 CALL or 4 REPLY: of the records that may be sent for it
 *  28  u32  zero
 *
 * A stream, and each direction of a call, begins with stream_credit_bytes of its receiver's HELLO. A record costs 64, 16
 * for each item, and its bytes; it may be sent while anything of the credit is left, whatever it costs. What its receiver
 * is done with comes back with CREDIT, never more than was spent. The messages of the port's own stream cost nothing.
 *
 * 7 ANNOUNCE, 16, two descriptors: the segment, its release map
 *   8  u16  slot          below 256; not announced, or asked for again and announced with the same geometry
 *  10  u8   chunk_shift   8 to 24
 *  11  u8   flags         1 HUGE, or zero
 *  12  u32  n_chunks      1 to 1 GiB >> chunk_shift
 *
 * 8 ANNOUNCE_REQUEST, 9 RETIRE, 16. ANNOUNCE_REQUEST: the slot's descriptors were lost on arrival, and the same
 * ANNOUNCE is to come once more. It follows an ANNOUNCE that has arrived, each at most once
 *   8  u16  slot          below 256. RETIRE with acknowledged 0: announced, and in no run, ANNOUNCE or other such
 *                         RETIRE of the frame
 *  10  u16  acknowledged  0; in RETIRE 0 from the owner of the slot, 1 from its reader, which has unmapped it: only
 *                         then is the slot announced again
 *  12  u32  zero
 *
 * 10 WAKE, 8
 *
 * 11 PORT, 16, one descriptor; the limit for descriptors is not 0
 *   8  u32  type          any
 *  12  u32  stream        any
 *
 * 12 ABORT, 24
 *   8  u32  stream        not zero
 *  12  u32  app_code      any
 *  16  u32  code          1 SENDER: who gives it up. 2 READER: who wants no more. 3 VIOLATION: of the rules, says the
 *                         reader. 4 ROOM: the reader has none for it. 5 DONE: the reader has had all of it, END
 *                         included. Until one of these has come, or was sent, its sender does not use the low
 *                         12 bits of its number for another
 *  20  u32  zero
 *
 * 13 BYE, 144
 *   8  u32  code          1 CLOSE, 2 ABORT, 3 REFUSED, 4 MISMATCH
 *  12  u32  app_code      any; read with ABORT only
 *  16  u64  last_call     any
 *  24  text text[120]     as HELLO's name
 */
#include <assert.h>
#include <errno.h>

#include "wire.h"

#define SIZE(type, bytes) static_assert(sizeof(struct type) == (bytes) && (bytes) % 8 == 0, #type)
#define FIELD(type, field, offset, bytes) \
	static_assert(offsetof(struct type, field) == (offset) && sizeof(((struct type *)0)->field) == (bytes), #field)

SIZE(wh_frame, 32);
FIELD(wh_frame, magic, 0, 4); FIELD(wh_frame, version, 4, 1); FIELD(wh_frame, flags, 5, 1);
FIELD(wh_frame, n_records, 6, 2); FIELD(wh_frame, n_fds, 8, 2); FIELD(wh_frame, zero, 10, 2);
FIELD(wh_frame, size, 12, 4); FIELD(wh_frame, turn_ns, 16, 8); FIELD(wh_frame, consumed, 24, 8);

SIZE(wh_record, 8);
FIELD(wh_record, kind, 0, 1); FIELD(wh_record, flags, 1, 1); FIELD(wh_record, n_items, 2, 2);
FIELD(wh_record, size, 4, 4);

SIZE(wh_run, 16);
FIELD(wh_run, slot, 0, 2); FIELD(wh_run, n_chunks, 2, 1); FIELD(wh_run, flags, 3, 1); FIELD(wh_run, first, 4, 4);
FIELD(wh_run, offset, 8, 4); FIELD(wh_run, size, 12, 4);

SIZE(wh_message_record, 16);
FIELD(wh_message_record, record, 0, 8); FIELD(wh_message_record, type, 8, 4); FIELD(wh_message_record, stream, 12, 4);

SIZE(wh_hello, 144);
FIELD(wh_hello, record, 0, 8); FIELD(wh_hello, version_min, 8, 2); FIELD(wh_hello, version_max, 10, 2);
FIELD(wh_hello, features, 12, 4); FIELD(wh_hello, features_required, 16, 4); FIELD(wh_hello, frame_bytes_max, 20, 4);
FIELD(wh_hello, fds_max, 24, 4); FIELD(wh_hello, segments_max, 28, 4); FIELD(wh_hello, mapped_bytes_max, 32, 8);
FIELD(wh_hello, message_bytes_max, 40, 8); FIELD(wh_hello, streams_max, 48, 4); FIELD(wh_hello, calls_max, 52, 4);
FIELD(wh_hello, stream_credit_bytes, 56, 8); FIELD(wh_hello, window_frames, 64, 4); FIELD(wh_hello, zero, 68, 4);
FIELD(wh_hello, reserved, 72, 8); FIELD(wh_hello, name, 80, 64);

SIZE(wh_credit, 32);
FIELD(wh_credit, record, 0, 8); FIELD(wh_credit, id, 8, 8); FIELD(wh_credit, bytes, 16, 8);
FIELD(wh_credit, kind, 24, 4); FIELD(wh_credit, zero, 28, 4);

SIZE(wh_announce, 16);
FIELD(wh_announce, record, 0, 8); FIELD(wh_announce, slot, 8, 2); FIELD(wh_announce, chunk_shift, 10, 1);
FIELD(wh_announce, flags, 11, 1); FIELD(wh_announce, n_chunks, 12, 4);

SIZE(wh_slot_record, 16);
FIELD(wh_slot_record, record, 0, 8); FIELD(wh_slot_record, slot, 8, 2); FIELD(wh_slot_record, acknowledged, 10, 2);
FIELD(wh_slot_record, zero, 12, 4);

SIZE(wh_cancel, 24);
FIELD(wh_cancel, record, 0, 8); FIELD(wh_cancel, call, 8, 8); FIELD(wh_cancel, code, 16, 4);
FIELD(wh_cancel, app_code, 20, 4);

SIZE(wh_abort, 24);
FIELD(wh_abort, record, 0, 8); FIELD(wh_abort, stream, 8, 4); FIELD(wh_abort, app_code, 12, 4);
FIELD(wh_abort, code, 16, 4); FIELD(wh_abort, zero, 20, 4);

SIZE(wh_port_record, 16);
FIELD(wh_port_record, record, 0, 8); FIELD(wh_port_record, type, 8, 4); FIELD(wh_port_record, stream, 12, 4);

SIZE(wh_bye, 144);
FIELD(wh_bye, record, 0, 8); FIELD(wh_bye, code, 8, 4); FIELD(wh_bye, app_code, 12, 4); FIELD(wh_bye, last_call, 16, 8);
FIELD(wh_bye, text, 24, 120);

static_assert(WH_RECORD_BYE == 13 && WH_RECORD_KINDS == 14, "kinds are numbered as specified");
static_assert(WH_FRAME_BYTES_MAX / sizeof(struct wh_record) <= UINT16_MAX, "n_records cannot overflow");

enum {
	ITEM_ALIGNMENT = 8,
	ALIGNED_ALIGNMENT = 64,
	RUN_CHUNKS_MAX = 64,
	MESSAGE_FLAGS = WH_RECORD_FIRST | WH_RECORD_LAST | WH_RECORD_FDS | WH_RECORD_END | WH_RECORD_DELEGATED,
	WHOLE = WH_RECORD_FIRST | WH_RECORD_LAST,
};

/* Fixed sizes and descriptors of the control kinds; 0 bytes: no control kind. */
static const struct {
	uint8_t bytes;
	uint8_t n_fds;
} control_kinds[WH_RECORD_KINDS] = {
	[WH_RECORD_HELLO] = { sizeof(struct wh_hello), 0 },
	[WH_RECORD_CANCEL] = { sizeof(struct wh_cancel), 0 },
	[WH_RECORD_CREDIT] = { sizeof(struct wh_credit), 0 },
	[WH_RECORD_ANNOUNCE] = { sizeof(struct wh_announce), 2 },
	[WH_RECORD_ANNOUNCE_REQUEST] = { sizeof(struct wh_slot_record), 0 },
	[WH_RECORD_RETIRE] = { sizeof(struct wh_slot_record), 0 },
	[WH_RECORD_WAKE] = { sizeof(struct wh_record), 0 },
	[WH_RECORD_PORT] = { sizeof(struct wh_port_record), 1 },
	[WH_RECORD_ABORT] = { sizeof(struct wh_abort), 0 },
	[WH_RECORD_BYE] = { sizeof(struct wh_bye), 0 },
};

static inline uint64_t round_up(uint64_t n, uint64_t alignment)
{
	return (n + alignment - 1) & ~(alignment - 1);
}

/* Where inline bytes begin when what is before them ends at `end`; both from the start of the frame. */
static inline uint64_t inline_begin(uint64_t end, bool aligned)
{
	return round_up(end, aligned ? ALIGNED_ALIGNMENT : ITEM_ALIGNMENT);
}

/* Bytes before the items. */
static inline uint32_t message_head_bytes(uint8_t kind, uint8_t flags)
{
	return (uint32_t)sizeof(struct wh_message_record) + ((flags & WHOLE) != WHOLE ? 8u : 0u) +
		(kind != WH_RECORD_MESSAGE ? 8u : 0u) + (flags & WH_RECORD_FDS ? 8u : 0u);
}

/* What is wrong with the flags of MESSAGE, CALL or REPLY, or with its word `stream` for them; NULL: nothing. */
static const char *message_flags_fault(uint8_t kind, uint8_t flags, uint32_t stream)
{
	const bool last = flags & WH_RECORD_LAST, end = flags & WH_RECORD_END;
	if (flags & ~MESSAGE_FLAGS)
		return "message: unknown flags";
	if (end && !last)
		return "message: END before its last fragment";
	if (flags & WH_RECORD_FDS && !(flags & WH_RECORD_FIRST))
		return "message: descriptors behind its first fragment";
	if (flags & WH_RECORD_DELEGATED && kind != WH_RECORD_CALL)
		return "message: DELEGATED, but no call";
	if (flags & WH_RECORD_DELEGATED && !(flags & WH_RECORD_FDS))
		return "call: DELEGATED without descriptors";
	if (kind == WH_RECORD_CALL)
		return stream ? "call: stream not zero" : NULL;
	if (kind == WH_RECORD_REPLY)
		return stream && !end ? "reply: status without END" : NULL;
	if (end && !stream)
		return "message: END of no stream";
	return last && stream && !end ? "message: last fragment of a stream without END" : NULL;
}

/* ---- Encode ---- */

static inline uint8_t message_flags(const struct wh_message_out *m)
{
	return (uint8_t)((m->flags & ~WH_RECORD_FDS) | (m->n_fds ? WH_RECORD_FDS : 0));
}

uint32_t wh_message_head(const struct wh_message_out *m)
{
	return message_head_bytes(m->kind, message_flags(m)) + m->n_pieces * (uint32_t)sizeof(struct wh_run);
}

uint64_t wh_message_size(const struct wh_message_out *m)
{
	uint64_t before = 0;
	uint64_t end = wh_message_head(m);
	for (uint32_t i = 0; i < m->n_pieces; i++) {
		const struct wh_piece *const p = &m->pieces[i];
		if (p->run)
			continue;
		/* Only the first rounding to 64 depends on where the record begins: take the worst, go on from it. */
		if (p->aligned && !before) {
			before = round_up(end, ITEM_ALIGNMENT) + ALIGNED_ALIGNMENT - ITEM_ALIGNMENT;
			end = 0;
		}
		end = inline_begin(end, p->aligned) + p->size;
	}
	return before + round_up(end, ITEM_ALIGNMENT);
}

/* Where the record ends that begins at `begin`, from the start of the frame. */
static uint64_t message_end(const struct wh_message_out *m, uint32_t begin, uint32_t head)
{
	uint64_t end = begin + head + m->n_pieces * sizeof(struct wh_run);
	for (uint32_t i = 0; i < m->n_pieces; i++)
		if (!m->pieces[i].run)
			end = inline_begin(end, m->pieces[i].aligned) + m->pieces[i].size;
	return round_up(end, ITEM_ALIGNMENT);
}

/* What rounding skips: nothing, most of the time. */
static inline void put_zeros(unsigned char *from, const unsigned char *to)
{
	if (from != to)
		memset(from, 0, (size_t)(to - from));
}

static inline unsigned char *put(unsigned char *at, const void *from, size_t bytes)
{
	memcpy(at, from, bytes);
	return at + bytes;
}

bool wh_encode_message(struct wh_encoder *e, const struct wh_message_out *m)
{
	const uint8_t flags = message_flags(m);
	const uint32_t begin = e->size, head = message_head_bytes(m->kind, flags);

	if (wh_unlikely(m->kind == WH_RECORD_PORT)) {
		wh_assert(m->n_fds == 1 && !m->n_pieces);
		return wh_encode_control(
			e, WH_RECORD_PORT, &(struct wh_port_record){ .type = m->type, .stream = m->stream }, 1);
	}
	wh_assert(m->kind >= WH_RECORD_MESSAGE && m->kind <= WH_RECORD_REPLY);
	wh_assert(!message_flags_fault(m->kind, flags, m->stream));
	wh_assert(m->n_pieces <= WH_WIRE_ITEMS_MAX && m->n_fds <= WH_WIRE_FDS_MAX);
	wh_assert(m->kind == WH_RECORD_MESSAGE || m->call);

	const uint64_t end = message_end(m, begin, head);
	if (wh_unlikely(end > e->capacity))
		return false;
	const uint32_t size = (uint32_t)end - begin;
	unsigned char *const record = wh_encode_room(e, size);
	if (wh_unlikely(!record))
		return false;
	e->n_fds = m->n_fds;

	const struct wh_message_record fixed = {
		.record = { .kind = m->kind, .flags = flags, .n_items = m->n_pieces, .size = size },
		.type = m->type,
		.stream = m->stream,
	};
	unsigned char *at = put(record, &fixed, sizeof fixed);
	if ((flags & WHOLE) != WHOLE)
		at = put(at, &m->position, sizeof m->position);
	if (m->kind != WH_RECORD_MESSAGE)
		at = put(at, &m->call, sizeof m->call);
	if (m->n_fds)
		at = put(at, &(uint32_t[2]){ m->n_fds, 0 }, 2 * sizeof(uint32_t));

	unsigned char *inline_end = at + m->n_pieces * sizeof(struct wh_run);
	for (uint32_t i = 0; i < m->n_pieces; i++) {
		const struct wh_piece *const p = &m->pieces[i];
		if (p->run) {
			wh_assert(p->run->n_chunks);
			at = put(at, p->run, sizeof *p->run);
			continue;
		}
		unsigned char *const bytes = e->base + inline_begin((uint64_t)(inline_end - e->base), p->aligned);
		at = put(at, &(struct wh_run){
			.flags = p->aligned ? WH_RUN_ALIGNED : 0,
			.first = (uint32_t)(bytes - record),
			.size = p->size,
		}, sizeof(struct wh_run));
		put_zeros(inline_end, bytes);
		if (p->size)
			memcpy(bytes, p->bytes, p->size);
		inline_end = bytes + p->size;
	}
	put_zeros(inline_end, record + size);
	return true;
}

bool wh_encode_control(struct wh_encoder *e, enum wh_record_kind kind, void *record, uint16_t n_fds)
{
	wh_assert(kind < WH_RECORD_KINDS && control_kinds[kind].bytes && control_kinds[kind].n_fds == n_fds);

	const uint32_t size = control_kinds[kind].bytes;
	unsigned char *const at = wh_encode_room(e, size);
	if (!at)
		return false;
	e->n_fds = n_fds;
	const struct wh_record head = { .kind = (uint8_t)kind, .size = size };
	put(put(at, &head, sizeof head), (const unsigned char *)record + sizeof head, size - sizeof head);
	return true;
}

uint32_t wh_encode_end(struct wh_encoder *e, uint64_t turn_ns, uint64_t consumed)
{
	const struct wh_frame head = {
		.magic = WH_WIRE_MAGIC,
		.version = WH_WIRE_VERSION,
		.flags = e->flags,
		.n_records = e->n_records,
		.n_fds = e->n_fds,
		.size = e->size,
		.turn_ns = turn_ns,
		.consumed = consumed,
	};
	memcpy(e->base, &head, sizeof head);
	return e->size;
}

static inline bool printable(unsigned char c)
{
	return c >= 0x20 && c <= 0x7e;
}

void wh_wire_text(char *to, size_t to_bytes, const char *from)
{
	size_t n = 0;
	for (; n + 1 < to_bytes && from[n]; n++)
		to[n] = printable((unsigned char)from[n]) ? from[n] : '?';
	memset(to + n, 0, to_bytes - n);
}

/* ---- Decode: functions named _fault return what is wrong, NULL if nothing is ---- */

struct check {
	const struct wh_decode_limits *limits;
	const unsigned char *frame;
	uint32_t n_fds; /* of the record just checked */
	bool any_retired;
	uint64_t retired[WH_WIRE_SLOTS_MAX / 64]; /* slots, by records of this frame */
};

static inline bool is_retired(const struct check *c, uint16_t slot)
{
	return c->retired[slot / 64] >> slot % 64 & 1;
}

static bool text_valid(const char *text, size_t bytes)
{
	size_t n = 0;
	while (n < bytes && printable((unsigned char)text[n]))
		n++;
	if (n == bytes)
		return false;
	while (n < bytes && !text[n])
		n++;
	return n == bytes;
}

/* What rounding to 64 or less has skipped. */
static inline bool skipped_zero(const unsigned char *from, const unsigned char *to)
{
	static const unsigned char zeros[ALIGNED_ALIGNMENT];
	return from == to || !memcmp(from, zeros, (size_t)(to - from));
}

/* n_chunks is not 0. */
static inline const char *run_fault(const struct wh_run *run, const struct wh_geometry *slots)
{
	if (wh_unlikely(run->slot >= WH_WIRE_SLOTS_MAX))
		return "run: slot out of range";
	const struct wh_geometry *const g = &slots[run->slot];
	const uint32_t n = run->n_chunks;
	if (wh_unlikely(n > RUN_CHUNKS_MAX))
		return "run: more than 64 chunks";
	if (wh_unlikely(run->flags))
		return "run: unknown flags";
	if (wh_unlikely(!g->n_chunks))
		return "run: slot not announced";
	if (wh_unlikely((uint64_t)run->first + n > g->n_chunks))
		return "run: beyond its segment";
	uint32_t low = n - 1; /* smeared: the next power of two, less 1 */
	low |= low >> 1;
	low |= low >> 2;
	low |= low >> 4;
	if (wh_unlikely(run->first & low))
		return "run: not at a multiple of its length";
	if (wh_unlikely(!run->size))
		return "run: no bytes";
	if (wh_unlikely((uint64_t)run->offset + run->size > (uint64_t)n << g->chunk_shift))
		return "run: bytes beyond its chunks";
	return NULL;
}

/* Does a run before `last` have a chunk of it? Quadratic, but a record has 64 items at most. */
static bool chunk_twice(const struct wh_run *runs, const struct wh_run *last)
{
	for (const struct wh_run *r = runs; r < last; r++)
		if (r->n_chunks && r->slot == last->slot && r->first < last->first + last->n_chunks &&
				last->first < r->first + r->n_chunks)
			return true;
	return false;
}

static const char *message_fault(struct check *c, const struct wh_record *r)
{
	if (r->size < sizeof(struct wh_message_record))
		return "message: shorter than its fields";
	const char *why = message_flags_fault(r->kind, r->flags, ((const struct wh_message_record *)r)->stream);
	if (why)
		return why;
	if (r->n_items > WH_WIRE_ITEMS_MAX)
		return "message: more than 64 items";
	if (r->size < message_head_bytes(r->kind, r->flags) + r->n_items * sizeof(struct wh_run))
		return "message: shorter than its fields";

	const struct wh_message_in m = wh_message_read(r);
	if (r->kind != WH_RECORD_MESSAGE && !m.call)
		return "message: no call id";
	if (r->flags & WH_RECORD_FDS) {
		const uint32_t fds_max = c->limits->fds_max + (r->flags & WH_RECORD_DELEGATED ? 1 : 0);
		if (!m.n_fds || m.n_fds > fds_max || m.n_fds > WH_WIRE_FDS_MAX)
			return "message: number of descriptors out of range";
		if (!skipped_zero((const unsigned char *)m.runs - 4, (const unsigned char *)m.runs))
			return "message: padding not zero";
	}
	c->n_fds = m.n_fds;

	const uint64_t begin = (uint64_t)((const unsigned char *)r - c->frame), record_end = begin + r->size;
	uint64_t bytes = 0, end = (uint64_t)((const unsigned char *)(m.runs + r->n_items) - c->frame);
	for (const struct wh_run *item = m.runs; item < m.runs + r->n_items; item++) {
		bytes += item->size;
		if (item->n_chunks) {
			why = run_fault(item, c->limits->slots);
			if (why)
				return why;
			if (chunk_twice(m.runs, item))
				return "run: a chunk twice in one record";
			continue;
		}
		if (item->flags & ~WH_RUN_ALIGNED)
			return "inline: unknown flags";
		if (item->slot || item->offset)
			return "inline: slot or offset not zero";
		const uint64_t at = begin + item->first;
		if (at != inline_begin(end, item->flags & WH_RUN_ALIGNED))
			return "inline: bytes out of place";
		if (at + item->size > record_end)
			return "inline: bytes beyond the record";
		if (!skipped_zero(c->frame + end, c->frame + at))
			return "inline: padding not zero";
		end = at + item->size;
	}
	if (round_up(end, ITEM_ALIGNMENT) != record_end)
		return "message: longer than its items";
	if (!skipped_zero(c->frame + end, c->frame + record_end))
		return "inline: padding not zero";

	if ((r->flags & WHOLE) == WHOLE)
		return bytes > c->limits->message_bytes_max ? "message: larger than we take" : NULL;
	if (r->flags & WH_RECORD_FIRST)
		return bytes > m.position ? "message: fragment larger than the whole" : NULL;
	return bytes > UINT64_MAX - m.position ? "message: position wraps" : NULL;
}

static const char *hello_fault(const struct check *c, const struct wh_hello *h)
{
	if (c->limits->said_hello)
		return "hello: a second one";
	if (h->version_min > h->version_max)
		return "hello: version_min above version_max";
	if (h->frame_bytes_max < WH_FRAME_BYTES_MIN || h->frame_bytes_max > WH_FRAME_BYTES_MAX)
		return "hello: frame_bytes_max out of range";
	if (h->zero || h->reserved)
		return "hello: reserved not zero";
	return text_valid(h->name, sizeof h->name) ? NULL : "hello: name not printable, or no zeros behind";
}

static const char *credit_fault(const struct wh_credit *credit)
{
	if (credit->kind < WH_RECORD_MESSAGE || credit->kind > WH_RECORD_REPLY)
		return "credit: unknown kind";
	if (!credit->id || (credit->kind == WH_RECORD_MESSAGE && credit->id > UINT32_MAX))
		return "credit: id out of range";
	if (credit->zero)
		return "credit: padding not zero";
	return credit->bytes ? NULL : "credit: no bytes";
}

static const char *announce_fault(const struct check *c, const struct wh_announce *a)
{
	if (a->slot >= WH_WIRE_SLOTS_MAX)
		return "announce: slot out of range";
	if (a->flags & ~WH_ANNOUNCE_HUGE)
		return "announce: unknown flags";
	if (a->chunk_shift < WH_WIRE_CHUNK_SHIFT_MIN || a->chunk_shift > WH_WIRE_CHUNK_SHIFT_MAX)
		return "announce: chunk size out of range";
	if (!a->n_chunks || a->n_chunks > (uint32_t)WH_WIRE_SEGMENT_BYTES_MAX >> a->chunk_shift)
		return "announce: number of chunks out of range";
	if (is_retired(c, a->slot))
		return "announce: slot retired in this frame";
	const struct wh_geometry *const g = &c->limits->slots[a->slot];
	if (!g->n_chunks)
		return NULL;
	if (!g->asked)
		return "announce: slot taken";
	if (a->n_chunks != g->n_chunks || a->chunk_shift != g->chunk_shift)
		return "announce: not what was announced before";
	return NULL;
}

static const char *slot_fault(struct check *c, const struct wh_slot_record *s)
{
	const bool retire = s->record.kind == WH_RECORD_RETIRE;
	if (s->slot >= WH_WIRE_SLOTS_MAX)
		return "slot: out of range";
	if (s->acknowledged > (retire ? 1 : 0))
		return "slot: acknowledged out of range";
	if (s->zero)
		return "slot: padding not zero";
	if (!retire || s->acknowledged)
		return NULL;
	if (!c->limits->slots[s->slot].n_chunks)
		return "retire: slot not announced";
	if (is_retired(c, s->slot))
		return "retire: a slot twice";
	c->any_retired = true;
	c->retired[s->slot / 64] |= UINT64_C(1) << s->slot % 64;
	return NULL;
}

/*
 * Control records may overtake messages that wait: the port unmaps what a message of the same frame reads, before it
 * or behind it. For frames that retire something, whose records are valid.
 */
static __attribute__((noinline)) const char *retired_run_fault(const struct check *c, const struct wh_frame *f)
{
	const struct wh_record *r = wh_frame_first(f);
	for (uint32_t records = f->n_records; records; records--, r = wh_record_next(r)) {
		if (control_kinds[r->kind].bytes)
			continue;
		const struct wh_run *const runs = wh_message_read(r).runs;
		for (const struct wh_run *run = runs; run < runs + r->n_items; run++)
			if (run->n_chunks && is_retired(c, run->slot))
				return "retire: a run of the slot in the same frame";
	}
	return NULL;
}

static const char *control_fault(struct check *c, const struct wh_record *r)
{
	if (r->flags)
		return "record: unknown flags";
	if (r->n_items)
		return "record: items in a control record";
	if (r->size != control_kinds[r->kind].bytes)
		return "record: size not of its kind";
	c->n_fds = control_kinds[r->kind].n_fds;

	switch (r->kind) {
	case WH_RECORD_HELLO:
		return hello_fault(c, (const struct wh_hello *)r);
	case WH_RECORD_CANCEL: {
		const struct wh_cancel *const cancel = (const struct wh_cancel *)r;
		if (cancel->code < WH_CANCEL_CALLER || cancel->code > WH_CANCEL_CLOSING)
			return "cancel: unknown code";
		return cancel->call ? NULL : "cancel: no call id";
	}
	case WH_RECORD_CREDIT:
		return credit_fault((const struct wh_credit *)r);
	case WH_RECORD_ABORT: {
		const struct wh_abort *const abort = (const struct wh_abort *)r;
		if (abort->code < WH_ABORT_SENDER || abort->code > WH_ABORT_DONE)
			return "abort: unknown code";
		if (abort->zero)
			return "abort: padding not zero";
		return abort->stream ? NULL : "abort: of no stream";
	}
	case WH_RECORD_ANNOUNCE:
		return announce_fault(c, (const struct wh_announce *)r);
	case WH_RECORD_ANNOUNCE_REQUEST:
	case WH_RECORD_RETIRE:
		return slot_fault(c, (const struct wh_slot_record *)r);
	case WH_RECORD_BYE: {
		const struct wh_bye *const bye = (const struct wh_bye *)r;
		if (bye->code < WH_BYE_CLOSE || bye->code > WH_BYE_MISMATCH)
			return "bye: unknown code";
		return text_valid(bye->text, sizeof bye->text) ? NULL : "bye: text not printable, or no zeros behind";
	}
	case WH_RECORD_PORT:
		return c->limits->fds_max ? NULL : "port: we take no descriptors";
	default: /* WAKE: nothing in it can be wrong */
		return NULL;
	}
}

static __attribute__((noinline)) const char *record_fault(struct check *c, const struct wh_record *r, size_t left)
{
	if (left < sizeof *r)
		return "frame: fewer records than it says";
	if (r->kind < WH_RECORD_HELLO || r->kind >= WH_RECORD_KINDS)
		return "record: unknown kind";
	if (r->size % 8)
		return "record: size not a multiple of 8";
	if (r->size > left)
		return "record: larger than the rest of its frame";
	return control_kinds[r->kind].bytes ? control_fault(c, r) : message_fault(c, r);
}

static const char *header_fault(const struct wh_frame *f, size_t size, uint32_t n_fds, bool fds_lost,
	const struct wh_decode_limits *limits)
{
	if (size > limits->frame_bytes_max)
		return "frame: larger than we take";
	if (f->size != size)
		return "frame: size not the datagram's";
	if (f->flags & ~WH_FRAME_TELL)
		return "frame: unknown flags";
	if (f->zero)
		return "frame: padding not zero";
	if (fds_lost ? f->n_fds < n_fds : f->n_fds != n_fds)
		return "frame: number of descriptors not what came";
	if (!limits->said_hello) {
		const struct wh_record *const r = wh_frame_first(f);
		if (f->n_records != 1 || size < sizeof *f + sizeof *r ||
				(r->kind != WH_RECORD_HELLO && r->kind != WH_RECORD_BYE))
			return "frame: no hello yet";
	}
	return NULL;
}

/* One whole message of the port's own with one item. In a busy frame nearly every record is such a one. */
struct hot {
	struct wh_message_record message;
	struct wh_run item;
};
static const struct wh_record hot_run = { WH_RECORD_MESSAGE, WHOLE, 1, sizeof(struct hot) };
static const struct wh_run hot_inline = { .first = sizeof(struct hot) };

/* Surely valid, but for the limit for messages: plain bytes in a whole message. If not, record_fault knows why. */
static inline bool inline_valid(const struct hot *h, size_t left)
{
	const unsigned char *const bytes = (const unsigned char *)(h + 1);
	const uint32_t size = h->message.record.size;
	return !memcmp(h, &hot_run, offsetof(struct wh_record, size)) &&
		!memcmp(&h->item, &hot_inline, offsetof(struct wh_run, size)) && !h->message.stream && size <= left &&
		sizeof *h + round_up(h->item.size, ITEM_ALIGNMENT) == size &&
		skipped_zero(bytes + h->item.size, bytes + size - sizeof *h);
}

static const char *records_fault(const struct wh_frame *f, const struct wh_decode_limits *limits)
{
	struct check c = { .limits = limits, .frame = (const unsigned char *)f };
	const struct wh_geometry *const slots = limits->slots;
	const uint64_t bytes_max = limits->message_bytes_max;
	const unsigned char *at = c.frame + sizeof *f, *const end = c.frame + f->size;
	for (uint32_t records = f->n_records; records; records--) {
		const struct hot *const h = (const struct hot *)at;
		const size_t left = (size_t)(end - at);
		if (wh_likely(left >= sizeof *h && !memcmp(h, &hot_run, sizeof hot_run) && !h->message.stream &&
				h->item.n_chunks)) {
			const char *const why = run_fault(&h->item, slots);
			if (wh_unlikely(why))
				return why;
			if (wh_unlikely(h->item.size > bytes_max))
				return "message: larger than we take";
			at += sizeof *h;
			continue;
		}
		if (left >= sizeof *h && inline_valid(h, left) && h->item.size <= bytes_max) {
			at += h->message.record.size;
			continue;
		}
		const struct wh_record *const r = (const struct wh_record *)at;
		const char *const why = record_fault(&c, r, left);
		if (why)
			return why;
		if (c.n_fds && records > 1)
			return "frame: a record behind one with descriptors";
		at += r->size;
	}
	if (at != end)
		return "frame: bytes behind its last record";
	if (f->n_fds != c.n_fds)
		return "frame: number of descriptors not its last record's";
	return c.any_retired ? retired_run_fault(&c, f) : NULL;
}

int wh_frame_check(const void *frame, size_t size, uint32_t n_fds, bool fds_lost, const struct wh_decode_limits *limits,
	const char **ret_why)
{
	const struct wh_frame *const f = frame;
	if (size < sizeof *f) {
		*ret_why = "frame: shorter than its header";
		return -EPROTO;
	}
	if (f->magic != WH_WIRE_MAGIC) {
		*ret_why = "frame: wrong magic";
		return -EPROTO;
	}
	if (f->version != WH_WIRE_VERSION) {
		*ret_why = "frame: another version";
		return -EPROTONOSUPPORT;
	}
	const char *why = header_fault(f, size, n_fds, fds_lost, limits);
	if (!why)
		why = records_fault(f, limits);
	if (!why)
		return 0;
	*ret_why = why;
	return -EPROTO;
}
