/* SPDX-License-Identifier: MIT */
/* Peers that break the rules of streams: the stream ends, or the port if it is the port's own; nothing else does. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "apart.h"
#include "harness.h"
#include "port.h"
#include "raw.h"

enum { FIRST = WH_RECORD_FIRST, LAST = WH_RECORD_LAST, END = WH_RECORD_LAST | WH_RECORD_END, MIDDLE = 0 };
enum { INLINE, CHUNKS, WAYS };

static struct pair p;
static struct apart good; /* another port, which must not feel any of it */
static struct raw_segment segment;
static struct harness_snapshot before;
static struct raw_read read_;
static int peer;
static uint32_t next_chunk;
static uint64_t n_lent; /* chunks sent */
static char bytes[60000];

static void open_hostile(const struct wharf_port_options *options)
{
	peer = pair_open_half(&p, options);
	raw_consumed = 0;
	cr_assert(raw_say_hello(peer, NULL));
	settle(p.loop);
	cr_assert_eq(p.a.n_open, 1);
	cr_assert(raw_announce_segment(peer, 0, &segment));
	settle(p.loop);
	for (unsigned i = 0; i < segment.n_words; i++)
		atomic_store(&segment.map->words[i], 0);
	next_chunk = 0;
	n_lent = 0;
	while (raw_receive(peer, &read_))
		;
}

static void close_hostile(void)
{
	pair_free(&p);
	close(peer);
}

/* One record in a frame of its own, with descriptors or not. */
static void put_with(uint8_t flags, uint32_t stream, uint64_t position, uint32_t size, int way, const int *fds,
	unsigned n_fds)
{
	struct wh_run run = { .n_chunks = 1, .first = next_chunk, .size = size };
	struct wh_piece piece = way == CHUNKS && size ? (struct wh_piece){ .run = &run }
						      : (struct wh_piece){ .bytes = bytes, .size = size };
	struct wh_message_out message = { .kind = WH_RECORD_MESSAGE, .flags = flags, .n_pieces = 1, .type = 7,
		.n_fds = (uint16_t)n_fds, .stream = stream, .position = position, .pieces = &piece };
	struct raw_frame frame;

	if (piece.run) {
		next_chunk++;
		n_lent++;
	}
	raw_begin(&frame);
	cr_assert(wh_encode_message(&frame.encoder, &message));
	cr_assert(raw_send(peer, frame.bytes, wh_encode_end(&frame.encoder, 0, raw_consumed), fds, n_fds, false));
	settle(p.loop);
}

static void put(uint8_t flags, uint32_t stream, uint64_t position, uint32_t size, int way)
{
	put_with(flags, stream, position, size, way, NULL, 0);
}

static uint64_t n_released(void)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < segment.n_words; i++)
		n += (uint64_t)__builtin_popcountll(atomic_load(&segment.map->words[i]));
	return n;
}

/* The code of the next ABORT of this stream that the port has sent; 0: none. */
static uint32_t abort_code(uint32_t stream)
{
	while (raw_receive(peer, &read_)) {
		const struct wh_record *r = wh_frame_first(read_.bytes);
		for (; r != wh_frame_end(read_.bytes); r = wh_record_next(r)) {
			const struct wh_abort *a = (const struct wh_abort *)r;
			if (r->kind == WH_RECORD_ABORT && a->stream == stream)
				return a->code;
		}
	}
	return 0;
}

static void set_up(void)
{
	raw_segment_open(&segment, 12, 128);
	apart_open(&good, NULL, NULL, NULL);
	open_hostile(NULL);
	close_hostile();
	harness_snapshot_take(&before);
}

static void tear_down(void)
{
	const char *leak = harness_snapshot_diff(&before);

	cr_assert(!leak, "%s", leak);
	cr_assert_eq(wharf_send_bytes(good.a.port, 1, "fine", 4), 0);
	apart_settle(&good);
	cr_assert_eq(good.b.n_messages, 1);
	apart_free(&good);
	raw_segment_close(&segment);
}

