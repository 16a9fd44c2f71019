/* SPDX-License-Identifier: MIT */
/* Keep-latest: what the peer has is bounded, what waits is the newest of each name. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "apart.h"
#include "harness.h"

enum { TYPE = 7, KEYS_MAX = 4096 };

struct value {
	uint64_t key, number;
};

static struct apart p;
static uint64_t latest[KEYS_MAX]; /* arrived, by key */
static uint64_t order[KEYS_MAX];  /* keys as they arrived */
static unsigned n_arrived;

static void on_value(struct end *end, const struct wharf_msg *msg)
{
	struct value v = { 0 };

	(void)end;
	cr_assert_eq(msg->type, TYPE);
	cr_assert_geq(wharf_msg_copy(msg, 0, &v, sizeof(v)), sizeof(v));
	cr_assert_lt(v.key, KEYS_MAX);
	cr_assert_gt(v.number, latest[v.key], "an older value after a newer one");
	latest[v.key] = v.number;
	if (n_arrived < KEYS_MAX)
		order[n_arrived] = v.key;
	n_arrived++;
}

static void open_ports(const struct wharf_port_options *a, const struct wharf_port_options *b)
{
	struct wharf_port_options o;

	if (a)
		o = *a;
	else
		WHARF_INIT(&o);
	o.policy = WHARF_POLICY_KEEP_LATEST;
	apart_open(&p, NULL, &o, b);
	p.b.on_message = on_value;
}

static int publish(uint64_t key, uint64_t number)
{
	struct value v = { .key = key, .number = number };

	return wharf_send(p.a.port, &(struct wharf_out){ .type = TYPE, .key = key,
		.parts = &(struct wharf_part){ .bytes = &v, .size = sizeof(v) }, .n_parts = 1 });
}

/* The same of so many bytes, claimed or not. */
static int publish_large(uint64_t key, uint64_t number, size_t size, bool claimed)
{
	struct value v = { .key = key, .number = number };
	struct wharf_buf buf = WHARF_BUF_EMPTY;
	unsigned char *memory = NULL;
	int result;

	if (claimed) {
		cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), size, &buf), 0);
		memcpy(buf.data, &v, sizeof(v));
	} else {
		memory = calloc(1, size);
		memcpy(memory, &v, sizeof(v));
	}
	result = wharf_send(p.a.port, &(struct wharf_out){ .type = TYPE, .key = key,
		.parts = claimed ? &(struct wharf_part){ .buf = &buf } :
			&(struct wharf_part){ .bytes = memory, .size = size }, .n_parts = 1 });
	if (result >= 0)
		cr_assert_null(buf.data);
	wharf_buf_abandon(&buf);
	free(memory);
	return result;
}

static void free_ports(void)
{
	apart_free(&p);
	memset(latest, 0, sizeof(latest));
	n_arrived = 0;
}

Test(latest, the_first_goes_at_once_and_the_newest_waits)
{
	open_ports(NULL, NULL);
	cr_assert_eq(publish(1, 1), 0);
	cr_assert_eq(publish(1, 2), 0);
	for (uint64_t i = 3; i <= 100; i++)
		cr_assert_eq(publish(1, i), WHARF_SENT_REPLACED);
	apart_settle(&p);
	cr_assert_eq(n_arrived, 2);
	cr_assert_eq(latest[1], 100);
	cr_assert_eq(stats_of(p.a.port).tx_replaced, 98);
	cr_assert_eq(stats_of(p.a.port).tx_messages, 2);
	cr_assert_eq(stats_of(p.a.port).tx_again, 0);
	free_ports();
}

Test(latest, a_reader_that_keeps_up_gets_every_value)
{
	open_ports(NULL, NULL);
	for (uint64_t i = 1; i <= 200; i++) {
		cr_assert_eq(i % 2 ? publish(1, i) : publish_large(1, i, 5000, true), 0);
		apart_settle(&p);
		cr_assert_eq(latest[1], i);
	}
	cr_assert_eq(n_arrived, 200);
	free_ports();
}

