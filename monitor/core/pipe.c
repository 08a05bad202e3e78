/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Locks: `pipe_table_lock` (this process's table of descriptors) comes before pvm.mm_lock; the locks in the objects are the
 * family's and come last. Whoever holds those makes only host calls that can't sleep.
 */
#include "pipe.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../../util/now.h"
#include "../../util/together.h"
#include "../../abi/kx_pipe.h"
#include "family.h"
#include "gmem.h"
#include "keeper.h"
#include "pipe_priv.h"
#include "thread.h"

#define EXIT_CYCLES 100000 /* a guess, until some were measured */
#define SWEEP_NS 100000000ull
#define HURRY_NS 2000000000ull /* whoever has a lock meanwhile is stopped, or lies */
#define USED_TRIES 1000        /* against others who write the word for fun */

static KX_TOGETHER pthread_mutex_t pipe_table_lock = PTHREAD_MUTEX_INITIALIZER;
struct kx_pipes *pipe_mem; /* in guest memory; NULL: not mapped */
uint64_t pipe_key_of[KX_PIPE_FDS];
unsigned pipe_fds;     /* pipe_key_of[] at and above it is 0 */
bool pipe_pairs_above; /* a socket pair had a descriptor that pipe_key_of[] has no place for */
bool pipe_is_watching; /* one of the socket pairs here is, or was, in an epoll */
bool pipe_given_up;    /* no rings in this process any more, nor in its children: what is mapped is its own */

static void epoch_next(void)
{
	__atomic_add_fetch(&((struct kx_futexes *)gva_ptr(KX_FUTEX_BASE))->ended, 1, __ATOMIC_SEQ_CST);
	if (pipe_mem)
		__atomic_add_fetch(&pipe_mem->epoch, 1, __ATOMIC_SEQ_CST);
}

/* ---- who lives ----------------------------------------------------------------------------------------------------- */

/*
 * A zombie has nothing open and holds nothing; one whose first thread alone has ended is none. Without a descriptor, which
 * other threads of the guest's could take while it is open: the number comes from memory that the guest writes.
 */
static bool is_dead(pid_t pid)
{
	char name[32], target[8];
	struct stat st;
	if (pid == my_pid())
		return false;
	snprintf(name, sizeof name, "%d/task", pid);
	long r = HC6(SYS_newfstatat, pvm.proc_fd, name, &st, 0, 0, 0);
	if (r)
		return r == -ENOENT || r == -ESRCH;
	if (st.st_nlink > 3) /* two, and one for each thread */
		return false;
	snprintf(name, sizeof name, "%d/exe", pid);
	r = HC6(SYS_readlinkat, pvm.proc_fd, name, target, sizeof target, 0, 0);
	return r == -ENOENT || r == -ESRCH; /* no memory: a zombie, or about to be one */
}

/* ---- locks of an object ------------------------------------------------------------------------------------------ */

static uint64_t lock_word(void) { return (uint64_t)my_pid() << 32 | (uint32_t)my_tid(); }

static bool lock_try(uint64_t *lock)
{
	uint64_t none = 0;
	return __atomic_compare_exchange_n(lock, &none, lock_word(), false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* Its holder may have been killed. */
static bool lock_try_dead(uint64_t *lock)
{
	uint64_t old = __atomic_load_n(lock, __ATOMIC_SEQ_CST);
	if (!old || !is_dead((pid_t)(old >> 32)))
		return lock_try(lock);
	return __atomic_compare_exchange_n(lock, &old, lock_word(), false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static __thread struct {
	unsigned depth;
	uint64_t until; /* 0: it has not waited yet */
} hurry;

/* A child of vfork has its parent's: killed meanwhile, it would leave that in a hurry for ever. */
void pipe_hurry(void)
{
	if (!is_vfork_child() && !hurry.depth++)
		hurry.until = 0;
}

void pipe_hurry_end(void) { hurry.depth -= hurry.depth > 0; }

uint64_t pipe_wait_until(void)
{
	if (!hurry.depth)
		return UINT64_MAX;
	if (!hurry.until)
		hurry.until = now_ns() + HURRY_NS;
	return hurry.until;
}

/* Held for the copy of one ring at most, by somebody who may have to wait for a CPU or is stopped. */
bool pipe_lock_get(uint64_t *lock)
{
	struct timespec nap = { 0, 50000 };
	for (unsigned i = 0; !lock_try(lock); i++) {
		if (i < 100) {
			__builtin_ia32_pause();
			continue;
		}
		if (i < 120) { /* it may wait for this CPU */
			HC6(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
			continue;
		}
		if (i % 20 == 0 && lock_try_dead(lock))
			return true;
		if ((self && self->sig_stop) || (hurry.depth && now_ns() >= pipe_wait_until()))
			return false;
		if (i > 1000)
			nap.tv_nsec = 1000000;
		HC6(SYS_nanosleep, &nap, 0, 0, 0, 0, 0);
	}
	return true;
}

void pipe_lock_put(uint64_t *lock) { __atomic_store_n(lock, 0, __ATOMIC_SEQ_CST); }

/* ---- holders ------------------------------------------------------------------------------------------------------- */

bool pipe_holder_swap(struct kx_pipe *o, uint32_t old, uint32_t new)
{
	for (unsigned i = 0; i < KX_PIPE_HOLDERS; i++) {
		uint32_t want = old;
		if (__atomic_compare_exchange_n(&o->holder[i], &want, new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			return true;
	}
	return false;
}

bool pipe_holder_has(const struct kx_pipe *o, uint32_t who)
{
	for (unsigned i = 0; i < KX_PIPE_HOLDERS; i++)
		if (__atomic_load_n(&o->holder[i], __ATOMIC_SEQ_CST) == who)
			return true;
	return false;
}

static void second_free(struct kx_pipe *o, uint64_t gen)
{
	uint64_t state = gen << 32 | KX_PIPE_SECOND;
	__atomic_compare_exchange_n(&o->state, &state, gen << 32 | KX_PIPE_FREE, false, __ATOMIC_SEQ_CST,
				    __ATOMIC_SEQ_CST);
}

struct kx_pipes *pipe_headers; /* in pipe_resume(): a view of all objects, which may be the only one */

/* What comes behind o, in the view that o is in. */
struct kx_pipe *pipe_behind(struct kx_pipe *o)
{
	struct kx_pipes *in = pipe_headers && o >= pipe_headers->obj && o < pipe_headers->obj + KX_PIPE_OBJECTS
				      ? pipe_headers
				      : pipe_mem;
	return &in->obj[(size_t)(o - in->obj + 1) % KX_PIPE_OBJECTS];
}

/* Nobody left: free. The state that was seen before the look tells whether it is still the same pipe's. */
static void free_if_left(struct kx_pipe *o, uint64_t state)
{
	for (unsigned i = 0; i < KX_PIPE_HOLDERS; i++)
		if (__atomic_load_n(&o->holder[i], __ATOMIC_SEQ_CST))
			return;
	bool pair = o->pair;
	if (pair && __atomic_load_n(&o->passed, __ATOMIC_SEQ_CST)) /* an end is on its way in a message */
		return;
	if (__atomic_compare_exchange_n(&o->state, &state, (state & ~0xffffffffull) | KX_PIPE_FREE, false,
					__ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST) &&
	    pair)
		second_free(pipe_behind(o), state >> 32);
}

void pipe_holder_remove(struct kx_pipe *o, uint64_t key, uint32_t who)
{
	uint64_t state = __atomic_load_n(&o->state, __ATOMIC_SEQ_CST);
	if (state >> 32 != key >> 32)
		return;
	for (unsigned i = 0; i < KX_PIPE_HOLDERS && pipe_holder_swap(o, who, 0); i++)
		;
	free_if_left(o, state);
}

unsigned pipe_objects_used(void)
{
	uint32_t n = __atomic_load_n(&pipe_mem->used, __ATOMIC_ACQUIRE);
	return n < KX_PIPE_OBJECTS ? n : KX_PIPE_OBJECTS;
}

static void sweep_holder(struct kx_pipe *o, unsigned i)
{
	uint32_t h = __atomic_load_n(&o->holder[i], __ATOMIC_SEQ_CST), new = 0;
	if (!h || !is_dead((pid_t)(h & ~(KX_PIPE_GUARD | KX_PIPE_STALE))))
		return;
	/* A child that was born just before its parent was killed has yet to put its own number here. */
	if ((h & KX_PIPE_GUARD) && !(h & KX_PIPE_STALE))
		new = h | KX_PIPE_STALE;
	__atomic_compare_exchange_n(&o->holder[i], &h, new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* Free what only the dead had. Not too often: it looks at each holder's process. */
void pipe_sweep(void)
{
	uint64_t last = __atomic_load_n(&pipe_mem->swept, __ATOMIC_RELAXED), now = now_ns();
	if (now - last < SWEEP_NS)
		return;
	__atomic_store_n(&pipe_mem->swept, now, __ATOMIC_RELAXED);
	for (unsigned k = 0; k < KX_PIPE_OBJECTS; k++) {
		struct kx_pipe *o = &pipe_mem->obj[k];
		uint64_t state = __atomic_load_n(&o->state, __ATOMIC_SEQ_CST);
		unsigned kind = state & KX_PIPE_KIND;
		if (kind == KX_PIPE_MAKE && is_dead((pid_t)((uint32_t)state >> 4)))
			__atomic_compare_exchange_n(&o->state, &state, state & ~0xffffffffull, false, __ATOMIC_SEQ_CST,
						    __ATOMIC_SEQ_CST);
		/* Its first one's last holder was killed before it came to this one. */
		if (kind == KX_PIPE_SECOND && k) {
			uint64_t first = __atomic_load_n(&pipe_obj(k - 1)->state, __ATOMIC_SEQ_CST);
			if (first >> 32 != state >> 32 || !(first & KX_PIPE_KIND))
				second_free(o, state >> 32);
		}
		if (kind != KX_PIPE_LIVE && kind != KX_PIPE_PLAIN)
			continue;
		for (unsigned i = 0; i < KX_PIPE_HOLDERS; i++)
			sweep_holder(o, i);
		free_if_left(o, state);
	}
}

/* ---- the table of descriptors -------------------------------------------------------------------------------------- */

void pipe_table_get(void)
{
	pthread_mutex_lock(&pipe_table_lock);
	pipe_hurry();
}

bool pipe_table_try(void)
{
	if (pthread_mutex_trylock(&pipe_table_lock))
		return false;
	pipe_hurry();
	return true;
}

void pipe_table_put(void)
{
	pipe_hurry_end();
	pthread_mutex_unlock(&pipe_table_lock);
}

uint64_t pipe_key_get(int fd)
{
	return pipe_mem && (unsigned)fd < KX_PIPE_FDS ? __atomic_load_n(&pipe_key_of[fd], __ATOMIC_ACQUIRE) : 0;
}

/* With pipe_table_lock. */
void pipe_key_set(int fd, uint64_t key)
{
	struct kx_pipe_fd *e = &pipe_published()->fd[fd];
	if (key) {
		e->tsc = 0;
		e->epoch = __atomic_load_n(&pipe_mem->epoch, __ATOMIC_RELAXED);
		e->closes = __atomic_load_n(&pipe_object(key)->closes, __ATOMIC_RELAXED);
		e->spin = e->missed = 0;
	}
	__atomic_store_n(&pipe_key_of[fd], key, __ATOMIC_RELEASE);
	__atomic_store_n(&e->key, key, __ATOMIC_RELEASE);
	if (key && (unsigned)fd >= pipe_fds)
		pipe_fds = fd + 1;
}

/* Nobody else's descriptors change behind the table's back. */
bool pipe_table_is_ours(void) { return !is_vfork_child(); }

bool pipe_map_here(void)
{
	struct stat st;
	if (pipe_mem || pipe_given_up)
		return !pipe_given_up;
	if (fstat(pvm.family_fd, &st) || st.st_uid != geteuid() ||
	    (uint64_t)st.st_size < family_pipes_offset() + KX_PIPE_SIZE ||
	    gmem_map_family(KX_PIPE_BASE, KX_PIPE_SIZE, pvm.family_fd, family_pipes_offset()))
		return false;
	pipe_published()->cpus = pvm.cfg->cpus ? (unsigned)pvm.cfg->cpus : family_cpus();
	pipe_published()->exit_cycles = EXIT_CYCLES;
	pipe_published()->on = 1;
	__atomic_store_n(&pipe_mem, gva_ptr(KX_PIPE_BASE), __ATOMIC_RELEASE);
	return true;
}

void pipe_wake_room(struct kx_pipe *o)
{
	if (!__atomic_exchange_n(&o->full, 0, __ATOMIC_SEQ_CST))
		return;
	__atomic_add_fetch(&o->room, 1, __ATOMIC_SEQ_CST);
	HC6(SYS_futex, &o->room, FUTEX_WAKE, INT_MAX, 0, 0, 0);
}

/* A descriptor that had this key is closed; with pipe_table_lock. */
void pipe_closed(uint64_t key)
{
	struct kx_pipe *o = pipe_object(key);
	bool more = false;
	for (unsigned i = 0; i < pipe_fds && !more; i++)
		more = pipe_key_of[i] && (pipe_key_of[i] ^ key) >> 32 == 0 &&
		       kx_pipe_obj(pipe_key_of[i]) == kx_pipe_obj(key);
	__atomic_add_fetch(&o->closes, 1, __ATOMIC_SEQ_CST);
	pipe_wake_room(o);
	pipe_nap_end(o);
	if (kx_pipe_pair(key)) {
		pipe_wake_room(pipe_obj(kx_pipe_obj(key) + 1));
		pipe_nap_end(pipe_obj(kx_pipe_obj(key) + 1));
	}
	if (!more)
		pipe_holder_remove(o, key, (uint32_t)pvm.pid);
}

static void key_drop(int fd)
{
	uint64_t key = pipe_key_of[fd];
	pipe_key_set(fd, 0);
	if (key)
		pipe_closed(key);
}

void pipe_forget(int fd, uint64_t key)
{
	if (!pipe_table_is_ours() || (unsigned)fd >= KX_PIPE_FDS)
		return;
	pipe_table_get();
	if (pipe_key_of[fd] == key && !pipe_is_live(pipe_object(key), key) &&
	    !(kx_pipe_pair(key) && (pair_rest(key) || pair_owes(key)))) {
		pipe_key_set(fd, 0);
		bool more = false;
		for (unsigned i = 0; i < pipe_fds && !more; i++)
			more = pipe_key_of[i] && (pipe_key_of[i] ^ key) >> 32 == 0 &&
			       kx_pipe_obj(pipe_key_of[i]) == kx_pipe_obj(key);
		if (!more)
			pipe_holder_remove(pipe_object(key), key, (uint32_t)pvm.pid);
	}
	pipe_table_put();
}

/* The object of a pipe by its inode; key without end, 0 = none. */
uint64_t pipe_find(const struct stat *st)
{
	for (unsigned i = 0, n = pipe_objects_used(); i < n; i++) {
		const struct kx_pipe *o = &pipe_mem->obj[i];
		uint64_t state = __atomic_load_n(&o->state, __ATOMIC_ACQUIRE), key = (state & ~0xffffffffull) | (i + 1);
		uint32_t kind = (uint32_t)state;
		if (kind != KX_PIPE_LIVE && !(kind == KX_PIPE_PLAIN && o->pair))
			continue;
		if (o->pair)
			key |= KX_PIPE_PAIR;
		if (!pipe_is_of(o, st)) {
			if (!o->pair || !pipe_is_of(pipe_obj(i + 1), st))
				continue;
			key |= 1 << 16;
		}
		if (kind == KX_PIPE_LIVE || pair_rest(key))
			return key;
	}
	return 0;
}

bool pipe_is_kind(const struct stat *st) { return S_ISFIFO(st->st_mode) || S_ISSOCK(st->st_mode); }

uint64_t pipe_find_fd(int fd)
{
	struct stat st;
	if (!pipe_mem || HC6(SYS_fstat, fd, &st, 0, 0, 0, 0) || !pipe_is_kind(&st))
		return 0;
	return pipe_find(&st);
}

uint64_t pipe_key_for(int fd)
{
	if (pipe_table_is_ours() && ((unsigned)fd < KX_PIPE_FDS || !pipe_pairs_above))
		return pipe_key_get(fd);
	return pipe_find_fd(fd);
}

int pipe_other_end(uint64_t key)
{
	for (unsigned i = 0; pipe_table_is_ours() && i < pipe_fds; i++)
		if (pipe_key_get((int)i) == (key ^ 1 << 16))
			return (int)i;
	return -1;
}

static void pairs_each(void (*fn)(uint64_t key, int fd))
{
	for (unsigned i = 0; pipe_mem && i < pipe_fds; i++) {
		uint64_t key = pipe_key_get((int)i);
		if (key && kx_pipe_pair(key))
			fn(key, (int)i);
	}
}

bool pipe_each_pair(void (*fn)(uint64_t key, int fd), bool wait)
{
	if (!wait && !pipe_table_try())
		return false;
	if (wait)
		pipe_table_get();
	pairs_each(fn);
	pipe_table_put();
	return true;
}

void pipe_watching(void) { pipe_is_watching = true; }

static void watch_one(uint64_t key, int fd)
{
	if (pair_is_watched(key))
		pair_watch(key, fd);
}

void pipe_before_wait(uint64_t nr)
{
	switch (nr) {
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
	case SYS_epoll_pwait2:
	case SYS_poll: /* of an epoll */
	case SYS_ppoll:
	case SYS_select:
	case SYS_pselect6:
		if (pipe_is_watching && pipe_table_is_ours())
			pairs_each(watch_one);
	}
}

/* ---- making one ----------------------------------------------------------------------------------------------------- */

bool pipe_locks_take(struct kx_pipe *o)
{
	if (!lock_try_dead(&o->rlock))
		return false;
	if (lock_try_dead(&o->wlock))
		return true;
	pipe_lock_put(&o->rlock);
	return false;
}

/* With its locks. */
void pipe_reset(struct kx_pipe *o, const struct stat *st, bool nonblock, bool second)
{
	o->dev = st->st_dev;
	o->ino = st->st_ino;
	o->nonblock[0] = o->nonblock[1] = nonblock;
	o->closes = o->sleepers = o->token = o->full = o->pair = o->skip = o->reset = o->passed = 0;
	o->kind = o->edge = o->filled = o->watched[0] = o->watched[1] = o->host_first = o->reset_due = o->writer = 0;
	o->napping = o->nap_ns = o->no_yield = 0;
	o->head = o->tail = o->moving = o->taken = 0;
	memset(o->holder, 0, sizeof o->holder);
	if (!second)
		o->holder[0] = (uint32_t)pvm.pid;
}

void pipe_used_up_to(uint32_t end)
{
	uint32_t n = __atomic_load_n(&pipe_mem->used, __ATOMIC_ACQUIRE);
	for (unsigned i = 0; i < USED_TRIES && n < end; i++)
		if (__atomic_compare_exchange_n(&pipe_mem->used, &n, end, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			return;
}

/* The new object's key without end, 0 = none. */
static uint64_t object_make(const struct stat *st, bool nonblock)
{
	for (unsigned i = 0; i < KX_PIPE_OBJECTS; i++) {
		struct kx_pipe *o = &pipe_mem->obj[i];
		uint64_t state = __atomic_load_n(&o->state, __ATOMIC_SEQ_CST);
		uint64_t gen = ((state >> 32) + 1) << 32;
		if ((state & KX_PIPE_KIND) != KX_PIPE_FREE ||
		    !__atomic_compare_exchange_n(&o->state, &state, gen | (uint64_t)pvm.pid << 4 | KX_PIPE_MAKE, false,
						 __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			continue;
		if (!pipe_locks_take(o)) { /* somebody is still on the way out of the last one */
			__atomic_store_n(&o->state, gen | KX_PIPE_FREE, __ATOMIC_SEQ_CST);
			continue;
		}
		pipe_reset(o, st, nonblock, false);
		pipe_used_up_to(i + 1);
		__atomic_store_n(&o->state, gen | KX_PIPE_LIVE, __ATOMIC_SEQ_CST);
		pipe_lock_put(&o->wlock);
		pipe_lock_put(&o->rlock);
		return gen | (i + 1);
	}
	return 0;
}

static void ring_try(const int fd[2], int flags)
{
	struct stat st;
	if ((unsigned)fd[0] >= KX_PIPE_FDS || (unsigned)fd[1] >= KX_PIPE_FDS || flags & ~(O_CLOEXEC | O_NONBLOCK) ||
	    fstat(fd[0], &st) || fcntl(fd[0], F_GETPIPE_SZ) != (int)KX_PIPE_RING || !pipe_map_here())
		return;
	uint64_t key = object_make(&st, flags & O_NONBLOCK);
	if (!key) {
		pipe_sweep();
		key = object_make(&st, flags & O_NONBLOCK);
	}
	if (!key)
		return;
	pipe_key_set(fd[0], key);
	pipe_key_set(fd[1], key | 1 << 16);
}

int64_t pipe_make(int fd[2], int flags)
{
	if (!pipe_table_is_ours() || pvm.proc_fd < 0)
		return HC6(SYS_pipe2, fd, flags, 0, 0, 0, 0);
	pipe_table_get();
	int64_t r = HC6(SYS_pipe2, fd, flags, 0, 0, 0, 0);
	if (r == 0 && fd_admit(fd[0]) && fd_admit(fd[1]))
		ring_try(fd, flags);
	pipe_table_put();
	return r;
}

/* ---- calls ------------------------------------------------------------------------------------------------------------ */

/* Calls that the ring does not do. */
static bool wants_plain(uint64_t nr)
{
	switch (nr) {
	case SYS_sendfile:
	case SYS_splice:
	case SYS_tee:
	case SYS_vmsplice:
	case SYS_epoll_ctl:
	case SYS_preadv2:
	case SYS_pwritev2:
	case SYS_fchmod:
	case SYS_fchown:
		return true;
	}
	return false;
}

static bool is_io(uint64_t nr, bool pair)
{
	return nr == SYS_read || nr == SYS_write || nr == SYS_readv || nr == SYS_writev ||
	       (pair && (nr == SYS_sendto || nr == SYS_recvfrom));
}

/* Calls on sockets alone. */
static bool is_message(uint64_t nr)
{
	return nr == SYS_sendmsg || nr == SYS_recvmsg || nr == SYS_sendmmsg || nr == SYS_recvmmsg;
}

static bool pair_wants_plain(uint64_t nr)
{
	return nr == SYS_setsockopt || nr == SYS_shutdown || nr == SYS_connect || nr == SYS_bind || nr == SYS_listen;
}

/* What is left in a ring can't be had by these. */
static bool reads_by_splice(const struct hcall *c)
{
	uint64_t key = c->nr == SYS_splice || c->nr == SYS_preadv2 ? pipe_key_for((int)c->arg[0]) : 0;
	return key && kx_pipe_pair(key) && pair_rest(key);
}

static bool changes_state(uint64_t nr, unsigned what)
{
	return nr == SYS_fcntl ? what == F_SETFL || what == F_SETPIPE_SZ
			       : what == FIONREAD || what == FIONBIO || what == FIOASYNC;
}

hc_handler pipe_handler(struct hcall *c, int64_t *r)
{
	if (!pipe_mem)
		return hc_fn(c->row);
	if (c->nr == SYS_getsockopt && (int)c->arg[1] == SOL_SOCKET && (int)c->arg[2] == SO_ERROR) {
		uint64_t asked = pipe_key_for((int)c->arg[0]);
		if (asked && kx_pipe_pair(asked))
			pair_error_asked(asked, (int)c->arg[0]);
	}
	if (is_message(c->nr)) {
		uint64_t over = pipe_key_for((int)c->arg[0]);
		return over && kx_pipe_pair(over) ? pair_message : hc_fn(c->row);
	}
	if (c->nr == SYS_epoll_ctl && pipe_table_is_ours()) {
		uint64_t added = pipe_key_for((int)c->arg[2]);
		if (added && kx_pipe_pair(added))
			return pair_epoll_ctl;
	}
	bool control = c->nr == SYS_ioctl || c->nr == SYS_fcntl, may = is_io(c->nr, true);
	if (!may && !control && !wants_plain(c->nr) && !pair_wants_plain(c->nr))
		return hc_fn(c->row);
	uint64_t key = may || control || pair_wants_plain(c->nr) ? pipe_key_for((int)c->arg[0]) : 0;
	bool pair = key && kx_pipe_pair(key), io = is_io(c->nr, pair);
	if ((may && !io) || (pair_wants_plain(c->nr) && !pair))
		return hc_fn(c->row);
	if ((pipe_table_is_ours() || pair) && (io || control))
		return !key ? hc_fn(c->row) : io ? pipe_io : pipe_control;
	if (control && !changes_state(c->nr, (unsigned)c->arg[1]))
		return hc_fn(c->row);
	for (int i = 0; i < 6 && c->row->arg[i].kind != KX_A_NONE; i++)
		if (c->row->arg[i].kind == KX_A_FD && (*r = pipe_plain((int)c->arg[i])) && *r != -EBADF)
			return NULL;
	if (reads_by_splice(c)) {
		*r = -EINVAL;
		return NULL;
	}
	return hc_fn(c->row);
}

void pipe_after(struct hcall *c, int64_t r)
{
	if (((c->nr == SYS_wait4 || c->nr == SYS_waitid) && r >= 0) ||
	    ((c->nr == SYS_read || c->nr == SYS_readv || c->nr == SYS_recvfrom || c->nr == SYS_recvmsg) && r == 0))
		epoch_next();
}

void pipe_signal(int signo)
{
	if (signo == SIGCHLD)
		epoch_next();
}

/* The LibOS has moved data and saw that the other side sleeps. */
int64_t hc_pipe_wake(struct hcall *c)
{
	int fd = (int)c->arg[0];
	uint64_t key = pipe_key_get(fd);
	if (!key || !pipe_table_is_ours() || !pipe_is_live(pipe_object(key), key))
		return 0;
	if (kx_pipe_pair(key))
		(c->arg[1] ? pair_wrote : pair_read_some)(key, fd);
	else if (kx_pipe_end(key))
		pipe_wake_readers(pipe_object(key), fd);
	else
		pipe_wake_room(pipe_object(key));
	return 0;
}

/* Before a pair's descriptor is closed, and with it those from `first` on up to it. */
static void leaving(uint64_t key, int fd, int first, int last)
{
	bool more = false;
	for (int i = 0; i < (int)pipe_fds && !more; i++)
		more = pipe_key_of[i] == key && i != fd && (i < first || i > last);
	if (more)
		pair_settle(key, fd); /* a token that nobody reads is an error at the other end */
	else
		pair_leaving(key, fd);
}

int64_t pipe_close(int fd)
{
	if (!pipe_mem || !pipe_table_is_ours())
		return HC6(SYS_close, fd, 0, 0, 0, 0, 0);
	pipe_table_get();
	uint64_t key = pipe_key_get(fd);
	if (key)
		pipe_key_set(fd, 0);
	if (key && kx_pipe_pair(key))
		leaving(key, fd, 0, -1);
	int64_t r = HC6(SYS_close, fd, 0, 0, 0, 0, 0);
	if (key)
		pipe_closed(key);
	pipe_table_put();
	return r;
}

int64_t pipe_close_range(unsigned first, unsigned last, unsigned flags)
{
	if (!pipe_mem || !pipe_table_is_ours() || flags & CLOSE_RANGE_CLOEXEC)
		return HC6(SYS_close_range, first, last, flags, 0, 0, 0);
	pipe_table_get();
	for (unsigned i = first; i <= last && i < pipe_fds; i++)
		if (pipe_key_of[i] && kx_pipe_pair(pipe_key_of[i]))
			leaving(pipe_key_of[i], (int)i, (int)first, (int)i);
	int64_t r = HC6(SYS_close_range, first, last, flags, 0, 0, 0);
	for (unsigned i = first; r == 0 && i <= last && i < pipe_fds; i++)
		key_drop((int)i);
	pipe_table_put();
	return r;
}

/* `to` is a copy of fd now; with pipe_table_lock. */
static void copied(int fd, int to)
{
	uint64_t key = pipe_key_get(fd), old = pipe_key_get(to);
	if (key && to >= KX_PIPE_FDS) {
		pipe_make_plain(key, fd);
		pipe_pairs_above = pipe_pairs_above || kx_pipe_pair(key);
	}
	if (to >= KX_PIPE_FDS || (!key && !old))
		return;
	pipe_key_set(to, key);
	if (old)
		pipe_closed(old);
}

int64_t pipe_dup(int fd, int64_t (*dup)(int fd, uint64_t arg, int cmd), uint64_t arg, int cmd)
{
	if (!pipe_mem || !pipe_table_is_ours())
		return dup(fd, arg, cmd);
	pipe_table_get();
	int64_t r = dup(fd, arg, cmd);
	if (r >= 0)
		copied(fd, (int)r);
	pipe_table_put();
	return r;
}

int64_t pipe_dup_to(int fd, int to, int flags, bool dup2)
{
	bool table = pipe_mem && pipe_table_is_ours();
	if (table)
		pipe_table_get();
	uint64_t old = table && fd != to ? pipe_key_get(to) : 0;
	if (old && kx_pipe_pair(old))
		leaving(old, to, 0, -1);
	int64_t r = dup2 ? HC6(SYS_dup2, fd, to, 0, 0, 0, 0) : HC6(SYS_dup3, fd, to, flags, 0, 0, 0);
	if (table && r >= 0 && fd != to)
		copied(fd, to);
	if (table)
		pipe_table_put();
	return r;
}
