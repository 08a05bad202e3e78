/* SPDX-License-Identifier: Apache-2.0 */
/* kylinx lib keygen, sign, trust, revoke: who vouches for libraries. */
#include "../monitor/core/keys.h"
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

#define LIBRARY_MAX (512ull << 20)

/* ---- shared ------------------------------------------------------------------------------------------------------ */

int lib_options(int argc, char **argv, const struct lib_option *options, struct kx_err *err)
{
	const char *command = argv[0];
	bool all = false;
	int n = 0;
	for (int i = 1; i < argc; i++) {
		const struct lib_option *o = options;
		if (all || argv[i][0] != '-' || !argv[i][1]) {
			argv[n++] = argv[i];
			continue;
		}
		if ((all = !strcmp(argv[i], "--")))
			continue;
		size_t len = strcspn(argv[i], "=");
		while (o->name && (strlen(o->name) != len || strncmp(o->name, argv[i], len)))
			o++;
		if (!o->name)
			return kx_err_set(err, EINVAL, "lib %s: %.64s: unknown option (" LIB_SEE ")", command, argv[i]);
		if (!o->value && argv[i][len])
			return kx_err_set(err, EINVAL, "lib %s: %s: takes no value (" LIB_SEE ")", command, o->name);
		if (!o->value)
			*o->set = true;
		else if (argv[i][len])
			*o->value = argv[i] + len + 1;
		else if (i + 1 < argc)
			*o->value = argv[++i];
		else
			return kx_err_set(err, EINVAL, "lib %s: %s: needs a value (" LIB_SEE ")", command, o->name);
	}
	return n;
}

int lib_note(const char *event, const char *object, const char *detail, struct kx_err *err)
{
	struct store s;
	struct kx_err why = { 0 };
	int r = store_open(&s, true, &why);
	if (r == -ENOENT && !why.code)
		return 0; /* no store is used */
	if (!r) {
		r = store_history_add(&s, event, object, detail);
		store_close(&s);
	}
	return r ? kx_err_set(err, -r, "%s %s: done, but not noted in the history: %.200s (mend the store)", event,
			      object, why.code ? why.msg : strerror(-r))
		 : 0;
}

int lib_keyring_path(char out[4096], struct kx_err *err)
{
	if (config_dir(out))
		return kx_err_set(err, ENOENT,
				  "keyring: no place for it (set HOME, or KYLINX_CONFIG to an absolute path)");
	strcat(out, "/keys");
	return 0;
}

int lib_date(const char *option, const char *value, int64_t now, int64_t *out, struct kx_err *err)
{
	if (!value || date_parse(value, now, out))
		return 0;
	return kx_err_set(err, EINVAL, "%s: %.64s: no date (give YYYY-MM-DD, days as 90d, or never)", option, value);
}

int lib_print_free(FILE *o, char **text, struct kx_err *err)
{
	int r = fclose(o) ? kx_err_set(err, ENOMEM, "memory: none left on the host (free some)")
			  : cli_print(*text, err);
	free(*text);
	return r ? CLI_FAILED : 0;
}

int lib_map(const char *path, void **p, size_t *size, struct kx_err *err)
{
	struct stat st;
	bool other = !stat(path, &st) && !S_ISREG(st.st_mode); /* the open of a device would do something */
	int fd = other ? -1 : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0 && !other)
		return kx_err_set(err, errno, "%s: %s (check the path)", path, strerror(errno));
	if (other || fstat(fd, &st) || !S_ISREG(st.st_mode) || !st.st_size || (uint64_t)st.st_size > LIBRARY_MAX) {
		if (fd >= 0)
			close(fd);
		return kx_err_set(err, EINVAL, "%s: no regular file of 1 byte to 512 MiB (give a library)", path);
	}
	/* A copy: what is hashed and what is looked at are the same bytes. */
	*size = (size_t)st.st_size;
	*p = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t have = 0;
	ssize_t n = 1;
	while (*p != MAP_FAILED && have < *size && (n = read(fd, (char *)*p + have, *size - have)) > 0)
		have += (size_t)n;
	int e = errno;
	close(fd);
	if (*p == MAP_FAILED)
		return kx_err_set(err, e, "%s: %s (free some memory)", path, strerror(e));
	if (have == *size)
		return 0;
	munmap(*p, *size);
	return n < 0 ? kx_err_set(err, e, "%s: %s (check the disk)", path, strerror(e))
		     : kx_err_set(err, EAGAIN, "%s: it became shorter while it was read (try again)", path);
}

