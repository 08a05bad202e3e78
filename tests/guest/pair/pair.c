/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Socket pairs, operation by operation. A script is a row of operations on the ends a and b, each with what it gave in the
 * output; it is run with both ends in one process, with b in a child, and in a child that has called exec. What has to
 * wait, or to die, comes behind that. tests/run.py runs it natively and in a pVM and compares: Linux is the reference.
 * Exit status 1: something was lost or took too long.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
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
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../asleep.h"
#include "script.h"

/* ---- what waits, and what dies ---------------------------------------------------------------------------------- */

static void nap(int ms) { usleep((useconds_t)ms * 1000); }

static pid_t child(void)
{
	fflush(stdout);
	pid_t pid = fork();
	NEED(pid >= 0);
	return pid;
}

static void pair(int sv[2]) { NEED(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) == 0); }

static void line(const char *what, ssize_t r) { printf("%s: %zd %s\n", what, r, err(r)); }

#define BULK (8 << 20)
static int bulk_fd;

static void *bulk_write(void *arg)
{
	(void)arg;
	for (uint32_t at = 0; at < BULK;) {
		char buf[50000];
		size_t n = 1 + (at * 7919u) % sizeof buf;
		n = n < BULK - at ? n : BULK - at;
		for (size_t i = 0; i < n; i++)
			buf[i] = (char)((at + i) % 251);
		NEED(write(bulk_fd, buf, n) == (ssize_t)n);
		at += (uint32_t)n;
	}
	close(bulk_fd);
	return NULL;
}

static void bulk_read(int fd, const char *what)
{
	uint32_t at = 0;
	for (ssize_t n; (n = read(fd, rbuf, 1 + (at * 31u) % sizeof rbuf)) > 0; at += (uint32_t)n)
		for (ssize_t i = 0; i < n; i++)
			NEED(rbuf[i] == (char)((at + i) % 251));
	line(what, at);
}

static void bulk(void)
{
	int sv[2];
	pthread_t t;
	pair(sv);
	bulk_fd = sv[1];
	NEED(pthread_create(&t, NULL, bulk_write, NULL) == 0);
	bulk_read(sv[0], "8 MiB from a thread");
	pthread_join(t, NULL);
	close(sv[0]);
	pair(sv);
	if (child() == 0) {
		close(sv[0]);
		bulk_fd = sv[1];
		bulk_write(NULL);
		_exit(0);
	}
	close(sv[1]);
	bulk_read(sv[0], "8 MiB from a process");
	wait(NULL);
	close(sv[0]);
}

/* A child answers; what wakes the parent? */
static void ping_pong(void)
{
	int sv[2], n = 0;
	char c = 0;
	pair(sv);
	if (child() == 0) {
		close(sv[0]);
		while (read(sv[1], &c, 1) == 1) {
			c++;
			NEED(write(sv[1], &c, 1) == 1);
		}
		_exit(0);
	}
	close(sv[1]);
	for (int i = 0; i < 2000; i++) {
		char was = c;
		struct pollfd p = { sv[0], POLLIN, 0 };
		NEED(write(sv[0], &c, 1) == 1);
		if (i % 3 == 0)
			NEED(poll(&p, 1, 100000) == 1 && p.revents == POLLIN);
		NEED(read(sv[0], &c, 1) == 1);
		n += c == (char)(was + 1);
	}
	line("ping-pong", n);
	close(sv[0]);
	wait(NULL);
}

/* The other end's process is killed while this one waits. unread: it has not read what it was sent; how: what waits. */
static void killed(const char *what, int how, bool unread)
{
	int sv[2];
	char c;
	pair(sv);
	pid_t pid = child();
	if (pid == 0) {
		close(sv[0]);
		if (!unread)
			NEED(read(sv[1], &c, 1) == 1);
		NEED(write(sv[1], "12345", 5) == 5);
		if (how == 3)
			NEED(write(sv[1], "12345", 5) == 5);
		pause();
	}
	close(sv[1]);
	NEED(write(sv[0], "x", 1) == 1);
	NEED(recv(sv[0], rbuf, 5, MSG_WAITALL) == 5);
	pid_t killer = child();
	if (killer == 0) {
		close(sv[0]);
		nap(50);
		kill(pid, SIGKILL);
		_exit(0);
	}
	struct timespec t0, t1;
	clock_gettime(CLOCK_MONOTONIC, &t0);
	printf("killed, %s%s:\n", what, unread ? ", with unread data" : "");
	if (how == 1) {
		struct pollfd p = { sv[0], POLLIN, 0 };
		line("poll", poll(&p, 1, 100000));
		line("events", p.revents);
	} else if (how == 2) {
		ssize_t r;
		signal(SIGPIPE, SIG_IGN);
		while ((r = write(sv[0], wbuf, 1000)) > 0)
			;
		line("write", r);
		signal(SIGPIPE, SIG_DFL);
	}
	if (how == 3)
		line("read", read(sv[0], rbuf, 100));
	if (how != 2) {
		line("read", read(sv[0], rbuf, 100));
		line("read", read(sv[0], rbuf, 100));
	}
	clock_gettime(CLOCK_MONOTONIC, &t1);
	NEED(t1.tv_sec - t0.tv_sec < 60);
	close(sv[0]);
	while (wait(NULL) > 0)
		;
}

