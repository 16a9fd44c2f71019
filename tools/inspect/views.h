/* SPDX-License-Identifier: MIT */
/* Views: what of a subject is put on a page, and how. */
#ifndef INSPECT_VIEWS_H
#define INSPECT_VIEWS_H

#include "chunks.h"
#include "page.h"
#include "subject.h"

/* ---- view-list.c ---- */

struct view_list; /* a table of processes */
struct view_list *view_list_new(void);
void view_list_add(struct view_list *list, const struct subject *subject);
size_t view_list_length(const struct view_list *list);
enum view_order { VIEW_BY_TRAFFIC, VIEW_BY_QUEUED, VIEW_BY_LENT, VIEW_BY_BUSY, VIEW_BY_PID, VIEW_ORDERS };
const char *view_order_name(enum view_order order);
void view_list_sort(struct view_list *list, enum view_order order);
pid_t view_list_pid(const struct view_list *list, size_t index);
void view_list_put(const struct view_list *list, struct page *page, pid_t marked); /* 0: none */
void view_list_free(struct view_list *list);

/* Name, pid, state, problems: what every view of one process begins with. */
void view_head(const struct subject *subject, struct page *page);

/* ---- view-ports.c ---- */

enum { VIEW_ALL = -1 };
/* A table; at_most: the most conspicuous only. */
void view_ports_table(const struct subject *subject, struct page *page, int at_most);
/* All that is known of each; port: an id, 0: all of them. False: there is none of this id. */
bool view_ports(const struct subject *subject, struct page *page, uint64_t port);
/* In a few words what is wrong with it, the worst first; "" if nothing is. */
enum { VIEW_NOTE_BYTES = 128 };
enum style view_port_note(const struct subject *subject, const struct snap_port *port, char note[VIEW_NOTE_BYTES]);

/* ---- view-rings.c ---- */

void view_loops_table(const struct subject *subject, struct page *page);
void view_rings(const struct subject *subject, struct page *page);
enum style view_loop_note(const struct subject *subject, const struct snap_loop *loop, char note[VIEW_NOTE_BYTES]);

/* ---- view-chunks.c ---- */

void view_pools_table(const struct subject *subject, struct page *page);
/*
 * Pictures, and lent runs, of each pool as many as n_runs, the oldest (0: all); older_than_ns: only the runs that are.
 * Returns how many runs there were.
 */
size_t view_chunks(const struct subject *subject, struct page *page, bool pictures, size_t n_runs,
	uint64_t older_than_ns);

/* "worker:12": a peer's name and pid. */
enum { VIEW_PEER_BYTES = 96 };
const char *view_peer(const struct subject *subject, uint32_t pid, const char *name, char text[VIEW_PEER_BYTES]);

#endif
