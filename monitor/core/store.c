/* SPDX-License-Identifier: Apache-2.0 */
/* The directory of the store: its files, who writes it, its history. */
#include "store_priv.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>
#include "../../util/dirs.h"
#include "../../util/sha256.h"
#include "../../util/utf8.h"

const char store_format[] = STORE_FORMAT;

/* ---- names and entries ------------------------------------------------------------------------------------------ */

static const char digits[] = "0123456789abcdef";

void store_hex(const uint8_t hash[STORE_HASH], char out[2 * STORE_HASH + 1])
{
	for (int i = 0; i < STORE_HASH; i++) {
		out[2 * i] = digits[hash[i] >> 4];
		out[2 * i + 1] = digits[hash[i] & 15];
	}
	out[2 * STORE_HASH] = 0;
}

void store_image_name(const uint8_t hash[STORE_HASH], char out[80])
{
	memcpy(out, "images/", 7);
	store_hex(hash, out + 7);
}

void store_entry_name(const struct text_key *k, char out[128])
{
	const uint64_t all[] = { k->dev, k->ino, k->off, k->len };
	memcpy(out, "index/", 6);
	out += 6;
	for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
		int bits = all[i] ? (63 - __builtin_clzll(all[i])) & -4 : 0;
		for (; bits >= 0; bits -= 4)
			*out++ = digits[all[i] >> bits & 15];
		*out++ = '-';
	}
	out[-1] = 0;
}

uint64_t store_sum(uint64_t sum, const void *data, size_t len)
{
	uint64_t word;
	for (size_t at = 0; at < len; at += sizeof word) {
		memcpy(&word, (const char *)data + at, sizeof word);
		sum = (sum ^ word) * 0x9e3779b97f4a7c15ull;
		sum ^= sum >> 29;
	}
	return sum;
}

bool store_is_trouble(int e) { return kx_err_lacks(e) || e == ENOBUFS || e == EIO || e == EINTR || e == ESTALE; }

bool store_read_full(int fd, void *p, uint64_t len, uint64_t off)
{
	for (uint8_t *b = p; len;) {
		ssize_t n = pread(fd, b, len, (off_t)off);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		b += n;
		len -= (uint64_t)n;
		off += (uint64_t)n;
	}
	return true;
}

bool store_entry_sound(const struct store_entry *e)
{
	return e->magic == ENTRY_MAGIC && e->sum == store_sum(0, e, offsetof(struct store_entry, sum)) &&
	       memchr(e->path, 0, sizeof e->path);
}

/* The entry of a text, when it is sound and of this very file. */
int store_entry_read(int dir, const struct text_key *key, struct store_entry *e)
{
	char name[128];
	store_entry_name(key, name);
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return -errno;
	bool ok = store_read_full(fd, e, sizeof *e, 0) && store_entry_sound(e) && !memcmp(&e->key, key, sizeof *key);
	close(fd);
	return ok ? 0 : -EBADMSG;
}

bool store_image_is(const struct store_entry *e, const struct stat *st)
{
	return S_ISREG(st->st_mode) && st->st_ino == e->ino && (uint64_t)st->st_size == e->size &&
	       store_ns(&st->st_mtim) == e->mtime_ns && store_ns(&st->st_ctim) == e->ctime_ns;
}

bool store_copy_key(const struct stat *st, struct text_key *key)
{
	if (!S_ISREG(st->st_mode) || st->st_size <= 0 || (uint64_t)st->st_size > ARENA_LIMIT)
		return false;
	*key = (struct text_key){ .dev = st->st_dev,
				  .ino = st->st_ino,
				  .size = (uint64_t)st->st_size,
				  .off = UINT64_MAX,
				  .mtime_ns = store_ns(&st->st_mtim),
				  .ctime_ns = store_ns(&st->st_ctim) };
	return true;
}

bool store_is_copy(const struct store_entry *e) { return e->key.off == UINT64_MAX; }

/* ---- the directory ---------------------------------------------------------------------------------------------- */

