/* SPDX-License-Identifier: Apache-2.0 */
/* The tests' time: CLOCK_MONOTONIC, and a sleep that a signal ends. */
#ifndef KX_GUEST_CLOCK_H
#define KX_GUEST_CLOCK_H
#include <stdint.h>
#include <time.h>

static inline int64_t now_us(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000ll + ts.tv_nsec / 1000;
}

static inline int64_t now_ms(void) { return now_us() / 1000; }

static inline void nap(int ms)
{
	struct timespec ts = { ms / 1000, ms % 1000 * 1000000l };
	nanosleep(&ts, NULL);
}
#endif
