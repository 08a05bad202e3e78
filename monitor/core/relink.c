/* SPDX-License-Identifier: Apache-2.0 */
#include "relink_priv.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include "../../util/log.h"
#include "admit.h"

#define READ_MAX (512ull << 20) /* bytes of the guest that one update copies */
#define POPULATE_WRITE 23       /* MADV_POPULATE_WRITE, Linux 5.14 */

struct retired *relink_retired;
/* The version in use of each library that was updated, with the file it came from. */
static struct retired *all_current;

void relink_say(struct relink *r, const char *fmt, ...)
{
	va_list ap;
	if (r->said++ >= SAID_MAX)
		return;
	va_start(ap, fmt);
	r->say(r->arg, fmt, ap);
	va_end(ap);
}

bool relink_lacks(int e) { return kx_err_lacks(-e) || e == -EIO; }

static int by_address(const void *a, const void *b)
{
	const struct word *x = a, *y = b;
	return x->at < y->at ? -1 : x->at > y->at;
}

/*
 * A word may be in this page; *closed: the monitor can't write it as it is. Where nobody could write so far, no loader has left
 * a word; and under a policy that may become code (GMEM_CLEAN). With the lock of the mappings.
 */
static bool page_is_ours(uint64_t page, bool *closed)
{
	struct gmem_region g;
	if (!gmem_query_locked(page, &g) || g.start > page || (g.flags & (GMEM_TRAMP | GMEM_TEXT | GMEM_CLEAN)) ||
	    (g.flags & MAP_TYPE) != MAP_PRIVATE || g.prot & PROT_EXEC)
		return false;
	*closed = !(g.prot & PROT_WRITE);
	return true;
}

/* The page of word i, which are in order; false: that of the one before. */
static bool next_page(const struct relink *r, size_t i, uint64_t *page)
{
	*page = DOWN(r->word[i].at);
	return !i || *page != DOWN(r->word[i - 1].at);
}

static int open_page(struct relink *r, uint64_t page)
{
	bool closed;
	if (!page_is_ours(page, &closed))
		return -EFAULT;
	if (!closed)
		return 0;
	if (mprotect(gva_ptr(page), PAGE, PROT_READ | PROT_WRITE))
		return -errno;
	r->page[r->nr_page++] = page;
	return 0;
}

/* Some words are in pages that are read-only by now. While they are writable to the monitor, the guest's own tables
 * still say read-only. */
static int open_pages(struct relink *r)
{
	uint64_t page;
	int e = 0;
	qsort(r->word, r->nr_word, sizeof *r->word, by_address);
	r->page = malloc((r->nr_word + 1) * sizeof *r->page);
	if (!r->page)
		return -ENOMEM;
	pthread_mutex_lock(&pvm.mm_lock);
	for (size_t i = 0; i < r->nr_word && !e; i++)
		if (next_page(r, i, &page))
			e = open_page(r, page);
	pthread_mutex_unlock(&pvm.mm_lock);
	/* A copy of each page of its own, now and not when everybody waits. Where that fails, so will the write. */
	for (size_t i = 0; i < r->nr_word && !e; i++)
		if (next_page(r, i, &page))
			HC6(SYS_madvise, gva_ptr(page), PAGE, POPULATE_WRITE, 0, 0, 0);
	return e;
}

/* No page has become one in which no word can be. With the lock of the mappings. */
static bool pages_are_ours(const struct relink *r)
{
	uint64_t page;
	bool closed;
	for (size_t i = 0; i < r->nr_word; i++)
		if (next_page(r, i, &page) && !page_is_ours(page, &closed))
			return false;
	return true;
}

static int by_number(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return x < y ? -1 : x > y;
}

static int open_again(struct relink *r, uint64_t page)
{
	if (mprotect(gva_ptr(page), PAGE, PROT_READ | PROT_WRITE))
		return -errno;
	if (!bsearch(&page, r->page, r->nr_page, sizeof page, by_number)) {
		r->page[r->nr_page++] = page;
		qsort(r->page, r->nr_page, sizeof page, by_number);
	}
	return 0;
}

