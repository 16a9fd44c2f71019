/* SPDX-License-Identifier: MIT */
/* Messages that any thread posts to a port: see post_message.h. */
#include "post_message.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "latest.h"
#include "outbox.h"
#include "sleep.h"

/* From malloc: the loop's own memory is its thread's alone. With a reference to the port once it is accepted. */
struct posted {
	struct wh_post post;
	struct wharf_port *port;
	struct wh_outmsg m; /* what belongs to it follows */
};
static_assert(
	offsetof(struct posted, m) + sizeof(struct wh_outmsg) == sizeof(struct posted), "nothing between the two");

/* Lies on the stack of its thread. */
struct waiter {
	struct wh_list link;
	pthread_cond_t over;
	struct posted *posted;
	int result; /* WAITING, or what becomes of it */
};
enum { WAITING = 1 };

void wh_posting_init(struct wharf_port *port)
{
	struct wh_posting *p = &port->posting;

	p->pool = (uint64_t)(uintptr_t)wh_lease_pool(port->lease);
	p->message_bytes_max = UINT64_MAX;
	p->fds_max = port->tx_fds_max;
	pthread_mutex_init(&p->lock, NULL);
	wh_list_init(&p->waiters);
}

void wh_posting_fini(struct wharf_port *port) { pthread_mutex_destroy(&port->posting.lock); }

/* ---- On the loop's thread ---- */

void wh_posting_free(struct wh_outmsg *m) { free(wh_container_of(m, struct posted, m)); }

void wh_posting_left(struct wharf_port *port, const struct wh_outmsg *m)
{
	port->posting.left_cost += m->cost;
	port->posting.left_fds += m->n_fds;
}

static void dropped_late(struct wharf_port *port, struct wh_outmsg *m)
{
	wh_outmsg_drop(port, m);
	if (port->state != WH_PORT_CLOSED)
		return;
	/* Nothing else holds the port any more, perhaps: what is due is done here. */
	wh_port_run_done(port);
	if (wh_list_linked(&port->chores))
		wh_list_remove(&port->chores);
}

static void arrived(struct wh_post *post, int status)
{
	struct posted *posted = wh_container_of(post, struct posted, post);
	struct wharf_port *port = posted->port;
	struct wh_outmsg *m = &posted->m;
	uint64_t bytes = m->left_bytes;
	bool encoded = false;

	port->tx_fds_queued += m->n_fds;
	if (port->said_hello && !wh_port_peer_takes(port, bytes, m->n_fds))
		wh_port_exceeded(port);
	if (port->state < WH_PORT_ENDING) {
		m->lent_bytes = wh_outmsg_lends(port, m);
		if (m->is_value)
			wh_latest_look(port);
	}
	if (!status)
		encoded = wh_port_encode_posted(port, m);
	/* An end of the port until here counts it among these, a later one among what is queued. */
	atomic_fetch_sub_explicit(&port->posting.n_messages, 1, memory_order_relaxed);
	atomic_fetch_sub_explicit(&port->posting.n_bytes, bytes, memory_order_relaxed);
	if (encoded) {
		wh_outmsg_finish(port, m);
		wh_port_dirty(port); /* settles */
		if (port->open && port->open->n_bytes >= port->flush_bytes)
			wh_outbox_turn_over(port);
	} else if (port->state >= WH_PORT_ENDING) {
		dropped_late(port, m);
	} else if (m->is_value) {
		wh_latest_put(port, m);
	} else {
		wh_outflow_append(&port->plain, m);
	}
	wharf_port_unref(port);
}

static bool fits(const struct wharf_port *port, uint64_t cost, uint32_t n_fds)
{
	const struct wh_posting *p = &port->posting;

	/* An empty queue takes one of any size. */
	return !p->cost ||
		(cost <= port->tx_queued_bytes_max && p->cost <= port->tx_queued_bytes_max - cost &&
			p->n_fds + n_fds <= port->tx_fds_max);
}

/* What no waiting cures. */
static int check(const struct wh_posting *p, const struct wh_outmsg *m)
{
	if (p->shut)
		return -EPIPE;
	return m->left_bytes > p->message_bytes_max || m->n_fds > p->fds_max ? -EMSGSIZE : 0;
}

