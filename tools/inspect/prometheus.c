/* SPDX-License-Identifier: MIT */
/* Numbers for a collector, in the text exposition format of Prometheus: each metric once, with all its samples. */
#include "prometheus.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "chunks.h"
#include "look.h"
#include "names.h"

/* A member of a loop or a port, by its place. */
struct metric {
	const char *name, *help;
	size_t offset;
	bool counter, wide, ns; /* else: a gauge; 32 bits; no time */
};

#define LOOP(type, bits, unit, member, name, help) \
	{ \
		"wharf_loop_" name, help, offsetof(struct wh_stats_loop, member), type, bits, unit \
	}
#define PORT(type, bits, unit, member, name, help) \
	{ \
		"wharf_port_" name, help, offsetof(struct wh_stats_port, member), type, bits, unit \
	}
enum { GAUGE, COUNTER };
enum { BITS_32, BITS_64 };
enum { AS_IT_IS, SECONDS };

static const struct metric loop_metrics[] = {
	LOOP(COUNTER, BITS_64, AS_IT_IS, turns, "turns_total", "Turns."),
	LOOP(COUNTER, BITS_64, AS_IT_IS, sleeps, "sleeps_total", "Times that it had nothing to do, and waited in the kernel."),
	LOOP(COUNTER, BITS_64, SECONDS, busy_ns, "busy_seconds_total", "Time from wake-ups to the next wait."),
	LOOP(GAUGE, BITS_64, SECONDS, longest_turn_ns, "longest_turn_seconds", "The longest turn."),
	LOOP(COUNTER, BITS_64, AS_IT_IS, system_calls, "system_calls_total", "System calls of the engine."),
	LOOP(COUNTER, BITS_64, AS_IT_IS, completions, "completions_total", "Completions, or events with epoll."),
	LOOP(COUNTER, BITS_64, AS_IT_IS, overflows, "overflows_total", "Overflows of the completion queue."),
	LOOP(COUNTER, BITS_64, AS_IT_IS, no_buffers, "no_buffers_total", "Receives that found no buffer."),
	LOOP(GAUGE, BITS_32, AS_IT_IS, rx_starved, "starved_ports", "Ports that wait for a receive buffer."),
	LOOP(GAUGE, BITS_32, AS_IT_IS, n_ports, "ports", "Ports."),
	LOOP(COUNTER, BITS_64, AS_IT_IS, ports_opened, "ports_opened_total", "Ports opened."),
	LOOP(COUNTER, BITS_64, AS_IT_IS, ports_closed, "ports_closed_total", "Ports closed."),
	LOOP(COUNTER, BITS_64, AS_IT_IS, violations, "violations_total",
		"Ports that ended because a peer broke the rules."),
	LOOP(COUNTER, BITS_64, AS_IT_IS, accepted, "accepted_total", "Connections accepted."),
	LOOP(COUNTER, BITS_64, AS_IT_IS, refused, "refused_total", "Connections refused."),
	LOOP(COUNTER, BITS_64, AS_IT_IS, tx_messages, "sent_messages_total", "Messages sent."),
	LOOP(COUNTER, BITS_64, AS_IT_IS, tx_bytes, "sent_bytes_total", "Bytes of messages sent."),
	LOOP(COUNTER, BITS_64, AS_IT_IS, tx_frames, "sent_frames_total", "Frames sent."),
	LOOP(COUNTER, BITS_64, AS_IT_IS, rx_messages, "received_messages_total", "Messages received."),
	LOOP(COUNTER, BITS_64, AS_IT_IS, rx_bytes, "received_bytes_total", "Bytes of messages received."),
	LOOP(COUNTER, BITS_64, AS_IT_IS, rx_frames, "received_frames_total", "Frames received."),
};

