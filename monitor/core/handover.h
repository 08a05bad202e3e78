/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A vCPU of the pool is run by another thread than before: each thread of the program's and each child of vfork is a new one
 * of the host's. Before Linux 6.13 KVM_RUN then waits for a grace period of RCU (kvm_vcpu_ioctl() in virt/kvm/kvm_main.c;
 * KVM keeps the number of the last thread), 10 ms and more. Not for a vCPU that nobody has run yet; so where KVM waits, what
 * is taken from the pool gets a new vCPU, within limits: KVM keeps those that are closed until the VM ends.
 */
#ifndef KX_HANDOVER_H
#define KX_HANDOVER_H
#include "pvm.h"

/* Is another vCPU to be taken, after so many that this VM has had in place of others? Not before handover_learn() has shown that
 * KVM waits here, and not more than an eighth of what KVM has for a VM, some 40 KiB of the kernel's each. */
bool handover_pays(int renewed);
/* By the thread that will run t's vCPU, which another one has run before. */
void handover_learn(struct thread *t);
/* Give t, which nobody runs, another vCPU of that number. What the old one was to run is forgotten. 0, or -errno: t has the
 * one that it had. */
int handover_renew(struct thread *t, int number);
#endif
