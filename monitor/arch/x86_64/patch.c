/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Site patcher: see patch.h. What is said of a `syscall` holds for a `cpuid` as well.
 *
 * Scan: 1. find the byte pairs 0f 05 and 0f a2; 2. decode each function (or gap between functions) that holds one, once,
 * and keep the pairs that are instructions, with their neighbours and the branches that end near them; 3. look
 * through the whole text for rel32 branches and code addresses that end near a site; 4. choose windows.
 *
 * A window never has a known branch target in its bytes 1..4. From byte 5 on, whole original instructions stay in
 * place, so that even an unknown jump to one of them works. In functions with an indirect jump (jump tables),
 * windows have no instruction boundary in bytes 1..4, except one where insn_no_case() holds.
 */
#include "patch.h"

#include <Zydis/Zydis.h>
#include <elf.h>
#include <emmintrin.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum {
	NEIGHBOURS = 6, /* instructions looked at on either side of a site */
	WINDOW_MIN = 5,
	WINDOW_MAX = 15,
	ZONE_BACK = 24, /* branch targets are kept for [sys - ZONE_BACK, sys - ZONE_BACK + 64) */
	ZONE_LEN = 64,
	GAP_LOOKBACK = 4096, /* decoding falls into step long before that */
	GAP_AFTER = 256,
	FN_MAX = 1 << 20, /* a longer "function" is treated as a gap */
	PAIRS_MAX = 1 << 20,
	RANGES_MAX = 1 << 20,
	EVIDENCE_INSNS = 24, /* see gap_plausible() */
	TRAMP_ALIGN = 8,
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

/* ---- Instruction lengths ------------------------------------------------------------------------------- */

/*
 * Most instructions in compiled code have a length that a table gives; Zydis decodes the rest. The table is exact
 * for valid instructions; of invalid ones it accepts some that Zydis refuses.
 */
enum { L_Z = 0, L_1 = 0x10, L_M = 0x20, L_I8 = 0x01, L_IZ = 0x02, L_I4 = 0x04, L_F6 = 0x08, L_IV = 0x40 };

static const uint8_t len_map1[256] = {
#define ALU L_M, L_M, L_M, L_M, L_1 | L_I8, L_1 | L_IZ, L_Z, L_Z
	ALU,
	ALU,
	ALU,
	ALU,
	ALU,
	ALU,
	ALU,
	ALU,
#undef ALU
	[0x50 ... 0x5f] = L_1,
	[0x63] = L_M,
	[0x68] = L_1 | L_IZ,
	L_M | L_IZ,
	L_1 | L_I8,
	L_M | L_I8,
	[0x70 ... 0x7f] = L_1 | L_I8,
	[0x80] = L_M | L_I8,
	L_M | L_IZ,
	[0x83] = L_M | L_I8,
	[0x84 ... 0x8b] = L_M,
	[0x8d] = L_M,
	[0x90 ... 0x99] = L_1,
	[0xa4 ... 0xa7] = L_1,
	[0xa8] = L_1 | L_I8,
	L_1 | L_IZ,
	[0xaa ... 0xaf] = L_1,
	[0xb0 ... 0xb7] = L_1 | L_I8,
	[0xb8 ... 0xbf] = L_1 | L_IV,
	[0xc0] = L_M | L_I8,
	L_M | L_I8,
	[0xc3] = L_1,
	[0xc9] = L_1,
	[0xcc] = L_1,
	[0xd0 ... 0xd3] = L_M,
	[0xe8] = L_1 | L_I4,
	L_1 | L_I4,
	[0xeb] = L_1 | L_I8,
	[0xf6] = L_M | L_F6 | L_I8,
	L_M | L_F6 | L_IZ,
};

static const uint8_t len_map2[256] = {
	[0x05] = L_1,
	[0x0b] = L_1,
	[0x10 ... 0x17] = L_M,
	[0x1f] = L_M,
	[0x28 ... 0x2f] = L_M,
	[0x40 ... 0x4f] = L_M,
	[0x54 ... 0x6f] = L_M,
	[0x70] = L_M | L_I8,
	[0x74 ... 0x76] = L_M,
	[0x7e ... 0x7f] = L_M,
	[0x80 ... 0x8f] = L_1 | L_I4,
	[0x90 ... 0x9f] = L_M,
	[0xa2] = L_1,
	L_M,
	L_M | L_I8,
	L_M,
	[0xab] = L_M,
	L_M | L_I8,
	L_M,
	[0xaf] = L_M,
	[0xb0] = L_M,
	L_M,
	[0xb3] = L_M,
	[0xb6] = L_M,
	L_M,
	[0xba] = L_M | L_I8,
	L_M,
	L_M,
	L_M,
	L_M,
	L_M,
	L_M,
	L_M,
	[0xc6] = L_M | L_I8,
	[0xc8 ... 0xcf] = L_1,
	[0xd4] = L_M,
	[0xd6 ... 0xd7] = L_M,
	[0xef] = L_M,
};

