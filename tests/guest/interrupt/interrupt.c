/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How each call that sleeps is interrupted or restarted by a signal of another process, with and without SA_RESTART
 * (signal(7)), and what a stop does to it. Passes on any x86-64 Linux. Arguments: names of groups (all without). The
 * exit code is the number of the first check that failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../asleep.h"
#include "../check.h"
#include "../children.h"
#include "../groups.h"
#include "../hits.h"

static char dir[128];

enum {
	C_READ,
	C_READV,
	C_WRITE,
	C_WRITEV,
	C_OPEN_FIFO,
	C_WAIT4,
	C_WAITID,
	C_WAITID_PIDFD,
	C_ACCEPT,
	C_CONNECT,
	C_RECV,
	C_RECVMSG,
	C_SEND,
	C_SENDMSG,
	C_RECV_TIMEO,
	C_SEND_TIMEO,
	C_READ_TIMEO,
	C_ACCEPT_TIMEO,
	C_FLOCK,
	C_SETLKW,
	C_OFD_SETLKW,
	C_MQ_RECEIVE,
	C_MQ_SEND,
	C_FUTEX,
	C_FUTEX_TIMED,
	C_SEM_WAIT,
	C_EVENTFD,
	C_TIMERFD,
	C_INOTIFY,
	C_SIGNALFD,
	C_PTY,
	C_SPLICE,
	C_PAUSE,
	C_SIGSUSPEND,
	C_SIGTIMEDWAIT,
	C_SIGWAITINFO,
	C_POLL,
	C_PPOLL,
	C_SELECT,
	C_PSELECT,
	C_EPOLL,
	C_EPOLL_PWAIT,
	C_MSGRCV,
	C_MSGSND,
	C_SEMOP,
	C_SEMTIMEDOP,
	C_NANOSLEEP,
	C_CLOCK_NANOSLEEP,
	C_CLOCK_NANOSLEEP_ABS,
	NR_CALLS
};

/* restarts: with SA_RESTART. Without it, all end with EINTR. */
static const struct {
	const char *name;
	bool restarts;
} calls[NR_CALLS] = {
	[C_READ] = { "read, pipe", true },
	[C_READV] = { "readv, pipe", true },
	[C_WRITE] = { "write, pipe", true },
	[C_WRITEV] = { "writev, pipe", true },
	[C_OPEN_FIFO] = { "open, FIFO", true },
	[C_WAIT4] = { "wait4", true },
	[C_WAITID] = { "waitid", true },
	[C_WAITID_PIDFD] = { "waitid, pidfd", true },
	[C_ACCEPT] = { "accept", true },
	[C_CONNECT] = { "connect", true },
	[C_RECV] = { "recv", true },
	[C_RECVMSG] = { "recvmsg", true },
	[C_SEND] = { "send", true },
	[C_SENDMSG] = { "sendmsg", true },
	[C_RECV_TIMEO] = { "recv, SO_RCVTIMEO", false },
	[C_SEND_TIMEO] = { "send, SO_SNDTIMEO", false },
	[C_READ_TIMEO] = { "read, SO_RCVTIMEO", false },
	[C_ACCEPT_TIMEO] = { "accept, SO_RCVTIMEO", false },
	[C_FLOCK] = { "flock", true },
	[C_SETLKW] = { "fcntl, F_SETLKW", true },
	[C_OFD_SETLKW] = { "fcntl, F_OFD_SETLKW", true },
	[C_MQ_RECEIVE] = { "mq_receive", true },
	[C_MQ_SEND] = { "mq_send", true },
	[C_FUTEX] = { "futex", true },
	[C_FUTEX_TIMED] = { "futex, timeout", false },
	[C_SEM_WAIT] = { "sem_wait", true },
	[C_EVENTFD] = { "read, eventfd", true },
	[C_TIMERFD] = { "read, timerfd", true },
	[C_INOTIFY] = { "read, inotify", true },
	[C_SIGNALFD] = { "read, signalfd", true },
	[C_PTY] = { "read, terminal", true },
	[C_SPLICE] = { "splice", true },
	[C_PAUSE] = { "pause", false },
	[C_SIGSUSPEND] = { "sigsuspend", false },
	[C_SIGTIMEDWAIT] = { "sigtimedwait", false },
	[C_SIGWAITINFO] = { "sigwaitinfo", false },
	[C_POLL] = { "poll", false },
	[C_PPOLL] = { "ppoll", false },
	[C_SELECT] = { "select", false },
	[C_PSELECT] = { "pselect", false },
	[C_EPOLL] = { "epoll_wait", false },
	[C_EPOLL_PWAIT] = { "epoll_pwait", false },
	[C_MSGRCV] = { "msgrcv", false },
	[C_MSGSND] = { "msgsnd", false },
	[C_SEMOP] = { "semop", false },
	[C_SEMTIMEDOP] = { "semtimedop", false },
	[C_NANOSLEEP] = { "nanosleep", false },
	[C_CLOCK_NANOSLEEP] = { "clock_nanosleep", false },
	[C_CLOCK_NANOSLEEP_ABS] = { "clock_nanosleep, absolute", false },
};

