/* SPDX-License-Identifier: Apache-2.0 */
#include "relink.h"
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "admit.h"
#include "elf.h"
#include "gmem.h"
#include "sweep.h"

#define PAGE 4096ull
#define PIECE 4096 /* of variables, at a time */
#define UP(x) (((x) + PAGE - 1) & -PAGE)
#define DOWN(x) ((x) & -PAGE)
#define IMAGES_MAX 1024
#define SYMS_MAX (1u << 20)
#define STR_MAX (64u << 20)
#define RELS_MAX (1u << 21)
#define DYN_MAX 256
#define PHDRS_MAX 64
#define VERS_MAX 4096
#define NEEDED_MAX 128
#define MAP_BYTES 1536 /* of a struct link_map that are looked at */
#define FILE_MAX (256ll << 20)
#define SAID_MAX 40
#define DATA_OF_COMPILER 24     /* bytes of variables that each library has */
#define READ_MAX (512ull << 20) /* bytes of the guest that one update copies */
#define POPULATE_WRITE 23       /* MADV_POPULATE_WRITE, Linux 5.14 */

#ifndef DT_RELR
#define DT_RELRSZ 35
#define DT_RELR 36
#endif

struct version {
	uint32_t name; /* into str; 0 = none */
	uint32_t hash;
	uint32_t file; /* into str, of one that is needed; 0 = its own */
	bool hidden;
};

struct image {
	uint64_t map; /* its struct link_map; 0: not in the list */
	uint64_t base, dyn;
	uint64_t start, end; /* whole pages */
	uint64_t phdr;
	Elf64_Phdr ph[PHDRS_MAX];
	unsigned nr_ph;
	Elf64_Dyn d[DYN_MAX];
	unsigned nr_d;
	bool adjusted; /* addresses in the dynamic section are absolute, as glibc leaves them */
	char *str;
	uint64_t str_size;
	Elf64_Sym *sym;
	uint16_t *ver;
	uint32_t nr_sym;
	struct version *vers;
	unsigned nr_vers;
	Elf64_Rela *rel;
	size_t nr_rel;
	uint32_t *bucket, *chain, nr_bucket; /* our own hash of the defined symbols */
	const char *soname;
	uint32_t needed[NEEDED_MAX];
	unsigned nr_needed;
	uint64_t eh_hdr, relro, relro_end, data, data_file_end, data_end; /* data: writable and not the linker's */
	const Elf64_Phdr *tls;
};

struct word {
	uint64_t at, old, new;
};

/* Versions that the program does not use any more, and that something may still point to. */
struct retired {
	struct retired *next;
	uint64_t base, dyn, start, end, aux;
	char *copy; /* the file that it was mapped from */
	size_t copy_len;
};
static struct retired *all_retired;
/* The version in use of each library that was updated, with the file it came from. */
static struct retired *all_current;

/* A word of the new version that waits for the result of a resolver. */
struct pending {
	uint64_t at, add;
	unsigned call;
};

struct relink {
	relink_say_fn say;
	void *arg;
	unsigned flags;
	struct image *img;
	unsigned nr_img, cap_img;
	unsigned nr_listed; /* of them in ld.so's list; behind them come the retired */
	struct image new;
	struct image *old, *loader;
	uint64_t r_debug;
	struct word *word;
	size_t nr_word, cap_word;
	size_t nr_object_words;
	uint64_t *page; /* pages made writable for the time being */
	size_t nr_page;
	struct retired *reuse; /* the mapping of the new version was there already */
	uint64_t aux;          /* a page of ours in the guest: tables for ld.so */
	size_t aux_used;
	bool whole_state;
	uint8_t *state; /* the old data, as it was at the last look */
	size_t state_len;
	uint8_t *stale; /* by piece of it: 0 = has not been written since it was copied */
	bool state_noted;
	uint32_t (*pair)[2]; /* by word of the data: relocation + 1 in the old and in the new version, 0 = none */
	uint64_t tls_mod, tls_off;
	bool tls_known;
	struct relink_call *call;
	struct pending *pending; /* for the results of the first calls */
	unsigned nr_call, nr_pending;
	struct relink_call *done; /* resolvers that have run */
	unsigned nr_done, batch;
	char *copy;
	size_t copy_len;
	unsigned said;
	uint64_t bytes;
	uint64_t changed;
	struct sweep *sweep; /* of pointers in the program's memory; NULL: needs none */
	bool same_image;     /* both versions have everything at the same places */
};

__attribute__((format(printf, 2, 3))) static void say(struct relink *r, const char *fmt, ...)
{
	va_list ap;
	if (r->said++ >= SAID_MAX)
		return;
	va_start(ap, fmt);
	r->say(r->arg, fmt, ap);
	va_end(ap);
}

/* ---- reading an object --------------------------------------------------------------------------------------------- */

static void image_free(struct image *m)
{
	free(m->str);
	free(m->sym);
	free(m->ver);
	free(m->vers);
	free(m->rel);
	free(m->bucket);
	free(m->chain);
	memset(m, 0, sizeof *m);
}

static uint64_t budget; /* update.c serves one at a time */

static void *copy_in(uint64_t gva, size_t len)
{
	if (len > budget)
		return NULL;
	budget -= len;
	void *p = malloc(len ? len : 1);
	if (p && guest_read(p, gva, len)) {
		free(p);
		p = NULL;
	}
	return p;
}

static const Elf64_Dyn *dyn_entry(const struct image *m, int64_t tag)
{
	const Elf64_Dyn *found = NULL;
	for (unsigned i = 0; i < m->nr_d; i++)
		if (m->d[i].d_tag == tag)
			found = &m->d[i];
	return found;
}

static uint64_t dyn_value(const struct image *m, int64_t tag)
{
	const Elf64_Dyn *d = dyn_entry(m, tag);
	return d ? d->d_un.d_val : 0;
}

static uint64_t dyn_address(const struct image *m, int64_t tag)
{
	const Elf64_Dyn *d = dyn_entry(m, tag);
	if (!d)
		return 0;
	return d->d_un.d_ptr < m->base ? d->d_un.d_ptr + m->base : d->d_un.d_ptr;
}

static const char *str_at(const struct image *m, uint64_t off) { return off < m->str_size ? m->str + off : ""; }

static uint32_t count_gnu_hash(uint64_t at)
{
	uint32_t h[4], max = 0;
	if (guest_read(h, at, sizeof h) || h[0] > SYMS_MAX || h[2] > SYMS_MAX)
		return 0;
	uint64_t buckets = at + 16 + h[2] * 8ull, chain = buckets + h[0] * 4ull;
	for (uint32_t i = 0, b; i < h[0]; i++) {
		if (guest_read(&b, buckets + i * 4ull, 4))
			return 0;
		max = b > max ? b : max;
	}
	if (max < h[1]) /* nothing defined: only those before the hashed ones */
		return h[1] < SYMS_MAX ? h[1] : 0;
	for (uint32_t v; max < SYMS_MAX; max++) {
		if (guest_read(&v, chain + (max - h[1]) * 4ull, 4))
			return 0;
		if (v & 1)
			return max + 1;
	}
	return 0;
}

static uint32_t count_symbols(const struct image *m)
{
	uint32_t h[2];
	if (dyn_entry(m, DT_GNU_HASH))
		return count_gnu_hash(dyn_address(m, DT_GNU_HASH));
	if (dyn_entry(m, DT_HASH) && !guest_read(h, dyn_address(m, DT_HASH), sizeof h) && h[1] < SYMS_MAX)
		return h[1];
	return 0;
}

static void version_set(struct image *m, unsigned ndx, uint32_t name, uint32_t hash, uint32_t file, bool hidden)
{
	ndx &= 0x7fff;
	if (ndx >= VERS_MAX)
		return;
	m->vers[ndx] = (struct version){ name, hash, file, hidden };
	if (ndx >= m->nr_vers)
		m->nr_vers = ndx + 1;
}

static void read_versions(struct image *m)
{
	uint64_t at = dyn_address(m, DT_VERDEF);
	Elf64_Verdef vd;
	Elf64_Verdaux va;
	for (uint64_t n = dyn_value(m, DT_VERDEFNUM), i = 0; at && i < n && i < VERS_MAX; i++, at += vd.vd_next) {
		if (guest_read(&vd, at, sizeof vd) || guest_read(&va, at + vd.vd_aux, sizeof va))
			break;
		if (!(vd.vd_flags & VER_FLG_BASE))
			version_set(m, vd.vd_ndx, va.vda_name, vd.vd_hash, 0, false);
		if (!vd.vd_next)
			break;
	}
	at = dyn_address(m, DT_VERNEED);
	Elf64_Verneed vn;
	Elf64_Vernaux na;
	for (uint64_t n = dyn_value(m, DT_VERNEEDNUM), i = 0; at && i < n && i < VERS_MAX; i++, at += vn.vn_next) {
		if (guest_read(&vn, at, sizeof vn))
			break;
		uint64_t a = at + vn.vn_aux;
		for (unsigned k = 0; k < vn.vn_cnt && k < VERS_MAX; k++, a += na.vna_next) {
			if (guest_read(&na, a, sizeof na))
				break;
			version_set(m, na.vna_other, na.vna_name, na.vna_hash, vn.vn_file, na.vna_other & 0x8000);
			if (!na.vna_next)
				break;
		}
		if (!vn.vn_next)
			break;
	}
}

static uint32_t hash_of(const char *s)
{
	uint32_t h = 5381;
	for (; *s; s++)
		h = h * 33 + (uint8_t)*s;
	return h;
}

static bool is_defined(const Elf64_Sym *s)
{
	return s->st_shndx != SHN_UNDEF && s->st_shndx != SHN_ABS && ELF64_ST_BIND(s->st_info) != STB_LOCAL &&
	       ELF64_ST_TYPE(s->st_info) != STT_SECTION && ELF64_ST_TYPE(s->st_info) != STT_FILE;
}

static int build_hash(struct image *m)
{
	m->nr_bucket = m->nr_sym + 1;
	m->bucket = calloc(m->nr_bucket, 4);
	m->chain = calloc(m->nr_bucket, 4);
	if (!m->bucket || !m->chain)
		return -ENOMEM;
	for (uint32_t i = 1; i < m->nr_sym; i++) {
		if (!is_defined(&m->sym[i]))
			continue;
		uint32_t *b = &m->bucket[hash_of(str_at(m, m->sym[i].st_name)) % m->nr_bucket];
		m->chain[i] = *b;
		*b = i;
	}
	return 0;
}

