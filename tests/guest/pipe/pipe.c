/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pipe(7), call by call: ends, errors, atomic writes, sizes, flags of shared descriptions, copies of descriptors, who
 * is told when the other side closes or dies, events. Then processes that are killed at random while they exchange
 * numbered messages (PIPE_SEED, PIPE_ROUNDS). Passes on any x86-64 Linux. The exit code is the number of the first
 * check that failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../check.h"

static void *volatile nowhere = (void *)16;
static volatile int minus_one = -1;

static int status_of(pid_t p)
{
	int st = -1;
	return waitpid(p, &st, 0) == p ? st : -1;
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void nap(int ms) { usleep(ms * 1000); }

static volatile int signals, pipes_broken;
static void on_signal(int s)
{
	signals++;
	if (s == SIGPIPE)
		pipes_broken++;
}

static void handle(int sig, int flags)
{
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = flags };
	sigaction(sig, &sa, NULL);
}

static char big[1 << 20];

/* Fill without waiting, 4096 at a time: bytes. */
static int fill(int fd)
{
	int n = 0, fl = fcntl(fd, F_GETFL);
	fcntl(fd, F_SETFL, fl | O_NONBLOCK);
	for (ssize_t r; (r = write(fd, big, 4096)) > 0;)
		n += (int)r;
	fcntl(fd, F_SETFL, fl);
	return n;
}

static int drain(int fd)
{
	static char buf[65536];
	int n = 0, fl = fcntl(fd, F_GETFL);
	fcntl(fd, F_SETFL, fl | O_NONBLOCK);
	for (ssize_t r; (r = read(fd, buf, sizeof buf)) > 0;)
		n += (int)r;
	fcntl(fd, F_SETFL, fl);
	return n;
}

/* ---- in one process ---------------------------------------------------------------------------------------------- */

static void test_basic(void)
{
	int p[2], n = -1;
	char b[64];
	struct stat st;
	NEED(pipe(p) == 0);
	check(write(p[1], "hello", 5) == 5 && read(p[0], b, sizeof b) == 5 && !memcmp(b, "hello", 5),
	      "what goes in comes out");
	check(write(p[0], "x", 1) == -1 && errno == EBADF && read(p[1], b, 1) == -1 && errno == EBADF, "the wrong end");
	check(write(p[1], b, 0) == 0 && read(p[0], b, 0) == 0, "nothing is nothing");
	check(write(p[1], nowhere, 5) == -1 && errno == EFAULT, "EFAULT from write");
	NEED(write(p[1], "abc", 3) == 3);
	check(read(p[0], nowhere, 3) == -1 && errno == EFAULT, "EFAULT from read");
	check(ioctl(p[0], FIONREAD, &n) == 0 && n == 3, "which loses nothing");
	check(ioctl(p[1], FIONREAD, &n) == 0 && n == 3, "FIONREAD at the write end");
	check(read(p[0], b, 2) == 2 && read(p[0], b + 2, 9) == 1 && !memcmp(b, "abc", 3),
	      "a read takes what it asked for");
	check(lseek(p[0], 0, SEEK_SET) == -1 && errno == ESPIPE, "ESPIPE from lseek");
	check(pread(p[0], b, 1, 0) == -1 && errno == ESPIPE, "ESPIPE from pread");
	check(fstat(p[0], &st) == 0 && S_ISFIFO(st.st_mode) && (st.st_mode & 0777) == 0600 && st.st_size == 0, "fstat");
	check(fcntl(p[0], F_GETPIPE_SZ) == 65536 && fcntl(p[1], F_GETPIPE_SZ) == 65536, "F_GETPIPE_SZ");
	check((fcntl(p[0], F_GETFL) & O_ACCMODE) == O_RDONLY && (fcntl(p[1], F_GETFL) & O_ACCMODE) == O_WRONLY,
	      "access modes");
	struct iovec v[4] = { { "ab", 2 }, { NULL, 0 }, { "cde", 3 }, { "f", 1 } }, r[2] = { { b, 4 }, { b + 10, 10 } };
	check(writev(p[1], v, 4) == 6 && readv(p[0], r, 2) == 6 && !memcmp(b, "abcd", 4) && !memcmp(b + 10, "ef", 2),
	      "vectors");
	struct iovec many[40];
	for (int i = 0; i < 40; i++)
		many[i] = (struct iovec){ "0123456789" + i % 10, 1 };
	check(writev(p[1], many, 40) == 40 && read(p[0], b, 64) == 40 && b[39] == '9', "long vectors");
	check(writev(p[1], many, minus_one) == -1 && errno == EINVAL, "a vector of -1");
	close(p[1]);
	check(read(p[0], b, 1) == 0 && read(p[0], b, 1) == 0, "end of file stays");
	close(p[0]);
	check(read(p[0], b, 1) == -1 && errno == EBADF, "EBADF after close");
	check(pipe(nowhere) == -1 && errno == EFAULT, "pipe to nowhere");
	check(pipe2(p, 0x10) == -1 && errno == EINVAL, "pipe2 with an unknown flag");
}