/* Returns 0 when the table does not know. Reads at most n bytes. */
static unsigned len_by_table(const uint8_t *p, unsigned n)
{
	unsigned i = 0, f;
	bool opsize = false, rexw = false, prefix = false;

	while (i < n && (p[i] == 0x66 || p[i] == 0x2e || p[i] == 0x64 || p[i] == 0xf2 || p[i] == 0xf3)) {
		opsize |= p[i] == 0x66;
		prefix = true;
		i++;
	}
	if (i < n && (p[i] & 0xf0) == 0x40)
		rexw = p[i++] & 8;
	if (i >= n)
		return 0;
	if (p[i] == 0x0f) {
		if (++i >= n)
			return 0;
		f = len_map2[p[i]];
	} else {
		f = len_map1[p[i]];
		if (p[i] == 0xc6 || p[i] == 0xc7) /* only /0 is MOV */
			f = i + 1 < n && !(p[i + 1] & 0x38) ? L_M | (p[i] == 0xc7 ? L_IZ : L_I8) : L_Z;
		else if (p[i] == 0xff || p[i] == 0xfe)
			f = i + 1 < n && (p[i + 1] & 0x38) <= (p[i] == 0xff ? 0x30 : 8) ? L_M : L_Z;
		if (p[i] == 0xff && (i + 1 >= n || (p[i + 1] & 0x38) == 0x18 || (p[i + 1] & 0x38) == 0x28))
			return 0; /* far call, far jmp */
	}
	if (!f || ((f & L_I4) && prefix))
		return 0;
	i++;
	if (f & L_M) {
		unsigned mod, rm, m;

		if (i >= n)
			return 0;
		m = p[i++];
		mod = m >> 6;
		rm = m & 7;
		if ((f & L_F6) && (m & 0x30))
			f = L_M;
		if (mod != 3) {
			if (rm == 4) {
				if (i >= n)
					return 0;
				if (!mod && (p[i] & 7) == 5)
					i += 4;
				i++;
			}
			i += mod == 1 ? 1 : mod == 2 || rm == 5 ? 4 : 0;
		}
	}
	if (f & L_I8)
		i += 1;
	else if (f & L_I4)
		i += 4;
	else if (f & L_IV)
		i += rexw ? 8 : opsize ? 2 : 4;
	else if (f & L_IZ)
		i += opsize && !rexw ? 2 : 4;
	return i <= n && i <= 15 ? i : 0;
}

static unsigned len_by_zydis(const ZydisDecoder *dec, const uint8_t *p, size_t n)
{
	ZydisDecodedInstruction in;

	if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(dec, NULL, p, n > 15 ? 15 : n, &in)))
		return 0;
	return in.length;
}

static inline unsigned insn_len(const ZydisDecoder *dec, const uint8_t *p, size_t n)
{
	unsigned l = len_by_table(p, n > 15 ? 15 : n);

	return l ? l : len_by_zydis(dec, p, n);
}

static void decoder_init(ZydisDecoder *dec) { ZydisDecoderInit(dec, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64); }

unsigned patch_insn_len(const uint8_t *p, size_t n, int fast)
{
	ZydisDecoder dec;

	decoder_init(&dec);
	return fast ? insn_len(&dec, p, n) : len_by_zydis(&dec, p, n);
}

/* ---- Scanning ------------------------------------------------------------------------------------------ */

static int grow(void *arr, unsigned *cap, size_t size)
{
	unsigned want = *cap ? *cap * 2 : 256;
	void **p = arr, *q = realloc(*p, want * size);

	if (!q)
		return -ENOMEM;
	*p = q;
	*cap = want;
	return 0;
}

/* All offsets of the bytes 0f 05 and 0f a2 (up to PAIRS_MAX: what lies behind stays on the slow path). */
static int pairs_find(struct scan *s)
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
			if (s->n_pairs == cap && grow(&s->pair, &cap, sizeof(*s->pair)))
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

static inline int32_t rel32_at(const uint8_t *p)
{
	int32_t v;

	memcpy(&v, p, 4);
	return v;
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
		unsigned l = insn_len(&s->dec, s->text + off, limit - off);
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
			if (s->n_tgt == s->cap_tgt && grow(&s->tgt, &s->cap_tgt, sizeof(*s->tgt)))
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
		if (s->n == s->cap && grow(&s->cand, &s->cap, sizeof(*s->cand)))
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
static bool hint_span(const struct scan *s, uint64_t gva, const struct patch_range *h, uint32_t *lo, uint32_t *hi)
{
	if (h->start < gva || h->end <= h->start || h->start - gva >= s->len)
		return false;
	*lo = h->start - gva;
	*hi = h->end - gva < s->len ? h->end - gva : s->len;
	return true;
}

static int sites_find(struct scan *s, uint64_t gva, const struct patch_hints *hints)
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
			if (!hint_span(s, gva, &hints->fn[h], &lo, &hi) || lo < floor)
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
static int targets_rel32(struct scan *s)
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
static void targets_rel8(struct scan *s, struct cand *c)
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

/* ---- Choosing windows ---------------------------------------------------------------------------------- */

enum { MOVE_NO, MOVE_YES, MOVE_RET, MOVE_JMP, MOVE_JCC };

/* May the instruction execute at another address? RET, JMP and JCC may only come last, behind the syscall. */
static int insn_class(const struct scan *s, uint32_t off, unsigned len)
{
	const uint8_t *p = s->text + off;
	ZydisDecodedInstruction in;

	if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&s->dec, NULL, p, len, &in)) || in.length != len)
		return MOVE_NO;
	if (in.mnemonic == ZYDIS_MNEMONIC_RET)
		return p[len - 1] == 0xc3 ? MOVE_RET : MOVE_NO;
	if ((len == 2 && p[0] == 0xeb) || (len == 5 && p[0] == 0xe9))
		return MOVE_JMP;
	if ((len == 2 && (p[0] & 0xf0) == 0x70) || (len == 6 && p[0] == 0x0f && (p[1] & 0xf0) == 0x80))
		return MOVE_JCC;
	if (in.attributes & ZYDIS_ATTRIB_HAS_MODRM && in.raw.modrm.mod == 0 && in.raw.modrm.rm == 5)
		return MOVE_NO;
	if (in.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE || (in.attributes & ZYDIS_ATTRIB_IS_RELATIVE))
		return MOVE_NO;
	switch (in.meta.category) {
	case ZYDIS_CATEGORY_CALL:
	case ZYDIS_CATEGORY_COND_BR:
	case ZYDIS_CATEGORY_UNCOND_BR:
	case ZYDIS_CATEGORY_RET:
	case ZYDIS_CATEGORY_INTERRUPT:
	case ZYDIS_CATEGORY_SYSCALL:
	case ZYDIS_CATEGORY_SYSRET:
	case ZYDIS_CATEGORY_SYSTEM:
	case ZYDIS_CATEGORY_IO:
	case ZYDIS_CATEGORY_IOSTRINGOP:
	case ZYDIS_CATEGORY_CET:
		return MOVE_NO;
	default:
		break;
	}
	switch (in.mnemonic) {
	case ZYDIS_MNEMONIC_UD0:
	case ZYDIS_MNEMONIC_UD1:
	case ZYDIS_MNEMONIC_UD2:
	case ZYDIS_MNEMONIC_HLT:
	case ZYDIS_MNEMONIC_XBEGIN:
	case ZYDIS_MNEMONIC_XABORT:
	case ZYDIS_MNEMONIC_VMCALL:
	case ZYDIS_MNEMONIC_VMMCALL:
	case ZYDIS_MNEMONIC_CPUID: /* a site of its own */
		return MOVE_NO;
	default:
		return MOVE_YES;
	}
}

