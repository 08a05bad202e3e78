/* SPDX-License-Identifier: Apache-2.0 */
/* Texts whose `syscall` and `cpuid` instructions are patched: their sites, and what is mapped in place of the file. */
#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../../util/grow.h"
#include "admit.h"
#include "gmem_priv.h"
#include "keeper.h"
#include "maps.h"
#include "rseq.h"
#include "spare.h"

uint64_t text_prepared, text_found;
static struct kx_site *sites;
static size_t nr_sites, cap_sites;
/* Those of texts that other memory has replaced, into which the program may copy the text. Their trampolines stay. */
static struct kx_site *left;
static size_t nr_left, cap_left;

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
	spare_changed(); /* a child made ahead keeps the table that it has */
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

#define TRAMP_PAGES 512 /* of texts that go, at a time; more stay */

static bool any_tramp_in(const struct kx_site *s, size_t n, uint64_t page)
{
	for (size_t i = 0; i < n; i++)
		if (s[i].tramp < page + PAGE && s[i].tramp + s[i].tramp_len > page)
			return true;
	return false;
}

/* A page that trampolines of texts that are gone were in. Those of others may be in it, too. */
static void tramp_page_forget(uint64_t page)
{
	if (any_tramp_in(sites, nr_sites, page) || any_tramp_in(left, nr_left, page))
		return;
	size_t i = region_find(page);
	/* Whoever called has room for some more regions in mind. */
	if (i < nr_regions && regions[i].start <= page && regions[i].flags & GMEM_TRAMP && !region_reserve(8) &&
	    !host_release(page, page + PAGE))
		region_carve(page, page + PAGE);
}

