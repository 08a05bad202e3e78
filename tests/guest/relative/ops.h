/* SPDX-License-Identifier: Apache-2.0 */
/* What a member does while a relative lies. Part of relative.c. */
#ifndef KX_GUEST_RELATIVE_OPS_H
#define KX_GUEST_RELATIVE_OPS_H
#include <fcntl.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include "../check.h"
#include "../children.h"
#include "lies.h"

enum { R, W, STREAM, STREAM2, RECORDS, RECORDS2, DGRAM, DGRAM2, FDS };
static int fd[FDS], epoll;
static char data[200000];
static struct {
	long type;
	char text[2000];
} message = { 1, "" };

/* What a call may say of an object that a relative spoils; of others it says nothing at all. */
static bool may_fail(int e)
{
	static const int may[] = { EINTR, EAGAIN, EPIPE,     ECONNRESET, EIO,    ENOBUFS, ENOMSG,
				   EIDRM, E2BIG,  ETIMEDOUT, EMSGSIZE,   ERANGE, ENOMEM,  ENOTCONN };
	for (unsigned i = 0; i < sizeof may / sizeof may[0]; i++)
		if (e == may[i])
			return true;
	return false;
}

static bool right(int64_t r, int64_t most) { return r < 0 ? may_fail(errno) : r <= most; }

static bool both_close(const int p[2])
{
	bool first = close(p[0]) == 0;
	return close(p[1]) == 0 && first;
}

static unsigned length(void) { return draw(8) ? 1 + draw(3000) : 1 + draw(sizeof data); }
static int pair_end(void) { return fd[STREAM + (int)draw(6)]; }

