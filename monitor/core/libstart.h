/* SPDX-License-Identifier: Apache-2.0 */
/* The monitor's side of kx_libstart.h. */
#ifndef KX_MONITOR_LIBSTART_H
#define KX_MONITOR_LIBSTART_H
#include <stdbool.h>
#include <stdint.h>

/* Everything is ready for the program's first instruction. */
void libstart_begin(void);
/* A call nr has come: make true what was told. */
void libstart_settle(uint64_t nr, const uint64_t arg[6]);
/* The heap ends elsewhere; under pvm.mm_lock. */
void libstart_brk(uint64_t brk);
extern bool libstart_any; /* there is something to settle */
#endif
