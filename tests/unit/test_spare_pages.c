/* SPDX-License-Identifier: Apache-2.0 */
/* Pages that a process has to itself beside a copy made by fork(2): all of them are found, and none that it shares; also where
 * nothing was when it was last looked at, by each way in which that is asked. */
#include "../../monitor/core/spare_pages.c"
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include "check.h"

#define BASE 0x100000000000ull /* of the guest's addresses: nothing else of this process is near */
#define REGION 0x100000000ull  /* private memory there */
#define TABLES 8u
#define HOT (REGION + 7 * TABLE + 64 * PAGE)
#define HOT_PAGES 5u

struct pvm pvm;
__thread struct thread *self;
static uint64_t entry[SPARE_PAGES_ENTRIES], page[SPARE_PAGES_MAX];
static int nr;

int proc_file(const char *name)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%s", name);
	return open(path, O_RDONLY | O_CLOEXEC);
}

bool hot_next(uint64_t gva, uint64_t *start, uint64_t *end)
{
	*start = HOT;
	*end = HOT + HOT_PAGES * PAGE;
	return gva < *end;
}

static uint8_t *at(unsigned table, unsigned n) { return (uint8_t *)(BASE + REGION + table * TABLE + n * PAGE); }

static bool is_found(const uint8_t *p)
{
	for (int i = 0; i < nr; i++)
		if (page[i] == (uint64_t)p)
			return true;
	return false;
}

static void find(void)
{
	nr = spare_pages_find(page, entry);
	CHECK(nr >= 0, "%d", nr);
	for (int i = 1; i < nr; i++)
		CHECK(page[i - 1] < page[i], "page %d of %d is not in order", i, nr);
}

static unsigned nr_empty(void)
{
	unsigned n = 0;
	for (unsigned i = 0; i < sp.nr_ranges; i++)
		n += range[i].empty;
	return n;
}

static void by(bool no_scan)
{
	const char *way = no_scan ? "mincore" : "PAGEMAP_SCAN";
	void *p = mmap((void *)(BASE + REGION), TABLES * TABLE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	CHECK(p == at(0, 0), "%s: no memory there", way);
	madvise(p, TABLES * TABLE, MADV_NOHUGEPAGE);
	*at(7, 300) = *at(7, 301) = 1;
	CHECK(spare_pages_look(no_scan, 0), "%s: can't be looked at", way);
	pid_t kid = fork();
	if (!kid)
		for (;;)
			pause();
	*at(7, 301) = 2;
	find();
	CHECK(is_found(at(7, 301)) && !is_found(at(7, 300)), "%s: what was written since", way);
	for (unsigned i = 0; i < HOT_PAGES; i++)
		CHECK(is_found(at(7, 64 + i)), "%s: hot page %u", way, i);
	CHECK(!is_found(at(7, 63)) && !is_found(at(7, 64 + HOT_PAGES)), "%s: no more than these", way);
	/* All tables of it but the last one, and before the hot pages what is enough to be asked about. */
	CHECK(nr_empty() >= 8, "%s: %u are empty", way, nr_empty());
	sp.no_scan = no_scan;
	find();
	CHECK(nr_empty() >= 8 && is_found(at(7, 301)), "%s: nothing has changed, %u are empty", way, nr_empty());
	CHECK(is_still_empty(BASE + REGION, BASE + REGION + TABLES / 2 * TABLE, entry) ||
		      (no_scan && mincore_any(BASE + REGION, BASE + REGION + PAGE, entry)),
	      "%s: it is seen to be empty", way);
	/* The first, the last of a table; one in the midst of those that are asked about together. */
	static const struct {
		unsigned table, n;
	} later[] = { { 7, 63 }, { 4, 0 }, { 2, 511 }, { 0, 77 } };
	for (unsigned i = 0; i < sizeof later / sizeof *later; i++) {
		*at(later[i].table, later[i].n) = 1;
		find();
		for (unsigned k = 0; k <= i; k++)
			CHECK(is_found(at(later[k].table, later[k].n)),
			      "%s: page %u of table %u, touched as number %u of %u", way, later[k].n, later[k].table, k,
			      i);
	}
	/* The child writes: what was shared is this process's alone, too. */
	CHECK(spare_pages_same(no_scan) && !spare_pages_same(2), "%s: the same", way);
	kill(kid, SIGKILL);
	waitpid(kid, NULL, 0);
	find();
	CHECK(is_found(at(7, 300)), "%s: nobody shares it any more", way);
	munmap(p, TABLES * TABLE);
	CHECK(!spare_pages_same(no_scan), "%s: less is mapped", way);
}

int main(void)
{
	pvm.base = (void *)BASE;
	pvm.pid = getpid();
	by(false);
	const bool both = !sp.no_scan;
	by(true);
	printf("spare_pages: %d checks, %d failures%s\n", checks, failures, both ? "" : "; no PAGEMAP_SCAN here");
	return failures != 0;
}
