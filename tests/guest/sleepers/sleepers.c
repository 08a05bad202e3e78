/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who sleeps on SysV semaphores, SysV and POSIX queues gets what comes in the order in which they came, at once: what was
 * given is no more in the object, whoever comes next and however late the sleeper runs. What becomes of sleepers that are
 * interrupted, late, killed or stopped, or whose object is changed or removed. tests/run.py compares the output of a pVM
 * with that of Linux. Exit status 1: a process was lost.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../asleep.h"
#include "../told.h"

union semun {
	int val;
	struct semid_ds *buf;
	unsigned short *array;
};

/* What a child has to tell, printed by the parent when it has ended. */
#define CHILDREN 40
static struct told {
	volatile long r;
	volatile int e, nth; /* in which order they were through */
	char text[64];
} * told;
static volatile int *through;
static pid_t child[CHILDREN];

static void ms(int n) { usleep(n * 1000); }
static void on_signal(int s) { (void)s; }

/* Until a process sleeps, and goes on to, or is stopped. */
static void until(pid_t p, char state)
{
	for (int i = 0, seen = 0; i < 20000; i++) {
		char c = state_of(p, p);
		seen = c == state ? seen + 1 : 0;
		if (seen == 5 || c == 'Z')
			return;
		usleep(1000);
	}
	printf("%d does not sleep\n", p);
	exit(1);
}

/* Child i makes the call and tells of it; asleep when this returns. */
#define SLEEPS(i, call) \
	do { \
		fflush(stdout); \
		told[i] = (struct told){ 0 }; \
		if (!(child[i] = fork())) { \
			alarm(100); \
			errno = 0; \
			told[i].nth = -1; \
			told[i].r = (long)(call); \
			told[i].e = errno; \
			told[i].nth = __atomic_add_fetch(through, 1, __ATOMIC_SEQ_CST); \
			_exit(0); \
		} \
		while (!told[i].nth) \
			usleep(200); \
		until(child[i], 'S'); \
	} while (0)

/* Child i has ended: what it told. nth: also, when. */
static void ended(int i, bool nth)
{
	int st;
	char what[64];
	if (waitpid(child[i], &st, 0) != child[i])
		exit(1);
	snprintf(what, sizeof what, "child %d", i);
	if (WIFSIGNALED(st)) {
		printf("%s: signal %d\n", what, WTERMSIG(st));
		return;
	}
	errno = told[i].e;
	line(what, told[i].r);
	if (told[i].text[0])
		printf("  \"%s\"\n", told[i].text);
	if (nth)
		printf("  as number %d\n", told[i].nth);
}
#define FIRST() (*through = 0)

/* ---- semaphores ------------------------------------------------------------------------------------------------------- */

static int op1(int id, int n, int op, int flags) { return semop(id, &(struct sembuf){ n, op, flags }, 1); }
static int top1(int id, int n, int op, int timeout_ms)
{
	struct timespec ts = { timeout_ms / 1000, timeout_ms % 1000 * 1000000L };
	return semtimedop(id, &(struct sembuf){ n, op, 0 }, 1, &ts);
}
/* So many that whoever makes such objects faster will. */
static void busy_sem(int id, int n)
{
	for (int i = 0; i < 40; i++)
		if (op1(id, n, 1, 0) || op1(id, n, -1, 0))
			line("busy", -1);
}

