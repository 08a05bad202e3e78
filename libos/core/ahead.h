/* SPDX-License-Identifier: Apache-2.0 */
/* Waits that the exit of an earlier call has looked ahead for (monitor/core/batch_ahead.c). */
#ifndef KX_AHEAD_H
#define KX_AHEAD_H
#include "libos.h"

#define BATCH ((struct kx_batch *)KX_BATCH_BASE)
#define SOCKS ((struct kx_bsock *)(KX_BATCH_BASE + KX_BATCH_SOCKS))
#define EV_IN (1u | 0x40u)            /* EPOLLIN, EPOLLRDNORM */
#define EV_OUT (4u | 0x100u | 0x200u) /* EPOLLOUT, EPOLLWRNORM, EPOLLWRBAND */
#define EV_ALWAYS (8u | 0x10u)        /* EPOLLERR, EPOLLHUP */
#define EV_ONESHOT (1u << 30)
#define EV_ET (1u << 31)
#define EV_SIZE 12 /* struct epoll_event is packed */

/* Has this thread queued, since its last exit, what might make something ready in this process? */
static inline bool may_know(const struct kx_bctx *c) { return BATCH->selfish && c->said > c->mark; }

/* epoll_wait: true and *ret set where what was looked at is still all that it would tell. */
bool ahead_wait(struct kx_bctx *c, struct kx_frame *f, int64_t *ret);
/* A record is about to be queued: fd is put into an epoll; taken out, or closed; some registration changes. */
void ahead_added(struct kx_bctx *c, int32_t fd, const struct kx_badd *add);
void ahead_gone(struct kx_bctx *c, int32_t fd);
void ahead_changed(struct kx_bctx *c);
/* What of an event is still so, as this thread alone may have changed it by reads without an exit. */
uint32_t ahead_still(const struct kx_bctx *c, const struct kx_bevent *e);
/* fd sends no more. */
void ahead_shut(struct kx_bctx *c, int32_t fd);
#endif
