/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A server that maps a buffer for each read, makes it smaller, and gives it back: what it gets is zeros, whatever was in
 * the piece before; what it keeps it has, however much came in between; calls that name a piece, or what is left of
 * it, find what Linux has there. Passes on any Linux. Exit code: 0, or 1 + the number of the first check that failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../counted.h"

#define LEN (260ul << 10)
#define PAGE 4096ul
#define CONNECTIONS 8

static int epfd, lsock, go[2];
static struct sockaddr_in addr = { .sin_family = AF_INET };

/* As many connections as there can be; for each byte in the pipe each sends one, and waits for one. */
static void peer(void)
{
	int fd[CONNECTIONS];
	char c;
	while (read(go[0], &c, 1) == 1 && c != 'c')
		;
	for (int i = 0; i < CONNECTIONS; i++) {
		fd[i] = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(fd[i], (void *)&addr, sizeof addr))
			_exit(1);
	}
	while (read(go[0], &c, 1) == 1) {
		for (int i = 0; i < CONNECTIONS; i++)
			if (write(fd[i], &c, 1) != 1)
				_exit(2);
		for (int i = 0; i < CONNECTIONS; i++)
			if (read(fd[i], &c, 1) != 1)
				_exit(3);
	}
	_exit(0);
}

static uint8_t *map(size_t len) { return mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }

static bool zeros(const uint8_t *p, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (p[i])
			return false;
	return true;
}

static bool maps_have(const void *p)
{
	char line[512];
	FILE *f = fopen("/proc/self/maps", "r");
	unsigned long a, b;
	bool has = false;
	while (f && fgets(line, sizeof line, f))
		has |= sscanf(line, "%lx-%lx", &a, &b) == 2 && a <= (uintptr_t)p && (uintptr_t)p < b;
	if (f)
		fclose(f);
	return has;
}

static bool is_there(void *p)
{
	unsigned char v;
	return mincore(p, PAGE, &v) == 0;
}

/* What a piece is used for, by the turn's number. */
enum { PLAIN, WHOLE, FAR, KEEP, KINDS };
static bool all_zeros = true, all_kept = true, all_gone = true;
static uint8_t *kept[64];
static int nr_kept;

static void serve_one(int fd, int kind, int seed)
{
	uint8_t *p = map(LEN);
	/* To look at a page makes it. */
	if (kind == PLAIN ? p[0] | p[PAGE - 1] | p[LEN - 1] : !zeros(p, LEN))
		all_zeros = false;
	if (read(fd, p + 16, LEN - 16) != 1)
		return;
	if (kind == WHOLE)
		memset(p, seed | 1, LEN);
	if (kind == FAR)
		p[LEN - 1] = p[LEN / 2] = p[PAGE] = 1;
	p[0] = (uint8_t)(seed | 1);
	size_t now = kind == FAR ? 3 * PAGE : PAGE;
	if (mremap(p, LEN, now, MREMAP_MAYMOVE) != p || p[0] != (uint8_t)(seed | 1))
		all_kept = false;
	if (write(fd, p, 1) != 1)
		all_kept = false;
	if (kind == KEEP && nr_kept < 64 && seed % 5 == 0) {
		kept[nr_kept++] = p;
		return;
	}
	munmap(p, now);
}

/* One turn of all connections. */
static void turn(int kind, int seed)
{
	struct epoll_event ev[CONNECTIONS];
	if (write(go[1], "x", 1) != 1)
		exit(119);
	for (int done = 0; done < CONNECTIONS;) {
		int n = epoll_wait(epfd, ev, CONNECTIONS, 10000);
		if (n <= 0)
			exit(118);
		for (int i = 0; i < n; i++)
			serve_one(ev[i].data.fd, kind, seed + i);
		done += n;
	}
}

static void turns(int n, int kind)
{
	for (int i = 0; i < n; i++)
		turn(kind, i * 7 + kind);
}

static void *another(void *arg)
{
	uint8_t *p = map(LEN);
	bool good = zeros(p, LEN);
	memset(p, 7, LEN);
	munmap(p, LEN);
	*(bool *)arg = good;
	return NULL;
}

static void setup(void)
{
	socklen_t len = sizeof addr;
	if (pipe(go))
		exit(117);
	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	lsock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(lsock, (void *)&addr, sizeof addr) || getsockname(lsock, (void *)&addr, &len) || listen(lsock, 64))
		exit(116);
	if (!fork()) {
		close(go[1]);
		close(lsock);
		peer();
	}
	close(go[0]);
	if (write(go[1], "c", 1) != 1)
		exit(115);
	epfd = epoll_create1(EPOLL_CLOEXEC);
	for (int i = 0; i < CONNECTIONS; i++) {
		int fd = accept4(lsock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		struct epoll_event ev = { EPOLLIN, { .fd = fd } };
		if (fd < 0 || epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev))
			exit(114);
	}
}

