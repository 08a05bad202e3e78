/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sync [ROUNDS [KIND [CPUS]]]: round trips between two processes, or threads, by each kind of synchronisation, one after the
 * other. Prints for each kind, and for one and two CPUs, the median and the 99th percentile in ns: NAME_1cpu_p50 and so on.
 * Two runs with different ROUNDS of a kind give what one of it costs in exits.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <sched.h>
#include <semaphore.h>
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
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_ROUNDS 20000

static int rounds = 2000, msgid, semid, fds[6][2];
static mqd_t mq[2];
static struct area {
	sem_t sem[2];
	uint32_t word[2][16];
	pthread_mutex_t m;
	pthread_cond_t c[2];
	int turn;
} * area, own;
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
/* That of threads is private. */
static int futex_flag(void) { return area == &own ? FUTEX_PRIVATE_FLAG : 0; }
static void futex_give(int to)
{
	__atomic_store_n(&area->word[to][0], 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &area->word[to][0], FUTEX_WAKE | futex_flag(), 1, NULL, NULL, 0);
}
static void futex_take(int me)
{
	while (!__atomic_exchange_n(&area->word[me][0], 0, __ATOMIC_SEQ_CST))
		syscall(SYS_futex, &area->word[me][0], FUTEX_WAIT | futex_flag(), 0, NULL, NULL, 0);
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

static void queue_give(int to) { sigqueue(peer[to], SIGRTMIN, (union sigval){ 0 }); }
static void queue_take(int me)
{
	sigset_t s;
	(void)me;
	sigemptyset(&s);
	sigaddset(&s, SIGRTMIN);
	while (sigwaitinfo(&s, NULL) < 0)
		;
}
static volatile sig_atomic_t handled;
static void on_signal(int n)
{
	(void)n;
	handled = 1;
}
static void suspend_take(int me)
{
	sigset_t s;
	(void)me;
	sigprocmask(SIG_BLOCK, NULL, &s);
	sigdelset(&s, SIGUSR1);
	while (!handled)
		sigsuspend(&s);
	handled = 0;
}
static void signalfd_take(int me)
{
	struct signalfd_siginfo i;
	(void)me;
	if (read(fds[0][0], &i, sizeof i) < 0)
		_exit(1);
}
/* By who has which end: 1 and 2 pipes, 3 a socket pair, 4 and 5 an eventfd each. */
static void move(int fd, int writes)
{
	char b[8] = { 1 };
	if ((writes ? write(fd, b, 8) : read(fd, b, 8)) != 8)
		_exit(1);
}
static void pipe_give(int to) { move(fds[1 + to][1], 1); }
static void pipe_take(int me) { move(fds[1 + me][0], 0); }
static void pair_give(int to) { move(fds[3][!to], 1); }
static void pair_take(int me) { move(fds[3][me], 0); }
static void event_give(int to) { move(fds[4 + to][0], 1); }
static void event_take(int me) { move(fds[4 + me][0], 0); }

static const struct {
	const char *name;
	void (*give)(int), (*take)(int);
	bool threads; /* not processes */
} kinds[] = {
	{ "sysv_msg", msg_give, msg_wait, false },       { "sysv_sem", sem_give, sem_take, false },
	{ "posix_mq", mq_give, mq_take, false },         { "posix_sem", posix_give, posix_take, false },
	{ "shm_futex", futex_give, futex_take, false },  { "mutex_cond", cond_give, cond_take, false },
	{ "signal", sig_give, sig_take, false },         { "sigqueue", queue_give, queue_take, false },
	{ "sigsuspend", sig_give, suspend_take, false }, { "signalfd", sig_give, signalfd_take, false },
	{ "pipe", pipe_give, pipe_take, false },         { "socketpair", pair_give, pair_take, false },
	{ "eventfd", event_give, event_take, false },    { "thread_futex", futex_give, futex_take, true },
	{ "thread_cond", cond_give, cond_take, true },   { "thread_sem", posix_give, posix_take, true },
};

static int cmp(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
	return x < y ? -1 : x > y;
}

static void report(const char *name, int cpus, int n)
{
	qsort(took, n, sizeof took[0], cmp);
	printf("%s_%dcpu_p50 %ld\n%s_%dcpu_p99 %ld\n", name, cpus, (long)took[n / 2], name, cpus,
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

/* What the kinds of processes and of threads wait for. */
static void area_make(struct area *a, int shared)
{
	pthread_mutexattr_t ma;
	pthread_condattr_t ca;
	pthread_mutexattr_init(&ma);
	pthread_mutexattr_setpshared(&ma, shared);
	pthread_mutex_init(&a->m, &ma);
	pthread_condattr_init(&ca);
	pthread_condattr_setpshared(&ca, shared);
	for (int i = 0; i < 2; i++) {
		sem_init(&a->sem[i], shared, 0);
		pthread_cond_init(&a->c[i], &ca);
	}
}

static void objects_make(void)
{
	sigset_t s;
	struct mq_attr a = { .mq_maxmsg = 1, .mq_msgsize = 8 };
	for (int i = 0; i < 2; i++) {
		char name[40];
		snprintf(name, sizeof name, "/kx-bench-%d-%d", getpid(), i);
		mq[i] = mq_open(name, O_RDWR | O_CREAT, 0600, &a);
		mq_unlink(name);
		fds[4 + i][0] = eventfd(0, 0);
		if (pipe(fds[1 + i]))
			exit(1);
	}
	msgid = msgget(IPC_PRIVATE, 0600);
	semid = semget(IPC_PRIVATE, 2, 0600);
	sigemptyset(&s);
	sigaddset(&s, SIGUSR1);
	fds[0][0] = signalfd(-1, &s, 0);
	sigaddset(&s, SIGRTMIN);
	sigprocmask(SIG_BLOCK, &s, NULL);
	signal(SIGUSR1, on_signal);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds[3]) || fds[0][0] < 0 || fds[5][0] < 0)
		exit(1);
}

static int kind, cpus, warm;

static void *answer(void *p)
{
	pin(cpus - 1);
	for (int i = 0; i < rounds + warm; i++) {
		kinds[kind].take(1);
		kinds[kind].give(0);
	}
	return p;
}

static void measure(void)
{
	struct area *usual = area;
	pthread_t t;
	pid_t p = -1;
	pin(0);
	if (kinds[kind].threads) {
		area = &own;
		pthread_create(&t, NULL, answer, NULL);
	} else if (peer[0] = getpid(), !(p = fork())) {
		answer(NULL);
		_exit(0);
	}
	peer[1] = p;
	for (int i = -warm; i < rounds; i++) {
		int64_t a = now();
		kinds[kind].give(1);
		kinds[kind].take(0);
		if (i >= 0)
			took[i] = now() - a;
	}
	if (kinds[kind].threads)
		pthread_join(t, NULL);
	else
		waitpid(p, NULL, 0);
	area = usual;
	report(kinds[kind].name, cpus, rounds);
}

/* The end of a child, whose creation is before the clock starts. */
static void measure_end(void)
{
	int n = rounds < 200 ? rounds : 200;
	for (int i = 0; i < n; i++) {
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
	report("exit_wait", cpus, n);
}

int main(int argc, char **argv)
{
	if (argc > 1 && atoi(argv[1]) > 0 && atoi(argv[1]) <= MAX_ROUNDS)
		rounds = atoi(argv[1]);
	const char *only = argc > 2 ? argv[2] : NULL;
	cpu_set_t all;
	sched_getaffinity(0, sizeof all, &all);
	const int most = CPU_COUNT(&all) > 1 ? 2 : 1, which = argc > 3 ? atoi(argv[3]) : 0;
	if (which > most)
		return 77;
	warm = rounds / 10;
	area = mmap(NULL, sizeof *area, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	area_make(area, 1);
	area_make(&own, 0);
	objects_make();
	for (cpus = which ? which : 1; cpus <= (which ? which : most); cpus++) {
		for (kind = 0; kind < (int)(sizeof kinds / sizeof kinds[0]); kind++)
			if (!only || !strcmp(only, kinds[kind].name))
				measure();
		if (!only || !strcmp(only, "exit_wait"))
			measure_end();
	}
	msgctl(msgid, IPC_RMID, NULL);
	semctl(semid, 0, IPC_RMID);
	return 0;
}
