/* SPDX-License-Identifier: Apache-2.0 */
/* SysV queues. Part of ipc.c. */
#ifndef KX_GUEST_IPC_MSG_H
#define KX_GUEST_IPC_MSG_H
#include "ipc.h"

struct m {
	long type;
	char text[16384 + 8];
};
static struct m m;

static inline int snd(int id, long type, const char *text, int flags)
{
	m.type = type;
	strcpy(m.text, text);
	return msgsnd(id, &m, strlen(text) + 1, flags);
}

static inline int rcv(int id, size_t size, long type, int flags)
{
	memset(&m, 0, sizeof m);
	int r = msgrcv(id, &m, size, type, flags);
	if (r >= 0)
		printf("  got type %ld \"%.20s\"\n", m.type, m.text);
	return r;
}

static inline void msg(void)
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
#endif
