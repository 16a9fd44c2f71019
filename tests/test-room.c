/* SPDX-License-Identifier: MIT */
/* Waiting for room: ports that are told, threads that sleep. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>

#include "peer.h"

TestSuite(room, .init = peer_test_begin, .fini = peer_test_end, .timeout = 60);

Test(room, a_failed_claim_marks_every_map_and_the_port_is_told_once_when_it_would_succeed)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 256 * KIB, &p);
		struct wh_run runs[16];
		for (int i = 0; i < 16; i++) {
			struct wharf_buf buf = claim(pool, 16384);
			runs[i] = send_buf(&p, &buf);
		}
		cr_assert_not(wh_pool_room(pool, p.lease), "nothing failed yet");
		cr_assert_not(p.views[runs[0].slot]->map->wanted);
		cr_assert_eq(try_claim(pool, 65536), -EAGAIN);
		for (int i = 0; i < 16; i++)
			cr_assert(p.views[runs[i].slot]->map->wanted);
		cr_assert(release(&p, &runs[0]), "the peer owes a wake");
		cr_assert_not(wh_pool_room(pool, p.lease), "one chunk is not four");
		cr_assert(p.views[runs[0].slot]->map->wanted, "marked again");
		for (int i = 1; i < 16; i++)
			release(&p, &runs[i]);
		cr_assert_not(wh_pool_room(pool, p.lease), "all of it is free, but mapped in chunks of 4 KiB");
		cr_assert_geq(retire_all(&p), 1);
		cr_assert(wh_pool_room(pool, p.lease));
		cr_assert_not(wh_pool_room(pool, p.lease), "once");
		cr_assert_eq(try_claim(pool, 65536), 0);
		peer_leave(&p);
		wharf_pool_unref(pool);
	}
}

Test(room, every_port_of_a_shared_pool_is_told)
{
	struct peer p[3];
	wharf_pool *pool = new_pool(64 * KIB, true);
	struct wharf_buf bufs[16];
	for (int i = 0; i < 3; i++)
		peer_join(&p[i], pool, NULL);
	for (int i = 0; i < 16; i++)
		bufs[i] = claim(pool, 4096);
	cr_assert_eq(try_claim(pool, 4096), -EAGAIN);
	for (int i = 0; i < 3; i++)
		cr_assert_not(wh_pool_room(pool, p[i].lease));
	wharf_buf_abandon(&bufs[5]);
	for (int i = 0; i < 3; i++)
		cr_assert_eq(p[i].kicks, 1, "abandoning tells those that wait");
	for (int i = 0; i < 3; i++) {
		cr_assert(wh_pool_room(pool, p[i].lease));
		cr_assert_not(wh_pool_room(pool, p[i].lease));
	}
	wharf_buf_abandon(&bufs[6]);
	for (int i = 0; i < 3; i++)
		cr_assert_eq(p[i].kicks, 1, "nobody waits");
	for (int i = 0; i < 16; i++)
		wharf_buf_abandon(&bufs[i]);
	for (int i = 0; i < 3; i++)
		peer_leave(&p[i]);
	wharf_pool_unref(pool);
}

Test(room, what_the_loop_holds_in_private_words_is_given_to_a_claim_of_another_thread)
{
	struct peer p;
	wharf_pool *pool = new_pool(16 * KIB, false);
	peer_join(&p, pool, &a_loop);
	wh_current_loop = &a_loop;
	/* The first makes the segment, the second takes the only word. */
	struct wharf_buf bufs[2] = { claim(pool, 100), claim(pool, 100) }, big;
	cr_assert_not(wh_pool_local_idle(pool));
	wh_current_loop = NULL;
	cr_assert_eq(wharf_buf_claim(pool, 100, &big), -EAGAIN);
	cr_assert_eq(p.kicks, 1);
	wh_current_loop = &a_loop;
	cr_assert(wh_pool_room(pool, p.lease));
	cr_assert(wh_pool_local_idle(pool));
	wh_current_loop = NULL;
	cr_assert_eq(wharf_buf_claim(pool, 100, &big), 0);
	wharf_buf_abandon(&big);
	wh_current_loop = &a_loop;
	wharf_buf_abandon(&bufs[0]);
	wharf_buf_abandon(&bufs[1]);
	peer_leave(&p);
	wharf_pool_unref(pool);
}

/* ---- Watching a run come back ---- */

