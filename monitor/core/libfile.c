/* SPDX-License-Identifier: Apache-2.0 */
#include "libfile.h"
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../../abi/kx_libfile.h"
#include "../../util/now.h"
#include "admit.h"
#include "gmem.h"
#include "gmem_ahead.h"
#include "keeper.h"
#include "libnext.h"
#include "pipe.h"

#define LARGEFILE 0100000 /* the kernel's; musl says it */

int libfile_fd = -1;
static bool moved; /* its offset is what the guest was told */

int libfile_plain = -1;
bool libfile_told;

static struct kx_libfile *shared(void) { return gva_ptr(KX_LIBFILE_BASE); }

static void forget(void)
{
	__atomic_and_fetch(&shared()->on, ~KX_LIBFILE_FILE, __ATOMIC_RELAXED);
	libfile_fd = -1;
}

void libfile_was_closed(void)
{
	int fd = libfile_fd;
	libfile_fd = -1;
	pipe_close(fd);
}

void libfile_now(int fd)
{
	libfile_fd = fd;
	moved = false;
}

/* ---- files that are no libraries ------------------------------------------------------------------------------------- */

#define PLAIN_NS 1000000ull

/* fd is at pos, and the last read gave less than it was asked for, or not. */
static void plain_tell(int fd, uint64_t pos, bool was_short)
{
	struct kx_libfile *l = shared();
	uint64_t now = now_ns();
	struct stat st;
	if (gmem_is_seen() || HC6(SYS_fstat, fd, &st, 0, 0, 0, 0) || !(S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)))
		return;
	memcpy(l->stat, &st, sizeof st);
	l->fd = libfile_plain = fd;
	l->pos = pos;
	l->ended = was_short && S_ISREG(st.st_mode) && pos == (uint64_t)st.st_size;
	l->until_ns = now + PLAIN_NS;
	__atomic_or_fetch(&l->on, KX_LIBFILE_PLAIN, __ATOMIC_RELEASE);
	libfile_told = true;
}

/* What looked_stat is for. */
static void looked_tell(const char *path, int dir, int flags, int64_t r, uint64_t now)
{
	struct kx_libfile *l = shared();
	l->looked_len = (uint32_t)strlen(path) + 1;
	memcpy(l->looked, path, l->looked_len);
	l->looked_dir = dir;
	l->looked_flags = flags;
	l->looked_ret = (int32_t)r;
	l->looked_ns = now + PLAIN_NS;
	__atomic_or_fetch(&l->on, KX_LIBFILE_LOOKED, __ATOMIC_RELEASE);
	libfile_told = true;
}

void libfile_looked(struct hcall *c, int64_t r)
{
	struct kx_libfile *l = shared();
	uint64_t now = now_ns();
	const char *path = (const char *)c->host[1];
	char own[KX_LIBFILE_PATH];
	if ((r && r != -ENOENT && r != -ENOTDIR) || c->proc[1] || !c->nr_paths || pvm.nr_threads != 1 ||
	    is_vfork_child() || gmem_is_seen())
		return;
	ssize_t n = guest_read_str(own, c->arg[1], sizeof own);
	/* Not what the monitor has made of it; and the empty one is a descriptor's. */
	if (n <= 0 || strcmp(own, path) || (!r && guest_read(l->looked_stat, c->arg[2], sizeof l->looked_stat)))
		return;
	looked_tell(own, (int)c->arg[0], (int)c->arg[3], r, now);
}

/* path, len bytes of it, is missing in a directory that is there: what else of the kind is missing there? */
static void subdirs_tell(struct kx_libfile *l, const char *path, size_t len)
{
	char own[KX_LIBFILE_PATH + 16];
	struct stat st;
	size_t in = len;
	unsigned bits = 0, bit = 1;
	while (in && path[in - 1] != '/')
		in--;
	for (const char *name = KX_LIBFILE_SUBDIRS; in && *name; name += strlen(name) + 1, bit <<= 1) {
		memcpy(own, path, in);
		strcpy(own + in, name);
		if (HC6(SYS_newfstatat, AT_FDCWD, own, &st, 0, 0, 0) == -ENOENT)
			bits |= bit;
	}
	l->missing_in = in & 255;
	l->missing_subdirs = bits;
}