static int read_relocations(struct image *m)
{
	uint64_t a = dyn_address(m, DT_RELA), an = dyn_value(m, DT_RELASZ) / sizeof(Elf64_Rela);
	uint64_t b = dyn_address(m, DT_JMPREL), bn = dyn_value(m, DT_PLTRELSZ) / sizeof(Elf64_Rela);
	if (!a)
		an = 0;
	if (!b)
		bn = 0;
	if (an > RELS_MAX || bn > RELS_MAX)
		return -ENOEXEC;
	if ((an + bn) * sizeof *m->rel > budget)
		return -ENOMEM;
	budget -= (an + bn) * sizeof *m->rel;
	m->rel = malloc((an + bn + 1) * sizeof *m->rel);
	if (!m->rel)
		return -ENOMEM;
	if ((an && guest_read(m->rel, a, an * sizeof *m->rel)) ||
	    (bn && guest_read(m->rel + an, b, bn * sizeof *m->rel)))
		return -EFAULT;
	m->nr_rel = an + bn;
	return 0;
}

/* Segments, and what of them is the program's own data: behind what ld.so makes read-only and behind the PLT's table. */
static void read_layout(struct image *m)
{
	m->start = ~0ull;
	for (unsigned i = 0; i < m->nr_ph; i++) {
		const Elf64_Phdr *p = &m->ph[i];
		uint64_t at = m->base + p->p_vaddr;
		if (p->p_type == PT_LOAD) {
			if (DOWN(at) < m->start)
				m->start = DOWN(at);
			if (UP(at + p->p_memsz) > m->end)
				m->end = UP(at + p->p_memsz);
			if (p->p_flags & PF_W) {
				m->data = at;
				m->data_file_end = at + p->p_filesz;
				m->data_end = at + p->p_memsz;
			}
		} else if (p->p_type == PT_GNU_RELRO) {
			m->relro = at;
			m->relro_end = at + p->p_memsz;
		} else if (p->p_type == PT_GNU_EH_FRAME) {
			m->eh_hdr = at;
		} else if (p->p_type == PT_TLS && p->p_memsz) {
			m->tls = p;
		}
	}
	if (m->relro_end > m->data && m->relro_end <= m->data_file_end)
		m->data = m->relro_end;
	uint64_t got = dyn_address(m, DT_PLTGOT), slots = dyn_value(m, DT_PLTRELSZ) / sizeof(Elf64_Rela);
	if (got >= m->data && got < m->data_file_end && got + (3 + slots) * 8 <= m->data_file_end)
		m->data = got + (3 + slots) * 8;
}

/* phdr 0: where the ELF header at the base says. */
static int image_read(struct image *m, uint64_t map, uint64_t base, uint64_t dyn, uint64_t phdr, unsigned nr_ph)
{
	memset(m, 0, sizeof *m);
	m->map = map;
	m->base = base;
	m->dyn = dyn;
	if (!phdr) {
		Elf64_Ehdr eh;
		if (guest_read(&eh, base, sizeof eh) || memcmp(eh.e_ident, ELFMAG, SELFMAG) ||
		    eh.e_phentsize != sizeof(Elf64_Phdr))
			return -ENOEXEC;
		phdr = base + eh.e_phoff;
		nr_ph = eh.e_phnum;
	}
	if (nr_ph > PHDRS_MAX || guest_read(m->ph, phdr, nr_ph * sizeof *m->ph))
		return -ENOEXEC;
	m->phdr = phdr;
	m->nr_ph = nr_ph;
	for (; m->nr_d < DYN_MAX; m->nr_d++) {
		if (guest_read(&m->d[m->nr_d], dyn + m->nr_d * sizeof(Elf64_Dyn), sizeof(Elf64_Dyn)))
			return -EFAULT;
		if (m->d[m->nr_d].d_tag == DT_NULL)
			break;
	}
	m->adjusted = dyn_value(m, DT_STRTAB) >= base && base;
	read_layout(m);
	int r = read_relocations(m);
	if (r)
		return r;
	m->nr_sym = count_symbols(m);
	/* Of a table with nothing defined the hash tells nothing. */
	for (size_t k = 0; k < m->nr_rel; k++)
		if (ELF64_R_SYM(m->rel[k].r_info) >= m->nr_sym && ELF64_R_SYM(m->rel[k].r_info) < SYMS_MAX)
			m->nr_sym = (uint32_t)ELF64_R_SYM(m->rel[k].r_info) + 1;
	m->str_size = dyn_value(m, DT_STRSZ);
	if (!m->nr_sym || !m->str_size || m->str_size > STR_MAX)
		return -ENOEXEC;
	m->str = copy_in(dyn_address(m, DT_STRTAB), m->str_size);
	m->sym = copy_in(dyn_address(m, DT_SYMTAB), m->nr_sym * sizeof *m->sym);
	m->vers = calloc(VERS_MAX, sizeof *m->vers);
	if (dyn_entry(m, DT_VERSYM))
		m->ver = copy_in(dyn_address(m, DT_VERSYM), m->nr_sym * 2ull);
	if (!m->str || !m->sym || !m->vers || (dyn_entry(m, DT_VERSYM) && !m->ver))
		return -EFAULT;
	m->str[m->str_size - 1] = 0;
	read_versions(m);
	if (dyn_entry(m, DT_SONAME))
		m->soname = str_at(m, dyn_value(m, DT_SONAME));
	for (unsigned i = 0; i < m->nr_d && m->nr_needed < NEEDED_MAX; i++)
		if (m->d[i].d_tag == DT_NEEDED)
			m->needed[m->nr_needed++] = (uint32_t)m->d[i].d_un.d_val;
	return build_hash(m);
}

/* ---- symbols ------------------------------------------------------------------------------------------------------- */

static const char *version_name(const struct image *m, uint32_t sym)
{
	unsigned v = m->ver ? m->ver[sym] & 0x7fff : 0;
	return v >= 2 && v < m->nr_vers ? str_at(m, m->vers[v].name) : "";
}

/* 0 = none. A version that is asked for must be there; without one, a default version will do. */
static uint32_t find_symbol(const struct image *m, const char *name, const char *version)
{
	uint32_t other = 0, limit = m->nr_sym;
	for (uint32_t i = m->bucket[hash_of(name) % m->nr_bucket]; i && limit; i = m->chain[i], limit--) {
		if (strcmp(str_at(m, m->sym[i].st_name), name))
			continue;
		const char *v = version_name(m, i);
		if (!strcmp(v, version))
			return i;
		if (!*v || (!*version && !(m->ver[i] & 0x8000)))
			other = i;
	}
	return other;
}

static uint64_t address_of(const struct image *m, uint32_t sym) { return m->base + m->sym[sym].st_value; }

static bool inside(const struct image *m, uint64_t a) { return a >= m->start && a < m->end; }

/* ---- what is loaded -------------------------------------------------------------------------------------------------- */

static uint64_t auxv(uint64_t type)
{
	const uint64_t *a = (const uint64_t *)pvm.auxv;
	for (unsigned i = 0; i + 1 < pvm.auxv_len / 8; i += 2)
		if (a[i] == type)
			return a[i + 1];
	return 0;
}

/* As <link.h>'s. */
struct debug {
	int32_t version, pad;
	uint64_t map, brk;
	uint32_t state, pad2;
	uint64_t ldbase;
};
struct map_head {
	uint64_t addr, name, ld, next, prev;
};

static int find_debug(struct relink *r)
{
	uint64_t phdr = auxv(AT_PHDR), n = auxv(AT_PHNUM), bias = 0, dyn = 0;
	Elf64_Phdr p;
	for (uint64_t i = 0; i < n && i < PHDRS_MAX; i++) {
		if (guest_read(&p, phdr + i * sizeof p, sizeof p))
			return -EFAULT;
		if (p.p_type == PT_PHDR)
			bias = phdr - p.p_vaddr;
		if (p.p_type == PT_DYNAMIC)
			dyn = p.p_vaddr;
	}
	for (unsigned i = 0; dyn && i < DYN_MAX; i++) {
		Elf64_Dyn d;
		if (guest_read(&d, bias + dyn + i * sizeof d, sizeof d) || d.d_tag == DT_NULL)
			break;
		if (d.d_tag == DT_DEBUG && d.d_un.d_ptr) {
			r->r_debug = d.d_un.d_ptr;
			return 0;
		}
	}
	return -ENOENT;
}

static int image_add(struct relink *r, uint64_t map, uint64_t base, uint64_t dyn, bool program)
{
	struct image *p = r->img;
	if (r->nr_img == r->cap_img)
		return -E2BIG;
	int e = image_read(&p[r->nr_img], map, base, dyn, program ? auxv(AT_PHDR) : 0,
			   program ? (unsigned)auxv(AT_PHNUM) : 0);
	if (e == -ENOEXEC || e == -EFAULT) { /* nothing that others could be bound to */
		image_free(&p[r->nr_img]);
		return e;
	}
	r->nr_img++;
	return e;
}

static int read_list(struct relink *r)
{
	struct debug d;
	struct map_head h;
	if (find_debug(r) || guest_read(&d, r->r_debug, sizeof d))
		return -ENOENT;
	if (d.state)
		return -EAGAIN;
	uint64_t at = d.map;
	for (; at && r->cap_img < IMAGES_MAX && !guest_read(&h, at, sizeof h); at = h.next)
		r->cap_img++;
	for (struct retired *t = all_retired; t; t = t->next)
		r->cap_img++;
	if (!(r->img = calloc(r->cap_img + 1, sizeof *r->img))) /* images point into themselves: they don't move */
		return -ENOMEM;
	at = d.map;
	for (unsigned i = 0; at && i < IMAGES_MAX; i++, at = h.next) {
		if (guest_read(&h, at, sizeof h))
			return -EFAULT;
		if (h.addr == KX_VDSO_BASE) /* nobody is bound to it by name */
			continue;
		int e = image_add(r, at, h.addr, h.ld, i == 0);
		if (e == -ENOMEM || (i == 0 && e))
			return e;
	}
	r->nr_listed = r->nr_img;
	for (struct retired *t = all_retired; t; t = t->next)
		image_add(r, 0, t->base, t->dyn, false);
	uint64_t loader = auxv(AT_BASE);
	for (unsigned i = 0; i < r->nr_listed; i++)
		if (loader && r->img[i].base == loader)
			r->loader = &r->img[i];
	return 0;
}

/* ---- the words that change ------------------------------------------------------------------------------------------- */

static int word_add(struct relink *r, uint64_t at, uint64_t old, uint64_t new)
{
	if (old == new)
		return 0;
	if (r->nr_word == r->cap_word) {
		size_t cap = r->cap_word ? 2 * r->cap_word : 256;
		struct word *p = realloc(r->word, cap * sizeof *p);
		if (!p)
			return -ENOMEM;
		r->word = p;
		r->cap_word = cap;
	}
	r->word[r->nr_word++] = (struct word){ at, old, new };
	return 0;
}

