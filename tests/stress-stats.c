/* SPDX-License-Identifier: MIT */
/*
 * A reader of statistics and traces beside the loops that write them. For ThreadSanitizer: what it copies in the midst of
 * a change it must throw away, and what it keeps must belong together.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "control.h"
#include "port.h"

enum { LOOPS = 3, PAIRS = 2, ROUNDS = 200, TURNS = 8 };

static atomic_bool done;
static atomic_ullong n_copies, n_torn, n_entries, n_wrong, n_messages;
/* Blocks are freed and used for something else; a process of its own would find that in the header's sequence. */
static pthread_rwlock_t frees = PTHREAD_RWLOCK_INITIALIZER;
static pthread_barrier_t rounds, ends_of_rounds;
static wharf_loop *loops[LOOPS];
static int ends[LOOPS][2 * PAIRS];

static void wrong(const char *what)
{
	if (!n_wrong++)
		fprintf(stderr, "stress-stats: %s\n", what);
}

/* ---- Who writes ---- */

struct who {
	unsigned index;
	wharf_port *ports[2 * PAIRS];
};

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	(void)port, (void)msg, (void)user;
	n_messages++;
}

static void on_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	struct who *who = user;

	(void)reason;
	for (unsigned i = 0; i < 2 * PAIRS; i++)
		if (who->ports[i] == port)
			who->ports[i] = NULL;
}

static const struct wharf_port_ops ops = { .size = sizeof(ops), .on_message = on_message, .on_close = on_close };

static void send_some(const struct who *who)
{
	static const char bytes[3000];
	struct wharf_buf buf;

	for (unsigned i = 0; i < 2 * PAIRS; i++) {
		wharf_port *port = who->ports[i];
		for (int k = 0; port && k < 30 && !wharf_send_bytes(port, 1, bytes, sizeof(bytes)); k++) {
		}
		if (port && !wharf_buf_claim(wharf_port_pool(port), 200, &buf) && wharf_send_buf(port, 2, &buf))
			wharf_buf_abandon(&buf);
	}
}

static void *run(void *argument)
{
	struct who who = { .index = (unsigned)(uintptr_t)argument };
	wharf_loop *loop = loops[who.index];

	for (int round = 0; round < ROUNDS; round++) {
		pthread_barrier_wait(&rounds); /* the main thread has made ends */
		for (unsigned i = 0; i < 2 * PAIRS; i++) {
			if (wharf_open(loop, ends[who.index][i],
				    WHARF_OPT(port, .ops = &ops, .user = &who, .tx_queued_bytes_max = 32768),
				    &who.ports[i]))
				wrong("wharf_open");
		}
		for (int turn = 0; turn < TURNS; turn++) {
			send_some(&who);
			if (wharf_loop_step(loop, 0) < 0)
				wrong("wharf_loop_step");
		}
		pthread_barrier_wait(&ends_of_rounds); /* from here on ports end, in whatever loop */
		pthread_rwlock_rdlock(&frees);
		for (unsigned i = 0; i < 2 * PAIRS; i++)
			if (who.ports[i] && wharf_port_abort(who.ports[i], 1))
				wrong("wharf_port_abort");
		while (loop->n_users || loop->stats->n_ports)
			if (wharf_loop_step(loop, 1000000) < 0)
				wrong("the last wharf_loop_step");
		pthread_rwlock_unlock(&frees);
		pthread_barrier_wait(&rounds);
	}
	return NULL;
}

/* ---- Who reads ---- */

static void copy_words(void *to, const void *from, size_t size)
{
	for (size_t i = 0; i < size / sizeof(uint64_t); i++)
		((uint64_t *)to)[i] = __atomic_load_n(&((const uint64_t *)from)[i], __ATOMIC_RELAXED);
}

/* False: it was being changed. sequence: the block's own. */
static bool copy_block(void *to, const void *from, size_t size, const _Atomic uint32_t *sequence)
{
	uint32_t before = atomic_load_explicit(sequence, memory_order_acquire);

	copy_words(to, from, size);
	atomic_thread_fence(memory_order_acquire);
	if (before % 2 || atomic_load_explicit(sequence, memory_order_relaxed) != before) {
		n_torn++;
		return false;
	}
	n_copies++;
	return true;
}

static void look_at_port(const struct wh_stats_port *from)
{
	struct wh_stats_port port;

	if (!copy_block(&port, from, sizeof(port), &from->sequence))
		return;
	if (port.state > WH_PORT_CLOSED)
		wrong("a state that there is not");
	if (!port.blocked_since_ns != !(port.flags & WH_STATS_BLOCKED))
		wrong("blocked, or not");
	if (!port.unread_since_ns != !port.counts.tx_unread_frames)
		wrong("unread since a time, or not");
	if (port.lag_ns > port.longest_lag_ns || port.blocked_ns < port.longest_blocked_ns)
		wrong("one is longer than all");
	if (port.state >= WH_PORT_ENDING && (!port.close_code || !port.text[0]))
		wrong("an end without a reason");
	if (port.peer_name[WH_STATS_NAME_BYTES - 1] || port.text[WH_STATS_TEXT_BYTES - 1])
		wrong("a text without end");
}

