/* SPDX-License-Identifier: Apache-2.0 */
/* mremap(2). */
#include <errno.h>
#include <sys/mman.h>
#include "admit.h"
#include "gmem_pages.h"
#include "gmem_priv.h"
#include "hot.h"
#include "keeper.h"
#include "written.h"

static int64_t do_mremap(uint64_t old, uint64_t old_len, uint64_t new_len, int flags, uint64_t new_addr)
{
	if ((old & (PAGE - 1)) || !new_len || (flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP)) ||
	    ((flags & MREMAP_FIXED) && !(flags & MREMAP_MAYMOVE)))
		return -EINVAL;
	if (!gva_ok(old, old_len) || new_len > KX_HIGH_END)
		return -EFAULT;
	old_len = ALIGN_UP(old_len, PAGE);
	new_len = ALIGN_UP(new_len, PAGE);
	if ((flags & MREMAP_DONTUNMAP) && (old_len != new_len || !(flags & MREMAP_MAYMOVE)))
		return -EINVAL;
	size_t i = region_find(old);
	if (i >= nr_regions || regions[i].start > old || regions[i].end < old + (old_len ? old_len : 1) ||
	    range_has_tramp(old, old + (old_len ? old_len : 1)))
		return -EFAULT;
	if (old_len && (regions[i].flags & MAP_TYPE) == MAP_PRIVATE && text_unpatch(old, old + old_len))
		return -ENOMEM;
	i = region_find(old);
	struct gmem_region r = regions[i];
	if (!old_len && (r.flags & MAP_TYPE) == MAP_PRIVATE)
		return -EINVAL;
	const uint64_t page = pages_size(r.flags);
	if (page > PAGE) { /* as the kernel, which makes whole pages of both lengths */
		old_len = ALIGN_UP(old_len, page);
		new_len = ALIGN_UP(new_len, page);
		if ((old & (page - 1)) || new_len > old_len || r.end < old + old_len ||
		    (flags & MREMAP_FIXED && new_addr & (page - 1)))
			return -EINVAL;
	}
	if (admit_on && r.prot & PROT_EXEC && new_len > old_len && admit_memory("mremap"))
		return -EACCES;
	r.flags &= ~GMEM_CLEAN; /* its pages have other addresses from then on */
	const uint64_t goes = flags & MREMAP_DONTUNMAP ? 0 : old_len;
	if (region_reserve(6) || (new_len > goes && !more_within_limit(new_len - goes, r.prot, r.flags)))
		return -ENOMEM;
	hot_carved(old, old + old_len);
	if (!(flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) && old_len) {
		if (new_len <= old_len) {
			int x = new_len < old_len ? do_munmap(old + new_len, old_len - new_len) : 0;
			return x ? x : (int64_t)old;
		}
		if (r.end == old + old_len && gva_ok(old, new_len) &&
		    (r.prot == PROT_NONE || !gmem_beyond(old + new_len)) && range_free(old + old_len, old + new_len)) {
			int x = r.prot != PROT_NONE ? pt_set(old + old_len, old + new_len, r.prot, false) : 0;
			if (x)
				return x;
			/* The reservation makes room; nothing else of this process is ever placed here. */
			munmap(gva_ptr(old + old_len), new_len - old_len);
			if (mremap(gva_ptr(old), old_len, new_len, 0) != MAP_FAILED) {
				region_set(old, old + new_len, r.prot, r.flags);
				return old;
			}
			x = -errno;
			host_release(old + old_len, old + new_len);
			if (!(flags & MREMAP_MAYMOVE))
				return x;
		}
		if (!(flags & MREMAP_MAYMOVE))
			return -ENOMEM;
	}
	if (flags & MREMAP_FIXED) {
		if ((new_addr & (PAGE - 1)) || !gva_ok(new_addr, new_len) || new_addr < KX_USER_MIN ||
		    (new_addr < old + old_len && old < new_addr + new_len) ||
		    range_has_tramp(new_addr, new_addr + new_len))
			return -EINVAL;
	} else {
		new_addr = place_pages((flags & MREMAP_DONTUNMAP) ? ALIGN_DOWN(new_addr, PAGE) : 0, new_len, 0,
				       !(r.flags & MAP_ANONYMOUS), page);
		if (!new_addr)
			return -ENOMEM;
	}
	int x = r.prot != PROT_NONE ? pt_prepare(new_addr, new_addr + new_len, r.prot, !(r.flags & MAP_ANONYMOUS)) : 0;
	if (!x && mremap(gva_ptr(old), old_len, new_len, MREMAP_MAYMOVE | MREMAP_FIXED | (flags & MREMAP_DONTUNMAP),
			 gva_ptr(new_addr)) == MAP_FAILED) {
		x = -errno;
		/* From Linux 6.17 on it moves several mappings, of which some are there by now. */
		range_lost(new_addr, new_addr + new_len, admit_on);
	}
	if (x) {
		pt_restore(new_addr, new_addr + new_len);
		return x;
	}
	if ((r.flags & (MAP_TYPE | MAP_ANONYMOUS)) == (MAP_PRIVATE | MAP_ANONYMOUS))
		sites_leave(new_addr, new_addr + new_len);
	else
		sites_forget(new_addr, new_addr + new_len);
	region_set(new_addr, new_addr + new_len, r.prot, r.flags);
	if (r.prot & PROT_EXEC) {
		pt_exec(new_addr, new_addr + new_len);
		sites_return(new_addr, new_addr + new_len);
	}
	written_mark(new_addr, new_len);
	if (old_len && !(flags & MREMAP_DONTUNMAP)) {
		host_release(old, old + old_len);
		region_carve(old, old + old_len);
		sites_forget(old, old + old_len);
	}
	return new_addr;
}

int64_t gmem_mremap(uint64_t old, uint64_t old_len, uint64_t new_len, int flags, uint64_t new_addr)
{
	if (keeper_needed())
		return KEEPER6(gmem_mremap, old, old_len, new_len, flags, new_addr, 0);
	pthread_mutex_lock(&pvm.mm_lock);
	int64_t r = do_mremap(old, old_len, new_len, flags, new_addr);
	pthread_mutex_unlock(&pvm.mm_lock);
	return r;
}
