/* SPDX-License-Identifier: Apache-2.0 */
#include "sizes.h"
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static struct kx_futexes *page(void) { return gva_ptr(KX_FUTEX_BASE); }

static bool is_file(int fd)
{
	struct stat st;
	return fd_is_guest(fd) && !fstat(fd, &st) && !S_ISSOCK(st.st_mode) && !S_ISFIFO(st.st_mode) &&
	       !S_ISCHR(st.st_mode);
}

static bool changes(const struct hcall *c)
{
	switch (c->nr) {
	case SYS_write:
	case SYS_writev:
	case SYS_sendfile:
		return is_file((int)c->arg[0]);
	case SYS_splice:
	case SYS_copy_file_range:
		return is_file((int)c->arg[2]);
	case SYS_ioctl:
		return (unsigned)c->arg[1] == FICLONE || (unsigned)c->arg[1] == FICLONERANGE;
	case SYS_open:
		return c->arg[1] & O_TRUNC;
	case SYS_openat:
		return c->arg[2] & O_TRUNC;
	case SYS_openat2: /* its flags are in memory */
	case SYS_creat:
	case SYS_pwrite64:
	case SYS_pwritev:
	case SYS_pwritev2:
	case SYS_truncate:
	case SYS_ftruncate:
	case SYS_fallocate:
		return true;
	}
	return false;
}

void sizes_begin(void) { __atomic_add_fetch(&page()->resizing, 1, __ATOMIC_SEQ_CST); }

void sizes_after(void)
{
	__atomic_add_fetch(&page()->resized, 1, __ATOMIC_SEQ_CST);
	__atomic_sub_fetch(&page()->resizing, 1, __ATOMIC_SEQ_CST);
}

/*
 * A write into what the file has already, as databases do, changes nothing unless somebody makes the file shorter at the same
 * moment, who is counted: then it counts, too.
 */
static bool is_inside(const struct hcall *c, uint64_t *resized)
{
	struct stat st;
	if (c->nr != SYS_pwrite64)
		return false;
	*resized = __atomic_load_n(&page()->resized, __ATOMIC_SEQ_CST);
	return !__atomic_load_n(&page()->resizing, __ATOMIC_SEQ_CST) && fd_is_guest((int)c->arg[0]) &&
	       !fstat((int)c->arg[0], &st) && S_ISREG(st.st_mode) && (int64_t)c->arg[3] >= 0 &&
	       (int64_t)c->arg[3] <= st.st_size && c->arg[2] <= (uint64_t)(st.st_size - (int64_t)c->arg[3]);
}

struct sizes sizes_before(const struct hcall *c)
{
	struct sizes s = { .counted = changes(c) };
	if (!s.counted)
		return s;
	if (is_inside(c, &s.resized)) {
		s.counted = false;
		s.inside = true;
		return s;
	}
	sizes_begin();
	return s;
}

void sizes_done(const struct sizes *s)
{
	if (s->inside && (__atomic_load_n(&page()->resizing, __ATOMIC_SEQ_CST) ||
			  __atomic_load_n(&page()->resized, __ATOMIC_SEQ_CST) != s->resized)) {
		sizes_begin();
		sizes_after();
	} else if (s->counted) {
		sizes_after();
	}
}
