/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include "admit.h"
#include "gmem_grow.h"
#include "gmem_pages.h"
#include "gmem_priv.h"
#include "libstart.h"
#include "gmem_warm.h"
#include "hot.h"
#include "huge.h"
#include "keeper.h"
#include "spare.h"
#include "whole.h"
#include "written.h"

/* Where things are put. Executables low, so that the break has room above them. */
#define EXE_LOW (16 * GiB)
#define EXE_HIGH (32 * GiB)
#define ANON_LOW (64 * GiB)
#define ANON_HIGH (320 * GiB)
#define FILE_LOW (320 * GiB)
#define FILE_HIGH (440 * GiB)
#define STACK_ROOM (18 * MiB) /* above the files, in one slot with the first of them: stacks of the usual size */
#define FILE_FIRST (16 * MiB)
#define RESERVATION (2048 * GiB) /* one that may go on where the processor has no physical addresses */
#define HIGH_HINT GiB            /* a reservation whose hint above the low space is followed */
/* Private writable memory that is touched ahead: a step of the heap, another mapping, a library's data, a stack's top; and
 * in all but the heap. */
#define AHEAD_HEAP MiB
#define AHEAD_SMALL (32ull << 10)
#define AHEAD_LIBRARY (2 * MiB) /* its data, which is relocated */
#define AHEAD_STACK (32ull << 10)
#define AHEAD_TOTAL (16 * MiB)

static uint64_t ahead_left = AHEAD_TOTAL;
static uint64_t brk_start, brk_cur;
static uint64_t anon_high = ANON_HIGH, file_high = FILE_HIGH;
static bool exe_placed;

/* x86 has no write-only and no execute-only pages; the host never executes guest memory. */
int host_prot(int prot)
{
	if (prot & PROT_WRITE)
		return PROT_READ | PROT_WRITE;
	return prot & (PROT_READ | PROT_EXEC) ? PROT_READ : PROT_NONE;
}

/* ---- mapping ------------------------------------------------------------------------------------------------- */

/* Give [start, end) back to the reservation. */
int host_release(uint64_t start, uint64_t end)
{
	void *p = mmap(gva_ptr(start), end - start, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
		       -1, 0);
	return p == MAP_FAILED ? -errno : 0;
}

bool range_has_tramp(uint64_t start, uint64_t end)
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
	if (pvm.high_end || end <= KX_SPACE_SIZE)
		return pvm.high_end;
	void *want = gva_ptr(KX_SPACE_SIZE);
	void *p = mmap(want, most - KX_SPACE_SIZE, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	if (p == MAP_FAILED)
		return false;
	if (p != want) { /* a kernel before 4.17 */
		munmap(p, most - KX_SPACE_SIZE);
		return false;
	}
	madvise(p, most - KX_SPACE_SIZE, MADV_DONTDUMP);
	pvm.high_memory = end < most ? end : most;
	pvm.high_end = most;
	return true;
}

/*
 * What is more than the processor has physical addresses for, but only a reservation: behind all that is there, so that it
 * begins where memory can be. MariaDB reserves 8 TiB and uses the begin; many processors of virtual machines have 1 TiB.
 * Smaller ones are refused: V8 and GHC want a terabyte, else less, and V8 uses it at random places.
 */
static uint64_t place_reservation(uint64_t len)
{
	if (len < RESERVATION || !high_open())
		return 0;
	const size_t i = region_find(pvm.high_memory - 1);
	if (i < nr_regions && regions[i].start < pvm.high_memory)
		return 0;
	uint64_t at = i ? ALIGN_UP(regions[i - 1].end, HUGE) : 0;
	at = at < KX_SPACE_SIZE ? KX_SPACE_SIZE : at;
	return at < pvm.high_memory && gva_ok(at, len) && range_free(at, at + len) ? at : 0;
}