TestSuite(hostile_stream, .init = set_up, .fini = tear_down);

/* ---- Pieces in the wrong order ---- */

struct fault {
	const char *what;
	struct { uint8_t flags; uint64_t position; uint32_t size; } records[4];
	unsigned n;
	bool stray; /* where nothing is wrong but that nobody knows it */
};

static const struct fault nothing_begun[] = {
	{ "a middle of nothing", { { MIDDLE, 0, 10 } }, 1, true },
	{ "a last of nothing", { { END, 0, 10 } }, 1, true },
};
static const struct fault second_beginnings[] = {
	{ "twice", { { FIRST, 30, 10 }, { FIRST, 30, 10 } }, 2, false },
	{ "thrice", { { FIRST, UINT64_MAX, 10 }, { MIDDLE, 10, 10 }, { FIRST, 20, 10 } }, 3, false },
	{ "a whole within", { { FIRST, 30, 10 }, { FIRST | END, 0, 10 } }, 2, false },
};
static const struct fault positions[] = {
	{ "one too far", { { FIRST, 30, 10 }, { MIDDLE, 11, 10 } }, 2, false },
	{ "one too near", { { FIRST, 30, 10 }, { MIDDLE, 9, 10 } }, 2, false },
	{ "repeated", { { FIRST, 30, 10 }, { MIDDLE, 10, 10 }, { MIDDLE, 10, 10 } }, 3, false },
	{ "far away", { { FIRST, 30, 10 }, { MIDDLE, UINT64_MAX - 10, 10 } }, 2, false },
	{ "far away, of no length known", { { FIRST, UINT64_MAX, 10 }, { MIDDLE, UINT64_MAX - 10, 10 } }, 2, false },
};
static const struct fault totals[] = {
	{ "more than the total", { { FIRST, 15, 10 }, { MIDDLE, 10, 6 } }, 2, false },
	{ "more than the total, at the end", { { FIRST, 15, 10 }, { END, 10, 6 } }, 2, false },
	{ "less than the total", { { FIRST, 15, 10 }, { END, 10, 4 } }, 2, false },
	{ "nothing of the total", { { FIRST, 15, 10 }, { END, 10, 0 } }, 2, false },
};

static void check_stream(const struct fault *f, unsigned pieces, int way)
{
	const uint32_t stream = 1 << WH_STREAM_INDEX_BITS | 3, other = 1 << WH_STREAM_INDEX_BITS | 4;
	struct wharf_port_stats stats;

	open_hostile(WHARF_OPT(port, .flags = pieces ? WHARF_PORT_PIECES : 0));
	put(FIRST, other, 20, 10, way);
	for (unsigned i = 0; i < f->n; i++)
		put(f->records[i].flags, stream, f->records[i].position, f->records[i].size, way);
	stats = stats_of(p.a.port);
	cr_assert_eq(stats.rx_stream_violations, !f->stray, "%s", f->what);
	cr_assert_eq(abort_code(stream), f->stray ? 0 : WH_ABORT_VIOLATION, "%s", f->what);
	cr_assert_eq(p.a.n_aborted, !f->stray && pieces, "%s", f->what);
	/* What is still on its way is a stray. */
	put(MIDDLE, stream, 10, 10, way);
	cr_assert_geq(stats_of(p.a.port).rx_stray_records, 1);
	cr_assert_eq(stats_of(p.a.port).rx_stream_violations, !f->stray);
	put(END, other, 10, 10, way);
	cr_assert_eq(p.a.port->assembly_bytes, 0);
	cr_assert_eq(p.a.port->flows[WH_FLOW_STREAM_IN].n, 0);
	cr_assert_eq(p.a.n_closed, 0);
	cr_assert_eq(n_released(), n_lent, "%s: %lu of %lu chunks", f->what, (unsigned long)n_released(),
		(unsigned long)n_lent);
	cr_assert_eq(p.a.seen[p.a.n_messages - 1].flags & WHARF_MSG_LAST, WHARF_MSG_LAST);
	close_hostile();
}

