/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a program must not reach by answers that are longer than they should be, by descriptors that the monitor has for a
 * moment, and by numbers of others. Natively the same calls, where there is nothing to be reached. reach pvm [PART]: in a pVM.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/vfs.h>
#include <time.h>
#include "../../../abi/kx_abi.h"
#include "../../../abi/kx_ipc.h"
#include "../../../abi/kx_pipe.h"
#include "../check.h"

#define PROC_MAGIC 0x9fa0
#define PAGE 4096
#define LOW 64 /* numbers that are looked at */

static bool in_pvm;
static volatile bool stop;

static double now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* ---- answers ------------------------------------------------------------------------------------------------------ */

/* The kernel writes all sources, whatever the length says. */
static void sources(int family, int level, const char *name)
{
	char room[GROUP_FILTER_SIZE(64)];
	struct group_filter *gf = (void *)room;
	int s = socket(family, SOCK_DGRAM, 0), n = family == AF_INET ? 10 : 60, done = 0;
	memset(room, 0, sizeof room);
	if (s < 0)
		return;
	for (int i = 0; i < n; i++) {
		struct group_source_req r = { .gsr_interface = 1 };
		r.gsr_group.ss_family = r.gsr_source.ss_family = (sa_family_t)family;
		if (family == AF_INET) {
			((struct sockaddr_in *)&r.gsr_group)->sin_addr.s_addr = htonl(0xe8010203);
			((struct sockaddr_in *)&r.gsr_source)->sin_addr.s_addr = htonl(0x41414141 + (unsigned)i);
		} else {
			struct in6_addr *g = &((struct sockaddr_in6 *)&r.gsr_group)->sin6_addr;
			g->s6_addr[0] = 0xff;
			g->s6_addr[1] = 0x31;
			g->s6_addr[15] = 9;
			memset(&((struct sockaddr_in6 *)&r.gsr_source)->sin6_addr, 0x41 + i % 32, 16);
			((struct sockaddr_in6 *)&r.gsr_source)->sin6_addr.s6_addr[15] = (uint8_t)i;
		}
		done += setsockopt(s, level, MCAST_JOIN_SOURCE_GROUP, &r, sizeof r) == 0;
	}
	for (int round = 0; round < 3 && done; round++) {
		socklen_t len = GROUP_FILTER_SIZE(0);
		memset(room, 0, sizeof room);
		gf->gf_interface = 1;
		gf->gf_group.ss_family = (sa_family_t)family;
		if (family == AF_INET) {
			((struct sockaddr_in *)&gf->gf_group)->sin_addr.s_addr = htonl(0xe8010203);
		} else {
			struct in6_addr *g = &((struct sockaddr_in6 *)&gf->gf_group)->sin6_addr;
			g->s6_addr[0] = 0xff;
			g->s6_addr[1] = 0x31;
			g->s6_addr[15] = 9;
		}
		gf->gf_numsrc = 64;
		int r = getsockopt(s, level, MCAST_MSFILTER, room, &len);
		check(r == 0 && (int)gf->gf_numsrc == done, name);
	}
	close(s);
}

/* A waiter's word and a robust list in memory that can't be written: no fault of anybody's. */
static void *ends_with_list(void *arg)
{
	uint64_t *page = arg; /* head: next, offset, pending; the lock at + 64 */
	page[0] = (uint64_t)(page + 7);
	page[1] = 8;
	page[2] = 0;
	page[7] = (uint64_t)page;
	*(uint32_t *)(page + 8) = (uint32_t)syscall(SYS_gettid) | FUTEX_WAITERS;
	mprotect(page, PAGE, PROT_READ);
	return (void *)syscall(SYS_set_robust_list, page, 24);
}

static void read_only_words(void)
{
	pthread_t t;
	void *r;
	void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	check(pthread_create(&t, NULL, ends_with_list, page) == 0 && pthread_join(t, &r) == 0 && !r,
	      "a robust list in read-only memory");
	uint32_t *word = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t dead = FORK();
	waitpid(dead, NULL, 0);
	*word = (uint32_t)dead | FUTEX_WAITERS;
	mprotect(word, PAGE, PROT_READ);
	struct timespec ts = { 0, 700000000 };
	long w = syscall(SYS_futex, word, FUTEX_WAIT, *word, &ts, NULL, 0);
	check(w == -1 && errno == ETIMEDOUT, "a wait for a read-only word of a dead owner");
	munmap(page, PAGE);
	munmap(word, PAGE);
}

/* ---- descriptors for a moment ------------------------------------------------------------------------------------- */

static volatile int found_fd = -1;

