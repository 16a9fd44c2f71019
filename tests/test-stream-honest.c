/* SPDX-License-Identifier: MIT */
/*
 * Two honest ports that do anything with streams and calls, in any order, with any limits: neither ever accuses the
 * other of breaking the rules, what is delivered is what was sent, and nothing is left.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "apart.h"
#include "harness.h"
#include "pair.h"
#include "port.h"

enum { STREAMS = 12, CALLS = 8, SEQUENCES = 400, STEPS = 150 };

static struct pair p;
static struct harness_random random_state;
static uint64_t seed;

static uint64_t below(uint64_t n) { return harness_random_below(&random_state, n); }
static bool chance(unsigned in) { return !below(in); }

struct side {
	uint64_t out[STREAMS], in[STREAMS], calls[CALLS];
	size_t sent[STREAMS];
	struct wharf_msg *taken[8];
	unsigned n_calls, n_ends;
};
static struct side sides[2];
static unsigned char pattern[1 << 20];

static struct side *side_of(const wharf_port *port) { return &sides[port == p.b.port]; }

static void on_end(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user)
{
	(void)port, (void)id;
	/* What the peer's violation would be. */
	cr_assert_neq(end->reason, WHARF_END_ERROR, "seed 0x%" PRIx64 ": %d", seed, end->error);
	((struct side *)user)->n_ends++;
}

static size_t any_size(void) { return chance(5) ? below(150000) : below(900); }

/* Parts of the pattern in bytes or claimed memory. */
static int send_some(wharf_port *port, size_t at, size_t size, uint32_t flags,
	int (*send)(wharf_port *port, uint64_t id, const struct wharf_out *out), uint64_t id)
{
	struct wharf_part part = { .bytes = pattern + at, .size = size };
	struct wharf_buf b = WHARF_BUF_EMPTY;
	int error;

	if (size && chance(2) && !wharf_buf_claim(wharf_port_pool(port), size, &b)) {
		memcpy(b.data, pattern + at, size);
		part = (struct wharf_part){ .buf = &b };
	}
	error = send(port, id, &(struct wharf_out){ .type = 4, .flags = flags, .parts = &part, .n_parts = 1 });
	wharf_buf_abandon(&b);
	return error;
}

static int reply(wharf_port *port, uint64_t id, const struct wharf_out *out) { return wharf_reply(port, id, out, 0); }
static int plain(wharf_port *port, uint64_t id, const struct wharf_out *out)
{
	(void)id;
	return wharf_send(port, out);
}

static void use_stream(wharf_port *port, struct side *s)
{
	unsigned i = (unsigned)below(STREAMS);
	size_t size = any_size();
	int error = 0;

	switch (below(9)) {
	case 0:
	case 1:
		error = wharf_stream_begin(port, 9, WHARF_BYTES_UNKNOWN, &s->out[i]);
		s->sent[i] = error ? s->sent[i] : 0;
		break;
	case 2:
		error = wharf_stream_abort(port, chance(2) ? s->out[i] : s->in[i], 0);
		break;
	case 3:
		(void)!wharf_stream_pause(port, s->in[i]);
		break;
	case 4:
	case 5:
		(void)!wharf_stream_resume(port, s->in[i]);
		break;
	case 6:
		error = wharf_stream_end(port, s->out[i]);
		break;
	default:
		if (!s->out[i] || s->sent[i] + size > sizeof(pattern))
			break;
		error = send_some(port, s->sent[i], size, chance(6) ? WHARF_LAST : 0, wharf_stream_send, s->out[i]);
		s->sent[i] += error ? 0 : size;
	}
	cr_assert(!error || error == -EAGAIN || error == -ESTALE || error == -EPIPE || error == -EMSGSIZE,
		"seed 0x%" PRIx64 ": %d", seed, error);
}