Test(latest, names_wait_in_the_order_in_which_they_came)
{
	static const uint64_t expected[] = { 9, 1, 2, 3 };

	open_ports(NULL, NULL);
	cr_assert_eq(publish(9, 1), 0);
	cr_assert_eq(publish(1, 1), 0);
	cr_assert_eq(publish(2, 1), 0);
	cr_assert_eq(publish(3, 1), 0);
	cr_assert_eq(publish(1, 2), WHARF_SENT_REPLACED);
	cr_assert_eq(publish(3, 2), WHARF_SENT_REPLACED);
	cr_assert_eq(publish(2, 2), WHARF_SENT_REPLACED);
	cr_assert_eq(publish(3, 3), WHARF_SENT_REPLACED, "the last one, too");
	apart_settle(&p);
	cr_assert_eq(n_arrived, 4);
	cr_assert_arr_eq(order, expected, sizeof(expected));
	cr_assert_eq(latest[1], 2);
	cr_assert_eq(latest[2], 2);
	cr_assert_eq(latest[3], 3);
	free_ports();
}

Test(latest, types_are_part_of_the_name)
{
	struct wharf_out out = { .type = 1, .key = 5 };

	open_ports(NULL, NULL);
	p.b.on_message = NULL;
	cr_assert_eq(wharf_send(p.a.port, &out), 0);
	cr_assert_eq(wharf_send(p.a.port, &out), 0);
	out.type = 2;
	cr_assert_eq(wharf_send(p.a.port, &out), 0);
	cr_assert_eq(wharf_send(p.a.port, &out), WHARF_SENT_REPLACED);
	cr_assert_eq(wharf_send_bytes(p.a.port, 2, "", 0), 0, "key 0");
	apart_settle(&p);
	cr_assert_eq(p.b.n_messages, 4);
	free_ports();
}

Test(latest, before_the_hello_only_the_newest_waits)
{
	apart_half(&p, NULL, WHARF_OPT(port, .policy = WHARF_POLICY_KEEP_LATEST));
	cr_assert_eq(publish(1, 1), 0);
	cr_assert_eq(publish(2, 1), 0);
	cr_assert_eq(publish(1, 2), WHARF_SENT_REPLACED);
	cr_assert_eq(publish_large(1, 3, 10000, true), WHARF_SENT_REPLACED);
	cr_assert_eq(apart_peer_loop(NULL, &p.loop_b), 0);
	apart_end(p.loop_b, p.fds[1], &p.b, NULL);
	p.b.on_message = on_value;
	apart_settle(&p);
	cr_assert_eq(n_arrived, 2);
	cr_assert_eq(latest[1], 3);
	cr_assert_eq(latest[2], 1);
	free_ports();
}

Test(latest, a_paused_reader_costs_two_values_and_gets_the_newest)
{
	uint64_t lent;

	open_ports(NULL, NULL);
	wharf_port_pause(p.b.port);
	for (uint64_t i = 1; i <= 3000; i++) {
		cr_assert_geq(publish_large(1, i, 60000, true), 0);
		if (i % 100 == 0)
			apart_settle(&p);
	}
	lent = stats_of(p.a.port).tx_lent_bytes;
	cr_assert(lent >= 60000 && lent < 120000, "%lu", (unsigned long)lent);
	cr_assert_eq(stats_of(p.a.port).tx_queued_bytes, 60000);
	cr_assert_eq(p.a.n_closed, 0);
	wharf_port_resume(p.b.port);
	apart_settle(&p);
	cr_assert_eq(n_arrived, 2);
	cr_assert_eq(latest[1], 3000);
	cr_assert_eq(stats_of(p.a.port).tx_replaced, 2998);
	free_ports();
}

