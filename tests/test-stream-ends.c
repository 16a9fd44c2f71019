/* SPDX-License-Identifier: MIT */
/* Streams that pause, go on, and end otherwise than by their last part: on either side, at any moment. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "apart.h"
#include "harness.h"
#include "pair.h"
#include "port.h"

static struct pair p;
static char bytes[100000];
static struct harness_snapshot before;

static uint64_t begin(wharf_port *port)
{
	uint64_t stream = 0;

	cr_assert_eq(wharf_stream_begin(port, 3, WHARF_BYTES_UNKNOWN, &stream), 0);
	return stream;
}

static int push(wharf_port *port, uint64_t stream, size_t size, uint32_t flags)
{
	return wharf_stream_send(port, stream, &(struct wharf_out){ .flags = flags,
		.parts = &(struct wharf_part){ .bytes = bytes, .size = size }, .n_parts = 1 });
}

static int push_claimed(wharf_port *port, uint64_t stream, size_t size)
{
	struct wharf_buf b;
	int error = wharf_buf_claim(wharf_port_pool(port), size, &b);

	if (!error && (error = wharf_stream_send_buf(port, stream, &b, 0)))
		wharf_buf_abandon(&b);
	return error;
}

static void open_pieces(void)
{
	pair_open(&p, NULL, WHARF_OPT(port, .flags = WHARF_PORT_PIECES));
}

/* No stream is left on either side, and nothing of what was lent. */
static void check_clean(void)
{
	struct wharf_pool_info info = { .size = sizeof(info) };

	settle(p.loop);
	cr_assert_eq(p.a.n_closed + p.b.n_closed, 0, "%s; %s", p.a.reason_text, p.b.reason_text);
	for (unsigned kind = 0; kind < WH_FLOW_KINDS; kind++) {
		cr_assert_eq(p.a.port->flows[kind].n, 0, "kind %u", kind);
		cr_assert_eq(p.b.port->flows[kind].n, 0, "kind %u", kind);
	}
	cr_assert_eq(p.b.port->assembly_bytes, 0);
	cr_assert_eq(p.b.port->n_aside, 0);
	cr_assert_eq(p.a.port->queued_bytes, 0);
	cr_assert_eq(p.a.port->queued_messages, 0);
	cr_assert_eq(p.a.port->tx_fds_queued, 0);
	cr_assert_eq(wharf_pool_info(wharf_port_pool(p.a.port), &info), 0);
	cr_assert_eq(info.bytes_lent, 0);
	cr_assert_eq(info.bytes_free, info.bytes);
	cr_assert_eq(stats_of(p.b.port).rx_stream_violations, 0);
}

static void set_up(void)
{
	open_pieces();
	pair_free(&p);
	harness_snapshot_take(&before);
}

static void tear_down(void)
{
	const char *leak = harness_snapshot_diff(&before);

	cr_assert(!leak, "%s", leak);
}

TestSuite(stream_ends, .init = set_up, .fini = tear_down);

/* ---- Pausing ---- */

Test(stream_ends, a_paused_stream_waits_and_the_others_go_on)
{
	uint64_t one, two;

	open_pieces();
	one = begin(p.a.port);
	two = begin(p.a.port);
	cr_assert_eq(push(p.a.port, one, 10, 0), 0);
	settle(p.loop);
	cr_assert_eq(wharf_stream_pause(p.b.port, p.b.seen[0].stream), 0);
	cr_assert_eq(wharf_stream_pause(p.b.port, p.b.seen[0].stream), 0);
	cr_assert_eq(wharf_stream_pause(p.a.port, one), -EINVAL);
	for (unsigned i = 0; i < 10; i++) {
		cr_assert_eq(push_claimed(p.a.port, one, 100), 0);
		cr_assert_eq(push(p.a.port, two, 20, 0), 0);
		cr_assert_eq(wharf_send_bytes(p.a.port, 1, "plain", 5), 0);
	}
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 21);
	/* The port paused besides, and resumed after the stream: what is older comes first. */
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	cr_assert_eq(wharf_stream_resume(p.b.port, p.b.seen[0].stream), 0);
	cr_assert_eq(push(p.a.port, one, 7, WHARF_LAST), 0);
	cr_assert_eq(push(p.a.port, two, 7, WHARF_LAST), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 21);
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 33);
	for (unsigned i = 0, at = 10; i < 33; i++)
		if (i && p.b.seen[i].stream == p.b.seen[0].stream) {
			cr_assert_eq(p.b.seen[i].position, at);
			at += (unsigned)p.b.seen[i].size;
		}
	check_clean();
	pair_free(&p);
}

