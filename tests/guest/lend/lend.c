/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections that a server goes on using while its children hold them, too: what a child sees that uses one after all, in
 * each way, while the server has read a part of what is there; with the server stopped or killed at that moment, the child
 * killed, and both reading from a stream of numbers, fork upon fork. The client is a process of its own; server and child
 * tell each other by shared memory, so without a call. Passes on any Linux. Exit code: 0, or 1 + the number of the first
 * check that failed (at most 120).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
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
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../clock.h"
#include "../counted.h"

#define ROUNDS 80
#define AHEAD 2048 /* records that the stream's sender is ahead of its readers at most */
#define RECORDS 200000

extern char **environ;

static int lsock, epfd, to_client[2], from_client[2];
static struct sockaddr_in addr;
static struct shared {
	int go, done, result, more;
	uint32_t sent, read, stop, ended;
	uint32_t turn;
	uint8_t seen[RECORDS + 64];
	uint32_t broken;
} * sh;

#define GET(x) __atomic_load_n(&sh->x, __ATOMIC_SEQ_CST)
#define SET(x, v) __atomic_store_n(&sh->x, v, __ATOMIC_SEQ_CST)

/* ---- the client ---------------------------------------------------------------------------------------------------- */

enum { CONNECT = 1, SEND, RECV, CLOSE, QUIET, STREAM };
struct order {
	int what, n, len;
	char text[64];
};

static void stream(int fd)
{
	uint32_t rec[16];
	while (!GET(stop) && sh->sent < RECORDS) {
		if (sh->sent - GET(read) > AHEAD) {
			sched_yield();
			continue;
		}
		uint32_t n = 1 + sh->sent % 16, i;
		for (i = 0; i < n; i++)
			rec[i] = sh->sent + i;
		if (send(fd, rec, n * 4, MSG_NOSIGNAL) != (ssize_t)n * 4)
			SET(broken, 1);
		SET(sent, sh->sent + n);
	}
	SET(ended, 1);
}

static void client(void)
{
	int fd[16] = { 0 };
	struct order o;
	close(to_client[1]);
	while (read(to_client[0], &o, sizeof o) == sizeof o) {
		struct timeval t = { 30, 0 };
		struct pollfd p = { .fd = fd[o.n], .events = POLLIN };
		int r = 0;
		switch (o.what) {
		case CONNECT:
			fd[o.n] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
			setsockopt(fd[o.n], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
			r = connect(fd[o.n], (void *)&addr, sizeof addr);
			break;
		case SEND:
			r = (int)send(fd[o.n], o.text, (size_t)o.len, MSG_NOSIGNAL);
			break;
		case RECV:
			r = (int)recv(fd[o.n], o.text, (size_t)o.len, MSG_WAITALL);
			break;
		case CLOSE:
			r = close(fd[o.n]);
			break;
		case QUIET: /* nothing comes, no end either */
			r = poll(&p, 1, o.len);
			break;
		case STREAM:
			stream(fd[o.n]);
			break;
		}
		o.len = r;
		if (write(from_client[1], &o, sizeof o) != sizeof o)
			break;
	}
	_exit(0);
}

static struct order last;
static void ask(int what, int n, int len, const char *text)
{
	struct order o = { .what = what, .n = n, .len = len };
	if (text)
		memcpy(o.text, text, (size_t)len);
	if (write(to_client[1], &o, sizeof o) != sizeof o)
		exit(125);
}
static int answer(void)
{
	if (read(from_client[0], &last, sizeof last) != sizeof last)
		exit(125);
	return last.len;
}
static int tell(int what, int n, int len, const char *text)
{
	ask(what, n, len, text);
	return answer();
}

/* ---- the server ------------------------------------------------------------------------------------------------------ */

static int accepted(int n)
{
	ask(CONNECT, n, 0, NULL);
	int fd = accept4(lsock, NULL, NULL, SOCK_NONBLOCK);
	struct epoll_event ev = { EPOLLIN, { .fd = fd } };
	if (answer() || fd < 0 || epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev))
		exit(124);
	return fd;
}