Test(room, a_watched_lease_is_woken_for_a_release_that_nobody_waits_for)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 1 * MIB, &p);
		struct wharf_buf bufs[4] = { claim(pool, 300), claim(pool, 300), claim(pool, 300), claim(pool, 3000) };
		struct wh_run runs[4];
		for (int i = 0; i < 3; i++)
			runs[i] = send_buf(&p, &bufs[i]);
		cr_assert_eq(runs[2].slot, runs[0].slot, "one map, one mark");
		wh_lease_watch(p.lease, true);
		cr_assert(wh_lease_holds(p.lease, &runs[0]));
		cr_assert(release(&p, &runs[0]), "the peer owes a wake");
		cr_assert_not(wh_lease_holds(p.lease, &runs[0]));
		cr_assert_eq(wh_lease_harvest(p.lease), 0, "what was looked at was taken back");
		cr_assert(wh_lease_holds(p.lease, &runs[1]));
		cr_assert(release(&p, &runs[1]), "marked again");
		cr_assert_not(wh_pool_room(pool, p.lease), "nobody waits");
		cr_assert_not(wh_lease_holds(p.lease, &runs[1]));
		cr_assert(release(&p, &runs[2]), "marked again");
		/* A segment that the peer learns of later. */
		runs[3] = send_buf(&p, &bufs[3]);
		cr_assert_neq(runs[3].slot, runs[0].slot);
		cr_assert(release(&p, &runs[3]));
		cr_assert_eq(wh_lease_harvest(p.lease), 512 + 3072);
		bufs[3] = claim(pool, 3000);
		runs[3] = send_buf(&p, &bufs[3]);
		wh_lease_watch(p.lease, false);
		cr_assert_not(release(&p, &runs[3]), "not any more");
		peer_leave(&p);
		wharf_pool_unref(pool);
	}
}

Test(room, a_claim_that_no_longer_waits_leaves_the_marks_of_those_who_watch)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 4 * KIB, &p);
		struct wharf_buf bufs[4] = { claim(pool, 700), claim(pool, 700), claim(pool, 700), claim(pool, 700) };
		struct wh_run run = send_buf(&p, &bufs[0]);
		_Atomic uint32_t *wanted = &p.views[run.slot]->map->wanted;
		wh_lease_watch(p.lease, true);
		cr_assert_eq(try_claim(pool, 700), -EAGAIN);
		wharf_buf_abandon(&bufs[1]);
		cr_assert(wh_pool_room(pool, p.lease));
		cr_assert_eq(atomic_load(&pool->attention), 0, "nobody waits any more");
		cr_assert(*wanted);
		/* The other way round: whoever stops watching leaves the marks of those who wait. */
		bufs[1] = claim(pool, 700);
		cr_assert_eq(try_claim(pool, 700), -EAGAIN);
		wh_lease_watch(p.lease, false);
		cr_assert(*wanted);
		wharf_buf_abandon(&bufs[1]);
		cr_assert(wh_pool_room(pool, p.lease));
		cr_assert_not(*wanted);
		cr_assert_not(release(&p, &run));
		wharf_buf_abandon(&bufs[2]);
		wharf_buf_abandon(&bufs[3]);
		peer_leave(&p);
		wharf_pool_unref(pool);
	}
}

Test(room, a_run_is_held_until_its_last_chunk_is_back_from_this_peer_whoever_else_has_it)
{
	struct peer p, q;
	wharf_pool *pool = new_pool(0, true);
	peer_join(&p, pool, NULL);
	peer_join(&q, pool, NULL);
	struct wharf_buf buf = claim(pool, 700), more, mine;
	cr_assert_eq(wharf_buf_ref(&buf, &more), 0);
	cr_assert_eq(wharf_buf_ref(&buf, &mine), 0);
	struct wh_run run, other;
	cr_assert_eq(wh_lease_lend(p.lease, &buf, 0, 700, 0, &run), 0);
	cr_assert(wh_lease_holds(p.lease, &run), "not yet published");
	cr_assert_not(wh_lease_holds(q.lease, &run));
	cr_assert_eq(wh_lease_lent_bytes(p.lease), 768);
	wh_lease_hold(p.lease);
	wh_lease_unhold(p.lease);
	cr_assert(wh_lease_holds(p.lease, &run), "set aside");
	cr_assert_eq(wh_lease_lent_bytes(p.lease), 768);
	announce(&p, run.slot);
	wh_lease_publish(p.lease);
	other = send_buf(&q, &more);
	uint64_t bit = UINT64_C(1) << (run.first % 64);
	cr_assert_eq(run.n_chunks, 3);
	wh_view_release(p.views[run.slot], run.first / 64, bit | bit << 2);
	cr_assert(wh_lease_holds(p.lease, &run));
	cr_assert_eq(wh_lease_lent_bytes(p.lease), 256);
	wh_view_release(p.views[run.slot], run.first / 64, bit << 1);
	cr_assert_not(wh_lease_holds(p.lease, &run));
	cr_assert_eq(wh_lease_lent_bytes(p.lease), 0);
	cr_assert(wh_lease_holds(q.lease, &other));
	release(&q, &other);
	/* Taken back by whoever came first. */
	cr_assert_eq(info_of(pool).bytes_lent, 0);
	cr_assert_not(wh_lease_holds(q.lease, &other));
	/* Ours still: none of it was free. */
	cr_assert_eq(info_of(pool).bytes_free, info_of(pool).bytes - 768);
	wharf_buf_abandon(&mine);
	peer_leave(&p);
	peer_leave(&q);
	wharf_pool_unref(pool);
}

