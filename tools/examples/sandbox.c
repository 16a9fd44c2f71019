/* SPDX-License-Identifier: MIT */
/*
 * A parent that has a document read by children it does not trust, and is right not to: all but the honest ones are
 * hostile, each in its own way and all at once. It survives, knows of each how it ended, and keeps nothing of them. The
 * honest child shows how far a process that uses wharf can lock itself in.
 */
#include <dirent.h>
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
#include <sys/resource.h>
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
	COUNT = 1, /* a call: words, each with its NUL, and a descriptor, the document; the reply is a struct result */
	WORDS_MAX = 16,
	APP_BAD_RESULT = 1,
	APP_LATE = 2,
	APP_QUIT = 3,
};

struct result {
	uint64_t n_words;
	uint64_t counts[WORDS_MAX];
};

static const char words[] = "wharf\0the\0a";
enum { N_WORDS = 3 };

/* Counts the words of a list in a document. 0; negative errno. */
static int count_words(int document, const char *list, size_t list_bytes, struct result *ret_result)
{
	struct stat st;
	if (!list_bytes || list[list_bytes - 1] || fstat(document, &st) < 0 || !st.st_size)
		return -EINVAL;
	const char *text = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, document, 0);
	if (text == MAP_FAILED)
		return -errno;
	*ret_result = (struct result){ 0 };
	for (const char *w = list; w < list + list_bytes && ret_result->n_words < WORDS_MAX; w += strlen(w) + 1) {
		uint64_t *n = &ret_result->counts[ret_result->n_words++];
		const char *end = text + st.st_size;
		for (const char *at = text; *w && (at = memmem(at, (size_t)(end - at), w, strlen(w))); at += strlen(w))
			++*n;
	}
	munmap((void *)text, (size_t)st.st_size);
	return 0;
}

/* ---- The child: given nothing but what the port brings ---- */

#ifdef __x86_64__
enum { NATIVE_ARCH = AUDIT_ARCH_X86_64 };
#elif defined(__aarch64__)
enum { NATIVE_ARCH = AUDIT_ARCH_AARCH64 };
#else
#error "say what AUDIT_ARCH_ this is"
#endif

/*
 * What a process needs whose ports are open, and whose pool has the memory that it lends: see wharf_port_inherit.
 * Everything else kills it.
 *
 * A filter does not see what io_uring does for the process; but wharf's rings are restricted to what wharf does with them
 * (from Linux 5.10 on): whoever takes this one over can have them open no file and connect no socket. It could still use
 * what descriptors it has, and is sent: a parent passes only what the child may have.
 */
static const uint32_t allowed[] = {
	SYS_io_uring_enter,  /* sending, receiving, waiting */
	/* and the same over epoll, where io_uring is refused */
	SYS_sendmsg, SYS_recvmmsg, SYS_epoll_ctl, SYS_epoll_pwait2, SYS_epoll_pwait,
#ifdef SYS_epoll_wait
	SYS_epoll_wait,
#endif
	SYS_clock_gettime,   /* where it is a system call */
	SYS_shutdown,        /* the end of a port */
	SYS_sendto,          /* and what it says when it fails, or is aborted */
	/* the peer's memory comes and goes: a look at its seals, kind and size before it is mapped */
	SYS_fcntl, SYS_fstatfs, SYS_fstat, SYS_newfstatat, SYS_mmap, SYS_madvise, SYS_munmap, SYS_close,
	SYS_brk, SYS_mremap, /* malloc */
	SYS_exit_group,
	SYS_sigaltstack,     /* AddressSanitizer, on the way there */
};

static int lock_in(void)
{
	enum { N = sizeof allowed / sizeof *allowed };
	struct sock_filter filter[N + 6] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, NATIVE_ARCH, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	};
	for (uint8_t i = 0; i < N; i++)
		filter[4 + i] = (struct sock_filter)BPF_JUMP(
			BPF_JMP | BPF_JEQ | BPF_K, allowed[i], (uint8_t)(N - i), 0);
	filter[4 + N] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	filter[5 + N] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
		prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &(struct sock_fprog){ .len = N + 6, .filter = filter }) < 0)
		return -errno;
	return 0;
}

struct child {
	const char *mode;
	int raw; /* a duplicate of the port's socket, which no honest program has */
};

static bool is(const struct child *c, const char *mode) { return !strcmp(c->mode, mode); }

