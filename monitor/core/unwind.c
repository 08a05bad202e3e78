/* SPDX-License-Identifier: Apache-2.0 */
#include "unwind.h"
#include <stddef.h>
#include <string.h>
#include "pvm.h"

#define CIE_MAX 4096 /* bytes of one entry that are looked at */
#define OPS_MAX 2000
#define STATES 8
#define NR_REGS 17

#define PE_OMIT 0xff
#define PE_PCREL 0x10
#define PE_DATAREL 0x30

/* A copy of a piece of guest memory, read from front to back. */
struct cursor {
	const uint8_t *p, *end;
	uint64_t gva; /* of p */
	bool bad;
};

static uint64_t take(struct cursor *c, unsigned n)
{
	uint64_t v = 0;
	if ((size_t)(c->end - c->p) < n) {
		c->bad = true;
		c->p = c->end;
		return 0;
	}
	memcpy(&v, c->p, n);
	c->p += n;
	c->gva += n;
	return v;
}

static uint64_t uleb(struct cursor *c)
{
	uint64_t v = 0, b;
	unsigned shift = 0;
	do {
		b = take(c, 1);
		if (shift < 64)
			v |= (b & 0x7f) << shift;
		shift += 7;
	} while (b & 0x80 && !c->bad);
	return v;
}

static int64_t sleb(struct cursor *c)
{
	uint64_t v = 0, b;
	unsigned shift = 0;
	do {
		b = take(c, 1);
		if (shift < 64)
			v |= (b & 0x7f) << shift;
		shift += 7;
	} while (b & 0x80 && !c->bad);
	if (shift < 64 && b & 0x40)
		v |= ~0ull << shift;
	return (int64_t)v;
}

static uint64_t encoded(struct cursor *c, uint8_t enc, uint64_t data)
{
	uint64_t at = c->gva, v;
	switch (enc & 0xf) {
	case 0:
	case 4:
	case 12:
		v = take(c, 8);
		break;
	case 1:
		v = uleb(c);
		break;
	case 2:
		v = take(c, 2);
		break;
	case 3:
		v = take(c, 4);
		break;
	case 9:
		v = (uint64_t)sleb(c);
		break;
	case 10:
		v = (uint64_t)(int16_t)take(c, 2);
		break;
	case 11:
		v = (uint64_t)(int32_t)take(c, 4);
		break;
	default:
		c->bad = true;
		return 0;
	}
	switch (enc & 0x70) {
	case 0:
		return v;
	case PE_PCREL:
		return v + at;
	case PE_DATAREL:
		return v + data;
	}
	c->bad = true;
	return 0;
}

/* Of numbers that mean nothing the product means nothing either. */
static int64_t times(uint64_t n, int64_t align) { return (int64_t)(n * (uint64_t)align); }

enum rule_kind { SAME, UNDEFINED, AT_CFA, IS_CFA, REGISTER, AT_EXPR, IS_EXPR };
struct rule {
	enum rule_kind kind;
	int64_t off; /* or register, or offset of the expression in the entry */
	uint32_t len;
};
struct row {
	struct rule reg[NR_REGS];
	unsigned cfa_reg;
	int64_t cfa_off;
	const uint8_t *cfa_expr;
	uint64_t cfa_expr_len;
};
struct frame_info {
	uint8_t cie[CIE_MAX], fde[CIE_MAX];
	uint64_t code_align;
	int64_t data_align;
	unsigned ra;
	uint8_t fde_enc;
	bool has_aug, is_signal;
	uint64_t start, len;
	struct row row, init, saved[STATES];
	unsigned nr_saved;
};

/* Read one entry of .eh_frame at gva: its bytes behind the length. */
static bool entry_read(uint64_t gva, uint8_t buf[CIE_MAX], struct cursor *c)
{
	uint32_t len;
	if (guest_read(&len, gva, 4) || len < 4 || len > CIE_MAX || guest_read(buf, gva + 4, len))
		return false;
	*c = (struct cursor){ buf, buf + len, gva + 4, false };
	return true;
}

