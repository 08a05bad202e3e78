/* SPDX-License-Identifier: Apache-2.0 */
/*
 * death [SEED [ROUNDS]]: in each round eight processes pass numbers round a ring, each link of another kind, and one of
 * them is killed at a random instant. The others must end within a second, each with the error that its links give for
 * a peer that died, or because it was told; no number may be lost, doubled or out of order before that. Then locks must
 * be free, undone or EOWNERDEAD, and no object is left. Passes on any Linux. Exit status 1: a round failed, its
 * number and seed are printed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../clock.h"
#include "../draw.h"

#define N 8
#define IN_FLIGHT 4
#define SLOTS 16
#define LOOK_MS 100      /* where nothing tells of a death: how often to look */
#define LATE_US 20000000 /* more than any load explains */
#define SIG (SIGRTMIN + 1)

enum { PIPE, SOCKET, MSG, SEM, MQ, COND, EVENT, SIGNAL }; /* link i leads from member i to i + 1 */
enum { LOCK, FULL, EMPTY };              /* of the semaphores; the lock, which uses SEM_UNDO, in a set of its own */
enum { FINE = 0, LOST = 2, WRONG, ODD }; /* exit status: ended by a death, by a number, by an error */

static struct area {
	volatile int go, ready, dead, glibc;
	volatile pid_t pid[N];
	volatile uint32_t passed[N];
	uint32_t sem_slot[SLOTS], event_slot[SLOTS];
	uint32_t sem_in, sem_out;
	pthread_mutex_t m;
	pthread_cond_t c;
	uint32_t slot[SLOTS], in, out;
} * s;
static int pipe_fd[2], sock[2], event, msgid, semid, lockid;
static mqd_t mq;

static struct timespec soon(clockid_t clock)
{
	struct timespec ts;
	clock_gettime(clock, &ts);
	ts.tv_nsec += LOOK_MS * 1000000;
	ts.tv_sec += ts.tv_nsec / 1000000000;
	ts.tv_nsec %= 1000000000;
	return ts;
}

/* A call failed with e, which is what comes of a death if `expected`. */
static _Noreturn void ends(bool expected, int i, const char *what, int e)
{
	if (expected || s->dead)
		_exit(FINE);
	fprintf(stderr, "member %d: %s: %s\n", i, what, strerror(e));
	_exit(ODD);
}

static int sem_do(int n, int op, int flags, bool timed)
{
	struct sembuf b = { n, op, flags };
	struct timespec ts = { 0, LOOK_MS * 1000000 };
	return semtimedop(n == LOCK ? lockid : semid, &b, 1, timed ? &ts : NULL);
}

/* ---- links: true when it went, false to try again ------------------------------------------------------------------- */

static void lock(int i)
{
	int e = pthread_mutex_lock(&s->m);
	if (e == EOWNERDEAD) { /* what it protects is good: numbers are written before the index */
		pthread_mutex_consistent(&s->m);
		pthread_mutex_unlock(&s->m);
		_exit(FINE);
	}
	if (e)
		ends(false, i, "mutex", e);
}

static bool send_number(int i, uint32_t n)
{
	struct {
		long type;
		uint32_t n;
	} m = { 1, n };
	struct timespec ts;
	union sigval v = { .sival_int = (int)n };
	uint64_t one = 1;
	switch (i) {
	case PIPE:
		if (write(pipe_fd[1], &n, 4) != 4)
			ends(errno == EPIPE, i, "pipe", errno);
		return true;
	case SOCKET:
		if (send(sock[1], &n, 4, MSG_NOSIGNAL) != 4)
			ends(errno == EPIPE || errno == ECONNRESET, i, "socket", errno);
		return true;
	case MSG:
		if (msgsnd(msgid, &m, 4, 0))
			ends(errno == EIDRM || errno == EINVAL, i, "msgsnd", errno);
		return true;
	case SEM:
		if (sem_do(EMPTY, -1, 0, true))
			return errno == EAGAIN ? false : (ends(false, i, "semop", errno), false);
		if (sem_do(LOCK, -1, SEM_UNDO, false))
			ends(false, i, "semop", errno);
		s->sem_slot[s->sem_in++ % SLOTS] = n;
		if (sem_do(LOCK, 1, SEM_UNDO, false) || sem_do(FULL, 1, 0, false))
			ends(false, i, "semop", errno);
		return true;
	case MQ:
		ts = soon(CLOCK_REALTIME);
		if (mq_timedsend(mq, (char *)&n, 4, 0, &ts))
			return errno == ETIMEDOUT ? false : (ends(false, i, "mq", errno), false);
		return true;
	case COND:
		lock(i);
		s->slot[s->in % SLOTS] = n;
		s->in++;
		s->glibc = 1;
		pthread_cond_signal(&s->c);
		s->glibc = 0;
		pthread_mutex_unlock(&s->m);
		return true;
	case EVENT:
		s->event_slot[n % SLOTS] = n;
		if (write(event, &one, 8) != 8)
			ends(false, i, "eventfd", errno);
		return true;
	default:
		if (sigqueue(s->pid[0], SIG, v))
			ends(errno == ESRCH, i, "sigqueue", errno);
		return true;
	}
}

