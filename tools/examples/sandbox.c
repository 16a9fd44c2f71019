/* SPDX-License-Identifier: MIT */
/* A sandboxed parser: the child that reads the document is hostile in each way it can think of; the parent survives. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "wharf.h"

#define MS INT64_C(1000000)
#define SEC (1000 * MS)

enum {
	INPUT = 1,   /* words, each with its NUL; one descriptor, the document */
	RESULT = 2,  /* struct result */
	WORDS_MAX = 16,
	APP_BAD_RESULT = 1,
	APP_LATE = 2,
};

struct result {
	uint64_t n_words;
	uint64_t counts[WORDS_MAX];
};

static const char words[] = "wharf\0the\0a";
enum { N_WORDS = 3 };

/* ---- The child: given nothing but what the port brings ---- */

#ifdef __x86_64__
enum { NATIVE_ARCH = AUDIT_ARCH_X86_64 };
#elif defined(__aarch64__)
enum { NATIVE_ARCH = AUDIT_ARCH_AARCH64 };
#else
#error "say what AUDIT_ARCH_ this is"
#endif

/* Takes away what a parser never needs and an intruder always does: files, sockets, programs, processes, new rings. */
static int lock_down(void)
{
	static const uint32_t denied[] = { SYS_openat, SYS_socket, SYS_connect, SYS_execve, SYS_execveat, SYS_ptrace,
		SYS_clone, SYS_clone3, SYS_kill, SYS_tgkill, SYS_process_vm_writev, SYS_io_uring_setup };
	enum { N = sizeof denied / sizeof *denied };
	struct sock_filter filter[N + 6] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, NATIVE_ARCH, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	};
	for (uint8_t i = 0; i < N; i++)
		filter[4 + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, denied[i], (uint8_t)(N - i), 0);
	filter[4 + N] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	filter[5 + N] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &(struct sock_fprog){ .len = N + 6, .filter = filter }) < 0)
		return -errno;
	return 0;
}

static uint64_t count_word(const char *text, size_t size, const char *word)
{
	uint64_t n = 0;
	size_t length = strlen(word);
	for (const char *at = text; length && (at = memmem(at, size - (size_t)(at - text), word, length)); at += length)
		n++;
	return n;
}

static void child_on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	const char *behaviour = user;
	struct result result = { 0 };
	struct stat st;
	const char *list = wharf_msg_contiguous(msg);
	if (!strcmp(behaviour, "crash"))
		abort();
	if (!strcmp(behaviour, "hang"))
		for (;;)
			pause();
	if (msg->type != INPUT || !list || !msg->size || list[msg->size - 1])
		return;
	if (msg->n_fds != 1 || fstat(msg->fds[0], &st) < 0)
		return;
	const char *text = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, msg->fds[0], 0);
	if (text == MAP_FAILED)
		return;
	for (const char *word = list; word < list + msg->size && result.n_words < WORDS_MAX; word += strlen(word) + 1)
		result.counts[result.n_words++] = count_word(text, (size_t)st.st_size, word);
	munmap((void *)text, (size_t)st.st_size);
	if (!strcmp(behaviour, "lie"))
		result.n_words = UINT64_MAX;

	do {
		struct wharf_buf buf;
		if (wharf_buf_claim(wharf_port_pool(port), sizeof result, &buf) < 0)
			return;
		memcpy(buf.data, &result, sizeof result);
		if (wharf_send_buf(port, RESULT, &buf) < 0) {
			wharf_buf_abandon(&buf);
			return;
		}
	} while (!strcmp(behaviour, "flood"));
}

static const struct wharf_port_ops child_ops = {
	.size = sizeof child_ops,
	.on_message = child_on_message,
};

static int child_main(char *behaviour)
{
	wharf_loop *loop = NULL;
	wharf_port *port = NULL;
	if (!strcmp(behaviour, "mute"))
		for (;;)
			pause();
	if (!strcmp(behaviour, "garbage")) {
		const char *fd = getenv("WHARF_FD");
		return !fd || send(atoi(fd), words, sizeof words, MSG_NOSIGNAL) < 0;
	}
	int e = wharf_loop_new(NULL, &loop);
	if (e >= 0)
		e = wharf_port_inherit(loop, WHARF_OPT(port, .ops = &child_ops, .user = behaviour, .rx_fds_max = 1),
			&port);
	if (e >= 0)
		e = wharf_pool_reserve(wharf_port_pool(port), sizeof(struct result), 64 << 10, WHARF_PREFAULT);
	if (e >= 0)
		e = lock_down();
	if (e >= 0)
		e = wharf_loop_run(loop);
	wharf_loop_free(loop);
	return e < 0;
}

/* ---- The parent ---- */

struct job {
	wharf_port *port;
	int pidfd;
	size_t document_bytes;
	struct result result;
	bool answered;
	uint32_t end;  /* WHARF_CLOSE_*; 0 while it runs */
};

/* Only what can be true: nothing that the child says is used before this. */
static bool result_parse(struct job *job, const void *data, size_t size)
{
	struct result r;
	if (job->answered || !data || size != sizeof r)
		return false;
	memcpy(&r, data, sizeof r);
	if (r.n_words != N_WORDS)
		return false;
	for (size_t i = 0; i < N_WORDS; i++)
		if (r.counts[i] > job->document_bytes)
			return false;
	job->result = r;
	return job->answered = true;
}

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct job *job = user;
	if (msg->type == RESULT && result_parse(job, wharf_msg_contiguous(msg), msg->size))
		wharf_port_close(port, SEC);
	else
		wharf_port_abort(port, APP_BAD_RESULT);
}

