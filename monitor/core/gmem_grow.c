/* SPDX-License-Identifier: Apache-2.0 */
#include "gmem_grow.h"
#include <sys/mman.h>
#include <sys/syscall.h>
#include "gmem_priv.h"
#include "keeper.h"

#define WATCHED 4
#define STEP_MAX (256ull << 10)
#define WINDOW 8 /* pages that are looked at */
#define LOOKS 48 /* in a row that find nothing new */

/* Under pvm.mm_lock. at 0: none. */
static struct grow {
	uint64_t start, at, end;
	unsigned looks;
} grow[WATCHED];
static unsigned oldest;
bool gmem_grow_any;

void gmem_grow_watch(uint64_t start, uint64_t at, uint64_t end)
{
	if (at >= end)
		return;
	grow[oldest++ % WATCHED] = (struct grow){ start, at, end, 0 };
	gmem_grow_any = true;
}

void gmem_grow_carved(uint64_t start, uint64_t end)
{
	for (unsigned i = 0; i < WATCHED; i++)
		if (grow[i].start < end && start < grow[i].end)
			grow[i].at = 0;
}

/* False: it is not worth looking any more. */
static bool look(struct grow *g)
{
	unsigned char page[WINDOW];
	bool any = false;
	/* Allocators touch the begin of a piece first: some pages are left out. */
	unsigned n = g->end - g->at < WINDOW * PAGE ? (unsigned)((g->end - g->at) / PAGE) : WINDOW;
	if (HC6(SYS_mincore, gva_ptr(g->at), n * PAGE, page, 0, 0, 0))
		return false;
	for (unsigned i = 0; i < n; i++)
		any |= page[i] & 1;
	if (!any)
		return ++g->looks < LOOKS;
	uint64_t step = g->at - g->start;
	if (step > STEP_MAX)
		step = STEP_MAX;
	if (step > g->end - g->at)
		step = g->end - g->at;
	if (!touch_more(g->at, step))
		return false;
	g->at += step;
	g->looks = 0;
	return g->at < g->end;
}

void gmem_grow_look(uint64_t nr)
{
	/* What is touched ahead of a fork is copied for nothing. */
	bool last = nr == SYS_clone || nr == SYS_clone3 || nr == SYS_fork || nr == SYS_vfork, any = false;
	if (is_vfork_child())
		return;
	pthread_mutex_lock(&pvm.mm_lock);
	for (unsigned i = 0; i < WATCHED; i++) {
		if (grow[i].at && (last || !look(&grow[i])))
			grow[i].at = 0;
		any |= grow[i].at != 0;
	}
	gmem_grow_any = any;
	pthread_mutex_unlock(&pvm.mm_lock);
}
