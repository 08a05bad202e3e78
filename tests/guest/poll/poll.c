/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waiting for descriptors as a program sees it: poll, ppoll, select, pselect, epoll in all its modes, with pipes,
 * sockets, eventfd, timerfd and signalfd; timeouts, temporary signal masks, errors. Passes on any Linux; threads, no
 * fork. Exit code: 0, or 1 + the number of the first check that failed (at most 120).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#include "../asleep.h"
#include "../counted.h"

#define MS 1000000LL
#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif

static int64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 * MS + ts.tv_nsec;
}

static void sleep_ms(int ms)
{
	struct timespec ts = { ms / 1000, ms % 1000 * MS };

	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

/* Not early; late only if grossly. */
static bool took(int64_t since, int ms)
{
	int64_t t = now() - since;
	return t >= ms * MS && t < ms * MS + 60000 * MS;
}

static void close2(int fds[2])
{
	close(fds[0]);
	close(fds[1]);
}

/* A descriptor that is closed. */
static int closed_fd(void)
{
	int fd = eventfd(0, 0);

	close(fd);
	return fd;
}

/* ---- a thread that does something a little later ------------------------------------------------------------- */

struct later {
	pthread_t th, who;
	int write_fd, signo; /* -1, 0: not */
};

static void *later_main(void *arg)
{
	struct later *l = arg;

	asleep(getpid(), getpid());
	if (l->signo)
		pthread_kill(l->who, l->signo);
	if (l->signo && l->write_fd >= 0)
		sleep_ms(60);
	if (l->write_fd >= 0 && write(l->write_fd, "12345678", 8) != 8)
		return (void *)1;
	return NULL;
}

static void later(struct later *l, int write_fd, int signo)
{
	l->who = pthread_self();
	l->write_fd = write_fd;
	l->signo = signo;
	pthread_create(&l->th, NULL, later_main, l);
}

static void joined(struct later *l) { pthread_join(l->th, NULL); }

static volatile sig_atomic_t nr_signals;

static void on_signal(int signo)
{
	(void)signo;
	nr_signals++;
}

static void handler(int flags)
{
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = flags };

	sigaction(SIGUSR1, &sa, NULL);
	nr_signals = 0;
}

static void block(int how)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(how, &set, NULL);
}

static bool is_blocked(void)
{
	sigset_t set;

	pthread_sigmask(SIG_BLOCK, NULL, &set);
	return sigismember(&set, SIGUSR1);
}

/* ---- poll, ppoll ------------------------------------------------------------------------------------------------ */