/* Of the host's procfs: a directory always, a file of another's if it is none that was opened here. */
static void *look_for_proc(void *arg)
{
	struct statfs fs;
	struct stat st;
	(void)arg;
	while (!stop)
		for (int fd = 3; fd < LOW && !stop; fd++) {
			if (fcntl(fd, F_GETFD) >= 0)
				continue;
			/* The lowest free one: what is made now has it. */
			for (int i = 0; i < 50 && !stop; i++) {
				int mine = dup(fd);
				if (mine < 0)
					continue;
				if (fstatfs(mine, &fs) == 0 && fs.f_type == PROC_MAGIC && fstat(mine, &st) == 0)
					found_fd = mine;
				close(mine);
			}
			break;
		}
	return NULL;
}

static void change_ids(void)
{
	int p[2];
	pthread_t t;
	found_fd = -1;
	stop = false;
	NEED(pipe(p) == 0 && write(p[1], "x", 1) == 1);
	int top = dup(p[0]), more[400];
	for (int i = 0; i < 400; i++)
		more[i] = fcntl(0, F_DUPFD, 100);
	NEED(pthread_create(&t, NULL, look_for_proc, NULL) == 0);
	for (double end = now() + (in_pvm ? 2 : 0.1); now() < end && found_fd < 0;)
		syscall(SYS_setuid, getuid());
	stop = true;
	pthread_join(t, NULL);
	for (int i = 0; i < 400; i++)
		close(more[i]);
	close(top);
	close(p[0]);
	close(p[1]);
	check(found_fd < 0, "no descriptor of the host's procfs during a change of ids");
}

static void on_alarm(int s) { (void)s; }

/* A lock in a pipe's memory whose holder is somebody outside. */
static void lock_of_outsider(void)
{
	struct kx_pipes *pipes = (void *)KX_PIPE_BASE;
	int p[2];
	pthread_t t;
	if (!in_pvm)
		return;
	found_fd = -1;
	stop = false;
	NEED(pipe(p) == 0);
	unsigned n = pipes->used;
	for (unsigned i = 0; i < n && i < KX_PIPE_OBJECTS; i++)
		pipes->obj[i].rlock = 1ull << 32 | 1;
	NEED(pthread_create(&t, NULL, look_for_proc, NULL) == 0);
	sigaction(SIGALRM, &(struct sigaction){ .sa_handler = on_alarm }, NULL);
	struct itimerval in = { { 1, 0 }, { 3, 0 } }, off = { 0 };
	setitimer(ITIMER_REAL, &in, NULL);
	check(fcntl(p[0], F_SETPIPE_SZ, 8192) == -1 && errno == EINTR, "who waits for such a lock can be interrupted");
	setitimer(ITIMER_REAL, &off, NULL);
	stop = true;
	pthread_join(t, NULL);
	for (unsigned i = 0; i < n && i < KX_PIPE_OBJECTS; i++)
		pipes->obj[i].rlock = 0;
	close(p[0]);
	close(p[1]);
	check(found_fd < 0, "no descriptor of an outsider's for a lock that names it");
}

/* Threads that are said to be at a semaphore's set, and are somebody's outside. */
static void users_from_outside(void)
{
	struct kx_ipc *ipc = (void *)KX_IPC_BASE;
	const struct kx_ipc_table *table = (void *)KX_IPC_TABLE;
	struct sembuf up = { 0, 1, 0 };
	pthread_t t;
	if (!in_pvm)
		return;
	found_fd = -1;
	stop = false;
	int id = semget(IPC_PRIVATE, 1, 0600);
	NEED(id >= 0);
	for (int i = 0; i < 100 && !table->on; i++)
		NEED(semop(id, &up, 1) == 0);
	check(table->on, "a busy semaphore is in memory");
	struct kx_ipc_obj *o = &ipc->sem[kx_ipc_slot(id)];
	NEED(pthread_create(&t, NULL, look_for_proc, NULL) == 0);
	for (double end = now() + 3; table->on && now() < end && found_fd < 0;) {
		for (unsigned i = 0; i < KX_IPC_USERS; i++)
			o->users[i] = 1ull << 32 | (unsigned)id;
		o->closed = 0;
		semctl(id, 0, SETVAL, 1);
	}
	stop = true;
	pthread_join(t, NULL);
	for (unsigned i = 0; table->on && i < KX_IPC_USERS; i++)
		o->users[i] = 0;
	semctl(id, 0, IPC_RMID);
	check(found_fd < 0, "no descriptor of an outsider's for its number at a semaphore");
}

static volatile bool mapped_some;