Test(latest, unreleased_max_bounds_what_the_peer_has)
{
	open_ports(WHARF_OPT(port, .unreleased_max = 3), NULL);
	wharf_port_pause(p.b.port);
	for (uint64_t i = 1; i <= 4; i++)
		cr_assert_eq(publish(1, i), 0);
	cr_assert_eq(publish(1, 5), WHARF_SENT_REPLACED);
	apart_settle(&p);
	cr_assert_eq(publish(1, 6), WHARF_SENT_REPLACED);
	wharf_port_resume(p.b.port);
	apart_settle(&p);
	cr_assert_eq(n_arrived, 4);
	cr_assert_eq(latest[1], 6);
	/* And again, now that all are back. */
	for (uint64_t i = 7; i <= 10; i++)
		cr_assert_eq(publish_large(1, i, 3000, true), 0);
	cr_assert_eq(publish(1, 11), WHARF_SENT_REPLACED);
	apart_settle(&p);
	cr_assert_eq(latest[1], 11);
	free_ports();
}

static struct wharf_msg *taken[8];
static unsigned n_taken;

static void take_values(struct end *end, const struct wharf_msg *msg)
{
	on_value(end, msg);
	cr_assert_lt(n_taken, 8);
	taken[n_taken++] = wharf_msg_take(msg);
}

static void *release_elsewhere(void *message)
{
	wharf_msg_release(message);
	return NULL;
}

Test(latest, a_value_that_is_taken_is_with_the_peer_until_it_is_released)
{
	pthread_t thread;
	uint32_t wakes;

	open_ports(NULL, NULL);
	p.b.on_message = take_values;
	/* Released while nothing waits: the next send finds out. */
	cr_assert_eq(publish_large(1, 1, 3000, true), 0);
	apart_settle(&p);
	cr_assert_eq(n_taken, 1);
	taken[0] = wharf_msg_release(taken[0]);
	apart_settle(&p);
	cr_assert_eq(publish_large(1, 2, 3000, true), 0);
	apart_settle(&p);
	cr_assert_eq(latest[1], 2);
	/* While one waits: it is told. */
	cr_assert_eq(publish_large(1, 3, 3000, true), 0);
	cr_assert_eq(publish_large(1, 4, 3000, true), WHARF_SENT_REPLACED);
	apart_settle(&p);
	cr_assert_eq(latest[1], 2, "the peer has one, and keeps it");
	wakes = (uint32_t)stats_of(p.a.port).wakes_received;
	cr_assert_eq(pthread_create(&thread, NULL, release_elsewhere, taken[1]), 0);
	pthread_join(thread, NULL);
	apart_settle(&p);
	cr_assert_eq(latest[1], 4);
	cr_assert_eq(stats_of(p.a.port).wakes_received, wakes + 1);
	cr_assert_eq(n_taken, 3);
	wharf_msg_release(taken[2]);
	n_taken = 0;
	free_ports();
}

Test(latest, closing_sends_what_waits)
{
	open_ports(NULL, NULL);
	p.b.on_message = take_values;
	cr_assert_eq(publish_large(1, 1, 3000, true), 0);
	apart_settle(&p);
	cr_assert_eq(publish_large(1, 2, 3000, true), 0);
	cr_assert_eq(publish_large(2, 1, 3000, true), 0);
	cr_assert_eq(publish_large(1, 3, 3000, true), WHARF_SENT_REPLACED);
	apart_settle(&p);
	cr_assert_eq(n_arrived, 1, "the first is held");
	cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
	cr_assert_eq(publish(1, 9), -EPIPE);
	apart_settle(&p);
	cr_assert_eq(n_arrived, 3);
	cr_assert_eq(latest[1], 3);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_LOCAL);
	cr_assert_eq(p.a.reason.unsent_messages, 0);
	while (n_taken)
		wharf_msg_release(taken[--n_taken]);
	free_ports();
}

