/* SPDX-License-Identifier: MIT */
/*
 * Threads that claim, trim, refer to, lend, release and abandon at random, against an oracle that counts the holders
 * of every chunk. Under ThreadSanitizer it shows that whatever a pool hands on was ordered; without, that it is
 * handed on once.
 *
 *   stress-pool [seed [milliseconds]]        the seed also from WHARF_TEST_SEED
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "pool_internal.h"
#include "view.h"
#include "wharf.h"

enum { LOOPS = 2, LEASES = 3, CROWD = 63, WORKERS = 3, QUEUE = 256, HELD = 96 };
enum { CHUNKS = WH_SLOT_WORDS * WH_WORD_CHUNKS };

#define PATIENCE_NS INT64_C(30000000000)

#define CHECK(x, ...) \
	do { \
		if (!(x)) { \
			fprintf(stderr, "FAILED %s:%d: %s: ", __FILE__, __LINE__, #x); \
			fprintf(stderr, __VA_ARGS__); \
			fputc('\n', stderr); \
			abort(); \
		} \
	} while (0)

/* ---- Random numbers, queues, time ---- */

static uint64_t next(uint64_t *state)
{
	uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}
static uint64_t below(uint64_t *state, uint64_t n) { return next(state) % n; }

static uint64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

enum kind { RUN, VIEW, RETIRE, QUIT, BUF };

struct item {
	enum kind kind;
	struct wh_run run;
	struct wh_view *view;
	uint16_t slot;
	struct wharf_buf buf;
};

struct queue {
	pthread_mutex_t lock;
	unsigned head, tail;
	struct item items[QUEUE];
};

static bool push(struct queue *q, const struct item *item)
{
	pthread_mutex_lock(&q->lock);
	bool room = q->tail - q->head < QUEUE;
	if (room)
		q->items[q->tail++ % QUEUE] = *item;
	pthread_mutex_unlock(&q->lock);
	return room;
}

static bool pop(struct queue *q, struct item *ret_item)
{
	pthread_mutex_lock(&q->lock);
	bool any = q->tail != q->head;
	if (any)
		*ret_item = q->items[q->head++ % QUEUE];
	pthread_mutex_unlock(&q->lock);
	return any;
}

static bool has_room(struct queue *q, unsigned n)
{
	pthread_mutex_lock(&q->lock);
	bool room = QUEUE - (q->tail - q->head) >= n;
	pthread_mutex_unlock(&q->lock);
	return room;
}

/* ---- The oracle ---- */

static _Atomic uint8_t holders[WH_SLOTS_MAX][CHUNKS];

static void hold(uint64_t place, uint8_t expected_before)
{
	for (uint32_t i = 0; i < wh_place_chunks(place); i++) {
		uint8_t before = atomic_fetch_add_explicit(&holders[wh_place_slot(place)][wh_place_first(place) + i],
			1, memory_order_relaxed);
		CHECK(expected_before ? before > 0 : before == 0, "slot %u chunk %u had %u holders",
			wh_place_slot(place),
			wh_place_first(place) + i, before);
	}
}

/* Before it is given back. */
static void let_go(unsigned slot, unsigned first, uint64_t bits)
{
	for (; bits; bits &= bits - 1) {
		unsigned chunk = first / 64 * 64 + (unsigned)__builtin_ctzll(bits);
		uint8_t before = atomic_fetch_sub_explicit(&holders[slot][chunk], 1, memory_order_relaxed);
		CHECK(before > 0, "slot %u chunk %u had none", slot, chunk);
	}
}

static void let_go_place(uint64_t place) { let_go(wh_place_slot(place), wh_place_first(place), wh_place_bits(place)); }

/* What its claimer writes, and whoever has it sees. */
static void write_mark(const struct wharf_buf *buf)
{
	memset(buf->data, (int)(buf->opaque[1] * 31 + buf->size), buf->size < 64 ? buf->size : 64);
}

