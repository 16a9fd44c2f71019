/* SPDX-License-Identifier: MIT */
/*
 * A live port against a peer that does anything: seeded random sequences of valid, mutated and hostile frames, bad
 * memfds, false releases and sudden ends, while the application takes, pauses, sends and aborts in its callbacks. After
 * each sequence: on_close came once and last, nothing is left behind, another port of the loop still works.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "fuzz-flows.h"
#include "harness.h"
#include "raw.h"
#include "wharf.h"

enum { TAKEN_MAX = 16, SEGMENTS = 4, ACTIONS_MAX = 60 };

/* ---- The application ---- */

static struct {
	wharf_port *port; /* NULL once closed */
	struct wharf_msg *taken[TAKEN_MAX];
	unsigned n_open, n_closed, n_late;
	uint32_t code;
	bool quiet; /* does nothing odd any more */
	bool is_inline;
	uint64_t sum;
} app;

static struct { wharf_port *port; unsigned n_messages, n_closed; } good[2];
static wharf_loop *loop;
static uint64_t n_codes[16];

static void release_some(void)
{
	unsigned i = (unsigned)below(TAKEN_MAX);

	app.taken[i] = wharf_msg_release(app.taken[i]);
}

static void send_something(wharf_port *port)
{
	static unsigned char bytes[5000];
	int fds[2] = { STDERR_FILENO, STDERR_FILENO };
	struct wharf_buf b;

	switch (below(4)) {
	case 0:
		if (!wharf_buf_claim(wharf_port_pool(port), 1 + below(200000), &b) && wharf_send_buf(port, 1, &b))
			wharf_buf_abandon(&b);
		break;
	case 1: {
		struct wharf_buf two[2];
		struct wharf_part parts[3] = { { .bytes = bytes, .size = below(3000) }, { .buf = &two[0] },
			{ .buf = &two[1] } };
		struct wharf_out out = { .parts = parts, .n_parts = 3, .fds = fds, .n_fds = below(3) };
		if (wharf_buf_claim(wharf_port_pool(port), 1 + below(5000), &two[0]))
			break;
		if (!wharf_buf_claim(wharf_port_pool(port), 1 + below(300), &two[1])) {
			(void)!wharf_send(port, &out);
			wharf_buf_abandon(&two[1]);
		}
		wharf_buf_abandon(&two[0]);
		break;
	}
	default:
		(void)!wharf_send_bytes(port, 2, bytes, below(sizeof(bytes)));
	}
}

/* What an application may do at any moment. */
static void do_something(wharf_port *port)
{
	if (app.quiet)
		return;
	switch (below(24)) {
	case 0:
		(void)!wharf_port_pause(port);
		break;
	case 1:
	case 2:
		(void)!wharf_port_resume(port);
		break;
	case 3:
		if (chance(8))
			(void)!wharf_port_abort(port, 5);
		break;
	case 4:
		if (chance(8))
			(void)!wharf_port_close(port, (int64_t)below(3) - 1);
		break;
	case 5:
	case 6:
	case 7:
		release_some();
		break;
	case 8:
	case 9:
	case 10:
		send_something(port);
		break;
	case 11 ... 16:
		use_stream(port);
		break;
	case 17 ... 20:
		use_call(port);
		break;
	}
}

static void on_open(wharf_port *port, const struct wharf_peer *peer, void *user)
{
	(void)peer;
	(void)user;
	app.n_open++;
	app.n_late += app.n_closed;
	do_something(port);
}

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	unsigned i = (unsigned)below(TAKEN_MAX);

	(void)user;
	app.n_late += app.n_closed;
	for (size_t k = 0; k < msg->n_slices; k++)
		for (size_t at = 0; at < msg->slices[k].size; at += 4093)
			app.sum += ((const unsigned char *)msg->slices[k].data)[at];
	if (chance(16))
		app.sum += !wharf_msg_contiguous(msg);
	if (msg->stream)
		flows.streams[below(8)] = msg->stream;
	if (msg->call && chance(2)) {
		uint64_t *call = &flows.calls[below(8)];
		flows.n_calls += !wharf_call_take(port, msg, WHARF_OPT(answer, .on_end = on_end), call);
	}
	if (chance(3) && !app.taken[i])
		app.taken[i] = wharf_msg_take(msg);
	if (msg->n_fds && chance(3)) {
		int fd = wharf_msg_take_fd(msg, below(msg->n_fds));
		if (fd >= 0)
			close(fd);
	}
	do_something(port);
}

static void on_writable(wharf_port *port, void *user)
{
	(void)user;
	app.n_late += app.n_closed;
	do_something(port);
}

static void on_stream_abort(wharf_port *port, uint64_t stream, uint32_t why, uint32_t app_code, void *user)
{
	(void)stream;
	(void)why;
	(void)app_code;
	(void)user;
	app.n_late += app.n_closed;
	do_something(port);
}

