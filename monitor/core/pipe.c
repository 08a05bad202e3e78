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
#include <linux/sockios.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../../util/log.h"
#include "../../util/now.h"
#include "../../abi/kx_pipe.h"
#include "../dev/procfs.h"
#include "family.h"
#include "gmem.h"
#include "keeper.h"
#include "pipe_priv.h"
#include "thread.h"
#include "update.h"

#define SLICE_FIRST_NS 20000000
#define SLICE_LAST_NS 1000000000
#define EXIT_CYCLES 100000 /* a guess, until some were measured */
#define SWEEP_NS 100000000ull
#define VACATE_MS 2000 /* for other members to move what they wrote */
#define VACATE_FORK_MS 200

pthread_mutex_t pipe_table_lock = PTHREAD_MUTEX_INITIALIZER;
struct kx_pipes *pipe_mem; /* in guest memory; NULL: not mapped */
static uint64_t key_of[KX_PIPE_FDS];
static unsigned fds_used; /* key_of[] at and above it is 0 */
static pid_t fork_parent;
static bool pairs_above; /* a socket pair had a descriptor that key_of[] has no place for */
static bool watching;    /* one of the socket pairs here is, or was, in an epoll */
static bool given_up;    /* no rings in this process any more, nor in its children: what is mapped is its own */

static struct kx_pipe_table *published(void) { return gva_ptr(KX_PIPE_TABLE); }
static struct kx_pipe *object(uint64_t key) { return &pipe_mem->obj[kx_pipe_obj(key) % KX_PIPE_OBJECTS]; }
static uint8_t *ring_of(uint64_t key) { return pipe_ring(kx_pipe_obj(key)); }
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

struct kx_pipe_table *pipe_published(void) { return published(); }
unsigned pipe_fds_used(void) { return fds_used; }

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

/* Held for the copy of one ring at most, by somebody who may have to wait for a CPU or is stopped. False: a signal
 * came meanwhile. */
bool pipe_lock_get(uint64_t *lock)
{
	const struct timespec nap = { 0, 50000 };
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
		if (self && (self->sig_stop || self->exiting))
			return false;
		HC6(SYS_nanosleep, &nap, 0, 0, 0, 0, 0);
	}
	return true;
}

void pipe_lock_put(uint64_t *lock) { __atomic_store_n(lock, 0, __ATOMIC_SEQ_CST); }

/* ---- holders ------------------------------------------------------------------------------------------------------- */

