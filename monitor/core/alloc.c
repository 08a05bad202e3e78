/* SPDX-License-Identifier: Apache-2.0 */
/*
 * malloc(), calloc(), realloc(), free() of the monitor, its libraries included (the linker's --wrap): libc's, behind a
 * lock of ours, so that
 * a fork by whatever means finds the heap in order; and for a child of vfork its scratch area. What such a child frees
 * that is not from there is left alone.
 */
#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "../../util/together.h"
#include "keeper.h"

#define SCRATCH_BYTES (64ul << 20) /* reserved; arguments and environment of exec are the most that it holds */
#define SCRATCH_STEP (256ul << 10)
#define HEAD 16ul /* before each piece: its size */

struct scratch {
	size_t total, stack;
	char *end, *open, *next, *last; /* of the reservation, of what is writable, of what is used; the last piece */
};

struct scratch *scratch_make(size_t stack_bytes, void **top)
{
	size_t total = SCRATCH_BYTES + stack_bytes, first = stack_bytes + 4096;
	char *p = mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return NULL;
	if (mprotect(p, first, PROT_READ | PROT_WRITE)) {
		munmap(p, total);
		return NULL;
	}
	*top = p + stack_bytes;
	struct scratch *s = *top;
	s->total = total;
	s->stack = stack_bytes;
	s->end = p + total;
	s->open = p + first;
	scratch_reset(s);
	return s;
}

void scratch_unmake(struct scratch *s) { munmap((char *)s - s->stack, s->total); }

void scratch_reset(struct scratch *s)
{
	s->next = (char *)s + ((sizeof *s + 15) & ~15ul);
	s->last = NULL;
}

#ifdef __SANITIZE_ADDRESS__ /* has an allocator of its own */
void alloc_fork_lock(void) {}
void alloc_fork_unlock(void) {}
#else

static bool scratch_room(struct scratch *s, char *to)
{
	if (to <= s->open)
		return true;
	if (to > s->end)
		return false;
	size_t more = ((size_t)(to - s->open) + SCRATCH_STEP - 1) & ~(SCRATCH_STEP - 1);
	if (more > (size_t)(s->end - s->open))
		more = s->end - s->open;
	if (mprotect(s->open, more, PROT_READ | PROT_WRITE))
		return false;
	s->open += more;
	return true;
}

static void *scratch_alloc(struct scratch *s, size_t n)
{
	if (n > SCRATCH_BYTES || !scratch_room(s, s->next + HEAD + n + 15)) {
		errno = ENOMEM;
		return NULL;
	}
	char *p = s->next + HEAD;
	*(size_t *)s->next = n;
	s->next = (char *)(((uintptr_t)p + n + 15) & ~15ul);
	s->last = p;
	return p;
}

static bool scratch_has(struct scratch *s, void *p) { return s && (char *)p > (char *)s && (char *)p < s->end; }

static void *scratch_realloc(struct scratch *s, void *p, size_t n, size_t old)
{
	if (p == s->last && n <= SCRATCH_BYTES && scratch_room(s, (char *)p + n + 15)) {
		((size_t *)p)[-2] = n;
		s->next = (char *)(((uintptr_t)p + n + 15) & ~15ul);
		return p;
	}
	void *q = scratch_alloc(s, n);
	if (q)
		memcpy(q, p, old < n ? old : n);
	return q;
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t k, size_t n);
void *__real_realloc(void *p, size_t n);
void __real_free(void *p);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t k, size_t n);
void *__wrap_realloc(void *p, size_t n);
void __wrap_free(void *p);

static KX_TOGETHER pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static __thread int inside; /* libc's fork() may free something */

static void enter(void)
{
	if (!inside++)
		pthread_mutex_lock(&gate);
}

static void leave(void)
{
	if (!--inside)
		pthread_mutex_unlock(&gate);
}

void alloc_fork_lock(void) { enter(); }

/* In a child the lock may have been another thread's. */
void alloc_fork_unlock(void)
{
	inside = 0;
	pthread_mutex_unlock(&gate);
}

static struct scratch *mine(void) { return self && self->scratch && is_vfork_child() ? self->scratch : NULL; }

void *__wrap_malloc(size_t n)
{
	struct scratch *s = mine();
	if (s)
		return scratch_alloc(s, n);
	enter();
	void *p = __real_malloc(n);
	leave();
	return p;
}

void *__wrap_calloc(size_t k, size_t n)
{
	struct scratch *s = mine();
	size_t all;
	if (__builtin_mul_overflow(k, n, &all)) {
		errno = ENOMEM;
		return NULL;
	}
	if (s) {
		void *q = scratch_alloc(s, all);
		return q ? memset(q, 0, all) : NULL;
	}
	enter();
	void *p = __real_calloc(k, n);
	leave();
	return p;
}

void __wrap_free(void *p)
{
	if (!p || mine() || (self && scratch_has(self->scratch, p)))
		return;
	enter();
	__real_free(p);
	leave();
}

void *__wrap_realloc(void *p, size_t n)
{
	struct scratch *s = mine();
	if (!p)
		return malloc(n);
	if (s)
		return scratch_realloc(s, p, n, scratch_has(s, p) ? ((size_t *)p)[-2] : malloc_usable_size(p));
	enter();
	void *q = __real_realloc(p, n);
	leave();
	return q;
}
#endif
