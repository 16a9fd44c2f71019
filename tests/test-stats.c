/* SPDX-License-Identifier: MIT */
/* What loops and ports show in control memory: counters, what is published at the end of turns, lists. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "apart.h"
#include "control.h"
#include "filter.h"
#include "harness.h"
#include "pool_internal.h"
#include "port.h"

TestSuite(stats, .timeout = 60);

static uint64_t now_ns = 1000000000;

static uint64_t clock_ns(void *user)
{
	(void)user;
	return now_ns;
}

static const struct wharf_loop_options own_clock = { .size = sizeof(own_clock), .clock_ns = clock_ns };

static const struct wh_control_header *header_of(const wharf_loop *loop)
{
	const char *block = (const char *)loop->stats;

	return (const void *)(block - (size_t)wh_control_position(block) * WH_CONTROL_UNIT);
}

static const void *at(const struct wh_control_header *header, uint32_t position)
{
	return (const char *)header + (size_t)position * WH_CONTROL_UNIT;
}

static unsigned count_loops(const struct wh_control_header *header)
{
	unsigned n = 0;

	for (uint32_t p = header->first_loop, previous = 0; p; n++) {
		const struct wh_stats_loop *loop = at(header, p);
		cr_assert_eq(loop->previous, previous);
		previous = p;
		p = loop->next;
	}
	cr_assert_eq(n, header->n_loops);
	return n;
}

static unsigned count_ports(const struct wh_control_header *header, const wharf_loop *loop)
{
	unsigned n = 0;

	for (uint32_t p = loop->stats->first_port, previous = 0; p; n++) {
		const struct wh_stats_port *port = at(header, p);
		cr_assert_eq(port->previous, previous);
		cr_assert_eq(port->loop, wh_control_position(loop->stats));
		previous = p;
		p = port->next;
	}
	cr_assert_eq(n, loop->stats->n_ports);
	return n;
}

Test(stats, lists_as_loops_and_ports_come_and_go)
{
	wharf_loop *only;
	struct apart p;
	struct pair q;

	cr_assert_eq(wharf_loop_new(NULL, &only), 0);
	const struct wh_control_header *header = header_of(only);
	uint64_t sequence = header->sequence;
	cr_assert_eq(count_loops(header), 1);
	cr_assert_eq(count_ports(header, only), 0);
	apart_open(&p, NULL, NULL, NULL);
	cr_assert_eq(count_loops(header), 3);
	cr_assert_eq(count_ports(header, p.loop_a), 1);
	cr_assert_eq(count_ports(header, p.loop_b), 1);
	pair_open(&q, NULL, NULL);
	cr_assert_eq(count_loops(header), 4);
	cr_assert_eq(count_ports(header, q.loop), 2);
	cr_assert_neq(p.a.port->stats->id, p.b.port->stats->id);
	cr_assert_neq(p.loop_a->stats->id, p.loop_b->stats->id);
	only = wharf_loop_free(only);
	cr_assert_eq(count_loops(header), 3);
	cr_assert_eq(wharf_port_abort(q.a.port, 1), 0);
	settle(q.loop);
	cr_assert_eq(q.a.n_closed, 1);
	cr_assert_eq(count_ports(header, q.loop), 0);
	cr_assert_eq(q.loop->stats->ports_opened, 2);
	cr_assert_eq(q.loop->stats->ports_closed, 2);
	pair_free(&q);
	apart_free(&p);
	cr_assert_eq(count_loops(header), 0);
	cr_assert_eq(header->sequence % 2, 0);
	cr_assert_gt(header->sequence, sequence);
}

Test(stats, counters_are_those_of_a_scripted_exchange)
{
	struct apart p;
	struct wharf_port_stats told;

	apart_open(&p, NULL, NULL, NULL);
	const struct wh_stats_port *a = p.a.port->stats, *b = p.b.port->stats;
	const struct wh_stats_loop *loop_a = p.loop_a->stats, *loop_b = p.loop_b->stats;
	for (int i = 0; i < 10; i++)
		cr_assert_eq(wharf_send_bytes(p.a.port, 7, "hello", 5), 0);
	send_claimed(p.a.port, wharf_port_pool(p.a.port), 1000, 1);
	apart_settle(&p);
	cr_assert_eq(a->counts.tx_messages, 11);
	cr_assert_eq(a->counts.tx_bytes, 1050);
	cr_assert_eq(b->counts.rx_messages, 11);
	cr_assert_eq(b->counts.rx_bytes, 1050);
	cr_assert_eq(loop_a->tx_messages, 11);
	cr_assert_eq(loop_a->tx_bytes, 1050);
	cr_assert_eq(loop_b->rx_messages, 11);
	cr_assert_eq(loop_b->rx_bytes, 1050);
	cr_assert_eq(loop_a->tx_frames, a->counts.tx_frames);
	cr_assert_eq(loop_b->rx_frames, b->counts.rx_frames);
	cr_assert_gt(b->counts.rx_mapped_bytes, 0);
	/* What is published agrees with what the port's own function says. */
	told = stats_of(p.a.port);
	cr_assert_eq(memcmp(&told.tx_messages, &a->counts, sizeof(a->counts)), 0);
	told = stats_of(p.b.port);
	cr_assert_eq(memcmp(&told.tx_messages, &b->counts, sizeof(b->counts)), 0);
	cr_assert_eq(a->sequence % 2, 0);
	cr_assert_eq(loop_a->sequence % 2, 0);
	cr_assert_gt(loop_a->turns, 0);
	cr_assert_gt(loop_a->events, 0);
	cr_assert_gt(loop_a->system_calls, 0);
	cr_assert_gt(loop_a->completions, 0);
	cr_assert_eq(loop_a->tid, (uint32_t)gettid());
	cr_assert(loop_a->engine == WH_STATS_URING || loop_a->engine == WH_STATS_EPOLL);
	cr_assert_eq(loop_a->armed[WH_ARMED_RECEIVE], 1);
	cr_assert_eq(loop_a->armed[WH_ARMED_SEND], 0);
	cr_assert_eq(loop_a->rx_buffers, 64);
	cr_assert_eq(loop_a->rx_buffers_lent, 0);
	uint64_t frames = 0;
	for (int i = 0; i < WH_STATS_BUCKETS; i++)
		frames += loop_b->lag[i];
	cr_assert_geq(frames, b->counts.rx_frames - 1, "%lu", (unsigned long)frames); /* a hello has no lag to speak of */
	/* Sums outlive their ports. */
	cr_assert_eq(wharf_port_abort(p.a.port, 1), 0);
	apart_settle(&p);
	cr_assert_eq(loop_a->tx_messages, 11);
	apart_free(&p);
}