static void broken(void)
{
	int sv[2], status;
	pair(sv);
	pid_t pid = child();
	if (pid == 0) {
		close(sv[1]);
		if (write(sv[0], "x", 1) == 1)
			_exit(1);
		_exit(2);
	}
	close(sv[0]);
	close(sv[1]);
	waitpid(pid, &status, 0);
	line("a signal ends who writes to nobody", WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status));
}

static ssize_t try_send_fd(int over, int fd)
{
	union {
		struct cmsghdr h;
		char room[CMSG_SPACE(sizeof fd)];
	} u = { 0 };
	struct iovec v = { "f", 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &u, .msg_controllen = sizeof u.room };
	u.h = (struct cmsghdr){ CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS };
	memcpy(CMSG_DATA(&u.h), &fd, sizeof fd);
	return sendmsg(over, &m, 0);
}

static void send_fd(int over, int fd) { NEED(try_send_fd(over, fd) == 1); }

static int get_fd(int over)
{
	union {
		struct cmsghdr h;
		char room[CMSG_SPACE(sizeof(int))];
	} u;
	char c;
	int fd;
	struct iovec v = { &c, 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &u, .msg_controllen = sizeof u.room };
	NEED(recvmsg(over, &m, 0) == 1 && m.msg_controllen == sizeof u.room);
	memcpy(&fd, CMSG_DATA(&u.h), sizeof fd);
	return fd;
}

/* An end with unread data goes to another process, by a message over a pair that has carried data itself. */
static void passed(void)
{
	int sv[2], over[2];
	pair(over);
	pid_t pid = child();
	if (pid == 0) {
		close(over[0]);
		NEED(read(over[1], rbuf, 3) == 3);
		int fd = get_fd(over[1]);
		ssize_t n = recv(fd, rbuf, 100, MSG_DONTWAIT);
		NEED(n == 5 && !memcmp(rbuf, "hello", 5) && write(fd, "back", 4) == 4);
		n = read(fd, rbuf, 100);
		_exit(n == 5 && !memcmp(rbuf, "again", 5) ? 7 : 8);
	}
	close(over[1]);
	pair(sv);
	NEED(write(over[0], "abc", 3) == 3 && write(sv[0], "hello", 5) == 5);
	send_fd(over[0], sv[1]);
	close(sv[1]);
	line("from the passed end", read(sv[0], rbuf, 100));
	NEED(write(sv[0], "again", 5) == 5);
	int status;
	waitpid(pid, &status, 0);
	line("who got it", WEXITSTATUS(status));
	close(sv[0]);
	close(over[0]);
}

static void become_another(void)
{
	if (geteuid() == 0)
		NEED(setresuid(65534, 65534, 65534) == 0);
}

/* Read n bytes, whose numbers begin with `from`. */
static bool takes(int fd, unsigned from, unsigned n)
{
	unsigned char buf[4096];
	for (unsigned at = 0; at < n;) {
		ssize_t r = recv(fd, buf, sizeof buf < n - at ? sizeof buf : n - at, 0);
		if (r <= 0)
			return false;
		for (ssize_t i = 0; i < r; i++, at++)
			if (buf[i] != (from + at) % 251)
				return false;
	}
	return true;
}

static void gives(int fd, unsigned from, unsigned n, unsigned piece)
{
	unsigned char buf[4096];
	for (unsigned at = 0; at < n;) {
		unsigned m = piece < n - at ? piece : n - at;
		for (unsigned i = 0; i < m; i++)
			buf[i] = (unsigned char)((from + at + i) % 251);
		NEED(send(fd, buf, m, 0) == (ssize_t)m);
		at += m;
	}
}

