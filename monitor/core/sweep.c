/* SPDX-License-Identifier: Apache-2.0 */
#include "sweep.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "../../util/grow.h"
#include "gmem.h"
#include "pagemap.h"
#include "written.h"

#define PAGE 4096ull
#define STOPPED_MAX (512ull << 20) /* bytes in use that are looked through while everything stands */
#define AHEAD_MAX (32ull << 30)    /* and before */
#define FEW 4u                     /* pages */
#define WORDS_MAX (4u << 20)       /* pointers that are noted: 96 MiB of the host's memory */

struct word {
	uint64_t at, old, new;
};

struct sweep {
	struct sweep_of of;
	struct word *word;
	size_t nr, cap;
	size_t nr_changed; /* the first of them, after sweep_apply() */
	uint64_t total, limit;
	size_t pages;
	bool tracked, ahead, stopped;
	int pagemap;
	pid_t owner; /* the thread whose descriptor that is */
	int error;
};

int sweep_new(const struct sweep_of *of, struct sweep **out)
{
	struct sweep *s = calloc(1, sizeof *s);
	if (!s)
		return -ENOMEM;
	s->of = *of;
	s->owner = my_tid();
	if ((s->pagemap = pagemap_open()) < 0) {
		int r = s->pagemap;
		free(s);
		return r;
	}
	*out = s;
	return 0;
}

static void found(struct sweep *s, uint64_t at, uint64_t v)
{
	uint64_t to = s->of.moved(s->of.arg, v);
	if (to == v || s->of.skip(s->of.arg, at))
		return;
	if (s->nr == WORDS_MAX) {
		s->error = -EFBIG;
		return;
	}
	if (!kx_room(s->word, s->cap, s->nr + 1, 1024)) {
		s->error = -ENOMEM;
		return;
	}
	s->word[s->nr++] = (struct word){ at, v, to };
}

static void look_page(struct sweep *s, uint64_t at)
{
	uint64_t buf[PAGE / 8], from = s->of.start, span = s->of.end - from;
	if (s->of.skip(s->of.arg, at) && s->of.skip(s->of.arg, at + PAGE - 8))
		return;
	int any = guest_find(at, PAGE, from, span);
	if (any < 0)
		return;
	s->pages++;
	if ((s->total += PAGE) > s->limit)
		s->error = -EFBIG;
	if (!any || guest_read(buf, at, PAGE))
		return;
	for (unsigned i = 0; i < PAGE / 8; i++)
		if (buf[i] - from < span)
			found(s, at + i * 8, buf[i]);
}

/* Those pages of [start, end), in region g, that hold something; all of a few, which is sooner done than asked. */
static void look_range(struct sweep *s, uint64_t start, uint64_t end, const struct gmem_region *g)
{
	static uint8_t there[PAGEMAP_PAGES];
	for (uint64_t at = start; at < end && !s->error; at += PAGEMAP_PAGES * PAGE) {
		unsigned n = (unsigned)((end - at) / PAGE < PAGEMAP_PAGES ? (end - at) / PAGE : PAGEMAP_PAGES);
		if (n > FEW && !pagemap_written(s->pagemap, g, at, n, there)) {
			s->error = s->stopped ? -EIO : 0; /* else it is gone by now, and what comes there is noted */
			continue;
		}
		for (unsigned i = 0; i < n && !s->error; i++)
			if (n <= FEW || there[i])
				look_page(s, at + i * PAGE);
	}
}

static bool query(const struct sweep *s, uint64_t at, struct gmem_region *g)
{
	return s->stopped ? gmem_query_locked(at, g) : gmem_query(at, g);
}

/* What of it the program can write. */
static void look(void *arg, uint64_t start, uint64_t end)
{
	struct sweep *s = arg;
	struct gmem_region g;
	for (uint64_t at = start; at < end && !s->error && query(s, at, &g) && g.start < end; at = g.end)
		if (g.prot & PROT_WRITE && !(g.flags & GMEM_TRAMP))
			look_range(s, g.start > at ? g.start : at, g.end < end ? g.end : end, &g);
}

static void look_all(struct sweep *s)
{
	look(s, 0, KX_USER_END);
	if (pvm.high_end)
		look(s, KX_SPACE_SIZE, pvm.high_end);
}

static void look_again(void *arg, uint64_t start, uint64_t end)
{
	const struct sweep *s = arg;
	s->of.written(s->of.arg, start, end);
	look(arg, start, end);
}

bool sweep_knew(const struct sweep *s) { return s->ahead; }

int sweep_track(struct sweep *s)
{
	int r = written_start();
	s->tracked = !r;
	return r;
}

void sweep_ahead(struct sweep *s)
{
	s->limit = AHEAD_MAX;
	s->total = 0;
	s->nr = 0;
	look_all(s);
	s->ahead = s->tracked && !s->error;
	s->error = 0;
}

size_t sweep_again(struct sweep *s)
{
	struct written_list a;
	if (!s->ahead)
		return 0;
	s->ahead = written_take_list(&a);
	s->pages = 0;
	s->total = 0;
	for (size_t i = 0; i < a.nr && s->ahead; i++)
		look_again(s, a.r[i].start, a.r[i].end);
	if (s->error)
		s->ahead = false;
	s->error = 0;
	free(a.r);
	return s->pages;
}

/* 0: changed; 1: it is another word by now; -EFAULT. */
static int change(const struct word *w)
{
	uint64_t now;
	struct gmem_region g;
	if (guest_read(&now, w->at, 8) || now != w->old)
		return 1;
	if (!guest_put(w->at, &w->new, 8))
		return 0;
	/* Read-only since it was found. */
	return gmem_query_locked(w->at, &g) && g.start <= w->at && g.prot & PROT_WRITE ? -EFAULT : 1;
}

int sweep_apply(struct sweep *s)
{
	int r = 0;
	s->stopped = true;
	s->total = 0;
	s->limit = STOPPED_MAX;
	s->nr_changed = 0;
	if (s->of.optional && !s->ahead) {
		s->stopped = false;
		return 0;
	}
	if (!s->ahead || !written_take(look_again, s)) {
		s->ahead = false;
		if (s->of.optional)
			s->error = -ENODATA;
		s->nr = 0;
		s->total = 0;
		if (!s->error)
			look_all(s);
	}
	r = s->of.optional ? 0 : s->error;
	s->error = 0;
	s->stopped = false;
	for (size_t i = 0; i < s->nr && r >= 0; i++) {
		r = change(&s->word[i]);
		if (!r)
			s->word[s->nr_changed++] = s->word[i];
	}
	if (r < 0)
		sweep_undo(s);
	return r < 0 ? r : 0;
}

void sweep_undo(struct sweep *s)
{
	uint64_t now;
	for (size_t i = s->nr_changed; i--;)
		if (!guest_read(&now, s->word[i].at, 8) && now == s->word[i].new)
			guest_put(s->word[i].at, &s->word[i].old, 8);
	s->nr_changed = 0;
	s->ahead = false; /* the list has lost some: the next time it is made anew */
}

void sweep_free(struct sweep *s)
{
	if (!s)
		return;
	if (s->tracked)
		written_stop();
	if (s->owner == my_tid()) /* a child of fork has none of that thread's */
		close(s->pagemap);
	free(s->word);
	free(s);
}
