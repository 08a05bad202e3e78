/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages of the program's memory hold what it, or a relative, has written: by the host's page map, which knows of pages
 * that are swapped out, too, as mincore(2) does not. For who looks through all of it (sweep.h, retire.h).
 */
#ifndef KX_PAGEMAP_H
#define KX_PAGEMAP_H
#include <stdbool.h>
#include <stdint.h>
#include <sys/ioctl.h>

/* An entry of /proc/PID/pagemap. */
#define PM_PRESENT (1ull << 63)
#define PM_SWAP (1ull << 62)
#define PM_FILE (1ull << 61)  /* of a file, or shared */
#define PM_ALONE (1ull << 56) /* nobody else has it mapped */

/* ioctl(2) PAGEMAP_SCAN of that file, which headers before Linux 6.7 don't have. */
struct pm_piece {
	uint64_t start, end, categories;
};
struct pm_scan {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define PM_SCAN _IOWR('f', 16, struct pm_scan)
#define PM_IS_PRESENT (1ull << 3)
#define PM_IS_SWAPPED (1ull << 4)
#define PM_IS_HUGE (1ull << 6)

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