static void test_full(void)
{
	int p[2];
	NEED(pipe2(p, O_NONBLOCK | O_CLOEXEC) == 0);
	check(fcntl(p[0], F_GETFD) == FD_CLOEXEC && fcntl(p[1], F_GETFD) == FD_CLOEXEC, "O_CLOEXEC");
	check(read(p[0], big, 1) == -1 && errno == EAGAIN, "EAGAIN when empty");
	check(write(p[1], big, sizeof big) == 65536, "a large write without waiting takes what fits");
	check(write(p[1], big, 1) == -1 && errno == EAGAIN, "EAGAIN when full");
	check(read(p[0], big, 4095) == 4095 && write(p[1], big, 4096) == -1 && errno == EAGAIN,
	      "no part of an atomic write");
	check(read(p[0], big, 1) == 1 && write(p[1], big, 4096) == 4096, "all of it when there is room");
	check(read(p[0], big, sizeof big) == 65536, "a read takes all that is there");
	check(write(p[1], big, 100000) == 65536 && read(p[0], big, 8192) == 8192 && write(p[1], big, 10000) == 8192,
	      "part of a longer write");
	check(drain(p[0]) == 65536, "nothing is lost");
	close(p[1]);
	check(read(p[0], big, 1) == 0, "end of file without waiting");
	close(p[0]);
	NEED(pipe(p) == 0);
	for (int i = 0; i < 70000; i++) /* cursors go round */
		if (write(p[1], &i, 4) != 4 || read(p[0], big, 4) != 4 || *(int *)big != i) {
			check(false, "round and round");
			break;
		}
	check(write(p[1], big, 61234) == 61234 && read(p[0], big, 65536) == 61234, "across the end of the ring");
	close(p[0]);
	close(p[1]);
}

static void test_broken(void)
{
	int p[2];
	NEED(pipe(p) == 0);
	handle(SIGPIPE, 0);
	pipes_broken = 0;
	write(p[1], "x", 1);
	close(p[0]);
	check(write(p[1], "x", 1) == -1 && errno == EPIPE && pipes_broken == 1, "EPIPE and SIGPIPE");
	check(write(p[1], "x", 1) == -1 && errno == EPIPE && pipes_broken == 2, "each time");
	check(write(p[1], "x", 0) == 0 && pipes_broken == 2, "but for nothing");
	signal(SIGPIPE, SIG_IGN);
	check(write(p[1], "x", 1) == -1 && errno == EPIPE, "EPIPE alone when ignored");
	close(p[1]);
	pid_t c = FORK(signal(SIGPIPE, SIG_DFL); NEED(pipe(p) == 0); close(p[0]); write(p[1], "x", 1));
	int st = status_of(c);
	check(WIFSIGNALED(st) && WTERMSIG(st) == SIGPIPE, "death by SIGPIPE");
}

static void test_copies(void)
{
	int p[2], q[2], d;
	char b[16];
	NEED(pipe(p) == 0);
	d = dup(p[1]);
	close(p[1]);
	check(write(d, "ab", 2) == 2 && read(p[0], b, 9) == 2, "dup keeps an end open");
	check(dup2(d, 200) == 200 && close(d) == 0 && write(200, "c", 1) == 1 && read(p[0], b, 9) == 1, "dup2");
	check(dup3(200, 201, O_CLOEXEC) == 201 && write(201, "d", 1) == 1 && fcntl(201, F_GETFD) == FD_CLOEXEC, "dup3");
	int e = fcntl(201, F_DUPFD, 300);
	check(e == 300 && write(e, "e", 1) == 1 && read(p[0], b, 9) == 2 && b[1] == 'e', "F_DUPFD");
	check(syscall(SYS_close_range, 200, 300, 0) == 0 && read(p[0], b, 1) == 0, "close_range closes ends");
	close(p[0]);
	/* A number that another file gets. */
	NEED(pipe(p) == 0 && pipe(q) == 0);
	write(p[1], "old", 3);
	int keep = dup(p[0]);
	check(dup2(q[0], p[0]) == p[0] && write(q[1], "new", 3) == 3 && read(p[0], b, 9) == 3 && !memcmp(b, "new", 3),
	      "a reused number is the new file");
	check(read(keep, b, 9) == 3 && !memcmp(b, "old", 3), "the old one lives on by its copy");
	int null = open("/dev/null", O_RDWR);
	check(dup2(null, p[0]) == p[0] && read(p[0], b, 9) == 0, "also a file that is no pipe");
	close(p[0]), close(q[0]);
	handle(SIGPIPE, 0);
	pipes_broken = 0;
	check(write(q[1], "x", 1) == -1 && errno == EPIPE && pipes_broken == 1, "dup2 over the last reader");
	check(write(p[1], "y", 1) == 1 && read(keep, b, 9) == 1, "not over another's");
	close(keep), close(p[1]), close(q[1]), close(null);
	/* Flags belong to the description, not to the number. */
	NEED(pipe(p) == 0);
	d = dup(p[0]);
	fcntl(d, F_SETFL, O_NONBLOCK);
	check(read(p[0], b, 1) == -1 && errno == EAGAIN, "O_NONBLOCK of a copy");
	int off = 0;
	ioctl(p[0], FIONBIO, &off);
	check(!(fcntl(d, F_GETFL) & O_NONBLOCK), "FIONBIO");
	pid_t c = FORK(fcntl(p[1], F_SETFL, O_NONBLOCK));
	status_of(c);
	fill(p[1]);
	check(write(p[1], b, 1) == -1 && errno == EAGAIN, "O_NONBLOCK set by a child");
	close(d), close(p[0]), close(p[1]);
	char name[64];
	NEED(pipe(p) == 0);
	write(p[1], "123", 3);
	snprintf(name, sizeof name, "/proc/self/fd/%d", p[1]);
	d = open(name, O_WRONLY);
	check(d >= 0 && write(d, "4", 1) == 1 && write(p[1], "5", 1) == 1 && read(p[0], b, 9) == 5 &&
		      !memcmp(b, "12345", 5),
	      "opened by its number in /proc");
	close(p[1]);
	check(write(d, "6", 1) == 1 && read(p[0], b, 9) == 1, "is an end, too");
	close(d), close(p[0]);
	struct rlimit r;
	getrlimit(RLIMIT_NOFILE, &r);
	r.rlim_cur = r.rlim_max;
	setrlimit(RLIMIT_NOFILE, &r);
	NEED(pipe(p) == 0);
	write(p[1], "1", 1);
	check(dup2(p[1], 2000) == 2000 && write(2000, "2", 1) == 1 && read(p[0], b, 9) == 2, "a large number");
	close(2000), close(p[0]), close(p[1]);
}

