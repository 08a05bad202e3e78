/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The libraries that a dynamic linker is going to open, opened before it asks: kx_libfile.h for more than one file.
 *
 * A linker opens what the program needs, then what those need. The monitor reads the same names (libnext.c), opens the files,
 * makes their mappings, and says here by which path each was opened. The LibOS answers the linker's openat of exactly such a
 * path if all that it has opened so was closed: the descriptor's number is the same each time. The file is then the one of
 * kx_libfile.h. Whatever else the linker asks, it asks the host: what was opened for nothing is closed and unmapped before any
 * call that could show it.
 */
#ifndef KX_LIBNEXT_H
#define KX_LIBNEXT_H
#include "kx_libfile.h"

#define KX_LIBNEXT_BASE (KX_BOOT_BASE + 0x5000)
#define KX_LIBNEXT_FILES 16

struct kx_libnext_file {
	uint32_t ready;
	uint32_t taken;    /* by the LibOS: it was opened */
	uint32_t path_len; /* with its end */
	uint32_t len;      /* as those of kx_libfile, below too */
	uint32_t nr_ops, head_read;
	char path[KX_LIBFILE_PATH];
	uint8_t stat[144];
	uint8_t head[KX_LIBFILE_HEAD];
	struct kx_libop op[KX_LIBFILE_OPS];
};

struct kx_libnext {
	int32_t fd;   /* the lowest number that is free when nothing of these is open */
	uint32_t cur; /* by the LibOS: 1 + the one that it opened last; 0: none */
	struct kx_libnext_file file[KX_LIBNEXT_FILES];
};
_Static_assert(sizeof(struct kx_libnext) <= 0x8000, "eight pages behind struct kx_serve's");
#endif
