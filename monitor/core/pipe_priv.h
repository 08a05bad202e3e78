/* SPDX-License-Identifier: Apache-2.0 */
/* Between pipe.c and pair.c. Those without a word here are explained where they stand. */
#ifndef KX_PIPE_PRIV_H
#define KX_PIPE_PRIV_H
#include <pthread.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include "../../abi/kx_pipe.h"
#include "gmem.h"
#include "hcall.h"

#define NOT_HERE (-5000) /* the object is none (any more) that this key is good for */
#define ROOM_SLICE_NS 20000000

extern struct kx_pipes *pipe_mem; /* in guest memory; NULL: not mapped */
extern pthread_mutex_t pipe_table_lock;

/* What a call moves, piece by piece; bases are host addresses inside guest memory. */
struct pieces {
	const struct iovec *v, *end;
	struct iovec one;
	uint64_t total, at; /* bytes; of the present piece */
};

static inline struct kx_pipe *pipe_obj(unsigned i) { return &pipe_mem->obj[i % KX_PIPE_OBJECTS]; }
static inline uint8_t *pipe_ring(unsigned i)
{
	return gva_ptr(KX_PIPE_BASE + KX_PIPE_DATA + (uint64_t)(i % KX_PIPE_OBJECTS) * KX_PIPE_RING);
}
static inline bool pipe_is_live(const struct kx_pipe *o, uint64_t key)
{
	return __atomic_load_n(&o->state, __ATOMIC_ACQUIRE) == kx_pipe_live(key);
}
/* Named FIFOs have inode numbers, too. */
static inline bool pipe_is_of(const struct kx_pipe *o, const struct stat *st)
{
	return o->dev == st->st_dev && o->ino == st->st_ino;
}
/* Written and not read; a sum that can't be is nothing. */
static inline uint32_t pipe_used(const struct kx_pipe *o)
{
	uint64_t n = __atomic_load_n(&o->head, __ATOMIC_ACQUIRE) - __atomic_load_n(&o->tail, __ATOMIC_ACQUIRE);
	return n > KX_PIPE_RING ? 0 : (uint32_t)n;
}

bool pipe_lock_get(uint64_t *lock);
void pipe_lock_put(uint64_t *lock);
bool pipe_locks_take(struct kx_pipe *o);
bool pipe_table_is_ours(void);
/* The key of this descriptor of the calling process's; 0 = it is none of these. */
uint64_t pipe_key_for(int fd);
void pipe_key_set(int fd, uint64_t key);
bool pipe_map_here(void);
void pipe_sweep(void);
void pipe_reset(struct kx_pipe *o, const struct stat *st, bool nonblock, bool second);
void pipe_used_up_to(uint32_t end);
uint32_t pipe_pieces_copy(struct pieces *p, uint8_t *ring, uint64_t pos, uint32_t len, bool in);
void pipe_wake_room(struct kx_pipe *o);
void pipe_note_check(int fd, uint32_t epoch, uint32_t closes);
int pipe_host_poll(int fd, int events);

/* ---- pair.c: socket pairs. fd: an end, whose key it is ---- */

/* What a process that has the end of this key must know though the data goes through the host: some is left in the ring,
 * or a token is before it. */
bool pair_rest(uint64_t key);
/* No token where no data is. */
void pair_settle(uint64_t key, int fd);
/* From now on through the host, what is in the rings apart. 0 or -errno. */
int pair_plain(uint64_t key, int fd);
/* read, write and their brothers; NOT_HERE: the host's. */
int64_t pair_io(struct hcall *c, uint64_t key, int fd, struct pieces *p, bool writes);
/* Before SO_ERROR is asked of the host. */
void pair_error_asked(uint64_t key, int fd);
/* FIONREAD. */
int pair_inq(uint64_t key, int fd);
#endif
