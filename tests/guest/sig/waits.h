/* SPDX-License-Identifier: Apache-2.0 */
/* Waiting for signals; calls that they interrupt, or do not. Part of sig.c. */
#ifndef KX_GUEST_SIG_WAITS_H
#define KX_GUEST_SIG_WAITS_H
#include "sig.h"

/* ---- waiting for signals -------------------- */

static inline void test_wait(void)
{
	sigset_t empty = one(0), set = one(SIGUSR1);
	siginfo_t info;
	struct timespec ts = { 0, 20 * MS }, zero = { 0, 0 };
	on(SIGUSR1, note, 0);
	block(SIGUSR1);
	count = 0;
	kill(getpid(), SIGUSR1);
	check(sigsuspend(&empty) == -1 && errno == EINTR && count == 1 && blocked(SIGUSR1), "sigsuspend, pending");
	timer_t tm;
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 99 };
	struct itimerspec its = { .it_value = { 0, 20 * MS } };
	timer_create(CLOCK_MONOTONIC, &ev, &tm);
	timer_settime(tm, 0, &its, NULL);
	check(sigsuspend(&empty) == -1 && errno == EINTR && count == 2 && last_code == SI_TIMER && last_value == 99 &&
		      blocked(SIGUSR1),
	      "sigsuspend, by a timer: SI_TIMER, value");
	int s;
	kill(getpid(), SIGUSR1);
	check(sigwait(&set, &s) == 0 && s == SIGUSR1 && count == 2 && !pending(SIGUSR1), "sigwait");
	check(sigtimedwait(&set, &info, &ts) == -1 && errno == EAGAIN, "sigtimedwait: timeout");
	check(sigtimedwait(&set, &info, &zero) == -1 && errno == EAGAIN, "sigtimedwait: poll");
	timer_settime(tm, 0, &its, NULL);
	ts.tv_sec = 5;
	check(sigtimedwait(&set, &info, &ts) == SIGUSR1 && info.si_code == SI_TIMER && info.si_value.sival_int == 99 &&
		      count == 2,
	      "sigtimedwait: by a timer");
	union sigval v = { .sival_int = 4711 };
	set = one(RTN(1));
	block(RTN(1));
	sigqueue(getpid(), RTN(1), v);
	v.sival_int++;
	sigqueue(getpid(), RTN(1), v);
	check(sigwaitinfo(&set, &info) == RTN(1) && info.si_value.sival_int == 4711 && info.si_code == SI_QUEUE &&
		      sigwaitinfo(&set, &info) == RTN(1) && info.si_value.sival_int == 4712,
	      "sigwaitinfo: two in order");
	/* Another signal's handler interrupts. */
	on(SIGALRM, note, SA_RESTART);
	struct itimerval it = { { 0, 20000 }, { 0, 20000 } }, off = { 0 };
	setitimer(ITIMER_REAL, &it, NULL);
	check(sigwaitinfo(&set, &info) == -1 && errno == EINTR && last_signo == SIGALRM && last_code == SI_KERNEL,
	      "sigwaitinfo: EINTR");
	check(pause() == -1 && errno == EINTR, "pause");
	setitimer(ITIMER_REAL, &off, NULL);
	/* signalfd */
	set = one(SIGUSR1);
	sigaddset(&set, RTN(1));
	int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	struct signalfd_siginfo si[4];
	check(fd >= 0 && read(fd, si, sizeof si) == -1 && errno == EAGAIN, "signalfd: EAGAIN");
	v.sival_int = 5;
	sigqueue(getpid(), RTN(1), v);
	kill(getpid(), SIGUSR1);
	struct pollfd p = { .fd = fd, .events = POLLIN };
	check(poll(&p, 1, 1000) == 1 && p.revents == POLLIN, "signalfd: poll");
	check(read(fd, si, sizeof si) == 2 * sizeof si[0] && (int)si[0].ssi_signo == SIGUSR1 &&
		      si[0].ssi_code == SI_USER && (pid_t)si[0].ssi_pid == getpid() && (int)si[1].ssi_signo == RTN(1) &&
		      si[1].ssi_int == 5,
	      "signalfd: read two");
	fcntl(fd, F_SETFL, 0);
	timer_settime(tm, 0, &its, NULL);
	check(read(fd, si, sizeof si) == sizeof si[0] && si[0].ssi_code == SI_TIMER, "signalfd: blocking read");
	close(fd);
	timer_delete(tm);
	/* ppoll, pselect, epoll_pwait with a mask */
	count = 0;
	kill(getpid(), SIGUSR1);
	ts.tv_sec = 2;
	check(ppoll(NULL, 0, &ts, &empty) == -1 && errno == EINTR && count == 1 && blocked(SIGUSR1), "ppoll's mask");
	kill(getpid(), SIGUSR1);
	check(pselect(0, NULL, NULL, NULL, &ts, &empty) == -1 && errno == EINTR && count == 2 && blocked(SIGUSR1),
	      "pselect's mask");
	int ep = epoll_create1(0);
	struct epoll_event ee;
	kill(getpid(), SIGUSR1);
	check(epoll_pwait(ep, &ee, 1, 2000, &empty) == -1 && errno == EINTR && count == 3 && blocked(SIGUSR1),
	      "epoll_pwait's mask");
	kill(getpid(), SIGUSR1);
	set = one(SIGUSR1);
	check(epoll_pwait(ep, &ee, 1, 10, &set) == 0 && count == 3, "epoll_pwait's mask holds");
	check(ppoll(NULL, 0, &zero, &set) == 0 && count == 3 && pending(SIGUSR1), "ppoll's mask holds");
	close(ep);
	unblock(SIGUSR1);
	check(count == 4, "and then it comes");
	unblock(RTN(1));
}

