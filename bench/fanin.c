/* SPDX-License-Identifier: MIT */
/* Fan-in: one hub, its senders, and the phases that they go through together. */
#include "fanin.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "crew.h"
#include "hub.h"
#include "loop.h"
#include "memory.h"
#include "spokes.h"

enum {
	FDS_BESIDES = 64,    /* of a process with ports: its loop, its standard streams */
	LOOK_NS = 50000,     /* how often a sender looks for the next phase */
	ADDRESS_MAX = 64,
};

/*
 * Ten thousand pools of the library's default would be 640 GB: together they get this, but each at least one small
 * segment, and room for some messages.
 */
enum {
	POOLS_BYTES = 640 << 20,
	POOL_MIN = 64 << 10,
	POOL_MAX = 64 << 20,
	POOL_MESSAGES = 4,
	SEGMENT_MAX = 1 << 20,
	CHUNK_MIN = 256,
	POOL_ROUNDS = 2,
};

const char *const fanin_extras[] = {
	[FANIN_SENDERS] = "senders",
	[FANIN_OPEN_SECONDS] = "open_seconds",
	[FANIN_CLOSE_SECONDS] = "close_seconds",
	[FANIN_SLOWEST] = "slowest_to_median",
	[FANIN_COUNT_MIN] = "count_min_to_mean",
	[FANIN_COUNT_MAX] = "count_max_to_mean",
	[FANIN_IDLE_HEAP] = "idle_heap_bytes",
	[FANIN_IDLE_CONTROL] = "idle_control_bytes",
	[FANIN_IDLE_RSS] = "idle_rss_bytes",
	[FANIN_IDLE_FDS] = "idle_fds",
	[FANIN_IDLE_MAPPINGS] = "idle_mappings",
	[FANIN_ACTIVE_HEAP] = "active_heap_bytes",
	[FANIN_ACTIVE_CONTROL] = "active_control_bytes",
	[FANIN_ACTIVE_RSS] = "active_rss_bytes",
	[FANIN_ACTIVE_FDS] = "active_fds",
	[FANIN_ACTIVE_MAPPINGS] = "active_mappings",
	[FANIN_EXTRAS] = NULL,
};

enum phase {
	PHASE_START,
	PHASE_LISTENING,
	PHASE_WARM,
	PHASE_GO,
	PHASE_END,
};

enum { SENDERS_MAX = CREW_MAX - 1 };

/* Shared by all. */
struct board {
	_Atomic uint32_t phase;
	struct outcome hub, senders[SENDERS_MAX];
	double extras[FANIN_EXTRAS];
};

struct run {
	const struct repetition *repetition;
	struct plan plan;
	size_t ports, senders;
	struct board *board;
	struct crew crew;
	char address[ADDRESS_MAX];
};

/* ---- Pools and descriptors ---- */

static size_t pool_bytes(const struct plan *plan, size_t ports)
{
	size_t bytes = POOLS_BYTES / ports & ~(size_t)(POOL_MIN - 1);

	if (plan->pool_bytes)
		return plan->pool_bytes;
	if (bytes > POOL_MAX)
		bytes = POOL_MAX;
	if (bytes < POOL_MIN)
		bytes = POOL_MIN;
	return bytes > plan->size * POOL_MESSAGES ? bytes : plan->size * POOL_MESSAGES;
}

static uint64_t pool_messages(const struct plan *plan, size_t ports)
{
	return pool_bytes(plan, ports) / (plan->size > CHUNK_MIN ? plan->size : CHUNK_MIN);
}

uint64_t fanin_messages_min(const struct plan *plan, size_t ports)
{
	return POOL_ROUNDS * pool_messages(plan, ports);
}

/* A page's first touch costs more than what it then carries: every pool is gone through before the clocks start. */
static void warm_pools(struct plan *plan, size_t ports)
{
	uint64_t warm = pool_messages(plan, ports);

	if (warm > plan->warm) {
		plan->messages += warm - plan->warm;
		plan->warm = warm;
	}
}