static void check_mark(const unsigned char *at, uint64_t place, size_t size)
{
	unsigned char mark = (unsigned char)(place * 31 + size);
	CHECK(at[0] == mark && at[(size < 64 ? size : 64) - 1] == mark, "slot %u chunk %u: another's bytes",
		wh_place_slot(place),
		wh_place_first(place));
}

/* ---- One pool and its threads ---- */

struct peer {
	struct world *world;
	struct wh_lease *lease;
	struct queue to_peer, to_loop;
	_Atomic bool kicked, woken, idle;
	struct wh_view *views[WH_SLOTS_MAX];  /* the peer's thread */
	struct item held[HELD];
	unsigned n_held;
	pthread_t thread;
};

/* A port that never sends: with so many of them the others are on both sides of the first 64. */
struct idler {
	struct wh_lease *lease;
	_Atomic bool kicked;
};

struct world {
	wharf_pool *pool;
	bool shared;
	unsigned n_idlers;
	struct idler idlers[CROWD];
	size_t bytes_max;
	unsigned n_loops, n_leases;
	uint64_t seed;
	_Atomic bool stop_workers, stop_loops, stop_peers;
	_Atomic uint64_t claims, lends, releases, waits, failures, reattached, retired;
	struct queue to_loops[LOOPS];
	struct peer peers[LEASES];
};

/* A thread's place in it. */
struct seat {
	struct world *world;
	unsigned index;
};

static void on_kick(void *owner) { atomic_store(&((struct peer *)owner)->kicked, true); }

static size_t random_size(struct world *w, uint64_t *seed)
{
	static const size_t most[] = { 64, 256, 1024, 1024, 4096, 16384, 65536, 262144 };
	size_t size = 1 + below(seed, most[below(seed, 8)]);
	return size < w->bytes_max / 4 ? size : w->bytes_max / 4;
}

static bool claim(struct world *w, uint64_t *seed, bool may_wait, struct wharf_buf *ret_buf)
{
	size_t size = random_size(w, seed);
	bool wait = may_wait && below(seed, 4) == 0, patient = below(seed, 2);
	int error = wait ? wharf_buf_claim_wait(w->pool, size, patient ? PATIENCE_NS : (int64_t)below(seed, 2000000),
		ret_buf)
		: wharf_buf_claim(w->pool, size, ret_buf);
	/* Whoever waits long gets it at the latest when the others stop: else a wake-up was lost. */
	CHECK(error == 0 || (error == -EAGAIN && !wait) || (wait && (error == -EPIPE || (error == -ETIMEDOUT &&
		!patient))),
		"claim of %zu: %d", size, error);
	if (error) {
		atomic_fetch_add(&w->failures, 1);
		return false;
	}
	atomic_fetch_add(wait ? &w->waits : &w->claims, 1);
	hold(ret_buf->opaque[1], 0);
	if (below(seed, 3) == 0) {
		/* A tail goes back: it is let go before. */
		size_t trimmed = 1 + below(seed, size);
		unsigned shift = wh_class_shift(w->pool->slots[wh_place_slot(ret_buf->opaque[1])]->class);
		uint32_t n = wh_place_chunks(ret_buf->opaque[1]), keep = (uint32_t)((trimmed - 1) >> shift) + 1;
		if (keep < n)
			let_go_place(wh_place(wh_place_slot(ret_buf->opaque[1]),
				wh_place_first(ret_buf->opaque[1]) + keep, n - keep));
		CHECK(wharf_buf_trim(ret_buf, trimmed) == 0, "trim");
	}
	write_mark(ret_buf);
	return true;
}

static void abandon(struct wharf_buf *buf)
{
	check_mark(buf->data, buf->opaque[1], buf->size);
	let_go_place(buf->opaque[1]);
	wharf_buf_abandon(buf);
}

static bool refer(const struct wharf_buf *buf, struct wharf_buf *ret_buf)
{
	hold(buf->opaque[1], 1);
	CHECK(wharf_buf_ref(buf, ret_buf) == 0, "ref");
	return true;
}