static void on_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	(void)user;
	app.n_late += flows.n_ends != flows.n_calls;
	app.n_closed++;
	flows.closed = true;
	app.code = reason->code;
	do_something(port);
	app.port = NULL;
}

static const struct wharf_port_ops ops = {
	.size = sizeof(ops),
	.on_open = on_open,
	.on_message = on_message,
	.on_writable = on_writable,
	.on_stream_abort = on_stream_abort,
	.on_close = on_close,
};

static void good_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	(void)port;
	(void)msg;
	good[(intptr_t)user].n_messages++;
}

static void good_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	(void)port;
	(void)reason;
	good[(intptr_t)user].n_closed++;
}

static const struct wharf_port_ops good_ops = {
	.size = sizeof(good_ops),
	.on_message = good_message,
	.on_close = good_close,
};

/* ---- The peer ---- */

static struct {
	int fd;
	struct raw_segment segments[SEGMENTS];
	struct raw_holder holder;
	bool announced[WH_WIRE_SLOTS_MAX];
} peer;

static void mutate_and_send(struct raw_frame *frame, uint64_t consumed)
{
	uint32_t size = wh_encode_end(&frame->encoder, 0, consumed);

	for (uint64_t n = below(4); n; n--) {
		unsigned char *at = frame->bytes + below(size);
		switch (below(4)) {
		case 0:
			*at = (unsigned char)harness_random_next(&random_state);
			break;
		case 1:
			*at ^= (unsigned char)(1u << below(8));
			break;
		case 2:
			*at = (unsigned char)(*at + below(5) - 2);
			break;
		default:
			memcpy(frame->bytes + below(size) / 8 * 8,
				&(uint64_t){ harness_random_next(&random_state) }, 8);
		}
	}
	if (chance(20))
		size = 1 + (uint32_t)below(size);
	(void)!raw_send(peer.fd, frame->bytes, size, NULL, 0, chance(10));
}

static int bad_memfd(void)
{
	static const int seals[] = { 0, F_SEAL_SHRINK, RAW_SEALS, RAW_SEALS | F_SEAL_FUTURE_WRITE,
		RAW_SEALS | F_SEAL_WRITE };

	if (chance(6))
		return open("/dev/null", O_RDWR | O_CLOEXEC);
	return raw_memfd(below(40) * 4096, chance(3), seals[below(5)]);
}

static void announce(void)
{
	struct raw_segment *s = &peer.segments[below(SEGMENTS)];
	uint16_t slot = (uint16_t)below(chance(20) ? 256 : 8);

	if (app.is_inline && !chance(100))
		return;
	if (chance(40)) {
		int one = bad_memfd(), two = bad_memfd();
		(void)!raw_announce(peer.fd, slot, (uint8_t)(8 + below(17)), 1 + (uint32_t)below(64), one, two);
		close(one);
		close(two);
	} else if (!peer.announced[slot] || chance(100)) {
		peer.announced[slot] = raw_announce_segment(peer.fd, slot, s);
	}
}

static void retire(void)
{
	uint16_t slot = (uint16_t)below(8);

	if (peer.announced[slot] || chance(200)) {
		raw_retire(peer.fd, slot, chance(200));
		peer.announced[slot] = false;
	}
}

static void send_messages(void)
{
	struct raw_frame frame;
	unsigned char bytes[300] = { 1, 2, 3 };

	raw_begin(&frame);
	for (uint64_t n = 1 + below(20); n; n--) {
		uint16_t slot = (uint16_t)below(8);
		if (chance(3))
			put_flow(&frame, peer.announced);
		else if (peer.announced[slot] && chance(2))
			raw_put_chunks(&frame, 1, slot, (uint32_t)below(15), 1, 1 + (uint32_t)below(256));
		else
			raw_put_bytes(&frame, 2, bytes, (uint32_t)below(sizeof(bytes)));
	}
	if (chance(4))
		put_flow_control(&frame);
	if (chance(4))
		raw_put_wake(&frame);
	if (chance(200))
		raw_put_bye(&frame, 1 + (uint32_t)below(4));
	if (chance(60))
		mutate_and_send(&frame, raw_consumed);
	else
		(void)!raw_end(peer.fd, &frame, chance(200) ? below(100) : raw_consumed);
}

static void release(void)
{
	bool lie = chance(100);

	for (unsigned slot = 0; lie && slot < WH_WIRE_SLOTS_MAX; slot++)
		if (peer.holder.maps[slot])
			((uint64_t *)(void *)peer.holder.maps[slot])[below(512)] = harness_random_next(&random_state);
	if (raw_release_all(&peer.holder) || chance(10))
		(void)!raw_wake(peer.fd);
}

