/* SPDX-License-Identifier: Apache-2.0 */
/* Site patcher: where the instructions are that are patched, and which branches end near them. */
#include "patch_priv.h"

#include <emmintrin.h>

enum {
	GAP_LOOKBACK = 4096, /* decoding falls into step long before that */
	GAP_AFTER = 256,
	FN_MAX = 1 << 20, /* a longer "function" is treated as a gap */
	PAIRS_MAX = 1 << 20,
	EVIDENCE_INSNS = 24, /* see gap_plausible() */
};

/* All offsets of the bytes 0f 05 and 0f a2 (up to PAIRS_MAX: what lies behind stays on the slow path). */
int patch_pairs_find(struct scan *s)
{
	const __m128i a = _mm_set1_epi8(0x0f), b = _mm_set1_epi8(0x05), c = _mm_set1_epi8((char)0xa2);
	unsigned cap = 0;
	size_t i = 0;

	while (i + 1 < s->len && s->n_pairs < PAIRS_MAX) {
		unsigned m;

		if (i + 17 <= s->len) {
			__m128i x = _mm_loadu_si128((const void *)(s->text + i));
			__m128i y = _mm_loadu_si128((const void *)(s->text + i + 1));

			y = _mm_or_si128(_mm_cmpeq_epi8(y, b), _mm_cmpeq_epi8(y, c));
			m = _mm_movemask_epi8(_mm_and_si128(_mm_cmpeq_epi8(x, a), y));
		} else {
			m = 0;
			for (unsigned k = 0; i + k + 1 < s->len; k++)
				m |= (unsigned)(s->text[i + k] == 0x0f &&
						(s->text[i + k + 1] == 0x05 || s->text[i + k + 1] == 0xa2))
				     << k;
		}
		for (; m; m &= m - 1) {
			if (s->n_pairs == cap && patch_grow(&s->pair, &cap, sizeof(*s->pair)))
				return -ENOMEM;
			s->pair[s->n_pairs++] = i + __builtin_ctz(m);
		}
		i += 16;
	}
	return 0;
}

static inline bool bit_get(const struct scan *s, uint32_t off)
{
	return s->bits[(off - s->lo) / 64] >> ((off - s->lo) % 64) & 1;
}

static inline void bit_set(struct scan *s, uint32_t off)
{
	s->bits[(off - s->lo) / 64] |= 1ull << ((off - s->lo) % 64);
}

/* Length of the instruction that ends (begins) at off in the current region, 0 = none. */
static unsigned insn_before(const struct scan *s, uint32_t off)
{
	for (unsigned d = 1; d <= 15 && off - s->lo >= d; d++)
		if (bit_get(s, off - d))
			return d;
	return 0;
}

static unsigned insn_after(const struct scan *s, uint32_t off)
{
	for (unsigned d = 1; d <= 15 && off + d <= s->end; d++)
		if (bit_get(s, off + d))
			return d;
	return 0;
}

static inline bool is_rel8(uint8_t op) { return (op & 0xf0) == 0x70 || op == 0xeb || (op & 0xfc) == 0xe0; }

/* The target of the instruction text[off..end) if it is a direct branch or takes a code address, else -1. */
static int64_t insn_target(const uint8_t *text, uint32_t off, uint32_t end)
{
	unsigned l = end - off;
	const uint8_t *e = text + end;

	if (l < 2)
		return -1;
	if (l <= 3 && is_rel8(e[-2]))
		return (int64_t)end + (int8_t)e[-1];
	if (l >= 5 && l <= 7 && ((e[-5] & 0xfe) == 0xe8 || (l >= 6 && e[-6] == 0x0f && (e[-5] & 0xf0) == 0x80)))
		return (int64_t)end + rel32_at(e - 4);
	if (l == 7 && e[-6] == 0x8d && (e[-5] & 0xc7) == 0x05)
		return (int64_t)end + rel32_at(e - 4);
	return -1;
}

/* jmp *reg or jmp *table(,reg,8), as for jump tables; not jmp *disp(reg) or jmp *disp(%rip), which leave. */
static bool insn_indirect(const uint8_t *p, unsigned l)
{
	while (l > 2 && (*p == 0x3e || *p == 0xf2 || (*p & 0xf0) == 0x40)) {
		p++;
		l--;
	}
	return l >= 2 && *p == 0xff && (p[1] & 0x38) == 0x20 && ((p[1] & 0xc0) == 0xc0 || (p[1] & 7) == 4);
}

