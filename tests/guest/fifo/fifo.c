/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FIFOs, opened by their name by several processes: who waits for whom, ends and ends again, several readers and writers,
 * what is left in one. tests/run.py compares the output of a pVM with that of Linux. Exit status 1: a process was lost.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../asleep.h"
#define CHILD_SECONDS 60
#include "../told.h"

static char dir[64] = "/tmp/kx-fifo-XXXXXX", path[80], text[8192];
static volatile long *shared; /* a page */

static long status_of(pid_t p)
{
	int st;
	if (waitpid(p, &st, 0) != p)
		exit(1);
	return WIFSIGNALED(st) ? 1000 + WTERMSIG(st) : WEXITSTATUS(st);
}

/* Until it has said so, and sleeps. */
static void asleep_after(pid_t p, long said)
{
	while (shared[0] != said)
		usleep(200);
	asleep(p, p);
}

static int fifo(int flags) { return open(path, flags); }
static long get(int fd, size_t n)
{
	memset(text, 0, sizeof text);
	return read(fd, text, n);
}
static int ready(int fd, int events, int timeout)
{
	struct pollfd p = { fd, (short)events, 0 };
	poll(&p, 1, timeout);
	return p.revents;
}
static void on_signal(int s) { (void)s; }

static void opening(void)
{
	int r, w;
	SECTION("open");
	R(mkfifo(path, 0600));
	R(mkfifo(path, 0600));
	R(fifo(O_WRONLY | O_NONBLOCK));
	R((r = fifo(O_RDONLY | O_NONBLOCK)) >= 0);
	R(get(r, 10));
	R(ready(r, POLLIN, 0));
	R((w = fifo(O_WRONLY | O_NONBLOCK)) >= 0);
	R(get(r, 10));
	R(write(w, "one", 3));
	R(ready(r, POLLIN, 0) == POLLIN);
	R(get(r, 10));
	R(close(w));
	R(ready(r, POLLIN, 0) == POLLHUP);
	R(get(r, 10));
	R(fifo(O_WRONLY | O_NONBLOCK) >= 0); /* stays open */
	R(close(r));
	R(fifo(O_WRONLY | O_NONBLOCK));
	R(close_range(3, ~0u, 0));
	SECTION("open: each waits for the other");
	pid_t p = CHILD(shared[0] = 1; r = fifo(O_RDONLY); shared[1] = get(r, 10); shared[2] = get(r, 10));
	asleep_after(p, 1);
	R((w = fifo(O_WRONLY)) >= 0);
	R(write(w, "two", 3));
	R(close(w));
	R(status_of(p));
	R(shared[1] * 10 + shared[2]);
	p = CHILD(shared[0] = 2; w = fifo(O_WRONLY); shared[1] = write(w, "three", 5));
	asleep_after(p, 2);
	R((r = fifo(O_RDONLY)) >= 0);
	R(get(r, 3));
	R(get(r, 10));
	R(get(r, 10));
	R(status_of(p));
	R(close(r));
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = on_signal }, NULL);
	p = CHILD(shared[0] = 3; shared[1] = fifo(O_RDONLY); shared[2] = errno == EINTR);
	asleep_after(p, 3);
	kill(p, SIGUSR1);
	R(status_of(p));
	R(shared[1] * 10 + shared[2]);
	p = CHILD(shared[0] = 4; fifo(O_WRONLY));
	asleep_after(p, 4);
	kill(p, SIGKILL);
	R(status_of(p));
	R(fifo(O_WRONLY | O_NONBLOCK));
	/* two wait for one */
	p = CHILD(shared[0] = 5; r = fifo(O_RDONLY); shared[1] = get(r, 1));
	asleep_after(p, 5);
	pid_t p2 = CHILD(shared[0] = 6; r = fifo(O_RDONLY); shared[2] = get(r, 1));
	asleep_after(p2, 6);
	R((w = fifo(O_WRONLY)) >= 0);
	R(write(w, "ab", 2));
	R(status_of(p));
	R(status_of(p2));
	R(shared[1] * 10 + shared[2]);
	R(close(w));
}

