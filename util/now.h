/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KX_NOW_H
#define KX_NOW_H
#include <stdint.h>
#include <time.h>

/* CLOCK_MONOTONIC in nanoseconds. Async-signal-safe; a call only where the vDSO has no clock. */
static inline uint64_t now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}
#endif