static void pause_each(struct end *end, const struct wharf_msg *msg)
{
	if (msg->stream)
		cr_assert_eq(wharf_stream_pause(end->port, msg->stream), 0);
}

Test(stream_ends, a_stream_that_pauses_in_its_handler_comes_one_by_one)
{
	uint64_t stream;

	open_pieces();
	p.b.on_message = pause_each;
	stream = begin(p.a.port);
	for (unsigned i = 0; i < 20; i++)
		cr_assert_eq(push(p.a.port, stream, 10, i == 19 ? WHARF_LAST : 0), 0);
	for (unsigned i = 0; i < 20; i++) {
		settle(p.loop);
		cr_assert_eq(p.b.n_messages, i + 1);
		cr_assert_eq(wharf_stream_resume(p.b.port, p.b.seen[0].stream), i < 19 ? 0 : -ESTALE);
	}
	check_clean();
	pair_free(&p);
}

Test(stream_ends, a_paused_stream_keeps_the_end_of_its_port_waiting)
{
	for (unsigned end = 0; end < 3; end++) {
		uint64_t stream;
		open_pieces();
		p.b.on_message = pause_each;
		stream = begin(p.a.port);
		for (unsigned i = 0; i < 3; i++)
			cr_assert_eq(push_claimed(p.a.port, stream, 100), 0);
		cr_assert_eq(wharf_stream_end(p.a.port, stream), 0);
		settle(p.loop);
		cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
		settle(p.loop);
		cr_assert_eq(p.b.n_closed, 0);
		if (end == 0) {
			p.b.on_message = NULL;
			cr_assert_eq(wharf_stream_resume(p.b.port, p.b.seen[0].stream), 0);
		} else if (end == 1) {
			cr_assert_eq(wharf_stream_abort(p.b.port, p.b.seen[0].stream, 0), 0);
		} else {
			cr_assert_eq(wharf_port_abort(p.b.port, 0), 0);
		}
		settle(p.loop);
		cr_assert_eq(p.b.n_messages, end == 0 ? 4 : 1);
		cr_assert_eq(p.b.n_closed, 1);
		cr_assert_eq(p.b.reason.code, end == 2 ? WHARF_CLOSE_ABORTED : WHARF_CLOSE_PEER, "%s", p.b.reason_text);
		cr_assert_eq(p.a.n_closed, 1);
		pair_free(&p);
	}
}

/* ---- Giving up ---- */

Test(stream_ends, a_reader_gives_up_while_much_is_queued)
{
	uint64_t stream, other;
	unsigned n = 0;
	int error;

	open_pieces();
	stream = begin(p.a.port);
	other = begin(p.a.port);
	cr_assert_eq(push(p.a.port, stream, 10, 0), 0);
	cr_assert_eq(push(p.a.port, other, 10, 0), 0);
	settle(p.loop);
	cr_assert_eq(wharf_stream_pause(p.b.port, p.b.seen[0].stream), 0);
	while (!(error = n % 2 ? push(p.a.port, stream, 50000, 0) : push_claimed(p.a.port, stream, 50000))) {
		n++;
		if (n % 10 == 0)
			settle(p.loop);
	}
	cr_assert_eq(error, -EAGAIN);
	cr_assert_gt(p.a.port->queued_bytes, 0);
	cr_assert_eq(wharf_stream_abort(p.b.port, p.b.seen[0].stream, 77), 0);
	cr_assert_eq(wharf_stream_abort(p.b.port, p.b.seen[0].stream, 77), -ESTALE);
	cr_assert_eq(wharf_stream_resume(p.b.port, p.b.seen[0].stream), -ESTALE);
	settle(p.loop);
	cr_assert_eq(p.a.n_aborted, 1);
	cr_assert_eq(p.a.aborted.stream, stream);
	cr_assert_eq(p.a.aborted.why, WHARF_ABORT_READER);
	cr_assert_eq(p.a.aborted.app_code, 77);
	cr_assert_eq(p.b.n_aborted, 0);
	cr_assert_eq(push(p.a.port, stream, 1, 0), -ESTALE);
	cr_assert_eq(wharf_stream_end(p.a.port, stream), -ESTALE);
	cr_assert_eq(wharf_stream_abort(p.a.port, stream, 0), -ESTALE);
	cr_assert_eq(push(p.a.port, other, 10, WHARF_LAST), 0);
	check_clean();
	pair_free(&p);
}

