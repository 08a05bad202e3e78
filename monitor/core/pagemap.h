/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages of the program's memory hold what it, or a relative, has written: by the host's page map, which knows of pages
 * that are swapped out, too, as mincore(2) does not. For who looks through all of it (sweep.h, retire.h).
 */
#ifndef KX_PAGEMAP_H
#define KX_PAGEMAP_H
#include <stdbool.h>
#include <stdint.h>

struct gmem_region;
#define PAGEMAP_PAGES 512u /* at a time */

/* The caller's to close. -errno. */
int pagemap_open(void);
/*
 * there[i] is nonzero for those of the n pages from `at` on that may hold something, of region g: of a private mapping those that
 * are its own, not a file's; of shared memory all that anybody has, if the program may write there, else those that this process
 * has looked at. One caller at a time. False: it can't be seen.
 */
bool pagemap_written(int fd, const struct gmem_region *g, uint64_t at, unsigned n, uint8_t there[PAGEMAP_PAGES]);
#endif
