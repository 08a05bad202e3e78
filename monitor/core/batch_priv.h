/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by batch.c and batch_ahead.c. All of it under batch.c's lock. */
#ifndef KX_BATCH_PRIV_H
#define KX_BATCH_PRIV_H
#include <poll.h>
#include <sys/epoll.h>
#include "hcall.h"

#define FETCHES_MAX 1024 /* sockets in one turn */

enum sock_kind { NONE, TCP, UNIX };

/* What a send left over, in order. */
struct left {
	struct left *next;
	uint32_t len, done, flags;
	uint8_t data[];
};

/* By descriptor; what of it the guest sees is in its kx_bsock. */
struct sock {
	uint8_t kind; /* NONE: not one of ours */
	bool nonblock;
	bool held;         /* by a child, too */
	bool told_of_data; /* by its last event */
	bool eager;        /* the program has read from it without having been told */
	int epoll;         /* it is registered there, with `events` and `data`; -1 = nowhere */
	uint32_t events;
	uint64_t data;
	uint32_t gen;
	uint32_t fetched, taken; /* of what lies in guest memory: bytes; of them, taken from the kernel's socket */
	int err;                 /* met by a call that the program did not make; the next one gets it */
	struct left *left;
};

/* What a thread's next wait would bring: batch_ahead.c. */
struct ahead {
	int epoll;              /* that it waited with last, -1 = none */
	bool offered;           /* not known yet whether the guest has taken it */
	bool accepts_all;       /* it accepts until there is none */
	uint64_t last, before;  /* its last call that was no wait; the last one before the last wait */
	unsigned nr, nr_before; /* how many such calls the turn has had so far; the last one had */
	unsigned misses, skip;
	int nr_events;
	struct epoll_event event[KX_AHEAD_MAX];
};

struct ctx {
	struct thread *t; /* NULL = free */
	struct kx_bctx *g;
	uint64_t tail, flushed; /* flushed: tail as flush() began */
	bool in_guest;
	uint32_t used, nr; /* bytes of the arena, entries of fd: what was fetched */
	int fd[FETCHES_MAX];
	uint32_t nr_live; /* sockets that may be written to */
	struct pollfd live[FETCHES_MAX];
	struct file {
		int fd; /* -1 = none; a regular file that was sent from */
		uint32_t uses, idle;
	} file[KX_BATCH_FILES];
	unsigned next_file;
	struct ahead ahead;
};

/* ---- batch.c ---- */

struct kx_batch *batch_shared(void);
/* NULL: not one of ours. */
struct sock *batch_sock(int fd);
int batch_sock_top(void); /* none is above */
/* The socket that an event of this epoll is of. NULL: of none. */
struct sock *batch_sock_of(int epoll, uint64_t data, int *fd);
uint64_t batch_ctx_gva(const struct ctx *x);
int batch_ctxs(struct ctx **all); /* how many; those without a thread are free */
/* A new turn of x's: what was fetched and read makes room. */
void batch_turn(struct ctx *x);
/* Fetch from fd, about which the epoll has told `events`, and see how much it may send. */
void batch_ready(struct ctx *x, int fd, struct sock *s, uint32_t events);
/* The same for one that the program has just accepted and may not have made non-blocking yet. */
void batch_ready_fresh(struct ctx *x, int fd, struct sock *s, uint32_t events);
/* Does a child hold what this process has open, or may it? */
bool batch_is_shared(void);

/* ---- batch_ahead.c ---- */

bool ahead_is_wait(uint64_t nr);
/* Must batch_enter() and batch_leave() be told of c even without sockets? */
bool ahead_concerns(const struct hcall *c);
/* Before c, made by the thread of `own` (NULL: of none): what was offered holds no longer, and c may end epolls. */
void ahead_enter(struct hcall *c, struct ctx *own);
/* c has returned r. */
void ahead_note(struct hcall *c, int64_t r);
/* Socket fd has been registered; it is no longer ours though its registration stays. */
void ahead_registered(int epoll, uint32_t events);
void ahead_lost(const struct sock *s);
/* Another number, or another process, may have fd from now on. */
void ahead_shared(int fd);
/* At the end of x's call c: look ahead where a wait is likely to come next. */
void ahead_leave(struct ctx *x, struct hcall *c, int64_t r);
void ahead_ctx_init(struct ctx *x);
/* The descriptors go to a child; known: by batch.c's lease. */
void ahead_fork(bool known);
void ahead_fork_child(void);
#endif
