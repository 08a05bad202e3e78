/* SPDX-License-Identifier: Apache-2.0 */
#include "keeper.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/futex.h>
#include <poll.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "spare.h"
#include "thread.h"
#include "sig.h"

#define KEEPER_STACK (256 << 10)
#define LOOK_NS 5000000 /* how often who waits looks whether the other is alive */

/* Requests are pushed by compare-and-swap: a child that dies leaves one or none. They are on stacks that live until
 * keeper_settle() (fork.c). */
static struct {
	pid_t pid, tid;
	struct keeper_request *head;
	int posted;  /* counts; a futex */
	int sock[2]; /* the keeper's end, the children's: descriptors on their way */
	bool gone;
} keeper;

static void futex_wait(int *word, int v, long ns)
{
	struct timespec ts = { 0, ns };
	host_call(SYS_futex, (long)word, FUTEX_WAIT, v, ns ? (long)&ts : 0, 0, 0);
}

static void futex_wake(int *word) { host_call(SYS_futex, (long)word, FUTEX_WAKE, 1 << 30, 0, 0, 0); }

static void set(int *word)
{
	__atomic_store_n(word, 1, __ATOMIC_SEQ_CST);
	futex_wake(word);
}

/* ---- descriptors --------------------------------------------------------------------------------------------------- */

union control {
	struct cmsghdr h;
	char space[CMSG_SPACE(sizeof(int))];
};

static int fd_send(struct keeper_request *q, int fd)
{
	union control c = { .h = { CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS } };
	struct iovec v = { &q, sizeof q };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof c };
	memcpy(CMSG_DATA(&c.h), &fd, sizeof fd);
	return HC6(SYS_sendmsg, keeper.sock[1], &m, MSG_NOSIGNAL, 0, 0, 0) < 0 ? -errno : 0;
}

/* That of q. One of a child that died before its request was posted is dropped. */
static int fd_receive(struct keeper_request *q)
{
	for (;;) {
		union control c = { .h = { 0 } };
		struct keeper_request *of = NULL;
		struct iovec v = { &of, sizeof of };
		struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof c };
		long n = HC6(SYS_recvmsg, keeper.sock[0], &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC, 0, 0, 0);
		int fd = -1;
		if (n < 0)
			return -1;
		if (m.msg_controllen >= CMSG_LEN(sizeof fd) && c.h.cmsg_type == SCM_RIGHTS)
			memcpy(&fd, CMSG_DATA(&c.h), sizeof fd);
		if (of == q)
			return fd;
		if (fd >= 0)
			close(fd);
	}
}

/* ---- the keeper ------------------------------------------------------------------------------------------------------ */

static void carry_out(struct keeper_request *q)
{
	int fd = -1;
	if (q->has_fd && (q->arg[4] = fd = fd_receive(q)) < 0)
		q->r = -EMFILE;
	else
		q->r = q->fn(q->arg[0], q->arg[1], q->arg[2], q->arg[3], q->arg[4], q->arg[5]);
	if (fd >= 0)
		close(fd);
	set(&q->done); /* from here q may be gone */
}

static void *keeper_main(void *arg)
{
	/* A table of its own: what it opens is not seen in the program's, what that closes is closed. */
	host_call(SYS_close_range, 0, pvm.fd_limit - 1, CLOSE_RANGE_UNSHARE, 0, 0, 0);
	host_call(SYS_prctl, PR_SET_NAME, (long)PVM_THREADS "keeper", 0, 0, 0, 0);
	__atomic_store_n(&keeper.tid, my_tid(), __ATOMIC_SEQ_CST);
	set(arg);
	for (;;) {
		int seen = __atomic_load_n(&keeper.posted, __ATOMIC_SEQ_CST);
		struct keeper_request *l = __atomic_exchange_n(&keeper.head, NULL, __ATOMIC_SEQ_CST), *order = NULL,
				      *next;
		for (; l; l = next) { /* the oldest first */
			next = l->next;
			l->next = order;
			order = l;
		}
		if (!order)
			futex_wait(&keeper.posted, seen, 0);
		for (; order; order = next) {
			next = order->next;
			carry_out(order);
		}
	}
	return NULL;
}

static int start_locked(void)
{
	if (keeper.sock[0]) { /* of the process that this one was forked from */
		close(keeper.sock[0]);
		close(keeper.sock[1]);
	}
	memset(&keeper, 0, sizeof keeper);
	int s[2], ready = 0;
	fd_limit_lift();
	int r = socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, s);
	fd_limit_drop();
	if (r)
		return -EAGAIN;
	if (fd_keep(&keeper.sock[0], s[0])) {
		close(s[1]);
		keeper.sock[0] = 0;
		return -EAGAIN;
	}
	r = fd_keep(&keeper.sock[1], s[1]) ? EMFILE : 0;
	if (!r)
		r = thread_own_start(NULL, KEEPER_STACK, keeper_main, &ready);
	if (r) {
		close(keeper.sock[0]);
		close(keeper.sock[1]);
		memset(keeper.sock, 0, sizeof keeper.sock);
		return -EAGAIN;
	}
	while (!__atomic_load_n(&ready, __ATOMIC_SEQ_CST))
		futex_wait(&ready, 0, 0);
	keeper.pid = pvm.pid;
	return 0;
}

bool keeper_runs(void) { return keeper.pid == pvm.pid; }