Test(latest, what_waits_at_the_end_of_a_port_is_given_back)
{
	struct wharf_pool_info info;
	wharf_pool *pool = shared_pool(1 << 20);
	struct wharf_buf buf;

	WHARF_INIT(&info);
	open_ports(WHARF_OPT(port, .pool = pool), NULL);
	wharf_port_pause(p.b.port);
	for (uint64_t i = 1; i <= 5; i++) {
		cr_assert_eq(wharf_buf_claim(pool, 4096, &buf), 0);
		cr_assert_geq(wharf_send(p.a.port, &(struct wharf_out){ .type = 1, .key = i / 4,
			.parts = &(struct wharf_part){ .buf = &buf }, .n_parts = 1 }), 0);
	}
	apart_settle(&p);
	wharf_port_abort(p.a.port, 0);
	apart_settle(&p);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.unsent_messages, 2);
	free_ports();
	cr_assert_eq(wharf_pool_info(pool, &info), 0);
	cr_assert_eq(info.bytes_free, info.bytes);
	wharf_pool_unref(pool);
}

Test(latest, descriptors_of_a_replaced_value_are_closed)
{
	struct harness_snapshot before;
	const char *leak;
	int ends[2];

	open_ports(NULL, WHARF_OPT(port, .rx_fds_max = 2));
	p.b.on_message = NULL;
	wharf_port_pause(p.b.port);
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .key = 1 }), 0);
	apart_settle(&p);
	harness_snapshot_take(&before);
	for (unsigned i = 0; i < 300; i++) {
		cr_assert_eq(pipe(ends), 0);
		/* More than may be unread: each takes the room of the one before. */
		cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .key = 1, .fds = ends, .n_fds = 2,
			.flags = WHARF_FDS_MOVE }), i ? WHARF_SENT_REPLACED : 0);
	}
	cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .key = 1 }), WHARF_SENT_REPLACED);
	leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
	wharf_port_resume(p.b.port);
	apart_settle(&p);
	cr_assert_eq(p.b.n_messages, 2);
	free_ports();
}

Test(latest, a_value_larger_than_a_frame_is_replaced_until_it_begins)
{
	open_ports(NULL, NULL);
	wharf_port_pause(p.b.port);
	cr_assert_eq(publish(1, 1), 0);
	cr_assert_eq(publish_large(1, 2, 3 << 20, false), 0);
	apart_settle(&p);
	cr_assert_eq(publish_large(1, 3, 3 << 20, false), WHARF_SENT_REPLACED);
	wharf_port_resume(p.b.port);
	apart_settle(&p);
	cr_assert_eq(n_arrived, 2);
	cr_assert_eq(latest[1], 3);
	/* Larger than a window: begun, and not to be replaced; the next waits behind it. */
	wharf_port_pause(p.b.port);
	cr_assert_eq(publish_large(1, 4, 12 << 20, false), 0);
	apart_settle(&p);
	cr_assert_eq(publish_large(1, 5, 12 << 20, false), -EAGAIN, "more than the queue takes behind it");
	cr_assert_eq(publish(1, 5), -EAGAIN);
	wharf_port_resume(p.b.port);
	apart_settle(&p);
	cr_assert_eq(latest[1], 4);
	cr_assert_eq(p.a.n_writable, 1);
	cr_assert_eq(publish(1, 6), 0);
	apart_settle(&p);
	cr_assert_eq(latest[1], 6);
	free_ports();
}

Test(latest, works_without_shared_memory)
{
	open_ports(WHARF_OPT(port, .flags = WHARF_PORT_INLINE), NULL);
	wharf_port_pause(p.b.port);
	for (uint64_t i = 1; i <= 50; i++)
		cr_assert_geq(publish_large(1, i, 10000, i % 2), 0);
	wharf_port_resume(p.b.port);
	apart_settle(&p);
	cr_assert_eq(n_arrived, 2);
	cr_assert_eq(latest[1], 50);
	free_ports();
}

