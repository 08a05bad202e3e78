/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread that looks after queues whose owners make no calls (batch.c). While calls are made it sleeps: each puts off
 * the timer that would wake it. A tick of its own while a vCPU runs would cost both of them far more than itself: the
 * vCPU's registers are saved and loaded again.
 *
 * All of these are called with batch.c's lock or dgram.c's held.
 */
#ifndef KX_FLUSHER_H
#define KX_FLUSHER_H
#include <stdbool.h>

/* look(), which takes these locks itself, is called when it is due. False: there can be no such thread. */
bool flusher_start(void (*look)(void));
/* Within 2 ms, but not in the first half of one, unless this is called again before. */
void flusher_due(void);
/* As batch_fds(). */
int flusher_fds(int (*move)(int *fd));
/* In a child of fork: it has none of it. */
void flusher_fork_child(void);
#endif