/*
 * The program, or a fork's copies, may have closed its page since: whatever lays mappings out anew knows only what the program
 * may do with them. That is found by the write, as a rule none, since a mprotect of each page takes longer than all else here.
 * With the lock of the mappings.
 */
static int write_word(struct relink *r, const struct word *w)
{
	bool closed;
	if (!guest_put(w->at, &w->new, 8))
		return 0;
	int e = page_is_ours(DOWN(w->at), &closed) && closed ? open_again(r, DOWN(w->at)) : -EFAULT;
	if (!e && guest_put(w->at, &w->new, 8))
		e = -EFAULT;
	if (e)
		guest_put(w->at, &w->old, 8); /* the part of it before a page that can't be written */
	return e;
}

/* How many of the pages from i on lie side by side in one region, *g. 0: the first one is not to be closed. */
static size_t closed_together(const struct relink *r, size_t i, struct gmem_region *g)
{
	uint64_t start = r->page[i];
	size_t n = 1;
	if (!gmem_query_locked(start, g) || g->start > start || g->prot & PROT_WRITE)
		return 0;
	while (i + n < r->nr_page && r->page[i + n] == start + n * PAGE && start + n * PAGE < g->end)
		n++;
	return n;
}

/* Together, since one of several is a mapping more, of which there may be no more. The program can't write to what stays open, but its
 * calls could; code it will never be. */
static void close_pages(struct relink *r)
{
	int failed = 0;
	pthread_mutex_lock(&pvm.mm_lock);
	for (size_t i = 0, n; i < r->nr_page; i += n ? n : 1) {
		struct gmem_region g;
		n = closed_together(r, i, &g);
		if (n && mprotect(gva_ptr(r->page[i]), n * PAGE, g.prot == PROT_NONE ? PROT_NONE : PROT_READ))
			failed = errno;
	}
	pthread_mutex_unlock(&pvm.mm_lock);
	r->nr_page = 0;
	if (failed)
		kx_log(KX_LOG_WARN, "update", "what was read-only can't be again: %s", strerror(failed));
}

