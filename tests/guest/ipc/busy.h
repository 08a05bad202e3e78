/* SPDX-License-Identifier: Apache-2.0 */
/* SysV objects that are busy. Part of ipc.c. */
#ifndef KX_GUEST_IPC_BUSY_H
#define KX_GUEST_IPC_BUSY_H
#include "ipc.h"
#include "msg.h"
#include "sem.h"

/* Many operations in a row, none of which sleeps: from then on they may be made in another way, with the same results. */
static inline void busy_sem(int id, int n)
{
	for (int i = 0; i < 40; i++)
		if (op1(id, n, 1, 0) || op1(id, n, -1, 0))
			line("busy", -1);
}

static inline void busy_msg(int id)
{
	struct m *b = malloc(sizeof *b);
	for (int i = 0; i < 40; i++) {
		b->type = 1;
		if (msgsnd(id, b, 8, 0) || msgrcv(id, b, 8, 0, 0) != 8)
			line("busy", -1);
	}
	free(b);
}

static inline void sem_busy(void)
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
static inline void sem_turns(void)
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

static inline void msg_busy(void)
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
static inline void msg_turns(void)
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
static inline int trips(const char *kind)
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
#endif
