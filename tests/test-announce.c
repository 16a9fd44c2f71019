/* SPDX-License-Identifier: MIT */
/*
 * Announcements whose descriptors are lost on arrival, because the table is full: they are asked for again, and what
 * lies in their segments waits in order.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "apart.h"
#include "harness.h"
#include "raw.h"

TestSuite(announce, .timeout = 60);

static struct pair p;
static struct apart q;

/* ---- The receiver: it asks until it has them ---- */

/* Steps until it has come; the port asks after a while only. */
static void settle_until_messages(wharf_loop *loop, const struct end *end, size_t least)
{
	struct timespec start, now;

	clock_gettime(CLOCK_MONOTONIC, &start);
	while (end->n_messages < least) {
		cr_assert_eq(end->n_closed, 0, "%s", end->reason_text);
		cr_assert_geq(wharf_loop_step(loop, 10000000), 0);
		clock_gettime(CLOCK_MONOTONIC, &now);
		cr_assert_lt(now.tv_sec - start.tv_sec, 10, "waited too long");
	}
}

static void expect_open(const struct pair *pair)
{
	cr_assert_eq(pair->a.n_closed, 0, "%s", pair->a.reason_text);
	cr_assert_eq(pair->b.n_closed, 0, "%s", pair->b.reason_text);
}

static void expect_in_order(const struct end *end)
{
	for (uint32_t i = 0; i < end->n_messages && i < END_MESSAGES_MAX; i++)
		cr_assert_eq(end->seen[i].type, i);
}

static void send_typed(wharf_port *port, uint32_t type, size_t claimed)
{
	struct wharf_buf buf;

	if (!claimed) {
		cr_assert_eq(wharf_send_bytes(port, type, &type, sizeof(type)), 0);
		return;
	}
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(port), claimed, &buf), 0);
	memset(buf.data, (int)type, buf.size);
	cr_assert_eq(wharf_send_buf(port, type, &buf), 0);
}

Test(announce, what_lies_in_a_lost_segment_is_delivered_once_there_is_room)
{
	need_frames_to_wait_for_turns();
	for (unsigned room = 0; room < 2; room++) {
		size_t n_fds;
		pair_open(&p, NULL, NULL);
		send_typed(p.a.port, 0, 1000);
		n_fds = harness_count_fds();
		harness_limit_fds(room);
		settle(p.loop);
		harness_unlimit_fds();
		expect_open(&p);
		cr_assert_eq(p.b.n_messages, 0);
		cr_assert_eq(harness_count_fds(), n_fds, "what did come is closed");
		settle_until_messages(p.loop, &p.b, 1);
		cr_assert_eq(p.b.seen[0].size, 1000);
		cr_assert_eq(p.b.seen[0].bytes[0], 0);
		cr_assert_eq(harness_count_fds(), n_fds);
		pair_free(&p);
	}
}

Test(announce, what_waits_for_a_lost_segment_keeps_its_order)
{
	need_frames_to_wait_for_turns();
	pair_open(&p, NULL, NULL);
	send_typed(p.a.port, 0, 0);
	send_typed(p.a.port, 1, 64);
	send_typed(p.a.port, 2, 0);
	harness_limit_fds(0);
	settle(p.loop);
	/* As many as it takes to make one, and none for its arrival. */
	harness_limit_fds(2);
	send_typed(p.a.port, 3, 100000);
	settle(p.loop);
	send_typed(p.a.port, 4, 64);
	send_typed(p.a.port, 5, 0);
	settle(p.loop);
	/* Nothing else waits: not the other direction, nor what this one must know. */
	for (uint32_t i = 0; i < 200; i++) {
		send_typed(p.b.port, i, 0);
		cr_assert_eq(wharf_loop_flush(p.loop), 0);
		settle(p.loop);
	}
	expect_open(&p);
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_eq(p.a.n_messages, 200);
	harness_unlimit_fds();
	settle_until_messages(p.loop, &p.b, 6);
	expect_in_order(&p.b);
	expect_open(&p);
	pair_free(&p);
}