static void sems(void)
{
	union semun u = { .val = 0 };
	int id = semget(IPC_PRIVATE, 4, 0600);
	SECTION("sem: in their order, and nobody comes between");
	busy_sem(id, 3);
	FIRST();
	SLEEPS(0, op1(id, 0, -1, 0));
	SLEEPS(1, op1(id, 0, -1, 0));
	SLEEPS(2, op1(id, 0, -2, 0));
	SLEEPS(3, op1(id, 0, -1, 0));
	R(op1(id, 0, 1, 0));
	R(op1(id, 0, -1, IPC_NOWAIT));
	ended(0, true);
	R(op1(id, 0, 2, 0)); /* the second takes one, the third can't, the fourth can */
	R(op1(id, 0, -1, IPC_NOWAIT));
	ended(1, false);
	ended(3, false);
	R(semctl(id, 0, GETNCNT) * 10 + semctl(id, 0, GETVAL));
	R(op1(id, 0, 2, 0));
	ended(2, true);
	R(semctl(id, 0, GETVAL));
	SECTION("sem: zero is seen that lasts for an instant");
	R(op1(id, 1, 1, 0));
	busy_sem(id, 3);
	SLEEPS(0, op1(id, 1, 0, 0));
	SLEEPS(1, op1(id, 1, 0, 0));
	SLEEPS(2, op1(id, 1, -2, 0));
	R(op1(id, 1, -1, 0));
	R(op1(id, 1, 1, 0));
	ended(0, false);
	ended(1, false);
	R(semctl(id, 1, GETNCNT) * 10 + semctl(id, 1, GETZCNT));
	R(op1(id, 1, 1, 0));
	ended(2, false);
	R(semctl(id, 1, GETVAL));
	SECTION("sem: by SETVAL, SETALL, several at once");
	SLEEPS(0, op1(id, 0, -1, 0));
	u.val = 1;
	R(semctl(id, 0, SETVAL, u));
	R(semctl(id, 0, GETVAL));
	ended(0, false);
	R(op1(id, 1, 5, 0));
	busy_sem(id, 3);
	SLEEPS(0, op1(id, 1, 0, 0));
	u.val = 0;
	R(semctl(id, 1, SETVAL, u));
	R(op1(id, 1, 1, 0));
	ended(0, false);
	busy_sem(id, 3);
	SLEEPS(0, op1(id, 0, -3, 0));
	SLEEPS(1, op1(id, 2, -1, 0));
	u.array = (unsigned short[]){ 3, 0, 1, 0 };
	R(semctl(id, 0, SETALL, u));
	R(semctl(id, 0, GETVAL) * 10 + semctl(id, 2, GETVAL));
	ended(0, false);
	ended(1, false);
	busy_sem(id, 3);
	SLEEPS(0, op1(id, 0, -1, 0));
	SLEEPS(1, op1(id, 2, -1, 0));
	struct sembuf b[2] = { { 0, 1, 0 }, { 2, 1, 0 } };
	R(semop(id, b, 2));
	R(semctl(id, 0, GETVAL) * 10 + semctl(id, 2, GETVAL));
	ended(0, false);
	ended(1, false);
	SECTION("sem: signals, time, death");
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = on_signal }, NULL);
	busy_sem(id, 3);
	SLEEPS(0, op1(id, 0, -1, 0));
	SLEEPS(1, top1(id, 0, -1, 60));
	SLEEPS(2, op1(id, 0, -1, 0));
	SLEEPS(3, top1(id, 0, -1, 100000));
	kill(child[0], SIGUSR1);
	ended(0, false);
	ended(1, false);
	kill(child[2], SIGKILL);
	ended(2, false);
	R(op1(id, 0, 1, 0));
	ended(3, false);
	R(semctl(id, 0, GETVAL) + semctl(id, 0, GETNCNT));
	busy_sem(id, 3);
	SLEEPS(0, op1(id, 0, -1, 0));
	SLEEPS(1, op1(id, 0, -1, 0));
	kill(child[0], SIGSTOP); /* it waits no more, until it goes on (with EINTR, or not) */
	until(child[0], 'T');
	R(op1(id, 0, 2, 0));
	ended(1, false);
	R(op1(id, 0, -1, IPC_NOWAIT));
	R(semctl(id, 0, GETVAL));
	kill(child[0], SIGKILL);
	ended(0, false);
	R(semctl(id, 0, GETVAL));
	SECTION("sem: many, and removed");
	busy_sem(id, 3);
	for (int i = 0; i < 24; i++)
		SLEEPS(i, op1(id, 0, -1, 0));
	R(semctl(id, 0, GETNCNT));
	R(op1(id, 0, 20, 0));
	R(semctl(id, 0, GETVAL));
	for (int i = 0; i < 20; i++)
		ended(i, false);
	R(semctl(id, 0, GETNCNT));
	busy_sem(id, 3);
	R(semctl(id, 0, IPC_RMID));
	for (int i = 20; i < 24; i++)
		ended(i, false);
	id = semget(IPC_PRIVATE, 2, 0600);
	busy_sem(id, 1);
	for (int i = 0; i < 3; i++)
		SLEEPS(i, op1(id, 0, -1, 0));
	R(semctl(id, 0, IPC_RMID));
	for (int i = 0; i < 3; i++)
		ended(i, false);
}

/* ---- SysV queues ------------------------------------------------------------------------------------------------------ */

struct m {
	long type;
	char text[9000];
};
static struct m m;

