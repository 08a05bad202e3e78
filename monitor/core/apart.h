/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes of KylinX's own beside a family, which have nothing of it (vmend.h, net.h). Each is a child of the family's
 * root, or of what `kylinx exec` adds, without an exit signal: waits of the program do not find it, but those with __WALL and
 * __WCLONE, which ask here. Not a grandchild that its parent has left: where the root is the first process of a container,
 * or a subreaper, that would be its child all the same, and with a signal.
 */
#ifndef KX_APART_H
#define KX_APART_H
#include <stdbool.h>
#include <sys/types.h>

#define APART_MAX 2 /* of one process */

/* Before the jail, while this process has one thread. As fork(); in the child, apart_begin() comes next. */
pid_t apart_fork(void);
/*
 * In it: a session of its own, default actions and no blocked signals, /dev/null as standard streams, "/" as directory, all
 * descriptors that it may have, and none from 3 on but those that `keep` points to, which get other numbers if they have those
 * of standard streams; this puts keep in order. False: "/" can't be entered, or there is no descriptor left.
 */
bool apart_begin(int **keep, int nr, const char *name);

/* pid is one of the calling process's. */
bool apart_is(pid_t pid);
/* The calling process has one. */
bool apart_any(void);
/* It was waited for: somebody has ended it. False: it is none. */
bool apart_reaped(pid_t pid);
/* In a child, which has none. */
void apart_fork_child(void);
/* Across an exec. */
void apart_export(pid_t out[APART_MAX]);
void apart_import(const pid_t in[APART_MAX]);
#endif