static bool receive_number(int link, uint32_t expected, uint32_t *n)
{
	struct {
		long type;
		uint32_t n;
	} m;
	struct timespec ts;
	struct pollfd p = { event, POLLIN, 0 };
	sigset_t set;
	siginfo_t info;
	uint64_t one;
	ssize_t r;
	switch (link) {
	case PIPE:
		if ((r = read(pipe_fd[0], n, 4)) != 4)
			ends(r == 0, link + 1, "pipe", errno);
		return true;
	case SOCKET:
		if ((r = recv(sock[0], n, 4, 0)) != 4)
			ends(r == 0 || errno == ECONNRESET, link + 1, "socket", errno);
		return true;
	case MSG:
		if (msgrcv(msgid, &m, 4, 0, 0) != 4)
			ends(errno == EIDRM || errno == EINVAL, link + 1, "msgrcv", errno);
		*n = m.n;
		return true;
	case SEM:
		if (sem_do(FULL, -1, 0, true))
			return errno == EAGAIN ? false : (ends(false, link + 1, "semop", errno), false);
		if (sem_do(LOCK, -1, SEM_UNDO, false))
			ends(false, link + 1, "semop", errno);
		*n = s->sem_slot[s->sem_out++ % SLOTS];
		if (sem_do(LOCK, 1, SEM_UNDO, false) || sem_do(EMPTY, 1, 0, false))
			ends(false, link + 1, "semop", errno);
		return true;
	case MQ:
		ts = soon(CLOCK_REALTIME);
		if (mq_timedreceive(mq, (char *)n, 4, NULL, &ts) != 4)
			return errno == ETIMEDOUT ? false : (ends(false, link + 1, "mq", errno), false);
		return true;
	case COND:
		lock(link + 1);
		if (s->in == s->out) {
			ts = soon(CLOCK_REALTIME);
			int e = pthread_cond_timedwait(&s->c, &s->m, &ts);
			if (e == EOWNERDEAD) {
				pthread_mutex_consistent(&s->m);
				pthread_mutex_unlock(&s->m);
				_exit(FINE);
			}
			if (e && e != ETIMEDOUT)
				ends(false, link + 1, "condition", e);
		}
		bool any = s->in != s->out;
		if (any)
			*n = s->slot[s->out++ % SLOTS];
		pthread_mutex_unlock(&s->m);
		return any;
	case EVENT:
		if (poll(&p, 1, LOOK_MS) != 1)
			return false;
		if (read(event, &one, 8) != 8)
			ends(false, link + 1, "eventfd", errno);
		*n = s->event_slot[expected % SLOTS];
		return true;
	default:
		sigemptyset(&set);
		sigaddset(&set, SIG);
		ts = (struct timespec){ 0, LOOK_MS * 1000000 };
		if (sigtimedwait(&set, &info, &ts) != SIG)
			return false;
		*n = (uint32_t)info.si_value.sival_int;
		return true;
	}
}

/* ---- a round --------------------------------------------------------------------------------------------------------- */

static _Noreturn void member(int i)
{
	uint32_t expected = 1, n;
	if (i != 0)
		close(pipe_fd[1]);
	if (i != 1) {
		close(pipe_fd[0]);
		close(sock[1]);
	}
	if (i != 2)
		close(sock[0]);
	__atomic_add_fetch(&s->ready, 1, __ATOMIC_SEQ_CST);
	while (!s->go)
		usleep(200);
	if (i == 0)
		for (uint32_t k = 1; k <= IN_FLIGHT; k++)
			while (!send_number(0, k))
				if (s->dead)
					_exit(FINE);
	for (;;) {
		while (!receive_number((i + N - 1) % N, expected, &n))
			if (s->dead)
				_exit(FINE);
		if (n != expected) {
			if (s->dead)
				_exit(FINE);
			fprintf(stderr, "member %d: %u instead of %u\n", i, n, expected);
			_exit(WRONG);
		}
		s->passed[i] = expected++;
		while (!send_number(i, i ? n : n + IN_FLIGHT))
			if (s->dead)
				_exit(FINE);
	}
}

static bool objects_make(void)
{
	pthread_mutexattr_t ma;
	pthread_condattr_t ca;
	char name[40];
	struct mq_attr a = { .mq_maxmsg = 4, .mq_msgsize = 4 };
	memset(s, 0, sizeof *s);
	pthread_mutexattr_init(&ma);
	pthread_mutexattr_setpshared(&ma, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&ma, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&s->m, &ma);
	pthread_condattr_init(&ca);
	pthread_condattr_setpshared(&ca, PTHREAD_PROCESS_SHARED);
	pthread_cond_init(&s->c, &ca);
	snprintf(name, sizeof name, "/kx-death-%d", getpid());
	mq = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &a);
	mq_unlink(name);
	msgid = msgget(IPC_PRIVATE, 0600);
	semid = semget(IPC_PRIVATE, 3, 0600);
	lockid = semget(IPC_PRIVATE, 1, 0600);
	event = eventfd(0, EFD_SEMAPHORE);
	unsigned short v[3] = { [FULL] = 0, [EMPTY] = SLOTS }, one = 1;
	return mq >= 0 && msgid >= 0 && semid >= 0 && event >= 0 && !semctl(semid, 0, SETALL, v) &&
	       !semctl(lockid, 0, SETALL, &one) && !pipe(pipe_fd) && !socketpair(AF_UNIX, SOCK_STREAM, 0, sock);
}

