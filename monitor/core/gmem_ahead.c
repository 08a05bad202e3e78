/* SPDX-License-Identifier: Apache-2.0 */
#include "gmem_ahead.h"
#include <elf.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include "../../abi/kx_libfile.h"
#include "../../abi/kx_libnext.h"
#include "admit.h"
#include "gmem_pages.h"
#include "gmem_priv.h"
#include "gmem_warm.h"
#include "libnext.h"

#define LOADS_MAX 6
#define GLIBC_READS 832
#define MUSL_READS 960
#define WHOLE_MAX (4 * MiB)
#define CACHE_SETTLES 2 /* seconds: what changes later has another time */
#define COPIES_MAX 64
#define COPY_MAX MiB
#define COPIES_TOTAL (8 * MiB)

/* What was made of one file, by its arguments; under pvm.mm_lock, as all here. */
static struct made {
	struct kx_libop op[KX_LIBFILE_OPS];
	unsigned nr;
	int fd;
} now, next[KX_LIBNEXT_FILES]; /* of the file that is open; of those of kx_libnext.h */
static struct kx_liblater later[KX_LIBFILE_LATER];
static unsigned nr_later;
static uint64_t later_low = UINT64_MAX, later_high; /* all of them lie there */
bool gmem_ahead_any, gmem_ahead_more;

/* The linker's cache, where it was mapped last. It opens it for each library that a program opens: when it has unmapped it,
 * and goes on to open files or unmap libraries, it is kept, and is the mapping if the same file is opened again. */
static struct cache {
	uint64_t addr, len; /* 0: nowhere */
	struct stat st;
	bool kept;
} cache;

static struct kx_libfile *shared(void) { return gva_ptr(KX_LIBFILE_BASE); }

/* ---- copies that are read once -------------------------------------------------------------------------------------- */

/*
 * A linker reads most of a library's first part: symbols, relocations. A fault of the guest's costs tens of microseconds
 * where KVM has shadow page tables, and it maps neighbours only where the host could write to them. So for as long as the
 * linker works these parts are private copies, which the host's mapping lets be written, the guest's page tables not. No
 * call that could write there is made before they are files again: nobody can tell. Where the processor translates the
 * guest's addresses, a fault maps one page whatever the host has, and a copy is work for nothing.
 */
static struct copy {
	uint64_t start, end;
} copies[COPIES_MAX];
static unsigned nr_copies;
static uint64_t copied;

static void copy_end(uint64_t start, uint64_t end)
{
	copied -= end - start;
	if (mprotect(gva_ptr(start), end - start, PROT_READ))
		pvm_panic("no memory to protect a library's first part"); /* a call could write to it */
	madvise(gva_ptr(start), end - start, MADV_DONTNEED);
}

static void copies_end(void)
{
	for (unsigned i = 0; i < nr_copies; i++)
		copy_end(copies[i].start, copies[i].end);
	nr_copies = 0;
}

/* What is elsewhere of [start, end) has another mapping already. */
static void copies_carved(uint64_t start, uint64_t end)
{
	unsigned n = 0;
	for (unsigned i = 0; i < nr_copies; i++) {
		struct copy c = copies[i];
		uint64_t a = c.start > start ? c.start : start, e = c.end < end ? c.end : end;
		if (a >= e) {
			copies[n++] = c;
			continue;
		}
		copied -= e - a;
		if (c.start < a)
			copy_end(c.start, a);
		if (e < c.end)
			copy_end(e, c.end);
	}
	nr_copies = n;
}

/* [start, end) is a private mapping of a file, to be read alone. */
static void copy_begin(uint64_t start, uint64_t end)
{
	uint64_t len = end - start;
	if (!pvm.shadow_paging || gmem_warm_begin(start, end, false))
		return;
	if (nr_copies == COPIES_MAX || len > COPY_MAX || len > COPIES_TOTAL - copied ||
	    mprotect(gva_ptr(start), len, PROT_READ | PROT_WRITE))
		return;
	copied += len;
	if (madvise(gva_ptr(start), len, MADV_POPULATE_WRITE)) { /* the file is shorter; or before Linux 5.14 */
		copy_end(start, end);
		return;
	}
	copies[nr_copies++] = (struct copy){ start, end };
	gmem_ahead_any = true;
}

