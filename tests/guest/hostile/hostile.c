/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile guest. hostile pvm [RANDOM_CALLS]: every row of abi/hypercalls.def, made directly through the hypercall
 * port and through `syscall`, with every bad value that its arguments' kinds can have, and random combinations. At the
 * end the pVM must still work, no descriptor of the monitor's may have been reached and no guard page changed.
 * hostile MODE [SEED]: one attack after which the pVM may be dead, by a clear error, but the monitor must not be;
 * hostile modes lists them. Each is for tests/integration/test_hostile.py, which judges how it ended.
 * Without arguments nothing is done: natively there is no port.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <mqueue.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../../../abi/kx_abi.h"
#include "../../../abi/kx_dgram.h"
#include "../../../abi/kx_hcall.h"
#include "../../../abi/kx_ipc.h"
#include "../../../abi/kx_openahead.h"
#include "../../../abi/kx_pipe.h"

#define PAGE 4096ul
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#define DIR "/tmp/hostile"
#define LEN(a) (sizeof(a) / sizeof(a)[0])

struct row {
	unsigned nr, flags;
	const char *name;
	struct kx_arg_desc arg[6];
};
static const struct row rows[] = {
#define KX_CALL(nr, name, handler, flags, doc, a0, a1, a2, a3, a4, a5) { nr, flags, #name, { a0, a1, a2, a3, a4, a5 } },
#include "../../../abi/hypercalls.def"
};

/*
 * Rows that may end, block or spoil the process that makes them, and why: made in a child, and in a new one after each
 * call that ended the child. How the child ended is its own affair; that it ends is ours. In addition, and for all:
 *   kill and kin    a signal other than 0 and SIGCONT goes only to the caller
 *   mmap            MAP_POPULATE and MAP_LOCKED only up to 64 MiB: the host's memory is not only ours
 *   fallocate       at most 1 MiB, for the same reason
 *   FD              never 0, 1, 2
 */
static const struct {
	const char *names, *why;
} in_child[] = {
	{ " exit exit_group sig_default sig_stack_fault ", "ends the caller" },
	{ " kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal ", "may end the caller" },
	{ " pause rt_sigsuspend rt_sigtimedwait futex ", "sleeps, with a signal mask that may hold back our alarm" },
	{ " alarm setitimer timer_create timer_settime mq_notify ",
	  "changes our alarm, or sends signals that end the caller" },
	{ " rt_sigaction rt_sigprocmask sigaltstack sigmask_sync sig_next ", "takes our alarm away" },
	{ " dup2 dup3 close close_range shutdown ", "closes what the test works with, standard streams included" },
	{ " chroot chdir fchdir umask ", "moves the working directory or changes what the test creates" },
	{ " setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset ",
	  "gives privileges up" },
	{ " setrlimit prlimit64 ", "lowers limits" },
	{ " setpgid setsid prctl personality sched_setaffinity setpriority ioprio_set ", "changes the process" },
	{ " sched_setparam sched_setscheduler sched_setattr ", "may starve the rest" },
	{ " execve execveat fork vfork clone clone3 ", "makes or replaces processes" },
	{ " mmap munmap mprotect mremap brk madvise mlock mlock2 mlockall shmat shmdt ",
	  "takes the test's own memory away" },
	{ " arch_prctl set_tid_address set_robust_list seed trace ", "spoils the caller's own thread state" },
};

static uint64_t rng_state = 1;
static uint64_t rnd(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return rng_state * 0x2545f4914f6cdd1dull;
}
static uint64_t below(uint64_t n) { return rnd() % n; }
static void rng_seed(uint64_t a, uint64_t b)
{
	rng_state = (a + 1) * 0x9e3779b97f4a7c15ull ^ (b + 1) * 0xd1342543de82ef95ull;
	for (int i = 0; i < 4; i++)
		rnd();
}

static int failures;
__attribute__((format(printf, 1, 2))) static void fail(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	printf("FAIL ");
	vprintf(fmt, ap);
	printf("\n");
	fflush(stdout);
	va_end(ap);
	failures++;
}

/* ---- calls ---------------------------------------- */

static struct kx_thread *area(void)
{
	struct kx_thread *t;
	__asm__ volatile("mov %%gs:0, %0" : "=r"(t));
	return t;
}

/* A hypercall by the program itself. A handler that runs just before the `out` overwrites the call: then again. */
static int64_t hcall(uint64_t nr, const uint64_t a[6])
{
	struct kx_thread *t = area();
	for (int i = 0; i < 4; i++) {
		volatile struct kx_call *c = &t->call;
		c->nr = nr;
		for (int k = 0; k < 6; k++)
			c->arg[k] = a[k];
		c->ret = 0x5a5a;
		__asm__ volatile("out %%eax, %%dx" : : "a"(0), "d"(KX_PORT_HCALL) : "memory");
		if (c->nr == nr)
			return c->ret;
	}
	return -EINTR;
}

static int64_t sys(uint64_t nr, const uint64_t a[6])
{
	int64_t ret;
	register uint64_t r10 __asm__("r10") = a[3], r8 __asm__("r8") = a[4], r9 __asm__("r9") = a[5];
	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "0"(nr), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}
#define SYS6(nr, ...) sys(nr, (const uint64_t[6]){ __VA_ARGS__ })
#define HC(nr, ...) hcall(nr, (const uint64_t[6]){ __VA_ARGS__ })

/* ---- memory that the calls get ---------------------------------------- */

static uint8_t *good, *guard, *readonly, *hole, *canary[4], *strings, *bad_pages;
enum { P_ZERO, P_ONES, P_PTRS, P_LENS, P_RANDOM, NR_BAD };
static uint8_t *text;
static unsigned fd_limit;
static int fd_good[12], nr_fd_good;
enum { G_FILE, G_SOCK, G_EPOLL, G_PIPE_R, G_PIPE_W, G_EVENT, G_TIMER, G_DIR, G_PIDFD, G_MQ, G_INOTIFY, G_LISTEN };
static pid_t main_pid;

static void canary_fill(void)
{
	for (unsigned i = 0; i < LEN(canary); i++)
		for (unsigned k = 0; k < PAGE; k += 8)
			*(uint64_t *)(canary[i] + k) = 0xc0ffee0000000000 + i * PAGE + k;
	mprotect(canary[2], PAGE, PROT_READ);
	mprotect(canary[3], PAGE, PROT_NONE);
}

static void canary_check(const char *when)
{
	mprotect(canary[3], PAGE, PROT_READ);
	for (unsigned i = 0; i < LEN(canary); i++)
		for (unsigned k = 0; k < PAGE; k += 8)
			if (*(uint64_t *)(canary[i] + k) != 0xc0ffee0000000000 + i * PAGE + k) {
				fail("%s: guard page %u changed at %u", when, i, k);
				k = PAGE;
			}
	mprotect(canary[3], PAGE, PROT_NONE);
}

/* What structures of pointers and lengths read as, whatever they are. */
static void bad_fill(void)
{
	memset(good, 0, 2 * PAGE);
	memset(bad_pages, 0, PAGE);
	memset(bad_pages + P_ONES * PAGE, 0xff, PAGE);
	uint64_t *p = (uint64_t *)(bad_pages + P_PTRS * PAGE), *l = (uint64_t *)(bad_pages + P_LENS * PAGE);
	const uint64_t ptrs[] = { KX_BOOT_BASE, 64, KX_SYS_BASE, 16, (uint64_t)canary[3], 8, KX_SPACE_SIZE, 4096 };
	const uint64_t lens[] = { (uint64_t)good, ~0ull,     (uint64_t)good, 1ull << 63,
				  (uint64_t)good, INT64_MAX, (uint64_t)good, INT_MAX };
	for (unsigned i = 0; i < PAGE / 8; i++) {
		p[i] = ptrs[i % 8];
		l[i] = lens[i % 8];
		((uint64_t *)(bad_pages + P_RANDOM * PAGE))[i] = rnd();
	}
}

static uint8_t *pages(size_t n)
{
	uint8_t *p = mmap(NULL, n * PAGE, RW, ANON, -1, 0);
	if (p == MAP_FAILED) {
		perror("mmap");
		exit(2);
	}
	return p;
}

static void memory_init(void)
{
	uint8_t *p = pages(16);
	canary[0] = p;
	good = p + PAGE;
	guard = p + 3 * PAGE;
	mprotect(guard, PAGE, PROT_NONE);
	canary[1] = p + 4 * PAGE;
	readonly = p + 5 * PAGE;
	mprotect(readonly, PAGE, PROT_READ);
	canary[2] = p + 6 * PAGE;
	canary[3] = p + 7 * PAGE;
	hole = p + 9 * PAGE;
	munmap(hole, PAGE);
	bad_pages = pages(NR_BAD + 1);
	mprotect(bad_pages + NR_BAD * PAGE, PAGE, PROT_NONE);
	/* strings: no NUL before the end of memory; PATH_MAX without one; PATH_MAX with; others */
	strings = pages(8);
	memset(strings, 'a', 8 * PAGE);
	strings[2 * PAGE + PATH_MAX - 1] = 0;
	memset(strings + 3 * PAGE, 0, PAGE);
	snprintf((char *)strings + 3 * PAGE, 64, DIR "/file");
	snprintf((char *)strings + 3 * PAGE + 64, 64, DIR "/other");
	snprintf((char *)strings + 3 * PAGE + 128, 64, "/proc/self/mem");
	snprintf((char *)strings + 3 * PAGE + 192, 64, "/proc/self/fd/%u", fd_limit + 3);
	snprintf((char *)strings + 3 * PAGE + 256, 64, "/dev/kvm");
	snprintf((char *)strings + 3 * PAGE + 320, 64, "../../../../../../proc/1/root");
	snprintf((char *)strings + 3 * PAGE + 384, 64, DIR "/dir");
	mprotect(strings + 6 * PAGE, 2 * PAGE, PROT_NONE);
	text = (uint8_t *)(void *)area;
	canary_fill();
}

static void files_reset(void)
{
	mkdir(DIR, 0777);
	mkdir(DIR "/dir", 0777);
	int fd = open(DIR "/file", O_RDWR | O_CREAT, 0666);
	if (fd >= 0) {
		if (ftruncate(fd, 4096) || (fd_good[G_FILE] > 2 && (ftruncate(fd_good[G_FILE], 4096) < 0)))
			errno = 0;
		close(fd);
	}
}

