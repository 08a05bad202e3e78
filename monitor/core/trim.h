/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a process that sleeps does not need: the monitor's own code and constants, which are pages of its file. The kernel
 * maps sixteen of them for each that is touched, so after a start nearly all are mapped. Behind a long sleep come those that
 * are used then, out of the page cache.
 */
#ifndef KX_TRIM_H
#define KX_TRIM_H
#include "hcall.h"

/* The call c, which may sleep, is about to be made. */
void trim_before(const struct hcall *c);
#endif
