/* SPDX-License-Identifier: MIT */
/*
 * A message on its way into frames. It goes in one record if it fits a frame, else in pieces: each takes what the frame
 * has room for. Claimed parts are lent and travel as runs; long ones that were not claimed are copied into chunks piece
 * by piece, as far as the pool has any to spare; all else travels inside the frame.
 */
#include "outmsg.h"

#include <errno.h>
#include <string.h>

#include "latest.h"
#include "outbox.h"

enum {
	PIECE_ROOM_MIN = 1024, /* of a frame: less is left for the next; guessed, never tuned */
	STAGE_MIN = 4096,      /* bytes that are worth chunks of their own; guessed, never tuned */
	STAGE_MAX = 256 << 10,
	RUN_ITEM = sizeof(struct wh_run),
};

/* ---- What the application gives ---- */

static int check(const struct wharf_out *out)
{
	if (out->n_parts > WH_WIRE_ITEMS_MAX || (out->n_parts && !out->parts) || (out->n_fds && !out->fds) ||
		out->reserved[0] || out->reserved[1] || out->reserved[2])
		return -EINVAL;
	for (size_t i = 0; i < out->n_parts; i++) {
		const struct wharf_part *part = &out->parts[i];
		if (part->reserved[0] || part->reserved[1] || (part->buf && (part->bytes || part->done)) ||
			(!part->buf && !part->bytes && part->size) || (!part->buf && part->offset) ||
			(part->buf &&
				(!part->buf->data || part->offset > part->buf->size ||
					part->size > part->buf->size - part->offset ||
					(!part->size && part->offset == part->buf->size))))
			return -EINVAL;
		for (size_t j = 0; part->buf && j < i; j++)
			if (out->parts[j].buf == part->buf)
				return -EINVAL;
	}
	return 0;
}

int wh_outmsg_read(uint64_t pool, const struct wharf_out *out, struct wh_outmsg *m, struct wh_outmsg_room *room)
{
	int error = check(out);

	if (error)
		return error;
	m->next = NULL;
	m->type = out->type;
	m->n_parts = (uint16_t)out->n_parts;
	m->at = 0;
	m->n_fds = (uint16_t)out->n_fds;
	m->close_fds = false;
	m->by_reference = false;
	m->left_bytes = 0;
	m->lent_bytes = 0;
	m->fds = room->fds;
	m->parts = room->parts;
	for (size_t i = 0; i < out->n_parts; i++) {
		const struct wharf_part *from = &out->parts[i];
		struct wh_outpart *part = &room->parts[i];
		part->run.n_chunks = 0;
		part->stays = false;
		part->done = from->done;
		if (from->buf) {
			if (pool && from->buf->opaque[0] != pool)
				return -EXDEV;
			part->buf = *from->buf;
			part->bytes = (const unsigned char *)from->buf->data + from->offset;
			part->size = from->size ? from->size : from->buf->size - from->offset;
		} else {
			part->buf.data = NULL;
			part->bytes = from->bytes;
			part->size = from->size;
			part->user = from->user;
			m->by_reference |= from->done != NULL;
		}
		part->begin = part->bytes;
		part->whole = part->size;
		if (part->size > UINT64_MAX - 1 - m->left_bytes)
			return -EMSGSIZE;
		m->left_bytes += part->size;
	}
	return 0;
}

uint64_t wh_outmsg_cost(const struct wh_outmsg *m)
{
	return m->left_bytes + sizeof(*m) + m->n_parts * sizeof(struct wh_outpart);
}

static size_t fds_at(const struct wh_outmsg *m) { return sizeof(*m) + m->n_parts * sizeof(struct wh_outpart); }

static size_t bytes_at(const struct wh_outmsg *m) { return fds_at(m) + m->n_fds * sizeof(int); }

size_t wh_outmsg_bytes(const struct wh_outmsg *m)
{
	size_t size = bytes_at(m);

	for (unsigned i = 0; i < m->n_parts; i++)
		if (!m->parts[i].buf.data && !m->parts[i].done)
			size += m->parts[i].size;
	return size;
}

void wh_outmsg_copy(const struct wh_outmsg *m, struct wh_outmsg *kept)
{
	unsigned char *to = (unsigned char *)kept + bytes_at(m);

	*kept = *m;
	kept->parts = (struct wh_outpart *)(kept + 1);
	kept->fds = (int *)((char *)kept + fds_at(m));
	if (m->n_parts)
		memcpy(kept->parts, m->parts, m->n_parts * sizeof(struct wh_outpart));
	if (m->n_fds)
		memcpy(kept->fds, m->fds, m->n_fds * sizeof(int));
	for (unsigned i = 0; i < m->n_parts; i++) {
		struct wh_outpart *part = &kept->parts[i];
		if (part->buf.data || part->done || !part->size)
			continue;
		memcpy(to, part->bytes, part->size);
		part->bytes = to;
		to += part->size;
	}
}

