/* SPDX-License-Identifier: Apache-2.0 */
#include "batch.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include "../../util/together.h"
#include "dgram.h"
#include "flusher.h"
#include "gmem.h"
#include "keeper.h"
#include "openahead.h"
#include "recycle.h"
#include "thread.h"
#include "sig.h"
#include "batch_priv.h"
#include "writelater.h"

#define LEASES_MAX 16
#define HC_FIRST 1024 /* sig_next */
#define HC_LAST 1029  /* seed */
#define FORK_MS 1000  /* what is left may take as much before a fork */
#define FILE_IDLE 64  /* calls of a thread until a file that it does not send is forgotten */

struct batch_state batch;
static KX_TOGETHER pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/*
 * Pipes whose write ends children have and keep over exec: when all who could hold a socket of before the fork have
 * ended, the pipe has. A byte in it: a child has passed on a socket.
 */
static KX_TOGETHER int leases[LEASES_MAX], nr_leases, lease_new = -1, lease_mine = -1;
static KX_TOGETHER bool lease_lost; /* nobody can tell: for ever */

static void close_if(int fd)
{
	if (fd >= 0)
		HC6(SYS_close, fd, 0, 0, 0, 0, 0);
}

bool batch_has_leases(void) { return nr_leases || lease_lost; }
bool batch_is_shared(void) { return batch_has_leases() || batch.no_new || batch.nr_held; }

/* ---- contexts ------------------------------------------------------------------------------------------------------- */

static uint8_t ctx_at[KX_AREA_MAX]; /* by thread.index: the context, and 1 */

/* By index: the service thread has that of the thread it acts for. */
static struct ctx *ctx_of(const struct thread *t)
{
	return ctx_at[t->index] ? &batch.ctxs[ctx_at[t->index] - 1] : NULL;
}

static void ctx_free(struct ctx *x)
{
	if (!x->t)
		return;
	ctx_at[x->index] = 0;
	x->t = NULL;
}

static struct ctx *ctx_make(struct thread *t)
{
	struct ctx *x = NULL;
	if (t->vcpu_fd < 0) /* the service thread */
		return NULL;
	for (int i = 0; i < KX_BATCH_CTXS && !x; i++)
		if (!batch.ctxs[i].t)
			x = &batch.ctxs[i];
	if (!x || !batch_flusher_start() || gmem_sys_open(batch_ctx_gva(x)))
		return NULL;
	x->t = t;
	x->index = t->index;
	ctx_at[t->index] = (uint8_t)(x - batch.ctxs + 1);
	x->g = gva_ptr(batch_ctx_gva(x));
	x->tail = x->flushed = x->nr = x->used = x->nr_live = 0;
	x->late = LATE_TURNS;
	x->only = -1;
	writelater_reset((int)(x - batch.ctxs));
	seek_reset((int)(x - batch.ctxs));
	accept_reset((int)(x - batch.ctxs));
	sigs_reset((int)(x - batch.ctxs));
	*x->g = (struct kx_bctx){ .turn = (uint32_t)x->g->turn + 2 }; /* what an earlier thread had here is over */
	x->g->epoll = x->g->drained = x->g->accepted = -1;
	ahead_ctx_init(x);
	for (int i = 0; i < KX_BATCH_PEERS_MAX; i++)
		batch_peer_of(x, i)->fd = batch_local_of(x, i)->fd = -1;
	for (int i = 0; i < KX_BATCH_FILES; i++)
		x->file[i].fd = x->g->file[i].fd = -1;
	if (x - batch.ctxs >= batch.nr_ctxs)
		batch.nr_ctxs = (int)(x - batch.ctxs) + 1;
	__atomic_store_n(&batch_shared()->ctx_of[t->index], (uint8_t)(x - batch.ctxs + 1), __ATOMIC_SEQ_CST);
	pvm.shared->batch = 1;
	return x;
}

/* ---- files that are sent from --------------------------------------------------------------------------------------- */