static void test_sizes(void)
{
	int p[2];
	NEED(pipe(p) == 0);
	write(p[1], "abc", 3);
	check(fcntl(p[1], F_SETPIPE_SZ, 100000) == 131072 && fcntl(p[0], F_GETPIPE_SZ) == 131072, "F_SETPIPE_SZ");
	check(fill(p[1]) == 126976 || fill(p[1]) == 0, "more fits");
	check(drain(p[0]) == 126976 + 3, "all of it comes out");
	check(fcntl(p[1], F_SETPIPE_SZ, 4096) == 4096 && fill(p[1]) == 4096, "less fits");
	close(p[0]), close(p[1]);
}

/* What the ring does not do itself. */
static void test_others(void)
{
	int p[2], q[2], sv[2];
	char b[100];
	NEED(pipe(p) == 0 && pipe(q) == 0);
	write(p[1], "one", 3);
	check(tee(p[0], q[1], 100, 0) == 3 && read(q[0], b, 99) == 3 && read(p[0], b, 99) == 3, "tee");
	write(p[1], "two", 3);
	check(splice(p[0], NULL, q[1], NULL, 100, 0) == 3 && read(q[0], b, 99) == 3 && !memcmp(b, "two", 3), "splice");
	struct iovec v = { "three", 5 };
	check(vmsplice(q[1], &v, 1, 0) == 5 && read(q[0], b, 99) == 5, "vmsplice");
	close(p[0]), close(p[1]), close(q[0]), close(q[1]);
	NEED(pipe(p) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, sv) == 0);
	write(p[1], "left", 4);
	char ctl[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec one = { "x", 1 };
	struct msghdr m = { .msg_iov = &one, .msg_iovlen = 1, .msg_control = ctl, .msg_controllen = sizeof ctl };
	struct cmsghdr *cm = CMSG_FIRSTHDR(&m);
	*cm = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int)) };
	memcpy(CMSG_DATA(cm), &p[1], sizeof(int));
	check(sendmsg(sv[0], &m, 0) == 1, "an end is sent");
	close(p[1]);
	one.iov_base = b;
	check(recvmsg(sv[1], &m, 0) == 1, "and received");
	int d;
	memcpy(&d, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof d);
	check(write(d, "over", 4) == 4 && read(p[0], b, 99) == 8 && !memcmp(b, "leftover", 8),
	      "with all that was in it");
	close(d);
	check(read(p[0], b, 1) == 0, "and its end");
	close(p[0]), close(sv[0]), close(sv[1]);
	NEED(pipe2(p, O_DIRECT) == 0);
	check(write(p[1], "abc", 3) == 3 && write(p[1], "de", 2) == 2 && read(p[0], b, 99) == 3 &&
		      read(p[0], b, 99) == 2,
	      "packets");
	close(p[0]), close(p[1]);
	FILE *f = tmpfile();
	NEED(f && pipe(p) == 0);
	fputs("from a file", f);
	fflush(f);
	off_t off = 0;
	write(p[1], ">", 1);
	check(sendfile(p[1], fileno(f), &off, 11) == 11 && read(p[0], b, 99) == 12 && !memcmp(b, ">from", 5),
	      "sendfile");
	fclose(f);
	close(p[0]), close(p[1]);
}

/* ---- events -------------------------------------------------------------------------------------------------------- */

static int events(int fd, int want, int ms)
{
	struct pollfd p = { fd, (short)want, 0 };
	int r = poll(&p, 1, ms);
	return r < 0 ? -errno : r == 0 ? 0 : p.revents;
}