static void *worker(void *arg)
{
	struct seat *seat = arg;
	struct world *w = seat->world;
	uint64_t seed = w->seed * 7919 + seat->index;
	while (!atomic_load(&w->stop_workers)) {
		struct item item = { .kind = BUF };
		if (!claim(w, &seed, true, &item.buf)) {
			sched_yield();
			continue;
		}
		if (below(&seed, 4) == 0) {
			struct wharf_buf more;
			refer(&item.buf, &more);
			abandon(below(&seed, 2) ? &more : &item.buf);
			if (!item.buf.data)
				item.buf = more;
		}
		if (below(&seed, 2) || !push(&w->to_loops[below(&seed, w->n_loops)], &item))
			abandon(&item.buf);
	}
	return NULL;
}

/* ---- The receiving side ---- */

static void release(struct peer *p, unsigned i, uint64_t bits)
{
	struct wh_run *run = &p->held[i].run;
	uint64_t place = wh_place(run->slot, run->first, run->n_chunks), all = wh_place_bits(place);
	check_mark((const unsigned char *)wh_view_at(p->views[run->slot], run->first, 0), place, run->size);
	let_go(run->slot, run->first, bits & all);
	if (wh_view_release(p->views[run->slot], run->first / 64, bits & all))
		atomic_store(&p->woken, true);
	atomic_fetch_add(&p->world->releases, 1);
	if ((bits & all) == all) {
		p->held[i] = p->held[--p->n_held];
		return;
	}
	/* The rest at once, as a second release. */
	let_go(run->slot, run->first, all & ~bits);
	if (wh_view_release(p->views[run->slot], run->first / 64, all & ~bits))
		atomic_store(&p->woken, true);
	p->held[i] = p->held[--p->n_held];
}

/* The port is gone: what it held is settled by the detach that follows. */
static void quit(struct peer *p)
{
	while (p->n_held) {
		struct wh_run *run = &p->held[--p->n_held].run;
		let_go_place(wh_place(run->slot, run->first, run->n_chunks));
	}
	for (unsigned i = 0; i < WH_SLOTS_MAX; i++) {
		wh_view_unref(p->views[i]);
		p->views[i] = NULL;
	}
}

static void *receiver(void *arg)
{
	struct peer *p = arg;
	uint64_t seed = p->world->seed + (uint64_t)(p - p->world->peers) * 104729;
	for (;;) {
		struct item item;
		if (p->n_held < HELD && pop(&p->to_peer, &item)) {
			if (item.kind == RUN) {
				p->held[p->n_held++] = item;
			} else if (item.kind == VIEW) {
				CHECK(!p->views[item.slot], "announced twice");
				p->views[item.slot] = item.view;
			} else if (item.kind == RETIRE) {
				for (unsigned i = 0; i < p->n_held; i++)
					CHECK(p->held[i].run.slot != item.slot, "retired while lent");
				wh_view_unref(p->views[item.slot]);
				p->views[item.slot] = NULL;
				while (!push(&p->to_loop, &item))
					sched_yield();
				atomic_store(&p->woken, true);
			} else {
				quit(p);
				while (!push(&p->to_loop, &item))
					sched_yield();
			}
		} else if (!p->n_held) {
			if (atomic_load(&p->world->stop_peers))
				return NULL;
			sched_yield();
		}
		while (p->n_held && (p->n_held > HELD / 2 || below(&seed, 3) || atomic_load(&p->world->stop_workers)))
			release(p, (unsigned)below(&seed, p->n_held), below(&seed, 4) ? ~UINT64_C(0) : next(&seed));
	}
}

/* ---- The loops ---- */