/*
 * Of a sender for one port: its socket, and for each segment, until the receiver has mapped it, that and its release
 * map. Segments double from POOL_MIN to SEGMENT_MAX.
 */
static size_t fds_of(size_t pool_bytes)
{
	size_t segments = 1, bytes = POOL_MIN;

	for (; bytes < pool_bytes && bytes < SEGMENT_MAX; bytes *= 2)
		segments++;
	return 1 + 2 * (segments + (pool_bytes > bytes ? pool_bytes / SEGMENT_MAX : 0));
}

static rlim_t fds_max(void)
{
	struct rlimit limit;

	return getrlimit(RLIMIT_NOFILE, &limit) < 0 ? 1024 : limit.rlim_cur;
}

/* The fewest senders that may have so many ports. */
static size_t senders_needed(const struct plan *plan, size_t ports)
{
	size_t fds = fds_of(pool_bytes(plan, ports)), each = 1;

	if (fds_max() > FDS_BESIDES + fds)
		each = (size_t)(fds_max() - FDS_BESIDES) / fds;
	return (ports + each - 1) / each;
}

static size_t senders_of(const struct options *options, size_t ports)
{
	size_t senders = options->senders ? options->senders : senders_needed(&options->plan, ports);

	return senders < ports ? senders : ports;
}

int fanin_prepare(const struct options *options)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	for (size_t i = 0; i < options->n_columns; i++) {
		size_t ports = options->columns[i].ports, senders = senders_of(options, ports);

		if (ports + FDS_BESIDES > fds_max()) {
			fprintf(stderr,
				"wharf-bench: --ports: %zu need %zu descriptors in one process, and the hard limit of "
				"RLIMIT_NOFILE is %llu\n",
				ports, ports + FDS_BESIDES, (unsigned long long)fds_max());
			return -EMFILE;
		}
		if (senders < senders_needed(&options->plan, ports) || senders > SENDERS_MAX) {
			fprintf(stderr,
				"wharf-bench: --senders: %zu ports need %zu to %d senders, as the hard limit of "
				"RLIMIT_NOFILE is %llu\n",
				ports, senders_needed(&options->plan, ports), SENDERS_MAX,
				(unsigned long long)fds_max());
			return -EMFILE;
		}
	}
	return 0;
}

/* ---- The hub ---- */

static void note_counts(struct hub *hub)
{
	const struct run *run = hub->user;
	double *extras = run->board->extras;
	double mean = (double)(hub->total - run->plan.warm * run->ports) / (double)run->ports;
	uint64_t least = UINT64_MAX, most = 0;

	for (size_t i = 0; i < hub->n_ports; i++) {
		uint64_t count = hub->ports[i].count - run->plan.warm;

		least = count < least ? count : least;
		most = count > most ? count : most;
	}
	extras[FANIN_COUNT_MIN] = (double)least / mean;
	extras[FANIN_COUNT_MAX] = (double)most / mean;
}

static int note_slowest(const struct run *run, const struct hub *hub)
{
	double *times = malloc(hub->n_ports * sizeof *times);
	struct spread spread;

	if (!times)
		return outcome_fail(hub->outcome, -ENOMEM, "no memory");
	for (size_t i = 0; i < hub->n_ports; i++)
		times[i] = (double)(hub->ports[i].done_ns - hub->outcome->start_ns);
	spread = stats_spread(times, hub->n_ports);
	run->board->extras[FANIN_SLOWEST] = spread.max / spread.median;
	free(times);
	return 0;
}

