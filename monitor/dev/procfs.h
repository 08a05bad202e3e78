/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The procfs that the program sees. `rel` is what vfs_path() gives. Buffers are the monitor's own memory.
 *
 * Files about the process are generated into sealed memory files. The rest comes from an allow list: where the
 * caller cannot change the host's file by its descriptor, that very file, else a copy. Directories are made as plain
 * directories of the tmpfs at the view's /proc when they are opened. No directory of the real procfs, and none of
 * the monitor's own descriptors for it, is ever in a guest's reach: what the monitor must open for itself is opened
 * by a short-lived thread with a table of descriptors of its own (private_run).
 */
#ifndef KX_PROCFS_H
#define KX_PROCFS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

/* As open(2): a descriptor (through fd_result()) or -errno. May block where the target of self/fd/N does. */
int64_t procfs_open(const char *rel, int flags, unsigned mode);
/* As readlink(2): bytes put into buf or -errno. */
int64_t procfs_readlink(const char *rel, char *buf, size_t len);
/* 0 or -errno. */
int procfs_stat(const char *rel, struct stat *st, bool nofollow);
/* statx_buf: struct statx, 256 bytes. */
int procfs_statx(const char *rel, int flags, unsigned mask, void *statx_buf);
int procfs_access(const char *rel, int mode);
/* Make the directory and change to it. The caller calls vfs_cwd_changed(). */
int64_t procfs_chdir(const char *rel);
/*
 * For calls that act on what a link of procfs names. Returns the kind of target: PROCFS_FD: relative to
 * pvm.proc_fd, a link that the host follows (self/fd/N); PROCFS_PATH: an absolute path in the view (exe, cwd, root);
 * PROCFS_NONE: rel is no such link.
 */
enum procfs_target { PROCFS_NONE, PROCFS_FD, PROCFS_PATH };
enum procfs_target procfs_target(const char *rel, char *out, size_t len, int *fd);
/* The beginning of a file of the host's procfs, as a string: bytes or -errno. No descriptor is seen. */
int procfs_peek(const char *rel, char *buf, size_t len);
/* Call fn for each name in a directory of the host's procfs, after it has been read. 0 or -errno. No descriptor is seen. */
int procfs_each(const char *rel, void (*fn)(const char *name, void *arg), void *arg);
/* The same of a directory of descriptors, at least as far as the guest's go, where nothing of the program's runs yet: without
 * the thread that has the descriptor for itself. */
int procfs_each_early(const char *rel, void (*fn)(const char *name, void *arg), void *arg);
/* Before the process's first mq_notify(2) registration: from now on looks into /proc don't end it. 0 or -errno. */
int procfs_keep_notify(void);
/* The text of this process's smaps as the program sees it, of malloc(). 0 or -errno. */
int procfs_smaps(char **text);
/* The process whose directory a guest's descriptor is of, 0 when it is none. */
pid_t procfs_pid(int fd);
/* Around a fork: nobody else may hold the lock over /proc. */
void procfs_fork_lock(void);
void procfs_fork_unlock(void);
#endif