/*
 * Would a jump table lead to the instruction behind a syscall? Not to one that uses the result, nor to a jmp, which
 * a compiler would have followed.
 */
static bool insn_no_case(const struct scan *s, uint32_t off, unsigned len)
{
	ZydisDecodedInstruction in;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];

	if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&s->dec, s->text + off, len, &in, op)))
		return false;
	if (in.mnemonic == ZYDIS_MNEMONIC_JMP)
		return true;
	for (unsigned i = 0; i < in.operand_count; i++)
		if (op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && (op[i].actions & ZYDIS_OPERAND_ACTION_MASK_READ) &&
		    ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, op[i].reg.value) == ZYDIS_REGISTER_RAX)
			return true;
	return false;
}

/* A window: k instructions before the syscall, and the syscall with m behind it unless intact. */
struct window {
	unsigned k, m;
	bool intact;
};

/* Offsets of the inner instruction boundaries, then the end. Returns their number, 0 = too many. */
static unsigned window_bounds(const struct cand *c, const struct window *w, uint8_t *b, unsigned *sys_off)
{
	unsigned n = 0, off = 0;

	for (unsigned i = w->k; i--;) {
		off += c->before[i];
		b[n++] = off;
	}
	*sys_off = off;
	if (!w->intact) {
		off += 2;
		b[n++] = off;
		for (unsigned i = 0; i < w->m; i++) {
			off += c->after[i];
			b[n++] = off;
		}
	}
	return off <= WINDOW_MAX ? n : 0;
}

/* Lower is better, -1 = not possible. */
static int window_cost(const struct scan *s, const struct cand *c, const struct window *w)
{
	uint8_t b[2 * NEIGHBOURS + 2];
	unsigned sys_off, n = window_bounds(c, w, b, &sys_off), maps = 0;
	unsigned base;
	int cost;

	if (!n || b[n - 1] < WINDOW_MIN)
		return -1;
	cost = w->intact || sys_off >= WINDOW_MIN ? 0 : 4;
	base = ZONE_BACK - sys_off; /* bit of the window's first byte */
	if (c->exact >> (base + 1) & 0xf)
		return -1;
	for (unsigned i = 0; i < n; i++) {
		bool hit = (c->exact | c->raw) >> (base + b[i]) & 1;

		if (b[i] < WINDOW_MIN) {
			if (hit)
				return -1;
			if (c->indirect &&
			    (w->intact || w->k || b[i] != 2 || !insn_no_case(s, c->sys + 2, c->after[0])))
				return -1;
			cost++;
		} else if (hit && b[i] <= sys_off) {
			cost += 8; /* works, but by the slow path */
		}
		if (i + 1 < n || w->intact || b[i] != sys_off + 2)
			maps++; /* the end counts for the final jmp or the syscall */
	}
	return maps <= NR_MAPS ? cost : -1;
}

/* The best window that starts at or behind floor; false = none. *tail describes what is displaced at its end. */
static bool window_choose(const struct scan *s, const struct cand *c, uint32_t floor, struct window *best, int *last)
{
	int best_cost = -1, after[NEIGHBOURS];
	unsigned nb = 0, na = 0, off = 0;

	/* The usual case needs no look at anything else. */
	if (c->nb && c->before[0] == 5 && s->text[c->sys - 5] == 0xb8 && c->sys - 5 >= floor) {
		*best = (struct window){ 1, 0, true };
		*last = MOVE_NO;
		if (window_cost(s, c, best) == 0)
			return true;
	}
	for (; nb < c->nb; nb++) {
		off += c->before[nb];
		if (off > WINDOW_MAX || c->sys - off < floor || insn_class(s, c->sys - off, c->before[nb]) != MOVE_YES)
			break;
	}
	for (off = 2; na < c->na;) {
		after[na] = off + c->after[na] > WINDOW_MAX ? MOVE_NO : insn_class(s, c->sys + off, c->after[na]);
		if (after[na] == MOVE_NO)
			break;
		off += c->after[na];
		if (after[na++] != MOVE_YES)
			break;
	}
	for (int intact = 1; intact >= 0; intact--)
		for (unsigned k = intact; k <= nb; k++)
			for (unsigned m = 0; m <= (intact ? 0 : na); m++) {
				struct window w = { k, m, intact };
				int cost = window_cost(s, c, &w);

				if (cost >= 0 && (best_cost < 0 || cost < best_cost)) {
					best_cost = cost;
					*best = w;
					*last = m ? after[m - 1] : MOVE_NO;
				}
			}
	return best_cost >= 0;
}