static void test_poll(void)
{
	int pf[2], sv[2];
	struct later l;
	char buf[16];

	check(pipe(pf) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, sv) == 0, "pipe, socketpair");
	struct pollfd p[4] = {
		{ pf[0], POLLIN, -1 }, { pf[1], POLLOUT, -1 }, { -1, POLLIN, -1 }, { sv[0], POLLIN | POLLOUT, -1 }
	};
	check(poll(p, 4, 0) == 2 && p[0].revents == 0 && p[1].revents == POLLOUT && p[2].revents == 0 &&
		      p[3].revents == POLLOUT,
	      "poll at once");
	check(p[0].events == POLLIN && p[2].fd == -1, "events stay");
	int64_t t = now();
	check(poll(p, 1, 60) == 0 && took(t, 60), "poll timeout");
	check(poll(NULL, 0, 10) == 0, "poll of none");
	later(&l, pf[1], 0);
	check(poll(p, 1, -1) == 1 && p[0].revents == POLLIN, "poll wakes up");
	joined(&l);
	check(read(pf[0], buf, 16) == 8, "data");
	p[0].fd = closed_fd();
	check(poll(p, 4, -1) == 3 && p[0].revents == POLLNVAL && p[1].revents == POLLOUT, "closed: POLLNVAL");
	static const int bad[] = { 987654, INT_MAX, 1 << 20 };
	for (int i = 0; i < 3; i++) {
		p[0] = (struct pollfd){ bad[i], POLLIN, 0 };
		check(poll(p, 1, -1) == 1 && p[0].revents == POLLNVAL, "never open: POLLNVAL at once");
	}
	p[0] = (struct pollfd){ INT_MIN, POLLIN, 7 };
	check(poll(p, 1, 0) == 0 && p[0].revents == 0, "negative: ignored");
	p[0] = (struct pollfd){ pf[0], 0, 0 };
	close(pf[1]);
	check(poll(p, 1, -1) == 1 && p[0].revents == POLLHUP, "POLLHUP unasked");
	close(pf[0]);
	check(pipe(pf) == 0, "pipe");
	close(pf[0]);
	p[0] = (struct pollfd){ pf[1], POLLOUT, 0 };
	check(poll(p, 1, -1) == 1 && (p[0].revents & POLLERR), "POLLERR");
	close(pf[1]);
	shutdown(sv[1], SHUT_WR);
	p[0] = (struct pollfd){ sv[0], POLLRDHUP | POLLIN, 0 };
	check(poll(p, 1, -1) == 1 && p[0].revents == (POLLIN | POLLRDHUP), "POLLRDHUP");
	close2(sv);

	fails(poll(BAD, 1, 0), EFAULT, "poll: EFAULT");
	struct rlimit lim;
	getrlimit(RLIMIT_NOFILE, &lim);
	if (lim.rlim_cur < 1u << 30)
		fails(poll(p, lim.rlim_cur + 1, 0), EINVAL, "more than the limit: EINVAL");
	/* Many. */
	int ev = eventfd(1, 0);
	static struct pollfd many[300];
	for (int i = 0; i < 300; i++)
		many[i] = (struct pollfd){ i % 3 ? -1 : ev, POLLIN, 0 };
	check(poll(many, 300, 1000) == 100 && many[297].revents == POLLIN && many[298].revents == 0, "poll of 300");
	many[1].fd = 987654;
	check(poll(many, 300, 1000) == 101 && many[1].revents == POLLNVAL && many[0].revents == POLLIN,
	      "one of them bad");
	close(ev);
}

