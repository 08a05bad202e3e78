/* SPDX-License-Identifier: Apache-2.0 */
/* The memory and the values that calls get. Part of hostile.c. */
#ifndef KX_GUEST_HOSTILE_VALUES_H
#define KX_GUEST_HOSTILE_VALUES_H
#include "hostile.h"

/* ---- calls ---------------------------------------- */

static inline struct kx_thread *area(void)
{
	struct kx_thread *t;
	__asm__ volatile("mov %%gs:0, %0" : "=r"(t));
	return t;
}

/* A hypercall by the program itself. A handler that runs just before the `out` overwrites the call: then again. */
static inline int64_t hcall(uint64_t nr, const uint64_t a[6])
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

static inline int64_t sys(uint64_t nr, const uint64_t a[6])
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

static inline void canary_fill(void)
{
	for (unsigned i = 0; i < LEN(canary); i++)
		for (unsigned k = 0; k < PAGE; k += 8)
			*(uint64_t *)(canary[i] + k) = 0xc0ffee0000000000 + i * PAGE + k;
	mprotect(canary[2], PAGE, PROT_READ);
	mprotect(canary[3], PAGE, PROT_NONE);
}

static inline void canary_check(const char *when)
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
static inline void bad_fill(void)
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

static inline uint8_t *pages(size_t n)
{
	uint8_t *p = mmap(NULL, n * PAGE, RW, ANON, -1, 0);
	if (p == MAP_FAILED) {
		perror("mmap");
		exit(2);
	}
	return p;
}

static inline void memory_init(void)
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

static inline void files_reset(void)
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

static inline void fds_init(void)
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

static inline void add(struct values *s, uint64_t v)
{
	if (s->n < VALUES_MAX)
		s->v[s->n++] = v;
}

static inline void add_pointers(struct values *s)
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

static inline void add_paths(struct values *s)
{
	const uint64_t off[] = { 6 * PAGE - 1,   6 * PAGE - 100, 0,
				 1 * PAGE,       2 * PAGE,       2 * PAGE + 1,
				 3 * PAGE + 32,  3 * PAGE + 64,  3 * PAGE + 128,
				 3 * PAGE + 192, 3 * PAGE + 256, 3 * PAGE + 320,
				 3 * PAGE + 384, 5 * PAGE };
	for (unsigned i = 0; i < LEN(off); i++)
		add(s, (uint64_t)strings + off[i]);
}

static inline void values_of(const struct row *r, int i, struct values *s)
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

static inline bool named(const char *list, const char *name)
{
	char word[64];
	snprintf(word, sizeof word, " %s ", name);
	return strstr(list, word) != NULL;
}

/* The value with which the call gets as far as it can. */
static inline uint64_t good_value(const struct row *r, int i)
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
		return !strncmp(r->arg[i].name, "sigset", 6) || !strcmp(r->arg[i].name, "sizemask")  ? 8
		       : named(" mmap munmap mprotect pkey_mprotect madvise mremap mlock ", r->name) ? PAGE
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

static inline uint64_t random_value(const struct row *r, int i)
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
static inline int combination(const struct row *r, int n, uint64_t a[6])
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

static inline int combinations(const struct row *r, int random_calls)
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
static inline void restrain(const struct row *r, uint64_t a[6])
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
#endif