static void map_add(struct kx_site *site, unsigned win, unsigned tramp)
{
	site->map[site->n].win = win;
	site->map[site->n].tramp = tramp;
	site->n++;
}

/* Lay the trampoline out: lengths, map and tail of one site. */
static void site_plan(const struct cand *c, const struct window *w, int last, uint64_t gva, struct kx_site *site,
		      struct patch_tail *tail)
{
	static const uint8_t tail_kind[] = {
		[MOVE_YES] = TAIL_PLAIN, [MOVE_RET] = TAIL_RET, [MOVE_JMP] = TAIL_JMP, [MOVE_JCC] = TAIL_JCC
	};
	uint8_t b[2 * NEIGHBOURS + 2];
	unsigned sys_off, n = window_bounds(c, w, b, &sys_off), i, off;
	bool post = !w->intact && w->m;

	memset(site, 0, sizeof(*site));
	site->start = gva + c->sys - sys_off;
	site->len = b[n - 1];
	site->sys_off = sys_off;
	site->cpuid = c->cpuid;
	for (i = 0; i < w->k; i++)
		map_add(site, b[i], b[i]);
	off = sys_off + 7 + (post ? 7 : 3) + 8;
	tail->kind = TAIL_NONE;
	tail->last = 0;
	if (post) {
		for (unsigned j = 0; j < w->m; j++) { /* b[i] is the boundary before after[j] */
			map_add(site, b[i + j], off);
			off += c->after[j];
		}
		if (last == MOVE_JMP || last == MOVE_JCC) {
			tail->last = c->after[w->m - 1];
			off += (last == MOVE_JMP ? 5 : 6) - tail->last;
		}
		tail->kind = tail_kind[last];
		if (tail->kind == TAIL_PLAIN || tail->kind == TAIL_JCC) {
			map_add(site, site->len, off);
			off += 5;
		}
	}
	site->tramp_len = off;
}

int patch_scan(const uint8_t *text, size_t len, uint64_t gva, const struct patch_hints *hints, struct patch_plan *plan)
{
	struct scan s = { .text = text, .len = len };
	uint32_t floor = 0;
	int err;

	s.code_lo = UINT32_MAX;
	for (unsigned i = 0; hints && i < hints->n; i++) {
		uint32_t lo, hi;

		if (!hint_span(&s, gva, &hints->fn[i], &lo, &hi))
			continue;
		s.known = true;
		s.code_lo = lo < s.code_lo ? lo : s.code_lo;
		s.code_hi = hi > s.code_hi ? hi : s.code_hi;
		if (hints->fn[i].flags & PATCH_FN_UNWIND)
			s.unwound += hi - lo;
	}
	if (hints && hints->code_end > hints->code_start && hints->code_end > gva) {
		/* The section table knows best, and it can only narrow what is looked at. */
		uint64_t lo = hints->code_start > gva ? hints->code_start - gva : 0, hi = hints->code_end - gva;

		s.code_hi = !s.known || hi < s.code_hi ? (hi < len ? hi : len) : s.code_hi;
		s.code_lo = !s.known || lo > s.code_lo ? (lo < len ? lo : len) : s.code_lo;
		s.known = true;
	}
	memset(plan, 0, sizeof(*plan));
	if (len >= 0x7fff0000)
		return -E2BIG;
	err = pairs_find(&s);
	if (err || !s.n_pairs)
		goto out;
	decoder_init(&s.dec);
	err = sites_find(&s, gva, hints);
	plan->found = s.found;
	plan->cpuid_found = s.cpuid_found;
	if (err || !s.n)
		goto out;
	err = targets_rel32(&s);
	if (err)
		goto out;
	plan->sites = malloc(s.n * sizeof(*plan->sites));
	plan->tail = malloc(s.n * sizeof(*plan->tail));
	if (!plan->sites || !plan->tail) {
		err = -ENOMEM;
		goto out;
	}
	for (unsigned i = 0; i < s.n; i++) {
		struct cand *c = &s.cand[i];
		struct kx_site *site = &plan->sites[plan->n];
		struct patch_tail *tail = &plan->tail[plan->n];
		struct window w;
		int last;

		targets_rel8(&s, c);
		if (window_choose(&s, c, floor, &w, &last)) {
			site_plan(c, &w, last, gva, site, tail);
			tail->tramp_off = plan->tramp_bytes;
			plan->tramp_bytes += (site->tramp_len + TRAMP_ALIGN - 1) & ~(TRAMP_ALIGN - 1);
			plan->intact += w.intact || site->sys_off >= WINDOW_MIN;
			plan->cpuid_n += c->cpuid;
			plan->n++;
			floor = site->start + site->len - gva;
		}
		if (c->sys + 2 > floor)
			floor = c->sys + 2;
	}
out:
	free(s.pair);
	free(s.cand);
	free(s.bits);
	free(s.tgt);
	return err;
}

void patch_plan_free(struct patch_plan *plan)
{
	free(plan->sites);
	free(plan->tail);
	memset(plan, 0, sizeof(*plan));
}

/* ---- Writing ------------------------------------------------------------------------------------------- */

struct out {
	uint8_t *p;
	uint64_t gva; /* of p */
};

static void put(struct out *o, const void *bytes, unsigned n)
{
	memcpy(o->p, bytes, n);
	o->p += n;
	o->gva += n;
}

/* An instruction that ends with a rel32 to target. */
static void put_rel(struct out *o, const void *op, unsigned n, uint64_t target)
{
	int32_t rel = (int32_t)(target - (o->gva + n + 4));

	put(o, op, n);
	put(o, &rel, 4);
}