static bool binds(unsigned type)
{
	return type == R_X86_64_GLOB_DAT || type == R_X86_64_JUMP_SLOT || type == R_X86_64_64;
}

/* ---- the new version in memory ------------------------------------------------------------------------------------- */

static int64_t read_fd(void *ctx, void *buf, size_t len, uint64_t off)
{
	ssize_t n = pread(*(int *)ctx, buf, len, (off_t)off);
	return n < 0 ? -errno : n;
}

static int prot_of(uint32_t flags)
{
	return (flags & PF_R ? PROT_READ : 0) | (flags & PF_W ? PROT_WRITE : 0) | (flags & PF_X ? PROT_EXEC : 0);
}

/* As ld.so maps a library. Returns its base or -errno. */
static int64_t map_file(int fd, const struct elf_image *e)
{
	uint64_t span = e->high - e->low;
	int64_t at = gmem_mmap(0, span, prot_of(e->seg[0].flags), MAP_PRIVATE, fd, DOWN(e->seg[0].off)), r = at;
	if (at < 0)
		return at;
	uint64_t base = (uint64_t)at - e->low;
	for (uint32_t i = 0; i < e->nr_seg && r >= 0; i++) {
		const struct elf_segment *s = &e->seg[i];
		uint64_t a = base + DOWN(s->vaddr), end = base + s->vaddr + s->memsz,
			 file = base + s->vaddr + s->filesz;
		uint64_t prev = i ? base + UP(e->seg[i - 1].vaddr + e->seg[i - 1].memsz) : a;
		if (a > prev)
			gmem_mprotect(prev, a - prev, PROT_NONE);
		if (s->filesz && i)
			r = gmem_mmap(a, file - a, prot_of(s->flags), MAP_PRIVATE | MAP_FIXED, fd, DOWN(s->off));
		if (r >= 0 && s->memsz > s->filesz) {
			uint64_t zero = s->filesz ? UP(file) : a;
			static const uint8_t none[PAGE];
			if (s->filesz && file % PAGE && guest_write(file, none, UP(file) - file))
				r = -ENOEXEC; /* a segment that is not writable */
			if (r >= 0 && UP(end) > zero)
				r = gmem_mmap(zero, UP(end) - zero, prot_of(s->flags),
					      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		}
	}
	if (r < 0) {
		gmem_munmap((uint64_t)at, span);
		return r;
	}
	return (int64_t)base;
}

static bool same_file(const struct retired *t, const struct relink *r)
{
	return t->copy && t->copy_len == r->copy_len && !memcmp(t->copy, r->copy, r->copy_len);
}

static int read_copy(struct relink *r, int fd)
{
	struct stat st;
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size < (off_t)sizeof(Elf64_Ehdr) || st.st_size > FILE_MAX)
		return -ENOEXEC;
	r->copy_len = (size_t)st.st_size;
	if (!(r->copy = malloc(r->copy_len)))
		return -ENOMEM;
	for (size_t n = 0; n < r->copy_len;) {
		ssize_t k = pread(fd, r->copy + n, r->copy_len - n, (off_t)n);
		if (k <= 0)
			return -EIO;
		n += (size_t)k;
	}
	return 0;
}

static int map_new(struct relink *r, int fd)
{
	static struct elf_image e;
	struct kx_err err = { 0 };
	int x = read_copy(r, fd);
	if (!x)
		x = elf_read(read_fd, &fd, r->copy_len, &e, &err);
	if (x || !e.dyn || !e.nr_seg) {
		say(r, "not a shared library: %s", err.code ? err.msg : x ? strerror(-x) : "a program");
		return -ENOEXEC;
	}
	uint64_t dyn = 0;
	const Elf64_Ehdr *eh = (const Elf64_Ehdr *)r->copy;
	for (uint32_t i = 0; i < e.phnum; i++) {
		Elf64_Phdr p;
		if (e.phoff + (i + 1) * sizeof p > r->copy_len)
			return -ENOEXEC;
		memcpy(&p, r->copy + e.phoff + i * sizeof p, sizeof p);
		if (p.p_type == PT_DYNAMIC)
			dyn = p.p_vaddr;
	}
	if (!dyn || eh->e_type != ET_DYN || e.low) {
		say(r, "not a shared library: %s", dyn ? "it does not begin at address 0" : "no dynamic section");
		return -ENOEXEC;
	}
	for (struct retired *t = all_retired; t && !r->reuse; t = t->next)
		if (same_file(t, r))
			r->reuse = t;
	int64_t base = r->reuse ? (int64_t)r->reuse->base : map_file(fd, &e);
	if (base < 0) {
		say(r, "cannot be mapped: %s", strerror((int)-base));
		return (int)base;
	}
	x = image_read(&r->new, 0, (uint64_t)base, (uint64_t)base + dyn, 0, 0);
	if (!r->new.start || r->new.start == ~0ull) {
		r->new.start = (uint64_t)base + e.low;
		r->new.end = (uint64_t)base + e.high;
	}
	if (x)
		say(r, "its dynamic section cannot be read: %s", strerror(-x));
	else if (!r->new.soname || !*r->new.soname) {
		say(r, "has no SONAME");
		x = -ENOEXEC;
	}
	return x;
}

/* ---- is it the same interface? --------------------------------------------------------------------------------------- */

static const char *type_name(unsigned t)
{
	static const char *const names[] = { "untyped", "object", "function", "section", "file", "common", "TLS" };
	return t < 7 ? names[t] : t == STT_GNU_IFUNC ? "IFUNC" : "unknown";
}

static unsigned type_of(const Elf64_Sym *s)
{
	unsigned t = ELF64_ST_TYPE(s->st_info);
	return t == STT_GNU_IFUNC || t == STT_NOTYPE ? STT_FUNC : t == STT_COMMON ? STT_OBJECT : t;
}

static bool used_by_others(const struct relink *r, const char *name)
{
	for (unsigned i = 0; i < r->nr_listed; i++) {
		const struct image *m = &r->img[i];
		for (uint32_t s = 1; m != r->old && s < m->nr_sym; s++)
			if (m->sym[s].st_shndx == SHN_UNDEF && !strcmp(str_at(m, m->sym[s].st_name), name))
				return true;
	}
	return false;
}

static bool is_loaded(const struct relink *r, const char *name)
{
	for (unsigned i = 0; i < r->nr_listed; i++) {
		const struct image *m = &r->img[i];
		char path[512];
		struct map_head h;
		if (m->soname && !strcmp(m->soname, name))
			return true;
		if (!guest_read(&h, m->map, sizeof h) && guest_read_str(path, h.name, sizeof path) > 0) {
			char *base = strrchr(path, '/');
			if (!strcmp(base ? base + 1 : path, name))
				return true;
		}
	}
	return false;
}

static int compare(struct relink *r)
{
	const struct image *o = r->old, *n = &r->new;
	unsigned bad = 0;
	for (uint32_t i = 1; i < o->nr_sym; i++) {
		const Elf64_Sym *a = &o->sym[i];
		if (!is_defined(a) || ELF64_ST_VISIBILITY(a->st_other) == STV_HIDDEN)
			continue;
		const char *name = str_at(o, a->st_name), *ver = version_name(o, i), *sep = *ver ? "@" : "";
		if (!strncmp(name, "kylinx_update_", 14))
			continue;
		uint32_t k = find_symbol(n, name, ver);
		const Elf64_Sym *b = &n->sym[k];
		if (!k) {
			/* Inline functions and templates come and go with their use. */
			if (ELF64_ST_BIND(a->st_info) == STB_WEAK && !used_by_others(r, name))
				continue;
			say(r, "missing: %s%s%s", name, sep, ver);
			bad++;
		} else if (type_of(a) != type_of(b)) {
			say(r, "changed: %s%s%s was a %s, is a %s", name, sep, ver,
			    type_name(ELF64_ST_TYPE(a->st_info)), type_name(ELF64_ST_TYPE(b->st_info)));
			bad++;
		} else if (type_of(a) != STT_FUNC && a->st_size != b->st_size) {
			say(r, "changed: %s%s%s had %llu bytes, has %llu", name, sep, ver,
			    (unsigned long long)a->st_size, (unsigned long long)b->st_size);
			bad++;
		} else if (type_of(a) == STT_TLS && a->st_value != b->st_value) {
			say(r, "changed: %s%s%s is at another place in thread-local storage", name, sep, ver);
			bad++;
		}
	}
	if (!o->tls != !n->tls ||
	    (o->tls && (o->tls->p_memsz != n->tls->p_memsz || o->tls->p_align != n->tls->p_align))) {
		say(r, "changed: thread-local storage of %llu bytes was %llu",
		    (unsigned long long)(n->tls ? n->tls->p_memsz : 0),
		    (unsigned long long)(o->tls ? o->tls->p_memsz : 0));
		bad++;
	}
	for (unsigned i = 0; i < n->nr_needed; i++)
		if (!is_loaded(r, str_at(n, n->needed[i]))) {
			say(r, "needs a library that is not loaded: %s", str_at(n, n->needed[i]));
			bad++;
		}
	if (dyn_entry(n, DT_TEXTREL) || !dyn_entry(n, DT_GNU_HASH) || !dyn_entry(o, DT_GNU_HASH)) {
		say(r, dyn_entry(n, DT_TEXTREL) ? "relocates its text" : "has no DT_GNU_HASH");
		bad++;
	}
	if (!o->ver != !n->ver) {
		say(r, "changed: symbol versions %s", o->ver ? "are gone" : "are new");
		bad++;
	}
	return bad ? -EINVAL : 0;
}

/* ---- relocation of the new version ------------------------------------------------------------------------------------- */

/* What the old version was bound to by this name; false when it was not, or not yet. */
static bool old_choice(const struct relink *r, const char *name, const char *ver, const struct image *in, uint64_t *out)
{
	const struct image *o = r->old;
	for (size_t k = 0; k < o->nr_rel; k++) {
		const Elf64_Rela *rel = &o->rel[k];
		uint32_t s = ELF64_R_SYM(rel->r_info);
		unsigned t = ELF64_R_TYPE(rel->r_info);
		if (!s || s >= o->nr_sym || !binds(t) || (t == R_X86_64_64 && (rel->r_addend || !in)) ||
		    strcmp(str_at(o, o->sym[s].st_name), name) || strcmp(version_name(o, s), ver))
			continue;
		uint64_t v;
		if (guest_read(&v, o->base + rel->r_offset, 8) ||
		    inside(o, v) ||                       /* its own, or its PLT: not bound yet */
		    (t == R_X86_64_64 && !inside(in, v))) /* changed by the program */
			continue;
		*out = v;
		return true;
	}
	return false;
}

