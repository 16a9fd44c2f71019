/* SPDX-License-Identifier: MIT */
/*
 * A pipeline: threads fill buffers and post them, one loop sends them, another process's loop receives them, and its
 * threads consume and release them. When those are slow, the encoders wait: each stage holds so much and no more.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "wharf.h"

#define SEC INT64_C(1000000000)

enum {
	FRAME = 1,              /* struct frame_head, then words */
	ENCODERS = 3,
	FRAME_WORDS_MAX = 128 << 10, /* 1 MiB */
	SINKS = 2,
	QUEUE_HIGH = 48,        /* taken messages hold the producer's memory: bound them */
	QUEUE_LOW = 12,
	APP_NO_MEMORY = 1,
	APP_NONSENSE = 2,
};

static uint32_t frames_each = 60;

struct frame_head {
	uint32_t encoder;
	uint32_t number;        /* counts up for each encoder */
	uint64_t n_words;
	uint64_t sum;
};

/* ---- The producer: encoders post from threads of their own ---- */

struct producer {
	wharf_loop *loop;
	wharf_pool *pool;
	wharf_port *port;
	int pidfd;
	pthread_t encoders[ENCODERS];
	size_t n_encoders;
	atomic_uint running, failed, next_encoder;
	struct wharf_task finish; /* posted by the last encoder */
};

/* Fills a frame of a size that is known only afterwards; returns that size. */
static size_t encode(void *to, uint32_t encoder, uint32_t number)
{
	struct frame_head *head = to;
	uint64_t *words = (uint64_t *)(head + 1);
	uint64_t state = (uint64_t)encoder << 32 | number;
	*head = (struct frame_head){ .encoder = encoder, .number = number };
	head->n_words = (state * UINT64_C(0x9e3779b97f4a7c15) >> 40) % FRAME_WORDS_MAX;
	for (uint64_t i = 0; i < head->n_words; i++) {
		state = state * UINT64_C(6364136223846793005) + 1;
		words[i] = state;
		head->sum += state;
	}
	return sizeof *head + head->n_words * sizeof *words;
}

static int encoder_post(struct producer *p, uint32_t encoder, uint32_t number)
{
	struct wharf_buf buf;
	size_t bound = sizeof(struct frame_head) + FRAME_WORDS_MAX * sizeof(uint64_t);
	int e = wharf_buf_claim_wait(p->pool, bound, 10 * SEC, &buf);
	if (e < 0)
		return e;
	e = wharf_buf_trim(&buf, encode(buf.data, encoder, number)); /* the tail is free for the others at once */
	if (e >= 0)
		e = wharf_post_buf(p->port, FRAME, &buf, 10 * SEC);
	if (e < 0)
		wharf_buf_abandon(&buf);
	return e;
}

/* Gives back what producer_start gave the thread; the last one has the port closed. */
static void encoder_end(struct producer *p)
{
	wharf_port_unref(p->port);
	wharf_pool_unref(p->pool);
	if (atomic_fetch_sub(&p->running, 1) == 1)
		wharf_loop_post(p->loop, &p->finish); /* behind everything that was posted before */
}

static void *encoder_main(void *arg)
{
	struct producer *p = arg;
	uint32_t encoder = atomic_fetch_add(&p->next_encoder, 1);
	for (uint32_t number = 0; number < frames_each; number++) {
		int e = encoder_post(p, encoder, number);
		if (e < 0) {
			fprintf(stderr, "encoder %" PRIu32 ": frame %" PRIu32 ": %s\n", encoder, number, strerror(-e));
			atomic_fetch_add(&p->failed, 1);
			break;
		}
	}
	encoder_end(p);
	return NULL;
}

static void producer_finish(struct wharf_task *task, int status)
{
	struct producer *p = task->user;
	if (status == 0)
		wharf_port_close(p->port, 30 * SEC); /* queued frames still go; -EPIPE: it was lost before */
}

static void producer_on_close(wharf_port *port, const struct wharf_reason *why, void *user)
{
	(void)port;
	struct producer *p = user;
	if (why->code == WHARF_CLOSE_LOCAL && !why->unsent_messages)
		return;
	fprintf(stderr, "consumer: %s: %s; %" PRIu64 " frames unsent\n", wharf_close_name(why->code), why->text,
		why->unsent_messages);
	atomic_fetch_add(&p->failed, 1);
}

