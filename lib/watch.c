/* SPDX-License-Identifier: MIT */
/* Watching a process: its death is the peer's end, whoever else holds the socket. */
#include "watch.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

struct wh_watch {
	struct wh_source source;
	struct wharf_port *port; /* counted: it stays until this is detached */
	pid_t only;              /* not 0: takes effect only if this process said the peer's hello */
	bool dead;
};

void wh_watch_stop(struct wharf_port *port)
{
	struct wh_watch *w = port->watch;

	if (!w)
		return;
	port->watch = NULL;
	wh_engine_detach(port->source.loop->engine, &w->source.link);
}

void wh_watch_look(struct wharf_port *port)
{
	const struct wh_watch *w = port->watch;

	if (!w || !w->dead || (w->only && (!port->said_hello || port->peer.pid != w->only)))
		return;
	if (port->connecting)
		wh_port_end(port, WHARF_CLOSE_PEER_GONE, 0, "the process to connect to has ended");
	/* To the engine the end of file, behind all that has arrived; whoever inherited the socket adds nothing to that. */
	shutdown(port->source.link.fd, SHUT_RD);
}

static void on_event(struct wh_source *source, struct wh_event *event)
{
	struct wh_watch *w = wh_container_of(source, struct wh_watch, source);
	struct wharf_port *port = w->port;
	struct wharf_loop *loop = source->loop;

	switch (event->kind) {
	case WH_EVENT_READABLE:
		w->dead = event->result > 0;
		if (port->watch == w)
			wh_watch_look(port);
		break;
	case WH_EVENT_DETACHED:
		wh_loop_remove(source);
		wh_loop_dealloc(loop, w);
		wharf_port_unref(port);
		wharf_loop_unref(loop);
		break;
	default:
		wh_assert(!"an event that watches do not ask for");
	}
}

static void on_loop_freed(struct wh_source *source)
{
	struct wh_watch *w = wh_container_of(source, struct wh_watch, source);

	if (w->port->watch == w)
		wh_watch_stop(w->port);
}

int wh_watch_start(struct wharf_port *port, int pidfd, pid_t only)
{
	struct wharf_loop *loop = port->source.loop;
	struct wh_watch *w = wh_loop_alloc(loop, sizeof(*w));

	if (!w)
		return -ENOMEM;
	wh_watch_stop(port);
	*w = (struct wh_watch){
		.source = { .event = on_event, .loop_freed = on_loop_freed },
		.port = wharf_port_ref(port),
		.only = only,
	};
	wh_loop_add(loop, &w->source, pidfd);
	wh_engine_watch(loop->engine, &w->source.link);
	wh_loop_rouse(loop);
	port->watch = w;
	return 0;
}

/* A directory of /proc passes for a process with some kernels, but is readable at once. */
static bool is_pidfd(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 && !S_ISDIR(st.st_mode) &&
		(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) == 0 || errno != EBADF);
}

int wharf_port_watch(wharf_port *port, int pidfd)
{
	int fd, error = wh_port_check(port);

	if (error)
		return error;
	if (!is_pidfd(pidfd))
		return -EBADF;
	fd = fcntl(pidfd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	error = wh_watch_start(port, fd, 0);
	if (error)
		close(fd);
	return error;
}
