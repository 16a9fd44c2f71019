/* SPDX-License-Identifier: MIT */
/* Listening. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "address.h"
#include "options.h"
#include "port.h"
#include "who.h"

enum {
	BACKLOG = 128,
	RETRY_MIN_NS = 10000000, /* after EMFILE and its like nothing tells when to go on */
	RETRY_MAX_NS = 1000000000,
	LOCK_TRIES = 100,        /* a millisecond apart */
	ALLOW_UIDS_MAX = 65536,  /* looked through for each connection; more is a mistake */
};

/* A peer that connects and says nothing must not hold a port for ever. */
#define ACCEPTED_OPEN_TIMEOUT_NS 10000000000

struct wharf_listener {
	struct wh_source source;
	struct wh_accepts accepts;
	struct wharf_listener_ops ops;
	void *user;
	struct wh_address address;
	dev_t dev;
	ino_t ino;
	int accepted_fd; /* while on_accept runs, until it is kept */
	uid_t accepted_uid;
	bool closed;
	uint32_t retry_ns;
	struct wh_deadline retry;
	bool same_user;
	size_t n_allow_uids;
	uid_t allow_uids[];
};

/* ---- The socket file ---- */

/*
 * Two processes that replace the same stale file must not remove each other's new one. Anybody who may read the
 * directory can hold this lock, for ever if he likes: then, and where it cannot be had, it goes on without. -1: it does.
 */
static int lock_directory(const char *path)
{
	char directory[sizeof(((struct sockaddr_un *)0)->sun_path)];
	const char *slash = strrchr(path, '/');
	size_t length = slash ? (size_t)(slash - path) : 0;
	int fd;

	memcpy(directory, path, length);
	directory[length] = '\0';
	fd = open(slash ? (length ? directory : "/") : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	for (int i = 0; fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK && i < LOCK_TRIES; i++)
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	return fd;
}

/* True: a socket file that nobody listens on. *ret_error is what to answer if not. */
static bool is_stale(const struct wh_address *a, int *ret_error)
{
	struct stat st;
	bool stale;
	int fd;

	if (lstat(a->sockaddr.sun_path, &st) < 0) {
		*ret_error = -errno;
		return false;
	}
	if (!S_ISSOCK(st.st_mode)) {
		*ret_error = -EEXIST;
		return false;
	}
	*ret_error = -EADDRINUSE;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0) {
		*ret_error = -errno;
		return false;
	}
	stale = connect(fd, (const struct sockaddr *)&a->sockaddr, a->size) < 0 && errno == ECONNREFUSED;
	close(fd);
	return stale;
}

static int bind_path(int fd, const struct wh_address *a, mode_t mode)
{
	const char *path = a->sockaddr.sun_path;
	int error = 0;

	/*
	 * The file is made with the socket's own mode, so it is never wider than asked; the umask may have made it
	 * narrower.
	 */
	fchmod(fd, mode);
	if (bind(fd, (const struct sockaddr *)&a->sockaddr, a->size) < 0) {
		error = -errno;
		if (error == -EADDRINUSE && is_stale(a, &error)) {
			error = unlink(path) < 0 || bind(fd, (const struct sockaddr *)&a->sockaddr, a->size) < 0
				? -errno
				: 0;
		}
	}
	if (!error && chmod(path, mode) < 0) {
		error = -errno;
		unlink(path);
	}
	return error;
}

/* Locked until it listens: in between the new file looks stale. */
static int listen_on_path(int fd, const struct wh_address *a, mode_t mode, int backlog, struct stat *ret_file)
{
	const char *path = a->sockaddr.sun_path;
	int lock = lock_directory(path), error = bind_path(fd, a, mode);

	if (!error && (listen(fd, backlog) < 0 || lstat(path, ret_file) < 0)) {
		error = -errno;
		unlink(path);
	}
	if (lock >= 0)
		close(lock);
	return error;
}

static int listen_on_name(int fd, const struct wh_address *a, int backlog)
{
	if (bind(fd, (const struct sockaddr *)&a->sockaddr, a->size) < 0 || listen(fd, backlog) < 0)
		return -errno;
	return 0;
}

static void remove_file(const struct wharf_listener *l)
{
	struct stat st;

	if (!l->address.abstract && lstat(l->address.sockaddr.sun_path, &st) == 0 && st.st_dev == l->dev &&
		st.st_ino == l->ino)
		unlink(l->address.sockaddr.sun_path);
}

/* ---- Accepting ---- */

static bool allowed(const struct wharf_listener *l, uid_t uid)
{
	if (!l->same_user && !l->n_allow_uids)
		return true;
	if (l->same_user && wh_same_user(uid))
		return true;
	for (size_t i = 0; i < l->n_allow_uids; i++)
		if (l->allow_uids[i] == uid)
			return true;
	return false;
}

static void on_accepted(struct wharf_listener *l, int fd)
{
	struct wharf_peer who = { 0 };
	struct ucred credentials;

	l->retry_ns = 0;
	wh_loop_count(l->source.loop, accepted, 1);
	if (l->closed || wh_peer_credentials(fd, &credentials) < 0) {
		close(fd);
		return;
	}
	who.pid = credentials.pid;
	who.uid = credentials.uid;
	who.gid = credentials.gid;
	if (!allowed(l, who.uid)) {
		wh_loop_count(l->source.loop, refused, 1);
		if (l->ops.on_refuse)
			l->ops.on_refuse(l, &who, l->user);
		close(fd);
		return;
	}
	l->accepted_fd = fd;
	l->accepted_uid = who.uid;
	if (l->ops.on_accept)
		l->ops.on_accept(l, &who, l->user);
	if (l->accepted_fd >= 0)
		close(l->accepted_fd);
	l->accepted_fd = -1;
}

