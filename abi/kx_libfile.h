/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A library that a program with one thread has just opened: what a dynamic linker does next with it, without exits.
 *
 * Opening an ELF file read-only and close-on-exec, by a name with ".so" in it, the monitor puts its first bytes and its
 * stat here. The LibOS answers the read and the fstat that follow, and takes the close for done. What that means for the
 * descriptor, the offset and its end, the monitor makes true before it does anything else for the process (libfile.c):
 * nobody can see the difference without a hypercall.
 *
 * When it is the dynamic linker itself that opens it, the monitor also makes the mappings that its headers lead to
 * (gmem_ahead.c), and says here by which calls they will be asked for. The LibOS answers these in their order. The monitor
 * takes back what was not asked for before it does what could show it. Calls that give something up, which can't fail
 * (relocated data that becomes read-only, the linker's cache that is unmapped), are noted, and made with the next exit.
 *
 * Of another regular file that was opened to be read, or read from, the monitor says what it is like then: its stat, the
 * offset, whether that is its end. The LibOS answers what libraries ask on their way (fstat, whether it is a terminal, where
 * it stands, one more read at its end) from that, for a millisecond and until the next exit but for memory: by then a
 * process without memory that others write to can't have learnt of a change. The same holds for a path that is looked at
 * several times in a row, as interpreters do.
 *
 * A dynamic linker that has not found a library where it looked for it asks whether there is such a directory, and looks in
 * others, often below one that is missing, too (glibc's tls/x86_64/...). With the answer to the first the monitor says which
 * directory is missing, and which others of the kind are; the LibOS answers what is asked of paths below them, by the same
 * rules.
 */
#ifndef KX_LIBFILE_H
#define KX_LIBFILE_H
#include "kx_abi.h"

#define KX_LIBFILE_BASE (KX_BOOT_BASE + 0x3000)
#define KX_LIBFILE_HEAD 960 /* what musl reads; glibc 832 */
#define KX_LIBFILE_OPS 14
#define KX_LIBFILE_LATER 64

/* In kx_libfile.on. */
#define KX_LIBFILE_FILE 1u     /* `fd` and what was read of it are true */
#define KX_LIBFILE_CALLS 2u    /* there is something in `later` */
#define KX_LIBFILE_PLAIN 4u    /* `fd` is some other regular file: `stat`, `pos`, `ended` are true until `until_ns` */
#define KX_LIBFILE_LOOKED 8u   /* newfstatat of `looked` says `looked_ret` and `looked_stat` until `looked_ns` */
#define KX_LIBFILE_MISSING 16u /* no path with `missing` in front leads to anything until `missing_ns` */
#define KX_LIBFILE_NEXT 32u    /* there are some of kx_libnext.h */
#define KX_LIBFILE_START 64u   /* there are answers in kx_libstart.h */
#define KX_LIBFILE_TOLD (KX_LIBFILE_PLAIN | KX_LIBFILE_LOOKED | KX_LIBFILE_MISSING)
#define KX_LIBFILE_PATH 200
/* Where glibc looks in each directory, for libraries made for this CPU. */
#define KX_LIBFILE_SUBDIRS "glibc-hwcaps\0tls\0x86_64\0haswell\0xeon_phi\0avx512_1\0"

/* mmap or mprotect, already made. */
struct kx_libop {
	uint32_t nr, prot, flags, pad; /* flags: less MAP_DENYWRITE; without MAP_ANONYMOUS, of `fd` */
	uint64_t addr, len, off, ret;  /* len: in whole pages */
};

/* mprotect or munmap, to be made at the next exit if it was asked for. */
struct kx_liblater {
	uint64_t addr, len; /* addr 0: none */
	uint32_t nr, prot;
};

struct kx_libfile {
	uint32_t on;
	int32_t fd;
	uint32_t len;           /* bytes in `head`: fewer than KX_LIBFILE_HEAD only at the end of the file */
	uint32_t used, closed;  /* by the LibOS: bytes that were read, from the first on; it was closed */
	uint32_t nr_ops, asked; /* `asked`, by the LibOS: so many of `op` */
	uint32_t head_read;     /* bytes that whoever asks for `op` reads first: what else reads a library differs */
	uint64_t later_asked;   /* by the LibOS: bit i of later[i] */
	uint8_t stat[144];
	uint8_t head[KX_LIBFILE_HEAD];
	struct kx_libop op[KX_LIBFILE_OPS];
	struct kx_liblater later[KX_LIBFILE_LATER];
	uint64_t until_ns, pos; /* CLOCK_MONOTONIC; the offset */
	uint32_t ended;         /* there is nothing behind it */
	int32_t looked_dir, looked_flags, looked_ret;
	uint64_t looked_ns;
	uint32_t looked_len, pad; /* of the path, with its end */
	char looked[KX_LIBFILE_PATH];
	uint8_t looked_stat[144];
	uint64_t missing_ns;
	uint32_t missing_len;    /* without its end */
	uint32_t missing_in : 8; /* bytes of `missing`: the directory, with a slash, where these are missing, too: */
	uint32_t missing_subdirs : 24; /* bit i: the name i of KX_LIBFILE_SUBDIRS */
	char missing[KX_LIBFILE_PATH];
};
_Static_assert(sizeof(struct kx_libfile) <= 0x1000, "a page before struct kx_serve");
_Static_assert(sizeof(struct kx_shared) <= 0x3000, "does not reach it");
#endif
