/* SPDX-License-Identifier: Apache-2.0 */
/* kylinx lib: look at the store of prepared texts, and keep it in order. */
#include "../monitor/core/store.h"
#include "../util/grow.h"
#include "cli.h"
#include "lib.h"
#include "ps.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SEE LIB_SEE

const char cmd_lib_help[] =
	"Usage: kylinx lib list [--json]\n"
	"       kylinx lib show NAME [--json]\n"
	"       kylinx lib verify [FILE...] [--json]\n"
	"       kylinx lib add FILE...\n"
	"       kylinx lib gc\n"
	"       kylinx lib history\n"
	"       kylinx lib keygen FILE\n"
	"       kylinx lib sign FILE... --key FILE [--version VERSION] [--expires DATE]\n"
	"       kylinx lib trust [FILE|NAME [--name NAME] [--from DATE] [--expires DATE]] [--json]\n"
	"       kylinx lib revoke NAME|ID|SHA256|PATH\n"
	"       kylinx lib policy check|show [FILE] [--json]\n"
	"       kylinx lib policy test FILE... [--program PATH] [--family NAME] [--loader PATH|--by-hand]\n"
	"                              [--policy FILE] [--json]\n"
	"\n"
	"The store keeps the executable parts of programs and libraries ready to be mapped by all pVMs. A start adds\n"
	"what the start before has found missing; nothing else has to be done.\n"
	"\n"
	"  list       what is stored: image, size, file\n"
	"  show       all that is known of the files whose path ends in NAME, or of the image that starts with NAME\n"
	"  verify     compare each image with its name, and each file with its signature, or these files alone;\n"
	"             status 1 if one is damaged, or a signature is bad\n"
	"  add        store the executable parts of FILE now\n"
	"  gc         remove what belongs to files that are gone or changed, what is damaged, and other versions' "
	"images\n"
	"  history    what was done to the store, and which keys and files were trusted, signed and revoked, and what\n"
	"             was updated, one JSON object a line\n"
	"  keygen     make a key to sign with: FILE, which is secret, and FILE.pub\n"
	"  sign       write what FILE is, signed, into FILE.kxsig\n"
	"  trust      take a public key into the keyring, or change how long it is valid; alone: list the keyring\n"
	"  revoke     never again accept a key, or a file\n"
	"  policy     check: is the policy file right; show: what it says, with keys; test: what it would decide of\n"
	"             FILE. See kylinx-policy(5)\n"
	"\n"
	"A DATE is YYYY-MM-DD, or days from now as 90d, or never.\n"
	"\n"
	"The store is $KYLINX_STORE (empty: none is used), else /var/lib/kylinx/store for root, and\n"
	"$XDG_CACHE_HOME/kylinx/store or ~/.cache/kylinx/store for others. Policy and keyring are `policy` and `keys`\n"
	"in $KYLINX_CONFIG, else /etc/kylinx for root, $XDG_CONFIG_HOME/kylinx or ~/.config/kylinx for others.\n";

struct lib {
	struct store *s;
	const char *want;
	bool json, all;
	unsigned n, bad;
	struct keyring keys;
	char **seen; /* files whose signature was looked at */
	unsigned nr_seen, nr_signed, nr_bad;
	FILE *o; /* of verify */
	char *text;
	bool shown; /* something is in the list already */
	struct kx_err *err;
};

/* A line of verify, or an object of its list in JSON. */
static void say(struct lib *l, const char *path, const char *key, const char *value, const char *text)
{
	if (l->json) {
		fprintf(l->o, "%s\n  {\"file\": ", l->shown ? "," : "");
		put_json(l->o, path, strlen(path));
		fprintf(l->o, ", \"%s\": \"%s\", \"text\": ", key, value);
		put_json(l->o, text, strlen(text));
		fputs("}", l->o);
	} else {
		put_line(l->o, path, strlen(path), 4096);
		fprintf(l->o, ": %s\n", text);
	}
	l->shown = true;
}

