/* SPDX-License-Identifier: Apache-2.0 */
/* Listeners that this process accepts from alone, and waits for in one epoll (batch_listen.c). All of it under batch.c's lock. */
#ifndef KX_BATCH_LISTEN_H
#define KX_BATCH_LISTEN_H
#include "batch_priv.h"

struct listening {
	bool used;
	bool odd; /* it is, or has been, in another epoll */
	int fd;
	int epoll; /* -1 = none */
	uint32_t events;
	uint64_t data;
	bool loops;       /* its program has asked for one more when it had got all */
	unsigned flags;   /* of the program's last accept4(2) */
	unsigned accepts; /* connections that it has accepted since it left some that were ahead */
	unsigned want;    /* as many are worth to be ahead */
	unsigned misses, skip;
};

/* NULL: none that is known. */
struct listening *listen_of(int fd);
/* How many wait at fd, a listener that does not block and sends no signals. False: it is none. */
bool listen_is_waiting(int fd, unsigned *n);
/* c, an epoll_ctl of a descriptor that only this process has, or a pool's, has succeeded. */
void listen_registered(const struct hcall *c);
/* fd is closed, or is not this process's alone any more; all (pools: those of pools, too, whose habits must be learnt anew in any
 * case); an epoll's number is closed. */
void listen_forget(int fd);
void listen_forget_all(bool pools);
void listen_closed(unsigned first, unsigned last);
/* The listener that wait c, with n events, has told of: one that a wait tells of as long as there are connections. */
struct listening *listen_told(const struct hcall *c, int n);
bool listen_is_level(const struct listening *l);

/* ---- batch_bell.c: a listener is ready though nothing waits at it ---- */

/* For waits at this epoll (-1: none), which tell of the listener with data. False: there is no room. */
bool bell_register(int listener, int epoll, uint64_t data);
/* It is, or is no more. */
void bell_ring(bool on);
/* What is to be looked at in place of the listener; -1: the listener. */
int bell_fd(int listener);
#define BELL_EVENT EPOLLRDNORM /* what nothing else is registered for alone */
/* Such an event with data is one of a listener from now on; slot 1 and above: pool's, *look: set where one has come. */
void bell_tells(unsigned slot, uint64_t data, bool *look);
/* ev[0..n), n > 0, of the host's, are as the program is to see them from here on; how many are left. Without a lock. */
int bell_tell(struct epoll_event *ev, int n);
/* c, an epoll_ctl, has succeeded, perhaps of the listener. */
void bell_follow(const struct hcall *c);
/* Epolls of these numbers are closed. */
void bell_forget_epolls(unsigned first, unsigned last);
void bell_fork_child(void);
/* Over an exec, with what is kept. */
void bell_hand(struct batch_handed *h);
void bell_adopt(const struct batch_handed *h);
int bell_fds(int (*move)(int *fd));

/* ---- batch_pool.c: listeners that others have, too ---- */

bool pool_any(void);
/* fd is one of them. */
bool pool_has(int fd);
/* A fork begins: fd, a socket of this process alone, becomes one if it listens. polled: who looks at it is not known. */
void pool_make(int fd, bool polled);
/* Nobody is to accept from fd ahead any more. Any thread, without the lock. */
void pool_spoil(int fd);
/* c, an epoll_ctl, has succeeded, perhaps of one of them. */
void pool_registered(const struct hcall *c);
/* Descriptors of these numbers are about to be closed. */
void pool_closed(unsigned first, unsigned last);
/* Does nobody else accept from fd? May this process begin to accept ahead from it, with an empty queue? */
bool pool_alone(int fd);
bool pool_begin(int fd);
/* of->fd was accepted from it. False: there is no room. The program has got the first n for ever. It gets no more by itself;
 * rest: some are left. */
bool pool_put(int listener, const struct kx_accepted *of);
void pool_took(int listener, unsigned n);
void pool_end(int listener, bool rest);
/* An accept's: the first one that is left, at the lowest free number; -EAGAIN: there is none; -EMFILE. */
int pool_give(int listener, bool cloexec, struct kx_accepted *of);
/* What is left is reset. */
void pool_reset(int listener);
/* What is to be looked at in place of the listener; -1: the listener. */
int pool_fd(int listener);
void pool_fork_child(void);
/* Over an exec, with their listeners. */
void pool_hand(struct batch_handed *h);
void pool_adopt(const struct batch_handed *h);
int pool_fds(int (*move)(int *fd));
#endif
