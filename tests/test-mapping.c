/* SPDX-License-Identifier: MIT */
/* A peer's memory as a port maps it: slots are what the peer calls them, and none stays of a segment that failed. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include "apart.h"
#include "harness.h"
#include "port.h"
#include "raw.h"

enum { SHIFT = 12, CHUNKS = 64, BYTES = CHUNKS << SHIFT };

static struct pair p;
static int peer;

static void begin(const struct wharf_port_options *options)
{
	peer = pair_open_half(&p, options);
	cr_assert(raw_say_hello(peer, NULL));
	settle(p.loop);
	cr_assert_eq(p.a.n_open, 1);
}

static void finish(void)
{
	close(peer);
	pair_free(&p);
	cr_assert_eq(harness_count_maps("by hand"), 0);
}

Test(mapping, slots_are_known_by_their_number_in_whatever_order_they_come)
{
	static const uint16_t slots[] = { 200, 3, WH_WIRE_SLOTS_MAX - 1, 0, 100 };
	enum { N = sizeof(slots) / sizeof(*slots) };
	struct raw_segment s[N];

	begin(NULL);
	for (unsigned i = 0; i < N; i++) {
		raw_segment_open(&s[i], SHIFT, CHUNKS);
		*s[i].segment.base = (char)('a' + i);
		cr_assert(raw_announce_segment(peer, slots[i], &s[i]));
	}
	for (unsigned i = N; i-- > 0;)
		cr_assert(raw_chunks(peer, slots[i], 0, 1, 1));
	settle(p.loop);
	cr_assert_eq(p.a.n_messages, N, "%s", p.a.reason_text);
	for (unsigned i = 0; i < N; i++) {
		cr_assert_eq(p.a.seen[i].bytes[0], 'a' + N - 1 - i);
		cr_assert_eq(atomic_load(&s[i].map->words[0]), 1, "and given back to the segment that it came from");
		raw_segment_close(&s[i]);
	}
	finish();
}

Test(mapping, nothing_stays_of_a_segment_that_could_not_be_mapped)
{
	struct raw_segment s;

	/* Its release map is too small, or it is not sealed; a message that lies in it is on its way already. */
	for (int i = 0; i < 2; i++) {
		int bad = raw_memfd(i ? (size_t)CHUNKS << SHIFT : 64, false, i ? 0 : RAW_SEALS);
		begin(NULL);
		raw_segment_open(&s, SHIFT, CHUNKS);
		cr_assert(raw_announce(peer, 7, SHIFT, CHUNKS, i ? bad : s.segment.fd, i ? s.map_fd : bad));
		cr_assert(raw_chunks(peer, 7, 0, 1, 1));
		close(bad);
		settle(p.loop);
		cr_assert_eq(p.a.n_closed, 1);
		cr_assert_eq(p.a.reason.code, WHARF_CLOSE_VIOLATION);
		cr_assert_eq(p.a.n_messages, 0);
		raw_segment_close(&s);
		finish();
	}
}

/* ---- What the peer takes back while messages lie in it ---- */

static struct raw_segment segment;

/* The peer has two segments at most; a message that lies in the first one is taken, and the peer wants that one back. */
static void take_and_retire(void)
{
	taken_first = NULL;
	begin(WHARF_OPT(port, .rx_mapped_bytes_max = 2 * BYTES));
	p.a.on_message = take_first;
	raw_segment_open(&segment, SHIFT, CHUNKS);
	cr_assert(raw_announce_segment(peer, 0, &segment));
	cr_assert(raw_chunks(peer, 0, 0, 1, 100));
	settle(p.loop);
	cr_assert_not_null(taken_first);
	cr_assert(raw_retire(peer, 0, false));
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
}

/* Is told that the slot is free. */
static bool hears_of_slot_0(void)
{
	struct raw_read read;
	bool hears = false;

	while (raw_receive(peer, &read)) {
		const struct wh_slot_record *r = raw_find(&read, WH_RECORD_RETIRE);
		hears |= r && r->slot == 0 && r->acknowledged;
	}
	return hears;
}

