/* SPDX-License-Identifier: Apache-2.0 */
#include "../../abi/kx_libfile.h"
#include "../../abi/kx_libnext.h"
#include "ktime.h"
#include "libos.h"

#define NR_read 0
#define NR_close 3
#define NR_fstat 5
#define NR_lseek 8
#define NR_mmap 9
#define NR_mprotect 10
#define NR_munmap 11
#define NR_ioctl 16
#define NR_pread64 17
#define NR_fcntl 72
#define NR_getppid 110
#define NR_openat 257
#define NR_newfstatat 262
#define AT_FDCWD (-100)
#define OPENS_TO_READ 02000000u /* O_RDONLY | O_CLOEXEC */
#define AT_EMPTY_PATH 0x1000
#define F_SETFD 2
#define TCGETS 0x5401
#define SEEK_CUR 1
#define MAP_ANONYMOUS 0x20
#define MAP_DENYWRITE 0x800

static struct kx_libfile *const lib = (struct kx_libfile *)KX_LIBFILE_BASE;
static struct kx_libnext *const next = (struct kx_libnext *)KX_LIBNEXT_BASE;

static bool put_stat(uint64_t at, int64_t *ret)
{
	*ret = 0;
	return user_write(at, lib->stat, sizeof lib->stat) == 0; /* else the monitor's: it knows the error */
}

/* The next of what the monitor has made ahead. */
static bool ahead(const struct kx_frame *f, int64_t *ret)
{
	const struct kx_libop *o = &lib->op[lib->asked];
	if (lib->used != lib->head_read || lib->asked >= lib->nr_ops || lib->asked >= KX_LIBFILE_OPS ||
	    f->orig_rax != o->nr || f->rdi != o->addr || ((f->rsi + 4095) & -4096ul) != o->len ||
	    (uint32_t)f->rdx != o->prot)
		return false;
	if (o->nr == NR_mmap && (((uint32_t)f->r10 & ~MAP_DENYWRITE) != o->flags || f->r9 != o->off ||
				 (!(o->flags & MAP_ANONYMOUS) && (int32_t)f->r8 != lib->fd)))
		return false;
	lib->asked++;
	*ret = (int64_t)o->ret;
	return true;
}

/* What the monitor will do at the next exit. */
static bool later(const struct kx_frame *f, int64_t *ret)
{
	for (unsigned i = 0; i < KX_LIBFILE_LATER; i++) {
		const struct kx_liblater *l = &lib->later[i];
		if (l->addr && l->addr == f->rdi && l->nr == f->orig_rax && l->len == ((f->rsi + 4095) & -4096ul) &&
		    (l->nr == NR_munmap || l->prot == (uint32_t)f->rdx) && !(lib->later_asked >> i & 1)) {
			lib->later_asked |= 1ul << i;
			*ret = 0;
			return true;
		}
	}
	return false;
}

static bool file_call(struct kx_frame *f, int64_t *ret)
{
	uint64_t n = f->rdx < lib->len ? f->rdx : lib->len;
	char c = 1;
	switch (f->orig_rax) {
	case NR_read:
		if ((int32_t)f->rdi != lib->fd || lib->used || !n || (f->rdx > n && lib->len == KX_LIBFILE_HEAD) ||
		    user_write(f->rsi, lib->head, n))
			return false;
		lib->used = (uint32_t)n;
		*ret = (int64_t)n;
		return true;
	case NR_pread64: /* glibc, where the program headers are more than it has read */
		*ret = (int64_t)n;
		return (int32_t)f->rdi == lib->fd && n && f->rdx == n && f->r10 <= lib->len - n &&
		       !user_write(f->rsi, lib->head + f->r10, n);
	case NR_close:
		if ((int32_t)f->rdi != lib->fd)
			return false;
		lib->on &= ~KX_LIBFILE_FILE;
		lib->closed = 1;
		*ret = 0;
		return true;
	case NR_fstat:
		return (int32_t)f->rdi == lib->fd && put_stat(f->rsi, ret);
	case NR_mmap:
	case NR_mprotect:
		return ahead(f, ret);
	case NR_fcntl: /* musl, for kernels that don't know O_CLOEXEC */
		*ret = 0;
		return (int32_t)f->rdi == lib->fd && (uint32_t)f->rsi == F_SETFD && f->rdx == 1;
	case NR_newfstatat:
		return (int32_t)f->rdi == lib->fd && (uint32_t)f->r10 == AT_EMPTY_PATH && !user_read(&c, f->rsi, 1) &&
		       !c && put_stat(f->rdx, ret);
	}
	return false;
}

/* A library that the monitor has opened ahead, where all that was opened before it is mapped and closed. */
static bool next_call(const struct kx_frame *f, int64_t *ret)
{
	char path[KX_LIBFILE_PATH];
	if (f->orig_rax != NR_openat || (uint32_t)f->rdx != OPENS_TO_READ || lib->on & KX_LIBFILE_FILE ||
	    lib->asked < lib->nr_ops || user_read(path, f->rsi, sizeof path))
		return false;
	for (uint32_t i = 0; i < KX_LIBNEXT_FILES; i++) {
		struct kx_libnext_file *e = &next->file[i];
		uint32_t k = 0;
		if (!e->ready || e->taken)
			continue;
		while (k < e->path_len && path[k] == e->path[k])
			k++;
		if (k < e->path_len)
			continue;
		__builtin_memcpy(lib->stat, e->stat, sizeof lib->stat);
		__builtin_memcpy(lib->head, e->head, sizeof lib->head);
		__builtin_memcpy(lib->op, e->op, sizeof lib->op);
		lib->fd = next->fd;
		lib->len = e->len;
		lib->used = lib->closed = lib->asked = 0;
		lib->nr_ops = e->nr_ops;
		lib->head_read = e->head_read;
		e->taken = 1;
		next->cur = i + 1;
		lib->on = (lib->on & ~KX_LIBFILE_PLAIN) | KX_LIBFILE_FILE;
		*ret = lib->fd;
		return true;
	}
	return false;
}