static void check_plain(const struct fault *f, unsigned pieces, int way)
{
	open_hostile(WHARF_OPT(port, .flags = pieces ? WHARF_PORT_PIECES : 0));
	for (unsigned i = 0; i < f->n && !p.a.n_closed; i++)
		put(f->records[i].flags & (uint8_t)~WH_RECORD_END, 0, f->records[i].position, f->records[i].size, way);
	cr_assert_eq(p.a.n_closed, 1, "%s", f->what);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_VIOLATION, "%s: %s", f->what, p.a.reason_text);
	cr_assert_eq(raw_bye_code(peer), WH_BYE_REFUSED);
	cr_assert_eq(n_released(), n_lent, "%s", f->what);
	close_hostile();
}

static void check_all(const struct fault *faults, size_t n)
{
	for (size_t i = 0; i < n; i++)
		for (unsigned pieces = 0; pieces < 2; pieces++)
			for (int way = INLINE; way < WAYS; way++) {
				check_stream(&faults[i], pieces, way);
				check_plain(&faults[i], pieces, way);
			}
}

Test(hostile_stream, a_fragment_of_nothing_is_a_stray_or_ends_the_port) { check_all(nothing_begun, 2); }
Test(hostile_stream, a_second_beginning_ends_the_stream_only) { check_all(second_beginnings, 3); }
Test(hostile_stream, a_position_that_skips_or_repeats_ends_the_stream_only) { check_all(positions, 5); }
Test(hostile_stream, more_or_less_than_the_total_ends_the_stream_only) { check_all(totals, 4); }

/* ---- Bounds ---- */

Test(hostile_stream, the_total_is_refused_at_its_first_fragment)
{
	static const uint64_t limits[] = { 1000, 1 << 20, INT64_MAX, UINT64_MAX };

	/* However large the limit is, lengths near the end of the numbers are no memory. */
	for (unsigned i = 0; i < 4; i++) {
		open_hostile(WHARF_OPT(port, .rx_bytes_max = limits[i]));
		if (limits[i] < UINT64_MAX - 2) {
			put(FIRST, 4097, limits[i] + 1, 10, INLINE);
			cr_assert_eq(abort_code(4097), WH_ABORT_VIOLATION);
		}
		for (uint64_t total = UINT64_MAX - 70; total < UINT64_MAX; total++) {
			put(FIRST, 4098, total, 10, INLINE);
			cr_assert_geq(abort_code(4098), WH_ABORT_VIOLATION, "%lu", (unsigned long)total);
		}
		cr_assert_eq(p.a.port->assembly_bytes, 0);
		cr_assert_eq(p.a.port->flows[WH_FLOW_STREAM_IN].n, 0);
		close_hostile();
	}
}

Test(hostile_stream, beginnings_without_end_are_bounded)
{
	open_hostile(WHARF_OPT(port, .rx_streams_max = 8, .rx_bytes_max = 1 << 20, .rx_assembly_bytes_max = (3 << 20) + 5 * 10));
	/* As much as it takes in pieces at once, and no more. */
	for (uint32_t i = 0; i < 8; i++) {
		put(FIRST, 4096 + i, 1 << 20, 10, INLINE);
		cr_assert_eq(abort_code(4096 + i), i < 3 ? 0 : WH_ABORT_ROOM);
	}
	cr_assert_eq(p.a.port->assembly_bytes, 3 << 20);
	for (uint32_t i = 3; i < 8; i++)
		put(FIRST, 8192 + i, 10, 0, INLINE);
	cr_assert_eq(p.a.n_closed, 0);
	cr_assert_eq(p.a.port->flows[WH_FLOW_STREAM_IN].n, 8);
	put(FIRST, 8192 + 8, 10, 0, INLINE);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_VIOLATION, "%s", p.a.reason_text);
	close_hostile();
}

Test(hostile_stream, the_number_of_another_ends_the_port)
{
	open_hostile(NULL);
	put(FIRST, 4097, 100, 10, CHUNKS);
	put(FIRST, 8193, 100, 10, CHUNKS);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_VIOLATION, "%s", p.a.reason_text);
	cr_assert_eq(n_released(), n_lent);
	close_hostile();
}

