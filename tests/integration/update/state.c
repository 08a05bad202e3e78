/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commands on standard input, one answer each: "v" version, "s" uses the state and checks it, "d" looks the library up
 * by dlsym, "b" is inside the library for a second, "l" stays inside, "f" forks a child that checks, "q" ends.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

int version(void);
char *buffer(void);
long call(void);
long calls_seen(void);
long bump(void);
long push(int v);
long own_pid(void);
long thread_bump(void);
int with_callback(int (*f)(int), int x);
extern long counter[];
extern __thread int per_thread;

static long uses;
static int (*taken)(void) = version;

static const char *check(void)
{
	uses++;
	if (call() != uses || calls_seen() != uses)
		return "calls";
	if (bump() != 5 + uses || counter[0] != 5 + uses)
		return "counter";
	if (push(1) != uses)
		return "list";
	if (own_pid() != getpid())
		return "call";
	if (thread_bump() != 2 * uses + 6 || per_thread != 7 + uses)
		return "thread-local";
	return taken() == version() ? "ok" : "a pointer of the program's";
}

static int slow(int x)
{
	sleep(1);
	return x;
}

static int forever(int x)
{
	for (;;)
		pause();
	return x;
}

static int by_name(void)
{
	void *h = dlopen("libupd.so.1", RTLD_NOW | RTLD_NOLOAD);
	int (*v)(void) = h ? (int (*)(void))dlsym(h, "version") : NULL;
	int (*d)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "version");
	Dl_info info;
	if (!v || v != d || !dladdr((void *)v, &info) || !info.dli_sname || strcmp(info.dli_sname, "version") ||
	    info.dli_saddr != (void *)v)
		return -1;
	int r = v();
	dlclose(h);
	return r;
}

int main(void)
{
	char line[16];
	setvbuf(stdout, NULL, _IOLBF, 0);
	check();
	printf("ready\n");
	while (fgets(line, sizeof line, stdin)) {
		int status, fd;
		pid_t p;
		switch (*line) {
		case 'v':
			printf("%d\n", version());
			break;
		case 's':
			printf("%s\n", check());
			break;
		case 'd':
			printf("%d\n", by_name());
			break;
		case 'b':
			printf("inside\n");
			printf("%d\n", with_callback(slow, 3));
			break;
		case 'l':
			printf("inside\n");
			with_callback(forever, 0);
			break;
		case 'f':
			if (!(p = fork())) {
				char ans[32];
				snprintf(ans, sizeof ans, "%s %d", check(), version());
				puts(ans);
				_exit(0);
			}
			waitpid(p, &status, 0);
			printf("%d\n", status);
			break;
		case 'r': /* a call that writes to the library's variables later */
			if ((fd = eventfd(0, 0)) < 0)
				return 1;
			if (!(p = fork())) {
				sleep(1);
				_exit(write(fd, "hello\0\0", 8) != 8);
			}
			printf("reading\n");
			if (read(fd, buffer(), 8) != 8)
				return 1;
			waitpid(p, &status, 0);
			printf("%s\n", buffer());
			break;
		case 'c': /* nobody is to hear of it any more */
			for (int i = 0; i < 3; i++)
				close(i);
			sleep(60);
			return 0;
		case 'q':
			printf("bye\n");
			return 0;
		}
	}
	return 1;
}
