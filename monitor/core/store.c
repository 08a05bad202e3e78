/* SPDX-License-Identifier: Apache-2.0 */
#include "store.h"
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/mount.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../../util/dirs.h"
#include "../../util/log.h"
#include "../../util/sha256.h"
#include "../../util/utf8.h"
#include "../arch/x86_64/patch.h"
#include "elf.h"
#include "gmem.h"
#include "needed.h"
#include "rseq.h"

#define PAGE 4096ull
#define PAGES(n) (((n) + PAGE - 1) & -PAGE)
#define IMAGE_MAGIC 0x31676d4958794b00ull
#define ENTRY_MAGIC 0x31746e4558794b00ull
#define NOTES_MAGIC 0x3165746f4e784b00ull
#define FILE_MAX (512ull << 20)   /* larger files are left alone */
#define YOUNG_NS 1000000000ll     /* times of change have a grain: a file can change twice within one */
#define MADE_AT (16ull << 30)     /* where images are made for: any place does */
#define ARENA_LIMIT (64ull << 20) /* no image is larger */
#define STORED_MAX 256

/* The first page of an image. */
struct image {
	uint64_t magic, text_len, tramp_size, made_for;
	int64_t tramp_from;
	uint32_t nr_sites, pad;
	uint8_t source[STORE_HASH]; /* SHA-256 of the text that it was made from */
};

struct note {
	uint64_t off, len;
	char path[STORE_PATH];
};
#define NOTES_SIZE (64ull << 10)
struct notes {
	uint64_t magic;
	uint32_t nr, looked; /* looked: what the program needs has been prepared */
	struct note note[];
};
#define NOTES_MAX ((NOTES_SIZE - sizeof(struct notes)) / sizeof(struct note))

static int64_t ns_of(const struct timespec *t) { return t->tv_sec * 1000000000ll + t->tv_nsec; }

void store_hex(const uint8_t hash[STORE_HASH], char out[2 * STORE_HASH + 1])
{
	for (int i = 0; i < STORE_HASH; i++)
		sprintf(out + 2 * i, "%02x", hash[i]);
}

static void image_name(const uint8_t hash[STORE_HASH], char out[80])
{
	memcpy(out, "images/", 7);
	store_hex(hash, out + 7);
}

static void entry_name(const struct text_key *k, char out[128])
{
	snprintf(out, 128, "index/%llx-%llx-%llx-%llx", (unsigned long long)k->dev, (unsigned long long)k->ino,
		 (unsigned long long)k->off, (unsigned long long)k->len);
}

static bool read_full(int fd, void *p, uint64_t len, uint64_t off)
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

static bool entry_sound(const struct store_entry *e)
{
	uint8_t sum[STORE_HASH];
	sha256(sum, (const uint8_t *)e, offsetof(struct store_entry, sum));
	return e->magic == ENTRY_MAGIC && !memcmp(sum, e->sum, sizeof sum) && memchr(e->path, 0, sizeof e->path);
}

/* The entry of a text, when it is sound and of this very file. */
static int entry_read(int dir, const struct text_key *key, struct store_entry *e)
{
	char name[128];
	entry_name(key, name);
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return -errno;
	bool ok = read_full(fd, e, sizeof *e, 0) && entry_sound(e) && !memcmp(&e->key, key, sizeof *key);
	close(fd);
	return ok ? 0 : -EBADMSG;
}

static bool image_is(const struct store_entry *e, const struct stat *st)
{
	return S_ISREG(st->st_mode) && st->st_ino == e->ino && (uint64_t)st->st_size == e->size &&
	       ns_of(&st->st_mtim) == e->mtime_ns && ns_of(&st->st_ctim) == e->ctime_ns;
}

static int image_open(int dir, const struct store_entry *e)
{
	char name[80];
	struct stat st;
	image_name(e->image, name);
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return -errno;
	if (!fstat(fd, &st) && image_is(e, &st))
		return fd;
	close(fd);
	return -EBADMSG;
}

