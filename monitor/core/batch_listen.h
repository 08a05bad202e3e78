/* SPDX-License-Identifier: Apache-2.0 */
/* Listeners that this process has alone, and waits for in one epoll (batch_listen.c). All of it under batch.c's lock. */
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
/* c, an epoll_ctl of a descriptor that only this process has, has succeeded. */
void listen_registered(const struct hcall *c);
/* fd is closed, or is not this process's alone any more; all; an epoll's number is closed. */
void listen_forget(int fd);
void listen_forget_all(void);
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
#endif
