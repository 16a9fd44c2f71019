/* SPDX-License-Identifier: MIT */
/*
 * Messages from many threads to ports of loops that run, close, and are freed and made anew meanwhile, out of private
 * pools and one that all loops share, with claims, abandons and releases elsewhere at the same time. What one thread
 * posts to a port arrives in its order without a gap; of what does not arrive nothing is left. For ThreadSanitizer;
 * seeded, but threads are not repeatable.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "stress.h"

enum { LOOPS = 3, POSTERS = 8, RELEASERS = 2, THREADS = LOOPS + POSTERS + RELEASERS };
enum { PORTS = 4 };

static int null_fd;
static atomic_ullong n_opened, n_closed, n_loops, n_posted, n_again, n_late, n_piped, n_received, n_wrong, n_unsent;
static atomic_ullong n_references, n_done;

/* ---- What threads hand each other ---- */

/* One life of a port, as posters see it; freed at the end. */
struct life {
	struct life *next;
	uint32_t numbers[POSTERS]; /* accepted so far, of each poster: nobody else's */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct life *lives;
static struct entry {
	wharf_port *port; /* with a reference of this table, as the pool; NULL: none */
	wharf_pool *pool;
	struct life *life;
} table[LOOPS][PORTS];
static wharf_pool *shared;
static struct mailbox boxes[LOOPS];

/* ---- Loops ---- */

struct worker {
	unsigned index;
	uint64_t random;
	wharf_loop *loop;
	struct slot {
		struct worker *worker;
		wharf_port *port;
		unsigned index;
		uint32_t next[POSTERS]; /* number of each poster's next message */
	} slots[PORTS];
};

/*
 * The type says who posted it, and as its how manieth message to this port; payload in a private pool begins with it,
 * too. Memory of a shared one may be others' again: the loop that lent it may be gone.
 */
enum { NUMBER_BITS = 24 };
#define IS_PRIVATE (UINT32_C(1) << 31)

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct slot *slot = user;
	uint64_t *random = &slot->worker->random;
	uint32_t poster = (msg->type & ~IS_PRIVATE) >> NUMBER_BITS, word = 0;
	uint32_t number = msg->type & ((UINT32_C(1) << NUMBER_BITS) - 1);

	atomic_fetch_add(&n_received, 1);
	if (poster >= POSTERS || number != slot->next[poster]++)
		atomic_fetch_add(&n_wrong, 1);
	wharf_msg_copy(msg, 0, &word, sizeof(word));
	if (msg->type & IS_PRIVATE && word != msg->type)
		atomic_fetch_add(&n_wrong, 1);
	if (chance(random, 4))
		take_for_others(msg, random);
	if (chance(random, 3000))
		(void)!wharf_port_abort(port, 1);
	else if (chance(random, 1000))
		(void)!wharf_port_close(port, 10000000);
}

static void on_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	struct slot *slot = user;
	struct entry *entry = &table[slot->worker->index][slot->index], old;

	(void)port;
	atomic_fetch_add(&n_closed, 1);
	atomic_fetch_add(&n_unsent, reason->unsent_messages);
	if (reason->code == WHARF_CLOSE_VIOLATION || reason->code == WHARF_CLOSE_PEER_REFUSED) {
		printf("%s\n", reason->text);
		atomic_fetch_add(&n_wrong, 1);
	}
	pthread_mutex_lock(&lock);
	old = *entry;
	*entry = (struct entry){ 0 };
	pthread_mutex_unlock(&lock);
	wharf_pool_unref(old.pool);
	wharf_port_unref(old.port);
	slot->port = NULL;
}

static const struct wharf_port_ops ops = { .size = sizeof(ops), .on_message = on_message, .on_close = on_close };