static bool image_sound(const struct image *m, const struct store_entry *e)
{
	return m->magic == IMAGE_MAGIC && m->nr_sites && m->nr_sites <= KX_SITES_MAX && m->text_len == e->key.len &&
	       m->text_len <= TEXT_LEN_MAX && !(m->tramp_size % PAGE) && m->tramp_size < ARENA_LIMIT &&
	       e->size >= PAGE + PAGES(m->text_len) + m->tramp_size + m->nr_sites * sizeof(struct kx_site);
}

/* ---- in the jail ------------------------------------------------------------------------------------------------ */

uint64_t store_stored;
static int tree = -1;
static struct notes *notes;
static char program_path[PATH_MAX];
static struct {
	struct text text;
	struct store_entry entry;
} * stored[STORED_MAX];
static unsigned nr_stored;

int store_fd(void) { return tree; }

void store_adopt(int fd)
{
	if (fd >= 0)
		fd_keep(&tree, fd);
}

bool store_holds(const struct text *t)
{
	for (unsigned i = 0; i < nr_stored; i++)
		if (&stored[i]->text == t)
			return true;
	return false;
}

int store_image_open(const struct text *t)
{
	for (unsigned i = 0; i < nr_stored; i++)
		if (&stored[i]->text == t) {
			fd_limit_lift();
			int fd = image_open(tree, &stored[i]->entry);
			fd_limit_drop();
			return fd;
		}
	return -ENOENT;
}

/* The key of a file as a whole; no text has this offset. */
static bool copy_key(const struct stat *st, struct text_key *key)
{
	if (!S_ISREG(st->st_mode) || st->st_size <= 0 || (uint64_t)st->st_size > ARENA_LIMIT)
		return false;
	*key = (struct text_key){ .dev = st->st_dev,
				  .ino = st->st_ino,
				  .size = (uint64_t)st->st_size,
				  .off = UINT64_MAX,
				  .mtime_ns = ns_of(&st->st_mtim),
				  .ctime_ns = ns_of(&st->st_ctim) };
	return true;
}

bool store_is_copy(const struct store_entry *e) { return e->key.off == UINT64_MAX; }

int store_copy_open(const struct stat *st, uint8_t sha256[STORE_HASH])
{
	struct text_key key;
	struct store_entry e;
	if (tree < 0 || !copy_key(st, &key))
		return -ENOENT;
	fd_limit_lift();
	int fd = entry_read(tree, &key, &e);
	if (!fd)
		fd = e.has_image && e.size == key.size ? image_open(tree, &e) : -EBADMSG;
	fd_limit_drop();
	if (fd >= 0)
		memcpy(sha256, e.image, STORE_HASH);
	return fd;
}

static bool text_load(const struct store_entry *e, struct text *t)
{
	struct image m;
	memset(t, 0, sizeof *t);
	t->ready = 1;
	t->rseq = e->rseq;
	t->nr_found = e->nr_found;
	t->nr_cpuid = e->nr_cpuid;
	t->key = e->key;
	if (!e->has_image)
		return true;
	int fd = image_open(tree, e);
	if (fd < 0)
		return false;
	bool ok = read_full(fd, &m, sizeof m, 0) && image_sound(&m, e);
	close(fd);
	if (!ok)
		return false;
	t->nr_sites = m.nr_sites;
	t->at = PAGE;
	t->tramp_size = m.tramp_size;
	t->tramp_from = m.tramp_from;
	t->made_for = m.made_for;
	return true;
}

const struct text *store_find(const struct text_key *key)
{
	struct store_entry e;
	if (tree < 0)
		return NULL;
	for (unsigned i = 0; i < nr_stored; i++)
		if (!memcmp(&stored[i]->entry.key, key, sizeof *key))
			return &stored[i]->text;
	if (nr_stored == STORED_MAX)
		return NULL;
	fd_limit_lift();
	bool found = !entry_read(tree, key, &e);
	if (found && (stored[nr_stored] = malloc(sizeof *stored[0]))) {
		found = text_load(&e, &stored[nr_stored]->text);
		stored[nr_stored]->entry = e;
		if (!found)
			free(stored[nr_stored]);
	} else {
		found = false;
	}
	fd_limit_drop();
	return found ? &stored[nr_stored++]->text : NULL;
}