struct wh_outmsg *wh_outmsg_keep(struct wharf_port *port, const struct wh_outmsg *m)
{
	struct wh_outmsg *kept = wh_loop_alloc(port->source.loop, wh_outmsg_bytes(m));

	if (kept)
		wh_outmsg_copy(m, kept);
	return kept;
}

void wh_out_empty(const struct wharf_out *out)
{
	for (size_t i = 0; i < out->n_parts; i++)
		if (out->parts[i].buf)
			*out->parts[i].buf = (struct wharf_buf)WHARF_BUF_EMPTY;
}

/* ---- Ends ---- */

static void discard(struct wharf_port *port, struct wh_outmsg *m)
{
	if (m->posted)
		wh_posting_free(m);
	else
		wh_loop_dealloc(port->source.loop, m);
}

/* The application's memory is its own again: it is told in the loop's turn, never inside a send. */
static void let_go(struct wharf_port *port, struct wh_outmsg *m)
{
	if (m->posted)
		wh_posting_left(port, m);
	if (!m->by_reference) {
		discard(port, m);
		return;
	}
	m->next = NULL;
	*port->done_end = m;
	port->done_end = &m->next;
	wh_port_chore(port);
}

void wh_port_run_done(struct wharf_port *port)
{
	struct wh_outmsg *m = port->done, *next;

	/* What its callbacks let go of is the next turn's: they may send again. */
	port->done = NULL;
	port->done_end = &port->done;
	for (; m; m = next) {
		next = m->next;
		for (unsigned i = 0; i < m->n_parts; i++)
			if (m->parts[i].done)
				m->parts[i].done(m->parts[i].begin, m->parts[i].whole, m->parts[i].user);
		discard(port, m);
	}
}

void wh_outmsg_finish(struct wharf_port *port, struct wh_outmsg *m) { let_go(port, m); }

void wh_outmsg_empty(struct wharf_port *port, struct wh_outmsg *m)
{
	for (unsigned i = m->at; i < m->n_parts; i++) {
		struct wh_outpart *part = &m->parts[i];
		if (part->run.n_chunks)
			wh_lease_drop(port->lease, &part->run);
		else
			wharf_buf_abandon(&part->buf);
	}
	if (m->close_fds) {
		wh_fds_close(m->fds, m->n_fds);
		port->tx_fds_queued -= m->n_fds;
	}
}

void wh_outmsg_drop(struct wharf_port *port, struct wh_outmsg *m)
{
	wh_outmsg_empty(port, m);
	let_go(port, m);
	/* Its descriptors, or what it would have lent, may be what somebody waits for. */
	if (!wh_list_empty(&port->blocked_flows))
		wh_port_chore(port);
}

void wh_outmsg_take_back(struct wharf_port *port, struct wh_outmsg *m)
{
	for (unsigned i = m->n_parts; i-- > m->at;)
		if (m->parts[i].run.n_chunks) {
			wh_lease_take_back(port->lease, &m->parts[i].run);
			m->parts[i].run.n_chunks = 0;
		}
}

/* ---- Lending ---- */

static int lend(struct wharf_port *port, const struct wharf_buf *buf, size_t offset, size_t size, uint32_t stream,
	struct wh_run *ret_run)
{
	int error = wh_lease_lend(port->lease, buf, offset, size, stream, ret_run);

	if (!error && wh_unlikely(port->latest))
		wh_latest_lent(port, ret_run);
	return error;
}

/* What a piece is copied into; false: it travels as it is. */
static bool stage(struct wharf_port *port, struct wh_outpart *part)
{
	struct wharf_buf buf;
	size_t size = wh_min(part->size, STAGE_MAX);

	if (!wh_port_may_lend(port, size) || wh_buf_claim_quietly(wh_lease_pool(port->lease), size, &buf))
		return false;
	memcpy(buf.data, part->bytes, size);
	if (lend(port, &buf, 0, size, 0, &part->run)) {
		part->run.n_chunks = 0;
		wharf_buf_abandon(&buf);
		return false;
	}
	return true;
}

/* Makes sure that the peer knows the part's segment. */
static enum wh_encoded introduce(struct wharf_port *port, struct wh_outpart *part, int *ret_error)
{
	if (!wh_lease_must_announce(port->lease, part->run.slot))
		return WH_ENCODED;
	return wh_outbox_announce(port, part->run.slot, ret_error);
}

