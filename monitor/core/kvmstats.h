/* SPDX-License-Identifier: Apache-2.0 */
/* What KVM itself has counted for this process's VM (KVM api.rst, 4.133 KVM_GET_STATS_FD). */
#ifndef KX_KVMSTATS_H
#define KX_KVMSTATS_H
#include <stdint.h>

/* Page faults of the guest that KVM has resolved (`pf_fixed`), over all vCPUs. 0 where KVM does not say (before Linux
 * 5.14), or while another thread holds the list of threads: then they are in the next answer. */
uint64_t kvmstats_page_faults(void);
#endif