static bool note_has(const struct notes *n, uint32_t nr, const struct text_key *key, const char *path)
{
	for (uint32_t i = 0; i < nr; i++)
		if (n->note[i].off == key->off && n->note[i].len == key->len &&
		    !strncmp(n->note[i].path, path, STORE_PATH))
			return true;
	return false;
}

void store_note(const struct text_key *key, const char *path)
{
	if (!notes || *path != '/' || strlen(path) >= STORE_PATH)
		return;
	uint32_t nr = __atomic_load_n(&notes->nr, __ATOMIC_ACQUIRE);
	if (nr >= NOTES_MAX || note_has(notes, nr, key, path))
		return;
	nr = __atomic_fetch_add(&notes->nr, 1, __ATOMIC_SEQ_CST);
	if (nr >= NOTES_MAX)
		return;
	notes->note[nr].off = key->off;
	notes->note[nr].len = key->len;
	strcpy(notes->note[nr].path, path);
}

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

static int dir_open(int at, const char *name, const char *shown, struct kx_err *err)
{
	struct stat st;
	int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | (at == AT_FDCWD ? 0 : O_NOFOLLOW));
	if (fd < 0 && errno == ENOENT)
		return -ENOENT;
	if (fd < 0 || fstat(fd, &st)) {
		int e = errno;
		close(fd);
		return kx_err_set(err, e, "%s/%s: %s (remove it, or set KYLINX_STORE)", shown,
				  at == AT_FDCWD ? "" : name, strerror(e));
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
		return kx_err_set(err, errno, "%s/%s: %s (make room, or set KYLINX_STORE)", shown, name,
				  strerror(errno));
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

/* Write a file whole, or not at all. As the writer. */
static int file_put(struct store *s, const char *name, const void *data, size_t len)
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
	image_name(hash, name);
	int fd = openat(s->dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return -errno;
	int r = hash_file(fd, is);
	close(fd);
	return r ? r : memcmp(is, hash, sizeof is) ? -EBADMSG : 0;
}

/* ---- preparation ------------------------------------------------------------------------------------------------ */

/* The image of file[0..size), NULL = nothing to patch, or not possible (*r). */
static uint8_t *image_make(const uint8_t *file, const struct text_key *key, struct store_entry *e, size_t *len, int *r)
{
	struct patch_hints hints = { 0 };
	struct patch_plan plan = { 0 };
	const uint8_t *text = file + key->off;
	uint64_t gva = MADE_AT + key->off, bias = 0;
	uint8_t *p = NULL;
	e->rseq = rseq_text(text, key->len);
	if (!memmem(text, key->len, "\x0f\x05", 2) && !memmem(text, key->len, "\x0f\xa2", 2))
		return NULL;
	if (gmem_load_bias(file, key->size, key->off, gva, &bias) == 0)
		patch_hints_from_elf(file, key->size, bias, &hints);
	*r = patch_scan(text, key->len, gva, &hints, &plan);
	patch_hints_free(&hints);
	e->nr_found = plan.found;
	e->nr_cpuid = plan.cpuid_found;
	if (*r || !plan.n)
		goto out;
	uint64_t tramp_size = PAGES((uint64_t)plan.tramp_bytes), text_size = PAGES(key->len);
	uint64_t tramp = gva - key->off - tramp_size, sites = plan.n * sizeof *plan.sites;
	*len = PAGE + text_size + tramp_size + PAGES(sites);
	*r = -E2BIG;
	if (plan.n > KX_SITES_MAX || *len > ARENA_LIMIT)
		goto out;
	*r = -ENOMEM;
	if (!(p = calloc(1, *len)))
		goto out;
	struct image *m = (struct image *)p;
	*m = (struct image){ .magic = IMAGE_MAGIC,
			     .text_len = key->len,
			     .tramp_size = tramp_size,
			     .made_for = gva,
			     .tramp_from = (int64_t)(tramp - gva),
			     .nr_sites = plan.n };
	sha256(m->source, text, key->len);
	memcpy(p + PAGE, text, key->len);
	memset(p + PAGE + text_size, 0xcc, tramp_size);
	*r = patch_apply(p + PAGE, key->len, gva, &plan, p + PAGE + text_size, tramp, tramp_size);
	memcpy(p + PAGE + text_size + tramp_size, plan.sites, sites);
	if (*r) {
		free(p);
		p = NULL;
	}
out:
	patch_plan_free(&plan);
	return p;
}

static int image_put(struct store *s, struct store_entry *e, const uint8_t *image, size_t len)
{
	char name[80];
	struct stat st;
	int r = 0;
	sha256(e->image, image, len);
	image_name(e->image, name);
	if (store_verify_image(s, e->image))
		r = file_put(s, name, image, len);
	if (!r && fstatat(s->dir, name, &st, AT_SYMLINK_NOFOLLOW))
		r = -errno;
	if (r)
		return r;
	e->has_image = 1;
	e->ino = st.st_ino;
	e->size = (uint64_t)st.st_size;
	e->mtime_ns = ns_of(&st.st_mtim);
	e->ctime_ns = ns_of(&st.st_ctim);
	return 0;
}

/* Prepare from a copy in memory, so that what is looked at and what is stored are the same bytes. */
static int text_store(struct store *s, int fd, const struct text_key *key, const char *path)
{
	struct store_entry e = { .magic = ENTRY_MAGIC, .key = *key };
	struct text_key again;
	struct timespec now;
	char name[128];
	size_t len = 0;
	int r = 0;
	clock_gettime(CLOCK_REALTIME, &now);
	if (key->size > FILE_MAX)
		return -EFBIG;
	if (!s->own && ns_of(&now) - key->ctime_ns < YOUNG_NS)
		return -EBUSY;
	uint8_t *file = mmap(NULL, key->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (file == MAP_FAILED)
		return -errno;
	if (!read_full(fd, file, key->size, 0) || !text_key(fd, key->off, PAGES(key->len), &again) ||
	    memcmp(&again, key, sizeof again))
		r = -EBUSY;
	uint8_t *image = r ? NULL : image_make(file, key, &e, &len, &r);
	munmap(file, key->size);
	if (!r && image)
		r = image_put(s, &e, image, len);
	free(image);
	if (r)
		return r;
	snprintf(e.path, sizeof e.path, "%s", path);
	sha256(e.sum, (const uint8_t *)&e, offsetof(struct store_entry, sum));
	entry_name(key, name);
	return file_put(s, name, &e, sizeof e);
}

static bool have(struct store *s, const struct text_key *key)
{
	struct store_entry e;
	struct stat st;
	char name[80];
	if (entry_read(s->dir, key, &e))
		return false;
	if (!e.has_image)
		return true;
	image_name(e.image, name);
	return !fstatat(s->dir, name, &st, AT_SYMLINK_NOFOLLOW) && image_is(&e, &st);
}

static bool preparing; /* the program's libraries, whose paths have the root's in front */
static size_t root_len;

int store_add(struct store *s, const char *path, uint64_t off, uint64_t len, struct kx_err *err)
{
	struct text_key key;
	struct stat st;
	int r = 0;
	/* Before the open, which has side effects on devices. */
	if (stat(path, &st))
		return kx_err_set(err, errno, "%s: %s (check the path)", path, strerror(errno));
	int fd = S_ISREG(st.st_mode) ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY) : -1;
	if (fd < 0 || off % PAGE || !len || len > TEXT_LEN_MAX || !text_key(fd, off, len, &key)) {
		if (fd >= 0)
			close(fd);
		return kx_err_set(err, EINVAL, "%s: no text that can be stored (give a library)", path);
	}
	if (!have(s, &key)) {
		r = store_lock(s);
		if (!r)
			r = have(s, &key) ? 0 : (r = text_store(s, fd, &key, path)) ? r : 1;
		if (r < 0)
			kx_err_set(err, -r, "%s: %s (%s)", path, strerror(-r),
				   r == -ENOSPC ? "make room in the store's file system, or set KYLINX_STORE"
				   : r == -EAGAIN || r == -EBUSY
					   ? "another start writes, or it has just changed: try again"
					   : "see kylinx help lib");
	}
	close(fd);
	/* So that each start looks whether it is still there. */
	if (r >= 0 && preparing)
		store_note(&key, path + root_len);
	return r;
}

static int64_t pread_fn(void *ctx, void *buf, size_t len, uint64_t off)
{
	ssize_t n = pread(*(int *)ctx, buf, len, (off_t)off);
	return n < 0 ? -errno : n;
}

int store_add_file(struct store *s, const char *path, struct kx_err *err)
{
	struct elf_image *img = malloc(sizeof *img);
	struct stat st;
	int n = 0, r = 0;
	if (!img)
		return kx_err_set(err, ENOMEM, "memory: none left on the host (free some)");
	int fd = stat(path, &st) || !S_ISREG(st.st_mode) ? -1 : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0) {
		free(img);
		return kx_err_set(err, ENOENT, "%s: no regular file that can be read (check the path)", path);
	}
	r = elf_read(pread_fn, &fd, (uint64_t)st.st_size, img, err);
	if (r && err) { /* no program is run here: the status is KylinX's */
		kx_err_wrap(err, path);
		err->exit_code = 0;
	}
	for (unsigned i = 0; !r && i < img->nr_seg; i++) {
		const struct elf_segment *g = &img->seg[i];
		if (!(g->flags & PF_X) || !g->filesz)
			continue;
		uint64_t off = g->off & -PAGE;
		int x = store_add(s, path, off, PAGES(g->off + g->filesz - off), err);
		r = x < 0 ? x : 0;
		n += x > 0;
	}
	close(fd);
	free(img);
	return r ? r : n;
}

