/* SPDX-License-Identifier: Apache-2.0 */
/* Memory calls: what gmem.c does not do itself. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "futexes.h"
#include "gmem.h"
#include "huge.h"
#include "hcall.h"
#include "keeper.h"
#include "serve.h"

#define PAGE 4096ull

/* libc maps tables of its own so, in most programs: nobody tells anybody anything by those. */
static bool is_still(int fd)
{
	static const char tables[] = "/usr/lib/";
	char name[32], path[64];
	if ((HC6(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0) & O_ACCMODE) != O_RDONLY || pvm.nr_threads != 1)
		return false;
	snprintf(name, sizeof name, "self/fd/%d", fd);
	return HC6(SYS_readlinkat, pvm.proc_fd, name, path, sizeof path, 0, 0) > (long)sizeof tables &&
	       !memcmp(path, tables, sizeof tables - 1);
}

static int64_t map_file(struct hcall *c, int fd)
{
	int flags = (int)c->arg[3];
	struct stat st;
	if (fstat(fd, &st))
		return -EBADF;
	if (!(st.st_mode & S_IFMT)) /* none that the guest can make could be mapped */
		return -ENODEV;
	if (flags & MAP_SHARED) /* MAP_SHARED_VALIDATE has its bit */
		futexes_mapped(fd, (int)c->arg[2]);
	int64_t r = gmem_mmap(c->arg[0], c->arg[1], (int)c->arg[2] & 7, flags, fd, c->arg[5]);
	if (r >= 0 && flags & MAP_SHARED && is_still(fd))
		gmem_mark_still((uint64_t)r);
	return r;
}

/*
 * A vCPU's descriptor has a low number for the moment between its making and fd_hide(), and another thread of the
 * guest's may keep a copy of it. It can do nothing with that but map the vCPU's state, which the monitor believes. What
 * is looked at must be what is mapped: with threads, or a service thread, a copy out of the guest's reach.
 */
int64_t hc_mmap(struct hcall *c)
{
	int fd = (int)c->arg[4];
	if ((int)c->arg[3] & MAP_ANONYMOUS)
		return gmem_mmap(c->arg[0], c->arg[1], (int)c->arg[2] & 7, (int)c->arg[3], fd, c->arg[5]);
	if (!fd_is_guest(fd))
		return -EBADF;
	if (__atomic_load_n(&pvm.nr_threads, __ATOMIC_RELAXED) == 1 && !is_vfork_child() && !serve_runs())
		return map_file(c, fd);
	fd_limit_lift();
	int own = (int)HC6(SYS_fcntl, fd, F_DUPFD_CLOEXEC, pvm.fd_limit, 0, 0, 0);
	fd_limit_drop();
	if (own < 0)
		return own == -EBADF ? own : -ENOMEM;
	int64_t r = map_file(c, own);
	HC6(SYS_close, own, 0, 0, 0, 0, 0);
	return r;
}

int64_t hc_munmap(struct hcall *c) { return gmem_munmap(c->arg[0], c->arg[1]); }
int64_t hc_mprotect(struct hcall *c) { return gmem_mprotect(c->arg[0], c->arg[1], (int)c->arg[2]); }

/* Protection keys: none, as cpuid says (vcpu.c). */
int64_t hc_pkey_mprotect(struct hcall *c)
{
	if ((int)c->arg[3] != -1 && c->arg[1])
		return -EINVAL;
	return gmem_mprotect(c->arg[0], c->arg[1], (int)c->arg[2]);
}

int64_t hc_pkey(struct hcall *c)
{
	(void)c;
	return -EINVAL;
}

int64_t hc_brk(struct hcall *c) { return gmem_brk(c->arg[0]); }

int64_t hc_mremap(struct hcall *c) { return gmem_mremap(c->arg[0], c->arg[1], c->arg[2], (int)c->arg[3], c->arg[4]); }

/* Page-aligned range of mapped memory. On a hole the mapped parts are still treated, then -ENOMEM, as Linux does. */
static int64_t each_region(uint64_t addr, uint64_t len, long nr, long arg)
{
	if (addr & (PAGE - 1))
		return -EINVAL;
	if (!len)
		return 0;
	if (!gva_ok(addr, len))
		return -ENOMEM;
	uint64_t end = addr + ((len + PAGE - 1) & ~(PAGE - 1));
	int64_t hole = 0;
	while (addr < end) {
		struct gmem_region g;
		if (!gmem_query(addr, &g) || g.start >= end)
			return -ENOMEM;
		if (g.start > addr)
			hole = -ENOMEM;
		uint64_t a = g.start > addr ? g.start : addr, e = g.end < end ? g.end : end;
		addr = g.end;
		if (g.flags & GMEM_TRAMP)
			continue;
		long r = HC6(nr, gva_ptr(a), e - a, arg, 0, 0, 0);
		if (r < 0)
			return r;
	}
	return hole;
}

