/* SPDX-License-Identifier: Apache-2.0 */
#include "text.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "admit.h"
#include "fsize.h"
#include "store.h"

#define PAGE 4096ull
#define PAGES(n) (((n) + PAGE - 1) & -PAGE)
#define ARENA_SIZE (256ull << 20)
#define INDEX_SIZE (128ull << 10)

struct index {
	uint64_t next;    /* first unused byte of the memfd */
	uint32_t nr, pad; /* entries taken, ready or not; may exceed the room */
	struct text text[];
};
#define INDEX_MAX ((INDEX_SIZE - sizeof(struct index)) / sizeof(struct text))

static struct index *ix;
static int arena = -1, arena_ro = -1;

int text_fd(void) { return arena; }
int text_fd_ro(void) { return arena_ro; }

static int text_make(void)
{
	char name[32];
	struct fsize limit;
	int fd = memfd_create("kylinx-texts", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
	int ro = open(name, O_RDONLY | O_CLOEXEC);
	fsize_lift(&limit);
	bool ok = ro >= 0 && !ftruncate(fd, ARENA_SIZE) && !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
	fsize_drop(&limit);
	if (!ok) {
		int e = errno;
		close(fd);
		close(ro);
		return -e;
	}
	int r = fd_keep(&arena, fd);
	if (!r)
		r = fd_keep(&arena_ro, ro);
	return r;
}

int text_init(int fd, int fd_ro)
{
	int r = 0;
	if (fd < 0) {
		r = text_make();
	} else {
		fd_keep(&arena, fd);
		fd_keep(&arena_ro, fd_ro);
	}
	if (r)
		return r;
	ix = mmap(NULL, INDEX_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, arena, 0);
	if (ix == MAP_FAILED) {
		ix = NULL;
		return -errno;
	}
	uint64_t none = 0;
	__atomic_compare_exchange_n(&ix->next, &none, INDEX_SIZE, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	return 0;
}

static int64_t nanoseconds(const struct timespec *t) { return t->tv_sec * 1000000000ll + t->tv_nsec; }

bool text_key_of(const struct stat *st, uint64_t off, uint64_t len, struct text_key *key)
{
	if (!S_ISREG(st->st_mode) || st->st_size <= 0 || (uint64_t)st->st_size <= off || len > TEXT_LEN_MAX ||
	    PAGES((uint64_t)st->st_size) - off < PAGES(len))
		return false;
	memset(key, 0, sizeof *key);
	key->dev = st->st_dev;
	key->ino = st->st_ino;
	key->size = st->st_size;
	key->off = off;
	key->len = len > key->size - off ? key->size - off : len;
	key->mtime_ns = nanoseconds(&st->st_mtim);
	key->ctime_ns = nanoseconds(&st->st_ctim);
	return true;
}

bool text_key(int fd, uint64_t off, uint64_t len, struct text_key *key)
{
	struct stat st;
	return !fstat(fd, &st) && text_key_of(&st, off, len, key);
}

static uint32_t entries(void)
{
	uint32_t n = ix ? __atomic_load_n(&ix->nr, __ATOMIC_ACQUIRE) : 0;
	return n < INDEX_MAX ? n : INDEX_MAX;
}

static uint64_t sites_offset(const struct text *t) { return t->at + PAGES(t->key.len) + t->tramp_size; }

/* An entry is written by a relative's monitor. It is not believed more than it has to be. */
static bool entry_sound(const struct text *t)
{
	if (!t->nr_sites)
		return true;
	return t->nr_sites <= KX_SITES_MAX && !(t->at % PAGE) && t->at >= INDEX_SIZE && t->at < ARENA_SIZE &&
	       t->key.len <= TEXT_LEN_MAX && t->tramp_size < ARENA_SIZE && !(t->tramp_size % PAGE) &&
	       sites_offset(t) + t->nr_sites * sizeof(struct kx_site) <= ARENA_SIZE;
}

const struct text *text_find(const struct text_key *key)
{
	const struct text *s = store_find(key);
	if (s)
		return s;
	for (uint32_t i = 0, n = entries(); i < n; i++) {
		const struct text *t = &ix->text[i];
		if (__atomic_load_n(&t->ready, __ATOMIC_ACQUIRE) && !memcmp(&t->key, key, sizeof *key) &&
		    entry_sound(t))
			return t;
	}
	return NULL;
}

int text_open(const struct text *t) { return store_holds(t) ? store_image_open(t) : arena_ro; }

void text_close(const struct text *t, int fd)
{
	if (fd >= 0 && store_holds(t))
		close(fd);
}

static struct text *entry_take(const struct text_key *key)
{
	if (!ix || entries() >= INDEX_MAX)
		return NULL;
	uint32_t i = __atomic_fetch_add(&ix->nr, 1, __ATOMIC_SEQ_CST);
	if (i >= INDEX_MAX)
		return NULL;
	ix->text[i].key = *key;
	return &ix->text[i];
}

static void path_of(char path[168], int fd)
{
	char name[32];
	if (admit_name(fd, path))
		return;
	snprintf(name, sizeof name, "thread-self/fd/%d", fd); /* the keeper has other descriptors */
	ssize_t n = pvm.proc_fd >= 0 ? readlinkat(pvm.proc_fd, name, path, 167) : -1;
	path[n > 0 ? n : 0] = 0;
}

void text_path(const struct text *t, char path[168], int fd)
{
	if (store_holds(t))
		path_of(path, fd);
	else
		memcpy(path, t->path, 168);
	path[167] = 0;
}

void text_add_none(const struct text_key *key, int fd, const struct patch_plan *plan, bool rseq)
{
	char path[168];
	path_of(path, fd);
	store_note(key, path);
	struct text *t = entry_take(key);
	if (!t)
		return;
	t->rseq = rseq;
	t->nr_found = plan->found;
	t->nr_cpuid = plan->cpuid_found;
	memcpy(t->path, path, sizeof t->path);
	__atomic_store_n(&t->ready, 1, __ATOMIC_RELEASE);
}

void text_note_family(void)
{
	for (uint32_t i = 0, n = entries(); i < n; i++) {
		struct text t = ix->text[i]; /* a copy: relatives write there */
		t.path[sizeof t.path - 1] = 0;
		if (t.ready)
			store_note(&t.key, t.path);
	}
}

static bool read_all(int fd, uint8_t *p, uint64_t len, uint64_t off)
{
	while (len) {
		ssize_t n = pread(fd, p, len, (off_t)off);
		if (n <= 0)
			return false;
		p += n;
		len -= n;
		off += n;
	}
	return true;
}

const struct text *text_add(const struct text_key *key, int fd, uint64_t gva, struct patch_plan *plan, bool rseq,
			    uint64_t tramp, uint64_t tramp_size)
{
	uint64_t text_size = PAGES(key->len), sites_size = plan->n * sizeof *plan->sites;
	uint64_t size = text_size + tramp_size + PAGES(sites_size);
	if (!ix || entries() >= INDEX_MAX)
		return NULL;
	uint64_t at = __atomic_fetch_add(&ix->next, size, __ATOMIC_SEQ_CST);
	if (at >= ARENA_SIZE || size > ARENA_SIZE - at) {
		__atomic_fetch_sub(&ix->next, size, __ATOMIC_SEQ_CST);
		return NULL;
	}
	uint8_t *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, arena, (off_t)at);
	if (p == MAP_FAILED)
		return NULL;
	struct text *t = NULL;
	memset(p + text_size, 0xcc, tramp_size);
	/* The plan was made from these bytes, unless somebody writes to the file just now: then it is not used. */
	struct text_key again;
	if (read_all(fd, p, key->len, key->off) && text_key(fd, key->off, text_size, &again) &&
	    !memcmp(&again, key, sizeof again) &&
	    !patch_apply(p, key->len, gva, plan, p + text_size, tramp, tramp_size) && (t = entry_take(key))) {
		memcpy(p + text_size + tramp_size, plan->sites, sites_size);
		t->nr_sites = plan->n;
		t->rseq = rseq;
		t->nr_found = plan->found;
		t->nr_cpuid = plan->cpuid_found;
		t->at = at;
		t->tramp_size = tramp_size;
		t->tramp_from = (int64_t)(tramp - gva);
		t->made_for = gva;
		path_of(t->path, fd);
		store_note(key, t->path);
	}
	/* What a dead member's list of robust locks can change (robust.h) is not there any more when the text counts. */
	munmap(p, size);
	if (t)
		__atomic_store_n(&t->ready, 1, __ATOMIC_RELEASE);
	return t;
}

struct kx_site *text_sites(const struct text *shared, int fd, uint64_t gva, uint32_t *nr)
{
	const struct text t = *(const volatile struct text *)shared; /* as it is now: relatives write there */
	size_t size = t.nr_sites * sizeof(struct kx_site);
	struct kx_site *s = store_holds(shared) || entry_sound(&t) ? malloc(size + 1) : NULL;
	if (!s || !read_all(fd, (uint8_t *)s, size, sites_offset(&t))) {
		free(s);
		return NULL;
	}
	for (uint32_t i = 0; i < t.nr_sites; i++) {
		s[i].start += gva - t.made_for;
		s[i].tramp += gva - t.made_for;
	}
	*nr = t.nr_sites;
	return s;
}