Test(announce, a_whole_window_waits_for_a_lost_segment)
{
	struct wharf_port_stats stats;
	size_t n = 0;

	need_frames_to_wait_for_turns();
	pair_open(&p, NULL, NULL);
	send_typed(p.a.port, 0, 64);
	harness_limit_fds(0);
	settle(p.loop);
	while (stats_of(p.a.port).tx_queued_bytes < 4096) {
		n++;
		send_typed(p.a.port, (uint32_t)n, n % 2 ? 64 : 0);
		cr_assert_eq(wharf_loop_flush(p.loop), 0);
		settle(p.loop);
		cr_assert_lt(n, 10000);
	}
	expect_open(&p);
	stats = stats_of(p.a.port);
	cr_assert_geq(stats.tx_unread_frames, 8);
	cr_assert_eq(p.b.n_messages, 0);
	harness_unlimit_fds();
	settle_until_messages(p.loop, &p.b, n + 1);
	expect_in_order(&p.b);
	settle(p.loop);
	cr_assert_lt(stats_of(p.a.port).tx_unread_frames, stats.tx_unread_frames);
	expect_open(&p);
	pair_free(&p);
}

Test(announce, a_paused_port_asks_for_a_lost_segment)
{
	need_frames_to_wait_for_turns();
	pair_open(&p, NULL, NULL);
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	send_typed(p.a.port, 0, 64);
	harness_limit_fds(0);
	settle(p.loop);
	harness_unlimit_fds();
	while (stats_of(p.a.port).tx_frames < 4) /* hello, announcement, message; and again */
		cr_assert_geq(wharf_loop_step(p.loop, 10000000), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 0);
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
	/* Resumed first, and a pause between. */
	send_typed(p.a.port, 1, 100000);
	harness_limit_fds(0);
	settle(p.loop);
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	settle(p.loop);
	cr_assert_eq(p.b.n_messages, 1);
	harness_unlimit_fds();
	settle_until_messages(p.loop, &p.b, 2);
	expect_open(&p);
	pair_free(&p);
}

Test(announce, ports_that_close_wait_for_a_lost_segment)
{
	need_frames_to_wait_for_turns();
	for (int who = 0; who < 3; who++) {
		pair_open(&p, NULL, NULL);
		send_typed(p.a.port, 0, 64);
		harness_limit_fds(0);
		settle(p.loop);
		if (who != 1)
			cr_assert_eq(wharf_port_close(p.a.port, -1), 0);
		if (who != 0)
			cr_assert_eq(wharf_port_close(p.b.port, -1), 0);
		settle(p.loop);
		harness_unlimit_fds();
		expect_open(&p);
		settle_until(p.loop, &p.b.n_closed, 1);
		cr_assert_eq(p.b.n_messages, 1);
		cr_assert_eq(p.b.reason.code, who == 0 ? WHARF_CLOSE_PEER : WHARF_CLOSE_LOCAL, "%s", p.b.reason_text);
		settle_until(p.loop, &p.a.n_closed, 1);
		cr_assert_eq(p.a.reason.code, who == 1 ? WHARF_CLOSE_PEER : WHARF_CLOSE_LOCAL, "%s", p.a.reason_text);
		pair_free(&p);
	}
}

/* Its own goodbye crosses the message: the sender closes, and stays for what it has lent. */
Test(announce, a_closed_port_that_lingers_announces_again)
{
	wharf_pool *pool = shared_pool(1 << 20);

	need_frames_to_wait_for_turns();
	pair_open(&p, WHARF_OPT(port, .pool = pool), NULL);
	send_typed(p.a.port, 0, 64);
	cr_assert_eq(wharf_port_close(p.b.port, -1), 0);
	harness_limit_fds(0);
	settle_until(p.loop, &p.a.n_closed, 1);
	settle(p.loop);
	harness_unlimit_fds();
	cr_assert_eq(p.b.n_messages, 0);
	settle_until(p.loop, &p.b.n_closed, 1);
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_eq(p.b.reason.code, WHARF_CLOSE_LOCAL, "%s", p.b.reason_text);
	settle(p.loop);
	pair_free(&p);
	wharf_pool_unref(pool);
}

/* ---- The receiver, and a sender made by hand ---- */

static uint64_t time_ns;

static uint64_t test_clock(void *user)
{
	(void)user;
	return time_ns;
}

static const struct wharf_loop_options on_test_time = { .size = sizeof(on_test_time), .clock_ns = test_clock };
static const struct wharf_loop_options *by_hand_loop;

static int open_by_hand(const struct wharf_port_options *options)
{
	time_ns = 1;
	raw_consumed = 0;
	apart_half(&q, by_hand_loop, options);
	cr_assert(raw_say_hello(q.fds[1], NULL));
	apart_settle(&q);
	return q.fds[1];
}