/*
 * Decode [lo, hi); the last instruction may end behind hi but not behind limit. Fills bits, end, bad, indirect,
 * and tgt with the targets in [t_lo, t_hi).
 */
static int region_decode(struct scan *s, uint32_t lo, uint32_t hi, uint32_t limit, int64_t t_lo, int64_t t_hi)
{
	size_t words = (hi - lo + 16) / 64 + 1;
	uint32_t off = lo;

	if (words > s->bits_words) {
		free(s->bits);
		s->bits_words = words * 2;
		s->bits = malloc(s->bits_words * 8);
		if (!s->bits) {
			s->bits_words = 0;
			return -ENOMEM;
		}
	}
	memset(s->bits, 0, words * 8);
	s->lo = lo;
	s->bad = false;
	s->indirect = false;
	s->n_tgt = 0;
	while (off < hi) {
		unsigned l = patch_length(&s->dec, s->text + off, limit - off);
		int64_t t;

		bit_set(s, off);
		if (!l) {
			s->bad = true;
			off++;
			continue;
		}
		s->indirect |= insn_indirect(s->text + off, l);
		t = insn_target(s->text, off, off + l);
		if (t >= t_lo && t < t_hi) {
			if (s->n_tgt == s->cap_tgt && patch_grow(&s->tgt, &s->cap_tgt, sizeof(*s->tgt)))
				return -ENOMEM;
			s->tgt[s->n_tgt++] = t;
		}
		off += l;
	}
	bit_set(s, off);
	s->end = off;
	return 0;
}

static bool insn_odd(const ZydisDecodedInstruction *in)
{
	if (in->mnemonic == ZYDIS_MNEMONIC_INT3) /* padding */
		return false;
	switch (in->meta.category) {
	case ZYDIS_CATEGORY_IO:
	case ZYDIS_CATEGORY_IOSTRINGOP:
	case ZYDIS_CATEGORY_INTERRUPT:
	case ZYDIS_CATEGORY_FLAGOP:
	case ZYDIS_CATEGORY_SEGOP:
	case ZYDIS_CATEGORY_SYSTEM:
	case ZYDIS_CATEGORY_X87_ALU:
		return true;
	default:
		break;
	}
	switch (in->mnemonic) {
	case ZYDIS_MNEMONIC_ENTER:
	case ZYDIS_MNEMONIC_XLAT:
	case ZYDIS_MNEMONIC_LOOP:
	case ZYDIS_MNEMONIC_LOOPE:
	case ZYDIS_MNEMONIC_LOOPNE:
	case ZYDIS_MNEMONIC_IRETQ:
	case ZYDIS_MNEMONIC_HLT:
		return true;
	default:
		return false;
	}
}

/*
 * Outside known functions the bytes may be data. Believe in a syscall there only when the instructions before it
 * all decode, none is of a kind that compiled code does not have, and one near it sets eax.
 */
static bool gap_plausible(const struct scan *s, uint32_t sys)
{
	bool eax = false;
	uint32_t off = sys;

	for (unsigned i = 0; i < EVIDENCE_INSNS; i++) {
		ZydisDecodedInstruction in;
		ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
		unsigned d = insn_before(s, off);

		if (!d)
			break;
		off -= d;
		if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&s->dec, s->text + off, d, &in, op)) || in.length != d ||
		    insn_odd(&in))
			return false;
		if (in.operand_count && op[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    (op[0].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) &&
		    (op[0].reg.value == ZYDIS_REGISTER_EAX || op[0].reg.value == ZYDIS_REGISTER_RAX))
			eax = true;
	}
	return eax;
}

/*
 * mov $15,%rax; syscall is how unwinders recognise a signal frame when no unwind table covers the code: then the
 * bytes must stay.
 */
static bool is_restorer(const struct scan *s, uint32_t sys)
{
	static const uint8_t code[] = { 0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0 };

	return sys >= sizeof(code) && !memcmp(s->text + sys - sizeof(code), code, sizeof(code));
}

/* Mark the branch target t at every site whose zone holds it. */
static void target_mark(struct scan *s, unsigned first, int64_t t, bool exact)
{
	unsigned a = first, b = s->n;

	while (a < b) {
		unsigned mid = (a + b) / 2;

		if ((int64_t)s->cand[mid].sys - ZONE_BACK + ZONE_LEN <= t)
			a = mid + 1;
		else
			b = mid;
	}
	for (; a < s->n && (int64_t)s->cand[a].sys - ZONE_BACK <= t; a++) {
		uint64_t bit = 1ull << (t - ((int64_t)s->cand[a].sys - ZONE_BACK));

		if (exact)
			s->cand[a].exact |= bit;
		else
			s->cand[a].raw |= bit;
	}
}

