/* SPDX-License-Identifier: MIT */
/*
 * Calls between two loops in two threads, both ways at once: cancelled, timed out, refused, delegated, their messages
 * released by a third thread, until each has had its one end. For ThreadSanitizer; seeded, but threads are not repeatable.
 */
#include <string.h>

#include "stress.h"

enum { IN_FLIGHT = 200 };

static unsigned n_calls_each = 20000;
static atomic_ullong n_begun, n_ended, n_answered, n_cancelled, n_late, n_delegated, n_wrong;

/* ---- Messages that are released elsewhere ---- */

static void *release(void *arg)
{
	while (!atomic_load(&done))
		release_taken();
	return arg;
}

/* ---- One side ---- */

struct side;

struct call {
	struct side *side;
	wharf_call_id id;
	unsigned n_replies, n_ended;
	bool used, cancelled;
};

struct side {
	wharf_loop *loop;
	wharf_port *port;
	uint64_t random;
	unsigned n_begun, n_open;
	bool refused, closing;
	struct call calls[IN_FLIGHT];
	int fd;
};

static uint64_t below(struct side *side, uint64_t n) { return next_random(&side->random) % n; }

static void begin_calls(struct side *side);

static void on_reply(wharf_port *port, wharf_call_id id, const struct wharf_msg *msg, void *user)
{
	struct call *call = user;
	struct side *side = call->side;

	call->n_replies++;
	atomic_fetch_add(&n_wrong, call->cancelled || call->id != id || call->n_ended);
	if (below(side, 4) == 0)
		take_for_others(msg, &side->random);
	if (below(side, 20) == 0 && wharf_call_cancel(port, id) == 0)
		call->cancelled = true;
}

static void on_end(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user)
{
	struct call *call = user;
	struct side *side = call->side;
	bool wrong = call->id != id || call->n_ended++ || call->cancelled != (end->reason == WHARF_END_CANCEL);

	(void)port;
	wrong |= end->reason == WHARF_END_LAST && (call->n_replies != 2 || end->status != 7);
	wrong |= end->reason == WHARF_END_PEER_GONE || end->reason == WHARF_END_ERROR;
	atomic_fetch_add(&n_wrong, wrong);
	atomic_fetch_add(&n_ended, 1);
	atomic_fetch_add(&n_answered, end->reason == WHARF_END_LAST);
	atomic_fetch_add(&n_cancelled, end->reason == WHARF_END_CANCEL);
	atomic_fetch_add(&n_late, end->reason == WHARF_END_DEADLINE);
	call->used = false;
	side->n_open--;
	begin_calls(side);
}

/* A part of the port's memory, or NULL. */
static struct wharf_part *any_part(struct side *side, struct wharf_buf *buf, struct wharf_part *part)
{
	static const char text[64];

	*part = (struct wharf_part){ .bytes = text, .size = below(side, sizeof(text)) };
	if (below(side, 2) && wharf_buf_claim(wharf_port_pool(side->port), 1 + below(side, 20000), buf) == 0)
		*part = (struct wharf_part){ .buf = buf };
	return part;
}

static bool begin_call(struct side *side, struct call *call)
{
	struct wharf_buf buf = WHARF_BUF_EMPTY;
	struct wharf_part part;
	struct wharf_out out = {
		.flags = below(side, 4) ? WHARF_LAST : 0, .parts = any_part(side, &buf, &part), .n_parts = 1
	};
	uint32_t delegate = below(side, 50) == 0;

	*call = (struct call){ .side = side, .used = true };
	if (wharf_call(side->port, &out,
		    WHARF_OPT(call, .on_reply = on_reply, .on_end = on_end, .user = call, .delegate = delegate,
			    .timeout_ns = below(side, 10) ? 0 : (int64_t)below(side, 1000000) + 1),
		    &call->id) < 0) {
		call->used = false;
		wharf_buf_abandon(&buf);
		return false;
	}
	atomic_fetch_add(&n_begun, 1);
	atomic_fetch_add(&n_delegated, delegate);
	side->n_begun++;
	side->n_open++;
	if (below(side, 10) == 0 && wharf_call_cancel(side->port, call->id) == 0)
		call->cancelled = true;
	return true;
}

