/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals between processes: what a receiver sees of the sender, queues in order, masks that nobody but the receiver
 * knows of, signals to a process that is being forked or executes a program, and how each call that sleeps is
 * interrupted or restarted by a signal of another process, with and without SA_RESTART (signal(7)).
 * Passes on any x86-64 Linux. Arguments: names of groups (all without). The exit code is the number of the first
 * check that failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/random.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../asleep.h"
#include "../check.h"
#include "../children.h"

#define RTN(n) (SIGRTMIN + (n))

static char dir[128];

static void forever(void)
{
	for (;;)
		pause();
}

static volatile int *s; /* shared with all children */

static bool until(volatile int *p, int n)
{
	for (int i = 0; i < 60000 && __atomic_load_n(p, __ATOMIC_SEQ_CST) < n; i++)
		ms(1);
	return __atomic_load_n(p, __ATOMIC_SEQ_CST) >= n;
}

static bool killed(int st, int sig) { return WIFSIGNALED(st) && WTERMSIG(st) == sig; }

static volatile sig_atomic_t hits[65];
static siginfo_t last[65];
static volatile pid_t last_tid;

static void count(int sig, siginfo_t *info, void *uc)
{
	(void)uc;
	last[sig] = *info;
	last_tid = gettid();
	__atomic_add_fetch(&hits[sig], 1, __ATOMIC_SEQ_CST); /* another thread may wait for that */
}

static void on(int sig, int flags)
{
	struct sigaction sa = { .sa_sigaction = count, .sa_flags = SA_SIGINFO | flags };
	sigaction(sig, &sa, NULL);
	hits[sig] = 0;
}

static void blocking(int how, int sig)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, sig);
	pthread_sigmask(how, &set, NULL);
}

static bool is_pending(int sig)
{
	sigset_t set;
	sigpending(&set);
	return sigismember(&set, sig);
}

static bool await_hits(int sig, int n)
{
	for (int i = 0; i < 120000 && __atomic_load_n(&hits[sig], __ATOMIC_SEQ_CST) < n; i++)
		ms(1);
	return hits[sig] == n;
}

/* ---- who sent what ------------------------------------------------------------------------------------------------- */

static int send_kill(pid_t p, pid_t tid)
{
	(void)tid;
	return kill(p, SIGUSR1);
}
static int send_tgkill(pid_t p, pid_t tid) { return (int)syscall(SYS_tgkill, p, tid, SIGUSR1); }
static int send_tkill(pid_t p, pid_t tid)
{
	(void)p;
	return (int)syscall(SYS_tkill, tid, SIGUSR1);
}
static int send_queue(pid_t p, pid_t tid)
{
	(void)tid;
	return sigqueue(p, SIGUSR1, (union sigval){ .sival_ptr = (void *)0x123456789abcl });
}
static int send_tgqueue(pid_t p, pid_t tid)
{
	siginfo_t i;
	memset(&i, 0, sizeof i);
	i.si_code = SI_QUEUE;
	i.si_pid = getpid();
	i.si_uid = getuid();
	i.si_value.sival_ptr = (void *)0x123456789abcl;
	return (int)syscall(SYS_rt_tgsigqueueinfo, p, tid, SIGUSR1, &i);
}
static int send_pidfd(pid_t p, pid_t tid)
{
	(void)tid;
	int fd = (int)syscall(SYS_pidfd_open, p, 0), r = (int)syscall(SYS_pidfd_send_signal, fd, SIGUSR1, NULL, 0);
	close(fd);
	return r;
}

static void *second(void *arg)
{
	(void)arg;
	s[1] = gettid();
	for (;;)
		ms(1000);
	return NULL;
}