static void file_forget(struct ctx *x, int i)
{
	x->g->file[i].fd = -1;
	x->file[i].fd = -1;
}

static void file_sent(struct ctx *x, int fd)
{
	struct stat st;
	for (int i = 0; i < KX_BATCH_FILES; i++)
		if (x->file[i].fd == fd)
			return;
	if (fstat(fd, &st) || !S_ISREG(st.st_mode))
		return;
	unsigned i = x->next_file++ % KX_BATCH_FILES;
	file_forget(x, (int)i);
	x->file[i] = (struct file){ .fd = fd, .uses = x->g->file[i].uses };
}

/* How long they are now, as the thread may know that makes no call from here on. */
static void files_look(struct ctx *x)
{
	for (int i = 0; i < KX_BATCH_FILES && (unsigned)i < x->next_file; i++) {
		struct file *f = &x->file[i];
		struct kx_bfile *g = &x->g->file[i];
		struct stat st;
		if (f->fd < 0)
			continue;
		f->idle = f->uses == g->uses ? f->idle + 1 : 0;
		f->uses = g->uses;
		uint64_t calls = __atomic_load_n(&batch_shared()->calls, __ATOMIC_SEQ_CST);
		long fl = HC6(SYS_fcntl, f->fd, F_GETFL, 0, 0, 0, 0);
		if (f->idle > FILE_IDLE || fl < 0 || (fl & O_ACCMODE) == O_WRONLY || fl & O_PATH || fstat(f->fd, &st) ||
		    !S_ISREG(st.st_mode)) {
			file_forget(x, i);
			continue;
		}
		g->size = (uint64_t)st.st_size;
		g->calls = calls;
		__atomic_store_n(&g->fd, f->fd, __ATOMIC_SEQ_CST);
	}
}

static void ctx_give_up(struct ctx *x)
{
	for (uint32_t i = 0; i < x->nr; i++) {
		struct sock *s = batch_sock(x->fd[i]);
		if (s)
			batch_give_up(x->fd[i], s);
	}
	x->nr = x->used = 0;
}

/* Before a wait at epoll: what it might tell of is the kernel's. Sockets that are in another one are as they were. */
static void give_up_for(struct ctx *x, int epoll)
{
	uint32_t n = 0;
	if (x->used > KX_BATCH_RX_SIZE / 2 || x->nr > ELSEWHERE_MAX) {
		ctx_give_up(x);
		return;
	}
	for (uint32_t i = 0; i < x->nr; i++) {
		struct sock *s = batch_sock(x->fd[i]);
		if (s && s->epoll >= 0 && s->epoll != epoll)
			x->fd[n++] = x->fd[i];
		else if (s)
			batch_give_up(x->fd[i], s);
	}
	x->nr = n;
	x->used = n ? x->used : 0;
}

static bool all_read(const struct ctx *x)
{
	for (uint32_t i = 0; i < x->nr; i++) {
		const struct sock *s = batch_sock(x->fd[i]);
		if (s && s->fetched > KX_RX_POS(__atomic_load_n(&batch_guest_sock(x->fd[i])->rx, __ATOMIC_ACQUIRE)))
			return false;
	}
	return true;
}

void batch_turn(struct ctx *x)
{
	if (all_read(x) || x->used > KX_BATCH_RX_SIZE / 2 || x->nr > FETCHES_MAX / 2)
		ctx_give_up(x);
	batch_next_turn(x, -1);
}

static void ctx_end(struct ctx *x)
{
	ctx_give_up(x);
	batch_shared()->ctx_of[x->index] = 0;
	ctx_free(x);
}

static void settle_all(void)
{
	batch_flush();
	for (int i = 0; i < batch.nr_ctxs; i++)
		for (uint32_t k = 0; batch.ctxs[i].t && k < batch.ctxs[i].nr; k++) {
			struct sock *s = batch_sock(batch.ctxs[i].fd[k]);
			if (s)
				batch_settle(batch.ctxs[i].fd[k], s);
		}
}

