/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Accounts of sockets that are lent: lender or child is stopped or killed at each point where one of them is about to
 * change an account or has just done so. The other goes on at once, and no byte is lost or read twice, also by the
 * one that was stopped when it is continued.
 */
#include "../../monitor/core/batch_lend.c"
#include <arpa/inet.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#include "check.h"

struct pvm pvm;
struct batch_state batch;
enum point { NEVER, BEFORE, AFTER, FETCHING, FETCHED };

static struct common {
	int child_ready, read, go_on;
	int by_child, by_lender; /* 1: these were the bytes */
	long us;
} * sh;
static enum point point; /* of this process */
static int point_signal;
static const char text[] = "abcdefghijklmnopqrstuvwxyz0123456789";

static void at(enum point p)
{
	if (point != p)
		return;
	point = NEVER;
	kill(getpid(), point_signal);
}

long host_call(long nr, long a, long b, long c, long d, long e, long f)
{
	if (nr == SYS_recvmsg)
		at(BEFORE);
	long r = syscall(nr, a, b, c, d, e, f);
	r = r < 0 ? -errno : r;
	if (nr == SYS_recvmsg)
		at(AFTER);
	return r;
}
int proc_file(const char *name)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%s", name);
	return open(path, O_RDONLY);
}
int guest_read(void *dst, uint64_t gva, size_t len)
{
	memcpy(dst, (void *)gva, len);
	return 0;
}
void spare_changed(void) {}
bool hcall_closes_range(const struct hcall *c) { return c->nr == SYS_close_range && !c->arg[2]; }
void pvm_panic(const char *fmt, ...)
{
	(void)fmt;
	abort();
}

static void until(int *p)
{
	while (!__atomic_load_n(p, __ATOMIC_SEQ_CST))
		usleep(200);
}
static void set(int *p) { __atomic_store_n(p, 1, __ATOMIC_SEQ_CST); }

static bool reads(int fd, int pos, int n)
{
	char b[64];
	return recv(fd, b, (size_t)n, MSG_DONTWAIT) == n && !memcmp(b, text + pos, (size_t)n);
}

static long now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000l + ts.tv_nsec / 1000;
}

static void connected(int *server, int *client)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	socklen_t len = sizeof to;
	int l = socket(AF_INET, SOCK_STREAM, 0);
	*client = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(l, (void *)&to, len) || listen(l, 1) || getsockname(l, (void *)&to, &len) ||
	    connect(*client, (void *)&to, len) || (*server = accept(l, NULL, NULL)) < 0)
		abort();
	close(l);
}

/* The child uses it first when the lender is where it stops, or says so. */
static void child(int fd, int from, enum point p, int signo)
{
	lend_fork_child();
	batch.socks[fd].kind = NONE;
	point = p;
	point_signal = signo;
	set(&sh->child_ready);
	until(&sh->read);
	long begun = now();
	lend_ask(fd);
	sh->us = now() - begun;
	sh->by_child = p == NEVER ? reads(fd, from, 5) : reads(fd, from + 5, 5);
	set(&sh->go_on);
	_exit(0);
}

