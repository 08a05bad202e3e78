/* SPDX-License-Identifier: Apache-2.0 */
#include "sweep.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include "../../util/grow.h"
#include "gmem.h"
#include "written.h"

#define PAGE 4096ull
#define PIECE (1ull << 20)
#define STOPPED_MAX (512ull << 20) /* bytes in use that are looked through while everything stands */
#define AHEAD_MAX (32ull << 30)    /* and before */
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
	int error;
};

struct sweep *sweep_new(const struct sweep_of *of)
{
	struct sweep *s = calloc(1, sizeof *s);
	if (s)
		s->of = *of;
	return s;
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
	uint64_t buf[PAGE / 8], from = s->of.start, span = s->of.end - from, any = 0;
	if (guest_read(buf, at, PAGE))
		return;
	s->pages++;
	if ((s->total += PAGE) > s->limit)
		s->error = -EFBIG;
	for (unsigned i = 0; i < PAGE / 8; i++)
		any |= buf[i] - from < span;
	for (unsigned i = 0; any && i < PAGE / 8; i++)
		if (buf[i] - from < span)
			found(s, at + i * 8, buf[i]);
}

/* Those pages of [start, end) that are there. */
static void look_range(struct sweep *s, uint64_t start, uint64_t end)
{
	static uint8_t there[PIECE / PAGE];
	for (uint64_t at = start; at < end && !s->error; at += PIECE) {
		uint64_t len = end - at < PIECE ? end - at : PIECE;
		if (len > PAGE && HC6(SYS_mincore, gva_ptr(at), len, there, 0, 0, 0))
			continue;
		for (uint64_t k = 0; k < len && !s->error; k += PAGE)
			if (len == PAGE || there[k / PAGE] & 1)
				look_page(s, at + k);
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
			look_range(s, g.start > at ? g.start : at, g.end < end ? g.end : end);
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
	free(s->word);
	free(s);
}
