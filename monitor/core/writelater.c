/* SPDX-License-Identifier: Apache-2.0 */
#include "writelater.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include "../../util/log.h"
#include "../../util/together.h"
#include "keeper.h"
#include "maps.h"
#include "sizes.h"

#define XFS_MAGIC 0x58465342
#define OFTEN 4                  /* writes by calls until they are queued */
#define IDLE_MAX 64              /* calls of a thread until a file that it does not write to is forgotten */
#define FREE_MIN (256ull << 20)  /* bytes that the file system must have left */
#define SIZE_MARGIN (1ull << 20) /* ... and the limit of sizes */

/* A file that a thread writes to. */
struct file {
	int fd; /* -1 = none */
	unsigned seen, idle;
	uint32_t uses;
	dev_t dev;
	ino_t ino;
};

/* What the file system would not take. */
struct kept {
	struct kept *next;
	int fd, err;
	uint32_t len, done;
	uint8_t data[];
};

static struct file files[KX_BATCH_CTXS][KX_BATCH_WRITES];
static KX_TOGETHER bool some_seen; /* since the start */
static struct kept *kept;          /* in order */

static struct kx_bwrite *shared(int ctx)
{
	return (struct kx_bwrite *)gva_ptr(KX_BATCH_BASE + KX_BATCH_CTX + (uint64_t)ctx * KX_BATCH_CTX +
					   KX_BATCH_WRITES_AT);
}

static void forget(int ctx, int i)
{
	shared(ctx)[i].fd = -1;
	files[ctx][i].fd = -1;
	files[ctx][i].seen = 0;
}

void writelater_reset(int ctx)
{
	for (int i = 0; i < KX_BATCH_WRITES; i++)
		forget(ctx, i);
}

static void forget_all(void)
{
	for (int ctx = 0; ctx < KX_BATCH_CTXS; ctx++)
		for (int i = 0; i < KX_BATCH_WRITES; i++)
			if (files[ctx][i].seen)
				forget(ctx, i);
}

/* Through such a mapping the program sees its writes without a call. */
struct wanted {
	char dev[16];
	uint64_t ino;
	bool found;
};

static bool is_other(const struct maps_line *l, void *arg)
{
	struct wanted *w = arg;
	w->found = l->perm[3] == 's' && l->ino == w->ino && !strcmp(l->dev, w->dev);
	return !w->found;
}

static bool is_mapped_shared(const struct stat *st)
{
	struct wanted w = { .ino = st->st_ino };
	snprintf(w.dev, sizeof w.dev, "%02x:%02x", major(st->st_dev), minor(st->st_dev));
	return !maps_each(is_other, &w) || w.found;
}

static bool is_local(const struct statfs *fs)
{
	return fs->f_type == EXT4_SUPER_MAGIC || fs->f_type == XFS_MAGIC || fs->f_type == TMPFS_MAGIC ||
	       fs->f_type == OVERLAYFS_SUPER_MAGIC || fs->f_type == F2FS_SUPER_MAGIC;
}

/* May it be written to so, as it is now? */
static bool fits(int fd, struct stat *st)
{
	struct statfs fs;
	struct rlimit limit;
	long fl = HC6(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0), pos;
	if (fl < 0 || (fl & O_ACCMODE) == O_RDONLY || fl & (O_PATH | O_DIRECT | O_SYNC | O_DSYNC) || fstat(fd, st) ||
	    !S_ISREG(st->st_mode) || HC6(SYS_fstatfs, fd, &fs, 0, 0, 0, 0) || !is_local(&fs) ||
	    fs.f_bavail < FREE_MIN / (uint64_t)fs.f_bsize || getrlimit(RLIMIT_FSIZE, &limit))
		return false;
	if (limit.rlim_cur == RLIM_INFINITY)
		return true;
	pos = fl & O_APPEND ? 0 : HC6(SYS_lseek, fd, 0, SEEK_CUR, 0, 0, 0);
	return pos >= 0 && (uint64_t)pos + SIZE_MARGIN < limit.rlim_cur &&
	       (uint64_t)st->st_size + SIZE_MARGIN < limit.rlim_cur;
}

void writelater_seen(int ctx, int fd, int64_t n)
{
	struct file *f = NULL, *worst = files[ctx];
	struct stat st;
	if (n <= 0 || fstat(fd, &st) || !S_ISREG(st.st_mode))
		return;
	for (struct file *e = files[ctx]; e < files[ctx] + KX_BATCH_WRITES; e++) {
		if (e->seen && e->fd == fd && e->dev == st.st_dev && e->ino == st.st_ino)
			f = e;
		else if (!e->seen || (worst->seen && e->idle > worst->idle))
			worst = e;
	}
	some_seen = true;
	if (!f) {
		f = worst;
		forget(ctx, (int)(f - files[ctx]));
		*f = (struct file){
			.fd = fd, .dev = st.st_dev, .ino = st.st_ino, .uses = shared(ctx)[f - files[ctx]].uses
		};
	}
	if (++f->seen == OFTEN && is_mapped_shared(&st))
		f->seen = 0;
}

static struct kept *kept_of(int fd)
{
	struct kept *k = kept;
	while (k && k->fd != fd)
		k = k->next;
	return k;
}