/* ---- interrupted calls -------------------- */

static int pipefd[2], listener, pair_[2], epfd;
static sem_t sem;
static uint32_t word;
static pthread_t main_thread;

/* A second thread sends one signal and then, a little later, ends the wait. */
enum {
	C_READ,
	C_NANOSLEEP,
	C_POLL,
	C_EPOLL,
	C_FUTEX,
	C_FUTEX_TIMED,
	C_ACCEPT,
	C_RECV,
	C_RECV_TIMEO,
	C_SEM,
	C_SEM_TIMED,
	C_SELECT,
	C_CLOCK_NANOSLEEP,
	C_MAX
};

static const struct {
	const char *name;
	int plain, restart; /* errno, 0 = completes */
} table[C_MAX] = {
	[C_READ] = { "read", EINTR, 0 },
	[C_NANOSLEEP] = { "nanosleep", EINTR, EINTR },
	[C_POLL] = { "poll", EINTR, EINTR },
	[C_EPOLL] = { "epoll_wait", EINTR, EINTR },
	[C_FUTEX] = { "futex", EINTR, 0 },
	[C_FUTEX_TIMED] = { "futex with timeout", EINTR, EINTR },
	[C_ACCEPT] = { "accept", EINTR, 0 },
	[C_RECV] = { "recv", EINTR, 0 },
	[C_RECV_TIMEO] = { "recv with SO_RCVTIMEO", EINTR, EINTR },
	[C_SEM] = { "sem_wait", EINTR, 0 },
	[C_SEM_TIMED] = { "sem_timedwait", EINTR, -1 },
	[C_SELECT] = { "select", EINTR, EINTR },
	[C_CLOCK_NANOSLEEP] = { "clock_nanosleep", EINTR, EINTR },
};

#define WAIT 100 /* seconds, which nobody waits */

static int wait_call(int k)
{
	char c;
	struct timespec ts = { WAIT, 0 }, rem;
	struct timeval tv = { WAIT, 0 };
	struct pollfd p = { .fd = pipefd[0], .events = POLLIN };
	struct epoll_event ee;
	switch (k) {
	case C_READ:
		return read(pipefd[0], &c, 1) == 1 ? 0 : errno;
	case C_NANOSLEEP:
		return nanosleep(&ts, &rem) == 0 ? 0 : rem.tv_sec < WAIT ? errno : 999;
	case C_POLL:
		return poll(&p, 1, WAIT * 1000) >= 0 ? 0 : errno;
	case C_EPOLL:
		return epoll_wait(epfd, &ee, 1, WAIT * 1000) >= 0 ? 0 : errno;
	case C_FUTEX:
		return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0) == 0 || errno == EAGAIN ? 0
													       : errno;
	case C_FUTEX_TIMED:
		return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &ts, NULL, 0) == 0 || errno == EAGAIN ? 0
													      : errno;
	case C_ACCEPT: {
		int fd = accept(listener, NULL, NULL);
		if (fd < 0)
			return errno;
		close(fd);
		return 0;
	}
	case C_RECV:
	case C_RECV_TIMEO:
		return recv(pair_[0], &c, 1, 0) == 1 ? 0 : errno;
	case C_SEM:
		return sem_wait(&sem) == 0 ? 0 : errno;
	case C_SEM_TIMED: {
		clock_gettime(CLOCK_REALTIME, &ts);
		ts.tv_sec += WAIT;
		return sem_timedwait(&sem, &ts) == 0 ? 0 : errno;
	}
	case C_SELECT: {
		fd_set f;
		FD_ZERO(&f);
		FD_SET(pipefd[0], &f);
		return select(pipefd[0] + 1, &f, NULL, NULL, &tv) >= 0 ? 0 : errno;
	}
	case C_CLOCK_NANOSLEEP:
		return clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, &rem);
	}
	return -1;
}

