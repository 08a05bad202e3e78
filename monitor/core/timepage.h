/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The time page: clock parameters that the LibOS and the vDSO read instead of asking (struct kx_vvar).
 *
 * There is one per process. Its truth is the host's clock_gettime(); between two looks at it the page extrapolates
 * with the TSC, which the guest has from the host (tsc.h), for at most max_delta ticks. The guest may read, never write
 * it; the monitor does not read it back either but keeps its own copy.
 */
#ifndef KX_TIMEPAGE_H
#define KX_TIMEPAGE_H
#include <stdbool.h>
#include <stdint.h>
#include <time.h>
#include "../../abi/kx_abi.h"

/*
 * Start to keep the page v (zeroed memory; host address of KX_VVAR_BASE). tsc_ok: the host's clock source is the TSC
 * (timepage_host_tsc()); false leaves the page invalid for good, and everything below does nothing. tsc_khz:
 * from KVM_GET_TSC_KHZ, 0 = unknown (costs 2 ms). Takes some microseconds. Call before the first guest instruction.
 */
void timepage_init(struct kx_vvar *v, bool tsc_ok, uint32_t tsc_khz);

/* True when the host keeps time by the TSC. Reads sysfs: call it before the view of the file system changes. */
bool timepage_host_tsc(void);

/* Refresh the page when it is due. From any thread at any rate; never waits. */
void timepage_update(struct kx_vvar *v);

/*
 * Answer clock_gettime() from the page, refreshed first when due. A thread that was sent to the monitor because the
 * page was too old must be answered by this and not by the host's clock: the two differ by some nanoseconds, and
 * time would step back. False: not a clock of the page, or the page is not valid; ask the host.
 */
bool timepage_gettime(struct kx_vvar *v, int clk, struct timespec *ts);

/* Around fork(): before it, and after it in parent and child, so that no half-written page is inherited. */
void timepage_fork_lock(void);
void timepage_fork_unlock(void);
#endif