Test(stats, a_port_says_who_and_how_it_is)
{
	struct apart p;
	struct wharf_port_options o = { .size = sizeof(o), .name = "who-asks" };

	apart_open(&p, NULL, &o, NULL);
	const struct wh_stats_port *a = p.a.port->stats, *b = p.b.port->stats;
	cr_assert_eq(b->state, WH_PORT_OPEN);
	cr_assert_eq(b->peer_pid, (uint32_t)getpid());
	cr_assert_eq(b->peer_uid, getuid());
	cr_assert_str_eq(b->peer_name, "who-asks");
	cr_assert_eq(b->fd, p.fds[1]);
	cr_assert_gt(b->window, 0);
	const struct wh_control_pool *pool = at(header_of(p.loop_a), b->pool);
	const struct wh_control_lease *lease = at(header_of(p.loop_a), b->lease);
	cr_assert_eq(pool->first_lease, b->lease);
	cr_assert_eq(lease->peer, (uint32_t)getpid());
	/* A pause shows at once: the host may take no turn for long. */
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	cr_assert(b->flags & WH_STATS_PAUSED);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), 0);
	apart_settle(&p);
	cr_assert_eq(b->held_frames, 1);
	cr_assert_eq(a->counts.tx_unread_frames, 1);
	cr_assert_neq(a->unread_since_ns, 0);
	cr_assert_eq(wharf_port_resume(p.b.port), 0);
	apart_settle(&p);
	cr_assert(!(b->flags & WH_STATS_PAUSED));
	cr_assert_eq(b->held_frames, 0);
	/* Why it ends is there before on_close runs. */
	cr_assert_eq(wharf_port_abort(p.a.port, 99), 0);
	cr_assert_eq(a->state, WH_PORT_ENDING);
	cr_assert_eq(a->close_code, WHARF_CLOSE_ABORTED);
	cr_assert_eq(a->app_code, 99);
	cr_assert_str_eq(a->text, "aborted with code 99");
	apart_free(&p);
}