static void leases_look(void)
{
	struct timespec now = { 0, 0 };
	if (!nr_leases || lease_lost)
		return;
	for (int i = 0; i < nr_leases;) {
		struct pollfd p = { .fd = leases[i], .events = POLLIN };
		if (HC6(SYS_ppoll, &p, 1, &now, 0, 8, 0) <= 0) {
			i++;
			continue;
		}
		lease_lost |= (p.revents & POLLIN) != 0;
		HC6(SYS_close, leases[i], 0, 0, 0, 0, 0);
		leases[i] = leases[--nr_leases];
	}
	if (nr_leases || lease_lost)
		return;
	lend_all_back();
	batch.nr_held = 0;
	for (int fd = 0; batch.socks && fd <= batch.top_fd; fd++)
		batch.nr_held += batch.socks[fd].held = batch.socks[fd].inherited;
	dgram_alone_again();
}

void batch_leases_look(void)
{
	if (!__atomic_load_n(&nr_leases, __ATOMIC_RELAXED))
		return;
	pthread_mutex_lock(&lock);
	leases_look();
	pthread_mutex_unlock(&lock);
}

static void after_wait(struct hcall *c, int n)
{
	struct ctx *x = ctx_of(c->t);
	leases_look();
	if (x) {
		batch_next_turn(x, (int)c->arg[0]);
		x->g->epoll = (int)c->arg[0];
	}
	for (int i = 0; i < n; i++) {
		struct epoll_event ev;
		if (guest_read(&ev, c->arg[1] + (uint64_t)i * sizeof ev, sizeof ev))
			return;
		int fd;
		struct sock *s = batch_sock_of((int)c->arg[0], ev.data.u64, &fd);
		if (!s)
			continue;
		if (!x && !(x = ctx_make(c->t)))
			return;
		batch_look_alone(fd, s);
		batch_ready(x, fd, s, ev.events);
		if (n == 1 && !s->err && !(ev.events & (EPOLLERR | EPOLLHUP)))
			x->only = fd;
	}
}

/* ---- the flusher -------------------------------------------------------------------------------------------------------- */

/* Nobody has made a call for a while. */
static void look(void)
{
	bool busy = false, late = false;
	pthread_mutex_lock(&lock);
	for (int i = 0; i < batch.nr_ctxs; i++) {
		struct ctx *x = &batch.ctxs[i];
		if (!x->t || !x->in_guest)
			continue;
		busy = true;
		late |= x->g->head != x->tail;
	}
	if (late)
		batch_flush();
	accept_tick();
	for (int fd = 0; batch.left_bytes && fd <= batch.top_fd; fd++)
		if (batch_sock(fd) && batch.socks[fd].left)
			batch_drive_left(fd, &batch.socks[fd]);
	batch_drive_closed();
	if (dgram_tick() || busy || batch.left_bytes)
		flusher_due();
	pthread_mutex_unlock(&lock);
}

bool batch_flusher_start(void) { return flusher_start(look); }

/* ---- calls ------------------------------------------------------------------------------------------------------------ */

static bool is_write(uint64_t nr)
{
	return nr == SYS_write || nr == SYS_writev || nr == SYS_sendto || nr == SYS_sendmsg || nr == SYS_sendmmsg ||
	       nr == SYS_sendfile || nr == SYS_pwritev2;
}

static bool is_read(uint64_t nr)
{
	return nr == SYS_read || nr == SYS_readv || nr == SYS_recvfrom || nr == SYS_recvmsg || nr == SYS_recvmmsg ||
	       nr == SYS_preadv2;
}

