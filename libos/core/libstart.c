/* SPDX-License-Identifier: Apache-2.0 */
/* abi/kx_libstart.h */
#include "../../abi/kx_libstart.h"
#include "libos.h"

#define NR_mmap 9
#define NR_brk 12
#define NR_access 21
#define NR_set_tid_address 218
#define NR_set_robust_list 273
#define NR_prlimit64 302
#define R_OK 4
#define RLIMIT_STACK 3
#define ROBUST_LEN 24
#define READ_WRITE 3     /* PROT_READ | PROT_WRITE */
#define OWN_MEMORY 0x22u /* MAP_PRIVATE | MAP_ANONYMOUS */

static struct kx_libstart *const start = (struct kx_libstart *)KX_LIBSTART_BASE;
static const char preload[] = "/etc/ld.so.preload";

static bool is_preload(uint64_t gva)
{
	char path[sizeof preload];
	if (user_read(path, gva, sizeof path))
		return false;
	for (unsigned i = 0; i < sizeof path; i++)
		if (path[i] != preload[i])
			return false;
	return true;
}

static bool memory(const struct kx_frame *f, int64_t *ret)
{
	uint64_t len = (f->rsi + 4095) & -4096ul, at = start->at;
	if (f->rdi || !f->rsi || (uint32_t)f->rdx != READ_WRITE || (uint32_t)f->r10 != OWN_MEMORY || f->r9 ||
	    f->rsi > at || at <= start->low || len > at - start->low)
		return false;
	start->at = at - len;
	*ret = (int64_t)start->at;
	return true;
}

bool libstart_call(struct kx_thread *t, const struct kx_frame *f, int64_t *ret)
{
	uint32_t on = start->on;
	*ret = 0;
	switch (f->orig_rax) {
	case NR_mmap:
		return on & KX_LIBSTART_MEMORY && memory(f, ret);
	case NR_brk:
		*ret = (int64_t)start->brk;
		return on & KX_LIBSTART_BRK && !f->rdi;
	case NR_access:
		*ret = -KX_ENOENT;
		return on & KX_LIBSTART_PRELOAD && (uint32_t)f->rsi == R_OK && is_preload(f->rdi);
	case NR_set_tid_address:
		if (!(on & KX_LIBSTART_THREAD))
			return false;
		start->tid_address = f->rdi;
		start->told |= 1;
		*ret = t->tid;
		return true;
	case NR_set_robust_list:
		if (!(on & KX_LIBSTART_THREAD) || f->rsi != ROBUST_LEN)
			return false;
		start->robust_list = f->rdi;
		start->told |= 2;
		return true;
	case NR_prlimit64:
		return on & KX_LIBSTART_STACK && !(uint32_t)f->rdi && (uint32_t)f->rsi == RLIMIT_STACK && !f->rdx &&
		       f->r10 && !user_write(f->r10, start->stack_limit, sizeof start->stack_limit);
	}
	return false;
}