static void test_events(void)
{
	int p[2];
	char b[8];
	NEED(pipe(p) == 0);
	check(events(p[0], POLLIN, 0) == 0 && events(p[1], POLLOUT, 0) == POLLOUT, "poll: empty");
	write(p[1], "x", 1);
	check(events(p[0], POLLIN, 0) == POLLIN && events(p[1], POLLOUT, 0) == POLLOUT, "poll: with something in it");
	read(p[0], b, 1);
	fill(p[1]);
	check(events(p[0], POLLIN, 0) == POLLIN && events(p[1], POLLOUT, 0) == 0, "poll: full");
	drain(p[0]);
	check(events(p[0], POLLIN, 0) == 0 && events(p[1], POLLOUT, 0) == POLLOUT, "poll: empty again");
	pid_t c = FORK(nap(50); write(p[1], "late", 4));
	check(events(p[0], POLLIN, 100000) == POLLIN && read(p[0], b, 8) == 4, "poll waits for data");
	status_of(c);
	fill(p[1]);
	c = FORK(nap(50); read(p[0], big, 8192));
	check(events(p[1], POLLOUT, 100000) == POLLOUT, "poll waits for room");
	status_of(c);
	drain(p[0]);
	double t = now();
	check(events(p[0], POLLIN, 60) == 0 && now() - t > 0.055, "poll in vain");
	fd_set r, w;
	FD_ZERO(&r);
	FD_ZERO(&w);
	FD_SET(p[0], &r);
	FD_SET(p[1], &w);
	struct timeval tv = { 1000, 0 };
	check(select(p[1] + 1, &r, &w, NULL, &tv) == 1 && FD_ISSET(p[1], &w) && !FD_ISSET(p[0], &r), "select");
	c = FORK(nap(50); write(p[1], "s", 1));
	FD_ZERO(&r);
	FD_SET(p[0], &r);
	check(select(p[0] + 1, &r, NULL, NULL, &tv) == 1 && FD_ISSET(p[0], &r) && tv.tv_sec < 1000 && tv.tv_sec > 800 &&
		      read(p[0], b, 8) == 1,
	      "select waits");
	status_of(c);
	tv = (struct timeval){ 0, 60000 };
	t = now();
	check(select(p[0] + 1, &r, NULL, NULL, &tv) == 0 && !FD_ISSET(p[0], &r) && now() - t > 0.055, "select in vain");
	FD_ZERO(&w);
	FD_SET(p[1], &w);
	fill(p[1]);
	c = FORK(nap(50); read(p[0], big, 8192));
	check(select(p[1] + 1, NULL, &w, NULL, NULL) == 1, "select waits for room");
	status_of(c);
	close(p[0]), close(p[1]);
	NEED(pipe(p) == 0);
	/* Together with something else, and interrupted. */
	int sv[2];
	NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, sv) == 0);
	struct pollfd two[3] = { { p[0], POLLIN, 0 }, { sv[0], POLLIN, 0 }, { -1, POLLIN, 0 } };
	c = FORK(nap(50); write(sv[1], "s", 1); NEED(read(sv[1], b, 1) == 1); nap(50); write(p[1], "p", 1));
	check(poll(two, 3, 100000) == 1 && two[0].revents == 0 && two[1].revents == POLLIN, "poll: a socket beside it");
	read(sv[0], b, 8);
	write(sv[0], "g", 1);
	check(poll(two, 3, 100000) == 1 && two[0].revents == POLLIN && two[1].revents == 0, "poll: then the pipe");
	status_of(c);
	read(p[0], b, 8);
	handle(SIGALRM, SA_RESTART);
	struct itimerval in = { { 0, 50000 }, { 0, 50000 } }, off = { 0 };
	setitimer(ITIMER_REAL, &in, NULL);
	check(poll(two, 3, 100000) == -1 && errno == EINTR, "poll is interrupted");
	setitimer(ITIMER_REAL, &off, NULL);
	close(sv[0]), close(sv[1]);
	write(p[1], "z", 1);
	close(p[1]);
	check(events(p[0], POLLIN, 0) == (POLLIN | POLLHUP), "poll: data and no writer");
	read(p[0], b, 1);
	check(events(p[0], POLLIN, 0) == POLLHUP, "poll: no writer");
	close(p[0]);
	NEED(pipe(p) == 0);
	close(p[0]);
	check(events(p[1], POLLOUT, 0) == (POLLOUT | POLLERR), "poll: no reader");
	close(p[1]);
	int ep = epoll_create1(0);
	struct epoll_event e = { .events = EPOLLIN };
	NEED(pipe(p) == 0);
	write(p[1], "before", 6);
	check(epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &e) == 0 && epoll_wait(ep, &e, 1, 0) == 1 && e.events == EPOLLIN,
	      "epoll: what was there before");
	check(read(p[0], b, 8) == 6 && epoll_wait(ep, &e, 1, 0) == 0, "epoll: nothing");
	c = FORK(nap(30); write(p[1], "x", 1));
	check(epoll_wait(ep, &e, 1, 100000) == 1, "epoll waits");
	status_of(c);
	read(p[0], b, 8);
	close(p[1]);
	check(epoll_wait(ep, &e, 1, 100000) == 1 && e.events == EPOLLHUP, "epoll: no writer");
	close(p[0]), close(ep);
	/* A reader sleeps in poll, the pipe having been used by read before. */
	int got[2];
	NEED(pipe(p) == 0 && pipe(got) == 0);
	c = FORK(close(p[1]); NEED(read(p[0], b, 1) == 1); NEED(events(p[0], POLLIN, 100000) == POLLIN);
		 NEED(read(p[0], b, 1) == 1 && *b == '2'); NEED(write(got[1], "2", 1) == 1);
		 NEED(events(p[0], POLLIN, 100000) == POLLHUP));
	nap(20), write(p[1], "1", 1), nap(20), write(p[1], "2", 1);
	NEED(read(got[0], b, 1) == 1);
	nap(20), close(p[1]);
	check(status_of(c) == 0, "by turns with read");
	close(p[0]), close(got[0]), close(got[1]);
}