/* Nothing that this call makes the host do writes to the program's memory, nor changes what a part of a copy is. */
static bool leaves_copies(uint64_t nr, const uint64_t arg[6])
{
	switch (nr) {
	case SYS_open:
	case SYS_openat:
	case SYS_close:
	case SYS_access:
	case SYS_brk:
	case SYS_set_tid_address:
	case SYS_set_robust_list:
		return true;
	case SYS_mmap:
		return !arg[0] && (int)arg[3] == (MAP_PRIVATE | MAP_ANONYMOUS);
	case SYS_munmap:
	case SYS_mprotect:
		for (unsigned i = 0; i < nr_copies; i++) {
			const struct copy *c = &copies[i];
			bool all = arg[0] <= c->start && arg[1] >= c->end - arg[0];
			if (arg[0] < c->end && (arg[0] >= c->start || arg[1] > c->start - arg[0]) &&
			    !(all && nr == SYS_munmap))
				return false;
		}
		return true;
	}
	return nr >= 1024; /* our own: the LibOS's memory */
}

void gmem_ahead_read(uint64_t start, uint64_t end)
{
	pthread_mutex_lock(&pvm.mm_lock);
	if (end > start)
		copy_begin(start, end);
	pthread_mutex_unlock(&pvm.mm_lock);
}

/* ---- calls that are made later ------------------------------------------------------------------------------------- */

static void later_drop(unsigned i)
{
	later[i].addr = shared()->later[i].addr = 0;
	nr_later--;
}

static void later_add(uint64_t addr, uint64_t len, uint32_t nr, uint32_t prot)
{
	unsigned i = 0;
	while (i < KX_LIBFILE_LATER && later[i].addr)
		i++;
	if (i == KX_LIBFILE_LATER || !len)
		return;
	later[i] = shared()->later[i] = (struct kx_liblater){ addr, len, nr, prot };
	__atomic_and_fetch(&shared()->later_asked, ~(1ull << i), __ATOMIC_RELAXED);
	nr_later++;
	later_low = addr < later_low ? addr : later_low;
	later_high = addr + len > later_high ? addr + len : later_high;
	gmem_ahead_any = true;
	__atomic_or_fetch(&shared()->on, KX_LIBFILE_CALLS, __ATOMIC_RELEASE);
}

/* That memory is not what it was: who names it now means something else. */
void gmem_ahead_carved(uint64_t start, uint64_t end)
{
	copies_carved(start, end);
	if (cache.addr < end && start < cache.addr + cache.len)
		cache = (struct cache){ 0 };
	libnext_carved(start, end);
	const bool some = nr_later && start < later_high && later_low < end;
	for (unsigned i = 0; some && i < KX_LIBFILE_LATER; i++)
		if (later[i].addr && later[i].addr < end && start < later[i].addr + later[i].len)
			later_drop(i);
}

static bool leaves_cache(uint64_t nr, const uint64_t arg[6])
{
	if (pvm.nr_threads != 1 || pvm.cfg->memory || !admit_call_is_loaders())
		return false;
	return nr == SYS_openat || (nr == SYS_munmap && (arg[0] >= cache.addr + cache.len ||
							 (arg[0] <= cache.addr && arg[1] <= cache.addr - arg[0])));
}

static void cache_drop(void)
{
	if (cache.kept)
		do_munmap(cache.addr, cache.len);
}

static void later_make(bool keeps_cache)
{
	uint64_t asked = __atomic_exchange_n(&shared()->later_asked, 0, __ATOMIC_ACQUIRE);
	for (; asked; asked &= asked - 1) {
		unsigned i = (unsigned)__builtin_ctzll(asked);
		struct kx_liblater l = later[i];
		if (!l.addr)
			continue;
		later_drop(i);
		if (l.nr == SYS_mprotect)
			do_mprotect(l.addr, l.len, (int)l.prot);
		else if (keeps_cache && l.addr == cache.addr && l.len == cache.len)
			cache.kept = true;
		else
			do_munmap(l.addr, l.len);
	}
}

void gmem_ahead_relro(uint64_t start, uint64_t end)
{
	pthread_mutex_lock(&pvm.mm_lock);
	if (end > start)
		later_add(start, end - start, SYS_mprotect, PROT_READ);
	pthread_mutex_unlock(&pvm.mm_lock);
}

/* ---- what a library's headers lead to ------------------------------------------------------------------------------- */

