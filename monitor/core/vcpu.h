/* SPDX-License-Identifier: Apache-2.0 */
/* The VM and its vCPUs: creation, registers, and the loop that runs one. */
#ifndef KX_VCPU_H
#define KX_VCPU_H
#include "pvm.h"

/* Open /dev/kvm and ask what does not change, without waiting for the answer. Errors name the remedy. */
int vm_open(struct kx_err *err);
/* ... wait for it, if it was asked for. Until then this process has a second thread. */
int vm_features(struct kx_err *err);
/* In a new monitor after exec: what vm_open() found out, from the old one. cpuid stays in use. */
void vm_adopt(int kvm_fd, int kvm_run_size, uint64_t xcr0, struct kvm_cpuid2 *cpuid);
/* Make this process's VM. Retries EINTR (a signal may be pending). */
int vm_create(struct kx_err *err);
/* Give t a vCPU: descriptor, run area, fixed registers. t->index and t->area are set. 0 or -errno. */
int vcpu_create(struct thread *t);
/* Its two steps: the descriptor and run area of that number in the VM; the rest. */
int vcpu_open(struct thread *t, int number);
int vcpu_set_up(struct thread *t);
/* KVM makes a thread for a VM that runs first, which fails at the limit of processes: have it made. 0 or -errno. */
int vcpu_prove(struct thread *t);
/* Let t's vCPU continue with these registers. They take effect with its next KVM_RUN, at no call of their own. */
void vcpu_set_regs(struct thread *t, const struct kvm_regs *regs, const struct kvm_sregs *sregs);
/* The part of it that takes memory of the system region: for a thread whose vCPU a child of vfork will make. */
int vcpu_block_prepare(int index);
/* Tell the LibOS what `cpuid` says on t's vCPU, with the registers that programs run with; from here on pvm.cpuid says
 * the same. Returns 0 or -errno. */
int vcpu_cpuid_publish(struct thread *t);
/* Set up t's vCPU to return to the program by the frame in t's area, with that FS base. */
void vcpu_start_state(struct thread *t, uint64_t fs_base);
/* Copy vector and floating-point state; src must be the calling thread. 0 or -errno. */
int vcpu_copy_fpu(struct thread *dst, struct thread *src);
/* Segments, tables and control registers of a vCPU that stands out of the guest: the calling thread's, or one's that is
 * stopped. 0, or -errno with what was last known. */
int vcpu_sregs(struct thread *t, struct kvm_sregs *out);
uint64_t vcpu_fs_base(struct thread *t);
/*
 * r of a vCPU that stands in a hypercall, for a vCPU that knows nothing of it: behind the `out`. KVM that emulates the
 * instruction is there already; where hardware tells of it, KVM steps over it only at the next run of the old vCPU.
 */
void vcpu_behind_gate(struct kvm_regs *r);
/*
 * What is on its way into the guest (an exception whose delivery KVM_RUN left for its next time) when t's vCPU gets other
 * registers: none of it any more; the same, and what it was, for later. What an instruction made (int3) KVM does not tell:
 * that instruction is executed again.
 */
void vcpu_events_drop(struct thread *t);
void vcpu_events_take(struct thread *t, struct kvm_vcpu_events *out);
void vcpu_events_give(struct thread *t, const struct kvm_vcpu_events *e);
/* Runs t for as long as it lives: what ends it, or its process, ends this thread in the handler of the hypercall. */
void vcpu_loop(struct thread *t) __attribute__((noreturn));
/* One turn of it: into the guest and out again, or what comes before. */
void vcpu_step(struct thread *t);
#endif
