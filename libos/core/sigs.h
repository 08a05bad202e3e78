/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KX_LIBOS_SIGS_H
#define KX_LIBOS_SIGS_H
#include "../../abi/kx_sigs.h"
#include "ahead.h"

/* kill: is it sure to be done when it is queued? */
bool sigs_may_kill(struct kx_bctx *c, const struct kx_bkill *k);
/* read: true and *ret set where the exit of the last wait has read that signalfd. */
bool sigs_read(struct kx_bctx *c, struct kx_frame *f, int64_t *ret);
#endif
