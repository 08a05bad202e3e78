/* SPDX-License-Identifier: Apache-2.0 */
/* Lies about calls, signals and threads. Part of hostile.c. */
#ifndef KX_GUEST_HOSTILE_LIES_H
#define KX_GUEST_HOSTILE_LIES_H
#include "values.h"

/* ---- lies in the memory that LibOS and monitor share ---------------------------------------- */

static struct kx_thread *victim; /* the main thread's */
static struct kx_shared *shared = (void *)KX_BOOT_BASE;
static volatile int stop;
static struct iovec lie_iov[8];
static struct msghdr lie_msg;
static union {
	char buf[128];
	struct cmsghdr align;
} lie_ctl;
static struct pollfd lie_poll[8];
static char lie_path[PATH_MAX + 16];
static uint64_t lie_struct[64];

static inline uint64_t any_value(void)
{
	static const uint64_t v[] = {
		0,           1,          ~0ull,   KX_LIBOS_BASE, KX_BOOT_BASE, KX_SYS_BASE,    KX_SPACE_SIZE,
		KX_USER_END, 1ull << 63, INT_MAX, 65536,         64,           0x7fffffffe000, 0xffff800000000000,
		KX_AREA_BASE
	};
	switch (below(4)) {
	case 0:
		return v[below(LEN(v))];
	case 1:
		return below(4096);
	case 2:
		return (uint64_t)good + below(2 * PAGE);
	}
	return rnd() >> below(64);
}

static inline void scribble(void *base, size_t len)
{
	size_t at = below(len / 8) * 8;
	*(volatile uint64_t *)((uint8_t *)base + at) = any_value();
}

