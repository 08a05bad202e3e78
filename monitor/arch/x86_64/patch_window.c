/* SPDX-License-Identifier: Apache-2.0 */
/* Site patcher: which instructions around a site make room for the jump. */
#include "patch_priv.h"

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
bool patch_window_choose(const struct scan *s, const struct cand *c, uint32_t floor, struct window *best, int *last)
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
void patch_site_plan(const struct cand *c, const struct window *w, int last, uint64_t gva, struct kx_site *site,
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
