/* SPDX-License-Identifier: Apache-2.0 */
/* What tests/integration/test_ipc.py starts. Part of ipc.c. */
#ifndef KX_GUEST_IPC_OUTSIDE_H
#define KX_GUEST_IPC_OUTSIDE_H
#include "ipc.h"
#include "busy.h"
#include "futexes.h"
#include "mqueue.h"
#include "msg.h"
#include "sockets.h"

#define KEY 0x4b580099
#define NAME "/kx-ipc-family"
#define ABSTRACT "@kx-ipc-family"

/* Make one of each, and wait for the end of the input. */
static inline int make(void)
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

static inline int find(void)
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
static inline int word_of(int fd, bool waits)
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

static inline int word(const char *path, bool waits)
{
	int fd = open(path, O_RDWR | O_CREAT, 0600);
	if (fd < 0 || ftruncate(fd, 4096))
		return 1;
	return word_of(fd, waits);
}

/* A memory file that goes through a socket: the maker wakes. */
static inline int passed(const char *path, bool maker)
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
#endif
