/* SPDX-License-Identifier: Apache-2.0 */
#include "hot.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include "../../abi/kx_serve.h"
#include "../../util/log.h"
#include "gmem.h"
#include "keeper.h"
#include "maps.h"
#include "pagemap.h"
#include "serve.h"
#include "spare.h"
#include "habit.h"

#define PAGE 4096ull
#define GROUP (8 * PAGE) /* what KVM maps with one fault */
#define RANGES_MAX 32
#define FILES_MAX 32
#define REGION_MAX (64ull << 10)
#define TOTAL_MAX (320ull << 10)
#define REFRESH_MAX (4ull << 20)
#define TRIES_MAX 8 /* what changes so often is chosen no more */

struct range {
	uint64_t start, end;
	bool read_only;
};

/* Shared, so that a fork has nothing to do with it, between a process and its last child. */
struct copy {
	uint32_t held;                                          /* the child has not read it yet */
	uint8_t data[TOTAL_MAX] __attribute__((aligned(4096))); /* of all ranges, one after the other */
};

static struct {
	struct range range[RANGES_MAX];
	unsigned nr, tries;
	bool forbidden;
	bool holes;   /* children don't have all mappings */
	bool advised; /* the program has said how it uses a file's mapping, which a new one would not know */
	struct copy *copy;
	pid_t owner;           /* who has made that */
	struct hot_file *file; /* of FILES_MAX */
	unsigned nr_files;
} hot;

static bool is_private(const struct gmem_region *r)
{
	return (r->flags & MAP_TYPE) == MAP_PRIVATE && !(r->flags & (GMEM_TRAMP | GMEM_TEXT)) && r->prot & PROT_READ &&
	       !(r->prot & PROT_EXEC);
}

/* ---- parts of images -------------------------------------------------------------------------------------------- */

/* The line of the host's maps that has all of [start, end). */
static bool file_find(const char *maps, uint64_t start, uint64_t end, struct hot_file *f)
{
	const uint64_t base = (uint64_t)pvm.base;
	struct maps_line l;
	while ((maps = maps_parse(maps, &l))) {
		if (l.start - base > start || l.end - base < end)
			continue;
		if (!l.ino || !l.path_len || l.path_len >= sizeof f->path)
			return false;
		*f = (struct hot_file){ .start = start, .end = end, .off = l.off + (start - (l.start - base)) };
		memcpy(f->path, l.path, l.path_len);
		memcpy(f->dev, l.dev, sizeof f->dev);
		snprintf(f->ino, sizeof f->ino, "%" PRIu64, l.ino);
		return true;
	}
	return false;
}

static bool is_line(const struct hot_file *f, const struct maps_line *l)
{
	char ino[24];
	snprintf(ino, sizeof ino, "%" PRIu64, l->ino);
	return !strcmp(l->dev, f->dev) && !strcmp(ino, f->ino);
}

/* On an overlay maps has another device and inode than stat: those below it. So map it, and look there. */
static bool is_mapped_alike(const struct hot_file *f, int fd)
{
	void *p = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
	char *text = p == MAP_FAILED ? NULL : maps_text();
	struct maps_line l;
	bool alike = false;
	for (const char *m = text; m && (m = maps_parse(m, &l)) && !alike;)
		alike = l.start <= (uint64_t)p && (uint64_t)p < l.end && is_line(f, &l);
	free(text);
	if (p != MAP_FAILED)
		munmap(p, PAGE);
	return alike;
}

static bool is_it(const struct hot_file *f, int fd)
{
	struct maps_line l = { 0 };
	struct stat st;
	if (fstat(fd, &st) || !S_ISREG(st.st_mode))
		return false;
	snprintf(l.dev, sizeof l.dev, "%02x:%02x", major(st.st_dev), minor(st.st_dev));
	l.ino = st.st_ino;
	return is_line(f, &l) || is_mapped_alike(f, fd);
}

/* What is no file is not even opened. */
static int file_open(const struct hot_file *f)
{
	struct stat st;
	if (HC6(SYS_newfstatat, AT_FDCWD, f->path, &st, 0, 0, 0) || !S_ISREG(st.st_mode))
		return -ESTALE;
	fd_limit_lift();
	int fd = (int)HC6(SYS_openat, AT_FDCWD, f->path, O_RDONLY | O_NONBLOCK | O_CLOEXEC, 0, 0, 0);
	fd_limit_drop();
	if (fd < 0 || is_it(f, fd))
		return fd;
	close(fd);
	return -ESTALE;
}

