/* SPDX-License-Identifier: MIT */
/* What fuzz-port does with streams and calls, on either side: plausible sequences, and wrong ones. */
#ifndef FUZZ_FLOWS_H
#define FUZZ_FLOWS_H

#include "harness.h"
#include "raw.h"
#include "wharf.h"

static struct harness_random random_state;

static uint64_t below(uint64_t n) { return harness_random_below(&random_state, n); }
static bool chance(unsigned in) { return !below(in); }

static struct {
	/* The application's. */
	uint64_t streams[8], calls[8]; /* ours and theirs, some of them stale */
	unsigned n_due;                /* done of parts by reference */
	unsigned n_calls, n_ends, n_late;
	bool closed;
	bool paused;                   /* a stream or call, which keeps the end waiting */
	/* The peer's: four streams, two calls, two replies. */
	struct { uint64_t id, position, total; bool begun; } sent[8];
	uint64_t n_sent_calls;
} flows;

/* ---- The application ---- */

static void done(const void *bytes, size_t size, void *user)
{
	(void)bytes;
	(void)size;
	(void)user;
	flows.n_due--;
}

static void on_end(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user)
{
	(void)port;
	(void)end;
	(void)user;
	flows.n_late += flows.closed;
	flows.n_ends++;
	flows.calls[below(8)] = id;
}

static inline void use_stream(wharf_port *port)
{
	static unsigned char bytes[70000];
	uint64_t *stream = &flows.streams[below(8)];
	struct wharf_part part = { .bytes = bytes, .size = below(chance(4) ? sizeof(bytes) : 500) };

	switch (below(8)) {
	case 0:
	case 1:
		(void)!wharf_stream_begin(port, 7, chance(2) ? WHARF_BYTES_UNKNOWN : below(100000), stream);
		break;
	case 2:
		(void)!wharf_stream_abort(port, *stream, 1);
		break;
	case 3:
		flows.paused |= !wharf_stream_pause(port, *stream);
		break;
	case 4:
		(void)!wharf_stream_resume(port, *stream);
		break;
	case 5:
		(void)!wharf_stream_end(port, *stream);
		break;
	default:
		part.done = chance(3) ? done : NULL;
		if (!wharf_stream_send(port, *stream, &(struct wharf_out){ .parts = &part, .n_parts = 1,
			    .flags = chance(5) ? WHARF_LAST : 0 }))
			flows.n_due += part.done != NULL;
	}
}

static inline void use_call(wharf_port *port)
{
	static unsigned char bytes[40000];
	uint64_t *call = &flows.calls[below(8)];
	struct wharf_part part = { .bytes = bytes, .size = below(chance(4) ? sizeof(bytes) : 500) };
	struct wharf_out out = { .parts = &part, .n_parts = 1, .flags = chance(3) ? WHARF_LAST : 0 };

	switch (below(7)) {
	case 0:
	case 1:
		flows.n_calls += !wharf_call(port, &out, WHARF_OPT(call, .on_end = on_end,
			.timeout_ns = chance(3) ? (int64_t)below(1000000) : 0), call);
		break;
	case 2:
		(void)!wharf_call_send(port, *call, &out);
		break;
	case 3:
		(void)!(chance(2) ? wharf_call_cancel(port, *call) : wharf_call_refuse(port, *call, 3));
		break;
	case 4:
		if (chance(2))
			(void)!wharf_call_resume(port, *call);
		else
			flows.paused |= !wharf_call_pause(port, *call);
		break;
	default:
		(void)!wharf_reply(port, *call, &out, 0);
	}
}

/* ---- The peer ---- */

/* A record of a stream or call: mostly the next one that an honest peer would send. */
static inline void put_flow(struct raw_frame *frame, const bool *announced)
{
	unsigned i = (unsigned)below(8);
	bool call = i >= 4, reply = i >= 6, odd = chance(60);
	uint16_t slot = (uint16_t)below(8);
	struct wh_run run = { .slot = slot, .n_chunks = 1, .first = (uint32_t)below(15), .size = 1 + (uint32_t)below(256) };
	static unsigned char bytes[4000];
	struct wh_piece piece = { .run = announced[slot] && chance(2) ? &run : NULL,
		.bytes = bytes, .size = (uint32_t)below(chance(5) ? sizeof(bytes) : 100) };
	uint64_t size = piece.run ? run.size : piece.size;
	bool first = !flows.sent[i].begun, last = odd ? chance(2) : chance(4);
	struct wh_message_out m = { .kind = reply ? WH_RECORD_REPLY : call ? WH_RECORD_CALL : WH_RECORD_MESSAGE,
		.type = 9, .n_pieces = 1, .pieces = &piece };

	flows.n_sent_calls++;
	if (first) {
		flows.sent[i].id = reply ? flows.calls[below(8)] & ~(UINT64_C(1) << 63)
			: call ? (flows.n_sent_calls << 16 | flows.n_sent_calls % 1000)
			       : ((flows.sent[i].id >> 12) + 1) << 12 | i;
		flows.sent[i].position = 0;
		flows.sent[i].total = last ? size : chance(2) ? UINT64_MAX : size + below(10000);
	} else if (flows.sent[i].total != UINT64_MAX && !odd) {
		uint64_t left = flows.sent[i].total - flows.sent[i].position;
		if (size > left) {
			piece.run = NULL;
			piece.size = (uint32_t)left;
			size = left;
		}
		last = size == left;
	}
	if (odd)
		first = chance(2);
	m.stream = call ? 0 : (uint32_t)flows.sent[i].id;
	m.call = !call ? 0 : odd ? 1 + below(5) : flows.sent[i].id;
	m.call += call && !m.call;
	m.flags = (uint8_t)((first ? WH_RECORD_FIRST : 0) | (last ? WH_RECORD_LAST : 0) |
		(last && (!call || chance(2)) ? WH_RECORD_END : 0));
	m.position = first ? flows.sent[i].total : odd ? below(UINT32_MAX) : flows.sent[i].position;
	if (first && m.position < size)
		m.position = UINT64_MAX;
	if (wh_encode_message(&frame->encoder, &m)) {
		flows.sent[i].begun = !last;
		flows.sent[i].position += size;
	}
}

static inline void put_flow_control(struct raw_frame *frame)
{
	uint64_t stream = chance(2) ? flows.streams[below(8)] & UINT32_MAX : flows.sent[below(4)].id;
	uint64_t call = chance(2) ? flows.calls[below(8)] & ~(UINT64_C(1) << 63) : flows.sent[4 + below(4)].id;
	struct wh_credit credit = { .bytes = 1 + below(chance(30) ? UINT64_MAX : 200), .kind = 2 + (uint32_t)below(3) };

	credit.id = credit.kind == WH_RECORD_MESSAGE ? stream : call;
	if (!stream || !call)
		return;
	switch (below(4)) {
	case 0:
		wh_encode_control(&frame->encoder, WH_RECORD_ABORT,
			&(struct wh_abort){ .stream = (uint32_t)stream, .code = 1 + (uint32_t)below(5) }, 0);
		break;
	case 1:
		wh_encode_control(&frame->encoder, WH_RECORD_CANCEL,
			&(struct wh_cancel){ .call = call, .code = 1 + (uint32_t)below(4) }, 0);
		break;
	default:
		wh_encode_control(&frame->encoder, WH_RECORD_CREDIT, &credit, 0);
	}
}

#endif
