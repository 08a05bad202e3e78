/* SPDX-License-Identifier: Apache-2.0 */
/* Arrays that grow. */
#ifndef KX_UTIL_GROW_H
#define KX_UTIL_GROW_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* The elements to have room for: twice as many, from `first` on, until `need` are among them. 0: more than there can be. */
static inline size_t kx_grown(size_t cap, size_t need, size_t first, size_t max)
{
	cap = cap ? cap : first;
	while (cap < need)
		cap = cap > max / 2 ? need : 2 * cap;
	return cap <= max ? cap : 0;
}

/* Room for one more behind n elements of an array that this alone has made longer: its steps are powers of two. NULL without memory: the array is as it was. */
static inline void *kx_one_more(void *p, size_t n, size_t size)
{
	return n & (n - 1) ? p : n > PTRDIFF_MAX / 2 / size ? NULL : realloc(p, (n ? 2 * n : 1) * size);
}

/*
 * Room for NEED elements in ARRAY, from malloc(), which has room for CAP; both are variables, set when it has grown. False without
 * memory: nothing has changed then.
 */
#define kx_room(array, cap, need, first) \
	({ \
		const size_t need_ = (need); \
		bool good_ = need_ <= (cap); \
		if (!good_) { \
			const size_t max_ = (__typeof__(cap))PTRDIFF_MAX / sizeof *(array); \
			const size_t grown_ = kx_grown((cap), need_, (first), max_); \
			__typeof__(array) p_ = grown_ ? realloc((array), grown_ * sizeof *p_) : NULL; \
			if (p_) { \
				(array) = p_; \
				(cap) = (__typeof__(cap))grown_; \
				good_ = true; \
			} \
		} \
		good_; \
	})
#endif
