/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sockets of an event loop that have options, clients, or meet calls, which are not usual: little may wait to be sent
 * (TCP_NOTSENT_LOWAT), a small window, an offset for peeks (SO_PEEK_OFF), descriptors that close_range(2) marks. The
 * client is a process of its own. Passes on any Linux. Exit code: 0, or 1 + the number of the first check that failed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/close_range.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include "../clock.h"
#include "../counted.h"
#include "../slow_client.h"

#define LOWAT 8192
#define WINDOW 1000
#define UNSENT_MOST 262144 /* a few packets of the largest size */

#define NOTHING ((struct answer){ 0 })

enum how { CLOSE, SHUT_DOWN, DUP };

static void end(int fd, struct answer sent, enum how how)
{
	static const char *const names[] = { "... its close does not wait for a client that does not read",
					     "... nor does shutdown", "... nor does dup" };
	int64_t before = now_ms();
	if (how == SHUT_DOWN && (shutdown(fd, SHUT_WR) || write(fd, "x", 1) != -1 || errno != EPIPE))
		exit(111);
	if (how == DUP)
		close(dup(fd));
	close(fd);
	syscall(SYS_getppid); /* whatever was to be done later is done by now */
	int64_t took = now_ms() - before;
	check(took < 2500, names[how]);
	struct answer got = tell(&(struct order){ .what = DRAIN });
	check(got.n == sent.n && got.sum == sent.sum, "... all that was taken arrives");
}

/* ---- little that waits ---------------------------------------------------------------------------------------------- */

enum where { LISTENER, BEFORE, BEHIND };

static void test_lowat(enum where where)
{
	static const char *const names[] = { "of the listener", "of a connection before it is watched",
					     "... behind the first request" };
	int lowat = LOWAT, fd = connection(false, where == LISTENER ? LOWAT : 0, (struct small){ 0 });
	char name[100];
	if (where == BEFORE && setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &lowat, sizeof lowat))
		exit(112);
	watch(fd);
	asked(fd);
	if (where == BEHIND && setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &lowat, sizeof lowat))
		exit(112);
	if (where == BEHIND)
		asked(fd);
	struct answer sent = fill(fd, NOTHING, 0);
	snprintf(name, sizeof name, "TCP_NOTSENT_LOWAT %s: no more is taken than is to wait", names[where]);
	check(errno == EAGAIN && sent.n >= LOWAT && sent.n < UNSENT_MOST, name);
	end(fd, sent, CLOSE);
}

/* ---- a client that takes little at a time: what it is sent lies in many packets, each of which costs room ------------- */

static void test_window(enum how how)
{
	int fd = connection(false, 0, (struct small){ .window = WINDOW });
	watch(fd);
	asked(fd);
	struct answer sent = fill(fd, NOTHING, 0);
	check(errno == EAGAIN && sent.n, "a small window: writes until there is no room");
	end(fd, sent, how);
}

/* Its process ends, and leaves what it has written to the kernel. */
static void test_window_end(void)
{
	int q[2], fd = connection(false, 0, (struct small){ .window = WINDOW });
	struct answer sent, got;
	fflush(stdout);
	if (pipe(q))
		exit(111);
	watch(fd);
	pid_t pid = fork();
	if (!pid) {
		epfd = epoll_create1(EPOLL_CLOEXEC);
		watch(fd);
		asked(fd);
		sent = fill(fd, NOTHING, 0);
		_exit(write(q[1], &sent, sizeof sent) != sizeof sent);
	}
	close(fd);
	check(read(q[0], &sent, sizeof sent) == sizeof sent && sent.n, "... by a process that ends behind that");
	got = tell(&(struct order){ .what = DRAIN });
	check(got.n == sent.n && got.sum == sent.sum, "... all that was taken arrives");
	waitpid(pid, NULL, 0);
	close(q[0]);
	close(q[1]);
}

/* ---- peeks ----------------------------------------------------------------------------------------------------------- */

static bool peeks(int fd, const char *text)
{
	char b[32];
	long n = (long)strlen(text);
	return recv(fd, b, (size_t)n, MSG_PEEK) == n && !memcmp(b, text, (size_t)n);
}

static bool reads(int fd, const char *text)
{
	char b[32];
	long n = (long)strlen(text);
	return read(fd, b, (size_t)n) == n && !memcmp(b, text, (size_t)n);
}

static void test_peek_offset(bool un)
{
	int two = 2, fd = connection(un, 0, (struct small){ 0 });
	watch(fd);
	asked(fd);
	if (setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &two, sizeof two)) {
		check(!un && errno == EOPNOTSUPP, "SO_PEEK_OFF is not for TCP");
		close(fd);
		return;
	}
	client_sends("0123456789");
	check(turn(fd) && peeks(fd, "234"), un ? "SO_PEEK_OFF: the first peek" : "... of TCP");
	check(turn(fd) && reads(fd, "0123"), "... a read begins in front");
	check(turn(fd) && peeks(fd, "567"), "... and puts the next peek back");
	check(turn(fd) && reads(fd, "456") && reads(fd, "789"), "... all is read");
	client_sends("abc");
	check(turn(fd) && reads(fd, "abc"), "... and what comes then");
	close(fd);
}

/* ---- descriptors that are marked ------------------------------------------------------------------------------------- */

struct shared {
	int marked, child_read, done;
	int good;
};

static void until(const int *p)
{
	while (!__atomic_load_n(p, __ATOMIC_SEQ_CST))
		;
}
static void set(int *p) { __atomic_store_n(p, 1, __ATOMIC_SEQ_CST); }

/* The child's half: reads three bytes, and tells so by memory alone. */
static void reads_half(int fd, struct shared *sh)
{
	until(&sh->marked);
	epfd = epoll_create1(EPOLL_CLOEXEC);
	watch(fd);
	sh->good = turn(fd) && reads(fd, "abc");
	set(&sh->child_read);
	until(&sh->done);
	_exit(0);
}

/* Both have it: no byte is for both of them. */
static void test_marked(int flags)
{
	struct shared *sh = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int fd = connection(false, 0, (struct small){ 0 });
	char b[16];
	fflush(stdout);
	pid_t pid = fork();
	if (!pid)
		reads_half(fd, sh);
	long r = syscall(SYS_close_range, fd, fd, flags);
	check(flags == CLOSE_RANGE_CLOEXEC ? r == 0 : r == -1 && errno == EINVAL,
	      flags == CLOSE_RANGE_CLOEXEC ? "close_range: CLOSE_RANGE_CLOEXEC" : "close_range: flags that are none");
	client_sends("abcdef");
	set(&sh->marked);
	until(&sh->child_read);
	check(sh->good && read(fd, b, sizeof b) == 3 && !memcmp(b, "def", 3),
	      "... of a connection that a child has, too: it stays what both have");
	set(&sh->done);
	waitpid(pid, NULL, 0);
	close(fd);
}

int main(void)
{
	alarm(300);
	signal(SIGPIPE, SIG_IGN);
	client_start();
	test_lowat(LISTENER);
	test_lowat(BEFORE);
	test_lowat(BEHIND);
	test_window(CLOSE);
	test_window(SHUT_DOWN);
	test_window(DUP);
	test_window_end();
	test_peek_offset(true);
	test_peek_offset(false);
	test_marked(CLOSE_RANGE_CLOEXEC);
	test_marked(0x80);
	client_end();
	printf("%d checks\n", checks);
	return first_failure;
}
