/* SPDX-License-Identifier: Apache-2.0 */
/*
 * --stats: what the program and its family did, as one JSON object on one line, written when the first process ends,
 * also behind an exec.
 *
 * Of the process that writes, as it is at its end:
 *   pid, program        the program's absolute path; name: that of --name
 *   wall_ns             since the start of kylinx
 *   start_ns            CLOCK_MONOTONIC at the start of kylinx's main()
 *   boot_ns             what the steps from there to the first guest instruction took: prepare (family, registry),
 *                       machine (VM, memory, LibOS), jail, load (program and loader), filter; not behind an exec
 *   vcpus               vCPUs made for this process image
 *   memory_slots        KVM memory slots in use
 *   flushes             how often all that KVM had of the guest's page tables was dropped
 *   syscall_sites       `syscall` instructions found in executable mappings, and how many of them were patched
 *   max_rss_kib         peak resident memory of the process
 * Sums over the family:
 *   hypercalls          total, and by name those that were made
 *   exits               returns from KVM_RUN; slow_syscalls: those for a trapped `syscall` instruction
 *   polled              hypercalls answered without an exit; poll_failed: that nobody was there to take (approximate)
 *   local_calls         answered by the LibOS without an exit (approximate; the guest counts them)
 *   batched             of them, reads and writes of sockets (batch.h)
 *   faults              exits that became a signal
 *   libraries           what their texts and a policy have cost: files copied, hashed, signatures looked at, texts
 *                       prepared (searched for instructions to patch) and found prepared; stored: before the start
 *   policy              what a policy of libraries has refused, and warned of
 *   page_faults         that KVM has resolved for the guests: first touches, copies after a fork; what neither costs an
 *                       exit to the monitor nor is seen by it (0: the host's KVM does not count)
 *   forks               children, by fork or vfork
 *   forks_ahead         of them, made ahead (spare.h)
 *   made_whole          2 MiB of small pages that became one page (whole.h)
 *   execs               programs that replaced another
 *   enosys              total, and by name or number the calls that have no row
 *   processes           that were counted or should have been: the first, and each child with a VM of its own
 *   uncounted           of them those whose numbers are missing: killed by SIGKILL, or not yet at their end
 *   cpuid               `cpuid` instructions of the first process, found and patched; answered by the LibOS
 *                       (approximate), and of these not from its table
 *
 * A process adds its numbers to the sums, in memory that the family shares, when it execs and when it ends. A child
 * of vfork counts with its parent until it execs. Each number is added atomically and nothing is locked, so one that
 * is killed on the way leaves at most a part of its own numbers out.
 */
#ifndef KX_STATS_H
#define KX_STATS_H
#include "pvm.h"

#define STATS_NR_HCALLS (sizeof pvm.hcall_count / sizeof pvm.hcall_count[0])
#define STATS_NR_ENOSYS (sizeof pvm.enosys_count / sizeof pvm.enosys_count[0])

struct stats_sums {
	uint64_t hcalls, exits, slow, faults, local_calls, batched, forks, forks_ahead, enosys, polled, poll_failed,
		page_faults, whole;
	uint64_t policy_refused, policy_warned;
	uint64_t copied, hashed, signatures, prepared, found, stored;
	uint64_t hcall_count[STATS_NR_HCALLS], enosys_count[STATS_NR_ENOSYS];
};

/* In the family's memory, at first zero. */
struct stats_family {
	uint64_t processes, ended, execs;
	struct stats_sums sums;
};

/* Where the family's sums are, instead of in this process alone. */
void stats_share(struct stats_family *f);

/*
 * Open the place for the report while the host's view of files and the original stderr are at hand: the file
 * (made or emptied), or with NULL a duplicate of stderr. Returns 0 or -errno. Without it, stats_write() opens.
 */
int stats_init(const char *file_or_NULL);

/* The descriptor of the report, for the image behind an exec (-1: none), and there. */
int stats_fd(void);
void stats_adopt(int fd);

/* This process has begun to count; behind an exec only when it was a child of vfork until then. */
void stats_begin(void);
/* It has been replaced by another program. */
void stats_exec(void);
/* In a forked child that is alone: what was counted until now is its parent's. It writes no report. */
void stats_fork_child(void);

/*
 * A thread has ended: keep its counters, which are set to 0 (its struct may be used again). It may still be in
 * pvm.threads or not. Called once per thread, by any thread.
 */
void stats_thread_done(struct thread *t);

/*
 * Add what was counted since the last time to the family's sums. Takes no lock that a stopped thread could hold. Not
 * twice at a time, nor in a child of vfork. vcpus_stand: no other thread is in the guest; else KVM can't be asked, since
 * its call would wait for them, and its counts are left out.
 */
void stats_flush(bool vcpus_stand);
/* The same, at the end of this process. */
void stats_end(bool vcpus_stand);

/*
 * Write the report, after stats_end(): to what stats_init() opened, else to the file, else to stderr. For the end of
 * the process, when other threads are stopped or no longer run: takes no lock that one of them could hold, allocates
 * nothing; leaves SIGPIPE blocked in the calling thread. Not twice at a time. Failure to write is silent.
 */
void stats_write(const char *file_or_NULL);
#endif