int keeper_start(void)
{
	if (is_vfork_child()) /* its parent's parent has one */
		return 0;
	if (keeper.pid != pvm.pid)
		spare_remove(); /* in the keeper's table of descriptors its VM would outlive it */
	pthread_mutex_lock(&pvm.thr_lock);
	int r = keeper.pid == pvm.pid ? 0 : start_locked();
	pthread_mutex_unlock(&pvm.thr_lock);
	return r;
}

/* In the keeper: a descriptor that the process has moved is moved in its table, too. One that was made later, a
 * vCPU's, is not in it. */
static int64_t move_here(int from, int to)
{
	if (from == to)
		return 0;
	if (HC6(SYS_dup3, from, to, O_CLOEXEC, 0, 0, 0) >= 0)
		HC6(SYS_close, from, 0, 0, 0, 0, 0);
	return 0;
}

void keeper_fd_moved(int from, int to)
{
	if (keeper.pid == pvm.pid && !is_vfork_child())
		KEEPER6(move_here, from, to, 0, 0, 0, 0);
}

static int64_t close_here(int fd) { return HC6(SYS_close, fd, 0, 0, 0, 0, 0); }

void keeper_fd_closed(int fd)
{
	if (keeper.pid == pvm.pid && !is_vfork_child())
		KEEPER6(close_here, fd, 0, 0, 0, 0, 0);
}

/* ---- its clients ------------------------------------------------------------------------------------------------------ */

bool keeper_needed(void) { return is_vfork_child() && !keeper.gone; }

/* The parent's process is dead. Whoever in it held the lock was killed with it; then memory can't be changed. */
static bool has_gone(void)
{
	if (host_call(SYS_tgkill, keeper.pid, keeper.tid, 0, 0, 0, 0) != -ESRCH)
		return false;
	keeper.gone = true;
	return true;
}

static int64_t run_alone(struct keeper_request *q)
{
	struct timespec soon;
	clock_gettime(CLOCK_REALTIME, &soon);
	soon.tv_sec += 1;
	if (pthread_mutex_timedlock(&pvm.mm_lock, &soon))
		return -ENOMEM;
	pthread_mutex_unlock(&pvm.mm_lock);
	return q->fn(q->arg[0], q->arg[1], q->arg[2], q->arg[3], q->arg[4], q->arg[5]);
}

static void post(struct keeper_request *q)
{
	if (self)
		self->asked_keeper = true;
	q->next = __atomic_load_n(&keeper.head, __ATOMIC_RELAXED);
	while (!__atomic_compare_exchange_n(&keeper.head, &q->next, q, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		;
	__atomic_add_fetch(&keeper.posted, 1, __ATOMIC_SEQ_CST);
	futex_wake(&keeper.posted);
}

/* Until *word is set. False: there is no keeper any more that could do it. */
static bool await_set(int *word)
{
	while (!__atomic_load_n(word, __ATOMIC_SEQ_CST)) {
		futex_wait(word, 0, LOOK_NS);
		if (!__atomic_load_n(word, __ATOMIC_SEQ_CST) && has_gone())
			return __atomic_load_n(word, __ATOMIC_SEQ_CST);
	}
	return true;
}

static int64_t request(struct keeper_request *q)
{
	if (!keeper.gone) {
		post(q);
		if (await_set(&q->done))
			return q->r;
	}
	return run_alone(q);
}

int64_t keeper_run(keeper_fn fn, long a, long b, long c, long d, long e, long f)
{
	struct keeper_request q = { .fn = (int64_t(*)(long, long, long, long, long, long))fn,
				    .arg = { a, b, c, d, e, f } };
	return request(&q);
}

int64_t keeper_run_fd(keeper_fn fn, long a, long b, long c, long d, int fd, long f)
{
	struct keeper_request q = { .fn = (int64_t(*)(long, long, long, long, long, long))fn,
				    .arg = { a, b, c, d, fd, f } };
	if (fd >= 0) {
		q.has_fd = 1;
		if (fd_send(&q, fd))
			return -EBADF;
	}
	return request(&q);
}

static void nothing(void) {}

void keeper_settle(void) { KEEPER6(nothing, 0, 0, 0, 0, 0, 0); }

/* ---- all locks -------------------------------------------------------------------------------------------------------- */

static int64_t hold_all(struct keeper_hold *h, void (*prepare)(void), void (*done)(void))
{
	struct pollfd p = { .fd = (int)HC6(SYS_pidfd_open, h->pid, 0, 0, 0, 0, 0), .events = POLLIN };
	prepare();
	set(&h->held);
	while (!__atomic_load_n(&h->release, __ATOMIC_SEQ_CST)) {
		struct timespec now = { 0, 0 };
		futex_wait(&h->release, 0, LOOK_NS);
		if (p.fd < 0 || HC6(SYS_ppoll, &p, 1, &now, 0, 8, 0) > 0) /* it was killed */
			break;
	}
	done();
	if (p.fd >= 0)
		close(p.fd);
	return 0;
}

bool keeper_hold(struct keeper_hold *h, void (*prepare)(void), void (*done)(void))
{
	memset(h, 0, sizeof *h);
	h->pid = my_pid();
	h->q.fn = (int64_t(*)(long, long, long, long, long, long))(keeper_fn)hold_all;
	h->q.arg[0] = (long)h;
	h->q.arg[1] = (long)prepare;
	h->q.arg[2] = (long)done;
	if (keeper.gone)
		return false;
	post(&h->q);
	return await_set(&h->held);
}

void keeper_release(struct keeper_hold *h)
{
	set(&h->release);
	await_set(&h->q.done);
}
