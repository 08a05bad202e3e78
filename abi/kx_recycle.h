/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that a program takes for each read and gives back behind it: mmap, mremap to what was read, munmap, an exit each. An
 * allocator does so with buffers above its threshold. After eight rounds of one size the monitor maps many such pieces
 * at once. The LibOS gives them out and takes them back; what was given back the monitor makes zeros at the next exit.
 *
 * The program has what is FREE or BACK no more, though nothing stops it from reaching it: until it is idle for a while, names
 * any of it by a call, or looks at its mappings. Only where there are batches (kx_batch), in a process of one thread.
 */
#ifndef KX_RECYCLE_H
#define KX_RECYCLE_H
#include "kx_abi.h"

#define KX_RECYCLE_BASE (KX_BATCH_BASE + 0xc8000)
#define KX_RECYCLE_MAX 64 /* pieces */

#define KX_RECYCLE_FREE 0u
#define KX_RECYCLE_HAS 1u  /* the program has `has` bytes of it */
#define KX_RECYCLE_BACK 2u /* it has given all of it back */
#define KX_RECYCLE_GONE 3u /* it is ordinary memory of the program's, or nothing, as the monitor has made it */

struct kx_recycle {
	uint32_t on, nr;     /* 1: all here is true; pieces */
	uint64_t first, len; /* piece i is at first + i * len */
	struct kx_recycled {
		uint32_t state; /* KX_RECYCLE_*; the LibOS's, as `has` */
		uint32_t has;
	} piece[KX_RECYCLE_MAX];
};
_Static_assert(0xc8000 + sizeof(struct kx_recycle) <= 0xd0000, "ends before kx_openahead");
_Static_assert(KX_BATCH_SOCKS + KX_BATCH_FDS * sizeof(struct kx_bsock) <= 0xc8000, "begins behind the sockets");
#endif
