/* SPDX-License-Identifier: Apache-2.0 */
/* What a child has of its parent: ids, memory, descriptors, signals, locks. Part of fork.c. */
#ifndef KX_GUEST_FORK_INHERITS_H
#define KX_GUEST_FORK_INHERITS_H
#include "fork.h"

/* ---- who is who ---------------------------------------------------------------------------------------------------- */

static inline void *thread_ids(void *arg)
{
	*(bool *)arg = getpid() == (pid_t)syscall(SYS_getpid) && gettid() != getpid();
	return NULL;
}

static inline void *fork_in_thread(void *arg)
{
	pid_t p = FORK({
		NEED(getpid() == gettid());
		NEED(getpid() == (pid_t)syscall(SYS_gettid));
		bool good = false;
		pthread_t t;
		NEED(pthread_create(&t, NULL, thread_ids, &good) == 0);
		NEED(pthread_join(t, NULL) == 0 && good);
	});
	*(bool *)arg = fine(p);
	return NULL;
}

static inline void ids(void)
{
	pid_t me = getpid();
	int *s = shared(4096);
	pid_t p = FORK({
		s[0] = getpid();
		s[1] = getppid();
		s[2] = gettid();
		s[3] = syscall(SYS_getpid);
		s[4] = getpgrp();
		s[5] = getsid(0);
		_exit(7);
	});
	int st = status_of(p);
	check(p > 0 && exited(st, 7), "fork: return values and status");
	check(s[0] == p && s[2] == p && s[3] == p, "fork: getpid, gettid in the child");
	check(s[1] == me, "fork: getppid in the child");
	check(s[4] == getpgrp() && s[5] == getsid(0), "fork: group and session inherited");
	check(getpid() == me && gettid() == me, "fork: parent's pid unchanged");
	s[0] = s[1] = s[2] = 0;
	p = vfork();
	if (!p) {
		s[0] = syscall(SYS_getpid);
		s[1] = getppid();
		s[2] = gettid();
		s[3] = getpid();
		_exit(8);
	}
	check(exited(status_of(p), 8) && s[0] == p && s[1] == me && s[2] == p && s[3] == p, "vfork: pids in the child");
	check(getpid() == me && gettid() == me && (pid_t)syscall(SYS_getpid) == me, "vfork: parent's pid unchanged");
	bool good = false;
	pthread_t t;
	pthread_create(&t, NULL, fork_in_thread, &good);
	pthread_join(t, NULL);
	check(good, "fork in a thread: the child's thread is its main thread");
}

/* ---- memory -------------------------------------------------------------------------------------------------------- */

static int global = 1;
static __thread int tls = 5;