/* Somebody else's binding to the same symbol of the same object: of an IFUNC, what its resolver chose. */
static bool others_choice(const struct relink *r, const char *name, const struct image *in, uint64_t *out)
{
	for (unsigned i = 0; i < r->nr_listed; i++) {
		const struct image *m = &r->img[i];
		for (size_t k = 0; k < m->nr_rel; k++) {
			const Elf64_Rela *rel = &m->rel[k];
			uint32_t s = ELF64_R_SYM(rel->r_info);
			unsigned t = ELF64_R_TYPE(rel->r_info);
			if (!s || s >= m->nr_sym || !binds(t) || (t == R_X86_64_64 && rel->r_addend) ||
			    strcmp(str_at(m, m->sym[s].st_name), name))
				continue;
			if (!guest_read(out, m->base + rel->r_offset, 8) && inside(in, *out))
				return true;
		}
	}
	return false;
}

/* 0 and *out; -ENOENT; -EOPNOTSUPP: an IFUNC that nobody has resolved, *out is its resolver. */
static int resolve(const struct relink *r, const struct image *n, uint32_t s, unsigned type, uint64_t *out)
{
	const char *name = str_at(n, n->sym[s].st_name), *ver = version_name(n, s);
	bool own = is_defined(&n->sym[s]);
	if (own && ELF64_ST_VISIBILITY(n->sym[s].st_other) != STV_DEFAULT) {
		*out = address_of(n, s);
		return 0;
	}
	/* A program at a fixed address that takes a function's address has made its own PLT entry that address. */
	for (uint32_t k = 1; type != R_X86_64_JUMP_SLOT && k < r->img[0].nr_sym; k++) {
		const Elf64_Sym *e = &r->img[0].sym[k];
		if (e->st_shndx == SHN_UNDEF && e->st_value && ELF64_ST_TYPE(e->st_info) == STT_FUNC &&
		    !strcmp(str_at(&r->img[0], e->st_name), name)) {
			*out = address_of(&r->img[0], k);
			return 0;
		}
	}
	for (unsigned i = 0; i < r->nr_listed; i++) {
		const struct image *m = &r->img[i];
		if (m == r->old) {
			uint32_t k = find_symbol(&r->new, name, ver);
			if (!k)
				continue;
			*out = address_of(&r->new, k);
			return ELF64_ST_TYPE(r->new.sym[k].st_info) == STT_GNU_IFUNC ? -EOPNOTSUPP : 0;
		}
		uint32_t k = find_symbol(m, name, ver);
		if (!k)
			continue;
		/* Who else defines what the library defines stood before it, or is none of its business. */
		if (old_choice(r, name, ver, m, out))
			return 0;
		bool ifunc = ELF64_ST_TYPE(m->sym[k].st_info) == STT_GNU_IFUNC;
		if (ifunc && others_choice(r, name, m, out))
			return 0;
		*out = address_of(m, k);
		return ifunc ? -EOPNOTSUPP : 0;
	}
	if (ELF64_ST_BIND(n->sym[s].st_info) == STB_WEAK) {
		*out = 0;
		return 0;
	}
	return -ENOENT;
}

/* What the old version's thread-local storage is. */
static void find_tls(struct relink *r, const uint64_t *map, size_t words)
{
	const struct image *o = r->old;
	if (!o->tls)
		return;
	uint64_t want[5] = { o->base + o->tls->p_vaddr, o->tls->p_filesz, o->tls->p_memsz, o->tls->p_align,
			     o->tls->p_align ? o->tls->p_vaddr & (o->tls->p_align - 1) : 0 };
	for (size_t i = 0; i + 7 <= words; i++)
		if (!memcmp(map + i, want, sizeof want)) {
			r->tls_off = map[i + 5];
			r->tls_mod = map[i + 6];
			r->tls_known = r->tls_mod && r->tls_mod < 65536;
		}
}

/* The first words of the PLT's table: its own, the map, ld.so's function. */
static bool is_lazy(const struct relink *r)
{
	uint64_t g[3], got = dyn_address(r->old, DT_PLTGOT);
	return got && dyn_address(&r->new, DT_PLTGOT) && !guest_read(g, got, sizeof g) && g[1] == r->old->map && g[2];
}

static int copy_lazy(struct relink *r)
{
	uint64_t g[3];
	if (!is_lazy(r) || r->reuse || guest_read(g, dyn_address(r->old, DT_PLTGOT), sizeof g))
		return 0;
	return guest_write(dyn_address(&r->new, DT_PLTGOT) + 8, g + 1, 16) ? -ENOEXEC : 0;
}

static int call_add(struct relink *r, uint64_t fn, unsigned *out)
{
	struct relink_call *p = realloc(r->call, (r->nr_call + 1) * sizeof *p);
	if (!p)
		return -ENOMEM;
	r->call = p;
	*out = r->nr_call;
	p[r->nr_call++] = (struct relink_call){ .fn = fn };
	return 0;
}

#define CALLS_MAX 4096

static int resolver_add(struct relink *r, uint64_t resolver, unsigned *out)
{
	for (*out = 0; *out < r->nr_call; ++*out)
		if (r->call[*out].fn == resolver)
			return 0;
	return r->nr_call == CALLS_MAX ? -E2BIG : call_add(r, resolver, out);
}

/* For those that are bound to the old version's. */
static int exported_resolvers(struct relink *r)
{
	const struct image *n = &r->new;
	unsigned k;
	int e = 0;
	for (uint32_t i = 1; i < n->nr_sym && !e; i++)
		if (is_defined(&n->sym[i]) && ELF64_ST_TYPE(n->sym[i].st_info) == STT_GNU_IFUNC)
			e = resolver_add(r, address_of(n, i), &k);
	return e;
}

/* What the new version's symbol is to others: of an IFUNC, what its resolver has said. 0 = nothing. */
static uint64_t exported(const struct relink *r, uint32_t sym)
{
	uint64_t a = address_of(&r->new, sym);
	if (ELF64_ST_TYPE(r->new.sym[sym].st_info) != STT_GNU_IFUNC)
		return a;
	for (unsigned i = 0; i < r->nr_done; i++)
		if (r->done[i].fn == a)
			return r->done[i].result;
	return 0;
}

static int resolve_later(struct relink *r, uint64_t resolver, uint64_t at, uint64_t add)
{
	unsigned k = 0;
	if (r->nr_pending == CALLS_MAX)
		return -E2BIG;
	int e = resolver_add(r, resolver, &k);
	struct pending *p = e ? NULL : realloc(r->pending, (r->nr_pending + 1) * sizeof *p);
	if (!p)
		return -ENOMEM;
	r->pending = p;
	p[r->nr_pending++] = (struct pending){ at, add, k };
	return 0;
}

static int relocated(struct relink *r, const Elf64_Rela *rel, uint64_t out[2], unsigned *nr)
{
	struct image *n = &r->new;
	uint32_t s = ELF64_R_SYM(rel->r_info);
	unsigned type = ELF64_R_TYPE(rel->r_info);
	uint64_t v = 0, add = (uint64_t)rel->r_addend;
	*nr = 1;
	if (s >= n->nr_sym)
		return -ENOEXEC;
	switch (type) {
	case R_X86_64_NONE:
		*nr = 0;
		return 0;
	case R_X86_64_RELATIVE:
		out[0] = n->base + add;
		return 0;
	case R_X86_64_64:
	case R_X86_64_GLOB_DAT:
	case R_X86_64_JUMP_SLOT: {
		int e = s ? resolve(r, n, s, type, &v) : 0;
		if (e == -EOPNOTSUPP && type == R_X86_64_JUMP_SLOT && is_lazy(r)) {
			/* Left to ld.so, at the first call, as it was in the old version. */
			*nr = r->reuse ? 0 : 1;
			return *nr && guest_read(&v, n->base + rel->r_offset, 8) ? -ENOEXEC : (out[0] = n->base + v, 0);
		}
		if (e == -EOPNOTSUPP) {
			*nr = 0;
			return resolve_later(r, v, n->base + rel->r_offset, type == R_X86_64_64 ? add : 0);
		}
		if (e) {
			say(r, "nobody defines: %s", str_at(n, n->sym[s].st_name));
			return e;
		}
		out[0] = v + (type == R_X86_64_64 ? add : 0);
		return 0;
	}
	case R_X86_64_DTPMOD64:
	case R_X86_64_DTPOFF64:
	case R_X86_64_TPOFF64:
		if (!r->tls_known || (s && !is_defined(&n->sym[s]))) {
			say(r, "thread-local storage of another library: %s", str_at(n, n->sym[s].st_name));
			return -EOPNOTSUPP;
		}
		v = (s ? n->sym[s].st_value : 0) + add;
		out[0] = type == R_X86_64_DTPMOD64 ? r->tls_mod : type == R_X86_64_DTPOFF64 ? v : v - r->tls_off;
		/* -1 and 0: not in the space that every thread has from its start. */
		if (type == R_X86_64_TPOFF64 && (!r->tls_off || r->tls_off + 1 < 2))
			return -EOPNOTSUPP;
		return 0;
	}
	if (type == R_X86_64_IRELATIVE) {
		*nr = 0;
		return resolve_later(r, n->base + add, n->base + rel->r_offset, 0);
	}
	say(r, "relocation of type %u", type);
	return -EOPNOTSUPP;
}

/* A word of the new version: written at once when nobody has it yet, else with all others. */
static int new_word(struct relink *r, uint64_t at, uint64_t v)
{
	uint64_t now;
	if (at < r->new.start || at > r->new.end - 8 || guest_read(&now, at, 8)) {
		say(r, "relocates what is not its own");
		return -ENOEXEC;
	}
	if (r->reuse)
		return at >= r->new.data &&at < r->new.data_end ? 0 : word_add(r, at, now, v);
	if (guest_write(at, &v, 8)) {
		say(r, "relocates what it cannot write");
		return -ENOEXEC;
	}
	return 0;
}

static int relocate_relr(struct relink *r)
{
	struct image *n = &r->new;
	uint64_t at = dyn_address(n, DT_RELR), len = dyn_value(n, DT_RELRSZ) / 8, where = 0, e, v;
	if (!at || len > RELS_MAX)
		return at ? -ENOEXEC : 0;
	if (r->reuse && r->whole_state) /* these are its own addresses, and it has not moved */
		return 0;
	for (uint64_t i = 0; i < len; i++) {
		if (guest_read(&e, at + i * 8, 8))
			return -ENOEXEC;
		uint64_t first = e & 1 ? where : n->base + e, bits = e & 1 ? e >> 1 : 1;
		for (unsigned b = 0; b < 63 && bits; b++, bits >>= 1)
			if (bits & 1) {
				uint64_t a = first + b * 8;
				if (r->reuse && (a < n->data || a >= n->data_end))
					continue;
				if (guest_read(&v, a, 8) || new_word(r, a, v + n->base))
					return -ENOEXEC;
			}
		where = e & 1 ? where + 63 * 8 : first + 8;
	}
	return 0;
}