static int some_fds[8] = { STDERR_FILENO, STDERR_FILENO, STDERR_FILENO, STDERR_FILENO, STDERR_FILENO, STDERR_FILENO,
	STDERR_FILENO, STDERR_FILENO };

/* Few of these does a port survive. */
static void do_worse(void)
{
	switch (below(6)) {
	case 0:
		(void)!raw_bye(peer.fd, (uint32_t)below(6));
		break;
	case 1:
		(void)!raw_say_hello(peer.fd, NULL);
		break;
	case 2:
		(void)!raw_send(peer.fd, some_fds, below(2) * sizeof(some_fds), some_fds, below(8), chance(2));
		break;
	case 3:
		shutdown(peer.fd, (int)below(3));
		break;
	case 4:
		(void)!raw_report(peer.fd, below(50));
		break;
	default:
		for (unsigned i = 0; i < 100; i++)
			send_messages();
	}
}

static void act(void)
{
	if (chance(60)) {
		do_worse();
		return;
	}
	switch (below(20)) {
	case 0:
		(void)!raw_fds(peer.fd, some_fds, 1 + below(3));
		break;
	case 1 ... 4:
		announce();
		break;
	case 5:
		retire();
		break;
	case 6 ... 9:
		raw_hold(peer.fd, &peer.holder);
		raw_consumed = peer.holder.n_frames;
		break;
	case 10 ... 11:
		release();
		break;
	case 12:
		if (chance(20)) /* of what it may have mapped */
			(void)!raw_ask_again(peer.fd, (uint16_t)below(4));
		else
			(void)!raw_report(peer.fd, raw_consumed);
		break;
	default:
		send_messages();
	}
}

/* ---- One sequence ---- */

static const char *broken_rule;
#define CHECK(x) ((x) || broken_rule ? (void)0 : (void)(broken_rule = #x))

static void step(unsigned n)
{
	while (n--)
		CHECK(wharf_loop_step(loop, 0) >= 0);
}

static void open_port(void)
{
	static const uint32_t fds_max[] = { 0, 3, 253 };
	struct wharf_port_options o;
	int fds[2];

	memset(&app, 0, sizeof(app));
	WHARF_INIT(&o);
	o.ops = &ops;
	o.pool_bytes_max = chance(2) ? 1 << 20 : 0;
	o.rx_fds_max = fds_max[chance(4) ? 0 : 1 + below(2)];
	o.tx_queued_bytes_max = chance(2) ? 50000 : 0;
	o.rx_mapped_bytes_max = chance(4) ? 20 << 20 : 0;
	o.rx_msgs_per_turn = chance(3) ? 1 + (uint32_t)below(30) : 0;
	o.untrusted = chance(3);
	o.flags = (chance(3) ? WHARF_PORT_PIECES : 0u) | (chance(6) ? WHARF_PORT_INLINE : 0u);
	app.is_inline = o.flags & WHARF_PORT_INLINE;
	o.rx_stream_bytes_max = chance(3) ? 1 + below(3000) : 0;
	o.rx_assembly_bytes_max = chance(3) ? below(200000) : 0;
	o.rx_streams_max = chance(4) ? 4 : 0;
	RAW_REQUIRE(wharf_pair(fds) == 0);
	RAW_REQUIRE(wharf_open(loop, fds[0], &o, &app.port) == 0);
	peer.fd = fds[1];
	memset(&peer.holder, 0, sizeof(peer.holder));
	memset(peer.announced, 0, sizeof(peer.announced));
	memset(&flows, 0, sizeof(flows));
	raw_consumed = 0;
}

static void say_hello(void)
{
	struct wh_hello hello = raw_hello();

	hello.window_frames = (uint32_t)below(100);
	hello.frame_bytes_max = (uint32_t)(4096 + below(60000));
	hello.streams_max = (uint32_t)(chance(8) ? 0 : 64 + below(5000));
	hello.calls_max = (uint32_t)(chance(8) ? 0 : 64 + below(100000));
	hello.stream_credit_bytes = chance(8) ? below(3) : below(100000);
	hello.features = chance(2) ? WH_FEATURE_PIECES : 0;
	if (chance(6))
		hello.mapped_bytes_max = 0;
	if (chance(30))
		((unsigned char *)&hello)[8 + below(sizeof(hello) - 8)] ^= (unsigned char)(1 + below(255));
	if (chance(30))
		act();
	raw_say_hello(peer.fd, &hello);
}

