/* SPDX-License-Identifier: MIT */
/* The pair: see pair.h. */
#include "pair.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static void on_open(wharf_port *port, const struct wharf_peer *peer, void *user)
{
	struct end *end = user;

	(void)port;
	end->n_open++;
	end->peer = *peer;
}

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct end *end = user;

	cr_assert_eq(port, end->port);
	if (end->n_messages < END_MESSAGES_MAX) {
		struct seen *s = &end->seen[end->n_messages];
		*s = (struct seen){ .type = msg->type, .flags = msg->flags, .size = msg->size, .n_slices = msg->n_slices,
			.n_fds = msg->n_fds, .at = msg->n_slices ? msg->slices[0].data : NULL,
			.stream = msg->stream, .total = msg->total_bytes, .position = msg->position_bytes };
		s->copied = wharf_msg_copy(msg, 0, s->bytes, sizeof(s->bytes));
	}
	end->n_messages++;
	end->n_bytes += msg->size;
	if (end->on_message)
		end->on_message(end, msg);
}

static void on_writable(wharf_port *port, void *user)
{
	struct end *end = user;

	(void)port;
	end->n_writable++;
	if (end->on_writable)
		end->on_writable(end);
}

static void on_stream_abort(wharf_port *port, uint64_t stream, uint32_t why, uint32_t app_code, void *user)
{
	struct end *end = user;

	cr_assert_eq(port, end->port);
	end->n_aborted++;
	end->aborted.stream = stream;
	end->aborted.why = why;
	end->aborted.app_code = app_code;
	if (end->on_stream_abort)
		end->on_stream_abort(end);
}

static void on_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	struct end *end = user;

	cr_assert_eq(port, end->port);
	cr_assert_not_null(reason->text);
	end->n_closed++;
	end->reason = *reason;
	end->peer_at_end = *reason->peer;
	snprintf(end->reason_text, sizeof(end->reason_text), "%s", reason->text);
	if (end->on_close)
		end->on_close(end);
	end->port = NULL;
}

const struct wharf_port_ops end_ops = {
	.size = sizeof(end_ops),
	.on_open = on_open,
	.on_message = on_message,
	.on_writable = on_writable,
	.on_stream_abort = on_stream_abort,
	.on_close = on_close,
};

static void open_end(struct pair *pair, struct end *end, int fd, const struct wharf_port_options *options)
{
	struct wharf_port_options o;

	WHARF_INIT(&o);
	if (options)
		o = *options;
	o.ops = &end_ops;
	o.user = end;
	end->pair = pair;
	cr_assert_eq(wharf_open(pair->loop, fd, &o, &end->port), 0);
}

void pair_start(struct pair *ret_pair, const struct wharf_port_options *a_options, const struct wharf_port_options *b_options)
{
	int fds[2];

	*ret_pair = (struct pair){ 0 };
	cr_assert_eq(wharf_loop_new(NULL, &ret_pair->loop), 0);
	cr_assert_eq(wharf_pair(fds), 0);
	open_end(ret_pair, &ret_pair->a, fds[0], a_options);
	open_end(ret_pair, &ret_pair->b, fds[1], b_options);
}

void pair_open(struct pair *ret_pair, const struct wharf_port_options *a_options, const struct wharf_port_options *b_options)
{
	pair_start(ret_pair, a_options, b_options);
	settle(ret_pair->loop);
	cr_assert_eq(ret_pair->a.n_open, 1);
	cr_assert_eq(ret_pair->b.n_open, 1);
}

int pair_open_half(struct pair *ret_pair, const struct wharf_port_options *a_options)
{
	int fds[2];

	*ret_pair = (struct pair){ 0 };
	cr_assert_eq(wharf_loop_new(NULL, &ret_pair->loop), 0);
	cr_assert_eq(wharf_pair(fds), 0);
	open_end(ret_pair, &ret_pair->a, fds[0], a_options);
	settle(ret_pair->loop);
	return fds[1];
}

void pair_free(struct pair *pair)
{
	pair->loop = wharf_loop_free(pair->loop);
	cr_assert_null(pair->loop);
}

void need_frames_to_wait_for_turns(void)
{
	wharf_loop *loop;
	bool wait;

	cr_assert_eq(wharf_loop_new(NULL, &loop), 0);
	wait = strcmp(wharf_loop_engine(loop), "io_uring (no deferred work)");
	wharf_loop_free(loop);
	if (!wait)
		cr_skip_test("io_uring without deferred work receives whenever the kernel is entered");
}

void settle(wharf_loop *loop)
{
	int quiet = 0;

	/* Two turns without work: the answer to what the last one sent arrives within the next. */
	for (int i = 0; i < 100000 && quiet < 3; i++) {
		int more = wharf_loop_step(loop, 0);
		cr_assert_geq(more, 0, "step: %d", more);
		quiet = more ? 0 : quiet + 1;
	}
	cr_assert_eq(quiet, 3, "the loop never comes to rest");
}

void settle_until(wharf_loop *loop, const unsigned *condition, unsigned least)
{
	struct timespec start, now;

	clock_gettime(CLOCK_MONOTONIC, &start);
	while (*condition < least) {
		cr_assert_geq(wharf_loop_step(loop, 10000000), 0);
		clock_gettime(CLOCK_MONOTONIC, &now);
		cr_assert_lt(now.tv_sec - start.tv_sec, 5, "waited too long");
	}
}

size_t n_counted;

void *counting_alloc(size_t bytes, void *user)
{
	(void)user;
	n_counted++;
	return malloc(bytes);
}

void counting_free(void *memory, void *user)
{
	(void)user;
	if (memory)
		n_counted--;
	free(memory);
}

struct wharf_msg *taken_first;

void take_first(struct end *end, const struct wharf_msg *msg)
{
	(void)end;
	if (taken_first)
		return;
	taken_first = wharf_msg_take(msg);
	cr_assert_not_null(taken_first);
}
