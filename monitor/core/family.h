/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The family: the pVMs forked from one root. A table of their pids in memory that all of them map (a memfd, so that
 * it outlives exec). Only who is in it can be signalled, waited for by name, or made part of a process group from
 * inside. A pid leaves it when a member waits for its process; one that nobody waits for is found to be gone when it
 * is looked up. Behind the table are the sums of --stats (stats.h).
 */
#ifndef KX_FAMILY_H
#define KX_FAMILY_H
#include <stdbool.h>
#include <sys/types.h>
#include "../../util/err.h"

#define FAMILY_MAX 8192

/* Make the table (fd < 0) or map an inherited one. Sets pvm.family_fd. */
int family_init(int fd, struct kx_err *err);
/* 0, or -EAGAIN when the table is full. */
int family_add(pid_t pid);
void family_remove(pid_t pid);
bool family_has(pid_t pid);
/* The member that a thread belongs to; 0 when it is no member's. */
pid_t family_owner(pid_t tid);
/* Call fn for each member; returns how many there were. */
int family_each(void (*fn)(pid_t pid, void *arg), void *arg);
#endif