static void tramp_emit(const uint8_t *win, const struct kx_site *s, const struct patch_tail *tail, uint8_t *host)
{
	static const struct entry {
		uint8_t lea_after[3], lea_resume[3], mov[3], enter[8];
	} entries[] = {
		/* rcx, r11 */
		{ { 0x48, 0x8d, 0x0d },
		  { 0x4c, 0x8d, 0x1d },
		  { 0x49, 0x89, 0xcb },
		  { 0x65, 0xff, 0x24, 0x25, KX_T_ENTRY, 0, 0, 0 } },
		/* rbx, rdx */
		{ { 0x48, 0x8d, 0x1d },
		  { 0x48, 0x8d, 0x15 },
		  { 0x48, 0x89, 0xda },
		  { 0x65, 0xff, 0x24, 0x25, KX_T_CPUID, 0, 0, 0 } },
	};
	static const uint8_t jmp = 0xe9;
	const struct entry *e = &entries[s->cpuid];
	struct out o = { host, s->tramp };
	uint64_t after = s->start + s->sys_off + 2, end = s->start + s->len;
	const uint8_t *post = win + s->sys_off + 2, *last = win + s->len - tail->last;

	put(&o, win, s->sys_off);
	put_rel(&o, e->lea_after, 3, after);
	if (tail->kind == TAIL_NONE) {
		put(&o, e->mov, 3);
		put(&o, e->enter, sizeof(e->enter));
		return;
	}
	put_rel(&o, e->lea_resume, 3, o.gva + 7 + sizeof(e->enter));
	put(&o, e->enter, sizeof(e->enter));
	put(&o, post, last - post);
	if (tail->kind == TAIL_JMP || tail->kind == TAIL_JCC) {
		uint64_t target = end + (tail->last == 2 ? (int64_t)(int8_t)last[1] : rel32_at(last + tail->last - 4));

		if (tail->kind == TAIL_JMP) {
			put_rel(&o, &jmp, 1, target);
		} else {
			uint8_t jcc[2] = { 0x0f, 0x80 | ((tail->last == 2 ? last[0] : last[1]) & 0xf) };

			put_rel(&o, jcc, 2, target);
		}
	}
	if (tail->kind == TAIL_PLAIN || tail->kind == TAIL_JCC)
		put_rel(&o, &jmp, 1, end);
}

/* The jump, then int3 up to the first instruction that is still whole. */
static void window_write(uint8_t *win, const struct kx_site *s)
{
	int32_t rel = (int32_t)(s->tramp - (s->start + WINDOW_MIN));
	unsigned whole = s->len;

	for (unsigned i = s->n; i--;)
		if (s->map[i].win >= WINDOW_MIN && s->map[i].win < whole)
			whole = s->map[i].win;
	win[0] = 0xe9;
	memcpy(win + 1, &rel, 4);
	memset(win + WINDOW_MIN, 0xcc, whole - WINDOW_MIN);
}

int patch_apply(uint8_t *text, size_t len, uint64_t gva, struct patch_plan *plan, uint8_t *tramp_host,
		uint64_t tramp_gva, size_t tramp_len)
{
	const uint64_t reach = 0x7fff0000;
	uint64_t lo = gva < tramp_gva ? gva : tramp_gva;
	uint64_t hi = gva + len > tramp_gva + plan->tramp_bytes ? gva + len : tramp_gva + plan->tramp_bytes;

	if (!plan->n)
		return 0;
	if (tramp_len < plan->tramp_bytes)
		return -ENOSPC;
	if (hi - lo > reach)
		return -ERANGE;
	memset(tramp_host, 0xcc, plan->tramp_bytes);
	for (unsigned i = 0; i < plan->n; i++) {
		struct kx_site *s = &plan->sites[i];
		uint8_t *win = text + (s->start - gva);

		s->tramp = tramp_gva + plan->tail[i].tramp_off;
		tramp_emit(win, s, &plan->tail[i], tramp_host + plan->tail[i].tramp_off);
		window_write(win, s);
	}
	return 0;
}

/* ---- Translation --------------------------------------------------------------------------------------- */

uint64_t patch_site_to_tramp(const struct kx_site *s, uint64_t rip)
{
	uint64_t off = rip - s->start;

	if (!off || off >= s->len)
		return rip;
	for (unsigned i = 0; i < s->n && i < NR_MAPS; i++)
		if (s->map[i].win == off)
			return s->tramp + s->map[i].tramp;
	return rip;
}

uint64_t patch_tramp_to_site(const struct kx_site *s, uint64_t rip)
{
	uint64_t off = rip - s->tramp;
	unsigned win = 0, best = 0;

	if (off >= s->tramp_len)
		return rip;
	for (unsigned i = 0; i < s->n && i < NR_MAPS; i++)
		if (s->map[i].tramp <= off && s->map[i].tramp >= best) {
			best = s->map[i].tramp;
			win = s->map[i].win;
		}
	return s->start + win;
}

/* Offset in the trampoline where the LibOS resumes, tramp_len when that is behind the window. */
static unsigned resume_off(const struct kx_site *s)
{
	unsigned off = s->tramp_len;

	for (unsigned i = 0; i < s->n && i < NR_MAPS; i++)
		if (s->map[i].win > s->sys_off && s->map[i].tramp < off)
			off = s->map[i].tramp;
	return off;
}

int patch_entering(const struct kx_site *s, uint64_t rip)
{
	uint64_t off = rip - s->tramp;

	return off > s->sys_off && off < resume_off(s);
}

int patch_step_ends(const struct kx_site *s, uint64_t rip)
{
	uint64_t off = rip - s->tramp;

	for (unsigned i = 0; i < s->n && i < NR_MAPS; i++)
		if (s->map[i].win && s->map[i].tramp == off)
			return 1;
	return 0;
}

/* ---- Function ranges of an ELF file -------------------------------------------------------------------- */

enum { IMG_LOADS_MAX = 64 };

