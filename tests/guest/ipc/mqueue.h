/* SPDX-License-Identifier: Apache-2.0 */
/* POSIX queues. Part of ipc.c. */
#ifndef KX_GUEST_IPC_MQUEUE_H
#define KX_GUEST_IPC_MQUEUE_H
#include "busy.h"
#include "ipc.h"

static pthread_mutex_t note_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t note_cond = PTHREAD_COND_INITIALIZER;
static int noted;
static inline void note_fn(union sigval v)
{
	pthread_mutex_lock(&note_lock);
	noted = v.sival_int;
	pthread_cond_signal(&note_cond);
	pthread_mutex_unlock(&note_lock);
}

static inline int qrcv(mqd_t q)
{
	char b[64] = "";
	unsigned prio = 99;
	int r = mq_receive(q, b, sizeof b, &prio);
	if (r >= 0)
		printf("  got %u \"%s\"\n", prio, b);
	return r;
}

static inline void mq(void)
{
	SECTION("mq_open");
	const char *n = "/kx-ipc-test";
	struct mq_attr a = { .mq_maxmsg = 4, .mq_msgsize = 64 }, o;
	mqd_t q, w;
	mq_unlink(n);
	R(mq_open(n, O_RDWR));
	R(mq_unlink(n));
	R(mq_open("kx", O_RDWR | O_CREAT, 0600, NULL));
	R(mq_open("/", O_RDWR | O_CREAT, 0600, NULL));
	R(mq_open("/a/b", O_RDWR | O_CREAT, 0600, NULL));
	char longname[300];
	memset(longname, 'x', sizeof longname);
	longname[0] = '/';
	longname[299] = 0;
	R(mq_open(longname, O_RDWR | O_CREAT, 0600, NULL));
	R(mq_open(n, O_RDWR | O_CREAT, 0600, &(struct mq_attr){ .mq_maxmsg = 0, .mq_msgsize = 1 }));
	R(mq_open(n, O_RDWR | O_CREAT, 0600, &(struct mq_attr){ .mq_maxmsg = 1, .mq_msgsize = 0 }));
	R(mq_open(n, O_RDWR | O_CREAT, 0600, &(struct mq_attr){ .mq_maxmsg = -1, .mq_msgsize = 1 }));
	R(mq_open(n, O_RDWR | O_CREAT, 0600, &(struct mq_attr){ .mq_maxmsg = 1 << 20, .mq_msgsize = 1 << 25 }));
	R(syscall(SYS_mq_open, "kx-bad", O_RDWR | O_CREAT, 0600, BAD));
	R(syscall(SYS_mq_open, BAD, O_RDWR, 0, NULL));
	R((q = mq_open(n, O_RDWR | O_CREAT | O_EXCL, 0600, &a)) >= 0);
	R(mq_open(n, O_RDWR | O_CREAT | O_EXCL, 0600, &a));
	R(fcntl(q, F_GETFD));
	R(mq_getattr(q, &o));
	R(o.mq_maxmsg * 10000 + o.mq_msgsize * 100 + o.mq_curmsgs * 10 + o.mq_flags);
	R(AS_NOBODY(R(mq_open(n, O_RDONLY)); R(mq_unlink(n))));
	SECTION("mq_send, mq_receive");
	R(mq_send(q, "low", 4, 1));
	R(mq_send(q, "high", 5, 31));
	R(mq_send(q, "low too", 8, 1));
	R(mq_send(q, "zero", 5, 0));
	R(mq_getattr(q, &o) == 0 && o.mq_curmsgs == 4);
	struct timespec past = { 1, 0 }, wrong = { 1, 1000000000 };
	R(mq_timedsend(q, "x", 2, 1, &past));
	R(mq_timedsend(q, "x", 2, 1, &wrong));
	struct timespec soon = in_ms(CLOCK_REALTIME, 60);
	int64_t t = now_ms();
	R(mq_timedsend(q, "x", 2, 1, &soon));
	t = now_ms() - t;
	R(t >= 55);
	R(mq_send(q, "x", 2, 32768));
	R(mq_send(q, m.text, 65, 0));
	R(mq_send(q, BAD, 4, 0));
	R(mq_receive(q, m.text, 63, NULL));
	for (int i = 0; i < 4; i++)
		R(qrcv(q));
	R(mq_timedreceive(q, m.text, 64, NULL, &past));
	R(mq_timedreceive(q, m.text, 64, NULL, &wrong));
	soon = in_ms(CLOCK_REALTIME, 60);
	R(mq_timedreceive(q, m.text, 64, NULL, &soon));
	R(mq_send(-1, "x", 2, 0));
	R(mq_receive(0x7fffffff, m.text, 64, NULL));
	R((w = mq_open(n, O_WRONLY | O_NONBLOCK)) >= 0);
	R(mq_receive(w, m.text, 64, NULL));
	for (int i = 0; i < 5; i++)
		R(mq_send(w, "abc", 4, i));
	struct pollfd pf = { q, POLLIN | POLLOUT, 0 };
	R(poll(&pf, 1, 0));
	R(pf.revents);
	for (int i = 0; i < 4; i++)
		R(qrcv(q));
	R(poll(&pf, 1, 0));
	R(pf.revents);
	a.mq_flags = O_NONBLOCK;
	R(mq_setattr(q, &a, &o));
	R(o.mq_flags);
	R(mq_getattr(q, &o));
	R(o.mq_flags == O_NONBLOCK);
	R(IN_CHILD(R(qrcv(q))));
	a.mq_flags = O_APPEND;
	R(mq_setattr(q, &a, &o));
	a.mq_flags = 0;
	R(IN_CHILD(R(mq_setattr(q, &a, NULL))));
	R(mq_getattr(q, &o) == 0 && o.mq_flags == 0);
	R(mq_close(w));
	R(mq_close(w));
	SECTION("mq, sleeping");
	SLEEPER(, qrcv(q), R(mq_send(q, "wake", 5, 3)));
	SLEEPER(handle(SIGUSR1, 0), qrcv(q), kill(s_, SIGUSR1));
	SLEEPER(handle(SIGUSR1, SA_RESTART), qrcv(q), kill(s_, SIGUSR1); ms(50); R(mq_send(q, "restarted", 10, 3)));
	for (int i = 0; i < 4; i++)
		mq_send(q, "fill", 5, 0);
	SLEEPER(, mq_send(q, "room", 5, 1), R(qrcv(q)));
	for (int i = 0; i < 4; i++)
		R(qrcv(q));
	SLEEPER(, qrcv(q), kill(s_, SIGKILL));
	SECTION("mq_notify");
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 77 };
	handle(SIGUSR1, 0);
	R(mq_notify(-1, &ev));
	R(mq_notify(q, &ev));
	R(mq_notify(q, &ev));
	R(IN_CHILD(R(mq_notify(q, &ev)); R(mq_notify(q, NULL)); R(mq_notify(q, &ev))));
	ev.sigev_signo = 99;
	R(mq_notify(q, NULL));
	R(mq_notify(q, &ev));
	ev.sigev_signo = SIGUSR1;
	ev.sigev_notify = 99;
	R(mq_notify(q, &ev));
	ev.sigev_notify = SIGEV_SIGNAL;
	R(syscall(SYS_mq_notify, q, BAD));
	R(mq_notify(q, &ev));
	pid_t p = CHILD(mq_send(q, "note", 5, 0));
	while (!got)
		ms(1);
	R(status_of(p));
	R(got == SIGUSR1 && got_info.si_code == SI_MESGQ && got_info.si_value.sival_int == 77 && got_info.si_pid == p);
	R(got_info.si_uid == getuid());
	R(qrcv(q));
	got = 0;
	R(mq_send(q, "again", 6, 0)); /* once only */
	ms(20);
	R(got);
	R(qrcv(q));
	R(mq_notify(q, &ev));
	SLEEPER(, qrcv(q), R(mq_send(q, "to the sleeper", 15, 0)); ms(30); R(got));
	R(mq_notify(q, NULL));
	R(mq_notify(q, NULL));
	p = CHILD(mq_notify(q, &ev); for (;;) pause());
	asleep(p, p);
	R(mq_notify(q, &ev));
	kill(p, SIGKILL);
	R(status_of(p));
	R(mq_notify(q, &ev));
	R(mq_notify(q, NULL));
	ev = (struct sigevent){ .sigev_notify = SIGEV_NONE };
	R(mq_notify(q, &ev));
	R(mq_notify(q, NULL));
	ev = (struct sigevent){ .sigev_notify = SIGEV_THREAD,
				.sigev_notify_function = note_fn,
				.sigev_value.sival_int = 5 };
	R(mq_notify(q, &ev));
	R(IN_CHILD(mq_send(q, "thread", 7, 0)));
	pthread_mutex_lock(&note_lock);
	while (!noted)
		pthread_cond_wait(&note_cond, &note_lock);
	pthread_mutex_unlock(&note_lock);
	R(noted);
	R(qrcv(q));
	SECTION("mq, removed");
	R(mq_unlink(n));
	R(mq_open(n, O_RDWR));
	R(mq_send(q, "still", 6, 0));
	R(qrcv(q));
	R(mq_close(q));
	R(mq_send(q, "x", 2, 0));
}