int64_t hc_madvise(struct hcall *c)
{
	int advice = (int)c->arg[2];
	switch (advice) {
	case MADV_NORMAL:
	case MADV_RANDOM:
	case MADV_SEQUENTIAL:
	case MADV_WILLNEED:
	case MADV_DONTNEED:
	case MADV_FREE:
	case MADV_REMOVE:
	case MADV_DONTFORK:
	case MADV_DOFORK:
	case MADV_HUGEPAGE:
	case MADV_NOHUGEPAGE:
	case MADV_DONTDUMP:
	case MADV_DODUMP:
	case MADV_WIPEONFORK:
	case MADV_KEEPONFORK:
	case MADV_COLD:
	case MADV_PAGEOUT:
	case MADV_POPULATE_READ:
	case MADV_POPULATE_WRITE:
	case 24 /* MADV_DONTNEED_LOCKED */:
	case 25 /* MADV_COLLAPSE */:
		if (advice == MADV_NOHUGEPAGE)
			huge_refused();
		return each_region(c->arg[0], c->arg[1], SYS_madvise, advice);
	case MADV_HWPOISON:
	case 101 /* MADV_SOFT_OFFLINE */:
		return -EPERM;
	default: /* sharing of equal pages between tenants included: KSM leaks by timing */
		return -EINVAL;
	}
}

int64_t hc_msync(struct hcall *c) { return each_region(c->arg[0], c->arg[1], SYS_msync, (int)c->arg[2]); }

int64_t hc_mlock(struct hcall *c)
{
	uint64_t start = c->arg[0] & ~(PAGE - 1), len = c->arg[1] + (c->arg[0] - start);
	if (c->nr == SYS_mlock2 && ((unsigned)c->arg[2] & ~1u))
		return -EINVAL;
	return each_region(start, len, c->nr, c->nr == SYS_mlock2 ? (long)c->arg[2] : 0);
}

/* All of the host process would be locked, 512 GiB of reservation included: lock the program's regions. */
int64_t hc_mlockall(struct hcall *c)
{
	if (c->nr == SYS_mlockall && ((int)c->arg[0] & ~7 || !(int)c->arg[0]))
		return -EINVAL;
	struct gmem_region g;
	int64_t r = 0;
	for (uint64_t a = 0; gmem_query(a, &g); a = g.end)
		if (!gmem_own(&g) && g.prot != PROT_NONE && r == 0)
			r = HC6(c->nr == SYS_mlockall ? SYS_mlock2 : SYS_munlock, gva_ptr(g.start), g.end - g.start,
				c->nr == SYS_mlockall ? 1 /* as touched: all at once would fault everything in */ : 0,
				0, 0, 0);
	return r;
}

int64_t hc_mincore(struct hcall *c)
{
	uint64_t addr = c->arg[0], len = c->arg[1];
	unsigned char vec[512];
	if (addr & (PAGE - 1))
		return -EINVAL;
	if (!gva_ok(addr, len))
		return -ENOMEM;
	uint64_t pages = (len + PAGE - 1) / PAGE;
	if (!gva_ok(c->arg[2], pages))
		return -EFAULT;
	if (pages && !gmem_mapped(addr, len))
		return -ENOMEM;
	for (uint64_t i = 0; i < pages; i += sizeof vec) {
		uint64_t n = pages - i < sizeof vec ? pages - i : sizeof vec;
		long r = HC6(SYS_mincore, gva_ptr(addr + i * PAGE), n * PAGE, vec, 0, 0, 0);
		if (r < 0)
			return r;
		if (guest_write(c->arg[2] + i, vec, n))
			return -EFAULT;
	}
	return 0;
}

int64_t hc_shmat(struct hcall *c) { return gmem_shmat((int)c->arg[0], c->arg[1], (int)c->arg[2]); }
int64_t hc_shmdt(struct hcall *c) { return gmem_shmdt(c->arg[0]); }
