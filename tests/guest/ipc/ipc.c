/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UNIX IPC between processes, call by call and error by error: SysV segments, semaphores and queues, POSIX memory,
 * semaphores and queues, locks and conditions in shared memory, futexes, descriptors that are shared over fork, file
 * locks, UNIX sockets. Each line of the output is an expression and what it gave; nothing in it depends on when or
 * where it runs. tests/run.py runs it natively and in a pVM and compares: Linux is the reference. Exit status 1: a
 * process was lost or a wait took too long.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/select.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../asleep.h"
#include "../clock.h"

union semun {
	int val;
	struct semid_ds *buf;
	unsigned short *array;
	struct seminfo *info;
};

static void *volatile bad_address = (void *)8;
#define BAD bad_address

/* value, or the error's name */
static void line(const char *what, long r)
{
	int e = errno;
	if (r == -1)
		printf("%s: -1 %s\n", what, strerrorname_np(e));
	else
		printf("%s: %ld\n", what, r);
	fflush(stdout);
}
#define R(expr) (errno = 0, line(#expr, (long)(expr)))
/* A function of the pthread kind returns its error. */
#define P(expr) \
	do { \
		int e_ = (expr); \
		printf("%s: %s\n", #expr, e_ ? strerrorname_np(e_) : "0"); \
		fflush(stdout); \
	} while (0)
#define SECTION(name) printf("\n== %s\n", name)

static void ms(int n) { usleep(n * 1000); }

static struct timespec in_ms(clockid_t clock, int n)
{
	struct timespec ts;
	clock_gettime(clock, &ts);
	ts.tv_nsec += n % 1000 * 1000000L;
	ts.tv_sec += n / 1000 + ts.tv_nsec / 1000000000;
	ts.tv_nsec %= 1000000000;
	return ts;
}

static void *shared(size_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		exit(1);
	return p;
}

/* A child that runs these statements and exits with 0. */
#define CHILD(...) \
	({ \
		fflush(stdout); \
		pid_t p_ = fork(); \
		if (p_ < 0) \
			exit(1); \
		if (!p_) { \
			alarm(400); \
			__VA_ARGS__; \
			fflush(stdout); \
			_exit(0); \
		} \
		p_; \
	})
/* Whose turn it is to print: that of the child that is waited for. 1: of all children. */
static volatile pid_t *turn;
static void my_turn(void)
{
	while (*turn != getpid() && *turn != 1)
		ms(1);
}
/* In a child: the call may end at any time, but its line comes when the parent waits. */
#define LATE(what, call) \
	do { \
		errno = 0; \
		long r_ = (long)(call); \
		int e_ = errno; \
		my_turn(); \
		errno = e_; \
		line(what, r_); \
	} while (0)

/* The same, waited for: its status, or 1000 + signal. */
static long status_of(pid_t p)
{
	int st;
	*turn = p;
	if (waitpid(p, &st, 0) != p)
		exit(1);
	return WIFSIGNALED(st) ? 1000 + WTERMSIG(st) : WEXITSTATUS(st);
}
#define IN_CHILD(...) status_of(CHILD(__VA_ARGS__))
/* As somebody else, who has no privilege */
#define AS_NOBODY(...) \
	IN_CHILD(if (geteuid() == 0 && (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))) _exit(9); \
		 __VA_ARGS__)

static volatile sig_atomic_t got;
static siginfo_t got_info;
static void handler(int s, siginfo_t *i, void *u)
{
	(void)u;
	got = s;
	got_info = *i;
}
static void handle(int s, int flags)
{
	struct sigaction sa = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags };
	sigaction(s, &sa, NULL);
	got = 0;
}

