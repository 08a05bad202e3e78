/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which calls of the family may change how long a file is: told around them in struct kx_futexes, the page that all
 * guests map, so that a size that was looked at before (batch_seek.c) is known to hold or not. Whoever is killed within
 * such a call stays counted: sizes are then asked for by calls.
 */
#ifndef KX_SIZES_H
#define KX_SIZES_H
#include "hcall.h"

/* Around the handler. */
struct sizes {
	bool counted, inside;
	uint64_t resized;
};
struct sizes sizes_before(const struct hcall *c);
void sizes_done(const struct sizes *s);
/* The same for a write of the monitor's own to a file of the program's. */
void sizes_begin(void);
void sizes_after(void);
#endif