static void use_call(wharf_port *port, struct side *s)
{
	unsigned i = (unsigned)below(CALLS);
	struct wharf_part part = { .bytes = pattern, .size = any_size() };
	struct wharf_out out = { .parts = &part, .n_parts = 1, .flags = chance(2) ? WHARF_LAST : 0 };
	int error = 0;

	switch (below(8)) {
	case 0:
	case 1:
		error = wharf_call(port, &out, WHARF_OPT(call, .on_end = on_end, .user = s), &s->calls[i]);
		s->n_calls += !error;
		break;
	case 2:
		error = send_some(port, 0, any_size(), chance(2) ? WHARF_LAST : 0, wharf_call_send, s->calls[i]);
		break;
	case 3:
		error = s->calls[i] >> 63 ? wharf_call_refuse(port, s->calls[i], 1)
					  : wharf_call_cancel(port, s->calls[i]);
		break;
	case 4:
		(void)!(chance(3) ? wharf_call_pause(port, s->calls[i]) : wharf_call_resume(port, s->calls[i]));
		break;
	default:
		error = send_some(port, 0, any_size(), chance(3) ? WHARF_LAST : 0, reply, s->calls[i]);
	}
	cr_assert(!error || error == -EAGAIN || error == -ESTALE || error == -EPIPE || error == -EMSGSIZE ||
		error == -EALREADY, "seed 0x%" PRIx64 ": %d", seed, error);
}

static void do_something(wharf_port *port)
{
	struct side *s = side_of(port);
	unsigned i = (unsigned)below(8);

	switch (below(12)) {
	case 0:
		s->taken[i] = wharf_msg_release(s->taken[i]);
		break;
	case 1:
		(void)!send_some(port, 0, any_size(), 0, plain, 0);
		break;
	case 2:
		(void)!(chance(4) ? wharf_port_pause(port) : wharf_port_resume(port));
		break;
	case 3 ... 5:
		use_call(port, s);
		break;
	default:
		use_stream(port, s);
	}
}

static void look(struct end *end, const struct wharf_msg *msg)
{
	struct side *s = side_of(end->port);
	size_t at = msg->flags & WHARF_MSG_FRAGMENT ? msg->position_bytes : 0;
	unsigned i = (unsigned)below(8);

	for (size_t k = 0; k < msg->n_slices; at += msg->slices[k++].size)
		cr_assert_eq(memcmp(msg->slices[k].data, pattern + at, msg->slices[k].size), 0, "seed 0x%" PRIx64, seed);
	if (msg->stream)
		s->in[below(STREAMS)] = msg->stream;
	if (msg->call >> 63 && chance(2))
		s->n_calls += !wharf_call_take(end->port, msg, WHARF_OPT(answer, .on_end = on_end, .user = s),
			&s->calls[below(CALLS)]);
	if (chance(4) && !s->taken[i])
		s->taken[i] = wharf_msg_take(msg);
	if (chance(3))
		do_something(end->port);
}

static void on_abort(struct end *end)
{
	cr_assert_neq(end->aborted.why, WHARF_ABORT_VIOLATION, "seed 0x%" PRIx64, seed);
	if (chance(3))
		do_something(end->port);
}

static void random_options(struct wharf_port_options *o)
{
	WHARF_INIT(o);
	o->flags = (chance(2) ? WHARF_PORT_PIECES : 0u) | (chance(6) ? WHARF_PORT_INLINE : 0u);
	o->pool_bytes_max = chance(2) ? 1 << 20 : 0;
	o->tx_queued_bytes_max = chance(2) ? 20000 + below(200000) : 0;
	o->rx_stream_bytes_max = chance(3) ? 0 : 1 + below(chance(2) ? 2000 : 100000);
	o->rx_streams_max = chance(2) ? 1 + (uint32_t)below(5) : 0;
	o->rx_calls_max = chance(2) ? 1 + (uint32_t)below(5) : 0;
	o->rx_msgs_per_turn = chance(3) ? 1 + (uint32_t)below(30) : 0;
	o->untrusted = chance(4);
}

static void release_all(void)
{
	for (unsigned i = 0; i < 2; i++)
		for (unsigned k = 0; k < 8; k++)
			sides[i].taken[k] = wharf_msg_release(sides[i].taken[k]);
}

