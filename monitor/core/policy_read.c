/* SPDX-License-Identifier: Apache-2.0 */
/* Policy files: words, sections and rules, put together into the block that policy.c decides from. */
#include "policy_read.h"
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "keys.h"
#include "policy_priv.h"

#define SYSTEM_POLICY "/etc/kylinx/policy"
#define FILE_LIMIT (1u << 20)
#define WORDS_MAX 64
#define SECTIONS_MAX 4096 /* each is compared with all before */
#define GLOB_MAX 1024
#define NO_MEMORY "memory: none left on the host (free some)"

const char policy_builtin[] = "[default]\n"
			      "mode enforce\n"
			      "jit allow\n"
			      "deny writable-by others\n"
			      "allow\n";

struct list {
	char *p;
	uint32_t n, cap;
};

struct build {
	const char *path; /* NULL: built in */
	unsigned line;
	policy_remark_fn fn;
	void *arg;
	unsigned errors;
	bool no_memory, full; /* full: nothing more is read */
	struct list sections, rules, conds, strings;
	struct keyring keys;
	char keyring_path[4096];
	bool keyring_said, keyring_there, keyring_home;
	/* of the section that is being read */
	bool mode_said, jit_said, has_rules;
	uint32_t unconditional; /* line of a rule that always decides, 0: none yet */
};

__attribute__((format(printf, 4, 5))) static void remark(struct build *b, bool error, unsigned line, const char *fmt,
							 ...)
{
	char text[400];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	for (char *c = text; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 127)
			*c = '?';
	b->errors += error;
	if (b->fn)
		b->fn(b->arg, error, line, text);
}

#define wrong(b, ...) remark(b, true, (b)->line, __VA_ARGS__)

/* ---- the block's parts ------------------------------------------------------------------------------------------ */

static uint32_t put(struct build *b, struct list *l, const void *data, uint32_t len)
{
	if (l->n + len > l->cap) {
		uint32_t cap = 2 * (l->n + len) + 256;
		char *p = cap > POLICY_BLOCK_MAX ? NULL : realloc(l->p, cap);
		if (!p) {
			b->no_memory = true;
			return 0;
		}
		l->p = p;
		l->cap = cap;
	}
	memcpy(l->p + l->n, data, len);
	l->n += len;
	return l->n - len;
}

static uint32_t put_string(struct build *b, const char *s) { return put(b, &b->strings, s, (uint32_t)strlen(s) + 1); }

static struct policy_section *section_now(struct build *b)
{
	return b->sections.n ? (struct policy_section *)(b->sections.p + b->sections.n) - 1 : NULL;
}

/* ---- words ------------------------------------------------------------------------------------------------------ */

/* Split a line in place; the number of words, -1: it is wrong. */
static int split(struct build *b, char *s, char *word[WORDS_MAX])
{
	int n = 0;
	for (;;) {
		s += strspn(s, " \t\r");
		if (!*s || *s == '#')
			return n;
		if (n == WORDS_MAX) {
			wrong(b, "more than %d words (write several rules)", WORDS_MAX);
			return -1;
		}
		char *to = s, quote = *s == '"';
		word[n++] = s;
		s += quote;
		while (*s && (quote ? *s != '"' : !strchr(" \t\r", *s))) {
			if (quote && *s == '\\' && (s[1] == '"' || s[1] == '\\'))
				s++;
			*to++ = *s++;
		}
		if (quote && *s++ != '"') {
			wrong(b, "a quote that isn't closed (add a \")");
			return -1;
		}
		if (*s && !strchr(" \t\r", *s)) {
			wrong(b, "text right behind a quote (put a space between)");
			return -1;
		}
		bool last = !*s;
		*to = 0;
		if (last)
			return n;
		s++;
	}
}

/* ---- conditions ------------------------------------------------------------------------------------------------- */

static bool set_glob(struct build *b, struct policy_cond *c, const char *v, bool path)
{
	if (!*v || strlen(v) > GLOB_MAX) {
		wrong(b, "a pattern is empty, or longer than %d bytes (check it)", GLOB_MAX);
		return false;
	}
	if (path && *v != '/' && *v != '*') {
		wrong(b, "%.80s: would match no path (begin it with a slash, or with **)", v);
		return false;
	}
	c->str = put_string(b, v);
	return true;
}