/* One turn of an event loop that tells of fd. */
static bool turn(int fd)
{
	struct epoll_event ev[16];
	for (int n; (n = epoll_wait(epfd, ev, 16, 30000)) > 0;)
		for (int i = 0; i < n; i++)
			if (ev[i].data.fd == fd)
				return true;
	return false;
}

static const char text[] = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/* The next n bytes are those at pos of the text. */
static bool reads(int fd, int pos, int n)
{
	char b[64];
	ssize_t r = read(fd, b, (size_t)n);
	return r == n && !memcmp(b, text + pos, (size_t)n);
}

/* Without a call: by one the server would give up what it has in hand. */
static void until(int *p, int v)
{
	while (__atomic_load_n(p, __ATOMIC_SEQ_CST) < v)
		__builtin_ia32_pause();
}

static int status_of(pid_t pid)
{
	int s = -1;
	if (waitpid(pid, &s, 0) != pid)
		return -1;
	return WIFEXITED(s) ? WEXITSTATUS(s) : 128 + WTERMSIG(s);
}

static void begin(void)
{
	SET(go, 0);
	SET(done, 0);
	SET(more, 0);
	SET(result, -1);
}

/* ---- a child's first use ---------------------------------------------------------------------------------------------- */

/* Of the 30 bytes the server has read 10; each takes 5 and says whether it was these. */
static bool by_read(int fd) { return reads(fd, 10, 5); }
static bool by_readv(int fd)
{
	char a[2], b[3];
	struct iovec v[] = { { a, 2 }, { b, 3 } };
	return readv(fd, v, 2) == 5 && !memcmp(a, text + 10, 2) && !memcmp(b, text + 12, 3);
}
static bool by_recvmsg(int fd)
{
	char a[5];
	struct iovec v = { a, 5 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };
	return recvmsg(fd, &m, 0) == 5 && !memcmp(a, text + 10, 5);
}
static bool by_peek(int fd)
{
	char a[40];
	return recv(fd, a, 40, MSG_PEEK) == 20 && !memcmp(a, text + 10, 20) && reads(fd, 10, 5);
}
static bool by_fionread(int fd)
{
	int n = -1;
	return !ioctl(fd, FIONREAD, &n) && n == 20 && reads(fd, 10, 5);
}
static bool by_dup(int fd)
{
	int d = dup(fd);
	return d >= 0 && reads(d, 10, 5) && !close(d);
}
static bool by_dup2(int fd)
{
	int d = dup2(fd, 200);
	return d == 200 && !close(fd) && reads(d, 10, 5) && !close(d);
}
static bool by_splice(int fd)
{
	int p[2];
	return !pipe(p) && splice(fd, NULL, p[1], NULL, 5, 0) == 5 && reads(p[0], 10, 5) && !close(p[0]) &&
	       !close(p[1]);
}
static bool by_passing(int fd)
{
	int s[2], got = -1;
	char b = 0;
	union {
		struct cmsghdr h;
		char room[CMSG_SPACE(sizeof(int))];
	} u = { .h = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	struct iovec v = { &b, 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &u, .msg_controllen = sizeof u.room };
	memcpy(CMSG_DATA(&u.h), &fd, sizeof fd);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, s) || sendmsg(s[0], &m, 0) != 1 || recvmsg(s[1], &m, 0) != 1)
		return false;
	memcpy(&got, CMSG_DATA(&u.h), sizeof got);
	return reads(got, 10, 5) && !close(got);
}
static bool by_grandchild(int fd)
{
	pid_t p = fork();
	if (!p)
		_exit(!reads(fd, 10, 5));
	return status_of(p) == 0;
}
static bool by_orphan(int fd)
{
	int gone[2];
	char b;
	if (pipe(gone))
		return false;
	pid_t p = fork();
	if (!p) { /* its parent, which has not used it, ends first */
		if (!fork()) {
			nap(20);
			char ok = reads(fd, 10, 5);
			_exit(write(gone[1], &ok, 1) != 1);
		}
		_exit(0);
	}
	return status_of(p) == 0 && read(gone[0], &b, 1) == 1 && b;
}
static bool spawned(int fd, bool by_number)
{
	char nr[12];
	char *argv[] = { "lend", "read", nr, NULL };
	posix_spawn_file_actions_t a;
	pid_t p;
	snprintf(nr, sizeof nr, "%d", by_number ? fd : 0);
	posix_spawn_file_actions_init(&a);
	if (!by_number)
		posix_spawn_file_actions_adddup2(&a, fd, 0);
	bool ok = !posix_spawn(&p, "/proc/self/exe", &a, NULL, argv, environ) && status_of(p) == 0;
	posix_spawn_file_actions_destroy(&a);
	return ok;
}
static bool by_spawn(int fd) { return spawned(fd, true); }
static bool by_spawn_stdin(int fd) { return spawned(fd, false); }
static bool by_exec(int fd)
{
	char nr[12];
	snprintf(nr, sizeof nr, "%d", fd);
	pid_t p = fork();
	if (!p) {
		execl("/proc/self/exe", "lend", "read", nr, NULL);
		_exit(97);
	}
	return status_of(p) == 0;
}
static void *thread(void *fd) { return (void *)(intptr_t)reads((int)(intptr_t)fd, 10, 5); }
static bool by_thread(int fd)
{
	pthread_t t;
	void *ok = NULL;
	return !pthread_create(&t, NULL, thread, (void *)(intptr_t)fd) && !pthread_join(t, &ok) && ok;
}

