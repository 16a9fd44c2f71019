/* SPDX-License-Identifier: MIT */
/* Tasks: run once, in order, by the loop's thread; with the loop, and without it. */
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <unistd.h>

#include "pair.h"
#include "raw.h"

TestSuite(post, .timeout = 30);

static struct pair p;

/* ---- A task that tells what became of it ---- */

struct job {
	struct wharf_task task;
	wharf_loop *loop;
	unsigned n_runs, n_reposts; /* so often it posts itself again */
	int status, repost_result;
	unsigned position; /* among all that ran */
	pthread_t thread;
};

static unsigned n_run;

static void run(struct wharf_task *task, int status)
{
	struct job *job = task->user;

	cr_assert_eq(task, &job->task);
	job->n_runs++;
	job->status = status;
	job->position = n_run++;
	job->thread = pthread_self();
	if (job->n_reposts) {
		job->n_reposts--;
		job->repost_result = wharf_loop_post(job->loop, task);
	}
}

static void job_init(struct job *job, wharf_loop *loop)
{
	*job = (struct job){ .loop = loop, .status = 1, .repost_result = 1 };
	job->task.run = run;
	job->task.user = job;
}

static int post(struct job *job) { return wharf_loop_post(job->loop, &job->task); }

/* Is told when it has returned. */
static void *post_elsewhere(void *arg)
{
	cr_assert_eq(post(arg), 0);
	return NULL;
}

static void post_from_thread(struct job *job)
{
	pthread_t thread;

	cr_assert_eq(pthread_create(&thread, NULL, post_elsewhere, job), 0);
	cr_assert_eq(pthread_join(thread, NULL), 0);
}

static void new_loop(void)
{
	n_run = 0;
	p = (struct pair){ 0 };
	cr_assert_eq(wharf_loop_new(NULL, &p.loop), 0);
}

/* ---- Order ---- */

Test(post, tasks_run_once_and_in_the_order_in_which_they_were_posted)
{
	struct job jobs[10];

	new_loop();
	for (unsigned i = 0; i < 10; i++) {
		job_init(&jobs[i], p.loop);
		if (i % 3)
			cr_assert_eq(post(&jobs[i]), 0);
		else
			post_from_thread(&jobs[i]);
	}
	cr_assert_eq(n_run, 0);
	settle(p.loop);
	for (unsigned i = 0; i < 10; i++) {
		cr_assert_eq(jobs[i].n_runs, 1);
		cr_assert_eq(jobs[i].status, 0);
		cr_assert_eq(jobs[i].position, i);
		cr_assert(pthread_equal(jobs[i].thread, pthread_self()));
	}
	pair_free(&p);
}

Test(post, a_pending_task_is_not_posted_twice)
{
	struct job job;

	new_loop();
	job_init(&job, p.loop);
	cr_assert_eq(post(&job), 0);
	cr_assert_eq(post(&job), -EALREADY);
	settle(p.loop);
	cr_assert_eq(job.n_runs, 1);
	cr_assert_eq(post(&job), 0);
	settle(p.loop);
	cr_assert_eq(job.n_runs, 2);
	pair_free(&p);
}

Test(post, what_a_task_posts_is_for_the_next_turn)
{
	struct job first, second;

	new_loop();
	job_init(&first, p.loop);
	job_init(&second, p.loop);
	first.n_reposts = 3;
	cr_assert_eq(post(&first), 0);
	cr_assert_eq(post(&second), 0);
	cr_assert_gt(wharf_loop_step(p.loop, -1), 0, "more is waiting");
	cr_assert_eq(first.repost_result, 0);
	cr_assert_eq(first.n_runs, 1);
	cr_assert_eq(second.n_runs, 1);
	for (unsigned i = 2; i <= 4; i++) {
		/* It does not sleep on work. */
		cr_assert_geq(wharf_loop_step(p.loop, -1), 0);
		cr_assert_eq(first.n_runs, i);
	}
	settle(p.loop);
	cr_assert_eq(first.n_runs, 4);
	pair_free(&p);
}

Test(post, tasks_keep_run_running)
{
	struct job job;

	new_loop();
	job_init(&job, p.loop);
	job.n_reposts = 100;
	cr_assert_eq(post(&job), 0);
	cr_assert_eq(wharf_loop_run(p.loop), 0);
	cr_assert_eq(job.n_runs, 101);
	cr_assert_eq(wharf_loop_run(p.loop), 0, "nothing is left");
	pair_free(&p);
}

static void send_something(struct wharf_task *task, int status)
{
	cr_assert_eq(status, 0);
	cr_assert_eq(wharf_send_bytes(task->user, 1, "task", 4), 0);
}