static int snd(int id, long type, const char *text, int flags)
{
	m.type = type;
	strcpy(m.text, text);
	return msgsnd(id, &m, strlen(text) + 1, flags);
}
static int big(int id, size_t size, int flags)
{
	m.type = 1;
	return msgsnd(id, &m, size, flags);
}
/* to: where the text goes; -1: it is printed here */
static int rcv(int id, int to, size_t size, long type, int flags)
{
	struct m in = { 0 };
	int r = msgrcv(id, &in, size, type, flags);
	if (r >= 0 && to >= 0)
		snprintf(told[to].text, sizeof told[to].text, "%ld %.20s", in.type, in.text);
	else if (r >= 0)
		printf("  %ld %.20s\n", in.type, in.text);
	return r;
}
static void busy_msg(int id)
{
	struct m b = { .type = 99 };
	for (int i = 0; i < 40; i++)
		if (msgsnd(id, &b, 8, 0) || msgrcv(id, &b, 8, 99, 0) != 8)
			line("busy", -1);
}

static void msgs(void)
{
	struct msqid_ds ds;
	int id = msgget(IPC_PRIVATE, 0600);
	SECTION("msg: in their order, and nobody comes between");
	busy_msg(id);
	FIRST();
	SLEEPS(0, rcv(id, 0, 100, 1, 0));
	SLEEPS(1, rcv(id, 1, 100, 0, 0));
	SLEEPS(2, rcv(id, 2, 100, -5, 0));
	SLEEPS(3, rcv(id, 3, 100, 1, MSG_EXCEPT));
	R(snd(id, 7, "for 1", 0));
	R(snd(id, 1, "for 0", 0));
	R(snd(id, 6, "for 3", 0));
	R(snd(id, 6, "for nobody", 0));
	R(snd(id, 4, "for 2", 0));
	R(snd(id, 4, "for nobody too", 0));
	R(rcv(id, -1, 100, 4, IPC_NOWAIT));
	R(rcv(id, -1, 100, 0, IPC_NOWAIT));
	R(rcv(id, -1, 100, 0, IPC_NOWAIT));
	for (int i = 0; i < 4; i++)
		ended(i, false);
	R(msgctl(id, IPC_STAT, &ds) == 0 && ds.msg_lspid == getpid() && ds.msg_qnum == 0 && ds.msg_cbytes == 0);
	SECTION("msg: too small a buffer");
	busy_msg(id);
	SLEEPS(0, rcv(id, 0, 3, 0, 0));
	SLEEPS(1, rcv(id, 1, 3, 0, MSG_NOERROR));
	R(snd(id, 1, "longer than that", 0));
	ended(0, false);
	ended(1, false);
	busy_msg(id);
	SLEEPS(0, rcv(id, 0, 3, 0, 0));
	R(snd(id, 1, "longer than that", 0));
	R(rcv(id, -1, 100, 0, IPC_NOWAIT));
	ended(0, false);
	SECTION("msg: full");
	busy_msg(id);
	R(big(id, 8000, 0));
	R(big(id, 8000, 0));
	SLEEPS(0, big(id, 4000, 0));
	SLEEPS(1, big(id, 4000, 0));
	R(msgctl(id, IPC_STAT, &ds) == 0 && ds.msg_qnum * 100000 + ds.msg_cbytes);
	R(rcv(id, -1, 9000, 0, 0));
	ended(0, false);
	ended(1, false);
	R(msgctl(id, IPC_STAT, &ds) == 0 && ds.msg_qnum);
	while (msgrcv(id, &m, 9000, 0, IPC_NOWAIT) >= 0)
		;
	SECTION("msg: signals, death, a stop");
	busy_msg(id);
	SLEEPS(0, rcv(id, 0, 100, 0, 0));
	SLEEPS(1, rcv(id, 1, 100, 0, 0));
	SLEEPS(2, rcv(id, 2, 100, 0, 0));
	kill(child[0], SIGUSR1);
	ended(0, false);
	kill(child[1], SIGKILL);
	ended(1, false);
	R(snd(id, 1, "for the third", 0));
	ended(2, false);
	busy_msg(id);
	SLEEPS(0, rcv(id, 0, 100, 0, 0));
	kill(child[0], SIGSTOP);
	until(child[0], 'T');
	R(snd(id, 1, "for the stopped", 0));
	R(snd(id, 1, "behind", 0));
	R(rcv(id, -1, 100, 0, IPC_NOWAIT));
	R(rcv(id, -1, 100, 0, IPC_NOWAIT));
	R(msgctl(id, IPC_STAT, &ds) == 0 && ds.msg_qnum == 0);
	kill(child[0], SIGCONT);
	until(child[0], 'S');
	R(snd(id, 1, "when it goes on", 0));
	ended(0, false);
	SLEEPS(0, rcv(id, 0, 100, 0, 0));
	kill(child[0], SIGSTOP);
	until(child[0], 'T');
	R(snd(id, 1, "is there when it goes on", 0));
	kill(child[0], SIGCONT);
	ended(0, false);
	R(big(id, 8000, 0));
	R(big(id, 8000, 0));
	SLEEPS(0, big(id, 8000, 0));
	kill(child[0], SIGKILL);
	ended(0, false);
	for (int i = 0; i < 3; i++)
		R(msgrcv(id, &m, 9000, 0, IPC_NOWAIT));
	SECTION("msg: many, changed, removed");
	busy_msg(id);
	for (int i = 0; i < 19; i++)
		SLEEPS(i, rcv(id, i, 100, 0, 0));
	for (int i = 0; i < 18; i++)
		R(snd(id, 1, "one of many", 0));
	R(rcv(id, -1, 100, 0, IPC_NOWAIT));
	for (int i = 0; i < 18; i++)
		ended(i, false);
	R(msgctl(id, IPC_STAT, &ds));
	ds.msg_qbytes = 8000;
	R(msgctl(id, IPC_SET, &ds));
	R(snd(id, 1, "after IPC_SET", 0));
	ended(18, false);
	R(msgctl(id, IPC_RMID, NULL));
	id = msgget(IPC_PRIVATE, 0600);
	busy_msg(id);
	SLEEPS(0, rcv(id, 0, 100, 5, 0));
	SLEEPS(1, rcv(id, 1, 100, 6, 0));
	R(msgctl(id, IPC_RMID, NULL));
	ended(0, false);
	ended(1, false);
}

