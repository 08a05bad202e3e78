/* SPDX-License-Identifier: Apache-2.0 */
#include "keys.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sodium/crypto_sign_ed25519.h>
#include <sodium/utils.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "../../util/dirs.h"
#include "../../util/grow.h"
#include "policy_priv.h"

#define KEY_FILE_MAX 1024
#define REVOKED_MAX (8u << 20)
#define LINKS_MAX 40 /* as the kernel's */
#define REPLACE_TRIES 100
#define LOCK_TRIES 1000 /* 10 s */
#define LOCK_LOOK_NS 10000000
#define NO_MEMORY "memory: none left on the host (free some)"

/* ---- files ------------------------------------------------------------------------------------------------------ */

int config_dir(char out[4096])
{
	const char *s = getenv("KYLINX_CONFIG"), *home = getenv("HOME"), *config = getenv("XDG_CONFIG_HOME");
	int n;
	if (s)
		n = *s == '/' ? snprintf(out, 4000, "%s", s) : *s ? 4000 : 0;
	else if (geteuid() == 0)
		n = snprintf(out, 4000, "/etc/kylinx");
	else if (config && *config == '/')
		n = snprintf(out, 4000, "%s/kylinx", config);
	else
		n = home && *home == '/' ? snprintf(out, 4000, "%s/.config/kylinx", home) : 0;
	return n >= 4000 ? -EINVAL : n > 0 ? 0 : -ENOENT;
}

static int owner_check(const char *path, const struct stat *st, struct kx_err *err)
{
	if (st->st_uid && st->st_uid != geteuid())
		return kx_err_set(err, EPERM, "%s: it is user %u's (chown it to yourself or root)", path, st->st_uid);
	/* In a directory like /tmp others can't touch what isn't theirs. */
	if (st->st_mode & 022 && !(S_ISDIR(st->st_mode) && st->st_mode & S_ISVTX))
		return kx_err_set(err, EPERM, "%s: others can write it (chmod go-w)", path);
	return 0;
}

/* The next component of *rest goes behind real. False: it gets too long. */
static bool step(char **rest, char real[PATH_MAX])
{
	char *at = *rest + strspn(*rest, "/");
	size_t len = strcspn(at, "/"), n = strlen(real);
	*rest = at + len;
	if (!len || (len == 1 && *at == '.'))
		return true;
	if (len == 2 && !memcmp(at, "..", 2)) {
		char *slash = strrchr(real, '/');
		if (slash)
			*slash = 0;
		return true;
	}
	if (n + len + 2 > PATH_MAX)
		return false;
	snprintf(real + n, PATH_MAX - n, "/%.*s", (int)len, at);
	return true;
}

/* What link, the end of real, leads to goes before what is left of the path. 0 or -errno. */
static int follow(char real[PATH_MAX], char path[2 * PATH_MAX], char **rest)
{
	char link[PATH_MAX], left[PATH_MAX];
	ssize_t n = readlink(real, link, sizeof link - 1);
	if (n < 0)
		return -errno;
	link[n] = 0;
	if (n + strlen(*rest) >= PATH_MAX)
		return -ENAMETOOLONG;
	strcpy(left, *rest);
	sprintf(path, "%s%s", link, left);
	*rest = path;
	if (*link == '/')
		*real = 0;
	else
		*strrchr(real, '/') = 0;
	return 0;
}

/*
 * As realpath(3), but nobody else may have a say in where it leads: neither by a directory on the way, nor by a link. The
 * file itself is checked by who opens it.
 */