static inline void busy_mq(mqd_t q)
{
	char b[64];
	for (int i = 0; i < 40; i++)
		if (mq_send(q, "busy", 5, i % 3) || mq_receive(q, b, sizeof b, NULL) != 5)
			line("busy", -1);
}

static inline int set_of_one(int fd)
{
	fd_set s;
	struct timeval tv = { 0, 20000 };
	FD_ZERO(&s);
	FD_SET(fd, &s);
	return select(fd + 1, &s, NULL, NULL, &tv);
}

static inline int epoll_of_one(int fd)
{
	struct epoll_event ev = { .events = EPOLLIN };
	int e = epoll_create1(0), r = epoll_ctl(e, EPOLL_CTL_ADD, fd, &ev);
	if (!r)
		r = epoll_wait(e, &ev, 1, 20);
	close(e);
	return r;
}

static inline void mq_busy(void)
{
	SECTION("mq, busy");
	const char *n = "/kx-ipc-busy";
	struct mq_attr a = { .mq_maxmsg = 4, .mq_msgsize = 64 }, o;
	struct timespec past = { 1, 0 }, wrong = { 1, 1000000000 };
	char text[128];
	mqd_t q, r, w = -1;
	mq_unlink(n);
	R((q = mq_open(n, O_RDWR | O_CREAT | O_EXCL, 0600, &a)) >= 0);
#define B busy_mq(q)
	B, R(mq_send(q, "low", 4, 1));
	R(mq_send(q, "high", 5, 31));
	R(mq_send(q, "low too", 8, 1));
	R(mq_send(q, "zero", 5, 0));
	R(mq_timedsend(q, "x", 2, 1, &past));
	R(mq_timedsend(q, "x", 2, 1, &wrong));
	R(qrcv(q));
	R(qrcv(q));
	R(mq_getattr(q, &o) == 0 && o.mq_curmsgs == 2);
	R(mq_send(q, "second", 7, 2));
	for (int i = 0; i < 3; i++)
		R(qrcv(q));
	B, R(mq_timedreceive(q, text, 64, NULL, &past));
	B, R(mq_timedreceive(q, text, 64, NULL, &wrong));
	struct timespec soon = in_ms(CLOCK_REALTIME, 60);
	int64_t t = now_ms();
	B, R(mq_timedreceive(q, text, 64, NULL, &soon));
	R(now_ms() - t >= 55);
	B, R(mq_send(q, "x", 2, 32768));
	B, R(mq_send(q, text, 65, 0));
	B, R(mq_send(q, text, 64, 32767));
	R(mq_receive(q, text, 63, NULL));
	R(mq_receive(q, text, 100, NULL));
	B, R(mq_send(q, BAD, 4, 0));
	B, R(mq_send(q, "", 0, 7));
	R(qrcv(q));
	B, R(mq_send(q, "lost", 5, 7));
	R(mq_receive(q, BAD, 64, NULL));
	B, R(mq_send(q, "lost", 5, 7));
	R(mq_receive(q, text, 64, BAD));
	SECTION("mq, busy: descriptors");
	R((r = mq_open(n, O_RDONLY)) >= 0 && (w = mq_open(n, O_WRONLY)) >= 0);
	for (int i = 0; i < 40; i++)
		if (mq_send(w, "busy", 5, 0) || mq_receive(r, text, 64, NULL) != 5)
			line("busy", -1);
	R(mq_send(r, "x", 2, 0));
	R(mq_receive(w, text, 64, NULL));
	B, R(mq_send(w, "by w", 5, 0));
	R(qrcv(r));
	mqd_t d = dup(q);
	B, R(mq_send(d, "by d", 5, 0));
	R(qrcv(q));
	R(mq_close(d));
	R(mq_send(d, "x", 2, 0));
	B;
	/* its number is another's now */
	int e = eventfd(0, EFD_NONBLOCK), e2 = dup2(e, w);
	R(e2 == w && mq_send(w, "x", 2, 0));
	R(mq_getattr(q, &o) == 0 && o.mq_curmsgs == 0);
	close(e), close(w);
	R(close_range(r, r, 0));
	R(mq_receive(r, text, 64, NULL));
	B, R(IN_CHILD(B; R(mq_send(q, "the child's", 12, 0))));
	R(qrcv(q));
	R(IN_CHILD(mqd_t c = mq_open(n, O_RDWR); B; R(mq_send(c, "by name", 8, 0));
		   R(mq_getattr(q, &o) == 0 && o.mq_curmsgs == 1)));
	R(qrcv(q));
	a.mq_flags = O_NONBLOCK;
	B, R(mq_setattr(q, &a, NULL));
	R(qrcv(q));
	B, R(IN_CHILD(R(qrcv(q))));
	a.mq_flags = 0;
	B, R(mq_setattr(q, &a, NULL));
	pid_t p = vfork();
	if (!p)
		_exit(mq_send(q, "vfork", 6, 0) != 0);
	R(status_of(p));
	R(qrcv(q));
	fcntl(q, F_SETFD, 0);
	snprintf(text, sizeof text, "%d", q);
	B, R(IN_CHILD(execl("/proc/self/exe", "ipc", "mqsend", text, NULL)));
	R(qrcv(q));
	SECTION("mq, busy: sleeping");
	B;
	SLEEPER(, qrcv(q), R(mq_send(q, "wake", 5, 3)));
	B;
	SLEEPER(handle(SIGUSR1, 0), qrcv(q), kill(s_, SIGUSR1));
	B;
	for (int i = 0; i < 4; i++)
		mq_send(q, "fill", 5, 0);
	SLEEPER(, mq_send(q, "room", 5, 1), R(qrcv(q)));
	for (int i = 0; i < 4; i++)
		R(qrcv(q));
	B;
	SLEEPER(, qrcv(q), kill(s_, SIGKILL));
	B, R(AS_NOBODY(B; R(mq_send(q, "nobody's", 9, 0))));
	R(qrcv(q));
	SECTION("mq, busy: waited for");
	B, R(IN_CHILD(R(mq_send(q, "file", 5, 0)); int f = open("/dev/mqueue/kx-ipc-busy", O_RDONLY);
		      R(f < 0 || (read(f, text, sizeof text) > 0 && !strncmp(text, "QSIZE:5 ", 8)))));
	R(qrcv(q));
	R(mq_unlink(n));
	R((w = mq_open(n, O_RDWR | O_CREAT | O_EXCL, 0600, &a)) >= 0);
	B, busy_mq(w), R(mq_send(w, "x", 2, 0));
	struct pollfd pf[2] = { { q, POLLIN | POLLOUT, 0 }, { w, POLLIN, 0 } };
	R(poll(pf, 2, 0));
	R(pf[0].revents * 1000 + pf[1].revents);
	R(set_of_one(w));
	R(epoll_of_one(w));
	R(qrcv(w));
	B, busy_mq(w), R(set_of_one(w));
	R(epoll_of_one(w));
	SLEEPER(, set_of_one(w), );
	R(mq_close(w));
	R(mq_unlink(n));
	R((w = mq_open(n, O_RDWR | O_CREAT | O_EXCL, 0600, &a)) >= 0);
	if (!(p = vfork())) /* its parent has it still */
		_exit(close_range(3, ~0u, 0));
	R(status_of(p));
	p = CHILD(struct pollfd pc = { w, POLLIN, 0 }; R(poll(&pc, 1, 100000)));
	asleep(p, p);
	for (int i = 0; i < 40; i++)
		mq_send(w, "seen", 5, 0), i < 39 ? mq_receive(w, text, 64, NULL) : 0;
	R(status_of(p));
	R(qrcv(w));
	R(mq_close(w));
	R(mq_unlink(n));
	R((w = mq_open(n, O_RDWR | O_CREAT | O_EXCL, 0600, &a)) >= 0);
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 77 };
	handle(SIGUSR1, 0);
	busy_mq(w), R(mq_notify(w, &ev));
	p = CHILD(mq_send(w, "note", 5, 0));
	while (!got)
		ms(1);
	R(status_of(p));
	R(got_info.si_code == SI_MESGQ && got_info.si_pid == p);
	R(qrcv(w));
	R(mq_close(w));
	R(mq_unlink(n));
	/* left behind by whoever closes it last */
	R((q = mq_open(n, O_RDWR | O_CREAT | O_EXCL, 0600, &a)) >= 0);
	B, R(mq_send(q, "left", 5, 4));
	R(mq_close(q));
	R((q = mq_open(n, O_RDWR)) >= 0);
	R(qrcv(q));
	B, R(mq_close(q));
	R(mq_unlink(n));