static const struct metric port_metrics[] = {
	PORT(COUNTER, BITS_64, AS_IT_IS, counts.tx_messages, "sent_messages_total", "Messages sent."),
	PORT(COUNTER, BITS_64, AS_IT_IS, counts.tx_bytes, "sent_bytes_total", "Bytes of messages sent."),
	PORT(COUNTER, BITS_64, AS_IT_IS, counts.rx_messages, "received_messages_total", "Messages received."),
	PORT(COUNTER, BITS_64, AS_IT_IS, counts.rx_bytes, "received_bytes_total", "Bytes of messages received."),
	PORT(GAUGE, BITS_64, AS_IT_IS, counts.tx_queued_bytes, "queued_bytes", "Bytes that wait to be sent."),
	PORT(GAUGE, BITS_64, AS_IT_IS, counts.tx_lent_bytes, "lent_bytes", "Bytes of memory that the peer has."),
	PORT(GAUGE, BITS_64, AS_IT_IS, counts.tx_unread_frames, "unread_frames", "Frames that the peer has not read."),
	PORT(COUNTER, BITS_64, AS_IT_IS, counts.tx_again, "refused_sends_total",
		"Sends that were refused for want of room."),
	PORT(COUNTER, BITS_64, AS_IT_IS, counts.tx_socket_full, "socket_full_total",
		"Frames that found the socket full."),
	PORT(COUNTER, BITS_64, AS_IT_IS, counts.tx_dropped, "dropped_messages_total", "Messages dropped by policy."),
	PORT(COUNTER, BITS_64, SECONDS, blocked_ns, "blocked_seconds_total",
		"Time without room, but for what goes on."),
	PORT(GAUGE, BITS_64, SECONDS, longest_blocked_ns, "longest_blocked_seconds", "The longest time without room."),
	PORT(GAUGE, BITS_64, SECONDS, lag_ns, "lag_seconds", "From the sender's turn to the one that handled it."),
	PORT(GAUGE, BITS_64, SECONDS, longest_lag_ns, "longest_lag_seconds", "The longest lag."),
	PORT(GAUGE, BITS_32, AS_IT_IS, held_frames, "held_frames", "Frames received and not yet delivered."),
};

/* ---- Writing ---- */

static void put_label(const char *name, const char *value)
{
	printf("%s=\"", name);
	for (; *value; value++) {
		if (*value == '"' || *value == '\\')
			putchar('\\');
		putchar(*value);
	}
	putchar('"');
}

static void put_head(const char *name, const char *help, bool counter)
{
	printf("# HELP %s %s\n# TYPE %s %s\n", name, help, name, counter ? "counter" : "gauge");
}

static void put_process(const char *name, const struct subject *subject)
{
	printf("%s{pid=\"%d\",", name, subject->process.pid);
	put_label("process", subject->process.name);
}

static void put_value(const struct metric *metric, const void *block)
{
	uint64_t value = 0;
	uint32_t narrow;

	if (metric->wide) {
		memcpy(&value, (const char *)block + metric->offset, sizeof value);
	} else {
		memcpy(&narrow, (const char *)block + metric->offset, sizeof narrow);
		value = narrow;
	}
	if (metric->ns)
		printf("} %" PRIu64 ".%09u\n", value / 1000000000, (unsigned)(value % 1000000000));
	else
		printf("} %" PRIu64 "\n", value);
}

static void put_loops(const struct look *look, const struct metric *metric)
{
	put_head(metric->name, metric->help, metric->counter);
	for (size_t i = 0; i < look->n; i++) {
		const struct snapshot *s = &look->subjects[i].now;
		for (size_t k = 0; k < s->n_loops; k++) {
			put_process(metric->name, &look->subjects[i]);
			printf(",loop=\"%" PRIu64 "\",", s->loops[k].s.id);
			put_label("engine", names_engine(s->loops[k].s.engine));
			put_value(metric, &s->loops[k].s);
		}
	}
}

static void put_port_labels(const struct snapshot *s, const struct snap_port *port)
{
	printf(",loop=\"%" PRIu64 "\",port=\"%" PRIu64 "\",", s->loops[port->loop].s.id, port->s.id);
	if (port->s.peer_pid != UINT32_MAX)
		printf("peer_pid=\"%u\",", port->s.peer_pid);
	put_label("peer", port->s.peer_name);
}