/* The same where the server has read all: nothing is to be seen. */
static bool sees_nothing(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	return poll(&p, 1, 0) == 0;
}
static bool sees_nothing_select(int fd)
{
	fd_set s;
	struct timeval now = { 0, 0 };
	FD_ZERO(&s);
	FD_SET(fd, &s);
	return select(fd + 1, &s, NULL, NULL, &now) == 0;
}
static bool sees_nothing_epoll(int fd)
{
	struct epoll_event ev;
	(void)fd;
	return epoll_wait(epfd, &ev, 1, 0) == 0;
}
static bool sees_nothing_exec(int fd)
{
	char nr[12];
	snprintf(nr, sizeof nr, "%d", epfd);
	pid_t p = fork();
	if (!p) { /* which has the epoll alone */
		fcntl(fd, F_SETFD, FD_CLOEXEC);
		fcntl(epfd, F_SETFD, 0);
		execl("/proc/self/exe", "lend", "wait", nr, NULL);
		_exit(97);
	}
	return status_of(p) == 0;
}
static bool sees_nothing_own_epoll(int fd)
{
	struct epoll_event ev = { EPOLLIN, { .fd = fd } };
	int e = epoll_create1(0);
	return e >= 0 && !epoll_ctl(e, EPOLL_CTL_ADD, fd, &ev) && epoll_wait(e, &ev, 1, 0) == 0;
}
static bool reads_nothing(int fd)
{
	char b;
	return recv(fd, &b, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN;
}

/* The child holds the connection before the server is told of data and reads `n` of 30 bytes. */
static void first_use(const char *name, bool (*use)(int), int n, int left)
{
	int fd = accepted(0);
	begin();
	fflush(stdout);
	pid_t p = fork();
	if (!p) {
		until(&sh->go, 1);
		bool ok = use(fd);
		SET(result, ok);
		SET(done, 1);
		_exit(0);
	}
	bool ok = tell(SEND, 0, 30, text) == 30 && turn(fd) && reads(fd, 0, n);
	SET(go, 1);
	until(&sh->done, 1);
	ok &= sh->result == 1 && (left == 0 || reads(fd, 30 - left, left));
	char b;
	ok &= read(fd, &b, 1) == -1 && errno == EAGAIN && status_of(p) == 0;
	/* With the child gone it goes on as before. */
	for (int i = 0; i < 3; i++)
		ok &= tell(SEND, 0, 20, text) == 20 && turn(fd) && reads(fd, 0, 7) && reads(fd, 7, 13) &&
		      write(fd, text, 9) == 9 && tell(RECV, 0, 9, NULL) == 9 && !memcmp(last.text, text, 9);
	close(fd);
	tell(CLOSE, 0, 0, NULL);
	check(ok, name);
}

static void first_uses(void)
{
	first_use("read", by_read, 10, 15);
	first_use("readv", by_readv, 10, 15);
	first_use("recvmsg", by_recvmsg, 10, 15);
	first_use("recv, a look", by_peek, 10, 15);
	first_use("FIONREAD", by_fionread, 10, 15);
	first_use("dup", by_dup, 10, 15);
	first_use("dup2 and close", by_dup2, 10, 15);
	first_use("splice", by_splice, 10, 15);
	first_use("a grandchild", by_grandchild, 10, 15);
	first_use("a grandchild whose parent has ended", by_orphan, 10, 15);
	first_use("posix_spawn", by_spawn, 10, 15);
	first_use("posix_spawn with another number", by_spawn_stdin, 10, 15);
	first_use("exec", by_exec, 10, 15);
	first_use("a thread", by_thread, 10, 15);
	first_use("poll: nothing left", sees_nothing, 30, 0);
	first_use("select: nothing left", sees_nothing_select, 30, 0);
	first_use("epoll: nothing left", sees_nothing_epoll, 30, 0);
	first_use("exec with the epoll: nothing left", sees_nothing_exec, 30, 0);
	first_use("an epoll of its own: nothing left", sees_nothing_own_epoll, 30, 0);
	first_use("recv: nothing left", reads_nothing, 30, 0);
}

/* ---- both, by turns ----------------------------------------------------------------------------------------------------- */

static void by_turns(void)
{
	char b[8];
	int fd = accepted(0);
	begin();
	fflush(stdout);
	pid_t p[2];
	for (int k = 0; k < 2; k++)
		if (!(p[k] = fork())) {
			bool ok = true;
			for (int i = 0; i < 4; i++) {
				until(&sh->go, 1 + k + 2 * i);
				ok &= reads(fd, 4 + k * 3, 3);
				SET(done, 1 + k + 2 * i);
			}
			_exit(!ok);
		}
	bool ok = true;
	for (int i = 0; i < 4; i++) {
		ok &= tell(SEND, 0, 12, text) == 12 && turn(fd) && reads(fd, 0, 4);
		for (int k = 0; k < 2; k++) {
			SET(go, 1 + k + 2 * i);
			until(&sh->done, 1 + k + 2 * i);
		}
		ok &= reads(fd, 10, 2) && read(fd, b, 1) == -1 && errno == EAGAIN;
	}
	check(ok && status_of(p[0]) == 0 && status_of(p[1]) == 0, "server and two children by turns");

	/* A write, a word by a pipe, and the child's write come in this order. */
	int word[2];
	ok = !pipe(word) && tell(SEND, 0, 12, text) == 12 && turn(fd) && reads(fd, 0, 12);
	fflush(stdout);
	if (!(p[0] = fork()))
		_exit(!(read(word[0], b, 1) == 1 && write(fd, text + 9, 9) == 9));
	ok &= tell(SEND, 0, 12, text) == 12 && turn(fd) && reads(fd, 0, 12) && write(fd, text, 9) == 9 &&
	      write(word[1], "", 1) == 1;
	ok &= tell(RECV, 0, 18, NULL) == 18 && !memcmp(last.text, text, 18) && status_of(p[0]) == 0;
	check(ok, "a write, a word, the child's write");

	/* Who closes last. */
	begin();
	fflush(stdout);
	if (!(p[0] = fork())) {
		until(&sh->go, 1);
		_exit(0);
	}
	ok = tell(SEND, 0, 12, text) == 12 && turn(fd) && reads(fd, 0, 12) && write(fd, text, 9) == 9 && close(fd) == 0;
	ok &= tell(RECV, 0, 9, NULL) == 9 && tell(QUIET, 0, 50, NULL) == 0;
	SET(go, 1);
	check(ok && tell(RECV, 0, 1, NULL) == 0 && status_of(p[0]) == 0, "the end comes with the child's");
	tell(CLOSE, 0, 0, NULL);

	fd = accepted(0);
	begin();
	fflush(stdout);
	if (!(p[0] = fork())) {
		int zero = open("/dev/zero", O_RDONLY), ok_ = close(fd) == 0 && dup2(zero, fd) == fd;
		ok_ = ok_ && read(fd, b, 4) == 4 && !b[0];
		SET(done, 1);
		until(&sh->go, 1);
		_exit(!(ok_ && read(fd, b, 4) == 4));
	}
	until(&sh->done, 1);
	ok = tell(SEND, 0, 30, text) == 30 && turn(fd) && reads(fd, 0, 10);
	SET(go, 1);
	ok &= status_of(p[0]) == 0 && reads(fd, 10, 20) && write(fd, text, 9) == 9 && close(fd) == 0;
	ok &= tell(RECV, 0, 10, NULL) == 9;
	check(ok, "a child that has closed it has the number for something else");
	tell(CLOSE, 0, 0, NULL);

	/* The number is another connection's in the server. */
	fd = accepted(0);
	begin();
	fflush(stdout);
	if (!(p[0] = fork())) {
		until(&sh->go, 1);
		ok = reads(fd, 20, 10);
		SET(done, 1);
		_exit(!ok);
	}
	ok = tell(SEND, 0, 30, text) == 30 && turn(fd) && reads(fd, 0, 20);
	epoll_ctl(epfd, EPOLL_CTL_DEL, fd, NULL);
	close(fd);
	int other = accepted(1);
	ok &= other == fd && tell(SEND, 1, 30, text) == 30 && turn(fd) && reads(fd, 0, 10);
	SET(go, 1);
	until(&sh->done, 1);
	check(ok && reads(fd, 10, 20) && status_of(p[0]) == 0, "a number that is another connection's by now");
	close(fd);
	tell(CLOSE, 0, 0, NULL);
	tell(CLOSE, 1, 0, NULL);

	fd = accepted(0);
	fflush(stdout);
	if (!(p[0] = fork()))
		_exit(shutdown(fd, SHUT_WR) != 0);
	ok = status_of(p[0]) == 0 && tell(RECV, 0, 1, NULL) == 0 && write(fd, "x", 1) == -1 && errno == EPIPE;
	check(ok, "a child shuts it down");
	close(fd);
	tell(CLOSE, 0, 0, NULL);
}

/* ---- stopped and killed ---------------------------------------------------------------------------------------------- */

static void stopped(void)
{
	int64_t worst = 0;
	bool ok = true;
	for (int i = 0; i < 12 && ok; i++) {
		begin();
		fflush(stdout);
		pid_t server = fork();
		if (!server) {
			int fd = accepted(0);
			pid_t me = getpid();
			pid_t p = fork();
			if (!p) {
				until(&sh->go, 1);
				kill(me, SIGSTOP);
				until(&sh->more, 1); /* it is */
				int64_t begun = now_us();
				bool good = reads(fd, 10, 5);
				SET(result, good ? (int)(now_us() - begun) : -2);
				SET(done, 1);
				_exit(0);
			}
			bool good = tell(SEND, 0, 30, text) == 30 && turn(fd) && reads(fd, 0, 10);
			SET(go, 1);
			while (!GET(done)) /* calls, in some rounds, so that it is stopped anywhere */
				if (i % 2)
					(void)!read(fd, NULL, 0);
			good &= reads(fd, 15, 15) && status_of(p) == 0;
			close(fd);
			_exit(!good);
		}
		int s = 0;
		ok = waitpid(server, &s, WUNTRACED) == server && WIFSTOPPED(s);
		nap(i % 3);
		SET(more, 1);
		if (ok)
			until(&sh->done, 1); /* while it is stopped */
		kill(server, SIGCONT);
		ok &= status_of(server) == 0 && sh->result >= 0;
		if (sh->result > worst)
			worst = sh->result;
		tell(CLOSE, 0, 0, NULL);
	}
	check(ok, "a server that is stopped: the child reads");
	check(worst < 3000000, "... and does not wait for it");
}

static void killed(void)
{
	bool ok = true;
	for (int i = 0; i < 6 && ok; i++) {
		begin();
		fflush(stdout);
		pid_t server = fork();
		if (!server) {
			int fd = accepted(0);
			pid_t me = getpid();
			if (!fork()) {
				until(&sh->go, 1);
				kill(me, SIGKILL);
				while (getppid() == me)
					sched_yield();
				SET(result, reads(fd, 10, 20) && write(fd, text, 9) == 9);
				SET(done, 1);
				_exit(0);
			}
			bool good = tell(SEND, 0, 30, text) == 30 && turn(fd) && reads(fd, 0, 10);
			SET(go, good ? 1 : 0);
			for (;;)
				if (i % 2)
					(void)!read(fd, NULL, 0);
		}
		ok = status_of(server) == 128 + SIGKILL;
		until(&sh->done, 1);
		ok &= sh->result == 1 && tell(RECV, 0, 9, NULL) == 9;
		tell(CLOSE, 0, 0, NULL);
	}
	check(ok, "a server that is killed: the child reads on where it was");

	/* A child that is killed while it reads: of its last byte it may not have told. */
	ok = true;
	for (int i = 0; i < 12 && ok; i++) {
		int fd = accepted(0);
		char b;
		begin();
		fflush(stdout);
		pid_t p = fork();
		if (!p) {
			until(&sh->go, 1);
			for (int k = 0; read(fd, &b, 1) == 1; k++)
				SET(done, k + 1);
			for (;;)
				pause();
		}
		ok = tell(SEND, 0, 60, text) == 60 && turn(fd) && reads(fd, 0, 10);
		SET(go, 1);
		if (i % 3)
			until(&sh->done, i);
		kill(p, SIGKILL);
		ok &= status_of(p) == 128 + SIGKILL;
		int at = 10 + sh->done;
		ssize_t r = read(fd, &b, 1);
		if (r == 1)
			ok &= (b == text[at] || b == text[at + 1]) &&
			      (b == text[59] ||
			       reads(fd, (int)(strchr(text, b) - text) + 1, 59 - (int)(strchr(text, b) - text)));
		else
			ok &= at >= 59;
		close(fd);
		tell(CLOSE, 0, 0, NULL);
	}
	check(ok, "a child that is killed");
}

/* ---- a stream -------------------------------------------------------------------------------------------------------- */

/* Read up to `max` numbers: each is seen once, and no reader sees them out of order. */
static bool numbers(int fd, int max, uint32_t *before)
{
	uint32_t rec[64];
	while (max > 0) {
		ssize_t r = recv(fd, rec, sizeof rec[0] * (size_t)(max < 64 ? max : 64), MSG_DONTWAIT);
		if (r <= 0)
			return r < 0 && errno == EAGAIN;
		if (r % 4)
			return false;
		for (int i = 0; i < r / 4; i++) {
			if (rec[i] >= RECORDS + 64 || __atomic_fetch_add(&sh->seen[rec[i]], 1, __ATOMIC_SEQ_CST) ||
			    (*before && rec[i] < *before))
				return false;
			*before = rec[i] + 1;
		}
		__atomic_fetch_add(&sh->read, (uint32_t)r / 4, __ATOMIC_SEQ_CST);
		max -= (int)r / 4;
	}
	return true;
}

static void server_of_stream(int fd)
{
	unsigned seed = 12345;
	uint32_t before = 0;
	struct epoll_event ev;
	for (int i = 0; i < ROUNDS; i++) {
		pid_t p = fork();
		if (!p) {
			seed += (unsigned)i * 7919;
			int64_t end = now_us() + rand_r(&seed) % 3000;
			while (now_us() < end)
				;
			uint32_t mine = 0;
			_exit(i % 4 && !numbers(fd, 1 + (int)(rand_r(&seed) % 40), &mine));
		}
		int s;
		pid_t got;
		while (!(got = waitpid(p, &s, WNOHANG)))
			for (int k = 0; k < 4; k++)
				if (epoll_wait(epfd, &ev, 1, 1) == 1 &&
				    !numbers(fd, 1 + (int)(rand_r(&seed) % 40), &before))
					_exit(1);
		if (got != p || s)
			_exit(2);
	}
	SET(stop, 1);
	for (int n = 0; !GET(ended) || GET(read) < GET(sent); n++) {
		if (epoll_wait(epfd, &ev, 1, 10) == 1 && !numbers(fd, 1000, &before))
			_exit(3);
		if (n > 3000)
			_exit(4);
	}
	_exit(0);
}

static void streams(bool stops)
{
	memset(sh->seen, 0, sizeof sh->seen);
	SET(sent, 0);
	SET(read, 0);
	SET(stop, 0);
	SET(ended, 0);
	SET(broken, 0);
	fflush(stdout);
	pid_t server = fork();
	if (!server) {
		int fd = accepted(0);
		ask(STREAM, 0, 0, NULL);
		server_of_stream(fd);
	}
	int s = 0;
	unsigned seed = 99;
	pid_t got;
	while (stops && !(got = waitpid(server, &s, WNOHANG))) {
		kill(server, SIGSTOP);
		nap(1 + (int)(rand_r(&seed) % 3));
		kill(server, SIGCONT);
		nap(1 + (int)(rand_r(&seed) % 5));
	}
	int code = stops ? (WIFEXITED(s) ? WEXITSTATUS(s) : -1) : status_of(server);
	SET(stop, 1);
	answer();
	uint32_t once = 0;
	for (uint32_t i = 0; i < sh->sent; i++)
		once += sh->seen[i] == 1;
	bool ok = code == 0 && once == sh->sent && !sh->broken && sh->sent > 1000;
	if (!ok)
		printf("server %d, %u sent, %u read, %u once\n", code, sh->sent, sh->read, once);
	tell(CLOSE, 0, 0, NULL);
	check(ok, stops ? "a stream, forks, and a server that is stopped now and then" : "a stream and forks");
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "read"))
		return !reads(atoi(argv[2]), 10, 5);
	if (argc == 3 && !strcmp(argv[1], "wait")) {
		struct epoll_event ev;
		return epoll_wait(atoi(argv[2]), &ev, 1, 0);
	}
	socklen_t len = sizeof addr;
	signal(SIGPIPE, SIG_IGN);
	alarm(300);
	sh = mmap(NULL, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	addr = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	lsock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (sh == MAP_FAILED || bind(lsock, (void *)&addr, sizeof addr) || listen(lsock, 16) ||
	    getsockname(lsock, (void *)&addr, &len) || pipe2(to_client, O_CLOEXEC) || pipe2(from_client, O_CLOEXEC))
		return 126;
	pid_t p = fork();
	if (!p)
		client();
	close(to_client[0]);
	close(from_client[1]);
	epfd = epoll_create1(EPOLL_CLOEXEC);
	first_uses();
	by_turns();
	stopped();
	killed();
	streams(false);
	streams(true);
	first_use("SCM_RIGHTS", by_passing, 10, 15); /* last: from now on nobody can tell who has what */
	close(to_client[1]);
	check(status_of(p) == 0, "the client ends");
	return first_failure;
}
