/* SPDX-License-Identifier: MIT */
/* Keep-latest and dropping ports beside what else a port does: memory by reference, ends that are passed, posts. */
#include <criterion/criterion.h>
#include <errno.h>
#include <unistd.h>

#include "apart.h"
#include "harness.h"

static struct apart p;
static unsigned n_done;
static struct wharf_msg *kept;

static int send_by_reference(uint64_t key);

/* Its memory is free again: the next value goes out at once. */
static void send_again(const void *bytes, size_t size, void *user)
{
	(void)bytes, (void)size;
	n_done++;
	if (p.a.port)
		(void)!send_by_reference((uint64_t)(uintptr_t)user);
}

static int send_by_reference(uint64_t key)
{
	static const char bytes[64];

	return wharf_send(p.a.port,
		&(struct wharf_out){ .type = 1, .key = key,
			.parts = &(struct wharf_part){ .bytes = bytes, .size = sizeof(bytes), .done = send_again,
				.user = (void *)(uintptr_t)key }, .n_parts = 1 });
}

Test(latest_rest, a_done_that_sends_again_does_not_keep_the_turn, .timeout = 20)
{
	n_done = 0;
	apart_open(&p, NULL, WHARF_OPT(port, .policy = WHARF_POLICY_KEEP_LATEST), NULL);
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	/* The first is with the peer; each of the others replaces what waits, and is replaced. */
	for (unsigned i = 0; i < 3; i++)
		cr_assert_geq(send_by_reference(1), 0);
	for (unsigned i = 0; i < 100; i++)
		cr_assert_geq(wharf_loop_step(p.loop_a, 0), 0);
	cr_assert_gt(n_done, 0);
	cr_assert_leq(n_done, 300, "%u in 100 turns", n_done);
	cr_assert_eq(wharf_port_abort(p.a.port, 0), 0);
	apart_free(&p);
}

static void keep(struct end *end, const struct wharf_msg *msg)
{
	(void)end;
	if (!kept)
		kept = wharf_msg_take(msg);
}

Test(latest_rest, an_end_that_is_passed_leaves_when_the_value_before_it_is_released)
{
	struct wharf_buf buf;
	int fds[2];

	kept = NULL;
	apart_open(&p, NULL, WHARF_OPT(port, .policy = WHARF_POLICY_KEEP_LATEST), WHARF_OPT(port, .rx_fds_max = 1));
	p.b.on_message = keep;
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 1000, &buf), 0);
	cr_assert_eq(wharf_send_buf(p.a.port, 1, &buf), 0);
	apart_settle(&p);
	cr_assert_not_null(kept);
	cr_assert_eq(wharf_pair(fds), 0);
	cr_assert_eq(wharf_port_pass(p.a.port, 2, fds[1]), 0);
	apart_settle(&p);
	cr_assert_eq(p.b.n_messages, 1, "the value is still out");
	kept = wharf_msg_release(kept);
	apart_settle(&p);
	cr_assert_eq(p.b.n_messages, 2);
	close(fds[0]);
	apart_free(&p);
}

Test(latest_rest, posts_that_are_replaced_give_their_room_back)
{
	static const char bytes[100000];

	apart_open(&p, NULL, WHARF_OPT(port, .policy = WHARF_POLICY_KEEP_LATEST, .tx_queued_bytes_max = 300000), NULL);
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	for (unsigned i = 0; i < 20; i++) {
		cr_assert_eq(wharf_post(p.a.port,
				     &(struct wharf_out){ .type = 1, .key = 1,
					     .parts = &(struct wharf_part){ .bytes = bytes, .size = sizeof(bytes) },
					     .n_parts = 1 }, 0), 0, "post %u", i);
		apart_settle(&p);
	}
	apart_free(&p);
}