#undef B
}

static inline void mq_turns(void)
{
	SECTION("mq, turns");
	struct mq_attr a = { .mq_maxmsg = 4, .mq_msgsize = 64 };
	mqd_t q = mq_open("/kx-ipc-turns", O_RDWR | O_CREAT, 0600, &a);
	int x[16] = { 0 };
	mq_unlink("/kx-ipc-turns");
	pid_t p = CHILD(for (int i = 0; i < TURNS; i++) {
		x[0] = i;
		if (mq_send(q, (char *)x, 4 + (unsigned)i % 60, 0))
			_exit(1);
		if (i % 256 == 5)
			ms(1);
	});
	pid_t c = CHILD(for (int i = 0; i < TURNS; i++) {
		if (mq_receive(q, (char *)x, 64, NULL) != 4 + i % 60 || x[0] != i)
			_exit(2);
		if (i % 256 == 99)
			ms(1);
	});
	R(status_of(p));
	R(status_of(c));
	R(mq_close(q));
}

/* One sends numbers, the other takes them and posts back, with pauses of all lengths; one of them is killed. What is left
 * in the queue must follow on what was taken, up to what was sent, and the semaphore must count it. */
static struct deaths {
	volatile int sent, taken, posted, waited;
} * d;

static inline void pause_some(unsigned *seed)
{
	*seed = *seed * 1103515245 + 12345;
	unsigned n = *seed >> 16;
	if (n % 64 == 0)
		usleep(n / 64 % 500);
	else if (n % 16 == 0)
		sched_yield();
}