/* What a call needs; made by prepare() in the process that makes the call and its helper. */
static int fds[2], fd2, listener, ids[2];
static char path[200];
static struct sockaddr_un addr;
static socklen_t addr_len;
static mqd_t mq;
static pid_t kid;
static struct {
	long type;
	char data[4000];
} msg;

static void fill(int fd)
{
	static char big[65536];
	fcntl(fd, F_SETFL, O_NONBLOCK);
	while (write(fd, big, sizeof big) > 0)
		;
	while (write(fd, big, 1) > 0)
		;
	/* In a pVM the ring of a socket pair is full now; whoever uses more than write() has the host's buffer besides. */
	while (sendmsg(fd, &(struct msghdr){ .msg_iov = &(struct iovec){ big, 1 }, .msg_iovlen = 1 }, MSG_NOSIGNAL) > 0)
		;
	fcntl(fd, F_SETFL, 0);
}

static void timeout_opt(int fd, int opt)
{
	struct timeval tv = { 20, 0 };
	setsockopt(fd, SOL_SOCKET, opt, &tv, sizeof tv);
}

static void listen_at(int backlog)
{
	addr = (struct sockaddr_un){ .sun_family = AF_UNIX };
	addr_len = sizeof(sa_family_t) + 1 + snprintf(addr.sun_path + 1, 90, "interrupt-%d", getpid());
	listener = socket(AF_UNIX, SOCK_STREAM, 0);
	NEED(bind(listener, (void *)&addr, addr_len) == 0 && listen(listener, backlog) == 0);
}

