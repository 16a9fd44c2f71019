/* SPDX-License-Identifier: MIT */
/* One process, or the core dump of one: see subject.h. */
#include "subject.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunks.h"
#include "memory.h"

int subject_open(pid_t pid, struct subject *ret_subject, char why[PROCESS_WHY_BYTES])
{
	struct subject subject = { 0 };
	int error = process_open(pid, &subject.process, why);

	if (error)
		return error;
	error = source_of_memfd(subject.process.control, &subject.source);
	if (error) {
		snprintf(why, PROCESS_WHY_BYTES, "its control memory cannot be read: %s", strerror(-error));
		process_close(&subject.process);
		return error;
	}
	*ret_subject = subject;
	return 0;
}

int subject_open_core(const char *path, struct subject *ret_subject, char why[PROCESS_WHY_BYTES])
{
	struct subject *s = ret_subject;
	char said[CORE_WHY_BYTES];
	uint64_t address;
	int error;

	*s = (struct subject){ .dumped = true, .process = { .control = -1, .trace = -1, .state = '-' } };
	s->core = memory_new(1, sizeof *s->core);
	error = core_open(path, s->core, said);
	if (error) {
		snprintf(why, PROCESS_WHY_BYTES, "%s", said);
		free(s->core);
		return error;
	}
	error = core_find_control(s->core, &address);
	if (error) {
		snprintf(why, PROCESS_WHY_BYTES, "no control memory of wharf is in it");
		core_close(s->core);
		free(s->core);
		return error;
	}
	source_of_core(s->core, address, UINT64_MAX - address, &s->source);
	s->process.pid = (pid_t)s->core->pid;
	s->process.uid = s->core->uid;
	snprintf(s->process.name, sizeof s->process.name, "%s", s->core->name);
	snprintf(s->process.command, sizeof s->process.command, "%s", s->core->command);
	return 0;
}

static void forget(struct subject *subject)
{
	free(subject->rings);
	free(subject->sockets);
	subject->rings = NULL;
	subject->sockets = NULL;
}

void subject_close(struct subject *subject)
{
	forget(subject);
	if (subject->has_now)
		snapshot_fini(&subject->now);
	if (subject->has_before)
		snapshot_fini(&subject->before);
	if (subject->dumped) {
		core_close(subject->core);
		free(subject->core);
	} else {
		process_close(&subject->process);
	}
}

int subject_look(struct subject *subject, unsigned wants, char why[PROCESS_WHY_BYTES])
{
	struct snapshot snapshot;
	int error = snapshot_take(&subject->source, wants, &snapshot, why);

	if (error)
		return error;
	if (!subject->dumped && !process_refresh(&subject->process, false)) {
		snapshot_fini(&snapshot);
		snprintf(why, PROCESS_WHY_BYTES, "it exited while it was looked at");
		return -ESRCH;
	}
	if (subject->dumped && !subject->process.pid)
		subject->process.pid = (pid_t)snapshot.pid;
	forget(subject);
	if (subject->has_before)
		snapshot_fini(&subject->before);
	subject->before = subject->now;
	subject->has_before = subject->has_now;
	subject->now = snapshot;
	subject->has_now = true;
	return 0;
}

void subject_look_at_fds(struct subject *subject)
{
	if (!subject->dumped)
		process_refresh(&subject->process, true);
}

void subject_look_at_rings(struct subject *subject)
{
	const struct snapshot *s = &subject->now;

	free(subject->rings);
	subject->rings = memory_new(s->n_loops, sizeof *subject->rings);
	for (size_t i = 0; i < s->n_loops; i++) {
		struct subject_ring *ring = &subject->rings[i];
		int fd = s->loops[i].s.ring_fd, error;
		const struct process_fd *entry = subject->dumped ? NULL : process_fd(&subject->process, fd);

		if (subject->dumped) {
			snprintf(ring->why, sizeof ring->why, "the kernel's part is not in a core dump");
		} else if (!entry || (entry->kind != FD_RING && entry->kind != FD_EPOLL)) {
			snprintf(ring->why, sizeof ring->why, "its descriptor %d is not there", fd);
		} else {
			error = fdinfo_read(subject->process.pid, fd, &ring->info);
			ring->known = !error;
			snprintf(ring->why, sizeof ring->why, "fdinfo: %s", strerror(-error));
		}
	}
}

static void look_at_socket(const struct subject *subject, const struct snap_port *port, const struct sockdiag *diag,
	struct subject_socket *socket)
{
	const struct process_fd *entry;
	const struct sockdiag_socket *own, *peer;
	struct fdinfo info;

	if (subject->dumped || port->s.fd < 0) {
		snprintf(socket->why, sizeof socket->why, "%s",
			subject->dumped ? "the kernel's part is not in a core dump" : "closed");
		return;
	}
	entry = process_fd(&subject->process, port->s.fd);
	if (!entry || entry->kind != FD_SOCKET) {
		snprintf(socket->why, sizeof socket->why, "its descriptor %d is not there", port->s.fd);
		return;
	}
	socket->inode = entry->inode;
	if (fdinfo_read(subject->process.pid, port->s.fd, &info) == 0 && info.socket) {
		socket->scm_known = true;
		socket->scm_fds = info.scm_fds;
	}
	own = sockdiag_find(diag, entry->inode);
	if (!own) {
		if (diag->error)
			snprintf(socket->why, sizeof socket->why, "sock_diag: %s", strerror(-diag->error));
		else
			snprintf(socket->why, sizeof socket->why, "%s",
				diag->net != subject->process.net ? "it is of another network namespace"
								  : "the kernel does not list it");
		return;
	}
	socket->known = true;
	socket->unread = own->unread;
	socket->unsent = own->unsent;
	peer = own->peer ? sockdiag_find(diag, own->peer) : NULL;
	socket->peer_known = peer;
	if (peer)
		socket->peer_unread = peer->unread;
}

/* It says so each quarter window at least. */
static bool may_have_read(const struct wh_stats_port *p)
{
	return p->counts.tx_unread_frames <= p->window / 4 && !p->counts.tx_queued_bytes &&
		!(p->flags & (WH_STATS_STUCK | WH_STATS_BLOCKED));
}

void subject_look_at_sockets(struct subject *subject, const struct sockdiag *diag, bool suspects)
{
	const struct snapshot *s = &subject->now;

	free(subject->sockets);
	subject->sockets = memory_new(s->n_ports, sizeof *subject->sockets);
	for (size_t i = 0; i < s->n_ports; i++)
		if (!suspects || (s->ports[i].s.unread_since_ns && may_have_read(&s->ports[i].s)))
			look_at_socket(subject, &s->ports[i], diag, &subject->sockets[i]);
}

uint64_t subject_unread_for(const struct subject *subject, const struct snap_port *port)
{
	const struct subject_socket *socket = subject->sockets ? &subject->sockets[port - subject->now.ports] : NULL;

	if (may_have_read(&port->s) && (!socket || !socket->known || !socket->unsent))
		return 0;
	return subject_since(subject, port->s.unread_since_ns);
}

uint64_t subject_now_ns(const struct subject *subject) { return chunks_now(&subject->now); }

uint64_t subject_since(const struct subject *subject, uint64_t then_ns)
{
	uint64_t now = subject_now_ns(subject);

	return then_ns && now > then_ns ? now - then_ns : 0;
}