/* What calls find where a piece is, or was. */
static void named(void)
{
	turns(20, PLAIN);
	uint8_t *p = map(LEN);
	check(mremap(p, LEN, 2 * PAGE, MREMAP_MAYMOVE) == p, "a piece is made smaller");
	check(is_there(p + PAGE) && !is_there(p + 2 * PAGE) && errno == ENOMEM, "... and its rest is gone");
	check(munmap(p, 2 * PAGE) == 0 && !is_there(p), "... and then all of it");

	turns(20, PLAIN);
	p = map(LEN);
	munmap(p, LEN);
	check(!maps_have(p) || !maps_have(p + LEN / 2), "what was given back is in no list of mappings");

	turns(20, PLAIN);
	p = map(LEN);
	munmap(p, LEN);
	fails(mprotect(p, PAGE, PROT_READ), ENOMEM, "mprotect of what was given back");

	turns(20, PLAIN);
	p = map(LEN);
	memset(p, 3, LEN);
	munmap(p, LEN);
	uint8_t *q = mmap(p, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	check(q == p && zeros(q, LEN), "another mapping in its place is zeros");
	memset(q, 9, LEN);
	turns(6, WHOLE);
	check(q[0] == 9 && q[LEN - 1] == 9 && q[LEN / 2] == 9, "... and stays as it is");
	munmap(q, LEN);

	turns(20, PLAIN);
	p = map(LEN);
	memset(p, 5, LEN);
	check(munmap(p + PAGE, PAGE) == 0 && !is_there(p + PAGE) && p[0] == 5 && p[2 * PAGE] == 5, "a hole in a piece");
	turns(3, WHOLE);
	check(p[0] == 5 && p[2 * PAGE] == 5 && p[LEN - 1] == 5 && !is_there(p + PAGE), "... stays one");
	check(munmap(p, LEN) == 0 && !is_there(p), "... and all of it goes");

	turns(20, PLAIN);
	p = map(LEN);
	memset(p, 4, LEN);
	q = mremap(p, LEN, 4 * LEN, MREMAP_MAYMOVE);
	check(q != MAP_FAILED && q[0] == 4 && q[LEN - 1] == 4 && zeros(q + LEN, 3 * LEN), "a piece that grows");
	munmap(q, 4 * LEN);

	turns(20, PLAIN);
	p = map(LEN);
	memset(p, 4, LEN);
	fails(munmap(p, 0), EINVAL, "munmap of nothing");
	check(mremap(p, LEN, LEN, 0) == p && p[LEN - 1] == 4, "mremap to the same size");
	check(mprotect(p, PAGE, PROT_READ) == 0, "a piece is made read-only");
	munmap(p, LEN);
}

static void others(void)
{
	bool good = false;
	pthread_t t;
	int status;
	turns(20, PLAIN);
	uint8_t *p = map(LEN);
	memset(p, 6, LEN);
	pid_t pid = fork();
	if (!pid) {
		uint8_t *q = map(LEN);
		bool ok = zeros(q, LEN) && p[0] == 6 && p[LEN - 1] == 6;
		memset(q, 1, LEN);
		munmap(q, LEN);
		_exit(!(ok && munmap(p, LEN) == 0 && !is_there(p)));
	}
	waitpid(pid, &status, 0);
	check(status == 0, "a child has what its parent had, and gets zeros");
	check(p[0] == 6 && p[LEN - 1] == 6, "... and its parent has it still");
	munmap(p, LEN);
	turns(6, WHOLE);

	turns(20, PLAIN);
	p = map(LEN);
	memset(p, 8, LEN);
	pthread_create(&t, NULL, another, &good);
	pthread_join(t, NULL);
	check(good && p[0] == 8 && p[LEN - 1] == 8, "a thread gets another one, of zeros");
	turns(6, FAR);
	check(p[0] == 8 && p[LEN - 1] == 8, "... and what was there before it stays");
	munmap(p, LEN);
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	setup();
	for (int round = 0; round < 3; round++)
		for (int kind = 0; kind < KEEP; kind++)
			turns(kind == PLAIN ? 20 : 6, kind);
	check(all_zeros, "each mapping is zeros");
	turns(40, KEEP);
	turns(6, WHOLE);
	for (int i = 0; i < nr_kept; i++) {
		all_kept &= kept[i][0] != 0 && zeros(kept[i] + 17, PAGE - 17);
		all_gone &= !is_there(kept[i] + PAGE) || maps_have(kept[i] + PAGE);
		munmap(kept[i], PAGE);
	}
	check(nr_kept > 10 && all_kept, "what is kept stays");
	check(all_gone, "... and its rest is gone");
	named();
	others();
	check(all_zeros && all_kept, "all were zeros, and stayed");
	return first_failure;
}
