/* SPDX-License-Identifier: Apache-2.0 */
#include "huge.h"
#include <errno.h>
#include <sys/mman.h>
#include "gmem.h"

#define PAGE 4096ull
#define HUGE (2ull << 20)
#define CHUNKS_MAX 1024 /* of 2 MiB that are looked at */
#define RUNS_MAX 32
#define TRIES 4
#define DENSE 384 /* of the 512 pages in 2 MiB: as many must be in use */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static bool by_forks, refused;

extern char __bss_start[], _end[];

void huge_never(void *start, uint64_t len) { madvise(start, len, MADV_NOHUGEPAGE); }

/* Of this file's own data; before the constructors that write there. */
__attribute__((constructor(101))) static void never_own(void)
{
	char *start = (char *)(((uintptr_t)__bss_start + PAGE - 1) & -PAGE);
	huge_never(start, (uint64_t)(_end - start));
}

bool huge_by_forks(void) { return by_forks; }
void huge_refused(void) { refused = true; }
bool huge_is_refused(void) { return refused; }

static bool is_dense(uint64_t chunk)
{
	unsigned char in[HUGE / PAGE];
	unsigned n = 0;
	if (mincore(gva_ptr(chunk), HUGE, in))
		return false;
	for (unsigned i = 0; i < HUGE / PAGE; i++)
		n += in[i] & 1;
	return n >= DENSE;
}

/*
 * Behind a fork the host can't write to any of the pages, which are both sides', and Linux (6.1, for one) leaves 2 MiB of
 * which that holds for all: one page of each becomes this process's own first.
 *
 * Before Linux 6.1 the kernel's own thread makes them, later. EAGAIN: somebody had one of the pages at that moment, as the
 * kernel itself does now and then; what is done by then stays.
 */
static void make(uint64_t start, uint64_t end)
{
	if (madvise(gva_ptr(start), end - start, MADV_HUGEPAGE))
		return;
	for (uint64_t a = start; a < end; a += HUGE)
		madvise(gva_ptr(a), PAGE, MADV_POPULATE_WRITE);
	for (int i = 0; i < TRIES && madvise(gva_ptr(start), end - start, MADV_COLLAPSE) && errno == EAGAIN; i++)
		;
}

/* What follows each other of [start, end) and is in use; each such run may become a host mapping of its own. */
static void make_dense(uint64_t start, uint64_t end, unsigned *chunks, unsigned *runs)
{
	uint64_t run = start;
	for (uint64_t a = start; a < end && *chunks && *runs; a += HUGE, --*chunks) {
		const bool dense = is_dense(a), last = a + HUGE == end;
		if (dense && !last)
			continue;
		if (run < a || dense) {
			make(run, dense ? end : a);
			--*runs;
		}
		run = a + HUGE;
	}
}

void huge_for_forks(void)
{
	struct gmem_region r;
	const int mask = MAP_TYPE | MAP_ANONYMOUS | MAP_STACK | MAP_HUGETLB | GMEM_TRAMP;
	unsigned chunks = CHUNKS_MAX, runs = RUNS_MAX;
	if (by_forks || refused)
		return;
	by_forks = true;
	for (uint64_t at = 0; gmem_query(at, &r); at = r.end) {
		uint64_t start = (r.start + HUGE - 1) & -HUGE, end = r.end & -HUGE;
		if (r.prot & PROT_WRITE && (r.flags & mask) == (MAP_PRIVATE | MAP_ANONYMOUS) && start < end)
			make_dense(start, end, &chunks, &runs);
	}
}