/* Who gets an end with unread data is another user, and maps no memory of this one's. The writer is the one that passes
 * it (0), another that sleeps (1), works (2), or has ended (3); 4: is this one, and becomes another program before. */
static void passed_out(const char *self, int type, int writer)
{
	static const char *const who[] = { "itself", "a sleeper", "a worker", "one that has ended", "another program" };
	const unsigned n = 40000, piece = 1000;
	int sv[2], over[2], go[2], ready[2], status;
	char c = 0;
	NEED(socketpair(AF_UNIX, type, 0, sv) == 0 && pipe(go) == 0 && pipe(ready) == 0);
	NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, over) == 0);
	pid_t reader = child();
	if (reader == 0) {
		close(sv[0]);
		close(sv[1]);
		close(over[0]);
		close(go[1]);
		become_another();
		NEED(write(ready[1], "r", 1) == 1);
		int fd = get_fd(over[1]);
		bool all = takes(fd, 1000, n - 1000);
		NEED(write(ready[1], "R", 1) == 1);
		if (writer != 3)
			all = all && takes(fd, n, 5000) && send(fd, "back", 4, 0) == 4;
		_exit(all ? 7 : 8);
	}
	pid_t other = 0;
	NEED(read(ready[0], &c, 1) == 1);
	if (writer >= 1 && (other = child()) == 0) {
		close(sv[1]);
		close(over[0]);
		close(over[1]);
		close(go[1]);
		gives(sv[0], 0, n, piece);
		if (writer == 4) {
			char text[3][16];
			sprintf(text[0], "%d", sv[0]);
			sprintf(text[1], "%d", go[0]);
			sprintf(text[2], "%d", ready[1]);
			execl(self, self, "writer", text[0], text[1], text[2], NULL);
			_exit(1);
		}
		NEED(write(ready[1], "w", 1) == 1);
		if (writer == 3)
			_exit(0);
		if (writer == 2) {
			fcntl(go[0], F_SETFL, O_NONBLOCK);
			while (read(go[0], &c, 1) < 0)
				for (volatile int i = 0; i < 1000000; i++)
					;
		} else {
			NEED(read(go[0], &c, 1) == 1);
		}
		gives(sv[0], n, 5000, piece);
		NEED(recv(sv[0], rbuf, 9, 0) == 4);
		_exit(0);
	}
	if (writer == 0) {
		gives(sv[0], 0, n, piece);
	} else {
		close(sv[0]);
		NEED(read(ready[0], &c, 1) == 1);
	}
	if (writer == 3)
		waitpid(other, NULL, 0);
	NEED(takes(sv[1], 0, 1000));
	send_fd(over[0], sv[1]);
	close(sv[1]);
	NEED(read(ready[0], &c, 1) == 1);
	if (writer == 0) {
		gives(sv[0], n, 5000, piece);
		NEED(recv(sv[0], rbuf, 9, 0) == 4);
		close(sv[0]);
	} else if (writer != 3) {
		NEED(write(go[1], "g", 1) == 1);
		waitpid(other, &status, 0);
		NEED(status == 0);
	}
	waitpid(reader, &status, 0);
	printf("passed to another user, written by %s: %d\n", who[writer], WEXITSTATUS(status));
	close(over[0]);
	close(over[1]);
	for (int i = 0; i < 2; i++) {
		close(go[i]);
		close(ready[i]);
	}
}

/* Who listens at path belongs to nobody here. It gets 39,000 bytes that another process wrote, and sends an answer. */
static void pass_outside(const char *path, bool killed)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	int over = socket(AF_UNIX, SOCK_STREAM, 0), sv[2], ready[2];
	char c;
	strncpy(name.sun_path, path, sizeof name.sun_path - 1);
	NEED(connect(over, (void *)&name, sizeof name) == 0 && pipe(ready) == 0);
	pair(sv);
	pid_t pid = child();
	if (pid == 0) {
		close(sv[1]);
		gives(sv[0], 0, 40000, 1000);
		NEED(write(ready[1], "w", 1) == 1);
		_exit(read(sv[0], rbuf, 9) == 4 ? 7 : 8);
	}
	close(sv[0]);
	NEED(read(ready[0], &c, 1) == 1);
	int status = 0;
	if (killed) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	NEED(takes(sv[1], 0, 1000));
	line("passed", try_send_fd(over, sv[1]));
	if (!killed)
		waitpid(pid, &status, 0);
	line("answer", WEXITSTATUS(status));
}