static int trusted_path(const char *path, char real[PATH_MAX], struct kx_err *err)
{
	char text[2 * PATH_MAX] = "", *rest = text;
	struct stat st;
	int r = 0, links = 0;
	if (*path != '/' && !getcwd(text, PATH_MAX))
		return kx_err_set(err, errno, "%s: %s (check the path)", path, strerror(errno));
	if (!*path || strlen(text) + strlen(path) + 2 > PATH_MAX)
		return kx_err_set(err, *path ? ENAMETOOLONG : ENOENT, "%s: %s (check the path)", path,
				  strerror(*path ? ENAMETOOLONG : ENOENT));
	sprintf(text + strlen(text), "/%s", path);
	*real = 0;
	for (;;) {
		if (lstat(*real ? real : "/", &st))
			r = -errno;
		else if (S_ISLNK(st.st_mode) && st.st_uid && st.st_uid != geteuid())
			return kx_err_set(err, EPERM, "%s: it is user %u's link (chown -h it to yourself or root)",
					  real, st.st_uid);
		else if (S_ISLNK(st.st_mode))
			r = ++links > LINKS_MAX ? -ELOOP : follow(real, text, &rest);
		else if (S_ISDIR(st.st_mode) && owner_check(*real ? real : "/", &st, err))
			return -err->code;
		else if (!S_ISDIR(st.st_mode) && *rest)
			r = -ENOTDIR;
		else if (!*rest)
			break;
		if (!r && !S_ISLNK(st.st_mode) && !step(&rest, real))
			r = -ENAMETOOLONG;
		if (r)
			return kx_err_set(err, -r, "%s: %s (check the path)", path, strerror(-r));
	}
	if (!*real)
		strcpy(real, "/");
	return 0;
}

int trusted_open(const char *path, bool directory, struct kx_err *err)
{
	char real[PATH_MAX];
	struct stat st;
	int r = trusted_path(path, real, err);
	/* Before the open, which has side effects on devices. */
	if (!r && !directory && !stat(real, &st) && !S_ISREG(st.st_mode))
		r = kx_err_set(err, EINVAL, "%s: no regular file (check the path)", path);
	int fd = r ? r : open(real, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | (directory ? O_DIRECTORY : 0));
	if (!r && fd < 0)
		r = kx_err_set(err, errno, "%s: %s (check owner and mode)", path, strerror(errno));
	/* A directory must not be a shared one itself. */
	if (!r && !fstat(fd, &st) && !(r = owner_check(real, &st, err)) && directory && st.st_mode & 022)
		r = kx_err_set(err, EPERM, "%s: others can write it (chmod go-w)", real);
	if (r && fd >= 0)
		close(fd);
	return r ? r : fd;
}

int file_read(int fd, const char *shown, size_t max, char **out, size_t *len, struct kx_err *err)
{
	size_t have = 0, size = max + 1;
	ssize_t n = 1;
	struct stat st;
	*out = NULL;
	if (!fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_size >= 0 && (size_t)st.st_size < max)
		size = (size_t)st.st_size + 1;
	char *buf = malloc(size + 1);
	if (!buf)
		return kx_err_set(err, ENOMEM, NO_MEMORY);
	while (have < size && (n = read(fd, buf + have, size - have)) != 0) {
		if (n < 0 && errno != EINTR)
			break;
		have += n > 0 ? (size_t)n : 0;
	}
	int r = n < 0 ? kx_err_set(err, errno, "%s: %s (check it)", shown, strerror(errno)) : 0;
	if (!r && have == size)
		r = kx_err_set(err, EFBIG, "%s: more than %zu bytes, or it is being written (check it)", shown,
			       size - 1);
	if (r) {
		free(buf);
		return r;
	}
	buf[have] = 0;
	*out = buf;
	*len = have;
	return 0;
}

