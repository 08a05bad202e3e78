/* SPDX-License-Identifier: Apache-2.0 */
#include "retire.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "pagemap.h"
#include "relink_priv.h"
#include "update_priv.h"
#include "written.h"
#include "vcpu.h"

#define VERSIONS_MAX 64           /* at a time */
#define MEMORY_MAX (4ull << 30)   /* bytes in use that are looked through, */
#define SPAN_MAX (64ull << 30)    /* and that their regions may have in all */
#define STOPPED_MAX (4ull << 20)  /* bytes while everything stands */
#define PAUSE_EVERY (16ull << 20) /* bytes */
#define TCB_GUARD 0x30            /* glibc's tcbhead_t.pointer_guard */
#define SHARED_MAX 64             /* mappings of shared memory */

struct retire {
	struct retired *of[VERSIONS_MAX];
	unsigned nr;
	/* By version: which ones its own memory refers to, in their code and data or in their constants. */
	uint64_t code_from[VERSIONS_MAX], const_from[VERSIONS_MAX];
	uint64_t code, constant; /* those that the program refers to */
	uint64_t low, span;      /* where all of them are */
	uint64_t guard;          /* glibc's key for what it mangles */
	uint64_t bytes, rested;
	int pagemap;
	bool blind; /* something can't be looked at */
	bool stopped;
	struct {
		uint64_t start, end;
	} shared[SHARED_MAX];
	unsigned nr_shared;
};

/* ---- words ------------------------------------------------------------------------------------------------------------ */

/* A word that is an address in one of them, at a place that is `in`'s (-1: the program's). */
static void hit(struct retire *x, uint64_t v, int in)
{
	for (unsigned i = 0; i < x->nr; i++) {
		const struct retired *t = x->of[i];
		if (v < t->start || v >= t->end || (int)i == in)
			continue;
		bool code = true;
		for (unsigned k = 0; k < t->nr_seg; k++)
			if (v >= t->seg[k].start && v < t->seg[k].end)
				code = t->seg[k].code;
		uint64_t *set = in < 0 ? code ? &x->code : &x->constant : code ? &x->code_from[in] : &x->const_from[in];
		*set |= 1ull << i;
		return;
	}
}

static inline uint64_t unmangled(uint64_t v, uint64_t guard) { return (v >> 17 | v << 47) ^ guard; }

/* Words at addresses that are multiples of `step`. bytes behind len belong to the buffer. */
static void look_words(struct retire *x, const uint8_t *p, size_t len, unsigned step, int in)
{
	const uint64_t low = x->low, span = x->span, guard = x->guard;
	uint64_t v, w, any = 0;
	for (size_t i = 0; i + 8 <= len; i += 8) {
		memcpy(&v, p + i, 8);
		memcpy(&w, p + i + (i + 12 <= len ? 4 : 0), 8);
		any |= (v - low < span) | (w - low < span) | (unmangled(v, guard) - low < span);
	}
	for (size_t i = 0; (any || step < 4) && i + 8 <= len; i += step) {
		memcpy(&v, p + i, 8);
		if (v - low < span)
			hit(x, v, in);
		if (i % 8 == 0 && unmangled(v, guard) - low < span)
			hit(x, unmangled(v, guard), in);
	}
}

/* ---- memory ------------------------------------------------------------------------------------------------------------ */

/* Whose memory that is: of a version that is retired, -1 = the program's. */
static int whose(const struct retire *x, uint64_t at)
{
	for (unsigned i = 0; i < x->nr; i++) {
		const struct retired *t = x->of[i];
		if ((at >= t->start && at < t->end) || (t->aux && at - t->aux < t->aux_len))
			return (int)i;
	}
	return -1;
}

static bool query(const struct retire *x, uint64_t at, struct gmem_region *g)
{
	return x->stopped ? gmem_query_locked(at, g) : gmem_query(at, g);
}

static void look_page(struct retire *x, uint64_t at, const struct gmem_region *g)
{
	uint8_t page[PAGE + 8];
	if (guest_read(page, at, PAGE)) {
		x->blind = true;
		return;
	}
	/* With words that end in the next one. */
	size_t len = PAGE;
	bool code = g->prot & PROT_EXEC;
	if (at + PAGE < g->end && !guest_read(page + PAGE, at + PAGE, 8))
		len += code ? 7 : 4;
	x->bytes += PAGE;
	look_words(x, page, len, code ? 1 : 4, whose(x, at));
}

