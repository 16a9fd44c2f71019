/* SPDX-License-Identifier: MIT */
/* Intrusive doubly linked list with a head; an unlinked node points at itself. Pure. */
#ifndef WH_LIST_H
#define WH_LIST_H

#include "base.h"

struct wh_list {
	struct wh_list *next, *previous;
};

static inline void wh_list_init(struct wh_list *list)
{
	list->next = list->previous = list;
}

static inline bool wh_list_empty(const struct wh_list *list) { return list->next == list; }
static inline bool wh_list_linked(const struct wh_list *node) { return node->next != node; }

static inline void wh_list_append(struct wh_list *list, struct wh_list *node)
{
	node->previous = list->previous;
	node->next = list;
	list->previous->next = node;
	list->previous = node;
}

static inline void wh_list_prepend(struct wh_list *list, struct wh_list *node) { wh_list_append(list->next, node); }

static inline void wh_list_remove(struct wh_list *node)
{
	node->previous->next = node->next;
	node->next->previous = node->previous;
	wh_list_init(node);
}

static inline struct wh_list *wh_list_take_first(struct wh_list *list)
{
	struct wh_list *node = list->next;

	if (node == list)
		return NULL;
	wh_list_remove(node);
	return node;
}

/* Moves all nodes of `from` behind those of `to`. */
static inline void wh_list_splice(struct wh_list *to, struct wh_list *from)
{
	if (wh_list_empty(from))
		return;
	from->next->previous = to->previous;
	to->previous->next = from->next;
	from->previous->next = to;
	to->previous = from->previous;
	wh_list_init(from);
}

#endif
