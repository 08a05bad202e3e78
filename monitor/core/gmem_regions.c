/* SPDX-License-Identifier: Apache-2.0 */
/* What is mapped for the program: a sorted array of regions, and what is counted of them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include "../../util/grow.h"
#include "futex_nap.h"
#include "gmem_grow.h"
#include "gmem_priv.h"
#include "gmem_warm.h"
#include "hot.h"
#include "huge.h"
#include "keeper.h"
#include "spare.h"

#define HUGE_FROM (64 * MiB) /* heap of a program whose further mappings get them */
#define REGION_MAX 65530     /* vm.max_map_count's default */

struct gmem_region *regions;
size_t nr_regions;
static size_t cap_regions;
static uint64_t memory_used; /* bytes that --memory counts */
static uint64_t heap_used;   /* bytes of private anonymous writable memory but stacks */
static bool large;           /* it was HUGE_FROM once */

/* Index of the first region that ends above addr. */
size_t region_find(uint64_t addr)
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

int region_reserve(size_t extra)
{
	if (nr_regions + extra > cap_regions && nr_regions + extra > REGION_MAX)
		return -ENOMEM;
	return kx_room(regions, cap_regions, nr_regions + extra, 128) ? 0 : -ENOMEM;
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

/* Bytes of [start, end) in regions that are of a kind. */
static uint64_t bytes_of(bool (*kind)(int prot, int flags), uint64_t start, uint64_t end)
{
	uint64_t n = 0;
	for (size_t i = region_find(start); i < nr_regions && regions[i].start < end; i++)
		if (kind(regions[i].prot, regions[i].flags)) {
			uint64_t a = regions[i].start > start ? regions[i].start : start;
			n += (regions[i].end < end ? regions[i].end : end) - a;
		}
	return n;
}

bool is_heap(int prot, int flags)
{
	return (prot & PROT_WRITE) &&
	       (flags & (MAP_TYPE | MAP_ANONYMOUS | MAP_STACK | GMEM_TRAMP)) == (MAP_PRIVATE | MAP_ANONYMOUS);
}

/*
 * 2 MiB pages make first touch and fork cheap and waste what is not used of them: for mappings that are large, and
 * for all that could hold one once the program has become large.
 */
bool huge_pays(uint64_t len)
{
	return len >= HUGE_ALONE || (len >= HUGE && (heap_used >= HUGE_FROM || huge_by_forks()));
}

/*
 * --memory, and RLIMIT_AS: of the latter, which counts files, too, this is the part that runs away. Which mappings go when
 * the new one comes is [start, end).
 */
static bool limit_allows(uint64_t more, uint64_t start, uint64_t end, int prot, int flags)
{
	uint64_t most = limits_memory();
	if (pvm.cfg->memory && most > pvm.cfg->memory)
		most = pvm.cfg->memory;
	return most == RLIM_INFINITY || !counts(prot, flags) ||
	       memory_used - bytes_of(counts, start, end) + more <= most;
}

bool within_limit(uint64_t start, uint64_t end, int prot, int flags)
{
	return limit_allows(end - start, start, end, prot, flags);
}

bool more_within_limit(uint64_t more, int prot, int flags) { return limit_allows(more, 0, 0, prot, flags); }

/* Forget [start, end). Room for two must be reserved. */
void region_carve(uint64_t start, uint64_t end)
{
	gmem_ahead_carved(start, end);
	hot_carved(start, end);
	if (gmem_warm_any)
		gmem_warm_carved(start, end);
	gmem_grow_carved(start, end);
	spare_changed();
	for (size_t i = region_find(start); i < nr_regions && regions[i].start < end; i++)
		if ((regions[i].flags & (MAP_TYPE | GMEM_TRAMP)) == MAP_SHARED) {
			spare_unmapped();
			futex_unmapped();
		}
	memory_used -= bytes_of(counts, start, end);
	heap_used -= bytes_of(is_heap, start, end);
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
void region_set(uint64_t start, uint64_t end, int prot, int flags)
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
void region_mark(uint64_t start, uint32_t origin, int flags)
{
	size_t i = region_find(start);
	regions[i].origin = origin;
	regions[i].flags |= flags;
}

bool range_mapped(uint64_t start, uint64_t end)
{
	for (size_t i = region_find(start); start < end; i++) {
		if (i >= nr_regions || regions[i].start > start)
			return false;
		start = regions[i].end;
	}
	return true;
}

bool range_free(uint64_t start, uint64_t end)
{
	size_t i = region_find(start);
	return i >= nr_regions || regions[i].start >= end;
}

/* Highest free range of len bytes in [low, high) whose start is a multiple of align. 0 = none. */
uint64_t find_free(uint64_t low, uint64_t high, uint64_t len, uint64_t align)
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

bool gmem_has_huge(void)
{
	bool has = heap_used >= HUGE_FROM || huge_by_forks();
	for (size_t i = 0; i < nr_regions && !has; i++)
		has = is_heap(regions[i].prot, regions[i].flags) && regions[i].end - regions[i].start >= HUGE_ALONE;
	return has;
}

bool gmem_is_large(void) { return __atomic_load_n(&large, __ATOMIC_RELAXED); }

uint64_t heap_size(void) { return heap_used; }

bool becomes_large(void)
{
	bool was = large;
	large |= heap_used >= HUGE_FROM;
	return large && !was;
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

bool gmem_is_seen(void)
{
	bool seen = false;
	pthread_mutex_lock(&pvm.mm_lock);
	for (size_t i = 0; i < nr_regions && !seen; i++)
		seen = (regions[i].flags & MAP_TYPE) != MAP_PRIVATE && !(regions[i].flags & (GMEM_TRAMP | GMEM_STILL));
	pthread_mutex_unlock(&pvm.mm_lock);
	return seen;
}

void gmem_mark_still(uint64_t start)
{
	pthread_mutex_lock(&pvm.mm_lock);
	size_t i = region_find(start);
	if (i < nr_regions && regions[i].start == start)
		regions[i].flags |= GMEM_STILL;
	pthread_mutex_unlock(&pvm.mm_lock);
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