/* Pages of [start, end) in region g that hold words of the program's. */
static void look_range(struct retire *x, uint64_t start, uint64_t end, const struct gmem_region *g)
{
	static uint8_t there[PAGEMAP_PAGES];
	for (uint64_t at = start; at < end && !x->blind; at += PAGEMAP_PAGES * PAGE) {
		unsigned n = (unsigned)((end - at) / PAGE < PAGEMAP_PAGES ? (end - at) / PAGE : PAGEMAP_PAGES);
		if (!pagemap_written(x->pagemap, g, at, n, there)) {
			x->blind = true;
			return;
		}
		for (unsigned i = 0; i < n && !x->blind; i++) {
			if (!there[i])
				continue;
			if (!(g->prot & PROT_READ))
				x->blind = true; /* what the program has put away */
			else
				look_page(x, at + i * PAGE, g);
		}
	}
}

static bool is_stack(const struct gmem_region *g)
{
	return g->flags & MAP_STACK || (g->start < pvm.stack_top && g->end >= pvm.stack_top);
}

static bool shared_known(struct retire *x, const struct gmem_region *g)
{
	if ((g->flags & MAP_TYPE) == MAP_PRIVATE || !(g->prot & (PROT_READ | PROT_WRITE)))
		return true;
	for (unsigned i = 0; i < x->nr_shared; i++)
		if (x->shared[i].start <= g->start && x->shared[i].end >= g->end)
			return true;
	if (x->stopped || x->nr_shared == SHARED_MAX)
		return false;
	x->shared[x->nr_shared].start = g->start;
	x->shared[x->nr_shared++].end = g->end;
	return true;
}

/* [start, end) of all regions; stacks alone, or all but these. */
static void look(struct retire *x, uint64_t start, uint64_t end, void (*pause)(void))
{
	struct gmem_region g;
	uint64_t span = 0;
	for (uint64_t at = start; at < end && !x->blind && query(x, at, &g) && g.start < end; at = g.end) {
		uint64_t from = g.start > at ? g.start : at, to = g.end < end ? g.end : end;
		if (gmem_own(&g) || is_stack(&g))
			continue;
		span += to - from;
		if (span > SPAN_MAX || x->bytes > MEMORY_MAX || !shared_known(x, &g)) {
			x->blind = true;
			return;
		}
		/* In pieces, so that whoever waits gets its turn. */
		for (uint64_t a = from; a < to && !x->blind; a += PAUSE_EVERY) {
			look_range(x, a, to - a < PAUSE_EVERY ? to : a + PAUSE_EVERY, &g);
			if (pause && x->bytes - x->rested > PAUSE_EVERY) {
				x->rested = x->bytes;
				pause();
			}
		}
	}
}

static void look_written(void *arg, uint64_t start, uint64_t end) { look(arg, start, end, NULL); }

/* ---- threads ------------------------------------------------------------------------------------------------------------ */

/* What of a stack is in use; where it can't be told whose it is, all is. */
static uint64_t stack_begin(const struct gmem_region *g, struct thread *const *t, const struct unwind_regs *u,
			    unsigned nr)
{
	unsigned owner = nr, users = 0;
	for (unsigned i = 0; i < nr; i++) {
		uint64_t sp = u[i].r[UNWIND_RSP], tls = vcpu_fs_base(t[i]);
		bool on = sp >= g->start && sp < g->end;
		/* glibc puts what it keeps of a thread at the end of the stack that it has made for it. */
		bool its = t[i]->tid == pvm.pid ? g->end >= pvm.stack_top && g->start < pvm.stack_top
						: tls > sp && tls < g->end && tls >= g->start;
		users += on || (tls >= g->start && tls < g->end);
		if (on && its)
			owner = i;
	}
	return owner < nr && users == 1 ? (u[owner].r[UNWIND_RSP] - 128) & ~(uint64_t)7 : g->start;
}

static void look_stacks(struct retire *x, struct thread *const *t, const struct unwind_regs *u, unsigned nr)
{
	struct gmem_region g;
	for (uint64_t at = 0; !x->blind && gmem_query_locked(at, &g); at = g.end) {
		if (gmem_own(&g) || !is_stack(&g))
			continue;
		uint64_t from = stack_begin(&g, t, u, nr), page = DOWN(from);
		if (!shared_known(x, &g))
			x->blind = true;
		if (from <= g.start || from >= g.end) {
			look_range(x, g.start, g.end, &g);
			continue;
		}
		uint8_t rest[PAGE];
		size_t len = page + PAGE - from;
		if (guest_read(rest, from, len))
			x->blind = true;
		else
			look_words(x, rest, len, 4, -1);
		look_range(x, page + PAGE, g.end, &g);
	}
}

static void look_thread(struct retire *x, struct thread *t, const struct unwind_regs *u)
{
	struct kvm_xsave save;
	uint64_t guard;
	if (ioctl(t->vcpu_fd, KVM_GET_XSAVE, &save) || guest_read(&guard, vcpu_fs_base(t) + TCB_GUARD, sizeof guard) ||
	    guard != x->guard) {
		x->blind = true;
		return;
	}
	look_words(x, (const uint8_t *)u, sizeof *u, 4, -1);
	look_words(x, (const uint8_t *)frame_of(t), sizeof(struct kx_frame), 4, -1);
	look_words(x, (const uint8_t *)&save, sizeof save, 4, -1);
	look_words(x, (const uint8_t *)t->area, sizeof *t->area, 4, -1);
	look_words(x, (const uint8_t *)actions_of(t), sizeof(struct kx_sigaction[65]), 4, -1);
	look_words(x, (const uint8_t *)t, sizeof *t, 4, -1);
}

