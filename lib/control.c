/* SPDX-License-Identifier: MIT */
/*
 * Control memory: see control.h. A bump allocator with one free list per power of two: what is in it comes and goes in
 * few sizes.
 */
#include "control.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "compat.h"
#include "guard.h"

enum {
	RESERVE_BYTES = 64 << 10, /* taken from the kernel at once; guessed, never tuned */
	WISH_BYTES = 4096,
	ORDERS = 23,              /* 64 B << 22 is the whole arena */
};

static struct {
	pthread_mutex_t lock;
	char *base;
	struct wh_control_header *header;
	int fd;
	const struct wh_trace_wish *wish; /* NULL: there is none */
	int wish_fd;
	bool hooked;
	size_t used;             /* handed out at least once */
	size_t reserved;         /* backed by pages */
	uint32_t free[ORDERS];   /* positions; the next one is in a free block's first word */
	uint64_t next_id;
	struct wh_fork_hook hook;
} arena = { .lock = PTHREAD_MUTEX_INITIALIZER, .fd = -1, .wish_fd = -1 };

static void in_child(struct wh_fork_hook *hook)
{
	(void)hook;
	if (arena.fd >= 0)
		close(arena.fd);
	if (arena.wish_fd >= 0)
		close(arena.wish_fd);
	arena.fd = arena.wish_fd = -1;
}

static uint64_t start_time(void)
{
	char text[1024], *at;
	int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	ssize_t n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return 0;
	text[n] = 0;
	/* The second field is the program's name in parentheses: anything may be in it. */
	at = strrchr(text, ')');
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	return at ? strtoull(at, NULL, 10) : 0;
}

static int reserve(char *base, size_t bytes)
{
	if (bytes <= arena.reserved)
		return 0;
	if (bytes > WH_CONTROL_BYTES_MAX)
		return -ENOMEM;
	size_t more = wh_align_up(bytes - arena.reserved, RESERVE_BYTES);
	int error;
	do
		error = fallocate(arena.fd, 0, (off_t)arena.reserved, (off_t)more) < 0 ? errno : 0;
	while (error == EINTR);
	if (error)
		return -ENOMEM;
	madvise(base + arena.reserved, more, MADV_DODUMP);
	arena.reserved += more;
	return 0;
}

static int make_memfd(const char *name)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);

	return fd < 0 && errno == EINVAL ? memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING) : fd;
}

