/* SPDX-License-Identifier: MIT */
/* Frames and records: encode and decode as pure functions over memory. The format is specified in wire.c. */
#ifndef WH_WIRE_H
#define WH_WIRE_H

#include <string.h>

#include "base.h"

enum {
	/* "WHF1" in memory on a little-endian machine: the other byte order reads as garbage */
	WH_WIRE_MAGIC = 0x31464857,
	WH_WIRE_VERSION = 1,
	WH_FRAME_BYTES_MIN = 4096,
	WH_FRAME_BYTES_MAX = 65536,
	WH_WIRE_SLOTS_MAX = 256,
	WH_WIRE_FDS_MAX = 253,      /* per frame: the kernel's SCM_MAX_FD */
	WH_WIRE_ITEMS_MAX = 64,     /* per record */
	WH_WIRE_CHUNK_SHIFT_MIN = 8,
	WH_WIRE_CHUNK_SHIFT_MAX = 24,
	WH_WIRE_SEGMENT_BYTES_MAX = 1 << 30,
	WH_WIRE_NAME_BYTES = 64,
	WH_WIRE_TEXT_BYTES = 120,
};

enum wh_record_kind {
	WH_RECORD_HELLO = 1,
	WH_RECORD_MESSAGE,          /* plain, or of a stream */
	WH_RECORD_CALL,
	WH_RECORD_REPLY,
	WH_RECORD_CANCEL,
	WH_RECORD_CREDIT,
	WH_RECORD_ANNOUNCE,         /* two fds: segment, release map */
	WH_RECORD_ANNOUNCE_REQUEST,
	WH_RECORD_RETIRE,           /* the owner asks the receiver to unmap a slot, or the receiver says it has */
	WH_RECORD_WAKE,
	WH_RECORD_PORT,             /* one fd: an end never opened */
	WH_RECORD_ABORT,
	WH_RECORD_BYE,
	WH_RECORD_KINDS,
};

enum { /* wh_record.flags of MESSAGE, CALL, REPLY */
	WH_RECORD_FIRST = 1u << 0,  /* first fragment */
	WH_RECORD_LAST = 1u << 1,   /* last fragment; whole messages carry both */
	WH_RECORD_FDS = 1u << 2,    /* the word n_fds is there */
	WH_RECORD_END = 1u << 3,    /* the stream, or this direction of the call, ends with this message */
	WH_RECORD_DELEGATED = 1u << 4, /* CALL: its first descriptor is an end of a fresh pair, for the answer */
};

/* wh_frame.flags: its reader reports `consumed` in time, as after descriptors */
enum { WH_FRAME_TELL = 1u << 0 };

/* inline bytes that lie at a multiple of 64 of the frame: the plain path of a claimed buffer */
enum { WH_RUN_ALIGNED = 1u << 0 };

struct wh_frame {
	uint32_t magic;
	uint8_t version;
	uint8_t flags;              /* WH_FRAME_TELL */
	uint16_t n_records;
	uint16_t n_fds;
	uint16_t zero;
	uint32_t size;              /* of the whole datagram */
	uint64_t turn_ns;           /* when the sender's turn began, CLOCK_MONOTONIC */
	uint64_t consumed;          /* data frames from its peer that the sender has read since the port opened */
};

struct wh_record {
	uint8_t kind;
	uint8_t flags;
	uint16_t n_items;           /* wh_run entries behind the fixed part; 0 for control records */
	uint32_t size;              /* this record with everything in it; a multiple of 8 */
};

/* One piece of a payload: chunks of a segment, or (n_chunks 0) bytes inside the record. Travels as it is. */
struct wh_run {
	uint16_t slot;              /* inline: 0 */
	uint8_t n_chunks;           /* 1 to 64, or 0: inline */
	uint8_t flags;              /* WH_RUN_ALIGNED, inline only */
	/* First chunk, a multiple of n_chunks rounded up to a power of two; inline: from the start of the record to the
	 * bytes. */
	uint32_t first;
	uint32_t offset;            /* from the start of the run to the payload; inline: 0 */
	uint32_t size;              /* of the payload; 0 only inline */
};

/* The bits of a run in its word of 64 chunks. */
static inline uint64_t wh_run_mask(const struct wh_run *run)
{
	return (~0ull >> (64 - run->n_chunks)) << (run->first % 64);
}

