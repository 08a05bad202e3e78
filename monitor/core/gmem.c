/* SPDX-License-Identifier: Apache-2.0 */
#include "gmem.h"
#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../../util/log.h"
#include "../arch/x86_64/patch.h"
#include "admit.h"
#include "huge.h"
#include "text.h"
#include "written.h"
#include "keeper.h"
#include "rseq.h"
#include "spare.h"

#define PAGE 4096ull
#define MiB (1ull << 20)
#define GiB (1ull << 30)
#define HUGE (2 * MiB)
#define ALIGN_UP(x, a) (((x) + (a)-1) & ~((a)-1))
#define ALIGN_DOWN(x, a) ((x) & ~((a)-1))

/* Leaves are made with accessed and dirty set, so that nobody has to write to them later. */
#define PTE_P 0x1ull
#define PTE_W 0x2ull
#define PTE_LEAF 0x67ull /* present, writable, user, accessed, dirty */
#define PTE_SUP 0x63ull
#define PTE_PS 0x80ull
#define PTE_NX (1ull << 63)
#define PTE_ADDR 0x000ffffffffff000ull

/* Where things are put. Executables low, so that the break has room above them. */
#define EXE_LOW (16 * GiB)
#define EXE_HIGH (32 * GiB)
#define ANON_LOW (64 * GiB)
#define ANON_HIGH (320 * GiB)
#define FILE_LOW (320 * GiB)
#define FILE_HIGH (440 * GiB)
#define SLOT_MAX GiB
#define STACK_ROOM (18 * MiB) /* above the files, in one slot with the first of them: stacks of the usual size */
#define FILE_FIRST (16 * MiB)
#define HUGE_ALONE (32 * MiB) /* a mapping that gets 2 MiB pages by its own size */
#define HUGE_FROM (64 * MiB)  /* heap of a program whose further mappings get them */
/* Private writable memory that is touched ahead: a step of the heap, another mapping, a library's data, a stack's top; and
 * in all but the heap. */
#define AHEAD_HEAP MiB
#define AHEAD_SMALL (128ull << 10)
#define AHEAD_LIBRARY MiB /* its data, which is relocated */
#define AHEAD_STACK (64ull << 10)
#define AHEAD_TOTAL (16 * MiB)
#define REGION_MAX 65530 /* vm.max_map_count's default */

static struct gmem_region *regions;
static size_t nr_regions, cap_regions;

struct slot {
	uint64_t start, end;
	int id;
};
static struct slot *slots;
static size_t nr_slots, cap_slots;
static uint64_t ahead_left = AHEAD_TOTAL;
static int next_slot_id = 1; /* 0 is the one that flush_all() drops and remakes */

static uint64_t sys_next, sys_end;
static uint64_t brk_start, brk_cur;
static uint64_t anon_high = ANON_HIGH, file_high = FILE_HIGH;
static bool exe_placed;
static uint64_t memory_used; /* bytes that --memory counts */
static uint64_t heap_used;   /* bytes of private anonymous writable memory but stacks */

static struct kx_site *sites;
static size_t nr_sites, cap_sites;

/* ---- regions: a sorted array ---------------------------------------------------------------------------- */

