/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the LibOS must know to leave the host alone with futexes: who sleeps in the family (struct kx_futexes, a page of
 * the family's memfd), whether others can wait for a word of this process's, and on how many CPUs it runs.
 *
 * Sleepers outside the family count nowhere. They can have: a file that both map (then the process that maps it goes to
 * the host with each wake of a shared futex); a file of the family's private tmpfs or a memfd, when its descriptor has
 * crossed the family's border, as an inherited one or in a message (then all of the family do). Whoever reaches into the
 * family's tmpfs by /proc/PID/root is not thought of.
 */
#ifndef KX_FUTEXES_H
#define KX_FUTEXES_H
#include "pvm.h"

/* Map the page. Needs guest memory and the family's table. */
int futexes_init(struct kx_err *err);
/* In the view, before the program: which file systems are the family's own. */
void futexes_view(void);
/* The program has mapped fd shared. */
void futexes_mapped(int fd, int prot);
/* A descriptor goes into a message, or came in one or from before the program. */
void futexes_passed(int fd);
/* The first process of a family, or one from the host, is about to start the program. */
void futexes_inherited(void);
/* t, which sleeps or not, ends with its process: it counts no more. */
void futexes_uncount(struct thread *t);
#endif
