/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers of descriptors where the monitor's own may be: the lowest free one is given, up to the limit; a number that
 * the program chooses itself is its own; the same before and after threads, in children, across exec.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(x) \
	do { \
		if (!(x)) { \
			printf("FAIL %s:%d: %s (errno %d)\n", __func__, __LINE__, #x, errno); \
			exit(1); \
		} \
	} while (0)

static void raise_limit(rlim_t n)
{
	struct rlimit r;
	CHECK(getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_max >= n);
	r.rlim_cur = n;
	CHECK(setrlimit(RLIMIT_NOFILE, &r) == 0);
}

static void check_write(int fd)
{
	CHECK(write(fd, "x", 1) == 1);
	CHECK(fcntl(fd, F_GETFD) >= 0);
}

static void *thread(void *arg)
{
	check_write(*(int *)arg);
	int fd = open("/dev/null", O_RDWR);
	CHECK(fd >= 3);
	close(fd);
	return NULL;
}

static void threads(int fd)
{
	pthread_t t;
	CHECK(pthread_create(&t, NULL, thread, &fd) == 0);
	CHECK(pthread_join(t, NULL) == 0);
}

static void child(int fd, int spare)
{
	pid_t p = fork();
	CHECK(p >= 0);
	if (p == 0) {
		check_write(fd);
		if (spare >= 0)
			close(spare); /* at the limit: what thread() opens */
		threads(fd);
		_exit(7);
	}
	int st;
	CHECK(waitpid(p, &st, 0) == p && WIFEXITED(st) && WEXITSTATUS(st) == 7);
}

/* Numbers of one's own choice, in a child of its own so that each begins with few. */
static void chosen(int n, int how)
{
	pid_t p = fork();
	CHECK(p >= 0);
	if (p == 0) {
		int fd = open("/dev/null", O_RDWR), got = -1;
		CHECK(fd >= 0);
		if (how == 0)
			got = dup2(fd, n);
		else if (how == 1)
			got = dup3(fd, n, O_CLOEXEC);
		else
			got = fcntl(fd, F_DUPFD, n);
		CHECK(got == n);
		CHECK(fcntl(n + 1, F_GETFD) == -1 && errno == EBADF);
		check_write(n);
		child(n, -1);
		threads(n);
		for (int i = 3; i < n + 2000; i++)
			close(i);
		CHECK((fd = open("/dev/null", O_RDWR)) == 3);
		child(fd, -1);
		threads(fd);
		_exit(9);
	}
	int st;
	CHECK(waitpid(p, &st, 0) == p && WIFEXITED(st) && WEXITSTATUS(st) == 9);
}

static int send_fds(int sock, const int *fds, int n)
{
	char buf[CMSG_SPACE(253 * sizeof(int))] = { 0 }, c = 0;
	struct iovec v = { &c, 1 };
	struct msghdr h = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = buf, .msg_controllen = CMSG_SPACE(n * 4) };
	struct cmsghdr *cm = CMSG_FIRSTHDR(&h);
	cm->cmsg_level = SOL_SOCKET;
	cm->cmsg_type = SCM_RIGHTS;
	cm->cmsg_len = CMSG_LEN(n * 4);
	memcpy(CMSG_DATA(cm), fds, n * 4);
	return sendmsg(sock, &h, 0);
}

static int receive_fds(int sock, int *fds)
{
	char buf[CMSG_SPACE(253 * sizeof(int))] = { 0 }, c;
	struct iovec v = { &c, 1 };
	struct msghdr h = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = buf, .msg_controllen = sizeof buf };
	CHECK(recvmsg(sock, &h, 0) == 1 && !(h.msg_flags & MSG_CTRUNC));
	struct cmsghdr *cm = CMSG_FIRSTHDR(&h);
	int n = (cm->cmsg_len - CMSG_LEN(0)) / 4;
	memcpy(fds, CMSG_DATA(cm), n * 4);
	return n;
}

static void all_numbers(int limit)
{
	int sv[2], fds[253];
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sv) == 0);
	int next = sv[1] + 1;
	CHECK(sv[0] == 3 && sv[1] == 4);
	while (next < 900) {
		CHECK(open("/dev/null", O_RDWR) == next);
		next++;
	}
	for (int i = 0; i < 253; i++)
		fds[i] = 10 + i;
	CHECK(send_fds(sv[0], fds, 253) == 1);
	CHECK(receive_fds(sv[1], fds) == 253);
	for (int i = 0; i < 253; i++)
		CHECK(fds[i] == next++);
	while (next < limit) {
		int pair[2];
		if (next % 3 || next + 1 >= limit) {
			CHECK(open("/dev/null", O_RDWR) == next);
			next++;
		} else {
			CHECK(pipe(pair) == 0 && pair[0] == next && pair[1] == next + 1);
			next += 2;
		}
	}
	CHECK(open("/dev/null", O_RDWR) == -1 && errno == EMFILE);
	check_write(fds[252]);
	child(fds[252], 20);
	close(20); /* what thread() opens */
	threads(fds[252]);
}

