/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by batch*.c. All of it under batch.c's lock. */
#ifndef KX_BATCH_PRIV_H
#define KX_BATCH_PRIV_H
#include <poll.h>
#include <sys/epoll.h>
#include "batch.h"
#include "hcall.h"

#define FETCH_MAX 0x4000 /* bytes of one socket in one turn */
#define FETCHES_MAX 1024 /* sockets in one turn */
#define LATE_TURNS 256   /* a thread that wrote to one of the turn before may do so again as long */
#define ELSEWHERE_MAX 16 /* of them, those that stay as they are while their thread waits at another epoll */

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
	bool held;         /* by another process, too, or perhaps */
	bool inherited;    /* ... its parent: batch_heir.c */
	bool no_heir;      /* no entry there may begin */
	bool told_of_data; /* by its last event */
	bool shut;         /* for writing */
	bool tight;        /* it takes less than it has room for: nothing is queued */
	bool eager;        /* the program has read from it without having been told */
	int epoll;         /* it is registered there, with `events` and `data`; -1 = nowhere */
	uint32_t events;
	uint64_t data;
	uint32_t gen;
	uint32_t fetched, taken; /* of what lies in guest memory: bytes; of them, taken from the kernel's socket */
	int err;                 /* met by a call that the program did not make; the next one gets it */
	struct left *left;
	uint64_t heir; /* batch_heir.c's entry; 0 = none */
	uint16_t lent; /* batch_lend.c's account + 1; 0 = none. Children hold it, too, and ask */
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
	int index;        /* t's */
	struct kx_bctx *g;
	uint64_t tail, flushed; /* flushed: tail as flush() began */
	bool in_guest;
	uint32_t used, nr; /* bytes of the arena, entries of fd: what was fetched */
	int fd[FETCHES_MAX];
	uint32_t nr_live; /* sockets that may be written to */
	uint32_t late;    /* for so many turns more also those of the turn before */
	int only; /* this exit is a wait that told of this socket and nothing else, of no error; -1 = it is not */
	struct pollfd live[FETCHES_MAX];
	struct file {
		int fd; /* -1 = none; a regular file that was sent from */
		uint32_t uses, idle;
	} file[KX_BATCH_FILES];
	unsigned next_file;
	struct ahead ahead;
};

extern struct batch_state {
	struct sock *socks; /* of KX_BATCH_FDS, and of KX_BATCH_CTXS; NULL: there was no socket yet */
	struct ctx *ctxs;
	int nr_socks, top_fd, nr_ctxs; /* top_fd: no socket is above */
	int no_new, nr_held;
	bool mapped, selfish;
	size_t left_bytes;
} batch;

static inline struct kx_batch *batch_shared(void) { return gva_ptr(KX_BATCH_BASE); }
static inline struct kx_bsock *batch_guest_sock(int fd)
{
	return (struct kx_bsock *)gva_ptr(KX_BATCH_BASE + KX_BATCH_SOCKS) + fd;
}
static inline uint64_t batch_ctx_gva(const struct ctx *x)
{
	return KX_BATCH_BASE + KX_BATCH_CTX + (uint64_t)(x - batch.ctxs) * KX_BATCH_CTX;
}
/* NULL: not one of ours. */
static inline struct sock *batch_sock(int fd)
{
	return fd >= 0 && fd <= batch.top_fd && batch.socks && batch.socks[fd].kind != NONE ? &batch.socks[fd] : NULL;
}

/* ---- batch_io.c ---- */

/* Take from the kernel what the guest has read; and let it read no more by itself. */
void batch_settle(int fd, struct sock *s);
void batch_give_up(int fd, struct sock *s);
/* A send has met error r. */
void batch_send_failed(int fd, struct sock *s, long r);
/* Send what was queued before, of all threads. */
void batch_flush(void);

/* ---- batch_room.c ---- */

/* How much KX_BATCH_COST() of a stream socket's send buffer is sure to be there until it is asked for again: what is queued
 * at that price the kernel takes at once. */
uint32_t batch_room(int fd, bool tcp);

/* ---- batch_left.c ---- */

/* Without waiting; of flags MSG_MORE alone. */
long batch_try_send(int fd, const void *p, uint32_t len, uint32_t flags);
/* Of s, what a send left over: keep it behind what is kept; forget it, try it again; wait for it, and what is left of ms. */
void batch_keep(int fd, struct sock *s, const uint8_t *p, uint32_t len, uint32_t flags);
void batch_drop_left(struct sock *s);
void batch_drive_left(int fd, struct sock *s);
int batch_drain_left(int fd, struct sock *s, int ms);
/* So much is kept that nothing more is to be queued. */
bool batch_left_is_much(void);
/* shutdown(SHUT_WR), behind what is left. */
void batch_shut_left(int fd, struct sock *s);
/* A write is to come behind what is left: *r is that it finds no room or, where it would sleep, is made again. False: nothing
 * is left. A shutdown, with something left: done, but for what comes behind that. False: it is the handler's. */
