/* SPDX-License-Identifier: Apache-2.0 */
/* Answers each line on standard input; a timer's handler uses the library, too, and children are forked now and then. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

int version(void);
long call(void);
long calls_seen(void);
int through_table(int x);

static volatile sig_atomic_t bad;

static void on_alarm(int sig)
{
	(void)sig;
	int v = version();
	if ((v != 1 && v != 2) || through_table(1) != 3)
		bad = 1;
}

int main(int argc, char **argv)
{
	char line[64];
	int forks = argc > 1 ? atoi(argv[1]) : 0;
	struct itimerval t = { { 0, 3000 }, { 0, 3000 } };
	struct sigaction sa = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
	sigaction(SIGALRM, &sa, NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (forks)
		setitimer(ITIMER_REAL, &t, NULL);
	printf("ready\n");
	for (long n = 1; fgets(line, sizeof line, stdin); n++) {
		long c = call(), s = calls_seen();
		int v = version(), status = 0;
		if (forks && n % forks == 0) {
			pid_t p = fork();
			if (!p)
				_exit(call() == n + 1 && version() > 0 && version() < 3 ? 0 : 1);
			if (p < 0 || waitpid(p, &status, 0) != p)
				status = 99;
		}
		printf("%ld %d %s\n", c, v, bad ? "bad" : status ? "child" : c != n || s != n ? "lost" : "ok");
	}
	return 0;
}