static inline void lie_arg(void) { victim->call.arg[below(6)] = any_value(); }
static inline void lie_nr(void)
{
	static const unsigned nrs[] = { 0,   1,   2,   3,   4,   5,   7,   8,    12,   13,   14,   16,   19,  20,
					23,  32,  33,  44,  46,  47,  72,  79,   89,   96,   99,   202,  217, 228,
					230, 257, 262, 270, 271, 293, 302, 1024, 1025, 1027, 1029, 1055, 1056 };
	victim->call.nr = below(8) ? nrs[below(LEN(nrs))] : any_value();
	lie_arg();
}
static inline void lie_iovec(void)
{
	volatile struct iovec *v = &lie_iov[below(8)];
	v->iov_base = (void *)any_value();
	v->iov_len = below(2) ? below(300) : any_value();
	v->iov_base = good;
	v->iov_len = 16;
}
static inline void lie_message(void)
{
	scribble(&lie_msg, sizeof lie_msg);
	scribble(&lie_ctl, sizeof lie_ctl);
	lie_msg = (struct msghdr){ .msg_iov = lie_iov, .msg_iovlen = 4, .msg_control = &lie_ctl, .msg_controllen = 24 };
	lie_ctl.align = (struct cmsghdr){ .cmsg_len = CMSG_LEN(4), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
	*(volatile int *)CMSG_DATA(&lie_ctl.align) = 1;
	*(volatile int *)CMSG_DATA(&lie_ctl.align) = fd_limit + below(32);
}
static inline void lie_pollfd(void) { lie_poll[below(8)].fd = below(2) ? (int)(fd_limit + below(32)) : 1; }
static inline void lie_string(void)
{
	lie_path[below(sizeof lie_path)] = below(3) ? 'a' : '/';
	lie_path[below(40)] = below(2) ? 0 : 'p';
	memcpy(lie_path, below(2) ? "/proc/self/fd/0" : "/tmp/hostile/f", 15);
}
static inline void lie_structs(void) { scribble(lie_struct, sizeof lie_struct); }
static inline void lie_work(void) { *(volatile uint32_t *)&victim->work = (uint32_t)any_value(); }
static inline void lie_masks(void)
{
	*(volatile uint64_t *)&victim->sigmask = any_value();
	*(volatile uint64_t *)&victim->host_mask = any_value();
	*(volatile uint64_t *)&victim->saved_mask = any_value();
	*(volatile uint32_t *)&victim->has_saved_mask = below(2);
}
static inline void lie_signal(void)
{
	*(volatile uint32_t *)&victim->sig.forced = (uint32_t)any_value();
	scribble(&victim->sig, sizeof victim->sig);
	*(volatile uint32_t *)&victim->sig.signo = below(2) ? (uint32_t)below(70) : (uint32_t)any_value();
	*(volatile uint32_t *)&victim->work = KX_WORK_SIGNAL;
}
static inline void lie_actions(void) { scribble(shared->sigaction, sizeof shared->sigaction); }
static inline void lie_action_ptr(void) { *(volatile uint64_t *)&victim->actions = any_value(); }
static inline void lie_area(void) { scribble(victim, sizeof *victim); }
static inline void lie_area_pages(void) { scribble(victim, KX_AREA_SIZE); }
static inline void lie_area_any(void) { scribble((void *)KX_AREA_BASE, KX_AREA_SIZE * 4); }
static inline void lie_nr_sites(void)
{
	*(volatile uint64_t *)&shared->nr_sites = below(2) ? ~0ull >> below(40) : any_value();
}
static inline void lie_seq(void) { *(volatile uint64_t *)&shared->sites_seq = rnd() | 1; }
static inline void lie_sites(void)
{
	scribble((void *)KX_SITES_BASE, 4096);
	scribble((void *)KX_SITES_BASE, KX_SITES_MAX * sizeof(struct kx_site));
}
static inline void lie_shared(void) { scribble(shared, sizeof *shared); }
static inline void lie_shared_head(void) { scribble(shared, __builtin_offsetof(struct kx_shared, sigaction)); }
static inline void lie_batch(void)
{
	uint8_t *base = (uint8_t *)KX_BATCH_BASE, *ctx = base + KX_BATCH_CTX;
	scribble(base, sizeof(struct kx_batch));
	scribble(base + KX_BATCH_SOCKS, 64 * sizeof(struct kx_bsock));
	scribble(ctx + KX_BATCH_TX, 4096);
	if (below(8) == 0)
		scribble(ctx, sizeof(struct kx_bctx));
	if (below(4) == 0)
		((volatile struct kx_bctx *)ctx)->head += 32 * below(100);
}
static inline void lie_dgram(void)
{
	uint8_t *base = (uint8_t *)KX_DGRAM_BASE, *ctx = base + KX_DGRAM_CTX;
	scribble(base, sizeof(struct kx_dgram));
	scribble(base + KX_DGRAM_SOCK, KX_DGRAM_SOCKS * sizeof(struct kx_dsock));
	scribble(base + KX_DGRAM_BUF, 2048);
	scribble(base + KX_DGRAM_BUF + KX_DGRAM_PEERS, 1024);
	scribble(ctx + KX_DGRAM_TX, 4096);
	if (below(8) == 0)
		scribble(ctx, sizeof(struct kx_dctx));
	if (below(4) == 0)
		((volatile struct kx_dctx *)ctx)->head += 32 * below(100);
}
static inline void lie_vfork(void)
{
	*(volatile uint32_t *)&victim->vfork = below(2);
	*(volatile uint32_t *)&victim->pid = (uint32_t)any_value();
	*(volatile uint32_t *)&victim->tid = (uint32_t)any_value();
	*(volatile uint32_t *)&victim->index = (uint32_t)any_value();
}
static inline void lie_tid_ptr(void)
{
	*(volatile uint64_t *)&victim->clear_tid = any_value();
	*(volatile uint64_t *)&victim->altstack_sp = any_value();
	*(volatile uint64_t *)&victim->altstack_size = any_value();
	*(volatile uint32_t *)&victim->altstack_flags = (uint32_t)any_value();
}
#endif