/* Lends a part if it can be: afterwards it has a run, or stays in bytes. */
static enum wh_encoded ready(
	struct wharf_port *port, struct wh_outmsg *m, struct wh_outpart *part, bool waits, int *ret_error)
{
	enum wh_encoded result;
	int error;

	if (port->tx_inline || part->stays)
		return WH_ENCODED;
	if (!part->run.n_chunks) {
		if (!part->buf.data)
			return WH_ENCODED;
		error = lend(port, &part->buf, (size_t)(part->bytes - (unsigned char *)part->buf.data), part->size,
			(uint32_t)m->flow->id, &part->run);
		if (error) {
			part->run.n_chunks = 0;
			*ret_error = error;
			part->stays = waits;
			return waits ? WH_ENCODED : WH_ENCODE_FAILED;
		}
	}
	result = introduce(port, part, ret_error);
	if (result == WH_ENCODE_FAILED && waits) {
		/* Accepted is accepted: what the peer cannot map goes by copy. */
		if (part->buf.data)
			wh_lease_take_back(port->lease, &part->run);
		else
			wh_lease_drop(port->lease, &part->run);
		part->run.n_chunks = 0;
		part->stays = true;
		return WH_ENCODED;
	}
	return result;
}

/* ---- Encoding ---- */

static struct wh_piece piece_of(const struct wh_outpart *part)
{
	if (part->run.n_chunks)
		return (struct wh_piece){ .run = &part->run };
	return (struct wh_piece){
		.bytes = part->bytes, .size = (uint32_t)part->size, .aligned = part->buf.data != NULL
	};
}

/* The piece is in the frame. */
static void advance(struct wh_outmsg *m, const struct wh_piece *piece)
{
	struct wh_outpart *part = &m->parts[m->at];
	uint64_t size = piece->run ? part->run.size : piece->size;

	if (size)
		part->bytes += size; /* NULL may stand for none */
	part->size -= size;
	m->left_bytes -= size;
	m->position_bytes += size;
	if (part->run.n_chunks) {
		part->run.n_chunks = 0;
		part->buf.data = NULL; /* the lease holds it now */
	}
	if (!part->size) {
		wharf_buf_abandon(&part->buf);
		m->at++;
	}
}

/* What the frame still takes goes into pieces[]; returns how many. */
static unsigned split(struct wharf_port *port, struct wh_outmsg *m, uint64_t room, struct wh_piece *pieces,
	enum wh_encoded *ret_result, int *ret_error)
{
	uint64_t bytes = 0, skipped;
	unsigned n = 0;

	*ret_result = WH_ENCODED;
	for (unsigned i = m->at; i < m->n_parts && room > RUN_ITEM && bytes < WH_FLUSH_BYTES; i++) {
		struct wh_outpart *part = &m->parts[i];
		if (!part->run.n_chunks && !port->tx_inline && !part->stays && part->size >= STAGE_MIN &&
			stage(port, part)) {
			*ret_result = ready(port, m, part, true, ret_error);
			if (*ret_result != WH_ENCODED)
				return 0;
		}
		pieces[n] = piece_of(part);
		if (part->run.n_chunks) {
			room -= RUN_ITEM;
			bytes += part->run.size;
			n++;
			if (part->run.size < part->size)
				break;
			continue;
		}
		skipped = RUN_ITEM + (pieces[n].aligned ? 64 : 8);
		if (room <= skipped)
			break;
		room -= skipped;
		pieces[n].size = (uint32_t)wh_min(part->size, room & ~UINT64_C(63));
		if (!pieces[n].size && part->size)
			break;
		room -= pieces[n].size;
		bytes += pieces[n].size;
		n++;
		if (pieces[n - 1].size < part->size)
			break;
	}
	return n;
}

static struct wh_message_out record_of(const struct wh_outmsg *m, const struct wh_piece *pieces, unsigned n)
{
	static const uint8_t kinds[WH_FLOW_KINDS] = { WH_RECORD_MESSAGE, WH_RECORD_MESSAGE, 0, WH_RECORD_CALL,
		WH_RECORD_REPLY };
	const struct wh_flow *flow = m->flow;

	return (struct wh_message_out){
		.kind = m->is_end ? WH_RECORD_PORT : kinds[flow->kind],
		.flags = (uint8_t)((m->first ? WH_RECORD_FIRST : 0) |
			(m->first && m->delegated ? WH_RECORD_DELEGATED : 0)),
		.n_pieces = (uint16_t)n,
		.n_fds = m->first ? m->n_fds : 0,
		.type = m->type,
		.stream = flow->kind == WH_FLOW_STREAM_OUT ? (uint32_t)flow->id : 0,
		.position = m->first ? m->total_bytes : m->position_bytes,
		.call = wh_flow_is_call(flow) ? flow->id : 0,
		.pieces = pieces,
	};
}

