/* SPDX-License-Identifier: MIT */
/* Processes, loops and ports as JSON: see json.h, and wharf-inspect(1) for the schema. */
#include "json.h"

#include <stdio.h>

#include "names.h"
#include "rates.h"
#include "wharf.h"

static void add_since(struct json_object *to, const char *name, const struct subject *subject, uint64_t then_ns)
{
	if (then_ns)
		json_add_count(to, name, subject_since(subject, then_ns));
	else
		json_add_text(to, name, NULL);
}

/* ---- Loops ---- */

static void add_buckets(struct json_object *to, const char *name, const uint64_t buckets[WH_STATS_BUCKETS])
{
	struct json_object *array = json_add_array(to, name);

	for (unsigned i = 0; i < WH_STATS_BUCKETS; i++)
		json_object_array_add(array, json_object_new_uint64(buckets[i]));
}

static void add_ring(struct json_object *to, const struct subject_ring *ring)
{
	struct json_object *o, *armed;
	const struct fdinfo *info = &ring->info;

	if (!ring->known) {
		json_add_text(to, "kernel", NULL);
		json_add_text(to, "kernel_unknown", ring->why);
		return;
	}
	o = json_add_object(to, "kernel");
	if (!info->ring) {
		json_add_count(o, "epoll_descriptors", info->targets);
		return;
	}
	json_add_count(o, "sq_entries", (uint64_t)info->sq_mask + 1);
	json_add_count(o, "sq_head", info->sq_head);
	json_add_count(o, "sq_tail", info->sq_tail);
	json_add_count(o, "unsubmitted", fdinfo_unsubmitted(info));
	json_add_count(o, "cq_entries", (uint64_t)info->cq_mask + 1);
	json_add_count(o, "cq_head", info->cq_head);
	json_add_count(o, "cq_tail", info->cq_tail);
	json_add_count(o, "unreaped", fdinfo_unreaped(info));
	json_add_count(o, "overflowed", info->overflows);
	json_add_count(o, "parked_sends", info->armed[FDINFO_OP_SENDMSG]);
	armed = json_add_object(o, "armed");
	for (unsigned i = 0; i < FDINFO_OPS; i++) {
		char op[16];
		const char *name = fdinfo_op_name(i);

		snprintf(op, sizeof op, "op%u", i);
		if (info->armed[i])
			json_add_count(armed, name ? name : op, info->armed[i]);
	}
}

static void add_loop_rates(struct json_object *to, const struct subject *subject, const struct snap_loop *loop)
{
	struct json_object *o = json_add_object(to, "per_second");
	struct rates_loop r;

	rates_of_loop(subject, loop, &r);
	json_add_number(o, "turns", r.turns);
	json_add_number(o, "sleeps", r.sleeps);
	json_add_number(o, "system_calls", r.system_calls);
	json_add_number(o, "completions", r.completions);
	json_add_number(o, "events", r.events);
	json_add_number(o, "busy", r.busy);
	json_add_number(o, "tx_messages", r.traffic.tx_messages);
	json_add_number(o, "tx_bytes", r.traffic.tx_bytes);
	json_add_number(o, "rx_messages", r.traffic.rx_messages);
	json_add_number(o, "rx_bytes", r.traffic.rx_bytes);
}

static void add_loop(struct json_object *array, const struct subject *subject, size_t index)
{
	const struct snap_loop *loop = &subject->now.loops[index];
	const struct snap_port *port = snapshot_port_at(&subject->now, loop->s.in_port);
	const struct wh_stats_loop *l = &loop->s;
	struct json_object *o = json_add_element(array), *armed;

	json_add_count(o, "id", l->id);
	json_add_bool(o, "torn", loop->torn);
	json_add_count(o, "tid", l->tid);
	json_add_text(o, "engine", names_engine(l->engine));
	json_add_count(o, "rung", l->rung);
	json_add_integer(o, "ring_fd", l->ring_fd);
	json_add_integer(o, "event_fd", l->event_fd);
	json_add_text(o, "broken", l->broken ? names_errno(l->broken) : NULL);
	json_add_flags(o, "flags", l->flags, names_loop_flag);
	json_add_text(o, "phase", names_phase(l->phase));
	add_since(o, "phase_for_ns", subject, l->phase_since_ns);
	if (port)
		json_add_count(o, "in_port", port->s.id);
	else
		json_add_text(o, "in_port", NULL);
	add_since(o, "up_ns", subject, l->started_ns);
	json_add_count(o, "n_ports", l->n_ports);
	json_add_count(o, "to_flush", l->n_dirty);
	json_add_count(o, "stuck", l->n_waiting);
	json_add_count(o, "held", l->n_ready);
	json_add_count(o, "ending", l->n_ending);
	json_add_count(o, "rx_buffers", l->rx_buffers);
	json_add_count(o, "rx_buffers_lent", l->rx_buffers_lent);
	json_add_count(o, "rx_starved", l->rx_starved);
	armed = json_add_object(o, "armed");
	for (unsigned i = 0; i < WH_ARMED_KINDS; i++)
		if (names_request(i))
			json_add_count(armed, names_request(i), l->armed[i]);
	if (l->next_deadline_ns)
		json_add_integer(o, "next_deadline_in_ns", (int64_t)(l->next_deadline_ns - subject_now_ns(subject)));
	else
		json_add_text(o, "next_deadline_in_ns", NULL);
#define COUNT(member) json_add_count(o, #member, l->member)
	COUNT(turns);
	COUNT(sleeps);
	COUNT(busy_ns);
	COUNT(longest_turn_ns);
	COUNT(system_calls);
	COUNT(completions);
	COUNT(events);
	COUNT(overflows);
	COUNT(no_buffers);
	COUNT(wakes);
	COUNT(kicks);
	COUNT(posts);
	COUNT(accepted);
	COUNT(refused);
	COUNT(accept_errors);
	COUNT(ports_opened);
	COUNT(ports_closed);
	COUNT(violations);
	COUNT(tx_messages);
	COUNT(tx_bytes);
	COUNT(tx_frames);
	COUNT(rx_messages);
	COUNT(rx_bytes);
	COUNT(rx_frames);
#undef COUNT
	add_buckets(o, "lag_buckets", l->lag);
	add_buckets(o, "turn_buckets", l->turn);
	add_loop_rates(o, subject, loop);
	if (subject->rings)
		add_ring(o, &subject->rings[index]);
}

