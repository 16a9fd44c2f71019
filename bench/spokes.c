/* SPDX-License-Identifier: MIT */
/* Spokes: connecting, sending in turns, ending. */
#include "spokes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "loop.h"

enum {
	TYPE = 1,
	CLOSE_TIMEOUT_S = 30,
	AGAIN_NS = 1000000, /* the hub's backlog is full */
	/* The loop is looked after this often at least, as one port's sender does. */
	STEP_MESSAGES = 1024,
	STEP_BYTES = 1 << 20,
	FRAMES_MIN = 20, /* that may be unread of inline messages: a receiver reports a quarter of 64 at the latest */
};

/* ---- The queue ---- */

static void queue(struct spoke *spoke)
{
	struct spokes *spokes = spoke->all;

	if (spoke->queued || spoke->sent >= spokes->until || !spoke->port)
		return;
	spoke->queued = true;
	spoke->next = NULL;
	*spokes->end = spoke;
	spokes->end = &spoke->next;
}

static struct spoke *take_first(struct spokes *spokes)
{
	struct spoke *spoke = spokes->first;

	spokes->first = spoke->next;
	if (!spokes->first)
		spokes->end = &spokes->first;
	spoke->queued = false;
	return spoke;
}

/* ---- Sending ---- */

/* 0; -EAGAIN: no room; else told. */
static int send_one(struct spoke *spoke)
{
	struct spokes *spokes = spoke->all;
	const struct plan *plan = spokes->plan;
	int r;

	if (spokes->bytes) {
		touch_write(plan->touch, spokes->bytes, plan->size, spoke->sent);
		r = wharf_send_bytes(spoke->port, TYPE, spokes->bytes, plan->size);
	} else {
		if (!spoke->buf.data) {
			r = wharf_buf_claim(wharf_port_pool(spoke->port), plan->size, &spoke->buf);
			if (r == -EAGAIN)
				return r;
			if (r < 0)
				return outcome_fail(spokes->outcome, r, "wharf_buf_claim: %s", strerror(-r));
			touch_write(plan->touch, spoke->buf.data, plan->size, spoke->sent);
		}
		r = wharf_send_buf(spoke->port, TYPE, &spoke->buf);
	}
	if (r == 0)
		spoke->sent++;
	else if (r != -EAGAIN)
		outcome_fail(spokes->outcome, r, "send: %s", strerror(-r));
	return r;
}

/* What a socket holds of inline messages is bounded by a window of frames only: too much for ten thousand of them. */
static bool full_of_inline(const struct spoke *spoke)
{
	const struct spokes *spokes = spoke->all;
	struct wharf_port_stats stats = { .size = sizeof stats };

	if (!spokes->bytes || !spokes->plan->pool_bytes || wharf_port_stats(spoke->port, &stats) < 0)
		return false;
	return stats.tx_unread_frames >= FRAMES_MIN &&
		stats.tx_unread_frames * (stats.tx_bytes / (stats.tx_frames + 1)) >= spokes->plan->pool_bytes;
}

static int send_burst(struct spoke *spoke)
{
	struct spokes *spokes = spoke->all;
	uint64_t until = spokes->until - spoke->sent > spokes->burst ? spoke->sent + spokes->burst : spokes->until;
	uint64_t before = spoke->sent;
	int r = full_of_inline(spoke) ? -EAGAIN : 0;

	while (r == 0 && spoke->sent < until)
		r = send_one(spoke);
	spokes->n_since += spoke->sent - before;
	spokes->bytes_since += (spoke->sent - before) * spokes->plan->size;
	if (r < 0 && r != -EAGAIN)
		return r;
	if (spoke->sent == spokes->until)
		spokes->n_done++;
	/* One that waits for on_writable is queued by that. */
	if (r == 0 || !spokes->plan->block || spokes->bytes)
		queue(spoke);
	return 0;
}

int spokes_step(struct spokes *spokes, int64_t timeout_ns)
{
	spokes->n_since = spokes->bytes_since = 0;
	return loop_step(spokes->loop, spokes->outcome, timeout_ns);
}