/* ---- POSIX queues ------------------------------------------------------------------------------------------------------ */

static int qrcv(mqd_t q, int to)
{
	char b[64] = "";
	unsigned prio = 99;
	int r = mq_receive(q, b, sizeof b, &prio);
	if (r >= 0 && to >= 0)
		snprintf(told[to].text, sizeof told[to].text, "%u %s", prio, b);
	else if (r >= 0)
		printf("  %u %s\n", prio, b);
	return r;
}
static int qsnd(mqd_t q, const char *text, unsigned prio) { return mq_send(q, text, strlen(text) + 1, prio); }
static int qtimed(mqd_t q, int after_ms)
{
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_nsec += after_ms * 1000000L;
	ts.tv_sec += ts.tv_nsec / 1000000000;
	ts.tv_nsec %= 1000000000;
	char b[64];
	return mq_timedreceive(q, b, sizeof b, NULL, &ts);
}
static void busy_mq(mqd_t q)
{
	char b[64];
	for (int i = 0; i < 40; i++)
		if (mq_send(q, "busy", 5, 0) || mq_receive(q, b, sizeof b, NULL) != 5)
			line("busy", -1);
}

static void mqs(void)
{
	struct mq_attr a = { .mq_maxmsg = 3, .mq_msgsize = 64 }, o;
	mqd_t q = mq_open("/kx-sleepers", O_RDWR | O_CREAT | O_EXCL, 0600, &a);
	mqd_t nb = mq_open("/kx-sleepers", O_RDWR | O_NONBLOCK);
	mq_unlink("/kx-sleepers");
	SECTION("mq: in their order, and nobody comes between");
	busy_mq(q);
	FIRST();
	SLEEPS(0, qrcv(q, 0));
	SLEEPS(1, qrcv(q, 1));
	R(qsnd(q, "first", 1));
	R(qsnd(q, "second", 9));
	R(qrcv(nb, -1));
	R(qsnd(q, "third", 2));
	R(qrcv(nb, -1));
	ended(0, false);
	ended(1, false);
	SECTION("mq: full");
	busy_mq(q);
	for (int i = 0; i < 3; i++)
		R(qsnd(q, "fill", 1));
	R(qsnd(nb, "no room", 1));
	SLEEPS(0, qsnd(q, "waited", 1));
	SLEEPS(1, qsnd(q, "waited and is urgent", 5));
	R(mq_getattr(q, &o) == 0 && o.mq_curmsgs);
	for (int i = 0; i < 6; i++)
		R(qrcv(nb, -1));
	ended(0, false);
	ended(1, false);
	busy_mq(q);
	for (int i = 0; i < 3; i++)
		R(qsnd(q, "fill", 1));
	SLEEPS(0, qsnd(q, "of one who is killed", 1));
	SLEEPS(1, qsnd(q, "of one who gets a signal", 1));
	SLEEPS(2, qsnd(q, "of one who stays", 1));
	kill(child[0], SIGKILL);
	ended(0, false);
	kill(child[1], SIGUSR1);
	ended(1, false);
	for (int i = 0; i < 5; i++)
		R(qrcv(nb, -1));
	ended(2, false);
	SECTION("mq: signals, time, death");
	busy_mq(q);
	SLEEPS(0, qrcv(q, 0));
	SLEEPS(1, qtimed(q, 80));
	SLEEPS(2, qrcv(q, 2));
	SLEEPS(3, qtimed(q, 100000));
	kill(child[0], SIGUSR1);
	ended(0, false);
	ended(1, false);
	kill(child[2], SIGKILL);
	ended(2, false);
	R(qsnd(q, "for the last", 3));
	ended(3, false);
	SECTION("mq: attributes, notification");
	busy_mq(q);
	SLEEPS(0, qrcv(q, 0));
	R(mq_getattr(q, &o) == 0 && o.mq_curmsgs == 0);
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	R(mq_notify(q, &ev));
	R(qsnd(q, "not noted, since somebody waits", 1));
	ended(0, false);
	R(mq_notify(q, NULL));
	mq_close(q);
	mq_close(nb);
}