uint64_t place_pages(uint64_t hint, uint64_t len, int flags, bool file, uint64_t page)
{
	/* Who wants that much there mostly can't do without (ZGC). Smaller ones are as well off below. */
	if (hint >= KX_SPACE_SIZE && hint < KX_HIGH_END && len >= HIGH_HINT)
		high_open();
	if (hint && hint >= KX_USER_MIN && !(hint & (page - 1)) && gva_ok(hint, len) && !gmem_beyond(hint + len) &&
	    range_free(hint, hint + len))
		return hint;
	if (flags & MAP_32BIT)
		return find_free(KX_USER_MIN, 0x80000000, len, page);
	uint64_t align = !file && len >= HUGE && page < HUGE ? HUGE : page, a;
	/* Small memory lies among the files, as on Linux: a small process needs no slot of its own for it. */
	if (file || (len < HUGE && !(flags & MAP_STACK)))
		a = find_free(FILE_LOW, file_high, len, align);
	else
		a = find_free(ANON_LOW, anon_high, len, align);
	if (!a)
		a = find_free(HUGE, KX_USER_END, len, page);
	if (!a && high_open())
		a = find_free(KX_SPACE_SIZE, pvm.high_memory, len, page < HUGE ? HUGE : page);
	return a;
}

uint64_t place(uint64_t hint, uint64_t len, int flags, bool file) { return place_pages(hint, len, flags, file, PAGE); }

uint64_t place_library(uint64_t len) { return find_free(FILE_LOW, file_high, len, KVM_NEIGHBOURS); }

bool touch_more(uint64_t start, uint64_t len)
{
	/* If not, or before Linux 5.14: as it is touched. */
	if (!pvm.shadow_paging || len > ahead_left || madvise(gva_ptr(start), len, MADV_POPULATE_WRITE))
		return false;
	ahead_left -= len;
	return true;
}

/*
 * What a program maps privately to write it mostly writes at once. A fault in the guest costs tens of microseconds where
 * KVM has shadow page tables, whatever it maps, and maps seven neighbours with it if the host has them, writable. So the
 * host gets them here, in one call; not where the processor translates the guest's addresses: there a fault maps its
 * page alone. What is touched for nothing is limited: larger mappings only where they are no more than an eighth of the
 * heap, and AHEAD_TOTAL. Of files only what a dynamic linker maps, to relocate it: other programs may want to see later
 * changes of the file.
 */
void touch_ahead(uint64_t start, uint64_t end, int prot, int flags)
{
	if (!(prot & PROT_WRITE) || (flags & MAP_TYPE) != MAP_PRIVATE || (flags & MAP_HUGETLB) ||
	    (flags & (MAP_NORESERVE | MAP_STACK)) == MAP_NORESERVE || !(flags & (MAP_ANONYMOUS | MAP_DENYWRITE)))
		return;
	uint64_t len = end - start;
	if (flags & MAP_STACK) { /* is used from its end on */
		touch_more(len > AHEAD_STACK ? end - AHEAD_STACK : start, len > AHEAD_STACK ? AHEAD_STACK : len);
		return;
	}
	bool library = (flags & (MAP_DENYWRITE | MAP_FIXED | MAP_ANONYMOUS)) == (MAP_DENYWRITE | MAP_FIXED);
	if (len > (library ? AHEAD_LIBRARY : AHEAD_SMALL) && (len > AHEAD_HEAP || len > heap_size() / 8)) {
		if (library || len >= HUGE)
			return;
		len = AHEAD_SMALL; /* an arena is used from its begin */
	}
	if (touch_more(start, len) && start + len < end)
		gmem_grow_watch(start, start + len, end);
}

void range_lost(uint64_t start, uint64_t end, bool surely)
{
	unsigned char there;
	const size_t i = region_find(start);
	if (i >= nr_regions || regions[i].start >= end)
		return;
	void *at = gva_ptr(regions[i].start > start ? regions[i].start : start);
	if (!surely && HC6(SYS_mincore, at, PAGE, &there, 0, 0, 0) != -ENOMEM)
		return;
	host_release(start, end);
	region_carve(start, end);
	sites_forget(start, end);
}

struct gmem_spanned gmem_spanned = { .fd = -1 };