static bool expression(const uint8_t *p, uint64_t len, const struct unwind_regs *regs, bool push, uint64_t cfa,
		       uint64_t *out)
{
	uint64_t st[16];
	unsigned n = 0, ops = 0;
	struct cursor c = { p, p + len, 0, false };
	if (push)
		st[n++] = cfa;
	while (c.p < c.end && !c.bad) {
		uint8_t op = (uint8_t)take(&c, 1);
		if (++ops > 64 || n > 14)
			return false;
		if (op >= 0x30 && op <= 0x4f) { /* lit */
			st[n++] = op - 0x30;
		} else if (op >= 0x70 && op <= 0x80) { /* breg0 to breg16 */
			int64_t off = sleb(&c);
			st[n++] = regs->r[op - 0x70] + (uint64_t)off;
		} else if (op == 0x06) { /* deref */
			if (!n || guest_read(&st[n - 1], st[n - 1], 8))
				return false;
		} else if (op == 0x08) {
			st[n++] = take(&c, 1);
		} else if (op == 0x09) {
			st[n++] = (uint64_t)(int8_t)take(&c, 1);
		} else if (op == 0x11) {
			st[n++] = (uint64_t)sleb(&c);
		} else if (op == 0x10) {
			st[n++] = uleb(&c);
		} else if (op == 0x12) { /* dup */
			if (!n)
				return false;
			st[n] = st[n - 1];
			n++;
		} else if (op == 0x23) { /* plus_uconst */
			if (!n)
				return false;
			st[n - 1] += uleb(&c);
		} else {
			if (n < 2)
				return false;
			uint64_t b = st[--n], *a = &st[n - 1];
			switch (op) {
			case 0x1a:
				*a &= b;
				break;
			case 0x1c:
				*a -= b;
				break;
			case 0x22:
				*a += b;
				break;
			case 0x24:
				*a = b < 64 ? *a << b : 0;
				break;
			case 0x21:
				*a |= b;
				break;
			case 0x2a:
				*a = (int64_t)*a >= (int64_t)b;
				break;
			case 0x2b:
				*a = (int64_t)*a > (int64_t)b;
				break;
			case 0x2c:
				*a = (int64_t)*a <= (int64_t)b;
				break;
			case 0x2d:
				*a = (int64_t)*a < (int64_t)b;
				break;
			default:
				return false;
			}
		}
	}
	if (c.bad || !n)
		return false;
	*out = st[n - 1];
	return true;
}

static bool cie_parse(struct frame_info *f, uint64_t gva, struct cursor *rest)
{
	char aug[16];
	unsigned n = 0;
	if (!entry_read(gva, f->cie, rest) || take(rest, 4))
		return false;
	uint8_t version = (uint8_t)take(rest, 1);
	while (n < sizeof aug && (aug[n] = (char)take(rest, 1)))
		n++;
	if (n == sizeof aug || (version != 1 && version != 3))
		return false;
	f->code_align = uleb(rest);
	f->data_align = sleb(rest);
	f->ra = version == 1 ? (unsigned)take(rest, 1) : (unsigned)uleb(rest);
	f->fde_enc = 0;
	f->has_aug = aug[0] == 'z';
	f->is_signal = false;
	if (aug[0] && !f->has_aug)
		return false;
	if (f->has_aug) {
		uint64_t len = uleb(rest);
		if (len > (uint64_t)(rest->end - rest->p))
			return false;
		const uint8_t *after = rest->p + len;
		uint64_t after_gva = rest->gva + len;
		for (unsigned i = 1; i < n; i++)
			switch (aug[i]) {
			case 'R':
				f->fde_enc = (uint8_t)take(rest, 1);
				break;
			case 'P': {
				uint8_t enc = (uint8_t)take(rest, 1);
				encoded(rest, enc & 0xf, 0);
				break;
			}
			case 'L':
				take(rest, 1);
				break;
			case 'S':
				f->is_signal = true;
				break;
			}
		rest->p = after;
		rest->gva = after_gva;
	}
	return !rest->bad && f->ra < NR_REGS;
}

