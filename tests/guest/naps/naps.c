/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who waits for another process that runs on the same CPU: semaphores of all kinds, SysV and POSIX queues, pipes, socket pairs. What
 * came is had although whoever made it goes on without a call, or is killed at once; a sleeper that is killed, interrupted,
 * late, or whose object is removed, in its first millisecond and later. Passes on any x86-64 Linux. The exit code is the
 * number of the first check that failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include "../check.h"
#include "../cpus.h"

#define ROUNDS 300
#define TIMES 12

static int id[2], fd[2][2]; /* by way */
static mqd_t mq[2];
static volatile long *s; /* shared with all children */

struct kind {
	const char *name;
	bool (*make)(void);
	void (*end)(void);
	bool (*put)(int way, long v);
	bool (*get)(int way, long *v, int us); /* us: at most so long, where that can be said; 0: for ever */
	bool has_limit, is_removed;
	int late; /* errno when it was */
};

static struct timespec in(int us, bool real)
{
	struct timespec ts = { 0, 0 };
	if (real)
		clock_gettime(CLOCK_REALTIME, &ts);
	long ns = ts.tv_nsec + us * 1000l;
	return (struct timespec){ ts.tv_sec + ns / 1000000000, ns % 1000000000 };
}

static bool sem_make(void)
{
	id[0] = semget(IPC_PRIVATE, 2, 0600);
	return id[0] >= 0;
}
static void sem_remove(void) { semctl(id[0], 0, IPC_RMID); }
static bool sem_put(int way, long v)
{
	struct sembuf b = { (unsigned short)way, 1, 0 };
	s[way] = v; /* a semaphore has no text */
	return semop(id[0], &b, 1) == 0;
}
static bool sem_get(int way, long *v, int us)
{
	struct sembuf b = { (unsigned short)way, -1, 0 };
	struct timespec ts = in(us, false);
	bool good = semtimedop(id[0], &b, 1, us ? &ts : NULL) == 0;
	*v = s[way];
	return good;
}

static bool msg_make(void)
{
	id[0] = msgget(IPC_PRIVATE, 0600);
	return id[0] >= 0;
}
static void msg_remove(void) { msgctl(id[0], IPC_RMID, NULL); }
static bool msg_put(int way, long v)
{
	long m[2] = { way + 1, v };
	return msgsnd(id[0], m, sizeof *m, 0) == 0;
}
static bool msg_get(int way, long *v, int us)
{
	long m[2];
	(void)us;
	bool good = msgrcv(id[0], m, sizeof *m, way + 1, 0) == sizeof *m;
	*v = m[1];
	return good;
}

static bool mq_make(void)
{
	struct mq_attr a = { .mq_maxmsg = 4, .mq_msgsize = sizeof(long) };
	for (int i = 0; i < 2; i++) {
		char name[64];
		snprintf(name, sizeof name, "/kylinx-naps-%d-%d", (int)getpid(), i);
		mq[i] = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &a);
		mq_unlink(name);
	}
	return mq[0] != (mqd_t)-1 && mq[1] != (mqd_t)-1;
}
static void mq_end(void)
{
	mq_close(mq[0]);
	mq_close(mq[1]);
}
static bool mq_put(int way, long v) { return mq_send(mq[way], (char *)&v, sizeof v, 0) == 0; }
static bool mq_get(int way, long *v, int us)
{
	struct timespec ts = in(us, true);
	return (us ? mq_timedreceive(mq[way], (char *)v, sizeof *v, NULL, &ts)
		   : mq_receive(mq[way], (char *)v, sizeof *v, NULL)) == sizeof *v;
}

/* A semaphore of our own. */
static uint32_t *count_of(int way) { return (uint32_t *)&s[64 + way * 16]; }
static bool futex_make(void)
{
	*count_of(0) = *count_of(1) = 0;
	return true;
}
static void nothing(void) {}
static bool futex_put(int way, long v)
{
	s[way] = v;
	__atomic_add_fetch(count_of(way), 1, __ATOMIC_SEQ_CST);
	return syscall(SYS_futex, count_of(way), FUTEX_WAKE, 1, NULL, NULL, 0) >= 0;
}
static bool futex_get(int way, long *v, int us)
{
	const struct timespec ts = in(us, false);
	for (uint32_t n;;) {
		while ((n = __atomic_load_n(count_of(way), __ATOMIC_SEQ_CST)))
			if (__atomic_compare_exchange_n(count_of(way), &n, n - 1, false, __ATOMIC_SEQ_CST,
							__ATOMIC_SEQ_CST)) {
				*v = s[way];
				return true;
			}
		if (syscall(SYS_futex, count_of(way), FUTEX_WAIT, 0, us ? &ts : NULL, NULL, 0) && errno != EAGAIN)
			return false;
	}
}

