/* SPDX-License-Identifier: MIT */
/* The engine when something is short or ends: buffers, completion entries, room in a socket, a link that goes. */
#include "test-engine.h"

TestSuite(engine, .timeout = 60);

/* ---- Shortage ---------------------------------------------------------------------------------------------------- */

ENGINE_TEST(more_datagrams_than_buffers)
{
	enum { BUFFERS = 4, N = 64 };
	struct wh_engine *engine = open_small(rung, BUFFERS);
	struct wh_link link;
	struct wh_event held[BUFFERS], event;
	uint32_t expected = BUFFERS;
	uint64_t n_enters, n_calls;
	int peer = open_link(engine, &link);

	for (uint32_t i = 0; i < N; i++)
		cr_assert_eq(put_number(peer, i, 200), 0);
	for (uint32_t i = 0; i < BUFFERS; i++) {
		await(engine, WH_EVENT_FRAME, &held[i]);
		cr_assert_eq(number_of(&held[i]), i);
	}
	/* All are held: nothing comes, and nobody keeps asking the kernel for what it has not. */
	for (int i = 0; i < 10; i++)
		cr_assert_eq(wh_engine_turn(engine, 0), 0);
	cr_expect_eq(engine->n_starving, 1);
	cr_expect_geq(engine->n_starved, 1);
	n_calls = engine->n_calls;
	for (int i = 0; i < 100; i++)
		cr_assert_eq(wh_engine_turn(engine, 0), 0);
	cr_assert_leq(engine->n_calls, n_calls + looks(engine, 100));
	n_enters = engine->n_enters;
	/* One buffer is enough for all the rest. */
	for (uint32_t i = 0; i < BUFFERS; i++)
		cr_assert_eq(number_of(&held[i]), i);
	wh_engine_frame_done(engine, &held[0]);
	while (expected < N / 2)
		take_number(engine, expected++);
	cr_assert_lt(engine->n_enters, n_enters + N);
	for (uint32_t i = 1; i < BUFFERS; i++)
		wh_engine_frame_done(engine, &held[i]);
	while (expected < N)
		take_number(engine, expected++);
	close(peer);
	await(engine, WH_EVENT_EOF, &event);
	detach(engine, &link);
	cr_expect_eq(engine->n_starving, 0);
	for (int i = 0; i < WH_ARMED_KINDS; i++)
		cr_expect_eq(engine->n_armed[i], 0, "%u of kind %d", engine->n_armed[i], i);
	wh_engine_close(engine);
}

ENGINE_TEST(who_has_frames_and_is_paused_does_not_starve)
{
	struct wh_engine *engine = open_small(rung, 2);
	struct wh_link link;
	int peer = open_link(engine, &link);

	cr_assert_eq(wh_engine_turn(engine, 0), 0);
	cr_assert_eq(put_number(peer, 0, 10), 0);
	/* Where frames are not taken by the ring, it is told of them by now, and has not read them. */
	cr_assert_eq(wh_engine_submit(engine), 0);
	wh_engine_pause(engine, &link);
	cr_expect_eq(engine->n_starving, 0);
	wh_engine_receive(engine, &link);
	take_number(engine, 0);
	cr_expect_eq(engine->n_starving, 0);
	cr_expect_eq(engine->n_starved, 0);
	detach(engine, &link);
	close(peer);
	wh_engine_close(engine);
}

ENGINE_TEST(every_starved_link_has_its_turn)
{
	enum { LINKS = 9, EACH = 20 };
	struct wh_engine *engine = open_small(rung, 2);
	struct wh_link links[LINKS];
	uint32_t n_received[LINKS] = { 0 };
	struct wh_event event;
	int peers[LINKS];

	for (int i = 0; i < LINKS; i++) {
		peers[i] = open_link(engine, &links[i]);
		for (uint32_t n = 0; n < EACH; n++)
			cr_assert_eq(put_number(peers[i], n, 10), 0);
	}
	/* Whatever order they come in, a flood from one link must not keep the others away until it has ended. */
	for (int n = 0; n < LINKS * EACH; n++) {
		await(engine, WH_EVENT_FRAME, &event);
		size_t i = (size_t)(event.link - links);

		cr_assert_eq(number_of(&event), n_received[i]);
		if (++n_received[i] == EACH)
			for (int other = 0; other < LINKS; other++)
				cr_assert_gt(n_received[other], 0, "link %d starved", other);
		wh_engine_frame_done(engine, &event);
	}
	for (int i = 0; i < LINKS; i++) {
		detach(engine, &links[i]);
		close(peers[i]);
	}
	wh_engine_close(engine);
}