/* A child in a call that sleeps gets a signal with a handler, or dies, or sees its object go. */
#define SLEEPER(before, call, after) \
	do { \
		pid_t s_ = CHILD(before; LATE(#call, call)); \
		asleep(s_, s_); \
		after; \
		long st_ = status_of(s_); \
		if (st_) \
			line("its status", st_); \
	} while (0)

/* ---- SysV segments ------------------------------------------------------------------------------------------------- */

static void shm(void)
{
	SECTION("shmget");
	key_t k = 0x4b580001;
	int id, id2;
	struct shmid_ds ds;
	R(shmget(k, 4096, 0600));
	R(shmget(k, 0, IPC_CREAT | 0600));
	R((id = shmget(k, 5000, IPC_CREAT | 0640)) >= 0);
	R(shmget(k, 4096, IPC_CREAT | IPC_EXCL | 0600));
	R(shmget(k, 5000, 0600) == id);
	R(shmget(k, 5001, 0600));
	R(shmget(k, 0, 0) == id);
	R(shmget(k, 1, 0) == id);
	R(shmget(IPC_PRIVATE, ~0ul, IPC_CREAT | 0600));
	R((id2 = shmget(IPC_PRIVATE, 4096, 0600)) != id);
	R(shmctl(id2, IPC_RMID, NULL));
	R(shmctl(id2, IPC_RMID, NULL));
	SECTION("shmctl");
	R(shmctl(id, IPC_STAT, &ds));
	R(ds.shm_segsz);
	R(ds.shm_nattch);
	R(ds.shm_perm.mode);
	R(ds.shm_perm.uid == geteuid() && ds.shm_perm.cuid == geteuid() && ds.shm_perm.gid == getegid());
	R(ds.shm_perm.__key == k);
	R(ds.shm_cpid == getpid());
	R(ds.shm_lpid);
	R(ds.shm_atime == 0 && ds.shm_dtime == 0 && ds.shm_ctime != 0);
	R(shmctl(id, IPC_STAT, BAD));
	R(shmctl(id, IPC_SET, BAD));
	R(shmctl(-1, IPC_STAT, &ds));
	R(shmctl(id, 99, &ds));
	ds.shm_perm.mode = 0604;
	R(shmctl(id, IPC_SET, &ds));
	R(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_perm.mode == 0604);
	struct shminfo info;
	struct shm_info used;
	R(shmctl(0, IPC_INFO, (void *)&info) >= 0 && info.shmmni > 0 && info.shmmax > 0 && info.shmmin == 1);
	R(shmctl(0, SHM_INFO, (void *)&used) >= 0 && used.used_ids >= 1 && used.shm_tot >= 2);
	int top = shmctl(0, SHM_INFO, (void *)&used), seen = 0;
	for (int i = 0; i <= top; i++)
		seen += shmctl(i, SHM_STAT, &ds) == id && ds.shm_segsz == 5000;
	R(seen);
	for (int i = seen = 0; i <= top; i++)
		seen += shmctl(i, SHM_STAT_ANY, &ds) == id;
	R(seen);
	R(shmctl(-1, SHM_STAT, &ds));
	SECTION("shmat");
	char *p, *q;
	R((p = shmat(id, NULL, 0)) != (void *)-1);
	R((long)shmat(-1, NULL, 0));
	R((long)shmat(id, p + 1, 0));
	R((long)shmat(id, p, 0));
	R((long)shmat(id, NULL, SHM_REMAP));
	R(shmat(id, p, SHM_REMAP) == p);
	R(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 1 && ds.shm_lpid == getpid() && ds.shm_atime);
	char *room = mmap(NULL, 65536, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	R((long)shmat(id, room + 8192, 0));
	R((long)shmat(id, room + 8192 + 100, SHM_REMAP));
	R(shmat(id, room + 8192 + 100, SHM_RND | SHM_REMAP) == room + 8192);
	room[8192 + 8191] = 0;
	R(IN_CHILD(room[8192 + 8192] = 0));
	R(shmdt(room + 8192));
	R(shmdt(room + 8192));
	R(munmap(room, 65536));
	R(shmdt(p + 1));
	R(p[4999] + p[8191]);
	R((q = shmat(id, NULL, SHM_RDONLY)) != (void *)-1 && q != p);
	strcpy(p, "one");
	R(strcmp(q, "one"));
	R(IN_CHILD(q[0] = 1));
	R(mprotect(q, 4096, PROT_READ | PROT_WRITE));
	R(IN_CHILD(if (strcmp(p, "one")) _exit(1); strcpy(p + 4, "two")));
	R(strcmp(q + 4, "two"));
	R(IN_CHILD(R(shmctl(id, IPC_STAT, &ds)); R(ds.shm_nattch)));
	R(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 2);
	R(IN_CHILD(shmdt(p); shmdt(q); R(shmdt(p)); R(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 2)));
	R(munmap(q, 4096));
	R(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 2);
	R(shmdt(q));
	R(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 1);
	R(mprotect(p, 4096, PROT_NONE));
	R(shmdt(p));
	R(msync(p, 8192, MS_ASYNC));
	/* in parts, one of them gone */
	R((p = shmat(id, NULL, 0)) != (void *)-1);
	R(munmap(p, 4096));
	R(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 1);
	R(shmdt(p));
	R(msync(p + 4096, 4096, MS_ASYNC));
	R((p = shmat(id, NULL, 0)) != (void *)-1);
	R(mprotect(p + 4096, 4096, PROT_READ));
	R(shmdt(p));
	R(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 0);
	R(msync(p + 4096, 4096, MS_ASYNC));
	R((p = shmat(id, NULL, SHM_EXEC)) != (void *)-1);
	strcpy(p, "one");
	R(IN_CHILD(pid_t c = vfork(); if (!c) _exit(shmctl(id, IPC_STAT, &ds) || ds.shm_nattch != 2); status_of(c)));
	SECTION("shm, others");
	R(AS_NOBODY(R((long)shmat(id, NULL, 0)); R(shmat(id, NULL, SHM_RDONLY) != (void *)-1); R(shmget(k, 1, 0006));
		    R(shmget(k, 1, 0004) >= 0); R(shmctl(id, IPC_STAT, &ds)); R(shmctl(id, IPC_SET, &ds));
		    R(shmctl(id, IPC_RMID, NULL)); R(shmctl(id, SHM_LOCK, NULL))));
	ds.shm_perm.mode = 0600;
	R(shmctl(id, IPC_SET, &ds));
	R(AS_NOBODY(R(shmctl(id, IPC_STAT, &ds)); R((long)shmat(id, NULL, SHM_RDONLY)); R(shmget(k, 1, 0004));
		    R(shmget(k, 1, 0) >= 0)));
	if (geteuid() == 0) {
		ds.shm_perm.uid = 65534;
		R(shmctl(id, IPC_SET, &ds));
		R(AS_NOBODY(R(shmctl(id, IPC_STAT, &ds)); R(ds.shm_perm.uid); R(ds.shm_perm.cuid);
			    R(shmctl(id, IPC_SET, &ds))));
	}
	SECTION("shm, removed");
	R(shmctl(id, IPC_RMID, NULL));
	R(shmctl(id, IPC_STAT, &ds));
	R(ds.shm_perm.mode & SHM_DEST);
	R(ds.shm_perm.__key);
	R(shmget(k, 1, 0));
	R(strcmp(p, "one"));
	R((q = shmat(id, NULL, 0)) != (void *)-1 && !strcmp(q, "one"));
	R(shmdt(q));
	R((id2 = shmget(k, 100, IPC_CREAT | 0600)) != id);
	R(IN_CHILD(R(shmat(id2, NULL, 0) != (void *)-1)));
	R(IN_CHILD(shmat(id2, NULL, 0); raise(SIGKILL)));
	R(shmctl(id2, IPC_STAT, &ds) == 0 && ds.shm_nattch == 0);
	R(shmctl(id2, IPC_RMID, NULL));
	R(shmctl(id2, IPC_STAT, &ds));
	R(shmdt(p));
	R(shmctl(id, IPC_STAT, &ds));
	R((long)shmat(id, NULL, 0));
	/* its creator's end does not remove it, and an exec detaches */
	R(IN_CHILD(if (shmget(k, 100, IPC_CREAT | 0600) < 0) _exit(1)));
	R((id = shmget(k, 0, 0)) >= 0);
	R((p = shmat(id, NULL, 0)) != (void *)-1);
	R(IN_CHILD(execl("/bin/true", "true", NULL)));
	R(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 1);
	R(shmctl(id, IPC_RMID, NULL));
	R(shmdt(p));
	R(ftok("/bin/sh", 'k') == ftok("/bin/sh", 'k') && ftok("/bin/sh", 'k') != ftok("/bin/sh", 'l'));
	R(ftok("/nonexistent", 'k'));
}

/* ---- SysV semaphores ------------------------------------------------------------------------------------------------- */

static int op1(int id, int n, int op, int flags)
{
	struct sembuf b = { n, op, flags };
	return semop(id, &b, 1);
}

static int top1(int id, int n, int op, int timeout_ms)
{
	struct sembuf b = { n, op, 0 };
	struct timespec ts = { timeout_ms / 1000, timeout_ms % 1000 * 1000000L };
	return semtimedop(id, &b, 1, &ts);
}

static void *undo_thread(void *arg)
{
	op1(*(int *)arg, 0, 1, SEM_UNDO);
	return NULL;
}

static void sem(void)
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

/* ---- SysV queues ----------------------------------------------------------------------------------------------------- */

struct m {
	long type;
	char text[16384 + 8];
};
static struct m m;

static int snd(int id, long type, const char *text, int flags)
{
	m.type = type;
	strcpy(m.text, text);
	return msgsnd(id, &m, strlen(text) + 1, flags);
}

static int rcv(int id, size_t size, long type, int flags)
{
	memset(&m, 0, sizeof m);
	int r = msgrcv(id, &m, size, type, flags);
	if (r >= 0)
		printf("  got type %ld \"%.20s\"\n", m.type, m.text);
	return r;
}

static void msg(void)
{
	SECTION("msgget");
	key_t k = 0x4b580003;
	int id;
	struct msqid_ds ds;
	R(msgget(k, 0600));
	R((id = msgget(k, IPC_CREAT | 0600)) >= 0);
	R(msgget(k, IPC_CREAT | IPC_EXCL | 0600));
	R(msgget(k, 0) == id);
	SECTION("msgctl");
	R(msgctl(id, IPC_STAT, &ds));
	R(ds.msg_qnum + ds.msg_cbytes + ds.msg_lspid + ds.msg_lrpid + ds.msg_stime + ds.msg_rtime);
	R(ds.msg_perm.mode);
	R(msgctl(id, IPC_STAT, BAD));
	R(msgctl(-1, IPC_STAT, &ds));
	R(msgctl(id, 99, &ds));
	size_t qbytes = ds.msg_qbytes;
	ds.msg_qbytes = 100;
	R(msgctl(id, IPC_SET, &ds));
	R(msgctl(id, IPC_STAT, &ds) == 0 && ds.msg_qbytes == 100);
	ds.msg_qbytes = qbytes;
	R(msgctl(id, IPC_SET, &ds));
	struct msginfo info;
	int top, seen = 0;
	R(msgctl(0, IPC_INFO, (void *)&info) >= 0 && info.msgmax > 0 && info.msgmni > 0);
	R((top = msgctl(0, MSG_INFO, (void *)&info)) >= 0 && info.msgpool >= 1);
	for (int i = 0; i <= top; i++)
		seen += msgctl(i, MSG_STAT, &ds) == id;
	R(seen);
	SECTION("msgsnd, msgrcv");
	R(snd(id, 0, "x", 0));
	R(snd(id, -1, "x", 0));
	R(msgsnd(id, BAD, 4, 0));
	R(msgsnd(id, &m, -1, 0));
	R(msgsnd(id, &m, info.msgmax + 1, 0));
	R(msgsnd(id, &m, 1 << 20, 0));
	R(msgsnd(-1, &m, 1, 0));
	R(msgrcv(id, BAD, 4, 0, IPC_NOWAIT));
	R(msgrcv(id, &m, -1, 0, IPC_NOWAIT));
	R(msgrcv(-1, &m, 4, 0, IPC_NOWAIT));
	R(rcv(id, 100, 0, IPC_NOWAIT));
	R(snd(id, 3, "three", 0));
	R(snd(id, 1, "one", 0));
	R(snd(id, 2, "two", 0));
	R(snd(id, 2, "two again", 0));
	R(msgctl(id, IPC_STAT, &ds));
	R(ds.msg_qnum * 1000 + ds.msg_cbytes);
	R(ds.msg_lspid == getpid() && ds.msg_lrpid == 0 && ds.msg_stime);
	R(rcv(id, 100, 0, MSG_COPY | IPC_NOWAIT));
	R(rcv(id, 100, 1, MSG_COPY | IPC_NOWAIT));
	R(rcv(id, 100, 9, MSG_COPY | IPC_NOWAIT));
	R(rcv(id, 100, 0, MSG_COPY));
	R(rcv(id, 100, 0, MSG_COPY | MSG_EXCEPT | IPC_NOWAIT));
	R(rcv(id, 100, 2, 0));
	R(rcv(id, 100, 9, IPC_NOWAIT));
	R(rcv(id, 100, -2, 0));
	R(rcv(id, 100, 2, MSG_EXCEPT));
	R(rcv(id, 100, -1, IPC_NOWAIT));
	R(rcv(id, 3, 0, 0));
	R(rcv(id, 3, 0, MSG_NOERROR));
	R(rcv(id, 100, 0, IPC_NOWAIT));
	R(msgsnd(id, &(struct m){ 5, "" }, 0, 0));
	R(msgrcv(id, &m, 0, 0, 0));
	R(m.type);
	/* any bytes, in a page that ends behind them */
	char *page = shared(8192);
	munmap(page + 4096, 4096);
	long *edge = (long *)(page + 4096 - 16);
	edge[0] = 6;
	memcpy(edge + 1, "12345678", 8);
	R(msgsnd(id, edge, 8, 0));
	R(msgsnd(id, edge, 9, 0));
	edge[0] = edge[1] = 0;
	R(msgrcv(id, edge, 8, 0, 0));
	R(edge[0] + (memcmp(edge + 1, "12345678", 8) == 0));
	R(msgsnd(id, edge, 8, 0));
	R(msgrcv(id, edge, 4096, 0, 0));
	mprotect(page, 4096, PROT_READ);
	R(msgsnd(id, edge, 8, 0));
	R(msgrcv(id, edge, 8, 0, 0));
	R(msgctl(id, IPC_STAT, &ds) == 0 && ds.msg_qnum == 0);
	munmap(page, 4096);
	SECTION("msg, full");
	m.type = 1;
	R(msgsnd(id, &m, 8000, 0));
	R(msgsnd(id, &m, 8000, 0));
	R(msgsnd(id, &m, 8000, IPC_NOWAIT));
	SLEEPER(, msgsnd(id, &m, 8000, 0), R(msgrcv(id, &m, 8000, 0, 0)));
	SLEEPER(handle(SIGUSR1, SA_RESTART), msgsnd(id, &m, 8000, 0), kill(s_, SIGUSR1));
	R(msgrcv(id, &m, 8000, 0, 0));
	R(msgrcv(id, &m, 8000, 0, 0));
	R(msgrcv(id, &m, 8000, 0, IPC_NOWAIT));
	SECTION("msg, sleeping");
	SLEEPER(, rcv(id, 100, 7, 0), R(snd(id, 6, "not you", 0)); R(snd(id, 7, "you", 0)));
	R(msgctl(id, IPC_STAT, &ds) == 0 && ds.msg_lspid == getpid() && ds.msg_lrpid != getpid());
	SLEEPER(handle(SIGUSR1, SA_RESTART), rcv(id, 100, 7, 0), kill(s_, SIGUSR1));
	SLEEPER(, rcv(id, 100, 7, 0), kill(s_, SIGKILL));
	R(snd(id, 7, "for the dead", 0));
	SECTION("msg, others");
	R(AS_NOBODY(R(rcv(id, 100, 0, IPC_NOWAIT)); R(snd(id, 1, "x", IPC_NOWAIT)); R(msgctl(id, IPC_STAT, &ds));
		    R(msgctl(id, IPC_RMID, NULL)); R(msgget(k, 0004))));
	R(msgctl(id, IPC_STAT, &ds));
	ds.msg_perm.mode = 0602;
	R(msgctl(id, IPC_SET, &ds));
	R(AS_NOBODY(R(rcv(id, 100, 0, IPC_NOWAIT)); R(snd(id, 1, "x", IPC_NOWAIT)); R(msgctl(id, IPC_SET, &ds))));
	SECTION("msg, removed");
	SLEEPER(, rcv(id, 100, 99, 0), R(msgctl(id, IPC_RMID, NULL)));
	R(snd(id, 1, "x", 0));
	R(rcv(id, 100, 0, 0));
	R(msgctl(id, IPC_RMID, NULL));
	R(msgget(k, 0));
}

/* ---- SysV objects that are busy ----------------------------------------------------------------------------------- */

/* Many operations in a row, none of which sleeps: from then on they may be made in another way, with the same results. */
static void busy_sem(int id, int n)
{
	for (int i = 0; i < 40; i++)
		if (op1(id, n, 1, 0) || op1(id, n, -1, 0))
			line("busy", -1);
}

static void busy_msg(int id)
{
	struct m *b = malloc(sizeof *b);
	for (int i = 0; i < 40; i++) {
		b->type = 1;
		if (msgsnd(id, b, 8, 0) || msgrcv(id, b, 8, 0, 0) != 8)
			line("busy", -1);
	}
	free(b);
}

static void sem_busy(void)
{
	SECTION("semop, busy");
	union semun u = { .val = 0 };
	struct semid_ds ds;
	unsigned short v[3];
	int id = semget(0x4b580012, 3, IPC_CREAT | 0600);
#define B busy_sem(id, 2)
	B, R(op1(id, 0, 5, 0));
	B, R(op1(id, 0, -3, IPC_NOWAIT));
	B, R(op1(id, 0, -3, IPC_NOWAIT));
	B, R(op1(id, 0, 0, IPC_NOWAIT));
	B, R(op1(id, 1, 0, IPC_NOWAIT));
	B, R(op1(id, 0, 32767, 0));
	B, R(op1(id, 0, -32768, IPC_NOWAIT));
	B, R(op1(id, 3, 1, 0));
	B, R(op1(id, 3, 0, IPC_NOWAIT));
	B, R(op1(id, 0, 0, 0x800));
	B, R(semop(id, NULL, 1));
	B, R(semop(id, &(struct sembuf){ 0 }, 0));
	B, R(top1(id, 1, -1, 30));
	struct timespec wrong = { 0, 1000000000 };
	B, R(semtimedop(id, &(struct sembuf){ 2, 1, 0 }, 1, &wrong));
	B, R(semtimedop(id, &(struct sembuf){ 2, 1, 0 }, 1, BAD));
	B, R(semctl(id, 0, GETVAL));
	B, R(semctl(id, 2, GETPID) == getpid());
	R(IN_CHILD(B; op1(id, 0, 1, 0)));
	R(semctl(id, 2, GETPID) != getpid() && semctl(id, 0, GETPID) != getpid());
	u.array = v;
	B, R(semctl(id, 0, GETALL, u));
	R(v[0] * 10000 + v[1] * 100 + v[2]);
	R(semctl(id, 2, GETPID) == getpid() && semctl(id, 0, GETPID) != getpid());
	time_t before = time(NULL);
	u.buf = &ds;
	B, R(semctl(id, 0, IPC_STAT, u) == 0 && ds.sem_otime >= before - 1 && ds.sem_otime <= time(NULL));
	time_t changed = ds.sem_ctime;
	ms(1100);
	B, R(semctl(id, 0, GETVAL) * 0 + semctl(id, 0, IPC_STAT, u) == 0 && ds.sem_ctime == changed);
	u.val = 9;
	B, R(semctl(id, 0, SETVAL, u));
	B, R(semctl(id, 0, GETVAL));
	v[0] = 1, v[1] = 2, v[2] = 3;
	u.array = v;
	B, R(semctl(id, 0, SETALL, u));
	B, R(semctl(id, 0, GETVAL) * 100 + semctl(id, 1, GETVAL) * 10 + semctl(id, 2, GETVAL));
	struct sembuf b[3] = { { 0, -1, 0 }, { 1, -2, 0 }, { 2, -3, 0 } };
	B, R(semop(id, b, 3));
	B, R(semctl(id, 0, GETVAL) * 100 + semctl(id, 1, GETVAL) * 10 + semctl(id, 2, GETVAL));
	B;
	SLEEPER(, op1(id, 0, -1, 0), R(semctl(id, 0, GETNCNT)); R(op1(id, 0, 1, 0)));
	R(op1(id, 0, 1, 0));
	B;
	SLEEPER(, op1(id, 0, 0, 0), R(semctl(id, 0, GETZCNT)); R(op1(id, 0, -1, 0)));
	B;
	SLEEPER(handle(SIGUSR1, SA_RESTART), op1(id, 0, -1, 0), kill(s_, SIGUSR1));
	B;
	SLEEPER(, op1(id, 0, -1, 0), kill(s_, SIGKILL));
	B, R(semctl(id, 0, GETNCNT));
	R(IN_CHILD(B; R(op1(id, 0, 4, SEM_UNDO)); B; R(op1(id, 0, 1, 0)); raise(SIGKILL)));
	B, R(semctl(id, 0, GETVAL));
	B, R(AS_NOBODY(R(op1(id, 0, 1, 0)); R(op1(id, 1, 0, IPC_NOWAIT)); R(semctl(id, 0, GETVAL));
		       R(semctl(id, 0, IPC_RMID))));
	B;
	SLEEPER(, op1(id, 1, -1, 0), R(semctl(id, 0, IPC_RMID)));
	R(op1(id, 0, 1, 0));
	/* Shared by users */
	R((id = semget(0x4b580012, 3, IPC_CREAT | 0666)) >= 0);
	B, R(op1(id, 0, 3, 0));
	B, R(AS_NOBODY(R(semctl(id, 0, GETVAL)); R(op1(id, 0, -1, 0)); B; R(op1(id, 0, -1, 0))));
	B, R(semctl(id, 0, GETVAL));
	pid_t p = vfork();
	if (!p)
		_exit(op1(id, 0, 1, 0) ? 1 : semctl(id, 0, GETVAL));
	R(status_of(p));
	R(IN_CHILD(B; execl("/bin/true", "true", NULL)));
	B, R(op1(id, 0, -2, IPC_NOWAIT));
	R(semctl(id, 0, IPC_RMID));
#undef B
}

/* One after the other or at once, with pauses that make some sleep: sums and orders must be right. */
#define TURNS 1500
static void sem_turns(void)
{
	SECTION("semop, turns");
	int id = semget(IPC_PRIVATE, 3, 0600);
	long *sum = shared(4096);
	pid_t p[4];
	op1(id, 0, 1, 0);
	for (int k = 0; k < 4; k++)
		p[k] = CHILD(for (int i = 0; i < TURNS; i++) {
			op1(id, 0, -1, 0);
			++*(volatile long *)sum;
			if (i % 512 == 17 * k)
				ms(1);
			op1(id, 0, 1, 0);
			op1(id, 1, 1, 0);
		});
	for (int k = 0; k < 4; k++)
		R(status_of(p[k]));
	R(*sum);
	R(semctl(id, 0, GETVAL));
	R(semctl(id, 1, GETVAL));
	R(op1(id, 1, -4 * TURNS, IPC_NOWAIT));
	R(semctl(id, 1, GETVAL));
	R(semctl(id, 0, IPC_RMID));
}

static void msg_busy(void)
{
	SECTION("msg, busy");
	struct msqid_ds ds;
	int id = msgget(0x4b580013, IPC_CREAT | 0600);
#define B busy_msg(id)
	B, R(snd(id, 3, "three", 0));
	R(snd(id, 1, "one", 0));
	R(snd(id, 2, "two", 0));
	R(snd(id, 2, "two again", 0));
	R(rcv(id, 100, 2, 0));
	R(rcv(id, 100, 9, IPC_NOWAIT));
	R(rcv(id, 100, -2, 0));
	R(rcv(id, 100, 2, MSG_EXCEPT));
	R(rcv(id, 100, -1, IPC_NOWAIT));
	R(rcv(id, 3, 0, 0));
	R(rcv(id, 3, 0, MSG_NOERROR));
	R(rcv(id, 100, 0, IPC_NOWAIT));
	B, R(snd(id, 3, "three", 0));
	R(snd(id, 5, "five", 0));
	R(snd(id, 4, "four", 0));
	R(rcv(id, 100, 5, 0));
	R(msgctl(id, IPC_STAT, &ds));
	R(ds.msg_qnum * 1000 + ds.msg_cbytes);
	R(ds.msg_lspid == getpid() && ds.msg_lrpid == getpid() && ds.msg_stime && ds.msg_rtime);
	R(rcv(id, 100, 1, MSG_COPY | IPC_NOWAIT));
	R(rcv(id, 100, 0, 0));
	R(rcv(id, 100, 0, 0));
	R(IN_CHILD(B; R(snd(id, 4, "the child's", 0))));
	R(msgctl(id, IPC_STAT, &ds) == 0 && ds.msg_lspid != getpid() && ds.msg_lspid == ds.msg_lrpid);
	R(rcv(id, 100, 0, 0));
	B, R(snd(id, 0, "x", 0));
	B, R(msgsnd(id, BAD, 4, 0));
	B, R(msgsnd(id, &m, -1, 0));
	B, R(msgsnd(id, &m, 1 << 20, 0));
	B, R(msgrcv(id, &m, -1, 0, IPC_NOWAIT));
	B, R(msgsnd(id, &(struct m){ 5, "" }, 0, 0));
	R(msgrcv(id, &m, 0, 0, 0));
	R(m.type);
	B, R(rcv(id, 10, LONG_MIN, IPC_NOWAIT));
	B, R(snd(id, 1, "lost", 0));
	R(msgrcv(id, BAD, 10, 0, 0));
	R(rcv(id, 10, 0, IPC_NOWAIT));
	SECTION("msg, busy and full");
	B;
	m.type = 1;
	R(msgsnd(id, &m, 8000, 0));
	R(msgsnd(id, &m, 8000, 0));
	R(msgsnd(id, &m, 8000, IPC_NOWAIT));
	R(msgsnd(id, &m, 384, IPC_NOWAIT));
	R(msgsnd(id, &m, 1, IPC_NOWAIT));
	R(msgsnd(id, &m, 0, IPC_NOWAIT));
	SLEEPER(, msgsnd(id, &m, 8000, 0), R(msgrcv(id, &m, 8000, 0, 0)));
	R(msgctl(id, IPC_STAT, &ds) == 0 && ds.msg_qnum == 4 && ds.msg_cbytes == 16384);
	for (int i = 0; i < 4; i++)
		R(msgrcv(id, &m, 8000, 0, IPC_NOWAIT));
	B;
	int n = 0;
	while (!msgsnd(id, &m, 0, IPC_NOWAIT))
		n++;
	R(n);
	for (int i = n = 0; i < 20000 && !msgrcv(id, &m, 0, 0, IPC_NOWAIT); i++)
		n++;
	R(n);
	SECTION("msg, busy and sleeping");
	B;
	SLEEPER(, rcv(id, 100, 7, 0), R(snd(id, 6, "not you", 0)); R(snd(id, 7, "you", 0)));
	R(msgctl(id, IPC_STAT, &ds) == 0 && ds.msg_lspid == getpid() && ds.msg_lrpid != getpid());
	R(rcv(id, 100, 6, 0));
	B;
	SLEEPER(handle(SIGUSR1, SA_RESTART), rcv(id, 100, 7, 0), kill(s_, SIGUSR1));
	B;
	SLEEPER(, rcv(id, 100, 7, 0), kill(s_, SIGKILL));
	B, R(AS_NOBODY(R(rcv(id, 100, 0, IPC_NOWAIT)); R(snd(id, 1, "x", IPC_NOWAIT)); R(msgctl(id, IPC_RMID, NULL))));
	B, R(msgctl(id, IPC_STAT, &ds));
	ds.msg_qbytes = 100;
	R(msgctl(id, IPC_SET, &ds));
	B, R(msgsnd(id, &m, 101, IPC_NOWAIT));
	R(msgsnd(id, &m, 100, IPC_NOWAIT));
	R(msgrcv(id, &m, 100, 0, 0));
	B;
	SLEEPER(, rcv(id, 100, 99, 0), R(msgctl(id, IPC_RMID, NULL)));
	R(snd(id, 1, "x", 0));
#undef B
}

/* Two send numbers of their own type, two receive both types: nothing is lost, doubled or out of its order. */
static void msg_turns(void)
{
	SECTION("msg, turns");
	int id = msgget(IPC_PRIVATE, 0600);
	struct {
		long type;
		int n;
		char text[600];
	} x = { 0 };
	pid_t p[4];
	for (int k = 0; k < 2; k++)
		p[k] = CHILD(for (x.n = 0; x.n < TURNS; x.n++) {
			x.type = k + 1;
			if (msgsnd(id, &x, 4 + (unsigned)x.n * 7 % 600, 0))
				_exit(1);
			if (x.n % 1024 == 5)
				ms(1);
		});
	for (int k = 0; k < 2; k++)
		p[2 + k] = CHILD(for (int i = 0; i < TURNS; i++) {
			ssize_t r = msgrcv(id, &x, sizeof x - 8, k ? -1 : 2, 0);
			if (r != 4 + i * 7 % 600 || x.n != i || x.type != 2 - k)
				_exit(2);
			if (i % 1024 == 9)
				ms(1);
		});
	for (int k = 0; k < 4; k++)
		R(status_of(p[k]));
	R(msgctl(id, IPC_RMID, NULL));
}

/* Round trips by a set or a queue; the number of exits is looked at from outside. */
static int trips(const char *kind)
{
	struct mq_attr a = { .mq_maxmsg = 1, .mq_msgsize = 8 };
	int s = semget(IPC_PRIVATE, 2, 0600), q = msgget(IPC_PRIVATE, 0600), bad = 0;
	mqd_t m[2];
	long b[2] = { 0 };
	for (int i = 0; i < 2; i++) {
		m[i] = mq_open("/kx-ipc-trips", O_RDWR | O_CREAT, 0600, &a);
		mq_unlink("/kx-ipc-trips");
	}
	pid_t p = fork();
	int me = p == 0;
	cpu_set_t all, one;
	sched_getaffinity(0, sizeof all, &all);
	CPU_ZERO(&one);
	for (int i = 0, k = 0; i < CPU_SETSIZE; i++)
		if (CPU_ISSET(i, &all) && k++ == me)
			CPU_SET(i, &one);
	sched_setaffinity(0, sizeof one, &one);
	for (int i = 0; i < 20000 && !bad; i++) {
		if (!p || i)
			bad |= *kind == 's'           ? op1(s, me, -1, 0)
			       : !strcmp(kind, "msg") ? msgrcv(q, b, 8, 1 + me, 0) != 8
						      : mq_receive(m[me], (char *)b, 8, NULL) != 8;
		b[0] = 2 - me;
		bad |= *kind == 's'           ? op1(s, 1 - me, 1, 0)
		       : !strcmp(kind, "msg") ? msgsnd(q, b, 8, 0)
					      : mq_send(m[1 - me], (char *)b, 8, 0);
	}
	if (!p)
		_exit(bad);
	*turn = 1;
	bad |= status_of(p) != 0;
	semctl(s, 0, IPC_RMID);
	msgctl(q, IPC_RMID, NULL);
	return bad;
}

/* ---- POSIX queues ---------------------------------------------------------------------------------------------------- */

static pthread_mutex_t note_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t note_cond = PTHREAD_COND_INITIALIZER;
static int noted;
static void note_fn(union sigval v)
{
	pthread_mutex_lock(&note_lock);
	noted = v.sival_int;
	pthread_cond_signal(&note_cond);
	pthread_mutex_unlock(&note_lock);
}

static int qrcv(mqd_t q)
{
	char b[64] = "";
	unsigned prio = 99;
	int r = mq_receive(q, b, sizeof b, &prio);
	if (r >= 0)
		printf("  got %u \"%s\"\n", prio, b);
	return r;
}

static void mq(void)
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

static void busy_mq(mqd_t q)
{
	char b[64];
	for (int i = 0; i < 40; i++)
		if (mq_send(q, "busy", 5, i % 3) || mq_receive(q, b, sizeof b, NULL) != 5)
			line("busy", -1);
}

static int set_of_one(int fd)
{
	fd_set s;
	struct timeval tv = { 0, 20000 };
	FD_ZERO(&s);
	FD_SET(fd, &s);
	return select(fd + 1, &s, NULL, NULL, &tv);
}

static int epoll_of_one(int fd)
{
	struct epoll_event ev = { .events = EPOLLIN };
	int e = epoll_create1(0), r = epoll_ctl(e, EPOLL_CTL_ADD, fd, &ev);
	if (!r)
		r = epoll_wait(e, &ev, 1, 20);
	close(e);
	return r;
}

static void mq_busy(void)
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

static void mq_turns(void)
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

static void pause_some(unsigned *seed)
{
	*seed = *seed * 1103515245 + 12345;
	unsigned n = *seed >> 16;
	if (n % 64 == 0)
		usleep(n / 64 % 500);
	else if (n % 16 == 0)
		sched_yield();
}

static int next_left(int q, mqd_t m)
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

static bool death(unsigned seed, bool posix)
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

static int deaths(unsigned seed, int rounds)
{
	int good = 0;
	d = shared(4096);
	for (int i = 0; i < rounds; i++)
		good += death(seed + (unsigned)i, i / 2 % 2);
	return good;
}

static void deaths_some(void)
{
	SECTION("deaths");
	R(deaths(1, 60));
}

/* ---- POSIX shared memory, semaphores ---------------------------------------------------------------------------------- */

static void posix_shm(void)
{
	SECTION("shm_open");
	const char *n = "/kx-ipc-shm";
	int fd;
	struct stat st;
	shm_unlink(n);
	R(shm_open(n, O_RDWR, 0));
	R(shm_unlink(n));
	R(shm_open("/a/b", O_RDWR | O_CREAT, 0600));
	R((fd = shm_open(n, O_RDWR | O_CREAT | O_EXCL, 0600)) >= 0);
	R(shm_open(n, O_RDWR | O_CREAT | O_EXCL, 0600));
	R(fcntl(fd, F_GETFD));
	R(ftruncate(fd, 10000));
	R(fstat(fd, &st) == 0 && st.st_size == 10000 && S_ISREG(st.st_mode));
	char *p = mmap(NULL, 10000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	R(IN_CHILD(int f = shm_open(n, O_RDWR, 0);
		   char *q = mmap(NULL, 10000, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0); strcpy(q + 9000, "child")));
	R(strcmp(p + 9000, "child"));
	R(IN_CHILD(int f = shm_open(n, O_RDONLY, 0); R(ftruncate(f, 1)); errno = 0;
		   R(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0) == MAP_FAILED && errno == EACCES)));
	R(AS_NOBODY(R(shm_open(n, O_RDONLY, 0)); R(shm_unlink(n))));
	R(access("/dev/shm/kx-ipc-shm", F_OK));
	R(ftruncate(fd, 4096));
	R(IN_CHILD(p[9000] = 1));
	R(shm_unlink(n));
	R(shm_open(n, O_RDWR, 0));
	R(p[0] = 7);
	munmap(p, 10000);
	close(fd);
}

static void posix_sem(void)
{
	SECTION("sem_open");
	const char *n = "/kx-ipc-sem";
	sem_t *s, *t;
	int v;
	sem_unlink(n);
	R(sem_open(n, 0) == SEM_FAILED ? -1 : 0);
	R(sem_unlink(n));
	R(sem_open(n, O_CREAT, 0600, 1u << 31) == SEM_FAILED ? -1 : 0);
	R((s = sem_open(n, O_CREAT | O_EXCL, 0600, 2)) != SEM_FAILED);
	R(sem_open(n, O_CREAT | O_EXCL, 0600, 2) == SEM_FAILED ? -1 : 0);
	R((t = sem_open(n, O_CREAT, 0600, 9)) == s);
	R(sem_close(t));
	R(sem_getvalue(s, &v) == 0 ? v : -1);
	R(IN_CHILD(sem_t *c = sem_open(n, 0); R(sem_trywait(c)); R(sem_trywait(c)); R(sem_trywait(c))));
	R(sem_getvalue(s, &v) == 0 ? v : -1);
	SLEEPER(, sem_wait(s), R(sem_post(s)));
	SLEEPER(handle(SIGUSR1, 0), sem_wait(s), kill(s_, SIGUSR1));
	SLEEPER(handle(SIGUSR1, SA_RESTART), sem_wait(s), kill(s_, SIGUSR1); ms(50); R(sem_post(s)));
	SLEEPER(, sem_wait(s), kill(s_, SIGKILL));
	R(sem_post(s));
	R(sem_trywait(s));
	struct timespec ts = in_ms(CLOCK_REALTIME, 60), wrong = { 1, -1 };
	R(sem_timedwait(s, &ts));
	R(sem_timedwait(s, &wrong));
	ts = in_ms(CLOCK_MONOTONIC, 60);
	R(sem_clockwait(s, CLOCK_MONOTONIC, &ts));
	R(AS_NOBODY(R(sem_open(n, 0) == SEM_FAILED ? -1 : 0); R(sem_unlink(n))));
	R(sem_unlink(n));
	R(sem_open(n, 0) == SEM_FAILED ? -1 : 0);
	R(sem_post(s));
	R(sem_close(s));
	SECTION("sem_init");
	s = shared(4096);
	R(sem_init(s, 1, SEM_VALUE_MAX));
	R(sem_post(s));
	R(sem_init(s, 1, 1u << 31));
	R(sem_init(s, 1, 0));
	t = s + 1;
	R(sem_init(t, 1, 0));
	pid_t p = CHILD(for (int i = 0; i < 200; i++) {
		sem_wait(s);
		sem_post(t);
	});
	for (int i = 0; i < 200; i++) {
		sem_post(s);
		sem_wait(t);
	}
	R(status_of(p));
	R(sem_destroy(s));
	munmap(s, 4096);
}

/* ---- locks and conditions in shared memory ------------------------------------------------------------------------------- */

struct sync {
	pthread_mutex_t m;
	pthread_cond_t c;
	pthread_barrier_t b;
	pthread_rwlock_t rw;
	volatile int n, flag, serial;
};

static void mutex_of(pthread_mutex_t *mu, int type, int robust, int protocol)
{
	pthread_mutexattr_t a;
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_settype(&a, type);
	pthread_mutexattr_setrobust(&a, robust);
	pthread_mutexattr_setprotocol(&a, protocol);
	pthread_mutex_init(mu, &a);
}

static void mutexes(struct sync *s)
{
	static const int types[] = { PTHREAD_MUTEX_NORMAL, PTHREAD_MUTEX_RECURSIVE, PTHREAD_MUTEX_ERRORCHECK,
				     PTHREAD_MUTEX_ADAPTIVE_NP };
	for (int pi = 0; pi < 2; pi++)
		for (int robust = 0; robust < 2; robust++)
			for (int i = 0; i < 4; i++) {
				printf("-- mutex type %d robust %d pi %d\n", i, robust, pi);
				mutex_of(&s->m, types[i], robust, pi ? PTHREAD_PRIO_INHERIT : PTHREAD_PRIO_NONE);
				P(pthread_mutex_lock(&s->m));
				P(pthread_mutex_trylock(&s->m));
				if (i == 1)
					P(pthread_mutex_unlock(&s->m));
				if (i == 1 || i == 2)
					P(pthread_mutex_lock(&s->m));
				if (i == 1)
					P(pthread_mutex_unlock(&s->m));
				R(IN_CHILD(P(pthread_mutex_trylock(&s->m));
					   if (i == 1 || i == 2) P(pthread_mutex_unlock(&s->m));
					   struct timespec ts = in_ms(CLOCK_REALTIME, 30);
					   P(pthread_mutex_timedlock(&s->m, &ts))));
				pid_t p = CHILD(LATE("pthread_mutex_lock", pthread_mutex_lock(&s->m)); s->n++;
						P(pthread_mutex_unlock(&s->m)));
				ms(30);
				P(pthread_mutex_unlock(&s->m));
				R(status_of(p));
				s->n = 0;
				pid_t c[3];
				for (int j = 0; j < 3; j++)
					c[j] = CHILD(for (int l = 0; l < 300; l++) {
						pthread_mutex_lock(&s->m);
						int v = s->n;
						if (l % 50 == 0)
							sched_yield();
						s->n = v + 1;
						pthread_mutex_unlock(&s->m);
					});
				for (int j = 0; j < 3; j++)
					status_of(c[j]);
				R(s->n);
				if (robust) {
					R(IN_CHILD(pthread_mutex_lock(&s->m)));
					P(pthread_mutex_trylock(&s->m));
					P(pthread_mutex_consistent(&s->m));
					P(pthread_mutex_consistent(&s->m));
					P(pthread_mutex_unlock(&s->m));
					R(IN_CHILD(pthread_mutex_lock(&s->m); raise(SIGKILL)));
					P(pthread_mutex_trylock(&s->m));
					P(pthread_mutex_consistent(&s->m));
					P(pthread_mutex_unlock(&s->m));
					/* who waits already */
					p = CHILD(pthread_mutex_lock(&s->m); for (;;) pause());
					asleep(p, p);
					SLEEPER(, ({
							int e = pthread_mutex_lock(&s->m);
							pthread_mutex_consistent(&s->m);
							pthread_mutex_unlock(&s->m);
							e == EOWNERDEAD;
						}),
						kill(p, SIGKILL));
					R(status_of(p));
					R(IN_CHILD(pthread_mutex_lock(&s->m); execl("/bin/true", "true", NULL)));
					P(pthread_mutex_lock(&s->m));
					P(pthread_mutex_unlock(&s->m));
					P(pthread_mutex_lock(&s->m));
				}
			}
}

static void *hold_it(void *arg)
{
	pthread_mutex_lock(arg);
	for (;;)
		pause();
	return NULL;
}

/* Threads that sleep, and a thread that starts programs meanwhile. */
static void spawns(pthread_mutex_t *mu)
{
	mutex_of(mu, PTHREAD_MUTEX_NORMAL, 1, PTHREAD_PRIO_NONE);
	pid_t p = CHILD(
		pthread_t t; pthread_create(&t, NULL, hold_it, mu); while (!pthread_mutex_trylock(mu)) {
			pthread_mutex_unlock(mu);
			ms(1);
		} for (int i = 0; i < 20; i++) {
			pid_t q = vfork();
			if (!q)
				_exit(5);
			if (status_of(q) != 5)
				_exit(1);
		} ms(100);
		raise(SIGKILL));
	R(status_of(p));
	P(pthread_mutex_trylock(mu));
}

static void sync_objects(void)
{
	SECTION("pthread, process-shared");
	struct sync *s = shared(sizeof *s);
	mutexes(s);
	printf("-- vfork\n");
	spawns(&s->m);
	printf("-- condition\n");
	pthread_condattr_t ca;
	pthread_condattr_init(&ca);
	pthread_condattr_setpshared(&ca, PTHREAD_PROCESS_SHARED);
	pthread_condattr_setclock(&ca, CLOCK_MONOTONIC);
	mutex_of(&s->m, PTHREAD_MUTEX_NORMAL, 0, PTHREAD_PRIO_NONE);
	P(pthread_cond_init(&s->c, &ca));
	pthread_mutex_lock(&s->m);
	struct timespec ts = in_ms(CLOCK_MONOTONIC, 60);
	P(pthread_cond_timedwait(&s->c, &s->m, &ts));
	s->n = s->flag = 0;
	pid_t c[4];
	for (int j = 0; j < 4; j++)
		c[j] = CHILD(pthread_mutex_lock(&s->m); s->n++; while (!s->flag) pthread_cond_wait(&s->c, &s->m);
			     s->flag--; pthread_mutex_unlock(&s->m));
	pthread_mutex_unlock(&s->m);
	while (s->n < 4)
		ms(1);
	pthread_mutex_lock(&s->m);
	s->flag = 1;
	P(pthread_cond_signal(&s->c));
	pthread_mutex_unlock(&s->m);
	while (s->flag)
		ms(1);
	pthread_mutex_lock(&s->m);
	s->flag = 3;
	P(pthread_cond_broadcast(&s->c));
	pthread_mutex_unlock(&s->m);
	long sum = 0;
	for (int j = 0; j < 4; j++)
		sum += status_of(c[j]);
	R(sum);
	R(s->flag);
	printf("-- barrier\n");
	pthread_barrierattr_t ba;
	pthread_barrierattr_init(&ba);
	pthread_barrierattr_setpshared(&ba, PTHREAD_PROCESS_SHARED);
	P(pthread_barrier_init(&s->b, &ba, 0));
	P(pthread_barrier_init(&s->b, &ba, 4));
	s->serial = s->n = 0;
	for (int j = 0; j < 3; j++)
		c[j] = CHILD(for (int l = 0; l < 50; l++) {
			__atomic_add_fetch(&s->n, 1, __ATOMIC_SEQ_CST);
			if (pthread_barrier_wait(&s->b) == PTHREAD_BARRIER_SERIAL_THREAD)
				__atomic_add_fetch(&s->serial, 1, __ATOMIC_SEQ_CST);
			if (s->n < (l + 1) * 4)
				_exit(3);
		});
	for (int l = 0; l < 50; l++) {
		__atomic_add_fetch(&s->n, 1, __ATOMIC_SEQ_CST);
		if (pthread_barrier_wait(&s->b) == PTHREAD_BARRIER_SERIAL_THREAD)
			__atomic_add_fetch(&s->serial, 1, __ATOMIC_SEQ_CST);
	}
	sum = 0;
	for (int j = 0; j < 3; j++)
		sum += status_of(c[j]);
	R(sum);
	R(s->serial);
	P(pthread_barrier_destroy(&s->b));
	printf("-- read-write lock\n");
	pthread_rwlockattr_t ra;
	pthread_rwlockattr_init(&ra);
	pthread_rwlockattr_setpshared(&ra, PTHREAD_PROCESS_SHARED);
	P(pthread_rwlock_init(&s->rw, &ra));
	P(pthread_rwlock_rdlock(&s->rw));
	R(IN_CHILD(P(pthread_rwlock_tryrdlock(&s->rw)); P(pthread_rwlock_unlock(&s->rw));
		   P(pthread_rwlock_trywrlock(&s->rw)); struct timespec t1 = in_ms(CLOCK_REALTIME, 40);
		   P(pthread_rwlock_timedwrlock(&s->rw, &t1))));
	pid_t p = CHILD(LATE("pthread_rwlock_wrlock", pthread_rwlock_wrlock(&s->rw)); s->flag = 9;
			P(pthread_rwlock_unlock(&s->rw)));
	ms(50);
	P(pthread_rwlock_unlock(&s->rw));
	R(status_of(p));
	P(pthread_rwlock_wrlock(&s->rw));
	P(pthread_rwlock_rdlock(&s->rw));
	R(s->flag);
	p = CHILD(LATE("pthread_rwlock_rdlock", pthread_rwlock_rdlock(&s->rw)); P(pthread_rwlock_unlock(&s->rw)));
	ms(50);
	P(pthread_rwlock_unlock(&s->rw));
	R(status_of(p));
	munmap(s, sizeof *s);
}

/* ---- futexes ----------------------------------------------------------------------------------------------------------- */

static long fx(volatile void *w, int op, uint32_t val, void *t, volatile void *w2, uint32_t v3)
{
	return syscall(SYS_futex, w, op, val, t, w2, v3);
}

struct waitv {
	uint64_t val, uaddr;
	uint32_t flags, reserved;
};

static void futexes(void)
{
	SECTION("futex");
	uint32_t *w = shared(4096);
	struct timespec ts = { 0, 50000000 }, wrong = { 0, -1 };
	for (int pass = 0; pass < 2; pass++) {
		int pr = pass ? FUTEX_PRIVATE_FLAG : 0;
		printf("-- flags %d\n", pr);
		R(fx(w, FUTEX_WAIT | pr, 1, NULL, NULL, 0));
		R(fx(w, FUTEX_WAIT | pr, 0, &ts, NULL, 0));
		R(fx(w, FUTEX_WAIT | pr, 0, &wrong, NULL, 0));
		R(fx(w, FUTEX_WAIT | pr, 0, BAD, NULL, 0));
		R(fx(w, FUTEX_WAIT | pr | FUTEX_CLOCK_REALTIME, 0, &ts, NULL, 0));
		R(fx((char *)w + 1, FUTEX_WAIT | pr, 0, NULL, NULL, 0));
		R(fx(BAD, FUTEX_WAIT | pr, 0, NULL, NULL, 0));
		R(fx(BAD, FUTEX_WAKE | pr, 1, NULL, NULL, 0));
		R(fx(w, FUTEX_WAIT | pr, 1, &wrong, NULL, 0));
		R(fx(w, FUTEX_WAIT | pr | FUTEX_CLOCK_REALTIME, 1, NULL, NULL, 0));
		R(fx((char *)w + 2, FUTEX_WAKE | pr, 1, NULL, NULL, 0));
		R(fx(w, FUTEX_WAKE | pr, 1, NULL, NULL, 0));
		R(fx(w, FUTEX_WAIT_BITSET | pr, 0, NULL, NULL, 0));
		R(fx(w, FUTEX_WAKE_BITSET | pr, 1, NULL, NULL, 0));
		struct timespec abs = in_ms(CLOCK_MONOTONIC, 30);
		R(fx(w, FUTEX_WAIT_BITSET | pr, 0, &abs, NULL, 1));
		abs = in_ms(CLOCK_REALTIME, 30);
		R(fx(w, FUTEX_WAIT_BITSET | pr | FUTEX_CLOCK_REALTIME, 0, &abs, NULL, 1));
		R(fx(w, FUTEX_FD | pr, 0, NULL, NULL, 0));
		R(fx(w, 77 | pr, 0, NULL, NULL, 0));
		R(fx(w, FUTEX_REQUEUE | pr, 1, (void *)1, w + 1, 0));
		R(fx(w, FUTEX_CMP_REQUEUE | pr, 1, (void *)1, w + 1, 5));
		R(fx(w, FUTEX_CMP_REQUEUE | pr, -1, (void *)1, w + 1, 0));
		R(fx(w, FUTEX_WAKE_OP | pr, 1, (void *)1, w + 1, FUTEX_OP(FUTEX_OP_ADD, 3, FUTEX_OP_CMP_EQ, 0)));
		R(w[1]);
		w[1] = 0;
		R(fx(w, FUTEX_LOCK_PI | pr, 0, NULL, NULL, 0));
		R(w[0] == (uint32_t)getpid());
		R(fx(w, FUTEX_LOCK_PI | pr, 0, NULL, NULL, 0));
		R(fx(w, FUTEX_TRYLOCK_PI | pr, 0, NULL, NULL, 0));
		R(fx(w, FUTEX_UNLOCK_PI | pr, 0, NULL, NULL, 0));
		R(w[0]);
		R(fx(w, FUTEX_UNLOCK_PI | pr, 0, NULL, NULL, 0));
	}
	printf("-- across processes\n");
	pid_t each[3];
	for (int i = 0; i < 3; i++)
		each[i] = CHILD(LATE("wait", fx(w, FUTEX_WAIT, 0, NULL, NULL, 0)));
	for (int i = 0; i < 3; i++)
		asleep(each[i], each[i]);
	R(fx(w, FUTEX_WAKE, 1, NULL, NULL, 0));
	*turn = 1;
	R(wait(NULL) > 0);
	*turn = 0;
	R(fx(w, FUTEX_REQUEUE, 0, (void *)9, w + 1, 0));
	R(fx(w, FUTEX_WAKE, 9, NULL, NULL, 0));
	R(fx(w + 1, FUTEX_WAKE, 9, NULL, NULL, 0));
	*turn = 1;
	R(wait(NULL) > 0 && wait(NULL) > 0);
	*turn = 0;
	pid_t a = CHILD(LATE("wait 1", fx(w, FUTEX_WAIT_BITSET, 0, NULL, NULL, 1)));
	pid_t b = CHILD(LATE("wait 2", fx(w, FUTEX_WAIT_BITSET, 0, NULL, NULL, 2)));
	asleep(a, a), asleep(b, b);
	R(fx(w, FUTEX_WAKE_BITSET, 9, NULL, NULL, 4));
	R(fx(w, FUTEX_WAKE_BITSET, 9, NULL, NULL, 2));
	R(status_of(b));
	R(fx(w, FUTEX_WAKE_BITSET, 9, NULL, NULL, 1));
	R(status_of(a));
	/* the first process of two mappings of one page, at other addresses */
	int fd = memfd_create("w", 0);
	ftruncate(fd, 4096);
	uint32_t *x = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	a = CHILD(uint32_t *y = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		  LATE("wait at another address", fx(y, FUTEX_WAIT, 0, NULL, NULL, 0)));
	asleep(a, a);
	R(fx(x, FUTEX_WAKE, 9, NULL, NULL, 0));
	R(status_of(a));
	/* private ones do not meet across processes */
	a = CHILD(LATE("private",
		       fx(w, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, &(struct timespec){ 0, 250000000 }, NULL, 0)));
	ms(100);
	R(fx(w, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 9, NULL, NULL, 0));
	R(fx(w, FUTEX_WAKE, 9, NULL, NULL, 0));
	R(status_of(a));
	SLEEPER(handle(SIGUSR1, 0), fx(w, FUTEX_WAIT, 0, NULL, NULL, 0), kill(s_, SIGUSR1));
	SLEEPER(handle(SIGUSR1, SA_RESTART), fx(w, FUTEX_WAIT, 0, &(struct timespec){ 100, 0 }, NULL, 0),
		kill(s_, SIGUSR1));
	SLEEPER(handle(SIGUSR1, SA_RESTART), fx(w, FUTEX_WAIT, 0, NULL, NULL, 0), kill(s_, SIGUSR1); ms(50);
		asleep(s_, s_); R(fx(w, FUTEX_WAKE, 9, NULL, NULL, 0)));
	SLEEPER(, fx(w, FUTEX_WAIT, 0, NULL, NULL, 0), kill(s_, SIGKILL));
	R(fx(w, FUTEX_WAKE, 9, NULL, NULL, 0));
	printf("-- priority inheritance\n");
	w[8] = w[9] = 0;
	a = CHILD(fx(w, FUTEX_LOCK_PI, 0, NULL, NULL, 0); w[8] = 1; while (!((volatile uint32_t *)w)[9]) ms(1); ms(50);
		  LATE("unlock", fx(w, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0)));
	while (!((volatile uint32_t *)w)[8])
		ms(1);
	struct timespec soon = in_ms(CLOCK_REALTIME, 30);
	R(fx(w, FUTEX_LOCK_PI, 0, &soon, NULL, 0));
	R(fx(w, FUTEX_TRYLOCK_PI, 0, NULL, NULL, 0));
	R(fx(w, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	w[9] = 1;
	R(fx(w, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
	R(status_of(a));
	R((w[0] & FUTEX_TID_MASK) == (uint32_t)getpid());
	R(fx(w, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	/* the owner dies with somebody waiting */
	a = CHILD(fx(w, FUTEX_LOCK_PI, 0, NULL, NULL, 0); for (;;) pause());
	asleep(a, a);
	b = CHILD(LATE("lock of the dead", fx(w, FUTEX_LOCK_PI, 0, NULL, NULL, 0)); R((w[0] & FUTEX_OWNER_DIED) != 0);
		  R((w[0] & FUTEX_TID_MASK) == (uint32_t)getpid()); fx(w, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	asleep(b, b);
	kill(a, SIGKILL);
	R(status_of(a));
	R(status_of(b));
	w[0] = w[1] = 0;
	/* requeued from a condition to a lock */
	R(fx(w + 1, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
	a = CHILD(LATE("wait, requeued", fx(w, FUTEX_WAIT_REQUEUE_PI, 0, NULL, w + 1, 0));
		  R(fx(w + 1, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0)));
	asleep(a, a);
	R(fx(w, FUTEX_CMP_REQUEUE_PI, 1, (void *)0, w + 1, 0));
	R(fx(w + 1, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	R(status_of(a));
	R(fx(w, FUTEX_WAIT_REQUEUE_PI, 0, NULL, w, 0));
	R(fx(w, FUTEX_CMP_REQUEUE_PI, 2, (void *)0, w + 1, 0));
	printf("-- several\n");
	w[0] = w[1] = 0;
	struct waitv v[2] = { { 0, (uint64_t)w, 2, 0 }, { 0, (uint64_t)(w + 1), 2, 0 } };
	soon = in_ms(CLOCK_MONOTONIC, 40);
	R(syscall(449, v, 2, 0, &soon, CLOCK_MONOTONIC));
	R(syscall(449, v, 0, 0, &soon, CLOCK_MONOTONIC));
	R(syscall(449, v, 129, 0, &soon, CLOCK_MONOTONIC));
	R(syscall(449, v, 2, 1, &soon, CLOCK_MONOTONIC));
	R(syscall(449, NULL, 2, 0, &soon, CLOCK_MONOTONIC));
	R(syscall(449, BAD, 2, 0, &soon, CLOCK_MONOTONIC));
	R(syscall(449, v, 2, 0, &soon, CLOCK_TAI));
	v[1].val = 1;
	R(syscall(449, v, 2, 0, &soon, CLOCK_MONOTONIC));
	v[1].val = 0;
	v[1].flags = 0;
	R(syscall(449, v, 2, 0, &soon, CLOCK_MONOTONIC));
	v[1].flags = 2;
	v[1].uaddr = 9;
	R(syscall(449, v, 2, 0, &soon, CLOCK_MONOTONIC));
	v[1].uaddr = 8;
	R(syscall(449, v, 2, 0, &soon, CLOCK_MONOTONIC));
	v[1].uaddr = (uint64_t)(w + 1);
	a = CHILD(LATE("waitv", syscall(449, v, 2, 0, NULL, 0)));
	asleep(a, a);
	R(fx(w + 1, FUTEX_WAKE, 9, NULL, NULL, 0));
	R(status_of(a));
	SLEEPER(handle(SIGUSR1, 0), syscall(449, v, 2, 0, NULL, 0), kill(s_, SIGUSR1));
	munmap(w, 4096);
	munmap(x, 4096);
	close(fd);
}

static uint32_t private_word;
static volatile pid_t waiter;

/* Until the thread that has said its number sleeps. */
static void waiter_asleep(void)
{
	while (!waiter)
		ms(1);
	asleep(getpid(), waiter);
	waiter = 0;
}

static void *private_waitv(void *arg)
{
	waiter = gettid();
	struct waitv v = { 0, (uint64_t)&private_word, 2 | FUTEX_PRIVATE_FLAG, 0 };
	return (void *)syscall(449, &v, 1, 0, arg, CLOCK_MONOTONIC);
}

static void waitv_private(void)
{
	pthread_t t;
	void *r = (void *)-1;
	struct timespec late = in_ms(CLOCK_MONOTONIC, 100000);
	pthread_create(&t, NULL, private_waitv, &late);
	waiter_asleep();
	private_word = 1;
	R(fx(&private_word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, NULL, NULL, 0));
	pthread_join(t, &r);
	R((long)r);
}

/* Who was moved to another word is found there, however many times that was done. */
static void *private_wait(void *arg)
{
	waiter = gettid();
	return (void *)fx(arg, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, NULL, NULL, 0);
}

static void requeue(void)
{
	static uint32_t w[2];
	pthread_t t;
	void *r = (void *)-1;
	pthread_create(&t, NULL, private_wait, w);
	waiter_asleep();
	R(fx(w, FUTEX_REQUEUE | FUTEX_PRIVATE_FLAG, 0, (void *)9, w + 1, 0));
	for (int i = 1; i < 65536; i++)
		if (fx(w, FUTEX_REQUEUE | FUTEX_PRIVATE_FLAG, 0, (void *)9, w + 1, 0))
			exit(1);
	R(fx(w + 1, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 9, NULL, NULL, 0));
	pthread_join(t, &r);
	R((long)r);
}

/* ---- descriptors that are shared over fork -------------------------------------------------------------------------------- */

static void descriptors(void)
{
	SECTION("eventfd, timerfd, signalfd, memfd");
	uint64_t v = 0;
	int e = eventfd(2, EFD_SEMAPHORE);
	R(IN_CHILD(uint64_t u; R(read(e, &u, 8)); R(u); u = 5; R(write(e, &u, 8))));
	R(read(e, &v, 8));
	R(v);
	close(e);
	e = eventfd(0, EFD_NONBLOCK);
	R(read(e, &v, 8));
	R(read(e, &v, 7));
	v = ~0ull;
	R(write(e, &v, 8));
	v = ~0ull - 1;
	R(write(e, &v, 8));
	v = 1;
	R(write(e, &v, 8));
	R(IN_CHILD(uint64_t u; R(read(e, &u, 8)); R(u == ~0ull - 1)));
	R(read(e, &v, 8));
	close(e);
	e = eventfd(0, 0);
	SLEEPER(, ({
			uint64_t u;
			read(e, &u, 8);
			u;
		}),
		v = 3;
		R(write(e, &v, 8)));
	close(e);
	int t = timerfd_create(CLOCK_MONOTONIC, 0);
	struct itimerspec it = { .it_value.tv_nsec = 30000000 }, old;
	R(IN_CHILD(R(timerfd_settime(t, 0, &it, NULL))));
	R(read(t, &v, 8));
	R(v);
	R(timerfd_gettime(t, &old) == 0 && old.it_value.tv_nsec == 0);
	close(t);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	int s = signalfd(-1, &set, SFD_NONBLOCK);
	struct signalfd_siginfo si;
	R(IN_CHILD(kill(getpid(), SIGUSR2); R(read(s, &si, sizeof si));
		   R(si.ssi_signo == SIGUSR2 && si.ssi_pid == (uint32_t)getpid())));
	R(read(s, &si, sizeof si));
	pid_t p = CHILD(kill(getppid(), SIGUSR2));
	status_of(p);
	R(read(s, &si, sizeof si));
	R(si.ssi_pid == (uint32_t)p && si.ssi_code == SI_USER);
	close(s);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	int m1 = memfd_create("kx", MFD_ALLOW_SEALING);
	R(ftruncate(m1, 4096));
	char *c = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, m1, 0);
	R(IN_CHILD(strcpy(c, "mapped"); R(pwrite(m1, "written", 8, 100))));
	R(strcmp(c, "mapped") || strcmp(c + 100, "written"));
	R(fcntl(m1, F_ADD_SEALS, F_SEAL_WRITE));
	R(fcntl(m1, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
	R(ftruncate(m1, 1));
	R(ftruncate(m1, 8192));
	munmap(c, 4096);
	R(fcntl(m1, F_ADD_SEALS, F_SEAL_WRITE));
	R(write(m1, "x", 1));
	R(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, m1, 0) == MAP_FAILED);
	close(m1);
	SECTION("MAP_SHARED");
	char path[200];
	snprintf(path, sizeof path, "%s/kx-ipc-file", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	int f = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	R(ftruncate(f, 8192));
	c = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
	R(IN_CHILD(char *d = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, f, 4096); strcpy(d, "file")));
	R(strcmp(c + 4096, "file"));
	char back[8] = "";
	R(pread(f, back, 5, 4096));
	R(strcmp(back, "file"));
	/* its lock words work, too */
	uint32_t *w = (uint32_t *)c;
	p = CHILD(LATE("wait in a file", fx(w, FUTEX_WAIT, 0, NULL, NULL, 0)));
	asleep(p, p);
	R(fx(w, FUTEX_WAKE, 1, NULL, NULL, 0));
	R(status_of(p));
	munmap(c, 8192);
	close(f);
	unlink(path);
}

/* ---- file locks ------------------------------------------------------------------------------------------------------------ */

static int lk(int fd, int cmd, int type, long start, long len)
{
	struct flock l = { .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len };
	return fcntl(fd, cmd, &l);
}

static pid_t holder_of(int fd, int cmd, int type, long start, long len)
{
	struct flock l = { .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len };
	if (fcntl(fd, cmd, &l))
		return -1;
	return l.l_type == F_UNLCK ? 0 : l.l_pid;
}

static void locks(void)
{
	SECTION("flock");
	char path[200];
	snprintf(path, sizeof path, "%s/kx-ipc-lock", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	int f = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600), g;
	ftruncate(f, 100);
	R(flock(f, LOCK_EX));
	R(IN_CHILD(R(flock(f, LOCK_EX | LOCK_NB)); int h = open(path, O_RDWR); R(flock(h, LOCK_SH | LOCK_NB));
		   R(flock(h, 77))));
	R(flock(f, LOCK_SH));
	R(IN_CHILD(int h = open(path, O_RDWR); R(flock(h, LOCK_SH | LOCK_NB)); R(flock(h, LOCK_EX | LOCK_NB))));
	R(flock(-1, LOCK_SH));
	R(IN_CHILD(R(flock(f, LOCK_UN)))); /* of the shared description */
	R(IN_CHILD(int h = open(path, O_RDWR); R(flock(h, LOCK_EX | LOCK_NB))));
	pid_t p = CHILD(int h = open(path, O_RDWR); flock(h, LOCK_EX); for (;;) pause());
	asleep(p, p);
	R(flock(f, LOCK_SH | LOCK_NB));
	SLEEPER(int h = open(path, O_RDWR), flock(h, LOCK_EX), kill(p, SIGKILL));
	R(status_of(p));
	R(flock(f, LOCK_EX | LOCK_NB));
	SLEEPER(handle(SIGUSR1, 0); int h = open(path, O_RDWR), flock(h, LOCK_EX), kill(s_, SIGUSR1));
	R(flock(f, LOCK_UN));
	SECTION("fcntl locks");
	R(lk(f, F_SETLK, F_WRLCK, 0, 10));
	R(IN_CHILD(R(lk(f, F_SETLK, F_RDLCK, 5, 10)); R(lk(f, F_SETLK, F_RDLCK, 10, 10));
		   R(holder_of(f, F_GETLK, F_RDLCK, 0, 0) == getppid())));
	R(lk(f, F_SETLK, F_RDLCK, 0, 10));
	R(IN_CHILD(R(lk(f, F_SETLK, F_RDLCK, 5, 10)); R(lk(f, F_SETLK, F_WRLCK, 5, 10))));
	R(IN_CHILD(R(lk(f, F_SETLK, F_UNLCK, 0, 0)); R(holder_of(f, F_GETLK, F_WRLCK, 0, 0) == getppid())));
	R(lk(f, F_SETLK, 77, 0, 1));
	R(lk(f, F_SETLK, F_WRLCK, -1, 1));
	R(lk(-1, F_SETLK, F_WRLCK, 0, 1));
	g = open(path, O_RDONLY);
	R(lk(g, F_SETLK, F_WRLCK, 50, 1));
	close(g); /* drops all of the process's locks of that file */
	R(IN_CHILD(R(holder_of(f, F_GETLK, F_WRLCK, 0, 0))));
	turn[1] = turn[2] = 0;
	p = CHILD(lk(f, F_SETLK, F_WRLCK, 0, 10); turn[1] = 1; while (!turn[2]) ms(1);
		  LATE("wait for the lock", lk(f, F_SETLKW, F_WRLCK, 20, 10)));
	while (!turn[1])
		ms(1);
	R(lk(f, F_SETLK, F_WRLCK, 20, 10));
	turn[2] = 1;
	asleep(p, p);
	R(lk(f, F_SETLKW, F_WRLCK, 0, 10)); /* EDEADLK */
	R(lk(f, F_SETLK, F_UNLCK, 0, 0));
	R(status_of(p));
	p = CHILD(lk(f, F_SETLK, F_WRLCK, 0, 0); for (;;) pause());
	asleep(p, p);
	R(holder_of(f, F_GETLK, F_RDLCK, 0, 0) == p);
	SLEEPER(, lk(f, F_SETLKW, F_WRLCK, 0, 0), kill(p, SIGKILL));
	R(status_of(p));
	R(lockf(f, F_TEST, 0));
	SECTION("OFD locks");
	g = open(path, O_RDWR);
	R(lk(f, F_OFD_SETLK, F_WRLCK, 0, 10));
	R(lk(g, F_OFD_SETLK, F_WRLCK, 0, 10));
	R(holder_of(g, F_OFD_GETLK, F_WRLCK, 0, 10));
	R(holder_of(g, F_GETLK, F_WRLCK, 0, 10));
	R(IN_CHILD(R(lk(f, F_OFD_SETLK, F_WRLCK, 5, 10)); R(lk(g, F_OFD_SETLK, F_RDLCK, 0, 1))));
	SLEEPER(, lk(g, F_OFD_SETLKW, F_RDLCK, 0, 1), R(lk(f, F_OFD_SETLK, F_UNLCK, 0, 0)));
	R(lk(f, F_OFD_SETLK, F_WRLCK, 0, 1));
	close(g);
	R(lk(f, F_OFD_SETLK, F_WRLCK, 0, 1));
	close(f);
	unlink(path);
}

/* ---- UNIX sockets --------------------------------------------------------------------------------------------------------- */

static socklen_t un(struct sockaddr_un *a, const char *name)
{
	memset(a, 0, sizeof *a);
	a->sun_family = AF_UNIX;
	/* @: abstract */
	memcpy(a->sun_path, name, strlen(name));
	if (*name == '@')
		a->sun_path[0] = 0;
	return offsetof(struct sockaddr_un, sun_path) + strlen(name) + (*name != '@');
}

static int un_socket(int type, const char *name, bool server)
{
	struct sockaddr_un a;
	int s = socket(AF_UNIX, type, 0);
	socklen_t len = un(&a, name);
	if (server ? bind(s, (void *)&a, len) : connect(s, (void *)&a, len)) {
		int e = errno;
		close(s);
		errno = e;
		return -1;
	}
	if (server && type != SOCK_DGRAM)
		listen(s, 4);
	return s;
}

static ssize_t send_with(int s, int kind, const void *data, size_t len)
{
	char b[CMSG_SPACE(64)] = { 0 };
	struct iovec v = { "m", 1 };
	struct msghdr h = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = b, .msg_controllen = CMSG_SPACE(len) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&h);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = kind;
	c->cmsg_len = CMSG_LEN(len);
	memcpy(CMSG_DATA(c), data, len);
	return sendmsg(s, &h, 0);
}

static ssize_t recv_with(int s, int kind, void *data, size_t len, int *flags)
{
	char b[CMSG_SPACE(256)] = { 0 }, m1;
	struct iovec v = { &m1, 1 };
	struct msghdr h = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = b, .msg_controllen = sizeof b };
	ssize_t r = recvmsg(s, &h, MSG_CMSG_CLOEXEC);
	*flags = h.msg_flags & ~MSG_CMSG_CLOEXEC;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&h); c; c = CMSG_NXTHDR(&h, c))
		if (c->cmsg_type == kind) {
			memcpy(data, CMSG_DATA(c), len);
			return c->cmsg_len - CMSG_LEN(0);
		}
	return r < 0 ? -1 : 0;
}

static void sockets(void)
{
	static const int types[] = { SOCK_STREAM, SOCK_SEQPACKET };
	static const char *const type_names[] = { "stream", "seqpacket" };
	char path[100], abstract[60];
	snprintf(path, sizeof path, "%s/kx-sock", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	snprintf(abstract, sizeof abstract, "@kx-ipc-%d", getpid());
	for (int i = 0; i < 2; i++)
		for (int j = 0; j < 2; j++) {
			SECTION(type_names[i]);
			const char *name = j ? abstract : path;
			unlink(path);
			R(un_socket(types[i], name, false));
			int s = un_socket(types[i], name, true);
			R(s >= 0);
			R(un_socket(types[i], name, true));
			R(un_socket(SOCK_DGRAM, name, false));
			turn[1] = 0;
			pid_t parent = getpid(),
			      p = CHILD(int c = un_socket(types[i], name, false); struct ucred u = { 0 };
					socklen_t l = sizeof u;
					bool sent = write(c, "12345", 5) == 5 && write(c, "67", 2) == 2; turn[1] = 1;
					my_turn(); R(sent); R(getsockopt(c, SOL_SOCKET, SO_PEERCRED, &u, &l));
					R(u.pid == parent && u.uid == getuid()); char b[20]; R(read(c, b, 20));
					R(read(c, b, 20)); close(c));
			int c = accept(s, NULL, NULL), flags;
			struct ucred u = { 0 };
			socklen_t l = sizeof u;
			R(getsockopt(c, SOL_SOCKET, SO_PEERCRED, &u, &l));
			R(u.pid == p && u.uid == getuid() && u.gid == getgid());
			while (!turn[1])
				ms(1);
			char b[20];
			R(read(c, b, 4));
			R(recv(c, b, 20, MSG_TRUNC));
			R(write(c, "reply", 5));
			R(shutdown(c, SHUT_WR));
			R(status_of(p));
			R(read(c, b, 20));
			R(send(c, "x", 1, MSG_NOSIGNAL));
			(void)flags;
			close(c);
			close(s);
			unlink(path);
		}
	SECTION("datagrams");
	int d = un_socket(SOCK_DGRAM, abstract, true), flags;
	struct sockaddr_un a;
	socklen_t len = un(&a, abstract);
	pid_t p = CHILD(int c = socket(AF_UNIX, SOCK_DGRAM, 0); sa_family_t fam = AF_UNIX;
			bind(c, (void *)&fam, sizeof fam); LATE("sendto", sendto(c, "hello", 6, 0, (void *)&a, len));
			char b[10]; R(recv(c, b, 10, 0)));
	char b[20];
	struct sockaddr_un from;
	socklen_t flen = sizeof from;
	R(recvfrom(d, b, 20, 0, (void *)&from, &flen));
	R(flen == sizeof(sa_family_t) + 6 && !from.sun_path[0]);
	R(sendto(d, "back", 5, 0, (void *)&from, flen));
	R(status_of(p));
	R(sendto(d, "back", 5, 0, (void *)&from, flen));
	SECTION("SCM_RIGHTS, SCM_CREDENTIALS");
	int sp[2], fd[2], in[20];
	R(socketpair(AF_UNIX, SOCK_STREAM, 0, sp));
	pipe(fd);
	p = CHILD(if (write(fd[1], "through", 8) != 8 || send_with(sp[1], SCM_RIGHTS, fd, 4) != 1) _exit(1);
		  close(fd[0]); for (;;) pause());
	asleep(p, p);
	close(fd[0]);
	R(recv_with(sp[0], SCM_RIGHTS, in, 4, &flags));
	R(flags);
	R(read(in[0], b, 20));
	R(strcmp(b, "through"));
	R(fcntl(in[0], F_GETFD));
	kill(p, SIGKILL);
	status_of(p);
	close(fd[1]);
	R(read(in[0], b, 20));
	close(in[0]);
	int bad = 12345;
	R(send_with(sp[1], SCM_RIGHTS, &bad, 4));
	R(send_with(sp[1], 99, &bad, 4));
	int one = 1;
	R(setsockopt(sp[0], SOL_SOCKET, SO_PASSCRED, &one, sizeof one));
	struct ucred u = { 0 }, fake = { .pid = 1, .uid = 0, .gid = 0 };
	p = CHILD(R(write(sp[1], "m", 1)));
	status_of(p);
	R(recv_with(sp[0], SCM_CREDENTIALS, &u, sizeof u, &flags));
	R(u.pid == p && u.uid == getuid());
	p = CHILD(struct ucred me = { getpid(), getuid(), getgid() };
		  R(send_with(sp[1], SCM_CREDENTIALS, &me, sizeof me)));
	status_of(p);
	R(recv_with(sp[0], SCM_CREDENTIALS, &u, sizeof u, &flags));
	R(u.pid == p);
	R(AS_NOBODY(R(send_with(sp[1], SCM_CREDENTIALS, &fake, sizeof fake))));
	close(d);
	close(sp[0]);
	close(sp[1]);
}

/* ---- parts for tests/integration/test_ipc.py ------------------------------------------------------------------------------- */

#define KEY 0x4b580099
#define NAME "/kx-ipc-family"
#define ABSTRACT "@kx-ipc-family"

/* Make one of each, and wait for the end of the input. */
static int make(void)
{
	char c;
	struct mq_attr a = { .mq_maxmsg = 4, .mq_msgsize = 64 };
	int id = shmget(KEY, 4096, IPC_CREAT | IPC_EXCL | 0600), q = msgget(KEY, IPC_CREAT | IPC_EXCL | 0600);
	void *p = shmat(id, NULL, 0);
	mqd_t m1 = mq_open(NAME, O_RDWR | O_CREAT | O_EXCL, 0600, &a);
	int fd = shm_open(NAME, O_RDWR | O_CREAT | O_EXCL, 0600);
	busy_msg(q), busy_mq(m1); /* what is told of them must be as true then */
	if (p == (void *)-1 || semget(KEY, 3, IPC_CREAT | IPC_EXCL | 0600) < 0 || snd(q, 1, "hello", 0) || m1 < 0 ||
	    mq_send(m1, "hello", 5, 1) || fd < 0 || ftruncate(fd, 8192) ||
	    sem_open(NAME, O_CREAT | O_EXCL, 0600, 1) == SEM_FAILED || un_socket(SOCK_STREAM, ABSTRACT, true) < 0) {
		perror("make");
		return 1;
	}
	puts("ready");
	fflush(stdout);
	while (read(0, &c, 1) > 0)
		;
	return 0;
}

static int find(void)
{
	R(shmget(KEY, 0, 0) >= 0);
	R(semget(KEY, 0, 0) >= 0);
	R(msgget(KEY, 0) >= 0);
	R(mq_open(NAME, O_RDONLY) >= 0);
	R(shm_open(NAME, O_RDONLY, 0) >= 0);
	R(sem_open(NAME, 0) != SEM_FAILED);
	R(un_socket(SOCK_STREAM, ABSTRACT, false) >= 0);
	return 0;
}

/* A word of fd: sleep until it is woken, or wake who sleeps. The one line tells how many. */
static int word_of(int fd, bool waits)
{
	volatile uint32_t *w = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	struct timespec ts = { 200, 0 };
	if (waits) {
		puts("ready");
		fflush(stdout);
		R(fx(w, FUTEX_WAIT, 0, &ts, NULL, 0));
		for (int i = 0; i < 100000 && w[0] != 1; i++)
			ms(1);
		return w[0] != 1;
	}
	int n = 0;
	for (int i = 0; i < 100000 && !n; i++) { /* it may not sleep yet */
		ms(1);
		n = fx(w, FUTEX_WAKE, 9, NULL, NULL, 0);
	}
	w[0] = 1;
	R(n);
	return n != 1;
}

static int word(const char *path, bool waits)
{
	int fd = open(path, O_RDWR | O_CREAT, 0600);
	if (fd < 0 || ftruncate(fd, 4096))
		return 1;
	return word_of(fd, waits);
}

/* A memory file that goes through a socket: the maker wakes. */
static int passed(const char *path, bool maker)
{
	int fd = -1, flags, one, s = un_socket(SOCK_STREAM, path, !maker);
	if (s < 0)
		return 1;
	if (maker) {
		fd = memfd_create("kx", 0);
		return ftruncate(fd, 4096) || send_with(s, SCM_RIGHTS, &fd, 4) != 1 || read(s, &one, 1) != 1 ||
		       word_of(fd, false);
	}
	puts("listening");
	fflush(stdout);
	s = accept(s, NULL, NULL);
	return recv_with(s, SCM_RIGHTS, &fd, 4, &flags) != 4 || write(s, "x", 1) != 1 || word_of(fd, true);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*fn)(void);
	} parts[] = { { "shm", shm },
		      { "sem", sem },
		      { "msg", msg },
		      { "sem_busy", sem_busy },
		      { "sem_turns", sem_turns },
		      { "msg_busy", msg_busy },
		      { "msg_turns", msg_turns },
		      { "mq", mq },
		      { "mq_busy", mq_busy },
		      { "mq_turns", mq_turns },
		      { "deaths", deaths_some },
		      { "posix_shm", posix_shm },
		      { "posix_sem", posix_sem },
		      { "sync", sync_objects },
		      { "futex", futexes },
		      { "waitv", waitv_private },
		      { "requeue", requeue },
		      { "fd", descriptors },
		      { "locks", locks },
		      { "sockets", sockets } };
	alarm(500);
	turn = shared(4096);
	if (argc > 1 && !strcmp(argv[1], "make"))
		return make();
	if (argc > 1 && !strcmp(argv[1], "find"))
		return find();
	if (argc > 2 && (!strcmp(argv[1], "wait") || !strcmp(argv[1], "wake")))
		return word(argv[2], argv[1][1] == 'a' && argv[1][2] == 'i');
	if (argc > 2 && (!strcmp(argv[1], "give") || !strcmp(argv[1], "take")))
		return passed(argv[2], argv[1][0] == 'g');
	if (argc > 2 && !strcmp(argv[1], "trips"))
		return trips(argv[2]);
	if (argc > 3 && !strcmp(argv[1], "deaths"))
		return alarm(0), deaths((unsigned)atoi(argv[2]), atoi(argv[3])) != atoi(argv[3]);
	if (argc > 2 && !strcmp(argv[1], "mqsend"))
		return mq_send(atoi(argv[2]), "after exec", 11, 0) != 0;
	signal(SIGPIPE, SIG_IGN);
	for (unsigned i = 0; i < sizeof parts / sizeof parts[0]; i++)
		if (argc < 2 || !strcmp(argv[1], parts[i].name))
			parts[i].fn();
	return 0;
}
