/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlopen.c: microseconds for dlopen(RTLD_NOW) of a small library, which is closed again, and of libcrypto, which stays: it
 * is opened in new processes. The files are in memory. Medians.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "bench.h"

#define SMALL "libutil.so.1"
#define LARGE "libcrypto.so.3"
#define ROUNDS 25
#define STARTS 9

extern char **environ;

/* Negative: there is none. */
static double open_once(const char *name, void **h)
{
	double a = now();
	*h = dlopen(name, RTLD_NOW | RTLD_LOCAL);
	return *h ? now() - a : -1;
}

/* In a process of its own, which has the number on its standard output. */
static double in_child(char *self)
{
	char *argv[] = { self, "child", NULL }, text[64] = "";
	int p[2], status = -1;
	pid_t pid;
	posix_spawn_file_actions_t fa;
	if (pipe(p))
		return -1;
	posix_spawn_file_actions_init(&fa);
	posix_spawn_file_actions_adddup2(&fa, p[1], 1);
	int r = posix_spawn(&pid, "/proc/self/exe", &fa, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&fa);
	close(p[1]);
	ssize_t n = r ? 0 : read(p[0], text, sizeof text - 1);
	close(p[0]);
	if (r || waitpid(pid, &status, 0) != pid || status || n <= 0)
		return -1;
	return atof(text);
}

int main(int argc, char **argv)
{
	double opened[ROUNDS], closed[ROUNDS], large[STARTS];
	void *h;
	if (argc > 1 && !strcmp(argv[1], "child")) {
		double t = open_once(LARGE, &h);
		printf("%.1f\n", t);
		return t < 0;
	}
	for (int i = -3; i < ROUNDS; i++) {
		double t = open_once(SMALL, &h), a = now();
		if (t < 0 || dlclose(h))
			return 1;
		if (i >= 0) {
			opened[i] = t;
			closed[i] = now() - a;
		}
	}
	printf("dlopen_small %.1f\ndlclose_small %.1f\n", median(opened, ROUNDS), median(closed, ROUNDS));
	for (int i = -1; i < STARTS; i++) {
		double t = in_child(argv[0]);
		if (t < 0)
			return i < 0 ? 0 : 1; /* is not installed */
		if (i >= 0)
			large[i] = t;
	}
	printf("dlopen_libcrypto %.1f\n", median(large, STARTS));
	return 0;
}
