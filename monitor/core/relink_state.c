/* SPDX-License-Identifier: Apache-2.0 */
#include "relink_priv.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- state ------------------------------------------------------------------------------------------------------------- */

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
		uint32_t k = image_find_symbol(n, str_at(o, o->sym[i].st_name), image_version_name(o, i));
		if (!k || address_of(n, k) - n->data != a - o->data)
			return false;
	}
	size_t i = 0, k = 0;
	for (;; i++, k++) { /* both lists are in the linker's order; relink_compare those of the data alone */
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
	uint32_t s = image_find_symbol(m, name, "");
	return s && type_of(&m->sym[s]) == STT_FUNC ? address_of(m, s) : 0;
}

struct relink_hooks relink_hooks(const struct relink *r)
{
	return (struct relink_hooks){ hook(r->old, "kylinx_update_prepare"), hook(r->old, "kylinx_update_abort"),
				      hook(&r->new, "kylinx_update_commit") };
}

int relink_own_keep(struct relink *r)
{
	const struct image *n = &r->new;
	if (!r->own && !(r->own = malloc(data_len(n) + 1)))
		return -ENOMEM;
	if (guest_read(r->own, n->data, data_len(n)))
		return -EFAULT;
	r->own_lost = true;
	return 0;
}

void relink_own_back(struct relink *r)
{
	if (r->own_lost)
		guest_write(r->new.data, r->own, data_len(&r->new));
	r->own_lost = false;
}

int relink_fresh_data(struct relink *r)
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
		if (file && (!off || off > r->copy_len || end - a > r->copy_len - off))
			return -ENOEXEC;
		if (guest_write(a, file ? (const uint8_t *)r->copy + off : none, end - a))
			return -EFAULT;
		a = end;
	}
	return 0;
}

/* DT_INIT, DT_INIT_ARRAY. Where all variables are carried over, what they did once is carried over with them. */
int relink_plan_constructors(struct relink *r)
{
	const struct image *n = &r->new;
	uint64_t array = dyn_address(n, DT_INIT_ARRAY), len = dyn_value(n, DT_INIT_ARRAYSZ) / 8, fn, none = 0;
	unsigned k;
	int e = 0;
	if (r->whole_state)
		return 0;
	if (dyn_entry(n, DT_INIT))
		e = relink_call_add(r, dyn_address(n, DT_INIT), &k);
	for (uint64_t i = 0; array && i < len && i < CALLS_MAX && !e; i++)
		e = guest_read(&fn, array + i * 8, 8) ? -ENOEXEC : fn && fn + 1 ? relink_call_add(r, fn, &k) : 0;
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

int relink_plan_state(struct relink *r)
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
		relink_say(
			r,
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
	return relink_translate(r, v);
}

/* Carry over what has changed since the last look; all: everything. Where it is noted what is written, only that. */
int relink_copy_whole(struct relink *r, bool all)
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

int relink_copy_named(struct relink *r)
{
	const struct image *o = r->old, *n = &r->new;
	for (uint32_t i = 1; i < o->nr_sym; i++) {
		const Elf64_Sym *s = &o->sym[i];
		uint64_t a = o->base + s->st_value;
		if (!is_defined(s) || type_of(s) != STT_OBJECT || a < o->data || a >= o->data_end ||
		    s->st_size > o->data_end - a)
			continue;
		uint32_t k = image_find_symbol(n, str_at(o, s->st_name), image_version_name(o, i));
		uint64_t to = address_of(n, k);
		if (!k || n->sym[k].st_size != s->st_size || to < n->data || to > n->data_end ||
		    s->st_size > n->data_end - to)
			continue;
		if (guest_read(r->state, a, s->st_size) || guest_write(to, r->state, s->st_size))
			return -EFAULT;
		r->bytes += s->st_size;
	}
	return 0;
}

/* Segments alike, and the same code: then every place in one has its counterpart in the other. */
bool relink_same_image(const struct relink *r)
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
	return relink_translate(r, v);
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

int relink_plan_sweep(struct relink *r)
{
	/* Of a library without variables there are pointers to functions at most: old ones work as well. */
	struct sweep_of of = { .start = r->old->start,
			       .end = r->old->end,
			       .optional = data_len(r->old) <= DATA_OF_COMPILER,
			       .moved = pointer_moved,
			       .skip = pointer_is_ours,
			       .written = state_written,
			       .arg = r };
	if (!r->whole_state)
		return 0;
	return sweep_new(&of, &r->sweep);
}

bool relink_looks(const struct relink *r) { return r->sweep; }
int relink_note(struct relink *r) { return sweep_track(r->sweep); }

void relink_ahead(struct relink *r)
{
	memset(r->stale, 1, r->state_len / PIECE + 1);
	r->state_noted = true;
	if (!r->reuse)
		relink_copy_whole(r, false);
	sweep_ahead(r->sweep);
}

size_t relink_again(struct relink *r)
{
	size_t n = sweep_again(r->sweep);
	if (!r->reuse)
		relink_copy_whole(r, false);
	return n;
}