int spokes_send(struct spokes *spokes, uint64_t until, const _Atomic uint32_t *stop)
{
	size_t fruitless = 0;
	int r = 0;

	spokes->until = until;
	spokes->n_done = 0;
	for (size_t i = 0; i < spokes->n; i++)
		queue(&spokes->spokes[i]);
	while (r == 0 && spokes->n_done < spokes->n && !(stop && *stop)) {
		if (spokes->n_closed)
			return outcome_fail(spokes->outcome, -EPIPE, "the hub closed early");
		if (spokes->first) {
			uint64_t before = spokes->first->sent;
			struct spoke *spoke = take_first(spokes);

			r = send_burst(spoke);
			fruitless = spoke->sent == before ? fruitless + 1 : 0;
		}
		if (r == 0 && !spokes->first)
			r = spokes_step(spokes, spokes->plan->spin ? 0 : -1);
		else if (r == 0 && (spokes->n_since >= STEP_MESSAGES || spokes->bytes_since >= STEP_BYTES ||
				fruitless >= spokes->n))
			r = spokes_step(spokes, 0);
	}
	return r;
}

/* ---- Life ---- */

static void on_open(wharf_port *port, const struct wharf_peer *peer, void *user)
{
	struct spoke *spoke = user;

	(void)port;
	(void)peer;
	spoke->all->n_open++;
}

static void on_writable(wharf_port *port, void *user)
{
	(void)port;
	queue(user);
}

static void on_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	struct spoke *spoke = user;
	struct spokes *spokes = spoke->all;

	(void)port;
	spoke->port = NULL;
	spokes->n_closed++;
	loop_check_close(reason, spokes->outcome, (size_t)(spoke - spokes->spokes), spokes->n);
}

static const struct wharf_port_ops port_ops = {
	.size = sizeof port_ops,
	.on_open = on_open,
	.on_writable = on_writable,
	.on_close = on_close,
};

int spokes_open(struct spokes *spokes, const struct plan *plan, struct outcome *outcome, size_t n, uint64_t burst)
{
	*spokes = (struct spokes){ .plan = plan, .outcome = outcome, .n = n, .burst = burst };
	spokes->end = &spokes->first;
	spokes->spokes = calloc(n, sizeof *spokes->spokes);
	if (plan->size <= plan->inline_max)
		spokes->bytes = malloc(plan->size);
	if (!spokes->spokes || (plan->size <= plan->inline_max && !spokes->bytes))
		return outcome_fail(outcome, -ENOMEM, "no memory");
	return loop_open(plan, outcome, &spokes->loop);
}

void spokes_close(struct spokes *spokes)
{
	for (size_t i = 0; spokes->spokes && i < spokes->n; i++)
		wharf_buf_abandon(&spokes->spokes[i].buf);
	spokes->loop = wharf_loop_free(spokes->loop);
	free(spokes->spokes);
	free(spokes->bytes);
}

static int connect_one(struct spokes *spokes, struct spoke *spoke, const char *address)
{
	const struct plan *plan = spokes->plan;

	spoke->all = spokes;
	return wharf_connect(spokes->loop, address, WHARF_OPT(port,
		.ops = &port_ops,
		.user = spoke,
		.name = "spoke",
		.pool_bytes_max = plan->pool_bytes,
		.tx_queued_bytes_max = plan->pool_bytes),
		&spoke->port);
}

int spokes_connect(struct spokes *spokes, const char *address)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < spokes->n;) {
		r = connect_one(spokes, &spokes->spokes[i], address);
		if (r == 0)
			i++;
		else if (r == -EBUSY)
			r = spokes_step(spokes, AGAIN_NS);
		else
			outcome_fail(spokes->outcome, r, "wharf_connect, after %zu ports: %s", i, strerror(-r));
	}
	while (r == 0 && spokes->n_open < spokes->n && !spokes->n_closed)
		r = spokes_step(spokes, -1);
	if (r == 0 && spokes->n_closed)
		r = outcome_fail(spokes->outcome, -EPIPE, "the hub closed early");
	return r;
}

int spokes_finish(struct spokes *spokes)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < spokes->n; i++) {
		if (!spokes->spokes[i].port)
			continue;
		r = wharf_port_close(spokes->spokes[i].port, CLOSE_TIMEOUT_S * INT64_C(1000000000));
		if (r == -EALREADY)
			r = 0;
		if (r < 0)
			outcome_fail(spokes->outcome, r, "wharf_port_close: %s", strerror(-r));
	}
	while (r == 0 && spokes->n_closed < spokes->n)
		r = spokes_step(spokes, -1);
	return r;
}

uint64_t spokes_sent(const struct spokes *spokes)
{
	uint64_t sent = 0;

	for (size_t i = 0; i < spokes->n; i++)
		sent += spokes->spokes[i].sent;
	return sent;
}
