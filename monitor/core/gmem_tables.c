/* SPDX-License-Identifier: Apache-2.0 */
/* Memory slots, and the guest's page tables. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include "../../util/grow.h"
#include "../../util/log.h"
#include "admit.h"
#include "gmem_priv.h"
#include "keeper.h"
#include "serve.h"
#include "spare.h"

/* Leaves are made with accessed and dirty set, so that nobody has to write to them later. */
#define PTE_P 0x1ull
#define PTE_W 0x2ull
#define PTE_LEAF 0x67ull /* present, writable, user, accessed, dirty */
#define PTE_SUP 0x63ull
#define PTE_PS 0x80ull
#define PTE_NX (1ull << 63)
#define PTE_ADDR 0x000ffffffffff000ull

#define SLOT_MAX GiB

struct slot {
	uint64_t start, end;
	int id;
};
static struct slot *slots;
static size_t nr_slots, cap_slots;
static int next_slot_id = 1; /* 0 is the one that flush_all() drops and remakes */

static uint64_t sys_next = KX_SYS_BASE + 0x10000, sys_end = KX_SYS_BASE + KX_SYS_FIRST;

/* ---- memory slots ----------------------------------------------------------------------------------------- */

/* None of the system region's, nor of the LibOS's. */
static bool is_program(uint64_t gpa) { return gpa < KX_USER_END || gpa >= KX_SPACE_SIZE; }

static bool logging;   /* KVM notes which pages of the program's are written; */
static bool on_demand; /* those that it has told of stay so, until they are noted anew */

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
size_t slot_find(uint64_t addr)
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

/* KVM goes on to note a page only when it is told to, and not whenever it tells of it. */
static bool notes_on_demand(void)
{
	struct kvm_enable_cap c = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
				    .args[0] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE };
	return ioctl(pvm.vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) &
		       KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE &&
	       !ioctl(pvm.vm_fd, KVM_ENABLE_CAP, &c);
}

int gmem_log_writes(bool on)
{
	int r = 0;
	pthread_mutex_lock(&pvm.mm_lock);
	logging = on;
	on_demand = on && notes_on_demand();
	for (size_t i = 0; i < nr_slots; i++)
		if (is_program(slots[i].start)) {
			int x = slot_ioctl(slots[i].id, slots[i].start, slots[i].end - slots[i].start);
			r = x ? x : r;
		}
	pthread_mutex_unlock(&pvm.mm_lock);
	return r;
}

/* Pages of s whose bits are set: from here on a write to them is noted again. */
static int note_anew(const struct slot *s, uint64_t *bits)
{
	uint64_t pages = (s->end - s->start) / PAGE, any = 0;
	struct kvm_clear_dirty_log c = { .slot = (uint32_t)s->id, .num_pages = (uint32_t)pages, .dirty_bitmap = bits };
	for (uint64_t w = 0; w < (pages + 63) / 64; w++)
		any |= bits[w];
	return any && ioctl(pvm.vm_fd, KVM_CLEAR_DIRTY_LOG, &c) < 0 ? -errno : 0;
}