static bool set_hash(struct build *b, struct policy_cond *c, const char *v, bool build_id)
{
	size_t n = strlen(v);
	c->n = (uint32_t)(n / 2);
	if (build_id ? n && n / 2 <= SIGN_BUILD_ID && hex_get(v, n, c->bytes, n / 2)
		     : hex_get(v, n, c->bytes, SIGN_HASH))
		return true;
	if (build_id)
		wrong(b, "%.80s: no build-id (give 2 to 64 lower-case hexadecimal digits, as `readelf -n` prints)", v);
	else
		wrong(b, "%.80s: no SHA-256 (give 64 lower-case hexadecimal digits, as `sha256sum` prints)", v);
	return false;
}

static bool set_version(struct build *b, struct policy_cond *c, const char *v)
{
	static const struct {
		const char *text;
		uint32_t op;
	} ops[] = {
		{ ">=", POLICY_GE }, { "<=", POLICY_LE }, { ">", POLICY_GT }, { "<", POLICY_LT }, { "=", POLICY_EQ }
	};
	for (unsigned i = 0; i < 5; i++) {
		size_t n = strlen(ops[i].text);
		if (strncmp(v, ops[i].text, n))
			continue;
		if (!version_valid(v + n))
			break;
		c->op = ops[i].op;
		c->str = put_string(b, v + n);
		return true;
	}
	wrong(b, "%.80s: no range of versions (for example >=1.2,<2)", v);
	return false;
}

/* Of a name, by the file of the system: no library for it is needed. */
static bool user_id(const char *name, uint32_t *uid)
{
	char *end;
	unsigned long long n = strtoull(name, &end, 10);
	if (*name >= '0' && *name <= '9' && !*end && n < UINT32_MAX) {
		*uid = (uint32_t)n;
		return true;
	}
	FILE *f = fopen("/etc/passwd", "re");
	struct passwd *p = NULL;
	while (f && (p = fgetpwent(f)) && strcmp(p->pw_name, name))
		;
	if (p)
		*uid = p->pw_uid;
	if (f)
		fclose(f);
	return p;
}

static bool set_owner(struct build *b, struct policy_cond *c, char *v)
{
	for (char *save, *s = strtok_r(v, ",", &save); s; s = strtok_r(NULL, ",", &save)) {
		uint32_t uid = 0;
		if (!strcmp(s, "user")) {
			c->op = 1;
			continue;
		}
		if (strcmp(s, "root") && !user_id(s, &uid)) {
			wrong(b, "%.64s: no user in /etc/passwd (give the number, `root`, or `user`: who runs it)", s);
			return false;
		}
		if (c->n == POLICY_OWNERS_MAX) {
			wrong(b, "more than %d owners (write several rules)", POLICY_OWNERS_MAX);
			return false;
		}
		if (!uid && geteuid())
			remark(b, false, b->line,
			       "owner root: who isn't root runs programs where other owners are seen as 65534 "
			       "(`not owner user` tells other people's files)");
		c->uid[c->n++] = uid;
	}
	if (c->n || c->op)
		return true;
	wrong(b, "owner: nobody (give `root`, `user`, names or numbers)");
	return false;
}

static bool keyring_need(struct build *b)
{
	struct kx_err err = { 0 };
	if (b->keyring_there || !b->path || !*b->keyring_path)
		return true;
	int r = keyring_read(b->keyring_path, &b->keys, &err);
	if ((r == -ENOENT && !b->keyring_said) || (r == -EACCES && b->keyring_home))
		r = 0; /* nobody has trusted anything yet; or the home is somebody else's */
	else if (r)
		wrong(b, "keyring: %s", err.msg);
	b->keyring_there = true;
	return !r;
}

