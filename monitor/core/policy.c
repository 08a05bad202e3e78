/* SPDX-License-Identifier: Apache-2.0 */
/* The block, checked; and decisions from it. Nothing is opened here. */
#include "policy.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "../../util/sha256.h"
#include "policy_priv.h"

uint64_t policy_signatures;

/* ---- the block -------------------------------------------------------------------------------------------------- */

const void *policy_block(const struct policy *p, size_t *len)
{
	*len = p->h->len;
	return p->h;
}

void policy_free(struct policy *p)
{
	if (!p)
		return;
	free(p->owned);
	free(p);
}

/* The next n elements of the block; NULL: they don't fit. */
static const void *take(const uint8_t **at, const uint8_t *end, uint32_t n, size_t size)
{
	const uint8_t *p = *at;
	if (n > (size_t)(end - p) / size)
		return NULL;
	*at = p + n * size;
	return p;
}

static bool range_ok(uint32_t first, uint32_t nr, uint32_t all) { return first <= all && nr <= all - first; }

static bool cond_ok(const struct policy_head *h, const struct policy_cond *c)
{
	if (c->type >= POLICY_CONDS || c->negated > 1 || c->text >= h->strings_len || c->str >= h->strings_len)
		return false;
	switch (c->type) {
	case POLICY_VERSION:
		return c->op < POLICY_OPS;
	case POLICY_BUILD_ID:
		return c->n && c->n <= SIGN_BUILD_ID;
	case POLICY_OWNER:
		return c->n <= POLICY_OWNERS_MAX;
	default:
		return true;
	}
}

static bool block_ok(const struct policy *p)
{
	const struct policy_head *h = p->h;
	if (!h->strings_len || p->strings[h->strings_len - 1] || h->file >= h->strings_len ||
	    h->keyring >= h->strings_len || h->nr_common > h->nr_rules || h->nr_keys > POLICY_KEYS_MAX ||
	    !h->nr_sections)
		return false;
	for (uint32_t i = 0; i < h->nr_keys; i++)
		if (!memchr(p->key[i].name, 0, sizeof p->key[i].name))
			return false;
	for (uint32_t i = 0; i < h->nr_sections; i++) {
		const struct policy_section *s = &p->section[i];
		if (s->what >= POLICY_FORS || s->mode >= POLICY_MODES || s->jit > 1 || s->glob >= h->strings_len ||
		    !range_ok(s->first, s->nr, h->nr_rules))
			return false;
	}
	for (uint32_t i = 0; i < h->nr_rules; i++)
		if (p->rule[i].allow > 1 || !range_ok(p->rule[i].first, p->rule[i].nr, h->nr_conds))
			return false;
	for (uint32_t i = 0; i < h->nr_conds; i++)
		if (!cond_ok(h, &p->cond[i]))
			return false;
	return p->section[h->nr_sections - 1].what == POLICY_FOR_ALL; /* so that there is one for everybody */
}

struct policy *policy_adopt(const void *block, size_t len)
{
	const struct policy_head *h = block;
	if (!h || (uintptr_t)block % 8 || len < sizeof *h || len > POLICY_BLOCK_MAX || h->magic != POLICY_MAGIC ||
	    h->len != len)
		return NULL;
	struct policy *p = calloc(1, sizeof *p);
	if (!p)
		return NULL;
	const uint8_t *at = (const uint8_t *)(h + 1), *end = (const uint8_t *)block + len;
	p->h = h;
	if ((p->key = take(&at, end, h->nr_keys, sizeof *p->key)) &&
	    (p->section = take(&at, end, h->nr_sections, sizeof *p->section)) &&
	    (p->rule = take(&at, end, h->nr_rules, sizeof *p->rule)) &&
	    (p->cond = take(&at, end, h->nr_conds, sizeof *p->cond)) &&
	    (p->revoked = take(&at, end, h->nr_revoked, sizeof *p->revoked)) &&
	    (p->strings = take(&at, end, h->strings_len, 1)) && at == end && block_ok(p))
		return p;
	free(p);
	return NULL;
}

/* ---- globs ------------------------------------------------------------------------------------------------------ */

/* Does what stands at g, one element, take the character c? *next is the element after. */
static bool glob_one(const char *g, const char **next, char c)
{
	*next = g + 1 + (*g == '\\' && g[1]);
	return *g == '?' ? c != '/' : *g == '\\' && g[1] ? g[1] == c : *g == c;
}

