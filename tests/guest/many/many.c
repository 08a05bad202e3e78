/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many processes, one after the other or at once. many [WHAT N [WARM]]: fork, vfork, exec (of /bin/true), alive, nproc.
 * With WARM that many go first; then "warm", and it waits for a line, and again at the end after "done", so that
 * somebody can count what is there at both points. nproc: forks until EAGAIN, N times; user-nproc: as another user
 * that may have 30 processes; habit: how many of N can be made one after the other, see there.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int bad;

static void wrong(const char *what, int i, long r)
{
	printf("%s %d: %ld, %s\n", what, i, r, strerror(errno));
	bad = 1;
}

static void one(const char *what, int i)
{
	int st = 0;
	pid_t p = !strcmp(what, "vfork") ? vfork() : fork();
	if (!p) {
		if (!strcmp(what, "exec"))
			execl("/bin/true", "true", NULL);
		_exit(*what == 'e' ? 1 : i & 127);
	}
	int want = *what == 'e' ? 0 : i & 127;
	if (p < 0 || waitpid(p, &st, 0) != p || !WIFEXITED(st) || WEXITSTATUS(st) != want)
		wrong(what, i, p < 0 ? p : st);
}

static void alive(int n)
{
	pid_t *p = calloc(n, sizeof *p);
	int *go = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), st, fd[2];
	char c;
	if (pipe(fd))
		exit(2);
	for (int i = 0; i < n; i++) {
		p[i] = fork();
		if (!p[i]) {
			close(fd[1]);
			__atomic_add_fetch(go, 1, __ATOMIC_SEQ_CST);
			if (read(fd[0], &c, 1)) /* until the parent closes its end */
				_exit(99);
			_exit(i & 63);
		}
		if (p[i] < 0)
			wrong("alive", i, p[i]);
	}
	for (int k = 0; k < 60000 && __atomic_load_n(go, __ATOMIC_SEQ_CST) < n; k++)
		usleep(1000);
	if (*go != n)
		wrong("alive at once", n, *go);
	close(fd[1]);
	for (int i = 0; i < n; i++)
		if (p[i] > 0 && (waitpid(p[i], &st, 0) != p[i] || !WIFEXITED(st) || WEXITSTATUS(st) != (i & 63)))
			wrong("alive", i, st);
	close(fd[0]);
	munmap(go, 4096);
	free(p);
}

/* At the limit of processes fork says EAGAIN, and all is well again when some have ended. */
static void nproc(int times)
{
	for (int t = 0; t < times; t++) {
		pid_t p[1000];
		int n = 0, st, died = 0;
		while (n < 1000 && (p[n] = fork()) >= 0) {
			if (!p[n]) {
				pause();
				_exit(1);
			}
			n++;
		}
		if (n == 1000 || n < 2 || errno != EAGAIN)
			wrong("nproc", n, errno);
		usleep(300000); /* for those that die */
		for (int i = 0; i < n; i++) {
			if (waitpid(p[i], &st, WNOHANG) == p[i])
				died++; /* made, but no VM for it */
			else if (kill(p[i], SIGTERM) || waitpid(p[i], &st, 0) != p[i])
				wrong("nproc: the end of", i, st);
		}
		printf("nproc: %s\n", died ? "some children died" : "fine");
		if (died)
			fprintf(stderr, "%d of %d, the last of %#x\n", died, n, st);
	}
	one("fork", 1);
	one("exec", 1);
}

static void other_user(void)
{
	struct rlimit r = { 30, 30 };
	uid_t uid = 100000u + (unsigned)getpid() % 400000u; /* whose processes are counted: nobody else's */
	if (setrlimit(RLIMIT_NPROC, &r) || setgid(uid) || setuid(uid)) {
		perror("another user");
		exit(77);
	}
}

static void *nothing(void *arg) { return arg; }

/* A child that lives for a moment, while it is waited for. Was there a place for it? */
static int lives(int by_vfork)
{
	int st = 0;
	pid_t p = by_vfork ? vfork() : fork();
	if (!p) {
		usleep(8000);
		_exit(5);
	}
	if (p < 0 && errno == EAGAIN)
		return 0;
	if (p < 0 || waitpid(p, &st, 0) != p || !WIFEXITED(st) || WEXITSTATUS(st) != 5)
		wrong("habit", p, st);
	return 1;
}

/* One child at a time, as a shell has them: what is possible once is possible again, also after something that children
 * have from their parent has changed, and a thread takes no more than a child. */
static void habit(int n)
{
	int one_by_one = 0, changed = 0, by_vfork = 0, threads = 0;
	pthread_t th;
	for (int i = 0; i < n; i++)
		one_by_one += lives(0);
	for (int i = 0; i < n; i++) {
		umask(022 + (i & 1));
		changed += lives(0);
	}
	for (int i = 0; i < n; i++)
		lives(0);
	for (int i = 0; i < n; i++)
		by_vfork += lives(1);
	for (int i = 0; i < n; i++)
		lives(0);
	for (int i = 0; i < n; i++)
		if (!pthread_create(&th, NULL, nothing, NULL)) {
			pthread_join(th, NULL);
			threads++;
		}
	printf("habit: %d %d %d %d\n", one_by_one, changed, by_vfork, threads);
}

static void some(const char *what, int n)
{
	if (!strcmp(what, "user-nproc"))
		other_user();
	if (!strcmp(what, "alive"))
		alive(n);
	else if (!strcmp(what, "habit"))
		habit(n);
	else if (strstr(what, "nproc"))
		nproc(n);
	else
		for (int i = 0; i < n; i++)
			one(what, i);
}

int main(int argc, char **argv)
{
	char line[16];
	if (argc < 3) {
		some("fork", 100);
		some("vfork", 100);
		some("exec", 10);
		some("alive", 20);
		return bad;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc > 3) {
		some(argv[1], atoi(argv[3]));
		puts("warm");
		if (!fgets(line, sizeof line, stdin))
			return 2;
	}
	some(argv[1], atoi(argv[2]));
	if (argc > 3) {
		puts("done");
		if (!fgets(line, sizeof line, stdin))
			return 2;
	}
	return bad;
}
