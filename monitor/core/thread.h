/* SPDX-License-Identifier: Apache-2.0 */
/* Guest threads: each a host thread with a vCPU. vCPUs of ended threads are kept and used again. */
#ifndef KX_THREAD_H
#define KX_THREAD_H
#include "hcall.h"

/* The first thread, on the calling host thread: area, vCPU. */
struct thread *thread_first(struct kx_err *err);
/* The calling guest thread ends (status is that of exit(2)); does not return. */
_Noreturn void thread_exit(struct thread *t, int status);
/* True when tid is a live thread of this pVM. */
bool thread_is_ours(pid_t tid);
#endif