static int relocate(struct relink *r)
{
	int e = relocate_relr(r), bad = 0;
	if (!e)
		e = copy_lazy(r);
	for (size_t k = 0; k < r->new.nr_rel && !e; k++) {
		uint64_t v[2], at = r->new.base + r->new.rel[k].r_offset;
		unsigned nr;
		int x = relocated(r, &r->new.rel[k], v, &nr);
		if (x && r->said < SAID_MAX) { /* go on, for the whole list */
			bad = x;
			continue;
		}
		e = x ? x : nr ? new_word(r, at, v[0]) : 0;
	}
	return e ? e : bad;
}

/* The counterpart in the new version of what another object has taken from the old one; 0 = none. */
static uint64_t moved(const struct relink *r, const struct image *user, const Elf64_Rela *rel, uint64_t value)
{
	uint32_t s = ELF64_R_SYM(rel->r_info);
	if (!s || s >= user->nr_sym)
		return 0;
	const char *name = str_at(user, user->sym[s].st_name), *ver = version_name(user, s);
	if (ELF64_ST_TYPE(user->sym[s].st_info) == STT_TLS)
		return 0;
	uint32_t n = find_symbol(&r->new, name, ver);
	if (!n)
		return 0;
	/* Any version of it that has ever been: an image that nobody uses is bound to what was current. */
	for (unsigned i = 0; i < r->nr_img; i++) {
		const struct image *m = &r->img[i];
		if (m != r->old && i < r->nr_listed)
			continue;
		if (m != r->old && (!m->soname || strcmp(m->soname, r->new.soname)))
			continue;
		uint32_t o = inside(m, value) ? find_symbol(m, name, ver) : 0;
		if (o && (address_of(m, o) == value || ELF64_ST_TYPE(m->sym[o].st_info) == STT_GNU_IFUNC))
			return exported(r, n);
	}
	return 0;
}

/* The exported function at an address of the old version, in the new one. */
static uint64_t translate_function(const struct relink *r, uint64_t v)
{
	const struct image *o = r->old;
	for (uint32_t i = 1; i < o->nr_sym; i++)
		if (is_defined(&o->sym[i]) && address_of(o, i) == v) {
			uint32_t k = find_symbol(&r->new, str_at(o, o->sym[i].st_name), version_name(o, i));
			if (k && exported(r, k))
				return exported(r, k);
		}
	return v;
}

/* Pointers that the program has told of (kylinx.h). */
static int registered(struct relink *r)
{
	uint64_t n, at, v;
	for (unsigned i = 0; i < r->nr_listed; i++) {
		uint32_t s = find_symbol(&r->img[i], "kylinx_pointers", "");
		if (!s || guest_read(&n, address_of(&r->img[i], s), 8) || n > 512)
			continue;
		for (uint64_t k = 0; k < n; k++) {
			if (guest_read(&at, address_of(&r->img[i], s) + 8 + k * 8, 8) || at % 8 ||
			    guest_read(&v, at, 8) || !inside(r->old, v))
				continue;
			if (word_add(r, at, v, translate_function(r, v)))
				return -ENOMEM;
		}
	}
	return 0;
}

static int bindings(struct relink *r)
{
	for (unsigned i = 0; i < r->nr_img; i++) {
		const struct image *m = &r->img[i];
		if (m->start == r->new.start)
			continue;
		for (size_t k = 0; k < m->nr_rel; k++) {
			const Elf64_Rela *rel = &m->rel[k];
			uint64_t at = m->base + rel->r_offset, now;
			if (!binds(ELF64_R_TYPE(rel->r_info)) || at % 8 || guest_read(&now, at, 8))
				continue;
			uint64_t add = ELF64_R_TYPE(rel->r_info) == R_X86_64_64 ? (uint64_t)rel->r_addend : 0;
			uint64_t new = moved(r, m, rel, now - add);
			/* ld.so would look up what is not bound yet in the new version's tables. */
			if (!new &&m == r->old && ELF64_R_TYPE(rel->r_info) == R_X86_64_JUMP_SLOT &&inside(m, now) &&
			    ELF64_R_SYM(rel->r_info) < m->nr_sym)
				resolve(r, m, ELF64_R_SYM(rel->r_info), R_X86_64_JUMP_SLOT, &new);
			if (new &&word_add(r, at, now, new + add))
				return -ENOMEM;
		}
	}
	if (registered(r))
		return -ENOMEM;
	r->nr_object_words = r->nr_word;
	return 0;
}

/* ---- state ------------------------------------------------------------------------------------------------------------- */

static uint64_t data_len(const struct image *m) { return m->data_end > m->data ? m->data_end - m->data : 0; }

/*
 * Are the variables of both versions laid out alike? As far as can be seen without symbols: sizes of what is
 * initialised and what is not, alignment, places of relocated words, places of the variables that have names.
 */
static bool same_layout(const struct image *o, const struct image *n)
{
	if (dyn_entry(o, DT_RELR) || dyn_entry(n, DT_RELR) || data_len(o) != data_len(n) ||
	    o->data % 64 != n->data % 64 || o->data_file_end - o->data != n->data_file_end - n->data)
		return false;
	for (uint32_t i = 1; i < o->nr_sym; i++) {
		uint64_t a = o->base + o->sym[i].st_value;
		if (!is_defined(&o->sym[i]) || type_of(&o->sym[i]) != STT_OBJECT || a < o->data || a >= o->data_end)
			continue;
		uint32_t k = find_symbol(n, str_at(o, o->sym[i].st_name), version_name(o, i));
		if (!k || address_of(n, k) - n->data != a - o->data)
			return false;
	}
	size_t i = 0, k = 0;
	for (;; i++, k++) { /* both lists are in the linker's order; compare those of the data alone */
		while (i < o->nr_rel &&
		       (o->base + o->rel[i].r_offset < o->data || o->base + o->rel[i].r_offset >= o->data_end))
			i++;
		while (k < n->nr_rel &&
		       (n->base + n->rel[k].r_offset < n->data || n->base + n->rel[k].r_offset >= n->data_end))
			k++;
		if (i == o->nr_rel || k == n->nr_rel)
			break;
		if (o->base + o->rel[i].r_offset - o->data != n->base + n->rel[k].r_offset - n->data)
			return false;
	}
	return i == o->nr_rel && k == n->nr_rel;
}

/* Bytes of the old version's own data that no exported object covers. */
static uint64_t unnamed_data(const struct image *o)
{
	uint64_t named = 0, len = data_len(o);
	for (uint32_t i = 1; i < o->nr_sym; i++) {
		uint64_t a = o->base + o->sym[i].st_value;
		if (is_defined(&o->sym[i]) && type_of(&o->sym[i]) == STT_OBJECT && a >= o->data && a < o->data_end)
			named += o->sym[i].st_size;
	}
	/* What every library has from the compiler: __dso_handle, a byte that tells whether it is being unloaded. */
	return len > named + DATA_OF_COMPILER ? len - named : 0;
}

static uint64_t hook(const struct image *m, const char *name)
{
	uint32_t s = find_symbol(m, name, "");
	return s && type_of(&m->sym[s]) == STT_FUNC ? address_of(m, s) : 0;
}

struct relink_hooks relink_hooks(const struct relink *r)
{
	return (struct relink_hooks){ hook(r->old, "kylinx_update_prepare"), hook(r->old, "kylinx_update_abort"),
				      hook(&r->new, "kylinx_update_commit") };
}

/* The data of a version that was in use before, as it is in its file. */
static int fresh_data(struct relink *r)
{
	static const uint8_t none[PAGE];
	struct image *n = &r->new;
	for (uint64_t a = n->data; a < n->data_end;) {
		uint64_t end = (a & -PAGE) + PAGE, off = 0;
		end = end < n->data_end ? end : n->data_end;
		if (a < n->data_file_end && end > n->data_file_end)
			end = n->data_file_end;
		for (unsigned i = 0; i < n->nr_ph; i++)
			if (n->ph[i].p_type == PT_LOAD && a - n->base >= n->ph[i].p_vaddr &&
			    a - n->base - n->ph[i].p_vaddr < n->ph[i].p_filesz)
				off = n->ph[i].p_offset + (a - n->base - n->ph[i].p_vaddr);
		bool file = a < n->data_file_end;
		if (file && (!off || off + (end - a) > r->copy_len))
			return -ENOEXEC;
		if (guest_write(a, file ? (const uint8_t *)r->copy + off : none, end - a))
			return -EFAULT;
		a = end;
	}
	return 0;
}

/* DT_INIT, DT_INIT_ARRAY. Where all variables are carried over, what they did once is carried over with them. */
static int plan_constructors(struct relink *r)
{
	const struct image *n = &r->new;
	uint64_t array = dyn_address(n, DT_INIT_ARRAY), len = dyn_value(n, DT_INIT_ARRAYSZ) / 8, fn, none = 0;
	unsigned k;
	int e = 0;
	if (r->whole_state)
		return 0;
	if (dyn_entry(n, DT_INIT))
		e = call_add(r, dyn_address(n, DT_INIT), &k);
	for (uint64_t i = 0; array && i < len && i < CALLS_MAX && !e; i++)
		e = guest_read(&fn, array + i * 8, 8) ? -ENOEXEC : fn && fn + 1 ? call_add(r, fn, &k) : 0;
	/* argc, argv, envp: empty. */
	if (!e && r->nr_call && !(none = relink_return_stub()))
		e = -ENOMEM;
	for (k = 0; k < r->nr_call && !e; k++)
		r->call[k].arg[1] = r->call[k].arg[2] = none + 64;
	return e;
}

/* What a relocated word is in a version that has just been loaded. */
static bool initial_value(const struct image *m, size_t k, uint64_t *out)
{
	const Elf64_Rela *rel = &m->rel[k];
	if (ELF64_R_TYPE(rel->r_info) != R_X86_64_RELATIVE)
		return false;
	*out = m->base + (uint64_t)rel->r_addend;
	return true;
}

/* same_layout(): the lists have the same places, in the same order. */
static void pair_relocations(struct relink *r)
{
	const struct image *o = r->old, *n = &r->new;
	for (size_t k = 0; k < o->nr_rel; k++) {
		uint64_t off = o->base + o->rel[k].r_offset - o->data;
		if (off < r->state_len && off % 8 == 0)
			r->pair[off / 8][0] = (uint32_t)k + 1;
	}
	for (size_t k = 0; k < n->nr_rel; k++) {
		uint64_t off = n->base + n->rel[k].r_offset - n->data;
		if (off < r->state_len && off % 8 == 0)
			r->pair[off / 8][1] = (uint32_t)k + 1;
	}
}