ENGINE_TEST(starved_links_without_data_do_not_keep_one_with_data_waiting)
{
	enum { LINKS = 40, BUFFERS = 2 };
	struct wh_engine *engine = open_small(rung, BUFFERS);
	struct wh_link flood, links[LINKS];
	struct wh_event held[BUFFERS], event;
	int peer = open_link(engine, &flood), peers[LINKS];

	for (uint32_t i = 0; i < BUFFERS; i++)
		cr_assert_eq(put_number(peer, i, 10), 0);
	for (int i = 0; i < BUFFERS; i++)
		await(engine, WH_EVENT_FRAME, &held[i]);
	/* All of these find no buffer, though they have no data either. */
	for (int i = 0; i < LINKS; i++)
		peers[i] = open_link(engine, &links[i]);
	for (int i = 0; i < 10; i++)
		cr_assert_eq(wh_engine_turn(engine, 0), 0);
	cr_assert_eq(put_number(peers[LINKS - 1], 7, 10), 0);
	for (int i = 0; i < BUFFERS; i++)
		wh_engine_frame_done(engine, &held[i]);
	/* Nobody but the engine can know that there is something to wait for: this must not sleep before it has asked. */
	for (int i = 0; i < LINKS && !wh_engine_next(engine, &event); i++)
		cr_assert_geq(wh_engine_turn(engine, i < LINKS - 1 ? -1 : 0), 0);
	cr_assert_eq(event.kind, WH_EVENT_FRAME);
	cr_assert_eq(event.link, &links[LINKS - 1]);
	wh_engine_frame_done(engine, &event);
	for (int i = 0; i < LINKS; i++) {
		detach(engine, &links[i]);
		close(peers[i]);
	}
	detach(engine, &flood);
	close(peer);
	wh_engine_close(engine);
}

/* Returns how many frames of floods came before the one that all wait for. */
static int frames_before_the_first_of(struct wh_engine *engine, struct wh_link *quiet, const int *floods, int n_floods)
{
	struct wh_event event;

	for (int n = 0;; n++) {
		bool found;

		for (int i = 0; i < n_floods; i++)
			while (put_number(floods[i], 0, 200) == 0)
				;
		cr_assert(next_event(engine, &event));
		cr_assert_eq(event.kind, WH_EVENT_FRAME);
		found = event.link == quiet;
		wh_engine_frame_done(engine, &event);
		if (found)
			return n;
	}
}

/* Sockets hold more than a hundred of these, and are filled up again after each. */
ENGINE_TEST(flood_that_never_ends_does_not_starve_the_others)
{
	enum { FLOODS = 5, BUFFERS = 8, FILL = 40 }; /* a multishot takes some 33 at once */
	struct wh_engine *engine = open_small(rung, BUFFERS);
	struct wh_link floods[FLOODS], quiet;
	struct wh_event event;
	int peers[FLOODS], peer;

	for (int i = 0; i < FLOODS; i++)
		peers[i] = open_link(engine, &floods[i]);
	peer = open_link(engine, &quiet);
	cr_assert_eq(wh_engine_turn(engine, 0), 0);
	for (int i = 0; i < 20; i++) {
		cr_assert_eq(put_number(peer, 7, 10), 0);
		cr_assert_leq(frames_before_the_first_of(engine, &quiet, peers, FLOODS), (FLOODS + 1) * FILL);
	}
	wh_engine_detach(engine, &quiet);
	for (int i = 0; i < FLOODS; i++)
		wh_engine_detach(engine, &floods[i]);
	while (engine->n_links) {
		cr_assert(next_event(engine, &event));
		if (event.kind == WH_EVENT_FRAME)
			wh_engine_frame_done(engine, &event);
	}
	for (int i = 0; i < FLOODS; i++)
		close(peers[i]);
	close(peer);
	wh_engine_close(engine);
}