/* A vCPU's descriptor while it is made. */
static void *map_low(void *arg)
{
	(void)arg;
	while (!stop) {
		int fd = 3;
		while (fd < LOW && fcntl(fd, F_GETFD) >= 0)
			fd++;
		for (int i = 0; i < 50 && !stop; i++) {
			void *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
			if (p == MAP_FAILED)
				continue;
			mapped_some = true;
			munmap(p, PAGE);
		}
	}
	return NULL;
}

static pthread_barrier_t all_there;
static void *is_there(void *arg)
{
	pthread_barrier_wait(&all_there);
	return arg;
}

#define MANY 300

static void many_threads(void)
{
	pthread_t t[MANY], look[2];
	pthread_attr_t a;
	int made = 0;
	pthread_attr_init(&a);
	pthread_attr_setstacksize(&a, 65536);
	pthread_barrier_init(&all_there, NULL, MANY + 1);
	stop = false;
	for (int i = 0; i < 2; i++)
		NEED(pthread_create(&look[i], &a, map_low, NULL) == 0);
	while (made < MANY && !pthread_create(&t[made], &a, is_there, NULL))
		made++;
	check(made == MANY, "so many threads");
	if (made < MANY)
		_exit(1);
	pthread_barrier_wait(&all_there);
	for (int i = 0; i < MANY; i++)
		pthread_join(t[i], NULL);
	stop = true;
	for (int i = 0; i < 2; i++)
		pthread_join(look[i], NULL);
	check(!mapped_some, "what nobody opened can't be mapped");
	int ep = epoll_create1(0);
	check(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, ep, 0) == MAP_FAILED && errno == ENODEV, "nor an epoll");
	close(ep);
	int fd = open("/proc/self/exe", O_RDONLY);
	void *p = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
	check(p != MAP_FAILED && !memcmp(p, "\177ELF", 4), "a file can");
	close(fd);
}

/* ---- numbers ------------------------------------------------------------------------------------------------------ */

static int open_above(int low, int high)
{
	int n = 0;
	for (int fd = low; fd < high; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* What the monitor keeps about sockets across a fork does not come into the program's range as that grows. */
static void after_fork(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET };
	socklen_t len = sizeof a;
	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	int l = socket(AF_INET, SOCK_STREAM, 0), c = socket(AF_INET, SOCK_STREAM, 0), status;
	NEED(!bind(l, (void *)&a, sizeof a) && !listen(l, 5) && !getsockname(l, (void *)&a, &len));
	NEED(!connect(c, (void *)&a, sizeof a));
	int s = accept4(l, NULL, NULL, SOCK_NONBLOCK);
	NEED(s >= 0);
	int go[2];
	NEED(pipe(go) == 0);
	pid_t child = FORK({
		char x;
		close(go[1]);
		execl("/proc/self/exe", "reach", "child", NULL);
		_exit((int)read(go[0], &x, 1));
	});
	pid_t stays = FORK({
		char x;
		close(go[1]);
		NEED(read(go[0], &x, 1) == 0);
	});
	check(dup2(0, 3000) == 3000, "a high number");
	check(open_above(1000, 3000) == 0, "nothing else in the range that has grown");
	close(3000);
	close(go[1]);
	close(go[0]);
	check(waitpid(stays, &status, 0) == stays && status == 0, "a child ends");
	check(waitpid(child, &status, 0) == child && status == 0, "nothing in that of a child after exec");
	close(s);
	close(c);
	close(l);
}

static int exec_child(void)
{
	NEED(dup2(0, 3000) == 3000);
	return open_above(1000, 3000);
}

/* What nobody has opened is ready for nothing; where it is not EBADF, it is no descriptor that could be. */
static void select_all(void)
{
	struct rlimit r;
	struct timeval zero = { 0, 0 };
	int ready = 0;
	NEED(getrlimit(RLIMIT_NOFILE, &r) == 0);
	int end = r.rlim_max < 8192 ? (int)r.rlim_max : 8192;
	for (int fd = 3; fd < end; fd++) {
		unsigned long in[8192 / 64] = { 0 }, out[8192 / 64] = { 0 };
		if (fcntl(fd, F_GETFD) >= 0)
			continue;
		in[fd / 64] = out[fd / 64] = 1ul << fd % 64;
		ready += syscall(SYS_select, fd + 1, in, out, NULL, &zero) > 0;
	}
	check(!ready, "select tells nothing of what is not open");
}

static void *maps_a_file(void *arg)
{
	while (!stop) {
		void *p = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, *(int *)arg, 0);
		if (p != MAP_FAILED)
			munmap(p, PAGE);
	}
	return NULL;
}