/* Run the instructions in c until the row for pc is there. loc: of the row; ~0 pc = all (a CIE's). */
static bool run(struct frame_info *f, struct cursor *c, uint64_t loc, uint64_t pc)
{
	struct row *w = &f->row;
	for (unsigned ops = 0; c->p < c->end; ops++) {
		if (ops > OPS_MAX || c->bad)
			return false;
		uint8_t op = (uint8_t)take(c, 1), low = op & 0x3f;
		uint64_t reg;
		switch (op & 0xc0) {
		case 0x40:
			loc += low * f->code_align;
			if (loc > pc)
				return true;
			continue;
		case 0x80: {
			int64_t off = times(uleb(c), f->data_align);
			if (low < NR_REGS)
				w->reg[low] = (struct rule){ AT_CFA, off, 0 };
			continue;
		}
		case 0xc0:
			if (low < NR_REGS)
				w->reg[low] = f->init.reg[low];
			continue;
		}
		switch (op) {
		case 0x00: /* nop */
			break;
		case 0x01:
			loc = encoded(c, f->fde_enc, 0);
			if (loc > pc)
				return true;
			break;
		case 0x02:
		case 0x03:
		case 0x04:
			loc += take(c, op == 2 ? 1 : op == 3 ? 2 : 4) * f->code_align;
			if (loc > pc)
				return true;
			break;
		case 0x05: /* offset_extended */
		case 0x11: {
			reg = uleb(c);
			int64_t off = times(op == 0x05 ? uleb(c) : (uint64_t)sleb(c), f->data_align);
			if (reg < NR_REGS)
				w->reg[reg] = (struct rule){ AT_CFA, off, 0 };
			break;
		}
		case 0x06:
			reg = uleb(c);
			if (reg < NR_REGS)
				w->reg[reg] = f->init.reg[reg];
			break;
		case 0x07:
		case 0x08:
			reg = uleb(c);
			if (reg < NR_REGS)
				w->reg[reg] = (struct rule){ op == 7 ? UNDEFINED : SAME, 0, 0 };
			break;
		case 0x09: {
			reg = uleb(c);
			uint64_t from = uleb(c);
			if (from >= NR_REGS)
				return false;
			if (reg < NR_REGS)
				w->reg[reg] = (struct rule){ REGISTER, (int64_t)from, 0 };
			break;
		}
		case 0x0a:
			if (f->nr_saved == STATES)
				return false;
			f->saved[f->nr_saved++] = *w;
			break;
		case 0x0b:
			if (!f->nr_saved)
				return false;
			*w = f->saved[--f->nr_saved];
			break;
		case 0x0c:
		case 0x12:
			w->cfa_reg = (unsigned)uleb(c);
			w->cfa_off = op == 0x0c ? (int64_t)uleb(c) : times((uint64_t)sleb(c), f->data_align);
			w->cfa_expr = NULL;
			break;
		case 0x0d:
			w->cfa_reg = (unsigned)uleb(c);
			break;
		case 0x0e:
			w->cfa_off = (int64_t)uleb(c);
			break;
		case 0x13:
			w->cfa_off = times((uint64_t)sleb(c), f->data_align);
			break;
		case 0x0f: /* def_cfa_expression */
			w->cfa_expr_len = uleb(c);
			if (w->cfa_expr_len > (uint64_t)(c->end - c->p))
				return false;
			w->cfa_expr = c->p;
			c->p += w->cfa_expr_len;
			c->gva += w->cfa_expr_len;
			break;
		case 0x10:
		case 0x16: { /* expression, val_expression */
			reg = uleb(c);
			uint64_t len = uleb(c);
			if (len > (uint64_t)(c->end - c->p))
				return false;
			if (reg < NR_REGS)
				w->reg[reg] = (struct rule){ op == 0x10 ? AT_EXPR : IS_EXPR, (int64_t)(intptr_t)c->p,
							     (uint32_t)len };
			c->p += len;
			c->gva += len;
			break;
		}
		case 0x14:
		case 0x15: {
			reg = uleb(c);
			int64_t off = times(op == 0x14 ? uleb(c) : (uint64_t)sleb(c), f->data_align);
			if (reg < NR_REGS)
				w->reg[reg] = (struct rule){ IS_CFA, off, 0 };
			break;
		}
		case 0x2e: /* GNU_args_size */
			uleb(c);
			break;
		default:
			return false;
		}
	}
	return !c->bad;
}

/* The entry for pc, by the sorted table of .eh_frame_hdr. */
static uint64_t fde_find(uint64_t hdr, uint64_t pc)
{
	uint8_t h[32];
	if (guest_read(h, hdr, sizeof h) || h[0] != 1 || h[3] != (PE_DATAREL | 11) || h[2] == PE_OMIT)
		return 0;
	struct cursor c = { h + 4, h + sizeof h, hdr + 4, false };
	encoded(&c, h[1], hdr);
	uint64_t n = encoded(&c, h[2], hdr), table = c.gva, lo = 0;
	int32_t e[2];
	if (c.bad || n > (1u << 24))
		return 0;
	while (n - lo > 1) {
		uint64_t mid = (lo + n) / 2;
		if (guest_read(e, table + mid * 8, 8))
			return 0;
		if (hdr + (int64_t)e[0] <= pc)
			lo = mid;
		else
			n = mid;
	}
	if (!n || guest_read(e, table + lo * 8, 8) || hdr + (int64_t)e[0] > pc)
		return 0;
	return hdr + (int64_t)e[1];
}