/* ---- Ports ---- */

static void add_counts(struct json_object *o, const struct wh_stats_counts *c)
{
#define COUNT(member) json_add_count(o, #member, c->member)
	COUNT(tx_messages);
	COUNT(tx_bytes);
	COUNT(tx_frames);
	COUNT(tx_fds);
	COUNT(rx_messages);
	COUNT(rx_bytes);
	COUNT(rx_frames);
	COUNT(rx_fds);
	COUNT(tx_queued_bytes);
	COUNT(tx_lent_bytes);
	COUNT(tx_unread_frames);
	COUNT(tx_again);
	COUNT(tx_socket_full);
	COUNT(wakes_sent);
	COUNT(wakes_received);
	COUNT(rx_mapped_bytes);
	COUNT(rx_stream_violations);
	COUNT(rx_stray_records);
	COUNT(tx_dropped);
	COUNT(tx_dropped_bytes);
	COUNT(tx_replaced);
#undef COUNT
}

static void add_socket(struct json_object *to, const struct subject_socket *socket)
{
	struct json_object *o = json_add_object(to, "socket");

	json_add_count(o, "inode", socket->inode);
	if (socket->known) {
		json_add_count(o, "unread_bytes", socket->unread);
		json_add_count(o, "unsent_bytes", socket->unsent);
	} else {
		json_add_text(o, "unknown", socket->why);
	}
	if (socket->peer_known)
		json_add_count(o, "peer_unread_bytes", socket->peer_unread);
	if (socket->scm_known)
		json_add_count(o, "descriptors", socket->scm_fds);
}

static void add_peer(struct json_object *to, const struct wh_stats_port *p)
{
	struct json_object *o;

	if (p->peer_pid == UINT32_MAX) {
		json_add_text(to, "peer", NULL);
		return;
	}
	o = json_add_object(to, "peer");
	json_add_count(o, "pid", p->peer_pid);
	json_add_count(o, "uid", p->peer_uid);
	json_add_count(o, "gid", p->peer_gid);
	json_add_text(o, "name", p->peer_name);
}

