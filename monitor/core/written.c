/* SPDX-License-Identifier: Apache-2.0 */
#include "written.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include "../../util/grow.h"
#include "gmem.h"

#define PAGE 4096ull
#define PAGES_MAX (1u << 16) /* single pages that are marked */
#define FEW 64u              /* a range of more pages is noted as one */
#define RANGES_MAX 512u
#define IOV_LIMIT 1024u
#define BITS (KX_USER_END / PAGE / 8)

volatile int written_on;
static bool left; /* KVM may be noting still */
static struct {
	uint8_t *seen; /* a bit for each page that is in page[] */
	uint32_t *page;
	unsigned nr_pages;
	struct {
		uint64_t start, end;
	} range[RANGES_MAX];
	unsigned nr_ranges;
	int overflow;
} marks;

static void add_range(uint64_t start, uint64_t end)
{
	unsigned n = __atomic_load_n(&marks.nr_ranges, __ATOMIC_ACQUIRE);
	for (unsigned i = 0; i < n && i < RANGES_MAX; i++)
		if (__atomic_load_n(&marks.range[i].end, __ATOMIC_ACQUIRE) >= end && marks.range[i].start <= start)
			return;
	unsigned i = __atomic_fetch_add(&marks.nr_ranges, 1, __ATOMIC_SEQ_CST);
	if (i >= RANGES_MAX) {
		marks.overflow = 1;
		return;
	}
	marks.range[i].start = start;
	__atomic_store_n(&marks.range[i].end, end, __ATOMIC_RELEASE);
}

void written_add(uint64_t gva, uint64_t len)
{
	uint64_t limit = gva < KX_USER_END ? KX_USER_END : pvm.high_end;
	if (!len || gva >= limit || (gva >= KX_USER_END && gva < KX_SPACE_SIZE))
		return;
	uint64_t end = len > limit - gva ? limit : gva + len, first = gva / PAGE, last = (end - 1) / PAGE;
	if (last - first >= FEW || gva >= KX_SPACE_SIZE) {
		add_range(first * PAGE, (last + 1) * PAGE);
		return;
	}
	for (uint64_t p = first; p <= last; p++) {
		uint8_t bit = (uint8_t)(1u << p % 8);
		if (__atomic_fetch_or(&marks.seen[p / 8], bit, __ATOMIC_SEQ_CST) & bit)
			continue;
		unsigned i = __atomic_fetch_add(&marks.nr_pages, 1, __ATOMIC_SEQ_CST);
		if (i >= PAGES_MAX)
			marks.overflow = 1;
		else
			__atomic_store_n(&marks.page[i], (uint32_t)p, __ATOMIC_SEQ_CST);
	}
}

static void add_vector(uint64_t at, uint64_t n)
{
	struct iovec v;
	for (uint64_t i = 0; i < n && i < IOV_LIMIT && !guest_read(&v, at + i * sizeof v, sizeof v); i++)
		written_add((uint64_t)v.iov_base, v.iov_len);
}

static void add_message(uint64_t at)
{
	struct msghdr m;
	if (guest_read(&m, at, sizeof m))
		return;
	written_add((uint64_t)m.msg_name, m.msg_namelen);
	written_add((uint64_t)m.msg_control, m.msg_controllen);
	add_vector((uint64_t)m.msg_iov, m.msg_iovlen);
}

void written_add_call(uint64_t nr, const uint64_t arg[6])
{
	const struct hc_row *row = hc_row_find(nr);
	for (int i = 0; row && i < 6 && row->arg[i].kind != KX_A_NONE; i++) {
		const struct kx_arg_desc *d = &row->arg[i];
		switch (d->kind) {
		case KX_A_OUT:
			written_add(arg[i], row->arg[d->aux].kind == KX_A_SIZE ? arg[d->aux] : (uint32_t)arg[d->aux]);
			break;
		case KX_A_IOVO:
			add_vector(arg[i], row->arg[d->aux].kind == KX_A_SIZE ? arg[d->aux] : (uint32_t)arg[d->aux]);
			break;
		case KX_A_OUTS:
		case KX_A_INOUTS:
		case KX_A_OUTSO:
		case KX_A_INOUTSO:
			if (arg[i])
				written_add(arg[i], (uint64_t)d->aux);
			break;
		}
	}
	/* What the kernel writes past the columns: handlers write by guest_write(), which marks, but for these. */
	struct mmsghdr m;
	switch (nr) {
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
	case SYS_epoll_pwait2:
		written_add(arg[1], (uint32_t)arg[2] * sizeof(struct epoll_event));
		break;
	case SYS_recvfrom:
		written_add(arg[1], arg[2]);
		break;
	case SYS_recvmsg:
		add_message(arg[1]);
		break;
	case SYS_recvmmsg:
		for (uint64_t i = 0; i < (uint32_t)arg[2] && i < IOV_LIMIT; i++)
			add_message(arg[1] + i * sizeof m);
		break;
	case SYS_msgrcv:
		written_add(arg[1], arg[2] + 8);
		break;
	}
}