bool batch_write_behind(const struct hcall *c, int fd, struct sock *s, int64_t *r);
bool batch_shutdown_behind(const struct hcall *c, int fd, struct sock *s, int64_t *r);
/* fd is about to be closed: what is left goes on. False: it can't. */
bool batch_close_left(int fd, struct sock *s);
/* Those that were closed so: try again; are there some? */
void batch_drive_closed(void);
bool batch_has_closed(void);
/* The process ends, or its program: wait for what is left, of all sockets, and give up the rest. */
void batch_end_left(void);
int batch_closed_fds(int (*move)(int *fd));
void batch_closed_fork_child(void);

/* ---- batch_socks.c ---- */

/* The socket that an event of this epoll is of. NULL: of none. */
struct sock *batch_sock_of(int epoll, uint64_t data, int *fd);
/* fd is none of ours from now on: it is being closed; the program has it as before. */
void batch_drop(int fd, struct sock *s);
void batch_disown(int fd, struct sock *s);
void batch_drop_range(unsigned first, unsigned last);
enum sock_kind batch_kind_of(int fd);
/* The tables of sockets and contexts are there from now on. False: there is no memory. */
bool batch_tables(void);
bool batch_is_nonblocking(int fd);
struct kx_bname *batch_peer_of(const struct ctx *x, int fd);
struct kx_bname *batch_local_of(const struct ctx *x, int fd);
/* What a call has done to a socket. queued: it was a record, which the LibOS knows of. */
void batch_accepted(struct ctx *x, int fd);
/* Socket `from` has become fd; the guest may use it at this moment. */
void batch_renamed(int from, int fd);
/* May fd be another file, or none, after c? */
bool batch_ends_descriptor(const struct hcall *c, int fd);
/* One that was accepted by a forefather, who may still have it. NULL: it can't be batched. */
struct sock *batch_inherited(int fd);
/* Is it this process's alone by now? */
void batch_look_alone(int fd, struct sock *s);
void batch_note_epoll(int fd, struct sock *s, int epoll, uint32_t events, uint64_t data, bool queued);
void batch_registered(struct hcall *c);
/* Does TCP_NOTSENT_LOWAT say how much may wait to be sent? */
void batch_look_lowat(int fd, struct sock *s);
/* How much fd may send; that this thread may write to it in this turn and the next. */
void batch_tell_credit(int fd, struct sock *s);
void batch_may_write(struct ctx *x, int fd);
/* It writes to fd by a call, which it could not do by a record; it has done so by a record. */
void batch_write_called(struct ctx *x, int fd);
void batch_write_queued(struct ctx *x, int fd);
/* Fetch from fd, about which the epoll has told `events`, and see how much it may send. */
void batch_ready(struct ctx *x, int fd, struct sock *s, uint32_t events);
/* The same for one that the program has just accepted and may not have made non-blocking yet. */
void batch_ready_fresh(struct ctx *x, int fd, struct sock *s, uint32_t events);
/* Has a blocking read brought what may be followed by more, for the reads to come? */
bool batch_reads_on(const struct sock *s, int fd);
/* An error that has come makes writes calls; what has come, reads. */
void batch_still_live(struct ctx *x);
/* By a wait at epoll, or -1. */
void batch_next_turn(struct ctx *x, int epoll);

/* ---- batch.c ---- */

/* A new turn of x's: what was fetched and read makes room. */
void batch_turn(struct ctx *x);
/* Does a child hold what this process has open, or may it? */
bool batch_is_shared(void);
/* Are there descendants that hold what is open since a fork, or may be? */
bool batch_has_leases(void);

/* ---- batch_ahead.c ---- */

bool ahead_is_wait(uint64_t nr);
/* All that fd is ready for. */
uint32_t batch_poll_all(int fd);
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
/* May what this epoll has told of be told again by the LibOS, if it is so still? Is what it tells of with `data` known to be so
 * as long as it is told of: a level, and of no batched socket? */
bool ahead_allows(int epoll);
bool ahead_is_level(int epoll, uint64_t data);
void ahead_ctx_init(struct ctx *x);
/* The descriptors go to a child; known: by batch.c's lease. */
void ahead_fork(bool known);
void ahead_fork_child(void);

/* ---- batch_heir.c ---- */

/* A socket is being closed; has, or may get, holders that are not counted. */
void heir_closed(struct sock *s);
void heir_lost(struct sock *s);
/* Before a process is made; in it. */
void heir_fork(void);
void heir_fork_child(void);
/* May this process have sockets that it has not met? fd is named by a call: the socket, if it is one. */
bool heir_looks(void);
struct sock *heir_meet(int fd);
/* Does no other process hold s any more? Then it is as if this one had accepted it. */
bool heir_is_last(struct sock *s);

