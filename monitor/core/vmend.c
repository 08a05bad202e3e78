/* SPDX-License-Identifier: Apache-2.0 */
#include "vmend.h"
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "apart.h"
#include "pvm.h"

#define THREADS_MAX 8  /* that help to close, for a moment: each is a process more at a limit of processes */
#define THREADS_FROM 8 /* VMs to be closed */
#define IDLE_SECONDS 1
#define STACK_BYTES 65536 /* of each */
#define WAITING_MAX 64    /* VMs to be closed: more are closed by those who have them */
#define EVENTS 64         /* at once */
#define OF_SOCKET UINT32_MAX

enum { HOLD, LET_GO };

static int to = -1; /* the members' end of the socket */

/* ---- the closer ----------------------------------------------------------------------------------------------------- */

struct held {
	pid_t pid; /* 0: free */
	int vm, pidfd;
};

static struct held *held; /* the main thread's */
static uint32_t nr_slots, nr_held;
static int events_fd;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER;
static int waiting[WAITING_MAX]; /* descriptors; under the lock, as the rest */
static unsigned nr_waiting, nr_threads;

static bool is_behind(void) { return __atomic_load_n(&nr_waiting, __ATOMIC_RELAXED) == WAITING_MAX; }

/* With the lock, which is not held meanwhile. */
static void close_one(void)
{
	int fd = waiting[--nr_waiting];
	pthread_mutex_unlock(&lock);
	close(fd);
	pthread_mutex_lock(&lock);
}

static void *close_some(void *arg)
{
	struct timespec until;
	int r = 0;
	pthread_mutex_lock(&lock);
	while (nr_waiting || r != ETIMEDOUT) {
		while (nr_waiting)
			close_one();
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += IDLE_SECONDS;
		r = pthread_cond_timedwait(&more, &lock, &until);
	}
	nr_threads--;
	pthread_mutex_unlock(&lock);
	return arg;
}

static bool thread_make(void)
{
	pthread_attr_t a;
	pthread_t t;
	pthread_attr_init(&a);
	pthread_attr_setstacksize(&a, STACK_BYTES > PTHREAD_STACK_MIN ? STACK_BYTES : PTHREAD_STACK_MIN);
	pthread_attr_setdetachstate(&a, PTHREAD_CREATE_DETACHED);
	bool made = !pthread_create(&t, &a, close_some, NULL);
	pthread_attr_destroy(&a);
	return made;
}

/* When there is time. */
static void close_later(int fd)
{
	pthread_mutex_lock(&lock);
	const bool taken = nr_waiting < WAITING_MAX;
	if (taken)
		waiting[nr_waiting++] = fd;
	if (nr_waiting > THREADS_FROM) {
		if (nr_threads < THREADS_MAX && thread_make())
			nr_threads++;
		pthread_cond_signal(&more);
	}
	pthread_mutex_unlock(&lock);
	if (!taken)
		close(fd);
}

/* One of them. */
static void close_now(void)
{
	pthread_mutex_lock(&lock);
	if (nr_waiting)
		close_one();
	pthread_mutex_unlock(&lock);
}

static void slot_free(struct held *h)
{
	close(h->pidfd); /* and is no longer waited for */
	close_later(h->vm);
	memset(h, 0, sizeof *h);
	nr_held--;
}

static struct held *slot_of(pid_t pid)
{
	for (uint32_t i = 0; i < nr_slots; i++)
		if (held[i].pid == pid)
			return &held[i];
	return NULL;
}

static struct held *slot_new(void)
{
	struct held *h = slot_of(0);
	if (h)
		return h;
	const uint32_t n = nr_slots ? nr_slots * 2 : 16;
	if (!(h = realloc(held, n * sizeof *held)))
		return NULL;
	held = h;
	h += nr_slots;
	memset(h, 0, (n - nr_slots) * sizeof *h);
	nr_slots = n;
	return h;
}