static const struct wharf_port_ops producer_ops = {
	.size = sizeof producer_ops,
	.on_close = producer_on_close,
};

static int producer_start(struct producer *p)
{
	char self[] = "/proc/self/exe", word[] = "--consume", number[16];
	char *argv[] = { self, word, number, NULL };
	snprintf(number, sizeof number, "%" PRIu32, frames_each);
	int e = wharf_loop_new(NULL, &p->loop);
	if (e >= 0)
		e = wharf_pool_new(WHARF_OPT(pool, .name = "frames"), &p->pool);
	if (e >= 0)
		e = wharf_spawn(p->loop, WHARF_OPT(spawn, .argv = argv,
			.port = WHARF_OPT(port, .ops = &producer_ops, .user = p, .pool = p->pool)),
			&p->port, &p->pidfd);
	if (e < 0)
		return e;
	wharf_port_ref(p->port); /* main's own: the encoders may outlive on_close */
	p->finish = (struct wharf_task){ .run = producer_finish, .user = p };
	atomic_store(&p->running, ENCODERS);
	for (size_t i = 0; i < ENCODERS; i++) {
		wharf_port_ref(p->port);
		wharf_pool_ref(p->pool);
		if (pthread_create(&p->encoders[p->n_encoders], NULL, encoder_main, p) == 0) {
			p->n_encoders++;
		} else {
			atomic_fetch_add(&p->failed, 1);
			encoder_end(p);
		}
	}
	return 0;
}

static int produce(void)
{
	struct producer p = { .pidfd = -1 };
	siginfo_t child = { 0 };
	int e = producer_start(&p);
	if (e >= 0) {
		e = wharf_loop_run(p.loop);
		while (p.n_encoders)
			pthread_join(p.encoders[--p.n_encoders], NULL); /* a lost port ends them with -EPIPE */
	}
	wharf_port_unref(p.port);
	wharf_pool_unref(p.pool);
	wharf_loop_free(p.loop);
	if (p.pidfd >= 0) {
		waitid(P_PIDFD, (id_t)p.pidfd, &child, WEXITED);
		close(p.pidfd);
	}
	if (e < 0)
		fprintf(stderr, "producer: %s\n", strerror(-e));
	bool consumed = child.si_code == CLD_EXITED && child.si_status == EXIT_SUCCESS;
	return e < 0 || atomic_load(&p.failed) || !consumed ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* ---- The consumer: one loop receives, sinks sum up and release ---- */

struct consumer {
	wharf_loop *loop;
	wharf_port *port;
	pthread_mutex_t lock;
	pthread_cond_t filled;
	struct wharf_msg *queue[QUEUE_HIGH];
	size_t first, n_queued;
	bool paused, ended;
	struct wharf_task resume;
	uint32_t next[ENCODERS]; /* the loop's thread's own */
	atomic_uint frames, wrong;
};

static void consumer_on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct consumer *c = user;
	struct frame_head head;
	if (msg->type != FRAME || wharf_msg_copy(msg, 0, &head, sizeof head) != sizeof head ||
	    head.encoder >= ENCODERS || head.n_words > FRAME_WORDS_MAX ||
	    msg->size != sizeof head + head.n_words * sizeof(uint64_t)) {
		wharf_port_abort(port, APP_NONSENSE);
		return;
	}
	if (head.number != c->next[head.encoder]++) /* each thread's posts arrive in its order */
		atomic_fetch_add(&c->wrong, 1);
	struct wharf_msg *taken = wharf_msg_take(msg);
	if (!taken) {
		wharf_port_abort(port, APP_NO_MEMORY);
		return;
	}
	pthread_mutex_lock(&c->lock);
	c->queue[(c->first + c->n_queued++) % QUEUE_HIGH] = taken;
	c->paused = c->n_queued == QUEUE_HIGH; /* full: nothing more is delivered until a sink asks for it */
	bool full = c->paused;
	pthread_cond_signal(&c->filled);
	pthread_mutex_unlock(&c->lock);
	if (full && wharf_port_pause(port) < 0)
		wharf_port_abort(port, APP_NO_MEMORY);
}

