/* SPDX-License-Identifier: Apache-2.0 */
#include "openahead.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include "../../util/together.h"
#include "../../abi/kx_openahead.h"
#include "batch.h"
#include "keeper.h"

#define LARGEFILE 0100000 /* the kernel's; musl says it */
#define HOT 2             /* times that it was opened by a call */
/* Calls at whose end it is opened without being asked for: more than a request makes without this. */
#define IDLE_MAX 16

static struct file {
	char path[KX_OPENAHEAD_PATH];
	int flags;
	unsigned seen, idle; /* seen 0: free */
	uint32_t uses;
	int fd; /* -1 = not open */
} files[KX_OPENAHEAD_FILES] = { [0 ... KX_OPENAHEAD_FILES - 1] = { .fd = -1 } };
static KX_TOGETHER bool on;        /* the guest has been told of some */
static KX_TOGETHER bool some_seen; /* since the start */

static struct kx_openahead *shared(void) { return gva_ptr(KX_OPENAHEAD_BASE); }

static bool has_posix_lock(int fd)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	return HC6(SYS_fcntl, fd, F_OFD_GETLK, &l, 0, 0, 0) || l.l_type != F_UNLCK;
}

/* A regular file that the family can't write to. */
static bool is_fixed(int fd, struct stat *st)
{
	struct statvfs fs;
	return !fstat(fd, st) && S_ISREG(st->st_mode) && !fstatvfs(fd, &fs) && fs.f_flag & ST_RDONLY;
}

void openahead_seen(struct hcall *c, int i, int fd)
{
	const char *path = (const char *)c->host[i];
	int flags = (int)c->arg[i + 1];
	struct file *f = NULL, *worst = files;
	struct stat st;
	size_t len;
	if (fd < 0 || !batch_is_mapped() || pvm.nr_threads != 1 || is_vfork_child() || path[0] != '/' ||
	    flags & ~(O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW | LARGEFILE) ||
	    (len = strnlen(path, KX_OPENAHEAD_PATH)) == KX_OPENAHEAD_PATH)
		return;
	for (struct file *e = files; e < files + KX_OPENAHEAD_FILES; e++) {
		if (e->seen && e->flags == flags && !strcmp(e->path, path))
			f = e;
		else if (!e->seen || (worst->seen && e->idle > worst->idle))
			worst = e;
	}
	/* A descriptor less of a file gives up the process's locks on it (fcntl(2)): ours would. */
	if (!is_fixed(fd, &st) || has_posix_lock(fd)) {
		if (f)
			f->seen = 0;
		return;
	}
	if (!f) {
		f = worst;
		*f = (struct file){ .flags = flags, .fd = -1, .uses = shared()->file[f - files].uses };
		memcpy(f->path, path, len);
	}
	f->seen++;
	f->idle = 0;
	some_seen = true;
}

int openahead_fd(int file) { return file >= 0 && file < KX_OPENAHEAD_FILES ? files[file].fd : -1; }

static void file_close(struct file *f)
{
	if (f->fd >= 0)
		HC6(SYS_close, f->fd, 0, 0, 0, 0, 0);
	f->fd = -1;
}

/* f is open as fd, for the guest. */
static void file_give(struct file *f, int fd, uint64_t pos)
{
	int flags = f->flags & O_CLOEXEC;
	if (fd == f->fd) {
		f->fd = -1;
		if (!flags)
			HC6(SYS_fcntl, fd, F_SETFD, 0, 0, 0, 0);
	} else {
		if (!fd_is_guest(fd) || HC6(SYS_fcntl, fd, F_GETFD, 0, 0, 0, 0) != -EBADF ||
		    HC6(SYS_dup3, f->fd, fd, flags, 0, 0, 0) != fd)
			pvm_panic("LibOS: a file opened ahead has no descriptor");
		file_close(f);
	}
	if (!(f->flags & O_NONBLOCK))
		HC6(SYS_fcntl, fd, F_SETFL, f->flags & LARGEFILE, 0, 0, 0);
	if (pos)
		HC6(SYS_lseek, fd, pos, SEEK_SET, 0, 0, 0);
}