/* ---- streams ------------------------------------------------------------------------------------------------------------ */

#define MESSAGES 4000
static void pause_some(unsigned *seed)
{
	*seed = *seed * 1103515245 + 12345;
	if (*seed >> 16 & 127)
		return;
	usleep(*seed >> 24);
}

/* Numbers in one direction, with pauses on either side: all arrive, in order. kind: 's', 'm', 'q'. */
static int stream(int kind, int id, mqd_t q, bool sends)
{
	unsigned seed = sends ? 1 : 2;
	struct {
		long type;
		int n[16];
	} b = { 1, { 0 } };
	for (int i = 0; i < MESSAGES; i++) {
		pause_some(&seed);
		if (sends)
			b.n[0] = i;
		if (kind == 's' ? op1(id, 0, sends ? 1 : -1, 0)
		    : kind == 'm'
			    ? (sends ? msgsnd(id, &b, 64, 0) : msgrcv(id, &b, 64, 0, 0) != 64)
			    : (sends ? mq_send(q, (char *)b.n, 64, 0) : mq_receive(q, (char *)b.n, 64, NULL) != 64))
			return 1000000 + i;
		if (!sends && kind != 's' && b.n[0] != i)
			return 2000000 + i;
	}
	return 0;
}

static void streams(void)
{
	struct mq_attr a = { .mq_maxmsg = 10, .mq_msgsize = 64 };
	int s = semget(IPC_PRIVATE, 1, 0600), id = msgget(IPC_PRIVATE, 0600);
	mqd_t q = mq_open("/kx-sleepers", O_RDWR | O_CREAT | O_EXCL, 0600, &a);
	mq_unlink("/kx-sleepers");
	for (const char *k = "smq"; *k; k++) {
		SECTION(*k == 's' ? "a stream: sem" : *k == 'm' ? "a stream: msg" : "a stream: mq");
		SLEEPS(0, stream(*k, *k == 's' ? s : id, q, false));
		R(stream(*k, *k == 's' ? s : id, q, true));
		ended(0, false);
	}
	semctl(s, 0, IPC_RMID);
	msgctl(id, IPC_RMID, NULL);
	mq_close(q);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*fn)(void);
	} parts[] = { { "sem", sems }, { "msg", msgs }, { "mq", mqs }, { "stream", streams } };
	alarm(150);
	told = mmap(NULL, sizeof *told * CHILDREN + 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (told == MAP_FAILED)
		return 1;
	through = (volatile int *)((char *)told + sizeof *told * CHILDREN);
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = on_signal }, NULL);
	for (unsigned i = 0; i < sizeof parts / sizeof parts[0]; i++)
		if (argc < 2 || !strcmp(argv[1], parts[i].name))
			parts[i].fn();
	ms(0);
	return 0;
}