/*
 * A linker has not found a library, or libc a locale: is the directory there in which it looked? If not, which is the first that is missing on
 * the way? (Of /proc the program sees another one.)
 */
static void missing_tell(const struct hcall *c, bool elf)
{
	struct kx_libfile *l = shared();
	char own[KX_LIBFILE_PATH], dir[KX_LIBFILE_PATH];
	struct stat st;
	uint64_t now = now_ns();
	if (c->nr != SYS_openat || (int)c->arg[0] != AT_FDCWD || !c->nr_paths || pvm.nr_threads != 1 ||
	    is_vfork_child() || (elf && !admit_call_of_loader()) || gmem_is_seen())
		return;
	ssize_t n = guest_read_str(own, c->arg[1], sizeof own);
	if (n <= 0 || strcmp(own, (const char *)c->host[1]) || !strncmp(own, "/proc", 5))
		return;
	memcpy(dir, own, (size_t)n + 1);
	size_t len = 0; /* of what is missing */
	long r = -ENOENT;
	for (char *slash; r == -ENOENT && (slash = strrchr(dir, '/')) && slash > dir;) {
		*slash = 0;
		r = HC6(SYS_newfstatat, AT_FDCWD, dir, &st, 0, 0, 0);
		if (r == -ENOENT)
			len = (size_t)(slash - dir);
	}
	if (!r && !len) {
		memcpy(l->looked_stat, &st, sizeof st);
		looked_tell(dir, AT_FDCWD, 0, 0, now);
	} else if (len && (!r || r == -ENOENT)) {
		memcpy(l->missing, own, len);
		l->missing_len = (uint32_t)len;
		l->missing_in = l->missing_subdirs = 0;
		if (elf)
			subdirs_tell(l, own, len);
		l->missing_ns = now + PLAIN_NS;
		__atomic_or_fetch(&l->on, KX_LIBFILE_MISSING, __ATOMIC_RELEASE);
		libfile_told = true;
	}
}

static bool plain_flags(int flags)
{
	return (flags & ~(LARGEFILE | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK | O_DIRECTORY)) == O_RDONLY;
}

/* Memory of the program's own alone: nothing is learnt by it. */
static bool tells_nothing(uint64_t nr, const uint64_t arg[6])
{
	return nr == HC_TRACE || nr == SYS_brk || nr == SYS_munmap || nr == SYS_mprotect || nr == SYS_madvise ||
	       (nr == SYS_mmap && (int)arg[3] == (MAP_PRIVATE | MAP_ANONYMOUS));
}

static void plain_settle(uint64_t nr, const uint64_t arg[6])
{
	if (tells_nothing(nr, arg))
		return;
	__atomic_and_fetch(&shared()->on, ~KX_LIBFILE_TOLD, __ATOMIC_RELEASE);
	libfile_told = false;
	if (nr != SYS_read || (int)arg[0] != libfile_plain)
		libfile_plain = -1;
}

void libfile_read(struct hcall *c, int64_t r)
{
	if (c->nr != SYS_read || (int)c->arg[0] != libfile_plain || pvm.nr_threads != 1 || is_vfork_child())
		return;
	long pos = r < 0 ? -1 : HC6(SYS_lseek, libfile_plain, 0, SEEK_CUR, 0, 0, 0);
	if (pos >= 0)
		plain_tell(libfile_plain, (uint64_t)pos, (uint64_t)r < c->arg[2]);
}

/* ---- libraries --------------------------------------------------------------------------------------------------------- */

static const char linker_cache[] = "/etc/ld.so.cache";

/* libc maps these files as they are: the cache of libraries' places, and a locale's categories. */
static bool is_read_whole(const char *path)
{
	static const char locale[] = "/usr/lib/locale/";
	return !strcmp(path, linker_cache) || (!strncmp(path, locale, sizeof locale - 1) && strstr(path, "/LC_"));
}

