/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which calls of the family may change how long a file is, so that a size that was looked at before (batch_seek.c) is
 * known to hold or not. Each process counts those that it is in (family.c: whoever is killed within one counts no more),
 * and tells of those that begin in struct kx_futexes, the page that all guests map; not of writes into what a file has.
 *
 * As long as nobody has asked for sizes, each write counts, to whatever it is, and none is told of: who asks first finds
 * those that began before, and those that begin later know of it.
 */
#ifndef KX_SIZES_H
#define KX_SIZES_H
#include "hcall.h"

/* Around the handler: true if sizes_after() must follow. */
bool sizes_before(const struct hcall *c);
void sizes_after(void);
/* The same for a write of the monitor's own to a file of the program's. */
void sizes_begin(void);

/* Somebody asks for sizes from now on. */
void sizes_ask(void);
#endif