Test(stats, times_are_of_the_turns)
{
	struct apart p;

	now_ns = 1000000000;
	apart_open(&p, &own_clock, NULL, NULL);
	const struct wh_stats_port *a = p.a.port->stats, *b = p.b.port->stats;
	cr_assert(p.loop_a->stats->flags & WH_STATS_OWN_CLOCK);
	cr_assert_eq(a->opened_ns, 1000000000);
	now_ns = 2000000000;
	cr_assert_geq(wharf_loop_step(p.loop_a, 0), 0);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), 0);
	cr_assert_geq(wharf_loop_step(p.loop_a, 0), 0);
	cr_assert_geq(wharf_loop_step(p.loop_a, 0), 0);
	cr_assert_eq(a->last_tx_ns, 2000000000);
	cr_assert_eq(a->unread_since_ns, 2000000000);
	uint64_t before[WH_STATS_BUCKETS];
	memcpy(before, p.loop_b->stats->lag, sizeof(before));
	now_ns = 2000001000;
	cr_assert_geq(wharf_loop_step(p.loop_b, 0), 0);
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_eq(b->last_rx_ns, 2000001000);
	cr_assert_eq(b->lag_ns, 1000);
	cr_assert_eq(b->longest_lag_ns, 1000);
	cr_assert_eq(p.loop_b->stats->lag[10], before[10] + 1); /* 512 to 1023 */
	/* The next is faster. */
	cr_assert_geq(wharf_loop_step(p.loop_a, 0), 0);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), 0);
	cr_assert_geq(wharf_loop_step(p.loop_a, 0), 0);
	now_ns += 100;
	cr_assert_geq(wharf_loop_step(p.loop_b, 0), 0);
	cr_assert_eq(p.b.n_messages, 2);
	cr_assert_eq(b->lag_ns, 100);
	cr_assert_eq(b->longest_lag_ns, 1000);
	apart_free(&p);
}

Test(stats, a_refused_send_blocks_until_there_is_room)
{
	struct wharf_port_options o = { .size = sizeof(o), .tx_queued_bytes_max = 65536 };
	static char bytes[4096];
	struct apart p;
	int error;

	now_ns = 1000000000;
	apart_open(&p, &own_clock, &o, NULL);
	const struct wh_stats_port *a = p.a.port->stats;
	cr_assert_eq(a->blocked_since_ns, 0);
	/* Refused between turns: shown at once, from that time on. */
	while (!(error = wharf_send_bytes(p.a.port, 1, bytes, sizeof(bytes)))) {
	}
	cr_assert_eq(error, -EAGAIN);
	cr_assert_eq(a->blocked_since_ns, 1000000000);
	cr_assert(a->flags & WH_STATS_BLOCKED);
	cr_assert_eq(a->counts.tx_again, 1);
	now_ns = 3000000000;
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, bytes, sizeof(bytes)), -EAGAIN);
	cr_assert_eq(a->blocked_since_ns, 1000000000);
	cr_assert_eq(a->blocked_ns, 0);
	apart_settle(&p);
	cr_assert_eq(p.a.n_writable, 1);
	cr_assert_eq(a->blocked_since_ns, 0);
	cr_assert(!(a->flags & WH_STATS_BLOCKED));
	cr_assert_eq(a->blocked_ns, 2000000000);
	cr_assert_eq(a->longest_blocked_ns, 2000000000);
	apart_free(&p);
}

Test(stats, a_refused_claim_blocks_until_there_is_room)
{
	struct wharf_port_options o = { .size = sizeof(o), .pool_bytes_max = 1 << 20 };
	struct wharf_buf buf, none;
	struct apart p;

	now_ns = 1000000000;
	apart_open(&p, &own_clock, &o, NULL);
	const struct wh_stats_port *b = p.b.port->stats, *a = p.a.port->stats;
	cr_assert_geq(wharf_loop_step(p.loop_a, 0), 0); /* its thread's loop is a again */
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 1 << 20, &buf), 0);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 1 << 20, &none), -EAGAIN);
	cr_assert_eq(a->blocked_since_ns, 1000000000);
	cr_assert_eq(b->blocked_since_ns, 0);
	now_ns = 1000005000;
	cr_assert_eq(wharf_send_buf(p.a.port, 1, &buf), 0);
	apart_settle(&p);
	cr_assert_eq(p.a.n_writable, 1);
	cr_assert_eq(a->blocked_since_ns, 0);
	cr_assert_eq(a->blocked_ns, 5000);
	apart_free(&p);
}