bool retire_stopped(struct retire *x, struct thread *const *t, const struct unwind_regs *u, unsigned nr)
{
	struct gmem_region g;
	x->stopped = true;
	x->bytes = 0;
	bool good = written_take(look_written, x);
	for (unsigned i = 0; i < nr && good; i++)
		look_thread(x, t[i], &u[i]);
	/* Mappings of shared memory that are new. */
	for (uint64_t at = 0; good && gmem_query_locked(at, &g); at = g.end)
		good = gmem_own(&g) || is_stack(&g) || shared_known(x, &g);
	look_words(x, (const uint8_t *)pvm.shared, sizeof *pvm.shared, 4, -1);
	look_stacks(x, t, u, nr);
	x->stopped = false;
	return good && !x->blind && x->bytes < STOPPED_MAX;
}

/* ---- one pass ------------------------------------------------------------------------------------------------------------ */

static bool none_left(const struct retire *x)
{
	uint64_t all = x->nr == 64 ? ~0ull : (1ull << x->nr) - 1;
	return x->blind || (x->code & all) == all;
}

/* By AT_RANDOM, as ld.so makes it. */
static uint64_t pointer_guard(void)
{
	const uint64_t *a = (const uint64_t *)pvm.auxv;
	uint64_t v = 0;
	for (unsigned i = 0; i + 1 < pvm.auxv_len / 8; i += 2)
		if (a[i] == AT_RANDOM && guest_read(&v, a[i + 1] + 8, 8))
			v = 0;
	return v;
}

struct retire *retire_new(void)
{
	struct retire *x = relink_retired ? calloc(1, sizeof *x) : NULL;
	uint64_t high = 0;
	if (!x)
		return NULL;
	x->low = ~0ull;
	for (struct retired *t = relink_retired; t && x->nr < VERSIONS_MAX; t = t->next) {
		x->of[x->nr++] = t;
		x->low = t->start < x->low ? t->start : x->low;
		high = t->end > high ? t->end : high;
	}
	x->span = high - x->low;
	x->guard = pointer_guard();
	x->pagemap = pagemap_open();
	if (x->pagemap < 0 || written_start()) {
		if (x->pagemap >= 0)
			close(x->pagemap);
		free(x);
		return NULL;
	}
	return x;
}

bool retire_ahead(struct retire *x, void (*pause)(void))
{
	look(x, 0, KX_USER_END, pause);
	if (pvm.high_end)
		look(x, KX_SPACE_SIZE, pvm.high_end, pause);
	return !none_left(x);
}

long retire_again(struct retire *x)
{
	struct written_list a;
	uint64_t before = x->bytes;
	bool good = written_take_list(&a);
	for (size_t i = 0; i < a.nr && good && !x->blind; i++)
		look(x, a.r[i].start, a.r[i].end, NULL);
	free(a.r);
	return good && !none_left(x) ? (long)((x->bytes - before) / PAGE) : -1;
}

/* What is in use of versions that are in use is. */
static void close_over(struct retire *x)
{
	for (unsigned again = 0; again <= x->nr; again++)
		for (unsigned i = 0; i < x->nr; i++)
			if (x->code >> i & 1) {
				x->code |= x->code_from[i];
				x->constant |= x->const_from[i];
			}
}

/* Its code and variables; constants stay. */
static void shrink(struct retired *t)
{
	for (unsigned i = 0; i < t->nr_seg; i++)
		if (t->seg[i].code)
			gmem_munmap(t->seg[i].start, t->seg[i].end - t->seg[i].start);
	t->partial = true;
}

unsigned retire_done(struct retire *x, bool proven)
{
	unsigned left = 0;
	written_stop();
	close(x->pagemap);
	close_over(x);
	for (unsigned i = 0; i < x->nr && proven; i++) {
		struct retired *t = x->of[i], **p = &relink_retired;
		if (x->code >> i & 1)
			continue;
		if (x->constant >> i & 1) {
			if (!t->partial)
				shrink(t);
			continue;
		}
		/* What can't be unmapped now is after the next update. */
		if (t->aux && gmem_munmap(t->aux, t->aux_len))
			continue;
		t->aux = 0;
		if (gmem_munmap(t->start, t->end - t->start))
			continue;
		while (*p && *p != t)
			p = &(*p)->next;
		if (*p)
			*p = t->next;
		free(t);
	}
	for (struct retired *t = relink_retired; t; t = t->next)
		left++;
	free(x);
	return left;
}
