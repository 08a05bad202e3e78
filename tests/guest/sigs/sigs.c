/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A server whose processes wake each other by signals, as PostgreSQL's: kill() to another, a signalfd in an epoll of its own.
 * Where neither takes an exit of its own, all that can be seen must be as it was: when the signal is there, who is gone, what
 * is pending. Passes on any Linux. Exit code: 0, or 1 + the number of the first check that failed (at most 120).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../clock.h"
#include "../counted.h"

/* ---- the others: what memory says they do, and they tell by memory, without a call of the server's ------------------- */

enum {
	KILL = 1, /* send signal `arg` to the server */
	PENDING,  /* which signal is pending here? */
	BYTE,     /* the same once a byte has come by the pipe */
	BEAR,     /* make a child that sleeps */
	BURY,     /* kill it and wait for it */
	CONNECT,
	SEND,
	RECV,
	RESET,
	END,
	QUIT
};
static volatile struct {
	int asked, done, what, arg, r;
	pid_t from, server, child;
	volatile int handled;
} * other;
static struct sockaddr_in addr;
static int to_other[2];

static void on_signal(int s)
{
	(void)s;
	other->handled++;
}

static int pending(void)
{
	static const struct timespec now = { 0, 0 };
	siginfo_t info;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	int r = sigtimedwait(&set, &info, &now);
	other->from = r > 0 ? info.si_pid : 0;
	return r;
}

static int obey(int *fd)
{
	struct tcp_info info;
	socklen_t len = sizeof info;
	char b[64];
	pid_t p;
	int left;
	switch (other->what) {
	case KILL:
		return kill(other->server, other->arg);
	case BYTE:
		if (read(to_other[0], b, 1) != 1)
			return -1;
		return pending();
	case PENDING:
		return pending();
	case BEAR:
		p = fork();
		if (!p) {
			signal(SIGUSR2, SIG_IGN);
			for (;;)
				pause();
		}
		other->child = p;
		return 0;
	case BURY:
		kill(other->child, SIGKILL);
		return waitpid(other->child, NULL, 0);
	case CONNECT:
		*fd = socket(AF_INET, SOCK_STREAM, 0);
		return connect(*fd, (void *)&addr, sizeof addr);
	case SEND:
		p = (pid_t)send(*fd, "0123456789", (size_t)other->arg, MSG_NOSIGNAL);
		while (!ioctl(*fd, SIOCOUTQ, &left) && left) /* until it is there */
			usleep(100);
		return p;
	case RECV:
		return (int)recv(*fd, b, sizeof b, 0);
	case RESET:
		setsockopt(*fd, SOL_SOCKET, SO_LINGER, &(struct linger){ 1, 0 }, sizeof(struct linger));
		p = close(*fd);
		usleep(200000);
		return p;
	case END:
		shutdown(*fd, SHUT_WR);
		while (!getsockopt(*fd, IPPROTO_TCP, TCP_INFO, &info, &len) && info.tcpi_state == TCP_FIN_WAIT1)
			usleep(100);
		return close(*fd);
	}
	return -1;
}

static void run_other(void)
{
	int fd = -1;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGUSR2, on_signal);
	alarm(300);
	for (int seen = 0;;) {
		int now = __atomic_load_n(&other->asked, __ATOMIC_ACQUIRE);
		if (now == seen) {
			struct timespec ts = { 0, 50000 };
			nanosleep(&ts, NULL);
			continue;
		}
		if (other->what == QUIT)
			_exit(0);
		other->r = obey(&fd);
		seen = now;
		__atomic_store_n(&other->done, seen, __ATOMIC_RELEASE);
	}
}

/* Without a call. */
static int tell(int what, int arg)
{
	other->what = what;
	other->arg = arg;
	int mine = other->asked + 1;
	__atomic_store_n(&other->asked, mine, __ATOMIC_RELEASE);
	while (__atomic_load_n(&other->done, __ATOMIC_ACQUIRE) != mine)
		__builtin_ia32_pause();
	return other->r;
}

/* ---- the server -------------------------------------------------------------------------------------------------- */