static void test_ppoll(void)
{
	int pf[2];
	struct later l;
	struct timespec ts = { 0, 30 * MS };
	struct pollfd p;
	sigset_t none, all;

	sigemptyset(&none);
	sigfillset(&all);
	check(pipe(pf) == 0, "pipe");
	p = (struct pollfd){ pf[0], POLLIN, 0 };
	int64_t t = now();
	check(ppoll(&p, 1, &ts, NULL) == 0 && took(t, 30), "ppoll timeout");
	/* The call itself leaves what remains; libc hides it. */
	ts = (struct timespec){ 0, 20 * MS };
	check(syscall(SYS_ppoll, &p, 1, &ts, NULL, 8ul) == 0 && ts.tv_sec == 0 && ts.tv_nsec == 0, "nothing remains");
	later(&l, pf[1], 0);
	ts = (struct timespec){ 100, 0 };
	check(syscall(SYS_ppoll, &p, 1, &ts, NULL, 8ul) == 1 && ts.tv_sec == 99 && ts.tv_nsec > 0, "remaining time");
	joined(&l);
	ts = (struct timespec){ 0, 1000000000 };
	fails(ppoll(&p, 1, &ts, NULL), EINVAL, "ppoll timeout: EINVAL");
	ts = (struct timespec){ -1, 0 };
	fails(ppoll(&p, 1, &ts, NULL), EINVAL, "ppoll negative: EINVAL");
	fails(syscall(SYS_ppoll, &p, 1, NULL, &none, 4ul), EINVAL, "mask size: EINVAL");
	fails(syscall(SYS_ppoll, &p, 1, NULL, BAD, 8ul), EFAULT, "mask: EFAULT");
	fails(syscall(SYS_ppoll, &p, 1, BAD, NULL, 8ul), EFAULT, "timeout: EFAULT");
	close2(pf);

	/* Signals: with SA_RESTART as well it is EINTR. */
	pipe(pf);
	p.fd = pf[0];
	handler(SA_RESTART);
	later(&l, -1, SIGUSR1);
	fails(poll(&p, 1, 100000), EINTR, "poll: EINTR");
	joined(&l);
	check(nr_signals == 1, "handler ran");
	block(SIG_BLOCK);
	nr_signals = 0;
	later(&l, pf[1], SIGUSR1);
	check(poll(&p, 1, 100000) == 1 && nr_signals == 0, "blocked signal: poll goes on");
	joined(&l);
	char buf[16];
	read(pf[0], buf, 16) == 8 ? (void)0 : abort();
	/* It is pending: the mask of ppoll lets it in, and afterwards it is blocked again. */
	fails(ppoll(&p, 1, NULL, &none), EINTR, "pending signal: EINTR");
	check(nr_signals == 1 && is_blocked(), "mask restored");
	later(&l, -1, SIGUSR1);
	ts = (struct timespec){ 5, 0 };
	fails(ppoll(&p, 1, &ts, &none), EINTR, "ppoll: EINTR");
	joined(&l);
	check(nr_signals == 2 && is_blocked(), "mask restored again");
	pthread_kill(pthread_self(), SIGUSR1);
	ts = (struct timespec){ 0, 0 };
	fails(ppoll(&p, 1, &ts, &none), EINTR, "pending, timeout 0: EINTR");
	check(nr_signals == 3, "handler ran for it");
	block(SIG_UNBLOCK);
	ts = (struct timespec){ 0, 150 * MS };
	later(&l, -1, SIGUSR1);
	check(ppoll(&p, 1, &ts, &all) == 0, "mask of all: no EINTR");
	joined(&l);
	check(nr_signals == 4 && !is_blocked(), "it came at the end");
	close2(pf);
}

/* ---- select, pselect ------------------------------------------------------------------------------------------- */