/* ---- signals ------------------------------------------------------------------------------------------------------- */

static void test_signals(void)
{
	int p[2];
	char b[8];
	struct itimerval in = { { 0, 50000 }, { 0, 50000 } }, off = { 0 };
	NEED(pipe(p) == 0);
	handle(SIGALRM, 0);
	signals = 0;
	setitimer(ITIMER_REAL, &in, NULL);
	check(read(p[0], b, 1) == -1 && errno == EINTR && signals, "read is interrupted");
	handle(SIGALRM, SA_RESTART);
	signals = 0;
	pid_t c = FORK(nap(150); write(p[1], "r", 1));
	check(read(p[0], b, 1) == 1 && *b == 'r' && signals, "read is restarted");
	status_of(c);
	fill(p[1]);
	handle(SIGALRM, 0);
	check(write(p[1], big, 1) == -1 && errno == EINTR, "write is interrupted");
	drain(p[0]);
	check(write(p[1], big, 100000) == 65536, "write has written a part");
	handle(SIGALRM, SA_RESTART);
	signals = 0;
	c = FORK(nap(150); drain(p[0]));
	check(write(p[1], big, 4096) == 4096 && signals, "write is restarted");
	setitimer(ITIMER_REAL, &off, NULL);
	status_of(c);
	drain(p[0]);
	close(p[0]), close(p[1]);
}

/* ---- processes ------------------------------------------------------------------------------------------------------- */