static void end_record(const struct wh_outmsg *m, struct wh_message_out *record)
{
	record->flags |= WH_RECORD_LAST;
	if (!m->end)
		return;
	record->flags |= WH_RECORD_END;
	if (m->flow->kind == WH_FLOW_ANSWER)
		record->stream = m->status;
}

/* The record is in the open frame. */
static void encoded(struct wharf_port *port, struct wh_outmsg *m, const struct wh_message_out *record)
{
	struct wh_outframe *open = port->open;
	uint64_t before = m->left_bytes;

	if (m->is_value)
		wh_latest_encoded(port, record);
	if (record->n_fds) {
		memcpy(open->fds, m->fds, record->n_fds * sizeof(*m->fds));
		open->close_fds = true;
		open->tx.n_fds = record->n_fds;
		port->tx_fds_framed += record->n_fds;
		m->close_fds = false;
	}
	for (unsigned i = 0; i < record->n_pieces; i++)
		advance(m, &record->pieces[i]);
	m->charge_bytes = wh_flow_charge(record->n_pieces, before - m->left_bytes);
	m->first = false;
	open->data = true;
	open->n_bytes += before - m->left_bytes;
	if (!m->flow->out.first_ordinal)
		m->flow->out.first_ordinal = open->ordinal;
	m->flow->out.ordinal = open->ordinal;
	wh_port_dirty(port);
}

/* What is not lent must at least fit the largest frame, and what is must be lent whole. */
static bool fits_whole(const struct wh_outmsg *m)
{
	uint64_t bytes = 0;

	for (unsigned i = m->at; i < m->n_parts; i++) {
		const struct wh_outpart *part = &m->parts[i];
		if (part->run.n_chunks && part->run.size < part->size)
			return false;
		if (!part->run.n_chunks &&
			(part->size > WH_FRAME_BYTES_MAX || (bytes += part->size) > WH_FRAME_BYTES_MAX))
			return false;
	}
	return true;
}

static uint64_t piece_bytes(const struct wh_piece *pieces, unsigned n)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < n; i++)
		bytes += pieces[i].run ? pieces[i].run->size : pieces[i].size;
	return bytes;
}

enum wh_encoded wh_outmsg_encode(struct wharf_port *port, struct wh_outmsg *m, bool waits, int *ret_error)
{
	struct wh_piece pieces[WH_WIRE_ITEMS_MAX];
	struct wh_message_out record;
	struct wh_encoder *encoder;
	enum wh_encoded result;
	uint64_t size, room;
	unsigned n = 0;
	bool all;

	if (!wh_outbox_open(port) || (m->is_value && !wh_latest_reserve(port, m->n_parts - m->at))) {
		*ret_error = -ENOMEM;
		return WH_ENCODE_FAILED;
	}
	encoder = &port->open->encoder;
	if (wh_encoder_ended(encoder))
		return WH_FRAME_FULL;
	for (unsigned i = m->at; i < m->n_parts; i++) {
		result = ready(port, m, &m->parts[i], waits, ret_error);
		if (result != WH_ENCODED)
			return result;
		pieces[n++] = piece_of(&m->parts[i]);
	}
	if (wh_encoder_ended(encoder))
		return WH_FRAME_FULL;
	/* In one record, if it can be. */
	record = record_of(m, pieces, n);
	if (fits_whole(m)) {
		if (m->last)
			end_record(m, &record);
		if (wh_message_size(&record) <= wh_port_message_room(port)) {
			if (!wh_encode_message(encoder, &record))
				return WH_FRAME_FULL;
			encoded(port, m, &record);
			port->open->n_pieces += !m->last;
			return WH_ENCODED;
		}
	}
	if (!waits)
		return WH_NEEDS_PIECES;
	room = encoder->capacity - encoder->size;
	record = record_of(m, pieces, 0);
	size = wh_message_size(&record);
	if (room < size + PIECE_ROOM_MIN && !wh_encoder_empty(encoder))
		return WH_FRAME_FULL;
	n = split(port, m, room - size, pieces, &result, ret_error);
	if (result != WH_ENCODED)
		return result;
	if (wh_encoder_ended(encoder))
		return WH_FRAME_FULL;
	record.n_pieces = (uint16_t)n;
	all = piece_bytes(pieces, n) == m->left_bytes;
	if (all && m->last)
		end_record(m, &record);
	if (!wh_encode_message(encoder, &record))
		return WH_FRAME_FULL;
	encoded(port, m, &record);
	port->open->n_pieces += !(all && m->last);
	return all ? WH_ENCODED : WH_ENCODED_PIECE;
}