static void consumer_resume(struct wharf_task *task, int status)
{
	struct consumer *c = task->user;
	if (status == 0)
		wharf_port_resume(c->port);
}

static const struct wharf_port_ops consumer_ops = {
	.size = sizeof consumer_ops,
	.on_message = consumer_on_message,
};

/* NULL: no more will come. */
static struct wharf_msg *consumer_pop(struct consumer *c)
{
	struct wharf_msg *msg = NULL;
	bool low = false;
	pthread_mutex_lock(&c->lock);
	while (!c->n_queued && !c->ended)
		pthread_cond_wait(&c->filled, &c->lock);
	if (c->n_queued) {
		msg = c->queue[c->first];
		c->first = (c->first + 1) % QUEUE_HIGH;
		low = --c->n_queued == QUEUE_LOW && c->paused;
		c->paused &= !low;
	}
	pthread_mutex_unlock(&c->lock);
	if (low)
		wharf_loop_post(c->loop, &c->resume); /* -EPIPE: the loop has ended; -EALREADY: it is about to resume */
	return msg;
}

static void *sink_main(void *arg)
{
	struct consumer *c = arg;
	for (struct wharf_msg *msg; (msg = consumer_pop(c));) {
		const struct frame_head *head = msg->slices[0].data; /* one claim: one slice, 64-aligned */
		const uint64_t *words = (const uint64_t *)(head + 1);
		uint64_t sum = 0;
		for (uint64_t i = 0; i < (msg->size - sizeof *head) / sizeof *words; i++)
			sum += words[i];
		if (sum != head->sum)
			atomic_fetch_add(&c->wrong, 1);
		atomic_fetch_add(&c->frames, 1);
		wharf_msg_release(msg); /* perhaps after the port and the loop */
	}
	wharf_loop_unref(c->loop);
	return NULL;
}

static int consume(void)
{
	static struct consumer c = { .lock = PTHREAD_MUTEX_INITIALIZER, .filled = PTHREAD_COND_INITIALIZER };
	pthread_t sinks[SINKS];
	size_t n_sinks = 0;
	c.resume = (struct wharf_task){ .run = consumer_resume, .user = &c };
	int e = wharf_loop_new(NULL, &c.loop);
	if (e >= 0)
		e = wharf_port_inherit(c.loop, WHARF_OPT(port, .ops = &consumer_ops, .user = &c), &c.port);
	if (e >= 0)
		wharf_port_ref(c.port); /* a late resume must find a handle */
	while (e >= 0 && n_sinks < SINKS) {
		e = -pthread_create(&sinks[n_sinks], NULL, sink_main, wharf_loop_ref(c.loop) ? &c : NULL);
		if (e >= 0)
			n_sinks++;
	}
	if (e >= 0)
		e = wharf_loop_run(c.loop); /* until the producer has closed */
	wharf_loop_free(c.loop);
	pthread_mutex_lock(&c.lock);
	c.ended = true;
	pthread_cond_broadcast(&c.filled);
	pthread_mutex_unlock(&c.lock);
	while (n_sinks)
		pthread_join(sinks[--n_sinks], NULL);
	wharf_port_unref(c.port);

	printf("%u frames consumed, %u wrong\n", atomic_load(&c.frames), atomic_load(&c.wrong));
	if (e < 0)
		fprintf(stderr, "consumer: %s\n", strerror(-e));
	return e < 0 || c.wrong || c.frames != ENCODERS * frames_each ? EXIT_FAILURE : EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
	bool consumer = argc == 3 && !strcmp(argv[1], "--consume");
	if (argc > 1)
		frames_each = (uint32_t)strtoul(argv[argc - 1], NULL, 0);
	if ((argc > 2 && !consumer) || !frames_each) {
		printf("usage: pipeline [frames of each encoder]\n");
		return argc == 2 && !strcmp(argv[1], "-h") ? EXIT_SUCCESS : EXIT_FAILURE;
	}
	return consumer ? consume() : produce();
}