/* As the writer. */
static int copy_store(struct store *s, int fd, const struct text_key *key, const char *path, struct kx_err *err)
{
	struct store_entry e = { .magic = ENTRY_MAGIC, .key = *key };
	char name[128], copy[sizeof s->path + 256];
	struct text_key again;
	struct timespec now;
	struct stat st;
	clock_gettime(CLOCK_REALTIME, &now);
	if (ns_of(&now) - key->ctime_ns < YOUNG_NS)
		return -EBUSY;
	uint8_t *file = mmap(NULL, key->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (file == MAP_FAILED)
		return -errno;
	int r = 0;
	if (!read_full(fd, file, key->size, 0) || fstat(fd, &st) || !copy_key(&st, &again) ||
	    memcmp(&again, key, sizeof again))
		r = -EBUSY;
	else if (key->size < SELFMAG || memcmp(file, ELFMAG, SELFMAG))
		r = -EINVAL;
	if (!r)
		r = image_put(s, &e, file, key->size);
	munmap(file, key->size);
	if (r)
		return r;
	/* Its texts before its entry: who finds the copy finds them, too. */
	image_name(e.image, name);
	snprintf(copy, sizeof copy, "%s/" STORE_FORMAT "/%s", s->path, name);
	if (strlen(copy) < STORE_PATH) {
		s->own = true;
		r = store_add_file(s, copy, err);
		s->own = false;
		if (r < 0)
			return r;
	}
	snprintf(e.path, sizeof e.path, "%s", path);
	sha256(e.sum, (const uint8_t *)&e, offsetof(struct store_entry, sum));
	entry_name(key, name);
	return file_put(s, name, &e, sizeof e);
}

int store_add_copy(struct store *s, const char *path, struct kx_err *err)
{
	struct text_key key;
	struct stat st;
	if (stat(path, &st))
		return kx_err_set(err, errno, "%s: %s (check the path)", path, strerror(errno));
	int fd = S_ISREG(st.st_mode) ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY) : -1;
	if (fd < 0 || fstat(fd, &st) || !copy_key(&st, &key)) {
		if (fd >= 0)
			close(fd);
		return kx_err_set(err, EINVAL, "%s: no file that can be stored (give a library)", path);
	}
	int r = 0;
	if (!have(s, &key) && !(r = store_lock(s)) && !have(s, &key))
		r = (r = copy_store(s, fd, &key, path, err)) ? r : 1;
	close(fd);
	return r < 0 ? kx_err_set(err, -r, "%s: %s (%s)", path, strerror(-r),
				  r == -ENOSPC ? "make room in the store's file system, or set KYLINX_STORE"
					       : "it has just changed, or another start writes: try again")
		     : r;
}

