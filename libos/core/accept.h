/* SPDX-License-Identifier: Apache-2.0 */
/* Connections that were accepted ahead (monitor/core/batch_accept.c). */
#ifndef KX_LIBOS_ACCEPT_H
#define KX_LIBOS_ACCEPT_H
#include "ahead.h"

/* accept4: true and *ret set where the next connection is here already. */
bool accept_call(struct kx_bctx *c, struct kx_frame *f, uint32_t flags, int64_t *ret);
/* fd is free for the calls that follow, or one below it. */
void accept_freed(struct kx_bctx *c, int32_t fd);
#endif
