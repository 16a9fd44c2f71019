/* SPDX-License-Identifier: MIT */
/* A port and its peer in one process, without a socket: what tests of the pool send through. */
#ifndef PEER_H
#define PEER_H

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "harness.h"
#include "pool_internal.h"
#include "view.h"
#include "wharf.h"

#define KIB ((size_t)1024)
#define MIB (1024 * KIB)
#define SECOND INT64_C(1000000000)

struct peer {
	wharf_pool *pool;
	struct wh_lease *lease;
	struct wh_view *views[WH_SLOTS_MAX];
	_Atomic int kicks;
	int announces;
	const void *loop;
};

static const char a_loop;

static inline void on_kick(void *owner)
{
	((struct peer *)owner)->kicks++;
}

static inline void peer_join(struct peer *p, wharf_pool *pool, const void *loop)
{
	*p = (struct peer){ .pool = pool, .loop = loop };
	cr_assert_eq(wh_pool_attach(pool, loop, on_kick, p, &p->lease), 0);
}

static inline void peer_unmap(struct peer *p)
{
	for (unsigned i = 0; i < WH_SLOTS_MAX; i++) {
		wh_view_unref(p->views[i]);
		p->views[i] = NULL;
	}
}

static inline void peer_leave(struct peer *p)
{
	wh_lease_detach(p->lease);
	p->lease = NULL;
	peer_unmap(p);
}

/* What a port does for a slot that its peer does not know. */
static inline void announce(struct peer *p, uint16_t slot)
{
	struct wh_announcement a;
	const char *why = "";
	if (!wh_lease_must_announce(p->lease, slot))
		return;
	cr_assert_eq(wh_lease_announcement(p->lease, slot, &a), 0);
	cr_assert_eq(wh_view_open(a.segment_fd, a.release_fd, a.slot, a.chunk_shift, a.n_chunks, a.huge,
		&p->views[slot], &why), 0,
		"%s", why);
	wh_lease_announced(p->lease, slot, false);
	cr_assert_not(wh_lease_must_announce(p->lease, slot));
	wh_lease_announced(p->lease, slot, true);
	p->announces++;
}

static inline struct wh_run send_buf(struct peer *p, struct wharf_buf *buf)
{
	struct wh_run run;
	cr_assert_eq(wh_lease_lend(p->lease, buf, 0, buf->size, 1, &run), 0);
	announce(p, run.slot);
	wh_lease_publish(p->lease);
	*buf = (struct wharf_buf)WHARF_BUF_EMPTY;
	return run;
}

static inline uint64_t bits_of(const struct wh_run *run) { return wh_run_bits(run->n_chunks) << (run->first % 64); }

static inline bool release(struct peer *p, const struct wh_run *run)
{
	return wh_view_release(p->views[run->slot], run->first / 64, bits_of(run));
}

static inline struct wharf_buf claim(wharf_pool *pool, size_t size)
{
	struct wharf_buf buf;
	int error = wharf_buf_claim(pool, size, &buf);
	cr_assert_eq(error, 0, "claim of %zu: %d", size, error);
	cr_assert_eq(buf.size, size);
	cr_assert_eq((uintptr_t)buf.data % 64, 0);
	return buf;
}

static inline int try_claim(wharf_pool *pool, size_t size)
{
	struct wharf_buf buf = WHARF_BUF_EMPTY;
	int error = wharf_buf_claim(pool, size, &buf);
	if (!error)
		wharf_buf_abandon(&buf);
	else
		cr_assert_null(buf.data, "untouched on failure");
	return error;
}

static inline wharf_pool *new_pool(size_t bytes_max, bool shared)
{
	wharf_pool *pool;
	cr_assert_eq(wharf_pool_new(WHARF_OPT(pool, .bytes_max = bytes_max, .shared = shared, .name = "test"), &pool),
		0);
	return pool;
}

static inline struct wharf_pool_info info_of(wharf_pool *pool)
{
	struct wharf_pool_info info = { .size = sizeof(info) };
	cr_assert_eq(wharf_pool_info(pool, &info), 0);
	return info;
}

/* A private pool on its loop's thread, on another, and a shared one: the same rules. */
struct setting {
	bool shared;
	bool local;
};
static const struct setting settings[] = { { false, true }, { false, false }, { true, false } };
#define FOR_SETTINGS(s) for (const struct setting *s = settings; s < settings + 3; s++)

static inline wharf_pool *new_setting(const struct setting *s, size_t bytes_max, struct peer *p)
{
	wharf_pool *pool = new_pool(bytes_max, s->shared);
	peer_join(p, pool, s->local ? &a_loop : NULL);
	wh_current_loop = s->local ? &a_loop : NULL;
	return pool;
}

/* What a port does after a kick. */
static inline int retire_all(struct peer *p)
{
	uint16_t slot;
	int n = 0;
	while (wh_lease_next_retire(p->lease, &slot)) {
		wh_view_unref(p->views[slot]);
		p->views[slot] = NULL;
		cr_assert_eq(wh_lease_retired(p->lease, slot), 0);
		n++;
	}
	return n;
}

/* Every test: nothing may stay, whatever it did. The process's control memory is made before. */
static struct harness_snapshot before;
static inline void peer_test_begin(void)
{
	wharf_pool *pool = new_pool(0, false);
	wharf_pool_unref(pool);
	harness_snapshot_take(&before);
}

static inline void peer_test_end(void)
{
	wh_current_loop = NULL;
	const char *leak = harness_snapshot_diff(&before);
	cr_assert(!leak, "%s", leak);
}

#endif