/* ---- of a run --------------------------------------------------------------------------------------------------- */

/* The program's notes, made when they are missing: what is mapped here is all of the store that the jail can write. */
static struct notes *notes_map(struct store *s, const char *program)
{
	uint8_t hash[STORE_HASH];
	char name[80] = "notes/";
	struct stat st;
	sha256(hash, (const uint8_t *)program, strlen(program));
	store_hex(hash, name + 6);
	int fd = openat(s->dir, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
	if (fd < 0)
		return NULL;
	/* With room on the disk: a store to a hole there is none for is a SIGBUS. */
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) ||
	    (st.st_blocks * 512 < (off_t)NOTES_SIZE && fallocate(fd, 0, 0, NOTES_SIZE))) {
		int e = errno;
		close(fd);
		if (!st.st_size)
			unlinkat(s->dir, name, 0);
		errno = e;
		return NULL;
	}
	void *p = mmap(NULL, NOTES_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (p == MAP_FAILED)
		return NULL;
	struct notes *n = p;
	if (n->magic != NOTES_MAGIC) {
		n->nr = n->looked = 0;
		n->magic = NOTES_MAGIC;
	}
	return n;
}

static struct stat tree_is;

static const char *env_of(const struct kx_config *cfg, const char *name)
{
	size_t n = strlen(name);
	for (char **e = cfg->envp; e && *e; e++)
		if (!strncmp(*e, name, n) && (*e)[n] == '=')
			return *e + n + 1;
	return NULL;
}

