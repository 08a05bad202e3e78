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
#include "patch_priv.h"

enum { TRAMP_ALIGN = 8 };

int patch_scan(const uint8_t *text, size_t len, uint64_t gva, const struct patch_hints *hints, struct patch_plan *plan)
{
	struct scan s = { .text = text, .len = len };
	uint32_t floor = 0;
	int err;

	s.code_lo = UINT32_MAX;
	for (unsigned i = 0; hints && i < hints->n; i++) {
		uint32_t lo, hi;

		if (!patch_hint_span(&s, gva, &hints->fn[i], &lo, &hi))
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
	err = patch_pairs_find(&s);
	if (err || !s.n_pairs)
		goto out;
	patch_decoder_init(&s.dec);
	err = patch_sites_find(&s, gva, hints);
	plan->found = s.found;
	plan->cpuid_found = s.cpuid_found;
	if (err || !s.n)
		goto out;
	err = patch_targets_rel32(&s);
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

		patch_targets_rel8(&s, c);
		if (patch_window_choose(&s, c, floor, &w, &last)) {
			patch_site_plan(c, &w, last, gva, site, tail);
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

/* Offset in the trampoline where the LibOS resumes, tramp_len when that is behind the window. */
static unsigned resume_off(const struct kx_site *s)
{
	unsigned off = s->tramp_len;

	for (unsigned i = 0; i < s->n && i < NR_MAPS; i++)
		if (s->map[i].win > s->sys_off && s->map[i].tramp < off)
			off = s->map[i].tramp;
	return off;
}

/* The last instruction of the window, n bytes long, of which t has the trampoline's bytes from off on. */
static bool undo_last(const struct kx_site *s, const uint8_t *t, unsigned off, uint8_t *last, unsigned n)
{
	const uint8_t *p = t + off;
	bool jmp = off + 5u <= s->tramp_len && p[0] == 0xe9;
	bool jcc = off + 6u <= s->tramp_len && p[0] == 0x0f && (p[1] & 0xf0) == 0x80;
	const unsigned op = jcc ? 2 : 1;

	if (!jmp && !jcc) {
		if (off + n > s->tramp_len)
			return false;
		memcpy(last, p, n);
		return true;
	}
	int64_t rel = (int64_t)(s->tramp + off + op + 4 + (uint64_t)(int64_t)rel32_at(p + op) - (s->start + s->len));
	if (n == 2 && rel >= INT8_MIN && rel <= INT8_MAX) {
		last[0] = jmp ? 0xeb : 0x70 | (p[1] & 0xf);
		last[1] = (uint8_t)rel;
	} else if (n == op + 4 && rel >= INT32_MIN && rel <= INT32_MAX) {
		int32_t rel32 = (int32_t)rel;

		memcpy(last, p, op);
		memcpy(last + op, &rel32, 4);
	} else {
		return false;
	}
	return true;
}

int patch_undo(const struct kx_site *s, const uint8_t *tramp, uint8_t win[PATCH_WINDOW_MAX])
{
	uint8_t b[PATCH_WINDOW_MAX] = { 0 };
	unsigned resume = resume_off(s), at = s->sys_off + 2, last = at, last_off = resume;

	if (s->len > PATCH_WINDOW_MAX || s->len < WINDOW_MIN)
		return -EINVAL;
	if (s->len <= s->sys_off) { /* the instruction is whole */
		if (s->len > s->tramp_len)
			return -EINVAL;
		memcpy(win, tramp, s->len);
		return 0;
	}
	if (s->sys_off > s->tramp_len || at > s->len)
		return -EINVAL;
	memcpy(b, tramp, s->sys_off);
	b[s->sys_off] = 0x0f;
	b[s->sys_off + 1] = s->cpuid ? 0xa2 : 0x05;
	for (unsigned i = 0; i < s->n && i < NR_MAPS; i++)
		if (s->map[i].win >= last && s->map[i].win < s->len) {
			last = s->map[i].win;
			last_off = s->map[i].tramp;
		}
	if (at < s->len) {
		if (resume + (last - at) != last_off || last_off > s->tramp_len)
			return -EINVAL;
		memcpy(b + at, tramp + resume, last - at);
		if (!undo_last(s, tramp, last_off, b + last, s->len - last))
			return -EINVAL;
	}
	memcpy(win, b, s->len);
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