static int lsock, of_conns, of_signals, sfd;
static pid_t q; /* the other */
static struct epoll_event evs[8];

static void in_epoll(int epfd, int fd, uint32_t events)
{
	struct epoll_event ev = { events, { .u64 = (uint64_t)fd } };
	check(!epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev), "EPOLL_CTL_ADD");
}

static int conn(void)
{
	tell(CONNECT, 0);
	int fd = accept4(lsock, NULL, NULL, SOCK_NONBLOCK);
	check(fd >= 0, "a connection");
	in_epoll(of_conns, fd, EPOLLIN);
	return fd;
}

/* A request and its answer. */
static bool turn(int c)
{
	char b[64];
	if (tell(SEND, 4) != 4 || epoll_wait(of_conns, evs, 8, 60000) != 1 || recv(c, b, sizeof b, 0) != 4)
		return false;
	return send(c, "done", 4, MSG_NOSIGNAL) == 4 && recv(c, b, sizeof b, 0) == -1 && errno == EAGAIN;
}

static bool turns(int c, int n)
{
	while (n-- > 0) {
		if (!turn(c) || epoll_wait(of_conns, evs, 8, 0) != 0 || tell(RECV, 0) != 4)
			return false;
	}
	return true;
}

/* Somebody whom a signal was sent to before, and an exit since then. */
static bool known(int c, pid_t pid, int signo) { return !kill(pid, signo) && turns(c, 1); }

static void test_sending(int c)
{
	bool ok = known(c, q, SIGUSR1) && tell(PENDING, 0) == SIGUSR1 && other->from == getpid();
	check(ok, "kill: by a call");
	for (int i = 0; i < 40 && ok; i++) {
		ok = turn(c) && !kill(q, SIGUSR1) && epoll_wait(of_conns, evs, 8, 0) == 0 &&
		     tell(PENDING, 0) == SIGUSR1 && other->from == getpid() && tell(RECV, 0) == 4;
		ok = ok && tell(PENDING, 0) == -1;
	}
	check(ok, "kill: is done when the next call is");
	for (int i = 0; i < 10 && ok; i++) {
		int before = other->handled;
		ok = turns(c, 1) && !kill(q, SIGUSR2);
		for (int64_t end = now_ms() + 60000; ok && other->handled == before;)
			ok = now_ms() < end;
	}
	check(ok, "kill: arrives though no call follows");
	for (int i = 0; i < 10 && ok; i++)
		ok = turns(c, 1) && !kill(q, SIGUSR1) && write(to_other[1], "x", 1) == 1 && tell(BYTE, 0) == SIGUSR1;
	check(ok, "kill: is before a byte by a pipe");
	for (int i = 0; i < 10 && ok; i++) {
		ok = turns(c, 1) && !kill(q, SIGUSR1) && !kill(q, SIGUSR1) && !kill(q, SIGUSR1);
		ok = ok && turns(c, 1) && tell(PENDING, 0) == SIGUSR1 && tell(PENDING, 0) == -1;
	}
	check(ok, "kill: one is pending, however many were sent");
	known(c, q, SIGUSR1);
	fails(kill(q, 65), EINVAL, "kill: signal 65");
	known(c, q, SIGUSR1);
	fails(kill(q, -1), EINVAL, "kill: signal -1");
	check(known(c, q, SIGUSR1) && !kill(q, 0), "kill: signal 0");
	turns(c, 1);
	tell(PENDING, 0);

	/* A child of its own. */
	for (int i = 0; i < 3; i++) {
		pid_t p = fork();
		if (!p) {
			for (;;)
				pause();
		}
		siginfo_t info;
		int st;
		check(known(c, p, SIGURG) && known(c, p, SIGURG) && !kill(p, SIGTERM) &&
			      !waitid(P_PID, (id_t)p, &info, WEXITED | WNOWAIT),
		      "a child is ended by a signal");
		check(!kill(p, SIGURG) && !kill(p, SIGTERM), "kill: of a zombie");
		check(waitpid(p, &st, 0) == p && WIFSIGNALED(st) && WTERMSIG(st) == SIGTERM, "and waited for");
		fails(kill(p, SIGURG), ESRCH, "kill: of one that was waited for");
	}
	/* Of another's, who tells by memory alone that it is gone. */
	for (int i = 0; i < 10; i++) {
		tell(BEAR, 0);
		ok &= known(c, other->child, SIGUSR2) && known(c, other->child, SIGUSR2) &&
		      !kill(other->child, SIGUSR2);
		ok &= tell(BURY, 0) == other->child;
		ok &= kill(other->child, SIGUSR2) == -1 && errno == ESRCH;
	}
	check(ok, "kill: of one that another has waited for");
	/* Itself. */
	int before = other->handled;
	signal(SIGUSR2, on_signal);
	for (int i = 0; i < 3; i++)
		ok &= turns(c, 1) && !kill(getpid(), SIGUSR2) && other->handled == before + 1 + i;
	check(ok, "kill: of itself is done at once");
}

