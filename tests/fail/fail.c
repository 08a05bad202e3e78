/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A monitor one of whose calls for memory, descriptors or mappings fails: linked in before all else (tests.mk), for
 * test_update_fail.py, which writes to kx_fail by /proc/PID/mem.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <sys/types.h>

#define LOG 4096

/* The test knows these offsets. */
struct {
	volatile int tid;          /* of the thread whose calls count; 0 = none */
	volatile int error;        /* what the call fails with */
	volatile long site;        /* the code that makes it; */
	volatile long at;          /* and the how manieth from there it is, from 1 on; 0 = none fails */
	volatile long calls, here; /* that were made: all, and from there */
	volatile long from[LOG];   /* by number: the code that made the call */
} kx_fail = { .error = ENOMEM };

long __real_host_call(long nr, long a, long b, long c, long d, long e, long f);

static bool fails(void *from)
{
	if (!kx_fail.tid || __real_host_call(SYS_gettid, 0, 0, 0, 0, 0, 0) != kx_fail.tid)
		return false;
	long n = ++kx_fail.calls;
	if (n < LOG)
		kx_fail.from[n] = (long)from;
	if ((long)from != kx_fail.site || ++kx_fail.here != kx_fail.at)
		return false;
	kx_fail.at = 0;
	errno = kx_fail.error;
	return true;
}
#define FAILS() fails(__builtin_return_address(0))

#define WRAP(type, name, none, params, args) \
	type __real_##name params; \
	type __wrap_##name params; \
	type __wrap_##name params { return FAILS() ? none : __real_##name args; }

/* alloc.c's, under other names. */
void *own_malloc(size_t n);
void *own_calloc(size_t k, size_t n);
void *own_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t k, size_t n);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n) { return FAILS() ? NULL : own_malloc(n); }
void *__wrap_calloc(size_t k, size_t n) { return FAILS() ? NULL : own_calloc(k, n); }
void *__wrap_realloc(void *p, size_t n) { return FAILS() ? NULL : own_realloc(p, n); }

WRAP(void *, mmap, (void *)-1l, (void *p, size_t len, int prot, int flags, int fd, off_t off),
     (p, len, prot, flags, fd, off))
WRAP(int, mprotect, -1, (void *p, size_t len, int prot), (p, len, prot))
WRAP(int, madvise, -1, (void *p, size_t len, int advice), (p, len, advice))
WRAP(ssize_t, pread, -1, (int fd, void *to, size_t len, off_t off), (fd, to, len, off))
WRAP(int, memfd_create, -1, (const char *name, unsigned flags), (name, flags))
WRAP(int, ftruncate, -1, (int fd, off_t len), (fd, len))

void *__real_mremap(void *p, size_t old, size_t len, int flags, ...);
void *__wrap_mremap(void *p, size_t old, size_t len, int flags, void *to);
void *__wrap_mremap(void *p, size_t old, size_t len, int flags, void *to)
{
	return FAILS() ? (void *)-1l : __real_mremap(p, old, len, flags, to);
}

int __real_ioctl(int fd, unsigned long nr, ...);
int __wrap_ioctl(int fd, unsigned long nr, void *arg);
int __wrap_ioctl(int fd, unsigned long nr, void *arg)
{
	return nr != KVM_RUN && nr != KVM_SET_XSAVE && FAILS() ? -1 : __real_ioctl(fd, nr, arg);
}

int __real_fcntl(int fd, int cmd, ...);
int __wrap_fcntl(int fd, int cmd, long arg);
int __wrap_fcntl(int fd, int cmd, long arg) { return FAILS() ? -1 : __real_fcntl(fd, cmd, arg); }

int __real_openat(int dir, const char *path, int flags, ...);
int __wrap_openat(int dir, const char *path, int flags, mode_t mode);
int __wrap_openat(int dir, const char *path, int flags, mode_t mode)
{
	return FAILS() ? -1 : __real_openat(dir, path, flags, mode);
}

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, mode_t mode);
int __wrap_open(const char *path, int flags, mode_t mode) { return FAILS() ? -1 : __real_open(path, flags, mode); }

/* Of the monitor's own calls those that want something. */
long __wrap_host_call(long nr, long a, long b, long c, long d, long e, long f);
long __wrap_host_call(long nr, long a, long b, long c, long d, long e, long f)
{
	bool wants = nr == SYS_madvise || nr == SYS_mincore || nr == SYS_openat || nr == SYS_mmap ||
		     nr == SYS_mprotect || nr == SYS_pread64 || nr == SYS_fcntl || nr == SYS_sched_getattr ||
		     nr == SYS_sched_setattr;
	return wants && FAILS() ? -kx_fail.error : __real_host_call(nr, a, b, c, d, e, f);
}
