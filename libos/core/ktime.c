/* SPDX-License-Identifier: Apache-2.0 */
/* The clock system calls that need no exit. Arguments are LibOS memory; the caller checks user pointers. */
#include "ktime.h"

#define VVAR (kt_page())

int kt_clock_gettime(int clk, int64_t *sec, int64_t *nsec) { return kt_read(VVAR, clk, sec, nsec); }

/* Without a valid page the host's clock source, and so its resolution, is unknown here. */
int kt_clock_getres(int clk, int64_t *sec, int64_t *nsec)
{
	if (!kt_is_fine(clk) || !__atomic_load_n(&VVAR->valid, __ATOMIC_RELAXED))
		return 1;
	*sec = 0;
	*nsec = 1;
	return 0;
}

int kt_gettimeofday(int64_t *sec, int64_t *usec)
{
	int64_t nsec;

	if (kt_read(VVAR, KT_REALTIME, sec, &nsec))
		return 1;
	*usec = nsec / 1000;
	return 0;
}

int kt_time(int64_t *sec)
{
	int64_t nsec;

	return kt_read(VVAR, KT_REALTIME, sec, &nsec);
}