static void open_end(struct worker *w, int fd)
{
	struct slot *slot = w->slots;
	struct entry *entry;
	struct life *life;

	while (slot < w->slots + PORTS && slot->port)
		slot++;
	if (slot == w->slots + PORTS ||
		wharf_open(w->loop, fd,
			WHARF_OPT(port, .ops = &ops, .user = slot, .pool = chance(&w->random, 2) ? shared : NULL,
				.pool_bytes_max = 1 << 20, .tx_queued_bytes_max = chance(&w->random, 2) ? 20000 : 0,
				.flags = chance(&w->random, 4) ? WHARF_PORT_INLINE : 0, .rx_fds_max = 4,
				.tx_fds_max = 8),
			&slot->port)) {
		close(fd);
		return;
	}
	atomic_fetch_add(&n_opened, 1);
	memset(slot->next, 0, sizeof(slot->next));
	life = calloc(1, sizeof(*life));
	if (!life)
		abort();
	entry = &table[w->index][slot->index];
	pthread_mutex_lock(&lock);
	life->next = lives;
	lives = life;
	*entry = (struct entry){ wharf_port_ref(slot->port), wharf_pool_ref(wharf_port_pool(slot->port)), life };
	pthread_mutex_unlock(&lock);
}

static void open_some(struct worker *w)
{
	int fds[2], fd = collect(&boxes[w->index]);

	if (fd >= 0)
		open_end(w, fd);
	if (!chance(&w->random, 10) || wharf_pair(fds))
		return;
	open_end(w, fds[0]);
	if (!mail(&boxes[next_random(&w->random) % LOOPS], fds[1]))
		close(fds[1]);
}

static void *run_loop(void *arg)
{
	struct worker w = { .index = (unsigned)(uintptr_t)arg };

	w.random = seed + w.index;
	for (unsigned i = 0; i < PORTS; i++)
		w.slots[i] = (struct slot){ .worker = &w, .index = i };
	while (!atomic_load(&done)) {
		if (wharf_loop_new(NULL, &w.loop))
			abort();
		atomic_fetch_add(&n_loops, 1);
		for (unsigned i = 0; i < 1500 && !atomic_load(&done); i++) {
			open_some(&w);
			if (wharf_loop_step(w.loop, chance(&w.random, 4) ? 300000 : 0) < 0)
				abort();
		}
		wharf_loop_free(w.loop);
	}
	for (int fd; (fd = collect(&boxes[w.index])) >= 0;)
		close(fd);
	return NULL;
}

/* ---- Posters ---- */

static char reference[3000];

static void count_done(const void *bytes, size_t size, void *user)
{
	(void)bytes, (void)size, (void)user;
	atomic_fetch_add(&n_done, 1);
}

/* Posts a message of several kinds of parts; those that it does not have are the caller's still, or never were. */
static int post_one(const struct entry *e, uint32_t type, uint64_t *random, bool *ret_referenced)
{
	static const int64_t timeouts_ns[] = { 0, 0, 100000, 1000000, -1 };
	struct wharf_part parts[3] = { { .bytes = &type, .size = sizeof(type) } };
	struct wharf_buf buf = WHARF_BUF_EMPTY;
	struct wharf_out out = { .parts = parts, .n_parts = 1 };
	int64_t timeout_ns = timeouts_ns[next_random(random) % 5];
	int result;

	if (e->pool != shared)
		type |= IS_PRIVATE;
	out.type = type;
	*ret_referenced = chance(random, 4);
	if (*ret_referenced)
		parts[out.n_parts++] =
			(struct wharf_part){ .bytes = reference, .size = sizeof(reference), .done = count_done };
	if (chance(random, 2) &&
		!(timeout_ns ? wharf_buf_claim_wait(e->pool, 1 + next_random(random) % 9000, 200000, &buf)
			     : wharf_buf_claim(e->pool, 1 + next_random(random) % 9000, &buf))) {
		memset(buf.data, 1, buf.size);
		if (out.n_parts == 1 && buf.size >= sizeof(type) && chance(random, 2)) {
			/* All of it in place. */
			memcpy(buf.data, &type, sizeof(type));
			result = wharf_post_buf(e->port, type, &buf, timeout_ns);
			wharf_buf_abandon(&buf);
			return result;
		}
		parts[out.n_parts++] = (struct wharf_part){ .buf = &buf };
	}
	if (chance(random, 8)) {
		out.fds = &null_fd;
		out.n_fds = 1;
	}
	result = wharf_post(e->port, &out, timeout_ns);
	/* Emptied, or refused. */
	if (!result && buf.data)
		atomic_fetch_add(&n_wrong, 1);
	wharf_buf_abandon(&buf);
	return result;
}

