/* SPDX-License-Identifier: Apache-2.0 */
/* What a virtual processor must have: features that programs, the LibOS and the guest's memory use without asking. */
#ifndef KX_NEEDS_H
#define KX_NEEDS_H
#include <linux/kvm.h>
#include "../../util/err.h"

/* c: what KVM supports (KVM_GET_SUPPORTED_CPUID). 0; else -ENOTSUP, and err has all that is missing and a remedy. */
int needs_check(const struct kvm_cpuid2 *c, struct kx_err *err);
#endif
