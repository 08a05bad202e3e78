/* SPDX-License-Identifier: Apache-2.0 */
/* kylinx lib policy: is the file right, what does it say, what would it decide. */
#include "../monitor/core/policy_priv.h"
#include "../monitor/core/policy_read.h"
#include "../monitor/core/store.h"
#include "cli.h"
#include "lib.h"
#include "ps.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char *const modes[] = { "enforce", "warn", "off" }, *const fors[] = { "default", "program", "family" },
			 *const jits[] = { "deny", "allow" };

static void put_text(FILE *o, const char *s) { put_json(o, s, strlen(s)); }

/* A file that is named, or the one that holds. 1; 0: it is the built-in policy; -errno with err set. */
static int policy_path(const char *given, char path[PATH_MAX], struct kx_err *err)
{
	if (!given)
		return policy_find(path, err);
	snprintf(path, PATH_MAX, "%s", given);
	return 1;
}

/* ---- check ------------------------------------------------------------------------------------------------------ */

struct check {
	FILE *o;
	const char *path;
	bool json;
	unsigned errors, warnings;
};

static void check_remark(void *arg, bool error, unsigned line, const char *text)
{
	struct check *c = arg;
	bool first = !c->errors && !c->warnings;
	error ? c->errors++ : c->warnings++;
	if (c->json) {
		fprintf(c->o, "%s\n  {\"level\": \"%s\", \"line\": %u, \"text\": ", first ? "" : ",",
			error ? "error" : "warning", line);
		put_text(c->o, text);
		fputs("}", c->o);
		return;
	}
	put_line(c->o, c->path, strlen(c->path), 4096);
	if (line)
		fprintf(c->o, ":%u", line);
	fprintf(c->o, ": %s%s\n", error ? "" : "warning: ", text);
}

static int check(const char *given, bool json, struct kx_err *err)
{
	char path[PATH_MAX], *text = NULL;
	size_t len;
	struct policy *p = NULL;
	int where = policy_path(given, path, err);
	if (where < 0)
		return CLI_FAILED;
	if (!where) {
		snprintf(path, sizeof path, "built-in policy");
		if (policy_read_builtin(&p, err))
			return CLI_FAILED;
	}
	struct check c = { .o = open_memstream(&text, &len), .path = path, .json = json };
	if (!c.o) {
		kx_err_set(err, ENOMEM, "memory: none left on the host (free some)");
		return CLI_FAILED;
	}
	if (json) {
		fputs("{\"version\": 1, \"file\": ", c.o);
		put_text(c.o, path);
		fputs(", \"remarks\": [", c.o);
	}
	int r = p ? 0 : policy_check(path, &p, check_remark, &c, err);
	if (json)
		fprintf(c.o, "], \"errors\": %u, \"ok\": %s}\n", c.errors, r ? "false" : "true");
	else if (!r)
		fprintf(c.o, "%s: %u sections, %u rules, %u keys, no errors\n", path, p->h->nr_sections, p->h->nr_rules,
			p->h->nr_keys);
	policy_free(p);
	if (err->code) { /* it could not be read at all */
		fclose(c.o);
		free(text);
		return CLI_FAILED;
	}
	int status = lib_print_free(c.o, &text, err);
	return status ? status : r ? 1 : 0;
}

/* ---- show ------------------------------------------------------------------------------------------------------- */

static void show_rule(FILE *o, const struct policy *p, const struct policy_rule *r, bool json, bool first)
{
	if (json)
		fprintf(o, "%s\n    {\"line\": %u, \"verdict\": \"%s\", \"conditions\": [", first ? "" : ",", r->line,
			r->allow ? "allow" : "deny");
	else
		fprintf(o, "%6u  %s", r->line, r->allow ? "allow" : "deny");
	for (uint32_t k = 0; k < r->nr; k++) {
		const struct policy_cond *c = &p->cond[r->first + k];
		const char *text = p->strings + c->text, *value = strchr(text, ' ') ? strchr(text, ' ') + 1 : text;
		if (json) {
			fprintf(o, "%s{\"type\": \"%.*s\", \"not\": %s, \"value\": ", k ? ", " : "",
				(int)strcspn(text, " "), text, c->negated ? "true" : "false");
			put_text(o, value);
			fputc('}', o);
		} else {
			fputs(c->negated ? " not " : " ", o);
			put_line(o, text, strlen(text), 4096);
		}
	}
	fputs(json ? "]}" : "\n", o);
}