static void fds_init(void)
{
	int p[2], *f = fd_good;
	struct sigevent none = { .sigev_notify = SIGEV_NONE };
	(void)none;
	f[G_FILE] = open(DIR "/fdfile", O_RDWR | O_CREAT | O_TRUNC, 0666);
	if (ftruncate(f[G_FILE], 4096))
		exit(2);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, p))
		exit(2);
	f[G_SOCK] = p[0];
	f[G_EPOLL] = epoll_create1(0);
	if (pipe2(p, O_NONBLOCK))
		exit(2);
	f[G_PIPE_R] = p[0];
	f[G_PIPE_W] = p[1];
	f[G_EVENT] = eventfd(1, EFD_NONBLOCK);
	f[G_TIMER] = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	f[G_DIR] = open(DIR, O_RDONLY | O_DIRECTORY);
	f[G_PIDFD] = (int)syscall(SYS_pidfd_open, getpid(), 0);
	struct mq_attr attr = { .mq_maxmsg = 4, .mq_msgsize = 64 };
	f[G_MQ] = mq_open("/hostile", O_RDWR | O_CREAT | O_NONBLOCK, 0600, &attr);
	f[G_INOTIFY] = inotify_init1(IN_NONBLOCK);
	f[G_LISTEN] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	nr_fd_good = LEN(fd_good);
}

/* ---- values ---------------------------------------- */

#define VALUES_MAX 160
struct values {
	uint64_t v[VALUES_MAX];
	int n;
};

static void add(struct values *s, uint64_t v)
{
	if (s->n < VALUES_MAX)
		s->v[s->n++] = v;
}

static void add_pointers(struct values *s)
{
	const uint64_t v[] = {
		0,
		1,
		8,
		0xffff,
		(uint64_t)good + 1,
		(uint64_t)good + 2 * PAGE - 1,
		(uint64_t)good + 2 * PAGE - 4,
		(uint64_t)guard,
		(uint64_t)readonly,
		(uint64_t)hole,
		(uint64_t)canary[3],
		(uint64_t)text,
		KX_USER_END - 1,
		KX_USER_END - 8,
		KX_USER_END - PAGE,
		KX_USER_END,
		KX_SPACE_SIZE,
		KX_HIGH_END - 8,
		KX_LIBOS_BASE + 0x1000,
		KX_VDSO_BASE,
		KX_VVAR_BASE,
		KX_BOOT_BASE,
		KX_BOOT_BASE + 0x40,
		KX_SITES_BASE,
		KX_AREA_BASE,
		(uint64_t)area(),
		KX_AREA_BASE + (uint64_t)KX_AREA_SIZE * KX_AREA_MAX - 8,
		KX_SYS_BASE,
		KX_SYS_BASE + 0x1000,
		KX_SPACE_SIZE - 1,
		KX_SPACE_SIZE,
		KX_SPACE_SIZE + 0x1000,
		1ull << 46,
		0x7fffffffe000,
		0x7ffffffff000,
		0x800000000000,
		0xffff800000000000,
		0xffffffff80000000,
		~0ull,
		-4096ull,
		1ull << 63,
		-(uint64_t)good,
		(uint64_t)bad_pages,
		(uint64_t)bad_pages + P_ONES * PAGE,
		(uint64_t)bad_pages + P_PTRS * PAGE,
		(uint64_t)bad_pages + P_LENS * PAGE,
		(uint64_t)bad_pages + P_RANDOM * PAGE,
		(uint64_t)bad_pages + NR_BAD * PAGE - 8,
	};
	for (unsigned i = 0; i < LEN(v); i++)
		add(s, v[i]);
}

static void add_paths(struct values *s)
{
	const uint64_t off[] = { 6 * PAGE - 1,   6 * PAGE - 100, 0,
				 1 * PAGE,       2 * PAGE,       2 * PAGE + 1,
				 3 * PAGE + 32,  3 * PAGE + 64,  3 * PAGE + 128,
				 3 * PAGE + 192, 3 * PAGE + 256, 3 * PAGE + 320,
				 3 * PAGE + 384, 5 * PAGE };
	for (unsigned i = 0; i < LEN(off); i++)
		add(s, (uint64_t)strings + off[i]);
}

static void values_of(const struct row *r, int i, struct values *s)
{
	static const uint64_t sizes[] = { 0,          1,           7,          8,          16,         100,
					  1024,       1025,        4095,       4096,       4097,       8192,
					  65536,      1 << 20,     INT_MAX,    1ull << 31, UINT_MAX,   1ull << 32,
					  1ull << 39, KX_USER_END, 1ull << 47, INT64_MAX,  1ull << 63, ~0ull,
					  -4096ull,   -8ull };
	static const uint64_t ints[] = { 0,       1,          2,          3,          4,           5,         6,
					 7,       8,          10,         16,         31,          64,        128,
					 1000,    1024,       65535,      65536,      -1ull,       -2ull,     INT_MAX,
					 INT_MIN, 0x80000000, 0xffffffff, 1ull << 32, ~0ull << 32, 1ull << 63 };
	static const uint64_t sigs[] = { 0,  1,  9,  11, 14,  18,    19,      31,      32,
					 33, 34, 64, 65, 128, -1ull, INT_MIN, INT_MAX, 1ull << 32 };
	s->n = 0;
	switch (r->arg[i].kind) {
	case KX_A_FD:
	case KX_A_ATFD:
	case KX_A_FDN:
	case KX_A_FDNEW:
		for (unsigned k = 0; k < 48; k++)
			add(s, fd_limit + k);
		const uint64_t fds[] = { -1ull,
					 -100ull,
					 -2ull,
					 65535,
					 65536,
					 70000,
					 1 << 20,
					 INT_MAX,
					 INT_MIN,
					 1ull << 63,
					 ~0ull << 32 | fd_limit,
					 1ull << 32 | (unsigned)fd_good[0],
					 900 };
		for (unsigned k = 0; k < LEN(fds); k++)
			add(s, fds[k]);
		for (int k = 0; k < nr_fd_good; k++)
			add(s, fd_good[k]);
		break;
	case KX_A_PATH:
	case KX_A_PATHE:
	case KX_A_PATHO:
	case KX_A_STR:
		add_pointers(s);
		add_paths(s);
		break;
	case KX_A_SIZE:
	case KX_A_UINT:
	case KX_A_OFF:
		for (unsigned k = 0; k < LEN(sizes); k++)
			add(s, sizes[k]);
		add(s, -(uint64_t)good);
		add(s, KX_USER_END - (uint64_t)good);
		add(s, KX_USER_END - (uint64_t)good + 1);
		break;
	case KX_A_INT:
		for (unsigned k = 0; k < LEN(ints); k++)
			add(s, ints[k]);
		add(s, getpid());
		add(s, getppid());
		break;
	case KX_A_MODE:
	case KX_A_FLAGS:
		for (unsigned k = 0; k < 34; k++)
			add(s, 1ull << k);
		add(s, 0);
		add(s, ~0ull);
		add(s, 0xffffffff);
		add(s, S_IFCHR | 0666);
		break;
	case KX_A_SIG:
		for (unsigned k = 0; k < LEN(sigs); k++)
			add(s, sigs[k]);
		break;
	default:
		add_pointers(s);
		if (r->nr == SYS_execve || r->nr == SYS_execveat)
			add_paths(s);
	}
}

static bool named(const char *list, const char *name)
{
	char word[64];
	snprintf(word, sizeof word, " %s ", name);
	return strstr(list, word) != NULL;
}

/* The value with which the call gets as far as it can. */
static uint64_t good_value(const struct row *r, int i)
{
	switch (r->arg[i].kind) {
	case KX_A_FD:
		if (!strcmp(r->arg[i].name, "epfd"))
			return fd_good[G_EPOLL];
		if (!strcmp(r->arg[i].name, "mqdes"))
			return fd_good[G_MQ];
		if (!strcmp(r->arg[i].name, "pidfd"))
			return fd_good[G_PIDFD];
		if (named(" connect accept accept4 bind listen ", r->name))
			return fd_good[G_LISTEN];
		if (named(" sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown getsockname getpeername "
			  "setsockopt "
			  "getsockopt ",
			  r->name))
			return fd_good[G_SOCK];
		if (named(" vmsplice tee splice ", r->name))
			return fd_good[i == 0 ? G_PIPE_R : G_PIPE_W];
		if (named(" timerfd_settime timerfd_gettime ", r->name))
			return fd_good[G_TIMER];
		if (named(" getdents getdents64 fchdir ", r->name))
			return fd_good[G_DIR];
		if (!strncmp(r->name, "inotify", 7))
			return fd_good[G_INOTIFY];
		if (r->nr == SYS_epoll_ctl)
			return fd_good[G_EVENT];
		return fd_good[G_FILE];
	case KX_A_ATFD:
		return AT_FDCWD;
	case KX_A_FDN:
		return -1ull;
	case KX_A_FDNEW:
		return 800;
	case KX_A_PATH:
	case KX_A_PATHE:
	case KX_A_PATHO:
		return (uint64_t)strings + 3 * PAGE + (i && r->arg[i - 1].kind == KX_A_PATH ? 64 : 0);
	case KX_A_STR:
		return (uint64_t)strings + 3 * PAGE + 64;
	case KX_A_SIZE:
		return !strncmp(r->arg[i].name, "sigset", 6) || !strcmp(r->arg[i].name, "sizemask") ? 8
		       : named(" mmap munmap mprotect madvise mremap mlock ", r->name)              ? PAGE
												    : 24;
	case KX_A_UINT:
		return r->nr == SYS_poll || r->nr == SYS_ppoll ? 1 : 16;
	case KX_A_INT:
		return named(" timeout maxevents vlen nfds nsems ", r->arg[i].name) ? 1 : 0;
	case KX_A_FLAGS:
		return r->nr == SYS_mmap ? (i == 2 ? RW : ANON) : r->nr == SYS_clone ? SIGCHLD : 0;
	case KX_A_MODE:
		return 0600;
	case KX_A_OFF:
	case KX_A_SIG:
		return 0;
	}
	return (uint64_t)good + 64 * i;
}

