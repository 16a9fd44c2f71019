/* SPDX-License-Identifier: MIT */
/*
 * Ports between loops of several threads, with everything that other threads may do to them meanwhile: claims and
 * abandons, releases of messages taken elsewhere, references to ports and loops, wakes and stops, loops that are freed
 * and made anew. For ThreadSanitizer; seeded, but threads are not repeatable.
 */
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "stress.h"

enum { LOOPS = 3, CLAIMERS = 2, RELEASERS = 2, WAKERS = 2, THREADS = LOOPS + CLAIMERS + RELEASERS + WAKERS };
enum { PORTS = 6 };

static atomic_ullong n_opened, n_closed, n_sent, n_received, n_wakes, n_loops, n_wrong, n_seen;

/* ---- What threads hand each other ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static wharf_loop *loops[LOOPS];       /* with a reference of this table */
static wharf_port *ports[LOOPS][PORTS]; /* the same */
static wharf_pool *pools[LOOPS][PORTS];
static wharf_pool *shared;
static struct mailbox boxes[LOOPS];
static struct wharf_buf ready[LOOPS][PORTS]; /* claimed elsewhere, to be sent */

/* ---- Loops ---- */

struct worker {
	unsigned index;
	uint64_t random;
	wharf_loop *loop;
	unsigned n_open;
	struct slot { struct worker *worker; wharf_port *port; unsigned index; } slots[PORTS];
};

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct slot *slot = user;
	uint64_t *random = &slot->worker->random;

	atomic_fetch_add(&n_received, 1);
	if (chance(random, 2))
		take_for_others(msg, random);
	if (chance(random, 5000))
		(void)!wharf_port_abort(port, 1);
	else if (chance(random, 5000))
		(void)!wharf_port_close(port, 10000000);
}

static void on_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	struct slot *slot = user;
	unsigned i = slot->worker->index, k = slot->index;
	struct wharf_buf left;
	wharf_pool *pool;

	atomic_fetch_add(&n_closed, 1);
	atomic_fetch_add(&n_wrong, reason->code == WHARF_CLOSE_VIOLATION || reason->code == WHARF_CLOSE_PEER_REFUSED);
	pthread_mutex_lock(&lock);
	ports[i][k] = NULL;
	pool = pools[i][k];
	pools[i][k] = NULL;
	left = ready[i][k];
	ready[i][k] = (struct wharf_buf)WHARF_BUF_EMPTY;
	pthread_mutex_unlock(&lock);
	wharf_buf_abandon(&left);
	wharf_pool_unref(pool);
	wharf_port_unref(port);
	slot->port = NULL;
	slot->worker->n_open--;
}

static const struct wharf_port_ops ops = { .size = sizeof(ops), .on_message = on_message, .on_close = on_close };

static void open_end(struct worker *w, int fd)
{
	struct slot *slot = w->slots;

	while (slot < w->slots + PORTS && slot->port)
		slot++;
	if (slot == w->slots + PORTS || wharf_open(w->loop, fd,
			WHARF_OPT(port, .ops = &ops, .user = slot, .pool = chance(&w->random, 2) ? shared : NULL,
				.pool_bytes_max = 2 << 20, .untrusted = chance(&w->random, 4)),
			&slot->port)) {
		close(fd);
		return;
	}
	atomic_fetch_add(&n_opened, 1);
	w->n_open++;
	wharf_port_ref(slot->port);
	pthread_mutex_lock(&lock);
	ports[w->index][slot->index] = slot->port;
	pools[w->index][slot->index] = wharf_pool_ref(wharf_port_pool(slot->port));
	pthread_mutex_unlock(&lock);
}

static void send_some(struct worker *w)
{
	struct slot *slot = &w->slots[next_random(&w->random) % PORTS];
	struct wharf_buf b;

	if (!slot->port)
		return;
	pthread_mutex_lock(&lock);
	b = ready[w->index][slot->index];
	ready[w->index][slot->index] = (struct wharf_buf)WHARF_BUF_EMPTY;
	pthread_mutex_unlock(&lock);
	for (int i = 0; i < 8; i++) {
		if (!b.data && wharf_buf_claim(wharf_port_pool(slot->port), 1 + next_random(&w->random) % 20000, &b))
			return;
		*(unsigned char *)b.data = 1;
		if (wharf_send_buf(slot->port, 1, &b)) {
			wharf_buf_abandon(&b);
			return;
		}
		atomic_fetch_add(&n_sent, 1);
		(void)!wharf_send_bytes(slot->port, 2, "bytes", 5);
	}
}

static void new_loop(struct worker *w)
{
	if (wharf_loop_new(NULL, &w->loop))
		abort();
	atomic_fetch_add(&n_loops, 1);
	pthread_mutex_lock(&lock);
	loops[w->index] = wharf_loop_ref(w->loop);
	pthread_mutex_unlock(&lock);
}

static void free_loop(struct worker *w)
{
	wharf_loop *mine;

	/* Others may still be in the middle of waking it. */
	wharf_loop_free(w->loop);
	pthread_mutex_lock(&lock);
	mine = loops[w->index];
	loops[w->index] = NULL;
	pthread_mutex_unlock(&lock);
	wharf_loop_unref(mine);
}

