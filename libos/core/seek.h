/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KX_SEEK_H
#define KX_SEEK_H
#include "ahead.h"

/* lseek: true and *ret set where it is known how long the file is, and the position is its end already. */
bool seek_end(struct kx_bctx *c, struct kx_frame *f, int64_t *ret);
#endif