struct img {
	const uint8_t *p;
	size_t len;
	Elf64_Phdr load[IMG_LOADS_MAX];
	unsigned n_loads;
	uint64_t exec_bytes;
	struct patch_range *fn;
	unsigned n, cap;
	uint64_t cie_at; /* vaddr of the CIE parsed last (+1), and the pointer encoding it gives */
	uint8_t cie_enc;
	bool cie_signal; /* that CIE is of a signal frame */
};

/* Cursor over file bytes that are at most `left` long; bad is sticky. */
struct cur {
	const uint8_t *p;
	size_t left;
	uint64_t vaddr;
	bool bad;
};

static uint64_t cur_get(struct cur *c, unsigned n)
{
	uint64_t v = 0;

	if (c->left < n) {
		c->bad = true;
		c->left = 0;
		return 0;
	}
	memcpy(&v, c->p, n);
	c->p += n;
	c->left -= n;
	c->vaddr += n;
	return v;
}

static void cur_leb(struct cur *c)
{
	for (int i = 0; i < 10 && cur_get(c, 1) & 0x80; i++)
		;
}

/* DW_EH_PE_* value; only fixed sizes, absolute or pc-relative. */
static uint64_t cur_ptr(struct cur *c, uint8_t enc, bool apply)
{
	uint64_t at = c->vaddr, v;

	switch (enc & 0x0f) {
	case 0x00:
	case 0x04:
	case 0x0c:
		v = cur_get(c, 8);
		break;
	case 0x02:
		v = cur_get(c, 2);
		break;
	case 0x03:
		v = cur_get(c, 4);
		break;
	case 0x0a:
		v = (uint64_t)(int16_t)cur_get(c, 2);
		break;
	case 0x0b:
		v = (uint64_t)(int32_t)cur_get(c, 4);
		break;
	default:
		c->bad = true;
		return 0;
	}
	if (!apply || !(enc & 0x70))
		return v;
	if ((enc & 0xf0) != 0x10)
		c->bad = true;
	return at + v;
}

/* File bytes behind vaddr, up to the end of their segment. */
static bool img_at(const struct img *im, uint64_t vaddr, struct cur *c)
{
	for (unsigned i = 0; i < im->n_loads; i++) {
		const Elf64_Phdr *ph = &im->load[i];

		if (vaddr >= ph->p_vaddr && vaddr - ph->p_vaddr < ph->p_filesz) {
			uint64_t off = vaddr - ph->p_vaddr;

			*c = (struct cur){ im->p + ph->p_offset + off, ph->p_filesz - off, vaddr, false };
			return true;
		}
	}
	return false;
}

static bool img_exec(const struct img *im, uint64_t vaddr, uint64_t *end)
{
	for (unsigned i = 0; i < im->n_loads; i++) {
		const Elf64_Phdr *ph = &im->load[i];

		if ((ph->p_flags & PF_X) && vaddr >= ph->p_vaddr && vaddr - ph->p_vaddr < ph->p_filesz) {
			*end = ph->p_vaddr + ph->p_filesz;
			return true;
		}
	}
	return false;
}

/* end = 0: up to the next function. Ranges outside executable segments are dropped, and all beyond RANGES_MAX. */
static int range_add(struct img *im, uint64_t start, uint64_t end, uint32_t flags)
{
	uint64_t seg_end;

	if (im->n >= RANGES_MAX || !img_exec(im, start, &seg_end) || (end && end <= start))
		return 0;
	if (!end || end > seg_end)
		end = seg_end;
	if (im->n == im->cap && grow(&im->fn, &im->cap, sizeof(*im->fn)))
		return -ENOMEM;
	im->fn[im->n++] = (struct patch_range){ start, end, flags };
	return 0;
}

/* Pointer encoding that the CIE at vaddr gives its FDEs; false = not understood. */
static bool cie_parse(struct img *im, struct cur c, uint8_t *enc)
{
	const uint8_t *aug;
	uint64_t at = c.vaddr;
	uint32_t size;
	uint8_t version;
	bool signal_frame;

	if (im->cie_at == at + 1) {
		*enc = im->cie_enc;
		return true;
	}
	size = cur_get(&c, 4);
	if (size > c.left || size < 5)
		return false;
	c.left = size;
	if (cur_get(&c, 4) != 0)
		return false;
	version = cur_get(&c, 1);
	if (version != 1 && version != 3)
		return false;
	aug = c.p;
	while (cur_get(&c, 1))
		if (c.p - aug > 15)
			return false;
	if (c.bad)
		return false;
	cur_leb(&c);
	cur_leb(&c);
	if (version == 1)
		cur_get(&c, 1);
	else
		cur_leb(&c);
	*enc = 0;
	signal_frame = *aug == 'z' && strchr((const char *)aug, 'S');
	if (*aug == 'z') {
		cur_leb(&c);
		for (aug++; *aug && !c.bad; aug++) {
			if (*aug == 'R') {
				*enc = cur_get(&c, 1);
				break;
			}
			if (*aug == 'L') {
				cur_get(&c, 1);
			} else if (*aug == 'P') {
				uint8_t e = cur_get(&c, 1);

				cur_ptr(&c, e, false);
			} else if (*aug != 'S' && *aug != 'B') {
				return false;
			}
		}
	} else if (*aug) {
		return false;
	}
	if (c.bad)
		return false;
	im->cie_at = at + 1;
	im->cie_enc = *enc;
	im->cie_signal = signal_frame;
	return true;
}