static void note_memory(const struct run *run, enum fanin_extra first, const struct memory *before,
	const struct memory *after)
{
	const struct memory each = memory_each(before, after, (double)run->ports);
	double *extras = &run->board->extras[first];

	extras[FANIN_IDLE_HEAP - FANIN_IDLE] = each.heap_bytes;
	extras[FANIN_IDLE_CONTROL - FANIN_IDLE] = each.control_bytes;
	extras[FANIN_IDLE_RSS - FANIN_IDLE] = each.rss_bytes;
	extras[FANIN_IDLE_FDS - FANIN_IDLE] = each.fds;
	extras[FANIN_IDLE_MAPPINGS - FANIN_IDLE] = each.mappings;
}

static int hub_until(struct hub *hub, const size_t *what, size_t is)
{
	int r = 0;

	while (r == 0 && *what < is)
		r = hub_step(hub);
	return r;
}

static int hub_take(struct hub *hub, uint64_t total)
{
	int r = 0;

	while (r == 0 && hub->total < total) {
		if (hub->n_closed)
			return outcome_fail(hub->outcome, -EPIPE, "a sender closed early");
		r = hub_step(hub);
	}
	return r;
}

static int play_hub(struct run *run, struct hub *hub)
{
	const struct plan *plan = &run->plan;
	struct memory before, idle, active;
	uint64_t start_ns;
	int r;

	r = hub_listen(hub, run->address);
	if (r < 0)
		return r;
	memory_now(&before);
	start_ns = clock_ns();
	run->board->phase = PHASE_LISTENING;
	r = hub_until(hub, &hub->n_open, run->ports);
	if (r < 0)
		return r;
	run->board->extras[FANIN_OPEN_SECONDS] = (double)(clock_ns() - start_ns) / 1e9;
	memory_now(&idle);
	note_memory(run, FANIN_IDLE, &before, &idle);
	for (size_t i = 0; i < run->ports; i++)
		hub->ports[i].last = plan->messages;
	run->board->phase = PHASE_WARM;
	r = hub_take(hub, run->ports * plan->warm);
	if (r < 0)
		return r;
	hub->user = run;
	hub->on_mark = note_counts;
	hub->mark = run->ports * plan->warm + (run->ports * (plan->messages - plan->warm) + 1) / 2;
	outcome_start(hub->outcome, loop_system_calls(hub->loop));
	run->board->phase = PHASE_GO;
	r = hub_take(hub, run->ports * plan->messages);
	if (r < 0)
		return r;
	outcome_stop(hub->outcome, loop_system_calls(hub->loop));
	memory_now(&active);
	note_memory(run, FANIN_ACTIVE, &before, &active);
	start_ns = clock_ns();
	run->board->phase = PHASE_END;
	r = hub_until(hub, &hub->n_closed, run->ports);
	run->board->extras[FANIN_CLOSE_SECONDS] = (double)(clock_ns() - start_ns) / 1e9;
	if (r == 0)
		r = hub_check(hub, plan->messages);
	return r == 0 ? note_slowest(run, hub) : r;
}

static _Noreturn void run_hub(struct run *run)
{
	struct outcome *outcome = &run->board->hub;
	struct hub hub;
	int r;

	r = hub_open(&hub, &run->plan, outcome, run->ports);
	if (r == 0)
		r = play_hub(run, &hub);
	hub_close(&hub);
	crew_leave(outcome, r);
}

/* ---- Senders ---- */

static int await_phase(const struct run *run, struct spokes *spokes, enum phase phase)
{
	int r = 0;

	while (r == 0 && run->board->phase < phase)
		r = spokes_step(spokes, LOOK_NS);
	return r;
}

static int play_sender(const struct run *run, struct spokes *spokes)
{
	int r;

	r = await_phase(run, spokes, PHASE_LISTENING);
	if (r == 0)
		r = spokes_connect(spokes, run->address);
	if (r == 0)
		r = await_phase(run, spokes, PHASE_WARM);
	if (r == 0)
		r = spokes_send(spokes, run->plan.warm, NULL);
	if (r == 0)
		r = await_phase(run, spokes, PHASE_GO);
	if (r < 0)
		return r;
	outcome_start(spokes->outcome, loop_system_calls(spokes->loop));
	r = spokes_send(spokes, run->plan.messages, NULL);
	outcome_stop(spokes->outcome, loop_system_calls(spokes->loop));
	if (r == 0)
		r = await_phase(run, spokes, PHASE_END);
	return r == 0 ? spokes_finish(spokes) : r;
}