static void prepare(int k)
{
	snprintf(path, sizeof path, "%s/f%d", dir, k);
	switch (k) {
	case C_READ:
	case C_READV:
	case C_POLL:
	case C_PPOLL:
	case C_SELECT:
	case C_PSELECT:
	case C_EPOLL:
	case C_EPOLL_PWAIT:
	case C_SPLICE:
		NEED(pipe(fds) == 0);
		fd2 = k == C_SPLICE ? open("/dev/null", O_WRONLY) : epoll_create1(0);
		struct epoll_event ev = { .events = EPOLLIN };
		if (k != C_SPLICE)
			epoll_ctl(fd2, EPOLL_CTL_ADD, fds[0], &ev);
		break;
	case C_WRITE:
	case C_WRITEV:
		NEED(pipe(fds) == 0);
		fill(fds[1]);
		break;
	case C_OPEN_FIFO:
		unlink(path);
		NEED(mkfifo(path, 0600) == 0);
		break;
	case C_WAIT4:
	case C_WAITID:
	case C_WAITID_PIDFD:
		s[7] = 0;
		kid = FORK(until(&s[7], 1));
		fd2 = (int)syscall(SYS_pidfd_open, kid, 0);
		break;
	case C_ACCEPT:
	case C_ACCEPT_TIMEO:
		listen_at(5);
		if (k == C_ACCEPT_TIMEO)
			timeout_opt(listener, SO_RCVTIMEO);
		break;
	case C_CONNECT: /* the backlog is full */
		listen_at(0);
		fd2 = socket(AF_UNIX, SOCK_STREAM, 0);
		NEED(connect(fd2, (void *)&addr, addr_len) == 0);
		break;
	case C_RECV:
	case C_RECVMSG:
	case C_RECV_TIMEO:
	case C_READ_TIMEO:
	case C_SEND:
	case C_SENDMSG:
	case C_SEND_TIMEO:
		NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
		if (k == C_SEND || k == C_SENDMSG)
			fill(fds[0]);
		if (k == C_RECV_TIMEO || k == C_READ_TIMEO)
			timeout_opt(fds[0], SO_RCVTIMEO);
		if (k == C_SEND_TIMEO)
			timeout_opt(fds[0], SO_SNDTIMEO), fill(fds[0]);
		break;
	case C_FLOCK:
	case C_SETLKW:
	case C_OFD_SETLKW: {
		struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
		fd2 = open(path, O_RDWR | O_CREAT, 0600);
		fds[0] = open(path, O_RDWR);
		s[7] = s[8] = 0;
		kid = FORK({
			int f = open(path, O_RDWR);
			NEED(k == C_FLOCK ? flock(f, LOCK_EX) == 0 : fcntl(f, F_SETLK, &l) == 0);
			s[8] = 1;
			until(&s[7], 1);
		});
		NEED(until(&s[8], 1));
		break;
	}
	case C_MQ_RECEIVE:
	case C_MQ_SEND: {
		struct mq_attr a = { .mq_maxmsg = 1, .mq_msgsize = 8 };
		char name[40];
		snprintf(name, sizeof name, "/interrupt%d", getpid());
		mq = mq_open(name, O_RDWR | O_CREAT, 0600, &a);
		NEED(mq >= 0);
		mq_unlink(name);
		if (k == C_MQ_SEND)
			NEED(mq_send(mq, "x", 1, 0) == 0);
		break;
	}
	case C_FUTEX:
	case C_FUTEX_TIMED:
	case C_SEM_WAIT:
		s[9] = 0;
		sem_init((sem_t *)(s + 32), 1, 0);
		break;
	case C_EVENTFD:
		fds[0] = eventfd(0, 0);
		break;
	case C_TIMERFD:
		fds[0] = timerfd_create(CLOCK_MONOTONIC, 0);
		break;
	case C_INOTIFY:
		fds[0] = inotify_init();
		NEED(inotify_add_watch(fds[0], dir, IN_CREATE) >= 0);
		break;
	case C_SIGNALFD:
	case C_SIGTIMEDWAIT:
	case C_SIGWAITINFO: {
		sigset_t set;
		sigemptyset(&set);
		sigaddset(&set, SIGUSR2);
		sigprocmask(SIG_BLOCK, &set, NULL);
		fds[0] = signalfd(-1, &set, 0);
		break;
	}
	case C_PTY:
		fds[1] = posix_openpt(O_RDWR | O_NOCTTY);
		NEED(fds[1] >= 0 && grantpt(fds[1]) == 0 && unlockpt(fds[1]) == 0);
		fds[0] = open(ptsname(fds[1]), O_RDWR | O_NOCTTY);
		NEED(fds[0] >= 0);
		break;
	case C_MSGRCV:
	case C_MSGSND:
		ids[0] = msgget(IPC_PRIVATE, 0600);
		msg.type = 1;
		if (k == C_MSGSND)
			while (msgsnd(ids[0], &msg, sizeof msg.data, IPC_NOWAIT) == 0)
				;
		break;
	case C_SEMOP:
	case C_SEMTIMEDOP:
		ids[1] = semget(IPC_PRIVATE, 1, 0600);
		break;
	}
}

