/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Locks: `table_lock` (this process's table of descriptors) comes before pvm.mm_lock; the locks in the objects are the
 * family's and come last. Whoever holds those makes only host calls that can't sleep.
 */
#include "pipe.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../../abi/kx_pipe.h"
#include "../dev/procfs.h"
#include "family.h"
#include "gmem.h"
#include "keeper.h"
#include "thread.h"
#include "update.h"

#define NOT_HERE (-5000) /* the object is none (any more) that this key is good for */
#define SLICE_FIRST_NS 20000000
#define SLICE_LAST_NS 1000000000
#define ROOM_SLICE_NS 20000000
#define EXIT_CYCLES 100000 /* a guess, until some were measured */
#define SWEEP_NS 100000000ull

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static struct kx_pipes *pipes; /* in guest memory; NULL: not mapped */
static uint64_t key_of[KX_PIPE_FDS];
static unsigned fds_used; /* key_of[] at and above it is 0 */
static pid_t fork_parent;
static bool given_up; /* no rings in this process any more, nor in its children: what is mapped is its own */

static struct kx_pipe_table *published(void) { return gva_ptr(KX_PIPE_TABLE); }
static struct kx_pipe *object(uint64_t key) { return &pipes->obj[kx_pipe_obj(key) % KX_PIPE_OBJECTS]; }
static uint8_t *ring_of(uint64_t key)
{
	return gva_ptr(KX_PIPE_BASE + KX_PIPE_DATA + (uint64_t)(kx_pipe_obj(key) % KX_PIPE_OBJECTS) * KX_PIPE_RING);
}
static bool is_live(const struct kx_pipe *o, uint64_t key)
{
	return __atomic_load_n(&o->state, __ATOMIC_ACQUIRE) == kx_pipe_live(key);
}
/* Named FIFOs have inode numbers, too. */
static bool is_of(const struct kx_pipe *o, const struct stat *st)
{
	return o->dev == st->st_dev && o->ino == st->st_ino;
}
/* Written and not read; a sum that can't be is nothing. */
static uint32_t used_of(const struct kx_pipe *o)
{
	uint64_t n = __atomic_load_n(&o->head, __ATOMIC_ACQUIRE) - __atomic_load_n(&o->tail, __ATOMIC_ACQUIRE);
	return n > KX_PIPE_RING ? 0 : (uint32_t)n;
}
static uint64_t now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}
static void epoch_next(void)
{
	if (pipes)
		__atomic_add_fetch(&pipes->epoch, 1, __ATOMIC_SEQ_CST);
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

static uint64_t lock_word(void) { return (uint64_t)my_pid() << 32 | (uint32_t)host_call(SYS_gettid, 0, 0, 0, 0, 0, 0); }

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
static bool lock_get(uint64_t *lock)
{
	const struct timespec nap = { 0, 50000 };
	for (unsigned i = 0; !lock_try(lock); i++) {
		if (i < 100) {
			__builtin_ia32_pause();
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

static void lock_put(uint64_t *lock) { __atomic_store_n(lock, 0, __ATOMIC_SEQ_CST); }

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

/* Nobody left: free. The state that was seen before the look tells whether it is still the same pipe's. */
static void free_if_left(struct kx_pipe *o, uint64_t state)
{
	for (unsigned i = 0; i < KX_PIPE_HOLDERS; i++)
		if (__atomic_load_n(&o->holder[i], __ATOMIC_SEQ_CST))
			return;
	__atomic_compare_exchange_n(&o->state, &state, (state & ~0xffffffffull) | KX_PIPE_FREE, false, __ATOMIC_SEQ_CST,
				    __ATOMIC_SEQ_CST);
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
	uint32_t n = __atomic_load_n(&pipes->used, __ATOMIC_ACQUIRE);
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
static void sweep(void)
{
	uint64_t last = __atomic_load_n(&pipes->swept, __ATOMIC_RELAXED), now = now_ns();
	if (now - last < SWEEP_NS)
		return;
	__atomic_store_n(&pipes->swept, now, __ATOMIC_RELAXED);
	for (unsigned k = 0; k < KX_PIPE_OBJECTS; k++) {
		struct kx_pipe *o = &pipes->obj[k];
		uint64_t state = __atomic_load_n(&o->state, __ATOMIC_SEQ_CST);
		unsigned kind = state & KX_PIPE_KIND;
		if (kind == KX_PIPE_MAKE && is_dead((pid_t)((uint32_t)state >> 4)))
			__atomic_compare_exchange_n(&o->state, &state, state & ~0xffffffffull, false, __ATOMIC_SEQ_CST,
						    __ATOMIC_SEQ_CST);
		if (kind != KX_PIPE_LIVE && kind != KX_PIPE_PLAIN)
			continue;
		for (unsigned i = 0; i < KX_PIPE_HOLDERS; i++)
			sweep_holder(o, i);
		free_if_left(o, state);
	}
}

/* ---- the table of descriptors -------------------------------------------------------------------------------------- */

static uint64_t key_get(int fd)
{
	return pipes && (unsigned)fd < KX_PIPE_FDS ? __atomic_load_n(&key_of[fd], __ATOMIC_ACQUIRE) : 0;
}

/* With table_lock. */
static void key_set(int fd, uint64_t key)
{
	struct kx_pipe_fd *e = &published()->fd[fd];
	if (key) {
		e->tsc = 0;
		e->epoch = __atomic_load_n(&pipes->epoch, __ATOMIC_RELAXED);
		e->closes = __atomic_load_n(&object(key)->closes, __ATOMIC_RELAXED);
		e->spin = e->missed = 0;
	}
	__atomic_store_n(&key_of[fd], key, __ATOMIC_RELEASE);
	__atomic_store_n(&e->key, key, __ATOMIC_RELEASE);
	if (key && (unsigned)fd >= fds_used)
		fds_used = fd + 1;
}

/* Nobody else's descriptors change behind the table's back. */
static bool table_is_ours(void) { return !is_vfork_child(); }

static bool map_here(void)
{
	struct stat st;
	if (pipes || given_up)
		return !given_up;
	if (fstat(pvm.family_fd, &st) || st.st_uid != geteuid() ||
	    (uint64_t)st.st_size < family_pipes_offset() + KX_PIPE_SIZE ||
	    gmem_map_family(KX_PIPE_BASE, KX_PIPE_SIZE, pvm.family_fd, family_pipes_offset()))
		return false;
	published()->cpus = pvm.cfg->cpus ? (unsigned)pvm.cfg->cpus : family_cpus();
	published()->exit_cycles = EXIT_CYCLES;
	published()->on = 1;
	__atomic_store_n(&pipes, gva_ptr(KX_PIPE_BASE), __ATOMIC_RELEASE);
	return true;
}

static void wake_room(struct kx_pipe *o)
{
	if (!__atomic_exchange_n(&o->full, 0, __ATOMIC_SEQ_CST))
		return;
	__atomic_add_fetch(&o->room, 1, __ATOMIC_SEQ_CST);
	HC6(SYS_futex, &o->room, FUTEX_WAKE, INT_MAX, 0, 0, 0);
}

/* A descriptor that had this key is closed; with table_lock. */
static void closed(uint64_t key)
{
	struct kx_pipe *o = object(key);
	bool more = false;
	for (unsigned i = 0; i < fds_used && !more; i++)
		more = key_of[i] && (key_of[i] ^ key) >> 32 == 0 && kx_pipe_obj(key_of[i]) == kx_pipe_obj(key);
	__atomic_add_fetch(&o->closes, 1, __ATOMIC_SEQ_CST);
	wake_room(o);
	if (!more)
		holder_remove(o, key, (uint32_t)pvm.pid);
}

static void key_drop(int fd)
{
	uint64_t key = key_of[fd];
	key_set(fd, 0);
	if (key)
		closed(key);
}

/* ---- making one ----------------------------------------------------------------------------------------------------- */

static bool locks_take(struct kx_pipe *o)
{
	if (!lock_try_dead(&o->rlock))
		return false;
	if (lock_try_dead(&o->wlock))
		return true;
	lock_put(&o->rlock);
	return false;
}

/* The new object's key without end, 0 = none. */
static uint64_t object_make(const struct stat *st, bool nonblock)
{
	for (unsigned i = 0; i < KX_PIPE_OBJECTS; i++) {
		struct kx_pipe *o = &pipes->obj[i];
		uint64_t state = __atomic_load_n(&o->state, __ATOMIC_SEQ_CST);
		uint64_t gen = ((state >> 32) + 1) << 32;
		if ((state & KX_PIPE_KIND) != KX_PIPE_FREE ||
		    !__atomic_compare_exchange_n(&o->state, &state, gen | (uint64_t)pvm.pid << 4 | KX_PIPE_MAKE, false,
						 __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			continue;
		if (!locks_take(o)) { /* somebody is still on the way out of the last one */
			__atomic_store_n(&o->state, gen | KX_PIPE_FREE, __ATOMIC_SEQ_CST);
			continue;
		}
		o->dev = st->st_dev;
		o->ino = st->st_ino;
		o->nonblock[0] = o->nonblock[1] = nonblock;
		o->closes = o->sleepers = o->token = o->full = 0;
		o->head = o->tail = 0;
		memset(o->holder, 0, sizeof o->holder);
		o->holder[0] = (uint32_t)pvm.pid;
		uint32_t n = __atomic_load_n(&pipes->used, __ATOMIC_ACQUIRE);
		while (n <= i &&
		       !__atomic_compare_exchange_n(&pipes->used, &n, i + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			;
		__atomic_store_n(&o->state, gen | KX_PIPE_LIVE, __ATOMIC_SEQ_CST);
		lock_put(&o->wlock);
		lock_put(&o->rlock);
		return gen | (i + 1);
	}
	return 0;
}

static void ring_try(const int fd[2], int flags)
{
	struct stat st;
	if ((unsigned)fd[0] >= KX_PIPE_FDS || (unsigned)fd[1] >= KX_PIPE_FDS || flags & ~(O_CLOEXEC | O_NONBLOCK) ||
	    fstat(fd[0], &st) || fcntl(fd[0], F_GETPIPE_SZ) != (int)KX_PIPE_RING || !map_here())
		return;
	uint64_t key = object_make(&st, flags & O_NONBLOCK);
	if (!key) {
		sweep();
		key = object_make(&st, flags & O_NONBLOCK);
	}
	if (!key)
		return;
	key_set(fd[0], key);
	key_set(fd[1], key | 1 << 16);
}

int64_t pipe_make(int fd[2], int flags)
{
	if (!table_is_ours() || pvm.proc_fd < 0)
		return HC6(SYS_pipe2, fd, flags, 0, 0, 0, 0);
	pthread_mutex_lock(&table_lock);
	int64_t r = HC6(SYS_pipe2, fd, flags, 0, 0, 0, 0);
	if (r == 0 && fd_admit(fd[0]) && fd_admit(fd[1]))
		ring_try(fd, flags);
	pthread_mutex_unlock(&table_lock);
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
	uint32_t n = used_of(o), at = (uint32_t)(o->tail % KX_PIPE_RING);
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
	if (mode < 0)
		return (int)mode;
	bool reads = (mode & O_ACCMODE) == O_RDONLY, both = (mode & O_ACCMODE) == O_RDWR;
	if (!is_live(o, key))
		return 0;
	other = both ? fd : fd_reopen(fd, reads ? O_WRONLY : O_RDONLY);
	if (other < 0)
		return other;
	if (!lock_get(&o->rlock)) {
		r = -EINTR;
	} else {
		if (!lock_get(&o->wlock)) {
			r = -EINTR;
		} else {
			if (is_live(o, key) && fstat(fd, &st) == 0 && is_of(o, &st) &&
			    !(r = ring_move(o, key, reads ? fd : other, reads ? other : fd)))
				__atomic_store_n(&o->state, (key & ~0xffffffffull) | KX_PIPE_PLAIN, __ATOMIC_SEQ_CST);
			lock_put(&o->wlock);
		}
		lock_put(&o->rlock);
	}
	if (other != fd)
		HC6(SYS_close, other, 0, 0, 0, 0, 0);
	__atomic_store_n(&o->full, 1, __ATOMIC_SEQ_CST);
	wake_room(o);
	return r;
}

/* The object of a pipe by its inode; key without end, 0 = none. */
static uint64_t find(const struct stat *st)
{
	for (unsigned i = 0, n = objects_used(); i < n; i++) {
		const struct kx_pipe *o = &pipes->obj[i];
		uint64_t state = __atomic_load_n(&o->state, __ATOMIC_ACQUIRE);
		if ((uint32_t)state == KX_PIPE_LIVE && is_of(o, st))
			return (state & ~0xffffffffull) | (i + 1);
	}
	return 0;
}

static uint64_t find_fd(int fd)
{
	struct stat st;
	if (!pipes || HC6(SYS_fstat, fd, &st, 0, 0, 0, 0) || !S_ISFIFO(st.st_mode))
		return 0;
	return find(&st);
}

int pipe_plain(int fd)
{
	uint64_t key = !pipes ? 0 : table_is_ours() ? key_get(fd) : find_fd(fd);
	return key ? make_plain(key, fd) : 0;
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
	snprintf(name, sizeof name, "self/task/%d/fd", (int)host_call(SYS_gettid, 0, 0, 0, 0, 0, 0));
	if (!procfs_each(name, each_name, (void *)fn))
		return;
	for (unsigned fd = 0; fd < pvm.fd_limit; fd++) /* no thread can be had that looks */
		if (HC6(SYS_fcntl, fd, F_GETFD, 0, 0, 0, 0) >= 0)
			fn((int)fd);
}

static void plain_one(int fd) { pipe_opened(fd); }

void pipe_plain_all(void)
{
	if (pipes)
		each_fd(plain_one);
}

void pipe_identity_before(void) { pipe_plain_all(); }

void pipe_identity_after(void)
{
	struct stat st;
	if (!pipes || given_up || !table_is_ours() || fstat(pvm.family_fd, &st) || st.st_uid == geteuid())
		return;
	pthread_mutex_lock(&table_lock);
	/* Other threads may look at objects: they find empty ones. */
	if (gmem_map_family(KX_PIPE_BASE, KX_PIPE_SIZE, -1, 0))
		pvm_panic("pipes: cannot give up the family's memory");
	given_up = true;
	published()->on = 0;
	for (unsigned i = 0; i < fds_used; i++)
		key_set((int)i, 0);
	pthread_mutex_unlock(&table_lock);
}

/* ---- reading and writing --------------------------------------------------------------------------------------------- */

/* What a call moves, piece by piece; bases are host addresses inside guest memory. */
struct pieces {
	const struct iovec *v;
	unsigned n;
	struct iovec one;
	uint64_t total, at; /* bytes; of the present piece */
};

static void pieces_of(struct pieces *p, struct hcall *c)
{
	p->at = p->total = 0;
	if (c->nr == SYS_readv || c->nr == SYS_writev) {
		p->v = c->iov;
		p->n = (unsigned)(c->row->arg[2].kind == KX_A_SIZE ? c->arg[2] : (uint32_t)c->arg[2]);
	} else {
		p->one = (struct iovec){ (void *)c->host[1], c->arg[2] };
		p->v = &p->one;
		p->n = 1;
	}
	for (unsigned i = 0; i < p->n; i++)
		p->total += p->v[i].iov_len;
	if (p->total > 0x7ffff000)
		p->total = 0x7ffff000;
}

/* Between the ring at cursor `pos` and the pieces, len bytes or until a fault: how many. */
static uint32_t pieces_copy(struct pieces *p, uint8_t *ring, uint64_t pos, uint32_t len, bool in)
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
static void note_check(int fd, uint32_t epoch, uint32_t closes)
{
	struct kx_pipe_fd *e = &published()->fd[fd];
	e->epoch = epoch;
	e->closes = closes;
	e->tsc = 0;
}

static int host_poll(int fd, int events)
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
	if (!used_of(o) && is_live(o, key))
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
	return slept && (fstat(fd, &st) || !is_of(was, &st)) ? -EBADF : NOT_HERE;
}

static int64_t ring_read(struct hcall *c, uint64_t key, int fd)
{
	struct kx_pipe *o = object(key);
	const struct kx_pipe was = { .dev = o->dev, .ino = o->ino };
	struct pieces p;
	bool slept = false, alone = false; /* alone: the host says that no writer is left */
	struct timespec slice = { 0, SLICE_FIRST_NS };
	pieces_of(&p, c);
	if (kx_pipe_end(key))
		return -EBADF;
	for (;;) {
		if (!p.total)
			return 0;
		uint32_t epoch = __atomic_load_n(&pipes->epoch, __ATOMIC_SEQ_CST);
		uint32_t closes = __atomic_load_n(&o->closes, __ATOMIC_SEQ_CST);
		if (!lock_get(&o->rlock))
			return -EINTR;
		if (!is_live(o, key)) {
			lock_put(&o->rlock);
			return gone(&was, fd, slept);
		}
		uint32_t n = used_of(o);
		if (n) {
			n = n < p.total ? n : (uint32_t)p.total;
			uint32_t got = pieces_copy(&p, ring_of(key), o->tail, n, false);
			__atomic_store_n(&o->tail, o->tail + got, __ATOMIC_SEQ_CST);
			lock_put(&o->rlock);
			if (got)
				wake_room(o);
			return got ? (int64_t)got : -EFAULT;
		}
		if (alone) {
			lock_put(&o->rlock);
			return 0;
		}
		if (__atomic_load_n(&o->nonblock[0], __ATOMIC_RELAXED)) {
			lock_put(&o->rlock);
			if (host_poll(fd, POLLIN) & POLLHUP) {
				alone = true;
				continue;
			}
			note_check(fd, epoch, closes);
			return -EAGAIN;
		}
		bool sleeps = sleep_prepare(o, key, fd);
		lock_put(&o->rlock);
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
		if (pfd.revents & POLLNVAL || key_get(fd) != key)
			return gone(&was, fd, slept);
		alone = pfd.revents & POLLHUP && !(pfd.revents & POLLIN);
		int64_t ns = slice.tv_sec * 1000000000ll + slice.tv_nsec * 2;
		slice = ns >= SLICE_LAST_NS ? (struct timespec){ 1, 0 } : (struct timespec){ 0, ns };
	}
}

/* No reader is left: the host's own answer, with its signal. 0: there is one. */
static int64_t broken(int fd) { return host_poll(fd, POLLOUT) & POLLERR ? HC6(SYS_write, fd, "", 1, 0, 0, 0) : 0; }

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
	for (;;) {
		uint32_t epoch = __atomic_load_n(&pipes->epoch, __ATOMIC_SEQ_CST);
		uint32_t closes = __atomic_load_n(&o->closes, __ATOMIC_SEQ_CST);
		int64_t r = broken(fd);
		if (r < 0)
			return done ? (int64_t)done : r;
		note_check(fd, epoch, closes);
		if (!lock_get(&o->wlock))
			return done ? (int64_t)done : -EINTR;
		if (!is_live(o, key)) {
			lock_put(&o->wlock);
			return done ? (int64_t)done : gone(&was, fd, slept);
		}
		uint32_t room = KX_PIPE_RING - used_of(o), got = 0, n = 0;
		if (room >= need) {
			n = room < p.total - done ? room : (uint32_t)(p.total - done);
			got = pieces_copy(&p, ring_of(key), o->head, n, true);
			if (got < n && p.total <= KX_PIPE_ATOMIC)
				got = 0;
			__atomic_store_n(&o->head, o->head + got, __ATOMIC_SEQ_CST);
		}
		lock_put(&o->wlock);
		done += got;
		if (got)
			wake_readers(o, fd);
		if (done == p.total)
			return (int64_t)done;
		if (got < n)
			return done ? (int64_t)done : -EFAULT;
		if (__atomic_load_n(&o->nonblock[1], __ATOMIC_RELAXED))
			return done ? (int64_t)done : -EAGAIN;
		uint32_t seq = __atomic_load_n(&o->room, __ATOMIC_SEQ_CST);
		__atomic_store_n(&o->full, 1, __ATOMIC_SEQ_CST);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (KX_PIPE_RING - used_of(o) >= need || !is_live(o, key))
			continue;
		const struct timespec slice = { 0, ROOM_SLICE_NS }; /* the last reader may be killed */
		r = HB6(SYS_futex, &o->room, FUTEX_WAIT, seq, &slice, 0, 0);
		if (r == -EINTR && !update_goes_on(c->t))
			return done ? (int64_t)done : -EINTR;
		slept = true;
		if (key_get(fd) != key)
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
};

bool pipe_in_sets(unsigned n, uint64_t *const set[3])
{
	bool ours = table_is_ours();
	unsigned end = !pipes ? 0 : ours ? fds_used : n;
	for (unsigned fd = 0; fd < n && fd < end; fd++)
		for (int i = 0; i < 3; i++)
			if (set[i] && set[i][fd / 64] >> fd % 64 & 1 && (ours ? key_get((int)fd) : find_fd((int)fd)))
				return true;
	return false;
}

static short ring_events(const struct watch *w)
{
	uint32_t n = used_of(object(w->key));
	if (!kx_pipe_end(w->key))
		return n ? w->events & IN_EVENTS : 0;
	return KX_PIPE_RING - n >= KX_PIPE_ATOMIC ? w->events & OUT_EVENTS : 0;
}

/* The rings among p. What can't be watched becomes plain. -errno, or how many. */
static int watches_find(struct watch *w, struct pollfd *p, unsigned n)
{
	int nw = 0, r;
	for (unsigned i = 0; pipes && i < n; i++) {
		uint64_t key = p[i].fd < 0 ? 0 : table_is_ours() ? key_get(p[i].fd) : find_fd(p[i].fd);
		if (!key || !is_live(object(key), key))
			continue;
		if (table_is_ours() && nw < WATCH_MAX)
			w[nw++] = (struct watch){ key, i, p[i].events, false };
		else if ((r = make_plain(key, p[i].fd)))
			return r;
	}
	return nw;
}

/* Before the caller sleeps. 1: it may; 0: something came; -errno. Room can't be waited for together with other things:
 * a pipe that is full and watched becomes plain. */
static int watch_sleep(struct watch *w, int fd)
{
	struct kx_pipe *o = object(w->key);
	if (kx_pipe_end(w->key)) {
		int r = w->events & OUT_EVENTS ? make_plain(w->key, fd) : 1;
		return r < 0 ? r : r > 0;
	}
	if (!(w->events & IN_EVENTS))
		return 1;
	if (!lock_get(&o->rlock))
		return -EINTR;
	w->asleep = is_live(o, w->key) && sleep_prepare(o, w->key, fd);
	lock_put(&o->rlock);
	return w->asleep;
}

static bool watches_live(const struct watch *w, int nw, const struct pollfd *p)
{
	for (int k = 0; k < nw; k++)
		if (key_get(p[w[k].i].fd) != w[k].key || !is_live(object(w[k].key), w[k].key))
			return false;
	return true;
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
		p[w[k].i].events = sleep && w[k].asleep ? POLLIN : 0;
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
		p[w[k].i].revents = (short)((p[w[k].i].revents & (POLLHUP | POLLERR | POLLNVAL)) | ring_events(&w[k]));
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
	struct watch w[WATCH_MAX];
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

/* It is a plain pipe now, or another's descriptor: no more of the table's. */
static void forget(int fd, uint64_t key)
{
	pthread_mutex_lock(&table_lock);
	if (key_of[fd] == key && !is_live(object(key), key)) {
		key_set(fd, 0);
		bool more = false;
		for (unsigned i = 0; i < fds_used && !more; i++)
			more = key_of[i] && (key_of[i] ^ key) >> 32 == 0 && kx_pipe_obj(key_of[i]) == kx_pipe_obj(key);
		if (!more)
			holder_remove(object(key), key, (uint32_t)pvm.pid);
	}
	pthread_mutex_unlock(&table_lock);
}

static int64_t ring_io(struct hcall *c)
{
	int fd = (int)c->arg[0];
	uint64_t key = key_get(fd);
	int64_t r = !key                                      ? NOT_HERE
		    : c->nr == SYS_read || c->nr == SYS_readv ? ring_read(c, key, fd)
							      : ring_write(c, key, fd);
	if (r != NOT_HERE)
		return r;
	if (key)
		forget(fd, key);
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
	uint64_t key = key_get(fd);
	int64_t r;
	if (key && c->nr == SYS_ioctl && what == FIONREAD && is_live(object(key), key)) {
		n = (int)used_of(object(key));
		return guest_write(c->arg[2], &n, sizeof n);
	}
	if (c->nr == SYS_fcntl && what == F_SETPIPE_SZ && (r = pipe_plain(fd)))
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

static bool is_io(uint64_t nr) { return nr == SYS_read || nr == SYS_write || nr == SYS_readv || nr == SYS_writev; }

static bool changes_state(uint64_t nr, unsigned what)
{
	return nr == SYS_fcntl ? what == F_SETFL || what == F_SETPIPE_SZ
			       : what == FIONREAD || what == FIONBIO || what == FIOASYNC;
}

hc_handler pipe_handler(struct hcall *c, int64_t *r)
{
	if (!pipes)
		return c->row->fn;
	bool io = is_io(c->nr), control = c->nr == SYS_ioctl || c->nr == SYS_fcntl;
	if (!io && !control && !wants_plain(c->nr))
		return c->row->fn;
	if (table_is_ours() && (io || control))
		return !key_get((int)c->arg[0]) ? c->row->fn : io ? ring_io : ring_control;
	if (control && !changes_state(c->nr, (unsigned)c->arg[1]))
		return c->row->fn;
	for (int i = 0; i < 6 && c->row->arg[i].kind != KX_A_NONE; i++)
		if (c->row->arg[i].kind == KX_A_FD && (*r = pipe_plain((int)c->arg[i])) && *r != -EBADF)
			return NULL;
	return c->row->fn;
}

void pipe_after(struct hcall *c, int64_t r)
{
	if (!pipes)
		return;
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
	uint64_t key = key_get(fd);
	if (!key || !table_is_ours() || !is_live(object(key), key))
		return 0;
	if (kx_pipe_end(key))
		wake_readers(object(key), fd);
	else
		wake_room(object(key));
	return 0;
}

int64_t pipe_close(int fd)
{
	if (!pipes || !table_is_ours())
		return HC6(SYS_close, fd, 0, 0, 0, 0, 0);
	pthread_mutex_lock(&table_lock);
	uint64_t key = key_get(fd);
	if (key)
		key_set(fd, 0);
	int64_t r = HC6(SYS_close, fd, 0, 0, 0, 0, 0);
	if (key)
		closed(key);
	pthread_mutex_unlock(&table_lock);
	return r;
}

int64_t pipe_close_range(unsigned first, unsigned last, unsigned flags)
{
	if (!pipes || !table_is_ours() || flags & CLOSE_RANGE_CLOEXEC)
		return HC6(SYS_close_range, first, last, flags, 0, 0, 0);
	pthread_mutex_lock(&table_lock);
	int64_t r = HC6(SYS_close_range, first, last, flags, 0, 0, 0);
	for (unsigned i = first; r == 0 && i <= last && i < fds_used; i++)
		key_drop((int)i);
	pthread_mutex_unlock(&table_lock);
	return r;
}

/* `to` is a copy of fd now; with table_lock. */
static void copied(int fd, int to)
{
	uint64_t key = key_get(fd), old = key_get(to);
	if (key && to >= KX_PIPE_FDS)
		make_plain(key, fd);
	if (to >= KX_PIPE_FDS || (!key && !old))
		return;
	key_set(to, key);
	if (old)
		closed(old);
}

int64_t pipe_dup(int fd, int64_t (*dup)(int fd, uint64_t arg, int cmd), uint64_t arg, int cmd)
{
	if (!pipes || !table_is_ours())
		return dup(fd, arg, cmd);
	pthread_mutex_lock(&table_lock);
	int64_t r = dup(fd, arg, cmd);
	if (r >= 0)
		copied(fd, (int)r);
	pthread_mutex_unlock(&table_lock);
	return r;
}

int64_t pipe_dup_to(int fd, int to, int flags, bool dup2)
{
	bool table = pipes && table_is_ours();
	if (table)
		pthread_mutex_lock(&table_lock);
	int64_t r = dup2 ? HC6(SYS_dup2, fd, to, 0, 0, 0, 0) : HC6(SYS_dup3, fd, to, flags, 0, 0, 0);
	if (table && r >= 0 && fd != to)
		copied(fd, to);
	if (table)
		pthread_mutex_unlock(&table_lock);
	return r;
}

/* ---- processes -------------------------------------------------------------------------------------------------------- */

void pipe_fork_lock(void) { pthread_mutex_lock(&table_lock); }
void pipe_fork_unlock(void) { pthread_mutex_unlock(&table_lock); }

/* Call fn once for each object that the table names, with one of its descriptors. */
static void each_object(void (*fn)(uint64_t key, int fd, uint32_t who), uint32_t who)
{
	uint64_t seen[(KX_PIPE_OBJECTS + 63) / 64] = { 0 };
	for (unsigned fd = 0; pipes && fd < fds_used; fd++) {
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

static void guard_add(uint64_t key, int fd, uint32_t who)
{
	struct kx_pipe *o = object(key);
	if (same(o, key) && !holder_swap(o, 0, who | KX_PIPE_GUARD))
		make_plain(key, fd);
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

static void hold(uint64_t key, int fd, uint32_t who)
{
	struct kx_pipe *o = object(key);
	guard_become(key, fd, who);
	if (same(o, key) && !holder_has(o, who) && !holder_swap(o, 0, who))
		make_plain(key, fd);
	/* A lock of somebody who had this number. */
	uint64_t r = __atomic_load_n(&o->rlock, __ATOMIC_SEQ_CST), w = __atomic_load_n(&o->wlock, __ATOMIC_SEQ_CST);
	if (r >> 32 == who)
		__atomic_compare_exchange_n(&o->rlock, &r, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	if (w >> 32 == who)
		__atomic_compare_exchange_n(&o->wlock, &w, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
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
	if (fd >= KX_PIPE_FDS || (mode & O_ACCMODE) == O_RDWR) {
		make_plain(key, fd);
		return;
	}
	key_set(fd, key | ((mode & O_ACCMODE) == O_WRONLY ? 1u << 16 : 0));
	hold(key, fd, (uint32_t)pvm.pid);
}

void pipe_fork_child(bool own)
{
	if (!pipes)
		return;
	if (own) {
		each_object(hold, (uint32_t)pvm.pid);
		return;
	}
	for (unsigned i = 0; i < fds_used; i++)
		key_set((int)i, 0);
	fds_used = 0;
	each_fd(adopt);
}

void pipe_vfork_before(bool shares)
{
	if (!pipes)
		return;
	if (shares || !table_is_ours()) {
		pipe_plain_all();
		return;
	}
	pthread_mutex_lock(&table_lock);
	each_object(guard_add, (uint32_t)pvm.pid);
	pthread_mutex_unlock(&table_lock);
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
	if (!pipes || !table_is_ours())
		return;
	pthread_mutex_lock(&table_lock);
	each_object(guard_drop, (uint32_t)pvm.pid);
	pthread_mutex_unlock(&table_lock);
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
	uint64_t r = __atomic_load_n(&o->rlock, __ATOMIC_SEQ_CST), w = __atomic_load_n(&o->wlock, __ATOMIC_SEQ_CST);
	if (r >> 32 == me)
		__atomic_compare_exchange_n(&o->rlock, &r, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	if (w >> 32 == me)
		__atomic_compare_exchange_n(&o->wlock, &w, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	if (in_table(i))
		return;
	__atomic_add_fetch(&o->closes, 1, __ATOMIC_SEQ_CST);
	wake_room(o);
	holder_remove(o, state, me);
}

static bool pipe_seen;
static struct kx_pipes *headers;

static void look(int fd)
{
	struct stat st;
	if (pipe_seen || HC6(SYS_fstat, fd, &st, 0, 0, 0, 0) || !S_ISFIFO(st.st_mode))
		return;
	for (unsigned i = 0; i < KX_PIPE_OBJECTS && i < headers->used && !pipe_seen; i++)
		pipe_seen = (uint32_t)headers->obj[i].state == KX_PIPE_LIVE && is_of(&headers->obj[i], &st);
}

void pipe_resume(void)
{
	uint32_t head[2] = { 0, 0 };
	if (pread(pvm.family_fd, head, sizeof head, (off_t)family_pipes_offset()) != sizeof head || !head[1])
		return;
	headers = mmap(NULL, KX_PIPE_DATA, PROT_READ | PROT_WRITE, MAP_SHARED, pvm.family_fd,
		       (off_t)family_pipes_offset());
	if (headers == MAP_FAILED)
		return;
	each_fd(look);
	if (pipe_seen && map_here())
		each_fd(adopt);
	for (unsigned i = 0; i < KX_PIPE_OBJECTS && i < headers->used; i++)
		exec_drop(&headers->obj[i], i);
	munmap(headers, KX_PIPE_DATA);
}

static void leave(uint64_t key, int fd, uint32_t who)
{
	(void)fd;
	holder_remove(object(key), key, who);
}

void pipe_exit(void)
{
	if (pipes && my_pid() == pvm.pid)
		each_object(leave, (uint32_t)pvm.pid);
}