static void announce(struct peer *p, uint16_t slot)
{
	struct wh_announcement a;
	const char *why = "";
	struct item item = { .kind = VIEW, .slot = slot };
	if (!wh_lease_must_announce(p->lease, slot))
		return;
	CHECK(wh_lease_announcement(p->lease, slot, &a) == 0, "announcement");
	CHECK(wh_view_open(a.segment_fd, a.release_fd, a.slot, a.chunk_shift, a.n_chunks, a.huge, &item.view,
		&why) == 0, "%s", why);
	wh_lease_announced(p->lease, slot, false);
	wh_lease_announced(p->lease, slot, true);
	CHECK(push(&p->to_peer, &item), "room was looked for");
}

static void send_buf(struct world *w, struct peer *p, uint64_t *seed, struct wharf_buf *buf)
{
	struct item item = { .kind = RUN };
	uint64_t dice = below(seed, 10);
	int error;
	if (!has_room(&p->to_peer, 2)) {
		abandon(buf);
		return;
	}
	error = wh_lease_lend(p->lease, buf, 0, buf->size, (uint32_t)dice, &item.run);
	CHECK(error == 0 || error == -EXDEV || error == -EBUSY, "lend: %d", error);
	if (error) {
		/* Of a lease that was there before, or with this peer already. */
		abandon(buf);
		return;
	}
	if (dice == 0) {
		wh_lease_take_back(p->lease, &item.run);
		abandon(buf);
		return;
	}
	if (dice == 1) {
		let_go_place(buf->opaque[1]);
		wh_lease_drop(p->lease, &item.run);
		return;
	}
	announce(p, item.run.slot);
	wh_lease_publish(p->lease);
	atomic_fetch_add(&w->lends, 1);
	CHECK(push(&p->to_peer, &item), "room was looked for");
	while (dice == 2 && wh_lease_holds(p->lease, &item.run) && below(seed, 64))
		;
}

static void attach(struct world *w, struct peer *p, const void *loop)
{
	int error = wh_pool_attach(w->pool, loop, on_kick, p, &p->lease);
	CHECK(error == 0, "attach: %d", error);
}

static void detach(struct peer *p)
{
	struct item item = { .kind = QUIT };
	while (!push(&p->to_peer, &item))
		sched_yield();
	for (;;) {
		if (!pop(&p->to_loop, &item))
			sched_yield();
		else if (item.kind == QUIT)
			break;
	}
	CHECK(!wh_lease_poisoned(p->lease), "an honest peer");
	wh_lease_detach(p->lease);
}

static void serve(struct world *w, struct peer *p, uint64_t *seed)
{
	struct item item = { .kind = RETIRE };
	CHECK(!wh_lease_poisoned(p->lease), "an honest peer");
	while (has_room(&p->to_peer, 1) && wh_lease_next_retire(p->lease, &item.slot))
		CHECK(push(&p->to_peer, &item), "room was looked for");
	while (pop(&p->to_loop, &item)) {
		CHECK(wh_lease_retired(p->lease, item.slot) == 0, "retired");
		atomic_fetch_add(&w->retired, 1);
	}
	bool kicked = atomic_exchange(&p->kicked, false), woken = atomic_exchange(&p->woken, false);
	if (kicked || woken)
		wh_pool_room(w->pool, p->lease);
	if (below(seed, 100) == 0)
		wh_lease_watch(p->lease, below(seed, 2));
	if (!atomic_load(&w->stop_loops) && below(seed, 200) == 0)
		CHECK(wh_lease_harvest(p->lease) >= 0, "an honest peer");
}

static void serve_idlers(struct world *w)
{
	uint16_t slot;
	for (unsigned i = 0; i < w->n_idlers; i++) {
		if (!atomic_exchange(&w->idlers[i].kicked, false))
			continue;
		CHECK(!wh_lease_next_retire(w->idlers[i].lease, &slot), "it knows of none");
		wh_pool_room(w->pool, w->idlers[i].lease);
	}
}

static bool is_owed(struct world *w, struct peer *p)
{
	wh_pool_lock(w->pool);
	bool owed = wh_lease_owed(wh_full(p->lease));
	wh_pool_unlock(w->pool);
	return owed;
}

