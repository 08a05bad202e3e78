/* SPDX-License-Identifier: Apache-2.0 */
/* Files that the monitor has opened ahead: abi/kx_openahead.h. */
#include "../../abi/kx_openahead.h"
#include "numbers.h"

#define NR_read 0
#define NR_open 2
#define NR_close 3
#define NR_fstat 5
#define NR_pread64 17
#define NR_openat 257
#define NR_newfstatat 262
#define AT_EMPTY_PATH 0x1000

static struct kx_openahead *const ahead = (struct kx_openahead *)KX_OPENAHEAD_BASE;

void openahead_stale(void) { ahead->on = 0; }

static bool is_named(const struct kx_openahead_file *e, uint64_t gva)
{
	char path[KX_OPENAHEAD_PATH];
	uint64_t n = (uint64_t)e->path_len + 1;
	if (n > sizeof path || user_read(path, gva, n))
		return false;
	for (uint64_t i = 0; i < n; i++)
		if (path[i] != e->path[i])
			return false;
	return true;
}

static bool open_one(uint64_t path, uint32_t flags, int64_t *ret)
{
	for (uint32_t i = 0; !ahead->open && i < KX_OPENAHEAD_FILES; i++) {
		struct kx_openahead_file *e = &ahead->file[i];
		if (!e->ready || e->flags != flags || !is_named(e, path))
			continue;
		int32_t fd = numbers_lowest();
		if (fd < 0)
			return false;
		numbers_take();
		e->uses++;
		ahead->fd = fd;
		ahead->pos = 0;
		ahead->open = i + 1;
		*ret = ahead->fd;
		return true;
	}
	return false;
}

struct kx_openahead_file *openahead_file(uint64_t fd, int32_t *as)
{
	uint32_t n = ahead->open;
	if (!ahead->on || !n || n > KX_OPENAHEAD_FILES || (int32_t)fd != ahead->fd)
		return NULL;
	*as = KX_OPENAHEAD_FD((int32_t)n - 1);
	return &ahead->file[n - 1];
}

static bool read_at(struct kx_openahead_file *e, uint64_t buf, uint64_t len, uint64_t at, int64_t *ret)
{
	uint64_t left = at < e->size ? e->size - at : 0, n = len < left ? len : left;
	const uint8_t *data = (const uint8_t *)KX_OPENAHEAD_BASE + KX_OPENAHEAD_DATA +
			      (e - ahead->file) * KX_OPENAHEAD_DATA_SIZE;
	e->wants = 1;
	if (!e->whole || e->size > KX_OPENAHEAD_DATA_SIZE || (int64_t)at < 0 || (n && user_write(buf, data + at, n)))
		return false;
	*ret = (int64_t)n;
	return true;
}

static bool put_stat(const struct kx_openahead_file *e, uint64_t at, int64_t *ret)
{
	*ret = 0;
	return user_write(at, e->stat, sizeof e->stat) == 0; /* else the monitor's: it knows the error */
}

bool openahead_call(struct kx_frame *f, int64_t *ret)
{
	int32_t as;
	char c = 1;
	if (!ahead->on)
		return false;
	if (f->orig_rax == NR_open)
		return open_one(f->rdi, (uint32_t)f->rsi, ret);
	if (f->orig_rax == NR_openat)
		return open_one(f->rsi, (uint32_t)f->rdx, ret);
	struct kx_openahead_file *e = openahead_file(f->rdi, &as);
	if (!e)
		return false;
	switch (f->orig_rax) {
	case NR_read:
		if (!read_at(e, f->rsi, f->rdx, ahead->pos, ret))
			return false;
		ahead->pos += (uint64_t)*ret;
		return true;
	case NR_pread64:
		return read_at(e, f->rsi, f->rdx, f->r10, ret);
	case NR_fstat:
		return put_stat(e, f->rsi, ret);
	case NR_newfstatat:
		return (uint32_t)f->r10 == AT_EMPTY_PATH && !user_read(&c, f->rsi, 1) && !c && put_stat(e, f->rdx, ret);
	case NR_close:
		ahead->open = 0;
		numbers_put(ahead->fd);
		*ret = 0;
		return true;
	}
	return false;
}
