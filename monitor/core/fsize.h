/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RLIMIT_FSIZE is for what the program writes. What the monitor makes, memory files above all, is not meant: between
 * these two the limit is as high as it can be, and no signal says that it was met.
 */
#ifndef KX_FSIZE_H
#define KX_FSIZE_H
#include <stdbool.h>
#include <sys/resource.h>

struct fsize {
	struct rlimit was;
	bool locked, lifted, blocked, pending;
};

/* Between the two the lock of fsize.c, a leaf, is held; not nested. errno stays. */
void fsize_lift(struct fsize *f);
void fsize_drop(const struct fsize *f);
void fsize_fork_lock(void);
void fsize_fork_unlock(void);
#endif
