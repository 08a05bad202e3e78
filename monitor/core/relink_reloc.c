/* SPDX-License-Identifier: Apache-2.0 */
#include "../../util/grow.h"
#include "relink_priv.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- the words that change ------------------------------------------------------------------------------------------- */

int relink_word_add(struct relink *r, uint64_t at, uint64_t old, uint64_t new)
{
	if (old == new)
		return 0;
	if (!kx_room(r->word, r->cap_word, r->nr_word + 1, 256))
		return -ENOMEM;
	r->word[r->nr_word++] = (struct word){ at, old, new };
	return 0;
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
		    strcmp(str_at(o, o->sym[s].st_name), name) || strcmp(image_version_name(o, s), ver))
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
	const char *name = str_at(n, n->sym[s].st_name), *ver = image_version_name(n, s);
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
			uint32_t k = image_find_symbol(&r->new, name, ver);
			if (!k)
				continue;
			*out = address_of(&r->new, k);
			return ELF64_ST_TYPE(r->new.sym[k].st_info) == STT_GNU_IFUNC ? -EOPNOTSUPP : 0;
		}
		uint32_t k = image_find_symbol(m, name, ver);
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
void relink_find_tls(struct relink *r, const uint64_t *map, size_t words)
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
	uint64_t g[3], to = dyn_address(&r->new, DT_PLTGOT);
	if (!is_lazy(r) || r->reuse || guest_read(g, dyn_address(r->old, DT_PLTGOT), sizeof g))
		return 0;
	if (to < r->new.start || to > r->new.end - sizeof g)
		return -ENOEXEC;
	return guest_write(to + 8, g + 1, 16) ? -ENOEXEC : 0;
}

int relink_call_add(struct relink *r, uint64_t fn, unsigned *out)
{
	struct relink_call *p = realloc(r->call, (r->nr_call + 1) * sizeof *p);
	if (!p)
		return -ENOMEM;
	r->call = p;
	*out = r->nr_call;
	p[r->nr_call++] = (struct relink_call){ .fn = fn };
	return 0;
}

static int resolver_add(struct relink *r, uint64_t resolver, unsigned *out)
{
	for (*out = 0; *out < r->nr_call; ++*out)
		if (r->call[*out].fn == resolver)
			return 0;
	return r->nr_call == CALLS_MAX ? -E2BIG : relink_call_add(r, resolver, out);
}

/* For those that are bound to the old version's. */
int relink_exported_resolvers(struct relink *r)
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
			relink_say(r, "nobody defines: %s", str_at(n, n->sym[s].st_name));
			return e;
		}
		out[0] = v + (type == R_X86_64_64 ? add : 0);
		return 0;
	}
	case R_X86_64_DTPMOD64:
	case R_X86_64_DTPOFF64:
	case R_X86_64_TPOFF64:
		if (!r->tls_known || (s && !is_defined(&n->sym[s]))) {
			relink_say(r, "thread-local storage of another library: %s", str_at(n, n->sym[s].st_name));
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
	relink_say(r, "relocation of type %u", type);
	return -EOPNOTSUPP;
}

/* A word of the new version: written at once when nobody has it yet, else with all others. */
int relink_new_word(struct relink *r, uint64_t at, uint64_t v)
{
	uint64_t now;
	if (at < r->new.start || at > r->new.end - 8 || guest_read(&now, at, 8)) {
		relink_say(r, "relocates what is not its own");
		return -ENOEXEC;
	}
	if (r->reuse)
		return at >= r->new.data &&at < r->new.data_end ? 0 : relink_word_add(r, at, now, v);
	if (guest_write(at, &v, 8)) {
		relink_say(r, "relocates what it cannot write");
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
				if (guest_read(&v, a, 8) || relink_new_word(r, a, v + n->base))
					return -ENOEXEC;
			}
		where = e & 1 ? where + 63 * 8 : first + 8;
	}
	return 0;
}

int relink_relocate(struct relink *r)
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
		e = x ? x : nr ? relink_new_word(r, at, v[0]) : 0;
	}
	return e ? e : bad;
}

/* The counterpart in the new version of what another object has taken from the old one; 0 = none. */
static uint64_t moved(const struct relink *r, const struct image *user, const Elf64_Rela *rel, uint64_t value)
{
	uint32_t s = ELF64_R_SYM(rel->r_info);
	if (!s || s >= user->nr_sym)
		return 0;
	const char *name = str_at(user, user->sym[s].st_name), *ver = image_version_name(user, s);
	if (ELF64_ST_TYPE(user->sym[s].st_info) == STT_TLS)
		return 0;
	uint32_t n = image_find_symbol(&r->new, name, ver);
	if (!n)
		return 0;
	/* Any version of it that has ever been: an image that nobody uses is bound to what was current. */
	for (unsigned i = 0; i < r->nr_img; i++) {
		const struct image *m = &r->img[i];
		if (m != r->old && i < r->nr_listed)
			continue;
		if (m != r->old && (!m->soname || strcmp(m->soname, r->new.soname)))
			continue;
		uint32_t o = inside(m, value) ? image_find_symbol(m, name, ver) : 0;
		if (o && (address_of(m, o) == value || ELF64_ST_TYPE(m->sym[o].st_info) == STT_GNU_IFUNC))
			return exported(r, n);
	}
	return 0;
}

/* The exported function at an address of the old version, in the new one. */
uint64_t relink_translate(const struct relink *r, uint64_t v)
{
	const struct image *o = r->old;
	for (uint32_t i = 1; i < o->nr_sym; i++)
		if (is_defined(&o->sym[i]) && address_of(o, i) == v) {
			uint32_t k = image_find_symbol(&r->new, str_at(o, o->sym[i].st_name), image_version_name(o, i));
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
		uint32_t s = image_find_symbol(&r->img[i], "kylinx_pointers", "");
		if (!s || guest_read(&n, address_of(&r->img[i], s), 8) || n > 512)
			continue;
		for (uint64_t k = 0; k < n; k++) {
			if (guest_read(&at, address_of(&r->img[i], s) + 8 + k * 8, 8) || at % 8 ||
			    guest_read(&v, at, 8) || !inside(r->old, v))
				continue;
			if (relink_word_add(r, at, v, relink_translate(r, v)))
				return -ENOMEM;
		}
	}
	return 0;
}

int relink_bindings(struct relink *r)
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
			if (new &&relink_word_add(r, at, now, new + add))
				return -ENOMEM;
		}
	}
	if (registered(r))
		return -ENOMEM;
	r->nr_object_words = r->nr_word;
	return 0;
}