static inline int next_left(int q, mqd_t m)
{
	struct {
		long type;
		int n;
	} x;
	struct timespec past = { 1, 0 };
	if (q >= 0)
		return msgrcv(q, &x, 4, 0, IPC_NOWAIT) == 4 ? x.n : -1;
	return mq_timedreceive(m, (char *)&x.n, 4, NULL, &past) == 4 ? x.n : -1;
}

static inline bool death(unsigned seed, bool posix)
{
	struct mq_attr a = { .mq_maxmsg = 8, .mq_msgsize = 4 };
	int q = posix ? -1 : msgget(IPC_PRIVATE, 0600), sem = semget(IPC_PRIVATE, 1, 0600), st;
	mqd_t m = posix ? mq_open("/kx-ipc-deaths", O_RDWR | O_CREAT, 0600, &a) : -1;
	struct {
		long type;
		int n;
	} x = { 1, 0 };
	memset(d, 0, sizeof *d);
	if (posix)
		mq_unlink("/kx-ipc-deaths");
	pid_t p[2];
	p[0] = CHILD(for (unsigned r = seed;; pause_some(&r)) {
		x.n = d->sent;
		if (posix ? mq_send(m, (char *)&x.n, 4, 0) : msgsnd(q, &x, 4, 0))
			_exit(1);
		d->sent++;
		if (op1(sem, 0, -1, 0))
			_exit(1);
		d->waited++;
	});
	p[1] = CHILD(for (unsigned r = seed + 1;; pause_some(&r)) {
		if (posix ? mq_receive(m, (char *)&x.n, 4, NULL) != 4 : msgrcv(q, &x, 4, 0, 0) != 4)
			_exit(2);
		d->taken = x.n + 1;
		for (int i = 0; i < 1 + (d->posted < 4); i++) { /* so that several are on their way */
			if (op1(sem, 0, 1, 0))
				_exit(2);
			d->posted++;
		}
	});
	while (!d->taken)
		usleep(100);
	usleep(seed * 7919 % 6000);
	kill(p[seed % 2], SIGKILL);
	usleep(500);
	kill(p[1 - seed % 2], SIGKILL);
	waitpid(p[0], &st, 0);
	bool good = WIFSIGNALED(st);
	waitpid(p[1], &st, 0);
	good = good && WIFSIGNALED(st);
	int first = next_left(q, m), n = first;
	for (int next; n >= 0 && (next = next_left(q, m)) >= 0; n = next)
		good = good && next == n + 1;
	if (first >= 0)
		good = good && (first == d->taken || first == d->taken + 1) && (n + 1 == d->sent || n == d->sent);
	else
		good = good && d->sent - d->taken >= -1 && d->sent - d->taken <= 1;
	int v = semctl(sem, 0, GETVAL), want = d->posted - d->waited;
	good = good && v >= want - 1 && v <= want + 1;
	if (!good)
		printf("seed %u: %d sent, %d taken, %d..%d left, %d posted, %d waited, value %d\n", seed, d->sent,
		       d->taken, first, n, d->posted, d->waited, v);
	good = good && !op1(sem, 0, 1, 0) && !semctl(sem, 0, IPC_RMID);
	if (posix)
		return good && !mq_send(m, (char *)&x.n, 4, 0) && next_left(q, m) == x.n && !mq_close(m);
	return good && !snd(q, 1, "abc", 0) && next_left(q, m) >= 0 && !msgctl(q, IPC_RMID, NULL);
}

static inline int deaths(unsigned seed, int rounds)
{
	int good = 0;
	d = shared(4096);
	for (int i = 0; i < rounds; i++)
		good += death(seed + (unsigned)i, i / 2 % 2);
	return good;
}

static inline void deaths_some(void)
{
	SECTION("deaths");
	R(deaths(1, 60));
}
#endif