static bool ends_it(const struct hcall *c)
{
	switch (c->nr) {
	case SYS_close:
	case SYS_dup:
	case SYS_dup2:
	case SYS_dup3:
	case SYS_shutdown:
		return true;
	case SYS_setsockopt: /* its close takes long; peeks or reads are no more what they were */
		return ((int)c->arg[1] == SOL_SOCKET &&
			((int)c->arg[2] == SO_LINGER || (int)c->arg[2] == SO_PEEK_OFF)) ||
		       ((int)c->arg[1] == IPPROTO_TCP && (int)c->arg[2] == TCP_ULP);
	case SYS_fcntl:
		return (int)c->arg[1] == F_DUPFD || (int)c->arg[1] == F_DUPFD_CLOEXEC;
	}
	return false;
}

static bool ends_descriptors(uint64_t nr)
{
	return nr == SYS_close || nr == SYS_dup2 || nr == SYS_dup3 || nr == SYS_close_range;
}

bool batch_ends_descriptor(const struct hcall *c, int fd)
{
	switch (c->nr) {
	case SYS_close:
		return (int)c->arg[0] == fd;
	case SYS_dup2:
	case SYS_dup3:
		return (int)c->arg[1] == fd;
	case SYS_close_range:
		return hcall_closes_range(c);
	}
	return false;
}

static bool is_harmless(const struct hcall *c)
{
	return c->nr == SYS_epoll_ctl || c->nr == SYS_fstat || c->nr == SYS_getsockname || c->nr == SYS_getpeername;
}

/* The call names socket fd. True: *r is its result. */
static bool touch(struct hcall *c, int fd, struct sock *s, int64_t *r)
{
	if (c->nr == SYS_shutdown && s->left && batch_shutdown_behind(c, fd, s, r))
		return true;
	if (ends_it(c)) {
		bool replaced = (c->nr == SYS_dup2 || c->nr == SYS_dup3) && (int)c->arg[0] != fd;
		if (replaced && s->left && !batch_close_left(fd, s))
			batch_drop_left(s);
		if (c->nr == SYS_close)
			batch_drop(fd, s);
		else
			batch_disown(fd, s);
		return false;
	}
	lend_look(fd, s);
	if (is_harmless(c))
		return false;
	if (c->nr == SYS_connect) /* with AF_UNSPEC it has no names any more */
		__atomic_store_n(&batch_guest_sock(fd)->tcp, 0, __ATOMIC_SEQ_CST);
	if (is_write(c->nr) && ctx_of(c->t))
		batch_write_called(ctx_of(c->t), fd);
	batch_drive_left(fd, s);
	s->eager |= is_read(c->nr) && !s->told_of_data;
	if (!is_write(c->nr))
		batch_give_up(fd, s);
	if (!is_read(c->nr))
		__atomic_store_n(&batch_guest_sock(fd)->credit, 0, __ATOMIC_SEQ_CST);
	if (batch_error_due(c, is_write(c->nr) || is_read(c->nr), &s->err, r))
		return true;
	return s->left && (is_write(c->nr) || (c->nr == SYS_splice && (int)c->arg[2] == fd)) &&
	       batch_write_behind(c, fd, s, r);
}

static bool touch_all(struct hcall *c, int64_t *r)
{
	bool done = false;
	if (ahead_is_wait(c->nr)) /* it names an epoll alone */
		return false;
	if (hcall_closes_range(c))
		batch_drop_range((unsigned)c->arg[0], (unsigned)c->arg[1]);
	for (int i = 0; i < 6 && !done && c->row->arg[i].kind != KX_A_NONE; i++) {
		int k = c->row->arg[i].kind, fd = (int)c->arg[i];
		if (k != KX_A_FD && k != KX_A_FDN && k != KX_A_FDNEW && k != KX_A_ATFD)
			continue;
		struct sock *s = batch_sock(fd);
		if (!s && heir_looks())
			s = heir_meet(fd);
		if (s) {
			batch_look_alone(fd, s);
			done = touch(c, fd, s, r);
		}
	}
	return done;
}