static void test_select(void)
{
	int pf[2];
	struct later l;
	struct timeval tv = { 0, 30000 };
	fd_set r, w, x;
	char buf[16];

	check(pipe(pf) == 0, "pipe");
	int n = (pf[0] > pf[1] ? pf[0] : pf[1]) + 1;
	FD_ZERO(&r);
	FD_ZERO(&w);
	FD_ZERO(&x);
	FD_SET(pf[0], &r);
	FD_SET(pf[1], &w);
	FD_SET(pf[0], &x);
	check(select(n, &r, &w, &x, NULL) == 1 && !FD_ISSET(pf[0], &r) && FD_ISSET(pf[1], &w) && !FD_ISSET(pf[0], &x),
	      "select");
	FD_SET(pf[0], &r);
	int64_t t = now();
	check(select(n, &r, NULL, NULL, &tv) == 0 && took(t, 30) && !FD_ISSET(pf[0], &r), "select timeout");
	check(tv.tv_sec == 0 && tv.tv_usec == 0, "nothing remains");
	FD_SET(pf[0], &r);
	tv = (struct timeval){ 100, 0 };
	later(&l, pf[1], 0);
	check(select(n, &r, NULL, NULL, &tv) == 1 && FD_ISSET(pf[0], &r) && tv.tv_sec == 99,
	      "select wakes up, remaining time");
	joined(&l);
	tv = (struct timeval){ 0, 0 };
	check(select(n, &r, NULL, NULL, &tv) == 1, "select at once");
	tv = (struct timeval){ 0, 1000 };
	check(select(0, NULL, NULL, NULL, &tv) == 0, "select sleeps");
	fails(select(-1, NULL, NULL, NULL, &tv), EINVAL, "select number: EINVAL");
	tv = (struct timeval){ -1, 0 };
	fails(select(0, NULL, NULL, NULL, &tv), EINVAL, "select timeout: EINVAL");
	fails(syscall(SYS_select, n, BAD, NULL, NULL, NULL), EFAULT, "select set: EFAULT");
	fails(syscall(SYS_select, n, NULL, NULL, NULL, BAD), EFAULT, "select timeout: EFAULT");
	int bad = closed_fd();
	FD_ZERO(&r);
	FD_SET(bad, &r);
	tv = (struct timeval){ 0, 0 };
	fails(select(bad + 1, &r, NULL, NULL, &tv), EBADF, "select closed: EBADF");
	check(FD_ISSET(bad, &r), "set unchanged by an error");
	/* Bits from n on are not looked at. */
	FD_SET(pf[0], &r);
	check(select(0, &r, NULL, NULL, &tv) == 0 && FD_ISSET(bad, &r), "select of none");
	read(pf[0], buf, 16) == 8 ? (void)0 : abort();

	/* pselect. */
	sigset_t none;
	sigemptyset(&none);
	handler(SA_RESTART);
	FD_ZERO(&r);
	FD_SET(pf[0], &r);
	later(&l, -1, SIGUSR1);
	fails(select(n, &r, NULL, NULL, NULL), EINTR, "select: EINTR");
	joined(&l);
	check(nr_signals == 1 && FD_ISSET(pf[0], &r), "handler ran, set unchanged");
	block(SIG_BLOCK);
	pthread_kill(pthread_self(), SIGUSR1);
	fails(pselect(n, &r, NULL, NULL, NULL, &none), EINTR, "pselect, pending: EINTR");
	check(nr_signals == 2 && is_blocked(), "mask restored");
	struct timespec ts = { 0, 20 * MS };
	check(pselect(n, &r, NULL, NULL, &ts, &none) == 0 && nr_signals == 2, "pselect timeout");
	ts = (struct timespec){ 0, -1 };
	fails(pselect(n, &r, NULL, NULL, &ts, NULL), EINVAL, "pselect timeout: EINVAL");
	struct {
		const void *set;
		size_t size;
	} arg = { &none, 4 };
	fails(syscall(SYS_pselect6, n, &r, NULL, NULL, NULL, &arg), EINVAL, "pselect mask size: EINVAL");
	fails(syscall(SYS_pselect6, n, &r, NULL, NULL, NULL, BAD), EFAULT, "pselect mask: EFAULT");
	arg.set = NULL;
	ts = (struct timespec){ 0, 10 * MS };
	FD_SET(pf[0], &r);
	check(syscall(SYS_pselect6, n, &r, NULL, NULL, &ts, &arg) == 0 && ts.tv_sec == 0 && ts.tv_nsec == 0,
	      "pselect6 leaves what remains");
	block(SIG_UNBLOCK);
	close2(pf);

	/* A high descriptor, beyond FD_SETSIZE where the limit allows. */
	struct rlimit lim;
	getrlimit(RLIMIT_NOFILE, &lim);
	int hi = lim.rlim_cur > 3000 ? 2999 : (int)lim.rlim_cur - 1;
	int ev = eventfd(1, 0);
	static unsigned long bits[64];
	if (dup2(ev, hi) == hi) {
		bits[hi / 64] = 1ul << hi % 64;
		check(syscall(SYS_select, hi + 1, bits, NULL, NULL, NULL) == 1 && bits[hi / 64] == 1ul << hi % 64,
		      "select high");
		close(hi);
	}
	close(ev);
}

/* ---- epoll ----------------------------------------------------------------------------------------------------- */

static int add(int ep, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event ev = { .events = events, .data.u64 = data };

	return epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
}

static int mod(int ep, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event ev = { .events = events, .data.u64 = data };

	return epoll_ctl(ep, EPOLL_CTL_MOD, fd, &ev);
}

