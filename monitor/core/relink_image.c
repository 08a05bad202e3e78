/* SPDX-License-Identifier: Apache-2.0 */
#include "relink_priv.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SYMS_MAX (1u << 20)
#define STR_MAX (64u << 20)
#define VERS_MAX 4096
#define SPACES_MAX 64

/* ---- reading an object --------------------------------------------------------------------------------------------- */

void image_free(struct image *m)
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

static uint64_t print_add(uint64_t h, const void *bytes, size_t len)
{
	const uint8_t *p = bytes;
	for (size_t i = 0; i < len; i++)
		h = (h ^ p[i]) * 0x100000001b3;
	return h;
}

uint64_t image_print(const struct image *m)
{
	uint64_t h = print_add(0xcbf29ce484222325, m->ph, m->nr_ph * sizeof *m->ph);
	h = print_add(h, m->sym, m->nr_sym * sizeof *m->sym);
	return print_add(h, m->str, m->str_size);
}

static uint64_t budget; /* update.c serves one at a time */
static bool spent;

void image_budget(uint64_t bytes)
{
	budget = bytes;
	spent = false;
}

static bool pay(size_t len)
{
	spent |= len > budget;
	budget -= spent ? budget : len;
	return !spent;
}

static int copy_in(void *out, uint64_t gva, size_t len)
{
	if (!pay(len))
		return -ENOMEM;
	void *p = malloc(len ? len : 1);
	if (!p)
		return -ENOMEM;
	if (guest_read(p, gva, len)) {
		free(p);
		return -EFAULT;
	}
	*(void **)out = p;
	return 0;
}

/* A piece of a list that the guest has linked, or of a table without an end that is known. */
static bool take(void *out, uint64_t gva, size_t len) { return pay(len) && !guest_read(out, gva, len); }