/* Under the lock. From success on it is the loop's, and may be gone already. */
static int accept_posted(struct wharf_port *port, struct posted *posted)
{
	struct wh_posting *p = &port->posting;
	uint64_t bytes = posted->m.left_bytes, cost = posted->m.cost;
	uint32_t n_fds = posted->m.n_fds;
	int error = check(p, &posted->m);

	if (error)
		return error;
	p->cost += cost;
	p->n_fds += n_fds;
	atomic_fetch_add_explicit(&p->n_messages, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&p->n_bytes, bytes, memory_order_relaxed);
	wharf_port_ref(port);
	error = wh_loop_post(port->source.loop, &posted->post);
	if (!error)
		return 0;
	p->cost -= cost;
	p->n_fds -= n_fds;
	atomic_fetch_sub_explicit(&p->n_messages, 1, memory_order_relaxed);
	atomic_fetch_sub_explicit(&p->n_bytes, bytes, memory_order_relaxed);
	wharf_port_unref(port); /* never the last: the caller has one */
	return error;
}

/* Under the lock. Whoever came first goes first: a large one must not wait until no small one comes any more. */
static void serve_waiters(struct wharf_port *port)
{
	struct wh_posting *p = &port->posting;

	while (!wh_list_empty(&p->waiters)) {
		struct waiter *w = wh_container_of(p->waiters.next, struct waiter, link);
		if (!p->shut && !fits(port, w->posted->m.cost, w->posted->m.n_fds))
			return;
		wh_list_remove(&w->link);
		w->result = accept_posted(port, w->posted);
		pthread_cond_signal(&w->over);
	}
}

/* Under the lock. One of those that were refused would succeed. */
static bool unblocked(const struct wharf_port *port)
{
	const struct wh_posting *p = &port->posting;

	return p->refused && wh_list_empty(&p->waiters) &&
		(fits(port, p->refused_cost.cost, p->refused_cost.n_fds) ||
			fits(port, p->refused_fds.cost, p->refused_fds.n_fds));
}

void wh_posting_look(struct wharf_port *port)
{
	struct wh_posting *p = &port->posting;

	/* Who waited has heard of the end. Only this thread sets it. */
	if (p->shut)
		return;
	pthread_mutex_lock(&p->lock);
	p->cost -= p->left_cost;
	p->n_fds -= p->left_fds;
	serve_waiters(port);
	if (unblocked(port)) {
		p->refused = false;
		p->writable = true;
	}
	pthread_mutex_unlock(&p->lock);
	p->left_cost = 0;
	p->left_fds = 0;
	if (p->writable)
		wh_port_chore(port);
}

void wh_posting_settle(struct wharf_port *port)
{
	if (wh_unlikely(port->posting.left_cost))
		wh_posting_look(port);
}

void wh_posting_limit(struct wharf_port *port)
{
	struct wh_posting *p = &port->posting;

	pthread_mutex_lock(&p->lock);
	p->message_bytes_max = port->tx_message_bytes_max;
	p->fds_max = (uint32_t)wh_min(port->tx_fds_max, port->peer.fds_max);
	pthread_mutex_unlock(&p->lock);
}

void wh_posting_shut(struct wharf_port *port)
{
	struct wh_posting *p = &port->posting;

	pthread_mutex_lock(&p->lock);
	p->shut = true;
	serve_waiters(port);
	pthread_mutex_unlock(&p->lock);
}

/* ---- On any thread ---- */

/* Under the lock. */
static void remember_refused(struct wh_posting *p, const struct wh_outmsg *m)
{
	const struct wh_posting_demand demand = { .cost = m->cost, .n_fds = m->n_fds };

	if (!p->refused || demand.cost < p->refused_cost.cost)
		p->refused_cost = demand;
	if (!p->refused || demand.n_fds < p->refused_fds.n_fds)
		p->refused_fds = demand;
	p->refused = true;
}

/* Under the lock. 0: it may be accepted now. */
static int look(struct wharf_port *port, const struct wh_outmsg *m)
{
	struct wh_posting *p = &port->posting;
	int error = check(p, m);

	if (error)
		return error;
	return wh_list_empty(&p->waiters) && fits(port, m->cost, m->n_fds) ? 0 : -EAGAIN;
}