/* The number of sites that begin below at. */
static size_t sites_below(uint64_t at)
{
	size_t lo = 0, hi = nr_sites;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (sites[mid].start < at)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

struct tramp_pages {
	size_t n;
	uint64_t page[TRAMP_PAGES];
};

static void pages_note(struct tramp_pages *t, const struct kx_site *s)
{
	for (uint64_t p = ALIGN_DOWN(s->tramp, PAGE); p < s->tramp + s->tramp_len && t->n < TRAMP_PAGES; p += PAGE)
		if (!t->n || t->page[t->n - 1] != p) /* they are in the order of their sites */
			t->page[t->n++] = p;
}

void sites_forget_left(uint64_t start, uint64_t end)
{
	static struct tramp_pages pages;
	size_t k = 0;
	pages.n = 0;
	for (size_t i = 0; i < nr_left; i++)
		if (left[i].start >= start && left[i].start < end)
			pages_note(&pages, &left[i]);
		else
			left[k++] = left[i];
	nr_left = k;
	for (size_t i = 0; i < pages.n; i++)
		tramp_page_forget(pages.page[i]);
}

/* Take those of [from, to) out of the table. */
static void sites_cut(size_t from, size_t to)
{
	memmove(&sites[from], &sites[to], (nr_sites - to) * sizeof *sites);
	nr_sites -= to - from;
	sites_publish();
}

void sites_forget(uint64_t start, uint64_t end)
{
	static struct tramp_pages pages;
	const size_t from = sites_below(start), to = sites_below(end);
	if (nr_left)
		sites_forget_left(start, end);
	if (from >= to)
		return;
	pages.n = 0;
	for (size_t i = from; i < to; i++)
		pages_note(&pages, &sites[i]);
	sites_cut(from, to);
	for (size_t i = 0; i < pages.n; i++)
		tramp_page_forget(pages.page[i]);
}

/*
 * Large pages for a text: a program copies it, puts other memory in its place, and copies it back (node's --use-largepages).
 * What it has copied are the jumps.
 */
void sites_leave(uint64_t start, uint64_t end)
{
	const size_t from = sites_below(start), to = sites_below(end), n = to - from;
	if (from >= to)
		return;
	if (!kx_room(left, cap_left, nr_left + n, 64)) {
		sites_forget(start, end);
		return;
	}
	memcpy(&left[nr_left], &sites[from], n * sizeof *left);
	nr_left += n;
	sites_cut(from, to);
}

#define JUMP 5 /* bytes */

/* Does the jump to its trampoline stand there? */
static bool jumps_to(const uint8_t *win, const struct kx_site *s)
{
	int32_t rel;
	memcpy(&rel, win + 1, sizeof rel);
	return win[0] == 0xe9 && s->start + JUMP + (uint64_t)(int64_t)rel == s->tramp;
}

static bool site_is_back(const struct kx_site *s)
{
	uint8_t jump[JUMP];
	return !guest_read(jump, s->start, sizeof jump) && jumps_to(jump, s);
}

/* From first to last. */
static bool sites_in_order(size_t first, size_t last)
{
	for (size_t i = first; i < last; i++)
		if (sites[i].start > sites[i + 1].start)
			return false;
	return true;
}

/* Room for n more. */
static int sites_reserve(size_t n) { return kx_room(sites, cap_sites, nr_sites + n, 1024) ? 0 : -ENOMEM; }

static int sites_add(const struct kx_site *s, size_t n)
{
	if (!n)
		return 0;
	if (sites_reserve(n))
		return -ENOMEM;
	/* Those of one text are in order as a rule, and no other text's are between them. */
	const size_t at = sites_below(s[0].start);
	memmove(&sites[at + n], &sites[at], (nr_sites - at) * sizeof *sites);
	memcpy(&sites[at], s, n * sizeof *s);
	nr_sites += n;
	if (!sites_in_order(at ? at - 1 : 0, at + n < nr_sites ? at + n : nr_sites - 1))
		qsort(sites, nr_sites, sizeof *sites, site_cmp);
	sites_publish();
	return 0;
}

void sites_return(uint64_t start, uint64_t end)
{
	struct kx_site *back = nr_left ? malloc(nr_left * sizeof *back) : NULL;
	size_t n = 0, k = 0;
	if (!back) /* signals in them are told of inaccurately */
		return;
	for (size_t i = 0; i < nr_left; i++) {
		const struct kx_site s = left[i];
		if (s.start >= start && s.start < end && nr_sites + n < KX_SITES_MAX && site_is_back(&s))
			back[n++] = s;
		else
			left[k++] = s;
	}
	if (sites_add(back, n)) {
		memcpy(&left[k], back, n * sizeof *left);
		k += n;
	}
	nr_left = k;
	free(back);
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

static const struct kx_site *tramp_in(const struct kx_site *s, size_t n, uint64_t rip)
{
	for (size_t k = 0; k < n; k++)
		if (rip - s[k].tramp < s[k].tramp_len)
			return &s[k];
	return NULL;
}

/* The site whose trampoline holds rip, or NULL. */
static const struct kx_site *site_of_tramp(uint64_t rip)
{
	size_t i = region_find(rip);
	if (i >= nr_regions || regions[i].start > rip || !(regions[i].flags & GMEM_TRAMP))
		return NULL;
	const struct kx_site *s = tramp_in(sites, nr_sites, rip);
	return s ? s : tramp_in(left, nr_left, rip);
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

/* ---- patched text ------------------------------------------------------------------------------------------- */

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
	if (gva >= KX_SPACE_SIZE && high > pvm.high_memory)
		high = pvm.high_memory;
	uint64_t near = gva > 16 * MiB && gva - 16 * MiB > low ? gva - 16 * MiB : low;
	uint64_t t = find_free(near, gva + len + 16 * MiB, size, PAGE);
	return t ? t : find_free(low, high, size, PAGE);
}

/* The disassembler, where solink put it. */
extern const char solink_text[] __attribute__((weak)), solink_text_end[] __attribute__((weak));

/* A file that is being looked at, or patched, with the lock of the mappings: it may be cut off meanwhile. */
static struct {
	volatile uintptr_t start, end;
	volatile bool cut;
} looked;

static void look_begin(const void *p, uint64_t len)
{
	looked.cut = false;
	looked.end = (uintptr_t)p + ALIGN_UP(len, PAGE);
	looked.start = (uintptr_t)p;
}

/* Was the file whole all the time? */
static bool look_end(void)
{
	looked.start = UINTPTR_MAX;
	return !looked.cut;
}

bool gmem_text_cut(const void *at)
{
	const uintptr_t page = (uintptr_t)at & -PAGE;
	if (page < looked.start || page >= looked.end)
		return false;
	looked.cut = true;
	return HC6(SYS_mmap, page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
	       (long)page;
}

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
	look_begin(file, st.st_size);
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
	if (!look_end()) /* unpatched, then */
		patch_plan_free(&use->plan);
	munmap(file, st.st_size);
}

/* prot: with PROT_WRITE the program wants a copy of its own. */
void text_prepare(uint64_t gva, uint64_t len, int prot, int fd, uint64_t off, struct text_use *use)
{
	struct text_key key;
	bool shareable = !(prot & PROT_WRITE) && text_key(fd, off, len, &key);
	const struct text *t = shareable ? text_find(&key) : NULL;
	use->fd = t && t->nr_sites ? text_open(t) : -1;
	if (t && t->nr_sites && use->fd < 0)
		t = NULL; /* its image has been removed or damaged */
	if (t) {
		text_found++;
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
		text_found--;
		text_close(t, use->fd);
		shareable = false; /* something else is where its trampolines have to be */
	}
	text_prepared++;
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
int place_ready(void *p, uint64_t len, int hp, uint64_t gva)
{
	if (!mprotect(p, len, hp) && mremap(p, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, gva_ptr(gva)) != MAP_FAILED)
		return 0;
	int r = -errno;
	munmap(p, len);
	return r;
}

static struct text_map *text_maps;
static size_t nr_text_maps, cap_text_maps;

/* For one more. */
static int text_map_reserve(void) { return kx_room(text_maps, cap_text_maps, nr_text_maps + 1, 16) ? 0 : -ENOMEM; }

/* Note a mapping, for which there is room; what was noted of its addresses is no longer true. */
static void text_map_note(uint64_t start, uint64_t end, const struct text *t, int fd, const struct image *image)
{
	size_t j = 0;
	for (size_t i = 0; i < nr_text_maps; i++)
		if (text_maps[i].end <= start || text_maps[i].start >= end)
			text_maps[j++] = text_maps[i];
	nr_text_maps = j;
	struct text_map *m = &text_maps[nr_text_maps++];
	*m = (struct text_map){ .start = start, .end = end, .text = t };
	struct stat st;
	if (image) {
		admit_origin(image, &m->dev, &m->ino, m->path);
		return;
	}
	text_path(t, m->path, fd);
	if (!fstat(fd, &st))
		maps_file(fd, &st, &m->dev, &m->ino);
}

/* Trampolines came to their place, or did not (-errno r); there is room for the text's own region, too. */
static int tramp_map(int r, uint64_t t, uint64_t size)
{
	if (!r)
		r = region_reserve(3 + 4) ? -ENOMEM : pt_set(t, t + size, PROT_READ | PROT_EXEC, true);
	if (r) /* nothing may be left there, nor a hole */
		host_release(t, t + size);
	else
		region_set(t, t + size, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | GMEM_TRAMP);
	return r;
}

/* The text has not come to its place. Where that can't be done nobody comes there all the same. */
static void tramp_drop(const struct text_use *use)
{
	if (!region_reserve(2) && !host_release(use->tramp, use->tramp + use->tramp_size))
		region_carve(use->tramp, use->tramp + use->tramp_size);
}

/* Patch a text that is not the family's copy, at p, where the program has no access yet. 0, and whether its sites hold, with its
 * trampolines; -errno: it must not be used. Where there is no memory to begin with, it is left as it is. */
static int patch_here(uint64_t gva, uint64_t len, void *p, struct text_use *use, bool *holds)
{
	uint64_t t = use->tramp, size = use->tramp_size;
	void *q = sites_reserve(use->plan.n)
			  ? MAP_FAILED
			  : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*holds = false;
	if (q == MAP_FAILED) {
		use->tramp_size = 0;
		return 0;
	}
	memset(q, 0xcc, size);
	look_begin(p, len);
	*holds = !patch_apply(p, len, gva, &use->plan, q, t, size);
	if (!look_end()) {
		munmap(q, size);
		return -EIO;
	}
	return tramp_map(place_ready(q, size, PROT_READ, t), t, size);
}

/* Elsewhere first: while the monitor writes to it, a call of the program's could. */
static int map_patched(uint64_t gva, uint64_t len, int hp, int flags, int fd, uint64_t off, struct text_use *use)
{
	bool holds;
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, (off_t)off);
	if (p == MAP_FAILED)
		return -errno;
	int r = patch_here(gva, len, p, use, &holds);
	if (r) {
		munmap(p, len);
		return r;
	}
	r = place_ready(p, len, hp, gva);
	if (r && use->tramp_size)
		tramp_drop(use);
	use->nr_sites = r || !holds ? 0 : use->plan.n;
	return r;
}

static int map_tramps(const struct text_use *use)
{
	const uint64_t at = use->shared->at + ALIGN_UP(use->shared->key.len, PAGE);
	void *p = mmap(gva_ptr(use->tramp), use->tramp_size, PROT_READ, MAP_SHARED | MAP_FIXED, use->fd, (off_t)at);
	return tramp_map(p == MAP_FAILED ? -errno : 0, use->tramp, use->tramp_size);
}

/* The family's copy. */
static int map_shared(uint64_t gva, uint64_t len, int hp, int flags, int fd, struct text_use *use)
{
	uint32_t n = 0;
	use->sites = text_sites(use->shared, use->fd, gva, &n);
	if (!use->sites || sites_reserve(n) || text_map_reserve())
		return -ENOMEM;
	int r = map_tramps(use);
	if (r)
		return r;
	void *p = mmap(gva_ptr(gva), len, hp, flags | MAP_SHARED | MAP_FIXED, use->fd, (off_t)use->shared->at);
	if (p == MAP_FAILED) {
		r = -errno;
		tramp_drop(use);
		return r;
	}
	text_map_note(gva, gva + len, use->shared, fd, use->image);
	use->nr_sites = n;
	return 0;
}

int text_map(uint64_t gva, uint64_t len, int hp, int flags, int fd, uint64_t off, struct text_use *use)
{
	flags &= ~MAP_FIXED;
	return use->shared ? map_shared(gva, len, hp, flags & ~MAP_TYPE, fd, use)
			   : map_patched(gva, len, hp, flags, fd, off, use);
}

void text_mapped(const struct text_use *use) { sites_add(use->shared ? use->sites : use->plan.sites, use->nr_sites); }

void text_use_end(struct text_use *use)
{
	if (use->shared)
		text_close(use->shared, use->fd);
	patch_plan_free(&use->plan);
	free(use->sites);
}

const struct text_map *text_map_find(uint64_t gva)
{
	for (size_t i = 0; i < nr_text_maps; i++)
		if (text_maps[i].start <= gva && gva < text_maps[i].end)
			return &text_maps[i];
	return NULL;
}

/* Take the jumps to trampolines back in p, a copy of [s, e). Other bytes are the program's. */
static void sites_undo(uint8_t *p, uint64_t s, uint64_t e)
{
	uint8_t tramp[256];
	for (size_t i = sites_below(s), to = sites_below(e); i < to; i++) {
		const struct kx_site *t = &sites[i];
		uint8_t *win = p + (t->start - s);
		if (t->len >= JUMP && t->len <= e - t->start && jumps_to(win, t) &&
		    !guest_read(tramp, t->tramp, t->tramp_len))
			patch_undo(t, tramp, win);
	}
}

/* A private copy of [s, e), in place of it at once: other threads may run there. undo: without any jumps to trampolines. */
static int text_copy(uint64_t s, uint64_t e, int prot, bool undo)
{
	void *p = mmap(NULL, e - s, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return -errno;
	if ((host_prot(prot) == PROT_NONE && mprotect(gva_ptr(s), e - s, PROT_READ)))
		goto failed;
	memcpy(p, gva_ptr(s), e - s);
	if (undo)
		sites_undo(p, s, e);
	if (mprotect(p, e - s, host_prot(prot)) ||
	    mremap(p, e - s, e - s, MREMAP_MAYMOVE | MREMAP_FIXED, gva_ptr(s)) == MAP_FAILED)
		goto failed;
	return 0;
failed:;
	int r = -errno;
	munmap(p, e - s);
	return r;
}

/*
 * The same by a private mapping of the family's copy, to which it comes back where the program gives its changes up
 * (MADV_DONTNEED).
 */
static int text_privately(const struct text_map *m, uint64_t s, uint64_t e, int prot)
{
	int fd = text_open(m->text);
	if (fd < 0) /* its image has been removed */
		return text_copy(s, e, prot, false);
	void *p = mmap(gva_ptr(s), e - s, host_prot(prot), MAP_PRIVATE | MAP_FIXED, fd,
		       (off_t)(m->text->at + (s - m->start)));
	int r = p == MAP_FAILED ? -errno : 0;
	text_close(m->text, fd);
	return r;
}

/* Give the program copies of its own of what it has of the family's in [start, end): it wants to write. */
int text_own(uint64_t start, uint64_t end)
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
		int x = text_privately(m, s, e, r.prot);
		if (x)
			return x;
		region_set(s, e, r.prot, (r.flags & ~GMEM_TEXT) | GMEM_OWN_TEXT);
		region_mark(s, r.origin, 0);
	}
	return 0;
}

int text_unpatch(uint64_t start, uint64_t end)
{
	int x = text_own(start, end);
	if (x || sites_below(start) == sites_below(end))
		return x;
	const struct gmem_region r = regions[region_find(start)];
	if (region_reserve(4))
		return -ENOMEM;
	x = text_copy(start, end, r.prot, true);
	if (!x)
		region_set(start, end, r.prot, r.flags & ~GMEM_OWN_TEXT);
	return x;
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
