/* SPDX-License-Identifier: Apache-2.0 */
#include "libfile.h"
#include <elf.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../../abi/kx_libfile.h"
#include "keeper.h"
#include "pipe.h"

int libfile_fd = -1;
static bool moved; /* its offset is what the guest was told */

static struct kx_libfile *shared(void) { return gva_ptr(KX_LIBFILE_BASE); }

static void forget(void)
{
	__atomic_store_n(&shared()->on, 0, __ATOMIC_RELAXED);
	libfile_fd = -1;
}

void libfile_opened(struct hcall *c, int i, int fd)
{
	struct kx_libfile *l = shared();
	uint8_t head[KX_LIBFILE_HEAD];
	struct stat st;
	const char *path = (const char *)c->host[i], *base = strrchr(path, '/');
	/* Other threads see descriptors without any call; a child of vfork has its own. */
	if (fd < 0 || (int)c->arg[i + 1] != (O_RDONLY | O_CLOEXEC) || pvm.nr_threads != 1 || is_vfork_child() ||
	    !strstr(base ? base : path, ".so"))
		return;
	if (HC6(SYS_fstat, fd, &st, 0, 0, 0, 0) || !S_ISREG(st.st_mode))
		return;
	long n = HC6(SYS_pread64, fd, head, sizeof head, 0, 0, 0);
	if (n < (long)sizeof(Elf64_Ehdr) || memcmp(head, ELFMAG, SELFMAG))
		return;
	_Static_assert(sizeof st == sizeof l->stat, "x86-64's");
	memcpy(l->head, head, (size_t)n);
	memcpy(l->stat, &st, sizeof st);
	l->len = (uint32_t)n;
	l->fd = fd;
	l->used = l->closed = 0;
	moved = false;
	libfile_fd = fd;
	__atomic_store_n(&l->on, 1, __ATOMIC_RELEASE);
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

void libfile_settle_now(uint64_t nr)
{
	struct kx_libfile *l = shared();
	uint32_t used = __atomic_load_n(&l->used, __ATOMIC_RELAXED),
		 closed = __atomic_load_n(&l->closed, __ATOMIC_RELAXED);
	int fd = libfile_fd;
	if (is_vfork_child()) /* its descriptors are its own: its parent has come here before it */
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
