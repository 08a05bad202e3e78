/* SPDX-License-Identifier: Apache-2.0 */
/* Parent and child talk to each other; what runs at a fork, at an end, and in line. Part of fork.c. */
#ifndef KX_GUEST_FORK_TALKS_H
#define KX_GUEST_FORK_TALKS_H
#include "fork.h"

/* ---- talking across fork ---------------------------------------------------------------------------------------------- */

struct locks {
	pthread_mutex_t m;
	pthread_cond_t c;
	pthread_barrier_t b;
	pthread_rwlock_t rw;
	sem_t a, z;
	int turn, sum, word;
};

static inline void pshared(void)
{
	struct locks *l = shared(4096);
	pthread_mutexattr_t ma;
	pthread_condattr_t ca;
	pthread_barrierattr_t ba;
	pthread_mutexattr_init(&ma);
	pthread_mutexattr_setpshared(&ma, PTHREAD_PROCESS_SHARED);
	pthread_condattr_init(&ca);
	pthread_condattr_setpshared(&ca, PTHREAD_PROCESS_SHARED);
	pthread_barrierattr_init(&ba);
	pthread_barrierattr_setpshared(&ba, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&l->m, &ma);
	pthread_cond_init(&l->c, &ca);
	pthread_barrier_init(&l->b, &ba, 2);
	sem_init(&l->a, 1, 0);
	sem_init(&l->z, 1, 0);
	pid_t p = FORK({
		for (int i = 0; i < 5000; i++) {
			pthread_mutex_lock(&l->m);
			l->sum++;
			pthread_mutex_unlock(&l->m);
		}
		for (int i = 0; i < 200; i++) {
			pthread_mutex_lock(&l->m);
			while (l->turn != 1)
				pthread_cond_wait(&l->c, &l->m);
			l->turn = 0;
			pthread_cond_broadcast(&l->c);
			pthread_mutex_unlock(&l->m);
		}
		for (int i = 0; i < 200; i++) {
			sem_wait(&l->a);
			sem_post(&l->z);
		}
		pthread_barrier_wait(&l->b);
	});
	for (int i = 0; i < 5000; i++) {
		pthread_mutex_lock(&l->m);
		l->sum++;
		pthread_mutex_unlock(&l->m);
	}
	for (int i = 0; i < 200; i++) {
		pthread_mutex_lock(&l->m);
		while (l->turn != 0)
			pthread_cond_wait(&l->c, &l->m);
		l->turn = 1;
		pthread_cond_broadcast(&l->c);
		pthread_mutex_unlock(&l->m);
	}
	for (int i = 0; i < 200; i++) {
		sem_post(&l->a);
		sem_wait(&l->z);
	}
	pthread_barrier_wait(&l->b);
	check(fine(p) && l->sum == 10000, "process-shared mutex, condition, semaphore, barrier");
	p = FORK({
		ms(20);
		l->word = 1;
		NEED(syscall(SYS_futex, &l->word, FUTEX_WAKE, 1, NULL, NULL, 0) >= 0);
	});
	while (!__atomic_load_n(&l->word, __ATOMIC_SEQ_CST))
		syscall(SYS_futex, &l->word, FUTEX_WAIT, 0, NULL, NULL, 0);
	check(fine(p), "futex across processes");
	munmap(l, 4096);
}

static inline bool rounds(int rd, int wr, int rd2, int wr2, int n)
{
	pid_t p = FORK({
		int x;
		for (int i = 0; i < n; i++) {
			NEED(read(rd, &x, sizeof x) == sizeof x && x == i);
			x = -x;
			NEED(write(wr2, &x, sizeof x) == sizeof x);
		}
	});
	bool good = true;
	for (int i = 0; i < n && good; i++) {
		int x = i;
		good = write(wr, &x, sizeof x) == sizeof x && read(rd2, &x, sizeof x) == sizeof x && x == -i;
	}
	return fine(p) && good;
}

static inline void pingpong(void)
{
	int a[2], b[2], s[2];
	if (pipe(a) || pipe(b) || socketpair(AF_UNIX, SOCK_STREAM, 0, s))
		abort();
	check(rounds(a[0], a[1], b[0], b[1], 5000), "5,000 rounds over pipes");
	check(rounds(s[1], s[0], s[0], s[1], 5000), "5,000 rounds over a socket pair");
	for (int i = 0; i < 2; i++) {
		close(a[i]);
		close(b[i]);
		close(s[i]);
	}
	int e = eventfd(0, EFD_SEMAPHORE);
	uint64_t v = 3, w = 0;
	check(fine(FORK(NEED(write(e, &v, 8) == 8))) && read(e, &w, 8) == 8 && w == 1, "eventfd");
	close(e);
}