int written_start(void)
{
	if (written_on)
		return 0;
	uint8_t *p = marks.seen ? marks.seen
				: mmap(NULL, BITS + PAGES_MAX * sizeof *marks.page, PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return -errno;
	/* A parent's, or those that a stop could not take away: a page that counts as noted would not be. */
	if (marks.seen && madvise(p, BITS + PAGES_MAX * sizeof *marks.page, MADV_DONTNEED))
		return -errno;
	marks.nr_pages = marks.nr_ranges = 0;
	marks.overflow = 0;
	memset(marks.range, 0, sizeof marks.range);
	marks.seen = p;
	marks.page = (uint32_t *)(p + BITS);
	__atomic_store_n(&written_on, 1, __ATOMIC_SEQ_CST);
	int r = gmem_log_writes(true);
	if (r) {
		written_stop();
		return r;
	}
	/* Calls that began before. */
	pthread_mutex_lock(&pvm.thr_lock);
	for (struct thread *t = pvm.threads; t; t = t->next)
		if (__atomic_load_n(&t->hcall, __ATOMIC_SEQ_CST)) {
			struct kx_call c;
			memcpy(&c, (const void *)&t->area->call, sizeof c);
			written_add_call(c.nr, c.arg);
		}
	pthread_mutex_unlock(&pvm.thr_lock);
	return 0;
}

/* The table stays: somebody may be marking just now. */
void written_stop(void)
{
	if (!written_on)
		return;
	__atomic_store_n(&written_on, 0, __ATOMIC_SEQ_CST);
	left = gmem_log_writes(false) != 0;
	madvise(marks.seen, BITS + PAGES_MAX * sizeof *marks.page, MADV_DONTNEED);
}

bool written_left(void) { return left; }

void written_settle(void)
{
	if (!written_on)
		left = gmem_log_writes(false) != 0;
}

void written_fork_child(void)
{
	written_on = 0;
	left = false; /* the parent's VM */
}

/* Those of one call lie side by side: in one range. */
static void take_pages(written_fn fn, void *arg)
{
	unsigned n = __atomic_load_n(&marks.nr_pages, __ATOMIC_SEQ_CST);
	uint64_t first = 0, end = 0;
	for (unsigned i = 0; i < n && i < PAGES_MAX; i++) {
		uint64_t p = __atomic_load_n(&marks.page[i], __ATOMIC_SEQ_CST);
		if (!p) /* its owner is about to note it, and to write after that */
			continue;
		if (p != end) {
			if (end)
				fn(arg, first * PAGE, end * PAGE);
			first = p;
		}
		end = p + 1;
	}
	if (end)
		fn(arg, first * PAGE, end * PAGE);
}

static bool take(bool last, written_fn fn, void *arg)
{
	if (marks.overflow || gmem_written(last, fn, arg))
		return false;
	take_pages(fn, arg);
	unsigned n = __atomic_load_n(&marks.nr_ranges, __ATOMIC_SEQ_CST);
	for (unsigned i = 0; i < n && i < RANGES_MAX; i++)
		if (marks.range[i].end)
			fn(arg, marks.range[i].start, marks.range[i].end);
	return !marks.overflow;
}

bool written_take(written_fn fn, void *arg) { return take(true, fn, arg); }

static void note(void *arg, uint64_t start, uint64_t end)
{
	struct written_list *a = arg;
	if (!kx_room(a->r, a->cap, a->nr + 1, 256)) {
		a->failed = true;
		return;
	}
	a->r[a->nr].start = start;
	a->r[a->nr++].end = end;
}

bool written_take_list(struct written_list *a)
{
	*a = (struct written_list){ 0 };
	pthread_mutex_lock(&pvm.mm_lock);
	bool good = take(false, note, a) && !a->failed;
	pthread_mutex_unlock(&pvm.mm_lock);
	return good;
}