static uint64_t random_value(const struct row *r, int i)
{
	static const uint64_t requests[] = { 0x5401,     0x5402,     0x5413,     0x5414,     0x541b,     0x5421,
					     0x5450,     0x5451,     0x5452,     0x5410,     0x540f,     0x5412,
					     0x540e,     0x8901,     0x8902,     0x8910,     0x8912,     0x8913,
					     0x8927,     0x8933,     0xae00,     0xae01,     0xae80,     0x40049409,
					     0x4020940d, 0xc0189436, 0xc020660b, 0x80086601, 0x40086602, 0x5423,
					     0x80045430, 0x40045431, 0x540b,     0x4004743a };
	static struct values s;
	uint64_t k = rnd() % 4;
	if (k < 2)
		return good_value(r, i);
	if (k == 2) {
		values_of(r, i, &s);
		return s.v[below(s.n)];
	}
	switch (r->arg[i].kind) {
	case KX_A_FD:
	case KX_A_ATFD:
	case KX_A_FDN:
		return fd_good[below(nr_fd_good)];
	case KX_A_FDNEW:
		return 3 + below(fd_limit + 100);
	case KX_A_PATH:
	case KX_A_PATHE:
	case KX_A_PATHO:
	case KX_A_STR:
		return (uint64_t)strings + 3 * PAGE + 64 * below(7);
	case KX_A_INT:
	case KX_A_MODE:
	case KX_A_FLAGS:
		return below(4) ? below(80) : below(2) ? 1024 + below(40) : rnd() >> below(64);
	case KX_A_SIZE:
	case KX_A_UINT:
	case KX_A_OFF:
		if (r->nr == SYS_ioctl && i == 1)
			return requests[below(LEN(requests))];
		return below(2) ? below(300) : rnd() >> below(64);
	case KX_A_SIG:
		return below(70);
	}
	return below(2) ? (uint64_t)good + below(2 * PAGE) : (uint64_t)bad_pages + below(NR_BAD * PAGE);
}

/* Combination n of a row: each argument in turn takes each of its values while the others are good; from there on
 * random ones. Returns the index of the bad argument, -1 when random. */
static int combination(const struct row *r, int n, uint64_t a[6])
{
	static struct values s;
	for (int i = 0; i < 6; i++)
		a[i] = r->arg[i].kind == KX_A_NONE ? 0 : good_value(r, i);
	int k = n;
	for (int i = 0; i < 6 && r->arg[i].kind != KX_A_NONE; i++) {
		values_of(r, i, &s);
		if (k < s.n) {
			a[i] = s.v[k];
			return i;
		}
		k -= s.n;
	}
	rng_seed(r->nr, n);
	for (int i = 0; i < 6; i++)
		a[i] = r->arg[i].kind == KX_A_NONE ? rnd() : random_value(r, i);
	return -1;
}

static int combinations(const struct row *r, int random_calls)
{
	static struct values s;
	int n = 0;
	for (int i = 0; i < 6 && r->arg[i].kind != KX_A_NONE; i++) {
		values_of(r, i, &s);
		n += s.n;
	}
	return n + (n ? random_calls : 2);
}

/* The promises made above. */
static void restrain(const struct row *r, uint64_t a[6])
{
	for (int i = 0; i < 6; i++) {
		unsigned k = r->arg[i].kind;
		if ((k == KX_A_FD || k == KX_A_FDN || k == KX_A_ATFD) && (int)a[i] >= 0 && (int)a[i] <= 2)
			a[i] = fd_good[G_FILE];
		if (k == KX_A_SIG && strcmp(r->name, "rt_sigaction") && strncmp(r->name, "sig_", 4)) {
			bool to_self = (int)a[0] == getpid() && (i < 2 || (int)a[1] == getpid());
			if (!to_self && (int)a[i] >= 1 && (int)a[i] <= 64)
				a[i] = SIGCONT;
		}
	}
	if (r->nr == SYS_mmap && a[1] > 64 << 20)
		a[3] &= ~(uint64_t)(MAP_POPULATE | MAP_LOCKED);
	if (r->nr == SYS_fallocate && a[3] > 1 << 20 && a[3] < 1ull << 60)
		a[3] = 1 << 20;
}

/* ---- the sweep ---------------------------------------- */

static void on_alarm(int s) { (void)s; }

static void alarm_start(void)
{
	struct sigaction sa = { .sa_handler = on_alarm };
	struct itimerval it = { { 0, 20000 }, { 0, 20000 } };
	/* Whatever calls have sent to us (F_SETSIG, a pipe without a reader) as well; not faults. */
	for (int i = 1; i <= 64; i++)
		if (i != SIGSEGV && i != SIGBUS && i != SIGILL && i != SIGFPE && i != SIGTRAP && i != SIGINT &&
		    i != SIGTERM)
			sigaction(i, &sa, NULL);
	setitimer(ITIMER_REAL, &it, NULL);
}

static uint64_t nr_calls;

static void one_call(const struct row *r, int n, bool direct)
{
	uint64_t a[6], none = 0;
	int bad = combination(r, n, a);
	restrain(r, a);
	/* The line names the call before it is made: for whoever looks after a crash. */
	if (getenv("HOSTILE_VERBOSE")) {
		dprintf(2, "%s %s #%d (%#lx, %#lx, %#lx, %#lx, %#lx, %#lx)\n", direct ? "out" : "syscall", r->name, n,
			a[0], a[1], a[2], a[3], a[4], a[5]);
	}
	int64_t ret = direct ? hcall(r->nr, a) : sys(r->nr, a);
	nr_calls++;
	if (bad >= 0 && (int)a[bad] >= (int)fd_limit && a[bad] <= INT_MAX && r->arg[bad].kind >= KX_A_FD &&
	    r->arg[bad].kind <= KX_A_FDNEW && ret != -EBADF && ret != -EINTR && !(r->nr == SYS_mmap && !direct))
		fail("%s: argument %d = descriptor %lu, at or above the limit %u: %ld, not EBADF", r->name, bad, a[bad],
		     fd_limit, ret);
	/* What may be pending or blocked now, away with it. */
	SYS6(SYS_rt_sigprocmask, SIG_SETMASK, (uint64_t)&none, 0, 8);
}

static const char *why_in_child(const struct row *r)
{
	for (unsigned i = 0; i < LEN(in_child); i++)
		if (named(in_child[i].names, r->name))
			return in_child[i].why;
	return NULL;
}

static void sweep_here(const struct row *r, int random_calls, bool direct)
{
	int total = combinations(r, direct ? random_calls : random_calls / 4);
	for (int n = 0; n < total; n++) {
		if (n % 16 == 0)
			bad_fill();
		if (r->arg[0].kind >= KX_A_PATH && r->arg[0].kind <= KX_A_STR && n % 8 == 0)
			files_reset();
		one_call(r, n, direct);
	}
	files_reset();
	close_range(fd_good[nr_fd_good - 1] + 1, ~0u, 0);
}

static volatile int *progress; /* shared with children: the combination under way */

static void child_loop(const struct row *r, int from, int total, bool direct)
{
	pid_t me = (pid_t)SYS6(SYS_getpid, 0);
	alarm_start();
	close(fd_good[G_PIDFD]);
	fd_good[G_PIDFD] = (int)syscall(SYS_pidfd_open, getpid(), 0);
	for (int n = from; n < total; n++) {
		*progress = n;
		bad_fill();
		one_call(r, n, direct);
		/* A process that the call has made: not our loop's. */
		if ((pid_t)SYS6(SYS_getpid, 0) != me)
			SYS6(SYS_exit_group, 0);
	}
	*progress = total;
	SYS6(SYS_exit_group, 0);
}