static inline int shm_mem(void)
{
	char name[64];
	snprintf(name, sizeof name, "/kx-fork-%d", getpid());
	int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
	if (fd < 0 || ftruncate(fd, 4096))
		return 0;
	char *m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	pid_t p = FORK({
		int f = shm_open(name, O_RDWR, 0);
		NEED(f >= 0);
		char *c = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
		strcpy(c + 5, "second");
		strcpy(m + 100, "first");
	});
	int good = fine(p) && !strcmp(m + 5, "second") && !strcmp(m + 100, "first");
	munmap(m, 4096);
	close(fd);
	return shm_unlink(name) == 0 && good;
}

static inline void sysv(void)
{
	check(shm_mem(), "shm_open across fork");
	int id = shmget(IPC_PRIVATE, 8192, IPC_CREAT | 0600);
	char *m = shmat(id, NULL, 0);
	struct shmid_ds ds;
	check(id >= 0 && m != (void *)-1, "shmat");
	pid_t p = FORK({
		strcpy(m, "inherited");
		char *c = shmat(id, NULL, 0);
		NEED(c != (void *)-1 && c != m);
		strcpy(c + 4096, "again");
		NEED(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 3);
		NEED(shmdt(m) == 0);
		NEED(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 2);
	});
	check(fine(p) && !strcmp(m, "inherited") && !strcmp(m + 4096, "again"), "SysV shared memory across fork");
	check(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 1, "SysV shared memory: count of attachments");
	check(shmdt(m) == 0 && shmctl(id, IPC_RMID, NULL) == 0, "SysV shared memory removed");

	id = semget(IPC_PRIVATE, 1, IPC_CREAT | 0600);
	struct sembuf up = { 0, 1, SEM_UNDO }, down = { 0, -1, 0 };
	check(id >= 0 && semctl(id, 0, SETVAL, 0) == 0, "semget");
	p = FORK({ NEED(semop(id, &up, 1) == 0 && semctl(id, 0, GETVAL) == 1); });
	check(fine(p) && semctl(id, 0, GETVAL) == 0, "SEM_UNDO at the child's end");
	p = FORK({
		NEED(semop(id, &up, 1) == 0);
		raise(SIGKILL);
	});
	check(killed(status_of(p), SIGKILL) && semctl(id, 0, GETVAL) == 0, "SEM_UNDO after SIGKILL");
	up.sem_flg = 0;
	p = FORK({
		ms(10);
		NEED(semop(id, &up, 1) == 0);
	});
	check(semop(id, &down, 1) == 0 && fine(p), "semop wakes another process");
	semctl(id, 0, IPC_RMID);

	struct {
		long type;
		char text[16];
	} msg = { 5, "hello" }, got = { 0 };
	id = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
	p = FORK({
		NEED(msgrcv(id, &got, 16, 5, 0) == 16 && !strcmp(got.text, "hello"));
		msg.type = 6;
		strcpy(msg.text, "answer");
		NEED(msgsnd(id, &msg, 16, 0) == 0);
	});
	check(msgsnd(id, &msg, 16, 0) == 0 && msgrcv(id, &got, 16, 6, 0) == 16 && !strcmp(got.text, "answer") &&
		      fine(p),
	      "SysV messages across fork");
	msgctl(id, IPC_RMID, NULL);
}

static inline void passing(void)
{
	int s[2], fds[2];
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s) || pipe(fds))
		abort();
	char buf[CMSG_SPACE(sizeof(int))], c = 'x';
	struct iovec iov = { &c, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = buf, .msg_controllen = sizeof buf };
	pid_t p = FORK({
		close(fds[0]);
		close(fds[1]);
		NEED(recvmsg(s[1], &m, 0) == 1);
		struct cmsghdr *h = CMSG_FIRSTHDR(&m);
		NEED(h && h->cmsg_type == SCM_RIGHTS);
		int fd;
		memcpy(&fd, CMSG_DATA(h), sizeof fd);
		NEED(write(fd, "through", 7) == 7);
	});
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);
	h->cmsg_level = SOL_SOCKET;
	h->cmsg_type = SCM_RIGHTS;
	h->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(h), &fds[1], sizeof(int));
	char text[8] = "";
	check(sendmsg(s[0], &m, 0) == 1 && read(fds[0], text, 7) == 7 && !strcmp(text, "through") && fine(p),
	      "SCM_RIGHTS to a child");
	for (int i = 0; i < 2; i++) {
		close(s[i]);
		close(fds[i]);
	}
}

