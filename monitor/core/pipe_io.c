/* SPDX-License-Identifier: Apache-2.0 */
/* Reading, writing and asking of a pipe of the family's, where the LibOS alone can't: sleeps, wake-ups, ends that are gone. */
#include "pipe.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include "../../abi/kx_pipe.h"
#include "pipe_priv.h"
#include "thread.h"
#include "update.h"

#define TURNS_MOST 1000

bool pipe_in_vain(unsigned n)
{
	const struct timespec nap = { 0, 100000 };
	if (n <= TURNS_MOST)
		return false;
	if (self && self->sig_stop)
		return true;
	HC6(SYS_nanosleep, &nap, 0, 0, 0, 0, 0);
	return false;
}

/* On a kernel that can't have it (before 6.4), as the program's own call would do it. */
static int64_t host_io(long nr, long plain, int fd, const void *p, uint64_t n)
{
	struct iovec v = { (void *)p, n };
	int64_t r = HC6(nr, fd, &v, 1, -1, -1, RWF_NOWAIT);
	return r == -EOPNOTSUPP || r == -ENOSYS ? HC6(plain, fd, p, n, 0, 0, 0) : r;
}

int64_t pipe_host_write(int fd, const void *p, uint64_t n) { return host_io(SYS_pwritev2, SYS_write, fd, p, n); }
int64_t pipe_host_read(int fd, void *p, uint64_t n) { return host_io(SYS_preadv2, SYS_read, fd, p, n); }

void pipe_pieces_of(struct pieces *p, struct hcall *c)
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
	struct kx_pipe_fd *e = &pipe_published()->fd[fd];
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
	pipe_host_write(wfd, "", 1);
}

void pipe_wake_readers(struct kx_pipe *o, int wfd)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (__atomic_load_n(&o->sleepers, __ATOMIC_SEQ_CST) && !__atomic_load_n(&o->token, __ATOMIC_SEQ_CST))
		token_put(o, wfd);
}

