/* SPDX-License-Identifier: Apache-2.0 */
/* SysV semaphores. Part of ipc.c. */
#ifndef KX_GUEST_IPC_SEM_H
#define KX_GUEST_IPC_SEM_H
#include "ipc.h"

static inline int op1(int id, int n, int op, int flags)
{
	struct sembuf b = { n, op, flags };
	return semop(id, &b, 1);
}

static inline int top1(int id, int n, int op, int timeout_ms)
{
	struct sembuf b = { n, op, 0 };
	struct timespec ts = { timeout_ms / 1000, timeout_ms % 1000 * 1000000L };
	return semtimedop(id, &b, 1, &ts);
}

static inline void *undo_thread(void *arg)
{
	op1(*(int *)arg, 0, 1, SEM_UNDO);
	return NULL;
}

/*
 * Who sleeps and is woken is the last one, though who woke it may come to tell of itself later: where there is more to do than
 * there are CPUs. The set has been used much, and then in a way that only the kernel knows.
 */
static inline void sem_last_one(void)
{
	const int rounds = 150;
	pid_t idle[3];
	int id = semget(IPC_PRIVATE, 2, 0600), wrong = 0;
	SECTION("semctl, the last one");
	for (int i = 0; i < 40; i++)
		if (op1(id, 0, 1, 0) || op1(id, 0, -1, 0))
			line("busy", -1);
	R(op1(id, 1, 1, SEM_UNDO));
	R(op1(id, 1, -1, SEM_UNDO));
	for (int i = 0; i < 3; i++)
		idle[i] = CHILD(for (;;););
	pid_t p = CHILD(for (int i = 0; i < rounds; i++) if (op1(id, 0, -1, 0) || op1(id, 1, 1, 0)) _exit(1));
	for (int i = 0; i < rounds; i++) {
		if (op1(id, 0, 1, 0) || op1(id, 1, -1, 0))
			line("turn", -1);
		wrong += semctl(id, 0, GETPID) != p || semctl(id, 1, GETPID) != getpid();
	}
	R(wrong);
	R(status_of(p));
	for (int i = 0; i < 3; i++) {
		kill(idle[i], SIGKILL);
		R(status_of(idle[i]));
	}
	R(semctl(id, 0, IPC_RMID));
}