/* ---- batch_lend.c ---- */

/* Around what a fork by the host does with the sockets. False: none may be lent. */
bool lend_begin(void);
void lend_end(void);
/* It goes on being batched though a child has it. False: it can't be. */
bool lend_socket(int fd, struct sock *s);
void lend_fork_child(void);
/* Has a child asked for s? Then it is held from now on, as is told. */
bool lend_look(int fd, struct sock *s);
/* As batch_settle(), and batch_give_up() (end). */
void lend_settle(int fd, struct sock *s, bool end);
/* Around a fetch, behind batch_give_up(): n bytes, and its new word (0: none). False: it is held. */
bool lend_fetch_begin(int fd, struct sock *s);
bool lend_fetch_end(int fd, struct sock *s, uint32_t n, uint64_t w);
/* It is being closed. There are no descendants any more that hold what was lent. */
void lend_close(int fd, struct sock *s);
void lend_all_back(void);
/* Has this process such sockets of a forefather's? Ask for fd, for all of them; for what call c may learn of or change: an error
 * of the socket's that is c's to tell if it reads or writes, else 0. */
bool lend_looks(void);
int lend_ask(int fd);
void lend_ask_all(void);
int lend_enter(const struct hcall *c);

/* ---- batch_accept.c; ctx: number of a context, -1 = none ---- */

/* Must batch_enter() and batch_leave() be told of c even without sockets? */
bool accept_concerns(const struct hcall *c);
void accept_reset(int ctx);
/* Before a call, and after it: what it tells of descriptors; by a thread with batches. */
void accept_enter(const struct hcall *c, int ctx);
void accept_note(const struct hcall *c, int64_t r);
void accept_leave(const struct hcall *c, int ctx, int64_t r);
/* From here on those numbers count that ctx's thread is told, none as yet. */
void accept_numbers_reset(int ctx);
/* Is fd a connection that the program has not got yet? */
bool accept_holds(int fd);
/* A record of the guest's: a connection is fd for it. -EINVAL: it is broken; -EAGAIN: not yet. */
int accept_name(int fd, const uint8_t *data);
/* fd is closed by a record. True: its number is kept from others until the next call, in its place. */
bool accept_closes(int fd);
/* c accepts what was accepted ahead and taken back. */
bool accept_give(struct hcall *c, int64_t *r);
/* Another process gets fd. A fork is under way; in the child. */
void accept_shared(int fd);
void accept_fork_begin(void);
void accept_fork_end(void);
void accept_fork_child(void);
/* What is kept for a listener that an exec leaves open is kept no more, but in *h; and again. */
void accept_hand(struct batch_handed *h);
void accept_adopt(const struct batch_handed *h);
bool accept_has(void);
/* May an accept find some that it does not know of? */
bool accept_waits(void);
/* fd is polled, or selected. Any thread, without the lock. */
void accept_polled(int fd);
/* What is looked at in its place, or fd. */
int accept_ready_fd(int fd);
/* What the program has got by now is no other process's to accept; before any record is sent. A guest has run for a while. */
void accept_commit(void);
void accept_tick(void);
/* The process ends. */
void accept_end(void);
int accept_fds(int (*move)(int *fd));

/* ---- batch_pool.c ---- */

/* A child of vfork begins. */
void pool_vfork(void);

/* ---- batch_seek.c; ctx: number of a context ---- */

void seek_reset(int ctx);
/* fd, all descriptors: others have them from now on. */
void seek_shared(int fd);
void seek_all_shared(void);
/* Before a call, and after it (ctx < 0: its thread has none). */
void seek_enter(const struct hcall *c);
void seek_note(const struct hcall *c, int ctx, int64_t r);
/* How long the files are now: kx_batch.calls is `calls`. */
void seek_look(int ctx, uint64_t calls);

/* ---- batch_sigs.c; ctx: number of a context ---- */

void sigs_reset(int ctx);
/* Before a call of ctx's thread (-1: it has none), and after it. */
void sigs_enter(const struct hcall *c, int ctx);
void sigs_note(const struct hcall *c, int ctx, int64_t r);
/* What holds until kx_batch.calls is no more `calls`: who can be signalled; what was read ahead. */
void sigs_look(int ctx, uint64_t calls);
void sigs_offer(int ctx, uint64_t calls);
/* Is something offered? The thread's next call must be its own then. */
bool sigs_offered(void);
/* A record of the guest's. -EINVAL: it is broken; -EAGAIN: not in this thread. */
int sigs_record(const uint8_t *data);
void sigs_fork_child(void);
#endif