/* Of the stars behind, only the last of each kind needs another try: whatever earlier ones take, it could take. */
bool policy_glob(const char *g, const char *t)
{
	const char *star = NULL, *star_t = NULL, *any = NULL, *any_t = NULL, *next;
	for (;;) {
		if (g[0] == '*' && g[1] == '*') {
			while (*g == '*')
				g++;
			any = g;
			any_t = t;
			star = NULL;
			continue;
		}
		if (*g == '*') {
			star = ++g;
			star_t = t;
			continue;
		}
		if (!*t && !*g)
			return true;
		if (*t && *g && glob_one(g, &next, *t)) {
			g = next;
			t++;
		} else if (star && *star_t && *star_t != '/') {
			g = star;
			t = ++star_t;
		} else if (any && *any_t) {
			g = any;
			t = ++any_t;
			star = NULL;
		} else {
			return false;
		}
	}
}

/* ---- decisions -------------------------------------------------------------------------------------------------- */

const struct policy_section *policy_section(const struct policy *p, const struct policy_subject *s)
{
	for (uint32_t i = 0; i < p->h->nr_sections; i++) {
		const struct policy_section *c = &p->section[i];
		const char *is = c->what == POLICY_FOR_PROGRAM ? s->program : s->family;
		if (c->what == POLICY_FOR_ALL || (is && *is && policy_glob(p->strings + c->glob, is)))
			return c;
	}
	return &p->section[p->h->nr_sections - 1];
}

bool policy_active(const struct policy *p, const struct policy_subject *s)
{
	return policy_section(p, s)->mode != POLICY_MODE_OFF;
}

/* The i-th rule for a section, the common ones first. */
static const struct policy_rule *rule_at(const struct policy *p, const struct policy_section *c, uint32_t i)
{
	return &p->rule[i < p->h->nr_common ? i : c->first + i - p->h->nr_common];
}

static bool section_needs_bytes(const struct policy *p, const struct policy_section *c)
{
	static const uint32_t outside = 1u << POLICY_PATH | 1u << POLICY_LOADER | 1u << POLICY_OWNER |
					1u << POLICY_WRITABLE_BY | 1u << POLICY_KIND;
	if (c->mode == POLICY_MODE_OFF)
		return false;
	for (uint32_t i = 0; i < p->h->nr_common + c->nr; i++) {
		const struct policy_rule *r = rule_at(p, c, i);
		for (uint32_t k = 0; k < r->nr; k++)
			if (!(outside >> p->cond[r->first + k].type & 1))
				return true;
	}
	return p->h->nr_revoked > 0;
}

bool policy_needs_bytes(const struct policy *p, const struct policy_subject *s)
{
	if (s)
		return section_needs_bytes(p, policy_section(p, s));
	for (uint32_t i = 0; i < p->h->nr_sections; i++)
		if (section_needs_bytes(p, &p->section[i]))
			return true;
	return false;
}

/* One question: what it is about, and what has been found out so far. */
struct question {
	const struct policy *p;
	const struct policy_subject *s;
	const struct policy_image *i;
	int64_t now;
	const struct image_facts *facts;
	struct image_facts own;
	bool hashed, looked;
	int signer; /* index of the key, -1: no good signature */
	struct sign_manifest m;
	char no_signer[SIGN_WHY];
};

static const uint8_t *hash_of(struct question *q)
{
	if (!q->hashed && q->facts == &q->own && q->i->bytes)
		sha256(q->own.sha256, q->i->bytes, q->i->size);
	q->hashed = true;
	return q->facts->sha256;
}

static void look_at_signature(struct question *q)
{
	const struct policy *p = q->p;
	if (q->looked)
		return;
	q->looked = true;
	q->signer = -1;
	if (!q->i->sig) {
		snprintf(q->no_signer, sizeof q->no_signer, "it is not signed");
		return;
	}
	if (sign_parse(q->i->sig, q->i->sig_size, &q->m, q->no_signer))
		return;
	snprintf(q->no_signer, sizeof q->no_signer, "its signature is by a key that is not in the keyring");
	hash_of(q);
	for (uint32_t k = 0; k < p->h->nr_keys; k++) {
		if (memcmp(p->key[k].id, q->m.key, SIGN_ID))
			continue;
		__atomic_fetch_add(&policy_signatures, 1, __ATOMIC_RELAXED);
		if (!sign_check(&q->m, q->i->sig, &p->key[k], q->facts, q->now, q->no_signer))
			q->signer = (int)k;
		return;
	}
}