/* How often a request for the slot has arrived; everything else is thrown away. */
static unsigned n_asked(int fd, uint16_t slot, uint64_t *ret_consumed)
{
	struct raw_read read;
	unsigned n = 0;

	while (raw_receive(fd, &read)) {
		const struct wh_slot_record *r = raw_find(&read, WH_RECORD_ANNOUNCE_REQUEST);
		n += r && r->slot == slot;
		if (ret_consumed)
			*ret_consumed = ((const struct wh_frame *)(const void *)read.bytes)->consumed;
		for (size_t i = 0; i < read.n_fds; i++)
			close(read.fds[i]);
	}
	return n;
}

static void lose_announcement(int fd, uint16_t slot, const struct raw_segment *s)
{
	cr_assert(raw_announce_segment(fd, slot, s));
	harness_limit_fds(0);
	apart_settle(&q);
	harness_unlimit_fds();
	cr_assert_eq(q.a.n_closed, 0, "%s", q.a.reason_text);
}

Test(announce, it_is_asked_for_with_growing_pauses)
{
	struct raw_segment s;
	int fd;

	need_frames_to_wait_for_turns();
	by_hand_loop = &on_test_time;
	fd = open_by_hand(NULL);
	raw_segment_open(&s, 12, 64);
	n_asked(fd, 0, NULL);
	for (unsigned pause_ms = 1; pause_ms <= 64; pause_ms *= 2) {
		lose_announcement(fd, 5, &s);
		time_ns += pause_ms * UINT64_C(1000000) - 1;
		apart_settle(&q);
		cr_assert_eq(n_asked(fd, 5, NULL), 0, "not before %u ms", pause_ms);
		time_ns++;
		apart_settle(&q);
		cr_assert_eq(n_asked(fd, 5, NULL), 1, "after %u ms", pause_ms);
		/* One that is on its way is not repeated. */
		time_ns += UINT64_C(10000000000);
		apart_settle(&q);
		cr_assert_eq(n_asked(fd, 5, NULL), 0);
	}
	for (int i = 0; i < 3; i++) {
		lose_announcement(fd, 5, &s);
		time_ns += 100000000;
		apart_settle(&q);
		cr_assert_eq(n_asked(fd, 5, NULL), 1, "no pause is longer");
	}
	cr_assert(raw_announce_segment(fd, 5, &s));
	cr_assert(raw_chunks(fd, 5, 3, 1, 100));
	apart_settle(&q);
	cr_assert_eq(q.a.n_messages, 1, "%s", q.a.reason_text);
	cr_assert_eq(q.a.seen[0].bytes[0], 3);
	/* Once more would be one too many. */
	cr_assert(raw_announce_segment(fd, 5, &s));
	apart_settle(&q);
	cr_assert_eq(q.a.reason.code, WHARF_CLOSE_VIOLATION);
	raw_segment_close(&s);
	close(fd);
	apart_free(&q);
}

Test(announce, another_geometry_is_not_the_same_announcement)
{
	struct raw_segment s, other;
	int fd = open_by_hand(NULL);

	raw_segment_open(&s, 12, 64);
	raw_segment_open(&other, 12, 32);
	lose_announcement(fd, 5, &s);
	cr_assert(raw_announce_segment(fd, 5, &other));
	apart_settle(&q);
	cr_assert_eq(q.a.reason.code, WHARF_CLOSE_VIOLATION);
	raw_segment_close(&s);
	raw_segment_close(&other);
	close(fd);
	apart_free(&q);
}

Test(announce, only_the_first_counts_as_data)
{
	struct raw_segment s;
	uint64_t consumed = 0;
	int fd = open_by_hand(NULL);

	need_frames_to_wait_for_turns();
	raw_segment_open(&s, 12, 64);
	lose_announcement(fd, 0, &s);
	cr_assert(raw_chunks(fd, 0, 0, 1, 100));
	lose_announcement(fd, 0, &s);
	lose_announcement(fd, 0, &s);
	n_asked(fd, 0, &consumed);
	cr_assert_eq(consumed, 1);
	cr_assert(raw_announce_segment(fd, 0, &s));
	/* Enough of them for a report. */
	for (uint32_t i = 1; i < 32; i++)
		cr_assert(raw_chunks(fd, 0, i, 1, 100));
	apart_settle(&q);
	cr_assert_eq(q.a.n_messages, 32, "%s", q.a.reason_text);
	n_asked(fd, 0, &consumed);
	cr_assert_leq(consumed, 33);
	cr_assert_gt(consumed, 33 - 16);
	raw_segment_close(&s);
	close(fd);
	apart_free(&q);
}