/* Decode the region that holds pair[p..q) and keep its sites. fn = the containing function or NULL. */
static int region_scan(struct scan *s, unsigned p, unsigned q, uint32_t lo, uint32_t hi, uint32_t limit,
		       const struct patch_range *fn)
{
	unsigned first = s->n;
	int err;

	err = region_decode(s, lo, hi, limit, (int64_t)s->pair[p] - ZONE_BACK,
			    (int64_t)s->pair[q - 1] - ZONE_BACK + ZONE_LEN);
	if (err)
		return err;
	for (; p < q; p++) {
		struct cand *c;
		uint32_t sys = s->pair[p], off;
		unsigned d;
		bool cpuid;

		if (!bit_get(s, sys) || insn_after(s, sys) != 2)
			continue;
		cpuid = s->text[sys + 1] == 0xa2;
		if (cpuid)
			s->cpuid_found++;
		else
			s->found++;
		if (s->n >= KX_SITES_MAX)
			continue;
		/* An executable segment can begin with relocations and strings and end with constants. */
		if (s->known && (sys < s->code_lo || sys >= s->code_hi))
			continue;
		/* Where unwind tables tell of most of the code, a gap between functions is as likely a table of data. */
		if (!fn && s->unwound > (s->code_hi - s->code_lo) / 2)
			continue;
		if ((!fn || s->bad) && !gap_plausible(s, sys))
			continue;
		if (!cpuid && !(fn && (fn->flags & PATCH_FN_UNWIND)) && is_restorer(s, sys))
			continue;
		if (s->n == s->cap && patch_grow(&s->cand, &s->cap, sizeof(*s->cand)))
			return -ENOMEM;
		c = &s->cand[s->n++];
		*c = (struct cand){
			.sys = sys, .cpuid = cpuid, .lo = s->lo, .hi = s->end, .clean = !s->bad, .indirect = s->indirect
		};
		for (off = sys; c->nb < NEIGHBOURS && (d = insn_before(s, off)); off -= d)
			c->before[c->nb++] = d;
		for (off = sys + 2; c->na < NEIGHBOURS && (d = insn_after(s, off)); off += d)
			c->after[c->na++] = d;
	}
	if (s->n > first)
		for (unsigned i = 0; i < s->n_tgt; i++)
			target_mark(s, first, s->tgt[i], true);
	return 0;
}

/* Offsets of hint h in the text; false when it is not usable there. */
bool patch_hint_span(const struct scan *s, uint64_t gva, const struct patch_range *h, uint32_t *lo, uint32_t *hi)
{
	if (h->start < gva || h->end <= h->start || h->start - gva >= s->len)
		return false;
	*lo = h->start - gva;
	*hi = h->end - gva < s->len ? h->end - gva : s->len;
	return true;
}

int patch_sites_find(struct scan *s, uint64_t gva, const struct patch_hints *hints)
{
	unsigned h = 0, n_hints = hints ? hints->n : 0, p = 0;
	uint32_t floor = 0; /* end of the last known function or decoded region */
	uint32_t sync = 0;  /* start of the last known function when floor is its end, else floor */

	while (p < s->n_pairs) {
		const struct patch_range *fn = NULL;
		uint32_t at = s->pair[p], lo = 0, hi = 0, next = s->len;
		unsigned q = p + 1;
		int err;

		for (; h < n_hints; h++) {
			if (!patch_hint_span(s, gva, &hints->fn[h], &lo, &hi) || lo < floor)
				continue;
			if (hi > at) {
				next = lo;
				break;
			}
			sync = hi - lo <= FN_MAX ? lo : hi;
			floor = hi;
		}
		if (h < n_hints && at >= lo) {
			next = hi;
			if (hi - lo <= FN_MAX)
				fn = &hints->fn[h];
		}
		if (!fn) {
			if (h < n_hints && at >= lo && lo > floor)
				sync = floor = lo;
			lo = at - floor > GAP_LOOKBACK ? at - GAP_LOOKBACK : sync;
			hi = next - at > GAP_AFTER ? at + GAP_AFTER : next;
			while (q < s->n_pairs && s->pair[q] < hi) {
				hi = next - s->pair[q] > GAP_AFTER ? s->pair[q] + GAP_AFTER : next;
				q++;
			}
		} else {
			while (q < s->n_pairs && s->pair[q] < hi)
				q++;
		}
		err = region_scan(s, p, q, lo, hi, next, fn);
		if (err)
			return err;
		p = q;
		if (s->end > floor)
			floor = s->end;
		sync = floor;
		if (fn) {
			sync = lo;
			h++;
		} else {
			while (p < s->n_pairs && s->pair[p] < floor) /* cut by the last instruction: no site */
				p++;
		}
	}
	return 0;
}