/* Looks from inside of a callback, as somebody outside would while it hangs. */
static struct {
	uint32_t phase, in_port, loop_state;
	uint64_t phase_since_ns, rx_frames, events;
} hung;

static void look(struct end *end, const struct wharf_msg *msg)
{
	const wharf_loop *loop = wharf_port_loop(end->port);

	(void)msg;
	hung.phase = loop->stats->phase;
	hung.in_port = loop->stats->in_port;
	hung.phase_since_ns = loop->stats->phase_since_ns;
	hung.rx_frames = end->port->stats->counts.rx_frames;
	hung.events = loop->stats->events;
}

Test(stats, a_callback_that_hangs_is_seen)
{
	struct apart p;

	now_ns = 1000000000;
	apart_open(&p, &own_clock, NULL, NULL);
	cr_assert_eq(p.loop_b->stats->phase, WH_PHASE_OUTSIDE);
	uint64_t frames = p.b.port->stats->counts.rx_frames;
	p.b.on_message = look;
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), 0);
	now_ns = 5000000000;
	apart_settle(&p);
	cr_assert_eq(hung.phase, WH_PHASE_WORKS);
	cr_assert_eq(hung.phase_since_ns, 5000000000);
	cr_assert_eq(hung.in_port, wh_control_position(p.b.port->stats));
	cr_assert_eq(hung.rx_frames, frames + 1);
	cr_assert_leq(hung.events, p.loop_b->stats->events);
	cr_assert_eq(p.loop_b->stats->phase, WH_PHASE_OUTSIDE);
	apart_free(&p);
}

static void take_long(struct end *end, const struct wharf_msg *msg)
{
	(void)end, (void)msg;
	now_ns += 3000000;
}

Test(stats, turns_are_measured)
{
	struct apart p;

	now_ns = 1000000000;
	apart_open(&p, &own_clock, NULL, NULL);
	const struct wh_stats_loop *b = p.loop_b->stats;
	uint64_t busy_ns = b->busy_ns, slow = b->turn[22];
	p.b.on_message = take_long;
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), 0);
	apart_settle(&p);
	cr_assert_eq(b->busy_ns, busy_ns + 3000000);
	cr_assert_eq(b->turn[22], slow + 1); /* 2097152 to 4194303 */
	cr_assert_eq(b->longest_turn_ns, 3000000);
	apart_free(&p);
}

static void note(struct wharf_task *task, int status)
{
	(void)status;
	*(bool *)task->user = true;
}

Test(stats, wakes_and_posts_are_counted)
{
	bool ran = false;
	struct wharf_task task = { .run = note, .user = &ran };
	struct wh_stats_loop before;
	wharf_loop *loop;

	cr_assert_eq(wharf_loop_new(NULL, &loop), 0);
	cr_assert_geq(wharf_loop_step(loop, 0), 0);
	memcpy(&before, loop->stats, sizeof(before));
	cr_assert_eq(wharf_loop_wake(loop), 0);
	cr_assert_geq(wharf_loop_step(loop, -1), 0);
	cr_assert_geq(wharf_loop_step(loop, 0), 0);
	cr_assert_eq(loop->stats->wakes, before.wakes + 1);
	cr_assert_eq(wharf_loop_post(loop, &task), 0);
	cr_assert_geq(wharf_loop_step(loop, -1), 0);
	cr_assert(ran);
	cr_assert_eq(loop->stats->posts, before.posts + 1);
	wharf_loop_free(loop);
}