static inline void memory(void)
{
	int local = 3, *heap = malloc(sizeof *heap), *s = shared(4096);
	*heap = 4;
	int fds[2], fds2[2];
	if (pipe(fds) || pipe(fds2))
		abort();
	char c;
	pid_t p = FORK({
		NEED(global == 1 && local == 3 && *heap == 4 && tls == 5);
		NEED(write(fds[1], "a", 1) == 1 && read(fds2[0], &c, 1) == 1);
		NEED(global == 1 && local == 3 && *heap == 4 && tls == 5); /* the parent wrote */
		global = local = *heap = tls = 30;
		s[0] = 77;
		NEED(write(fds[1], "b", 1) == 1 && read(fds2[0], &c, 1) == 1);
	});
	check(read(fds[0], &c, 1) == 1, "memory: child reads what was there");
	global = local = *heap = tls = 20;
	check(write(fds2[1], "a", 1) == 1 && read(fds[0], &c, 1) == 1,
	      "memory: child does not see the parent's writes");
	check(global == 20 && local == 20 && *heap == 20 && tls == 20,
	      "memory: parent does not see the child's writes");
	check(s[0] == 77, "memory: shared anonymous memory is shared");
	check(write(fds2[1], "b", 1) == 1 && fine(p), "memory: child ends");
	for (int i = 0; i < 2; i++) {
		close(fds[i]);
		close(fds2[i]);
	}
	global = 1;
	tls = 5;
	free(heap);
	munmap(s, 4096);

	char path[200];
	snprintf(path, sizeof path, "%s/map", dir);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || ftruncate(fd, 8192))
		abort();
	char *sh = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *pr = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	check(sh != MAP_FAILED && pr != MAP_FAILED, "memory: file mapped");
	pr[4096] = 'p';
	p = FORK({
		NEED(pr[4096] == 'p');
		strcpy(sh, "from child");
		strcpy(pr + 4096, "private");
	});
	check(fine(p) && !strcmp(sh, "from child"), "memory: a shared file mapping is shared");
	check(pr[4096] == 'p' && !pr[4097] && !strcmp(pr, "from child"), "memory: a private file mapping is not");
	char buf[16] = "";
	check(pread(fd, buf, 10, 0) == 10 && !strcmp(buf, "from child"), "memory: the file has it");
	munmap(sh, 8192);
	munmap(pr, 8192);
	close(fd);
	unlink(path);

	char *ro = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ro[0] = 1;
	mprotect(ro, 4096, PROT_READ);
	char *none = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(killed(status_of(FORK(*(volatile char *)ro = 2)), SIGSEGV),
	      "memory: read-only stays read-only in a child");
	check(killed(status_of(FORK(*(volatile char *)none)), SIGSEGV), "memory: PROT_NONE stays so");
	check(fine(FORK({
		      NEED(mprotect(ro, 4096, PROT_READ | PROT_WRITE) == 0);
		      ro[0] = 9;
		      NEED(munmap(none, 4096) == 0);
		      char *m = mmap(NULL, 64 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		      NEED(m != MAP_FAILED);
		      m[0] = m[(64 << 20) - 1] = 1;
		      void *b = sbrk(1 << 20);
		      NEED(b != (void *)-1);
		      memset(b, 1, 1 << 20);
	      })),
	      "memory: a child maps and protects");
	check(ro[0] == 1, "memory: and the parent has its own");
	char *wipe = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*wipe = 1;
	if (madvise(wipe, 4096, MADV_WIPEONFORK) == 0)
		check(fine(FORK(NEED(*wipe == 0))) && *wipe == 1, "memory: MADV_WIPEONFORK");
	munmap(wipe, 4096);
	munmap(ro, 4096);
	munmap(none, 4096);
}