static void senders(void)
{
	static const struct {
		const char *name;
		int (*send)(pid_t p, pid_t tid);
		int code;
		bool value, to_thread;
	} all[] = {
		{ "kill", send_kill, SI_USER, false, false },
		{ "tgkill", send_tgkill, SI_TKILL, false, true },
		{ "tkill", send_tkill, SI_TKILL, false, true },
		{ "sigqueue", send_queue, SI_QUEUE, true, false },
		{ "rt_tgsigqueueinfo", send_tgqueue, SI_QUEUE, true, true },
		{ "pidfd_send_signal", send_pidfd, SI_USER, false, false },
	};
	for (unsigned k = 0; k < sizeof all / sizeof all[0]; k++)
		for (int thread = 0; thread <= all[k].to_thread; thread++) {
			s[0] = s[1] = s[2] = 0;
			pid_t p = FORK({
				pthread_t t;
				on(SIGUSR1, SA_RESTART);
				if (thread)
					NEED(pthread_create(&t, NULL, second, NULL) == 0 && until(&s[1], 1));
				s[0] = 1;
				NEED(await_hits(SIGUSR1, 1));
				siginfo_t *i = &last[SIGUSR1];
				NEED(i->si_signo == SIGUSR1 && i->si_code == all[k].code);
				NEED(i->si_pid == getppid() && i->si_uid == getuid() && i->si_errno == 0);
				NEED(!all[k].value || i->si_value.sival_ptr == (void *)0x123456789abcl);
				NEED(last_tid == (thread ? s[1] : getpid()));
			});
			until(&s[0], 1);
			char name[64];
			snprintf(name, sizeof name, "%s%s: what the handler sees", all[k].name,
				 thread ? " to a thread" : "");
			int r = all[k].send(p, thread ? s[1] : p);
			if (r)
				kill(p, SIGKILL);
			check(fine(p) && r == 0, name);
		}
	/* Numbers that are nobody's. */
	pid_t p = FORK();
	status_of(p);
	check(kill(p, 0) == -1 && errno == ESRCH && kill(p, SIGUSR1) == -1 && errno == ESRCH, "kill: gone");
	check(send_tgkill(p, p) == -1 && errno == ESRCH, "tgkill: gone");
	check(send_queue(p, p) == -1 && errno == ESRCH, "sigqueue: gone");
	p = FORK(forever());
	check(send_tgkill(getpid(), p) == -1 && errno == ESRCH, "tgkill: a thread of another process");
	check(kill(p, 65) == -1 && errno == EINVAL && kill(p, -1) == -1 && errno == EINVAL, "kill: no such signal");
	siginfo_t i;
	memset(&i, 0, sizeof i);
	check(syscall(SYS_rt_sigqueueinfo, p, SIGUSR1, &i) == -1 && errno == EPERM,
	      "rt_sigqueueinfo: SI_USER is kill's");
	i.si_code = SI_TKILL;
	check(syscall(SYS_rt_sigqueueinfo, p, SIGUSR1, &i) == -1 && errno == EPERM, "rt_sigqueueinfo: SI_TKILL");
	i.si_code = SI_TIMER;
	check(syscall(SYS_rt_sigqueueinfo, p, 0, &i) == 0, "rt_sigqueueinfo: signal 0");
	kill(p, SIGKILL);
	check(kill(p, SIGUSR1) == 0, "kill: a zombie");
	check(killed(status_of(p), SIGKILL), "and it is waited for");
}

/* ---- masks that others don't know of ------------------------------------------------------------------------------- */

/* The receiver blocks a signal and makes no call at all before another process sends it. */
static void masks(void)
{
	static const int sigs[] = { SIGTERM, SIGUSR2, SIGINT, SIGHUP, SIGALRM, SIGPIPE, 45 };
	for (unsigned k = 0; k < sizeof sigs / sizeof sigs[0]; k++) {
		int sig = sigs[k];
		s[0] = s[1] = s[2] = 0;
		pid_t p = FORK({
			blocking(SIG_BLOCK, sig);
			__atomic_store_n(&s[0], 1, __ATOMIC_SEQ_CST);
			while (!__atomic_load_n(&s[1], __ATOMIC_SEQ_CST))
				__builtin_ia32_pause();
			s[2] = is_pending(sig);
			blocking(SIG_UNBLOCK, sig);
			_exit(98);
		});
		until(&s[0], 1);
		kill(p, sig);
		ms(5);
		s[1] = 1;
		char name[64];
		snprintf(name, sizeof name, "signal %d blocked without another call", sig);
		int st = status_of(p);
		check(s[2] && killed(st, sig), name);
	}
	bool good = true;
	for (int k = 0; k < 30; k++) {
		s[2] = 0;
		pid_t q = FORK({
			blocking(SIG_BLOCK, SIGTERM);
			s[2] = 1;
			for (volatile int n = 0; n < 20000; n++)
				;
			NEED(k % 2 || !is_pending(SIGUSR1));
			for (int n = 0; n < 120000 && !is_pending(SIGTERM); n++)
				ms(1);
			NEED(is_pending(SIGTERM));
		});
		good &= until(&s[2], 1) && kill(q, SIGTERM) == 0 && fine(q);
	}
	check(good, "30 children that block SIGTERM, and get it");
}

/* ---- processes on their way ---------------------------------------------------------------------------------------- */

static volatile int rt_next;
static volatile bool rt_bad;

static void in_order(int sig, siginfo_t *i, void *uc)
{
	(void)sig;
	(void)uc;
	rt_bad |= i->si_value.sival_int != rt_next++;
}