static bool is_urgent(const struct signalfd_siginfo *i, pid_t from)
{
	return i->ssi_signo == SIGURG && i->ssi_code == SI_USER && i->ssi_pid == (uint32_t)from &&
	       i->ssi_uid == getuid();
}

static bool reads(int fd, size_t room, int n)
{
	struct signalfd_siginfo info[8] = { 0 };
	ssize_t r = read(fd, info, room);
	if (r != n * (ssize_t)sizeof info[0]) {
		printf("# read %zd (errno %d), not %d signals\n", r, errno, n);
		return false;
	}
	return n <= 0 || is_urgent(&info[0], q);
}

static bool nothing(int fd)
{
	struct signalfd_siginfo info[8];
	return read(fd, info, sizeof info) == -1 && errno == EAGAIN;
}

/* A wait that the other ends by SIGURG. */
static bool woken(int c)
{
	return turns(c, 1) && !tell(KILL, SIGURG) && epoll_wait(of_signals, evs, 8, 60000) == 1 &&
	       evs[0].data.u64 == (uint64_t)sfd;
}

static bool often(int c)
{
	for (int i = 0; i < 4; i++)
		if (!woken(c) || !reads(sfd, 1024, 1) || !nothing(sfd))
			return false;
	return true;
}

static volatile pid_t urgent_from;
static void on_urgent(int s, siginfo_t *info, void *context)
{
	(void)s;
	(void)context;
	urgent_from = info->si_pid;
}