static sem_t *posix_of(int way) { return (sem_t *)&s[128 + way * 16]; }
static bool posix_make(void) { return !sem_init(posix_of(0), 1, 0) && !sem_init(posix_of(1), 1, 0); }
static bool posix_put(int way, long v)
{
	s[way] = v;
	return !sem_post(posix_of(way));
}
static bool posix_get(int way, long *v, int us)
{
	const struct timespec ts = in(us, true);
	bool good = !(us ? sem_timedwait(posix_of(way), &ts) : sem_wait(posix_of(way)));
	*v = s[way];
	return good;
}

static bool pipe_make(void) { return !pipe(fd[0]) && !pipe(fd[1]); }
static bool pair_make(void)
{
	int p[2];
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, p))
		return false;
	fd[0][0] = p[0];
	fd[0][1] = p[1];
	fd[1][0] = dup(p[1]);
	fd[1][1] = dup(p[0]);
	return fd[1][0] >= 0 && fd[1][1] >= 0;
}
static void fd_end(void)
{
	for (int i = 0; i < 4; i++)
		close(fd[i / 2][i % 2]);
}
static bool fd_put(int way, long v) { return write(fd[way][1], &v, sizeof v) == sizeof v; }
static bool fd_get(int way, long *v, int us)
{
	(void)us;
	return read(fd[way][0], v, sizeof *v) == sizeof *v;
}

static struct kind kinds[] = {
	{ "semaphore", sem_make, sem_remove, sem_put, sem_get, true, true, EAGAIN },
	{ "SysV queue", msg_make, msg_remove, msg_put, msg_get, false, true, 0 },
	{ "POSIX queue", mq_make, mq_end, mq_put, mq_get, true, false, ETIMEDOUT },
	{ "futex", futex_make, nothing, futex_put, futex_get, true, false, ETIMEDOUT },
	{ "POSIX semaphore", posix_make, nothing, posix_put, posix_get, true, false, ETIMEDOUT },
	{ "pipe", pipe_make, fd_end, fd_put, fd_get, false, false, 0 },
	{ "socket pair", pair_make, fd_end, fd_put, fd_get, false, false, 0 },
};

static void told(const struct kind *k, const char *what, bool good)
{
	char name[100];
	snprintf(name, sizeof name, "%s: %s", k->name, what);
	check(good, name);
}

static bool fine(pid_t p)
{
	int st = -1;
	return p > 0 && waitpid(p, &st, 0) == p && st == 0;
}

/* Without a call. */
static bool comes(volatile long *p, long n)
{
	for (uint64_t end = __builtin_ia32_rdtsc() + 60000000000ull; __builtin_ia32_rdtsc() < end;)
		if (__atomic_load_n(p, __ATOMIC_SEQ_CST) >= n)
			return true;
	return false;
}

static bool to_and_fro(const struct kind *k, int rounds)
{
	long v;
	pid_t p = FORK({
		for (long n = 0; n < rounds; n++)
			NEED(k->get(0, &v, 0) && v == n && k->put(1, -n));
	});
	bool good = true;
	for (long n = 0; n < rounds && good; n++)
		good = k->put(0, n) && k->get(1, &v, 0) && v == -n;
	return fine(p) && good;
}