/* The fixed part of MESSAGE, CALL and REPLY. Then, in this order, each if its condition holds:
 * u64 position (not both FIRST and LAST); u64 call id (CALL, REPLY); u32 n_fds and u32 zero (FDS); then the runs, then
 * inline bytes. */
struct wh_message_record {
	struct wh_record record;
	uint32_t type;
	uint32_t stream;            /* MESSAGE: 0 is the port's own; CALL: 0; REPLY: the status, 0 without END */
};

enum { /* wh_hello.features */
	WH_FEATURE_HUGE = 1u << 0,  /* maps segments on huge pages */
	WH_FEATURE_PIECES = 1u << 1, /* takes messages of any size, in pieces */
};

struct wh_hello {
	struct wh_record record;
	uint16_t version_min, version_max;
	uint32_t features;          /* bits this side has */
	uint32_t features_required; /* bits it cannot do without */
	uint32_t frame_bytes_max;   /* largest frame it receives */
	uint32_t fds_max;           /* application fds per message it takes */
	uint32_t segments_max;      /* slots it maps */
	uint64_t mapped_bytes_max;
	uint64_t message_bytes_max; /* reassembled whole; without meaning if it has PIECES */
	uint32_t streams_max;       /* under reassembly at once */
	uint32_t calls_max;
	uint64_t stream_credit_bytes; /* a stream's first credit */
	/* data frames that this side sends ahead; the peer reports what it has read in time for that */
	uint32_t window_frames;
	uint32_t zero;
	uint64_t reserved;
	char name[WH_WIRE_NAME_BYTES]; /* printable ASCII, NUL-terminated, zeros behind */
};

struct wh_credit {
	struct wh_record record;
	uint64_t id;                /* of a stream or of a call */
	uint64_t bytes;             /* may be sent beyond what could be */
	uint32_t kind;              /* of the records that may be sent for it: MESSAGE, CALL or REPLY */
	uint32_t zero;
};
struct wh_announce { struct wh_record record; uint16_t slot; uint8_t chunk_shift; uint8_t flags; uint32_t n_chunks; };
enum { WH_ANNOUNCE_HUGE = 1u << 0 };
/* ANNOUNCE_REQUEST, RETIRE */
struct wh_slot_record { struct wh_record record; uint16_t slot; uint16_t acknowledged; uint32_t zero; };
struct wh_port_record { struct wh_record record; uint32_t type; uint32_t stream; };

enum wh_cancel_code {
	WH_CANCEL_CALLER = 1,       /* the caller has given up */
	WH_CANCEL_NO_REPLY,
	WH_CANCEL_REFUSED,
	WH_CANCEL_ABORTED,          /* by the one who answers */
	WH_CANCEL_CLOSING,          /* it was not accepted: its end is closing */
};
struct wh_cancel {
	struct wh_record record;
	uint64_t call;
	uint32_t code;              /* enum wh_cancel_code */
	uint32_t app_code;          /* with REFUSED and ABORTED */
};

enum wh_abort_code {
	WH_ABORT_SENDER = 1,        /* its sender gives it up */
	WH_ABORT_READER,            /* its reader wants no more */
	WH_ABORT_VIOLATION,         /* its reader says that it broke the rules */
	WH_ABORT_ROOM,              /* its reader has no room for it */
	WH_ABORT_DONE,              /* its reader has had all of it */
};
struct wh_abort {
	struct wh_record record;
	uint32_t stream;
	uint32_t app_code;
	uint32_t code;              /* enum wh_abort_code */
	uint32_t zero;
};

enum wh_bye_code { WH_BYE_CLOSE = 1, WH_BYE_ABORT, WH_BYE_REFUSED, WH_BYE_MISMATCH };
struct wh_bye {
	struct wh_record record;
	uint32_t code;              /* enum wh_bye_code */
	uint32_t app_code;          /* with ABORT */
	uint64_t last_call;         /* the last call accepted; 0: none */
	char text[WH_WIRE_TEXT_BYTES]; /* printable ASCII, NUL-terminated, zeros behind */
};

/* ---- Encode: a frame under construction in memory of the caller ---- */

struct wh_encoder {
	unsigned char *base;        /* 64-aligned */
	uint32_t size;              /* so far, header included */
	uint32_t capacity;
	uint16_t n_records;
	uint16_t n_fds;             /* of its last record: it ends the frame */
	uint8_t flags;              /* of the frame: for whoever encodes to set, until wh_encode_end */
};