/* Its pages are copies of the file's already, or become that. */
static bool file_take(const struct gmem_region *r, const char *maps)
{
	struct hot_file f;
	const size_t len = r->end - r->start;
	if (hot.nr_files == FILES_MAX || !file_find(maps, r->start, r->end, &f))
		return false;
	/* What could not be had again, when the program wants to see the file, stays the file's. */
	int fd = file_open(&f);
	if (fd < 0)
		return false;
	close(fd);
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return false;
	if (guest_read(p, r->start, len) || (!(r->prot & PROT_WRITE) && mprotect(p, len, PROT_READ)) ||
	    mremap(p, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, gva_ptr(r->start)) == MAP_FAILED) {
		munmap(p, len);
		return false;
	}
	for (unsigned i = 0; i < hot.nr_files; i++)
		if (hot.file[i].start == f.start && hot.file[i].end == f.end)
			return true;
	hot.file[hot.nr_files++] = f;
	return true;
}

bool hot_file(uint64_t gva, struct hot_file *out)
{
	for (unsigned i = 0; i < hot.nr_files; i++)
		if (hot.file[i].start <= gva && gva < hot.file[i].end) {
			*out = hot.file[i];
			out->off += gva - out->start;
			return true;
		}
	return false;
}

/* [a, b) of it, as fd has it, if it is still that. */
static void part_show(const struct hot_file *f, int fd, uint64_t a, uint64_t b)
{
	struct gmem_region r;
	if (!gmem_query_locked(a, &r) || r.start > a || r.end < b || !(r.flags & GMEM_DATA))
		return;
	const int prot = r.prot & PROT_WRITE ? PROT_READ | PROT_WRITE : r.prot & PROT_READ;
	hot_carved(a, b);
	if (fd < 0 ||
	    mmap(gva_ptr(a), b - a, prot, MAP_PRIVATE | MAP_FIXED, fd, (off_t)(f->off + (a - f->start))) == MAP_FAILED)
		kx_log(KX_LOG_WARN, "hot", "%s can't be mapped again: its part at %#llx is cleared", f->path,
		       (unsigned long long)a);
}

/* MADV_DONTNEED: the program wants to see what the file has. */
static void file_show(uint64_t start, uint64_t end)
{
	if (keeper_needed()) {
		KEEPER6(file_show, start, end, 0, 0, 0, 0);
		return;
	}
	for (unsigned i = 0; i < hot.nr_files; i++) {
		const struct hot_file *f = &hot.file[i];
		uint64_t a = f->start > start ? f->start : start, b = f->end < end ? f->end : end;
		if (a >= b)
			continue;
		int fd = file_open(f);
		pthread_mutex_lock(&pvm.mm_lock);
		part_show(f, fd, a, b);
		pthread_mutex_unlock(&pvm.mm_lock);
		if (fd >= 0)
			close(fd);
	}
}

/* Has the process copies of its own of some pages? */
static bool is_clean(int pagemap, uint64_t start, uint64_t end)
{
	uint64_t entry[512];
	for (uint64_t n; start < end; start += n * PAGE) {
		n = (end - start) / PAGE < 512 ? (end - start) / PAGE : 512;
		if (pread(pagemap, entry, n * 8, (off_t)((uint64_t)gva_ptr(start) / PAGE * 8)) != (ssize_t)(n * 8))
			return false;
		for (uint64_t i = 0; i < n; i++)
			if (entry[i] & PM_SWAP || (entry[i] & (PM_PRESENT | PM_FILE)) == PM_PRESENT)
				return false;
	}
	return true;
}

/*
 * Constants and code that once were private copies (gmem_warm.h): to the host's kernel they may have copies for ever, so
 * each fork goes through them, and makes KVM drop them. As a new mapping of the same they are none of a fork's business.
 */
static void file_refresh(const struct gmem_region *r, const char *maps, int pagemap)
{
	struct hot_file f;
	if ((r->flags & MAP_TYPE) != MAP_PRIVATE ||
	    r->flags & (MAP_ANONYMOUS | GMEM_TRAMP | GMEM_TEXT | GMEM_OWN_TEXT | GMEM_DATA) || r->prot & PROT_WRITE ||
	    !(r->prot & PROT_READ) || r->end - r->start > REFRESH_MAX || !file_find(maps, r->start, r->end, &f) ||
	    !is_clean(pagemap, r->start, r->end))
		return;
	int fd = file_open(&f);
	if (fd < 0)
		return;
	/* What can't be mapped stays as it is. */
	mmap(gva_ptr(r->start), r->end - r->start, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, (off_t)f.off);
	close(fd);
}