static int plan_state(struct relink *r)
{
	const struct image *o = r->old, *n = &r->new;
	r->state_len = data_len(o);
	r->whole_state = same_layout(o, n);
	if (r->state_len && !(r->state = malloc(r->state_len + 8)))
		return -ENOMEM;
	if (!(r->pair = calloc(r->state_len / 8 + 1, sizeof *r->pair)))
		return -ENOMEM;
	if (!(r->stale = malloc(r->state_len / PIECE + 1)))
		return -ENOMEM;
	if (r->whole_state)
		pair_relocations(r);
	struct relink_hooks h = relink_hooks(r);
	if (h.prepare && h.commit) /* they know better */
		r->whole_state = false;
	if (r->whole_state || r->flags & RELINK_RESET || (h.prepare && h.commit))
		return 0;
	if (unnamed_data(o)) {
		say(r,
		    "its own variables are laid out differently (%llu bytes, were %llu) and cannot be carried over "
		    "(give both versions hooks, or --reset starts them anew)",
		    (unsigned long long)data_len(n), (unsigned long long)data_len(o));
		return -EINVAL;
	}
	return 0;
}

/* A word of the old data as the new version has it. */
static uint64_t carry_over(const struct relink *r, size_t i, uint64_t v)
{
	const struct image *o = r->old;
	uint64_t first;
	if (v < o->start || v >= o->end)
		return v;
	if (v >= o->data && v < o->data_end)
		return v - o->data + r->new.data;
	if (r->same_image)
		return v - o->base + r->new.base;
	const uint32_t *p = r->pair[i];
	if (!p[0])
		return v; /* may be a number */
	/* A relocated word that still has its first value gets the new version's. */
	if (p[1] && initial_value(o, p[0] - 1, &first) && v == first && initial_value(&r->new, p[1] - 1, &first))
		return first;
	return translate_function(r, v);
}

/* Carry over what has changed since the last look; all: everything. Where it is noted what is written, only that. */
static int copy_whole_state(struct relink *r, bool all)
{
	uint64_t buf[PIECE / 8];
	for (size_t at = 0; at < r->state_len; at += PIECE) {
		size_t n = r->state_len - at < PIECE ? r->state_len - at : PIECE;
		if (!all && !r->stale[at / PIECE])
			continue;
		r->stale[at / PIECE] = !r->state_noted;
		if (guest_read(buf, r->old->data + at, n))
			return -EFAULT;
		if (!all && !memcmp(buf, r->state + at, n))
			continue;
		memcpy(r->state + at, buf, n);
		for (size_t i = 0; i < n / 8; i++)
			buf[i] = carry_over(r, at / 8 + i, buf[i]);
		if (guest_write(r->new.data + at, buf, n))
			return -EFAULT;
	}
	r->bytes = r->state_len;
	return 0;
}

static int copy_named_state(struct relink *r)
{
	const struct image *o = r->old, *n = &r->new;
	for (uint32_t i = 1; i < o->nr_sym; i++) {
		const Elf64_Sym *s = &o->sym[i];
		uint64_t a = o->base + s->st_value;
		if (!is_defined(s) || type_of(s) != STT_OBJECT || a < o->data || a >= o->data_end ||
		    s->st_size > o->data_end - a)
			continue;
		uint32_t k = find_symbol(n, str_at(o, s->st_name), version_name(o, i));
		if (!k || address_of(n, k) < n->data || n->sym[k].st_size != s->st_size)
			continue;
		if (guest_read(r->state, a, s->st_size) || guest_write(address_of(n, k), r->state, s->st_size))
			return -EFAULT;
		r->bytes += s->st_size;
	}
	return 0;
}

/* ---- ld.so's own records ------------------------------------------------------------------------------------------------- */

static int unknown_loader(struct relink *r, const char *what)
{
	say(r, "this ld.so keeps its records in a way that is not known (%s)", what);
	return -EOPNOTSUPP;
}

/* Find n words in map; exactly one place, or -1. */
static long find_words(const uint64_t *map, size_t words, const uint64_t *want, size_t n)
{
	long at = -1;
	for (size_t i = 1; i + n <= words; i++)
		if (!memcmp(map + i, want, n * 8)) {
			if (at >= 0)
				return -1;
			at = (long)i;
		}
	return at;
}

struct hash_tables {
	uint32_t nbuckets, bits, shift;
	uint64_t ptr[3]; /* filter, buckets, chains less the symbols before them */
};

static int hash_tables(const struct image *m, struct hash_tables *out)
{
	uint64_t at = dyn_address(m, DT_GNU_HASH);
	uint32_t h[4];
	if (guest_read(h, at, sizeof h) || !h[0])
		return -ENOEXEC;
	*out = (struct hash_tables){ h[0], h[2] - 1, h[3], { at + 16, at + 16 + h[2] * 8ull, 0 } };
	out->ptr[2] = out->ptr[1] + h[0] * 4ull - h[1] * 4ull;
	return 0;
}

static const int64_t adjusted_tags[] = { DT_HASH, DT_PLTGOT, DT_STRTAB, DT_SYMTAB,
					 DT_RELA, DT_JMPREL, DT_VERSYM, DT_GNU_HASH };

/* As ld.so leaves it: some addresses absolute. */
static int adjust_dynamic(struct relink *r)
{
	struct image *n = &r->new;
	for (unsigned i = 0; i < n->nr_d; i++)
		for (unsigned k = 0; k < sizeof adjusted_tags / sizeof *adjusted_tags; k++)
			if (n->d[i].d_tag == adjusted_tags[k] && n->d[i].d_un.d_ptr < n->base) {
				n->d[i].d_un.d_ptr += n->base;
				if (guest_write(n->dyn + i * sizeof(Elf64_Dyn), &n->d[i], sizeof(Elf64_Dyn)))
					return unknown_loader(r, "a dynamic section that is read-only");
			}
	return 0;
}

/* struct r_found_version of glibc, for each index of a version. */
struct found_version {
	uint64_t name;
	uint32_t hash;
	int32_t hidden;
	uint64_t file;
};

static bool versions_match(const struct image *o, uint64_t at)
{
	struct found_version f;
	uint64_t str = dyn_address(o, DT_STRTAB);
	unsigned some = 0;
	for (unsigned i = 0; i < o->nr_vers; i++) {
		if (!o->vers[i].hash)
			continue;
		if (guest_read(&f, at + i * sizeof f, sizeof f) || f.hash != o->vers[i].hash ||
		    f.name != str + o->vers[i].name)
			return false;
		some++;
	}
	return some;
}