/* What a child of vfork used is still used after the numbers have changed, whatever is closed meanwhile. */
static void after_vfork(void)
{
	int st;
	pid_t p;
	for (volatile int round = 0; round < 3; round++) {
		if ((p = vfork()) == 0)
			_exit(5);
		CHECK(p > 0 && waitpid(p, &st, 0) == p && WIFEXITED(st) && WEXITSTATUS(st) == 5);
		if (round == 0)
			CHECK(dup2(0, 2500) == 2500);
		for (int i = 3; i < 4000; i++)
			close(i);
	}
	threads(1);
	child(1, -1);
}

static pthread_mutex_t *shared_lock;

static void *lock_it(void *arg)
{
	CHECK(pthread_mutex_lock(shared_lock) == 0);
	__atomic_add_fetch((int *)arg, 1, __ATOMIC_SEQ_CST);
	pthread_mutex_unlock(shared_lock);
	return NULL;
}

/* Whoever waits for another process's robust lock is told of its end; nothing of that is seen in the descriptors. */
static void while_waiting(void)
{
	pthread_mutexattr_t a;
	enum { WAITING = 12 };
	pthread_t t[WAITING];
	int p[2], st, done = 0, seen = 0;
	shared_lock = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(shared_lock, &a);
	CHECK(pipe(p) == 0);
	pid_t other = fork();
	if (other == 0) {
		pthread_mutex_lock(shared_lock);
		CHECK(write(p[1], "x", 1) == 1);
		usleep(1500000);
		pthread_mutex_unlock(shared_lock);
		_exit(4);
	}
	CHECK(other > 0 && read(p[0], &(char){ 0 }, 1) == 1);
	closefrom(3);
	for (int i = 0; i < WAITING; i++)
		CHECK(pthread_create(&t[i], NULL, lock_it, &done) == 0);
	while (__atomic_load_n(&done, __ATOMIC_SEQ_CST) < WAITING)
		seen += fcntl(3, F_GETFD) >= 0;
	for (int i = 0; i < WAITING; i++)
		CHECK(pthread_join(t[i], NULL) == 0);
	CHECK(waitpid(other, &st, 0) == other && WEXITSTATUS(st) == 4);
	CHECK(seen == 0);
}

int main(int argc, char **argv)
{
	if (argc > 2) { /* after exec */
		int fd = atoi(argv[2]);
		check_write(fd);
		threads(fd);
		child(fd, -1);
		return 11;
	}
	closefrom(3);
	raise_limit(4096);
	for (int how = 0; how < 3; how++) {
		chosen(1000, how);
		chosen(1024, how);
		chosen(1040, how);
		chosen(3000, how);
	}
	puts("ok numbers of one's own choice");
	pid_t v = fork();
	CHECK(v >= 0);
	if (v == 0) {
		after_vfork();
		_exit(6);
	}
	int vst;
	CHECK(waitpid(v, &vst, 0) == v && WIFEXITED(vst) && WEXITSTATUS(vst) == 6);
	puts("ok after vfork");
	pid_t p = fork();
	CHECK(p >= 0);
	if (p == 0) {
		all_numbers(4096);
		_exit(3);
	}
	int st;
	CHECK(waitpid(p, &st, 0) == p && WIFEXITED(st) && WEXITSTATUS(st) == 3);
	puts("ok the lowest free number, up to the limit");
	for (int n = 500; n < 3000; n += 550) {
		char num[16];
		snprintf(num, sizeof num, "%d", n);
		p = fork();
		CHECK(p >= 0);
		if (p == 0) {
			int fd = open("/dev/null", O_RDWR);
			CHECK(dup2(fd, n) == n);
			execl("/proc/self/exe", argv[0], "exec", num, NULL);
			_exit(1);
		}
		CHECK(waitpid(p, &st, 0) == p && WIFEXITED(st) && WEXITSTATUS(st) == 11);
	}
	puts("ok across exec");
	while_waiting();
	puts("ok nothing of the monitor's is seen");
	puts("SUCCESS");
	return 0;
}
