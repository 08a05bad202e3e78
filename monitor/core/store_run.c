/* SPDX-License-Identifier: Apache-2.0 */
/* The store of a run: what is taken from it in the jail, and what is prepared before. */
#include "store_priv.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/mount.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../../util/dirs.h"
#include "../../util/log.h"
#include "../../util/sha256.h"
#include "../arch/x86_64/patch.h"
#include "needed.h"

#define STORED_MAX 256
#define NOTES_MAX ((NOTES_SIZE - sizeof(struct notes)) / sizeof(struct note))

static int image_open(int dir, const struct store_entry *e)
{
	char name[80];
	struct stat st;
	store_image_name(e->image, name);
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return -errno;
	if (!fstat(fd, &st) && store_image_is(e, &st))
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

int store_copy_open(const struct stat *st, uint8_t sha256[STORE_HASH])
{
	struct text_key key;
	struct store_entry e;
	if (tree < 0 || !store_copy_key(st, &key))
		return -ENOENT;
	fd_limit_lift();
	int fd = store_entry_read(tree, &key, &e);
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
	bool ok = store_read_full(fd, &m, sizeof m, 0) && image_sound(&m, e);
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
	/* Without a number for it: beyond the program's limit. */
	int r = store_entry_read(tree, key, &e);
	const bool beyond = r == -EMFILE;
	if (beyond) {
		fd_limit_lift();
		r = store_entry_read(tree, key, &e);
	}
	bool found = !r;
	if (found && (stored[nr_stored] = malloc(sizeof *stored[0]))) {
		found = text_load(&e, &stored[nr_stored]->text);
		stored[nr_stored]->entry = e;
		if (!found)
			free(stored[nr_stored]);
	} else {
		found = false;
	}
	if (beyond)
		fd_limit_drop();
	return found ? &stored[nr_stored++]->text : NULL;
}

static struct note *note_find(uint32_t nr, const struct text_key *key, const char *path)
{
	for (uint32_t i = 0; i < nr; i++)
		if (notes->note[i].off == key->off && notes->note[i].len == key->len &&
		    !strncmp(notes->note[i].path, path, STORE_PATH))
			return &notes->note[i];
	return NULL;
}

void store_note(const struct text_key *key, const char *path)
{
	if (!notes || *path != '/' || strlen(path) >= STORE_PATH)
		return;
	uint32_t nr = __atomic_load_n(&notes->nr, __ATOMIC_ACQUIRE);
	struct note *n = note_find(nr < NOTES_MAX ? nr : NOTES_MAX, key, path);
	if (n)
		n->sum = 0; /* it was not found */
	if (n || nr >= NOTES_MAX)
		return;
	nr = __atomic_fetch_add(&notes->nr, 1, __ATOMIC_SEQ_CST);
	if (nr >= NOTES_MAX)
		return;
	notes->note[nr].off = key->off;
	notes->note[nr].len = key->len;
	notes->note[nr].sum = 0;
	strcpy(notes->note[nr].path, path);
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
		memset(n->program, 0, sizeof n->program);
		if (strlen(program) < sizeof n->program)
			strcpy(n->program, program);
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

static uint64_t mix(uint64_t sum, const struct stat *st)
{
	const uint64_t all[] = { st->st_mode,
				 st->st_dev,
				 st->st_ino,
				 (uint64_t)st->st_size,
				 (uint64_t)store_ns(&st->st_mtim),
				 (uint64_t)store_ns(&st->st_ctim) };
	return store_sum(sum, all, sizeof all);
}

/* What is noted, as it is now: of the file at path, its entry and n's image. 0: of one there is none. */
static uint64_t note_sum(const struct store *s, const char *path, const struct note *n, struct text_key *key)
{
	static const uint8_t none[STORE_HASH];
	char name[128];
	struct stat st;
	if (stat(path, &st) || n->off % PAGE || !n->len || !text_key_of(&st, n->off, n->len, key))
		return 0;
	uint64_t sum = mix(1, &st);
	store_entry_name(key, name);
	if (fstatat(s->dir, name, &st, AT_SYMLINK_NOFOLLOW))
		return 0;
	sum = mix(sum, &st);
	if (memcmp(n->image, none, sizeof none)) {
		store_image_name(n->image, name);
		if (fstatat(s->dir, name, &st, AT_SYMLINK_NOFOLLOW))
			return 0;
		sum = mix(sum, &st);
	}
	return sum | 1;
}

/* So that the next start need not open and hash what has not changed since. */
static void note_stored(const struct store *s, const char *path, const struct note *n, struct note *at)
{
	struct note is = *n;
	struct text_key key;
	struct store_entry e;
	memset(is.image, 0, sizeof is.image);
	if (!note_sum(s, path, &is, &key) || store_entry_read(s->dir, &key, &e))
		return;
	if (e.has_image)
		memcpy(is.image, e.image, sizeof is.image);
	memcpy(at->image, is.image, sizeof at->image);
	at->sum = note_sum(s, path, &is, &key);
}

/* 1: it is stored now; 0: it was there. */
static int note_prepare(struct store *s, const char *path, const struct note *n, struct note *at, struct kx_err *err)
{
	struct text_key key;
	if (n->sum && n->sum == note_sum(s, path, n, &key))
		return 0;
	int r = store_add(s, path, n->off, n->len, err);
	if (r >= 0)
		note_stored(s, path, n, at);
	return r;
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
	snprintf(program_path, sizeof program_path, "%.4000s/%.64s", s.path, store_format);
	store_tidy(&s);
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
		s.preparing = true;
		s.root_len = cfg->root ? strlen(cfg->root) : 0;
		needed_each(cfg->root, program, env_of(cfg, "LD_LIBRARY_PATH"), prepare_file, &p);
		s.preparing = false;
		stored_now = p.stored_now;
		notes->looked = !p.stopped;
		r = p.stopped ? -ENOSPC : 0;
	}
	s.hints = true;
	uint32_t nr = notes ? notes->nr : 0;
	for (uint32_t i = 0; i < nr && i < NOTES_MAX && !takes_nothing(r); i++) {
		struct note n = notes->note[i]; /* a copy: hostile monitors write there */
		struct kx_err e = { 0 };
		n.path[sizeof n.path - 1] = 0;
		snprintf(path, sizeof path, "%s%s", cfg->root ? cfg->root : "", n.path);
		r = copies ? store_add_copy(&s, path, &e) : note_prepare(&s, path, &n, &notes->note[i], &e);
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
	DIR *d = program_path[0] ? dir_open_at(member_proc, "fd", 0) : NULL;
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