static void begin_calls(struct side *side)
{
	for (unsigned i = 0; i < IN_FLIGHT && side->n_begun < n_calls_each; i++)
		if (!side->calls[i].used && !begin_call(side, &side->calls[i]))
			return;
	if (side->n_begun == n_calls_each && !side->n_open && !side->closing && side->port) {
		side->closing = true;
		(void)wharf_port_close(side->port, -1);
	}
}

static void answer(struct side *side, wharf_port *port, wharf_call_id id)
{
	struct wharf_buf buf = WHARF_BUF_EMPTY;
	struct wharf_part part = { 0 };
	struct wharf_out out = { .parts = &part, .n_parts = 1 };

	if (below(side, 10) == 0) {
		(void)wharf_call_refuse(port, id, 1);
		return;
	}
	if (port == side->port)
		any_part(side, &buf, &part);
	if (wharf_reply(port, id, &out, 0) < 0) {
		wharf_buf_abandon(&buf);
		(void)wharf_call_refuse(port, id, 2);
		return;
	}
	if (wharf_reply(port, id, &(struct wharf_out){ .flags = WHARF_LAST }, 7) < 0)
		(void)wharf_call_refuse(port, id, 3);
}

static const struct wharf_port_ops adopter_ops = { .size = sizeof(adopter_ops) };

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct side *side = user;
	wharf_port *answers;
	wharf_call_id id;

	if (below(side, 4) == 0)
		take_for_others(msg, &side->random);
	if (msg->flags & WHARF_MSG_DELEGATED) {
		int fd = wharf_msg_take_fd(msg, 0);
		if (fd >= 0 && wharf_open(side->loop, fd, WHARF_OPT(port, .ops = &adopter_ops), &answers) == 0) {
			if (wharf_call_adopt(answers, WHARF_OPT(answer, .user = NULL), &id) == 0)
				answer(side, answers, id);
			else
				atomic_fetch_add(&n_wrong, 1);
		}
	} else if (below(side, 20)) {
		if (wharf_call_take(port, msg, WHARF_OPT(answer, .user = NULL), &id) == 0)
			answer(side, port, id);
	}
}

static void on_writable(wharf_port *port, void *user)
{
	(void)port;
	begin_calls(user);
}

static void on_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	struct side *side = user;

	(void)port;
	atomic_fetch_add(&n_wrong, reason->code != WHARF_CLOSE_LOCAL && reason->code != WHARF_CLOSE_PEER);
	side->port = NULL;
}

static const struct wharf_port_ops ops = {
	.size = sizeof(ops),
	.on_message = on_message,
	.on_writable = on_writable,
	.on_close = on_close,
};

static void *run(void *arg)
{
	struct side *side = arg;
	bool failed = wharf_loop_new(NULL, &side->loop) < 0 ||
		wharf_open(side->loop, side->fd, WHARF_OPT(port, .ops = &ops, .user = side, .rx_calls_max = 150),
			&side->port) < 0;

	if (failed) {
		atomic_fetch_add(&n_wrong, 1);
		return NULL;
	}
	begin_calls(side);
	atomic_fetch_add(&n_wrong, wharf_loop_run(side->loop) < 0);
	/* What was taken lies in the peer's memory, and refers to this loop's port. */
	wharf_loop_free(side->loop);
	return NULL;
}

int main(int argc, char **argv)
{
	static struct side sides[2];
	pthread_t threads[3];
	int fds[2];
	bool good;

	if (argc > 1)
		n_calls_each = (unsigned)strtoul(argv[1], NULL, 0);
	seed_begin(NULL, 0x63616c6c);
	if (wharf_pair(fds) < 0)
		return 1;
	pthread_create(&threads[2], NULL, release, NULL);
	for (unsigned i = 0; i < 2; i++) {
		sides[i].random = seed + i;
		sides[i].fd = fds[i];
		pthread_create(&threads[i], NULL, run, &sides[i]);
	}
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
	atomic_store(&done, true);
	pthread_join(threads[2], NULL);
	release_taken();
	fprintf(stderr, "%llu calls, %llu answered, %llu cancelled, %llu late, %llu delegated; %llu wrong\n", n_begun,
		n_answered, n_cancelled, n_late, n_delegated, n_wrong);
	good = n_begun && n_begun == n_ended && n_answered && n_cancelled && n_delegated && !n_wrong;
	printf("%d passed, %d failed, 0 skipped\n", good, !good);
	return !good;
}