Test(stats, an_unseen_loop_works_and_shows_nothing)
{
	const struct wharf_loop_options unseen = { .size = sizeof(unseen), .flags = WHARF_LOOP_UNSEEN };
	wharf_loop *seen;
	struct apart p;

	cr_assert_eq(wharf_loop_new(NULL, &seen), 0);
	apart_open(&p, &unseen, NULL, NULL);
	cr_assert(!wh_control_owns(p.loop_a->stats));
	cr_assert(!wh_control_owns(p.a.port->stats));
	cr_assert_eq(count_loops(header_of(seen)), 1);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "x", 1), 0);
	apart_settle(&p);
	cr_assert_eq(p.b.n_messages, 1);
	cr_assert_eq(stats_of(p.b.port).rx_messages, 1);
	apart_free(&p);
	wharf_loop_free(seen);
}

/* ---- Other processes ---- */

static int forked(void *user)
{
	struct apart *p = user;
	wharf_loop *loop;

	HARNESS_REQUIRE(harness_count_maps("/memfd:wharf-control") == 0);
	HARNESS_REQUIRE(harness_count_maps("/memfd:wharf-trace") == 0);
	HARNESS_REQUIRE(wharf_loop_step(p->loop_a, 0) == -ECHILD);
	HARNESS_REQUIRE(wharf_port_close(p->a.port, -1) == -ECHILD);
	HARNESS_REQUIRE(wharf_fork_child() == 0);
	HARNESS_REQUIRE(wharf_loop_new(NULL, &loop) == 0);
	HARNESS_REQUIRE(header_of(loop)->n_loops == 1);
	HARNESS_REQUIRE(header_of(loop)->pid == (uint32_t)getpid());
	wharf_loop_free(loop);
	return 0;
}

Test(stats, a_forked_child_has_its_own)
{
	struct apart p;

	apart_open(&p, NULL, NULL, NULL);
	cr_assert_eq(harness_run(forked, &p, 10000), 0);
	cr_assert_eq(count_loops(header_of(p.loop_a)), 2);
	apart_free(&p);
}

static int without_memfds(void *user)
{
	struct wharf_task task = { .run = note, .user = user };
	wharf_loop *loop;

	HARNESS_REQUIRE(filter_refuse(SYS_memfd_create, EPERM) == 0);
	HARNESS_REQUIRE(wharf_loop_new(NULL, &loop) == 0);
	HARNESS_REQUIRE(!wh_control_owns(loop->stats));
	HARNESS_REQUIRE(wharf_loop_post(loop, &task) == 0);
	HARNESS_REQUIRE(wharf_loop_run(loop) == 0);
	HARNESS_REQUIRE(*(bool *)user);
	HARNESS_REQUIRE(loop->stats->posts == 1);
	HARNESS_REQUIRE(wharf_loop_free(loop) == NULL);
	return 0;
}

Test(stats, a_loop_works_without_control_memory)
{
	bool ran = false;

	cr_assert_eq(harness_run(without_memfds, &ran, 10000), 0);
}

/* ---- Memory ---- */

/* Bytes of control memory in this process, with the flag of madvise or without. */
static void dumped(size_t *ret_dumped, size_t *ret_spared)
{
	FILE *smaps = fopen("/proc/self/smaps", "re");
	unsigned long begin = 0, end = 0;
	char line[512];
	bool ours = false;

	cr_assert_not_null(smaps);
	*ret_dumped = *ret_spared = 0;
	while (fgets(line, sizeof(line), smaps)) {
		unsigned long b, e;
		if (sscanf(line, "%lx-%lx ", &b, &e) == 2) {
			ours = strstr(line, "/memfd:wharf-control");
			begin = b;
			end = e;
		} else if (ours && !strncmp(line, "VmFlags:", 8)) {
			*(strstr(line, " dd") ? ret_spared : ret_dumped) += end - begin;
		}
	}
	fclose(smaps);
}

Test(stats, core_dumps_have_what_is_used_of_control_memory)
{
	enum { POOLS = 1000 };
	static wharf_pool *pools[POOLS];
	size_t in, out, in_later, out_later;
	wharf_loop *loop;

	cr_assert_eq(wharf_loop_new(NULL, &loop), 0);
	dumped(&in, &out);
	cr_assert_geq(in, header_of(loop)->used);
	cr_assert_leq(in, 1 << 20);
	cr_assert_geq(out, 200 << 20);
	for (int i = 0; i < POOLS; i++)
		cr_assert_eq(wharf_pool_new(NULL, &pools[i]), 0);
	dumped(&in_later, &out_later);
	cr_assert_geq(in_later, header_of(loop)->used);
	cr_assert_gt(in_later, in);
	cr_assert_eq(in_later + out_later, in + out);
	for (int i = 0; i < POOLS; i++)
		wharf_pool_unref(pools[i]);
	wharf_loop_free(loop);
}