/* A child gets signals from its first instruction on. */
static void young(void)
{
	bool good = true;
	for (int k = 0; k < 20; k++) {
		pid_t p = FORK(forever());
		good &= kill(p, SIGTERM) == 0 && killed(status_of(p), SIGTERM);
	}
	check(good, "SIGTERM to 20 new children");
	good = true;
	for (int k = 0; k < 20; k++) {
		pid_t p = FORK(forever());
		good &= kill(p, SIGBUS) == 0 && kill(p, SIGSEGV) == 0;
		int st = status_of(p);
		good &= killed(st, SIGBUS) || killed(st, SIGSEGV);
	}
	check(good, "SIGBUS and SIGSEGV to 20 new children");
	on(SIGUSR1, 0);
	on(SIGSEGV, 0);
	good = true;
	for (int k = 0; k < 20; k++) {
		pid_t p = FORK(NEED(await_hits(SIGUSR1, 1) && await_hits(SIGSEGV, 1));
			       NEED(last[SIGUSR1].si_pid == getppid()));
		good &= kill(p, SIGUSR1) == 0 && kill(p, SIGSEGV) == 0 && fine(p);
	}
	check(good && !hits[SIGUSR1] && !hits[SIGSEGV], "a handler in 20 new children");
	signal(SIGUSR1, SIG_DFL);
	signal(SIGSEGV, SIG_DFL);
	struct sigaction sa = { .sa_sigaction = in_order, .sa_flags = SA_SIGINFO };
	sigaction(RTN(3), &sa, NULL);
	good = true;
	for (int k = 0; k < 10; k++) {
		pid_t p = FORK({
			for (int n = 0; n < 60000 && rt_next < 100; n++)
				ms(1);
			NEED(rt_next == 100 && !rt_bad);
		});
		for (int n = 0; n < 100; n++)
			good &= sigqueue(p, RTN(3), (union sigval){ .sival_int = n }) == 0;
		good &= fine(p);
	}
	check(good, "100 queued signals in order to each of 10 new children");
	/* And with another signal and a mask in between. */
	good = true;
	on(SIGUSR1, SA_RESTART);
	for (int k = 0; k < 4; k++) {
		pid_t p = FORK({
			for (int n = 0; n < 20000 && rt_next < 1000; n++) {
				blocking(SIG_BLOCK, RTN(3));
				is_pending(RTN(3));
				blocking(SIG_UNBLOCK, RTN(3));
				sigset_t m;
				sigemptyset(&m);
				sigaddset(&m, n % 2 ? RTN(3) : SIGUSR1);
				struct timespec ts = { 0, 500000 };
				ppoll(NULL, 0, &ts, &m);
			}
			NEED(rt_next == 1000 && !rt_bad);
		});
		for (int n = 0; n < 1000; n++) {
			good &= sigqueue(p, RTN(3), (union sigval){ .sival_int = n }) == 0;
			if (n % 3 == 0)
				kill(p, SIGUSR1);
			if (n % 50 == 0)
				ms(1);
		}
		good &= fine(p);
	}
	check(good, "1,000 queued signals in order to a process that blocks and polls");
	signal(RTN(3), SIG_DFL);
	/* Stopped and continued while it is made. */
	good = true;
	for (int k = 0; k < 10; k++) {
		siginfo_t i;
		pid_t p = FORK(forever());
		kill(p, SIGSTOP);
		good &= waitid(P_PID, p, &i, WSTOPPED) == 0 && i.si_code == CLD_STOPPED;
		kill(p, SIGCONT);
		good &= waitid(P_PID, p, &i, WCONTINUED) == 0 && i.si_code == CLD_CONTINUED;
		kill(p, SIGTERM);
		good &= killed(status_of(p), SIGTERM);
	}
	check(good, "stopped, continued, ended while new");
}

#define EXECS 5
#define EXEC_SIGNALS 400

/* After exec: `procsig executed N`. The queue goes on where it was. */
static int executed(int turn)
{
	sigset_t set;
	siginfo_t i;
	struct timespec wait = { 60, 0 };
	struct sigaction sa;
	sigemptyset(&set);
	sigaddset(&set, RTN(3));
	s = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 3, 0);
	NEED(s != MAP_FAILED);
	sigprocmask(SIG_SETMASK, NULL, &set);
	NEED(sigismember(&set, RTN(3)) && !sigismember(&set, SIGUSR1));
	NEED(sigaction(SIGUSR2, NULL, &sa) == 0 && sa.sa_handler == SIG_IGN);
	NEED(sigaction(SIGURG, NULL, &sa) == 0 && sa.sa_handler == SIG_DFL);
	sigemptyset(&set);
	sigaddset(&set, RTN(3));
	for (int n = 0; n < EXEC_SIGNALS / EXECS; n++) {
		NEED(sigtimedwait(&set, &i, &wait) == RTN(3));
		NEED(i.si_code == SI_QUEUE && i.si_pid == getppid() && i.si_value.sival_int == s[0]);
		s[0]++;
	}
	if (turn == EXECS)
		return 0;
	char number[16];
	snprintf(number, sizeof number, "%d", turn + 1);
	execl("/proc/self/exe", "procsig", "executed", number, NULL);
	return 97;
}