static uint64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void reap_all(void)
{
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

/* Until pid ends, or makes no progress for limit_ms: then it is killed. Returns false if it had to be. */
static bool child_wait(pid_t pid, unsigned limit_ms, int *status)
{
	uint64_t since = now_ms();
	int last = *progress, kills = 0;
	for (;;) {
		pid_t p = waitpid(pid, status, WNOHANG | WUNTRACED);
		if (p == pid && WIFSTOPPED(*status)) {
			kill(pid, SIGCONT);
			continue;
		}
		if (p == pid)
			return kills == 0;
		if (p < 0 && errno != EINTR)
			return kills == 0;
		if (*progress != last) {
			last = *progress;
			since = now_ms();
		}
		if (now_ms() - since > limit_ms && kills == 0) {
			kill(pid, SIGKILL);
			kills = 1;
			since = now_ms();
		}
		if (kills && now_ms() - since > 5000) {
			fail("combination %d: the child cannot be killed", last);
			return false;
		}
		struct timespec ms = { 0, 500000 };
		nanosleep(&ms, NULL);
	}
}

static int nr_children, nr_died, nr_stuck;

static void sweep_in_child(const struct row *r, int random_calls, bool direct)
{
	int total = combinations(r, direct ? random_calls : random_calls / 4), status = 0;
	bool makes = named(" fork vfork clone clone3 execve execveat ", r->name);
	bool blocks = r->flags & KX_F_BLOCK || makes;
	for (int n = 0; n < total;) {
		*progress = n;
		fflush(stdout);
		pid_t pid = fork();
		if (pid == 0)
			child_loop(r, n, total, direct);
		if (pid < 0) {
			fail("%s: fork: %s", r->name, strerror(errno));
			return;
		}
		nr_children++;
		if (!child_wait(pid, blocks ? 400 : 4000, &status)) {
			nr_stuck++;
			if (!blocks &&
			    !named(" sig_default kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo rt_sigprocmask "
				   "rt_sigaction sigmask_sync pidfd_send_signal ",
				   r->name))
				fail("%s: combination %d: stuck in a call that does not block", r->name, *progress);
		}
		if (*progress < total)
			nr_died++;
		n = *progress + 1;
		reap_all();
	}
	files_reset();
}

static uint64_t libos_sum(void)
{
	uint64_t h = 0;
	for (const uint64_t *p = (void *)KX_LIBOS_BASE; p < (const uint64_t *)KX_VVAR_BASE; p++)
		h = (h ^ *p) * 0x100000001b3;
	return h;
}

/* No descriptor of the monitor's can be named, by whatever call. */
static void scan_descriptors(void)
{
	struct pollfd pf;
	struct epoll_event ev = { .events = EPOLLIN };
	unsigned reached = 0;
	struct stat st;
	for (unsigned fd = fd_limit; fd <= 70000; fd++) {
		int64_t r = HC(SYS_fcntl, fd, F_GETFD, 0);
		if (r != -EBADF && reached++ < 5)
			fail("fcntl(%u, F_GETFD): %ld", fd, r);
	}
	static const unsigned far[] = { 65535, 65536, 70000, 1 << 20, INT_MAX };
	for (unsigned k = 0; k < 128 + LEN(far); k++) {
		unsigned fd = k < 128 ? fd_limit + k : far[k - 128];
		struct iovec iov = { good, 1 };
		union {
			char buf[CMSG_SPACE(sizeof(int))];
			struct cmsghdr align;
		} u = { 0 };
		struct msghdr m = {
			.msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf, .msg_controllen = sizeof u.buf
		};
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof fd);
		const struct {
			const char *name;
			int64_t ret;
		} got[] = {
			{ "close", HC(SYS_close, fd) },
			{ "dup", HC(SYS_dup, fd) },
			{ "dup2 from", HC(SYS_dup2, fd, 700) },
			{ "dup2 to", HC(SYS_dup2, fd_good[0], fd) },
			{ "dup3 to", HC(SYS_dup3, fd_good[0], fd, 0) },
			{ "fstat", HC(SYS_fstat, fd, (uint64_t)&st) },
			{ "ioctl", HC(SYS_ioctl, fd, 0xae00, 0) },
			{ "mmap", HC(SYS_mmap, 0, PAGE, 1, MAP_SHARED, fd, 0) },
			{ "openat", HC(SYS_openat, fd, (uint64_t) "x", O_RDONLY, 0) },
			{ "epoll_ctl", HC(SYS_epoll_ctl, fd_good[G_EPOLL], EPOLL_CTL_ADD, fd, (uint64_t)&ev) },
			{ "epoll_ctl on", HC(SYS_epoll_ctl, fd, EPOLL_CTL_ADD, fd_good[G_SOCK], (uint64_t)&ev) },
			{ "sendmsg", HC(SYS_sendmsg, fd_good[G_SOCK], (uint64_t)&m, MSG_DONTWAIT) },
			{ "sendfile", HC(SYS_sendfile, fd_good[0], fd, 0, 1) },
			{ "pidfd_send_signal", HC(SYS_pidfd_send_signal, fd, 0, 0, 0) },
			{ "write", HC(SYS_write, fd, (uint64_t)good, 1) },
			{ "read", HC(SYS_read, fd, (uint64_t)good, 1) },
			{ "fchdir", HC(SYS_fchdir, fd) },
			{ "fchmod", HC(SYS_fchmod, fd, 0777) },
			{ "mq_notify", HC(SYS_mq_notify, fd, 0) },
			{ "getdents64", HC(SYS_getdents64, fd, (uint64_t)good, 99) },
		};
		for (unsigned i = 0; i < LEN(got); i++)
			if (got[i].ret != -EBADF)
				fail("%s of descriptor %u: %ld", got[i].name, fd, got[i].ret);
		int64_t r = HC(SYS_fcntl, fd_good[0], F_DUPFD, fd);
		if (r != -EINVAL && r != -EMFILE)
			fail("F_DUPFD at %u: %ld", fd, r);
		pf = (struct pollfd){ .fd = (int)fd, .events = POLLIN };
		r = HC(SYS_poll, (uint64_t)&pf, 1, 0);
		if (r != 1 || pf.revents != POLLNVAL)
			fail("poll of descriptor %u: %ld, %#x", fd, r, pf.revents);
	}
	/* Bits of select() up there: as descriptors that are not open, or not looked at. */
	static uint64_t set[70016 / 64];
	memset(set, 0, sizeof set);
	for (unsigned fd = fd_limit; fd < fd_limit + 64; fd++)
		set[fd / 64] |= 1ull << fd % 64;
	struct timeval zero = { 0, 0 };
	int64_t r = HC(SYS_select, fd_limit + 64, (uint64_t)set, 0, 0, (uint64_t)&zero);
	if (r > 0)
		fail("select of descriptors above the limit: %ld ready", r);
	r = HC(SYS_close_range, fd_limit, ~0u, 0);
	if (r < 0)
		fail("close_range above the limit: %ld", r);
	char path[64];
	for (unsigned fd = fd_limit; fd < fd_limit + 64; fd++) {
		snprintf(path, sizeof path, "/proc/self/fd/%u", fd);
		if ((r = SYS6(SYS_open, (uint64_t)path, O_RDONLY)) >= 0 ||
		    (r = SYS6(SYS_readlink, (uint64_t)path, (uint64_t)good, 100)) >= 0)
			fail("%s: %ld", path, r);
	}
}

static void unknown_calls(void)
{
	static uint8_t known[2049];
	for (unsigned i = 0; i < LEN(rows); i++)
		known[rows[i].nr] = 1;
	const uint64_t a[6] = { ~0ull, (uint64_t)good, 1ull << 63, 0, KX_SYS_BASE, 1 };
	for (unsigned nr = 0; nr <= 2048; nr++) {
		if (known[nr])
			continue;
		int64_t r = hcall(nr, a);
		if (r != -ENOSYS)
			fail("hypercall %u, which there is not: %ld", nr, r);
		if (nr != 15 && (r = sys(nr, a)) != -ENOSYS)
			fail("system call %u, which there is not: %ld", nr, r);
	}
	for (unsigned nr = 1024; nr < 1100; nr++)
		if (sys(nr, a) != -ENOSYS)
			fail("the hypercall %u is a system call", nr);
	for (int i = 0; i < 2000; i++) {
		uint64_t nr = rnd() >> below(50);
		if ((nr <= 2048 && known[nr]) || nr == 15)
			continue;
		int64_t r = hcall(nr, a);
		if (r != -ENOSYS)
			fail("hypercall %#lx: %ld", nr, r);
		if ((nr = rnd() | 1ull << 30 | 1ull << 31) && (r = sys(nr, a)) != -ENOSYS)
			fail("system call %#lx: %ld", nr, r);
	}
}

/* ---- does the pVM still work? ---------------------------------------- */

static volatile sig_atomic_t got_signal;
static void on_usr1(int s) { got_signal = s; }
static void *thread_adds(void *arg)
{
	__atomic_add_fetch((int *)arg, 1, __ATOMIC_SEQ_CST);
	return arg;
}

static void still_works(void)
{
	int n = 0, fd[2];
	char c = 'x';
	pthread_t th[4];
	struct itimerval off = { 0 };
	setitimer(ITIMER_REAL, &off, NULL);
	for (int i = 0; i < 4; i++)
		if (pthread_create(&th[i], NULL, thread_adds, &n))
			fail("afterwards: pthread_create");
		else
			pthread_join(th[i], NULL);
	if (n != 4)
		fail("afterwards: %d of 4 threads ran", n);
	if (pipe(fd) || write(fd[1], "y", 1) != 1 || read(fd[0], &c, 1) != 1 || c != 'y')
		fail("afterwards: pipe");
	uint8_t *p = pages(256);
	memset(p, 7, 256 * PAGE);
	if (p[255 * PAGE] != 7 || munmap(p, 256 * PAGE))
		fail("afterwards: memory");
	signal(SIGUSR1, on_usr1);
	raise(SIGUSR1);
	if (got_signal != SIGUSR1)
		fail("afterwards: signal");
	int status;
	pid_t pid = fork();
	if (pid == 0)
		_exit(7);
	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != 7)
		fail("afterwards: fork");
}

static int sweep(int random_calls)
{
	const char *only = getenv("HOSTILE_ONLY");
	struct rlimit rl;
	uint64_t sum = libos_sum(), start = now_ms();
	getrlimit(RLIMIT_NOFILE, &rl);
	fd_limit = rl.rlim_max; /* the pVM shows its own limit as the hard one */
	main_pid = getpid();
	memory_init();
	files_reset();
	fds_init();
	bad_fill();
	if (chdir(DIR))
		return 2;
	progress = mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	alarm_start();
	for (int direct = 1; direct >= 0; direct--)
		for (unsigned i = 0; i < LEN(rows); i++) {
			const struct row *r = &rows[i];
			if ((only && strcmp(only, r->name)) || (!direct && r->nr >= 1024))
				continue;
			uint64_t t0 = now_ms();
			(why_in_child(r) ? sweep_in_child : sweep_here)(r, random_calls, direct);
			canary_check(r->name);
			if (now_ms() - t0 > 2000)
				printf("# %s%s: %lu ms\n", r->name, direct ? "" : " by syscall", now_ms() - t0);
		}
	if (!only) {
		unknown_calls();
		scan_descriptors();
	}
	canary_check("at the end");
	if (libos_sum() != sum)
		fail("the LibOS image or the vDSO changed");
	still_works();
	printf("# %lu calls here, %d children, of which %d ended early, %d after being stuck; %lu ms\n", nr_calls,
	       nr_children, nr_died, nr_stuck, now_ms() - start);
	if (failures)
		printf("%d failures\n", failures);
	else
		printf("SUCCESS\n");
	fflush(stdout);
	return failures ? 1 : 0;
}

/* ---- lies in the memory that LibOS and monitor share ---------------------------------------- */

static struct kx_thread *victim; /* the main thread's */
static struct kx_shared *shared = (void *)KX_BOOT_BASE;
static volatile int stop;
static struct iovec lie_iov[8];
static struct msghdr lie_msg;
static union {
	char buf[128];
	struct cmsghdr align;
} lie_ctl;
static struct pollfd lie_poll[8];
static char lie_path[PATH_MAX + 16];
static uint64_t lie_struct[64];

static uint64_t any_value(void)
{
	static const uint64_t v[] = {
		0,           1,          ~0ull,   KX_LIBOS_BASE, KX_BOOT_BASE, KX_SYS_BASE,    KX_SPACE_SIZE,
		KX_USER_END, 1ull << 63, INT_MAX, 65536,         64,           0x7fffffffe000, 0xffff800000000000,
		KX_AREA_BASE
	};
	switch (below(4)) {
	case 0:
		return v[below(LEN(v))];
	case 1:
		return below(4096);
	case 2:
		return (uint64_t)good + below(2 * PAGE);
	}
	return rnd() >> below(64);
}

static void scribble(void *base, size_t len)
{
	size_t at = below(len / 8) * 8;
	*(volatile uint64_t *)((uint8_t *)base + at) = any_value();
}

