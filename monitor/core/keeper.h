/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a child of vfork must not do by itself.
 *
 * It shares the monitor's memory with its parent and can be killed at any instant. So between vfork and exec or its
 * end it takes none of the monitor's locks and changes nothing behind them, nor the heap:
 *   - what needs pvm.mm_lock is done for it by the keeper, a thread of the parent's process that the child's death does
 *     not touch; it begins with the first vfork of a process. A request, once posted, is carried out;
 *   - its memory comes from a scratch area of its own (alloc.c), gone with it;
 *   - of threads, it sees itself alone; the time page and the table of descriptors' limit it leaves alone.
 * Once the parent is dead, nothing is left to protect: then the child does all by itself.
 */
#ifndef KX_KEEPER_H
#define KX_KEEPER_H
#include "pvm.h"

struct keeper_request {
	struct keeper_request *next;
	int64_t (*fn)(long, long, long, long, long, long);
	long arg[6];
	int64_t r;
	int done, has_fd;
};

struct keeper_hold {
	struct keeper_request q;
	int held, release;
	pid_t pid;
};

/* The caller is a child of vfork. */
static inline bool is_vfork_child(void) { return my_pid() != pvm.pid; }
/* ... whose parent's process lives, as far as is known: it must use what follows. */
bool keeper_needed(void);
/* In the parent, before it makes such a child. 0 or -EAGAIN. */
int keeper_start(void);
/* It has been started in this process. */
bool keeper_runs(void);
/* fn(a, b, c, d, e, f), done by the keeper in its own table of descriptors. Waits for the result. */
typedef void (*keeper_fn)(void);
int64_t keeper_run(keeper_fn fn, long a, long b, long c, long d, long e, long f);
/* Likewise; argument e is a descriptor of the caller's, which the keeper gets a copy of. */
int64_t keeper_run_fd(keeper_fn fn, long a, long b, long c, long d, int fd, long f);
/* In the parent: the monitor's descriptor `from` has become `to`. */
void keeper_fd_moved(int from, int to);
void keeper_fd_closed(int fd);
/* In the parent, after the end of a child: wait for what it asked for. */
void keeper_settle(void);
/* The keeper holds all locks, by prepare() and done(), until it is released or the caller has died. False: there is
 * no keeper any more, and nobody who could hold one. */
bool keeper_hold(struct keeper_hold *h, void (*prepare)(void), void (*done)(void));
void keeper_release(struct keeper_hold *h);

#define KEEPER6(fn, a, b, c, d, e, f) \
	keeper_run((keeper_fn)(fn), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

/* ---- alloc.c: malloc() and its like -------------------------------------------------------------------------------- */
struct scratch;
/* A mapping with a host stack of stack_bytes at its end (*top) and a scratch area. NULL = no memory. */
struct scratch *scratch_make(size_t stack_bytes, void **top);
void scratch_unmake(struct scratch *s);
/* Everything in it is free again: nothing outlives a hypercall. */
void scratch_reset(struct scratch *s);
/* Nobody is inside the heap between these. */
void alloc_fork_lock(void);
void alloc_fork_unlock(void);
#endif