static void on_accept_error(struct wharf_listener *l, int error)
{
	if (l->closed)
		return;
	wh_loop_count(l->source.loop, accept_errors, 1);
	l->retry_ns = l->retry_ns ? (uint32_t)wh_min(l->retry_ns * 2, RETRY_MAX_NS) : RETRY_MIN_NS;
	wh_loop_set_deadline(l->source.loop, &l->retry, l->retry_ns);
	if (l->ops.on_error)
		l->ops.on_error(l, -error, l->user);
}

static void on_retry(struct wh_deadline *deadline)
{
	struct wharf_listener *l = wh_container_of(deadline, struct wharf_listener, retry);

	wh_engine_accept(l->source.loop->engine, &l->source.link, &l->accepts);
}

static void on_event(struct wh_source *source, struct wh_event *event)
{
	struct wharf_listener *l = wh_container_of(source, struct wharf_listener, source);
	struct wharf_loop *loop = source->loop;

	wh_loop_enter(loop, 0);
	switch (event->kind) {
	case WH_EVENT_ACCEPTED:
		on_accepted(l, event->result);
		break;
	case WH_EVENT_ACCEPT_ERROR:
		on_accept_error(l, event->result);
		break;
	case WH_EVENT_DETACHED:
		wh_loop_remove(source);
		wh_timers_unreserve(&loop->timers, 1);
		wh_loop_dealloc(loop, l);
		wharf_loop_unref(loop);
		break;
	default:
		wh_assert(!"an event that listeners do not ask for");
	}
}

static void close_listener(struct wharf_listener *l)
{
	if (l->closed)
		return;
	l->closed = true;
	l->source.loop->n_users--;
	remove_file(l);
	wh_loop_clear_deadline(l->source.loop, &l->retry);
	wh_engine_detach(l->source.loop->engine, &l->source.link);
	wh_loop_rouse(l->source.loop);
}

static void on_loop_freed(struct wh_source *source)
{
	close_listener(wh_container_of(source, struct wharf_listener, source));
}

/* ---- Public ---- */

static int read_options(const struct wharf_listener_options *given, struct wharf_listener_options *o)
{
	int error = WH_OPTIONS_READ(given, o);

	if (error)
		return error;
	if (!o->ops || o->flags & ~(uint32_t)WHARF_LISTEN_SAME_USER || o->reserved || o->mode & ~07777u ||
		!o->allow_uids != !o->n_allow_uids || o->n_allow_uids > ALLOW_UIDS_MAX)
		return -EINVAL;
	if (!o->mode)
		o->mode = 0600;
	o->backlog = o->backlog ? (uint32_t)wh_min(o->backlog, 65535) : BACKLOG;
	return 0;
}

int wharf_listen(wharf_loop *loop, const char *address, const struct wharf_listener_options *options,
	wharf_listener **ret_listener)
{
	struct wharf_listener_options o;
	struct wharf_listener_ops ops;
	struct wharf_listener *l;
	struct stat st = { 0 };
	struct wh_address a;
	int fd, error;

	error = wh_loop_check(loop);
	if (!error)
		error = ret_listener ? read_options(options, &o) : -EINVAL;
	if (!error)
		error = WH_OPTIONS_READ(o.ops, &ops);
	if (!error)
		error = wh_address_parse(address, &a);
	if (error)
		return error;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (a.abstract)
		error = listen_on_name(fd, &a, (int)o.backlog);
	else
		error = listen_on_path(fd, &a, o.mode, (int)o.backlog, &st);
	if (error) {
		close(fd);
		return error;
	}
	error = wh_timers_reserve(&loop->timers, 1);
	if (error)
		goto remove_path;
	l = wh_loop_alloc(loop, sizeof(*l) + o.n_allow_uids * sizeof(*o.allow_uids));
	if (!l) {
		wh_timers_unreserve(&loop->timers, 1);
		error = -ENOMEM;
		goto remove_path;
	}
	*l = (struct wharf_listener){
		.source = { .event = on_event, .loop_freed = on_loop_freed },
		.ops = ops,
		.user = o.user,
		.address = a,
		.dev = st.st_dev,
		.ino = st.st_ino,
		.accepted_fd = -1,
		.retry.expired = on_retry,
		.same_user = o.flags & WHARF_LISTEN_SAME_USER,
		.n_allow_uids = o.n_allow_uids,
	};
	if (o.n_allow_uids)
		memcpy(l->allow_uids, o.allow_uids, o.n_allow_uids * sizeof(*o.allow_uids));
	wh_loop_add(loop, &l->source, fd);
	loop->n_users++;
	wh_engine_accept(loop->engine, &l->source.link, &l->accepts);
	wh_loop_rouse(loop);
	*ret_listener = l;
	return 0;

remove_path:
	if (!a.abstract)
		unlink(a.sockaddr.sun_path);
	close(fd);
	return error;
}

int wharf_accept(wharf_listener *listener, const struct wharf_port_options *options, wharf_port **ret_port)
{
	struct wharf_port_options o;
	int error;

	if (wh_forked())
		return -ECHILD;
	if (!listener)
		return -EINVAL;
	if (listener->accepted_fd < 0)
		return -EALREADY;
	error = WH_OPTIONS_READ(options, &o);
	if (!error && o.flags & WHARF_PORT_SAME_USER && !wh_same_user(listener->accepted_uid))
		error = -EACCES;
	if (error)
		return error;
	error = wh_port_open(listener->source.loop, listener->accepted_fd, options, ACCEPTED_OPEN_TIMEOUT_NS, ret_port);
	if (!error)
		listener->accepted_fd = -1;
	return error;
}

wharf_listener *wharf_listener_close(wharf_listener *listener)
{
	if (listener && !wh_forked())
		close_listener(listener);
	return NULL;
}
