/* SPDX-License-Identifier: Apache-2.0 */
#include "spare_pages.h"
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>
#include "../../util/together.h"
#include "gmem.h"
#include "hcall.h"
#include "hot.h"
#include "maps.h"
#include "pagemap.h"

#define PAGE 4096ull
#define TABLE (2ull << 20) /* what one of the kernel's tables of pages is for */
#define RANGES_MAX 256     /* writable mappings, and their pieces */
#define SCAN_MAX 24576     /* pages looked at */
#define SCAN_GAP 160       /* entries that are read for nothing rather than by one call more */
#define EMPTY_MIN 64       /* pages; of less all are read */

struct range {
	uint64_t start, end;
	bool alone; /* hot.h's: no spare has what this process has there */
	bool empty; /* there was no page of it when it was last looked at */
};

static KX_TOGETHER struct {
	int pagemap_fd, statm_fd; /* of pid `opened_by`, 0: not open */
	pid_t opened_by;
	unsigned nr_ranges;
	uint64_t gen, omit; /* of which `range` is, and `statm` was */
	bool known;
	bool no_scan; /* the kernel has no PM_SCAN */
	char statm[32];
} sp;
static struct range range[RANGES_MAX];

static void proc_close(void)
{
	if (sp.opened_by) {
		close(sp.pagemap_fd);
		close(sp.statm_fd);
	}
	sp.opened_by = 0;
}

static bool proc_open(void)
{
	if (sp.opened_by == pvm.pid)
		return true;
	sp.pagemap_fd = proc_file("self/pagemap");
	sp.statm_fd = proc_file("self/statm");
	sp.opened_by = pvm.pid;
	if (sp.pagemap_fd >= 0 && sp.statm_fd >= 0)
		return true;
	proc_close();
	return false;
}

static bool statm_read(char out[32])
{
	memset(out, 0, 32);
	ssize_t n = pread(sp.statm_fd, out, 31, 0);
	char *end = n > 0 ? strchr(out, ' ') : NULL;
	if (!end)
		return false;
	memset(end, 0, 32 - (end - out)); /* the size of all mappings */
	/* And where the heap ends. */
	uint64_t brk = (uint64_t)sbrk(0);
	memcpy(out + 24, &brk, 8);
	return true;
}

/* In pieces of what the kernel has one table for, so that it tells cheaply of those of which there is nothing. */
static void range_cut(uint64_t start, uint64_t end, bool alone)
{
	for (; start < end && sp.nr_ranges < RANGES_MAX; start = range[sp.nr_ranges++].end) {
		const uint64_t next = (start & -TABLE) + TABLE;
		range[sp.nr_ranges] = (struct range){ start, next < end ? next : end, alone, false };
	}
}

/* Parts of guest memory that a spare need not be given, since whoever writes there calls spare_changed(): tables of pages, with
 * what is only there while an exception is told of; of patched sites. And what is left of the areas' reservation. */
static const struct {
	uint64_t start, end;
} still[] = { { KX_SYS_BASE, KX_LIBOS_BASE }, { KX_SITES_BASE, KX_SYS_MORE }, { KX_SYS_MORE, KX_SYS_END } };

static void range_add_hot(uint64_t start, uint64_t end)
{
	const uint64_t base = (uint64_t)pvm.base;
	uint64_t hot, hot_end;
	while (start < end && hot_next(start - base, &hot, &hot_end) && base + hot < end) {
		range_cut(start, base + hot, false);
		start = start < base + hot ? base + hot : start;
		hot_end = base + hot_end < end ? base + hot_end : end;
		range_cut(start, hot_end, true);
		start = hot_end;
	}
	range_cut(start, end, false);
}

static void range_add(uint64_t start, uint64_t end)
{
	const uint64_t base = (uint64_t)pvm.base;
	for (unsigned i = 0; i < sizeof still / sizeof *still; i++) {
		const uint64_t a = base + still[i].start, b = base + still[i].end;
		if (start >= b || end <= a)
			continue;
		if (start < a)
			range_add_hot(start, a);
		start = b;
	}
	if (start < end)
		range_add_hot(start, end);
}

static bool range_note(const struct maps_line *l, void *omit)
{
	if (l->perm[1] == 'w' && l->perm[3] == 'p' && l->start != *(const uint64_t *)omit)
		range_add(l->start, l->end);
	return true;
}

static bool ranges_read(uint64_t omit)
{
	uint64_t pages = 0;
	sp.nr_ranges = 0;
	if (!maps_each(range_note, &omit))
		return false;
	for (unsigned i = 0; i < sp.nr_ranges; i++)
		pages += range[i].alone ? 0 : (range[i].end - range[i].start) / PAGE;
	return sp.nr_ranges < RANGES_MAX && pages <= SCAN_MAX;
}

bool spare_pages_look(uint64_t gen, uint64_t omit)
{
	char statm[32];
	if (!proc_open() || !statm_read(statm))
		return false;
	if (sp.known && sp.gen == gen && sp.omit == omit && !memcmp(statm, sp.statm, sizeof statm))
		return true;
	sp.known = ranges_read(omit);
	sp.gen = gen;
	sp.omit = omit;
	memcpy(sp.statm, statm, sizeof statm);
	return sp.known;
}

bool spare_pages_same(uint64_t gen)
{
	char statm[32];
	return sp.known && sp.gen == gen && statm_read(statm) && !memcmp(statm, sp.statm, sizeof statm);
}

