/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sync [ROUNDS]: round trips between two processes by each kind of synchronisation, one after the other. Prints for
 * each kind, and for one and two CPUs, the median and the 99th percentile in ns: NAME.1cpu.p50 and so on.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <sched.h>
#include <semaphore.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_ROUNDS 20000

static int rounds = 2000, msgid, semid;
static mqd_t mq[2];
static struct area {
	sem_t sem[2];
	uint32_t word[2][16];
	pthread_mutex_t m;
	pthread_cond_t c[2];
	int turn;
} * area;
static int64_t took[MAX_ROUNDS];

static int64_t now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

/* Each: give the other, who is `to`, its turn; wait for mine. */
static void msg_give(int to)
{
	long m[2] = { to + 1, 0 };
	msgsnd(msgid, m, 8, 0);
}
static void msg_wait(int me)
{
	long m[2];
	while (msgrcv(msgid, m, 8, me + 1, 0) < 0 && errno == EINTR)
		;
}
static void sem_op(int n, int op)
{
	struct sembuf b = { n, op, 0 };
	while (semop(semid, &b, 1) < 0 && errno == EINTR)
		;
}
static void sem_give(int to) { sem_op(to, 1); }
static void sem_take(int me) { sem_op(me, -1); }
static void mq_give(int to) { mq_send(mq[to], "12345678", 8, 0); }
static void mq_take(int me)
{
	char b[8];
	mq_receive(mq[me], b, 8, NULL);
}
static void posix_give(int to) { sem_post(&area->sem[to]); }
static void posix_take(int me)
{
	while (sem_wait(&area->sem[me]))
		;
}
static void futex_give(int to)
{
	__atomic_store_n(&area->word[to][0], 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &area->word[to][0], FUTEX_WAKE, 1, NULL, NULL, 0);
}
static void futex_take(int me)
{
	while (!__atomic_exchange_n(&area->word[me][0], 0, __ATOMIC_SEQ_CST))
		syscall(SYS_futex, &area->word[me][0], FUTEX_WAIT, 0, NULL, NULL, 0);
}
static void cond_give(int to)
{
	pthread_mutex_lock(&area->m);
	area->turn = to + 1;
	pthread_cond_signal(&area->c[to]);
	pthread_mutex_unlock(&area->m);
}
static void cond_take(int me)
{
	pthread_mutex_lock(&area->m);
	while (area->turn != me + 1)
		pthread_cond_wait(&area->c[me], &area->m);
	area->turn = 0;
	pthread_mutex_unlock(&area->m);
}
static pid_t peer[2];
static void sig_give(int to) { kill(peer[to], SIGUSR1); }
static void sig_take(int me)
{
	sigset_t s;
	int n;
	(void)me;
	sigemptyset(&s);
	sigaddset(&s, SIGUSR1);
	sigwait(&s, &n);
}

static const struct {
	const char *name;
	void (*give)(int), (*take)(int);
} kinds[] = { { "sysv-msg", msg_give, msg_wait },      { "sysv-sem", sem_give, sem_take },
	      { "posix-mq", mq_give, mq_take },        { "posix-sem", posix_give, posix_take },
	      { "shm-futex", futex_give, futex_take }, { "mutex-cond", cond_give, cond_take },
	      { "signal", sig_give, sig_take } };

static int cmp(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
	return x < y ? -1 : x > y;
}

static void report(const char *name, int cpus, int n)
{
	qsort(took, n, sizeof took[0], cmp);
	printf("%s.%dcpu.p50 %ld\n%s.%dcpu.p99 %ld\n", name, cpus, (long)took[n / 2], name, cpus,
	       (long)took[n * 99 / 100]);
	fflush(stdout);
}

static void pin(int cpu)
{
	cpu_set_t all, one;
	static cpu_set_t usable;
	if (!CPU_COUNT(&usable))
		sched_getaffinity(0, sizeof usable, &usable);
	all = usable;
	CPU_ZERO(&one);
	for (int i = 0, k = 0; i < CPU_SETSIZE; i++)
		if (CPU_ISSET(i, &all) && k++ == cpu)
			CPU_SET(i, &one);
	sched_setaffinity(0, sizeof one, CPU_COUNT(&one) ? &one : &all);
}

int main(int argc, char **argv)
{
	if (argc > 1 && atoi(argv[1]) > 0 && atoi(argv[1]) <= MAX_ROUNDS)
		rounds = atoi(argv[1]);
	const char *only = argc > 2 ? argv[2] : NULL;
	cpu_set_t all;
	sched_getaffinity(0, sizeof all, &all);
	area = mmap(NULL, sizeof *area, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_t ma;
	pthread_mutexattr_init(&ma);
	pthread_mutexattr_setpshared(&ma, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&area->m, &ma);
	pthread_condattr_t ca;
	pthread_condattr_init(&ca);
	pthread_condattr_setpshared(&ca, PTHREAD_PROCESS_SHARED);
	for (int i = 0; i < 2; i++) {
		char name[40];
		struct mq_attr a = { .mq_maxmsg = 1, .mq_msgsize = 8 };
		sem_init(&area->sem[i], 1, 0);
		pthread_cond_init(&area->c[i], &ca);
		snprintf(name, sizeof name, "/kx-bench-%d-%d", getpid(), i);
		mq[i] = mq_open(name, O_RDWR | O_CREAT, 0600, &a);
		mq_unlink(name);
	}
	msgid = msgget(IPC_PRIVATE, 0600);
	semid = semget(IPC_PRIVATE, 2, 0600);
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, SIGUSR1);
	sigprocmask(SIG_BLOCK, &s, NULL);
	for (int cpus = 1; cpus <= (CPU_COUNT(&all) > 1 ? 2 : 1); cpus++) {
		for (unsigned k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
			if (only && strcmp(only, kinds[k].name))
				continue;
			int warm = rounds / 10;
			pin(0);
			peer[0] = getpid();
			pid_t p = fork();
			if (!p) {
				pin(cpus - 1);
				for (int i = 0; i < rounds + warm; i++) {
					kinds[k].take(1);
					kinds[k].give(0);
				}
				_exit(0);
			}
			peer[1] = p;
			for (int i = -warm; i < rounds; i++) {
				int64_t a = now();
				kinds[k].give(1);
				kinds[k].take(0);
				if (i >= 0)
					took[i] = now() - a;
			}
			waitpid(p, NULL, 0);
			report(kinds[k].name, cpus, rounds);
		}
		if (only && strcmp(only, "exit-wait"))
			continue;
		int n = rounds < 200 ? rounds : 200;
		for (int i = 0; i < n; i++) { /* its creation is before the clock starts */
			pid_t p = fork();
			if (!p) {
				pin(cpus - 1);
				posix_take(1);
				_exit(0);
			}
			usleep(2000);
			int64_t a = now();
			posix_give(1);
			waitpid(p, NULL, 0);
			took[i] = now() - a;
		}
		report("exit-wait", cpus, n);
	}
	msgctl(msgid, IPC_RMID, NULL);
	semctl(semid, 0, IPC_RMID);
	return 0;
}