static void lie_arg(void) { victim->call.arg[below(6)] = any_value(); }
static void lie_nr(void)
{
	static const unsigned nrs[] = { 0,   1,   2,   3,   4,   5,   7,   8,    12,   13,   14,   16,   19,  20,
					23,  32,  33,  44,  46,  47,  72,  79,   89,   96,   99,   202,  217, 228,
					230, 257, 262, 270, 271, 293, 302, 1024, 1025, 1027, 1029, 1055, 1056 };
	victim->call.nr = below(8) ? nrs[below(LEN(nrs))] : any_value();
	lie_arg();
}
static void lie_iovec(void)
{
	volatile struct iovec *v = &lie_iov[below(8)];
	v->iov_base = (void *)any_value();
	v->iov_len = below(2) ? below(300) : any_value();
	v->iov_base = good;
	v->iov_len = 16;
}
static void lie_message(void)
{
	scribble(&lie_msg, sizeof lie_msg);
	scribble(&lie_ctl, sizeof lie_ctl);
	lie_msg = (struct msghdr){ .msg_iov = lie_iov, .msg_iovlen = 4, .msg_control = &lie_ctl, .msg_controllen = 24 };
	lie_ctl.align = (struct cmsghdr){ .cmsg_len = CMSG_LEN(4), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
	*(volatile int *)CMSG_DATA(&lie_ctl.align) = 1;
	*(volatile int *)CMSG_DATA(&lie_ctl.align) = fd_limit + below(32);
}
static void lie_pollfd(void) { lie_poll[below(8)].fd = below(2) ? (int)(fd_limit + below(32)) : 1; }
static void lie_string(void)
{
	lie_path[below(sizeof lie_path)] = below(3) ? 'a' : '/';
	lie_path[below(40)] = below(2) ? 0 : 'p';
	memcpy(lie_path, below(2) ? "/proc/self/fd/0" : "/tmp/hostile/f", 15);
}
static void lie_structs(void) { scribble(lie_struct, sizeof lie_struct); }
static void lie_work(void) { *(volatile uint32_t *)&victim->work = (uint32_t)any_value(); }
static void lie_masks(void)
{
	*(volatile uint64_t *)&victim->sigmask = any_value();
	*(volatile uint64_t *)&victim->host_mask = any_value();
	*(volatile uint64_t *)&victim->saved_mask = any_value();
	*(volatile uint32_t *)&victim->has_saved_mask = below(2);
}
static void lie_signal(void)
{
	*(volatile uint32_t *)&victim->sig.forced = (uint32_t)any_value();
	scribble(&victim->sig, sizeof victim->sig);
	*(volatile uint32_t *)&victim->sig.signo = below(2) ? (uint32_t)below(70) : (uint32_t)any_value();
	*(volatile uint32_t *)&victim->work = KX_WORK_SIGNAL;
}
static void lie_actions(void) { scribble(shared->sigaction, sizeof shared->sigaction); }
static void lie_action_ptr(void) { *(volatile uint64_t *)&victim->actions = any_value(); }
static void lie_area(void) { scribble(victim, sizeof *victim); }
static void lie_area_pages(void) { scribble(victim, KX_AREA_SIZE); }
static void lie_area_any(void) { scribble((void *)KX_AREA_BASE, KX_AREA_SIZE * 4); }
static void lie_nr_sites(void)
{
	*(volatile uint64_t *)&shared->nr_sites = below(2) ? ~0ull >> below(40) : any_value();
}
static void lie_seq(void) { *(volatile uint64_t *)&shared->sites_seq = rnd() | 1; }
static void lie_sites(void)
{
	scribble((void *)KX_SITES_BASE, 4096);
	scribble((void *)KX_SITES_BASE, KX_SITES_MAX * sizeof(struct kx_site));
}
static void lie_shared(void) { scribble(shared, sizeof *shared); }
static void lie_shared_head(void) { scribble(shared, __builtin_offsetof(struct kx_shared, sigaction)); }
static void lie_batch(void)
{
	uint8_t *base = (uint8_t *)KX_BATCH_BASE, *ctx = base + KX_BATCH_CTX;
	scribble(base, sizeof(struct kx_batch));
	scribble(base + KX_BATCH_SOCKS, 64 * sizeof(struct kx_bsock));
	scribble(ctx + KX_BATCH_TX, 4096);
	if (below(8) == 0)
		scribble(ctx, sizeof(struct kx_bctx));
	if (below(4) == 0)
		((volatile struct kx_bctx *)ctx)->head += 32 * below(100);
}
static void lie_dgram(void)
{
	uint8_t *base = (uint8_t *)KX_DGRAM_BASE, *ctx = base + KX_DGRAM_CTX;
	scribble(base, sizeof(struct kx_dgram));
	scribble(base + KX_DGRAM_SOCK, KX_DGRAM_SOCKS * sizeof(struct kx_dsock));
	scribble(base + KX_DGRAM_BUF, 2048);
	scribble(base + KX_DGRAM_BUF + KX_DGRAM_PEERS, 1024);
	scribble(ctx + KX_DGRAM_TX, 4096);
	if (below(8) == 0)
		scribble(ctx, sizeof(struct kx_dctx));
	if (below(4) == 0)
		((volatile struct kx_dctx *)ctx)->head += 32 * below(100);
}
static void lie_vfork(void)
{
	*(volatile uint32_t *)&victim->vfork = below(2);
	*(volatile uint32_t *)&victim->pid = (uint32_t)any_value();
	*(volatile uint32_t *)&victim->tid = (uint32_t)any_value();
	*(volatile uint32_t *)&victim->index = (uint32_t)any_value();
}
static void lie_tid_ptr(void)
{
	*(volatile uint64_t *)&victim->clear_tid = any_value();
	*(volatile uint64_t *)&victim->altstack_sp = any_value();
	*(volatile uint64_t *)&victim->altstack_size = any_value();
	*(volatile uint32_t *)&victim->altstack_flags = (uint32_t)any_value();
}

static int lie_pipe[2] = { -1, -1 };
static char pipe_data[100 << 8];
/* Made with the first lie, so that the family's memory for pipes is there. */
static void lie_pipe_open(void)
{
	if (lie_pipe[0] < 0 && pipe2(lie_pipe, O_NONBLOCK))
		abort();
}
static void lie_pipes(void)
{
	lie_pipe_open();
	scribble((void *)KX_PIPE_BASE, 4096);
}
static void lie_pipe_cursors(void)
{
	lie_pipe_open();
	struct kx_pipe *o = &((struct kx_pipes *)KX_PIPE_BASE)->obj[below(3)];
	*(volatile uint64_t *)&o->head = any_value();
	*(volatile uint64_t *)&o->tail = any_value();
	*(volatile uint32_t *)&o->sleepers = (uint32_t)below(2);
	*(volatile uint64_t *)&o->wlock = below(4) ? 0 : any_value();
	if (below(8) == 0)
		*(volatile uint64_t *)&o->state = any_value();
}
static void lie_pipe_table(void)
{
	lie_pipe_open();
	scribble((void *)KX_PIPE_TABLE, 4096);
}

static int lie_sem = -1, lie_queue = -1, lie_mq = -1;
static struct {
	long type;
	char text[64];
} lie_text = { 1, "" };
/* So busy that the family's memory is used. */
static void ipc_turn(void)
{
	struct sembuf op = { 0, below(2) ? 1 : -1, IPC_NOWAIT };
	semop(lie_sem, &op, 1);
	msgsnd(lie_queue, &lie_text, below(64), IPC_NOWAIT);
	msgrcv(lie_queue, &lie_text, 64, 0, IPC_NOWAIT | MSG_NOERROR);
	lie_text.type = 1 + (long)below(3);
	mq_send(lie_mq, lie_text.text, below(64), (unsigned)below(3));
	mq_receive(lie_mq, lie_text.text, 64, NULL);
	if (below(8) == 0)
		semtimedop(lie_sem, &(struct sembuf){ 0, -1, 0 }, 1, &(struct timespec){ 0, 1000000 });
}
static void ipc_open(void)
{
	if (lie_queue >= 0)
		return;
	struct mq_attr a = { .mq_maxmsg = 4, .mq_msgsize = 64 };
	lie_sem = semget(IPC_PRIVATE, 4, 0600);
	lie_mq = mq_open("/kx-hostile", O_RDWR | O_CREAT | O_NONBLOCK, 0600, &a);
	mq_unlink("/kx-hostile");
	int q = msgget(IPC_PRIVATE, 0600);
	if (lie_sem < 0 || q < 0 || lie_mq < 0)
		abort();
	lie_queue = q;
	for (int i = 0; i < 30; i++)
		ipc_turn();
}
static void lie_ipc(void)
{
	ipc_open();
	struct kx_ipc *ipc = (struct kx_ipc *)KX_IPC_BASE;
	if (((volatile struct kx_ipc_table *)KX_IPC_TABLE)->on) {
		scribble(below(2) ? &ipc->sem[kx_ipc_slot(lie_sem)] : &ipc->msg[kx_ipc_slot(lie_queue)], 200);
		scribble(&ipc->word[kx_ipc_slot(lie_sem)], 64);
		scribble(&ipc->mq[below(KX_IPC_OBJECTS)], 200);
		scribble((void *)KX_IPC_TABLE, sizeof(struct kx_ipc_table));
		((volatile struct kx_ipc_table *)KX_IPC_TABLE)->on = 1;
	}
}
/* Who sleeps, for what, and what it was given. */
static void lie_ipc_places(void)
{
	ipc_open();
	struct kx_ipc *ipc = (struct kx_ipc *)KX_IPC_BASE;
	if (!((volatile struct kx_ipc_table *)KX_IPC_TABLE)->on)
		return;
	unsigned n = below(4) ? kx_ipc_slot(lie_queue) : KX_IPC_OBJECTS + below(KX_IPC_OBJECTS);
	struct kx_ipc_sleeper *s = &ipc->sleeper[n][below(4)];
	scribble(s, sizeof *s);
	if (below(2)) {
		s->tid = (uint32_t)getpid();
		s->id = below(2) ? lie_sem : lie_queue;
		s->flags = (uint32_t)below(256);
		s->type = (int64_t)below(4) - 2;
	}
	*(volatile uint64_t *)&ipc->sem[kx_ipc_slot(lie_sem)].tickets = any_value();
	*(volatile uint32_t *)&ipc->msg[kx_ipc_slot(lie_queue)].asleep = (uint32_t)any_value();
}
static void lie_ipc_ring(void)
{
	ipc_open();
	struct kx_ipc *ipc = (struct kx_ipc *)KX_IPC_BASE;
	if (!((volatile struct kx_ipc_table *)KX_IPC_TABLE)->on)
		return;
	unsigned place = below(2) ? kx_ipc_slot(lie_queue) : KX_IPC_OBJECTS + (unsigned)below(KX_IPC_OBJECTS);
	struct kx_ipc_obj *o = (struct kx_ipc_obj *)ipc->msg + place;
	volatile struct kx_ipc_msg *m = (void *)(ipc->ring[place] + below(64) * 16);
	m->size = below(4) ? (uint32_t)below(200) : (uint32_t)any_value();
	m->state = (uint32_t)below(5) | (below(2) ? (uint32_t)below(20) << 8 : 0);
	if (below(4) == 0)
		*(volatile uint64_t *)&o->head = below(2) ? o->tail + below(70000) : any_value();
	if (below(8) == 0)
		*(volatile uint64_t *)&o->lock = any_value();
	if (below(8) == 0)
		*(volatile uint64_t *)&o->state = (o->state & ~15ull) | below(6);
}
static void ipc_activity(int n)
{
	struct msqid_ds ds;
	for (int i = 0; i < 10; i++)
		ipc_turn();
	if (n % 5 == 0)
		semctl(lie_sem, 0, GETVAL);
	if (n % 7 == 0)
		msgctl(lie_queue, IPC_STAT, &ds);
	if (n % 11 == 0)
		close(dup(lie_mq));
	if (n % 50 == 0) {
		semctl(lie_sem, 0, IPC_RMID);
		lie_sem = semget(IPC_PRIVATE, 4, 0600);
	}
}

static void *liar(void *fn)
{
	while (!stop)
		((void (*)(void))fn)();
	return NULL;
}

static void *short_thread(void *arg)
{
	syscall(SYS_getppid);
	return arg;
}

static void lie_batch_ring(void)
{
	volatile struct kx_brec *r = (void *)(KX_BATCH_BASE + KX_BATCH_CTX + KX_BATCH_TX + below(64) * 32);
	r->len = below(2) ? (uint32_t)any_value() : (uint32_t)below(200);
	r->fd = (int32_t)below(40) - 1;
	r->gen = (uint32_t)below(3);
	if (below(2))
		return;
	if (below(4) == 0) {
		volatile struct kx_bopt *opt = (void *)(r + 1);
		*opt = (struct kx_bopt){ (int32_t)below(8), (int32_t)below(12), (int32_t)any_value(), 0 };
		r->len = sizeof *opt;
		r->flags = KX_BREC_OPT;
		return;
	}
	if (below(3) == 0) {
		r->len = below(2) ? 0 : sizeof(struct kx_badd);
		r->flags = (const uint32_t[]){ KX_BREC_CLOSE, KX_BREC_ADD, KX_BREC_MOD }[below(3)];
		volatile struct kx_badd *add = (void *)(r + 1);
		*add = (struct kx_badd){ any_value(), (uint32_t)any_value(), (int32_t)below(40) - 1 };
		return;
	}
	if (below(4) == 0) {
		r->flags = KX_BREC_WRITE;
		return;
	}
	volatile struct kx_bfrom *from = (void *)(r + 1);
	*from = (struct kx_bfrom){ below(2) ? any_value() : below(200), (int32_t)below(50) - 11, (uint32_t)below(200) };
	if (below(8) == 0)
		from->len = (uint32_t)any_value();
	r->len = sizeof *from;
	r->flags = KX_BREC_FILE;
}

/* Records that are nearly good, behind each other. */
static void lie_dgram_ring(void)
{
	volatile struct kx_dctx *x = (void *)(KX_DGRAM_BASE + KX_DGRAM_CTX);
	uint8_t *at = (uint8_t *)(KX_DGRAM_BASE + KX_DGRAM_CTX + KX_DGRAM_TX) + x->head % KX_DGRAM_TX_SIZE;
	volatile struct kx_dsend *r = (void *)((uintptr_t)at & ~31ul);
	uint64_t size = 32 * (3 + below(4));
	if ((x->head % KX_DGRAM_TX_SIZE) + size + 256 > KX_DGRAM_TX_SIZE)
		return;
	scribble((void *)(r + 1), size - 32);
	*r = (struct kx_dsend){ .fd = (int32_t)below(40) - 1,
				.gen = (uint32_t)below(3),
				.len = (uint32_t)below(40),
				.flags = (uint32_t)any_value(),
				.namelen = (uint16_t)(below(2) ? 16 : below(40)),
				.ctllen = (uint16_t)(below(2) ? 0 : below(70)),
				.size = (uint32_t)size };
	if (below(16) == 0)
		r->len = (uint32_t)any_value();
	x->head += size;
}

/* What lies in the first socket's buffer, and how far it has been read. */
static void lie_dgram_records(void)
{
	volatile struct kx_dsock *s = (void *)(KX_DGRAM_BASE + KX_DGRAM_SOCK);
	volatile struct kx_dgrec *r = (void *)(KX_DGRAM_BASE + KX_DGRAM_BUF + 8 * below(40));
	r->len = below(4) ? (uint32_t)below(200) : (uint32_t)any_value();
	r->size = 48 + 8 * (uint32_t)below(40);
	r->ctllen = (uint16_t)(below(2) ? 0 : any_value());
	r->namelen = (uint16_t)(below(2) ? 16 : any_value());
	uint64_t end = below(4) ? 8 * below(100) : any_value() & 0xfffff, pos = below(4) ? 8 * below(20) : below(1000);
	s->rx = (s->rx & ~0xffffffffffull) | end << 20 | pos;
	s->window = (uint32_t)any_value();
	s->attempts = (uint32_t)any_value();
	s->credit = (uint32_t)any_value();
}

/* A turn of a server whose datagrams are received ahead. */
static void dgram_turn(void)
{
	static int c = -1, s, ep;
	static struct sockaddr_in a = { .sin_family = AF_INET };
	socklen_t len = sizeof a;
	struct epoll_event ev = { .events = EPOLLIN };
	char buf[64] = "request", ctl[64];
	struct iovec v = { buf, sizeof buf };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = ctl, .msg_controllen = sizeof ctl };
	struct pollfd p;
	if (c < 0) {
		a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		c = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
		s = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
		ep = epoll_create1(0);
		if (bind(s, (void *)&a, len) || getsockname(s, (void *)&a, &len) ||
		    epoll_ctl(ep, EPOLL_CTL_ADD, s, &ev))
			return;
	}
	ssize_t r = 0;
	for (int i = 0; i < 4; i++)
		r += sendto(c, buf, 20, MSG_DONTWAIT, (void *)&a, sizeof a);
	p = (struct pollfd){ s, POLLIN, 0 };
	r += poll(&p, 1, 0) + epoll_wait(ep, &ev, 1, 0) + recv(s, buf, 20, MSG_DONTWAIT);
	r += HC(SYS_recvfrom, s, (uint64_t)buf, 20, MSG_DONTWAIT) + recvmsg(s, &m, MSG_DONTWAIT);
	r += send(s, buf, 20, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (r < 1000000 && recv(s, buf, 20, MSG_DONTWAIT) > 0)
		r += 10000;
	*(volatile ssize_t *)lie_struct = r;
}

/* Sizes and numbers of the files that a thread sends from. */
static void lie_batch_files(void)
{
	volatile struct kx_bctx *x = (void *)(KX_BATCH_BASE + KX_BATCH_CTX);
	volatile struct kx_bfile *f = &x->file[below(KX_BATCH_FILES)];
	f->size = any_value();
	f->calls = ((volatile struct kx_batch *)KX_BATCH_BASE)->calls;
	f->uses = (uint32_t)any_value();
	if (below(16) == 0)
		f->fd = (int32_t)below(40) - 1;
}

/* Files opened ahead, and those that are written to by records. */
static void lie_batch_opened(void)
{
	volatile struct kx_openahead *a = (void *)KX_OPENAHEAD_BASE;
	volatile struct kx_bwrite *w = (void *)(KX_BATCH_BASE + KX_BATCH_CTX + KX_BATCH_WRITES_AT);
	uint64_t what = below(10);
	if (what == 0)
		a->on = 1;
	else if (what == 1)
		a->lowest = (int32_t)below(40) - 1;
	else if (what == 2)
		a->pos = any_value();
	else if (what < 5)
		scribble((void *)&a->file[below(KX_OPENAHEAD_FILES)], sizeof a->file[0]);
	else if (what < 8)
		w[below(KX_BATCH_WRITES)] = (struct kx_bwrite){ (int32_t)below(40) - 1, (uint32_t)any_value(),
								((volatile struct kx_batch *)KX_BATCH_BASE)->calls };
	else if (below(8) == 0)
		a->open = (uint32_t)below(KX_OPENAHEAD_FILES + 3);
	else
		a->fd = (int32_t)(below(2) ? below(40) - 1 : any_value());
}

/* A turn of an event loop, with a socket whose reads and writes are batched. */
static void batch_turn(void)
{
	static int l = -1, ep, c, s, file, log;
	off_t off = 0;
	char buf[64] = "request";
	struct epoll_event ev = { .events = EPOLLIN };
	if (l < 0) {
		struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
		socklen_t len = sizeof a;
		l = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		c = socket(AF_INET, SOCK_STREAM, 0);
		ep = epoll_create1(0);
		if (bind(l, (void *)&a, len) || listen(l, 1) || getsockname(l, (void *)&a, &len) ||
		    connect(c, (void *)&a, len))
			return;
		s = accept4(l, NULL, NULL, SOCK_NONBLOCK);
		file = open("/proc/self/exe", O_RDONLY);
		log = open("/tmp/log", O_WRONLY | O_CREAT | O_APPEND, 0600);
		epoll_ctl(ep, EPOLL_CTL_ADD, s, &ev);
	}
	ssize_t r = send(c, buf, sizeof buf, MSG_DONTWAIT | MSG_NOSIGNAL);
	r += epoll_wait(ep, &ev, 1, 0);
	for (int i = 0; i < 3; i++) {
		r += recv(s, buf, 20, MSG_DONTWAIT);
		r += send(s, buf, 20, MSG_DONTWAIT | MSG_NOSIGNAL);
		r += sendfile(s, file, &off, 20);
		r += write(log, buf, 20);
		int f = open("/etc/passwd", O_RDONLY);
		r += read(f, buf, 20) + close(f);
	}
	r += recv(c, buf, sizeof buf, MSG_DONTWAIT);
	*(volatile ssize_t *)lie_struct = r;
}

/* What a program does, so that every path meets the lies. Nothing that it gets back is believed. */
/* By the LibOS and past it. */
static void pipe_activity(int n)
{
	char small[64] = { 0 };
	int more[2] = { -1, -1 };
	struct pollfd pf = { lie_pipe[0], POLLIN, 0 };
	for (unsigned i = 0; i < 3; i++) {
		HC(SYS_write, lie_pipe[1], (uint64_t)pipe_data, 100ull << 4 * i);
		HC(SYS_read, lie_pipe[0], (uint64_t)pipe_data, 100ull << 4 * i);
		if (write(lie_pipe[1], small, sizeof small) < 0 || read(lie_pipe[0], small, sizeof small) < 0)
			errno = 0;
	}
	poll(&pf, 1, 1);
	if (pipe2(more, O_NONBLOCK))
		return;
	int d = dup(more[1]);
	if (n % 3 == 0)
		HC(SYS_tee, more[0], lie_pipe[1], 10, SPLICE_F_NONBLOCK);
	close(more[0]);
	close(more[1]);
	close(d);
}

static void activity(int n)
{
	char buf[64];
	struct timespec ts = { 0, 1000 };
	int fd, status;
	pthread_t th;
	if (lie_pipe[0] >= 0)
		pipe_activity(n);
	if (lie_queue >= 0)
		ipc_activity(n);
	switch (n % 17) {
	case 0:
		HC(SYS_writev, fd_good[G_FILE], (uint64_t)lie_iov, 8);
		HC(SYS_readv, fd_good[G_FILE], (uint64_t)lie_iov, 8);
		break;
	case 1:
		HC(SYS_sendmsg, fd_good[G_SOCK], (uint64_t)&lie_msg, MSG_DONTWAIT);
		break;
	case 2:
		HC(SYS_recvmsg, fd_good[G_SOCK] + 1, (uint64_t)&lie_msg, MSG_DONTWAIT);
		break;
	case 3:
		HC(SYS_poll, (uint64_t)lie_poll, 8, 0);
		break;
	case 4:
		HC(SYS_open, (uint64_t)lie_path, O_RDONLY, 0);
		HC(SYS_stat, (uint64_t)lie_path, (uint64_t)good);
		break;
	case 5:
		raise(SIGUSR1);
		kill(getpid(), SIGRTMIN + 1);
		break;
	case 6:
		HC(SYS_clock_nanosleep, 1, 0, (uint64_t)&ts, 0);
		break;
	case 7:
		fd = open("/dev/zero", O_RDONLY);
		if (fd >= 0 && read(fd, buf, sizeof buf) < 0)
			errno = 0;
		close(fd);
		break;
	case 8: {
		void *p = mmap(NULL, 8 * PAGE, RW, ANON, -1, 0);
		if (p != MAP_FAILED) {
			*(volatile char *)p = 1;
			munmap(p, 8 * PAGE);
		}
		break;
	}
	case 9: {
		/* text comes and goes: sites are found and forgotten */
		fd = open("/proc/self/exe", O_RDONLY);
		void *p = mmap(NULL, 16 * PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
		if (p != MAP_FAILED)
			munmap(p, 16 * PAGE);
		close(fd);
		break;
	}
	case 10:
		if (n % 5 == 0 && pthread_create(&th, NULL, short_thread, NULL) == 0)
			pthread_join(th, NULL);
		break;
	case 11: {
		if (n % 7)
			break;
		pid_t pid = fork();
		if (pid == 0) {
			syscall(SYS_getppid);
			_exit(0);
		}
		for (int i = 0; i < 200 && pid > 0 && waitpid(pid, &status, WNOHANG) == 0; i++)
			usleep(1000);
		if (pid > 0) {
			kill(pid, SIGKILL);
			waitpid(pid, &status, WNOHANG);
		}
		break;
	}
	case 12:
		HC(SYS_fcntl, fd_good[G_FILE], F_GETLK, (uint64_t)lie_struct);
		HC(SYS_ioctl, 1, 0x5413, (uint64_t)lie_struct);
		break;
	case 13:
		HC(SYS_ppoll, 0, 0, (uint64_t)&ts, (uint64_t)lie_struct, 8);
		break;
	case 14:
		HC(SYS_timer_create, 0, (uint64_t)lie_struct, (uint64_t)good);
		HC(SYS_openat2, -100ull, (uint64_t)lie_path, (uint64_t)lie_struct, 24);
		break;
	case 15:
		*(volatile int *)(uintptr_t)(n % 64 ? (uintptr_t)good : 8) = 1;
		break; /* a fault at times */
	case 16:
		for (int i = 0; i < 20; i++) {
			batch_turn();
			dgram_turn();
		}
		break;
	}
}

static void on_segv(int s, siginfo_t *si, void *uc)
{
	(void)s;
	(void)si;
	((ucontext_t *)uc)->uc_mcontext.gregs[REG_RIP] += 6; /* over the store above, or to wherever */
}

static void handlers_init(void)
{
	struct sigaction sa = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO };
	signal(SIGUSR1, on_usr1);
	signal(SIGRTMIN + 1, on_usr1);
	sigaction(SIGSEGV, &sa, NULL);
}

static int lie_for(void (*fn)(void), unsigned ms)
{
	pthread_t th;
	victim = area();
	lie_message();
	handlers_init();
	batch_turn();
	for (int i = 0; i < 10; i++)
		dgram_turn();
	uint64_t end = now_ms() + ms;
	if (pthread_create(&th, NULL, liar, (void *)fn))
		return 2;
	for (int n = 0; now_ms() < end && n < 100000; n++)
		activity(n);
	stop = 1;
	pthread_join(th, NULL);
	return 0;
}

/* A lie at rest: told once, then the program goes on. */
static int lie_still(void (*fn)(void))
{
	victim = area();
	lie_message();
	handlers_init();
	batch_turn();
	for (int i = 0; i < 10; i++)
		dgram_turn();
	for (int n = 0; n < 400; n++) {
		fn();
		activity(n);
	}
	return 0;
}

/* A queue of sends that is filled again with one store, as fast as it is sent: no call may wait for its end. */
static void *refiller(void *arg)
{
	uint8_t *ctx = (uint8_t *)KX_BATCH_BASE + KX_BATCH_CTX;
	volatile struct kx_bctx *x = (void *)ctx;
	volatile struct kx_brec *r = (void *)(ctx + KX_BATCH_TX);
	for (unsigned i = 0; i < KX_BATCH_TX_SIZE / sizeof *r; i++)
		r[i] = (struct kx_brec){ .fd = KX_BATCH_FDS - 1, .ticket = (uint64_t)-1 << 62 };
	while (!stop)
		x->head = x->tail + KX_BATCH_TX_SIZE;
	x->head = x->tail;
	return arg;
}

static int refill(void)
{
	pthread_t th;
	batch_turn();
	batch_turn();
	if (((struct kx_batch *)KX_BATCH_BASE)->ctx_of[area()->index] != 1)
		return 3;
	if (pthread_create(&th, NULL, refiller, NULL))
		return 2;
	volatile struct kx_bctx *x = (void *)(KX_BATCH_BASE + KX_BATCH_CTX);
	unsigned met = 0, long_ones = 0;
	for (uint64_t end = now_ms() + 1000; met < 200 && now_ms() < end;) {
		uint64_t from = x->tail;
		if (syscall(SYS_getpgid, 0) < 0)
			return 4;
		uint64_t sent = x->tail - from;
		met += sent > KX_BATCH_TX_SIZE / 2;
		long_ones += sent > 3 * KX_BATCH_TX_SIZE; /* the flusher may have had a turn or two */
	}
	stop = 1;
	pthread_join(th, NULL);
	printf("# %u calls met a full queue, %u sent it again and again\n", met, long_ones);
	return long_ones > 2 + met / 4 ? 5 : 0;
}

/* Lists of robust futexes that lead into the LibOS, into nothing, or round in circles; a TID address likewise. */
static int robust(void)
{
	struct {
		uint64_t next, offset, pending;
	} *h = (void *)good;
	for (int i = 0; i < 60; i++) {
		pid_t pid = fork();
		if (pid == 0) {
			h->next = below(3) ? any_value() : (uint64_t)&h->next;
			h->offset = any_value();
			h->pending = any_value();
			((uint64_t *)good)[8] = (uint64_t)good + 128;
			((uint64_t *)good)[16] = (uint64_t)good + 64;
			if (below(2))
				h->next = (uint64_t)good + 64;
			HC(SYS_set_robust_list, below(4) ? (uint64_t)h : any_value(), 24);
			HC(SYS_set_tid_address, any_value());
			SYS6(below(2) ? SYS_exit : SYS_exit_group, 0);
		}
		int status;
		*progress = i;
		if (pid > 0 && !child_wait(pid, 3000, &status))
			fail("robust list %d: stuck", i);
	}
	return failures != 0;
}

/* ---- ports ---------------------------------------- */

static int in_children(int count, unsigned ms, void (*fn)(int))
{
	int status, stuck = 0;
	for (int i = 0; i < count; i++) {
		*progress = i;
		pid_t pid = fork();
		if (pid == 0) {
			struct itimerval it = { { 0, 0 }, { 0, 300000 } };
			signal(SIGALRM, SIG_DFL);
			setitimer(ITIMER_REAL, &it, NULL);
			fn(i);
			SYS6(SYS_exit_group, 0);
		}
		if (pid < 0) {
			fail("fork: %s", strerror(errno));
			return 1;
		}
		stuck += !child_wait(pid, ms, &status);
		reap_all();
	}
	if (stuck)
		printf("# %d of %d had to be killed\n", stuck, count);
	return failures != 0;
}

static void port_try(int i)
{
	static const unsigned ports[] = { 0,     0x20,  0x60,  0x64,  0x70,  0x80,  0xcf8, 0x3f8,  0x50c, 0x50f,
					  0x510, 0x511, 0x512, 0x518, 0x51f, 0x520, 0x521, 0xffff, 0x92,  0xb2 };
	unsigned p = ports[i % LEN(ports)], v = (unsigned)any_value();
	void *at = below(2) ? (void *)good : (void *)any_value();
	uint64_t n = below(2) ? below(5000) : any_value();
	victim = area();
	victim->call.nr = any_value();
	victim->panic_msg = any_value();
	switch (i / LEN(ports)) {
	case 0:
		__asm__ volatile("out %%eax, %%dx" : : "a"(v), "d"(p));
		break;
	case 1:
		__asm__ volatile("out %%ax, %%dx" : : "a"(v), "d"(p));
		break;
	case 2:
		__asm__ volatile("out %%al, %%dx" : : "a"(v), "d"(p));
		break;
	case 3:
		__asm__ volatile("in %%dx, %%eax" : "=a"(v) : "d"(p));
		break;
	case 4:
		__asm__ volatile("in %%dx, %%al" : "=a"(v) : "d"(p));
		break;
	case 5:
		__asm__ volatile("rep outsl" : "+S"(at), "+c"(n) : "d"(p) : "memory");
		break;
	case 6:
		__asm__ volatile("rep outsb" : "+S"(at), "+c"(n) : "d"(p) : "memory");
		break;
	case 7:
		__asm__ volatile("rep insl" : "+D"(at), "+c"(n) : "d"(p) : "memory");
		break;
	case 8:
		__asm__ volatile("std; rep insb; cld" : "+D"(at), "+c"(n) : "d"(p) : "memory");
		break;
	}
}

static void panic_try(int i)
{
	static const uint64_t at[] = { 0,
				       KX_LIBOS_BASE,
				       KX_LIBOS_BASE + 0x1000,
				       KX_VDSO_BASE - 1,
				       KX_VDSO_BASE - 128,
				       KX_VDSO_BASE - 127,
				       KX_VVAR_BASE,
				       KX_SYS_BASE,
				       KX_SPACE_SIZE,
				       ~0ull,
				       1ull << 63,
				       0xffff800000000000 };
	area()->panic_msg = i < (int)LEN(at) ? at[i] : any_value();
	__asm__ volatile("out %%eax, %%dx" : : "a"(0), "d"(KX_PORT_PANIC));
}

/* ---- jumps and bytes ---------------------------------------- */

/* Instructions that leave a nested hypervisor for the one below it, and their kin: none of ours runs them. */
static bool forbidden(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i + 2 < n; i++) {
		if (p[i] != 0x0f)
			continue;
		uint8_t a = p[i + 1], m = p[i + 2];
		if (a == 0x01 && ((m >= 0xc0 && m <= 0xc4) || m == 0xd4 || (m >= 0xd8 && m <= 0xdf)))
			return true;
		if (a == 0x78 || a == 0x79 || a == 0x37)
			return true;
		if (a == 0xc7 && m < 0xc0 && (m >> 3 & 7) >= 6)
			return true;
		if (a == 0x38 && m >= 0x80 && m <= 0x82)
			return true;
	}
	return false;
}