static bool fde_row(struct frame_info *f, uint64_t fde, uint64_t pc)
{
	struct cursor c, init;
	if (!entry_read(fde, f->fde, &c))
		return false;
	uint64_t at = c.gva, back = take(&c, 4);
	if (!back || back > at || !cie_parse(f, at - back, &init))
		return false;
	f->start = encoded(&c, f->fde_enc, 0);
	f->len = encoded(&c, f->fde_enc & 0xf, 0);
	if (c.bad || pc < f->start || pc - f->start >= f->len)
		return false;
	if (f->has_aug) {
		uint64_t len = uleb(&c);
		if (len > (uint64_t)(c.end - c.p))
			return false;
		c.p += len;
		c.gva += len;
	}
	memset(&f->row, 0, sizeof f->row);
	memset(&f->init, 0, sizeof f->init);
	f->nr_saved = 0;
	if (!run(f, &init, 0, ~0ull))
		return false;
	f->init = f->row;
	return run(f, &c, f->start, pc);
}

static bool step(struct frame_info *f, struct unwind_regs *regs, bool *end)
{
	const struct row *w = &f->row;
	struct unwind_regs n = *regs;
	uint64_t cfa, v;
	if (w->cfa_expr) {
		if (!expression(w->cfa_expr, w->cfa_expr_len, regs, false, 0, &cfa))
			return false;
	} else {
		if (w->cfa_reg >= NR_REGS)
			return false;
		cfa = regs->r[w->cfa_reg] + (uint64_t)w->cfa_off;
	}
	n.r[UNWIND_RSP] = cfa;
	for (unsigned i = 0; i < NR_REGS; i++) {
		const struct rule *r = &w->reg[i];
		switch (r->kind) {
		case SAME:
			break;
		case UNDEFINED:
			n.r[i] = 0;
			break;
		case AT_CFA:
			if (guest_read(&n.r[i], cfa + (uint64_t)r->off, 8))
				return false;
			break;
		case IS_CFA:
			n.r[i] = cfa + (uint64_t)r->off;
			break;
		case REGISTER:
			n.r[i] = regs->r[r->off];
			break;
		case AT_EXPR:
		case IS_EXPR:
			if (!expression((const uint8_t *)(intptr_t)r->off, r->len, regs, true, cfa, &v))
				return false;
			if (r->kind == AT_EXPR && guest_read(&v, v, 8))
				return false;
			n.r[i] = v;
			break;
		}
	}
	*end = w->reg[f->ra].kind == UNDEFINED;
	if (w->reg[f->ra].kind == SAME) /* no function returns to itself */
		return false;
	n.r[UNWIND_RIP] = n.r[f->ra];
	/* Stacks grow down: an outer frame is further up, unless a signal came on another stack. */
	if (!f->is_signal && n.r[UNWIND_RSP] <= regs->r[UNWIND_RSP] && !*end)
		return false;
	*regs = n;
	return true;
}

bool unwind_walk(struct unwind_regs *regs, unwind_find_fn find, unwind_frame_fn frame, void *arg)
{
	static __thread struct frame_info f;
	bool exact = true; /* pc is not a return address */
	for (int i = 0; i < UNWIND_FRAMES; i++) {
		uint64_t pc = regs->r[UNWIND_RIP];
		if (!pc)
			return true;
		if (!frame(pc, regs->r[UNWIND_RSP], arg))
			return true;
		uint64_t at = exact ? pc : pc - 1, hdr = find(at, arg), fde = hdr ? fde_find(hdr, at) : 0;
		bool end = false;
		if (!fde || !fde_row(&f, fde, at)) {
			/* A signal's frame is found one byte before its function, and not as a return address. */
			if (exact || !hdr || !(fde = fde_find(hdr, pc)) || !fde_row(&f, fde, pc) || !f.is_signal)
				return false;
		}
		if (!step(&f, regs, &end))
			return false;
		if (end)
			return true;
		exact = f.is_signal;
	}
	return false;
}