static void test_epoll(void)
{
	int ep = epoll_create1(EPOLL_CLOEXEC), pf[2], sv[2];
	struct epoll_event ev[8];
	struct later l;
	char buf[16];

	check(ep >= 0 && (fcntl(ep, F_GETFD) & FD_CLOEXEC), "epoll_create1");
	int old = epoll_create(1);
	check(old >= 0 && !(fcntl(old, F_GETFD) & FD_CLOEXEC), "epoll_create");
	close(old);
	fails(epoll_create(0), EINVAL, "epoll_create(0): EINVAL");
	fails(epoll_create1(1), EINVAL, "epoll_create1 flags: EINVAL");
	check(pipe(pf) == 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sv) == 0, "pairs");
	check(add(ep, pf[0], EPOLLIN, 0x123456789abcdef0) == 0, "EPOLL_CTL_ADD");
	fails(add(ep, pf[0], EPOLLIN, 0), EEXIST, "added twice: EEXIST");
	check(epoll_wait(ep, ev, 8, 0) == 0, "nothing");
	int64_t t = now();
	check(epoll_wait(ep, ev, 8, 50) == 0 && took(t, 49), "epoll timeout");
	later(&l, pf[1], 0);
	check(epoll_wait(ep, ev, 8, -1) == 1 && ev[0].events == EPOLLIN && ev[0].data.u64 == 0x123456789abcdef0,
	      "wakes up, data");
	joined(&l);
	check(epoll_wait(ep, ev, 8, -1) == 1, "level: still ready");
	check(read(pf[0], buf, 16) == 8 && epoll_wait(ep, ev, 8, 0) == 0, "read: no more");

	/* Edges. */
	check(mod(ep, pf[0], EPOLLIN | EPOLLET, 2) == 0, "EPOLL_CTL_MOD");
	check(write(pf[1], "a", 1) == 1 && epoll_wait(ep, ev, 8, 1000) == 1 && ev[0].data.u64 == 2, "edge");
	check(epoll_wait(ep, ev, 8, 0) == 0, "edge only once");
	check(write(pf[1], "b", 1) == 1 && epoll_wait(ep, ev, 8, 1000) == 1, "next edge");
	check(read(pf[0], buf, 16) == 2, "both bytes");
	/* Once. */
	check(mod(ep, pf[0], EPOLLIN | EPOLLONESHOT, 3) == 0, "EPOLLONESHOT");
	write(pf[1], "a", 1) == 1 ? (void)0 : abort();
	check(epoll_wait(ep, ev, 8, 1000) == 1 && epoll_wait(ep, ev, 8, 0) == 0, "one shot");
	check(mod(ep, pf[0], EPOLLIN | EPOLLONESHOT, 4) == 0 && epoll_wait(ep, ev, 8, 1000) == 1 && ev[0].data.u64 == 4,
	      "armed again");
	check(epoll_ctl(ep, EPOLL_CTL_DEL, pf[0], NULL) == 0, "EPOLL_CTL_DEL without event");
	fails(epoll_ctl(ep, EPOLL_CTL_DEL, pf[0], ev), ENOENT, "deleted twice: ENOENT");
	fails(mod(ep, pf[0], EPOLLIN, 0), ENOENT, "MOD of none: ENOENT");
	check(add(ep, pf[0], EPOLLIN | EPOLLEXCLUSIVE, 5) == 0 && epoll_wait(ep, ev, 8, 1000) == 1, "EPOLLEXCLUSIVE");
	fails(mod(ep, pf[0], EPOLLIN, 5), EINVAL, "MOD of exclusive: EINVAL");

	/* Several, with fewer places than events: none starves. */
	check(add(ep, sv[0], EPOLLOUT, 6) == 0 && add(ep, sv[1], EPOLLOUT, 7) == 0, "more");
	bool seen[3] = { false };
	for (int i = 0; i < 6; i++)
		if (epoll_wait(ep, ev, 1, 1000) == 1 && ev[0].data.u64 >= 5 && ev[0].data.u64 <= 7)
			seen[ev[0].data.u64 - 5] = true;
	check(seen[0] && seen[1] && seen[2], "taken in turn");
	check(epoll_wait(ep, ev, 8, 1000) == 3, "all at once");
	close(pf[1]);
	epoll_ctl(ep, EPOLL_CTL_DEL, sv[0], NULL);
	epoll_ctl(ep, EPOLL_CTL_DEL, sv[1], NULL);
	read(pf[0], buf, 16) == 1 ? (void)0 : abort();
	check(epoll_wait(ep, ev, 8, 1000) == 1 && ev[0].events == EPOLLHUP, "EPOLLHUP");
	close(pf[0]);
	check(epoll_wait(ep, ev, 8, 0) == 0, "closing takes it out");
	add(ep, sv[0], EPOLLRDHUP, 8);
	shutdown(sv[1], SHUT_WR);
	check(epoll_wait(ep, ev, 8, 1000) == 1 && ev[0].events == EPOLLRDHUP, "EPOLLRDHUP");
	close2(sv);

	/* An epoll in an epoll, and in poll. */
	int outer = epoll_create1(0), e = eventfd(0, EFD_NONBLOCK);
	check(add(ep, e, EPOLLIN, 9) == 0 && add(outer, ep, EPOLLIN, 10) == 0, "nested");
	later(&l, e, 0);
	check(epoll_wait(outer, ev, 8, 100000) == 1 && ev[0].data.u64 == 10, "nested wakes up");
	joined(&l);
	check(poll(&(struct pollfd){ ep, POLLIN, 0 }, 1, 0) == 1, "poll of an epoll");
	fails(add(ep, outer, EPOLLIN, 0), ELOOP, "loop: ELOOP");
	close(outer);
	close(e);
	close(ep);
}

