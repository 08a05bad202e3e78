/* SPDX-License-Identifier: Apache-2.0 */
/*
 * At a limit of processes, places that are about to be free. Who is told of an end may be told before its place is: a
 * child's VM ends behind it (vmend.h; before Linux 6.14 a thread of the kernel's in its maker's cgroup), and the kernel
 * counts a thread until all of it has ended, which is after its joiner has been woken.
 */
#ifndef KX_ROOM_H
#define KX_ROOM_H
#include <stdbool.h>

/* A child or thread of this process has ended. */
void room_soon(void);
/* A process or thread could not be made: for want of a place. True: the last end was a moment ago; try again. */
bool room_await(void);
#endif