/*
 * The parent's own, read by no child any more. A child has its parent's mapped, and leaves it alone. Nobody waits for a
 * child that has not read yet, or never will: there is another one then. Not while a spare waits: a fork by the host, and
 * the next spare, come when there is none that is of use.
 */
static bool copy_make(void)
{
	if (hot.copy && (hot.owner != pvm.pid || __atomic_load_n(&hot.copy->held, __ATOMIC_ACQUIRE))) {
		munmap(hot.copy, sizeof *hot.copy);
		hot.copy = NULL;
	}
	if (!hot.copy) {
		void *p = mmap(NULL, sizeof *hot.copy, PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
		if (p == MAP_FAILED)
			return false;
		hot.copy = p;
		hot.owner = pvm.pid;
	}
	return true;
}

/* ---- choosing --------------------------------------------------------------------------------------------------- */

static void add(uint64_t start, uint64_t end, bool read_only, uint64_t *left)
{
	const size_t len = end - start;
	if (hot.nr == RANGES_MAX || len > *left)
		return;
	/* What is not there yet would be the zero page, of which a write is dearer. */
	if (!read_only && madvise(gva_ptr(start), len, MADV_POPULATE_WRITE))
		return;
	if (madvise(gva_ptr(start), len, MADV_WIPEONFORK))
		return;
	*left -= len;
	hot.range[hot.nr++] = (struct range){ start, end, read_only };
}

/* Around the stack pointer. */
static void add_stack(const struct gmem_region *r, uint64_t sp, uint64_t *left)
{
	uint64_t low = (sp & -GROUP) - GROUP, high = (sp & -GROUP) + 2 * GROUP;
	low = low < r->start ? r->start : low;
	high = high > r->end ? r->end : high;
	add(low, high, false, left);
}

static void choose_locked(uint64_t sp, const char *maps, int pagemap)
{
	uint64_t left = TOTAL_MAX;
	struct gmem_region r;
	hot.tries++;
	/* What the LibOS looks at in each call, and the time page. */
	add(KX_BOOT_BASE, KX_SERVE_BASE + PAGE, false, &left);
	add(KX_VVAR_BASE, KX_CPUID_BASE + PAGE, false, &left);
	for (uint64_t at = 0; gmem_query_locked(at, &r) && r.start < KX_SPACE_SIZE; at = r.end) {
		if (pagemap >= 0 && !hot.advised)
			file_refresh(&r, maps, pagemap);
		if (!is_private(&r))
			continue;
		if (r.flags & MAP_STACK) {
			if (r.start <= sp && sp < r.end && r.prot & PROT_WRITE)
				add_stack(&r, sp, &left);
			continue;
		}
		if (r.end - r.start > REGION_MAX || r.end - r.start > left)
			continue;
		if (r.flags & MAP_ANONYMOUS ? !!(r.prot & PROT_WRITE) : r.flags & GMEM_DATA && file_take(&r, maps))
			add(r.start, r.end, !(r.prot & PROT_WRITE), &left);
	}
}

void hot_choose(struct thread *t)
{
	if (hot.nr || hot.forbidden || hot.tries == TRIES_MAX || pvm.nr_threads != 1 || is_vfork_child() ||
	    pvm.proc_fd < 0 || !habit_forks())
		return;
	if (!hot.file && !(hot.file = calloc(FILES_MAX, sizeof *hot.file))) {
		hot.forbidden = true;
		return;
	}
	serve_stop(); /* it could pass on what has a low number for a moment */
	char *maps = maps_text();
	if (!maps)
		return;
	const struct kx_frame *f = frame_of(t);
	uint64_t sp = __atomic_load_n(&f->rsp, __ATOMIC_RELAXED);
	int pagemap = proc_file("self/pagemap");
	pthread_mutex_lock(&pvm.mm_lock);
	choose_locked(sp, maps, pagemap);
	if (hot.nr) /* now, so that the first spare has it mapped */
		copy_make();
	pthread_mutex_unlock(&pvm.mm_lock);
	if (pagemap >= 0)
		close(pagemap);
	free(maps);
	spare_changed();
}

bool hot_has(uint64_t start, uint64_t end)
{
	for (unsigned i = 0; i < hot.nr; i++)
		if (hot.range[i].start <= start && end <= hot.range[i].end)
			return true;
	return false;
}

bool hot_next(uint64_t gva, uint64_t *start, uint64_t *end)
{
	const struct range *best = NULL;
	for (unsigned i = 0; i < hot.nr; i++) {
		const struct range *g = &hot.range[i];
		if (!g->read_only && g->end > gva && (!best || g->start < best->start))
			best = g;
	}
	if (best) {
		*start = best->start;
		*end = best->end;
	}
	return best;
}

bool hot_edge(uint64_t gva)
{
	for (unsigned i = 0; i < hot.nr; i++)
		if (hot.range[i].start == gva || hot.range[i].end == gva)
			return true;
	return false;
}

/* ---- a fork ----------------------------------------------------------------------------------------------------- */

void hot_save(void)
{
	if (!hot.nr)
		return;
	if (!copy_make()) {
		hot_drop();
		return;
	}
	hot.copy->held = 1;
	uint8_t *to = hot.copy->data;
	for (unsigned i = 0; i < hot.nr; i++) {
		const size_t len = hot.range[i].end - hot.range[i].start;
		memcpy(to, gva_ptr(hot.range[i].start), len);
		to += len;
	}
}

int hot_restore(void)
{
	const uint8_t *from = hot.nr ? hot.copy->data : NULL;
	for (unsigned i = 0; i < hot.nr; i++) {
		const struct range *g = &hot.range[i];
		const size_t len = g->end - g->start;
		void *p = gva_ptr(g->start);
		if (g->read_only && mprotect(p, len, PROT_READ | PROT_WRITE))
			return -errno;
		if (madvise(p, len, MADV_POPULATE_WRITE) && errno != EINVAL) /* EINVAL: before Linux 5.14 */
			return -errno;
		memcpy(p, from, len);
		if (g->read_only && mprotect(p, len, PROT_READ))
			return -errno;
		from += len;
	}
	if (hot.nr) /* in what is shared alone: a spare's own memory stays what it was at the fork */
		__atomic_store_n(&hot.copy->held, 0, __ATOMIC_RELEASE);
	return 0;
}

void hot_fork_child(void)
{
	if (hot.holes)
		gmem_fork_holes();
}

/* ---- no more ---------------------------------------------------------------------------------------------------- */

/* Whatever is there now: nothing of the program's own wants to be wiped, or hot_call() would have ended all this. */
static void drop_one(unsigned i)
{
	const struct range g = hot.range[i];
	madvise(gva_ptr(g.start), g.end - g.start, MADV_KEEPONFORK);
	hot.range[i] = hot.range[--hot.nr];
	spare_changed();
}

void hot_carved(uint64_t start, uint64_t end)
{
	for (unsigned i = 0; i < hot.nr;)
		if (hot.range[i].start < end && start < hot.range[i].end)
			drop_one(i);
		else
			i++;
}

void hot_drop(void)
{
	while (hot.nr)
		drop_one(hot.nr - 1);
}

static void forbid(void)
{
	if (hot.forbidden)
		return;
	if (keeper_needed()) {
		KEEPER6(forbid, 0, 0, 0, 0, 0, 0);
		return;
	}
	pthread_mutex_lock(&pvm.mm_lock);
	hot_drop();
	hot.forbidden = true;
	pthread_mutex_unlock(&pvm.mm_lock);
}

static bool of_file(uint64_t start, uint64_t end)
{
	struct gmem_region r;
	for (; start < end && gmem_query(start, &r) && r.start < end; start = r.end)
		if (!(r.flags & MAP_ANONYMOUS))
			return true;
	return false;
}

void hot_call(const struct hcall *c)
{
	switch (c->nr) {
	case SYS_madvise:
		if (c->arg[2] == MADV_DONTNEED && hot.nr_files)
			file_show(c->arg[0], c->arg[0] + ((c->arg[1] + PAGE - 1) & -PAGE));
		hot.holes |= c->arg[2] == MADV_DONTFORK;
		hot.advised |= c->arg[2] != MADV_DONTNEED && c->arg[2] != MADV_FREE &&
			       of_file(c->arg[0], c->arg[0] + c->arg[1]);
		if (c->arg[2] == MADV_DONTFORK || c->arg[2] == MADV_WIPEONFORK)
			forbid();
		break;
	case SYS_mmap:
		if (c->arg[3] & MAP_LOCKED)
			forbid();
		break;
	case SYS_mlock:
	case SYS_mlock2:
	case SYS_mlockall:
	case SYS_mbind:
		forbid();
		break;
	}
}