static void test_epoll_errors(void)
{
	int ep = epoll_create1(0), e = eventfd(1, 0), bad = closed_fd();
	struct epoll_event ev[4];
	volatile int minus = -1, huge = INT_MAX;

	fails(epoll_wait(ep, ev, 0, 0), EINVAL, "no places: EINVAL");
	fails(epoll_wait(ep, ev, minus, 0), EINVAL, "negative places: EINVAL");
	fails(epoll_wait(ep, ev, huge, 0), EINVAL, "too many places: EINVAL");
	fails(epoll_wait(e, ev, 1, 0), EINVAL, "no epoll: EINVAL");
	fails(epoll_wait(bad, ev, 1, 0), EBADF, "closed: EBADF");
	fails(epoll_wait(987654, ev, 1, 0), EBADF, "never open: EBADF");
	fails(add(ep, bad, EPOLLIN, 0), EBADF, "add closed: EBADF");
	fails(add(ep, 987654, EPOLLIN, 0), EBADF, "add never open: EBADF");
	fails(add(ep, ep, EPOLLIN, 0), EINVAL, "add itself: EINVAL");
	fails(add(e, ep, EPOLLIN, 0), EINVAL, "add to no epoll: EINVAL");
	fails(epoll_ctl(ep, 77, e, ev), EINVAL, "operation: EINVAL");
	fails(epoll_ctl(ep, EPOLL_CTL_ADD, e, BAD), EFAULT, "event: EFAULT");
	fails(syscall(SYS_epoll_ctl, ep, EPOLL_CTL_ADD, e, NULL), EFAULT, "no event: EFAULT");
	int dir = open("/", O_RDONLY | O_DIRECTORY);
	fails(add(ep, dir, EPOLLIN, 0), EPERM, "add a directory: EPERM");
	close(dir);
	add(ep, e, EPOLLIN, 0);
	fails(epoll_wait(ep, BAD, 1, 0), EFAULT, "events: EFAULT");
	check(epoll_wait(ep, ev, 4, 0) == 1, "event was kept");
	sigset_t set;
	sigemptyset(&set);
	fails(syscall(SYS_epoll_pwait, ep, ev, 1, 0, &set, 4ul), EINVAL, "mask size: EINVAL");
	fails(syscall(SYS_epoll_pwait, ep, ev, 1, 0, BAD, 8ul), EFAULT, "mask: EFAULT");
	close(e);
	close(ep);
}