int gmem_written(bool last, void (*fn)(void *arg, uint64_t start, uint64_t end), void *arg)
{
	static uint64_t bits[SLOT_MAX / PAGE / 64];
	int r;
	for (size_t i = 0; i < nr_slots; i++) {
		struct slot s = slots[i];
		struct kvm_dirty_log log = { .slot = s.id, .dirty_bitmap = bits };
		if (!is_program(s.start))
			continue;
		if (s.end - s.start > SLOT_MAX)
			return -E2BIG;
		if (ioctl(pvm.vm_fd, KVM_GET_DIRTY_LOG, &log) < 0)
			return -errno;
		if (on_demand && !last && (r = note_anew(&s, bits)))
			return r;
		/* The lowest slot is no multiple of 64 pages; the kernel gives whole words. */
		for (uint64_t w = 0; w < ((s.end - s.start) / PAGE + 63) / 64; w++)
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
 * the number of slots grows with the logarithm of what is used. Below KX_USER_MIN there is none: vm_create().
 */
int slot_cover(uint64_t start, uint64_t end)
{
	start = ALIGN_DOWN(start, HUGE);
	start = start < KX_USER_MIN ? KX_USER_MIN : start;
	end = ALIGN_UP(end, HUGE);
	while (start < end) {
		size_t i = slot_find(start);
		if (i < nr_slots && slots[i].start <= start) {
			start = slots[i].end;
			continue;
		}
		bool high = start >= KX_SPACE_SIZE;
		uint64_t zone = high ? KX_SPACE_SIZE : KX_USER_MIN;
		uint64_t limit = high ? pvm.high_memory : KX_SPACE_SIZE;
		if (i < nr_slots && slots[i].start < limit)
			limit = slots[i].start;
		uint64_t want = (end < limit ? end : limit) - start, s = start, size = want;
		bool above = i > 0 && slots[i - 1].end == start, below = i < nr_slots && slots[i].start == start + want;
		if (above) {
			uint64_t grow = ALIGN_UP(slots[i - 1].end - slots[i - 1].start, HUGE);
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
		if (!kx_room(slots, cap_slots, nr_slots + 1, 32))
			return -ENOMEM;
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

/* Drop every translation that KVM holds: deleting any slot does it. Slot 0 is one page that nobody uses. 0 or -errno. */
static int flush_all(void)
{
	spare_changed();
	pvm.nr_flushes++;
	int r = slot_ioctl(0, KX_SYS_END, PAGE);
	return r ? r : slot_ioctl(0, KX_SYS_END, 0);
}

/*
 * A fault of another vCPU's may have read a leaf before it lost the right to execute, and with shadow page tables KVM looks
 * at it no second time: its own entry can come when the host's mapping has changed, and stay. Then what the program writes
 * there would be executed. With all entries dropped such a fault starts anew. No matter where no policy says what is
 * executed, nor where the processor walks the tables, which begins anew at each entry.
 */
static bool leaves_linger(void)
{
	return admit_on && pvm.shadow_paging &&
	       (__atomic_load_n(&pvm.nr_threads, __ATOMIC_SEQ_CST) > 1 || serve_runs());
}

/* ---- page tables ------------------------------------------------------------------------------------------ */

/* A child made ahead keeps the tables that it has: whatever is written to them makes it useless (spare.c). No processor writes
 * there, since all entries are accessed and dirty from the first. */

uint64_t gmem_sys_alloc(unsigned pages)
{
	uint64_t size = pages * PAGE, p = sys_next;
	spare_changed();
	if (sys_next + size > sys_end) {
		bool first = sys_end == KX_SYS_BASE + KX_SYS_FIRST;
		uint64_t start = first ? KX_SYS_MORE : sys_end;
		uint64_t more = first ? 4 * MiB : sys_end - KX_SYS_MORE; /* double it */
		if (start + more > KX_SYS_END || map_host(start, more) || slot_cover(start, start + more))
			return 0;
		if (first)
			sys_next = p = start;
		sys_end = start + more;
	}
	sys_next += size;
	*(uint64_t *)gva_ptr(p) = 0; /* tables are read first: that would be a fault more */
	return p;
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
	for (uint64_t a = region; a < region + HUGE; a += PAGE)
		table(pt)[(a - region) / PAGE] = a < KX_USER_MIN ? 0 : a | PTE_LEAF | PTE_NX;
	bool was_leaf = *pde & PTE_P;
	__atomic_store_n(pde, pt | PTE_LEAF, __ATOMIC_RELEASE);
	return was_leaf ? flush_all() : 0;
}

/* The leaves of [start, end), which have a table. True: some could be executed, and can't any more. */
static bool table_set(uint64_t *pt, uint64_t start, uint64_t end, uint64_t leaf)
{
	bool lost = false;
	for (uint64_t a = start; a < end; a += PAGE) {
		const uint64_t was = __atomic_exchange_n(&pt[(a >> 12) & 511], a | leaf, __ATOMIC_SEQ_CST);
		lost |= was & PTE_P && !(was & PTE_NX) && leaf & PTE_NX;
	}
	return lost;
}

/*
 * Make [start, end) reachable. The host mapping decides what may be read and written. 4 KiB leaves tell execute
 * permission, and also say read-only where that is so. `table`: by 4 KiB leaves even where nothing is
 * executable, since something soon will be (the parts of a library): to split a 2 MiB leaf later, KVM has to drop all
 * that it has, which takes milliseconds. nx: not executable yet, whatever prot says.
 */
static int leaves_set(uint64_t start, uint64_t end, int prot, bool table_wanted, uint64_t nx)
{
	bool exec = prot & PROT_EXEC, lost = false;
	uint64_t leaf = (exec ? nx : PTE_NX) | (prot & PROT_WRITE ? PTE_LEAF : PTE_LEAF & ~PTE_W);
	int r = gmem_beyond(end) ? -ENOMEM : slot_cover(start, end);
	spare_changed();
	for (uint64_t region = ALIGN_DOWN(start, HUGE); region < end && !r; region += HUGE) {
		uint64_t *pde = pde_of(region);
		if (!pde) {
			r = -ENOMEM;
			break;
		}
		bool is_table = (*pde & PTE_P) && !(*pde & PTE_PS), has_hole = region < KX_USER_MIN;
		if (!is_table && !exec && !has_hole && !(table_wanted && !(*pde & PTE_P))) {
			if (!(*pde & PTE_P))
				__atomic_store_n(pde, region | PTE_LEAF | PTE_PS | PTE_NX, __ATOMIC_RELEASE);
			continue;
		}
		if (!is_table && (r = pde_to_table(pde, region)))
			break;
		uint64_t a = start > region ? start : region, b = end < region + HUGE ? end : region + HUGE;
		lost |= table_set(table(*pde), a, b, leaf);
	}
	const int x = lost && leaves_linger() ? flush_all() : 0;
	return r ? r : x;
}

int pt_set(uint64_t start, uint64_t end, int prot, bool table_wanted)
{
	return leaves_set(start, end, prot, table_wanted, 0);
}

int pt_prepare(uint64_t start, uint64_t end, int prot, bool table_wanted)
{
	return leaves_set(start, end, prot, table_wanted, PTE_NX);
}

void pt_exec(uint64_t start, uint64_t end)
{
	spare_changed();
	for (uint64_t a = start; a < end; a += PAGE)
		__atomic_and_fetch(&table(*pde_of(a))[(a >> 12) & 511], ~PTE_NX, __ATOMIC_RELAXED);
}

void pt_restore(uint64_t start, uint64_t end)
{
	for (size_t i = region_find(start); i < nr_regions && regions[i].start < end; i++) {
		const struct gmem_region *r = &regions[i];
		if (r->prot != PROT_NONE) /* its tables are there, or it needs none */
			pt_set(r->start > start ? r->start : start, r->end < end ? r->end : end, r->prot,
			       !(r->flags & MAP_ANONYMOUS));
	}
}

int gmem_populate(uint64_t gva)
{
	if (keeper_needed())
		return KEEPER6(gmem_populate, gva, 0, 0, 0, 0, 0);
	int r = 0;
	if ((gva >= KX_SPACE_SIZE && !gva_ok(gva, 1)) || sys_is_closed(gva))
		return 0;
	pthread_mutex_lock(&pvm.mm_lock);
	size_t i = region_find(gva);
	if (i < nr_regions && regions[i].start <= gva && regions[i].prot != PROT_NONE) {
		uint64_t *pde = pde_of(gva);
		bool missing = pde && !(*pde & PTE_P);
		bool table_here = pde && (*pde & PTE_P) && !(*pde & PTE_PS);
		/* A leaf that is less than the map says: not made by any path that is known, but harmless to mend. */
		if (table_here) {
			uint64_t leaf = table(*pde)[(gva >> 12) & 511];
			missing = (regions[i].prot & PROT_WRITE && !(leaf & PTE_W)) ||
				  (regions[i].prot & PROT_EXEC && leaf & PTE_NX);
		}
		if (missing)
			r = pt_set(ALIGN_DOWN(gva, PAGE), ALIGN_DOWN(gva, PAGE) + PAGE, regions[i].prot,
				   !(regions[i].flags & MAP_ANONYMOUS)) == 0;
	}
	pthread_mutex_unlock(&pvm.mm_lock);
	return r;
}

/* Fixed tables: top levels, IDT, one `hlt` per vector and at LSTAR. */
void tables_make(void)
{
	uint64_t *pml4 = table(KX_SYS_BASE + GMEM_PML4), *hi = table(KX_SYS_BASE + 0x2000);
	madvise(pml4, GMEM_FIXED, MADV_POPULATE_WRITE); /* in one call; if not, as they are touched */
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

/* What lies side by side becomes one: each call waits for a grace period of the kernel's. */
static void slots_merge(void)
{
	size_t n = 0;
	for (size_t i = 0; i < nr_slots; i++)
		if (n && slots[n - 1].end == slots[i].start && slots[i].end - slots[n - 1].start <= SLOT_MAX &&
		    is_program(slots[n - 1].start) == is_program(slots[i].start))
			slots[n - 1].end = slots[i].end;
		else
			slots[n++] = slots[i];
	pvm.nr_slots = nr_slots = n;
}

int gmem_fork_child(bool merge)
{
	int r = 0;
	logging = false;
	if (merge)
		slots_merge();
	for (size_t i = 0; i < nr_slots && !r; i++)
		r = slot_ioctl(slots[i].id, slots[i].start, slots[i].end - slots[i].start);
	return r;
}