/* The monitor lifts the limit of descriptors for itself, and puts it back: not over one that was set meanwhile. */
static void limits(void)
{
	pthread_t t;
	struct rlimit was, r;
	int wrong = 0, fd = open("/proc/self/exe", O_RDONLY);
	NEED(getrlimit(RLIMIT_NOFILE, &was) == 0 && fd >= 0);
	stop = false;
	NEED(pthread_create(&t, NULL, maps_a_file, &fd) == 0);
	double end = now() + 1;
	for (rlim_t n = 300; now() < end; n = n == 300 ? 400 : 300) {
		struct rlimit want = { n, was.rlim_max };
		NEED(setrlimit(RLIMIT_NOFILE, &want) == 0);
		NEED(getrlimit(RLIMIT_NOFILE, &r) == 0);
		wrong += r.rlim_cur != n;
	}
	stop = true;
	pthread_join(t, NULL);
	check(!wrong, "the limit of descriptors is what was set");
	setrlimit(RLIMIT_NOFILE, &was);
	close(fd);
}

/* Whether there is a process of that number, and how much it computes. */
static void clocks(void)
{
	struct timespec ts = { 0, 1 };
	clockid_t c = (clockid_t)(~(uint32_t)1 << 3 | 2);
	if (!in_pvm)
		return;
	check(clock_getres(c, &ts) == -1 && errno == EINVAL, "the resolution of an outsider's clock");
	check(clock_nanosleep(c, TIMER_ABSTIME, &ts, NULL) == EINVAL, "a sleep by an outsider's clock");
	c = (clockid_t)(~(uint32_t)getpid() << 3 | 2);
	check(clock_getres(c, &ts) == 0 && ts.tv_nsec == 1, "that of one's own");
}

/* Until one comes that is not 33: how many of those did, which monitors send their own threads. */
static void *reads_signals(void *arg)
{
	struct signalfd_siginfo s;
	intptr_t n = 0;
	while (read(*(int *)arg, &s, sizeof s) == sizeof s && s.ssi_signo == 33)
		n++;
	return (void *)n;
}

/* A child of vfork has the monitor call its other threads out of their calls. */
static void kicks(void)
{
	uint64_t set = 1ull << 32 | 1ull << (SIGUSR1 - 1), mine = 1ull << (SIGUSR1 - 1), old;
	pthread_t t;
	void *n;
	NEED(syscall(SYS_rt_sigprocmask, SIG_BLOCK, &mine, &old, 8) == 0);
	int fd = (int)syscall(SYS_signalfd4, -1, &set, 8, 0), status;
	NEED(fd >= 0 && pthread_create(&t, NULL, reads_signals, &fd) == 0);
	for (int i = 0; i < 20; i++) {
		nanosleep(&(struct timespec){ 0, 10000000 }, NULL);
		pid_t child = vfork();
		if (child == 0)
			_exit(0);
		NEED(child > 0 && waitpid(child, &status, 0) == child);
	}
	NEED(kill(getpid(), SIGUSR1) == 0 && pthread_join(t, &n) == 0);
	check(!n, "no signal of the monitor's own in a signalfd");
	close(fd);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &old, 0, 8);
}

/* What the monitor writes and the program only reads: the clocks, and the answers to `cpuid`. */
static void monitors_pages(void)
{
	static const uint64_t at[] = { KX_VVAR_BASE, KX_CPUID_BASE, KX_CPUID_BASE + PAGE };
	for (unsigned i = 0; in_pvm && i < sizeof at / sizeof at[0]; i++) {
		volatile uint8_t *p = (volatile uint8_t *)at[i];
		int st = 0;
		pid_t pid = fork();
		if (!pid) {
			*p = *p;
			_exit(0);
		}
		check(waitpid(pid, &st, 0) == pid && WIFSIGNALED(st) && WTERMSIG(st) == SIGSEGV,
		      "a page of the monitor's is not written to");
	}
}

static void groups(void)
{
	sources(AF_INET, IPPROTO_IP, "sources of a group, without room for them");
	sources(AF_INET6, IPPROTO_IPV6, "sources of an IPv6 group, without room for them");
}

static const struct {
	const char *name;
	void (*fn)(void);
} parts[] = { { "fork", after_fork }, /* with one thread */
	      { "pages", monitors_pages },
	      { "select", select_all },
	      { "groups", groups },
	      { "clocks", clocks },
	      { "users", users_from_outside },
	      { "kicks", kicks },
	      { "words", read_only_words },
	      { "ids", change_ids },
	      { "lock", lock_of_outsider },
	      { "threads", many_threads },
	      { "limits", limits } };

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "child"))
		return exec_child();
	in_pvm = argc > 1;
	for (unsigned i = 0; i < sizeof parts / sizeof parts[0]; i++)
		if (argc < 3 || !strcmp(argv[2], parts[i].name))
			parts[i].fn();
	return first_failed;
}
