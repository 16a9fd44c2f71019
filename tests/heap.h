/* SPDX-License-Identifier: MIT */
/* Heap in use, to the byte, under a sanitizer too: from count_heap on, which a test calls before it allocates. */
#ifndef HEAP_H
#define HEAP_H

#include <malloc.h>
#include <stddef.h>

#include <criterion/criterion.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define COUNTED_BY_SANITIZER
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(COUNTED_BY_SANITIZER)
/* Its own count is of blocks with their red zones. Declared here, because its header is not always there. */
int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void *, size_t),
	void (*on_free)(const volatile void *));
size_t __sanitizer_get_allocated_size(const volatile void *block);
static size_t heap_counted;
static void heap_on_malloc(const volatile void *block, size_t bytes)
{
	(void)block;
	heap_counted += bytes;
}
static void heap_on_free(const volatile void *block) { heap_counted -= block ? __sanitizer_get_allocated_size(block) : 0; }
static inline void count_heap(void) { cr_assert(__sanitizer_install_malloc_and_free_hooks(heap_on_malloc, heap_on_free)); }
static inline size_t heap_bytes(void) { return heap_counted; }
#else
static inline void count_heap(void) {}
static inline size_t heap_bytes(void)
{
	struct mallinfo2 info = mallinfo2();
	return info.uordblks + info.hblkhd;
}
#endif

#endif