static void test_signalfd(int c)
{
	sigset_t set, was;
	siginfo_t info;
	struct timespec none = { 0, 0 };
	char b[64];
	sigemptyset(&set);
	sigaddset(&set, SIGURG);
	sigprocmask(SIG_BLOCK, &set, NULL);
	sigaddset(&set, SIGUSR1);
	sfd = signalfd(-1, &set, SFD_NONBLOCK);
	of_signals = epoll_create1(0);
	in_epoll(of_signals, sfd, EPOLLIN);
	sigprocmask(SIG_BLOCK, &set, NULL);
	bool ok = true;
	for (int i = 0; i < 20 && ok; i++)
		ok = woken(c) && reads(sfd, 1024, 1) && (i % 3 || nothing(sfd));
	check(ok, "signalfd: wait and read");
	for (int i = 0; i < 3; i++) {
		ok = often(c) && woken(c) && !sigpending(&was) && sigismember(&was, SIGURG) == 1 && reads(sfd, 1024, 1);
		check(ok, "signalfd: pending until it is read");
		ok = often(c) && woken(c) && reads(sfd, 1024, 1) && !sigpending(&was) && sigismember(&was, SIGURG) == 0;
		check(ok, "signalfd: not pending when it was read");
		ok = often(c) && woken(c) && epoll_wait(of_signals, evs, 8, 0) == 1 && reads(sfd, 1024, 1) &&
		     epoll_wait(of_signals, evs, 8, 0) == 0;
		check(ok, "signalfd: told of until it is read");
		ok = often(c) && woken(c) && sigtimedwait(&set, &info, &none) == SIGURG && info.si_pid == q &&
		     info.si_code == SI_USER && nothing(sfd);
		check(ok, "signalfd: taken by sigtimedwait");
		struct sigaction act = { .sa_sigaction = on_urgent, .sa_flags = SA_SIGINFO },
				 dfl = { .sa_handler = SIG_DFL };
		urgent_from = 0;
		ok = often(c);
		sigaction(SIGURG, &act, NULL);
		ok = ok && woken(c) && !sigprocmask(SIG_UNBLOCK, &set, NULL) && urgent_from == q &&
		     !sigprocmask(SIG_BLOCK, &set, NULL) && nothing(sfd);
		check(ok, "signalfd: delivered when it is not blocked any more");
		ok = often(c) && woken(c) && !sigaction(SIGURG, &dfl, NULL) && nothing(sfd);
		check(ok, "signalfd: gone when it is ignored");
		ok = often(c) && woken(c) && read(sfd, b, sizeof b) == -1 && errno == EINVAL && reads(sfd, 1024, 1);
		check(ok, "signalfd: less than a record");
		ok = often(c) && woken(c) && reads(sfd, 128, 1) && nothing(sfd);
		check(ok, "signalfd: room for one record");
		int d = dup(sfd);
		ok = often(c) && woken(c) && reads(d, 1024, 1) && nothing(sfd);
		check(ok, "signalfd: by another number");
		close(d);
		ok = often(c) && turns(c, 1) && !tell(KILL, SIGUSR1) && !tell(KILL, SIGURG) &&
		     epoll_wait(of_signals, evs, 8, 60000) == 1;
		struct signalfd_siginfo two[8];
		ok = ok && read(sfd, two, sizeof two) == 2 * sizeof two[0] && two[0].ssi_signo == SIGUSR1 &&
		     two[1].ssi_signo == SIGURG && two[0].ssi_pid == (uint32_t)q && nothing(sfd);
		check(ok, "signalfd: two at once");
		ok = often(c) && woken(c);
		union sigval v = { .sival_int = 12345 };
		ok = ok && reads(sfd, 1024, 1) && !sigqueue(getpid(), SIGUSR1, v) &&
		     epoll_wait(of_signals, evs, 8, 60000) == 1 && !sigpending(&was) &&
		     sigismember(&was, SIGUSR1) == 1 && read(sfd, two, sizeof two) == sizeof two[0] &&
		     two[0].ssi_code == SI_QUEUE && two[0].ssi_int == 12345 && two[0].ssi_pid == (uint32_t)getpid();
		check(ok, "signalfd: what was queued with a value");
		ok = often(c) && woken(c);
		pid_t p = fork();
		if (!p)
			_exit(!nothing(sfd));
		int st;
		ok = ok && waitpid(p, &st, 0) == p && st == 0 && reads(sfd, 1024, 1);
		check(ok, "signalfd: a child has none of it");
		ok = often(c) && woken(c);
		close(sfd);
		ok = ok && !sigpending(&was) && sigismember(&was, SIGURG) == 1;
		check(ok, "signalfd: pending though it is closed");
		sfd = signalfd(-1, &set, SFD_NONBLOCK);
		in_epoll(of_signals, sfd, EPOLLIN);
		check(ok && reads(sfd, 1024, 1), "signalfd: by a new one");
	}
}

