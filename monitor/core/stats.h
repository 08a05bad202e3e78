/* SPDX-License-Identifier: Apache-2.0 */
/*
 * --stats: what the pVM did, as one JSON object on one line, written when it ends.
 *
 *   pid, program        of the pVM; the program's absolute path
 *   wall_ns             from pvm.start_ns to now
 *   vcpus               vCPUs made
 *   hypercalls          total, and by name those that were made
 *   exits               returns from KVM_RUN; slow_syscalls: those for a trapped `syscall` instruction
 *   local_calls         answered by the LibOS without an exit (approximate; the guest counts them)
 *   faults              exits that became a signal
 *   forks               children
 *   enosys              total, and by name or number the calls that have no row
 *   memory_slots        KVM memory slots in use
 *   syscall_sites       `syscall` instructions found in executable mappings, and how many of them were patched
 *   cpuid               the same of `cpuid`; answered by the LibOS (approximate), and of these not from its table
 *   max_rss_kib         peak resident memory of the process
 */
#ifndef KX_STATS_H
#define KX_STATS_H
#include "pvm.h"

/*
 * Open the place for the report while the host's view of files and the original stderr are at hand: the file
 * (made or emptied), or with NULL a duplicate of stderr. Returns 0 or -errno. Without it, stats_write() opens.
 */
int stats_init(const char *file_or_NULL);

/*
 * A thread has ended: keep its counters, which are set to 0 (its struct may be used again). It may still be in
 * pvm.threads or not. Called once per thread, by any thread.
 */
void stats_thread_done(struct thread *t);

/*
 * Write the report: to what stats_init() opened, else to the file, else to stderr. For the end of the process,
 * when other threads are stopped or no longer run: takes no lock that one of them could hold, allocates nothing;
 * leaves SIGPIPE blocked in the calling thread. Not twice at a time. Failure to write is silent.
 */
void stats_write(const char *file_or_NULL);
#endif