static bool op_read(void)
{
	unsigned n = length();
	return right(read(fd[R], data, n), n);
}
static bool op_write(void)
{
	unsigned n = length();
	return right(write(fd[W], data, n), n);
}
static bool op_vector(void)
{
	struct iovec v[3] = { { data, draw(5000) }, { data + 5000, draw(3) }, { data + 6000, 1 + draw(70000) } };
	int64_t most = (int64_t)(v[0].iov_len + v[1].iov_len + v[2].iov_len);
	return right(draw(2) ? readv(fd[R], v, 3) : writev(fd[W], v, 3), most);
}
static bool op_send(void)
{
	static const int flags[] = { 0, MSG_DONTWAIT, MSG_NOSIGNAL };
	unsigned n = draw(4) ? 1 + draw(3000) : 1 + draw(31000);
	return right(send(pair_end(), data, n, flags[draw(3)]), n);
}
static bool op_receive(void)
{
	static const int flags[] = { 0, MSG_DONTWAIT, MSG_PEEK, MSG_WAITALL, MSG_PEEK | MSG_DONTWAIT };
	unsigned n = length();
	return right(recv(pair_end(), data, n, flags[draw(5)]), n);
}
static bool op_message(void)
{
	struct iovec v[2] = { { data, draw(500) }, { data + 1000, 1 + draw(9000) } };
	struct msghdr m = { .msg_iov = v, .msg_iovlen = 2 };
	int64_t most = (int64_t)(v[0].iov_len + v[1].iov_len);
	return right(draw(2) ? recvmsg(pair_end(), &m, 0) : sendmsg(pair_end(), &m, 0), most);
}
static bool op_poll(void)
{
	struct pollfd p[FDS];
	unsigned n = 1 + draw(FDS);
	for (unsigned i = 0; i < n; i++)
		p[i] = (struct pollfd){ fd[draw(FDS)], (short)(1 + draw(4)), 0 };
	return right(poll(p, n, draw(4) ? (int)draw(50) : -1), n);
}
static bool op_select(void)
{
	fd_set r, w;
	FD_ZERO(&r);
	FD_ZERO(&w);
	for (int i = 0; i < FDS; i++) {
		if (draw(2))
			FD_SET(fd[i], &r);
		if (draw(2))
			FD_SET(fd[i], &w);
	}
	return right(select(fd[FDS - 1] + 1, &r, &w, NULL, NULL), 2 * FDS);
}
static bool op_epoll(void)
{
	struct epoll_event e = { .events = EPOLLIN | (draw(2) ? EPOLLOUT : 0) | (draw(2) ? (uint32_t)EPOLLET : 0) },
			   got[8];
	int one = pair_end();
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, one, &e) && errno == EEXIST)
		epoll_ctl(epoll, draw(2) ? EPOLL_CTL_MOD : EPOLL_CTL_DEL, one, &e);
	return right(epoll_wait(epoll, got, 8, draw(4) ? (int)draw(30) : -1), 8);
}
static bool op_count(void)
{
	int n = 0;
	return right(ioctl(fd[draw(FDS)], FIONREAD, &n), 0) && n >= 0;
}
static bool op_nonblock(void)
{
	int one = fd[draw(FDS)], flags = fcntl(one, F_GETFL);
	return right(fcntl(one, F_SETFL, draw(2) ? flags | O_NONBLOCK : flags & ~O_NONBLOCK), 0);
}
static bool op_dup(void)
{
	int copy = draw(8) ? dup(fd[draw(FDS)]) : fcntl(fd[draw(FDS)], F_DUPFD, KX_PIPE_FDS);
	return copy >= 0 ? close(copy) == 0 : errno == EINVAL || errno == EMFILE;
}
/* Its like is made anew at times: a plain one stays one. */
static bool op_plain(void)
{
	int on = 1, one = pair_end();
	return draw(2) ? right(setsockopt(one, SOL_SOCKET, SO_PASSCRED, &on, sizeof on), 0)
		       : right(fcntl(fd[draw(2)], F_SETPIPE_SZ, 65536), 1 << 20);
}
/* An end goes away in a message: data in the ring has to be moved before. */
static bool op_pass(void)
{
	int over[2], one = pair_end();
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} c = { .align = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
	struct iovec v = { "x", 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof c };
	memcpy(CMSG_DATA(&c.align), &one, sizeof one);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, over))
		return false;
	bool good = right(sendmsg(over[0], &m, 0), 1);
	return both_close(over) && good;
}
/* Pipes and pairs of one's own are none of the relative's business, but for their places in the memory. */
static bool op_own(void)
{
	int p[2];
	if (draw(2) ? pipe(p) : socketpair(AF_UNIX, SOCK_STREAM, 0, p))
		return false;
	return both_close(p);
}
static bool op_fork(void)
{
	pid_t p = fork();
	if (p == 0)
		_exit(draw(2) ? 0 : (int)(read(fd[STREAM], data, 0) & 0));
	return p < 0 ? errno == EAGAIN : fine(p);
}
static bool op_exec(void)
{
	char *argv[] = { "relative", "child", NULL }, *envp[] = { NULL };
	pid_t p;
	return !posix_spawn(&p, "/proc/self/exe", NULL, NULL, argv, envp) && fine(p);
}
static bool op_sem(void)
{
	struct sembuf op = { (unsigned short)draw(2), (short)((int)draw(3) - 1), draw(2) ? IPC_NOWAIT : 0 };
	struct timespec ts = { 0, 30000000 };
	return right(draw(2) ? semop(sem, &op, 1) : semtimedop(sem, &op, 1, &ts), 0);
}
static bool op_semctl(void)
{
	static const int what[] = { GETVAL, GETNCNT, GETPID, GETZCNT };
	return right(draw(4) ? semctl(sem, 0, what[draw(4)]) : semctl(sem, 0, SETVAL, 1), 1 << 30);
}
static bool op_msgsnd(void)
{
	message.type = 1 + draw(3);
	return right(msgsnd(queue, &message, draw(1000), draw(2) ? IPC_NOWAIT : 0), 0);
}
static bool op_msgrcv(void)
{
	size_t n = draw(sizeof message.text);
	return right(
		msgrcv(queue, &message, n, (long)draw(5) - 2, (draw(2) ? IPC_NOWAIT : 0) | (draw(2) ? MSG_NOERROR : 0)),
		(int64_t)n);
}
static bool op_msgctl(void)
{
	struct msqid_ds ds;
	struct msginfo info;
	return right(draw(8) ? msgctl(queue, IPC_STAT, &ds) : msgctl(0, MSG_INFO, (void *)&info), 1 << 30);
}
static bool op_mq(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_sec += draw(2);
	return draw(2) ? right(mq_timedsend(mq, message.text, draw(64), draw(3), &ts), 0)
		       : right(mq_timedreceive(mq, message.text, sizeof message.text, NULL, &ts), 64);
}
static bool op_mqattr(void)
{
	struct mq_attr a;
	return right(mq_getattr(mq, &a), 0);
}
static bool op_sigwait(void)
{
	sigset_t m;
	struct timespec ts = { 1, 0 };
	sigemptyset(&m);
	sigaddset(&m, SIGUSR1);
	sigaddset(&m, SIGTERM);
	kill(getpid(), SIGUSR1);
	int r = sigtimedwait(&m, NULL, &ts);
	return r == SIGUSR1 || r == SIGTERM || (r < 0 && may_fail(errno));
}

static const struct {
	const char *name;
	bool (*fn)(void);
	unsigned share; /* out of all shares */
} ops[] __attribute__((unused)) = {
	{ "read", op_read, 8 },
	{ "write", op_write, 8 },
	{ "vector", op_vector, 4 },
	{ "send", op_send, 12 },
	{ "receive", op_receive, 12 },
	{ "message", op_message, 6 },
	{ "poll", op_poll, 8 },
	{ "select", op_select, 4 },
	{ "epoll", op_epoll, 6 },
	{ "count", op_count, 4 },
	{ "nonblock", op_nonblock, 3 },
	{ "dup", op_dup, 3 },
	{ "plain", op_plain, 1 },
	{ "pass", op_pass, 1 },
	{ "own", op_own, 3 },
	{ "fork", op_fork, 2 },
	{ "exec", op_exec, 1 },
	{ "sem", op_sem, 8 },
	{ "semctl", op_semctl, 3 },
	{ "msgsnd", op_msgsnd, 6 },
	{ "msgrcv", op_msgrcv, 6 },
	{ "msgctl", op_msgctl, 2 },
	{ "mq", op_mq, 6 },
	{ "mqattr", op_mqattr, 1 },
	{ "sigwait", op_sigwait, 2 },
};
#define OPS (sizeof ops / sizeof ops[0])
#endif