static void exec(void)
{
	int fd = memfd_create("shared", 0);
	if (fd != 3) {
		dup2(fd, 3);
		close(fd);
	}
	if (ftruncate(3, 4096))
		abort();
	volatile int *m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 3, 0);
	pid_t p = FORK({
		blocking(SIG_BLOCK, RTN(3));
		on(SIGURG, 0);
		signal(SIGUSR2, SIG_IGN);
		m[1] = 1;
		execl("/proc/self/exe", "procsig", "executed", "1", NULL);
		_exit(96);
	});
	until(&m[1], 1);
	bool good = true;
	for (int n = 0; n < EXEC_SIGNALS; n++) {
		good &= sigqueue(p, RTN(3), (union sigval){ .sival_int = n }) == 0;
		good &= kill(p, SIGUSR2) == 0 && kill(p, SIGURG) == 0;
		if (n % 10 == 0)
			ms(1);
	}
	check(fine(p) && good && m[0] == EXEC_SIGNALS, "queued signals in order across five execs");
	close(3);
	/* One that ends it, at any time. */
	good = true;
	for (int k = 0; k < 12; k++) {
		s[0] = 0;
		p = FORK({
			s[0] = 1;
			execl("/bin/sleep", "sleep", "100", NULL);
		});
		until(&s[0], 1);
		struct timespec ts = { 0, k * 700000 };
		nanosleep(&ts, NULL);
		kill(p, SIGTERM);
		good &= killed(status_of(p), SIGTERM);
	}
	check(good, "SIGTERM at any time of an exec");
	/* A handler is gone after it, a signal before it was seen or is the end. */
	good = true;
	on(SIGUSR1, 0);
	for (int k = 0; k < 6; k++) {
		p = FORK({
			for (;;) {
				execl("/nonexistent/program", "x", NULL);
				if (hits[SIGUSR1])
					_exit(55);
			}
		});
		ms(k + 1);
		kill(p, SIGUSR1);
		int st = status_of(p);
		good &= WIFEXITED(st) && WEXITSTATUS(st) == 55;
	}
	check(good, "a handler during an exec that fails");
	signal(SIGUSR1, SIG_DFL);
}

/* ---- calls that sleep ------------------------------------------------------------------------------------------------ */

enum {
	C_READ,
	C_READV,
	C_WRITE,
	C_WRITEV,
	C_OPEN_FIFO,
	C_WAIT4,
	C_WAITID,
	C_WAITID_PIDFD,
	C_ACCEPT,
	C_CONNECT,
	C_RECV,
	C_RECVMSG,
	C_SEND,
	C_SENDMSG,
	C_RECV_TIMEO,
	C_SEND_TIMEO,
	C_READ_TIMEO,
	C_ACCEPT_TIMEO,
	C_FLOCK,
	C_SETLKW,
	C_OFD_SETLKW,
	C_MQ_RECEIVE,
	C_MQ_SEND,
	C_FUTEX,
	C_FUTEX_TIMED,
	C_SEM_WAIT,
	C_EVENTFD,
	C_TIMERFD,
	C_INOTIFY,
	C_SIGNALFD,
	C_PTY,
	C_SPLICE,
	C_PAUSE,
	C_SIGSUSPEND,
	C_SIGTIMEDWAIT,
	C_SIGWAITINFO,
	C_POLL,
	C_PPOLL,
	C_SELECT,
	C_PSELECT,
	C_EPOLL,
	C_EPOLL_PWAIT,
	C_MSGRCV,
	C_MSGSND,
	C_SEMOP,
	C_SEMTIMEDOP,
	C_NANOSLEEP,
	C_CLOCK_NANOSLEEP,
	C_CLOCK_NANOSLEEP_ABS,
	NR_CALLS
};

/* restarts: with SA_RESTART. Without it, all end with EINTR. */
static const struct {
	const char *name;
	bool restarts;
} calls[NR_CALLS] = {
	[C_READ] = { "read, pipe", true },
	[C_READV] = { "readv, pipe", true },
	[C_WRITE] = { "write, pipe", true },
	[C_WRITEV] = { "writev, pipe", true },
	[C_OPEN_FIFO] = { "open, FIFO", true },
	[C_WAIT4] = { "wait4", true },
	[C_WAITID] = { "waitid", true },
	[C_WAITID_PIDFD] = { "waitid, pidfd", true },
	[C_ACCEPT] = { "accept", true },
	[C_CONNECT] = { "connect", true },
	[C_RECV] = { "recv", true },
	[C_RECVMSG] = { "recvmsg", true },
	[C_SEND] = { "send", true },
	[C_SENDMSG] = { "sendmsg", true },
	[C_RECV_TIMEO] = { "recv, SO_RCVTIMEO", false },
	[C_SEND_TIMEO] = { "send, SO_SNDTIMEO", false },
	[C_READ_TIMEO] = { "read, SO_RCVTIMEO", false },
	[C_ACCEPT_TIMEO] = { "accept, SO_RCVTIMEO", false },
	[C_FLOCK] = { "flock", true },
	[C_SETLKW] = { "fcntl, F_SETLKW", true },
	[C_OFD_SETLKW] = { "fcntl, F_OFD_SETLKW", true },
	[C_MQ_RECEIVE] = { "mq_receive", true },
	[C_MQ_SEND] = { "mq_send", true },
	[C_FUTEX] = { "futex", true },
	[C_FUTEX_TIMED] = { "futex, timeout", false },
	[C_SEM_WAIT] = { "sem_wait", true },
	[C_EVENTFD] = { "read, eventfd", true },
	[C_TIMERFD] = { "read, timerfd", true },
	[C_INOTIFY] = { "read, inotify", true },
	[C_SIGNALFD] = { "read, signalfd", true },
	[C_PTY] = { "read, terminal", true },
	[C_SPLICE] = { "splice", true },
	[C_PAUSE] = { "pause", false },
	[C_SIGSUSPEND] = { "sigsuspend", false },
	[C_SIGTIMEDWAIT] = { "sigtimedwait", false },
	[C_SIGWAITINFO] = { "sigwaitinfo", false },
	[C_POLL] = { "poll", false },
	[C_PPOLL] = { "ppoll", false },
	[C_SELECT] = { "select", false },
	[C_PSELECT] = { "pselect", false },
	[C_EPOLL] = { "epoll_wait", false },
	[C_EPOLL_PWAIT] = { "epoll_pwait", false },
	[C_MSGRCV] = { "msgrcv", false },
	[C_MSGSND] = { "msgsnd", false },
	[C_SEMOP] = { "semop", false },
	[C_SEMTIMEDOP] = { "semtimedop", false },
	[C_NANOSLEEP] = { "nanosleep", false },
	[C_CLOCK_NANOSLEEP] = { "clock_nanosleep", false },
	[C_CLOCK_NANOSLEEP_ABS] = { "clock_nanosleep, absolute", false },
};