static int lib_verify(const struct store_entry *e, bool sound, void *arg)
{
	struct lib *l = arg;
	l->n++;
	int r = !sound ? -EBADMSG : e->has_image ? store_verify_image(l->s, e->image) : 0;
	if (r != -ENOENT && r != -EBADMSG)
		return r;
	l->bad++;
	say(l, e->path, "image", r == -ENOENT ? "missing" : "damaged", r == -ENOENT ? "no image" : "damaged");
	return 0;
}

static bool wanted(const struct lib *l, const struct store_entry *e, const char *hex)
{
	size_t n = l->want ? strlen(l->want) : 0, p = strlen(e->path);
	return !n || (n <= p && !strcmp(e->path + p - n, l->want)) ||
	       (n >= 4 && e->has_image && !strncmp(hex, l->want, n));
}

static void print_json(FILE *o, const struct store_entry *e, const char *hex)
{
	fputs("{\"path\":", o);
	put_json(o, e->path, strlen(e->path));
	fprintf(o,
		",\"image\":%s%s%s,\"size\":%llu,\"offset\":%llu,\"length\":%llu,\"device\":%llu,\"inode\":%llu,"
		"\"syscalls\":%u,\"cpuids\":%u}",
		e->has_image ? "\"" : "", e->has_image ? hex : "null", e->has_image ? "\"" : "",
		(unsigned long long)e->size, (unsigned long long)e->key.off, (unsigned long long)e->key.len,
		(unsigned long long)e->key.dev, (unsigned long long)e->key.ino, e->nr_found, e->nr_cpuid);
}

static int lib_print(const struct store_entry *e, bool sound, void *arg)
{
	struct lib *l = arg;
	char hex[2 * STORE_HASH + 1] = "-", *text = NULL;
	size_t len;
	if (sound && e->has_image)
		store_hex(e->image, hex);
	if (!sound || !wanted(l, e, hex))
		return 0;
	FILE *o = open_memstream(&text, &len);
	if (!o)
		return kx_err_set(l->err, ENOMEM, "memory: none left on the host (free some)");
	if (l->json) {
		fputs(l->n ? ",\n" : "", o);
		print_json(o, e, hex);
	} else if (l->all) {
		fputs("path      ", o);
		put_line(o, e->path, strlen(e->path), STORE_PATH);
		fprintf(o,
			"\nimage     %s\nsize      %llu\ntext      %llu bytes at %llu\nfile      device %llu, inode "
			"%llu, "
			"%llu bytes\nsyscalls  %u\ncpuids    %u\n\n",
			hex, (unsigned long long)e->size, (unsigned long long)e->key.len,
			(unsigned long long)e->key.off, (unsigned long long)e->key.dev, (unsigned long long)e->key.ino,
			(unsigned long long)e->key.size, e->nr_found, e->nr_cpuid);
	} else {
		fprintf(o, "%-16.16s %9llu  ", hex, (unsigned long long)e->size);
		put_line(o, e->path, strlen(e->path), STORE_PATH);
		fputc('\n', o);
	}
	l->n++;
	return lib_print_free(o, &text, l->err) ? -1 : 0;
}

/* What store_each() returned, told if fn hasn't. */
static int store_failed(struct lib *l, int r)
{
	return r < 0 ? kx_err_set(l->err, -r, "%s: %s (%s)", l->s->path, strerror(-r), store_remedy(-r)) : r;
}

static int list(struct lib *l)
{
	if (l->json && cli_print("[", l->err))
		return CLI_FAILED;
	if (l->s->dir >= 0 && store_failed(l, store_each(l->s, lib_print, l)))
		return CLI_FAILED;
	if (l->json && cli_print("]\n", l->err))
		return CLI_FAILED;
	if (!l->want || l->n)
		return 0;
	kx_err_set(l->err, ENOENT, "lib show: %s: not stored (see `kylinx lib list`)", l->want);
	return CLI_FAILED;
}

static int history(struct lib *l)
{
	char buf[4096];
	ssize_t n = 0;
	int fd = l->s->root < 0 ? -1 : openat(l->s->root, "history", O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0 && l->s->root >= 0 && errno != ENOENT)
		return store_failed(l, -errno) ? CLI_FAILED : 0;
	while (fd >= 0 && (n = read(fd, buf, sizeof buf - 1)) > 0) {
		size_t len = 0;
		for (ssize_t i = 0; i < n; i++) /* a crash can leave zeros where bytes were to be */
			if (buf[i])
				buf[len++] = buf[i];
		buf[len] = 0;
		if (cli_print(buf, l->err))
			break;
	}
	if (n < 0)
		store_failed(l, -errno);
	if (fd >= 0)
		close(fd);
	return n ? CLI_FAILED : 0;
}