static void show_rules(FILE *o, const struct policy *p, uint32_t first, uint32_t nr, bool json)
{
	for (uint32_t i = 0; i < nr; i++)
		show_rule(o, p, &p->rule[first + i], json, !i);
}

static void show_section(FILE *o, const struct policy *p, const struct policy_section *s, bool json)
{
	const char *glob = p->strings + s->glob;
	if (json) {
		fprintf(o, "{\"for\": \"%s\", \"pattern\": ", fors[s->what]);
		put_text(o, glob);
		fprintf(o, ", \"line\": %u, \"mode\": \"%s\", \"jit\": \"%s\", \"rules\": [", s->line, modes[s->mode],
			jits[s->jit]);
	} else {
		fprintf(o, "\n[%s%s", fors[s->what], *glob ? " " : "");
		put_line(o, glob, strlen(glob), 4096);
		fprintf(o, "]  mode %s, jit %s\n", modes[s->mode], jits[s->jit]);
	}
	show_rules(o, p, s->first, s->nr, json);
	if (json)
		fputs("]}", o);
}

static void show_all(FILE *o, const struct policy *p, bool json)
{
	const struct policy_head *h = p->h;
	const char *file = p->strings + h->file, *ring = p->strings + h->keyring;
	if (json) {
		fputs("{\"version\": 1, \"file\": ", o);
		put_text(o, file);
		fputs(", \"keyring\": ", o);
		put_text(o, ring);
		fprintf(o, ", \"revoked_files\": %u, \"keys\": [", h->nr_revoked);
		lib_show_keys(o, p->key, h->nr_keys, true);
		fputs("],\n \"common\": [", o);
		show_rules(o, p, 0, h->nr_common, true);
		fputs("],\n \"sections\": [", o);
	} else {
		fprintf(o, "policy   %s\nkeyring  %s\nrevoked  %u files\n", file, *ring ? ring : "-", h->nr_revoked);
		lib_show_keys(o, p->key, h->nr_keys, false);
		if (h->nr_common)
			fputs("\nfor all, before the rules of sections\n", o);
		show_rules(o, p, 0, h->nr_common, false);
	}
	for (uint32_t i = 0; i < h->nr_sections; i++) {
		if (json)
			fputs(i ? ",\n  " : "\n  ", o);
		show_section(o, p, &p->section[i], json);
	}
	if (json)
		fputs("]}\n", o);
}

static int policy_of(const char *given, struct policy **p, struct kx_err *err)
{
	char path[PATH_MAX];
	int r = policy_path(given, path, err);
	return r < 0 ? r : r ? policy_read(path, p, err) : policy_read_builtin(p, err);
}

static int show(const char *given, bool json, struct kx_err *err)
{
	struct policy *p;
	char *text = NULL;
	size_t len;
	if (policy_of(given, &p, err))
		return CLI_FAILED;
	FILE *o = open_memstream(&text, &len);
	if (!o) {
		kx_err_set(err, ENOMEM, "memory: none left on the host (free some)");
		policy_free(p);
		return CLI_FAILED;
	}
	show_all(o, p, json);
	policy_free(p);
	return lib_print_free(o, &text, err);
}

/* ---- test ------------------------------------------------------------------------------------------------------- */

struct test {
	const char *file, *program, *family, *loader;
	bool json, hand;
};