/* What a call needs; made by prepare() in the process that makes the call and its helper. */
static int fds[2], fd2, listener, ids[2];
static char path[200];
static struct sockaddr_un addr;
static socklen_t addr_len;
static mqd_t mq;
static pid_t kid;
static struct {
	long type;
	char data[4000];
} msg;

static void fill(int fd)
{
	static char big[65536];
	fcntl(fd, F_SETFL, O_NONBLOCK);
	while (write(fd, big, sizeof big) > 0)
		;
	while (write(fd, big, 1) > 0)
		;
	/* In a pVM the ring of a socket pair is full now; whoever uses more than write() has the host's buffer besides. */
	while (sendmsg(fd, &(struct msghdr){ .msg_iov = &(struct iovec){ big, 1 }, .msg_iovlen = 1 }, MSG_NOSIGNAL) > 0)
		;
	fcntl(fd, F_SETFL, 0);
}

static void timeout_opt(int fd, int opt)
{
	struct timeval tv = { 20, 0 };
	setsockopt(fd, SOL_SOCKET, opt, &tv, sizeof tv);
}

static void listen_at(int backlog)
{
	addr = (struct sockaddr_un){ .sun_family = AF_UNIX };
	addr_len = sizeof(sa_family_t) + 1 + snprintf(addr.sun_path + 1, 90, "procsig-%d", getpid());
	listener = socket(AF_UNIX, SOCK_STREAM, 0);
	NEED(bind(listener, (void *)&addr, addr_len) == 0 && listen(listener, backlog) == 0);
}