/* Takes the descriptor. */
static void hold(pid_t pid, int vm)
{
	struct held *h = slot_of(pid);
	if (h) { /* it has exec'd: the wait for its end goes on */
		close_later(h->vm);
		h->vm = vm;
		return;
	}
	const int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0 || is_behind() || !(h = slot_new())) {
		close(vm);
		if (pidfd >= 0)
			close(pidfd);
		return;
	}
	struct epoll_event e = { .events = EPOLLIN, .data.u32 = (uint32_t)(h - held) };
	*h = (struct held){ pid, vm, pidfd };
	nr_held++;
	if (epoll_ctl(events_fd, EPOLL_CTL_ADD, pidfd, &e))
		slot_free(h);
}

union control {
	struct cmsghdr h;
	char space[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(sizeof(int))];
};

/* The last descriptor that came; ours send one. */
static int one_of(struct cmsghdr *h)
{
	int fd = -1;
	for (size_t at = CMSG_LEN(0); at + sizeof fd <= h->cmsg_len; at += sizeof fd) {
		if (fd >= 0)
			close(fd);
		memcpy(&fd, (const char *)h + at, sizeof fd);
	}
	return fd;
}

/* One message. False: nobody is left who could send any. */
static bool take(int sock)
{
	union control c;
	char kind = LET_GO;
	struct iovec v = { &kind, 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof c };
	ssize_t n = recvmsg(sock, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n <= 0)
		return n < 0;
	struct ucred from = { 0 };
	int vm = -1;
	for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h))
		if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_CREDENTIALS)
			memcpy(&from, CMSG_DATA(h), sizeof from);
		else if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_RIGHTS)
			vm = one_of(h);
	struct held *h = from.pid ? slot_of(from.pid) : NULL;
	if (kind == HOLD && vm >= 0 && from.pid)
		hold(from.pid, vm);
	else if (vm >= 0)
		close(vm);
	else if (h)
		slot_free(h);
	return true;
}

static _Noreturn void closer(int sock)
{
	struct epoll_event e[EVENTS];
	bool open = true;
	int *keep = &sock;
	if (!apart_begin(&keep, 1, PVM_THREADS "vmend"))
		_exit(1);
	events_fd = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event of_socket = { .events = EPOLLIN, .data.u32 = OF_SOCKET };
	if (events_fd < 0 || epoll_ctl(events_fd, EPOLL_CTL_ADD, sock, &of_socket))
		_exit(1);
	while (open || nr_held) {
		int n = epoll_wait(events_fd, e, EVENTS, __atomic_load_n(&nr_waiting, __ATOMIC_RELAXED) ? 0 : -1);
		/* Ends first: they make room. A message may give a place to somebody else. */
		for (int i = 0; i < n; i++)
			if (e[i].data.u32 != OF_SOCKET && held[e[i].data.u32].pid)
				slot_free(&held[e[i].data.u32]);
		for (int i = 0; i < n; i++)
			if (e[i].data.u32 == OF_SOCKET && !take(sock)) {
				open = false;
				close(sock);
			}
		close_now();
	}
	_exit(0); /* what still waits to be closed is closed by that */
}

/* ---- the members ----------------------------------------------------------------------------------------------------- */

int vmend_fd(void) { return to; }

void vmend_adopt(int fd)
{
	if (fd >= 0)
		fd_keep(&to, fd);
}

void vmend_start(void)
{
	const int on = 1;
	int sock[2];
	pid_t pid = -1;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock))
		return;
	/* No descriptor has a high number yet, so its table is a small one. */
	if (!setsockopt(sock[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on))
		pid = apart_fork();
	if (!pid)
		closer(sock[1]);
	close(sock[1]);
	if (pid < 0)
		close(sock[0]);
	else
		fd_keep(&to, sock[0]); /* else it hears of the end of its socket, and ends */
}

static void tell(char kind, int fd)
{
	union {
		struct cmsghdr h;
		char space[CMSG_SPACE(sizeof(int))];
	} c = { .h = { CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS } };
	struct iovec v = { &kind, 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };
	if (to < 0)
		return;
	if (fd >= 0) {
		memcpy(CMSG_DATA(&c.h), &fd, sizeof fd);
		m.msg_control = &c;
		m.msg_controllen = sizeof c;
	}
	/* Full: it is behind, and this VM ends as it would. */
	HC6(SYS_sendmsg, to, &m, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0, 0);
}

void vmend_hold(void) { tell(HOLD, pvm.vm_fd); }
void vmend_let_go(void) { tell(LET_GO, -1); }
