/* SPDX-License-Identifier: Apache-2.0 */
#include "relink_priv.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "../../util/sha256.h"
#include "elf.h"

#define FILE_MAX (256ll << 20)

/* ---- the new version in memory ------------------------------------------------------------------------------------- */

static int64_t read_copied(void *ctx, void *buf, size_t len, uint64_t off)
{
	const struct relink *r = ctx;
	size_t n = off < r->copy_len ? r->copy_len - off : 0;
	n = n < len ? n : len;
	memcpy(buf, r->copy + (n ? off : 0), n);
	return (int64_t)n;
}

static int prot_of(uint32_t flags)
{
	return (flags & PF_R ? PROT_READ : 0) | (flags & PF_W ? PROT_WRITE : 0) | (flags & PF_X ? PROT_EXEC : 0);
}

/* As ld.so maps a library. Returns its base or -errno; what has been mapped until then is relink_done()'s. */
static int64_t map_file(struct relink *r, int fd, const struct elf_image *e)
{
	uint64_t span = e->high - e->low;
	int64_t at = gmem_mmap(0, span, prot_of(e->seg[0].flags), MAP_PRIVATE, fd, DOWN(e->seg[0].off)), x = at;
	if (at < 0)
		return at;
	r->mapped = (uint64_t)at;
	r->mapped_len = UP(span);
	uint64_t base = (uint64_t)at - e->low;
	for (uint32_t i = 0; i < e->nr_seg && x >= 0; i++) {
		const struct elf_segment *s = &e->seg[i];
		uint64_t a = base + DOWN(s->vaddr), end = base + s->vaddr + s->memsz,
			 file = base + s->vaddr + s->filesz;
		uint64_t prev = i ? base + UP(e->seg[i - 1].vaddr + e->seg[i - 1].memsz) : a;
		if (a > prev)
			x = gmem_mprotect(prev, a - prev, PROT_NONE);
		if (s->filesz && i && x >= 0)
			x = gmem_mmap(a, file - a, prot_of(s->flags), MAP_PRIVATE | MAP_FIXED, fd, DOWN(s->off));
		if (x >= 0 && s->memsz > s->filesz) {
			uint64_t zero = s->filesz ? UP(file) : a;
			static const uint8_t none[PAGE];
			if (s->filesz && file % PAGE && guest_write(file, none, UP(file) - file))
				x = -ENOEXEC; /* a segment that is not writable */
			if (x >= 0 && UP(end) > zero)
				x = gmem_mmap(zero, UP(end) - zero, prot_of(s->flags),
					      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		}
	}
	return x < 0 ? x : (int64_t)base;
}

static bool same_file(const struct retired *t, const struct relink *r)
{
	return t->has_file && !t->partial && t->file_len == r->copy_len && !memcmp(t->file, r->file, sizeof r->file);
}

/* Not when its names or rights were changed: those of the one that is renamed over it are. */
static bool same_time(const struct relink *r, const struct stat *st)
{
	return r->copy_time.tv_sec == st->st_mtim.tv_sec && r->copy_time.tv_nsec == st->st_mtim.tv_nsec;
}

bool relink_file_is_still(const struct relink *r, int fd)
{
	struct stat st;
	return !fstat(fd, &st) && (size_t)st.st_size == r->copy_len && same_time(r, &st);
}

static int read_copy(struct relink *r, int fd)
{
	struct stat st;
	if (fstat(fd, &st))
		return -errno;
	if (!S_ISREG(st.st_mode) || st.st_size < (off_t)sizeof(Elf64_Ehdr) || st.st_size > FILE_MAX)
		return -ENOEXEC;
	r->copy_time = st.st_mtim;
	r->copy_len = (size_t)st.st_size;
	if (!(r->copy = malloc(r->copy_len)))
		return -ENOMEM;
	for (size_t n = 0; n < r->copy_len;) {
		ssize_t k = pread(fd, r->copy + n, r->copy_len - n, (off_t)n);
		if (k <= 0)
			return k ? -errno : -ESTALE;
		n += (size_t)k;
	}
	sha256(r->file, r->copy, r->copy_len);
	return 0;
}

/* What the file says of itself, as it was copied. */
struct headers {
	struct elf_image e;
	Elf64_Phdr ph[PHDRS_MAX];
	uint64_t dyn;
};

/* Is [at, at + len) in what is mapped of it? */
static bool within(const struct elf_image *e, uint64_t at, uint64_t len)
{
	return at >= e->low && at <= e->high && len <= e->high - at;
}

static int headers_read(struct relink *r, struct headers *h)
{
	struct kx_err err = { 0 };
	const char *why = NULL;
	int x = elf_read(read_copied, r, r->copy_len, &h->e, &err);
	h->dyn = 0;
	if (x || !h->e.dyn || !h->e.nr_seg)
		why = err.code ? err.msg : x ? strerror(-x) : "a program";
	else if (h->e.phnum > PHDRS_MAX)
		why = "too many program headers";
	for (uint32_t i = 0; !why && i < h->e.phnum; i++) {
		Elf64_Phdr *p = &h->ph[i];
		memcpy(p, r->copy + h->e.phoff + i * sizeof *p, sizeof *p);
		if (p->p_type == PT_DYNAMIC)
			h->dyn = p->p_vaddr;
		else if (p->p_type == PT_GNU_RELRO && !within(&h->e, p->p_vaddr, p->p_memsz))
			why = "what it wants to be read-only is not its own";
	}
	if (!why && !h->dyn)
		why = "no dynamic section";
	else if (!why && h->e.low)
		why = "it does not begin at address 0";
	if (why)
		relink_say(r, "not a shared library: %s", why);
	return why ? -ENOEXEC : 0;
}

static int read_new(struct relink *r, const struct headers *h, uint64_t base)
{
	int x = image_read_mapped(&r->new, base, base + h->dyn, base + h->e.phoff, h->ph, h->e.phnum);
	if (!x && !within(&h->e, h->dyn, r->new.nr_d * sizeof(Elf64_Dyn)))
		x = -ENOEXEC;
	return x;
}

int relink_map_new(struct relink *r, int fd)
{
	static struct headers h;
	int x = read_copy(r, fd);
	if (x == -ENOEXEC)
		relink_say(r, "not a shared library: %s", strerror(-x));
	else if (x && x != -ESTALE && !relink_lacks(x))
		relink_say(r, "its file cannot be read: %s", strerror(-x));
	if (!x)
		x = headers_read(r, &h);
	if (x)
		return x;
	for (struct retired *t = relink_retired; t && !r->reuse; t = t->next)
		if (same_file(t, r))
			r->reuse = t;
	int64_t base = r->reuse ? (int64_t)r->reuse->base : map_file(r, fd, &h.e);
	if (base >= 0)
		x = read_new(r, &h, (uint64_t)base);
	if (r->reuse && x != -ENOMEM && (x || image_print(&r->new) != r->reuse->print)) {
		/* The program has put something else there. */
		r->reuse->has_file = false;
		r->reuse = NULL;
		image_free(&r->new);
		base = map_file(r, fd, &h.e);
		if (base >= 0)
			x = read_new(r, &h, (uint64_t)base);
	}
	if (base < 0) {
		if (!relink_lacks((int)base))
			relink_say(r, "cannot be mapped: %s", strerror((int)-base));
		return (int)base;
	}
	if (x && !relink_lacks(x))
		relink_say(r, "its dynamic section cannot be read: %s", strerror(-x));
	else if (!x && (!r->new.soname || !*r->new.soname)) {
		relink_say(r, "has no SONAME");
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

int relink_compare(struct relink *r)
{
	const struct image *o = r->old, *n = &r->new;
	unsigned bad = 0;
	for (uint32_t i = 1; i < o->nr_sym; i++) {
		const Elf64_Sym *a = &o->sym[i];
		if (!is_defined(a) || ELF64_ST_VISIBILITY(a->st_other) == STV_HIDDEN)
			continue;
		const char *name = str_at(o, a->st_name), *ver = image_version_name(o, i), *sep = *ver ? "@" : "";
		if (!strncmp(name, "kylinx_update_", 14))
			continue;
		uint32_t k = image_find_symbol(n, name, ver);
		const Elf64_Sym *b = &n->sym[k];
		if (!k) {
			/* Inline functions and templates come and go with their use. */
			if (ELF64_ST_BIND(a->st_info) == STB_WEAK && !used_by_others(r, name))
				continue;
			relink_say(r, "missing: %s%s%s", name, sep, ver);
			bad++;
		} else if (type_of(a) != type_of(b)) {
			relink_say(r, "changed: %s%s%s was a %s, is a %s", name, sep, ver,
				   type_name(ELF64_ST_TYPE(a->st_info)), type_name(ELF64_ST_TYPE(b->st_info)));
			bad++;
		} else if (type_of(a) != STT_FUNC && a->st_size != b->st_size) {
			relink_say(r, "changed: %s%s%s had %llu bytes, has %llu", name, sep, ver,
				   (unsigned long long)a->st_size, (unsigned long long)b->st_size);
			bad++;
		} else if (type_of(a) == STT_TLS && a->st_value != b->st_value) {
			relink_say(r, "changed: %s%s%s is at another place in thread-local storage", name, sep, ver);
			bad++;
		}
	}
	if (!o->tls != !n->tls ||
	    (o->tls && (o->tls->p_memsz != n->tls->p_memsz || o->tls->p_align != n->tls->p_align))) {
		relink_say(r, "changed: thread-local storage of %llu bytes was %llu",
			   (unsigned long long)(n->tls ? n->tls->p_memsz : 0),
			   (unsigned long long)(o->tls ? o->tls->p_memsz : 0));
		bad++;
	}
	for (unsigned i = 0; i < n->nr_needed; i++)
		if (!is_loaded(r, str_at(n, n->needed[i]))) {
			relink_say(r, "needs a library that is not loaded: %s", str_at(n, n->needed[i]));
			bad++;
		}
	if (dyn_entry(n, DT_TEXTREL) || !dyn_entry(n, DT_GNU_HASH) || !dyn_entry(o, DT_GNU_HASH)) {
		relink_say(r, dyn_entry(n, DT_TEXTREL) ? "relocates its text" : "has no DT_GNU_HASH");
		bad++;
	}
	if (!o->ver != !n->ver) {
		relink_say(r, "changed: symbol versions %s", o->ver ? "are gone" : "are new");
		bad++;
	}
	return bad ? -EINVAL : 0;
}
