/* SPDX-License-Identifier: MIT */
/*
 * on_writable, as a property: after a refusal it fires exactly once, when what was refused would succeed, and never
 * stays away. Random senders against readers that pause, take and release.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "apart.h"
#include "harness.h"

enum { STEPS = 4000, KEPT = 32 };

enum kind { BYTES, CLAIM, BOTH, CLAIM_ONLY, STREAM_BEGIN, STREAM_PART, KINDS };

/* One thing that was refused, made again in on_writable. */
struct attempt {
	enum kind kind;
	size_t size;
	unsigned n_fds;
	struct wharf_buf buf; /* claimed, and not sent yet */
	uint64_t stream; /* of a part */
};

static struct apart p;
static struct harness_random r;
static struct wharf_msg *kept[KEPT];
static struct attempt refused[STEPS];
static unsigned n_refused, n_told;
static size_t smallest_claim; /* that was refused; perhaps made since, when something else was told */
static uint64_t streams[4];
static unsigned n_streams;
static int a_fd;

static uint64_t below(uint64_t n) { return harness_random_below(&r, n); }

static int send_parts(struct wharf_part *parts, unsigned n_parts, unsigned n_fds)
{
	int fds[4] = { a_fd, a_fd, a_fd, a_fd };

	return wharf_send(p.a.port, &(struct wharf_out){ .type = 1, .parts = parts, .n_parts = n_parts, .fds = fds,
		.n_fds = n_fds });
}

static int try(struct attempt *t)
{
	static char bytes[200000];
	int result;

	switch (t->kind) {
	case BYTES:
		return send_parts(&(struct wharf_part){ .bytes = bytes, .size = t->size }, 1, t->n_fds);
	case STREAM_BEGIN:
		if (n_streams == 4)
			return 0;
		result = wharf_stream_begin(p.a.port, 2, WHARF_BYTES_UNKNOWN, &streams[n_streams]);
		n_streams += result == 0;
		return result;
	case STREAM_PART:
		result = wharf_stream_send(p.a.port, t->stream, &(struct wharf_out){ .n_parts = 1,
			.parts = &(struct wharf_part){ .bytes = bytes, .size = t->size } });
		return result;
	default:
		break;
	}
	if (!t->buf.data) {
		result = wharf_buf_claim(wharf_port_pool(p.a.port), t->size, &t->buf);
		if (result == -EAGAIN && t->size < smallest_claim)
			smallest_claim = t->size;
		if (result)
			return result;
	}
	if (t->kind == CLAIM_ONLY) {
		wharf_buf_abandon(&t->buf);
		return 0;
	}
	return send_parts((struct wharf_part[]){ { .buf = &t->buf }, { .bytes = bytes, .size = 1000 } },
		t->kind == BOTH ? 2 : 1, t->n_fds);
}

static void attempt(struct attempt *t)
{
	int result = try(t);

	cr_assert_eq(p.a.n_closed, 0, "%s", p.a.reason_text);
	if (result == -EAGAIN)
		refused[n_refused++] = *t;
	cr_assert(result == 0 || result == -EAGAIN, "%d: kind %d, %zu bytes, %u fds", result, (int)t->kind, t->size, t->n_fds);
}

static bool needs_claim(const struct attempt *t)
{
	return !t->buf.data && (t->kind == CLAIM || t->kind == BOTH || t->kind == CLAIM_ONLY);
}

static int by_size(const void *a, const void *b)
{
	const struct attempt *x = a, *y = b;

	return needs_claim(x) != needs_claim(y) ? needs_claim(y) - needs_claim(x) : (x->size > y->size) - (x->size < y->size);
}

/* The pool tells of the smallest claim, whatever has become of it. */
static bool claim_succeeds(void)
{
	struct wharf_buf buf = WHARF_BUF_EMPTY;
	bool succeeds = smallest_claim != SIZE_MAX &&
		wharf_buf_claim(wharf_port_pool(p.a.port), smallest_claim, &buf) == 0;

	wharf_buf_abandon(&buf);
	return succeeds;
}

static void on_writable(struct end *end)
{
	static struct attempt was[STEPS];
	unsigned n = n_refused, succeeded = 0;

	(void)end;
	cr_assert(n_refused > 0 || claim_succeeds(), "told without a refusal since the last time");
	n_told++;
	memcpy(was, refused, n * sizeof(*was));
	n_refused = 0;
	/* Claims move free memory to where they need it: those that were refused come first, and of them the smallest. */
	qsort(was, n, sizeof(*was), by_size);
	/* One at least succeeds; the first that does changes what there is for the others. */
	for (unsigned i = 0; i < n; i++) {
		bool claimed = was[i].buf.data;
		int result = try(&was[i]);
		cr_assert(result == 0 || result == -EAGAIN, "%d: kind %d, %zu bytes, %u fds", result, (int)was[i].kind, was[i].size, was[i].n_fds);
		succeeded += result == 0 || (was[i].buf.data && !claimed);
		if (result)
			refused[n_refused++] = was[i];
	}
	cr_assert(succeeded || claim_succeeds(), "told, and none of %u succeeds", n);
}