Test(hostile_stream, more_than_its_credit_ends_the_stream_only)
{
	open_hostile(WHARF_OPT(port, .rx_stream_bytes_max = 1000, .flags = WHARF_PORT_PIECES));
	put(FIRST, 4097, UINT64_MAX, 0, INLINE);
	cr_assert_eq(wharf_stream_pause(p.a.port, p.a.seen[0].stream), 0);
	while (raw_receive(peer, &read_))
		;
	/* 64 for a record, 16 for its item: the fourteenth that the reader has not given back is beyond it. */
	for (unsigned i = 0; i < 12; i++)
		put(MIDDLE, 4097, 0, 0, INLINE);
	cr_assert_eq(stats_of(p.a.port).rx_stream_violations, 0);
	put(MIDDLE, 4097, 0, 0, INLINE);
	put(MIDDLE, 4097, 0, 0, INLINE);
	cr_assert_eq(stats_of(p.a.port).rx_stream_violations, 1);
	cr_assert_eq(abort_code(4097), WH_ABORT_VIOLATION);
	cr_assert_eq(p.a.n_aborted, 1);
	cr_assert_eq(p.a.n_closed, 0);
	close_hostile();
}

static void put_control(enum wh_record_kind kind, void *record)
{
	struct raw_frame frame;

	raw_begin(&frame);
	cr_assert(wh_encode_control(&frame.encoder, kind, record, 0));
	cr_assert(raw_end(peer, &frame, raw_consumed));
	settle(p.loop);
}

static uint64_t begin_ours(unsigned n)
{
	struct wh_hello hello = raw_hello();
	uint64_t stream = 0;

	peer = pair_open_half(&p, NULL);
	hello.streams_max = n;
	hello.stream_credit_bytes = 1000;
	cr_assert(raw_say_hello(peer, &hello));
	settle(p.loop);
	raw_consumed = 0;
	cr_assert_eq(wharf_stream_begin(p.a.port, 1, WHARF_BYTES_UNKNOWN, &stream), 0);
	cr_assert_eq(wharf_stream_send(p.a.port, stream, &(struct wharf_out){
		.parts = &(struct wharf_part){ .bytes = bytes, .size = 500 }, .n_parts = 1 }), 0);
	settle(p.loop);
	return stream;
}

Test(hostile_stream, more_credit_than_was_used_ends_the_port)
{
	for (unsigned i = 0; i < 4; i++) {
		uint64_t stream = begin_ours(4);
		static const uint64_t more[] = { 1, INT64_MAX, UINT64_MAX, UINT64_MAX - 500 };
		/* 500, and 64 for the record, and 16 for its item. */
		put_control(WH_RECORD_CREDIT,
			&(struct wh_credit){ .id = (uint32_t)stream, .bytes = 580, .kind = WH_RECORD_MESSAGE });
		cr_assert_eq(p.a.n_closed, 0);
		put_control(WH_RECORD_CREDIT,
			&(struct wh_credit){ .id = (uint32_t)stream, .bytes = more[i], .kind = WH_RECORD_MESSAGE });
		cr_assert_eq(p.a.reason.code, WHARF_CLOSE_VIOLATION, "%s", p.a.reason_text);
		close_hostile();
	}
}

Test(hostile_stream, a_stream_that_goes_on_is_not_done)
{
	uint64_t stream = begin_ours(4);

	put_control(WH_RECORD_ABORT, &(struct wh_abort){ .stream = (uint32_t)stream + 1, .code = WH_ABORT_DONE });
	cr_assert_eq(p.a.n_closed, 0, "of one that is not there it says nothing");
	put_control(WH_RECORD_ABORT, &(struct wh_abort){ .stream = (uint32_t)stream, .code = WH_ABORT_DONE });
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_VIOLATION, "%s", p.a.reason_text);
	close_hostile();
}