/* Index of the first region that ends above addr. */
static size_t region_find(uint64_t addr)
{
	size_t lo = 0, hi = nr_regions;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (regions[mid].end > addr)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

static int region_reserve(size_t extra)
{
	if (nr_regions + extra <= cap_regions)
		return 0;
	if (nr_regions + extra > REGION_MAX)
		return -ENOMEM;
	size_t cap = cap_regions ? cap_regions * 2 : 128;
	struct gmem_region *p = realloc(regions, cap * sizeof *p);
	if (!p)
		return -ENOMEM;
	regions = p;
	cap_regions = cap;
	return 0;
}

static void region_insert_at(size_t i, struct gmem_region r)
{
	memmove(&regions[i + 1], &regions[i], (nr_regions - i) * sizeof r);
	regions[i] = r;
	nr_regions++;
}

/* Split so that addr is a boundary. Room for one more must be reserved. */
static void region_split(uint64_t addr)
{
	size_t i = region_find(addr);
	if (i >= nr_regions || regions[i].start >= addr)
		return;
	struct gmem_region r = regions[i];
	regions[i].end = addr;
	r.start = addr;
	region_insert_at(i + 1, r);
}

/* What --memory counts: private writable memory and shared anonymous memory, touched or not. */
static bool counts(int prot, int flags)
{
	if (flags & GMEM_TRAMP)
		return false;
	if ((flags & MAP_TYPE) == MAP_PRIVATE)
		return prot & PROT_WRITE;
	return flags & MAP_ANONYMOUS;
}

/* Bytes of [start, end) that count now. */
static uint64_t counted(uint64_t start, uint64_t end)
{
	uint64_t n = 0;
	for (size_t i = region_find(start); i < nr_regions && regions[i].start < end; i++)
		if (counts(regions[i].prot, regions[i].flags)) {
			uint64_t a = regions[i].start > start ? regions[i].start : start;
			n += (regions[i].end < end ? regions[i].end : end) - a;
		}
	return n;
}

static bool is_heap(int prot, int flags)
{
	return (prot & PROT_WRITE) &&
	       (flags & (MAP_TYPE | MAP_ANONYMOUS | MAP_STACK | GMEM_TRAMP)) == (MAP_PRIVATE | MAP_ANONYMOUS);
}

static uint64_t heap_bytes(uint64_t start, uint64_t end)
{
	uint64_t n = 0;
	for (size_t i = region_find(start); i < nr_regions && regions[i].start < end; i++)
		if (is_heap(regions[i].prot, regions[i].flags)) {
			uint64_t a = regions[i].start > start ? regions[i].start : start;
			n += (regions[i].end < end ? regions[i].end : end) - a;
		}
	return n;
}

/*
 * 2 MiB pages make first touch and fork cheap and waste what is not used of them: for mappings that are large, and
 * for all that could hold one once the program has become large.
 */
static bool huge_pays(uint64_t len)
{
	return len >= HUGE_ALONE || (len >= HUGE && (heap_used >= HUGE_FROM || huge_by_forks()));
}

/* May [start, end) become a mapping of that kind under --memory? */
static bool within_limit(uint64_t start, uint64_t end, int prot, int flags)
{
	if (!pvm.cfg->memory || !counts(prot, flags))
		return true;
	return memory_used - counted(start, end) + (end - start) <= pvm.cfg->memory;
}

/* Forget [start, end). Room for two must be reserved. */
static void region_carve(uint64_t start, uint64_t end)
{
	spare_changed();
	for (size_t i = region_find(start); i < nr_regions && regions[i].start < end; i++)
		if ((regions[i].flags & (MAP_TYPE | GMEM_TRAMP)) == MAP_SHARED)
			spare_unmapped();
	memory_used -= counted(start, end);
	heap_used -= heap_bytes(start, end);
	region_split(start);
	region_split(end);
	size_t i = region_find(start), j = i;
	while (j < nr_regions && regions[j].start < end)
		j++;
	memmove(&regions[i], &regions[j], (nr_regions - j) * sizeof *regions);
	nr_regions -= j - i;
}

static void region_merge_around(size_t i)
{
	while (i > 0 && regions[i - 1].end == regions[i].start && regions[i - 1].prot == regions[i].prot &&
	       regions[i - 1].flags == regions[i].flags && (regions[i].flags & MAP_ANONYMOUS)) {
		regions[i - 1].end = regions[i].end;
		memmove(&regions[i], &regions[i + 1], (nr_regions - i - 1) * sizeof *regions);
		nr_regions--;
		i--;
	}
}

/* Record [start, end), replacing what was there. Room for three must be reserved. */
static void region_set(uint64_t start, uint64_t end, int prot, int flags)
{
	region_carve(start, end);
	memory_used += counts(prot, flags) ? end - start : 0;
	heap_used += is_heap(prot, flags) ? end - start : 0;
	size_t i = region_find(start);
	region_insert_at(i, (struct gmem_region){ start, end, prot, flags, 0 });
	if (i + 1 < nr_regions)
		region_merge_around(i + 1);
	region_merge_around(i);
}

/* The region that begins at start. */
static void region_mark(uint64_t start, uint32_t origin, int flags)
{
	size_t i = region_find(start);
	regions[i].origin = origin;
	regions[i].flags |= flags;
}

static bool range_mapped(uint64_t start, uint64_t end)
{
	for (size_t i = region_find(start); start < end; i++) {
		if (i >= nr_regions || regions[i].start > start)
			return false;
		start = regions[i].end;
	}
	return true;
}

static bool range_free(uint64_t start, uint64_t end)
{
	size_t i = region_find(start);
	return i >= nr_regions || regions[i].start >= end;
}

/* Highest free range of len bytes in [low, high) whose start is a multiple of align. 0 = none. */
static uint64_t find_free(uint64_t low, uint64_t high, uint64_t len, uint64_t align)
{
	size_t i = region_find(high ? high - 1 : 0);
	uint64_t top = high;
	if (i < nr_regions && regions[i].start < high)
		top = regions[i].start;
	for (;;) {
		/* [bottom, top) is free, bottom = end of the region below */
		while (i > 0 && regions[i - 1].start >= top)
			i--;
		uint64_t bottom = i > 0 && regions[i - 1].end > low ? regions[i - 1].end : low;
		if (bottom < top && top - bottom >= len) {
			uint64_t a = ALIGN_DOWN(top - len, align);
			if (a >= bottom && a >= low)
				return a;
		}
		if (i == 0 || bottom <= low)
			return 0;
		top = regions[i - 1].start;
		i--;
		if (top <= low)
			return 0;
	}
}

/* ---- memory slots ----------------------------------------------------------------------------------------- */

/* None of the system region's, nor of the LibOS's. */
static bool is_program(uint64_t gpa) { return gpa < KX_USER_END || gpa >= KX_SPACE_SIZE; }

static bool logging; /* KVM notes which pages of the program's are written */

static int slot_ioctl(int id, uint64_t gpa, uint64_t size)
{
	struct kvm_userspace_memory_region r = {
		.slot = id, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (uint64_t)pvm.base + gpa
	};
	if (logging && is_program(gpa))
		r.flags = KVM_MEM_LOG_DIRTY_PAGES;
	return ioctl(pvm.vm_fd, KVM_SET_USER_MEMORY_REGION, &r) < 0 ? -errno : 0;
}

/* Index of the first slot that ends above addr. */
static size_t slot_find(uint64_t addr)
{
	size_t lo = 0, hi = nr_slots;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (slots[mid].end > addr)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

int gmem_log_writes(bool on)
{
	int r = 0;
	pthread_mutex_lock(&pvm.mm_lock);
	logging = on;
	for (size_t i = 0; i < nr_slots; i++)
		if (is_program(slots[i].start)) {
			int x = slot_ioctl(slots[i].id, slots[i].start, slots[i].end - slots[i].start);
			r = x ? x : r;
		}
	pthread_mutex_unlock(&pvm.mm_lock);
	return r;
}

int gmem_written(void (*fn)(void *arg, uint64_t start, uint64_t end), void *arg)
{
	static uint64_t bits[SLOT_MAX / PAGE / 64];
	for (size_t i = 0; i < nr_slots; i++) {
		struct slot s = slots[i];
		struct kvm_dirty_log log = { .slot = s.id, .dirty_bitmap = bits };
		if (!is_program(s.start))
			continue;
		if (s.end - s.start > SLOT_MAX)
			return -E2BIG;
		if (ioctl(pvm.vm_fd, KVM_GET_DIRTY_LOG, &log) < 0)
			return -errno;
		for (uint64_t w = 0; w < (s.end - s.start) / PAGE / 64; w++)
			for (uint64_t b = bits[w]; b;) {
				unsigned from = (unsigned)__builtin_ctzll(b);
				uint64_t rest = ~(b >> from);
				unsigned n = rest ? (unsigned)__builtin_ctzll(rest) : 64; /* ones in a row */
				n = n > 64 - from ? 64 - from : n;
				uint64_t at = s.start + (w * 64 + from) * PAGE;
				fn(arg, at, at + n * PAGE);
				b &= from + n == 64 ? 0 : ~0ull << (from + n);
			}
	}
	return 0;
}

/*
 * Cover [start, end) with slots. A new slot next to an old one is made as large as that (up to 1 GiB), so that
 * the number of slots grows with the logarithm of what is used.
 */
static int slot_cover(uint64_t start, uint64_t end)
{
	start = ALIGN_DOWN(start, HUGE);
	end = ALIGN_UP(end, HUGE);
	while (start < end) {
		size_t i = slot_find(start);
		if (i < nr_slots && slots[i].start <= start) {
			start = slots[i].end;
			continue;
		}
		uint64_t zone = start < KX_SPACE_SIZE ? 0 : KX_SPACE_SIZE;
		uint64_t limit = zone ? pvm.high_end : KX_SPACE_SIZE;
		if (i < nr_slots && slots[i].start < limit)
			limit = slots[i].start;
		uint64_t want = (end < limit ? end : limit) - start, s = start, size = want;
		bool above = i > 0 && slots[i - 1].end == start, below = i < nr_slots && slots[i].start == start + want;
		if (above) {
			uint64_t grow = slots[i - 1].end - slots[i - 1].start;
			size = grow > size ? grow : size;
			if (size > SLOT_MAX && size > want)
				size = want > SLOT_MAX ? want : SLOT_MAX;
			if (size > limit - s)
				size = limit - s;
		} else if (below) {
			uint64_t grow = slots[i].end - slots[i].start, floor = i > 0 ? slots[i - 1].end : 0;
			floor = floor < zone ? zone : floor;
			size = grow > size ? grow : size;
			if (size > SLOT_MAX && size > want)
				size = want > SLOT_MAX ? want : SLOT_MAX;
			if (size > s + want - floor)
				size = s + want - floor;
			s = s + want - size;
		}
		if (nr_slots == cap_slots) {
			size_t cap = cap_slots ? cap_slots * 2 : 32;
			struct slot *p = realloc(slots, cap * sizeof *p);
			if (!p)
				return -ENOMEM;
			slots = p;
			cap_slots = cap;
		}
		spare_changed();
		int r = slot_ioctl(next_slot_id, s, size);
		if (r) {
			kx_log(KX_LOG_ERROR, "gmem", "memory slot of %llu bytes at %#llx: %s", (unsigned long long)size,
			       (unsigned long long)s, strerror(-r));
			return -ENOMEM;
		}
		memmove(&slots[i + 1], &slots[i], (nr_slots - i) * sizeof *slots);
		slots[i] = (struct slot){ s, s + size, next_slot_id++ };
		nr_slots++;
		pvm.nr_slots = nr_slots;
		start = s + size;
	}
	return 0;
}

/* Drop every translation that KVM holds: deleting any slot does it. Slot 0 is one page that nobody uses. */
static void flush_all(void)
{
	spare_changed();
	slot_ioctl(0, KX_SYS_END, PAGE);
	slot_ioctl(0, KX_SYS_END, 0);
}

/* ---- page tables ------------------------------------------------------------------------------------------ */

uint64_t gmem_sys_alloc(unsigned pages)
{
	uint64_t size = pages * PAGE, p = sys_next;
	spare_changed();
	if (sys_next + size > sys_end) {
		bool first = sys_end == KX_SYS_BASE + KX_SYS_FIRST;
		uint64_t start = first ? KX_SYS_MORE : sys_end;
		uint64_t more = first ? 4 * MiB : sys_end - KX_SYS_MORE; /* double it */
		if (start + more > KX_SYS_END || slot_cover(start, start + more))
			return 0;
		if (first)
			sys_next = p = start;
		sys_end = start + more;
	}
	sys_next += size;
	return p;
}

bool gmem_has_huge(void)
{
	bool has = heap_used >= HUGE_FROM || huge_by_forks();
	for (size_t i = 0; i < nr_regions && !has; i++)
		has = is_heap(regions[i].prot, regions[i].flags) && regions[i].end - regions[i].start >= HUGE_ALONE;
	return has;
}

uint64_t gmem_sys_used(uint64_t gva)
{
	bool first = sys_end == KX_SYS_BASE + KX_SYS_FIRST;
	if (gva < KX_LIBOS_BASE)
		return first ? sys_next : KX_SYS_BASE + KX_SYS_FIRST;
	return first ? KX_SYS_MORE : sys_next;
}

static uint64_t *table(uint64_t gpa) { return gva_ptr(gpa & PTE_ADDR); }

/* The directory entry of gva; its directory is made when it is missing. NULL = no memory. */
static uint64_t *pde_of(uint64_t gva)
{
	uint64_t *pml4e = &table(KX_SYS_BASE + GMEM_PML4)[gva >> 39];
	if (!(*pml4e & PTE_P)) {
		uint64_t pdpt = gmem_sys_alloc(1);
		if (!pdpt)
			return NULL;
		__atomic_store_n(pml4e, pdpt | PTE_LEAF, __ATOMIC_RELEASE);
	}
	uint64_t *pdpte = &table(*pml4e)[(gva >> 30) & 511];
	if (!(*pdpte & PTE_P)) {
		uint64_t pd = gmem_sys_alloc(1);
		if (!pd)
			return NULL;
		__atomic_store_n(pdpte, pd | PTE_LEAF, __ATOMIC_RELEASE);
	}
	return &table(*pdpte)[(gva >> 21) & 511];
}

static int pde_to_table(uint64_t *pde, uint64_t region)
{
	uint64_t pt = gmem_sys_alloc(1);
	if (!pt)
		return -ENOMEM;
	for (int i = 0; i < 512; i++)
		table(pt)[i] = (region + i * PAGE) | PTE_LEAF | PTE_NX;
	bool was_leaf = *pde & PTE_P;
	__atomic_store_n(pde, pt | PTE_LEAF, __ATOMIC_RELEASE);
	if (was_leaf)
		flush_all();
	return 0;
}

/*
 * Make [start, end) reachable. The host mapping decides what may be read and written. 4 KiB leaves tell execute
 * permission, and also say read-only where that is so. `table`: by 4 KiB leaves even where nothing is
 * executable, since something soon will be (the parts of a library): to split a 2 MiB leaf later, KVM has to drop all
 * that it has, which takes milliseconds. Must come before the host mapping changes: that
 * change makes KVM forget what it had cached of the old entries.
 */
static int pt_set(uint64_t start, uint64_t end, int prot, bool table_wanted)
{
	bool exec = prot & PROT_EXEC;
	uint64_t leaf = (exec ? 0 : PTE_NX) | (prot & PROT_WRITE ? PTE_LEAF : PTE_LEAF & ~PTE_W);
	int r = slot_cover(start, end);
	if (r)
		return r;
	for (uint64_t region = ALIGN_DOWN(start, HUGE); region < end; region += HUGE) {
		uint64_t *pde = pde_of(region);
		if (!pde)
			return -ENOMEM;
		bool is_table = (*pde & PTE_P) && !(*pde & PTE_PS);
		if (!is_table && !exec && !(table_wanted && !(*pde & PTE_P))) {
			if (!(*pde & PTE_P))
				__atomic_store_n(pde, region | PTE_LEAF | PTE_PS | PTE_NX, __ATOMIC_RELEASE);
			continue;
		}
		if (!is_table && (r = pde_to_table(pde, region)))
			return r;
		uint64_t a = start > region ? start : region, b = end < region + HUGE ? end : region + HUGE;
		for (; a < b; a += PAGE)
			__atomic_store_n(&table(*pde)[(a >> 12) & 511], a | leaf, __ATOMIC_RELAXED);
	}
	return 0;
}

int gmem_populate(uint64_t gva)
{
	if (keeper_needed())
		return KEEPER6(gmem_populate, gva, 0, 0, 0, 0, 0);
	int r = 0;
	if (gva >= KX_SPACE_SIZE && !gva_ok(gva, 1))
		return 0;
	pthread_mutex_lock(&pvm.mm_lock);
	size_t i = region_find(gva);
	if (i < nr_regions && regions[i].start <= gva && regions[i].prot != PROT_NONE) {
		uint64_t *pde = pde_of(gva);
		bool missing = pde && !(*pde & PTE_P);
		bool table_here = pde && (*pde & PTE_P) && !(*pde & PTE_PS);
		/* A leaf that is less than the map says: not made by any path that is known, but harmless to mend. */
		if (table_here && (regions[i].prot & PROT_WRITE))
			missing = !(table(*pde)[(gva >> 12) & 511] & PTE_W);
		if (missing)
			r = pt_set(ALIGN_DOWN(gva, PAGE), ALIGN_DOWN(gva, PAGE) + PAGE, regions[i].prot,
				   !(regions[i].flags & MAP_ANONYMOUS)) == 0;
	}
	pthread_mutex_unlock(&pvm.mm_lock);
	return r;
}

/* ---- patched sites ------------------------------------------------------------------------------------------ */

static int site_cmp(const void *a, const void *b)
{
	uint64_t x = ((const struct kx_site *)a)->start, y = ((const struct kx_site *)b)->start;
	return x < y ? -1 : x > y;
}

/* Give the LibOS its copy of the table (it reads it when a program counter has to be translated). */
static void sites_publish(void)
{
	struct kx_site *out = gva_ptr(KX_SITES_BASE);
	size_t n = nr_sites < KX_SITES_MAX ? nr_sites : KX_SITES_MAX;
	__atomic_add_fetch(&pvm.shared->sites_seq, 1, __ATOMIC_SEQ_CST);
	if (n)
		memcpy(out, sites, n * sizeof *out);
	pvm.shared->nr_sites = n;
	__atomic_add_fetch(&pvm.shared->sites_seq, 1, __ATOMIC_SEQ_CST);
	pvm.nr_sites = pvm.nr_cpuid_sites = 0;
	for (size_t i = 0; i < nr_sites; i++)
		sites[i].cpuid ? pvm.nr_cpuid_sites++ : pvm.nr_sites++;
}

static void sites_forget(uint64_t start, uint64_t end)
{
	size_t j = 0;
	for (size_t i = 0; i < nr_sites; i++)
		if (sites[i].start < start || sites[i].start >= end)
			sites[j++] = sites[i];
	if (j != nr_sites) {
		nr_sites = j;
		sites_publish();
	}
}

static int sites_add(const struct kx_site *s, size_t n)
{
	if (nr_sites + n > cap_sites) {
		size_t cap = nr_sites + n + 1024;
		struct kx_site *p = realloc(sites, cap * sizeof *p);
		if (!p)
			return -ENOMEM;
		sites = p;
		cap_sites = cap;
	}
	memcpy(&sites[nr_sites], s, n * sizeof *s);
	nr_sites += n;
	qsort(sites, nr_sites, sizeof *sites, site_cmp);
	sites_publish();
	return 0;
}

/* The site whose window holds rip, or NULL. */
static const struct kx_site *site_at(uint64_t rip)
{
	size_t lo = 0, hi = nr_sites;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (sites[mid].start <= rip)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo && rip < sites[lo - 1].start + sites[lo - 1].len ? &sites[lo - 1] : NULL;
}

uint64_t gmem_pc_to_resume(uint64_t rip)
{
	if (keeper_needed())
		return KEEPER6(gmem_pc_to_resume, rip, 0, 0, 0, 0, 0);
	pthread_mutex_lock(&pvm.mm_lock);
	const struct kx_site *s = site_at(rip);
	if (s)
		rip = patch_site_to_tramp(s, rip);
	pthread_mutex_unlock(&pvm.mm_lock);
	return rip;
}

/* The site whose trampoline holds rip, or NULL. */
static const struct kx_site *site_of_tramp(uint64_t rip)
{
	size_t i = region_find(rip);
	if (i < nr_regions && regions[i].start <= rip && (regions[i].flags & GMEM_TRAMP))
		for (size_t k = 0; k < nr_sites; k++)
			if (rip - sites[k].tramp < sites[k].tramp_len)
				return &sites[k];
	return NULL;
}

uint64_t gmem_pc_to_original(uint64_t rip)
{
	if (keeper_needed())
		return KEEPER6(gmem_pc_to_original, rip, 0, 0, 0, 0, 0);
	pthread_mutex_lock(&pvm.mm_lock);
	const struct kx_site *s = site_of_tramp(rip);
	if (s)
		rip = patch_tramp_to_site(s, rip);
	pthread_mutex_unlock(&pvm.mm_lock);
	return rip;
}

bool gmem_pc_entering(uint64_t rip)
{
	pthread_mutex_lock(&pvm.mm_lock);
	const struct kx_site *s = site_of_tramp(rip);
	bool r = s && s->cpuid && patch_entering(s, rip);
	pthread_mutex_unlock(&pvm.mm_lock);
	return r;
}

bool gmem_pc_step_hidden(uint64_t rip)
{
	pthread_mutex_lock(&pvm.mm_lock);
	const struct kx_site *s = site_of_tramp(rip);
	bool r = s && !patch_step_ends(s, rip);
	pthread_mutex_unlock(&pvm.mm_lock);
	return r;
}

/* Bias of the ELF file whose text from file offset off is mapped at gva: address = p_vaddr + bias. */
int gmem_load_bias(const uint8_t *file, uint64_t size, uint64_t off, uint64_t gva, uint64_t *bias)
{
	Elf64_Ehdr eh;
	if (size < sizeof eh)
		return -ENOEXEC;
	memcpy(&eh, file, sizeof eh);
	if (memcmp(eh.e_ident, ELFMAG, SELFMAG) || eh.e_phentsize != sizeof(Elf64_Phdr))
		return -ENOEXEC;
	for (unsigned i = 0; i < eh.e_phnum; i++) {
		Elf64_Phdr ph;
		uint64_t at = eh.e_phoff + i * sizeof ph;
		if (at < eh.e_phoff || at > size || size - at < sizeof ph)
			return -ENOEXEC;
		memcpy(&ph, file + at, sizeof ph);
		if (ph.p_type == PT_LOAD && (ph.p_flags & PF_X) && ALIGN_DOWN(ph.p_offset, PAGE) <= off &&
		    off < ph.p_offset + ph.p_filesz) {
			*bias = gva - (ph.p_vaddr + (off - ph.p_offset));
			return 0;
		}
	}
	return -ENOENT;
}

/* x86 has no write-only and no execute-only pages; the host never executes guest memory. */
static int host_prot(int prot)
{
	if (prot & PROT_WRITE)
		return PROT_READ | PROT_WRITE;
	return prot & (PROT_READ | PROT_EXEC) ? PROT_READ : PROT_NONE;
}

static int do_mprotect(uint64_t addr, uint64_t len, int prot);
static uint64_t place(uint64_t hint, uint64_t len, int flags, bool file);

/* ---- patched text ------------------------------------------------------------------------------------------- */

/* What becomes of an executable private file mapping. */
struct text_use {
	const struct text *shared; /* the patched copy of it that others have, too, */
	int fd;                    /* and where to map it from */
	struct patch_plan plan;    /* else: to be applied to the mapping itself, where n is not 0 */
	uint64_t tramp, tramp_size;
	bool rseq; /* has restartable sequences */
};

/*
 * A place for trampolines. Directly below the image that the text belongs to, since then their distance depends on
 * the file alone and other processes can use the same copy; else near, where a page table is already; else anywhere
 * within reach.
 */
static uint64_t tramp_place(uint64_t gva, uint64_t len, uint64_t off, uint64_t size)
{
	uint64_t image = gva > off ? gva - off : gva;
	if (image > size + KX_USER_MIN && range_free(image - size, image))
		return image - size;
	uint64_t low = gva > 2 * GiB - 64 * MiB ? gva - (2 * GiB - 64 * MiB) : HUGE;
	uint64_t high = gva + 2 * GiB - 64 * MiB - size;
	if (gva < KX_USER_END && high > KX_USER_END)
		high = KX_USER_END;
	if (gva >= KX_SPACE_SIZE && low < KX_SPACE_SIZE)
		low = KX_SPACE_SIZE;
	if (gva >= KX_SPACE_SIZE && high > pvm.high_end)
		high = pvm.high_end;
	uint64_t near = gva > 16 * MiB && gva - 16 * MiB > low ? gva - 16 * MiB : low;
	uint64_t t = find_free(near, gva + len + 16 * MiB, size, PAGE);
	return t ? t : find_free(low, high, size, PAGE);
}

/* The disassembler, where solink put it. */
extern const char solink_text[] __attribute__((weak)), solink_text_end[] __attribute__((weak));

/* Find the sites of a text that is going to be mapped at gva. Failure is no error: what is not patched takes the slow
 * path. */
static void text_scan(uint64_t gva, uint64_t len, int fd, uint64_t off, struct text_use *use)
{
	struct stat st;
	struct patch_hints hints = { 0 };
	if (fstat(fd, &st) || st.st_size <= 0 || (uint64_t)st.st_size <= off)
		return;
	if (len > (uint64_t)st.st_size - off)
		len = st.st_size - off;
	/* Through a mapping of our own: the guest's would keep every page that is looked at. */
	uint8_t *file = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (!file || file == MAP_FAILED) /* never NULL; the sanitizers' build wants to hear it */
		return;
	use->rseq = rseq_text(file + off, len);
	/* Cheap first look: most libraries hold no site at all. */
	if (memmem(file + off, len, "\x0f\x05", 2) || memmem(file + off, len, "\x0f\xa2", 2)) {
		/* A text mapped from file offset off at gva: the bias of its ELF addresses. */
		uint64_t bias = 0;
		if (gmem_load_bias(file, st.st_size, off, gva, &bias) == 0)
			patch_hints_from_elf(file, st.st_size, bias, &hints);
		patch_scan(file + off, len, gva, &hints, &use->plan);
		patch_hints_free(&hints);
		/* Half a megabyte of tables that an idle monitor has no use for. */
		if (solink_text)
			madvise((void *)solink_text, solink_text_end - solink_text, MADV_DONTNEED);
	}
	munmap(file, st.st_size);
}

/* prot: with PROT_WRITE the program wants a copy of its own. */
static void text_prepare(uint64_t gva, uint64_t len, int prot, int fd, uint64_t off, struct text_use *use)
{
	struct text_key key;
	bool shareable = !(prot & PROT_WRITE) && text_key(fd, off, len, &key);
	const struct text *t = shareable ? text_find(&key) : NULL;
	use->fd = t && t->nr_sites ? text_open(t) : -1;
	if (t && t->nr_sites && use->fd < 0)
		t = NULL; /* its image has been removed or damaged */
	if (t) {
		if (t->rseq)
			rseq_switch_on();
		use->tramp = gva + t->tramp_from;
		use->tramp_size = t->tramp_size;
		if (!t->nr_sites) {
			pvm.nr_sites_found += t->nr_found;
			pvm.nr_cpuid_found += t->nr_cpuid;
			return;
		}
		if (nr_sites + t->nr_sites <= KX_SITES_MAX && use->tramp >= KX_USER_MIN &&
		    gva_ok(use->tramp, use->tramp_size) && range_free(use->tramp, use->tramp + use->tramp_size)) {
			pvm.nr_sites_found += t->nr_found;
			pvm.nr_cpuid_found += t->nr_cpuid;
			use->shared = t;
			return;
		}
		text_close(t, use->fd);
		shareable = false; /* something else is where its trampolines have to be */
	}
	text_scan(gva, len, fd, off, use);
	if (use->rseq)
		rseq_switch_on();
	pvm.nr_sites_found += use->plan.found;
	pvm.nr_cpuid_found += use->plan.cpuid_found;
	if (!use->plan.n) {
		if (shareable)
			text_add_none(&key, fd, &use->plan, use->rseq);
		return;
	}
	use->tramp_size = ALIGN_UP((uint64_t)use->plan.tramp_bytes, PAGE);
	use->tramp = tramp_place(gva, len, off, use->tramp_size);
	if (!use->tramp || nr_sites + use->plan.n > KX_SITES_MAX) /* as many as the LibOS can look up */
		use->plan.n = 0;
	else if (shareable)
		use->shared = text_add(&key, fd, gva, &use->plan, use->rseq, use->tramp, use->tramp_size);
	if (use->shared)
		use->fd = text_open(use->shared);
}

/* Put [p, p + len), which is ready, in its place at once: until then no call of the program's can write to it. */
static int place_ready(void *p, uint64_t len, int hp, uint64_t gva)
{
	if (!mprotect(p, len, hp) && mremap(p, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, gva_ptr(gva)) != MAP_FAILED)
		return 0;
	int r = -errno;
	munmap(p, len);
	return r;
}

static bool tramp_map(uint64_t t, uint64_t size)
{
	if (region_reserve(3) || pt_set(t, t + size, PROT_READ | PROT_EXEC, true))
		return false;
	region_set(t, t + size, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | GMEM_TRAMP);
	return true;
}

/* Patch a text that is not the family's copy, at p, where the program has no access yet; with its trampolines. True:
 * its sites hold. */
static bool text_patch(uint64_t gva, uint64_t len, void *p, struct text_use *use)
{
	uint64_t t = use->tramp, size = use->tramp_size;
	void *q = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (q == MAP_FAILED)
		return false;
	memset(q, 0xcc, size);
	int r = patch_apply(p, len, gva, &use->plan, q, t, size);
	if (place_ready(q, size, PROT_READ, t) || !tramp_map(t, size))
		pvm_panic("no memory for the trampolines of a text"); /* its jumps lead to them */
	return !r;
}

/* Map the trampolines of the family's copy. */
static void text_finish(uint64_t gva, struct text_use *use)
{
	uint64_t t = use->tramp, size = use->tramp_size;
	struct kx_site *s = text_sites(use->shared, use->fd, gva);
	uint64_t at = use->shared->at + ALIGN_UP(use->shared->key.len, PAGE);
	/* Its jumps lead to trampolines that are not there. */
	if (!s || mmap(gva_ptr(t), size, PROT_READ, MAP_SHARED | MAP_FIXED, use->fd, (off_t)at) == MAP_FAILED ||
	    !tramp_map(t, size))
		pvm_panic("no memory for the trampolines of a text");
	sites_add(s, use->shared->nr_sites);
	free(s);
}

/* Where the family's copies are mapped: pieces of regions with GMEM_TEXT. */
struct text_map {
	uint64_t start, end, at; /* at: bytes into the text, of start */
	const struct text *text;
	char path[168];
};
static struct text_map *text_maps;
static size_t nr_text_maps, cap_text_maps;

/* Note a mapping; what was noted of its addresses is no longer true. */
static int text_map_note(uint64_t start, uint64_t end, const struct text *t, int fd)
{
	size_t j = 0;
	for (size_t i = 0; i < nr_text_maps; i++)
		if (text_maps[i].end <= start || text_maps[i].start >= end)
			text_maps[j++] = text_maps[i];
	nr_text_maps = j;
	if (j == cap_text_maps) {
		size_t cap = cap_text_maps ? cap_text_maps * 2 : 16;
		struct text_map *p = realloc(text_maps, cap * sizeof *p);
		if (!p)
			return -ENOMEM;
		text_maps = p;
		cap_text_maps = cap;
	}
	struct text_map *m = &text_maps[nr_text_maps++];
	*m = (struct text_map){ .start = start, .end = end, .text = t };
	text_path(t, m->path, fd);
	return 0;
}

static const struct text_map *text_map_find(uint64_t gva)
{
	for (size_t i = 0; i < nr_text_maps; i++)
		if (text_maps[i].start <= gva && gva < text_maps[i].end)
			return &text_maps[i];
	return NULL;
}

/* A private copy of [s, e), in place of it at once: other threads may run there. */
static int text_copy(uint64_t s, uint64_t e, int prot)
{
	void *p = mmap(NULL, e - s, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return -errno;
	if ((host_prot(prot) == PROT_NONE && mprotect(gva_ptr(s), e - s, PROT_READ)))
		goto failed;
	memcpy(p, gva_ptr(s), e - s);
	if (mprotect(p, e - s, host_prot(prot)) ||
	    mremap(p, e - s, e - s, MREMAP_MAYMOVE | MREMAP_FIXED, gva_ptr(s)) == MAP_FAILED)
		goto failed;
	return 0;
failed:;
	int r = -errno;
	munmap(p, e - s);
	return r;
}

/* Give the program copies of its own of what it has of the family's in [start, end): it wants to write or move. */
static int text_own(uint64_t start, uint64_t end)
{
	while (start < end) {
		size_t i = region_find(start);
		if (i >= nr_regions || regions[i].start >= end)
			break;
		struct gmem_region r = regions[i];
		uint64_t s = r.start > start ? r.start : start, e = r.end < end ? r.end : end;
		start = e;
		if (!(r.flags & GMEM_TEXT))
			continue;
		const struct text_map *m = text_map_find(s);
		if (!m || e > m->end || region_reserve(4))
			return -ENOMEM;
		int x = text_copy(s, e, r.prot);
		if (x)
			return x;
		region_set(s, e, r.prot, r.flags & ~GMEM_TEXT);
	}
	return 0;
}

/* ---- under a policy: what a mapping of a file is ---------------------------------------------------------------- */

/* A private mapping of a file, as it was made. Regions name it by its number + 1. */
struct origin {
	uint64_t start, len, off, dev, ino; /* as fstat() has the file, or the image's copy */
	struct image *image;                /* NULL: not asked for */
};
static struct origin *origins;
static uint32_t nr_origins, cap_origins;

static uint32_t origins_unused; /* number + 1 of the first of those that no region has; the next is its off */

/* Returns how many there are. */
static uint32_t origins_collect(void)
{
	uint8_t *used = calloc(1, nr_origins ? nr_origins : 1);
	uint32_t n = 0;
	if (!used)
		return 0;
	for (size_t i = 0; i < nr_regions; i++)
		if (regions[i].origin)
			used[regions[i].origin - 1] = 1;
	for (uint32_t i = nr_origins; i-- > 0;)
		if (!used[i]) {
			if (origins[i].image)
				admit_hold(origins[i].image, -1);
			origins[i] = (struct origin){ .off = origins_unused };
			origins_unused = i + 1;
			n++;
		}
	free(used);
	return n;
}

/* Number + 1, 0 = no memory. Regions that are to keep theirs must have it. */
static uint32_t origin_add(uint64_t start, uint64_t len, uint64_t off, const struct stat *st, struct image *image)
{
	/* Grown until a collection pays: it looks at all regions. */
	if (!origins_unused && nr_origins == cap_origins && origins_collect() < cap_origins / 2 + nr_regions / 16 + 1) {
		uint32_t cap = cap_origins ? 2 * cap_origins : 64;
		struct origin *p = realloc(origins, cap * sizeof *p);
		if (p) {
			origins = p;
			cap_origins = cap;
		} else if (!origins_unused) {
			return 0;
		}
	}
	uint32_t k = origins_unused;
	if (k)
		origins_unused = (uint32_t)origins[k - 1].off;
	else
		k = ++nr_origins;
	origins[k - 1] = (struct origin){ start, len, off, st->st_dev, st->st_ino, image };
	if (image)
		admit_hold(image, 1);
	return k;
}

static struct origin *origin_at(uint64_t gva)
{
	size_t i = region_find(gva);
	return i < nr_regions && regions[i].start <= gva && regions[i].origin ? &origins[regions[i].origin - 1] : NULL;
}

static bool origin_file(uint64_t gva, struct gmem_text_file *out)
{
	const struct origin *o = origin_at(gva);
	if (!o || !o->image)
		return false;
	admit_origin(o->image, &out->dev, &out->ino, out->path);
	out->off = o->off + (gva - o->start);
	return true;
}

/*
 * What a mapping of a file is to be, under the policy. *fd becomes what is mapped in its place. *end: where what is
 * executable of it ends. 0 or -errno.
 */
static int map_admit(uint64_t addr, uint64_t len, int prot, int flags, uint64_t off, int *fd, struct image **image,
		     uint64_t *end)
{
	const struct origin *under = flags & MAP_FIXED ? origin_at(addr) : NULL;
	bool exec = prot & PROT_EXEC;
	struct stat st;
	int r = 0;
	*end = addr + len;
	*image = NULL;
	if (flags & MAP_ANONYMOUS || (flags & MAP_TYPE) != MAP_PRIVATE)
		return exec ? admit_memory("mmap") : 0;
	if (!exec) {
		/* Another part of an image is of the same copy. */
		if (under && under->image && !fstat(*fd, &st) && admit_is_of(under->image, &st))
			*image = under->image;
		else
			*image = admit_known(*fd);
	} else if (!(r = admit_file(*fd, image)) && prot & PROT_WRITE) {
		r = admit_memory("mmap");
	}
	if (r || !*image)
		return r;
	if (exec && (*end = addr + (admit_code_end(*image, off, len) - off)) == addr)
		return admit_memory("mmap of what is no code in its file");
	int at = admit_map_fd(*image, *fd);
	if (at < 0) /* made where descriptors are others, and in use */
		return -EACCES;
	*fd = at;
	return 0;
}

/* The next region from *i on that is a part of span's file, within span, and of no image yet. NULL = none. */
static const struct gmem_region *part_next(const struct origin *span, size_t *i)
{
	for (; *i < nr_regions && regions[*i].start < span->start + span->len; ++*i) {
		const struct gmem_region *r = &regions[*i];
		const struct origin *o = r->origin ? &origins[r->origin - 1] : NULL;
		if (o && !o->image && o->dev == span->dev && o->ino == span->ino)
			return ++*i, r;
	}
	return NULL;
}

/*
 * A text was mapped over a part of span, as ld.so does: the other parts of the same file come from the same image. One that
 * was writable already can't be exchanged any more.
 */
static int map_rebase(const struct origin span, struct image *image, int fd, const struct stat *st)
{
	const struct gmem_region *r;
	bool copy = st->st_dev != span.dev || st->st_ino != span.ino;
	size_t first = region_find(span.start);
	for (size_t i = first; copy && (r = part_next(&span, &i));) {
		const struct origin *o = &origins[r->origin - 1];
		if (!(r->flags & GMEM_CLEAN))
			return -EACCES;
		if (mmap(gva_ptr(r->start), r->end - r->start, host_prot(r->prot), MAP_PRIVATE | MAP_FIXED, fd,
			 (off_t)(o->off + (r->start - o->start))) == MAP_FAILED)
			return -errno;
	}
	for (size_t i = first; (r = part_next(&span, &i));) {
		struct origin *o = &origins[r->origin - 1];
		o->image = image;
		o->dev = st->st_dev;
		o->ino = st->st_ino;
		admit_hold(image, 1);
	}
	return 0;
}

/* Note what was mapped: under, the number of what was there before. The region is set. */
static int map_note(uint64_t addr, uint64_t len, int prot, uint64_t off, int fd, struct image *image, uint32_t under,
		    uint64_t end)
{
	struct stat st;
	if (fstat(fd, &st))
		return -errno;
	uint32_t n = origin_add(addr, len, off, &st, image);
	region_mark(addr, n, n && !(prot & PROT_WRITE) ? GMEM_CLEAN : 0);
	if (!(prot & PROT_EXEC) || !image)
		return 0;
	int r = 0;
	if (under && !origins[under - 1].image &&
	    admit_is_of(image, &(struct stat){ .st_dev = origins[under - 1].dev, .st_ino = origins[under - 1].ino }))
		r = map_rebase(origins[under - 1], image, fd, &st);
	return !r && end < addr + len ? do_mprotect(end, addr + len - end, prot & ~PROT_EXEC) : r;
}

/* [a, e) of region r is to be executable, or writable as well. 0 or -EACCES. */
static int protect_admit(const struct gmem_region *r, uint64_t a, uint64_t e, int prot)
{
	const struct origin *o = r->origin ? &origins[r->origin - 1] : NULL;
	if (r->prot & PROT_EXEC && !(prot & PROT_WRITE & ~r->prot))
		return 0;
	if (!o || !o->image || !(r->flags & GMEM_CLEAN) || prot & PROT_WRITE)
		return admit_memory("mprotect");
	uint64_t off = o->off + (a - o->start);
	if (admit_code_end(o->image, off, e - a) < off + (e - a))
		return admit_memory("mprotect of what is no code in its file");
	return admit_again(o->image);
}

int64_t gmem_code(const void *code, size_t len)
{
	int64_t r = -ENOMEM;
	pthread_mutex_lock(&pvm.mm_lock);
	uint8_t *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t a = p == MAP_FAILED ? 0 : place(0, PAGE, 0, true);
	if (a && !region_reserve(4) && !pt_set(a, a + PAGE, PROT_READ | PROT_EXEC, true)) {
		memcpy(p, code, len);
		r = place_ready(p, PAGE, PROT_READ, a);
		p = MAP_FAILED;
		if (!r) {
			region_set(a, a + PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS);
			r = (int64_t)a;
		}
	}
	if (p != MAP_FAILED)
		munmap(p, PAGE);
	pthread_mutex_unlock(&pvm.mm_lock);
	return r;
}

bool gmem_text_file(uint64_t gva, struct gmem_text_file *out)
{
	pthread_mutex_lock(&pvm.mm_lock);
	if (origin_file(gva, out)) {
		pthread_mutex_unlock(&pvm.mm_lock);
		return true;
	}
	const struct text_map *m = text_map_find(gva);
	const struct text *t = m ? m->text : NULL;
	if (t) {
		out->dev = t->key.dev;
		out->ino = t->key.ino;
		out->off = t->key.off + m->at + (gva - m->start);
		memcpy(out->path, m->path, sizeof out->path);
		out->path[sizeof out->path - 1] = 0;
	}
	pthread_mutex_unlock(&pvm.mm_lock);
	return t;
}

/* ---- mapping ------------------------------------------------------------------------------------------------- */

/* Give [start, end) back to the reservation. */
static int host_release(uint64_t start, uint64_t end)
{
	void *p = mmap(gva_ptr(start), end - start, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
		       -1, 0);
	return p == MAP_FAILED ? -errno : 0;
}

static bool range_has_tramp(uint64_t start, uint64_t end)
{
	for (size_t i = region_find(start); i < nr_regions && regions[i].start < end; i++)
		if (regions[i].flags & GMEM_TRAMP)
			return true;
	return false;
}

/* Bytes that the processor's physical addresses can tell apart, as the guest sees it; guest-physical is guest-virtual. */
static uint64_t physical_end(void)
{
	for (uint32_t i = 0; i < pvm.cpuid->nent; i++)
		if (pvm.cpuid->entries[i].function == 0x80000008) {
			unsigned bits = pvm.cpuid->entries[i].eax & 0xff;
			return bits < 63 ? 1ull << bits : 1ull << 63;
		}
	return 0;
}

/* Make sure that there is a high zone. */
static bool high_open(void)
{
	uint64_t end = physical_end();
	/* With a base, the end stays below where the host's kernel puts programs. */
	uint64_t most = pvm.base ? KX_HIGH_END / 2 : KX_HIGH_END;
	if (end > most)
		end = most;
	if (pvm.high_end || end <= KX_SPACE_SIZE)
		return pvm.high_end;
	void *want = gva_ptr(KX_SPACE_SIZE);
	void *p = mmap(want, end - KX_SPACE_SIZE, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	if (p == MAP_FAILED)
		return false;
	if (p != want) { /* a kernel before 4.17 */
		munmap(p, end - KX_SPACE_SIZE);
		return false;
	}
	madvise(p, end - KX_SPACE_SIZE, MADV_DONTDUMP);
	pvm.high_end = end;
	return true;
}

static uint64_t place(uint64_t hint, uint64_t len, int flags, bool file)
{
	if (hint && hint >= KX_USER_MIN && gva_ok(hint, len) && range_free(hint, hint + len))
		return hint;
	if (flags & MAP_32BIT)
		return find_free(KX_USER_MIN, 0x80000000, len, PAGE);
	uint64_t align = !file && len >= HUGE ? HUGE : PAGE, a;
	/* Small memory lies among the files, as on Linux: a small process needs no slot of its own for it. */
	if (file || (len < HUGE && !(flags & MAP_STACK)))
		a = find_free(FILE_LOW, file_high, len, align);
	else
		a = find_free(ANON_LOW, anon_high, len, align);
	if (!a)
		a = find_free(HUGE, KX_USER_END, len, PAGE);
	if (!a && high_open())
		a = find_free(KX_SPACE_SIZE, pvm.high_end, len, HUGE);
	return a;
}

/*
 * What a program maps privately to write it mostly writes at once. A fault in the guest costs tens of microseconds where
 * KVM has shadow page tables, whatever it maps, and maps seven neighbours with it if the host has them, writable. So the
 * host gets them here, in one call. What is touched for nothing is limited: larger mappings only where they are no more
 * than an eighth of the heap, and AHEAD_TOTAL. Of files only what a dynamic linker maps, to relocate it: other programs
 * may want to see later changes of the file.
 */
static void touch_ahead(uint64_t start, uint64_t end, int prot, int flags)
{
	if (!(prot & PROT_WRITE) || (flags & MAP_TYPE) != MAP_PRIVATE || (flags & MAP_HUGETLB) ||
	    (flags & (MAP_NORESERVE | MAP_STACK)) == MAP_NORESERVE || !(flags & (MAP_ANONYMOUS | MAP_DENYWRITE)))
		return;
	uint64_t len = end - start;
	if ((flags & MAP_STACK) && len > AHEAD_STACK) {
		start = end - AHEAD_STACK;
		len = AHEAD_STACK;
	}
	bool library = (flags & (MAP_DENYWRITE | MAP_FIXED | MAP_ANONYMOUS)) == (MAP_DENYWRITE | MAP_FIXED);
	if ((len > (library ? AHEAD_LIBRARY : AHEAD_SMALL) && (len > AHEAD_HEAP || len > heap_used / 8)) ||
	    len > ahead_left)
		return;
	if (!madvise(gva_ptr(start), len, MADV_POPULATE_WRITE)) /* else, or before Linux 5.14: as it is touched */
		ahead_left -= len;
}

static int do_munmap(uint64_t addr, uint64_t len);

static int64_t do_mmap(uint64_t addr, uint64_t len, int prot, int flags, int fd, uint64_t off)
{
	bool fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE), file = !(flags & MAP_ANONYMOUS);
	int type = flags & MAP_TYPE;
	if (!len || (off & (PAGE - 1)) || (fixed && (addr & (PAGE - 1))))
		return -EINVAL;
	if (type != MAP_PRIVATE && type != MAP_SHARED && type != MAP_SHARED_VALIDATE)
		return -EINVAL;
	if (len > KX_HIGH_END)
		return -ENOMEM;
	len = ALIGN_UP(len, PAGE);
	if (fixed) {
		if (addr >= KX_SPACE_SIZE && addr < KX_HIGH_END)
			high_open();
		if (!gva_ok(addr, len))
			return -ENOMEM;
		if (addr < KX_USER_MIN)
			return -EPERM;
		if ((flags & MAP_FIXED_NOREPLACE) && !range_free(addr, addr + len))
			return -EEXIST;
		if (range_has_tramp(addr, addr + len))
			return -ENOMEM;
	} else {
		addr = place(ALIGN_DOWN(addr, PAGE), len, flags, file);
		if (!addr)
			return -ENOMEM;
	}
	if (region_reserve(4) || !within_limit(addr, addr + len, prot, flags))
		return -ENOMEM;
	struct image *image = NULL;
	uint64_t code_end = addr + len;
	uint32_t under = 0;
	if (admit_on) {
		int r = map_admit(addr, len, prot, flags, off, &fd, &image, &code_end);
		if (r)
			return r;
		const struct origin *o = fixed ? origin_at(addr) : NULL;
		under = o ? (uint32_t)(o - origins) + 1 : 0;
	}
	if (prot != PROT_NONE) {
		bool small = file || (addr >= FILE_LOW && addr < FILE_HIGH && !(flags & MAP_STACK));
		int r = pt_set(addr, addr + len, prot, small);
		if (r)
			return r;
	}
	bool patch = file && (prot & PROT_EXEC) && type == MAP_PRIVATE;
	int keep = flags & ~(MAP_FIXED_NOREPLACE | MAP_32BIT | MAP_GROWSDOWN | MAP_LOCKED | MAP_POPULATE);
	/* Populating would fault every page in before it is known to be wanted; the program asked, so ask the host. */
	keep |= flags & (MAP_POPULATE | MAP_LOCKED);
	struct text_use use = { 0 };
	if (patch)
		text_prepare(addr, len, prot, fd, off, &use);
	const struct text *shared = use.shared;
	const int hp = host_prot(prot);
	bool patched = false;
	void *p;
	if (shared) {
		p = mmap(gva_ptr(addr), len, hp, (keep & ~MAP_TYPE) | MAP_SHARED | MAP_FIXED, use.fd,
			 (off_t)shared->at);
	} else if (use.plan.n) { /* elsewhere first: while the monitor writes to it, a call of the program's could */
		p = mmap(NULL, len, PROT_READ | PROT_WRITE, keep & ~MAP_FIXED, fd, off);
		if (p != MAP_FAILED) {
			patched = text_patch(addr, len, p, &use);
			int r = place_ready(p, len, hp, addr);
			p = r ? MAP_FAILED : gva_ptr(addr);
			errno = -r;
		}
	} else {
		p = mmap(gva_ptr(addr), len, hp, keep | MAP_FIXED, file ? fd : -1, off);
	}
	if (p != MAP_FAILED && shared && text_map_note(addr, addr + len, shared, fd)) {
		host_release(addr, addr + len);
		p = MAP_FAILED;
		errno = ENOMEM;
	}
	if (p == MAP_FAILED) {
		int e = errno;
		/* The host may have unmapped what was there before it failed. */
		if (fixed && !range_free(addr, addr + len) && !(flags & MAP_FIXED_NOREPLACE) && e == ENOMEM) {
			region_carve(addr, addr + len);
			host_release(addr, addr + len);
		}
		if (shared)
			text_close(shared, use.fd);
		patch_plan_free(&use.plan);
		return -e;
	}
	sites_forget(addr, addr + len);
	int rflags = flags & (MAP_TYPE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE);
	if (file && (flags & MAP_FIXED) && type == MAP_PRIVATE && (prot & PROT_WRITE))
		rflags |= GMEM_DATA;
	region_set(addr, addr + len, prot, rflags | (shared ? GMEM_TEXT : 0));
	if (!file && type == MAP_PRIVATE && prot != PROT_NONE && !(flags & (MAP_STACK | MAP_HUGETLB)) && huge_pays(len))
		madvise(p, len, MADV_HUGEPAGE);
	if (shared) {
		text_finish(addr, &use);
		text_close(shared, use.fd);
	}
	if (patched)
		sites_add(use.plan.sites, use.plan.n);
	patch_plan_free(&use.plan);
	if (admit_on && file && type == MAP_PRIVATE) {
		int r = map_note(addr, len, prot, off, fd, image, under, code_end);
		if (r) { /* of two minds: better none */
			do_munmap(addr, len);
			return r;
		}
	}
	return addr;
}

int64_t gmem_mmap(uint64_t addr, uint64_t len, int prot, int flags, int fd, uint64_t off)
{
	if (keeper_needed())
		return keeper_run_fd((keeper_fn)gmem_mmap, addr, len, prot, flags, flags & MAP_ANONYMOUS ? -1 : fd,
				     off);
	pthread_mutex_lock(&pvm.mm_lock);
	int64_t r = do_mmap(addr, len, prot, flags, fd, off);
	if (r >= 0)
		touch_ahead(r, r + ALIGN_UP(len, PAGE), prot, flags);
	pthread_mutex_unlock(&pvm.mm_lock);
	return r;
}

static int do_munmap(uint64_t addr, uint64_t len)
{
	if ((addr & (PAGE - 1)) || !len || !gva_ok(addr, len))
		return -EINVAL;
	len = ALIGN_UP(len, PAGE);
	if (range_has_tramp(addr, addr + len)) {
		/* Step around trampolines: they belong to no mapping of the program's. */
		for (uint64_t a = addr, end = addr + len; a < end;) {
			size_t i = region_find(a);
			if (i >= nr_regions || regions[i].start >= end)
				break;
			struct gmem_region r = regions[i];
			uint64_t s = r.start > a ? r.start : a, e = r.end < end ? r.end : end;
			a = r.end;
			if (r.flags & GMEM_TRAMP)
				continue;
			int x = do_munmap(s, e - s);
			if (x)
				return x;
		}
		return 0;
	}
	if (range_free(addr, addr + len))
		return 0;
	if (region_reserve(2))
		return -ENOMEM;
	int r = host_release(addr, addr + len);
	if (r)
		return r;
	region_carve(addr, addr + len);
	sites_forget(addr, addr + len);
	return 0;
}

int gmem_munmap(uint64_t addr, uint64_t len)
{
	if (keeper_needed())
		return KEEPER6(gmem_munmap, addr, len, 0, 0, 0, 0);
	pthread_mutex_lock(&pvm.mm_lock);
	int r = do_munmap(addr, len);
	pthread_mutex_unlock(&pvm.mm_lock);
	return r;
}

/* Protection of one region's part. */
static int protect_part(uint64_t start, uint64_t end, int old, int prot, bool file)
{
	int r = 0;
	if (prot != PROT_NONE && (r = pt_set(start, end, prot, file)))
		return r;
	if ((prot & PROT_WRITE) && (r = text_own(start, end)))
		return r;
	if (host_prot(old) == host_prot(prot) && (old & PROT_EXEC) && !(prot & PROT_EXEC) &&
	    mprotect(gva_ptr(start), end - start, PROT_NONE)) /* the host sees no change: make KVM look again */
		return -errno;
	if (mprotect(gva_ptr(start), end - start, host_prot(prot)))
		return -errno;
	return 0;
}

static int do_mprotect(uint64_t addr, uint64_t len, int prot)
{
	if ((addr & (PAGE - 1)) || (prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC | PROT_GROWSDOWN | PROT_GROWSUP)))
		return -EINVAL;
	prot &= PROT_READ | PROT_WRITE | PROT_EXEC;
	if (!len)
		return 0;
	if (!gva_ok(addr, len))
		return -ENOMEM;
	uint64_t end = addr + ALIGN_UP(len, PAGE);
	if (range_has_tramp(addr, end))
		return -ENOMEM;
	if (region_reserve(4))
		return -ENOMEM;
	/* As Linux: what comes before a hole or an error has changed. */
	for (uint64_t a = addr; a < end;) {
		size_t i = region_find(a);
		if (i >= nr_regions || regions[i].start > a)
			return -ENOMEM;
		struct gmem_region r = regions[i];
		uint64_t e = r.end < end ? r.end : end;
		if (r.prot != prot) {
			if (!within_limit(a, e, prot, r.flags))
				return -ENOMEM;
			if (admit_on && prot & PROT_EXEC && protect_admit(&r, a, e, prot))
				return -EACCES;
			int x = protect_part(a, e, r.prot, prot, !(r.flags & MAP_ANONYMOUS));
			if (x)
				return x;
			if (region_reserve(4))
				return -ENOMEM;
			region_set(a, e, prot, prot & PROT_WRITE ? r.flags & ~(GMEM_TEXT | GMEM_CLEAN) : r.flags);
			region_mark(a, r.origin, 0);
			if (prot & ~r.prot & PROT_WRITE)
				written_mark(a, e - a);
			if (r.prot == PROT_NONE && (r.flags & MAP_ANONYMOUS)) /* the memory of a thread, an arena */
				touch_ahead(a, e, prot, r.flags & ~MAP_NORESERVE);
		}
		a = e;
	}
	return 0;
}

int gmem_mprotect(uint64_t addr, uint64_t len, int prot)
{
	if (keeper_needed())
		return KEEPER6(gmem_mprotect, addr, len, prot, 0, 0, 0);
	pthread_mutex_lock(&pvm.mm_lock);
	int r = do_mprotect(addr, len, prot);
	pthread_mutex_unlock(&pvm.mm_lock);
	return r;
}

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
	if ((regions[i].flags & GMEM_TEXT) && text_own(regions[i].start, regions[i].end))
		return -ENOMEM;
	i = region_find(old);
	struct gmem_region r = regions[i];
	if (!old_len && (r.flags & MAP_TYPE) == MAP_PRIVATE)
		return -EINVAL;
	if (admit_on && r.prot & PROT_EXEC && new_len > old_len && admit_memory("mremap"))
		return -EACCES;
	r.flags &= ~GMEM_CLEAN; /* its pages have other addresses from then on */
	if (region_reserve(6))
		return -ENOMEM;
	if (!(flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) && old_len) {
		if (new_len <= old_len) {
			int x = new_len < old_len ? do_munmap(old + new_len, old_len - new_len) : 0;
			return x ? x : (int64_t)old;
		}
		if (!within_limit(old + old_len, old + new_len, r.prot, r.flags))
			return -ENOMEM;
		if (r.end == old + old_len && gva_ok(old, new_len) && range_free(old + old_len, old + new_len)) {
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
		new_addr = place((flags & MREMAP_DONTUNMAP) ? ALIGN_DOWN(new_addr, PAGE) : 0, new_len, 0,
				 !(r.flags & MAP_ANONYMOUS));
		if (!new_addr)
			return -ENOMEM;
	}
	int x = r.prot != PROT_NONE ? pt_set(new_addr, new_addr + new_len, r.prot, !(r.flags & MAP_ANONYMOUS)) : 0;
	if (x)
		return x;
	if (mremap(gva_ptr(old), old_len, new_len, MREMAP_MAYMOVE | MREMAP_FIXED | (flags & MREMAP_DONTUNMAP),
		   gva_ptr(new_addr)) == MAP_FAILED)
		return -errno;
	sites_forget(new_addr, new_addr + new_len);
	region_set(new_addr, new_addr + new_len, r.prot, r.flags);
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

void gmem_set_brk(uint64_t start)
{
	brk_start = brk_cur = start;
	pvm.brk_start = start;
}

uint64_t gmem_brk(uint64_t addr)
{
	if (keeper_needed())
		return KEEPER6(gmem_brk, addr, 0, 0, 0, 0, 0);
	pthread_mutex_lock(&pvm.mm_lock);
	uint64_t cur = ALIGN_UP(brk_cur, PAGE), want = ALIGN_UP(addr, PAGE);
	if (addr >= brk_start && addr < KX_USER_END) {
		int64_t r = 0;
		if (want > cur) {
			r = range_free(cur, want) ? do_mmap(cur, want - cur, PROT_READ | PROT_WRITE,
							    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
						  : -ENOMEM;
			/* A heap is used from its beginning: no waste to limit. */
			if (r >= 0 && want - cur <= AHEAD_HEAP)
				madvise(gva_ptr(cur), want - cur, MADV_POPULATE_WRITE);
			/* do_mmap() sees each step alone; the heap as a whole may have become large. */
			if (r >= 0 && want - brk_start >= HUGE_ALONE && want - cur < HUGE_ALONE)
				madvise(gva_ptr(ALIGN_UP(brk_start, PAGE)), want - ALIGN_UP(brk_start, PAGE),
					MADV_HUGEPAGE);
		} else if (want < cur) {
			r = do_munmap(want, cur - want);
		}
		if (r >= 0)
			brk_cur = addr;
	}
	uint64_t ret = brk_cur;
	pthread_mutex_unlock(&pvm.mm_lock);
	return ret;
}

static uint64_t random_below(uint64_t n)
{
	uint64_t x = 0;
	if (getrandom(&x, sizeof x, 0) != sizeof x)
		x = pvm.start_ns * 0x9e3779b97f4a7c15ull;
	return n ? x % n : 0;
}

void gmem_expect(uint64_t start, uint64_t end)
{
	pthread_mutex_lock(&pvm.mm_lock);
	slot_cover(start, end);
	pthread_mutex_unlock(&pvm.mm_lock);
}

uint64_t gmem_place_exec(uint64_t len)
{
	pthread_mutex_lock(&pvm.mm_lock);
	uint64_t a = 0;
	if (!exe_placed) {
		a = EXE_LOW + random_below((EXE_HIGH - EXE_LOW) / HUGE) * HUGE;
		exe_placed = true;
		if (!range_free(a, a + len))
			a = 0;
	}
	/* One slot for the first libraries and the stack: each costs a call, in each child again. Failure shows when they are mapped. */
	if (!a && slot_find(file_high) == slot_find(file_high - FILE_FIRST))
		slot_cover(file_high - FILE_FIRST, file_high + STACK_ROOM);
	if (!a)
		a = find_free(FILE_LOW, file_high, len, HUGE);
	pthread_mutex_unlock(&pvm.mm_lock);
	return a;
}

uint64_t gmem_place_stack(uint64_t len, uint64_t random)
{
	return len + PAGE > STACK_ROOM ? 0 : file_high + len + (random % (STACK_ROOM - len) & -PAGE);
}

static int64_t shm_attach(int shmid, uint64_t addr, uint64_t len, int flags)
{
	if (addr && (flags & 020000 /* SHM_RND */))
		addr = ALIGN_DOWN(addr, PAGE);
	if (addr & (PAGE - 1) || (!addr && flags & 040000 /* SHM_REMAP */))
		return -EINVAL;
	spare_shm();
	pthread_mutex_lock(&pvm.mm_lock);
	int64_t r = -EINVAL;
	int prot = PROT_READ | (flags & 010000 /* SHM_RDONLY */ ? 0 : PROT_WRITE) |
		   (flags & 0100000 /* SHM_EXEC */ ? PROT_EXEC : 0);
	if (addr) {
		if (!gva_ok(addr, len) || addr < KX_USER_MIN || range_has_tramp(addr, addr + len) ||
		    (!(flags & 040000 /* SHM_REMAP */) && !range_free(addr, addr + len)))
			goto out;
	} else if (!(addr = place(0, len, 0, true))) {
		r = -ENOMEM;
		goto out;
	}
	if (admit_on && prot & PROT_EXEC && (r = admit_memory("shmat")))
		goto out;
	if (region_reserve(4) || pt_set(addr, addr + len, prot, false)) {
		r = -ENOMEM;
		goto out;
	}
	r = host_call(SYS_shmat, shmid, (long)gva_ptr(addr), (flags & ~0100000) | 040000, 0, 0, 0);
	if (r == (int64_t)(long)gva_ptr(addr)) {
		sites_forget(addr, addr + len);
		region_set(addr, addr + len, prot, MAP_SHARED);
		r = addr;
	}
out:
	pthread_mutex_unlock(&pvm.mm_lock);
	return r;
}

int64_t gmem_shmat(int shmid, uint64_t addr, int flags)
{
	if (keeper_needed())
		return KEEPER6(gmem_shmat, shmid, addr, flags, 0, 0, 0);
	struct shmid64 {
		char pad[48];
		uint64_t segsz;
		char rest[256];
	} ds;
	/* What is attached keeps its number: else that could be a larger segment's by the time that it is mapped. */
	int64_t pin = host_call(SYS_shmat, shmid, 0, flags & 010000 /* SHM_RDONLY */, 0, 0, 0);
	if (pin < 0 && pin > -4096)
		return pin;
	long q = host_call(SYS_shmctl, shmid, 2 /* IPC_STAT */, (long)&ds, 0, 0, 0);
	int64_t r = q < 0 ? q : shm_attach(shmid, addr, ALIGN_UP(ds.segsz, PAGE), flags);
	host_call(SYS_shmdt, pin, 0, 0, 0, 0, 0);
	return r;
}

int gmem_shmdt(uint64_t addr)
{
	if (keeper_needed())
		return KEEPER6(gmem_shmdt, addr, 0, 0, 0, 0, 0);
	if (!gva_ok(addr, PAGE) || (addr & (PAGE - 1)))
		return -EINVAL;
	pthread_mutex_lock(&pvm.mm_lock);
	int r = region_reserve(2) ? -ENOMEM : host_call(SYS_shmdt, (long)gva_ptr(addr), 0, 0, 0, 0, 0);
	/* The kernel unmaps whatever is left of that attachment, and leaves alone what else is among it. */
	for (size_t i = region_find(addr); !r && i < nr_regions;) {
		const struct gmem_region g = regions[i];
		unsigned char there;
		if (g.flags == MAP_SHARED &&
		    host_call(SYS_mincore, (long)gva_ptr(g.start), PAGE, (long)&there, 0, 0, 0) == -ENOMEM) {
			host_release(g.start, g.end);
			region_carve(g.start, g.end);
		} else {
			i++;
		}
	}
	pthread_mutex_unlock(&pvm.mm_lock);
	return r;
}

bool gmem_query_locked(uint64_t gva, struct gmem_region *out)
{
	size_t i = region_find(gva);
	if (i < nr_regions)
		*out = regions[i];
	return i < nr_regions;
}

bool gmem_query(uint64_t gva, struct gmem_region *out)
{
	if (keeper_needed())
		return (uint8_t)KEEPER6(gmem_query, gva, out, 0, 0, 0, 0);
	pthread_mutex_lock(&pvm.mm_lock);
	size_t i = region_find(gva);
	bool found = i < nr_regions;
	if (found)
		*out = regions[i];
	pthread_mutex_unlock(&pvm.mm_lock);
	return found;
}

bool gmem_mapped(uint64_t gva, uint64_t len)
{
	if (keeper_needed())
		return (uint8_t)KEEPER6(gmem_mapped, gva, len, 0, 0, 0, 0);
	pthread_mutex_lock(&pvm.mm_lock);
	bool r = gva_ok(gva, len) && range_mapped(ALIGN_DOWN(gva, PAGE), ALIGN_UP(gva + len, PAGE));
	pthread_mutex_unlock(&pvm.mm_lock);
	return r;
}

int gmem_map_family(uint64_t gva, uint64_t len, int fd, uint64_t off)
{
	pthread_mutex_lock(&pvm.mm_lock);
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED;
	void *p = mmap(gva_ptr(gva), len, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, (off_t)off);
	int r = p == MAP_FAILED ? -errno : pt_set(gva, gva + len, PROT_READ | PROT_WRITE, false);
	if (!r)
		region_set(gva, gva + len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | GMEM_TRAMP);
	pthread_mutex_unlock(&pvm.mm_lock);
	return r;
}

/*
 * Thread areas are shared memory, of which the child gets new one: a fork leaves the parent's as they are, so its vCPUs
 * do not have to fault them in again. What the child needs of them is copied by hand.
 */
static int areas_map(void)
{
	void *p = mmap(gva_ptr(KX_AREA_BASE), (uint64_t)KX_AREA_MAX * KX_AREA_SIZE, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
	return p == MAP_FAILED ? -errno : 0;
}

int gmem_fork_areas(uint64_t own)
{
	int r = areas_map();
	if (!r) /* all of its pages: KVM maps neighbours at a fault where they are there */
		madvise(gva_ptr(own), KX_AREA_SIZE, MADV_POPULATE_WRITE);
	return r;
}

/* What a fork is likely to make both sides write to soon. */
#define HOT_REGION (64 * 1024)
#define HOT_TOTAL (192 * 1024)

static void hot_populate(uint64_t start, uint64_t end, uint64_t *left)
{
	if (end - start > *left)
		return;
	*left -= end - start;
	madvise(gva_ptr(start), end - start, MADV_POPULATE_WRITE);
}

void gmem_fork_populate(uint64_t sp)
{
	uint64_t left = HOT_TOTAL;
	if (keeper_needed()) /* it may die with the lock, and the keeper's round trip costs more than a fault */
		return;
	pthread_mutex_lock(&pvm.mm_lock);
	size_t i = region_find(sp);
	if (i < nr_regions && regions[i].start <= sp && is_heap(regions[i].prot, regions[i].flags & ~MAP_STACK)) {
		uint64_t page = ALIGN_DOWN(sp, PAGE), low = page - PAGE;
		hot_populate(low >= regions[i].start ? low : page, page + PAGE, &left);
	}
	for (i = nr_regions; i-- && left;) {
		const struct gmem_region *r = &regions[i];
		/* A page of a file that was not written yet shows what becomes of the file. */
		if (!(r->prot & PROT_WRITE) || (r->flags & MAP_TYPE) != MAP_PRIVATE ||
		    !(r->flags & (MAP_ANONYMOUS | GMEM_DATA)) || r->flags & (GMEM_TRAMP | MAP_STACK) ||
		    r->end - r->start > HOT_REGION)
			continue;
		hot_populate(r->start, r->end, &left);
	}
	pthread_mutex_unlock(&pvm.mm_lock);
}

int gmem_fork_child(void)
{
	int r = 0;
	logging = false;
	for (size_t i = 0; i < nr_slots && !r; i++)
		r = slot_ioctl(slots[i].id, slots[i].start, slots[i].end - slots[i].start);
	return r;
}

/* ---- start ---------------------------------------------------------------------------------------------------- */

static int map_host(uint64_t gva, uint64_t len)
{
	void *p = mmap(gva_ptr(gva), len, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
	return p == MAP_FAILED ? -errno : 0;
}

/* Fixed tables: top levels, IDT, one `hlt` per vector and at LSTAR. */
static void sys_tables(void)
{
	uint64_t *pml4 = table(KX_SYS_BASE + GMEM_PML4), *hi = table(KX_SYS_BASE + 0x2000);
	pml4[0] = (KX_SYS_BASE + 0x1000) | PTE_LEAF;
	pml4[511] = (KX_SYS_BASE + 0x2000) | PTE_SUP;
	hi[510] = (KX_SYS_BASE + 0x3000) | PTE_SUP;
	for (unsigned i = 0; i < 512; i++)
		table(KX_SYS_BASE + 0x3000)[i] = (KX_SYS_BASE + i * HUGE) | PTE_SUP | PTE_PS;
	uint8_t *stubs = gva_ptr(KX_SYS_BASE + GMEM_STUBS);
	memset(stubs, 0xf4, PAGE);
	memset(gva_ptr(KX_SYS_BASE + GMEM_LSTAR), 0xf4, PAGE);
	uint64_t *idt = gva_ptr(KX_SYS_BASE + GMEM_IDT);
	for (unsigned v = 0; v < 256; v++) {
		uint64_t h = GMEM_SYS_VA(KX_SYS_BASE + GMEM_STUBS) + 16 * v;
		uint64_t dpl = v == 3 || v == 4 ? 3 : 0; /* int3 and into, as Linux */
		idt[2 * v] = (h & 0xffff) | 0x10 << 16 | (0x8e00 | dpl << 13) << 32 | (h >> 16 & 0xffff) << 48;
		idt[2 * v + 1] = h >> 32;
	}
}

/* The reservation. 0 or -errno. */
static int space_reserve(void)
{
#ifndef __SANITIZE_ADDRESS__ /* whose shadow is there */
	/* Host address = guest address, so that the host's kernel can follow a list of robust locks (robust.h). */
	void *at = mmap((void *)KX_USER_MIN, KX_SPACE_SIZE - KX_USER_MIN, PROT_NONE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	if (at == (void *)KX_USER_MIN) {
		pvm.base = NULL;
		return 0;
	}
	if (at != MAP_FAILED) /* a kernel before 4.17 */
		munmap(at, KX_SPACE_SIZE - KX_USER_MIN);
#endif
	/* Far below where the host places its own mappings, so that none of those ever falls into a gap of ours. */
	for (int i = 0; i < 64; i++) {
		uint64_t want = 0x200000000000ull + random_below(0x1000) * 0x1000000000ull / 16;
		want = ALIGN_DOWN(want, GiB);
		void *p = mmap((void *)want, KX_SPACE_SIZE, PROT_NONE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
		if (p != MAP_FAILED) {
			pvm.base = p;
			return 0;
		}
		if (errno != EEXIST)
			break;
	}
	return -errno;
}

int gmem_init(struct kx_err *err)
{
	int r = space_reserve();
	if (r)
		return kx_err_set(err, -r, "address space: cannot reserve 512 GiB: %s (raise `ulimit -v`)",
				  strerror(-r));
	madvise(gva_ptr(KX_USER_MIN), KX_SPACE_SIZE - KX_USER_MIN, MADV_DONTDUMP);
	anon_high = ANON_HIGH - random_below(4096) * HUGE;
	file_high = FILE_HIGH - STACK_ROOM - random_below(32768) * HUGE;
	sys_next = KX_SYS_BASE + 0x10000;
	sys_end = KX_SYS_BASE + KX_SYS_FIRST;
	if ((r = map_host(KX_SYS_BASE, KX_SYS_FIRST + 256 * MiB)) ||
	    (r = map_host(KX_SYS_MORE, KX_SYS_END - KX_SYS_MORE)) || (r = areas_map()) ||
	    (r = slot_cover(KX_SYS_BASE, KX_AREA_BASE + 2 * MiB)))
		return kx_err_set(err, -r, "guest memory: %s (is memory exhausted?)", strerror(-r));
	sys_tables();
	region_reserve(8);
	/* LibOS: text executable, the rest data. Regions above KX_USER_END are out of every call's reach. */
	if ((r = pt_set(KX_LIBOS_BASE, KX_VVAR_BASE, PROT_READ | PROT_EXEC, true)) ||
	    (r = pt_set(KX_VVAR_BASE, KX_AREA_BASE + 2 * MiB, PROT_READ | PROT_WRITE, false)))
		return kx_err_set(err, -r, "guest page tables: %s (is memory exhausted?)", strerror(-r));
	/* The monitor alone writes the clocks and the answers to `cpuid`: the host mapping is writable, so the guest's leaf must not be. */
	table(*pde_of(KX_VVAR_BASE))[(KX_VVAR_BASE >> 12) & 511] &= ~2ull;
	table(*pde_of(KX_CPUID_BASE))[(KX_CPUID_BASE >> 12) & 511] &= ~2ull;
	region_set(KX_LIBOS_BASE, KX_VVAR_BASE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | GMEM_TRAMP);
	region_set(KX_VVAR_BASE, KX_LIBOS_BASE + 256 * MiB, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | GMEM_TRAMP);
	pvm.shared = gva_ptr(KX_BOOT_BASE);
	pvm.vvar = gva_ptr(KX_VVAR_BASE);
	return 0;
}
