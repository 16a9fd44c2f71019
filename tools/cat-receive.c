/* SPDX-License-Identifier: MIT */
/* The receiving end: takes one sender, writes what comes straight from its memory, and checks that it is all there. */
#include "cat.h"

#include <errno.h>
#include <string.h>

static bool take_start(struct cat *c, const struct wharf_msg *msg)
{
	struct cat_start start;

	if (c->start_seen || msg->size != sizeof start)
		return false;
	wharf_msg_copy(msg, 0, &start, sizeof start);
	if (start.version != CAT_VERSION || start.checksum > 1)
		return false;
	c->start_seen = true;
	c->checksum_announced = start.checksum;
	c->progress.total = start.bytes;
	if (start.checksum && !cat_digest_on(&c->digest)) {
		int r = cat_digest_start(&c->digest);

		if (r < 0)
			cat_fail(c, (uint32_t)-r, "cannot compute a checksum: %s", strerror(-r));
	}
	return true;
}

static bool take_data(struct cat *c, const struct wharf_msg *msg)
{
	if (!c->start_seen || msg->size == 0 || msg->size > CAT_BLOCK_BYTES)
		return false;
	for (size_t i = 0; i < msg->n_slices; i++) {
		int r = cat_digest_update(&c->digest, msg->slices[i].data, msg->slices[i].size);

		if (r < 0) {
			cat_fail(c, (uint32_t)-r, "cannot compute a checksum: %s", strerror(-r));
			return true;
		}
	}
	cat_write(c, msg->slices, msg->n_slices);
	return true;
}

static void check_digest(struct cat *c, const struct cat_end *end)
{
	char ours[CAT_DIGEST_TEXT], theirs[CAT_DIGEST_TEXT];
	uint8_t digest[CAT_DIGEST_BYTES];
	int r;

	if (!cat_digest_on(&c->digest))
		return;
	r = cat_digest_finish(&c->digest, digest);
	if (r < 0) {
		cat_fail(c, (uint32_t)-r, "cannot compute a checksum: %s", strerror(-r));
		return;
	}
	cat_digest_text(digest, ours);
	if (c->checksum_announced && memcmp(digest, end->digest, sizeof digest) != 0)
		cat_fail(c, CAT_ABORT_DIGEST, "the checksum differs: sent sha256 %s, received %s",
			cat_digest_text(end->digest, theirs), ours);
	else if (c->options->checksum)
		cat_say(c, "sha256 %s%s", ours, c->checksum_announced ? "" : " (not compared: the sender announced none)");
}

static bool take_end(struct cat *c, const struct wharf_msg *msg)
{
	struct cat_end end;
	int r;

	if (!c->start_seen || c->done || msg->size != sizeof end)
		return false;
	wharf_msg_copy(msg, 0, &end, sizeof end);
	if (end.bytes != c->bytes)
		cat_fail(c, CAT_ABORT_LENGTH, "the length differs: %llu bytes were sent", (unsigned long long)end.bytes);
	check_digest(c, &end);
	if (!cat_close_written(c))
		return true;
	r = wharf_send_bytes(c->port, CAT_DONE, NULL, 0);
	if (r < 0)
		cat_fail(c, (uint32_t)-r, "cannot tell the sender that all arrived: %s", strerror(-r));
	else
		c->done = true;
	return true;
}

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct cat *c = user;
	bool understood = false;

	(void)port;
	if (cat_stopped(c))
		return;
	switch (msg->type) {
	case CAT_START:
		understood = take_start(c, msg);
		break;
	case CAT_DATA:
		understood = take_data(c, msg);
		break;
	case CAT_END:
		understood = take_end(c, msg);
		break;
	}
	if (!understood)
		cat_fail(c, CAT_ABORT_PROTOCOL, "the sender said what wharf-cat does not understand");
}

static void on_open(wharf_port *port, const struct wharf_peer *peer, void *user)
{
	struct cat *c = user;

	if (c->port) {
		wharf_port_abort(port, EBUSY);
		return;
	}
	c->port = port;
	c->listener = wharf_listener_close(c->listener);
	cat_on_open(port, peer, c);
}

static const struct wharf_port_ops port_ops = {
	.size = sizeof port_ops,
	.on_open = on_open,
	.on_message = on_message,
	.on_writable = cat_on_writable,
	.on_close = cat_on_close,
};

/*
 * Whoever connects is a candidate, and the first that says hello is the sender: others only look whether somebody
 * listens here, as a second listener does, and must neither end the transfer before it begins nor keep it waiting.
 */
static void on_accept(wharf_listener *listener, const struct wharf_peer *who, void *user)
{
	struct cat *c = user;
	int r;

	if (c->port || cat_stopped(c))
		return;
	if (!cat_user_accepted(c, who->uid)) {
		cat_say(c, "turned away a sender of user %u (--any-user to accept it)", who->uid);
		return;
	}
	r = wharf_accept(listener,
		WHARF_OPT(port, .ops = &port_ops, .user = c, .name = "wharf-cat", .rx_bytes_max = CAT_BLOCK_BYTES), NULL);
	if (r < 0)
		cat_fail(c, 0, "cannot accept a sender: %s", strerror(-r));
}

static void on_error(wharf_listener *listener, int error, void *user)
{
	struct cat *c = user;

	(void)listener;
	cat_fail(c, 0, "cannot accept a sender: %s", strerror(error));
}

static const struct wharf_listener_ops listener_ops = {
	.size = sizeof listener_ops,
	.on_accept = on_accept,
	.on_error = on_error,
};

static void listen_failed(struct cat *c, int error)
{
	const char *address = c->options->address;

	if (error == EADDRINUSE)
		cat_fail(c, 0, "%s: somebody listens there already", address);
	else if (error == EEXIST)
		cat_fail(c, 0, "%s: exists already, and is not a socket", address);
	else
		cat_fail(c, 0, "cannot listen on %s: %s", address, strerror(error));
}

static void await_sender(struct cat *c)
{
	bool for_ever = c->options->wait_ns < 0;
	uint64_t deadline_ns = for_ever ? UINT64_MAX : cat_now_ns() + (uint64_t)c->options->wait_ns;

	while (!c->port && !cat_stopped(c)) {
		uint64_t now_ns = cat_now_ns();

		if (now_ns >= deadline_ns)
			cat_fail(c, 0, "%s: no sender came", c->options->address);
		else
			cat_step(c, for_ever ? -1 : (int64_t)(deadline_ns - now_ns));
	}
}

int cat_receive(struct cat *c)
{
	const struct wharf_listener_options *options = WHARF_OPT(listener, .ops = &listener_ops, .user = c);
	int r;

	r = wharf_listen(c->loop, c->options->address, options, &c->listener);
	if (r < 0) {
		listen_failed(c, -r);
		return cat_finish(c);
	}
	/* Only now: another receiver on this address may be writing to the same file. */
	if (cat_open(c))
		await_sender(c);
	c->listener = wharf_listener_close(c->listener);
	while (!c->done && !cat_stopped(c))
		cat_step(c, -1);
	return cat_finish(c);
}
