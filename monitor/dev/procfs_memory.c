/* SPDX-License-Identifier: Apache-2.0 */
#include "procfs_priv.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include "../core/gmem.h"
#include "../core/hot.h"
#include "../core/keeper.h"

/* ---- the memory map -------------------------------------------------------------------------------------------- */

#define FIELDS_MAX 40
#define HVMA_MORE 2

/* A mapping of the host inside the guest's space. Strings point into the text that it was read from. */
struct hvma {
	uint64_t start, end, off; /* guest addresses */
	const char *perm;         /* four letters */
	const char *dev, *inode, *name;
	int dev_len, inode_len, name_len;
	const char *fields; /* smaps: the lines below, up to fields_end */
	const char *fields_end;
	struct {
		const char *from, *to;
	} more[HVMA_MORE]; /* the same lines of what follows it on the host and is one with it to the program (hot.h) */
	int nr_more;
	uint64_t left[FIELDS_MAX]; /* kB not yet told, by line */
	bool opened;
};

struct hmaps {
	struct out text;
	struct hvma *v;
	size_t n, cap;
};

static bool hvma_parse(const char *line, const char *eol, struct hvma *v)
{
	char *p;
	uint64_t base = (uint64_t)pvm.base;
	memset(v, 0, sizeof *v);
	uint64_t start = strtoull(line, &p, 16);
	if (*p != '-')
		return false;
	uint64_t end = strtoull(p + 1, &p, 16);
	if (start < base || end > base + (pvm.high_end ? pvm.high_end : KX_SPACE_SIZE) || p + 6 > eol)
		return false;
	v->start = start - base;
	v->end = end - base;
	v->perm = p + 1;
	v->off = strtoull(p + 6, &p, 16);
	while (p < eol && *p == ' ')
		p++;
	v->dev = p;
	while (p < eol && *p != ' ')
		p++;
	v->dev_len = (int)(p - v->dev);
	while (p < eol && *p == ' ')
		p++;
	v->inode = p;
	while (p < eol && *p != ' ')
		p++;
	v->inode_len = (int)(p - v->inode);
	while (p < eol && *p == ' ')
		p++;
	v->name = p;
	v->name_len = (int)(eol - p);
	return true;
}

static bool has_inode(const struct hvma *v) { return !(v->inode_len == 1 && v->inode[0] == '0'); }

/* The host has cut the program's mapping for the sake of forks. */
static bool hvma_continues(const struct hvma *a, const struct hvma *b)
{
	return a->end == b->start && a->nr_more < HVMA_MORE && !has_inode(a) && !has_inode(b) &&
	       !memcmp(a->perm, b->perm, 4) && hot_edge(b->start);
}

static void hmaps_join(struct hmaps *m)
{
	size_t n = 0;
	for (size_t i = 0; i < m->n; i++) {
		struct hvma *last = n ? &m->v[n - 1] : NULL, *v = &m->v[i];
		if (!last || !hvma_continues(last, v)) {
			m->v[n++] = *v;
			continue;
		}
		last->end = v->end;
		last->more[last->nr_more].from = v->fields;
		last->more[last->nr_more++].to = v->fields_end;
	}
	m->n = n;
}

static int hmaps_read(struct hmaps *m, bool smaps)
{
	char rel[64];
	memset(m, 0, sizeof *m);
	snprintf(rel, sizeof rel, "self/task/%d/%s", my_tid(), smaps ? "smaps" : "maps");
	int r = host_read(rel, &m->text);
	if (r < 0)
		return r;
	struct hvma *cur = NULL;
	const char *end = m->text.p + m->text.len;
	for (const char *s = m->text.p, *eol; s < end; s = eol + 1) {
		eol = memchr(s, '\n', (size_t)(end - s));
		if (!eol)
			break;
		if (*s >= 'A' && *s <= 'Z') { /* a field of smaps: addresses are in small letters */
			if (cur)
				cur->fields_end = eol + 1;
			continue;
		}
		if (m->n == m->cap) {
			size_t cap = m->cap ? m->cap * 2 : 64;
			struct hvma *v = realloc(m->v, cap * sizeof *v);
			if (!v)
				return -ENOMEM;
			m->v = v;
			m->cap = cap;
		}
		cur = NULL;
		if (hvma_parse(s, eol, &m->v[m->n])) {
			cur = &m->v[m->n++];
			cur->fields = cur->fields_end = eol + 1;
		}
	}
	hmaps_join(m);
	return 0;
}