static void *release(void *msg) { return wharf_msg_release(msg); }

static void release_elsewhere(struct wharf_msg *msg)
{
	pthread_t thread;

	cr_assert_eq(pthread_create(&thread, NULL, release, msg), 0);
	cr_assert_eq(pthread_join(thread, NULL), 0);
}

Test(mapping, what_is_taken_back_counts_until_no_message_lies_in_it)
{
	take_and_retire();
	cr_assert_not(hears_of_slot_0());
	cr_assert_eq(stats_of(p.a.port).rx_mapped_bytes, BYTES);
	cr_assert(raw_announce_segment(peer, 1, &segment));
	settle(p.loop);
	cr_assert_eq(stats_of(p.a.port).rx_mapped_bytes, 2 * BYTES);
	cr_assert_eq(harness_count_maps("by hand"), 2 * 2 + 2, "with those of the peer itself");
	cr_assert(raw_announce_segment(peer, 2, &segment));
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1, "that is more than it may have mapped");
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_VIOLATION);
	wharf_msg_release(taken_first);
	raw_segment_close(&segment);
	finish();
}

Test(mapping, the_peer_hears_that_it_has_a_slot_back_when_no_message_lies_in_it)
{
	take_and_retire();
	cr_assert_not(hears_of_slot_0());
	release_elsewhere(wharf_msg_ref(taken_first));
	settle(p.loop);
	cr_assert_not(hears_of_slot_0());
	release_elsewhere(taken_first);
	settle(p.loop);
	cr_assert(hears_of_slot_0());
	cr_assert_eq(stats_of(p.a.port).rx_mapped_bytes, 0);
	for (uint16_t slot = 0; slot < 2; slot++)
		cr_assert(raw_announce_segment(peer, slot, &segment));
	cr_assert(raw_chunks(peer, 0, 1, 1, 100));
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
	cr_assert_eq(p.a.n_messages, 2);
	raw_segment_close(&segment);
	finish();
}

Test(mapping, a_slot_that_is_not_back_yet_is_not_announced_again)
{
	take_and_retire();
	cr_assert(raw_announce_segment(peer, 0, &segment));
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_VIOLATION);
	cr_assert_eq(((const char *)taken_first->slices[0].data)[99], 0, "what was taken stays");
	wharf_msg_release(taken_first);
	raw_segment_close(&segment);
	finish();
}

Test(mapping, what_is_taken_back_goes_with_its_last_message_if_the_port_has_ended)
{
	take_and_retire();
	pair_free(&p);
	cr_assert_eq(((const char *)taken_first->slices[0].data)[99], 0);
	release_elsewhere(taken_first);
	raw_segment_close(&segment);
	cr_assert_eq(harness_count_maps("by hand"), 0);
	close(peer);
}

Test(mapping, an_honest_peer_waits_for_what_it_takes_back)
{
	struct apart q;
	struct wharf_buf buf;
	struct wh_view *view;

	apart_open(&q, NULL, NULL, WHARF_OPT(port, .rx_mapped_bytes_max = BYTES));
	send_claimed(q.a.port, wharf_port_pool(q.a.port), BYTES, 1);
	apart_settle(&q);
	cr_assert_eq(q.b.n_messages, 1);
	/* A thread has released the last message in it, and is about to let the mapping go. */
	view = wh_view_ref(q.b.port->views[0]);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(q.a.port), 100, &buf), -EAGAIN);
	apart_settle(&q);
	cr_assert_eq(q.a.n_writable, 0);
	cr_assert(wh_view_unref(view));
	wh_port_kick(q.b.port, WH_KICK_UNREAD);
	apart_settle(&q);
	cr_assert_eq(q.a.n_writable, 1);
	send_claimed(q.a.port, wharf_port_pool(q.a.port), 100, 1);
	apart_settle(&q);
	cr_assert_eq(q.b.n_messages, 2, "%s", q.b.reason_text);
	apart_free(&q);
}