static void *loop(void *arg)
{
	struct seat *seat = arg;
	struct world *w = seat->world;
	unsigned index = seat->index;
	uint64_t seed = w->seed * 31 + index;
	const void *id = &w->to_loops[index];
	wh_current_loop = id;
	for (unsigned i = index; i < w->n_leases; i += w->n_loops)
		attach(w, &w->peers[i], id);
	for (uint32_t turn = 1;; turn++) {
		struct item item;
		bool stop = atomic_load(&w->stop_loops), busy = false;
		if (index == 0)
			serve_idlers(w);
		for (unsigned i = index; i < w->n_leases; i += w->n_loops) {
			struct peer *p = &w->peers[i];
			serve(w, p, &seed);
			wh_lease_turn(p->lease, turn);
			if (below(&seed, 4000) == 0 && !stop) {
				detach(p);
				attach(w, p, id);
				atomic_fetch_add(&w->reattached, 1);
			}
		}
		for (unsigned k = (unsigned)below(&seed, 40); k > 0; k--) {
			struct peer *p = &w->peers[index + below(&seed,
				(w->n_leases - index + w->n_loops - 1) / w->n_loops) * w->n_loops];
			if (below(&seed, 2) && pop(&w->to_loops[index], &item)) {
				busy = true;
			} else if (stop || atomic_load(&w->stop_workers) || !claim(w, &seed, false, &item.buf)) {
				break;
			}
			if (below(&seed, 8) == 0) {
				abandon(&item.buf);
				continue;
			}
			if (w->shared && below(&seed, 4) == 0) {
				struct wharf_buf more;
				refer(&item.buf, &more);
				send_buf(w, &w->peers[index], &seed, &more);
			}
			send_buf(w, p, &seed, &item.buf);
		}
		if (stop && !busy && !pop(&w->to_loops[index], &item))
			break;
		if (stop && !busy)
			abandon(&item.buf);
		if (!busy)
			sched_yield();
	}
	/* All comes back now: a port that is owed an on_writable must be woken for it. */
	for (unsigned i = index; i < w->n_leases; i += w->n_loops)
		for (uint64_t end = now_ms() + 30000; is_owed(w, &w->peers[i]); sched_yield()) {
			for (unsigned k = index; k < w->n_leases; k += w->n_loops)
				serve(w, &w->peers[k], &seed);
			CHECK(now_ms() < end, "lease %u was not told of room", i);
		}
	for (unsigned i = index; i < w->n_leases; i += w->n_loops)
		detach(&w->peers[i]);
	return NULL;
}

/* ---- Rounds ---- */

static unsigned count_maps(const char *name)
{
	char line[512];
	unsigned n = 0;
	FILE *f = fopen("/proc/self/maps", "re");
	CHECK(f, "maps");
	while (fgets(line, sizeof(line), f))
		n += strstr(line, name) != NULL;
	fclose(f);
	return n;
}

static void on_idler_kick(void *owner) { atomic_store(&((struct idler *)owner)->kicked, true); }

