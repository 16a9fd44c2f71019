/* SPDX-License-Identifier: MIT */
/* A repetition: starting the two sides, waiting for both, and telling why one failed. */
#include "repetition.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "process.h"

enum {
	SENDER,
	RECEIVER,
	SIDES,
	ALONE_MS = 500, /* what is left to a side when the other has failed */
};

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
	pid_t pids[SIDES];
	int pidfds[SIDES];
	int statuses[SIDES];
	bool killed[SIDES];
};

static void report(const struct run *run, const char *who, const char *text)
{
	char size[SIZE_TEXT_MAX];

	fprintf(stderr, "wharf-bench: %s, %s: %s: %s\n", run->repetition->transport->name,
		size_print(run->repetition->plan.size, size), who, text);
}

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
	const struct transport *transport = repetition->transport;
	int r;

	r = pass_gate(side, run->gate[who]);
	if (r < 0)
		return r;
	if (repetition->latency)
		r = who == SENDER ? transport->ping(side) : transport->pong(side);
	else
		r = who == SENDER ? transport->send(side) : transport->receive(side);
	if (r < 0)
		return r;
	/* One way, the sender has taken nothing. */
	return who == SENDER && !repetition->latency ? 0 : side_check(side);
}

static void run_side(const struct run *run, int who)
{
	const struct repetition *repetition = run->repetition;
	struct outcome *outcome = &run->board->outcomes[who];
	struct side side;
	int r;

	/* A side that dies must be seen by the other. */
	close(run->fds[!who]);
	close(run->gate[!who]);
	side_init(&side, &repetition->plan, outcome, run->board->latencies_ns);
	r = repetition->transport->open(&side, run->fds[who]);
	if (r == 0) {
		r = play_role(run, &side, who);
		repetition->transport->close(&side);
	}
	outcome->done = r == 0 && !outcome->error[0];
	_exit(outcome->done ? 0 : 1);
}

static int start_side(struct run *run, int who)
{
	pid_t pid = process_fork(run->repetition->cpus[who]);

	if (pid < 0)
		return pid;
	if (!pid)
		run_side(run, who);
	run->pids[who] = pid;
	run->pidfds[who] = pidfd_open(pid, 0);
	return run->pidfds[who] < 0 ? -errno : 0;
}

static bool failed(const struct run *run, int who)
{
	return run->statuses[who] != 0 || !run->board->outcomes[who].done;
}

static void reap_side(struct run *run, int who)
{
	while (waitpid(run->pids[who], &run->statuses[who], 0) < 0 && errno == EINTR)
		;
	run->pids[who] = 0;
}

/* When both failed, one did because of the other: the cause is who was killed (not by us), else who failed first. */
static void tell_cause(const struct run *run)
{
	uint64_t first_ns = UINT64_MAX;
	int cause = SENDER;
	char text[64] = "ended without a word";

	for (int who = 0; who < SIDES; who++) {
		const struct outcome *outcome = &run->board->outcomes[who];
		uint64_t failed_ns = outcome->error[0] ? outcome->error_ns : 0;

		if (failed(run, who) && !run->killed[who] && failed_ns < first_ns) {
			first_ns = failed_ns;
			cause = who;
		}
	}
	if (WIFSIGNALED(run->statuses[cause]))
		snprintf(text, sizeof text, "killed by signal %d (%s)", WTERMSIG(run->statuses[cause]),
			strsignal(WTERMSIG(run->statuses[cause])));
	report(run, side_names[cause], run->board->outcomes[cause].error[0] ? run->board->outcomes[cause].error : text);
}

static void kill_sides(struct run *run)
{
	for (int who = 0; who < SIDES; who++) {
		if (run->pids[who]) {
			run->killed[who] = true;
			kill(run->pids[who], SIGKILL);
		}
	}
}

static int wait_sides(struct run *run)
{
	bool alone = false;

	while (run->pids[SENDER] || run->pids[RECEIVER]) {
		struct pollfd polls[SIDES];
		int n;

		for (int who = 0; who < SIDES; who++)
			polls[who] = (struct pollfd){ .fd = run->pids[who] ? run->pidfds[who] : -1, .events = POLLIN };
		n = poll(polls, SIDES, alone ? ALONE_MS : run->repetition->timeout_ms);
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n == 0 && !alone) {
			report(run, "both sides", "they take too long");
			return -EIO;
		}
		if (n == 0)
			kill_sides(run);
		for (int who = 0; n > 0 && who < SIDES; who++) {
			if (polls[who].revents) {
				reap_side(run, who);
				alone |= failed(run, who);
			}
		}
	}
	if (!failed(run, SENDER) && !failed(run, RECEIVER))
		return 0;
	tell_cause(run);
	return -EIO;
}

static struct sample evaluate(const struct run *run)
{
	const struct plan *plan = &run->repetition->plan;
	const struct outcome *sender = &run->board->outcomes[SENDER], *receiver = &run->board->outcomes[RECEIVER];
	uint64_t messages = plan->messages - plan->warm;
	uint64_t end_ns = run->repetition->latency ? sender->end_ns : receiver->end_ns;
	struct sample sample = {
		.seconds = (double)(end_ns - sender->start_ns) / 1e9,
		.cpu_ns = {
			(double)(sender->cpu_end_ns - sender->cpu_start_ns) / (double)messages,
			(double)(receiver->cpu_end_ns - receiver->cpu_start_ns) / (double)messages,
		},
	};

	sample.per_second = (double)messages / sample.seconds;
	if (run->repetition->latency)
		sample.latency = stats_latency(run->board->latencies_ns, messages);
	return sample;
}

static int prepare(struct run *run)
{
	const struct repetition *repetition = run->repetition;
	const struct plan *plan = &repetition->plan;
	size_t latencies = repetition->latency ? plan->messages - plan->warm : 0;

	run->board_bytes = sizeof *run->board + latencies * sizeof run->board->latencies_ns[0];
	run->board = mmap(NULL, run->board_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (run->board == MAP_FAILED) {
		run->board = NULL;
		return -errno;
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, run->gate) < 0)
		return -errno;
	return repetition->transport->pair(plan, run->fds);
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
	for (int who = 0; who < SIDES; who++) {
		if (run->pids[who]) {
			kill(run->pids[who], SIGKILL);
			waitpid(run->pids[who], NULL, 0);
		}
	}
	close_fds(run->pidfds);
	close_fds(run->fds);
	close_fds(run->gate);
	if (run->board)
		munmap(run->board, run->board_bytes);
}

int repetition_run(const struct repetition *repetition, struct sample *ret_sample, char ret_detail[OUTCOME_DETAIL_MAX])
{
	struct run run = {
		.repetition = repetition,
		.fds = { -1, -1 },
		.gate = { -1, -1 },
		.pidfds = { -1, -1 },
	};
	int r;

	r = prepare(&run);
	for (int who = 0; r == 0 && who < SIDES; who++)
		r = start_side(&run, who);
	if (r < 0)
		report(&run, "start", strerror(-r));
	close_fds(run.fds);
	close_fds(run.gate);
	if (r == 0)
		r = wait_sides(&run);
	if (r == 0) {
		*ret_sample = evaluate(&run);
		if (ret_detail)
			memcpy(ret_detail, run.board->outcomes[SENDER].detail, OUTCOME_DETAIL_MAX);
	}
	clean_up(&run);
	return r;
}
