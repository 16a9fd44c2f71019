/* SPDX-License-Identifier: MIT */
/* Peers that lie about memory: bad memfds, chunks that are not theirs, release maps full of nonsense. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "harness.h"
#include "pair.h"
#include "raw.h"

TestSuite(hostile_memory, .timeout = 60);

static struct pair p;
static int peer;
static struct harness_snapshot before;

static void open_one(const struct wharf_port_options *options)
{
	peer = pair_open_half(&p, options);
	raw_say_hello(peer, NULL);
	settle(p.loop);
	cr_assert_eq(p.a.n_open, 1);
}

static void begin(const struct wharf_port_options *options)
{
	struct wharf_buf b;

	/* The process's own pages are made once. */
	open_one(options);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 100, &b), 0);
	wharf_buf_abandon(&b);
	pair_free(&p);
	close(peer);
	harness_snapshot_take(&before);
	open_one(options);
}

static void finish(void)
{
	const char *leak;

	close(peer);
	pair_free(&p);
	cr_assert_eq(p.a.n_closed, 1);
	leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

static void expect_violation(void)
{
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 1, "it lives on");
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_VIOLATION, "%s", p.a.reason_text);
	cr_assert_eq(raw_bye_code(peer), WH_BYE_REFUSED, "it is told");
}

/* ---- Announcements ---- */

enum { SHIFT = 12, CHUNKS = 64, BYTES = CHUNKS << SHIFT, MAP_BYTES = 4096 };
enum { SEGMENT_SEALS = RAW_SEALS | F_SEAL_FUTURE_WRITE };

static int no_memfd(int i)
{
	int fds[2];

	switch (i) {
	case 0:
		return open("/dev/zero", O_RDWR | O_CLOEXEC);
	case 1:
		return open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	case 2:
		cr_assert_eq(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, fds), 0);
		close(fds[1]);
		return fds[0];
	default:
		return open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
}

static void expect_refused(int segment, int map)
{
	cr_assert(raw_announce(peer, 3, SHIFT, CHUNKS, segment, map));
	close(segment);
	close(map);
	expect_violation();
	cr_assert_eq(harness_count_maps("by hand"), 0);
	finish();
}

Test(hostile_memory, memfds_that_are_not_as_they_must_be)
{
	static const struct {
		size_t bytes, map_bytes;
		int seals, map_seals;
		bool sparse, map_sparse;
	} bad[] = {
		{ BYTES, MAP_BYTES, 0, RAW_SEALS },
		{ BYTES, MAP_BYTES, RAW_SEALS, RAW_SEALS },
		{ BYTES, MAP_BYTES, SEGMENT_SEALS & ~F_SEAL_SEAL, RAW_SEALS },
		{ BYTES, MAP_BYTES, SEGMENT_SEALS & ~F_SEAL_SHRINK, RAW_SEALS },
		{ BYTES, MAP_BYTES, SEGMENT_SEALS & ~F_SEAL_GROW, RAW_SEALS },
		{ BYTES - 4096, MAP_BYTES, SEGMENT_SEALS, RAW_SEALS },
		{ BYTES + 4096, MAP_BYTES, SEGMENT_SEALS, RAW_SEALS },
		{ 0, MAP_BYTES, SEGMENT_SEALS, RAW_SEALS },
		{ BYTES, MAP_BYTES, SEGMENT_SEALS, RAW_SEALS, true },
		{ BYTES, MAP_BYTES, SEGMENT_SEALS, RAW_SEALS, false, true },
		{ BYTES, MAP_BYTES, SEGMENT_SEALS, 0 },
		{ BYTES, MAP_BYTES, SEGMENT_SEALS, F_SEAL_SHRINK },
		{ BYTES, 2 * MAP_BYTES, SEGMENT_SEALS, RAW_SEALS },
		{ BYTES, 64, SEGMENT_SEALS, RAW_SEALS },
		{ BYTES, 0, SEGMENT_SEALS, RAW_SEALS },
		{ BYTES, MAP_BYTES, SEGMENT_SEALS, RAW_SEALS | F_SEAL_WRITE },
		{ BYTES, MAP_BYTES, SEGMENT_SEALS, RAW_SEALS | F_SEAL_FUTURE_WRITE },
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		begin(NULL);
		expect_refused(raw_memfd(bad[i].bytes, bad[i].sparse, bad[i].seals),
			raw_memfd(bad[i].map_bytes, bad[i].map_sparse, bad[i].map_seals));
	}
}