/* 0, or -ENOENT: switched off, or no place for it. */
static int root_path(char out[4096])
{
	const char *s = getenv("KYLINX_STORE"), *home = getenv("HOME"), *cache = getenv("XDG_CACHE_HOME");
	int n;
	if (s)
		n = *s == '/' ? snprintf(out, 4000, "%s", s) : 0;
	else if (geteuid() == 0)
		n = snprintf(out, 4000, "/var/lib/kylinx/store");
	else if (cache && *cache == '/')
		n = snprintf(out, 4000, "%s/kylinx/store", cache);
	else
		n = home && *home == '/' ? snprintf(out, 4000, "%s/.cache/kylinx/store", home) : 0;
	return n > 0 && n < 4000 ? 0 : -ENOENT;
}

const char *store_remedy(int e)
{
	return e == ENOSPC || e == EDQUOT   ? "make room, or set KYLINX_STORE"
	       : e == EMFILE || e == ENFILE ? "raise `ulimit -n`"
	       : e == ENOMEM                ? "free some memory"
	       : e == EAGAIN                ? "another start writes to it: try again"
	       : e == ENOTDIR || e == ELOOP ? "remove it, or set KYLINX_STORE"
					    : "check it, or set KYLINX_STORE";
}

static int dir_open(int at, const char *name, const char *shown, struct kx_err *err)
{
	struct stat st;
	int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | (at == AT_FDCWD ? 0 : O_NOFOLLOW));
	if (fd < 0 && errno == ENOENT)
		return -ENOENT;
	if (fd < 0 || fstat(fd, &st)) {
		int e = errno;
		if (fd >= 0)
			close(fd);
		return kx_err_set(err, e, "%s%s%s: %s (%s)", shown, at == AT_FDCWD ? "" : "/",
				  at == AT_FDCWD ? "" : name, strerror(e), store_remedy(e));
	}
	if (st.st_uid == geteuid() && !(st.st_mode & 022))
		return fd;
	close(fd);
	return kx_err_set(err, EPERM, "%s: others can write it (chown it to yourself, chmod go-w, or set KYLINX_STORE)",
			  shown);
}

static int dir_make(int at, const char *name, const char *shown, bool make, struct kx_err *err)
{
	if (make && faccessat(at, name, F_OK, 0) && mkdirat(at, name, 0700) && errno != EEXIST)
		return kx_err_set(err, errno, "%s/%s: %s (%s)", shown, name, strerror(errno), store_remedy(errno));
	return dir_open(at, name, shown, err);
}

int store_open(struct store *s, bool make, struct kx_err *err)
{
	static const char *const parts[] = { "images", "index", "notes" };
	*s = (struct store){ .root = -1, .dir = -1, .lock = -1 };
	int r = root_path(s->path);
	const char *env = getenv("KYLINX_STORE");
	if (r && env && *env)
		return kx_err_set(err, EINVAL, "KYLINX_STORE=%s: not an absolute path (give one, or none)", env);
	if (r)
		return r;
	if (make && (r = make_dirs(s->path, 0700)))
		return kx_err_set(err, -r, "%s: %s (set KYLINX_STORE to a directory of yours)", s->path, strerror(-r));
	if ((s->root = dir_open(AT_FDCWD, s->path, s->path, err)) < 0)
		return s->root;
	if ((r = s->dir = dir_make(s->root, STORE_FORMAT, s->path, make, err)) >= 0)
		for (unsigned i = 0; i < 3 && r >= 0; i++)
			if ((r = dir_make(s->dir, parts[i], s->path, make, err)) >= 0)
				close(r);
	if (r >= 0)
		return 0;
	store_close(s);
	return r;
}

void store_close(struct store *s)
{
	int *const all[] = { &s->root, &s->dir, &s->lock };
	for (unsigned i = 0; i < 3; i++) {
		if (*all[i] >= 0)
			close(*all[i]);
		*all[i] = -1;
	}
}

