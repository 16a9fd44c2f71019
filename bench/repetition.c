/* SPDX-License-Identifier: MIT */
/* A repetition: two sides, their descriptors, and what they measured. */
#include "repetition.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "crew.h"

enum {
	SENDER,
	RECEIVER,
	SIDES,
};

const char *const call_extras[] = {
	[CALL_REPLY_GB] = "reply_gb_per_second",
	[CALL_IN_FLIGHT] = "in_flight_mean",
	[CALL_EXTRAS] = NULL,
};

static bool calls(const struct repetition *repetition)
{
	return repetition->options->mode == MODE_CALL;
}

/* What the sender sends is answered, and it keeps the times. */
static bool answered(const struct repetition *repetition)
{
	return repetition->options->mode == MODE_LATENCY || calls(repetition);
}

static const char *const side_names[SIDES] = { "sender", "receiver" };

/* Shared with the two sides. */
struct board {
	struct outcome outcomes[SIDES];
	uint32_t latencies_ns[];
};

struct run {
	const struct repetition *repetition;
	struct board *board;
	size_t board_bytes;
	int fds[SIDES];
	int gate[SIDES];
	struct crew crew;
};

/* Both sides are ready: neither starts before. */
static int pass_gate(struct side *side, int gate)
{
	char byte = 0;

	if (send(gate, &byte, 1, MSG_NOSIGNAL) != 1 || recv(gate, &byte, 1, 0) != 1)
		return side_fail(side, -EPIPE, "the peer failed to start");
	return 0;
}

static int play_role(const struct run *run, struct side *side, int who)
{
	const struct repetition *repetition = run->repetition;
	const struct transport *transport = repetition->column->transport;
	int r;

	r = pass_gate(side, run->gate[who]);
	if (r < 0)
		return r;
	if (calls(repetition))
		r = who == SENDER ? transport->calls->call(side) : transport->calls->answer(side);
	else if (answered(repetition))
		r = who == SENDER ? transport->ping(side) : transport->pong(side);
	else
		r = who == SENDER ? transport->send(side) : transport->receive(side);
	if (r < 0)
		return r;
	/* One way, the sender has taken nothing. */
	return who == SENDER && !answered(repetition) ? 0 : side_check(side);
}

static int open_side(const struct repetition *repetition, struct side *side, int fd, int who)
{
	const struct transport *transport = repetition->column->transport;

	return calls(repetition) ? transport->calls->open(side, fd, who == SENDER) : transport->open(side, fd);
}

static void close_side(const struct repetition *repetition, struct side *side)
{
	const struct transport *transport = repetition->column->transport;

	if (calls(repetition))
		transport->calls->close(side);
	else
		transport->close(side);
}

static _Noreturn void run_side(const struct run *run, int who)
{
	const struct repetition *repetition = run->repetition;
	struct outcome *outcome = &run->board->outcomes[who];
	struct side side;
	int r;

	/* A side that dies must be seen by the other. */
	close(run->fds[!who]);
	close(run->gate[!who]);
	side_init(&side, &repetition->plan, outcome, run->board->latencies_ns);
	if (calls(repetition) && who == SENDER)
		side.in_bytes = repetition->plan.reply_size;
	r = open_side(repetition, &side, run->fds[who], who);
	if (r == 0) {
		r = play_role(run, &side, who);
		close_side(repetition, &side);
	}
	crew_leave(outcome, r);
}

static int start_side(struct run *run, int who)
{
	pid_t pid = crew_fork(&run->crew, side_names[who], run->repetition->cpus[who], &run->board->outcomes[who]);

	if (!pid)
		run_side(run, who);
	return pid < 0 ? pid : 0;
}

static void evaluate_calls(const struct run *run, uint64_t n, struct sample *sample)
{
	double total_ns = 0;

	for (uint64_t i = 0; i < n; i++)
		total_ns += run->board->latencies_ns[i];
	sample->extras[CALL_REPLY_GB] = sample->per_second * (double)run->repetition->plan.reply_size / 1e9;
	sample->extras[CALL_IN_FLIGHT] = total_ns / 1e9 / sample->seconds;
}

static struct sample evaluate(const struct run *run)
{
	const struct plan *plan = &run->repetition->plan;
	const struct outcome *sender = &run->board->outcomes[SENDER], *receiver = &run->board->outcomes[RECEIVER];
	uint64_t messages = plan->messages - plan->warm;
	uint64_t end_ns = answered(run->repetition) ? sender->end_ns : receiver->end_ns;
	struct sample sample = {
		.seconds = (double)(end_ns - sender->start_ns) / 1e9,
		.cpu_ns = {
			(double)(sender->cpu_end_ns - sender->cpu_start_ns) / (double)messages,
			(double)(receiver->cpu_end_ns - receiver->cpu_start_ns) / (double)messages,
		},
		.system_calls = {
			(double)(sender->calls_end - sender->calls_start) / (double)messages,
			(double)(receiver->calls_end - receiver->calls_start) / (double)messages,
		},
	};

	sample.per_second = (double)messages / sample.seconds;
	if (calls(run->repetition))
		evaluate_calls(run, messages, &sample);
	if (answered(run->repetition))
		sample.latency = stats_latency(run->board->latencies_ns, messages);
	return sample;
}

static int prepare(struct run *run)
{
	const struct repetition *repetition = run->repetition;
	const struct plan *plan = &repetition->plan;
	size_t latencies = answered(repetition) ? plan->messages - plan->warm : 0;

	run->board_bytes = sizeof *run->board + latencies * sizeof run->board->latencies_ns[0];
	run->board = mmap(NULL, run->board_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (run->board == MAP_FAILED) {
		run->board = NULL;
		return -errno;
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, run->gate) < 0)
		return -errno;
	return repetition->column->transport->pair(plan, run->fds);
}

static void close_fds(int fds[SIDES])
{
	for (int who = 0; who < SIDES; who++) {
		if (fds[who] >= 0)
			close(fds[who]);
		fds[who] = -1;
	}
}

static void clean_up(struct run *run)
{
	crew_fini(&run->crew);
	close_fds(run->fds);
	close_fds(run->gate);
	if (run->board)
		munmap(run->board, run->board_bytes);
}

int repetition_run(const struct repetition *repetition, struct sample *ret_sample, char ret_detail[OUTCOME_DETAIL_MAX])
{
	char size[SIZE_TEXT_MAX], what[64];
	struct run run = {
		.repetition = repetition,
		.fds = { -1, -1 },
		.gate = { -1, -1 },
		.crew.what = what,
	};
	int r;

	snprintf(what, sizeof what, "%s, %s", repetition->column->name, size_print(repetition->plan.size, size));
	r = prepare(&run);
	for (int who = 0; r == 0 && who < SIDES; who++)
		r = start_side(&run, who);
	if (r < 0)
		crew_report(&run.crew, "start", strerror(-r));
	close_fds(run.fds);
	close_fds(run.gate);
	if (r == 0)
		r = crew_wait(&run.crew, repetition->timeout_ms);
	if (r == 0) {
		*ret_sample = evaluate(&run);
		if (ret_detail)
			memcpy(ret_detail, run.board->outcomes[SENDER].detail, OUTCOME_DETAIL_MAX);
	}
	clean_up(&run);
	return r;
}