static void go_on(wharf_port *port)
{
	cr_assert_eq(wharf_port_resume(port), 0);
	for (unsigned kind = WH_FLOW_STREAM_IN; kind < WH_FLOW_KINDS; kind++)
		for (uint32_t i = 0; i < port->flows[kind].n_slots; i++)
			if (port->flows[kind].flows[i])
				wh_flow_resume(port->flows[kind].flows[i]);
}

static void check_drained(wharf_port *port)
{
	struct side *s = side_of(port);

	cr_assert_eq(port->queued_bytes + port->queued_messages, 0, "seed 0x%" PRIx64, seed);
	cr_assert(wh_list_empty(&port->held) && !port->n_aside, "seed 0x%" PRIx64, seed);
	cr_assert(wh_list_empty(&port->farewells), "seed 0x%" PRIx64, seed);
	cr_assert_eq(port->tx_fds_queued, 0);
	for (unsigned i = 0; i < STREAMS; i++) {
		int error = s->out[i] ? wharf_stream_send(port, s->out[i], &(struct wharf_out){ 0 }) : 0;
		cr_assert(!error || error == -ESTALE, "seed 0x%" PRIx64 ": its credit has not come back: %d", seed, error);
	}
}

/* Whatever has happened: once all is released and resumed, all that was sent arrives, and more can be sent. */
static void check_alive(void)
{
	p.a.on_message = p.b.on_message = NULL;
	p.a.on_stream_abort = p.b.on_stream_abort = NULL;
	release_all();
	go_on(p.a.port);
	go_on(p.b.port);
	settle(p.loop);
	check_drained(p.a.port);
	check_drained(p.b.port);
}

static void end_all(void)
{
	if (chance(2))
		release_all();
	if (p.a.port && chance(2))
		(void)!wharf_port_close(p.a.port, 0);
	if (p.b.port && chance(2))
		(void)!wharf_port_resume(p.b.port);
	for (unsigned i = 0; i < 5; i++)
		cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
}

static void sequence(void)
{
	struct wharf_port_options a, b;

	memset(sides, 0, sizeof(sides));
	random_options(&a);
	random_options(&b);
	pair_start(&p, &a, &b);
	p.a.on_message = p.b.on_message = look;
	p.a.on_stream_abort = p.b.on_stream_abort = on_abort;
	/* Early streams may be more than the peer takes: that is told, and tested elsewhere. */
	settle(p.loop);
	for (unsigned i = 0; i < STEPS; i++) {
		if (p.a.port)
			do_something(p.a.port);
		if (p.b.port)
			do_something(p.b.port);
		for (uint64_t n = below(3); n; n--)
			cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
		cr_assert_eq(p.a.n_closed + p.b.n_closed, 0, "seed 0x%" PRIx64 ": %s; %s", seed, p.a.reason_text,
			p.b.reason_text);
		cr_assert_eq(stats_of(p.a.port).rx_stream_violations + stats_of(p.b.port).rx_stream_violations, 0,
			"seed 0x%" PRIx64, seed);
	}
	if (chance(2))
		check_alive();
	end_all();
	pair_free(&p);
	release_all();
	for (unsigned i = 0; i < 2; i++)
		cr_assert_eq(sides[i].n_ends, sides[i].n_calls, "seed 0x%" PRIx64, seed);
	cr_assert_neq(p.a.reason.code, WHARF_CLOSE_VIOLATION, "seed 0x%" PRIx64 ": %s", seed, p.a.reason_text);
	cr_assert_neq(p.b.reason.code, WHARF_CLOSE_VIOLATION, "seed 0x%" PRIx64 ": %s", seed, p.b.reason_text);
}

Test(stream_honest, two_that_keep_the_rules_never_accuse_each_other, .timeout = 120)
{
	struct harness_snapshot before;
	const char *leak;

	for (size_t i = 0; i < sizeof(pattern); i++)
		pattern[i] = (unsigned char)(i * 7 + (i >> 8) + (i >> 16));
	seed = harness_seed();
	pair_open(&p, NULL, NULL);
	pair_free(&p);
	harness_snapshot_take(&before);
	for (unsigned i = 0; i < SEQUENCES; i++, seed++) {
		random_state.state = seed * 0x9e3779b97f4a7c15u;
		sequence();
	}
	leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}
