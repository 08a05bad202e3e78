/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UDP in batches: one exit for a turn of a server, where each receive, send and wait was one.
 *
 * Of a UDP socket that the program receives from again and again, the monitor receives ahead, into a buffer of the
 * socket's in guest memory, from which the LibOS answers (libos/core/dgram.c); replies wait in a ring of the thread's,
 * and are sent before the next call of any thread is made. Datagrams that lie in a buffer make the socket ready for
 * poll, select and epoll, and count for FIONREAD and MSG_PEEK. An error that a queued send or a receive ahead meets is
 * that of the program's next call on the socket.
 *   - What is received ahead belongs to the process, as what recvmmsg(2) brought: nobody else can have it, and it is
 *     lost with the process and by exec. How much that is (dgram_window()):
 *     a socket that this process alone holds, in a process of one thread: up to KX_DGRAM_AHEAD;
 *     any other: no more than the program itself received of it between two waits.
 *   - A socket that others hold is not received from but by a receive of the program's.
 * A child of vfork takes no part. Lock: one; inside it are none but leaves.
 */
#ifndef KX_DGRAM_INTERNAL_H
#define KX_DGRAM_INTERNAL_H
#include "hcall.h"

/* Around a call's handler, its arguments checked. True: *r is its result, no handler is needed. */
bool dgram_enter(struct hcall *c, int64_t *r);
void dgram_leave(struct hcall *c, int64_t r);
/* This process has UDP sockets. */
bool dgram_active(void);
/* May the service thread make the call, with these around it? */
bool dgram_may_serve(const struct hcall *c);
/* fd goes to somebody else. */
void dgram_share(int fd);
/* Of the flusher's looks, with batch.c's lock held: send what has been queued. True: there may be more. */
bool dgram_tick(void);
/* Around the making of a process. */
void dgram_fork_lock(void);
void dgram_fork_share(void);
void dgram_fork_unlock(void);
void dgram_fork_child(void);
/* All that were made since a socket was shared have ended (batch.c's leases). */
void dgram_alone_again(void);
/* The process ends: send what is queued. */
void dgram_end(void);
#endif