/* Calls of the LibOS's own that nobody outside learns of. */
static bool is_inner(uint64_t nr) { return nr >= HC_FIRST && nr <= HC_LAST; }

bool batch_active(void)
{
	return __atomic_load_n(&batch.nr_socks, __ATOMIC_RELAXED) || __atomic_load_n(&batch.nr_ctxs, __ATOMIC_RELAXED);
}

bool batch_is_mapped(void) { return batch.mapped; }

bool batch_may_serve(struct hcall *c)
{
	if (!batch_active())
		return true;
	pthread_mutex_lock(&lock);
	bool has = !sigs_offered() && (!ahead_is_wait(c->nr) || ctx_of(c->t));
	pthread_mutex_unlock(&lock);
	return has;
}

bool batch_enter(struct hcall *c, int64_t *r)
{
	bool done = false;
	if ((!batch.nr_socks && !batch.nr_ctxs && !ahead_concerns(c) && !accept_concerns(c) && !heir_looks() &&
	     !lend_looks()) ||
	    is_vfork_child() || (is_inner(c->nr) && !batch.nr_ctxs))
		return false;
	pthread_mutex_lock(&lock);
	struct ctx *x = ctx_of(c->t);
	if (is_inner(c->nr)) { /* signals are to be accepted, perhaps */
		sigs_enter(c, x ? (int)(x - batch.ctxs) : -1);
		pthread_mutex_unlock(&lock);
		return false;
	}
	if (batch.mapped)
		__atomic_add_fetch(&batch_shared()->calls, 1, __ATOMIC_SEQ_CST);
	if (x) {
		x->in_guest = false;
		x->g->exits++;
	}
	settle_all();
	accept_enter(c, x ? (int)(x - batch.ctxs) : -1);
	openahead_settle();
	done = writelater_enter(c, r);
	ahead_enter(c, x);
	seek_enter(c);
	recycle_enter(c);
	sigs_enter(c, x ? (int)(x - batch.ctxs) : -1);
	if (x && ahead_is_wait(c->nr))
		give_up_for(x, (int)c->arg[0]);
	if (x && c->nr == SYS_exit)
		ctx_end(x);
	int e = lend_looks() ? lend_enter(c) : 0;
	if (e && !done && (done = is_read(c->nr) || is_write(c->nr)))
		*r = -e;
	if ((batch.nr_socks || heir_looks()) && !done)
		done = touch_all(c, r);
	for (int i = 0; ends_descriptors(c->nr) && i < batch.nr_ctxs; i++)
		if (batch.ctxs[i].t && batch_ends_descriptor(c, batch.ctxs[i].g->epoll))
			batch.ctxs[i].g->epoll = -1;
	if (done && x) { /* batch_leave() is not told of it */
		x->in_guest = true;
		flusher_due();
	}
	pthread_mutex_unlock(&lock);
	return done;
}

static void note_result(struct hcall *c, int64_t r)
{
	int fd = (int)c->arg[0];
	struct sock *s = batch_sock(fd);
	struct ctx *x;
	switch (c->nr) {
	case SYS_accept:
	case SYS_accept4:
		if (r >= 0)
			batch_accepted(ctx_of(c->t), (int)r);
		return;
	case SYS_epoll_ctl:
		if (r == 0)
			batch_registered(c);
		return;
	case SYS_fcntl:
	case SYS_ioctl:
		if (s && r >= 0)
			s->nonblock = batch_is_nonblocking(fd);
		return;
	case SYS_setsockopt:
		if (s && r == 0 && (int)c->arg[1] == IPPROTO_TCP && (int)c->arg[2] == TCP_NOTSENT_LOWAT)
			batch_look_lowat(fd, s);
		return;
	}
	if (s && r > 0 && is_read(c->nr) && batch_reads_on(s, fd)) {
		if ((x = ctx_of(c->t)) || (x = ctx_make(c->t))) {
			batch_turn(x);
			batch_ready_fresh(x, fd, s, EPOLLIN);
		}
	} else if (!s && (c->nr == SYS_write || c->nr == SYS_writev) && (x = ctx_of(c->t)))
		writelater_seen((int)(x - batch.ctxs), fd, r);
	else if (ahead_is_wait(c->nr) && r > 0)
		after_wait(c, (int)r);
	else if (s && is_write(c->nr) && !s->held && (x = ctx_of(c->t)) &&
		 batch_guest_sock(fd)->owner == (uint32_t)(x - batch.ctxs) + 1) {
		batch_tell_credit(fd, s);
		batch_may_write(x, fd);
		if (c->nr == SYS_sendfile && r > 0 && c->arg[2])
			file_sent(x, (int)c->arg[1]);
	}
}

