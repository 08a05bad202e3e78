/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of a VM, off the way of those who wait for a process to end or to exec.
 *
 * KVM takes a VM apart when its last descriptor is closed, in the context of whoever closes it, and sleeps meanwhile for
 * grace periods of RCU (kvm_destroy_vm() in virt/kvm/kvm_main.c; kvm_mmu_uninit_tdp_mmu(): rcu_barrier()): 10-20 ms with a
 * TDP MMU. A process's parent would hear of its end only afterwards, and an exec go on only afterwards. So another process,
 * the closer, holds a copy of each VM's descriptor, and closes it once the VM's process has ended (its pidfd tells) or has
 * another VM; where there are many, by threads, since grace periods are shared. It sees no guest memory: a VM refers to that by addresses of its
 * own process.
 *
 * Each family's root, and each process that `kylinx exec` adds, makes one before anything else (apart.h), so that it has
 * nothing of the family's: neither its namespaces nor its locks, files or standard streams. It ends after the last process
 * that could tell it something, however that ended. Without one, or where it is behind, VMs end as they would.
 */
#ifndef KX_VMEND_H
#define KX_VMEND_H

/* Make the closer; before this process has threads, or anything that must not be held. No closer is no error. */
void vmend_start(void);
/* Its socket, -1: there is none; after exec, what that was. */
int vmend_fd(void);
void vmend_adopt(int fd);
/* Have pvm.vm_fd held until the calling process ends, or calls this with another one, or lets go of it. */
void vmend_hold(void);
void vmend_let_go(void);
#endif