Test(post, what_a_task_sends_leaves_in_its_turn)
{
	struct wharf_task task = { .run = send_something };
	struct raw_read read;
	int peer = pair_open_half(&p, NULL);

	raw_say_hello(peer, NULL);
	settle(p.loop);
	while (raw_receive(peer, &read))
		;
	task.user = p.a.port;
	cr_assert_eq(wharf_loop_post(p.loop, &task), 0);
	cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
	cr_assert(raw_receive(peer, &read));
	cr_assert_not_null(raw_find(&read, WH_RECORD_MESSAGE));
	close(peer);
	pair_free(&p);
}

/* ---- Waking ---- */

static void *post_and_stop(void *arg)
{
	struct job *job = arg;

	for (unsigned i = 0; i < 1000; i++)
		while (post(job) == -EALREADY)
			;
	wharf_loop_stop(job->loop);
	return NULL;
}

Test(post, a_sleeping_loop_is_woken)
{
	int peer = pair_open_half(&p, NULL); /* runs until it is stopped */
	struct job job;
	pthread_t thread;

	job_init(&job, p.loop);
	cr_assert_eq(pthread_create(&thread, NULL, post_and_stop, &job), 0);
	cr_assert_eq(wharf_loop_run(p.loop), 0);
	cr_assert_eq(pthread_join(thread, NULL), 0);
	settle(p.loop);
	cr_assert_eq(job.n_runs, 1000);
	close(peer);
	pair_free(&p);
}

static bool readable(int fd)
{
	struct pollfd pollfd = { .fd = fd, .events = POLLIN };

	return poll(&pollfd, 1, 0) == 1;
}

Test(post, a_host_is_woken)
{
	struct job job;
	int fd;

	new_loop();
	job_init(&job, p.loop);
	fd = wharf_loop_fd(p.loop);
	cr_assert_geq(fd, 0);
	for (int i = 0; i < 6; i++) {
		settle(p.loop);
		cr_assert(!readable(fd));
		if (i % 2)
			post_from_thread(&job);
		else
			cr_assert_eq(post(&job), 0);
		cr_assert(readable(fd));
		/* Inside run: as good as outside. */
		job.n_reposts = 1;
		cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
		cr_assert_eq(job.n_runs, 2u * (unsigned)i + 1);
		cr_assert(readable(fd));
		cr_assert_geq(wharf_loop_step(p.loop, 0), 0);
		cr_assert_eq(job.n_runs, 2u * (unsigned)i + 2);
	}
	pair_free(&p);
}

/* ---- Without the loop ---- */

static struct job *closing_job;

static void look_at_job(struct end *end)
{
	(void)end;
	cr_assert_eq(closing_job->n_runs, 1);
}

Test(post, freeing_a_loop_runs_what_is_left_with_EPIPE)
{
	struct job jobs[3], late;

	n_run = 0;
	pair_open(&p, NULL, NULL);
	p.a.on_close = look_at_job;
	closing_job = &jobs[2];
	for (unsigned i = 0; i < 3; i++) {
		job_init(&jobs[i], p.loop);
		jobs[i].n_reposts = i == 1;
		cr_assert_eq(post(&jobs[i]), 0);
	}
	wharf_loop_ref(p.loop);
	job_init(&late, p.loop);
	cr_assert_null(wharf_loop_free(p.loop));
	for (unsigned i = 0; i < 3; i++) {
		cr_assert_eq(jobs[i].n_runs, 1);
		cr_assert_eq(jobs[i].status, -EPIPE);
		cr_assert_eq(jobs[i].position, i);
	}
	cr_assert_eq(jobs[1].repost_result, -EPIPE);
	cr_assert_eq(post(&late), -EPIPE);
	cr_assert_eq(late.n_runs, 0);
	cr_assert_eq(p.a.n_closed, 1);
	wharf_loop_unref(p.loop);
	/* A task that was refused may be posted to another. */
	new_loop();
	late.loop = jobs[1].loop = p.loop;
	cr_assert_eq(post(&late), 0);
	cr_assert_eq(post(&jobs[1]), 0);
	settle(p.loop);
	cr_assert_eq(late.n_runs, 1);
	cr_assert_eq(jobs[1].n_runs, 2);
	pair_free(&p);
}

Test(post, what_is_no_task_is_refused)
{
	struct wharf_task task = { 0 };

	new_loop();
	cr_assert_eq(wharf_loop_post(NULL, &task), -EINVAL);
	cr_assert_eq(wharf_loop_post(p.loop, NULL), -EINVAL);
	cr_assert_eq(wharf_loop_post(p.loop, &task), -EINVAL, "nothing to run");
	pair_free(&p);
}