struct load {
	uint64_t start, file_end, mem_end, off; /* addresses; start and off of whole pages */
	int prot;
};

struct plan {
	struct load load[LOADS_MAX];
	unsigned n;
	uint64_t relro, relro_end;
	struct kx_libop op[KX_LIBFILE_OPS];
	unsigned nr_ops;
};

static bool load_add(struct plan *p, const Elf64_Phdr *ph)
{
	struct load *l = &p->load[p->n];
	uint64_t before = p->n ? ALIGN_UP(l[-1].mem_end, PAGE) : 0;
	if (p->n == LOADS_MAX || ph->p_align > PAGE || ph->p_vaddr > GiB || ph->p_memsz > GiB || ph->p_offset > GiB ||
	    !ph->p_filesz || ph->p_filesz > ph->p_memsz || (ph->p_vaddr - ph->p_offset) % PAGE)
		return false;
	*l = (struct load){ ALIGN_DOWN(ph->p_vaddr, PAGE), ph->p_vaddr + ph->p_filesz, ph->p_vaddr + ph->p_memsz,
			    ALIGN_DOWN(ph->p_offset, PAGE),
			    (ph->p_flags & PF_R ? PROT_READ : 0) | (ph->p_flags & PF_W ? PROT_WRITE : 0) |
				    (ph->p_flags & PF_X ? PROT_EXEC : 0) };
	/* The first is mapped for the span of all; what is not readable, or written and executed, or has to be zeroed and
	 * can't be, is nothing that is met. */
	if (!(l->prot & PROT_READ) || (l->prot & (PROT_WRITE | PROT_EXEC)) == (PROT_WRITE | PROT_EXEC) ||
	    (l->mem_end > l->file_end && !(l->prot & PROT_WRITE)) || (p->n ? l->start < before : l->start) ||
	    (!p->n && l->prot & PROT_WRITE))
		return false;
	p->n++;
	return true;
}

static bool headers_read(struct plan *p, const uint8_t *head, size_t len)
{
	Elf64_Ehdr eh;
	Elf64_Phdr ph;
	if (len < sizeof eh)
		return false;
	memcpy(&eh, head, sizeof eh);
	if (memcmp(eh.e_ident, ELFMAG, SELFMAG) || eh.e_ident[EI_CLASS] != ELFCLASS64 || eh.e_type != ET_DYN ||
	    eh.e_machine != EM_X86_64 || eh.e_phentsize != sizeof ph || eh.e_phoff > len ||
	    eh.e_phnum > (len - eh.e_phoff) / sizeof ph)
		return false;
	for (unsigned i = 0; i < eh.e_phnum; i++) {
		memcpy(&ph, head + eh.e_phoff + i * sizeof ph, sizeof ph);
		if (ph.p_type == PT_LOAD && !load_add(p, &ph))
			return false;
		if (ph.p_type == PT_GNU_RELRO && ph.p_vaddr < GiB && ph.p_memsz < GiB) {
			p->relro = ALIGN_DOWN(ph.p_vaddr, PAGE);
			p->relro_end = ALIGN_DOWN(ph.p_vaddr + ph.p_memsz, PAGE);
		}
	}
	return p->n >= 2;
}

static void op_add(struct plan *p, struct kx_libop o)
{
	if (p->nr_ops < KX_LIBFILE_OPS)
		p->op[p->nr_ops] = o;
	p->nr_ops++;
}

/* glibc's elf/dl-map-segments.h, musl's ldso/dynlink.c: the latter maps a segment's zeros with its data, first, and nothing
 * between segments away. */
