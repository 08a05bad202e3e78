/* SPDX-License-Identifier: Apache-2.0 */
#include "gmem_pages.h"
#include <errno.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include "gmem_priv.h"

#define HUGE_SHIFT 26 /* of MAP_HUGE_2MB and its like among flags */
#define HUGE_MASK 63

/* Of the pages that MAP_HUGETLB means by itself: that is the host's choice. A whole page alone can be unmapped. */
static int64_t default_size(void)
{
	static int64_t size; /* under pvm.mm_lock */
	if (size)
		return size;
	long p = HC6(SYS_mmap, 0, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_HUGETLB, -1, 0);
	if (p < 0)
		return p;
	if (!HC6(SYS_munmap, p, HUGE, 0, 0, 0, 0))
		return size = HUGE;
	return HC6(SYS_munmap, p, GiB, 0, 0, 0, 0) ? -EINVAL : (size = GiB);
}

static struct stat held;
static int held_fd = -1;

void file_hold(int fd) { held_fd = fd >= 0 && !HC6(SYS_fstat, fd, &held, 0, 0, 0, 0) ? fd : -1; }

int file_stat(int fd, struct stat *st)
{
	if (fd < 0 || fd != held_fd)
		return (int)HC6(SYS_fstat, fd, st, 0, 0, 0, 0);
	*st = held;
	return 0;
}

/* fstatfs(2) may ask a server, fstat(2) of what is about to be mapped has been made by then. */
static uint64_t file_size_of_page(int fd)
{
	struct stat st;
	struct statfs fs;
	bool large = !file_stat(fd, &st) && (uint64_t)st.st_blksize >= HUGE && !HC6(SYS_fstatfs, fd, &fs, 0, 0, 0, 0) &&
		     fs.f_type == HUGETLBFS_MAGIC;
	return large ? (uint64_t)fs.f_bsize : PAGE;
}

int64_t pages_wanted(int flags, int fd)
{
	const unsigned shift = (unsigned)flags >> HUGE_SHIFT & HUGE_MASK;
	if (!(flags & MAP_ANONYMOUS))
		return (int64_t)file_size_of_page(fd);
	if (!(flags & MAP_HUGETLB))
		return PAGE;
	if (!shift)
		return default_size();
	return 1ull << shift == HUGE || 1ull << shift == GiB ? (int64_t)(1ull << shift) : -EINVAL;
}

int pages_flags(uint64_t size) { return size == PAGE ? 0 : size == GiB ? MAP_HUGETLB | GMEM_GIANT : MAP_HUGETLB; }

uint64_t pages_size(int flags) { return !(flags & MAP_HUGETLB) ? PAGE : flags & GMEM_GIANT ? GiB : HUGE; }
