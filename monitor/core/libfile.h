/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The monitor's side of kx_libfile.h. The guest can say that it has read so much of the file, and closed it: both end in
 * what it could have done by calls.
 */
#ifndef KX_MONITOR_LIBFILE_H
#define KX_MONITOR_LIBFILE_H
#include "gmem_ahead.h"
#include "gmem_grow.h"
#include "gmem_warm.h"
#include "hcall.h"
#include "libnext.h"
#include "libstart.h"

/* The guest has opened fd by c: argument i is the path (as the guest gave it), the next one the flags. */
void libfile_opened(struct hcall *c, int i, int fd);
/* Before anything else is done for the process: a call nr of the guest's has come. */
void libfile_settle_now(uint64_t nr, const uint64_t arg[6]);
extern int libfile_fd; /* -1: there is none */
/* The guest has closed that; fd is what it has opened since (libnext.c). */
void libfile_was_closed(void);
void libfile_now(int fd);
/* A call that may have been a read of what libfile_plain is has returned r. */
extern int libfile_plain;
void libfile_read(struct hcall *c, int64_t r);
/* newfstatat(2) has returned r. */
void libfile_looked(struct hcall *c, int64_t r);
extern bool libfile_told; /* the LibOS has an answer of those */
static inline void libfile_settle(uint64_t nr, const uint64_t arg[6])
{
	if (libfile_fd >= 0 || libstart_any || libnext_any || gmem_ahead_any || gmem_warm_any || gmem_grow_any ||
	    libfile_told || libfile_plain >= 0)
		libfile_settle_now(nr, arg);
}
#endif
