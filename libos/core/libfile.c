/* SPDX-License-Identifier: Apache-2.0 */
#include "../../abi/kx_libfile.h"
#include "libos.h"

#define AT_EMPTY_PATH 0x1000

static bool put_stat(const struct kx_libfile *l, uint64_t at, int64_t *ret)
{
	*ret = 0;
	return user_write(at, l->stat, sizeof l->stat) == 0; /* else the monitor's: it knows the error */
}

bool libfile_call(struct kx_frame *f, int64_t *ret)
{
	struct kx_libfile *l = (struct kx_libfile *)KX_LIBFILE_BASE;
	uint64_t n = f->rdx < l->len ? f->rdx : l->len;
	char c = 1;
	switch (f->orig_rax) {
	case 0: /* read */
		if ((int32_t)f->rdi != l->fd || l->used || !n || (f->rdx > n && l->len == KX_LIBFILE_HEAD) ||
		    user_write(f->rsi, l->head, n))
			return false;
		l->used = (uint32_t)n;
		*ret = (int64_t)n;
		return true;
	case 3: /* close */
		if ((int32_t)f->rdi != l->fd)
			return false;
		l->on = 0;
		l->closed = 1;
		*ret = 0;
		return true;
	case 5: /* fstat */
		return (int32_t)f->rdi == l->fd && put_stat(l, f->rsi, ret);
	case 262: /* newfstatat */
		return (int32_t)f->rdi == l->fd && (uint32_t)f->r10 == AT_EMPTY_PATH && !user_read(&c, f->rsi, 1) &&
		       !c && put_stat(l, f->rdx, ret);
	}
	return false;
}