static bool has_vmcall(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i + 2 < n; i++)
		if (p[i] == 0x0f && p[i + 1] == 0x01 && (p[i + 2] == 0xc1 || p[i + 2] == 0xd9))
			return true;
	return false;
}

static uint64_t regs[17]; /* rax rbx rcx rdx rsi rdi rbp r8..r15 rsp target */

static _Noreturn void go(void)
{
	__asm__ volatile(
		"lea regs(%%rip), %%rax\n\t"
		"mov 8(%%rax), %%rbx\n\tmov 16(%%rax), %%rcx\n\tmov 24(%%rax), %%rdx\n\tmov 32(%%rax), %%rsi\n\t"
		"mov 40(%%rax), %%rdi\n\tmov 48(%%rax), %%rbp\n\tmov 56(%%rax), %%r8\n\tmov 64(%%rax), %%r9\n\t"
		"mov 72(%%rax), %%r10\n\tmov 80(%%rax), %%r11\n\tmov 88(%%rax), %%r12\n\tmov 96(%%rax), %%r13\n\t"
		"mov 104(%%rax), %%r14\n\tmov 112(%%rax), %%r15\n\tmov 120(%%rax), %%rsp\n\t"
		"mov (%%rax), %%rax\n\tjmp *regs+128(%%rip)"
		:
		: "m"(regs)
		: "memory");
	__builtin_unreachable();
}

