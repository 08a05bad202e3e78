/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory policies: a guest thread is a host thread and guest memory is the host's, so the host's answers are true. The
 * kernel writes sets of nodes in whole words, which lie in the range that a program can name.
 */
#include <errno.h>
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include "gmem.h"
#include "hcall.h"

#define NODES_MAX (4096u * 8) /* the kernel takes no more */

/* A set of max - 1 nodes at gva. False: no address for it. */
static bool nodes_ok(uint64_t gva, uint64_t max)
{
	uint64_t words = max ? (max - 1 + 63) / 64 : 0;
	return !gva || max > NODES_MAX || gva_ok(gva, words * 8);
}

static void *ptr(uint64_t gva) { return gva ? gva_ptr(gva) : NULL; }

int64_t hc_get_mempolicy(struct hcall *c)
{
	uint64_t mode = c->arg[0], nodes = c->arg[1], max = c->arg[2], addr = c->arg[3], flags = c->arg[4];
	if ((mode && !gva_ok(mode, sizeof(int))) || !nodes_ok(nodes, max))
		return -EFAULT;
	if (flags & MPOL_F_ADDR && (!gva_ok(addr, 1) || !gmem_mapped(addr & -4096ull, 4096)))
		return -EFAULT;
	if (max > NODES_MAX && nodes)
		return -EINVAL;
	return HC6(SYS_get_mempolicy, ptr(mode), ptr(nodes), max, flags & MPOL_F_ADDR ? gva_ptr(addr) : (void *)addr,
		   flags, 0);
}

int64_t hc_set_mempolicy(struct hcall *c)
{
	if (!nodes_ok(c->arg[1], c->arg[2]))
		return -EFAULT;
	return HC6(SYS_set_mempolicy, (int)c->arg[0], ptr(c->arg[1]), c->arg[2], 0, 0, 0);
}

int64_t hc_mbind(struct hcall *c)
{
	uint64_t addr = c->arg[0], len = (c->arg[1] + 4095) & -4096ull;
	if (addr & 4095)
		return -EINVAL;
	if (!gva_ok(addr, len))
		return addr + len < addr ? -EINVAL : -EFAULT;
	if (!nodes_ok(c->arg[3], c->arg[4]) || (len && !gmem_mapped(addr, len)))
		return -EFAULT;
	return HC6(SYS_mbind, gva_ptr(addr), len, (int)c->arg[2], ptr(c->arg[3]), c->arg[4], (unsigned)c->arg[5]);
}
