/* SPDX-License-Identifier: Apache-2.0 */
/* Every call with every bad value; whether the pVM works after that. Part of hostile.c. */
#ifndef KX_GUEST_HOSTILE_SWEEP_H
#define KX_GUEST_HOSTILE_SWEEP_H
#include "values.h"

/* ---- the sweep ---------------------------------------- */

static inline void on_alarm(int s) { (void)s; }

static inline void alarm_start(void)
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

static inline void one_call(const struct row *r, int n, bool direct)
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

static inline const char *why_in_child(const struct row *r)
{
	for (unsigned i = 0; i < LEN(in_child); i++)
		if (named(in_child[i].names, r->name))
			return in_child[i].why;
	return NULL;
}

static inline void sweep_here(const struct row *r, int random_calls, bool direct)
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

static inline void child_loop(const struct row *r, int from, int total, bool direct)
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

static inline uint64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static inline void reap_all(void)
{
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

/* Until pid ends, or makes no progress for limit_ms: then it is killed. Returns false if it had to be. */
static inline bool child_wait(pid_t pid, unsigned limit_ms, int *status)
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
		if (kills && now_ms() - since > 60000) {
			fail("combination %d: the child cannot be killed", last);
			return false;
		}
		struct timespec ms = { 0, 500000 };
		nanosleep(&ms, NULL);
	}
}

static int nr_children, nr_died, nr_stuck;

static inline void sweep_in_child(const struct row *r, int random_calls, bool direct)
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

static inline uint64_t libos_sum(void)
{
	uint64_t h = 0;
	for (const uint64_t *p = (void *)KX_LIBOS_BASE; p < (const uint64_t *)KX_VVAR_BASE; p++)
		h = (h ^ *p) * 0x100000001b3;
	return h;
}

/* No descriptor of the monitor's can be named, by whatever call. */
static inline void scan_descriptors(void)
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

static inline void unknown_calls(void)
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
static inline void on_usr1(int s) { got_signal = s; }
static inline void *thread_adds(void *arg)
{
	__atomic_add_fetch((int *)arg, 1, __ATOMIC_SEQ_CST);
	return arg;
}

static inline void still_works(void)
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

static inline int sweep(int random_calls)
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
#endif