Test(latest, any_number_of_names_waits)
{
	enum { KEYS = 3000 };

	open_ports(NULL, NULL);
	wharf_port_pause(p.b.port);
	cr_assert_eq(publish(KEYS, 1), 0);
	for (uint64_t key = 0; key < KEYS; key++)
		cr_assert_eq(publish(key, 1), 0);
	for (uint64_t i = 2; i < 5; i++)
		for (uint64_t key = 0; key < KEYS; key++)
			cr_assert_eq(publish((key * 7) % KEYS, i), WHARF_SENT_REPLACED);
	apart_settle(&p);
	wharf_port_resume(p.b.port);
	apart_settle(&p);
	cr_assert_eq(n_arrived, KEYS + 1);
	for (uint64_t key = 0; key < KEYS; key++) {
		cr_assert_eq(latest[key], 4);
		cr_assert_eq(order[key + 1], key);
	}
	free_ports();
}

Test(latest, the_cap_bounds_the_names_that_wait)
{
	unsigned n = 0;
	int error;

	open_ports(WHARF_OPT(port, .tx_queued_bytes_max = 65536), NULL);
	wharf_port_pause(p.b.port);
	cr_assert_eq(publish(0, 1), 0);
	do
		error = publish(++n, 1);
	while (!error);
	cr_assert_eq(error, -EAGAIN);
	cr_assert(n > 10 && n < 1000, "%u", n);
	cr_assert_eq(publish(1, 2), WHARF_SENT_REPLACED, "what is there already is replaced");
	cr_assert_eq(publish_large(1, 3, 60000, false), -EAGAIN, "but not by what does not fit");
	apart_settle(&p);
	cr_assert_eq(p.a.n_writable, 0);
	wharf_port_resume(p.b.port);
	apart_settle(&p);
	cr_assert_eq(p.a.n_writable, 1);
	cr_assert_eq(n_arrived, n);
	cr_assert_eq(publish(n, 1), 0);
	apart_settle(&p);
	cr_assert_eq(latest[1], 2);
	free_ports();
}

static unsigned n_done;

static void done(const void *bytes, size_t size, void *user)
{
	(void)bytes;
	(void)size;
	(void)user;
	n_done++;
}

Test(latest, bytes_by_reference_are_given_back_when_they_are_replaced)
{
	static struct value v[3] = { { 1, 1 }, { 1, 2 }, { 1, 3 } };

	open_ports(NULL, NULL);
	wharf_port_pause(p.b.port);
	cr_assert_eq(publish(0, 1), 0);
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(wharf_send(p.a.port, &(struct wharf_out){ .type = TYPE, .key = 1, .n_parts = 1,
			.parts = &(struct wharf_part){ .bytes = &v[i], .size = sizeof(*v), .done = done } }),
			i ? WHARF_SENT_REPLACED : 0);
	cr_assert_eq(n_done, 0, "never inside a send");
	apart_settle(&p);
	cr_assert_eq(n_done, 2);
	wharf_port_resume(p.b.port);
	apart_settle(&p);
	cr_assert_eq(n_done, 3);
	cr_assert_eq(latest[1], 3);
	free_ports();
}

Test(latest, streams_go_on_beside_values_that_wait)
{
	uint64_t stream;

	open_ports(NULL, NULL);
	p.b.on_message = take_values;
	cr_assert_eq(publish_large(1, 1, 3000, true), 0);
	apart_settle(&p);
	cr_assert_eq(publish(1, 2), 0);
	apart_settle(&p);
	p.b.on_message = NULL;
	cr_assert_eq(wharf_stream_begin(p.a.port, 5, 1000, &stream), 0);
	cr_assert_eq(wharf_stream_send(p.a.port, stream, &(struct wharf_out){ .flags = WHARF_LAST, .n_parts = 1,
		.parts = &(struct wharf_part){ .bytes = (char[1000]){ 0 }, .size = 1000 } }), 0);
	apart_settle(&p);
	cr_assert_eq(p.b.n_messages, 2);
	cr_assert_eq(p.b.seen[1].type, 5);
	p.b.on_message = on_value;
	wharf_msg_release(taken[--n_taken]);
	apart_settle(&p);
	cr_assert_eq(latest[1], 2);
	free_ports();
}