static void ops_plan(struct plan *p, bool musl)
{
	const struct load *first = p->load, *last = p->load + p->n - 1;
	bool holes = false;
	for (const struct load *l = first; l < last; l++)
		holes |= ALIGN_UP(l->file_end, PAGE) != l[1].start;
	op_add(p, (struct kx_libop){ .nr = SYS_mmap,
				     .prot = (uint32_t)first->prot,
				     .flags = MAP_PRIVATE,
				     .len = ALIGN_UP(last->mem_end, PAGE),
				     .off = first->off });
	if (holes && !musl)
		op_add(p, (struct kx_libop){ .nr = SYS_mprotect,
					     .prot = PROT_NONE,
					     .addr = ALIGN_UP(first->file_end, PAGE),
					     .len = last->start - ALIGN_UP(first->file_end, PAGE) });
	for (const struct load *l = first + 1; l <= last; l++) {
		uint64_t file_end = ALIGN_UP(l->file_end, PAGE), end = ALIGN_UP(l->mem_end, PAGE);
		op_add(p, (struct kx_libop){ .nr = SYS_mmap,
					     .prot = (uint32_t)l->prot,
					     .flags = MAP_PRIVATE | MAP_FIXED,
					     .addr = l->start,
					     .len = (musl ? end : file_end) - l->start,
					     .off = l->off });
		if (end > file_end)
			op_add(p, (struct kx_libop){ .nr = SYS_mmap,
						     .prot = (uint32_t)l->prot,
						     .flags = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS,
						     .addr = file_end,
						     .len = end - file_end });
	}
}

/* ---- made, and undone ----------------------------------------------------------------------------------------------- */

/* addr is where it is to be; 0: anywhere. Its address, or -errno. */
static int64_t op_make(const struct made *m, const struct kx_libop *o, uint64_t addr, uint64_t len, uint64_t off,
		       int flags)
{
	if (o->nr == SYS_mprotect)
		return do_mprotect(addr, len, (int)o->prot);
	int64_t r = do_mmap(addr, len, (int)o->prot, flags | MAP_DENYWRITE, flags & MAP_ANONYMOUS ? -1 : m->fd, off);
	if (r >= 0)
		touch_ahead((uint64_t)r, (uint64_t)r + len, (int)o->prot, flags | MAP_DENYWRITE);
	return r;
}

/* [start, end), as it is when only the first n calls have been made. */
static void op_replay(const struct made *m, unsigned n, uint64_t start, uint64_t end)
{
	for (unsigned i = 0; i < n; i++) {
		const struct kx_libop *o = &m->op[i];
		uint64_t at = i ? o->addr : o->ret, a = start > at ? start : at,
			 e = at + o->len < end ? at + o->len : end;
		if (a < e && op_make(m, o, a, e - a, o->off + (a - at), (int)o->flags | MAP_FIXED) < 0)
			do_munmap(a, e - a); /* no memory for two mappings: less than was asked for */
	}
}

static void ops_end(struct made *m, unsigned asked)
{
	if (!asked && m->nr)
		do_munmap(m->op[0].ret, m->op[0].len);
	else if (asked < m->nr) /* each lies above those before it */
		op_replay(m, asked, m->op[asked].addr, m->op[0].ret + m->op[0].len);
	m->nr = 0;
}

static bool ops_make(struct made *m, const struct plan *p, int fd)
{
	m->fd = fd;
	for (unsigned i = 0; i < p->nr_ops; i++) {
		struct kx_libop *o = &m->op[i];
		*o = p->op[i];
		o->addr += i ? m->op[0].ret : 0;
		/* Small ones side by side where another follows: the first that is touched brings its neighbours along. */
		bool packed = gmem_ahead_more && m != &now && o->len < KVM_NEIGHBOURS;
		uint64_t at = i || p->n < 2 || packed ? o->addr : place_library(o->len);
		int64_t r = op_make(m, o, at, o->len, o->off, (int)o->flags);
		if (r < 0)
			return false;
		o->ret = (uint64_t)r;
		m->nr = i + 1;
		if (!i && p->n && host_prot((int)o->prot) == PROT_READ && p->op[1].nr == SYS_mmap)
			gmem_spanned = (struct gmem_spanned){ fd, o->ret, o->ret + o->len, o->off };
	}
	return true;
}

/* They are there, or nothing is. */
static bool plan_make(struct made *m, const struct plan *p, int fd)
{
	if (!p->nr_ops || p->nr_ops > KX_LIBFILE_OPS)
		return false;
	admit_ahead(true);
	file_hold(fd);
	bool made = ops_make(m, p, fd);
	file_hold(-1);
	gmem_spanned.fd = -1;
	admit_ahead(false);
	if (!made)
		ops_end(m, 0);
	return made;
}

static void now_tell(uint32_t head_read)
{
	memcpy(shared()->op, now.op, now.nr * sizeof *now.op);
	shared()->asked = 0;
	shared()->head_read = head_read;
	__atomic_store_n(&shared()->nr_ops, now.nr, __ATOMIC_RELEASE);
	gmem_ahead_any = true;
}