static void hmaps_free(struct hmaps *m)
{
	out_free(&m->text);
	free(m->v);
}

struct piece {
	uint64_t start, end;
	const struct gmem_region *r;
	struct hvma *v; /* NULL: the host has changed it meanwhile */
};

/* All of the program's regions, cut where the host's mappings are. */
static void for_pieces(struct hmaps *m, void (*fn)(void *arg, const struct piece *p), void *arg)
{
	struct gmem_region r;
	size_t i = 0;
	for (uint64_t at = 0; gmem_query(at, &r); at = r.end) {
		if (gmem_own(&r))
			continue;
		for (uint64_t a = r.start; a < r.end;) {
			while (i < m->n && m->v[i].end <= a)
				i++;
			struct piece p = { a, r.end, &r, NULL };
			if (i < m->n && m->v[i].start <= a)
				p.v = &m->v[i];
			uint64_t stop = p.v ? p.v->end : i < m->n ? m->v[i].start : r.end;
			if (stop < p.end)
				p.end = stop;
			fn(arg, &p);
			a = p.end;
		}
	}
}

static const char *region_label(const struct gmem_region *r, uint64_t brk)
{
	if (!(r->flags & MAP_ANONYMOUS) || r->flags & MAP_SHARED)
		return NULL;
	if (r->start < pvm.stack_top && r->end >= pvm.stack_top)
		return "[stack]";
	return r->start < brk && r->end > pvm.brk_start ? "[heap]" : NULL;
}

struct maps_out {
	struct out *t;
	uint64_t brk;
	bool smaps;
	uint64_t sums[FIELDS_MAX]; /* rollup */
	struct hmaps *m;
};

static void put_head(struct out *t, uint64_t start, uint64_t end, const char *perm, uint64_t off, const char *dev,
		     int dev_len, const char *inode, int inode_len, const char *name, int name_len)
{
	size_t at = t->len;
	out_printf(t, "%08" PRIx64 "-%08" PRIx64 " %s %08" PRIx64 " %.*s %.*s ", start, end, perm, off, dev_len, dev,
		   inode_len, inode);
	if (name_len) {
		int pad = 73 - (int)(t->len - at);
		out_printf(t, "%*s%.*s", pad > 0 ? pad : 0, "", name_len, name);
	}
	out_add(t, "\n", 1);
}

static bool field_kb(const char *s, const char *eol, int *key_len, uint64_t *kb)
{
	const char *colon = memchr(s, ':', (size_t)(eol - s));
	if (!colon || eol - s < 4 || memcmp(eol - 3, " kB", 3))
		return false;
	*key_len = (int)(colon - s) + 1;
	*kb = strtoull(colon + 1, NULL, 10);
	return true;
}

/* The number in line i. */
static uint64_t line_kb(const char *s, const char *end, int i)
{
	int key;
	uint64_t kb;
	for (const char *eol; s < end && (eol = memchr(s, '\n', (size_t)(end - s))); s = eol + 1)
		if (!i--)
			return field_kb(s, eol, &key, &kb) ? kb : 0;
	return 0;
}

/* What an image's loader has mapped to be read: the program could never write to it. */
static bool is_constant(const struct gmem_region *r)
{
	return (r->flags & MAP_TYPE) == MAP_PRIVATE && !(r->flags & (MAP_ANONYMOUS | GMEM_DATA)) &&
	       !(r->prot & PROT_WRITE);
}

/* Without what is the monitor's doing: not to be inherited (hot.h), accounted since it was writable (gmem_warm.h). */
static void put_flags(struct out *t, const struct piece *p, const char *s, size_t len)
{
	const char *const hidden[] = { hot_edge(p->v->start) ? " wf" : NULL, is_constant(p->r) ? " ac" : NULL };
	for (unsigned i = 0; i < 2; i++) {
		const char *at = hidden[i] ? memmem(s, len, hidden[i], 3) : NULL;
		if (!at)
			continue;
		out_add(t, s, (size_t)(at - s));
		len -= (size_t)(at + 3 - s);
		s = at + 3;
	}
	out_add(t, s, len);
}

/*
 * The numbers of a host mapping that holds several pieces go to the first piece as far as they fit, then to the
 * next: sums stay right.
 */
