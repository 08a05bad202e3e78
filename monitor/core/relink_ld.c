/* SPDX-License-Identifier: Apache-2.0 */
#include "relink_priv.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MAP_BYTES 1536 /* of a struct link_map that are looked at */
#define INFO_TAGS 34   /* of its l_info that are filled in */
#define LOADER_DATA_MAX (1ull << 20)
#define TABLES_MAX 256 /* that are taken for ld.so's tables of objects, and looked through */

int relink_unknown_loader(struct relink *r, const char *what)
{
	relink_say(r, "this ld.so keeps its records in a way that is not known (%s)", what);
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
int relink_adjust_dynamic(struct relink *r)
{
	struct image *n = &r->new;
	for (unsigned i = 0; i < n->nr_d; i++)
		for (unsigned k = 0; k < sizeof adjusted_tags / sizeof *adjusted_tags; k++)
			if (n->d[i].d_tag == adjusted_tags[k] && n->d[i].d_un.d_ptr < n->base) {
				n->d[i].d_un.d_ptr += n->base;
				if (guest_write(n->dyn + i * sizeof(Elf64_Dyn), &n->d[i], sizeof(Elf64_Dyn)))
					return relink_unknown_loader(r, "a dynamic section that is read-only");
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
	int64_t a = gmem_mmap(0, UP(len), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (a < 0)
		return (int)a;
	*out = r->aux = (uint64_t)a;
	r->aux_len = UP(len);
	return 0;
}

/* Nobody looks into the table that ld.so has made any more: what it has of the old version's names would only seem to be in
 * use. */
static int clear_versions(struct relink *r, uint64_t at)
{
	const struct image *o = r->old;
	struct found_version f;
	int e = 0;
	for (unsigned i = 0; i < o->nr_vers && !e; i++) {
		uint64_t name = at + i * sizeof f + offsetof(struct found_version, name);
		uint64_t file = at + i * sizeof f + offsetof(struct found_version, file);
		if (guest_read(&f, at + i * sizeof f, sizeof f))
			return -EFAULT;
		if (inside(o, f.name))
			e = relink_word_add(r, name, f.name, 0);
		if (inside(o, f.file) && !e)
			e = relink_word_add(r, file, f.file, 0);
	}
	return e;
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
		if ((e = clear_versions(r, map[i])))
			return e;
		map[i] = at;
		/* l_nversions is its neighbour. */
		for (size_t k = i - 1; k <= i + 1; k += 2)
			if ((uint32_t)map[k] == o->nr_vers)
				map[k] = (map[k] & ~0xffffffffull) | n->nr_vers;
		return 0;
	}
	return relink_unknown_loader(r, "l_versions");
}

/* The counterpart of an entry of the old version's symbol table; 0 = it is none, or has none. */
static uint64_t moved_symbol(const struct relink *r, uint64_t v)
{
	const struct image *o = r->old, *n = &r->new;
	uint64_t off = v - dyn_address(o, DT_SYMTAB), i = off / sizeof(Elf64_Sym);
	if (off >= o->nr_sym * sizeof(Elf64_Sym) || off % sizeof(Elf64_Sym) || !is_defined(&o->sym[i]))
		return 0;
	uint32_t k = image_find_symbol(n, str_at(o, o->sym[i].st_name), image_version_name(o, (uint32_t)i));
	return k ? dyn_address(n, DT_SYMTAB) + k * sizeof(Elf64_Sym) : 0;
}

/* What ld.so has found last for each of the others (l_lookup_cache). */
static int move_caches(struct relink *r)
{
	uint64_t map[MAP_BYTES / 8], to;
	int e = 0;
	for (unsigned i = 0; i < r->nr_listed && !e; i++) {
		uint64_t at = r->img[i].map;
		/* The last ones of ld.so's own memory may end before that. */
		if (&r->img[i] == r->old || guest_read(map, at, sizeof map))
			continue;
		for (size_t k = 3; k < MAP_BYTES / 8 && !e; k++)
			if (inside(r->old, map[k]) && (to = moved_symbol(r, map[k])))
				e = relink_word_add(r, at + k * 8, map[k], to);
	}
	return e;
}

int relink_move_map(struct relink *r)
{
	const struct image *o = r->old, *n = &r->new;
	uint64_t map[MAP_BYTES / 8], was[MAP_BYTES / 8];
	const size_t words = MAP_BYTES / 8;
	struct hash_tables ho, hn;
	if (guest_read(map, o->map, sizeof map))
		return -EFAULT;
	memcpy(was, map, sizeof was);
	relink_find_tls(r, was, words);
	if (o->tls && !r->tls_known)
		return relink_unknown_loader(r, "l_tls_modid");
	if (hash_tables(o, &ho) || hash_tables(n, &hn))
		return -ENOEXEC;
	long at = find_words(was, words, ho.ptr, 3);
	/* Before them three numbers of 32 bits, with or without a gap behind. */
	uint32_t old3[3] = { ho.nbuckets, ho.bits, ho.shift }, new3[3] = { hn.nbuckets, hn.bits, hn.shift };
	uint32_t *three = at < 2 ? NULL : (uint32_t *)(map + at) - 3;
	if (three && memcmp(three, old3, sizeof old3))
		three--;
	if (!three || memcmp(three, old3, sizeof old3))
		return relink_unknown_loader(r, "l_gnu_buckets");
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
		if (tag == DT_STRTAB && i > DT_STRTAB)
			info = i - DT_STRTAB;
	}
	if (!info || info + INFO_TAGS > words || infos < 4 ||
	    was[info + DT_SYMTAB] - o->dyn >= o->nr_d * sizeof(Elf64_Dyn))
		return relink_unknown_loader(r, "l_info");
	for (unsigned i = 0; i < n->nr_d; i++) { /* what only the new version has */
		int64_t tag = n->d[i].d_tag;
		if (tag > 0 && tag < INFO_TAGS && tag != DT_NEEDED && !map[info + (size_t)tag])
			map[info + (size_t)tag] = n->dyn + i * sizeof(Elf64_Dyn);
	}
	uint64_t span[2] = { o->start, 0 };
	at = -1;
	for (size_t i = 3; i + 3 <= words; i++) /* l_map_start, l_map_end, l_text_end */
		if (was[i] == span[0] && was[i + 1] > o->start && was[i + 1] <= o->end && was[i + 1] > o->end - PAGE &&
		    was[i + 2] > o->start && was[i + 2] <= o->end)
			at = (long)i;
	if (at < 0)
		return relink_unknown_loader(r, "l_map_start");
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
		if (o->ver && n->ver && was[i] == dyn_address(o, DT_VERSYM)) /* l_versyms */
			map[i] = dyn_address(n, DT_VERSYM);
		/* l_relro_addr is relative to l_addr; l_relro_size */
		if (o->relro && n->relro && was[i] == o->relro - o->base && was[i + 1] == o->relro_end - o->relro) {
			map[i] = n->relro - n->base;
			map[i + 1] = n->relro_end - n->relro;
		}
	}
	for (size_t i = 3; i + 2 < words;
	     i++) /* its own l_lookup_cache: the symbol that was looked up, class, value, result */
		if (map[i] == was[i] && was[i] - dyn_address(o, DT_SYMTAB) < o->nr_sym * sizeof(Elf64_Sym))
			map[i] = moved_symbol(r, was[i]);
	map[0] = n->base;
	map[2] = n->dyn;
	int e = move_versions(r, map, words);
	if (!e)
		e = move_caches(r);
	for (size_t i = 0; i < words && !e; i++)
		e = relink_word_add(r, o->map + i * 8, was[i], map[i]);
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
static int move_objects(struct relink *r, uint64_t at, uint64_t *end)
{
	struct found_object *f = malloc(OBJECTS_MAX * sizeof *f), *was;
	size_t n = 0, mine = OBJECTS_MAX;
	if (!f)
		return -ENOMEM;
	for (; n < OBJECTS_MAX && !guest_read(&f[n], at + n * sizeof *f, sizeof *f) && is_entry(r, &f[n]); n++)
		if (f[n].map == r->old->map)
			mine = n;
	*end = at + n * sizeof *f;
	int e = mine < n;
	if (e && (was = malloc(n * sizeof *f))) {
		memcpy(was, f, n * sizeof *f);
		f[mine].start = r->new.start;
		f[mine].end = last_byte(&r->new);
		f[mine].eh_frame = r->new.eh_hdr;
		qsort(f, n, sizeof *f, by_start);
		for (size_t i = 0; i < n * 4 && e > 0; i++)
			if (relink_word_add(r, at + i * 8, ((uint64_t *)was)[i], ((uint64_t *)f)[i]))
				e = -ENOMEM;
		free(was);
	} else if (e) {
		e = -ENOMEM;
	}
	free(f);
	return e;
}

/* ld.so's data has pointers to its tables of objects; libraries that were there at the start are in one of their own. */
int relink_move_unwind(struct relink *r)
{
	const struct image *ld = r->loader;
	struct found_object f;
	if (!ld)
		return relink_unknown_loader(r, "it is not in its own list");
	uint64_t from = 0, to = 0;
	for (unsigned i = 0; i < ld->nr_ph; i++)
		if (ld->ph[i].p_type == PT_LOAD && ld->ph[i].p_flags & PF_W) {
			from = (ld->base + ld->ph[i].p_vaddr + 7) & ~7ull;
			to = UP(ld->base + ld->ph[i].p_vaddr + ld->ph[i].p_memsz);
		}
	if (to > from && to - from > LOADER_DATA_MAX)
		return relink_unknown_loader(r, "its own data");
	/* One of two is in use, at a time; the other one, as it was before. */
	uint64_t first = 0, first_end = 0, end;
	unsigned tables = 0, looked = 0;
	for (uint64_t a = from, p; a + 8 <= to && tables < 2; a += 8) {
		if (guest_read(&p, a, 8) || p < KX_USER_MIN || p % 8)
			continue;
		for (unsigned head = 0; head <= 32 && tables < 2; head += 32) {
			/* Neither a part of that one, nor one that it may be a part of. */
			if ((p + head + OBJECTS_MAX * sizeof f > first && p + head < first_end) ||
			    guest_read(&f, p + head, sizeof f) || !is_entry(r, &f))
				continue;
			if (looked++ == TABLES_MAX)
				return relink_unknown_loader(r, "its tables for unwinders");
			int e = move_objects(r, p + head, &end);
			if (e < 0)
				return e;
			if (e && !tables++) {
				first = p + head;
				first_end = end;
			}
		}
	}
	return tables ? 0 : relink_unknown_loader(r, "its table for unwinders");
}