static void put_ports(const struct look *look, const struct metric *metric)
{
	put_head(metric->name, metric->help, metric->counter);
	for (size_t i = 0; i < look->n; i++) {
		const struct snapshot *s = &look->subjects[i].now;
		for (size_t k = 0; k < s->n_ports; k++) {
			put_process(metric->name, &look->subjects[i]);
			put_port_labels(s, &s->ports[k]);
			put_value(metric, &s->ports[k].s);
		}
	}
}

static void put_waits(const struct look *look)
{
	static const char *const name = "wharf_port_peer_silent_seconds";

	put_head(name, "Since when the peer has not read anything, though there is something.", false);
	for (size_t i = 0; i < look->n; i++) {
		const struct snapshot *s = &look->subjects[i].now;
		for (size_t k = 0; k < s->n_ports; k++) {
			uint64_t ns = subject_unread_for(&look->subjects[i], &s->ports[k]);
			put_process(name, &look->subjects[i]);
			put_port_labels(s, &s->ports[k]);
			printf("} %" PRIu64 ".%09u\n", ns / 1000000000, (unsigned)(ns % 1000000000));
		}
	}
}

static void put_pool(const char *name, const struct subject *subject, const struct snap_pool *pool, const char *state,
	uint64_t value)
{
	put_process(name, subject);
	printf(",pool=\"%" PRIu64 "\",", pool->id);
	put_label("name", pool->name);
	if (state) {
		putchar(',');
		put_label("state", state);
	}
	printf("} %" PRIu64 "\n", value);
}

static void put_pools(const struct look *look)
{
	put_head("wharf_pool_bytes", "Memory of a pool by what became of it.", false);
	for (size_t i = 0; i < look->n; i++) {
		const struct snapshot *s = &look->subjects[i].now;
		for (size_t k = 0; k < s->n_pools; k++) {
			struct chunks chunks;
			chunks_make(s, &s->pools[k], &chunks);
			for (int state = 0; state < CHUNK_STATES; state++)
				put_pool("wharf_pool_bytes", &look->subjects[i], &s->pools[k],
					chunks_state_name((enum chunk_state)state), chunks.bytes[state]);
			chunks_fini(&chunks);
		}
	}
	put_head("wharf_pool_bytes_max", "Most memory that a pool may have.", false);
	for (size_t i = 0; i < look->n; i++)
		for (size_t k = 0; k < look->subjects[i].now.n_pools; k++)
			put_pool("wharf_pool_bytes_max", &look->subjects[i], &look->subjects[i].now.pools[k], NULL,
				look->subjects[i].now.pools[k].bytes_max);
}

static void put_processes(const struct look *look)
{
	put_head("wharf_process_start_ticks", "When the process began, in ticks since the system did.", false);
	for (size_t i = 0; i < look->n; i++) {
		put_process("wharf_process_start_ticks", &look->subjects[i]);
		printf("} %" PRIu64 "\n", look->subjects[i].process.start_time);
	}
	put_head("wharf_processes_hidden", "Processes that may not be looked at.", false);
	printf("wharf_processes_hidden %zu\n", look->n_hidden);
}

int prometheus_run(const struct options *options)
{
	struct look look;
	int status;

	/* No process at all is an answer, too. */
	look_open(&look, options, options->n_pids ? 0 : LOOK_QUIET);
	look_again(&look, SNAPSHOT_STATS | SNAPSHOT_POOLS, LOOK_SUSPECTS);
	put_processes(&look);
	for (size_t i = 0; i < wh_array_len(loop_metrics); i++)
		put_loops(&look, &loop_metrics[i]);
	for (size_t i = 0; i < wh_array_len(port_metrics); i++)
		put_ports(&look, &port_metrics[i]);
	put_waits(&look);
	put_pools(&look);
	status = look.n_failed ? EXIT_PROBLEM : EXIT_FINE;
	look_close(&look);
	return status;
}