static void put_fields(struct maps_out *o, const struct piece *p, bool sum)
{
	uint64_t size = (p->end - p->start) >> 10;
	int i = 0, key;
	if (!p->v)
		return;
	for (const char *s = p->v->fields, *eol; s < p->v->fields_end; s = eol + 1, i++) {
		uint64_t kb;
		eol = memchr(s, '\n', (size_t)(p->v->fields_end - s));
		if (!eol)
			break;
		if (!field_kb(s, eol, &key, &kb) || i >= FIELDS_MAX) {
			if (!sum)
				put_flags(o->t, p, s, (size_t)(eol + 1 - s));
			continue;
		}
		if (key_is(s, "Size:")) {
			kb = size;
		} else if (!key_is(s, "KernelPageSize:") && !key_is(s, "MMUPageSize:")) {
			if (!p->v->opened) {
				p->v->left[i] = kb;
				for (int k = 0; k < p->v->nr_more; k++)
					p->v->left[i] += line_kb(p->v->more[k].from, p->v->more[k].to, i);
			}
			kb = p->v->left[i] < size ? p->v->left[i] : size;
			p->v->left[i] -= kb;
			o->sums[i] += kb;
		}
		if (!sum)
			out_printf(o->t, "%-16.*s%8" PRIu64 " kB\n", key, s, kb);
	}
	p->v->opened = true;
}

static void maps_piece(void *arg, const struct piece *p)
{
	struct maps_out *o = arg;
	int prot = p->r->prot;
	char perm[5] = { prot & PROT_READ ? 'r' : '-', prot & PROT_WRITE ? 'w' : '-', prot & PROT_EXEC ? 'x' : '-',
			 p->r->flags & MAP_SHARED ? 's' : 'p', 0 };
	const char *label = region_label(p->r, o->brk);
	const struct hvma *v = p->v;
	bool file = v && has_inode(v);
	struct gmem_text_file f;
	struct hot_file h;
	if ((p->r->flags & (GMEM_TEXT | GMEM_OWN_TEXT) || p->r->origin) && gmem_text_file(p->start, &f)) {
		char dev[16], ino[24];
		int dl = snprintf(dev, sizeof dev, "%02x:%02x", major(f.dev), minor(f.dev));
		int il = snprintf(ino, sizeof ino, "%" PRIu64, f.ino);
		put_head(o->t, p->start, p->end, perm, f.off, dev, dl, ino, il, f.path, (int)strlen(f.path));
	} else if (p->r->flags & GMEM_DATA && hot_file(p->start, &h))
		put_head(o->t, p->start, p->end, perm, h.off, h.dev, (int)strlen(h.dev), h.ino, (int)strlen(h.ino),
			 h.path, (int)strlen(h.path));
	else if (label || !v)
		put_head(o->t, p->start, p->end, perm, 0, "00:00", 5, "0", 1, label ? label : "",
			 label ? (int)strlen(label) : 0);
	else
		put_head(o->t, p->start, p->end, perm, file ? v->off + (p->start - v->start) : 0, v->dev, v->dev_len,
			 v->inode, v->inode_len, v->name, v->name_len);
	if (o->smaps)
		put_fields(o, p, false);
}

static void rollup_piece(void *arg, const struct piece *p) { put_fields(arg, p, true); }

int gen_maps(struct out *t, enum gen gen)
{
	struct hmaps m;
	struct maps_out o = { .t = t, .brk = gmem_brk(0), .smaps = gen == G_SMAPS };
	int r = hmaps_read(&m, gen != G_MAPS);
	if (!r && gen != G_ROLLUP) {
		for_pieces(&m, maps_piece, &o);
		put_head(t, KX_VDSO_BASE, KX_VDSO_BASE + 0x10000, "r-xp", 0, "00:00", 5, "0", 1, "[vdso]", 6);
		if (o.smaps)
			out_printf(t,
				   "%-16s%8d kB\n%-16s%8d kB\n%-16s%8d kB\n%-16s%8d kB\n%-16s%8d kB\nVmFlags: rd ex "
				   "mr mw me de \n",
				   "Size:", 64, "KernelPageSize:", 4, "MMUPageSize:", 4, "Rss:", 0, "Pss:", 0);
	} else if (!r) {
		struct gmem_region first = { 0 };
		gmem_query(0, &first);
		for_pieces(&m, rollup_piece, &o);
		put_head(t, first.start, KX_VDSO_BASE + 0x10000, "---p", 0, "00:00", 5, "0", 1, "[rollup]", 8);
		int i = 0, key;
		uint64_t kb;
		/* All mappings have the same lines: take the names from any. */
		for (const char *s = m.n ? m.v[0].fields : "", *eol; m.n && s < m.v[0].fields_end; s = eol + 1, i++) {
			eol = strchr(s, '\n');
			if (field_kb(s, eol, &key, &kb) && i < FIELDS_MAX && !key_is(s, "Size:") &&
			    !key_is(s, "KernelPageSize:") && !key_is(s, "MMUPageSize:"))
				out_printf(t, "%-16.*s%8" PRIu64 " kB\n", key, s, o.sums[i]);
		}
	}
	hmaps_free(&m);
	return r;
}