Test(stats, run_info_says_when_and_how_long)
{
	struct wharf_buf buf;
	struct timespec t;
	struct apart p;

	apart_open(&p, NULL, NULL, NULL);
	cr_assert_geq(wharf_loop_step(p.loop_a, 0), 0);
	cr_assert_eq(wharf_port_pause(p.b.port), 0);
	cr_assert_eq(wharf_buf_claim(wharf_port_pool(p.a.port), 600, &buf), 0);
	uint64_t place = buf.opaque[1];
	cr_assert_eq(wh_place_chunks(place), 3);
	cr_assert_eq(wharf_send_buf(p.a.port, 1, &buf), 0);
	clock_gettime(CLOCK_MONOTONIC, &t);
	uint32_t now = (uint32_t)(((uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec) >> 20);
	uint64_t info = p.a.port->lease->info[wh_place_first(place) % 64];
	cr_assert_eq(info >> 32 & 63, 2);
	cr_assert_eq(info >> 38, 0);
	cr_assert_lt(now - (uint32_t)info, 10000, "%u ago", now - (uint32_t)info);
	apart_free(&p);
}

Test(stats, run_info_of_a_claim_where_no_loop_has_turned)
{
	const struct wharf_pool_options o = { .size = sizeof(o), .shared = 1 };
	struct wharf_buf buf;
	struct timespec t;
	wharf_pool *pool;

	cr_assert_eq(wharf_pool_new(&o, &pool), 0);
	cr_assert_eq(wharf_buf_claim(pool, 600, &buf), 0);
	clock_gettime(CLOCK_MONOTONIC, &t);
	uint32_t now = (uint32_t)(((uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec) >> 20);
	uint64_t info = pool->slots[wh_place_slot(buf.opaque[1])]->info[wh_place_first(buf.opaque[1])];
	cr_assert_lt(now - (uint32_t)info, 10000, "%u ago", now - (uint32_t)info);
	wharf_buf_abandon(&buf);
	wharf_pool_unref(pool);
}

Test(stats, run_info_of_a_claim_says_since_when)
{
	const struct wharf_pool_options o = { .size = sizeof(o), .shared = 1 };
	struct wharf_buf buf;
	wharf_pool *pool;
	wharf_loop *loop;

	/* The time is that of the last turn of any loop. */
	cr_assert_eq(wharf_loop_new(NULL, &loop), 0);
	cr_assert_geq(wharf_loop_step(loop, 0), 0);
	cr_assert_eq(wharf_pool_new(&o, &pool), 0);
	cr_assert_eq(wharf_buf_claim(pool, 600, &buf), 0);
	uint64_t info = pool->slots[wh_place_slot(buf.opaque[1])]->info[wh_place_first(buf.opaque[1])];
	cr_assert_eq((uint32_t)info, wh_pool_now);
	cr_assert_neq(wh_pool_now, 0);
	cr_assert_eq(info >> 32, 2);
	wharf_buf_abandon(&buf);
	wharf_pool_unref(pool);
	wharf_loop_free(loop);
}

Test(stats, a_turn_that_has_something_to_do_is_no_sleep)
{
	struct wharf_loop_info info = { .size = sizeof(info) };
	wharf_loop *loop;
	uint64_t n;

	cr_assert_eq(wharf_loop_new(NULL, &loop), 0);
	cr_assert_geq(wharf_loop_step(loop, 0), 0);
	n = loop->stats->sleeps;
	cr_assert_eq(wharf_loop_wake(loop), 0);
	cr_assert_geq(wharf_loop_step(loop, 1000000000), 0);
	cr_expect_eq(loop->stats->sleeps, n);
	cr_assert_geq(wharf_loop_step(loop, 1000000), 0);
	cr_expect_eq(loop->stats->sleeps, n + 1);
	cr_assert_eq(wharf_loop_info(loop, &info), 0);
	cr_expect_eq(info.sleeps, loop->stats->sleeps);
	wharf_loop_free(loop);
}