/* Under the lock. */
static int wait_for_room(struct wharf_port *port, struct posted *posted, int64_t timeout_ns)
{
	struct wh_posting *p = &port->posting;
	struct waiter w = { .posted = posted, .result = WAITING };
	struct timespec deadline;
	bool has_deadline = wh_sleep_until(timeout_ns, &deadline);
	pthread_condattr_t attributes;
	int error = 0;

	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&w.over, &attributes);
	pthread_condattr_destroy(&attributes);
	wh_list_init(&w.link);
	wh_list_append(&p->waiters, &w.link);
	while (w.result == WAITING && error != ETIMEDOUT)
		error = has_deadline ? pthread_cond_timedwait(&w.over, &p->lock, &deadline)
				     : pthread_cond_wait(&w.over, &p->lock);
	if (w.result == WAITING) {
		w.result = -ETIMEDOUT;
		wh_list_remove(&w.link);
		/* It may have stood before some that fit, and before some that were refused and fit. */
		serve_waiters(port);
		if (unblocked(port))
			wh_port_kick(port, WH_KICK_POSTS);
	}
	pthread_cond_destroy(&w.over);
	return w.result;
}

/* What would be refused is refused before anything is copied. */
static int look_first(struct wharf_port *port, const struct wh_outmsg *m, int64_t timeout_ns)
{
	struct wh_posting *p = &port->posting;
	int error;

	pthread_mutex_lock(&p->lock);
	error = look(port, m);
	if (error == -EAGAIN && timeout_ns)
		error = 0;
	if (error == -EAGAIN)
		remember_refused(p, m);
	pthread_mutex_unlock(&p->lock);
	return error;
}

static int hand_over(struct wharf_port *port, struct posted *posted, int64_t timeout_ns)
{
	struct wh_posting *p = &port->posting;
	int error;

	pthread_mutex_lock(&p->lock);
	error = look(port, &posted->m);
	if (!error)
		error = accept_posted(port, posted);
	else if (error == -EAGAIN && timeout_ns)
		error = wait_for_room(port, posted, timeout_ns);
	else if (error == -EAGAIN)
		remember_refused(p, &posted->m);
	pthread_mutex_unlock(&p->lock);
	return error;
}

static struct posted *keep(struct wharf_port *port, const struct wh_outmsg *m)
{
	struct posted *posted = malloc(offsetof(struct posted, m) + wh_outmsg_bytes(m));

	if (!posted)
		return NULL;
	posted->post.run = arrived;
	posted->port = port;
	wh_outmsg_copy(m, &posted->m);
	return posted;
}

int wharf_post(wharf_port *port, const struct wharf_out *out, int64_t timeout_ns)
{
	struct wh_outmsg m = { .first = true, .last = true, .posted = true };
	struct wh_outmsg_room room;
	struct posted *posted;
	int error;

	if (wh_forked())
		return -ECHILD;
	if (!port || !out || out->flags & ~(uint32_t)WHARF_FDS_MOVE)
		return -EINVAL;
	m.is_value = port->policy == WHARF_POLICY_KEEP_LATEST;
	m.key = out->key;
	if (m.key && !m.is_value)
		return -EINVAL;
	if (timeout_ns && wh_current_loop)
		return -EDEADLK;
	m.flow = &port->plain;
	error = wh_outmsg_read(port->posting.pool, out, &m, &room);
	if (error)
		return error;
	if (out->n_fds > WH_ENGINE_FDS_MAX)
		return -EMSGSIZE;
	m.total_bytes = m.left_bytes;
	m.cost = wh_outmsg_cost(&m);
	error = look_first(port, &m, timeout_ns);
	if (!error)
		error = wh_fds_take(out, room.fds);
	if (error)
		return error;
	m.close_fds = true;
	posted = keep(port, &m);
	error = posted ? hand_over(port, posted, timeout_ns) : -ENOMEM;
	if (error) {
		if (!(out->flags & WHARF_FDS_MOVE))
			wh_fds_close(room.fds, out->n_fds);
		free(posted);
		return error;
	}
	wh_out_empty(out);
	return 0;
}

int wharf_post_buf(wharf_port *port, uint32_t type, struct wharf_buf *buf, int64_t timeout_ns)
{
	struct wharf_part part = { .buf = buf };
	struct wharf_out out = { .type = type, .parts = &part, .n_parts = 1 };

	return wharf_post(port, buf ? &out : NULL, timeout_ns);
}
