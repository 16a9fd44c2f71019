/* SPDX-License-Identifier: MIT */
/*
 * Tasks from many threads to loops that run, sleep, and are freed and made anew meanwhile: each post runs once, in the
 * order of its thread. A wake that is lost leaves a loop asleep for ever. For ThreadSanitizer; seeded, but threads are
 * not repeatable.
 */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include "stress.h"

enum { LOOPS = 2, POSTERS = 8, TASKS = 16, SHARED = 4 };

static atomic_ullong n_posted, n_run, n_refused, n_pending, n_again, n_loops, n_wrong, n_shared_posted, n_shared_run;

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- Loops ---- */

/* One life of a loop. */
struct life {
	struct life *previous; /* of the same thread; freed at the end */
	wharf_loop *loop;
	pthread_t thread;
	uint64_t random;
	uint64_t last[POSTERS + 1]; /* what each thread posted here last, of that which has run; the last is this one */
	uint64_t own;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct life *lives[LOOPS]; /* with a reference to the loop; NULL: between two */

struct job {
	struct wharf_task task;
	struct life *life; /* where it was posted */
	unsigned poster;
	uint64_t number; /* counts the posts of its poster */
	atomic_bool idle;
};

static void run(struct wharf_task *task, int status)
{
	struct job *job = task->user;
	struct life *life = job->life;
	bool again = !status && chance(&life->random, 8);

	atomic_fetch_add(&n_run, 1);
	if (!pthread_equal(life->thread, pthread_self()) || (status && status != -EPIPE) ||
		job->number <= life->last[job->poster])
		atomic_fetch_add(&n_wrong, 1);
	life->last[job->poster] = job->number;
	if (!again) {
		atomic_store(&job->idle, true);
		return;
	}
	/* Its thread waits for it to become idle: it is this thread's for one more round. */
	job->poster = POSTERS;
	job->number = ++life->own;
	atomic_fetch_add(&n_again, 1);
	atomic_fetch_add(&n_posted, 1);
	if (wharf_loop_post(life->loop, task))
		atomic_fetch_add(&n_wrong, 1);
}

static void *run_loop(void *arg)
{
	unsigned index = (unsigned)(uintptr_t)arg;
	struct life *life = NULL, *next;

	while (!atomic_load(&done)) {
		next = calloc(1, sizeof(*next));
		if (!next || wharf_loop_new(NULL, &next->loop))
			abort();
		next->previous = life;
		life = next;
		life->thread = pthread_self();
		life->random = seed + index + atomic_fetch_add(&n_loops, 1) * LOOPS;
		int fd = chance(&life->random, 2) ? wharf_loop_fd(life->loop) : -1;
		pthread_mutex_lock(&lock);
		wharf_loop_ref(life->loop);
		lives[index] = life;
		pthread_mutex_unlock(&lock);
		for (unsigned i = 0; i < 200 && !atomic_load(&done); i++) {
			struct pollfd pollfd = { .fd = fd, .events = POLLIN };
			if (fd >= 0)
				poll(&pollfd, 1, -1);
			if (chance(&life->random, 4) ? wharf_loop_run(life->loop) < 0
						     : wharf_loop_step(life->loop, fd >= 0 ? 0 : -1) < 0)
				abort();
		}
		pthread_mutex_lock(&lock);
		lives[index] = NULL;
		pthread_mutex_unlock(&lock);
		/* Posters with a reference are in the middle of it. */
		wharf_loop_free(life->loop);
		wharf_loop_unref(life->loop);
	}
	for (; life; life = next) {
		next = life->previous;
		free(life);
	}
	return NULL;
}

/* ---- Posters ---- */

static struct wharf_task shared[SHARED];

static void run_shared(struct wharf_task *task, int status)
{
	(void)task, (void)status;
	atomic_fetch_add(&n_shared_run, 1);
}

static void post_shared(wharf_loop *loop, uint64_t *random)
{
	int result = wharf_loop_post(loop, &shared[next_random(random) % SHARED]);

	if (!result)
		atomic_fetch_add(&n_shared_posted, 1);
	else if (result == -EALREADY)
		atomic_fetch_add(&n_pending, 1);
	else if (result != -EPIPE)
		atomic_fetch_add(&n_wrong, 1);
}

static void post_one(struct job *job, struct life *life, unsigned poster, uint64_t number)
{
	job->life = life;
	job->poster = poster;
	job->number = number;
	atomic_store(&job->idle, false);
	atomic_fetch_add(&n_posted, 1);
	switch (wharf_loop_post(life->loop, &job->task)) {
	case 0:
		return;
	case -EPIPE:
		atomic_fetch_add(&n_refused, 1);
		break;
	default:
		atomic_fetch_add(&n_wrong, 1);
	}
	atomic_fetch_sub(&n_posted, 1);
	atomic_store(&job->idle, true);
}

static void *post_many(void *arg)
{
	unsigned poster = (unsigned)(uintptr_t)arg;
	uint64_t random = seed + 100 + poster, number = 0, end_ns = now_ns() + UINT64_C(2000000000);
	static struct job all[POSTERS][TASKS];
	struct job *jobs = all[poster];

	for (unsigned i = 0; i < TASKS; i++) {
		jobs[i].task = (struct wharf_task){ .run = run, .user = &jobs[i] };
		atomic_store(&jobs[i].idle, true);
	}
	while (now_ns() < end_ns) {
		unsigned index = (unsigned)(next_random(&random) % LOOPS);
		struct life *life;

		pthread_mutex_lock(&lock);
		life = lives[index];
		if (life)
			wharf_loop_ref(life->loop);
		pthread_mutex_unlock(&lock);
		if (!life)
			continue;
		for (unsigned i = 0; i < TASKS; i++)
			if (atomic_load(&jobs[i].idle) && chance(&random, 2))
				post_one(&jobs[i], life, poster, ++number);
		post_shared(life->loop, &random);
		wharf_loop_unref(life->loop);
		/* Now and then all of it is to have run: loops that sleep must have been woken. */
		for (unsigned i = 0; chance(&random, 4) && i < TASKS; i++)
			while (!atomic_load(&jobs[i].idle))
				sched_yield();
	}
	for (unsigned i = 0; i < TASKS; i++)
		while (!atomic_load(&jobs[i].idle))
			sched_yield();
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t loops[LOOPS], posters[POSTERS];

	seed_begin(argc > 1 ? argv[1] : NULL, 0x706f7374);
	for (unsigned i = 0; i < SHARED; i++)
		shared[i].run = run_shared;
	for (uintptr_t i = 0; i < LOOPS; i++)
		if (pthread_create(&loops[i], NULL, run_loop, (void *)i))
			abort();
	for (uintptr_t i = 0; i < POSTERS; i++)
		if (pthread_create(&posters[i], NULL, post_many, (void *)i))
			abort();
	for (unsigned i = 0; i < POSTERS; i++)
		pthread_join(posters[i], NULL);
	atomic_store(&done, true);
	for (unsigned i = 0; i < LOOPS; i++) {
		pthread_mutex_lock(&lock);
		if (lives[i])
			wharf_loop_stop(lives[i]->loop);
		pthread_mutex_unlock(&lock);
		pthread_join(loops[i], NULL);
	}
	printf("%llu loops, %llu tasks posted, %llu of them by tasks, %llu refused; %llu shared, %llu while pending\n",
		n_loops, n_posted, n_again, n_refused, n_shared_posted, n_pending);
	const struct outcome checks[] = {
		{ "each task ran once for each time it was posted", n_run == n_posted },
		{ "so did those that all threads post", n_shared_run == n_shared_posted },
		{ "in the order of its thread, and on the loop's", !n_wrong },
		{ "something happened", n_posted && n_again && n_pending && n_loops > LOOPS },
	};
	return report(checks, sizeof(checks) / sizeof(*checks));
}
