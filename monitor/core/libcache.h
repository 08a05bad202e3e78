/* SPDX-License-Identifier: Apache-2.0 */
/* glibc's list of libraries (ldconfig(8)), to guess which file its linker will open. */
#ifndef KX_LIBCACHE_H
#define KX_LIBCACHE_H
#include <stdbool.h>
#include <stddef.h>

#define LIBCACHE_PATH "/etc/ld.so.cache"

/* The path that the list has for a name. False: none, or no list. */
bool libcache_find(const char *name, char *path, size_t size);
#endif