int procfs_smaps(char **text)
{
	struct out t = { 0 };
	int r = gen_maps(&t, G_SMAPS);
	if (!r)
		out_add(&t, "", 1);
	r = r ? r : t.err;
	if (r)
		out_free(&t);
	*text = t.p;
	return r;
}

/* ---- sizes ----------------------------------------------------------------------------------------------------- */

struct vm_sizes vm_sizes(void)
{
	static uint64_t peak;
	struct vm_sizes s = { 0 };
	struct gmem_region r;
	for (uint64_t at = 0; gmem_query(at, &r); at = r.end) {
		uint64_t n = r.end - r.start;
		if (gmem_own(&r))
			continue;
		s.total += n;
		if (r.start < pvm.stack_top && r.end >= pvm.stack_top)
			s.stack += n;
		else if (r.prot & PROT_WRITE && !(r.flags & MAP_SHARED))
			s.data += n;
		else if (r.prot & PROT_EXEC)
			*(r.end <= pvm.brk_start ? &s.exe : &s.lib) += n;
	}
	s.peak = __atomic_load_n(&peak, __ATOMIC_RELAXED);
	if (s.total > s.peak)
		__atomic_store_n(&peak, s.peak = s.total, __ATOMIC_RELAXED);
	return s;
}

/* Is that file about the calling thread? It runs, but for looking here. */
static bool is_caller(const char *host)
{
	char task[32];
	int n = snprintf(task, sizeof task, "self/task/%d/", my_tid());
	return !strncmp(host, task, (size_t)n) ||
	       (my_tid() == my_pid() && key_is(host, "self/") && !key_is(host, "self/task/"));
}

/* What the program blocks, ignores and handles: the monitor's own are others. 0: no such thread any more. */
struct sig_masks {
	uint64_t blocked, ignored, caught;
};

static void masks_of(struct thread *t, struct sig_masks *m)
{
	const struct kx_sigaction *act = actions_of(t);
	m->blocked = __atomic_load_n(&t->area->sigmask, __ATOMIC_RELAXED);
	for (int s = 1; s <= 64; s++) {
		uint64_t handler = __atomic_load_n(&act[s].handler, __ATOMIC_RELAXED);
		if (handler)
			*(handler == (uint64_t)SIG_IGN ? &m->ignored : &m->caught) |= 1ull << (s - 1);
	}
}

static struct sig_masks sig_masks(int tid)
{
	struct sig_masks m = { 0 };
	if (tid == my_tid() || is_vfork_child()) {
		masks_of(self, &m);
		return m;
	}
	pthread_mutex_lock(&pvm.thr_lock);
	struct thread *t = pvm.threads;
	while (t && t->tid != tid)
		t = t->next;
	if (t)
		masks_of(t, &m);
	pthread_mutex_unlock(&pvm.thr_lock);
	return m;
}

