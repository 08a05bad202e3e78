/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which paths of the program name the emulated procfs.
 *
 * The view has no procfs: its /proc is a plain directory of a tmpfs. What a path means is decided here by its text
 * (dev/procfs.c then serves it); a path that gets past this, by a symlink for instance, meets only that tmpfs. So
 * a mistake here costs accuracy, never isolation.
 */
#ifndef KX_VFS_H
#define KX_VFS_H
#include "hcall.h"

/* Once, inside the view and before any guest code. */
void vfs_init(void);
/* A directory of the host's procfs: by such a descriptor the program would reach the monitor's own mem. */
bool vfs_is_proc_dir(int fd);

/*
 * Classify the path that was just copied into path (c->path_buf[c->nr_paths - 1]; not empty). *proc becomes its
 * place in procfs, normalised, in a buffer of this thread that lives until the next call; NULL when the path is an
 * ordinary one. Forms of *proc: "" is /proc; own pid and tids appear as "self/..." and "self/task/<tid>/..."; a
 * slash at the end means that the path named a directory ("self/", where "self" is the symbolic link).
 * A path through a link of procfs (/proc/self/cwd/x, /proc/self/fd/3/x) is rewritten in place to what it names.
 * Returns 0 or -errno (-ENOENT, -ENOTDIR, -ENAMETOOLONG, -ELOOP).
 */
int vfs_path(struct hcall *c, int dirfd, const char *path, const char **proc);

/* After every change of the working directory. */
void vfs_cwd_changed(void);

/* The forwarded calls (hc_FWD) when a path of theirs is in procfs. */
int64_t vfs_proc_generic(struct hcall *c);
#endif
