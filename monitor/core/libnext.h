/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The monitor's side of kx_libnext.h: which libraries a dynamic linker will open next, and where it will look.
 *
 * It is a guess, by what programs and libraries say that they need, in the linker's order, in the directory where it has just
 * found one, or by the linker's cache. A wrong one costs the work. The guest's word that it has opened and mapped such a file
 * ends in what it could have done by calls.
 */
#ifndef KX_LIBNEXT_H_MONITOR
#define KX_LIBNEXT_H_MONITOR
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The program that is being loaded: what it needs. */
void libnext_program(int fd, uint64_t size, const char *path);
/* Everything is ready for its first instruction. envp: the program's. */
void libnext_start(char *const *envp);
/* The linker has opened fd by path, a library at base (0: not mapped) or its cache. */
void libnext_opened(const char *path, int fd, uint64_t size, uint64_t base, bool cache);
/* It has opened a part of a locale, which is mapped whole. */
void libnext_locale(const char *path, int fd);
/* The process has opened something else. */
void libnext_other(void);
/* A call nr has come: what was opened of these is a descriptor now, and what the call could see of the others is gone. */
void libnext_settle(uint64_t nr, const uint64_t arg[6]);
/* Under pvm.mm_lock: [start, end) is about to become something else. */
void libnext_carved(uint64_t start, uint64_t end);
/* The process has POSIX locks, which a close of any descriptor of the file would give up. */
void libnext_locks(void);
/* The process is going to sleep: what it does not need of this. */
void libnext_trim(void);
extern bool libnext_any; /* there is something to settle */
#endif
