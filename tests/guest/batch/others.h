/* SPDX-License-Identifier: Apache-2.0 */
/* Others who have the socket: processes, and threads. Part of batch.c. */
#ifndef KX_GUEST_BATCH_OTHERS_H
#define KX_GUEST_BATCH_OTHERS_H
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include "talk.h"

/* ---- others --------------------------------------------------------------------------------------------------------------- */

static inline void test_fork(void)
{
	char b[64];
	int fd = conn(0), st = 0, fd2;
	tell(SEND, 0, 6, "abcdef");
	check(turn(fd, 30000) && read(fd, b, 2) == 2 && write(fd, "1", 1) == 1, "before a fork");
	pid_t pid = fork();
	if (!pid) {
		bool ok = read(fd, b, 2) == 2 && !memcmp(b, "cd", 2) && write(fd, "2", 1) == 1;
		_exit(ok ? 0 : 1);
	}
	check(waitpid(pid, &st, 0) == pid && st == 0, "the child reads on where its parent stopped");
	check(read(fd, b, 64) == 2 && !memcmp(b, "ef", 2) && write(fd, "3", 1) == 1,
	      "and the parent where the child did");
	check(tell(RECV, 0, 3, NULL) == 3 && !memcmp(last.data, "123", 3), "what both wrote is in order");
	/* A child that takes turns of its own while its parent does. */
	fd2 = conn(1);
	pid = fork();
	if (!pid) {
		int ep = epoll_create1(0);
		struct epoll_event ev = { .events = EPOLLIN, .data.fd = fd };
		epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
		bool ok = epoll_wait(ep, &ev, 1, 30000) == 1 && read(fd, b, 64) == 3 && write(fd, "child", 5) == 5;
		_exit(ok ? 0 : 1);
	}
	tell(SEND, 1, 2, "xy");
	check(turn(fd2, 30000) && read(fd2, b, 64) == 2 && write(fd2, "parent", 6) == 6, "the parent's turn");
	tell(SEND, 0, 3, "ghi");
	check(waitpid(pid, &st, 0) == pid && st == 0, "the child's turn");
	check(tell(RECV, 0, 5, NULL) == 5 && tell(RECV, 1, 6, NULL) == 6, "both arrive");
	/* One that inherits what it may not lose, by vfork and exec. */
	tell(SEND, 1, 4, "left");
	check(turn(fd2, 30000) && read(fd2, b, 1) == 1 && write(fd2, "v", 1) == 1, "before a vfork");
	pid = vfork();
	if (!pid) {
		execl("/bin/true", "true", (char *)NULL);
		_exit(1);
	}
	check(waitpid(pid, &st, 0) == pid && st == 0 && read(fd2, b, 64) == 3, "after a vfork");
	check(tell(RECV, 1, 1, NULL) == 1, "what was written before it is there");
	for (int i = 0; i < 3; i++) {
		tell(SEND, 1, 2, "op");
		check(turn(fd2, 30000) && read(fd2, b, 64) == 2 && write(fd2, "q", 1) == 1 &&
			      tell(RECV, 1, 1, NULL) == 1,
		      "turns after all children have ended");
	}
	bye(0, fd);
	bye(1, fd2);
}

/* A server in a child of its own: it ends by exit, by a signal, by exec, with something written last. */
static inline void test_death(void)
{
	static const char *const how[] = { "_exit", "a signal", "exec" };
	for (int i = 0; i < 3; i++) {
		if (tell(CONNECT, 0, 0, NULL))
			exit(115);
		pid_t pid = fork();
		if (!pid) {
			char b[8];
			epfd = epoll_create1(0);
			int fd = accept4(lsock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
			struct epoll_event ev = { .events = EPOLLIN, .data.u64 = 0xabc00000000ull + (unsigned)fd };
			epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev);
			if (!turn(fd, 30000) || read(fd, b, 8) != 1 || write(fd, "farewell", 8) != 8)
				_exit(1);
			if (i == 1)
				raise(SIGTERM);
			if (i == 2)
				execl("/bin/true", "true", (char *)NULL);
			_exit(0);
		}
		tell(SEND, 0, 1, "x");
		waitpid(pid, NULL, 0);
		char name[64];
		snprintf(name, sizeof name, "%s: what was written last arrives", how[i]);
		check(tell(RECV, 0, 100, NULL) == 8 && !memcmp(last.data, "farewell", 8), name);
		tell(CLOSE, 0, 0, NULL);
	}
}

static inline void test_rights(void)
{
	char b[64], ctl[CMSG_SPACE(sizeof(int))] = { 0 };
	int fd = conn(0), sv[2], got = -1;
	struct iovec v = { "f", 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = ctl, .msg_controllen = sizeof ctl };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(c), &fd, sizeof fd);
	tell(SEND, 0, 6, "abcdef");
	check(turn(fd, 30000) && read(fd, b, 2) == 2 && write(fd, "1", 1) == 1, "before it is passed on");
	check(!socketpair(AF_UNIX, SOCK_STREAM, 0, sv) && sendmsg(sv[0], &m, 0) == 1, "SCM_RIGHTS");
	v.iov_base = b;
	check(recvmsg(sv[1], &m, 0) == 1 && (c = CMSG_FIRSTHDR(&m)), "received");
	memcpy(&got, CMSG_DATA(c), sizeof got);
	check(read(got, b, 2) == 2 && !memcmp(b, "cd", 2) && read(fd, b, 9) == 2 && write(got, "2", 1) == 1,
	      "one stream");
	check(write(fd, "3", 1) == 1 && tell(RECV, 0, 3, NULL) == 3 && !memcmp(last.data, "123", 3), "in order");
	close(got);
	close(sv[0]);
	close(sv[1]);
	bye(0, fd);
}