Test(stream_ends, both_sides_give_up_at_once)
{
	uint64_t stream;

	for (unsigned i = 0; i < 20; i++) {
		if (!i)
			open_pieces();
		p.b.n_messages = 0;
		stream = begin(p.a.port);
		cr_assert_eq(push(p.a.port, stream, 10, 0), 0);
		settle(p.loop);
		cr_assert_eq(push(p.a.port, stream, 10, i % 2 ? WHARF_LAST : 0), 0);
		if (i % 4 < 2)
			cr_assert_eq(wharf_stream_abort(p.a.port, stream, 1), i % 2 ? -ESTALE : 0);
		cr_assert_eq(wharf_stream_abort(p.b.port, p.b.seen[0].stream, 2), 0);
		check_clean();
	}
	pair_free(&p);
}

Test(stream_ends, what_was_begun_goes_with_its_peer)
{
	for (unsigned whole = 0; whole < 2; whole++)
		for (unsigned how = 0; how < 5; how++) {
			uint64_t stream;
			pair_open(&p, NULL, WHARF_OPT(port, .flags = whole ? 0 : WHARF_PORT_PIECES));
			stream = begin(p.a.port);
			cr_assert_eq(push(p.a.port, stream, 10, 0), 0);
			cr_assert_eq(push_claimed(p.a.port, stream, 1000), 0);
			stream = begin(p.b.port);
			cr_assert_eq(push(p.b.port, stream, 10, 0), 0);
			settle(p.loop);
			cr_assert_eq(push_claimed(p.a.port, begin(p.a.port), 1000), 0);
			switch (how) {
			case 0: /* each side hears that the other's streams end */
				cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
				settle(p.loop);
				cr_assert_eq(p.b.n_aborted, 2);
				cr_assert_eq(p.b.aborted.why, WHARF_ABORT_SENDER);
				cr_assert_eq(p.a.n_aborted, 1);
				cr_assert_eq(p.a.reason.code, WHARF_CLOSE_LOCAL, "%s", p.a.reason_text);
				cr_assert_eq(p.b.reason.code, WHARF_CLOSE_PEER, "%s", p.b.reason_text);
				break;
			case 1:
				cr_assert_eq(wharf_port_abort(p.a.port, 0), 0);
				break;
			case 2:
				cr_assert_eq(wharf_port_abort(p.b.port, 0), 0);
				break;
			case 3:
				cr_assert_eq(wharf_port_pause(p.b.port), 0);
				settle(p.loop);
				cr_assert_eq(wharf_port_abort(p.b.port, 0), 0);
				break;
			default:
				break;
			}
			if (how < 4) {
				settle(p.loop);
				cr_assert_eq(p.a.n_closed + p.b.n_closed, 2);
			}
			pair_free(&p);
		}
}

/* ---- Anything, inside the callbacks ---- */

enum deed { ABORT_IT, ABORT_TWICE, PAUSE_AND_ABORT, CLOSE, ABORT_PORT, BEGIN, PAUSE_PORT, TAKE_AND_ABORT, DEEDS };
static enum deed deed;
static unsigned do_at;