/* It is mapped already. */
static bool is_spanned(uint64_t addr, uint64_t len, int hp, int flags, int fd, uint64_t off)
{
	const struct gmem_spanned *s = &gmem_spanned;
	return s->fd >= 0 && fd == s->fd && hp == PROT_READ && (flags & (MAP_TYPE | MAP_ANONYMOUS)) == MAP_PRIVATE &&
	       addr >= s->start && addr + len <= s->end && off - s->off == addr - s->start;
}

int64_t do_mmap(uint64_t addr, uint64_t len, int prot, int flags, int fd, uint64_t off)
{
	bool fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE), file = !(flags & MAP_ANONYMOUS);
	int type = flags & MAP_TYPE;
	if (!len || (off & (PAGE - 1)) || (fixed && (addr & (PAGE - 1))))
		return -EINVAL;
	if (type != MAP_PRIVATE && type != MAP_SHARED && type != MAP_SHARED_VALIDATE)
		return -EINVAL;
	if (len > KX_HIGH_END)
		return -ENOMEM;
	const int64_t page = pages_wanted(flags, fd);
	if (page < 0)
		return page;
	len = ALIGN_UP(len, (uint64_t)page);
	if ((off & (uint64_t)(page - 1)) || (fixed && (addr & (uint64_t)(page - 1))))
		return -EINVAL;
	if (fixed) {
		if (addr >= KX_SPACE_SIZE && addr < KX_HIGH_END)
			high_open();
		if (!gva_ok(addr, len))
			return -ENOMEM;
		if (addr < KX_USER_MIN)
			return -EPERM;
		if (gmem_beyond(addr + len) && (prot != PROT_NONE || range_free(addr, addr + len)))
			return -ENOMEM;
		if ((flags & MAP_FIXED_NOREPLACE) && !range_free(addr, addr + len))
			return -EEXIST;
		if (range_has_tramp(addr, addr + len))
			return -ENOMEM;
	} else {
		addr = place_pages(ALIGN_DOWN(addr, PAGE), len, flags, file, (uint64_t)page);
		if (!addr && prot == PROT_NONE && !file && page == (int64_t)PAGE && !(flags & MAP_32BIT))
			addr = place_reservation(len);
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
		under = fixed ? origin_number(addr) : 0;
	}
	if (prot != PROT_NONE) {
		bool small = file || (addr >= FILE_LOW && addr < FILE_HIGH && !(flags & MAP_STACK));
		int r = pt_prepare(addr, addr + len, prot, small);
		if (r) {
			pt_restore(addr, addr + len);
			return r;
		}
	}
	bool patch = file && (prot & PROT_EXEC) && type == MAP_PRIVATE && page == (int64_t)PAGE;
	int keep = flags & ~(MAP_FIXED_NOREPLACE | MAP_32BIT | MAP_GROWSDOWN | MAP_LOCKED | MAP_POPULATE);
	/* Populating would fault every page in before it is known to be wanted; the program asked, so ask the host. */
	keep |= flags & (MAP_POPULATE | MAP_LOCKED);
	struct text_use use = { .image = image };
	if (patch) {
		sites_forget_left(addr, addr + len);
		text_prepare(addr, len, prot, fd, off, &use);
	}
	const bool shared = use.shared, has_sites = shared || use.plan.n;
	int hp = host_prot(prot), failed = 0;
	if (has_sites)
		failed = text_map(addr, len, hp, keep, fd, off, &use);
	else if (!is_spanned(addr, len, hp, flags, fd, off) &&
		 mmap(gva_ptr(addr), len, hp, keep | MAP_FIXED, file ? fd : -1, (off_t)off) == MAP_FAILED)
		failed = -errno;
	if (failed) {
		range_lost(addr, addr + len, false);
		pt_restore(addr, addr + len);
		text_use_end(&use);
		return failed;
	}
	if (!file && type == MAP_PRIVATE && prot & PROT_WRITE)
		sites_leave(addr, addr + len);
	else
		sites_forget(addr, addr + len);
	int rflags = (flags & (MAP_TYPE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE | MAP_GROWSDOWN)) |
		     pages_flags((uint64_t)page);
	if (file && (flags & MAP_FIXED) && type == MAP_PRIVATE && (prot & PROT_WRITE))
		rflags |= GMEM_DATA;
	region_set(addr, addr + len, prot, rflags | (shared ? GMEM_TEXT : 0));
	if (!file && type == MAP_PRIVATE && prot != PROT_NONE && !(flags & (MAP_STACK | MAP_HUGETLB)) && huge_pays(len))
		madvise(gva_ptr(addr), len, MADV_HUGEPAGE);
	text_mapped(&use);
	text_use_end(&use);
	if (admit_on && file && type == MAP_PRIVATE) {
		int r = map_note(addr, len, prot, off, fd, image, under, code_end);
		if (r) { /* of two minds: better none */
			if (do_munmap(addr, len))
				region_set(addr, addr + len, prot & ~PROT_EXEC, rflags);
			return r;
		}
	}
	if (prot & PROT_EXEC)
		pt_exec(addr, code_end);
	/* What the loader of an image maps. */
	if (file && (shared || !has_sites) && fixed && type == MAP_PRIVATE && flags & MAP_DENYWRITE &&
	    !(prot & PROT_WRITE) && prot)
		gmem_warm_begin(addr, addr + len, shared);
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
	bool now_large = becomes_large();
	pthread_mutex_unlock(&pvm.mm_lock);
	if (now_large)
		whole_due();
	return r;
}