/* About to sleep, with the readers' lock. False: something came meanwhile. */
bool pipe_sleep_prepare(struct kx_pipe *o, uint64_t key, int fd)
{
	__atomic_add_fetch(&o->sleepers, 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(&o->token, 0, __ATOMIC_SEQ_CST);
	bool drained = pipe_tokens_drain(fd);
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
int64_t pipe_gone(const struct kx_pipe *was, int fd, bool slept)
{
	struct stat st;
	return slept && (fstat(fd, &st) || !pipe_is_of(was, &st)) ? -EBADF : NOT_HERE;
}

static int64_t ring_read(struct hcall *c, uint64_t key, int fd)
{
	struct kx_pipe *o = pipe_object(key);
	const struct kx_pipe was = { .dev = o->dev, .ino = o->ino };
	struct pieces p;
	bool slept = false, napped = false, alone = false; /* alone: the host says that no writer is left */
	struct timespec slice = { 0, SLICE_FIRST_NS };
	pipe_pieces_of(&p, c);
	if (kx_pipe_end(key))
		return -EBADF;
	for (unsigned turn = 0;; turn++) {
		if (pipe_in_vain(turn))
			return -EINTR;
		if (!p.total)
			return 0;
		uint32_t epoch = __atomic_load_n(&pipe_mem->epoch, __ATOMIC_SEQ_CST);
		uint32_t closes = __atomic_load_n(&o->closes, __ATOMIC_SEQ_CST);
		if (!pipe_lock_get(&o->rlock))
			return -EINTR;
		if (!pipe_is_live(o, key)) {
			pipe_lock_put(&o->rlock);
			return pipe_gone(&was, fd, slept);
		}
		uint32_t n = pipe_used(o);
		if (n) {
			n = n < p.total ? n : (uint32_t)p.total;
			uint32_t got = pipe_pieces_copy(&p, pipe_ring_of(key), o->tail, n, false);
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
		bool sleeps = pipe_sleep_prepare(o, key, fd);
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
			return pipe_gone(&was, fd, slept);
		alone = pfd.revents & POLLHUP && !(pfd.revents & POLLIN);
		int64_t ns = slice.tv_sec * 1000000000ll + slice.tv_nsec * 2;
		slice = ns >= SLICE_LAST_NS ? (struct timespec){ 1, 0 } : (struct timespec){ 0, ns };
	}
}

/* No reader is left: the host's own answer, with its signal. 0: there is one. */
static int64_t broken(int fd)
{
	int64_t r = pipe_host_poll(fd, POLLOUT) & POLLERR ? pipe_host_write(fd, "", 1) : 0;
	return r == -EAGAIN ? 0 : r;
}

static int64_t ring_write(struct hcall *c, uint64_t key, int fd)
{
	struct kx_pipe *o = pipe_object(key);
	const struct kx_pipe was = { .dev = o->dev, .ino = o->ino };
	struct pieces p;
	uint64_t done = 0;
	bool slept = false;
	pipe_pieces_of(&p, c);
	if (!kx_pipe_end(key))
		return -EBADF;
	if (!p.total)
		return 0;
	uint32_t need = p.total <= KX_PIPE_ATOMIC ? (uint32_t)p.total : 1;
	pipe_check_others(fd);
	for (unsigned turn = 0;; turn++) {
		if (pipe_in_vain(turn))
			return done ? (int64_t)done : -EINTR;
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
			return done ? (int64_t)done : pipe_gone(&was, fd, slept);
		}
		uint32_t room = KX_PIPE_RING - pipe_used(o), got = 0, n = 0;
		if (room >= need) {
			n = room < p.total - done ? room : (uint32_t)(p.total - done);
			got = pipe_pieces_copy(&p, pipe_ring_of(key), o->head, n, true);
			if (got < n && p.total <= KX_PIPE_ATOMIC)
				got = 0;
			__atomic_store_n(&o->head, o->head + got, __ATOMIC_SEQ_CST);
		}
		pipe_lock_put(&o->wlock);
		done += got;
		if (got) {
			turn = 0;
			pipe_owe(o);
			pipe_wake_readers(o, fd);
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
			return done ? (int64_t)done : pipe_gone(&was, fd, slept);
	}
}

static bool writes(uint64_t nr) { return nr == SYS_write || nr == SYS_writev || nr == SYS_sendto; }

int64_t pipe_io(struct hcall *c)
{
	int fd = (int)c->arg[0];
	uint64_t key = pipe_key_for(fd);
	int64_t r = NOT_HERE;
	if (key && kx_pipe_pair(key)) {
		struct pieces p;
		pipe_pieces_of(&p, c);
		r = pair_io(c, key, fd, &p, writes(c->nr));
	} else if (key) {
		r = writes(c->nr) ? ring_write(c, key, fd) : ring_read(c, key, fd);
	}
	if (r != NOT_HERE)
		return r;
	if (key)
		pipe_forget(fd, key);
	return hc_fn(c->row)(c);
}

/* FIONREAD is a number of bytes in the ring; FIONBIO sets what F_SETFL sets. */
static void flags_follow(int fd, uint64_t key, int64_t *r)
{
	long fl = HC6(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0);
	if (fl < 0)
		return;
	if (fl & (O_DIRECT | O_ASYNC)) {
		int e = pipe_make_plain(key, fd);
		*r = e ? e : *r;
	}
	__atomic_store_n(&pipe_object(key)->nonblock[kx_pipe_end(key)], !!(fl & O_NONBLOCK), __ATOMIC_SEQ_CST);
}

int64_t pipe_control(struct hcall *c)
{
	int fd = (int)c->arg[0], n;
	unsigned what = (unsigned)c->arg[1];
	uint64_t key = pipe_key_for(fd);
	bool pair = key && kx_pipe_pair(key);
	int64_t r;
	if (key && c->nr == SYS_ioctl && what == FIONREAD && (pair || pipe_is_live(pipe_object(key), key))) {
		n = pair ? pair_inq(key, fd) : (int)pipe_used(pipe_object(key));
		return guest_write(c->arg[2], &n, sizeof n);
	}
	if (c->nr == SYS_fcntl ? what == F_SETPIPE_SZ : pair && what == SIOCOUTQ)
		if ((r = pipe_plain(fd)))
			return r;
	r = hc_fn(c->row)(c);
	if (key && r >= 0 && (c->nr == SYS_fcntl ? what == F_SETFL : what == FIONBIO || what == FIOASYNC))
		flags_follow(fd, key, &r);
	return r;
}
