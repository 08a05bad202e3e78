/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that the family shares, and what a fork does to the program's. */
#include <errno.h>
#include <sys/mman.h>
#include "../../abi/kx_pipe.h"
#include "../../abi/kx_serve.h"
#include "../../util/together.h"
#include "gmem_priv.h"
#include "hot.h"
#include "keeper.h"

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

/* ---- KylinX's own ------------------------------------------------------------------------------------------------------ */

#define AREA_CHUNKS (KX_AREA_MAX * (uint64_t)KX_AREA_SIZE / HUGE)
_Static_assert(AREA_CHUNKS == 64, "a word has a bit for each");
_Static_assert((KX_PIPE_BASE - KX_AREA_BASE) / HUGE <= 128, "so have two");

static KX_TOGETHER uint64_t opened[2]; /* pieces of HUGE bytes from KX_AREA_BASE on, those with areas first */

static uint64_t chunk_of(uint64_t gva) { return (gva - KX_AREA_BASE) / HUGE; }

static bool is_open(uint64_t chunk) { return __atomic_load_n(&opened[chunk / 64], __ATOMIC_RELAXED) >> chunk % 64 & 1; }

bool sys_is_closed(uint64_t gva) { return gva >= KX_AREA_BASE && gva < KX_PIPE_BASE && !is_open(chunk_of(gva)); }

bool gmem_area_is_open(uint64_t index) { return index < KX_AREA_MAX && is_open(index / (KX_AREA_MAX / AREA_CHUNKS)); }

/*
 * Thread areas are shared memory, of which the child gets new one: a fork leaves the parent's as they are, so its vCPUs
 * do not have to fault them in again. What the child needs of them is copied by hand.
 */
static int chunk_map(uint64_t chunk)
{
	const uint64_t start = KX_AREA_BASE + chunk * HUGE;
	if (chunk >= AREA_CHUNKS)
		return map_host(start, HUGE);
	return mmap(gva_ptr(start), HUGE, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED
		       ? -errno
		       : 0;
}

static int chunk_open(uint64_t chunk)
{
	const int r = chunk_map(chunk);
	if (!r)
		__atomic_fetch_or(&opened[chunk / 64], 1ull << chunk % 64, __ATOMIC_RELAXED);
	return r;
}

int gmem_sys_open(uint64_t gva)
{
	const uint64_t chunk = chunk_of(gva), start = KX_AREA_BASE + chunk * HUGE;
	int r = 0;
	if (keeper_needed())
		return (int)KEEPER6(gmem_sys_open, gva, 0, 0, 0, 0, 0);
	pthread_mutex_lock(&pvm.mm_lock);
	if (!is_open(chunk)) {
		r = chunk_open(chunk);
		if (!r)
			r = pt_set(start, start + HUGE, PROT_READ | PROT_WRITE, false);
	}
	pthread_mutex_unlock(&pvm.mm_lock);
	return r;
}

int gmem_fork_areas(uint64_t own)
{
	const uint64_t chunk = chunk_of(own);
	int r = pvm_libos_apart();
	if (!r && opened[0] & ~(1ull << chunk) &&
	    mmap(gva_ptr(KX_AREA_BASE), AREA_CHUNKS * HUGE, PROT_NONE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
		r = -errno;
	opened[0] = 0;
	if (!r)
		r = chunk_open(chunk);
	if (!r) /* all of its pages: KVM maps neighbours at a fault where they are there */
		madvise(gva_ptr(own), KX_AREA_SIZE, MADV_POPULATE_WRITE);
	return r;
}

/* ---- what a fork does -------------------------------------------------------------------------------------------------- */

#define LOOK_PAGES 1024u

/* Give to the reservation what of [a, end) the host has not; of one region. Bytes; 0: *next is where to go on. */
static uint64_t hole_fill(uint64_t a, uint64_t end, uint64_t *next)
{
	unsigned char there[LOOK_PAGES];
	const uint64_t chunk = end - a < LOOK_PAGES * PAGE ? end - a : LOOK_PAGES * PAGE,
		       sizes[] = { end - a, chunk, PAGE };
	for (unsigned k = 0; k < sizeof sizes / sizeof *sizes; k++) {
		void *p = mmap(gva_ptr(a), sizes[k], PROT_NONE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
		*next = a + sizes[k];
		if (p == gva_ptr(a))
			return sizes[k];
		if (p != MAP_FAILED)
			munmap(p, sizes[k]);
	}
	if (!mincore(gva_ptr(a), chunk, there))
		*next = a + chunk;
	return 0;
}

void gmem_fork_holes(void)
{
	pthread_mutex_lock(&pvm.mm_lock);
	for (uint64_t at = 0, next; at < KX_HIGH_END; at = next) {
		size_t i = region_find(at);
		if (i >= nr_regions)
			break;
		const struct gmem_region r = regions[i];
		uint64_t a = r.start > at ? r.start : at, len = 0;
		next = r.end;
		if (!gmem_own(&r))
			len = hole_fill(a, r.end, &next);
		if (len && !region_reserve(2))
			region_carve(a, a + len);
	}
	pthread_mutex_unlock(&pvm.mm_lock);
}

/* What a fork is likely to make both sides write to soon. */
#define HOT_REGION (64 * 1024)
#define HOT_TOTAL (192 * 1024)

/* What the LibOS looks at in each call: present and writable, one fault maps all of it. */
void shared_populate(void) { madvise(gva_ptr(KX_BOOT_BASE), KX_SERVE_BASE + PAGE - KX_BOOT_BASE, MADV_POPULATE_WRITE); }

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
	if (!hot_has(KX_BOOT_BASE, KX_SERVE_BASE + PAGE))
		shared_populate();
	pthread_mutex_lock(&pvm.mm_lock);
	size_t i = region_find(sp);
	if (i < nr_regions && regions[i].start <= sp && is_heap(regions[i].prot, regions[i].flags & ~MAP_STACK)) {
		uint64_t page = ALIGN_DOWN(sp, PAGE), low = page - PAGE;
		low = low >= regions[i].start ? low : page;
		if (!hot_has(low, page + PAGE))
			hot_populate(low, page + PAGE, &left);
	}
	for (i = nr_regions; i-- && left;) {
		const struct gmem_region *r = &regions[i];
		/* A page of a file that was not written yet shows what becomes of the file. */
		if (!(r->prot & PROT_WRITE) || (r->flags & MAP_TYPE) != MAP_PRIVATE ||
		    !(r->flags & (MAP_ANONYMOUS | GMEM_DATA)) || r->flags & (GMEM_TRAMP | MAP_STACK) ||
		    r->end - r->start > HOT_REGION || hot_has(r->start, r->end))
			continue;
		hot_populate(r->start, r->end, &left);
	}
	pthread_mutex_unlock(&pvm.mm_lock);
}