static void do_deed(struct end *end, const struct wharf_msg *msg)
{
	uint64_t stream;

	if (!msg->stream || end->n_messages != do_at)
		return;
	switch (deed) {
	case ABORT_TWICE:
		(void)!wharf_stream_abort(end->port, msg->stream, 1);
		cr_assert_eq(wharf_stream_abort(end->port, msg->stream, 1), -ESTALE);
		break;
	case PAUSE_AND_ABORT:
		(void)!wharf_stream_pause(end->port, msg->stream);
		(void)!wharf_stream_abort(end->port, msg->stream, 1);
		break;
	case CLOSE:
		(void)!wharf_port_close(end->port, -1);
		break;
	case ABORT_PORT:
		(void)!wharf_port_abort(end->port, 1);
		break;
	case BEGIN:
		for (unsigned i = 0; i < 20; i++) {
			stream = begin(end->port);
			cr_assert_eq(push(end->port, stream, 100, i % 2 ? WHARF_LAST : 0), 0);
			if (i % 2 == 0)
				cr_assert_eq(wharf_stream_abort(end->port, stream, 0), 0);
		}
		break;
	case PAUSE_PORT:
		(void)!wharf_port_pause(end->port);
		break;
	case TAKE_AND_ABORT: {
		struct wharf_msg *taken = wharf_msg_take(msg);
		(void)!wharf_stream_abort(end->port, msg->stream, 1);
		wharf_msg_release(taken);
		break;
	}
	default:
		(void)!wharf_stream_abort(end->port, msg->stream, 1);
	}
}

static enum deed deed_in_abort;

static void in_abort(struct end *end)
{
	uint64_t stream;

	cr_assert_eq(wharf_stream_abort(end->port, end->aborted.stream, 0), -ESTALE);
	if (deed_in_abort == CLOSE)
		(void)!wharf_port_close(end->port, -1);
	else if (deed_in_abort == ABORT_PORT)
		(void)!wharf_port_abort(end->port, 0);
	else if (deed_in_abort == BEGIN && !wharf_stream_begin(end->port, 1, 10, &stream))
		(void)!push(end->port, stream, 10, WHARF_LAST);
}

static void play(uint32_t flags, uint32_t untrusted, bool paused)
{
	static const unsigned moments[] = { 1, 2, 5, 6 };

	for (deed = 0; deed < DEEDS; deed++)
		for (unsigned m = 0; m < 4; m++) {
			uint64_t stream;
			do_at = moments[m];
			deed_in_abort = (enum deed)((deed + m) % DEEDS);
			pair_open(&p, NULL, WHARF_OPT(port, .flags = flags, .untrusted = untrusted));
			p.b.on_message = do_deed;
			p.a.on_stream_abort = in_abort;
			stream = begin(p.a.port);
			cr_assert_eq(push(p.a.port, stream, 10, 0), 0);
			settle(p.loop);
			if (paused && p.b.port && p.b.n_messages && p.b.port->state == WH_PORT_OPEN)
				(void)!wharf_stream_pause(p.b.port, p.b.seen[0].stream);
			for (unsigned i = 0; i < 4; i++)
				if (p.a.port && !push_claimed(p.a.port, stream, 500))
					(void)!push(p.a.port, stream, 40000, i == 3 ? WHARF_LAST : 0);
			settle(p.loop);
			if (p.b.port)
				(void)!wharf_port_resume(p.b.port);
			if (paused && p.b.port && p.b.n_messages)
				(void)!wharf_stream_resume(p.b.port, p.b.seen[0].stream);
			settle(p.loop);
			if (p.a.port && p.b.port && p.a.port->state == WH_PORT_OPEN && deed != PAUSE_PORT &&
				p.b.port->state == WH_PORT_OPEN)
				check_clean();
			cr_assert_neq(p.a.reason.code, WHARF_CLOSE_VIOLATION, "%s", p.a.reason_text);
			cr_assert_neq(p.b.reason.code, WHARF_CLOSE_VIOLATION, "%s", p.b.reason_text);
			pair_free(&p);
		}
}

Test(stream_ends, anything_may_be_done_in_the_handler_of_a_piece)
{
	for (unsigned paused = 0; paused < 2; paused++)
		for (uint32_t untrusted = 0; untrusted < 2; untrusted++) {
			play(WHARF_PORT_PIECES, untrusted, paused);
			play(WHARF_PORT_PIECES | WHARF_PORT_INLINE, untrusted, paused);
			play(0, untrusted, paused);
		}
}