int gen_status(struct out *t, const char *host)
{
	struct out in = { 0 };
	struct vm_sizes s = vm_sizes();
	int r = host_read(host, &in);
	if (r < 0)
		return r;
	const char *tid = strstr(in.p, "\nPid:");
	struct sig_masks m = sig_masks(tid ? atoi(tid + 5) : 0);
	const struct {
		const char *key;
		uint64_t kb;
		bool cap; /* the host's number, but no more than this: it has the monitor in it */
	} size[] = { { "VmPeak:", s.peak >> 10, false }, { "VmSize:", s.total >> 10, false },
		     { "VmHWM:", s.total >> 10, true },  { "VmRSS:", s.total >> 10, true },
		     { "VmData:", s.data >> 10, false }, { "VmStk:", s.stack >> 10, false },
		     { "VmExe:", s.exe >> 10, false },   { "VmLib:", s.lib >> 10, false } };
	for (char *p = in.p, *eol; (eol = strchr(p, '\n')); p = eol + 1) {
		unsigned i = 0, n = sizeof size / sizeof *size;
		while (i < n && !key_is(p, size[i].key))
			i++;
		if (i < n) {
			uint64_t v = strtoull(p + strlen(size[i].key), NULL, 10);
			if (!size[i].cap || v > size[i].kb)
				v = size[i].kb;
			out_printf(t, "%s\t%8" PRIu64 " kB\n", size[i].key, v);
		} else if (key_is(p, "State:") && is_caller(host)) {
			out_printf(t, "State:\tR (running)\n");
		} else if (key_is(p, "FDSize:")) {
			unsigned long n = strtoul(p + 7, NULL, 10);
			out_printf(t, "FDSize:\t%lu\n", n < 256 ? n : 256);
		} else if (key_is(p, "Threads:")) {
			out_printf(t, "Threads:\t%d\n", nr_threads());
		} else if (key_is(p, "NoNewPrivs:")) {
			out_printf(t, "NoNewPrivs:\t%d\n", pvm.no_new_privs);
		} else if (key_is(p, "SigBlk:")) {
			out_printf(t, "SigBlk:\t%016" PRIx64 "\n", m.blocked);
		} else if (key_is(p, "SigIgn:")) {
			out_printf(t, "SigIgn:\t%016" PRIx64 "\n", m.ignored);
		} else if (key_is(p, "SigCgt:")) {
			out_printf(t, "SigCgt:\t%016" PRIx64 "\n", m.caught);
		} else {
			out_add(t, p, (size_t)(eol + 1 - p));
		}
	}
	out_free(&in);
	return 0;
}

/* proc(5): fields by number; (2) is the name, which may hold anything. */
int gen_stat(struct out *t, const char *host)
{
	struct out in = { 0 };
	struct vm_sizes s = vm_sizes();
	int r = host_read(host, &in), field = 3;
	if (r < 0)
		return r;
	char *p = strrchr(in.p, ')');
	if (!p) {
		out_free(&in);
		return -EIO;
	}
	struct sig_masks m = sig_masks(atoi(in.p));
	out_add(t, in.p, (size_t)(p + 1 - in.p));
	for (char *save, *tok = strtok_r(p + 1, " \n", &save); tok; tok = strtok_r(NULL, " \n", &save), field++) {
		uint64_t v, pages = s.total / PAGE;
		switch (field) {
		case 3:
			out_printf(t, " %s", is_caller(host) ? "R" : tok);
			continue;
		case 20:
			v = (uint64_t)nr_threads();
			break;
		case 23:
			v = s.total;
			break;
		case 24:
			v = strtoull(tok, NULL, 10) < pages ? strtoull(tok, NULL, 10) : pages;
			break;
		case 28:
			v = pvm.stack_top;
			break;
		case 32: /* the standard signals, of the calling process or thread */
			v = m.blocked & 0x7fffffff;
			break;
		case 33:
			v = m.ignored & 0x7fffffff;
			break;
		case 34:
			v = m.caught & 0x7fffffff;
			break;
		case 47:
			v = pvm.brk_start;
			break;
		case 48:
			v = pvm.arg_start;
			break;
		case 49:
			v = pvm.arg_end;
			break;
		case 50:
			v = pvm.env_start;
			break;
		case 51:
			v = pvm.env_end;
			break;
		case 26:
		case 27:
		case 29:
		case 30:
		case 35:
		case 45:
		case 46:
			v = 0;
			break;
		default:
			out_printf(t, " %s", tok);
			continue;
		}
		out_printf(t, " %" PRIu64, v);
	}
	out_add(t, "\n", 1);
	out_free(&in);
	return 0;
}

int gen_statm(struct out *t, const char *host)
{
	struct out in = { 0 };
	struct vm_sizes s = vm_sizes();
	uint64_t total, rss = 0, shared = 0;
	int r = host_read(host, &in);
	if (r < 0)
		return r;
	if (sscanf(in.p, "%" SCNu64 " %" SCNu64 " %" SCNu64, &total, &rss, &shared) != 3)
		rss = shared = 0;
	total = s.total / PAGE;
	rss = rss < total ? rss : total;
	shared = shared < rss ? shared : rss;
	out_printf(t, "%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " 0 %" PRIu64 " 0\n", total, rss, shared,
		   (s.exe + s.lib) / PAGE, (s.data + s.stack) / PAGE);
	out_free(&in);
	return 0;
}