static _Noreturn void run_sender(const struct run *run, size_t number)
{
	struct outcome *outcome = &run->board->senders[number];
	size_t ports = run->ports / run->senders + (number < run->ports % run->senders);
	struct spokes spokes;
	int r;

	r = spokes_open(&spokes, &run->plan, outcome, ports, run->repetition->options->burst);
	if (r == 0)
		r = play_sender(run, &spokes);
	spokes_close(&spokes);
	crew_leave(outcome, r);
}

/* ---- All together ---- */

static int start(struct run *run)
{
	const int *cpus = run->repetition->cpus;
	pid_t pid = crew_fork(&run->crew, "receiver", cpus[1], &run->board->hub);

	if (!pid)
		run_hub(run);
	for (size_t i = 0; pid > 0 && i < run->senders; i++) {
		pid = crew_fork(&run->crew, "sender", cpus[0], &run->board->senders[i]);
		if (!pid)
			run_sender(run, i);
	}
	return pid < 0 ? pid : 0;
}

static struct sample evaluate(const struct run *run)
{
	const struct outcome *hub = &run->board->hub;
	double messages = (double)((run->plan.messages - run->plan.warm) * run->ports);
	struct sample sample = { .seconds = (double)(hub->end_ns - hub->start_ns) / 1e9 };

	sample.per_second = messages / sample.seconds;
	for (size_t i = 0; i < run->senders; i++) {
		const struct outcome *sender = &run->board->senders[i];

		sample.cpu_ns[0] += (double)(sender->cpu_end_ns - sender->cpu_start_ns) / messages;
		sample.system_calls[0] += (double)(sender->calls_end - sender->calls_start) / messages;
	}
	sample.cpu_ns[1] = (double)(hub->cpu_end_ns - hub->cpu_start_ns) / messages;
	sample.system_calls[1] = (double)(hub->calls_end - hub->calls_start) / messages;
	run->board->extras[FANIN_SENDERS] = (double)run->senders;
	memcpy(sample.extras, run->board->extras, sizeof run->board->extras);
	return sample;
}

int fanin_run(const struct repetition *repetition, struct sample *ret_sample, char ret_detail[OUTCOME_DETAIL_MAX])
{
	static unsigned runs;
	struct run run = {
		.repetition = repetition,
		.plan = repetition->plan,
		.ports = repetition->column->ports,
		.senders = senders_of(repetition->options, repetition->column->ports),
	};
	char size[SIZE_TEXT_MAX], what[64];
	int r;

	warm_pools(&run.plan, run.ports);
	run.plan.pool_bytes = pool_bytes(&run.plan, run.ports);
	snprintf(run.address, sizeof run.address, "@wharf-bench-%d-%u", (int)getpid(), runs++);
	snprintf(what, sizeof what, "%zu ports, %s", run.ports, size_print(run.plan.size, size));
	run.crew.what = what;
	run.board = mmap(NULL, sizeof *run.board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (run.board == MAP_FAILED) {
		r = -errno;
		crew_report(&run.crew, "start", strerror(-r));
		return r;
	}
	r = start(&run);
	if (r < 0)
		crew_report(&run.crew, "start", strerror(-r));
	else
		r = crew_wait(&run.crew, repetition->timeout_ms);
	if (r == 0) {
		*ret_sample = evaluate(&run);
		if (ret_detail)
			memcpy(ret_detail, run.board->hub.detail, OUTCOME_DETAIL_MAX);
	}
	crew_fini(&run.crew);
	munmap(run.board, sizeof *run.board);
	return r;
}
