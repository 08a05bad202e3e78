/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a dynamic linker and a C library ask at each start, without exits.
 *
 * Before the first instruction the monitor puts here what their first questions are answered by (libstart.c), and a piece of
 * memory that their small mappings are taken from, the highest addresses first, as mmap does. What the LibOS was told
 * (set_tid_address, set_robust_list) and has given away the monitor makes true with the next exit. The memory that is left
 * is gone, and the answers end, before the first call that is none of the linker's; where the heap ends is told further on.
 */
#ifndef KX_LIBSTART_H
#define KX_LIBSTART_H
#include "kx_libnext.h"

#define KX_LIBSTART_BASE (KX_LIBNEXT_BASE + 0x7e00)

/* In kx_libstart.on. */
#define KX_LIBSTART_BRK 1u     /* `brk` is true */
#define KX_LIBSTART_STACK 2u   /* so is `stack_limit` */
#define KX_LIBSTART_PRELOAD 4u /* there was no /etc/ld.so.preload: nobody can have told of a change */
#define KX_LIBSTART_THREAD 8u  /* the two calls of a thread may be told here */
#define KX_LIBSTART_MEMORY 16u /* [low, at) is mapped, not given away */

struct kx_libstart {
	uint32_t on;
	uint32_t told; /* by the LibOS: 1: `tid_address`, 2: `robust_list` */
	uint64_t tid_address, robust_list;
	uint64_t brk;
	uint64_t stack_limit[2]; /* as struct rlimit */
	uint64_t low, at;        /* `at`: by the LibOS */
};
_Static_assert(sizeof(struct kx_libnext) <= 0x7e00, "does not reach it");
_Static_assert(sizeof(struct kx_libstart) <= 0x200, "what is left of the eighth page");
#endif
