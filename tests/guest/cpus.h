/* SPDX-License-Identifier: Apache-2.0 */
/* For tests of two who share a CPU, or have one each. */
#ifndef KX_GUEST_CPUS_H
#define KX_GUEST_CPUS_H
#include <sched.h>

/* What this process may run on, and the first of these. */
static inline void cpus_read(cpu_set_t *all, cpu_set_t *one)
{
	sched_getaffinity(0, sizeof *all, all);
	CPU_ZERO(one);
	for (int i = 0; i < CPU_SETSIZE && !CPU_COUNT(one); i++)
		if (CPU_ISSET(i, all))
			CPU_SET(i, one);
}
#endif