/* Has fetched 30 bytes, of which its guest reads 10. */
static void lend_and_read(enum point p, int signo, enum point of_child, int signo_of_child)
{
	int fd, client;
	connected(&fd, &client);
	if (!batch.socks && !(batch.socks = calloc(KX_BATCH_FDS, sizeof *batch.socks)))
		_exit(9);
	struct sock *s = &batch.socks[fd];
	uint64_t *rx = &batch_guest_sock(fd)->rx;
	*s = (struct sock){ .kind = TCP, .nonblock = true, .epoll = 3 };
	batch.top_fd = fd;
	batch.nr_socks = 1;
	lend_begin();
	if (!lend_socket(fd, s))
		_exit(9);
	lend_end();
	bool fetch_only = p == FETCHING || p == FETCHED;
	pid_t kid = fork();
	if (!kid)
		child(fd, fetch_only ? 0 : 10, of_child, signo_of_child);
	until(&sh->child_ready);
	if (send(client, text, 30, 0) != 30)
		_exit(8);
	point = fetch_only ? p : NEVER;
	point_signal = signo;
	if (!lend_fetch_begin(fd, s))
		_exit(7);
	uint64_t w = KX_RX_VALID | 30ull << 24;
	char b[64];
	long n = recv(fd, b, sizeof b, MSG_PEEK | MSG_DONTWAIT);
	at(FETCHING);
	s->fetched = n > 0 ? (uint32_t)n : 0;
	bool ok = lend_fetch_end(fd, s, s->fetched, w);
	at(FETCHED);
	if (!fetch_only) {
		/* The guest reads. */
		if (!ok || n != 30 || memcmp(b, text, 10) || !swap_word(rx, w, w + 10))
			_exit(6);
		point = p;
		if (of_child != NEVER) {
			set(&sh->read);
			int st; /* it is where it stops, or dead */
			if (waitpid(kid, &st, WUNTRACED) != kid || !(WIFSTOPPED(st) || WIFSIGNALED(st)))
				_exit(5);
			long begun = now();
			lend_settle(fd, s, true);
			sh->us = now() - begun;
			sh->by_lender = s->held && !s->lent && reads(fd, 10, 5);
			if (WIFSIGNALED(st))
				_exit(sh->by_child = 0);
			kill(kid, SIGCONT);
			until(&sh->go_on);
			_exit(0);
		}
		lend_settle(fd, s, true); /* stopped in it, or killed */
	}
	until(&sh->go_on);
	bool unread = !fetch_only || !(*rx & KX_RX_VALID);
	if (s->lent)
		lend_settle(fd, s, true);
	sh->by_lender = unread && s->held && !s->lent && !s->fetched &&
			reads(fd, fetch_only ? 5 : 15, fetch_only ? 25 : 15);
	_exit(0);
}

static void one(enum point p, int signo, enum point of_child, int signo_of_child, const char *name)
{
	int st = 0;
	memset(sh, 0, sizeof *sh);
	pid_t pid = fork();
	if (!pid) {
		alarm(60);
		lend_and_read(p, signo, of_child, signo_of_child);
	}
	if (p != NEVER) {
		if (waitpid(pid, &st, WUNTRACED) != pid || !(WIFSTOPPED(st) || WIFSIGNALED(st))) {
			CHECK(false, "%s", name);
			return;
		}
		set(&sh->read);
		until(&sh->go_on);
		kill(pid, SIGCONT);
	}
	bool dies = signo == SIGKILL;
	if (!dies && waitpid(pid, &st, 0) != pid)
		st = -1;
	bool good = dies || st == 0;
	good = good && (signo_of_child == SIGKILL || sh->by_child == 1) && (dies || sh->by_lender == 1);
	if (!good)
		printf("# status %x, child %d, lender %d\n", (unsigned)st, sh->by_child, sh->by_lender);
	CHECK(good && sh->us < 4000000, "%s", name);
}

int main(void)
{
	sh = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint8_t *space = mmap(NULL, 0x100000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (sh == MAP_FAILED || space == MAP_FAILED)
		return 1;
	pvm.base = (void *)((uintptr_t)space - KX_BATCH_BASE);
	one(BEFORE, SIGSTOP, NEVER, 0, "the lender stops before it takes what was read");
	one(AFTER, SIGSTOP, NEVER, 0, "the lender stops behind it");
	one(BEFORE, SIGKILL, NEVER, 0, "the lender dies before it takes what was read");
	one(AFTER, SIGKILL, NEVER, 0, "the lender dies behind it");
	one(FETCHING, SIGSTOP, NEVER, 0, "the lender stops before it tells its guest of data");
	one(FETCHED, SIGSTOP, NEVER, 0, "the lender stops behind it");
	one(FETCHING, SIGKILL, NEVER, 0, "the lender dies before it tells its guest of data");
	one(NEVER, 0, BEFORE, SIGSTOP, "the child stops before it takes what was read");
	one(NEVER, 0, AFTER, SIGSTOP, "the child stops behind it");
	one(NEVER, 0, BEFORE, SIGKILL, "the child dies before it takes what was read");
	one(NEVER, 0, AFTER, SIGKILL, "the child dies behind it");
	return failures != 0;
}