/* A process that is its own peer. */
static inline void test_own_peer(void)
{
	char b[64];
	int a = socket(addr.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int r = connect(a, (void *)&addr, addr_len);
	check(r == 0 || errno == EINPROGRESS, "connect to oneself");
	int fd = accept4(lsock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = 0xabc00000000ull + (unsigned)fd };
	struct epoll_event ev2 = { .events = EPOLLIN, .data.u64 = 0xabc00000000ull + (unsigned)a };
	epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev);
	epoll_ctl(epfd, EPOLL_CTL_ADD, a, &ev2);
	for (int i = 0; i < 50; i++) {
		bool ok = write(a, "ping", 4) == 4 && turn(fd, 30000) && read(fd, b, 64) == 4 &&
			  write(fd, "pong", 4) == 4 && turn(a, 30000) && read(a, b, 64) == 4 && !memcmp(b, "pong", 4);
		if (i == 0 || !ok)
			check(ok, "there and back");
	}
	check(write(a, "1", 1) == 1 && turn(fd, 30000) && read(fd, b, 64) == 1 && write(a, "2", 1) == 1, "once more");
	r = read(fd, b, 64);
	check(r == 1 || (!is_unix && r == -1 && turn(fd, 30000) && read(fd, b, 64) == 1),
	      "what one has sent oneself is there");
	close(a);
	check(turn(fd, 30000) && read(fd, b, 64) == 0, "the end");
	close(fd);
}

/* ---- threads ---------------------------------------------------------------------------------------------------------------- */

static volatile int stop;
static _Atomic long served;

static inline void *loop(void *arg)
{
	int ep = *(int *)arg;
	char b[256];
	struct epoll_event ev[8];
	while (!stop) {
		int n = epoll_wait(ep, ev, 8, 20);
		for (int i = 0; i < n; i++) {
			long r = read(ev[i].data.fd, b, sizeof b);
			for (long at = 0, w; at<r; at += w> 0 ? w : 0)
				w = write(ev[i].data.fd, b + at, r - at);
			served += r > 0 ? r : 0;
		}
	}
	return NULL;
}

static inline void test_threads(void)
{
	pthread_t t[4];
	int ep[4], fd[16];
	bool ok = true;
	stop = 0;
	served = 0;
	for (int i = 0; i < 4; i++)
		ep[i] = epoll_create1(EPOLL_CLOEXEC);
	for (int i = 0; i < 16; i++) {
		struct epoll_event ev = { .events = EPOLLIN };
		tell(CONNECT, i, 0, NULL);
		ev.data.fd = fd[i] = accept4(lsock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		epoll_ctl(ep[i % 3], EPOLL_CTL_ADD, fd[i], &ev);
	}
	ep[3] = ep[2]; /* two threads on one epoll */
	for (int i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, loop, &ep[i]);
	for (int round = 0; round < 40; round++) {
		for (int i = 0; i < 16; i++) {
			char d[16];
			snprintf(d, sizeof d, "%07d", round * 16 + i);
			ask(SEND, i, 8, d);
		}
		for (int i = 0; i < 16; i++)
			answer();
		for (int i = 0; i < 16; i++) {
			char d[16];
			snprintf(d, sizeof d, "%07d", round * 16 + i);
			ok &= tell(RECV, i, 8, NULL) == 8 && !memcmp(last.data, d, 8);
		}
	}
	stop = 1;
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	check(ok && served == 40 * 16 * 8, "four threads with three epolls echo all of it, once and in order");
	/* A socket that goes from one thread to another. */
	tell(SEND, 0, 6, "abcdef");
	struct epoll_event ev;
	char b[8];
	check(epoll_wait(ep[0], &ev, 1, 30000) == 1 && read(fd[0], b, 2) == 2 && write(fd[0], "1", 1) == 1,
	      "a turn here");
	stop = 0;
	pthread_create(&t[0], NULL, loop, &ep[0]);
	tell(RECV, 0, 5, NULL);
	stop = 1;
	pthread_join(t[0], NULL);
	check(last.r == 5 && !memcmp(last.data, "1cdef", 5), "the next thread goes on");
	for (int i = 0; i < 16; i++)
		bye(i, fd[i]);
	for (int i = 0; i < 3; i++)
		close(ep[i]);
}

static inline void test_signals(void)
{
	char b[64];
	int fd = conn(0);
	pipes = 0;
	signal(SIGPIPE, on_pipe);
	tell(SEND, 0, 2, "ab");
	check(turn(fd, 30000), "event");
	raise(SIGPIPE);
	check(pipes == 1 && read(fd, b, 64) == 2, "a handler between event and read");
	signal(SIGPIPE, SIG_DFL);
	/* Asked again and again without waiting, what comes must be seen. */
	tell(SEND, 0, 1, "x");
	check(turn(fd, 30000) && read(fd, b, 64) == 1, "event");
	ask(SEND, 0, 1, "y");
	int64_t t = now_us();
	long r;
	while ((r = read(fd, b, 64)) < 0 && now_us() - t < 60000000)
		;
	check(r == 1 && b[0] == 'y', "a read that is repeated without epoll_wait");
	answer();
	bye(0, fd);
}

static inline void test_speed(void)
{
	char b[64];
	int fd = conn(0), n = 10000;
	tell(SEND, 0, 15000, NULL);
	nap(20);
	turn(fd, 30000);
	int64_t t = now_us();
	for (int i = 0; i < n; i++)
		if (read(fd, b, 1) != 1)
			break;
	printf("# %d reads of one byte: %lld us\n", n, (long long)(now_us() - t));
	bye(0, fd);
}
#endif