static void prepare(int k)
{
	snprintf(path, sizeof path, "%s/f%d", dir, k);
	switch (k) {
	case C_READ:
	case C_READV:
	case C_POLL:
	case C_PPOLL:
	case C_SELECT:
	case C_PSELECT:
	case C_EPOLL:
	case C_EPOLL_PWAIT:
	case C_SPLICE:
		NEED(pipe(fds) == 0);
		fd2 = k == C_SPLICE ? open("/dev/null", O_WRONLY) : epoll_create1(0);
		struct epoll_event ev = { .events = EPOLLIN };
		if (k != C_SPLICE)
			epoll_ctl(fd2, EPOLL_CTL_ADD, fds[0], &ev);
		break;
	case C_WRITE:
	case C_WRITEV:
		NEED(pipe(fds) == 0);
		fill(fds[1]);
		break;
	case C_OPEN_FIFO:
		unlink(path);
		NEED(mkfifo(path, 0600) == 0);
		break;
	case C_WAIT4:
	case C_WAITID:
	case C_WAITID_PIDFD:
		s[7] = 0;
		kid = FORK(until(&s[7], 1));
		fd2 = (int)syscall(SYS_pidfd_open, kid, 0);
		break;
	case C_ACCEPT:
	case C_ACCEPT_TIMEO:
		listen_at(5);
		if (k == C_ACCEPT_TIMEO)
			timeout_opt(listener, SO_RCVTIMEO);
		break;
	case C_CONNECT: /* the backlog is full */
		listen_at(0);
		fd2 = socket(AF_UNIX, SOCK_STREAM, 0);
		NEED(connect(fd2, (void *)&addr, addr_len) == 0);
		break;
	case C_RECV:
	case C_RECVMSG:
	case C_RECV_TIMEO:
	case C_READ_TIMEO:
	case C_SEND:
	case C_SENDMSG:
	case C_SEND_TIMEO:
		NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
		if (k == C_SEND || k == C_SENDMSG)
			fill(fds[0]);
		if (k == C_RECV_TIMEO || k == C_READ_TIMEO)
			timeout_opt(fds[0], SO_RCVTIMEO);
		if (k == C_SEND_TIMEO)
			timeout_opt(fds[0], SO_SNDTIMEO), fill(fds[0]);
		break;
	case C_FLOCK:
	case C_SETLKW:
	case C_OFD_SETLKW: {
		struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
		fd2 = open(path, O_RDWR | O_CREAT, 0600);
		fds[0] = open(path, O_RDWR);
		s[7] = s[8] = 0;
		kid = FORK({
			int f = open(path, O_RDWR);
			NEED(k == C_FLOCK ? flock(f, LOCK_EX) == 0 : fcntl(f, F_SETLK, &l) == 0);
			s[8] = 1;
			until(&s[7], 1);
		});
		NEED(until(&s[8], 1));
		break;
	}
	case C_MQ_RECEIVE:
	case C_MQ_SEND: {
		struct mq_attr a = { .mq_maxmsg = 1, .mq_msgsize = 8 };
		char name[40];
		snprintf(name, sizeof name, "/procsig%d", getpid());
		mq = mq_open(name, O_RDWR | O_CREAT, 0600, &a);
		NEED(mq >= 0);
		mq_unlink(name);
		if (k == C_MQ_SEND)
			NEED(mq_send(mq, "x", 1, 0) == 0);
		break;
	}
	case C_FUTEX:
	case C_FUTEX_TIMED:
	case C_SEM_WAIT:
		s[9] = 0;
		sem_init((sem_t *)(s + 32), 1, 0);
		break;
	case C_EVENTFD:
		fds[0] = eventfd(0, 0);
		break;
	case C_TIMERFD:
		fds[0] = timerfd_create(CLOCK_MONOTONIC, 0);
		break;
	case C_INOTIFY:
		fds[0] = inotify_init();
		NEED(inotify_add_watch(fds[0], dir, IN_CREATE) >= 0);
		break;
	case C_SIGNALFD:
	case C_SIGTIMEDWAIT:
	case C_SIGWAITINFO: {
		sigset_t set;
		sigemptyset(&set);
		sigaddset(&set, SIGUSR2);
		sigprocmask(SIG_BLOCK, &set, NULL);
		fds[0] = signalfd(-1, &set, 0);
		break;
	}
	case C_PTY:
		fds[1] = posix_openpt(O_RDWR | O_NOCTTY);
		NEED(fds[1] >= 0 && grantpt(fds[1]) == 0 && unlockpt(fds[1]) == 0);
		fds[0] = open(ptsname(fds[1]), O_RDWR | O_NOCTTY);
		NEED(fds[0] >= 0);
		break;
	case C_MSGRCV:
	case C_MSGSND:
		ids[0] = msgget(IPC_PRIVATE, 0600);
		msg.type = 1;
		if (k == C_MSGSND)
			while (msgsnd(ids[0], &msg, sizeof msg.data, IPC_NOWAIT) == 0)
				;
		break;
	case C_SEMOP:
	case C_SEMTIMEDOP:
		ids[1] = semget(IPC_PRIVATE, 1, 0600);
		break;
	}
}

