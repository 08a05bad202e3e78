/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keeps the memory of large programs in 2 MiB pages. After a fork the first write into each such page splits it, and from
 * then on each of its 512 pages is a fault of the guest, or two. A thread of the monitor's looks which have been split
 * (PAGEMAP_SCAN, Linux 6.7) and has the kernel copy each as a whole (MADV_COLLAPSE): what the process shares with its
 * child becomes its own, ahead of writes to the rest. What the program had before it was large, in small pages, becomes
 * large ones in the same way.
 *
 * Nothing of it changes what the program sees. The memory that it takes is what the program would have taken had it written
 * to all of the pages, so it waits for some writes, and for memory to be there.
 */
#ifndef KX_WHOLE_H
#define KX_WHOLE_H
#include <stdbool.h>

/* There may be something to do, for the first time or again: a fork, or the program has become large. No locks held. */
void whole_due(void);
/* In a child of fork: it has none of it. */
void whole_fork_child(void);
/* As batch_fds(). */
int whole_fds(int (*move)(int *fd));
#endif