struct prepare {
	struct store *s;
	unsigned stored_now;
	bool stopped;
};

/* Of the store, not of one file: that may be anything by now, and a guest may have noted any. */
static bool takes_nothing(int r) { return r == -ENOSPC || r == -EDQUOT || r == -EROFS || r == -EIO; }

/* What can't be stored now is noted when it is mapped. */
static int prepare_file(void *arg, const char *path)
{
	struct prepare *p = arg;
	struct kx_err err = { 0 };
	int r = store_add_file(p->s, path, &err);
	if (r > 0)
		p->stored_now += (unsigned)r;
	if (takes_nothing(r))
		kx_log(KX_LOG_WARN, "store", "not stored: %s", err.msg);
	else if (r >= 0 || r != -EAGAIN)
		return 0;
	p->stopped = true;
	return 1;
}

void store_begin(const struct kx_config *cfg, const char *program, bool copies)
{
	struct kx_err err = { 0 };
	struct store s;
	char path[PATH_MAX + STORE_PATH];
	unsigned stored_now = 0;
	int r = store_open(&s, true, &err);
	if (r) {
		/* A home that is not there, or somebody else's, is nobody's mistake unless it was asked for. */
		bool asked = getenv("KYLINX_STORE") || (err.code != EACCES && err.code != ENOENT);
		if (err.code)
			kx_log(asked ? KX_LOG_WARN : KX_LOG_INFO, "store", "not used: %s", err.msg);
		return;
	}
	snprintf(program_path, sizeof program_path, "%s", s.path);
	strncat(program_path, "/" STORE_FORMAT, sizeof program_path - strlen(program_path) - 1);
	bool known = !fstat(s.dir, &tree_is);
	if (!known)
		program_path[0] = 0;
	notes = program ? notes_map(&s, program) : NULL;
	if (program && !notes)
		kx_log(KX_LOG_WARN, "store", "%s: %s: nothing new is stored (make room, or set KYLINX_STORE)", s.path,
		       strerror(errno));
	/* Before its first start: the libraries that it is linked with. */
	if (notes && !notes->looked && !copies) {
		struct prepare p = { &s, 0, false };
		preparing = true;
		root_len = cfg->root ? strlen(cfg->root) : 0;
		needed_each(cfg->root, program, env_of(cfg, "LD_LIBRARY_PATH"), prepare_file, &p);
		preparing = false;
		stored_now = p.stored_now;
		notes->looked = !p.stopped;
		r = p.stopped ? -ENOSPC : 0;
	}
	uint32_t nr = notes ? notes->nr : 0;
	for (uint32_t i = 0; i < nr && i < NOTES_MAX && !takes_nothing(r); i++) {
		struct note n = notes->note[i]; /* a copy: hostile monitors write there */
		struct kx_err e = { 0 };
		n.path[sizeof n.path - 1] = 0;
		snprintf(path, sizeof path, "%s%s", cfg->root ? cfg->root : "", n.path);
		r = copies ? store_add_copy(&s, path, &e) : store_add(&s, path, n.off, n.len, &e);
		stored_now += r > 0;
		if (takes_nothing(r))
			kx_log(KX_LOG_WARN, "store", "not stored: %s", e.msg);
	}
	store_stored = stored_now;
	if (stored_now)
		kx_log(KX_LOG_INFO, "store", "prepared %u texts", stored_now);
	store_close(&s);
}