static void test_epoll_signals(void)
{
	int ep = epoll_create1(0), e = eventfd(0, EFD_NONBLOCK);
	struct epoll_event ev;
	struct later l;
	sigset_t none;

	sigemptyset(&none);
	add(ep, e, EPOLLIN, 1);
	handler(SA_RESTART);
	later(&l, -1, SIGUSR1);
	fails(epoll_wait(ep, &ev, 1, 100000), EINTR, "epoll_wait: EINTR");
	joined(&l);
	check(nr_signals == 1, "handler ran");
	block(SIG_BLOCK);
	later(&l, e, SIGUSR1);
	check(epoll_wait(ep, &ev, 1, 100000) == 1 && nr_signals == 1, "blocked signal: goes on");
	joined(&l);
	uint64_t v;
	check(read(e, &v, 8) == 8, "eventfd read");
	fails(epoll_pwait(ep, &ev, 1, -1, &none), EINTR, "epoll_pwait, pending: EINTR");
	check(nr_signals == 2 && is_blocked(), "mask restored");
	later(&l, -1, SIGUSR1);
	fails(epoll_pwait(ep, &ev, 1, 5000, &none), EINTR, "epoll_pwait: EINTR");
	joined(&l);
	check(nr_signals == 3 && is_blocked(), "mask restored again");
	check(epoll_pwait(ep, &ev, 1, 10, &none) == 0 && is_blocked(), "epoll_pwait timeout");
	struct timespec ts = { 0, 20 * MS };
	int64_t t = now();
	long r = syscall(SYS_epoll_pwait2, ep, &ev, 1, &ts, NULL, 8ul);
	if (r == -1 && errno == ENOSYS) {
		printf("skip no epoll_pwait2\n");
	} else {
		check(r == 0 && took(t, 20), "epoll_pwait2 timeout");
		ts = (struct timespec){ 0, 1000000000 };
		fails(syscall(SYS_epoll_pwait2, ep, &ev, 1, &ts, NULL, 8ul), EINVAL, "epoll_pwait2: EINVAL");
		later(&l, -1, SIGUSR1);
		fails(syscall(SYS_epoll_pwait2, ep, &ev, 1, NULL, &none, 8ul), EINTR, "epoll_pwait2: EINTR");
		joined(&l);
		check(nr_signals == 4 && is_blocked(), "mask restored by epoll_pwait2");
		later(&l, e, 0);
		ts = (struct timespec){ 5, 0 };
		check(syscall(SYS_epoll_pwait2, ep, &ev, 1, &ts, NULL, 8ul) == 1 && ev.data.u64 == 1,
		      "epoll_pwait2 event");
		joined(&l);
	}
	block(SIG_UNBLOCK);
	close(e);
	close(ep);
}

/* ---- what epoll waits for -------------------------------------------------------------------------------------- */