static bool set_signers(struct build *b, struct policy_cond *c, char *v)
{
	char why[SIGN_WHY];
	if (!keyring_need(b))
		return false;
	for (char *save, *s = strtok_r(v, ",", &save); s; s = strtok_r(NULL, ",", &save)) {
		unsigned found = 0;
		for (unsigned i = 0; i < b->keys.nr; i++) {
			if (!policy_glob(s, b->keys.key[i].name))
				continue;
			c->bytes[i / 8] |= (uint8_t)(1 << i % 8);
			found++;
			c->n++;
			if (!strpbrk(s, "*?") && !sign_key_usable(&b->keys.key[i], time(NULL), why))
				remark(b, false, b->line, "signed-by %.64s: %s (see `kylinx lib trust`)", s, why);
		}
		if (!found) {
			wrong(b, "signed-by %.64s: no such key in %.160s (see `kylinx lib trust`)", s,
			      *b->keyring_path ? b->keyring_path : "the keyring");
			return false;
		}
	}
	if (c->n)
		return true;
	wrong(b, "signed-by: nobody (give names of keys, or *)");
	return false;
}

static bool set_bits(struct build *b, struct policy_cond *c, char *v)
{
	static const struct {
		const char *name;
		uint32_t type, bits;
	} all[] = {
		{ "group", POLICY_WRITABLE_BY, 022 },
		{ "others", POLICY_WRITABLE_BY, 002 },
		{ "program", POLICY_KIND, POLICY_KIND_PROGRAM },
		{ "linker", POLICY_KIND, POLICY_KIND_INTERP },
		{ "library", POLICY_KIND, POLICY_KIND_LIBRARY },
	};
	for (char *save, *s = strtok_r(v, ",", &save); s; s = strtok_r(NULL, ",", &save)) {
		unsigned i = 0;
		while (i < 5 && (all[i].type != c->type || strcmp(all[i].name, s)))
			i++;
		if (i == 5) {
			wrong(b, "%.64s: unknown (give %s)", s,
			      c->type == POLICY_KIND ? "program, linker or library" : "group or others");
			return false;
		}
		c->op |= all[i].bits;
	}
	if (!c->op)
		wrong(b, "nothing given (give %s)",
		      c->type == POLICY_KIND ? "program, linker or library" : "group or others");
	return c->op;
}

static const char *const cond_names[POLICY_CONDS] = { "soname",    "version", "build-id", "sha256",      "path",
						      "signed-by", "loader",  "owner",    "writable-by", "kind" };

static bool cond_set(struct build *b, struct policy_cond *c, char *v)
{
	switch (c->type) {
	case POLICY_SONAME:
		return set_glob(b, c, v, false);
	case POLICY_VERSION:
		return set_version(b, c, v);
	case POLICY_BUILD_ID:
		return set_hash(b, c, v, true);
	case POLICY_SHA256:
		return set_hash(b, c, v, false);
	case POLICY_PATH:
	case POLICY_LOADER:
		return set_glob(b, c, v, true);
	case POLICY_SIGNED_BY:
		return set_signers(b, c, v);
	case POLICY_OWNER:
		return set_owner(b, c, v);
	default:
		return set_bits(b, c, v);
	}
}

static bool add_cond(struct build *b, struct policy_rule *r, uint32_t type, bool negated, char *value)
{
	struct policy_cond c = { .type = type, .negated = negated };
	char text[GLOB_MAX + 32];
	snprintf(text, sizeof text, "%s %s", cond_names[type], value);
	c.text = put_string(b, text);
	if (!cond_set(b, &c, value))
		return false;
	put(b, &b->conds, &c, sizeof c);
	r->nr++;
	return true;
}

static void add_rule(struct build *b, int n, char **word)
{
	struct policy_rule r = { .allow = !strcmp(word[0], "allow"),
				 .line = b->line,
				 .first = b->conds.n / (uint32_t)sizeof(struct policy_cond) };
	struct policy_section *s = section_now(b);
	b->has_rules = true; /* or would have, but for an error */
	for (int i = 1; i < n;) {
		bool negated = !strcmp(word[i], "not");
		uint32_t type = 0;
		i += negated;
		while (i < n && type < POLICY_CONDS && strcmp(cond_names[type], word[i]))
			type++;
		if (i == n || type == POLICY_CONDS) {
			wrong(b,
			      "%.64s: no condition (one of soname, version, build-id, sha256, path, signed-by, "
			      "loader, owner, writable-by, kind)",
			      i == n ? "not" : word[i]);
			return;
		}
		if (i + 1 == n) {
			wrong(b, "%s: without a value (give one)", word[i]);
			return;
		}
		/* A range is one condition for each end of it. */
		char *save = NULL, *v = word[i + 1];
		if (type == POLICY_VERSION) {
			if (negated && strchr(v, ',')) {
				wrong(b, "not version with a range (write a rule for each end)");
				return;
			}
			if (!(v = strtok_r(v, ",", &save))) {
				wrong(b, "version: no range (for example >=1.2,<2)");
				return;
			}
		}
		for (; v; v = type == POLICY_VERSION ? strtok_r(NULL, ",", &save) : NULL)
			if (!add_cond(b, &r, type, negated, v))
				return;
		i += 2;
	}
	if (b->unconditional)
		remark(b, false, b->line, "never reached: line %u always decides (remove one)", b->unconditional);
	else if (!r.nr)
		b->unconditional = b->line;
	put(b, &b->rules, &r, sizeof r);
	if (s)
		s->nr++;
}