Test(announce, a_lost_segment_that_is_taken_back_is_not_asked_for)
{
	struct raw_segment s;
	struct raw_read read;
	const struct wh_slot_record *r = NULL;
	int fd;

	by_hand_loop = &on_test_time;
	fd = open_by_hand(NULL);
	raw_segment_open(&s, 12, 64);
	n_asked(fd, 5, NULL);
	lose_announcement(fd, 5, &s);
	cr_assert(raw_retire(fd, 5, false));
	apart_settle(&q);
	while (!r && raw_receive(fd, &read))
		r = raw_find(&read, WH_RECORD_RETIRE);
	cr_assert(r && r->slot == 5 && r->acknowledged);
	time_ns += 1000000000;
	apart_settle(&q);
	cr_assert_eq(n_asked(fd, 5, NULL), 0);
	cr_assert_eq(stats_of(q.a.port).rx_mapped_bytes, 0);
	/* Another one in its place. */
	cr_assert(raw_announce_segment(fd, 5, &s));
	cr_assert(raw_chunks(fd, 5, 3, 1, 100));
	apart_settle(&q);
	cr_assert_eq(q.a.n_messages, 1, "%s", q.a.reason_text);
	raw_segment_close(&s);
	close(fd);
	apart_free(&q);
}

Test(announce, a_peer_that_ends_takes_its_lost_segment_along)
{
	need_frames_to_wait_for_turns();
	for (int paused = 0; paused < 2; paused++) {
		struct raw_segment s;
		int fd = open_by_hand(NULL);

		raw_segment_open(&s, 12, 64);
		if (paused)
			cr_assert_eq(wharf_port_pause(q.a.port), 0);
		lose_announcement(fd, 5, &s);
		cr_assert(raw_bytes(fd, "arrives", 7));
		cr_assert(raw_chunks(fd, 5, 3, 1, 100));
		apart_settle(&q);
		close(fd);
		apart_settle(&q);
		if (paused) {
			cr_assert_eq(q.a.n_closed, 0);
			cr_assert_eq(wharf_port_resume(q.a.port), 0);
			apart_settle(&q);
		}
		cr_assert_eq(q.a.n_messages, 1);
		cr_assert_eq(q.a.n_closed, 1);
		cr_assert_eq(q.a.reason.code, WHARF_CLOSE_ERROR);
		cr_assert_eq(q.a.reason.error, EMFILE);
		raw_segment_close(&s);
		apart_free(&q);
	}
}

/* ---- The sender, and a receiver made by hand ---- */

struct heard {
	unsigned n_data, n_announced;
	struct wh_announce last;
	ino_t inodes[2];
};

/* Reads all that waits, and lets the descriptors go. */
static void hear(int fd, struct heard *heard)
{
	struct raw_read read;

	while (raw_receive(fd, &read)) {
		const struct wh_announce *a = raw_find(&read, WH_RECORD_ANNOUNCE);
		heard->n_data += a || raw_find(&read, WH_RECORD_MESSAGE);
		if (a) {
			heard->n_announced++;
			heard->last = *a;
			cr_assert_eq(read.n_fds, 2);
		}
		for (size_t i = 0; i < read.n_fds; i++) {
			struct stat st;
			cr_assert_eq(fstat(read.fds[i], &st), 0);
			heard->inodes[i] = st.st_ino;
			close(read.fds[i]);
		}
	}
}

static void expect_violation(void)
{
	apart_settle(&q);
	cr_assert_eq(q.a.n_closed, 1);
	cr_assert_eq(q.a.reason.code, WHARF_CLOSE_VIOLATION);
	cr_assert_eq(raw_bye_code(q.fds[1]), WH_BYE_REFUSED);
	close(q.fds[1]);
	apart_free(&q);
}