/* Of eight entries none is of a page that is there. */
static bool are_holes(const uint64_t e[8])
{
	return !((e[0] | e[1] | e[2] | e[3] | e[4] | e[5] | e[6] | e[7]) & (PM_PRESENT | PM_SWAP));
}

/* Those of r, of which `e` has the entries, behind n that are found. How many there are then; -1: too many. */
static int choose(struct range *r, const uint64_t *e, uint64_t *page, int n)
{
	const uint64_t *const first = e, *const end = e + (r->end - r->start) / PAGE;
	r->empty = end - e >= EMPTY_MIN;
	for (; e < end; e++) {
		while (end - e >= 8 && are_holes(e)) /* most of them */
			e += 8;
		if (e == end)
			break;
		r->empty &= !(*e & (PM_PRESENT | PM_SWAP));
		if (!(*e & PM_SWAP) && (*e & (PM_PRESENT | PM_FILE | PM_ALONE)) != (PM_PRESENT | PM_ALONE))
			continue;
		if (n == SPARE_PAGES_MAX)
			return -1;
		page[n++] = r->start + (uint64_t)(e - first) * PAGE;
	}
	return n;
}

static int choose_all(const struct range *r, uint64_t *page, int n)
{
	for (uint64_t a = r->start; a < r->end; a += PAGE) {
		if (n == SPARE_PAGES_MAX)
			return -1;
		page[n++] = a;
	}
	return n;
}

static bool entries_read(uint64_t *entry, uint64_t start, uint64_t end)
{
	size_t bytes = (end - start) / PAGE * 8;
	return pread(sp.pagemap_fd, entry, bytes, (off_t)(start / PAGE * 8)) == (ssize_t)bytes;
}

/* From Linux 6.7 on: of memory without tables nothing is looked at, and all ends with the first page. -1: not here. */
static int scan_any(uint64_t start, uint64_t end)
{
	struct pm_piece found;
	struct pm_scan scan = { .size = sizeof scan,
				.start = start,
				.end = end,
				.vec = (uint64_t)&found,
				.vec_len = 1,
				.max_pages = 1,
				.category_anyof_mask = PM_IS_PRESENT | PM_IS_SWAPPED,
				.return_mask = PM_IS_PRESENT };
	return sp.no_scan ? -1 : ioctl(sp.pagemap_fd, PM_SCAN, &scan);
}

/* Which pages are in memory is all there is to know where nothing can be swapped. */
static bool mincore_any(uint64_t start, uint64_t end, uint64_t *entry)
{
	const size_t words = ((end - start) / PAGE + 7) / 8;
	struct sysinfo info;
	uint64_t any = 0;
	entry[words - 1] = 0;
	if (sysinfo(&info) || info.totalswap || mincore((void *)start, end - start, (void *)entry))
		return true;
	for (size_t i = 0; i < words; i++)
		any |= entry[i] & 0x0101010101010101;
	return any;
}

/* Of what had no page when it was last looked at. False: it may have one. */
static bool is_still_empty(uint64_t start, uint64_t end, uint64_t *entry)
{
	int n = scan_any(start, end);
	sp.no_scan |= n < 0;
	return n < 0 ? !mincore_any(start, end, entry) : !n;
}

/* Behind range[i], which is empty, and what follows it and is. */
static unsigned empty_together(unsigned i)
{
	const uint64_t start = range[i].start;
	while (++i < sp.nr_ranges && range[i].empty && range[i].start == range[i - 1].end &&
	       range[i].end - start <= SPARE_PAGES_ENTRIES * PAGE)
		;
	return i;
}

/* Behind the last one that is read by one call from range[i] on: what is near it. */
static unsigned read_together(unsigned i)
{
	unsigned last = i;
	for (unsigned j = i + 1; j < sp.nr_ranges && range[j].start - range[last].end <= SCAN_GAP * PAGE &&
				 range[j].end - range[i].start <= SPARE_PAGES_ENTRIES * PAGE;
	     j++)
		last = range[j].alone || range[j].empty ? last : j;
	return last + 1;
}

int spare_pages_find(uint64_t *page, uint64_t *entry)
{
	int n = 0;
	for (unsigned i = 0, j; i < sp.nr_ranges && n >= 0; i = j) {
		const uint64_t start = range[i].start;
		j = i + 1;
		if (range[i].alone) {
			n = choose_all(&range[i], page, n);
			continue;
		}
		if (range[i].empty) {
			j = empty_together(i);
			if (is_still_empty(start, range[j - 1].end, entry))
				continue;
			j = i + 1;
		} else {
			j = read_together(i);
		}
		if (!entries_read(entry, start, range[j - 1].end))
			return -1;
		for (unsigned k = i; k < j && n >= 0; k++)
			n = range[k].alone ? choose_all(&range[k], page, n)
					   : choose(&range[k], &entry[(range[k].start - start) / PAGE], page, n);
	}
	return n;
}

/* Of those that are private and writable still: both lists are in order. */
void spare_pages_ahead(const uint64_t *page, unsigned nr)
{
	const struct range *r = range, *end = range + sp.nr_ranges;
	for (unsigned i = 0, n; i < nr && r < end; i += n) {
		const uint64_t a = page[i];
		n = 1;
		if (a >= r->end) {
			r++;
			n = 0;
		} else if (a >= r->start) {
			while (i + n < nr && page[i + n] == a + n * PAGE && page[i + n] < r->end)
				n++;
			if (!r->alone) /* hot_restore() has put them there */
				madvise((void *)a, n * PAGE, MADV_POPULATE_WRITE);
		}
	}
}

void spare_pages_forget(void)
{
	proc_close();
	sp.known = false;
}