/* c is at an FDE (sect: bounds of its surroundings, for the CIE). Adds its range; anything odd is skipped. */
static int fde_parse(struct img *im, const struct cur *sect, struct cur c)
{
	struct cur cie;
	uint64_t start, range, id_at;
	uint32_t size = cur_get(&c, 4), id;
	uint8_t enc;

	if (c.bad || size < 4 || size > c.left)
		return 0;
	c.left = size;
	id_at = c.vaddr;
	id = cur_get(&c, 4);
	if (!id)
		return 0;
	if (sect) {
		if (id > id_at - sect->vaddr)
			return 0;
		cie = *sect;
		cie.p += id_at - id - sect->vaddr;
		cie.left -= id_at - id - sect->vaddr;
		cie.vaddr = id_at - id;
	} else if (!img_at(im, id_at - id, &cie)) {
		return 0;
	}
	if (!cie_parse(im, cie, &enc))
		return 0;
	start = cur_ptr(&c, enc, true);
	range = cur_ptr(&c, enc, false);
	if (c.bad || start + range < start || !range)
		return 0;
	/* A signal trampoline's entry covers the byte before it, since unwinders look up the return address less one:
	 * that byte belongs to no instruction of this function. */
	if (im->cie_signal && range > 1) {
		start++;
		range--;
	}
	return range_add(im, start, start + range, PATCH_FN_UNWIND);
}

/* .eh_frame_hdr with the table that every linker writes (datarel sdata4). */
static int hints_eh_frame_hdr(struct img *im, uint64_t vaddr)
{
	struct cur c, fde;
	uint64_t n;
	uint8_t ptr_enc;

	if (!img_at(im, vaddr, &c) || cur_get(&c, 1) != 1)
		return 0;
	ptr_enc = cur_get(&c, 1);
	if (cur_get(&c, 1) != 0x03 || cur_get(&c, 1) != 0x3b)
		return 0;
	cur_ptr(&c, ptr_enc, true);
	n = cur_get(&c, 4);
	if (c.bad || n > c.left / 8 || n > RANGES_MAX)
		return 0;
	while (n--) {
		int err;

		cur_get(&c, 4);
		if (!img_at(im, vaddr + (uint64_t)(int32_t)cur_get(&c, 4), &fde))
			continue;
		err = fde_parse(im, NULL, fde);
		if (err)
			return err;
	}
	return 0;
}

/* A whole .eh_frame in order. */
static int hints_eh_frame(struct img *im, struct cur sect)
{
	struct cur c = sect;

	while (c.left >= 4) {
		struct cur at = c;
		uint32_t size = cur_get(&c, 4);
		int err;

		if (size > c.left) /* also the 64-bit form, which nobody uses here */
			break;
		err = size ? fde_parse(im, &sect, at) : 0;
		if (err)
			return err;
		c.p += size;
		c.left -= size;
		c.vaddr += size;
	}
	return 0;
}

static int hints_syms(struct img *im, struct cur c)
{
	while (c.left >= sizeof(Elf64_Sym)) {
		Elf64_Sym sym;
		int err;

		memcpy(&sym, c.p, sizeof(sym));
		c.p += sizeof(sym);
		c.left -= sizeof(sym);
		if (ELF64_ST_TYPE(sym.st_info) != STT_FUNC || sym.st_shndx == SHN_UNDEF ||
		    sym.st_value + sym.st_size < sym.st_value)
			continue;
		err = range_add(im, sym.st_value, sym.st_size ? sym.st_value + sym.st_size : 0, 0);
		if (err)
			return err;
	}
	return 0;
}

/* .dynsym by way of PT_DYNAMIC, for files without section headers: DT_HASH tells its length, else DT_STRTAB. */
static int hints_dynamic(struct img *im, uint64_t vaddr)
{
	struct cur c, t;
	uint64_t sym = 0, str = 0, hash = 0, n = 0;

	if (!img_at(im, vaddr, &c))
		return 0;
	while (c.left >= 16) {
		uint64_t tag = cur_get(&c, 8), val = cur_get(&c, 8);

		if (tag == DT_NULL)
			break;
		if (tag == DT_SYMTAB)
			sym = val;
		else if (tag == DT_STRTAB)
			str = val;
		else if (tag == DT_HASH)
			hash = val;
	}
	if (!sym || !img_at(im, sym, &t))
		return 0;
	if (hash && img_at(im, hash + 4, &c))
		n = cur_get(&c, 4);
	else if (str > sym)
		n = (str - sym) / sizeof(Elf64_Sym);
	if (n < t.left / sizeof(Elf64_Sym))
		t.left = n * sizeof(Elf64_Sym);
	return hints_syms(im, t);
}

enum { SECT_EH_FRAME, SECT_SYMS };

/* Section headers: what = which tables to read. Returns the number of tables seen or -errno. */
static int hints_sections(struct img *im, const Elf64_Ehdr *eh, int what)
{
	Elf64_Shdr sh, str;
	int seen = 0;

	if (eh->e_shentsize != sizeof(sh) || !eh->e_shoff || eh->e_shoff > im->len ||
	    eh->e_shnum > (im->len - eh->e_shoff) / sizeof(sh) || eh->e_shstrndx >= eh->e_shnum)
		return 0;
	memcpy(&str, im->p + eh->e_shoff + eh->e_shstrndx * sizeof(sh), sizeof(str));
	for (unsigned i = 0; i < eh->e_shnum; i++) {
		struct cur c;
		int err;

		memcpy(&sh, im->p + eh->e_shoff + i * sizeof(sh), sizeof(sh));
		if (sh.sh_type == SHT_NOBITS || sh.sh_offset > im->len || sh.sh_size > im->len - sh.sh_offset)
			continue;
		c = (struct cur){ im->p + sh.sh_offset, sh.sh_size, sh.sh_addr, false };
		if (what == SECT_SYMS) {
			if (sh.sh_type != SHT_SYMTAB && sh.sh_type != SHT_DYNSYM)
				continue;
			err = hints_syms(im, c);
		} else {
			static const char name[] = ".eh_frame";

			if (str.sh_offset > im->len || sh.sh_name > im->len - str.sh_offset ||
			    im->len - str.sh_offset - sh.sh_name < sizeof(name) ||
			    memcmp(im->p + str.sh_offset + sh.sh_name, name, sizeof(name)) != 0)
				continue;
			err = hints_eh_frame(im, c);
		}
		if (err)
			return err;
		if (++seen == 4) /* more tables than a linker writes: the file plays games */
			break;
	}
	return seen;
}