static long make_call(int k)
{
	char c[8];
	struct iovec v = { c, 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	struct sembuf down = { 0, -1, 0 };
	struct timespec ts = { 20, 0 };
	struct timeval tv = { 20, 0 };
	struct pollfd p = { fds[0], POLLIN, 0 };
	struct epoll_event ev;
	siginfo_t i;
	fd_set set;
	sigset_t mask, usr2;
	uint64_t n;
	static char buf[4096];
	sigemptyset(&mask);
	sigemptyset(&usr2);
	sigaddset(&usr2, SIGUSR2);
	switch (k) {
	case C_READ:
	case C_READ_TIMEO:
	case C_PTY:
		return read(fds[0], c, 1);
	case C_READV:
		return readv(fds[0], &v, 1);
	case C_WRITE:
		return write(fds[1], c, 1);
	case C_WRITEV:
		return writev(fds[1], &v, 1);
	case C_OPEN_FIFO:
		return open(path, O_RDONLY);
	case C_WAIT4:
		return wait4(kid, NULL, 0, NULL);
	case C_WAITID:
		return waitid(P_PID, kid, &i, WEXITED);
	case C_WAITID_PIDFD:
		return waitid(3, fd2, &i, WEXITED);
	case C_ACCEPT:
	case C_ACCEPT_TIMEO:
		return accept(listener, NULL, NULL);
	case C_CONNECT: {
		int f = socket(AF_UNIX, SOCK_STREAM, 0);
		return connect(f, (void *)&addr, addr_len);
	}
	case C_RECV:
	case C_RECV_TIMEO:
		return recv(fds[0], c, 1, 0);
	case C_RECVMSG:
		return recvmsg(fds[0], &m, 0);
	case C_SEND:
	case C_SEND_TIMEO:
		return send(fds[0], c, 1, 0);
	case C_SENDMSG:
		return sendmsg(fds[0], &m, 0);
	case C_FLOCK:
		return flock(fd2, LOCK_EX);
	case C_SETLKW:
		return fcntl(fd2, F_SETLKW, &l);
	case C_OFD_SETLKW:
		return fcntl(fds[0], F_OFD_SETLKW, &l);
	case C_MQ_RECEIVE:
		return mq_receive(mq, c, 8, NULL);
	case C_MQ_SEND:
		return mq_send(mq, "y", 1, 0);
	case C_FUTEX:
	case C_FUTEX_TIMED:
		return syscall(SYS_futex, &s[9], FUTEX_WAIT, 0, k == C_FUTEX ? NULL : &ts, NULL, 0);
	case C_SEM_WAIT:
		return sem_wait((sem_t *)(s + 32));
	case C_EVENTFD:
	case C_TIMERFD:
		return read(fds[0], &n, 8);
	case C_INOTIFY:
	case C_SIGNALFD:
		return read(fds[0], buf, sizeof buf);
	case C_SPLICE:
		return splice(fds[0], NULL, fd2, NULL, 1, 0);
	case C_PAUSE:
		return pause();
	case C_SIGSUSPEND:
		return sigsuspend(&mask);
	case C_SIGTIMEDWAIT:
		return sigtimedwait(&usr2, &i, &ts);
	case C_SIGWAITINFO:
		return sigwaitinfo(&usr2, &i);
	case C_POLL:
		return poll(&p, 1, 20000);
	case C_PPOLL:
		return ppoll(&p, 1, &ts, &mask);
	case C_SELECT:
	case C_PSELECT:
		FD_ZERO(&set);
		FD_SET(fds[0], &set);
		return k == C_SELECT ? select(fds[0] + 1, &set, NULL, NULL, &tv)
				     : pselect(fds[0] + 1, &set, NULL, NULL, &ts, &mask);
	case C_EPOLL:
		return epoll_wait(fd2, &ev, 1, 20000);
	case C_EPOLL_PWAIT:
		return epoll_pwait(fd2, &ev, 1, -1, &mask);
	case C_MSGRCV:
		return msgrcv(ids[0], &msg, sizeof msg.data, 0, 0);
	case C_MSGSND:
		return msgsnd(ids[0], &msg, sizeof msg.data, 0);
	case C_SEMOP:
		return semop(ids[1], &down, 1);
	case C_SEMTIMEDOP:
		return semtimedop(ids[1], &down, 1, &ts);
	case C_NANOSLEEP:
		return nanosleep(&ts, NULL);
	case C_CLOCK_NANOSLEEP:
		errno = clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
		return errno ? -1 : 0;
	case C_CLOCK_NANOSLEEP_ABS:
		clock_gettime(CLOCK_MONOTONIC, &ts);
		ts.tv_sec += 20;
		errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
		return errno ? -1 : 0;
	}
	return -1;
}

/* In the helper, which has inherited everything: let the call end well. */
static void satisfy(int k, pid_t caller)
{
	char c[8];
	static char big[65536];
	struct sembuf up = { 0, 1, 0 };
	struct itimerspec soon = { { 0, 0 }, { 0, 1 } };
	uint64_t one = 1;
	switch (k) {
	case C_READ:
	case C_READV:
	case C_SPLICE:
		NEED(write(fds[1], "x", 1) == 1);
		break;
	case C_PTY:
		NEED(write(fds[1], "x\n", 2) == 2);
		break;
	case C_WRITE:
	case C_WRITEV:
		NEED(read(fds[0], big, sizeof big) > 0);
		break;
	case C_OPEN_FIFO:
		NEED(open(path, O_WRONLY) >= 0);
		break;
	case C_WAIT4:
	case C_WAITID:
	case C_WAITID_PIDFD:
	case C_FLOCK:
	case C_SETLKW:
	case C_OFD_SETLKW:
		s[7] = 1;
		break;
	case C_ACCEPT:
		NEED(connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&addr, addr_len) == 0);
		break;
	case C_CONNECT:
		NEED(accept(listener, NULL, NULL) >= 0);
		break;
	case C_RECV:
	case C_RECVMSG:
		NEED(send(fds[1], "x", 1, 0) == 1);
		break;
	case C_SEND:
	case C_SENDMSG:
		fcntl(fds[1], F_SETFL, O_NONBLOCK);
		while (read(fds[1], big, sizeof big) > 0)
			;
		break;
	case C_MQ_RECEIVE:
		NEED(mq_send(mq, "x", 1, 0) == 0);
		break;
	case C_MQ_SEND:
		NEED(mq_receive(mq, c, 8, NULL) == 1);
		break;
	case C_FUTEX:
		asleep(caller, caller); /* it would see the value, and not sleep */
		s[9] = 1;
		syscall(SYS_futex, &s[9], FUTEX_WAKE, 1, NULL, NULL, 0);
		break;
	case C_SEM_WAIT:
		sem_post((sem_t *)(s + 32));
		break;
	case C_EVENTFD:
		NEED(write(fds[0], &one, 8) == 8);
		break;
	case C_TIMERFD:
		timerfd_settime(fds[0], 0, &soon, NULL);
		break;
	case C_INOTIFY: {
		char name[240];
		snprintf(name, sizeof name, "%s/made%d", dir, getpid());
		close(open(name, O_CREAT | O_WRONLY, 0600));
		unlink(name);
		break;
	}
	case C_SIGNALFD:
		kill(caller, SIGUSR2);
		break;
	case C_SEMOP:
		semop(ids[1], &up, 1);
		break;
	}
}

