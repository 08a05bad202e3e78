/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An event loop whose turns make one call more than their wait, such as a write to a log: what that call's exit has seen
 * of the epoll ahead must be what the wait would have found, whatever the program does in between. The other side is a
 * process that gets its orders by shared memory, without a call of this one. Passes on any Linux. Exit code: 0, or 1 +
 * the number of the first check that failed (at most 120).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../clock.h"
#include "../counted.h"

/* ---- the other side ---------------------------------------------------------------------------------------------- */

enum { CONNECT = 1, SEND, RECV, CLOSE, RESET, QUIT };
static struct {
	int asked, done; /* orders so far */
	int what, n, r;
	char data[64];
} *volatile orders;
static struct sockaddr_in addr;

static void peer(void)
{
	int fd[16], seen = 0;
	for (;;) {
		int now = __atomic_load_n(&orders->asked, __ATOMIC_ACQUIRE), n = orders->n;
		if (now == seen) {
			struct timespec ts = { 0, 50000 };
			nanosleep(&ts, NULL);
			continue;
		}
		switch (orders->what) {
		case CONNECT:
			fd[n] = socket(AF_INET, SOCK_STREAM, 0);
			orders->r = connect(fd[n], (void *)&addr, sizeof addr);
			break;
		case SEND:
			orders->r = (int)send(fd[n], orders->data, strlen(orders->data), MSG_NOSIGNAL);
			break;
		case RECV:
			orders->r = (int)recv(fd[n], orders->data, sizeof orders->data, 0);
			break;
		case RESET:
			setsockopt(fd[n], SOL_SOCKET, SO_LINGER, &(struct linger){ 1, 0 }, sizeof(struct linger));
			/* fall through */
		case CLOSE:
			orders->r = close(fd[n]);
			break;
		case QUIT:
			_exit(0);
		}
		seen = now;
		__atomic_store_n(&orders->done, seen, __ATOMIC_RELEASE);
	}
}

/* Without a call, so that none comes between. */
static int tell(int what, int n, const char *data)
{
	orders->what = what;
	orders->n = n;
	if (data)
		strcpy(orders->data, data);
	int mine = orders->asked + 1;
	__atomic_store_n(&orders->asked, mine, __ATOMIC_RELEASE);
	while (what != QUIT && __atomic_load_n(&orders->done, __ATOMIC_ACQUIRE) != mine)
		__builtin_ia32_pause();
	return orders->r;
}

/* ---- this one ---------------------------------------------------------------------------------------------------- */

static int lsock, epfd, file;
static struct epoll_event evs[8];

static void add(int fd, uint32_t events, uint64_t data)
{
	struct epoll_event ev = { events, { .u64 = data } };
	check(!epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev), "EPOLL_CTL_ADD");
}

static int change(int fd, uint32_t events, uint64_t data)
{
	struct epoll_event ev = { events, { .u64 = data } };
	return epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &ev);
}