static inline void wh_encode_begin(struct wh_encoder *e, void *memory, uint32_t capacity)
{
	*e = (struct wh_encoder){ .base = memory, .size = sizeof(struct wh_frame), .capacity = capacity };
}

static inline bool wh_encoder_empty(const struct wh_encoder *e) { return e->n_records == 0; }
/* A record with fds ends its frame. */
static inline bool wh_encoder_ended(const struct wh_encoder *e) { return e->n_fds != 0; }

static inline bool wh_encoder_takes(const struct wh_encoder *e, uint32_t size)
{
	return e->capacity - e->size >= size && !e->n_fds && e->n_records != UINT16_MAX;
}

/*
 * Room for a record of `size` (a multiple of 8), counted; NULL: it does not fit, or the frame has ended. Uninitialised.
 */
static inline void *wh_encode_room(struct wh_encoder *e, uint32_t size)
{
	if (wh_unlikely(!wh_encoder_takes(e, size)))
		return NULL;
	void *at = e->base + e->size;
	e->size += size;
	e->n_records++;
	return at;
}

/* The hot case: one whole plain message in one run, which fits for certain (wh_encoder_takes). The caller fills the run. */
static inline struct wh_run *wh_encode_run_place(struct wh_encoder *e, uint32_t type)
{
	struct { struct wh_message_record message; struct wh_run run; } *r = (void *)(e->base + e->size);
	e->size += (uint32_t)sizeof *r;
	e->n_records++;
	r->message.record = (struct wh_record){ WH_RECORD_MESSAGE, WH_RECORD_FIRST | WH_RECORD_LAST, 1, sizeof *r };
	r->message.type = type;
	r->message.stream = 0;
	return &r->run;
}

/* The same for one that may not fit. False: no room. */
static inline bool wh_encode_run(struct wh_encoder *e, uint32_t type, const struct wh_run *run)
{
	if (wh_unlikely(!wh_encoder_takes(e, sizeof(struct wh_message_record) + sizeof(*run))))
		return false;
	*wh_encode_run_place(e, type) = *run;
	return true;
}

/* What one plain message of `size` bytes takes, all inline. */
static inline uint32_t wh_bytes_record_size(uint32_t size)
{
	return (uint32_t)sizeof(struct wh_message_record) + (uint32_t)sizeof(struct wh_run) + ((size + 7) & ~7u);
}

/* The other hot case: one whole plain message of bytes. size is at most WH_FRAME_BYTES_MAX. False: no room. */
static inline bool wh_encode_bytes(struct wh_encoder *e, uint32_t type, const void *bytes, uint32_t size)
{
	const uint32_t record_size = wh_bytes_record_size(size);
	struct { struct wh_message_record message; struct wh_run run; unsigned char bytes[]; } *r =
		wh_encode_room(e, record_size);
	if (wh_unlikely(!r))
		return false;
	r->message.record =
		(struct wh_record){ WH_RECORD_MESSAGE, WH_RECORD_FIRST | WH_RECORD_LAST, 1, record_size };
	r->message.type = type;
	r->message.stream = 0;
	r->run = (struct wh_run){ .first = sizeof(*r), .size = size };
	if (size) {
		/* The padding first, with the last bytes over it. */
		memset((unsigned char *)r + record_size - 8, 0, 8);
		memcpy(r->bytes, bytes, size);
	}
	return true;
}

/* One piece of an outgoing message: a run, or (run NULL) bytes to copy inline. */
struct wh_piece {
	const struct wh_run *run;
	const void *bytes;
	uint32_t size;              /* of bytes */
	bool aligned;               /* put the bytes at a multiple of 64 of the frame */
};

struct wh_message_out {
	uint8_t kind;               /* MESSAGE, CALL or REPLY; or PORT: n_fds 1, no pieces, and only type and stream count */
	uint8_t flags;              /* WH_RECORD_FIRST ... DELEGATED; WH_RECORD_FDS is set from n_fds */
	uint16_t n_pieces;
	uint16_t n_fds;
	uint32_t type;
	uint32_t stream;            /* REPLY: the status */
	/* total length in the first of several fragments, this fragment's offset in the others */
	uint64_t position;
	uint64_t call;
	const struct wh_piece *pieces;
};

/*
 * Size that the record takes, at the most: exact but for up to 56 bytes of padding before the first aligned bytes. What
 * is no larger than the capacity less the frame's header always fits an empty frame; call the rest too large.
 */