static void test_fds(void)
{
	int ep = epoll_create1(0), e = eventfd(0, EFD_NONBLOCK), tf = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	sigset_t set;
	struct epoll_event ev[4];
	uint64_t v = 3;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	int sf = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	check(e >= 0 && tf >= 0 && sf >= 0, "eventfd, timerfd, signalfd");
	check(add(ep, e, EPOLLIN | EPOLLOUT | EPOLLET, 1) == 0 && add(ep, tf, EPOLLIN, 2) == 0 &&
		      add(ep, sf, EPOLLIN, 3) == 0,
	      "all in an epoll");
	check(epoll_wait(ep, ev, 4, 1000) == 1 && ev[0].events == EPOLLOUT, "eventfd writable");
	check(write(e, &v, 8) == 8 && epoll_wait(ep, ev, 4, 1000) == 1 && (ev[0].events & EPOLLIN), "eventfd readable");
	check(read(e, &v, 8) == 8 && v == 3, "eventfd value");
	fails(read(e, &v, 8), EAGAIN, "eventfd: EAGAIN");
	close(e);
	struct itimerspec it = { { 0, 0 }, { 0, 30 * MS } };
	int64_t t = now();
	check(timerfd_settime(tf, 0, &it, NULL) == 0 && epoll_wait(ep, ev, 4, 100000) == 1 && ev[0].data.u64 == 2 &&
		      took(t, 30),
	      "timerfd");
	check(read(tf, &v, 8) == 8 && v == 1, "timerfd expirations");
	struct signalfd_siginfo si;
	pthread_kill(pthread_self(), SIGUSR2);
	check(epoll_wait(ep, ev, 4, 100000) == 1 && ev[0].data.u64 == 3, "signalfd");
	check(read(sf, &si, sizeof si) == (ssize_t)sizeof si && si.ssi_signo == SIGUSR2 &&
		      si.ssi_pid == (uint32_t)getpid(),
	      "signalfd record");
	fails(read(sf, &si, sizeof si), EAGAIN, "signalfd: EAGAIN");
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	close(sf);
	close(tf);
	close(ep);

	/* A semaphore. */
	e = eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK);
	check(read(e, &v, 8) == 8 && v == 1 && read(e, &v, 8) == 8 && v == 1 && read(e, &v, 8) == -1, "EFD_SEMAPHORE");
	v = UINT64_MAX;
	fails(write(e, &v, 8), EINVAL, "eventfd value: EINVAL");
	close(e);
}

/* ---- threads --------------------------------------------------------------------------------------------------- */

#define ROUNDS 500
#define WORKERS 3

struct work {
	int ep, back;
};

static void *worker(void *arg)
{
	struct work *w = arg;
	struct epoll_event ev;
	long done = 0;
	char byte;

	for (;;) {
		if (epoll_wait(w->ep, &ev, 1, 100000) != 1)
			return (void *)-1l;
		if (read(ev.data.fd, &byte, 1) != 1)
			continue; /* another was faster */
		if (byte == 'q')
			return (void *)done;
		done++;
		if (write(w->back, &byte, 1) != 1)
			return (void *)-1l;
	}
}

/* One epoll, many waiters: each message is taken once. */
static void test_threads(void)
{
	int sv[2], back[2];
	pthread_t th[WORKERS];
	long total = 0;
	void *r;
	char byte;

	check(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, sv) == 0 && pipe(back) == 0, "pairs");
	struct work w = { epoll_create1(0), back[1] };
	struct epoll_event ev = { .events = EPOLLIN, .data.fd = sv[1] };
	epoll_ctl(w.ep, EPOLL_CTL_ADD, sv[1], &ev);
	for (int i = 0; i < WORKERS; i++)
		pthread_create(&th[i], NULL, worker, &w);
	bool ok = true;
	for (int i = 0; i < ROUNDS && ok; i++)
		ok = send(sv[0], "m", 1, 0) == 1 && poll(&(struct pollfd){ back[0], POLLIN, 0 }, 1, 100000) == 1 &&
		     read(back[0], &byte, 1) == 1;
	check(ok, "messages answered");
	for (int i = 0; i < WORKERS; i++)
		send(sv[0], "q", 1, 0);
	for (int i = 0; i < WORKERS; i++) {
		pthread_join(th[i], &r);
		total += (long)r;
	}
	check(total == ROUNDS, "each taken once");
	close2(sv);
	close2(back);
	close(w.ep);
}

int main(void)
{
	test_poll();
	test_ppoll();
	test_select();
	test_epoll();
	test_epoll_errors();
	test_epoll_signals();
	test_fds();
	test_threads();
	if (!first_failure)
		printf("SUCCESS\n");
	return first_failure;
}
