/* SPDX-License-Identifier: MIT */
/* The first frame in each direction: who we are, what we take. Nothing else leaves before the peer's. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "connect.h"
#include "outbox.h"
#include "pass.h"
#include "watch.h"
#include "who.h"

enum {
	FEATURES = WH_FEATURE_HUGE | WH_FEATURE_PIECES, /* optional parts of the protocol that this library has */
	FEATURES_REQUIRED = 0, /* and cannot do without */
	OVERFLOW_UID = 65534,
};

void wh_port_hello_init(struct wharf_port *port, const struct wharf_port_options *o)
{
	port->hello = (struct wh_hello){
		.version_min = WH_WIRE_VERSION,
		.version_max = WH_WIRE_VERSION,
		.features = (port->maps_huge ? WH_FEATURE_HUGE : 0) | (port->pieces ? WH_FEATURE_PIECES : 0),
		.features_required = FEATURES_REQUIRED,
		.frame_bytes_max = port->source.loop->frame_bytes_max,
		.fds_max = o->rx_fds_max,
		.segments_max = WH_SLOTS_MAX,
		.mapped_bytes_max = o->rx_mapped_bytes_max,
		.message_bytes_max = port->limits.message_bytes_max,
		.streams_max = o->rx_streams_max,
		.calls_max = o->rx_calls_max,
		.stream_credit_bytes = o->rx_stream_bytes_max,
		.window_frames = port->window,
	};
	wh_wire_text(port->hello.name, sizeof(port->hello.name), o->name ? o->name : program_invocation_short_name);
}

void wh_port_start(struct wharf_port *port)
{
	struct wharf_loop *loop = port->source.loop;
	int fd = port->source.link.fd, flags = fcntl(fd, F_GETFL);

	/* A parked receive needs a descriptor that may wait. */
	if (flags & O_NONBLOCK)
		fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
	wh_end_mark(fd);
	/* Not before it is connected: the kernel would give it an address of its own. */
	setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &(int){ 1 }, sizeof(int));
	wh_engine_receive(loop->engine, &port->source.link);
	wh_port_dirty(port);
	if (port->open_timeout_ns > 0 && port->state == WH_PORT_OPENING)
		wh_loop_set_deadline(loop, &port->deadline, (uint64_t)port->open_timeout_ns);
}

bool wh_port_say_hello(struct wharf_port *port)
{
	struct wh_outframe *frame;

	if (port->connecting && !wh_connect_again(port))
		return false;
	if (port->connecting || port->state >= WH_PORT_ENDING)
		return true;
	frame = wh_outframe_new(port->source.loop);
	if (!frame)
		return false;
	wh_encode_control(&frame->encoder, WH_RECORD_HELLO, &port->hello, 0);
	frame->tx.credentials = true;
	port->hello_sent = true;
	wh_port_hand(port, frame);
	return true;
}

static void mismatch(struct wharf_port *port, const char *text)
{
	wh_port_fail(port, WHARF_CLOSE_MISMATCH, EPROTONOSUPPORT, WH_BYE_MISMATCH, text, "%s", text);
}

bool wh_port_peer_takes(const struct wharf_port *port, uint64_t bytes, uint32_t n_fds)
{
	return bytes <= port->tx_message_bytes_max && n_fds <= port->peer.fds_max;
}

void wh_port_exceeded(struct wharf_port *port)
{
	wh_port_fail(port, WHARF_CLOSE_ERROR, EMSGSIZE, WH_BYE_ABORT, "a message queued before hello exceeds the limits",
		"a message sent before the peer's hello exceeds its limits");
}

void wh_port_take_hello(struct wharf_port *port, const struct wh_hello *theirs, const struct wh_event *event)
{
	/* A hello that carries none is given those of nobody. */
	if (!event->has_credentials || (!event->credentials.pid && event->credentials.uid == OVERFLOW_UID)) {
		wh_port_violation(port, "a hello without credentials");
		return;
	}
	port->peer.pid = event->credentials.pid;
	port->peer.uid = event->credentials.uid;
	port->peer.gid = event->credentials.gid;
	port->peer.features = theirs->features & FEATURES;
	port->peer.fds_max = theirs->fds_max;
	port->peer.message_bytes_max = theirs->features & WH_FEATURE_PIECES ? UINT64_MAX : theirs->message_bytes_max;
	memcpy(port->peer.name, theirs->name, sizeof(port->peer.name));
	if (port->same_user && !wh_same_user(port->peer.uid)) {
		wh_port_fail(port, WHARF_CLOSE_REFUSED, EACCES, WH_BYE_REFUSED, "it takes no peer of another user",
			"peer %d (%s) is of another user: %u", (int)port->peer.pid, port->peer.name,
			(unsigned)port->peer.uid);
		return;
	}
	if (theirs->version_min > WH_WIRE_VERSION || theirs->version_max < WH_WIRE_VERSION) {
		mismatch(port, "no common version of the protocol");
		return;
	}
	if ((theirs->features_required & ~(uint32_t)FEATURES) || (FEATURES_REQUIRED & ~theirs->features)) {
		mismatch(port, "one side requires a feature that the other lacks");
		return;
	}
	if (!wh_port_queue_fits(port, theirs)) {
		wh_port_exceeded(port);
		return;
	}
	port->said_hello = port->limits.said_hello = true;
	wh_trace(port->source.loop, port, WH_TRACE_OPEN, (uint64_t)port->peer.pid, 0);
	port->peer.version = WH_WIRE_VERSION;
	port->peer_pieces = theirs->features & WH_FEATURE_PIECES;
	wh_port_limit_messages(port, port->peer.message_bytes_max);
	port->tx_inline |= !theirs->mapped_bytes_max;
	wh_posting_limit(port);
	wh_port_flows_on_hello(port, theirs);
	port->tx_mapped_bytes_max = theirs->mapped_bytes_max;
	if (theirs->mapped_bytes_max)
		wh_lease_limit(port->lease, theirs->mapped_bytes_max);
	if (!(theirs->features & WH_FEATURE_HUGE))
		wh_lease_forbid_huge(port->lease);
	wh_lease_set_peer(port->lease, (uint32_t)event->credentials.pid);
	port->tx_frame_bytes = (uint32_t)wh_min(port->tx_frame_bytes, theirs->frame_bytes_max & ~63u);
	port->peer.bytes_max = wh_port_bytes_max(port);
	/* Often enough that a window never closes on a peer that reads: it reports when it reaches half of it. */
	port->report_every = (uint32_t)wh_max(1, wh_min(theirs->window_frames, WH_WINDOW_MAX) / 4);
	setsockopt(port->source.link.fd, SOL_SOCKET, SO_PASSCRED, &(int){ 0 }, sizeof(int));
	if (port->state == WH_PORT_OPENING) {
		port->state = WH_PORT_OPEN;
		port->tx_plain = wh_list_empty(&port->active) && !port->tx_dead;
		wh_loop_clear_deadline(port->source.loop, &port->deadline);
		if (port->ops.on_open)
			port->ops.on_open(port, &port->peer, port->user);
	}
	if (port->state < WH_PORT_ENDING) {
		wh_port_dirty(port);
		/* Streams and calls that could not begin may begin now. */
		if (wh_port_waits_for_room(port))
			wh_port_chore(port);
	}
	wh_watch_look(port);
}