static long make_call(int k)
{
	char c[8];
	struct iovec v = { c, 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	struct sembuf down = { 0, -1, 0 };
	struct timespec ts = { 20, 0 };
	struct timeval tv = { 20, 0 };
	struct pollfd p = { fds[0], POLLIN, 0 };
	struct epoll_event ev;
	siginfo_t i;
	fd_set set;
	sigset_t mask, usr2;
	uint64_t n;
	static char buf[4096];
	sigemptyset(&mask);
	sigemptyset(&usr2);
	sigaddset(&usr2, SIGUSR2);
	switch (k) {
	case C_READ:
	case C_READ_TIMEO:
	case C_PTY:
		return read(fds[0], c, 1);
	case C_READV:
		return readv(fds[0], &v, 1);
	case C_WRITE:
		return write(fds[1], c, 1);
	case C_WRITEV:
		return writev(fds[1], &v, 1);
	case C_OPEN_FIFO:
		return open(path, O_RDONLY);
	case C_WAIT4:
		return wait4(kid, NULL, 0, NULL);
	case C_WAITID:
		return waitid(P_PID, kid, &i, WEXITED);
	case C_WAITID_PIDFD:
		return waitid(3, fd2, &i, WEXITED);
	case C_ACCEPT:
	case C_ACCEPT_TIMEO:
		return accept(listener, NULL, NULL);
	case C_CONNECT: {
		int f = socket(AF_UNIX, SOCK_STREAM, 0);
		return connect(f, (void *)&addr, addr_len);
	}
	case C_RECV:
	case C_RECV_TIMEO:
		return recv(fds[0], c, 1, 0);
	case C_RECVMSG:
		return recvmsg(fds[0], &m, 0);
	case C_SEND:
	case C_SEND_TIMEO:
		return send(fds[0], c, 1, 0);
	case C_SENDMSG:
		return sendmsg(fds[0], &m, 0);
	case C_FLOCK:
		return flock(fd2, LOCK_EX);
	case C_SETLKW:
		return fcntl(fd2, F_SETLKW, &l);
	case C_OFD_SETLKW:
		return fcntl(fds[0], F_OFD_SETLKW, &l);
	case C_MQ_RECEIVE:
		return mq_receive(mq, c, 8, NULL);
	case C_MQ_SEND:
		return mq_send(mq, "y", 1, 0);
	case C_FUTEX:
	case C_FUTEX_TIMED:
		return syscall(SYS_futex, &s[9], FUTEX_WAIT, 0, k == C_FUTEX ? NULL : &ts, NULL, 0);
	case C_SEM_WAIT:
		return sem_wait((sem_t *)(s + 32));
	case C_EVENTFD:
	case C_TIMERFD:
		return read(fds[0], &n, 8);
	case C_INOTIFY:
	case C_SIGNALFD:
		return read(fds[0], buf, sizeof buf);
	case C_SPLICE:
		return splice(fds[0], NULL, fd2, NULL, 1, 0);
	case C_PAUSE:
		return pause();
	case C_SIGSUSPEND:
		return sigsuspend(&mask);
	case C_SIGTIMEDWAIT:
		return sigtimedwait(&usr2, &i, &ts);
	case C_SIGWAITINFO:
		return sigwaitinfo(&usr2, &i);
	case C_POLL:
		return poll(&p, 1, 20000);
	case C_PPOLL:
		return ppoll(&p, 1, &ts, &mask);
	case C_SELECT:
	case C_PSELECT:
		FD_ZERO(&set);
		FD_SET(fds[0], &set);
		return k == C_SELECT ? select(fds[0] + 1, &set, NULL, NULL, &tv)
				     : pselect(fds[0] + 1, &set, NULL, NULL, &ts, &mask);
	case C_EPOLL:
		return epoll_wait(fd2, &ev, 1, 20000);
	case C_EPOLL_PWAIT:
		return epoll_pwait(fd2, &ev, 1, -1, &mask);
	case C_MSGRCV:
		return msgrcv(ids[0], &msg, sizeof msg.data, 0, 0);
	case C_MSGSND:
		return msgsnd(ids[0], &msg, sizeof msg.data, 0);
	case C_SEMOP:
		return semop(ids[1], &down, 1);
	case C_SEMTIMEDOP:
		return semtimedop(ids[1], &down, 1, &ts);
	case C_NANOSLEEP:
		return nanosleep(&ts, NULL);
	case C_CLOCK_NANOSLEEP:
		errno = clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
		return errno ? -1 : 0;
	case C_CLOCK_NANOSLEEP_ABS:
		clock_gettime(CLOCK_MONOTONIC, &ts);
		ts.tv_sec += 20;
		errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
		return errno ? -1 : 0;
	}
	return -1;
}

/* In the helper, which has inherited everything: let the call end well. */
static void satisfy(int k, pid_t caller)
{
	char c[8];
	static char big[65536];
	struct sembuf up = { 0, 1, 0 };
	struct itimerspec soon = { { 0, 0 }, { 0, 1 } };
	uint64_t one = 1;
	switch (k) {
	case C_READ:
	case C_READV:
	case C_SPLICE:
		NEED(write(fds[1], "x", 1) == 1);
		break;
	case C_PTY:
		NEED(write(fds[1], "x\n", 2) == 2);
		break;
	case C_WRITE:
	case C_WRITEV:
		NEED(read(fds[0], big, sizeof big) > 0);
		break;
	case C_OPEN_FIFO:
		NEED(open(path, O_WRONLY) >= 0);
		break;
	case C_WAIT4:
	case C_WAITID:
	case C_WAITID_PIDFD:
	case C_FLOCK:
	case C_SETLKW:
	case C_OFD_SETLKW:
		s[7] = 1;
		break;
	case C_ACCEPT:
		NEED(connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&addr, addr_len) == 0);
		break;
	case C_CONNECT:
		NEED(accept(listener, NULL, NULL) >= 0);
		break;
	case C_RECV:
	case C_RECVMSG:
		NEED(send(fds[1], "x", 1, 0) == 1);
		break;
	case C_SEND:
	case C_SENDMSG:
		fcntl(fds[1], F_SETFL, O_NONBLOCK);
		while (read(fds[1], big, sizeof big) > 0)
			;
		break;
	case C_MQ_RECEIVE:
		NEED(mq_send(mq, "x", 1, 0) == 0);
		break;
	case C_MQ_SEND:
		NEED(mq_receive(mq, c, 8, NULL) == 1);
		break;
	case C_FUTEX:
		asleep(caller, caller); /* it would see the value, and not sleep */
		s[9] = 1;
		syscall(SYS_futex, &s[9], FUTEX_WAKE, 1, NULL, NULL, 0);
		break;
	case C_SEM_WAIT:
		sem_post((sem_t *)(s + 32));
		break;
	case C_EVENTFD:
		NEED(write(fds[0], &one, 8) == 8);
		break;
	case C_TIMERFD:
		timerfd_settime(fds[0], 0, &soon, NULL);
		break;
	case C_INOTIFY: {
		char name[240];
		snprintf(name, sizeof name, "%s/made%d", dir, getpid());
		close(open(name, O_CREAT | O_WRONLY, 0600));
		unlink(name);
		break;
	}
	case C_SIGNALFD:
		kill(caller, SIGUSR2);
		break;
	case C_SEMOP:
		semop(ids[1], &up, 1);
		break;
	}
}