/* Now, or later by itself. */
static bool may_connect(int64_t r)
{
	return r >= 0 || r == -EINPROGRESS || r == -EALREADY || r == -EINTR || r <= -KX_ERESTART;
}

void batch_leave(struct hcall *c, int64_t r)
{
	bool accepts = c->nr == SYS_accept || c->nr == SYS_accept4;
	if (is_vfork_child() || is_inner(c->nr))
		return;
	if (c->nr == SYS_connect && may_connect(r) && !batch.selfish && batch_kind_of((int)c->arg[0]) != NONE) {
		batch.selfish = true;
		if (batch.mapped)
			batch_shared()->selfish = 1;
	}
	if (!batch.nr_socks && !batch.nr_ctxs && !accepts && !ahead_concerns(c) && !accept_concerns(c))
		return;
	pthread_mutex_lock(&lock);
	ahead_note(c, r);
	accept_note(c, r);
	note_result(c, r);
	struct ctx *x = ctx_of(c->t);
	seek_note(c, x ? (int)(x - batch.ctxs) : -1, r);
	if (x)
		sigs_note(c, (int)(x - batch.ctxs), r);
	if (batch.mapped)
		__atomic_add_fetch(&batch_shared()->calls, 1, __ATOMIC_SEQ_CST);
	if (x || (x = ctx_of(c->t))) {
		const int ctx = (int)(x - batch.ctxs);
		recycle_leave(c, r);
		accept_numbers_reset(ctx);
		ahead_leave(x, c, r);
		batch_still_live(x);
		accept_leave(c, ctx, r); /* behind it: what it accepts is nothing to look at any more */
		files_look(x);
		const uint64_t calls = __atomic_load_n(&batch_shared()->calls, __ATOMIC_SEQ_CST);
		writelater_look(ctx, calls);
		seek_look(ctx, calls);
		sigs_look(ctx, calls);
		sigs_offer(ctx, calls);
		openahead_offer(c); /* behind the look at the sockets */
		x->g->mark = x->g->head;
		x->in_guest = true;
		flusher_due();
	}
	pthread_mutex_unlock(&lock);
}

bool batch_answer(struct hcall *c, int64_t *r)
{
	if ((c->nr != SYS_accept && c->nr != SYS_accept4) || !(batch_active() || accept_waits()) || is_vfork_child())
		return false;
	pthread_mutex_lock(&lock);
	bool done = accept_give(c, r);
	pthread_mutex_unlock(&lock);
	if (done)
		*r = fd_result(*r); /* which may move descriptors, with the lock */
	return done;
}

int batch_ready_fd(int fd)
{
	if (fd < 0 || is_vfork_child())
		return fd;
	accept_polled(fd);
	if (!accept_waits())
		return fd;
	pthread_mutex_lock(&lock);
	fd = accept_ready_fd(fd);
	pthread_mutex_unlock(&lock);
	return fd;
}

/* batch_enter() has done it. */
int64_t hc_batch_flush(struct hcall *c)
{
	(void)c;
	return 0;
}

/* ---- processes ------------------------------------------------------------------------------------------------------------ */