static int signature_read(const char *path, char **text, size_t *len)
{
	char sig[PATH_MAX];
	struct kx_err err = { 0 };
	if (snprintf(sig, sizeof sig, "%s" SIGN_SUFFIX, path) >= (int)sizeof sig)
		return -ENAMETOOLONG;
	int fd = open(sig, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return -errno;
	int r = file_read(fd, sig, SIGN_MAX, text, len, &err);
	close(fd);
	return r;
}

int lib_signature(const char *path, const struct keyring *k, char line[400], struct sign_manifest *m)
{
	struct image_facts f;
	struct kx_err err = { 0 };
	char why[SIGN_WHY] = "", *text = NULL, until[32];
	size_t len = 0, size;
	void *p;
	int r = signature_read(path, &text, &len);
	if (r == -ENOENT) {
		snprintf(line, 400, "not signed");
		return 0;
	}
	if (r) {
		snprintf(line, 400, "its signature can't be read: %s", strerror(-r));
		return -1;
	}
	r = sign_parse(text, len, m, why);
	const struct sign_key *key = r ? NULL : keyring_by_id(k, m->key);
	if (!r && !key) {
		r = -ENOKEY;
		strcpy(why, "its signature is by a key that is not in the keyring");
	}
	if (!r && (r = lib_map(path, &p, &size, &err)))
		snprintf(why, sizeof why, "%.120s", err.msg);
	else if (!r) {
		image_facts(p, size, &f);
		munmap(p, size);
		r = sign_check(m, text, key, &f, time(NULL), why);
		if (!r && keyring_file_revoked(k, f.sha256)) {
			r = -EKEYREVOKED;
			strcpy(why, "this file is revoked");
		}
	}
	free(text);
	if (r) {
		snprintf(line, 400, "%s", why);
		return -1;
	}
	date_show(m->expires, until);
	snprintf(line, 400, "signed by %s, version %s, %s%s", key->name, m->version[0] ? m->version : "-",
		 m->expires ? "until " : "for ever", m->expires ? until : "");
	return 1;
}

/* ---- keygen ------------------------------------------------------------------------------------------------------ */

int lib_keygen(int argc, char **argv, struct kx_err *err)
{
	static const struct lib_option none[] = { { 0 } };
	char id[2 * SIGN_ID + 1], line[2 * PATH_MAX + 100];
	struct sign_key k;
	int n = lib_options(argc, argv, none, err);
	if (n < 0)
		return CLI_FAILED;
	if (n != 1) {
		kx_err_set(err, EINVAL, "lib keygen: one file is needed, for the secret key (" LIB_SEE ")");
		return CLI_FAILED;
	}
	if (key_make(argv[0], &k, err))
		return CLI_FAILED;
	hex_put(k.id, sizeof k.id, id);
	snprintf(line, sizeof line, "secret key  %s\npublic key  %s.pub\nid          %s\n", argv[0], argv[0], id);
	return cli_print(line, err) ? CLI_FAILED : 0;
}

/* ---- sign -------------------------------------------------------------------------------------------------------- */

static int sign_one(const char *file, const uint8_t seed[SIGN_SEED], const char *version, int64_t expires,
		    struct kx_err *err)
{
	char out[SIGN_MAX], path[PATH_MAX + 16], id[2 * SIGN_ID + 1], line[PATH_MAX + 600];
	struct sign_manifest m = { .time = (int64_t)time(NULL), .expires = expires };
	struct image_facts f;
	size_t size;
	void *p;
	char *real = realpath(file, NULL);
	if (!real)
		return kx_err_set(err, errno, "%s: %s (check the path)", file, strerror(errno));
	snprintf(path, sizeof path, "%s" SIGN_SUFFIX, real);
	int r = lib_map(real, &p, &size, err);
	if (!r) {
		image_facts(p, size, &f);
		munmap(p, size);
	}
	if (!r && f.wrong[0])
		r = kx_err_set(err, EINVAL, "%s: %s (it would never be mapped: build it again)", file, f.wrong);
	if (!r) {
		snprintf(m.soname, sizeof m.soname, "%s", f.soname);
		if (version)
			snprintf(m.version, sizeof m.version, "%s", version);
		else
			version_of_names(f.soname, real, m.version);
		m.build_id_len = f.build_id_len;
		memcpy(m.build_id, f.build_id, f.build_id_len);
		memcpy(m.sha256, f.sha256, sizeof m.sha256);
		m.size = f.size;
		int n = sign_write(&m, seed, out);
		r = n < 0 ? kx_err_set(err, -n, "%s: its SONAME can't be signed (build it with a plain one)", file)
			  : file_replace(path, out, (size_t)n, 0644, false, err);
	}
	hex_put(m.key, sizeof m.key, id);
	if (!r)
		r = lib_note("sign", real, id, err);
	free(real);
	if (r)
		return r;
	snprintf(line, sizeof line, "%s: %s, version %s\n", path, m.soname[0] ? m.soname : "no SONAME",
		 m.version[0] ? m.version : "-");
	return cli_print(line, err);
}

int lib_sign(int argc, char **argv, struct kx_err *err)
{
	const char *secret = NULL, *version = NULL, *expires = NULL;
	const struct lib_option options[] = {
		{ "--key", &secret, NULL }, { "--version", &version, NULL }, { "--expires", &expires, NULL }, { 0 }
	};
	uint8_t seed[SIGN_SEED];
	int64_t until = 0;
	int n = lib_options(argc, argv, options, err), r = 0;
	if (n < 0 || lib_date("--expires", expires, time(NULL), &until, err))
		return CLI_FAILED;
	if (!n || !secret)
		kx_err_set(err, EINVAL, "lib sign: %s (" LIB_SEE ")", n ? "--key is needed" : "no file given");
	else if (version && !version_valid(version))
		kx_err_set(err, EINVAL, "--version: %.64s: no version (digits, letters and . _ + -, a digit first)",
			   version);
	else if (until && until <= time(NULL))
		kx_err_set(err, EINVAL, "--expires: %.64s: is over (give a later date)", expires);
	else
		r = key_secret_read(secret, seed, err);
	for (int i = 0; i < n && !err->code && !r; i++)
		r = sign_one(argv[i], seed, version, until, err);
	explicit_bzero(seed, sizeof seed);
	return err->code ? CLI_FAILED : 0;
}

/* ---- trust ------------------------------------------------------------------------------------------------------- */

static const char *key_state(const struct sign_key *k, int64_t now)
{
	return k->revoked                        ? "revoked"
	       : k->expires && now >= k->expires ? "expired"
	       : k->from && now < k->from        ? "not yet valid"
						 : "valid";
}

static void show_key(FILE *o, const struct sign_key *k, bool json)
{
	char id[2 * SIGN_ID + 1], pub[2 * SIGN_PUBLIC + 1], from[32], to[32];
	const char *state = key_state(k, time(NULL));
	hex_put(k->id, sizeof k->id, id);
	hex_put(k->pub, sizeof k->pub, pub);
	date_show(k->from, from);
	date_show(k->expires, to);
	if (json)
		fprintf(o,
			"{\"name\": \"%s\", \"id\": \"%s\", \"key\": \"%s\", \"from\": %lld, \"expires\": %lld, "
			"\"revoked\": %lld, \"state\": \"%s\"}",
			k->name, id, pub, (long long)k->from, (long long)k->expires, (long long)k->revoked, state);
	else
		fprintf(o, "%-20s %s  %-13s %s to %s\n", k->name, id, state, k->from ? from : "always", to);
}

void lib_show_keys(FILE *o, const struct sign_key *key, unsigned nr, bool json)
{
	for (unsigned i = 0; i < nr; i++) {
		if (json)
			fputs(i ? ",\n  " : "\n  ", o);
		show_key(o, &key[i], json);
	}
}

static int trust_list(const char *path, bool json, struct kx_err *err)
{
	struct keyring k;
	char *text = NULL, hex[2 * SIGN_HASH + 1];
	size_t len;
	int r = keyring_read(path, &k, err);
	if (r == -ENOENT) { /* nobody is trusted yet */
		*err = (struct kx_err){ 0 };
		r = 0;
	}
	FILE *o = r ? NULL : open_memstream(&text, &len);
	if (!o)
		return CLI_FAILED;
	if (json)
		fputs("{\"version\": 1, \"keys\": [", o);
	lib_show_keys(o, k.key, k.nr, json);
	if (json)
		fputs("], \"revoked_files\": [", o);
	for (unsigned i = 0; i < k.nr_revoked_files; i++) {
		hex_put(k.revoked_file[i].sha256, SIGN_HASH, hex);
		fprintf(o, json ? "%s\"%s\"" : "%srevoked file %s\n", json && i ? ", " : "", hex);
	}
	if (json)
		fputs("]}\n", o);
	keyring_free(&k);
	return lib_print_free(o, &text, err);
}

/* A file, or a key that is trusted already and whose dates change. */
static int trust_key(const char *what, const char *name, const struct keyring *k, struct sign_key *key,
		     struct kx_err *err)
{
	const struct sign_key *have = strchr(what, '/') || !access(what, F_OK) ? NULL : keyring_by_name(k, what);
	if (have) {
		*key = *have;
	} else {
		int r = key_public_read(what, key, err);
		if (r)
			return r;
		const struct sign_key *same = keyring_by_id(k, key->id);
		const char *base = strrchr(what, '/') ? strrchr(what, '/') + 1 : what;
		size_t n = strlen(base);
		if (n > 4 && !strcmp(base + n - 4, ".pub"))
			n -= 4;
		if (same && !name)
			*key = *same;
		else if (n < sizeof key->name)
			memcpy(key->name, base, n); /* the rest is zeros */
	}
	if (name)
		snprintf(key->name, sizeof key->name, "%s", name);
	if ((name && strlen(name) >= sizeof key->name) || !key_name_valid(key->name))
		return kx_err_set(err, EINVAL,
				  "%.80s: no name for a key (give --name: at most 60 letters, digits, . _ -)",
				  name ? name : what);
	return 0;
}

int lib_trust(int argc, char **argv, struct kx_err *err)
{
	const char *name = NULL, *expires = NULL, *from = NULL;
	bool json = false;
	const struct lib_option options[] = { { "--name", &name, NULL },
					      { "--expires", &expires, NULL },
					      { "--from", &from, NULL },
					      { "--json", NULL, &json },
					      { 0 } };
	char path[4096], detail[200], id[2 * SIGN_ID + 1], since[32], until[32], line[400];
	struct sign_key key;
	struct keyring k;
	int64_t now = time(NULL);
	int n = lib_options(argc, argv, options, err);
	if (n < 0 || lib_keyring_path(path, err))
		return CLI_FAILED;
	if (!n && !name && !expires && !from)
		return trust_list(path, json, err);
	if (n != 1 || json) {
		kx_err_set(err, EINVAL,
			   json ? "--json: only to list (" LIB_SEE ")"
				: "lib trust: one public key is needed (" LIB_SEE ")");
		return CLI_FAILED;
	}
	if (keyring_edit(path, &k, err))
		return CLI_FAILED;
	int r = trust_key(argv[0], name, &k, &key, err);
	if (!r)
		r = lib_date("--from", from, now, &key.from, err);
	if (!r)
		r = lib_date("--expires", expires, now, &key.expires, err);
	if (!r)
		r = keyring_trust(&k, &key, err);
	keyring_free(&k);
	if (r)
		return CLI_FAILED;
	hex_put(key.id, sizeof key.id, id);
	date_show(key.from, since);
	date_show(key.expires, until);
	snprintf(detail, sizeof detail, "%s from %s, expires %s", id, key.from ? since : "always", until);
	snprintf(line, sizeof line, "%s: %s\n", key.name, detail);
	return lib_note("trust", key.name, detail, err) || cli_print(line, err) ? CLI_FAILED : 0;
}

/* ---- revoke ------------------------------------------------------------------------------------------------------ */

/* What is meant: a key by name, id or file; a file by hash or path. 1: *hash is a key's id, 0: a file's hash. */
static int revoke_what(const char *what, const struct keyring *k, uint8_t hash[SIGN_HASH], struct kx_err *err)
{
	const struct sign_key *named = keyring_by_name(k, what);
	struct sign_key key;
	struct image_facts f;
	struct kx_err no_key = { 0 };
	size_t n = strlen(what), size;
	void *p;
	if (named) {
		memcpy(hash, named->id, SIGN_ID);
		return 1;
	}
	if (hex_get(what, n, hash, SIGN_ID))
		return 1;
	if (hex_get(what, n, hash, SIGN_HASH))
		return 0;
	if (!strchr(what, '/'))
		return kx_err_set(
			err, ENOENT,
			"%.80s: no key in the keyring, no key's id of 32 and no SHA-256 of 64 lower-case digits, "
			"nor a path (see `kylinx lib trust`; a file is given with a slash in its path)",
			what);
	if (!key_public_read(what, &key, &no_key)) {
		memcpy(hash, key.id, SIGN_ID);
		return 1;
	}
	int r = lib_map(what, &p, &size, err);
	if (r)
		return r;
	image_facts(p, size, &f);
	munmap(p, size);
	memcpy(hash, f.sha256, SIGN_HASH);
	return 0;
}

int lib_revoke(int argc, char **argv, struct kx_err *err)
{
	static const struct lib_option none[] = { { 0 } };
	char path[4096], hex[2 * SIGN_HASH + 1], line[200];
	uint8_t hash[SIGN_HASH];
	struct keyring k;
	int n = lib_options(argc, argv, none, err);
	if (n < 0 || lib_keyring_path(path, err))
		return CLI_FAILED;
	if (n != 1) {
		kx_err_set(err, EINVAL, "lib revoke: one key or file is needed (" LIB_SEE ")");
		return CLI_FAILED;
	}
	if (keyring_edit(path, &k, err))
		return CLI_FAILED;
	int is_key = revoke_what(argv[0], &k, hash, err);
	int r = is_key < 0 ? is_key : keyring_revoke(&k, is_key ? hash : NULL, is_key ? NULL : hash, time(NULL), err);
	keyring_free(&k);
	if (r < 0)
		return CLI_FAILED;
	hex_put(hash, is_key ? SIGN_ID : SIGN_HASH, hex);
	snprintf(line, sizeof line, "%s %s: revoked%s\n", is_key ? "key" : "file", hex, r ? "" : " already");
	if (r && lib_note("revoke", hex, is_key ? "key" : "file", err))
		return CLI_FAILED;
	return cli_print(line, err) ? CLI_FAILED : 0;
}