Test(room, what_is_taken_back_while_looking_goes_to_those_who_wait)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 4 * KIB, &p);
		struct wharf_buf buf = claim(pool, 4096);
		struct wh_run run = send_buf(&p, &buf);
		cr_assert_eq(try_claim(pool, 4096), -EAGAIN);
		release(&p, &run);
		cr_assert_eq(p.kicks, 0);
		cr_assert_not(wh_lease_holds(p.lease, &run));
		cr_assert_eq(p.kicks, 1);
		cr_assert(wh_pool_room(pool, p.lease));
		peer_leave(&p);
		wharf_pool_unref(pool);
	}
}

/* ---- Threads that sleep ---- */

struct waiter {
	wharf_pool *pool;
	size_t size;
	int64_t timeout_ns;
	int result;
	_Atomic bool done;
	struct wharf_buf buf;
	pthread_t thread;
};

static void *wait_for_room(void *arg)
{
	struct waiter *w = arg;
	w->result = wharf_buf_claim_wait(w->pool, w->size, w->timeout_ns, &w->buf);
	w->done = true;
	return NULL;
}

static void start_waiter(struct waiter *w, wharf_pool *pool, size_t size, int64_t timeout_ns)
{
	*w = (struct waiter){ .pool = pool, .size = size, .timeout_ns = timeout_ns };
	cr_assert_eq(pthread_create(&w->thread, NULL, wait_for_room, w), 0);
	/* It cannot be seen to sleep, only to have asked. */
	while (!(atomic_load(&pool->attention) & WH_WAITERS) && !w->done)
		sched_yield();
}

Test(room, a_waiting_claim_refuses_a_loops_thread_and_ends_when_its_time_is_up)
{
	wharf_pool *pool = new_pool(4 * KIB, false);
	struct wharf_buf all = claim(pool, 4096), buf;
	cr_assert_eq(wharf_buf_claim_wait(pool, 4096, 0, &buf), -ETIMEDOUT);
	cr_assert_eq(wharf_buf_claim_wait(pool, 4096, 1000000, &buf), -ETIMEDOUT);
	cr_assert_eq(wharf_buf_claim_wait(pool, 4097, -1, &buf), -EMSGSIZE);
	cr_assert_eq(atomic_load(&pool->attention), 0);
	wh_current_loop = &a_loop;
	cr_assert_eq(wharf_buf_claim_wait(pool, 4096, -1, &buf), -EDEADLK);
	wh_current_loop = NULL;
	wharf_buf_abandon(&all);
	cr_assert_eq(wharf_buf_claim_wait(pool, 4096, -1, &buf), 0);
	wharf_buf_abandon(&buf);
	wharf_pool_unref(pool);
}

Test(room, a_waiting_claim_gets_what_another_thread_abandons)
{
	wharf_pool *pool = new_pool(4 * KIB, false);
	for (int round = 0; round < 50; round++) {
		struct wharf_buf all = claim(pool, 4096);
		struct waiter w;
		start_waiter(&w, pool, 4096, 30 * SECOND);
		wharf_buf_abandon(&all);
		pthread_join(w.thread, NULL);
		cr_assert_eq(w.result, 0);
		wharf_buf_abandon(&w.buf);
	}
	wharf_pool_unref(pool);
}

Test(room, a_waiting_claim_gets_what_the_peer_releases)
{
	FOR_SETTINGS(s) {
		struct peer p;
		wharf_pool *pool = new_setting(s, 4 * KIB, &p);
		for (int round = 0; round < 50; round++) {
			struct wharf_buf all = claim(pool, 4096);
			struct wh_run run = send_buf(&p, &all);
			struct waiter w;
			start_waiter(&w, pool, 4096, 30 * SECOND);
			/* Unless the waiter saw the release itself, the peer owes a wake, and the loop acts on it. */
			if (release(&p, &run) || p.kicks)
				wh_pool_room(pool, p.lease);
			p.kicks = 0;
			pthread_join(w.thread, NULL);
			cr_assert_eq(w.result, 0);
			wharf_buf_abandon(&w.buf);
			cr_assert_not(p.views[run.slot]->map->wanted, "nobody wants any more");
		}
		peer_leave(&p);
		wharf_pool_unref(pool);
	}
}

Test(room, a_waiting_claim_ends_with_EPIPE_when_the_last_port_is_gone)
{
	struct peer p, q;
	wharf_pool *pool = new_pool(4 * KIB, true);
	peer_join(&p, pool, NULL);
	peer_join(&q, pool, NULL);
	struct wharf_buf all = claim(pool, 4096), buf;
	struct waiter w;
	start_waiter(&w, pool, 4096, -1);
	peer_leave(&p);
	cr_assert_not(w.done, "one is left");
	peer_leave(&q);
	pthread_join(w.thread, NULL);
	cr_assert_eq(w.result, -EPIPE);
	cr_assert_eq(wharf_buf_claim_wait(pool, 4096, -1, &buf), -EPIPE);
	wharf_buf_abandon(&all);
	cr_assert_eq(wharf_buf_claim_wait(pool, 4096, -1, &buf), 0, "room is room");
	wharf_buf_abandon(&buf);
	wharf_pool_unref(pool);
}