static int test_one(FILE *o, const struct policy *p, const struct test *t, const char *lib, bool first,
		    struct kx_err *err)
{
	static const char *const verdicts[] = { "allow", "warn", "deny" };
	struct policy_subject s = { .program = t->program, .family = t->family ? t->family : "", .uid = geteuid() };
	char why[POLICY_WHY], sig_path[PATH_MAX], *sig = NULL;
	struct kx_err no_sig = { 0 };
	struct policy_image i = { .way = t->hand ? POLICY_WAY_OTHER : POLICY_WAY_LOADER, .loader = t->loader };
	struct stat st;
	void *bytes;
	char *real = realpath(lib, NULL);
	if (!real || stat(real, &st)) {
		kx_err_set(err, errno, "%s: %s (check the path)", lib, strerror(errno));
		free(real);
		return -1;
	}
	int fd = snprintf(sig_path, sizeof sig_path, "%s" SIGN_SUFFIX, real) < PATH_MAX
			 ? open(sig_path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
			 : -1;
	if (fd >= 0) {
		if (!file_read(fd, sig_path, SIGN_MAX, &sig, &i.sig_size, &no_sig))
			i.sig = sig;
		close(fd);
	}
	if (lib_map(real, &bytes, &i.size, err)) {
		free(real);
		free(sig);
		return -1;
	}
	i.bytes = bytes;
	i.path = real;
	i.uid = geteuid() && st.st_uid != geteuid() ? 65534 : st.st_uid; /* as a pVM of this user sees it */
	i.mode = st.st_mode;
	if (!strcmp(real, t->program))
		i.way = POLICY_WAY_PROGRAM;
	enum policy_verdict v = policy_image(p, &s, &i, why);
	if (t->json) {
		fprintf(o, "%s\n  {\"file\": ", first ? "" : ",");
		put_text(o, real);
		fprintf(o, ", \"verdict\": \"%s\", \"reason\": ", verdicts[v]);
		put_text(o, why);
		fputs("}", o);
	} else if (v == POLICY_ALLOW) {
		fputs("allow  ", o);
		put_line(o, real, strlen(real), 4096);
		fputs("\n", o);
	} else {
		fprintf(o, "%-5s  %s\n", verdicts[v], why);
	}
	munmap(bytes, i.size);
	free(real);
	free(sig);
	return v != POLICY_ALLOW;
}

static int test(const struct test *t, int n, char **libs, struct kx_err *err)
{
	struct policy *p;
	char *text = NULL;
	size_t len;
	int bad = 0, r = 0;
	if (policy_of(t->file, &p, err))
		return CLI_FAILED;
	FILE *o = open_memstream(&text, &len);
	if (!o) {
		kx_err_set(err, ENOMEM, "memory: none left on the host (free some)");
		policy_free(p);
		return CLI_FAILED;
	}
	if (t->json)
		fprintf(o, "{\"version\": 1, \"verdicts\": [");
	for (int i = 0; i < n && r >= 0; i++) {
		r = test_one(o, p, t, libs[i], !i, err);
		bad |= r > 0;
	}
	if (t->json)
		fputs("]}\n", o);
	policy_free(p);
	if (r < 0) {
		fclose(o);
		free(text);
		return CLI_FAILED;
	}
	int status = lib_print_free(o, &text, err);
	return status ? status : bad;
}

/* ---- the command ------------------------------------------------------------------------------------------------- */

int lib_policy(int argc, char **argv, struct kx_err *err)
{
	struct test t = { .program = "", .loader = "/lib64/ld-linux-x86-64.so.2" };
	const struct lib_option options[] = { { "--json", NULL, &t.json },
					      { "--program", &t.program, NULL },
					      { "--family", &t.family, NULL },
					      { "--loader", &t.loader, NULL },
					      { "--policy", &t.file, NULL },
					      { "--by-hand", NULL, &t.hand },
					      { 0 } };
	int n = lib_options(argc, argv, options, err);
	if (n < 0)
		return CLI_FAILED;
	const char *what = n ? argv[0] : "";
	bool testing = !strcmp(what, "test");
	if (!testing && (*t.program || t.family || t.hand || t.file))
		kx_err_set(err, EINVAL,
			   "lib policy: --program, --family, --by-hand, --policy: only with test (" LIB_SEE ")");
	else if (testing && n < 2)
		kx_err_set(err, EINVAL, "lib policy test: no file given (" LIB_SEE ")");
	else if (testing && *t.program && *t.program != '/')
		kx_err_set(err, EINVAL, "--program: %.80s: no absolute path (give one)", t.program);
	else if (testing)
		return test(&t, n - 1, argv + 1, err);
	else if (n > 2)
		kx_err_set(err, EINVAL, "lib policy %.64s: too many arguments (" LIB_SEE ")", what);
	else if (!strcmp(what, "check"))
		return check(n > 1 ? argv[1] : NULL, t.json, err);
	else if (!strcmp(what, "show"))
		return show(n > 1 ? argv[1] : NULL, t.json, err);
	else
		kx_err_set(err, EINVAL,
			   n ? "lib policy: %.64s: unknown command (" LIB_SEE ")"
			     : "lib policy: no command given (" LIB_SEE ")%s",
			   what);
	return CLI_FAILED;
}