static void now_end(unsigned asked)
{
	ops_end(&now, asked);
	shared()->nr_ops = 0;
}

bool gmem_ahead_is_musl(void)
{
	const char *path = admit_loader_path(), *base = strrchr(path, '/');
	return !strncmp(base ? base + 1 : path, "ld-musl", 7);
}

/* The first part; and of constants what lies in one group with the data behind them. */
static void parts_copy(const struct plan *p, uint64_t base)
{
	const struct load *l = p->load;
	if (l->prot == PROT_READ)
		copy_begin(base, base + ALIGN_UP(l->file_end, PAGE));
	for (unsigned i = 1; i + 1 < p->n; i++) {
		uint64_t start = ALIGN_DOWN(base + l[i + 1].start, KVM_NEIGHBOURS);
		if (l[i].prot == PROT_READ && l[i + 1].prot & PROT_WRITE &&
		    ALIGN_UP(l[i].file_end, PAGE) == l[i + 1].start && start < base + l[i + 1].start)
			copy_begin(start > base + l[i].start ? start : base + l[i].start, base + l[i + 1].start);
	}
}

/* head_read: what that linker reads of it first. */
static bool library_make(struct made *m, const uint8_t *head, size_t len, int fd, uint32_t *head_read)
{
	struct plan p = { 0 };
	if (len < MUSL_READS || !headers_read(&p, head, len))
		return false;
	bool musl = gmem_ahead_is_musl();
	*head_read = musl ? MUSL_READS : GLIBC_READS;
	ops_plan(&p, musl);
	if (!plan_make(m, &p, fd))
		return false;
	uint64_t base = m->op[0].ret;
	if (p.relro_end > p.relro && p.relro_end <= m->op[0].len)
		later_add(base + p.relro, p.relro_end - p.relro, SYS_mprotect, PROT_READ);
	parts_copy(&p, base);
	return true;
}

/* The file has not been changed since; nor of late, as far as its times could tell. */
static bool cache_same(const struct stat *st)
{
	const struct stat *was = &cache.st;
	return cache.kept && st->st_dev == was->st_dev && st->st_ino == was->st_ino && st->st_size == was->st_size &&
	       st->st_mtim.tv_sec == was->st_mtim.tv_sec && st->st_mtim.tv_nsec == was->st_mtim.tv_nsec &&
	       st->st_ctim.tv_sec == was->st_ctim.tv_sec && st->st_ctim.tv_nsec == was->st_ctim.tv_nsec &&
	       st->st_ctim.tv_sec + CACHE_SETTLES < time(NULL);
}

static bool whole_make(struct made *m, int fd, uint64_t size, bool once)
{
	struct plan p = { 0 };
	struct stat st = { 0 };
	if (!size || size > WHOLE_MAX)
		return false;
	op_add(&p, (struct kx_libop){
			   .nr = SYS_mmap, .prot = PROT_READ, .flags = MAP_PRIVATE, .len = ALIGN_UP(size, PAGE) });
	bool known = once && !HC6(SYS_fstat, fd, &st, 0, 0, 0, 0), again = known && cache_same(&st);
	if (again) {
		m->op[0] = p.op[0];
		m->op[0].ret = cache.addr;
		m->nr = 1;
		m->fd = fd;
		cache.kept = false;
	} else if (!plan_make(m, &p, fd)) {
		return false;
	}
	if (once) {
		later_add(m->op[0].ret, m->op[0].len, SYS_munmap, 0);
		if (!again)
			copy_begin(m->op[0].ret, m->op[0].ret + m->op[0].len);
		if (known && !again) {
			cache_drop();
			cache = (struct cache){ m->op[0].ret, m->op[0].len, st, false };
		}
	}
	return true;
}

uint64_t gmem_ahead_library(const uint8_t *head, size_t len, int fd)
{
	uint32_t head_read;
	pthread_mutex_lock(&pvm.mm_lock);
	bool made = library_make(&now, head, len, fd, &head_read);
	if (made)
		now_tell(head_read);
	pthread_mutex_unlock(&pvm.mm_lock);
	return made ? now.op[0].ret : 0;
}