static struct sockaddr_un addr;
static socklen_t addr_len;

static void wake_call(int k)
{
	switch (k) {
	case C_READ:
	case C_POLL:
	case C_EPOLL:
	case C_SELECT:
		if (write(pipefd[1], "x", 1) != 1)
			failures++;
		break;
	case C_FUTEX:
	case C_FUTEX_TIMED:
		__atomic_store_n(&word, 1, __ATOMIC_SEQ_CST);
		syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
		break;
	case C_ACCEPT: {
		int fd = socket(AF_UNIX, SOCK_STREAM, 0);
		if (connect(fd, (void *)&addr, addr_len))
			failures++;
		close(fd);
		break;
	}
	case C_RECV:
	case C_RECV_TIMEO:
		if (send(pair_[1], "x", 1, 0) != 1)
			failures++;
		break;
	case C_SEM:
	case C_SEM_TIMED:
		sem_post(&sem);
		break;
	}
}

static volatile int current_call;

static void *poker(void *arg)
{
	(void)arg;
	asleep(getpid(), getpid());
	pthread_kill(main_thread, SIGUSR1);
	nap(15 * MS);
	wake_call(current_call);
	return NULL;
}

static void drain(int k)
{
	char c;
	int f = 0;
	switch (k) {
	case C_READ:
	case C_POLL:
	case C_EPOLL:
	case C_SELECT:
		f = read(pipefd[0], &c, 1) == 1;
		break;
	case C_ACCEPT:
		f = accept(listener, NULL, NULL);
		close(f);
		break;
	case C_RECV:
	case C_RECV_TIMEO:
		f = recv(pair_[0], &c, 1, 0) == 1;
		break;
	case C_SEM:
	case C_SEM_TIMED:
		f = sem_wait(&sem) == 0;
		break;
	}
	(void)f;
	word = 0;
}