static void on_message(struct end *end, const struct wharf_msg *msg)
{
	(void)end;
	if (below(2))
		return;
	for (unsigned i = 0; i < KEPT; i++)
		if (!kept[i]) {
			kept[i] = wharf_msg_take(msg);
			return;
		}
}

static struct attempt any_attempt(void)
{
	static const size_t sizes[] = { 1, 100, 3000, 30000, 100000 };

	return (struct attempt){ .kind = (enum kind)below(n_streams ? KINDS : STREAM_PART),
		.stream = n_streams ? streams[below(n_streams)] : 0, .size = 1 + below(sizes[below(5)]),
		.n_fds = below(3) ? 0 : (unsigned)below(4) };
}

static void release_one(unsigned i)
{
	kept[i] = wharf_msg_release(kept[i]);
}

/* What waited for it waits no longer, and need not be told. */
static void abort_stream(void)
{
	uint64_t stream = streams[--n_streams];
	unsigned n = 0;

	cr_assert_eq(wharf_stream_abort(p.a.port, stream, 0), 0);
	for (unsigned i = 0; i < n_refused; i++)
		if (refused[i].kind != STREAM_PART || refused[i].stream != stream)
			refused[n++] = refused[i];
	n_refused = n;
}

static void some_step(void)
{
	struct attempt t;

	switch (below(12)) {
	case 0:
		wharf_port_pause(p.b.port);
		break;
	case 1:
		wharf_port_resume(p.b.port);
		break;
	case 2:
	case 3:
		release_one((unsigned)below(KEPT));
		break;
	case 4:
		cr_assert_geq(wharf_loop_step(p.loop_a, 0), 0);
		break;
	case 5:
		cr_assert_geq(wharf_loop_step(p.loop_b, 0), 0);
		break;
	case 6:
		if (n_streams && below(2))
			abort_stream();
		break;
	default:
		t = any_attempt();
		attempt(&t);
	}
}

static void run(const struct wharf_port_options *a, const struct wharf_port_options *b)
{
	unsigned n_all = 0;

	apart_open(&p, NULL, a, b);
	p.a.on_writable = on_writable;
	p.b.on_message = on_message;
	smallest_claim = SIZE_MAX;
	for (unsigned i = 0; i < STEPS; i++) {
		some_step();
		n_all += n_refused;
	}
	/* The reader does all it can: each refusal is answered, and nothing more comes. */
	wharf_port_resume(p.b.port);
	for (unsigned i = 0; i < 4000 && n_refused; i++) {
		/* Those that could begin now, too. */
		while (n_streams)
			abort_stream();
		release_one(i % KEPT);
		apart_settle(&p);
	}
	cr_assert_eq(n_refused, 0, "%u refusals are never told, one of kind %d", n_refused, (int)refused[0].kind);
	n_told = 0;
	for (unsigned i = 0; i < KEPT; i++)
		release_one(i);
	apart_settle(&p);
	cr_assert_eq(n_told, 0);
	cr_assert_gt(n_all, 0, "nothing was ever refused");
	n_streams = 0;
	apart_free(&p);
}

TestSuite(writable, .timeout = 120);

static void begin(void)
{
	r.state = harness_seed();
	a_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

Test(writable, comes_once_and_truly_whatever_is_full, .init = begin)
{
	run(WHARF_OPT(port, .tx_queued_bytes_max = 300000, .pool_bytes_max = 1 << 20), WHARF_OPT(port, .rx_fds_max = 4));
	run(WHARF_OPT(port, .tx_queued_bytes_max = 20000, .pool_bytes_max = 1 << 20, .tx_fds_max = 6),
		WHARF_OPT(port, .rx_fds_max = 4, .rx_streams_max = 2, .rx_stream_bytes_max = 100000));
	run(WHARF_OPT(port, .tx_lent_bytes_max = 150000, .tx_fds_max = 6), WHARF_OPT(port, .rx_fds_max = 4));
	run(WHARF_OPT(port, .tx_lent_bytes_max = 50000, .tx_queued_bytes_max = 100000, .tx_fds_max = 4,
		.pool_bytes_max = 256 << 10), WHARF_OPT(port, .rx_fds_max = 4, .rx_streams_max = 1));
}
