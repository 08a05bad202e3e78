/* SPDX-License-Identifier: Apache-2.0 */
/* Between pipe*.c and pair*.c. Those without a word here are explained where they stand. */
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
#define SLICE_FIRST_NS 20000000
#define SLICE_LAST_NS 1000000000

extern struct kx_pipes *pipe_mem; /* in guest memory; NULL: not mapped */
extern uint64_t pipe_key_of[KX_PIPE_FDS];
extern unsigned pipe_fds;     /* pipe_key_of[] at and above it is 0 */
extern bool pipe_pairs_above; /* a socket pair had a descriptor that pipe_key_of[] has no place for */
extern bool pipe_is_watching; /* one of the socket pairs here is, or was, in an epoll */
extern bool pipe_given_up;    /* no rings in this process any more, nor in its children: what is mapped is its own */
extern struct kx_pipes *pipe_headers; /* in pipe_resume(): a view of all objects, which may be the only one */

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
static inline struct kx_pipe_table *pipe_published(void) { return gva_ptr(KX_PIPE_TABLE); }
static inline struct kx_pipe *pipe_object(uint64_t key) { return pipe_obj(kx_pipe_obj(key)); }
static inline uint8_t *pipe_ring_of(uint64_t key) { return pipe_ring(kx_pipe_obj(key)); }
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

/* At the begin of turn number n without progress of a loop that ends by what shared memory says. True: a signal has come.
 * Before many turns a call that needn't sleep is not interrupted; behind them each is a nap, lest it takes the CPU. */
bool pipe_in_vain(unsigned n);
/*
 * A lock of an object. False: the caller is to leave its call, since a signal has come; or while it is in a hurry, no lock of
 * another's is waited for any more. That is who has the table, and from pipe_hurry() to pipe_hurry_end(): whatever other
 * members do, all waits of one such time together end after some seconds. They nest.
 */
bool pipe_lock_get(uint64_t *lock);
void pipe_hurry(void);
void pipe_hurry_end(void);
/* Nanoseconds of CLOCK_MONOTONIC until which the caller may wait for other members. */
uint64_t pipe_wait_until(void);
/* The table of descriptors, and its lock. */
void pipe_table_get(void);
bool pipe_table_try(void);
void pipe_table_put(void);
void pipe_lock_put(uint64_t *lock);
bool pipe_locks_take(struct kx_pipe *o);
bool pipe_table_is_ours(void);
/* The key of this descriptor of the calling process's; 0 = it is none of these. */
uint64_t pipe_key_for(int fd);
/* The same, without a look at descriptors that came from elsewhere. */
uint64_t pipe_key_get(int fd);
void pipe_key_set(int fd, uint64_t key);
bool pipe_map_here(void);
void pipe_sweep(void);
void pipe_reset(struct kx_pipe *o, const struct stat *st, bool nonblock, bool second);
void pipe_used_up_to(uint32_t end);
uint32_t pipe_pieces_copy(struct pieces *p, uint8_t *ring, uint64_t pos, uint32_t len, bool in);
void pipe_wake_room(struct kx_pipe *o);
void pipe_note_check(int fd, uint32_t epoch, uint32_t closes);
int pipe_host_poll(int fd, int events);

/* ---- pipe.c: holders, the table of descriptors ---- */

bool pipe_holder_swap(struct kx_pipe *o, uint32_t old, uint32_t new);
bool pipe_holder_has(const struct kx_pipe *o, uint32_t who);
void pipe_holder_remove(struct kx_pipe *o, uint64_t key, uint32_t who);
unsigned pipe_objects_used(void);
struct kx_pipe *pipe_behind(struct kx_pipe *o);
void pipe_closed(uint64_t key);
uint64_t pipe_find(const struct stat *st);
bool pipe_is_kind(const struct stat *st);
/* By the inode. 0: none. */
uint64_t pipe_find_fd(int fd);

/* ---- pipe_plain.c ---- */