/*
 * The member beside the one who was killed hangs in a condition of glibc's: natively, too. Who signals waits for a waiter
 * that was killed; who waits, when his time is over, for a lock in the condition that whoever was killed in
 * pthread_cond_signal() has left taken. Then nobody else gets on there either.
 */
static bool hangs_in_libc(unsigned i, unsigned victim)
{
	int64_t start = now_us();
	pid_t p;
	if (!s->glibc || !((i == COND && victim == COND + 1) || (i == COND + 1 && victim == COND)))
		return false;
	p = fork();
	if (!p) {
		pthread_cond_signal(&s->c);
		_exit(FINE);
	}
	while (p > 0 && now_us() - start < LATE_US) {
		if (waitpid(p, NULL, WNOHANG) == p)
			return false;
		usleep(10000);
	}
	return p > 0 && !kill(p, SIGKILL) && waitpid(p, NULL, 0) == p;
}

static bool round_once(unsigned number)
{
	pid_t pid[N];
	bool good = true;
	if (!objects_make()) {
		perror("death: objects");
		return false;
	}
	for (int i = 0; i < N; i++) {
		pid[i] = fork();
		if (!pid[i])
			member(i);
		if (pid[i] < 0) {
			perror("death: fork");
			exit(1);
		}
		s->pid[i] = pid[i];
	}
	close(pipe_fd[0]), close(pipe_fd[1]), close(sock[0]), close(sock[1]);
	unsigned victim = draw(N), delay = draw(draw(3) ? 30000 : 2000);
	while (s->ready < N)
		usleep(200);
	s->go = 1;
	for (int k = 0; number % 4 && !s->passed[0] && k < 2000; k++) /* mostly as all are busy */
		usleep(500);
	usleep(delay);
	kill(pid[victim], SIGKILL);
	int st;
	waitpid(pid[victim], &st, 0);
	if (!WIFSIGNALED(st) && !(WIFEXITED(st) && WEXITSTATUS(st) == FINE))
		good = false;
	s->dead = 1;
	msgctl(msgid, IPC_RMID, NULL);
	int64_t start = now_us();
	for (int left = N - 1; left;) {
		bool any = false;
		for (unsigned i = 0; i < N; i++) {
			if (i == victim || !pid[i] || waitpid(pid[i], &st, WNOHANG) != pid[i])
				continue;
			pid[i] = 0;
			left--;
			any = true;
			if (!WIFEXITED(st) || WEXITSTATUS(st) != FINE) {
				printf("round %u: victim %u after %u us: member %u: status %#x\n", number, victim,
				       delay, i, st);
				good = false;
			}
		}
		if (any || !left)
			continue;
		if (now_us() - start > 60000000) {
			for (unsigned i = 0; i < N; i++)
				if (i != victim && pid[i]) {
					bool glibc = hangs_in_libc(i, victim);
					printf("round %u: victim %u after %u us: member %u hangs%s\n", number, victim,
					       delay, i, glibc ? " in a condition of its libc" : "");
					good = good && glibc;
					kill(pid[i], SIGKILL);
					waitpid(pid[i], &st, 0);
				}
			break;
		}
		usleep(500);
	}
	int64_t took = now_us() - start;
	if (took > 1000000 && took < 60000000) {
		printf("round %u: %ld ms until the last ended\n", number, (long)(took / 1000));
		good = good && took < LATE_US;
	}
	int e = pthread_mutex_trylock(&s->m), v = semctl(lockid, 0, GETVAL);
	if ((e && e != EOWNERDEAD) || v != 1) {
		printf("round %u: victim %u after %u us: mutex %s, semaphore %d\n", number, victim, delay, strerror(e),
		       v);
		good = false;
	}
	semctl(semid, 0, IPC_RMID);
	semctl(lockid, 0, IPC_RMID);
	close(event);
	mq_close(mq);
	return good;
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1;
	unsigned rounds = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 30;
	int bad = 0;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIG);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdout, NULL, _IOLBF, 0);
	s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t passed = 0;
	for (unsigned i = 0; i < rounds; i++) {
		rng = ((uint64_t)seed << 32 | i) * 0x9e3779b97f4a7c15ull + 1;
		for (int k = 0; k < 8; k++)
			draw(2);
		bool good = round_once(i);
		passed += s->passed[0];
		if (!good) {
			printf("FAIL seed %u round %u\n", seed, i);
			bad++;
		}
	}
	printf("%s %u rounds, seed %u, %lu turns\n", bad ? "FAIL" : "ok", rounds, seed, (unsigned long)passed);
	return bad ? 1 : 0;
}
