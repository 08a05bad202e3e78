/* SPDX-License-Identifier: Apache-2.0 */
/*
 * exec: the process becomes this monitor again, with a new VM, and loads the new program. The host's own exec keeps
 * what exec keeps (pid, descriptors without close-on-exec, ignored signals, pending ones, limits, jail, filter) and
 * ends what it ends (other threads, handlers, memory). What only the monitor knows travels in a memfd.
 */
#ifndef KX_EXEC_H
#define KX_EXEC_H
#include <sys/resource.h>
#include "admit.h"
#include "apart.h"
#include "batch.h"
#include "maps.h"
#include "pvm.h"

#define EXEC_NAME "kylinx-exec" /* argv[0] of a monitor that continues; argv[1] is the memfd's number */

struct exec_state {
	uint32_t magic, size;
	int32_t kvm_fd, proc_fd, exe_fd, family_fd, log_fd, trace_fd, stats_fd, program_fd, registry_fd;
	uint32_t fd_limit, fd_max, argc, envc;
	uint64_t memory, sigmask, held, start_ns;
	int32_t cpus, nr_execs;
	cpu_set_t cpu_set;
	uint8_t strace, stats, is_child, was_vfork, has_family, log_level, io;
	struct rlimit limits[16];
	uint64_t xcr0;
	bool shadow_paging;
	uint8_t tsc;
	int32_t kvm_run_size, text_fd, text_fd_ro, update_fd[2], store_fd, policy_fd, vmend_fd;
	pid_t apart[APART_MAX];
	struct admit_root root;
	struct batch_handed accepted;
	struct maps_known known[MAPS_KNOWN];
	uint32_t cpuid_bytes;
	/* then struct kvm_cpuid2, cpuid_bytes of it; when signals are held, what they say (thread.held_info); then
	 * NUL-terminated: name, program, argv..., envp... */
};

/* Before the jail. */
void exec_init(void);

/* Read the state and run; returns only on failure. */
int exec_resume(int fd, struct kx_err *err);
#endif
