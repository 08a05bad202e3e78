/* SPDX-License-Identifier: Apache-2.0 */
/*
 * --strace: one line per system call in the form of strace(1), with a mark at its end that says who answered:
 * <libos>, <monitor>, or <slow> (the monitor, by a trapped `syscall` instruction).
 *
 * A line is made after the call. What it reads and writes back is kept before (strace_before()), and shown as
 * strace(1) does: as it was, or was and is. Guest
 * memory is read in bounded copies and only to be printed. Every function may be called from any thread; none
 * allocates, locks, or changes errno. About 10 KiB of stack.
 */
#ifndef KX_STRACE_H
#define KX_STRACE_H
#include "hcall.h"

/* Show the duration of each call as strace -T does. Off at start. */
extern bool strace_show_time;

/*
 * Open the trace: the named file (made or emptied, in the file system that the caller sees now), or with NULL a
 * duplicate of stderr. Call it before the guest's view is entered and before the guest owns descriptors.
 * Returns 0 or -errno; without success the other functions do nothing. A trace whose reader went away ends.
 */
/* The descriptor that the trace goes to (-1 none), and to take one over after exec. */
int strace_fd(void);
void strace_adopt(int fd);
int strace_init(const char *file_or_NULL);

/*
 * A call has been answered. `row` NULL: no row names it. arg: as the guest gave them. path: KX_PATH_*. For calls
 * that don't return (exit, exit_group) call it before they are performed. t may be NULL.
 */
void strace_call(struct thread *t, const struct hc_row *row, uint64_t nr, const uint64_t arg[6], int64_t ret, int path,
		 uint64_t ns);

/* A call begins on this thread: keep what it may change of its arguments. */
void strace_before(uint64_t nr, const uint64_t arg[6]);

/* The program that runs in a new pVM, as the call that strace(1) shows first. */
void strace_start(struct thread *t, const char *path, char *const *argv, uint64_t env_gva, unsigned nr_env);

/* A signal is being delivered to the program (or ends it). si may be NULL. */
void strace_signal(struct thread *t, int signo, const siginfo_t *si);

/* The end of the pVM: "exited with 0", "killed by SIGKILL". */
void strace_exit(const char *how);

/* Name of a system call or hypercall; NULL when it has none. Static storage. */
const char *strace_call_name(uint64_t nr);
#endif
