/* SPDX-License-Identifier: MIT */
/* What tests of calls share: two sides that write down what they are told, and check that it comes in order. */
#ifndef CALLS_H
#define CALLS_H

#include <criterion/criterion.h>
#include <string.h>

#include "pair.h"

struct side {
	wharf_port *port;
	wharf_call_id id;
	unsigned n_messages, n_writable, n_ended;
	uint64_t n_bytes;
	uint32_t flags;
	struct wharf_end end;
	/* Called besides, if set. */
	void (*on_message)(struct side *side, const struct wharf_msg *msg);
	void (*on_writable)(struct side *side);
	void (*on_end)(struct side *side);
	void *user;
};

static inline void side_on_message(wharf_port *port, wharf_call_id id, const struct wharf_msg *msg, void *user)
{
	struct side *side = user;

	cr_assert_eq(port, side->port);
	cr_assert_eq(id, side->id);
	cr_assert_eq(msg->call, id);
	cr_assert_eq(side->n_ended, 0, "a message behind the end");
	side->n_messages++;
	side->n_bytes += msg->size;
	side->flags = msg->flags;
	if (side->on_message)
		side->on_message(side, msg);
}

static inline void side_on_writable(wharf_port *port, wharf_call_id id, void *user)
{
	struct side *side = user;

	cr_assert(port == side->port && id == side->id);
	cr_assert_eq(side->n_ended, 0, "writable behind the end");
	side->n_writable++;
	if (side->on_writable)
		side->on_writable(side);
}

static inline void side_on_end(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user)
{
	struct side *side = user;

	cr_assert(port == side->port && id == side->id);
	cr_assert_eq(side->n_ended, 0, "a second end");
	side->n_ended++;
	side->end = *end;
	if (side->on_end)
		side->on_end(side);
}

static inline int side_call(struct side *side, wharf_port *port, const struct wharf_out *out, int64_t timeout_ns)
{
	side->port = port;
	return wharf_call(port, out,
		WHARF_OPT(call, .on_reply = side_on_message, .on_writable = side_on_writable, .on_end = side_on_end,
			.user = side, .timeout_ns = timeout_ns),
		&side->id);
}

static inline int side_take(struct side *side, wharf_port *port, const struct wharf_msg *msg)
{
	side->port = port;
	return wharf_call_take(port, msg,
		WHARF_OPT(answer, .on_message = side_on_message, .on_writable = side_on_writable,
			.on_end = side_on_end, .user = side),
		&side->id);
}

/* Bytes of the caller's, valid until the next such call. */
static inline struct wharf_out *side_bytes(const void *bytes, size_t size, uint32_t flags)
{
	static struct wharf_part part;
	static struct wharf_out out;

	part = (struct wharf_part){ .bytes = bytes, .size = size };
	out = (struct wharf_out){ .type = 1, .flags = flags, .parts = &part, .n_parts = 1 };
	return &out;
}

static inline struct wharf_out *side_text(const char *text, uint32_t flags)
{
	return side_bytes(text, strlen(text), flags);
}

#endif
