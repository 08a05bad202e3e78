/* SPDX-License-Identifier: Apache-2.0 */
#include "libstart.h"
#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../../abi/kx_libstart.h"
#include "admit.h"
#include "gmem_ahead.h"
#include "gmem_priv.h"
#include "hcall.h"
#include "keeper.h"
#include "robust.h"
#include "thread.h"

#define MEMORY (128ull << 10)

void limits_export(struct rlimit out[16]); /* sys_proc.c */

static uint64_t low, high; /* of kx_libstart's memory, not known to be given away; low 0: none */
bool libstart_any;

static struct kx_libstart *shared(void) { return gva_ptr(KX_LIBSTART_BASE); }

void libstart_begin(void)
{
	struct kx_libstart *s = shared();
	struct rlimit all[16];
	*s = (struct kx_libstart){ .on = KX_LIBSTART_BRK | KX_LIBSTART_STACK | KX_LIBSTART_THREAD, .brk = gmem_brk(0) };
	limits_export(all);
	s->stack_limit[0] = all[RLIMIT_STACK].rlim_cur;
	s->stack_limit[1] = all[RLIMIT_STACK].rlim_max;
	if (HC6(SYS_access, "/etc/ld.so.preload", R_OK, 0, 0, 0, 0) == -ENOENT)
		s->on |= KX_LIBSTART_PRELOAD;
	/* --memory would count what nobody has asked for. musl's linker is its C library, which looks into maps for programs. */
	if (*admit_loader_path() && !gmem_ahead_is_musl() && !pvm.cfg->memory) {
		int64_t r = gmem_mmap(0, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (r > 0) {
			low = s->low = (uint64_t)r;
			high = s->at = low + MEMORY;
			if (pvm.shadow_paging)
				madvise(gva_ptr(low), MEMORY, MADV_POPULATE_WRITE);
			s->on |= KX_LIBSTART_MEMORY;
		}
	}
	libstart_any = true;
	__atomic_or_fetch(&((struct kx_libfile *)gva_ptr(KX_LIBFILE_BASE))->on, KX_LIBFILE_START, __ATOMIC_RELEASE);
}

void libstart_brk(uint64_t brk) { shared()->brk = brk; }

static bool apart(uint64_t at, uint64_t len) { return len <= UINT64_MAX - at && (at >= high || at + len <= low); }

/* The linker's, which can't tell that there is more memory than it was given. */
static bool leaves(uint64_t nr, const uint64_t arg[6])
{
	if (nr == HC_TRACE)
		return true;
	if (!admit_call_is_loaders())
		return false;
	switch (nr) {
	case SYS_openat:
	case SYS_access:
	case SYS_close:
	case SYS_brk:
		return true;
	case SYS_newfstatat:
		return apart(arg[2], PAGE);
	case SYS_read:
	case SYS_pread64:
		return apart(arg[1], arg[2]);
	case SYS_mmap:
		return !((int)arg[3] & MAP_FIXED) || apart(arg[0], arg[1]);
	case SYS_munmap:
	case SYS_mprotect:
		return apart(arg[0], arg[1]);
	}
	return false;
}

void libstart_settle(uint64_t nr, const uint64_t arg[6])
{
	struct kx_libstart *s = shared();
	uint64_t at = __atomic_load_n(&s->at, __ATOMIC_RELAXED);
	if (self && self->area) { /* not the service thread */
		uint32_t told = __atomic_exchange_n(&s->told, 0, __ATOMIC_RELAXED);
		if (told & 1)
			self->clear_tid = s->tid_address;
		if (told & 2)
			robust_set(self, s->robust_list);
	}
	if (low && at >= low && at <= high && !(at % PAGE))
		high = at;
	if (!leaves(nr, arg)) {
		__atomic_and_fetch(&s->on, KX_LIBSTART_BRK, __ATOMIC_RELEASE);
		if (low && low < high)
			gmem_munmap(low, high - low);
		low = high = 0;
		libstart_any = s->told;
	}
}