uint64_t gmem_ahead_whole(int fd, uint64_t size, bool once)
{
	pthread_mutex_lock(&pvm.mm_lock);
	bool made = whole_make(&now, fd, size, once);
	if (made)
		now_tell(0);
	pthread_mutex_unlock(&pvm.mm_lock);
	return made ? now.op[0].ret : 0;
}

/* ---- of files that have not been asked for yet ---------------------------------------------------------------------- */

uint64_t gmem_ahead_next(unsigned i, const uint8_t *head, size_t len, int fd, uint64_t whole, bool once,
			 struct kx_libnext_file *out)
{
	struct made *m = &next[i];
	out->head_read = 0;
	pthread_mutex_lock(&pvm.mm_lock);
	bool made = whole ? whole_make(m, fd, whole, once) : library_make(m, head, len, fd, &out->head_read);
	if (made) {
		memcpy(out->op, m->op, m->nr * sizeof *m->op);
		out->nr_ops = m->nr;
	}
	pthread_mutex_unlock(&pvm.mm_lock);
	return made ? m->op[0].ret : 0;
}

void gmem_ahead_next_open(unsigned i, int fd)
{
	pthread_mutex_lock(&pvm.mm_lock);
	now = next[i];
	now.fd = fd;
	next[i].nr = 0;
	gmem_ahead_any = true;
	pthread_mutex_unlock(&pvm.mm_lock);
}

void gmem_ahead_next_end(unsigned i, bool asked)
{
	pthread_mutex_lock(&pvm.mm_lock);
	ops_end(&next[i], asked ? next[i].nr : 0);
	pthread_mutex_unlock(&pvm.mm_lock);
}

bool gmem_ahead_next_apart(uint64_t start, uint64_t len)
{
	for (unsigned i = 0; i < KX_LIBNEXT_FILES; i++) {
		uint64_t at = next[i].op[0].ret, size = next[i].op[0].len;
		if (next[i].nr && (len > UINT64_MAX - start || (start < at + size && start + len > at)))
			return false;
	}
	return true;
}

/* ---- a call has come ------------------------------------------------------------------------------------------------ */

/* Memory that a linker makes for itself between opening a library and mapping it. It does not tell where that is. */
static bool leaves_ops(uint64_t nr, const uint64_t arg[6])
{
	uint64_t start = now.nr ? now.op[0].ret : 0, end = now.nr ? start + now.op[0].len : 0;
	if (nr >= 1024)
		return true;
	if (shared()->closed || pvm.cfg->memory) /* which counts what was made ahead */
		return false;
	if (nr == SYS_mmap)
		return !arg[0] && (int)arg[3] == (MAP_PRIVATE | MAP_ANONYMOUS);
	if (nr == SYS_munmap || nr == SYS_mprotect)
		return arg[0] >= end || (arg[1] <= start && arg[0] <= start - arg[1]);
	return nr == SYS_brk;
}

static bool makes_threads(uint64_t nr)
{
	return nr == SYS_clone || nr == SYS_clone3 || nr == SYS_fork || nr == SYS_vfork;
}

void gmem_ahead_settle(uint64_t nr, const uint64_t arg[6])
{
	struct kx_libfile *l = shared();
	pthread_mutex_lock(&pvm.mm_lock);
	if (nr_copies && !leaves_copies(nr, arg))
		copies_end();
	bool keeps = cache.addr && leaves_cache(nr, arg);
	if (!keeps)
		cache_drop();
	/* Nobody sees the memory of a process that ends. */
	if (__atomic_load_n(&l->later_asked, __ATOMIC_RELAXED) && nr != SYS_exit_group)
		later_make(keeps);
	uint32_t asked = __atomic_load_n(&l->asked, __ATOMIC_RELAXED);
	if (now.nr && (asked >= now.nr || !leaves_ops(nr, arg)))
		now_end(asked < now.nr ? asked : now.nr);
	/* Another thread could see that they have not been made. */
	for (unsigned i = 0; makes_threads(nr) && nr_later && i < KX_LIBFILE_LATER; i++)
		if (later[i].addr)
			later_drop(i);
	if (!nr_later) {
		later_low = UINT64_MAX;
		later_high = 0;
		__atomic_and_fetch(&l->on, ~KX_LIBFILE_CALLS, __ATOMIC_RELEASE);
	}
	gmem_ahead_any = now.nr || nr_later || nr_copies || cache.kept;
	pthread_mutex_unlock(&pvm.mm_lock);
}