/*
 * The call in a process of its own. A helper, another process, signals it until the call is over when EINTR is due;
 * else three times, and then lets the call end.
 */
static int one_call(int k, bool restart)
{
	bool ends_well = restart && calls[k].restarts;
	pid_t me = getpid();
	prepare(k);
	on(SIGUSR1, restart ? SA_RESTART : 0);
	s[3] = s[4] = 0;
	pid_t helper = FORK({
		until(&s[3], 1);
		for (int n = 0; n < (ends_well ? 3 : 10000) && !s[4]; n++) {
			ms(8);
			kill(me, SIGUSR1);
		}
		ms(4);
		if (ends_well)
			satisfy(k, me);
	});
	s[3] = 1;
	errno = 0;
	long r = make_call(k);
	int e = r < 0 ? errno : 0;
	s[4] = 1;
	int st = status_of(helper);
	s[7] = 1;
	if (k == C_MSGRCV || k == C_MSGSND)
		msgctl(ids[0], IPC_RMID, NULL);
	if (k == C_SEMOP || k == C_SEMTIMEDOP)
		semctl(ids[1], 0, IPC_RMID);
	if (kid && k != C_WAIT4)
		waitpid(kid, NULL, 0);
	if (ends_well ? r < 0 || hits[SIGUSR1] < 1 : e != EINTR) {
		dprintf(2, "  %s, %s SA_RESTART: %ld, %s, %d handlers\n", calls[k].name, restart ? "with" : "without",
			r, strerror(e), hits[SIGUSR1]);
		return 1;
	}
	return st != 0;
}

