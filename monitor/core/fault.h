/* SPDX-License-Identifier: Apache-2.0 */
/* Guest faults: from exceptions and from accesses that the host's protection refused, to signals. */
#ifndef KX_FAULT_H
#define KX_FAULT_H
#include "pvm.h"

/* Exception `vec` with its error code at user state *r (original rip etc.). Either mends it (returns 0: run on with
 * *r) or leaves a signal for t (returns 1; user state must go to the frame). */
int fault_exception(struct thread *t, struct kvm_regs *r, unsigned vec, uint64_t err, uint64_t cr2, uint64_t fs_base);
/* KVM_RUN said EFAULT at *r: find the operand that did it. Returns as above. */
int fault_access(struct thread *t, struct kvm_regs *r, uint64_t fs_base, uint64_t gs_base);
#endif