static void both_ways(void)
{
	int rw, r, w, w2 = -1;
	SECTION("O_RDWR, what stays, what goes");
	R((rw = fifo(O_RDWR)) >= 0);
	R(write(rw, "abc", 3));
	R(get(rw, 2));
	R((r = fifo(O_RDONLY)) >= 0);
	R(get(r, 10));
	R(text[0]);
	R(write(rw, "left", 4));
	int n = 0;
	R(ioctl(r, FIONREAD, &n) == 0 && n == 4);
	R(fcntl(r, F_GETPIPE_SZ));
	R(close(rw));
	R(get(r, 2));
	R(close(r));
	R((r = fifo(O_RDONLY | O_NONBLOCK)) >= 0);
	R(get(r, 10)); /* gone with the last who had it open */
	SECTION("ends, and goes on");
	for (int i = 0; i < 3; i++) {
		R((w = fifo(O_WRONLY)) >= 0);
		R(write(w, "again", 5));
		R(close(w));
		R(get(r, 10));
		R(get(r, 10));
	}
	R((w = fifo(O_WRONLY)) >= 0 && (w2 = fifo(O_WRONLY)) >= 0);
	R(write(w, "1", 1) + write(w2, "2", 1));
	R(close(w));
	R(get(r, 10));
	R(get(r, 10)); /* one is left */
	R(close(w2));
	R(get(r, 10));
	R((w = fifo(O_WRONLY)) >= 0);
	R(close(r));
	signal(SIGPIPE, SIG_IGN);
	R(write(w, "x", 1));
	R((r = fifo(O_RDONLY)) >= 0);
	R(write(w, "y", 1));
	R(get(r, 10));
	/* one blocks, the other does not: of the same end */
	R((w2 = fifo(O_WRONLY | O_NONBLOCK)) >= 0);
	while (write(w2, text, 4096) == 4096)
		n += 4096;
	R(n - 4);
	pid_t p = CHILD(shared[0] = 7; shared[1] = write(w, text, 4096));
	asleep_after(p, 7);
	R(write(w2, text, 1));
	R(get(r, 4096));
	R(status_of(p));
	R(shared[1]);
	for (n = 0; n < 65536;)
		n += (int)get(r, sizeof text);
	R(n);
	struct epoll_event ev = { .events = EPOLLIN };
	int e = epoll_create1(0);
	R(epoll_ctl(e, EPOLL_CTL_ADD, r, &ev));
	R(epoll_wait(e, &ev, 1, 0));
	R(write(w, "z", 1));
	R(epoll_wait(e, &ev, 1, 5000) == 1 && ev.events == EPOLLIN);
	R(get(r, 1));
	R(close(w) + close(w2));
	R(epoll_wait(e, &ev, 1, 5000) == 1 && ev.events == EPOLLHUP);
	R(close_range(3, ~0u, 0));
}

#define RECORDS 400
static void crowds(void)
{
	int r;
	SECTION("three writers, two readers");
	pid_t w[3], p[2];
	int hold = fifo(O_RDWR); /* until all are there */
	for (int k = 0; k < 2; k++)
		p[k] = CHILD(close(hold); r = fifo(O_RDONLY);
			     __atomic_add_fetch((long *)&shared[8], 1, __ATOMIC_SEQ_CST); for (;;) {
				     long rec[2];
				     ssize_t got = read(r, rec, sizeof rec);
				     if (!got)
					     break;
				     if (got != sizeof rec || rec[1] != rec[0] * 7)
					     _exit(1);
				     __atomic_add_fetch((long *)&shared[10], rec[0], __ATOMIC_SEQ_CST);
				     __atomic_add_fetch((long *)&shared[11], 1, __ATOMIC_SEQ_CST);
			     });
	for (int k = 0; k < 3; k++)
		w[k] = CHILD(close(hold); int fd = fifo(O_WRONLY);
			     __atomic_add_fetch((long *)&shared[8], 1, __ATOMIC_SEQ_CST);
			     for (long i = 0; i < RECORDS; i++) {
				     long rec[2] = { k * 1000 + i, (k * 1000 + i) * 7 };
				     if (write(fd, rec, sizeof rec) != sizeof rec)
					     _exit(1);
			     });
	while (shared[8] != 5)
		usleep(500);
	R(close(hold));
	for (int k = 0; k < 3; k++)
		R(status_of(w[k]));
	for (int k = 0; k < 2; k++)
		R(status_of(p[k]));
	R(shared[11]);
	R(shared[10]);
	SECTION("by others");
	pid_t s = CHILD(execl("/bin/sh", "sh", "-c", "cat <\"$1\" | tr a-z A-Z >\"$1.out\"", "sh", path, NULL));
	int fd = fifo(O_WRONLY);
	R(write(fd, "through a shell", 15));
	R(close(fd));
	R(status_of(s));
	snprintf(text, sizeof text, "%s.out", path);
	fd = open(text, O_RDONLY);
	unlink(text);
	R(get(fd, 100));
	printf("%s\n", text);
	close(fd);
	s = CHILD(int mine = fifo(O_WRONLY); shared[1] = write(mine, "last words", 10); shared[0] = 8; pause());
	R((fd = fifo(O_RDONLY)) >= 0);
	while (shared[0] != 8)
		usleep(200);
	kill(s, SIGKILL);
	R(status_of(s));
	R(get(fd, 100));
	R(get(fd, 100));
	snprintf(text, sizeof text, "/proc/self/fd/%d", fd);
	int again;
	R((again = open(text, O_WRONLY)) >= 0);
	R(unlink(path));
	R(write(again, "nameless", 8));
	R(get(fd, 100));
	R(close(again) + close(fd));
	R(fifo(O_RDONLY));
}

int main(void)
{
	alarm(100);
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED || !mkdtemp(dir))
		return 1;
	snprintf(path, sizeof path, "%s/f", dir);
	opening();
	both_ways();
	crowds();
	rmdir(dir);
	return 0;
}