/* However it stands: ends it, and gives everything back, in either order. */
static void end_port(void)
{
	bool release_first = chance(2), hang_up = chance(2);

	app.quiet = chance(2);
	if (hang_up)
		close(peer.fd);
	if (release_first)
		for (unsigned i = 0; i < TAKEN_MAX; i++)
			app.taken[i] = wharf_msg_release(app.taken[i]);
	step((unsigned)below(4));
	if (app.port && chance(4))
		(void)!wharf_port_close(app.port, 0);
	step((unsigned)below(4));
	app.quiet = true;
	if (app.port)
		(void)!wharf_port_resume(app.port);
	if (app.port && (!hang_up || flows.paused || chance(4)))
		(void)!wharf_port_abort(app.port, 1);
	for (unsigned i = 0; i < 1000 && !app.n_closed; i++)
		step(1);
	if (!hang_up)
		close(peer.fd);
	step(3);
	for (unsigned i = 0; i < TAKEN_MAX; i++)
		app.taken[i] = wharf_msg_release(app.taken[i]);
	step(4);
	raw_holder_fini(&peer.holder);
}

static void sequence(void)
{
	struct harness_snapshot before;
	unsigned n_good = good[1].n_messages;
	const char *leak;

	harness_snapshot_take(&before);
	open_port();
	step((unsigned)below(3));
	if (!chance(20))
		say_hello();
	for (uint64_t n = below(ACTIONS_MAX); n && !broken_rule; n--) {
		act();
		step((unsigned)below(3));
		if (app.port)
			do_something(app.port);
	}
	end_port();
	CHECK(app.n_closed == 1);
	CHECK(app.n_late == 0);
	CHECK(flows.n_late == 0);
	CHECK(flows.n_due == 0);
	CHECK(flows.n_ends == flows.n_calls);
	CHECK(app.n_open <= 1);
	n_codes[app.code % 16]++;
	RAW_REQUIRE(wharf_send_bytes(good[0].port, 1, "fine", 4) == 0);
	for (unsigned i = 0; i < 100 && good[1].n_messages == n_good; i++)
		step(1);
	CHECK(good[1].n_messages == n_good + 1); /* another port of the loop still works */
	CHECK(good[0].n_closed + good[1].n_closed == 0);
	leak = harness_snapshot_diff(&before);
	if (leak)
		printf("%s", leak);
	CHECK(!leak);
}

static void set_up(void)
{
	int fds[2];
	struct wharf_buf b;
	wharf_pool *pool;

	RAW_REQUIRE(wharf_loop_new(WHARF_OPT(loop, .rx_buffers = 16), &loop) == 0);
	RAW_REQUIRE(wharf_pair(fds) == 0);
	for (intptr_t i = 0; i < 2; i++)
		RAW_REQUIRE(wharf_open(loop, fds[i], WHARF_OPT(port, .ops = &good_ops, .user = (void *)i),
				    &good[i].port) == 0);
	step(4);
	/* The process's own pages are made once. */
	RAW_REQUIRE(wharf_pool_new(NULL, &pool) == 0);
	RAW_REQUIRE(wharf_buf_claim(pool, 100, &b) == 0);
	wharf_buf_abandon(&b);
	wharf_pool_unref(pool);
	for (unsigned i = 0; i < SEGMENTS; i++)
		raw_segment_open(&peer.segments[i], (uint8_t)(12 + i % 2 * 4), 16 + i * 16);
}

int main(int argc, char **argv)
{
	const char *seed = argc > 1 ? argv[1] : getenv("WHARF_TEST_SEED");
	uint64_t n_passed = 0, n_failed = 0, seconds = argc > 2 ? strtoull(argv[2], NULL, 0) : 6;
	uint64_t first = seed ? strtoull(seed, NULL, 0) : 0x706f7274;
	time_t end;

	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("seed: 0x%" PRIx64 "\n", first);
	set_up();
	/* Each has its own seed: `fuzz-port SEED` repeats what failed first. */
	for (end = time(NULL) + (time_t)seconds; n_failed < 5 && time(NULL) < end; first++) {
		random_state.state = first * 0x9e3779b97f4a7c15u;
		broken_rule = NULL;
		sequence();
		if (broken_rule)
			printf("seed 0x%" PRIx64 ": %s (ended as %s)\n", first, broken_rule,
				wharf_close_name(app.code));
		n_passed += !broken_rule;
		n_failed += !!broken_rule;
	}
	wharf_loop_free(loop);
	for (unsigned i = 0; i < SEGMENTS; i++)
		raw_segment_close(&peer.segments[i]);
	for (unsigned i = 1; i < 16; i++)
		if (n_codes[i])
			printf("%6" PRIu64 " ended as %s\n", n_codes[i], wharf_close_name(i));
	printf("%" PRIu64 " sequences held, %" PRIu64 " did not\n", n_passed, n_failed);
	/* One case: how many sequences it takes is a matter of patience. */
	printf("%d passed, %d failed, 0 skipped\n", n_passed && !n_failed, !n_passed || n_failed);
	return n_failed ? 1 : 0;
}