Test(hostile_memory, descriptors_that_are_no_memfds)
{
	for (int i = 0; i < 4; i++) {
		begin(NULL);
		expect_refused(no_memfd(i), raw_memfd(MAP_BYTES, false, RAW_SEALS));
		begin(NULL);
		expect_refused(raw_memfd(BYTES, false, SEGMENT_SEALS), no_memfd(i));
	}
}

Test(hostile_memory, a_segment_is_read_only_here_and_cannot_shrink)
{
	struct raw_segment s;

	begin(NULL);
	raw_segment_open(&s, SHIFT, CHUNKS);
	cr_assert(raw_announce_segment(peer, 3, &s));
	cr_assert(raw_chunks(peer, 3, 5, 1, 100));
	settle(p.loop);
	cr_assert_eq(p.a.n_messages, 1);
	cr_assert_eq(p.a.seen[0].bytes[0], 5);
	cr_assert_eq(atomic_load(&s.map->words[0]), 1 << 5, "released");
	cr_assert_eq(ftruncate(s.segment.fd, 0), -1);
	cr_assert_eq(ftruncate(s.map_fd, 0), -1);
	cr_assert_eq(fallocate(s.segment.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, BYTES), -1);
	/* A hole in the map is the peer's own loss. */
	cr_assert_eq(fallocate(s.map_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, MAP_BYTES), 0);
	cr_assert(raw_chunks(peer, 3, 6, 1, 100));
	settle(p.loop);
	cr_assert_eq(p.a.n_messages, 2);
	cr_assert_eq(atomic_load(&s.map->words[0]), 1 << 6);
	raw_segment_close(&s);
	finish();
}

Test(hostile_memory, a_slot_announced_twice)
{
	struct raw_segment s;

	begin(NULL);
	raw_segment_open(&s, SHIFT, CHUNKS);
	cr_assert(raw_announce_segment(peer, 3, &s));
	cr_assert(raw_announce_segment(peer, 3, &s));
	expect_violation();
	raw_segment_close(&s);
	finish();
}

Test(hostile_memory, one_memfd_in_all_slots_is_counted_each_time)
{
	struct wharf_port_options o;
	struct raw_segment s;

	WHARF_INIT(&o);
	o.rx_mapped_bytes_max = 100 * BYTES;
	begin(&o);
	raw_segment_open(&s, SHIFT, CHUNKS);
	for (uint16_t slot = 0; slot < 100; slot++) {
		cr_assert(raw_announce_segment(peer, slot, &s));
		settle(p.loop);
	}
	cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
	cr_assert(raw_announce_segment(peer, 100, &s));
	expect_violation();
	raw_segment_close(&s);
	finish();
}

Test(hostile_memory, announcing_and_retiring_without_end_is_only_work)
{
	struct wharf_port_stats stats;
	struct raw_segment s;

	begin(NULL);
	raw_segment_open(&s, SHIFT, CHUNKS);
	for (unsigned i = 0; i < 2000; i++) {
		if (i == 1000)
			cr_assert_eq(wharf_port_pause(p.a.port), 0);
		/* A paused port holds frames with data, and an announcement is data. */
		if (i == 1050)
			cr_assert_eq(wharf_port_resume(p.a.port), 0);
		cr_assert(raw_announce_segment(peer, (uint16_t)(i % 256), &s));
		cr_assert(raw_retire(peer, (uint16_t)(i % 256), false));
		settle(p.loop);
		while (raw_receive(peer, &(struct raw_read){ 0 }))
			;
		cr_assert_eq(p.a.n_closed, 0, "%u: %s", i, p.a.reason_text);
	}
	WHARF_INIT(&stats);
	cr_assert_eq(wharf_port_stats(p.a.port, &stats), 0);
	cr_assert_eq(stats.rx_mapped_bytes, 0);
	raw_segment_close(&s);
	finish();
}

/* ---- Chunks ---- */

static struct wharf_msg *taken[8];
static size_t n_taken;

static void take(struct end *end, const struct wharf_msg *msg)
{
	(void)end;
	taken[n_taken++] = wharf_msg_take(msg);
}

Test(hostile_memory, a_chunk_sent_twice_harms_nobody_but_its_sender)
{
	struct raw_segment s;
	struct raw_frame frame;

	n_taken = 0;
	begin(NULL);
	p.a.on_message = take;
	raw_segment_open(&s, SHIFT, CHUNKS);
	cr_assert(raw_announce_segment(peer, 0, &s));
	raw_begin(&frame);
	raw_put_chunks(&frame, 1, 0, 4, 1, 100);
	raw_put_chunks(&frame, 1, 0, 4, 4, 100);
	cr_assert(raw_end(peer, &frame, 0));
	cr_assert(raw_chunks(peer, 0, 4, 1, 100));
	settle(p.loop);
	cr_assert_eq(n_taken, 3);
	for (size_t i = n_taken; i--; )
		wharf_msg_release(taken[i]);
	cr_assert_eq(atomic_load(&s.map->words[0]), 0xf0);
	p.a.on_message = NULL;
	cr_assert(raw_chunks(peer, 0, 4, 1, 100));
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
	raw_segment_close(&s);
	finish();
}