static int range_cmp(const void *a, const void *b)
{
	const struct patch_range *x = a, *y = b;

	if (x->start != y->start)
		return x->start < y->start ? -1 : 1;
	return x->flags != y->flags ? (x->flags > y->flags ? -1 : 1) : x->end > y->end ? -1 : x->end < y->end;
}

/* Sort, one range per start, each cut at the next. Returns the bytes covered. */
static uint64_t ranges_settle(struct img *im)
{
	uint64_t covered = 0;
	unsigned n = 0;

	for (unsigned i = 1; i < im->n; i++)
		if (range_cmp(&im->fn[i - 1], &im->fn[i]) > 0) {
			qsort(im->fn, im->n, sizeof(*im->fn), range_cmp);
			break;
		}
	for (unsigned i = 0; i < im->n; i++) {
		if (n && im->fn[n - 1].start == im->fn[i].start)
			continue;
		if (n && im->fn[n - 1].end > im->fn[i].start)
			im->fn[n - 1].end = im->fn[i].start;
		im->fn[n++] = im->fn[i];
	}
	im->n = n;
	for (unsigned i = 0; i < n; i++)
		covered += im->fn[i].end - im->fn[i].start;
	return covered;
}

static int hints_collect(struct img *im, const Elf64_Ehdr *eh, uint64_t eh_hdr, uint64_t dynamic)
{
	int err = 0;

	if (eh_hdr)
		err = hints_eh_frame_hdr(im, eh_hdr);
	if (!err && !im->n)
		err = hints_sections(im, eh, SECT_EH_FRAME);
	if (err < 0 || ranges_settle(im) > im->exec_bytes / 2)
		return err < 0 ? err : 0;
	err = hints_sections(im, eh, SECT_SYMS);
	if (!err && dynamic)
		err = hints_dynamic(im, dynamic);
	ranges_settle(im);
	return err < 0 ? err : 0;
}

/* From the first to the last executable section, when the file has a section table. */
static void code_sections(const uint8_t *file, size_t len, const Elf64_Ehdr *eh, uint64_t bias, struct patch_hints *out)
{
	uint64_t lo = UINT64_MAX, hi = 0;

	if (!eh->e_shnum || eh->e_shentsize != sizeof(Elf64_Shdr) || eh->e_shoff > len ||
	    eh->e_shnum > (len - eh->e_shoff) / sizeof(Elf64_Shdr))
		return;
	for (unsigned i = 0; i < eh->e_shnum; i++) {
		Elf64_Shdr sh;

		memcpy(&sh, file + eh->e_shoff + i * sizeof(sh), sizeof(sh));
		if (!(sh.sh_flags & SHF_EXECINSTR) || !sh.sh_size || sh.sh_addr + sh.sh_size < sh.sh_addr)
			continue;
		lo = sh.sh_addr < lo ? sh.sh_addr : lo;
		hi = sh.sh_addr + sh.sh_size > hi ? sh.sh_addr + sh.sh_size : hi;
	}
	if (lo < hi) {
		out->code_start = lo + bias;
		out->code_end = hi + bias;
	}
}

int patch_hints_from_elf(const uint8_t *file, size_t len, uint64_t load_bias, struct patch_hints *out)
{
	struct img im = { .p = file, .len = len };
	uint64_t eh_hdr = 0, dynamic = 0;
	Elf64_Ehdr eh;
	int err;

	*out = (struct patch_hints){ 0 };
	if (len < sizeof(eh))
		return -ENOEXEC;
	memcpy(&eh, file, sizeof(eh));
	if (memcmp(eh.e_ident, ELFMAG, SELFMAG) != 0 || eh.e_ident[EI_CLASS] != ELFCLASS64 ||
	    eh.e_ident[EI_DATA] != ELFDATA2LSB || eh.e_machine != EM_X86_64)
		return -ENOEXEC;
	if (eh.e_phentsize != sizeof(Elf64_Phdr) || eh.e_phoff > len ||
	    eh.e_phnum > (len - eh.e_phoff) / sizeof(Elf64_Phdr))
		return -ENOEXEC;
	for (unsigned i = 0; i < eh.e_phnum; i++) {
		Elf64_Phdr ph;

		memcpy(&ph, file + eh.e_phoff + i * sizeof(ph), sizeof(ph));
		if (ph.p_type == PT_GNU_EH_FRAME)
			eh_hdr = ph.p_vaddr;
		else if (ph.p_type == PT_DYNAMIC)
			dynamic = ph.p_vaddr;
		if (ph.p_type != PT_LOAD || im.n_loads == IMG_LOADS_MAX || ph.p_offset > len ||
		    ph.p_filesz > len - ph.p_offset || ph.p_vaddr >= 1ull << 47)
			continue;
		im.load[im.n_loads++] = ph;
		if (ph.p_flags & PF_X)
			im.exec_bytes += ph.p_filesz;
	}
	err = hints_collect(&im, &eh, eh_hdr, dynamic);
	code_sections(file, len, &eh, load_bias, out);
	if (err || !im.n) {
		free(im.fn);
		return err;
	}
	for (unsigned i = 0; i < im.n; i++) {
		im.fn[i].start += load_bias;
		im.fn[i].end += load_bias;
	}
	out->fn = im.fn;
	out->n = im.n;
	return 0;
}

void patch_hints_free(struct patch_hints *hints)
{
	free(hints->fn);
	*hints = (struct patch_hints){ 0 };
}