static uint32_t count_gnu_hash(uint64_t at)
{
	uint32_t h[4], max = 0;
	if (guest_read(h, at, sizeof h) || h[0] > SYMS_MAX || h[2] > SYMS_MAX)
		return 0;
	uint64_t buckets = at + 16 + h[2] * 8ull, chain = buckets + h[0] * 4ull;
	for (uint32_t i = 0, b; i < h[0]; i++) {
		if (!take(&b, buckets + i * 4ull, 4))
			return 0;
		max = b > max ? b : max;
	}
	if (max < h[1]) /* nothing defined: only those before the hashed ones */
		return h[1] < SYMS_MAX ? h[1] : 0;
	for (uint32_t v; max < SYMS_MAX; max++) {
		if (!take(&v, chain + (max - h[1]) * 4ull, 4))
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
		if (!take(&vd, at, sizeof vd) || !take(&va, at + vd.vd_aux, sizeof va))
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
		if (!take(&vn, at, sizeof vn))
			break;
		uint64_t a = at + vn.vn_aux;
		for (unsigned k = 0; k < vn.vn_cnt && k < VERS_MAX; k++, a += na.vna_next) {
			if (!take(&na, a, sizeof na))
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
	if (!pay((an + bn) * sizeof *m->rel))
		return -ENOMEM;
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
		if (p->p_type == PT_LOAD && p->p_memsz) {
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

/* What the dynamic section leads to; the program headers are there. */
static int read_dynamic(struct image *m)
{
	const uint64_t base = m->base, dyn = m->dyn;
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
	r = copy_in(&m->str, dyn_address(m, DT_STRTAB), m->str_size);
	if (!r)
		r = copy_in(&m->sym, dyn_address(m, DT_SYMTAB), m->nr_sym * sizeof *m->sym);
	if (!r && dyn_entry(m, DT_VERSYM))
		r = copy_in(&m->ver, dyn_address(m, DT_VERSYM), m->nr_sym * 2ull);
	if (!r && !(m->vers = calloc(VERS_MAX, sizeof *m->vers)))
		r = -ENOMEM;
	if (r)
		return r;
	m->str[m->str_size - 1] = 0;
	read_versions(m);
	if (dyn_entry(m, DT_SONAME))
		m->soname = str_at(m, dyn_value(m, DT_SONAME));
	for (unsigned i = 0; i < m->nr_d && m->nr_needed < NEEDED_MAX; i++)
		if (m->d[i].d_tag == DT_NEEDED)
			m->needed[m->nr_needed++] = (uint32_t)m->d[i].d_un.d_val;
	return spent ? -ENOMEM : build_hash(m);
}

static void begin(struct image *m, uint64_t map, uint64_t base, uint64_t dyn, uint64_t phdr, unsigned nr_ph)
{
	memset(m, 0, sizeof *m);
	m->map = map;
	m->base = base;
	m->dyn = dyn;
	m->phdr = phdr;
	m->nr_ph = nr_ph;
}

int image_read(struct image *m, uint64_t map, uint64_t base, uint64_t dyn, uint64_t phdr, unsigned nr_ph)
{
	Elf64_Ehdr eh;
	begin(m, map, base, dyn, phdr, 0);
	if (!phdr) {
		if (guest_read(&eh, base, sizeof eh) || memcmp(eh.e_ident, ELFMAG, SELFMAG) ||
		    eh.e_phentsize != sizeof(Elf64_Phdr))
			return -ENOEXEC;
		m->phdr = base + eh.e_phoff;
		nr_ph = eh.e_phnum;
	}
	if (nr_ph > PHDRS_MAX || guest_read(m->ph, m->phdr, nr_ph * sizeof *m->ph))
		return -ENOEXEC;
	m->nr_ph = nr_ph;
	return read_dynamic(m);
}

int image_read_mapped(struct image *m, uint64_t base, uint64_t dyn, uint64_t phdr, const Elf64_Phdr *ph, unsigned nr_ph)
{
	begin(m, 0, base, dyn, phdr, nr_ph);
	memcpy(m->ph, ph, nr_ph * sizeof *ph);
	return read_dynamic(m);
}

/* ---- symbols ------------------------------------------------------------------------------------------------------- */

const char *image_version_name(const struct image *m, uint32_t sym)
{
	unsigned v = m->ver ? m->ver[sym] & 0x7fff : 0;
	return v >= 2 && v < m->nr_vers ? str_at(m, m->vers[v].name) : "";
}

/* 0 = none. A version that is asked for must be there; without one, a default version will do. */
uint32_t image_find_symbol(const struct image *m, const char *name, const char *version)
{
	uint32_t other = 0, limit = m->nr_sym;
	for (uint32_t i = m->bucket[hash_of(name) % m->nr_bucket]; i && limit; i = m->chain[i], limit--) {
		if (strcmp(str_at(m, m->sym[i].st_name), name))
			continue;
		const char *v = image_version_name(m, i);
		if (!strcmp(v, version))
			return i;
		if (!*v || (!*version && !(m->ver[i] & 0x8000)))
			other = i;
	}
	return other;
}

/* ---- what is loaded -------------------------------------------------------------------------------------------------- */

static uint64_t auxv(uint64_t type)
{
	const uint64_t *a = (const uint64_t *)pvm.auxv;
	for (unsigned i = 0; i + 1 < pvm.auxv_len / 8; i += 2)
		if (a[i] == type)
			return a[i + 1];
	return 0;
}

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

/* There is room for it. */
static int image_add(struct relink *r, uint64_t map, uint64_t base, uint64_t dyn, bool program)
{
	struct image *p = r->img;
	int e = image_read(&p[r->nr_img], map, base, dyn, program ? auxv(AT_PHDR) : 0,
			   program ? (unsigned)auxv(AT_PHNUM) : 0);
	if (e == -ENOEXEC || e == -EFAULT) { /* nothing that others could be bound to */
		image_free(&p[r->nr_img]);
		return e;
	}
	r->nr_img++;
	return e;
}

/* The list as it is now, with those that can't be read. */
static int list_copy(struct relink *r)
{
	struct debug d;
	struct map_head h;
	if (find_debug(r) || guest_read(&d, r->r_debug, sizeof d))
		return -ENOENT;
	if (d.state)
		return -EAGAIN;
	if (!(r->list = malloc(IMAGES_MAX * sizeof *r->list)))
		return -ENOMEM;
	for (uint64_t at = d.map; at; at = h.next) {
		if (r->nr_list == IMAGES_MAX)
			return -E2BIG;
		if (guest_read(&h, at, sizeof h))
			return -EFAULT;
		r->list[r->nr_list++] = (struct listed){ at, h.addr, h.ld };
	}
	return 0;
}

int relink_read_list(struct relink *r)
{
	unsigned cap = 1;
	int e = list_copy(r);
	if (e)
		return e;
	for (struct retired *t = relink_retired; t; t = t->next)
		cap++;
	/* Images point into themselves: they don't move. */
	if (!(r->img = calloc(r->nr_list + cap, sizeof *r->img)))
		return -ENOMEM;
	for (unsigned i = 0; i < r->nr_list; i++) {
		const struct listed *l = &r->list[i];
		if (l->base == KX_VDSO_BASE) /* nobody is bound to it by name */
			continue;
		e = image_add(r, l->map, l->base, l->dyn, i == 0);
		if (e == -ENOMEM || (i == 0 && e))
			return e;
	}
	r->nr_listed = r->nr_img;
	for (struct retired *t = relink_retired; t; t = t->next)
		if (image_add(r, 0, t->base, t->dyn, false) == -ENOMEM)
			return -ENOMEM;
	uint64_t loader = auxv(AT_BASE);
	for (unsigned i = 0; i < r->nr_listed; i++)
		if (loader && r->img[i].base == loader)
			r->loader = &r->img[i];
	return 0;
}

/* Behind the first namespace's struct r_debug is a pointer to the next one's, where its version tells so. */
unsigned relink_other_spaces(const struct relink *r, const char *soname)
{
	struct {
		struct debug d;
		uint64_t next;
	} e;
	struct map_head h;
	unsigned found = 0, maps = 0;
	uint64_t at = r->r_debug;
	for (unsigned i = 0; i < SPACES_MAX && at && !guest_read(&e, at, sizeof e) && e.d.version >= 2;
	     i++, at = e.next) {
		if (!i)
			continue;
		for (uint64_t m = e.d.map; m && maps < IMAGES_MAX && !guest_read(&h, m, sizeof h); m = h.next, maps++) {
			static struct image img;
			if (h.addr == KX_VDSO_BASE)
				continue;
			found += !image_read(&img, m, h.addr, h.ld, 0, 0) && img.soname && !strcmp(img.soname, soname);
			image_free(&img);
		}
	}
	return found;
}

bool relink_list_unchanged(const struct relink *r)
{
	struct debug d;
	struct map_head h;
	if (guest_read(&d, r->r_debug, sizeof d) || d.state)
		return false;
	uint64_t at = d.map;
	for (unsigned i = 0; i < r->nr_list; i++, at = h.next)
		if (at != r->list[i].map || guest_read(&h, at, sizeof h) || h.addr != r->list[i].base ||
		    h.ld != r->list[i].dyn)
			return false;
	return !at;
}