/* Is at amidst a large page? */
static bool cuts_page(uint64_t at)
{
	const size_t i = region_find(at);
	return i < nr_regions && regions[i].start < at && at & (pages_size(regions[i].flags) - 1);
}

int do_munmap(uint64_t addr, uint64_t len)
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
	if (cuts_page(addr) || cuts_page(addr + len))
		return -EINVAL;
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

/*
 * [start, end), a part of a region that was as `was`, was to be prot. The host's kernel has failed, perhaps behind a part that it had
 * changed, since what is one region here can be several mappings there. So nothing is changed; but under a policy, what
 * somebody may have written to meanwhile is not the image's any more, and code no longer if it was to be none.
 */
static void protect_undo(uint64_t start, uint64_t end, int was, int prot)
{
	const struct gmem_region now = regions[region_find(start)]; /* its own copy by now, or not */
	const bool written = admit_on && prot & PROT_WRITE;
	int keep = admit_on ? was & (prot | ~PROT_EXEC) : was;
	if (keep != PROT_NONE)
		pt_set(start, end, keep, !(now.flags & MAP_ANONYMOUS));
	if (mprotect(gva_ptr(start), end - start, host_prot(keep)) && written)
		pvm_panic("no memory to protect memory");
	region_set(start, end, keep, written ? now.flags & ~GMEM_CLEAN : now.flags);
	region_mark(start, now.origin, 0);
}

/* With PROT_GROWSDOWN: *addr becomes the begin of what is mapped there, of [*addr, end), if that is a stack. */
static int stack_begin(uint64_t *addr, uint64_t end)
{
	const size_t i = region_find(*addr);
	if (i >= nr_regions || regions[i].start >= end)
		return -ENOMEM;
	if (!(regions[i].flags & MAP_GROWSDOWN))
		return -EINVAL;
	*addr = regions[i].start;
	return 0;
}