static void test_fork(void)
{
	int p[2], q[2];
	char b[64];
	NEED(pipe(p) == 0);
	pid_t c = FORK(close(p[0]); nap(20); write(p[1], "child", 5));
	close(p[1]);
	check(read(p[0], b, 64) == 5 && read(p[0], b, 64) == 0, "data, then the end when the child ends");
	status_of(c);
	close(p[0]);
	NEED(pipe(p) == 0);
	int full = fill(p[1]);
	c = FORK(close(p[1]); nap(20); NEED(drain(p[0]) >= full));
	check(write(p[1], "x", 1) == 1, "fork while full; a write that waits");
	check(status_of(c) == 0, "all of it is there for the child");
	close(p[0]), close(p[1]);
	/* Each way in which the last reader can end. */
	handle(SIGPIPE, 0);
	static const char *const how[] = { "exits", "is killed", "closes it", "execs" };
	for (int i = 0; i < 4; i++) {
		char name[80];
		int sync[2];
		NEED(pipe(p) == 0 && pipe(sync) == 0);
		fcntl(p[0], F_SETFD, FD_CLOEXEC);
		c = FORK(char t; close(sync[0]); close(p[1]); read(p[0], &t, 1); write(sync[1], "r", 1);
			 if (i == 0) _exit(0); if (i == 1) pause(); if (i == 2) {
				 close(p[0]);
				 write(sync[1], "c", 1);
				 pause();
			 } fcntl(sync[1], F_SETFD, FD_CLOEXEC);
			 execl("/bin/sleep", "sleep", "5", NULL));
		close(p[0]), close(sync[1]);
		NEED(write(p[1], "ab", 2) == 2);
		read(sync[0], b, 1);
		if (i == 1)
			kill(c, SIGKILL);
		if (i < 2)
			status_of(c);
		else /* the end of its descriptor after exec, or a byte: then the reader is gone */
			NEED(read(sync[0], b, 1) == (i == 2));
		pipes_broken = 0;
		snprintf(name, sizeof name, "EPIPE after the reader %s", how[i]);
		int r = write(p[1], "x", 1);
		for (int n = 0; i == 3 && r == 1 && n < 60000; n++) /* exec closes in no order */
			nap(1), r = write(p[1], "x", 1);
		check(r == -1 && errno == EPIPE && pipes_broken == 1, name);
		if (i >= 2)
			kill(c, SIGKILL), status_of(c);
		close(p[1]), close(sync[0]);
	}
	NEED(pipe(p) == 0);
	c = FORK(close(p[0]); write(p[1], "part", 4); pause());
	close(p[1]);
	NEED(read(p[0], b, 9) == 4);
	double t = now();
	pid_t k = FORK(close(p[0]); nap(50); kill(c, SIGKILL));
	check(read(p[0], b, 9) == 0 && now() - t < 60, "end of file when the writer is killed");
	status_of(c), status_of(k);
	close(p[0]);
	NEED(pipe(p) == 0);
	c = FORK(close(p[1]); pause());
	close(p[0]);
	fill(p[1]);
	k = FORK(close(p[1]); nap(50); kill(c, SIGKILL));
	t = now();
	pipes_broken = 0;
	check(write(p[1], "x", 1) == -1 && errno == EPIPE && pipes_broken == 1 && now() - t < 60,
	      "EPIPE for a write that waits, when the reader is killed");
	status_of(c), status_of(k);
	close(p[1]);
	/* Who writes all the time learns soon. */
	NEED(pipe(p) == 0);
	c = FORK(close(p[1]); for (;;) read(p[0], b, 64));
	close(p[0]);
	k = FORK(close(p[1]); nap(100); kill(c, SIGKILL));
	t = now();
	while (write(p[1], "x", 1) == 1 && now() - t < 60)
		;
	check(errno == EPIPE && now() - t < 60, "who writes all the time learns that the reader was killed");
	status_of(c), status_of(k);
	close(p[1]);
	/* Both ways, both at once. */
	NEED(pipe(p) == 0 && pipe(q) == 0);
	c = FORK(close(p[1]); close(q[0]); uint32_t x; while (read(p[0], &x, 4) == 4) {
		x = x * 3 + 1;
		NEED(write(q[1], &x, 4) == 4);
	});
	close(p[0]), close(q[1]);
	bool good = true;
	for (uint32_t i = 0, x; i < 5000 && good; i++)
		good = write(p[1], &i, 4) == 4 && read(q[0], &x, 4) == 4 && x == i * 3 + 1;
	check(good, "to and fro");
	close(p[1]);
	check(read(q[0], b, 1) == 0 && status_of(c) == 0, "and the end");
	close(q[0]);
	/* Stopped and continued in the middle. */
	NEED(pipe(p) == 0);
	c = FORK(close(p[0]); for (uint32_t i = 0; i < 50000; i++) NEED(write(p[1], &i, 4) == 4));
	close(p[1]);
	good = true;
	for (uint32_t i = 0, x; good && (read(p[0], &x, 4)) == 4; i++) {
		good = x == i;
		if (i % 10000 == 5000)
			kill(c, SIGSTOP), nap(5), kill(c, SIGCONT);
	}
	check(status_of(c) == 0 && good, "stopped and continued");
	close(p[0]);
	NEED(pipe(p) == 0);
	write(p[1], "pre-", 4);
	if (!(c = vfork())) {
		write(p[1], "vfork", 5);
		_exit(0);
	}
	status_of(c);
	check(read(p[0], b, 64) == 9 && !memcmp(b, "pre-vfork", 9), "a child of vfork writes");
	close(p[0]), close(p[1]);
	NEED(pipe(p) == 0);
	posix_spawn_file_actions_t fa;
	posix_spawn_file_actions_init(&fa);
	posix_spawn_file_actions_adddup2(&fa, p[1], 1);
	posix_spawn_file_actions_addclose(&fa, p[0]);
	char *av[] = { "echo", "spawned", NULL }, *ev[] = { NULL };
	NEED(posix_spawn(&c, "/bin/echo", &fa, NULL, av, ev) == 0);
	close(p[1]);
	check(read(p[0], b, 64) == 8 && read(p[0], b, 64) == 0 && status_of(c) == 0,
	      "a program that was spawned writes");
	close(p[0]);
	for (int i = 0; i < 600 && good; i++) {
		good = pipe(p) == 0;
		write(p[1], &i, 4);
		pid_t x = i % 40 ? 0 : FORK(pause());
		good = good && read(p[0], b, 9) == 4 && *(int *)b == i;
		close(p[0]), close(p[1]);
		if (x)
			kill(x, SIGKILL), status_of(x);
	}
	check(good, "many pipes, one after another");
	static int many[400][2];
	int n = 0;
	for (; n < 400 && pipe(many[n]) == 0; n++)
		write(many[n][1], &n, 4);
	good = n == 400;
	for (int i = 0; i < n; i++) {
		good = good && read(many[i][0], b, 9) == 4 && *(int *)b == i;
		close(many[i][0]), close(many[i][1]);
	}
	check(good, "many pipes at once");
}

/* ---- atomic writes ------------------------------------------------------------------------------------------------- */

static void write_records(int fd, int who, int count)
{
	unsigned char rec[4096];
	unsigned x = who * 7919 + 1;
	for (int i = 0; i < count; i++) {
		x = x * 1103515245 + 12345;
		unsigned len = 8 + (x >> 8) % (i % 4 ? 100 : 4088);
		memset(rec, who, len);
		memcpy(rec, &len, 4);
		memcpy(rec + 4, &i, 4);
		rec[7] = who;
		NEED(write(fd, rec, len) == (ssize_t)len);
	}
}

static bool read_all(int fd, void *p, size_t n)
{
	for (size_t done = 0; done < n;) {
		ssize_t r = read(fd, (char *)p + done, n - done);
		if (r <= 0)
			return false;
		done += r;
	}
	return true;
}

static void *writer_thread(void *arg)
{
	int *a = arg;
	write_records(a[0], a[1], 800);
	return NULL;
}