void openahead_settle(void)
{
	if (!on)
		return;
	struct kx_openahead *a = shared();
	uint32_t n = __atomic_load_n(&a->open, __ATOMIC_RELAXED);
	int fd = __atomic_load_n(&a->fd, __ATOMIC_RELAXED);
	on = false;
	a->on = a->open = 0;
	if (n > KX_OPENAHEAD_FILES || (n && files[n - 1].fd < 0))
		pvm_panic("LibOS: a file opened ahead is none");
	for (uint32_t i = 0; i < KX_OPENAHEAD_FILES; i++)
		if (i + 1 != n)
			file_close(&files[i]);
	if (n)
		file_give(&files[n - 1], fd, __atomic_load_n(&a->pos, __ATOMIC_RELAXED));
}

static bool file_open(struct file *f, struct kx_openahead_file *g)
{
	struct stat st;
	long fd = HC6(SYS_open, f->path, f->flags | O_NONBLOCK | O_CLOEXEC, 0, 0, 0, 0);
	if (fd < 0)
		return false;
	f->fd = (int)fd;
	if (!fd_is_guest(f->fd + 256) || !is_fixed(f->fd, &st)) { /* near the limit: as it is told by a call */
		file_close(f);
		return false;
	}
	_Static_assert(sizeof st == sizeof g->stat, "x86-64's");
	memcpy(g->stat, &st, sizeof st);
	memcpy(g->path, f->path, sizeof f->path);
	g->path_len = (uint32_t)strlen(f->path);
	g->flags = (uint32_t)f->flags;
	g->size = (uint64_t)st.st_size;
	uint8_t *data = (uint8_t *)shared() + KX_OPENAHEAD_DATA + (f - files) * KX_OPENAHEAD_DATA_SIZE;
	/* One byte more, to see that it has not grown. */
	g->whole = g->wants && st.st_size < KX_OPENAHEAD_DATA_SIZE &&
		   HC6(SYS_pread64, f->fd, data, st.st_size + 1, 0, 0, 0) == st.st_size;
	return true;
}

void openahead_offer(const struct hcall *c)
{
	struct kx_openahead *a = shared();
	bool any = false;
	if (!some_seen)
		return;
	if (c->nr == SYS_fcntl && ((int)c->arg[1] == F_SETLK || (int)c->arg[1] == F_SETLKW))
		for (int i = 0; i < KX_OPENAHEAD_FILES; i++)
			files[i].seen = 0;
	for (int i = 0; i < KX_OPENAHEAD_FILES; i++) {
		struct file *f = &files[i];
		if (f->seen < HOT)
			continue;
		f->idle = f->uses == a->file[i].uses ? f->idle + 1 : 0;
		f->uses = a->file[i].uses;
		if (f->idle > IDLE_MAX || pvm.nr_threads != 1 || pvm.shared->futex_outside) {
			f->seen = 0;
			continue;
		}
		a->file[i].ready = file_open(f, &a->file[i]);
		if (!a->file[i].ready)
			continue;
		any = true;
		batch_number(f->fd);
	}
	if (!any)
		return;
	for (int i = 0; i < KX_OPENAHEAD_FILES; i++)
		if (files[i].fd < 0)
			a->file[i].ready = 0;
	on = true;
	a->open = 0;
	__atomic_store_n(&a->on, 1, __ATOMIC_RELEASE);
}

void openahead_stale(void)
{
	if (__atomic_load_n(&on, __ATOMIC_RELAXED))
		__atomic_store_n(&shared()->on, 0, __ATOMIC_RELEASE);
}

void openahead_fork_child(void)
{
	for (int i = 0; i < KX_OPENAHEAD_FILES; i++)
		files[i] = (struct file){ .fd = -1 };
	on = false;
}
