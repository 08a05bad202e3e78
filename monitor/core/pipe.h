/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pipes between the members of a family without exits: "Life of a pipe" in ARCHITECTURE.md, layout in abi/kx_pipe.h.
 * This side makes and frees the objects, keeps the table of descriptors, does whatever has to sleep or to ask the
 * host, and turns an object into a plain pipe of the host's when something is wanted that rings can't do.
 *
 * A child of vfork has its parent's table in memory and descriptors of its own. It never changes the table; what it
 * does with a pipe makes that one plain, found by the pipe's inode.
 */
#ifndef KX_PIPES_H
#define KX_PIPES_H
#include <signal.h>
#include "hcall.h"

/* Who runs call c: its row's handler, or one of this module. Fails with -errno in *r. NULL then. */
hc_handler pipe_handler(struct hcall *c, int64_t *r);
/* A call has returned r: what it may have told the program of others' end. */
void pipe_after(struct hcall *c, int64_t r);
/* So has a signal. */
void pipe_signal(int signo);
/* This process is about to sleep: who naps for what it wrote is woken. */
void pipe_owed(void);

/* The host's pipe2 with everything that belongs to it. */
int64_t pipe_make(int fd[2], int flags);
/* And the host's socketpair. */
int64_t pipe_pair_make(int domain, int type, int protocol, int fd[2]);
/* An end of a socket pair. Its recvmsg and sendmsg; false: the host's. */
struct msghdr;
bool pipe_is_pair(int fd);
bool pipe_recvmsg(struct hcall *c, int fd, struct msghdr *h, int flags, int64_t *r);
bool pipe_sendmsg(struct hcall *c, int fd, const struct msghdr *h, int flags, int64_t *r);
/* A descriptor that goes away in a message over `over`, and one that came in one. 0 or -errno. */
int pipe_passed(int fd, int over);
void pipe_received(int fd);
/* The calls of these names, with the table kept true. */
int64_t pipe_close(int fd);
int64_t pipe_close_range(unsigned first, unsigned last, unsigned flags);
int64_t pipe_dup(int fd, int64_t (*dup)(int fd, uint64_t arg, int cmd), uint64_t arg, int cmd);
int64_t pipe_dup_to(int fd, int to, int flags, bool dup2);

/* A descriptor that others are about to have, or that is waited for by other means: plain from now on. 0 or -errno. */
int pipe_plain(int fd);
/* A descriptor that was opened by another's name in /proc. */
int pipe_opened(int fd);
/* All of the calling process's, by a look at its descriptors. */
void pipe_plain_all(void);
/* Around a change of user and group ids. Rings are for the user alone whose family it is: another could not open an
 * other end, and has no business in the memory of all. */
void pipe_identity_before(void);
void pipe_identity_after(void);
/* ppoll of what may be pipes of this kind: as the host's, which does not wait with a timeout of 0. Leaves in *ts what
 * remains. */
struct pollfd;
int64_t pipe_ppoll(struct hcall *c, struct pollfd *p, unsigned n, struct timespec *ts);
/* Whether any descriptor below n in one of the sets of select is such a pipe. */
bool pipe_in_sets(unsigned n, uint64_t *const set[3]);

/* Before a call that may wait for descriptors: what the host says of rings that an epoll watches is true. */
void pipe_before_wait(uint64_t nr);
/* In the signal handler: does somebody want what is in a ring here? In a vCPU's thread: do it. True: it was so. */
bool pipe_is_poke(const siginfo_t *info);
bool pipe_poked(void);

/* Fork: before() and after() with the locks held that pipe_fork_lock() is one of; pid of the child, or -1. */
void pipe_fork_lock(void);
void pipe_fork_unlock(void);
void pipe_fork_before(void);
void pipe_fork_after(pid_t pid);
/* In the child. own: its descriptors are the table's; else look at them. */
void pipe_fork_child(bool own);
/* vfork, in the parent around it, and in the child. shares: the child has the parent's own descriptors. */
void pipe_vfork_before(bool shares);
void pipe_vfork_child(void);
void pipe_vfork_after(void);

/* After exec: the descriptors that were inherited. */
void pipe_resume(void);
/* The process ends. */
void pipe_exit(void);
#endif