#define BIG (256ul << 20)
static inline void big(void)
{
	uint64_t *m = mmap(NULL, BIG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const size_t step_q = 4096 / 8, n = BIG / 8;
	for (size_t i = 0; i < n; i += step_q)
		m[i] = i * 3 + 1;
	pid_t p = FORK({
		for (size_t i = 0; i < n; i += step_q)
			NEED(m[i] == i * 3 + 1);
		for (size_t i = 0; i < n; i += 32 * step_q)
			m[i] = ~i;
		for (size_t i = 0; i < n; i += step_q)
			NEED(m[i] == (i % (32 * step_q) ? i * 3 + 1 : ~i));
	});
	for (size_t i = step_q; i < n; i += 32 * step_q)
		m[i] = i ^ 0x5555;
	check(fine(p), "256 MiB: child sees and changes its own");
	bool good = true;
	for (size_t i = 0; i < n; i += step_q)
		good = good && m[i] == (i % (32 * step_q) == step_q ? (i ^ 0x5555) : i * 3 + 1);
	check(good, "256 MiB: parent sees and changes its own");
	munmap(m, BIG);
}

/* ---- what is inherited ------------------------------------------------------------------------------------------- */

static inline void files(void)
{
	char path[200], buf[8];
	snprintf(path, sizeof path, "%s/file", dir);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	check(write(fd, "0123456789", 10) == 10 && lseek(fd, 0, SEEK_SET) == 0, "files: made");
	check(fine(FORK({
		      NEED(read(fd, buf, 4) == 4 && !memcmp(buf, "0123", 4));
		      NEED(fcntl(fd, F_GETFD) == FD_CLOEXEC);
	      })),
	      "files: child reads by an inherited descriptor");
	check(read(fd, buf, 2) == 2 && !memcmp(buf, "45", 2), "files: the offset is shared");
	check(fine(FORK(NEED(close(fd) == 0))) && lseek(fd, 0, SEEK_CUR) == 6, "files: a child's close is its own");
	check(fine(FORK(NEED(fcntl(fd, F_SETFL, O_APPEND) == 0))) && (fcntl(fd, F_GETFL) & O_APPEND),
	      "files: flags shared");

	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	check(fcntl(fd, F_SETLK, &l) == 0, "files: record lock");
	pid_t me = getpid();
	check(fine(FORK({
		      struct flock g = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
		      NEED(fcntl(fd, F_SETLK, &g) == -1 && (errno == EAGAIN || errno == EACCES));
		      NEED(fcntl(fd, F_GETLK, &g) == 0 && g.l_type == F_WRLCK && g.l_pid == me);
	      })),
	      "files: record locks are not inherited, and F_GETLK names the owner");
	l.l_type = F_UNLCK;
	fcntl(fd, F_SETLK, &l);
	check(flock(fd, LOCK_EX) == 0 && fine(FORK({
		      NEED(flock(fd, LOCK_EX | LOCK_NB) == 0);
		      int other = open(path, O_RDWR);
		      NEED(flock(other, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK);
	      })),
	      "files: flock is the open file's");
	int fds[2];
	check(pipe(fds) == 0, "files: pipe");
	pid_t p = FORK({
		close(fds[1]);
		NEED(flock(fd, LOCK_UN) == 0);
		int other = open(path, O_RDWR);
		NEED(flock(other, LOCK_EX) == 0);
		NEED(read(fds[0], buf, 1) == 0);
	});
	close(fds[0]);
	close(fds[1]);
	check(fine(p), "files: a pipe ends with its last writer");
	close(fd);
	unlink(path);

	char was[300];
	mode_t m = umask(027);
	check(getcwd(was, sizeof was) && chdir(dir) == 0, "cwd: chdir");
	check(fine(FORK({
		      char cwd[300];
		      NEED(getcwd(cwd, sizeof cwd) && !strcmp(cwd, dir));
		      NEED(umask(0) == 027);
		      NEED(chdir("/") == 0);
	      })),
	      "cwd and umask inherited");
	check(umask(m) == 027 && getcwd(path, sizeof path) && !strcmp(path, dir), "cwd and umask are the child's own");
	if (chdir(was))
		abort();
}

static inline void inherited_signals(void)
{
	on(SIGUSR1, 0);
	signal(SIGUSR2, SIG_IGN);
	blocking(SIG_BLOCK, SIGTERM);
	blocking(SIG_BLOCK, SIGRTMIN + 3);
	raise(SIGTERM);
	sigqueue(getpid(), SIGRTMIN + 3, (union sigval){ .sival_int = 1 });
	stack_t ss = { .ss_sp = malloc(SIGSTKSZ * 4), .ss_size = SIGSTKSZ * 4 }, none = { .ss_flags = SS_DISABLE };
	sigaltstack(&ss, NULL);
	struct itimerval it = { { 0, 0 }, { 100, 0 } };
	setitimer(ITIMER_REAL, &it, NULL);
	setitimer(ITIMER_VIRTUAL, &it, NULL);
	timer_t timer;
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	bool have_timer = timer_create(CLOCK_MONOTONIC, &ev, &timer) == 0;
	check(is_pending(SIGTERM) && is_pending(SIGRTMIN + 3), "signals: pending in the parent");
	pid_t p = FORK({
		struct sigaction sa;
		struct itimerval t;
		struct itimerspec ts;
		stack_t s;
		sigset_t mask;
		NEED(!is_pending(SIGTERM) && !is_pending(SIGRTMIN + 3));
		NEED(sigaction(SIGUSR1, NULL, &sa) == 0 && sa.sa_sigaction == count);
		NEED(sigaction(SIGUSR2, NULL, &sa) == 0 && sa.sa_handler == SIG_IGN);
		NEED(sigprocmask(0, NULL, &mask) == 0 && sigismember(&mask, SIGTERM) && !sigismember(&mask, SIGUSR1));
		NEED(getitimer(ITIMER_REAL, &t) == 0 && !t.it_value.tv_sec && !t.it_value.tv_usec);
		NEED(getitimer(ITIMER_VIRTUAL, &t) == 0 && !t.it_value.tv_sec && !t.it_value.tv_usec);
		NEED(alarm(0) == 0);
		NEED(!have_timer || timer_gettime(timer, &ts) == -1);
		NEED(sigaltstack(NULL, &s) == 0 && s.ss_sp == ss.ss_sp && !s.ss_flags);
		raise(SIGUSR1);
		raise(SIGUSR2);
		NEED(hits[SIGUSR1] == 1);
		raise(SIGTERM);
		NEED(is_pending(SIGTERM));
		blocking(SIG_UNBLOCK, SIGTERM);
		_exit(98);
	});
	check(killed(status_of(p), SIGTERM), "signals: mask and actions inherited; pending ones, timers, alarm not");
	check(hits[SIGUSR1] == 0, "signals: of the child stay there");
	if (have_timer)
		timer_delete(timer);
	it.it_value.tv_sec = 0;
	setitimer(ITIMER_REAL, &it, NULL);
	setitimer(ITIMER_VIRTUAL, &it, NULL);
	sigaltstack(&none, NULL);
	free(ss.ss_sp);
	siginfo_t info;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGRTMIN + 3);
	check(sigwaitinfo(&set, &info) > 0 && sigwaitinfo(&set, &info) > 0, "signals: still pending in the parent");
	blocking(SIG_UNBLOCK, SIGTERM);
	blocking(SIG_UNBLOCK, SIGRTMIN + 3);
	off(SIGUSR1);
	off(SIGUSR2);
}

/* ---- robust mutexes, raw clone ------------------------------------------------------------------------------------ */

/* Some that processes share. */
static inline pthread_mutex_t *robust_make(void)
{
	pthread_mutex_t *m = shared(4096);
	pthread_mutexattr_t a;
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
	for (int i = 0; i < 3; i++)
		pthread_mutex_init(&m[i], &a);
	return m;
}

static inline void robust(void)
{
	pthread_mutex_t *m = robust_make();
	check(fine(FORK(NEED(pthread_mutex_lock(&m[0]) == 0))), "robust: child ends with a mutex locked");
	check(pthread_mutex_lock(&m[0]) == EOWNERDEAD && pthread_mutex_consistent(&m[0]) == 0, "robust: EOWNERDEAD");
	pid_t p = FORK({
		NEED(pthread_mutex_lock(&m[1]) == 0);
		raise(SIGKILL);
	});
	check(killed(status_of(p), SIGKILL) && pthread_mutex_lock(&m[1]) == EOWNERDEAD, "robust: after SIGKILL");
	check(pthread_mutex_lock(&m[2]) == 0 && fine(FORK(NEED(pthread_mutex_trylock(&m[2]) == EBUSY))) &&
		      pthread_mutex_unlock(&m[2]) == 0,
	      "robust: a child's end does not free its parent's mutex");
	pthread_mutex_unlock(&m[0]);
	munmap(m, 4096);
}

static inline void *nothing_of_thread(void *p) { return p; }

/* Makes no call from then on. */
static inline void *locks(void *p)
{
	pthread_mutex_t *m = p;
	NEED(pthread_mutex_lock(m) == 0);
	for (__atomic_store_n((int *)(m + 1), 1, __ATOMIC_SEQ_CST);;)
		;
	return p;
}

/* At once, for who does not wait. */
static inline void robust_thread(void)
{
	pthread_mutex_t *m = robust_make();
	int *locked = (int *)(m + 3);
	pid_t p = FORK({
		pthread_t t;
		NEED(!pthread_create(&t, NULL, nothing_of_thread, NULL) && !pthread_join(t, NULL));
		NEED(!pthread_create(&t, NULL, locks, &m[2]) && !pthread_join(t, NULL));
	});
	while (!__atomic_load_n(locked, __ATOMIC_SEQ_CST))
		ms(1);
	kill(p, SIGKILL);
	check(killed(status_of(p), SIGKILL) && pthread_mutex_trylock(&m[2]) == EOWNERDEAD,
	      "robust: of a thread, after SIGKILL");
	munmap(m, 4096);
}

static inline long raw_clone(unsigned long flags, void *stack, int *ptid, int *ctid, unsigned long tlsp)
{
	register int *r10 __asm__("r10") = ctid;
	register unsigned long r8 __asm__("r8") = tlsp;
	long r;
	__asm__ volatile("syscall"
			 : "=a"(r)
			 : "0"(SYS_clone), "D"(flags), "S"(stack), "d"(ptid), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return r;
}

/* Calls fn(arg) on its own stack, then exits with what it returns. */
long clone_stack(unsigned long flags, void *stack, int (*fn)(void *), void *arg, int *ctid);
__asm__(".text\n.globl clone_stack\nclone_stack:\n"
	"sub $16, %rsi\n mov %rdx, (%rsi)\n mov %rcx, 8(%rsi)\n mov %r8, %r10\n xor %edx, %edx\n xor %r8d, %r8d\n"
	"mov $56, %eax\n syscall\n test %eax, %eax\n jz 1f\n ret\n"
	"1: xor %ebp, %ebp\n pop %rax\n pop %rdi\n call *%rax\n mov %eax, %edi\n mov $60, %eax\n syscall\n hlt\n");

static inline int stack_child(void *arg)
{
	int *s = arg;
	volatile char probe[2000];
	memset((void *)probe, 1, sizeof probe);
	s[0] = (uintptr_t)probe >> 12;
	s[1] = syscall(SYS_getpid);
	s[2] = 0;
	for (unsigned i = 0; i < sizeof probe; i++)
		s[2] += probe[i];
	return 21;
}

static inline void clones(void)
{
	int *s = shared(4096), mine = 0, child_tid = 0;
	pid_t me = getpid();
	long p = raw_clone(CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | SIGCHLD, NULL, &mine, &child_tid, 0);
	if (!p) {
		s[0] = child_tid;
		s[1] = mine;
		_exit(child_tid == (int)syscall(SYS_getpid) && (int)syscall(SYS_getppid) == me ? 0 : 1);
	}
	check(p > 0 && fine(p) && mine == p, "raw clone: PARENT_SETTID");
	check(s[0] == p && child_tid == 0, "raw clone: CHILD_SETTID, in the child only");
	char *stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	p = clone_stack(SIGCHLD, stack + 65536, stack_child, s, NULL);
	check(p > 0 && exited(status_of(p), 21) && s[1] == p && s[2] == 2000, "raw clone: own stack");
	check(s[0] >= (int)((uintptr_t)stack >> 12) && s[0] < (int)(((uintptr_t)stack + 65536) >> 12),
	      "raw clone: the stack is that one");
	p = clone_stack(CLONE_VM | CLONE_VFORK | SIGCHLD, stack + 65536, stack_child, s, NULL);
	check(s[1] == p && exited(status_of(p), 21), "raw clone: CLONE_VM | CLONE_VFORK with own stack");
	int tid = 1;
	p = clone_stack(CLONE_VM | CLONE_VFORK | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD, stack + 65536,
			stack_child, s, &tid);
	check(p > 0 && exited(status_of(p), 21) && tid == 0, "raw clone: CHILD_CLEARTID");
	munmap(stack, 65536);

	double start = now();
	p = raw_clone(CLONE_VFORK | SIGCHLD, NULL, NULL, NULL, 0);
	if (!p) {
		ms(60);
		global = 12;
		_exit(3);
	}
	check(now() - start >= 0.055 && exited(status_of(p), 3) && global == 1,
	      "raw clone: CLONE_VFORK alone waits, copies");

	struct clone_args args = { .flags = CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_PIDFD,
				   .exit_signal = SIGCHLD };
	int pidfd = -1;
	mine = child_tid = 0;
	args.parent_tid = (uintptr_t)&mine;
	args.child_tid = (uintptr_t)&child_tid;
	args.pidfd = (uintptr_t)&pidfd;
	p = syscall(SYS_clone3, &args, sizeof args);
	if (!p) {
		bool good = child_tid == (int)syscall(SYS_getpid);
		pause();
		_exit(!good);
	}
	check(p > 0 && mine == p && pidfd >= 0, "clone3: fork with CLONE_PIDFD");
	check(fcntl(pidfd, F_GETFD) == FD_CLOEXEC, "clone3: the pidfd is close-on-exec");
	check(syscall(SYS_pidfd_send_signal, pidfd, SIGTERM, NULL, 0) == 0, "pidfd_send_signal");
	siginfo_t info = { 0 };
	check(waitid(P_PIDFD, pidfd, &info, WEXITED) == 0 && info.si_pid == p && info.si_status == SIGTERM &&
		      info.si_code == CLD_KILLED,
	      "waitid(P_PIDFD)");
	close(pidfd);
	args.flags = CLONE_CLEAR_SIGHAND;
	on(SIGUSR1, 0);
	signal(SIGUSR2, SIG_IGN);
	p = syscall(SYS_clone3, &args, sizeof args);
	if (!p) {
		struct sigaction a, b;
		sigaction(SIGUSR1, NULL, &a);
		sigaction(SIGUSR2, NULL, &b);
		_exit(a.sa_handler == SIG_DFL && b.sa_handler == SIG_IGN ? 0 : 1);
	}
	check(fine(p), "clone3: CLONE_CLEAR_SIGHAND");
	off(SIGUSR1);
	off(SIGUSR2);
	args.flags = 1ull << 60;
	check(syscall(SYS_clone3, &args, sizeof args) == -1 && (errno == EINVAL || errno == ENOSYS),
	      "clone3: unknown flag");
	args.flags = 0;
	check(syscall(SYS_clone3, &args, 8) == -1 && errno == EINVAL, "clone3: too small");
	munmap(s, 4096);
}
#endif