Test(latest, what_is_posted_is_a_value_too)
{
	struct value v = { .key = 1 };
	struct wharf_out out = { .type = TYPE, .key = 1, .parts = &(struct wharf_part){ .bytes = &v, .size = sizeof(v) },
		.n_parts = 1 };

	open_ports(NULL, NULL);
	wharf_port_pause(p.b.port);
	for (v.number = 1; v.number <= 10; v.number++)
		cr_assert_eq(wharf_post(p.a.port, &out, 0), 0);
	apart_settle(&p);
	cr_assert_eq(stats_of(p.a.port).tx_replaced, 8);
	cr_assert_eq(publish(1, 11), WHARF_SENT_REPLACED);
	cr_assert_eq(publish(2, 1), 0);
	v.number = 12;
	cr_assert_eq(wharf_post(p.a.port, &out, 0), 0);
	apart_settle(&p);
	wharf_port_resume(p.b.port);
	apart_settle(&p);
	cr_assert_eq(n_arrived, 3);
	cr_assert_eq(latest[1], 12);
	cr_assert_eq(order[1], 1, "in its place");
	free_ports();
}

/* ---- Everything at once ---- */

enum { KEYS = 60, STEPS = 3000 };
static struct wharf_msg *kept[16];
static struct harness_random r;

static uint64_t below(uint64_t n) { return harness_random_below(&r, n); }

static void maybe_take(struct end *end, const struct wharf_msg *msg)
{
	on_value(end, msg);
	for (unsigned i = 0; i < 16; i++)
		if (!kept[i]) {
			kept[i] = below(3) ? NULL : wharf_msg_take(msg);
			return;
		}
}

Test(latest, whatever_readers_do_each_name_ends_at_its_newest)
{
	static uint64_t sent[KEYS];
	uint64_t n_replaced = 0, n_accepted = 0;
	static const struct { uint32_t unreleased_max, flags; uint64_t lent_max; } ports[] = {
		{ 1, 0, 0 }, { 2, 0, 0 }, { 7, 0, 0 }, { 1, WHARF_PORT_INLINE, 0 }, { 4, 0, 30000 },
	};

	r.state = harness_seed();
	for (unsigned round = 0; round < sizeof(ports) / sizeof(*ports); round++) {
		memset(sent, 0, sizeof(sent));
		n_replaced = n_accepted = 0;
		open_ports(WHARF_OPT(port, .unreleased_max = ports[round].unreleased_max, .flags = ports[round].flags,
			.tx_lent_bytes_max = ports[round].lent_max), NULL);
		p.b.on_message = maybe_take;
		for (unsigned i = 0; i < STEPS; i++) {
			uint64_t key = below(below(2) ? KEYS : 3), number = sent[key] + 1;
			int result;
			switch (below(10)) {
			case 0:
				wharf_port_pause(p.b.port);
				break;
			case 1:
				wharf_port_resume(p.b.port);
				break;
			case 2: {
				struct wharf_msg **m = &kept[below(16)];
				*m = wharf_msg_release(*m);
				break;
			}
			case 3:
				cr_assert_geq(wharf_loop_step(p.loop_a, 0), 0);
				break;
			case 4:
				cr_assert_geq(wharf_loop_step(p.loop_b, 0), 0);
				break;
			default:
				result = publish_large(key, number, 16 + below(5000), below(3));
				if (result == -EAGAIN && ports[round].lent_max)
					break;
				cr_assert(result == 0 || result == WHARF_SENT_REPLACED, "%d", result);
				sent[key] = number;
				n_accepted++;
				n_replaced += result == WHARF_SENT_REPLACED;
			}
		}
		wharf_port_resume(p.b.port);
		for (unsigned i = 0; i < 16 * KEYS; i++) {
			apart_settle(&p);
			kept[i % 16] = wharf_msg_release(kept[i % 16]);
		}
		cr_assert_arr_eq(latest, sent, sizeof(sent));
		cr_assert_eq(n_arrived + n_replaced, n_accepted);
		cr_assert_eq(stats_of(p.a.port).tx_replaced, n_replaced);
		free_ports();
	}
}