static void send_raw(int fd, const void *bytes, size_t size, const int *fds, size_t n_fds)
{
	char control[CMSG_SPACE(253 * sizeof(int))];
	struct msghdr msg = { .msg_iov = &(struct iovec){ (void *)bytes, size }, .msg_iovlen = 1 };
	if (n_fds) {
		msg.msg_control = control;
		msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		*(struct cmsghdr *)control = (struct cmsghdr){ CMSG_LEN(n_fds * sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
		memcpy(CMSG_DATA((struct cmsghdr *)control), fds, n_fds * sizeof(int));
	}
	sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void reply(wharf_port *port, wharf_call_id id, const struct result *result, uint32_t flags, void **ret_memory)
{
	struct wharf_buf buf;
	if (wharf_buf_claim(wharf_port_pool(port), sizeof *result, &buf) < 0)
		return;
	*ret_memory = buf.data;
	memcpy(buf.data, result, sizeof *result);
	if (wharf_reply_buf(port, id, &buf, 0, flags) < 0)
		wharf_buf_abandon(&buf);
}

static void child_on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	const struct child *c = user;
	const char *list = wharf_msg_contiguous(msg);
	struct result result;
	wharf_call_id id;
	void *memory;
	if (msg->type != COUNT || msg->n_fds != 1 || !list)
		return;
	if (wharf_call_take(port, msg, WHARF_OPT(answer, .user = NULL), &id) < 0)
		return;
	if (is(c, "quit")) {
		wharf_port_abort(port, APP_QUIT);
		return;
	}
	if (count_words(msg->fds[0], list, msg->size, &result) < 0) {
		wharf_call_refuse(port, id, APP_BAD_RESULT);
		return;
	}
	if (is(c, "lie"))
		result.n_words = UINT64_MAX; /* an index, to a parent that does not look */
	if (is(c, "forge")) {
		char frame[512];
		for (size_t i = 0; i < sizeof frame; i++)
			frame[i] = (char)(rand() >> 8);
		send_raw(c->raw, frame, sizeof frame, NULL, 0);
	} else if (is(c, "descriptors")) {
		int fds[253];
		for (size_t i = 0; i < 253; i++)
			fds[i] = c->raw;
		for (unsigned i = 0; i < 3; i++)
			send_raw(c->raw, words, sizeof words, fds, 253);
	} else if (is(c, "flood")) {
		for (unsigned i = 0; i < 100000; i++)
			reply(port, id, &result, 0, &memory);
	} else if (is(c, "die")) {
		reply(port, id, &result, 0, &memory);
		wharf_loop_flush(wharf_port_loop(port));
		raise(SIGKILL); /* in the middle of its answer */
	} else if (!is(c, "hang")) {
		memory = &result;
		reply(port, id, &result, WHARF_LAST, &memory);
		if (is(c, "scribble") || is(c, "scribble in place")) {
			wharf_loop_flush(wharf_port_loop(port));
			for (volatile uint64_t *count = &((struct result *)memory)->counts[0];;)
				*count ^= 1; /* each of the two could be true */
		}
	}
}

static const struct wharf_port_ops child_ops = { .size = sizeof child_ops, .on_message = child_on_message };

static int child_main(const char *mode)
{
	struct child child = { .mode = mode, .raw = -1 };
	wharf_loop *loop = NULL;
	wharf_port *port = NULL;
	const char *fd = getenv("WHARF_FD");
	if (!fd)
		return EXIT_FAILURE;
	if (is(&child, "mute"))
		for (;;)
			pause();
	if (is(&child, "garbage")) {
		send_raw(atoi(fd), words, sizeof words, NULL, 0);
		pause();
	}
	if (is(&child, "forge") || is(&child, "descriptors"))
		child.raw = dup(atoi(fd));
	int e = wharf_loop_new(NULL, &loop);
	if (e >= 0)
		e = wharf_port_inherit(loop, WHARF_OPT(port, .ops = &child_ops, .user = &child, .rx_fds_max = 1),
			&port);
	/* Until the peer has said hello more is needed. Paused: no message is looked at before the door is shut. */
	if (e >= 0)
		e = wharf_port_pause(port);
	while (e >= 0 && !wharf_port_peer(port))
		e = wharf_loop_step(loop, -1);
	/* And what its answer lies in: to make memory that can be lent takes more than to lend it. */
	if (e >= 0)
		e = wharf_pool_reserve(wharf_port_pool(port), sizeof(struct result), sizeof(struct result),
			WHARF_PREFAULT);
	if (e >= 0 && (is(&child, "honest") || is(&child, "quit")))
		e = lock_in();
	if (e >= 0)
		e = wharf_port_resume(port);
	if (e >= 0)
		e = wharf_loop_run(loop);
	_exit(e < 0 ? EXIT_FAILURE : EXIT_SUCCESS); /* freeing the loop, and what else runs at exit, needs more */
}

/* ---- The parent ---- */

/* A mode of the child, and what the parent is to make of it. */
struct trial {
	char mode[20];
	uint32_t close;        /* WHARF_CLOSE_* */
	bool answered;         /* with something that could be true */
	int64_t hello_ns, answer_ns; /* how long it may take for them */
	int64_t grace_ns;      /* for its goodbye, when it has answered */
	bool in_place;         /* its memory is read as it lies, which only who trusts it should do */
};

static struct trial trials[] = {
	{ "honest", WHARF_CLOSE_LOCAL, true, 20 * SEC, 20 * SEC, 20 * SEC },
	{ "quit", WHARF_CLOSE_PEER_ABORTED, false, 20 * SEC, 20 * SEC },       /* locked in like the honest, and gives up */
	{ "mute", WHARF_CLOSE_TIMEOUT, false, 300 * MS, 20 * SEC },            /* does not even say hello */
	{ "garbage", WHARF_CLOSE_VIOLATION, false, 20 * SEC, 20 * SEC },       /* something else than a hello */
	{ "forge", WHARF_CLOSE_VIOLATION, false, 20 * SEC, 20 * SEC },         /* a frame of its own make */
	{ "lie", WHARF_CLOSE_ABORTED, false, 20 * SEC, 20 * SEC },             /* a result that cannot be */
	{ "scribble", WHARF_CLOSE_TIMEOUT, true, 20 * SEC, 20 * SEC, 300 * MS },/* changes the result while it is read */
	{ "scribble in place", WHARF_CLOSE_ABORTED, false, 20 * SEC, 20 * SEC, 0, true },
	{ "hang", WHARF_CLOSE_ABORTED, false, 20 * SEC, 300 * MS },            /* never answers */
	{ "die", WHARF_CLOSE_PEER_GONE, false, 20 * SEC, 20 * SEC },           /* half way through the answer */
	{ "flood", WHARF_CLOSE_ABORTED, false, 20 * SEC, 20 * SEC },           /* answers and answers */
	{ "descriptors", WHARF_CLOSE_VIOLATION, false, 20 * SEC, 20 * SEC },   /* would fill the table of ours */
	{ "honest", WHARF_CLOSE_LOCAL, true, 20 * SEC, 20 * SEC, 20 * SEC },
};
enum { TRIALS = sizeof trials / sizeof *trials };

struct job {
	const struct trial *trial;
	const struct result *truth; /* which a parent has only in a test */
	size_t document_bytes;
	wharf_port *port;
	int pidfd;
	unsigned n_replies;
	struct result result;
	bool refused, answered, good;
};

/* Looks at it for as long as a careless reader would. false: it changed. */
static bool is_stable(const volatile struct result *r, bool until_it_changes)
{
	uint64_t first = r->counts[0];
	for (unsigned i = 0; i < (until_it_changes ? UINT32_MAX : 100000); i++)
		if (r->counts[0] != first)
			return false;
	return true;
}

/* Only what can be true: nothing that the child says is used before this. */
static bool result_check(const struct job *job, const struct result *r)
{
	if (r->n_words != N_WORDS)
		return false;
	for (size_t i = 0; i < N_WORDS; i++)
		if (r->counts[i] > job->document_bytes)
			return false;
	return true;
}

static void on_reply(wharf_port *port, wharf_call_id id, const struct wharf_msg *msg, void *user)
{
	(void)id;
	struct job *job = user;
	const struct result *r = msg->size == sizeof *r ? wharf_msg_contiguous(msg) : NULL;
	job->refused = ++job->n_replies > 1 || !r || !is_stable(r, job->trial->in_place) || !result_check(job, r);
	if (job->refused)
		wharf_port_abort(port, APP_BAD_RESULT);
	else
		job->result = *r;
}

static void on_end(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user)
{
	(void)id;
	struct job *job = user;
	if (end->reason == WHARF_END_DEADLINE)
		wharf_port_abort(port, APP_LATE);
	if (end->reason != WHARF_END_LAST || !job->n_replies || job->refused)
		return;
	job->answered = true;
	wharf_port_close(port, job->trial->grace_ns);
}

static void on_close(wharf_port *port, const struct wharf_reason *why, void *user)
{
	(void)port;
	struct job *job = user;
	const struct trial *trial = job->trial;
	bool honest = !strcmp(trial->mode, "honest");
	siginfo_t how = { 0 };
	job->port = NULL;
	if (!honest) /* in a parent that does not know who is: always. Closed is not dead */
		pidfd_send_signal(job->pidfd, SIGKILL, NULL, 0);
	waitid(P_PIDFD, (id_t)job->pidfd, &how, WEXITED);
	close(job->pidfd);
	job->good = why->code == trial->close && job->answered == trial->answered;
	if (honest)
		job->good &= how.si_code == CLD_EXITED && how.si_status == 0 &&
			!memcmp(&job->result, job->truth, sizeof job->result);
	printf("%-17s  %s, %s: %s%s\n", trial->mode, job->answered ? "answered" : "no answer",
		wharf_close_name(why->code), why->text, job->good ? "" : "  <-- NOT AS IT SHOULD BE");
}

static const struct wharf_port_ops ops = { .size = sizeof ops, .on_close = on_close };

static int job_start(struct job *job, wharf_loop *loop, int document)
{
	char self[] = "/proc/self/exe", word[] = "--child", mode[sizeof job->trial->mode];
	char *argv[] = { self, word, mode, NULL };
	strcpy(mode, job->trial->mode);
	int e = wharf_spawn(loop, WHARF_OPT(spawn, .argv = argv,
		.port = WHARF_OPT(port, .ops = &ops, .user = job,
			.open_timeout_ns = job->trial->hello_ns,
			.untrusted = !job->trial->in_place, /* private copies: nobody alters what is being checked */
			.rx_fds_max = 0,
			.rx_calls_max = 1,
			.rx_streams_max = 1,
			.rx_bytes_max = sizeof(struct result),
			.rx_mapped_bytes_max = 64 << 20,
			.rx_msgs_per_turn = 64)),
		&job->port, &job->pidfd);
	if (e < 0)
		return e;
	struct wharf_buf buf;
	e = wharf_buf_claim(wharf_port_pool(job->port), sizeof words, &buf);
	if (e < 0)
		return e;
	memcpy(buf.data, words, sizeof words);
	struct wharf_out out = { .type = COUNT, .flags = WHARF_LAST,
		.parts = &(struct wharf_part){ .buf = &buf }, .n_parts = 1,
		.fds = &document, .n_fds = 1 }; /* duplicated: the document is ours still */
	wharf_call_id id;
	e = wharf_call(job->port, &out, WHARF_OPT(call, .on_reply = on_reply, .on_end = on_end, .user = job,
		.timeout_ns = job->trial->answer_ns), &id);
	if (e < 0)
		wharf_buf_abandon(&buf);
	return e;
}

static unsigned count_fds(void)
{
	unsigned n = 0;
	DIR *dir = opendir("/proc/self/fd");
	while (dir && readdir(dir))
		n++;
	closedir(dir);
	return n;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "--child"))
		return child_main(argv[2]);
	/* The kernel installs what children send before anybody can refuse it: the table needs headroom for a hostile one. */
	struct rlimit fds;
	if (!getrlimit(RLIMIT_NOFILE, &fds) && fds.rlim_cur < fds.rlim_max) {
		fds.rlim_cur = fds.rlim_max;
		setrlimit(RLIMIT_NOFILE, &fds);
	}
	int document = open(argc > 1 ? argv[1] : "/proc/self/exe", O_RDONLY | O_CLOEXEC);
	struct stat st;
	struct result truth;
	wharf_pool *first; /* the library keeps one descriptor for the process, from its first pool on */
	if (document < 0 || fstat(document, &st) < 0 || wharf_pool_new(NULL, &first) < 0 ||
		count_words(document, words, sizeof words, &truth) < 0) {
		fprintf(stderr, "usage: sandbox [document]\n");
		return EXIT_FAILURE;
	}
	wharf_pool_unref(first);
	unsigned n_fds = count_fds(), n_wrong = 0;

	struct job jobs[TRIALS] = { 0 };
	wharf_loop *loop = NULL;
	int e = wharf_loop_new(NULL, &loop);
	for (size_t i = 0; i < TRIALS && e >= 0; i++) {
		jobs[i] = (struct job){ .trial = &trials[i], .truth = &truth, .document_bytes = (size_t)st.st_size };
		e = job_start(&jobs[i], loop, document);
	}
	if (e >= 0)
		e = wharf_loop_run(loop);
	wharf_loop_free(loop);

	for (size_t i = 0; i < TRIALS; i++)
		n_wrong += !jobs[i].good;
	unsigned fds_left = count_fds() - n_fds;
	bool child_left = waitpid(-1, NULL, WNOHANG) >= 0;
	close(document);
	printf("%u of %d ended otherwise than they should; left behind: %u descriptors, %s\n", n_wrong, TRIALS,
		fds_left, child_left ? "a child" : "no child");
	if (e < 0)
		fprintf(stderr, "sandbox: %s\n", strerror(-e));
	return e < 0 || n_wrong || fds_left || child_left ? EXIT_FAILURE : EXIT_SUCCESS;
}
