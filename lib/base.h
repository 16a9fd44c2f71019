/* SPDX-License-Identifier: MIT */
/* What every file may use: attributes, small arithmetic, assertion tiers. */
#ifndef WH_BASE_H
#define WH_BASE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define wh_likely(x) __builtin_expect(!!(x), 1)
#define wh_unlikely(x) __builtin_expect(!!(x), 0)
#define wh_array_len(a) (sizeof(a) / sizeof((a)[0]))
#define wh_container_of(p, type, member) ((type *)(void *)((char *)(p) - offsetof(type, member)))

/* Set by meson's option asserts: 0 off, 1 cheap, 2 full (anything that costs more than a compare on a hot path). */
#ifndef WH_ASSERTS
#define WH_ASSERTS 1
#endif

_Noreturn void wh_assert_failed(const char *expression, const char *file, int line);

#if WH_ASSERTS >= 1
#define wh_assert(x) (wh_likely(x) ? (void)0 : wh_assert_failed(#x, __FILE__, __LINE__))
#else
#define wh_assert(x) ((void)sizeof(!(x)))
#endif
#if WH_ASSERTS >= 2
#define wh_assert_full(x) wh_assert(x)
#else
#define wh_assert_full(x) ((void)sizeof(!(x)))
#endif

#if ATOMIC_LLONG_LOCK_FREE != 2
#error "wharf shares 64-bit atomics between processes: they must be lock-free"
#endif

/* Asks for a line that will be written: the store itself would wait in a queue that is a few messages long. */
static inline void wh_prefetch_write(const void *line)
{
#if defined __x86_64__
	/* The compiler would make a prefetch for reading of it, unless told of a newer processor. */
	__asm__ volatile("prefetchw %0" : : "m"(*(const char *)line));
#else
	__builtin_prefetch(line, 1);
#endif
}

/* Between two looks at something that another processor will change. */
static inline void wh_relax(void)
{
#if defined __x86_64__
	__builtin_ia32_pause();
#elif defined __aarch64__
	__asm__ volatile("yield");
#endif
}

static inline size_t wh_min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t wh_max(size_t a, size_t b) { return a > b ? a : b; }
/* a must be a power of two; wraps to 0 only beyond SIZE_MAX - a. */
static inline size_t wh_align_up(size_t n, size_t a) { return (n + a - 1) & ~(a - 1); }

#endif
