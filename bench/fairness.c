/* SPDX-License-Identifier: MIT */
/* Fairness: who takes part in each scenario, and what each does. */
#include "fairness.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "crew.h"
#include "hub.h"
#include "spokes.h"

enum {
	LOOK_NS = 1000000,
	ADDRESS_MAX = 64,
	FLOWING_MESSAGES = 16, /* so many have arrived of a flood that flows */
};

const char *const fairness_scenarios[SCENARIOS] = {
	[SCENARIO_QUIET] = "quiet",
	[SCENARIO_ELSEWHERE] = "elsewhere",
	[SCENARIO_FLOOD] = "flood",
};

const char *const fairness_extras[] = {
	[FAIRNESS_FLOOD] = "flood_gb_per_second",
	[FAIRNESS_EXTRAS] = NULL,
};

/* Shared by all. */
struct board {
	_Atomic uint32_t listening, flowing, stop;
	_Atomic uint64_t flood_sent; /* messages */
	struct outcome pinger, flooder, receiver, other;
	uint32_t latencies_ns[];
};

struct run {
	const struct repetition *repetition;
	const struct plan *plan;
	struct plan flood;    /* plan of the flood */
	size_t floods;        /* ports of it */
	enum scenario scenario;
	struct board *board;
	size_t board_bytes;
	int fds[2];           /* the pinger's end, the receiver's */
	struct crew crew;
	char address[ADDRESS_MAX];
};

static void close_ends(struct run *run)
{
	for (int i = 0; i < 2; i++) {
		if (run->fds[i] >= 0)
			close(run->fds[i]);
		run->fds[i] = -1;
	}
}

/* Somebody else sets it, or fails: then this process will be ended. */
static void await(const _Atomic uint32_t *flag)
{
	while (!*flag)
		nanosleep(&(struct timespec){ .tv_nsec = LOOK_NS }, NULL);
}

/* ---- Receivers ---- */

static void note_flow(struct hub *hub)
{
	const struct run *run = hub->user;

	run->board->flowing = 1;
}

/* What arrived of the flood is what was sent of it, port by port in order. */
static int check_flood(const struct run *run, struct hub *hub)
{
	int r = 0;

	if (hub->total != run->board->flood_sent)
		return outcome_fail(hub->outcome, -EBADMSG, "%" PRIu64 " messages of the flood arrived of %" PRIu64,
			hub->total, (uint64_t)run->board->flood_sent);
	for (size_t i = 0; r == 0 && i < hub->n_used; i++)
		if (!hub->ports[i].echo)
			r = hub_check_port(hub, &hub->ports[i], hub->ports[i].count);
	return r;
}

static int play_receiver(struct run *run, struct hub *hub, bool echo, bool flooded)
{
	int r = 0;

	if (echo) {
		r = hub_echo(hub, run->fds[1], run->plan->size);
		run->fds[1] = -1;
	}
	hub->reads = (unsigned)run->repetition->options->flood_reads;
	if (r == 0 && flooded) {
		hub->user = run;
		hub->on_mark = note_flow;
		hub->mark = FLOWING_MESSAGES;
		r = hub_listen(hub, run->address);
		run->board->listening = 1;
	}
	while (r == 0 && hub->n_closed < hub->n_ports)
		r = hub_step(hub);
	if (r == 0 && echo)
		r = hub_check_port(hub, &hub->ports[0], run->plan->messages);
	return r == 0 && flooded ? check_flood(run, hub) : r;
}

static _Noreturn void run_receiver(struct run *run, struct outcome *outcome, bool echo, bool flooded)
{
	struct hub hub;
	int r;

	r = hub_open(&hub, &run->flood, outcome, (echo ? 1 : 0) + (flooded ? run->floods : 0));
	if (echo) {
		close(run->fds[0]);
		run->fds[0] = -1;
	} else {
		close_ends(run);
	}
	if (r == 0)
		r = play_receiver(run, &hub, echo, flooded);
	hub_close(&hub);
	crew_leave(outcome, r);
}

/* ---- Senders ---- */

static _Noreturn void run_flooder(struct run *run)
{
	struct board *board = run->board;
	struct outcome *outcome = &board->flooder;
	struct spokes spokes;
	int r;

	close_ends(run);
	await(&board->listening);
	r = spokes_open(&spokes, &run->flood, outcome, run->floods, run->repetition->options->burst);
	if (r == 0)
		r = spokes_connect(&spokes, run->address);
	if (r == 0) {
		outcome_start(outcome, 0);
		r = spokes_send(&spokes, UINT64_MAX, &board->stop);
		outcome_stop(outcome, 0);
		board->flood_sent = spokes_sent(&spokes);
	}
	if (r == 0)
		r = spokes_finish(&spokes);
	spokes_close(&spokes);
	crew_leave(outcome, r);
}

