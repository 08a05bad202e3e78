/* SPDX-License-Identifier: Apache-2.0 */
/* Pieces of memory that a server's turn takes and gives back without exits (kx_recycle.h). Under batch.c's lock. */
#ifndef KX_MONITOR_RECYCLE_H
#define KX_MONITOR_RECYCLE_H
#include "hcall.h"

/* Before any call: what was given back is made zeros; what c could show is made what the program was told. */
void recycle_enter(struct hcall *c);
/* c, made by a thread with batches, has returned r. */
void recycle_leave(const struct hcall *c, int64_t r);
#endif
