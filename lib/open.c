/* SPDX-License-Identifier: MIT */
/* How a port begins: its options, its socket, its pool. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

#include "latest.h"
#include "options.h"
#include "pass.h"

#define DEFAULT_POOL_BYTES (64u << 20)
#define DEFAULT_QUEUED_BYTES (4u << 20)
#define DEFAULT_MAPPED_BYTES (1ull << 30)
#define DEFAULT_MESSAGE_BYTES (64u << 20)
/* More than one port's share of a turn under full load, so that it is felt only when one handler is slow. */
#define DEFAULT_MSGS_PER_TURN 65536
#define DEFAULT_STREAM_BYTES (4u << 20)
#define DEFAULT_STREAMS 1024
#define DEFAULT_CALLS 1024

enum {
	PORT_FLAGS = WHARF_PORT_MAPS_HUGE | WHARF_PORT_INLINE | WHARF_PORT_PIECES | WHARF_PORT_SAME_USER |
		WHARF_PORT_AWAIT_LISTENER,
};

static int read_options(const struct wharf_port_options *given, struct wharf_port_options *o)
{
	int error = WH_OPTIONS_READ(given, o);

	if (error)
		return error;
	if (!o->ops || o->flags & ~(uint32_t)PORT_FLAGS || o->reserved || o->policy > WHARF_POLICY_KEEP_LATEST ||
		o->untrusted > 1)
		return -EINVAL;
	if (o->unreleased_max && o->policy != WHARF_POLICY_KEEP_LATEST)
		return -EINVAL;
	if (!o->unreleased_max)
		o->unreleased_max = 1;
	if (o->rx_fds_max > WH_ENGINE_FDS_MAX || (o->name && strlen(o->name) > WHARF_NAME_MAX))
		return -EINVAL;
	if (!o->pool_bytes_max)
		o->pool_bytes_max = DEFAULT_POOL_BYTES;
	if (!o->tx_queued_bytes_max)
		o->tx_queued_bytes_max = DEFAULT_QUEUED_BYTES;
	if (!o->tx_fds_max || o->tx_fds_max > WH_WIRE_FDS_MAX)
		o->tx_fds_max = WH_WIRE_FDS_MAX;
	if (!o->rx_mapped_bytes_max)
		o->rx_mapped_bytes_max = DEFAULT_MAPPED_BYTES;
	if (!o->rx_bytes_max)
		o->rx_bytes_max = DEFAULT_MESSAGE_BYTES;
	if (!o->rx_msgs_per_turn)
		o->rx_msgs_per_turn = DEFAULT_MSGS_PER_TURN;
	if (!o->rx_assembly_bytes_max)
		o->rx_assembly_bytes_max = o->rx_bytes_max > UINT64_MAX / 2 ? UINT64_MAX : o->rx_bytes_max * 2;
	if (!o->rx_stream_bytes_max)
		o->rx_stream_bytes_max = DEFAULT_STREAM_BYTES;
	if (!o->rx_streams_max)
		o->rx_streams_max = DEFAULT_STREAMS;
	if (!o->rx_calls_max)
		o->rx_calls_max = DEFAULT_CALLS;
	if (o->rx_streams_max > WH_STREAMS_MAX || o->rx_calls_max > WH_CALLS_MAX ||
		o->rx_stream_bytes_max > INT64_MAX / 2)
		return -EINVAL;
	/* What nothing maps needs no memory to be mapped. */
	if (o->flags & WHARF_PORT_INLINE)
		o->rx_mapped_bytes_max = 0;
	return 0;
}

static int join_pool(struct wharf_port *port, const struct wharf_port_options *o)
{
	wharf_pool *pool = o->pool;
	int error;

	if (!pool) {
		error = wharf_pool_new(WHARF_OPT(pool, .bytes_max = o->pool_bytes_max, .name = o->name), &pool);
		if (error)
			return error;
	}
	error = wh_pool_attach(pool, port->source.loop, wh_port_on_pool_kick, port, &port->lease);
	if (!o->pool)
		wharf_pool_unref(pool);
	return error;
}

/* The room that a window of frames may take in the socket: as much as the system grants, up to 2 MiB. */
static void size_socket(struct wharf_port *port, int fd)
{
	int want = 1 << 20, granted = 0;
	socklen_t size = sizeof(granted);
	uint32_t frame_bytes = port->source.loop->frame_bytes_max;

	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &want, sizeof(want));
	if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &granted, &size) < 0 || granted < 65536)
		granted = 65536;
	/* A quarter of each frame for the kernel's overhead, and room for control frames besides a full window. */
	while (frame_bytes > WH_FRAME_BYTES_MIN &&
		(uint32_t)granted / (frame_bytes + frame_bytes / 4) < WH_WINDOW_MIN + 2)
		frame_bytes -= 1024;
	port->tx_frame_bytes = frame_bytes & ~63u;
	port->window = (uint32_t)wh_max(
		WH_WINDOW_MIN, wh_min(WH_WINDOW_MAX, (uint32_t)granted / (frame_bytes + frame_bytes / 4) - 2));
}

