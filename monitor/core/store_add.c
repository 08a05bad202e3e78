/* SPDX-License-Identifier: Apache-2.0 */
/* Preparation: what is put into the store. */
#include "store_priv.h"
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include "../../util/sha256.h"
#include "../arch/x86_64/patch.h"
#include "elf.h"
#include "gmem.h"
#include "rseq.h"

#define FILE_MAX (512ull << 20) /* larger files are left alone */
#define YOUNG_NS 1000000000ll   /* times of change have a grain: a file can change twice within one */
#define MADE_AT (16ull << 30)   /* where images are made for: any place does */

/*
 * Is file, of size bytes, a program or library (no core file, nor what isn't linked yet) of which [off, off+len) is code by its
 * headers? len 0: of which anything is.
 */
static bool is_code(const uint8_t *file, uint64_t size, uint64_t off, uint64_t len)
{
	Elf64_Ehdr eh;
	if (size < sizeof eh)
		return false;
	memcpy(&eh, file, sizeof eh);
	if (memcmp(eh.e_ident, ELFMAG, SELFMAG) || eh.e_ident[EI_CLASS] != ELFCLASS64 ||
	    (eh.e_type != ET_EXEC && eh.e_type != ET_DYN) || eh.e_phentsize != sizeof(Elf64_Phdr) ||
	    eh.e_phoff > size || eh.e_phnum > (size - eh.e_phoff) / sizeof(Elf64_Phdr))
		return false;
	for (unsigned i = 0; i < eh.e_phnum; i++) {
		Elf64_Phdr ph;
		memcpy(&ph, file + eh.e_phoff + i * sizeof ph, sizeof ph);
		if (ph.p_type != PT_LOAD || !(ph.p_flags & PF_X) || !ph.p_filesz || ph.p_offset > size ||
		    ph.p_filesz > size - ph.p_offset)
			continue;
		if (!len || (off >= (ph.p_offset & -PAGE) && off + len <= PAGES(ph.p_offset + ph.p_filesz)))
			return true;
	}
	return false;
}

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
	store_image_name(e->image, name);
	if (store_verify_image(s, e->image))
		r = store_put(s, name, image, len);
	if (!r && fstatat(s->dir, name, &st, AT_SYMLINK_NOFOLLOW))
		r = -errno;
	if (r)
		return r;
	e->has_image = 1;
	e->ino = st.st_ino;
	e->size = (uint64_t)st.st_size;
	e->mtime_ns = store_ns(&st.st_mtim);
	e->ctime_ns = store_ns(&st.st_ctim);
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
	if (!s->own && store_ns(&now) - key->ctime_ns < YOUNG_NS)
		return -EBUSY;
	uint8_t *file = mmap(NULL, key->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (file == MAP_FAILED)
		return -errno;
	if (!store_read_full(fd, file, key->size, 0) || !text_key(fd, key->off, PAGES(key->len), &again) ||
	    memcmp(&again, key, sizeof again))
		r = -EBUSY;
	uint8_t *image = r ? NULL : image_make(file, key, &e, &len, &r);
	if (image && s->hints &&
	    !is_code(file, key->size, key->off, key->len)) /* of it nothing becomes readable in the jail */
		r = -EINVAL;
	munmap(file, key->size);
	if (!r && image)
		r = image_put(s, &e, image, len);
	free(image);
	if (r)
		return r;
	snprintf(e.path, sizeof e.path, "%s", path);
	e.sum = store_sum(0, &e, offsetof(struct store_entry, sum));
	store_entry_name(key, name);
	return store_put(s, name, &e, sizeof e);
}

static bool have(struct store *s, const struct text_key *key)
{
	struct store_entry e;
	struct stat st;
	char name[80];
	if (store_entry_read(s->dir, key, &e))
		return false;
	if (!e.has_image)
		return true;
	store_image_name(e.image, name);
	return !fstatat(s->dir, name, &st, AT_SYMLINK_NOFOLLOW) && store_image_is(&e, &st);
}

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
	if (r >= 0 && s->preparing)
		store_note(&key, path + s->root_len);
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
	if (store_ns(&now) - key->ctime_ns < YOUNG_NS)
		return -EBUSY;
	uint8_t *file = mmap(NULL, key->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (file == MAP_FAILED)
		return -errno;
	int r = 0;
	if (!store_read_full(fd, file, key->size, 0) || fstat(fd, &st) || !store_copy_key(&st, &again) ||
	    memcmp(&again, key, sizeof again))
		r = -EBUSY;
	else if (!is_code(file, key->size, 0, 0))
		r = -EINVAL;
	if (!r)
		r = image_put(s, &e, file, key->size);
	munmap(file, key->size);
	if (r)
		return r;
	/* Its texts before its entry: who finds the copy finds them, too. */
	store_image_name(e.image, name);
	snprintf(copy, sizeof copy, "%s/%s/%s", s->path, store_format, name);
	if (strlen(copy) < STORE_PATH) {
		s->own = true;
		r = store_add_file(s, copy, err);
		s->own = false;
		if (r < 0)
			return r;
	}
	snprintf(e.path, sizeof e.path, "%s", path);
	e.sum = store_sum(0, &e, offsetof(struct store_entry, sum));
	store_entry_name(key, name);
	return store_put(s, name, &e, sizeof e);
}

int store_add_copy(struct store *s, const char *path, struct kx_err *err)
{
	struct text_key key;
	struct stat st;
	if (stat(path, &st))
		return kx_err_set(err, errno, "%s: %s (check the path)", path, strerror(errno));
	int fd = S_ISREG(st.st_mode) ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY) : -1;
	if (fd < 0 || fstat(fd, &st) || !store_copy_key(&st, &key)) {
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