static int add(struct lib *l, int argc, char **argv)
{
	char real[4096], line[64];
	int sum = 0;
	for (int i = 0; i < argc; i++) {
		char *p = realpath(argv[i], NULL);
		snprintf(real, sizeof real, "%s", p ? p : argv[i]);
		free(p);
		int n = store_add_file(l->s, real, l->err);
		if (n < 0)
			return CLI_FAILED;
		if (n)
			store_history_add(l->s, "add", real, NULL);
		sum += n;
	}
	snprintf(line, sizeof line, "%d stored\n", sum);
	return cli_print(line, l->err) ? CLI_FAILED : 0;
}

static int gc(struct lib *l)
{
	char line[64];
	int n = store_gc(l->s, l->err);
	if (n < 0)
		return CLI_FAILED;
	snprintf(line, sizeof line, "%d removed\n", n);
	if (n)
		store_history_add(l->s, "gc", NULL, line);
	return cli_print(line, l->err) ? CLI_FAILED : 0;
}

/* About the signature of a file, each file once. unsigned_too: also when there is none. */
static int verify_signature(struct lib *l, const char *path, bool unsigned_too)
{
	char found[400];
	struct sign_manifest m;
	for (unsigned i = 0; i < l->nr_seen; i++)
		if (!strcmp(l->seen[i], path))
			return 0;
	void *seen = kx_one_more(l->seen, l->nr_seen, sizeof *l->seen);
	l->seen = seen ? seen : l->seen;
	if (!seen || !(l->seen[l->nr_seen] = strdup(path)))
		return kx_err_set(l->err, ENOMEM, "memory: none left on the host (free some)");
	l->nr_seen++;
	int r = lib_signature(path, &l->keys, found, &m);
	l->nr_signed += r > 0;
	l->nr_bad += r < 0;
	if (r || unsigned_too)
		say(l, path, "signature", r > 0 ? "good" : r ? "bad" : "none", found);
	return 0;
}

static int lib_signed(const struct store_entry *e, bool sound, void *arg)
{
	struct lib *l = arg;
	size_t n = strlen(l->s->path);
	bool own = !strncmp(e->path, l->s->path, n) && e->path[n] == '/'; /* a copy, which has no signature beside it */
	return sound && !own && *e->path == '/' ? verify_signature(arg, e->path, false) : 0;
}

static int verify_begin(struct lib *l)
{
	static size_t len;
	char path[4096];
	l->keys = (struct keyring){ .dir = -1, .lock = -1 };
	int r = config_dir(path);
	if (r == -EINVAL)
		return lib_keyring_path(path, l->err);
	if (!r) {
		strcat(path, "/keys");
		r = keyring_read(path, &l->keys, l->err);
		if (r && r != -ENOENT)
			return r;
		*l->err = (struct kx_err){ 0 }; /* nobody is trusted: every signature is a stranger's */
	}
	if (!(l->o = open_memstream(&l->text, &len)))
		return kx_err_set(l->err, ENOMEM, "memory: none left on the host (free some)");
	if (l->json)
		fputs("{\"version\": 1, \"found\": [", l->o);
	return 0;
}

static int verify_end(struct lib *l, int status)
{
	for (unsigned i = 0; i < l->nr_seen; i++)
		free(l->seen[i]);
	free(l->seen);
	keyring_free(&l->keys);
	if (!l->o)
		return CLI_FAILED;
	if (l->err->code) {
		fclose(l->o);
		free(l->text);
		return CLI_FAILED;
	}
	return lib_print_free(l->o, &l->text, l->err) ? CLI_FAILED : status;
}