static inline void sem(void)
{
	SECTION("semget");
	key_t k = 0x4b580002;
	int id;
	struct semid_ds ds;
	union semun u;
	unsigned short v[8];
	R(semget(k, 1, 0600));
	R(semget(k, 0, IPC_CREAT | 0600));
	R(semget(k, -1, IPC_CREAT | 0600));
	R(semget(k, 1 << 20, IPC_CREAT | 0600));
	R((id = semget(k, 3, IPC_CREAT | 0604)) >= 0);
	R(semget(k, 3, IPC_CREAT | IPC_EXCL | 0600));
	R(semget(k, 4, 0));
	R(semget(k, 0, 0) == id);
	SECTION("semctl");
	u.buf = &ds;
	R(semctl(id, 0, IPC_STAT, u));
	R(ds.sem_nsems);
	R(ds.sem_perm.mode);
	R(ds.sem_otime == 0 && ds.sem_ctime != 0);
	R(semctl(id, 0, GETVAL));
	u.val = 5;
	R(semctl(id, 1, SETVAL, u));
	R(semctl(id, 1, GETVAL));
	R(semctl(id, 1, GETPID) == getpid());
	R(semctl(id, 0, GETPID));
	u.val = -1;
	R(semctl(id, 1, SETVAL, u));
	u.val = 32768;
	R(semctl(id, 1, SETVAL, u));
	u.val = 32767;
	R(semctl(id, 1, SETVAL, u));
	R(op1(id, 1, 1, 0));
	R(op1(id, 1, 1, SEM_UNDO));
	R(semctl(id, 3, GETVAL));
	R(semctl(id, -1, GETVAL));
	R(semctl(id, 3, SETVAL, u));
	R(semctl(-1, 0, GETVAL));
	R(semctl(id, 0, 99));
	u.array = v;
	R(semctl(id, 0, GETALL, u));
	R(v[0] * 100000 + v[1] + v[2]);
	v[0] = 1, v[1] = 2, v[2] = 3;
	R(semctl(id, 0, SETALL, u));
	R(semctl(id, 2, GETVAL));
	v[1] = 40000;
	R(semctl(id, 0, SETALL, u));
	R(semctl(id, 1, GETVAL));
	u.array = BAD;
	R(semctl(id, 0, SETALL, u));
	R(semctl(id, 0, GETALL, u));
	R(semctl(id, 0, IPC_STAT, u));
	u.buf = &ds;
	ds.sem_perm.mode = 0600;
	R(semctl(id, 0, IPC_SET, u));
	R(semctl(id, 0, IPC_STAT, u) == 0 && ds.sem_perm.mode == 0600);
	struct seminfo info;
	u.info = &info;
	R(semctl(0, 0, IPC_INFO, u) >= 0 && info.semmni > 0 && info.semmsl > 0 && info.semvmx == 32767);
	int top, seen = 0;
	R((top = semctl(0, 0, SEM_INFO, u)) >= 0 && info.semusz >= 1 && info.semaem >= 3);
	u.buf = &ds;
	for (int i = 0; i <= top; i++)
		seen += semctl(i, 0, SEM_STAT, u) == id && ds.sem_nsems == 3;
	R(seen);
	SECTION("semop");
	struct sembuf b[3] = { { 0, -1, 0 }, { 1, -1, 0 }, { 2, -4, IPC_NOWAIT } };
	R(semop(id, b, 3));
	R(semctl(id, 0, GETVAL));
	b[2].sem_op = -3;
	R(semop(id, b, 3));
	R(semctl(id, 0, GETVAL) + semctl(id, 2, GETVAL));
	R(semop(id, b, 0));
	R(semop(id, NULL, 1));
	R(semop(id, b, 501));
	R(semop(id, b, 100000));
	R(op1(id, 3, 1, 0));
	R(op1(-1, 0, 1, 0));
	R(op1(id, 0, -1, IPC_NOWAIT));
	R(op1(id, 1, 0, IPC_NOWAIT));
	R(op1(id, 0, 0, 0));
	int64_t t = now_ms();
	R(top1(id, 0, -1, 60));
	t = now_ms() - t;
	R(t >= 59);
	struct timespec wrong = { 0, 1000000000 };
	R(semtimedop(id, b, 1, &wrong));
	R(semtimedop(id, b, 1, BAD));
	R(top1(id, 0, -1, 0));
	SECTION("semop, sleeping");
	SLEEPER(, op1(id, 0, -1, 0), R(semctl(id, 0, GETNCNT)); R(op1(id, 0, 1, 0)));
	R(semctl(id, 0, GETNCNT));
	R(semctl(id, 0, GETPID) != getpid());
	R(op1(id, 0, 1, 0));
	SLEEPER(, op1(id, 0, 0, 0), R(semctl(id, 0, GETZCNT)); R(op1(id, 0, -1, 0)));
	SLEEPER(handle(SIGUSR1, 0), op1(id, 0, -1, 0), kill(s_, SIGUSR1));
	SLEEPER(handle(SIGUSR1, SA_RESTART), op1(id, 0, -1, 0), kill(s_, SIGUSR1));
	SLEEPER(handle(SIGUSR1, SA_RESTART), top1(id, 0, -1, 100000), kill(s_, SIGUSR1));
	SLEEPER(, op1(id, 0, -1, 0), kill(s_, SIGKILL));
	R(semctl(id, 0, GETNCNT));
	SECTION("SEM_UNDO");
	R(IN_CHILD(op1(id, 0, 3, SEM_UNDO); R(semctl(id, 0, GETVAL))));
	R(semctl(id, 0, GETVAL));
	R(IN_CHILD(op1(id, 0, 3, SEM_UNDO); raise(SIGKILL)));
	R(semctl(id, 0, GETVAL));
	u.val = 4;
	R(semctl(id, 0, SETVAL, u));
	R(IN_CHILD(op1(id, 0, -3, SEM_UNDO); R(semctl(id, 0, GETVAL)); raise(SIGKILL)));
	R(semctl(id, 0, GETVAL));
	/* SETVAL clears what would be undone */
	R(IN_CHILD(op1(id, 0, -3, SEM_UNDO); u.val = 7; semctl(id, 0, SETVAL, u)));
	R(semctl(id, 0, GETVAL));
	/* a child of it inherits nothing; threads share; exec keeps */
	R(IN_CHILD(op1(id, 0, -1, SEM_UNDO); R(IN_CHILD(R(semctl(id, 0, GETVAL)))); R(semctl(id, 0, GETVAL))));
	R(IN_CHILD(pthread_t th; pthread_create(&th, NULL, undo_thread, &id); pthread_join(th, NULL);
		   R(semctl(id, 0, GETVAL))));
	R(semctl(id, 0, GETVAL));
	fflush(stdout);
	int end[2];
	if (pipe(end))
		exit(1);
	pid_t p = CHILD(op1(id, 0, -2, SEM_UNDO); dup2(end[0], 0); close(end[1]); execl("/bin/cat", "cat", NULL));
	asleep(p, p);
	close(end[0]);
	R(semctl(id, 0, GETVAL));
	close(end[1]);
	R(status_of(p));
	R(semctl(id, 0, GETVAL));
	p = CHILD(op1(id, 0, -2, SEM_UNDO); for (;;) pause());
	asleep(p, p);
	R(semctl(id, 0, GETVAL));
	SLEEPER(, op1(id, 0, -7, 0), kill(p, SIGKILL));
	R(status_of(p));
	SECTION("sem, others");
	R(AS_NOBODY(R(semctl(id, 0, GETVAL)); R(op1(id, 0, 1, 0)); R(semctl(id, 0, IPC_RMID));
		    R(semctl(id, 0, IPC_SET, u)); R(semget(k, 1, 0004))));
	ds.sem_perm.mode = 0604;
	u.buf = &ds;
	R(semctl(id, 0, IPC_SET, u));
	u.val = 1;
	R(AS_NOBODY(R(semctl(id, 0, GETVAL)); R(op1(id, 0, 1, 0)); R(op1(id, 0, 0, IPC_NOWAIT));
		    R(semctl(id, 0, SETVAL, u))));
	SECTION("sem, removed");
	u.val = 0;
	R(semctl(id, 0, SETVAL, u));
	SLEEPER(, op1(id, 0, -1, 0), R(semctl(id, 0, IPC_RMID)));
	R(op1(id, 0, -1, 0));
	R(semctl(id, 0, IPC_RMID));
	R(semget(k, 1, 0));
	R((id = semget(IPC_PRIVATE, 250, 0600)) >= 0);
	R(op1(id, 249, 1, 0));
	R(op1(id, 250, 1, 0));
	R(semctl(id, 0, IPC_RMID));
}
#endif
