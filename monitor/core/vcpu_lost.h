/* SPDX-License-Identifier: Apache-2.0 */
/* What is told of a vCPU that shut down (a fault while a double fault was delivered), for whoever has to find out why. */
#ifndef KX_VCPU_LOST_H
#define KX_VCPU_LOST_H
#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>

/* How a vCPU was sent into the guest for the last time. */
struct vcpu_entered {
	uint64_t rip, rsp, rflags;
};
/* What the processor put on ring 0's stack for the last exception that it delivered; zeros: none yet. */
struct vcpu_frame {
	uint64_t err, rip, cs, rflags, rsp, ss; /* err: of an exception that has a code */
};
struct vcpu_lost {
	struct vcpu_entered entered;
	struct vcpu_frame frame;
	uint64_t last_hcall;  /* -1ull: none */
	struct kvm_regs regs; /* as KVM tells them now: with SVM, those of a processor after a reset */
	struct kvm_sregs sregs;
};

/* One line about l, without a newline, cut to size bytes. Waits for no lock. */
void vcpu_lost_text(char *out, size_t size, const struct vcpu_lost *l);
#endif
