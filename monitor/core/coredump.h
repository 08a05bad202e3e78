/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The core file of a program that dies of a signal whose default is to leave one (core(5)).
 *
 * The monitor writes it, as the program could: `core` in the program's directory, in its view, with its rights, within its
 * RLIMIT_CORE. The host's core_pattern has no say, and the host's kernel, which would dump the monitor, is told not to.
 */
#ifndef KX_COREDUMP_H
#define KX_COREDUMP_H
#include "pvm.h"

/* The program's RLIMIT_CORE, which the host does not know. */
uint64_t limits_core(void);
/* As PR_SET_DUMPABLE: 0 or 1. Of this process; inherited by fork, 1 again after exec. */
extern int coredump_dumpable;

/* The calling thread is about to die of this signal, without a stop in between. */
void coredump_cause(const siginfo_t *info);
/*
 * The process ends by sig, of whatever thread calls. Stops the others for good and writes the file, if one is due; no other
 * thread ends the process meanwhile. True: there is one, though it may be cut
 * off, and the parent is to hear of it.
 */
bool coredump(int sig);
/* Who would end the process while another thread writes the file does not come back from here. */
void coredump_wait(void);
void coredump_fork_child(void);
/* A child's wait status says that it was killed by sig: did it leave a core file? */
bool coredump_of(pid_t pid, int sig);
/* The same for what SIGCHLD or waitid(2) tell of a child: CLD_KILLED becomes CLD_DUMPED. */
void coredump_tell(siginfo_t *info);
#endif
