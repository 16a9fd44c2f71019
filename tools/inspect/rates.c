/* SPDX-License-Identifier: MIT */
/* What two looks at a process say about each second between them: see rates.h. */
#include "rates.h"

double rates_seconds(const struct subject *subject)
{
	if (!subject->has_before || subject->now.taken_ns <= subject->before.taken_ns)
		return 0;
	return (double)(subject->now.taken_ns - subject->before.taken_ns) / 1e9;
}

/* Counters that went backwards are another process's, or garbage. */
static double rate(uint64_t before, uint64_t now, double seconds)
{
	return seconds > 0 && now >= before ? (double)(now - before) / seconds : -1;
}

/* Lists keep their order, but for what comes and goes at the beginning: so it is near the place where it was. */
static const struct snap_port *port_before(const struct subject *subject, const struct snap_port *port)
{
	const struct snapshot *before = &subject->before;
	size_t n = before->n_ports, start = (size_t)(port - subject->now.ports);

	for (size_t i = 0; subject->has_before && i < n; i++)
		if (before->ports[(start + i) % n].s.id == port->s.id)
			return &before->ports[(start + i) % n];
	return NULL;
}

static const struct rates_traffic unknown = { -1, -1, -1, -1, -1, -1, -1, -1 };

void rates_of_port(const struct subject *subject, const struct snap_port *port, struct rates_traffic *ret_rates)
{
	const struct snap_port *before = port_before(subject, port);
	double seconds = rates_seconds(subject);

	*ret_rates = unknown;
	if (!before)
		return;
	const struct wh_stats_counts *a = &before->s.counts, *b = &port->s.counts;
	*ret_rates = (struct rates_traffic){
		.tx_messages = rate(a->tx_messages, b->tx_messages, seconds),
		.tx_bytes = rate(a->tx_bytes, b->tx_bytes, seconds),
		.tx_frames = rate(a->tx_frames, b->tx_frames, seconds),
		.rx_messages = rate(a->rx_messages, b->rx_messages, seconds),
		.rx_bytes = rate(a->rx_bytes, b->rx_bytes, seconds),
		.rx_frames = rate(a->rx_frames, b->rx_frames, seconds),
		.again = rate(a->tx_again, b->tx_again, seconds),
		.drops = rate(a->tx_dropped, b->tx_dropped, seconds),
	};
}

void rates_of_loop(const struct subject *subject, const struct snap_loop *loop, struct rates_loop *ret_rates)
{
	const struct snap_loop *before = NULL;
	double s = rates_seconds(subject);

	for (size_t i = 0; subject->has_before && i < subject->before.n_loops && !before; i++)
		if (subject->before.loops[i].s.id == loop->s.id)
			before = &subject->before.loops[i];
	if (!before) {
		*ret_rates = (struct rates_loop){ unknown, -1, -1, -1, -1, -1, -1 };
		return;
	}
	const struct wh_stats_loop *a = &before->s, *b = &loop->s;
	*ret_rates = (struct rates_loop){
		.traffic = {
			.tx_messages = rate(a->tx_messages, b->tx_messages, s),
			.tx_bytes = rate(a->tx_bytes, b->tx_bytes, s),
			.tx_frames = rate(a->tx_frames, b->tx_frames, s),
			.rx_messages = rate(a->rx_messages, b->rx_messages, s),
			.rx_bytes = rate(a->rx_bytes, b->rx_bytes, s),
			.rx_frames = rate(a->rx_frames, b->rx_frames, s),
			.again = -1,
			.drops = -1,
		},
		.turns = rate(a->turns, b->turns, s),
		.sleeps = rate(a->sleeps, b->sleeps, s),
		.system_calls = rate(a->system_calls, b->system_calls, s),
		.completions = rate(a->completions, b->completions, s),
		.events = rate(a->events, b->events, s),
		.busy = rate(a->busy_ns, b->busy_ns, s) / 1e9,
	};
}

static void add(double *sum, double more)
{
	if (more >= 0)
		*sum = *sum < 0 ? more : *sum + more;
}

void rates_of_process(const struct subject *subject, struct rates_loop *ret_rates)
{
	struct rates_loop sum = { unknown, -1, -1, -1, -1, -1, -1 }, one;

	for (size_t i = 0; i < subject->now.n_loops; i++) {
		rates_of_loop(subject, &subject->now.loops[i], &one);
		add(&sum.traffic.tx_messages, one.traffic.tx_messages);
		add(&sum.traffic.tx_bytes, one.traffic.tx_bytes);
		add(&sum.traffic.tx_frames, one.traffic.tx_frames);
		add(&sum.traffic.rx_messages, one.traffic.rx_messages);
		add(&sum.traffic.rx_bytes, one.traffic.rx_bytes);
		add(&sum.traffic.rx_frames, one.traffic.rx_frames);
		add(&sum.turns, one.turns);
		add(&sum.sleeps, one.sleeps);
		add(&sum.system_calls, one.system_calls);
		add(&sum.completions, one.completions);
		add(&sum.events, one.events);
		add(&sum.busy, one.busy);
	}
	*ret_rates = sum;
}