uint64_t wh_message_size(const struct wh_message_out *message);
/* Of that, what comes before the first item's bytes: the fixed part and the items. */
uint32_t wh_message_head(const struct wh_message_out *message);
/*
 * False: no room in this frame (nothing was written). The message must obey the rules of wire.c: asserted, not checked.
 */
bool wh_encode_message(struct wh_encoder *e, const struct wh_message_out *message);

/*
 * Control records: `record` is filled by the caller but for record.kind, .size, .flags and .n_items (WAKE is nothing
 * else). n_fds is the kind's: 2 for ANNOUNCE, 1 for PORT, else 0. False: no room in this frame (nothing was written).
 */
bool wh_encode_control(struct wh_encoder *e, enum wh_record_kind kind, void *record, uint16_t n_fds);

/* Writes the header; returns the size of the datagram. A frame without records is valid once both have said hello. */
uint32_t wh_encode_end(struct wh_encoder *e, uint64_t turn_ns, uint64_t consumed);

/* Fills a name or text field: printable ASCII of `from`, others as '?', truncated, terminated, zeros behind. */
void wh_wire_text(char *to, size_t to_bytes, const char *from);

/* ---- Decode ---- */

/* What the receiver knows of the peer's slots. */
struct wh_geometry {
	uint32_t n_chunks;          /* 0: not announced */
	uint8_t chunk_shift;
	bool asked;                 /* announced, but its fds were lost: the same announcement may come again */
};

struct wh_decode_limits {
	const struct wh_geometry *slots; /* WH_WIRE_SLOTS_MAX of them */
	uint32_t frame_bytes_max;   /* as told to the peer */
	uint32_t fds_max;           /* application fds per message, up to WH_WIRE_FDS_MAX; DELEGATED: one more */
	uint64_t message_bytes_max; /* of one that is not in fragments; UINT64_MAX: PIECES was said */
	/* the peer has: no second HELLO, and before it nothing but HELLO or BYE, alone in its frame */
	bool said_hello;
};

/*
 * Valid if and only if every rule in wire.c holds, for the whole frame; n_fds is what the kernel delivered, fds_lost
 * that it says some were dropped (n_fds may then be less than the header's). The frame must be 8-aligned private
 * memory. 0; -EPROTONOSUPPORT: ours but of another version; -EPROTO: *ret_why says which rule (static).
 */
int wh_frame_check(const void *frame, size_t size, uint32_t n_fds, bool fds_lost, const struct wh_decode_limits *limits,
	const char **ret_why);

/* For frames that passed wh_frame_check. */
static inline const struct wh_record *wh_frame_first(const void *frame)
{
	return (const struct wh_record *)((const char *)frame + sizeof(struct wh_frame));
}
static inline const struct wh_record *wh_frame_end(const void *frame)
{
	return (const struct wh_record *)((const char *)frame + ((const struct wh_frame *)frame)->size);
}
static inline const struct wh_record *wh_record_next(const struct wh_record *r)
{
	return (const struct wh_record *)((const char *)r + r->size);
}

/* A message record taken apart. */
struct wh_message_in {
	const struct wh_message_record *record;
	const struct wh_run *runs;
	uint64_t position;
	uint64_t call;
	uint32_t n_fds;
};

static inline struct wh_message_in wh_message_read(const struct wh_record *record)
{
	const char *at = (const char *)record + sizeof(struct wh_message_record);
	struct wh_message_in m = { .record = (const struct wh_message_record *)record };
	const uint8_t whole = WH_RECORD_FIRST | WH_RECORD_LAST;
	if (wh_unlikely((record->flags & whole) != whole)) {
		memcpy(&m.position, at, 8);
		at += 8;
	}
	if (wh_unlikely(record->kind != WH_RECORD_MESSAGE)) {
		memcpy(&m.call, at, 8);
		at += 8;
	}
	if (wh_unlikely(record->flags & WH_RECORD_FDS)) {
		memcpy(&m.n_fds, at, 4);
		at += 8;
	}
	m.runs = (const struct wh_run *)at;
	return m;
}

static inline bool wh_record_uses(const struct wh_record *record, uint16_t slot)
{
	const struct wh_run *runs = record->n_items ? wh_message_read(record).runs : NULL;

	for (unsigned i = 0; i < record->n_items; i++)
		if (runs[i].n_chunks && runs[i].slot == slot)
			return true;
	return false;
}

#endif