/*
 * Whatever looks like call/jmp/jcc rel32 or lea disp32(%rip), at any byte position, and ends near a site. One pass;
 * a bitmap of 32-byte blocks turns nearly all away.
 */
int patch_targets_rel32(struct scan *s)
{
	const __m128i c_fe = _mm_set1_epi8((char)0xfe), c_e8 = _mm_set1_epi8((char)0xe8);
	const __m128i c_f0 = _mm_set1_epi8((char)0xf0), c_80 = _mm_set1_epi8((char)0x80);
	const __m128i c_0f = _mm_set1_epi8(0x0f), c_8d = _mm_set1_epi8((char)0x8d);
	const __m128i c_c7 = _mm_set1_epi8((char)0xc7), c_05 = _mm_set1_epi8(0x05);
	uint64_t *near = calloc(s->len / 32 / 64 + 1, 8);
	size_t i = 1;

	if (!near)
		return -ENOMEM;
	for (unsigned k = 0; k < s->n; k++)
		for (int64_t t = (int64_t)s->cand[k].sys - ZONE_BACK; t < (int64_t)s->cand[k].sys + ZONE_LEN; t += 32)
			if (t >= 0 && (size_t)t < s->len)
				near[t / 32 / 64] |= 1ull << (t / 32 % 64);
	if (s->len > 5 && (s->text[0] & 0xfe) == 0xe8)
		target_mark(s, 0, 5 + (int64_t)rel32_at(s->text + 1), false);
	while (i + 5 <= s->len) {
		unsigned m = 0;

		if (i + 16 <= s->len) {
			__m128i v = _mm_loadu_si128((const void *)(s->text + i));
			__m128i w = _mm_loadu_si128((const void *)(s->text + i - 1));
			__m128i br = _mm_cmpeq_epi8(_mm_and_si128(v, c_fe), c_e8);
			__m128i jcc = _mm_and_si128(_mm_cmpeq_epi8(_mm_and_si128(v, c_f0), c_80),
						    _mm_cmpeq_epi8(w, c_0f));
			__m128i lea = _mm_and_si128(_mm_cmpeq_epi8(_mm_and_si128(v, c_c7), c_05),
						    _mm_cmpeq_epi8(w, c_8d));

			m = _mm_movemask_epi8(_mm_or_si128(br, _mm_or_si128(jcc, lea)));
		} else {
			for (unsigned k = 0; i + k < s->len; k++) {
				uint8_t b = s->text[i + k], a = s->text[i + k - 1];

				m |= (unsigned)((b & 0xfe) == 0xe8 || ((b & 0xf0) == 0x80 && a == 0x0f) ||
						((b & 0xc7) == 0x05 && a == 0x8d))
				     << k;
			}
		}
		for (; m; m &= m - 1) {
			size_t at = i + __builtin_ctz(m) + 1;
			int64_t t;

			if (at + 4 > s->len)
				break;
			t = (int64_t)at + 4 + rel32_at(s->text + at);
			if ((uint64_t)t < s->len && near[t / 32 / 64] >> (t / 32 % 64) & 1)
				target_mark(s, 0, t, false);
		}
		i += 16;
	}
	free(near);
	return 0;
}

/* Bytes outside the site's decoded region that look like a rel8 branch into its zone. */
void patch_targets_rel8(struct scan *s, struct cand *c)
{
	int64_t zone = (int64_t)c->sys - ZONE_BACK, lo = zone - 130, hi = zone + ZONE_LEN + 128;

	for (int64_t i = lo < 0 ? 0 : lo; i < hi && i + 2 <= (int64_t)s->len; i++) {
		int64_t t;

		if (c->clean && i >= c->lo && i < c->hi) {
			i = c->hi - 1;
			continue;
		}
		if (!is_rel8(s->text[i]))
			continue;
		t = i + 2 + (int8_t)s->text[i + 1];
		if (t >= zone && t < zone + ZONE_LEN)
			c->raw |= 1ull << (t - zone);
	}
}