static void play(bool shared, bool crowded, uint64_t seed, uint64_t milliseconds)
{
	struct world *w = calloc(1, sizeof(*w));
	struct seat seats[WORKERS];
	pthread_t loops[LOOPS], workers[WORKERS];
	uint64_t end = now_ms() + milliseconds;

	CHECK(w, "memory");
	w->shared = shared;
	w->seed = seed;
	w->n_loops = shared ? 2 : 1;
	w->n_leases = shared ? LEASES : 1;
	w->bytes_max = (size_t)65536 << below(&seed, 10);
	CHECK(wharf_pool_new(WHARF_OPT(pool, .shared = shared, .bytes_max = w->bytes_max, .name = "stress"),
		&w->pool) == 0, "pool");
	w->n_idlers = shared && crowded ? CROWD : 0;
	for (unsigned i = 0; i < w->n_idlers; i++)
		CHECK(wh_pool_attach(w->pool, &w->to_loops[0], on_idler_kick, &w->idlers[i], &w->idlers[i].lease) == 0,
			"attach");
	for (unsigned i = 0; i < LOOPS; i++)
		pthread_mutex_init(&w->to_loops[i].lock, NULL);
	for (unsigned i = 0; i < LEASES; i++) {
		w->peers[i].world = w;
		pthread_mutex_init(&w->peers[i].to_peer.lock, NULL);
		pthread_mutex_init(&w->peers[i].to_loop.lock, NULL);
	}
	for (unsigned i = 0; i < WORKERS; i++)
		seats[i] = (struct seat){ w, i };
	for (unsigned i = 0; i < w->n_leases; i++)
		CHECK(!pthread_create(&w->peers[i].thread, NULL, receiver, &w->peers[i]), "thread");
	for (unsigned i = 0; i < w->n_loops; i++)
		CHECK(!pthread_create(&loops[i], NULL, loop, &seats[i]), "thread");
	for (unsigned i = 0; i < WORKERS; i++)
		CHECK(!pthread_create(&workers[i], NULL, worker, &seats[i]), "thread");
	while (now_ms() < end)
		usleep(10000);
	atomic_store(&w->stop_workers, true);
	for (unsigned i = 0; i < WORKERS; i++)
		pthread_join(workers[i], NULL);
	atomic_store(&w->stop_loops, true);
	for (unsigned i = 0; i < w->n_loops; i++)
		pthread_join(loops[i], NULL);
	CHECK(w->pool->wide == (w->n_idlers > 0), "leases beyond the first 64");
	for (unsigned i = 0; i < w->n_idlers; i++)
		wh_lease_detach(w->idlers[i].lease);
	atomic_store(&w->stop_peers, true);
	for (unsigned i = 0; i < w->n_leases; i++)
		pthread_join(w->peers[i].thread, NULL);

	for (unsigned s = 0; s < WH_SLOTS_MAX; s++)
		for (unsigned c = 0; c < CHUNKS; c++)
			CHECK(holders[s][c] == 0, "slot %u chunk %u is held at the end", s, c);
	struct wharf_pool_info info = { .size = sizeof(info) };
	CHECK(wharf_pool_info(w->pool, &info) == 0, "info");
	CHECK(info.bytes_lent == 0 && info.bytes_free == info.bytes && info.bytes <= info.bytes_max,
		"lost: %lu of %lu are free",
		(unsigned long)info.bytes_free, (unsigned long)info.bytes);
	wharf_pool_unref(w->pool);
	CHECK(count_maps("/memfd:wharf-stress") == 0, "memory is left");
	printf("%s, %zu KiB: %lu claims, %lu waited, %lu failed, %lu lent, %lu released, %lu reattached, %lu retired\n",
		w->n_idlers ? "crowded" : shared ? "shared" : "private", w->bytes_max >> 10,
		(unsigned long)w->claims, (unsigned long)w->waits,
		(unsigned long)w->failures, (unsigned long)w->lends, (unsigned long)w->releases,
			(unsigned long)w->reattached,
		(unsigned long)w->retired);
	free(w);
}

int main(int argc, char **argv)
{
	wh_pool_idle_ns = 0; /* segments come and go as fast as they can */
	const char *text = argc > 1 ? argv[1] : getenv("WHARF_TEST_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : 1, milliseconds = argc > 2 ? strtoull(argv[2], NULL, 0) : 4000;
	enum { ROUNDS = 10 };

	printf("seed: %lu\n", (unsigned long)seed);
	setvbuf(stdout, NULL, _IOLBF, 0);
	/* A lost wake-up would hang: end with a signal then. */
	alarm(120);
	for (int round = 0; round < ROUNDS; round++)
		play(round % 2, round / 2 % 2, next(&seed), milliseconds / ROUNDS);
	printf("%d passed, 0 failed, 0 skipped\n", ROUNDS);
	return 0;
}