static void *post_many(void *arg)
{
	uint32_t poster = (uint32_t)((uintptr_t)arg - LOOPS);
	uint64_t random = seed + 100 + poster;

	while (!atomic_load(&done)) {
		struct entry *from = &table[next_random(&random) % LOOPS][next_random(&random) % PORTS], e;

		pthread_mutex_lock(&lock);
		e = *from;
		wharf_port_ref(e.port);
		wharf_pool_ref(e.pool);
		pthread_mutex_unlock(&lock);
		if (!e.port) {
			sched_yield();
			continue;
		}
		for (int i = 0; i < 16; i++) {
			bool referenced;
			int result =
				post_one(&e, poster << NUMBER_BITS | e.life->numbers[poster], &random, &referenced);
			if (!result) {
				e.life->numbers[poster]++;
				atomic_fetch_add(&n_posted, 1);
				atomic_fetch_add(&n_references, referenced);
				continue;
			}
			atomic_fetch_add(result == -EAGAIN     ? &n_again
					: result == -ETIMEDOUT ? &n_late
					: result == -EPIPE     ? &n_piped
							       : &n_wrong,
				1);
			if (result != -EAGAIN && result != -ETIMEDOUT && result != -EPIPE)
				printf("a post answered %d\n", result);
			break;
		}
		wharf_port_unref(e.port);
		wharf_pool_unref(e.pool);
	}
	return NULL;
}

static void *release(void *arg)
{
	uint64_t random = seed + 200 + (uintptr_t)arg;

	while (!atomic_load(&done)) {
		struct wharf_msg *m = find_taken(&random);

		wharf_msg_release(m);
		if (!m)
			sched_yield();
	}
	return NULL;
}

/* ---- All of them ---- */

static void run_all(void)
{
	pthread_t threads[THREADS];

	for (uintptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL,
			    i < LOOPS                     ? run_loop
				    : i < LOOPS + POSTERS ? post_many
							  : release,
			    (void *)i))
			abort();
	usleep(2500000);
	atomic_store(&done, true);
	/* Who waits for ever is woken by the end of the loops. */
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
}

int main(int argc, char **argv)
{
	struct wharf_pool_info info;

	seed_begin(argc > 1 ? argv[1] : NULL, 0x6d657373);
	null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null_fd < 0 || wharf_pool_new(WHARF_OPT(pool, .bytes_max = 4 << 20, .shared = 1), &shared))
		abort();
	run_all();
	release_taken();
	for (struct life *life = lives, *next; life; life = next) {
		next = life->next;
		free(life);
	}
	WHARF_INIT(&info);
	if (wharf_pool_info(shared, &info))
		abort();
	wharf_pool_unref(shared);
	printf("%llu loops, %llu ports, %llu posted, %llu received, %llu unsent; %llu again, %llu late, %llu too "
	       "late\n",
		n_loops, n_opened, n_posted, n_received, n_unsent, n_again, n_late, n_piped);
	const struct outcome checks[] = {
		{ "each port closed once", n_opened == n_closed },
		{ "each thread's posts arrived in order, and nobody broke the protocol", !n_wrong },
		{ "nothing arrived that was not posted, or that was counted as unsent",
			n_received + n_unsent <= n_posted },
		{ "each part by reference was done once", n_references == n_done },
		{ "each message taken was released", n_taken == n_released },
		{ "something happened", n_received && n_unsent && n_again && n_late && n_piped && n_done && n_taken },
		{ "nothing of the shared pool is lent", !info.bytes_lent },
		{ "nothing of the shared pool is claimed", info.bytes_free == info.bytes },
	};
	return report(checks, sizeof(checks) / sizeof(*checks));
}
