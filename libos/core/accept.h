/* SPDX-License-Identifier: Apache-2.0 */
/* Connections that were accepted ahead (monitor/core/batch_accept.c). */
#ifndef KX_LIBOS_ACCEPT_H
#define KX_LIBOS_ACCEPT_H
#include "../../abi/kx_accept.h"
#include "ahead.h"

/* That listener has connections that are here already. */
bool accept_offers(const struct kx_bctx *c, int32_t listener);
/* accept4: the next connection that is here already, NULL: none. *fd: the number that it gets; if that is not its own a
 * record with *name must tell before accept_given(): the program has got it. False: the monitor has taken it back. */
const struct kx_accepted *accept_next(struct kx_bctx *c, const struct kx_frame *f, uint32_t flags, int32_t *fd,
				      struct kx_bfd *name);
bool accept_given(struct kx_bctx *c, uint32_t index, int32_t fd);
/* At which number is what the program of c's thread knows as fd? False: it is nothing of ours. */
bool accept_find(const struct kx_bctx *c, uint32_t fd, uint32_t *at);
/* epoll_wait: true and *ret set where it tells of such connections, and of the listener. */
bool accept_wait(struct kx_bctx *c, struct kx_frame *f, int64_t *ret);
/* Would it tell of something? */
bool accept_tells(const struct kx_bctx *c, int32_t epoll);
/* A record is about to be queued: as of ahead.h. accept_added(): true where fd is one of them, and told of here. */
bool accept_added(struct kx_bctx *c, int32_t fd, const struct kx_badd *add);
/* The next wait will tell of fd, which is none of them: those that follow do, too, if it is by level. */
void accept_told(struct kx_bctx *c, int32_t fd, const struct kx_badd *add, uint32_t events);
void accept_gone(struct kx_bctx *c, int32_t fd);
void accept_closed(struct kx_bctx *c, int32_t fd);
void accept_changed(struct kx_bctx *c);
void accept_shut(struct kx_bctx *c, int32_t fd);
#endif