static int conn(int n, uint32_t events)
{
	int fd = -1;
	tell(CONNECT, n, NULL);
	for (int i = 0; i < 60000 && fd < 0; i++, nap(1))
		fd = accept4(lsock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	check(fd >= 0, "a connection");
	add(fd, events, (uint64_t)n);
	return fd;
}

static int wait_for(int ms) { return epoll_wait(epfd, evs, 8, ms); }
static bool is(int n, int ev, uint64_t data, uint32_t events)
{
	if (n <= ev || evs[ev].data.u64 != data || evs[ev].events != events)
		printf("# %d events, of %d: data %llu events %#x\n", n, ev, (unsigned long long)evs[ev].data.u64,
		       evs[ev].events);
	return n > ev && evs[ev].data.u64 == data && evs[ev].events == events;
}

static bool gets(int fd, const char *want)
{
	char b[64];
	ssize_t n = read(fd, b, sizeof b);
	return n == (ssize_t)strlen(want) && !memcmp(b, want, (size_t)n);
}

/* The call that comes before each wait. */
static bool note(void) { return write(file, "line\n", 5) == 5; }

/* Turns of connection n: event, read, note. */
static void turns(int n, int fd, int times)
{
	int bad = 0;
	for (int i = 0; i < times; i++) {
		tell(SEND, n, "t");
		bad += wait_for(2000) < 1 || !gets(fd, "t") || !note();
	}
	check(!bad, "turns");
}

static void fresh(void)
{
	close(epfd);
	epfd = epoll_create1(EPOLL_CLOEXEC);
	check(epfd >= 0, "an epoll");
}

static void test_levels(void)
{
	int a = conn(1, EPOLLIN), b = conn(2, EPOLLIN);
	turns(1, a, 6);
	tell(SEND, 1, "one");
	check(wait_for(2000) == 1 && gets(a, "one"), "an event, a read");
	tell(SEND, 2, "two");
	check(note() && is(wait_for(0), 0, 2, EPOLLIN) && gets(b, "two"), "what came before the note");
	tell(SEND, 1, "x");
	check(note() && gets(a, "x") && !wait_for(0), "read behind the note: none");
	turns(1, a, 2);
	tell(SEND, 1, "xy");
	char c;
	check(note() && read(a, &c, 1) == 1 && is(wait_for(0), 0, 1, EPOLLIN) && gets(a, "y"),
	      "read in part: an event");
	turns(1, a, 2);
	tell(SEND, 1, "p");
	tell(SEND, 2, "q");
	check(note() && epoll_wait(epfd, evs, 1, 0) == 1, "two, room for one");
	int first = (int)evs[0].data.u64;
	check(gets(first == 1 ? a : b, first == 1 ? "p" : "q") && is(wait_for(0), 0, 3 - (uint64_t)first, EPOLLIN) &&
		      gets(first == 1 ? b : a, first == 1 ? "q" : "p"),
	      "the other one behind it");
	turns(1, a, 2);
	tell(SEND, 2, "q");
	check(note(), "a note");
	fails(epoll_wait(epfd, bad_address, 8, 0), EFAULT, "events to nowhere");
	fails(epoll_wait(epfd, evs, 0, 0), EINVAL, "room for none");
	check(is(wait_for(0), 0, 2, EPOLLIN) && is(wait_for(0), 0, 2, EPOLLIN) && gets(b, "q") && !wait_for(0),
	      "a level is told until it is read");
	turns(1, a, 2);
	check(note() && !wait_for(0) && !wait_for(0), "none");
	orders->what = SEND, orders->n = 2, strcpy(orders->data, "late");
	__atomic_add_fetch(&orders->asked, 1, __ATOMIC_RELEASE);
	int n = 0;
	for (int64_t end = now_us() + 5000000; !n && now_us() < end;)
		n = wait_for(0);
	check(is(n, 0, 2, EPOLLIN) && gets(b, "late"), "who asks again and again is told");
	turns(1, a, 2);
	tell(SEND, 2, "w");
	check(!change(b, EPOLLIN | EPOLLOUT, 2) && note() && is(wait_for(0), 0, 2, EPOLLIN | EPOLLOUT) &&
		      gets(b, "w") && note() && is(wait_for(0), 0, 2, EPOLLOUT) && write(b, "out", 3) == 3 &&
		      is(wait_for(0), 0, 2, EPOLLOUT) && tell(RECV, 2, NULL) == 3,
	      "room to write");
	check(!change(b, EPOLLIN, 2), "EPOLL_CTL_MOD");
	close(a);
	close(b);
	tell(CLOSE, 1, NULL);
	tell(CLOSE, 2, NULL);
}

static void test_between(uint32_t edge)
{
	int a = conn(1, EPOLLIN), b = conn(2, EPOLLIN | edge), st;
	turns(1, a, 4);
	tell(SEND, 2, "1");
	check(note() && getpgid(0) > 0 && is(wait_for(0), 0, 2, EPOLLIN) && gets(b, "1"), "another call between");
	turns(1, a, 20);
	tell(SEND, 2, "2");
	check(note() && !change(b, EPOLLIN | edge, 7) && is(wait_for(0), 0, 7, EPOLLIN) && gets(b, "2"), "MOD between");
	check(!change(b, EPOLLIN | edge, 2), "MOD");
	turns(1, a, 20);
	tell(SEND, 2, "3");
	check(wait_for(0) == 1 && gets(b, "3") && note(), "it has told");
	turns(1, a, 3);
	tell(SEND, 2, "4");
	check(note() && !epoll_ctl(epfd, EPOLL_CTL_DEL, b, NULL) && !wait_for(0), "DEL between: none");
	add(b, EPOLLIN | edge, 2);
	check(is(wait_for(0), 0, 2, EPOLLIN) && gets(b, "4"), "in again");
	turns(1, a, 20);
	tell(SEND, 2, "6");
	pid_t pid = note() ? fork() : -1;
	if (!pid)
		_exit(0);
	check(waitpid(pid, &st, 0) == pid && !st && is(wait_for(0), 0, 2, EPOLLIN) && gets(b, "6"), "fork between");
	turns(1, a, 20);
	tell(SEND, 2, "7");
	check(note() && !close(b) && !wait_for(0), "close between: none");
	tell(CLOSE, 2, NULL);
	b = conn(2, EPOLLIN | edge);
	turns(1, a, 20);
	tell(SEND, 2, "5");
	check(note(), "a note");
	int d = dup(b);
	check(d >= 0 && is(wait_for(0), 0, 2, EPOLLIN) && gets(d, "5"), "dup between");
	close(d);
	close(b);
	tell(CLOSE, 2, NULL);
	close(a);
	tell(CLOSE, 1, NULL);
}

static void test_edges(void)
{
	int a = conn(1, EPOLLIN), b = conn(2, EPOLLIN | EPOLLET), e = eventfd(0, EFD_NONBLOCK);
	char c[8];
	uint64_t v = 1;
	turns(1, a, 4);
	tell(SEND, 2, "ab");
	check(note() && is(wait_for(0), 0, 2, EPOLLIN) && read(b, c, 1) == 1 && note() && !wait_for(0) && gets(b, "b"),
	      "an edge is told once");
	add(e, EPOLLIN | EPOLLET, 9);
	turns(1, a, 20);
	check(write(e, &v, 8) == 8 && note() && getpgid(0) > 0 && is(wait_for(0), 0, 9, EPOLLIN) && !wait_for(0),
	      "an eventfd's edge, another call between");
	turns(1, a, 20);
	tell(SEND, 2, "c");
	check(write(e, &v, 8) == 8 && note() && getpgid(0) > 0 && wait_for(0) == 2 && !wait_for(0) && gets(b, "c"),
	      "two edges");
	int n = dup(e);
	turns(1, a, 20);
	check(write(e, &v, 8) == 8 && note() && !close(e) && is(wait_for(0), 0, 9, EPOLLIN),
	      "closed, but for another number");
	close(n);
	check(!change(b, EPOLLIN | EPOLLONESHOT, 2), "EPOLLONESHOT");
	turns(1, a, 20);
	tell(SEND, 2, "d");
	check(note() && getpgid(0) > 0 && is(wait_for(0), 0, 2, EPOLLIN) && gets(b, "d"), "a single shot");
	tell(SEND, 2, "e");
	check(note() && !wait_for(0) && gets(b, "e"), "no second one");
	close(a);
	close(b);
	tell(CLOSE, 1, NULL);
	tell(CLOSE, 2, NULL);
}

/* The epoll of a process that has children, or that another epoll watches. */
static void test_nested(void)
{
	int a = conn(1, EPOLLIN), b = conn(2, EPOLLIN | EPOLLET), outer = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event ev = { EPOLLIN | EPOLLET, { .u64 = 1 } };
	check(!epoll_ctl(outer, EPOLL_CTL_ADD, epfd, &ev), "an epoll in another one");
	turns(1, a, 4);
	tell(SEND, 2, "n");
	check(note() && epoll_wait(outer, evs, 8, 0) == 1 && is(wait_for(0), 0, 2, EPOLLIN) && gets(b, "n"),
	      "both tell");
	close(outer);
	close(a);
	close(b);
	tell(CLOSE, 1, NULL);
	tell(CLOSE, 2, NULL);
}

/* ---- connections that come --------------------------------------------------------------------------------------- */

static int arrivals(bool all, int n, uint32_t events, const char *data)
{
	int fd = -1, more;
	tell(CONNECT, n, NULL);
	if (data)
		tell(SEND, n, data);
	if (wait_for(2000) < 1 || evs[0].data.u64 != 0)
		return -1;
	fd = accept4(lsock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (all && ((more = accept4(lsock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) != -1 || errno != EAGAIN))
		return -1;
	struct epoll_event ev = { events, { .u64 = (uint64_t)n } };
	return events && epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) ? -1 : fd;
}

static void test_accept(bool all, uint32_t edge)
{
	int bad = 0, fd, keep = conn(9, EPOLLIN);
	char c;
	add(lsock, EPOLLIN, 0);
	for (int i = 0; i < 8; i++) {
		fd = arrivals(all, 1, EPOLLIN | EPOLLRDHUP | edge, "hello");
		bad += fd < 0 || !is(wait_for(1000), 0, 1, EPOLLIN) || !gets(fd, "hello") || read(fd, &c, 1) != -1 ||
		       errno != EAGAIN || wait_for(0) || write(fd, "bye", 3) != 3 || close(fd);
		bad += tell(RECV, 1, NULL) != 3 || tell(RECV, 1, NULL) != 0;
		tell(CLOSE, 1, NULL);
	}
	check(!bad, "connections that bring data");
	bad = 0;
	for (int i = 0; i < 4; i++) {
		fd = arrivals(all, 1, EPOLLIN | edge, NULL);
		bad += fd < 0 || read(fd, &c, 1) != -1 || errno != EAGAIN || wait_for(0);
		tell(SEND, 1, "ab");
		bad += !is(wait_for(1000), 0, 1, EPOLLIN) || !gets(fd, "ab") || close(fd);
		tell(CLOSE, 1, NULL);
	}
	check(!bad, "connections that bring it later");
	bad = 0;
	for (int i = 0; i < 4; i++) {
		fd = arrivals(all, 1, EPOLLIN | edge, "first");
		bad += fd < 0 || !gets(fd, "first") || wait_for(0);
		tell(SEND, 1, "ab");
		bad += !is(wait_for(1000), 0, 1, EPOLLIN) || !gets(fd, "ab") || close(fd);
		tell(CLOSE, 1, NULL);
	}
	check(!bad, "read before any wait");
	bad = 0;
	for (int i = 0; i < 4; i++) {
		fd = arrivals(all, 1, EPOLLIN | EPOLLOUT | edge, "x");
		bad += fd < 0 || !is(wait_for(1000), 0, 1, EPOLLIN | EPOLLOUT) || !gets(fd, "x");
		bad += edge ? wait_for(0) : !is(wait_for(0), 0, 1, EPOLLOUT);
		bad += close(fd);
		tell(CLOSE, 1, NULL);
	}
	check(!bad, "room to write at once");
	bad = 0;
	for (int i = 0; i < 4; i++) {
		fd = arrivals(all, 1, EPOLLIN | EPOLLONESHOT | edge, "x");
		bad += fd < 0 || !is(wait_for(1000), 0, 1, EPOLLIN) || !gets(fd, "x");
		tell(SEND, 1, "y");
		bad += wait_for(0) || close(fd);
		tell(CLOSE, 1, NULL);
	}
	check(!bad, "once");
	bad = 0;
	for (int i = 0; i < 4; i++) {
		fd = arrivals(all, 1, 0, "x");
		bad += fd < 0 || close(fd) || wait_for(0) || tell(RECV, 1, NULL) > 0;
		tell(CLOSE, 1, NULL);
	}
	check(!bad, "closed at once");
	bad = 0;
	for (int i = 0; i < 4; i++) {
		fd = arrivals(all, 1, EPOLLIN | edge, "x");
		bad += fd < 0 || epoll_ctl(epfd, EPOLL_CTL_DEL, fd, NULL) || wait_for(0) || !gets(fd, "x") || close(fd);
		tell(CLOSE, 1, NULL);
	}
	check(!bad, "in and out");
	bad = 0;
	for (int i = 0; i < 4; i++) {
		fd = arrivals(all, 1, EPOLLIN | edge, "x");
		tell(CONNECT, 2, NULL);
		int two = -1;
		for (int64_t end = now_us() + 5000000; two < 0 && now_us() < end;)
			two = accept4(lsock, NULL, NULL, SOCK_NONBLOCK);
		bad += fd < 0 || two < 0 || !is(wait_for(1000), 0, 1, EPOLLIN) || !gets(fd, "x") || close(fd) ||
		       close(two);
		tell(CLOSE, 1, NULL);
		tell(CLOSE, 2, NULL);
	}
	check(!bad, "who accepts again and again gets the next one");
	check(!epoll_ctl(epfd, EPOLL_CTL_DEL, lsock, NULL), "listener out");
	close(keep);
	tell(CLOSE, 9, NULL);
}

/* Servers that ask who it is for each request, and that read when they were told of room to write. */
static void test_names(void)
{
	struct sockaddr_in first, now;
	socklen_t len = sizeof first;
	int a = conn(1, EPOLLIN), bad = 0;
	char c;
	check(!getpeername(a, (void *)&first, &len) && first.sin_addr.s_addr == htonl(INADDR_LOOPBACK), "getpeername");
	for (int i = 0; i < 4; i++) {
		tell(SEND, 1, "x");
		memset(&now, 0, sizeof now);
		bad += wait_for(2000) != 1 || getpeername(a, (void *)&now, (len = sizeof now, &len)) ||
		       len != sizeof now || memcmp(&now, &first, sizeof now) || !gets(a, "x") ||
		       getpeername(a, (void *)&now, (len = 4, &len)) || len != sizeof now;
	}
	check(!bad, "getpeername in each turn");
	for (int i = 0; i < 6; i++) {
		bad += change(a, EPOLLOUT, 1) || !is(wait_for(1000), 0, 1, EPOLLOUT);
		bad += read(a, &c, 1) != -1 || errno != EAGAIN || read(a, &c, 1) != -1 || errno != EAGAIN;
		tell(SEND, 1, "abc");
		bad += !is(wait_for(1000), 0, 1, EPOLLOUT) || read(a, &c, 1) != 1 || c != 'a' || !gets(a, "bc") ||
		       read(a, &c, 1) != -1 || errno != EAGAIN;
		bad += change(a, EPOLLIN, 1) || wait_for(0);
		tell(SEND, 1, "d");
		bad += !is(wait_for(1000), 0, 1, EPOLLIN) || !gets(a, "d");
	}
	check(!bad, "reads behind an event for room to write");
	tell(SEND, 1, "x");
	check(wait_for(2000) == 1 && gets(a, "x"), "a turn");
	tell(RESET, 1, NULL);
	check(is(wait_for(2000), 0, 1, EPOLLIN | EPOLLERR | EPOLLHUP), "a reset");
	fails(getpeername(a, (void *)&now, (len = sizeof now, &len)), ENOTCONN, "getpeername: of nobody");
	fails(read(a, &c, 1), ECONNRESET, "read: reset");
	close(a);
}

/* A second thread waits for the same epoll: it gets what the first one doesn't take. */
static _Atomic int others;
static void *waiter(void *arg)
{
	struct epoll_event ev;
	(void)arg;
	for (int i = 0; i < 20; i++)
		if (epoll_wait(epfd, &ev, 1, 20) == 1 && ev.data.u64 == 2)
			others++;
	return arg;
}

static void test_threads(void)
{
	int a = conn(1, EPOLLIN), b = conn(2, EPOLLIN | EPOLLET);
	pthread_t th;
	turns(1, a, 4);
	check(!pthread_create(&th, NULL, waiter, NULL), "a thread");
	int mine = 0;
	tell(SEND, 2, "z");
	for (int i = 0; i < 10; i++) {
		note();
		nap(5);
		int n = wait_for(0);
		for (int k = 0; k < n; k++)
			mine += evs[k].data.u64 == 2;
	}
	pthread_join(th, NULL);
	check(mine + others == 1, "one of two is told of an edge");
	close(a);
	close(b);
	tell(CLOSE, 1, NULL);
	tell(CLOSE, 2, NULL);
}

int main(void)
{
	socklen_t len = sizeof addr;
	char name[] = "/tmp/ahead-XXXXXX";
	orders = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	addr = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	lsock = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	check(!bind(lsock, (void *)&addr, sizeof addr) && !listen(lsock, 16) &&
		      !getsockname(lsock, (void *)&addr, &len) && orders != MAP_FAILED,
	      "a listener");
	fflush(stdout);
	pid_t pid = fork();
	if (!pid) {
		close(lsock);
		peer();
	}
	epfd = epoll_create1(EPOLL_CLOEXEC);
	file = mkostemp(name, O_DSYNC); /* else its writes would be queued */
	check(epfd >= 0 && file >= 0 && !unlink(name), "an epoll and a file");
	test_levels();
	for (int i = 0; i < 2; i++) {
		fresh();
		test_between(i ? EPOLLET : 0);
	}
	for (int i = 0; i < 4; i++) {
		fresh();
		test_accept(i & 1, i & 2 ? EPOLLET : 0);
	}
	fresh();
	test_edges();
	fresh();
	test_nested();
	fresh();
	test_names();
	fresh();
	test_threads();
	tell(QUIT, 0, NULL);
	waitpid(pid, NULL, 0);
	printf("%d checks\n", checks);
	return first_failure;
}