int store_lock(struct store *s)
{
	if (s->lock >= 0)
		return 0;
	int fd = openat(s->dir, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	if (flock(fd, LOCK_EX | LOCK_NB)) {
		close(fd);
		return -EAGAIN;
	}
	s->lock = fd;
	return 0;
}

void store_tidy(struct store *s)
{
	if (!faccessat(s->dir, "new", F_OK, AT_SYMLINK_NOFOLLOW) && !store_lock(s))
		unlinkat(s->dir, "new", 0);
}

int store_put(struct store *s, const char *name, const void *data, size_t len)
{
	int r = 0;
	if (unlinkat(s->dir, "new", 0) && errno != ENOENT)
		return -errno;
	int fd = openat(s->dir, "new", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	for (const uint8_t *p = data, *end = p + len; p < end && !r;) {
		ssize_t n = write(fd, p, (size_t)(end - p));
		if (n < 0 && errno != EINTR)
			r = -errno;
		p += n > 0 ? n : 0;
	}
	if (!r && (fsync(fd) || renameat(s->dir, "new", s->dir, name)))
		r = -errno;
	close(fd);
	if (r)
		unlinkat(s->dir, "new", 0);
	return r;
}

static int hash_file(int fd, uint8_t hash[STORE_HASH])
{
	struct sha256 h;
	uint8_t buf[65536];
	ssize_t n;
	sha256_begin(&h);
	while ((n = read(fd, buf, sizeof buf)) > 0)
		sha256_add(&h, buf, (size_t)n);
	sha256_end(&h, hash);
	return n < 0 ? -errno : 0;
}

int store_verify_image(struct store *s, const uint8_t hash[STORE_HASH])
{
	char name[80];
	uint8_t is[STORE_HASH];
	store_image_name(hash, name);
	int fd = openat(s->dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return store_is_trouble(errno) || errno == ENOENT ? -errno : -EBADMSG;
	int r = hash_file(fd, is);
	close(fd);
	if (r)
		return store_is_trouble(-r) ? r : -EBADMSG;
	return memcmp(is, hash, sizeof is) ? -EBADMSG : 0;
}

int store_each(struct store *s, int (*fn)(const struct store_entry *e, bool sound, void *arg), void *arg)
{
	struct dirent *d;
	int r = 0;
	DIR *dir = dir_open_at(s->dir, "index", O_NOFOLLOW);
	if (!dir)
		return -errno;
	while (!r && (errno = 0, d = readdir(dir))) {
		struct store_entry e = { 0 };
		if (d->d_name[0] == '.')
			continue;
		int fd = openat(dirfd(dir), d->d_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
		if (fd < 0 && errno == ENOENT) /* it has been removed meanwhile */
			continue;
		if (fd < 0 && store_is_trouble(errno)) {
			r = -errno;
			break;
		}
		bool sound = fd >= 0 && store_read_full(fd, &e, sizeof e, 0) && store_entry_sound(&e);
		if (fd >= 0)
			close(fd);
		if (!sound)
			snprintf(e.path, sizeof e.path, "index/%.240s", d->d_name);
		r = fn(&e, sound, arg);
	}
	if (!r && !d && errno)
		r = -errno;
	closedir(dir);
	return r;
}

/* ---- history ---------------------------------------------------------------------------------------------------- */

static void put_json(char *out, size_t size, const char *key, const char *value)
{
	size_t n = strlen(out);
	if (!value)
		return;
	n += (size_t)snprintf(out + n, size - n, ",\"%s\":\"", key);
	for (const char *end = value + strlen(value); value < end && n + 16 < size;)
		n += (size_t)json_char(&value, end, out + n);
	snprintf(out + n, size - n, "\"");
}

/* A write that a full disk or a crash cut short left a line without its end. */
static bool ends_in_a_line(int fd)
{
	struct stat st;
	char last;
	return fstat(fd, &st) || !st.st_size || pread(fd, &last, 1, st.st_size - 1) != 1 || last == '\n';
}

int store_history_add(struct store *s, const char *event, const char *object, const char *detail)
{
	char text[1601] = "\n", *line = text + 1;
	snprintf(line, 1600, "{\"time\":%lld", (long long)time(NULL));
	put_json(line, 256, "event", event);
	put_json(line, 900, "object", object);
	put_json(line, 1590, "detail", detail);
	strcat(line, "}\n");
	int fd = openat(s->root, "history", O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
	if (fd < 0)
		return -errno;
	if (!ends_in_a_line(fd))
		line = text;
	ssize_t n = write(fd, line, strlen(line)); /* one write: lines of several writers don't mix */
	int r = n < 0 ? -errno : (size_t)n == strlen(line) ? 0 : -EIO;
	close(fd);
	return r;
}
