/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KX_DIRS_H
#define KX_DIRS_H
#include <dirent.h>
#include <sys/types.h>

/* Make the directory and those above it, as far as they are missing: the last with that mode, the others with 0755, less
 * the umask. 0 or -errno; of a path of 4,096 bytes and more only the beginning is made. */
int make_dirs(const char *path, mode_t mode);

/* The directory `name` below the descriptor `at`, for readdir(3); flags: more of open(2)'s. The caller closes it. NULL with
 * errno: nothing is left open. */
DIR *dir_open_at(int at, const char *name, int flags);
#endif