Test(hostile_memory, chunks_outside_of_what_was_announced)
{
	static const struct { uint16_t slot; uint32_t first; unsigned n; uint32_t size; } bad[] = {
		{ 1, 0, 1, 100 }, { 0, CHUNKS, 1, 100 }, { 0, CHUNKS - 1, 2, 100 }, { 0, 0, 1, (1 << SHIFT) + 1 },
		{ 0, 1, 2, 100 }, { 0, UINT32_MAX, 1, 1 }, { 0, UINT32_MAX - 63, 64, 1 }, { 300, 0, 1, 1 },
		{ 0, 0, 65, 1 },
		{ 0, 0, 1, UINT32_MAX },
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		struct raw_segment s;
		begin(NULL);
		raw_segment_open(&s, SHIFT, CHUNKS);
		cr_assert(raw_announce_segment(peer, 0, &s));
		cr_assert(raw_chunks(peer, bad[i].slot, bad[i].first, bad[i].n, bad[i].size));
		expect_violation();
		cr_assert_eq(p.a.n_messages, 0, "case %zu", i);
		raw_segment_close(&s);
		finish();
	}
}

Test(hostile_memory, a_slot_retired_under_a_message_that_waits)
{
	struct raw_segment s;

	begin(NULL);
	raw_segment_open(&s, SHIFT, CHUNKS);
	cr_assert(raw_announce_segment(peer, 7, &s));
	settle(p.loop);
	cr_assert_eq(wharf_port_pause(p.a.port), 0);
	cr_assert(raw_chunks(peer, 7, 0, 1, 100));
	settle(p.loop);
	cr_assert(raw_retire(peer, 7, false));
	expect_violation();
	raw_segment_close(&s);
	finish();
}

Test(hostile_memory, a_slot_retired_under_a_taken_message_stays_readable)
{
	struct raw_segment s;

	n_taken = 0;
	begin(NULL);
	p.a.on_message = take;
	raw_segment_open(&s, SHIFT, CHUNKS);
	cr_assert(raw_announce_segment(peer, 7, &s));
	cr_assert(raw_chunks(peer, 7, 9, 1, 100));
	settle(p.loop);
	cr_assert(raw_retire(peer, 7, false));
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
	raw_segment_close(&s);
	/* Another segment in the same slot must not be mistaken for it. */
	raw_segment_open(&s, SHIFT, CHUNKS);
	cr_assert(raw_announce_segment(peer, 7, &s));
	settle(p.loop);
	cr_assert_eq(*(const char *)taken[0]->slices[0].data, 9);
	wharf_msg_release(taken[0]);
	settle(p.loop);
	cr_assert_eq(atomic_load(&s.map->words[0]), 0, "released in the old map");
	raw_segment_close(&s);
	finish();
}

Test(hostile_memory, an_unmapping_that_was_not_asked_for)
{
	begin(NULL);
	cr_assert(raw_retire(peer, 0, true));
	expect_violation();
	finish();
	begin(NULL);
	cr_assert(raw_retire(peer, 0, false));
	expect_violation();
	finish();
}

/* ---- Release maps of this end's segments ---- */

static struct raw_holder holder;

static void lend(unsigned n)
{
	struct wharf_buf b;

	for (unsigned i = 0; i < n; i++) {
		cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 1000, &b), 0);
		cr_assert_eq(wharf_send_buf(p.a.port, 1, &b), 0);
	}
	settle(p.loop);
	raw_hold(peer, &holder);
}

static void begin_lending(unsigned n)
{
	holder = (struct raw_holder){ 0 };
	begin(NULL);
	lend(n);
	cr_assert_eq(holder.n_runs, n);
}

static unsigned only_slot(void)
{
	unsigned slot = 0;

	while (!holder.maps[slot])
		cr_assert_lt(++slot, WH_WIRE_SLOTS_MAX, "nothing was announced");
	return slot;
}

Test(hostile_memory, chunks_released_twice)
{
	struct wh_run run;

	begin_lending(4);
	run = holder.runs[0];
	raw_release_all(&holder);
	cr_assert(raw_wake(peer));
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 0, "once is right");
	holder.runs[holder.n_runs++] = run;
	raw_release_all(&holder);
	cr_assert(raw_wake(peer));
	expect_violation();
	raw_holder_fini(&holder);
	finish();
}