/* The writer of passed_out() as another program. */
static void writer_goes_on(int fd, int go, int ready)
{
	char c;
	NEED(write(ready, "w", 1) == 1 && read(go, &c, 1) == 1);
	gives(fd, 40000, 5000, 1000);
	NEED(recv(fd, rbuf, 9, 0) == 4);
	_exit(0);
}

/* More processes than an object has places for, with data unread; the last one reads it. */
static void many_holders(int type)
{
	int sv[2], go[2], status, n = 0;
	char c;
	pid_t pid[60];
	NEED(socketpair(AF_UNIX, type, 0, sv) == 0 && pipe(go) == 0);
	gives(sv[0], 0, 20000, 500);
	for (int i = 0; i < 60; i++) {
		pid[i] = child();
		if (pid[i] == 0) {
			close(sv[0]);
			close(go[1]);
			NEED(read(go[0], &c, 1) == (i == 59));
			_exit(i == 59 && takes(sv[1], 0, 20000) ? 7 : 8);
		}
	}
	close(sv[1]);
	for (int i = 0; i < 59; i++) {
		kill(pid[i], i % 2 ? SIGKILL : SIGTERM);
		waitpid(pid[i], &status, 0);
	}
	NEED(write(go[1], "g", 1) == 1);
	waitpid(pid[59], &status, 0);
	n = WEXITSTATUS(status);
	printf("the sixtieth reader: %d\n", n);
	close(sv[0]);
	close(go[0]);
	close(go[1]);
}

/* One epoll for pairs of all types, a pipe and an eventfd, all written by another process. */
static void epoll_mixed(uint32_t how)
{
	enum { N = 5, TURNS = 150 };
	static const int types[] = { SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM };
	int in[N], out[N], back[2], ep = epoll_create1(EPOLL_CLOEXEC), got[N] = { 0 };
	for (int i = 0; i < 3; i++) {
		int sv[2];
		NEED(socketpair(AF_UNIX, types[i] | SOCK_NONBLOCK, 0, sv) == 0);
		in[i] = sv[0];
		out[i] = sv[1];
	}
	int p[2];
	NEED(pipe2(p, O_NONBLOCK) == 0 && pipe(back) == 0);
	in[3] = p[0];
	out[3] = p[1];
	in[4] = out[4] = eventfd(0, EFD_NONBLOCK);
	for (int i = 0; i < N; i++)
		NEED(epoll_ctl(ep, EPOLL_CTL_ADD, in[i],
			       &(struct epoll_event){ EPOLLIN | how, { .u32 = (uint32_t)i } }) == 0);
	pid_t pid = child();
	if (pid == 0) {
		char c;
		for (int i = 0; i < N * TURNS; i++) {
			uint64_t one = 1;
			if (i % 3 == 0) /* as often asleep as not */
				usleep(300);
			NEED(write(out[i % N], &one, 8) == 8);
			if (i % 7 == 0)
				NEED(read(back[0], &c, 1) == 1);
		}
		_exit(0);
	}
	int sum = 0, acks = 0;
	while (sum < N * TURNS) {
		struct epoll_event ev[N];
		int n = epoll_wait(ep, ev, N, 10000);
		NEED(n > 0);
		for (int k = 0; k < n; k++) {
			int i = (int)ev[k].data.u32;
			ssize_t r;
			uint64_t v[8];
			while ((r = read(in[i], v, sizeof v)) > 0) {
				int m = i == 4 ? (int)v[0] : (int)(r / 8);
				got[i] += m;
				sum += m;
			}
			NEED(r == -1 && errno == EAGAIN);
		}
		for (; acks * 7 < sum && acks < (N * TURNS + 6) / 7; acks++)
			NEED(write(back[1], "a", 1) == 1);
	}
	for (int i = 0; i < N; i++)
		printf("epoll %s, descriptor %d: %d\n", how ? "by edges" : "by levels", i, got[i]);
	waitpid(pid, NULL, 0);
	for (int i = 0; i < N; i++)
		close(in[i]);
	for (int i = 0; i < 4; i++)
		close(out[i]);
	close(back[0]);
	close(back[1]);
	close(ep);
}

