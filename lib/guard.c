/* SPDX-License-Identifier: MIT */
/* The canary page and the atfork handlers: see guard.h. */
#include "guard.h"

#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

static const unsigned char no_page = WH_GUARD_USUAL;
const volatile unsigned char *wh_guard_page = &no_page;
_Thread_local const void *wh_current_loop __attribute__((tls_model("initial-exec")));

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct wh_fork_hook *hooks;
static bool handlers_set;

/* The list must not be half changed in the child: fork waits for whoever changes it. */
static void before_fork(void) { pthread_mutex_lock(&lock); }

static void in_parent(void) { pthread_mutex_unlock(&lock); }

static void in_child(void)
{
	for (struct wh_fork_hook *hook = hooks; hook; hook = hook->next)
		hook->child(hook);
	hooks = NULL;
	wh_current_loop = NULL;
	pthread_mutex_unlock(&lock);
}

static int make_page(void)
{
	size_t size = (size_t)sysconf(_SC_PAGESIZE);
	unsigned char *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		return -ENOMEM;
	if (madvise(page, size, MADV_WIPEONFORK) < 0) {
		int error = -errno;
		munmap(page, size);
		return error;
	}
	*page = WH_GUARD_USUAL;
	__atomic_store_n(&wh_guard_page, page, __ATOMIC_RELEASE);
	return 0;
}

int wh_guard_init(void)
{
	int error = 0;

	if (wh_forked())
		return -ECHILD;
	if (wh_likely(__atomic_load_n(&wh_guard_page, __ATOMIC_ACQUIRE) != &no_page))
		return 0;
	pthread_mutex_lock(&lock);
	if (wh_guard_page == &no_page)
		error = make_page();
	if (!error && !handlers_set) {
		error = -pthread_atfork(before_fork, in_parent, in_child);
		handlers_set = !error;
	}
	pthread_mutex_unlock(&lock);
	return error;
}

void wh_guard_watch(bool watched)
{
	unsigned char *page = (unsigned char *)(uintptr_t)__atomic_load_n(&wh_guard_page, __ATOMIC_ACQUIRE);
	unsigned char now = watched ? WH_GUARD_WATCHED : WH_GUARD_USUAL;

	if (__atomic_load_n(page, __ATOMIC_RELAXED) != now)
		__atomic_store_n(page, now, __ATOMIC_RELAXED);
}

void wh_guard_lock(void) { pthread_mutex_lock(&lock); }

void wh_guard_unlock(void) { pthread_mutex_unlock(&lock); }

void wh_guard_add(struct wh_fork_hook *hook)
{
	pthread_mutex_lock(&lock);
	hook->next = hooks;
	hook->link = &hooks;
	if (hooks)
		hooks->link = &hook->next;
	hooks = hook;
	pthread_mutex_unlock(&lock);
}

void wh_guard_remove(struct wh_fork_hook *hook)
{
	pthread_mutex_lock(&lock);
	*hook->link = hook->next;
	if (hook->next)
		hook->next->link = hook->link;
	pthread_mutex_unlock(&lock);
}

int wh_guard_restart(void)
{
	if (!wh_forked())
		return -EALREADY;
	/* A child made without fork's handlers still has the list. */
	hooks = NULL;
	wh_current_loop = NULL;
	return make_page();
}