/* ---- sections --------------------------------------------------------------------------------------------------- */

static void section_end(struct build *b)
{
	struct policy_section *s = section_now(b);
	if (s && s->mode != POLICY_MODE_OFF && !b->has_rules && !((struct policy_section *)b->sections.p)->first)
		remark(b, false, s->line, "a section without rules: nothing may be mapped (add rules, or `mode off`)");
	b->mode_said = b->jit_said = b->has_rules = false;
	b->unconditional = 0;
}

static bool shadowed(struct build *b, uint32_t what, const char *glob, uint32_t *line)
{
	const struct policy_section *s = (const void *)b->sections.p;
	for (uint32_t i = 0; i < b->sections.n / sizeof *s; i++)
		if (s[i].what == what && (what == POLICY_FOR_ALL || policy_glob(b->strings.p + s[i].glob, glob))) {
			*line = s[i].line;
			return true;
		}
	return false;
}

static void add_section(struct build *b, char *s)
{
	char *word[WORDS_MAX], *end = s + strlen(s);
	uint32_t line = 0;
	while (end > s && strchr(" \t\r", end[-1]))
		end--;
	if (end == s || end[-1] != ']') {
		char *hash = strstr(s, "] "); /* a remark behind it */
		if (!hash || hash[2 + strspn(hash + 2, " \t")] != '#') {
			wrong(b, "a section without its end (add a ])");
			return;
		}
		end = hash + 1;
	}
	end[-1] = 0;
	int n = split(b, s + 1, word);
	if (n < 0)
		return;
	uint32_t what = n == 1 && !strcmp(word[0], "default")   ? POLICY_FOR_ALL
			: n == 2 && !strcmp(word[0], "program") ? POLICY_FOR_PROGRAM
			: n == 2 && !strcmp(word[0], "family")  ? POLICY_FOR_FAMILY
								: POLICY_FORS;
	if (what == POLICY_FORS) {
		wrong(b, "no section (give [program PATH], [family NAME] or [default])");
		return;
	}
	const char *glob = what == POLICY_FOR_ALL ? "" : word[1];
	if (strlen(glob) > GLOB_MAX || (what == POLICY_FOR_PROGRAM && *glob != '/' && *glob != '*')) {
		wrong(b, "%.80s: would match no program (give an absolute path)", glob);
		return;
	}
	if (b->sections.n / sizeof(struct policy_section) == SECTIONS_MAX) {
		wrong(b, "more than %d sections (put programs together by patterns)", SECTIONS_MAX);
		b->full = true;
		return;
	}
	if (shadowed(b, POLICY_FOR_ALL, "", &line)) {
		wrong(b, "never reached: [default] of line %u holds for all (put it last)", line);
		return;
	}
	if (shadowed(b, what, glob, &line))
		remark(b, false, b->line, "never reached: the section of line %u holds for it (put this one first)",
		       line);
	section_end(b);
	struct policy_section sec = { .what = what,
				      .line = b->line,
				      .mode = POLICY_MODE_ENFORCE,
				      .glob = put_string(b, glob),
				      .first = b->rules.n / (uint32_t)sizeof(struct policy_rule) };
	put(b, &b->sections, &sec, sizeof sec);
}