static int aux_take(struct relink *r, size_t len, uint64_t *out)
{
	if (!r->aux) {
		int64_t a = gmem_mmap(0, UP(len), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (a < 0)
			return (int)a;
		r->aux = (uint64_t)a;
	}
	*out = r->aux;
	r->aux_used = UP(len);
	return 0;
}

static int move_versions(struct relink *r, uint64_t *map, size_t words)
{
	const struct image *o = r->old, *n = &r->new;
	if (!o->nr_vers)
		return 0;
	for (size_t i = 1; i + 1 < words; i++) {
		if (map[i] < KX_USER_MIN || !gva_ok(map[i], 8) || !versions_match(o, map[i]))
			continue;
		uint64_t str = dyn_address(n, DT_STRTAB), at = 0;
		size_t len = n->nr_vers * sizeof(struct found_version);
		int e = aux_take(r, len, &at);
		if (e)
			return e;
		for (unsigned k = 0; k < n->nr_vers; k++) {
			const struct version *v = &n->vers[k];
			struct found_version f = { v->hash ? str + v->name : 0, v->hash, v->hidden,
						   v->file ? str + v->file : 0 };
			if (guest_write(at + k * sizeof f, &f, sizeof f))
				return -EFAULT;
		}
		map[i] = at;
		/* l_nversions is its neighbour. */
		for (size_t k = i - 1; k <= i + 1; k += 2)
			if ((uint32_t)map[k] == o->nr_vers)
				map[k] = (map[k] & ~0xffffffffull) | n->nr_vers;
		return 0;
	}
	return unknown_loader(r, "l_versions");
}

static int move_map(struct relink *r)
{
	const struct image *o = r->old, *n = &r->new;
	uint64_t map[MAP_BYTES / 8], was[MAP_BYTES / 8];
	const size_t words = MAP_BYTES / 8;
	struct hash_tables ho, hn;
	if (guest_read(map, o->map, sizeof map))
		return -EFAULT;
	memcpy(was, map, sizeof was);
	find_tls(r, was, words);
	if (o->tls && !r->tls_known)
		return unknown_loader(r, "l_tls_modid");
	if (hash_tables(o, &ho) || hash_tables(n, &hn))
		return -ENOEXEC;
	long at = find_words(was, words, ho.ptr, 3);
	/* Before them three numbers of 32 bits, with or without a gap behind. */
	uint32_t old3[3] = { ho.nbuckets, ho.bits, ho.shift }, new3[3] = { hn.nbuckets, hn.bits, hn.shift };
	uint32_t *three = at < 2 ? NULL : (uint32_t *)(map + at) - 3;
	if (three && memcmp(three, old3, sizeof old3))
		three--;
	if (!three || memcmp(three, old3, sizeof old3))
		return unknown_loader(r, "l_gnu_buckets");
	memcpy(three, new3, sizeof new3);
	memcpy(map + at, hn.ptr, sizeof hn.ptr);
	/* l_info: pointers to the entries of the dynamic section, by tag. */
	unsigned infos = 0;
	uint64_t info = 0;
	for (size_t i = 3; i < words; i++) {
		uint64_t off = was[i] - o->dyn;
		if (off >= o->nr_d * sizeof(Elf64_Dyn) || off % sizeof(Elf64_Dyn))
			continue;
		int64_t tag = o->d[off / sizeof(Elf64_Dyn)].d_tag;
		const Elf64_Dyn *d = dyn_entry(n, tag);
		map[i] = d ? n->dyn + (uint64_t)(d - n->d) * sizeof(Elf64_Dyn) : 0;
		infos++;
		if (tag == DT_STRTAB)
			info = i - DT_STRTAB;
	}
	if (!info || infos < 4 || was[info + DT_SYMTAB] - o->dyn >= o->nr_d * sizeof(Elf64_Dyn))
		return unknown_loader(r, "l_info");
	for (unsigned i = 0; i < n->nr_d; i++) { /* what only the new version has */
		int64_t tag = n->d[i].d_tag;
		if (tag > 0 && tag < 34 && tag != DT_NEEDED && !map[info + (size_t)tag])
			map[info + (size_t)tag] = n->dyn + i * sizeof(Elf64_Dyn);
	}
	uint64_t span[2] = { o->start, 0 };
	at = -1;
	for (size_t i = 3; i + 3 <= words; i++) /* l_map_start, l_map_end, l_text_end */
		if (was[i] == span[0] && was[i + 1] > o->start && was[i + 1] <= o->end && was[i + 1] > o->end - PAGE &&
		    was[i + 2] > o->start && was[i + 2] <= o->end)
			at = (long)i;
	if (at < 0)
		return unknown_loader(r, "l_map_start");
	map[at] = n->start;
	uint64_t last = 0, text = 0;
	for (unsigned i = 0; i < n->nr_ph; i++)
		if (n->ph[i].p_type == PT_LOAD) {
			last = n->base + n->ph[i].p_vaddr + n->ph[i].p_memsz;
			if (n->ph[i].p_flags & PF_X)
				text = last;
		}
	map[at + 1] = last;
	map[at + 2] = text;
	for (size_t i = 3; i + 3 <= words; i++) {
		if (was[i] == o->phdr) {
			map[i] = n->phdr;
			map[i + 1] = was[i + 1] ? n->base + (was[i + 1] - o->base) : 0;
			if ((was[i + 2] & 0xffff) == o->nr_ph)
				map[i + 2] = (was[i + 2] & ~0xffffffffull) | n->nr_ph |
					     (uint64_t)((was[i + 2] >> 16 & 0xffff) - o->nr_d + n->nr_d) << 16;
		}
		if (o->tls && was[i] == o->base + o->tls->p_vaddr && was[i + 1] == o->tls->p_filesz) {
			map[i] = n->base + n->tls->p_vaddr;
			map[i + 1] = n->tls->p_filesz;
		}
		/* l_relro_addr is relative to l_addr; l_relro_size */
		if (o->relro && n->relro && was[i] == o->relro - o->base && was[i + 1] == o->relro_end - o->relro) {
			map[i] = n->relro - n->base;
			map[i + 1] = n->relro_end - n->relro;
		}
	}
	map[0] = n->base;
	map[2] = n->dyn;
	int e = move_versions(r, map, words);
	for (size_t i = 0; i < words && !e; i++)
		e = word_add(r, o->map + i * 8, was[i], map[i]);
	return e;
}

/* An entry of the table by which unwinders find an object (_dl_find_object). */
struct found_object {
	uint64_t start, end, map, eh_frame;
};
#define OBJECTS_MAX 1024

static bool is_entry(const struct relink *r, const struct found_object *f)
{
	for (unsigned i = 0; i < r->nr_listed; i++)
		if (r->img[i].map == f->map && f->start >= r->img[i].start && f->end <= r->img[i].end &&
		    f->start < f->end)
			return true;
	return false;
}

static int by_start(const void *a, const void *b)
{
	const struct found_object *x = a, *y = b;
	return x->start < y->start ? -1 : x->start > y->start;
}

static uint64_t last_byte(const struct image *m)
{
	uint64_t last = 0;
	for (unsigned i = 0; i < m->nr_ph; i++)
		if (m->ph[i].p_type == PT_LOAD)
			last = m->base + m->ph[i].p_vaddr + m->ph[i].p_memsz;
	return last;
}

/* The table at `at`, when it is one that has the old version: 1; it is sorted by address. */
static int move_objects(struct relink *r, uint64_t at)
{
	struct found_object *f = malloc(OBJECTS_MAX * sizeof *f), *was;
	size_t n = 0, mine = OBJECTS_MAX;
	if (!f)
		return -ENOMEM;
	for (; n < OBJECTS_MAX && !guest_read(&f[n], at + n * sizeof *f, sizeof *f) && is_entry(r, &f[n]); n++)
		if (f[n].map == r->old->map)
			mine = n;
	int e = mine < n;
	if (e && (was = malloc(n * sizeof *f))) {
		memcpy(was, f, n * sizeof *f);
		f[mine].start = r->new.start;
		f[mine].end = last_byte(&r->new);
		f[mine].eh_frame = r->new.eh_hdr;
		qsort(f, n, sizeof *f, by_start);
		for (size_t i = 0; i < n * 4 && e > 0; i++)
			if (word_add(r, at + i * 8, ((uint64_t *)was)[i], ((uint64_t *)f)[i]))
				e = -ENOMEM;
		free(was);
	} else if (e) {
		e = -ENOMEM;
	}
	free(f);
	return e;
}

/* ld.so's data has pointers to its tables of objects; libraries that were there at the start are in one of their own. */
static int move_unwind(struct relink *r)
{
	const struct image *ld = r->loader;
	struct found_object f;
	if (!ld)
		return unknown_loader(r, "it is not in its own list");
	uint64_t from = 0, to = 0;
	for (unsigned i = 0; i < ld->nr_ph; i++)
		if (ld->ph[i].p_type == PT_LOAD && ld->ph[i].p_flags & PF_W) {
			from = (ld->base + ld->ph[i].p_vaddr + 7) & ~7ull;
			to = UP(ld->base + ld->ph[i].p_vaddr + ld->ph[i].p_memsz);
		}
	for (uint64_t a = from, p; a + 8 <= to; a += 8) {
		if (guest_read(&p, a, 8) || p < KX_USER_MIN || p % 8)
			continue;
		for (unsigned head = 0; head <= 32; head += 32) {
			if (guest_read(&f, p + head, sizeof f) || !is_entry(r, &f))
				continue;
			int e = move_objects(r, p + head);
			if (e)
				return e < 0 ? e : 0;
		}
	}
	return unknown_loader(r, "its table for unwinders");
}

/* ---- the whole ------------------------------------------------------------------------------------------------------- */

static int by_address(const void *a, const void *b)
{
	const struct word *x = a, *y = b;
	return x->at < y->at ? -1 : x->at > y->at;
}

/* Some words are in pages that are read-only by now. While they are writable to the monitor, the guest's own tables
 * still say read-only. */
static int open_pages(struct relink *r)
{
	qsort(r->word, r->nr_word, sizeof *r->word, by_address);
	r->page = malloc((r->nr_word + 1) * sizeof *r->page);
	if (!r->page)
		return -ENOMEM;
	for (size_t i = 0; i < r->nr_word; i++) {
		uint64_t page = DOWN(r->word[i].at);
		struct gmem_region g;
		if (i && page == DOWN(r->word[i - 1].at))
			continue;
		if (!gmem_query(page, &g) || g.start > page || (g.flags & (GMEM_TRAMP | GMEM_TEXT)) ||
		    (g.flags & MAP_TYPE) != MAP_PRIVATE || g.prot & PROT_EXEC)
			return -EFAULT;
		if (g.prot & PROT_WRITE)
			continue;
		if (mprotect(gva_ptr(page), PAGE, PROT_READ | PROT_WRITE))
			return -errno;
		r->page[r->nr_page++] = page;
	}
	/* A copy of each page of its own, now and not when everybody waits. Where that fails, so will the write. */
	for (size_t i = 0; i < r->nr_word; i++)
		if (!i || DOWN(r->word[i].at) != DOWN(r->word[i - 1].at))
			HC6(SYS_madvise, gva_ptr(DOWN(r->word[i].at)), PAGE, POPULATE_WRITE, 0, 0, 0);
	return 0;
}

static void close_pages(struct relink *r)
{
	for (size_t i = 0; i < r->nr_page; i++) {
		struct gmem_region g;
		if (gmem_query(r->page[i], &g) && g.start <= r->page[i] && !(g.prot & PROT_WRITE))
			mprotect(gva_ptr(r->page[i]), PAGE, g.prot == PROT_NONE ? PROT_NONE : PROT_READ);
	}
	r->nr_page = 0;
}

static int find_old(struct relink *r)
{
	for (unsigned i = 1; i < r->nr_listed; i++)
		if (r->img[i].soname && !strcmp(r->img[i].soname, r->new.soname))
			r->old = &r->img[i];
	if (!r->old) {
		say(r, "%s is not loaded", r->new.soname);
		return -ENOENT;
	}
	if (!r->old->adjusted)
		return unknown_loader(r, "not glibc's");
	if (r->old == r->loader || find_symbol(r->old, "__libc_start_main", "") ||
	    find_symbol(r->old, "__libc_start_main", "GLIBC_2.34")) {
		say(r, "%s cannot be replaced: it is what all threads stand in", r->new.soname);
		return -EOPNOTSUPP;
	}
	return 0;
}

int relink_prepare(int fd, unsigned flags, relink_say_fn fn, void *arg, struct relink **out)
{
	struct relink *r = calloc(1, sizeof *r);
	if (!r)
		return -ENOMEM;
	r->say = fn;
	r->arg = arg;
	r->flags = flags;
	budget = READ_MAX;
	int e = read_list(r);
	if (e)
		say(r, e == -ENOENT ? "the program has no dynamic linker" : "its list of libraries cannot be read: %s",
		    strerror(-e));
	if (!e)
		e = map_new(r, fd);
	if (!e)
		e = find_old(r);
	if (!e && r->old->base == r->new.base)
		e = -EINVAL;
	if (!e)
		e = compare(r);
	if (!e)
		e = plan_state(r);
	if (!e && !r->reuse)
		e = adjust_dynamic(r);
	if (!e)
		e = move_map(r);
	if (!e)
		e = move_unwind(r);
	if (!e && r->reuse && !r->whole_state)
		e = fresh_data(r);
	if (!e)
		e = relocate(r);
	if (!e)
		e = exported_resolvers(r);
	if (e) {
		if (!r->said)
			say(r, "%s", strerror(-e));
		if (r->said > SAID_MAX)
			r->said = SAID_MAX - 1, say(r, "... and more");
		relink_done(r, false);
		return e;
	}
	*out = r;
	return 0;
}

/* Segments alike, and the same code: then every place in one has its counterpart in the other. */
static bool same_image(const struct relink *r)
{
	const struct image *o = r->old, *n = &r->new;
	uint8_t a[PAGE], b[PAGE];
	if (o->nr_ph != n->nr_ph)
		return false;
	for (unsigned i = 0; i < o->nr_ph; i++) {
		const Elf64_Phdr *p = &o->ph[i], *q = &n->ph[i];
		if (p->p_type != q->p_type || p->p_vaddr != q->p_vaddr || p->p_memsz != q->p_memsz ||
		    p->p_flags != q->p_flags)
			return false;
		for (uint64_t k = 0; p->p_type == PT_LOAD && p->p_flags & PF_X && k < p->p_memsz; k += PAGE) {
			uint64_t len = p->p_memsz - k < PAGE ? p->p_memsz - k : PAGE;
			if (guest_read(a, o->base + p->p_vaddr + k, len) ||
			    guest_read(b, n->base + p->p_vaddr + k, len) || memcmp(a, b, len))
				return false;
		}
	}
	return true;
}

static int plan_sweep(struct relink *r);

int relink_bind(struct relink *r)
{
	const struct image *n = &r->new;
	int e = 0;
	if (!r->reuse && n->relro_end > n->relro && DOWN(n->relro_end) > DOWN(n->relro))
		e = gmem_mprotect(DOWN(n->relro), DOWN(n->relro_end) - DOWN(n->relro), PROT_READ);
	if (!e)
		e = bindings(r);
	if (!e)
		e = open_pages(r);
	/* Most of it now, so that less is left for the moment. */
	if (!e && r->whole_state) {
		r->same_image = same_image(r);
		e = copy_whole_state(r, true);
	}
	if (!e)
		e = plan_sweep(r);
	if (e)
		say(r, "%s", strerror(-e));
	return e;
}

struct relink_call *relink_calls(struct relink *r, unsigned *nr)
{
	int e = 0;
	*nr = 0;
	if (r->batch++ == 0 && (*nr = r->nr_call))
		return r->call;
	if (r->batch <= 2 && !r->done) {
		for (unsigned i = 0; i < r->nr_pending && !e; i++)
			e = new_word(r, r->pending[i].at, r->call[r->pending[i].call].result + r->pending[i].add);
		r->done = r->call;
		r->nr_done = r->nr_call;
		r->call = NULL;
		r->nr_call = 0;
		r->batch = 2;
		if (!e)
			e = plan_constructors(r);
		*nr = e ? 0 : r->nr_call;
	}
	if (e)
		say(r, "%s", strerror(-e));
	static struct relink_call none;
	return e ? NULL : *nr ? r->call : &none;
}

uint64_t relink_return_stub(void)
{
	/* mov $KX_PORT_RETURN,%dx; out %eax,(%dx); ud2 */
	static const uint8_t code[] = { 0x66, 0xba, KX_PORT_RETURN & 0xff, KX_PORT_RETURN >> 8, 0xef, 0x0f, 0x0b };
	static uint64_t at;
	uint8_t now[sizeof code];
	/* The program may have unmapped or changed it. */
	if (at && !guest_read(now, at, sizeof now) && !memcmp(now, code, sizeof code))
		return at;
	int64_t a = gmem_code(code, sizeof code);
	return at = a < 0 ? 0 : (uint64_t)a;
}

bool relink_is_runtime(const struct relink *r, uint64_t pc)
{
	for (unsigned i = 0; i < r->nr_listed; i++)
		if (inside(&r->img[i], pc))
			return &r->img[i] == r->loader || find_symbol(&r->img[i], "malloc", "") ||
			       find_symbol(&r->img[i], "malloc", "GLIBC_2.2.5");
	return false;
}

enum relink_place relink_where(const struct relink *r, uint64_t pc)
{
	if (inside(r->old, pc))
		return RELINK_OLD;
	return r->loader && inside(r->loader, pc) ? RELINK_LOADER : RELINK_ELSEWHERE;
}

uint64_t relink_unwind_table(uint64_t pc, void *arg)
{
	const struct relink *r = arg;
	for (unsigned i = 0; i < r->nr_img; i++)
		if (inside(&r->img[i], pc))
			return r->img[i].eh_hdr;
	return 0;
}

void relink_name(const struct relink *r, uint64_t pc, char *out, unsigned size)
{
	const struct image *m = NULL;
	uint32_t best = 0;
	for (unsigned i = 0; i < r->nr_img; i++)
		if (inside(&r->img[i], pc))
			m = &r->img[i];
	for (uint32_t i = 1; m && i < m->nr_sym; i++)
		if (is_defined(&m->sym[i]) && type_of(&m->sym[i]) == STT_FUNC && address_of(m, i) <= pc &&
		    (!best || m->sym[i].st_value > m->sym[best].st_value))
			best = i;
	if (best && pc - address_of(m, best) < m->sym[best].st_size)
		snprintf(out, size, "%s", str_at(m, m->sym[best].st_name));
	else if (m)
		snprintf(out, size, "%s+%#llx", m->soname ? m->soname : "the program",
			 (unsigned long long)(pc - m->base));
	else
		snprintf(out, size, "%#llx", (unsigned long long)pc);
}

static bool list_unchanged(const struct relink *r)
{
	struct debug d;
	struct map_head h;
	if (guest_read(&d, r->r_debug, sizeof d) || d.state)
		return false;
	uint64_t at = d.map;
	unsigned i = 0;
	for (; at && i < IMAGES_MAX; at = h.next) {
		if (guest_read(&h, at, sizeof h))
			return false;
		/* Objects that could not be read at first (the vDSO may be one) are not in our list. */
		if (i < r->nr_listed && r->img[i].map == at) {
			if (r->img[i].base != h.addr || r->img[i].dyn != h.ld)
				return false;
			i++;
		}
	}
	return i == r->nr_listed;
}

/* ---- pointers in the program's memory ---------------------------------------------------------------------------------- */

static bool of_a_version(const struct relink *r, uint64_t at)
{
	if (inside(r->old, at) || inside(&r->new, at))
		return true;
	for (unsigned i = r->nr_listed; i < r->nr_img; i++)
		if (inside(&r->img[i], at))
			return true;
	return false;
}

uint64_t relink_register(const struct relink *r, uint64_t v)
{
	const struct image *o = r->old;
	if (!inside(o, v))
		return v;
	if (r->whole_state && r->same_image)
		return v - o->base + r->new.base;
	if (r->whole_state && v >= o->data && v < o->data_end)
		return v - o->data + r->new.data;
	return translate_function(r, v);
}

/*
 * The program's memory holds pointers to the library's variables (a list that ends in one of them), and to its
 * functions.
 */
static uint64_t pointer_moved(const void *arg, uint64_t v) { return relink_register(arg, v); }
static bool pointer_is_ours(const void *arg, uint64_t at) { return of_a_version(arg, at); }

static void state_written(const void *arg, uint64_t start, uint64_t end)
{
	const struct relink *r = arg;
	uint64_t from = r->old->data, to = from + r->state_len;
	start = start > from ? start : from;
	end = end < to ? end : to;
	if (start < end)
		memset(r->stale + (start - from) / PIECE, 1, (end - 1 - from) / PIECE - (start - from) / PIECE + 1);
}

static int plan_sweep(struct relink *r)
{
	struct sweep_of of = { r->old->start, r->old->end, pointer_moved, pointer_is_ours, state_written, r };
	if (!r->whole_state || data_len(r->old) <= DATA_OF_COMPILER)
		return 0;
	r->sweep = sweep_new(&of);
	return r->sweep ? 0 : -ENOMEM;
}

bool relink_looks(const struct relink *r) { return r->sweep; }
int relink_note(struct relink *r) { return sweep_track(r->sweep); }

void relink_ahead(struct relink *r)
{
	memset(r->stale, 1, r->state_len / PIECE + 1);
	r->state_noted = true;
	copy_whole_state(r, false);
	sweep_ahead(r->sweep);
}

size_t relink_again(struct relink *r)
{
	size_t n = sweep_again(r->sweep);
	copy_whole_state(r, false);
	return n;
}

static void undo(const struct relink *r, size_t n)
{
	while (n--)
		guest_write(r->word[n].at, &r->word[n].old, 8);
}

int relink_apply(struct relink *r)
{
	uint64_t now;
	r->changed = 0;
	if (!list_unchanged(r))
		return -EAGAIN;
	for (size_t i = 0; i < r->nr_word; i++)
		if (guest_read(&now, r->word[i].at, 8) || now != r->word[i].old) {
			r->changed = r->word[i].at;
			return -EAGAIN;
		}
	r->bytes = 0;
	int e = r->sweep ? sweep_apply(r->sweep) : 0;
	bool swept = !e && r->sweep;
	if (swept && !sweep_knew(r->sweep))
		memset(r->stale, 1, r->state_len / PIECE + 1);
	if (!e)
		e = r->whole_state ? copy_whole_state(r, false) : copy_named_state(r);
	for (size_t i = 0; i < r->nr_word && !e; i++)
		if ((e = guest_write(r->word[i].at, &r->word[i].new, 8)))
			undo(r, i);
	if (e && swept)
		sweep_undo(r->sweep);
	return e;
}

static struct retired *take_current(uint64_t base)
{
	for (struct retired **p = &all_current; *p; p = &(*p)->next)
		if ((*p)->base == base) {
			struct retired *t = *p;
			*p = t->next;
			return t;
		}
	return NULL;
}

static void keep_versions(struct relink *r)
{
	struct retired *old = take_current(r->old->base), *new = r->reuse;
	if (!old && (old = calloc(1, sizeof *old)))
		*old = (struct retired){
			.base = r->old->base, .dyn = r->old->dyn, .start = r->old->start, .end = r->old->end
		};
	if (old) {
		old->next = all_retired;
		all_retired = old;
	}
	if (new) {
		for (struct retired **p = &all_retired; *p; p = &(*p)->next)
			if (*p == new) {
				*p = new->next;
				break;
			}
	} else if ((new = calloc(1, sizeof *new))) {
		*new = (struct retired){ .base = r->new.base,
					 .dyn = r->new.dyn,
					 .start = r->new.start,
					 .end = r->new.end,
					 .copy = r->copy,
					 .copy_len = r->copy_len };
		r->copy = NULL;
	}
	if (new) {
		if (new->aux && r->aux)
			gmem_munmap(new->aux, PAGE);
		new->aux = r->aux;
		new->next = all_current;
		all_current = new;
	}
}

void relink_done(struct relink *r, bool kept)
{
	close_pages(r);
	if (kept) {
		keep_versions(r);
	} else {
		if (!r->reuse && r->new.start)
			gmem_munmap(r->new.start, r->new.end - r->new.start);
		if (r->aux)
			gmem_munmap(r->aux, r->aux_used);
	}
	for (unsigned i = 0; i < r->nr_img; i++)
		image_free(&r->img[i]);
	image_free(&r->new);
	free(r->img);
	free(r->word);
	free(r->page);
	free(r->state);
	free(r->stale);
	free(r->pair);
	sweep_free(r->sweep);
	free(r->call);
	free(r->done);
	free(r->pending);
	free(r->copy);
	free(r);
}

uint64_t relink_changed(const struct relink *r) { return r->changed; }

const char *relink_soname(const struct relink *r) { return r->new.soname; }

void relink_counts(const struct relink *r, unsigned *words, unsigned *bytes, unsigned *versions)
{
	*words = (unsigned)r->nr_object_words;
	*bytes = (unsigned)r->bytes;
	*versions = 1;
	for (struct retired *t = all_retired; t; t = t->next)
		++*versions;
}
