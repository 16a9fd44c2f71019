/* SPDX-License-Identifier: MIT */
/* A thousand keep-latest ports of one pool, some of whose peers have stopped. */
#include <criterion/criterion.h>
#include <string.h>

#include "harness.h"
#include "wharf.h"

enum { PORTS = 1000, LOOPS = 4, PAUSED_EACH = 10, ROUNDS = 40, VALUE_BYTES = 6000 };

struct subscriber {
	wharf_port *port;
	bool paused;
	uint64_t number;
	unsigned n_values;
};

static wharf_loop *publisher, *loops[LOOPS];
static wharf_port *ports[PORTS];
static struct subscriber subscribers[PORTS];
static wharf_pool *pool;
static unsigned n_open, n_closed;
static uint64_t n_sent, n_replaced;

static void on_open(wharf_port *port, const struct wharf_peer *peer, void *user)
{
	(void)port;
	(void)peer;
	(void)user;
	n_open++;
}

static void on_value(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct subscriber *s = user;
	uint64_t number;

	(void)port;
	cr_assert_eq(msg->size, VALUE_BYTES);
	memcpy(&number, msg->slices[0].data, sizeof(number));
	cr_assert_gt(number, s->number, "an older value after a newer one");
	s->number = number;
	s->n_values++;
}

static void on_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	(void)port;
	(void)user;
	cr_assert(reason->code == WHARF_CLOSE_LOCAL || reason->code == WHARF_CLOSE_PEER, "%s", reason->text);
	n_closed++;
}

static const struct wharf_port_ops publisher_ops = { .size = sizeof(publisher_ops), .on_open = on_open,
	.on_close = on_close };
static const struct wharf_port_ops subscriber_ops = { .size = sizeof(subscriber_ops), .on_message = on_value,
	.on_close = on_close };

static bool step_all(void)
{
	int more = wharf_loop_step(publisher, 0);

	for (unsigned i = 0; i < LOOPS; i++)
		more |= wharf_loop_step(loops[i], 0);
	cr_assert_geq(more, 0);
	return more;
}

static void settle_all(void)
{
	for (int quiet = 0; quiet < 4;)
		quiet = step_all() ? 0 : quiet + 1;
}

static void open_all(void)
{
	int fds[2];

	cr_assert_eq(wharf_pool_new(WHARF_OPT(pool, .shared = 1, .bytes_max = 8 << 20), &pool), 0);
	cr_assert_eq(wharf_loop_new(WHARF_OPT(loop, .rx_buffers = 1024), &publisher), 0);
	harness_engine_of(true);
	for (unsigned i = 0; i < LOOPS; i++)
		cr_assert_eq(wharf_loop_new(NULL, &loops[i]), 0);
	for (unsigned i = 0; i < PORTS; i++) {
		cr_assert_eq(wharf_pair(fds), 0);
		cr_assert_eq(wharf_open(publisher, fds[0], WHARF_OPT(port, .ops = &publisher_ops, .pool = pool,
			.policy = WHARF_POLICY_KEEP_LATEST), &ports[i]), 0);
		cr_assert_eq(wharf_open(loops[i % LOOPS], fds[1], WHARF_OPT(port, .ops = &subscriber_ops,
			.user = &subscribers[i]), &subscribers[i].port), 0);
	}
	while (n_open < PORTS)
		step_all();
}

static void publish(uint64_t number)
{
	struct wharf_buf whole, one;

	cr_assert_eq(wharf_buf_claim(pool, VALUE_BYTES, &whole), 0, "the pool ran dry");
	memcpy(whole.data, &number, sizeof(number));
	for (unsigned i = 0; i < PORTS; i++) {
		cr_assert_eq(wharf_buf_ref(&whole, &one), 0);
		int result = wharf_send(ports[i], &(struct wharf_out){ .type = 1, .key = 1,
			.parts = &(struct wharf_part){ .buf = &one }, .n_parts = 1 });
		cr_assert(result == 0 || result == WHARF_SENT_REPLACED, "%d", result);
		n_sent++;
		n_replaced += result == WHARF_SENT_REPLACED;
	}
	wharf_buf_abandon(&whole);
}

TestSuite(latest_many, .timeout = 120);

Test(latest_many, a_hundred_that_stopped_keep_nothing_from_the_others)
{
	struct wharf_port_stats stats;
	uint64_t replaced = 0, received = 0, number = 0;
	struct wharf_pool_info info;

	/* Both ends of each, and for a while two descriptors of what each is told. */
	if (!harness_raise_fds(6 * PORTS))
		cr_skip_test("a thousand ports take 6000 descriptors");
	open_all();
	/* They stop one after the other, at different values. */
	for (unsigned round = 0; round < ROUNDS; round++) {
		for (unsigned i = 0; i < PORTS; i += PAUSED_EACH)
			if (i / PAUSED_EACH % ROUNDS == round) {
				subscribers[i].paused = true;
				cr_assert_eq(wharf_port_pause(subscribers[i].port), 0);
			}
		publish(++number);
		if (round % 2)
			continue;
		settle_all();
		for (unsigned i = 0; i < PORTS; i++)
			cr_assert(subscribers[i].paused || subscribers[i].number == number, "port %u has %lu of %lu", i,
				(unsigned long)subscribers[i].number, (unsigned long)number);
	}
	settle_all();
	WHARF_INIT(&info);
	wharf_pool_info(pool, &info);
	cr_assert_leq(info.bytes, 8 << 20);
	cr_assert_leq(info.bytes_lent, ROUNDS * 8192);
	for (unsigned i = 0; i < PORTS; i++) {
		cr_assert_eq(subscribers[i].paused, i % PAUSED_EACH == 0);
		cr_assert(subscribers[i].paused ? subscribers[i].number < number : subscribers[i].number == number);
	}
	for (unsigned i = 0; i < PORTS; i += PAUSED_EACH)
		wharf_port_resume(subscribers[i].port);
	settle_all();
	for (unsigned i = 0; i < PORTS; i++) {
		WHARF_INIT(&stats);
		cr_assert_eq(wharf_port_stats(ports[i], &stats), 0);
		replaced += stats.tx_replaced;
		received += subscribers[i].n_values;
		cr_assert_eq(subscribers[i].number, number, "port %u", i);
		cr_assert_eq(stats.tx_lent_bytes, 0);
	}
	cr_assert_eq(replaced, n_replaced);
	cr_assert_eq(received + replaced, n_sent);
	cr_assert_eq(n_closed, 0);
	for (unsigned i = 0; i < PORTS; i++)
		wharf_port_close(ports[i], -1);
	settle_all();
	cr_assert_eq(n_closed, 2 * PORTS);
	wharf_loop_free(publisher);
	for (unsigned i = 0; i < LOOPS; i++)
		wharf_loop_free(loops[i]);
	wharf_pool_unref(pool);
}