static uint64_t try_seed;

static void regs_random(void)
{
	uint8_t here;
	for (int i = 0; i < 16; i++)
		regs[i] = below(3) == 0 ? (uint64_t)area() + below(KX_AREA_SIZE) : any_value();
	if (below(2))
		regs[15] = (uint64_t)&here & ~15ull;
	else if (below(2))
		regs[15] = (uint64_t)area() + below(KX_AREA_SIZE);
	regs[3] = below(2) ? KX_PORT_HCALL + below(3) : regs[3];
	regs[0] = below(2) ? below(450) : regs[0];
}

/* Calls that would only make the machine busy are not what a random number should make. */
static void calm(void)
{
	static const unsigned not [] = { SYS_sync, SYS_fallocate, SYS_mlockall, SYS_sched_setscheduler,
					 SYS_sched_setattr };
	for (unsigned i = 0; i < LEN(not ); i++)
		if (regs[0] == not [i])
			regs[0] = SYS_getpid;
}

static void jump_try(int i)
{
	const uint64_t *header = (void *)KX_LIBOS_BASE;
	uint64_t size = header[11] - KX_LIBOS_BASE; /* image_end */
	rng_seed(try_seed, i);
	regs_random();
	calm();
	if (size > KX_LIBOS_SIZE)
		size = KX_LIBOS_SIZE;
	regs[16] = below(8) ? KX_LIBOS_BASE + below(size) : KX_VDSO_BASE + below(0x2000);
	if (below(8) == 0) {
		static const uint64_t at[] = { KX_VVAR_BASE,
					       KX_BOOT_BASE,
					       KX_SITES_BASE,
					       KX_AREA_BASE,
					       KX_SYS_BASE,
					       KX_SPACE_SIZE,
					       0,
					       0x800000000000,
					       0xffffffff80000000,
					       0xffff800000000000 };
		regs[16] = at[below(LEN(at))] + below(0x3000);
	}
	go();
}

