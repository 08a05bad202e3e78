/* SPDX-License-Identifier: Apache-2.0 */
/* Between pair*.c. */
#ifndef KX_PAIR_PRIV_H
#define KX_PAIR_PRIV_H
#include "pipe_priv.h"

#define PAIR_NOTHING (-5001) /* is there to be read */

/* An end. */
struct pair {
	struct kx_pipe *first, *in, *out;
	uint8_t *rin, *rout;
	uint64_t key;
	int fd;
	uint64_t dev, ino;
};

struct pair pair_of(uint64_t key, int fd);

static inline uint64_t pair_state(const struct pair *p) { return __atomic_load_n(&p->first->state, __ATOMIC_ACQUIRE); }
static inline bool pair_live(const struct pair *p) { return pair_state(p) == kx_pipe_live(p->key); }
static inline bool pair_is_plain(const struct pair *p)
{
	return pair_state(p) == ((p->key & ~0xffffffffull) | KX_PIPE_PLAIN);
}
static inline uint32_t pair_word(const uint32_t *w) { return __atomic_load_n(w, __ATOMIC_SEQ_CST); }
/* Whether somebody who waits for room is told of it. */
static inline bool pair_has_room(const struct kx_pipe *o)
{
	uint32_t n = pipe_used(o);
	return o->kind == KX_PAIR_STREAM ? KX_PIPE_RING - n >= KX_PIPE_ATOMIC : n <= KX_PIPE_RING / 4;
}
/* The record at the reader's cursor: its length. False: there is none, or nonsense, which is thrown away. Readers' lock. */
bool pair_record(struct kx_pipe *o, const uint8_t *ring, uint32_t *len);

bool pair_locks_get(struct kx_pipe *o);
void pair_locks_put(struct kx_pipe *o);
int pair_queued(int fd, unsigned long what);

/* With the lock of the writers, before data: a token. 0, -EAGAIN: the host has no room; or the host's error. */
int pair_token_put(struct pair *p);
/* With that lock: one more, though there is one, that epoll may see an edge or the host tell that nobody is there. */
int pair_token_more(struct pair *p);
/* With both locks of p->in: no token where no data is, else one at most. */
void pair_token_take(struct pair *p);
/* 1: there is nothing to read; 0: there is, or it is another's; -EINTR. */
int pair_empty_now(struct pair *p);
/* With both locks of p->in, of one that is plain: the tokens that were before the data. */
void pair_skip_take(struct pair *p);
/* Of one that is plain: whether the host's data comes before what is left in the ring of p->in. -EINTR. */
int pair_host_first(struct pair *p);
/* The same, with the readers' lock, and as far as can be seen without asking the host: nobody moves anything now. */
bool pair_host_first_still(const struct pair *p);
/* And if it does, it is read, as recvmsg would without waiting; else PAIR_NOTHING. `left` is what the pieces have room
 * for. *said: flags of the message. */
int64_t pair_host_take(struct pair *p, struct pieces *d, uint64_t left, int flags, int *said);
/* The reader has made room. */
void pair_room(struct pair *p);
/* Of one that is plain: what was written into the ring goes into the host's socket. 0: nothing is left that could. */
int pair_move_out(struct pair *p);
/* That can't be told now: who moved some was killed, and the reader has not come to it yet. */
bool pair_in_doubt(const struct kx_pipe *o);
/* With the readers' lock: read from the ring up to here. */
static inline void pair_tail_set(struct pair *p, uint64_t tail)
{
	if (pair_is_plain(p))
		__atomic_store_n(&p->in->taken, tail, __ATOMIC_SEQ_CST);
	__atomic_store_n(&p->in->tail, tail, __ATOMIC_SEQ_CST);
}
#endif
