/* SPDX-License-Identifier: Apache-2.0 */
/* asleep HOW: sleeps in one call, for ever; a signal ends it: prints the library's version. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <netinet/in.h>

int version(void);

static void on_signal(int sig)
{
	(void)sig;
	printf("%d\n", version());
	fflush(stdout);
	_exit(0);
}

static int udp(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	return bind(fd, (struct sockaddr *)&a, sizeof a) ? -1 : fd;
}

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "pause";
	int fd[2];
	char buf[64];
	sigset_t none;
	sigemptyset(&none);
	signal(SIGUSR1, on_signal);
	if (pipe(fd) || version() < 1)
		return 1;
	struct pollfd p = { .fd = fd[0], .events = POLLIN }, q = { .fd = udp(), .events = POLLIN };
	fd_set set;
	FD_ZERO(&set);
	FD_SET(fd[0], &set);
	printf("ready\n");
	fflush(stdout);
	if (!strcmp(how, "pause"))
		pause();
	else if (!strcmp(how, "sigsuspend"))
		sigsuspend(&none);
	else if (!strcmp(how, "poll"))
		poll(&p, 1, -1);
	else if (!strcmp(how, "poll-timeout"))
		poll(&q, 1, 1000000);
	else if (!strcmp(how, "ppoll"))
		ppoll(&q, 1, NULL, &none);
	else if (!strcmp(how, "select"))
		select(fd[0] + 1, &set, NULL, NULL, NULL);
	else if (!strcmp(how, "pselect"))
		pselect(0, NULL, NULL, NULL, NULL, &none);
	else if (!strncmp(how, "epoll", 5)) {
		struct epoll_event e = { .events = EPOLLIN };
		int ep = epoll_create1(0);
		epoll_ctl(ep, EPOLL_CTL_ADD, q.fd, &e);
		if (!strcmp(how, "epoll"))
			epoll_wait(ep, &e, 1, -1);
		else
			epoll_pwait(ep, &e, 1, -1, &none);
	} else if (!strcmp(how, "read"))
		(void)!read(fd[0], buf, 1);
	else if (!strcmp(how, "recv"))
		recv(q.fd, buf, 1, 0);
	else if (!strcmp(how, "recvmmsg")) {
		struct iovec v = { buf, sizeof buf };
		struct mmsghdr m = { .msg_hdr = { .msg_iov = &v, .msg_iovlen = 1 } };
		recvmmsg(q.fd, &m, 1, 0, NULL);
	} else if (!strcmp(how, "nanosleep"))
		sleep(1000000);
	else if (!strcmp(how, "futex")) {
		sem_t s;
		sem_init(&s, 0, 0);
		sem_wait(&s);
	} else if (!strcmp(how, "sem")) {
		struct sembuf op = { 0, -1, 0 };
		semop(semget(IPC_PRIVATE, 1, 0600), &op, 1);
	} else if (!strcmp(how, "msg"))
		msgrcv(msgget(IPC_PRIVATE, 0600), buf, 8, 0, 0);
	else if (!strcmp(how, "mq")) {
		struct mq_attr a = { .mq_maxmsg = 4, .mq_msgsize = 16 };
		mq_receive(mq_open("/kx-asleep", O_CREAT | O_RDWR, 0600, &a), buf, sizeof buf, NULL);
	} else if (!strcmp(how, "wait")) {
		pid_t c = fork();
		if (!c)
			for (;;)
				sleep(1000);
		waitpid(c, NULL, 0);
	}
	printf("woken\n");
	fflush(stdout);
	pause();
	return 0;
}
