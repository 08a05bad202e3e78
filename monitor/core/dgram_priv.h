/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of dgram.h's module share. All of it under its lock. */
#ifndef KX_DGRAM_PRIV_H
#define KX_DGRAM_PRIV_H
#include "../../abi/kx_dgram.h"
#include "dgram.h"

enum dgram_kind { DG_UNKNOWN, DG_OTHER, DG_UDP };

/* By descriptor. */
struct dgram_fd {
	uint8_t kind;
	uint8_t count; /* receives so far, up to the one that makes it a socket of ours */
	uint8_t slot;  /* + 1; 0: none yet */
	bool plain;    /* never to be one */
	bool born;     /* made by this process */
	bool passed;   /* given to others: for ever */
	bool held;     /* others have it until they have ended */
	uint16_t port;
};

/* A registration in an epoll of a UDP socket. */
struct dgram_reg {
	int fd, epoll;
	uint32_t events;
	uint64_t data;
};

struct dgram_slot {
	int nr_fds; /* 0: free */
	bool plain; /* nothing more is received ahead or queued */
	bool nosend;
	bool passed, held; /* others have it: for ever; until they have ended */
	bool crowd;        /* more than one thread has waited for it or received from it */
	int reader;        /* the one that did, by index; -1: none yet */
	bool fresh;        /* something in the buffer has been told by no event */
	bool is_long;      /* what came last */
	int err;           /* met by a call that the program did not make; the next one gets it */
	uint32_t gen, word;
	uint64_t ino;
};

struct dgram_ctx {
	int index; /* of the thread, -1 = free */
	struct kx_dctx *g;
	uint64_t tail;
	bool in_guest;
};

#define DGRAM_REGS 256
extern struct dgram_fd dgram_fds[KX_DGRAM_FDS];
extern struct dgram_slot dgram_slots[KX_DGRAM_SOCKS];
extern struct dgram_reg dgram_regs[DGRAM_REGS];
extern int dgram_nr_regs;

static inline struct kx_dgram *dgram_shared(void) { return gva_ptr(KX_DGRAM_BASE); }
static inline struct kx_dsock *dgram_sock(const struct dgram_slot *s)
{
	return (struct kx_dsock *)gva_ptr(KX_DGRAM_BASE + KX_DGRAM_SOCK) + (s - dgram_slots);
}
/* With the lock; the LibOS looks at any time. */
static inline void dgram_set_flag(const struct dgram_slot *s, uint32_t flag, bool on)
{
	struct kx_dsock *g = dgram_sock(s);
	__atomic_store_n(&g->flags, on ? g->flags | flag : g->flags & ~flag, __ATOMIC_SEQ_CST);
}
static inline uint8_t *dgram_buffer(const struct dgram_slot *s)
{
	return gva_ptr(KX_DGRAM_BASE + KX_DGRAM_BUF + (uint64_t)(s - dgram_slots) * KX_DGRAM_BUF_SIZE);
}
/* NULL: fd is none of ours. */
static inline struct dgram_slot *dgram_at(int fd)
{
	return fd >= 0 && fd < KX_DGRAM_FDS && dgram_fds[fd].slot ? &dgram_slots[dgram_fds[fd].slot - 1] : NULL;
}

/* dgram.c */
/* Is something left in the buffer? */
bool dgram_has(const struct dgram_slot *s);
/* A datagram has come from there: an answer may be queued. */
void dgram_heard(struct dgram_slot *s, const uint8_t *name, uint32_t len);
/* How many to receive, the `want` ones that the program asks for included. */
uint32_t dgram_window(const struct dgram_slot *s, uint32_t want, bool nowait);
/* Does this process alone hold it? */
bool dgram_is_sole(const struct dgram_slot *s);
/* c's thread waits for it or receives from it. */
void dgram_reader(struct dgram_slot *s, const struct hcall *c);
/* A wait has looked at all that it was asked for; others: something but datagrams was ready. */
void dgram_looked(bool others);
/* A wait ends the turn. */
void dgram_turn_ends(struct dgram_slot *s);

/* dgram_fetch.c: receive ahead into the buffer, which is empty: at most n. */
void dgram_fetch(struct dgram_slot *s, int fd, uint32_t n);

/* dgram_take.c: a receive that reached the monitor. True: *r is its result. unlock() before a call that may sleep. */
bool dgram_receive(struct hcall *c, struct dgram_slot *s, int64_t *r, bool *many);
/* The rest of a recvmmsg(2) that waits for as many as it asked for, without the lock. *err: it has met that, or 0. */
int64_t dgram_receive_rest(struct hcall *c, int64_t done, int *err);
/* s's next call is to fail with err. */
void dgram_keep_error(struct dgram_slot *s, int err);
/* A receive that slept has brought something by itself: note from whom, as if it had been in the buffer. */
void dgram_note_sender(struct hcall *c, struct dgram_slot *s, int64_t r);
bool dgram_is_receive(uint64_t nr);
/* It will not sleep. */
bool dgram_nowait(const struct hcall *c);

/* dgram_wait.c: readiness of what lies in buffers. */
bool dgram_is_wait(uint64_t nr);
/* Without the lock. */
bool dgram_wait(struct hcall *c, int64_t *r);
void dgram_waited(struct hcall *c, int64_t r);
extern pthread_mutex_t dgram_lock;
#endif
