/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A library that a program with one thread has just opened: what a dynamic linker does next with it, without exits.
 *
 * Opening an ELF file read-only and close-on-exec, by a name with ".so" in it, the monitor puts its first bytes and its
 * stat here. The LibOS answers the read and the fstat that follow, and takes the close for done. What that means for the
 * descriptor, the offset and its end, the monitor makes true before it does anything else for the process (libfile.c):
 * nobody can see the difference without a hypercall.
 */
#ifndef KX_LIBFILE_H
#define KX_LIBFILE_H
#include "kx_abi.h"

#define KX_LIBFILE_BASE (KX_BOOT_BASE + 0xe000)
#define KX_LIBFILE_HEAD 832 /* what glibc reads */

struct kx_libfile {
	uint32_t on; /* 1: the rest is true of `fd` */
	int32_t fd;
	uint32_t len;          /* bytes in `head`: fewer than KX_LIBFILE_HEAD only at the end of the file */
	uint32_t used, closed; /* by the LibOS: bytes that were read, from the first on; it was closed */
	uint32_t pad;
	uint8_t stat[144];
	uint8_t head[KX_LIBFILE_HEAD];
};
_Static_assert(sizeof(struct kx_libfile) <= 0x1000, "a page before struct kx_serve");
_Static_assert(sizeof(struct kx_shared) <= 0xe000, "does not reach it");
#endif