/* A writer that an epoll tells of room, against a reader that takes all in small pieces. how: EPOLLET or 0. */
static void epoll_room(int type, uint32_t how)
{
	int sv[2], ep = epoll_create1(EPOLL_CLOEXEC), status;
	const unsigned n = 600000, piece = 1000;
	NEED(socketpair(AF_UNIX, type, 0, sv) == 0);
	pid_t pid = child();
	if (pid == 0) {
		close(sv[0]);
		_exit(takes(sv[1], 0, n) ? 7 : 8);
	}
	close(sv[1]);
	fcntl(sv[0], F_SETFL, O_NONBLOCK);
	struct epoll_event ev = { EPOLLOUT | how, { 0 } };
	NEED(epoll_ctl(ep, EPOLL_CTL_ADD, sv[0], &ev) == 0);
	for (unsigned at = 0; at < n;) {
		NEED(epoll_wait(ep, &ev, 1, 10000) == 1 && ev.events & EPOLLOUT);
		for (;;) {
			unsigned char buf[1000];
			unsigned m = piece < n - at ? piece : n - at;
			for (unsigned i = 0; i < m; i++)
				buf[i] = (unsigned char)((at + i) % 251);
			ssize_t r = m ? write(sv[0], buf, m) : -1;
			if (r < 0) {
				NEED(!m || errno == EAGAIN);
				break;
			}
			at += (unsigned)r;
		}
	}
	waitpid(pid, &status, 0);
	line(how ? "room by edges" : "room by levels", WEXITSTATUS(status));
	close(sv[0]);
	close(ep);
}

/* The reader becomes another user with data unread. */
static void user_changes(void)
{
	int sv[2], status;
	pair(sv);
	NEED(write(sv[0], "before", 6) == 6);
	pid_t pid = child();
	if (pid == 0) {
		close(sv[0]);
		int e = geteuid() ? 0 : setresuid(65534, 65534, 65534);
		ssize_t n = read(sv[1], rbuf, 100);
		NEED(!e && n >= 6 && write(sv[1], "ok", 2) == 2);
		while (n < 11)
			n += read(sv[1], rbuf + n, 100);
		_exit(n == 11 && !memcmp(rbuf, "beforeafter", 11) ? 7 : 8);
	}
	close(sv[1]);
	line("answer of another user", read(sv[0], rbuf, 2));
	NEED(write(sv[0], "after", 5) == 5);
	waitpid(pid, &status, 0);
	line("what it read", WEXITSTATUS(status));
	close(sv[0]);
}

/* Edges and levels, with the writer in another process. */
static void epoll_waits(void)
{
	int sv[2], ep = epoll_create1(0), n = 0;
	struct epoll_event ev = { EPOLLIN | EPOLLET, { 0 } };
	char c;
	pair(sv);
	pid_t pid = child();
	if (pid == 0) {
		close(sv[0]);
		for (int i = 0; i < 300; i++)
			NEED(write(sv[1], "x", 1) == 1 && read(sv[1], &c, 1) == 1);
		_exit(0);
	}
	close(sv[1]);
	NEED(read(sv[0], &c, 1) == 1 && write(sv[0], "y", 1) == 1);
	NEED(epoll_ctl(ep, EPOLL_CTL_ADD, sv[0], &ev) == 0);
	for (int i = 1; i < 300; i++) {
		NEED(epoll_wait(ep, &ev, 1, 10000) == 1 && ev.events & EPOLLIN);
		NEED(recv(sv[0], &c, 1, MSG_DONTWAIT) == 1);
		NEED(write(sv[0], "y", 1) == 1);
		n++;
	}
	line("edges", n);
	NEED(epoll_wait(ep, &ev, 1, 10000) == 1);
	line("at the end", ev.events & (EPOLLIN | EPOLLHUP));
	waitpid(pid, NULL, 0);
	close(sv[0]);
	close(ep);
}

static void full(void)
{
	int sv[2];
	size_t n = 0, m = 0;
	ssize_t r;
	struct pollfd p;
	NEED(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sv) == 0);
	while ((r = write(sv[0], wbuf, 1000)) > 0)
		n += (size_t)r;
	line("a full one", r);
	p = (struct pollfd){ sv[1], POLLIN | POLLOUT, 0 };
	poll(&p, 1, 0);
	line("events of the reader", p.revents);
	while ((r = read(sv[1], rbuf, sizeof rbuf)) > 0)
		m += (size_t)r;
	line("all of it", n > 30000 && n == m);
	p = (struct pollfd){ sv[0], POLLIN | POLLOUT, 0 };
	line("room again", poll(&p, 1, 0));
	line("events", p.revents);
	close(sv[0]);
	close(sv[1]);
}

static volatile pid_t reader;

static void *thread_read(void *arg)
{
	static char c[16];
	reader = gettid();
	ssize_t n = read(*(int *)arg, c, sizeof c);
	return (void *)(n < 0 ? -errno : n);
}

