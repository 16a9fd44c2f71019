/* SPDX-License-Identifier: MIT */
/* A peer's memory as a port maps it: slots are what the peer calls them, and none stays of a segment that failed. */
#include <criterion/criterion.h>
#include <errno.h>
#include <unistd.h>

#include "harness.h"
#include "pair.h"
#include "raw.h"

enum { SHIFT = 12, CHUNKS = 64 };

static struct pair p;
static int peer;

static void begin(void)
{
	peer = pair_open_half(&p, NULL);
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

	begin();
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
		begin();
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