static void each(const struct kind *k)
{
	long v;
	if (!k->make()) {
		told(k, "made", false);
		return;
	}
	told(k, "to and fro", to_and_fro(k, ROUNDS));

	/* The next one is sent when it is known, by memory alone, that the last one was had. */
	s[4] = 0;
	pid_t p = FORK({
		for (long n = 1; n <= TIMES; n++) {
			NEED(k->get(0, &v, 0) && v == n);
			__atomic_store_n(&s[4], n, __ATOMIC_SEQ_CST);
		}
	});
	bool good = true;
	for (long n = 1; n <= TIMES && good; n++)
		good = k->put(0, n) && comes(&s[4], n);
	told(k, "from one that computes", fine(p) && good);

	good = true;
	for (long n = 0; n < TIMES && good; n++) {
		p = FORK({
			for (int i = 0; i < 20; i++) {
				NEED(k->get(0, &v, 0));
				if (i < 19)
					NEED(k->put(1, v));
			}
			s[5] = v;
		});
		/* Who sends the last one is dead before it has made another call. */
		pid_t q = FORK({
			for (int i = 0; i < 19; i++)
				NEED(k->put(0, i) && k->get(1, &v, 0) && v == i);
			k->put(0, 1000 + n);
			syscall(SYS_kill, getpid(), SIGKILL);
		});
		int st;
		good = waitpid(q, &st, 0) == q && WIFSIGNALED(st);
		good = fine(p) && good && s[5] == 1000 + n;
	}
	told(k, "from one that is killed at once", good);

	for (long n = 0; n < TIMES && good; n++) {
		s[4] = 0;
		p = FORK({
			for (;;) {
				s[4]++;
				k->get(0, &v, 0);
				k->put(1, v);
			}
		});
		for (long i = 0; i < n && good; i++)
			good = k->put(0, i) && k->get(1, &v, 0) && v == i;
		while (s[4] <= n)
			sched_yield();
		usleep((unsigned)(n % 10 * 150));
		kill(p, SIGKILL);
		waitpid(p, NULL, 0);
	}
	told(k, "the sleeper is killed: the next one has what comes", good && to_and_fro(k, TIMES));

	good = true;
	for (int n = 0; n < 10 && k->has_limit && good; n++) {
		errno = 0;
		good = !k->get(0, &v, 200 + n * 300) && errno == k->late;
	}
	if (k->has_limit)
		told(k, "late", good && to_and_fro(k, TIMES));
	k->end();
}

static void on_signal(int sig) { (void)sig; }

static void interrupted(const struct kind *k)
{
	struct sigaction sa = { .sa_handler = on_signal };
	long v;
	bool good = k->make();
	sigaction(SIGUSR1, &sa, NULL);
	for (int n = 0; n < TIMES && good; n++) {
		s[4] = 0;
		pid_t p = FORK({
			for (int i = 0; i < n % 4; i++)
				NEED(k->get(0, &v, 0));
			s[4] = 1;
			NEED(!k->get(0, &v, 0) && errno == EINTR);
			s[4] = 2;
		});
		for (int i = 0; i < n % 4; i++)
			good &= k->put(0, i);
		while (!s[4])
			sched_yield();
		usleep((unsigned)(n % 10 * 150));
		for (int i = 0; i < 2000 && s[4] < 2; i++) {
			kill(p, SIGUSR1);
			usleep(1000);
		}
		good = fine(p) && good;
	}
	told(k, "interrupted", good && to_and_fro(k, TIMES));
	k->end();
	for (int n = 0; n < TIMES && k->is_removed; n++) {
		good = k->make() && to_and_fro(k, 20) && good;
		s[4] = 0;
		pid_t p = FORK({
			s[4] = 1;
			NEED(!k->get(0, &v, 0) && (errno == EIDRM || (errno == EINVAL && n % 10 < 4)));
		});
		while (!s[4])
			sched_yield();
		usleep((unsigned)(n % 10 < 4 ? n % 10 * 150 : 20000));
		k->end();
		good = fine(p) && good;
	}
	if (k->is_removed)
		told(k, "removed", good);
}

int main(void)
{
	cpu_set_t all, one;
	setvbuf(stdout, NULL, _IOLBF, 0);
	s = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cpus_read(&all, &one);
	for (int cpus = 1; cpus <= 2; cpus++) {
		sched_setaffinity(0, sizeof one, cpus == 1 ? &one : &all);
		for (unsigned k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
			each(&kinds[k]);
			interrupted(&kinds[k]);
		}
	}
	check(wait(NULL) == -1 && errno == ECHILD, "no child left");
	return verdict();
}