Test(announce, what_is_asked_for_comes_again_as_often_as_it_is_lost)
{
	struct heard heard = { 0 }, first;
	int fd = open_by_hand(NULL);

	send_typed(q.a.port, 0, 1000);
	apart_settle(&q);
	hear(fd, &heard);
	cr_assert_eq(heard.n_announced, 1);
	first = heard;
	for (unsigned i = 0; i < 100; i++) {
		cr_assert(raw_ask_again(fd, first.last.slot));
		apart_settle(&q);
		heard.last = (struct wh_announce){ 0 };
		hear(fd, &heard);
		cr_assert_eq(heard.n_announced, i + 2, "%s", q.a.reason_text);
		cr_assert_eq(memcmp(&heard.last, &first.last, sizeof(heard.last)), 0);
		cr_assert_eq(memcmp(heard.inodes, first.inodes, sizeof(heard.inodes)), 0);
	}
	/* Those were no data: what is behind them is counted as if they had not been. */
	raw_consumed = first.n_data;
	cr_assert(raw_bytes(fd, "read", 4));
	apart_settle(&q);
	cr_assert_eq(stats_of(q.a.port).tx_unread_frames, 0);
	raw_consumed++;
	cr_assert(raw_bytes(fd, "more", 4));
	expect_violation();
}

Test(announce, an_announcement_that_is_asked_for_passes_a_full_window)
{
	struct heard heard = { 0 };
	unsigned n_data;
	int fd = open_by_hand(NULL);

	send_typed(q.a.port, 0, 1000);
	while (stats_of(q.a.port).tx_queued_bytes < 4096) {
		apart_settle(&q);
		send_typed(q.a.port, 0, 0);
		cr_assert_eq(wharf_loop_flush(q.loop_a), 0);
	}
	apart_settle(&q);
	hear(fd, &heard);
	n_data = heard.n_data;
	cr_assert_eq(heard.n_announced, 1);
	cr_assert(raw_ask_again(fd, heard.last.slot));
	apart_settle(&q);
	hear(fd, &heard);
	cr_assert_eq(heard.n_announced, 2);
	cr_assert_eq(heard.n_data, n_data + 1, "and nothing else");
	/* The window opens as ever. */
	cr_assert(raw_report(fd, n_data));
	apart_settle(&q);
	cr_assert_eq(stats_of(q.a.port).tx_queued_bytes, 0);
	close(fd);
	apart_free(&q);
}

Test(announce, a_segment_that_was_never_announced_is_not_asked_for)
{
	struct heard heard = { 0 };
	int fd = open_by_hand(NULL);

	send_typed(q.a.port, 0, 1000);
	apart_settle(&q);
	hear(fd, &heard);
	cr_assert(raw_ask_again(fd, (uint16_t)(heard.last.slot + 1)));
	expect_violation();
}

Test(announce, an_announcement_that_has_not_left_is_not_asked_for)
{
	struct heard heard = { 0 };
	int fd = open_by_hand(NULL);

	send_typed(q.a.port, 0, 1000);
	while (stats_of(q.a.port).tx_queued_bytes < 4096) {
		apart_settle(&q);
		send_typed(q.a.port, 0, 0);
		cr_assert_eq(wharf_loop_flush(q.loop_a), 0);
	}
	/* Behind a full window: its descriptors are still to be sent from here. */
	send_typed(q.a.port, 0, 100000);
	apart_settle(&q);
	hear(fd, &heard);
	cr_assert_eq(heard.n_announced, 1);
	cr_assert(raw_ask_again(fd, (uint16_t)(heard.last.slot + 1)));
	expect_violation();
}

Test(announce, what_was_released_from_is_not_asked_for)
{
	static struct raw_holder holder;
	int fd = open_by_hand(NULL);

	send_typed(q.a.port, 0, 1000);
	apart_settle(&q);
	raw_hold(fd, &holder);
	raw_release_all(&holder);
	cr_assert(raw_ask_again(fd, 0));
	raw_holder_fini(&holder);
	expect_violation();
}

Test(announce, asking_without_reading_ends_soon)
{
	struct heard heard = { 0 };
	int fd = open_by_hand(NULL);
	unsigned n = 0;

	send_typed(q.a.port, 0, 1000);
	apart_settle(&q);
	for (; n < 1000 && !q.a.n_closed; n++) {
		cr_assert(raw_ask_again(fd, 0));
		apart_settle(&q);
	}
	cr_assert_lt(n, 32, "descriptors pile up in flight");
	cr_assert_eq(q.a.reason.code, WHARF_CLOSE_VIOLATION, "%s", q.a.reason_text);
	hear(fd, &heard);
	cr_assert_leq(heard.n_announced, n);
	close(fd);
	apart_free(&q);
}
