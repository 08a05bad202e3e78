/* SPDX-License-Identifier: Apache-2.0 */
#include "sizes.h"
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include "family.h"

static struct kx_futexes *page(void) { return gva_ptr(KX_FUTEX_BASE); }

static bool is_file(int fd)
{
	struct stat st;
	return fd_is_guest(fd) && !fstat(fd, &st) && !S_ISSOCK(st.st_mode) && !S_ISFIFO(st.st_mode) &&
	       !S_ISCHR(st.st_mode);
}

enum change { NONE, SOME, BY_FD };

/* BY_FD: if the descriptor *fd is a file's. */
static enum change change_of(const struct hcall *c, int *fd)
{
	switch (c->nr) {
	case SYS_write:
	case SYS_writev:
	case SYS_sendfile:
		*fd = (int)c->arg[0];
		return BY_FD;
	case SYS_splice:
	case SYS_copy_file_range:
		*fd = (int)c->arg[2];
		return BY_FD;
	case SYS_ioctl:
		return (unsigned)c->arg[1] == FICLONE || (unsigned)c->arg[1] == FICLONERANGE ? SOME : NONE;
	case SYS_open:
		return c->arg[1] & O_TRUNC ? SOME : NONE;
	case SYS_openat:
		return c->arg[2] & O_TRUNC ? SOME : NONE;
	case SYS_openat2: /* its flags are in memory */
	case SYS_creat:
	case SYS_pwrite64:
	case SYS_pwritev:
	case SYS_pwritev2:
	case SYS_truncate:
	case SYS_ftruncate:
	case SYS_fallocate:
		return SOME;
	}
	return NONE;
}

/*
 * A write into what the file has already, as databases do: it changes nothing, unless somebody makes the file shorter before
 * it is done. Who does that tells so, and who then looks sees that a call is being made.
 */
static bool is_inside(const struct hcall *c)
{
	struct stat st;
	return c && c->nr == SYS_pwrite64 && fd_is_guest((int)c->arg[0]) && !fstat((int)c->arg[0], &st) &&
	       S_ISREG(st.st_mode) && (int64_t)c->arg[3] >= 0 && (int64_t)c->arg[3] <= st.st_size &&
	       c->arg[2] <= (uint64_t)(st.st_size - (int64_t)c->arg[3]);
}

/* Counted first: either this sees that somebody asks, or who asks sees the count. */
static bool begin(int fd, const struct hcall *c)
{
	uint32_t *n = family_changing();
	__atomic_add_fetch(n, 1, __ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&page()->sizes_asked, __ATOMIC_SEQ_CST))
		return true;
	if (fd >= 0 && !is_file(fd)) {
		__atomic_sub_fetch(n, 1, __ATOMIC_SEQ_CST);
		return false;
	}
	if (!is_inside(c))
		__atomic_add_fetch(&page()->resized, 1, __ATOMIC_SEQ_CST);
	return true;
}

void sizes_begin(void) { begin(-1, NULL); }

void sizes_after(void) { __atomic_sub_fetch(family_changing(), 1, __ATOMIC_SEQ_CST); }

bool sizes_before(const struct hcall *c)
{
	int fd = -1;
	enum change k = change_of(c, &fd);
	return k != NONE && (k == SOME || fd >= 0) && begin(fd, c);
}

void sizes_ask(void)
{
	if (!page()->sizes_asked)
		__atomic_store_n(&page()->sizes_asked, 1, __ATOMIC_SEQ_CST);
}