void batch_share(int fd)
{
	if (is_vfork_child())
		return;
	if (lease_mine >= 0)
		HC6(SYS_write, lease_mine, "", 1, 0, 0, 0);
	pthread_mutex_lock(&lock);
	ahead_shared(fd);
	seek_shared(fd);
	lend_ask_all(); /* it may be an epoll, too */
	accept_shared(fd);
	if (batch_sock(fd) || heir_meet(fd))
		batch_disown(fd, batch_sock(fd));
	pthread_mutex_unlock(&lock);
}

void batch_fork_lock(void) { pthread_mutex_lock(&lock); }

static void share(bool lend)
{
	lend &= lend_begin();
	settle_all();
	heir_fork();
	seek_all_shared();
	ahead_fork(lease_new >= 0);
	int held = 0, ms = FORK_MS;
	for (int fd = 0; fd <= batch.top_fd; fd++) {
		struct sock *s = batch_sock(fd);
		if (!s)
			continue;
		__atomic_store_n(&batch_guest_sock(fd)->credit, 0, __ATOMIC_SEQ_CST);
		__atomic_store_n(&batch_guest_sock(fd)->fresh, 0, __ATOMIC_SEQ_CST);
		__atomic_store_n(&batch_guest_sock(fd)->tcp, 0, __ATOMIC_SEQ_CST);
		__atomic_store_n(&batch_guest_sock(fd)->epoll, KX_EPOLL_UNKNOWN, __ATOMIC_SEQ_CST);
		__atomic_store_n(&batch_guest_sock(fd)->owner, 0, __ATOMIC_SEQ_CST);
		batch_give_up(fd, s);
		ms = batch_drain_left(fd, s, ms);
	}
	/* Now the guest changes nothing of any of them. */
	for (int fd = 0; fd <= batch.top_fd; fd++) {
		struct sock *s = batch_sock(fd);
		if (s)
			held += s->held |= !lend || !lend_socket(fd, s);
	}
	if (batch.nr_held != held) /* a page less that is written to */
		batch.nr_held = held;
	lend_end();
}

void batch_fork_share(void) { share(lease_new >= 0 && !lease_lost); }

int batch_fds(int (*move)(int *fd))
{
	int r = 0;
	pthread_mutex_lock(&lock);
	for (int i = 0; i < nr_leases && !r; i++)
		r = move(&leases[i]);
	int *const inherited[] = { &lease_new, &lease_mine };
	for (int i = 0; i < 2 && !r; i++)
		if (*inherited[i] >= 0 && !(r = move(inherited[i])))
			fcntl(*inherited[i], F_SETFD, 0);
	if (!r)
		r = accept_fds(move);
	if (!r)
		r = batch_closed_fds(move);
	if (!r)
		r = flusher_fds(move);
	pthread_mutex_unlock(&lock);
	return r;
}

void batch_lease_begin(bool files)
{
	int fd[2] = { -1, -1 };
	if (is_vfork_child())
		return;
	pthread_mutex_lock(&lock);
	accept_fork_begin();
	pthread_mutex_unlock(&lock);
	if (!batch.nr_socks && !dgram_active())
		return;
	fd_limit_lift();
	bool ok = !files && !pipe2(fd, O_CLOEXEC | O_NONBLOCK);
	fd_limit_drop();
	fd[0] = fd_hide(fd[0]);
	fd[1] = fd_hide(fd[1]);
	ok = ok && fd[0] >= 0 && fd[1] >= 0 && !fcntl(fd[1], F_SETFD, 0);
	pthread_mutex_lock(&lock);
	leases_look();
	if (ok && nr_leases < LEASES_MAX && lease_new < 0) {
		leases[nr_leases++] = fd[0];
		lease_new = fd[1];
	} else {
		lease_lost = true;
		close_if(fd[0]);
		close_if(fd[1]);
	}
	pthread_mutex_unlock(&lock);
}

