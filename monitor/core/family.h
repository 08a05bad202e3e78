/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The family: the pVMs forked from one root. A table of their pids in memory that all of them map (a memfd, so that
 * it outlives exec). Only who is in it can be signalled, waited for by name, or made part of a process group from
 * inside. A pid leaves it when its process is reaped, which is before the host can give the number to another.
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
/* False when the table is full of living members. Who has ended and was never waited for is removed then. */
bool family_room(void);
void family_remove(pid_t pid);
bool family_has(pid_t pid);
/* Call fn for each member; returns how many there were. */
int family_each(void (*fn)(pid_t pid, void *arg), void *arg);
#endif