void store_join(int member, int member_proc)
{
	struct stat st;
	struct statvfs fs;
	int dir = program_path[0] ? openat(member_proc, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	DIR *d = dir < 0 ? NULL : fdopendir(dir);
	for (struct dirent *e; d && tree < 0 && (e = readdir(d));) {
		if (fstatat(dirfd(d), e->d_name, &st, 0) || !S_ISDIR(st.st_mode) || st.st_dev != tree_is.st_dev ||
		    st.st_ino != tree_is.st_ino)
			continue;
		int fd = (int)syscall(SYS_pidfd_getfd, member, atoi(e->d_name), 0);
		/* The guest may have it open, too, if its view has it; what is taken is what can't be written through. */
		if (fd >= 0 && !fstat(fd, &st) && st.st_dev == tree_is.st_dev && st.st_ino == tree_is.st_ino &&
		    !fstatvfs(fd, &fs) && fs.f_flag & ST_RDONLY)
			fd_keep(&tree, fd);
		else if (fd >= 0)
			close(fd);
	}
	if (d)
		closedir(d);
}

void store_enter(void)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV |
					       MOUNT_ATTR_NOEXEC };
	struct stat st;
	if (!program_path[0])
		return;
	int fd = (int)syscall(SYS_open_tree, AT_FDCWD, program_path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	if (fd >= 0 && !syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &attr, sizeof attr) && !fstat(fd, &st) &&
	    st.st_dev == tree_is.st_dev && st.st_ino == tree_is.st_ino) {
		fd_keep(&tree, fd);
		return;
	}
	kx_log(KX_LOG_WARN, "store", "%s: %s: not used (set KYLINX_STORE to a directory of yours)", program_path,
	       strerror(errno));
	if (fd >= 0)
		close(fd);
}

/* ---- upkeep ----------------------------------------------------------------------------------------------------- */

static DIR *part_open(int at, const char *name)
{
	int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	if (!d && fd >= 0)
		close(fd);
	return d;
}