static void look_at_trace(const struct wh_stats_trace *from)
{
	static struct wh_stats_entry copied[8192];
	uint64_t head = atomic_load_explicit(&from->head, memory_order_acquire), first, after;

	if (from->n_entries > 8192) {
		wrong("a ring that is too long");
		return;
	}
	first = head > from->n_entries ? head - from->n_entries : 0;
	for (uint64_t i = first; i < head; i++)
		copy_words(&copied[i - first], &from->entries[i % from->n_entries], sizeof(copied[0]));
	atomic_thread_fence(memory_order_acquire);
	after = atomic_load_explicit(&from->head, memory_order_relaxed);
	for (uint64_t i = first; i < head; i++) {
		const struct wh_stats_entry *e = &copied[i - first];
		if (i + from->n_entries < after + 1)
			continue;
		if (!e->kind || e->kind >= WH_TRACE_KINDS)
			wrong("an event that there is not");
		n_entries++;
	}
}

static void *look(void *argument)
{
	const char *first = argument;
	const struct wh_control_header *header = argument;

	while (!done) {
		uint64_t before = atomic_load_explicit(&header->sequence, memory_order_acquire);
		pthread_rwlock_wrlock(&frees);
		uint32_t at = atomic_load_explicit(&header->first_loop, memory_order_acquire);
		for (int n = 0; at && n < 100; n++) {
			const struct wh_stats_loop *from = (const void *)(first + (size_t)at * WH_CONTROL_UNIT);
			struct wh_stats_loop loop;
			if (copy_block(&loop, from, sizeof(loop), &from->sequence) && loop.rx_buffers_lent > loop.rx_buffers)
				wrong("more buffers lent than there are");
			uint32_t port = atomic_load_explicit(&from->first_port, memory_order_acquire);
			for (int k = 0; port && k < 100; k++) {
				const struct wh_stats_port *p = (const void *)(first + (size_t)port * WH_CONTROL_UNIT);
				look_at_port(p);
				port = atomic_load_explicit(&p->next, memory_order_acquire);
			}
			uint32_t trace = atomic_load_explicit(&from->trace, memory_order_acquire);
			if (trace)
				look_at_trace((const void *)(first + (size_t)trace * WH_CONTROL_UNIT));
			at = atomic_load_explicit(&from->next, memory_order_acquire);
		}
		pthread_rwlock_unlock(&frees);
		atomic_thread_fence(memory_order_acquire);
		if (before % 2 || atomic_load_explicit(&header->sequence, memory_order_relaxed) != before)
			n_torn++;
		usleep(200);
	}
	return NULL;
}

int main(void)
{
	pthread_t threads[LOOPS], reader;
	int fds[2];

	pthread_barrier_init(&rounds, NULL, LOOPS + 1);
	pthread_barrier_init(&ends_of_rounds, NULL, LOOPS);
	for (unsigned i = 0; i < LOOPS; i++)
		if (wharf_loop_new(WHARF_OPT(loop, .flags = i ? WHARF_LOOP_TRACE : 0u), &loops[i])) {
			fprintf(stderr, "stress-stats: no loop to be had here\n");
			return 77;
		}
	pthread_create(&reader, NULL, look,
		(char *)loops[0]->stats - (size_t)wh_control_position(loops[0]->stats) * WH_CONTROL_UNIT);
	for (unsigned i = 0; i < LOOPS; i++)
		pthread_create(&threads[i], NULL, run, (void *)(uintptr_t)i);
	for (int round = 0; round < ROUNDS; round++) {
		for (unsigned i = 0; i < LOOPS; i++)
			for (unsigned k = 0; k < PAIRS; k++) {
				if (wharf_pair(fds))
					wrong("wharf_pair");
				ends[i][k] = fds[0];
				ends[(i + 1) % LOOPS][PAIRS + k] = fds[1];
			}
		pthread_barrier_wait(&rounds);
		pthread_barrier_wait(&rounds);
	}
	for (unsigned i = 0; i < LOOPS; i++)
		pthread_join(threads[i], NULL);
	done = true;
	pthread_join(reader, NULL);
	for (unsigned i = 0; i < LOOPS; i++)
		wharf_loop_free(loops[i]);
	printf("%llu messages, %llu copies, %llu thrown away, %llu events\n", (unsigned long long)n_messages,
		(unsigned long long)n_copies, (unsigned long long)n_torn, (unsigned long long)n_entries);
	if (!n_messages || !n_copies || !n_entries)
		wrong("nothing happened");
	printf("%d passed, %d failed, 0 skipped\n", !n_wrong, !!n_wrong);
	return n_wrong ? 1 : 0;
}