static bool version_in(struct question *q, const struct policy_cond *c)
{
	char names[SIGN_VERSION];
	const char *is = names;
	look_at_signature(q);
	if (q->signer >= 0)
		is = q->m.version;
	else
		version_of_names(q->facts->soname, q->i->path, names);
	if (!*is)
		return false;
	int r = version_compare(is, q->p->strings + c->str);
	switch (c->op) {
	case POLICY_EQ:
		return r == 0;
	case POLICY_GE:
		return r >= 0;
	case POLICY_LE:
		return r <= 0;
	case POLICY_GT:
		return r > 0;
	default:
		return r < 0;
	}
}

static bool owned_by(const struct question *q, const struct policy_cond *c)
{
	if (c->op && q->i->uid == q->s->uid)
		return true;
	for (uint32_t i = 0; i < c->n; i++)
		if (c->uid[i] == q->i->uid)
			return true;
	return false;
}

static unsigned kind_of(const struct policy_image *i)
{
	return i->way == POLICY_WAY_PROGRAM  ? POLICY_KIND_PROGRAM
	       : i->way == POLICY_WAY_INTERP ? POLICY_KIND_INTERP
					     : POLICY_KIND_LIBRARY;
}

static bool cond_met(struct question *q, const struct policy_cond *c)
{
	const char *str = q->p->strings + c->str;
	switch (c->type) {
	case POLICY_SONAME:
		return q->facts->soname[0] && policy_glob(str, q->facts->soname);
	case POLICY_VERSION:
		return version_in(q, c);
	case POLICY_BUILD_ID:
		return q->facts->build_id_len == c->n && !memcmp(q->facts->build_id, c->bytes, c->n);
	case POLICY_SHA256:
		return !memcmp(hash_of(q), c->bytes, SIGN_HASH);
	case POLICY_PATH:
		return policy_glob(str, q->i->path);
	case POLICY_SIGNED_BY:
		look_at_signature(q);
		return q->signer >= 0 && c->bytes[q->signer / 8] >> q->signer % 8 & 1;
	case POLICY_LOADER:
		return q->i->way != POLICY_WAY_OTHER && q->i->loader && policy_glob(str, q->i->loader);
	case POLICY_OWNER:
		return owned_by(q, c);
	case POLICY_WRITABLE_BY:
		return q->i->mode & c->op;
	default:
		return kind_of(q->i) & c->op;
	}
}

/* What a condition that isn't met has met instead. */
static void cond_why(struct question *q, const struct policy_cond *c, char out[SIGN_WHY])
{
	const char *what = "it is";
	char is[SIGN_VERSION] = "";
	if (c->negated) {
		snprintf(out, SIGN_WHY, "it is: %s", q->p->strings + c->text);
		return;
	}
	switch (c->type) {
	case POLICY_SONAME:
		snprintf(out, SIGN_WHY, "its SONAME is %.60s", q->facts->soname[0] ? q->facts->soname : "none");
		return;
	case POLICY_SIGNED_BY:
		if (q->signer < 0)
			snprintf(out, SIGN_WHY, "%s", q->no_signer);
		else
			snprintf(out, SIGN_WHY, "its signature is by %s", q->p->key[q->signer].name);
		return;
	case POLICY_VERSION:
		version_of_names(q->facts->soname, q->i->path, is);
		snprintf(out, SIGN_WHY, "its version is %s", q->signer >= 0 ? q->m.version : *is ? is : "unknown");
		return;
	case POLICY_OWNER:
		snprintf(out, SIGN_WHY, "its owner is %u", q->i->uid);
		return;
	case POLICY_LOADER:
		if (q->i->way == POLICY_WAY_OTHER || !q->i->loader)
			snprintf(out, SIGN_WHY, "it is not mapped by the dynamic linker");
		else
			snprintf(out, SIGN_WHY, "its dynamic linker is %.60s", q->i->loader);
		return;
	default:
		snprintf(out, SIGN_WHY, "%s not: %.80s", what, q->p->strings + c->text);
	}
}

static bool path_plain(const char *p)
{
	if (*p != '/')
		return false;
	for (; p; p = strchr(p + 1, '/'))
		if (p[1] == '/' || (p[1] == '.' && (p[2] == '/' || !p[2])) ||
		    (p[1] == '.' && p[2] == '.' && (p[3] == '/' || !p[3])))
			return false;
	return true;
}