/*
 * The call in a process of its own. A helper, another process, signals it until the call is over when EINTR is due;
 * else three times, and then lets the call end.
 */
static int one_call(int k, bool restart)
{
	bool ends_well = restart && calls[k].restarts;
	pid_t me = getpid();
	prepare(k);
	on(SIGUSR1, restart ? SA_RESTART : 0);
	s[3] = s[4] = 0;
	pid_t helper = FORK({
		until(&s[3], 1);
		for (int n = 0; n < (ends_well ? 3 : 10000) && !s[4]; n++) {
			ms(8);
			kill(me, SIGUSR1);
		}
		ms(4);
		if (ends_well)
			satisfy(k, me);
	});
	s[3] = 1;
	errno = 0;
	long r = make_call(k);
	int e = r < 0 ? errno : 0;
	s[4] = 1;
	int st = status_of(helper);
	s[7] = 1;
	if (k == C_MSGRCV || k == C_MSGSND)
		msgctl(ids[0], IPC_RMID, NULL);
	if (k == C_SEMOP || k == C_SEMTIMEDOP)
		semctl(ids[1], 0, IPC_RMID);
	if (kid && k != C_WAIT4)
		waitpid(kid, NULL, 0);
	if (ends_well ? r < 0 || hits[SIGUSR1] < 1 : e != EINTR) {
		dprintf(2, "  %s, %s SA_RESTART: %ld, %s, %d handlers\n", calls[k].name, restart ? "with" : "without",
			r, strerror(e), hits[SIGUSR1]);
		return 1;
	}
	return st != 0;
}

static void sleeping(void)
{
	for (int k = 0; k < NR_CALLS; k++) {
		bool a = fine(FORK(_exit(one_call(k, false)))), b = fine(FORK(_exit(one_call(k, true))));
		check(a && b, calls[k].name);
	}
}

/* Stopped and continued, without a handler: what the call does then is known of these. */
static void stopped(void)
{
	static const struct {
		int call;
		bool eintr;
	} all[] = { { C_READ, false },        { C_WAIT4, false },      { C_ACCEPT, false },     { C_RECV, false },
		    { C_FUTEX, false },       { C_SEM_WAIT, false },   { C_MQ_RECEIVE, false }, { C_FLOCK, false },
		    { C_SETLKW, false },      { C_POLL, false },       { C_SELECT, false },     { C_NANOSLEEP, false },
		    { C_PAUSE, false },       { C_SIGSUSPEND, false }, { C_EPOLL, true },       { C_SEMOP, true },
		    { C_SIGTIMEDWAIT, true }, { C_RECV_TIMEO, true },  { C_MSGRCV, false } };
	for (unsigned k = 0; k < sizeof all / sizeof all[0]; k++) {
		s[5] = s[6] = 0;
		pid_t p = FORK({
			prepare(all[k].call);
			on(SIGUSR1, 0);
			s[5] = 1;
			long r = make_call(all[k].call);
			s[6] = r < 0 && errno == EINTR ? 1 : 2;
			if (all[k].call == C_MSGRCV)
				msgctl(ids[0], IPC_RMID, NULL);
			if (all[k].call == C_SEMOP)
				semctl(ids[1], 0, IPC_RMID);
			s[7] = 1;
		});
		siginfo_t i;
		until(&s[5], 1);
		for (int n = 0; n < (all[k].eintr ? 3000 : 3) && !s[6]; n++) {
			ms(10);
			kill(p, SIGSTOP);
			if (waitid(P_PID, p, &i, WSTOPPED | WEXITED | WNOWAIT) || i.si_code != CLD_STOPPED)
				break;
			kill(p, SIGCONT);
			ms(10);
		}
		char name[100];
		snprintf(name, sizeof name, "stopped and continued: %s%s", calls[all[k].call].name,
			 all[k].eintr ? " is EINTR" : " goes on");
		bool good = s[6] == (all[k].eintr ? 1 : 0);
		for (int n = 0; n < 12000 && !s[6]; n++) {
			kill(p, SIGUSR1);
			ms(5);
		}
		check(fine(p) && good && s[6] == 1, name);
	}
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*fn)(void);
	} all[] = { { "senders", senders }, { "masks", masks },       { "young", young },
		    { "exec", exec },       { "sleeping", sleeping }, { "stopped", stopped } };
	if (argc > 2 && !strcmp(argv[1], "executed"))
		return executed(atoi(argv[2]));
	setvbuf(stdout, NULL, _IOLBF, 0);
	const char *tmp = getenv("TMPDIR");
	snprintf(dir, sizeof dir, "%s/procsig-XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(dir))
		return 251;
	s = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (unsigned k = 0; k < sizeof all / sizeof all[0]; k++) {
		if (!is_wanted(argc, argv, all[k].name))
			continue;
		memset((void *)s, 0, 4096);
		all[k].fn();
		check(wait(NULL) == -1 && errno == ECHILD, "no child left");
	}
	check_named(argc);
	char cmd[200];
	snprintf(cmd, sizeof cmd, "rm -rf %s", dir);
	if (system(cmd))
		return 252;
	return verdict();
}