bool pipe_tokens_drain(int fd);
int pipe_make_plain(uint64_t key, int fd);
void pipe_each_fd(void (*fn)(int fd));
void pipe_each_fd_early(void (*fn)(int fd));

/* ---- pipe_io.c ---- */

/* One write to the host's pipe, or read from it, of what others may have filled or emptied: without sleeping, where the host
 * can. */
int64_t pipe_host_write(int fd, const void *p, uint64_t n);
int64_t pipe_host_read(int fd, void *p, uint64_t n);
void pipe_pieces_of(struct pieces *p, struct hcall *c);
void pipe_wake_readers(struct kx_pipe *o, int wfd);
bool pipe_sleep_prepare(struct kx_pipe *o, uint64_t key, int fd);
int64_t pipe_gone(const struct kx_pipe *was, int fd, bool slept);
/* Handlers of read, write and their brothers; of ioctl and fcntl. */
int64_t pipe_io(struct hcall *c);
int64_t pipe_control(struct hcall *c);

/* ---- pipe_nap.c ---- */

/* Before fd's write: the process's other ends are asked about, too, lest each of them costs an exit of its own. */
void pipe_check_others(int fd);
/* Nothing to read: wait a moment for it, before a sleep that others must end by an exit. */
void pipe_nap(struct kx_pipe *o);
/* Who naps here need not do so any longer. */
void pipe_nap_end(struct kx_pipe *o);
/* Data was written here. */
void pipe_owe(struct kx_pipe *o);

/* The descriptor here that is the other end of key's pair, or -1. */
int pipe_other_end(uint64_t key);
/* Call fn for each end of a pair that the table names. False: without `wait`, another thread has the table. */
bool pipe_each_pair(void (*fn)(uint64_t key, int fd), bool wait);
/* The key of fd is good for nothing any more if it says `key`: no more of the table's. */
void pipe_forget(int fd, uint64_t key);

/* ---- pair*.c: socket pairs. fd: an end, whose key it is ---- */

/* What a process that has the end of this key must know though the data goes through the host: some is left in the ring,
 * or a token is before it. */
bool pair_rest(uint64_t key);
/* And what it wrote into the ring before is there still. */
bool pair_owes(uint64_t key);
/* No token where no data is. */
void pair_settle(uint64_t key, int fd);
/* From now on through the host. What is in the rings is moved there as far as this process has the end that wrote it.
 * 0 or -errno. */
int pair_plain(uint64_t key, int fd);
/* Of one that is plain: nothing is left in the ring that this end reads. Waits for those who can move it, so long at most;
 * -EAGAIN: they are not there. */
int pair_vacate(uint64_t key, int fd, unsigned ms);
/* Before fd is closed, the last one of this process that is this end. */
void pair_leaving(uint64_t key, int fd);
/* read, write and their brothers; NOT_HERE: the host's. */
int64_t pair_io(struct hcall *c, uint64_t key, int fd, struct pieces *p, bool writes);
/* Before SO_ERROR is asked of the host. */
void pair_error_asked(uint64_t key, int fd);
/* FIONREAD. */
int pair_inq(uint64_t key, int fd);
/* If there is no room, the host's socket has none from now on, until the reader makes some. 1: so it is, 0: there is room;
 * -EINTR. */
int pair_fill(uint64_t key, int fd);
/* Who may wait for this end by an epoll: the end's watch words. */
bool pair_is_watched(uint64_t key);
/* One of this process's ends is watched. */
void pipe_watching(void);
/* What the host says of a watched end is true from here on. */
void pair_watch(uint64_t key, int fd);
/* The handlers of epoll_ctl, and of messages, where an end is concerned. */
int64_t pair_epoll_ctl(struct hcall *c);
int64_t pair_message(struct hcall *c);
/* The LibOS has written. */
void pair_wrote(uint64_t key, int fd);
/* It has read. */
void pair_read_some(uint64_t key, int fd);
/* POLLOUT as poll tells it. */
bool pair_writable(uint64_t key);
#endif
