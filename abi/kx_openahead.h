/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files opened ahead: what a thread that serves connections in batches (kx_batch) opens again and again, by the same name.
 *
 * At the end of each call the monitor opens them anew, behind its look at the sockets: so what the program would find by
 * its own calls until the next, it finds here. Only files for reading, on mounts that the family can't write to: others
 * can change them, but of that the program could learn only by a call or a signal, after which nothing of this counts.
 * Only in processes of one thread.
 *
 * One of them at a time can be open for the program, at the lowest free number, without the monitor knowing. Before it
 * does anything else for the process it makes that true, if it is still open then.
 */
#ifndef KX_OPENAHEAD_H
#define KX_OPENAHEAD_H
#include "kx_accept.h"

#define KX_OPENAHEAD_BASE (KX_BATCH_BASE + 0xd0000)
#define KX_OPENAHEAD_DATA 0x2000      /* offset of the files' data */
#define KX_OPENAHEAD_DATA_SIZE 0x4000 /* for each */
#define KX_OPENAHEAD_FILES 8
#define KX_OPENAHEAD_PATH 256
#define KX_OPENAHEAD_FD(i) (-2 - (i)) /* kx_bfrom.fd: file i */

struct kx_openahead_file {
	uint32_t ready;       /* 1: it is open in the monitor, and all here is true */
	uint32_t flags;       /* of open(2), as the program gives them */
	uint32_t path_len;    /* without the NUL */
	uint32_t whole;       /* 1: `size` bytes are all of it, and are at its place */
	uint64_t size;        /* bytes */
	uint32_t uses, wants; /* by the LibOS: times that it was opened; 1 = its bytes were asked for */
	uint8_t stat[144];    /* struct stat */
	char path[KX_OPENAHEAD_PATH];
};

struct kx_openahead {
	uint32_t on; /* 0: nothing of this counts */
	uint32_t pad;
	/* The LibOS's. */
	uint32_t open; /* number + 1 of the file that is open for the program; 0 = none */
	int32_t fd;    /* as which descriptor */
	uint64_t pos;  /* its offset */
	struct kx_openahead_file file[KX_OPENAHEAD_FILES];
};
_Static_assert(sizeof(struct kx_openahead) <= KX_OPENAHEAD_DATA, "");
_Static_assert(KX_BATCH_SOCKS + KX_BATCH_FDS * sizeof(struct kx_bsock) <= 0xd0000, "ends before it");
_Static_assert(0xd0000 + KX_OPENAHEAD_DATA + KX_OPENAHEAD_FILES * KX_OPENAHEAD_DATA_SIZE <= KX_BATCH_CTX, "");
#endif