static _Noreturn void run_pinger(struct run *run)
{
	struct board *board = run->board;
	struct outcome *outcome = &board->pinger;
	struct side side;
	int r;

	close(run->fds[1]);
	side_init(&side, run->plan, outcome, board->latencies_ns);
	r = transport_wharf.open(&side, run->fds[0]);
	if (r == 0) {
		if (run->scenario != SCENARIO_QUIET)
			await(&board->flowing);
		r = transport_wharf.ping(&side);
		if (r == 0)
			r = side_check(&side);
		transport_wharf.close(&side);
	}
	board->stop = 1;
	crew_leave(outcome, r);
}

/* ---- All together ---- */

static int start(struct run *run)
{
	struct board *board = run->board;
	const int *cpus = run->repetition->cpus;
	pid_t pid;

	pid = crew_fork(&run->crew, "receiver", cpus[1], &board->receiver);
	if (!pid)
		run_receiver(run, &board->receiver, true, run->scenario == SCENARIO_FLOOD);
	if (pid > 0 && run->scenario == SCENARIO_ELSEWHERE) {
		pid = crew_fork(&run->crew, "other receiver", cpus[1], &board->other);
		if (!pid)
			run_receiver(run, &board->other, false, true);
	}
	if (pid > 0 && run->scenario != SCENARIO_QUIET) {
		pid = crew_fork(&run->crew, "flooding sender", cpus[0], &board->flooder);
		if (!pid)
			run_flooder(run);
	}
	if (pid > 0) {
		pid = crew_fork(&run->crew, "sender", cpus[0], &board->pinger);
		if (!pid)
			run_pinger(run);
	}
	return pid < 0 ? pid : 0;
}

static struct sample evaluate(const struct run *run)
{
	const struct board *board = run->board;
	uint64_t messages = run->plan->messages - run->plan->warm;
	double flood_ns = (double)(board->flooder.end_ns - board->flooder.start_ns);
	struct sample sample = {
		.seconds = (double)(board->pinger.end_ns - board->pinger.start_ns) / 1e9,
		.latency = stats_latency(run->board->latencies_ns, messages),
	};

	sample.per_second = (double)messages / sample.seconds;
	sample.cpu_ns[0] = (double)(board->pinger.cpu_end_ns - board->pinger.cpu_start_ns) / (double)messages;
	if (flood_ns > 0)
		sample.extras[FAIRNESS_FLOOD] = (double)(board->flood_sent * run->flood.size) / flood_ns;
	return sample;
}

static int prepare(struct run *run)
{
	run->board_bytes = sizeof *run->board +
		(run->plan->messages - run->plan->warm) * sizeof run->board->latencies_ns[0];
	run->board = mmap(NULL, run->board_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (run->board == MAP_FAILED) {
		run->board = NULL;
		return -errno;
	}
	return transport_wharf.pair(run->plan, run->fds);
}

int fairness_run(const struct repetition *repetition, struct sample *ret_sample, char ret_detail[OUTCOME_DETAIL_MAX])
{
	static unsigned runs;
	struct run run = {
		.repetition = repetition,
		.plan = &repetition->plan,
		.flood = repetition->plan,
		.floods = repetition->options->floods,
		.scenario = repetition->column->scenario,
		.fds = { -1, -1 },
	};
	char size[SIZE_TEXT_MAX], what[64];
	int r;

	run.flood.size = repetition->options->flood_bytes;
	snprintf(run.address, sizeof run.address, "@wharf-bench-%d-fairness-%u", (int)getpid(), runs++);
	snprintf(what, sizeof what, "%s, %s", repetition->column->name, size_print(run.plan->size, size));
	run.crew.what = what;
	r = prepare(&run);
	if (r == 0)
		r = start(&run);
	if (r < 0)
		crew_report(&run.crew, "start", strerror(-r));
	close_ends(&run);
	if (r == 0)
		r = crew_wait(&run.crew, repetition->timeout_ms);
	if (r == 0) {
		*ret_sample = evaluate(&run);
		if (ret_detail)
			memcpy(ret_detail, run.board->receiver.detail, OUTCOME_DETAIL_MAX);
	}
	crew_fini(&run.crew);
	if (run.board)
		munmap(run.board, run.board_bytes);
	return r;
}
