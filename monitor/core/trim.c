/* SPDX-License-Identifier: Apache-2.0 */
#include "trim.h"
#include <elf.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include "../../util/now.h"
#include "keeper.h"
#include "libnext.h"

#define EVERY_NS 10000000000ull

extern const char __ehdr_start[] __attribute__((visibility("hidden")));
static uint64_t next_ns;

static void own_image_drop(void)
{
	const char *base = __ehdr_start;
	const Elf64_Ehdr *eh = (const Elf64_Ehdr *)base;
	const Elf64_Phdr *ph = (const Elf64_Phdr *)(base + eh->e_phoff);
	for (unsigned i = 0; i < eh->e_phnum; i++) {
		if (ph[i].p_type != PT_LOAD || ph[i].p_flags & PF_W)
			continue;
		uint64_t start = ((uintptr_t)base + ph[i].p_vaddr) & -4096ul;
		uint64_t end = ((uintptr_t)base + ph[i].p_vaddr + ph[i].p_memsz + 4095) & -4096ul;
		HC6(SYS_madvise, start, end - start, MADV_DONTNEED, 0, 0, 0);
	}
}

/* Nothing is there to be read. */
static bool would_wait(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	struct timespec none = { 0, 0 };
	return HC6(SYS_ppoll, &p, 1, &none, 0, 8, 0) == 0;
}

static bool sleeps(const struct hcall *c)
{
	switch (c->nr) {
	case SYS_read:
	case SYS_readv:
	case SYS_recvfrom:
	case SYS_recvmsg:
	case SYS_accept:
	case SYS_accept4:
		return would_wait((int)c->arg[0]);
	case SYS_poll:
	case SYS_ppoll:
	case SYS_select:
	case SYS_pselect6:
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
	case SYS_nanosleep:
	case SYS_clock_nanosleep:
	case SYS_pause:
	case SYS_rt_sigsuspend:
	case SYS_rt_sigtimedwait:
	case SYS_wait4:
	case SYS_waitid:
		return true;
	case SYS_futex:
		return ((int)c->arg[1] & 0x7f) != 1 /* FUTEX_WAKE */;
	}
	return false;
}

void trim_before(const struct hcall *c)
{
	uint64_t now = now_ns();
	if (now < __atomic_load_n(&next_ns, __ATOMIC_RELAXED) || is_vfork_child() || !sleeps(c))
		return;
	__atomic_store_n(&next_ns, now + EVERY_NS, __ATOMIC_RELAXED);
	own_image_drop();
	libnext_trim();
}