int do_mprotect(uint64_t addr, uint64_t len, int prot)
{
	const int grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP);
	if ((addr & (PAGE - 1)) || (prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC | grows)) ||
	    grows == (PROT_GROWSDOWN | PROT_GROWSUP))
		return -EINVAL;
	prot &= PROT_READ | PROT_WRITE | PROT_EXEC;
	if (!len)
		return 0;
	if (!gva_ok(addr, len))
		return -ENOMEM;
	uint64_t end = addr + ALIGN_UP(len, PAGE);
	if (range_has_tramp(addr, end))
		return -ENOMEM;
	int grown = !grows ? 0 : grows == PROT_GROWSUP ? -EINVAL : stack_begin(&addr, end);
	if (grown)
		return grown;
	/* As Linux: what comes before a hole or an error has changed. */
	for (uint64_t a = addr; a < end;) {
		size_t i = region_find(a);
		if (i >= nr_regions || regions[i].start > a)
			return -ENOMEM;
		struct gmem_region r = regions[i];
		uint64_t e = r.end < end ? r.end : end;
		if (r.prot != prot) {
			if (cuts_page(a) || cuts_page(e))
				return -EINVAL;
			if (!within_limit(a, e, prot, r.flags))
				return -ENOMEM;
			if (admit_on && prot & PROT_EXEC && protect_admit(&r, a, e, prot))
				return -EACCES;
			if (region_reserve(8)) /* before anything is changed; text_own() needs some, too */
				return -ENOMEM;
			int x = protect_part(a, e, r.prot, prot, !(r.flags & MAP_ANONYMOUS));
			if (x) {
				protect_undo(a, e, r.prot, prot);
				return x;
			}
			region_set(a, e, prot, prot & PROT_WRITE ? r.flags & ~(GMEM_TEXT | GMEM_CLEAN) : r.flags);
			region_mark(a, r.origin, 0);
			if (prot & ~r.prot & PROT_WRITE)
				written_mark(a, e - a);
			if (prot & ~r.prot & PROT_EXEC)
				sites_return(a, e);
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
			if (r >= 0 && want - cur <= AHEAD_HEAP && pvm.shadow_paging)
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
	libstart_brk(ret);
	bool now_large = becomes_large();
	pthread_mutex_unlock(&pvm.mm_lock);
	if (now_large)
		whole_due();
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
	r = -ENOMEM;
	if (region_reserve(4))
		goto out;
	if (!pt_prepare(addr, addr + len, prot, false))
		r = host_call(SYS_shmat, shmid, (long)gva_ptr(addr), (flags & ~0100000) | 040000, 0, 0, 0);
	if (r == (int64_t)(long)gva_ptr(addr)) {
		sites_forget(addr, addr + len);
		region_set(addr, addr + len, prot, MAP_SHARED);
		r = addr;
		if (prot & PROT_EXEC)
			pt_exec(addr, addr + len);
	} else {
		range_lost(addr, addr + len, false);
		pt_restore(addr, addr + len);
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

/* ---- start ---------------------------------------------------------------------------------------------------- */

int map_host(uint64_t gva, uint64_t len)
{
	void *p = mmap(gva_ptr(gva), len, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
	if (p == MAP_FAILED)
		return -errno;
	huge_never(p, len);
	return 0;
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
	if ((r = map_host(KX_SYS_BASE, KX_AREA_BASE - KX_SYS_BASE)) ||
	    (r = slot_cover(KX_SYS_BASE, KX_AREA_BASE + 2 * MiB)))
		return kx_err_set(err, -r, "guest memory: %s (is memory exhausted?)", strerror(-r));
	tables_make();
	region_reserve(8);
	/* LibOS: text executable, the rest data. Regions above KX_USER_END are out of every call's reach. */
	if ((r = pt_set(KX_LIBOS_BASE, KX_VVAR_BASE, PROT_READ | PROT_EXEC, true)) ||
	    (r = pt_set(KX_VVAR_BASE, KX_BOOT_BASE, PROT_READ, true)) ||
	    (r = pt_set(KX_BOOT_BASE, KX_AREA_BASE, PROT_READ | PROT_WRITE, false)) ||
	    (r = gmem_sys_open(KX_AREA_BASE)))
		return kx_err_set(err, -r, "guest page tables: %s (is memory exhausted?)", strerror(-r));
	region_set(KX_LIBOS_BASE, KX_VVAR_BASE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | GMEM_TRAMP);
	/* The monitor alone writes the clocks and the answers to `cpuid`: the host mapping is writable, so the guest's leaves must
	 * not be, and gmem_populate() goes by the regions. */
	region_set(KX_VVAR_BASE, KX_BOOT_BASE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | GMEM_TRAMP);
	region_set(KX_BOOT_BASE, KX_LIBOS_BASE + 256 * MiB, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | GMEM_TRAMP);
	shared_populate();
	pvm.shared = gva_ptr(KX_BOOT_BASE);
	pvm.vvar = gva_ptr(KX_VVAR_BASE);
	return 0;
}