/* ---- atfork, deep stacks -------------------------------------------------------------------------------------------- */

static char order[16];
static inline void before(void) { strcat(order, "b"); }
static inline void in_parent(void) { strcat(order, "p"); }
static inline void in_child(void) { strcat(order, "c"); }

static inline int deep(int n)
{
	volatile char pad[1024];
	memset((void *)pad, n, sizeof pad);
	if (n == 0) {
		pid_t p = fork();
		return p;
	}
	int r = deep(n - 1);
	for (unsigned i = 0; i < sizeof pad; i++)
		if (pad[i] != (char)n)
			return -1;
	return r;
}

static volatile pid_t child;
static inline void forks(int s)
{
	(void)s;
	child = syscall(SYS_fork);
	if (!child)
		_exit(14);
}

static inline void stacks(void)
{
	int p = deep(200);
	if (!p)
		_exit(0);
	check(p > 0 && fine(p), "fork 200 frames deep, both return through them");
	static bool once;
	if (!once)
		pthread_atfork(before, in_parent, in_child);
	once = true;
	order[0] = 0;
	check(fine(FORK(NEED(!strcmp(order, "bc")))) && !strcmp(order, "bp"), "pthread_atfork");
	/* fork in a signal handler */
	struct sigaction sa = { .sa_handler = forks };
	sigaction(SIGUSR1, &sa, NULL);
	raise(SIGUSR1);
	check(exited(status_of(child), 14), "fork in a signal handler");
	off(SIGUSR1);
}

static inline void *forker(void *arg)
{
	for (;;)
		FORK();
	return arg;
}

/* The children of a process that ends in another thread while it forks are not ending for that. */
static inline void endings(void)
{
	int st;
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	for (int i = 0; i < 25; i++) {
		pid_t p = FORK({
			pthread_t t;
			NEED(pthread_create(&t, NULL, forker, NULL) == 0);
			usleep(3000 + i * 211 % 5000);
			syscall(SYS_exit_group, 0);
		});
		status_of(p);
	}
	for (int i = 0; i < 100000; i++) {
		pid_t r = waitpid(-1, &st, WNOHANG);
		if (r < 0)
			break;
		if (!r)
			ms(1);
	}
	check(waitpid(-1, &st, WNOHANG) < 0 && errno == ECHILD, "exit_group during a fork: each child ends");
	prctl(PR_SET_CHILD_SUBREAPER, 0);
}

#define GENERATIONS 4
#define AT_ONCE 12

static pthread_barrier_t all_here;
static uint64_t highest;

/* gs is 0 natively; in a pVM it is the thread's area, of which there is a limited number. */
static inline void *meet(void *arg)
{
	uint64_t gs = 0, old = __atomic_load_n(&highest, __ATOMIC_SEQ_CST);
	if (getauxval(AT_HWCAP2) & 2)
		__asm__("rdgsbase %0" : "=r"(gs));
	while (gs > old && !__atomic_compare_exchange_n(&highest, &old, gs, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		;
	pthread_barrier_wait(&all_here);
	return arg;
}

/* A line of children, each with threads: what the threads of one took, those of the next have again. */
static inline void generations(void)
{
	uint64_t *top = shared(4096);
	int fds[2];
	char none;
	if (pipe(fds))
		abort();
	pid_t p = fork();
	if (p == 0) {
		close(fds[0]);
		for (int g = 0; g < GENERATIONS; g++) {
			pthread_t t[AT_ONCE];
			highest = 0;
			pthread_barrier_init(&all_here, NULL, AT_ONCE + 1);
			for (int i = 0; i < AT_ONCE; i++)
				NEED(pthread_create(&t[i], NULL, meet, NULL) == 0);
			pthread_barrier_wait(&all_here);
			for (int i = 0; i < AT_ONCE; i++)
				pthread_join(t[i], NULL);
			top[g] = highest + 1;
			pid_t next = fork();
			NEED(next >= 0);
			if (next)
				_exit(0);
		}
		_exit(0);
	}
	close(fds[1]);
	check(read(fds[0], &none, 1) == 0, "generations: all have ended");
	close(fds[0]);
	check(fine(p), "generations: the first ended");
	check(top[0] && top[GENERATIONS - 1] == top[0], "generations: threads take what their parents' had taken");
	munmap(top, 4096);
}
#endif
