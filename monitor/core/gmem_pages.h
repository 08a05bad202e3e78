/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mappings of large pages: MAP_HUGETLB, and files of a hugetlbfs (memfd_create(2) with MFD_HUGETLB). The kernel makes such a
 * mapping longer, to whole pages of that size, and replaces what is there. What is noted of it has to be as long, or the
 * program had memory that nobody knows of, under page tables that are somebody else's.
 */
#ifndef KX_GMEM_PAGES_H
#define KX_GMEM_PAGES_H
#include "gmem.h"

#define GMEM_GIANT 0x02000000 /* of a region with MAP_HUGETLB: its pages have 1 GiB, not 2 MiB */

/* Bytes of the pages that a mmap(2) gets, by its flags and its file (-1: none): a power of two; or -errno. */
int64_t pages_wanted(int flags, int fd);
/* What a region of such pages has among its flags, */
int pages_flags(uint64_t size);
/* and the size by them. */
uint64_t pages_size(int flags);

struct stat;
/* fstat(2), or -errno. Of a file that is held it is what it was when that began: one call for all parts of a library. */
int file_stat(int fd, struct stat *st);
/* With pvm.mm_lock, for no longer than that: fd is the one that is held; -1: none. */
void file_hold(int fd);
#endif
