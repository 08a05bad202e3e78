/* SPDX-License-Identifier: Apache-2.0 */
/*
 * softint [CHILDREN]: int3 and `int $3` of a process whose memory is still its parent's, while another thread sends it
 * signals as fast as it can. Each is one SIGTRAP, behind the instruction, whatever comes in between.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>
#include <x86intrin.h>

enum { GOOD = 7, TRAPS = 8, PLACE = 9 };

static volatile int traps, others;
static volatile uint64_t trapped_at;
static volatile pid_t target;
static volatile int stop;

static void on_trap(int signo, siginfo_t *info, void *context)
{
	(void)signo;
	(void)info;
	traps++;
	trapped_at = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
}

static void on_usr1(int signo)
{
	(void)signo;
	others++;
}

static void *pest(void *arg)
{
	while (!stop) {
		pid_t p = target;
		if (p <= 0 || kill(p, SIGUSR1))
			usleep(20);
	}
	return arg;
}

#define TRAP(insn) __asm__ volatile("lea 1f(%%rip), %0\n\t" insn "\n1:" : "=&r"(behind)::"memory")

static void child(int i)
{
	uint64_t behind = 0, until;
	while (!others)
		;
	/* Anywhere between two signals. */
	for (until = __rdtsc() + (uint64_t)(i * 7919 % 1000) * 5000; __rdtsc() < until;)
		;
	switch (i % 3) {
	case 0:
		TRAP("int3");
		break;
	case 1:
		TRAP(".byte 0xcd, 3");
		break;
	case 2:
		TRAP(".byte 0x66, 0xcc");
		break;
	}
	_exit(traps != 1 ? TRAPS : trapped_at != behind ? PLACE : GOOD);
}

int main(int argc, char **argv)
{
	int n = argc > 1 ? atoi(argv[1]) : 100, bad = 0;
	struct sigaction trap = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO };
	pthread_t t;
	sigaction(SIGTRAP, &trap, NULL);
	signal(SIGUSR1, on_usr1);
	if (pthread_create(&t, NULL, pest, NULL))
		return 2;
	for (int i = 0; i < n; i++) {
		siginfo_t si;
		int st = -1;
		pid_t p = fork();
		if (p == 0)
			child(i);
		target = p;
		waitid(P_PID, p, &si, WEXITED | WNOWAIT); /* the number stays its until it gets no more */
		target = 0;
		usleep(100);
		waitpid(p, &st, 0);
		if (!WIFEXITED(st) || WEXITSTATUS(st) != GOOD) {
			bad++;
			printf("FAIL child %d: status %#x\n", i, st);
		}
	}
	stop = 1;
	pthread_join(t, NULL);
	printf("%s: %d children, %d bad\n", bad ? "FAILED" : "SUCCESS", n, bad);
	return bad != 0;
}