/* A thread sleeps in read while others change what it sleeps on. */
static void changes_below(void)
{
	int sv[2];
	pthread_t t;
	void *r;
	for (int i = 0; i < 4; i++) {
		pair(sv);
		reader = 0;
		NEED(pthread_create(&t, NULL, thread_read, &sv[1]) == 0);
		while (!reader)
			nap(1);
		asleep(getpid(), reader);
		if (i == 0)
			NEED(write(sv[0], "abc", 3) == 3);
		if (i == 1)
			NEED(shutdown(sv[0], SHUT_WR) == 0);
		if (i == 2) {
			int buf = 100000;
			NEED(setsockopt(sv[0], SOL_SOCKET, SO_SNDBUF, &buf, sizeof buf) == 0);
			NEED(write(sv[0], "abcd", 4) == 4);
		}
		if (i == 3)
			NEED(close(sv[0]) == 0);
		pthread_join(t, &r);
		line("a thread that slept", (long)r);
		if (i < 3)
			close(sv[0]);
		close(sv[1]);
	}
}

/* The last one who has a pair executes another program, in which it is closed, and which has no other, or one. */
static void closed_by_exec(void)
{
	for (int others = 0; others < 2; others++) {
		fflush(stdout);
		pid_t pid = fork();
		if (!pid) {
			int sv[2], p[2];
			char c;
			NEED(!others || pipe(p) == 0);
			for (int i = 0; i < 300; i++) { /* more than there is room for */
				NEED(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) == 0);
				NEED(write(sv[0], "x", 1) == 1 && read(sv[1], &c, 1) == 1 && c == 'x');
				if (i < 299)
					close(sv[0]), close(sv[1]);
			}
			execl("/proc/self/exe", "pair", "after", others ? "1" : "0", NULL);
			_exit(99);
		}
		int status = -1;
		NEED(waitpid(pid, &status, 0) == pid);
		printf("exec that closes a pair, %d other: status %x\n", others, (unsigned)status);
	}
}

/* After that exec, and again after that: pairs work. */
static int after_exec(int more)
{
	int sv[2];
	char c;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) || write(sv[0], "y", 1) != 1 ||
	    read(sv[1], &c, 1) != 1 || c != 'y')
		return 1;
	if (more)
		execl("/proc/self/exe", "pair", "after", "0", NULL);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "after"))
		return after_exec(*argv[2] == '1');
	if (argc == 5 && !strcmp(argv[1], "writer"))
		writer_goes_on(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]));
	if (argc == 4 && !strcmp(argv[1], "pass")) {
		pass_outside(argv[2], *argv[3] == 'k');
		return 0;
	}
	if (argc == 6 && !strcmp(argv[1], "serve")) {
		struct end e = { atoi(argv[2]), -1, -1, -1, *argv[5] == '1', 0, 0 };
		serve(&e, atoi(argv[3]), atoi(argv[4]));
	}
	alarm(500);
	for (int mode = 0; mode < 3; mode++) {
		for (unsigned i = 0; i < sizeof scripts / sizeof *scripts; i++)
			run_script("/proc/self/exe", scripts[i], SOCK_STREAM, mode);
		for (unsigned i = 0; i < sizeof records / sizeof *records; i++) {
			run_script("/proc/self/exe", records[i], SOCK_SEQPACKET, mode);
			run_script("/proc/self/exe", records[i], SOCK_DGRAM, mode);
		}
	}
	closed_by_exec();
	bulk();
	ping_pong();
	broken();
	for (int unread = 0; unread < 2; unread++) {
		killed("in read", 0, unread);
		killed("in poll", 1, unread);
		killed("in write", 2, unread);
		killed("with data", 3, unread);
	}
	passed();
	user_changes();
	for (int i = 0; i < 5; i++) {
		passed_out("/proc/self/exe", SOCK_STREAM, i);
		passed_out("/proc/self/exe", SOCK_SEQPACKET, i);
	}
	many_holders(SOCK_STREAM);
	many_holders(SOCK_DGRAM);
	epoll_mixed(0);
	epoll_mixed(EPOLLET);
	for (int i = 0; i < 2; i++) {
		epoll_room(SOCK_STREAM, i ? EPOLLET : 0);
		epoll_room(SOCK_SEQPACKET, i ? EPOLLET : 0);
		epoll_room(SOCK_DGRAM, i ? EPOLLET : 0);
	}
	epoll_waits();
	full();
	changes_below();
	return 0;
}
