/* SPDX-License-Identifier: Apache-2.0 */
/* Signals between members that need no exit: abi/kx_sigwait.h. */
#ifndef KX_SIGWAIT_MONITOR_H
#define KX_SIGWAIT_MONITOR_H

/* This process sends signals to others, or waits for them: soon it gets the memory for that. No lock of the monitor's is
 * held here. */
void sigwait_used(void);
#endif