/* No streams, or no credit for any, is no fault. */
Test(hostile_stream, a_peer_that_takes_no_streams_is_believed)
{
	uint64_t stream;
	int error;

	peer = pair_open_half(&p, NULL);
	cr_assert(raw_say_hello(peer, NULL));
	settle(p.loop);
	cr_assert_eq(wharf_stream_begin(p.a.port, 1, 5, &stream), -EAGAIN);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "plain", 5), 0);
	settle(p.loop);
	cr_assert_eq(p.a.n_writable, 0);
	close_hostile();
	/* Begun before that was known. */
	peer = pair_open_half(&p, NULL);
	cr_assert_eq(wharf_stream_begin(p.a.port, 1, 5, &stream), 0);
	cr_assert(raw_say_hello(peer, NULL));
	settle(p.loop);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_ERROR);
	cr_assert_eq(p.a.reason.error, EMSGSIZE);
	close_hostile();
	/* Streams without credit. */
	peer = pair_open_half(&p, NULL);
	cr_assert_eq(wharf_stream_begin(p.a.port, 1, 5, &stream), 0);
	struct wh_hello hello = raw_hello();
	hello.streams_max = 10;
	cr_assert(raw_say_hello(peer, &hello));
	settle(p.loop);
	error = wharf_stream_send(p.a.port, stream, &(struct wharf_out){
		.parts = &(struct wharf_part){ .bytes = bytes, .size = 5 }, .n_parts = 1 });
	cr_assert_eq(error, -EAGAIN);
	settle(p.loop);
	cr_assert_eq(p.a.n_writable, 0);
	cr_assert_eq(wharf_stream_abort(p.a.port, stream, 0), 0);
	close_hostile();
}

/* ---- Descriptors ---- */

enum end_of_it { BY_LAST, BY_ABORT, BY_EOF, BY_VIOLATION, BY_SIZE, BY_FREE, BY_READER, ENDS };

static int taken_fd;

static void take_fd(struct end *end, const struct wharf_msg *msg)
{
	(void)end;
	if (msg->n_fds)
		taken_fd = wharf_msg_take_fd(msg, 0);
}

Test(hostile_stream, descriptors_of_a_message_in_fragments_arrive_once_or_are_closed)
{
	for (int end = BY_LAST; end < ENDS; end++)
		for (unsigned pieces = 0; pieces < 2; pieces++)
			for (unsigned paused = 0; paused < 2; paused++) {
				int fds[2];
				char byte;
				open_hostile(WHARF_OPT(port, .flags = pieces ? WHARF_PORT_PIECES : 0,
					.rx_fds_max = 2, .rx_bytes_max = 100));
				cr_assert_eq(pipe(fds), 0);
				taken_fd = -1;
				p.a.on_message = end == BY_LAST ? take_fd : NULL;
				if (paused)
					cr_assert_eq(wharf_port_pause(p.a.port), 0);
				put_with(FIRST, 4097, UINT64_MAX, 10, INLINE, &fds[1], 1);
				close(fds[1]);
				switch ((enum end_of_it)end) {
				case BY_LAST:
					put(END, 4097, 10, 10, INLINE);
					break;
				case BY_ABORT:
					put_control(WH_RECORD_ABORT,
						&(struct wh_abort){ .stream = 4097, .code = WH_ABORT_SENDER });
					break;
				case BY_EOF:
					shutdown(peer, SHUT_RDWR);
					break;
				case BY_VIOLATION:
					put(MIDDLE, 4097, 11, 10, INLINE);
					break;
				case BY_SIZE:
					put(MIDDLE, 4097, 10, 91, INLINE);
					break;
				case BY_READER:
					if (!paused && pieces)
						cr_assert_eq(wharf_stream_abort(p.a.port, p.a.seen[0].stream, 0), 0);
					break;
				default:
					break;
				}
				if (end == BY_FREE || end == BY_READER) {
					pair_free(&p);
				} else {
					if (paused)
						cr_assert_eq(wharf_port_resume(p.a.port), 0);
					settle(p.loop);
				}
				if (end == BY_LAST) {
					cr_assert_geq(taken_fd, 0, "pieces %u, paused %u; %zu %s", pieces, paused, p.a.n_messages, p.a.reason_text);
					cr_assert_eq(write(taken_fd, "!", 1), 1);
					close(taken_fd);
					cr_assert_eq(read(fds[0], &byte, 1), 1);
				}
				cr_assert_eq(read(fds[0], &byte, 1), 0, "end %d, pieces %u, paused %u", end, pieces, paused);
				close(fds[0]);
				if (p.loop)
					pair_free(&p);
				close(peer);
			}
}

