/* SPDX-License-Identifier: MIT */
/*
 * The ledger: what a loop and its ports enter into their blocks (stats.h), so that somebody outside can see it.
 *
 * Counters grow where they are. The rest is published at the end of a turn, of those ports only to which something
 * happened in it: they are on loop->touched. All of it by the loop's thread.
 */
#ifndef WH_LEDGER_H
#define WH_LEDGER_H

#include "list.h"
#include "pool.h"
#include "stats.h"

struct wharf_loop;
struct wharf_port;

enum wh_tally_news {                     /* since the last publication */
	WH_NEWS_SENT = 1 << 0,           /* a frame left */
	WH_NEWS_RECEIVED = 1 << 1,
	WH_NEWS_READ = 1 << 2,           /* the peer has read some */
	WH_NEWS_ENDS = 1 << 3,
};

/* Of a port, until it is published. */
struct wh_tally {
	struct wh_list touched;          /* on loop->touched */
	uint32_t position;               /* of its block, or 0 */
	uint8_t news;
	uint8_t listed;                  /* as which it is counted in its loop's n_dirty, ... */
	bool claim_refused;              /* and not yet told that there is room */
};

/* Read by others at any time: stored whole. */
static inline void wh_count(uint64_t *counter, uint64_t n)
{
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}
#define wh_port_count(port, what, n) wh_count(&(port)->stats->counts.what, (n))
/* What its loop adds up, too. */
#define wh_port_sum(port, what, n) \
	(wh_port_count((port), what, (n)), wh_count(&(port)->source.loop->stats->what, (n)))
#define wh_loop_count(loop, what, n) wh_count(&(loop)->stats->what, (n))

/*
 * A block in control memory or, where that cannot be had, or with WHARF_LOOP_UNSEEN, in the heap. 0; -ENOMEM.
 * close: nobody outside finds it any more; free: any thread, when nobody uses it any more.
 */
int wh_ledger_open_loop(struct wharf_loop *loop, uint32_t flags); /* WHARF_LOOP_* */
void wh_ledger_enter_loop(struct wharf_loop *loop); /* once its engine is there */
void wh_ledger_close_loop(struct wharf_loop *loop);
void wh_ledger_free_loop(struct wharf_loop *loop);
int wh_ledger_open_port(struct wharf_port *port);
void wh_ledger_enter_port(struct wharf_port *port); /* once it has its socket and its lease */
void wh_ledger_leave_pool(struct wharf_port *port);  /* its lease is about to go */
void wh_ledger_close_port(struct wharf_port *port);
void wh_ledger_free_port(struct wharf_port *port);

/* ---- Turns ---- */

void wh_ledger_own(struct wharf_loop *loop);                      /* this thread steps it */
void wh_ledger_wait(struct wharf_loop *loop, uint64_t now_ns, int64_t timeout_ns); /* it goes to sleep */
void wh_ledger_work(struct wharf_loop *loop, uint64_t now_ns);    /* a turn begins: sets turn_ns */
void wh_ledger_publish(struct wharf_loop *loop);                  /* its end */
void wh_ledger_leave(struct wharf_loop *loop, uint64_t now_ns);   /* back to the host */
void wh_ledger_embed(struct wharf_loop *loop);
void wh_ledger_break(struct wharf_loop *loop, int error);

/* ---- Ports ---- */

void wh_ledger_touch_slowly(struct wharf_port *port);
void wh_ledger_publish_port(struct wharf_port *port);             /* at once */
uint64_t wh_lag(const struct wharf_port *port, uint64_t sent_ns);
void wh_ledger_frame(struct wharf_port *port, uint64_t sent_ns);  /* a frame was handled */
void wh_ledger_block(struct wharf_port *port);                    /* a send or a claim was refused */
void wh_ledger_unblock(struct wharf_port *port, bool told);       /* told: on_writable is due. Else it may be */

#endif
