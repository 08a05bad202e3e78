/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the site patcher share (patch.h). */
#ifndef KX_MONITOR_PATCH_PRIV_H
#define KX_MONITOR_PATCH_PRIV_H

#include <Zydis/Zydis.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "patch.h"

enum {
	NEIGHBOURS = 6, /* instructions looked at on either side of a site */
	WINDOW_MIN = 5,
	WINDOW_MAX = PATCH_WINDOW_MAX,
	ZONE_BACK = 24, /* branch targets are kept for [sys - ZONE_BACK, sys - ZONE_BACK + 64) */
	ZONE_LEN = 64,
	RANGES_MAX = 1 << 20,
};

#define NR_MAPS (sizeof(((struct kx_site *)0)->map) / sizeof(((struct kx_site *)0)->map[0]))

/* How the last displaced instruction behind the syscall is emitted. */
enum { TAIL_NONE, TAIL_PLAIN, TAIL_RET, TAIL_JMP, TAIL_JCC };

struct patch_tail {
	uint32_t tramp_off;
	uint8_t kind; /* TAIL_* */
	uint8_t last; /* length of the instruction that TAIL_JMP/JCC re-encode */
};

/* One `syscall` or `cpuid`: offsets are into the text. */
struct cand {
	uint32_t sys, lo, hi; /* the decoded region [lo, hi) is its neighbourhood */
	uint8_t nb, na;       /* neighbours: lengths, nearest first */
	uint8_t before[NEIGHBOURS], after[NEIGHBOURS];
	bool cpuid;
	bool clean;          /* every instruction of the region is known */
	bool indirect;       /* the region holds an indirect jump */
	uint64_t exact, raw; /* branch targets in the zone: by decoded branches; by bytes that look like one */
};

struct scan {
	bool known; /* hints tell where the code is: */
	uint32_t code_lo, code_hi;
	uint64_t unwound; /* bytes of functions that unwind tables name */
	const uint8_t *text;
	size_t len;
	ZydisDecoder dec;
	uint32_t *pair;
	unsigned n_pairs;
	struct cand *cand;
	unsigned n, cap, found, cpuid_found;
	uint64_t *bits; /* of the current region: instruction starts, and its end */
	size_t bits_words;
	uint32_t lo, end; /* current region as decoded */
	bool bad;         /* it has bytes that do not decode */
	bool indirect;    /* it has an indirect jump */
	uint32_t *tgt;    /* branch targets near its pairs */
	unsigned n_tgt, cap_tgt;
};

/* A window: k instructions before the syscall, and the syscall with m behind it unless intact. */
struct window {
	unsigned k, m;
	bool intact;
};

static inline int patch_grow(void *arr, unsigned *cap, size_t size)
{
	unsigned want = *cap ? *cap * 2 : 256;
	void **p = arr, *q = realloc(*p, want * size);

	if (!q)
		return -ENOMEM;
	*p = q;
	*cap = want;
	return 0;
}

static inline int32_t rel32_at(const uint8_t *p)
{
	int32_t v;

	memcpy(&v, p, 4);
	return v;
}

/* patch_insn.c: the length of the instruction at p, of which n bytes are there; 0 = not valid. */
unsigned patch_length(const ZydisDecoder *dec, const uint8_t *p, size_t n);

/* patch_sites.c, in this order. The pairs of bytes that may be a site; */
int patch_pairs_find(struct scan *s);
/* those of them that are instructions, with their neighbours; */
int patch_sites_find(struct scan *s, uint64_t gva, const struct patch_hints *hints);
/* whatever looks like a branch to one: by a rel32 to any, by a rel8 to this one. */
int patch_targets_rel32(struct scan *s);
void patch_targets_rel8(struct scan *s, struct cand *c);
/* Offsets of hint h in the text; false when it is not usable there. */
bool patch_hint_span(const struct scan *s, uint64_t gva, const struct patch_range *h, uint32_t *lo, uint32_t *hi);

/* patch_window.c: the best window that starts at or behind floor; false = none. *last: how its last instruction may move. */
bool patch_window_choose(const struct scan *s, const struct cand *c, uint32_t floor, struct window *best, int *last);
/* Lay the trampoline out: lengths, map and tail of one site. */
void patch_site_plan(const struct cand *c, const struct window *w, int last, uint64_t gva, struct kx_site *site,
		     struct patch_tail *tail);
#endif