static void set_choice(struct build *b, int n, char **word)
{
	static const char *const modes[] = { "enforce", "warn", "off" }, *const jits[] = { "deny", "allow" };
	bool mode = !strcmp(word[0], "mode");
	bool *said = mode ? &b->mode_said : &b->jit_said;
	const char *const *names = mode ? modes : jits;
	unsigned nr = mode ? 3 : 2, i = 0;
	struct policy_section *s = section_now(b);
	if (!s) {
		wrong(b, "%s before the first section (write [default] before it)", word[0]);
		return;
	}
	while (n == 2 && i < nr && strcmp(names[i], word[1]))
		i++;
	if (n != 2 || i == nr) {
		wrong(b, mode ? "mode: unknown (give enforce, warn or off)" : "jit: unknown (give allow or deny)");
		return;
	}
	if (*said) {
		wrong(b, "%s is said twice in this section (remove one)", word[0]);
		return;
	}
	*said = true;
	if (mode) {
		s->mode = i;
	} else {
		s->jit = i;
		s->jit_line = b->line;
	}
}

static void set_keyring(struct build *b, int n, char **word)
{
	if (n != 2 || *word[1] != '/' || strlen(word[1]) > 4000)
		wrong(b, "keyring: no directory (give its absolute path)");
	else if (b->sections.n || b->rules.n || b->keyring_said)
		wrong(b, "keyring: too late, or twice (write it once, before all rules and sections)");
	else
		snprintf(b->keyring_path, sizeof b->keyring_path, "%s", word[1]);
	b->keyring_said = true;
	b->keyring_home = false;
}

static void read_line(struct build *b, char *s)
{
	char *word[WORDS_MAX];
	s += strspn(s, " \t\r");
	if (*s == '[') {
		add_section(b, s);
		return;
	}
	int n = split(b, s, word);
	if (n <= 0)
		return;
	if (!strcmp(word[0], "allow") || !strcmp(word[0], "deny"))
		add_rule(b, n, word);
	else if (!strcmp(word[0], "mode") || !strcmp(word[0], "jit"))
		set_choice(b, n, word);
	else if (!strcmp(word[0], "keyring"))
		set_keyring(b, n, word);
	else
		wrong(b, "%.64s: unknown word (one of allow, deny, mode, jit, keyring, or a section)", word[0]);
}

