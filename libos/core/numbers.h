/* SPDX-License-Identifier: Apache-2.0 */
/* The lowest free descriptors (struct kx_numbers), for a thread that takes and frees some without an exit. */
#ifndef KX_LIBOS_NUMBERS_H
#define KX_LIBOS_NUMBERS_H
#include "../../abi/kx_accept.h"
#include "libos.h"

#define NUMBERS ((struct kx_numbers *)(KX_BATCH_BASE + KX_NUMBERS_AT))

/* -1: not known. */
static inline int32_t numbers_lowest(void)
{
	if (NUMBERS->n - 1 >= KX_NUMBERS_MAX || __atomic_load_n(&NUMBERS->freed, __ATOMIC_ACQUIRE) < NUMBERS->free[0])
		return -1;
	return NUMBERS->free[0];
}

/* The lowest is free no more. */
static inline void numbers_take(void)
{
	uint32_t n = NUMBERS->n;
	if (n - 1 >= KX_NUMBERS_MAX)
		return;
	for (uint32_t i = 1; i < n; i++)
		NUMBERS->free[i - 1] = NUMBERS->free[i];
	NUMBERS->n = n - 1;
}

/* By the thread that they are for. */
static inline void numbers_put(int32_t fd)
{
	uint32_t n = NUMBERS->n, i;
	if (n > KX_NUMBERS_MAX)
		return;
	if (n == KX_NUMBERS_MAX) /* the highest one is forgotten, and comes with the next exit */
		n--;
	for (i = n; i && NUMBERS->free[i - 1] > fd; i--)
		NUMBERS->free[i] = NUMBERS->free[i - 1];
	NUMBERS->free[i] = fd;
	NUMBERS->n = n + 1;
}

/* By that of context ctx (number + 1), which may be another. */
static inline void numbers_closed(uint32_t ctx, int32_t fd)
{
	int32_t was = __atomic_load_n(&NUMBERS->freed, __ATOMIC_ACQUIRE);
	if (NUMBERS->owner == ctx) {
		numbers_put(fd);
		return;
	}
	while (fd < was &&
	       !__atomic_compare_exchange_n(&NUMBERS->freed, &was, fd, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		;
}
#endif
