/* SPDX-License-Identifier: Apache-2.0 */
/* What of sys_poll.c others use. */
#ifndef KX_SYS_POLL_H
#define KX_SYS_POLL_H
#include "hcall.h"

/* select(2) by c's arguments, without waiting. */
int64_t poll_select_now(struct hcall *c);
#endif
