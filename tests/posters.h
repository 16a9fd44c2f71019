/* SPDX-License-Identifier: MIT */
/* Threads that post a message each, and messages for them. */
#ifndef POSTERS_H
#define POSTERS_H

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>

#include "pair.h"
#include "port.h"

struct poster {
	wharf_port *port;
	struct wharf_out out;
	struct wharf_part part;
	int64_t timeout_ns;
	int result;
	pthread_t thread;
};

static inline void *post_once(void *arg)
{
	struct poster *poster = arg;

	poster->result = wharf_post(poster->port, &poster->out, poster->timeout_ns);
	wharf_port_unref(poster->port);
	return NULL;
}

static inline void start(struct poster *poster, wharf_port *port, const struct wharf_out *out, int64_t timeout_ns)
{
	*poster = (struct poster){ .port = wharf_port_ref(port), .out = *out, .timeout_ns = timeout_ns, .result = 1 };
	/* One part outlives the caller's block. */
	if (out->n_parts == 1) {
		poster->part = out->parts[0];
		poster->out.parts = &poster->part;
	}
	cr_assert_eq(pthread_create(&poster->thread, NULL, post_once, poster), 0);
}

static inline int result(struct poster *poster)
{
	cr_assert_eq(pthread_join(poster->thread, NULL), 0);
	return poster->result;
}

/* From a thread that is no loop's. */
static inline int post_elsewhere(wharf_port *port, const struct wharf_out *out, int64_t timeout_ns)
{
	struct poster poster;

	start(&poster, port, out, timeout_ns);
	return result(&poster);
}

static inline size_t n_waiting(wharf_port *port)
{
	size_t n = 0;

	pthread_mutex_lock(&port->posting.lock);
	for (const struct wh_list *i = port->posting.waiters.next; i != &port->posting.waiters; i = i->next)
		n++;
	pthread_mutex_unlock(&port->posting.lock);
	return n;
}

static inline void until_waiting(wharf_port *port, size_t n)
{
	while (n_waiting(port) != n)
		sched_yield();
}

static const char filler[65536];

/* One part of bytes. */
#define MESSAGE(number, n_bytes) \
	(&(struct wharf_out){ \
		.type = (number), .parts = &(struct wharf_part){ .bytes = filler, .size = (n_bytes) }, .n_parts = 1 })

static inline void seen_in_order(const struct end *end, size_t n)
{
	cr_assert_eq(end->n_messages, n, "%zu", end->n_messages);
	for (size_t i = 0; i < n && i < END_MESSAGES_MAX; i++)
		cr_assert_eq(end->seen[i].type, i);
}

/* Until it is refused; returns how many were not. */
static inline uint32_t fill(wharf_port *port, size_t size)
{
	uint32_t n = 0;
	int e;

	while (!(e = wharf_post(port, MESSAGE(n, size), 0)))
		n++;
	cr_assert_eq(e, -EAGAIN);
	return n;
}

#endif