static void read_text(struct build *b, char *text, size_t len)
{
	char *end = text + len;
	b->line = 1;
	if (strlen(text) != len) {
		wrong(b, "a NUL byte in the file (it is no text)");
		return;
	}
	for (char *s = text, *nl; s < end && !b->full; s = nl + 1, b->line++) {
		if (!(nl = memchr(s, '\n', (size_t)(end - s))))
			nl = end;
		*nl = 0;
		read_line(b, s);
	}
	section_end(b);
	uint32_t line;
	b->line = 0;
	if (!b->errors && !shadowed(b, POLICY_FOR_ALL, "", &line))
		wrong(b, "no section [default] (say what holds for all other programs: rules, or `mode off`)");
	keyring_need(b);
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

static struct policy *pack(struct build *b)
{
	const struct policy_section *sec = (const void *)b->sections.p;
	struct policy_head h = { .magic = POLICY_MAGIC,
				 .file = put_string(b, b->path ? b->path : "built-in policy"),
				 .keyring = put_string(b, b->keyring_path),
				 .nr_common = sec->first,
				 .nr_sections = b->sections.n / (uint32_t)sizeof(struct policy_section),
				 .nr_rules = b->rules.n / (uint32_t)sizeof(struct policy_rule),
				 .nr_conds = b->conds.n / (uint32_t)sizeof(struct policy_cond),
				 .nr_keys = b->keys.nr,
				 .nr_revoked = b->keys.nr_revoked_files,
				 .strings_len = b->strings.n };
	struct list out = { 0 };
	put(b, &out, &h, sizeof h);
	for (unsigned i = 0; i < b->keys.nr; i++)
		put(b, &out, &b->keys.key[i], sizeof b->keys.key[i]);
	const struct list *const parts[] = { &b->sections, &b->rules, &b->conds };
	for (unsigned i = 0; i < 3; i++)
		if (parts[i]->n)
			put(b, &out, parts[i]->p, parts[i]->n);
	for (unsigned i = 0; i < b->keys.nr_revoked_files; i++)
		put(b, &out, b->keys.revoked_file[i].sha256, SIGN_HASH);
	put(b, &out, b->strings.p, b->strings.n);
	struct policy *p = NULL;
	if (!b->no_memory) {
		((struct policy_head *)out.p)->len = out.n;
		p = policy_adopt(out.p, out.n);
	}
	if (p)
		p->owned = out.p;
	else
		free(out.p);
	return p;
}

static int build(struct build *b, char *text, size_t len, struct policy **out, struct kx_err *err)
{
	*out = NULL;
	put_string(b, "");
	read_text(b, text, len);
	if (!b->errors && !(*out = pack(b)))
		kx_err_set(err, ENOMEM, "%s: larger than a policy can be, or no memory (make it smaller)",
			   b->path ? b->path : "built-in policy");
	int r = *out ? 0 : b->errors ? -EINVAL : -ENOMEM;
	free(b->sections.p);
	free(b->rules.p);
	free(b->conds.p);
	free(b->strings.p);
	keyring_free(&b->keys);
	return r;
}

int policy_check(const char *path, struct policy **out, policy_remark_fn fn, void *arg, struct kx_err *err)
{
	struct build b = { .path = path, .fn = fn, .arg = arg, .keys = { .dir = -1, .lock = -1 } };
	char *text;
	size_t len;
	*out = NULL;
	int fd = trusted_open(path, false, err);
	if (fd < 0)
		return fd;
	int r = file_read(fd, path, FILE_LIMIT, &text, &len, err);
	close(fd);
	if (r)
		return r;
	if (!strcmp(path, SYSTEM_POLICY)) {
		strcpy(b.keyring_path, "/etc/kylinx/keys");
	} else if (!config_dir(b.keyring_path)) {
		strcat(b.keyring_path, "/keys");
		b.keyring_home = !getenv("KYLINX_CONFIG");
	}
	r = build(&b, text, len, out, err);
	free(text);
	return r;
}

struct first {
	const char *path;
	struct kx_err *err;
};

static void keep_first(void *arg, bool error, unsigned line, const char *text)
{
	struct first *f = arg;
	if (error && line)
		kx_err_set(f->err, EINVAL, "%s:%u: %s", f->path, line, text);
	else if (error)
		kx_err_set(f->err, EINVAL, "%s: %s", f->path, text);
}

int policy_read(const char *path, struct policy **out, struct kx_err *err)
{
	struct kx_err own = { 0 };
	struct first f = { path, err ? err : &own };
	return policy_check(path, out, keep_first, &f, f.err);
}

int policy_read_builtin(struct policy **out, struct kx_err *err)
{
	struct build b = { .keys = { .dir = -1, .lock = -1 } };
	char *text = strdup(policy_builtin);
	*out = NULL;
	if (!text)
		return kx_err_set(err, ENOMEM, NO_MEMORY);
	int r = build(&b, text, strlen(text), out, err);
	free(text);
	return r;
}

/* A home that is somebody else's, as after su(1) without a login, holds nothing of this user's. */
static bool home_is_own(void)
{
	const char *config = getenv("XDG_CONFIG_HOME"), *home = config && *config == '/' ? config : getenv("HOME");
	struct stat st;
	return stat(home ? home : "", &st) ? errno != EACCES : st.st_uid == geteuid();
}

int policy_find(char out[4096], struct kx_err *err)
{
	const char *env = getenv("KYLINX_CONFIG");
	struct stat st;
	int r = config_dir(out);
	if (r == -EINVAL)
		return kx_err_set(err, EINVAL, "KYLINX_CONFIG=%.200s: no absolute path (give one, or none)",
				  env ? env : "");
	if (!r) {
		strcat(out, "/policy");
		/* Whatever is there is meant, a link to nothing, too. */
		if (!lstat(out, &st))
			return 1;
		if (errno != ENOENT && (errno != ENOTDIR || env) &&
		    (errno != EACCES || env || !geteuid() || home_is_own()))
			return 1;
	}
	if (env || !geteuid())
		return 0;
	/* Root's, where it lets others read it. */
	strcpy(out, SYSTEM_POLICY);
	return !access(out, R_OK);
}

int policy_open(const char *file, struct policy **out, struct kx_err *err)
{
	char path[4096];
	*out = NULL;
	if (file && !strcmp(file, "off"))
		return 0;
	if (file)
		return policy_read(file, out, err);
	int r = policy_find(path, err);
	return r < 0 ? r : r ? policy_read(path, out, err) : policy_read_builtin(out, err);
}