static bool older_than(uint64_t until)
{
	int64_t ts[2];
	return kt_clock_gettime(KT_MONOTONIC, &ts[0], &ts[1]) || (uint64_t)(ts[0] * KT_NS_PER_SEC + ts[1]) > until;
}

/* The path that was looked at last, once more. */
static bool looked_call(const struct kx_frame *f, int64_t *ret)
{
	char path[KX_LIBFILE_PATH];
	uint32_t n = lib->looked_len;
	if (f->orig_rax != NR_newfstatat || (int32_t)f->rdi != lib->looked_dir ||
	    (int32_t)f->r10 != lib->looked_flags || n > sizeof path || user_read(path, f->rsi, n) ||
	    older_than(lib->looked_ns))
		return false;
	for (uint32_t i = 0; i < n; i++)
		if (path[i] != lib->looked[i])
			return false;
	*ret = lib->looked_ret;
	return *ret || !user_write(f->rdx, lib->looked_stat, sizeof lib->looked_stat);
}

/* Is start, of len bytes, what ends at byte n of the path, and is that the end of a name? */
static bool leads_into(const char *path, uint32_t end, uint32_t n, const char *start, uint32_t len)
{
	if (n < len || end < n || (path[n] && path[n] != '/'))
		return false;
	for (uint32_t i = 0; i < len; i++)
		if (path[n - len + i] != start[i])
			return false;
	return true;
}

/* One of those that are missing beside it. */
static bool into_subdir(const char *path, uint32_t end)
{
	const char *name = KX_LIBFILE_SUBDIRS;
	uint32_t in = lib->missing_in;
	for (uint32_t i = 0; i < in; i++)
		if (path[i] != lib->missing[i])
			return false;
	for (uint32_t bits = lib->missing_subdirs; in && bits && *name; bits >>= 1) {
		uint32_t len = 0;
		while (name[len])
			len++;
		if (bits & 1 && leads_into(path, end, in + len, name, len))
			return true;
		name += len + 1;
	}
	return false;
}

/* A path that leads into a directory that is missing. */
static bool missing_call(const struct kx_frame *f, int64_t *ret)
{
	char path[KX_LIBFILE_PATH];
	uint32_t n = lib->missing_len, end = 0;
	bool opens = f->orig_rax == NR_openat && (uint32_t)f->rdx == OPENS_TO_READ;
	bool looks = f->orig_rax == NR_newfstatat && !(uint32_t)f->r10;
	if ((!opens && !looks) || (int32_t)f->rdi != AT_FDCWD || n >= sizeof path ||
	    user_read(path, f->rsi, sizeof path))
		return false;
	while (end < sizeof path && path[end])
		end++;
	if (end == sizeof path || (!leads_into(path, end, n, lib->missing, n) && !into_subdir(path, end)))
		return false;
	*ret = -KX_ENOENT;
	return !older_than(lib->missing_ns);
}

/* A file that is no library. */
static bool plain_call(const struct kx_frame *f, int64_t *ret)
{
	char c = 1;
	if ((int32_t)f->rdi != lib->fd || older_than(lib->until_ns))
		return false;
	switch (f->orig_rax) {
	case NR_read:
		*ret = 0;
		return lib->ended && f->rdx && user_ok(f->rsi, f->rdx);
	case NR_fstat:
		return put_stat(f->rsi, ret);
	case NR_newfstatat:
		return (uint32_t)f->r10 == AT_EMPTY_PATH && !user_read(&c, f->rsi, 1) && !c && put_stat(f->rdx, ret);
	case NR_lseek:
		*ret = (int64_t)lib->pos;
		return !f->rsi && (uint32_t)f->rdx == SEEK_CUR;
	case NR_ioctl:
		*ret = -KX_ENOTTY;
		return (uint32_t)f->rsi == TCGETS;
	}
	return false;
}

bool libfile_call(struct kx_frame *f, int64_t *ret)
{
	if ((lib->on & KX_LIBFILE_PLAIN && plain_call(f, ret)) || (lib->on & KX_LIBFILE_LOOKED && looked_call(f, ret)))
		return true;
	if (lib->on & KX_LIBFILE_MISSING && missing_call(f, ret))
		return true;
	if (lib->on & KX_LIBFILE_FILE && file_call(f, ret))
		return true;
	if (lib->on & KX_LIBFILE_NEXT && next_call(f, ret))
		return true;
	return lib->on & KX_LIBFILE_CALLS && (f->orig_rax == NR_mprotect || f->orig_rax == NR_munmap) && later(f, ret);
}

void libfile_flush_now(struct kx_thread *t) { hypercall(t, NR_getppid, 0, 0, 0, 0, 0, 0); }