Test(hostile_memory, chunks_released_that_were_never_lent)
{
	for (unsigned word = 0; word < 64; word++) {
		struct wharf_buf b;
		unsigned slot;
		begin_lending(4);
		slot = only_slot();
		cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 1000, &b), 0);
		memset(b.data, 'm', b.size);
		atomic_store(&holder.maps[slot]->words[word], UINT64_MAX);
		cr_assert(raw_wake(peer));
		if (word < holder.n_chunks[slot] / 64) {
			expect_violation();
		} else {
			settle(p.loop);
			cr_assert_eq(p.a.n_closed, 0, "behind the segment nobody looks");
		}
		cr_assert_eq(((char *)b.data)[999], 'm', "a claimed buffer is its owner's");
		wharf_buf_abandon(&b);
		raw_holder_fini(&holder);
		finish();
	}
}

Test(hostile_memory, a_release_map_of_nonsense)
{
	struct harness_random random = { harness_seed() };

	for (int round = 0; round < 20; round++) {
		begin_lending(16);
		uint64_t *words = (uint64_t *)(void *)holder.maps[only_slot()];
		for (int i = 0; i < 2000; i++) {
			struct wharf_buf b;
			words[harness_random_below(&random, 512)] = harness_random_next(&random);
			size_t size = 1 + harness_random_below(&random, 3000);
			if (p.a.port && !wharf_buf_claim(wharf_port_pool(p.a.port), size, &b) &&
				wharf_send_buf(p.a.port, 1, &b))
				wharf_buf_abandon(&b);
			if (i % 64 == 0) {
				(void)!raw_wake(peer);
				cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
			}
		}
		settle(p.loop);
		raw_holder_fini(&holder);
		finish();
	}
}

Test(hostile_memory, an_owner_that_always_wants_to_be_woken_is_woken_once_a_turn)
{
	struct wharf_port_stats stats;
	struct raw_segment s;
	struct raw_frame frame;

	begin(NULL);
	raw_segment_open(&s, SHIFT, CHUNKS);
	cr_assert(raw_announce_segment(peer, 0, &s));
	for (int turn = 0; turn < 50; turn++) {
		atomic_store(&s.map->wanted, UINT32_MAX);
		raw_begin(&frame);
		for (uint32_t i = 0; i < CHUNKS; i++)
			raw_put_chunks(&frame, 1, 0, i, 1, 1);
		cr_assert(raw_end(peer, &frame, 0));
		settle(p.loop);
	}
	cr_assert_eq(p.a.n_messages, 50 * CHUNKS);
	WHARF_INIT(&stats);
	cr_assert_eq(wharf_port_stats(p.a.port, &stats), 0);
	cr_assert_eq(stats.wakes_sent, 50);
	raw_segment_close(&s);
	finish();
}

Test(hostile_memory, what_a_peer_was_given_it_cannot_change)
{
	struct raw_read read = { 0 };
	struct wharf_buf b;
	struct stat st;

	begin(NULL);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 1000, &b), 0);
	cr_assert_eq(wharf_send_buf(p.a.port, 1, &b), 0);
	settle(p.loop);
	while (raw_receive(peer, &read) && read.n_fds != 2)
		;
	cr_assert_eq(read.n_fds, 2);
	cr_assert_eq(fstat(read.fds[0], &st), 0);
	for (int i = 0; i < 2; i++) {
		cr_assert_eq(ftruncate(read.fds[i], 0), -1);
		cr_assert_eq(ftruncate(read.fds[i], 1 << 30), -1);
		cr_assert_eq(fcntl(read.fds[i], F_ADD_SEALS, F_SEAL_WRITE), -1);
	}
	cr_assert_eq(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, read.fds[0], 0), MAP_FAILED);
	cr_assert_eq(pwrite(read.fds[0], "x", 1, 0), -1);
	cr_assert_eq(fallocate(read.fds[0], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, st.st_size), -1);
	/* Nor by way of /proc. */
	char path[64];
	snprintf(path, sizeof(path), "/proc/self/fd/%d", read.fds[0]);
	int again = open(path, O_RDWR | O_CLOEXEC);
	if (again >= 0) {
		cr_assert_eq(pwrite(again, "x", 1, 0), -1);
		cr_assert_eq(ftruncate(again, 0), -1);
		close(again);
	}
	close(read.fds[0]);
	close(read.fds[1]);
	finish();
}