static bool records_good(int fd, int writers, int count)
{
	unsigned char rec[4096];
	int next[32] = { 0 }, total = 0;
	for (unsigned len, i; read_all(fd, &len, 4); total++) {
		if (len < 8 || len > 4096 || !read_all(fd, rec + 4, len - 4))
			return false;
		unsigned who = rec[7];
		memcpy(&i, rec + 4, 4);
		i &= 0xffffff;
		if (who >= 32 || (int)i != next[who]++)
			return false;
		for (unsigned k = 8; k < len; k++)
			if (rec[k] != who)
				return false;
	}
	return total == writers * count;
}

static void test_atomic(void)
{
	int p[2];
	pid_t c[8];
	NEED(pipe(p) == 0);
	for (int i = 0; i < 8; i++)
		c[i] = FORK(close(p[0]); write_records(p[1], i + 1, 500));
	close(p[1]);
	check(records_good(p[0], 8, 500), "eight writers: no record is torn, none is lost");
	bool good = true;
	for (int i = 0; i < 8; i++)
		good = status_of(c[i]) == 0 && good;
	check(good, "and all ended well");
	close(p[0]);
	NEED(pipe(p) == 0);
	pthread_t t[3];
	int arg[3][2];
	pid_t r = FORK(close(p[1]); NEED(records_good(p[0], 3, 800)));
	for (int i = 0; i < 3; i++) {
		arg[i][0] = p[1], arg[i][1] = i + 1;
		pthread_create(&t[i], NULL, writer_thread, arg[i]);
	}
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	close(p[1]);
	check(status_of(r) == 0, "three threads that write");
	close(p[0]);
	/* Several readers of single bytes, as with a job server: each byte is somebody's. */
	int done[2];
	NEED(pipe(p) == 0 && pipe(done) == 0);
	for (int i = 0; i < 4; i++)
		c[i] = FORK(char b; close(p[1]); close(done[0]);
			    while (read(p[0], &b, 1) == 1) NEED(write(done[1], &b, 1) == 1));
	close(p[0]), close(done[1]);
	unsigned sum = 0, got = 0;
	for (int i = 0; i < 2000; i++) {
		unsigned char b = i;
		sum += b;
		NEED(write(p[1], &b, 1) == 1);
		if (i % 16 == 15)
			for (int k = 0; k < 16 && read(done[0], &b, 1) == 1; k++)
				got += b;
	}
	close(p[1]);
	check(got == sum, "four readers of bytes");
	good = true;
	for (int i = 0; i < 4; i++)
		good = status_of(c[i]) == 0 && good;
	check(good, "all of which see the end");
	close(done[0]);
}

/* ---- threads of one process ------------------------------------------------------------------------------------------ */

static void *echo_thread(void *arg)
{
	int *fd = arg;
	for (uint32_t x; read(fd[0], &x, 4) == 4;)
		if (write(fd[3], &x, 4) != 4)
			break;
	close(fd[3]);
	return NULL;
}

static void test_threads(void)
{
	int fd[4];
	pthread_t t;
	NEED(pipe(fd) == 0 && pipe(fd + 2) == 0);
	pthread_create(&t, NULL, echo_thread, fd);
	bool good = true;
	for (uint32_t i = 0, x; i < 3000 && good; i++)
		good = write(fd[1], &i, 4) == 4 && read(fd[2], &x, 4) == 4 && x == i;
	close(fd[1]);
	uint32_t x;
	check(good && read(fd[2], &x, 4) == 0, "two threads");
	pthread_join(t, NULL);
	close(fd[0]), close(fd[2]);
	/* exec while another thread is in the middle of it. */
	NEED(pipe(fd) == 0);
	pid_t c = FORK(pthread_t u; fd[3] = fd[1]; pthread_create(&u, NULL, (void *(*)(void *))echo_thread, fd);
		       write(fd[1], "abcd", 4); nap(20); execl("/bin/true", "true", NULL));
	status_of(c);
	drain(fd[0]);
	double s = now();
	check(write(fd[1], "1234", 4) == 4 && read(fd[0], &x, 4) == 4 && now() - s < 60,
	      "exec with a thread in the pipe");
	close(fd[0]), close(fd[1]);
}

/* ---- exec ---------------------------------------------------------------------------------------------------------- */

/* In n pipes from the descriptor `first` on: the number of each. */
static int role_holds(int n, int first)
{
	int x;
	for (int i = 0; i < n; i++)
		if (read(first + 2 * i, &x, sizeof x) != sizeof x || x != i)
			return 1;
	return 0;
}

static void exec_with(int n)
{
	char number[16], from[16];
	int fd[2], first = 0;
	NEED(syscall(SYS_close_range, 3, ~0u, 0) == 0);
	for (int i = 0; i < n; i++) {
		NEED(pipe(fd) == 0);
		first = i ? first : fd[0];
		NEED(fd[0] == first + 2 * i && fd[1] == fd[0] + 1 && write(fd[1], &i, sizeof i) == sizeof i);
	}
	snprintf(number, sizeof number, "%d", n);
	snprintf(from, sizeof from, "%d", first);
	execl("/proc/self/exe", "pipe", "holds", number, from, NULL);
}

static void test_exec(void)
{
	check(status_of(FORK(exec_with(1); _exit(2))) == 0, "exec with a pipe finds what is in it");
	check(status_of(FORK(exec_with(200); _exit(2))) == 0, "exec with 200 pipes finds what is in them");
}