static void code_try(int i)
{
	/* Leads that get somewhere: system calls, ports, faults, prefixes, segment and state instructions. */
	static const uint8_t lead[][4] = { { 2, 0x0f, 0x05 }, { 2, 0x0f, 0x34 }, { 1, 0xee },       { 1, 0xef },
					   { 1, 0xed },       { 1, 0x6f },       { 1, 0xcd },       { 1, 0xcc },
					   { 1, 0xf4 },       { 1, 0xcf },       { 1, 0xcb },       { 2, 0x0f, 0xae },
					   { 2, 0x0f, 0xc7 }, { 2, 0x0f, 0x01 }, { 2, 0x0f, 0x00 }, { 2, 0x0f, 0xa2 },
					   { 1, 0x9d },       { 1, 0x8e },       { 2, 0x0f, 0x22 }, { 2, 0x0f, 0x30 },
					   { 1, 0xf0 },       { 1, 0xf3 },       { 1, 0x65 },       { 1, 0xc4 },
					   { 1, 0x62 },       { 2, 0x48, 0xcf }, { 2, 0xff, 0x2c }, { 1, 0xf1 } };
	uint8_t *page = (uint8_t *)(((uint64_t)pages(4) + PAGE) & ~(PAGE - 1)), *p = page;
	rng_seed(try_seed, i + 1000);
	mprotect(page + PAGE, PAGE, PROT_NONE);
	do {
		p = page;
		while (p < page + PAGE - 8) {
			if (below(3) == 0) {
				const uint8_t *l = lead[below(LEN(lead))];
				memcpy(p, l + 1, l[0]);
				p += l[0];
			}
			*p++ = (uint8_t)rnd();
		}
		memset(p, 0xcc, page + PAGE - p);
		for (unsigned k = 0; k + 2 < PAGE; k++)
			if (forbidden(page + k, 3))
				page[k] = 0x90;
	} while (forbidden(page, PAGE));
	/* Not writable while it runs: what it stores cannot become such an instruction either. */
	mprotect(page, PAGE, PROT_READ | PROT_EXEC);
	regs_random();
	calm();
	regs[16] = (uint64_t)page + (below(2) ? 0 : below(PAGE));
	go();
}

static int tries(void (*fn)(int), uint64_t seed, int count)
{
	try_seed = seed;
	if (has_vmcall((void *)KX_LIBOS_BASE, KX_VVAR_BASE - KX_LIBOS_BASE)) {
		printf("skipped: the LibOS or the vDSO contains the bytes of vmcall\n");
		return 0;
	}
	return in_children(count, 1500, fn);
}

/* ---- modes ---------------------------------------- */

static const struct {
	const char *name;
	void (*fn)(void);
} lies[] = {
	{ "arg", lie_arg },
	{ "nr", lie_nr },
	{ "iovec", lie_iovec },
	{ "message", lie_message },
	{ "pollfd", lie_pollfd },
	{ "string", lie_string },
	{ "structs", lie_structs },
	{ "work", lie_work },
	{ "masks", lie_masks },
	{ "signal", lie_signal },
	{ "actions", lie_actions },
	{ "action-ptr", lie_action_ptr },
	{ "area", lie_area },
	{ "area-pages", lie_area_pages },
	{ "area-any", lie_area_any },
	{ "nr-sites", lie_nr_sites },
	{ "sites-seq", lie_seq },
	{ "sites", lie_sites },
	{ "shared", lie_shared },
	{ "shared-head", lie_shared_head },
	{ "vfork", lie_vfork },
	{ "tid-ptr", lie_tid_ptr },
	{ "pipes", lie_pipes },
	{ "pipe-cursors", lie_pipe_cursors },
	{ "pipe-table", lie_pipe_table },
	{ "ipc", lie_ipc },
	{ "ipc-ring", lie_ipc_ring },
	{ "ipc-places", lie_ipc_places },
	{ "batch", lie_batch },
	{ "batch-ring", lie_batch_ring },
	{ "batch-files", lie_batch_files },
	{ "batch-opened", lie_batch_opened },
	{ "dgram", lie_dgram },
	{ "dgram-ring", lie_dgram_ring },
	{ "dgram-records", lie_dgram_records },
};

static void mode_init(uint64_t seed)
{
	struct rlimit rl;
	getrlimit(RLIMIT_NOFILE, &rl);
	fd_limit = rl.rlim_max;
	memory_init();
	files_reset();
	fds_init();
	bad_fill();
	rng_seed(seed, 77);
	progress = mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < 8; i++)
		lie_iov[i] = (struct iovec){ good, 16 };
}

int main(int argc, char **argv)
{
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	const char *mode = argc > 1 ? argv[1] : "";
	if (!strcmp(mode, "modes")) {
		for (unsigned i = 0; i < LEN(lies); i++)
			printf("lie-%s\nstill-%s\n", lies[i].name, lies[i].name);
		printf("robust\nrefill\nports\npanic\n");
		return 0;
	}
	if (!*mode) {
		printf("skipped natively\n");
		return 0;
	}
	if (!strcmp(mode, "pvm"))
		return sweep(argc > 2 ? atoi(argv[2]) : 60);
	mode_init(seed);
	for (unsigned i = 0; i < LEN(lies); i++) {
		if (!strncmp(mode, "lie-", 4) && !strcmp(mode + 4, lies[i].name))
			return lie_for(lies[i].fn, 400);
		if (!strncmp(mode, "still-", 6) && !strcmp(mode + 6, lies[i].name))
			return lie_still(lies[i].fn);
	}
	if (!strcmp(mode, "robust"))
		return robust();
	if (!strcmp(mode, "refill"))
		return refill();
	if (!strcmp(mode, "ports"))
		return in_children(20 * 9, 3000, port_try);
	if (!strcmp(mode, "panic"))
		return in_children(24, 3000, panic_try);
	if (!strcmp(mode, "jump"))
		return tries(jump_try, seed, 10);
	if (!strcmp(mode, "code"))
		return tries(code_try, seed, 10);
	fprintf(stderr, "hostile: unknown mode %s\n", mode);
	return 2;
}