static void sleeping(void)
{
	for (int k = 0; k < NR_CALLS; k++) {
		bool a = fine(FORK(_exit(one_call(k, false)))), b = fine(FORK(_exit(one_call(k, true))));
		check(a && b, calls[k].name);
	}
}

/* Stopped and continued, without a handler: what the call does then is known of these. */
static void stopped(void)
{
	static const struct {
		int call;
		bool eintr;
	} all[] = { { C_READ, false },        { C_WAIT4, false },      { C_ACCEPT, false },     { C_RECV, false },
		    { C_FUTEX, false },       { C_SEM_WAIT, false },   { C_MQ_RECEIVE, false }, { C_FLOCK, false },
		    { C_SETLKW, false },      { C_POLL, false },       { C_SELECT, false },     { C_NANOSLEEP, false },
		    { C_PAUSE, false },       { C_SIGSUSPEND, false }, { C_EPOLL, true },       { C_SEMOP, true },
		    { C_SIGTIMEDWAIT, true }, { C_RECV_TIMEO, true },  { C_MSGRCV, false } };
	for (unsigned k = 0; k < sizeof all / sizeof all[0]; k++) {
		s[5] = s[6] = 0;
		pid_t p = FORK({
			prepare(all[k].call);
			on(SIGUSR1, 0);
			s[5] = 1;
			long r = make_call(all[k].call);
			s[6] = r < 0 && errno == EINTR ? 1 : 2;
			if (all[k].call == C_MSGRCV)
				msgctl(ids[0], IPC_RMID, NULL);
			if (all[k].call == C_SEMOP)
				semctl(ids[1], 0, IPC_RMID);
			s[7] = 1;
		});
		siginfo_t i;
		until(&s[5], 1);
		for (int n = 0; n < (all[k].eintr ? 3000 : 3) && !s[6]; n++) {
			ms(10);
			kill(p, SIGSTOP);
			if (waitid(P_PID, p, &i, WSTOPPED | WEXITED | WNOWAIT) || i.si_code != CLD_STOPPED)
				break;
			kill(p, SIGCONT);
			ms(10);
		}
		char name[100];
		snprintf(name, sizeof name, "stopped and continued: %s%s", calls[all[k].call].name,
			 all[k].eintr ? " is EINTR" : " goes on");
		bool good = s[6] == (all[k].eintr ? 1 : 0);
		for (int n = 0; n < 12000 && !s[6]; n++) {
			kill(p, SIGUSR1);
			ms(5);
		}
		check(fine(p) && good && s[6] == 1, name);
	}
}
int main(int argc, char **argv)
{
	static const struct group all[] = { { "sleeping", sleeping }, { "stopped", stopped } };
	setvbuf(stdout, NULL, _IOLBF, 0);
	const char *tmp = getenv("TMPDIR");
	snprintf(dir, sizeof dir, "%s/interrupt-XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(dir))
		return 251;
	s = mmap(NULL, GROUPS_WORDS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	groups_run(all, sizeof all / sizeof all[0], argc, argv, s);
	char cmd[200];
	snprintf(cmd, sizeof cmd, "rm -rf %s", dir);
	if (system(cmd))
		return 252;
	return verdict();
}