static void on_close(wharf_port *port, const struct wharf_reason *why, void *user)
{
	(void)port;
	struct job *job = user;
	job->port = NULL;
	job->end = why->code;
	if (why->code == WHARF_CLOSE_VIOLATION)
		printf("\tpid %d: %s\n", (int)why->peer->pid, why->text);
	pidfd_send_signal(job->pidfd, SIGKILL, NULL, 0); /* closed is not dead */
	waitid(P_PIDFD, (id_t)job->pidfd, NULL, WEXITED);
	close(job->pidfd);
}

static const struct wharf_port_ops ops = {
	.size = sizeof ops,
	.on_message = on_message,
	.on_close = on_close,
};

/* Sends the words in a buffer, the document as a descriptor. On failure both are ours still, and closed here. */
static int job_send(struct job *job, int document)
{
	struct wharf_buf buf;
	int e = wharf_buf_claim(wharf_port_pool(job->port), sizeof words, &buf);
	if (e >= 0) {
		memcpy(buf.data, words, sizeof words);
		e = wharf_send(job->port, &(struct wharf_out){ .type = INPUT, .flags = WHARF_FDS_MOVE,
			.parts = &(struct wharf_part){ .buf = &buf }, .n_parts = 1, .fds = &document, .n_fds = 1 });
		if (e < 0)
			wharf_buf_abandon(&buf);
	}
	if (e < 0)
		close(document);
	return e;
}

static int job_start(struct job *job, wharf_loop *loop, char *behaviour, const char *path)
{
	char self[] = "/proc/self/exe", word[] = "--child";
	char *argv[] = { self, word, behaviour, NULL };
	char *envp[] = { NULL };
	struct stat st;
	int document = open(path, O_RDONLY | O_CLOEXEC);
	if (document < 0 || fstat(document, &st) < 0)
		return -errno;
	job->document_bytes = (size_t)st.st_size;
	int e = wharf_spawn(loop, WHARF_OPT(spawn, .argv = argv, .envp = envp,
		.port = WHARF_OPT(port, .ops = &ops, .user = job,
			.open_timeout_ns = SEC,
			.untrusted = 1,               /* a child cannot alter what is being checked */
			.rx_fds_max = 0,
			.rx_bytes_max = sizeof(struct result),
			.rx_mapped_bytes_max = 64 << 20,
			.rx_msgs_per_turn = 64)),
		&job->port, &job->pidfd);
	if (e < 0) {
		close(document);
		return e;
	}
	e = job_send(job, document);
	if (e < 0)
		wharf_port_abort(job->port, 0);
	return e;
}

static int64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * SEC + t.tv_nsec;
}

/* One document, one child. Returns how it ended, WHARF_CLOSE_*; a negative errno: ours. */
static int job_run(wharf_loop *loop, char *behaviour, const char *path)
{
	struct job job = { .pidfd = -1 };
	int64_t deadline = now_ns() + 2 * SEC;
	int e = job_start(&job, loop, behaviour, path);
	while (job.port) {
		int64_t left = deadline - now_ns();
		if (left <= 0)
			wharf_port_abort(job.port, APP_LATE);
		int step = wharf_loop_step(loop, left > 0 ? left : 0);
		if (step < 0)
			return step;
	}
	const char *answered = job.answered ? "with a result" : "without a result";
	if (job.end)
		printf("%-8s %s, %s\n", behaviour, wharf_close_name(job.end), answered);
	return e < 0 ? e : (int)job.end;
}

int main(int argc, char **argv)
{
	static struct { char behaviour[8]; int end; } trials[] = {
		{ "honest", WHARF_CLOSE_LOCAL },
		{ "crash", WHARF_CLOSE_PEER_GONE },
		{ "lie", WHARF_CLOSE_ABORTED },
		{ "flood", WHARF_CLOSE_ABORTED },
		{ "hang", WHARF_CLOSE_ABORTED },
		{ "mute", WHARF_CLOSE_TIMEOUT },
		{ "garbage", WHARF_CLOSE_VIOLATION },
		{ "honest", WHARF_CLOSE_LOCAL },
	};
	if (argc == 3 && !strcmp(argv[1], "--child"))
		return child_main(argv[2]);

	wharf_loop *loop;
	unsigned n_wrong = 0;
	int e = wharf_loop_new(NULL, &loop);
	if (e < 0) {
		fprintf(stderr, "sandbox: %s\n", strerror(-e));
		return EXIT_FAILURE;
	}
	for (size_t i = 0; i < sizeof trials / sizeof *trials; i++) {
		e = job_run(loop, trials[i].behaviour, argc > 1 ? argv[1] : "/proc/self/exe");
		if (e < 0)
			fprintf(stderr, "%s: %s\n", trials[i].behaviour, strerror(-e));
		n_wrong += e != trials[i].end;
	}
	wharf_loop_free(loop);
	printf("%u of %zu ended otherwise than they should\n", n_wrong, sizeof trials / sizeof *trials);
	return n_wrong ? EXIT_FAILURE : EXIT_SUCCESS;
}