void batch_lease_end(void)
{
	if (is_vfork_child())
		return;
	pthread_mutex_lock(&lock);
	close_if(lease_new);
	lease_new = -1;
	accept_fork_end();
	pthread_mutex_unlock(&lock);
}

void batch_fork_unlock(void) { pthread_mutex_unlock(&lock); }

void batch_vfork_begin(void)
{
	if (is_vfork_child())
		return;
	batch_fork_lock();
	lend_ask_all(); /* the child's calls do not come by here */
	pool_vfork();
	share(false);
	batch.no_new++;
	batch_fork_unlock();
}

void batch_vfork_end(void)
{
	if (is_vfork_child())
		return;
	pthread_mutex_lock(&lock);
	batch.no_new--;
	seek_all_shared(); /* what was opened meanwhile the child had, too, where it shared the descriptors */
	pthread_mutex_unlock(&lock);
}

void batch_fork_child(void)
{
	if (batch.mapped)
		memset(batch_shared()->ctx_of, 0, sizeof batch_shared()->ctx_of);
	pvm.shared->batch = 0;
	lend_fork_child();
	for (int i = 0; i < batch.nr_ctxs; i++)
		ctx_free(&batch.ctxs[i]);
	for (int fd = 0; batch.socks && fd <= batch.top_fd; fd++) {
		struct sock *s = &batch.socks[fd];
		if (s->kind == NONE && !s->held && !s->inherited && !s->lent) /* what is not written stays shared */
			continue;
		s->kind = NONE;
		s->held = s->inherited = false;
		s->lent = 0;
		s->left = NULL; /* the parent's to send */
	}
	if (batch.left_bytes)
		batch.left_bytes = 0;
	heir_fork_child();
	accept_fork_child();
	batch_closed_fork_child();
	seek_all_shared();
	for (int i = 0; i < nr_leases; i++)
		close_if(leases[i]);
	if (lease_new >= 0)
		lease_mine = lease_new; /* those of further forefathers stay open */
	lease_new = -1;
	lease_lost = false;
	openahead_fork_child();
	writelater_fork_child();
	flusher_fork_child();
	ahead_fork_child();
	sigs_fork_child();
	nr_leases = 0;
	if (batch.nr_ctxs || batch.no_new || batch.top_fd || batch.nr_socks || batch.nr_held)
		batch.nr_ctxs = batch.no_new = batch.top_fd = batch.nr_socks = batch.nr_held = 0;
}

void batch_exec_begin(struct batch_handed *h)
{
	*h = (struct batch_handed){ .listener = -1, .bell = { -1, -1 } };
	if (is_vfork_child())
		return;
	pthread_mutex_lock(&lock);
	accept_fork_begin();
	accept_hand(h);
	batch_end_left();
	writelater_end();
	pthread_mutex_unlock(&lock);
	for (int i = 0; i < h->nr; i++)
		HC6(SYS_fcntl, h->kept[i].fd, F_SETFD, 0, 0, 0, 0);
}

void batch_exec_failed(const struct batch_handed *h)
{
	if (is_vfork_child())
		return;
	pthread_mutex_lock(&lock);
	batch_exec_adopt(h);
	accept_fork_end();
	pthread_mutex_unlock(&lock);
}

void batch_exec_adopt(const struct batch_handed *h)
{
	for (int i = 0; i < h->nr; i++)
		HC6(SYS_fcntl, h->kept[i].fd, F_SETFD, FD_CLOEXEC, 0, 0, 0);
	accept_adopt(h);
}

void batch_end(void)
{
	struct timespec soon;
	if ((!batch.nr_socks && !batch.nr_ctxs && !accept_has() && !batch_has_closed()) || my_pid() != pvm.pid)
		return;
	clock_gettime(CLOCK_REALTIME, &soon);
	soon.tv_sec += 1;
	if (pthread_mutex_timedlock(&lock, &soon))
		return;
	settle_all();
	accept_end();
	batch_end_left();
	writelater_end();
	pthread_mutex_unlock(&lock);
}