void libfile_opened(struct hcall *c, int i, int fd)
{
	struct kx_libfile *l = shared();
	uint8_t head[KX_LIBFILE_HEAD];
	struct stat st;
	const char *path = (const char *)c->host[i], *base = strrchr(path, '/');
	bool whole = is_read_whole(path), elf = strstr(base ? base : path, ".so");
	int flags = (int)c->arg[i + 1];
	if (fd == -ENOENT && i == 1 && (flags & ~LARGEFILE) == (O_RDONLY | O_CLOEXEC) && (elf || whole))
		missing_tell(c, elf);
	/* Other threads see descriptors without any call; a child of vfork has its own. */
	if (fd < 0 || pvm.nr_threads != 1 || is_vfork_child())
		return;
	if ((flags & ~LARGEFILE) != (O_RDONLY | O_CLOEXEC) || (!whole && !elf)) {
		libnext_other();
		if (plain_flags(flags))
			plain_tell(fd, 0, false);
		return;
	}
	long n = HC6(SYS_fstat, fd, &st, 0, 0, 0, 0) || !S_ISREG(st.st_mode)
			 ? -1
			 : HC6(SYS_pread64, fd, head, sizeof head, 0, 0, 0);
	if (n < (long)(whole ? 1 : sizeof(Elf64_Ehdr)) || (!whole && memcmp(head, ELFMAG, SELFMAG))) {
		libnext_other();
		return;
	}
	_Static_assert(sizeof st == sizeof l->stat, "x86-64's");
	memcpy(l->head, head, (size_t)n);
	memcpy(l->stat, &st, sizeof st);
	l->len = (uint32_t)n;
	l->fd = fd;
	l->used = l->closed = l->nr_ops = l->asked = 0;
	moved = false;
	libfile_fd = fd;
	bool cache = whole && !strcmp(path, linker_cache);
	uint64_t at = 0;
	if (whole)
		at = gmem_ahead_whole(fd, (uint64_t)st.st_size, cache);
	else if (admit_call_of_loader()) /* others may open a library to look at it */
		at = gmem_ahead_library(head, (size_t)n, fd);
	__atomic_or_fetch(&l->on, KX_LIBFILE_FILE, __ATOMIC_RELEASE);
	if (admit_call_of_loader() && (cache || !whole))
		libnext_opened(path, fd, (uint64_t)st.st_size, at, cache);
	else if (whole && !cache)
		libnext_locale(path, fd);
	else
		libnext_other();
}

/* Calls that neither depend on the offset nor change what the descriptor stands for. */
static bool leaves_it(uint64_t nr)
{
	switch (nr) {
	case SYS_mmap:
	case SYS_mprotect:
	case SYS_munmap:
	case SYS_madvise:
	case SYS_brk:
	case SYS_pread64:
	case SYS_fstat:
	case SYS_newfstatat:
		return true;
	}
	return nr >= 1024; /* our own: traces, signals, pipes */
}

void libfile_settle_now(uint64_t nr, const uint64_t arg[6])
{
	struct kx_libfile *l = shared();
	uint32_t used = __atomic_load_n(&l->used, __ATOMIC_RELAXED),
		 closed = __atomic_load_n(&l->closed, __ATOMIC_RELAXED);
	int fd = libfile_fd;
	if (is_vfork_child()) /* its descriptors are its own: its parent has come here before it */
		return;
	if (libstart_any)
		libstart_settle(nr, arg);
	if (libnext_any) {
		libnext_settle(nr, arg);
		fd = libfile_fd;
	}
	if (gmem_ahead_any)
		gmem_ahead_settle(nr, arg);
	if (libfile_told || libfile_plain >= 0)
		plain_settle(nr, arg);
	if (gmem_warm_any)
		gmem_warm_settle(nr, arg);
	if (gmem_grow_any)
		gmem_grow_look(nr);
	if (fd < 0)
		return;
	if (closed) {
		forget();
		pipe_close(fd);
		return;
	}
	if (used && !moved) {
		moved = true;
		HC6(SYS_lseek, fd, used < KX_LIBFILE_HEAD ? used : KX_LIBFILE_HEAD, SEEK_SET, 0, 0, 0);
	}
	if (!leaves_it(nr))
		forget();
}
