/* SPDX-License-Identifier: Apache-2.0 */
#include "spare_pages.h"
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "../../util/together.h"
#include "gmem.h"
#include "hcall.h"
#include "maps.h"

#define PAGE 4096ull
#define RANGES_MAX 192 /* writable mappings */
#define SCAN_MAX 24576 /* pages looked at */
#define SCAN_GAP 128   /* entries that are read for nothing rather than by one call more */
#define PM_PRESENT (1ull << 63)
#define PM_SWAP (1ull << 62)
#define PM_FILE (1ull << 61) /* of a file, or shared */
#define PM_ALONE (1ull << 56)

struct range {
	uint64_t start, end;
};

static KX_TOGETHER struct {
	int pagemap_fd, statm_fd; /* of pid `opened_by`, 0: not open */
	pid_t opened_by;
	unsigned nr_ranges;
	uint64_t gen, omit; /* of which `range` is, and `statm` was */
	bool known;
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

/* Of the system region and above only what is in use. */
static void range_add(uint64_t start, uint64_t end)
{
	const uint64_t base = (uint64_t)pvm.base;
	if (start - base < KX_SPACE_SIZE) {
		if (start - base >= KX_AREA_BASE && start - base < KX_SYS_MORE)
			return; /* the rest of the areas' reservation */
		uint64_t used = base + gmem_sys_used(start - base);
		if (start - base >= KX_SYS_BASE && (start - base < KX_LIBOS_BASE || start - base >= KX_SYS_MORE))
			end = used < end ? used : end;
	}
	for (; start < end && sp.nr_ranges < RANGES_MAX; start = range[sp.nr_ranges++].end)
		range[sp.nr_ranges] = (struct range){ start, end - start < SPARE_PAGES_ENTRIES * PAGE
								     ? end
								     : start + SPARE_PAGES_ENTRIES * PAGE };
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
		pages += (range[i].end - range[i].start) / PAGE;
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
static int choose(const struct range *r, const uint64_t *e, uint64_t *page, int n)
{
	const uint64_t *const first = e, *const end = e + (r->end - r->start) / PAGE;
	for (; e < end; e++) {
		while (end - e >= 8 && are_holes(e)) /* most of them */
			e += 8;
		if (e == end)
			break;
		if (!(*e & PM_SWAP) && (*e & (PM_PRESENT | PM_FILE | PM_ALONE)) != (PM_PRESENT | PM_ALONE))
			continue;
		if (n == SPARE_PAGES_MAX)
			return -1;
		page[n++] = r->start + (uint64_t)(e - first) * PAGE;
	}
	return n;
}

static bool entries_read(uint64_t *entry, uint64_t start, uint64_t end)
{
	size_t bytes = (end - start) / PAGE * 8;
	return pread(sp.pagemap_fd, entry, bytes, (off_t)(start / PAGE * 8)) == (ssize_t)bytes;
}

int spare_pages_find(uint64_t *page, uint64_t *entry)
{
	int n = 0;
	for (unsigned i = 0, j; i < sp.nr_ranges; i = j) {
		const uint64_t start = range[i].start;
		/* What is near is one call. */
		for (j = i + 1; j < sp.nr_ranges && range[j].start - range[j - 1].end <= SCAN_GAP * PAGE &&
				range[j].end - start <= SPARE_PAGES_ENTRIES * PAGE;)
			j++;
		if (!entries_read(entry, start, range[j - 1].end))
			return -1;
		for (unsigned k = i; k < j && n >= 0; k++)
			n = choose(&range[k], &entry[(range[k].start - start) / PAGE], page, n);
		if (n < 0)
			return -1;
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
			madvise((void *)a, n * PAGE, MADV_POPULATE_WRITE);
		}
	}
}

void spare_pages_forget(void) { proc_close(); }
