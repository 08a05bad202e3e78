/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The monitor's side of kx_openahead.h. All but openahead_seen() and openahead_stale() under batch.c's lock. The guest
 * says which of the files is open, and as which number: one that is free, or it ends.
 */
#ifndef KX_MONITOR_OPENAHEAD_H
#define KX_MONITOR_OPENAHEAD_H
#include "hcall.h"

/* The guest has opened fd by c: argument i is the path (as the guest gave it), the next one the flags. */
void openahead_seen(struct hcall *c, int i, int fd);
/* A call has come, and what was queued before it is done: what the guest has open becomes so, the rest is closed. */
void openahead_settle(void);
/* A call of the guest's, c, ends: what it may open until the next. */
void openahead_offer(const struct hcall *c);
/* That file's descriptor, for records: -1 = there is none. */
int openahead_fd(int file);
/* The guest learns of something in another way than by a call. */
void openahead_stale(void);
void openahead_fork_child(void);
#endif