static int find_old(struct relink *r)
{
	unsigned copies = 0, others = relink_other_spaces(r, r->new.soname);
	for (unsigned i = 1; i < r->nr_listed; i++)
		if (r->img[i].soname && !strcmp(r->img[i].soname, r->new.soname)) {
			r->old = &r->img[i];
			copies++;
		}
	if (!r->old) {
		relink_say(r, others ? "%s is loaded in another namespace (dlmopen) alone" : "%s is not loaded",
			   r->new.soname);
		return others ? -EOPNOTSUPP : -ENOENT;
	}
	if (copies > 1) {
		relink_say(r, "%s is loaded %u times, from several files", r->new.soname, copies);
		return -EOPNOTSUPP;
	}
	if (others)
		relink_say(r, "%s is loaded in another namespace (dlmopen), too, and keeps its version there",
			   r->new.soname);
	if (!r->old->adjusted)
		return relink_unknown_loader(r, "not glibc's");
	if (r->old == r->loader || image_find_symbol(r->old, "__libc_start_main", "") ||
	    image_find_symbol(r->old, "__libc_start_main", "GLIBC_2.34")) {
		relink_say(r, "%s cannot be replaced: it is what all threads stand in", r->new.soname);
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
	image_budget(READ_MAX);
	int e = relink_read_list(r);
	if (e && e != -EAGAIN && !relink_lacks(e))
		relink_say(r,
			   e == -ENOENT ? "the program has no dynamic linker"
					: "its list of libraries cannot be read: %s",
			   strerror(-e));
	if (!e)
		e = relink_map_new(r, fd);
	if (!e)
		e = find_old(r);
	if (!e && r->old->base == r->new.base)
		e = -EINVAL;
	if (!e)
		e = relink_compare(r);
	if (!e)
		e = relink_plan_state(r);
	if (!e && !r->reuse)
		e = relink_adjust_dynamic(r);
	if (!e)
		e = relink_move_map(r);
	if (!e)
		e = relink_move_unwind(r);
	if (!e && r->reuse && !r->whole_state && !(e = relink_own_keep(r)))
		e = relink_fresh_data(r);
	if (!e)
		e = relink_relocate(r);
	if (!e)
		e = relink_exported_resolvers(r);
	/* Where it was mapped it may be another one than was read. */
	if (r->copy && e != -EAGAIN && (e == -EIO || !relink_lacks(e)) && !relink_file_is_still(r, fd)) {
		e = -ESTALE;
		relink_say(r, "its file was changed while it was read (write a new version under another name, and "
			      "rename it)");
	}
	if (e) {
		if (r->said > SAID_MAX)
			r->said = SAID_MAX - 1, relink_say(r, "... and more");
		relink_done(r, false);
		return e;
	}
	*out = r;
	return 0;
}

static struct retired *version_new(const struct image *m)
{
	struct retired *t = calloc(1, sizeof *t);
	if (!t)
		return NULL;
	*t = (struct retired){
		.base = m->base, .dyn = m->dyn, .start = m->start, .end = m->end, .print = image_print(m)
	};
	for (unsigned i = 0; i < m->nr_ph; i++) {
		const Elf64_Phdr *p = &m->ph[i];
		if (p->p_type != PT_LOAD)
			continue;
		if (t->nr_seg == SEGMENTS_MAX) {
			t->nr_seg = 0;
			break;
		}
		t->seg[t->nr_seg].start = DOWN(m->base + p->p_vaddr);
		t->seg[t->nr_seg].end = UP(m->base + p->p_vaddr + p->p_memsz);
		t->seg[t->nr_seg++].code = p->p_flags != PF_R;
	}
	return t;
}

int relink_bind(struct relink *r)
{
	const struct image *n = &r->new;
	int e = 0;
	if (!r->reuse && n->relro_end > n->relro && DOWN(n->relro_end) > DOWN(n->relro))
		e = gmem_mprotect(DOWN(n->relro), DOWN(n->relro_end) - DOWN(n->relro), PROT_READ);
	if (!e)
		e = relink_bindings(r);
	if (!e)
		e = open_pages(r);
	/* Most of it now, so that less is left for the moment. */
	if (!e && r->whole_state) {
		r->same_image = relink_same_image(r);
		e = r->reuse ? 0 : relink_copy_whole(r, true);
	}
	if (!e)
		e = relink_plan_sweep(r);
	if (!e && (!(r->note_old = version_new(r->old)) || (!r->reuse && !(r->note_new = version_new(&r->new)))))
		e = -ENOMEM;
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
			e = relink_new_word(r, r->pending[i].at,
					    r->call[r->pending[i].call].result + r->pending[i].add);
		r->done = r->call;
		r->nr_done = r->nr_call;
		r->call = NULL;
		r->nr_call = 0;
		r->batch = 2;
		if (!e)
			e = relink_plan_constructors(r);
		*nr = e ? 0 : r->nr_call;
	}
	if (e && !relink_lacks(e))
		relink_say(r, "%s", strerror(-e));
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
			return &r->img[i] == r->loader || image_find_symbol(&r->img[i], "malloc", "") ||
			       image_find_symbol(&r->img[i], "malloc", "GLIBC_2.2.5");
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

/* Not what a call in progress has written meanwhile. */
static void undo(const struct relink *r, size_t n)
{
	uint64_t now;
	while (n--)
		if (!guest_read(&now, r->word[n].at, 8) && now == r->word[n].new)
			guest_put(r->word[n].at, &r->word[n].old, 8);
}

void relink_undo(struct relink *r)
{
	undo(r, r->nr_word);
	if (r->sweep)
		sweep_undo(r->sweep);
	if (r->whole_state)
		relink_own_back(r);
}

int relink_apply(struct relink *r)
{
	uint64_t now;
	r->changed = 0;
	if (!relink_list_unchanged(r))
		return -EAGAIN;
	for (size_t i = 0; i < r->nr_word; i++)
		if (guest_read(&now, r->word[i].at, 8) || now != r->word[i].old) {
			r->changed = r->word[i].at;
			return -EAGAIN;
		}
	if (!pages_are_ours(r))
		return -EAGAIN;
	r->bytes = 0;
	int e = r->sweep ? sweep_apply(r->sweep) : 0;
	bool swept = !e && r->sweep;
	if (swept && !sweep_knew(r->sweep))
		memset(r->stale, 1, r->state_len / PIECE + 1);
	if (!e && r->reuse && r->whole_state)
		e = relink_own_keep(r);
	if (!e)
		e = r->whole_state ? relink_copy_whole(r, r->reuse) : relink_copy_named(r);
	for (size_t i = 0; i < r->nr_word && !e; i++)
		if ((e = write_word(r, &r->word[i])))
			undo(r, i);
	if (e && swept)
		sweep_undo(r->sweep);
	if (e && r->whole_state)
		relink_own_back(r);
	return e;
}

/* The entry of the version at this place, if it is that one: the program may have closed it and opened another. */
static struct retired *take_current(const struct image *m)
{
	for (struct retired **p = &all_current; *p; p = &(*p)->next)
		if ((*p)->base == m->base) {
			struct retired *t = *p;
			*p = t->next;
			if (t->dyn == m->dyn && t->start == m->start && t->end == m->end && t->print == image_print(m))
				return t;
			free(t);
			return NULL;
		}
	return NULL;
}

/* What is noted was made before, so that nothing can fail. */
static void keep_versions(struct relink *r)
{
	struct retired *old = take_current(r->old), *new = r->reuse;
	if (!old) {
		old = r->note_old;
		r->note_old = NULL;
	}
	old->next = relink_retired;
	relink_retired = old;
	if (new) {
		for (struct retired **p = &relink_retired; *p; p = &(*p)->next)
			if (*p == new) {
				*p = new->next;
				break;
			}
	} else {
		new = r->note_new;
		r->note_new = NULL;
		new->has_file = true;
		new->file_len = r->copy_len;
		memcpy(new->file, r->file, sizeof new->file);
	}
	if (new->aux)
		gmem_munmap(new->aux, new->aux_len);
	new->aux = r->aux;
	new->aux_len = r->aux_len;
	new->next = all_current;
	all_current = new;
}

/* It was mapped for nothing. What can't be unmapped now is, as a version that nothing refers to, after another update. */
static void drop_new(struct relink *r)
{
	uint64_t *const at[2] = { &r->mapped, &r->aux }, len[2] = { r->mapped_len, r->aux_len };
	for (int i = 0; i < 2; i++) {
		struct retired *t = NULL;
		if (!*at[i] || !gmem_munmap(*at[i], len[i]) || !(t = calloc(1, sizeof *t)))
			continue;
		*t = (struct retired){
			.next = relink_retired, .base = *at[i], .start = *at[i], .end = *at[i] + len[i]
		};
		relink_retired = t;
	}
}

void relink_leave(struct relink *r) { close_pages(r); }

void relink_done(struct relink *r, bool kept)
{
	close_pages(r);
	if (kept) {
		keep_versions(r);
	} else {
		relink_own_back(r);
		drop_new(r);
	}
	for (unsigned i = 0; i < r->nr_img; i++)
		image_free(&r->img[i]);
	image_free(&r->new);
	free(r->list);
	free(r->img);
	free(r->word);
	free(r->page);
	free(r->state);
	free(r->stale);
	free(r->own);
	free(r->pair);
	sweep_free(r->sweep);
	free(r->call);
	free(r->done);
	free(r->pending);
	free(r->copy);
	free(r->note_old);
	free(r->note_new);
	free(r);
}

uint64_t relink_changed(const struct relink *r) { return r->changed; }

const char *relink_soname(const struct relink *r) { return r->new.soname; }

void relink_counts(const struct relink *r, unsigned *words, unsigned *bytes, unsigned *versions)
{
	*words = (unsigned)r->nr_object_words;
	*bytes = (unsigned)r->bytes;
	*versions = 1;
	for (struct retired *t = relink_retired; t; t = t->next)
		++*versions;
}