/* What is asked of the kernel in vain is work that grows with the number of links, when there is most to do already. */
ENGINE_TEST(many_links_share_few_buffers_without_asking_in_vain)
{
	enum { LINKS = 200, EACH = 60, BUFFERS = 32 };
	struct wh_engine *engine = open_small(rung, BUFFERS);
	static struct wh_link links[LINKS];
	uint32_t n_received[LINKS] = { 0 };
	struct wh_event event;
	int peers[LINKS];

	for (int i = 0; i < LINKS; i++) {
		peers[i] = open_link(engine, &links[i]);
		for (uint32_t n = 0; n < EACH; n++)
			cr_assert_eq(put_number(peers[i], n, 10), 0);
	}
	for (int n = 0; n < LINKS * EACH; n++) {
		cr_assert(next_event(engine, &event));
		cr_assert_eq(event.kind, WH_EVENT_FRAME);
		size_t i = (size_t)(event.link - links);

		cr_assert_eq(number_of(&event), n_received[i]);
		n_received[i]++;
		wh_engine_frame_done(engine, &event);
	}
	cr_assert_leq(engine->n_starved, LINKS * EACH / 4, "%lu times for %d frames", engine->n_starved, LINKS * EACH);
	for (int i = 0; i < LINKS; i++) {
		detach(engine, &links[i]);
		close(peers[i]);
	}
	wh_engine_close(engine);
}

ENGINE_TEST(completion_queue_that_overflows_loses_nothing)
{
	enum { LINKS = 40, EACH = 30 };
	struct wh_engine_config config = config_of(rung, 64, 64);
	struct wh_engine *engine;
	static struct side sides[LINKS];
	uint32_t n_received = 0, n_ends = 0;
	struct wh_event event;
	int peers[LINKS];

	config.cq_entries = 2;
	engine = open_engine(&config);
	for (int i = 0; i < LINKS; i++)
		peers[i] = open_link(engine, &sides[i].link);
	cr_assert_geq(wh_engine_turn(engine, 0), 0);
	for (int i = 0; i < LINKS; i++) {
		for (uint32_t n = 0; n < EACH; n++)
			cr_assert_eq(put_number(peers[i], n, 10), 0);
		shutdown(peers[i], SHUT_WR);
		send_number(engine, &sides[i]);
	}
	wh_engine_wake(engine);
	while (n_ends < LINKS) {
		cr_assert(next_event(engine, &event));
		struct side *side = wh_container_of(event.link, struct side, link);

		switch (event.kind) {
		case WH_EVENT_SENT:
			cr_assert_eq(side->link.sent_result, 0);
			break;
		case WH_EVENT_FRAME:
			cr_assert_eq(number_of(&event), side->n_received);
			side->n_received++;
			n_received++;
			wh_engine_frame_done(engine, &event);
			break;
		case WH_EVENT_EOF:
			cr_assert_eq(side->n_received, EACH);
			n_ends++;
			break;
		default:
			cr_assert_fail("event %d", event.kind);
		}
	}
	cr_assert_eq(n_received, LINKS * EACH);
	while (wh_engine_turn(engine, 0))
		while (wh_engine_next(engine, &event))
			cr_assert_eq(event.kind, WH_EVENT_SENT);
	turn_until_woken(engine, 2000000); /* what the wake is armed with had no room, either */
	for (int i = 0; i < LINKS; i++) {
		uint32_t number;

		cr_assert_eq(recv(peers[i], &number, sizeof(number), MSG_DONTWAIT), sizeof(number));
		detach(engine, &sides[i].link);
		close(peers[i]);
	}
	wh_engine_close(engine);
}

ENGINE_TEST(pause_and_receive_lose_nothing)
{
	enum { N = 200 };
	struct wh_engine *engine = open_plain(rung);
	struct wh_link link;
	struct wh_event event;
	uint32_t n_sent = 0, n_received = 0;
	int peer = open_link(engine, &link), n;

	while (n_received < N) {
		wh_engine_receive(engine, &link);
		if (n_sent % 3 == 0)
			cr_assert_geq(wh_engine_turn(engine, 0), 0);
		for (int i = 0; i < 5; i++)
			cr_assert_eq(put_number(peer, n_sent++, 64), 0);
		if (n_sent % 2)
			cr_assert_geq(wh_engine_turn(engine, 0), 0);
		wh_engine_pause(engine, &link);
		/* What had arrived by then comes out. When the kernel has heard of it, nothing more does. */
		do {
			n = wh_engine_turn(engine, 0);
			cr_assert_geq(n, 0);
			while (wh_engine_next(engine, &event)) {
				cr_assert_eq(event.kind, WH_EVENT_FRAME);
				cr_assert_eq(number_of(&event), n_received);
				n_received++;
				wh_engine_frame_done(engine, &event);
			}
		} while (n);
		cr_assert_eq(put_number(peer, n_sent++, 64), 0);
		cr_assert_eq(wh_engine_turn(engine, 0), 0);
		if (n_sent > n_received + 100) {
			wh_engine_receive(engine, &link);
			while (n_received < n_sent)
				take_number(engine, n_received++);
		}
	}
	wh_engine_pause(engine, &link);
	close(peer);
	detach(engine, &link);
	wh_engine_close(engine);
}