void writelater_look(int ctx, uint64_t calls)
{
	if (!some_seen)
		return;
	for (int i = 0; i < KX_BATCH_WRITES; i++) {
		struct file *f = &files[ctx][i];
		struct kx_bwrite *g = &shared(ctx)[i];
		struct stat st;
		if (!f->seen)
			continue;
		f->idle = f->uses == g->uses ? f->idle + 1 : 0;
		f->uses = g->uses;
		if (f->seen < OFTEN)
			continue;
		if (f->idle > IDLE_MAX || !fits(f->fd, &st) || st.st_dev != f->dev || st.st_ino != f->ino ||
		    kept_of(f->fd)) {
			forget(ctx, i);
			continue;
		}
		g->calls = calls;
		__atomic_store_n(&g->fd, f->fd, __ATOMIC_SEQ_CST);
	}
}

static void keep(int fd, const uint8_t *data, uint32_t len, int err)
{
	struct kept *k = malloc(sizeof *k + len), **at = &kept;
	if (!k)
		pvm_panic("no memory for what a file system has not taken");
	*k = (struct kept){ .fd = fd, .err = err, .len = len };
	memcpy(k->data, data, len);
	while (*at)
		at = &(*at)->next;
	*at = k;
}

bool writelater_record(int ctx, int fd, const uint8_t *data, uint32_t len)
{
	bool known = false;
	struct stat st;
	for (int i = 0; i < KX_BATCH_WRITES; i++)
		known |= files[ctx][i].seen >= OFTEN && files[ctx][i].fd == fd;
	if (!known)
		return false;
	if (fstat(fd, &st) || !S_ISREG(st.st_mode))
		return true; /* closed by another thread at the same moment */
	sizes_begin();
	long n = kept_of(fd) ? -EAGAIN : HC6(SYS_write, fd, data, len, 0, 0, 0);
	sizes_after();
	uint32_t done = n > 0 ? (uint32_t)n : 0;
	if (done < len)
		keep(fd, data + done, len - done, n < 0 ? (int)-n : ENOSPC);
	return true;
}

/* Once more: 0, or the error that is still met. */
static int retry(int fd)
{
	for (struct kept **at = &kept, *k; (k = *at);) {
		if (k->fd != fd) {
			at = &k->next;
			continue;
		}
		sizes_begin();
		long n = HC6(SYS_write, fd, k->data + k->done, k->len - k->done, 0, 0, 0);
		sizes_after();
		k->done += n > 0 ? (uint32_t)n : 0;
		if (k->done < k->len)
			return n < 0 ? (int)-n : k->err == EAGAIN ? ENOSPC : k->err;
		*at = k->next;
		free(k);
	}
	return 0;
}

static void lost(int fd, int err)
{
	uint64_t bytes = 0;
	for (struct kept **at = &kept, *k; (k = *at);) {
		if (k->fd != fd) {
			at = &k->next;
			continue;
		}
		bytes += k->len - k->done;
		*at = k->next;
		free(k);
	}
	kx_log(KX_LOG_WARN, "batch", "descriptor %d: %" PRIu64 " bytes that were written are lost: %s (make room)", fd,
	       bytes, strerror(err));
}

static bool tells_error(uint64_t nr)
{
	return nr == SYS_write || nr == SYS_writev || nr == SYS_pwrite64 || nr == SYS_pwritev || nr == SYS_pwritev2 ||
	       nr == SYS_fsync || nr == SYS_fdatasync || nr == SYS_sync_file_range || nr == SYS_ftruncate;
}

/* Another file may have these numbers soon: it must not get what was kept for them. */
static void closed(unsigned first, unsigned last)
{
	for (struct kept *k = kept, *next; k; k = next) {
		int fd = k->fd, err;
		next = k->next;
		if ((unsigned)fd < first || (unsigned)fd > last)
			continue;
		if ((err = retry(fd)))
			lost(fd, err);
		next = kept; /* none of fd's is left */
	}
}

bool writelater_enter(const struct hcall *c, int64_t *r)
{
	if (c->nr == SYS_mmap && (c->arg[3] & MAP_TYPE) != MAP_PRIVATE && !(c->arg[3] & MAP_ANONYMOUS))
		forget_all();
	if (!kept)
		return false;
	if (hcall_closes_range(c))
		closed((unsigned)c->arg[0], (unsigned)c->arg[1]);
	int fd = (int)c->arg[0], err;
	if (c->nr == SYS_dup2 || c->nr == SYS_dup3)
		fd = (int)c->arg[1];
	if (!kept_of(fd) || !c->row || (c->row->arg[0].kind != KX_A_FD && c->nr != SYS_close) || !(err = retry(fd)))
		return false;
	if (c->nr == SYS_close || c->nr == SYS_dup2 || c->nr == SYS_dup3)
		lost(fd, err);
	*r = -err;
	return tells_error(c->nr);
}

void writelater_fork_child(void)
{
	while (kept) {
		struct kept *k = kept;
		kept = k->next;
		free(k);
	}
	memset(files, 0, sizeof files);
}

void writelater_end(void)
{
	while (kept) {
		int fd = kept->fd, err = retry(fd);
		if (err)
			lost(fd, err);
	}
}