/* A reason in one line of the file's and the policy's names, where long, their ends. */
static void say(const struct question *q, uint32_t line, const char *reason, char why[POLICY_WHY])
{
	const char *path = q->i->path ? q->i->path : "", *file = q->p->strings + q->p->h->file;
	size_t n = strlen(path), m = strlen(file);
	snprintf(why, POLICY_WHY, "%s%s: %.110s (%s%s:%u)", n > 70 ? "..." : "", n > 70 ? path + n - 67 : path, reason,
		 m > 48 ? "..." : "", m > 48 ? file + m - 45 : file, line);
	for (char *c = why; *c; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
}

/* True: a rule has decided, and *allow says how. Else *line and reason are of the rule that came nearest. */
static bool rules_decide(struct question *q, const struct policy_section *c, bool *allow, uint32_t *line,
			 char reason[SIGN_WHY])
{
	const struct policy_cond *nearest = NULL;
	uint32_t most = 0;
	*line = c->line;
	for (uint32_t i = 0; i < q->p->h->nr_common + c->nr; i++) {
		const struct policy_rule *r = rule_at(q->p, c, i);
		uint32_t k = 0;
		while (k < r->nr && cond_met(q, &q->p->cond[r->first + k]) != q->p->cond[r->first + k].negated)
			k++;
		if (k == r->nr) {
			*allow = r->allow;
			*line = r->line;
			snprintf(reason, SIGN_WHY, "a rule denies it%s%.80s", r->nr ? ": " : "",
				 r->nr ? q->p->strings + q->p->cond[r->first].text : "");
			return true;
		}
		if (r->allow && (!nearest || k > most)) {
			nearest = &q->p->cond[r->first + k];
			most = k;
			*line = r->line;
		}
	}
	if (nearest)
		cond_why(q, nearest, reason);
	else
		snprintf(reason, SIGN_WHY, "no rule allows anything");
	return false;
}

static bool revoked(struct question *q)
{
	for (uint32_t i = 0; i < q->p->h->nr_revoked; i++)
		if (!memcmp(hash_of(q), q->p->revoked[i], SIGN_HASH))
			return true;
	return false;
}

static bool image_allowed(struct question *q, const struct policy_section *c, char why[POLICY_WHY])
{
	char reason[SIGN_WHY] = "";
	uint32_t line = c->line;
	bool allow = false;
	const char *never = !q->i->path || !path_plain(q->i->path) ? "its path is not a plain one" : NULL;
	if (q->i->facts || q->i->bytes) {
		if (q->facts->wrong[0])
			never = q->facts->wrong;
		else if (!never && revoked(q))
			never = "this file is revoked";
	} else if (policy_needs_bytes(q->p, q->s)) {
		never = "its content is not known";
	}
	if (never) {
		say(q, line, never, why);
		return false;
	}
	if (!rules_decide(q, c, &allow, &line, reason)) {
		say(q, line, reason, why);
		return false;
	}
	if (!allow)
		say(q, line, reason, why);
	return allow;
}

enum policy_verdict policy_image_at(const struct policy *p, const struct policy_subject *s,
				    const struct policy_image *i, int64_t now, char why[POLICY_WHY])
{
	const struct policy_section *c = policy_section(p, s);
	struct question q = { .p = p, .s = s, .i = i, .now = now, .signer = -1 };
	why[0] = 0;
	if (c->mode == POLICY_MODE_OFF)
		return POLICY_ALLOW;
	q.facts = i->facts ? i->facts : &q.own;
	if (!i->facts && i->bytes)
		image_facts_elf(i->bytes, i->size, &q.own);
	if (image_allowed(&q, c, why))
		return POLICY_ALLOW;
	return c->mode == POLICY_MODE_WARN ? POLICY_WARN : POLICY_DENY;
}

enum policy_verdict policy_image(const struct policy *p, const struct policy_subject *s, const struct policy_image *i,
				 char why[POLICY_WHY])
{
	return policy_image_at(p, s, i, (int64_t)time(NULL), why);
}

enum policy_verdict policy_anonymous(const struct policy *p, const struct policy_subject *s, char why[POLICY_WHY])
{
	const struct policy_section *c = policy_section(p, s);
	struct policy_image none = { .path = "executable memory" };
	struct question q = { .p = p, .s = s, .i = &none };
	why[0] = 0;
	if (c->mode == POLICY_MODE_OFF || c->jit)
		return POLICY_ALLOW;
	say(&q, c->jit_line ? c->jit_line : c->line, "it comes from no file, and jit is deny", why);
	return c->mode == POLICY_MODE_WARN ? POLICY_WARN : POLICY_DENY;
}