static int verify(struct lib *l)
{
	int r = verify_begin(l);
	if (!r && l->s->dir >= 0 && (r = store_each(l->s, lib_verify, l)) >= 0)
		r = store_each(l->s, lib_signed, l);
	if (store_failed(l, r) >= 0)
		fprintf(l->o,
			l->json ? "], \"images\": %u, \"damaged\": %u, \"files\": %u, \"signed\": %u, "
				  "\"bad_signatures\": %u}\n"
				: "%u images, %u damaged; of %u files %u signed, %u with a bad signature\n",
			l->n, l->bad, l->nr_seen, l->nr_signed, l->nr_bad);
	return verify_end(l, l->bad || l->nr_bad ? 1 : 0);
}

/* These files, in the store or not. Unsigned is bad here. */
static int verify_files(struct lib *l, int argc, char **argv)
{
	int r = verify_begin(l);
	for (int i = 0; i < argc && !r; i++) {
		char *real = realpath(argv[i], NULL);
		r = real ? verify_signature(l, real, true)
			 : kx_err_set(l->err, errno, "%s: %s (check the path)", argv[i], strerror(errno));
		free(real);
	}
	if (!r && l->json)
		fputs("]}\n", l->o);
	return verify_end(l, l->nr_signed < l->nr_seen ? 1 : 0);
}

static bool wants_help(int argc, char **argv)
{
	for (int i = 1; i < argc && strcmp(argv[i], "--"); i++)
		if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
			return true;
	return false;
}

int cmd_lib(int argc, char **argv, struct kx_err *err)
{
	static const char *const verbs[] = { "list", "show", "verify", "add", "gc", "history" };
	static const struct {
		const char *name;
		int (*run)(int argc, char **argv, struct kx_err *err);
	} others[] = { { "keygen", lib_keygen },
		       { "sign", lib_sign },
		       { "trust", lib_trust },
		       { "revoke", lib_revoke },
		       { "policy", lib_policy } };
	static struct store s;
	struct lib l = { .s = &s, .err = err };
	int v = 0, n = 0;
	for (unsigned k = 0; k < sizeof others / sizeof *others && argc > 1 && !wants_help(argc, argv); k++)
		if (!strcmp(argv[1], others[k].name))
			return others[k].run(argc - 1, argv + 1, err);
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
			return cli_print(cmd_lib_help, err) ? CLI_FAILED : 0;
		if (argv[i][0] != '-') {
			argv[n++] = argv[i];
		} else if (!strcmp(argv[i], "--json")) {
			l.json = true;
		} else {
			kx_err_set(err, EINVAL, "%.64s: unknown option (" SEE ")", argv[i]);
			return CLI_FAILED;
		}
	}
	while (n && v < 6 && strcmp(argv[0], verbs[v]))
		v++;
	if (!n || v == 6) {
		kx_err_set(err, EINVAL, n ? "lib: %.64s: unknown command (" SEE ")" : "lib: no command given (" SEE ")",
			   n ? argv[0] : "");
		return CLI_FAILED;
	}
	if (v == 1 ? n != 2 : v == 3 ? n < 2 : v != 2 && n != 1) {
		kx_err_set(err, EINVAL, "lib %s: %s (" SEE ")", verbs[v],
			   v == 1   ? "one name is needed"
			   : v == 3 ? "no file given"
				    : "too many arguments");
		return CLI_FAILED;
	}
	if (l.json && v > 2) {
		kx_err_set(err, EINVAL, "--json: not with lib %s (" SEE ")", verbs[v]);
		return CLI_FAILED;
	}
	if (v == 2 && n > 1)
		return verify_files(&l, n - 1, argv + 1);
	int r = store_open(&s, v == 3, err);
	if (err->code)
		return CLI_FAILED;
	if (r && v >= 3 && v <= 4) {
		kx_err_set(err, ENOENT, "lib %s: there is no store (run a program, or set KYLINX_STORE)", verbs[v]);
		return CLI_FAILED;
	}
	l.all = v == 1;
	l.want = v == 1 ? argv[1] : NULL;
	r = v <= 1 ? list(&l) : v == 2 ? verify(&l) : v == 3 ? add(&l, n - 1, argv + 1) : v == 4 ? gc(&l) : history(&l);
	store_close(&s);
	return r;
}