/* ---- random deaths -------------------------------------------------------------------------------------------------- */

#define CROWD 8

/* A ring of processes, each of which passes numbered messages on; some are killed. Whoever lives sees whole messages
 * in order, then the end or EPIPE, and ends. */
static void crowd(unsigned seed)
{
	int p[CROWD][2];
	pid_t c[CROWD];
	char name[80];
	for (int i = 0; i < CROWD; i++)
		NEED(pipe(p[i]) == 0);
	srand(seed);
	for (int i = 0; i < CROWD; i++)
		c[i] = FORK(
			struct {
				uint32_t nr, len;
				unsigned char data[2000];
			} m;
			uint32_t in = 0, out = 0; signal(SIGPIPE, SIG_IGN); for (int k = 0; k < CROWD; k++) {
				if (k != i)
					close(p[k][0]);
				if (k != (i + 1) % CROWD)
					close(p[k][1]);
			} unsigned x = seed + i;
			for (;;) {
				x = x * 1103515245 + 12345;
				if (i == 0 || in) { /* the first starts; the others answer each message with one */
					m.nr = out++;
					m.len = (x >> 10) % (x >> 8 & 7 ? 60 : sizeof m.data);
					memset(m.data, (unsigned char)m.nr, m.len);
					if (write(p[(i + 1) % CROWD][1], &m, 8 + m.len) != (ssize_t)(8 + m.len)) {
						NEED(errno == EPIPE);
						break;
					}
				}
				if (i == 0 && out < 4)
					continue;
				if (!read_all(p[i][0], &m, 8))
					break;
				NEED(m.nr == in++ && m.len <= sizeof m.data);
				if (!read_all(p[i][0], m.data, m.len))
					break;
				for (unsigned k = 0; k < m.len; k++)
					NEED(m.data[k] == (unsigned char)m.nr);
			});
	for (int i = 0; i < CROWD; i++)
		close(p[i][0]), close(p[i][1]);
	usleep(3000 + rand() % 30000);
	bool killed[CROWD] = { false };
	for (int i = 0, n = 1 + rand() % 3; i < n; i++) {
		int k = rand() % CROWD;
		killed[k] = true;
		kill(c[k], SIGKILL);
		usleep(rand() % 2000);
	}
	bool good = true, late = false;
	double t = now();
	for (int left = CROWD; left;) {
		int st;
		pid_t d = waitpid(-1, &st, WNOHANG);
		if (d <= 0) {
			if (now() - t > 60) {
				late = true;
				for (int i = 0; i < CROWD; i++)
					kill(c[i], SIGKILL);
				t = now() + 1000;
			}
			usleep(500);
			continue;
		}
		left--;
		for (int i = 0; i < CROWD; i++)
			if (c[i] == d)
				good = good && (killed[i] || late || (WIFEXITED(st) && WEXITSTATUS(st) == 0));
	}
	snprintf(name, sizeof name, "deaths, seed %u", seed);
	check(good && !late, name);
}

/* ---- a process without its first thread ---- */

static volatile int *turn; /* shared: 1 the data is written, 2 others have made pipes, 3 it is there */
static int lone[2];

static void *goes_on(void *arg)
{
	char c = 0;
	(void)arg;
	NEED(write(lone[1], "x", 1) == 1);
	*turn = 1;
	for (int i = 0; i < 20000 && *turn != 2; i++)
		usleep(1000);
	if (*turn == 2 && read(lone[0], &c, 1) == 1 && c == 'x')
		*turn = 3;
	_exit(0);
}

/* To /proc it looks as dead as a zombie; its pipes live on when others look for those of the dead. */
static void test_first_thread_gone(void)
{
	int p[2], status, made = 0, fd[600];
	turn = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t child = FORK({
		pthread_t t;
		NEED(pipe2(lone, O_NONBLOCK) == 0 && pthread_create(&t, NULL, goes_on, NULL) == 0);
		pthread_exit(NULL);
	});
	for (int i = 0; i < 20000 && *turn != 1; i++)
		usleep(1000);
	usleep(200000); /* its first thread ends */
	while (made < 600 && pipe(p) == 0) {
		fd[made++] = p[0];
		fd[made++] = p[1];
	}
	*turn = 2;
	NEED(waitpid(child, &status, 0) == child);
	for (int i = 0; i < made; i++)
		close(fd[i]);
	check(*turn == 3, "data in the pipe of a process whose first thread has ended");
	munmap((void *)turn, 4096);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "holds"))
		return role_holds(atoi(argv[2]), atoi(argv[3]));
	int (*const rounds)(const char *) = atoi;
	const char *seed = getenv("PIPE_SEED"), *n = getenv("PIPE_ROUNDS");
	alarm(n ? 3600 : 500);
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!n) {
		test_basic();
		test_full();
		test_broken();
		test_copies();
		test_sizes();
		test_others();
		alarm(0);
		test_events();
		test_signals();
		alarm(500);
		test_fork();
		test_atomic();
		test_threads();
		test_exec();
		test_first_thread_gone();
	}
	for (int i = 0, k = n ? rounds(n) : 12; i < k; i++)
		crowd((seed ? (unsigned)atoi(seed) : 1) + i);
	return first_failed;
}