int store_each(struct store *s, int (*fn)(const struct store_entry *e, bool sound, void *arg), void *arg)
{
	struct dirent *d;
	int r = 0;
	DIR *dir = part_open(s->dir, "index");
	if (!dir)
		return -errno;
	while (!r && (d = readdir(dir))) {
		struct store_entry e = { 0 };
		if (d->d_name[0] == '.')
			continue;
		int fd = openat(dirfd(dir), d->d_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
		bool sound = fd >= 0 && read_full(fd, &e, sizeof e, 0) && entry_sound(&e);
		if (fd >= 0)
			close(fd);
		if (!sound)
			snprintf(e.path, sizeof e.path, "index/%.240s", d->d_name);
		r = fn(&e, sound, arg);
	}
	closedir(dir);
	return r;
}

struct gc {
	struct store *s;
	uint8_t (*used)[STORE_HASH];
	size_t nr, cap;
	int removed, r;
};

static int gc_entry(const struct store_entry *e, bool sound, void *arg)
{
	struct gc *g = arg;
	struct text_key key;
	char name[STORE_PATH];
	if (!sound) {
		g->removed += !unlinkat(g->s->dir, e->path, 0);
		return 0;
	}
	struct stat st;
	int fd = stat(e->path, &st) || !S_ISREG(st.st_mode) ? -1 : open(e->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	bool same = fd >= 0 &&
		    (store_is_copy(e) ? !fstat(fd, &st) && copy_key(&st, &key)
				      : text_key(fd, e->key.off, PAGES(e->key.len), &key)) &&
		    !memcmp(&key, &e->key, sizeof key);
	if (fd >= 0)
		close(fd);
	if (!same || (e->has_image && store_verify_image(g->s, e->image))) {
		entry_name(&e->key, name);
		g->removed += !unlinkat(g->s->dir, name, 0);
		return 0;
	}
	if (!e->has_image)
		return 0;
	if (g->nr == g->cap) {
		size_t cap = g->cap ? 2 * g->cap : 64;
		void *p = realloc(g->used, cap * STORE_HASH);
		if (!p)
			return g->r = -ENOMEM;
		g->used = p;
		g->cap = cap;
	}
	memcpy(g->used[g->nr++], e->image, STORE_HASH);
	return 0;
}

/* A directory of another version's: two levels, no more. */
static int remove_old(int at, const char *name, int depth)
{
	struct dirent *d;
	int n = 0;
	DIR *dir = part_open(at, name);
	if (!dir)
		return 0;
	while ((d = readdir(dir))) {
		if (!strcmp(d->d_name, ".") || !strcmp(d->d_name, ".."))
			continue;
		if (!unlinkat(dirfd(dir), d->d_name, 0))
			n++;
		else if (depth)
			n += remove_old(dirfd(dir), d->d_name, depth - 1);
	}
	closedir(dir);
	unlinkat(at, name, AT_REMOVEDIR);
	return n;
}

int store_gc(struct store *s, struct kx_err *err)
{
	struct gc g = { .s = s };
	struct dirent *d;
	DIR *dir;
	int r = store_lock(s);
	if (r)
		return kx_err_set(err, -r, "%s: %s (another start writes to it: try again)", s->path, strerror(-r));
	g.removed += !unlinkat(s->dir, "new", 0);
	store_each(s, gc_entry, &g);
	if (!g.r && (dir = part_open(s->dir, "images"))) {
		while ((d = readdir(dir))) {
			char hex[2 * STORE_HASH + 1] = "";
			size_t i = 0;
			for (; i < g.nr && strcmp(hex, d->d_name); i++)
				store_hex(g.used[i], hex);
			if (d->d_name[0] != '.' && strcmp(hex, d->d_name))
				g.removed += !unlinkat(dirfd(dir), d->d_name, 0);
		}
		closedir(dir);
	}
	free(g.used);
	if (g.r)
		return kx_err_set(err, -g.r, "memory: none left on the host (free some)");
	if ((dir = part_open(s->root, "."))) {
		while ((d = readdir(dir)))
			if (!strncmp(d->d_name, "format-", 7) && strcmp(d->d_name, STORE_FORMAT))
				g.removed += remove_old(s->root, d->d_name, 1);
		closedir(dir);
	}
	return g.removed;
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
	int fd = openat(s->root, "history", O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	if (!ends_in_a_line(fd))
		line = text;
	ssize_t n = write(fd, line, strlen(line)); /* one write: lines of several writers don't mix */
	int r = n < 0 ? -errno : (size_t)n == strlen(line) ? 0 : -EIO;
	close(fd);
	return r;
}