static void add_port(struct json_object *array, const struct subject *subject, size_t index)
{
	const struct snap_port *port = &subject->now.ports[index];
	const struct snap_pool *pool = snapshot_pool_at(&subject->now, port->s.pool);
	const struct wh_stats_port *p = &port->s;
	uint64_t blocked = subject_since(subject, p->blocked_since_ns);
	struct json_object *o = json_add_element(array), *rates;
	struct rates_traffic r;

	json_add_count(o, "id", p->id);
	json_add_bool(o, "torn", port->torn);
	json_add_count(o, "loop", subject->now.loops[port->loop].s.id);
	if (pool)
		json_add_count(o, "pool", pool->id);
	else
		json_add_text(o, "pool", NULL);
	json_add_text(o, "state", names_port_state(p->state));
	json_add_flags(o, "flags", p->flags, names_port_flag);
	json_add_integer(o, "fd", p->fd);
	add_peer(o, p);
	add_since(o, "open_for_ns", subject, p->opened_ns);
	json_add_count(o, "window", p->window);
	json_add_count(o, "held_frames", p->held_frames);
	json_add_count(o, "tx_queued_messages", p->tx_queued_messages);
	json_add_count(o, "streams_out", p->streams_out);
	json_add_count(o, "streams_in", p->streams_in);
	json_add_count(o, "calls_out", p->calls_out);
	json_add_count(o, "calls_in", p->calls_in);
	add_since(o, "last_tx_ago_ns", subject, p->last_tx_ns);
	add_since(o, "last_rx_ago_ns", subject, p->last_rx_ns);
	json_add_count(o, "unread_for_ns", subject_unread_for(subject, port));
	json_add_count(o, "blocked_for_ns", blocked);
	json_add_count(o, "blocked_ns", p->blocked_ns + blocked);
	json_add_count(o, "longest_stall_ns", p->longest_blocked_ns > blocked ? p->longest_blocked_ns : blocked);
	json_add_count(o, "lag_ns", p->lag_ns);
	json_add_count(o, "longest_lag_ns", p->longest_lag_ns);
	add_counts(o, &p->counts);
	json_add_text(o, "close", p->close_code ? wharf_close_name(p->close_code) : NULL);
	json_add_count(o, "close_code", p->close_code);
	json_add_text(o, "close_errno", p->close_errno ? names_errno(p->close_errno) : NULL);
	json_add_count(o, "app_code", p->app_code);
	json_add_text(o, "text", p->text);
	rates_of_port(subject, port, &r);
	rates = json_add_object(o, "per_second");
	json_add_number(rates, "tx_messages", r.tx_messages);
	json_add_number(rates, "tx_bytes", r.tx_bytes);
	json_add_number(rates, "tx_frames", r.tx_frames);
	json_add_number(rates, "rx_messages", r.rx_messages);
	json_add_number(rates, "rx_bytes", r.rx_bytes);
	json_add_number(rates, "rx_frames", r.rx_frames);
	if (subject->sockets)
		add_socket(o, &subject->sockets[index]);
}

/* ---- Processes ---- */

struct json_object *json_report(const char *command, struct json_object **ret_processes)
{
	struct json_object *report = json_object_new_object();

	json_add_text(report, "schema", JSON_SCHEMA);
	json_add_text(report, "wharf", wharf_version());
	json_add_count(report, "layout", WH_CONTROL_VERSION);
	json_add_text(report, "command", command);
	*ret_processes = json_add_array(report, "processes");
	return report;
}

struct json_object *json_failure(int64_t pid, const char *why)
{
	struct json_object *o = json_object_new_object();

	json_add_integer(o, "pid", pid);
	json_add_text(o, "error", why);
	return o;
}

static void add_process_rates(struct json_object *to, const struct subject *subject)
{
	struct json_object *o = json_add_object(to, "per_second");
	struct rates_loop r;

	rates_of_process(subject, &r);
	json_add_number(o, "tx_messages", r.traffic.tx_messages);
	json_add_number(o, "tx_bytes", r.traffic.tx_bytes);
	json_add_number(o, "rx_messages", r.traffic.rx_messages);
	json_add_number(o, "rx_bytes", r.traffic.rx_bytes);
	json_add_number(o, "busy", r.busy);
}

struct json_object *json_subject(const struct subject *subject, unsigned parts, uint64_t older_than_ns)
{
	struct json_object *o = json_object_new_object(), *array;
	const struct process *p = &subject->process;
	const struct snapshot *s = &subject->now;
	const char state[2] = { p->state, '\0' };

	json_add_integer(o, "pid", p->pid);
	json_add_text(o, "name", p->name);
	json_add_text(o, "command", p->command);
	json_add_count(o, "uid", p->uid);
	json_add_bool(o, "core", subject->dumped);
	json_add_text(o, "state", state);
	json_add_count(o, "up_ns", p->up_ns);
	json_add_count(o, "start_time", s->start_time);
	json_add_count(o, "now_ns", subject_now_ns(subject));
	json_add_count(o, "interval_ns", (uint64_t)(rates_seconds(subject) * 1e9));
	json_add_bool(o, "torn", s->torn);
	array = json_add_array(o, "problems");
	for (size_t i = 0; i < s->n_problems; i++)
		json_object_array_add(array, json_object_new_string(s->problems[i]));
	json_add_count(o, "control_bytes", s->used);
	json_add_count(o, "n_loops", s->n_loops);
	json_add_count(o, "n_ports", s->n_ports);
	json_add_count(o, "n_pools", s->n_pools);
	add_process_rates(o, subject);
	if (parts & JSON_LOOPS) {
		array = json_add_array(o, "loops");
		for (size_t i = 0; i < s->n_loops; i++)
			add_loop(array, subject, i);
	}
	if (parts & JSON_PORTS) {
		array = json_add_array(o, "ports");
		for (size_t i = 0; i < s->n_ports; i++)
			add_port(array, subject, i);
	}
	if (parts & JSON_POOLS)
		json_object_object_add(o, "pools", json_pools(subject, parts & JSON_CHUNKS, older_than_ns));
	return o;
}