/* Without it there are statistics all the same, and no trace. */
static void make_wish(void)
{
	struct wh_trace_wish *wish;
	int fd = make_memfd("wharf-trace");

	if (fd < 0)
		return;
	if (fallocate(fd, 0, 0, WISH_BYTES) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		goto fail;
	wish = mmap(NULL, WISH_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (wish == MAP_FAILED)
		goto fail;
	if (madvise(wish, WISH_BYTES, MADV_DONTFORK) < 0) {
		munmap(wish, WISH_BYTES);
		goto fail;
	}
	wish->magic = WH_TRACE_MAGIC;
	wish->version = WH_CONTROL_VERSION;
	arena.wish = wish;
	arena.wish_fd = fd;
	return;
fail:
	close(fd);
}

static int arena_make(void)
{
	int error;
	void *base = MAP_FAILED;

	arena.fd = make_memfd("wharf-control");
	if (arena.fd < 0)
		return -errno;
	if (ftruncate(arena.fd, WH_CONTROL_BYTES_MAX) < 0)
		goto fail;
	base = mmap(NULL, WH_CONTROL_BYTES_MAX, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, arena.fd, 0);
	if (base == MAP_FAILED || madvise(base, WH_CONTROL_BYTES_MAX, MADV_DONTFORK) < 0)
		goto fail;
	/* A core dump would give memory to all of it. */
	madvise(base, WH_CONTROL_BYTES_MAX, MADV_DONTDUMP);
	if (fcntl(arena.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE) < 0 ||
	    fcntl(arena.fd, F_ADD_SEALS, F_SEAL_SEAL) < 0)
		goto fail;
	arena.reserved = 0;
	error = reserve(base, WH_CONTROL_HEADER_BYTES);
	if (error) {
		errno = -error;
		goto fail;
	}
	__atomic_store_n(&arena.base, base, __ATOMIC_RELAXED);
	arena.header = base;
	arena.used = WH_CONTROL_HEADER_BYTES;
	arena.header->version = WH_CONTROL_VERSION;
	arena.header->pid = (uint32_t)getpid();
	arena.header->start_time = start_time();
	arena.header->size = WH_CONTROL_BYTES_MAX;
	atomic_store_explicit(&arena.header->used, arena.used, memory_order_relaxed);
	make_wish();
	/* Last: whoever sees the magic sees the rest. */
	atomic_store_explicit(&arena.header->magic, WH_CONTROL_MAGIC, memory_order_release);
	if (!arena.hooked) {
		arena.hook.child = in_child;
		wh_guard_add(&arena.hook);
		arena.hooked = true;
	}
	return 0;
fail:
	error = -errno;
	if (base != MAP_FAILED)
		munmap(base, WH_CONTROL_BYTES_MAX);
	close(arena.fd);
	arena.fd = -1;
	return error;
}

static unsigned order_of(size_t bytes)
{
	size_t units = (bytes + WH_CONTROL_UNIT - 1) / WH_CONTROL_UNIT;
	return units <= 1 ? 0 : (unsigned)(64 - __builtin_clzll(units - 1));
}

static void *at(uint32_t position) { return arena.base + (size_t)position * WH_CONTROL_UNIT; }

bool wh_control_owns(const void *block)
{
	const char *base = __atomic_load_n(&arena.base, __ATOMIC_RELAXED); /* another thread may be making it */

	return base && (uintptr_t)block - (uintptr_t)base < WH_CONTROL_BYTES_MAX;
}

uint32_t wh_control_position(const void *block)
{
	return wh_control_owns(block) ? (uint32_t)((size_t)((const char *)block - arena.base) / WH_CONTROL_UNIT) : 0;
}

static void put(uint32_t position, unsigned order)
{
	*(uint32_t *)at(position) = arena.free[order];
	arena.free[order] = position;
}

static uint32_t take(unsigned order)
{
	unsigned from = order;
	while (from < ORDERS && !arena.free[from])
		from++;
	if (from == ORDERS)
		return 0;
	uint32_t position = arena.free[from];
	arena.free[from] = *(uint32_t *)at(position);
	/* Halves are not joined again: sizes are few, so what was split is asked for again in the same size. */
	while (from-- > order)
		put(position + (1u << from), from);
	return position;
}

int wh_control_alloc(size_t bytes, void **ret_block)
{
	unsigned order = order_of(bytes);
	size_t size = (size_t)WH_CONTROL_UNIT << order;
	uint32_t position;
	int error = 0;

	wh_assert(bytes > 0 && size < WH_CONTROL_BYTES_MAX);
	pthread_mutex_lock(&arena.lock);
	if (!arena.base)
		error = arena_make();
	if (error)
		goto out;
	position = take(order);
	if (position) {
		memset(at(position), 0, bytes);
	} else {
		error = reserve(arena.base, arena.used + size);
		if (error)
			goto out;
		position = (uint32_t)(arena.used / WH_CONTROL_UNIT);
		arena.used += size;
		atomic_store_explicit(&arena.header->used, arena.used, memory_order_relaxed);
	}
	*ret_block = at(position);
out:
	pthread_mutex_unlock(&arena.lock);
	return error;
}

void wh_control_free(void *block, size_t bytes)
{
	if (!block)
		return;
	pthread_mutex_lock(&arena.lock);
	put(wh_control_position(block), order_of(bytes));
	pthread_mutex_unlock(&arena.lock);
}

const struct wh_trace_wish *wh_control_wish(void)
{
	static const struct wh_trace_wish nobody;
	const struct wh_trace_wish *wish;

	pthread_mutex_lock(&arena.lock);
	wish = arena.wish ? arena.wish : &nobody;
	pthread_mutex_unlock(&arena.lock);
	return wish;
}

void wh_control_change_begin(void)
{
	pthread_mutex_lock(&arena.lock);
	/* No store of the change comes before it: an inspector that sees one sees the odd number. */
	atomic_fetch_add_explicit(&arena.header->sequence, 1, memory_order_seq_cst);
}

void wh_control_change_end(void)
{
	atomic_fetch_add_explicit(&arena.header->sequence, 1, memory_order_release);
	pthread_mutex_unlock(&arena.lock);
}

/* A list of blocks that have their links at these offsets. Between begin and end. */
struct links {
	size_t next, previous;
};

static _Atomic uint32_t *link_at(void *block, size_t offset)
{
	return (_Atomic uint32_t *)(void *)((char *)block + offset);
}

static void add(_Atomic uint32_t *first, void *block, struct links links)
{
	uint32_t next = *first, position = wh_control_position(block);

	atomic_store_explicit(link_at(block, links.next), next, memory_order_relaxed);
	if (next)
		*link_at(at(next), links.previous) = position;
	atomic_store_explicit(first, position, memory_order_release);
}

static void take_out(_Atomic uint32_t *first, void *block, struct links links)
{
	uint32_t next = *link_at(block, links.next), previous = *link_at(block, links.previous);

	if (previous)
		*link_at(at(previous), links.next) = next;
	else
		*first = next;
	if (next)
		*link_at(at(next), links.previous) = previous;
}

static const struct links pool_links = { offsetof(struct wh_control_pool, next),
	offsetof(struct wh_control_pool, previous) };
static const struct links lease_links = { offsetof(struct wh_control_lease, next),
	offsetof(struct wh_control_lease, previous) };
static const struct links loop_links = { offsetof(struct wh_stats_loop, next),
	offsetof(struct wh_stats_loop, previous) };
static const struct links port_links = { offsetof(struct wh_stats_port, next),
	offsetof(struct wh_stats_port, previous) };

void wh_control_add_pool(struct wh_control_pool *pool)
{
	wh_control_change_begin();
	pool->id = ++arena.next_id;
	add(&arena.header->first_pool, pool, pool_links);
	arena.header->n_pools++;
	wh_control_change_end();
}

void wh_control_remove_pool(struct wh_control_pool *pool)
{
	wh_control_change_begin();
	take_out(&arena.header->first_pool, pool, pool_links);
	arena.header->n_pools--;
	wh_control_change_end();
}

void wh_control_add_lease(struct wh_control_pool *pool, struct wh_control_lease *lease)
{
	wh_control_change_begin();
	lease->id = ++arena.next_id;
	add(&pool->first_lease, lease, lease_links);
	wh_control_change_end();
}

void wh_control_remove_lease(struct wh_control_pool *pool, struct wh_control_lease *lease)
{
	wh_control_change_begin();
	take_out(&pool->first_lease, lease, lease_links);
	wh_control_change_end();
}

static uint64_t new_id(void)
{
	pthread_mutex_lock(&arena.lock);
	uint64_t id = ++arena.next_id;
	pthread_mutex_unlock(&arena.lock);
	return id;
}

void wh_control_add_loop(struct wh_stats_loop *loop)
{
	loop->id = new_id();
	if (!wh_control_owns(loop))
		return;
	wh_control_change_begin();
	add(&arena.header->first_loop, loop, loop_links);
	arena.header->n_loops++;
	wh_control_change_end();
}

void wh_control_remove_loop(struct wh_stats_loop *loop)
{
	if (!wh_control_owns(loop))
		return;
	wh_control_change_begin();
	take_out(&arena.header->first_loop, loop, loop_links);
	arena.header->n_loops--;
	wh_control_change_end();
}

void wh_control_add_port(struct wh_stats_loop *loop, struct wh_stats_port *port)
{
	port->id = new_id();
	if (!wh_control_owns(loop) || !wh_control_owns(port))
		return;
	wh_control_change_begin();
	__atomic_store_n(&port->loop, wh_control_position(loop), __ATOMIC_RELAXED);
	add(&loop->first_port, port, port_links);
	loop->n_ports++;
	wh_control_change_end();
}

void wh_control_remove_port(struct wh_stats_loop *loop, struct wh_stats_port *port)
{
	if (!port->loop)
		return;
	wh_control_change_begin();
	take_out(&loop->first_port, port, port_links);
	loop->n_ports--;
	__atomic_store_n(&port->loop, 0, __ATOMIC_RELAXED);
	wh_control_change_end();
}

void wh_control_restart(void)
{
	in_child(NULL);
	memset(&arena, 0, sizeof(arena));
	arena.lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
	arena.fd = arena.wish_fd = -1;
}