/* Paused by itself, not with its port, and given up then. */
Test(hostile_stream, what_a_paused_stream_holds_is_closed_and_released_with_it)
{
	for (unsigned end = 0; end < 3; end++) {
		int fds[2];
		char byte;
		open_hostile(WHARF_OPT(port, .flags = WHARF_PORT_PIECES, .rx_fds_max = 2));
		cr_assert_eq(pipe(fds), 0);
		put(FIRST, 4097, UINT64_MAX, 10, CHUNKS);
		cr_assert_eq(wharf_stream_pause(p.a.port, p.a.seen[0].stream), 0);
		for (unsigned i = 1; i < 10; i++)
			put(MIDDLE, 4097, i * 10, 10, CHUNKS);
		cr_assert_eq(n_released(), 1);
		/* A second beginning, found only when it is looked at: its descriptor is held until then. */
		put_with(FIRST, 4097, UINT64_MAX, 10, CHUNKS, &fds[1], 1);
		close(fds[1]);
		if (end == 0)
			put_control(WH_RECORD_ABORT, &(struct wh_abort){ .stream = 4097, .code = WH_ABORT_SENDER });
		else if (end == 1)
			(void)!wharf_stream_abort(p.a.port, p.a.seen[0].stream, 0);
		else
			pair_free(&p);
		if (p.loop)
			settle(p.loop);
		cr_assert_eq(read(fds[0], &byte, 1), 0);
		cr_assert_eq(n_released(), n_lent, "%u: %lu of %lu", end, (unsigned long)n_released(),
			(unsigned long)n_lent);
		close(fds[0]);
		if (p.loop)
			pair_free(&p);
		close(peer);
	}
}

/* An owner retires what has come back; what a paused stream holds has not. */
Test(hostile_stream, a_segment_that_a_paused_stream_lies_in_is_not_retired)
{
	open_hostile(WHARF_OPT(port, .flags = WHARF_PORT_PIECES));
	put(FIRST, 4097, UINT64_MAX, 10, CHUNKS);
	cr_assert_eq(wharf_stream_pause(p.a.port, p.a.seen[0].stream), 0);
	put(MIDDLE, 4097, 10, 10, CHUNKS);
	cr_assert(raw_retire(peer, 0, false));
	settle(p.loop);
	if (p.a.port)
		(void)!wharf_stream_resume(p.a.port, p.a.seen[0].stream);
	settle(p.loop);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_VIOLATION, "%s", p.a.reason_text);
	close_hostile();
}

/* ---- Work ---- */

Test(hostile_stream, descriptors_of_beginnings_are_bounded)
{
	int fds[100];

	for (unsigned i = 0; i < 100; i++)
		fds[i] = STDERR_FILENO;
	open_hostile(WHARF_OPT(port, .rx_fds_max = 100));
	for (uint32_t i = 0; i < 3; i++)
		put_with(FIRST, 1u << WH_STREAM_INDEX_BITS | i, UINT64_MAX, 10, INLINE, fds, 100);
	cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
	cr_assert_eq(abort_code(1u << WH_STREAM_INDEX_BITS | 2), WH_ABORT_ROOM, "more than 253 wait");
	put_with(FIRST, 1u << WH_STREAM_INDEX_BITS | 3, UINT64_MAX, 10, INLINE, fds, 50);
	cr_assert_eq(p.a.port->assembly_fds, 250);
	close_hostile();
}
