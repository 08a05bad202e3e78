/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Large tables that few processes need. As variables they would be part of what each fork copies the page tables of, and of
 * what a process that forks again and again looks through for pages of its own.
 */
#ifndef KX_SELDOM_H
#define KX_SELDOM_H
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>

/* *table is mapped, `len` zero bytes, from the first call on that can have them, and for good. False: there is no memory. The
 * caller holds the lock of what it is for. */
static inline bool seldom_map(void **table, size_t len)
{
	if (*table)
		return true;
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p != MAP_FAILED)
		*table = p;
	return p != MAP_FAILED;
}

#endif