/* The other sends when this one waits elsewhere. */
static void test_elsewhere(int c)
{
	char b[64];
	bool ok = true;
	for (int i = 0; i < 10 && ok; i++) {
		ok = tell(SEND, 8) == 8 && epoll_wait(of_conns, evs, 8, 60000) == 1 && recv(c, b, 5, 0) == 5 &&
		     !memcmp(b, "01234", 5);
		for (int k = 0; k < i % 4; k++)
			ok = ok && !tell(KILL, SIGURG) && epoll_wait(of_signals, evs, 8, 60000) == 1 &&
			     reads(sfd, 1024, 1);
		ok = ok && recv(c, b, sizeof b, 0) == 3 && !memcmp(b, "567", 3) && recv(c, b, sizeof b, 0) == -1 &&
		     errno == EAGAIN;
		ok = ok && send(c, "answer", 6, 0) == 6 && epoll_wait(of_conns, evs, 8, 0) == 0 && tell(RECV, 0) == 6;
	}
	check(ok, "elsewhere: what was fetched before is read after it");
	for (int i = 0; i < 10 && ok; i++) {
		ok = tell(SEND, 4) == 4 && epoll_wait(of_conns, evs, 8, 60000) == 1 && recv(c, b, sizeof b, 0) == 4;
		for (int k = 0; k < i % 4; k++)
			ok = ok && !tell(KILL, SIGURG) && epoll_wait(of_signals, evs, 8, 60000) == 1 &&
			     reads(sfd, 1024, 1);
		ok = ok && tell(SEND, 7) == 7 && !tell(KILL, SIGURG) && epoll_wait(of_signals, evs, 8, 60000) == 1;
		ok = ok && recv(c, b, sizeof b, 0) == 7 && reads(sfd, 1024, 1) && epoll_wait(of_conns, evs, 8, 0) == 0;
	}
	check(ok, "elsewhere: what has come meanwhile is read");
	ok = ok && turns(c, 2) && tell(SEND, 4) == 4 && epoll_wait(of_conns, evs, 8, 60000) == 1 &&
	     recv(c, b, sizeof b, 0) == 4;
	ok = ok && !tell(KILL, SIGURG) && epoll_wait(of_signals, evs, 8, 60000) == 1 && reads(sfd, 1024, 1);
	ok = ok && !tell(RESET, 0) && !tell(KILL, SIGURG) && epoll_wait(of_signals, evs, 8, 60000) == 1;
	check(ok && send(c, "x", 1, MSG_NOSIGNAL) == -1 && errno == ECONNRESET,
	      "elsewhere: a reset is met by the next write");
	reads(sfd, 1024, 1);
	close(c);
	c = conn();
	ok = turns(c, 2) && tell(SEND, 4) == 4 && epoll_wait(of_conns, evs, 8, 60000) == 1 &&
	     recv(c, b, sizeof b, 0) == 4;
	ok = ok && !tell(END, 0) && !tell(KILL, SIGURG) && epoll_wait(of_signals, evs, 8, 60000) == 1 &&
	     reads(sfd, 1024, 1);
	check(ok && recv(c, b, sizeof b, 0) == 0, "elsewhere: an end that has come meanwhile is read");
	close(c);
}

static int serve(void)
{
	other->server = getpid();
	of_conns = epoll_create1(0);
	int c = conn();
	check(turns(c, 4), "turns");
	test_sending(c);
	test_signalfd(c);
	test_elsewhere(c);
	c = conn();
	check(turns(c, 2) && known(c, q, SIGUSR1) && tell(PENDING, 0) == SIGUSR1 && turns(c, 1), "the last turn");
	kill(q, SIGUSR1);
	_exit(first_failure);
}

int main(void)
{
	socklen_t len = sizeof addr;
	alarm(300);
	other = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	lsock = socket(AF_INET, SOCK_STREAM, 0);
	addr = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	if (pipe(to_other) || bind(lsock, (void *)&addr, sizeof addr) || listen(lsock, 8) ||
	    getsockname(lsock, (void *)&addr, &len))
		return 120;
	q = fork();
	if (!q)
		run_other();
	pid_t p = fork();
	int st;
	if (!p)
		serve();
	if (waitpid(p, &st, 0) != p || !WIFEXITED(st) || WEXITSTATUS(st)) {
		printf("the server: status %#x\n", st);
		kill(q, SIGKILL);
		return WIFEXITED(st) ? WEXITSTATUS(st) : 119;
	}
	check(tell(PENDING, 0) == SIGUSR1 && other->from == p, "kill: just before it ended");
	other->what = QUIT;
	__atomic_store_n(&other->asked, other->asked + 1, __ATOMIC_RELEASE);
	check(waitpid(q, &st, 0) == q && st == 0, "the other ends");
	return first_failure;
}