ENGINE_TEST(full_socket_is_a_result_and_tells_when_there_is_room)
{
	struct wh_engine *engine = open_plain(rung);
	struct side side = { .n_sent = 0 };
	struct wh_event event;
	char bytes[64];
	int fds[2];

	open_pair(fds);
	wh_engine_attach(engine, &side.link, fds[0]);
	do {
		send_number(engine, &side);
		await(engine, WH_EVENT_SENT, &event);
	} while (!side.link.sent_result);
	cr_assert_eq(side.link.sent_result, -EAGAIN);
	cr_assert_null(side.link.tx);
	wh_engine_want_writable(engine, &side.link);
	wh_engine_want_writable(engine, &side.link);
	for (int i = 0; i < 5; i++)
		cr_assert_eq(wh_engine_turn(engine, 0), 0);
	while (recv(fds[1], bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
		;
	await(engine, WH_EVENT_WRITABLE, &event);
	cr_assert_eq(event.link, &side.link);
	for (int i = 0; i < 5; i++)
		cr_assert_eq(wh_engine_turn(engine, 0), 0);
	wh_engine_want_writable(engine, &side.link);
	await(engine, WH_EVENT_WRITABLE, &event);
	send_number(engine, &side);
	await(engine, WH_EVENT_SENT, &event);
	cr_assert_eq(side.link.sent_result, 0);
	wh_engine_want_writable(engine, &side.link);
	detach(engine, &side.link);
	close(fds[1]);
	wh_engine_close(engine);
}

/* ---- Detaching --------------------------------------------------------------------------------------------------- */

ENGINE_TEST(detach_lets_queued_frames_out_and_leaks_no_descriptor)
{
	struct harness_snapshot before;
	struct wh_engine *engine;
	struct wh_link link;
	struct wh_event event;
	int peer, passed[2] = { STDERR_FILENO, STDERR_FILENO };

	harness_snapshot_take(&before);
	engine = open_plain(rung);
	peer = open_link(engine, &link);
	cr_assert_eq(wh_engine_turn(engine, 0), 0);
	for (int i = 0; i < 3; i++)
		cr_assert_eq(send_fds(peer, &(uint32_t){ (uint32_t)i }, 4, passed, 2), 0);
	for (int n = 0; n < 3; n = wh_engine_turn(engine, 0))
		cr_assert_geq(n, 0);
	/* Three are queued, these arrive too late. */
	for (int i = 3; i < 6; i++)
		cr_assert_eq(send_fds(peer, &(uint32_t){ (uint32_t)i }, 4, passed, 2), 0);
	wh_engine_want_writable(engine, &link);
	wh_engine_detach(engine, &link);
	for (uint32_t i = 0; i < 3; i++) {
		await(engine, WH_EVENT_FRAME, &event);
		cr_assert_eq(number_of(&event), i);
		cr_assert_eq(event.n_fds, 2);
		wh_engine_frame_done(engine, &event);
	}
	await(engine, WH_EVENT_DETACHED, &event);
	cr_assert_eq(event.link, &link);
	memset(&link, 0xee, sizeof(link)); /* its memory may go now */
	cr_assert_eq(wh_engine_turn(engine, 0), 0);
	close(peer);
	wh_engine_close(engine);

	const char *leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

ENGINE_TEST(end_that_is_queued_comes_before_detached)
{
	struct wh_engine *engine = open_plain(rung);
	struct wh_link link;
	struct wh_event event;
	int peer = open_link(engine, &link);

	cr_assert_eq(put_number(peer, 0, 10), 0);
	close(peer);
	for (int n = 0; n < 2; n = wh_engine_turn(engine, 0))
		cr_assert_geq(n, 0);
	wh_engine_detach(engine, &link);
	take_number(engine, 0);
	await(engine, WH_EVENT_EOF, &event);
	await(engine, WH_EVENT_DETACHED, &event);
	cr_assert(!wh_engine_next(engine, &event));
	wh_engine_close(engine);
}

ENGINE_TEST(detach_that_waits_is_not_lost_when_the_engine_breaks)
{
	struct wh_engine *engine = open_plain(rung);
	struct wh_link link;
	struct wh_event event;
	int peer = open_link(engine, &link), broken;

	cr_assert_eq(wh_engine_turn(engine, 0), 0);
	wh_engine_detach(engine, &link);
	broken = break_engine(engine);
	cr_assert_eq(wh_engine_turn(engine, 0), -EBADF);
	cr_assert(wh_engine_next(engine, &event));
	cr_assert_eq(event.kind, WH_EVENT_DETACHED);
	repair_engine(engine, broken);
	wh_engine_close(engine);
	close(peer);
}

ENGINE_TEST(peer_sees_the_end_when_detached)
{
	struct wh_engine *engine = open_plain(rung);
	struct wh_link link;
	int peer = open_link(engine, &link);
	char byte;

	cr_assert_eq(wh_engine_turn(engine, 0), 0);
	detach(engine, &link);
	cr_assert_eq(recv(peer, &byte, 1, MSG_DONTWAIT), 0);
	close(peer);
	wh_engine_close(engine);
}

ENGINE_TEST(what_was_sent_before_detach_still_goes)
{
	struct wh_engine *engine = open_plain(rung);
	struct side side = { .n_sent = 5 };
	struct wh_event event;
	uint32_t number;
	int fds[2];

	open_pair(fds);
	wh_engine_attach(engine, &side.link, fds[0]);
	wh_engine_receive(engine, &side.link);
	cr_assert_eq(wh_engine_turn(engine, 0), 0);
	send_number(engine, &side);
	wh_engine_detach(engine, &side.link);
	await(engine, WH_EVENT_DETACHED, &event);
	cr_assert_null(side.link.tx);
	cr_assert_eq(side.link.sent_result, 0);
	cr_assert_eq(recv(fds[1], &number, sizeof(number), MSG_DONTWAIT), sizeof(number));
	cr_assert_eq(number, 5);
	close(fds[1]);
	wh_engine_close(engine);
}

ENGINE_TEST(detach_while_starved_or_pausing)
{
	struct wh_engine *engine = open_small(rung, 1);
	struct wh_link links[3];
	struct wh_event frame;
	int peers[3];

	for (int i = 0; i < 3; i++)
		peers[i] = open_link(engine, &links[i]);
	cr_assert_eq(wh_engine_turn(engine, 0), 0);
	for (uint32_t i = 0; i < 3; i++)
		cr_assert_eq(put_number(peers[i], i, 10), 0);
	await(engine, WH_EVENT_FRAME, &frame);
	for (int i = 0; i < 5; i++)
		cr_assert_eq(wh_engine_turn(engine, 0), 0);
	wh_engine_pause(engine, &links[0]);
	wh_engine_pause(engine, &links[1]);
	wh_engine_receive(engine, &links[1]);
	for (int i = 0; i < 3; i++)
		detach(engine, &links[i]);
	wh_engine_frame_done(engine, &frame);
	for (int i = 0; i < 3; i++)
		close(peers[i]);
	wh_engine_close(engine);
}

ENGINE_TEST(engine_that_never_turned_can_be_closed)
{
	struct wh_engine *engine = open_plain(rung);
	struct side side = { .n_sent = 0 };
	struct wh_event event;
	int fds[2];
	char byte;

	open_pair(fds);
	wh_engine_attach(engine, &side.link, fds[0]);
	wh_engine_receive(engine, &side.link);
	send_number(engine, &side);
	cr_assert_eq(wh_engine_submit(engine), 0);
	wh_engine_detach(engine, &side.link);
	cr_assert(wh_engine_next(engine, &event));
	cr_assert_eq(event.kind, WH_EVENT_SENT);
	cr_assert_eq(side.link.sent_result, -ECANCELED);
	cr_assert(wh_engine_next(engine, &event));
	cr_assert_eq(event.kind, WH_EVENT_DETACHED);
	cr_assert(!wh_engine_next(engine, &event));
	cr_assert_eq(recv(fds[1], &byte, 1, MSG_DONTWAIT), 0);
	close(fds[1]);
	wh_engine_close(engine);
}