int wh_port_new(struct wharf_loop *loop, int fd, const struct wharf_port_options *options,
	int64_t default_open_timeout_ns, wharf_port **ret_port)
{
	static const struct wh_geometry nothing_announced[WH_SLOTS_MAX];
	struct wharf_port_options o;
	struct wharf_port_ops ops;
	struct wharf_port *port;
	int error;

	error = read_options(options, &o);
	if (!error)
		error = WH_OPTIONS_READ(o.ops, &ops);
	if (error)
		return error;
	error = wh_timers_reserve(&loop->timers, WH_PORT_TIMERS);
	if (error)
		return error;
	port = wh_loop_alloc(loop, sizeof(*port));
	if (!port) {
		wh_timers_unreserve(&loop->timers, WH_PORT_TIMERS);
		return -ENOMEM;
	}
	memset(port, 0, sizeof(*port));
	port->source.loop = loop;
	port->ops = ops;
	port->user = o.user;
	port->refs = 2; /* the application's, until on_close has run, and the loop's, until the socket is gone */
	port->tx_queued_bytes_max = o.tx_queued_bytes_max;
	port->flush_bytes = wh_min(WH_FLUSH_BYTES, o.tx_queued_bytes_max);
	port->tx_fds_max = o.tx_fds_max;
	port->tx_lent_bytes_max = o.tx_lent_bytes_max;
	port->policy = o.policy;
	port->frames_end = &port->frames;
	port->limits = (struct wh_decode_limits){
		.slots = nothing_announced,
		.frame_bytes_max = loop->frame_bytes_max,
		.fds_max = o.rx_fds_max,
		.message_bytes_max = o.flags & WHARF_PORT_PIECES ? UINT64_MAX : o.rx_bytes_max,
	};
	port->report_every = WH_WINDOW_MIN / 2;
	port->mapped_bytes_max = o.rx_mapped_bytes_max;
	port->msgs_per_turn = o.rx_msgs_per_turn;
	port->untrusted = o.untrusted;
	port->maps_huge = o.flags & WHARF_PORT_MAPS_HUGE;
	port->same_user = o.flags & WHARF_PORT_SAME_USER;
	port->open_timeout_ns = o.open_timeout_ns ? o.open_timeout_ns : default_open_timeout_ns;
	wh_port_flows_init(port, &o);
	wh_port_callbacks(port);
	atomic_init(&port->holding_fd, -1);
	wh_list_init(&port->dirty);
	wh_list_init(&port->waiting);
	wh_list_init(&port->held);
	wh_list_init(&port->ready);
	wh_list_init(&port->ending);
	error = wh_ledger_open_port(port);
	if (!error && port->policy == WHARF_POLICY_KEEP_LATEST)
		error = wh_latest_new(port, o.unreleased_max);
	if (!error)
		error = join_pool(port, &o);
	wh_port_limit_messages(port, UINT64_MAX);
	if (error) {
		wh_latest_free(port);
		wh_ledger_free_port(port);
		wh_timers_unreserve(&loop->timers, WH_PORT_TIMERS);
		wh_loop_dealloc(loop, port);
		return error;
	}
	wh_posting_init(port);
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	size_socket(port, fd);
	wh_loop_add(loop, &port->source, fd);
	loop->n_users++;
	wh_port_hello_init(port, &o);
	wh_ledger_enter_port(port);
	*ret_port = port;
	return 0;
}

int wh_port_open(struct wharf_loop *loop, int fd, const struct wharf_port_options *options,
	int64_t default_open_timeout_ns, wharf_port **ret_port)
{
	struct wharf_port *port;
	int error = wh_loop_check(loop);

	if (!error)
		error = wh_end_check(fd);
	if (!error)
		error = wh_port_new(loop, fd, options, default_open_timeout_ns, &port);
	if (error)
		return error;
	wh_port_start(port);
	if (ret_port)
		*ret_port = port;
	return 0;
}

int wharf_pair(int ret_fds[2])
{
	if (wh_forked())
		return -ECHILD;
	if (!ret_fds)
		return -EINVAL;
	return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ret_fds) < 0 ? -errno : 0;
}

int wharf_open(wharf_loop *loop, int fd, const struct wharf_port_options *options, wharf_port **ret_port)
{
	return wh_port_open(loop, fd, options, -1, ret_port);
}