static inline void test_eintr(void)
{
	main_thread = pthread_self();
	listener = socket(AF_UNIX, SOCK_STREAM, 0);
	addr.sun_family = AF_UNIX;
	snprintf(addr.sun_path + 1, sizeof addr.sun_path - 1, "kx-sig-test-%d", getpid());
	addr_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(addr.sun_path + 1));
	epfd = epoll_create1(0);
	if (pipe(pipefd) || bind(listener, (void *)&addr, addr_len) || listen(listener, 5) ||
	    socketpair(AF_UNIX, SOCK_STREAM, 0, pair_) || sem_init(&sem, 0, 0)) {
		check(false, "things to wait for");
		return;
	}
	struct epoll_event ee = { .events = EPOLLIN };
	epoll_ctl(epfd, EPOLL_CTL_ADD, pipefd[0], &ee);
	for (int restart = 0; restart < 2; restart++)
		for (int k = 0; k < C_MAX; k++) {
			pthread_t t;
			char name[80];
			struct timeval tv = { k == C_RECV_TIMEO ? WAIT : 0, 0 };
			int want = restart ? table[k].restart : table[k].plain;
			setsockopt(pair_[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
			on(SIGUSR1, note, restart ? SA_RESTART : 0);
			count = 0;
			current_call = k;
			pthread_create(&t, NULL, poker, NULL);
			int r = wait_call(k);
			pthread_join(t, NULL);
			if (r != 0)
				drain(k);
			word = 0;
			snprintf(name, sizeof name, "%s %s", table[k].name,
				 restart ? "with SA_RESTART" : "without SA_RESTART");
			bool ok = count == 1 && (want == -1 ? r == 0 || r == EINTR : r == want);
			if (!ok)
				printf("  %s: errno %d, not %d; %d handlers\n", name, r, want, count);
			check(ok, name);
		}
	/* An ignored signal interrupts nothing, a blocked one neither. */
	signal(SIGUSR1, SIG_IGN);
	pthread_t t;
	current_call = C_POLL;
	pthread_create(&t, NULL, poker, NULL);
	int r = wait_call(C_POLL);
	pthread_join(t, NULL);
	drain(C_POLL);
	check(r == 0, "an ignored signal interrupts nothing");
	on(SIGUSR1, note, 0);
	block(SIGUSR1);
	count = 0;
	pthread_create(&t, NULL, poker, NULL);
	r = wait_call(C_POLL);
	pthread_join(t, NULL);
	drain(C_POLL);
	check(r == 0 && count == 0, "a blocked signal interrupts nothing");
	unblock(SIGUSR1);
	check(count == 1, "and comes when unblocked");
}

/* Calls on files don't end in EINTR, whatever the handler's flags: they do not wait for events. */
static volatile long file_ticks;
static void on_tick(int s) { (void)s, file_ticks++; }

static inline void test_files(void)
{
	struct sigaction sa = { .sa_handler = on_tick }, old;
	struct itimerval tv = { { 0, 300 }, { 0, 300 } }, off = { 0 };
	char name[] = "/tmp/kx-sig-XXXXXX", buf[64] = { 0 };
	int fd = mkstemp(name);
	bool good = true;
	sigaction(SIGALRM, &sa, &old);
	unblock(SIGALRM);
	setitimer(ITIMER_REAL, &tv, NULL);
	for (int i = 0; i < 1000 || (file_ticks < 300 && i < 20000); i++) {
		struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
		int f = open(name, O_RDWR);
		if (f < 0 || pwrite(f, buf, sizeof buf, 0) != sizeof buf ||
		    pread(f, buf, sizeof buf, 0) != sizeof buf || fdatasync(f) || fcntl(f, F_SETLK, &fl)) {
			printf("call %d: %s\n", i, strerror(errno));
			good = false;
			break;
		}
		close(f);
	}
	setitimer(ITIMER_REAL, &off, NULL);
	sigaction(SIGALRM, &old, NULL);
	check(good && file_ticks > 50, "no EINTR from files");
	close(fd);
	unlink(name);
}

/* ---- a signal on the way into a call -------------------- */

#define ON_THE_WAY 400

static volatile uint64_t entering; /* address of the instruction; 0: not yet */
static volatile int seen_at, seen_behind;

static void note_entering(int s, siginfo_t *i, void *u)
{
	uint64_t rip = (uint64_t)((ucontext_t *)u)->uc_mcontext.gregs[REG_RIP];
	seen_at = entering && rip == entering;
	seen_behind = entering && rip == entering + 2;
	note(s, i, u);
}

/* Each at a place of its own, for the first time. */
static void enter_each(const uint8_t insns[3], int *at, int *behind, int *lost, int *strange)
{
	uint8_t *code = mmap(NULL, 4096l * ON_THE_WAY, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS,
			     -1, 0);
	*at = *behind = *lost = *strange = 0;
	for (int i = 0; i < ON_THE_WAY; i++) {
		struct timespec ts = { 0, 20 * MS };
		struct itimerval it = { { 0, 0 }, { 0, 1 + i % 100 * 2 } };
		uint8_t *page = code + 4096l * i, *site = page + 64;
		long r = SYS_nanosleep;
		memcpy(site, insns, 3);
		page[0] = 0xc3;
		((void (*)(void))page)(); /* the page is there */
		count = seen_at = seen_behind = entering = 0;
		setitimer(ITIMER_REAL, &it, NULL);
		entering = (uint64_t)site;
		__asm__ volatile("sub $128, %%rsp; call *%[at]; add $128, %%rsp"
				 : "+a"(r)
				 : "D"(&ts), "S"(0), [at] "r"(site)
				 : "rcx", "r11", "memory", "cc");
		while (!count)
			nap(MS);
		*at += seen_at;
		*behind += seen_behind;
		*lost += r == 0 && (seen_at || seen_behind);
		*strange += r != -EINTR && r != 0;
	}
	munmap(code, 4096l * ON_THE_WAY);
}

/*
 * The first system call from a place in a program's text. Where that is slow, as in a VM, a signal that comes meanwhile
 * must still count as one that came while the call slept: natively there is nothing between the instruction and the
 * kernel. A few may come just before the instruction: some more than before another one, where processors take
 * interrupts at jumps only, as QEMU's do.
 */
static inline void test_on_the_way(void)
{
	static const uint8_t calls[] = { 0x0f, 0x05, 0xc3 }, nops[] = { 0x90, 0x90, 0xc3 }; /* syscall, ret */
	int at, behind, lost, strange, usual, unused;
	on(SIGALRM, note_entering, 0);
	unblock(SIGALRM);
	enter_each(nops, &usual, &unused, &unused, &unused);
	enter_each(calls, &at, &behind, &lost, &strange);
	printf("  %d of %d calls slept over a signal, %d failed otherwise; %d before another instruction\n", lost,
	       at + behind, strange, usual);
	check(lost <= ON_THE_WAY / 50 + 2 * usual && !strange, "a signal on the way into a call ends its sleep");
}
#endif
