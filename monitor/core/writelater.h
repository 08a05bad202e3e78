/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes to files that a thread with batched sockets has queued among its sends (kx_bwrites): a log's line, or a
 * database's, goes out before the answer that follows it, by the same exit. All under batch.c's lock.
 *
 * A write that is queued must not fail. So only regular files of local file systems with much room are written so, within
 * the limit of sizes. Should one fail all the same (a quota, a broken disk), the data is kept and tried again, and calls
 * that write or sync tell the error until it is written.
 */
#ifndef KX_MONITOR_WRITELATER_H
#define KX_MONITOR_WRITELATER_H
#include "hcall.h"

/* Thread number ctx begins or ends to batch. */
void writelater_reset(int ctx);
/* It has written n bytes to fd by a call. */
void writelater_seen(int ctx, int fd, int64_t n);
/* A call of it ends: what it may queue from here on, while kx_batch.calls is `calls`. */
void writelater_look(int ctx, uint64_t calls);
/* A record of it: len bytes for fd. False: the guest may not. */
bool writelater_record(int ctx, int fd, const uint8_t *data, uint32_t len);
/* A call has come. True: it is answered, *r: an error of what was queued before. */
bool writelater_enter(const struct hcall *c, int64_t *r);
void writelater_fork_child(void);
/* The process ends. */
void writelater_end(void);
#endif