static int write_all(int fd, const uint8_t *p, size_t len)
{
	while (len) {
		ssize_t n = write(fd, p, len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -1;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

static int dir_sync(const char *path)
{
	char dir[PATH_MAX];
	snprintf(dir, sizeof dir, "%s", path);
	char *slash = strrchr(dir, '/');
	if (slash)
		slash[slash == dir] = 0;
	int fd = open(slash ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = fd < 0 || fsync(fd);
	if (fd >= 0)
		close(fd);
	return r ? -1 : 0;
}

/*
 * A file that has no name until all of it is there: who is killed leaves nothing. Where a file system has none such it has
 * a name of its own from the beginning.
 */
struct draft {
	int fd;
	char name[PATH_MAX]; /* empty: none */
};

static bool draft_open(struct draft *d, const char *path)
{
	snprintf(d->name, sizeof d->name, "%s", path);
	char *slash = strrchr(d->name, '/');
	if (slash)
		slash[slash == d->name] = 0;
	d->fd = open(slash ? d->name : ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
	d->name[0] = 0;
	if (d->fd >= 0 && access("/proc/self/fd", X_OK)) { /* it could be given no name */
		close(d->fd);
		d->fd = -1;
		errno = EOPNOTSUPP;
	}
	if (d->fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT))
		return d->fd >= 0;
	snprintf(d->name, sizeof d->name, "%s.XXXXXX", path);
	d->fd = mkostemp(d->name, O_CLOEXEC);
	if (d->fd < 0)
		d->name[0] = 0;
	return d->fd >= 0;
}

static int draft_link(const struct draft *d, const char *path)
{
	char self[32];
	snprintf(self, sizeof self, "/proc/self/fd/%d", d->fd);
	return linkat(AT_FDCWD, *d->name ? d->name : self, AT_FDCWD, path, *d->name ? 0 : AT_SYMLINK_FOLLOW);
}

/*
 * In the place of what is there. That takes a second name for an instant, always the same: what somebody who was killed has
 * left under it goes. 1: somebody else has taken this one for such.
 */
static int draft_rename(struct draft *d, const char *path)
{
	char next[PATH_MAX];
	struct stat st;
	if (*d->name)
		return rename(d->name, path);
	if (!draft_link(d, path))
		return 0;
	if (errno != EEXIST)
		return -1;
	snprintf(next, sizeof next, "%s.new", path);
	while (draft_link(d, next))
		if (errno != EEXIST || (unlink(next) && errno != ENOENT))
			return -1;
	if (!rename(next, path))
		return 0;
	int e = errno;
	if (e == ENOENT) /* without a name it was removed, else renamed */
		return fstat(d->fd, &st) || !st.st_nlink;
	unlink(next);
	errno = e;
	return -1;
}

static int draft_put(const char *path, const void *data, size_t len, unsigned mode, bool fresh)
{
	struct draft d;
	if (!draft_open(&d, path))
		return -1;
	int r = write_all(d.fd, data, len) || fchmod(d.fd, mode) || fsync(d.fd) ? -1
		: fresh                                                         ? draft_link(&d, path)
										: draft_rename(&d, path);
	int e = errno;
	close(d.fd);
	if (*d.name && (r || fresh))
		unlink(d.name);
	errno = e;
	return r;
}

int file_replace(const char *path, const void *data, size_t len, unsigned mode, bool fresh, struct kx_err *err)
{
	int r = 1;
	if (strlen(path) + 8 > PATH_MAX)
		return kx_err_set(err, ENAMETOOLONG, "%.200s...: the path is too long (shorten it)", path);
	for (int i = 0; i < REPLACE_TRIES && r > 0; i++)
		r = draft_put(path, data, len, mode, fresh);
	if (r > 0)
		errno = EBUSY;
	if (!r && !dir_sync(path))
		return 0;
	int e = errno;
	if (!r && fresh) /* else the next try finds what was not made */
		unlink(path);
	return kx_err_set(err, e, "%s: %s (%s)", path, strerror(e),
			  e == EEXIST ? "remove it, or choose another name" : "check its directory");
}

/* ---- dates ------------------------------------------------------------------------------------------------------ */

bool date_parse(const char *s, int64_t now, int64_t *out)
{
	struct tm tm = { 0 }, back;
	char *end;
	if (!strcmp(s, "never")) {
		*out = 0;
		return true;
	}
	size_t n = strspn(s, "0123456789");
	if (n && n < 7 && !strcmp(s + n, "d")) {
		*out = now + strtoll(s, NULL, 10) * 86400;
		return true;
	}
	if (n != 4 || strlen(s) != 10 || s[4] != '-' || s[7] != '-' || strspn(s + 5, "0123456789") != 2 ||
	    strspn(s + 8, "0123456789") != 2)
		return false;
	tm.tm_year = (int)strtol(s, &end, 10) - 1900;
	tm.tm_mon = (int)strtol(s + 5, &end, 10) - 1;
	tm.tm_mday = (int)strtol(s + 8, &end, 10);
	back = tm;
	*out = timegm(&back);
	return *out > 0 && back.tm_mon == tm.tm_mon && back.tm_mday == tm.tm_mday; /* no 30th of February */
}

void date_show(int64_t t, char out[32])
{
	struct tm tm;
	time_t when = (time_t)t;
	if (!t || !gmtime_r(&when, &tm) || tm.tm_year > 8099)
		snprintf(out, 32, "%s", t ? "after 9999" : "never");
	else
		strftime(out, 32, t % 86400 ? "%Y-%m-%d %H:%M:%S UTC" : "%Y-%m-%d", &tm);
}

/* ---- keys ------------------------------------------------------------------------------------------------------- */

bool key_name_valid(const char *s)
{
	static const char chars[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
	size_t n = strlen(s), hex = strspn(s, "0123456789abcdef");
	return n && n <= SIGN_NAME - 4 && strspn(s, chars) == n && *s != '.' && *s != '-' &&
	       !(hex == n && (n == 2 * SIGN_ID || n == 2 * SIGN_HASH));
}

static bool public_parse(const char *text, size_t len, struct sign_key *k)
{
	const char *at = text, *end = text + len;
	uint64_t format, from, expires;
	if (!line_number(&at, end, "kylinx-public-key", &format) || format != 1 ||
	    !line_hex(&at, end, "key", k->pub, sizeof k->pub) || !line_number(&at, end, "from", &from) ||
	    !line_number(&at, end, "expires", &expires) || at != end)
		return false;
	k->from = (int64_t)from;
	k->expires = (int64_t)expires;
	sign_key_id(k->pub, k->id);
	return true;
}

static int public_text(const struct sign_key *k, char out[KEY_FILE_MAX])
{
	char hex[2 * SIGN_PUBLIC + 1];
	hex_put(k->pub, sizeof k->pub, hex);
	return snprintf(out, KEY_FILE_MAX, "kylinx-public-key 1\nkey %s\nfrom %lld\nexpires %lld\n", hex,
			(long long)k->from, (long long)k->expires);
}

static int public_load(int fd, const char *shown, struct sign_key *k, struct kx_err *err)
{
	char *text = NULL;
	size_t len = 0;
	struct kx_err why = { 0 };
	int r = file_read(fd, shown, KEY_FILE_MAX, &text, &len, &why);
	if (r && r != -EFBIG)
		return kx_err_set(err, -r, "%s", why.msg);
	if (r || !public_parse(text, len, k))
		r = kx_err_set(err, EINVAL, "%s: no public key of KylinX (make one by `kylinx lib keygen`)", shown);
	free(text);
	return r;
}

/* By whomever it is; a device is not opened, which would have side effects. */
static int any_open(const char *path, struct kx_err *err)
{
	struct stat st;
	if (!stat(path, &st) && !S_ISREG(st.st_mode))
		return kx_err_set(err, EINVAL, "%s: no regular file (check the path)", path);
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	return fd < 0 ? kx_err_set(err, errno, "%s: %s (check the path)", path, strerror(errno)) : fd;
}

int key_public_read(const char *path, struct sign_key *k, struct kx_err *err)
{
	memset(k, 0, sizeof *k);
	int fd = any_open(path, err);
	if (fd < 0)
		return fd;
	int r = public_load(fd, path, k, err);
	close(fd);
	return r;
}

int key_make(const char *path, struct sign_key *k, struct kx_err *err)
{
	uint8_t seed[SIGN_SEED], secret[64];
	char text[KEY_FILE_MAX], hex[2 * SIGN_SEED + 1], pub[PATH_MAX];
	memset(k, 0, sizeof *k);
	if (snprintf(pub, sizeof pub, "%s.pub", path) >= (int)sizeof pub)
		return kx_err_set(err, ENAMETOOLONG, "%.200s...: the path is too long (shorten it)", path);
	if (getrandom(seed, sizeof seed, 0) != sizeof seed)
		return kx_err_set(err, errno, "random numbers: %s (try again)", strerror(errno));
	crypto_sign_ed25519_seed_keypair(k->pub, secret, seed);
	sign_key_id(k->pub, k->id);
	hex_put(seed, sizeof seed, hex);
	int n = snprintf(text, sizeof text, "kylinx-secret-key 1\nseed %s\n", hex);
	int r = file_replace(path, text, (size_t)n, 0600, true, err);
	sodium_memzero(seed, sizeof seed);
	sodium_memzero(secret, sizeof secret);
	sodium_memzero(hex, sizeof hex);
	sodium_memzero(text, sizeof text);
	if (r)
		return r;
	n = public_text(k, text);
	r = file_replace(pub, text, (size_t)n, 0644, true, err);
	if (r)
		unlink(path);
	return r;
}

int key_secret_read(const char *path, uint8_t seed[SIGN_SEED], struct kx_err *err)
{
	struct stat st;
	uint64_t format;
	char *text = NULL;
	size_t len = 0;
	int fd = any_open(path, err);
	if (fd < 0)
		return fd;
	int r = fstat(fd, &st) ? kx_err_set(err, errno, "%s: %s (check it)", path, strerror(errno)) : 0;
	struct kx_err why = { 0 };
	if (!r && (r = file_read(fd, path, KEY_FILE_MAX, &text, &len, &why)) && r != -EFBIG)
		kx_err_set(err, -r, "%s", why.msg);
	close(fd);
	if (r && r != -EFBIG)
		return r;
	const char *at = text ? text : "", *end = at + len;
	if (r || !line_number(&at, end, "kylinx-secret-key", &format) || format != 1 ||
	    !line_hex(&at, end, "seed", seed, SIGN_SEED) || at != end)
		r = kx_err_set(err, EINVAL, "%s: no secret key of KylinX (make one by `kylinx lib keygen`)", path);
	else if (st.st_mode & 077 || (st.st_uid != geteuid() && st.st_uid))
		r = kx_err_set(err, EPERM,
			       "%s: others can read this secret key (chmod 600; make a new key if they did)", path);
	if (text)
		sodium_memzero(text, len);
	free(text);
	return r;
}

/* ---- the keyring ------------------------------------------------------------------------------------------------ */

void keyring_free(struct keyring *k)
{
	free(k->key);
	free(k->revoked_key);
	free(k->revoked_file);
	if (k->dir >= 0)
		close(k->dir);
	if (k->lock >= 0)
		close(k->lock);
	*k = (struct keyring){ .dir = -1, .lock = -1 };
}

const struct sign_key *keyring_by_name(const struct keyring *k, const char *name)
{
	for (unsigned i = 0; i < k->nr; i++)
		if (!strcmp(k->key[i].name, name))
			return &k->key[i];
	return NULL;
}

const struct sign_key *keyring_by_id(const struct keyring *k, const uint8_t id[SIGN_ID])
{
	for (unsigned i = 0; i < k->nr; i++)
		if (!memcmp(k->key[i].id, id, SIGN_ID))
			return &k->key[i];
	return NULL;
}

int64_t keyring_key_revoked(const struct keyring *k, const uint8_t id[SIGN_ID])
{
	for (unsigned i = 0; i < k->nr_revoked_keys; i++)
		if (!memcmp(k->revoked_key[i].id, id, SIGN_ID))
			return k->revoked_key[i].time;
	return 0;
}

int64_t keyring_file_revoked(const struct keyring *k, const uint8_t sha256[SIGN_HASH])
{
	for (unsigned i = 0; i < k->nr_revoked_files; i++)
		if (!memcmp(k->revoked_file[i].sha256, sha256, SIGN_HASH))
			return k->revoked_file[i].time;
	return 0;
}

static int add_revoked(struct keyring *k, const uint8_t *id, const uint8_t *sha256, int64_t time)
{
	if (id) {
		void *p = kx_one_more(k->revoked_key, k->nr_revoked_keys, sizeof *k->revoked_key);
		if (!p)
			return -ENOMEM;
		k->revoked_key = p;
		memcpy(k->revoked_key[k->nr_revoked_keys].id, id, SIGN_ID);
		k->revoked_key[k->nr_revoked_keys++].time = time;
	} else {
		void *p = kx_one_more(k->revoked_file, k->nr_revoked_files, sizeof *k->revoked_file);
		if (!p)
			return -ENOMEM;
		k->revoked_file = p;
		memcpy(k->revoked_file[k->nr_revoked_files].sha256, sha256, SIGN_HASH);
		k->revoked_file[k->nr_revoked_files++].time = time;
	}
	return 0;
}

/* "key ID SECONDS" or "sha256 HEX SECONDS". */
static int revoked_line(struct keyring *k, const char *s, size_t n)
{
	uint8_t hash[SIGN_HASH];
	const char *sp = memchr(s, ' ', n), *sp2 = sp ? memchr(sp + 1, ' ', (size_t)(s + n - sp - 1)) : NULL;
	if (!sp2)
		return -EINVAL;
	size_t digits = (size_t)(sp2 - sp - 1), d = (size_t)(s + n - sp2 - 1);
	if (!d || d > 18 || strspn(sp2 + 1, "0123456789") != d)
		return -EINVAL;
	int64_t time = strtoll(sp2 + 1, NULL, 10);
	if (time > 0 && sp - s == 3 && !memcmp(s, "key", 3) && hex_get(sp + 1, digits, hash, SIGN_ID))
		return add_revoked(k, hash, NULL, time);
	if (time > 0 && sp - s == 6 && !memcmp(s, "sha256", 6) && hex_get(sp + 1, digits, hash, SIGN_HASH))
		return add_revoked(k, NULL, hash, time);
	return -EINVAL;
}

static int revoked_load(struct keyring *k, struct kx_err *err)
{
	char shown[4200], *text;
	uint64_t format;
	size_t len;
	struct stat st;
	snprintf(shown, sizeof shown, "%s/revoked", k->path);
	int fd = openat(k->dir, "revoked", O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0 && errno == ENOENT)
		return 0;
	if (fd < 0 || fstat(fd, &st))
		return kx_err_set(err, errno, "%s: %s (check it)", shown, strerror(errno));
	int r = owner_check(shown, &st, err);
	if (!r)
		r = file_read(fd, shown, REVOKED_MAX, &text, &len, err);
	close(fd);
	if (r)
		return r;
	const char *at = text, *end = text + len;
	unsigned line = 1;
	if (!line_number(&at, end, "kylinx-revoked", &format) || format != 1)
		r = -EINVAL;
	while (!r && at < end) {
		const char *nl = memchr(at, '\n', (size_t)(end - at));
		line++;
		r = nl ? revoked_line(k, at, (size_t)(nl - at)) : -EINVAL;
		at = nl + 1;
	}
	free(text);
	if (r == -ENOMEM)
		return kx_err_set(err, ENOMEM, NO_MEMORY);
	return r ? kx_err_set(err, -r, "%s:%u: damaged (mend it: what it revokes is not known)", shown, line) : 0;
}

static int key_load(struct keyring *k, const char *file, struct kx_err *err)
{
	struct sign_key key = { 0 };
	char shown[4400];
	struct stat st;
	snprintf(shown, sizeof shown, "%s/%s", k->path, file);
	snprintf(key.name, sizeof key.name, "%.*s", (int)(strlen(file) - 4), file);
	if (strlen(file) - 4 >= sizeof key.name || !key_name_valid(key.name))
		return kx_err_set(err, EINVAL, "%s: not the name of a key (rename it)", shown);
	int fd = openat(k->dir, file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &st))
		return kx_err_set(err, errno, "%s: %s (check it)", shown, strerror(errno));
	int r = owner_check(shown, &st, err);
	if (!r)
		r = public_load(fd, shown, &key, err);
	close(fd);
	if (r)
		return r;
	key.revoked = keyring_key_revoked(k, key.id);
	const struct sign_key *same = keyring_by_id(k, key.id);
	if (same)
		return kx_err_set(err, EEXIST, "%s: the same key as %s.pub (remove one)", shown, same->name);
	if (k->nr == POLICY_KEYS_MAX)
		return kx_err_set(err, E2BIG, "%s: more than %d keys (remove some)", k->path, POLICY_KEYS_MAX);
	void *p = kx_one_more(k->key, k->nr, sizeof *k->key);
	if (!p)
		return kx_err_set(err, ENOMEM, NO_MEMORY);
	k->key = p;
	k->key[k->nr++] = key;
	return 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct sign_key *)a)->name, ((const struct sign_key *)b)->name);
}

static int keyring_load(struct keyring *k, struct kx_err *err)
{
	struct dirent *d;
	int r = revoked_load(k, err);
	DIR *dir = r ? NULL : dir_open_at(k->dir, ".", 0);
	if (!dir)
		return r ? r : kx_err_set(err, errno, "%s: %s (check it)", k->path, strerror(errno));
	while (!r && (d = readdir(dir))) {
		size_t n = strlen(d->d_name);
		if (n > 4 && d->d_name[0] != '.' && !strcmp(d->d_name + n - 4, ".pub"))
			r = key_load(k, d->d_name, err);
	}
	closedir(dir);
	if (k->nr)
		qsort(k->key, k->nr, sizeof *k->key, by_name);
	return r;
}

int keyring_read(const char *dir, struct keyring *k, struct kx_err *err)
{
	*k = (struct keyring){ .dir = -1, .lock = -1 };
	snprintf(k->path, sizeof k->path, "%s", dir);
	k->dir = trusted_open(dir, true, err);
	int r = k->dir < 0 ? k->dir : keyring_load(k, err);
	if (r)
		keyring_free(k);
	return r;
}

/* Whoever can read the lock can hold it for ever, as a process that is stopped does, and what a volume is shown to. */
static int lock_wait(int fd)
{
	for (int i = 0; i < LOCK_TRIES; i++) {
		if (!flock(fd, LOCK_EX | LOCK_NB))
			return 0;
		if (errno != EWOULDBLOCK && errno != EINTR)
			return -1;
		nanosleep(&(struct timespec){ .tv_nsec = LOCK_LOOK_NS }, NULL);
	}
	errno = EWOULDBLOCK;
	return -1;
}

/* What editors that were killed have left. As the editor. */
static void keyring_tidy(const struct keyring *k)
{
	struct dirent *d;
	DIR *dir = dir_open_at(k->dir, ".", 0);
	while (dir && (d = readdir(dir))) {
		size_t n = strlen(d->d_name);
		if (!strcmp(d->d_name, "revoked.new") || (n > 8 && !strcmp(d->d_name + n - 8, ".pub.new")))
			unlinkat(k->dir, d->d_name, 0);
	}
	if (dir)
		closedir(dir);
}

int keyring_edit(const char *dir, struct keyring *k, struct kx_err *err)
{
	*k = (struct keyring){ .dir = -1, .lock = -1 };
	mode_t old = umask(022);
	int r = make_dirs(dir, 0755);
	umask(old);
	if (r)
		return kx_err_set(err, -r, "%s: %s (set KYLINX_CONFIG to a directory of yours)", dir, strerror(-r));
	snprintf(k->path, sizeof k->path, "%s", dir);
	if ((k->dir = trusted_open(dir, true, err)) < 0)
		return k->dir;
	k->lock = openat(k->dir, ".lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (k->lock < 0)
		r = kx_err_set(err, errno, "%s: %s (check owner and mode)", dir, strerror(errno));
	else if (lock_wait(k->lock))
		r = kx_err_set(err, errno, "%s/.lock: %s (%s)", dir,
			       errno == EWOULDBLOCK ? "another process holds it" : strerror(errno),
			       errno == EWOULDBLOCK ? "end that process, which `fuser` names"
						    : "check the file system");
	if (!r)
		r = keyring_load(k, err);
	if (!r)
		keyring_tidy(k);
	if (r)
		keyring_free(k);
	return r;
}

int keyring_trust(struct keyring *k, const struct sign_key *key, struct kx_err *err)
{
	char path[4200], text[KEY_FILE_MAX], when[32];
	const struct sign_key *same = keyring_by_id(k, key->id), *named = keyring_by_name(k, key->name);
	int64_t revoked = keyring_key_revoked(k, key->id);
	date_show(revoked, when);
	if (revoked)
		return kx_err_set(err, EKEYREVOKED, "%s: this key was revoked on %s (make a new one)", key->name, when);
	if (same && strcmp(same->name, key->name))
		return kx_err_set(err, EEXIST, "%s: this key is trusted as %s (give --name %s to change it)", key->name,
				  same->name, same->name);
	if (named && !same)
		return kx_err_set(err, EEXIST, "%s: another key has this name (give another --name)", key->name);
	if (key->expires && key->expires <= key->from)
		return kx_err_set(err, EINVAL, "%s: it would expire before it is valid (check --from and --expires)",
				  key->name);
	if (!same && k->nr == POLICY_KEYS_MAX)
		return kx_err_set(err, E2BIG, "%s: more than %d keys (remove some)", k->path, POLICY_KEYS_MAX);
	snprintf(path, sizeof path, "%s/%s.pub", k->path, key->name);
	int n = public_text(key, text);
	return file_replace(path, text, (size_t)n, 0644, false, err);
}

int keyring_revoke(struct keyring *k, const uint8_t *id, const uint8_t *sha256, int64_t now, struct kx_err *err)
{
	char path[4200], hex[2 * SIGN_HASH + 1];
	if (id ? keyring_key_revoked(k, id) : keyring_file_revoked(k, sha256))
		return 0;
	if (add_revoked(k, id, sha256, now))
		return kx_err_set(err, ENOMEM, NO_MEMORY);
	size_t max = 32 + 120ul * (k->nr_revoked_keys + k->nr_revoked_files);
	char *text = malloc(max);
	if (!text)
		return kx_err_set(err, ENOMEM, NO_MEMORY);
	int n = sprintf(text, "kylinx-revoked 1\n");
	for (unsigned i = 0; i < k->nr_revoked_keys; i++) {
		hex_put(k->revoked_key[i].id, SIGN_ID, hex);
		n += sprintf(text + n, "key %s %lld\n", hex, (long long)k->revoked_key[i].time);
	}
	for (unsigned i = 0; i < k->nr_revoked_files; i++) {
		hex_put(k->revoked_file[i].sha256, SIGN_HASH, hex);
		n += sprintf(text + n, "sha256 %s %lld\n", hex, (long long)k->revoked_file[i].time);
	}
	snprintf(path, sizeof path, "%s/revoked", k->path);
	int r = file_replace(path, text, (size_t)n, 0644, false, err);
	free(text);
	return r ? r : 1;
}