static void *run_loop(void *arg)
{
	struct worker w = { .index = (unsigned)(uintptr_t)arg };

	w.random = seed + w.index;
	for (unsigned i = 0; i < PORTS; i++)
		w.slots[i] = (struct slot){ .worker = &w, .index = i };
	while (!atomic_load(&done)) {
		new_loop(&w);
		for (unsigned i = 0; i < 500 && !atomic_load(&done); i++) {
			int fds[2], fd = collect(&boxes[w.index]);
			if (fd >= 0)
				open_end(&w, fd);
			if (w.n_open < PORTS && chance(&w.random, 20) && !wharf_pair(fds)) {
				open_end(&w, fds[0]);
				if (!mail(&boxes[next_random(&w.random) % LOOPS], fds[1]))
					close(fds[1]);
			}
			send_some(&w);
			if (chance(&w.random, 64) && w.n_open)
				(void)!wharf_loop_run(w.loop); /* until a waker stops it */
			else if (wharf_loop_step(w.loop, chance(&w.random, 8) ? 200000 : 0) < 0)
				abort();
		}
		free_loop(&w);
	}
	for (int fd; (fd = collect(&boxes[w.index])) >= 0; )
		close(fd);
	return NULL;
}

/* ---- Everybody else ---- */

static void *claim(void *arg)
{
	uint64_t random = seed + 100 + (uintptr_t)arg;

	while (!atomic_load(&done)) {
		unsigned i = (unsigned)(next_random(&random) % LOOPS), k = (unsigned)(next_random(&random) % PORTS);
		struct wharf_buf b[4] = { 0 }, out;
		wharf_pool *pool;

		pthread_mutex_lock(&lock);
		pool = wharf_pool_ref(pools[i][k]);
		pthread_mutex_unlock(&lock);
		if (!pool)
			continue;
		for (int n = 0; n < 4; n++)
			if (wharf_buf_claim_wait(pool, 1 + next_random(&random) % 5000, n ? 0 : 1000000, &b[n]) == 0)
				memset(b[n].data, n, b[n].size);
		pthread_mutex_lock(&lock);
		out = b[0];
		if (pools[i][k] == pool) {
			out = ready[i][k];
			ready[i][k] = b[0];
		}
		pthread_mutex_unlock(&lock);
		wharf_buf_abandon(&out);
		for (int n = 1; n < 4; n++)
			wharf_buf_abandon(&b[n]);
		wharf_pool_unref(pool);
	}
	return NULL;
}

static void *release(void *arg)
{
	uint64_t random = seed + 200 + (uintptr_t)arg;

	while (!atomic_load(&done)) {
		struct wharf_msg *m = find_taken(&random), *again;

		if (!m)
			continue;
		again = wharf_msg_ref(m);
		/* Mapped still, whatever became of port and loop; a shared pool's bytes may be others' by now. */
		atomic_fetch_add(&n_seen, m->size && *(const unsigned char *)m->slices[0].data);
		wharf_msg_release(m);
		wharf_msg_release(again);
	}
	return NULL;
}

static void *wake(void *arg)
{
	uint64_t random = seed + 300 + (uintptr_t)arg;

	while (!atomic_load(&done)) {
		unsigned i = (unsigned)(next_random(&random) % LOOPS), k = (unsigned)(next_random(&random) % PORTS);
		wharf_port *port;
		wharf_loop *loop;

		pthread_mutex_lock(&lock);
		loop = wharf_loop_ref(loops[i]);
		port = wharf_port_ref(ports[i][k]);
		pthread_mutex_unlock(&lock);
		if (loop) {
			if (chance(&random, 2))
				(void)!wharf_loop_wake(loop);
			else
				wharf_loop_stop(loop);
		}
		wharf_loop_unref(loop);
		wharf_port_unref(port);
		atomic_fetch_add(&n_wakes, 1);
		usleep(20);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	static void *(*const what[THREADS])(void *) = { run_loop, run_loop, run_loop, claim, claim, release, release,
		wake, wake };
	struct wharf_pool_info info;
	pthread_t threads[THREADS];

	seed_begin(argc > 1 ? argv[1] : NULL, 0x7374726573);
	if (wharf_pool_new(WHARF_OPT(pool, .bytes_max = 8 << 20, .shared = 1), &shared))
		abort();
	for (uintptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, what[i], (void *)i))
			abort();
	usleep(2500000);
	atomic_store(&done, true);
	/* A loop that runs with nobody to stop it. */
	for (unsigned i = 0; i < LOOPS; i++) {
		for (bool stopped = false; !stopped; usleep(1000)) {
			pthread_mutex_lock(&lock);
			stopped = !loops[i];
			wharf_loop_stop(loops[i]);
			pthread_mutex_unlock(&lock);
		}
	}
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	release_taken();
	WHARF_INIT(&info);
	if (wharf_pool_info(shared, &info))
		abort();
	wharf_pool_unref(shared);
	printf("%llu loops, %llu ports, %llu messages of %llu sent, %llu taken, %llu bytes seen, %llu wakes\n",
		n_loops, n_opened, n_received, n_sent, n_taken, n_seen, n_wakes);
	const struct outcome checks[] = {
		{ "each port closed once", n_opened == n_closed },
		{ "each message taken was released", n_taken == n_released },
		{ "nobody broke the protocol", !n_wrong },
		{ "something was exchanged", n_received && n_taken },
		{ "nothing of the shared pool is lent", !info.bytes_lent },
		{ "nothing of the shared pool is claimed", info.bytes_free == info.bytes },
	};
	return report(checks, sizeof(checks) / sizeof(*checks));
}
