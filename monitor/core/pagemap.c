/* SPDX-License-Identifier: Apache-2.0 */
#include "pagemap.h"
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "gmem.h"
#include "hcall.h"

#define PAGE 4096ull

int pagemap_open(void) { return proc_file("self/pagemap"); }

bool pagemap_written(int fd, const struct gmem_region *g, uint64_t at, unsigned n, uint8_t there[PAGEMAP_PAGES])
{
	static uint64_t map[PAGEMAP_PAGES];
	bool shared = (g->flags & MAP_TYPE) != MAP_PRIVATE, others = shared && g->prot & PROT_WRITE;
	off_t off = (off_t)((uintptr_t)gva_ptr(at) / PAGE * 8);
	if (pread(fd, map, n * 8, off) != (ssize_t)(n * 8) ||
	    (others && HC6(SYS_mincore, gva_ptr(at), n * PAGE, there, 0, 0, 0)))
		return false;
	for (unsigned i = 0; i < n; i++) {
		bool own = map[i] & PM_SWAP || (map[i] & PM_PRESENT && (shared || !(map[i] & PM_FILE)));
		there[i] = own || (others && there[i] & 1);
	}
	return true;
}