static bool holder_swap(struct kx_pipe *o, uint32_t old, uint32_t new)
{
	for (unsigned i = 0; i < KX_PIPE_HOLDERS; i++) {
		uint32_t want = old;
		if (__atomic_compare_exchange_n(&o->holder[i], &want, new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			return true;
	}
	return false;
}

static bool holder_has(const struct kx_pipe *o, uint32_t who)
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

static struct kx_pipes *headers; /* in pipe_resume(): a view of all objects, which may be the only one */

/* What comes behind o, in the view that o is in. */
static struct kx_pipe *behind(struct kx_pipe *o)
{
	struct kx_pipes *in = headers && o >= headers->obj && o < headers->obj + KX_PIPE_OBJECTS ? headers : pipe_mem;
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
		second_free(behind(o), state >> 32);
}

static void holder_remove(struct kx_pipe *o, uint64_t key, uint32_t who)
{
	uint64_t state = __atomic_load_n(&o->state, __ATOMIC_SEQ_CST);
	if (state >> 32 != key >> 32)
		return;
	while (holder_swap(o, who, 0))
		;
	free_if_left(o, state);
}

static unsigned objects_used(void)
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

uint64_t pipe_key_get(int fd)
{
	return pipe_mem && (unsigned)fd < KX_PIPE_FDS ? __atomic_load_n(&key_of[fd], __ATOMIC_ACQUIRE) : 0;
}

/* With pipe_table_lock. */
void pipe_key_set(int fd, uint64_t key)
{
	struct kx_pipe_fd *e = &published()->fd[fd];
	if (key) {
		e->tsc = 0;
		e->epoch = __atomic_load_n(&pipe_mem->epoch, __ATOMIC_RELAXED);
		e->closes = __atomic_load_n(&object(key)->closes, __ATOMIC_RELAXED);
		e->spin = e->missed = 0;
	}
	__atomic_store_n(&key_of[fd], key, __ATOMIC_RELEASE);
	__atomic_store_n(&e->key, key, __ATOMIC_RELEASE);
	if (key && (unsigned)fd >= fds_used)
		fds_used = fd + 1;
}

/* Nobody else's descriptors change behind the table's back. */
bool pipe_table_is_ours(void) { return !is_vfork_child(); }

bool pipe_map_here(void)
{
	struct stat st;
	if (pipe_mem || given_up)
		return !given_up;
	if (fstat(pvm.family_fd, &st) || st.st_uid != geteuid() ||
	    (uint64_t)st.st_size < family_pipes_offset() + KX_PIPE_SIZE ||
	    gmem_map_family(KX_PIPE_BASE, KX_PIPE_SIZE, pvm.family_fd, family_pipes_offset()))
		return false;
	published()->cpus = pvm.cfg->cpus ? (unsigned)pvm.cfg->cpus : family_cpus();
	published()->exit_cycles = EXIT_CYCLES;
	published()->on = 1;
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
static void closed(uint64_t key)
{
	struct kx_pipe *o = object(key);
	bool more = false;
	for (unsigned i = 0; i < fds_used && !more; i++)
		more = key_of[i] && (key_of[i] ^ key) >> 32 == 0 && kx_pipe_obj(key_of[i]) == kx_pipe_obj(key);
	__atomic_add_fetch(&o->closes, 1, __ATOMIC_SEQ_CST);
	pipe_wake_room(o);
	pipe_nap_end(o);
	if (kx_pipe_pair(key)) {
		pipe_wake_room(pipe_obj(kx_pipe_obj(key) + 1));
		pipe_nap_end(pipe_obj(kx_pipe_obj(key) + 1));
	}
	if (!more)
		holder_remove(o, key, (uint32_t)pvm.pid);
}

static void key_drop(int fd)
{
	uint64_t key = key_of[fd];
	pipe_key_set(fd, 0);
	if (key)
		closed(key);
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
	while (n < end &&
	       !__atomic_compare_exchange_n(&pipe_mem->used, &n, end, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		;
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
	pthread_mutex_lock(&pipe_table_lock);
	int64_t r = HC6(SYS_pipe2, fd, flags, 0, 0, 0, 0);
	if (r == 0 && fd_admit(fd[0]) && fd_admit(fd[1]))
		ring_try(fd, flags);
	pthread_mutex_unlock(&pipe_table_lock);
	return r;
}

/* ---- to a plain pipe --------------------------------------------------------------------------------------------- */

/* Bytes in the host's pipe of a live object are tokens. With the readers' lock, so nobody else takes them. */
static bool tokens_drain(int fd)
{
	char buf[64];
	int n = 0;
	bool any = false;
	while (HC6(SYS_ioctl, fd, FIONREAD, &n, 0, 0, 0) == 0 && n > 0) {
		if (HC6(SYS_read, fd, buf, (unsigned)n < sizeof buf ? (unsigned)n : sizeof buf, 0, 0, 0) <= 0)
			break;
		any = true;
	}
	return any;
}

static int ring_move(struct kx_pipe *o, uint64_t key, int rfd, int wfd)
{
	uint32_t n = pipe_used(o), at = (uint32_t)(o->tail % KX_PIPE_RING);
	uint32_t first = n < KX_PIPE_RING - at ? n : KX_PIPE_RING - at;
	struct iovec v[2] = { { ring_of(key) + at, first }, { ring_of(key), n - first } };
	tokens_drain(rfd);
	return n && HC6(SYS_writev, wfd, v, 2, 0, 0, 0) != (int64_t)n ? -EIO : 0;
}

/* fd: any end of it. Until the state changes, what was moved counts as tokens. */
static int make_plain(uint64_t key, int fd)
{
	struct kx_pipe *o = object(key);
	struct stat st;
	long mode = HC6(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0);
	int r = 0, other;
	if (kx_pipe_pair(key))
		return pair_plain(key, fd);
	if (mode < 0)
		return (int)mode;
	bool reads = (mode & O_ACCMODE) == O_RDONLY, both = (mode & O_ACCMODE) == O_RDWR;
	if (!pipe_is_live(o, key))
		return 0;
	other = both ? fd : fd_reopen(fd, reads ? O_WRONLY : O_RDONLY);
	if (other < 0)
		return other;
	if (!pipe_lock_get(&o->rlock)) {
		r = -EINTR;
	} else {
		if (!pipe_lock_get(&o->wlock)) {
			r = -EINTR;
		} else {
			if (pipe_is_live(o, key) && fstat(fd, &st) == 0 && pipe_is_of(o, &st) &&
			    !(r = ring_move(o, key, reads ? fd : other, reads ? other : fd)))
				__atomic_store_n(&o->state, (key & ~0xffffffffull) | KX_PIPE_PLAIN, __ATOMIC_SEQ_CST);
			pipe_lock_put(&o->wlock);
		}
		pipe_lock_put(&o->rlock);
	}
	if (other != fd)
		HC6(SYS_close, other, 0, 0, 0, 0, 0);
	__atomic_store_n(&o->full, 1, __ATOMIC_SEQ_CST);
	pipe_wake_room(o);
	return r;
}

/* The object of a pipe by its inode; key without end, 0 = none. */
uint64_t pipe_find(const struct stat *st)
{
	for (unsigned i = 0, n = objects_used(); i < n; i++) {
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

static bool is_kind(const struct stat *st) { return S_ISFIFO(st->st_mode) || S_ISSOCK(st->st_mode); }

static uint64_t find_fd(int fd)
{
	struct stat st;
	if (!pipe_mem || HC6(SYS_fstat, fd, &st, 0, 0, 0, 0) || !is_kind(&st))
		return 0;
	return pipe_find(&st);
}

uint64_t pipe_key_for(int fd)
{
	if (pipe_table_is_ours() && ((unsigned)fd < KX_PIPE_FDS || !pairs_above))
		return pipe_key_get(fd);
	return find_fd(fd);
}

int pipe_other_end(uint64_t key)
{
	for (unsigned i = 0; pipe_table_is_ours() && i < fds_used; i++)
		if (pipe_key_get((int)i) == (key ^ 1 << 16))
			return (int)i;
	return -1;
}

static void pairs_each(void (*fn)(uint64_t key, int fd))
{
	for (unsigned i = 0; pipe_mem && i < fds_used; i++) {
		uint64_t key = pipe_key_get((int)i);
		if (key && kx_pipe_pair(key))
			fn(key, (int)i);
	}
}

bool pipe_each_pair(void (*fn)(uint64_t key, int fd), bool wait)
{
	if (!wait && pthread_mutex_trylock(&pipe_table_lock))
		return false;
	if (wait)
		pthread_mutex_lock(&pipe_table_lock);
	pairs_each(fn);
	pthread_mutex_unlock(&pipe_table_lock);
	return true;
}

void pipe_watching(void) { watching = true; }

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
		if (watching && pipe_table_is_ours())
			pairs_each(watch_one);
	}
}

int pipe_plain(int fd)
{
	uint64_t key = pipe_mem ? pipe_key_for(fd) : 0;
	return key ? make_plain(key, fd) : 0;
}

/* Whoever made the other end of this socket, or has connected to it, is a member. */
static bool leads_to_member(int fd)
{
	struct ucred cred = { 0 };
	socklen_t len = sizeof cred;
	return !HC6(SYS_getsockopt, fd, SOL_SOCKET, SO_PEERCRED, &cred, &len, 0) && cred.pid > 0 &&
	       (cred.pid == my_pid() || family_has(cred.pid));
}

int pipe_passed(int fd, int over)
{
	uint64_t key = pipe_mem ? pipe_key_for(fd) : 0;
	int r = key ? make_plain(key, fd) : 0;
	if (r || !key || !kx_pipe_pair(key) || !pair_rest(key))
		return r;
	r = pair_vacate(key, fd, VACATE_MS);
	if (r != -EAGAIN)
		return r;
	/* Nobody is left who could put it into the host's socket. A member finds it in the ring. */
	if (!leads_to_member(over)) {
		kx_log(KX_LOG_WARN, "pair", "descriptor %d has unread data that cannot leave the family: not sent", fd);
		return -EIO;
	}
	__atomic_store_n(&object(key)->passed, 1, __ATOMIC_SEQ_CST);
	return 0;
}

int pipe_opened(int fd)
{
	uint64_t key = find_fd(fd);
	long mode = key ? HC6(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0) : 0;
	return key && !(mode & O_PATH) ? make_plain(key, fd) : 0;
}

static void each_name(const char *name, void *fn)
{
	int fd = atoi(name);
	if (fd_is_guest(fd))
		((void (*)(int))fn)(fd);
}

/* Call fn for each descriptor of the calling process's that is the guest's. */
static void each_fd(void (*fn)(int fd))
{
	char name[48];
	snprintf(name, sizeof name, "self/task/%d/fd", my_tid());
	if (!procfs_each(name, each_name, (void *)fn))
		return;
	for (unsigned fd = 0; fd < pvm.fd_limit; fd++) /* no thread can be had that looks */
		if (HC6(SYS_fcntl, fd, F_GETFD, 0, 0, 0, 0) >= 0)
			fn((int)fd);
}

static void plain_one(int fd) { pipe_opened(fd); }

void pipe_plain_all(void)
{
	if (pipe_mem)
		each_fd(plain_one);
}

static void vacate_one(int fd)
{
	uint64_t key = find_fd(fd);
	if (key && kx_pipe_pair(key) && pair_rest(key))
		pair_vacate(key, fd, VACATE_MS);
}

void pipe_identity_before(void)
{
	pipe_plain_all();
	if (pipe_mem)
		each_fd(vacate_one);
}

/* What socket pairs have left in rings for this process, and nobody else gives back. */
struct kept {
	struct kept *next;
	uint64_t key;
	struct kx_pipe obj[2];
	uint8_t ring[2][KX_PIPE_RING];
};

static struct kept *rests_keep(void)
{
	struct kept *list = NULL;
	for (unsigned i = 0; i < fds_used; i++) {
		uint64_t key = key_of[i];
		if (!key || !kx_pipe_pair(key) || !pair_rest(key))
			continue;
		struct kept *k = calloc(1, sizeof *k);
		if (!k)
			pvm_panic("pipes: no memory for what is left in a socket pair");
		k->next = list;
		k->key = key;
		list = k;
		for (unsigned w = 0; w < 2; w++) {
			struct kx_pipe *o = pipe_obj(kx_pipe_obj(key) + w);
			bool locked = pipe_locks_take(o);
			memcpy(&k->obj[w], o, sizeof k->obj[w]);
			memcpy(k->ring[w], pipe_ring(kx_pipe_obj(key) + w), KX_PIPE_RING);
			k->obj[w].rlock = k->obj[w].wlock = 0;
			if (kx_pipe_way(key, 0) == kx_pipe_obj(key) + w) /* nobody else takes or moves it */
				__atomic_store_n(&o->tail, o->head, __ATOMIC_SEQ_CST);
			if (locked) {
				pipe_lock_put(&o->wlock);
				pipe_lock_put(&o->rlock);
			}
		}
	}
	return list;
}

static void rests_restore(struct kept *k)
{
	while (k) {
		struct kept *next = k->next;
		for (unsigned w = 0; w < 2; w++) {
			memcpy(pipe_obj(kx_pipe_obj(k->key) + w), &k->obj[w], sizeof k->obj[w]);
			memcpy(pipe_ring(kx_pipe_obj(k->key) + w), k->ring[w], KX_PIPE_RING);
		}
		free(k);
		k = next;
	}
	pipe_mem->used = KX_PIPE_OBJECTS;
}

void pipe_identity_after(void)
{
	struct stat st;
	if (!pipe_mem || given_up || !pipe_table_is_ours() || fstat(pvm.family_fd, &st) || st.st_uid == geteuid())
		return;
	pthread_mutex_lock(&pipe_table_lock);
	struct kept *kept = rests_keep();
	/* Other threads may look at objects: they find empty ones. */
	if (gmem_map_family(KX_PIPE_BASE, KX_PIPE_SIZE, -1, 0))
		pvm_panic("pipes: cannot give up the family's memory");
	given_up = true;
	published()->on = 0;
	rests_restore(kept);
	for (unsigned i = 0; i < fds_used; i++)
		if (!key_of[i] || !kx_pipe_pair(key_of[i]) || !pair_rest(key_of[i]))
			pipe_key_set((int)i, 0);
	pthread_mutex_unlock(&pipe_table_lock);
}

/* ---- reading and writing --------------------------------------------------------------------------------------------- */

static void pieces_of(struct pieces *p, struct hcall *c)
{
	p->at = p->total = 0;
	if (c->nr == SYS_readv || c->nr == SYS_writev) {
		p->v = c->iov;
		p->end = p->v + (c->row->arg[2].kind == KX_A_SIZE ? c->arg[2] : (uint32_t)c->arg[2]);
	} else {
		p->one = (struct iovec){ (void *)c->host[1], c->arg[2] };
		p->v = &p->one;
		p->end = p->v + 1;
	}
	for (const struct iovec *v = p->v; v < p->end; v++)
		p->total += v->iov_len;
	if (p->total > 0x7ffff000)
		p->total = 0x7ffff000;
}

/* Between the ring at cursor `pos` and the pieces, len bytes or until a fault: how many. */
uint32_t pipe_pieces_copy(struct pieces *p, uint8_t *ring, uint64_t pos, uint32_t len, bool in)
{
	uint32_t done = 0;
	while (done < len) {
		if (p->at == p->v->iov_len) {
			p->v++;
			p->at = 0;
			continue;
		}
		uint32_t off = (uint32_t)((pos + done) % KX_PIPE_RING), n = len - done;
		if (n > KX_PIPE_RING - off)
			n = KX_PIPE_RING - off;
		if (n > p->v->iov_len - p->at)
			n = (uint32_t)(p->v->iov_len - p->at);
		uint64_t gva = (uint64_t)((uint8_t *)p->v->iov_base - pvm.base) + p->at;
		if (in ? guest_read(ring + off, gva, n) : guest_write(gva, ring + off, n))
			break;
		p->at += n;
		done += n;
	}
	return done;
}

/* The host was asked: the other side is there. The values are those of before. */
void pipe_note_check(int fd, uint32_t epoch, uint32_t closes)
{
	if (!pipe_table_is_ours() || (unsigned)fd >= KX_PIPE_FDS)
		return;
	struct kx_pipe_fd *e = &published()->fd[fd];
	e->epoch = epoch;
	e->closes = closes;
	e->tsc = 0;
}

int pipe_host_poll(int fd, int events)
{
	struct pollfd p = { fd, (short)events, 0 };
	struct timespec zero = { 0, 0 };
	return HC6(SYS_ppoll, &p, 1, &zero, 0, 0, 0) > 0 ? p.revents : 0;
}

static void token_put(struct kx_pipe *o, int wfd)
{
	__atomic_store_n(&o->token, 1, __ATOMIC_SEQ_CST);
	HC6(SYS_write, wfd, "", 1, 0, 0, 0);
}

static void wake_readers(struct kx_pipe *o, int wfd)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (__atomic_load_n(&o->sleepers, __ATOMIC_SEQ_CST) && !__atomic_load_n(&o->token, __ATOMIC_SEQ_CST))
		token_put(o, wfd);
}

/* About to sleep, with the readers' lock. False: something came meanwhile. */
static bool sleep_prepare(struct kx_pipe *o, uint64_t key, int fd)
{
	__atomic_add_fetch(&o->sleepers, 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(&o->token, 0, __ATOMIC_SEQ_CST);
	bool drained = tokens_drain(fd);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!pipe_used(o) && pipe_is_live(o, key))
		return true;
	if (__atomic_sub_fetch(&o->sleepers, 1, __ATOMIC_SEQ_CST) && drained) { /* others sleep who were to see it */
		int wfd = fd_reopen(fd, O_WRONLY);
		if (wfd >= 0) {
			token_put(o, wfd);
			HC6(SYS_close, wfd, 0, 0, 0, 0, 0);
		}
	}
	return false;
}

/* The object is not to be used by this key any more. A call that has slept goes on by its number only if it is still the
 * same pipe's: another thread may have closed it and opened something else there. */
static int64_t gone(const struct kx_pipe *was, int fd, bool slept)
{
	struct stat st;
	return slept && (fstat(fd, &st) || !pipe_is_of(was, &st)) ? -EBADF : NOT_HERE;
}

static int64_t ring_read(struct hcall *c, uint64_t key, int fd)
{
	struct kx_pipe *o = object(key);
	const struct kx_pipe was = { .dev = o->dev, .ino = o->ino };
	struct pieces p;
	bool slept = false, napped = false, alone = false; /* alone: the host says that no writer is left */
	struct timespec slice = { 0, SLICE_FIRST_NS };
	pieces_of(&p, c);
	if (kx_pipe_end(key))
		return -EBADF;
	for (;;) {
		if (!p.total)
			return 0;
		uint32_t epoch = __atomic_load_n(&pipe_mem->epoch, __ATOMIC_SEQ_CST);
		uint32_t closes = __atomic_load_n(&o->closes, __ATOMIC_SEQ_CST);
		if (!pipe_lock_get(&o->rlock))
			return -EINTR;
		if (!pipe_is_live(o, key)) {
			pipe_lock_put(&o->rlock);
			return gone(&was, fd, slept);
		}
		uint32_t n = pipe_used(o);
		if (n) {
			n = n < p.total ? n : (uint32_t)p.total;
			uint32_t got = pipe_pieces_copy(&p, ring_of(key), o->tail, n, false);
			__atomic_store_n(&o->tail, o->tail + got, __ATOMIC_SEQ_CST);
			pipe_lock_put(&o->rlock);
			if (got)
				pipe_wake_room(o);
			return got ? (int64_t)got : -EFAULT;
		}
		if (alone) {
			pipe_lock_put(&o->rlock);
			return 0;
		}
		if (__atomic_load_n(&o->nonblock[0], __ATOMIC_RELAXED)) {
			pipe_lock_put(&o->rlock);
			if (pipe_host_poll(fd, POLLIN) & POLLHUP) {
				alone = true;
				continue;
			}
			pipe_note_check(fd, epoch, closes);
			return -EAGAIN;
		}
		if (!napped) {
			pipe_lock_put(&o->rlock);
			pipe_owed();
			pipe_nap(o);
			napped = true;
			continue;
		}
		bool sleeps = sleep_prepare(o, key, fd);
		pipe_lock_put(&o->rlock);
		if (!sleeps)
			continue;
		struct pollfd pfd = { fd, POLLIN, 0 };
		struct timespec ts = slice; /* should a writer be killed between its data and its token */
		int64_t r = HB6(SYS_ppoll, &pfd, 1, &ts, 0, 0, 0);
		__atomic_sub_fetch(&o->sleepers, 1, __ATOMIC_SEQ_CST);
		if (r == -EINTR && update_goes_on(c->t))
			continue;
		if (r < 0)
			return r;
		slept = true;
		if (pfd.revents & POLLNVAL || pipe_key_get(fd) != key)
			return gone(&was, fd, slept);
		alone = pfd.revents & POLLHUP && !(pfd.revents & POLLIN);
		int64_t ns = slice.tv_sec * 1000000000ll + slice.tv_nsec * 2;
		slice = ns >= SLICE_LAST_NS ? (struct timespec){ 1, 0 } : (struct timespec){ 0, ns };
	}
}

/* No reader is left: the host's own answer, with its signal. 0: there is one. */
static int64_t broken(int fd) { return pipe_host_poll(fd, POLLOUT) & POLLERR ? HC6(SYS_write, fd, "", 1, 0, 0, 0) : 0; }

static int64_t ring_write(struct hcall *c, uint64_t key, int fd)
{
	struct kx_pipe *o = object(key);
	const struct kx_pipe was = { .dev = o->dev, .ino = o->ino };
	struct pieces p;
	uint64_t done = 0;
	bool slept = false;
	pieces_of(&p, c);
	if (!kx_pipe_end(key))
		return -EBADF;
	if (!p.total)
		return 0;
	uint32_t need = p.total <= KX_PIPE_ATOMIC ? (uint32_t)p.total : 1;
	pipe_check_others(fd);
	for (;;) {
		uint32_t epoch = __atomic_load_n(&pipe_mem->epoch, __ATOMIC_SEQ_CST);
		uint32_t closes = __atomic_load_n(&o->closes, __ATOMIC_SEQ_CST);
		int64_t r = broken(fd);
		if (r < 0)
			return done ? (int64_t)done : r;
		pipe_note_check(fd, epoch, closes);
		if (!pipe_lock_get(&o->wlock))
			return done ? (int64_t)done : -EINTR;
		if (!pipe_is_live(o, key)) {
			pipe_lock_put(&o->wlock);
			return done ? (int64_t)done : gone(&was, fd, slept);
		}
		uint32_t room = KX_PIPE_RING - pipe_used(o), got = 0, n = 0;
		if (room >= need) {
			n = room < p.total - done ? room : (uint32_t)(p.total - done);
			got = pipe_pieces_copy(&p, ring_of(key), o->head, n, true);
			if (got < n && p.total <= KX_PIPE_ATOMIC)
				got = 0;
			__atomic_store_n(&o->head, o->head + got, __ATOMIC_SEQ_CST);
		}
		pipe_lock_put(&o->wlock);
		done += got;
		if (got) {
			pipe_owe(o);
			wake_readers(o, fd);
		}
		if (done == p.total)
			return (int64_t)done;
		if (got < n)
			return done ? (int64_t)done : -EFAULT;
		if (__atomic_load_n(&o->nonblock[1], __ATOMIC_RELAXED))
			return done ? (int64_t)done : -EAGAIN;
		uint32_t seq = __atomic_load_n(&o->room, __ATOMIC_SEQ_CST);
		__atomic_store_n(&o->full, 1, __ATOMIC_SEQ_CST);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (KX_PIPE_RING - pipe_used(o) >= need || !pipe_is_live(o, key))
			continue;
		pipe_nap_end(o);
		const struct timespec slice = { 0, ROOM_SLICE_NS }; /* the last reader may be killed */
		r = HB6(SYS_futex, &o->room, FUTEX_WAIT, seq, &slice, 0, 0);
		if (r == -EINTR && !update_goes_on(c->t))
			return done ? (int64_t)done : -EINTR;
		slept = true;
		if (pipe_key_get(fd) != key)
			return done ? (int64_t)done : gone(&was, fd, slept);
	}
}

/* ---- events ----------------------------------------------------------------------------------------------------- */

#define WATCH_MAX 64
#define IN_EVENTS (POLLIN | POLLRDNORM)
#define OUT_EVENTS (POLLOUT | POLLWRNORM)

struct watch {
	uint64_t key;
	unsigned i; /* in the caller's array */
	short events;
	bool asleep;
	bool rest; /* of a socket pair that is plain: some data is left in the ring */
};

bool pipe_in_sets(unsigned n, uint64_t *const set[3])
{
	bool ours = pipe_table_is_ours();
	unsigned end = !pipe_mem ? 0 : ours ? fds_used : n;
	for (unsigned fd = 0; fd < n && fd < end; fd++)
		for (int i = 0; i < 3; i++)
			if (set[i] && set[i][fd / 64] >> fd % 64 & 1 &&
			    (ours ? pipe_key_get((int)fd) : find_fd((int)fd)))
				return true;
	return false;
}

static short ring_events(const struct watch *w)
{
	uint32_t n = pipe_used(object(w->key));
	if (kx_pipe_pair(w->key)) {
		n = pipe_used(pipe_obj(kx_pipe_way(w->key, 0)));
		return (n ? w->events & IN_EVENTS : 0) |
		       (!w->rest && pair_writable(w->key) ? w->events & OUT_EVENTS : 0);
	}
	if (!kx_pipe_end(w->key))
		return n ? w->events & IN_EVENTS : 0;
	return KX_PIPE_RING - n >= KX_PIPE_ATOMIC ? w->events & OUT_EVENTS : 0;
}

/* The rings among p. What can't be watched becomes plain. -errno, or how many. */
static int watches_find(struct watch *w, struct pollfd *p, unsigned n)
{
	int nw = 0, r;
	for (unsigned i = 0; pipe_mem && i < n; i++) {
		uint64_t key = p[i].fd < 0 ? 0 : pipe_key_for(p[i].fd);
		if (!key)
			continue;
		if (kx_pipe_pair(key))
			pair_settle(key, p[i].fd);
		bool rest = kx_pipe_pair(key) && pair_rest(key);
		if (!rest && !pipe_is_live(object(key), key))
			continue;
		if ((pipe_table_is_ours() && nw < WATCH_MAX) || rest) {
			if (nw == 2 * WATCH_MAX)
				return -ENOMEM;
			w[nw++] = (struct watch){ key, i, p[i].events, false, rest };
		} else if ((r = make_plain(key, p[i].fd))) {
			return r;
		} else if (kx_pipe_pair(key) && pair_rest(key)) {
			i--;
		}
	}
	return nw;
}

/* Before the caller sleeps. 1: it may; 0: something came; -errno. Room can't be waited for together with other things:
 * a pipe that is full and watched becomes plain. */
static int watch_sleep(struct watch *w, int fd)
{
	struct kx_pipe *o = object(w->key);
	if (w->rest)
		return 1;
	if (kx_pipe_pair(w->key)) {
		int r = w->events & OUT_EVENTS ? pair_fill(w->key, fd) : 1;
		if (r <= 0)
			return r;
		pair_settle(w->key, fd);
		return !(w->events & IN_EVENTS) || !ring_events(w);
	}
	if (kx_pipe_end(w->key)) {
		int r = w->events & OUT_EVENTS ? make_plain(w->key, fd) : 1;
		return r < 0 ? r : r > 0;
	}
	if (!(w->events & IN_EVENTS))
		return 1;
	if (!pipe_lock_get(&o->rlock))
		return -EINTR;
	w->asleep = pipe_is_live(o, w->key) && sleep_prepare(o, w->key, fd);
	pipe_lock_put(&o->rlock);
	return w->asleep;
}

static bool watches_live(const struct watch *w, int nw, const struct pollfd *p)
{
	for (int k = 0; k < nw; k++)
		if (pipe_key_for(p[w[k].i].fd) != w[k].key ||
		    (w[k].rest ? !pair_rest(w[k].key) : !pipe_is_live(object(w[k].key), w[k].key)))
			return false;
	return true;
}

/* What the host is asked. It tells of a socket's hang-up by events that were asked for. */
static short host_events(const struct watch *w, bool sleep)
{
	if (w->rest)
		return w->events;
	if (!kx_pipe_pair(w->key))
		return sleep && w->asleep ? POLLIN : 0;
	return (short)((w->events & POLLRDHUP) | (w->events & IN_EVENTS ? POLLRDHUP | (sleep ? POLLIN : 0) : 0) |
		       (w->events & OUT_EVENTS && sleep ? POLLOUT : 0));
}

/* What the caller sees, where the host's answer is `got`. */
static short watch_result(const struct watch *w, short got)
{
	short ring = ring_events(w), ends = got & (POLLHUP | POLLERR | POLLNVAL);
	if (w->rest)
		return (short)(got | ring);
	if (!kx_pipe_pair(w->key))
		return (short)(ends | ring);
	if (!pipe_used(pipe_obj(kx_pipe_way(w->key, 1)))) /* a token that was never read is no data that was lost */
		ends &= ~POLLERR;
	if (got & (POLLHUP | POLLRDHUP))
		ring |= w->events & (IN_EVENTS | POLLRDHUP);
	return (short)(ends | ring);
}

/* One look, or one sleep of at most *t. *slept: it was one. */
static int64_t watch_once(struct watch *w, int nw, struct pollfd *p, unsigned n, struct timespec *t, bool may_sleep)
{
	bool sleep = may_sleep;
	struct timespec zero = { 0, 0 };
	int r = 1;
	for (int k = 0; k < nw; k++)
		sleep = sleep && !ring_events(&w[k]);
	for (int k = 0; k < nw && sleep; k++)
		sleep = (r = watch_sleep(&w[k], p[w[k].i].fd)) > 0;
	for (int k = 0; k < nw; k++)
		p[w[k].i].events = host_events(&w[k], sleep);
	int64_t ret = r < 0 ? r : sleep ? HB6(SYS_ppoll, p, n, t, 0, 0, 0) : HC6(SYS_ppoll, p, n, &zero, 0, 0, 0);
	for (int k = 0; k < nw; k++) {
		p[w[k].i].events = w[k].events;
		if (w[k].asleep)
			__atomic_sub_fetch(&object(w[k].key)->sleepers, 1, __ATOMIC_SEQ_CST);
		w[k].asleep = false;
	}
	if (ret == -EINTR && !sleep)
		ret = 0;
	if (ret < 0)
		return ret;
	for (int k = 0; k < nw; k++)
		p[w[k].i].revents = watch_result(&w[k], p[w[k].i].revents);
	ret = 0;
	for (unsigned i = 0; i < n; i++)
		ret += p[i].revents != 0;
	return ret;
}

static void ts_set(struct timespec *ts, uint64_t ns)
{
	ts->tv_sec = (time_t)(ns / 1000000000);
	ts->tv_nsec = (long)(ns % 1000000000);
}

int64_t pipe_ppoll(struct hcall *c, struct pollfd *p, unsigned n, struct timespec *ts)
{
	struct watch w[2 * WATCH_MAX];
	bool wait = !ts || ts->tv_sec || ts->tv_nsec;
	uint64_t start = now_ns(), limit = UINT64_MAX, slice = SLICE_FIRST_NS;
	if (ts && (uint64_t)ts->tv_sec < limit / 2000000000)
		limit = ts->tv_sec * 1000000000ull + ts->tv_nsec;
	(void)c;
	for (;;) {
		int nw = watches_find(w, p, n);
		if (nw < 0)
			return nw;
		if (!nw)
			return wait ? HB6(SYS_ppoll, p, n, ts, 0, 0, 0) : HC6(SYS_ppoll, p, n, ts, 0, 0, 0);
		while (watches_live(w, nw, p)) {
			struct timespec t;
			uint64_t gone = now_ns() - start, left = gone < limit ? limit - gone : 0;
			ts_set(&t, left < slice ? left : slice);
			int64_t r = watch_once(w, nw, p, n, &t, wait && left);
			gone = now_ns() - start;
			left = gone < limit ? limit - gone : 0;
			if (ts && wait)
				ts_set(ts, left);
			if (!watches_live(w, nw, p) && r >= 0)
				break; /* what it said of them was of the ring */
			if (r || !wait || !left)
				return r;
			slice = slice * 2 < SLICE_LAST_NS ? slice * 2 : SLICE_LAST_NS;
		}
	}
}

void pipe_forget(int fd, uint64_t key)
{
	if (!pipe_table_is_ours() || (unsigned)fd >= KX_PIPE_FDS)
		return;
	pthread_mutex_lock(&pipe_table_lock);
	if (key_of[fd] == key && !pipe_is_live(object(key), key) &&
	    !(kx_pipe_pair(key) && (pair_rest(key) || pair_owes(key)))) {
		pipe_key_set(fd, 0);
		bool more = false;
		for (unsigned i = 0; i < fds_used && !more; i++)
			more = key_of[i] && (key_of[i] ^ key) >> 32 == 0 && kx_pipe_obj(key_of[i]) == kx_pipe_obj(key);
		if (!more)
			holder_remove(object(key), key, (uint32_t)pvm.pid);
	}
	pthread_mutex_unlock(&pipe_table_lock);
}

static bool writes(uint64_t nr) { return nr == SYS_write || nr == SYS_writev || nr == SYS_sendto; }

static int64_t ring_io(struct hcall *c)
{
	int fd = (int)c->arg[0];
	uint64_t key = pipe_key_for(fd);
	int64_t r = NOT_HERE;
	if (key && kx_pipe_pair(key)) {
		struct pieces p;
		pieces_of(&p, c);
		r = pair_io(c, key, fd, &p, writes(c->nr));
	} else if (key) {
		r = writes(c->nr) ? ring_write(c, key, fd) : ring_read(c, key, fd);
	}
	if (r != NOT_HERE)
		return r;
	if (key)
		pipe_forget(fd, key);
	return c->row->fn(c);
}

/* FIONREAD is a number of bytes in the ring; FIONBIO sets what F_SETFL sets. */
static void flags_follow(int fd, uint64_t key, int64_t *r)
{
	long fl = HC6(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0);
	if (fl < 0)
		return;
	if (fl & (O_DIRECT | O_ASYNC)) {
		int e = make_plain(key, fd);
		*r = e ? e : *r;
	}
	__atomic_store_n(&object(key)->nonblock[kx_pipe_end(key)], !!(fl & O_NONBLOCK), __ATOMIC_SEQ_CST);
}

static int64_t ring_control(struct hcall *c)
{
	int fd = (int)c->arg[0], n;
	unsigned what = (unsigned)c->arg[1];
	uint64_t key = pipe_key_for(fd);
	bool pair = key && kx_pipe_pair(key);
	int64_t r;
	if (key && c->nr == SYS_ioctl && what == FIONREAD && (pair || pipe_is_live(object(key), key))) {
		n = pair ? pair_inq(key, fd) : (int)pipe_used(object(key));
		return guest_write(c->arg[2], &n, sizeof n);
	}
	if (c->nr == SYS_fcntl ? what == F_SETPIPE_SZ : pair && what == SIOCOUTQ)
		if ((r = pipe_plain(fd)))
			return r;
	r = c->row->fn(c);
	if (key && r >= 0 && (c->nr == SYS_fcntl ? what == F_SETFL : what == FIONBIO || what == FIOASYNC))
		flags_follow(fd, key, &r);
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
		return c->row->fn;
	if (c->nr == SYS_getsockopt && (int)c->arg[1] == SOL_SOCKET && (int)c->arg[2] == SO_ERROR) {
		uint64_t asked = pipe_key_for((int)c->arg[0]);
		if (asked && kx_pipe_pair(asked))
			pair_error_asked(asked, (int)c->arg[0]);
	}
	if (is_message(c->nr)) {
		uint64_t over = pipe_key_for((int)c->arg[0]);
		return over && kx_pipe_pair(over) ? pair_message : c->row->fn;
	}
	if (c->nr == SYS_epoll_ctl && pipe_table_is_ours()) {
		uint64_t added = pipe_key_for((int)c->arg[2]);
		if (added && kx_pipe_pair(added))
			return pair_epoll_ctl;
	}
	bool control = c->nr == SYS_ioctl || c->nr == SYS_fcntl, may = is_io(c->nr, true);
	if (!may && !control && !wants_plain(c->nr) && !pair_wants_plain(c->nr))
		return c->row->fn;
	uint64_t key = may || control || pair_wants_plain(c->nr) ? pipe_key_for((int)c->arg[0]) : 0;
	bool pair = key && kx_pipe_pair(key), io = is_io(c->nr, pair);
	if ((may && !io) || (pair_wants_plain(c->nr) && !pair))
		return c->row->fn;
	if ((pipe_table_is_ours() || pair) && (io || control))
		return !key ? c->row->fn : io ? ring_io : ring_control;
	if (control && !changes_state(c->nr, (unsigned)c->arg[1]))
		return c->row->fn;
	for (int i = 0; i < 6 && c->row->arg[i].kind != KX_A_NONE; i++)
		if (c->row->arg[i].kind == KX_A_FD && (*r = pipe_plain((int)c->arg[i])) && *r != -EBADF)
			return NULL;
	if (reads_by_splice(c)) {
		*r = -EINVAL;
		return NULL;
	}
	return c->row->fn;
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
	if (!key || !pipe_table_is_ours() || !pipe_is_live(object(key), key))
		return 0;
	if (kx_pipe_pair(key))
		(c->arg[1] ? pair_wrote : pair_read_some)(key, fd);
	else if (kx_pipe_end(key))
		wake_readers(object(key), fd);
	else
		pipe_wake_room(object(key));
	return 0;
}

/* Before a pair's descriptor is closed, and with it those from `first` on up to it. */
static void leaving(uint64_t key, int fd, int first, int last)
{
	bool more = false;
	for (int i = 0; i < (int)fds_used && !more; i++)
		more = key_of[i] == key && i != fd && (i < first || i > last);
	if (more)
		pair_settle(key, fd); /* a token that nobody reads is an error at the other end */
	else
		pair_leaving(key, fd);
}

int64_t pipe_close(int fd)
{
	if (!pipe_mem || !pipe_table_is_ours())
		return HC6(SYS_close, fd, 0, 0, 0, 0, 0);
	pthread_mutex_lock(&pipe_table_lock);
	uint64_t key = pipe_key_get(fd);
	if (key)
		pipe_key_set(fd, 0);
	if (key && kx_pipe_pair(key))
		leaving(key, fd, 0, -1);
	int64_t r = HC6(SYS_close, fd, 0, 0, 0, 0, 0);
	if (key)
		closed(key);
	pthread_mutex_unlock(&pipe_table_lock);
	return r;
}

int64_t pipe_close_range(unsigned first, unsigned last, unsigned flags)
{
	if (!pipe_mem || !pipe_table_is_ours() || flags & CLOSE_RANGE_CLOEXEC)
		return HC6(SYS_close_range, first, last, flags, 0, 0, 0);
	pthread_mutex_lock(&pipe_table_lock);
	for (unsigned i = first; i <= last && i < fds_used; i++)
		if (key_of[i] && kx_pipe_pair(key_of[i]))
			leaving(key_of[i], (int)i, (int)first, (int)i);
	int64_t r = HC6(SYS_close_range, first, last, flags, 0, 0, 0);
	for (unsigned i = first; r == 0 && i <= last && i < fds_used; i++)
		key_drop((int)i);
	pthread_mutex_unlock(&pipe_table_lock);
	return r;
}

/* `to` is a copy of fd now; with pipe_table_lock. */
static void copied(int fd, int to)
{
	uint64_t key = pipe_key_get(fd), old = pipe_key_get(to);
	if (key && to >= KX_PIPE_FDS) {
		make_plain(key, fd);
		pairs_above = pairs_above || kx_pipe_pair(key);
	}
	if (to >= KX_PIPE_FDS || (!key && !old))
		return;
	pipe_key_set(to, key);
	if (old)
		closed(old);
}

int64_t pipe_dup(int fd, int64_t (*dup)(int fd, uint64_t arg, int cmd), uint64_t arg, int cmd)
{
	if (!pipe_mem || !pipe_table_is_ours())
		return dup(fd, arg, cmd);
	pthread_mutex_lock(&pipe_table_lock);
	int64_t r = dup(fd, arg, cmd);
	if (r >= 0)
		copied(fd, (int)r);
	pthread_mutex_unlock(&pipe_table_lock);
	return r;
}

int64_t pipe_dup_to(int fd, int to, int flags, bool dup2)
{
	bool table = pipe_mem && pipe_table_is_ours();
	if (table)
		pthread_mutex_lock(&pipe_table_lock);
	uint64_t old = table && fd != to ? pipe_key_get(to) : 0;
	if (old && kx_pipe_pair(old))
		leaving(old, to, 0, -1);
	int64_t r = dup2 ? HC6(SYS_dup2, fd, to, 0, 0, 0, 0) : HC6(SYS_dup3, fd, to, flags, 0, 0, 0);
	if (table && r >= 0 && fd != to)
		copied(fd, to);
	if (table)
		pthread_mutex_unlock(&pipe_table_lock);
	return r;
}

/* ---- processes -------------------------------------------------------------------------------------------------------- */

void pipe_fork_lock(void) { pthread_mutex_lock(&pipe_table_lock); }
void pipe_fork_unlock(void) { pthread_mutex_unlock(&pipe_table_lock); }

/* Call fn once for each object that the table names, with one of its descriptors. */
static void each_object(void (*fn)(uint64_t key, int fd, uint32_t who), uint32_t who)
{
	uint64_t seen[(KX_PIPE_OBJECTS + 63) / 64] = { 0 };
	for (unsigned fd = 0; pipe_mem && fd < fds_used; fd++) {
		uint64_t key = __atomic_load_n(&key_of[fd], __ATOMIC_ACQUIRE);
		unsigned i = kx_pipe_obj(key) % KX_PIPE_OBJECTS;
		if (!key || seen[i / 64] >> i % 64 & 1)
			continue;
		seen[i / 64] |= 1ull << i % 64;
		fn(key, (int)fd, who);
	}
}

static bool same(const struct kx_pipe *o, uint64_t key)
{
	return __atomic_load_n(&o->state, __ATOMIC_SEQ_CST) >> 32 == key >> 32;
}

static void no_place(uint64_t key, int fd)
{
	make_plain(key, fd);
	if (kx_pipe_pair(key) && pair_rest(key))
		pair_vacate(key, fd, VACATE_FORK_MS);
}

static void guard_add(uint64_t key, int fd, uint32_t who)
{
	struct kx_pipe *o = object(key);
	if (same(o, key) && !holder_swap(o, 0, who | KX_PIPE_GUARD))
		no_place(key, fd);
}

static void guard_drop(uint64_t key, int fd, uint32_t who)
{
	(void)fd;
	if (same(object(key), key) && !holder_swap(object(key), who | KX_PIPE_GUARD, 0))
		holder_swap(object(key), who | KX_PIPE_GUARD | KX_PIPE_STALE, 0);
}

/* A child's number in the place that was kept for it by fork_parent. */
static void guard_become(uint64_t key, int fd, uint32_t who)
{
	struct kx_pipe *o = object(key);
	(void)fd;
	if (!same(o, key) || holder_has(o, who))
		return;
	uint32_t guard = (uint32_t)fork_parent | KX_PIPE_GUARD;
	if (!holder_swap(o, guard, who))
		holder_swap(o, guard | KX_PIPE_STALE, who);
}

static void locks_drop(struct kx_pipe *o, uint32_t who)
{
	uint64_t r = __atomic_load_n(&o->rlock, __ATOMIC_SEQ_CST), w = __atomic_load_n(&o->wlock, __ATOMIC_SEQ_CST);
	if (r >> 32 == who)
		__atomic_compare_exchange_n(&o->rlock, &r, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	if (w >> 32 == who)
		__atomic_compare_exchange_n(&o->wlock, &w, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static void pipe_hold(uint64_t key, int fd, uint32_t who)
{
	struct kx_pipe *o = object(key);
	guard_become(key, fd, who);
	if (same(o, key) && !holder_has(o, who) && !holder_swap(o, 0, who))
		no_place(key, fd);
	locks_drop(o, who); /* of somebody who had this number */
	if (kx_pipe_pair(key))
		locks_drop(pipe_obj(kx_pipe_obj(key) + 1), who);
}

void pipe_fork_before(void)
{
	fork_parent = pvm.pid;
	each_object(guard_add, (uint32_t)pvm.pid);
}

void pipe_fork_after(pid_t pid)
{
	if (pid > 0)
		each_object(guard_become, (uint32_t)pid);
	else
		each_object(guard_drop, (uint32_t)pvm.pid);
}

/* One of a process whose table is empty. */
static void adopt(int fd)
{
	uint64_t key = find_fd(fd);
	long mode = key ? HC6(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0) : 0;
	if (!key || mode & O_PATH)
		return;
	bool pair = kx_pipe_pair(key);
	if (fd >= KX_PIPE_FDS || (!pair && (mode & O_ACCMODE) == O_RDWR)) {
		make_plain(key, fd);
		pairs_above = pairs_above || pair;
		return;
	}
	pipe_key_set(fd, key | (!pair && (mode & O_ACCMODE) == O_WRONLY ? 1u << 16 : 0));
	watching = watching || (pair && pair_is_watched(key));
	published()->fd[fd].tsc = 1; /* the host was not asked yet who is left */
	pipe_hold(key, fd, (uint32_t)pvm.pid);
}

void pipe_received(int fd)
{
	struct stat st;
	uint32_t head[2] = { 0, 0 };
	if (!pipe_table_is_ours() || fstat(fd, &st) || !S_ISSOCK(st.st_mode))
		return;
	if (!pipe_mem && pread(pvm.family_fd, head, sizeof head, (off_t)family_pipes_offset()) == sizeof head &&
	    !head[1])
		return;
	pthread_mutex_lock(&pipe_table_lock);
	if (pipe_map_here())
		adopt(fd);
	uint64_t key = pipe_key_get(fd);
	if (key && kx_pipe_pair(key))
		__atomic_store_n(&object(key)->passed, 0, __ATOMIC_SEQ_CST);
	pthread_mutex_unlock(&pipe_table_lock);
}

void pipe_fork_child(bool own)
{
	if (!pipe_mem)
		return;
	if (own) {
		each_object(pipe_hold, (uint32_t)pvm.pid);
		return;
	}
	for (unsigned i = 0; i < fds_used; i++)
		pipe_key_set((int)i, 0);
	fds_used = 0;
	each_fd(adopt);
}

void pipe_vfork_before(bool shares)
{
	if (!pipe_mem)
		return;
	if (shares || !pipe_table_is_ours()) {
		pipe_plain_all();
		return;
	}
	pthread_mutex_lock(&pipe_table_lock);
	each_object(guard_add, (uint32_t)pvm.pid);
	pthread_mutex_unlock(&pipe_table_lock);
}

/* With the parent's memory, and without its locks. */
static void hold_vfork(uint64_t key, int fd, uint32_t who)
{
	struct kx_pipe *o = object(key);
	uint32_t guard = (uint32_t)pvm.pid | KX_PIPE_GUARD;
	(void)fd;
	if (same(o, key) && !holder_has(o, who) && !holder_swap(o, guard, who))
		holder_swap(o, 0, who);
}

void pipe_vfork_child(void) { each_object(hold_vfork, (uint32_t)my_pid()); }

void pipe_vfork_after(void)
{
	if (!pipe_mem || !pipe_table_is_ours())
		return;
	pthread_mutex_lock(&pipe_table_lock);
	each_object(guard_drop, (uint32_t)pvm.pid);
	pthread_mutex_unlock(&pipe_table_lock);
}

static bool in_table(unsigned i)
{
	for (unsigned fd = 0; fd < fds_used; fd++)
		if (key_of[fd] && kx_pipe_obj(key_of[fd]) == i)
			return true;
	return false;
}

/* What this process had of an object before exec and has no more, locks of its other threads among it. */
static void exec_drop(struct kx_pipe *o, unsigned i)
{
	uint32_t me = (uint32_t)pvm.pid;
	uint64_t state = __atomic_load_n(&o->state, __ATOMIC_SEQ_CST);
	if (!holder_has(o, me))
		return;
	struct kx_pipe *second = o->pair ? behind(o) : NULL;
	locks_drop(o, me);
	if (second)
		locks_drop(second, me);
	if (in_table(i))
		return;
	__atomic_add_fetch(&o->closes, 1, __ATOMIC_SEQ_CST);
	pipe_wake_room(o);
	if (second)
		pipe_wake_room(second);
	holder_remove(o, state, me);
}

static bool pipe_seen;

static void look(int fd)
{
	struct stat st;
	if (pipe_seen || HC6(SYS_fstat, fd, &st, 0, 0, 0, 0) || !is_kind(&st))
		return;
	for (unsigned i = 0; i < KX_PIPE_OBJECTS && i < headers->used && !pipe_seen; i++)
		pipe_seen = (headers->obj[i].state & KX_PIPE_KIND) >= KX_PIPE_LIVE && pipe_is_of(&headers->obj[i], &st);
}

void pipe_resume(void)
{
	uint32_t head[2] = { 0, 0 };
	if (pread(pvm.family_fd, head, sizeof head, (off_t)family_pipes_offset()) != sizeof head || !head[1])
		return;
	void *view = mmap(NULL, KX_PIPE_DATA, PROT_READ | PROT_WRITE, MAP_SHARED, pvm.family_fd,
			  (off_t)family_pipes_offset());
	if (view == MAP_FAILED)
		return;
	headers = view;
	each_fd(look);
	if (pipe_seen && pipe_map_here())
		each_fd(adopt);
	for (unsigned i = 0; i < KX_PIPE_OBJECTS && i < headers->used; i++)
		exec_drop(&headers->obj[i], i);
	headers = NULL;
	munmap(view, KX_PIPE_DATA);
}

static void leave(uint64_t key, int fd, uint32_t who)
{
	for (unsigned i = 0; i < fds_used; i++)
		if (kx_pipe_pair(key) && key_of[i] && kx_pipe_obj(key_of[i]) == kx_pipe_obj(key))
			/* Who has both ends has a relative with both: a pair of its own, for instance. */
			(pipe_other_end(key_of[i]) >= 0 ? pair_settle : pair_leaving)(key_of[i], (int)i);
	(void)fd;
	holder_remove(object(key), key, who);
}

void pipe_exit(void)
{
	pipe_owed();
	if (pipe_mem && my_pid() == pvm.pid)
		each_object(leave, (uint32_t)pvm.pid);
}
